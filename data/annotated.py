"""Records that an annotator wrote: their file, read strictly, its parts, and a sentence with its entities.

    paragraphs = read_annotations("annotations.jsonl")      # data/annotations.py shows a record
"""

import functools
import json
import re
from pathlib import Path

from data.annotations import ENTITY_FORMS, TYPES, fill, parse_entity, parse_question
from data.world import RAISED
from data.cli import CONTROL, brief

PRIMER = Path(__file__).resolve().parent / "primer" / "primer.jsonl"
KINDS = ("content", "structure", *RAISED)
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


def marked(sentence, entities):
    """("Anna left.", [Anna, person]) -> "[Anna|person] left."; the longest entity is marked first."""
    types = {entity["text"]: entity["type"] for entity in entities if entity["text"] in sentence}
    words = "|".join(re.escape(text) for text in sorted(types, key=len, reverse=True)) or "(?!)"
    return re.sub(rf"(?<!\w)(?:{words})(?!\w)", lambda match: f"[{match[0]}|{types[match[0]]}]", sentence)


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


@functools.cache
def annotated_text(corpus):
    """Paragraphs of "primer" or a file -> (training, held out: every third), lists of lists of records.
    ValueError for fewer than three, and as read_annotations raises."""
    paragraphs = read_annotations(PRIMER if corpus == "primer" else corpus)
    if len(paragraphs) < 3:
        raise ValueError(f"{corpus}: {len(paragraphs)} paragraphs, every third held out; expected at least 3")
    return [paragraph for i, paragraph in enumerate(paragraphs) if i % 3 != 2], paragraphs[2::3]
