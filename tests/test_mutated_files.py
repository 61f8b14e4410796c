"""Damaged files of every kind: refused in one line, or taken for what they still say (tests/mutate_files.py, on a small scale)."""
import json
import zipfile

import pytest
import torch

from data.files import brief, check_stamp, digest, read_json, read_tensors, sealed, sha256_of, stamp
from tests.mutate_files import KINDS, mutate


def test_three_hundred_damaged_files(tmp_path):
    found, wrong = mutate(300, 3, list(KINDS), tmp_path)
    assert not wrong, wrong[:5]
    assert sum(counts.total() for counts in found.values()) == 300 and min(counts.total() for counts in found.values()) >= 21
    assert found["checkpoint"]["refused"] > 15 and found["corpus"]["valid"] and found["cache, half made"]["same"] > 15


@pytest.mark.parametrize("kind, check", [("checkpoint", "model.sha256_of"), ("training.pt", "data.files.check_stamp")])
def test_without_a_checksum_the_damage_would_be_taken(kind, check, tmp_path, monkeypatch):
    """So the search does find what it searches for."""
    monkeypatch.setattr(check, lambda *_: "0")
    _, wrong = mutate(80, 3, [kind], tmp_path)
    assert any(": WRONG: " in line for line in wrong)


def test_a_seal_holds_every_value_and_no_layout(tmp_path):
    value, path = {"b": [1, 2.5, None, "é\ud800"], "a": {"1": True}}, tmp_path / "x.json"
    for indent in (None, 1):
        path.write_text(json.dumps(sealed(value), indent=indent), encoding="utf-8")
        assert read_json(path, "again") == value
    path.write_text(json.dumps(dict(reversed(sealed(value).items()))), encoding="utf-8")
    assert read_json(path, "again") == value and digest({1: (2,)}) == digest({"1": [2]})
    for other in (value | {"b": [1, 2.5, None, "e"]}, value | {"a": {"1": 1}}, value | {"c": 0}, {"b": value["b"]}):
        path.write_text(json.dumps(other | {"sha256": sealed(value)["sha256"]}), encoding="utf-8")
        with pytest.raises(ValueError, match="x.json: not as it was written.*; again$"):
            read_json(path, "again")
    for text in ("", "[1]", "3", json.dumps(value), '{"a": ' * 100_000, '{"a": ' + "9" * 5000 + "}", "\ufeff{}"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="x.json: not .*; again$") as refused:
            read_json(path, "again")
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_a_stamp_is_of_all_that_stands_before_it(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(5)}, path)
    whole = sha256_of(path)
    stamp(path)
    check_stamp(path)
    assert sha256_of(path, path.stat().st_size - 32) == whole and read_tensors(path)["a"].tolist() == [0, 1, 2, 3, 4]
    data = path.read_bytes()
    for damaged in (b"", data[:20], data[:-1], data + b"x", data[:-1] + bytes([data[-1] ^ 1]), bytes([data[0] ^ 1]) + data[1:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum"):
            check_stamp(path)


class Evil:
    """A pickle that would run a command."""
    def __reduce__(self):
        return print, ("run!",)


def test_no_file_of_tensors_runs_code_or_fills_the_memory(tmp_path, capsys):
    path, bomb = tmp_path / "x.pt", tmp_path / "bomb.pt"
    torch.save({"a": Evil()}, path)
    with pytest.raises(ValueError) as refused:
        read_tensors(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) <= 120 and capsys.readouterr().out == ""
    torch.save({"a": torch.zeros(1_000_000)}, path)
    with zipfile.ZipFile(path) as parts, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in parts.infolist():
            packed.writestr(part.filename, parts.read(part))
    assert torch.load(bomb, weights_only=True)["a"].shape == (1_000_000,)      # so the length has to be looked at
    with pytest.raises(ValueError, match="bytes packed into"):
        read_tensors(bomb)
    assert brief(ValueError("a\nb " * 99)) == ("ValueError: " + "a b " * 99)[:120]
