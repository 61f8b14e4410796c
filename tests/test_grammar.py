"""The grammar: its answers against a second definition of the language, its probabilities against draws."""
import collections
import random
import re

import pytest

from experiments import grammar
from experiments.grammar import END, N_VOCAB, SYMBOL, SYMBOLS, TYPES, answer, prompt, valid

# The tokens in the order of their ids, as the docstring of grammar.py writes them.
NAMES = (["end", "=>", "<<", ">>", "copy", "back"] + ["(" + t for t in TYPES] + [t + ")" for t in TYPES]
         + [f"{t}{number}" for t in TYPES for number in range(SYMBOLS)])


def decode(ids):
    return " ".join(NAMES[i] for i in ids)


def ids(names):
    return [NAMES.index(name) for name in names.split()]


def next_distribution(ask, partial):
    """{id: probability > 0} of the token after ask + partial; empty where nothing can follow."""
    todo = grammar.duties(ask)
    state = grammar.walk(todo, partial)
    return {} if state is None else grammar.options(todo, *state)


def reference_valid(ask, reply):
    """The language on names: strip extras from the inside out; what is left must be the duties."""
    names = decode(ask).split()
    span = names[names.index("<<") + 1:names.index(">>")]
    todo = []
    for name in names[::-1]:
        if name.startswith("("):
            todo.append(name[1] + ")")
        elif name in ("copy", "back"):
            todo.append(" ".join(span if name == "copy" else span[::-1]))
    depth = 0
    for name in decode(reply).split():
        depth += name.startswith("(")
        if depth > grammar.DEPTH:
            return False
        depth -= name.endswith(")") and depth > 0               # at depth 0 it closes a bracket of the prompt
    text, before = f" {decode(reply)} ", None
    while text != before:
        before, text = text, re.sub(r" \(([a-n]) (?:(?:\1\d+|X) )*\1\) ", " X ", text)
    expected = "".join(f"(?:X )*{re.escape(duty)} " for duty in todo)
    return re.fullmatch(f" {expected}(?:X )*end ", text) is not None


def test_vocabulary_and_the_example_of_the_docstring():
    assert N_VOCAB == len(NAMES) == len(set(NAMES)) == 202
    ask, reply = ids("(c b4 (a << e2 e0 f7 >> a1 copy (b =>"), ids("b) (d d0 d3 d) e2 e0 f7 a) c) end")
    assert valid(ask, reply) and reference_valid(ask, reply)
    page = " ".join(grammar.__doc__.split())
    assert decode(ask) in page and decode(reply) in page
    assert not valid(ask, ids("b) f7 e0 e2 a) c) end"))                     # copied backwards
    assert valid(ids("(c << e2 e0 f7 >> back =>"), ids("f7 e0 e2 c) end"))
    assert not valid(ask, reply[:-1]) and not valid(ask, reply + [END]) and not valid(ask, [])
    assert not valid(ask, ids("b) e2 (d d) e0 f7 a) c) end"))               # an extra inside a copy


def test_sampled_answers_are_valid_and_have_about_25_tokens():
    rng, again, lengths = random.Random(1), random.Random(1), []
    for _ in range(2000):
        ask = prompt(rng)
        reply = answer(rng, ask)
        assert (ask, reply) == (prompt(again), answer(again, ask))
        assert valid(ask, reply) and len(ask) <= 23 and max(ask + reply) < N_VOCAB
        lengths.append(len(reply))
    assert 24 < sum(lengths) / len(lengths) < 26.5                          # standard error .28


def test_every_substitution_is_judged_as_the_reference_does():
    """All 201 other tokens at every position of two answers: `valid` finds those that leave the language."""
    rng, left, kept = random.Random(2), 0, 0
    for _ in range(2):
        ask = prompt(rng)
        reply = answer(rng, ask)
        for at in range(len(reply)):
            for token in range(N_VOCAB):
                changed = reply[:at] + [token] + reply[at + 1:]
                assert valid(ask, changed) == reference_valid(ask, changed), decode(changed)
                if token != reply[at]:
                    left, kept = left + (not valid(ask, changed)), kept + valid(ask, changed)
    assert left > 20 * kept > 0                                             # extras may have other symbols


def test_a_fourth_level_of_extras_leaves_the_language():
    ask = ids("(a << b0 >> copy =>")
    for extra, expected in (("(a (a (a a) a) a)", True), ("(a (a (a (a a) a) a) a)", False)):
        reply = ids(f"{extra} b0 a) end")
        assert valid(ask, reply) == reference_valid(ask, reply) == expected


def test_next_distribution_by_hand():
    ask = ids("(c << e2 e0 >> copy =>")
    harmonic = sum(1 / n for n in range(1, 15))
    start = next_distribution(ask, [])
    assert len(start) == 15 and start[NAMES.index("e2")] == pytest.approx(1 - grammar.EXTRA)
    assert start[NAMES.index("(b")] == pytest.approx(grammar.EXTRA / 2 / harmonic)
    assert next_distribution(ask, ids("e2")) == {NAMES.index("e0"): 1}
    deepest = next_distribution(ask, ids("(a (a (b"))
    assert set(deepest) == set(ids("b) b0 b1 b2 b3 b4 b5 b6 b7 b8 b9 b10 b11"))
    assert deepest[NAMES.index("b)")] == grammar.SHUT
    assert next_distribution(ask, [SYMBOL, END]) == {} == next_distribution(ask, ids("e2 e0 c) end"))


def test_frequencies_agree_with_next_distribution():
    """How often a kind of token was drawn at a depth, against the sum of its probabilities."""
    def kind(token):
        return sum(token >= bound for bound in (grammar.OPEN, grammar.CLOSE, SYMBOL))
    rng, expected, spread, found = random.Random(5), *(collections.Counter() for _ in range(3))
    for _ in range(500):
        ask = prompt(rng)
        todo, reply = grammar.duties(ask), answer(rng, ask)
        for at, token in enumerate(reply):
            state = grammar.walk(todo, reply[:at])
            shares, depth = grammar.options(todo, *state), len(state[1])
            assert abs(sum(shares.values()) - 1) < 1e-12 and min(shares.values()) > 0
            for other, share in shares.items():
                expected[depth, kind(other)] += share
                spread[depth, kind(other)] += share * (1 - share)
            found[depth, kind(token)] += 1
    assert len(expected) > 9 and max(depth for depth, _ in expected) == grammar.DEPTH
    for key, total in expected.items():
        assert abs(found[key] - total) < 4.5 * spread[key] ** 0.5 + 1, key


def test_answers_and_their_probabilities_agree():
    ask, n = ids("(c << e2 >> copy =>"), 20000
    rng, checked = random.Random(4), 0.0
    seen = collections.Counter(tuple(answer(rng, ask)) for _ in range(n))
    for reply, count in seen.most_common(100):
        share = 1.0
        for at, token in enumerate(reply):
            share *= next_distribution(ask, list(reply[:at]))[token]
        assert abs(count / n - share) < 5 * (share * (1 - share) / n) ** 0.5 + 2e-4, decode(reply)
        checked += share
    assert checked > 0.6
