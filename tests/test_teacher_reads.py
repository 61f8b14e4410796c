"""The teacher reads unannotated text, and what it draws is cached: sets, roles, what is left out."""
import random

import numpy as np
import pytest
import torch

import brd
from data import world
from data.cache import MASKED, Cache, CacheWriter
from data.tokenizer import train_bpe
from model import GPT, GPTConfig
from experiments.teacher import narrow, narrow_cache, reading_roles, teacher_reads, top_p_sets


class Chatty(GPT):
    """A random model that likes to say what readings are made of, or they would not end."""

    def logits(self, hidden):
        return super().logits(hidden) + self.liking


@pytest.fixture(scope="module")
def teacher():
    """(model, tokenizer, paragraphs of sentences)"""
    paragraphs = [[record["text"] for record in paragraph] for paragraph in world.annotated(20, 0)]
    tokenizer = train_bpe([" ".join(sentences) for sentences in paragraphs] * 2, 300)
    torch.manual_seed(0)
    model = Chatty(GPTConfig(n_vocab=tokenizer.n_vocab, n_layer=2, n_head=2, n_embd=16, block_size=256))
    for parameter in model.parameters():          # away from the start, where every block is the identity
        torch.nn.init.normal_(parameter, std=0.3)
    model.liking = torch.zeros(tokenizer.n_vocab)
    for token, logit in ((tokenizer.sep, 4.0), (tokenizer.encode("?")[0], 4.0), (tokenizer.encode("\n")[0], 4.0)):
        model.liking[token] = logit
    return model.double(), tokenizer, paragraphs  # in float32 two passes round differently, and near ties change places


def let_read(folder, teacher, copy, p=0.9, k_cap=40, temperature=1.0, seed=1, **options):
    """-> (number left out, Cache)"""
    model, tokenizer, paragraphs = teacher
    settings = dict(p=p, k_cap=k_cap, temperature=temperature)
    writer = CacheWriter(folder, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash, teacher={}, made_by="",
                         roles=brd.ROLES, **settings)
    left_out = teacher_reads(model, tokenizer, paragraphs, writer, copy=copy, seed=seed, **settings, **options)
    writer.close()
    return left_out, Cache(folder)


def expected_roles(tokens, sentences, tokenizer):
    """Walk through a document: (role or None for a token of a reading, whether it is given) of every token."""
    expected, at, ids = [], 0, list(tokens)
    for k, sentence in enumerate(sentences):
        encoded = tokenizer.encode(" " * bool(k) + sentence) + [tokenizer.sep]
        assert ids[at:at + len(encoded)] == encoded
        expected += [("text", True)] * (len(encoded) - 1) + [("sep", True)]
        start = at + len(encoded)
        end = ids.index(tokenizer.sep, start)
        reading = [(None, False)] * (end - start) + [("sep", False)]
        expected += reading if k else [(reading[0][0], True)] + reading[1:]       # the first token chose the copy
        at = end + 1
    assert ids[at:] == [tokenizer.end]
    return expected + [("end", True)]


