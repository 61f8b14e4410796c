"""Checks of assignment 7, soft values and the Bellman residual (td_distill.py, course/theory.py). Docstrings are hints."""
import math

import numpy as np
import torch

from course import theory
from td_distill import bellman_distill, bellman_max_min, bellman_terms, bellman_weights, student_terms, successor_values

# Two documents of 4 tokens out of 5. The first ends with token 3, in its last column. The second is cut: in column 1 it has no
# set, in column 2 a token from outside its set, and behind column 3 nothing is known.
IDS = torch.tensor([[[0, 1], [2, 0], [1, 4], [3, 0]], [[4, 2], [0, 0], [1, 2], [0, 3]]])
MASK = torch.tensor([[[1, 1], [1, 0], [1, 1], [1, 1]], [[1, 1], [0, 0], [1, 1], [1, 1]]]).bool()
TAKEN = torch.tensor([[1, 2, 4, 3], [4, 3, 0, 3]])
TERMINAL = torch.tensor([[False, False, False, True], [False] * 4])
HIT = IDS == TAKEN[..., None]
ONES = torch.ones(2, 4, dtype=torch.float64)
CASES = {("drop", "drop"): [[1, 1, 1, 1], [0, 0, 0, 0]], ("join", "drop"): [[1, 1, 1, 1], [0, 0, 1, 0]],
         ("drop", "bootstrap"): [[1, 1, 1, 1], [1, 0, 0, 0]], ("join", "bootstrap"): [[1, 1, 1, 1], [1, 0, 1, 0]]}


def student():
    """Logits (2, 4, 5), with a gradient."""
    return (2 * torch.sin(1.7 * torch.arange(40).double() ** 1.1)).reshape(2, 4, 5).requires_grad_()


def terms(logits, weights=ONES, gamma=0.9, mask=MASK, terminal=TERMINAL, **options):
    return bellman_terms(*student_terms(logits, IDS, TAKEN), mask, HIT, terminal, weights, gamma, **options)


def soft(logits, b, t, join=False):
    """V_p at a column: log of the sum of exp over the set; the whole vocabulary where there is no set."""
    kept = IDS[b, t][MASK[b, t]].tolist() or list(range(5))
    return logits[b, t][sorted({*kept, TAKEN[b, t].item()} if join else kept)].logsumexp(-1)


def near(found, want, what, tolerance=1e-9):
    found, want = (float(x.detach() if isinstance(x, torch.Tensor) else x) for x in (found, want))
    assert abs(found - want) < tolerance, f"{what}: {found:.6f}, expected {want:.6f}"


def refused(call):
    try:
        call()
    except ValueError:
        return True
    return False


def tree():
    """Texts of up to 3 tokens with a teacher, as theory.py has them."""
    rng = np.random.default_rng(3)
    follow = theory.token_follow(2, 3)
    teacher = rng.dirichlet(np.ones(3), len(follow)) * 0.9 + 0.1 / 3
    return theory.world(follow, teacher, 0.8, 0.9), rng


def check_soft_value(points=2):
    """log sum exp over the actions INSIDE, with the largest taken out first; True: over all of them."""
    Q = np.log(np.array([[1.0, 2.0, 5.0], [4.0, 4.0, 8.0]]))
    inside = np.array([[True, True, False], [True, False, False]])
    assert np.allclose(theory.soft_value(Q), np.log([8, 16])) and np.allclose(theory.soft_value(Q, inside), np.log([3, 4]))
    assert np.allclose(theory.soft_value(np.stack([Q, Q + 900]), inside), np.log([[3, 4], [3, 4]]) + [[0], [900]])


def check_soft_value_can_be_differentiated(points=1):
    """theory.minimise takes gradients by the complex step: Q may be complex, so compare and take maxima of
    Q.real only."""
    Q = np.array([[0.3, -1.0, 2.0]])
    for k in range(3):
        slope = theory.soft_value(Q + 1e-30j * np.eye(3)[k]).imag[0] / 1e-30
        near(slope, (np.exp(Q) / np.exp(Q).sum())[0, k], "the derivative of the soft value")


def check_the_operator_by_hand(points=3):
    """(B Q)(s, a) = r(s, a) + gamma V_p(s'), s' the state that FOLLOWS a; 0 where a ends. V_p(s) is no part
    of it."""
    mdp = theory.MDP(np.array([[1, -1], [-1, 0]]), np.array([[1.0, 2.0], [3.0, 4.0]]), 0.5)
    Q = np.log(np.array([[1.0, 3.0], [2.0, 6.0]]))
    found = theory.bellman(Q, mdp, np.array([[True, True], [True, False]]))
    assert np.allclose(found, [[1 + 0.5 * np.log(2), 2], [3, 4 + 0.5 * np.log(4)]]), f"{found}"


