"""The claims of Basic Reading Distillation (Zhou et al., ACL 2025) from nothing: every arm, every seed, tables with errors.

    python course/claims.py                          # all of it, two hours on two cores; the same command goes on
    python course/claims.py 1 3 --seeds=3            # some claims: 1 to 8, mix, mends
    python course/claims.py --plan                   # arms, tokens, seeds and the core seconds they should take
    python course/claims.py --minutes=30             # as many tokens a student as fit
    python course/claims.py --wrappers=data/tasks/wrappers/final.json       # the same students on other wrappers
    python course/claims.py --show course/results/claims.jsonl              # the tables of runs that were kept

    1 blind: BRD against plain text      4 paragraphs against sentences             7 how much of it
    2 further training on plain text     5 before other distillations               8 blind, relaxed, supervised
    3 without entities, questions        6 how near to the teacher, by task         mix: plain text kept; mends: what was missing

How it is kept fair. All arms of a seed set out from one start (in claim 2 a longer one) with one vocabulary, and read the same
number of tokens, unless their line in ARMS (course/claim_arms.py) says otherwise; a table of arms that did not is refused.
Both families, plain text and reading, try the learning rates of RATES on a seed of its own, TUNING, and dev wrappers, and keep
the best by the mean accuracy of all tasks; an arm that changes something of BRD has BRD's rate. Candidates are balanced
(data/tasks/items.py). Items near to what any arm of that seed has read are counted and left out. Plain text holds the words of
the answers. What is measured: course/claim_tests.py; errors and tables: course/claim_tables.py.

Every finished student and test is a file in --out_dir; results-WRAPPERS.jsonl, one line a student, is made of them at the end.
Students are those of train.py: its start, its teacher, its one training loop.
"""

import argparse
import dataclasses
import json
import sys
from concurrent.futures import as_completed
from pathlib import Path

if not __package__:  # python course/claims.py: the modules stand one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm

import brd
import train
from course import claim_tables, claim_tests, pair, retelling
from experiments.claim_arms import ARMS, CLAIM_ARMS, CONTROL, RATE, TAUGHT, Job, Size, arms_of, config_of, family, rate_of, sources_of
from data import runs
from data.documents import PLAIN_TOKENS, course_tokenizer, plain_rows
from data.batches import plan_batches
from data.files import write_json
from data.files import read_json, sha256_of
from data.tasks import items
from model import GPT

RATES, TUNING = (0.005, 0.01, 0.02), 0      # learning rates tried, and the seed that they are chosen on
TEACHER = 1000                              # the seed of the teacher's texts
DEV = items.HERE / "wrappers" / "dev.json"
REMEDY = "remove it, and it is made again"


# --- one job, in a process of its own ---------------------------------------------------------------------------------------