@pytest.mark.parametrize("copy", ["ner", "qra"])
@pytest.mark.parametrize("p, k_cap, temperature", [(0.9, 40, 1.0), (0.9, 4, 1.0), (0.8, 40, 1.5), (1.0, 300, 0.8), (0.5, 300, 1.0)])
def test_what_the_teacher_drew_is_cached_with_its_sets(tmp_path, teacher, copy, p, k_cap, temperature):
    """The sets are those of one forward pass over the finished document, without cache, padding and batch."""
    model, tokenizer, paragraphs = teacher
    left_out, cache = let_read(tmp_path, teacher, copy, p, k_cap, temperature, batch_rows=8)
    assert len(cache) == len(paragraphs) - left_out > 9
    texts = [sentences[0] for sentences in paragraphs]
    for d in range(len(cache)):
        tokens, roles, counts, ids, log_probs = cache.document(d)
        first = tokenizer.decode(tokens[:list(tokens).index(tokenizer.sep)])
        expected = expected_roles(tokens, paragraphs[texts.index(first)], tokenizer)
        names = [brd.ROLES[role] for role in roles]
        assert [name for name in names if name in ("text", "sep", "end")] == [role for role, _ in expected if role]
        assert {name for name, (role, _) in zip(names, expected) if role is None} <= (
            {"entity"} if copy == "ner" else {"question", "answer"})
        assert [count == 0 for count in counts] == [given for _, given in expected]
        with torch.no_grad():
            logits = model.logits(model.hidden(torch.tensor(tokens[None].astype(np.int64))))[0]
        drawn = counts.nonzero()[0]
        wanted_ids, wanted, mask = top_p_sets(logits[drawn - 1], p, k_cap, temperature)
        assert ids.tolist() == wanted_ids[mask].tolist() and mask.sum(1).tolist() == counts[drawn].tolist()
        np.testing.assert_allclose(log_probs, wanted[mask], atol=1e-2)
        assert all(token in row for token, row in zip(tokens[drawn], wanted_ids.tolist()))


def test_the_first_token_makes_the_copy(tmp_path, teacher):
    """It is given, and drawn: of the words that may begin an entity line for ner, of all others for qra."""
    tokenizer, firsts = teacher[1], {"ner": {}, "qra": {}}
    for copy, seed in (("ner", 1), ("ner", 2), ("qra", 1), ("qra", 2)):
        _, cache = let_read(tmp_path, teacher, copy, seed=seed)
        for tokens in (cache.document(d)[0].tolist() for d in range(len(cache))):
            start = tokens.index(tokenizer.sep) + 1
            firsts[copy].setdefault(tuple(tokens[:start]), set()).add(tokens[start])
    assert not set().union(*firsts["ner"].values()) & set().union(*firsts["qra"].values())
    for copy in ("ner", "qra"):
        assert max(map(len, firsts[copy].values())) > 1              # another seed draws another


def test_roles_of_well_formed_readings_are_those_of_rendering(teacher):
    tokenizer, rng = teacher[1], random.Random(0)
    for paragraph in world.annotated(30, 3):
        for record, copy in ((record, copy) for record in paragraph for copy in ("ner", "qra")):
            ids, roles = brd.encode_document(brd.reading(record, copy, rng), tokenizer)
            assert reading_roles(ids, copy, tokenizer) == [brd.ROLES[role] for role in roles]


@pytest.mark.parametrize("text, answers", [
    (" Who left Anna\n", ""), (" Who left?\n", ""), ("\n\n", ""), ("", ""), (" Who? Zoë", " Zoë"),
    (" Who? Anna\n Oslo\n Q: Who? A: to Oslo - who?\n", " Anna\n to Oslo - who?\n"), ("? Anna\n", ""),
    ("Who? Anna\nW? Oslo\n", " Anna\n Oslo\n")])
def test_a_line_that_cannot_be_parsed_is_a_question(teacher, text, answers):
    tokenizer = teacher[1]
    ids = tokenizer.encode(text)
    roles = reading_roles(ids, "qra", tokenizer)
    assert set(roles) <= {"question", "answer"} and len(roles) == len(ids)
    assert tokenizer.decode([i for i, role in zip(ids, roles) if role == "answer"]) == answers


def test_readings_that_do_not_end_are_left_out_whole(tmp_path, teacher):
    whole, cache = let_read(tmp_path / "long", teacher, "qra", max_new=60)
    short, cut = let_read(tmp_path / "short", teacher, "qra", max_new=4)
    none, empty = let_read(tmp_path / "none", teacher, "qra", max_new=255)             # no room in a block of 256
    assert whole < short < none == 20 == len(cut) + short == len(cache) + whole and len(empty) == 0
    assert cut.lengths.max() <= 256 and cache.lengths.max() <= 257


def test_the_same_seed_reads_the_same(tmp_path, teacher):
    hashes = [let_read(tmp_path, teacher, "ner", seed=seed)[1].header["arrays"] for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] and hashes[0]["tokens"] != hashes[2]["tokens"]


