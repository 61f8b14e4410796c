"""Checks of assignment 7, the value head and temporal differences (td_distill.py). The docstring of a check
is its hint."""
import math

import torch
import torch.nn.functional as F

from data.cache import MASKED
from td_distill import (TRUNK, StudentTerms, TDHeads, TeacherSets, bellman_distill, bellman_weights,
                        soft_returns, student_terms, successor_values, td_terms)

# Two documents of 4 tokens out of 5. The first ends with token 3 in its last column. The second is cut off:
# column 1 has no set, the token of column 2 is not in its set, and after column 3 nothing is known.
IDS = torch.tensor([[[0, 1], [2, 0], [1, 4], [3, 0]], [[4, 2], [0, 0], [1, 2], [0, 3]]])
MASK = torch.tensor([[[1, 1], [1, 0], [1, 1], [1, 1]], [[1, 1], [0, 0], [1, 1], [1, 1]]]).bool()
TAKEN = torch.tensor([[1, 2, 4, 3], [4, 3, 0, 3]])
TERMINAL = torch.tensor([[False, False, False, True], [False] * 4])
SHARES = torch.tensor([[0.6, 0.3], [0.8, 0.1], [0.5, 0.2], [0.7, 0.1]], dtype=torch.float64)
TEACHER = TeacherSets(torch.where(MASK, SHARES.log(), MASKED), MASK, IDS == TAKEN[..., None], TERMINAL)
ONES = torch.ones(2, 4, dtype=torch.float64)
YES, NO = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)


def wave(*shape, speed=1.7):
    """Numbers (*shape) between -2 and 2, with a gradient."""
    x = 2 * torch.sin(speed * torch.arange(math.prod(shape)).double() ** 1.1)
    return x.reshape(shape).requires_grad_()


def student():
    """Logits (2, 4, 5), v (2, 4), and the terms of a student who has them and U."""
    logits, v = wave(2, 4, 5), wave(2, 4, speed=0.9)
    return logits, v, student_terms(logits, IDS, TAKEN)._replace(v=v, U=wave(2, 4, 2, speed=1.3))


def near(found, want, what, tolerance=1e-9):
    found, want = (float(x.detach() if isinstance(x, torch.Tensor) else x) for x in (found, want))
    assert abs(found - want) < tolerance, f"{what}: {found:.6f}, expected {want:.6f}"


def gradients(value, *inputs):
    return torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)


def check_successor_values(points=2):
    """V(s') of column t stands in column t + 1. It is 0 after a terminal token, where the next column does
    not exist, and in the last column."""
    V = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert successor_values(V, YES, NO).tolist() == [[2, 3, 4, 0]], f"{successor_values(V, YES, NO).tolist()}"
    assert successor_values(V, YES, torch.tensor([[False, True, False, False]])).tolist() == [[2, 0, 4, 0]]
    assert successor_values(V, torch.tensor([[False, True, False, True]]), NO).tolist() == [[2, 0, 4, 0]]
    bad = successor_values(torch.tensor([[1.0, math.nan, math.inf]]), NO[:, :3], NO[:, :3])
    assert bad.tolist() == [[0, 0, 0]], "values that do not exist must be left out, not multiplied by 0"


def check_which_positions_count(points=3):
    """A position is dropped where it has no set, where its token is not in the set, and where it is not
    terminal and the next column has no set or weighs 0. A text that was cut off is NOT terminal."""
    w = torch.tensor([[1.0, 2.0, 0.0, 3.0], [4.0, 5.0, 6.0, 7.0]])
    found = bellman_weights(TEACHER, w)
    assert found.tolist() == [[1, 0, 0, 3], [0, 0, 0, 0]], f"weights {found.tolist()}"
    taken = TEACHER.is_taken.clone()
    taken[1, 2, 0] = True                                           # the token of column 2 is in its set now
    found = bellman_weights(TEACHER._replace(is_taken=taken), w)
    assert found.tolist() == [[1, 0, 0, 3], [0, 0, 6, 0]], f"weights {found.tolist()}"
    padded = MASK.clone()
    padded[0, 3, 0] = False                                             # token 3 stands in the padding now
    found = bellman_weights(TEACHER._replace(mask=padded), w)
    assert found[0].tolist() == [1, 0, 0, 0], "a token in the padding of a set is not in the set"


