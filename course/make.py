"""Makes a student's copy of the repository for one assignment, without the bodies of the functions to write.

    python -m course.make 5 out/assignment-5

The copy has no tests, wrong answers, notes for the teacher or history, because these reveal solutions.
"""

import argparse
import shutil
from pathlib import Path

from course.assignments import ASSIGNMENTS, take_out
from data.cli import printable, run_command

REPOSITORY = Path(__file__).resolve().parent.parent
COPIED = ("*.py", "pyproject.toml", "README.md", "LICENSE", "data/**/*", "adapters/*.py", "experiments/*.py",
          "course/*.py")


def make(number, folder):
    """Writes the copy -> the number of files. ValueError where the folder is not empty."""
    folder, assignment = Path(folder), ASSIGNMENTS[number]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: not an empty folder; name a new one")
    patterns = *COPIED, f"course/{assignment.name}.md", f"course/checks/{assignment.name}.py"
    paths = [path for pattern in patterns for path in REPOSITORY.glob(pattern)
             if path.is_file() and "__pycache__" not in path.parts]
    for source in paths:
        name = source.relative_to(REPOSITORY).as_posix()
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        for function in assignment.write.get(name, ()) + assignment.hide.get(name, ()):
            text = take_out(path.read_text(encoding="utf-8"), function, f"assignment {number}: {function}")
            path.write_text(text, encoding="utf-8", newline="\n")
    return len(paths)


def main(arguments=None):
    """The command; ValueError where the folder is not empty."""
    parser = argparse.ArgumentParser(prog="python -m course.make", description=__doc__.split("\n")[0])
    parser.add_argument("number", type=int, choices=ASSIGNMENTS, help="of the assignment")
    parser.add_argument("folder", help="new or empty")
    options = parser.parse_args(arguments)
    n = make(options.number, options.folder)
    page = f"course/{ASSIGNMENTS[options.number].name}.md"
    print(printable(f"{n} files in {options.folder}; read {page} there"))


if __name__ == "__main__":
    run_command(main)
