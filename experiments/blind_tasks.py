"""Writes the blind tests: eleven tasks about the built-in world, which no student trains on.

    python -m experiments.blind_tasks        # writes data/tasks/*.json; to do after a change of data/world.py

All facts and false claims use pairs that `world.held_out` keeps out of the training text. Within every
wrapper right answers are balanced, and so are the ways in which a claim is false. As in the annotations, all
ways to tell a fact of one kind are the same fact. What is not told is answered No.
"""

import json
import random
import re
from functools import partial
from pathlib import Path

from data import world
from data.cli import run_command
from data.files import write_text

FOLDER = Path(__file__).resolve().parents[1] / "data" / "tasks"
SEED, N = 2025, 400                              # N examples a task: a standard error of at most .025
PAIR, SHORT_PAIR, SHORT, ONE = (
    world.Level(sentences=sentences, people=people, denied=0.12)
    for sentences, people in (((2, 4), 2), ((2, 3), 2), ((1, 2), 1), ((1, 1), 1)))

# Texts with slots: {p} paragraph, {q} question, {c} clause, {w} word, {good} {bad} labels, {a} {b} sentences.
# They were written before any training: never train on them, never choose among them by a score.
WRAPPERS = json.loads((FOLDER / "wrappers" / "blind.json").read_text(encoding="utf-8"))


def text(paragraph):
    """A world.Paragraph as running text."""
    return " ".join(paragraph.sentences)


def false_pair(rng, paragraph, fact, change):
    """(person, value) of the false claim, or None where this paragraph does not offer that change."""
    if change in ("deny", "undeny"):
        return fact.person, fact.value
    if change == "stranger":
        others = [p for p in world.WORDS["person"] if p not in paragraph.people]
        return world.pick(rng, [p for p in others if world.held_out(p, fact.value)]), fact.value
    person, value = world.false_claim(rng, paragraph, fact, float(change == "swap"))
    if any(f.value == value and not f.denied for f in paragraph.facts) != (change == "swap"):
        return None
    # A glad person may be happy too: a false feeling must differ in mood from the one that is told.
    feelings = [f.value in world.GOOD for f in paragraph.facts if f.kind == "feel" and f.person == person]
    return None if fact.kind == "feel" and (value in world.GOOD) in feelings else (person, value)


def draw_claim(rng, true, change, at, bare=False):
    """A claim about a fact of a paragraph of the Level `at` -> (paragraph, fact, (person, value), clause).

    change: what makes a claim false: "deny" a told fact, "undeny" a denied one, "swap" with a fact of the
    other person, an "absent" value, a "stranger" for the person. true: leave the fact as it is; all else is
    drawn alike, so neither text nor claim alone tells the answer. The clause is worded unlike the fact's own
    sentence. bare: only facts that name their person, without a day."""
    while True:
        paragraph = world.draw_paragraph(rng, at, split="test", asides=0.0 if bare else 0.2)
        facts = [f for f in paragraph.facts if f.kind in world.KINDS and f.denied == (change == "undeny")
                 and not (bare and (f.pronoun or f.day))]
        fact = world.pick(rng, facts) if facts else None
        false = fact and false_pair(rng, paragraph, fact, change)
        if false:
            kind, pair = world.KINDS[fact.kind], (fact.person, fact.value) if true else false
            frames = kind.denies if change == ("undeny" if true else "deny") else kind.says
            others = [frame for frame in frames if frame.format(s="", a=fact.value) not in fact.text]
            return paragraph, fact, pair, world.pick(rng, others).format(s=pair[0], a=pair[1])


# --- the tasks: (rng, turn, number w of the wrapper) -> (slots, candidates, index of the right one) ---------
# turn counts up within a wrapper: right answers and ways to be false alternate with it.

YN, TYPES = ("No", "Yes"), tuple(world.RESERVED)
WHO = ("go", "buy", "live", "work", "job")      # kinds of facts
# People who did alike: (task, kinds of facts, what is asked).
ALIKE = (("who", WHO, "who"), ("what", ("buy", "job"), "what"),
         ("where", ("go", "live"), "what"), ("when", ("go", "buy"), "dated"))


