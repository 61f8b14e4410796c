"""The process that runs checks on a student's folder; course/grade.py starts it and reads its answers.

It reads jobs, lines of JSON, until its input ends: before any code of a student is loaded. Then it writes one
line a check: the secret and the name of the check, or a JSON string that says what failed.

A check fails where the student's code opens a file elsewhere, reaches for another process or for frames,
replaces a function that a check relies on, or returns objects that decide themselves what they are equal to.
This is NO SANDBOX: C code opens files unseen (torch.from_file), a thread may change what was returned, who
knows Python well gets further. Read a hand-in that has a word; grade strangers' code on a spare machine.
"""

import builtins
import contextlib
import faulthandler
import functools
import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

__builtins__ = vars(builtins).copy()    # the functions below use these, whatever is replaced later
MEMORY = 4 << 30        # bytes that a student's code may take, or write into one file
REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = "brd", "model", "td_distill", "train", "adapters", "course", "data", "experiments"
REFUSED = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_s", "os.spawn", "os.kill",
           "os.startfile", "signal.", "ctypes.", "gc.get_", "sys._current_", "sys.add", "sys.set", "sys.mon")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.link",
           "os.symlink", "sqlite3.connect")
FRAMES = {"tb_frame", "gi_frame", "cr_frame", "ag_frame", "__code__"}
WATCHED = ("builtins collections copy itertools json math numpy numpy.testing os os.path random sys time "
           "torch torch.autograd torch.nn.functional torch.testing torch.testing._comparison types").split()
DECIDES = {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__", "__float__", "__abs__",
           "__sub__", "__rsub__", "__torch_function__", "__array__", "__array_ufunc__", "__getattribute__"}
CONTAINS = {"__iter__", "__len__", "__getitem__", "__contains__", "count", "index", "keys", "values", "items"}


def watch_events():
    """Adds an audit hook -> (list of what was refused, list of folders that may be read, the first of which
    may be written, and from the fourth on libraries; an empty one allows everything)."""
    seen, folders, real, decode, writing = [], [], os.path.realpath, os.fsdecode, os.O_WRONLY | os.O_RDWR
    frame_of, without = sys._getframe, "checks run without network, other programs, other folders and frames"

    def hook(event, arguments):
        if not folders:
            return
        found = event if event.startswith(REFUSED) else ""
        if event.startswith(("open", *CHANGES)) and not isinstance(arguments[0], int):
            path, alters = real(decode(arguments[0])) + os.sep, event != "open" or arguments[2] & writing
            found = "" if path.startswith((*folders[:1 if alters else None],)) else f"{event} {path[:-1]}"
        if event == "sys._getframe" or event.startswith("object.__") and arguments[1] in FRAMES:
            allowed, folders[:] = folders[:], []            # frame_of raises this event as well
            frame = frame_of(1)
            while frame.f_code.co_filename.endswith("inspect.py") or "walk_" in frame.f_code.co_name:
                frame = frame.f_back                        # for whom they ask
            known = (frame.f_code.co_filename + os.sep).startswith(("<frozen ", *allowed[3:]))
            found, folders[:] = "" if known else " ".join([event, *arguments[1:2]]), allowed
        if found or event == "deceived":
            seen.append(f"{found}: {without}" if found else arguments[0])
            raise PermissionError(seen[-1])
    sys.addaudithook(hook)
    for module in filter(None, map(sys.modules.get, ("subprocess", "_posixsubprocess", "signal", "_signal"))):
        for name in {"fork_exec", "_fork_exec", "signal"} & vars(module).keys():        # these raise no event
            setattr(module, name, functools.partial(sys.audit, f"signal.{name}"))
    return seen, folders


def functions_now():
    """What a check relies on in modules, in their classes and here: [(owner, its dict, name, value)]."""
    owners = [("the grader", globals()), ("sys.modules", sys.modules)]
    for module in WATCHED:
        space = vars(sys.modules[module])
        classes = [(f"{module}.{name}", vars(cls)) for name, cls in space.items() if isinstance(cls, type)]
        owners += [(module, space), *classes]
    return [(owner, space, name, value) for owner, space in owners for name, value in space.items()
            if callable(value) or name in WATCHED]


def replaced(before):
    """The name of a function that is another one now, or None."""
    return next((f"{owner}.{name}" for owner, now, name, value in before if now.get(name) is not value), None)


