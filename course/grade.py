"""Grades a hand-in: runs the checks of an assignment, gives points, and a hint for every check that fails.

    python -m course.grade FOLDER 5                     one assignment
    python -m course.grade FOLDER                       all whose page (course/N-NAME.md) is in the folder
    python -m course.grade FOLDER 5 --hint 3            says more: 1 what must hold, 2 why, 3 nearly the line
    python -m course.grade HANDINS 5 --class --csv marks.csv --workers 4     every folder in it is a hand-in
    python -m course.grade --mutants                    tests the grader with wrong and right answers

Only the files that the page names are taken from a hand-in, and put into a fresh copy. The checks are the
functions `check_...(points=2)` in course/checks/N-NAME.py beside this file; their docstrings are the hints.
They run in another process (course/checking.py); where it takes too long or dies, that check fails and the
others still run.
"""

import argparse
import ast
import compileall
import csv
import functools
import importlib.util
import io
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from course.assignments import ASSIGNMENTS, REPOSITORY, changed, read_changes
from course.make import copy, make
from data.cli import Parser, printable, run_command
from data.files import write_text

COURSE = REPOSITORY / "course"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
               "PYTHONOPTIMIZE": ""}
PARSING = threading.Lock()                          # ast.parse is not safe in two threads at once
DEATHS = 3              # of the process, after which the other checks of an assignment are not run
# What no solution needs: functions, modules, attributes, special names. A lecturer reads a hand-in with one.
UNUSUAL = re.compile(
    r"(?<![.\w])(?:exec|eval|compile|[gs]etattr|delattr|vars|globals|locals)(?=\W)|(?<=import )(?:_[a-z]\w*|"
    r"__main__|builtins|importlib|inspect|unittest|weakref)\b|(?<=\.)(?:f_[a-z]+|from_file|modules|_C|_exit|"
    r"meta_path)\b|__(?!init|name|main|doc|file|future|len|iter|next|get|repr|str|call|new|post)\w+__\b")


# --- the checks of one assignment -------------------------------------------------------------------------


def path_of_checks(number):
    return COURSE / "checks" / f"{ASSIGNMENTS[number].name}.py"


@functools.cache
def read_checks(number):
    """The checks of an assignment in the order in which they run: list of (name, points, [hints])."""
    tree = ast.parse(path_of_checks(number).read_text(encoding="utf-8"))
    return [(node.name, node.args.defaults[0].value,
             [" ".join(part.split()) for part in ast.get_docstring(node).split("\n\n")])
            for node in tree.body if getattr(node, "name", "").startswith("check_")]


def read_answer(process, passed, limit):
    """Waits for the line of one check -> (None, or what failed; whether the process can go on)."""
    start, timer = time.monotonic(), threading.Timer(limit + 5, process.kill)       # it ends itself at limit
    timer.start()
    line = process.stdout.readline(4096)
    timer.cancel()
    if line == passed:
        return None, True
    if not line:
        code, late = process.wait(), time.monotonic() - start >= limit
        return (f"it took more than {limit:g} seconds; is there an endless loop?" if late else
                f"! the process ended (exit code {code}) before the check did"), False
    try:
        return "" + json.loads(line), True
    except (ValueError, TypeError, RecursionError):
        return "! something else wrote to the grader in place of the check", False


def run_checks(jobs, seed, stop=False, limit=30.0, quiet=False):
    """Runs the checks of jobs (number, folder) in another process -> for each a dict of check -> None, or one
    line that says what is wrong. seed: of the inputs; stop: after the first check of a job that fails; limit:
    seconds that a check may take; quiet: hides what the code prints."""
    results, deaths = [{} for _ in jobs], [0] * len(jobs)
    while True:
        left = {i: [name for name, *_ in read_checks(number) if name not in results[i]]
                for i, (number, _) in enumerate(jobs) if not (stop and any(results[i].values()))}
        for i in [i for i in left if deaths[i] == DEATHS]:
            results[i] |= dict.fromkeys(left.pop(i), f"not run, as the process has ended {DEATHS} times")
        left = {i: names for i, names in left.items() if names}
        if not left:
            return results
        run_process(jobs, left, results, deaths, {"seed": seed, "stop": stop, "limit": limit}, quiet)


def run_process(jobs, left, results, deaths, options, quiet):
    """Runs the checks that are left, {job: names}, until all are done or the process has ended."""
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as cwd, subprocess.Popen(
            [sys.executable, COURSE / "checking.py"], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | ENVIRONMENT | {"TMPDIR": cwd, "TEMP": cwd, "TMP": cwd},
            stderr=subprocess.DEVNULL if quiet else None) as process:
        try:
            lines = [secret]
            for i, names in left.items():
                number, folder = jobs[i]
                write = {file: names for file, names in ASSIGNMENTS[number].write.items() if all(names)}
                lines.append({"folder": str(Path(folder).resolve()), "checks": str(path_of_checks(number)),
                              "names": names, "write": write, **options})
            with process.stdin as stdin:
                stdin.write("\n".join(map(json.dumps, lines)).encode())
            read_answer(process, f"{secret} ready\n".encode(), 300)
            for i, names in left.items():
                for name in names:
                    failed, alive = read_answer(process, f"{secret} {name}\n".encode(), options["limit"])
                    results[i][name] = failed
                    if not alive:
                        deaths[i] += 1
                        return
                    if failed and options["stop"]:
                        break
        finally:
            process.kill()


