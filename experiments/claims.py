"""The claims of Basic Reading Distillation (Zhou et al., ACL 2025): every arm and seed, tables with errors.

    python -m experiments.claims                    # all of it, two hours on two cores; a stopped run goes on
    python -m experiments.claims 1 3 --seeds=3      # some claims, of 1 to 8, mix, mends (claim_arms.CLAIMS)
    python -m experiments.claims --wrappers=data/tasks/wrappers/final.json     # the same students, reworded
    python -m experiments.claims --show experiments/results/claims.jsonl       # the tables of runs kept here

All arms of a seed start from the same weights and read the same number of tokens, unless their line of ARMS
(claim_arms.py) says otherwise. Plain text and reading each try the learning rates RATES on the seed TUNING
and keep the one of the best mean accuracy; all arms that change something of BRD have BRD's rate. Items that
are near-duplicates of what any arm of that seed has read are left out. Every finished student and test is a
file in --out_dir; results-WRAPPERS.jsonl is made of them, a line a student.
"""

import argparse
import json
import sys
from concurrent.futures import as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from data.cli import check_range, printable, run_command
from data.documents import course_tokenizer, plain_test
from data.figures import bits_per_byte
from data.files import folder_lock, is_finished, open_run, read_json, sha256_of, write_json, write_text
from data.machine import worker_pool
from experiments import claim_items, claim_tables, claim_tests, retelling
from experiments.claim_arms import (AFTER, ARMS, BITS_ONLY, CLAIMS, CONTROL, RATE, TAUGHT, Job, Size,
                                    arms_of, config_of, family, mix_of)
from experiments.teacher import TeacherConfig, train_teacher
from train import finished_model, new_model, train_model

RATES, TUNING = (0.005, 0.01, 0.02), 0      # learning rates tried, and the seed that they are chosen on
TEACHER_SEED = 1000                         # of the teacher's texts
DEV = claim_items.WRAPPERS / "dev.json"
REMEDY = "remove it, and it is made again"
FILES = {"stages": "a note for each finished student", "rates.json": "the learning rates that were tried"}


def student(job):
    """The trained student of an arm of ARMS or AFTER."""
    torch.set_num_threads(1)
    config, tokenizer = config_of(job), course_tokenizer("world", 1024)
    model = finished_model(job.name, config)
    if model is None:
        size = config.n_layer, config.n_embd
        model = student(job.start) if job.start else new_model(*size, tokenizer, config)
        train_model(job.name, model, mix_of(job), config.student_tokens, config, tokenizer)
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
        figures |= claim_tests.learnt(model, tokenizer, tasks, setting, f"{job.out}/teacher", job.seed)
    elif job.arm not in BITS_ONLY:
        figures |= claim_tests.blind(model, tokenizer, tasks, job.arm in CONTROL and job.seed != TUNING)
    if job.arm in AFTER:
        figures["retelling"] = claim_tests.packed(retelling.test(model, tokenizer, seed=job.seed))
    if job.arm in ARMS:
        figures["bits"] = round(bits_per_byte(model, *plain_test(tokenizer)), 5)
        if job.arm not in BITS_ONLY:
            figures["near"] = claim_tests.near(tasks, mix_of(job).sources, tokenizer)
        if ARMS[job.arm].read != "plain":
            figures["reading"] = claim_tests.reading(model, tokenizer)
    write_json(job.test, figures)


def teach(job):
    """The teachers: a reader, the same after the task of claim 5, and the latter's answers."""
    torch.set_num_threads(1)
    size, tokenizer = job.size, course_tokenizer("world", 1024)
    config = TeacherConfig(seed=job.seed, learning_rate=RATE, out_dir=job.out, teacher_tokens=size.teacher,
                           teacher_layer=size.teacher_layer, teacher_embd=size.teacher_embd)
    reads = job._replace(arm="brd", seed=TEACHER_SEED, size=size._replace(tokens=size.teacher))
    mix = None if is_finished(Path(job.out), "teacher") else mix_of(reads)
    reader = train_teacher(config, tokenizer, mix)
    config = retelling.config_of(config, size.retelling)
    model = retelling.instructed_teacher(reader, tokenizer, config)
    retelling.source("SeqKD", tokenizer, config)
    if not job.test.exists():
        answers = claim_tests.packed(retelling.test(model, tokenizer))
        write_json(job.test, {"arm": "teacher", "seed": job.seed, "retelling": answers})


def agree(job):
    """Claim 6: adds to the test of a student how near it is to the teacher."""
    figures = read_json(job.test, REMEDY)
    if "agreement" not in figures:
        models = student(job), finished_model("teacher", config_of(job)).eval()
        tasks = claim_items.load_tasks(job.wrappers, job.seed, job.size.items)
        figures["agreement"] = claim_tests.agreement(*models, course_tokenizer("world", 1024), tasks)
        write_json(job.test, figures)


