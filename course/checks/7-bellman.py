"""Checks of assignment 7, soft values and the Bellman residual (td_distill.py, course/theory.py). The
docstring of a check is its hint."""
import math

import numpy as np
import torch

from course import theory
from td_distill import (TeacherSets, bellman_distill, bellman_terms, bellman_weights, student_terms,
                        successor_values)

# Two documents of 4 tokens out of 5. The first ends with token 3 in its last column. The second is cut off:
# column 1 has no set, the token of column 2 is not in its set, and after column 3 nothing is known.
IDS = torch.tensor([[[0, 1], [2, 0], [1, 4], [3, 0]], [[4, 2], [0, 0], [1, 2], [0, 3]]])
MASK = torch.tensor([[[1, 1], [1, 0], [1, 1], [1, 1]], [[1, 1], [0, 0], [1, 1], [1, 1]]]).bool()
TAKEN = torch.tensor([[1, 2, 4, 3], [4, 3, 0, 3]])
TERMINAL = torch.tensor([[False, False, False, True], [False] * 4])
TEACHER = TeacherSets(torch.zeros(2, 4, 2), MASK, IDS == TAKEN[..., None], TERMINAL)
ONES = torch.ones(2, 4, dtype=torch.float64)
YES, NO = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)


def student():
    """Logits (2, 4, 5), with a gradient."""
    return (2 * torch.sin(1.7 * torch.arange(40).double() ** 1.1)).reshape(2, 4, 5).requires_grad_()


def terms(logits, teacher=TEACHER, **options):
    return bellman_terms(student_terms(logits, IDS, TAKEN), teacher, ONES, 0.9, **options)


def V_p(logits, b, t):
    """log of the sum of exp over the set of a column."""
    return logits[b, t][IDS[b, t][MASK[b, t]]].logsumexp(-1)


def near(found, want, what, tolerance=1e-9):
    found, want = (float(x.detach() if isinstance(x, torch.Tensor) else x) for x in (found, want))
    assert abs(found - want) < tolerance, f"{what}: {found:.6f}, expected {want:.6f}"


def tree():
    """Texts of up to 3 tokens with a teacher, as theory.py has them."""
    rng = np.random.default_rng(3)
    follow = theory.token_follow(2, 3)
    teacher = rng.dirichlet(np.ones(3), len(follow)) * 0.9 + 0.1 / 3
    return theory.world(follow, teacher, 0.8, 0.9), rng


def check_soft_value(points=2):
    """log sum exp over the actions INSIDE, with the largest subtracted first; True: over all of them."""
    Q = np.log(np.array([[1.0, 2.0, 5.0], [4.0, 4.0, 8.0]]))
    inside = np.array([[True, True, False], [True, False, False]])
    assert np.allclose(theory.soft_value(Q), np.log([8, 16]))
    assert np.allclose(theory.soft_value(Q, inside), np.log([3, 4]))
    many = theory.soft_value(np.stack([Q, Q + 900]), inside)
    assert np.allclose(many, np.log([[3, 4], [3, 4]]) + [[0], [900]])


def check_soft_value_can_be_differentiated(points=1):
    """theory.minimise takes gradients by the complex step. Q may be complex: compare Q.real only."""
    Q = np.array([[0.3, -1.0, 2.0]])
    for k in range(3):
        slope = theory.soft_value(Q + 1e-30j * np.eye(3)[k]).imag[0] / 1e-30
        near(slope, (np.exp(Q) / np.exp(Q).sum())[0, k], "the derivative of the soft value")


def check_the_operator_by_hand(points=3):
    """(B Q)(s, a) = r(s, a) + gamma V_p(s'), s' the state that FOLLOWS a; V_p(s') is 0 where a ends the
    text."""
    mdp = theory.MDP(np.array([[1, -1], [-1, 0]]), np.array([[1.0, 2.0], [3.0, 4.0]]), 0.5)
    Q = np.log(np.array([[1.0, 3.0], [2.0, 6.0]]))
    found = theory.bellman(Q, mdp, np.array([[True, True], [True, False]]))
    assert np.allclose(found, [[1 + 0.5 * np.log(2), 2], [3, 4 + 0.5 * np.log(4)]]), f"{found}"