def check_terms_by_hand(points=4):
    """V = v + log S, S the student's mass in the set; Q = log pi(a|s) + v, pi over the WHOLE vocabulary.
    log_s and r are renormalised over the set, raw_r is not. V_next is V of the next column, 0 at the end."""
    logits, v, terms = student()
    x, V = td_terms(terms, TEACHER, ONES), []
    assert x.known.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]] and x.live.tolist()[1] == [1, 0, 1, 1]
    for t in range(4):
        inside, a = MASK[0, t], TAKEN[0, t]
        log_pi, log_t = logits[0, t].log_softmax(-1), TEACHER.log_probs[0, t][inside]
        log_S, log_q = log_pi[IDS[0, t][inside]].logsumexp(-1), log_t - log_t.logsumexp(-1)
        place = (IDS[0, t][inside] == a).nonzero()[0, 0]
        V.append(v[0, t] + log_S)
        cross = -(log_q.exp() * (log_pi[IDS[0, t][inside]] - log_S)).sum()
        for name, want in {"V": V[t], "Q": log_pi[a] + v[0, t], "leak": -log_S, "log_s": log_pi[a] - log_S,
                           "r": log_q[place], "raw_r": log_t[place], "cross_entropy": cross}.items():
            near(getattr(x, name)[0, t], want, f"{name} of column {t}")
    for t in range(4):
        near(x.V_next[0, t], V[t + 1] if t < 3 else 0, f"V_next of column {t}")
    assert not x.V_next[1, [0, 3]].any(), "V(s') where the next column has no set"


def check_what_the_value_head_frees(points=2):
    """With a value head a constant on all logits of a column changes nothing. Without one v is 0, so V = log
    S. With v = log_Z, the form that was published, Q is the logit."""
    logits, v, terms = student()
    x = td_terms(terms, TEACHER, ONES)
    moved = student_terms(logits + v[..., None], IDS, TAKEN)
    for name, a, b in zip(x._fields, x, td_terms(moved._replace(v=v), TEACHER, ONES)):
        assert torch.allclose(a[0], b[0]), f"{name} changes with a constant on all logits"
    x = td_terms(terms._replace(v=None), TEACHER, ONES)
    assert torch.allclose(x.V, -x.leak) and torch.allclose(x.Q[0], x.log_s[0] - x.leak[0])
    x = td_terms(terms._replace(v=terms.log_Z), TEACHER, ONES)
    assert torch.allclose(x.Q[0], terms.z_a[0]), "Q with v = log_Z is not the logit"


def check_where_gradients_flow(points=2):
    """The residual changes V(s') too, unless stop_gradient. target_values (B, T) replace V and are read in
    the next column."""
    logits, v, terms = student()
    for stop in (False, True):
        x = td_terms(terms, TEACHER, ONES, stop_gradient=stop)
        of_logits, of_v = gradients(x.Q[0, 0] - x.V_next[0, 0], logits, v)
        want = [[1, 0 if stop else -1, 0, 0], [0] * 4]
        assert of_v.tolist() == want, f"stop_gradient={stop}: gradient of v {of_v.tolist()}"
        assert bool(of_logits[0, 1].any()) != stop and not of_logits[0, 2:].any() and not of_logits[1].any()
    x = td_terms(terms, TEACHER, ONES, target_values=torch.arange(8.0).reshape(2, 4).double())
    assert x.V_next.tolist() == [[1, 2, 3, 0], [0, 6, 7, 0]], f"V_next of target_values {x.V_next.tolist()}"


def check_what_does_not_count_is_harmless(points=2):
    """Padding and columns without a set or a weight may hold anything, NaN too: mask first, then compute, or
    NaN returns in the gradient."""
    (logits, v, clean), weights = student(), ONES.clone()
    weights[0, 2] = 0
    live = MASK.any(-1) & (weights > 0)
    mask = MASK & live[..., None]
    want = td_terms(clean, TEACHER, weights)
    assert want.known.tolist() == [[1, 0, 0, 1], [0] * 4], f"known {want.known.tolist()}"
    for bad in (math.nan, 1e4):
        z_K, log_t = (torch.where(mask, x, bad) for x in (clean.z_K, TEACHER.log_probs))
        dirty = clean._replace(z_K=z_K, **{name: torch.where(live, getattr(clean, name), bad)
                                           for name in ("z_a", "log_Z", "v")})
        teacher = TEACHER._replace(log_probs=log_t)
        x = td_terms(dirty, teacher, weights)
        for name, a, b in zip(x._fields, x, want):
            assert torch.isfinite(a).all(), f"{name} is not finite"
            assert torch.allclose(a[live], b[live]), f"{name} depends on what does not count"
        for expected in (False, True):
            loss, _ = bellman_distill(dirty, teacher, weights, expected=expected)
            near(loss, bellman_distill(clean, TEACHER, weights, expected=expected)[0], "bellman_distill")
            finite = all(torch.isfinite(grad).all() for grad in gradients(loss, logits, v))
            assert finite, f"{bad} returns in the gradient"


