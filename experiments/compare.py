"""Every objective of td_distill.py on one task: one start, one teacher, equal tokens, each at its own best learning rate.

    python td_distill.py compare                              the grammar, 5 seeds
    python td_distill.py compare --task=reading --seeds=3     the built-in world: the student raises questions and answers them
    python td_distill.py compare --rows="KD p=.8,BD"          only these objectives (course/objectives.py)
    python td_distill.py compare --rows="KD p=.8,KD p=1,GKD" --seconds=10,20,40 --seeds=3
                                                              cached answers against those that the student draws itself
    python td_distill.py compare --show=course/results/grammar.jsonl            the runs that the README tells of

How it is kept fair. All rows set out from the same start of that seed and read the same number of tokens, those of one
cache in the same order. Each row tries the learning rates of --rates on a seed and on prompts of their own, and the best of
them is used for every seed of the table; where it is the last one for most rows, the grid is too short. Differences are paired:
a row minus its control, within a seed. Every finished run is a line of results.jsonl, so a comparison that was stopped goes on,
and more seeds or rows are added to it.

Shapes: B documents, T positions, K teacher tokens kept, V vocabulary, N prompts.
"""

import argparse
import copy
import dataclasses
import functools
import json
import math
import os
import sys
import time
from concurrent.futures import as_completed
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import train
from experiments.objectives import OBJECTIVES, Row, learn, new_model, settings, sft, terms
from experiments.compare_tasks import SIZES, STUDENTS, Size, open_task
from data import annotations
from data.files import held, processes
from data.files import digest, read_json, with_checksum
from model import GPT

RATES = (0.0025, 0.005, 0.01)
TUNING, STARTS = 0, 100             # the seed that learning rates are chosen on; where the seeds of starts begin


class Job(NamedTuple):
    """One student; the fields above the line tell it from others."""
    row: str
    rate: float
    seed: int
    embd: int                       # channels
    tokens: int                     # what it reads after the start; 0: as many as the seconds allow
    seconds: float                  # of CPU, for tokens = 0
    # ------
    task: str
    out: Path
    size: Size


KEY = Job._fields[:6]


# ---------------------------------------------------------------------------------------------------------------
# One run


def start(job, task):
    """The student that all rows of a seed set out from: SFT on the references, without a decay of the learning rate."""
    folder, seed = job.out / f"start-{job.embd}-{job.seed}", STARTS + job.seed
    if not (folder / "config.json").exists():
        model = new_model(dataclasses.replace(task.student, n_embd=job.embd), seed)
        learn(f"start {job.seed}", model, task.references, job.size.start_tokens, settings(0.01, seed), Row("references", 1, sft), task, 0.0)
        model.save(folder)
    return GPT.load(folder)


def prepare_start(job):
    torch.set_num_threads(1)
    start(job, open_task(job.task, job.out, job.size))


def run(job):
    """One student from its start to its measures, in a process of its own -> dict."""
    torch.set_num_threads(1)
    task, row, tokens = open_task(job.task, job.out, job.size), OBJECTIVES[job.row], job.tokens
    source = task.references if row.source == "references" else task.caches["free" if row.source == "own" else row.source, row.p]
    model, config = start(job, task), settings(job.rate, job.seed)
    torch.manual_seed(job.seed)
    figures = {name: getattr(job, name) for name in KEY}
    try:
        if job.seconds:
            for _ in range(2):       # the first pass prepares kernels and memory for the shapes of a batch
                begin = time.process_time()
                _, seen = learn("speed", copy.deepcopy(model), source, 60 * config.step_tokens, config, row, task, decay=0.0)
            tokens = int(job.seconds * seen / (time.process_time() - begin))
        begin = time.process_time()
        losses, seen = learn(job.row, model, source, tokens, config, row, task, decay=0.5)
        figures |= {"cpu seconds": round(time.process_time() - begin, 1), "seen": seen, "loss": sum(losses[-50:]) / 50}
        half = len(task.prompts) // 2
        figures |= measure(model, task, range(half) if job.seed == TUNING else range(half, 2 * half), job.seed)
        if row.source != "own":
            figures["memory"] = kept_for_backward(model, row, source, task)
    except ValueError as error:      # a loss or a gradient that is not finite: an outcome like any other
        figures["failed"] = str(error)
    return figures


