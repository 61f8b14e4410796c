"""The open world: paragraphs have people, places and things of their own, and most are stories: people move,
take and give things, and later sentences change what holds.

    Mary and Walter went to the garden. After that they moved to the attic. Walter took the comb there.
    content    Where is Mary? attic       Is Walter in the garden? No       Where is the comb? attic
    structure  Who are they? Mary and Walter       attitude  Is this good or bad? neutral

After every sentence the reader knows where everybody is, and says Maybe where the text leaves it open. A
thing is where its owner is, and who gave it is whoever gave it last.

A paragraph's own words are a few of each type: of long lists of common words, or made up by a program
("Torvina", "blemmit"). Whoever answers a question about those has to find the answer in the text. No made-up
word is in world.json.
"""

import re
from functools import partial

from data.words import ATTITUDE, LISTED, TABLES, TEXT, WORDS, in_order, is_she, pick, shuffled
from data.world import BINDING, Level, items

FORMS, SYLLABLES, ROOMS = TABLES["stories"], TABLES["syllables"], TABLES["rooms"]
KNOWN = set(re.findall("[a-z]+", TEXT.lower()))
OWN = 5                                          # words of a type that a paragraph may have of its own
# What may happen: people move together; a pronoun stands for them ("After that she ..."); it is told where
# somebody is not, or may be; things are taken, dropped and given.
PLOTS = ("pairs", "links", "doubts", "things")
PLOT_SHARE = 0.45                                # part of the stories that have each of them
PLACES, THINGS = 5, 2                            # of a story


# --- words --------------------------------------------------------------------------------------------------
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


def drawn_words(rng, listed=0.7, made=0.0):
    """The words of a paragraph: own_words in these parts of all paragraphs, else None, for the world's."""
    part = rng.random()
    return own_words(rng, part < made) if part < listed + made else None


