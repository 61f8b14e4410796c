"""The mutants of tests/mutants.py: which changes they are, and that every one is a file that Python can read."""
from pathlib import Path

import pytest

import mutants

SOURCE = '''"""A docstring, which has no mutants."""
import os

KEPT = 3


def f(x, y=1, *, least=False):
    """Another."""
    if x and not y:
        raise ValueError(f"{x + y} of {x}")
    total = g(x[1:y], dim=-1).detach()
    total += max(x < y, 2.5)
    h(total)
    return total
'''
WANTED = [
    (4, "KEPT = 4"), (4, "KEPT = 2"), (7, "def f(x, y=2, *, least=False):"), (7, "def f(x, y=0, *, least=False):"),
    (7, "def f(x, y=1, *, least=True):"), (9, "if (not (x and (not y))):"), (9, "if (x or not y):"), (9, "if x and y:"),
    (11, "total = (g(x[1:y], dim=-1))"), (11, "total = (g(x[1:y])).detach()"), (11, "total = g(x[2:y], dim=-1).detach()"),
    (11, "total = g(x[0:y], dim=-1).detach()"), (11, "total = g(x[1:(y + 1)], dim=-1).detach()"),
    (11, "total = g(x[1:(y - 1)], dim=-1).detach()"), (11, "total = g(x[1:y], dim=-2).detach()"),
    (11, "total = g(x[1:y], dim=-0).detach()"), (12, "total -= max(x < y, 2.5)"), (12, "pass"), (12, "total += min(x < y, 2.5)"),
    (12, "total += max((x <= y), 2.5)"), (12, "total += max((x > y), 2.5)"), (12, "total += max(x < y, 3.5)"),
    (12, "total += max(x < y, 1.5)"), (13, "pass"), (14, "return None")]


def test_every_kind_of_change_by_hand():
    found = mutants.mutants(SOURCE, ())
    assert sorted((line, after) for line, _, after, _ in found) == sorted(WANTED)
    for line, before, after, whole in found:
        changed = [(a.strip(), b.strip()) for a, b in zip(SOURCE.splitlines(), whole.decode().splitlines(), strict=True) if a != b]
        assert changed == [(before, after)]
    assert not mutants.mutants(SOURCE, ("f", "KEPT"))


@pytest.mark.parametrize("name", mutants.TESTS)
def test_the_mutants_of_a_file_can_be_compiled(name):
    tests, left_out = mutants.TESTS[name]
    source = (mutants.ROOT / name).read_text(encoding="utf-8")
    found = mutants.mutants(source, left_out)
    assert len(found) > 200 and all(whole.decode() != source for *_, whole in found)
    for *_, whole in found[::10]:
        compile(whole, name, "exec")
    assert all((Path(mutants.__file__).parent / f"{test}.py").exists() for test in tests)