def check_the_operator_with_a_policy(points=2):
    """The mean over a' of the policy: Q(s', a') - log pi(a'|s'). Actions of probability 0 add nothing."""
    mdp = theory.MDP(np.array([[1, -1], [-1, 0]]), np.zeros((2, 2)), 0.5)
    Q, policy = np.array([[1.0, 3.0], [2.0, 6.0]]), np.array([[0.25, 0.75], [1.0, 0.0]])
    first = 0.25 * (1 - math.log(0.25)) + 0.75 * (3 - math.log(0.75))
    assert np.allclose(theory.bellman(Q, mdp, True, policy), [[0.5 * 2, 0], [0, 0.5 * first]])
    own = theory.bellman(Q, mdp, True, theory.softmax(Q))
    assert np.allclose(own, theory.bellman(Q, mdp, True)), "the softmax of Q as policy must give V itself"


def check_contraction_and_fixed_point(points=2):
    """The distance of two tables shrinks to gamma or less, over supported actions. So every start leads to
    one table, which the operator does not change."""
    rng = np.random.default_rng(0)
    mdp = theory.random_mdp(rng, 5, 4, 0.8)
    inside = theory.top_p(theory.softmax(theory.solve(mdp)), 0.8)
    for _ in range(50):
        Q, R = 3 * rng.normal(size=(2, 5, 4)) + 9 * rng.normal(size=(2, 1, 1))
        moved = theory.distance(theory.bellman(Q, mdp, inside), theory.bellman(R, mdp, inside), inside)
        assert moved <= 0.8 * theory.distance(Q, R, inside) + 1e-12, "two tables have not come closer"
    best = theory.solve(mdp, inside)
    apart = theory.distance(best, theory.bellman(best, mdp, inside))
    assert apart < 1e-9, "the operator changes its fixed point"
    assert (theory.solve(mdp) >= best - 1e-9).all(), "Q_p* is above Q*"


def check_where_the_square_leads(points=1):
    """One state, a .9 / .1 teacher, alpha .1: Bellman Distill ends at .640, because E[r] = 0 and pi_Q / pi* =
    1 - r / (2 alpha)."""
    one = theory.world(np.full((1, 2), -1), np.array([[0.9, 0.1]]), 1, 0.99)
    Q, _ = theory.minimise(lambda Q: theory.mean(one, theory.bellman_tokens(one, Q, 0.1)), np.zeros((1, 2)))
    near(theory.softmax(Q)[0, 0], 0.640, "pi_Q", 5e-4)
    law, expected = theory.fixed_point(one, Q, 0.1)
    assert np.allclose(law, theory.softmax(Q) / one.teacher, atol=1e-6) and np.allclose(expected, 0)


def check_the_law_of_the_fixed_point(points=2):
    """In later states the gradient through V_p(s') counts: (1 - r / (2 alpha)) / (1 - gamma e / (2 alpha)), e
    the mean reward on the way into the state."""
    w, rng = tree()
    start = rng.normal(size=w.follow.shape)
    Q, slope = theory.minimise(lambda Q: theory.mean(w, theory.bellman_tokens(w, Q, 0.5)), start)
    assert slope < 1e-8, "the minimum was not found"
    law, expected = theory.fixed_point(w, Q, 0.5)
    live = w.inside & (w.visits[:, None] > 0)
    off = theory.distance(theory.softmax(Q, w.inside) / np.where(live, w.target, 1), law, live)
    assert off < 1e-5, f"the ratio is off by {off:.4f}"
    off = np.where(w.visits > 0, (w.target * theory.reward(w, Q)).sum(-1) - expected, 0)
    assert np.abs(off).max() < 1e-6, "the mean reward of a state is not gamma e"


