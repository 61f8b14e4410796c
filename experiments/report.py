"""The report of a run: the tables as text, and report.html, one file that holds everything and opens without a network.

    python course/report.py out                               # out/report.html, from what `python train.py` left in out
    python course/report.py out --pictures=course/pictures    # and the three pictures of the README, as PNG

`python train.py` ends with it. The page has the reading curve, the students' table, held-out text as each student reads it,
a teacher's answer with its top-p sets token by token, the losses with what to expect, and what the cache holds.
The pictures need matplotlib (pip install -e ".[plot]"); without it the tables and the page of read text still stand.

Whatever comes from a text, a student or an option goes through `escape`, and the page itself forbids every script and every
address. The pictures are drawn in course/plots.py.
Shapes: B documents, T positions, K teacher tokens kept.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import random
import shlex
import sys
from collections import defaultdict
from html import escape
from itertools import chain
from pathlib import Path

import numpy as np
import torch

if not __package__:  # python course/report.py: the modules stand one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import brd
import td_distill
from course import pages, plots
from data import reads, world
from data.cache import TeacherCache
from data.files import verify
from data.files import read_json
from data.tokenizer import Tokenizer
from model import GPT

GLANCED, PRINTED = 12, 4   # paragraphs in a short look at a student; on the page of read text
REMEDY = "that run again, with --redo, writes them anew"
README_PICTURES = ("reading", "students", "top_p")
TEACHER = Path(__file__).resolve().parents[1] / "data" / "teacher"
SHOWN = {"entity_f1": "entity F1", "answer.wh": "wh questions, exact", "answer.yes_no": "yes/no questions, exact",
         "answer.attitude": "attitude, exact", "raised.right": "own questions, right"}


# --- files, and what a run notes on its way ----------------------------------------------------------------------------

def write_text(path, text):
    """Write beside, then rename: a reader never meets half a file."""
    beside = path.with_name(path.name + ".tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError:  # a full disk
        beside.unlink(missing_ok=True)
        raise


def thinned(losses, n=200):
    """At most n means of neighbours, of a list of any length above 0: a loss curve that is small and not jagged."""
    return [round(float(np.mean(part)), 4) for part in np.array_split(losses, min(n, len(losses)))]


def held_out(n, seed):
    """n fresh paragraphs as lists of records; none of their (person, argument) pairs is told in any training text."""
    rng = random.Random(seed)
    return [world.annotate(rng, world.draw_paragraph(rng, world.FULL, split="test"), i) for i in range(n)]


def read(model, tokenizer, paragraphs):
    """(entity lines of every sentence, (question, answer) pairs of every paragraph) in free running; see brd.py."""
    sentences = [[record["text"] for record in paragraph] for paragraph in paragraphs]
    answers = brd.free_answers(model, tokenizer, paragraphs, random.Random(0), brd.ALL_FORMS)
    return brd.free_reading(model, tokenizer, sentences, "ner"), answers


def glance(model, tokenizer, n=GLANCED):
    """A short look at how a student reads, for the reading curve -> {"entity_f1": .., "answer.wh": .., ...}.

    Defined as in brd.test_reading, on n paragraphs only and without the student's own questions. Nothing is drawn at random
    but the text, with a generator of its own, so training goes on as if nobody had looked."""
    paragraphs, sums = held_out(n, "glance"), defaultdict(lambda: np.zeros(2))
    found, answers = read(model, tokenizer, paragraphs)
    counted = [brd.count_entities(*pair) for paragraph, texts in zip(paragraphs, found) for pair in zip(paragraph, texts)]
    counted += [brd.count_answer(*pair) for pairs in answers for pair in pairs]
    for name, a, b, _ in chain.from_iterable(counted):
        sums[name] += a, b
    return {name: round(float(sums[name][0] / sums[name][1]), 4) for name in SHOWN if sums[name][1]}


# --- the tables, as text -----------------------------------------------------------------------------------------------

def figure(entry):
    """A figure with its standard error over the items of this run."""
    return "-" if not entry or entry["value"] is None else f"{entry['value']:.3f} ±{entry['se'] or 0:.3f}"


def accuracy(task):
    """A blind task's accuracy, as an entry for `figure`."""
    return {"value": task["accuracy"], "se": task["se"]}


