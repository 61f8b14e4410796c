"""The course: a solved copy earns all points, an empty one and a cheat none, wrong answers lose some."""
import ast
import csv
import importlib.util
import json
import random
import re
import shutil
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import data
from course import grade, make, observe
from course.assignments import (ASSIGNMENTS, REPOSITORY, Change, changed, emptied, find_function,
                                read_changes, with_body)

ROOT, NUMBERS = REPOSITORY, sorted(ASSIGNMENTS)
# What render_reading does where check_forms calls it, and how the grader reports it.
ACCIDENTS = {"import time; time.sleep(99)": "endless loop", "raise SystemExit": "SystemExit",
             "import socket; socket.socket()": "without network", "print('null'); input()": "EOFError",
             "import os; os.system('true')": "without network, other programs",
             "bytearray(10 << 30)": "MemoryError"}
WRITES = "for fd in range(3, 30):\n    try: os.write(fd, b'[' * 4000 + b'\\n')\n    except OSError: pass"
# What a file does when it is imported, to earn points, and what the grader finds.
CHEATS = {"import __main__\n__main__.one_line = __main__.replaced = lambda *_: None": "NotImplementedError",
          "import json\njson.dumps = lambda *_: 'null'": "json.dumps was replaced",
          f"import os\n{WRITES}": "something else wrote to the grader",
          "import os\nos._exit(0)": "the process ended (exit code 0) before the check did",
          "import time\ntime.process_time = lambda: 0.0": "time.process_time was replaced",
          "import torch\ntorch.testing.assert_close = print": "torch.testing.assert_close was replaced",
          f"exec(open({str(ROOT / 'data' / 'documents.py')!r}).read())": "documents.py: checks run without",
          "import os\nos.kill(os.getppid(), 9)": "os.kill: checks run without",
          "open('/tmp/left-by-a-student', 'w')": "open /tmp/left-by-a-student: checks run without",
          "from unittest.mock import ANY\nrender = encode_documents = lambda *_, **__: ANY": "decides itself",
          "render = type('list', (), {'__eq__': lambda *_: True, '__module__': 'builtins', "
          "'__init__': lambda *_, **__: None})": "render returns a list, which decides itself",
          "import inspect\nprint(inspect.stack())": "sys._getframe: checks run without",
          "import sys\nsys.modules['__main__'].one_line.__code__ = (lambda *_: '').__code__": "__code__: checks",
          "import builtins\nbuiltins.next = lambda *_: None": "builtins.next was replaced",
          "class Error(Exception):\n    def __str__(self): return open('/etc/passwd').read()\nraise Error":
              "open /etc/passwd: checks run without",
          "import _posixsubprocess\n_posixsubprocess.fork_exec()": "fork_exec: checks run without"}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """{number: folder of the student's copy}"""
    folders = {number: tmp_path_factory.mktemp(f"copy{number}") for number in NUMBERS}
    assert all(make.make(number, folder) > 40 for number, folder in folders.items())
    return folders


def body_of(source, name):
    """The body of a function without its indent, as with_body takes it."""
    node, lines = find_function(source, name), source.split("\n")
    first = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno - 1
    return textwrap.dedent("\n".join(lines[first:node.end_lineno]))


def solve(copied, number, folder):
    """The copy with the functions of this assignment alone written, so without any later solution."""
    shutil.copytree(copied, folder, dirs_exist_ok=True)
    for file, names in ASSIGNMENTS[number].write.items():
        source = (ROOT / file).read_text(encoding="utf-8")
        text = (folder / file).read_text(encoding="utf-8") if all(names) else source
        for name in filter(None, names):
            text = with_body(text, name, body_of(source, name))
        (folder / file).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def graded(copies, tmp_path_factory):
    new, solved = tmp_path_factory.mktemp, {}
    change = Change("data/documents.py", "render_reading", "", 'if behaviour == "ner":')
    changes = [change._replace(new=f"if forms == 2:\n        {what}\n    {change.old}") for what in ACCIDENTS]
    accidents = {what: (3, folder) for what, folder in zip(
        ACCIDENTS, grade.write_mutants(changes, new("accidents")))}
    for n in NUMBERS:
        solved["solved", n] = n, solve(copies[n], n, new("solved"))
        solved["empty", n] = n, copies[n]
    wrong = {("wrong", n): (n, *grade.write_mutants([random.Random(n).choice(grade.read_answers(n, "wrong"))],
                                                    new("wrong"))) for n in (3, 4, 7)}     # all: --mutants
    assert all(map(grade.read_checks, NUMBERS))         # before the threads: ast.parse is not safe in two
    with ThreadPoolExecutor(2) as pool:
        runs = [(jobs, pool.submit(grade.run_checks, list(jobs.values()), 1, limit=limit))
                for jobs, limit in ((solved, 30.0), (wrong, 30.0), (accidents, 2.0))]
        return {name: found for jobs, run in runs for name, found in zip(jobs, run.result())}