def check_the_operator_with_a_policy(points=2):
    """E over a' of the policy: Q(s', a') - log pi(a'|s'), the entropy included; actions of probability 0 add
    nothing."""
    mdp = theory.MDP(np.array([[1, -1], [-1, 0]]), np.zeros((2, 2)), 0.5)
    Q, policy = np.array([[1.0, 3.0], [2.0, 6.0]]), np.array([[0.25, 0.75], [1.0, 0.0]])
    first = 0.25 * (1 - math.log(0.25)) + 0.75 * (3 - math.log(0.75))
    assert np.allclose(theory.bellman(Q, mdp, True, policy), [[0.5 * 2, 0], [0, 0.5 * first]])
    own = theory.softmax(Q)
    assert np.allclose(theory.bellman(Q, mdp, True, own), theory.bellman(Q, mdp, True)), "its own policy gives V itself"


def check_contraction_and_fixed_point(points=2):
    """Two tables come closer by gamma at least, over supported actions; so all starts lead to one table,
    which stays as it is."""
    rng = np.random.default_rng(0)
    mdp = theory.random_mdp(rng, 5, 4, 0.8)
    inside = theory.top_p(theory.softmax(theory.solve(mdp)), 0.8)
    for _ in range(50):
        Q, R = 3 * rng.normal(size=(2, 5, 4)) + 9 * rng.normal(size=(2, 1, 1))
        moved = theory.distance(theory.bellman(Q, mdp, inside), theory.bellman(R, mdp, inside), inside)
        assert moved <= 0.8 * theory.distance(Q, R, inside) + 1e-12, "two tables moved apart"
    best = theory.solve(mdp, inside)
    assert theory.distance(best, theory.bellman(best, mdp, inside)) < 1e-9, "the operator moves its fixed point"
    assert (theory.solve(mdp) >= best - 1e-9).all(), "Q_p* is above Q*"


def check_where_the_square_leads(points=1):
    """One state, a .9 / .1 teacher, alpha .1: Bellman Distill ends at .640, as E[r] = 0 and pi_Q / pi* = 1 -
    r / (2 alpha) demand."""
    one = theory.world(np.full((1, 2), -1), np.array([[0.9, 0.1]]), 1, 0.99)
    Q, _ = theory.minimise(lambda Q: theory.mean(one, theory.bellman_tokens(one, Q, 0.1)), np.zeros((1, 2)))
    near(theory.softmax(Q)[0, 0], 0.640, "pi_Q", 5e-4)
    law, expected = theory.fixed_point(one, Q, 0.1)
    assert np.allclose(law, theory.softmax(Q) / one.teacher, atol=1e-6) and np.allclose(expected, 0)


def check_the_law_of_the_fixed_point(points=2):
    """In later states the gradient through V_p(s') comes in: (1 - r / (2 alpha)) / (1 - gamma e / (2 alpha)),
    e the reward on the way in."""
    w, rng = tree()
    Q, slope = theory.minimise(lambda Q: theory.mean(w, theory.bellman_tokens(w, Q, 0.5)), rng.normal(size=w.follow.shape))
    assert slope < 1e-8, "the minimum was not found"
    law, expected = theory.fixed_point(w, Q, 0.5)
    live = w.inside & (w.visits[:, None] > 0)
    ratio = theory.softmax(Q, w.inside) / np.where(live, w.target, 1)
    assert theory.distance(ratio, law, live) < 1e-5, f"the ratio is off by {theory.distance(ratio, law, live):.4f}"
    seen = (w.target * theory.reward(w, Q)).sum(-1)
    assert np.abs(np.where(w.visits > 0, seen - expected, 0)).max() < 1e-6, "the mean reward of a state is not gamma e"


def check_successor_values(points=2):
    """V(s') of column t stands in column t + 1; 0 after a terminal action, where nothing exists, and behind
    the last column."""
    V = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    yes, no = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)
    assert successor_values(V, yes, no).tolist() == [[2, 3, 4, 0]], f"{successor_values(V, yes, no).tolist()}"
    assert successor_values(V, yes, torch.tensor([[False, True, False, False]])).tolist() == [[2, 0, 4, 0]]
    assert successor_values(V, torch.tensor([[False, True, False, True]]), no).tolist() == [[2, 0, 4, 0]]
    bad = successor_values(torch.tensor([[1.0, math.nan, math.inf]]), no[:, :3], no[:, :3])
    assert bad.tolist() == [[0, 0, 0]], "what does not exist is multiplied, not left out"


