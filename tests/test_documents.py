"""Annotated paragraphs as documents: rendering, other layouts, tokens with roles, an annotated corpus."""
import json
import random
import re
from itertools import product

import pytest

import train
from data import annotated, annotations, documents, world
from data.annotations import ALL_FORMS, BRIDGES, OPENERS, lines_of, parse_entities, parse_question
from data.batches import plan_batches
from data.documents import END, ROLES, SEP, encode_documents, render, render_reading
from data.tokenizer import train_bpe
from test_annotations import PARAGRAPH

WORLD = list(world.annotated(400, seed=3))


def test_plain_rendering_is_the_format_of_the_docstring():
    plain, rng = [PARAGRAPH[0], PARAGRAPH[2]], random.Random(0)
    first, last = ("Anna took a train to Oslo.", "text"), (" So it goes.", "text")
    assert render(plain, "ori", rng) == [first, last, END]
    assert render(plain, "ner", rng, forms=1) == [
        first, SEP, (" Anna: person, traveller\n", "entity"), (" Oslo: place, goal, far away\n", "entity"),
        SEP, last, SEP, (" none\n", "entity"), SEP, END]
    assert render(plain, "qra", rng, forms=1) == [
        first, SEP, (" Where did Anna go?", "question"), (" Oslo\n", "answer"),
        (" Did Anna stay?", "question"), (" No\n", "answer"), SEP, last, SEP, SEP, END]
    with pytest.raises(ValueError, match="behaviour 'nre'"):
        render(plain, "nre", rng)


def test_parsing_inverts_rendering_over_all_draws():
    rng, seen = random.Random(1), {forms: set() for forms in (1, 2, 5, ALL_FORMS)}
    for forms, record, _ in product(seen, PARAGRAPH, range(200)):
        ner, qra = (render_reading(record, behaviour, rng, forms) for behaviour in ("ner", "qra"))
        seen[forms] |= {text.strip() for text, _ in qra}
        assert parse_entities("".join(text for text, _ in ner)) == record["entities"]
        found = map(parse_question, lines_of("".join(text for text, _ in qra)))
        assert [{"kind": q["kind"], **own} for q, own in zip(record["questions"], found, strict=True)] \
            == record["questions"]
    assert seen[ALL_FORMS] >= set(OPENERS[1:] + BRIDGES[1:]) and not seen[1] & set(OPENERS + BRIDGES)
    assert seen[2] & set(OPENERS) == {"Q:"}


def test_a_joined_reading_stands_behind_the_last_sentence():
    """Nothing is lost but the mood of earlier sentences; the questions come in any order."""
    rng, orders, n = random.Random(0), set(), len(PARAGRAPH)
    asked = [(q["question"], q["answer"]) for record in PARAGRAPH for q in record["questions"]
             if record is PARAGRAPH[-1] or q["kind"] != "attitude"]
    for behaviour in ["ner"] + ["qra"] * 20:
        *pieces, end = render(PARAGRAPH, behaviour, rng, forms=1, join_prob=1.0)
        assert [text.strip() for text, _ in pieces[:n]] == [record["text"] for record in PARAGRAPH]
        assert pieces[n] == pieces[-1] == SEP and end == END
        texts = [text.strip() for text, _ in pieces[n + 1:-1]]
        if behaviour == "ner":
            entities = [entity["text"] for record in PARAGRAPH for entity in record["entities"]]
            assert [text.split(":")[0] for text in texts] == entities
        else:
            pairs = tuple(zip(texts[::2], texts[1::2], strict=True))
            assert sorted(pairs) == sorted(asked)
            orders.add(pairs)
    assert len(orders) > 5
    halves = [render(PARAGRAPH, "ner", rng, join_prob=0.5).count(SEP) for _ in range(50)]
    assert set(halves) == {2 * readings for readings in range(1, n + 1)}


def test_pieces_encode_to_the_tokens_of_the_running_text():
    tokenizer = train_bpe([record["text"] for record in PARAGRAPH] * 20 + ["Q: A: Oslo\n"] * 20, 300)
    rng = random.Random(2)
    rendered = [render(PARAGRAPH, behaviour, rng) for behaviour in ("ori", "ner", "qra") * 30]
    for pieces, (ids, roles) in zip(rendered, encode_documents(rendered, tokenizer)):
        *runs, _ = "".join(text or "\0" for text, _ in pieces).split("\0")
        wanted = [token for run in runs for token in tokenizer.encode(run) + [tokenizer.sep]]
        assert ids == wanted[:-1] + [tokenizer.end] and len(roles) == len(ids)
        answers = tokenizer.decode([i for i, role in zip(ids, roles) if ROLES[role] == "answer"])
        assert answers == "".join(text for text, role in pieces if role == "answer")


