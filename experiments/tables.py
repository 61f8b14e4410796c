"""Files of results, a JSON object a line, what their tables are made of, and the options of both."""

import json
import math
from concurrent.futures import as_completed
from typing import NamedTuple

import numpy as np

from data.cli import check_range, progress
from data.files import write_text
from data.machine import PROCESSES
from data.own_text import json_rows, named

BOUNDS = {"seeds": (0, 1000, "a training each"), "workers": (0, PROCESSES, "8 a core")}     # of options


def packed(credits):
    """Credits (floats) as a str, a sign an item: 1 right, 0 wrong, = a tie that holds the right answer."""
    return "".join({1.0: "1", 0.0: "0"}.get(credit, "=") for credit in credits)


def unpacked(signs):
    """(n,) float64 of a string of packed; NaN for the sign -, an item that was learnt from."""
    return np.array([{"1": 1.0, "0": 0.0, "=": 0.5}.get(sign, np.nan) for sign in signs])


class Value(NamedTuple):
    """A mean and its standard error, NaN where there is none."""
    mean: float
    error: float

    @property
    def times(self):
        """The mean in standard errors; without an error inf or -inf, and 0 for a mean of 0."""
        return self.mean / self.error if self.error else math.inf * self.mean if self.mean else 0.0


def squared_error(values):
    """The squared standard error of a mean; NaN for a single value."""
    return values.var(ddof=1) / len(values) if len(values) > 1 else math.nan


def joint_error(over_items, by_seed):
    """The error sqrt(a^2 + b^2) of the mean of by_seed (S,), figures of S seeds on the same items.

    a, over_items, is that of the items, b that of the seeds. As all seeds answer the same items, b does not
    hold the chance of these (in claim_tables.py it does): the larger of a and b would be too small. Both
    hold the chance of one seed on one item, so the error is rather large."""
    return math.hypot(over_items, np.nan_to_num(squared_error(by_seed) ** 0.5))     # b = 0 for a single seed


def read_rows(path, key, complaint="no result of this experiment", is_result=lambda row: True):
    """The lines of a file of results -> {values of the names in `key`: dict}, in their order. ValueError with
    file, line and `complaint` where a name is missing, or is_result(dict) is false."""
    rows = {}
    with named(path):
        for place, row in json_rows(path):
            with named(place):
                if not (set(key) <= set(row) and is_result(row)):
                    raise ValueError(complaint)
                rows[tuple(row[name] for name in key)] = row
    return rows


def run_all(jobs, path, pool, what, run, key):
    """Runs the jobs that are not in a file of results yet, and adds a line for each -> read_rows of it. Jobs
    are tuples that begin with the values of `key`."""
    path.touch()
    results, n = read_rows(path, key), len(key)
    futures = {pool.submit(run, job): job[:n] for job in jobs if job[:n] not in results}
    for future in progress(as_completed(futures), what, total=len(futures)):
        results[futures[future]] = future.result()
        write_text(path, "".join(json.dumps(result) + "\n" for result in results.values()))
    return results


def parse_with_show(parser, arguments):
    """The options of an ArgumentParser, which gets --workers and --show FILE; ValueError where --show stands
    beside another one."""
    parser.add_argument("--workers", type=int, default=2, help="processes side by side, one thread each [2]")
    parser.add_argument("--show", metavar="FILE", help="print the tables of a file of results, and stop")
    options = parser.parse_args(arguments)
    check_range("workers", options.workers, *BOUNDS["workers"])
    given = [name for name, value in vars(options).items() if value not in ([], parser.get_default(name))]
    if options.show and given != ["show"]:
        raise ValueError("--show makes nothing: other options beside it have no effect; leave them out")
    return options