def check_bellman_distill_by_hand(points=3):
    """The mean over known positions of -log_s + (Q - gamma V')^2 / (4 alpha) + leak (-log S). ValueError
    unless 0 < alpha < inf."""
    _, v, terms = student()
    x = td_terms(terms, TEACHER, ONES)
    square = (x.Q - 0.9 * x.V_next) ** 2 / 1.2
    options = dict(alpha=0.3, gamma=0.9, leak=0.5)
    loss, figures = bellman_distill(terms, TEACHER, ONES, **options)
    near(loss, (square - x.log_s + 0.5 * x.leak)[0].mean(), "bellman_distill")
    near(figures["reward"], (x.Q - 0.9 * x.V_next)[0].mean(), 'figures["reward"]')
    near(bellman_distill(terms, TEACHER, ONES, 10.0, **options)[0], loss * 0.4, "with the denominator 10")
    stopped, _ = bellman_distill(terms, TEACHER, ONES, stop_gradient=True, **options)
    assert abs(gradients(loss - stopped, v)[0]).max() > 0.1, "stop_gradient does not reach td_terms"
    for alpha in (0.0, -1.0, math.inf, math.nan):
        try:
            bellman_distill(terms, TEACHER, ONES, alpha=alpha)
        except ValueError:
            continue
        raise AssertionError(f"alpha={alpha} gave no ValueError")


def check_the_expected_form(points=2):
    """expected: cross_entropy and leak of every position with a set, and the square where it is known, all
    divided by the weight of the positions with a set."""
    _, _, terms = student()
    x, live = td_terms(terms, TEACHER, ONES), MASK.any(-1)
    loss, _ = bellman_distill(terms, TEACHER, ONES, alpha=0.3, gamma=0.9, leak=0.5, expected=True)
    square = ((x.Q - 0.9 * x.V_next)[0] ** 2 / 1.2).sum()
    near(loss, ((x.cross_entropy + 0.5 * x.leak)[live].sum() + square) / 7, "bellman_distill, expected")


def check_where_the_square_leads(points=1):
    """One state, two tokens that end the text, a .9 / .1 teacher, alpha .1: the loss is least where student /
    teacher is 1 - Q(a) / (2 alpha) and the mean of Q is 0: Q is .0577 and -.519, the student has .640."""
    taken, yes = torch.tensor([[0]] * 9 + [[1]]), torch.ones(10, 1, dtype=torch.bool)
    ids, mask = torch.arange(2).expand(10, 1, 2), yes[..., None].expand(10, 1, 2)
    teacher = TeacherSets(torch.zeros(10, 1, 2), mask, ids == taken[..., None], yes)
    Q = torch.tensor([0.057696, -9 * 0.057696], dtype=torch.float64)
    logits, v = Q.repeat(10, 1, 1).requires_grad_(), Q.logsumexp(-1).repeat(10, 1).requires_grad_()
    terms = student_terms(logits, ids, taken)._replace(v=v)
    loss, _ = bellman_distill(terms, teacher, yes.double(), alpha=0.1)
    for name, grad in zip(("logits", "v"), gradients(loss, logits, v)):
        near(grad.sum(0).abs().max(), 0, f"gradient of the {name} at the optimum", 1e-4)


