"""Items for the claims of Basic Reading Distillation: what is asked, apart from how it is worded.

    tasks = load_tasks("data/tasks/wrappers/dev.json", seed=1)             # N items a task, others for each seed
    tasks["who"]["items"][0]                # (prompt, candidates, right) as data/task_files.py has them
    tasks["who"]["blank"][0]                # the same prompt without its paragraph: what can be told without reading
    python data/tasks/items.py data/tasks/wrappers/dev.json                # check a file of wrappers, and show its labels

An item is drawn from pairs that `world.held_out` keeps from all training text, and then put into a wrapper. Wrappers stand
in files of their own, so that some can be used while a method is made (dev.json), and others (final.json) are
written by somebody who has seen no result, and are met once, at the end.

A file of wrappers is one JSON object with these eight sets, each a list of two or three wrappers, all of them different:

    set               slots     labels, in this order                          tasks that use it
    yes_no            {p} {q}   yes, no                                        yes_no, swapped
    nli               {p} {c}   it follows, it is denied, nothing is told      nli
    paraphrase        {a} {b}   the same, not the same                         paraphrase
    question          {p} {q}   none: the candidates stand in the text         who what where when, ..._three, two_hop, negation
    counting          {p}       one, two, three                                counting (how many people are named)
    entity_type       {p} {w}   none: person place organisation thing job      entity_type, entity_new
    sentiment         {p}       good, bad (these very words)                   sentiment
    sentiment_words   {p}       a good and a bad word of world.MOODS           sentiment_words (words that never are answers)

    {"yes_no": [{"text": "{p}\\nReader, {q} Yes or No?", "labels": ["Yes", "No"]}, ...], "question": [{"text": "..."}, ...], ...}

    {p} a paragraph   {q} a question with its "?"   {c} a clause without a stop: "Anna went to Oslo"   {w} a word or name of {p}
    {a} {b} sentences with their stops

Each slot stands once. The answer follows the text directly, with a space between, so a text ends in a word or a mark. Labels
are what is scored; a text may name them. Words: nearly all (97 %) must occur in training text, spelt alike (PLAIN_EXTRA
gives people, one, two, three, unknown, maybe), but no stretch of two or more words between slots, and no whole wrapper, may
occur there: tests/test_items.py asserts both for every file in the folder.
"""

import json
import random
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if not __package__:  # python data/tasks/items.py: the modules stand two folders up
    sys.path.insert(0, str(HERE.parents[1]))

from data import world  # noqa: E402
from data.cli import printable  # noqa: E402
from data.tasks import make  # noqa: E402

N = 360                              # items of a task and seed: divisible by 2 or 3 wrappers times 2, 3, 4 or 5 answers
SETS = {  # set: (slots, number of labels)
    "yes_no": ("pq", 2), "nli": ("pc", 3), "paraphrase": ("ab", 2), "question": ("pq", 0), "counting": ("p", 3),
    "entity_type": ("pw", 0), "sentiment": ("p", 2), "sentiment_words": ("p", 2)}
SHARED, GRAM = 0.5, 8                # an item is near to training text that holds this part of its runs of so many words

# Plain text beside the world's own, for all students alike: it gives words to tasks that the world has none for, and to those
# who write wrappers. The first three tell how many people are named.
PLAIN_EXTRA = (
    "{0} is one person.", "{0} and {1} are two people.", "{0}, {1} and {2} are three people.", "It is unknown who.",
    "It is maybe so, maybe not.", "Some of it is unknown.", "All of it is known.", "A reader reads all of it and says what it means.",
    "From there they both told it that way.", "Do not claim what nobody knows.", "For me every word counts.", "Life sounds strange again.",
    "Be careful and choose well.", "His story has an end, her story has none.", "One statement follows from another.",
    "How many are there, few or many.", "Here people asked it all over again.", "Both sentences have the same meaning.",
    "Given a short passage, readers think first.", "Someone wrote about two names and a type of word.")


def plain(n, seed):
    """world.plain, where one paragraph in eight ends with a sentence of PLAIN_EXTRA about its people (or others, where
    it has too few). Lists of sentences."""
    rng = random.Random(f"extra {seed}")
    for sentences in world.plain(n, seed):
        if rng.random() < 0.125:
            named = [p for p in world.WORDS["person"] if re.search(rf"\b{p}\b", " ".join(sentences))]
            # mostly the number that is right here; others come in where a sentence needs them
            form = PLAIN_EXTRA[len(named) - 1] if named and rng.random() < 0.6 else world.pick(rng, PLAIN_EXTRA)
            others = sorted((p for p in world.WORDS["person"] if p not in named), key=lambda _: rng.random())
            sentences = sentences + [form.format(*(named + others)[:3])]
        yield sentences


