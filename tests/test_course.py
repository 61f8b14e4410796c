"""The course: the repository earns all points, an empty copy none, wrong answers lose some."""
import ast
import importlib.util
import json
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from course import grade, make, observe
from course.assignments import (ASSIGNMENTS, REPOSITORY, Change, changed, find_function, read_changes,
                                with_body)

ROOT, NUMBERS = REPOSITORY, sorted(ASSIGNMENTS)
# What render_reading does where check_forms calls it, and how the grader reports it.
ACCIDENTS = {"import time; time.sleep(99)": "endless loop", "raise SystemExit": "SystemExit",
             "import socket; socket.socket()": "without network", "print('null'); input()": "EOFError",
             "import os; os.system('true')": "without other programs"}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """{number: folder of the student's copy}"""
    folders = {number: tmp_path_factory.mktemp(f"copy{number}") for number in NUMBERS}
    assert all(make.make(number, folder) > 40 for number, folder in folders.items())
    return folders


@pytest.fixture(scope="module")
def graded(copies, tmp_path_factory):
    def mutant(change):
        return grade.write_mutant(change, tmp_path_factory.mktemp("mutant"))

    def run(jobs):
        return zip(jobs, grade.run_checks(jobs.values(), seed=0))
    jobs = {("empty", n): (n, copies[n]) for n in NUMBERS}
    change = Change("data/documents.py", "render_reading", "", 'if behaviour == "ner":')
    for what in ACCIDENTS:
        jobs[what] = 3, mutant(change._replace(new=f"if forms == 2:\n        {what}\n    {change.old}"))
    for n in (3, 4, 7):                                         # all: python -m course.grade --mutants
        jobs["wrong", n] = n, mutant(random.Random(n).choice(grade.read_answers(n, "wrong")))
    reference = {("reference", n): (n, ROOT) for n in NUMBERS}
    assert all(map(grade.read_checks, NUMBERS))                 # before the threads: ast.parse is not safe in two
    with pytest.MonkeyPatch.context() as patched, ThreadPoolExecutor(2) as pool:
        ask, seconds = grade.ask, {True: 2.0, False: 30.0}
        patched.setattr(grade, "ask", lambda process, question: ask(
            process, {**question, "limit": seconds["mutant" in question["folder"]]}))
        first, second = pool.map(run, (reference, jobs))
    return {**dict(first), **dict(second)}


@pytest.mark.parametrize("number", NUMBERS)
def test_the_repository_earns_all_points_and_an_empty_copy_none(graded, number):
    names = [name for name, *_ in grade.read_checks(number)]
    assert graded["reference", number] == dict.fromkeys(names)
    assert list(graded["empty", number]) == names
    for failed in graded["empty", number].values():
        assert "NotImplementedError: assignment" in failed or number == 9 and "9-report" in failed


def test_wrong_answers_lose_points(graded):
    assert all(any(graded["wrong", number].values()) for number in (3, 4, 7))
    dead = subprocess.Popen([sys.executable, "-c", ""], stdin=-1, stdout=-1, text=True)
    assert "the process ended" in grade.ask(dead, {"limit": 30})


@pytest.mark.parametrize("what", ACCIDENTS)
def test_what_hangs_or_dies_fails_alone_in_one_line(graded, what):
    failed = {name: text for name, text in graded[what].items() if text}
    assert list(failed) == ["check_forms"] and len(graded[what]) == len(grade.read_checks(3))
    assert ACCIDENTS[what] in failed["check_forms"] and "\n" not in failed["check_forms"]


def test_the_command_prints_points_and_writes_the_gradebook(copies, tmp_path, capsys, monkeypatch):
    checks = grade.read_checks(3)
    answers = dict.fromkeys(name for name, *_ in checks) | {checks[0][0]: "found 2, expected 3"}
    limits = []
    monkeypatch.setattr(grade, "run_checks", lambda jobs, seed, limit: limits.append(limit) or [answers for _ in jobs])
    assert grade.main([str(copies[3]), "--json", str(tmp_path / "book.json"), "--limit=120"]) == 0
    assert limits == [120]                              # and its page is there
    printed, total = capsys.readouterr().out, sum(points for _, points, _ in checks)
    left = total - checks[0][1]
    assert f"3-reading: {left} of {total} points" in printed
    assert "found   found 2, expected 3" in printed and checks[0][2] in printed
    entry = json.loads((tmp_path / "book.json").read_text(encoding="utf-8"))
    assert (entry["points"], entry["out_of"], list(entry["assignments"])) == (left, total, ["3"])


def test_a_bad_folder_is_a_value_error_and_a_missed_wrong_answer_exit_code_1(monkeypatch, capsys):
    for arguments in ([], ["nowhere"], ["nowhere", "3"]):
        with pytest.raises(ValueError, match="python -m course.make"):
            grade.main(arguments)
    monkeypatch.setattr(grade, "run_answers", lambda *_: (5, 5))
    assert grade.main(["--mutants"]) == 0
    monkeypatch.setattr(grade, "run_answers", lambda number, *_: (4 + number % 2, 5))
    assert grade.main(["--mutants"]) == 1
    assert "2-attention      4 of 5 wrong answers lose points" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["wrong", "right"])
@pytest.mark.parametrize("number", NUMBERS)
def test_answers_are_up_to_date(number, kind):
    changes, assignment = grade.read_answers(number, kind), ASSIGNMENTS[number]
    assert len({(change.function, change.what) for change in changes}) == len(changes)
    for change in changes:
        assert change.what and change.old != change.new
        assert change.function in assignment.write[change.file]
        source = changed((ROOT / change.file).read_text(encoding="utf-8"), change)
        if change.file.endswith(".py"):
            ast.parse(source)


