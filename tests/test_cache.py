"""The teacher's cache: round trips, batches by hand, resumed writers, and what is refused."""
import json
import math
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from data.cache import ARRAYS, TeacherCache, cache_hash, open_cache
from data.cache_tools import CacheWriter, inspect, round_down_to_half
from data.files import digest, sha256_of

ROLES = ["text", "sep", "answer", "end"]


def signed(value):
    """A dict as write_json keeps it."""
    return value | {"sha256": digest(value)}


def new_writer(folder, n_vocab=300, k_cap=64):
    return CacheWriter(folder, n_vocab=n_vocab, tokenizer_hash="abc", p=0.8, k_cap=k_cap, temperature=1.0,
                       teacher={"hash": "t", "params": 7}, made_by="a command", roles=ROLES)


def add_all(writer, documents):
    for document in documents:
        writer.add(*document)
    return writer


def write_cache(folder, documents, *settings):
    return add_all(new_writer(folder, *settings), documents).close()


def killed(folder, before, after, *settings):
    """A writer that ends without close(), after a checkpoint."""
    writer = add_all(new_writer(folder, *settings), before)
    writer.checkpoint(len(before))
    for file in add_all(writer, after).files.values():
        file.close()


def random_document(rng, length, n_vocab=300, k_cap=5):
    """(tokens, roles, sets): given tokens (None or an empty set) and tokens drawn from up to k_cap ids."""
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
    """(documents, n_vocab, k_cap): empty documents, given and drawn tokens, sets of one and of many."""
    n_vocab, k_cap = draw(st.sampled_from([1, 300, 65_536, 65_537])), draw(st.sampled_from([1, 3, 255, 256]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.integers(0, 8), max_size=6))
    return [random_document(rng, length, n_vocab, k_cap) for length in lengths], n_vocab, k_cap


@settings(max_examples=100, deadline=None)
@given(caches())
def test_a_cache_gives_back_what_was_written(made):
    documents, n_vocab, k_cap = made
    with tempfile.TemporaryDirectory() as folder:
        header, cache = write_cache(folder, *made), TeacherCache(folder, n_vocab, "abc")
        assert header == cache.header and header["documents"] == len(cache) == len(documents)
        assert header["arrays"]["ids"]["dtype"] == ("<u4" if n_vocab > 65_536 else "<u2")
        assert header["arrays"]["counts"]["dtype"] == ("<u2" if k_cap > 255 else "|u1")
        for d, (tokens, roles, sets) in enumerate(documents):
            found, kept = [array.tolist() for array in cache.document(d)], [one for one in sets if one]
            assert found[:3] == [tokens, roles, [0 if one is None else len(one[0]) for one in sets]]
            assert found[3] == [i for ids, _ in kept for i in ids]
            assert found[4] == [x for _, log_probs in kept for x in round_down_to_half(log_probs).tolist()]
        batch = cache.batch(range(len(cache))) if documents else {}
        for d in range(len(cache)):
            real, mask = batch["real"][d], batch["mask"][d]
            found = [batch[name][d][real] for name in ("tokens", "roles")] + [mask.sum(-1)[real]]
            found += [batch[name][d][mask] for name in ("ids", "log_probs")]
            assert [part.tolist() for part in found] == [array.tolist() for array in cache.document(d)]


