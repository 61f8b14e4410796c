"""Files that survive a crash: written beside and renamed, with a checksum, and a record of every finished stage of a run.

    open_run(out, options, inputs, names)            # a folder belongs to one set of options and inputs
    with folder_lock(out):                           # one process at a time
        if not is_finished(out, "brd"):              # a finished stage is not done again
            ...
            save_finished(out, "brd", out / "brd" / "model.pt")

A checksum finds accidents: a bad disk, half a copy, a file of another run. Nothing that is read here is ever executed.
With torchrun only the first process writes (data/machine.py).
"""

import contextlib
import hashlib
import io
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
    """One hash of files (Path), bytes and str -> 16 hex digits; the length of each part goes in as well."""
    found = hashlib.sha256()
    for part in parts:
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        with open(part, "rb") if isinstance(part, Path) else io.BytesIO(part) as file:
            while block := file.read(1 << 20):
                found.update(block)
            found.update(b"%d;" % file.tell())
    return found.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# JSON and tensors, whole or not at all


def rename(beside, path):
    """Puts a finished file in its place; after a power cut there is the old one or the new one."""
    with open(beside, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_text(path, text):
    """Writes a file beside its place and renames it; the folder is made if there is none. OSError for a full disk."""
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


def save_tensors(path, state):
    """torch.save with the file's SHA-256 behind it, beside and renamed. OSError where the disk is full."""
    if machine.rank():
        return
    beside = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(state, beside)
        with open(beside, "ab") as file:
            file.write(bytes.fromhex(sha256_of(beside)))
    except RuntimeError as error:                           # torch.save has its own words for a full disk
        beside.unlink(missing_ok=True)
        raise OSError(f"{path}: not written ({brief(error, 80)}); is the disk full?") from None
    rename(beside, path)


def load_tensors(path, device="cpu"):
    """What save_tensors wrote. ValueError of one line where the file is damaged, or of another origin."""
    try:
        size = os.path.getsize(path) - 32
        with open(path, "rb") as file:
            file.seek(max(size, 0))
            if size < 0 or file.read() != bytes.fromhex(sha256_of(path, size)):
                raise ValueError("its checksum is missing or wrong")
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:                              # a foreign file fails in many ways
        raise ValueError(f"{path}: {brief(error)}; remove the file, and its stage starts over") from None


# ---------------------------------------------------------------------------------------------------------------------
# The folder of a run


@contextlib.contextmanager
def folder_lock(out):
    """A lock on a folder that ends with the process. ValueError names the process that holds it."""
    Path(out).mkdir(parents=True, exist_ok=True)
    with open(Path(out) / ".lock", "a+", encoding="utf-8") as file:
        with contextlib.suppress(ImportError):              # not on Windows
            import fcntl
            try:
                if not machine.rank():                      # the first process holds it for all
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise ValueError(f"{out}: process {file.read().strip() or 'unknown'} is at work in this folder; wait "
                                 "for it, or use another --out_dir") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def open_run(out, options, inputs, names, redo=False):
    """Opens the folder of a run -> its record {"options", "inputs"} and what was noted since; it is made where missing.

    options, inputs: dicts of JSON values that decide what the run makes; inputs are hashes of texts and caches.
    names: of the files and folders that runs write; redo throws them away. ValueError names the option or the input in
    which an earlier run differs, a file of a finished stage that was changed, and a file that no run has written.
    """
    path, here = out / "run.json", [name for name in names if (out / name).exists()]
    if redo and path.exists() and not machine.rank():
        for name in here:
            shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
        here = []
    machine.barrier()
    if not path.exists():
        if here and not machine.rank():
            raise ValueError(f"{out}: holds {here[0]}, but no run.json of an earlier run; use another --out_dir")
        machine.barrier()
        write_json(path, {"options": options, "inputs": inputs})
        machine.barrier()
    record = read_json(path, OTHER)
    for kind, values in (("options", options), ("inputs", inputs)):
        before = record.get(kind) if isinstance(record.get(kind), dict) else {}
        for name, value in values.items():
            if before.get(name) != value:
                raise ValueError(f"{out}: holds a run with {name}={before.get(name)!s:.60}, this one has {value}; {OTHER}")
    for stage in sorted((out / "stages").glob("*.json")):
        for file, sha256 in read_stage(out, stage.stem)["files"].items():
            if (out / file).exists() and sha256_of(out / file) != sha256:
                raise ValueError(f"{out / file}: changed since this run wrote it; put it back, or remove {stage}, and it "
                                 "is made again")
    return record


def read_stage(out, stage):
    """The record of a finished stage; ValueError where it is damaged, or copied from another run."""
    path = out / "stages" / f"{stage}.json"
    record = read_json(path, "remove it, and the stage is done again")
    if record.get("run") != run_hash(out) or not isinstance(record.get("files"), dict):
        raise ValueError(f"{path}: of a run with other options or inputs; remove it, and the stage is done again")
    return record


def run_hash(out):
    """The hash of a run's options and inputs."""
    record = read_json(out / "run.json", OTHER)
    return hash_of(json.dumps([record["options"], record["inputs"]], sort_keys=True))


def is_finished(out, stage):
    """Whether a stage is finished and all of its files are there."""
    return (out / "stages" / f"{stage}.json").exists() and all((out / f).exists() for f in read_stage(out, stage)["files"])


def save_finished(out, stage, *files):
    """Notes that a stage is finished, and the SHA-256 of its files; all processes wait for it."""
    if not machine.rank():
        hashes = {file.relative_to(out).as_posix(): sha256_of(file) for file in files}
        write_json(out / "stages" / f"{stage}.json", {"run": run_hash(out), "files": hashes})
    machine.barrier()


# ---------------------------------------------------------------------------------------------------------------------
# A training that goes on where it was stopped


def save_training(path, model, optimizers, progress):
    """Everything that the next step depends on; progress: dict with "plan", a hash of what is read, and the losses."""
    save_tensors(path, {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
                        "rng": torch.get_rng_state(), "progress": progress})


def load_training(path, model, optimizers, progress):
    """Puts model and optimizers where save_training left them -> the progress then; the one given where no file is.

    ValueError for a damaged file, and for a training that reads something else.
    """
    if not path.exists():
        return progress
    state = load_tensors(path, next(model.parameters()).device)
    if state["progress"]["plan"] != progress["plan"]:
        raise ValueError(f"{path}: of a training that reads other batches; remove the file, and it starts over")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    torch.set_rng_state(state["rng"].cpu())
    return state["progress"]