def yes_no(rng, turn, w):
    change = ("swap", "absent")[(turn // 2 + w) % 2]
    paragraph, fact, (person, value), clause = draw_claim(rng, turn % 2, change, PAIR)
    question = world.pick(rng, world.KINDS[fact.kind].whether).format(n=person, a=value)
    return {"p": text(paragraph), "q": question, "c": clause}, YN, turn % 2


def nli(rng, turn, w):
    change = ("deny", "undeny", "swap", "absent", ("swap", "absent")[w % 2])[turn // 2 % 5]
    at = SHORT_PAIR if change == "swap" or rng.random() < 0.4 else SHORT
    paragraph, _, _, clause = draw_claim(rng, turn % 2, change, at)
    return {"p": text(paragraph), "c": clause}, YN, turn % 2


def paraphrase(rng, turn, w):
    change = ("deny", "undeny", "stranger", "absent", ("stranger", "absent")[w % 2])[turn // 2 % 5]
    _, fact, _, clause = draw_claim(rng, turn % 2, change, ONE, bare=True)
    return {"a": fact.text, "b": clause + "."}, YN, turn % 2


def entity_type(rng, turn, w=0, reserved=False):
    """With reserved, the word's sentence stands beside one of the test half, which makes the text new."""
    while True:
        facts = told = world.draw_paragraph(rng, ONE if reserved else SHORT, split="test", asides=0.0).facts
        if reserved:
            told = world.draw_paragraph(rng, ONE, words=world.RARE, asides=0.0).facts
            facts = told + facts if rng.random() < 0.5 else facts + told
        words = [e["text"] for fact in told for e in world.entities(fact) if e["type"] == TYPES[turn % 5]]
        if words:
            return {"p": " ".join(fact.text for fact in facts), "w": world.pick(rng, words)}, TYPES, turn % 5


def sentiment(rng, turn, w=0, labels=("good", "bad")):
    """One sentence tells the mood. The text holds neither label, and no saying: some say "good" or "bad"."""
    wanted = [(("good", "bad")[turn % 2], ("mood", "feel")[(turn // 2 + w) % 2])]
    while True:
        paragraph = world.draw_paragraph(rng, PAIR, split="test")
        moods = [(f.mood, f.kind) for f in paragraph.facts if f.mood != "neutral"]
        told = set(re.findall(r"\w+", text(paragraph)))
        if moods == wanted and all(f.kind != "saying" for f in paragraph.facts) and not set(labels) & told:
            return {"p": text(paragraph), "good": labels[0], "bad": labels[1]}, labels, turn % 2


def sentiment_words(rng, turn, w):
    """Every wrapper has its own pair of labels: words of mood that are never the answer of a question."""
    good, bad = world.MOODS["good"], world.MOODS["bad"]
    return sentiment(rng, turn, w, (good[w % len(good)], bad[(w + w // len(good)) % len(bad)]))


def scene(rng, n, kind, dated=False, second=None):
    """n people who did the same kind of thing -> (Paragraph, its n facts of this kind as told, the facts of
    kind `second` of the same people). All pairs of its people and values are held out."""
    while True:
        paragraph = world.Paragraph(split="test", people=world.draw_people(rng, n, "test"))
        if len({world.INDEX[p] % 4 for p in paragraph.people}) > 1:
            continue
        for one in (kind, second) if second else (kind,):
            for person in paragraph.people:
                fact = world.draw_fact(rng, paragraph, person, one)
                while dated and (not fact.day or fact.day in {f.day for f in paragraph.facts}):
                    fact = world.draw_fact(rng, paragraph, person, one)
                paragraph.facts.append(fact)                    # its value is not drawn again
        extra = [world.draw_aside(rng)] if rng.random() < 0.3 else []
        paragraph.facts = sorted(paragraph.facts + extra, key=lambda _: rng.random())
        return paragraph, *([f for f in paragraph.facts if f.kind == one] for one in (kind, second))


def about(n, kinds, asked):
    """The maker of items about n people; asked: "who", "what" (the argument) or "dated" (the day)."""
    def item(rng, turn, w=0):
        kind = kinds[turn // n % len(kinds)]
        paragraph, main, _ = scene(rng, n, kind, asked == "dated")
        fact = main[turn % n]
        question = world.pick(rng, getattr(world.KINDS[kind], asked)).format(n=fact.person, a=fact.value)
        words = [{"who": f.person, "what": f.value, "dated": f.day}[asked] for f in main]
        return {"p": text(paragraph), "q": question}, words, turn % n
    return item


TASKS = {name: (WRAPPERS[name.removesuffix("_reserved")], *rest) for name, *rest in (
    # name: (wrappers, function, keyword, description)
    ("yes_no", yes_no, "reading comprehension", "Answer a yes/no question about one fact of a paragraph."),
    ("nli", nli, "logical reasoning", "Say whether a statement follows from a paragraph."),
    ("entity_type", entity_type, "word sense", "Say what kind of thing a word of a text stands for."),
    ("entity_type_reserved", partial(entity_type, reserved=True), "word sense",
     "Say what kind of thing a word stands for that no annotation has explained."),
    ("sentiment", sentiment, "emotional understanding",
     "Say whether the mood of a paragraph is good or bad."),
    ("sentiment_words", sentiment_words, "emotional understanding",
     "Say which of two ordinary words fits the mood of a paragraph."),
    ("paraphrase", paraphrase, "paraphrase", "Say whether two sentences tell the same fact."))}
TASKS |= {name: (WRAPPERS["alike"], about(2, kinds, asked), "reading comprehension",
                 f"Two people did the same kind of thing: say {name}.") for name, kinds, asked in ALIKE}


def task_file(name):
    """The text of NAME.json: N examples, one a line, no two inputs alike, candidates in shuffled order."""
    wrappers, make, keyword, description = TASKS[name]
    rng, lines = random.Random(f"blind {SEED} {name}"), {}
    while len(lines) < N:
        turn, w = divmod(len(lines), len(wrappers))
        slots, candidates, right = make(rng, turn, w)
        prompt = wrappers[w].format(**slots)
        if prompt not in lines:
            order = sorted(candidates, key=lambda _: rng.random())
            scores = {word: int(word == candidates[right]) for word in order}
            lines[prompt] = json.dumps({"input": prompt, "target_scores": scores}, separators=(",", ":"))
    head = {"name": name, "description": description, "keywords": [keyword],
            "metrics": ["multiple_choice_grade"], "preferred_score": "multiple_choice_grade"}
    return json.dumps(head)[:-1] + ', "examples": [\n' + ",\n".join(lines.values()) + "\n]}\n"


def main():
    """Writes every task file into data/tasks."""
    for name in TASKS:
        write_text(FOLDER / f"{name}.json", task_file(name))
        print(f"{FOLDER / name}.json: {N} examples")


if __name__ == "__main__":
    run_command(main)
