"""The built-in corpus: short paragraphs about a small world, and a scripted reader that annotates them.

    python -m data.world [SEED]         # three paragraphs with their annotations

A paragraph has one to four sentences; most tell a fact, drawn at random, about one or two people. The
reader knows the facts behind the sentences and is always right:

    Clara took a train to Lima on Friday. Hugo did not go to Rome. She felt proud.
    content    Where did Clara go? Lima       Looking back: Is it true that Hugo travelled to Rome? No
    structure  Who is she? Clara              What kind of sentence is this? statement
    attitude   Is this good or bad? good

Kept out of the training text, so that tests measure reading: a quarter of all (person, argument) pairs,
`held_out`, in right answers and in wrong ones. A few reserved names of every type are never annotated.

All words and sentences are in world.json. A new kind of fact is an entry of its "kinds", a new type of entity
one of its "words"; a new kind of question is an entry of RAISED.
"""

import random
import sys
from dataclasses import dataclass, field
from itertools import product
from typing import Callable, NamedTuple

from data.words import (ATTITUDE, GOOD, INDEX, RESERVED, TABLES, WORDS, held_out, in_order, is_she, pick,
                        shuffled)


class Kind(NamedTuple):
    """One kind of fact: {s} is the subject, {n} a name, {a} the argument."""
    type: str          # the argument's entity type
    role: str          # the reader's description of the person
    arg_role: str      # ... and of the argument
    says: list         # ways to tell it; also the clauses of "Is it true that ...?"
    denies: list       # ways to deny it
    what: list         # questions for the argument
    who: list          # questions for the person
    whether: list      # questions for yes or no
    dated: list = ()   # questions for the day, where a day may be told


KINDS = {name: Kind(**fields) for name, fields in TABLES["kinds"].items()}
CLAIMS, LOOK_BACK, MOOD_FRAMES, PRONOUN, ABOUT, FIRST, LAST, SENTENCE = (
    tuple(TABLES[name]) for name in (
        "claims", "look_back", "mood_frames", "pronoun", "about", "first", "last", "sentence"))
MOODS, SAYINGS = TABLES["moods"], tuple(TABLES["sayings"])     # sayings: words of answers, for plain text too
DENIALS = {"No,", "No", "not", "none"}                         # a saying with one of these is a denial


@dataclass(frozen=True)
class Level:
    """How hard a part of the corpus is. A student learns several times faster from easy parts first."""
    until: float = 1.0       # the level lasts until this part of the corpus
    sentences: tuple = (2, 4)
    people: int = 2          # 1 or 2; the second is named where there is room
    denied: float = 0.1      # part of the facts that are denied
    swapped: float = 0.2     # part of the false claims that mix up two people; the others are about neither
    claims: float = 0.4      # part of the yes/no questions that are claims ("Is it true that ...?")
    alike: float = 0.5       # part of the second person's facts that are of the same kind as the first one's
    whole: float = 0.0       # part of the documents whose sentences are annotated together, at the end
    join_prob: float = 0.0   # part of the sentences that are annotated only together with the next one
    forms: int = 24          # how many of the surface forms of annotations are in use
    varied: float = 0.0      # part of the documents in another layout (documents.vary_layout)
    wh: int = 1              # wh questions drawn for a told fact; equal ones are asked once
    whether: int = 1         # yes/no questions drawn for a fact; with 0 none about earlier sentences either
    raised: float = 1.0      # part of the sentences with a question of structure, and with one of attitude,
    #                          which is asked of every sentence that is good or bad where whether is above 0
    words: Callable = None   # rng -> the people, places, things of a paragraph, None for those of the world
    story: float = 0.0       # part of the paragraphs that are stories,
    tell: Callable = None    # ... and (rng, this level, index) -> the records of a story


