"""Grades a folder: runs an assignment's checks on it, with points, and a hint for every check that fails.

    python course/grade.py FOLDER 5                     one assignment
    python course/grade.py FOLDER                       those whose page (course/N-NAME.md) lies in the folder
    python course/grade.py FOLDER 5 --json book.json    also writes points and messages to a file, for a gradebook
    python course/grade.py --mutants                    is the grader any good? it must catch every wrong answer in course/mutants

The checks are functions `check_...(points=2)` in course/checks/N-NAME.py beside this file, so a student cannot change
those that a teacher runs; the docstring is the hint. They run in a process of their own (course/checking.py), which is stopped
where a check takes too long; that check fails, and the others go on. What that process may do, and what it is not, is told there.
"""

import argparse
import ast
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

COURSE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(COURSE.parent)                            # in place of course/, where this file lies

from course.assignments import ASSIGNMENTS, changed, read_changes  # noqa: E402
from data.cli import printable  # noqa: E402

LIMIT = 30.0            # seconds that a check may take


def read_checks(number):
    """The checks of an assignment, in the order in which they run: list of (name, points, hint)."""
    tree = ast.parse((COURSE / "checks" / f"{ASSIGNMENTS[number].name}.py").read_text(encoding="utf-8"))
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")]
    return [(node.name, node.args.defaults[0].value, " ".join(ast.get_docstring(node).split())) for node in checks]


def job_of(number, folder, stop=False):
    """What course/checking.py is to do for one assignment and one folder."""
    return {"folder": str(Path(folder).resolve()), "checks": str(COURSE / "checks" / f"{ASSIGNMENTS[number].name}.py"),
            "names": [name for name, *_ in read_checks(number)], "stop": stop}


# ---------------------------------------------------------------------------------------------------------------
# The process that runs them


