"""The built-in corpus: a small world told in short paragraphs, and the scripted reader who annotates it exactly.

    python data/world.py [SEED]         # a few paragraphs with their annotations

The people of this world travel, buy, live, work and feel. A paragraph tells one to four facts about one or two of them;
every fact is drawn afresh, so nothing can be learnt by heart and everything must be read:

    Clara took a train to Lima on Friday. Hugo did not go to Rome. She felt proud.

The scripted reader knows the facts behind each sentence, so its annotations are never wrong. It lists the entities with
a type and a short description, and raises questions of the three kinds of Basic Reading Distillation:

    content    Where did Clara go? Lima       Is it true that Hugo travelled to Rome? No
    structure  Who is she? Clara              Looking back: when did Clara go to Lima? Friday
    attitude   Is this good or bad? good

Two things are kept out of the training text, so that tests are honest:
- held-out pairs: a quarter of all (person, argument) pairs, `held_out`, is told and asked about in the test split only;
  wrong answers come from the same half as right ones, or "never seen together" would give them away;
- reserved words: a few names of every type occur in plain text, and are never annotated.

To add a kind of fact, or with its words a type of entity, add one entry to KINDS; to add a kind of question, one to RAISED.
"""

import random
import sys
from dataclasses import dataclass, field
from typing import Callable, NamedTuple

# --- the words ---------------------------------------------------------------------------------------------------------

SHE = "Anna Clara Dora Eva Gina Ida Julia Lena Maria Nora Rosa Vera".split()
HE = "Adam Ben Carl Emil Felix Hugo Ivan Jonas Leo Max Oscar Paul".split()
GOOD, BAD = "happy glad proud calm cheerful hopeful".split(), "sad angry tired afraid lonely worried".split()
WORDS = {
    "person": SHE + HE,
    "place": "Oslo Rome Lima Cairo Paris Kyoto Delhi Bergen Porto Quito Turin Malmo".split(),
    "organisation": ("Star Bank,Oak School,Lake Hotel,Sun Bakery,Red Mill,North Museum,Hill Clinic,Harbour Press,"
                    "Blue Tower,Gold Shop,Stone Church,Silver Farm").split(","),
    "thing": "lamp kite book coat boat clock drum chair hat map ring rug bell vase bike cup".split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "job": "baker doctor teacher painter nurse driver farmer singer pilot cook porter guide".split(),
    "feeling": GOOD + BAD,
}
RESERVED_SHE, RESERVED_HE = ["Mina", "Tilda", "Selma"], ["Rolf", "Viktor", "Johan"]
RESERVED = {
    "person": RESERVED_SHE + RESERVED_HE,
    "place": ["Riga", "Tunis", "Accra", "Lyon"],
    "organisation": ["Elm Theatre", "Moon Garage", "West Library"],
    "thing": ["flute", "cake", "shirt", "knife"],
    "job": ["tailor", "judge", "miner"],
}
FEMALE = frozenset(SHE + RESERVED_SHE)


@dataclass(frozen=True)
class Kind:
    """One kind of fact: {s} is the subject, {n} a name, {a} the argument."""
    type: str        # the argument's entity type
    role: str        # how the reader describes the person
    arg_role: str    # ... and the argument
    says: tuple      # ways to tell it; also the clauses of "Is it true that ...?"
    denies: tuple    # ways to deny it
    what: tuple      # questions for the argument
    who: tuple       # questions for the person
    whether: tuple   # questions for yes or no
    dated: tuple = ()  # questions for the day, where a day may be told
    words: str = ""  # of an entity type that is not in WORDS yet