def kept_for_backward(model, row, source, task):
    """MB of tensors that one batch of 16 documents keeps for its backward pass; shared storage counts once."""
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()     # held, so that no address is used twice
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = row.loss(terms(model, source, range(16), task))
    del kept
    return sum(storage.nbytes() for storage in storages.values()) / 1e6


# ---------------------------------------------------------------------------------------------------------------
# What is measured


DECODINGS = {"T=1": dict(temperature=1.0), "T=.7": dict(temperature=0.7), "nucleus": dict(temperature=1.0, top_p=0.8),
             "greedy": dict(temperature=0)}
DRAWS, LENGTHS = 4, (8, 16, 32)     # answers to a prompt at T = 1; answer lengths that accumulated errors are told for


@torch.no_grad()
def position_figures(model, teacher, documents):
    """For each (prompt, answer): (student's log-probs, teacher's log-probs, KL(teacher || student)), each (answer,)."""
    figures = []
    for at in range(0, len(documents), 64):
        some = documents[at:at + 64]
        width = max(len(p) + len(a) for p, a in some)
        tokens = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in some])            # (B, T + 1)
        log_s, log_t = (m.logits(m.hidden(tokens[:, :-1])).log_softmax(-1) for m in (model, teacher))  # (B, T, V)
        kl = (log_t.exp() * (log_t - log_s)).sum(-1)                                                 # (B, T)
        taken = tokens[:, 1:, None]
        columns = log_s.gather(-1, taken)[..., 0], log_t.gather(-1, taken)[..., 0], kl
        for b, (p, a) in enumerate(some):
            figures.append([column[b, len(p) - 1:len(p) + len(a) - 1] for column in columns])
    return figures


def excess_errors(own, teachers):
    """Excess accumulated error by length, in percent (exposure bias): 100 (R(l) - eps(l)) / eps(l), R and eps the summed
    mean KL(teacher || student) of the first l tokens, in the student's own answers and in the teacher's."""
    def accumulated(kls, length):
        reached = [[kl[t] for kl in kls if len(kl) > t] for t in range(length)]
        return sum(float(torch.stack(column).mean()) for column in reached if column)
    return {length: 100 * (accumulated(own, length) / accumulated(teachers, length) - 1) for length in LENGTHS}


def measure(model, task, numbers, seed):
    """Figures of one student on the prompts of these numbers."""
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


# ---------------------------------------------------------------------------------------------------------------
# All runs, and the table


