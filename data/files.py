"""Files that survive a crash: written beside their place and renamed, with a checksum. The folder of a run.

    with folder_lock(out):                           # one process at a time
        open_run(out, identity, names)               # a folder belongs to one set of options and inputs
        if not is_finished(out, "brd"):              # a finished stage is not done again
            ... save_finished(out, "brd", out / "brd" / "model.pt")
"""

import contextlib
import hashlib
import io
import json
import os
import re
import sys
from pathlib import Path

import torch

from data import machine

OTHER = "use another --out_dir, or --redo to start over"
AGAIN = "remove it, and the stage is done again"
# What runs write into the folders of their stages; --redo removes nothing else there.
WRITTEN = re.compile(r"model(-\d+-of-\d+)?\.(pt|safetensors(\.index\.json)?)|training\.pt|validation\.txt|"
                     r"(config|header|part|test|(tokenizer|generation)(_config)?)\.json|tokenizer\.tiktoken|"
                     r"(tokens|documents|roles|counts|ids|logprobs)\.(bin|part)")


def regular(path):
    """The path as it is; ValueError for a pipe or a device, whose reading might have no end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path}: a folder, a pipe or a device; expected a file")
    return path


def sha256_of(path):
    """The SHA-256 of a file -> 64 hex digits; ValueError as of `regular`."""
    found = hashlib.sha256()
    with open(regular(path), "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def hash_of(*parts):
    """One hash of files (Path), bytes and str -> 16 hex digits."""
    parts = [sha256_of(part) if isinstance(part, Path) else part for part in parts]
    parts = [part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass") for part in parts]
    return hashlib.sha256(b"".join(b"%d;" % len(part) + part for part in parts)).hexdigest()[:16]


def weights_hash(model):
    """One hash of all weights of a model, of any dtype -> 16 hex digits."""
    found = hashlib.sha256()
    for p in model.parameters():
        found.update(p.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def rename(beside, path):
    """Puts a finished file in its place; after a power cut there is the old one or the new one."""
    with open(beside, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_bytes(path, content):
    """Writes a file beside its place and renames it; makes the folder; the first process (rank 0) alone."""
    if machine.rank():
        return
    beside = Path(f"{path}.tmp")
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.unlink(missing_ok=True)                              # half a file, or a link
    beside.write_bytes(content)
    rename(beside, path)


def write_text(path, text):
    """Writes text as UTF-8; see write_bytes. Lone surrogates (names of files that are not UTF-8) are kept."""
    write_bytes(path, text.encode("utf-8", "surrogatepass"))


def digest(value):
    """The SHA-256 of a value as JSON has it, names sorted -> 64 hex digits."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


def write_json(path, value):
    """Writes a dict with its checksum; see write_bytes."""
    write_text(path, json.dumps({**value, "sha256": digest(value)}, indent=1, ensure_ascii=False) + "\n")


def read_json(path, remedy, *names):
    """The dict that write_json wrote, which holds `names`. ValueError of one line for anything else; it ends
    with the remedy."""
    text = Path(regular(path)).read_bytes()
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        value = json.loads(text)                                # a foreign file fails in many ways
        if value.pop("sha256") == digest(value) and value.keys() >= set(names):
            return value
    raise ValueError(f"{path}: damaged, edited or of another kind; {remedy}")


def lock(file, what):
    """Locks an open file until it is closed, or the process ends; ValueError if another process holds it."""
    try:
        if os.name == "posix" and not machine.rank():           # the first process holds it for all
            import fcntl                                        # Windows has none: no lock there
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{what}: another process is at work here; wait for its end, or name another "
                         "place") from None
    except OSError as error:
        print(f"{what}: no lock ({error.strerror}); start one process at a time", file=sys.stderr)


