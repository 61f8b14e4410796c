"""The claims of course/theory.py: the page that it prints, and each claim on other random worlds."""
import re
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import td_distill as td
from course import theory as T

few = settings(deadline=None, max_examples=8, derandomize=True)
seeds, masses = st.integers(0, 10 ** 6), st.floats(0.05, 1.0)
LOOP = T.MDP(np.zeros((1, 5), int), np.zeros((1, 5)), 0.99)     # five equal actions, no end
BOUND = -99 * np.log(0.8)


def small_world(seed, p=0.8, gamma=0.9, letters=2, depth=2):
    rng = np.random.default_rng(seed)
    follow = T.token_follow(letters, depth)
    return rng, T.world(follow, T.softmax(1.5 * rng.normal(size=follow.shape)), p, gamma)


def two_values(mdp, p):
    """Q*, Q_p* and the sets, for the soft-optimal teacher."""
    best = T.solve(mdp)
    inside = T.top_p(T.softmax(best), p)
    return best, T.solve(mdp, inside), inside


def texts_inside(w, probability=1.0, states=(0,), actions=()):
    """Every text that can be drawn inside the sets: yields (probability, states, actions)."""
    for a in np.flatnonzero(w.inside[states[-1]]):
        text, after = (probability * w.target[states[-1], a], states, (*actions, a)), w.follow[states[-1], a]
        if after < 0:
            yield text
        else:
            yield from texts_inside(w, text[0], (*states, after), text[2])


def test_the_tree_of_texts():
    assert T.token_follow(2, 2).tolist() == [[-1, 1, 2], [-1, -1, -1], [-1, -1, -1]]
    follow = T.token_follow(3, 4)
    assert follow.shape == (1 + 3 + 9 + 27, 4) and (follow[:, 0] == -1).all()
    assert sorted(follow[follow >= 0]) == list(range(1, 40))                    # one parent each
    assert all(child > s for s, row in enumerate(follow) for child in row if child >= 0)


@few
@given(seeds, masses)
def test_sets_are_the_smallest_that_reach_p(seed, p):
    probs = T.softmax(np.random.default_rng(seed).normal(size=(3, 5)))
    for row, inside in zip(probs, T.top_p(probs, p)):
        reach = [c for n in range(6) for c in combinations(range(5), n) if row[list(c)].sum() >= p - 1e-12]
        smallest = [c for c in reach if len(c) == len(reach[0])]
        assert tuple(np.flatnonzero(inside)) == max(smallest, key=lambda c: row[list(c)].sum())


@few
@given(seeds, st.sampled_from([0.3, 0.9]), masses, st.booleans())
def test_the_bound_and_the_order_of_the_values(seed, gamma, p, texts):
    rng = np.random.default_rng(seed)
    n_states, n_actions = rng.integers(1, 6), rng.integers(2, 6)
    follow = T.token_follow(2, 3) if texts else rng.integers(-1, n_states, (n_states, n_actions))
    mdp = T.MDP(follow, 2 * rng.normal(size=follow.shape), gamma)
    best, best_p, inside = two_values(mdp, p)
    kept = (T.softmax(best) * inside).sum(-1).min()
    assert kept >= p - 1e-9 and T.distance(best, best_p) <= -np.log(kept) * gamma / (1 - gamma) + 1e-7
    assert (best_p <= best + 1e-7).all()
    if texts:                                                                   # two steps follow the first
        assert T.distance(best, best_p) <= -(gamma + gamma ** 2) * np.log(p) + 1e-9


def test_the_bound_is_reached_and_wrong_sets_break_it():
    best, best_p, inside = two_values(LOOP, 0.8)
    assert inside.sum() == 4 and T.distance(best, best_p) == pytest.approx(BOUND, abs=1e-6)
    assert T.distance(best, T.solve(LOOP, inside & (np.arange(5) < 3))) > BOUND + 1
    rng = np.random.default_rng(0)
    mdp = T.MDP(rng.integers(-1, 5, (5, 5)), 2 * rng.normal(size=(5, 5)), 0.9)
    best, best_p, _ = two_values(mdp, 0.95)
    assert (best_p < best - 1e-6).any()                                         # two different values


