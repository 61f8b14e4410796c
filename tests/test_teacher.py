"""The teacher reads unannotated text, and what it draws is cached: sets, roles, what is left out."""
import json
import random

import numpy as np
import pytest
import torch

from data import world
from data.cache import TeacherCache
from data.cache_tools import CacheWriter
from data.documents import ROLES, course_tokenizer, encode_documents, render_reading
from data.tokenizer import train_bpe
from experiments import teacher
from experiments.teacher import TeacherConfig, reading_roles, teacher_reads, write_cache
from model import GPT, GPTConfig
from td_distill import top_p_sets


class Chatty(GPT):
    """A random model that likes to say what readings are made of, or they would not end."""

    def logits(self, hidden):
        return super().logits(hidden) + self.liking


@pytest.fixture(scope="module")
def reader():
    """(model, tokenizer, paragraphs of sentences)"""
    paragraphs = [[record["text"] for record in paragraph] for paragraph in world.annotated(20, 0)]
    tokenizer = train_bpe([" ".join(sentences) for sentences in paragraphs] * 2, 300)
    torch.manual_seed(0)
    model = Chatty(GPTConfig(n_vocab=tokenizer.n_vocab, n_layer=2, n_head=2, n_embd=16, block_size=256))
    for parameter in model.parameters():          # away from the start, where every block is the identity
        torch.nn.init.normal_(parameter, std=0.3)
    model.liking = torch.zeros(tokenizer.n_vocab)
    model.liking[[tokenizer.sep, tokenizer.encode("?")[0], tokenizer.encode("\n")[0]]] = 4.0
    return model.double(), tokenizer, paragraphs  # in float32 two passes round differently at near ties


def open_writer(folder, tokenizer, p=0.9, k_cap=40, temperature=1.0):
    return CacheWriter(folder, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash, teacher={}, made_by="",
                       roles=ROLES, p=p, k_cap=k_cap, temperature=temperature)


def let_read(folder, reader, behaviour, seed=1, max_new=64, **settings):
    model, tokenizer, paragraphs = reader
    writer = open_writer(folder, tokenizer, **settings)
    teacher_reads(model, tokenizer, paragraphs, writer, behaviour, seed, max_new)
    writer.close()
    return TeacherCache(folder)


def expected_roles(tokens, sentences, tokenizer):
    """Walk through a document: (role or None for a token of a reading, whether it is given) of every token."""
    expected, at, ids = [], 0, list(tokens)
    for k, sentence in enumerate(sentences):
        encoded = tokenizer.encode(" " + sentence if k else sentence) + [tokenizer.sep]
        assert ids[at:at + len(encoded)] == encoded
        expected += [("text", True)] * (len(encoded) - 1) + [("sep", True)]
        start = at + len(encoded)
        end = ids.index(tokenizer.sep, start)
        reading = [(None, False)] * (end - start) + [("sep", False)]
        expected += reading if k else [(reading[0][0], True)] + reading[1:]  # the first token chose the copy
        at = end + 1
    assert ids[at:] == [tokenizer.end]
    return expected + [("end", True)]


@pytest.mark.parametrize("behaviour, p, k_cap, temperature", [
    ("ner", 0.9, 40, 1.0), ("qra", 0.9, 4, 1.0), ("qra", 0.8, 40, 1.5), ("ner", 1.0, 300, 0.8)])
def test_draws_are_cached_with_their_sets(tmp_path, reader, monkeypatch, behaviour, p, k_cap, temperature):
    """The sets are those of one forward pass over the finished document, without KV cache and padding."""
    monkeypatch.setattr(teacher, "ROWS", 8)
    model, tokenizer, paragraphs = reader
    cache = let_read(tmp_path, reader, behaviour, p=p, k_cap=k_cap, temperature=temperature)
    assert len(cache) > 9
    texts = [sentences[0] for sentences in paragraphs]
    for d in range(len(cache)):
        tokens, roles, counts, ids, log_probs = cache.document(d)
        first = tokenizer.decode(tokens[:list(tokens).index(tokenizer.sep)])
        expected = expected_roles(tokens, paragraphs[texts.index(first)], tokenizer)
        for role, (wanted, _) in zip(roles, expected):
            own = {"ner": ("entity",), "qra": ("question", "answer")}[behaviour]
            assert ROLES[role] == wanted or (wanted is None and ROLES[role] in own)
        assert [count == 0 for count in counts] == [given for _, given in expected]
        with torch.no_grad():
            logits = model(torch.tensor(tokens[None].astype(np.int64)))[0]
        drawn = counts.nonzero()[0]
        wanted_ids, wanted, mask = top_p_sets(logits[drawn - 1], p, k_cap, temperature)
        assert ids.tolist() == wanted_ids[mask].tolist() and mask.sum(1).tolist() == counts[drawn].tolist()
        np.testing.assert_allclose(log_probs, wanted[mask], atol=1e-2)
        assert all(token in row for token, row in zip(tokens[drawn], wanted_ids.tolist()))


