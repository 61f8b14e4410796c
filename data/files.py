"""Files that survive a crash: written beside and renamed, with a checksum, and a note of every finished
stage.

    with folder_lock(out):                           # one process at a time
        open_run(out, identity, names)               # a folder belongs to one set of options and inputs
        if not is_finished(out, "brd"):              # a finished stage is not done again
            ... save_finished(out, "brd", out / "brd" / "model.pt")

A checksum finds accidents: a bad disk, half a copy, a file of another run. With torchrun only the first
process writes (data/machine.py).
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch

from data import machine
from data.cli import brief

OTHER = "use another --out_dir, or --redo to start over"


def sha256_of(path, size=None):
    """The SHA-256 of a file, or of its first `size` bytes -> 64 hex digits."""
    found, left = hashlib.sha256(), os.path.getsize(path) if size is None else size
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            found.update(block)
            left -= len(block)
    return found.hexdigest()


def hash_of(*parts):
    """One hash of files (Path), bytes and str -> 16 hex digits."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            part = sha256_of(part)
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        found.update(b"%d;" % len(part) + part)
    return found.hexdigest()[:16]


def rename(beside, path):
    """Puts a finished file in its place; after a power cut there is the old one or the new one."""
    with open(beside, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_text(path, text):
    """Writes a file beside its place and renames it; the folder is made if there is none. OSError for a full
    disk."""
    if machine.rank():
        return
    path, beside = Path(path), Path(f"{path}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        rename(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def digest(value):
    """The SHA-256 of a JSON object, 64 hex digits, whatever its white space and the order of its names."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


def with_checksum(value):
    """A dict (any JSON) -> the same with its digest as "sha256"."""
    return {**value, "sha256": digest(value)}


def write_json(path, value):
    """Writes a dict with its checksum; see write_text."""
    write_text(path, json.dumps(with_checksum(value), indent=1, ensure_ascii=False) + "\n")


def read_json(path, remedy):
    """The dict that write_json wrote. ValueError of one line for anything else; it ends with the remedy."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
        whole = isinstance(value, dict) and value.pop("sha256", None) == digest(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({brief(error)}); {remedy}") from None
    if not whole:
        raise ValueError(f"{path}: changed since it was written (its checksum is missing or wrong); {remedy}")
    return value


# ------------------------------------------------------------------------------------------------------------
# The folder of a run


@contextlib.contextmanager
def folder_lock(out):
    """A lock on a folder that ends with the process. ValueError names the process that holds it."""
    Path(out).mkdir(parents=True, exist_ok=True)
    with open(Path(out) / ".lock", "a+", encoding="utf-8") as file:
        with contextlib.suppress(ImportError):                  # not on Windows
            import fcntl
            try:
                if not machine.rank():                          # the first process holds it for all
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise ValueError(f"{out}: process {file.read() or 'unknown'} is at work here; wait, or "
                                 "use another --out_dir") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def open_run(out, identity, names, redo=False):
    """Opens the folder of a run: run.json holds its identity, a dict of options and of hashes of what is
    read.

    names: {file or folder that such runs write: what it is}, kept in README.txt; redo throws them away.
    ValueError names what is different in an earlier run, a file that was changed, and one that no run has
    written."""
    path, here = out / "run.json", [name for name in names if (out / name).exists()]
    if redo and path.exists() and not machine.rank():
        for name in here:
            shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    elif here and not path.exists():
        raise ValueError(f"{out}: holds {here[0]}, but no run.json of an earlier run; use another --out_dir")
    machine.barrier()
    if not (out / "stages").exists() and not any(out.glob("*/training.pt")):    # nothing is made yet
        write_json(path, identity)
        write_text(out / "README.txt", "".join(f"{name:20}{what}\n" for name, what in names.items()))
        machine.barrier()
    before = read_json(path, OTHER)
    for name, value in identity.items():
        if before.get(name) != value:
            was = f"{before.get(name)!s:.60}"
            raise ValueError(f"{out}: holds a run with {name}={was}, this one has {value}; {OTHER}")
    for stage in sorted((out / "stages").glob("*.json")):
        for file, sha256 in read_stage(out, stage.stem).items():
            if (out / file).exists() and sha256_of(out / file) != sha256:
                raise ValueError(f"{out / file}: changed since this run wrote it; put it back, or remove "
                                 f"{stage}, and it is made again")


def read_stage(out, stage):
    """{file: SHA-256} of a finished stage; ValueError where the note is damaged, or of a run with another
    identity."""
    path = out / "stages" / f"{stage}.json"
    note = read_json(path, "remove it, and the stage is done again")
    if note.get("run") != digest(read_json(out / "run.json", OTHER)):
        raise ValueError(f"{path}: of a run with other options or inputs; remove it, the stage is done again")
    return note["files"]


def is_finished(out, stage):
    """Whether a stage is finished and all of its files are there."""
    path = out / "stages" / f"{stage}.json"
    finished = path.exists() and all((out / file).exists() for file in read_stage(out, stage))
    machine.barrier()                                           # nobody writes before all have looked
    return finished


def save_finished(out, stage, *files):
    """Notes that a stage is finished, with the SHA-256 of its files; all processes wait for it."""
    if not machine.rank():
        hashes = {file.relative_to(out).as_posix(): sha256_of(file) for file in files}
        write_json(out / "stages" / f"{stage}.json",
                   {"run": digest(read_json(out / "run.json", OTHER)), "files": hashes})
    machine.barrier()


# ------------------------------------------------------------------------------------------------------------
# A training that goes on where it was stopped


def save_training(path, model, optimizers, state):
    """Everything that the next step depends on, and the file's SHA-256 behind it. OSError where the disk is
    full.

    state: a dict with "plan", a hash of what is read, and what was noted so far."""
    if machine.rank():
        return
    beside = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
                    "rng": torch.get_rng_state(), "state": state}, beside)
        with open(beside, "ab") as file:
            file.write(bytes.fromhex(sha256_of(beside)))
        rename(beside, path)
    except RuntimeError as error:                               # torch.save has its own words for a full disk
        beside.unlink(missing_ok=True)
        raise OSError(f"{path}: not written ({brief(error, 80)}); is the disk full?") from None


def load_training(path, model, optimizers, state):
    """Puts model and optimizers where save_training left them -> the state then; the one given where no file
    is.

    ValueError for a damaged file, and for a training that reads something else."""
    if not path.exists():
        return state
    try:
        size = os.path.getsize(path) - 32
        with open(path, "rb") as file:
            file.seek(max(size, 0))
            if size < 0 or file.read() != bytes.fromhex(sha256_of(path, size)):
                raise ValueError("its checksum is missing or wrong")
        saved = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
        if saved["state"]["plan"] != state["plan"]:
            raise ValueError("it reads other batches")
        model.load_state_dict(saved["model"])
        for optimizer, of_it in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(of_it)
        torch.set_rng_state(saved["rng"].cpu())
        return saved["state"]
    except Exception as error:                                  # a foreign file fails in many ways
        raise ValueError(f"{path}: no training to go on with ({brief(error)}); remove it, "
                         "and it starts over") from None
