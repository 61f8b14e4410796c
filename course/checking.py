"""The process that runs checks on a student's folder; course/grade.py starts it and reads its answers.

It reads jobs, lines of JSON, until its input ends: before any code of a student is loaded. Then it writes one
line a check: the secret and the name of the check, or a JSON string that says what failed.

A check fails where the student's code opens a file elsewhere, reaches for another process, replaces a
function of Python or torch, or returns objects that decide themselves what they are equal to. This is NO
SANDBOX: the code has your rights, and who knows Python well can still deceive the grader. Grade strangers'
code on a machine that you can throw away, and read what earns points.
"""

import faulthandler
import functools
import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

MEMORY = 4 << 30        # bytes that a student's code may take
REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = "brd", "model", "td_distill", "train", "adapters", "course", "data", "experiments"
REFUSED = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
           "os.kill", "os.startfile", "signal.pthread_kill", "ctypes.", "gc.get_", "sys._current_frames",
           "sys.addaudithook")
CHANGES = "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.link", "os.symlink"
WATCHED = ("builtins", "collections", "copy", "itertools", "json", "math", "numpy", "numpy.testing", "os",
           "os.path", "random", "sys", "time", "torch", "torch.autograd", "torch.nn.functional",
           "torch.testing", "types")
DECIDES = {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__", "__float__", "__abs__",
           "__sub__", "__rsub__", "__torch_function__", "__array__", "__array_ufunc__", "__getattribute__"}


def watch_events():
    """Adds an audit hook -> (list of what was refused, list of folders that may be read, the first of which
    may be written; an empty one allows everything)."""
    seen, folders, real, decode, writing = [], [], os.path.realpath, os.fsdecode, os.O_WRONLY | os.O_RDWR

    def hook(event, arguments):
        if not folders:
            return
        found = event if event.startswith(REFUSED) else ""
        if event.startswith(("open", *CHANGES)) and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = real(decode(arguments[0])) + os.sep
            changes = event != "open" or arguments[2] & writing
            if not path.startswith(folders[0] if changes else tuple(folders)):
                found = f"{event} {path[:-1]}"
        if found:
            seen.append(f"{found}: checks run without network, other programs and other folders")
            raise PermissionError(seen[-1])
    sys.addaudithook(hook)
    return seen, folders


def functions_now():
    """{(owner, name): function} of what a check relies on."""
    torch = sys.modules["torch"]
    owners = [sys.modules[name] for name in WATCHED] + [torch.Tensor, torch.nn.Module]
    return {(owner.__name__, name): value for owner in owners for name, value in vars(owner).items()
            if callable(value)}


def replaced(before):
    """The name of a function that is another one now, or None."""
    now = functions_now()
    return next((".".join(key) for key, value in before.items() if now.get(key) is not value), None)


def deceiver(value, depth=4):
    """The class of the first object in a result that decides itself what it is equal to, or None."""
    if type(value) in (int, float, str, bytes, bool):
        return None
    own = [cls for cls in type(value).__mro__ if cls.__module__.split(".")[0] in (*PROJECT, "unittest")]
    if any(DECIDES & vars(cls).keys() for cls in own):
        return type(value).__name__
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if own and hasattr(value, "__dict__"):
        parts = [*parts, *vars(value).values()]
    return next(filter(None, (deceiver(part, depth - 1) for part in parts)), None) if depth else None


def checked(function, seen):
    """The function, which notes in `seen` where it returns a deceiver, or leaves one in a list."""
    @functools.wraps(function)
    def call(*arguments, **options):
        found = function(*arguments, **options)
        name = deceiver([found, *(one for one in arguments if type(one) is list)])
        if name:
            seen.append(f"{function.__name__} returns a {name}, which decides itself what it is equal to")
        return found
    return call


def load_checks(job, seen):
    """{name: function} of a file of checks that imports from the folder; ValueError where a module is not of
    it, because its file is missing there."""
    def modules():
        return [name for name in sys.modules if name.split(".")[0] in PROJECT]
    for name in modules():                                  # of the folder before
        del sys.modules[name]
    sys.path[0] = job["folder"]
    for file, functions in job["write"].items():
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        for owner, _, name in (function.rpartition(".") for function in functions):
            owner = getattr(module, owner) if owner else module
            setattr(owner, name, checked(getattr(owner, name), seen))
    checks = runpy.run_path(job["checks"], {"SEED": job["seed"]})
    for name in modules():
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(job["folder"]) not in Path(file).resolve().parents:
            raise ValueError(f"module {name} came from {file}; is its file missing in {job['folder']}?")
    return checks


def one_line(error, folder):
    """The text of an assert, or the error and its place in the student's files."""
    frames, text = traceback.extract_tb(error.__traceback__), " ".join(str(error).split())
    if isinstance(error, AssertionError):
        return f"{text:.300}" or f"this does not hold: {frames[-1].line}"
    inside = [frame for frame in frames if Path(folder) in Path(frame.filename).resolve().parents]
    where = f" ({Path(inside[-1].filename).name}:{inside[-1].lineno})" if inside else ""
    return f"{type(error).__name__}: {text:.300}{where}"


def run_job(job, secret, write, seen, folders):
    """Runs the checks of a job and writes a line for each. All that decides was bound before; "! " begins
    what a lecturer should know of."""
    changed, before, dumps, describe = replaced, functions_now(), json.dumps, one_line
    libraries = [path for path in sys.path[1:] if path and Path(path).resolve() != REPOSITORY]
    allowed = [os.getcwd(), job["folder"], job["checks"], os.devnull, sys.prefix, sys.base_prefix, *libraries]
    allowed, load, checks = [os.path.realpath(path) + os.sep for path in allowed], load_checks, None
    for name in job["names"]:
        failed, start = "the check did not end", len(seen)
        faulthandler.dump_traceback_later(job["limit"], exit=True)
        folders[:] = allowed
        try:
            checks = checks or load(job, seen)
            checks[name]()
            failed = None
        except BaseException as error:                      # also SystemExit of a file that is imported
            folders.clear()
            failed = describe(error, job["folder"])
        folders.clear()
        faulthandler.cancel_dump_traceback_later()
        if len(seen) > start:
            failed = f"! {seen[start]}"
        if other := changed(before):
            failed = f"! {other} was replaced; a check relies on it"
        write(dumps(failed).encode() + b"\n" if failed else f"{secret} {name}\n".encode())
        if failed and job["stop"]:
            return


def main():
    """Answers all jobs; what the student's code prints goes to standard error."""
    secret, *jobs = map(json.loads, sys.stdin)
    write = functools.partial(os.write, os.dup(1))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    import torch
    importlib.import_module("numpy.testing")
    torch.set_num_threads(1)                                # the same results on any number of cores
    try:
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    except ImportError:                                     # Windows has no such limit
        pass
    events = watch_events()
    write(f"{secret} ready\n".encode())
    for job in jobs:
        run_job(job, secret, write, *events)


if __name__ == "__main__":
    main()