# First wh questions alone, about two people who did alike, in one form and any order, so that "the person
# named first" is right half of the time; then false claims that swap these people. Both are hard to learn
# later.
BINDING = {"sentences": (2, 2), "denied": 0.0, "alike": 1.0, "raised": 0.0}
LATER = {"alike": 0.8, "swapped": 0.8, "join_prob": 0.5, "varied": 0.6}
LEVELS = (Level(0.27, **BINDING, join_prob=1.0, forms=1, wh=12, whether=0),
          Level(0.48, **BINDING, join_prob=0.7, forms=12, wh=2, whether=2, swapped=1.0, varied=0.4),
          Level(0.55, (1, 1), 1, swapped=0.0, join_prob=0.6, raised=0.1, varied=0.6),
          Level(0.69, (1, 2), raised=0.1, **LATER),
          Level(0.84, (1, 3), raised=0.1, **LATER),
          Level(1.00, (1, 4), raised=0.5, **LATER))
RARE = WORDS | RESERVED      # the reserved names are told in plain text and never annotated
FULL = Level()               # paragraphs of the test, and where nothing else is said
SINGLE = Level(sentences=(1, 1), people=1)
ALIKE = Level(sentences=(2, 2), denied=0.0, alike=1.0, swapped=1.0, wh=2, whether=2)


# --- paragraphs ---------------------------------------------------------------------------------------------
@dataclass
class Fact:
    """What one sentence tells. kind: a key of KINDS, "mood" or "saying"."""
    text: str
    kind: str
    person: str = ""
    value: str = ""
    day: str = ""
    denied: bool = False
    pronoun: str = ""        # "she" or "he" where the sentence does not name the person
    mood: str = "neutral"    # "good", "bad" or "neutral"


@dataclass
class Paragraph:
    """Facts in the order told; split ("train" or "test"): the part of the pairs that it may speak of."""
    facts: list = field(default_factory=list)
    people: list = field(default_factory=list)
    split: str = "train"
    words: dict = field(default_factory=lambda: WORDS)

    @property
    def sentences(self):
        return [fact.text for fact in self.facts]


def values_for(person, type_, split, words=WORDS):
    """The arguments of one type in {type: words} that may be said of `person` in this split."""
    return [v for v in words[type_] if person not in INDEX or v not in INDEX
            or held_out(person, v) == (split == "test")]


def draw_people(rng, n, split, everyone=WORDS["person"]):
    """n different people. In tests two often share their held-out arguments, so that facts can be swapped."""
    people = [pick(rng, everyone)]
    alike = split == "test" and rng.random() < 0.6
    while len(people) < n:
        other = pick(rng, everyone)
        if other not in people and (not alike or (INDEX[other] - INDEX[people[0]]) % 4 == 0):
            people.append(other)
    return people


def draw_fact(rng, paragraph, person, kind_name, may_pronoun=False, denials=0.0):
    """One sentence about `person`; None where no unused argument is left for it."""
    kind, taken = KINDS[kind_name], [fact.value for fact in paragraph.facts]
    values = values_for(person, kind.type, paragraph.split, paragraph.words)
    free = [v for v in values if v not in taken]
    if not free:
        return None
    value, denied = pick(rng, free), rng.random() < denials
    pronoun = ("she" if is_she(person) else "he") if may_pronoun and rng.random() < 0.6 else ""
    clause = pick(rng, kind.denies if denied else kind.says).format(s=pronoun or person, a=value)
    day = pick(rng, WORDS["day"]) if kind.dated and not denied and rng.random() < 0.5 else ""
    if day:
        clause = f"on {day}, {clause}" if rng.random() < 0.4 else f"{clause} on {day}"
    mood = "neutral"
    if kind_name == "feel":
        mood = "good" if (value in GOOD) != denied else "bad"
    return Fact(clause[0].upper() + clause[1:] + ".", kind_name, person, value, day, denied, pronoun, mood)


def draw_aside(rng):
    """A sentence that names nobody: a mood, or a saying."""
    if rng.random() >= 0.7:
        saying = pick(rng, SAYINGS)
        return Fact(saying, "saying", denied=not DENIALS.isdisjoint(saying.split()))
    mood = pick(rng, ("good", "bad"))
    return Fact(pick(rng, MOOD_FRAMES).format(m=pick(rng, MOODS[mood])), "mood", mood=mood)


