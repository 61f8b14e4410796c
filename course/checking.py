"""Runs the checks of an assignment on a folder, in a process that course/grade.py starts, watches and ends.

Jobs come as JSON on standard input, a line of JSON goes out for every check that begins and that is done. What the student's
code prints goes to standard error.

There is no network in here: once torch is loaded, an audit hook (sys.addaudithook) refuses sockets and new processes, and it
cannot be taken away again. That stops answers from being fetched and files from being sent by ordinary code. It is NO SANDBOX:
the code runs as you, reads and writes your files, and whoever sets out to deceive the grader can (with ctypes, or by writing
the results himself). Grade strangers' code on a machine that can be thrown away.
"""

import importlib.util
import json
import os
import sys
import time
import traceback
from pathlib import Path

REFUSED = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
PROJECT = ("brd", "model", "td_distill", "train", "data", "course")


def no_network(event, arguments):
    """The audit hook."""
    if event.startswith(REFUSED):
        raise PermissionError(f"{event}: checks run without network and without other programs")


def project_modules():
    """{name: path} of the modules of the repository that are loaded."""
    loaded = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    return {name: Path(path) for name, path in loaded.items() if path and name.split(".")[0] in PROJECT}


def load_checks(path, folder):
    """The checks file at `path` as a module, with all it imports from `folder`. ValueError for what comes from elsewhere."""
    for name in project_modules():              # of an earlier job
        del sys.modules[name]
    sys.path[0] = folder
    importlib.invalidate_caches()
    spec = importlib.util.spec_from_file_location("checks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, file in project_modules().items():
        if Path(folder).resolve() not in file.resolve().parents:
            raise ValueError(f"module {name} came from {file}; is its file missing in {folder}?")
    return module


def told(error, folder):
    """One line for what went wrong: the text of an assert, or the error and where in the student's files it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    text = " ".join(str(error).split())
    if isinstance(error, AssertionError) and not text:
        return f"not so: {frames[-1].line}"
    inside = [frame for frame in frames if Path(folder).resolve() in Path(frame.filename).resolve().parents]
    where = f" ({Path(inside[-1].filename).name}:{inside[-1].lineno})" if inside else ""
    name = "" if isinstance(error, AssertionError) else type(error).__name__ + ": "
    return f"{name}{text:.300}{where}"


def run_job(number, job, say):
    """Runs the checks named in a job {"folder", "checks", "names", "stop"}; stop: no further one after the first that fails."""
    say(job=number, begins="")
    module = problem = None
    try:
        module = load_checks(job["checks"], job["folder"])
    except BaseException as error:              # also SystemExit: a script that runs when it is imported
        problem = told(error, job["folder"])
    for name in job["names"]:
        begin, failed = time.perf_counter(), problem
        say(job=number, begins=name)
        try:
            if module is not None:
                getattr(module, name)()
        except BaseException as error:
            failed = told(error, job["folder"])
        say(job=number, check=name, failed=failed, seconds=round(time.perf_counter() - begin, 2))
        if failed is not None and job["stop"]:
            break
    say(job=number, done=True)


def main():
    """The jobs on standard input, [[number, job], ...] as JSON, one after the other; what is found, line by line, to standard output."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)                               # what is printed from here on goes to standard error
    import torch
    torch.set_num_threads(1)                    # results and times do not hang on the number of cores
    sys.addaudithook(no_network)

    def say(**message):
        print(json.dumps(message), file=channel, flush=True)
    for number, job in json.load(sys.stdin):
        run_job(number, job, say)


if __name__ == "__main__":
    main()
