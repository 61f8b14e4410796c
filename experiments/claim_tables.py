"""The tables of experiments/claims.py, made from a file of results alone.

    print("\\n".join(show(*read("experiments/results/claims.jsonl"))))

Errors. Within a seed all arms answer the same items; every seed has its own items, start and training text.
With d[s, i] the credit of one arm, or the difference of two on the same item, and d[s] its mean over the n
items of seed s:

    mean         m = mean over S seeds of d[s]
    over items   sqrt( sum_s var_i(d[s, i]) / n ) / S             how far other items would move m
    over seeds   sqrt( var_s(d[s]) / S )                          how far other seeds would, items included

The second is the whole error, as a seed brings its items with it, but a rough figure from three seeds. So the
larger of both is quoted. For a mean over K tasks d[s] is the mean of the tasks' means, and errors over items
add up as sqrt(sum of squares) / K: the tasks are these, not a sample of tasks.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.files import sha256_of
from experiments import claim_items
from experiments.claim_arms import ARMS, CLAIMS, CONTROL
from experiments.claim_tests import LEARNT, unpacked
from experiments.retelling import METHODS

EQUAL, SPILL = 0.01, 300     # arms may differ in tokens by this part and by some documents, which are not cut
SURE = 3.0                   # standard errors from which on a difference is called one


class Value(NamedTuple):
    """A mean and the larger of its standard errors over seeds and over items; NaN where there is neither."""
    mean: float
    error: float

    @property
    def times(self):
        """The mean in standard errors."""
        if self.error == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.error


class Table(NamedTuple):
    """Rows (label, chance or None, [Value or None]); the last `differences` columns are differences."""
    title: str
    columns: list
    rows: list
    differences: int
    notes: tuple = ()


# --- estimates ----------------------------------------------------------------------------------------------

def squared_error(values):
    """The squared standard error of a mean; NaN for a single value."""
    return values.var(ddof=1) / len(values) if len(values) > 1 else math.nan


def estimate(blocks):
    """Value of blocks [task][seed] of arrays (n,); NaN items are left out. See the formula above."""
    blocks = [[row[~np.isnan(row)] for row in seeds] for seeds in blocks]
    means = np.mean([[row.mean() for row in seeds] for seeds in blocks], axis=0)                   # (S,)
    squares = sum(squared_error(row) for seeds in blocks for row in seeds)
    over_items = math.sqrt(squares) / len(means) / len(blocks)
    return Value(float(means.mean()), float(np.fmax(over_items, math.sqrt(squared_error(means)))))


def mean_accuracy(tasks):
    """The mean over tasks of packed credits {task: str}."""
    return float(np.mean([np.nanmean(unpacked(signs)) for signs in tasks.values()]))


class Results:
    """The lines of a file of results by arm and seed."""

    def __init__(self, rows):
        self.runs, self.near = {}, {}
        for row in sorted(rows, key=lambda row: row["seed"]):
            self.runs.setdefault(row["arm"], {})[row["seed"]] = row
            for task, indices in row.get("near", {}).items():
                self.near.setdefault((row["seed"], task), set()).update(indices)

    def credits(self, arm, task, key="tasks"):
        """[(n,) a seed]: NaN where not tested, or near to training text. task None: a figure of all tasks."""
        rows = []
        for seed, run in self.runs[arm].items():
            found = run[key] if task is None else run[key][task]
            found = [found["value"]] if isinstance(found, dict) else found
            row = unpacked(found) if isinstance(found, str) else np.atleast_1d(np.array(found, float))
            row[[i for i in self.near.get((seed, task), ()) if i < len(row)]] = np.nan
            rows.append(row)
        return rows

    def value(self, arm, tasks, key="tasks", minus=None, other=None):
        """Value of an arm over tasks, or of its difference from the arm `minus` (with `other` as key); None
        where one was not tested so."""
        if any(key not in run for one in {arm, minus or arm} for run in self.runs[one].values()):
            return None
        blocks = [self.credits(arm, task, key) for task in tasks]
        if minus:
            self.check_tokens(arm, minus)
            blocks = [[a - b for a, b in zip(rows, self.credits(minus, task, other or key), strict=True)]
                      for rows, task in zip(blocks, tasks)]
        return estimate(blocks)

    def check_tokens(self, arm, other):
        """ValueError where two arms that should have read the same number of tokens did not."""
        a, b = ARMS.get(arm), ARMS.get(other)
        if a and b and (a.tokens, a.start) == (b.tokens, b.start):
            for seed, run in self.runs[arm].items():
                mine, theirs = run["seen"], self.runs[other][seed]["seen"]
                if abs(mine - theirs) > EQUAL * theirs + SPILL:
                    raise ValueError(f"{arm} has read {mine:,} tokens with seed {seed}, {other} {theirs:,}: "
                                     "no comparison at equal tokens")


# --- a table a claim ----------------------------------------------------------------------------------------

def heading(claim):
    return f"{claim}: {CLAIMS[claim].title}. In the paper: {CLAIMS[claim].paper}"


def chance(tasks):
    return sum(1 / claim_items.TASKS[task][2] for task in tasks) / len(tasks)


def rows_of(results, parts, columns):
    """A row for each (label, tasks, key) of parts; columns: other arguments of Results.value, a dict each."""
    return [(label, chance(some) if key in ("tasks", "centred") else None,
             [results.value(**{"tasks": some, "key": key, **column}) for column in columns])
            for label, some, key in parts]


def arms_table(claim, results, tasks):
    """Every claim but 5: arms side by side, then differences."""
    _, _, arms, differences, _ = CLAIMS[claim]
    key = "agreement" if claim == "6" else "tasks"
    columns, tasks = [{"arm": arm} for arm in arms], LEARNT if claim == "8" else tasks
    columns += [dict(zip(("arm", "minus"), name.split(" - "))) for name in differences]
    parts = [(task, [task], key) for task in tasks] + [("mean of tasks", tasks, key)]
    if claim not in ("6", "8"):
        runs = [run["centred"] for arm in arms for run in results.runs[arm].values() if "centred" in run]
        centred = [task for task in tasks if all(task in run for run in runs)]
        parts += [("centred mean", centred, "centred"), ("bits a byte", [None], "bits")]
        parts += [(f"reads: {name}", [name], "reading") for name in ("who", "wh", "yes", "swapped")]
    rows, notes = rows_of(results, parts, columns), []
    for column, name in enumerate(differences, len(arms)):
        times = {label: values[column].times for label, _, values in rows[:len(tasks)] if values[column]}
        above, below = ([task for task in times if sign * times[task] > SURE] for sign in (1, -1))
        above, below = (f"{len(some)} ({', '.join(some)})" if some else "none" for some in (above, below))
        notes.append(f"{name}: of {len(times)} tasks {above} more than {SURE:g} standard errors above 0, "
                     f"{below} below")
    return Table(heading(claim), [*arms, *differences], rows, len(differences), notes)


def blank_table(results, tasks):
    """What can be answered without the paragraph."""
    columns = [{"arm": arm, "key": "blank"} for arm in CONTROL]
    columns += [{"arm": arm, "minus": arm, "other": "blank"} for arm in CONTROL]
    names = [f"{arm}, none" for arm in CONTROL] + [f"{arm} read - none" for arm in CONTROL]
    rows = rows_of(results, [(task, [task], "tasks") for task in tasks], columns)
    return Table("control: the same tasks without their paragraph", names, rows, 2)


def wordings_table(results, tasks, wrappers):
    """The arm brd wording by wording: item i of a task stands in wrapper i % n."""
    rows = []
    for task in tasks:
        n = len(wrappers[claim_items.TASKS[task][0]])
        values = [estimate([[row[w::n] for row in results.credits("brd", task)]]) for w in range(n)]
        rows.append((task, chance([task]), (values + [None])[:3]))
    return Table("brd by wording of the task", ["wording 1", "wording 2", "wording 3"], rows, 0)


def after_table(claim, results, tasks):
    """Claim 5: every method after plain text and after BRD, on the blind tasks and on its own."""
    parts = [(f"{method}, blind", f"+{method}", tasks, "tasks") for method in METHODS]
    parts += [(f"{method}, own task", f"+{method}", [None], "retelling") for method in METHODS]
    parts += [("task distillation", ":relaxed", LEARNT, "tasks"),
              ("nothing, these tasks", "", LEARNT, "tasks"), ("nothing, blind", "", tasks, "tasks")]
    rows = []
    for label, method, some, key in parts:
        plain, brd = (results.value(first + method, some, key) for first in CONTROL)
        rows.append((label, None, [plain, brd, results.value(f"brd{method}", some, key, f"plain{method}")]))
    taught = np.mean(results.credits("teacher", None, "retelling")[0])
    notes = [f"task distillation: the teacher's answers to a few inputs of {', '.join(LEARNT)}",
             f"the teacher answers {taught:.3f} of its own task right"]
    return Table(heading(claim), ["plain first", "brd first", "brd - plain"], rows, 1, notes)


def tables(head, rows):
    """{claim: [Table]} of all claims for which the results hold every arm."""
    results, tasks, found = Results(rows), list(claim_items.TASKS), {}
    for claim in head["claims"]:
        if set(CLAIMS[claim].arms) <= set(results.runs):
            make = after_table if claim == "5" else arms_table
            found[claim] = [make(claim, results, tasks)]
    wrappers = claim_items.WRAPPERS / f"{head['wrappers']}.json"
    if "1" in found:
        found["1"].append(blank_table(results, tasks))
        if wrappers.exists() and sha256_of(wrappers) == head["sha256"]:
            found["1"].append(wordings_table(results, tasks, claim_items.read_wrappers(wrappers)))
    return found


# --- as text ------------------------------------------------------------------------------------------------

def cell(value, difference):
    """A mean ± the larger standard error; a difference also in standard errors."""
    if value is None:
        return "-"
    if difference:
        return f"{value.mean:+.3f} ±{value.error:.3f} {value.times:+5.1f}"
    return f"{value.mean:.3f} ±{value.error:.3f}"


def text(table):
    """Lines of a Table."""
    first = len(table.columns) - table.differences
    wide = [max(len(name) + 2, 15 if i < first else 22) for i, name in enumerate(table.columns)]
    yield table.title
    yield f"{'':22}{'chance':>7}" + "".join(f"{name:>{w}}" for name, w in zip(table.columns, wide))
    for label, by_chance, values in table.rows:
        cells = [f"{cell(value, i >= first):>{w}}" for i, (value, w) in enumerate(zip(values, wide))]
        yield f"{label:22}{'' if by_chance is None else f'{by_chance:.2f}':>7}" + "".join(cells)
    yield from (f"  {note}" for note in table.notes)
    yield ""


def in_words(claim, difference, value):
    """What a difference says. The paper has more in each, but less for further training and for claim 6."""
    times = -value.times if claim == "6" or difference == "further - pretrained" else value.times
    if not abs(times) > SURE:
        return "not told apart"
    if CLAIMS[claim].paper == "not published":
        return "more" if times > 0 else "less"
    return "as in the paper" if times > 0 else "the other way"


def summary(claim, table):
    """Lines of Markdown, a difference a line: the paper's figure, ours with its error, and what it says."""
    for label, _, values in table.rows:
        for name, value in list(zip(table.columns, values))[-table.differences:]:
            if value and label.endswith(CLAIMS[claim].rows):
                yield (f"| {claim} | {CLAIMS[claim].paper} | {label}: {name} | {value.mean:+.3f} ± "
                       f"{value.error:.3f} | {value.times:+.1f} | {in_words(claim, name, value)} |")


