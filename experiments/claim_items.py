"""The items of experiments/claims.py: what is asked, apart from how it is worded.

    tasks = load_tasks("data/tasks/wrappers/dev.json", seed=1)      # N items a task, others for each seed

An item is drawn from pairs that `world.held_out` keeps out of all training text, and then put into a wrapper
of a file: dev.json is for developing a method; final.json was written by somebody who has seen no result, and
is used once, at the end. A file has the sets of SETS, two or three wrappers each:

    {"yes_no": [{"text": "{p}\\nReader, {q} Yes or No?", "labels": ["Yes", "No"]}, ...], ...}

Slots: {p} paragraph, {q} question with its "?", {c} clause without a stop ("Anna went to Oslo"), {w} word of
the paragraph, {a} {b} sentences with their stops. The answer follows after a space. Nearly all words occur in
training text, but no stretch of two or more words between slots: tests/test_items.py checks it.
"""

import json
import random
import re
from functools import partial
from pathlib import Path

from data import world
from experiments.blind_tasks import (ALIKE, FOLDER, ONE, PAIR, SHORT, SHORT_PAIR, WHO, about, draw_claim,
                                     entity_type, false_pair, scene, sentiment, text)

WRAPPERS = FOLDER / "wrappers"
N = 360                      # items of a task and seed; divisible by 2 or 3 wrappers times 2, 3 or 5 answers
SETS = {                     # set of wrappers: (slots, number of labels); the labels in this order
    "yes_no": ("pq", 2),     # yes, no
    "nli": ("pc", 3),        # it follows, it is denied, nothing is told
    "paraphrase": ("ab", 2),       # the same, not the same
    "question": ("pq", 0),         # the candidates stand in the text
    "counting": ("p", 3),          # one, two, three: how many people are named
    "entity_type": ("pw", 0),      # the candidates are the types
    "sentiment": ("p", 2),         # good, bad: these very words
    "sentiment_words": ("p", 2)}   # a good and a bad word of world.MOODS, which are never answers in training
# Tasks of which students learn items, for claims 5 and 8.
LEARNT = ("swapped", "nli", "paraphrase", "who", "negation", "entity_new", "sentiment", "sentiment_words")
SHARED, GRAM = 0.5, 8        # an item is near to text that holds this part of its runs of so many words

# Sentences for plain text that hold the words of wrappers and labels; the first three count people.
PLAIN_EXTRA = json.loads((WRAPPERS / "plain_extra.json").read_text(encoding="utf-8"))


def plain(n, seed):
    """n paragraphs (lists of sentences) of world.plain; one in eight ends with a sentence of PLAIN_EXTRA."""
    rng = random.Random(f"extra {seed}")
    for sentences in world.plain(n, seed):
        if rng.random() < 0.125:
            people, words = world.WORDS["person"], re.findall(r"\w+", " ".join(sentences))
            named = [p for p in people if p in words]
            # mostly the right number of people; a sentence that needs more of them gets others
            counted = named and rng.random() < 0.6
            form = PLAIN_EXTRA[len(named) - 1] if counted else world.pick(rng, PLAIN_EXTRA)
            others = sorted((p for p in people if p not in named), key=lambda _: rng.random())
            sentences = sentences + [form.format(*(named + others)[:3])]
        yield sentences


# Makers of items: (rng, turn) -> (slots, candidates where a wrapper has no labels, index of the right one).
# turn counts up within a wrapper: right answers and ways to be false alternate with it.

def yes_no(rng, turn, change="absent"):
    """A question about any fact of a paragraph about two people. A false one has a value that the text does
    not hold or, with "swap", one that is told of the other person."""
    paragraph, fact, (person, value), _ = draw_claim(rng, turn % 2 == 0, change, PAIR)
    question = world.pick(rng, world.KINDS[fact.kind].whether).format(n=person, a=value)
    return {"p": text(paragraph), "q": question}, None, turn % 2


