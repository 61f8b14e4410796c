"""The teacher reads unannotated text, and what it draws is cached: sets, roles, what is left out."""
import random

import numpy as np
import pytest
import torch

from data import world
from data.cache import TeacherCache
from data.cache_tools import CacheWriter
from data.documents import ROLES, TEST_LEVELS, encode_documents, render_reading
from data.sets import top_p_sets
from data.tokenizer import train_bpe
from experiments import teacher
from experiments.teacher import TeacherConfig, reading_roles, teacher_reads, write_cache
from model import GPT, GPTConfig


@pytest.fixture(scope="module")
def reader():
    """(model, tokenizer, paragraphs); a random model that likes to write what ends a reading."""
    paragraphs = [[record["text"] for record in paragraph] for paragraph in world.annotated(20, 0)]
    tokenizer = train_bpe([" ".join(sentences) for sentences in paragraphs] * 2, 300)
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.n_vocab, block_size=256, n_layer=2, n_head=2, n_embd=16))
    for parameter in model.parameters():          # away from the start, where every block is the identity
        torch.nn.init.normal_(parameter, std=0.3)
    liking = torch.zeros(tokenizer.n_vocab)
    liking[[tokenizer.sep, tokenizer.encode("?")[0], tokenizer.encode("\n")[0]]] = 4.0
    model.logits = lambda hidden: GPT.logits(model, hidden) + liking
    return model.double(), tokenizer, paragraphs  # in float32 two passes round differently at near ties


def open_writer(folder, tokenizer, p=0.9, k_cap=40, temperature=1.0):
    return CacheWriter(folder, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash, teacher={}, p=p,
                       k_cap=k_cap, temperature=temperature, roles=ROLES, made_by="")


def let_read(folder, reader, behaviour, seed=1, max_new=64, **settings):
    writer = open_writer(folder, reader[1], **settings)
    teacher_reads(*reader, writer, behaviour, seed, max_new)
    writer.close()
    return TeacherCache(folder)


def check_structure(ids, names, given, sentences, tokenizer, own):
    """A document is sentence SEP reading SEP ... END, with these roles, and this is given."""
    at = 0
    for k, sentence in enumerate(sentences):
        head = tokenizer.encode(" " + sentence if k else sentence) + [tokenizer.sep]
        begin = at + len(head)
        end = ids.index(tokenizer.sep, begin) + 1
        assert ids[at:begin] == head and names[at:begin] == ["text"] * (len(head) - 1) + ["sep"]
        assert set(names[begin:end - 1]) <= own and names[end - 1] == "sep"
        first = 1 if k == 0 else 0                          # the first token chose the behaviour
        assert all(given[at:begin + first]) and not any(given[begin + first:end])
        at = end
    assert ids[at:] == [tokenizer.end] and names[at:] == ["end"] and given[at:] == [True]


@pytest.mark.parametrize("behaviour, p, k_cap, temperature", [
    ("ner", 0.9, 40, 1.0), ("qra", 0.9, 4, 1.0), ("qra", 0.8, 40, 1.5), ("ner", 1.0, 300, 0.8)])