def test_settings_that_contradict_the_cache_are_refused(tmp_path, teacher):
    model, tokenizer, paragraphs = teacher
    writer = CacheWriter(tmp_path, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash, teacher={}, made_by="",
                         roles=brd.ROLES, p=0.9, k_cap=40, temperature=1.0)
    with pytest.raises(ValueError, match="p=0.8, but the cache is opened with 0.9"):
        teacher_reads(model, tokenizer, paragraphs, writer, copy="ner", p=0.8, k_cap=40, seed=1)
    with pytest.raises(ValueError, match="copy='ori'"):
        teacher_reads(model, tokenizer, paragraphs, writer, copy="ori", p=0.9, k_cap=40, seed=1)
    writer.header["tokenizer"] = "other"
    with pytest.raises(ValueError, match="tokenizer=.* other"):
        teacher_reads(model, tokenizer, paragraphs, writer, copy="ner", p=0.9, k_cap=40, seed=1)
    writer.header |= {"tokenizer": tokenizer.hash, "n_vocab": 301}
    with pytest.raises(ValueError, match="n_vocab=300, but the cache is opened with 301"):
        teacher_reads(model, tokenizer, paragraphs, writer, copy="ner", p=0.9, k_cap=40, seed=1)


@pytest.mark.parametrize("k_cap", [3, 30])
def test_a_smaller_p_keeps_the_sets_that_it_would_have_made(k_cap):
    """Also where the cap has cut a set short of p: what stands behind its end stays out."""
    logits = 2 * torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    _, log_probs, mask = top_p_sets(logits, 0.95, k_cap)
    assert (log_probs.exp().sum(-1) < 0.8).any() == (k_cap == 3)
    padded, absent = torch.cat([mask, torch.zeros(50, 2, dtype=torch.bool)], -1), torch.full((50, 2), MASKED)
    for p in (0.8, 0.3):
        wanted = top_p_sets(logits, p, k_cap)[2]
        found = narrow(torch.cat([log_probs, absent], -1), padded, p)
        assert not found[:, wanted.shape[1]:].any() and torch.equal(found[:, :wanted.shape[1]], wanted)


def test_a_cache_of_a_smaller_p(tmp_path, teacher):
    """The same documents; each set is the part that p = .5 would have kept, and nothing else of the header has changed."""
    _, wide = let_read(tmp_path / "wide", teacher, "qra", p=0.9, k_cap=300, temperature=1.5)
    header = narrow_cache(wide, tmp_path / "narrow", 0.5)
    slim = Cache(tmp_path / "narrow")
    changing = ("p", "kept", "arrays")
    assert header == slim.header and (header["p"], header["temperature"], header["k_cap"]) == (0.5, 1.5, 300)
    assert {k: v for k, v in header.items() if k not in changing} == {k: v for k, v in wide.header.items() if k not in changing}
    assert len(slim) == len(wide) and 0 < header["kept"] < 0.7 * wide.header["kept"]
    for d in range(len(wide)):
        (tokens, roles, counts, ids, log_probs), thin = wide.document(d), slim.document(d)
        assert tokens.tolist() == thin[0].tolist() and roles.tolist() == thin[1].tolist()
        ends, at = np.cumsum(counts, dtype=int), 0
        for end, count, n in zip(ends, counts.tolist(), thin[2].tolist()):
            mass = np.exp(log_probs[end - count:end].astype(float))
            assert n == (np.cumsum(mass) - mass < 0.5 - 1e-6).sum()
            assert thin[3][at:at + n].tolist() == ids[end - count:end - count + n].tolist()
            assert thin[4][at:at + n].tolist() == log_probs[end - count:end - count + n].tolist()
            at += n
    for p in (0.5, 0.9):
        with pytest.raises(ValueError, match=f"made with p=0.5, which does not hold the sets of p={p}"):
            narrow_cache(slim, tmp_path / "again", p)
