"""The tables and pictures of course/claims.py, made from a file of results alone.

    head, rows = read("course/results/claims.jsonl")
    print("\\n".join(show(head, rows)))
    pictures("out/claims", head, rows)               # claim-1.png ..., with matplotlib

Errors. Within a seed all arms answer the same items; every seed has items of its own, and a start and a training text of its own. With
d[s, i] the credit of one arm, or the difference of two on the same item, and d[s] its mean over the n items of seed s:

    mean         m = mean over S seeds of d[s]
    over items   sqrt( sum_s var_i(d[s, i]) / n ) / S             how far other items would move m
    over seeds   sqrt( var_s(d[s]) / S )                          how far other seeds would, items included

Since a seed brings its items with it, the second is, on the average, the whole error; from three seeds it is a rough figure. So the
larger of both is quoted. For a mean over K tasks d[s] is the mean of the tasks' means, and errors over items add up as
sqrt(sum of squares) / K: the tasks are these, not a sample of tasks.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from course import plots
from experiments.claim_arms import AFTER, ARMS, CLAIM_ARMS, LEARNT
from experiments.claim_tests import LEARNT as LEARNT_TASKS
from experiments.claim_tests import unpacked
from experiments.compare import mean_se
from data.files import sha256_of
from data.tasks import items

EQUAL, SPILL = 0.01, 300    # arms of one table may differ in tokens read by this part, and by a few documents, which are never cut
SURE = 3.0                   # standard errors from which on a difference is called one
NEAR = 3.0                   # percent of bits a byte that a mix may be worse than plain text
TITLES = {  # claim: (title, what the paper has)
    "1": ("blind: BRD against plain text at equal tokens", "48.0 -> 54.2 (six tasks)"),
    "2": ("further training on plain text", "48.0 as it is, 47.1 further trained, 54.2 BRD"),
    "3": ("without entities, without questions", "70.9 whole, 68.4 -NER, 67.8 -QRA"),
    "4": ("paragraphs against sentences", "57.5 against 55.6"),
    "5": ("before another distillation", "SeqKD 51.0 -> 58.9, MiniLLM 52.6 -> 57.8, task distillation 65.5 -> 68.2"),
    "6": ("cross-entropy between teacher and student, nats at the answer's first token", "falls on every task but one"),
    "7": ("how much BRD text", "rises, then saturates"),
    "8": ("blind, relaxed, supervised", "54.2 blind, 67.1 relaxed"),
    "mix": ("bits a byte of plain text by the share of D_ORI", "not published"),
    "mends": ("sentiment in other words, who, swapped facts", "not published")}
PAIRS = {  # claim: differences shown
    "1": (("brd", "plain"), ("uniform", "plain")), "2": (("further", "pretrained"), ("further_brd", "further")),
    "3": (("brd", "no_ner"), ("brd", "no_qra"), ("ner_more", "brd"), ("uniform", "uniform_no_ner")), "4": (("brd", "sentence"),),
    "mends": (("attitudes", "brd"), ("brd", "short"))}


class Value(NamedTuple):
    """A mean with its standard errors over seeds (NaN with one seed) and over items (NaN where there are none)."""
    mean: float
    seeds: float
    items: float

    @property
    def error(self):
        """The larger of both, or the one that there is."""
        return max((e for e in (self.seeds, self.items) if not math.isnan(e)), default=math.nan)

    @property
    def times(self):
        """The mean in standard errors; 0 where there is no difference at all, infinite for one without an error."""
        return self.mean / self.error if self.error else math.copysign(math.inf, self.mean) if self.mean else 0.0


class Table(NamedTuple):
    """Rows (label, chance or None, [Value or None]) below columns, of which the last `differences` are differences."""
    title: str
    columns: list
    rows: list
    differences: int
    notes: list
    drawn: tuple = ()        # columns of the picture, where it is not all that are no differences
    xs: tuple = ()           # where each row stands on an axis `along`, for a curve
    along: str = ""


# --- estimates ---------------------------------------------------------------------------------------------------------

def estimate(blocks):
    """Value of blocks [task][seed] of arrays (n,); NaN items are left out. See the formula above."""
    blocks = [[row[~np.isnan(row)] for row in seeds] for seeds in blocks]
    means = [sum(seeds[s].mean() for seeds in blocks) / len(blocks) for s in range(len(blocks[0]))]
    mean, over_seeds = mean_se(means)
    squares = sum(row.var(ddof=1) / len(row) for seeds in blocks for row in seeds)
    return Value(float(mean), float(over_seeds), math.sqrt(squares) / len(means) / len(blocks))


def of_seeds(values):
    """Value of one number a seed."""
    return Value(*mean_se(values), math.nan)


def mean_accuracy(tasks):
    """The mean over tasks of packed credits {task: str}."""
    return float(np.mean([np.nanmean(unpacked(signs)) for signs in tasks.values()]))


class Results:
    """The lines of a file of results by arm and seed."""

    def __init__(self, rows):
        self.runs, self.near = {}, {}
        for row in rows:
            self.runs.setdefault(row["arm"], {})[row["seed"]] = row
            for task, indices in row.get("near", {}).items():
                self.near.setdefault((row["seed"], task), set()).update(indices)

    def __contains__(self, arm):
        return arm in self.runs

    def credits(self, arm, task, key="tasks"):
        """[(n,) a seed], NaN for what was not tested or is near to training text."""
        rows = []
        for seed, run in sorted(self.runs[arm].items()):
            row = np.array(run[key][task], float) if key == "agreement" else unpacked(run[key] if task is None else run[key][task])
            row[[i for i in self.near.get((seed, task), ()) if i < len(row)]] = np.nan
            rows.append(row)
        return rows

    def value(self, arm, tasks, key="tasks", minus=None, other=None):
        """Value of an arm over tasks (a list), or of its difference from the arm `minus` (in `other` in place of key)."""
        blocks = [self.credits(arm, task, key) for task in tasks]
        if minus:
            self.check_tokens(arm, minus)
            blocks = [[a - b for a, b in zip(rows, self.credits(minus, task, other or key), strict=True)]
                      for rows, task in zip(blocks, tasks)]
        return estimate(blocks)

    def bits(self, arm, minus=None):
        runs = self.runs[arm]
        return of_seeds([run["bits"] - (self.runs[minus][seed]["bits"] if minus else 0) for seed, run in sorted(runs.items())])

    def reading(self, arm, name):
        """Value of a figure of claim_tests.reading; None for an arm that was not asked, or where there was nothing to ask."""
        found = [run["reading"][name]["value"] for run in self.runs[arm].values() if "reading" in run]
        return of_seeds(found) if found and None not in found else None

    def check_tokens(self, arm, other):
        """ValueError where two arms that should have read the same number of tokens did not."""
        a, b = ARMS.get(arm), ARMS.get(other)
        if a and b and (a.tokens, a.start) == (b.tokens, b.start):
            for seed, run in self.runs[arm].items():
                mine, theirs = run["seen"], self.runs[other][seed]["seen"]
                if abs(mine - theirs) > EQUAL * theirs + SPILL:
                    raise ValueError(f"{arm} has read {mine:,} tokens with seed {seed}, {other} {theirs:,}: no comparison at equal tokens")


# --- a table a claim -----------------------------------------------------------------------------------------------------

def chance(task):
    return 1 / items.TASKS[task][2]


def verdict(results, arm, other, tasks):
    """One line: on how many tasks an arm is sure to be above another, and below."""
    z = {task: results.value(arm, [task], minus=other).times for task in tasks}
    above, below = ([task for task in tasks if sign * z[task] > SURE] for sign in (1, -1))
    return (f"{arm} is above {other} by more than {SURE:g} standard errors on {len(above)} of {len(tasks)} tasks"
            f"{': ' * bool(above)}{', '.join(above)}; below on {len(below)}{': ' * bool(below)}{', '.join(below)}")


def arms_table(claim, results, tasks):
    """Claims 1 to 4 and mends: arms side by side, then differences."""
    arms = [arm for arm in CLAIM_ARMS[claim] if arm in results]
    pairs = [pair for pair in PAIRS[claim] if all(arm in results for arm in pair)]

    def cells(tasks, key="tasks"):
        return [results.value(arm, tasks, key) for arm in arms] + [results.value(a, tasks, key, b) for a, b in pairs]
    rows = [(task, chance(task), cells([task])) for task in tasks]
    rows.append(("mean of tasks", sum(map(chance, tasks)) / len(tasks), cells(tasks)))
    centred = [task for task in tasks if all(task in run["centred"] for arm in arms for run in results.runs[arm].values())]
    rows.append(("centred mean", sum(map(chance, centred)) / len(centred), cells(centred, "centred")))
    rows.append(("bits a byte", None, [results.bits(arm) for arm in arms] + [results.bits(*pair) for pair in pairs]))
    rows += [(f"reads: {name}", None, [results.reading(arm, name) for arm in arms] + [None] * len(pairs))
             for name in ("who", "wh", "yes", "swapped")]
    notes = [verdict(results, *pair, tasks) for pair in pairs]
    notes += [above_chance(results, arm, task) for arm in arms for task in ("who", "who_three", "swapped")
              if claim in ("1", "mends") and task in tasks and arm != "plain"]
    notes += ["centred: each candidate's mean over the test items, which have no labels, is taken off its scores; a second figure"]
    return Table(heading(claim), arms + [f"{a} - {b}" for a, b in pairs], rows, len(pairs), notes)


def above_chance(results, arm, task):
    value = results.value(arm, [task])
    above = value._replace(mean=value.mean - chance(task))
    return f"{arm}, {task}: {value.mean:.3f} ± {value.error:.3f}, {above.times:+.1f} standard errors from chance"


def blank_table(results, tasks):
    """What can be answered without the paragraph."""
    arms = [arm for arm in ("plain", "brd") if arm in results]
    rows = [(task, chance(task), [results.value(arm, [task], "blank") for arm in arms] +
             [results.value(arm, [task], minus=arm, other="blank") for arm in arms]) for task in tasks]
    columns = [f"{arm}, none" for arm in arms] + [f"{arm} read - none" for arm in arms]
    return Table("control: the same tasks without their paragraph", columns, rows, len(arms), [])


def wordings_table(results, tasks, wrappers):
    """The student that has learnt basic reading, wording by wording: of each task's items, every so-many-th is in the same one."""
    rows = []
    for task in tasks:
        n = len(wrappers[items.TASKS[task][0]])
        rows.append((task, chance(task), [estimate([[row[w::n] for row in results.credits("brd", task)]]) for w in range(n)] + [None] * (3 - n)))
    return Table("brd by wording of the task", ["wording 1", "wording 2", "wording 3"], rows, 0, [])


