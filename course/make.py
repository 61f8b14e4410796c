"""Makes a student's copy of the repository for one assignment: the functions to write, and those of all later
assignments, have no body.

    python -m course.make 5 out/assignment-5

The copy has no tests, wrong answers, notes for the lecturer or history, because these reveal solutions.
"""

import shutil
from pathlib import Path

from course.assignments import ASSIGNMENTS, REPOSITORY, emptied, with_body
from data.cli import Parser, run_command

COPIED = ("*.py", "pyproject.toml", "README.md", "LICENSE", "data/**/*", "adapters/*.py",
          "adapters/README.md", "experiments/*.py", "experiments/README.md", "experiments/pictures/*",
          "tests/README.md", "course/[!f]*.py", "course/README.md", "course/glossary.md")


def copy(patterns, folder):
    """Copies files of the repository into a folder -> the number of files."""
    paths = [path for pattern in patterns for path in REPOSITORY.glob(pattern)
             if path.is_file() and "__pycache__" not in path.parts]
    for source in paths:
        path = Path(folder) / source.relative_to(REPOSITORY)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
    return len(paths)


def make(number, folder):
    """Writes the copy -> the number of files. ValueError where the folder is not empty."""
    folder, page = Path(folder), ASSIGNMENTS[number].name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: not an empty folder; name a new one")
    own = f"course/{page}.md", f"course/pictures/{page}.svg", f"course/checks/{page}.py"
    n = copy(COPIED + own, folder)
    for (file, function), of in emptied(number).items():
        text = (folder / file).read_text(encoding="utf-8")
        text = with_body(text, function, f'raise NotImplementedError("assignment {of}: {function}")')
        (folder / file).write_text(text, encoding="utf-8", newline="\n")
    return n


def main(arguments=None):
    """The command; ValueError where the folder is not empty."""
    parser = Parser(prog="python -m course.make", description=__doc__.split("\n")[0])
    parser.add_argument("number", type=int, choices=ASSIGNMENTS, help="of the assignment")
    parser.add_argument("folder", help="new or empty")
    options = parser.parse_args(arguments)
    print(f"{make(options.number, options.folder)} files; read course/{ASSIGNMENTS[options.number].name}.md")


if __name__ == "__main__":
    run_command(main)