def table(students):
    """The lines of the table: (label, [a cell a student]); a heading has no cells."""
    everyone = students.values()
    titles = {"single": "single sentences", "paragraph": "paragraphs, two people", "corpus": "held-out paragraphs of the corpus"}
    for place, title in [(place, title) for place, title in titles.items() if place in students["plain"]["reading"]]:
        yield f"reading {title}, free-running", []
        yield from ((f"  {label}", [figure(s["reading"][place].get(name)) for s in everyone]) for name, label in SHOWN.items())
    yield "blind tasks (n, chance)", []
    for name, task in students["plain"]["blind"].items():
        yield f"  {name} ({task['n']}, {task['chance']:.2f})", [figure(accuracy(s["blind"][name])) for s in everyone]
    yield "", []
    yield "plain text, bits a byte", [f"{s['plain_bits_per_byte']:.3f}" for s in everyone]
    yield "tokens seen", [f"{s['tokens_seen']:,}" for s in everyone]


def report(results):
    """The tables of a run, as text."""
    students = results["students"]
    if "reading" not in students["plain"]:
        plain = students["plain"]
        return (f"{plain['bits_per_byte']:.3f} bits per byte of held-out text, after {plain['tokens_seen']:,} tokens\n\n"
                "--- a sample that continues the first held-out words\n" + "\n".join(map(printable, plain["sample"].split("\n"))))
    lines = []
    for label, cells in [("", students), *table(students)]:
        lines += [f"{label:38}" + "".join(f"{cell:>14}" for cell in cells)] if cells else [""] + [label] * bool(label)
    return "\n".join(map(printable, lines))


# --- what the page shows of a student and of the cache -----------------------------------------------------------------

def open_student(out, name):
    return GPT.load(out / name).eval(), Tokenizer.load(out / name)