def after_table(results, tasks):
    """Claim 5: every method after plain text and after BRD, on the blind tasks and on its own."""
    rows = []
    for label, wanted, key in (("blind", tasks, "tasks"), ("own task", [None], "retelling")):
        for method in dict.fromkeys(arm.split("+")[1] for arm in AFTER):
            arms = [f"{first}+{method}" for first in ("plain", "brd")]
            difference = results.value(arms[1], wanted, key, arms[0])
            rows.append((f"{method}, {label}", None, [results.value(arm, wanted, key) for arm in arms] + [difference]))
    relaxed = ["plain:relaxed", "brd:relaxed"]
    for label, arms in (("task distillation", relaxed), ("nothing, these tasks", ["plain", "brd"])):
        difference = results.value(arms[1], LEARNT_TASKS, minus=arms[0])
        rows.append((label, None, [results.value(arm, LEARNT_TASKS) for arm in arms] + [difference]))
    nothing = [results.value(arm, tasks) for arm in ("plain", "brd")] + [results.value("brd", tasks, minus="plain")]
    rows.append(("nothing, blind", None, nothing))
    notes = [f"task distillation: {len(LEARNT_TASKS)} tasks ({', '.join(LEARNT_TASKS)}), answers of the teacher to a few inputs of each"]
    if "teacher" in results:
        notes.append(f"the teacher answers {np.mean(results.credits('teacher', None, 'retelling')[0]):.3f} of its own task right")
    return Table(heading("5"), ["plain first", "brd first", "brd - plain"], rows, 1, notes)


