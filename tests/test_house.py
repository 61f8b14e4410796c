"""The plan of the repository: imports run one way, files stay small, and the core runs without the wings."""
import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.documents import course_tokenizer
from tests.torture import TINY, small_teacher

ROOT = Path(__file__).resolve().parent.parent
# A wing may import what stands in its row, and its own files.
MAY_IMPORT = {"model": (), "data": (), "td_distill": ("model", "data"),
              "brd": ("td_distill", "model", "data"),      # a student is measured beside its teacher
              "train": ("brd", "td_distill", "model", "data"),
              "adapters": ("brd", "td_distill", "model", "data"),
              "experiments": ("train", "brd", "td_distill", "model", "data"),
              "course": ("experiments", "train", "brd", "td_distill", "model", "data")}
LIMITS = {"model.py": 350, "td_distill.py": 400, "brd.py": 350, "train.py": 400}
FILES = [path.relative_to(ROOT) for wing in MAY_IMPORT for path in
         ([ROOT / f"{wing}.py"] if (ROOT / f"{wing}.py").exists() else sorted((ROOT / wing).glob("*.py")))]


def own_imports(file):
    """The modules of the repository that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {name for name in names if name.split(".")[0] in MAY_IMPORT}
    return {name for name in found if Path(*name.split(".")).with_suffix(".py") in FILES}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_run_one_way(file):
    wing = file.parts[0].removesuffix(".py")
    for name in own_imports(file):
        assert name.split(".")[0] in (wing, *MAY_IMPORT[wing]), f"{file} imports {name}"


def test_no_two_files_import_each_other():
    graph = {file: {Path(*name.split(".")).with_suffix(".py") for name in own_imports(file)}
             for file in FILES}

    def reached(start):
        seen, todo = set(), [start]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        return seen
    assert [file for file in FILES if file in reached(file)] == []


def test_a_distribution_holds_every_file_of_the_wings():
    """What is no Python file stands in package-data: models, results, pictures, pages."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.setuptools.package-data]")[2]
    listed = {ROOT / wing / name for wing, names in re.findall(r'"(\w+)" = \[(.*)\]', text)
              for pattern in re.findall('"(.*?)"', names) for name in (ROOT / wing).glob(pattern)}
    here = {path for wing in ("adapters", "course", "data", "experiments") for path in (ROOT / wing).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in here - listed if path.suffix != ".py"} == set()


@pytest.mark.parametrize("name", LIMITS)
def test_core_files_can_be_read_at_one_sitting(name):
    source = (ROOT / name).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LIMITS[name]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name
            parameters = {a.arg for a in node.args.args + node.args.kwonlyargs} - {"self", "cls"}
            assert len(parameters) <= 8, node.name


@pytest.mark.parametrize("file", FILES, ids=str)
def test_lines_have_110_columns_at_most(file):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 110] == []


def test_the_core_runs_without_the_wings(tmp_path):
    for name in [*LIMITS, "data"]:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    shutil.rmtree(tmp_path / "data" / "teacher")
    for task in (tmp_path / "data" / "tasks").glob("[!n]*.json"):
        task.unlink()                                       # one task will do
    tokenizer = course_tokenizer("world", 1024)
    small_teacher(tmp_path / "data" / "teacher", tokenizer)
    command = [sys.executable, "train.py", *TINY, "--start_tokens=1000", "--student_tokens=2000",
               "--accumulate=50"]                           # one step, and so one short test on the way
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
                          env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    assert "differences, paired" in done.stdout and (tmp_path / "out" / "results.json").exists()