# --- hand-ins ---------------------------------------------------------------------------------------------


def unusual_names(path):
    """What a source file has of UNUSUAL, and which attributes of imported modules it sets."""
    try:
        text = ast.unparse(ast.parse(path.read_bytes()))        # without comments and escapes
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()                                            # it cannot be run either
    words = re.findall(r"\w+", " ".join(re.findall(r"^ *(?:from|import) .*", text, re.M)))
    sets = re.findall(rf"^ *((?:{'|'.join(words)})\.[\w.]+(?= = ))", text, re.M)
    return {*UNUSUAL.findall("\nimport ".join([text, *words])), *sets}


def take_files(handin, number, folder):
    """Makes a fresh copy with the files that the student writes, which lie in the hand-in at their place or
    by name alone -> [what a lecturer should read]. ValueError where none of them is there."""
    make(number, folder)
    taken, unusual = 0, []
    for file in ASSIGNMENTS[number].write:
        places = [path for path in (Path(handin, file), Path(handin, Path(file).name))
                  if path.is_file() and path.stat().st_size < 1 << 20 and
                  path.resolve() == Path(handin).resolve() / path.relative_to(handin)]
        if not places:
            continue
        names = sorted(unusual_names(places[0]) - unusual_names(REPOSITORY / file))
        unusual += [f"{file} has {', '.join(names)}, which no solution needs"] if names else []
        shutil.copyfile(places[0], Path(folder, file))
        taken += 1
    if not taken:
        raise ValueError(f"{handin}: none of {', '.join(ASSIGNMENTS[number].write)}; expected the file that "
                         "the student has written, at its place or by its name alone, no link and below 1 MB")
    return unusual


def grade(handin, numbers, options, quiet=False):
    """Grades the assignments of a hand-in -> {number: {"name", "points", "out_of", "read": what a lecturer
    should read, "checks": a list of {"name", "points", "out_of", "failed", "hints"}}}."""
    graded = {}
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            with PARSING:
                unusual = take_files(handin, number, folder)
            found, = run_checks([(number, folder)], options.seed, limit=options.limit, quiet=quiet)
        unusual += dict.fromkeys(text[2:] for text in found.values() if text and text.startswith("! "))
        rows = [{"name": name, "points": 0 if found[name] else points, "out_of": points,
                 "failed": found[name] and found[name].removeprefix("! "), "hints": hints[:options.hint]}
                for name, points, hints in read_checks(number)]
        sums = {field: sum(row[field] for row in rows) for field in ("points", "out_of")}
        graded[number] = {"name": ASSIGNMENTS[number].name, **sums, "read": unusual, "checks": rows}
    return graded


def report(graded):
    """The result of one hand-in as lines of text."""
    for result in graded.values():
        for row in result["checks"]:
            yield "  {points}/{out_of}  {name}".format(**row)
            if row["failed"]:
                yield printable(f"       found   {row['failed']}")
                yield from (f"       hint {k}  {hint}" for k, hint in enumerate(row["hints"], 1))
        yield "{name}: {points} of {out_of} points".format(**result)
        yield from (printable(f"  for the lecturer: {line}") for line in result["read"])


def gradescope(graded):
    """The result of one hand-in as Gradescope reads it from results.json."""
    tests = [{"name": f"{result['name']}: {row['name']}", "score": row["points"], "max_score": row["out_of"],
              "output": "\n".join(filter(None, [row["failed"], *(row["failed"] and row["hints"] or [])])),
              "status": "failed" if row["failed"] else "passed"}
             for result in graded.values() for row in result["checks"]]
    return {"score": sum(test["score"] for test in tests), "tests": tests}


def grade_class(folder, numbers, options):
    """Grades every folder in a folder, several at a time; prints a line for each -> text of a CSV table."""
    handins = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    out_of = sum(points for number in numbers for _, points, _ in read_checks(number))
    table = csv.writer(out := io.StringIO())
    table.writerow(["hand-in", *(ASSIGNMENTS[n].name for n in numbers), "points", "out of", "failed", "read"])

    def one(handin):
        """Points of each assignment, what failed, what a lecturer should read."""
        points, failed, read = [], [], []
        for number in numbers:
            try:
                result = grade(handin, [number], options, quiet=True)[number]
                points.append(result["points"])
                failed += [f"{row['name']}: {row['failed']}" for row in result["checks"] if row["failed"]]
                read += result["read"]
            except (ValueError, OSError) as error:
                points.append(0)
                failed.append(str(error))
        return points, failed, read
    with ThreadPoolExecutor(options.workers) as pool:
        for handin, (points, failed, read) in zip(handins, pool.map(one, handins)):
            name, *words = [printable("\n".join(lines)) for lines in ([handin.name], failed, read)]
            name = f"'{name}" if name[0] in "=+-@" else name            # no formula of a spreadsheet
            table.writerow([name, *points, sum(points), out_of, *words])
            first = f"READ IT: {read[0]}" if read else f"{len(failed)} failed: {failed[0]}" if failed else ""
            print(printable(f"{handin.name:24}{sum(points):4} of {out_of}  {first:.150}"), flush=True)
    return out.getvalue()


