"""out/report.html of a finished run: one file that opens without a network, made from results.json, the
checkpoints and the teacher's cache alone.

    python -m experiments.report out                                       # writes out/report.html
    python -m experiments.report out --pictures=experiments/pictures       # and the README's pictures, as PNG

Pictures need matplotlib (pip install -e ".[plot]"); the rest of the page stands without. Whatever comes from a
text, a student or an option goes through `escape`, and the page forbids every script and every address.
"""

import argparse
import contextlib
import io
import random
from html import escape
from pathlib import Path

import torch

import brd
import td_distill
import train
from data import cache_tools
from data.annotations import marked, parse_entities
from data.cache import TeacherCache
from data.cli import printable, run_command
from data.documents import held_out_records
from data.figures import thinned
from data.files import read_json, write_text
from data.report import READING, report, table
from data.tokenizer import Tokenizer
from experiments import plots
from model import GPT

PARAGRAPHS, LONGEST = 4, 22     # shown as each student reads them; tokens of a teacher's answer that is shown
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>nanoreader: report</title><style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { margin: 0 auto; max-width: 68rem; padding: 1rem }
h2 { border-top: 1px solid gray; margin-top: 2.5rem; padding-top: 1rem }
svg { width: 100%; max-width: 34rem; height: auto }
pre { white-space: pre-wrap; overflow-wrap: anywhere }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1.5rem 0; font-size: .9rem }
th, td { padding: .2rem 1rem .2rem 0; text-align: right; vertical-align: top }
tbody th { font-weight: 400; text-align: left } tbody th[colspan] { font-weight: 600 }
.text td { text-align: left; min-width: 14rem } small { display: block }
</style></head><body>
<h1>What the students learnt to read</h1>
"""
READ = """<p>Each student reads the paragraph sentence by sentence, its own output in its context. Behind each
question stands the right answer.</p>"""
UNROLLED = """<p>V_p is the logarithm of the student's mass in the teacher's set, in nats: 0 where nothing leaks. The
residual log pi(a|s) - gamma V_p(s') is the reward of the token that the student implies; Bellman Distill squares
it. In the picture the thick bars are the teacher's set, the thin ones the student on the same tokens.</p>"""


def load_student(folder):
    return GPT.load(folder).eval(), Tokenizer.load(folder)


# --- a teacher's answer ---------------------------------------------------------------------------------------


def choose_document(cache):
    """The first document of one sentence with an answer, of at most LONGEST drawn tokens and with sets that are
    not smaller than those of the cache on average. ValueError where there is none."""
    names, kept = cache.header["roles"], cache.header["kept"] / max(1, cache.header["drawn"])
    for d in range(len(cache)):
        _, roles, counts, *_ = cache.document(d)
        roles, drawn = [names[role] for role in roles], int((counts > 0).sum())
        if "answer" in roles and roles.count("sep") == 2 and counts.sum() >= kept * drawn and 0 < drawn <= LONGEST:
            return d
    raise ValueError(f"{cache.folder}: no reading of one sentence with an answer in {LONGEST} tokens")


@torch.no_grad()
def unrolled(cache, d, model, tokenizer, p, gamma):
    """Document d of a teacher's cache, token by token -> (text before, steps). A step is a drawn token:

    {"token": str, "kept": [(token, was it drawn, teacher's probability, student's), ...] the set A_p, most
     probable first, "value": V_p(s) = log of the student's mass in A_p, which is the leak with its sign turned,
     "residual": log pi(a|s) - gamma V_p(s'), None where it is not known}, as in bellman_distill."""
    rows, roles = cache.batch([d]), cache.header["roles"]
    mask = td_distill.restrict_to_p(rows["log_probs"], rows["mask"], p)
    terminal = torch.isin(rows["roles"], torch.tensor([roles.index("sep"), roles.index("end")]))
    taken, ids, log_probs, mask, terminal = (
        x[:, 1:] for x in (rows["tokens"], rows["ids"], rows["log_probs"], mask, terminal))
    student = td_distill.student_terms(model(rows["tokens"][:, :-1]), ids, taken)
    teacher = td_distill.TeacherSets(log_probs, mask, ids == taken[..., None], terminal)   # (1, T - 1, K)
    residual, _, _, leak, known = (x[0].tolist() for x in td_distill.bellman_terms(
        student, teacher, torch.ones_like(student.z_a), gamma, gauge="log_softmax"))
    log_s = student.z_K - student.log_Z[..., None]

    def label(token):
        return printable(tokenizer.decode([int(token)]).replace("\n", "↵").replace(" ", "␣"))

    def step(t):
        kept = [(label(ids[0, t, k]), bool(ids[0, t, k] == taken[0, t]), log_probs[0, t, k].exp().item(),
                 log_s[0, t, k].exp().item()) for k in mask[0, t].nonzero()[:, 0]]
        return {"token": label(taken[0, t]), "kept": kept, "value": -leak[t],
                "residual": residual[t] if known[t] else None}
    drawn = mask[0].any(-1).nonzero()[:, 0].tolist()
    return tokenizer.decode(rows["tokens"][0, :drawn[0] + 1].tolist()), [step(t) for t in drawn]


# --- HTML -----------------------------------------------------------------------------------------------------


def html_table(rows, head, kind=""):
    """Rows (label, cells) of HTML, below `head`; a row without cells is a heading over those that follow."""
    def line(label, cells, tag="td"):
        if not cells:
            return f'<tr><th colspan="9">{label}</th></tr>'
        return f"<tr><th>{label}</th>" + "".join(f"<{tag}>{text}</{tag}>" for text in cells) + "</tr>"
    body = "".join(line(*row) for row in rows)
    return f'<table class="{kind}"><thead>{line("", head, "th")}</thead><tbody>{body}</tbody></table>'


def steps_table(steps):
    """The steps of `unrolled`, a row each."""
    def row(step):
        residual = "-" if step["residual"] is None else f"{step['residual']:.3f}"
        mass = sum(kept[2] for kept in step["kept"])
        return escape(step["token"]), [len(step["kept"]), f"{mass:.3f}", f"{step['value']:.3f}", residual]
    return html_table(map(row, steps), ["kept", "mass", "V_p", "residual"])


def sentence_cell(record, entities):
    """A sentence with a student's entities, "[Anna|person] left.", and below it which are wrong or missed."""
    found, right = ({(e["text"], e["type"]) for e in group} for group in (entities, record["entities"]))
    html = escape(marked(record["text"], entities))
    for sign, pairs in (("✗ wrong", found - right), ("missed", right - found)):
        if pairs:
            html += f"<small>{sign}: {escape('; '.join(map(', '.join, sorted(pairs))))}</small>"
    return html


def text_tables(paragraphs, names, readings):
    """Paragraphs (lists of records) as each student reads them, a column a student. readings: for each name what
    brd.free_reading and brd.free_answers return."""
    html = ""
    for p, paragraph in enumerate(paragraphs):
        rows, answers = [], [iter(told[p]) for _, told in readings]
        for k, record in enumerate(paragraph):
            rows.append(("", [sentence_cell(record, parse_entities(found[p][k])) for found, _ in readings]))
            for item in record["questions"]:
                told, right = [next(student)[1] for student in answers], item["answer"]
                rows.append((f"{escape(item['question'])} <i>{escape(right)}</i>",
                             [f"{'✓' if text == right else '✗'} {escape(text)}" for text in told]))
        html += html_table(rows, names, "text")
    return html


def read_paragraphs(out, names):
    """The section of text as students read it; ValueError where a checkpoint is missing."""
    paragraphs, readings = held_out_records(PARAGRAPHS, "page"), []
    for name in names:
        model, tokenizer = load_student(out / name)
        sentences = [[record["text"] for record in paragraph] for paragraph in paragraphs]
        readings.append((brd.free_reading(model, tokenizer, sentences, "ner"),
                         brd.free_answers(model, tokenizer, paragraphs, random.Random(0))))
    return text_tables(paragraphs, names, readings)


# --- the page -------------------------------------------------------------------------------------------------


def drawings(students, steps):
    """{name: (alt text, function of plots.py, size in inches, what it draws)}; steps: of `unrolled`, or None."""
    found = {}
    if "sample" not in students["plain"]:
        found["reading"] = ("Entity F1 and answers right against tokens, a line a student; ends: the table below.",
                            plots.draw_reading, (4.6, 4.8), students)
        found["students"] = ("Bars with standard errors: the figures of the table.", plots.draw_students,
                             (4.6, 2.8 + 0.36 * len(students["plain"]["blind"])), students)
    if steps:
        found["top_p"] = ("The tokens of the table below, each with its set as bars.", plots.draw_unrolled,
                          (4.6, 0.9 + 0.27 * len(steps)), steps)
    return found


def sections(out, results, attempt, pictures):
    """Yields (title, HTML). attempt(f) is f(), or None where that fails, and a line on the page."""
    students, config, answer = results["students"], results["config"], None
    if "distilled" in students:
        folder = config["cache"] or train.TEACHER
        cache = attempt(lambda: TeacherCache(folder, tokenizer_hash=results["tokenizer"]))
        answer = cache and attempt(lambda: unrolled(cache, choose_document(cache), *load_student(out / "distilled"),
                                                    config["p"], config["gamma"]))
    wanted = drawings(students, answer and answer[1])
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
        for name, drawing in wanted.items():
            plots.picture(pictures / f"{name}.png", "png", *drawing[1:])
    drawn = attempt(lambda: {name: plots.svg(*drawing) for name, drawing in wanted.items()}) or {}
    if "sample" in students["plain"]:
        yield "A text of your own", f"<pre>{escape(report(results))}</pre>"
    else:
        rows = [(escape(label), list(map(escape, cells))) for label, cells in table(students)]
        yield "The students", drawn.get("reading", "") + drawn.get("students", "") + html_table(rows, students)
        yield "Held-out text, as each student reads it", READ + (attempt(lambda: read_paragraphs(out, list(students))) or "")
    if answer:
        yield "A teacher's answer, token by token", (f"<p>The teacher read:</p><pre>{escape(answer[0])}</pre>{UNROLLED}"
                                                     + drawn.get("top_p", "") + steps_table(answer[1]))
    losses = [(name, [f"{loss:.3f}" for loss in thinned(s["loss_curve"], 10)]) for name, s in students.items()]
    yield "Training losses, nats", html_table(losses, [f"{10 * i}%" for i in range(1, 1 + len(losses[0][1]))])
    if "distilled" in students and cache:
        with contextlib.redirect_stdout(io.StringIO()) as told:
            cache_tools.inspect(folder)
        yield "The teacher's cache", f"<pre>{escape(told.getvalue())}</pre>"


def write_page(out, pictures=None):
    """Writes report.html into the folder of a run, and PNGs into the folder `pictures` -> path of the page."""
    results, notes = read_json(out / "results.json", "python train.py writes it at the end of a run"), []

    def attempt(function):
        try:
            return function()
        except (ValueError, OSError, ImportError) as error:
            notes.append(f"<p>Left out: {escape(str(error))}</p>")

    parts = [f"<h2>{title}</h2>{html}" for title, html in sections(out, results, attempt, pictures)]
    options = " ".join(f"--{name}={value}" for name, value in results["config"].items() if value not in ("", False))
    head = f"<p>python train.py {escape(options)}</p>" + "".join(notes)
    write_text(out / "report.html", "\n".join([PAGE, head, *parts]) + "</body></html>\n")
    return out / "report.html"


def main(arguments=None):
    """The command; ValueError or OSError for a folder that cannot be shown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the --out_dir of a finished run")
    parser.add_argument("--pictures", type=Path, help="also write the README's pictures into this folder, as PNG")
    options = parser.parse_args(arguments)
    print(printable(str(write_page(options.out, options.pictures))))


if __name__ == "__main__":
    run_command(main)
