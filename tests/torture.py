"""Kills tiny runs again and again, and asks that each ends as if nothing had happened.

    python tests/torture.py                    # 100 kills; about five minutes of one core
    python tests/torture.py --kills=10 --seed=3

Of every kind of run one is made first that nobody disturbs: the built-in world with a teacher of its own, a text of one's own, and
`brd.py annotate` against an endpoint on this machine. Then the same command is started and killed (SIGKILL), started again and so
on until it comes to its end, and the next run begins. A kill falls at a random moment, or where most can go wrong, just before a
file is opened, renamed or removed, or a request sent, or at the beginning of a stage. Every file must be that of the undisturbed run, bit
for bit (of seconds.json only its presence, of replies their set). Prints how many kills fell into which stage, and exits with 1
on a difference.

A run is a fork of this process, so that it need not load PyTorch; it is the whole of train.main or of the annotate command. For
more kills in the same time it is small: few tokens, two blind tasks of its own, one look at a student on the way. Trainings are
saved at every step, where a user's are saved every 20 seconds, so that kills fall between any two of them.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import torch

import brd
import train
from course import report
from data import corpus, reads, runs
from test_endpoint import Teacher, perfect, text_of

SMALL = ("--n_layer=1 --n_embd=16 --n_head=2 --teacher_layer=1 --teacher_embd=16 --test_paragraphs=1 --device=cpu --threads=1 "
         "--start_tokens=5000 --student_tokens=8000 --teacher_tokens=8000 --cache_tokens=2400 --step_tokens=512").split()
TEXT = "The cat sat on the mat. The dog ran to the red house and saw a bird.\n\n" * 200
MOST = {"world": 5, "own text": 3, "annotate": 2}       # kills of one run
SENTENCES = 40                                  # that are annotated
EVENTS = {"open", "os.rename", "os.remove", "socket.connect"}       # before which a run is killed (sys.addaudithook)
STAGES = {"open_out": "opening", "own_text": "tokens", "course_tokenizer": "tokens", "train_teacher": "teacher", "write_cache": "cache",
          "annotated_paragraphs": "annotate (scripted)", "student": "student {0}", "read_plainly": "student plain", "keep": "keeping {1.name}",
          "test_student": "test of {0}", "bits_per_byte": "test of plain", "write_json": "writing {0.name}", "page_line": "report"}
NOW = mmap.mmap(-1, 64)                         # what the run is at, for all processes to see
COUNTED = mmap.mmap(-1, 8)                      # its events so far


# --- a run -------------------------------------------------------------------------------------------------------------

def tell(stage):
    before, NOW[:] = NOW[:], stage.encode()[:64].ljust(64)
    return before.decode().strip()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def watch(module, name, stage, entered):
    """Tells when a function is at work; entered(stage) is called when it begins."""
    real = getattr(module, name)

    def watched(*arguments, **named):
        before = tell(stage.format(*arguments, "", ""))
        entered(NOW[:].decode().strip())
        try:
            return real(*arguments, **named)
        finally:
            tell(before)
    setattr(module, name, watched)


def kinds(folder, url):
    """{kind: (function, its arguments)} of the runs."""
    out = str(folder / "out")
    annotate = ["annotate", folder / "sentences.txt", "--teacher", url, "--model", "m", "--out", folder / "out" / "a.jsonl"]
    return {"world": (train.main, [f"--out_dir={out}", "--teacher=train", *SMALL]),
            "own text": (train.main, [f"--out_dir={out}", f"--corpus={folder / 'text.txt'}", "--n_vocab=280", "--block_size=64", *SMALL]),
            "annotate": (brd.main, [*map(str, annotate), "--parallel", "4"])}


def start(function, arguments, folder, event=0, stage=None, later=0.0):
    """A run in a process of its own -> its number. It kills itself before event number `event` (0: never), or so many seconds
    after a stage has begun, or writes the names of all stages into the file "stages" (stage=None)."""
    process = os.fork()
    if process:
        return process

    def entered(name):
        if stage is None and not event:
            with open(folder / "stages", "a", encoding="utf-8") as file:
                file.write(name + "\n")
        elif name == stage:
            threading.Timer(later, die).start() if later else die()

    def count(what, about):
        if what in EVENTS and (what == "socket.connect" or str(about[0]).startswith(str(folder / "out"))):
            events = int.from_bytes(COUNTED, "big") + 1
            COUNTED[:] = events.to_bytes(8, "big")
            if events == event:
                die()
    code, COUNTED[:] = 70, bytes(8)
    try:
        for number, name in enumerate((os.devnull, folder / "log", folder / "log")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        tell("annotate (endpoint)" if function == brd.main else "start-up")
        for name, words in STAGES.items():
            watch(train, name, words, entered)
        sys.addaudithook(count)
        code = function(arguments) or 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(process, seconds):
    """Waits for the end of a run, kills it after so many seconds (None: never) -> its exit code, -9 where it was killed."""
    end = time.monotonic() + (seconds or 1e9)
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            end += 1e9
        time.sleep(0.002)


def files(out):
    """{name: bytes} of all that a run leaves. Of the replies of an endpoint the order is that in which they came."""
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name in found:
        if name.endswith(("seconds.json", ".lock")):
            found[name] = b""
        if name.endswith(".replies.jsonl"):
            found[name] = b"\n".join(sorted(found[name].split(b"\n")))
    return found


# --- all of them -------------------------------------------------------------------------------------------------------

def whole_run(function, arguments, folder):
    """The run that nobody disturbs -> (its files, its seconds, the number of its events, its stages in their order)."""
    (folder / "stages").write_text("", encoding="utf-8")
    out, begin = folder / "out", time.monotonic()
    code = wait(start(function, arguments, folder), None)
    seconds, found = time.monotonic() - begin, files(out)
    if code:
        raise SystemExit(f"the undisturbed run failed: {(folder / 'log').read_text(encoding='utf-8')[-500:]}")
    shutil.rmtree(out)
    stages = list(dict.fromkeys((folder / "stages").read_text(encoding="utf-8").splitlines()))
    return found, seconds, int.from_bytes(COUNTED, "big"), stages


def one_kill(rng, seconds, events, stages):
    """How the next run is to be killed -> (arguments of `start`, seconds until it is killed from outside or None)."""
    how = rng.choice(("moment", "event", "stage", "stage") if stages else ("moment", "event"))
    if how == "stage":                              # of those that are still to come
        return {"stage": stages.pop(0), "later": rng.choice((0, rng.uniform(0, 0.02) * seconds))}, None
    return ({"event": rng.randint(1, events // 3)}, None) if how == "event" else ({"stage": ""}, rng.uniform(0.02, 0.5) * seconds)


def torture(kills, seed, folder, url):
    """Kills runs -> (Counter of stages, list of differences)."""
    rng, fell, differences, number, out = random.Random(seed), Counter(), [], 0, folder / "out"
    chosen = kinds(folder, url)
    whole = {kind: whole_run(*run, folder) for kind, run in chosen.items()}
    print("undisturbed:", ", ".join(f"{kind} {run[1]:.1f} s, {run[2]} events" for kind, run in whole.items()), flush=True)
    while fell.total() < kills:
        kind = list(chosen)[number % len(chosen)]
        expected, seconds, events, stages = whole[kind]
        aims = [stages[i] for i in sorted(rng.sample(range(len(stages)), min(MOST[kind], len(stages))))]
        code, number, before = -9, number + 1, fell.total()
        while code == -9:
            more = fell.total() < min(kills, before + MOST[kind])
            how, later = one_kill(rng, seconds, events, aims) if more else ({"stage": ""}, None)
            code = wait(start(*chosen[kind], folder, **how), later)
            fell[f"{kind:10}{NOW[:].decode().strip()}"] += code == -9
        if code:
            differences.append(f"{kind}: exit code {code}: {(folder / 'log').read_text(encoding='utf-8').splitlines()[-1:]}")
        found = files(out)
        differences += [f"{kind}: {name}" for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
        shutil.rmtree(out)
        print(f"{kind}: killed {fell.total() - before} times; {len(differences)} differences so far", flush=True)
    return fell, differences


def no_pictures(*_):
    raise ImportError("they would take longer than all the rest")


def small_world(folder, patch=setattr):
    """Makes what a run needs beside its options, and the constants small."""
    (folder / "data" / "tasks").mkdir(parents=True)
    for name in ("moods", "places"):
        examples = [{"input": f"Line {i} of {name} is", "target_scores": {"good": i % 2, "bad": 1 - i % 2}} for i in range(12)]
        (folder / "data" / "tasks" / f"{name}.json").write_text(json.dumps({"name": name, "examples": examples}), encoding="utf-8")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "sentences.txt").write_text(text_of(SENTENCES)[0], encoding="utf-8")
    for module, name, value in ((train, "DATA", folder / "data"), (train, "GLANCES", 1), (reads, "CHUNK", 16), (brd, "MAX_READING", 8),
                                (brd, "MAX_ANSWER", 4), (report, "PRINTED", 1), (report.plots, "svg", no_pictures)):
        patch(module, name, value)
    glance, plain = train.glance, train.world.plain
    patch(train, "glance", lambda model, tokenizer: glance(model, tokenizer, 1))
    patch(train.world, "plain", lambda n, seed: plain(20 if seed == "test plain" else n, seed))
    tokenizer = corpus.course_tokenizer("world", 1024)      # once for all, and what PyTorch loads with its first optimizer
    train.optimizers(train.new_model(1, 16, tokenizer, train.Config(device="cpu")), train.Config())


def endpoint(folder):
    """An endpoint in a process of its own -> (its number, its address)."""
    parent, process = os.getpid(), os.fork()
    if not process:
        try:
            with Teacher(perfect, delay=0.01) as server:
                (folder / "url.tmp").write_text(server.url, encoding="utf-8")
                os.replace(folder / "url.tmp", folder / "url")
                while os.getppid() == parent:
                    time.sleep(0.2)
        finally:
            os._exit(0)
    while not (folder / "url").exists():
        time.sleep(0.01)
    return process, (folder / "url").read_text(encoding="utf-8")


def main():
    """Prints the kills by stage; exit code 1 where a file differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)                    # a process that has started threads cannot be forked
    runs.SAVE_SECONDS = 0.0
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None          # a disk that is in use elsewhere would only be slow
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        small_world(Path(folder))
        server, url = endpoint(Path(folder))
        try:
            fell, differences = torture(options.kills, options.seed, Path(folder), url)
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
    for name, n in sorted(fell.items()):
        print(f"{n:5}  {name}" * bool(n), end="\n" * bool(n))
    print(f"{fell.total()} kills; {len(differences)} differences {differences[:10]}")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