KINDS = {
    "go": Kind("place", "traveller", "goal",
               ("{s} went to {a}", "{s} travelled to {a}", "{s} took a train to {a}"),
               ("{s} did not go to {a}", "{s} never went to {a}"),
               ("Where did {n} go?", "Which place did {n} travel to?", "What was the goal of {n}?"),
               ("Who went to {a}?", "Who travelled to {a}?"),
               ("Did {n} go to {a}?", "Did {n} travel to {a}?"),
               ("When did {n} go to {a}?", "On what day did {n} travel to {a}?")),
    "buy": Kind("thing", "buyer", "goods",
                ("{s} bought a {a}", "{s} paid for a {a}", "{s} came home with a {a}"),
                ("{s} did not buy a {a}", "{s} never paid for a {a}"),
                ("What did {n} buy?", "Which thing did {n} pay for?", "What did {n} come home with?"),
                ("Who bought a {a}?", "Who paid for a {a}?"),
                ("Did {n} buy a {a}?", "Did {n} pay for a {a}?"),
                ("When did {n} buy a {a}?", "On what day did {n} pay for a {a}?")),
    "live": Kind("place", "resident", "home",
                 ("{s} lives in {a}", "{s} has a house in {a}", "{s} is at home in {a}"),
                 ("{s} does not live in {a}", "{s} has no house in {a}"),
                 ("Where does {n} live?", "In which place is {n} at home?", "Where is the house of {n}?"),
                 ("Who lives in {a}?", "Who has a house in {a}?"),
                 ("Does {n} live in {a}?", "Is {n} at home in {a}?")),
    "work": Kind("organisation", "worker", "employer",
                 ("{s} works for {a}", "{s} has a post at {a}", "{s} joined {a}"),
                 ("{s} does not work for {a}", "{s} has no post at {a}"),
                 ("Where does {n} work?", "Which organisation does {n} work for?", "What did {n} join?"),
                 ("Who works for {a}?", "Who has a post at {a}?"),
                 ("Does {n} work for {a}?", "Did {n} join {a}?")),
    "job": Kind("job", "worker", "trade",
                ("{s} is a {a}", "{s} works as a {a}", "{s} became a {a}"),
                ("{s} is not a {a}", "{s} never became a {a}"),
                ("What is the job of {n}?", "As what does {n} work?", "What did {n} become?"),
                ("Who is a {a}?", "Who works as a {a}?"),
                ("Is {n} a {a}?", "Does {n} work as a {a}?")),
    "feel": Kind("feeling", "feeler", "mood",
                 ("{s} felt {a}", "{s} was {a}", "{s} seemed {a}"),
                 ("{s} did not feel {a}", "{s} was not {a}"),
                 ("How did {n} feel?", "What was the feeling of {n}?", "How was {n}?"),
                 ("Who felt {a}?", "Who was {a}?"),
                 ("Did {n} feel {a}?", "Was {n} {a}?")),
}
WORDS |= {kind.type: kind.words.split() for kind in KINDS.values() if kind.words}
INDEX = {word: i for words in WORDS.values() for i, word in enumerate(words)}
CLAIMS = ("Is it true that {c}?", "Can we say that {c}?", "Would you say that {c}?", "{c}, right?")  # {c}: a clause of `says`
PRONOUN = ("Who is {p}?", "Who is meant by {p}?", "Which person is {p}?")
FIRST = ("Who is named first?", "Which person comes first in the text?")
LOOK_BACK = ("", "", "Earlier: ", "Looking back: ", "In the text above: ")
ATTITUDE = ("Is this good or bad?", "Is the mood good or bad?", "Does this sound good or bad?", "What is the attitude here?")

MOODS = {"good": "wonderful lovely great fine splendid".split(), "bad": "dreadful terrible poor nasty gloomy".split()}
MOOD_FRAMES = ("It was a {m} day.", "It was a {m} time.", "What a {m} day!", "That was {m}.", "All of it was {m}.")
# Sentences without a fact. They give plain text the answers and type names of annotations, so that no student is starved
# of words.
SAYINGS = ("Yes, it is true.", "No, it is not true.", "Every person needs a place.", "A good job is a good thing.",
           "It is a big organisation.", "A feeling is a strange thing.", "The text does not say who.", "It was a bad day for some.",
           "A day is long.", "No person knows the answer.", "Yes, that was the question.", "One person told it, none asked why.")