def finished(path):
    """{key of a job: figures} of results.jsonl; a line that was cut off is dropped, and its run done again. ValueError
    "file:line: ..." for another bad line."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    if lines and not lines[-1].endswith("}"):
        lines.pop()
        beside = path.with_name(path.name + ".tmp")
        beside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        os.replace(beside, path)
    results = {}
    for number, line in enumerate(lines, 1):
        try:
            result = json.loads(line)
            found = result.pop("sha256", None)
            if found != digest(result) and (found or any(len(str(value)) == 64 for value in result.values())):
                raise ValueError                                # a line without one is of an older version, or its name is damaged
            results[tuple(result[name] for name in KEY)] = result
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{path}:{number}: no run of a comparison, or not as it was written; without this line it is done "
                             "again") from None
    return results


def run_all(jobs, path, workers, what):
    """Runs those of the jobs that are not in results.jsonl yet, and adds a line for each -> all that is in it."""
    results = finished(path)
    jobs = [job for job in jobs if job[:len(KEY)] not in results]
    with processes(workers) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        pool.submit(int) if jobs else None      # see train.train_students
        for future in tqdm(as_completed(futures), what, len(futures), disable=None, leave=False):
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(with_checksum(future.result())) + "\n")
            results[futures[future][:len(KEY)]] = future.result()
    return results


def compare(task, out, size, rows, seeds, embd, budgets, workers, rates):
    """Tunes every row and runs it with every seed and budget, a pair (tokens, seconds) of which one is 0
    -> {(row, budget): (rate, [figures of a seed])}. Raises ValueError where the folder holds runs of another size."""
    out.mkdir(parents=True, exist_ok=True)
    note, path = out / "size.json", out / "results.jsonl"
    if note.exists() and read_json(note, "use another --out_dir") != size._asdict():
        raise ValueError(f"{out}: holds runs of another size, see {note}; use another --out_dir")
    train.write_json(note, size._asdict())
    open_task(task, out, size)
    job = functools.partial(Job, embd=embd, task=task, out=out, size=size)
    with processes(workers) as pool:
        list(pool.map(prepare_start, [job("", 0.0, seed, tokens=0, seconds=0.0) for seed in range(seeds + 1)]))

    def one(row, rate, seed, budget):
        return job(row, rate, seed, tokens=budget[0], seconds=budget[1])

    trials = {(row, rate): one(row, rate, TUNING, budgets[-1]) for row in rows for rate in rates}
    tried = run_all(trials.values(), path, workers, "learning rates")
    best = {row: max(rates, key=lambda rate: tried[trials[row, rate][:len(KEY)]].get("T=1", -1.0)) for row in rows}
    chosen = {(row, budget): [one(row, best[row], 1 + seed, budget) for seed in range(seeds)] for row in rows for budget in budgets}
    in_turn = [chosen[row, budget][seed] for seed in range(seeds) for row in rows for budget in budgets]
    results = run_all(in_turn, path, workers, "seeds")
    return {key: (best[key[0]], [results[done[:len(KEY)]] for done in jobs]) for key, jobs in chosen.items()}


def mean_se(values):
    """(mean, its standard error over seeds); the error of one seed is NaN."""
    mean, n = sum(values) / len(values), len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.nan


COLUMNS = {"T=1": ".3f", "T=.7": ".3f", "nucleus": ".3f", "greedy": ".3f", "teacher nll": ".3f", "coverage": ".3f", "distinct": ".3f",
           "length T=1": ".1f", "excess 32": ".0f", "cpu seconds": ".0f", "memory": ".1f"}
PAIRED = ("T=1", "T=.7", "nucleus", "greedy", "coverage", "distinct", "length T=1")


def table(results):
    """Lines: means over seeds with their standard errors, then each row minus its control, paired within a seed."""
    failed = {key: run["failed"] for key, (_, runs) in results.items() for run in runs if "failed" in run}
    whole = {key: runs for key, (_, runs) in results.items() if key not in failed}
    yield f"means over {max(len(runs) for _, runs in results.values())} seeds ± standard errors"
    yield f"{'':18}{'rate':>7}" + "".join(f"{name:>15}" for name in COLUMNS)
    for (row, budget), (rate, runs) in results.items():
        cells = [f"  failed: {failed[row, budget]}"] if (row, budget) in failed else [
            f"{mean:>{9}{form}} ±{error:<5{form}}"[:15] for name, form in COLUMNS.items()
            for mean, error in [mean_se([run.get(name, math.nan) for run in runs])]]
        yield f"{row:18}{rate:7g}" + "".join(cells)
    yield from ("", "minus the control, paired by seed", f"{'':18}{'control':>12}" + "".join(f"{name:>16}" for name in PAIRED))
    for (row, budget), runs in whole.items():
        control = OBJECTIVES[row].control
        if control != row and (control, budget) in whole:
            pairs = [[a[name] - b[name] for a, b in zip(runs, whole[control, budget])] for name in PAIRED]
            yield f"{row:18}{control:>12}" + "".join("{:>+9.3f} ±{:<5.3f}".format(*mean_se(pair)) for pair in pairs)


def time_to(curve, quality):
    """Seconds at which a curve {seconds: quality} first reaches a quality, linear between its points in log seconds; infinite where it never does."""
    points = sorted(curve.items())
    if points[0][1] >= quality:
        return points[0][0]
    for (t0, q0), (t1, q1) in zip(points, points[1:]):
        if q1 >= quality:
            return t0 * (t1 / t0) ** ((quality - q0) / (q1 - q0))
    return math.inf


def curves(results, figure="T=1"):
    """Lines: quality against CPU seconds, and how many times as long each row takes to the last row's best."""
    rows, budgets = (list(dict.fromkeys(keys)) for keys in zip(*results))
    yield f"{figure} after so many CPU seconds, ± standard error over seeds"
    yield f"{'':18}" + "".join(f"{seconds:>15g}" for _, seconds in budgets)
    means = {}
    for row in rows:
        errors = [mean_se([run[figure] for run in results[row, budget][1]]) for budget in budgets]
        means[row] = {seconds: mean for (_, seconds), (mean, _) in zip(budgets, errors)}
        yield f"{row:18}" + "".join(f"{mean:>8.3f} ±{error:.3f}" for mean, error in errors)
    for row in rows:
        goal = min(max(means[row].values()), max(means[rows[0]].values()))
        yield f"{row} is at {goal:.3f} after {time_to(means[row], goal) / time_to(means[rows[0]], goal):.2f} times the seconds of {rows[0]}"


