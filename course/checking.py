"""The process that runs checks on a student's folder; course/grade.py starts, asks and ends it.

A question is a line of JSON, {"folder", "checks", "name", "limit"}, an answer is one as well: what failed, or
null. After `limit` seconds the process ends and prints where it was.

An audit hook refuses sockets and other processes. This is NO SANDBOX: the code has your rights, reads and
writes your files, and can deceive the grader. Grade strangers' code on a machine that you can throw away.
"""

import faulthandler
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

REFUSED = "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"
PROJECT = "brd", "model", "td_distill", "train", "adapters", "course", "data", "experiments"


def refuse(event, arguments):
    if event.startswith(REFUSED):
        raise PermissionError(f"{event}: checks run without network and without other programs")


def load_checks(path, folder, seed):
    """{name: function} of a file of checks that imports from `folder`; ValueError where a module is not of
    it, because its file is missing there."""
    def modules():
        return [name for name in sys.modules if name.split(".")[0] in PROJECT]
    for name in modules():                                  # of the folder before
        del sys.modules[name]
    sys.path[0] = folder
    checks = runpy.run_path(path, {"SEED": seed})
    for name in modules():
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(folder) not in Path(file).resolve().parents:
            raise ValueError(f"module {name} came from {file}; is its file missing in {folder}?")
    return checks


def one_line(error, folder):
    """The text of an assert, or the error and its place in the student's files."""
    frames, text = traceback.extract_tb(error.__traceback__), " ".join(str(error).split())
    if isinstance(error, AssertionError):
        return f"{text:.300}" or f"this does not hold: {frames[-1].line}"
    inside = [frame for frame in frames if Path(folder) in Path(frame.filename).resolve().parents]
    where = f" ({Path(inside[-1].filename).name}:{inside[-1].lineno})" if inside else ""
    return f"{type(error).__name__}: {text:.300}{where}"


def main():
    """Answers questions until the input ends; what the student's code prints goes to standard error."""
    questions, answers = open(os.dup(0), encoding="utf-8"), open(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    import torch
    torch.set_num_threads(1)                                # the same results on any number of cores
    sys.addaudithook(refuse)
    loaded = checks = None
    for line in questions:
        job, failed = json.loads(line), None
        faulthandler.dump_traceback_later(job["limit"], exit=True)
        try:
            if loaded != (job["folder"], job["checks"]):
                loaded, checks = None, load_checks(job["checks"], job["folder"], job["seed"])
                loaded = job["folder"], job["checks"]
            checks[job["name"]]()
        except BaseException as error:                      # also SystemExit of a file that is imported
            failed = one_line(error, job["folder"])
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(failed), file=answers, flush=True)


if __name__ == "__main__":
    main()