# --- wrong and right answers ------------------------------------------------------------------------------


def read_answers(number, kind):
    """The "wrong" or the "right" answers to an assignment in course/mutants: list of Change."""
    path = COURSE / "mutants" / f"{ASSIGNMENTS[number].name}.{kind}.txt"
    return read_changes(path.read_text(encoding="utf-8"))


def write_mutants(changes, top):
    """Copies of what the checks need of the repository, with one change in each -> their folders in `top`."""
    copy(("*.py", "data/*.*", "data/teacher/header.json", "experiments/*.py", "course/*.*"), f"{top}/copy")
    compileall.compile_dir(f"{top}/copy", quiet=2)
    for i, change in enumerate(changes):
        shutil.copytree(f"{top}/copy", f"{top}/{i}", copy_function=os.link)         # one file in all of them,
        path = Path(top, str(i), change.file)
        source = changed(path.read_text(encoding="utf-8"), change)
        path.unlink()                                                               # but this one
        Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)
        path.write_text(source, encoding="utf-8")
    return [f"{top}/{i}" for i in range(len(changes))]


def try_answers(numbers, seed):
    """Tries the wrong and the right answers to assignments and prints what each met -> exit code, 1 where a
    wrong answer earns all points, or a right one loses some."""
    answers = [(n, kind, change) for n in numbers for kind in ("wrong", "right")
               for change in read_answers(n, kind)]
    print(f"{len(answers)} answers, some five in a second", flush=True)
    with tempfile.TemporaryDirectory() as top:
        folders = write_mutants([change for *_, change in answers], top)
        found = run_checks([(n, folder) for (n, *_), folder in zip(answers, folders)], seed, stop=True)
    good, tried = Counter(), Counter()
    for (n, kind, change), checks in zip(answers, found):
        check, failed = list(checks.items())[-1]                        # the one that failed, if any
        tried[n, kind] += 1
        good[n, kind] += (failed is not None) == (kind == "wrong")
        word = {"wrong": ("MISSED", "caught"), "right": ("passed", "REFUSED")}[kind][failed is not None]
        print(f"  {word}  {change.what}\n          {check}: {failed!s:.90}")
    for n, kind in tried:
        print(f"{ASSIGNMENTS[n].name:14}{good[n, kind]:4} of {tried[n, kind]} {kind} answers "
              f"{'lose points' if kind == 'wrong' else 'earn all points'}")
    return int(good != tried)


def parse(arguments):
    """The options of the command."""
    parser = Parser(prog="python -m course.grade", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="no folder", help="the student's, or of all hand-ins")
    parser.add_argument("number", nargs="?", type=int, choices=ASSIGNMENTS, help="of the assignment")
    parser.add_argument("--hint", type=int, choices=(1, 2, 3), default=1, help="how much a hint says [1]")
    parser.add_argument("--json", type=Path, help="a file for points and messages")
    parser.add_argument("--gradescope", type=Path, help="the same as Gradescope reads it")
    parser.add_argument("--class", action="store_true", dest="all", help="every folder in it is a hand-in")
    parser.add_argument("--csv", type=Path, help="a file for the points of all hand-ins")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="hand-ins at a time [all cores]")
    parser.add_argument("--mutants", action="store_true", help="try the wrong and the right answers")
    parser.add_argument("--seed", type=int, default=None, help="of the inputs of the checks [by chance]")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds that a check may take [30]")
    return parser.parse_args(arguments)


def main(arguments=None):
    """The command -> exit code, 1 where a wrong answer is not caught; ValueError for a bad folder."""
    options = parse(arguments)
    numbers = [n for n in ASSIGNMENTS if options.number in (None, n)]
    if options.mutants:
        return try_answers(numbers, options.seed or 0)
    if not Path(options.folder).is_dir():
        raise ValueError(f"{options.folder}: no such folder; expected one of python -m course.make")
    if options.seed is None:
        options.seed = secrets.randbelow(1000)
    if options.all:
        text = grade_class(options.folder, numbers, options)
        if options.csv:
            write_text(options.csv, text)
        return 0
    if options.number is None:
        pages = Path(options.folder) / "course"
        numbers = [n for n in numbers if (pages / f"{ASSIGNMENTS[n].name}.md").is_file()]
        if not numbers:
            raise ValueError(f"{pages}: no page of an assignment; name the number of the assignment as well")
    graded = grade(options.folder, numbers, options)
    print(*report(graded), f"inputs of --seed {options.seed}", sep="\n")
    if options.json:
        sums = {name: sum(result[name] for result in graded.values()) for name in ("points", "out_of")}
        book = {"folder": options.folder, "seed": options.seed, **sums, "assignments": graded}
        write_text(options.json, json.dumps(book, indent=1) + "\n")
    if options.gradescope:
        write_text(options.gradescope, json.dumps(gradescope(graded), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
