"""Annotated sentences: what a record holds, how it stands in a file, and the forms in which its lines are written.

    paragraphs = read_annotations("out/annotations.jsonl")     # strict: a bad line is named with its field
    write_annotations("out/annotations.jsonl", paragraphs)
    entity_line("Opel", "organisation", "employer", form=1)    # "Opel is an organisation, employer"
    parse_questions(" Q: Where did Anna go? A: Oslo\\n")        # [{"question": "Where did Anna go?", "answer": "Oslo"}]

A record is one sentence with its entities and questions (`check_record` shows one); a paragraph is the list of its
records in order. Pure text: how lines become documents and tokens is told in brd.py.
"""
import functools
import json
import os
import re

from data import world
from data.cli import CONTROL, brief

# ----------------------------------------------------------------------------------------------------------------------
# Records: one JSON object a line, one line a sentence, paragraphs and their sentences in order

TYPES = tuple(world.WORDS)     # person, place, organisation, thing, day, job, feeling: a closed list keeps parsing exact
KINDS = ("content", "structure", *world.RAISED)


def check_text(value, name):
    """Raise ValueError unless `value` is a non-empty single-line string without white space at its ends."""
    if not isinstance(value, str):
        raise ValueError(f"field '{name}' is {type(value).__name__}, expected a string")
    if not value or value != value.strip() or CONTROL.search(value):
        raise ValueError(f"field '{name}' is {value!r:.60}, expected one line of text, not empty, no space at its ends")