# --- stories ------------------------------------------------------------------------------------------------
class Story:
    """What the sentences told so far say."""

    def __init__(self, rng, words, most_people, plots):
        self.rng = rng
        self.people, self.places, self.things = (shuffled(rng, words[type_])[:n] for type_, n in (
            ("person", 2 + int(rng.random() * (most_people - 1))), ("room", PLACES), ("thing", THINGS)))
        self.plots = [plot for plot in plots if rng.random() < PLOT_SHARE]
        self.at, self.before = {}, {}            # person: place (None: not told), and the one before it
        self.away = {}                           # person of whom no place is told: where they are not
        self.either = {}                         # person of whom two places are told: these
        self.owner, self.lies = {}, {}           # thing: person, place
        self.given = None                        # the last (giver, thing, taker)
        self.subject, self.pronoun = (), ""      # of the last sentence: people, and how it names them
        self.last_words, self.told_places = [], []               # of the last sentence; of all so far

    def put(self, person, place):
        """`person` is at `place` from now on (None: the text does not tell where)."""
        if person in self.at and self.at[person] != place:
            self.before[person] = self.at[person]
        self.at[person] = place
        self.away.pop(person, None)
        self.either.pop(person, None)

    def known(self):
        """The people of whom a place is told."""
        return [person for person in self.people if self.at.get(person)]

    def move(self):
        """One or two people go to another place -> text."""
        rng, self.pronoun = self.rng, ""
        if self.subject and "links" in self.plots and rng.random() < 0.4:
            self.pronoun = "they" if len(self.subject) > 1 else "she" if is_she(self.subject[0]) else "he"
            who = f"{pick(rng, FORMS['links'])} {self.pronoun}"
        else:
            pair = "pairs" in self.plots and rng.random() < 0.6
            self.subject = tuple(shuffled(rng, self.people)[:2 if pair else 1])
            who = " and ".join(self.subject)
        place = pick(rng, [p for p in self.places if p != self.at.get(self.subject[0])])
        for person in self.subject:
            self.put(person, place)
        return pick(rng, FORMS["move"]).format(s=who, a=place)

    def doubt(self):
        """Somebody is somewhere, is not there, or may be in one of two places -> text."""
        rng, person = self.rng, pick(self.rng, self.people)
        a, b = shuffled(rng, [place for place in self.places if place != self.at.get(person)])[:2]
        kind = pick(rng, ("at", "away", "either"))
        if kind == "away" and self.at.get(person):
            a = self.at[person]                  # "not in the park" of somebody in the school tells nothing
        self.put(person, a if kind == "at" else None)
        if kind == "away":
            self.away[person] = a
        elif kind == "either":
            self.either[person] = (a, b)
        self.subject, self.pronoun = (person,), ""
        return pick(rng, FORMS[kind]).format(s=person, a=a, b=b)

    def handle(self):
        """Somebody takes, drops or gives a thing -> text, or None where nobody can."""
        rng, thing, there = self.rng, pick(self.rng, self.things), pick(self.rng, ("", " there"))
        owner = self.owner.get(thing)
        if owner is None:
            person = pick(rng, self.known())
            if self.lies.get(thing, self.at[person]) != self.at[person]:
                return None                      # it lies elsewhere
            self.owner[thing], self.subject, self.pronoun = person, (person,), ""
            self.lies.pop(thing, None)
            return pick(rng, FORMS["take"]).format(s=person, o=thing) + there
        place = self.at.get(owner)
        if place and rng.random() < 0.5:
            self.lies[thing], self.subject, self.pronoun = place, (owner,), ""
            del self.owner[thing]
            return pick(rng, FORMS["drop"]).format(s=owner, o=thing) + there
        beside = [person for person in self.known() if person != owner and self.at[person] == place]
        if not beside:
            return None
        taker = pick(rng, beside)
        self.owner[thing], self.given, self.subject, self.pronoun = taker, (owner, thing, taker), (), ""
        return pick(rng, FORMS["give"]).format(s=owner, o=thing, t=taker)

    def tell(self):
        """One more sentence."""
        told = None
        if "doubts" in self.plots and self.rng.random() < 0.45:
            told = self.doubt()
        elif "things" in self.plots and self.known() and self.rng.random() < 0.5:
            told = self.handle()
        told = told or self.move()
        self.last_words = told.split()
        self.told_places += [place for place in self.places
                             if place in self.last_words and place not in self.told_places]
        return told[0].upper() + told[1:] + "."

    def wh(self):
        """All wh questions that have an answer now: list of (forms, words for their slots, answer)."""
        found = [(FORMS["where"], {"n": person}, self.at[person]) for person in self.known()]
        found += [(FORMS["before"], {"n": person, "a": self.at[person]}, self.before[person])
                  for person in self.known() if self.before.get(person)]
        for thing in self.things:
            owner = self.owner.get(thing)
            place = self.at.get(owner) if owner else self.lies.get(thing)
            found += [(FORMS[name], {"o": thing}, answer) for name, answer in (
                ("where_thing", place), ("has", owner)) if answer]
        if self.given:
            words = dict(zip("sot", self.given))
            found += [(FORMS["gave_" + name], words, words[name]) for name in "sot"]
        return found

    def whether(self):
        """(a question whether somebody is somewhere, its answer). First the answer is drawn, evenly of those
        that are possible now, then whether the last sentence names the place."""
        untold = [place for place in self.places if place not in self.told_places][:1]       # always No
        places, groups = self.told_places + untold, {}
        known = {(person, place): "Yes" if place == self.at[person] else "No"
                 for person in self.known() for place in places}
        known |= {(person, place): "No" for person, place in self.away.items()}
        known |= {(person, place): "Maybe" if place in either else "No"
                  for person, either in self.either.items() for place in places}
        for (person, place), answer in known.items():
            groups.setdefault(answer, {}).setdefault(place in self.last_words, []).append((person, place))
        answer = pick(self.rng, list(groups))
        person, place = pick(self.rng, groups[answer][pick(self.rng, list(groups[answer]))])
        forms = FORMS["is_in"] if self.rng.random() < 0.7 else FORMS["claims"]
        return pick(self.rng, forms).format(n=person, a=place), answer

    def structure(self):
        """(a question about the sentence read last, its answer), or None."""
        subject = self.subject
        if self.pronoun:
            verb = "are" if len(subject) > 1 else "is"
            return f"Who {verb} {self.pronoun}?", " and ".join(subject)
        if len(subject) == 1:
            return pick(self.rng, FORMS["does"]), subject[0]
        return (pick(self.rng, FORMS["order"]), subject[0]) if subject else None

    def questions(self, at):
        """The reader's questions after the last sentence, which all hold for it alone: world.items."""
        rng, asked = self.rng, []
        for forms, words, answer in shuffled(rng, self.wh())[:at.wh + 1]:
            asked.append(("content", (pick(rng, forms).format(**words), answer), True))
        if at.whether:
            asked += [("content", self.whether(), True) for _ in range(2)]
        if rng.random() < at.raised:
            asked += [("structure", self.structure(), True),
                      ("attitude", (pick(rng, ATTITUDE), "neutral"), True)]
        return items(rng, asked)

    def entities(self, text):
        """The named entities of a sentence in its order: list of {"text", "type", "about"}."""
        tables = (("person", self.people, "mover"), ("place", self.places, "place"),
                  ("thing", self.things, "goods"))
        return in_order([{"text": word, "type": type_, "about": role} for type_, words, role in tables
                         for word in words if word in self.last_words], text)


