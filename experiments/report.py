"""out/report.html of a finished run: one file that opens without a network, made from results.json and the
checkpoints. It needs matplotlib: pip install -e ".[plot]".

    python -m experiments.report out                                              # writes out/report.html
    python -m experiments.report out --png=experiments/pictures/reading.png       # and the README's picture
    python -m experiments.report out out30                      # no page: the tables of two runs side by side

All that is shown goes through `as_html`, which escapes it; the page forbids every script and every address.
"""

import io
import random
import re
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np

import brd
from data.annotated import marked
from data.annotations import NOT_LISTED, parse_entities
from data.cli import Parser, brief, printable, run_command
from data.documents import held_out_records
from data.figures import ratio_se, thinned
from data.files import read_json, write_text
from data.report import STUDENTS, arm_table, layout, report, table
from data.tokenizer import Tokenizer
from model import GPT

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
INK = "#1b1f24"   # in the page it becomes the colour of the text, light or dark
# Of students. Colours of Okabe and Ito (2008) and markers: none is told by its colour alone.
LOOKS = list(zip("#d55e00 #0072b2 #009e73 #cc79a7 #e69f00 #56b4e9 #999999 #8c564b".split(), "os^vDPX*"))
TOLD = (*STUDENTS, "brd+kd", "brd+td")                  # whose readings have room beside each other
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "nanoreader", "text.parse_math": False, "font.size": 9,
         "legend.frameon": False, "legend.fontsize": 8, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.alpha": 0.2, "axes.titlesize": 10, "axes.titlelocation": "left",
         **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color",
                          "ytick.color", "grid.color"), INK)}


def draw_reading(students):
    """Reading of paragraphs against tokens: short tests on the way (lines), and the test (points); below it
    the tests of `brd` and of what goes on from it."""
    from matplotlib.figure import Figure
    arms = list(students)[1:]
    fig = Figure((4.6, 4.8 if len(arms) < 2 else 7.2), layout="constrained")
    top, below, *last = fig.subplots(2 if len(arms) < 2 else 3, 1)
    figures = {"entity_f1": (top, "-"), "answer.wh": (below, "-"), "answer.yes_no": (below, ":")}
    for student, (colour, marker) in zip(STUDENTS, LOOKS):
        s = students[student]
        for name, (axes, line) in figures.items():
            end = s["reading"]["paragraph"][name]
            if end["value"] is None:
                continue
            points = [(look["tokens"], look[name]) for look in s["reading_curve"] if name in look]
            axes.plot(*zip(*points, (s["tokens_seen"], end["value"])), line, color=colour, lw=1.4)
            axes.errorbar(s["tokens_seen"], end["value"], end["se"] or 0, fmt=marker, color=colour, ms=6,
                          capsize=3, clip_on=False, zorder=3, label=student)
    kinds = [below.plot([], [], line, color=INK)[0] for line in "-:"]
    below.legend(kinds, ["wh questions", "yes/no questions"])
    top.legend()
    top.set(title="entity F1", ylim=(-0.04, 1.04), xlim=(0, None))
    below.axhline(0.5, color=INK, lw=0.8, alpha=0.6)
    below.set(title="answers right (0.5: yes or no by chance)", ylim=(-0.04, 1.04),
              xlabel="thousand tokens read", xlim=(0, None))
    for axes in (top, below):
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e3:,.0f}")
    for axes in last:
        for i, (student, (colour, marker)) in enumerate(zip(arms, LOOKS[1:])):
            s = students[student]
            ends = [s["reading"]["paragraph"][name] for name in ("entity_f1", "answer.wh")]
            ends.append(ratio_se(s["beside_teacher"].get("right", [])))
            values = np.array([end["value"] for end in ends], float)              # None becomes NaN
            axes.errorbar(np.arange(3) + 0.12 * i, values, [end["se"] or 0 for end in ends], fmt=marker,
                          color=colour, label=student)
        axes.set(title="brd, and what goes on from it", xlim=(-0.2, 3))
        axes.set_xticks([0.3, 1.3, 2.3], ["entity F1", "wh questions", "own questions, T=1"])
        axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    return fig


def reading_curve(students, png=None):
    """The drawing as SVG to stand in a page -> str; also as a file `png` (Path) if one is given."""
    from matplotlib import rc_context
    file = io.StringIO()
    with rc_context(STYLE):
        fig = draw_reading(students)
        fig.savefig(file, format="svg", transparent=True)
        if png:
            fig.savefig(png, format="png", dpi=150)
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", file.getvalue(), flags=re.S)
    box, body = re.search(r'<svg[^>]*viewBox="([^"]*)"[^>]*>(.*)', text, re.S).groups()
    alt = "Entity F1 and answers right, against tokens; the ends stand in the table."
    return f'<svg role="img" aria-label="{alt}" viewBox="{box}">' + body.replace(INK, "currentColor")


def as_html(cell):
    """Text, or (text, smaller texts below it ...), with its markup escaped -> HTML."""
    text, *smaller = [cell] if isinstance(cell, str) else cell
    return escape(text) + "".join(f"<small>{escape(small)}</small>" for small in smaller)


