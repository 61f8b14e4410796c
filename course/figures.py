"""The pictures of the assignments' pages, computed by the functions of this repository; they need matplotlib:
pip install -e ".[plot]".

    python -m course.figures              # course/pictures/1-bpe.svg to 9-prize.svg, the same bytes each time
    python -m course.figures 5            # this one alone
    python -m course.figures 5 --png=out  # as PNG in another folder, to look at

Here are those of 5 to 9; 1 to 4 are in course/figures_tokens.py.
"""

import math
import random
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

import td_distill as td
from course.assignments import REPOSITORY
from course.figures_canvas import (BLUE, GREEN, GREY, INK, ORANGE, PALE_BLUE, PALE_GREEN, PALE_GREY,
                                   PALE_ORANGE, RED, STYLE, WHITE, Canvas, box, figure)
from course.figures_tokens import draw_1_bpe, draw_2_attention, draw_3_reading, draw_4_blind
from course.observe import distilled, two_doors
from data.cache_tools import round_down_to_half
from data.cli import Parser, run_command
from data.documents import course_tokenizer
from data.figures import mean_se
from data.sets import top_p_sets
from experiments.compare import tables
from experiments.routes import KEY, World, name_of
from model import GPT


def bars_of_a_set(axes, words, probs, size, p):
    """Probabilities in order, their running sum, and where it crosses p."""
    n = len(words)
    colours = [BLUE] * (size - 1) + [ORANGE] + [PALE_GREY] * (n - size)
    axes.bar(words, probs, color=colours, edgecolor=INK, lw=0.8)
    axes.plot(words, probs.cumsum(), "o-", color=INK, ms=4, lw=1.2)
    axes.axhline(p, color=RED, lw=1.2, ls="--")
    axes.text(-0.4, p + 0.03, f"p = {p}", color=RED)
    axes.text(2.05, 0.5, "running sum", ha="right")
    axes.annotate("crosses p: still in the set", (size - 1, probs[size - 1]), (size - 0.55, 0.42),
                  arrowprops=dict(arrowstyle="->", color=INK), fontsize=9)
    axes.text(size + 0.1, probs[size] + 0.05, "outside: not stored", fontsize=9)
    axes.set(ylim=(0, 1.05), ylabel="probability", xlim=(-0.6, n - 0.4))


def draw_5_cache(p=0.8, n=12):
    """A teacher's distribution and its set at p, and two sets as they stand in a batch."""
    model, tokenizer = GPT.load(REPOSITORY / "data/teacher/model").eval(), course_tokenizer("world", 1024)
    text = tokenizer.encode("Anna took a train to")
    question = tokenizer.encode("Anna took a train to Oslo.") + [tokenizer.sep] + tokenizer.encode(" Who")
    with torch.no_grad():
        logits = torch.stack([model(torch.tensor([ids]))[0, -1] for ids in (text, question)])
    log_probs, order = logits[0].log_softmax(-1).sort(descending=True)
    ids, kept, mask = top_p_sets(logits, p, k_cap=64)
    sizes, K = mask.sum(-1).tolist(), ids.size(1)
    fig, (top, below) = figure(8, 5, 2, 1, height_ratios=(3, 2))
    words = [tokenizer.decode([i]).strip() for i in order[:n].tolist()]
    bars_of_a_set(top, words, log_probs[:n].exp().numpy(), sizes[0], p)
    top.set_title("the teacher after “Anna took a train to”")
    below.axis("off")
    below.set(xlim=(0, 8), ylim=(2.05, 0))
    below.text(0, 0.15, f"two positions in a batch, K = {K}: log-probability in float16, rounded down, and "
               f"id; counts {sizes[0]} and {sizes[1]}", fontsize=9)
    for row, name in enumerate(("… train to", "… <sep> Who")):
        half, y = round_down_to_half(kept[row][mask[row]].numpy()), 0.4 + 0.85 * row
        below.text(0, y + 0.33, name, fontsize=9, va="center")
        for k in range(K):
            cell = f"{half[k]:.3f}\nid {ids[row, k]}" if k < len(half) else "MASKED\nid 0"
            fill = PALE_GREY if k >= len(half) else PALE_ORANGE if k == len(half) - 1 else PALE_BLUE
            box(below, 1.1 + 0.86 * k, y, 0.86, 0.66, cell, fill, size=9)
    return fig


