"""Annotated sentences: their records, the file of records, and the forms of annotation lines.

A record is one sentence; a paragraph is the list of its records; a file holds one record a line:

    {"paragraph": 12, "sentence": 0, "text": "Anna took a train to Oslo.",
     "entities": [{"text": "Anna", "type": "person", "about": "traveller"}],
     "questions": [{"kind": "content", "question": "Where did Anna go?", "answer": "Oslo"}]}

A question with "now": true is asked right after its sentence alone: a later one may change the answer.
"""

import functools
import json
import re

from data import world
from data.files import write_text

TYPES = tuple(world.WORDS)     # person, place, ...: a closed list, so that lines can be parsed exactly


def write_annotations(path, paragraphs):
    """Writes a file of records, beside its place and renamed."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for records in paragraphs for record in records]
    write_text(path, "".join(lines))


# The forms vary: a student that has seen a single form fails in any other. The plain form comes first.
ENTITY_FORMS = ("{text}: {type}, {about}", "{text} is {a} {type}, {about}", "{type}: {text}, {about}",
                "{text} ({type}, {about})", "{text} = {type}, {about}")
OPENERS = tuple("|Q:|Question:|Ask:|Now,|Tell us:|So,|Please say:|Query:|One asks:|And|I wonder,|Question 1:"
                "|Next:|Test:|Quiz:|Riddle:|Then|First,|He asked:|She wants to know:|*|You ask:"
                "|Problem:".split("|"))
BRIDGES = tuple("|A:|Answer:|Reply:|Say:|-|Why,|Well,|I say:|It is|Result:|=|Clearly,|She said:|So:|"
                "My answer:|Let us say|Solution:|Hm,|...|They say|Then|I think|=>".split("|"))
ALL_FORMS = max(len(OPENERS), len(BRIDGES))
NO_ENTITY = "none"
NOT_LISTED = ()     # the entities of a record in which nobody looked for them
PARTS = {"text": "(?P<text>.+?)", "type": "(?P<type>" + "|".join(TYPES) + ")", "a": "an?",
         "about": "(?P<about>.+)"}      # `text` is as short as possible
# The end is looked at first: where it does not fit, each place in the line would be tried to the end in vain.
ENTITY_PATTERNS = [re.compile(rf"(?=.*{re.escape(form.rpartition('}')[2])}\Z)"
                              + re.sub(r"\\{(\w+)\\}", lambda match: PARTS[match[1]], re.escape(form)))
                   for form in ENTITY_FORMS]


def fill(form, entity):
    """An entity in one of ENTITY_FORMS -> str."""
    return form.format(a="an" if entity["type"][0] in "aeiou" else "a", **entity)


@functools.lru_cache(maxsize=1 << 16)               # the same few entities and forms come again and again
def entity_line(text, type, about, form):
    """One entity in form number `form`, or in the plain form where that cannot be parsed back."""
    entity = {"text": text, "type": type, "about": about}
    line = fill(ENTITY_FORMS[form], entity)
    return line if parse_entity(line) == entity else fill(ENTITY_FORMS[0], entity)


def question_texts(question, forms, rng):
    """("Where is she?", 8, rng) -> [" Q:", " Where is she?", " A:"]; every other opener, bridge is empty."""
    drawn = []
    for options in (OPENERS, BRIDGES):
        is_plain = forms == 1 or rng.random() < 0.5
        drawn.append("" if is_plain else options[rng.randrange(1, min(forms, len(options)))])
    return [" " + part for part in (drawn[0], question, drawn[1]) if part]


def parse_entity(line):
    """One entity line in any form -> {"text", "type", "about"}, or None."""
    matches = (expression.fullmatch(line.strip()) for expression in ENTITY_PATTERNS)
    return next((match.groupdict() for match in matches if match), None)


def parse_question(line):
    """One question line in any form -> {"question", "answer"}, or None; the first '?' ends the question."""
    parts = [part.strip() for part in line.partition("?")]
    for i, words in ((0, OPENERS), (2, BRIDGES)):
        word = next((word for word in words[1:] if parts[i].startswith(word + " ")), "")
        parts[i] = parts[i][len(word):].strip()
    return {"question": parts[0] + "?", "answer": parts[2]} if all(parts) else None


def parse_entities(text):
    """Text of several lines -> list of entities; a line in no known form, such as "none", is left out."""
    return list(filter(None, map(parse_entity, lines_of(text))))


def lines_of(text):
    """The lines that are not blank."""
    return [line for line in text.split("\n") if line.strip()]