def agreement_table(results, tasks):
    """Claim 6: nats of the cross-entropy; less is nearer."""
    def cells(tasks):
        return [results.value(arm, tasks, "agreement") for arm in ("plain", "brd")] + [results.value("brd", tasks, "agreement", "plain")]
    rows = [(task, None, cells([task])) for task in tasks] + [("mean of tasks", None, cells(tasks))]
    falls = sum(row[2][2].mean < -SURE * row[2][2].error for row in rows[:-1])
    note = f"it falls by more than {SURE:g} standard errors on {falls} of {len(tasks)} tasks"
    return Table(heading("6"), ["plain", "brd", "brd - plain"], rows, 1, [note])


def amount_table(results, tasks):
    """Claim 7: amounts as rows, from the least; each is compared with the one before."""
    arms, rows = [arm for arm in CLAIM_ARMS["7"] if arm in results], []
    shown = [task for task in ("swapped", "nli", "who", "entity_new", "sentiment_words") if task in tasks]
    xs = tuple(float(np.mean([run["seen"] for run in results.runs[arm].values()])) for arm in arms)
    for arm, before, tokens in zip(arms, [None] + arms, xs):
        gain = [results.value(arm, tasks, minus=before)] if before else [None]
        rows.append((f"{round(tokens, -3):,.0f} tokens", None, [results.value(arm, tasks), *(results.value(arm, [task]) for task in shown),
                                                                        results.bits(arm), *gain]))
    return Table(heading("7"), ["mean of tasks", *shown, "bits a byte", "mean - before"], rows, 1, [],
                 tuple(range(1 + len(shown))), xs, "tokens read, the start with them")


