import collections
import random
import re
import runpy

import pytest

from data import grammar
from experiments.grammar import END, N_VOCAB, NAMES, SYMBOL, answer, decode, next_distribution, prompt, valid


def ids(names):
    return [NAMES.index(name) for name in names.split()]


def reference_valid(ask, reply):
    """The language once more, on names: strip extras from the inside out; what is left must be the duties."""
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


def test_vocabulary_has_202_tokens_with_distinct_names():
    assert N_VOCAB == len(NAMES) == len(set(NAMES)) == 202


def test_example_of_the_docstring():
    ask, reply = ids("(c b4 (a << e2 e0 f7 >> a1 copy (b =>"), ids("b) (d d0 d3 d) e2 e0 f7 a) c) end")
    assert valid(ask, reply) and reference_valid(ask, reply)
    assert decode(ask) in " ".join(grammar.__doc__.split()) and decode(reply) in " ".join(grammar.__doc__.split())
    assert not valid(ask, ids("b) f7 e0 e2 a) c) end"))                     # copied backwards
    assert valid(ids("(c << e2 e0 f7 >> back =>"), ids("f7 e0 e2 c) end"))
    assert not valid(ask, reply[:-1]) and not valid(ask, reply + [END]) and not valid(ask, [])
    assert not valid(ask, ids("b) e2 (d d) e0 f7 a) c) end"))               # an extra inside a copy


def test_same_seed_same_world():
    def draw(seed):
        rng = random.Random(seed)
        return [(ask, answer(rng, ask)) for ask in (prompt(rng) for _ in range(20))]
    assert draw(7) == draw(7) != draw(8)


def test_sampled_answers_are_valid_and_have_about_25_tokens():
    rng = random.Random(1)
    lengths = []
    for _ in range(3000):
        ask = prompt(rng)
        reply = answer(rng, ask)
        assert valid(ask, reply) and len(ask) <= 23 and max(ask + reply) < N_VOCAB
        lengths.append(len(reply))
    assert 24 < sum(lengths) / len(lengths) < 26.5                          # standard error .23


def test_every_substitution_is_judged_as_the_reference_does():
    """All 201 other tokens at every position of some answers: `valid` finds exactly those that leave the language."""
    rng = random.Random(2)
    left = kept = 0
    for _ in range(4):
        ask = prompt(rng)
        reply = answer(rng, ask)
        for at in range(len(reply)):
            for token in range(N_VOCAB):
                changed = reply[:at] + [token] + reply[at + 1:]
                assert valid(ask, changed) == reference_valid(ask, changed), decode(changed)
                if token != reply[at]:
                    left, kept = left + (not valid(ask, changed)), kept + valid(ask, changed)
    assert left > 20 * kept > 0                                             # symbols of extras may be exchanged


def test_a_fourth_level_of_extras_leaves_the_language():
    ask = ids("(a << b0 >> copy =>")
    three, four = "(a (a (a a) a) a) b0 a) end", "(a (a (a (a a) a) a) a) b0 a) end"
    assert valid(ask, ids(three)) and not valid(ask, ids(four))
    assert reference_valid(ask, ids(three)) and not reference_valid(ask, ids(four))


def test_next_distribution_sums_to_one_and_holds_every_drawn_token():
    rng = random.Random(3)
    for _ in range(200):
        ask = prompt(rng)
        reply = answer(rng, ask)
        for at, token in enumerate(reply):
            shares = next_distribution(ask, reply[:at])
            assert abs(sum(shares.values()) - 1) < 1e-12 and min(shares.values()) > 0 and shares[token] > 0
        assert next_distribution(ask, reply) == {} == next_distribution(ask, [SYMBOL, END])


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


def test_answers_and_next_distribution_agree():
    """Two implementations of one policy: frequencies of drawn answers against their exact probabilities."""
    ask = ids("(c << e2 >> copy =>")
    rng, n = random.Random(4), 40000
    seen = collections.Counter(tuple(answer(rng, ask)) for _ in range(n))
    checked = 0.0
    for reply, count in seen.most_common(150):
        share = 1.0
        for at, token in enumerate(reply):
            share *= next_distribution(ask, list(reply[:at]))[token]
        assert abs(count / n - share) < 5 * (share * (1 - share) / n) ** 0.5 + 1e-4, decode(reply)
        checked += share
    assert checked > 0.6


def test_token_frequencies_agree_at_every_state():
    """The same over many prompts: how often a kind of token came at a depth, against the sum of its probabilities."""
    rng = random.Random(5)
    def kind(token):
        return sum(token >= bound for bound in (grammar.OPEN, grammar.CLOSE, SYMBOL))
    expected, spread, found = collections.Counter(), collections.Counter(), collections.Counter()
    for _ in range(3000):
        ask = prompt(rng)
        todo, reply = grammar.duties(ask), answer(rng, ask)
        done, extras = 0, []
        for token in reply:
            shares = grammar.options(todo, done, extras)
            for other, share in shares.items():
                key = len(extras), kind(other)
                expected[key] += share
                spread[key] += share * (1 - share)
            found[len(extras), kind(token)] += 1
            if grammar.OPEN <= token < grammar.CLOSE:
                extras.append(token - grammar.OPEN)
            elif not extras:
                done += 1
            elif token == grammar.CLOSE + extras[-1]:
                extras.pop()
    assert len(expected) > 9 and max(key[0] for key in expected) == grammar.DEPTH
    for key, total in expected.items():
        assert abs(found[key] - total) < 4.5 * spread[key] ** 0.5 + 1, key


def test_what_is_no_prompt_is_refused():
    with pytest.raises(ValueError, match="not a prompt: '\\(a copy =>'; expected"):
        answer(random.Random(0), ids("(a copy =>"))


def test_the_module_shows_prompts_and_valid_answers(capsys):
    runpy.run_path(grammar.__file__, run_name="__main__")
    blocks = [block.splitlines() for block in capsys.readouterr().out.strip().split("\n\n")]
    assert [[line.split()[0] for line in block] for block in blocks] == [["prompt", "answer", "answer"]] * 3
    for ask, *answers in ([ids(line.split(maxsplit=1)[1]) for line in block] for block in blocks):
        assert all(valid(ask, reply) for reply in answers)
