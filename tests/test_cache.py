"""The teacher's cache: round trips, batches by hand, resumed writers, and what is refused."""
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from data.cache import ARRAYS, FORMAT, TeacherCache
from data.cache_tools import CacheWriter, array_types, inspect, round_down_to_half
from data.files import with_checksum, write_json

ROLES = ["text", "sep", "answer", "end"]


def new_writer(folder, n_vocab=300, k_cap=64, roles=ROLES):
    return CacheWriter(folder, n_vocab=n_vocab, tokenizer_hash="abc", p=0.8, k_cap=k_cap, temperature=1.0,
                       teacher={"hash": "t", "params": 7}, made_by="a command", roles=roles)


def write_cache(folder, documents, **settings):
    writer = new_writer(folder, **settings)
    for document in documents:
        writer.add(*document)
    return writer.close()


def random_document(rng, length, n_vocab=300, k_cap=5):
    """(tokens, roles, sets): given tokens, with None or an empty set, and tokens drawn from up to k_cap ids."""
    sets = []
    for _ in range(length):
        ids = np.unique(rng.integers(0, n_vocab, rng.integers(0, k_cap + 1)))
        log_probs = np.log(np.sort(rng.dirichlet(np.ones(len(ids) + 1)))[::-1][:len(ids)].clip(1e-30))
        sets.append((ids, log_probs) if len(ids) or rng.random() < 0.5 else None)
    return rng.integers(0, n_vocab, length).tolist(), rng.integers(0, 4, length).tolist(), sets


@pytest.fixture
def documents():
    rng = np.random.default_rng(0)
    return [random_document(rng, length) for length in (6, 1, 0, 9)]


@st.composite
def caches(draw):
    """(n_vocab, k_cap, documents): empty documents, given and drawn tokens, sets of one and of many."""
    n_vocab, k_cap = draw(st.sampled_from([1, 300, 65_536, 65_537])), draw(st.sampled_from([1, 3, 255, 256]))
    rng, lengths = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.lists(st.integers(0, 8), max_size=6))
    return n_vocab, k_cap, [random_document(rng, length, n_vocab, k_cap) for length in lengths]


@settings(max_examples=100, deadline=None)
@given(caches())
def test_a_cache_gives_back_what_was_written(made):
    n_vocab, k_cap, documents = made
    with tempfile.TemporaryDirectory() as folder:
        header = write_cache(folder, documents, n_vocab=n_vocab, k_cap=k_cap)
        cache = TeacherCache(folder, n_vocab=n_vocab, tokenizer_hash="abc")
        assert header == cache.header and header["documents"] == len(cache) == len(documents)
        assert header["arrays"]["ids"]["dtype"] == ("<u4" if n_vocab > 65_536 else "<u2")
        assert header["arrays"]["counts"]["dtype"] == ("<u2" if k_cap > 255 else "|u1")
        for d, (tokens, roles, sets) in enumerate(documents):
            found, kept = [array.tolist() for array in cache.document(d)], [one for one in sets if one]
            assert found[:3] == [tokens, roles, [0 if one is None else len(one[0]) for one in sets]]
            assert found[3] == [i for ids, _ in kept for i in ids]
            assert found[4] == [x for _, log_probs in kept for x in round_down_to_half(log_probs).tolist()]
        chosen = [d for d, length in enumerate(cache.lengths) if length][::-1]
        batch = cache.batch(chosen) if chosen else {}
        for b, d in enumerate(chosen):
            real, (tokens, roles, counts, ids, log_probs) = batch["real"][b], cache.document(d)
            mask = batch["mask"][b]
            assert batch["tokens"][b][real].tolist() == tokens.tolist() and real.sum() == len(tokens)
            assert batch["roles"][b][real].tolist() == roles.tolist()
            assert mask.sum(-1)[real].tolist() == counts.tolist() and not mask[~real].any()
            assert batch["ids"][b][mask].tolist() == ids.tolist()
            assert batch["log_probs"][b][mask].tolist() == log_probs.tolist()


