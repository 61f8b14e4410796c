"""The tables of experiments/claims.py, made from a file of results alone.

Errors. Within a seed all arms answer the same items; every seed has its own items, start and training text.
With d[s, i] the credit of one arm, or the difference of two on the same item, and d[s] its mean over the n
items of seed s, a value is the mean of d[s] over S seeds, and its error the larger of

    over items   sqrt( sum_s var_i(d[s, i]) / n ) / S             how far other items would move it
    over seeds   sqrt( var_s(d[s]) / S )                          how far other seeds would, items included

The second is the whole error, but a rough figure from three seeds. For a mean over K tasks d[s] is the mean
of the tasks' means, and errors over items add up as sqrt(sum of squares) / K: the tasks are no sample.
"""

import json
import math
import re
from pathlib import Path

import numpy as np

from experiments import claim_items
from experiments.claim_arms import CLAIMS
from experiments.tables import Value, squared_error, unpacked

BAR, AS = 3, "as in the paper"      # BAR: standard errors from which on a difference is one
ALIKE = 0.02    # it is none where it and 3 SE are this at most: the paper calls .9 of its 6.2 points nothing
RULE = (f'Signs are compared, not sizes. From {BAR} SE on a difference is "{AS}" or "opposite", below "not '
        f'shown"; where the paper has none (=), "{AS}" if |difference| + {BAR} SE is at most {ALIKE}.')


def estimate(blocks):
    """Value of blocks [task][seed] of arrays (n,); NaN items are left out. See the formula above."""
    blocks = [[row[~np.isnan(row)] for row in seeds] for seeds in blocks]
    means = np.mean([[row.mean() for row in seeds] for seeds in blocks], axis=0)                   # (S,)
    squares = sum(squared_error(row) for seeds in blocks for row in seeds)
    over_items = math.sqrt(squares) / len(means) / len(blocks)
    return Value(float(means.mean()), float(np.fmax(over_items, math.sqrt(squared_error(means)))))


class Results:
    """The lines of a file of results by arm and seed."""

    def __init__(self, rows):
        self.runs, self.near = {}, {}
        for row in sorted(rows, key=lambda row: row["seed"]):
            self.runs.setdefault(row["arm"], {})[row["seed"]] = row
            for task, indices in row.get("near", {}).items():
                self.near.setdefault((row["seed"], task), set()).update(indices)

    def credits(self, arm, task, key):
        """[(n,) a seed]: NaN where not tested, or near to training text."""
        rows = []
        for seed, run in self.runs[arm].items():
            found = run[key][task]
            row = unpacked(found) if isinstance(found, str) else np.array(found, float)
            row[[i for i in self.near.get((seed, task), ()) if i < len(row)]] = np.nan
            rows.append(row)
        return rows

    def value(self, arm, tasks, key="tasks", minus=None):
        """Value of an arm over tasks, or of its difference from the arm `minus`; None where not tested so."""
        if any(key not in run for one in {arm, minus or arm} for run in self.runs[one].values()):
            return None
        blocks = [self.credits(arm, task, key) for task in tasks]
        if minus:
            blocks = [[a - b for a, b in zip(rows, self.credits(minus, task, key), strict=True)]
                      for rows, task in zip(blocks, tasks)]
        return estimate(blocks)


def scope(claim, name=""):
    """(tasks, key of the results) of a claim, or of one of its differences."""
    few = claim == "8" or ":" in name               # tasks of which students learn items
    return list(claim_items.LEARNT if few else claim_items.TASKS), "agreement" if claim == "6" else "tasks"


def parts_of(claim, columns):
    """The rows of a claim's table: [(label, tasks, key of the results, what its columns name)]."""
    if claim == "5":                                # its arms differ from row to row
        return [(name, *scope(claim, name), [*name.split(" - "), name]) for name in CLAIMS[claim].differences]
    tasks, key = scope(claim)
    parts = [(task, [task], key, columns) for task in tasks] + [("mean of tasks", tasks, key, columns)]
    return parts if claim in ("6", "8") else [*parts, ("without the text", tasks, "blank", columns)]


def table(claim, results):
    """(columns, rows): columns are arms, then differences; rows (label, chance, [Value or None a column])."""
    entry, rows = CLAIMS[claim], []
    columns = ["first", "second", "first - second"] if claim == "5" else [*entry.arms, *entry.differences]
    for label, tasks, key, names in parts_of(claim, columns):
        values = [results.value(arm, tasks, key, *minus) for arm, *minus in (n.split(" - ") for n in names)]
        chance = np.mean([1 / claim_items.TASKS[task][2] for task in tasks]) if key == "tasks" else None
        if any(value for name, value in zip(columns, values) if " - " in name):
            rows.append((label, chance, values))
    return columns, rows