def settings_table(results, tasks):
    """Claim 8: the same items, by what was seen of the task."""
    arms = [arm for first in ("plain", "brd") for arm in (first, f"{first}:relaxed", f"{first}:supervised") if arm in results]

    def cells(tasks):
        both = [(f"brd{setting}", f"plain{setting}") for setting in ("", ":relaxed", ":supervised")]
        return [results.value(arm, tasks) for arm in arms] + [results.value(a, tasks, minus=b) for a, b in both]
    rows = [(task, chance(task), cells([task])) for task in LEARNT_TASKS] + [("mean of these", None, cells(LEARNT_TASKS))]
    return Table(heading("8"), arms + [f"{s} brd - plain" for s in ("blind", "relaxed", "supervised")], rows, 3, [])


def mix_table(results, tasks):
    """Bits a byte by D_ORI's share, against plain text with as many tokens of plain text, and with as many tokens in all."""
    rows = []
    for arm, equal in (("brd", "plain_10"), ("ori_25", "plain_25"), ("ori_50", "plain_50"), ("plain", "plain")):
        if arm not in results or equal not in results:
            continue
        ratio = [100 * (run["bits"] / results.runs[equal][seed]["bits"] - 1) for seed, run in sorted(results.runs[arm].items())]
        rows.append((arm, None, [results.bits(arm), results.bits(equal), of_seeds(ratio), results.value(arm, tasks),
                                 *([results.value(arm, tasks, minus="plain")] if "plain" in results else [None])]))
    return Table(heading("mix"), ["bits a byte", "plain, as much plain", "worse by, %", "mean of tasks", "arm - plain"], rows, 1, [
        "as much plain: plain text alone, with as many tokens as the arm has read of plain text"], (0, 1),
        tuple({"brd": 0.1, "ori_25": 0.25, "ori_50": 0.5, "plain": 1.0}[row[0]] for row in rows), "share of D_ORI")


def heading(claim):
    title, paper = TITLES[claim]
    return f"{claim}: {title}. In the paper: {paper}"


