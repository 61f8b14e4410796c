"""Grades a folder: runs the checks of an assignment, gives points, and a hint for every check that fails.

    python -m course.grade FOLDER 5                     one assignment
    python -m course.grade FOLDER                       all whose page (course/N-NAME.md) is in the folder
    python -m course.grade FOLDER 5 --json book.json    also writes the result to a file, for a gradebook
    python -m course.grade --mutants                    tests the grader: every wrong answer must lose points

The checks are the functions `check_...(points=2)` in course/checks/N-NAME.py beside this file, so a student
cannot change those of a teacher; their docstrings are the hints. They run in another process
(course/checking.py); where it takes too long or dies, that check fails and the others still run.
"""

import argparse
import ast
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from course.assignments import ASSIGNMENTS, REPOSITORY, changed, read_changes
from course.make import copy
from data.cli import printable, run_command

COURSE = REPOSITORY / "course"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def path_of_checks(number):
    return COURSE / "checks" / f"{ASSIGNMENTS[number].name}.py"


@functools.cache
def read_checks(number):
    """The checks of an assignment in the order in which they run: list of (name, points, hint)."""
    tree = ast.parse(path_of_checks(number).read_text(encoding="utf-8"))
    return [(node.name, node.args.defaults[0].value, " ".join(ast.get_docstring(node).split()))
            for node in tree.body if getattr(node, "name", "").startswith("check_")]


def ask(process, question):
    """One question to the process -> None, or one line that says what failed."""
    try:
        print(json.dumps(question), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())
    except (BrokenPipeError, ValueError):
        process.kill()
        process.wait()
        return f"the process ended, or took {question['limit']:g} seconds; is there an endless loop?"


def run_checks(jobs, seed, stop=False, limit=30.0):
    """Runs the checks of jobs (number, folder) -> for each a dict of check -> None, or one line that says
    what is wrong. stop: after the first check of a job that fails; limit: seconds that a check may take."""
    options = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
                   env=os.environ | ENVIRONMENT)
    results, process = [], None
    with tempfile.TemporaryDirectory() as cwd:
        for number, folder in jobs:
            question = {"folder": str(Path(folder).resolve()), "checks": str(path_of_checks(number)),
                        "seed": seed}
            results.append({})
            for name, *_ in read_checks(number):
                if process is None or process.poll() is not None:
                    process = subprocess.Popen([sys.executable, COURSE / "checking.py"], cwd=cwd, **options)
                results[-1][name] = ask(process, {**question, "name": name, "limit": limit})
                if stop and results[-1][name]:
                    break
        if process:
            process.kill()
            process.wait()
    return results


def grade(folder, numbers, limit, seed):
    """Grades assignments and prints points and hints -> {number: {"name", "points", "out_of",
    "checks": a list of {"name", "points", "out_of", "failed", "hint"}}}."""
    graded = {}
    for number, found in zip(numbers, run_checks([(number, folder) for number in numbers], seed, limit=limit)):
        rows = [{"name": name, "points": 0 if found[name] else points, "out_of": points,
                 "failed": found[name], "hint": hint} for name, points, hint in read_checks(number)]
        for row in rows:
            print("  {points}/{out_of}  {name}".format(**row))
            if row["failed"]:
                print(printable(f"       found   {row['failed']}"), f"       hint    {row['hint']}", sep="\n")
        sums = {field: sum(row[field] for row in rows) for field in ("points", "out_of")}
        graded[number] = {"name": ASSIGNMENTS[number].name, **sums, "checks": rows}
        print("{name}: {points} of {out_of} points".format(**graded[number]))
    return graded


def read_answers(number, kind):
    """The "wrong" or the "right" answers to an assignment in course/mutants: list of Change."""
    path = COURSE / "mutants" / f"{ASSIGNMENTS[number].name}.{kind}.txt"
    return read_changes(path.read_text(encoding="utf-8"))


def write_mutant(change, folder):
    """A copy of what the checks need of the repository, with one change in it -> the folder."""
    copy(("*.py", "data/*.*", "data/teacher/header.json", "experiments/*.py", "course/*.*"), folder)
    path = Path(folder) / change.file
    path.write_text(changed(path.read_text(encoding="utf-8"), change), encoding="utf-8")
    return folder


def run_answers(number, kind, seed):
    """Tries the "wrong" or the "right" answers to an assignment, prints what each met -> (as they should be,
    tried): a wrong answer loses points, a right one earns all."""
    changes, good = read_answers(number, kind), 0
    with tempfile.TemporaryDirectory() as top:
        jobs = [(number, write_mutant(change, f"{top}/{i}")) for i, change in enumerate(changes)]
        for change, found in zip(changes, run_checks(jobs, seed, stop=True)):
            check, failed = list(found.items())[-1]                     # the one that failed, if any
            good += (failed is not None) == (kind == "wrong")
            word = {"wrong": ("MISSED", "caught"), "right": ("passed", "REFUSED")}[kind][failed is not None]
            print(f"  {word}  {change.what}\n          {check}: {failed!s:.90}")
    return good, len(changes)


def main(arguments=None):
    """The command -> exit code, 1 where a wrong answer is not caught; ValueError for a bad folder."""
    parser = argparse.ArgumentParser(prog="python -m course.grade", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="no folder", help="the student's")
    parser.add_argument("number", nargs="?", type=int, choices=ASSIGNMENTS, help="of the assignment")
    parser.add_argument("--json", type=Path, help="a file for points and messages")
    parser.add_argument("--mutants", action="store_true", help="try the wrong and the right answers")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs of the checks [0]")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds that a check may take [30]")
    options = parser.parse_args(arguments)
    if options.mutants:
        numbers = [n for n in ASSIGNMENTS if options.number in (None, n)]
        found = {(n, kind): run_answers(n, kind, options.seed) for n in numbers for kind in ("wrong", "right")}
        for (n, kind), (good, tried) in found.items():
            print(f"{ASSIGNMENTS[n].name:14}{good:4} of {tried} {kind} answers "
                  f"{'lose points' if kind == 'wrong' else 'earn all points'}")
        return int(any(good < tried for good, tried in found.values()))
    pages = Path(options.folder) / "course"
    numbers = [n for n, one in ASSIGNMENTS.items()
               if options.number in (None, n) and (pages / f"{one.name}.md").is_file()]
    if not numbers:
        raise ValueError(f"{pages}: no page of an assignment; expected a folder of python -m course.make")
    graded = grade(options.folder, numbers, options.limit, options.seed)
    if options.json:
        sums = {name: sum(result[name] for result in graded.values()) for name in ("points", "out_of")}
        book = {"folder": options.folder, **sums, "assignments": graded}
        options.json.write_text(json.dumps(book, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_command(main)
