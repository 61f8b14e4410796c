"""The course: the repository earns all points, an empty copy none, and wrong answers lose some; copies hold no solution."""
import ast
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from course import grade, make, observe
from course.assignments import ASSIGNMENTS, changed, find_function, read_changes, take_out
from data import annotations

ROOT = Path(make.__file__).resolve().parent.parent
NUMBERS = sorted(ASSIGNMENTS)
# What is done to a sound copy of assignment 1 in order to see how the grader takes it, and to which function.
ACCIDENTS = {
    "loops": ("merge", "out, i = [], 0", "import time\n    out, i = [], 0\n    while ids == [1, 2] and new == 9:\n        time.sleep(1)"),
    "dies": ("train_bpe", "if n_vocab < 258:", "if n_vocab == 259:\n        os._exit(3)\n    if n_vocab < 258:"),
    "phones": ("train_bpe", "if n_vocab < 258:", "import socket\n    socket.create_connection(('localhost', 9))\n    if n_vocab < 258:"),
    "starts": ("train_bpe", "if n_vocab < 258:", "import subprocess\n    subprocess.run(['true'])\n    if n_vocab < 258:"),
    "stumbles": ("merge", "out, i = [], 0", "out, i = [], 0)"),
    "leaves": ("merge", "out, i = [], 0", "raise SystemExit"),
}
SAMPLE = 1                          # wrong answers of each assignment that are tried here; all: python course/grade.py --mutants


def accident(folder, what):
    """A copy of the repository in which a function of assignment 1 misbehaves."""
    function, old, new = ACCIDENTS[what]
    sound = grade.read_mutants(1)[0]._replace(function=function, old=old, new=new)
    if what != "stumbles":
        grade.write_mutant(sound, folder)
        return folder
    grade.write_mutant(sound._replace(new=old), folder)
    path = folder / sound.file
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """{number: folder of the student's copy}"""
    folders = {number: tmp_path_factory.mktemp(f"copy{number}") for number in NUMBERS}
    for number, folder in folders.items():
        assert make.make(number, folder) > 20
    return folders


@pytest.fixture(scope="module")
def graded(copies, tmp_path_factory):
    """Everything that has to be run, in few processes: {name: {check: (failed, seconds)}}."""
    jobs = {("reference", n): grade.job_of(n, ROOT) for n in NUMBERS}
    for n in NUMBERS:
        jobs["empty", n] = grade.job_of(n, copies[n])
        changes = random.Random(f"sample {n}").sample(grade.read_mutants(n), SAMPLE)
        for i, change in enumerate(changes):
            folder = tmp_path_factory.mktemp(f"mutant{n}-{i}")
            grade.write_mutant(change, folder)
            jobs["mutant", n, change.what] = grade.job_of(n, folder, stop=True)
    for what in ACCIDENTS:
        names = ["check_worked_example", "check_ids", "check_round_trip", "check_merge_at_the_edges"]
        jobs["accident", what] = {**grade.job_of(1, accident(tmp_path_factory.mktemp(what), what)), "names": names}
    loops = jobs.pop(("accident", "loops"))
    found = dict(zip(jobs, grade.run_jobs(list(jobs.values()))))
    found["accident", "loops"], = grade.run_jobs([loops], limit=3.0)
    return found


# --- grading -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("number", NUMBERS)
def test_the_repository_earns_all_points_and_an_empty_copy_none(graded, number):
    names = [name for name, *_ in grade.read_checks(number)]
    assert {name: failed for name, (failed, _) in graded["reference", number].items()} == dict.fromkeys(names)
    assert list(graded["empty", number]) == names and all(failed for failed, _ in graded["empty", number].values())


def test_a_sample_of_wrong_answers_loses_points(graded):
    tried = {key: found for key, found in graded.items() if key[0] == "mutant"}
    assert len(tried) == SAMPLE * len(NUMBERS)
    assert not [key for key, found in tried.items() if all(failed is None for failed, _ in found.values())]


def test_what_hangs_or_dies_fails_alone(graded):
    found = [graded["accident", what].items() for what in ("loops", "dies")]
    loops, dies = ({name: failed for name, (failed, _) in one if failed} for one in found)
    assert list(loops) == ["check_merge_at_the_edges"] and "endless loop" in loops["check_merge_at_the_edges"]
    assert list(dies) == ["check_ids"] and "the process ended" in dies["check_ids"]


def test_there_is_no_network_and_no_other_program(graded):
    for what in ("phones", "starts"):
        failed = {name: failed for name, (failed, _) in graded["accident", what].items() if failed}
        assert "check_worked_example" not in failed and "without network" in failed["check_round_trip"]


