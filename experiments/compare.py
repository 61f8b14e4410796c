"""Every objective of distillation on one task: one start, one teacher, equal tokens, its own learning rate.

    python td_distill.py compare                        all rows of experiments/objectives.py, 5 seeds
    python td_distill.py compare --rows="KD p=1,GKD" --seconds=10,40        these two, by CPU seconds
    python td_distill.py compare --show=experiments/results/grammar.jsonl   the runs that the README reports

All rows of a seed begin with the same student and read equal tokens, those of one cache in the same order.
Each row tries every learning rate on a seed and on prompts of their own, and runs all seeds of the table with
the best. A finished run is a line of results.jsonl: a comparison that was stopped goes on, and more seeds or
rows are added to it. Shapes: B documents, T positions, V vocabulary.
"""

import copy
import time
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

import train
from data.cli import Options as Base, check_range, parse_options, printable, run_command
from data.figures import cell, mean_se
from data.files import folder_lock, open_run
from data.machine import MEMORY, check_weights, worker_pool
from experiments.compare_tasks import SHAPE, SIZE, Size, open_task
from experiments.objectives import OBJECTIVES, learn
from experiments.tables import BOUNDS, read_rows, run_all
from model import GPT, GPTConfig

TUNING, STARTS = 0, 100     # the seed that learning rates are chosen on; the first seed of the starts
FILES = dict.fromkeys(("stages", "teacher", "answers.json", "caches/*", "caches", "starts/*", "starts",
                       "results.jsonl"), "")


