"""The claims of Basic Reading Distillation (Zhou et al., ACL 2025): every arm and seed, tables with errors.

    python -m experiments.claims                    # all of it, two hours on two cores; a stopped run goes on
    python -m experiments.claims 1 3 --seeds=3      # some claims of claim_arms.CLAIMS
    python -m experiments.claims --wrappers=data/tasks/wrappers/final.json     # the same students, reworded
    python -m experiments.claims --show experiments/results/claims.jsonl       # the tables of runs kept here

All arms of a seed start from the same weights and read the same number of tokens, unless their line of ARMS
(claim_arms.py) says otherwise. Plain text and reading each try the learning rates RATES on the seed TUNING
and keep the one of the best mean accuracy; all arms that change something of BRD have BRD's rate. Items that
are near-duplicates of what any arm of that seed has read are left out. Every finished student and test is a
file in --out_dir; results-WRAPPERS.jsonl is made of them, a line a student with its credit for every item.
"""

import argparse
import json
from concurrent.futures import as_completed
from pathlib import Path
from types import SimpleNamespace

import torch

import brd
from data.cli import Parser, check_range, printable, progress, run_command
from data.documents import course_tokenizer
from data.files import folder_lock, is_finished, open_run, read_json, sha256_of, write_json, write_text
from data.machine import MEMORY, worker_pool
from experiments import blind, claim_items, claim_tables, retelling
from experiments.claim_arms import (AFTER, ARMS, CLAIMS, CONTROL, RATE, Job, Size, config_of, family,
                                    mix_of)
from experiments.tables import BOUNDS, packed, parse_with_show, unpacked
from experiments.teacher import TeacherConfig, train_teacher
from train import Config, finished_model, new_model, train_model

RATES, TUNING = (0.005, 0.01, 0.02), 0      # learning rates tried, and the seed that they are chosen on
LABELS, AGREED = 32, 60      # items of a task to learn from; items on which student and teacher are compared
DEV = claim_items.WRAPPERS / "dev.json"
REMEDY = "remove it, and it is made again"


def scored(model, tokenizer, items):
    """Packed credits of items (prompt, candidates, {index of the right one})."""
    prompts, candidates, rights = zip(*items)
    scores, _ = brd.blind_scores(model, tokenizer, list(zip(prompts, candidates)))
    return packed(map(brd.tie_accuracy, scores, rights))


def learnt(model, tokenizer, tasks, setting, teacher, seed):
    """{task: packed credits} of students that have learnt LABELS items of a task, answered by the teacher of
    a folder (setting "relaxed") or rightly ("supervised"), and are tested on the others."""
    teacher, device = teacher if setting == "relaxed" else None, str(next(model.parameters()).device)
    options = SimpleNamespace(setting=setting, labels=LABELS, teacher=teacher, seed=seed, device=device)
    learn, results = blind.adapter(model, tokenizer, options), {}
    for name in claim_items.LEARNT:
        student, rest = learn(tasks[name])
        credits, left = iter(scored(student, tokenizer, rest["items"])), {id(item) for item in rest["items"]}
        results[name] = "".join(next(credits) if id(item) in left else "-" for item in tasks[name]["items"])
    return results


@torch.no_grad()
def agreement(model, teacher, tokenizer, tasks):
    """{task: [cross-entropy -sum pT log pS of each of its first AGREED items]} in nats over the whole
    vocabulary, at the token where the answer begins (Zhou et al., the study of cross-entropies by task)."""
    found = {}
    for name, task in tasks.items():
        contexts = [brd.split_tokens(tokenizer, prompt, candidates, model.config.block_size)[0]
                    for prompt, candidates, _ in task["items"][:AGREED]]
        log_s, log_t = (m.logits(m.prefill(contexts)[0][:, -1]).log_softmax(-1) for m in (model, teacher))
        found[name] = [round(float(x), 3) for x in -(log_t.exp() * log_s).sum(-1)]            # of (n, V)
    return found


def near(tasks, sources, tokenizer):
    """{task: indices of items that are near-duplicates of a document of these Rows}."""
    special = {tokenizer.sep, tokenizer.end}
    texts = (tokenizer.decode([t for t in rows.document(d)[0].tolist() if t not in special])
             for rows in sources for d in range(len(rows)))
    return claim_items.near_duplicates(tasks, texts)


def student(job):
    """The trained student of an arm of ARMS or AFTER."""
    torch.set_num_threads(1)
    config, tokenizer = config_of(job), course_tokenizer("world", 1024)
    model = finished_model(job.name, config)
    if model is None:
        size = config.n_layer, config.n_embd
        model = student(job.start) if job.start else new_model(*size, tokenizer, config)
        objective = retelling.METHODS[job.arm.split("+")[1]][1] if job.arm in AFTER else "kd"
        train_model(job.name, model, mix_of(job), config.student_tokens, config, tokenizer, None, objective)
    return model.eval()


def test(job):
    """Tests the student of any arm, which is trained first where it is not finished; a file beside it."""
    if job.test.exists():
        return
    first, _, setting = job.arm.partition(":")
    model, tokenizer = student(job._replace(arm=first)), course_tokenizer("world", 1024)
    tasks = claim_items.load_tasks(job.wrappers, job.seed, job.size.items)
    figures = {"arm": job.arm, "seed": job.seed, "rate": job.rate, "seen": model.extra["tokens_seen"]}
    if setting:
        figures["tasks"] = learnt(model, tokenizer, tasks, setting, f"{job.out}/teacher", job.seed)
    else:
        figures["tasks"] = {name: scored(model, tokenizer, task["items"]) for name, task in tasks.items()}
    if job.arm in CONTROL and job.seed != TUNING:
        figures["blank"] = {name: scored(model, tokenizer, task["blank"]) for name, task in tasks.items()}
    if job.arm in ARMS:
        figures["near"] = near(tasks, mix_of(job).sources, tokenizer)
    write_json(job.test, figures)


