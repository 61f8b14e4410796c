"""The sparse teacher cache: round trips, batches by hand, and what is refused."""
import hashlib
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.cache import ARRAYS, FORMAT, Cache, CacheWriter, array_types, inspect, round_down_to_half
from data.files import sealed

ROLES = ["text", "sep", "answer", "end"]


def write_cache(folder, documents, n_vocab=300, k_cap=64, **changes):
    fields = dict(n_vocab=n_vocab, tokenizer_hash="abc", p=0.8, k_cap=k_cap, temperature=1.0,
                  teacher={"hash": "t", "params": 7, "figures": {"wh": 0.9}}, made_by="a command", roles=ROLES)
    writer = CacheWriter(folder, **(fields | changes))
    for document in documents:
        writer.add(*document)
    return writer.close()


def random_document(rng, length, n_vocab=300, largest=5):
    """Tokens drawn from sets of 1 to `largest`, and tokens given: some with None, some with an empty set."""
    sets = []
    for _ in range(length):
        K = int(rng.integers(0, largest + 1))
        log_probs = np.sort(np.log(rng.dirichlet(np.ones(K + 1))[:K].clip(1e-9)))[::-1].astype(np.float32)
        sets.append(None if K == 0 and rng.random() < 0.5 else (rng.choice(n_vocab, K, replace=False), log_probs))
    return rng.integers(0, n_vocab, length).tolist(), rng.integers(0, len(ROLES), length).tolist(), sets


@pytest.fixture
def documents():
    rng = np.random.default_rng(0)
    return [random_document(rng, length) for length in (6, 1, 0, 9)]


@pytest.mark.parametrize("n_vocab, k_cap, token_type, count_type", [
    (300, 64, "<u2", "|u1"), (65536, 255, "<u2", "|u1"), (65537, 256, "<u4", "<u2"), (200000, 300, "<u4", "<u2")])
def test_cache_round_trip(tmp_path, n_vocab, k_cap, token_type, count_type):
    rng = np.random.default_rng(1)
    sizes = ((6, 5), (1, 1), (0, 0), (4, k_cap))
    documents = [random_document(rng, length, n_vocab, largest) for length, largest in sizes]
    documents.append(([n_vocab - 1], [3], [([n_vocab - 1], [-0.0])]))                # the largest id, K = 1, sure
    header = write_cache(tmp_path / "cache", documents, n_vocab, k_cap)
    cache = Cache(tmp_path / "cache", n_vocab=n_vocab, tokenizer_hash="abc")
    assert sealed(header) == json.loads((tmp_path / "cache" / "header.json").read_text(encoding="utf-8")) and header == cache.header
    assert header["roles"] == ROLES
    assert header["arrays"]["ids"]["dtype"] == token_type and header["arrays"]["counts"]["dtype"] == count_type
    assert len(cache) == 5 and cache.lengths.tolist() == [6, 1, 0, 4, 1]
    for i, (tokens, roles, sets) in enumerate(documents):
        found_tokens, found_roles, counts, ids, log_probs = cache.document(i)
        assert found_tokens.tolist() == tokens and found_roles.tolist() == roles
        assert counts.tolist() == [0 if one is None else len(one[0]) for one in sets]
        kept = [one for one in sets if one is not None]
        assert ids.tolist() == [token for one in kept for token in one[0]]
        exact = np.array([x for one in kept for x in one[1]], np.float32)
        assert log_probs.dtype == np.float16 and (log_probs == round_down_to_half(exact)).all()


def test_cache_of_given_tokens_alone(tmp_path):
    """No set at all: ids.bin is empty, which a plain memmap refuses."""
    write_cache(tmp_path, [([1, 2], [0, 3], [None, None])])
    batch = Cache(tmp_path).batch([0])
    assert batch["mask"].shape == (1, 2, 1) and not batch["mask"].any()
    assert Cache(tmp_path).header["kept"] == 0
    write_cache(tmp_path / "empty", [])
    assert len(Cache(tmp_path / "empty")) == 0