@dataclass(frozen=True)
class Level:
    """How hard a part of the corpus is. A reader who first meets short texts and plain questions learns several times
    faster: whether a claim is true must be found out before one can learn who it was true of."""
    until: float = 1.0       # the level lasts until this part of the corpus
    sentences: tuple = (2, 4)
    people: int = 2          # 1 or 2; the second is named where there is room
    denied: float = 0.1      # part of the facts that are denied
    swapped: float = 0.2     # part of the false claims that mix up two people; the others claim what nobody told
    claims: float = 0.4      # part of the yes/no questions that are claims ("Is it true that ...?")
    alike: float = 0.5       # part of the second person's facts that are of the same kind as the first one's
    join_prob: float = 0.0    # part of the sentences that are annotated only together with the next one
    forms: int = 24          # how many of the surface forms of annotations are in use
    varied: float = 0.0      # part of the documents that are laid out in another way (data/corpus.vary_layout)
    wh: int = 1              # wh questions raised at a told fact, but for those that come twice
    whether: bool = True     # is there a yes/no question too, and one about an earlier sentence


LEVELS = (
    Level(0.25, (1, 1), 1, denied=0.0, swapped=0.0, claims=0.0, forms=1),
    Level(0.35, (1, 1), 1, swapped=0.0, claims=0.3, forms=4),
    Level(0.55, (1, 2), 2, alike=0.7, join_prob=0.3, forms=8),
    Level(0.75, (1, 3), 2, join_prob=0.3, forms=16),
    Level(1.00, (1, 4), 2, swapped=0.4, join_prob=0.4, varied=0.4),
)
WHOSE_TOKENS = 500_000       # of questions, after which students tell two people apart
WHOSE_LENGTH, LATER_LENGTH = 94, 68     # tokens of an average document with questions, then and later; rounded down


def binding_curriculum(tokens):
    """(number of paragraphs, levels) for `tokens` tokens of D_QRA from which a student learns whose a fact is.

    They begin with two people who did alike and wh questions about both, in any order: "the one named first" or "what was said
    last" is then right half of the time. A student that meets such texts only among others never gets beyond these answers; and
    all in one surface form, since with eight "who" was still at chance after 500,000 tokens, and with one at .92 (one run each)."""
    whose = min(WHOSE_TOKENS, tokens / 2) / WHOSE_LENGTH                     # paragraphs
    n = whose + (tokens - whose * WHOSE_LENGTH) / LATER_LENGTH
    part, two = whose / n, {"alike": 0.8, "swapped": 0.8}

    def after(until, sentences, people=2, **other):
        return Level(part + (1 - part) * until, sentences, people, join_prob=0.6, varied=0.6, **other)
    return int(n) + 1, (Level(part, (2, 2), denied=0.0, alike=1.0, join_prob=1.0, forms=1, wh=12, whether=False),
                        after(0.1, (1, 1), 1, swapped=0.0, claims=0.3), after(0.4, (1, 2), **two), after(0.7, (1, 3), **two),
                        after(1.0, (1, 4), **two))


FULL = Level()               # paragraphs of the test
SINGLE = Level(sentences=(1, 1), people=1)


# --- paragraphs --------------------------------------------------------------------------------------------------------

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
    """Facts in the order told; split "train" or "test" says which half of the pairs they and their questions come from."""
    facts: list = field(default_factory=list)
    people: list = field(default_factory=list)
    split: str = "train"

    @property
    def sentences(self):
        return [fact.text for fact in self.facts]


def pick(rng, words):
    """One of `words`. Uses rng.random() alone, whose stream is the same in every Python."""
    return words[int(rng.random() * len(words))]


def held_out(person, value):
    """True for the quarter of all (person, argument) pairs that only tests may tell or ask about."""
    return person in INDEX and value in INDEX and (INDEX[person] + INDEX[value]) % 4 == 0