def printable(path):
    """Lines: the tables of a results.jsonl, one for each size of student and budget; nothing is trained."""
    groups = {}
    for result in finished(path).values():
        if result["seed"] != TUNING:
            group = groups.setdefault((result["embd"], result["tokens"], bool(result["seconds"])), {})
            group.setdefault((result["row"], (result["tokens"], result["seconds"])), []).append(result)
    for (embd, tokens, timed), results in groups.items():
        chosen = {key: (runs[0]["rate"], sorted(runs, key=lambda run: run["seed"])) for key, runs in sorted(results.items(), key=lambda item: (list(OBJECTIVES).index(item[0][0]), item[0][1]))}
        yield f"students of {embd} channels, {f'{tokens:,} tokens' if not timed else 'by seconds'}"
        yield from [*(curves(chosen) if timed else ()), "", *table(chosen), ""]


def main(argv=None):
    """Options -> the table on the terminal; raises ValueError in one line for what cannot be done."""
    parser = argparse.ArgumentParser(prog="td_distill.py compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(SIZES), default="grammar")
    parser.add_argument("--seeds", type=int, default=5, help="students of each row in the table [5]")
    parser.add_argument("--rows", help="objectives, separated by commas [all]: " + ", ".join(OBJECTIVES).replace("%", "%%"))
    parser.add_argument("--tokens", type=int, help="tokens that every student reads after the start")
    parser.add_argument("--embd", type=int, help="channels of the students: small ones cannot do all that the teacher does")
    parser.add_argument("--rates", default=",".join(map(str, RATES)), help="learning rates that every row tries [%(default)s]")
    parser.add_argument("--seconds", help="CPU seconds in place of tokens, separated by commas: prints curves")
    parser.add_argument("--out_dir", help="folder of all that is made [out/compare-TASK]")
    parser.add_argument("--workers", type=int, default=torch.get_num_threads(), help="processes side by side [as cores]")
    parser.add_argument("--show", metavar="FILE", help="print the tables of a results.jsonl, and train nothing")
    options = parser.parse_args(argv)
    if options.show:
        if not Path(options.show).exists():
            raise ValueError(f"{options.show}: no such file; expected the results.jsonl of a comparison")
        return print("\n".join(map(printable, printable(Path(options.show)))))
    rows = options.rows.split(",") if options.rows else [row for row, (source, *_) in OBJECTIVES.items() if source != "own"]
    unknown = [row for row in rows if row not in OBJECTIVES]
    if unknown or options.seeds < 1:
        raise ValueError(f"--rows={options.rows} --seeds={options.seeds}; expected at least one seed, and of: {', '.join(OBJECTIVES)}")
    embd, tokens = STUDENTS[options.task]
    budgets = [(options.tokens or tokens, 0.0)]
    if options.seconds:
        budgets = [(0, seconds) for seconds in sorted(map(float, options.seconds.split(",")))]
    out = Path(options.out_dir or f"out/compare-{options.task}")
    out.mkdir(parents=True, exist_ok=True)
    with held(out):
        results = compare(options.task, out, SIZES[options.task], rows, options.seeds, options.embd or embd, budgets, options.workers,
                          tuple(map(float, options.rates.split(","))))
    task = open_task(options.task, out, SIZES[options.task])
    right = [task.judge(i, answer) for i, answer in enumerate(task.answers)]
    print(f"the teacher, T=1: {sum(right) / len(right):.3f} of {len(right)} prompts answered right")
    for line in [*(curves(results) if options.seconds else ()), "", *table(results)]:
        print(printable(line))


if __name__ == "__main__":
    sys.exit(main())
