"""The built-in world: its annotations are exact, its test split is kept apart, and its surface varies."""
import hashlib
import json
import random
import re
from collections import Counter

import pytest

from data import stories, world
from data.annotated import check_record
from data.annotations import TYPES
from data.stories import KNOWN, OWN, ROOMS, own_words
from data.words import ATTITUDE, LISTED

VALUES = {value for type_, words in world.WORDS.items() if type_ not in ("person", "day") for value in words}
RESERVED = {word for words in world.RESERVED.values() for word in words}
TRAIN_LEVELS, TEST_LEVELS = [*world.LEVELS, world.FULL], [world.SINGLE, world.FULL, world.ALIKE]
SPLITS = {"train": TRAIN_LEVELS, "test": TEST_LEVELS, "open": stories.OPEN}    # "open": with words of its own
EVERY_LEVEL = [(name, i) for name, levels in SPLITS.items() for i in range(len(levels))]
NOW = {*world.ABOUT, *world.LAST, *world.SENTENCE, *ATTITUDE}    # questions about the sentence read last
all_splits = pytest.mark.parametrize("split", SPLITS)
every_level = pytest.mark.parametrize("split, i", EVERY_LEVEL)


def draw(rng, at, split, n):
    """n pairs (Paragraph, its records) of a level."""
    paragraphs = [world.draw_paragraph(rng, at, "test" if split == "test" else "train") for _ in range(n)]
    return [(paragraph, world.annotate(rng, paragraph, 0, at)) for paragraph in paragraphs]


