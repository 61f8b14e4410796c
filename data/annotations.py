"""Annotated sentences: their records, the file of records, and the forms of annotation lines.

A record is one sentence; a paragraph is the list of its records; a file holds one record a line:

    {"paragraph": 12, "sentence": 0, "text": "Anna took a train to Oslo.",
     "entities": [{"text": "Anna", "type": "person", "about": "traveller"}],
     "questions": [{"kind": "content", "question": "Where did Anna go?", "answer": "Oslo"}]}
"""

import functools
import json
import os
import re
from pathlib import Path

from data import world
from data.cli import CONTROL, brief

TYPES = tuple(world.WORDS)     # person, place, ...: a closed list, so that lines can be parsed exactly
KINDS = ("content", "structure", *world.RAISED)
FIELDS = {"entities": ("text", "type", "about"), "questions": ("kind", "question", "answer")}

def check_text(value, name):
    """ValueError unless `value` is a string of one line, not empty, without white space at its ends."""
    if not isinstance(value, str) or not value or value != value.strip() or CONTROL.search(value):
        raise ValueError(f"field '{name}' is {value!r:.60}, expected one line of text, no space at its ends")


def check_record(record):
    """ValueError that names the field, unless `record` is valid: its entities occur in its sentence, a
    question has one '?', at its end, and the lines of both can be parsed back."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    for name in ("paragraph", "sentence"):
        if type(record.get(name)) is not int or record[name] < 0:       # isinstance(True, int) would be True
            raise ValueError(f"field '{name}' is {record.get(name)!r:.60}, expected a number 0, 1, 2 ...")
    check_text(record.get("text"), "text")
    for name, find_problem in (("entities", entity_problem), ("questions", question_problem)):
        items = record.get(name)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError(f"field '{name}' is {items!r:.60}, expected a list of objects")
        for i, item in enumerate(items):
            for field in FIELDS[name]:
                check_text(item.get(field), f"{name}[{i}].{field}")
            if problem := find_problem(item, record["text"]):
                raise ValueError(f"field '{name}[{i}].{problem}")


def entity_problem(entity, sentence):
    """What is wrong with an entity, as "field' is ...", or None."""
    text, type_, bare = entity["text"], entity["type"], {name: entity[name] for name in FIELDS["entities"]}
    if type_ not in TYPES:
        return f"type' is '{type_:.60}', expected one of {', '.join(TYPES)}"
    if text not in sentence:
        return f"text' is '{text:.60}', which does not occur in the sentence '{sentence:.60}'"
    if parse_entity(fill(ENTITY_FORMS[0], bare)) != bare:
        return f"text' is '{text:.60}', which cannot be told from the line around it"


def question_problem(item, sentence):
    """What is wrong with a question, as "field' is ...", or None."""
    question, answer = item["question"], item["answer"]
    if item["kind"] not in KINDS:
        return f"kind' is '{item['kind']:.60}', expected one of {', '.join(KINDS)}"
    if question.find("?") != len(question) - 1:
        return f"question' is '{question:.60}', expected one '?', at the end"
    if parse_question(f"{question} {answer}") != {"question": question, "answer": answer}:
        return f"question' is '{question:.60}', answer '{answer:.60}': one begins with a word of a form"


def read_annotations(path):
    """A file of records -> list of paragraphs. A bad line raises ValueError "file:line: field 'x' ..."; an
    incomplete last line, as an interrupted annotator leaves it, is ignored."""
    paragraphs, lines = [], Path(path).read_bytes().split(b"\n")
    for i, line in enumerate(lines, 1):
        try:
            record = json.loads(line.decode("utf-8"))   # the last line may end inside a character
        except (ValueError, RecursionError) as error:
            if i == len(lines):
                break
            raise ValueError(f"{path}:{i}: not a JSON object in UTF-8 ({brief(error)})") from None
        try:
            check_record(record)
            if not paragraphs or record["paragraph"] != paragraphs[-1][0]["paragraph"]:
                paragraphs.append([])
            if (found := record["sentence"]) != (expected := len(paragraphs[-1])):
                raise ValueError(f"field 'sentence' is {found}, expected {expected} in this paragraph")
        except ValueError as error:
            raise ValueError(f"{path}:{i}: {error}") from None
        paragraphs[-1].append(record)
    return paragraphs


def write_annotations(path, paragraphs):
    """Write what read_annotations reads, beside and renamed; ValueError for records that it refuses."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for records in paragraphs for record in records]
    Path(f"{path}.tmp").write_text("".join(lines), encoding="utf-8", newline="\n")
    read_annotations(f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


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
PARTS = {"text": "(?P<text>.+?)", "type": "(?P<type>" + "|".join(TYPES) + ")", "a": "an?",
         "about": "(?P<about>.+)"}      # `text` is as short as possible
ENTITY_PATTERNS = [re.compile(re.sub(r"\\{(\w+)\\}", lambda match: PARTS[match[1]], re.escape(form)))
                   for form in ENTITY_FORMS]


def fill(form, entity):
    return form.format(a="an" if entity["type"][0] in "aeiou" else "a", **entity)


@functools.lru_cache(maxsize=1 << 16)               # the same few entities and forms come again and again
def entity_line(text, type, about, form):
    """One entity in form number `form`, or in the plain form where that cannot be parsed back."""
    entity = {"text": text, "type": type, "about": about}
    line = fill(ENTITY_FORMS[form], entity)
    return line if parse_entity(line) == entity else fill(ENTITY_FORMS[0], entity)


def question_texts(question, forms, rng):
    """("Where is she?", 8, rng) -> [" Q:", " Where is she?", " A:"]. Opener and bridge are drawn from the
    first `forms` ones; each is empty with probability 1/2."""
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


def parse_questions(text):
    """Text of several lines -> list of {"question", "answer"}; other lines are left out."""
    return list(filter(None, map(parse_question, lines_of(text))))


def lines_of(text):
    """The lines that are not blank."""
    return [line for line in text.split("\n") if line.strip()]


def marked(sentence, entities):
    """("Anna left.", [Anna, person]) -> "[Anna|person] left."; the longest entity is marked first."""
    types = {entity["text"]: entity["type"] for entity in entities if entity["text"] in sentence}
    words = "|".join(re.escape(text) for text in sorted(types, key=len, reverse=True)) or "(?!)"
    return re.sub(rf"(?<!\w)(?:{words})(?!\w)", lambda match: f"[{match[0]}|{types[match[0]]}]", sentence)