def tables(head, rows):
    """{claim: [Table]} of all claims for which the results hold every arm."""
    results, tasks, found = Results(rows), list(items.TASKS), {}
    wrappers = items.HERE / "wrappers" / f"{head['wrappers']}.json"
    known = wrappers.exists() and sha256_of(wrappers) == head["sha256"]
    for claim in head["claims"]:
        if any(arm not in results for arm in CLAIM_ARMS[claim]) or set(CLAIM_ARMS[claim]) & set(AFTER + LEARNT) and "brd" not in results:
            continue
        special = {"5": after_table, "6": agreement_table, "7": amount_table, "8": settings_table, "mix": mix_table}
        found[claim] = [special[claim](results, tasks) if claim in special else arms_table(claim, results, tasks)]
        if claim == "1":
            found[claim].append(blank_table(results, tasks))
            found[claim] += [wordings_table(results, tasks, items.read_wrappers(wrappers))] if known else []
    return found


# --- for the eye ---------------------------------------------------------------------------------------------------------

def cell(value, difference):
    if value is None:
        return "-"
    if math.isnan(value.error):          # one seed, no items
        return f"{value.mean:{'+' if difference else ''}.3f}" + " " * 7 * difference
    return f"{value.mean:+.3f} ±{value.error:.3f} {value.times:+5.1f}" if difference else f"{value.mean:.3f} ±{value.error:.3f}"


def text(table):
    """Lines of a Table: means ± the larger standard error; differences also in standard errors."""
    wide = [max(len(column) + 2, 15 if i < len(table.columns) - table.differences else 22) for i, column in enumerate(table.columns)]
    yield table.title
    yield f"{'':22}{'chance':>7}" + "".join(f"{column:>{w}}" for column, w in zip(table.columns, wide))
    for label, by_chance, values in table.rows:
        first = len(values) - table.differences
        yield f"{label:22}{'' if by_chance is None else f'{by_chance:.2f}':>7}" + "".join(
            f"{cell(value, i >= first):>{w}}" for i, (value, w) in enumerate(zip(values, wide)))
    yield from (f"  {note}" for note in table.notes)
    yield ""


def show(head, rows):
    """Lines: what was run, then a table a claim."""
    near = sum(len(indices) for row in rows for indices in row.get("near", {}).values())
    dropped = sum(map(len, Results(rows).near.values()))
    yield f"{head['command']}; {head['seeds']} seeds, wrappers {head['wrappers']} ({head['sha256'][:12]}), torch {head['torch']}"
    yield f"learning rates: plain {head['rates'].get('plain')}, reading {head['rates'].get('brd')}, of {json.dumps(head['rates']['tried'])}"
    timed = [row for row in rows if row.get("seconds") and "read" in row]
    yield (f"{sum(row['seconds'] for row in timed):,.0f} seconds of training in {len(timed)} students of {len(rows)}, in the middle "
           f"{np.median([sum(row['read']) / row['seconds'] for row in timed] or [0]):,.0f} tokens a second")
    yield f"{near} near-duplicates found by {len(rows)} students in what they had read; {dropped} items left out"
    yield "± the larger of the standard errors over seeds and over items; behind a difference, the difference in standard errors"
    yield ""
    found = tables(head, rows)
    for table in (table for some in found.values() for table in some):
        yield from text(table)
    yield from summary(head, rows, found)


KEYS = {  # claim: the rows that say most of it; otherwise "mean of tasks"
    "3": ("mean of tasks", "entity_type"), "5": ("blind", "task distillation"), "7": ("tokens",), "8": ("mean of these",),
    "mix": ("brd", "ori_25", "ori_50"), "mends": ("sentiment_words", "who", "swapped")}


def in_words(claim, column, value):
    """What a difference says. The paper has more in each, but for further training and for a cross-entropy, where it has less."""
    if claim == "mix":
        return f"within {NEAR:g} %" if value.mean < NEAR else f"not within {NEAR:g} %"
    more = value.times * (-1 if claim == "6" or column.endswith("further - pretrained") else 1)
    yes, no = ("more", "less") if claim == "mends" else ("as in the paper", "the other way")
    return yes if more > SURE else no if more < -SURE else "not told apart"


