"""The claims of course/theory.py on random worlds. The checks of assignment 7 are more tests of it."""
import re
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course import theory as T
from td_distill import TeacherSets, bellman_distill, student_terms, topp_forward_kl

few = settings(deadline=None, max_examples=12, derandomize=True)
seeds, masses = st.integers(0, 10 ** 6), st.floats(0.05, 1.0)
LOOP = T.MDP(np.zeros((1, 5), int), np.zeros((1, 5)), 0.99)     # five equal actions, no end
BOUND = -99 * np.log(0.8)


def small_world(seed, p=0.8, gamma=0.9, letters=2, depth=2):
    rng = np.random.default_rng(seed)
    follow = T.token_follow(letters, depth)
    return rng, T.world(follow, T.softmax(1.5 * rng.normal(size=follow.shape)), p, gamma)


def three_values(mdp, p):
    """Q*, Q_p*, Q of proj_p pi*, and the sets, for the soft-optimal teacher."""
    best = T.solve(mdp)
    inside = T.top_p(T.softmax(best), p)
    return best, T.solve(mdp, inside), T.solve(mdp, inside, T.softmax(best, inside)), inside


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
    mdp = T.random_mdp(rng, rng.integers(1, 6), rng.integers(2, 6), gamma)
    if texts:
        follow = T.token_follow(rng.integers(2, 4), 3)
        mdp = T.MDP(follow, rng.normal(size=follow.shape), gamma)
    best, best_p, projected, inside = three_values(mdp, p)
    kept = (T.softmax(best) * inside).sum(-1).min()
    assert kept >= p - 1e-9 and T.distance(best, best_p) <= -np.log(kept) * gamma / (1 - gamma) + 1e-7
    assert (projected <= best_p + 1e-7).all() and (best_p <= best + 1e-7).all()
    assert T.distance(best, projected) <= -np.log(p) * gamma / (1 - gamma) + 1e-7
    if texts:                                                                   # two steps follow the first
        assert T.distance(best, best_p) <= -(gamma + gamma ** 2) * np.log(p) + 1e-9


def test_the_bound_is_reached_and_wrong_sets_break_it():
    best, best_p, _, inside = three_values(LOOP, 0.8)
    assert inside.sum() == 4 and T.distance(best, best_p) == pytest.approx(BOUND, abs=1e-6)
    assert T.distance(best, T.solve(LOOP, inside & (np.arange(5) < 3))) > BOUND + 1
    mdp = T.random_mdp(np.random.default_rng(0), 5, 5, 0.9)
    best, best_p, projected, _ = three_values(mdp, 0.95)
    least = T.top_p(T.softmax(-best), 0.5)                                      # the least probable actions
    assert T.distance(best, T.solve(mdp, least)) > -9 * np.log(0.8)
    assert (projected < best_p - 1e-6).any() and (best_p < best - 1e-6).any()   # three different values
    assert T.distance(T.solve(mdp, True, T.softmax(best)), best) < 1e-7         # the whole teacher has Q*


@few
@given(seeds, masses, st.floats(0.05, 20))
def test_max_min_is_cloning_and_a_square(seed, p, alpha):
    rng, w = small_world(seed, p, depth=3)
    Q = 3 * rng.normal(size=w.follow.shape)
    published = T.max_min_tokens(w, Q, alpha)
    np.testing.assert_allclose(published, T.bellman_tokens(w, Q, alpha), atol=1e-10, rtol=1e-10)
    other, linear = w._replace(gamma=w.gamma / 2), T.max_min_tokens(w, Q, np.inf)
    np.testing.assert_allclose(T.max_min_tokens(other, Q, np.inf), linear, atol=1e-10)
    assert T.distance(T.max_min_tokens(other, Q, 1), T.bellman_tokens(w, Q, 1)) > 1e-3


def test_tables_and_batches_of_texts_have_the_same_loss():
    """Every text in one batch, weighted by its probability: td_distill's losses are the tabular means."""
    rng, w = small_world(1, depth=3, letters=3)
    Q, texts = torch.tensor(rng.normal(size=w.follow.shape)), list(texts_inside(w))
    states, taken, ends = torch.zeros(3, len(texts), 3, dtype=torch.long)
    weights = torch.zeros(len(texts), 3, dtype=torch.float64)
    for b, (probability, path, actions) in enumerate(texts):
        states[b, :len(path)], taken[b, :len(path)] = torch.tensor(path), torch.tensor(actions)
        weights[b, :len(path)], ends[b, len(path) - 1] = probability, 1
    ids = torch.arange(4).expand(len(texts), 3, 4)                              # (B, T, K)
    mask = torch.tensor(w.inside)[states] & (weights > 0)[..., None]
    teacher = TeacherSets(torch.tensor(w.teacher).log()[states], mask, ids == taken[..., None], ends > 0)
    student, Q = student_terms(Q[states], ids, taken), Q.numpy()
    raw = student._replace(v=student.log_Z)                                     # Q is the logit
    loss, _ = bellman_distill(raw, teacher, weights, 1.0, alpha=0.3, gamma=w.gamma, leak=2.0)
    expected = T.mean(w, T.bellman_tokens(w, Q, 0.3)) + 2 * T.leak(w, Q)
    assert weights[:, 0].sum() == pytest.approx(1) and loss.item() == pytest.approx(expected, abs=1e-9)
    loss, figures = topp_forward_kl(student, teacher, weights, 1.0)
    sft = T.mean(w, T.bellman_tokens(w, Q, np.inf)) + T.leak(w, Q)
    assert (loss + figures["entropy"]).item() == pytest.approx(sft, abs=1e-9)


