"""What holds for any input: annotations and their lines, what is believed of a teacher's reply, the cache on disk.

The properties of sentence splitting (800 examples) stand in test_prepare.py, those of byte pair encoding (1,000) in
test_tokenizer.py; here are 1,500.
"""
import json
import random
import re
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import assume, given, settings, strategies as st

from data import annotations, reads
from data.annotations import ALL_FORMS, BREAKS, ENTITY_FORMS, KINDS, TYPES
from data.cache import TeacherCache, CacheWriter, round_down_to_half
from adapters.prompts import MAX_TEXT, parse

ROLES = ["text", "sep", "answer", "end"]
words = st.sampled_from(["Anna", "Ann", "Oslo", "Paris, France", "train:", "is a", "(day)", "=", "person", "Dr. Lee", "Ærø", "日本", "none", "Q:", "A:",
                         "It is", "\"so\"", "don't", "?", "*", "-", "it,", "*", "="]) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
lines = st.lists(words, min_size=1, max_size=6).map(lambda some: " ".join(" ".join(some).split())).filter(lambda s: s and not BREAKS.search(s) and s == s.strip())


@st.composite
def entities(draw):
    """A sentence and an entity in it that a record may hold."""
    text = draw(lines)
    sentence = " ".join([draw(lines), text, draw(lines)])
    entity = {"text": text, "type": draw(st.sampled_from(TYPES)), "about": draw(lines)}
    assume(annotations.entity_problem(entity, sentence) is None)
    return sentence, entity


@st.composite
def questions(draw):
    item = {"kind": draw(st.sampled_from(KINDS)), "question": draw(lines).replace("?", "") + "?", "answer": draw(lines)}
    assume(item["question"] == item["question"].strip() and annotations.question_problem(item, "") is None)
    return item


@settings(max_examples=300, deadline=None)
@given(entities(), st.integers(0, len(ENTITY_FORMS) - 1))
def test_an_entity_comes_back_from_every_form(found, form):
    _, entity = found
    line = annotations.entity_line(entity["text"], entity["type"], entity["about"], form)
    assert "\n" not in line and annotations.parse_entity(line) == annotations.parse_entity(f"  {line} ") == entity
    assert annotations.parse_entities(f" {line}\n") == [entity]


@settings(max_examples=300, deadline=None)
@given(questions(), st.integers(1, ALL_FORMS), st.integers())
def test_a_question_comes_back_from_every_form(item, forms, seed):
    texts = annotations.question_texts(item["question"], forms, random.Random(seed))
    rendered = "".join(texts) + f" {item['answer']}\n"
    assert annotations.parse_questions(rendered) == [{"question": item["question"], "answer": item["answer"]}]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.tuples(entities(), questions()), min_size=1, max_size=2), max_size=2), st.integers(0, 5), st.data())
def test_records_come_back_from_their_file(drawn, gap, data):
    paragraphs = [[{"paragraph": p * (1 + gap), "sentence": k, "text": sentence, "entities": [entity], "questions": [item]}
                   for k, ((sentence, entity), item) in enumerate(some)] for p, some in enumerate(drawn)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        annotations.write_annotations(path, paragraphs)
        assert annotations.read_annotations(path) == paragraphs
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))                # torn anywhere: whole lines stay, the last one is dropped
        path.write_bytes(whole[:cut])
        kept = [record for some in annotations.read_annotations(path) for record in some]
        n = len(kept)
        assert kept == [record for some in paragraphs for record in some][:n] and n in (whole[:cut].count(b"\n"), whole[:cut].count(b"\n") + 1)


anything = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | lines | st.text(max_size=20),
                        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8)
items = st.dictionaries(st.sampled_from(["text", "type", "about", "kind", "question", "answer", "more"]),
                        lines | st.sampled_from([*TYPES, *KINDS, "Yes", "No", "Who left?", "Anna"]) | anything, max_size=7)
chatter = st.sampled_from(["", "Here you are: ", "```json\n", "\n```", "</think>", "<think>", "{", "}", "{}", "[", '{"entities": []}', "Sentence: "]) | \
    st.text(max_size=20)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(["ner", "qra"]), lines, st.lists(items, max_size=4), chatter, chatter, st.data())