def values_for(person, type_, split):
    """The arguments of one type that may be said of `person` in this split."""
    return [v for v in WORDS[type_] if held_out(person, v) == (split == "test")]


def capital(text):
    return text[0].upper() + text[1:]


def draw_people(rng, n, split, reserved):
    """n different people. In tests two people often share their held-out half, so that facts can be swapped."""
    everyone = RESERVED["person"] if reserved else WORDS["person"]
    people = [pick(rng, everyone)]
    alike = split == "test" and rng.random() < 0.6
    while len(people) < n:
        other = pick(rng, everyone)
        if other not in people and (not alike or (INDEX[other] - INDEX[people[0]]) % 4 == 0):
            people.append(other)
    return people


def draw_fact(rng, paragraph, person, kind_name, may_pronoun, reserved, denials):
    """One sentence about `person`; None where no unused argument is left for it."""
    kind = KINDS[kind_name]
    taken = [fact.value for fact in paragraph.facts]
    values = RESERVED.get(kind.type, WORDS[kind.type]) if reserved else values_for(person, kind.type, paragraph.split)
    free = [v for v in values if v not in taken]
    if not free:
        return None
    value, denied = pick(rng, free), rng.random() < denials
    pronoun = ("she" if person in FEMALE else "he") if may_pronoun and rng.random() < 0.6 else ""
    clause = pick(rng, kind.denies if denied else kind.says).format(s=pronoun or person, a=value)
    day = pick(rng, WORDS["day"]) if kind.dated and not denied and rng.random() < 0.5 else ""
    if day:
        clause = f"on {day}, {clause}" if rng.random() < 0.4 else f"{clause} on {day}"
    mood = "neutral"
    if kind_name == "feel":
        mood = "good" if (value in GOOD) != denied else "bad"
    return Fact(capital(clause) + ".", kind_name, person, value, day, denied, pronoun, mood)


def draw_aside(rng):
    """A sentence that names nobody: a mood, or a saying."""
    if rng.random() < 0.7:
        mood = pick(rng, ("good", "bad"))
        return Fact(pick(rng, MOOD_FRAMES).format(m=pick(rng, MOODS[mood])), "mood", mood=mood)
    return Fact(pick(rng, SAYINGS), "saying")


def draw_paragraph(rng, at=FULL, split="train", reserved=False, asides=0.2):
    """A Paragraph of the Level `at`; where it has the sentences for two people, both are named."""
    paragraph = Paragraph(split=split, people=draw_people(rng, at.people, split, reserved))
    n = at.sentences[0] + int(rng.random() * (at.sentences[1] - at.sentences[0] + 1))
    named, told = [], {person: [] for person in paragraph.people}
    while len(paragraph.facts) < n:
        left, unnamed = n - len(paragraph.facts), [p for p in paragraph.people if p not in named]
        if rng.random() < asides and left > len(unnamed):
            paragraph.facts.append(draw_aside(rng))
            continue
        person = unnamed[0] if not named or (unnamed and (left <= len(unnamed) or rng.random() < 0.5)) else pick(rng, named)
        # Often two people do the same kind of thing: who did which is then the thing to read.
        other = [k for p in named if p != person for k in told[p] if k not in told[person]]
        kind = pick(rng, other) if other and rng.random() < at.alike else pick(rng, [k for k in KINDS if k not in told[person]])
        alone = all(p == person or (p in FEMALE) != (person in FEMALE) for p in named)
        fact = draw_fact(rng, paragraph, person, kind, person in named and alone, reserved, at.denied)
        if fact:
            told[person].append(kind)
            named += [person] if person not in named else []
            paragraph.facts.append(fact)
    return paragraph


# --- the scripted reader -----------------------------------------------------------------------------------------------

def entities(fact):
    """The named entities of one sentence, in the order they stand, each with type and a short description."""
    if fact.kind not in KINDS:
        return []
    kind, found = KINDS[fact.kind], []
    if not fact.pronoun:
        found.append({"text": fact.person, "type": "person", "about": kind.role})
    found.append({"text": fact.value, "type": kind.type, "about": "denied" if fact.denied else kind.arg_role})
    if fact.day:
        found.append({"text": fact.day, "type": "day", "about": "time"})
    return sorted(found, key=lambda entity: fact.text.index(entity["text"]))


