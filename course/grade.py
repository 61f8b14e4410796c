"""Grades a folder: runs the checks of an assignment, gives points, and prints a hint for every check that fails.

    python -m course.grade FOLDER 5                     one assignment
    python -m course.grade FOLDER                       all whose page (course/N-NAME.md) is in the folder
    python -m course.grade FOLDER 5 --json book.json    also writes points and messages to a file, for a gradebook
    python -m course.grade --mutants                    tests the grader: every wrong answer must lose points

The checks are the functions `check_...(points=2)` in course/checks/N-NAME.py beside this file, so a student cannot
change those of a teacher. Their docstrings are the hints. They run in another process (course/checking.py says what
it may do); where a check takes too long or the process dies, that check fails and the others still run.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from course.assignments import ASSIGNMENTS, changed, read_changes
from data.cli import printable, run_command

COURSE = Path(__file__).resolve().parent
LIMIT = 30.0            # seconds that a check may take
LOADING = 60.0          # seconds in which torch and the student's files must be loaded


def read_checks(number):
    """The checks of an assignment in the order in which they run: list of (name, points, hint)."""
    tree = ast.parse((COURSE / "checks" / f"{ASSIGNMENTS[number].name}.py").read_text(encoding="utf-8"))
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")]
    return [(node.name, node.args.defaults[0].value, " ".join(ast.get_docstring(node).split())) for node in checks]


def job_of(number, folder, stop=False):
    """What run_jobs does for one assignment and one folder; stop: at the first check that fails."""
    return {"folder": str(Path(folder).resolve()), "checks": str(COURSE / "checks" / f"{ASSIGNMENTS[number].name}.py"),
            "names": [name for name, *_ in read_checks(number)], "stop": stop}


# ---------------------------------------------------------------------------------------------------------------
# The process that runs checks


def ask(process, job, name, limit):
    """One question to the process -> None, or one line that says what failed. A process that does not answer in
    time is killed."""
    begin, timer = time.monotonic(), threading.Timer(limit, process.kill)
    timer.start()
    try:
        process.stdin.write(json.dumps({**job, "name": name}) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    timer.cancel()
    if answer:
        return json.loads(answer)
    process.kill()
    process.wait()
    if time.monotonic() - begin >= limit:
        return f"no result within {limit:g} seconds; is there an endless loop?"
    return "the process ended in the middle of this check"


def run_jobs(jobs, limit=LIMIT):
    """Runs jobs (see job_of), in one process as long as it lives -> for each a dict of check -> (failed, seconds);
    failed is None, or one line that says what is wrong."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    results, process = [], None
    with tempfile.TemporaryDirectory() as cwd:
        for job in jobs:
            results.append({})
            problem = None
            for name in ["", *job["names"]]:                # "" loads the checks
                if process is None or process.poll() is not None:
                    process = subprocess.Popen([sys.executable, COURSE / "checking.py"], env=environment, cwd=cwd, **pipes)
                begin = time.perf_counter()
                failed = problem or ask(process, job, name, limit if name else limit + LOADING)
                if not name:
                    problem = failed                        # then every check fails with it
                    continue
                results[-1][name] = failed, round(time.perf_counter() - begin, 2)
                if failed and job["stop"]:
                    break
        if process is not None:
            process.kill()
            process.wait()
    return results


# ---------------------------------------------------------------------------------------------------------------
# Points


def grade(folder, numbers, limit=LIMIT):
    """Grades assignments -> {number: {"name", "points", "out_of", "seconds", "checks": [{"name", "points", "out_of",
    "failed", "hint", "seconds"}]}}. ValueError for a folder that is no copy of the repository."""
    if not (Path(folder) / "td_distill.py").is_file():
        raise ValueError(f"{folder}: no td_distill.py there; expected a folder made by python -m course.make")
    graded = {}
    for number, found in zip(numbers, run_jobs([job_of(number, folder) for number in numbers], limit)):
        rows = []
        for name, points, hint in read_checks(number):
            failed, seconds = found[name]
            rows.append({"name": name, "points": 0 if failed else points, "out_of": points, "failed": failed,
                         "hint": hint, "seconds": seconds})
        total = {field: round(sum(row[field] for row in rows), 1) for field in ("points", "out_of", "seconds")}
        graded[number] = {"name": ASSIGNMENTS[number].name, **total, "checks": rows}
    return graded