def check_record(record):
    """Raise ValueError (one line, naming the field) unless `record` is a valid annotated sentence:

    {"paragraph": 12, "sentence": 0, "text": "Anna took a train to Oslo.",
     "entities": [{"text": "Anna", "type": "person", "about": "traveller"}],
     "questions": [{"kind": "content", "question": "Where did Anna go?", "answer": "Oslo"}]}
    Beyond the obvious, an entity occurs in its sentence word for word, a question has one '?', at its end, and every
    entity and question can be rendered and parsed back."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    for name in ("paragraph", "sentence"):
        if type(record.get(name)) is not int or record[name] < 0:       # type(), because True is an int to isinstance
            raise ValueError(f"field '{name}' is {record.get(name)!r:.60}, expected a number 0, 1, 2 ...")
    check_text(record.get("text"), "text")
    for name, fields in (("entities", ("text", "type", "about")), ("questions", ("kind", "question", "answer"))):
        if not isinstance(record.get(name), list) or not all(isinstance(x, dict) for x in record[name]):
            raise ValueError(f"field '{name}' is {record.get(name)!r:.60}, expected a list of objects")
        for i, item in enumerate(record[name]):
            for field in fields:
                check_text(item.get(field), f"{name}[{i}].{field}")
            problem = (entity_problem if name == "entities" else question_problem)(item, record["text"])
            if problem:
                raise ValueError(f"field '{name}[{i}].{problem}")


def entity_problem(entity, sentence):
    """What is wrong with an entity, as "field' is ...", or None."""
    if entity["type"] not in TYPES:
        return f"type' is '{entity['type']:.60}', expected one of {', '.join(TYPES)}"
    if entity["text"] not in sentence:
        return f"text' is '{entity['text']:.60}', which does not occur in the sentence '{sentence:.60}'"
    bare = {key: entity[key] for key in ("text", "type", "about")}
    if parse_entity(fill(ENTITY_FORMS[0], bare)) != bare:
        return f"text' is '{entity['text']:.60}', which cannot be told from the line around it"


def question_problem(item, sentence):
    """What is wrong with a question, as "field' is ...", or None."""
    question, answer = item["question"], item["answer"]
    if item["kind"] not in KINDS:
        return f"kind' is '{item['kind']:.60}', expected one of {', '.join(KINDS)}"
    if question.find("?") != len(question) - 1:
        return f"question' is '{question:.60}', expected one '?', at the end"
    if parse_question(f"{question} {answer}") != {"question": question, "answer": answer}:
        return f"question' is '{question:.60}', answer '{answer:.60}': one begins with a word of the rendering (Q:, A:)"


def read_annotations(path):
    """Read annotations.jsonl -> list of paragraphs, each the list of its records in order.

    Strict: a bad line raises ValueError "file:line: field 'x' ...". The one exception is a torn last line (no line
    break at its end and not JSON), which is what an interrupted annotator leaves: it is ignored."""
    with open(path, "rb") as file:                 # bytes, because a torn line may end inside a UTF-8 character
        lines = file.read().split(b"\n")
    paragraphs = []
    for number, line in enumerate(lines, 1):
        if not line.strip() and number == len(lines):
            break
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:      # JSONDecodeError and UnicodeDecodeError are both ValueErrors
            if number == len(lines):
                break
            raise ValueError(f"{path}:{number}: not a JSON object in UTF-8 ({brief(error)})") from None
        try:
            check_record(record)
            place(record, paragraphs)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return paragraphs


def place(record, paragraphs):
    """Append a record to the list of paragraphs; ValueError where it does not follow what is there."""
    last = paragraphs[-1][-1] if paragraphs else {"paragraph": -1, "sentence": -1}
    number, sentence = record["paragraph"], record["sentence"]
    if number < last["paragraph"]:
        raise ValueError(f"field 'paragraph' is {number} after {last['paragraph']}, expected rising numbers")
    expected = last["sentence"] + 1 if number == last["paragraph"] else 0
    if sentence != expected:
        raise ValueError(f"field 'sentence' is {sentence}, expected {expected} here in paragraph {number}")
    if expected == 0:
        paragraphs.append([])
    paragraphs[-1].append(record)


def write_annotations(path, paragraphs):
    """Write what read_annotations reads: checked (ValueError as check_record), written beside, then renamed."""
    written = []
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        for record in (record for paragraph in paragraphs for record in paragraph):
            check_record(record)
            place(record, written)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.replace(f"{path}.tmp", path)


# ----------------------------------------------------------------------------------------------------------------------
# The lines, and back. Their surface varies, because a student that has only ever seen one wrapper learns the wrapper:
# with a single question form nothing transfers to a blind task. The plain form comes first.

ENTITY_FORMS = ("{text}: {type}, {about}", "{text} is {a} {type}, {about}", "{type}: {text}, {about}",
                "{text} ({type}, {about})", "{text} = {type}, {about}")
OPENERS = ("", "Q:", "Question:", "Ask:", "Now,", "Tell us:", "So,", "Please say:", "Query:", "One asks:", "And", "I wonder,",
           "Question 1:", "Next:", "Test:", "Quiz:", "Riddle:", "Then", "First,", "He asked:", "She wants to know:", "*", "You ask:",
           "Problem:")
BRIDGES = ("", "A:", "Answer:", "Reply:", "Say:", "-", "Why,", "Well,", "I say:", "It is", "Result:", "=", "Clearly,",
           "She said:", "So:", "My answer:", "Let us say", "Solution:", "Hm,", "...", "They say", "Then", "I think", "=>")
ALL_FORMS = max(len(OPENERS), len(BRIDGES))
NO_ENTITY = "none"


def pattern(form):
    """The regular expression that undoes an entity form. `text` is as short as it can be, `about` takes the rest."""
    types = "|".join(TYPES)
    parts = {"{text}": "(?P<text>.+?)", "{a}": "an?", "{type}": f"(?P<type>{types})", "{about}": "(?P<about>.+)"}
    return re.compile("".join(parts.get(part) or re.escape(part) for part in re.split(r"(\{\w+\})", form)))


ENTITY_PATTERNS = tuple(pattern(form) for form in ENTITY_FORMS)


def fill(form, entity):
    """("{text} is {a} {type}, {about}", Opel the organisation) -> "Opel is an organisation, employer"."""
    return form.format(a="an" if entity["type"][0] in "aeiou" else "a", **entity)


@functools.lru_cache(maxsize=1 << 16)               # the same few entities and forms come again and again
def entity_line(text, type, about, form):
    """One entity in form number `form`, or in the plain one where that could be read in another way: the form
    "{type}: {text}, {about}" of the entity "Paris, France" would give the entity "Paris", about "France, ..."."""
    entity = {"text": text, "type": type, "about": about}
    line = fill(ENTITY_FORMS[form], entity)
    return line if parse_entity(line) == entity else fill(ENTITY_FORMS[0], entity)


def draw(options, forms, rng):
    """One of the first `forms` options; the first, empty one about every other time."""
    return options[0] if forms == 1 or rng.random() < 0.5 else options[rng.randrange(1, min(forms, len(options)))]


def question_texts(question, forms, rng):
    """("Where did Anna go?", 8, rng) -> [" Q:", " Where did Anna go?", " A:"], what stands before the answer; opener
    and bridge are drawn from the first `forms` of each."""
    parts = draw(OPENERS, forms, rng), question, draw(BRIDGES, forms, rng)
    return [" " + part for part in parts if part]


def parse_entity(line):
    """One entity line in any form -> {"text", "type", "about"}, or None."""
    for expression in ENTITY_PATTERNS:
        match = expression.fullmatch(line.strip())
        if match:
            return match.groupdict()


def parse_question(line):
    """One question line in any form -> {"question", "answer"}, or None: the first '?' ends the question."""
    question, mark, answer = line.strip().partition("?")
    parts = []
    for text, words in ((question, OPENERS), (answer, BRIDGES)):
        text = text.strip()
        parts.append(next((text[len(word):].strip() for word in words[1:] if text.startswith(word + " ")), text))
    return {"question": parts[0] + "?", "answer": parts[1]} if mark and all(parts) else None


def parse_entities(text):
    """Text of several lines -> list of entities. A line in no known form, such as "none", is dropped."""
    return [entity for entity in map(parse_entity, lines_of(text)) if entity]


def parse_questions(text):
    """Text of several lines -> list of {"question", "answer"}. A line that is no question with its answer is dropped."""
    return [question for question in map(parse_question, lines_of(text)) if question]


def lines_of(text):
    """The lines that are not blank; len(lines_of(text)) - len(parse_...(text)) counts what parsing dropped."""
    return [line for line in text.split("\n") if line.strip()]


# ----------------------------------------------------------------------------------------------------------------------
# For the eye

def marked(sentence, entities):
    """("Anna left.", [Anna, person]) -> "[Anna|person] left." A longer entity goes before one inside it."""
    types = {entity["text"]: entity["type"] for entity in entities if entity["text"] in sentence}
    words = "|".join(re.escape(text) for text in sorted(types, key=len, reverse=True))
    return re.sub(rf"(?<!\w)(?:{words})(?!\w)", lambda m: f"[{m[0]}|{types[m[0]]}]", sentence) if types else sentence