@pytest.fixture(scope="module")
def drawn():
    """{split: list of (Paragraph, its records)} over all levels."""
    rng = random.Random(5)
    return {split: [pair for at in levels for pair in draw(rng, at, split, 1200 // len(levels))]
            for split, levels in SPLITS.items()}


def words_in(text, words):
    """The members of `words` that stand in the text as whole words."""
    return {word for word in words if word in text and re.search(rf"\b{word}\b", text)}


def questions_of(pairs):
    return [(paragraph, k, question) for paragraph, records in pairs
            for k, record in enumerate(records) for question in record["questions"]]


def asked_pairs(question, words=world.WORDS):
    """The (person, argument) pairs of which a question speaks."""
    values = {value for type_, words in words.items() if type_ not in ("person", "day") for value in words}
    people, values = (words_in(question["question"], some) for some in (words["person"], values))
    return [(person, value) for person in people for value in values]


def test_the_random_streams_are_those_of_the_shipped_cache():
    """data/teacher is bound to a tokenizer, and that to the first texts of these streams."""
    texts = [list(world.annotated(500, "tokenizer")), list(world.plain(500, "tokenizer"))]
    assert hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16] == "ea3de824ebabd5bb"
    assert list(world.plain(100, 7)) == list(world.plain(100, 7)) != list(world.plain(100, 8))


def test_only_random_is_drawn_from():
    """The stream of Random.random() is the same in every Python, those of choice() and shuffle() are not."""
    class OnlyRandom:
        random = random.Random(1).random

    for split, at in [(split, at) for split, levels in SPLITS.items() for at in levels]:
        for paragraph, _ in draw(OnlyRandom, at, split, 20):
            world.questions_at_end(OnlyRandom, paragraph, at)
            world.draw_paragraph(OnlyRandom, at, words=world.RARE)


@all_splits
def test_records_are_valid_and_entities_are_all_the_names_of_a_sentence(drawn, split):
    """The names are found by reading the sentence word for word, without the facts behind it."""
    for paragraph, records in drawn[split]:
        types = {word: type_ for type_, words in paragraph.words.items() for word in words}
        names = re.compile(rf"\b(?:{'|'.join(sorted(types, key=len, reverse=True))})\b")
        assert [record["text"] for record in records] == paragraph.sentences
        for fact, record in zip(paragraph.facts, records):
            check_record(record)
            found = [(word, types[word]) for word in names.findall(record["text"])]
            assert [(e["text"], e["type"]) for e in record["entities"]] == found
            assert bool(found) == (fact.kind in world.KINDS)


def structure(paragraph, k, question):
    """The answer to a question of structure, found by reading up to sentence k."""
    people = paragraph.words["person"]
    named = [re.findall(rf"\b(?:{'|'.join(people)})\b", sentence) for sentence in paragraph.sentences[:k + 1]]
    text, every = paragraph.sentences[k], sum(named, [])
    said = re.search(r"\b(she|he)\b", text.lower())
    meant = said and [p for p in every if p.endswith("a") == (said[1] == "she")][-1]
    if question in world.FIRST + world.LAST:
        return every[0 if question in world.FIRST else -1]
    if question in world.ABOUT:
        return meant or named[-1][0]
    if question in world.SENTENCE:
        denied = words_in(text, ["not", "never", "no", "No", "none"])
        return "exclamation" if text.endswith("!") else "denial" if denied else "statement"
    assert question in [form.format(p=said[1]) for form in world.PRONOUN]
    return meant


@all_splits
def test_answers_are_what_the_reader_knows_and_can_be_found_by_reading(drawn, split):
    """wh answers stand in the text told so far; what is true was told of some person and some argument."""
    for paragraph, k, question in questions_of(drawn[split][::6]):
        told, answer = " ".join(paragraph.sentences[:k + 1]), question["answer"]
        assert world.all_answers(paragraph, k)[question["question"]] == answer
        if question["kind"] == "attitude":
            assert answer in ("good", "bad", "neutral")
        elif question["kind"] == "structure":
            assert answer == structure(paragraph, k, question["question"])
        elif answer == "Yes":
            (pair,) = asked_pairs(question, paragraph.words)
            assert words_in(told, pair) == set(pair), question
        else:
            assert answer == "No" or words_in(told, [answer]), question


@all_splits
def test_what_holds_of_the_last_sentence_alone_says_so(drawn, split):
    """Every other answer is right after all later sentences too: such questions are asked there as well."""
    asked = questions_of(drawn[split])
    assert {question["question"] for *_, question in asked if question.get("now")} == NOW
    for paragraph, k, question in asked[::12]:
        assert question.get("now") == (True if question["question"] in NOW else None)
        for later in range(k, len(paragraph.facts)) if not question.get("now") else ():
            known = world.all_answers(paragraph, later)
            assert known.get(question["question"], question["answer"]) == question["answer"], question


@every_level
def test_sentences_have_their_share_of_questions_about_structure_and_attitude(split, i):
    """Level.raised of all sentences; where anything is asked for yes or no, every mood is asked for."""
    at = SPLITS[split][i]
    asked = {kind: Counter() for kind in ("structure", "neutral", "mood")}
    for paragraph, records in draw(random.Random(4), at, split, 500):
        for fact, record in zip(paragraph.facts, records):
            kinds = Counter(question["kind"] for question in record["questions"])
            mood = "neutral" if fact.mood == "neutral" else "mood"
            asked["structure"][kinds["structure"]] += 1
            asked[mood][kinds["attitude"]] += 1
    for kind, counts in asked.items():
        assert set(counts) <= {0, 1}
        share = 1.0 if kind == "mood" and at.whether else at.raised
        assert counts.total() > 20
        assert abs(counts[1] / counts.total() - share) < (0.06 if 0 < share < 1 else 1e-9), kind


@all_splits
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
    for levels in (world.LEVELS, stories.OPEN):
        annotated = [record for records in world.annotated(2000, 1, levels) for record in records]
        assert not words_in(json.dumps(annotated), RESERVED)
    tables = [*world.WORDS.values(), *world.RESERVED.values(), ROOMS]
    tables += [some for type_, some in LISTED.items() if type_ not in ("organisation", "room")]
    assert set(Counter(word for words in tables for word in words).values()) == {1}     # one type for a word


def test_plain_text_holds_the_words_of_answers_and_types():
    """A student of plain text alone must have met them, or it would fail a blind task for want of words."""
    met = set(re.findall(r"\w+", " ".join(s for sentences in world.plain(4000, 2) for s in sentences)))
    wanted = {word for records in world.annotated(2000, 2) for record in records
              for text in [q["answer"] for q in record["questions"]] + [e["text"] for e in record["entities"]]
              for word in text.split()}
    no_task_asks = {"neutral", "statement", "denial", "exclamation"}
    assert wanted - met <= no_task_asks
    assert {*TYPES, "Yes", "No", "good", "bad", "none", "question", "answer", "text", "true", "say"} <= met


def part_of_own(at):
    """The part of a level's paragraphs that have words of their own."""
    return at.words and 0.7 + getattr(at.words, "keywords", {}).get("made", 0.0) or 0.0


def test_a_paragraph_has_words_of_its_own_that_mean_nothing_else(drawn):
    """As often as its level tells; whoever answers has to read: the next paragraph has others."""
    rng = random.Random(7)
    for at in stories.OPEN:
        own = sum(paragraph.words is not world.WORDS for paragraph, _ in draw(rng, at, "open", 400))
        assert abs(own / 400 - part_of_own(at)) < 0.08
    tables = [own_words(rng, i % 2 > 0) for i in range(300)]
    listed = {word for some in LISTED.values() for word in some}
    for table in tables:
        every = [word for type_, some in table.items() if type_ not in ("day", "feeling") for word in some]
        made = set(every) - listed - {word for word in every if " " in word}
        assert len(set(map(str.lower, every))) == len(every) and not {*map(str.lower, made)} & KNOWN
        assert all(len(table[type_]) == OWN for type_ in ("person", "place", "organisation"))
        assert not set(every) & {word for some in [*world.WORDS.values(), RESERVED] for word in some}
        assert table["day"] == world.WORDS["day"] and table["feeling"] == world.WORDS["feeling"]
    names = set(LISTED["she"] + LISTED["he"])
    made_up = [table for table in tables if not names >= set(table["person"])]
    assert made_up == tables[1::2]
    people = Counter(person for table in made_up for person in table["person"])
    assert len(people) > 0.8 * people.total() and not names & set(people)
    assert 0.4 < sum(map(world.is_she, people)) / len(people) < 0.6 < len(names & {
        person for table in tables for person in table["person"]}) / len(names)


@every_level
def test_yes_and_no_are_balanced_at_every_level(split, i):
    """A reader must not be able to guess the answer without the text."""
    at, answers = SPLITS[split][i], Counter()
    for _, _, question in questions_of(draw(random.Random(3), at, split, 1500)):
        answers[question["answer"]] += question["kind"] == "content" and question["answer"] in ("Yes", "No")
    if at.whether:
        assert 0.46 < answers["Yes"] / answers.total() < 0.56
    else:
        assert not answers.total()


@pytest.mark.parametrize("split", ["train", "test"])
def test_yes_and_no_are_balanced_for_every_type_of_argument(split):
    types = {kind.type: Counter() for kind in world.KINDS.values()}
    pairs = [pair for at in SPLITS[split] for pair in draw(random.Random(6), at, split, 800)]
    for _, _, question in questions_of(pairs):
        for type_, counted in types.items() if question["answer"] in ("Yes", "No") else ():
            counted[question["answer"]] += bool(words_in(question["question"], world.WORDS[type_]))
    for type_, counted in types.items():
        assert counted.total() > 300 and 0.42 < counted["Yes"] / counted.total() < 0.6, type_


@pytest.mark.parametrize("at, split, least", [
    (world.LEVELS[1], "train", 0.85), (stories.OPEN[1], "train", 0.85), (world.ALIKE, "test", 0.6)])
def test_claims_about_two_who_did_alike_mix_them_up(at, split, least):
    """What is claimed at the end stands in the text, true or false, and is told of either of them. In the
    test the two do not always have arguments in common that are held out."""
    rng, false, true, of = random.Random(2), Counter(), 0, Counter()
    for _ in range(800):
        paragraph = world.draw_paragraph(rng, at, split, asides=0.0)
        for question in world.questions_at_end(rng, paragraph, at):
            true += question["answer"] == "Yes"
            if question["answer"] == "No":
                ((person, value),) = asked_pairs(question)
                false[bool(words_in(" ".join(paragraph.sentences), [value]))] += 1
                of[person == paragraph.facts[0].person] += 1
    assert false[True] / false.total() > least and abs(of[True] / of.total() - 0.5) < 0.04
    assert 0.45 < true / (true + false.total()) < 0.55


def test_questions_and_sentences_come_in_many_forms(drawn):
    """With a single form nothing transfers to a blind task. Names and arguments are not counted."""
    names = sorted((word for words in world.WORDS.values() for word in words), key=len, reverse=True)
    blanks = re.compile(rf"\b(?:{'|'.join(names)})\b")
    forms = Counter(blanks.sub("_", question["question"]) for _, _, question in questions_of(drawn["train"]))
    sentences = Counter(blanks.sub("_", text) for p, _ in drawn["train"] for text in p.sentences)
    assert len(forms) > 300 and max(forms.values()) < 0.05 * forms.total()
    assert len(sentences) > 120 and max(sentences.values()) < 0.08 * sentences.total()


@all_splits
def test_a_pronoun_has_one_person_to_mean(drawn, split):
    """At most one person of that gender has been named: two women or two men are called by their names."""
    used = Counter()
    for paragraph, _ in drawn[split]:
        named = []
        for fact in paragraph.facts:
            if fact.pronoun:
                assert [p for p in named if world.is_she(p) == (fact.pronoun == "she")] == [fact.person]
                assert words_in(fact.text.lower(), ["she", "he", fact.person.lower()]) == {fact.pronoun}
                used[fact.pronoun, len(named)] += 1
            elif fact.person and fact.person not in named:
                named.append(fact.person)
    assert min(used[pronoun, n] for pronoun in ("she", "he") for n in (1, 2)) > 4


@every_level
def test_levels_are_kept(split, i):
    at = SPLITS[split][i]
    paragraphs = [world.draw_paragraph(random.Random(n), at) for n in range(400)]
    assert {len(p.facts) for p in paragraphs} == set(range(at.sentences[0], at.sentences[1] + 1))
    assert {len(p.people) for p in paragraphs} == {at.people}
    facts = [[f for f in p.facts if f.person] for p in paragraphs]
    assert abs(sum(f.denied for some in facts for f in some) / sum(map(len, facts)) - at.denied) < 0.05
    for some in facts:                          # both people are named, and no fact or argument comes twice
        assert len({f.person for f in some}) >= min(at.people, len(some))
        assert len({(f.kind, f.person) for f in some}) == len({f.value for f in some}) == len(some)


@pytest.mark.parametrize("levels", [world.LEVELS, stories.OPEN])
def test_levels_follow_each_other(levels):
    assert levels[-1].until == 1.0 and world.level(1.2, levels) is levels[-1]
    for entry, after in zip(levels, levels[1:]):
        assert world.level(entry.until, levels) is entry
        assert world.level(entry.until + 1e-9, levels) is after
    stories = [any(q["kind"] == "content" and "now" in q for record in records for q in record["questions"])
               for records in world.annotated(1000, 1, levels)]           # only there an answer may change
    for entry, begin in zip(levels, [0.0, *(level.until for level in levels)]):
        some = stories[int(1000 * begin) + 1:int(1000 * entry.until)]
        assert abs(sum(some) / len(some) - entry.story) < 0.12


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
    records = world.annotate(rng, world.draw_paragraph(rng, world.LEVELS[0]), at=world.LEVELS[0])
    assert shown.startswith(records[0]["text"] + "\n") and shown.count("\n\n") == 3
    assert all(f"{question['question']} {question['answer']}\n" in shown
               for record in records for question in record["questions"])
