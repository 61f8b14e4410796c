"""The tables of a run as text: what `python train.py` prints at its end, made of out/results.json."""

from data.cli import printable
from data.figures import cell

STUDENTS = ("plain", "brd", "distilled")
FILES = {                   # what a run leaves in --out_dir; --redo throws it away
    "README.txt": "this list", "run.json": "the options, and hashes of text, tokenizer, tasks and cache",
    "stages": "a note for each finished stage: SHA-256 of its files", "plan.json": "tokens for --minutes",
    "annotations.jsonl": "the scripted reader's entities and questions, a line a sentence",
    "text": "own text: tokens.bin, validation.txt, tokenizer", "start": "the common start of all students",
    **dict.fromkeys(STUDENTS, "a student: model, tokenizer, test.json; training.pt while it learns"),
    "results.json": "every figure", "report.html": "the same in pictures: python -m experiments.report"}
READING = {"entity_f1": "entity F1", "answer.wh": "wh questions, exact",
           "answer.yes_no": "yes/no questions, exact", "answer.attitude": "attitude, exact",
           "raised.right": "own questions, right"}
PLACES = {"single": "single sentences", "paragraph": "paragraphs, two people", "corpus": "text of the corpus"}


def table(students):
    """{name: results} -> the lines of the table: (label, [a cell a student]); a heading has no cells."""
    everyone, first = students.values(), next(iter(students.values()))
    for place in first["reading"]:
        yield f"reading {PLACES[place]}, free-running", []
        for name, label in READING.items():
            yield f"  {label}", [cell(s["reading"][place].get(name)) for s in everyone]
    yield "blind tasks (n, chance)", []
    for name, task in first["blind"].items():
        found = [s["blind"][name] for s in everyone]
        cells = [cell({"value": t["accuracy"], "se": t["se"]}) for t in found]
        yield f"  {name} ({task['n']}, {task['chance']:.2f})", cells
    yield "", []
    yield "plain text, bits a byte", [f"{s['plain_bits_per_byte']:.3f}" for s in everyone]
    yield "tokens seen", [f"{s['tokens_seen']:,}" for s in everyone]


def report(results):
    """A run as text: its tables, or bits per byte and a sample for a text of one's own."""
    plain = results["students"]["plain"]
    if "sample" in plain:
        read = f"{plain['tokens_seen']:,} tokens read"
        lines = [f"{plain['bits_per_byte']:.3f} bits per byte of held-out text, {read}", "",
                 "A sample that continues the first held-out words:", *plain["sample"].split("\n")]
        return "\n".join(map(printable, lines))
    lines = []
    for label, cells in [("", list(results["students"])), *table(results["students"])]:
        if not cells and label:
            lines.append("")
        lines.append(f"{label:38}" + "".join(f"{text:>14}" for text in cells) if cells else label)
    return "\n".join(map(printable, lines))
