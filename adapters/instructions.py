"""Prompts with responses from a JSONL file, as instruction data sets are published.

    pairs = read_instructions("dolly.jsonl")       # [(prompt, response), ...]

One object a line. The prompt is "instruction", and below it "input" or "context" if there is one, or it is
"prompt"; the response is "output" or "response". Other fields are ignored.
"""
import json

from data.cli import brief

ANSWER = "\n\nAnswer:"        # what a prompt ends with; the response follows behind a space


def field(record, *names):
    """The first of the fields that is there, as text without white space around it; "" if none is."""
    return next((record[name].strip() for name in names if isinstance(record.get(name), str)), "")


def read_instructions(path):
    """A JSONL file -> list of (prompt, response), two str each. ValueError "file:line: ..." for a bad one."""
    pairs = []
    with open(path, "rb") as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    for number, line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON in UTF-8 ({brief(error)})") from None
        record = record if isinstance(record, dict) else {}
        asked, given = field(record, "instruction", "prompt"), field(record, "input", "context")
        response = field(record, "output", "response")
        if not asked or not response:
            raise ValueError(f'{path}:{number}: expected an object with "instruction" (and "input" or '
                             '"context") or "prompt", and "output" or "response", none of them empty')
        pairs.append((asked + (f"\n\n{given}" if given else "") + ANSWER, response))
    if not pairs:
        raise ValueError(f"{path}: no prompts; expected one JSON object a line")
    return pairs