def draw_6_kd(p=0.8, V=50):
    """A teacher, and the student that each tail of topp_forward_kl has as its optimum, as in observe 6."""
    log_t = (1 / torch.arange(1, V + 1).double()).log().log_softmax(-1)
    ids, log_probs, mask = top_p_sets(log_t[None], p, V)
    (fig, panels), K, M = figure(8, 3.6, 1, 2, sharey=True), int(mask.sum()), log_probs.exp().sum().item()
    for axes, tail in zip(panels, ("inside", "bucket")):
        s, ranks = distilled(log_probs, ids, mask, V, tail), np.arange(1, V + 1)
        axes.bar(ranks[:K], s[:K], 0.9, color=PALE_BLUE, edgecolor=BLUE, label="student s at its optimum")
        axes.bar(ranks[K:], s[K:], 0.9, color=PALE_ORANGE, edgecolor=ORANGE)
        axes.plot(ranks, log_t.exp(), "o", color=INK, ms=2.5, label="teacher t")
        axes.axvline(K + 0.5, color=RED, lw=1.2, ls="--")
        axes.text(K - 0.3, 0.195, f"A_p: {K} tokens,\nmass M = {M:.3f}", ha="right", va="center", color=RED)
        axes.text(K + 1.3, 0.195, f"outside:\n{V - K} tokens", va="center", color=RED)
        told, rest = ("s = t / M: surer\nthan the teacher", "s = 0") if tail == "inside" else (
            "s = t:\nthe teacher", f"s sums to {1 - M:.3f},\neach share is open")
        axes.text(K - 0.3, 0.125, told, ha="right", va="center")
        axes.text(K + 1.3, 0.125, rest, va="center")
        axes.annotate(f"s = {s[0]:.3f}\nt = {log_t[0].exp():.3f}", (1.6, float(s[0])), (5, 0.28), va="center",
                      fontsize=9, arrowprops=dict(arrowstyle="->", color=INK))
        axes.set(title=f'tail="{tail}"', xlabel="token, by rank", ylim=(0, 0.32), xlim=(0, V + 1))
    panels[0].set_ylabel("probability")
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def draw_7_td():
    """Q, V and s' in the columns of a text; then the returns of two ways, and the target that they move."""
    canvas, (student, teacher, known) = Canvas(8.4, 5.0), two_doors()
    returns = td.soft_returns(student, teacher)             # gamma V(s') of each column on both ways (2, 3)
    target = returns[:, 0].softmax(-1)
    canvas.title(0.1, 0.22, "1. The columns of one text: s' of a column is s of the next one")
    columns = ("<start>", "door"), ("… door", "corridor"), ("… corridor", "mark, the end")
    for t, (state, token) in enumerate(columns):
        x, last = 1.3 + 2.4 * t, t == 2
        residual = "Q − r" if last else "Q − r − γ V(s')"
        for y, name, words, fill in ((0.45, "state s", state, WHITE), (0.83, "a, token t", token, PALE_BLUE),
                                     (1.21, "Q(s,a)", "log π(a|s) + v(s)", PALE_GREEN),
                                     (1.59, "V(s)", "log Σ exp Q over A_p(s)", PALE_ORANGE),
                                     (2.3, "residual", residual, PALE_GREY)):
            canvas.box(x, y, 2.0, 0.34, words, fill, size=9)
            canvas.text(x - 0.1, y + 0.17, "" if t else name, ha="right")
        if last:
            canvas.text(x + 1.0, 2.12, "terminal: V(s') = 0", ha="center")
        else:
            canvas.arrow((x + 2.4, 1.93), (x + 1.5, 2.29), RED)
            canvas.text(x + 1.75, 2.08, "V(s')", color=RED, ha="right")
    canvas.title(0.1, 2.98, "2. The backup from the end: U = log P(the student stays in the sets after a)")
    canvas.box(0.2, 3.92, 1.0, 0.4, "start", WHITE)
    for way, y in enumerate((3.42, 4.45)):
        middle, mark = y + 0.2, f"mark, π = {known[way]:.1f}"
        canvas.arrow((1.2, 4.12), (1.9, middle))
        for x, words in ((1.9, f"door {way + 1}"), (3.55, "corridor"), (5.2, mark)):
            canvas.box(x, y, 1.15, 0.4, words, PALE_BLUE, size=9)
        for x, u in zip((1.9, 3.55), returns[way]):
            canvas.arrow((x + 1.65, y - 0.04), (x + 0.95, y - 0.04), RED, bend=0.25)
            canvas.text(x + 0.02, y - 0.13, f"U = {u:.2f}", color=RED)
            canvas.arrow((x + 1.15, middle), (x + 1.65, middle))
        canvas.title(6.5, middle, f"target .50 → {target[way]:.2f}")
    canvas.text(6.5, 4.12, "in proportion to .5 · exp U")
    return canvas.fig


