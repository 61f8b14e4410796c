"""The pictures of the report, drawn with matplotlib (pip install -e ".[plot]"), which is imported only when one is drawn.

    svg("Loss, falling from 7 to 0.4.", draw_losses, (4.6, 3), students)            # text that stands in a page
    picture("loss.png", "png", draw_losses, (4.6, 3), students)                     # the same in a file

Each draw_... gets a matplotlib Figure and what to draw. Everything that is black is drawn in INK, which the page turns into
the colour of its own text, light or dark. Students have a colour, a marker and a line of their own, so that none of
the them is told by colour alone.
"""

import io
import re
from html import escape

import numpy as np

INK = "#1b1f24"   # becomes the colour of the page's text
# Okabe and Ito (2008): told apart with any kind of colour vision
BLUE, GREEN, RED, PURPLE, SKY = "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
LOOKS = ((RED, "o", ":", ""), (BLUE, "s", "--", "////"), (GREEN, "^", "-", ""), (PURPLE, "D", "-.", "...."), (SKY, "v", "-", "xxxx"))
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "nanoreader", "text.parse_math": False, "font.size": 9, "legend.frameon": False,
         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.2, "axes.axisbelow": True,
         "axes.titlesize": 10, "axes.titlelocation": "left", "hatch.linewidth": 0.6,
         **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color",
                          "grid.color"), INK)}


def tokens(x, _=None):
    """A number of tokens on an axis: 400k, 1.5M."""
    return f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k"


def draw_reading(fig, students):
    """Entity F1 and answers of paragraphs against tokens: looks on the way (lines), and the test (points with errors)."""
    top, below = fig.subplots(2, 1, sharex=True)
    figures = {"entity_f1": (top, "-"), "answer.wh": (below, "-"), "answer.yes_no": (below, ":")}
    for (student, s), (colour, marker, *_) in zip(students.items(), LOOKS):
        for name, (axes, line) in figures.items():
            end = s["reading"]["paragraph"][name]
            if end["value"] is None:
                continue
            points = [(look["tokens"], look[name]) for look in s.get("reading_curve", []) if name in look]
            axes.plot(*zip(*points, (s["tokens_seen"], end["value"])), line, color=colour, lw=1.4)
            axes.errorbar(s["tokens_seen"], end["value"], end["se"] or 0, fmt=marker, color=colour, ms=6, capsize=3,
                          clip_on=False, zorder=3, label=student if axes is top else None)
    below.axhline(0.5, color=INK, lw=0.8, alpha=0.6)
    kinds = [below.plot([], [], line, color=INK)[0] for line in "-:"]
    below.legend(kinds, ["wh questions", "yes/no questions"], fontsize=8)
    top.legend(fontsize=8)
    top.set(title="entity F1", ylim=(-0.04, 1.04))
    below.set(title="answers right (0.5: yes or no by chance)", ylim=(-0.04, 1.04), xlabel="tokens read", xlim=(0, None))
    below.xaxis.set_major_formatter(tokens)


def draw_students(fig, parts):
    """Bars with errors: parts {title: [(label, chance or None, {student: {"value", "se"} or None}), ...]}."""
    panels = fig.subplots(len(parts), 1, sharex=True, height_ratios=[len(rows) for rows in parts.values()])
    for axes, (title, rows) in zip(panels, parts.items()):
        for i, (_, chance, entries) in enumerate(rows):
            step = 0.78 / len(entries)
            for k, (entry, (colour, *_, hatch)) in enumerate(zip(entries.values(), LOOKS)):
                if entry and entry["value"] is not None:
                    axes.barh(i + (k - (len(entries) - 1) / 2) * step, entry["value"], 0.92 * step, xerr=entry["se"] or 0, color=colour,
                              ecolor=INK, error_kw={"lw": 0.9}, hatch=hatch, edgecolor="white", lw=0)
            if chance is not None:
                axes.plot([chance, chance], [i - 0.42, i + 0.42], color=INK, lw=1.6)
        axes.set(title=title, xlim=(0, 1.02), ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [label if len(label) <= 24 else label[:23] + "…" for label, *_ in rows])
        axes.grid(axis="y", visible=False)
    bars = {name: axes.barh(0, 0, color=colour, hatch=hatch, edgecolor="white", lw=0) for name, (colour, *_, hatch) in zip(entries, LOOKS)}
    fig.legend(bars.values(), bars, loc="outside lower center", ncols=3, fontsize=8)