def test_all_texts_and_their_losses_against_loops():
    """The batch holds every text once; its loss is the mean over them, its gradient that of each student."""
    rng, w = small_world(1, depth=3, letters=3)
    states, taken, teacher, weights = texts = T.all_texts(w)
    batch = {tuple(zip(s[n].tolist(), a[n].tolist())): x for s, a, x, n in
             zip(states, taken, weights[:, 0], weights > 0)}
    expected = {tuple(zip(path, actions)): share for share, path, actions in texts_inside(w)}
    assert batch.keys() == expected.keys() and sum(batch.values()) == pytest.approx(1)
    assert all(batch[text] == pytest.approx(expected[text]) for text in batch)
    assert teacher.terminal.sum() >= len(batch)
    tables = torch.tensor(rng.normal(size=(2, len(w.follow), 5)))
    loss = partial(td.bellman_distill, alpha=0.3, gamma=0.9)
    value, slopes = T.evaluate(texts, loss, tables, "head")
    apart = [T.evaluate(texts, loss, x[None], "head") for x in tables]
    assert value == pytest.approx(sum(x for x, _ in apart))
    torch.testing.assert_close(slopes, torch.cat([x for _, x in apart]))
    want = 0
    for table in tables.numpy():
        Q = np.log(T.softmax(table[:, :4])) + table[:, 4:]
        V = [np.log(np.exp(Q[s][w.inside[s]]).sum()) for s in range(len(Q))]
        for share, path, actions in texts_inside(w):
            for s, a, after in zip(path, actions, [*path[1:], None]):
                r = Q[s, a] - (0 if after is None else 0.9 * V[after])
                want += share * (V[s] - Q[s, a] + r ** 2 / 1.2)
    assert value == pytest.approx(want)


def test_measures_against_enumeration():
    rng, w = small_world(0, p=0.9, depth=3)
    Q = rng.normal(size=w.follow.shape)
    kl, outside, stays = T.measures(w, Q)
    pi, proj, texts = T.softmax(Q), T.softmax(Q, w.inside), list(texts_inside(w))
    tokens = sum(p * len(states) for p, states, _ in texts)
    assert w.visits.sum() == pytest.approx(tokens)
    assert kl * tokens == pytest.approx(sum(p * np.log(p / np.prod(proj[s, a])) for p, s, a in texts))
    assert outside * tokens == pytest.approx(sum(p * sum((pi[s] * ~w.inside[s]).sum() for s in path)
                                                 for p, path, _ in texts))
    assert stays == pytest.approx(sum(np.prod(pi[s, a]) for _, s, a in texts))
    assert T.measures(w, np.log(np.where(w.inside, w.teacher, 1e-300))) == pytest.approx((0, 0, 1), abs=1e-9)


@pytest.mark.parametrize("seed, alpha", [(0, 0.1), (1, 0.5), (2, 2.0)])
def test_the_fixed_point_of_bellman_distill(seed, alpha):
    """In the first state pi_Q / pi* = 1 - r / (2 alpha); later the reward on the way in counts."""
    _, w = small_world(seed, p=0.9, gamma=0.8)
    loss = partial(td.bellman_distill, alpha=alpha, gamma=0.8, leak=1.0)
    (Q, _), (R, _) = T.settle(w, loss, "raw", seed=seed), T.settle(w, loss, seed=seed + 1)
    assert T.distance(Q, R, w.live) < 1e-5                                      # the values as well
    pi, (law, mean_reward), r = T.softmax(Q, w.inside), T.fixed_point(w, Q, alpha), T.reward(w, Q)
    assert T.distance(pi, w.target * law, w.live) < 1e-5
    assert np.abs((w.target * r).sum(-1) - mean_reward)[w.visits > 0].max() < 1e-5
    first = w.target * (1 - r / (2 * alpha))
    np.testing.assert_allclose(pi[0], first[0], atol=1e-5)
    for s in w.follow[0][(w.follow[0] >= 0) & w.inside[0]]:
        entered = r[0][w.follow[0] == s][0]
        assert mean_reward[s] == pytest.approx(0.8 * entered, abs=1e-5)


def test_the_limit_of_a_tiny_alpha():
    _, w = small_world(0, p=0.99, gamma=1.0, depth=3)
    Q, _ = T.settle(w, partial(td.bellman_distill, alpha=1e-4, gamma=1.0, leak=1.0))
    texts = list(texts_inside(w))
    each = [np.prod(T.softmax(Q, w.inside)[states, actions]) for _, states, actions in texts]
    np.testing.assert_allclose(each, 1 / len(texts), atol=2e-3)                 # all texts equally probable


def test_the_optimum_of_every_member_in_another_world(seed=2):
    """From another start, with other options; the values too: 0, log P(stay), r_max / (1 - gamma) more."""
    _, w = small_world(seed, p=0.7, depth=3)

    def optimum(loss, gauge="head", **options):
        Q, U = T.settle(w, partial(loss, **options), gauge, seed=seed)
        return T.softmax(Q), T.soft_value(Q, w.inside)[w.visits > 0], U

    for loss, options in ((td.soft_q, dict(gamma=0.5)), (td.path_consistency, dict(steps=1)),
                          (td.path_consistency, dict(steps=2, gamma=1.0)), (td.retrace, dict(lam=0.5))):
        policy, V, _ = optimum(loss, **options)
        assert T.distance(policy, w.target, w.live) < 1e-5 and np.abs(V).max() < 1e-5
    policy, _, U = optimum(td.improve, "U", beta=2.0)
    assert T.distance(policy, w.target, w.live) < 1e-5
    choices = w.live & (w.inside.sum(-1, keepdims=True) > 1)
    assert choices.any() and T.distance(U, 0, choices) < 1e-5
    policy, V, _ = optimum(td.stay)
    log_stay = [np.log(sum(np.prod(w.teacher[s, a]) for _, s, a in texts_inside(w, states=(state,))))
                for state in np.flatnonzero(w.visits)]
    np.testing.assert_allclose(V, log_stay, atol=1e-5)
    for _, states, actions in texts_inside(w):                                  # whole texts, in proportion
        given_stay = np.prod(w.teacher[states, actions]) / np.exp(log_stay[0])
        assert np.prod(policy[states, actions]) == pytest.approx(given_stay, abs=1e-5)
    (policy, V, _), (other, W, _) = optimum(td.bellman_distill, leak=1.0), optimum(td.ls_iq, leak=1.0)
    assert T.distance(policy, other, w.live) < 1e-5
    np.testing.assert_allclose(W - V, 0.1 / (1 - 0.99), atol=1e-4)


