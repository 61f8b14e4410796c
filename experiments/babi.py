"""The bAbI tasks (Weston et al. 2015), of which no student has read a line: blind, and with some labels.

    python -m adapters.download babi && tar -xf downloads/babi/tasks_1-20_v1-2.tar.gz -C downloads
    python -m experiments.babi downloads/tasks_1-20_v1-2/en/*_train.txt --runs out out2 out3
    python -m experiments.babi FILES --runs out out2 out3 --labels=64        # supervised
    python -m experiments.babi --show experiments/results/babi.jsonl         # the tables of runs kept here

--runs are folders of finished runs of train.py with different seeds; --students of them are tested. Labels
come from the first half of a file's stories, and the second half is the test; --half=dev tests blind on the
first, to decide what is still open. Every test is a line of --out: a stopped command goes on, and more
students, seeds or labels add lines. In "credits" an item is a sign (tables.packed), a story a word.
"""

import argparse
import importlib
import math
import random
import re
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import brd
from data.cli import Parser, check_range, printable, run_command
from data.figures import ratio_se
from data.files import folder_lock, hash_of
from data.machine import worker_pool
from experiments import blind
from experiments.report import load_student, read_results
from experiments.tables import Value, joint_error, packed, parse_with_show, read_rows, run_all, unpacked

KEY = ("file", "student", "seed", "labels", "half", "hash")     # of a test; hash: of task file and student
PASSES = {64: 20, 500: 6, math.inf: 3}      # how often labelled items are read, by how many there are at most
CLEAR = 5                                   # standard errors from which on a difference counts here