def test_batch_by_hand(tmp_path):
    write_cache(tmp_path, [
        ([5, 6, 7], [0, 2, 3], [None, ([6, 9], [-0.5, -1.5]), ([7], [-0.25])]),
        ([8], [1], [None])])
    batch = Cache(tmp_path).batch([1, 0], T=4)
    assert batch["tokens"].tolist() == [[8, 0, 0, 0], [5, 6, 7, 0]]
    assert batch["roles"].tolist() == [[1, 0, 0, 0], [0, 2, 3, 0]]
    assert batch["real"].tolist() == [[True, False, False, False], [True, True, True, False]]
    assert batch["ids"].tolist() == [[[0, 0]] * 4, [[0, 0], [6, 9], [7, 0], [0, 0]]]
    assert batch["mask"].tolist() == [[[False] * 2] * 4, [[False] * 2, [True] * 2, [True, False], [False] * 2]]
    assert batch["log_probs"][1, 1].tolist() == [-0.5, -1.5] and batch["log_probs"][1, 2, 0] == -0.25
    assert (batch["log_probs"].exp()[~batch["mask"]] == 0).all() and torch.isfinite(batch["log_probs"]).all()
    assert {name: tensor.dtype for name, tensor in batch.items()} == dict(
        tokens=torch.int64, roles=torch.int64, real=torch.bool, ids=torch.int64, log_probs=torch.float32, mask=torch.bool)


def test_batch_equals_its_documents(tmp_path, documents):
    write_cache(tmp_path, documents)
    cache = Cache(tmp_path)
    batch = cache.batch([3, 2, 0, 1, 3])
    assert batch["tokens"].shape == (5, 9)
    for b, i in enumerate([3, 2, 0, 1, 3]):
        tokens, _, counts, ids, log_probs = cache.document(i)
        assert batch["tokens"][b][batch["real"][b]].tolist() == tokens.tolist()
        assert batch["mask"][b].sum(-1).tolist() == counts.tolist() + [0] * (9 - len(counts))
        assert batch["ids"][b][batch["mask"][b]].tolist() == ids.tolist()
        assert batch["log_probs"][b][batch["mask"][b]].tolist() == log_probs.tolist()
    with pytest.raises(ValueError, match="a document of 9 tokens, but T is 8"):
        cache.batch([0, 3], T=8)
    with pytest.raises(IndexError):
        cache.document(4)


def one_line(error):
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


def test_contract_is_checked_with_both_values(tmp_path, documents):
    write_cache(tmp_path, documents)
    with pytest.raises(ValueError) as error:
        Cache(tmp_path, n_vocab=301)
    assert "of 300 ids" in one_line(error) and "of 301;" in one_line(error)
    with pytest.raises(ValueError) as error:
        Cache(tmp_path, n_vocab=301, tokenizer_hash="other")
    assert "tokenizer abc of 300 ids, but the student has other of 301" in one_line(error)
    with pytest.raises(ValueError, match="has other of 300;"):
        Cache(tmp_path, tokenizer_hash="other")


@pytest.mark.parametrize("name", ARRAYS)
def test_damaged_arrays_are_refused(tmp_path, documents, name):
    write_cache(tmp_path, documents)
    path = tmp_path / f"{name}.bin"
    whole = path.read_bytes()
    for damaged, word in ((whole[:-1], "truncated"), (whole + b"\0", "truncated"), (b"", "truncated"),
                          (whole[:-1] + bytes([whole[-1] ^ 1]), "sha256")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}.bin.*{word}"):
            Cache(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=f"{name}.bin: missing"):
        Cache(tmp_path)
    path.write_bytes(whole)
    Cache(tmp_path)