def lines_of(columns, rows):
    """A table as lines: means ± errors; a difference also in standard errors."""
    def cell(column, value):
        if value is None:
            return "-"
        if " - " in column:
            return f"{value.mean:+.3f} ±{value.error:.3f} {value.times:+5.1f}"
        return f"{value.mean:.3f} ±{value.error:.3f}"
    wide = [max(len(name) + 2, 22 if " - " in name else 15) for name in columns]
    yield f"{'':28}{'chance':>7}" + "".join(f"{name:>{w}}" for name, w in zip(columns, wide))
    for label, chance, values in rows:
        cells = [f"{cell(*pair):>{w}}" for *pair, w in zip(columns, values, wide)]
        yield f"{label:28}{'' if chance is None else f'{chance:.2f}':>7}" + "".join(cells)


def verdict(sign, value):
    """What a difference (a Value, None where there is none) says of the paper's sign: ">", "<" or "="."""
    if value is None:
        return "not tested"
    if sign == "=" and abs(value.mean) + BAR * value.error <= ALIKE:
        return AS
    if not abs(value.times) >= BAR:                     # also where the error is 0 or NaN
        return "not shown"
    return AS if sign == (">" if value.mean > 0 else "<") else "opposite"


def verdict_of(found):
    """The verdict of a claim from those of all its comparisons."""
    held, n, against = found.count(AS), len(found), found.count("opposite")
    kind = "in part" if 0 < held < n else "reproduced" if held else "not"
    return f"{kind}: {held} of {n}{f', {against} opposite' if against else ''}" if n else "not in the paper"


def summary(claim, results):
    """Lines of Markdown: a claim with its verdict, then its comparisons, the paper's figures beside ours."""
    lines, found = [], []
    for arms, paper, row, run in CLAIMS[claim].comparisons:
        (first, sign, second), (tasks, key) = re.split(" ([<>=]) ", arms), scope(claim, arms)
        value = results.value(first, [row] if row else tasks, key, second) if run else None
        found.append(verdict(sign, value))
        here = f"{value.mean:+.3f} ± {value.error:.3f} | {value.times:+.1f}" if value else "- | -"
        where = row or f"mean of {len(tasks)}"
        lines.append(f"| {claim} | {where}: {arms} | {paper} | {here} | {found[-1]} |")
    return [f"| **{claim}** | **{CLAIMS[claim].title}** | | | | **{verdict_of(found)}** |", *lines]


def show(head, rows):
    """Lines: what was run, a table a claim for which there is every arm, and the summary in Markdown."""
    results = Results(rows)
    yield f"{head['seeds']} seeds, wrappers {head['wrappers']} ({head['sha256'][:12]}), torch {head['torch']}"
    yield f"sizes: {json.dumps(head['size'])}"
    yield f"learning rates: {json.dumps(head['rates'])}"
    yield f"{sum(map(len, results.near.values()))} items left out, near-duplicates of training text"
    yield "± the larger of the standard errors over seeds and over items, and a difference in such errors"
    lines = ["", RULE, "", "| claim | comparison | in the paper | here ± SE | in SE | verdict |",
             "|---|---|---|---|---|---|"]
    for claim, entry in CLAIMS.items():
        columns, rows = table(claim, results) if set(entry.arms) <= set(results.runs) else ([], [])
        if rows:
            yield from ("", f"{claim}: {entry.title}", *lines_of(columns, rows))
            lines += summary(claim, results)
    if {"plain", "uniform", "brd"} <= set(results.runs):
        gains = (results.value(arm, scope("1")[0], minus="plain") for arm in ("uniform", "brd"))
        lines.insert(1, "BRD minus plain text, mean of all tasks: {} by the paper's loss, {} where answers "
                     "weigh 20.".format(*(f"{gain.mean:+.3f} ± {gain.error:.3f}" for gain in gains)))
    yield from lines


def read(path):
    """(head, rows) of a file of results; ValueError for another file."""
    try:
        head, *rows = map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
        _ = head["rates"]["tried"], [(row["arm"], row["seed"]) for row in rows]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: expected the results of experiments.claims, a line a student") from None
    return head, rows