def check_successor_values(points=2):
    """V(s') of column t stands in column t + 1. It is 0 after a terminal action, where the next column does
    not exist, and in the last column."""
    V = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert successor_values(V, YES, NO).tolist() == [[2, 3, 4, 0]], f"{successor_values(V, YES, NO).tolist()}"
    assert successor_values(V, YES, torch.tensor([[False, True, False, False]])).tolist() == [[2, 0, 4, 0]]
    assert successor_values(V, torch.tensor([[False, True, False, True]]), NO).tolist() == [[2, 0, 4, 0]]
    bad = successor_values(torch.tensor([[1.0, math.nan, math.inf]]), NO[:, :3], NO[:, :3])
    assert bad.tolist() == [[0, 0, 0]], "values that do not exist must be left out, not multiplied by 0"


def check_which_positions_count(points=3):
    """A position is dropped where it has no set, where its token is not in the set, and where it is not
    terminal and the next column has no set. A text that was cut off is NOT terminal."""
    w = torch.tensor([[1.0, 2.0, 0.0, 3.0], [4.0, 5.0, 6.0, 7.0]])
    found = bellman_weights(TEACHER, w)
    assert found.tolist() == [[1, 2, 0, 3], [0, 0, 0, 0]], f"weights {found.tolist()}"
    taken = TEACHER.is_taken.clone()
    taken[1, 2, 0] = True                                           # the token of column 2 is in its set now
    found = bellman_weights(TEACHER._replace(is_taken=taken), w)
    assert found.tolist() == [[1, 2, 0, 3], [0, 0, 6, 0]], f"weights {found.tolist()}"
    padded = MASK.clone()
    padded[0, 3, 0] = False                                             # token 3 stands in the padding now
    found = bellman_weights(TEACHER._replace(mask=padded), w)
    assert found[0].tolist() == [1, 2, 0, 0], "a token in the padding of a set is not in the set"


def check_terms_by_hand(points=3):
    """reward = z_a - gamma V_p(s'), cloning = V_p(s) - z_a, gain = V_p(s) - gamma V_p(s'), leak = log_Z -
    V_p(s). V_p(s') is 0 at the end."""
    logits = student()
    reward, cloning, gain, leak, weights = terms(logits)
    assert weights.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    for t in range(4):
        z_a, V = logits[0, t, TAKEN[0, t]], V_p(logits, 0, t)
        after = 0.9 * V_p(logits, 0, t + 1) if t < 3 else 0.0
        near(reward[0, t], z_a - after, f"reward of column {t}")
        near(cloning[0, t], V - z_a, f"cloning of column {t}")
        near(gain[0, t], V - after, f"gain of column {t}")
        near(leak[0, t], logits[0, t].logsumexp(-1) - V, f"leak of column {t}")
    assert not reward[1].any(), "the reward of a dropped position is not 0"
    mask = MASK.clone()
    mask[1, 1, 0] = True                                                # a set that lacks the token taken
    reward = terms(logits, TEACHER._replace(mask=mask))[0]
    near(reward[1, 0], logits[1, 0, 4] - 0.9 * logits[1, 1, 0], "reward before a token outside its set")


def check_gauges(points=2):
    """A gauge is subtracted from Q and V at the SAME state. Cloning and leak do not change. ValueError for
    others."""
    logits = student()
    raw, found, log_Z = terms(logits), terms(logits, gauge="log_softmax"), logits[0].logsumexp(-1)
    for i, name in ((1, "cloning"), (3, "leak")):
        assert torch.allclose(found[i][0], raw[i][0]), f"{name} has changed"
    for t in range(4):
        later = 0.9 * log_Z[t + 1] if t < 3 else 0.0
        near(found[0][0, t], raw[0][0, t] - log_Z[t] + later, f"reward of column {t}")
        near(found[2][0, t], raw[2][0, t] - log_Z[t] + later, f"gain of column {t}")
    try:
        terms(logits, gauge="softmax")
    except ValueError:
        return
    raise AssertionError("gauge='softmax' gave no ValueError")


