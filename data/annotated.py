"""Records that an annotator wrote: their file, read strictly, its parts, and a sentence with its entities.

    paragraphs = read_annotations("annotations.jsonl")      # data/annotations.py shows a record

A line of your own may hold a text and its questions alone:
    {"text": "Fry the onions.", "questions": [{"question": "What is fried?", "answer": "the onions"}]}
"""

import functools
import re
from pathlib import Path

from data.annotations import ENTITY_FORMS, NOT_LISTED, TYPES, fill, parse_entity, parse_question
from data.cli import CONTROL
from data.own_text import json_rows, named

WORD = re.compile(r"\w")
PRIMER = sorted((Path(__file__).resolve().parent / "primer").glob("level*.jsonl"))    # easy ones first
KINDS = ("content", "structure", "attitude")
FIELDS = {"entities": ("text", "type", "about"), "questions": ("kind", "question", "answer")}


def check_text(value, name):
    """ValueError unless `value` is a string of one line, not empty, without white space at its ends."""
    if not isinstance(value, str) or not value or value != value.strip() or CONTROL.search(value):
        raise ValueError(f"field '{name}' is {value!r:.60}, expected one line of text, no space at its ends")


def check_record(record):
    """ValueError that names the field, unless `record` is valid: its entities occur in its sentence, a
    question has one '?', at its end, and the lines of both can be parsed back. A question without a kind
    becomes one of content."""
    for name in ("paragraph", "sentence"):
        if type(record.get(name)) is not int or record[name] < 0:       # isinstance(True, int) would be True
            raise ValueError(f"field '{name}' is {record.get(name)!r:.60}, expected a number 0, 1, 2 ...")
    check_text(record.get("text"), "text")
    for name, find_problem in (("entities", entity_problem), ("questions", question_problem)):
        items = record.get(name)
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, dict) for item in items):
            raise ValueError(f"field '{name}' is {items!r:.60}, expected a list of objects")
        for i, item in enumerate(items):
            if name == "questions":
                item.setdefault("kind", "content")
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


def marked(sentence, entities):
    """("Anna left.", [Anna, person]) -> "[Anna|person] left."; of those that begin at a word the longest."""
    types, parts, end = {entity["text"]: entity["type"] for entity in entities}, [], 0
    lengths = sorted(set(map(len, types)), reverse=True)
    for start in [word.start() for word in re.finditer(r"(?<!\w)\S", sentence)]:
        if start < end:                     # inside the entity before
            continue
        texts = (sentence[start:start + n] for n in lengths)
        if text := next((t for t in texts if t in types and not WORD.match(sentence, start + len(t))), ""):
            parts += [sentence[end:start], f"[{text}|{types[text]}]"]
            end = start + len(text)
    return "".join(parts) + sentence[end:]


def read_annotations(path):
    """A file of records -> list of paragraphs; ValueError "file: line 3: field 'x' ..." for a bad line."""
    paragraphs = []
    with named(path):
        for place, record in json_rows(path):
            with named(place):
                record.setdefault("entities", NOT_LISTED)
                if not {"paragraph", "sentence"} & set(record):         # a paragraph by itself
                    number = paragraphs[-1][0]["paragraph"] + 1 if paragraphs else 0
                    record |= {"paragraph": number, "sentence": 0}
                check_record(record)
                if not paragraphs or record["paragraph"] != paragraphs[-1][0]["paragraph"]:
                    paragraphs.append([])
                if (found := record["sentence"]) != (expected := len(paragraphs[-1])):
                    raise ValueError(f"field 'sentence' is {found}, expected {expected} in this paragraph")
            paragraphs[-1].append(record)
    return paragraphs


@functools.cache
def annotated_text(corpus):
    """Paragraphs of a file, or of "primer", level by level -> (training, held out: every third of a file),
    lists of lists of records. ValueError for fewer than three, and as read_annotations raises."""
    training, held_out = [], []
    for path in PRIMER if corpus == "primer" else [corpus]:
        paragraphs = read_annotations(path)
        if len(paragraphs) < 3:
            raise ValueError(f"{path}: {len(paragraphs)} paragraphs, every third held out; "
                             "expected at least 3")
        training += [paragraph for i, paragraph in enumerate(paragraphs) if i % 3 != 2]
        held_out += paragraphs[2::3]
    return training, held_out
