"""The blind tests: seven tasks about the built-in world that no student has ever seen, in BIG-bench's JSON.

    python data/tasks/make.py            # writes the files of this folder anew, in a second; after a change of world.py

    yes_no                 a paragraph about two people, a question about any of its facts         Yes, No
    nli                    a premise, a hypothesis in other words: does it follow?                 Yes, No
    entity_type            what a word of the text stands for        person, place, organisation, thing, job
    entity_type_reserved   the same with words that no annotation has ever explained
    sentiment              the mood of a paragraph, told by one of its sentences                   good, bad
    sentiment_words        the same with labels that were never an answer                  wonderful, dreadful ...
    paraphrase             two sentences: do they tell the same?                                   Yes, No

All facts and false claims are of the pairs that `world.held_out` keeps out of the training text, so a paragraph here
cannot have been read before. Right answers are spread evenly within every wrapper, and so are the ways to be wrong:
another person's fact, a value that is not in the text, a denial. As in the annotations, all ways to tell a fact of one
kind count as the same fact, and what is not told is answered No. One seed, named below, makes all of it.
"""
import json
import os
import random
import re
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))         # run as a script, Python looks for modules in this folder alone

from data import world  # noqa: E402

SEED, N = 2025, 400                              # N examples a task: a standard error of at most .025
PAIR, SHORT_PAIR, SHORT, ONE = (world.Level(sentences=sentences, people=people, denied=0.12) for sentences, people
                                in (((2, 4), 2), ((2, 3), 2), ((1, 2), 1), ((1, 1), 1)))

# --- the wrappers ------------------------------------------------------------------------------------------------------
# These are the SEALED test wrappers: written once, by judgement, before any training, and used by nothing but the test.
# Never train on them, never choose among them by a score: a wrapper that was looked at while designing tests nothing.
# Nearly all their words occur in the corpus, their frames do not. Slots: {p} paragraph, {q} question, {c} clause, {w} word,
# {good} {bad} labels, {a} {b} sentences. Eight a task; example i stands in wrapper i % 8.
YES_NO = (
    "{p}\nNow a question for you: {q} Yes or No:",
    "A text: {p} A question on this text: {q} The answer is",
    "{p} As the text has it, {c}. Yes or No?",
    "{q} The text that has the answer: {p} So the answer is",
    "{p} One person told us that {c}. Was that true?",
    "{p} - {q} - Is it Yes or is it No? It is",
    "{p} Is this true or not true: {c}? Reply Yes or No:",
    "{p} He asked you: {q} Tell us the answer, Yes or No:",
)
NLI = (
    "{p} From this it is right to say that {c}. Yes or No?",
    "A text told us this: {p} Would that text say that {c}?",
    "What was told: {p} Now, by what was told, {c}. Yes or No:",
    "{p} Is it told here, or not told, that {c}? Yes or No:",
    "Would a person who knows this text say that {c}? {p} The right answer:",
    "{p} As this text is true, {c}. Is that right?",
    "One person told us: {p} So you say that {c}. Does that follow?",
    "{c} - is that what this text told us? {p} - Yes or No?",
)
ENTITY_TYPE = (
    "{p} Tell us of {w}: person, place, organisation, thing or job? Answer:",
    "{p} What is meant by {w} here is some",
    "Which of person, place, organisation, thing, job is right for {w}? {p} The right answer:",
    "{p} Say of {w} which it is: a place, a job, a thing, a person or an organisation. It is:",
    "{p} Is {w} a job, a thing, a place, an organisation or a person? Well, it is named",
    "Looking for what {w} is in this text: {p} Reply with job, organisation, person, place or thing:",
    "{p}\nA person, a place, an organisation, a thing, a job - which is {w}? Please answer:",
    "{p} She asked what {w} was. He told us:",
)
SENTIMENT = (
    "{p} All in all that is",
    "{p} One person asked: was that good or bad? The answer was",
    "Is it bad or is it good, what this text told us? {p} Well, it is",
    "{p} Does the text feel bad or good to you? Say:",
    "{p} The attitude of this text (good, bad) =",
    "{p}\nNow say what the day was, good or bad:",
    "The text is: {p} The mood in it is",
    "{p} Would this day feel good or bad to you? Reply:",
)
SENTIMENT_WORDS = (
    "{p} As for the day, it was",
    "{p} Is that {good} or {bad}? Well, that is",
    "How was it here, {good} or {bad}? {p} The answer is",
    "{p} One person named that text",
    "{p} So {good} = good, {bad} = bad. That text =",
    "{p} Every person here has a time that is",
    "What feeling is in this text, {good} or {bad}? {p} The feeling is",
    "{p} What was told here has a mood that is",
)
PARAPHRASE = (
    "{a} {b} Is it one thing that is told here? Yes or No:",
    "You told us: {a} We told you: {b} Is that the same thing?",
    "{a} = {b} Is that right, Yes or No?",
    "The text was: {a} One person told it as: {b} Was it told right?",
    "What was meant: {a} What was told: {b} Is it the same, Yes or No?",
    "She told us this: {a} He told us this: {b} Is it as she told it?",
    "{a} That is what was meant by this: {b} Yes or No?",
    "It is told: {a} It is asked: {b} Would you answer with Yes or with No?",
)