def whether_forms(fact, person, value):
    """Every yes/no question whether `value` holds of `person`, in the kind of `fact`: (direct questions, claims)."""
    kind = KINDS[fact.kind]
    clauses = [form.format(s=person, a=value) for form in kind.says]
    return ([form.format(n=person, a=value) for form in kind.whether],
            [claim.format(c=clause) for claim in CLAIMS for clause in clauses])


def wh_questions(fact):
    """Every wh question that a told (not denied) fact answers: lists of (forms, answer)."""
    if fact.denied:
        return []
    kind, fill = KINDS[fact.kind], {"n": fact.person, "a": fact.value}
    asked = [([f.format(**fill) for f in kind.what], fact.value), ([f.format(**fill) for f in kind.who], fact.person)]
    if fact.day:
        asked.append(([f.format(**fill) for f in kind.dated], fact.day))
    return asked


def false_claim(rng, paragraph, fact, swapped=0.5, told=None):
    """(person, value) like `fact`, but false: the argument of another person in `told` (by default, all facts of the
    paragraph), or one that the paragraph does not have at all."""
    told, test = paragraph.facts if told is None else told, paragraph.split == "test"
    half = values_for(fact.person, KINDS[fact.kind].type, paragraph.split)
    if rng.random() < swapped:
        others = [f for f in told if f.person and f.person != fact.person]
        swaps = [(fact.person, f.value) for f in others if f.kind == fact.kind and f.value in half]
        swaps += [(f.person, fact.value) for f in others if held_out(f.person, fact.value) == test]
        if swaps:
            return pick(rng, swaps)
    known = [f.value for f in paragraph.facts]
    return fact.person, pick(rng, [v for v in half if v not in known] or [v for v in half if v != fact.value])


def whether_question(rng, paragraph, fact, k, at=FULL):
    """A yes/no question at sentence k about one fact and its answer, true and false alike often."""
    true = not fact.denied and rng.random() < 0.55  # a little over half, since what is denied is always answered No
    person, value = (fact.person, fact.value) if true or fact.denied else \
        false_claim(rng, paragraph, fact, at.swapped, paragraph.facts[:k + 1])
    return pick(rng, whether_forms(fact, person, value)[rng.random() < at.claims]), "Yes" if true else "No"


def wh_question(rng, fact):
    """A wh question about one told fact and its answer; None for a denied one."""
    if fact.denied:
        return None
    forms, answer = pick(rng, wh_questions(fact))
    return pick(rng, forms), answer


class Raised(NamedTuple):
    """One kind of question that asks for no fact in particular."""
    forms: tuple
    answer: Callable   # (paragraph, k) -> its answer at sentence k
    asked: Callable    # (rng, paragraph, k) -> whether the reader asks it there


RAISED = {
    "attitude": Raised(ATTITUDE, lambda paragraph, k: paragraph.facts[k].mood,
                       lambda rng, paragraph, k: paragraph.facts[k].mood != "neutral" or rng.random() < 0.1),
}


