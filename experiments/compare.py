"""Every objective of distillation on one task: one start, one teacher, equal tokens, its own learning rate.

    python td_distill.py compare                              the grammar, 5 seeds
    python td_distill.py compare --task=reading --seeds=3     the built-in world: raise questions, answer them
    python td_distill.py compare --rows="KD p=.8,BD"          only these rows of experiments/objectives.py
    python td_distill.py compare --rows="KD p=.8,KD p=1,GKD" --seconds=10,20,40 --seeds=3
                                                              cached answers against the student's own
    python td_distill.py compare --show=experiments/results/grammar.jsonl     the runs that the README reports

All rows of a seed set out from the same start and read the same number of tokens, those of one cache in the
same order. Each row tries the learning rates of --rates on a seed and on prompts of their own; the best is
used for every seed of the table. Differences are paired: a row minus its control, within a seed. Every finished
run is a line of results.jsonl, so a comparison that was stopped goes on, and more seeds or rows add to it.
"""
# Shapes: B documents, T positions, V vocabulary.

import copy
import functools
import json
import math
import sys
import time
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import train
from data.cli import parse_options, printable, run_command
from data.figures import mean_se
from data.files import digest, folder_lock, open_run, with_checksum, write_text
from data.machine import worker_pool
from experiments.compare_tasks import SIZES, STUDENTS, Size, open_task
from experiments.objectives import OBJECTIVES, Row, learn, sft, terms
from model import GPT

TUNING, STARTS = 0, 100     # the seed that learning rates are chosen on; the first seed of the starts
FILES = ("stages", "teacher", "answers.json", "caches", "starts", "results.jsonl")      # --redo removes them


@dataclass
class Options:
    task: str = "grammar"               # "grammar", or "reading": questions about the built-in world
    rows: str = ""                      # objectives, separated by commas; "": all that read a cache
    seeds: int = 5                      # students of each row in the table
    tokens: int = 0                     # that every student reads after the start; 0: as suits the task
    embd: int = 0                       # channels of the students; 0: as suits the task
    rates: str = "0.0025,0.005,0.01"    # learning rates that every row tries, separated by commas
    seconds: str = ""                   # CPU seconds in place of tokens, separated by commas: prints curves
    out_dir: str = ""                   # folder of all that is made; "": out/compare-TASK
    redo: bool = False                  # throw away what an earlier comparison left in out_dir
    workers: int = 0                    # processes side by side; 0: as many as there are cores
    show: str = ""                      # print the tables of a results.jsonl, and train nothing


class Job(NamedTuple):
    """One student; the first six fields identify it in results.jsonl."""
    row: str
    rate: float
    seed: int
    embd: int                       # channels
    tokens: int                     # what it reads after the start; 0: as many as the seconds allow
    seconds: float                  # of CPU, for tokens = 0
    task: str
    out: Path
    size: Size


KEY = Job._fields[:6]


# ------------------------------------------------------------------------------------------------------------
# One run


def start(job, task):
    """The student that all rows of a seed begin with: SFT on the references, at a constant learning rate."""
    folder, seed = job.out / "starts" / f"{job.embd}-{job.seed}", STARTS + job.seed
    if not (folder / "config.json").exists():
        torch.manual_seed(seed)
        model, row = GPT(replace(task.student, n_embd=job.embd)), Row("references", 1, sft)
        config = train.Config(seed=seed, device="cpu", cooldown=0.0)
        learn(f"start {job.seed}", model, task.references, job.size.start_tokens, config, row, task)
        model.save(folder)
    return GPT.load(folder)


def prepare_start(job):
    torch.set_num_threads(1)
    start(job, open_task(job.task, job.out, job.size))


def run(job):
    """One student from its start to its measures, in a process of its own -> dict."""
    torch.set_num_threads(1)
    task, row, tokens = open_task(job.task, job.out, job.size), OBJECTIVES[job.row], job.tokens
    draw = "free" if row.source == "own" else row.source
    source = task.references if row.source == "references" else task.caches[draw, row.p]
    model, config = start(job, task), train.Config(learning_rate=job.rate, seed=job.seed, device="cpu")
    torch.manual_seed(job.seed)
    figures = {name: getattr(job, name) for name in KEY}
    try:
        if job.seconds:
            constant = replace(config, cooldown=0.0)
            for _ in range(2):       # the first pass prepares kernels and memory for the shapes of a batch
                begin, twin = time.process_time(), copy.deepcopy(model)
                seen = learn("speed", twin, source, 60 * config.step_tokens, constant, row, task).tokens
            tokens = int(job.seconds * seen / (time.process_time() - begin))
        begin = time.process_time()
        losses, _, seen = learn(job.row, model, source, tokens, config, row, task)
        figures["cpu seconds"] = round(time.process_time() - begin, 1)
        figures |= {"seen": seen, "loss": sum(losses[-50:]) / 50}
        half = len(task.prompts) // 2
        numbers = range(half) if job.seed == TUNING else range(half, 2 * half)
        figures |= measure(model, task, numbers, job.seed)
        if row.source != "own":
            figures["memory"] = kept_for_backward(model, row, source, task)
    except ValueError as error:      # a loss or a gradient that is not finite is an outcome like any other
        figures["failed"] = str(error)
    return figures