@dataclass
class Options(Base):
    rows: str = ""                      # objectives, separated by commas; "": all but GKD
    seeds: int = 5                      # students of each row in the table
    tokens: int = 1_000_000             # that every student reads after the start
    embd: int = 64                      # channels of the students
    rates: str = "0.0025,0.005,0.01"    # learning rates that every row tries, separated by commas
    seconds: str = ""                   # CPU seconds in place of tokens, separated by commas: prints curves
    out_dir: str = "out/compare-grammar"    # folder of all that is made
    redo: bool = False                  # throw away what an earlier comparison left in out_dir
    workers: int = torch.get_num_threads()  # processes side by side
    show: str = ""                      # print the tables of a results.jsonl, and train nothing
    CHOICES = {"rows": ["", *OBJECTIVES]}
    BOUNDS = {**BOUNDS, "tokens": (0, MEMORY // 100, "memory")}

    def __post_init__(self):
        super().__post_init__()
        self.refuse(self.seconds, "beside --seconds", "tokens")
        check_weights(GPTConfig(n_embd=self.embd, n_layer=2, **SHAPE))


class Job(NamedTuple):
    """One student; the first six fields identify it in results.jsonl."""
    row: str
    rate: float
    seed: int
    embd: int                       # channels
    tokens: int                     # what it reads after the start; 0: as many as the seconds allow
    seconds: float                  # of CPU, for tokens = 0
    out: Path
    size: Size


KEY = Job._fields[:6]


def start(job):
    """The student that all rows of a seed begin with, trained by SFT on the references -> its folder."""
    torch.set_num_threads(1)
    folder, task = job.out / "starts" / f"{job.embd}-{job.seed}", open_task(job.out, job.size)
    if not (folder / "config.json").exists():
        config = train.Config(seed=STARTS + job.seed, device="cpu", cooldown=0.0)
        torch.manual_seed(config.seed)
        model = GPT(replace(task.student, n_embd=job.embd))
        learn(f"start {job.seed}", model, job.size.start_tokens, config, OBJECTIVES["SFT"], task, folder)
    return folder


def run(job):
    """One student from its start to its measures, in a process of its own -> dict."""
    model, task = GPT.load(start(job)), open_task(job.out, job.size)
    row, tokens = OBJECTIVES[job.row], job.tokens
    config = train.Config(learning_rate=job.rate, seed=job.seed, device="cpu")
    torch.manual_seed(job.seed)
    figures = {name: getattr(job, name) for name in KEY}
    try:
        if job.seconds:
            for _ in range(2):       # the first pass prepares kernels and memory for the shapes of a batch
                begin, constant = time.process_time(), replace(config, cooldown=0.0)
                *_, seen = learn("speed", copy.deepcopy(model), 60 * 1024, constant, row, task)
            tokens = int(job.seconds * seen / (time.process_time() - begin))
        begin = time.process_time()
        losses, _, seen = learn(job.row, model, tokens, config, row, task)
        spent, half = round(time.process_time() - begin, 1), len(task.prompts) // 2
        numbers = range(half) if job.seed == TUNING else range(half, 2 * half)
        figures |= {"cpu seconds": spent, "seen": seen, "loss": sum(losses[-50:]) / 50,
                    **measure(model, task, numbers, job.seed)}
    except ValueError as error:      # a loss or a gradient that is not finite is an outcome like any other
        figures["failed"] = str(error)
    return figures


DECODINGS = {"T=1": {}, "nucleus": dict(top_p=0.8), "greedy": dict(temperature=0)}
DRAWS = 4                           # answers to a prompt at T = 1


@torch.no_grad()
def answer_nll(model, documents):
    """Cross-entropy of a model on the answers of documents (prompt, answer), in nats a token."""
    found = []
    for at in range(0, len(documents), 64):
        some = documents[at:at + 64]
        tokens = pad_sequence([torch.tensor(p + a) for p, a in some], batch_first=True)      # (B, T + 1)
        taken = model(tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]        # (B, T)
        found += [row[len(p) - 1:len(p) + len(a) - 1] for row, (p, a) in zip(taken, some)]
    return -float(torch.cat(found).mean())


def measure(model, task, numbers, seed):
    """Figures of one student on the prompts of these numbers -> dict."""
    figures, prompts = {}, [task.prompts[i] for i in numbers]
    for name, decoding in DECODINGS.items():
        n = DRAWS if name == "T=1" else 1
        answers = model.generate(prompts * n, task.max_new, stop=task.stop, seed=1000 + seed, **decoding)
        right = [task.judge(i, answer) for i, answer in zip(list(numbers) * n, answers)]
        figures |= {name: sum(right) / len(right), f"length {name}": sum(map(len, answers)) / len(answers)}
        if name == "T=1":
            good = {(i, tuple(a)) for i, a, ok in zip(list(numbers) * n, answers, right) if ok}
            figures["distinct"] = len(good) / len(answers)
    figures["coverage"] = answer_nll(model, [(task.prompts[i], task.answers[i]) for i in numbers])
    return figures


def tune(job, rows, rates, pool, names=KEY, run=run):
    """{row: the best of its learning rates on the seed for tuning}; job(row, rate, seed) makes a Job."""
    trials = {(row, rate): job(row, rate, TUNING) for row in rows for rate in rates}
    path = next(iter(trials.values())).out / "results.jsonl"
    tried = run_all(trials.values(), path, pool, "learning rates", run, names)
    right = {key: tried[trial[:len(names)]].get("T=1", -1.0) for key, trial in trials.items()}
    return {row: max(rates, key=lambda rate: right[row, rate]) for row in rows}


def number_list(name, text):
    """"0.1,0.2" -> [0.1, 0.2]; ValueError where one is no number above 0."""
    try:
        numbers = list(map(float, text.split(",")))
    except ValueError:
        raise ValueError(f"--{name}={text}, but expected numbers with commas between") from None
    for number in numbers:
        check_range(name, number, above=0)
    return numbers


def compare(out, size, rows, options):
    """Tunes every row and runs it with every seed and budget, a pair (tokens, seconds) of which one is 0
    -> {(row, budget): (rate, [figures of a seed])}."""
    budgets, rates = [(options.tokens, 0.0)], number_list("rates", options.rates)
    if options.seconds:
        budgets = [(0, seconds) for seconds in sorted(number_list("seconds", options.seconds))]
    path, seeds = out / "results.jsonl", range(1, options.seeds + 1)

    def job(row, rate, seed, budget=budgets[-1]):
        return Job(row, rate, seed, options.embd, *budget, out, size)
    open_task(out, size)
    with worker_pool(options.workers) as pool:
        list(pool.map(start, [job("", 0.0, seed) for seed in (TUNING, *seeds)]))
        best = tune(job, rows, rates, pool)
        chosen = {(row, budget): [job(row, best[row], seed, budget) for seed in seeds]
                  for row, budget in product(rows, budgets)}
        results = run_all(chain(*zip(*chosen.values())), path, pool, "seeds", run, KEY)     # seed by seed
    return {key: (best[key[0]], [results[done[:len(KEY)]] for done in jobs]) for key, jobs in chosen.items()}


PAIRED = ("T=1", "nucleus", "greedy", "coverage", "distinct", "length T=1")
COLUMNS = (*PAIRED, "cpu seconds")


def line(label, cells):
    """A row of a table."""
    return f"{label:34}" + "".join(f"{text:>16}" for text in cells)


CONTROLS = {name: row.control for name, row in OBJECTIVES.items()}


def table(results, paired=PAIRED, columns=COLUMNS, controls=CONTROLS):
    """Lines: means over seeds with their standard errors, then each row minus its control, paired by seed."""
    yield line(f"mean of {max(len(runs) for _, runs in results.values())} seeds, rate", columns)
    for (row, (_, seconds)), (rate, runs) in results.items():
        cells = [cell(mean_se([run[name] for run in runs if name in run])) for name in columns]
        failed = [f"  failed: {run['failed']}" for run in runs if "failed" in run]
        label = f"{row}, {seconds:g} s" if seconds else row
        yield line(f"{label:26}{rate:g}", failed[:1] or cells)
    yield from ("", line("minus the control, paired", paired))
    for (row, budget), (_, runs) in results.items():
        control = controls[row]
        _, others = results.get((control, budget), (0, []))
        pairs = [(a, b) for a in runs for b in others if a["seed"] == b["seed"] and "failed" not in a | b]
        if pairs and control != row:
            cells = [cell(mean_se([a[name] - b[name] for a, b in pairs if name in a])) for name in paired]
            yield line(f"{row} - {control}" + (f", {budget[1]:g} s" if budget[1] else ""), cells)


def curves(results):
    """Lines: the share of right answers at T = 1 against CPU seconds."""
    rows, budgets = (list(dict.fromkeys(keys)) for keys in zip(*results))
    yield line("T=1 after CPU seconds", [f"{seconds:g}" for _, seconds in budgets])
    for row in rows:
        found = [[run.get("T=1", 0) for run in results[row, budget][1]] for budget in budgets]
        yield line(row, [cell(mean_se(values)) for values in found])


def tables(path, rows, world, names=KEY):
    """{world(run): results as of compare} of a results.jsonl, with these rows in their order. names: the
    fields that identify a job. Of a row that was run at several rates, the one that most seeds have."""
    groups, order = {}, list(rows)
    runs = [run for run in read_rows(path, names).values() if run["row"] in order and run["seed"] != TUNING]
    for run in sorted(runs, key=lambda run: (order.index(run["row"]), run.get("seconds", 0), run["seed"])):
        key = run["row"], (run.get("tokens", 0), run.get("seconds", 0))
        groups.setdefault(world(run), {}).setdefault(key, {}).setdefault(run["rate"], []).append(run)
    return {name: {key: max(rates.items(), key=lambda item: len(item[1])) for key, rates in results.items()}
            for name, results in groups.items()}


def show(path):
    """Lines: the tables of a results.jsonl, one for each size and budget, of the rows of OBJECTIVES."""
    groups = tables(path, OBJECTIVES, lambda run: (run["embd"], run["tokens"], bool(run["seconds"])))
    for (embd, tokens, timed), results in groups.items():
        yield f"students of {embd} channels, " + ("by seconds" if timed else f"{tokens:,} tokens")
        yield from [*(curves(results) if timed else ()), "", *table(results), ""]


def main(arguments=None):
    """Options -> the table on the terminal; ValueError in one line for what the user can mend."""
    options = parse_options(Options, arguments, __doc__)
    if options.show:
        return print("\n".join(map(printable, show(Path(options.show)))))
    rows = options.rows.split(",") if options.rows else [row for row in OBJECTIVES if "GKD" not in row]
    out = Path(options.out_dir)
    with folder_lock(out):
        open_run(out, {"task": "grammar", **SIZE._asdict()}, FILES, options.redo)
        results = compare(out, SIZE, rows, options)
    task = open_task(out, SIZE)
    right = [task.judge(i, answer) for i, answer in enumerate(task.answers)]
    print(f"the teacher, T=1: {sum(right) / len(right):.3f} of {len(right)} answers are right")
    lines = [*(curves(results) if options.seconds else ()), "", *table(results)]
    print("\n".join(map(printable, lines)))


if __name__ == "__main__":
    run_command(main)
