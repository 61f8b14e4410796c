"""The folder of a run: whose it is, who works in it, and how a training that was cut off goes on.

    out, plan = open_out(config)                        # ValueError where the folder belongs to a run with other options
    with held(out):                                     # one process at a time
        losses = load_training(path, model, optimizers, mark)
        save_training(path, model, optimizers, losses, mark)
        if not made(path, made_of):                     # ValueError where it was made of something else
            ...
            note(path, made_of)

Every file is written beside and renamed, so a killed run leaves whole files only; what a later run makes of them is the same,
bit for bit, as if nothing had happened. Every stage leaves a note of what it is made of, so a file that was changed or exchanged
is found before it is used. SIGINT and SIGTERM are heeded between two steps of a training (see `stops`).
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing.connection
import multiprocessing.context
import multiprocessing.resource_tracker
import os
import shutil
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from data import machine as ranks
from data.annotations import shown
from data.files import brief, check_stamp, read_json, read_tensors, sealed, stamp

FOLDERS = ("text", "teacher", "cache", "start", "plain", "brd", "distilled", "sft", "more_sft", "seqkd", "topp_kd", "bellman")  # of a run
FILES = ("annotations.jsonl", "annotations.made_of.json", "results.json", "results.made_of.json", "seconds.json", "options.json",
         "report.html")
SAVE_SECONDS = 20.0     # of training that are lost at most when the power fails
OTHER = "use another --out_dir, or --redo to start over"
FORMAT = 2              # of all files of a run: one more whenever a stage would make something else of the same inputs


# ---------------------------------------------------------------------------------------------------------------
# Files


def rename(beside, path):
    """Puts a file that was written beside in its place, and both on the disk: a power cut leaves the old one or the new one."""
    sync(beside)
    os.replace(beside, path)
    sync(path.parent)


def sync(path):
    """Waits until a file, or what stands in a folder, is on the disk."""
    with contextlib.suppress(PermissionError, AttributeError):          # Windows opens no folders, and no files to read for this
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_json(path, value, of=None):
    """Write a dict, sealed, beside, then rename: a reader never meets half a file. The folder is made if there is none. of: what
    the file is made of; it is noted before, so that the file is there only once its stage is finished."""
    if ranks.rank():
        return  # of several processes, the first one writes
    beside, text = path.with_name(path.name + ".tmp"), json.dumps(sealed(value), indent=1, ensure_ascii=False) + "\n"
    if of:
        write_json(note_of(path), {**of, "holds": {path.name: digest(text)}})
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        rename(beside, path)
    except OSError:  # a full disk
        beside.unlink(missing_ok=True)
        raise


def open_out(config):
    """The run's folder, which belongs to one set of options -> (folder, planned tokens or None).

    ValueError names the option in which an earlier run differs, or the file of a folder that no run has made."""
    out, path = Path(config.out_dir), Path(config.out_dir) / "options.json"
    options = options_of(config)
    if path.exists() and not config.redo:
        before = read_json(path, OTHER)
        told = before.get("options")
        if not isinstance(told, dict):
            raise ValueError(f"{path}: not the options of a run; {OTHER}")
        for name in options:
            if told.get(name) != options[name]:
                raise ValueError(f"{out}: holds a run with {name}={told.get(name)!s:.60}, this one has {options[name]}; {OTHER}")
        return out, before.get("plan")
    foreign = [name for name in FOLDERS + FILES if (out / name).exists()]
    if foreign and not config.redo:  # a folder of other things, where nothing may be thrown away unasked
        raise ValueError(f"{out}: holds {foreign[0]}, but no options.json of an earlier run; use another --out_dir, "
                         f"or --redo to throw {', '.join(foreign)} away")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out_dir={out} cannot be made ({error.strerror}); try a folder that can be written to") from None
    with held(out):                  # not under the hands of another run
        if path.exists() and not config.redo:
            raise ValueError(f"{out}: another run has just begun in this folder; wait for it, or use another --out_dir")
        for name in FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        for name in FILES:
            (out / name).unlink(missing_ok=True)
        write_json(path, {"options": options})
    return out, None


def noted(config):
    """The options as results.json tells them: without the folder, so that a run is the same wherever it lies."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "out_dir"}