# --- items: (rng, turn) -> (slots, candidates or None for the labels of the wrapper, index of the right one) ---------------
# turn counts up within a wrapper, so that right answers and ways to be wrong are spread evenly in each.

def yes_no(rng, turn, change="absent"):
    """A question about any fact of a paragraph about two people; a false one has a value that is not in the text, or
    (swapped) one that is told of the other person, so that it does not help to see that the words are there."""
    paragraph, fact, (person, value), _ = make.draw_claim(rng, turn % 2 == 0, change, make.PAIR)
    question = world.pick(rng, world.KINDS[fact.kind].whether).format(n=person, a=value)
    return {"p": make.text(paragraph), "q": question}, None, turn % 2


def swapped(rng, turn):
    return yes_no(rng, turn, "swap")


def nli(rng, turn):
    """A claim about a told or a denied fact: it follows (the same in other words), it is denied, or nothing is told (another
    person's or an absent value). In each of the three, half of the claims and half of the facts have a "not"."""
    relation, denied, either = turn % 3, bool(turn // 3 % 2), bool(turn // 6 % 2)
    claimed = (denied, not denied, either)[relation]
    while True:
        paragraph = world.draw_paragraph(rng, make.SHORT_PAIR if turn // 12 % 2 else make.SHORT, split="test")
        facts = [f for f in paragraph.facts if f.kind in world.KINDS and f.denied == denied]
        fact = world.pick(rng, facts) if facts else None
        change = ("absent", "swap")[turn // 12 % 2 and rng.random() < 0.5]
        pair = fact and ((fact.person, fact.value) if relation < 2 else make.changed(rng, paragraph, fact, change))
        if pair:
            kind = world.KINDS[fact.kind]
            frames = [f for f in (kind.denies if claimed else kind.says) if f.format(s="", a=pair[1]) not in make.text(paragraph)]
            return {"p": make.text(paragraph), "c": world.pick(rng, frames).format(s=pair[0], a=pair[1])}, None, relation


def paraphrase(rng, turn):
    """Two sentences about the same fact, or with another person, another value, a denial or none."""
    change = ("deny", "undeny", "stranger", "absent")[turn // 2 % 4]
    _, fact, _, clause = make.draw_claim(rng, turn % 2 == 0, change, make.ONE, bare=True)
    return {"a": fact.text, "b": clause + "."}, None, turn % 2


def scene(rng, n, kind, dated=False, second=None):
    """(Paragraph, its n facts of this kind in the order told, the facts of kind `second` of the same people): n people who did
    the same kind of thing, and at times a sentence about something else. Every person here may have every value here, as far as
    pairs held out go: who has which is told by the text alone."""
    while True:
        paragraph = world.Paragraph(split="test", people=world.draw_people(rng, n, "test", False))
        if len({world.INDEX[p] % 4 for p in paragraph.people}) > 1:
            continue
        for kind_ in (kind, second):
            for person in paragraph.people if kind_ else ():
                fact = world.draw_fact(rng, paragraph, person, kind_, False, False, 0.0)
                while dated and (not fact.day or fact.day in {f.day for f in paragraph.facts}):
                    fact = world.draw_fact(rng, paragraph, person, kind_, False, False, 0.0)
                paragraph.facts.append(fact)                    # its value is not drawn again
        extra = [world.draw_aside(rng)] if rng.random() < 0.3 else []
        paragraph.facts = sorted(paragraph.facts + extra, key=lambda _: rng.random())
        return paragraph, *([f for f in paragraph.facts if f.kind == kind_] for kind_ in (kind, second))


def about(n, kinds, asked):
    """The maker of items about n people; asked: "who", "what" (the argument) or "dated" (the day)."""
    def item(rng, turn):
        kind = kinds[turn // n % len(kinds)]
        paragraph, main, _ = scene(rng, n, kind, asked == "dated")
        fact = main[turn % n]
        question = world.pick(rng, getattr(world.KINDS[kind], asked)).format(n=fact.person, a=fact.value)
        words = [{"who": f.person, "what": f.value, "dated": f.day}[asked] for f in main]
        return {"p": make.text(paragraph), "q": question}, words, turn % n
    return item


def two_hop(rng, turn):
    """The argument of one fact, asked by the argument of another: "What did the person who went to Oslo buy?" """
    kinds, k = ("go", "buy", "work", "job"), turn // 2         # of different types, or a type's few values would not do for both
    kind, second = kinds[k % 4], kinds[(k + 1 + k // 4 % 3) % 4]
    paragraph, main, more = scene(rng, 2, kind, second=second)
    asked = more[turn % 2]
    (known,) = (f for f in main if f.person == asked.person)
    clause = world.pick(rng, world.KINDS[kind].says).format(s="the person who", a=known.value)
    question = world.pick(rng, world.KINDS[second].what).format(n=clause)
    return {"p": make.text(paragraph), "q": question}, [f.value for f in more], turn % 2


def negation(rng, turn):
    """Of two people one did a thing and the other did not: who did?"""
    kind = ("go", "buy", "live", "work", "job")[turn // 2 % 5]
    paragraph, main, _ = scene(rng, 2, kind)
    told, other = main[turn % 2], main[1 - turn % 2]
    denial = world.pick(rng, world.KINDS[kind].denies).format(s=other.person, a=told.value) + "."
    text = " ".join(denial if fact is other else fact.text for fact in paragraph.facts)
    question = world.pick(rng, world.KINDS[kind].who).format(a=told.value)
    return {"p": text, "q": question}, [f.person for f in main], turn % 2


def counting(rng, turn):
    """How many people are named in three sentences: one, two or three."""
    at = world.Level(sentences=(3, 3), people=1 + turn % 3, denied=0.12)
    return {"p": make.text(world.draw_paragraph(rng, at, split="test", asides=0.0))}, None, turn % 3


def entity_type(rng, turn, reserved=False):
    """What a word of the text stands for. With reserved, a word that no annotation has ever explained: its sentence stands
    beside one with a pair that is held out, which makes the text new."""
    types = list(world.RESERVED)
    while True:
        facts = told = world.draw_paragraph(rng, make.ONE if reserved else make.SHORT, split="test", asides=0.0).facts
        if reserved:
            told = world.draw_paragraph(rng, make.ONE, reserved=True, asides=0.0).facts
            facts = told + facts if rng.random() < 0.5 else facts + told
        words = [e["text"] for fact in told for e in world.entities(fact) if e["type"] == types[turn % 5]]
        if words:
            return {"p": " ".join(fact.text for fact in facts), "w": world.pick(rng, words)}, types, turn % 5


def entity_new(rng, turn):
    return entity_type(rng, turn, reserved=True)


def sentiment(rng, turn):
    """The mood of a paragraph, told by one of its sentences."""
    mood, kind = ("good", "bad")[turn % 2], ("mood", "feel")[turn // 2 % 2]
    paragraph = make.draw_mood(rng, mood, kind, ("good", "bad"))
    return {"p": make.text(paragraph)}, None, turn % 2


DATED, PLACES, THINGS, WHO = ("go", "buy"), ("go", "live"), ("buy", "job"), ("go", "buy", "live", "work", "job")
TASKS = {  # name: (set of wrappers, maker of items, number of answers)
    "yes_no": ("yes_no", yes_no, 2), "swapped": ("yes_no", swapped, 2), "nli": ("nli", nli, 3),
    "paraphrase": ("paraphrase", paraphrase, 2),
    "who": ("question", about(2, WHO, "who"), 2), "who_three": ("question", about(3, WHO, "who"), 3),
    "what": ("question", about(2, THINGS, "what"), 2), "what_three": ("question", about(3, THINGS, "what"), 3),
    "where": ("question", about(2, PLACES, "what"), 2), "where_three": ("question", about(3, PLACES, "what"), 3),
    "when": ("question", about(2, DATED, "dated"), 2), "when_three": ("question", about(3, DATED, "dated"), 3),
    "counting": ("counting", counting, 3), "two_hop": ("question", two_hop, 2), "negation": ("question", negation, 2),
    "entity_type": ("entity_type", entity_type, 5), "entity_new": ("entity_type", entity_new, 5),
    "sentiment": ("sentiment", sentiment, 2), "sentiment_words": ("sentiment_words", sentiment, 2),
}


# --- wrappers, and items in them -----------------------------------------------------------------------------------------

def read_wrappers(path):
    """{set: [{"text", "labels"}, ...]} of a file; ValueError names what is not as the table above has it."""
    path = Path(path)
    with open(path, encoding="utf-8") as file:
        try:
            sets = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(sets, dict) or sorted(sets) != sorted(SETS):
        raise ValueError(f"{path}: expected one object with the sets {', '.join(SETS)}")
    for name, wrappers in sets.items():
        slots, labels = SETS[name]
        if not isinstance(wrappers, list) or not 2 <= len(wrappers) <= 3:
            raise ValueError(f"{path}: {name}: expected a list of two or three wrappers")
        for w, wrapper in enumerate(wrappers):
            where, text = f"{path}: {name}, wrapper {w}", wrapper.get("text", "") if isinstance(wrapper, dict) else ""
            if sorted(re.findall(r"\{(.*?)\}", text)) != sorted(slots) or text != text.rstrip() or text.count("{") != len(slots):
                raise ValueError(f"{where}: expected a text with each of {' '.join(f'{{{s}}}' for s in slots)} once, no space at its end")
            found = wrapper.get("labels", [])
            if len(found) != labels or len(set(found)) != labels or not all(isinstance(x, str) and x.strip() == x != "" for x in found):
                raise ValueError(f"{where}: labels {found}, expected {labels} different words")
        if len({wrapper["text"] for wrapper in wrappers}) < len(wrappers):
            raise ValueError(f"{path}: {name}: two wrappers have the same text")
    for wrapper in sets["sentiment"] + sets["sentiment_words"]:
        good, bad = wrapper["labels"]
        if (good, bad) != ("good", "bad") and not (good in world.MOODS["good"] and bad in world.MOODS["bad"]):
            raise ValueError(f"{path}: labels {good}, {bad}; expected good, bad, or words of world.MOODS for sentiment_words")
    return sets


def draw_task(name, wrappers, seed, n=N):
    """n items of one task -> {"name", "items", "blank", "texts"}: items (prompt, candidates, {index of the right one}), the
    same without the paragraph, and what is to be read of each, as one text. No two items have the same prompt."""
    set_, item, answers = TASKS[name]
    rng, seen, task = random.Random(f"{name} {seed}"), set(), {"name": name, "items": [], "blank": [], "texts": []}
    while len(seen) < n:
        turn, w = divmod(len(seen), len(wrappers[set_]))
        wrapper = wrappers[set_][w]
        slots, words, right = item(rng, turn)
        words, prompt = words or wrapper["labels"], wrapper["text"].format(**slots)
        read = " ".join(slots[slot] for slot in "pab" if slot in slots)
        if prompt in seen or (set_.startswith("sentiment") and set(words) & set(re.findall(r"\w+", read))):
            continue                     # a mood must not be told by its own label
        seen.add(prompt)
        order = sorted(range(len(words)), key=lambda _: rng.random())
        candidates, best = [words[i] for i in order], {order.index(right)}
        task["items"].append((prompt, candidates, best))
        task["blank"].append((wrapper["text"].format(**slots | {"p" if "p" in slots else "a": ""}), candidates, best))
        task["texts"].append(read)
    return task


def load_tasks(path, seed, n=N):
    """{name: task of draw_task} in the wrappers of a file; other files and seeds have other items."""
    wrappers = read_wrappers(path)
    return {name: draw_task(name, wrappers, f"{Path(path).stem} {seed}", n) for name in TASKS}


# --- near-duplicates ------------------------------------------------------------------------------------------------------

def grams(text):
    """The runs of GRAM words of a text (of all its words, where it has fewer), as a set of tuples; marks and case do not count."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i:i + GRAM]) for i in range(max(1, len(words) - GRAM + 1))}


def near_duplicates(tasks, documents):
    """{task: indices of items whose text has at least SHARED of its runs of GRAM words somewhere in documents (str)}."""
    wanted = {name: [grams(text) for text in task["texts"]] for name, task in tasks.items()}
    all_wanted, known = {gram for rows in wanted.values() for row in rows for gram in row}, set()
    for document in documents:
        known |= grams(document) & all_wanted
    return {name: [i for i, row in enumerate(rows) if len(row & known) >= SHARED * len(row)] for name, rows in wanted.items()}


def main():
    """Checks the file given and prints labels and one item a task."""
    for path in sys.argv[1:] or [HERE / "wrappers" / "dev.json"]:
        for name, task in load_tasks(path, 1, 6).items():
            prompt, candidates, right = task["items"][0]
            print(f"{name:16}{' | '.join(candidates)} -> {candidates[min(right)]}\n{prompt}\n")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