def test_draws_are_cached_with_their_sets(tmp_path, reader, monkeypatch, behaviour, p, k_cap, temperature):
    """The sets are those of one forward pass over the finished document, without KV cache and padding."""
    monkeypatch.setattr(teacher, "ROWS", 8)
    model, tokenizer, paragraphs = reader
    cache = let_read(tmp_path, reader, behaviour, p=p, k_cap=k_cap, temperature=temperature)
    texts, own = {p[0]: p for p in paragraphs}, {"entity"} if behaviour == "ner" else {"question", "answer"}
    assert len(cache) > 9
    for d in range(len(cache)):
        tokens, roles, counts, ids, log_probs = cache.document(d)
        sentences = texts[tokenizer.decode(tokens[:list(tokens).index(tokenizer.sep)])]
        check_structure(tokens.tolist(), [ROLES[role] for role in roles], [not count for count in counts],
                        sentences, tokenizer, own)
        with torch.no_grad():
            logits = model(torch.tensor(tokens[None].astype(np.int64)))[0]
        drawn = counts.nonzero()[0]
        wanted_ids, wanted, mask = top_p_sets(logits[drawn - 1], p, k_cap, temperature)
        assert ids.tolist() == wanted_ids[mask].tolist() and mask.sum(1).tolist() == counts[drawn].tolist()
        np.testing.assert_allclose(log_probs, wanted[mask], atol=1e-2)
        assert all(token in row for token, row in zip(tokens[drawn], wanted_ids.tolist()))


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
    ids = reader[1].encode(text)
    roles = reading_roles(ids, "qra", reader[1])
    assert set(roles) <= {"question", "answer"} and len(roles) == len(ids)
    assert reader[1].decode([i for i, role in zip(ids, roles) if role == "answer"]) == answers


def test_seeds_and_what_does_not_end_or_fit(tmp_path, reader):
    caches = [let_read(tmp_path, reader, "qra", max_new=n) for n in (60, 4, 255)]     # a block has 256
    assert 20 >= len(caches[0]) > len(caches[1]) > len(caches[2]) == 0 and caches[0].lengths.max() <= 257
    caches = [let_read(tmp_path, reader, "ner", seed) for seed in (1, 1, 2)]
    seeds = [cache.header["arrays"]["tokens"] for cache in caches]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_stopped_cache_goes_on_behind_its_last_chunk(tmp_path, reader, monkeypatch):
    monkeypatch.setattr(teacher, "CHUNK", 8)
    figures = dict.fromkeys(teacher.FIGURES, {"value": 0.5, "se": None})
    reader[0].extra = {"reading": {"single": figures}, "tokens_seen": 1}
    inputs, calls = (*reader[:2], TeacherConfig(cache_tokens=24 * teacher.DOCUMENT_TOKENS)), []
    write_cache(tmp_path / "whole", *inputs)

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 4:                                               # in the middle of the second chunk
            raise KeyboardInterrupt
        teacher_reads(*arguments)
    monkeypatch.setattr(teacher, "teacher_reads", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "part", *inputs)
    assert not (tmp_path / "part" / "header.json").exists()
    write_cache(tmp_path / "part", *inputs)
    whole, part = (TeacherCache(tmp_path / name).header for name in ("whole", "part"))
    assert len(calls) == 4 + 4 and whole == part and whole["documents"] > 9
    monkeypatch.setattr(teacher, "MAX_NEW", 255)
    with pytest.raises(ValueError, match="none of its readings; try more than --teacher_tokens=4000000"):
        write_cache(tmp_path / "none", *inputs)


def test_the_command_trains_tests_and_fills_once(tmp_path, reader, monkeypatch, capsys):
    monkeypatch.setattr(teacher, "course_tokenizer", lambda *arguments: reader[1])
    monkeypatch.setattr(teacher, "write_cache", lambda folder, *_: open_writer(folder, reader[1]).close())
    options = [f"--out_dir={tmp_path}", "--teacher_tokens=2000", "--test_paragraphs=2", "--n_head=2",
               "--teacher_layer=1", "--teacher_embd=16", "--device=cpu", "--threads=1"]
    teacher.main(options)
    model, weights = GPT.load(tmp_path / "teacher"), (tmp_path / "teacher" / "model.pt").read_bytes()
    assert model.extra["tokens_seen"] > 1000 and list(model.extra["reading"]) == list(TEST_LEVELS)
    teacher.main(options)
    assert capsys.readouterr().out.count("learns from it") == 2
    assert weights == (tmp_path / "teacher" / "model.pt").read_bytes()
    with pytest.raises(ValueError, match="--corpus=my.txt; expected annotations"):
        teacher.main(["--corpus=my.txt"])
