"""The primer: where its answers stand, what its card counts, and that nothing of the tests is in it."""
import json
import re
from collections import Counter

from adapters.sentences import sentences
from data import world
from data.annotated import PRIMER, read_annotations
from data.annotations import TYPES
from data.documents import reading_documents
from experiments.blind_tasks import WRAPPERS

PARAGRAPHS = read_annotations(PRIMER)
RECORDS = [record for paragraph in PARAGRAPHS for record in paragraph]
QUESTIONS = [(record, item) for record in RECORDS for item in record["questions"]]


def occurs(part, text):
    """Word for word, and not inside a longer word."""
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None


def test_paragraphs_are_in_order_and_cut_where_a_free_reader_cuts_them():
    assert [paragraph[0]["paragraph"] for paragraph in PARAGRAPHS] == list(range(96))
    for paragraph in PARAGRAPHS:
        texts = [record["text"] for record in paragraph]
        assert [sentence.strip() for sentence in sentences(" ".join(texts))] == texts and 3 <= len(texts) <= 5
    for texts in ([record["text"] for record in RECORDS], [item["question"] for _, item in QUESTIONS]):
        assert len({text.lower() for text in texts}) == len(texts)      # nothing comes twice


def test_entities_are_words_of_their_sentence_in_order_with_one_type_everywhere():
    pairs = {(entity["text"], entity["type"]) for record in RECORDS for entity in record["entities"]}
    names = {text for text, _ in pairs if text[0].isupper()}
    assert {kind for _, kind in pairs} == set(TYPES) and len(pairs) == len({text for text, _ in pairs})
    for record in RECORDS:
        spans = [entity["text"] for entity in record["entities"]]
        assert len(spans) == len(set(spans)) <= 4 and spans == sorted(spans, key=record["text"].find), record
        assert all(occurs(span, record["text"]) for span in spans), record
        for name in names:                                              # annotated wherever they stand
            assert not occurs(name, record["text"]) or any(occurs(name, span) for span in spans), record


def test_every_answer_can_be_found():
    """Content: in the sentence. Structure: in the paragraph so far, or a choice that the question offers.
    Attitude: in the sentence, or such a choice."""
    assert all(2 <= len(record["questions"]) <= 5 for record in RECORDS)
    for record, item in QUESTIONS:
        place = record["text"] if item["kind"] == "content" else f"{record['text']}\n{item['question']}"
        if item["kind"] == "structure":
            place += "\n".join(r["text"] for r in PARAGRAPHS[record["paragraph"]][:record["sentence"]])
        assert item["answer"] in ("Yes", "No") or occurs(item["answer"], place), item


def test_yes_and_no_are_balanced():
    held_out = [q for q in QUESTIONS if q[0]["paragraph"] % 3 == 2]
    content, attitude = ([q for q in QUESTIONS if q[1]["kind"] == kind] for kind in ("content", "attitude"))
    for some in (QUESTIONS, held_out, content, attitude):
        counts = Counter(item["answer"] for _, item in some)
        assert 0.4 < counts["Yes"] / (counts["Yes"] + counts["No"]) < 0.6 and counts["Yes"] > 20, counts


def test_nothing_that_the_tests_hold_out():
    """No person of the world, so no held-out pair; no reserved word; no sentiment label as an answer; no
    stretch of a wrapper of the blind tasks (a failure names its task only, because wrappers stay unseen)."""
    everything, answers = json.dumps(RECORDS, ensure_ascii=False), {item["answer"] for _, item in QUESTIONS}
    kept_away = sum(world.RESERVED.values(), world.WORDS["person"])
    assert not [word for word in kept_away if occurs(word, everything)]
    assert not answers & set().union(*world.MOODS.values())
    text = " ".join(piece or "|" for behaviour in ("ori", "ner", "qra")
                    for pieces in reading_documents(PARAGRAPHS, behaviour, 0) for piece, _ in pieces)
    text = " ".join(re.findall("[a-z0-9|]+", text.lower()))
    for name, wrappers in WRAPPERS.items():
        parts = [re.findall("[a-z0-9]+", part) for w in wrappers for part in re.split(r"\{\w+\}", w.lower())]
        assert not any(len(part) >= 2 and occurs(" ".join(part), text) for part in parts), name


def test_the_card_counts_what_is_there():
    card, counts = (PRIMER.parent / "README.md").read_text(encoding="utf-8"), {}
    for record in RECORDS:
        names = ["sentences"] if record["sentence"] else ["sentences", "paragraphs"]
        for entity in record["entities"]:
            names += ["entities", entity["type"]]
        for item in record["questions"]:
            answer = item["answer"] if item["answer"] in ("Yes", "No") else "in words"
            names += ["questions", item["kind"], f"answer {answer}"]
        for name in names:                                              # (all, training, held out)
            held_out = record["paragraph"] % 3 == 2
            n, training, test = counts.get(name, (0, 0, 0))
            counts[name] = n + 1, training + (not held_out), test + held_out
    rows = re.findall(r"^\| (\w[\w ]*) \| (\d+) \| (\d+) \| (\d+) \|$", card, re.M)
    assert {name: tuple(map(int, numbers)) for name, *numbers in rows} == counts