def test_the_first_token_decides_the_behaviour(tmp_path, reader):
    """It is drawn: for ner of the words that may begin an entity line, for qra of all others."""
    tokenizer, firsts, arrays = reader[1], {"ner": {}, "qra": {}}, []
    for behaviour, seed in (("ner", 1), ("ner", 1), ("ner", 2), ("qra", 1), ("qra", 2)):
        cache = let_read(tmp_path, reader, behaviour, seed)
        arrays.append(cache.header["arrays"])
        for tokens in (cache.document(d)[0].tolist() for d in range(len(cache))):
            start = tokens.index(tokenizer.sep) + 1
            firsts[behaviour].setdefault(tuple(tokens[:start]), set()).add(tokens[start])
    assert not set().union(*firsts["ner"].values()) & set().union(*firsts["qra"].values())
    assert all(max(map(len, found.values())) > 1 for found in firsts.values())       # another seed draws another
    assert arrays[0] == arrays[1] and arrays[0]["tokens"] != arrays[2]["tokens"]      # the same seed draws the same


def test_roles_of_well_formed_readings_are_those_of_rendering(reader):
    tokenizer, rng = reader[1], random.Random(0)
    readings = [(behaviour, render_reading(record, behaviour, rng)) for paragraph in world.annotated(30, 3)
                for record in paragraph for behaviour in ("ner", "qra")]
    encoded = encode_documents([pieces for _, pieces in readings], tokenizer)
    for (behaviour, _), (ids, roles) in zip(readings, encoded):
        assert reading_roles(ids, behaviour, tokenizer) == [ROLES[role] for role in roles]


@pytest.mark.parametrize("text, answers", [
    (" Who left Anna\n", ""), (" Who left?\n", ""), ("\n\n", ""), ("", ""), (" Who? Zoë", " Zoë"),
    (" Who? Anna\n Oslo\n Q: Who? A: to Oslo - who?\n", " Anna\n to Oslo - who?\n"), ("? Anna\n", ""),
    ("Who? Anna\nW? Oslo\n", " Anna\n Oslo\n")])
def test_a_line_that_cannot_be_parsed_is_a_question(reader, text, answers):
    tokenizer = reader[1]
    ids = tokenizer.encode(text)
    roles = reading_roles(ids, "qra", tokenizer)
    assert set(roles) <= {"question", "answer"} and len(roles) == len(ids)
    assert tokenizer.decode([i for i, role in zip(ids, roles) if role == "answer"]) == answers


def test_readings_that_do_not_end_are_left_out_whole(tmp_path, reader):
    sizes = []
    for max_new in (60, 4, 255):                                          # 255: no room in a block of 256
        cache = let_read(tmp_path, reader, "qra", max_new=max_new)
        sizes.append(len(cache))
        assert not len(cache) or cache.lengths.max() <= 257
    assert 20 > sizes[0] > sizes[1] > sizes[2] == 0


def test_another_behaviour_or_tokenizer_is_refused(tmp_path, reader):
    model, tokenizer, paragraphs = reader
    writer = open_writer(tmp_path, tokenizer)
    with pytest.raises(ValueError, match="behaviour 'ori'.*expected ner or qra"):
        teacher_reads(model, tokenizer, paragraphs, writer, "ori", 1)
    writer.header["tokenizer"] = "other"
    with pytest.raises(ValueError, match="a cache of tokenizer other"):
        teacher_reads(model, tokenizer, paragraphs, writer, "ner", 1)


def test_a_stopped_cache_goes_on_behind_its_last_chunk(tmp_path, reader, monkeypatch):
    model, tokenizer, _ = reader
    monkeypatch.setattr(teacher, "CHUNK", 8)
    model.extra = {"reading": {"single": dict.fromkeys(teacher.FIGURES, {"value": 0.5})}, "tokens_seen": 7}
    config, calls = TeacherConfig(cache_tokens=24 * 49), []
    write_cache(tmp_path / "whole", model, tokenizer, config)

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 4:                                               # in the middle of the second chunk
            raise KeyboardInterrupt
        teacher_reads(*arguments)
    monkeypatch.setattr(teacher, "teacher_reads", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "part", model, tokenizer, config)
    assert not (tmp_path / "part" / "header.json").exists()
    write_cache(tmp_path / "part", model, tokenizer, config)
    assert len(calls) == 4 + 4
    headers = [json.loads((tmp_path / name / "header.json").read_text("utf-8")) for name in ("whole", "part")]
    assert headers[0] == headers[1] and headers[0]["documents"] > 9
    assert headers[0]["teacher"]["figures"]["single"]["entity_f1"] == 0.5


def test_the_command(tmp_path, monkeypatch, capsys):
    """Trains, tests and fills once; a second call finds all of it. A teacher that says nothing is told."""
    options = [f"--out_dir={tmp_path}", "--teacher_tokens=3000", "--cache_tokens=200", "--test_paragraphs=2",
               "--n_head=2", "--teacher_layer=1", "--teacher_embd=16", "--device=cpu"]
    with pytest.raises(ValueError, match="finished none of its readings; try more than --teacher_tokens=3000"):
        teacher.main(options)
    monkeypatch.setattr(teacher, "write_cache", lambda folder, *_: open_writer(
        folder, course_tokenizer("world", 1024)).close())
    teacher.main(options)
    model = GPT.load(tmp_path / "teacher")
    assert model.extra["tokens_seen"] > 3000 and set(model.extra["reading"]) == {"single", "paragraph"}
    weights = (tmp_path / "teacher" / "model.pt").read_bytes()
    teacher.main(options)
    assert capsys.readouterr().out.count("learns from it") == 2
    assert weights == (tmp_path / "teacher" / "model.pt").read_bytes()
    with pytest.raises(ValueError, match="--corpus=my.txt; expected annotations"):
        teacher.main(["--corpus=my.txt"])