# --- claims ------------------------------------------------------------------------------------------------------------

def changed(rng, paragraph, fact, change):
    """(person, value) of the false claim, or None where this paragraph does not offer that change."""
    if change in ("deny", "undeny"):
        return fact.person, fact.value
    if change == "stranger":
        people = [p for p in world.WORDS["person"] if world.held_out(p, fact.value) and p not in paragraph.people]
        return world.pick(rng, people), fact.value
    person, value = world.false_claim(rng, paragraph, fact, float(change == "swap"))
    told = any(f.value == value and not f.denied for f in paragraph.facts)
    # Nobody can say whether a glad person was happy: a false feeling must differ in mood from the one that is told.
    alike = fact.kind == "feel" and any(f.kind == "feel" and f.person == person and
                                        (f.value in world.GOOD) == (value in world.GOOD) for f in paragraph.facts)
    return (person, value) if told == (change == "swap") and not alike else None


def draw_claim(rng, true, change, at, bare=False):
    """Draw paragraphs until a fact of one can be changed in this way -> (paragraph, fact, (person, value), clause).

    change  what makes a claim false: "deny" a told fact, "undeny" a denied one, "swap" with a fact of the other person,
            an "absent" value, a "stranger" for the person
    true    leave the fact as it is; since all else is drawn alike, neither text nor claim gives the answer away alone
    bare    only facts that name their person, and no day
    The clause is in another frame than the fact's own sentence."""
    while True:
        paragraph = world.draw_paragraph(rng, at, split="test", asides=0.0 if bare else 0.2)
        facts = [f for f in paragraph.facts if f.kind in world.KINDS and f.denied == (change == "undeny")
                 and not (bare and (f.pronoun or f.day))]
        fact = world.pick(rng, facts) if facts else None
        false = fact and changed(rng, paragraph, fact, change)
        if false:
            kind, pair = world.KINDS[fact.kind], (fact.person, fact.value) if true else false
            frames = kind.denies if change == ("undeny" if true else "deny") else kind.says
            others = [frame for frame in frames if frame.format(s="", a=fact.value) not in fact.text]
            return paragraph, fact, pair, world.pick(rng, others).format(s=pair[0], a=pair[1])


# --- the tasks: (rng, wrapper, its number w, turn 0..49) -> (input, candidates, the right one) ---------------------------

YN = ("No", "Yes")

def text(paragraph):
    return " ".join(paragraph.sentences)