def nli(rng, turn):
    """A claim that follows from a fact, is denied, or of which nothing is told (another person's or an absent
    value). In each case half of the claims and of the facts are denials."""
    relation, denied, either = turn % 3, bool(turn // 3 % 2), bool(turn // 6 % 2)
    claimed = (denied, not denied, either)[relation]
    while True:
        paragraph = world.draw_paragraph(rng, SHORT_PAIR if turn // 12 % 2 else SHORT, split="test")
        facts = [f for f in paragraph.facts if f.kind in world.KINDS and f.denied == denied]
        fact = world.pick(rng, facts) if facts else None
        change = "swap" if turn // 12 % 2 and rng.random() < 0.5 else "absent"
        if relation < 2:
            change = "deny"                                          # which changes neither person nor value
        pair = fact and false_pair(rng, paragraph, fact, change)
        if pair:
            kind, told = world.KINDS[fact.kind], text(paragraph)
            frames = kind.denies if claimed else kind.says
            frame = world.pick(rng, [f for f in frames if f.format(s="", a=pair[1]) not in told])
            return {"p": told, "c": frame.format(s=pair[0], a=pair[1])}, None, relation


def paraphrase(rng, turn):
    """Two sentences about the same fact, or with another person, another value, a denial or none."""
    change = ("deny", "undeny", "stranger", "absent")[turn // 2 % 4]
    _, fact, _, clause = draw_claim(rng, turn % 2 == 0, change, ONE, bare=True)
    return {"a": fact.text, "b": clause + "."}, None, turn % 2


def two_hop(rng, turn):
    """The argument of one fact, asked by that of another: "What did the person who went to Oslo buy?" """
    kinds, k = ("go", "buy", "work", "job"), turn // 2           # of different types, so that values suffice
    kind, second = kinds[k % 4], kinds[(k + 1 + k // 4 % 3) % 4]
    paragraph, main, more = scene(rng, 2, kind, second=second)
    asked = more[turn % 2]
    (known,) = (f for f in main if f.person == asked.person)
    clause = world.pick(rng, world.KINDS[kind].says).format(s="the person who", a=known.value)
    question = world.pick(rng, world.KINDS[second].what).format(n=clause)
    return {"p": text(paragraph), "q": question}, [f.value for f in more], turn % 2


def negation(rng, turn):
    """Of two people one did a thing and the other did not: who did?"""
    kind = WHO[turn // 2 % 5]
    paragraph, main, _ = scene(rng, 2, kind)
    told, other = main[turn % 2], main[1 - turn % 2]
    denial = world.pick(rng, world.KINDS[kind].denies).format(s=other.person, a=told.value) + "."
    sentences = [denial if fact is other else fact.text for fact in paragraph.facts]
    question = world.pick(rng, world.KINDS[kind].who).format(a=told.value)
    return {"p": " ".join(sentences), "q": question}, [f.person for f in main], turn % 2


def counting(rng, turn):
    """How many people are named in three sentences: one, two or three."""
    at = world.Level(sentences=(3, 3), people=1 + turn % 3, denied=0.12)
    return {"p": text(world.draw_paragraph(rng, at, split="test", asides=0.0))}, None, turn % 3


TASKS = {  # name: (set of wrappers, maker of items, number of answers)
    "yes_no": ("yes_no", yes_no, 2), "swapped": ("yes_no", partial(yes_no, change="swap"), 2),
    "nli": ("nli", nli, 3), "paraphrase": ("paraphrase", paraphrase, 2),
    **{name + ending: ("question", about(n, kinds, asked), n)
       for name, kinds, asked in ALIKE
       for ending, n in (("", 2), ("_three", 3))},
    "counting": ("counting", counting, 3), "two_hop": ("question", two_hop, 2),
    "negation": ("question", negation, 2), "entity_type": ("entity_type", entity_type, 5),
    "entity_new": ("entity_type", partial(entity_type, reserved=True), 5),    # words that are never annotated
    "sentiment": ("sentiment", sentiment, 2), "sentiment_words": ("sentiment_words", sentiment, 2)}


def read_wrappers(path):
    """{set: [{"text", "labels"}, ...]} of a file; ValueError names what is not as SETS has it."""
    try:
        sets = json.loads(Path(path).read_bytes())
        found = {name: [(sorted(re.findall(r"\{(.*?)\}", one["text"])), len(one.get("labels", ())))
                        for one in sets[name]] for name in SETS}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: expected JSON with wrappers for {', '.join(SETS)}") from None
    for name, (slots, n) in SETS.items():
        if found[name] not in ([(sorted(slots), n)] * 2, [(sorted(slots), n)] * 3):
            raise ValueError(f"{path}: {name}: expected two or three wrappers; in each the slots "
                             f"{' '.join(slots)} once, {n} labels")
    return sets


def draw_task(name, wrappers, seed, n=N):
    """n items of a task, all prompts different -> {"name", "items": [(prompt, candidates, {index of the right
    one})], "blank": the same without the paragraph, "texts": what is to be read of each}."""
    set_, make, _ = TASKS[name]
    rng, seen = random.Random(f"{name} {seed}"), set()
    task = {"name": name, "items": [], "blank": [], "texts": []}
    while len(seen) < n:
        turn, w = divmod(len(seen), len(wrappers[set_]))
        wrapper, (slots, words, right) = wrappers[set_][w], make(rng, turn)
        words, prompt = wrapper.get("labels") or words, wrapper["text"].format(**slots)
        read = " ".join(slots[slot] for slot in "pab" if slot in slots)
        if prompt in seen or (set_.startswith("sentiment") and set(words) & set(re.findall(r"\w+", read))):
            continue                     # a mood must not be told by its own label
        seen.add(prompt)
        order = sorted(range(len(words)), key=lambda _: rng.random())
        answers = [words[i] for i in order], {order.index(right)}
        task["items"].append((prompt, *answers))
        task["blank"].append((wrapper["text"].format(**slots | {"p" if "p" in slots else "a": ""}), *answers))
        task["texts"].append(read)
    return task


def load_tasks(path, seed, n=N):
    """{name: task of draw_task} in the wrappers of a file; other files and seeds have other items."""
    wrappers = read_wrappers(path)
    return {name: draw_task(name, wrappers, f"{Path(path).stem} {seed}", n) for name in TASKS}


def grams(text):
    """The runs of GRAM words of a text (or all its words), without marks and case: a set of tuples."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i:i + GRAM]) for i in range(max(1, len(words) - GRAM + 1))}


def near_duplicates(tasks, documents):
    """{task: indices of items of whose text at least SHARED of the runs of words occur in documents}."""
    wanted = {name: [grams(text) for text in task["texts"]] for name, task in tasks.items()}
    everything, known = set().union(*(row for rows in wanted.values() for row in rows)), set()
    for document in documents:
        known |= grams(document) & everything
    return {name: [i for i, row in enumerate(rows) if len(row & known) >= SHARED * len(row)]
            for name, rows in wanted.items()}
