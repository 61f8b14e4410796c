"""Kills tiny runs at random moments, and compares what they leave with what an undisturbed run leaves.

    python -m tests.torture           # 20 kills: about a minute of one core
    python -m tests.torture 100

A run is the whole of train.main, on the built-in world, on a text of one's own, or on that in two processes,
in forks of this process, which has loaded PyTorch. It is killed (SIGKILL) and started again until it comes to
its end. Weights, test results and results.json must be the same to the last bit. A training is saved at every
step here, where a user's is saved every 20 seconds. Exit code 1 where something differs.
"""
import itertools
import json
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import brd
import train
from data import documents
from data.cache_tools import CacheWriter
from data.cli import run_command
from data.files import read_json, write_text
from model import GPT, GPTConfig

TEXT = "The cat sat on the mat. The dog ran to the red house and saw a bird.\n\n" * 100
SMALL = ["--n_layer=1", "--n_embd=16", "--n_head=2", "--device=cpu", "--threads=1", "--student_tokens=4000",
         "--step_tokens=512"]
TINY = [*SMALL, "--test_paragraphs=1", "--start_tokens=3000"]
OWN = [*SMALL, "--n_vocab=280", "--block_size=64"]           # and a --corpus


def small_teacher(folder, tokenizer, n=24):
    """A cache of questions and answers, with sets that are made up; beside it a random model, the teacher."""
    rng, V = random.Random(0), tokenizer.n_vocab
    writer = CacheWriter(folder, n_vocab=V, tokenizer_hash=tokenizer.hash, p=0.95, k_cap=8, temperature=1.0,
                         teacher={"params": 7}, made_by="", roles=documents.ROLES)
    read = [documents.render(p, "qra", rng) for p in documents.world.annotated(n, "small teacher")]
    for ids, roles in documents.encode_documents(read, tokenizer):
        sets = [None if documents.ROLES[role] in ("text", "end") else
                ([(i + (rng.random() < 0.1)) % V, (i + 2) % V, (i + 3) % V], np.log([0.6, 0.3, 0.05]))
                for i, role in zip(ids, roles)]
        writer.add(ids, roles, sets)
    writer.close()
    torch.manual_seed(0)
    GPT(GPTConfig(V, 384, 1, 2, 16)).save(folder / "model")


def small_world(folder, patch=setattr):
    """Writes tasks/moods.json, my.txt and a teacher into a folder, and makes a student's tests short."""
    examples = [{"input": f"Line {i}", "target_scores": {"good": i % 2, "bad": 1 - i % 2}} for i in range(8)]
    write_text(folder / "tasks" / "moods.json", json.dumps({"name": "moods", "examples": examples}))
    write_text(folder / "my.txt", TEXT)
    plain, held_out, config = documents.world.plain, documents.held_out_records, train.Config(device="cpu")
    patch(train, "TASKS", [folder / "tasks" / "moods.json"])
    patch(train, "TEACHER", folder / "teacher")
    patch(train, "EVAL_STEPS", 1)
    patch(brd, "MAX_READING", 8)
    patch(brd, "MAX_ANSWER", 4)
    patch(documents, "held_out_records", lambda n, seed: held_out(1, seed))
    patch(documents.world, "plain", lambda n, seed, *levels: plain(
        20 if seed == "test plain" else n, seed, *levels))
    tokenizer = documents.course_tokenizer("world", 1024)           # once, before any fork
    small_teacher(folder / "teacher", tokenizer)
    train.make_optimizers(train.new_model(1, 16, tokenizer, config), config)


def start(arguments, **environment):
    """A run in a process of its own, which has one thread."""
    def run():
        os.environ.update(environment)
        run_command(lambda: train.main(arguments))
    torch.set_num_threads(1)
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def free_port():
    """A port on which nobody listens: str."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start_all(arguments, size):
    """The processes of a run, as torchrun starts them where there are several: list."""
    if size == 1:
        return [start(arguments)]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [start(arguments, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), **place)
            for rank in range(size)]


def outcome(out):
    """{name: content} of what must not depend on interruptions."""
    names, results = ("model.pt", "test.json", "tokens.bin"), read_json(out / "results.json", "")
    return {"": results, **{path.relative_to(out).as_posix(): path.read_bytes()
                            for path in out.rglob("*") if path.name in names}}


def main(arguments):
    """Kills runs until enough were killed -> exit code."""
    left, rng, whole, train.SAVE_SECONDS = int((arguments or ["20"])[0]), random.Random(0), {}, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out, own = folder / "out", [*OWN, f"--corpus={folder / 'my.txt'}"]
        kinds = itertools.cycle([("world", TINY, 1), ("text", own, 1), ("text, two processes", own, 2)])
        small_world(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)                # what the runs print
        while left > 0:
            (kind, options, size), kills, begin = next(kinds), 0, time.monotonic()
            options = [*options, f"--out_dir={out}"]
            processes = start_all(options, size)
            while kind in whole and kills < min(4, left):           # the first run of a kind is undisturbed
                processes[0].join(rng.uniform(0.02, 0.7) * whole[kind][1])
                for process in processes:
                    process.kill()
                    process.join()
                if processes[0].exitcode != -9:
                    break
                kills, processes = kills + 1, start_all(options, size)
            for process in processes:
                process.join()
            codes = [process.exitcode for process in processes]
            whole.setdefault(kind, (outcome(out), time.monotonic() - begin))
            same, left = not any(codes) and outcome(out) == whole[kind][0], left - kills
            print(f"{kind}: {kills} kills, exit codes {codes}, same: {same}", file=sys.stderr)
            if not same:
                return 1
            shutil.rmtree(out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