@settings(max_examples=100, deadline=None)
@given(caches(), st.integers(0, 6), st.integers(0, 6))
def test_a_writer_that_was_killed_is_continued(made, stop, more):
    """Killed after a checkpoint and `more` documents: the next writer continues, and every byte is the same."""
    n_vocab, k_cap, documents = made
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        write_cache(one, documents, n_vocab=n_vocab, k_cap=k_cap)
        writer, stop = new_writer(two, n_vocab, k_cap), min(stop, len(documents))
        for document in documents[:stop]:
            writer.add(*document)
        writer.checkpoint(stop)
        for document in documents[stop:stop + more]:
            writer.add(*document)
        for file in writer.files.values():
            file.close()
        writer = new_writer(two, n_vocab, k_cap)
        assert writer.done == stop
        for document in documents[stop:]:
            writer.add(*document)
        writer.close()
        assert len({tuple((p.name, p.read_bytes()) for p in sorted(Path(x).iterdir())) for x in (one, two)}) == 1


@pytest.mark.parametrize("damage", ["settings", "part.json", "ids.part", "counts.part"])
def test_a_checkpoint_of_other_settings_or_damaged_starts_over(tmp_path, documents, damage):
    writer = new_writer(tmp_path)
    writer.add(*documents[0])
    writer.checkpoint(1)
    for file in writer.files.values():
        file.close()
    if damage != "settings":
        data = (tmp_path / damage).read_bytes()
        (tmp_path / damage).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    header = write_cache(tmp_path, documents[1:], k_cap=65 if damage == "settings" else 64)
    assert header["documents"] == len(TeacherCache(tmp_path)) == 3


def test_batch_by_hand(tmp_path):
    write_cache(tmp_path, [
        ([5, 6, 7], [0, 2, 3], [None, ([6, 9], [-0.5, -1.5]), ([7], [-0.25])]),
        ([8], [1], [None])])
    cache = TeacherCache(tmp_path)
    batch = cache.batch([1, 0], T=4)
    assert batch["tokens"].tolist() == [[8, 0, 0, 0], [5, 6, 7, 0]]
    assert batch["roles"].tolist() == [[1, 0, 0, 0], [0, 2, 3, 0]]
    assert batch["real"].tolist() == [[True, False, False, False], [True, True, True, False]]
    assert batch["ids"].tolist() == [[[0, 0]] * 4, [[0, 0], [6, 9], [7, 0], [0, 0]]]
    assert batch["mask"].tolist() == [[[False] * 2] * 4, [[False] * 2, [True] * 2, [True, False], [False] * 2]]
    assert batch["log_probs"][1, 1].tolist() == [-0.5, -1.5] and batch["log_probs"][1, 2, 0] == -0.25
    assert (batch["log_probs"].exp()[~batch["mask"]] == 0).all() and torch.isfinite(batch["log_probs"]).all()
    types = dict(tokens=torch.int64, roles=torch.int64, real=torch.bool, ids=torch.int64,
                 log_probs=torch.float32, mask=torch.bool)
    assert {name: tensor.dtype for name, tensor in batch.items()} == types
    assert cache.batch([1])["mask"].shape == (1, 1, 1)
    with pytest.raises(ValueError, match="a document of 3 tokens, but T is 2"):
        cache.batch([0, 1], T=2)
    with pytest.raises(IndexError):
        cache.document(2)
    with pytest.raises(ValueError, match="tokenizer abc of 300 ids, but the student has other of 301"):
        TeacherCache(tmp_path, n_vocab=301, tokenizer_hash="other")


@pytest.mark.parametrize("name", ARRAYS)
def test_damaged_arrays_and_those_of_another_cache_are_refused(tmp_path, documents, name):
    write_cache(tmp_path / "one", documents)
    path = tmp_path / "one" / f"{name}.bin"
    whole = path.read_bytes()
    for damaged, word in ((whole[:-1], "truncated"), (whole + b"\0", "truncated"), (b"", "truncated"),
                          (whole[:-1] + bytes([whole[-1] ^ 1]), "from another cache")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}.bin: .*{word}"):
            TeacherCache(tmp_path / "one")
    path.unlink()
    with pytest.raises(ValueError, match=f"{name}.bin: missing"):
        TeacherCache(tmp_path / "one")
    write_cache(tmp_path / "two", documents[:2])            # another cache, then the array under its checksum
    header = json.loads((tmp_path / "two" / "header.json").read_text(encoding="utf-8"))
    shutil.copy(tmp_path / "two" / f"{name}.bin", path)
    ours = json.loads((tmp_path / "one" / "header.json").read_text(encoding="utf-8"))
    ours["arrays"][name] = header["arrays"][name]
    write_json(tmp_path / "one" / "header.json", {k: v for k, v in ours.items() if k != "sha256"})
    with pytest.raises(ValueError, match="the arrays contradict header.json"):
        TeacherCache(tmp_path / "one")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', "\udcff", json.dumps({"format": FORMAT}),
                                  "[" * 100_000, json.dumps(with_checksum({"format": "nanoreader teacher cache 1"}))])