def test_what_is_believed_of_any_reply_stands_in_the_sentence(behaviour, sentence, listed, before, after, data):
    """And goes through a record: it is what check_record takes, each once, and the rest is counted."""
    spans = sentence.split()
    for item in listed:                          # some of them as they should be
        if data.draw(st.booleans()):
            span = data.draw(st.sampled_from(spans))
            item.update({"text": span, "type": "person", "about": "x", "kind": "content", "question": "Who?", "answer": span})
    reply = before + json.dumps({"entities": listed, "questions": listed}, allow_nan=True) + after
    found, dropped, why = parse(behaviour, sentence, reply)
    assert why is None or (isinstance(why, str) and not found)
    assert why is not None or dropped.total() + len(found) == len(listed) or before + after
    for item in found:
        assert all(isinstance(value, str) and 0 < len(value) <= MAX_TEXT and not BREAKS.search(value) for value in item.values())
        span = item["text"] if behaviour == "ner" else item["answer"]
        free = behaviour == "qra" and (item["kind"] != "content" or span in ("Yes", "No"))
        assert free or span in sentence
        if not free and re.fullmatch("[A-Za-z]+", span):         # a whole word, where words are told by spaces
            assert re.search(rf"(?<![A-Za-z]){span}(?![A-Za-z])", sentence)
    record = {"paragraph": 0, "sentence": 0, "text": sentence, "entities": found if behaviour == "ner" else [],
              "questions": found if behaviour == "qra" else []}
    annotations.check_record(record)


@st.composite
def caches(draw):
    """(n_vocab, k_cap, documents) of any shapes: empty documents, tokens given and drawn, sets of one and of k_cap."""
    n_vocab, k_cap = draw(st.sampled_from([1, 2, 300, 65_536, 65_537, 152_064])), draw(st.sampled_from([1, 3, 255, 256]))
    rng, documents = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), []
    for length in draw(st.lists(st.integers(0, 8), max_size=6)):
        sets = []
        for _ in range(length):
            K = int(rng.integers(0, min(k_cap, n_vocab) + 1))
            if K:
                ids = rng.permutation(n_vocab)[:K] if n_vocab < 1000 else np.unique(rng.integers(0, n_vocab, K))
                sets.append((ids, np.log(np.sort(rng.dirichlet(np.ones(len(ids))))[::-1].clip(1e-30))))
            else:
                sets.append(None)
        documents.append((rng.integers(0, n_vocab, length).tolist(), rng.integers(0, 4, length).tolist(), sets))
    return n_vocab, k_cap, documents


@settings(max_examples=150, deadline=None)
@given(caches(), st.floats(0.01, 1.0))
def test_a_cache_gives_back_what_was_written(made, p):
    n_vocab, k_cap, documents = made
    with tempfile.TemporaryDirectory() as folder:
        writer = CacheWriter(folder, n_vocab=n_vocab, tokenizer_hash="abc", p=1.0, k_cap=k_cap, temperature=1.0, teacher={}, made_by="", roles=ROLES)
        for document in documents:
            writer.add(*document)
        header, cache = writer.close(), Cache(folder, n_vocab=n_vocab, tokenizer_hash="abc")
        assert len(cache) == header["documents"] == len(documents) and header["tokens"] == sum(len(tokens) for tokens, *_ in documents)
        for d, (tokens, roles, sets) in enumerate(documents):
            got = cache.document(d)
            assert got[0].tolist() == tokens and got[1].tolist() == roles and got[2].tolist() == [0 if s is None else len(s[0]) for s in sets]
            assert got[3].tolist() == [int(i) for s in sets if s for i in s[0]]
            assert got[4].tolist() == [x for s in sets if s for x in round_down_to_half(s[1]).tolist()]
        chosen = [d for d, (tokens, *_) in enumerate(documents) if tokens]
        if chosen:
            batch = cache.batch(chosen)
            kept = reads.narrow(batch["log_probs"], batch["mask"], p)
            assert not (kept & ~batch["mask"]).any() and (kept.any(-1) == batch["mask"].any(-1)).all()
            assert (kept[..., 1:] <= kept[..., :-1]).all()        # a prefix of each set
            assert (batch["real"].sum(-1).numpy() == cache.lengths[chosen]).all()


@settings(max_examples=150, deadline=None)
@given(caches(), st.integers(0, 6), st.integers(0, 6))
def test_a_cache_that_was_cut_off_is_the_one_that_was_not(made, stop, more):
    """Killed behind a checkpoint and `more` documents: the next writer goes on, and every byte is the same."""
    n_vocab, k_cap, documents = made
    fields = dict(n_vocab=n_vocab, tokenizer_hash="abc", p=1.0, k_cap=k_cap, temperature=1.0, teacher={}, made_by="", roles=ROLES)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        writer = CacheWriter(one, **fields)
        for document in documents:
            writer.add(*document)
        writer.close()
        writer, stop = CacheWriter(two, **fields), min(stop, len(documents))
        for document in documents[:stop]:
            writer.add(*document)
        writer.checkpoint(stop)
        for document in documents[stop:stop + more]:
            writer.add(*document)
        for file in writer.files.values():
            file.close()
        writer = CacheWriter(two, **fields)
        assert writer.done == stop
        for document in documents[stop:]:
            writer.add(*document)
        writer.close()
        assert {p.name: p.read_bytes() for p in Path(one).iterdir()} == {p.name: p.read_bytes() for p in Path(two).iterdir()}