def draw_unrolled(fig, steps):
    """Every token that the teacher drew: its set as teacher and student weigh it, then V_p and the residual."""
    bars, values, residuals = fig.subplots(1, 3, sharey=True, width_ratios=(6, 1.6, 1.6))
    for i, step in enumerate(steps):
        ends = [0.0, 0.0]
        for text, taken, *probs in step["kept"]:
            for row, (y, height, colour) in enumerate(((i - 0.14, 0.5, BLUE), (i + 0.27, 0.24, GREEN))):
                bars.barh(y, probs[row], height, ends[row], color=colour, alpha=1 if taken else 0.35, edgecolor=INK, lw=0.4)
                if row == 0 and probs[row] > 0.03 * len(text):
                    bars.text(ends[row] + probs[row] / 2, y, text, ha="center", va="center_baseline", fontsize=7,
                              color="white" if taken else INK)
                ends[row] += probs[row]
        values.barh(i, step["value"], 0.6, color=GREEN)
        if step["residual"] is not None:
            residuals.barh(i, step["residual"], 0.6, color=PURPLE, edgecolor=INK, lw=0.4)
    bars.set_yticks(range(len(steps)), [step["token"] for step in steps])
    bars.set(title="kept tokens: teacher, student", xlim=(0, 1), ylim=(len(steps) - 0.5, -0.5), xlabel="probability")
    values.set(title="V_p", xlim=(min(-1, *(step["value"] for step in steps)), 0), xlabel="nats")
    residuals.set(title="residual", xlabel="nats")
    for axes in (bars, values, residuals):
        axes.grid(axis="y", visible=False)


def draw_losses(fig, students):
    """Training loss of every student against the part of its run, logarithmic."""
    axes = fig.subplots()
    for (name, s), (colour, _, line, _) in zip(students.items(), LOOKS):
        losses = s["loss_curve"]
        axes.plot((np.arange(len(losses)) + 0.5) / len(losses), losses, line, color=colour, lw=1.4, label=name)
    axes.set(yscale="log", xlim=(0, 1), xlabel="part of the run", title="training loss, nats")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "25" else "")
    axes.legend(fontsize=8)


def draw_sizes(fig, counts):
    """How many of a cache's sets have 1, 2, 3, ... tokens; counts (tokens,) int, 0 where the teacher drew nothing."""
    axes, (sizes, numbers) = fig.subplots(), np.unique(counts[counts > 0], return_counts=True)
    axes.bar(sizes, numbers / numbers.sum(), color=BLUE, width=0.8)
    axes.set(yscale="log", xlabel="tokens kept in a set", title="share of the sets")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.grid(axis="x", visible=False)


def picture(file, form, draw, size, data):
    """A drawing into a file, form "svg" or "png", size (width, height) in inches; ImportError without matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    with rc_context(STYLE):
        fig = Figure(size, layout="constrained")
        draw(fig, data)
        fig.savefig(file, format=form, dpi=150, transparent=form == "svg", metadata={"Date": None} if form == "svg" else None)


def svg(alt, draw, size, data):
    """A drawing as SVG to stand in a page -> str, with words for those who do not see it; ImportError as in picture."""
    file = io.StringIO()
    picture(file, "svg", draw, size, data)
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", file.getvalue(), flags=re.S).replace(INK, "currentColor")
    box, body = re.search(r'<svg[^>]*viewBox="([^"]*)"[^>]*>(.*)', text, re.S).groups()
    return f'<svg role="img" aria-label="{escape(alt)}" viewBox="{box}">' + re.sub(r'<g id="[^"]*"', "<g", body)