def check_where_gradients_flow(points=2):
    """The residual changes V_p(s') too, unless stop_gradient. target_values (B, T) replace V and are read in
    the next column."""
    logits = student()
    for stop in (False, True):
        grad = torch.autograd.grad(terms(logits, stop_gradient=stop)[0][0, 0], logits)[0]
        flows = bool(grad[0, 1].abs().max() > 0.1)
        assert flows != stop, f"stop_gradient={stop}: gradient in the next column {grad[0, 1].tolist()}"
        assert grad[0, 0, 1] == 1 and not grad[0, 2:].any() and not grad[1].any()
    values = torch.arange(8.0).reshape(2, 4).double()
    reward = terms(logits, target_values=values)[0]
    near(reward[0, 1], logits[0, 1, 2] - 0.9 * 2, "reward with target_values")


def check_what_does_not_count_is_harmless(points=2):
    """Padding and dropped positions may hold anything, NaN too: mask before logsumexp, or NaN returns in the
    gradient."""
    logits, mask = student(), MASK.clone()
    mask[0, 3] = False                                                  # now document 0 is cut off as well
    teacher, live = TEACHER._replace(mask=mask), mask.any(-1)
    z_K, z_a, log_Z = clean = student_terms(logits, IDS, TAKEN)
    want = bellman_terms(clean, teacher, ONES, 0.9)
    for bad in (math.nan, 1e4):
        dirty = clean._replace(z_K=torch.where(mask, z_K, bad), z_a=torch.where(live, z_a, bad),
                               log_Z=torch.where(live, log_Z, bad))
        found = bellman_terms(dirty, teacher, ONES, 0.9)
        counts = found[4] > 0
        assert torch.equal(found[4], want[4]) and counts.tolist() == [[True, True, False, False], [False] * 4]
        for x, y in zip(found[:4], want[:4]):
            torch.testing.assert_close(x[counts], y[counts])
        total = sum(x[counts].sum() for x in found[:4]) + found[0].sum()
        grad = torch.autograd.grad(total, logits, retain_graph=True)[0]
        assert torch.isfinite(grad).all(), f"{bad} returns in the gradient"


def check_the_published_form(points=1):
    """phi(r) - gain, the published objective, is minus (cloning + r^2 / (4 alpha)), phi(x) = x - x^2 / (4
    alpha)."""
    logits = student()
    loss, _ = bellman_distill(student_terms(logits, IDS, TAKEN), TEACHER, ONES, alpha=0.3, gamma=0.9)
    reward, cloning, gain, *_ = terms(logits)
    near(loss, (gain[0] - reward[0] + reward[0] ** 2 / 1.2).mean(), "bellman_distill")
    near(loss, (cloning[0] + reward[0] ** 2 / 1.2).mean(), "bellman_distill")


def check_a_table_and_a_network_agree(points=2):
    """One text as states of theory.py and as columns of td_distill.py must have the same loss."""
    w, rng = tree()
    Q = rng.normal(size=w.follow.shape)
    s, path = 0, []
    while s >= 0:
        inside = np.flatnonzero(w.inside[s])
        going = [a for a in inside if w.follow[s, a] >= 0]
        path.append((s, int(going[0] if going else inside[0])))
        s = int(w.follow[path[-1]])
    want = sum(theory.bellman_tokens(w, Q, 0.5)[step] for step in path) / len(path)
    states, taken = (torch.tensor([part]) for part in zip(*path))
    ids = torch.arange(3).expand(1, len(path), 3)
    mask, terminal = torch.tensor(w.inside)[states], torch.tensor(w.follow)[states, taken] < 0
    teacher = TeacherSets(torch.zeros(1, len(path), 3), mask, ids == taken[..., None], terminal)
    network = student_terms(torch.tensor(Q)[states], ids, taken)
    loss, _ = bellman_distill(network, teacher, torch.ones(1, len(path)).double(), alpha=0.5, gamma=0.9)
    near(loss, want, "bellman_distill")
