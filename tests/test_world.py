"""The built-in world: its annotations are exact, its test split is kept apart, and its surface varies."""
import hashlib
import json
import random
import re
from collections import Counter

import pytest

from data import world
from data.annotated import check_record
from data.annotations import TYPES

VALUES = {value for type_, words in world.WORDS.items() if type_ not in ("person", "day") for value in words}
RESERVED = {word for words in world.RESERVED.values() for word in words}
TRAIN_LEVELS, TEST_LEVELS = [*world.LEVELS, world.FULL], [world.SINGLE, world.FULL]
both_splits = pytest.mark.parametrize("split", ["train", "test"])


@pytest.fixture(scope="module")
def drawn():
    """{split: list of (Paragraph, its records)}, the training split over all levels."""
    rng, both = random.Random(5), {}
    for split, levels in (("train", TRAIN_LEVELS), ("test", TEST_LEVELS)):
        levels = [at for at in levels for _ in range(1200 // len(levels))]
        paragraphs = [world.draw_paragraph(rng, at, split) for at in levels]
        both[split] = [(p, world.annotate(rng, p, 0, at)) for p, at in zip(paragraphs, levels)]
    return both


def words_in(text, words):
    """The members of `words` that stand in the text as whole words."""
    return {word for word in words if word in text and re.search(rf"\b{word}\b", text)}


def questions_of(pairs):
    return [(paragraph, k, question) for paragraph, records in pairs
            for k, record in enumerate(records) for question in record["questions"]]


def asked_pairs(question):
    """The (person, argument) pairs of which a question speaks."""
    people, values = (words_in(question["question"], words) for words in (world.WORDS["person"], VALUES))
    return [(person, value) for person in people for value in values]


def test_the_random_streams_are_those_of_the_shipped_cache():
    """data/teacher is bound to a tokenizer, and that to the first texts of these streams."""
    texts = [list(world.annotated(500, "tokenizer")), list(world.plain(500, "tokenizer"))]
    assert hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16] == "52ff730f07f199e6"
    assert list(world.plain(100, 7)) == list(world.plain(100, 7)) != list(world.plain(100, 8))


def test_only_random_is_drawn_from():
    """The stream of Random.random() is the same in every Python, those of choice() and shuffle() are not."""
    class OnlyRandom:
        random = random.Random(1).random

    for at in TRAIN_LEVELS * 20:
        for split in ("train", "test"):
            world.annotate(OnlyRandom, world.draw_paragraph(OnlyRandom, at, split), 0, at)
        world.draw_paragraph(OnlyRandom, at, reserved=True)


@both_splits
def test_records_are_valid_and_entities_are_all_the_names_of_a_sentence(drawn, split):
    """The names are found by reading the sentence word for word, without the facts behind it."""
    types = {word: type_ for type_, words in world.WORDS.items() for word in words}
    names = re.compile(rf"\b(?:{'|'.join(sorted(types, key=len, reverse=True))})\b")
    for paragraph, records in drawn[split]:
        assert [record["text"] for record in records] == paragraph.sentences
        for fact, record in zip(paragraph.facts, records):
            check_record(record)
            found = [(word, types[word]) for word in names.findall(record["text"])]
            assert [(e["text"], e["type"]) for e in record["entities"]] == found
            assert bool(found) == (fact.kind in world.KINDS)


@both_splits
def test_answers_are_what_the_reader_knows_and_can_be_found_by_reading(drawn, split):
    """wh answers stand in the text told so far; what is true was told of some person and some argument."""
    for paragraph, k, question in questions_of(drawn[split][::6]):
        told, answer = " ".join(paragraph.sentences[:k + 1]), question["answer"]
        assert world.all_answers(paragraph, k)[question["question"]] == answer
        if question["kind"] == "attitude":
            assert answer in ("good", "bad", "neutral")
        elif answer == "Yes":
            (pair,) = asked_pairs(question)
            assert words_in(told, pair) == set(pair), question
        else:
            assert answer == "No" or words_in(told, [answer]), question


@both_splits
def test_held_out_pairs_are_told_and_asked_about_in_the_test_split_only(drawn, split):
    """True and false claims alike: were wrong answers of the other part, an unseen pair would reveal them."""
    told = {world.held_out(f.person, f.value) for p, _ in drawn[split] for f in p.facts if f.person}
    asked = {answer: set() for answer in ("Yes", "No")}
    for _, _, question in questions_of(drawn[split]):
        if question["answer"] in asked:
            asked[question["answer"]] |= {world.held_out(*pair) for pair in asked_pairs(question)}
    assert told == asked["Yes"] == asked["No"] == {split == "test"}


def test_a_quarter_of_all_pairs_is_held_out_for_every_person_and_type():
    every = [world.held_out(person, value) for person in world.WORDS["person"] for value in VALUES]
    assert 0.22 < sum(every) / len(every) < 0.28
    for person in world.WORDS["person"]:
        for kind in world.KINDS.values():
            train, test = (world.values_for(person, kind.type, split) for split in ("train", "test"))
            assert train and test and sorted(train + test) == sorted(world.WORDS[kind.type])


def test_reserved_words_are_told_in_plain_text_and_never_annotated():
    told = [" ".join(sentences) for sentences in world.plain(3000, 1)]
    assert 0.08 < sum(bool(words_in(text, RESERVED)) for text in told) / len(told) < 0.16
    assert words_in(" ".join(told), RESERVED) == RESERVED
    annotated = [record for records in world.annotated(2000, 1) for record in records]
    assert not words_in(json.dumps(annotated), RESERVED)
    tables = [*world.WORDS.values(), *world.RESERVED.values()]
    assert set(Counter(word for words in tables for word in words).values()) == {1}     # one type for a word


def test_plain_text_holds_the_words_of_answers_and_types():
    """A student of plain text alone must have met them, or it would fail a blind task for want of words."""
    met = set(re.findall(r"\w+", " ".join(s for sentences in world.plain(4000, 2) for s in sentences)))
    wanted = {word for records in world.annotated(2000, 2) for record in records
              for text in [q["answer"] for q in record["questions"]] + [e["text"] for e in record["entities"]]
              for word in text.split()}
    assert wanted - met <= {"neutral"}                             # no task asks for it
    assert {*TYPES, "Yes", "No", "good", "bad", "none", "question", "answer", "text", "true", "say"} <= met


@pytest.mark.parametrize("split, levels", [("train", TRAIN_LEVELS), ("test", TEST_LEVELS)])
def test_yes_and_no_are_balanced_at_every_level_and_for_every_type_of_argument(split, levels):
    """A reader must not be able to guess the answer without the text."""
    rng, types = random.Random(3), {kind.type: Counter() for kind in world.KINDS.values()}
    for at in levels:
        paragraphs, answers = [world.draw_paragraph(rng, at, split) for _ in range(1500)], Counter()
        for _, _, question in questions_of((p, world.annotate(rng, p, 0, at)) for p in paragraphs):
            if question["answer"] in ("Yes", "No"):
                answers[question["answer"]] += 1
                for type_, counted in types.items():
                    counted[question["answer"]] += bool(words_in(question["question"], world.WORDS[type_]))
        assert 0.46 < answers["Yes"] / answers.total() < 0.56, at
    for type_, counted in types.items():
        assert counted.total() > 300 and 0.42 < counted["Yes"] / counted.total() < 0.6, type_


def test_questions_and_sentences_come_in_many_forms(drawn):
    """With a single form nothing transfers to a blind task. Names and arguments are not counted."""
    names = sorted((word for words in world.WORDS.values() for word in words), key=len, reverse=True)
    blanks = re.compile(rf"\b(?:{'|'.join(names)})\b")
    forms = Counter(blanks.sub("_", question["question"]) for _, _, question in questions_of(drawn["train"]))
    sentences = Counter(blanks.sub("_", text) for p, _ in drawn["train"] for text in p.sentences)
    assert len(forms) > 300 and max(forms.values()) < 0.05 * forms.total()
    assert len(sentences) > 120 and max(sentences.values()) < 0.08 * sentences.total()


@both_splits
def test_a_pronoun_has_one_person_to_mean(drawn, split):
    """At most one person of that gender has been named: two women or two men are called by their names."""
    used = Counter()
    for paragraph, _ in drawn[split]:
        named = []
        for fact in paragraph.facts:
            if fact.pronoun:
                assert [p for p in named if (p in world.FEMALE) == (fact.pronoun == "she")] == [fact.person]
                assert words_in(fact.text.lower(), ["she", "he", fact.person.lower()]) == {fact.pronoun}
                used[fact.pronoun, len(named)] += 1
            elif fact.person and fact.person not in named:
                named.append(fact.person)
    assert min(used[pronoun, n] for pronoun in ("she", "he") for n in (1, 2)) > 10


def test_levels_are_kept(drawn):
    rng = random.Random(1)
    for at in TRAIN_LEVELS:
        paragraphs = [world.draw_paragraph(rng, at) for _ in range(400)]
        assert {len(p.facts) for p in paragraphs} == set(range(at.sentences[0], at.sentences[1] + 1))
        assert {len(p.people) for p in paragraphs} == {at.people}
        facts = [[f for f in p.facts if f.person] for p in paragraphs]
        assert abs(sum(f.denied for some in facts for f in some) / sum(map(len, facts)) - at.denied) < 0.05
        for some in facts:                      # both people are named, and no fact or argument comes twice
            assert len({f.person for f in some}) >= min(at.people, len(some))
            assert len({(f.kind, f.person) for f in some}) == len({f.value for f in some}) == len(some)
    assert [world.level(part) for part in (0, 0.25, 0.26, 0.35, 0.5, 0.6, 0.9, 1, 1.2)] == [
        world.LEVELS[i] for i in (0, 0, 1, 1, 2, 3, 4, 4, 4)]


def test_false_claims_are_swapped_or_absent_and_always_false():
    rng, swapped = random.Random(2), Counter()
    for _ in range(800):
        paragraph = world.draw_paragraph(rng, world.FULL, "test")
        for fact in (f for f in paragraph.facts if f.person and not f.denied):
            person, value = world.false_claim(rng, paragraph, fact, 0.5)
            assert (fact.kind, person, value) not in [(f.kind, f.person, f.value) for f in paragraph.facts]
            swapped[any(f.value == value for f in paragraph.facts)] += 1
    assert min(swapped.values()) > 200


def test_the_module_shows_paragraphs_with_their_annotations(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["world.py", "4"])
    world.main()
    shown, rng = capsys.readouterr().out, random.Random("4")
    (record,) = world.annotate(rng, world.draw_paragraph(rng, world.LEVELS[0]), at=world.LEVELS[0])
    assert shown.startswith(record["text"] + "\n") and shown.count("\n\n") == 3
    assert all(f"{question['question']} {question['answer']}\n" in shown for question in record["questions"])