def options_of(config):
    """The options that decide what a run makes -> {name: value}; where and how fast it does so is no part of them."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out_dir", "redo", "device", "threads", "compile")}


def save_plan(out, tokens):
    """Notes how many tokens --minutes came to: a run that goes on must not measure again."""
    if not ranks.rank():
        write_json(out / "options.json", {**read_json(out / "options.json", OTHER), "plan": tokens})


def sweep(out):
    """Throws away what a killed run had written halfway."""
    if ranks.rank():
        return
    for file in [file for name in FOLDERS for file in (out / name).glob("*.tmp")] + [out / f"{name}.tmp" for name in FILES]:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def held(out):
    """A lock on the folder, which ends with the process, however it ends. ValueError names the process that holds it."""
    if ranks.rank():
        yield  # the first process holds it for all
        return
    with open(out / ".lock", "a+", encoding="utf-8") as file:
        try:
            try:
                import fcntl
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:                                         # Windows
                import msvcrt
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            file.seek(0)
            raise ValueError(f"{out}: process {file.read().strip() or 'unknown'} is at work in this folder; wait for it, or use another "
                             "--out_dir") from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


# ---------------------------------------------------------------------------------------------------------------
# What a file is made of. Beside model.pt lies model.made_of.json, and so on: the options, hashes of text, tokenizer and of the
# files that went into it, and, once it is finished, hashes of the files that came out. A hash is 16 digits of a SHA-256.


def digest(*parts):
    """Files (Path), bytes and str, one after the other -> 16 hex digits."""
    found = hashlib.sha256()
    for part in parts:
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        with open(part, "rb") if isinstance(part, Path) else io.BytesIO(part) as file:
            while block := file.read(1 << 20):
                found.update(block)
            found.update(b"%d;" % file.tell())      # so that none poses as two others
    return found.hexdigest()[:16]


def made_of(stage, config, tokenizer, text, **files):
    """What a stage is made of, as a flat dict; text: the hash of the corpus; files: those of earlier stages, Path or hash."""
    options = {f"--{name}": value for name, value in options_of(config).items()}
    hashes = {name: digest(file) if isinstance(file, Path) else file for name, file in files.items()}
    return {"stage": stage, "format": FORMAT, "text": text, "tokenizer": tokenizer.hash, **hashes, **options}


def note_of(path):
    return path.with_suffix(".made_of.json")


def read_note(path):
    """The note beside a file, {} where there is none; ValueError for one that is damaged."""
    note = note_of(path)
    value = read_json(note, f"remove it together with {path.name}, which is then made again") if note.exists() else {}
    holds = value.get("holds", {})
    if not isinstance(holds, dict) or any(name != os.path.basename(name) for name in holds):
        raise ValueError(f"{note}: not the note of a file; remove it together with {path.name}, which is then made again")
    return value


def made(path, of):
    """Whether the main file of a stage is finished; a stage that begins is noted. ValueError says what it was made of instead."""
    before, stage = read_note(path), of["stage"]
    if not before:
        if path.exists():
            raise ValueError(f"{path}: stale: nothing tells what the {stage} was made of; --redo makes all anew, another --out_dir keeps it")
        write_json(note_of(path), of)
    for name in sorted({*before, *of} - {"holds"}) if before else ():
        if before.get(name) != of.get(name):
            raise ValueError(f"{path}: stale: the {stage} was made with {name} {before.get(name)!s:.60}, which is {of.get(name)!s:.60} now; --redo "
                             "makes all anew, another --out_dir keeps both")
    return "holds" in before and path.exists()


def note(path, of, *others):
    """A stage is finished: `path` and others, all in one folder, go onto the disk, and then their hashes into its note."""
    if ranks.rank():
        return
    for file in (path, *others):
        sync(file)
    sync(path.parent)
    write_json(note_of(path), {**of, "holds": {file.name: digest(file) for file in (path, *others)}})


def verify(out):
    """ValueError names a file of a finished stage that is not the one that this run has made."""
    for path in sorted(out.rglob("*.made_of.json")):
        holds = read_note(path.with_name(path.name.removesuffix(".made_of.json"))).get("holds", {})
        main = path.parent / next(iter(holds), "")
        for name, was in holds.items() if main.is_file() else ():       # where it was removed, it is made again
            file = path.parent / name
            if not file.is_file() or digest(file) != was:
                what = "not the one that this run has made" if file.is_file() else "missing"
                raise ValueError(f"{file}: {what}; put it back, or remove {main}, and it is made again")


# ---------------------------------------------------------------------------------------------------------------
# A training that goes on


def mark_of(plan, folder=None):
    """What a half-finished training must have in common with the one that goes on with it: a hash of its batches, and of what
    is noted in its folder."""
    found = hashlib.sha256(json.dumps(read_note(folder / "model.pt") if folder else {}).encode())
    for batch in plan:
        found.update(batch.documents.tobytes() + bytes([batch.source]))
    return found.hexdigest()


def save_training(path, model, optimizers, losses, mark, notes=None):
    """Everything that the next step depends on, into path; losses: list of float, one a step done; notes: list of JSON."""
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "losses": losses, "mark": mark,
             "notes": notes, "rng": torch.get_rng_state()}
    save_tensors(path, state)


def save_tensors(path, state):
    """What torch.save writes, beside, with a stamp, and renamed when it is whole. OSError where the disk is full."""
    if ranks.rank():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    try:
        torch.save(state, beside)
        stamp(beside)
    except RuntimeError as error:  # torch.save has its own words for a full disk
        beside.unlink(missing_ok=True)
        raise OSError(f"{path}: not written ({str(error).splitlines()[0]:.80}); is the disk full?") from None
    rename(beside, path)


def load_training(path, model, optimizers, mark, notes=None):
    """Puts model, optimizers and notes where save_training left them -> the losses so far, [] where there is no file.

    ValueError for a file that is damaged, or of a training with other batches."""
    if not path.exists():
        return []
    try:
        check_stamp(path)
        state = read_tensors(path, next(model.parameters()).device)
        if state["mark"] != mark:
            raise ValueError("it has read other batches")
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["rng"].cpu())
        if notes is not None:
            notes[:] = state["notes"]
        return state["losses"]
    except Exception as error:  # a cut-off or foreign file fails in many ways
        raise ValueError(f"{path}: no training that this one can go on with ({brief(error, 160)}); remove the file, and it "
                         "starts over") from None


# ---------------------------------------------------------------------------------------------------------------
# Being stopped


class Stopped(Exception):
    """The user, or the system, wants the run to end."""


class Stops:
    """SIGINT and SIGTERM. While `training` they wait for the end of the step, so that it can be saved; at other times nothing
    is lost by ending at once. A second one changes nothing: what the first one began needs its time."""
    training = False
    wanted = False
    helper = False          # a process that works for another one, which has the say

    def listen(self):
        """To be called once in the main thread of each process."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.heed)

    def heed(self, number, frame):
        if self.helper and not self.training:
            os._exit(130)
        before, self.wanted = self.wanted, True
        if not self.training and not before:
            raise Stopped("stopped")

    def end(self, what):
        """All is saved. A helper ends here: it must not wait for the next job."""
        if self.helper:
            os._exit(130)
        raise Stopped(what)