def kept_for_backward(model, row, source, task):
    """MB of tensors that a batch of 16 documents keeps for its backward pass; shared storage counts once."""
    storages = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage          # held, so that no address is used twice
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = row.loss(terms(model, source, range(16), task))
    del kept
    return sum(storage.nbytes() for storage in storages.values()) / 1e6


# ------------------------------------------------------------------------------------------------------------
# What is measured


DECODINGS = {"T=1": dict(temperature=1.0), "T=.7": dict(temperature=0.7),
             "nucleus": dict(temperature=1.0, top_p=0.8), "greedy": dict(temperature=0)}
DRAWS, LENGTHS = 4, (8, 16, 32)     # answers to a prompt at T = 1; lengths at which errors are accumulated


@torch.no_grad()
def position_figures(model, teacher, documents):
    """For each (prompt, answer): (student's log-probs, teacher's log-probs, KL(teacher || student)), each
    (answer,)."""
    figures = []
    for at in range(0, len(documents), 64):
        some = documents[at:at + 64]
        width = max(len(p) + len(a) for p, a in some)
        tokens = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in some])    # (B, T + 1)
        log_s, log_t = (m(tokens[:, :-1]).log_softmax(-1) for m in (model, teacher))         # (B, T, V)
        kl, taken = (log_t.exp() * (log_t - log_s)).sum(-1), tokens[:, 1:, None]             # (B, T)
        columns = log_s.gather(-1, taken)[..., 0], log_t.gather(-1, taken)[..., 0], kl
        for b, (p, a) in enumerate(some):
            figures.append([column[b, len(p) - 1:len(p) + len(a) - 1] for column in columns])
    return figures


def excess_errors(own, teachers):
    """Excess accumulated error by length, in percent (exposure bias): 100 (R(l) - eps(l)) / eps(l), R and eps
    the summed mean KL of the first l tokens, in the student's own answers and in the teacher's."""
    def accumulated(kls, length):
        reached = [[kl[t] for kl in kls if len(kl) > t] for t in range(length)]
        return sum(float(torch.stack(column).mean()) for column in reached if column)
    return {n: 100 * (accumulated(own, n) / accumulated(teachers, n) - 1) for n in LENGTHS}


def measure(model, task, numbers, seed):
    """Figures of one student on the prompts of these numbers -> dict."""
    figures, prompts = {}, [task.prompts[i] for i in numbers]
    for name, decoding in DECODINGS.items():
        n = DRAWS if name == "T=1" else 1
        answers = model.generate(prompts * n, task.max_new, stop=task.stop, seed=1000 + seed, **decoding)
        right = [task.judge(i, answer) for i, answer in zip(list(numbers) * n, answers)]
        figures[name] = sum(right) / len(right)
        figures[f"length {name}"] = sum(map(len, answers)) / len(answers)
        if name == "T=1":
            own = position_figures(model, task.teacher, list(zip(prompts, answers)))
            good = {(i, tuple(a)) for i, a, ok in zip(list(numbers) * n, answers, right) if ok}
            figures["distinct"] = len(good) / len(answers)
    theirs = position_figures(model, task.teacher, [(task.prompts[i], task.answers[i]) for i in numbers])
    figures["teacher nll"] = -float(torch.cat([log_t for _, log_t, _ in own]).mean())
    figures["coverage"] = -float(torch.cat([log_s for log_s, _, _ in theirs]).mean())
    figures["kl"] = float(torch.cat([kl for *_, kl in theirs]).mean())
    errors = excess_errors([kl for *_, kl in own], [kl for *_, kl in theirs])
    return figures | {f"excess {length}": error for length, error in errors.items()}


# ------------------------------------------------------------------------------------------------------------
# All runs


def finished(path):
    """{key of a job: figures} of results.jsonl; an incomplete last line, as a stopped run leaves it, is ignored.
    ValueError "file:line: ..." for another bad line."""
    lines, results = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [], {}
    for number, line in enumerate(lines, 1):
        try:
            result = json.loads(line)
            if "sha256" in result and result.pop("sha256") != digest(result):       # old files have none
                raise ValueError
            results[tuple(result[name] for name in KEY)] = result
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if number < len(lines):
                raise ValueError(f"{path}:{number}: no run of a comparison, or not as it was written; remove the "
                                 "line, and it is done again") from None
    return results


def run_all(jobs, path, workers, what):
    """Runs the jobs that are not in results.jsonl yet, and adds a line for each -> all that is in it."""
    results = finished(path)
    jobs = [job for job in jobs if job[:len(KEY)] not in results]
    write_text(path, "".join(json.dumps(with_checksum(result)) + "\n" for result in results.values()))
    with worker_pool(workers) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        for future in tqdm(as_completed(futures), what, len(futures), disable=None, leave=False):
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(with_checksum(future.result())) + "\n")
            results[futures[future][:len(KEY)]] = future.result()
    return results


def compare(out, job, rows, seeds, rates, budgets, workers):
    """Tunes every row and runs it with every seed and budget, a pair (tokens, seconds) of which one is 0
    -> {(row, budget): (rate, [figures of a seed])}. job(row, rate, seed, tokens, seconds) -> Job."""
    open_task(job.keywords["task"], out, job.keywords["size"])
    with worker_pool(workers) as pool:
        list(pool.map(prepare_start, [job("", 0.0, seed, tokens=0, seconds=0.0) for seed in range(seeds + 1)]))