def check_which_positions_count(points=3):
    """Dropped as a whole: no set; the token not in it; no terminal and no set in the next column. A cut text
    is NOT terminal."""
    w = torch.tensor([[1.0, 2.0, 0.0, 3.0], [4.0, 5.0, 6.0, 7.0]])
    found = bellman_weights(MASK, HIT, TERMINAL, w)
    assert found.tolist() == [[1, 2, 0, 3], [0, 0, 0, 0]], f"weights {found.tolist()}"
    inside = HIT.clone()
    inside[1, 2, 0] = True                                              # now the token of column 2 is in its set
    assert bellman_weights(MASK, inside, TERMINAL, w).tolist() == [[1, 2, 0, 3], [0, 0, 6, 0]]
    padded = MASK.clone()
    padded[0, 3, 0] = False                                             # the token taken, 3, stands in the padding now
    assert bellman_weights(padded, HIT, TERMINAL, w)[0].tolist() == [1, 2, 0, 0], "a hit in the padding of a set is no hit"


def check_join_and_bootstrap(points=2):
    """outside="join": the token need not be in the set. cut="bootstrap": the next column need have no set,
    but it must exist."""
    for (outside, cut), want in CASES.items():
        found = bellman_weights(MASK, HIT, TERMINAL, ONES, outside=outside, cut=cut)
        assert found.tolist() == want, f"outside={outside}, cut={cut}: {found.tolist()}, expected {want}"
    assert refused(lambda: bellman_weights(MASK, HIT, TERMINAL, ONES, outside="keep"))
    assert refused(lambda: bellman_weights(MASK, HIT, TERMINAL, ONES, cut="keep"))


def check_terms_by_hand(points=3):
    """reward = z_a - gamma V_p(s'); cloning = V_p(s) - z_a; V_p(s) - gamma V_p(s'); leak = log_Z - V_p(s). At
    the end V_p(s') = 0."""
    logits = student()
    reward, cloning, gain, leak, weights = terms(logits)
    assert weights.tolist() == CASES["drop", "drop"]
    for t in range(4):
        z_a, V, after = logits[0, t, TAKEN[0, t]], soft(logits, 0, t), 0.9 * soft(logits, 0, t + 1) if t < 3 else 0.0
        for name, found, want in (("reward", reward, z_a - after), ("cloning", cloning, V - z_a),
                                  ("V - gamma V'", gain, V - after), ("leak", leak, logits[0, t].logsumexp(-1) - V)):
            near(found[0, t], want, f"{name} of column {t}")
    assert not reward[1].any(), "the reward of a dropped position is not 0"


def check_gauges(points=2):
    """A gauge is subtracted from Q and from V at the SAME state: log_Z, or the mean logit of the set. Cloning
    and leak do not see it."""
    logits = student()
    raw = terms(logits)
    for gauge in ("log_softmax", "centred"):
        reward, cloning, gain, leak, _ = terms(logits, gauge=gauge)
        same = torch.allclose(cloning[0], raw[1][0]) and torch.allclose(leak[0], raw[3][0])
        assert same, f"{gauge}: cloning or leak has changed"
        means = [logits[0, t][IDS[0, t][MASK[0, t]]].mean() for t in range(4)]
        centres = means if gauge == "centred" else logits[0].logsumexp(-1)
        for t in range(4):
            later = 0.9 * centres[t + 1] if t < 3 else 0.0
            near(reward[0, t], raw[0][0, t] - centres[t] + later, f"{gauge}: reward of column {t}")
            near(gain[0, t], raw[2][0, t] - centres[t] + later, f"{gauge}: V - gamma V' of column {t}")
    assert refused(lambda: terms(logits, gauge="softmax")) and refused(lambda: terms(logits, gauge="centred", cut="bootstrap"))


def check_joined_tokens_and_missing_sets(points=2):
    """join: the token becomes one more of the set, once, where it was not in it. bootstrap: V(s') of no set
    is log_Z there."""
    logits = student()
    reward, cloning, _, leak, _ = terms(logits, outside="join", cut="bootstrap")
    near(cloning[1, 2], soft(logits, 1, 2, join=True) - logits[1, 2, 0], "cloning of a token that joins")
    near(leak[1, 2], logits[1, 2].logsumexp(-1) - soft(logits, 1, 2, join=True), "leak of a set that was joined")
    near(reward[1, 2], logits[1, 2, 0] - 0.9 * soft(logits, 1, 3), "reward of a token that joins")
    near(cloning[0, 0], soft(logits, 0, 0) - logits[0, 0, 1], "cloning where nothing joins")
    near(reward[1, 0], logits[1, 0, 4] - 0.9 * logits[1, 1].logsumexp(-1), "reward before a column without a set")
    mask = MASK.clone()
    mask[1, 1, 0] = True                                                # a set of one token, and another token was taken
    near(terms(logits, mask=mask)[0][1, 0], logits[1, 0, 4] - 0.9 * logits[1, 1, 0], "drop: reward before a token outside")