def decides(value):
    """Whether the class of an object, which was made at run time, says itself what it equals or holds."""
    made, ours = 1 << 9, (*PROJECT, "unittest", "weakref")      # a flag of CPython: not written in C
    own = [cls for cls in type(value).__mro__ if cls.__module__.split(".")[0] in ours or
           vars(sys.modules.get(cls.__module__, os)).get(cls.__name__) is not cls and cls.__flags__ & made]
    names = DECIDES | CONTAINS if isinstance(value, (list, tuple, dict, str)) else DECIDES
    return any(name in names and callable(member) for cls in own for name, member in vars(cls).items())


def deceiver(value):
    """The class of the first object in a result that decides itself what it is equal to, or None."""
    level = [value]
    for _ in range(5):                                          # lists in lists, and what objects hold
        level, above = [], level
        for one in above:
            kind = type(one)
            if kind in (int, float, str, bytes, bool):
                continue
            if kind not in (list, tuple, dict) and decides(one):
                return kind.__name__
            level += one if isinstance(one, (list, tuple, set, dict)) else ()
            level += one.values() if isinstance(one, dict) else ()
            level += getattr(one, "__dict__", {}).values()
    return None


def checked(function, name):
    """The function, which tells the hook where it returns a deceiver, or leaves one in a list."""
    @functools.wraps(function)
    def call(*arguments, **options):
        found = function(*arguments, **options)
        kind = deceiver([found, *(one for one in arguments if type(one) is list)])
        if kind:
            sys.audit("deceived", f"{name} returns a {kind}, which decides itself what it is equal to")
        return found
    return call


def load_checks(job):
    """{name: function} of a file of checks; ValueError where a module is not of the folder, but missing."""
    def drop(but=()):
        for name in [name for name in sys.modules if name.split(".")[0] in PROJECT and name not in but]:
            del sys.modules[name]
    drop()                                                  # of the folder before
    sys.path[0], finders, written = job["folder"], sys.meta_path[:], ["data"]
    for file, functions in job["write"].items():
        written.append(file.removesuffix(".py").replace("/", "."))
        module = importlib.import_module(written[-1])
        for owner, _, name in (function.rpartition(".") for function in functions):
            owner = getattr(module, owner) if owner else module
            setattr(owner, name, checked(getattr(owner, name), name))
    drop(written)                   # the rest, which the student may have changed, is imported anew
    sys.meta_path[:] = finders
    checks = runpy.run_path(job["checks"], {"SEED": job["seed"]})
    for name, module in [*sys.modules.items()]:
        if name.split(".")[0] in PROJECT:
            file = getattr(module, "__file__", None) or job["folder"] + "/none"
            if type(module) is not type(sys) or Path(job["folder"]) not in Path(file).resolve().parents:
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


def run_job(job, secret, write, before, seen, folders):
    """Runs the checks of a job, with a line for each; "! " begins what a lecturer should know of."""
    changed, load, dumps, describe = replaced, load_checks, json.dumps, one_line
    allowed = [os.getcwd(), job["folder"], job["checks"], __file__, os.devnull, sys.prefix, sys.base_prefix]
    allowed = [os.path.realpath(path) + os.sep for path in allowed + sys.path[1:]
               if path and Path(path).resolve() != REPOSITORY]
    checks = None                                   # all that decides was bound before the student's code
    for name in job["names"]:
        failed, start = None, len(seen)
        faulthandler.dump_traceback_later(job["limit"], exit=True)
        folders[:] = allowed
        try:
            if not checks:
                checks = load(job)
                space = checks[name].__globals__
                before = before + [("the checks", space, *item) for item in space.items()]
            checks[name]()
        except BaseException as error:                      # also SystemExit of a file that is imported
            failed = "an error without a text"
            with contextlib.suppress(BaseException):
                failed = describe(error, job["folder"])     # its text comes from the student's code
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
    with contextlib.suppress(ImportError):                  # Windows has no such limits
        resource = importlib.import_module("resource")
        for kind in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE):
            resource.setrlimit(kind, (MEMORY, MEMORY))
    sys.modules["__main__"] = type(sys)("__main__")         # this file is not found by its name
    events, before = watch_events(), functions_now()
    write(f"{secret} ready\n".encode())
    for job in jobs:
        run_job(job, secret, write, before, *events)


if __name__ == "__main__":
    main()
