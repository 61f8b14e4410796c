"""Breaks the losses, the cache and the scorer in one small place at a time, and asks whether their tests notice.

    python tests/mutants.py                                  # 250 mutants, about half an hour on one core
    python tests/mutants.py --mutants=30 --seed=2 brd.py     # some of one file; --mutants=0: every one

A mutant is the file with one change: an operator or a comparison swapped, a number one off, a condition negated, a keyword
argument, a method call (detach, clamp, ...), a statement or a value to return dropped, a slice one longer. It is written into a
copy of the repository, and the test files of TESTS run there in a forked process; a failure kills it, and so does running far
longer than without the change. Which mutants are drawn depends on the seed alone. Prints how many were killed by file, and the
line of each survivor; exit code 1 where more than a tenth survive. A survivor is a test that is missing, or a change that
changes nothing. Needs a system with fork(), pytest and hypothesis.
"""

import argparse
import ast
import contextlib
import copy
import json
import os
import random
import shutil
import resource
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Source file -> its test files, those first that kill most; then names at the top level that are not tried.
TESTS = {
    "td_distill.py": (("test_td_distill", "test_td_losses"), ("main", "HEAD_CELLS", "vocabulary_chunks")),    # size of chunks: speed alone
    "data/cache.py": (("test_cache", "test_teacher_reads"), ()),
    "data/reads.py": (("test_teacher_reads", "test_td_distill", "test_td_losses"), ()),
    "brd.py": (("test_brd",), ("main", "table", "reading", "render", "documents", "encode_documents", "encode_document", "ROWS")),
}
SURVIVE_AT_MOST = 0.1

SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult,
         ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And, ast.LShift: ast.RShift,
         ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
         ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
TURNED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "zeros": "ones", "zeros_like": "ones_like"}
DROPPED = ("detach", "clamp", "exp", "log", "log_softmax", "softmax", "tril", "masked_fill", "float", "double", "strip", "rstrip", "lower")


def changed(node, **fields):
    """A copy of a node with other fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def of_operators(node):
    """Other operators and names, and what an operator is applied to without it."""
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS:
        yield changed(node, op=SWAPS[type(node.op)]())
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in (found[type(op)]() for found in (SWAPS, TURNED) if type(op) in found):
                yield changed(node, ops=node.ops[:i] + [other] + node.ops[i + 1:])
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield changed(node, id=NAMES[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield changed(node, attr=NAMES[node.attr])


def of_values(node):
    """Numbers one off, truth turned round, slices one longer or shorter."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield changed(node, value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield changed(node, value=node.value + 1)
        yield changed(node, value=node.value - 1)
    elif isinstance(node, ast.Slice):
        for bound in (bound for bound in (node.lower, node.upper) if bound and not isinstance(bound, ast.Constant)):
            yield from ((bound, ast.BinOp(bound, op, ast.Constant(1))) for op in (ast.Add(), ast.Sub()))


def of_calls(node):
    """A call without one of its keyword arguments, or what a method is called on without the call."""
    if isinstance(node, ast.Call):
        for keyword in filter(lambda keyword: keyword.arg, node.keywords):
            yield changed(node, keywords=[other for other in node.keywords if other is not keyword])
        if isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED and getattr(node.func.value, "id", "") != "torch":
            yield node.func.value


def of_flow(node):
    """Conditions negated, values to return and statements dropped."""
    tests = node.ifs if isinstance(node, ast.comprehension) else [node.test] if isinstance(node, (ast.If, ast.IfExp, ast.While)) else []
    for test in tests:
        yield test, ast.UnaryOp(ast.Not(), test)
    if isinstance(node, ast.Return) and node.value and not isinstance(node.value, ast.Constant):
        yield node.value, ast.Constant(None)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) or isinstance(node, (ast.AugAssign, ast.Continue)):
        yield ast.Pass()