def questions(rng, paragraph, k, at=FULL):
    """The questions a careful reader raises at sentence k: what it says, how it hangs together, what it feels like."""
    fact, asked = paragraph.facts[k], []
    if fact.kind in KINDS:
        asked += [("content", wh_question(rng, fact)) for _ in range(at.wh)]
        asked += [("content", whether_question(rng, paragraph, fact, k, at))] * at.whether
    if fact.pronoun and rng.random() < 0.5:
        asked.append(("structure", (pick(rng, PRONOUN).format(p=fact.pronoun), fact.person)))
    earlier = [f for f in paragraph.facts[:k] if f.kind in KINDS]
    if earlier and at.whether and rng.random() < 0.8:
        back, told = pick(rng, LOOK_BACK), pick(rng, earlier)
        question = wh_question(rng, told) if rng.random() < 0.5 else whether_question(rng, paragraph, told, k, at)
        asked.append(("structure", question and (back + question[0], question[1])))
    if earlier and rng.random() < 0.1:
        asked.append(("structure", (pick(rng, FIRST), earlier[0].person)))
    asked += [(kind, (pick(rng, r.forms), r.answer(paragraph, k))) for kind, r in RAISED.items() if r.asked(rng, paragraph, k)]
    seen, order = set(), []
    for kind, question in sorted(asked, key=lambda _: rng.random()):
        if question and question[0] not in seen:
            seen.add(question[0])
            order.append({"kind": kind, "question": question[0], "answer": question[1]})
    return order


def all_answers(paragraph, k):
    """{question: answer} of everything the scripted reader could ask at sentence k: judges a student's own questions."""
    answers, fact = {}, paragraph.facts[k]
    for told in paragraph.facts[:k + 1]:
        if told.kind not in KINDS:
            continue
        type_ = KINDS[told.kind].type
        pairs = [(p, v) for p in paragraph.people for v in WORDS[type_]]
        for person, value in pairs:
            same = [f for f in paragraph.facts[:k + 1] if (f.kind, f.person, f.value) == (told.kind, person, value)]
            true = bool(same) and not same[0].denied
            answers.update(dict.fromkeys(sum(whether_forms(told, person, value), []), "Yes" if true else "No"))
        for forms, answer in wh_questions(told):
            answers.update(dict.fromkeys(forms, answer))
    looking_back = {back + q: a for back in LOOK_BACK for q, a in answers.items()}
    if fact.pronoun:
        answers.update(dict.fromkeys((form.format(p=fact.pronoun) for form in PRONOUN), fact.person))
    named = [f.person for f in paragraph.facts[:k + 1] if f.person]
    if named:
        answers.update(dict.fromkeys(FIRST, named[0]))
    for raised in RAISED.values():
        answers.update(dict.fromkeys(raised.forms, raised.answer(paragraph, k)))
    return {**looking_back, **answers}


def annotate(rng, paragraph, index=0, at=FULL):
    """The reader's records of one paragraph, one a sentence, as they stand in annotations.jsonl."""
    return [{"paragraph": index, "sentence": k, "text": fact.text, "entities": entities(fact),
             "questions": questions(rng, paragraph, k, at)} for k, fact in enumerate(paragraph.facts)]


# --- the corpus --------------------------------------------------------------------------------------------------------

def level(part, levels=LEVELS):
    """The Level at the place `part` (0..1) of a corpus."""
    return next(entry for entry in levels if part <= entry.until or entry is levels[-1])


def annotated(n, seed, levels=LEVELS):
    """n annotated paragraphs (lists of records) of the training split, easy ones first."""
    rng = random.Random(f"annotated {seed}")
    for i in range(n):
        at = level(i / n, levels)
        yield annotate(rng, draw_paragraph(rng, at), i, at)


def plain(n, seed):
    """n paragraphs (lists of sentences) of plain text of the training split, easy ones first; one in eight speaks of
    reserved names, which no annotation ever explains."""
    rng = random.Random(f"plain {seed}")
    for i in range(n):
        yield draw_paragraph(rng, level(i / n), reserved=rng.random() < 0.125).sentences


def main():
    """Prints three annotated paragraphs; the seed is the first argument."""
    rng = random.Random(sys.argv[1] if len(sys.argv) > 1 else "1")
    for at in (LEVELS[0], FULL, FULL):
        for record in annotate(rng, draw_paragraph(rng, at), at=at):
            print(record["text"])
            print("    " + "; ".join(f"{e['text']}: {e['type']}, {e['about']}" for e in record["entities"]))
            for question in record["questions"]:
                print(f"    {question['kind']:10}{question['question']} {question['answer']}")
        print()


if __name__ == "__main__":
    main()