@pytest.mark.parametrize("behaviour", ["ner", "qra"])
def test_another_layout_keeps_every_sentence_question_and_answer(behaviour):
    """In order, and with its role; of the separators none is left."""
    rng = random.Random(0)
    for paragraph in WORLD[-200:]:
        document = render(paragraph, behaviour, rng)
        varied = documents.vary_layout(document, rng)
        sentences = [record["text"] for record in paragraph]
        entities = [(e["text"], e["type"]) for record in paragraph for e in record["entities"]]
        stripped = [(text.strip(), role) for text, role in varied]
        assert SEP not in varied and varied[-1] == END and all(text for text, _ in varied[:-1])
        assert [text for text, role in stripped if role == "text" and text in sentences] == sentences
        if behaviour == "qra":
            kept = [(text.strip(), role) for text, role in document if role == "answer" or text.endswith("?")]
            assert [(text, role) for text, role in stripped if role == "answer" or text.endswith("?")] == kept
        elif any(role == "answer" for _, role in varied):               # reworded: each entity, then its type
            assert [text for text, role in stripped if role == "answer"] == [kind for _, kind in entities]
            named = [name for name, _ in entities]
            assert [text for text, role in stripped if role == "entity" and text in named] == named


def test_layouts_differ_and_only_late_documents_have_them():
    rng, document = random.Random(1), render(WORLD[-1], "qra", random.Random(1))
    varied = {"".join(text for text, _ in documents.vary_layout(document, rng)) for _ in range(200)}
    assert len(varied) > 120 and sum("\n\n" in text for text in varied) > 40
    other = [SEP not in document for document in documents.reading_documents(WORLD, "qra", seed=1)]
    last = round(world.LEVELS[-2].until * len(other)) + 1
    assert not any(other[:last]) and 0.25 < sum(other[last:]) / len(other[last:]) < 0.55


def test_random_words_hold_no_answer():
    rng, records = random.Random(2), [record for paragraph in WORLD for record in paragraph]
    phrases = [documents.phrase(rng) for _ in range(6000)]
    answers = {word for record in records for item in record["questions"] for word in item["answer"].split()}
    answers |= {entity["type"] for record in records for entity in record["entities"]}
    assert not answers & {word for text in phrases for word in re.findall(r"\w+", text)}
    assert 0.3 < phrases.count("") / len(phrases) < 0.37


def test_sources_hold_the_training_part_alone(tmp_path):
    """Every third paragraph of an annotated corpus is held out."""
    whole = annotated.read_annotations(annotated.PRIMER)
    training, held_out = annotated.annotated_text("primer")
    assert held_out == whole[2::3] and training == [p for i, p in enumerate(whole) if i % 3 < 2]
    annotations.write_annotations(tmp_path / "two.jsonl", whole[:2])
    with pytest.raises(ValueError, match="2 paragraphs, every third.* held out"):
        annotated.annotated_text(str(tmp_path / "two.jsonl"))
    tokenizer = train_bpe([record["text"] for paragraph in whole for record in paragraph], 1000)
    sources = list(documents.text_sources("primer", tokenizer, 384, 1))
    pieces = sum(-(-len(paragraph) // documents.PIECE) for paragraph in training)
    assert len(sources[0]) == pieces and all(3 * pieces < len(rows) <= 4 * pieces for rows in sources[1:])
    texts = [tokenizer.decode(rows.tokens.tolist()) for rows in sources]
    assert all(paragraph[0]["text"] in texts[0] for paragraph in training)
    assert not any(record["text"] in text for paragraph in held_out for record in paragraph for text in texts)


def test_questions_of_ones_own_teach_no_entities(tmp_path, capsys):
    """A text of them is in no D_NER, whose part of the run the questions take; what is too long is told."""
    corpus, lines = tmp_path / "own.jsonl", [json.dumps({"text": f"Fry {n} onions.", "questions": [
        {"question": "How many?", "answer": str(n)}]}) for n in range(6)]
    corpus.write_text("\n".join(lines), encoding="utf-8")
    config = train.Config(corpus=str(corpus), student_tokens=2000, n_vocab=400, corpus_share=0.5)
    tokenizer, words = documents.course_tokenizer(config.corpus, 400), "word " * 400
    paragraphs = documents.world_paragraphs(2000, config, 0)
    for listed, shares in ((0, [0.05, 0, 0.45]), (8, [0.05, 0.05, 0.4])):
        mix = documents.data_mix("brd", config, tokenizer, paragraphs)
        assert [len(rows) for rows in mix.sources[3:]] == [4, listed, 16]
        assert mix.shares[3:] == pytest.approx(shares) and sum(mix.shares) == pytest.approx(1)
        assert plan_batches(mix, 2000, 512, 0)
        assert len(documents.data_mix("plain", config, tokenizer, paragraphs).sources) == 2
        lines[:2] = [json.dumps({**json.loads(line), "entities": []}) for line in lines[:2]]
        corpus.write_text("\n".join(lines), encoding="utf-8")
        annotated.annotated_text.cache_clear()
    assert capsys.readouterr().out == ""
    corpus.write_text("\n".join([*lines, json.dumps({"text": words.strip(), "questions": []})]), encoding="utf-8")
    annotated.annotated_text.cache_clear()
    list(documents.text_sources(config.corpus, tokenizer, 64, 0))
    said = "left out: 4 of 20 qra readings, longer than --block_size=64\n"
    assert capsys.readouterr().out == f"{corpus}: {said}"
    annotated.annotated_text.cache_clear()
