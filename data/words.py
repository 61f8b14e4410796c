"""The words of the built-in world: its own few hundred, and made-up ones without end.

A paragraph draws its people, places and things from WORDS, or from `own_words`: a few words of each type for
this paragraph alone, of long lists of common words, or made up by a program ("Torvina", "blemmit"). Whoever
answers a question about those has to find the answer in the text. No made-up word is in world.json.
"""

import json
import re
from pathlib import Path

TEXT = Path(__file__).with_name("world.json").read_text(encoding="utf-8")
TABLES, KNOWN = json.loads(TEXT), set(re.findall("[a-z]+", TEXT.lower()))
GOOD, BAD = TABLES["good"], TABLES["bad"]
WORDS = {"person": TABLES["she"] + TABLES["he"], **TABLES["words"], "feeling": GOOD + BAD}
RESERVED = {"person": TABLES["reserved_she"] + TABLES["reserved_he"], **TABLES["reserved"]}
INDEX = {word: i for words in WORDS.values() for i, word in enumerate(words)}
LISTED, SYLLABLES, ROOMS = TABLES["listed"], TABLES["syllables"], TABLES["rooms"]
ATTITUDE = tuple(TABLES["attitude"])
OWN = 5                      # words of a type that a paragraph may have of its own


def pick(rng, words):
    """One of `words`. It uses rng.random() alone, whose stream is the same in every version of Python."""
    return words[int(rng.random() * len(words))]


def shuffled(rng, words):
    """The words in random order, by rng.random() alone."""
    return sorted(words, key=lambda _: rng.random())


def made_up(rng, known, end=""):
    """A new word of small letters, one or two syllables and `end`; it is added to the set `known`."""
    while True:
        first = pick(rng, SYLLABLES["onset"]) + pick(rng, SYLLABLES["vowel"]) if rng.random() < 0.4 else ""
        word = first + "".join(pick(rng, SYLLABLES[part]) for part in ("onset", "vowel", "coda")) + end
        if word not in known:
            known.add(word)
            return word


def own_words(rng, is_made_up):
    """{type: words} for a single paragraph, OWN of a type, made up or listed; days and feelings of WORDS."""
    if is_made_up:
        known = set(KNOWN)
        found = {type_: [made_up(rng, known) for _ in range(OWN)] for type_ in ("thing", "job", "room")}
        found["person"] = [made_up(rng, known, pick(rng, ("a", ""))).capitalize() for _ in range(OWN)]
        places = [made_up(rng, known).capitalize() for _ in range(2 * OWN)]
    else:
        found = {type_: shuffled(rng, LISTED[type_])[:OWN] for type_ in ("thing", "job", "room")}
        found["person"] = shuffled(rng, LISTED["she"] + LISTED["he"])[:OWN]
        places = shuffled(rng, LISTED["place"])[:2 * OWN]
    firms = [f"{name} {kind}" for name, kind in zip(places[OWN:], shuffled(rng, LISTED["firm"]))]
    return {**WORDS, **found, "place": places[:OWN], "organisation": firms}


def in_order(entities, text):
    """Entities of a sentence (dicts with "text") in its order; "Ida" is not found in "Friday"."""
    return sorted(entities, key=lambda entity: re.search(rf"\b{re.escape(entity['text'])}\b", text).start())


def drawn_words(rng, at):
    """The words of a paragraph of the world.Level `at`: own_words, or None for those of the world."""
    own = at.listed + at.made_up
    if own and (part := rng.random()) < own:
        return own_words(rng, part < at.made_up)


def is_she(person):
    """Whether a text says "she" of a person: names in "a", of the world and made-up ones, and listed ones."""
    return person.endswith("a") or person in LISTED["she"]


def held_out(person, value):
    """True for the quarter of all (person, argument) pairs of WORDS that only tests may tell or ask about."""
    return person in INDEX and value in INDEX and (INDEX[person] + INDEX[value]) % 4 == 0