def test_settle_says_where_it_found_nothing():
    _, w = small_world(0)
    with pytest.raises(RuntimeError, match="still"):
        T.settle(w, lambda student, teacher, weights, _: (student.z_a.sum(), {}), steps=3)


@pytest.fixture(scope="module")
def page():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield "\n".join(T.lines())
    torch.set_num_threads(threads)


def numbers(row):
    return [float(x) for x in re.findall(r"-?\d*\.?\d+(?:e[-+]\d+)?", row)]


def section(page, number):
    """The rows of numbers of a section of the page, without text."""
    part = page.split(f"\n{number}. ")[1].split("\n\n")[0]
    return [numbers(row) for row in part.splitlines() if re.match(r" {5}[\d.]", row)]


def test_page_operator_bound_and_square(page):
    assert max(len(line) for line in page.splitlines()) <= 110
    ratios = [numbers(row) for row in re.findall(r"gamma 0\S+ +ratio \S+", page)]
    assert [gamma for gamma, _ in ratios] == [0.5, 0.9, 0.99]
    assert all(gamma - 0.1 < ratio <= gamma + 1e-4 for gamma, ratio in ratios)
    assert "gap 22.091, bound 22.091" in page
    assert float(re.search(r"bellman_distill differs by (\S+)", page)[1]) < 1e-10
    rows = section(page, 4)
    assert [row[0] for row in rows] == [10, 1, 0.1, 0.01]
    kl, law, first, head, even = np.array(rows)[:, 1:].T
    assert (np.diff(kl) > 0).all() and kl[0] < 1e-3 < 0.05 < kl[2]              # flatter as alpha falls
    assert law.max() < 1e-5 and head.max() < 1e-5 and first.min() > 0.01
    assert (np.diff(even) < 0).all() and even[-1] < 0.03                        # no reward is left


def test_page_members(page):
    part = page.split("\n5. ")[1].split("\n\n")[0]
    rows = re.findall(r"^ {5,7}(\S.*?) +(\S+) +(\d\.\d{6}) +(\d\.\d{6}) +(\d\.\d{4})$", part, re.M)
    assert len(rows) == 14
    found, last = {}, ""
    for name, *values in rows:
        if name.startswith(("tail", "value", "v = 0")):             # a variant of the loss above
            name = f"{last} {name}"
        else:
            last = name.split(",")[0]
        found[name] = [float(x) for x in values]
    for name, (distance, kl, outside, _) in found.items():
        differs = name.startswith(("bellman_distill", "ls_iq")) or name in ("stay", "stay v = 0, leak 0")
        assert distance < 1e-5 and (kl > 1e-3 if differs else kl == 0), name
        assert (outside > 1e-3) == (name in ("topp_forward_kl tail bucket", "stay v = 0, leak 0")), name
    assert found["bellman_distill, raw"][1:] == found["bellman_distill value head"][1:] == found["ls_iq"][1:]
    limited = {name: values[3] for name, values in found.items()}
    assert limited["topp_forward_kl"] == limited["sft_loss"] == 0.625
    assert limited["improve"] == 0.7 > limited["bellman_distill value head"]


def test_page_what_is_temporal(page):
    rows = section(page, 6)
    assert [row[:2] for row in rows] == [[1, 1], [0.1, 1], [0.1, 10]]
    for alpha, leak, zero, outside, head, cosine, *others in rows:
        leaks = alpha == 0.1 and leak == 1
        assert (zero > 1e-6) == leaks == (outside > 1e-5) and head > 0.01
        assert (cosine > 0.999) != leaks and max(np.abs(others)) < 0.3


def test_page_improve(page):
    rows = [numbers(row) for row in re.findall(r"beta \d:.*", page)]
    assert [row[0] for row in rows] == [0, 1, 2] and max(row[4] for row in rows) < 1e-5
    assert rows[0][1:4] == [0.5, 0.3, 0.2] and rows[1][1:4] == [0.5, 0.18, 0.32]
    assert rows[0][5] == 0.625 < rows[1][5] == 0.7 < rows[2][5]