def test_changes():
    source = "def f():\n    a = 1\n    return a\n\n\ndef g():\n    a  =  1\n"
    change, = read_changes("comment\n@ x.py g\n= two lines\n- a = 1\n+ a = 2\n+     b = 3\n")
    assert changed(source, change) == source.replace("    a  =  1\n", "    a = 2\n    b = 3\n")
    for stale, message in (({"function": ""}, "occurs 2 times, expected once; .* 'two lines'"),
                           ({"old": "b"}, "occurs 0 times"), ({"function": "h"}, "no function h")):
        with pytest.raises(ValueError, match=message):
            changed(source, change._replace(**stale))


@pytest.mark.parametrize("number", NUMBERS)
def test_a_copy_holds_no_solution(copies, number):
    """No file of the copy has the body of a function that was removed, or any longer line of it."""
    def squeezed(text):
        return "".join(text.split())
    texts = squeezed("\n".join(path.read_text(encoding="utf-8") for path in copies[number].rglob("*.py")))
    name, write, hide = ASSIGNMENTS[number]
    for file, function in [(f, name) for part in (write, hide) for f in part for name in part[f] if name]:
        source = (ROOT / file).read_text(encoding="utf-8")
        node = find_function(source, function)
        lines = source.split("\n")[node.body[0].end_lineno:node.end_lineno]
        told = [line for line in lines if len(squeezed(line.split("  #")[0])) > 50 and "raise" not in line]
        assert not [line for line in told if squeezed(line) in texts], function
        assert squeezed(f'Error("assignment {number}: {function}")') in texts
    course = copies[number] / "course"
    assert not (copies[number] / "tests").exists() and not (copies[number] / ".git").exists()
    assert [path.name for path in (course / "checks").iterdir()] == [f"{name}.py"]
    assert {path.name for path in course.iterdir() if path.suffix != ".py"} == {"checks", f"{name}.md"}


def test_with_body():
    stays = 'class A:\n    def f(self, x,\n          y=1):\n        """Says.\n\n        More."""\n'
    source = stays + "        # how\n        return x\n\n    b = 2\n"
    want = stays + "        if x:\n            return y\n\n        return 1\n\n    b = 2\n"
    assert with_body(source, "A.f", "if x:\n    return y\n\nreturn 1") == want
    change, = read_changes("@ a.py A.f\n= another way\n+ if x:\n+     return y\n+ \n+ return 1\n")
    assert changed(source, change) == want


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="not an empty folder"):
        make.main(["5", str(tmp_path)])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", NUMBERS)
def test_pages_tell_what_the_code_says(number):
    page = (ROOT / "course" / f"{ASSIGNMENTS[number].name}.md").read_text(encoding="utf-8")
    checks = grade.read_checks(number)
    assert f"{sum(points for _, points, _ in checks)} points" in " ".join(page.split())
    assert f"python -m course.grade . {number}" in page and len(page.split("\n")) < 50
    assert all(points >= 1 and len(hint) > 30 for _, points, hint in checks)
    for function in filter(None, sum(ASSIGNMENTS[number].write.values(), ())):
        assert f"`{function}`" in page or f"`{function}(s)`" in page
    torch.set_num_threads(1)
    printed = observe.OBSERVE[number]()
    assert f"    python -m course.observe {number}\n    {printed}\n" in page, printed


def imported(path, source, monkeypatch):
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("which, names", enumerate(["animal number", "fuhr wohnt Montag Sie feeling"]))
def test_the_recipes_for_another_world(which, names, tmp_path, monkeypatch):
    """As course/README.md shows them: the annotations are valid, and the scripted reader agrees."""
    page, source, tables = ((ROOT / name).read_text(encoding="utf-8")
                            for name in ("course/teacher/README.md", "data/world.py", "data/world.json"))
    new, changes = re.findall(r"```json\n(.*?)```\n```diff\n(.*?)```", page, re.S)[which]
    tables, new = json.loads(tables), json.loads(new)
    tables |= new if which else {name: tables[name] | new[name] for name in new}
    (tmp_path / "world.json").write_text(json.dumps(tables), encoding="utf-8")
    for change in read_changes(changes):
        source = changed(source, change)
    world, seen, rng = imported(tmp_path / "other_world.py", source, monkeypatch), set(), random.Random(1)
    monkeypatch.setattr("data.world", world)
    monkeypatch.setitem(sys.modules, "data.world", world)
    for name in ("annotations", "annotated"):
        source = (ROOT / "data" / f"{name}.py").read_text(encoding="utf-8")
        annotated = imported(tmp_path / f"other_{name}.py", source, monkeypatch)
        monkeypatch.setitem(sys.modules, f"data.{name}", annotated)
    for record in sum(world.annotated(400, 1), []):
        annotated.check_record(record)
        seen |= {e["type"] for e in record["entities"]} | {q["kind"] for q in record["questions"]}
        seen |= set(record["text"].strip(".!").split())
    assert seen >= set(names.split())
    for paragraph in (world.draw_paragraph(rng, split="test") for _ in range(100)):
        for k, record in enumerate(world.annotate(rng, paragraph)):
            answers = world.all_answers(paragraph, k)
            assert all(answers[item["question"]] == item["answer"] for item in record["questions"])
