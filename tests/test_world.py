"""The built-in world: its annotations are exact, its test split is kept apart, and its surface varies."""
import random
import re
from collections import Counter

import pytest

from data import world
from data.annotations import TYPES, check_record

VALUES = {value for type_, words in world.WORDS.items() if type_ not in ("person", "day") for value in words}
ALL_RESERVED = {word for words in world.RESERVED.values() for word in words}
TRAIN_LEVELS, TEST_LEVELS = [*world.LEVELS, world.FULL], [world.SINGLE, world.FULL]


@pytest.fixture(scope="module")
def drawn():
    """{split: list of (Paragraph, its records)}, the training split over all levels."""
    rng, both = random.Random(5), {}
    for split, levels in (("train", TRAIN_LEVELS), ("test", TEST_LEVELS)):
        paragraphs = [(world.draw_paragraph(rng, at, split), at) for at in levels for _ in range(2500 // len(levels))]
        both[split] = [(p, world.annotate(rng, p, i, at)) for i, (p, at) in enumerate(paragraphs)]
    return both


def words_in(text, words):
    """The members of `words` that stand in the text as whole words."""
    return {word for word in words if re.search(rf"\b{word}\b", text)}


def questions_of(pairs):
    return [(paragraph, k, question) for paragraph, records in pairs
            for k, record in enumerate(records) for question in record["questions"]]


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_record_is_valid_and_holds_its_sentence(drawn, split):
    assert len(drawn[split]) > 2400
    for paragraph, records in drawn[split]:
        assert [record["text"] for record in records] == paragraph.sentences
        for record in records:
            check_record(record)                                   # entities occur in the sentence word for word, too


@pytest.mark.parametrize("split", ["train", "test"])
def test_entities_are_all_the_names_of_a_sentence_in_their_order(drawn, split):
    """Found by reading the sentence word for word, without the facts behind it."""
    types = {word: type_ for type_, words in world.WORDS.items() for word in words}
    longest_first = "|".join(sorted(types, key=len, reverse=True))
    for paragraph, records in drawn[split]:
        for fact, record in zip(paragraph.facts, records):
            found = re.findall(rf"\b(?:{longest_first})\b", record["text"])
            if fact.kind in world.KINDS:
                assert [(e["text"], e["type"]) for e in record["entities"]] == [(word, types[word]) for word in found]
            else:
                assert record["entities"] == [] and not found


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_is_what_the_reader_knows(drawn, split):
    asked = 0
    for paragraph, records in drawn[split][::2]:
        for k, record in enumerate(records):
            known = world.all_answers(paragraph, k)
            assert {q["question"]: q["answer"] for q in record["questions"]}.items() <= known.items()
            asked += len(record["questions"])
    assert asked > 3000


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_can_be_found_by_reading(drawn, split):
    """wh answers stand in the text told so far; direct yes/no questions are judged by the sentences alone."""
    for paragraph, k, question in questions_of(drawn[split]):
        told = " ".join(paragraph.sentences[:k + 1])
        if question["kind"] == "attitude":
            assert question["answer"] in ("good", "bad", "neutral")
        elif question["answer"] not in ("Yes", "No"):
            assert words_in(told, [question["answer"]]), question
        elif question["answer"] == "Yes":
            people, values = (words_in(question["question"], words) for words in (world.WORDS["person"], VALUES))
            assert len(people) == len(values) == 1 and words_in(told, people) and words_in(told, values), question


@pytest.mark.parametrize("split", ["train", "test"])
def test_held_out_pairs_are_told_and_asked_about_in_the_test_split_only(drawn, split):
    pairs = [(fact.person, fact.value) for paragraph, _ in drawn[split] for fact in paragraph.facts if fact.person]
    for _, _, question in questions_of(drawn[split]):
        people, values = (words_in(question["question"], words) for words in (world.WORDS["person"], VALUES))
        pairs += [(person, value) for person in people for value in values]
    assert len(pairs) > 5000
    assert {world.held_out(person, value) for person, value in pairs} == {split == "test"}


def test_a_quarter_of_all_pairs_is_held_out_for_every_person_and_type():
    every = [world.held_out(person, value) for person in world.WORDS["person"] for value in sorted(VALUES)]
    assert 0.22 < sum(every) / len(every) < 0.28
    for person in world.WORDS["person"]:
        for type_ in {kind.type for kind in world.KINDS.values()}:
            assert all(len(world.values_for(person, type_, split)) > 0 for split in ("train", "test"))
            assert not set(world.values_for(person, type_, "train")) & set(world.values_for(person, type_, "test"))


def test_words_have_one_type_and_reserved_words_none():
    counted = Counter(word for table in (world.WORDS, world.RESERVED) for words in table.values() for word in words)
    assert set(counted.values()) == {1}
    assert set(world.WORDS) == set(TYPES)


def test_reserved_words_are_told_in_plain_text_and_never_annotated():
    told = list(world.plain(4000, 1))
    speaking = [bool(words_in(" ".join(sentences), ALL_RESERVED)) for sentences in told]
    assert 0.08 < sum(speaking) / len(told) < 0.16
    assert words_in(" ".join(s for sentences in told for s in sentences), ALL_RESERVED) == ALL_RESERVED
    for records in world.annotated(3000, 1):
        for record in records:
            texts = [record["text"]] + [e["text"] for e in record["entities"]]
            texts += [q[name] for q in record["questions"] for name in ("question", "answer")]
            assert not words_in("\n".join(texts), ALL_RESERVED)


@pytest.mark.parametrize("split, levels", [("train", TRAIN_LEVELS), ("test", TEST_LEVELS)])
def test_yes_and_no_are_balanced_at_every_level(split, levels):
    for at in levels:
        rng, answers = random.Random(3), Counter()
        for _ in range(2500):
            paragraph = world.draw_paragraph(rng, at, split)
            answers.update(q["answer"] for record in world.annotate(rng, paragraph, 0, at) for q in record["questions"])
        assert 0.46 < answers["Yes"] / (answers["Yes"] + answers["No"]) < 0.56, at


@pytest.mark.parametrize("kind", [*world.KINDS])
def test_yes_and_no_do_not_depend_on_the_kind_of_fact(drawn, kind):
    """Nor on how a question begins, or a reader could guess the answer without the text."""
    answers = Counter()
    for paragraph, k, question in questions_of(drawn["train"]):
        if question["answer"] in ("Yes", "No"):
            values = words_in(question["question"], VALUES & set(world.WORDS[world.KINDS[kind].type]))
            answers[question["answer"]] += bool(values)
    assert sum(answers.values()) > 300 and 0.42 < answers["Yes"] / sum(answers.values()) < 0.6


def test_true_and_false_claims_take_their_arguments_from_the_same_half(drawn):
    """Were wrong answers drawn from the other half of the pairs, "never seen together" would give them away."""
    for split in ("train", "test"):
        halves = {answer: set() for answer in ("Yes", "No")}
        for _, _, question in questions_of(drawn[split]):
            if question["answer"] in halves:
                people, values = (words_in(question["question"], words) for words in (world.WORDS["person"], VALUES))
                halves[question["answer"]] |= {world.held_out(person, value) for person in people for value in values}
        assert halves["Yes"] == halves["No"] == {split == "test"}


def test_the_same_seed_tells_the_same_and_another_seed_another_world():
    for tell in (world.annotated, world.plain):
        assert list(tell(300, 7)) == list(tell(300, 7)) != list(tell(300, 8))
    assert [[record["text"] for record in records] for records in world.annotated(300, 7)] != list(world.plain(300, 7))


def test_nothing_but_random_is_drawn_from():
    """The stream of Random.random() is the same in every Python, that of choice() and shuffle() is not."""
    class OnlyRandom:
        def __init__(self):
            self.random = random.Random(1).random

    rng = OnlyRandom()
    for at in TRAIN_LEVELS * 20:
        for split in ("train", "test"):
            world.annotate(rng, world.draw_paragraph(rng, at, split), 0, at)
        world.draw_paragraph(rng, at, reserved=True)


def test_questions_and_sentences_come_in_many_forms(drawn):
    """With a single form nothing transfers to a blind task. Names and arguments are taken out before counting."""
    blanks = re.compile("|".join(rf"\b{word}\b" for words in world.WORDS.values() for word in sorted(words, key=len, reverse=True)))
    forms, sentences = Counter(), Counter()
    for paragraph, k, question in questions_of(drawn["train"]):
        forms[blanks.sub("_", question["question"])] += 1
    for paragraph, _ in drawn["train"]:
        sentences.update(blanks.sub("_", text) for text in paragraph.sentences)
    assert len(forms) > 300 and max(forms.values()) < 0.05 * sum(forms.values())
    assert len(sentences) > 120 and max(sentences.values()) < 0.08 * sum(sentences.values())
    for kind in world.KINDS.values():
        assert len(kind.says) >= 3 and len(kind.what) >= 3 and min(map(len, (kind.denies, kind.who, kind.whether))) >= 2


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_pronoun_has_one_person_to_mean(drawn, split):
    """At most one person of that gender has been named: two women or two men are called by their names."""
    used = Counter()
    for paragraph, _ in drawn[split]:
        named = []
        for fact in paragraph.facts:
            if fact.pronoun:
                fitting = [p for p in named if (p in world.FEMALE) == (fact.pronoun == "she")]
                assert fitting == [fact.person]
                assert words_in(fact.text.lower(), ["she", "he"]) == {fact.pronoun} and fact.person not in fact.text
                used[fact.pronoun, len(named)] += 1
            elif fact.person and fact.person not in named:
                named.append(fact.person)
    assert min(used[pronoun, n] for pronoun in ("she", "he") for n in (1, 2)) > 20


def test_two_people_of_one_gender_never_share_pronouns_once_both_are_named(drawn):
    alike = 0
    for paragraph, _ in drawn["train"] + drawn["test"]:
        first, *others = paragraph.people
        if others and (first in world.FEMALE) == (others[0] in world.FEMALE):
            alike += 1
            texts = paragraph.sentences
            both = next((k for k in range(len(texts)) if len(words_in(" ".join(texts[:k + 1]), paragraph.people)) == 2), len(texts))
            assert not any(fact.pronoun for fact in paragraph.facts[both:])
    assert alike > 500


def test_levels_keep_their_word(drawn):
    rng = random.Random(1)
    for at in TRAIN_LEVELS:
        paragraphs = [world.draw_paragraph(rng, at) for _ in range(400)]
        lengths = {len(p.facts) for p in paragraphs}
        assert (min(lengths), max(lengths)) == at.sentences and {len(p.people) for p in paragraphs} == {at.people}
        facts = [f for p in paragraphs for f in p.facts if f.person]
        assert abs(sum(f.denied for f in facts) / len(facts) - at.denied) < 0.05
        for p in paragraphs:
            assert len({f.person for f in p.facts if f.person}) >= min(at.people, len(p.facts) - sum(not f.person for f in p.facts))
    assert [world.level(part) for part in (0, 0.25, 0.26, 0.35, 0.5, 0.6, 0.9, 1, 1.2)] == [
        world.LEVELS[i] for i in (0, 0, 1, 1, 2, 3, 4, 4, 4)]


def test_no_fact_is_told_twice_nor_denied_and_told(drawn):
    for paragraph, _ in drawn["train"] + drawn["test"]:
        told = [(f.kind, f.person) for f in paragraph.facts if f.person]
        values = [f.value for f in paragraph.facts if f.person]
        assert len(set(told)) == len(told) and len(set(values)) == len(values)


def test_plain_text_holds_the_words_of_answers_and_types():
    """A student of plain text alone must have met them, or it would lose a blind task for want of words."""
    met = set(re.findall(r"\w+", " ".join(s for sentences in world.plain(6000, 2) for s in sentences)))
    wanted = {word for records in world.annotated(3000, 2) for record in records
              for text in [q["answer"] for q in record["questions"]] + [e["text"] for e in record["entities"]]
              for word in text.split()}
    assert wanted - met <= {"neutral"}                             # an answer only: no task asks for it
    assert set(TYPES) | {"Yes", "No", "good", "bad", "none", "question", "answer", "text", "true", "say"} <= met


def test_false_claims_are_swapped_or_absent_and_always_false():
    rng, swapped = random.Random(2), Counter()
    for _ in range(800):
        paragraph = world.draw_paragraph(rng, world.FULL, "test")
        for fact in paragraph.facts:
            if fact.person and not fact.denied:
                person, value = world.false_claim(rng, paragraph, fact, 0.5)
                assert not any((f.kind, f.person, f.value) == (fact.kind, person, value) for f in paragraph.facts)
                swapped[any(f.value == value for f in paragraph.facts)] += 1
    assert min(swapped.values()) > 200


def test_the_module_shows_paragraphs_with_all_that_is_known_of_them(monkeypatch, capsys):
    shown = []
    for seed in ("4", "4", "5"):
        monkeypatch.setattr("sys.argv", ["data.world", seed])
        world.main()
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2] and shown[0].count("\n\n") == 3
    rng = random.Random("4")
    first = world.annotate(rng, world.draw_paragraph(rng, world.LEVELS[0]), at=world.LEVELS[0])
    for line, record in zip(shown[0].splitlines(), first[:1]):
        assert line == record["text"]
    for question in (question for record in first for question in record["questions"]):
        assert f"{question['question']} {question['answer']}\n" in shown[0]
