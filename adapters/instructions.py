"""Prompts with responses from a JSONL file, as instruction data sets are published.

    pairs = read_instructions("dolly.jsonl")       # [(prompt, response), ...]

One object a line, or all in one array. The prompt is "instruction", and below it "input" or "context" if
there is one, or it is "prompt"; the response is "output" or "response". Other fields are ignored.
"""
from data.cli import printable
from data.own_text import json_rows, named

ANSWER = "\n\nAnswer:"        # behind a prompt without a chat template; the response follows behind a space


def field(record, *names):
    """The first of the fields that is there, as text without white space around it; "" if none is."""
    return next((record[name].strip() for name in names if isinstance(record.get(name), str)), "")


def read_instructions(path, responses=True):
    """A file -> list of (prompt, response), two str each. Rows with an empty response are left out; a line
    says how many. ValueError "file: line 3: ..." for a row without these fields or without a prompt.
    responses: False where they may be missing, and are "" then."""
    pairs, empty = [], []
    with named(path):
        for place, record in json_rows(path):
            asked, given = field(record, "instruction", "prompt"), field(record, "input", "context")
            response = field(record, "output", "response")
            if not asked or responses and not {"output", "response"} & set(record):
                raise ValueError(f'{place}: expected an object with "instruction" (and "input" or "context") '
                                 'or "prompt", not empty, and "output" or "response"')
            if response or not responses:
                pairs.append((asked + (f"\n\n{given}" if given else ""), response))
            else:
                empty.append(place)
        if not pairs:
            raise ValueError("no prompts with responses; expected JSON objects, one a line or in an array")
    if empty:
        print(printable(f"{path}: {len(empty):,} rows with an empty response left out, first {empty[0]}"))
    return pairs