def test_arrays_of_another_cache_are_refused(tmp_path, documents):
    write_cache(tmp_path / "one", documents)
    write_cache(tmp_path / "two", [(list(reversed(tokens)), roles, sets) for tokens, roles, sets in documents])
    shutil.copy(tmp_path / "two" / "tokens.bin", tmp_path / "one" / "tokens.bin")
    with pytest.raises(ValueError, match="tokens.bin: sha256 .* from another cache"):
        Cache(tmp_path / "one")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "other"}', "\udcff",
                                  json.dumps({"format": FORMAT}), json.dumps(sealed({"format": FORMAT})), "[" * 100_000,
                                  json.dumps(sealed({"format": "nanoreader teacher cache 1"}))])
def test_foreign_headers_are_refused(tmp_path, documents, text):
    write_cache(tmp_path, documents)
    (tmp_path / "header.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError) as error:
        Cache(tmp_path)
    assert "header.json" in one_line(error) and "make the cache again" in one_line(error)


@pytest.mark.parametrize("field, value", [
    ("n_vocab", 10), ("n_vocab", 70000), ("n_vocab", "300"), ("k_cap", 1000), ("roles", ["text"]), ("roles", 3),
    ("tokens", 15), ("tokens", -1), ("documents", 3), ("documents", None), ("kept", 1), ("drawn", 0), ("arrays", {}),
    ("arrays", 5), ("format", "2")])
def test_headers_that_contradict_the_arrays_are_refused(tmp_path, documents, field, value):
    header = write_cache(tmp_path, documents)
    (tmp_path / "header.json").write_text(json.dumps(sealed(header | {field: value})), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        Cache(tmp_path)
    assert "checksum" not in one_line(error)
    (tmp_path / "header.json").write_text(json.dumps({**sealed(header), field: value}), encoding="utf-8")
    with pytest.raises(ValueError, match="header.json: not as it was written"):
        Cache(tmp_path)


@pytest.mark.parametrize("offsets", [[1, 7, 7, 7, 16], [0, 7, 6, 7, 16], [0, 6, 7, 7, 15]])
def test_offsets_that_do_not_span_the_tokens_are_refused(tmp_path, documents, offsets):
    """With a sha256 that is right: a file that another program wrote."""
    header = write_cache(tmp_path, documents)
    data = np.array(offsets, "<u4").tobytes()
    (tmp_path / "documents.bin").write_bytes(data)
    header["arrays"]["documents"]["sha256"] = hashlib.sha256(data).hexdigest()
    (tmp_path / "header.json").write_text(json.dumps(sealed(header)), encoding="utf-8")
    with pytest.raises(ValueError, match="documents.bin: the offsets do not span 16 tokens"):
        Cache(tmp_path)


def test_an_unfinished_cache_is_none_and_leaves_the_old_one_whole(tmp_path, documents):
    fields = dict(n_vocab=300, tokenizer_hash="abc", p=0.8, k_cap=9, temperature=1.0, teacher={}, made_by="",
                  roles=ROLES)
    CacheWriter(tmp_path / "new", **fields).add([1], [0], [None])
    with pytest.raises(ValueError, match="no teacher cache here"):
        Cache(tmp_path / "new")
    write_cache(tmp_path / "old", documents)
    CacheWriter(tmp_path / "old", **fields).add([1], [0], [None])
    assert len(Cache(tmp_path / "old")) == 4
    write_cache(tmp_path / "old", documents[:2])
    assert len(Cache(tmp_path / "old")) == 2
    assert not list((tmp_path / "old").glob("*.tmp"))


def test_a_close_that_fails_half_way_leaves_no_header(tmp_path, documents, monkeypatch):
    """Old header, new arrays: the one state that must not arise."""
    write_cache(tmp_path, documents)
    replace, calls = os.replace, []

    def full_disk(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError("disk full")
        replace(source, target)
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_cache(tmp_path, documents[:1])
    with pytest.raises(ValueError, match="no teacher cache here"):
        Cache(tmp_path)


@pytest.mark.parametrize("document, word", [
    (([1, 2], [0], [None, None]), "2 tokens, 1 roles, 2 sets"),
    (([1], [4], [None]), "roles 4 to 4; expected 0 to 3"), (([1], [-1], [None]), "roles -1 to -1"),
    (([300], [0], [None]), "tokens 300 to 300; expected 0 to 299"),
    (([-1], [0], [None]), "-1 to -1"),
    (([1], [0], [([300], [-1.0])]), "300 to 300"),
    (([1], [0], [([3, 4], [-1.0])]), "one log-probability for each"),
    (([1], [0], [(list(range(65)), [-9.0] * 65)]), "up to 65 ids; expected at most k_cap=64"),
    (([1], [0], [([3], [math.nan])]), "NaN"), (([1], [0], [([3, 4], [-0.5, -math.inf])]), "no token of probability 0"),
    (([1], [0], [([3], [0.7])]), "above 0")])
def test_documents_that_do_not_fit_are_refused(tmp_path, documents, document, word):
    with pytest.raises(ValueError, match=f"document 4: .*{word}"):
        write_cache(tmp_path, documents + [document])


def test_the_limits_of_a_header(tmp_path):
    """Sets of one token, and as many roles as a byte holds, are still caches; what no array could hold is refused at once."""
    for k_cap, roles in ((1, 1), (65535, 256)):
        names = [f"role {i}" for i in range(roles)]
        write_cache(tmp_path, [([1], [roles - 1], [([2], [-0.5])])], k_cap=k_cap, roles=names)
        assert Cache(tmp_path).document(0)[1].tolist() == [roles - 1]
    for k_cap, roles in ((0, 1), (65536, 1), (64, 257)):
        with pytest.raises(ValueError, match="expected 1 to 65535 and at most 256"):
            write_cache(tmp_path, [], k_cap=k_cap, roles=["role"] * roles)


def test_offsets_are_wide_where_there_are_many_tokens():
    assert [array_types(300, 64, n)["documents"] for n in (0, (1 << 32) - 1, 1 << 32)] == ["<u4", "<u4", "<u8"]


def test_inspect_figures(tmp_path, capsys):
    write_cache(tmp_path, [([5, 6, 7, 8], [0] * 4, [None, ([6, 9], np.log([0.5, 0.25])), ([7], [-0.0]), None])])
    figures = inspect(tmp_path)
    assert figures["coverage"] == pytest.approx((0.75 + 1) / 2, abs=1e-3) and figures["coverage"] <= 0.875
    assert (figures["documents"], figures["tokens"], figures["drawn"]) == (1, 4, 2)
    assert (figures["mean_kept"], figures["size_one"]) == (1.5, 0.5)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.bin"))
    assert figures["bytes_per_token"] == size / 4 == (4 * (2 + 1 + 1) + 2 * 4 + 3 * 4) / 4
    assert figures["dense_bytes_per_token"] == (size - 3 * 4 + 2 * 300 * 2) / 4
    assert "50.0%" in capsys.readouterr().out


def test_inspect_a_cache_where_nothing_was_drawn(tmp_path):
    write_cache(tmp_path, [([1, 2], [0, 3], [None, None])])
    assert inspect(tmp_path)["mean_kept"] == 0
    write_cache(tmp_path, [([1], [0], [None])])
    assert inspect(tmp_path)["bytes_per_token"] == 2 + 1 + 1 + 2 * 4              # token, role, count, two offsets
    write_cache(tmp_path, [])
    assert inspect(tmp_path)["tokens"] == 0


@given(st.lists(st.floats(-1e6, 0, width=32), min_size=1, max_size=50))
def test_half_precision_never_lifts_a_log_probability(values):
    exact = np.array(values, np.float32)
    half = round_down_to_half(exact)
    assert half.dtype == np.float16 and (half <= exact.clip(-65504)).all() and np.isfinite(half).all()
    assert (exact.clip(-65504) - half <= 1e-3 * -exact + 1e-7).all()
    assert (round_down_to_half(half.astype(np.float32)) == half).all()
