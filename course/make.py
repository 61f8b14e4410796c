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


def files_of(number):
    """The files of a student's copy: sorted paths relative to the repository."""
    name = ASSIGNMENTS[number].name
    paths = [path for pattern in (*COPIED, f"course/{name}.md", f"course/checks/{name}.py")
             for path in REPOSITORY.glob(pattern) if path.is_file() and "__pycache__" not in path.parts]
    return sorted(path.relative_to(REPOSITORY).as_posix() for path in paths)


def emptied(number, file):
    """The text of one .py file as the student gets it."""
    source, assignment = (REPOSITORY / file).read_text(encoding="utf-8"), ASSIGNMENTS[number]
    for function in assignment.write.get(file, ()) + assignment.hide.get(file, ()):
        source = take_out(source, function, f"assignment {number}: {function}")
    return source


def make(number, folder):
    """Writes the copy -> the number of files. ValueError where the folder is not empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: not an empty folder; name a new one")
    for name in (names := files_of(number)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".py"):
            path.write_text(emptied(number, name), encoding="utf-8", newline="\n")
        else:
            shutil.copyfile(REPOSITORY / name, path)
    return len(names)


def main(arguments=None):
    """The command; ValueError where the folder is not empty."""
    parser = argparse.ArgumentParser(prog="python -m course.make", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, choices=ASSIGNMENTS, help="of the assignment")
    parser.add_argument("folder", help="new or empty")
    options = parser.parse_args(arguments)
    n = make(options.number, options.folder)
    page = Path(options.folder) / "course" / f"{ASSIGNMENTS[options.number].name}.md"
    print(printable(f"{n} files in {options.folder}; the assignment is {page}"))
    print(f"test there with: python -m course.grade . {options.number}")


if __name__ == "__main__":
    run_command(main)