@contextlib.contextmanager
def folder_lock(out):
    """One process at a time in the folder of a run. What stops the run is told with how it goes on."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "ab") as file:
        lock(file, out)
        try:
            yield
        except KeyboardInterrupt as stopped:
            text = f"{str(stopped) or 'stopped'}; the same command goes on from there"
            raise KeyboardInterrupt(text) from None
        (out / ".redo").unlink(missing_ok=True)                 # the run has come to its end


def remove_run(out, names):
    """Removes what runs have written: the files of `names`, in its folders the notes and the files of
    WRITTEN, and empty folders. OSError where it cannot; ValueError for a link, before anything is gone."""
    tops = [top for name in names for top in out.glob(name)]
    files = [path for top in tops if not top.is_symlink() for path in top.glob("*")
             if WRITTEN.fullmatch(path.name.removesuffix(".tmp")) or path.match("stages/*.json")]
    for path in files + tops:
        if path.is_symlink():
            raise ValueError(f"{path}: a link, which no run has made; remove it yourself")
    for path in files + tops:
        if path.is_dir():
            with contextlib.suppress(OSError):                  # not empty: somebody's files stay
                path.rmdir()
        else:
            path.unlink()


def open_run(out, identity, names, redo=False):
    """Opens the folder of a run. run.json holds its identity: a dict of options and of hashes of inputs.

    names: {file or folder that such runs write, or a pattern of folders, before the folder that holds them:
    what it is}. What they wrote is removed with redo, and while no stage is finished and nothing saved. A
    --redo that was stopped goes on when it is repeated. ValueError names what differs from the earlier run,
    and for the folder of another program."""
    path, mark, readme = out / "run.json", out / ".redo", out / "README.txt"
    here = [one for one in (readme, *(out / name for name in names)) if one.exists()]
    if here and not path.exists():
        raise ValueError(f"{here[0]}: no run.json of a run that wrote it; use another --out_dir")
    if path.exists() and read_json(path, "use another --out_dir").get("files") != list(names):
        raise ValueError(f"{path}: of another program, or of an earlier version; use another --out_dir")
    if redo and mark.exists() and mark.read_text(encoding="utf-8") == digest(identity):
        print(f"the --redo that was stopped goes on; to start over, remove {mark}", flush=True)
        redo = False
    saved = "model.pt", "training.pt", "part.json", "header.json"
    begun = any(any(out.glob(f"*/{name}")) for name in saved)
    fresh = redo or not path.exists() or not (begun or (out / "stages").exists())
    machine.barrier()                                           # all have looked
    if fresh and not machine.rank():
        remove_run(out, [name for name in names if name != path.name])      # the record stays till the end
        write_json(path, identity | {"files": list(names)})
        write_text(readme, "".join(f"{name:20}{what}\n" for name, what in names.items()))
        if redo:
            write_text(mark, digest(identity))
    machine.barrier()
    before = read_json(path, OTHER)
    for name, value in identity.items():
        if (was := before.get(name)) != value:
            raise ValueError(f"{out}: holds a run with {name}={was!s:.60}, this one has {value}; {OTHER}")
    for note in sorted((out / "stages").glob("*.json")):
        is_finished(out, note.stem)                             # for its errors


def is_finished(out, stage):
    """Whether a stage is finished and its files are there; ValueError for a changed file, a foreign note."""
    path = out / "stages" / f"{stage}.json"
    finished = path.exists()
    if finished:
        note = read_json(path, AGAIN, "run", "files")
        if note["run"] != digest(read_json(out / "run.json", OTHER)):
            raise ValueError(f"{path}: of another run; {AGAIN}")
        for name, sha256 in note["files"].items():
            if not (out / name).exists():
                finished = False
            elif sha256_of(out / name) != sha256:
                raise ValueError(f"{out / name}: changed since it was written; restore it, or remove {path}")
    machine.barrier()                                           # nobody writes before all have looked
    return finished


def save_finished(out, stage, *files):
    """Notes that a stage is finished, with the SHA-256 of its files; all processes wait for it."""
    if not machine.rank():
        hashes = {file.relative_to(out).as_posix(): sha256_of(file) for file in files}
        run = digest(read_json(out / "run.json", OTHER))
        write_json(out / "stages" / f"{stage}.json", {"run": run, "files": hashes})
    machine.barrier()


def save_training(path, model, optimizers, state):
    """Writes all that the next step depends on. state: a dict, its "plan" a hash of what the run reads."""
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
                "rng": torch.get_rng_state(), "state": state}, file)
    write_bytes(path, hashlib.sha256(state["plan"].encode() + file.getvalue()).digest() + file.getvalue())


def load_training(path, model, optimizers, state):
    """Undoes save_training -> its state; the given one without a file. ValueError: damaged, another plan."""
    if not path.exists():
        return state
    content = path.read_bytes()
    if hashlib.sha256(state["plan"].encode() + content[32:]).digest() != content[:32]:
        raise ValueError(f"{path}: damaged, or of another training; remove it, and this one starts over")
    saved = torch.load(io.BytesIO(content[32:]), next(model.parameters()).device, weights_only=True)
    model.load_state_dict(saved["model"])
    for optimizer, its_state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(its_state)
    torch.set_rng_state(saved["rng"].cpu())
    return saved["state"]