stops = Stops()


class Process(multiprocessing.context.SpawnProcess):
    """Born with SIGINT blocked, where the system can: a Ctrl-C that finds it at its imports, before it listens, would have it
    print a traceback. `worker` unblocks it."""

    def start(self):
        if not hasattr(signal, "pthread_sigmask"):
            return super().start()
        multiprocessing.resource_tracker.ensure_running()       # where it is not yet, start() would begin it and unblock SIGINT
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Spawn(multiprocessing.context.SpawnContext):
    """The context of such processes."""
    Process = Process


def worker():
    """What a process that works for another one does first: it listens to signals, and ends when the other one does."""
    stops.helper = True
    stops.listen()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def watch():
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def command(main):
    """Runs main() as a program: signals are heeded, exit code 130 after one; 2 and one line for what the user can mend."""
    try:
        stops.listen()
        main()
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        sys.exit(2)


def job(function, *arguments):
    """What a process is given to do: whatever comes of it, a signal is heeded afterwards."""
    try:
        return function(*arguments)
    finally:
        stops.training = False


@contextlib.contextmanager
def processes(n):
    """A ProcessPoolExecutor of n processes. On an error or a signal they save what they are at, and end before this one goes on.

    Stopped after a signal; OSError where one of them was killed."""
    with ProcessPoolExecutor(n, Spawn(), initializer=worker) as pool:
        try:
            yield pool
        except BaseException as error:
            for child in multiprocessing.active_children():
                child.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise (Stopped("stopped") if stops.wanted else OSError(
                    "a process that worked for this one was killed; is there enough memory? The same command goes on from there")) from None
            raise