def run(options, size):
    """Makes all that the claims need and that is not there yet, then the file of results -> its path."""
    out, claims, seeds = Path(options.out_dir), options.claims, range(1, 1 + options.seeds)
    students, later = arms_of(claims)

    def job(arm, seed, rate=RATE, wrappers=options.wrappers):
        return Job(arm, seed, rate, str(out), str(wrappers), size)

    def work(function, jobs, what):
        futures = [pool.submit(function, one) for one in jobs]
        for future in tqdm(as_completed(futures), what, len(futures), disable=None, leave=False):
            future.result()
    with worker_pool(options.workers) as pool:
        taught = [job("teacher", 1)] if any(claim in TAUGHT for claim in claims) else []
        teachers = [pool.submit(teach, one) for one in taught]
        longer = [job("pretrained", seed) for seed in seeds if "pretrained" in students]
        work(student, [job("start", seed) for seed in (TUNING, *seeds)] + longer, "starts")
        rates = tuned(out, {family(arm) for arm in students}, job, work)

        def tests(arms):
            return [job(arm, seed, rates[family(arm)] if arm != "pretrained" else RATE)
                    for arm in arms for seed in seeds]
        work(test, tests(students), "students")
        for teacher in teachers:
            teacher.result()
        work(test, tests(later), "after")
        work(agree, tests(CONTROL if "6" in claims else ()), "teacher and students")
    return collect(options, size, rates, tests(students + later) + taught)


def tuned(out, families, job, work):
    """{family: learning rate} of the best mean accuracy in dev wrappers; kept in rates.json."""
    path = out / "rates.json"
    rates = read_json(path, REMEDY) if path.exists() else {"tried": {}}
    missing = sorted(families - set(rates))
    trials = {(arm, rate): job(arm, TUNING, rate, DEV) for arm in missing for rate in RATES}
    work(test, trials.values(), "learning rates")
    for arm in missing:
        tasks = [read_json(trials[arm, rate].test, REMEDY)["tasks"] for rate in RATES]
        tried = [round(claim_tables.mean_accuracy(found), 4) for found in tasks]
        rates["tried"][arm] = dict(zip(map(str, RATES), tried))
        rates[arm] = RATES[tried.index(max(tried))]
        write_json(path, rates)
    return rates


def collect(options, size, rates, jobs):
    """Writes results-WRAPPERS.jsonl, a head and a line a student -> its path."""
    stem, sizes = Path(options.wrappers).stem, size._asdict()
    command = ["python -m experiments.claims", *options.claims, f"--seeds={options.seeds}"]
    head = {"command": " ".join(command + [f"--{name}={value}" for name, value in sizes.items()]),
            "wrappers": stem, "sha256": sha256_of(options.wrappers), "size": sizes, "rates": rates,
            "seeds": options.seeds, "claims": options.claims, "torch": torch.__version__}
    rows = [head, *(read_json(job.test, REMEDY) for job in jobs)]
    path = Path(options.out_dir) / f"results-{stem}.jsonl"
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def parse(arguments):
    """The options, claims in the order of CLAIMS. ValueError names what is wrong."""
    parser = argparse.ArgumentParser(prog="claims", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=f"of {', '.join(CLAIMS)} [all]")
    parser.add_argument("--workers", type=int, default=2, help="processes side by side, one thread each [2]")
    parser.add_argument("--wrappers", default=str(DEV), help="how the tasks are worded [dev.json]")
    parser.add_argument("--out_dir", default="out/claims", help="folder of all that this makes [out/claims]")
    parser.add_argument("--show", metavar="FILE", help="print the tables of a file of results, and stop")
    for name, value in {"seeds": 3, **Size()._asdict()}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"[{value:,}]")
    options = parser.parse_args(arguments)
    for name in ("seeds", "workers", *Size._fields):
        check_range(name, getattr(options, name), above=0)
    for claim in options.claims:
        if claim not in CLAIMS:
            raise ValueError(f"claim {claim}; expected {', '.join(CLAIMS)}")
    options.claims = [claim for claim in CLAIMS if claim in options.claims or not options.claims]
    return options


def show(path):
    """Prints the tables of a file of results."""
    print("\n".join(map(printable, claim_tables.show(*claim_tables.read(path)))))


def main(arguments=None):
    """A run and its tables, or tables alone; ValueError or OSError for what the user can mend."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.show:
        return show(options.show)
    claim_items.read_wrappers(options.wrappers)
    size, out = Size(*(getattr(options, name) for name in Size._fields)), Path(options.out_dir)
    with folder_lock(out):
        open_run(out, size._asdict(), FILES)
        show(run(options, size))


if __name__ == "__main__":
    run_command(main)
