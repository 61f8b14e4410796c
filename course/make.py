"""Makes the student's copy of the repository for one assignment: it runs, but for the functions that are to be written.

    python course/make.py 5 out/assignment-5

Their signatures and docstrings stay, their bodies are gone. Left out of the copy are the tests, the wrong answers, the notes
for the teacher and the history, as all of them tell how it is done. The folder must be new or empty.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(REPOSITORY)                               # in place of course/, where this file lies

from course.assignments import ASSIGNMENTS, take_out  # noqa: E402
from data.cli import printable  # noqa: E402

ROOT = ("*.py", "pyproject.toml", "README.md", "LICENSE")       # of the repository's own folder
NOT_FOR_STUDENTS = ("make.py", "README.md", "mutants", "checks")  # of course/


def files_of(number):
    """The files of a student's copy, as paths relative to the repository, sorted; made things are not among them."""
    assignment, paths = ASSIGNMENTS[number], [path for pattern in ROOT for path in REPOSITORY.glob(pattern)]
    paths += [path for path in (REPOSITORY / "data").rglob("*") if path.is_file()]
    for path in (REPOSITORY / "course").iterdir():
        other = path.name[0].isdigit() and not path.name.startswith(f"{number}-")
        if path.is_file() and path.name not in NOT_FOR_STUDENTS and not other:
            paths.append(path)
    paths.append(REPOSITORY / "course" / "checks" / f"{assignment.name}.py")
    names = [path.relative_to(REPOSITORY).as_posix() for path in paths]
    made = ("__pycache__", ".tmp")
    return sorted(name for name in names if not any(part in name for part in made) and name not in assignment.files)


def emptied(number, name):
    """The text of one .py file as the student gets it."""
    source, assignment = (REPOSITORY / name).read_text(encoding="utf-8"), ASSIGNMENTS[number]
    for function in assignment.write.get(name, ()):
        source = take_out(source, function, f"assignment {number}: {function}")
    for function in assignment.hide.get(name, ()):
        source = take_out(source, function, f"not part of assignment {number}, and taken out because it tells how: {function}")
    return source


def make(number, folder):
    """Writes the copy -> the number of files. ValueError where the folder has something in it."""
    folder = Path(folder)
    if not (REPOSITORY / "pyproject.toml").is_file():
        raise ValueError(f"{REPOSITORY}: no pyproject.toml there; copies are made from a checkout, not from an installed package")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: not an empty folder; name a new one, nothing is overwritten here")
    if REPOSITORY in folder.resolve().parents and folder.resolve().relative_to(REPOSITORY).parts[0] in ("data", "course"):
        raise ValueError(f"{folder}: inside what is copied; name a folder elsewhere, for example out/assignment-{number}")
    names = files_of(number)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".py"):
            path.write_text(emptied(number, name), encoding="utf-8", newline="\n")
        else:
            shutil.copyfile(REPOSITORY / name, path)
    return len(names)


def main(argv=None):
    """The command -> exit code: 0, or 2 with one line for what cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, choices=sorted(ASSIGNMENTS), help="of the assignment")
    parser.add_argument("folder", help="new or empty")
    options = parser.parse_args(argv)
    try:
        n = make(options.number, options.folder)
    except (ValueError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    page = os.path.join(options.folder, "course", ASSIGNMENTS[options.number].name + ".md")
    print(printable(f"{n} files in {options.folder}; the assignment is {page}"))
    print(f"tested there with: python course/grade.py . {options.number}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