def html_table(rows, head, kind=""):
    """Rows (label, cells) as HTML, below `head`, all as of as_html; a row without cells is a heading over
    those that follow."""
    def line(label, cells, tag="td"):
        cells = "".join(f"<{tag}>{as_html(cell)}</{tag}>" for cell in cells)
        return f"<tr><th>{as_html(label)}</th>{cells}</tr>"
    body = "".join(line(*row) for row in rows)
    return f'<table class="{kind}"><thead>{line("", head, "th")}</thead><tbody>{body}</tbody></table>'


def sentence_cell(record, entities):
    """A sentence with a student's entities, "[Anna|person] left.", and below it which are wrong or missed."""
    found, right = ({(e["text"], e["type"]) for e in group} for group in (entities, record["entities"]))
    signs = {} if record["entities"] == NOT_LISTED else {"✗ wrong": found - right, "missed": right - found}
    return marked(record["text"], entities), *(f"{sign}: {'; '.join(map(', '.join, sorted(pairs)))}"
                                               for sign, pairs in signs.items() if pairs)


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
                cells = [f"{'✓' if text == right else '✗'} {text}" for text in told]
                rows.append(((item["question"], right), cells))
        html += html_table(rows, names, "text")
    return html


def load_student(folder):
    """The model, to be tested, and the tokenizer of a folder."""
    return GPT.load(folder).eval(), Tokenizer.load(folder)


def sections(out, results, png):
    """Yields (title, HTML) of each part of the page."""
    students = results["students"]
    if "sample" in students["plain"]:
        yield "A text of your own", f"<pre>{as_html(report(results))}</pre>"
    else:
        yield "Reading, against tokens", reading_curve(students, png)
        two = {name: students[name] for name in STUDENTS}
        (_, head), *rows = table(two)
        yield "The students", html_table(rows, head)
        blocks = [list(lines) for filled, lines in groupby(arm_table(students), any) if filled]
        for (title, head), *rows in blocks:
            yield title, html_table(rows, head)
        paragraphs, names = held_out_records(4, "page"), [name for name in TOLD if name in students]
        yield "Held-out text, as each student reads it", read_text(out, names, paragraphs)
    yield "Training losses, nats, by tenths; small: thousand tokens read", html_table(
        [(name, loss_cells(name, results)) for name in students], map(str, range(1, 11)))


def loss_cells(name, results):
    """The mean losses of ten parts of a training, each with the tokens, about, that its end has seen."""
    losses, students = thinned(results["students"][name]["loss_curve"], 10), results["students"]
    end, tokens = students[name]["tokens_seen"], results["config"]["student_tokens"]
    begin = students["brd"]["tokens_seen"] if "+" in name else end - min(end, tokens)
    return [(f"{loss:.3f}", f"{(begin + (end - begin) * i / len(losses)) / 1e3:,.0f}")
            for i, loss in enumerate(losses, 1)]


def read_results(out):
    """The results of the run in a folder; ValueError where there are none."""
    if not (out / "results.json").exists():
        raise ValueError(f"{out}: no results.json, which python train.py writes at the end of a run")
    results = read_json(out / "results.json", "python train.py writes it at the end of a run")
    if not {"students", "config"} <= set(results):
        raise ValueError(f"{out / 'results.json'}: not the results of train.py")
    return results


def side_by_side(folders):
    """The students of several runs in the columns of one table, below it the arms of each run -> text."""
    runs = {folder: read_results(folder)["students"] for folder in folders}
    students = {f"{folder}/{name}": s for folder, run in runs.items() for name, s in run.items()}
    if any("sample" in s for s in students.values()):           # of a text of one's own
        bits = [(f"{s['bits_per_byte']:.3f}" if "sample" in s else "-") for s in students.values()]
        return layout([("", list(students)), ("bits per byte of its own text", bits)])
    arms = [row for folder, run in runs.items() for row in ((str(folder), []), *arm_table(run))]
    return layout([*table(students), *arms])


def write_page(out, png=None):
    """Writes report.html into the folder of a finished run -> its path. png: a file for the reading curve."""
    results = read_results(out)
    options = " ".join(f"--{name}={value}" for name, value in results["config"].items() if value != "")
    parts = [f"<h2>{as_html(title)}</h2>{html}" for title, html in sections(out, results, png)]
    write_text(out / "report.html", "\n".join([PAGE, f"<p>python train.py {as_html(options)}</p>", *parts]))
    return out / "report.html"


def main(arguments=None):
    """The command; ValueError or OSError for a folder that cannot be shown."""
    parser = Parser("experiments.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, nargs="+", help="the --out_dir of a finished run, or of several")
    parser.add_argument("--png", type=Path, help="the reading curve, for the README")
    options = parser.parse_args(arguments)
    if options.png and len(options.out) > 1:
        raise ValueError("--png draws one run; name one folder")
    try:
        shown = write_page(*options.out, options.png) if len(options.out) == 1 else side_by_side(options.out)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"results.json: not as this train.py writes it ({brief(error)})") from None
    print(shown if len(options.out) > 1 else printable(str(shown)))


if __name__ == "__main__":
    run_command(main)