def check_returns_by_hand(points=4):
    """Backwards: the token taken is worth its return, the others what the head says: V = log of the sum of
    pi(a|s) exp U(s, a), over the set but not renormalised; return = gamma V of the next column, 0 at the
    end."""
    # Student: .5 | .5 taken, .3 | .4 | .6 taken, which ends, .2; exp U of the others: .1 and .5. Three more
    # numbers stand where the token is taken, or in padding: they are not used.
    probs = torch.tensor([[0.5, 0.9], [0.3, 0.5], [0.4, 0.9], [0.6, 0.2]], dtype=torch.float64)
    heads = torch.tensor([[0.7, 0.6], [0.1, 0.6], [0.8, 0.6], [0.7, 0.5]], dtype=torch.float64)
    mask = torch.tensor([[[1, 0], [1, 1], [1, 0], [1, 1]]]).bool()
    taken = torch.tensor([[[1, 0], [0, 1], [1, 0], [1, 0]]]).bool()
    teacher = TeacherSets(torch.zeros(1, 4, 2), mask, taken, torch.tensor([[False, False, False, True]]))
    log_Z = torch.tensor([[0.5, -1.0, 2.0, 0.0]]).double()
    terms = StudentTerms(probs.log()[None] + log_Z[..., None], None, log_Z, None, heads.log()[None])
    for gamma in (1.0, 0.5):
        stay = 0.7 ** gamma                                     # .6 + .2 * .5 in the last column
        door = (0.4 * stay) ** gamma
        want = [(0.5 * door + 0.3 * 0.1) ** gamma, door, stay, 1.0]
        for t, found in enumerate(soft_returns(terms, teacher, gamma)[0]):
            near(found, math.log(want[t]), f"return of column {t} at gamma {gamma}")
    two = teacher._replace(terminal=torch.tensor([[False, True, False, True]]))         # two texts in a row
    for t, want in enumerate((0.5 + 0.3 * 0.1, 1.0)):
        near(soft_returns(terms, two)[0, t], math.log(want), f"return of column {t} of two texts in a row")


def check_returns_of_a_text_that_was_cut(points=2):
    """Where the return is not known, because the token is not in the set, or the text was cut after it,
    the token taken has the head's value, like the others. A column without a set has V = 0."""
    _, _, terms = student()
    V = (terms.z_K + terms.U - terms.log_Z[..., None]).logsumexp(-1)[1]
    found = soft_returns(terms, TEACHER)[1]
    for t, want in enumerate((0.0, V[2], V[3], 0.0)):
        near(found[t], want, f"return of column {t} in a text that was cut")


def check_returns_leave_padding_and_inputs_alone(points=1):
    """Padding may hold anything, NaN too. No gradient goes into a return, and U is not written to: the loss
    needs it."""
    _, _, terms = student()
    before = terms.U.detach().clone()
    want = soft_returns(terms, TEACHER)
    assert not want.requires_grad and torch.equal(terms.U, before), "soft_returns changes U"
    for bad in (math.nan, 1e4):
        z_K, U = (torch.where(MASK, x, bad) for x in (terms.z_K, terms.U))
        log_Z = torch.where(MASK.any(-1), terms.log_Z, bad)
        found = soft_returns(terms._replace(z_K=z_K, U=U, log_Z=log_Z), TEACHER)
        assert torch.allclose(found, want), f"{bad} in the padding changes the returns"


def check_the_heads(points=2):
    """v is linear in the hidden state; U = U.weight gelu(mix(hidden)) + U.bias at the K ids. U's gradient
    into the hidden state, but not its value, is scaled by TRUNK; v's is not."""
    heads, hidden = TDHeads(3, 5, width=4).double(), wave(2, 4, 3)
    for i, parameter in enumerate(heads.parameters()):
        parameter.data = wave(*parameter.shape, speed=1.1 + i).detach()
    v, U = heads(hidden, IDS)
    whole = heads.U(F.gelu(heads.mix(hidden))).gather(-1, IDS)              # (2, 4, 2)
    assert torch.allclose(v, heads.v(hidden)[..., 0]), f"v {v.tolist()}"
    assert torch.allclose(U, whole), f"U {U.tolist()}"
    (of_v,), (of_U,), (full,) = (gradients(x.sum(), hidden) for x in (v, U, whole))
    assert torch.allclose(of_v, heads.v.weight.expand(2, 4, 3)), "the gradient of v by the hidden state"
    assert torch.allclose(of_U, TRUNK * full), "the gradient of U by the hidden state is not TRUNK of it"
    v, U = heads(hidden.bfloat16(), IDS)
    assert (v.dtype, U.dtype) == (torch.float64, torch.float64), "the heads keep their own type"