def check_where_gradients_flow(points=2):
    """The residual pulls at V_p(s') too, unless stop_gradient; target_values (B, T) take the place of V, read
    in the next column."""
    logits = student()
    for stop in (False, True):
        grad = torch.autograd.grad(terms(logits, stop_gradient=stop)[0][0, 0], logits)[0]
        assert (grad[0, 1].abs().max() > 0.1) != stop, f"stop_gradient={stop}: gradient in the next column {grad[0, 1].tolist()}"
        assert grad[0, 0, 1] == 1 and not grad[0, 2:].any() and not grad[1].any()
    values = torch.arange(8.0).reshape(2, 4).double()
    near(terms(logits, target_values=values)[0][0, 1], logits[0, 1, 2] - 0.9 * 2, "reward with target_values")


def check_what_does_not_count_is_harmless(points=2):
    """Padding and dropped positions may hold anything, NaN too: mask before logsumexp, or it comes back in
    the gradient."""
    logits, mask = student(), MASK.clone()
    mask[0, 3] = False                                                  # column 3 is now padding behind a cut document
    z_K, z_a, log_Z = student_terms(logits, IDS, TAKEN)
    for bad in (math.nan, 1e4):
        dirty = torch.where(mask, z_K, bad), torch.where(mask.any(-1), z_a, bad), torch.where(mask.any(-1), log_Z, bad)
        clean = bellman_terms(z_K, z_a, log_Z, mask, HIT, TERMINAL, ONES, 0.9)
        found = bellman_terms(*dirty, mask, HIT, TERMINAL, ONES, 0.9)
        live = found[4] > 0
        assert torch.equal(found[4], clean[4]) and live.tolist() == [[True, True, False, False], [False] * 4]
        for x, y in zip(found[:4], clean[:4]):
            torch.testing.assert_close(x[live], y[live])
        total = sum(x[live].sum() for x in found[:4]) + found[0].sum()
        assert torch.isfinite(torch.autograd.grad(total, logits, retain_graph=True)[0]).all(), f"{bad} comes back in the gradient"


def check_the_published_form(points=1):
    """phi(Q - gamma V') - (V - gamma V') is, written out, cloning and the square: bellman_distill and
    bellman_max_min agree."""
    logits = student()
    z_K, z_a, log_Z = student_terms(logits, IDS, TAKEN)
    ours, _ = bellman_distill(z_K, z_a, log_Z, torch.zeros(2, 4, 2), MASK, HIT, TERMINAL, ONES, alpha=0.3, gamma=0.9)
    theirs, _ = bellman_max_min(z_K, z_a, log_Z, MASK, HIT, TERMINAL, ONES, alpha=0.3, gamma=0.9)
    near(ours, theirs, "bellman_distill")
    reward, cloning, *_ = terms(logits)
    near(ours, (cloning[0] + reward[0] ** 2 / 1.2).mean(), "bellman_distill")


def check_a_table_and_a_network_agree(points=2):
    """One text told twice: as states of theory.py, and as columns of td_distill.py. Loss by loss they must be
    the same."""
    w, rng = tree()
    Q = rng.normal(size=w.follow.shape)
    s, path = 0, []
    while s >= 0:
        inside = np.flatnonzero(w.inside[s])
        going = [a for a in inside if w.follow[s, a] >= 0]
        a = int(going[0] if going else inside[0])
        path.append((s, a))
        s = int(w.follow[s, a])
    want = sum(theory.bellman_tokens(w, Q, 0.5)[s, a] for s, a in path) / len(path)
    logits = torch.tensor(np.array([[Q[s] for s, _ in path]]))
    ids, taken = torch.arange(3).expand(1, len(path), 3), torch.tensor([[a for _, a in path]])
    mask = torch.tensor(np.array([[w.inside[s] for s, _ in path]]))
    terminal = torch.tensor([[bool(w.follow[s, a] < 0) for s, a in path]])
    unused, ones = torch.zeros(1, len(path), 3), torch.ones(1, len(path)).double()
    hit = ids == taken[..., None]
    loss, _ = bellman_distill(*student_terms(logits, ids, taken), unused, mask, hit, terminal, ones, alpha=0.5, gamma=0.9)
    near(loss, want, "bellman_distill")
