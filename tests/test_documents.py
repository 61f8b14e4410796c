"""What the built-in corpus becomes before it is rows: the layouts of its documents."""
import random
import re

import pytest

import brd
from data import annotations, corpus, world

PARAGRAPHS = list(world.annotated(400, seed=3))


def text_of(document):
    return "".join(text or " | " for text, _ in document)


@pytest.mark.parametrize("copy", ["ner", "qra"])
def test_another_layout_keeps_every_sentence_question_and_answer(copy):
    """In order, and with its role; of the separators none is left."""
    rng = random.Random(0)
    for paragraph in PARAGRAPHS[-200:]:
        (document,) = brd.documents(paragraph, copy, rng)
        varied = corpus.vary_layout(document, rng)
        assert brd.SEP not in varied and varied[-1] == brd.END and all(text for text, _ in varied[:-1])
        sentences = [record["text"] for record in paragraph]
        assert [text.strip() for text, role in varied if role == "text" and text.strip() in sentences] == sentences
        if copy == "qra":
            kept = [(text.strip(), role) for text, role in document if role == "answer" or text.endswith("?")]
            assert [(text.strip(), role) for text, role in varied if role == "answer" or text.endswith("?")] == kept
        elif any(role == "answer" for _, role in varied):               # reworded: each entity, then its type
            entities = [entity for record in paragraph for entity in record["entities"]]
            assert [text.strip() for text, role in varied if role == "answer"] == [e["type"] for e in entities]
            named = [text.strip() for text, role in varied if role == "entity"]
            assert [text for text in named if text in {e["text"] for e in entities}] == [e["text"] for e in entities]


def test_layouts_differ_from_document_to_document():
    rng = random.Random(1)
    (document,) = brd.documents(PARAGRAPHS[-1], "qra", rng)
    varied = {text_of(corpus.vary_layout(document, rng)) for _ in range(200)}
    assert len(varied) > 120 and sum("\n\n" in text for text in varied) > 40


def test_words_out_of_the_air_hold_no_answer():
    rng = random.Random(2)
    phrases = [corpus.phrase(rng) for _ in range(6000)]
    answers = {word for paragraph in PARAGRAPHS for record in paragraph for item in record["questions"]
               for word in item["answer"].split()} | {entity["type"] for p in PARAGRAPHS for r in p for entity in r["entities"]}
    assert not answers & {word for text in phrases for word in re.findall(r"\w+", text)}
    assert 0.3 < phrases.count("") / len(phrases) < 0.37


def test_only_the_last_level_has_other_layouts():
    documents = list(corpus.reading_documents(PARAGRAPHS, "qra", seed=1))
    last = round(world.LEVELS[-2].until * len(documents)) + 1
    other = [brd.SEP not in document for document in documents]
    assert not any(other[:last]) and 0.25 < sum(other[last:]) / len(other[last:]) < 0.55


def test_people_who_do_alike_as_often_as_the_level_says():
    share = {}
    for alike in (0.0, 1.0):
        rng, at = random.Random(4), world.Level(sentences=(2, 2), people=2, alike=alike)
        pairs = [world.draw_paragraph(rng, at, asides=0).facts for _ in range(300)]
        share[alike] = sum(a.kind == b.kind for a, b in pairs) / 300
    assert share[0.0] < 0.3 and share[1.0] == 1.0


# --- a text that a teacher has annotated -----------------------------------------------------------------------------------

def test_every_third_paragraph_is_held_out(tmp_path):
    training, held_out = corpus.annotated_text("primer")
    whole = annotations.read_annotations(corpus.PRIMER)
    assert held_out == whole[2::3] and training == [p for i, p in enumerate(whole) if i % 3 < 2]
    path = tmp_path / "two.jsonl"
    annotations.write_annotations(path, whole[:2])
    with pytest.raises(ValueError, match="2 paragraphs, of which every third is held out"):
        corpus.annotated_text(str(path))


def test_sources_hold_the_training_part_alone():
    tokenizer = corpus.course_tokenizer("primer", 2048)
    assert tokenizer.n_vocab == 2048 and corpus.course_tokenizer("world", 1024).hash != tokenizer.hash
    training, held_out = corpus.annotated_text("primer")
    plain, ner, qra = corpus.text_sources("primer", tokenizer, 384, 1)
    pieces = sum(-(-len(paragraph) // corpus.PIECE) for paragraph in training)
    assert len(plain) == pieces and 3.9 * pieces < len(ner) <= 4 * pieces and 3.9 * pieces < len(qra) <= 4 * pieces
    texts = ["".join(tokenizer.decode(rows.document(d)[0].tolist()) for d in range(len(rows))) for rows in (plain, ner, qra)]
    for paragraph in training:
        assert paragraph[0]["text"] in texts[0]
    for paragraph in held_out:
        assert not any(record["text"] in text for record in paragraph for text in texts)
