"""The primer: where its answers stand, what its card counts, and that nothing of the tests is in it."""
import json
import re
from collections import Counter

from adapters.sentences import sentences
from data import world
from data.annotations import TYPES, read_annotations
from data.documents import PRIMER, reading_documents
from experiments.blind_tasks import WRAPPERS

PARAGRAPHS = read_annotations(PRIMER)
RECORDS = [record for paragraph in PARAGRAPHS for record in paragraph]
QUESTIONS = [question for record in RECORDS for question in record["questions"]]


def occurs(part, text):
    """Word for word, and not inside a longer word."""
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None


def words(text):
    """Lower case, without punctuation, between spaces."""
    return f" {' '.join(re.findall('[a-z0-9|]+', text.lower()))} "


def test_paragraphs_are_in_order_and_cut_where_a_free_reader_cuts_them():
    assert [paragraph[0]["paragraph"] for paragraph in PARAGRAPHS] == list(range(96))
    assert all(3 <= len(paragraph) <= 5 for paragraph in PARAGRAPHS)
    for paragraph in PARAGRAPHS:
        texts = [record["text"] for record in paragraph]
        assert [sentence.strip() for sentence in sentences(" ".join(texts))] == texts
    for texts in ([record["text"] for record in RECORDS], [question["question"] for question in QUESTIONS]):
        assert len({text.lower() for text in texts}) == len(texts)


def test_entities_are_words_of_their_sentence_in_order_with_one_type_everywhere():
    types = dict(pairs := {(e["text"], e["type"]) for record in RECORDS for e in record["entities"]})
    assert set(types.values()) == set(TYPES) and len(pairs) == len(types)
    for record in RECORDS:
        spans = [entity["text"] for entity in record["entities"]]
        assert len(spans) == len(set(spans)) <= 4 and spans == sorted(spans, key=record["text"].find), record
        assert all(occurs(span, record["text"]) for span in spans), record
        for name in types:                              # names are annotated wherever they stand
            if name[0].isupper() and occurs(name, record["text"]):
                assert any(occurs(name, span) for span in spans), (name, record["text"])


def test_every_answer_can_be_found():
    """Content: in the sentence. Structure: in the paragraph so far, or a choice that the question offers.
    Attitude: in the sentence, or such a choice."""
    for paragraph in PARAGRAPHS:
        told = ""
        for record in paragraph:
            told += record["text"] + " "
            assert 2 <= len(record["questions"]) <= 5, record["text"]
            for item in record["questions"]:
                place = told if item["kind"] == "structure" else record["text"]
                place += "" if item["kind"] == "content" else "\n" + item["question"]
                assert item["answer"] in ("Yes", "No") or occurs(item["answer"], place), item


def test_yes_and_no_are_balanced():
    held_out = [question for record in RECORDS if record["paragraph"] % 3 == 2 for question in record["questions"]]
    of_kind = [[item for item in QUESTIONS if item["kind"] == kind] for kind in ("content", "attitude")]
    for some in (QUESTIONS, held_out, *of_kind):
        counts = Counter(item["answer"] for item in some)
        assert 0.4 < counts["Yes"] / (counts["Yes"] + counts["No"]) < 0.6 and counts["Yes"] > 20, counts


def test_nothing_that_the_tests_hold_out():
    """No person of the world, so no held-out pair; no reserved word; no sentiment label as an answer; no
    stretch of a wrapper of the blind tasks (a failure names its task only, because wrappers stay unseen)."""
    kept_away, everything = sum(world.RESERVED.values(), world.WORDS["person"]), json.dumps(RECORDS, ensure_ascii=False)
    assert [word for word in kept_away if occurs(word, everything)] == []
    assert not set().union(*world.MOODS.values()) & {item["answer"] for item in QUESTIONS}
    text = words("".join(piece or " | " for behaviour in ("ori", "ner", "qra")
                         for document in reading_documents(PARAGRAPHS, behaviour, 0) for piece, _ in document))
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
            answer = item["answer"] if item["answer"] in ("Yes", "No") else "in words"
            names += ["questions", item["kind"], f"answer {answer}"]
        counts[record["paragraph"] % 3 == 2].update(names)
    found = {name: (n + counts[True][name], n, counts[True][name]) for name, n in counts[False].items()}
    rows = re.findall(r"^\| (\w[\w ]*) \| (\d+) \| (\d+) \| (\d+) \|$", card, re.M)
    assert {name: tuple(map(int, numbers)) for name, *numbers in rows} == found
