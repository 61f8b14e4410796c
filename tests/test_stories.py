"""Stories: a slow reader, which knows the sentences of world.json but not how they were drawn, answers all."""
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from data import stories, words, world
from data.annotated import check_record

TABLES = json.loads(Path(words.__file__).with_name("world.json").read_text(encoding="utf-8"))
FORMS = TABLES["stories"]
LEVELS = [at for at in stories.OPEN if at.story]
SLOTS = {**dict.fromkeys("snt", r"[A-Z]\w+"), **dict.fromkeys("abo", r"[a-z]\w+")}      # names, nouns
TOLD, ASKED = ("move", "at", "away", "either", "take", "drop", "give"), (
    "where", "before", "where_thing", "has", "gave_o", "gave_s", "gave_t", "order", "does", "is_in", "claims")
WHO, LINKED = r"[A-Z]\w+(?: and [A-Z]\w+)?", rf"(?:{'|'.join(FORMS['links'])}) (?P<pronoun>she|he|they)"


def pattern(form, end=""):
    """A form with slots as an expression with a group for each; a slot may stand twice."""
    text = re.escape(form)
    for slot, expression in SLOTS.items():
        text = text.replace(rf"\{{{slot}\}}", f"(?P<{slot}>{expression})", 1)
    return re.compile(text + end)


SENTENCES = [(kind, pattern(form, r"( there)?\." if kind in ("take", "drop") else r"\."))
             for kind in TOLD if kind != "move" for form in FORMS[kind]]
SENTENCES += [("move", re.compile(rf"(?:(?P<s>{WHO})|{LINKED}){re.escape(form[3:-3])}(?P<a>[a-z]\w+)\."))
              for form in FORMS["move"]]
QUESTIONS = [(kind, pattern(form)) for kind in ASKED for form in FORMS[kind]]
QUESTIONS += [("pronoun", re.compile(r"Who (?:is (?P<one>she|he)|are (?P<more>they))\?")),
              ("attitude", re.compile("|".join(map(re.escape, TABLES["attitude"]))))]


def parsed(text, patterns):
    """(kind, {slot: words}) of the one pattern that fits; its other slots are left out."""
    (found,) = {kind: match for kind, expression in patterns if (match := expression.fullmatch(text))}.items()
    return found[0], {slot: said for slot, said in found[1].groupdict().items() if said}


class Reader:
    """What follows from the sentences told so far: events (kind, people, slots), looked through from the end."""

    def __init__(self):
        self.events, self.texts = [], []

    def read(self, text):
        kind, slots = parsed(text, SENTENCES)
        if "pronoun" in slots:                          # whoever the sentence before is about
            who = self.events[-1][1]
            is_she = who[0].endswith("a") or who[0] in TABLES["listed"]["she"]
            fits = "they" if len(who) > 1 else "she" if is_she else "he"
            assert slots["pronoun"] == fits and self.events[-1][0] != "give"
        else:
            who = slots["s"].split(" and ")
        self.events.append((kind, who, slots))
        self.texts.append(text)

    def places(self, person, until=None):
        """All that `until` events (None: all of them) tell of where a person is: list of (kind, slots)."""
        return [(kind, slots) for kind, who, slots in self.events[:until]
                if kind in ("move", "at", "away", "either") and person in who]

    def where(self, person, until=None):
        """The place of a person after `until` events; None where the text leaves it open."""
        found = [(slots["a"] if kind in ("move", "at") else None) for kind, slots in self.places(person, until)]
        return found[-1] if found else None

    def before(self, person):
        """The place before the one where a person is now; None where the text leaves it open."""
        now, n = self.where(person), len(self.events)
        while n and self.where(person, n) == now:
            n -= 1
        return self.where(person, n)

    def last(self, thing):
        """(number of the last event about a thing, the event)."""
        return [(i, event) for i, event in enumerate(self.events) if event[2].get("o") == thing][-1]

    def owner(self, thing):
        _, (kind, (who,), slots) = self.last(thing)
        return {"take": who, "give": slots.get("t"), "drop": None}[kind]

    def place_of(self, thing):
        i, (kind, (who,), _) = self.last(thing)
        return self.where(who, i + 1) if kind == "drop" else self.where(self.owner(thing))

    def gave(self, given, wanted):
        """What stands in the slot `wanted` of the last gift that has what is `given`."""
        gifts = [slots for kind, _, slots in self.events if kind == "give"
                 and all(slots[slot] == said for slot, said in given.items())]
        return gifts[-1][wanted]

    def whether(self, person, place):
        kind, slots = self.places(person)[-1]
        if kind in ("move", "at"):
            return "Yes" if slots["a"] == place else "No"
        if kind == "either":
            return "Maybe" if place in (slots["a"], slots["b"]) else "No"
        assert slots["a"] == place                  # of other places nothing is known
        return "No"

    def answer(self, question):
        """(kind of question, its answer)."""
        (kind, slots), (_, who, told) = parsed(question, QUESTIONS), self.events[-1]
        if kind in ("is_in", "claims"):
            return kind, self.whether(slots["n"], slots["a"])
        if kind == "before":
            assert slots.get("a") in (None, self.where(slots["n"]))
            return kind, self.before(slots["n"])
        if kind.startswith("gave_"):
            return kind, self.gave(slots, kind[-1])
        if kind == "pronoun":
            assert told["pronoun"] == (slots.get("one") or slots.get("more"))
            return kind, " and ".join(who)
        if kind in ("order", "does"):
            assert (len(who) > 1) == (kind == "order") and "pronoun" not in told
            return kind, re.search(r"[A-Z]\w+", self.texts[-1])[0]
        return kind, {"where": lambda: self.where(slots["n"]), "has": lambda: self.owner(slots["o"]),
                      "where_thing": lambda: self.place_of(slots["o"]), "attitude": lambda: "neutral"}[kind]()