def mutants(source, left_out):
    """[(line number, line before, line after, whole file)] of every mutant of a source file (str)."""
    lines, found = source.encode().splitlines(keepends=True), []

    def nodes(node):
        """A node and all below it, but messages: f-strings, and what is raised."""
        yield node
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.JoinedStr, ast.Raise)):
                yield from nodes(child)

    for statement in ast.parse(source).body:
        names = [getattr(statement, "name", None), *(ast.unparse(target) for target in getattr(statement, "targets", []))]
        if isinstance(statement, (ast.Import, ast.ImportFrom, ast.If, ast.Expr)) or set(names) & set(left_out):
            continue
        for node in nodes(statement):
            for new in (new for kind in (of_operators, of_values, of_calls, of_flow) for new in kind(node)):
                old, new = new if isinstance(new, tuple) else (node, new)
                a, b = old.lineno - 1, old.end_lineno - 1
                text = ast.unparse(ast.fix_missing_locations(new))
                text = f"({text})" if isinstance(new, ast.expr) and not isinstance(new, (ast.Constant, ast.Name)) else text
                after = lines[a][:old.col_offset] + text.encode() + lines[b][old.end_col_offset:]
                whole = b"".join(lines[:a] + [after] + lines[b + 1:])
                found.append((a + 1, *(" ".join(line.decode().split()) for line in (b"".join(lines[a:b + 1]), after)), whole))
    return found


class FastFirst:
    """A plugin of pytest: what took least time when nothing was changed runs first, so that most mutants die at once."""

    def __init__(self, folder):
        self.path, self.seconds = folder / "seconds.json", Counter()
        self.known = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: self.known.get(item.nodeid, 0))

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self, exitstatus):
        if exitstatus == 0:
            self.path.write_text(json.dumps(self.known | self.seconds), encoding="utf-8")


def passes(folder, tests, seconds):
    """Runs test files in a fork of this process, which has torch and pytest loaded -> (whether all pass, seconds of CPU time).

    seconds: of CPU time that are allowed; a process that only sleeps is ended as well."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
            signal.alarm(30 * int(seconds))
            nowhere = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(nowhere, number)
            os.chdir(folder)
            sys.path[0] = str(folder)
            import hypothesis
            import pytest
            import torch
            torch.set_num_threads(1)
            # The same examples for every mutant, and none is made smaller.
            hypothesis.settings.register_profile("mutants", derandomize=True, database=None, deadline=None, phases=[hypothesis.Phase.generate])
            hypothesis.settings.load_profile("mutants")
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *(f"tests/{name}.py" for name in tests)], [FastFirst(folder.parent)])
        finally:
            os._exit(int(code))                             # whatever happens, a fork does not go on with its parent's work
    _, status, used = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):           # what it has left running
        os.killpg(child, signal.SIGKILL)
    return status == 0, used.ru_utime + used.ru_stime


def main():
    """Prints every survivor when it is met, then the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=list(TESTS), help=f"of {', '.join(TESTS)} [all]")
    parser.add_argument("--mutants", type=int, default=250, help="how many are drawn; 0: all [250]")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if set(options.files) - set(TESTS):
        parser.error(f"expected files of {', '.join(TESTS)}")
    import hypothesis, pytest, tiktoken, torch._dynamo, tqdm  # noqa: E401, F401 (once, before the forks)
    every = [(file, mutant) for file in options.files
             for mutant in mutants((ROOT / file).read_text(encoding="utf-8"), TESTS[file][1])]
    drawn = sorted(random.Random(options.seed).sample(every, min(options.mutants or len(every), len(every))), key=lambda one: one[0])
    counts, seconds = Counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / "copy"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git*", "out*", "downloads", "__pycache__", ".hypothesis"))
        for number, (file, (line, before, after, whole)) in enumerate(drawn):
            if file not in seconds:
                passed, seconds[file] = passes(folder, TESTS[file][0], 600)
                if not passed:
                    raise SystemExit(f"{file}: its tests fail without any change")
            (folder / file).write_bytes(whole)
            os.utime(folder / file, (number, number))       # a time of its own: Python's cache of compiled files goes by it
            alive, _ = passes(folder, TESTS[file][0], 2 * seconds[file] + 10)
            counts[file, alive] += 1
            shutil.copy2(ROOT / file, folder / file)
            if alive:
                print(f"{file}:{line} survived\n  - {before}\n  + {after}", flush=True)
    for file in seconds:
        print(f"{file:16} {counts[file, False]:4} killed, {counts[file, True]:3} survived; its tests take {seconds[file]:.1f} s")
    share = sum(n for (_, alive), n in counts.items() if alive) / len(drawn)
    print(f"{len(drawn)} of {len(every)} mutants, {1 - share:.1%} killed")
    return int(share > SURVIVE_AT_MOST)


if __name__ == "__main__":
    sys.exit(main())