@pytest.mark.parametrize("number", NUMBERS)
def test_a_solved_copy_earns_all_points_and_an_empty_one_none(graded, number):
    """Solved are the functions of this assignment alone, so its checks need no later one."""
    names = [name for name, *_ in grade.read_checks(number)]
    assert graded["solved", number] == dict.fromkeys(names)
    assert list(graded["empty", number]) == names
    for failed in graded["empty", number].values():
        assert "NotImplementedError" in failed or "No such file" in failed


def test_wrong_answers_lose_points(graded):
    assert all(any(graded["wrong", number].values()) for number in (3, 4, 7))


@pytest.mark.parametrize("what", ACCIDENTS)
def test_what_hangs_or_dies_fails_alone_in_one_line(graded, what):
    failed = {name: text for name, text in graded[what].items() if text}
    assert list(failed) == ["check_forms"] and len(graded[what]) == len(grade.read_checks(3))
    assert ACCIDENTS[what] in failed["check_forms"] and "\n" not in failed["check_forms"]


@pytest.fixture(scope="module")
def class_of_cheats(copies, tmp_path_factory):
    """The rows of marks.csv for a class of cheats, with an honest student, one who sends a link to the
    solution, and one who sends nothing."""
    folder = tmp_path_factory.mktemp("class")
    source, text = (top / "data" / "documents.py" for top in (ROOT, copies[3]))
    text = text.read_text(encoding="utf-8")
    for i, cheat in enumerate(CHEATS):
        (folder / f"cheat{i}").mkdir()
        (folder / f"cheat{i}" / "documents.py").write_text(f"{text}\n\n{cheat}\n", encoding="utf-8")
    (folder / "honest" / "data").mkdir(parents=True)
    (folder / "link").mkdir()
    (folder / "=nothing").mkdir()
    shutil.copy(source, folder / "honest" / "data")
    (folder / "link" / "data").symlink_to(source.parent)
    arguments = ["3", "--class", "--csv", str(folder / "marks.csv"), "--workers=2", "--limit=20"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONOPTIMIZE", "2")           # without asserts and hints, if it reached the checks
        assert grade.main([str(folder), *arguments]) == 0
    with open(folder / "marks.csv", encoding="utf-8", newline="") as file:
        return {row["hand-in"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("i", range(len(CHEATS)))
def test_a_cheat_earns_nothing_and_is_named(class_of_cheats, i):
    row, found = class_of_cheats[f"cheat{i}"], list(CHEATS.values())[i]
    assert row["points"] == "0" and found in row["failed"] + row["read"]
    assert row["read"], "no word for the lecturer"


def test_a_class_is_graded(class_of_cheats):
    out_of = str(sum(points for _, points, _ in grade.read_checks(3)))
    honest = [class_of_cheats["honest"][name] for name in ("3-reading", "points", "failed", "read")]
    assert honest == [out_of, out_of, "", ""]
    assert {row["out of"] for row in class_of_cheats.values()} == {out_of}
    assert all("expected the file that the student has written" in class_of_cheats[name]["failed"]
               for name in ("link", "'=nothing"))            # no formula of a spreadsheet


def test_the_command_prints_points_and_writes_the_gradebook(copies, tmp_path, capsys, monkeypatch):
    checks = grade.read_checks(3)
    answers = dict.fromkeys(name for name, *_ in checks) | {checks[0][0]: "! found 2, expected 3"}
    asked = []
    monkeypatch.setattr(grade, "run_checks", lambda jobs, seed, **options: asked.append(options) or [answers])
    files = [f"--json={tmp_path / 'book.json'}", f"--gradescope={tmp_path / 'results.json'}"]
    assert grade.main([str(copies[3]), *files, "--limit=120", "--hint=2"]) == 0       # and its page is there
    assert asked[0]["limit"] == 120
    printed, total = capsys.readouterr().out, sum(points for _, points, _ in checks)
    left = total - checks[0][1]
    assert f"3-reading: {left} of {total} points" in printed and "hint 3" not in printed
    assert "found   found 2, expected 3" in printed and all(hint in printed for hint in checks[0][2][:2])
    assert "for the lecturer: found 2" in printed
    book, results = (json.loads((tmp_path / name).read_text(encoding="utf-8"))
                     for name in ("book.json", "results.json"))
    assert (book["points"], book["out_of"], list(book["assignments"])) == (left, total, ["3"])
    assert results["score"] == left and sum(test["max_score"] for test in results["tests"]) == total
    assert results["tests"][0]["status"] == "failed" and "found 2" in results["tests"][0]["output"]


def test_a_bad_folder_is_a_value_error_and_a_missed_wrong_answer_exit_code_1(tmp_path, monkeypatch, capsys):
    for arguments in ([], ["nowhere"], ["nowhere", "3"]):
        with pytest.raises(ValueError, match="python -m course.make"):
            grade.main(arguments)
    with pytest.raises(ValueError, match="name the number"):
        grade.main([str(tmp_path)])
    with pytest.raises(ValueError, match="expected the file that the student has written"):
        grade.main([str(tmp_path), "3"])
    change = Change("data/documents.py", "render", "an answer", "", "pass")
    monkeypatch.setattr(grade, "read_answers", lambda number, kind: [change] * 2)
    for wrong, code, says in (("found 2", 0, "2 of 2 wrong"), (None, 1, "1 of 2 wrong")):
        found = [{"check": text} for text in ("found 1", wrong, None, None)]
        monkeypatch.setattr(grade, "run_checks", lambda jobs, *_, **__: found)
        assert grade.main(["--mutants", "no folder", "3"]) == code
        printed = capsys.readouterr().out
        assert f"3-reading        {says} answers lose points" in printed and "2 of 2 right" in printed


@pytest.mark.parametrize("kind", ["wrong", "right"])
@pytest.mark.parametrize("number", NUMBERS)
def test_answers_are_up_to_date(number, kind):
    changes, assignment = grade.read_answers(number, kind), ASSIGNMENTS[number]
    assert len({(change.function, change.what) for change in changes}) == len(changes)
    for change in changes:
        assert change.what and change.old != change.new
        assert change.function in (*assignment.write[change.file], "")      # "": a row of a table
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
    empty, name = emptied(number), ASSIGNMENTS[number].name
    assert len(empty) >= sum(len(ASSIGNMENTS[n].write) for n in NUMBERS if n > number and n < 9)
    for (file, function), of in empty.items():
        source = (ROOT / file).read_text(encoding="utf-8")
        node = find_function(source, function)
        lines = source.split("\n")[node.body[0].end_lineno:node.end_lineno]
        told = [line for line in lines if len(squeezed(line.split("  #")[0])) > 50 and "raise" not in line]
        assert not [line for line in told if squeezed(line) in texts], function
        assert squeezed(f'Error("assignment {of}: {function}")') in texts
    course = copies[number] / "course"
    assert not (copies[number] / ".git").exists() and not (course / "teacher").exists()
    assert not list((copies[number] / "tests").glob("*.py")) and not (course / "mutants").exists()
    assert [path.name for path in (course / "checks").iterdir()] == [f"{name}.py"]
    pages = {path.name for path in course.iterdir() if path.suffix == ".md"}
    assert pages == {"README.md", "glossary.md", f"{name}.md"}


@pytest.mark.parametrize("number", NUMBERS)
def test_links_and_pictures_work_in_a_copy(copies, number):
    for page in copies[number].rglob("*.md"):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert re.match("https?:", link) or (page.parent / link).exists(), f"{page}: {link}"


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
    assert f"python -m course.grade . {number}" in page and len(page.split("\n")) < 96
    assert all(points >= 1 and len(hints) == 3 and min(map(len, hints)) > 15 for _, points, hints in checks)
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


@pytest.mark.parametrize("which, names", enumerate(["animal many", "fuhr wohnt Montag Sie feeling Satz"]))
def test_the_recipes_for_another_world(which, names, tmp_path, monkeypatch):
    """As course/teacher/README.md shows them: the annotations are valid, and the scripted reader agrees."""
    page, tables = ((ROOT / name).read_text(encoding="utf-8")
                    for name in ("course/teacher/README.md", "data/world.json"))
    new, changes = re.findall(r"```json\n(.*?)```\n```diff\n(.*?)```", page, re.S)[which]
    tables, new = json.loads(tables), json.loads(new)
    tables |= new if which else {name: tables[name] | new[name] for name in new}
    (tmp_path / "world.json").write_text(json.dumps(tables), encoding="utf-8")
    for name in ("words", "stories", "world", "annotations", "annotated"):      # each imports those before it
        source = (ROOT / "data" / f"{name}.py").read_text(encoding="utf-8")
        for change in read_changes(changes) if name == "world" else ():
            source = changed(source, change)
        module = imported(tmp_path / f"other_{name}.py", source, monkeypatch)
        monkeypatch.setattr(data, name, module, raising=False)
        monkeypatch.setitem(sys.modules, f"data.{name}", module)
    world, annotated, seen, rng = sys.modules["data.world"], module, set(), random.Random(1)
    for record in sum(world.annotated(400, 1), []):
        annotated.check_record(record)
        seen |= {e["type"] for e in record["entities"]}
        for text in (record["text"], *(item["question"] for item in record["questions"])):
            seen |= set(re.findall(r"\w+", text))
    assert seen >= set(names.split())
    for paragraph in (world.draw_paragraph(rng, split="test") for _ in range(100)):
        for k, record in enumerate(world.annotate(rng, paragraph)):
            answers = world.all_answers(paragraph, k)
            assert all(answers[item["question"]] == item["answer"] for item in record["questions"])
