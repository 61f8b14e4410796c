"""out/report.html of a finished run: one file that opens without a network, made from results.json, the
checkpoints and the teacher's cache alone.

    python -m experiments.report out                                       # writes out/report.html
    python -m experiments.report out --pictures=experiments/pictures       # and the README's pictures, as PNG

The pictures need matplotlib: pip install -e ".[plot]". Whatever comes from a text, a student or an option
goes through `escape`, and the page forbids every script and every address.
"""

import argparse
import random
from html import escape
from pathlib import Path

import torch

import brd
import td_distill
import train
from data.annotations import marked, parse_entities
from data.cache import TeacherCache
from data.cli import printable, run_command
from data.documents import held_out_records
from data.figures import thinned
from data.files import read_json, write_text
from data.report import report, table
from data.sets import restrict_to_p
from data.tokenizer import Tokenizer
from experiments import plots
from model import GPT

PARAGRAPHS, LONGEST = 4, 22     # shown as students read them; tokens in the teacher's answer that is shown
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>nanoreader: report</title><style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { margin: 0 auto; max-width: 68rem; padding: 1rem }
h2 { border-top: 1px solid gray; margin-top: 2.5rem; padding-top: 1rem }
svg { width: 100%; max-width: 34rem; height: auto } pre { white-space: pre-wrap; overflow-wrap: anywhere }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1.5rem 0; font-size: .9rem }
th, td { padding: .2rem 1rem .2rem 0; text-align: right; vertical-align: top }
tbody th { font-weight: 400; text-align: left }
.text td { text-align: left; min-width: 14rem } small { display: block }
</style></head><body>
<h1>What the students learnt to read</h1>
"""
UNROLLED = """<p>V_p: log of the student's mass in the teacher's set, 0 where nothing leaks. Residual:
log pi(a|s) - gamma V_p(s'), the implied reward. Thick bars: the set; thin bars: the student on it.</p>"""


def load_student(folder):
    return GPT.load(folder).eval(), Tokenizer.load(folder)


def choose_document(cache):
    """The first document of one sentence with an answer of at most LONGEST drawn tokens, whose sets are not
    smaller than those of the cache on average; None where there is none."""
    names, mean = cache.header["roles"], cache.header["kept"] / max(1, cache.header["drawn"])
    for d in range(len(cache)):
        _, roles, counts, *_ = cache.document(d)
        roles, drawn = [names[role] for role in roles], int((counts > 0).sum())
        short = "answer" in roles and roles.count("sep") == 2 and 0 < drawn <= LONGEST
        if short and counts.sum() >= mean * drawn:
            return d


@torch.no_grad()
def unrolled(cache, d, model, tokenizer, config):
    """Document d of a teacher's cache, token by token -> (text before, steps), a step for a drawn token:

    {"token": str, "kept": [(token, was it drawn, teacher's probability, student's), ...] the set A_p, most
     probable first, "value": V_p(s) = log of the student's mass in A_p, "residual": log pi(a|s) - gamma
     V_p(s'), None where it is not known}. config: p and gamma."""
    rows, roles = cache.batch([d]), cache.header["roles"]
    mask = restrict_to_p(rows["log_probs"], rows["mask"], config["p"])
    terminal = torch.isin(rows["roles"], torch.tensor([roles.index("sep"), roles.index("end")]))
    taken, ids, log_probs, mask, terminal = (
        x[:, 1:] for x in (rows["tokens"], rows["ids"], rows["log_probs"], mask, terminal))
    student = td_distill.student_terms(model(rows["tokens"][:, :-1]), ids, taken)
    teacher = td_distill.TeacherSets(log_probs, mask, ids == taken[..., None], terminal)   # (1, T - 1, K)
    x = td_distill.td_terms(student, teacher, torch.ones_like(student.z_a))
    residual, leak, known = (y[0].tolist() for y in (x.Q - config["gamma"] * x.V_next, x.leak, x.known))
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


def html_table(rows, head, kind=""):
    """Rows (label, cells) of HTML, below `head`; a row without cells is a heading over those that follow."""
    def line(label, cells, tag="td"):
        return f"<tr><th>{label}</th>" + "".join(f"<{tag}>{text}</{tag}>" for text in cells) + "</tr>"
    body = "".join(line(*row) for row in rows)
    return f'<table class="{kind}"><thead>{line("", head, "th")}</thead><tbody>{body}</tbody></table>'


def sentence_cell(record, entities):
    """A sentence with a student's entities, "[Anna|person] left.", and below it which are wrong or missed."""
    found, right = ({(e["text"], e["type"]) for e in group} for group in (entities, record["entities"]))
    html = escape(marked(record["text"], entities))
    for sign, pairs in (("✗ wrong", found - right), ("missed", right - found)):
        if pairs:
            html += f"<small>{sign}: {escape('; '.join(map(', '.join, sorted(pairs))))}</small>"
    return html


def read_text(out, names, paragraphs):
    """Paragraphs (lists of records) as each student reads them in free running: a table each, a column a
    student, a mark at each answer."""
    html, readings, sentences = "", [], [[record["text"] for record in paragraph] for paragraph in paragraphs]
    for name in names:
        student = load_student(out / name)
        answers = brd.free_answers(*student, paragraphs, random.Random(0))
        readings.append((brd.free_reading(*student, sentences, "ner"), answers))
    for p, paragraph in enumerate(paragraphs):
        rows, answers = [], [iter(told[p]) for _, told in readings]
        for k, record in enumerate(paragraph):
            rows.append(("", [sentence_cell(record, parse_entities(found[p][k])) for found, _ in readings]))
            for item in record["questions"]:
                told, right = [next(student)[1] for student in answers], item["answer"]
                cells = [f"{'✓' if text == right else '✗'} {escape(text)}" for text in told]
                rows.append((f"{escape(item['question'])} <i>{escape(right)}</i>", cells))
        html += html_table(rows, names, "text")
    return html


def sections(out, results, pictures):
    """Yields (title, HTML) of each part of the page, and writes the README's pictures where that is asked."""
    students, config = results["students"], results["config"]

    def drawn(name, *drawing):
        if pictures:
            plots.picture(pictures / f"{name}.png", "png", *drawing[1:])
        return plots.svg(*drawing)
    if "sample" in students["plain"]:
        yield "A text of your own", f"<pre>{escape(report(results))}</pre>"
    else:
        yield "Reading, against tokens", drawn("reading", (
            "Entity F1 and answers right, against tokens; the ends stand in the table."),
            plots.draw_reading, (4.6, 4.8), students)
        height = 2.8 + 0.36 * len(students["plain"]["blind"])
        bars = drawn("students", "The table below as bars.", plots.draw_students, (4.6, height), students)
        rows = [(escape(label), list(map(escape, cells))) for label, cells in table(students)]
        yield "The students", bars + html_table(rows, students)
        paragraphs = held_out_records(PARAGRAPHS, "page")
        yield "Held-out text, as each student reads it", read_text(out, list(students), paragraphs)
    if "distilled" in students:
        cache = TeacherCache(config["cache"] or train.TEACHER, tokenizer_hash=results["tokenizer"])
        chosen = choose_document(cache)
        if chosen is not None:
            text, steps = unrolled(cache, chosen, *load_student(out / "distilled"), config)
            bars = drawn("top_p", "The sets as teacher and student weigh them, V_p and residuals.",
                         plots.draw_unrolled, (4.6, 0.9 + 0.27 * len(steps)), steps)
            told = f"<p>The teacher read:</p><pre>{escape(text)}</pre>{UNROLLED}"
            yield "A teacher's answer, token by token", told + bars
    rows = [(name, [f"{x:.3f}" for x in thinned(s["loss_curve"], 10)]) for name, s in students.items()]
    yield "Training losses by tenths of the run, nats", html_table(rows, range(1, 11))


def write_page(out, pictures=None):
    """Writes report.html into the folder of a finished run, and PNGs into a folder `pictures` -> its path."""
    results = read_json(out / "results.json", "python train.py writes it at the end of a run")
    if not {"students", "config", "tokenizer"} <= set(results):
        raise ValueError(f"{out / 'results.json'}: not the results of train.py")
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    options = " ".join(f"--{name}={value}" for name, value in results["config"].items() if value != "")
    parts = [f"<h2>{title}</h2>{html}" for title, html in sections(out, results, pictures)]
    write_text(out / "report.html", "\n".join([PAGE, f"<p>python train.py {escape(options)}</p>", *parts]))
    return out / "report.html"


def main(arguments=None):
    """The command; ValueError or OSError for a folder that cannot be shown."""
    parser = argparse.ArgumentParser("experiments.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="the --out_dir of a finished run")
    parser.add_argument("--pictures", type=Path, help="a folder for the README's pictures, as PNG")
    options = parser.parse_args(arguments)
    print(printable(str(write_page(options.out, options.pictures))))


if __name__ == "__main__":
    run_command(main)