def show(head, rows):
    """Lines: what was run, a table a claim, and the summary in Markdown."""
    near, left_out = sum(len(i) for row in rows for i in row.get("near", {}).values()), Results(rows).near
    yield (f"{head['command']}; {head['seeds']} seeds, wrappers {head['wrappers']} ({head['sha256'][:12]}), "
           f"torch {head['torch']}")
    yield f"learning rates: {json.dumps(head['rates'])}"
    yield (f"{near} near-duplicates found by {len(rows)} students in what they had read; "
           f"{sum(map(len, left_out.values()))} items left out")
    yield "± the larger of the standard errors over seeds and over items, and a difference in such errors"
    yield "centred: each candidate's mean over the unlabelled test items is subtracted from its scores"
    yield ""
    found = tables(head, rows)
    for table in (table for some in found.values() for table in some):
        yield from text(table)
    yield "| claim | in the paper | here | difference ± SE | in SE | verdict |"
    yield "|---|---|---|---|---|---|"
    for claim, (table, *_) in found.items():
        yield from summary(claim, table)


def read(path):
    """(head, rows) of a file of results; ValueError for another file."""
    try:
        head, *rows = map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
        _ = head["claims"], head["rates"]["tried"], [(row["arm"], row["seed"]) for row in rows]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: expected the results of experiments.claims, a line a student") from None
    return head, rows
