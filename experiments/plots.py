"""The pictures of a run, drawn with matplotlib (pip install -e ".[plot]").

A student has a colour and a marker or hatch of its own, so that none of them is told by colour alone.
"""

import io
import re
from html import escape

from data.report import READING

INK = "#1b1f24"   # in a page it becomes the colour of the text, light or dark
# Okabe and Ito (2008): told apart with any kind of colour vision
BLUE, GREEN, RED, PURPLE = "#0072b2", "#009e73", "#d55e00", "#cc79a7"
LOOKS = ((RED, "o", ""), (BLUE, "s", "////"), (GREEN, "^", ""))      # of students: colour, marker, hatch
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "nanoreader", "text.parse_math": False, "font.size": 9,
         "legend.frameon": False, "legend.fontsize": 8, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.alpha": 0.2, "axes.axisbelow": True, "axes.titlesize": 10,
         "axes.titlelocation": "left", "hatch.linewidth": 0.6}
STYLE |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color",
                        "ytick.color", "grid.color"), INK)


def draw_reading(fig, students):
    """Reading of paragraphs against tokens: short tests on the way (lines), and the test (points)."""
    top, below = fig.subplots(2, 1, sharex=True)
    figures = {"entity_f1": (top, "-"), "answer.wh": (below, "-"), "answer.yes_no": (below, ":")}
    for (student, s), (colour, marker, _) in zip(students.items(), LOOKS):
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
    top.set(title="entity F1", ylim=(-0.04, 1.04))
    below.axhline(0.5, color=INK, lw=0.8, alpha=0.6)
    below.set(title="answers right (0.5: yes or no by chance)", ylim=(-0.04, 1.04),
              xlabel="thousand tokens read", xlim=(0, None))
    below.xaxis.set_major_formatter(lambda x, _: f"{x / 1e3:,.0f}")


def draw_students(fig, students):
    """Bars with errors: reading of paragraphs, and the blind tasks with a line at chance."""
    tasks, width, everyone = students["plain"]["blind"], 0.78 / len(students), list(students.values())
    reading = {label: [s["reading"]["paragraph"].get(name) for s in everyone]
               for name, label in READING.items()}
    blind = {name: [{**s["blind"][name], "value": s["blind"][name]["accuracy"]} for s in everyone]
             for name in tasks}
    parts = {"reading paragraphs": reading, "blind tasks (line: chance)": blind}
    panels = fig.subplots(2, 1, sharex=True, height_ratios=[len(rows) for rows in parts.values()])
    for axes, (title, rows) in zip(panels, parts.items()):
        for i, (label, entries) in enumerate(rows.items()):
            for k, (entry, (colour, _, hatch)) in enumerate(zip(entries, LOOKS)):
                if entry and entry["value"] is not None:
                    place = i + (k - (len(entries) - 1) / 2) * width
                    axes.barh(place, entry["value"], 0.92 * width, xerr=entry["se"] or 0, color=colour,
                              ecolor=INK, error_kw={"lw": 0.9}, hatch=hatch, edgecolor="white", lw=0)
            if rows is blind:
                axes.plot([tasks[label]["chance"]] * 2, [i - 0.42, i + 0.42], color=INK, lw=1.6)
        axes.set(title=title, xlim=(0, 1.02), ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [label[:24] for label in rows])
        axes.grid(axis="y", visible=False)
    for name, (colour, _, hatch) in zip(students, LOOKS):
        axes.barh(0, 0, color=colour, hatch=hatch, edgecolor="white", lw=0, label=name)
    fig.legend(loc="outside lower center", ncols=3)


def draw_unrolled(fig, steps):
    """Every token that the teacher drew: its set as teacher and student weigh it, V_p and the residual."""
    bars, values, residuals = fig.subplots(1, 3, sharey=True, width_ratios=(6, 1.6, 1.6))
    for i, step in enumerate(steps):
        ends = [0.0, 0.0]
        for text, taken, *probs in step["kept"]:
            for row, (y, height, colour) in enumerate(((i - 0.14, 0.5, BLUE), (i + 0.27, 0.24, GREEN))):
                look = dict(color=colour, alpha=1 if taken else 0.35, edgecolor=INK, lw=0.4)
                bars.barh(y, probs[row], height, ends[row], **look)
                if row == 0 and probs[row] > 0.03 * len(text):
                    bars.text(ends[row] + probs[row] / 2, y, text, ha="center", va="center_baseline",
                              fontsize=7, color="white" if taken else INK)
                ends[row] += probs[row]
        values.barh(i, step["value"], 0.6, color=GREEN)
        if step["residual"] is not None:
            residuals.barh(i, step["residual"], 0.6, color=PURPLE, edgecolor=INK, lw=0.4)
    bars.set_yticks(range(len(steps)), [step["token"] for step in steps])
    bars.set(title="kept: teacher, student", xlim=(0, 1), ylim=(len(steps) - 0.5, -0.5), xlabel="probability")
    values.set(title="V_p", xlim=(min(-1, *(step["value"] for step in steps)), 0), xlabel="nats")
    residuals.set(title="residual", xlabel="nats")
    for axes in (bars, values, residuals):
        axes.grid(axis="y", visible=False)


def picture(file, form, draw, size, data):
    """A drawing into a file, form "svg" or "png", size (width, height) in inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    with rc_context(STYLE):
        fig = Figure(size, layout="constrained")
        draw(fig, data)
        fig.savefig(file, format=form, dpi=150, transparent=form == "svg")


def svg(alt, draw, size, data):
    """A drawing as SVG to stand in a page -> str; alt: words for those who do not see it."""
    file = io.StringIO()
    picture(file, "svg", draw, size, data)
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", file.getvalue(), flags=re.S)
    box, body = re.search(r'<svg[^>]*viewBox="([^"]*)"[^>]*>(.*)', text, re.S).groups()
    return f'<svg role="img" aria-label="{escape(alt)}" viewBox="{box}">' + body.replace(INK, "currentColor")