def report(graded):
    """Lines to print."""
    for number, result in graded.items():
        for row in result["checks"]:
            yield f"  {row['points']}/{row['out_of']}  {row['name'].removeprefix('check_').replace('_', ' ')}"
            if row["failed"] is not None:
                yield f"       found   {row['failed']}"
                yield f"       hint    {row['hint']}"
        yield (f"assignment {number}, {result['name']}: {result['points']} of {result['out_of']} points, "
               f"{result['seconds']} s")


def write_gradebook(path, folder, graded):
    """Writes the entry of one folder as JSON."""
    sums = {name: sum(result[name] for result in graded.values()) for name in ("points", "out_of")}
    book = {"folder": str(folder), "time": time.strftime("%Y-%m-%d %H:%M:%S"), **sums, "assignments": graded}
    Path(path).write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------
# Wrong answers


def read_mutants(number):
    """The wrong answers of an assignment: list of Change."""
    return read_changes((COURSE / "mutants" / f"{ASSIGNMENTS[number].name}.txt").read_text(encoding="utf-8"))


def write_mutant(change, folder):
    """A copy of what the checks need of the repository, with one change in it."""
    for pattern in ("*.py", "data/*.py", "data/teacher/header.json", "experiments/*.py", "course/*.*"):
        for path in COURSE.parent.glob(pattern):
            to = folder / path.relative_to(COURSE.parent)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
    path = folder / change.file
    path.write_text(changed(path.read_text(encoding="utf-8"), change), encoding="utf-8")


def print_mutants(numbers):
    """Tries the wrong answers of assignments and prints the result -> the number of those that are not caught."""
    missed, totals = 0, []
    for number in numbers:
        begin, changes, caught = time.perf_counter(), read_mutants(number), 0
        with tempfile.TemporaryDirectory() as top:
            folders = [Path(top) / str(i) for i in range(len(changes))]
            for change, folder in zip(changes, folders):
                write_mutant(change, folder)
            results = run_jobs([job_of(number, folder, stop=True) for folder in folders])
        for change, found in zip(changes, results):
            check, failed = next(((check, failed) for check, (failed, _) in found.items() if failed), ("", ""))
            caught += bool(check)
            print(f"  {'caught' if check else 'MISSED'}  {change.what}\n            {check}: {printable(failed):.100}")
        missed += len(changes) - caught
        totals.append(f"{ASSIGNMENTS[number].name:14}{caught:4} of {len(changes)} wrong answers caught, "
                      f"{time.perf_counter() - begin:.0f} s")
    print("\n".join(totals))
    return missed


def main(arguments=None):
    """The command -> exit code: 0, or 1 where a wrong answer is not caught. ValueError for what cannot be graded."""
    parser = argparse.ArgumentParser(prog="python -m course.grade", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="the student's")
    parser.add_argument("number", nargs="?", type=int, choices=ASSIGNMENTS, help="of the assignment")
    parser.add_argument("--json", help="a file for points and messages")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds that a check may take [{LIMIT:g}]")
    parser.add_argument("--mutants", nargs="?", type=int, const=0, choices=[0, *ASSIGNMENTS], metavar="N",
                        help="try the wrong answers, of all assignments or of one")
    options = parser.parse_args(arguments)
    if options.mutants is not None:
        return int(print_mutants([options.mutants] if options.mutants else ASSIGNMENTS) > 0)
    if options.folder is None:
        raise ValueError("no folder named; expected one made by python -m course.make")
    pages = Path(options.folder) / "course"
    found = [number for number, one in ASSIGNMENTS.items() if (pages / f"{one.name}.md").is_file()]
    graded = grade(options.folder, [options.number] if options.number else found, options.limit)
    for line in report(graded):
        print(printable(line))
    if options.json:
        write_gradebook(options.json, options.folder, graded)
    return 0


if __name__ == "__main__":
    run_command(main)
