"""Damages files at random, gives the command that reads them, and compares what it does with what it should.

    python -m tests.damage            # 300 damaged files: about a minute of one core
    python -m tests.damage 10000

One file of a whole run, of a run that was stopped in a training, of what they read, or of replies gets other
bits, zeros, an end cut off, its beginning once more or another file's content, or is gone. Then the command
ends in one line, or it does what it does with whole files, to the last bit. Exit code 1 where not.
"""
import contextlib
import io
import random
import shutil
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

import train
from adapters import endpoint
from data.cache import ARRAYS, TeacherCache
from data.files import weights_hash
from data.report import report
from data.tokenizer import Tokenizer
from experiments.report import read_results
from model import GPT
from tests.torture import OWN, TINY, outcome, small_world

KINDS = "flip", "zeros", "cut", "longer", "other", "gone"


def damage(path, files, kind, rng):
    """Damages one file; files: those whose content it may get."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) or 1)
    if kind == "flip":
        content[at:at + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in content[at:at + 1])
    elif kind == "other":
        content = rng.choice(files).read_bytes()
    elif kind == "zeros":
        content[at:at + 64] = bytes(64)
    elif kind == "cut":
        del content[at:]
    elif kind == "longer":
        content += content[:at + 1]
    path.unlink()                                       # and not written over: it may be mapped
    if kind != "gone":
        path.write_bytes(content)


def run(arguments, out, stop_at=None):
    """A run of train.py -> what it leaves; stop_at: a file at whose appearance its training is stopped."""
    def loss(*given, **named):
        if stop_at and stop_at.exists():
            raise KeyboardInterrupt
        return real(*given, **named)
    real, train.loss_terms = train.loss_terms, loss
    try:
        with contextlib.suppress(*[KeyboardInterrupt] if stop_at else []):
            train.main([*arguments, f"--out_dir={out}"])
    finally:
        train.loss_terms = real
    assert not stop_at or not (out / "results.json").exists()
    return None if stop_at else outcome(out)


def student(folder):
    model, tokenizer = GPT.load(folder), Tokenizer.load(folder)
    return weights_hash(model), model.extra, tokenizer.hash


def cache(folder):
    found = TeacherCache(folder)
    return found.header, [np.asarray(found.arrays[name]).tobytes() for name in ARRAYS]


def replies(path):
    """Those that are read must be as they were; the others are asked for again."""
    found = endpoint.read_replies(path)
    return all(reply["reply"] == f'{{"entities": [{key}]}}' for key, reply in found.items())


def cases(place):
    """Makes what is to be damaged -> {name: (files and folders, what is done with them)}."""
    small_world(place)
    train.SAVE_SECONDS, own = 0.0, [*OWN, f"--corpus={place / 'my.txt'}"]
    world, found = [*TINY, "--arms=gold,td"], {}
    for name, options, student_name in ("world", world, "brd+td"), ("text", own, "plain"):
        out, half = place / name, place / f"{name} stopped"
        run(options, out)
        run(options, half, half / student_name / "training.pt")
        read = [place / "my.txt"] if name == "text" else [place / "tasks", place / "teacher"]
        found[name] = [out], partial(run, options, out)
        found[half.name] = [half, *read], partial(run, options, half)
    file, brd, teacher = place / "a.replies.jsonl", place / "world" / "brd", place / "teacher"
    with open(file, "ab", buffering=0) as kept:
        for i in range(40):
            endpoint.keep(kept, {"key": str(i), "reply": f'{{"entities": [{i}]}}', "finish": "stop"}, "")
    return found | {
        "student": ([brd], partial(student, brd)), "cache": ([teacher], partial(cache, teacher)),
        "results": ([place / "world" / "results.json"], lambda: report(read_results(place / "world"))),
        "replies": ([file], partial(replies, file))}


def restored(place, whole):
    shutil.rmtree(place)
    shutil.copytree(whole, place, symlinks=True)


def end_of(command, right, kind):
    """How a command ends -> str, in capitals what it should not do. A file that is gone, and that no later
    stage reads, may stay away."""
    try:
        found = command()
        if kind == "gone" and isinstance(found, dict):
            right = {name: right[name] for name in {"": 0, **found}}
        return "as undisturbed" if found == right else "ANOTHER RESULT"
    except (ValueError, OSError) as error:
        return "one line" if "\n" not in str(error) else "SEVERAL LINES"
    except Exception as error:
        return type(error).__name__.upper()


def main(arguments):
    """Damages files until enough were damaged -> exit code."""
    n, rng, told = int((arguments or ["300"])[0]), random.Random(0), Counter()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        place, whole, right = Path(name) / "place", Path(name) / "whole", {}
        made = cases(place)
        shutil.copytree(place, whole)
        for case, (_, command) in made.items():
            right[case] = command()
            restored(place, whole)
        for i in range(n):
            case = list(made)[i % len(made)]
            roots, command = made[case]
            files = [file for root in roots for file in (root, *sorted(root.rglob("*"))) if file.is_file()]
            path, kind = rng.choice(files), rng.choice(KINDS)
            damage(path, files, kind, rng)
            end = end_of(command, right[case], kind)
            if end.isupper():
                print(f"{case}: {path.relative_to(place)}, {kind}: {end}", file=sys.stderr)
            told[case, end] += 1
            restored(place, whole)
    for (case, end), count in sorted(told.items()):
        print(f"{case:14} {end:16} {count:6}")
    return int(any(end.isupper() for _, end in told))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
