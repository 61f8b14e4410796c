"""Prompts with responses from a JSONL file, as instruction data sets are published.

    pairs = read_instructions("dolly.jsonl")       # [(prompt, response), ...]

One object a line. The prompt is "instruction", and below it "input" or "context" if there is one, or it is
"prompt"; the response is "output" or "response". Other fields are ignored.
"""
import json

from data.cli import brief

ANSWER = "\n\nAnswer:"        # what a prompt ends with; the response follows behind a space


def field(record, names):
    """The first of the fields that is there, as text without white space around it; None if none is."""
    for name in names:
        if isinstance(record.get(name), str):
            return record[name].strip()
    return None


def read_instructions(path):
    """A JSONL file -> list of (prompt, response), two str each. ValueError "file:line: ..." for a bad one."""
    pairs = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not JSON in UTF-8 ({brief(error)})") from None
            asked = field(record, ("instruction", "prompt")) if isinstance(record, dict) else None
            response = asked and field(record, ("output", "response"))
            if not response:
                raise ValueError(f'{path}:{number}: expected an object with "instruction" (and "input" or '
                                 '"context") or "prompt", and "output" or "response", none of them empty')
            given = field(record, ("input", "context"))
            pairs.append((asked + (f"\n\n{given}" if given else "") + ANSWER, response))
    if not pairs:
        raise ValueError(f"{path}: no prompts; expected one JSON object a line")
    return pairs