def draw_story(rng, at, index=0, sentences=(1, 8), plots=PLOTS):
    """The records of a story of the world.Level `at`, of two to at.people + 1 people; data/annotations.py
    describes them. A sentence has up to at.wh + 1 wh questions, and two for yes or no unless at.whether is 0.
    Half of the stories write yes, no and maybe in small letters, as some published tasks do.

    sentences: fewest and most; plots: what may happen."""
    # Things of WORDS would make pairs with its people that only tests may tell.
    known = {**WORDS, "room": ROOMS, "thing": LISTED["thing"]}
    words = at.words and at.words(rng) or known
    story, small, records = Story(rng, words, at.people + 1, plots), rng.random() < 0.5, []
    low, high = sentences
    for k in range(low + int(rng.random() * (high - low + 1))):
        text = story.tell()
        asked = story.questions(at)
        for item in asked:
            if small and item["answer"] in ("Yes", "No", "Maybe"):
                item["answer"] = item["answer"].lower()
        records.append({"paragraph": index, "sentence": k, "text": text, "entities": story.entities(text),
                        "questions": asked})
    return records


# --- the curriculum -----------------------------------------------------------------------------------------
# People who did alike come first, as in world.LEVELS; then stories in words of long lists; then longer ones
# with all plots, and a tenth of the paragraphs in made-up words, which have to be copied in parts.
MIXED = {"alike": 0.8, "swapped": 0.8, "join_prob": 0.5, "words": drawn_words}
LATE = MIXED | {"wh": 4, "whether": 2, "varied": 0.6, "whole": 0.4, "raised": 0.1, "story": 0.9,
                "words": partial(drawn_words, made=0.1)}
OPEN = (Level(0.30, **BINDING, join_prob=1.0, forms=1, wh=12, whether=0),
        Level(0.40, **BINDING, join_prob=0.7, forms=12, wh=2, whether=2, swapped=1.0, varied=0.5),
        Level(0.55, **MIXED | BINDING, forms=4, wh=6, varied=0.5,
              story=0.8, tell=partial(draw_story, sentences=(2, 3), plots=PLOTS[:2])),
        Level(0.75, **MIXED | BINDING, forms=8, wh=6, varied=0.5, whole=0.4,
              story=0.9, tell=partial(draw_story, sentences=(2, 5), plots=PLOTS[:2])),
        Level(0.88, (1, 3), **LATE, forms=12, tell=partial(draw_story, sentences=(2, 7))),
        Level(1.00, (1, 4), **LATE, tell=partial(draw_story, sentences=(2, 10))))