def told(at, n, seed=1):
    rng = random.Random(f"{seed} {at.until}")
    return [at.tell(rng, at, i) for i in range(n)]


def plots_of(at):
    return at.tell.keywords.get("plots", stories.PLOTS)


@pytest.fixture(scope="module")
def drawn():
    """[(level, story)]: records."""
    return [(at, story) for at in LEVELS for story in told(at, 1000)]


def test_every_answer_is_what_a_slow_reader_finds(drawn):
    kinds, answers = Counter(), Counter()
    for _, story in drawn:
        reader, is_small = Reader(), set()
        for record in story:
            reader.read(record["text"])
            for item in record["questions"]:
                kind, answer = reader.answer(item["question"])
                if answer in ("Yes", "No", "Maybe"):
                    is_small.add(item["answer"].islower())
                    answers[answer] += 1
                    answer = answer.lower() if item["answer"].islower() else answer
                assert item["answer"] == answer, (story, item)
                assert item["now"] is True and item["kind"] == (
                    "structure" if kind in ("pronoun", "order", "does") else
                    "attitude" if kind == "attitude" else "content")
                kinds[kind] += 1
        assert len(is_small) < 2                    # a story writes them in one way
        answers["small"] += is_small == {True}
        answers["large"] += is_small == {False}
    assert set(kinds) == {kind for kind, _ in QUESTIONS} and min(kinds.values()) > 50, kinds
    assert 0.4 < answers["small"] / (answers["small"] + answers["large"]) < 0.6 and answers["Maybe"] > 100


def test_entities_are_the_names_of_a_sentence_in_its_order(drawn):
    roles = {**dict.fromkeys("st", ("person", "mover")), **dict.fromkeys("ab", ("place", "place")),
             "o": ("thing", "goods")}
    for i, (_, story) in enumerate(drawn):
        for k, record in enumerate(story):
            check_record(record)
            assert (record["paragraph"], record["sentence"]) == (i % 1000, k)
            _, slots = parsed(record["text"], SENTENCES)
            of = {word: roles[slot] for slot, said in slots.items() if slot in roles
                  for word in said.split(" and ")}
            wanted = [(word, *of[word]) for word in re.findall(r"\w+", record["text"]) if word in of]
            assert [(e["text"], e["type"], e["about"]) for e in record["entities"]] == wanted, record


def test_yes_and_no_are_balanced_at_every_level():
    for at in LEVELS:
        answers = Counter(item["answer"].capitalize() for story in told(at, 1200, 2) for record in story
                          for item in record["questions"] if item["answer"].lower() in ("yes", "no", "maybe"))
        assert bool(answers) == bool(at.whether)            # no such questions where the level has none
        assert not answers or 0.44 < answers["No"] / answers.total() < 0.58, (at, answers)
        assert (answers["Maybe"] > 0) == ("doubts" in plots_of(at) and at.whether > 0)


def test_only_random_is_drawn_from():
    class OnlyRandom:
        random = random.Random(1).random
    for at in LEVELS * 40:
        stories.draw_story(OnlyRandom, at)


def test_a_story_is_as_its_level_tells():
    plots = {"pairs": r" and ", "links": rf"^(?:{'|'.join(FORMS['links'])}) ", "doubts": r" is ",
             "things": rf"^\w+ (?:{'|'.join(form.split()[1] for form in FORMS['give'])}) "}
    for at in LEVELS:
        some, (low, high) = told(at, 500, 3), at.tell.keywords["sentences"]
        assert {len(story) for story in some} == set(range(low, high + 1))
        people = [{e["text"] for record in story for e in record["entities"] if e["type"] == "person"}
                  for story in some]
        assert max(map(len, people)) == at.people + 1
        own = sum(not names <= set(world.WORDS["person"]) for names in people)
        assert abs(own / len(some) - 0.7 - getattr(at.words, "keywords", {}).get("made", 0.0)) < 0.07
        asked = [record["questions"] for story in some for record in story]
        raised = sum(item["kind"] == "attitude" for items in asked for item in items)
        assert abs(raised / len(asked) - at.raised) < 0.05
        text = [record["text"] for story in some for record in story]
        assert {plot for plot, sign in plots.items() if any(re.search(sign, t) for t in text)} == set(plots_of(at))


def test_no_story_tells_a_held_out_pair(drawn):
    """Of people, things and places of WORDS, which the tests put together."""
    for _, story in drawn:
        known = {e["text"] for record in story for e in record["entities"]} & set(world.INDEX)
        people = known & set(world.WORDS["person"])
        assert not [(p, v) for p in people for v in known - people if world.held_out(p, v)]


def test_text_for_a_teacher_holds_as_many_stories_as_its_level():
    at, plain = stories.OPEN[-1], world.LEVELS[-1]
    texts = [world.draw_sentences(random.Random(i), at) for i in range(400)]
    stories_of = sum(any(pattern.fullmatch(text[0]) for _, pattern in SENTENCES) for text in texts)
    assert abs(stories_of / len(texts) - at.story) < 0.05
    one, other = random.Random(1), random.Random(1)
    assert world.draw_sentences(one, plain) == world.draw_paragraph(other, plain).sentences
    assert one.random() == other.random()
