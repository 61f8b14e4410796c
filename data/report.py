"""The tables of a run as text: what `python train.py` prints at its end, made of out/results.json."""

from data.cli import printable
from data.figures import cell, paired_se, ratio_se

STUDENTS = ("plain", "brd")
ARMS = {                    # what goes on from the finished `brd`, for as many tokens as the teacher's cache
    "gold": "more of the scripted reader's annotations",
    "seqkd": "the teacher's cached readings, the tokens taken alone",
    "kd": "its top-p sets in place of these tokens: forward KL and leak",
    "td": "kd and the squared residual of a temporal difference (TD), with a value head",
    "td0": "td with V(s') = 0: the same penalty without a future",
    "improve": "kd to the teacher times exp U: more of the choices after which the student stays in its sets"}
FILES = {                   # what a run leaves in --out_dir; --redo throws it away
    "README.txt": "this list", "run.json": "the options, and hashes of text, tasks and cache",
    "stages": "a note for each finished stage: SHA-256 of its files", "plan.json": "tokens for --minutes",
    **dict.fromkeys(("tokenizer.tiktoken", "tokenizer.json"), "of all students of the built-in world"),
    "annotations.jsonl": "the scripted reader's entities and questions, a line a sentence",
    "text": "own text: tokens.bin, validation.txt, tokenizer", "start": "the common start of all students",
    **dict.fromkeys(STUDENTS, "a student: model, tokenizer, test.json; training.pt while it learns"),
    **{f"brd+{arm}": f"an arm: {what}" for arm, what in ARMS.items()},
    "results.json": "every figure", "report.html": "the same in pictures: python -m experiments.report"}
READING = {"entity_f1": "entity F1", "answer.wh": "wh questions, exact",
           "answer.yes_no": "yes/no questions, exact", "answer.no": "false claims, rejected",
           "answer.structure": "structure, exact", "answer.attitude": "attitude, exact",
           "raised.right": "own questions, right"}
PLACES = {"single": "single sentences", "paragraph": "paragraphs, two people",
          "alike": "two people who did alike", "corpus": "text of the corpus"}


def majority(entries):
    """The majority baseline of the figures of a line as a cell; several where the tests of two runs differ,
    "-" of a run that has none."""
    shares = [entry.get("majority") for entry in entries if entry]
    return "/".join(dict.fromkeys("-" if share is None else f"{share:.3f}" for share in shares)) or "-"


def table(students):
    """{name: results} -> the lines of the table: (label, [majority baseline, a cell a student]), the head
    first; a heading has no cells."""
    everyone, first = students.values(), next(iter(students.values()))
    yield "", ["majority", *students]
    for place in first["reading"]:
        yield f"reading {PLACES[place]}, free-running", []
        for name, label in READING.items():
            found = [s["reading"].get(place, {}).get(name) for s in everyone]
            if any(entry and entry["value"] is not None for entry in found):
                yield f"  {label}", [majority(found), *map(cell, found)]
    yield "blind tasks (n, chance)", []
    for name, task in first["blind"].items():
        found = [s["blind"].get(name) for s in everyone]
        cells = [cell(t and {"value": t["accuracy"], "se": t["se"]}) for t in found]
        yield f"  {name} ({task['n']}, {task['chance']:.2f})", [majority(found), *cells]
    yield "", []
    yield "plain text, bits a byte", ["", *(f"{s['plain_bits_per_byte']:.3f}" for s in everyone)]
    yield "tokens seen", ["", *(f"{s['tokens_seen']:,}" for s in everyone)]


# The table of the arms, label: (part of a student's results, figure); "beside_teacher": see brd.py, part 3.
ARM_ROWS = {"entity F1": ("reading", "entity_f1"), "wh questions, exact": ("reading", "answer.wh"),
            "yes/no questions, exact": ("reading", "answer.yes_no"), "blind tasks, mean": ("blind", ""),
            "own questions at T=1, right": ("beside_teacher", "right"),
            "  different right ones per sentence": ("beside_teacher", "distinct"),
            "teacher's nats per token of them": ("beside_teacher", "nats"),
            "probability outside A_p": ("beside_teacher", "outside"),
            "TD residual^2, best linear v(s)": ("beside_teacher", "residual")}
# Which differences: teacher or program? sets or tokens? a residual? its V(s')? an improved teacher?
PAIRS = ("+seqkd", "+gold"), ("+kd", "+seqkd"), ("+td", "+kd"), ("+td", "+td0"), ("+improve", "+kd")


def counts(student, part, figure):
    """The counts (a, b, n) of the units of a figure: paragraphs, items or documents."""
    if part == "blind":
        return [(credit, 1, 1) for task in student["blind"].values() for credit in task["credits"]]
    return student["reading"]["paragraph"][figure]["groups"] if part == "reading" else student[part][figure]


def arm_table(students):
    """Lines as of `table`: the arms in the columns, then differences, paired unit by unit, with errors."""
    arms = {name.removeprefix("brd"): s for name, s in students.items() if s["beside_teacher"]}
    pairs = [pair for pair in PAIRS if set(pair) <= set(arms)]
    rows = {label: (part, figure) for label, (part, figure) in ARM_ROWS.items()
            if part != "beside_teacher" or all(figure in s[part] for s in arms.values())}
    if len(arms) > 1:
        more = list(arms.values())[-1]["tokens_seen"] - arms[""]["tokens_seen"]
        yield "", []
        yield f"brd, and {more:,} tokens more", [arm or "brd" for arm in arms]
        for label, place in rows.items():
            yield f"  {label}", [cell(ratio_se(counts(s, *place))) for s in arms.values()]
        if len(rows) < len(ARM_ROWS):
            yield "own questions: not tested, the cache has no folder `model` with the teacher's weights", []
    if pairs:
        yield "", []
        yield "differences, paired", [f"{one[1:]} - {other[1:]}" for one, other in pairs]
        for label, place in rows.items():
            found = [paired_se(*(counts(arms[arm], *place) for arm in pair)) for pair in pairs]
            yield f"  {label}", [cell(difference, "+.3f") for difference in found]


def report(results):
    """A run as text: its tables, or bits per byte and a sample for a text of one's own."""
    plain = results["students"]["plain"]
    if "sample" in plain:
        read = f"{plain['tokens_seen']:,} tokens read, {plain['passes']:.1f} times the text"
        lines = [f"{plain['bits_per_byte']:.3f} bits per byte of held-out text, {read}", "",
                 "A sample that continues the first held-out words:", *plain["sample"].split("\n")]
        return "\n".join(map(printable, lines))
    everyone = results["students"]
    two = {name: everyone[name] for name in STUDENTS if name in everyone}
    return layout([*table(two), *arm_table(everyone)])


def layout(rows):
    """Lines as of `table` -> text in columns."""
    lines, width = [], max(14, *(len(text) + 2 for _, cells in rows for text in cells))
    for label, cells in rows:
        if not cells and label:
            lines.append("")
        lines.append(f"{label:38}" + "".join(f"{text:>{width}}" for text in cells) if cells else label)
    return "\n".join(map(printable, lines))