def summary(head, rows, found):
    """Lines of Markdown, a difference a line: claim, the paper's figure, ours with its error, tokens, training, verdict."""
    results = Results(rows)
    yield "| claim | in the paper | here | difference ± SE | in SE | tokens read | core minutes | verdict |"
    yield "|---|---|---|---|---|---|---|---|"
    for claim, (table, *_) in found.items():
        runs = [run for arm in CLAIM_ARMS[claim] for run in results.runs.get(arm, {}).values()]
        seen = sorted(run["seen"] / 1e6 for run in runs if "read" in run)
        about = f"{seen[0]:.1f}M" if seen[-1] - seen[0] < 0.05 else f"{seen[0]:.1f} to {seen[-1]:.1f}M"
        minutes = sum(run.get("seconds", 0) for run in runs) / 60
        columns = [2] if claim == "mix" else range(len(table.columns) - table.differences, len(table.columns))
        shown = [(values[c], f"{label}: {table.columns[c]}") for label, _, values in table.rows
                 if label.endswith(KEYS.get(claim, ("mean of tasks",))) for c in columns if values[c]]
        unit, once = " %" if claim == "mix" else "", (claim, TITLES[claim][1], about, f"{minutes:.0f}")
        for value, what in shown:
            name, paper, tokens, took = once
            yield (f"| {name} | {paper} | {what} | {value.mean:+.3f}{unit} ± {value.error:.3f} | {value.times:+.1f} "
                   f"| {tokens} | {took} | {in_words(claim, what, value)} |")
            once = "", "", "", ""       # said in a claim's first line alone
    yield f"{head['seeds']} seeds, {head['size']['tokens']:,} tokens a student after its start of {head['size']['start']:,}"
    yield ""


def read(path):
    """(head, rows) of a file of results; ValueError for another file."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    try:
        head, *rows = map(json.loads, lines)
        _ = head["claims"], head["rates"]["tried"], [row["arm"] for row in rows]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not results of course/claims.py; expected a head and a line a student") from None
    return head, rows


def draw(fig, table):
    """Columns of a table with their errors: a point a row, beside a mark at chance, or a curve along table.xs."""
    axes, drawn = fig.subplots(), table.drawn or range(len(table.columns) - table.differences)
    rows = [row for row in table.rows if not row[0].startswith(("bits", "reads"))]
    for k, column in enumerate(drawn):
        colour, marker, *_ = plots.LOOKS[k % len(plots.LOOKS)]
        means, errors = zip(*[(v.mean, v.error) if v else (math.nan, math.nan) for v in (row[2][column] for row in rows)])
        look = {"color": colour, "ms": 5, "capsize": 2, "lw": 1, "mfc": "white" if k >= len(plots.LOOKS) else colour}
        if table.xs:
            axes.errorbar(table.xs, means, errors, fmt=f"{marker}-", label=table.columns[column], **look)
            continue
        ys = [i + (k - (len(drawn) - 1) / 2) * 0.7 / len(drawn) for i in range(len(rows))]
        axes.errorbar(means, ys, xerr=errors, fmt=marker, label=table.columns[column], **look)
    axes.set_title(table.title.split(". In the paper")[0])
    fig.legend(fontsize=8, ncols=3, loc="outside lower center")
    if table.xs:
        tokens = "tokens" in table.along
        axes.set(xlabel=table.along, xscale="log" if tokens else "linear")
        axes.set_xticks(table.xs, [f"{x / 1e6:.1f}M" if tokens else f"{x:g}" for x in table.xs])
        axes.minorticks_off()
        return
    for i, (_, by_chance, _) in enumerate(rows):
        if by_chance is not None:
            axes.plot([by_chance, by_chance], [i - 0.42, i + 0.42], color=plots.INK, lw=1.6)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def pictures(out, head, rows):
    """Writes claim-1.png ... beside the results -> a line that says so, or what is missing."""
    try:
        for claim, (table, *_) in tables(head, rows).items():
            height = 4.0 if table.xs else max(3.0, 1.4 + 0.1 * len(table.rows) * (len(table.columns) - table.differences))
            plots.picture(Path(out) / f"claim-{claim}.png", "png", draw, (7, height), table)
    except ImportError:
        return "no pictures: matplotlib is not here; pip install -e \".[plot]\" brings it"
    return f"pictures in {out}"