@settings(max_examples=100, deadline=None)
@given(caches(), st.integers(0, 6), st.integers(0, 6))
def test_a_writer_that_was_killed_is_continued(made, stop, more):
    """Killed after a checkpoint and `more` documents: the next writer continues, and every byte is equal."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        write_cache(one, *made)
        documents, stop = made[0], min(stop, len(made[0]))
        killed(two, documents[:stop], documents[stop:stop + more], *made[1:])
        writer = new_writer(two, *made[1:])
        assert writer.done == stop
        add_all(writer, documents[stop:]).close()
        first, second = ({path.name: path.read_bytes() for path in Path(x).iterdir()} for x in (one, two))
        assert first == second


@pytest.mark.parametrize("damage", ["settings", "part.json", "ids.part", "counts.part"])
def test_a_checkpoint_of_other_settings_or_damaged_starts_over(tmp_path, documents, damage):
    killed(tmp_path, documents[:1], [])
    if damage != "settings":
        data = (tmp_path / damage).read_bytes()
        (tmp_path / damage).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    write_cache(tmp_path, documents[1:], 300, 65 if damage == "settings" else 64)
    assert len(TeacherCache(tmp_path)) == 3


def test_batch_by_hand(tmp_path):
    sets = [None, ([6, 9], [-0.5, -1.5]), ([7], [-0.25])]
    write_cache(tmp_path, [([5, 6, 7], [0, 2, 3], sets), ([8], [1], [None])])
    cache = TeacherCache(tmp_path)
    batch = cache.batch([1, 0], T=4)
    assert batch["tokens"].tolist() == [[8, 0, 0, 0], [5, 6, 7, 0]]
    assert batch["real"].int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert batch["ids"].tolist() == [[[0, 0]] * 4, [[0, 0], [6, 9], [7, 0], [0, 0]]]
    assert batch["mask"].int().tolist() == [[[0, 0]] * 4, [[0, 0], [1, 1], [1, 0], [0, 0]]]
    assert batch["log_probs"][1, 1].tolist() == [-0.5, -1.5] and batch["log_probs"][1, 2, 0] == -0.25
    assert (batch["log_probs"].exp()[~batch["mask"]] == 0).all() and torch.isfinite(batch["log_probs"]).all()
    with pytest.raises(ValueError, match="a document of 3 tokens, but T is 2"):
        cache.batch([0, 1], T=2)
    with pytest.raises(ValueError, match="tokenizer abc of 300 ids, but the student has other of 301"):
        TeacherCache(tmp_path, n_vocab=301, tokenizer_hash="other")


def test_a_part_is_a_cache_of_some_documents(tmp_path):
    """The last tenth of the documents is for tests."""
    rng = np.random.default_rng(1)
    write_cache(tmp_path, [random_document(rng, n) for n in rng.integers(1, 9, 23)])
    whole, tokenizer = TeacherCache(tmp_path), SimpleNamespace(n_vocab=300, hash="abc")
    learnt, tested = open_cache(tmp_path, tokenizer)
    parts = (learnt, 0, 20), (tested, 20, 23), (whole.part(5, 9), 5, 9), (whole.part(5, 9).part(1, 3), 6, 8)
    for part, begin, end in parts:
        assert len(part) == len(part.lengths) == end - begin
        assert part.lengths.tolist() == whole.lengths[begin:end].tolist() and part.header == whole.header
        for i in range(len(part)):
            for found, wanted in zip(part.document(i), whole.document(begin + i)):
                assert found.tolist() == wanted.tolist()
        batches = part.batch(range(len(part))), whole.batch(range(begin, end))
        assert all(torch.equal(*both) for both in zip(*(batch.values() for batch in batches)))
        with pytest.raises(IndexError):
            part.document(len(part))
    assert len(whole) == 23 and whole.lengths.sum() == whole.header["tokens"]
    with pytest.raises(ValueError, match="made with tokenizer abc of 300 ids"):
        open_cache(tmp_path, SimpleNamespace(n_vocab=300, hash="other"))


@pytest.mark.parametrize("name", ARRAYS)
def test_damaged_arrays_are_refused(tmp_path, documents, name):
    write_cache(tmp_path, documents)
    path = tmp_path / f"{name}.bin"
    whole = path.read_bytes()
    for damaged, word in ((whole[:-1], "truncated"), (whole[:-1] + b"\x77", "another cache")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}.bin: .*{word}"):
            TeacherCache(tmp_path)


@pytest.mark.parametrize("name, spoil", [
    ("logprobs", lambda a: np.r_[a[:-1], np.float16("nan")]), ("logprobs", lambda a: np.r_[np.float16(1), a[1:]]),
    ("logprobs", lambda a: a[1:]), ("ids", lambda a: a + 300), ("ids", lambda a: a[1:]), ("tokens", lambda a: a + 300),
    ("roles", lambda a: a + 4), ("roles", lambda a: a[1:]), ("counts", lambda a: a[1:]),
    ("documents", lambda a: a + 1), ("documents", lambda a: np.r_[a[:1], a[2:0:-1], a[3:]]),
    ("documents", lambda a: a[:0]), ("documents", lambda a: a[:-1])])
def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path, documents, name, spoil):
    """Also where every checksum is right, as in a cache that another program has written."""
    header, path = write_cache(tmp_path, documents), tmp_path / f"{name}.bin"
    array = np.fromfile(path, header["arrays"][name]["dtype"])
    spoil(array).astype(array.dtype).tofile(path)
    header["arrays"][name] |= {"sha256": sha256_of(path), "length": len(spoil(array))}
    (tmp_path / "header.json").write_text(json.dumps(signed(header)), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name}.bin does not fit .*; make the cache again") as error:
        TeacherCache(tmp_path)
    assert "\n" not in str(error.value)


def test_a_cache_of_other_roles_or_less_mass_is_refused(tmp_path, documents):
    write_cache(tmp_path, documents)
    assert cache_hash(tmp_path, 0.8, ROLES)
    for p, roles, words in ((0.81, ROLES, "--p=0.81, but the sets of .* hold 0.8"), (0.8, ROLES[::-1], "roles .*expected")):
        with pytest.raises(ValueError, match=words):
            cache_hash(tmp_path, p, roles)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', "\udcff", "[" * 100_000,
                                  json.dumps(signed({"format": "nanoreader teacher cache 1"}))])
def test_foreign_headers_are_refused(tmp_path, documents, text):
    header = write_cache(tmp_path, documents)
    path = tmp_path / "header.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="header.json.*make the cache again") as error:
        TeacherCache(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    arrays = header["arrays"] | {"counts": header["arrays"]["roles"]}
    path.write_text(json.dumps(signed(header | {"arrays": arrays})), encoding="utf-8")
    with pytest.raises(ValueError, match="another cache"):
        TeacherCache(tmp_path)


def test_an_unfinished_cache_is_none_and_leaves_the_old_one_whole(tmp_path, documents, monkeypatch):
    killed(tmp_path / "new", documents, [])
    with pytest.raises(ValueError, match="no teacher cache here"):
        TeacherCache(tmp_path / "new")
    write_cache(tmp_path / "old", documents)
    killed(tmp_path / "old", documents[:1], [])
    assert len(TeacherCache(tmp_path / "old")) == 4
    calls = iter([os.replace] * 2)                  # fails at the third array
    monkeypatch.setattr(os, "replace", lambda *paths: next(calls)(*paths))
    with pytest.raises(StopIteration):
        write_cache(tmp_path / "old", documents[:1])
    with pytest.raises(ValueError, match="no teacher cache here"):
        TeacherCache(tmp_path / "old")


@pytest.mark.parametrize("document, word", [
    (([1, 2], [0], [None, None]), "2 tokens, 1 roles, 2 sets"), (([1], [-1], [None]), "roles -1 to -1"),
    (([1], [4], [None]), "roles 4 to 4; expected 0 to 3"), (([1], [0], [([300], [-1.0])]), "300 to 300"),
    (([300], [0], [None]), "tokens 300 to 300; expected 0 to 299"), (([1], [0], [([3], [0.7])]), "above 0"),
    (([1], [0], [([3, 4], [-1.0])]), "one log-prob"), (([1], [0], [([3], [math.nan])]), "NaN"),
    (([1], [0], [(list(range(65)), [-9.0] * 65)]), "up to 65 ids; expected at most k_cap=64"),
    (([1], [0], [([3, 4], [-0.5, -math.inf])]), "no token of probability 0")])
def test_documents_that_do_not_fit_are_refused(tmp_path, documents, document, word):
    with pytest.raises(ValueError, match=f"document 4: .*{word}"):
        write_cache(tmp_path, documents + [document])


def test_inspect_figures(tmp_path, capsys):
    sets = [None, ([6, 9], np.log([0.5, 0.25])), ([7], [-0.0]), None]
    write_cache(tmp_path, [([5, 6, 7, 8], [0] * 4, sets)])
    figures = inspect(tmp_path)
    assert figures["coverage"] == pytest.approx((0.75 + 1) / 2, abs=1e-3) and figures["coverage"] <= 0.875
    assert [figures[name] for name in ("tokens", "drawn", "mean_kept", "size_one")] == [4, 2, 1.5, 0.5]
    assert figures["bytes_per_token"] == (4 * (2 + 1 + 1) + 2 * 4 + 3 * 4) / 4
    assert figures["dense_bytes_per_token"] == (4 * (2 + 1 + 1) + 2 * 4 + 2 * 300 * 2) / 4
    assert "50.0%" in capsys.readouterr().out
    write_cache(tmp_path, [([1, 2], [0, 3], [None, None])])
    assert inspect(tmp_path)["mean_kept"] == 0


@given(st.lists(st.floats(-1e6, 0, width=32), min_size=1, max_size=50))
def test_half_precision_never_lifts_a_log_probability(values):
    exact = np.array(values, np.float32)
    half = round_down_to_half(exact)
    assert half.dtype == np.float16 and (half <= exact.clip(-65504)).all() and np.isfinite(half).all()
    assert (exact.clip(-65504) - half <= 1e-3 * -exact + 1e-7).all()
    assert (round_down_to_half(half.astype(np.float32)) == half).all()