def test_a_file_that_cannot_be_read_fails_all_checks_in_one_line(graded):
    for what, message in (("stumbles", "SyntaxError"), ("leaves", "SystemExit")):
        failed = [failed for failed, _ in graded["accident", what].values()]
        assert failed[0].startswith(message) and "\n" not in failed[0]
    assert all(failed.startswith("SyntaxError") for failed, _ in graded["accident", "stumbles"].values())


def test_the_command_prints_points_and_writes_the_gradebook(copies, tmp_path, capsys, monkeypatch):
    book = tmp_path / "book.json"
    names = [name for name, *_ in grade.read_checks(3)]
    answers = {name: ("found 2, expected 3" if name == names[0] else None, 0.1) for name in names}
    monkeypatch.setattr(grade, "run_jobs", lambda jobs, limit: [answers for _ in jobs])
    assert grade.main([str(copies[3]), "--json", str(book)]) == 0                       # number 3: its page lies in the folder
    printed, total = capsys.readouterr().out, sum(points for _, points, _ in grade.read_checks(3))
    lost = grade.read_checks(3)[0][1]
    assert f"assignment 3, 3-reading: {total - lost} of {total} points" in printed and "found   found 2, expected 3" in printed
    assert grade.read_checks(3)[0][2] in printed                                        # the hint
    entry = json.loads(book.read_text(encoding="utf-8"))
    assert (entry["points"], entry["out_of"], list(entry["assignments"])) == (total - lost, total, ["3"])
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["nowhere", "3"]])
def test_a_bad_folder_is_one_line(arguments, capsys):
    assert grade.main(arguments) == 2
    assert re.fullmatch(r"error: .*course/make.py\n", capsys.readouterr().err)


# --- wrong answers ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("number", NUMBERS)
def test_wrong_answers_are_up_to_date(number):
    changes, assignment = grade.read_mutants(number), ASSIGNMENTS[number]
    assert len(changes) >= 15 and len({(change.function, change.what) for change in changes}) == len(changes)
    for change in changes:
        assert change.what and change.old != change.new
        assert change.function in assignment.write.get(change.file, ()) or change.file in assignment.files, change.file
        source = changed((ROOT / change.file).read_text(encoding="utf-8"), change)          # ValueError: not there just once
        if change.file.endswith(".py"):                                                    # wrong, but Python
            name = change.function.split(".")[-1]
            whole = re.search(rf"^( *)def {name}\b.*?(?=^(?!\1[ \n])(?!\n)|\Z)", source, re.M | re.S)
            ast.parse(textwrap.dedent(whole[0])), change.what


def test_a_stale_change_is_named():
    change, = read_changes("@ brd.py credit\n= gone\n- no such text\n+ x")
    with pytest.raises(ValueError, match="brd.py, credit: 'no such text' occurs 0 times, expected once; .*'gone'"):
        changed((ROOT / "brd.py").read_text(encoding="utf-8"), change)
    with pytest.raises(ValueError, match="no function credits"):
        find_function("def credit(): pass", "credits")


def test_a_change_is_exact():
    source = "def f():\n    a = 1\n    return a\n\n\ndef g():\n    a = 1\n"
    change, = read_changes("@ x.py g\n= two lines\n- a = 1\n+ a = 2\n+     b = 3\n")
    assert changed(source, change) == "def f():\n    a = 1\n    return a\n\n\ndef g():\n    a = 2\n    b = 3\n"


# --- copies ----------------------------------------------------------------------------------------------------------------

def normalised(text):
    """Python without comments, layout and docstrings; other text without white space."""
    return "".join(text.split())


@pytest.mark.parametrize("number", NUMBERS)
def test_a_copy_holds_no_solution(copies, number):
    """Neither the body of a function that was taken out, nor any longer line of it, stands in any file of the copy."""
    files = [path for path in copies[number].rglob("*") if path.is_file()]
    texts, looked_for = "\n".join(normalised(path.read_text(encoding="utf-8", errors="ignore")) for path in files), 0
    for file, functions in [*ASSIGNMENTS[number].write.items(), *ASSIGNMENTS[number].hide.items()]:
        source = (ROOT / file).read_text(encoding="utf-8")
        for function in functions:
            node = find_function(source, function)
            lines = source.split("\n")[node.body[0].end_lineno:node.end_lineno]
            assert normalised("\n".join(lines)) not in texts, function
            told = [line for line in lines if len(normalised(line.split("  #")[0])) > 50 and "raise ValueError" not in line]
            looked_for += len(told)
            assert not [line for line in told if normalised(line) in texts], function
            assert f"{function}\")" in texts
    assert looked_for or number == 8
    left_out = ("tests", ".git", "course/mutants", "course/make.py", "course/README.md", "course/8-report.json")
    assert not [name for name in left_out if (copies[number] / name).exists()]
    assert [path.stem for path in (copies[number] / "course" / "checks").iterdir()] == [ASSIGNMENTS[number].name]
    assert [path.name for path in (copies[number] / "course").glob("*-*.md")] == [ASSIGNMENTS[number].name + ".md"]