def test_foreign_headers_are_refused(tmp_path, documents, text):
    write_cache(tmp_path, documents)
    (tmp_path / "header.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="header.json.*make the cache again") as error:
        TeacherCache(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_an_unfinished_cache_is_none_and_leaves_the_old_one_whole(tmp_path, documents, monkeypatch):
    new_writer(tmp_path / "new").add(*documents[0])
    with pytest.raises(ValueError, match="no teacher cache here"):
        TeacherCache(tmp_path / "new")
    write_cache(tmp_path / "old", documents)
    new_writer(tmp_path / "old", k_cap=9).add(*documents[0])
    assert len(TeacherCache(tmp_path / "old")) == 4
    replace, calls = os.replace, []

    def full_disk(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError("disk full")
        replace(source, target)
    monkeypatch.setattr(os, "replace", full_disk)       # an old header must never stand beside new arrays
    with pytest.raises(OSError, match="disk full"):
        write_cache(tmp_path / "old", documents[:1])
    with pytest.raises(ValueError, match="no teacher cache here"):
        TeacherCache(tmp_path / "old")


@pytest.mark.parametrize("document, word", [
    (([1, 2], [0], [None, None]), "2 tokens, 1 roles, 2 sets"),
    (([1], [4], [None]), "roles 4 to 4; expected 0 to 3"), (([1], [-1], [None]), "roles -1 to -1"),
    (([300], [0], [None]), "tokens 300 to 300; expected 0 to 299"),
    (([1], [0], [([300], [-1.0])]), "300 to 300"), (([1], [0], [([3, 4], [-1.0])]), "one log-probability for each"),
    (([1], [0], [(list(range(65)), [-9.0] * 65)]), "up to 65 ids; expected at most k_cap=64"),
    (([1], [0], [([3], [math.nan])]), "NaN"), (([1], [0], [([3], [0.7])]), "above 0"),
    (([1], [0], [([3, 4], [-0.5, -math.inf])]), "no token of probability 0")])
def test_documents_that_do_not_fit_are_refused(tmp_path, documents, document, word):
    with pytest.raises(ValueError, match=f"document 4: .*{word}"):
        write_cache(tmp_path, documents + [document])


def test_the_limits_of_a_header(tmp_path):
    for k_cap, roles in ((0, 1), (65536, 1), (64, 257)):
        with pytest.raises(ValueError, match="expected 1 to 65535 and at most 256"):
            new_writer(tmp_path, k_cap=k_cap, roles=["role"] * roles)
    assert [array_types(300, 64, n)["documents"] for n in ((1 << 32) - 1, 1 << 32)] == ["<u4", "<u8"]


def test_inspect_figures(tmp_path, capsys):
    write_cache(tmp_path, [([5, 6, 7, 8], [0] * 4, [None, ([6, 9], np.log([0.5, 0.25])), ([7], [-0.0]), None])])
    figures = inspect(tmp_path)
    assert figures["coverage"] == pytest.approx((0.75 + 1) / 2, abs=1e-3) and figures["coverage"] <= 0.875
    assert (figures["documents"], figures["tokens"], figures["drawn"]) == (1, 4, 2)
    assert (figures["mean_kept"], figures["size_one"]) == (1.5, 0.5)
    assert figures["bytes_per_token"] == (4 * (2 + 1 + 1) + 2 * 4 + 3 * 4) / 4
    assert figures["dense_bytes_per_token"] == (4 * (2 + 1 + 1) + 2 * 4 + 2 * 300 * 2) / 4
    assert "50.0%" in capsys.readouterr().out
    write_cache(tmp_path, [([1, 2], [0, 3], [None, None])])
    assert inspect(tmp_path)["mean_kept"] == 0 and not TeacherCache(tmp_path).batch([0])["mask"].any()
    write_cache(tmp_path, [])
    assert inspect(tmp_path)["tokens"] == 0


@given(st.lists(st.floats(-1e6, 0, width=32), min_size=1, max_size=50))
def test_half_precision_never_lifts_a_log_probability(values):
    exact = np.array(values, np.float32)
    half = round_down_to_half(exact)
    assert half.dtype == np.float16 and (half <= exact.clip(-65504)).all() and np.isfinite(half).all()
    assert (exact.clip(-65504) - half <= 1e-3 * -exact + 1e-7).all()
    assert (round_down_to_half(half.astype(np.float32)) == half).all()