def run_job(job):
    """Trains and tests one student, or trains the teacher; what is finished is taken from its files."""
    torch.set_num_threads(1)
    tokenizer, config = course_tokenizer("world", 1024), config_of(job)
    if job.arm == "teacher":
        return train_teacher(job, tokenizer, config)
    if job.result.exists():
        return
    if job.arm == "start":
        rows = plain_rows(list(items.plain(job.size.start // PLAIN_TOKENS + 1, f"{job.seed} start")), tokenizer)
        train.student("start", job.folder, None, lambda *_: ([rows], [1.0], [0.0]), config, tokenizer)
        return write_json(job.result, {"arm": job.arm, "seed": job.seed, "rate": job.rate})
    tasks = items.load_tasks(job.wrappers, job.seed, job.size.items)
    figures = {"arm": job.arm, "seed": job.seed, "rate": job.rate}
    if ":" in job.arm:
        first, setting = job.arm.split(":")
        model = model_of(job, first)
        figures |= claim_tests.learnt(model, tokenizer, tasks, setting, str(reader_folder(job)), job.seed)
    elif "+" in job.arm:
        figures |= after(job, tokenizer, tasks)
    else:
        figures |= train_and_test(job, config, tokenizer, tasks)
    write_json(job.result, figures)


def model_of(job, arm):
    """The finished student of another arm, of the same seed and with its own learning rate."""
    rate = read_json(Path(job.out) / "rates.json", REMEDY)[family(arm)]
    return GPT.load(job._replace(arm=arm, rate=rate).folder / "student", train.pick_device(config_of(job))[0]).eval()


def reader_folder(job):
    return Path(job.out) / "teacher" / "reader"


def train_teacher(job, tokenizer, config):
    """A reader, then the same after the task of claim 5, and that one's answers."""
    folder = Path(job.out) / "teacher"
    reads = job._replace(arm="brd", seed=TEACHER, size=job.size._replace(tokens=job.size.teacher))
    reader = train.train_teacher(reader_folder(job), tokenizer, config, lambda: sources_of(reads))
    config = dataclasses.replace(config, student_tokens=job.size.retelling)
    instructed = retelling.instructed_teacher(folder / "instructed", reader, tokenizer, config)
    retelling.sources(folder / "cache", instructed, tokenizer, config)
    path = folder / "results.json"
    if not path.exists():
        write_json(path, {"arm": "teacher", "seed": job.seed, "rate": job.rate,
                          "retelling": claim_tests.packed(retelling.test(instructed, tokenizer))})


def train_and_test(job, config, tokenizer, tasks):
    """An arm of ARMS from its start to its figures."""
    arm = ARMS[job.arm]
    before = job._replace(arm=arm.start, rate=RATE) if arm.start else None
    folder = before and before.folder / ("start" if arm.start == "start" else "student")
    start = before and GPT.load(folder, train.pick_device(config)[0])
    of = runs.made_of(f"student {job.arm}", config, tokenizer, "", **({"start": folder / "model.pt"} if before else {}))
    model = train.student("student", job.folder, start, lambda *_: sources_of(job), config, tokenizer, looks=False, of=of)
    sources, shares, begins = sources_of(job)
    tokens = config.student_tokens if arm.start else config.start_tokens
    plan = plan_batches(sources, shares, tokens, config.step_tokens, config.seed, begins)
    seen = [sum(batch.tokens for batch in plan if batch.source == s) for s in range(len(sources))]
    figures = {"seen": model.extra["tokens_seen"], "read": seen, "bits": round(train.plain_bits_per_byte(model, tokenizer), 5)}
    if arm.tests == "bits":
        return figures
    figures |= claim_tests.blind(model, tokenizer, tasks, control=job.arm in CONTROL and job.seed != TUNING)
    figures["near"] = claim_tests.near(tasks, sources, tokenizer)
    if arm.read != "plain":
        figures["reading"] = claim_tests.reading(model, tokenizer)
    return figures


def after(job, tokenizer, tasks):
    """Claim 5: a method of course/retelling.py applied to a student that has read plain text, or learnt basic reading."""
    first, method = job.arm.split("+")
    start, folder = model_of(job, first), Path(job.out) / "teacher"
    config = retelling.config_of(dataclasses.replace(config_of(job), seed=job.seed), job.size.retelling, method)
    teacher = GPT.load(folder / "instructed", train.pick_device(config)[0])
    source = retelling.sources(folder / "cache", teacher, tokenizer, config)[retelling.METHODS[method][0]]
    of = runs.made_of(f"student {job.arm}", config, tokenizer, "", start=pair.weights_hash(start), cache=folder / "cache" / "header.json")
    model = train.student("student", job.folder, start, lambda *_: ([source], [1.0], [0.0]), config, tokenizer, looks=False, of=of)
    return {"seen": model.extra["tokens_seen"], "retelling": claim_tests.packed(retelling.test(model, tokenizer, seed=job.seed)),
            **claim_tests.blind(model, tokenizer, tasks)}


def agree(job):
    """Claim 6: how near a finished student is to the teacher; a file beside its test."""
    path = job.folder / f"agreement-{Path(job.wrappers).stem}.json"
    if not path.exists():
        torch.set_num_threads(1)
        tokenizer, tasks = course_tokenizer("world", 1024), items.load_tasks(job.wrappers, job.seed, job.size.items)
        device = train.pick_device(config_of(job))[0]
        models = [GPT.load(where, device).eval() for where in (job.folder / "student", reader_folder(job))]
        write_json(path, claim_tests.agreement(*models, tokenizer, tasks))


# --- the driver ----------------------------------------------------------------------------------------------------------

def work(pool, function, jobs, what):
    """function(job) for every job, side by side."""
    futures = [pool.submit(runs.job, function, job) for job in jobs]
    for future in tqdm(as_completed(futures), what, len(futures), disable=None, leave=False):
        future.result()


def run(options, size):
    """Everything that the claims need and that is not there yet, then the file of results -> its path."""
    out, claims, seeds = Path(options.out_dir), options.claims, range(1, 1 + options.seeds)

    def job(arm, seed, rate=RATE, wrappers=options.wrappers):
        return Job(arm, seed, rate, str(out), str(wrappers), size)
    students, later = arms_of(claims)
    taught = any(claim in TAUGHT for claim in claims)
    with runs.processes(options.workers) as pool:
        teacher = pool.submit(runs.job, run_job, job("teacher", 1)) if taught else None
        work(pool, run_job, [job("start", seed) for seed in (TUNING, *seeds)], "starts")
        work(pool, run_job, [job("pretrained", seed) for seed in seeds if "pretrained" in students], "longer starts")
        rates = tuned(pool, out, {family(arm) for arm in students}, job)
        wanted = [job(arm, seed, rate_of(arm, rates)) for arm in students for seed in seeds]
        work(pool, run_job, wanted, "students")
        if teacher:
            teacher.result()
        work(pool, run_job, [job(arm, seed) for seed in seeds for arm in later], "after")
        compared = [one for one in wanted if "6" in claims and one.arm in CONTROL]
        work(pool, agree, compared, "teacher and students")
    return collect(out, options, size, rates, wanted + [job(arm, seed) for seed in seeds for arm in later], compared)


def tuned(pool, out, families, job):
    """{family: learning rate} by the mean of raw accuracies over the tasks, in dev wrappers; kept in rates.json."""
    path, trials = out / "rates.json", {(arm, rate): job(arm, TUNING, rate, DEV) for arm in ("brd", "plain") for rate in RATES}
    rates = read_json(path, REMEDY) if path.exists() else {"tried": {}}
    missing = sorted(families - set(rates))
    work(pool, run_job, [trials[arm, rate] for arm in missing for rate in RATES], "learning rates")
    for arm in missing:
        results = {rate: read_json(trials[arm, rate].result, REMEDY) for rate in RATES}
        rates["tried"][arm] = {f"{rate:g}": {"accuracy": round(claim_tables.mean_accuracy(r["tasks"]), 4), "bits": r["bits"]}
                               for rate, r in results.items()}
        rates[arm] = max(RATES, key=lambda rate: rates["tried"][arm][f"{rate:g}"]["accuracy"])
        write_json(path, rates)
    return rates


def collect(out, options, size, rates, jobs, compared):
    """Writes results-WRAPPERS.jsonl: a head, then a line a student."""
    rows = [read_json(job.result, REMEDY) for job in jobs]
    for job, row in zip(jobs, rows):
        seconds = job.folder / "student" / "seconds.json"
        row |= {"seconds": read_json(seconds, REMEDY)["training"]} if seconds.exists() else {}
    for job in compared:
        (row,) = (row for row in rows if (row["arm"], row["seed"]) == (job.arm, job.seed))
        row["agreement"] = read_json(job.folder / f"agreement-{Path(job.wrappers).stem}.json", REMEDY)
    if (out / "teacher" / "results.json").exists():
        rows.append(read_json(out / "teacher" / "results.json", REMEDY))
    stem = Path(options.wrappers).stem
    sizes = [f"--{name}={value}" for name, value in size._asdict().items() if value != Size._field_defaults[name]]
    asked = [] if options.claims == list(CLAIM_ARMS) else options.claims
    head = {"command": " ".join(["python course/claims.py", *asked, f"--seeds={options.seeds}", *sizes]), "wrappers": stem,
            "sha256": sha256_of(options.wrappers), "size": size._asdict(), "rates": rates,
            "seeds": options.seeds, "claims": options.claims, "torch": torch.__version__}
    path = out / f"results-{stem}.jsonl"
    beside = path.with_name(path.name + ".tmp")
    beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [head, *rows]), encoding="utf-8")
    runs.rename(beside, path)
    return path


# --- the plan ------------------------------------------------------------------------------------------------------------

# On one core, for the default size: tokens a second of students and teacher; seconds of a test with the text that it needs, of the
# control without paragraphs, of a task learnt from a few items.
SPEED, TEACHER_SPEED, TEST, CONTROLLED, LEARN = 11_000, 5_000, 18.0, 8.0, 5.0


def plan(claims, seeds, size, speed=SPEED):
    """[(what, students, tokens of each, core seconds of all)] of a run from nothing."""
    students, later = arms_of(claims)
    rows = [("start", seeds + 1, size.start, (seeds + 1) * size.start / speed)]
    families = {family(arm) for arm in students}
    tests = TEST * size.items / items.N
    for arm in sorted(families):
        rows.append((f"{arm}, {len(RATES)} rates", len(RATES), size.tokens, len(RATES) * (size.tokens / speed + tests)))
    for arm in students:
        tokens = size.tokens * ARMS[arm].tokens
        test = 1.0 if ARMS[arm].tests == "bits" else tests + CONTROLLED * (arm in CONTROL)
        rows.append((arm, seeds, round(tokens), seeds * (tokens / speed + test)))
    if any(claim in TAUGHT for claim in claims):
        seconds = size.teacher / (speed * TEACHER_SPEED / SPEED) + 5 * size.retelling / speed + 60
        rows.append(("teacher", 1, size.teacher, seconds))
    for arm in later:
        seconds = len(claim_tests.LEARNT) * LEARN if ":" in arm else size.retelling / speed + tests
        rows.append((arm, seeds, claim_tests.LABELS if ":" in arm else size.retelling, seeds * seconds))
    return rows


def print_plan(rows, workers):
    print(f"{'arm':26}{'students':>9}{'tokens':>12}{'core seconds':>14}")
    for what, n, tokens, seconds in rows:
        print(f"{what:26}{n:9}{tokens:12,}{seconds:14,.0f}")
    total = sum(seconds for *_, seconds in rows)
    print(f"{'in all':26}{sum(row[1] for row in rows):9}{sum(n * tokens for _, n, tokens, _ in rows):12,}{total:14,.0f}\n"
          f"about {total / workers / 60:.0f} minutes with {workers} at work")


def planned_tokens(options, size):
    """Tokens of a default student with which the run takes options.minutes; the speed is measured for some seconds."""
    torch.set_num_threads(1)
    job = Job("brd", 1, RATE, options.out_dir, str(options.wrappers), size._replace(tokens=100_000))
    tokenizer, config = course_tokenizer("world", 1024), config_of(job)
    speed = 0.9 * train.speed(train.new_model(size.n_layer, size.n_embd, tokenizer, config), sources_of(job)[0][2], config)
    small, large = (sum(s for *_, s in plan(options.claims, options.seeds, size._replace(tokens=t), speed)) for t in (0, 1_000_000))
    return max(20_000, int((60 * options.minutes * options.workers - small) / (large - small) * 1_000_000))


def parse(arguments):
    """The options, claims in the order of CLAIM_ARMS. ValueError names what is wrong."""
    parser = argparse.ArgumentParser(prog="claims.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=f"of {', '.join(CLAIM_ARMS)} [all]")
    parser.add_argument("--seeds", type=int, default=3, help="students of every arm [3]")
    parser.add_argument("--minutes", type=float, default=0.0, help="tokens are planned so that it takes so long")
    parser.add_argument("--workers", type=int, default=2, help="processes side by side, one thread each [2]")
    parser.add_argument("--wrappers", default=str(DEV), help="how the tasks are worded [%(default)s]")
    parser.add_argument("--out_dir", default="out/claims", help="the folder of everything this makes [out/claims]")
    parser.add_argument("--plan", action="store_true", help="say what would be done, and stop")
    parser.add_argument("--show", metavar="FILE", help="print the tables of a file of results, and stop")
    for name, value in Size()._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"[{value:,}]")
    options = parser.parse_args(arguments)
    wrong = [claim for claim in options.claims if claim not in CLAIM_ARMS]
    numbers = {"seeds": options.seeds, "workers": options.workers, **{name: getattr(options, name) for name in Size._fields}}
    low = [name for name, value in numbers.items() if value < 1]
    if wrong or low or options.minutes < 0:
        raise ValueError(f"claim {wrong[0]}; expected {', '.join(CLAIM_ARMS)}" if wrong else
                         f"--{(low or ['minutes'])[0]}: expected more than nothing")
    options.claims = [claim for claim in CLAIM_ARMS if claim in options.claims or not options.claims]
    return options


def main(arguments=None):
    """A run, its plan, or its tables; raises ValueError or OSError, in one line, for what the user can mend."""
    options = parse(arguments)
    if options.show:
        head, rows = claim_tables.read(options.show)
        return print("\n".join(map(printable, claim_tables.show(head, rows))))
    items.read_wrappers(options.wrappers)
    size, out = Size(**{name: getattr(options, name) for name in Size._fields}), Path(options.out_dir)
    note = out / "size.json"
    known = Size(**read_json(note, "use another --out_dir")) if note.exists() else None
    if options.minutes:
        size = size._replace(tokens=known.tokens if known else planned_tokens(options, size))
    print_plan(plan(options.claims, options.seeds, size), options.workers)
    if options.plan:
        return
    if known and known != size:
        raise ValueError(f"{note}: this folder has students of another size, {known}; use another --out_dir")
    write_json(note, size._asdict())
    with runs.held(out):
        path = run(options, size)
    head, rows = claim_tables.read(path)
    print("\n".join(claim_tables.show(head, rows)))
    print(printable(claim_tables.pictures(out, head, rows)))


if __name__ == "__main__":
    runs.command(main)