def halves(path):
    """A file of bAbI as two lists of (item, number of its story): the stories before the one that holds the
    middle item, and the others.
    ValueError for another file, and for fewer than two stories in a half."""
    task, *_ = importlib.import_module("adapters.task_files").load_tasks(path)
    stories = task.get("stories", [0])
    middle, pairs = stories[len(stories) // 2], list(zip(task["items"], stories))
    found = [[pair for pair in pairs if (pair[1] < middle) == is_first] for is_first in (True, False)]
    if min(len({story for _, story in half}) for half in found) < 2:
        raise ValueError(f"{path}: expected a file of bAbI, with two stories in each half")
    return found


def by_story(credits, stories):
    """Packed credits of items, a word a story."""
    pairs = groupby(zip(stories, credits), lambda pair: pair[0])
    return " ".join(packed(credit for _, credit in some) for _, some in pairs)


def test(job):
    """One test -> {the names of KEY, "cut": number of prompts cut on the left, "credits" of the items,
    "majority": those of the answer that is right most often}. job: (*key, task file, folder of a run)."""
    torch.set_num_threads(1)
    file, name, seed, labels, half, _, path, folder = job
    model, tokenizer = load_student(Path(folder) / name)
    first, second = halves(path)
    items, stories = zip(*(first if half == "dev" else second))
    if labels:
        drawn = random.Random(f"{file} {seed}").sample(first, min(labels, len(first)))
        shown, passes = [item for item, _ in drawn], next(n for most, n in PASSES.items() if labels <= most)
        options = SimpleNamespace(seed=seed, device="cpu")
        model = blind.teach(model, tokenizer, shown, blind.gold_answers(shown), options, passes)
    found = brd.eval_task(model, tokenizer, {"name": name, "items": items})
    right = blind.gold_answers(items)
    often = max(sorted(set(right)), key=right.count)
    return {**dict(zip(KEY, job)), "cut": found["cut"], "credits": by_story(found["credits"], stories),
            "majority": by_story([float(answer == often) for answer in right], stories)}


def read(path):
    """The lines of a file of results -> {values of KEY: dict}; ValueError names a line that is none."""
    def is_test(row):
        sizes = [[len(word) for word in str(row.get(name)).split()] for name in ("credits", "majority")]
        return {"cut", "credits", "majority"} <= set(row) and sizes[0] == sizes[1]
    return read_rows(path, KEY, "no test of experiments.babi; without this line it is made again", is_test)


def jobs_of(options):
    """{values of KEY: (task file, folder of a run)} of all tests that are asked for; ValueError for a file, a
    run or a student that cannot be tested."""
    jobs, files = {}, [path for path in options.files if halves(path)]
    for folder in options.runs:
        results = read_results(Path(folder))
        for name in options.students.split(","):
            if name not in results["students"]:
                raise ValueError(f"{folder}: no student {name}; expected {', '.join(results['students'])}")
            for path in files:
                found = hash_of(Path(path), Path(folder, name, "model.pt"))
                key = Path(path).name, name, results["seed"], options.labels, options.half, found
                jobs[key] = path, folder
    return jobs


def run(options):
    """Makes the lines of options.out that are not there yet."""
    out, jobs = Path(options.out), jobs_of(options)
    with folder_lock(out.parent):
        keys = {*(read(out) if out.exists() else ()), *jobs}
        if len({key[:-1] for key in keys}) < len(keys):
            raise ValueError(f"{out}: holds tests of another file or student of the same name and seed; use "
                             "another --out")
        with worker_pool(options.workers) as pool:
            run_all([(*key, *job) for key, job in jobs.items()], out, pool, "tests", test, KEY)


def value_of(found, name, minus=None):
    """Value of a student on one file, or of its difference from another, over the seeds that both have; None
    without any. found: {student: {seed: (n,) credits}} and "items", (n,) their number, in n stories. A story
    is the unit of the error over items, as its items are alike."""
    seeds = [seed for seed in found.get(name, ()) if not minus or seed in found.get(minus, ())]
    if not seeds:
        return None
    rows = np.array([found[name][seed] - (found[minus][seed] if minus else 0) for seed in seeds])
    over_stories = ratio_se([(a, b, b) for a, b in zip(rows.mean(0), found["items"])])      # rows (seeds, n)
    error = joint_error(over_stories["se"], rows.sum(1) / found["items"].sum())
    return Value(float(over_stories["value"]), error)


def label(file):
    """The number of a task, or the name of a file that has none."""
    number = re.match(r"qa(\d+)_", file)
    return number[1] if number else file


def table(rows):
    """Lines of Markdown for one number of labels and one half: a task a line, means over seeds ± errors."""
    names = sorted({row["student"] for row in rows}, key=lambda name: (name != "plain", name))
    files, signs = {}, {}
    for row in rows:
        words = {name: row[name].split() for name in ("credits", "majority")}
        found = files.setdefault(row["file"], {"items": np.array(list(map(len, words["majority"])))})
        if row["majority"] != signs.setdefault(row["file"], row["majority"]):
            raise ValueError(f"{row['file']}: tests of two files of this name; expected an --out for each")
        for name, some in ((row["student"], words["credits"]), ("majority", words["majority"])):
            found.setdefault(name, {})[row["seed"]] = np.array([unpacked(word).sum() for word in some])
    yield f"| task | majority | {' | '.join(names)} | brd - plain, in SE | brd - majority, in SE |"
    yield "|---" * (len(names) + 4) + "|"
    columns, clear = [], []
    for file, found in sorted(files.items(), key=lambda pair: label(pair[0]).zfill(3)):
        values = [value_of(found, name) for name in ("majority", *names)]
        gains = [value_of(found, "brd", minus) for minus in ("plain", "majority")]
        clear += [label(file)] if all(gain and gain.times > CLEAR for gain in gains) else []
        columns.append([value and value.mean for value in values])
        forms = ["{0.mean:.3f}", *["{0.mean:.3f} ± {0.error:.3f}"] * len(names)]
        forms += ["{0.mean:+.3f}, {0.times:+.1f}"] * 2
        cells = (form.format(value) if value else "-" for form, value in zip(forms, values + gains))
        yield f"| {label(file)} | {' | '.join(cells)} |"
    means = ["-" if None in some else f"{sum(some) / len(some):.3f}" for some in zip(*columns)]
    yield f"| mean of {len(files)} | {' | '.join(means)} | | |"
    yield ""
    yield (f"brd is more than {CLEAR} SE above plain text and above the majority answer on {len(clear)} of "
           f"{len(files)} tasks: {', '.join(clear) or '-'}")
    if cut := sorted({label(row["file"]).zfill(2) for row in rows if row["cut"]}):
        yield f"Prompts that a student cannot read whole, cut on the left, are in: {', '.join(cut)}"


def show(rows):
    """Lines: a table for each number of labels and half."""
    for labels, half in sorted({(row["labels"], row["half"]) for row in rows}):
        some = [row for row in rows if (row["labels"], row["half"]) == (labels, half)]
        seeds = len({row["seed"] for row in some})
        yield from ("", f"{labels} labels, {half} half, {seeds} seeds", "", *table(some))


def main(arguments=None):
    """The tests and their tables; ValueError or OSError for what the user can mend."""
    parser = Parser(prog="babi", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="task files as published")
    parser.add_argument("--runs", nargs="+", default=["out"], help="folders of finished runs [out]")
    parser.add_argument("--students", default="plain,brd,brd+td", help="of each run [plain,brd,brd+td]")
    parser.add_argument("--labels", type=int, default=0, help="items to learn from, at most; 0: blind [0]")
    parser.add_argument("--half", choices=("test", "dev"), default="test", help="what is tested on [test]")
    parser.add_argument("--out", default="out/babi.jsonl", help="the file of results [out/babi.jsonl]")
    options = parse_with_show(parser, arguments)
    check_range("labels", options.labels)
    if options.labels and options.half == "dev":
        raise ValueError("--labels come from the dev half, so it is no test then; leave out --half=dev")
    if not (options.files or options.show):
        raise ValueError("no task file; expected files of bAbI, see python -m adapters.download babi")
    if not options.show:
        run(options)
    print("\n".join(map(printable, show(read(options.show or options.out).values()))))


if __name__ == "__main__":
    run_command(main)