def draw_paragraph(rng, at=FULL, split="train", words=None, asides=0.2):
    """A Paragraph of the Level `at`; where it has the sentences for two people, both are named. words:
    {type: words}; None: those of the world, or of this paragraph where the level says so."""
    words = words or at.words and at.words(rng) or WORDS
    paragraph = Paragraph([], draw_people(rng, at.people, split, words["person"]), split, words)
    n = at.sentences[0] + int(rng.random() * (at.sentences[1] - at.sentences[0] + 1))
    named, told = [], {person: [] for person in paragraph.people}
    while len(paragraph.facts) < n:
        left, unnamed = n - len(paragraph.facts), [p for p in paragraph.people if p not in named]
        if rng.random() < asides and left > len(unnamed):
            paragraph.facts.append(draw_aside(rng))
            continue
        is_new = not named or (unnamed and (left <= len(unnamed) or rng.random() < 0.5))
        person = unnamed[0] if is_new else pick(rng, named)
        # Often two people have facts of the same kind: the reader has to find out which belongs to whom.
        other = [k for p in named if p != person for k in told[p] if k not in told[person]]
        is_alike = other and rng.random() < at.alike
        kind = pick(rng, other if is_alike else [k for k in KINDS if k not in told[person]])
        alone = all(p == person or is_she(p) != is_she(person) for p in named)
        fact = draw_fact(rng, paragraph, person, kind, person in named and alone, at.denied)
        if fact:
            told[person].append(kind)
            paragraph.facts.append(fact)
            if person not in named:
                named.append(person)
    return paragraph


def draw_sentences(rng, at):
    """The sentences of a paragraph, or of a story, of the Level `at`."""
    if at.story and rng.random() < at.story:
        return [record["text"] for record in at.tell(rng, at)]
    return draw_paragraph(rng, at).sentences


# --- the scripted reader ------------------------------------------------------------------------------------
def entities(fact):
    """The named entities of one sentence in the order of the text: list of {"text", "type", "about"}."""
    if fact.kind not in KINDS:
        return []
    kind, found = KINDS[fact.kind], []
    if not fact.pronoun:
        found.append({"text": fact.person, "type": "person", "about": kind.role})
    found.append({"text": fact.value, "type": kind.type, "about": "denied" if fact.denied else kind.arg_role})
    if fact.day:
        found.append({"text": fact.day, "type": "day", "about": "time"})
    return in_order(found, fact.text)


def whether_forms(fact, person, value):
    """(direct questions, claims): every yes/no question whether `value` holds of `person`."""
    kind = KINDS[fact.kind]
    clauses = [form.format(s=person, a=value) for form in kind.says]
    return ([form.format(n=person, a=value) for form in kind.whether],
            [claim.format(c=clause) for claim in CLAIMS for clause in clauses])


def wh_questions(fact):
    """Every wh question that a told (not denied) fact answers: list of (forms, answer)."""
    if fact.denied:
        return []
    kind = KINDS[fact.kind]
    asked = [(kind.what, fact.value), (kind.who, fact.person)]
    if fact.day:
        asked.append((kind.dated, fact.day))
    return [([form.format(n=fact.person, a=fact.value) for form in forms], answer) for forms, answer in asked]


def false_claim(rng, paragraph, fact, swapped=0.5, told=None):
    """(person, value) like `fact`, but false: with probability `swapped` its person or its argument is
    another one's of `told` (None: all facts of the paragraph), otherwise the argument occurs nowhere here."""
    told = paragraph.facts if told is None else told
    type_ = KINDS[fact.kind].type
    allowed = values_for(fact.person, type_, paragraph.split, paragraph.words)
    if rng.random() < swapped:
        others = [f for f in told if f.person and f.person != fact.person]
        swaps = [(fact.person, f.value) for f in others if f.kind == fact.kind and f.value in allowed]
        swaps += [(f.person, fact.value) for f in others
                  if fact.value in values_for(f.person, type_, paragraph.split, paragraph.words)]
        if swaps:
            return pick(rng, swaps)
    unknown = [v for v in allowed if v not in [f.value for f in paragraph.facts]]
    return fact.person, pick(rng, unknown or [v for v in allowed if v != fact.value])