def test_copies_can_be_imported(copies):
    """Every module of every copy, in one process that forgets them in between."""
    code = """
import importlib, pathlib, sys
for folder in sys.argv[1:]:
    sys.path[0] = folder
    names = [p.relative_to(folder).with_suffix("").as_posix().replace("/", ".") for p in pathlib.Path(folder).rglob("*.py")]
    names = [n for n in names if not n.startswith(("course.check", "data.tasks")) and "__init__" not in n]
    assert len(names) > 15
    for name in names:
        assert importlib.import_module(name).__file__.startswith(folder), name
    for name in [n for n in sys.modules if n in names or n in ("course", "data")]:
        del sys.modules[name]
"""
    done = subprocess.run([sys.executable, "-c", code, *map(str, copies.values())], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def test_signature_and_docstring_stay():
    stays = 'class A:\n    def f(self, x,\n          y=1):\n        """Says.\n\n        More."""\n'
    assert take_out(stays + "        # how\n        return x\n\n    b = 2\n", "A.f", "assignment 9: A.f") == (
        stays + '        raise NotImplementedError("assignment 9: A.f")\n\n    b = 2\n')
    with pytest.raises(ValueError, match="no docstring"):
        take_out("def f():\n    return 1\n", "f", "")


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    assert make.main(["5", str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert make.main(["5", str(ROOT / "data" / "copy")]) == 2 and not (ROOT / "data" / "copy").exists()


# --- pages -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("number", NUMBERS)
def test_pages_tell_what_the_code_says(number):
    page = (ROOT / "course" / f"{ASSIGNMENTS[number].name}.md").read_text(encoding="utf-8")
    checks, running = grade.read_checks(number), " ".join(page.split())
    assert f"{sum(points for _, points, _ in checks)} points" in running and f"course/grade.py . {number}" in page
    assert all(points >= 1 and len(hint) > 30 for _, points, hint in checks)
    for functions in ASSIGNMENTS[number].write.values():
        assert all(f"`{function}`" in page or f"`{function}(s)`" in page for function in functions)
    printed = "\n".join("    " + line for line in observe.OBSERVE[number - 1]())
    assert f"    python course/observe.py {number}\n{printed}\n" in page, printed
    assert len(page.split("\n")) < 50                                                      # one page


def recipes():
    return re.findall(r"```diff\n(.*?)```", (ROOT / "course" / "README.md").read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("which", [0, 1])
def test_the_recipes_for_another_world(which, tmp_path, monkeypatch):
    """What course/README.md shows is done, and the annotations that come out are valid, and judged right by the scripted
    reader."""
    text, source = recipes()[which], (ROOT / "data" / "world.py").read_text(encoding="utf-8")
    assert len([line for line in text.split("\n") if line[:1] in ("-", "+") and line]) < 30
    for change in read_changes(text):
        assert change.file == "data/world.py"
        source = changed(source, change)

    def module(name, source):
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        sys.modules[name] = made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made
    world, seen = module(f"changed_world_{which}", source), set()
    monkeypatch.setattr("data.world", world)
    changed_annotations = module(f"changed_annotations_{which}", Path(annotations.__file__).read_text(encoding="utf-8"))
    for paragraph in world.annotated(800, 1):
        for record in paragraph:
            changed_annotations.check_record(record)                                       # parses what it renders
            seen |= {entity["type"] for entity in record["entities"]} | {item["kind"] for item in record["questions"]}
            seen |= set(record["text"].strip(".!").split())
    assert seen >= ({"animal", "number"} if which == 0 else {"fuhr", "wohnt", "Montag", "Sie", "feeling"})
    rng = random.Random(1)
    for _ in range(100):
        paragraph = world.draw_paragraph(rng, split="test")
        for k, record in enumerate(world.annotate(rng, paragraph)):
            answers = world.all_answers(paragraph, k)
            assert all(answers[item["question"]] == item["answer"] for item in record["questions"])