def test_kl_against_loops():
    rng, w = small_world(2, 0.7, depth=3)
    Q = rng.normal(size=w.follow.shape)
    want = sum(visits * sum(p * np.log(p / q)) for visits, p, q in zip(w.visits, w.teacher, T.softmax(Q)))
    np.testing.assert_allclose(T.forward_kl(w, Q), want, atol=1e-9)


@few
@given(st.integers(0, 1000), st.sampled_from([0.1, 0.5, 2.0]))
def test_the_fixed_point_of_bellman_distill(seed, alpha):
    """In the first state pi_Q / pi* = 1 - r / (2 alpha); later the reward on the way in counts."""
    rng, w = small_world(seed, p=0.9, gamma=0.8)
    live = w.inside & (w.visits[:, None] > 0)
    Q, slope = T.minimise(lambda Q: T.mean(w, T.bellman_tokens(w, Q, alpha)), rng.normal(size=(3, 3)))
    ratio = T.softmax(Q, w.inside) / np.where(live, w.target, 1)
    (law, mean_reward), r = T.fixed_point(w, Q, alpha), T.reward(w, Q)
    assert slope < 1e-8 and T.distance(ratio, law, live) < 1e-6
    assert np.abs((w.target * r).sum(-1) - mean_reward)[w.visits > 0].max() < 1e-6
    first = 1 - r / (2 * alpha)
    np.testing.assert_allclose(ratio[0][live[0]], first[0][live[0]], atol=1e-6)
    for s in w.follow[0][(w.follow[0] >= 0) & w.inside[0]]:
        entered = r[0][w.follow[0] == s][0]
        assert mean_reward[s] == pytest.approx(0.8 * entered, abs=1e-6)
        assert abs(entered) < 0.01 or T.distance(ratio[s], first[s], live[s]) > 1e-4


def test_which_objectives_give_the_teacher_back():
    rng, w = small_world(0, depth=2, letters=3)
    start, teacher = rng.normal(size=w.follow.shape), np.log(w.teacher)

    def optimum(loss, start=start):
        Q, slope = T.minimise(loss, start)
        assert slope < 1e-8
        return (Q, *T.measures(w, Q))

    def bellman(Q, alpha=np.inf, target=0.0):
        return T.mean(w, T.bellman_tokens(w, Q, alpha, target))
    _, kl, outside, _ = optimum(lambda Q: T.forward_kl(w, Q))
    assert kl < 1e-9 and outside == pytest.approx(T.measures(w, teacher)[1], abs=1e-6)
    Q, kl, outside, _ = optimum(bellman)
    assert kl < 1e-9 and outside > 0.05
    np.testing.assert_allclose(Q[~w.inside], start[~w.inside], atol=1e-6)       # these are not trained
    assert max(optimum(lambda Q: bellman(Q) + T.leak(w, Q))[1:3]) < 1e-8
    kls = [optimum(lambda Q: bellman(Q, alpha))[1] for alpha in (10, 1, 0.1)]
    assert 1e-6 < kls[0] < kls[1] < kls[2] and kls[2] > 0.01
    _, kl, outside, _ = optimum(lambda Q: bellman(Q, 0.1) + T.leak(w, Q))
    assert kl == pytest.approx(kls[2], abs=1e-6) and outside < 1e-8
    assert optimum(lambda Q: bellman(Q, 0.1, T.reward(w, teacher)))[1] < 1e-9


def test_measures_and_the_limit_of_a_tiny_alpha():
    rng, w = small_world(0, p=0.99, gamma=1 - 1e-9, depth=3)
    Q, texts = rng.normal(size=w.follow.shape), list(texts_inside(w))
    proj = T.softmax(Q, w.inside)
    length = sum(np.prod(proj[states, actions]) * len(states) for _, states, actions in texts)
    kl = sum(p * np.log(p / np.prod(proj[states, actions])) for p, states, actions in texts)
    found = T.measures(w, Q)
    assert found[2] == pytest.approx(length) and found[0] * w.visits.sum() == pytest.approx(kl)
    inside = T.measures(w, np.log(np.where(w.inside, w.teacher, 1e-300)))       # the teacher on its sets
    assert inside == pytest.approx((0, 0, w.visits.sum()), abs=1e-9)
    Q, _ = T.minimise(lambda Q: T.mean(w, T.bellman_tokens(w, Q, 1e-4)), np.zeros(w.follow.shape))
    each = [np.prod(T.softmax(Q, w.inside)[states, actions]) for _, states, actions in texts]
    np.testing.assert_allclose(each, 1 / len(texts), atol=2e-3)                 # all texts equally probable


def test_the_page():
    rng, w = small_world(0, depth=2)
    page = "\n".join([*T.operator_lines(rng), *T.square_lines(w, rng), *T.objective_lines(w, rng)])
    ratios = [[float(x) for x in row.split()] for row in re.findall(r"^ {5}(0\.\d.*)", page, re.M)]
    assert [row[0] for row in ratios] == [0.5, 0.9, 0.99]
    assert all(max(row[1:3]) <= row[0] + 1e-4 and row[3] > row[0] for row in ratios)
    assert re.search(r"^     top-p cloning  +0.000000 ", page, re.M) and "largest difference" in page
    assert next(T.lines()).startswith("1. ")