def whether_question(rng, paragraph, fact, k, at=FULL):
    """(yes/no question at sentence k about one fact, answer); Yes and No are equally frequent."""
    true = not fact.denied and rng.random() < 0.5 / (1 - at.denied)          # denied facts add No
    person, value = fact.person, fact.value
    if not true and not fact.denied:
        person, value = false_claim(rng, paragraph, fact, at.swapped, paragraph.facts[:k + 1])
    direct, claims = whether_forms(fact, person, value)
    forms = claims if rng.random() < at.claims else direct
    return pick(rng, forms), "Yes" if true else "No"


def wh_question(rng, fact):
    """(wh question about a told fact, answer); None for a denied one."""
    if not fact.denied:
        forms, answer = pick(rng, wh_questions(fact))
        return pick(rng, forms), answer


class Raised(NamedTuple):
    """One kind of question that asks for no fact in particular; {p} of its forms is the pronoun."""
    kind: str          # "structure" or "attitude"
    forms: tuple
    answer: Callable   # (paragraph, k) -> its answer at sentence k, None where it cannot be asked
    now: bool = False  # it is about the sentence read last


def named(paragraph, k, which):
    """The person that the text up to sentence k names first (0) or last (-1), None without any."""
    people = [fact.person for fact in paragraph.facts[:k + 1] if fact.person and not fact.pronoun]
    return people[which] if people else None


def sentence_kind(paragraph, k):
    """What sort of sentence this is: "statement", "denial" or "exclamation"."""
    fact = paragraph.facts[k]
    return "exclamation" if fact.text.endswith("!") else "denial" if fact.denied else "statement"


RAISED = (Raised("structure", PRONOUN, lambda text, k: text.facts[k].pronoun and text.facts[k].person),
          Raised("structure", ABOUT, lambda text, k: text.facts[k].person, now=True),
          Raised("structure", FIRST, lambda text, k: named(text, k, 0)),
          Raised("structure", LAST, lambda text, k: named(text, k, -1), now=True),
          Raised("structure", SENTENCE, sentence_kind, now=True),
          Raised("attitude", ATTITUDE, lambda text, k: text.facts[k].mood, now=True))


def raised_at(paragraph, k, kind):
    """Every entry of RAISED of one kind that can be asked at sentence k: list of (Raised, forms, answer)."""
    found = ((entry, entry.answer(paragraph, k)) for entry in RAISED if entry.kind == kind)
    return [(entry, [form.format(p=paragraph.facts[k].pronoun) for form in entry.forms], answer)
            for entry, answer in found if answer]


def content_questions(rng, paragraph, fact, k, at):
    """Questions at sentence k about one fact: list of (kind, (question, answer) or None, now)."""
    return [*(("content", wh_question(rng, fact), False) for _ in range(at.wh)),
            *(("content", whether_question(rng, paragraph, fact, k, at), False) for _ in range(at.whether))]


def items(rng, asked):
    """Triples (kind, (question, answer) or None, now) in random order, each question once -> list of {"kind",
    "question", "answer"}, and "now" where the answer holds for the sentence read last alone."""
    unique = {}
    for kind, question, now in shuffled(rng, asked):
        if question:
            item = {"kind": kind, "question": question[0], "answer": question[1]}
            unique.setdefault(question[0], item | ({"now": True} if now else {}))
    return list(unique.values())


def questions_at_end(rng, paragraph, at):
    """The reader's questions about all facts of a paragraph, to be asked after its last sentence."""
    facts = [fact for fact in paragraph.facts if fact.kind in KINDS]
    return items(rng, [asked for fact in facts for asked in content_questions(
        rng, paragraph, fact, len(paragraph.facts) - 1, at)])