def yes_no(rng, wrapper, w, turn):
    change = ("swap", "absent")[(turn // 2 + w) % 2]
    paragraph, fact, (person, value), clause = draw_claim(rng, turn % 2, change, PAIR)
    question = world.pick(rng, world.KINDS[fact.kind].whether).format(n=person, a=value)
    return wrapper.format(p=text(paragraph), q=question, c=clause), YN, YN[turn % 2]


def nli(rng, wrapper, w, turn):
    change = ("deny", "undeny", "swap", "absent", ("swap", "absent")[w % 2])[turn // 2 % 5]
    at = SHORT_PAIR if change == "swap" or rng.random() < 0.4 else SHORT
    paragraph, _, _, clause = draw_claim(rng, turn % 2, change, at)
    return wrapper.format(p=text(paragraph), c=clause), YN, YN[turn % 2]


def paraphrase(rng, wrapper, w, turn):
    change = ("deny", "undeny", "stranger", "absent", ("stranger", "absent")[w % 2])[turn // 2 % 5]
    _, fact, _, clause = draw_claim(rng, turn % 2, change, ONE, bare=True)
    return wrapper.format(a=fact.text, b=clause + "."), YN, YN[turn % 2]


def entity_type(rng, wrapper, w, turn, reserved=False):
    """With reserved, a sentence of reserved words stands beside one of the test half, which makes the text new."""
    types = tuple(world.RESERVED)
    while True:
        paragraph = world.draw_paragraph(rng, ONE if reserved else SHORT, split="test", asides=0.0)
        told = paragraph.facts
        if reserved:
            told = world.draw_paragraph(rng, ONE, reserved=True, asides=0.0).facts
            paragraph.facts = told + paragraph.facts if rng.random() < 0.5 else paragraph.facts + told
        words = [e["text"] for fact in told for e in world.entities(fact) if e["type"] == types[turn % 5]]
        if words:
            return wrapper.format(p=text(paragraph), w=world.pick(rng, words)), types, types[turn % 5]


def draw_mood(rng, mood, kind, labels):
    """A paragraph with one moody sentence, of this kind ("mood" or "feel"). It uses neither label, and no saying,
    because some sayings hold the words good and bad."""
    while True:
        paragraph = world.draw_paragraph(rng, PAIR, split="test")
        moods = [(f.mood, f.kind) for f in paragraph.facts if f.mood != "neutral"]
        sayings = any(f.kind == "saying" for f in paragraph.facts)
        if moods == [(mood, kind)] and not sayings and not set(labels) & set(re.findall(r"\w+", text(paragraph))):
            return paragraph


def sentiment(rng, wrapper, w, turn, labels=("good", "bad")):
    paragraph = draw_mood(rng, ("good", "bad")[turn % 2], ("mood", "feel")[(turn // 2 + w) % 2], labels)
    return wrapper.format(p=text(paragraph), good=labels[0], bad=labels[1]), labels, labels[turn % 2]


def sentiment_words(rng, wrapper, w, turn):
    """Every wrapper has its own pair of labels, mood words that are never the answer of a question."""
    good, bad = world.MOODS["good"], world.MOODS["bad"]
    return sentiment(rng, wrapper, w, turn, (good[w % len(good)], bad[(w + w // len(good)) % len(bad)]))


TASKS = {      # name: (wrappers, function, keywords, description)
    "yes_no": (YES_NO, yes_no, ["reading comprehension"], "Answer a yes/no question about one fact of a paragraph."),
    "nli": (NLI, nli, ["logical reasoning"], "Say whether a statement follows from a paragraph."),
    "entity_type": (ENTITY_TYPE, entity_type, ["word sense"], "Say what kind of thing a word of a text stands for."),
    "entity_type_reserved": (ENTITY_TYPE, partial(entity_type, reserved=True), ["word sense"],
                             "Say what kind of thing a word stands for that no annotation has explained."),
    "sentiment": (SENTIMENT, sentiment, ["emotional understanding"], "Say whether the mood of a paragraph is good or bad."),
    "sentiment_words": (SENTIMENT_WORDS, sentiment_words, ["emotional understanding"],
                        "Say which of two ordinary words fits the mood of a paragraph."),
    "paraphrase": (PARAPHRASE, paraphrase, ["paraphrase"], "Say whether two sentences tell the same fact."),
}

# --- the files ---------------------------------------------------------------------------------------------------------

def examples(name):
    """The N examples of a task, no two inputs alike, candidates in shuffled order."""
    wrappers, make, *_ = TASKS[name]
    rng, seen = random.Random(f"blind {SEED} {name}"), set()
    while len(seen) < N:
        turn, w = divmod(len(seen), len(wrappers))
        prompt, candidates, right = make(rng, wrappers[w], w, turn)
        if prompt not in seen:
            seen.add(prompt)
            order = sorted(candidates, key=lambda _: rng.random())
            yield {"input": prompt, "target_scores": {word: int(word == right) for word in order}}


def task_file(name):
    """The text of NAME.json: valid JSON, one example a line."""
    *_, keywords, description = TASKS[name]
    head = {"name": name, "description": description, "keywords": keywords, "metrics": ["multiple_choice_grade"],
            "preferred_score": "multiple_choice_grade"}
    lines = (json.dumps(example, ensure_ascii=False, separators=(",", ":")) for example in examples(name))
    return json.dumps(head)[:-1] + ', "examples": [\n' + ",\n".join(lines) + "\n]}\n"


def main():
    """Writes every task file beside this one, and prints what is in it."""
    print(f"{'task':22}{'n':>6}{'chance':>8}{'KB':>6}")
    for name in TASKS:
        content = task_file(name)
        path = HERE / f"{name}.json"
        with open(f"{path}.tmp", "w", encoding="utf-8", newline="\n") as file:
            file.write(content)
        os.replace(f"{path}.tmp", path)
        scores = [example["target_scores"].values() for example in json.loads(content)["examples"]]
        chance = sum(sum(row) / len(row) for row in scores) / len(scores)
        print(f"{name:22}{len(scores):6}{chance:8.2f}{len(content) / 1000:6.0f}")


if __name__ == "__main__":
    main()
