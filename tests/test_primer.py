"""The primer: where its answers stand, what its card counts, and that nothing of the tests is in it."""
import json
import re
from collections import Counter

import pytest

from adapters.sentences import sentences
from data import world
from data.annotations import KINDS, TYPES, read_annotations
from data.documents import PRIMER, reading_documents
from experiments.blind_tasks import WRAPPERS

PARAGRAPHS = read_annotations(PRIMER)
RECORDS = [record for paragraph in PARAGRAPHS for record in paragraph]
QUESTIONS = [question for record in RECORDS for question in record["questions"]]
ENTITIES = [entity for record in RECORDS for entity in record["entities"]]


def occurs(part, text):
    """Word for word, and not inside a longer word."""
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None


def test_paragraphs_are_in_order_and_cut_where_a_free_reader_cuts_them():
    assert [paragraph[0]["paragraph"] for paragraph in PARAGRAPHS] == list(range(96))
    assert all(3 <= len(paragraph) <= 5 for paragraph in PARAGRAPHS)
    for paragraph in PARAGRAPHS:
        texts = [record["text"] for record in paragraph]
        assert [sentence.strip() for sentence in sentences(" ".join(texts))] == texts
    for texts in ([record["text"] for record in RECORDS], [question["question"] for question in QUESTIONS]):
        assert len({text.lower() for text in texts}) == len(texts)


def test_entities_are_words_of_their_sentence_in_order_with_one_type_everywhere():
    types = {entity["text"]: entity["type"] for entity in ENTITIES}
    assert set(types.values()) == set(TYPES) and all(types[e["text"]] == e["type"] for e in ENTITIES)
    for record in RECORDS:
        spans = [entity["text"] for entity in record["entities"]]
        assert len(spans) == len(set(spans)) <= 4 and spans == sorted(spans, key=record["text"].find), record
        assert all(occurs(span, record["text"]) for span in spans), record
        for name in types:                  # names begin with a capital, and are annotated wherever they stand
            if name[0].isupper() and occurs(name, record["text"]):
                assert any(occurs(name, span) for span in spans), (name, record["text"])


def test_every_answer_can_be_found():
    """Content: in the sentence. Structure: in the paragraph so far, or a choice that the question offers.
    Attitude: in the sentence, or such a choice."""
    assert {item["kind"] for item in QUESTIONS} == set(KINDS)
    for paragraph in PARAGRAPHS:
        told = ""
        for record in paragraph:
            told += record["text"] + " "
            assert 2 <= len(record["questions"]) <= 5, record["text"]
            for item in record["questions"]:
                places = {"content": [record["text"]], "structure": [told, item["question"]],
                          "attitude": [record["text"], item["question"]]}[item["kind"]]
                assert item["answer"] in ("Yes", "No") or any(occurs(item["answer"], p) for p in places), item


@pytest.mark.parametrize("part", ["all", "held out", "content", "attitude"])
def test_yes_and_no_are_balanced(part):
    some = RECORDS if part != "held out" else [record for record in RECORDS if record["paragraph"] % 3 == 2]
    counts = Counter(item["answer"] for record in some for item in record["questions"]
                     if part in ("all", "held out", item["kind"]) and item["answer"] in ("Yes", "No"))
    assert counts.total() > 50 and 0.4 < counts["Yes"] / counts.total() < 0.6, counts


def test_nothing_that_the_tests_hold_out():
    """No person of the world, so no held-out pair; no reserved word; no sentiment label as an answer; no
    stretch of a wrapper of the blind tasks (a failure names its task only, because wrappers stay unseen)."""
    kept_away = world.WORDS["person"] + [word for words in world.RESERVED.values() for word in words]
    everything = json.dumps(RECORDS, ensure_ascii=False)
    assert [word for word in kept_away if occurs(word, everything)] == []
    assert not {word for words in world.MOODS.values() for word in words} & {item["answer"] for item in QUESTIONS}
    words = lambda text: f" {' '.join(re.findall(r'[^\W_]+', text.lower()))} "                  # noqa: E731
    text = words(" ".join(text or "|" for behaviour in ("ori", "ner", "qra")
                          for pieces in reading_documents(PARAGRAPHS, behaviour, 0) for text, _ in pieces))
    for name, wrappers in WRAPPERS.items():
        parts = {words(part) for wrapper in wrappers for part in re.split(r"\{\w+\}", wrapper)}
        assert not any(len(part.split()) >= 2 and part in text for part in parts), name


def test_the_card_counts_what_is_there():
    card = (PRIMER.parent / "README.md").read_text(encoding="utf-8")
    counts = {True: Counter(), False: Counter()}                        # held out, training
    for record in RECORDS:
        names = ["sentences"] + ["paragraphs"] * (record["sentence"] == 0)
        for entity in record["entities"]:
            names += ["entities", entity["type"]]
        for item in record["questions"]:
            names += ["questions", item["kind"], f"answer {item['answer'] if item['answer'] in ('Yes', 'No') else 'in words'}"]
        counts[record["paragraph"] % 3 == 2].update(names)
    found = {name: (n + counts[True][name], n, counts[True][name]) for name, n in counts[False].items()}
    rows = re.findall(r"^\| (\w[\w ]*) \| (\d+) \| (\d+) \| (\d+) \|$", card, re.M)
    assert {name: tuple(map(int, numbers)) for name, *numbers in rows} == found