def questions(rng, paragraph, k, at=FULL):
    """The reader's questions at sentence k: `items`."""
    fact = paragraph.facts[k]
    asked = content_questions(rng, paragraph, fact, k, at) if fact.kind in KINDS else []
    earlier = [f for f in paragraph.facts[:k] if f.kind in KINDS]
    if earlier and at.whether and rng.random() < 0.8:
        back, told = pick(rng, LOOK_BACK), pick(rng, earlier)
        is_wh = rng.random() < 0.5
        question = wh_question(rng, told) if is_wh else whether_question(rng, paragraph, told, k, at)
        asked.append(("content", question and (back + question[0], question[1]), False))
    for kind in ("structure", "attitude"):
        if rng.random() < at.raised or kind == "attitude" and at.whether and fact.mood != "neutral":
            entry, forms, answer = pick(rng, raised_at(paragraph, k, kind))
            asked.append((kind, (pick(rng, forms), answer), entry.now))
    return items(rng, asked)


def all_answers(paragraph, k):
    """{question: answer} of everything the reader could ask at sentence k, to grade a student's questions."""
    answers, facts = {}, paragraph.facts[:k + 1]
    true = [(f.kind, f.person, f.value) for f in facts if not f.denied]
    for told in (fact for fact in facts if fact.kind in KINDS):
        for person, value in product(paragraph.people, paragraph.words[KINDS[told.kind].type]):
            direct, claims = whether_forms(told, person, value)
            answer = "Yes" if (told.kind, person, value) in true else "No"
            answers |= dict.fromkeys(direct + claims, answer)
        for forms, answer in wh_questions(told):
            answers |= dict.fromkeys(forms, answer)
    looking_back = {back + question: answer for back in LOOK_BACK for question, answer in answers.items()}
    for kind in ("structure", "attitude"):
        for _, forms, answer in raised_at(paragraph, k, kind):
            answers |= dict.fromkeys(forms, answer)
    return looking_back | answers


def annotate(rng, paragraph, index=0, at=FULL):
    """The reader's records of one paragraph, one for each sentence; data/annotations.py describes them."""
    return [{"paragraph": index, "sentence": k, "text": fact.text, "entities": entities(fact),
             "questions": questions(rng, paragraph, k, at)} for k, fact in enumerate(paragraph.facts)]


def level(part, levels=LEVELS):
    """The Level at the place `part` (0..1) of a corpus."""
    return next(entry for entry in levels if part <= entry.until or entry is levels[-1])


def annotated(n, seed, levels=LEVELS):
    """Yields n annotated paragraphs (lists of records) of the training split, easy ones first."""
    rng = random.Random(f"annotated {seed}")
    for i in range(n):
        at = level(i / n, levels)
        if rng.random() < at.story:
            yield at.tell(rng, at, i)
        else:
            yield annotate(rng, draw_paragraph(rng, at), i, at)


def plain(n, seed, levels=LEVELS):
    """Yields n paragraphs (lists of sentences) without annotations; one in eight uses reserved names."""
    rng = random.Random(f"plain {seed}")
    for i in range(n):
        at = level(i / n, levels)
        if rng.random() < at.story:
            yield [record["text"] for record in at.tell(rng, at)]
        else:
            yield draw_paragraph(rng, at, words=RARE if rng.random() < 0.125 else None).sentences


def main():
    """Prints three annotated paragraphs; the seed is the first argument."""
    rng = random.Random(sys.argv[1] if len(sys.argv) > 1 else "1")
    for at in (LEVELS[0], FULL, FULL):
        for record in annotate(rng, draw_paragraph(rng, at), at=at):
            named = "; ".join(f"{e['text']}: {e['type']}, {e['about']}" for e in record["entities"])
            asked = (f"{q['kind']:10}{q['question']} {q['answer']}" for q in record["questions"])
            print(record["text"], named, *asked, sep="\n    ")
        print()


if __name__ == "__main__":
    main()
