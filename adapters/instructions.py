"""Prompts with responses from a JSON file, as instruction data sets are published.

    pairs = read_instructions("dolly.jsonl")                        # [(prompt, response), ...]
    pairs = read_instructions("question.jsonl", responses=False)     # without a response: (prompt, "")

One object a line, or all in one array. The prompt is "instruction", and below it "input" or "context" if
there is one, or it is "prompt", or "text"; the response is "output" or "response". "instances" is a list of
objects with the fields that they do not share. Other fields are ignored.

    Dolly      {"instruction", "context", "response", "category"}
    SelfInst   {"id", "motivation_app", "instruction", "instances": [{"input", "output"}, ...]}
    Vicuna     {"question_id", "text", "category"}, without references
    MiniLLM's  {"instruction", "prompt", "input", "output"}: of all three
"""
from data.cli import printable
from data.own_text import json_rows, named

ANSWER = "\n\nAnswer:"        # behind a prompt without a chat template; the response follows behind a space


def field(record, *names):
    """The first of the fields that is there, as text without white space around it; "" if none is."""
    return next((record[name].strip() for name in names if isinstance(record.get(name), str)), "")


def instances(place, record):
    """Yields (place, prompt, response) for each instance of a row; ValueError for a row without a prompt."""
    parts = record.get("instances") or [{}]
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f'{place}: expected "instances" to be a list of objects')
    for part in parts:
        part = record | part
        asked, given = field(part, "instruction", "prompt", "text"), field(part, "input", "context")
        if not asked:
            raise ValueError(f'{place}: expected an object with "instruction" (and "input" or "context"), '
                             '"prompt" or "text", not empty')
        yield place, asked + (f"\n\n{given}" if given else ""), field(part, "output", "response")


def read_instructions(path, responses=True):
    """A file -> list of (prompt, response), two str each. Rows without a response are left out, a line says
    how many; with responses=False they are kept, and it is "". ValueError "file: line 3: ..." for a row
    without a prompt, and for a file that has nothing to give."""
    with named(path):
        rows = [row for place, record in json_rows(path) for row in instances(place, record)]
        empty = [place for place, _, response in rows if responses and not response]
        pairs = [(prompt, response) for _, prompt, response in rows if response or not responses]
        if not pairs:
            raise ValueError("no prompts with responses; expected JSON objects, one a line or in an array"
                             if responses else "no prompts; expected JSON objects, one a line or in an array")
    if empty:
        print(printable(f"{path}: {len(empty):,} rows without a response left out, first {empty[0]}"))
    return pairs
