"""The words of the built-in world and those that are listed for data/stories.py, and draws of them."""

import json
import re
from pathlib import Path

TEXT = Path(__file__).with_name("world.json").read_text(encoding="utf-8")
TABLES = json.loads(TEXT)
GOOD, BAD = TABLES["good"], TABLES["bad"]
WORDS = {"person": TABLES["she"] + TABLES["he"], **TABLES["words"], "feeling": GOOD + BAD}
RESERVED = {"person": TABLES["reserved_she"] + TABLES["reserved_he"], **TABLES["reserved"]}
INDEX = {word: i for words in WORDS.values() for i, word in enumerate(words)}
LISTED = TABLES["listed"]
ATTITUDE = tuple(TABLES["attitude"])


def pick(rng, words):
    """One of `words`. It uses rng.random() alone, whose stream is the same in every version of Python."""
    return words[int(rng.random() * len(words))]


def shuffled(rng, words):
    """The words in random order, by rng.random() alone."""
    return sorted(words, key=lambda _: rng.random())


def in_order(entities, text):
    """Entities of a sentence (dicts with "text") in its order; "Ida" is not found in "Friday"."""
    return sorted(entities, key=lambda entity: re.search(rf"\b{re.escape(entity['text'])}\b", text).start())


def is_she(person):
    """Whether a text says "she" of a person: names in "a", of the world and made-up ones, and listed ones."""
    return person.endswith("a") or person in LISTED["she"]


def held_out(person, value):
    """True for the quarter of all (person, argument) pairs of WORDS that only tests may tell or ask about."""
    return person in INDEX and value in INDEX and (INDEX[person] + INDEX[value]) % 4 == 0