def start_process(jobs, cwd):
    """The process, and a queue of the messages that it sends; None is the last one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen([sys.executable, str(COURSE / "checking.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               env=environment, cwd=cwd, encoding="utf-8")
    messages = queue.Queue()

    def listen():
        for line in process.stdout:
            messages.put(json.loads(line))
        messages.put(None)
    threading.Thread(target=listen, daemon=True).start()
    process.stdin.write(json.dumps(jobs))
    process.stdin.close()
    return process, messages


def follow(messages, results, done, limit):
    """Takes messages until the process is done, died or is silent for too long; -> the (job, check) it was at, and why it
    ended; None where all is well. Fills results (one dict of check -> (failed, seconds) a job) and done (a set of jobs)."""
    at, first = None, True
    while True:
        try:
            message = messages.get(timeout=limit + 60 * first)  # the first time, torch has to be loaded as well
        except queue.Empty:
            return at, f"no result within {limit:g} seconds; is there an endless loop?"
        first = False
        if message is None:
            return at, "the process ended in the middle of this check"
        if "begins" in message:
            at = message["job"], message["begins"]
        elif "done" in message:
            done.add(message["job"])
            at = None
        else:
            results[message["job"]][message["check"]] = message["failed"], message["seconds"]


def run_jobs(jobs, limit=LIMIT):
    """Runs jobs (see job_of), in one process as long as it lives -> for each a dict of check -> (failed, seconds); failed is
    None, or one line that says what is wrong."""
    results, done = [{} for _ in jobs], set()
    with tempfile.TemporaryDirectory() as cwd:
        while len(done) < len(jobs):
            left = [(i, {**job, "names": [name for name in job["names"] if name not in results[i]]})
                    for i, job in enumerate(jobs) if i not in done]
            process, messages = start_process(left, cwd)
            try:
                at, why = follow(messages, results, done, limit)
            finally:
                process.kill()
                process.wait()
            if at is None:
                if len(done) < len(jobs):
                    raise OSError("the process that runs the checks did not start; does `import torch` work here?")
                continue
            job, name = at
            lost = [name] if name else left[[i for i, _ in left].index(job)][1]["names"]    # no name: while importing
            results[job] |= {check: (why, limit) for check in lost}
            if jobs[job]["stop"] or set(results[job]) >= set(jobs[job]["names"]):
                done.add(job)
    return results


# ---------------------------------------------------------------------------------------------------------------
# Points


def grade(folder, numbers, limit=LIMIT):
    """Grades assignments -> {number: {"name", "points", "out_of", "seconds", "checks": [{"name", "points", "out_of", "failed",
    "hint", "seconds"}]}}. ValueError for a folder that is no copy of the repository."""
    if not (Path(folder) / "td_distill.py").is_file():
        raise ValueError(f"{folder}: no td_distill.py there; expected a folder made by course/make.py")
    graded = {}
    for number, found in zip(numbers, run_jobs([job_of(number, folder) for number in numbers], limit)):
        rows = [{"name": name, "points": points * (found[name][0] is None), "out_of": points, "failed": found[name][0],
                 "hint": hint, "seconds": found[name][1]} for name, points, hint in read_checks(number)]
        graded[number] = {"name": ASSIGNMENTS[number].name, "points": sum(row["points"] for row in rows),
                          "out_of": sum(row["out_of"] for row in rows), "seconds": round(sum(row["seconds"] for row in rows), 1),
                          "checks": rows}
    return graded


def report(graded):
    """Lines to print."""
    for number, result in graded.items():
        for row in result["checks"]:
            yield f"  {row['points']}/{row['out_of']}  {row['name'].removeprefix('check_').replace('_', ' ')}"
            if row["failed"] is not None:
                yield f"       found   {row['failed']}"
                yield f"       hint    {row['hint']}"
        yield f"assignment {number}, {result['name']}: {result['points']} of {result['out_of']} points, {result['seconds']} s"


def write_json(path, folder, graded):
    """The gradebook entry of one folder; written beside its place and renamed."""
    points, out_of = (sum(result[name] for result in graded.values()) for name in ("points", "out_of"))
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    book = {"folder": str(folder), "time": now, "points": points, "out_of": out_of, "assignments": graded}
    beside = Path(f"{path}.tmp")
    beside.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


# ---------------------------------------------------------------------------------------------------------------
# Wrong answers


def read_mutants(number):
    """The wrong answers of an assignment: list of Change."""
    return read_changes((COURSE / "mutants" / f"{ASSIGNMENTS[number].name}.txt").read_text(encoding="utf-8"))


def write_mutant(change, folder):
    """A copy of what the checks need of the repository, with one change in it."""
    repository = COURSE.parent
    paths = [*repository.glob("*.py"), *(repository / "data").glob("*.py"), *(repository / "course").glob("*.*"),
             repository / "data" / "teacher" / "header.json"]
    for path in paths:
        to = folder / path.relative_to(repository)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
    path = folder / change.file
    path.write_text(changed(path.read_text(encoding="utf-8"), change), encoding="utf-8")


def run_mutants(number, changes=None, limit=LIMIT):
    """Tries wrong answers (None: all of the assignment) -> list of (Change, check that caught it or None, what it found)."""
    changes = read_mutants(number) if changes is None else changes
    with tempfile.TemporaryDirectory() as top:
        for i, change in enumerate(changes):
            write_mutant(change, Path(top) / str(i))
        results = run_jobs([job_of(number, Path(top) / str(i), stop=True) for i in range(len(changes))], limit)
    failures = [[(check, failed) for check, (failed, _) in found.items() if failed is not None] for found in results]
    return [(change, *(found[0] if found else (None, ""))) for change, found in zip(changes, failures)]


def print_mutants(numbers):
    """Prints how many of the wrong answers are caught -> the number of those that are not."""
    missed, totals = 0, []
    for number in numbers:
        begin, tried = time.perf_counter(), run_mutants(number)
        for change, check, failed in tried:
            print(f"  {'caught' if check else 'MISSED'}  {change.what}\n            {check}: {printable(failed):.100}", flush=True)
        n = sum(check is not None for _, check, _ in tried)
        seconds = time.perf_counter() - begin
        totals.append(f"{ASSIGNMENTS[number].name:14}{n:4} of {len(tried)} wrong answers caught, {seconds:.0f} s")
        missed += len(tried) - n
    print("\n".join(totals))
    return missed


def main(argv=None):
    """The command -> exit code: 0; 1 where a wrong answer is not caught; 2 with one line for what cannot be graded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="the student's")
    parser.add_argument("number", nargs="?", type=int, choices=sorted(ASSIGNMENTS), help="of the assignment")
    parser.add_argument("--json", help="a file for points and messages")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds that a check may take [{LIMIT:g}]")
    parser.add_argument("--mutants", nargs="?", type=int, const=0, choices=[0, *ASSIGNMENTS], metavar="N",
                        help="try the wrong answers, of all assignments or of one")
    options = parser.parse_args(argv)
    try:
        if options.mutants is not None:
            return int(print_mutants([options.mutants] if options.mutants else sorted(ASSIGNMENTS)) > 0)
        if options.folder is None:
            raise ValueError("no folder named; expected one made by course/make.py")
        pages = [n for n, one in sorted(ASSIGNMENTS.items()) if (Path(options.folder) / "course" / f"{one.name}.md").is_file()]
        graded = grade(options.folder, [options.number] if options.number else pages, options.limit)
        for line in report(graded):
            print(printable(line))
        if options.json:
            write_json(options.json, options.folder, graded)
    except (ValueError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