def draw_8_control():
    """Two students on the same items (made up): right or wrong, paired differences, and two error bars."""
    both = [(1, 1)] * 21 + [(0, 0)] * 10 + [(0, 1)] * 8 + [(1, 0)]
    random.Random(5).shuffle(both)
    (a, b), canvas, side = np.array(both).T, Canvas(8.2, 4.1), 0.155
    canvas.text(1.1, 0.17, f"an example of {len(both)} items, a column each; blue: right")
    signs = {1: ("+", GREEN), 0: ("", WHITE), -1: ("−", ORANGE)}
    for y, name, row in ((0.3, "control", a), (0.75, "treated", b), (1.35, "difference", b - a)):
        canvas.text(1.0, y + 0.15, name, 10, ha="right")
        for i, value in enumerate(row):
            sign, fill = signs[value] if name == "difference" else ("", BLUE if value else PALE_GREY)
            canvas.box(1.1 + side * i, y, side, 0.3, sign, fill, size=9)
        canvas.text(7.42, y + 0.15, f"mean {row.mean():.3f}")
    paired, apart = mean_se((b - a).tolist()), [mean_se(row.tolist())["se"] for row in (a, b)]
    axes, value = canvas.fig.add_axes((0.29, 0.14, 0.62, 0.36)), paired["value"]
    for y, (se, colour) in enumerate(((math.hypot(*apart), GREY), (paired["se"], BLUE))):
        axes.errorbar(value, y, xerr=2 * se, fmt="o", color=colour, capsize=4, lw=2)
        axes.text(value + 2 * se + 0.01, y, f"{value:.3f} ± {se:.3f}", va="center", fontsize=9)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set(ylim=(-0.6, 1.6), xlim=(-0.1, 0.5), xlabel="treated − control; bars: two standard errors")
    axes.set_yticks((0, 1), ("unpaired, as if\nof other items", "paired,\nitem by item"))
    return canvas.fig


WORLDS = {"as it is: 1,296 facts": {}, "400 facts": {"facts": 400}, "144 facts": {"facts": 144},
          "36 facts": {"facts": 36}, "64 channels, not 24": {"embd": 64, "start": 4000},
          "lapses of the teacher: .2": {"lapse": 0.2}}


def draw_9_prize():
    """Right answers of KD and TD, and their difference, in worlds of experiments/routes.py."""
    path = REPOSITORY / "experiments" / "results" / "routes.jsonl"
    found, (fig, (left, right)) = tables(path, ("KD", "TD"), itemgetter("name"), KEY), figure(
        8, 3.6, 1, 2, sharey=True)
    for y, changes in enumerate(WORLDS.values()):
        world = found[name_of(World(**changes))]
        kd, td_runs = ([run["T=1"] for run in runs] for _, runs in world.values())
        for runs, place, look in ((kd, y - 0.11, {"fmt": "o", "color": RED, "label": "KD"}),
                                  (td_runs, y + 0.11, {"fmt": "s", "color": BLUE, "label": "TD"})):
            one, look["label"] = mean_se(runs), None if y else look["label"]
            left.errorbar(one["value"], place, xerr=one["se"], capsize=3, **look)
        gain = mean_se([b - a for a, b in zip(kd, td_runs)])
        right.errorbar(gain["value"], y, xerr=2 * gain["se"], fmt="D", color=INK, capsize=3)
        at = max(gain["value"] + 2 * gain["se"], 0) + 0.03
        right.text(at, y, f"{gain['value']:+.3f}", va="center", fontsize=9)
    left.set(title="right answers, T = 1", xlim=(0, 1.03), ylim=(len(WORLDS) - 0.5, -0.5),
             xlabel="share, ± one standard error")
    left.set_yticks(range(len(WORLDS)), WORLDS)
    left.legend(loc="lower right")
    right.axvline(0, color=INK, lw=0.8)
    right.set(title="TD minus KD", xlim=(-0.1, 0.68), xlabel="paired by seed, ± two standard errors")
    return fig


DRAW = dict(enumerate((draw_1_bpe, draw_2_attention, draw_3_reading, draw_4_blind, draw_5_cache, draw_6_kd,
                       draw_7_td, draw_8_control, draw_9_prize), start=1))


def write(number, folder, kind="svg"):
    """Draws one picture into a folder -> its path; the same bytes each time."""
    from matplotlib import rc_context
    path = Path(folder) / f"{DRAW[number].__name__[5:].replace('_', '-')}.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"metadata": {"Date": None, "Creator": None}} if kind == "svg" else {"dpi": 110}
    with rc_context(STYLE):
        DRAW[number]().savefig(path, format=kind, **options)
    return path


def main(arguments=None):
    """The command; ModuleNotFoundError without matplotlib."""
    parser = Parser(prog="python -m course.figures", description=__doc__.split("\n")[0])
    parser.add_argument("number", nargs="?", type=int, choices=DRAW, help="of the assignment; none: all")
    parser.add_argument("--png", type=Path, help="a folder for PNG files, in place of the SVG files")
    options = parser.parse_args(arguments)
    folder, kind = (options.png, "png") if options.png else (REPOSITORY / "course" / "pictures", "svg")
    for number in [options.number] if options.number else DRAW:
        print(write(number, folder, kind))


if __name__ == "__main__":
    run_command(main)