def teach(job):
    """The teachers: a reader, the same after the task of claim 5, and a cache of the latter's answers."""
    torch.set_num_threads(1)
    size, tokenizer = job.size, course_tokenizer("world", 1024)
    config = TeacherConfig(seed=job.seed, learning_rate=RATE, out_dir=job.out, teacher_tokens=size.teacher,
                           teacher_layer=size.teacher_layer, teacher_embd=size.teacher_embd)
    reads = job._replace(arm="brd", seed=1000, size=size._replace(tokens=size.teacher))
    mix = None if is_finished(Path(job.out), "teacher") else mix_of(reads)
    reader = train_teacher(config, tokenizer, mix)
    config = retelling.config_of(config, size.retelling)
    retelling.instructed_teacher(reader, tokenizer, config)
    retelling.source("SeqKD", tokenizer, config)


def agree(job):
    """Claim 6: adds to the test of a student how near it is to the teacher."""
    figures = read_json(job.test, REMEDY)
    if "agreement" not in figures:
        models = student(job), finished_model("teacher", config_of(job)).eval()
        tasks = claim_items.load_tasks(job.wrappers, job.seed, job.size.items)
        figures["agreement"] = agreement(*models, course_tokenizer("world", 1024), tasks)
        write_json(job.test, figures)


def run(options, size):
    """Makes all that the claims need and that is not there yet, then the file of results -> its path."""
    claims, seeds = options.claims or CLAIMS, range(1, 1 + options.seeds)
    arms = sorted({arm for claim in claims for arm in CLAIMS[claim].arms})

    def job(arm, seed, rate=RATE, wrappers=options.wrappers):
        return Job(arm, seed, rate, options.out_dir, str(wrappers), size)

    def work(function, jobs, what):
        futures = [pool.submit(function, one) for one in jobs]
        for future in progress(as_completed(futures), what, total=len(futures)):
            future.result()
    with worker_pool(options.workers) as pool:
        teachers = [pool.submit(teach, job("teacher", 1))] if {"5", "6", "8"}.intersection(claims) else []
        longer = [job("pretrained", seed) for seed in seeds if "pretrained" in arms]
        work(student, [job("start", seed) for seed in (TUNING, *seeds)] + longer, "starts")
        rates = tuned({family(arm) for arm in arms}, job, work)
        tests = [job(arm, seed, rates[family(arm)] if arm != "pretrained" else RATE)
                 for arm in arms for seed in seeds]
        work(test, [one for one in tests if one.arm in ARMS], "students")
        for teacher in teachers:
            teacher.result()
        work(test, [one for one in tests if one.arm not in ARMS], "after")
        if "6" in claims:
            work(agree, [one for one in tests if one.arm in CONTROL], "teacher and students")
    head = {"wrappers": Path(options.wrappers).stem, "sha256": sha256_of(options.wrappers), "rates": rates,
            "seeds": options.seeds, "size": size._asdict(), "torch": torch.__version__}
    rows = [head, *(read_json(one.test, REMEDY) for one in tests)]
    path = Path(options.out_dir) / f"results-{head['wrappers']}.jsonl"
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def tuned(families, job, work):
    """{family: learning rate of the best mean accuracy in dev wrappers, "tried": {family: accuracies}}."""
    rates, trials = {"tried": {}}, {arm: [job(arm, TUNING, rate, DEV) for rate in RATES] for arm in families}
    work(test, sum(trials.values(), []), "learning rates")
    for arm, jobs in trials.items():
        signs = ["".join(read_json(one.test, REMEDY)["tasks"].values()) for one in jobs]
        tried = [round(float(unpacked(some).mean()), 4) for some in signs]
        rates["tried"][arm] = dict(zip(map(str, RATES), tried))
        rates[arm] = RATES[tried.index(max(tried))]
    return rates


def main(arguments=None):
    """A run and its tables, or tables alone; ValueError or OSError for what the user can mend."""
    parser = Parser(prog="claims", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=f"of {', '.join(CLAIMS)} [all]")
    parser.add_argument("--wrappers", default=str(DEV), help="how the tasks are worded [dev.json]")
    parser.add_argument("--out_dir", default="out/claims", help="folder of all that this makes [out/claims]")
    for name, value in {"seeds": 3, **Size()._asdict()}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"[{value:,}]")
    options = parse_with_show(parser, arguments)
    for name in ("seeds", *Size._fields):
        check_range(name, getattr(options, name), *BOUNDS.get(name, (0, MEMORY // 100, "memory")))
    size = Size(*(getattr(options, name) for name in Size._fields))
    for n_layer, n_embd in ((size.n_layer, size.n_embd), (size.teacher_layer, size.teacher_embd)):
        Config(n_layer=n_layer, n_embd=n_embd)                      # for its errors
    if unknown := [claim for claim in options.claims if claim not in CLAIMS]:
        raise ValueError(f"claim {unknown[0]}; expected {', '.join(CLAIMS)}")
    path = options.show
    if not path:
        claim_items.read_wrappers(options.wrappers)                 # for its errors
        out = Path(options.out_dir)
        with folder_lock(out):
            open_run(out, size._asdict(), {"stages": "a note for each finished student"})
            path = run(options, size)
    print("\n".join(map(printable, claim_tables.show(*claim_tables.read(path)))))


if __name__ == "__main__":
    run_command(main)