def choose_document(cache, longest=22):
    """The document to look at: of those with one sentence, one answer at least and at most `longest` drawn tokens, the one
    that keeps a middling number of tokens. ValueError where there is none."""
    starts, roles, counts = cache.starts[:-1], np.asarray(cache.arrays["roles"]), np.asarray(cache.arrays["counts"], np.int64)
    role, sums = cache.header["roles"].index, lambda values: np.add.reduceat(values.astype(np.int64), starts)  # one a document
    drawn, kept = sums(counts > 0), sums(counts)
    fits = (drawn > 0) & (drawn <= longest) & (sums(roles == role("answer")) > 0) & (sums(roles == role("sep")) == 2)
    if not fits.any():
        raise ValueError(f"{cache.folder} holds no reading of one sentence with an answer, in at most {longest} tokens")
    documents = fits.nonzero()[0]
    return int(documents[kept[documents].argsort(kind="stable")[len(documents) // 2]])


@torch.no_grad()
def unrolled(cache, d, model, tokenizer, p, gamma):
    """Document d of a teacher's cache, token by token -> (text before, steps). A step is a token that the teacher drew:

    {"token": str, "kept": [(token, was it drawn, teacher's probability, student's), ...] the set A_p, most probable first,
     "value": V_p(s) = log of the student's mass in A_p, in nats, which is the leak with its sign turned,
     "residual": log pi(a|s) - gamma V_p(s'), None where it is not known}, as in bellman_distill with gauge="log_softmax"."""
    batch, roles = cache.batch([d]), cache.header["roles"]
    ids, targets, role = batch["ids"][:, 1:], batch["tokens"][:, 1:], batch["roles"][:, 1:]
    log_t, mask = batch["log_probs"][:, 1:], reads.narrow(batch["log_probs"], batch["mask"], p)[:, 1:]      # (1, T-1, K)
    z_K, z_a, log_Z = td_distill.student_terms(model.logits(model.hidden(batch["tokens"][:, :-1])), ids, targets)
    terminal = (role == roles.index("sep")) | (role == roles.index("end"))
    residual, _, _, leak, known = td_distill.bellman_terms(
        z_K, z_a, log_Z, mask, ids == targets[..., None], terminal, torch.ones_like(z_a), gamma, gauge="log_softmax")
    label = lambda i: visible(tokenizer.decode([int(i)]))
    steps = [{"token": label(targets[0, t]), "value": -float(leak[0, t]), "residual": float(residual[0, t]) if known[0, t] > 0 else None,
              "kept": [(label(ids[0, t, k]), bool(ids[0, t, k] == targets[0, t]), float(log_t[0, t, k].exp()),
                        float((z_K[0, t, k] - log_Z[0, t]).exp())) for k in mask[0, t].nonzero()[:, 0].tolist()]}
             for t in mask[0].any(-1).nonzero()[:, 0].tolist()]
    before = int(mask[0].any(-1).nonzero()[0, 0]) + 1
    return tokenizer.decode(batch["tokens"][0, :before].tolist()), steps


def visible(token):
    """A token as a label: its space as ␣, its line break as ↵, no other control character."""
    return printable(token.replace("\n", "↵").replace(" ", "␣"))


# --- the page ----------------------------------------------------------------------------------------------------------

def command(config):
    """The command that makes this run again, from its options."""
    from train import Config  # here, because train.py imports this file
    skipped = {"redo", "device", "threads"} | ({"student_tokens"} if config.get("minutes") else set())
    return shlex.join(["python", "train.py"] + [f"--{f.name}={config[f.name]}" for f in dataclasses.fields(Config)
                                              if f.name not in skipped and config.get(f.name, f.default) != f.default])


def open_cache(out, tokenizer_hash):
    """(the cache that this run's student learnt from, its figures as `td_distill.py inspect` tells them)."""
    folder = out / "cache" if (out / "cache" / "header.json").exists() else TEACHER
    with contextlib.redirect_stdout(io.StringIO()):
        return Cache(folder, tokenizer_hash=tokenizer_hash), td_distill.inspect(folder)


def drawings(results, answer, cache):
    """{name: (alt text, function of plots.py, size in inches, what it draws)}; answer and cache as in `gather`."""
    students, found, width = results["students"], {}, 4.6

    def entries(take):  # of every student
        return {name: take(s) for name, s in students.items()}

    def told(rows):     # for those who do not see the bars
        return "; ".join(f"{label}: " + ", ".join(f"{name} {figure(entry)}" for name, entry in bars.items()) for label, _, bars in rows)

    if "reading" in students["plain"]:
        reading = [(label, None, entries(lambda s: s["reading"]["paragraph"].get(key))) for key, label in SHOWN.items()]
        blind = [(task, seen["chance"], entries(lambda s: accuracy(s["blind"][task]))) for task, seen in students["plain"]["blind"].items()]
        found["reading"] = (f"Reading of each student against tokens read. At the end, {told(reading[:3])}.",
                            plots.draw_reading, (width, 4.8), students)
        found["students"] = (f"Bars with standard errors. Reading paragraphs, {told(reading)}. Blind tasks, {told(blind)}.", plots.draw_students,
                             (width, 1 + 0.36 * len(reading + blind)), {"reading paragraphs": reading, "blind tasks (line: chance)": blind})
    if answer:
        tokens = ", ".join(f"{step['token']} ({len(step['kept'])} kept, V_p {step['value']:.2f})" for step in answer[1])
        found["top_p"] = (f"A teacher's answer token by token: {tokens}.", plots.draw_unrolled, (width, 0.9 + 0.27 * len(answer[1])), answer[1])
    if all(s.get("loss_curve") for s in students.values()):
        last = ", ".join(f"{name} {s['loss_curve'][-1]:.3g}" for name, s in students.items())
        found["losses"] = f"Training loss against the part of the run; at the end {last}.", plots.draw_losses, (width, 3), students
    if cache:
        counts = np.asarray(cache[0].arrays["counts"])
        sizes = f"{(counts == 1).sum() / (counts > 0).sum():.0%} of the sets have one token, the largest has {counts.max()}"
        found["sizes"] = f"How many tokens a set keeps: {sizes}.", plots.draw_sizes, (width, 2.6), counts
    return found


def gather(out, results):
    """What is shown beside the results -> (readings, answer, cache, lines about what is missing): readings {student: what
    `read` returned}, answer (text, steps) of `unrolled`, cache (Cache, figures); each None where its files are not there."""
    missing, config = [], results["config"]

    def attempt(what, make):
        try:
            return make()
        except (ValueError, OSError) as error:
            missing.append(f"{what}: {error}")

    if "reading" not in results["students"]["plain"]:
        return None, None, None, missing
    cache = attempt("No cache statistics", lambda: open_cache(out, results["tokenizer"]))
    answer = cache and attempt("No teacher's answer", lambda: unrolled(
        cache[0], choose_document(cache[0]), *open_student(out, "distilled"), config["p"], config["gamma"]))
    readings = attempt("No page of read text", lambda: {
        name: read(*open_student(out, name), held_out(PRINTED, "page")) for name in results["students"]})
    return readings, answer, cache, missing


def section(title, words, drawn="", wide=""):
    """A part of the page: a picture and what there is to say, side by side where there is room, and what is wide below."""
    picture = f"<figure>{drawn}</figure>" if drawn else ""
    return f'<section><h2>{title}</h2><div class="two">{picture}<div>{words}</div></div>{wide}</section>\n'


def page(results, readings, answer, cache, drawn, missing):
    """report.html as text; drawn: {name: SVG}; the others as in `gather`. A part that is None is left out."""
    students, config, plain, parts = results["students"], results["config"], results["students"]["plain"], []
    made = pages.code(command(config))
    drawn = {name: f'{picture}<figcaption class="note">Made by {made}</figcaption>' for name, picture in drawn.items()}
    if "reading" in plain:
        words = pages.READING.format(n=GLANCED, tests=config["test_paragraphs"])
        parts.append(section("Reading, against tokens", words, drawn.get("reading")))
        parts.append(section("The students", pages.html_table(list(table(students)), list(students)), drawn.get("students")))
    else:
        words = f"{plain['bits_per_byte']:.3f} bits per byte of held-out text, after {plain['tokens_seen']:,} tokens."
        parts.append(section("A text of your own", f"<p>{words} A sample that continues the first held-out words:</p>",
                             wide=f"<pre>{escape(plain['sample'])}</pre>"))
    if readings:
        side_by_side = pages.read_page(held_out(PRINTED, "page"), readings)
        parts.append(section("Held-out text, as each student reads it", pages.READ, wide=side_by_side))
    if answer:
        rows = [(step["token"], [str(len(step["kept"])), f"{sum(kept[2] for kept in step['kept']):.3f}", f"{step['value']:.3f}",
                                 "-" if step["residual"] is None else f"{step['residual']:.3f}"]) for step in answer[1]]
        words = pages.UNROLLED.format(text=escape(answer[0]), gamma=config["gamma"])
        words += pages.html_table(rows, ("kept", "mass", "V_p", "residual"))
        parts.append(section("A teacher's answer, token by token", words, drawn.get("top_p")))
    if "losses" in drawn:
        parts.append(section("The losses", pages.EXPECT if "reading" in plain else "", drawn["losses"]))
    if cache:
        rows = [(name.replace("_", " "), [f"{value:,}" if isinstance(value, int) else f"{value:.4g}"]) for name, value in cache[1].items()]
        parts.append(section("The teacher's cache", pages.CACHE + pages.html_table(rows), drawn.get("sizes")))
    run = [f"seed {config['seed']}", f"{results['threads']} threads"]
    run += [f"{name} {version}" for name, version in results["versions"].items()]
    told = "".join(f'<p class="missing">{escape(line)}</p>' for line in missing)
    return pages.PAGE.format(css=pages.CSS, command=made, run=escape(", ".join(run)), missing=told, parts="".join(parts))


def read_results(path):
    """The results.json of a run -> dict; ValueError where it is damaged, or of something else."""
    results = read_json(path, REMEDY)
    try:
        _ = results["config"]["seed"], results["versions"].items(), report(results)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{path}: not the results of a run of train.py; {REMEDY}") from None
    return results


def write_page(out, pictures=None):
    """Write report.html into the folder of a run, and into a folder `pictures` the README's PNGs. Returns the page's path.
    ValueError for a folder without a finished run; ImportError where PNGs are wanted and matplotlib is missing."""
    path = out / "results.json"
    if not path.exists():
        raise ValueError(f"{out}: no results.json, so no finished run; python train.py --out_dir={out} makes one")
    verify(out)
    results = read_results(path)
    results["config"]["out_dir"] = str(out)
    readings, answer, cache, missing = gather(out, results)
    wanted, drawn = drawings(results, answer, cache), {}
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
        for name in [name for name in README_PICTURES if name in wanted]:
            plots.picture(pictures / f"{name}.png", "png", *wanted[name][1:])
    try:
        drawn = {name: plots.svg(*drawing) for name, drawing in wanted.items()}
    except ImportError:
        missing.append(f'No pictures, because matplotlib is missing: pip install -e ".[plot]" and python course/report.py {out}')
    write_text(out / "report.html", page(results, readings, answer, cache, drawn, missing))
    return out / "report.html"


def page_line(out):
    """Write the page and say so in one line, or why not: a run that took long must not fail at its picture book."""
    try:
        return printable(f"{write_page(Path(out))} shows them in pictures")
    except Exception as error:
        return printable(f"no report.html: {type(error).__name__}: {error}".split("\n")[0])


def main(arguments=None):
    """The command; exit code 2 and one line for a folder that cannot be shown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the --out_dir of a finished run")
    parser.add_argument("--pictures", type=Path, help="also write the README's pictures into this folder, as PNG")
    options = parser.parse_args(arguments)
    try:
        print(printable(str(write_page(options.out, options.pictures))))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
