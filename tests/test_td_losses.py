"""The divergences inside a top-p set, and Bellman Distill: against literal loops, in float64."""
import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import td_distill
from data.cache import MASKED
from experiments.teacher import sampled_sets
from td_distill import (bellman_distill, bellman_max_min, bellman_weights, charge, head_terms, sft_loss, student_terms,
                        successor_values, topp_forward_kl, topp_jsd, vocabulary_chunks)
from test_td_distill import assert_same_with_gradient, example

PHIS = ["linear", "chi2", "kl", "js", "hellinger"]


def chain(B=3, T=5, V=9, p=0.7, seed=0, dtype=torch.float64, scale=2.0, k_cap=99):
    """A batch with everything that can happen to a position: documents that end and that are cut, padding, tokens inside
    and outside the set, a position without a set in the middle, a position of weight 0."""
    student, teacher, ids, log_probs, mask, weights, taken = example(B, T, V, p, k_cap, seed, dtype, scale)
    g = torch.Generator().manual_seed(seed)
    inside = ids.gather(-1, (torch.rand(B, T, generator=g) * mask.sum(-1)).long()[..., None])[..., 0]
    taken = torch.where(torch.rand(B, T, generator=g) < 0.75, inside, taken)
    mask, terminal = mask.clone(), torch.zeros(B, T, dtype=torch.bool)
    if T > 3:
        terminal[0, -2] = True                              # row 0 ends, and is padded
        mask[0, -1] = False
        mask[1, 1] = False                                  # row 1 has a given token, and is cut by length at the end
        mask[2, -1] = False                                 # row 2 is cut, and has a column of padding
    return dict(student=student, teacher=teacher, ids=ids, taken=taken, weights=weights, terminal=terminal, mask=mask,
                log_probs=torch.where(mask, log_probs, MASKED))


def arguments(c, student=None, rows=slice(None)):
    """What bellman_distill takes, in its order."""
    student = (c["student"] if student is None else student)[rows]
    ids, taken = c["ids"][rows], c["taken"][rows]
    return (*student_terms(student, ids, taken), c["log_probs"][rows], c["mask"][rows], ids == taken[..., None],
            c["terminal"][rows], c["weights"][rows])


def max_min(c, student=None, rows=slice(None), denominator=None, **options):
    z_K, z_a, log_Z, _, *rest = arguments(c, student, rows)
    return bellman_max_min(z_K, z_a, log_Z, *rest, denominator, **options)


def phi_literal(x, alpha, phi):
    """As the table says; only where phi is defined."""
    u = x / alpha
    value = {"linear": lambda: u, "chi2": lambda: u - u ** 2 / 4, "kl": lambda: 1 - torch.exp(-u),
             "js": lambda: torch.log(2 - torch.exp(-u)), "hellinger": lambda: u / (1 + u)}[phi]()
    return alpha * value


def literal(c, student, *, alpha=0.1, gamma=0.99, leak=0.0, phi="chi2", expected=False, toward="zero", gauge="raw",
            outside="drop", cut="drop", stop_gradient=False, target_values=None, form="token"):
    """Position by position, with Python lists for sets -> (loss, list of the positions that count)."""
    B, T, _ = student.shape
    ids, mask, log_probs = c["ids"], c["mask"], c["log_probs"]

    def the_set(b, t):
        kept = [ids[b, t, k].item() for k in range(ids.shape[-1]) if mask[b, t, k]]
        if kept and outside == "join" and c["taken"][b, t].item() not in kept:
            kept.append(c["taken"][b, t].item())
        return kept

    def soft_value(b, t):
        """(V in the gauge, centre)"""
        z, kept = student[b, t], the_set(b, t)
        centre = {"raw": 0.0, "log_softmax": z.exp().sum().log(), "centred": z[kept].mean()}[gauge]
        if not kept:
            assert cut == "bootstrap"
            return z.exp().sum().log() - centre, centre
        return z[kept].exp().sum().log() - centre, centre

    total, weight, used = 0.0, 0.0, []
    for b, t in product(range(B), range(T)):
        kept, a, w = the_set(b, t), c["taken"][b, t].item(), c["weights"][b, t]
        if w == 0 or not kept:
            continue
        after, teacher_after, known = 0.0, 0.0, a in kept
        if not c["terminal"][b, t]:
            known = known and t + 1 < T and (bool(the_set(b, t + 1)) or cut == "bootstrap")
        if not known and not expected:                      # the mean over the set needs no token drawn
            continue
        if known and not c["terminal"][b, t]:
            after = soft_value(b, t + 1)[0] if target_values is None else target_values[b, t + 1]
            after = after.detach() if stop_gradient else after
            if the_set(b, t + 1):
                teacher_after = sum(log_probs[b, t + 1, k].exp() for k in range(mask.shape[-1]) if mask[b, t + 1, k]).log()
        used.append((b, t))
        V, centre = soft_value(b, t)
        x = known * (student[b, t, a] - centre - gamma * after)
        if form == "max-min":
            each = -(phi_literal(x, alpha, phi) - (V - gamma * after))
        else:
            if toward == "teacher" and known:
                x = x - (log_probs[b, t, [ids[b, t, k].item() for k in range(mask.shape[-1])].index(a)]
                         - gamma * teacher_after)
            log_proj = student[b, t] - student[b, t, kept].exp().sum().log()
            if expected:
                q = {ids[b, t, k].item(): log_probs[b, t, k].exp() for k in range(mask.shape[-1]) if mask[b, t, k]}
                each = -sum(q[i] * log_proj[i] for i in q) / sum(q.values())
            else:
                each = -log_proj[a]
            each = each + x - phi_literal(x, alpha, phi)
            each = each + leak * (student[b, t].exp().sum().log() - student[b, t, kept].exp().sum().log())
        total, weight = total + w * each, weight + w
    return total / weight, used


# ---------------------------------------------------------------------------------------------------------------
# divergences


def coarse(c, b, t, tail):
    """Teacher's and student's distributions over the set, as `tail` says, with plain probabilities."""
    kept = c["ids"][b, t][c["mask"][b, t]]
    q, s = c["teacher"][b, t].softmax(-1)[kept], c["student"][b, t].softmax(-1)[kept]
    if tail == "inside":
        return q / q.sum(), s / s.sum()
    return torch.cat([q, 1 - q.sum()[None]]), torch.cat([s, 1 - s.sum()[None]])


def divergence(c, beta, tail, rows=slice(None), denominator=None, student=None):
    z_K, _, log_Z, log_probs, mask, _, _, weights = arguments(c, student, rows)
    return topp_jsd(z_K, log_Z, log_probs, mask, weights, denominator, beta=beta, tail=tail)


@pytest.mark.parametrize("tail", ["inside", "bucket"])
@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_jsd_against_the_loop(beta, tail):
    c = chain()
    total, weight = 0.0, 0.0
    for b, t in product(range(3), range(5)):
        if c["weights"][b, t] == 0 or not c["mask"][b, t].any():
            continue
        q, s = coarse(c, b, t, tail)
        m = beta * q + (1 - beta) * s
        each = {0: (q * (q / s).log()).sum(), 1: (s * (s / q).log()).sum()}.get(
            beta, beta * (q * (q / m).log()).sum() + (1 - beta) * (s * (s / m).log()).sum())
        total, weight = total + c["weights"][b, t] * each, weight + c["weights"][b, t]
    loss, figures = divergence(c, beta, tail)
    assert_same_with_gradient(loss, total / weight, c["student"])
    assert figures["jsd"] == loss.detach() and figures["leak"] > 0 and not figures["jsd"].requires_grad


@pytest.mark.parametrize("tail", ["inside", "bucket"])
def test_jsd_at_beta_0_is_the_forward_kl_and_limits_are_reached(tail):
    c = chain()
    z_K, _, log_Z, log_probs, mask, _, _, weights = arguments(c)
    forward, _ = topp_forward_kl(z_K, log_Z, log_probs, mask, weights, tail=tail, leak=0.0)
    assert_same_with_gradient(divergence(c, 0, tail)[0], forward, c["student"], rtol=1e-9, atol=1e-9)
    for end, beta in ((0, 1e-6), (1, 1 - 1e-6)):
        scaled = divergence(c, beta, tail)[0] / 1e-6
        torch.testing.assert_close(scaled, divergence(c, end, tail)[0], rtol=1e-3, atol=0)
    assert abs(divergence(c, 0, tail)[0] - divergence(c, 1, tail)[0]) > 0.01             # the two ends differ


def test_renormalised_forward_kl_is_the_one_inside_plus_leak():
    c = chain()
    z_K, _, log_Z, log_probs, mask, _, _, weights = arguments(c)
    whole, figures = topp_forward_kl(z_K, log_Z, log_probs, mask, weights)
    inside, _ = topp_forward_kl(z_K, log_Z, log_probs, mask, weights, leak=0.0)
    assert figures["leak"] > 0.01
    torch.testing.assert_close(whole.detach(), inside.detach() + figures["leak"])


@pytest.mark.parametrize("beta", [0, 0.3, 1])
@pytest.mark.parametrize("tail", ["inside", "bucket"])
def test_jsd_of_whole_sets_is_dense(beta, tail):
    student, teacher, ids, log_probs, mask, weights, _ = example(p=1.0)
    assert mask.all() and ids.shape[-1] == student.shape[-1]
    z_K, _, log_Z = student_terms(student, ids, ids[..., 0])
    q, s = teacher.log_softmax(-1), student.log_softmax(-1)
    m = (beta * q.exp() + (1 - beta) * s.exp()).log()
    kl = lambda a, b: F.kl_div(b, a, log_target=True, reduction="none").sum(-1)          # noqa: E731
    each = kl(q, s) if beta == 0 else kl(s, q) if beta == 1 else beta * kl(q, m) + (1 - beta) * kl(s, m)
    loss, _ = topp_jsd(z_K, log_Z, log_probs, mask, weights, beta=beta, tail=tail)
    # the bucket is empty up to 8 roundings on both sides
    assert_same_with_gradient(loss, (weights * each).sum() / weights.sum(), student, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tail", ["inside", "bucket"])
def test_leak_is_added_to_a_divergence(tail):
    """-log of the student's mass in the set, in its own part of the loss and in the figures before its factor."""
    c = chain()
    z_K, _, log_Z, log_probs, mask, _, _, weights = arguments(c)
    loss, figures = topp_jsd(z_K, log_Z, log_probs, mask, weights, beta=0.5, tail=tail, leak=0.3)
    inside = torch.zeros_like(c["student"]).scatter_add(-1, c["ids"], mask.double())         # (B, T, V), 1 in the set
    counts = weights * mask.any(-1)
    leak = -torch.where(counts > 0, (c["student"].softmax(-1) * inside).sum(-1), 1).log()
    leak = (counts * leak).sum() / counts.sum()
    assert_same_with_gradient(loss, divergence(c, 0.5, tail)[0] + 0.3 * leak, c["student"])
    torch.testing.assert_close(figures["leak"], leak.detach())


def test_jsd_refuses():
    for options in (dict(beta=0.5, tail="outside"), dict(beta=-0.1, tail="inside"), dict(beta=math.nan, tail="inside")):
        with pytest.raises(ValueError, match="expected 'inside' or 'bucket', and 0 <= beta <= 1"):
            divergence(chain(), **options)


def test_sampled_sets_are_unbiased():
    """Summed over its set, the weight of every token has the mean softmax(logits): 5 standard errors around it."""
    row, n, rows = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0]), 4, 40_000
    ids, log_probs, mask = sampled_sets(row.expand(rows, -1), n, torch.Generator().manual_seed(0))
    assert ids.shape == log_probs.shape == mask.shape == (rows, n) and (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    dense = torch.zeros(rows, 5).scatter_add_(-1, ids, torch.where(mask, log_probs.exp(), 0))
    torch.testing.assert_close(dense.sum(-1), torch.ones(rows))
    pi = row.softmax(-1)
    assert ((dense.mean(0) - pi).abs() < 5 * (pi * (1 - pi) / n / rows).sqrt()).all()
    assert (log_probs[~mask] == MASKED).all() and not mask.all()
    for i, m in zip(ids[:200], mask[:200]):
        assert len(set(i[m].tolist())) == m.sum()                                        # a token stands once


# ---------------------------------------------------------------------------------------------------------------
# Bellman Distill


OPTIONS = [{}, dict(alpha=2.0, gamma=0.5), dict(leak=0.3), dict(gauge="log_softmax"), dict(gauge="centred"),
           dict(outside="join"), dict(outside="join", gauge="centred", leak=1.0), dict(cut="bootstrap"),
           dict(cut="bootstrap", gauge="log_softmax"), dict(stop_gradient=True), dict(expected=True),
           dict(toward="teacher"), dict(toward="teacher", cut="bootstrap", expected=True, gauge="log_softmax"),
           dict(phi="linear"), dict(alpha=1.0, gamma=0.0)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bellman_distill_against_the_loop(options):
    c = chain()
    loss, figures = bellman_distill(*arguments(c), **options)
    expected, used = literal(c, c["student"], **options)
    assert 3 < len(used) < 15                               # some positions are dropped, some are left
    assert_same_with_gradient(loss, expected, c["student"])
    parts = figures["cloning"] + figures["bellman"] + options.get("leak", 0) * figures["leak"]
    torch.testing.assert_close(loss.detach(), parts)
    assert not any(value.requires_grad for value in figures.values())


def test_bellman_distill_with_another_networks_values():
    c = chain()
    values = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    loss, _ = bellman_distill(*arguments(c), target_values=values)
    assert_same_with_gradient(loss, literal(c, c["student"], target_values=values)[0], c["student"])
    z_K, _, _, _, mask, *_ = arguments(c)
    own = torch.where(mask, z_K, -1e9).logsumexp(-1).detach()
    frozen, _ = bellman_distill(*arguments(c), target_values=own)
    stopped, _ = bellman_distill(*arguments(c), stop_gradient=True)
    assert_same_with_gradient(frozen, stopped, c["student"])


@pytest.mark.parametrize("options", [{}, dict(alpha=1.0, gamma=0.9), dict(gauge="centred"), dict(outside="join"),
                                     dict(cut="bootstrap"), dict(stop_gradient=True), dict(phi="linear")], ids=str)
def test_max_min_is_the_form_per_token(options):
    c = chain()
    ours, figures = max_min(c, **options)
    assert_same_with_gradient(ours, literal(c, c["student"], form="max-min", **options)[0], c["student"])
    assert_same_with_gradient(ours, bellman_distill(*arguments(c), **options)[0], c["student"])
    torch.testing.assert_close(ours.detach(), figures["value"] - figures["reward"])


@pytest.mark.parametrize("phi", ["kl", "js", "hellinger"])
def test_the_two_forms_agree_for_every_phi(phi):
    c = chain(scale=0.1)
    options = dict(phi=phi, alpha=20.0)                     # the residuals stay where each phi is defined
    loss, _ = bellman_distill(*arguments(c), **options)
    assert_same_with_gradient(loss, max_min(c, **options)[0], c["student"])
    assert_same_with_gradient(loss, literal(c, c["student"], **options)[0], c["student"])
    assert abs(loss - bellman_distill(*arguments(c), alpha=20.0)[0]) > 1e-5              # and it is not chi2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 7), st.sampled_from([0.3, 0.8, 1.0]), st.integers(0, 10 ** 6),
       st.sampled_from([0.1, 3.0]), st.sampled_from([0.0, 0.9, 1.0]), st.sampled_from(["raw", "log_softmax", "centred"]),
       st.sampled_from(["drop", "join"]), st.integers(0, 99))
def test_any_shape_any_flags(B, T, V, p, seed, alpha, gamma, gauge, outside, flags):
    student, teacher, ids, log_probs, mask, weights, taken = example(B, T, V, p, seed=seed)
    g = torch.Generator().manual_seed(flags)
    mask = mask & (torch.rand(B, T, 1, generator=g) < 0.8)
    c = dict(student=student, ids=ids, log_probs=log_probs, mask=mask, weights=weights, taken=taken,
             terminal=torch.rand(B, T, generator=g) < 0.2)
    options = dict(alpha=alpha, gamma=gamma, gauge=gauge, outside=outside)
    counted = bellman_weights(mask, ids == taken[..., None], c["terminal"], weights, outside=outside)
    loss, _ = bellman_distill(*arguments(c), **options)
    if not counted.any():
        assert loss == 0
        return
    expected, used = literal(c, student, **options)
    assert counted.nonzero().tolist() == [list(position) for position in used]
    assert_same_with_gradient(loss, expected, student, rtol=1e-7, atol=1e-9)
    assert_same_with_gradient(loss, max_min(c, **options)[0], student, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("options", [dict(alpha=1.0), dict(alpha=1.0, gauge="centred", outside="join", leak=0.5),
                                     dict(alpha=1.0, gauge="log_softmax", cut="bootstrap", expected=True),
                                     dict(phi="kl"), dict(phi="js"), dict(phi="hellinger")], ids=str)
def test_gradients_by_finite_differences(options):
    """Residuals here lie on both sides of where the tangents begin."""
    c = chain(B=3, T=4, V=4)
    assert torch.autograd.gradcheck(lambda x: bellman_distill(*arguments(c, x), **options)[0], c["student"])


@pytest.mark.parametrize("beta, tail", [(0.5, "inside"), (0.5, "bucket"), (1, "bucket")])
def test_gradients_of_divergences_by_finite_differences(beta, tail):
    c = chain(B=3, T=4, V=5)
    assert torch.autograd.gradcheck(lambda x: divergence(c, beta, tail, student=x)[0], c["student"])


def test_float32_gradients_follow_float64():
    for options in (dict(leak=0.5), dict(gauge="centred", phi="js"), dict(expected=True, toward="teacher")):
        wide, narrow = chain(), chain(dtype=torch.float32)
        exact, = torch.autograd.grad(bellman_distill(*arguments(wide), **options)[0], wide["student"])
        loss, _ = bellman_distill(*arguments(narrow), **options)
        found, = torch.autograd.grad(loss, narrow["student"])
        assert loss.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------
# what the objective means


def test_without_chi2_it_is_cloning_on_the_renormalised_set():
    c = chain()
    z_K, z_a, log_Z, log_probs, mask, hit, terminal, weights = arguments(c)
    loss, figures = bellman_distill(*arguments(c), phi="linear")
    counted = bellman_weights(mask, hit, terminal, weights)
    log_proj = torch.where(mask, z_K, -math.inf)[counted > 0].log_softmax(-1)
    each = -log_proj[hit[counted > 0]]
    assert_same_with_gradient(loss, (counted[counted > 0] * each).sum() / counted.sum(), c["student"])
    assert figures["bellman"] == 0 and len(each) > 3
    # and with a leak of 1, plain cross-entropy on the positions that count
    loss, _ = bellman_distill(*arguments(c), phi="linear", leak=1.0)
    assert_same_with_gradient(loss, sft_loss(z_a, log_Z, counted)[0], c["student"])


def test_of_whole_sets_it_is_dense():
    """K = V: V_p is log_Z, nothing leaks, cloning is cross-entropy, and the square is that of p = 1."""
    student, _, ids, log_probs, mask, weights, taken = example(B=2, T=4, p=1.0)
    terminal = torch.zeros(2, 4, dtype=torch.bool)
    terminal[:, -1] = True
    z_K, z_a, log_Z = student_terms(student, ids, taken)
    loss, figures = bellman_distill(z_K, z_a, log_Z, log_probs, mask, ids == taken[..., None], terminal, weights, leak=0.7)
    nll = F.cross_entropy(student.flatten(0, 1), taken.flatten(), reduction="none").view(2, 4)
    V = student.logsumexp(-1)
    r = student.gather(-1, taken[..., None])[..., 0] - 0.99 * torch.cat([V[:, 1:], torch.zeros(2, 1)], dim=1)
    assert_same_with_gradient(loss, (weights * (nll + r ** 2 / 0.4)).sum() / weights.sum(), student)
    assert figures["leak"].item() == pytest.approx(0, abs=1e-12)


def test_a_terminal_action_has_no_successor():
    """Two columns, the first token ends the document: nothing of the second column reaches the first."""
    c = chain(B=1, T=2, seed=3)
    c["mask"][:], c["weights"][:] = c["mask"].any(), torch.tensor([[1.0, 0.0]])
    c["taken"] = c["ids"][..., 0].clone()
    c["terminal"] = torch.tensor([[True, False]])
    loss, figures = bellman_distill(*arguments(c), alpha=1.0)
    z_a = arguments(c)[1][0, 0]
    torch.testing.assert_close(figures["bellman"], (z_a ** 2 / 4).detach())
    grad, = torch.autograd.grad(loss, c["student"])
    assert (grad[0, 1] == 0).all() and (grad[0, 0] != 0).any()
    c["terminal"][:] = False                                # the same without the end: V_p(s') is there
    loss, _ = bellman_distill(*arguments(c), alpha=1.0)
    grad, = torch.autograd.grad(loss, c["student"])
    assert (grad[0, 1] != 0).any()


def test_successor_values_worked_example():
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    exists = torch.tensor([[True, True, True, False]])
    terminal = torch.tensor([[False, True, False, False]])
    assert successor_values(values, exists, terminal).tolist() == [[2.0, 0.0, 0.0, 0.0]]


def test_which_positions_count():
    """Of a row: a chain that runs, a token outside, a broken chain, a given token, the end, padding."""
    #                        0      1      2      3      4      5      6
    has_set = torch.tensor([[True,  True,  True,  False, True,  True,  False]])          # noqa: E241
    hits = torch.tensor([[True,  False, True,  False, True,  True,  False]])             # noqa: E241
    ends = torch.tensor([[False, False, False, False, False, True,  False]])             # noqa: E241
    mask, hit, ones = has_set[..., None], hits[..., None], torch.ones(1, 7)

    def kept(**options):
        return bellman_weights(mask, hit, ends, ones, **options)[0].nonzero()[:, 0].tolist()
    assert kept() == [0, 4, 5]                              # 0 counts: the set of 1 exists, its token does not matter
    assert kept(outside="join") == [0, 1, 4, 5]
    assert kept(cut="bootstrap") == [0, 2, 4, 5]
    assert kept(cut="bootstrap", outside="join") == [0, 1, 2, 4, 5]
    ends = torch.zeros_like(ends)
    assert kept() == [0, 4] and kept(cut="bootstrap") == [0, 2, 4, 5]
    mask, hit, ends, ones = mask[:, :6], hit[:, :6], ends[:, :6], ones[:, :6]
    assert kept(cut="bootstrap") == [0, 2, 4]               # cut in the last column there is: no s' to read
    assert bellman_weights(mask, hit, ends, 0 * ones).sum() == 0


def test_padding_is_not_a_hit():
    """A set is padded with id 0: where token 0 was taken, that is no sign that it is in the set."""
    ids, mask = torch.tensor([[[3, 0], [1, 2], [2, 0]]]), torch.tensor([[[True, False], [True, True], [True, True]]])
    hit, ends = ids == torch.tensor([[[0], [2], [0]]]), torch.tensor([[False, False, True]])
    assert hit.any(-1).all()
    assert bellman_weights(mask, hit, ends, torch.ones(1, 3)).tolist() == [[0.0, 1.0, 1.0]]
    c = dict(student=torch.randn(1, 3, 5, dtype=torch.float64, requires_grad=True), ids=ids, mask=mask, terminal=ends,
             taken=torch.tensor([[0, 2, 0]]), weights=torch.ones(1, 3), log_probs=torch.where(mask, -1.0, MASKED).double())
    for options in ({}, dict(outside="join"), dict(toward="teacher")):
        loss, _ = bellman_distill(*arguments(c), **options)
        assert_same_with_gradient(loss, literal(c, c["student"], **options)[0], c["student"])


def test_the_mean_of_cloning_over_the_token_taken_is_the_expected_form():
    """Draw a ~ proj_p teacher: the sampled term has the expected one as its mean; checked by enumeration."""
    c = chain(B=1, T=2, seed=1)
    c["mask"][:] = True
    c["terminal"] = torch.ones(1, 2, dtype=torch.bool)
    c["weights"] = torch.tensor([[1.0, 0.0]])
    log_q = c["log_probs"][0, 0].log_softmax(-1)
    c["log_probs"] = log_q.expand(1, 2, -1).clone()
    mean, expected = 0.0, []
    for k in range(len(log_q)):
        c["taken"] = c["ids"][..., k].clone()
        mean = mean + log_q[k].exp() * bellman_distill(*arguments(c), phi="linear")[0]
        expected.append(bellman_distill(*arguments(c), phi="linear", expected=True)[0])
    assert len(expected) > 1
    for one in expected:
        assert_same_with_gradient(one, mean, c["student"])


def test_a_student_that_is_the_teacher_has_no_residual_toward_the_teacher():
    c = chain()
    c["student"] = c["teacher"].clone().requires_grad_()
    _, figures = bellman_distill(*arguments(c), toward="teacher", gauge="log_softmax", cut="bootstrap")
    assert figures["bellman"].item() == pytest.approx(0, abs=1e-20)
    _, figures = bellman_distill(*arguments(c), gauge="log_softmax", cut="bootstrap")
    assert figures["bellman"] > 0.1                         # toward zero, the same student pays


@pytest.mark.parametrize("alpha", [10.0, 1.0, 0.5, 0.1])
def test_small_alpha_flattens_the_student(alpha):
    """One step, terminal, teacher .9 / .1: minimised over Q, pi_Q(a) / pi*(a) = 1 - r(a) / (2 alpha), E[r] = 0."""
    pi = torch.tensor([0.9, 0.1], dtype=torch.float64)
    Q = torch.zeros(2, 1, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([Q], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")
    ids, taken = torch.arange(2).expand(2, 1, 2), torch.tensor([[0], [1]])               # both outcomes, weighted by pi
    ones = torch.ones(2, 1, 2, dtype=torch.bool)

    def closure():
        optimizer.zero_grad()
        shared = Q.mean(0, keepdim=True).expand(2, 1, 2)
        loss, _ = bellman_distill(*student_terms(shared, ids, taken), pi.log().expand(2, 1, 2), ones,
                                  ids == taken[..., None], ones[..., 0], pi[:, None], alpha=alpha)
        loss.backward()
        return loss
    optimizer.step(closure)
    r = Q.detach().mean(0)[0]
    student = r.softmax(-1)
    torch.testing.assert_close(student / pi, 1 - r / (2 * alpha), rtol=1e-5, atol=1e-5)
    assert (pi * r).sum().item() == pytest.approx(0, abs=1e-5)
    assert student[0].item() == pytest.approx({10.0: 0.891, 1.0: 0.829, 0.5: 0.784, 0.1: 0.640}[alpha], abs=6e-4)


def test_the_gauge_matters_to_the_residual_alone():
    """Adding a constant a position to the logits: nothing for cloning and leak; for the residual only if raw."""
    c = chain()
    shift = 3 * torch.randn(3, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for gauge in ("raw", "log_softmax", "centred"):
        before, after = (bellman_distill(*arguments(c, student), gauge=gauge)[1]
                         for student in (c["student"], c["student"] + shift))
        torch.testing.assert_close(before["cloning"], after["cloning"])
        torch.testing.assert_close(before["leak"], after["leak"])
        moved = abs(before["bellman"] - after["bellman"]) > 1e-6
        assert moved == (gauge == "raw")


# ---------------------------------------------------------------------------------------------------------------
# phi


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("alpha", [0.1, 2.0])
def test_charge_is_the_identity_minus_phi(phi, alpha):
    x = alpha * torch.linspace(-0.49, 30, 200, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(charge(x, alpha, phi), x - phi_literal(x, alpha, phi))


@pytest.mark.parametrize("phi, end", [("kl", -8.0), ("js", -0.5), ("hellinger", -0.5)])
def test_where_the_tangent_of_a_charge_begins(phi, end):
    """phi itself up to the end that the docstring names; behind it a straight line of the slope that phi has there."""
    alpha, ends = 0.3, torch.tensor([end, 0.99 * end], dtype=torch.float64, requires_grad=True)
    exact = alpha * ends - phi_literal(alpha * ends, alpha, phi)
    torch.testing.assert_close(charge(alpha * ends, alpha, phi), exact)
    slope = torch.autograd.grad(exact.sum(), ends)[0][0] / alpha
    behind = alpha * torch.tensor([end - 0.1, end - 5], dtype=torch.float64)
    torch.testing.assert_close(charge(behind, alpha, phi), exact[0].detach() + slope * (behind - alpha * end))


@pytest.mark.parametrize("phi", PHIS[1:])
def test_charge_is_convex_smooth_and_zero_at_zero(phi):
    x = torch.linspace(-12, 12, 24_001, dtype=torch.float64).requires_grad_()
    value = charge(x, 1.0, phi)
    slope, = torch.autograd.grad(value.sum(), x)
    middle = len(x) // 2
    assert abs(value[middle]) < 1e-15 and abs(slope[middle]) < 1e-12 and (value > -1e-15).all()
    steps = slope.diff()
    assert (steps > -1e-9).all()                            # slopes rise: convex, also across the tangent's start
    assert (steps < 0.01 * (1 + slope.abs().max())).all()   # and do not jump there
    ends = torch.tensor([-8.0, -0.5], dtype=torch.float64)[:, None] + torch.tensor([-1e-10, 1e-10], dtype=torch.float64)
    ends.requires_grad_()
    at_ends, = torch.autograd.grad(charge(ends, 1.0, phi).sum(), ends)
    torch.testing.assert_close(at_ends[:, 0], at_ends[:, 1], rtol=1e-6, atol=0)
    differences = value.diff() / x.diff()
    torch.testing.assert_close(((slope[1:] + slope[:-1]) / 2).detach(), differences.detach(), rtol=1e-3, atol=1e-3)


def test_charge_refuses():
    for phi, alpha in (("tv", 1.0), ("chi2", 0.0), ("js", -1.0), ("kl", math.nan), ("kl", math.inf)):
        with pytest.raises(ValueError, match="expected linear, chi2, kl, js or hellinger"):
            charge(torch.zeros(1), alpha, phi)


# ---------------------------------------------------------------------------------------------------------------
# the terms, straight from the head


def head_inputs(shape=(2, 3), V=7, C=4, K=3, dtype=torch.float64, scale=1.0, seed=0):
    """hidden, weight with gradients; ids, in which tokens occur twice; taken, at times one of them."""
    g = torch.Generator().manual_seed(seed)
    hidden = (scale * torch.randn(*shape, C, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    weight = torch.randn(V, C, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    ids = torch.randint(V, (*shape, K), generator=g)
    taken = torch.where(torch.rand(shape, generator=g) < 0.5, ids[..., 0], torch.randint(V, shape, generator=g))
    return hidden, weight, ids, taken


@pytest.fixture
def thin_chunks(monkeypatch):
    """Of 512 tokens, however few the positions are."""
    monkeypatch.setattr(td_distill, "HEAD_CELLS", 1)


def terms_and_gradients(terms, seed=1):
    """terms: function of hidden, weight -> three tensors; a random mixture of them is differentiated."""
    def run(hidden, weight):
        found = terms(hidden, weight)
        g = torch.Generator().manual_seed(seed)
        mixture = sum((x * torch.randn(x.shape, generator=g, dtype=torch.float64)).sum() for x in found)
        return *found, *torch.autograd.grad(mixture, [hidden, weight])
    return run


@pytest.mark.parametrize("shape, V", [((2, 3), 7), ((4,), 512), ((2, 2, 1), 513), ((5,), 1700), ((700,), 1500)])
def test_head_terms_are_the_terms_of_the_logits(shape, V, thin_chunks):
    hidden, weight, ids, taken = head_inputs(shape, V)
    lean = terms_and_gradients(lambda h, w: head_terms(h, w, ids, taken))(hidden, weight)
    dense = terms_and_gradients(lambda h, w: student_terms(F.linear(h, w), ids, taken))(hidden, weight)
    for a, b in zip(lean, dense):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("V", [6, 514])
def test_head_terms_against_finite_differences(V, thin_chunks):
    hidden, weight, ids, taken = head_inputs((2,), V, C=2)
    ids[0, 0] = V - 1                                           # in the last chunk
    assert torch.autograd.gradcheck(lambda h, w: head_terms(h, w, ids, taken), [hidden, weight], fast_mode=V > 9)


@pytest.mark.parametrize("options", [dict(gauge="raw", leak=1.0), dict(gauge="log_softmax", expected=True)], ids=str)
def test_losses_from_the_head(options):
    c = chain()
    hidden, weight, _, _ = head_inputs(c["taken"].shape, c["student"].shape[-1])

    def loss(terms, h, w):
        value, _ = bellman_distill(*terms(h, w), *arguments(c)[3:], **options)
        return value, *torch.autograd.grad(value, [h, w])
    lean = loss(lambda h, w: head_terms(h, w, c["ids"], c["taken"]), hidden, weight)
    dense = loss(lambda h, w: student_terms(F.linear(h, w), c["ids"], c["taken"]), hidden, weight)
    for a, b in zip(lean, dense):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("autocast", [True, False])
def test_head_terms_in_bfloat16(autocast, thin_chunks):
    """Under autocast, and with a head of that type; 40 chunks, so that sums which were kept in bfloat16 would show."""
    dtype = torch.float32 if autocast else torch.bfloat16
    hidden, weight, ids, taken = head_inputs((16,), 20_000, C=16, dtype=dtype, scale=0.5)
    exact = terms_and_gradients(lambda h, w: student_terms(F.linear(h, w), ids, taken))(
        *(x.detach().bfloat16().double().requires_grad_() for x in (hidden, weight)))
    errors = []
    for terms in (lambda h, w: head_terms(h, w, ids, taken), lambda h, w: student_terms(F.linear(h, w), ids, taken)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = terms_and_gradients(terms)(hidden, weight)
        assert [x.dtype for x in found] == [torch.float32] * 3 + [dtype] * 2
        errors.append([((a - b).norm() / b.norm()).item() for a, b in zip(found, exact)])
    for lean, dense in zip(*errors):
        assert lean < 1.2 * dense + 1e-6 < 0.02


def test_head_terms_of_large_logits_are_finite():
    hidden, weight, ids, taken = head_inputs(V=600, dtype=torch.float32, scale=3000.0)
    found = terms_and_gradients(lambda h, w: head_terms(h, w, ids, taken))(hidden, weight)
    assert found[2].abs().max() > 5000 and all(torch.isfinite(x).all() for x in found)


def test_head_terms_with_a_frozen_head_without_positions_and_twice():
    hidden, weight, ids, taken = head_inputs()
    both = torch.autograd.grad(head_terms(hidden, weight, ids, taken)[2].sum(), [hidden, weight])
    log_Z = head_terms(hidden, weight.detach(), ids, taken)[2]
    for _ in range(2):
        grad, = torch.autograd.grad(log_Z.sum(), hidden, retain_graph=True)
        torch.testing.assert_close(grad, both[0])
    nothing = head_terms(hidden[:0], weight, ids[:0], taken[:0])
    assert [x.shape for x in nothing] == [(0, 3, 3), (0, 3), (0, 3)]
    grads = torch.autograd.grad(sum(x.sum() for x in nothing), [hidden, weight])
    assert all((x == 0).all() for x in grads)
    with torch.no_grad():
        assert not head_terms(hidden, weight, ids, taken)[0].requires_grad


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(0, 5000))
def test_chunks_are_the_whole_vocabulary(V, N):
    assert [v for chunk in vocabulary_chunks(V, N) for v in range(V)[chunk]] == list(range(V))


# ---------------------------------------------------------------------------------------------------------------
# numbers that go wrong


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [2, 2000])
def test_finite_for_large_logits(dtype, scale):
    for seed in range(3):
        c = chain(dtype=dtype, scale=scale, seed=seed)
        # The loss of rounded logits; its gradient in float32, for a large one is more than float16 can hold.
        c["student"] = wide = c["student"].detach().float().requires_grad_()
        losses = [bellman_distill(*arguments(c), leak=1.0, phi=phi, gauge=gauge, outside=outside)
                  for phi in PHIS for gauge in ("raw", "log_softmax", "centred") for outside in ("drop", "join")]
        losses += [bellman_distill(*arguments(c), expected=True, toward="teacher", cut="bootstrap"), max_min(c)]
        losses += [divergence(c, beta, tail) for beta in (0, 0.5, 1) for tail in ("inside", "bucket")]
        for loss, figures in losses:
            assert loss.dtype == torch.float32 and torch.isfinite(loss)
            assert all(torch.isfinite(value) for value in figures.values())
            grad, = torch.autograd.grad(loss, wide, retain_graph=True)
            assert grad.dtype == torch.float32 and torch.isfinite(grad).all()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e38])
def test_what_stands_where_nothing_counts_is_never_seen(garbage):
    """Padded entries, positions without a set, the token's logit at weight 0."""
    c = chain(dtype=torch.float32)
    z_K, z_a, log_Z, log_probs, mask, hit, terminal, weights = (x.detach() for x in arguments(c))
    dead = ~mask.any(-1)
    hit[1, 1] = False                                       # the token taken there is in nobody's set
    assert dead[1, 1] and hit[dead].any() and (weights == 0)[~dead].any()

    def value_and_gradients(fill, **options):
        # A token that joins the set of its state is part of V_p(s'), at weight 0 as well.
        silent = dead | (weights == 0) & (options.get("outside") != "join")
        terms = [torch.where(mask, z_K, fill), torch.where(silent, fill, z_a), torch.where(dead, fill, log_Z)]
        terms = [x.requires_grad_() for x in terms]
        teacher = torch.where(mask, log_probs, fill)
        loss, figures = bellman_distill(*terms, teacher, mask, hit, terminal, weights, leak=0.5, **options)
        other, _ = bellman_max_min(*terms, mask, hit, terminal, weights)
        third, _ = topp_jsd(terms[0], terms[2], teacher, mask, weights, beta=0.5, tail="bucket")
        return [loss.detach(), other.detach(), third.detach(), *figures.values(),
                *torch.autograd.grad(loss + other + third, terms)]
    for options in ({}, dict(gauge="centred", phi="kl"), dict(outside="join", gauge="centred"),
                    dict(gauge="log_softmax", expected=True, toward="teacher")):
        clean, dirty = value_and_gradients(0.0, **options), value_and_gradients(garbage, **options)
        for a, b in zip(clean, dirty):
            assert torch.isfinite(b).all() and torch.equal(a, b)


@pytest.mark.parametrize("options", [{}, dict(outside="join", leak=0.5), dict(cut="bootstrap", expected=True)], ids=str)
def test_micro_batches_add_up_to_the_batch(options):
    c = chain()
    drops = {name: options[name] for name in ("outside", "cut") if name in options}
    total = bellman_weights(*arguments(c)[4:7], c["weights"], **drops).sum()
    total = (c["weights"] * c["mask"].any(-1)).sum() if options.get("expected") else total
    whole, figures = bellman_distill(*arguments(c), **options)
    parts = [bellman_distill(*arguments(c, rows=rows), total, **options) for rows in (slice(0, 1), slice(1, 3))]
    assert_same_with_gradient(parts[0][0] + parts[1][0], whole, c["student"])
    for name in figures:
        torch.testing.assert_close(parts[0][1][name] + parts[1][1][name], figures[name])
    whole, total = max_min(c, **drops)[0], bellman_weights(*arguments(c)[4:7], c["weights"], **drops).sum()
    parts = [max_min(c, rows=rows, denominator=total, **drops)[0] for rows in (slice(0, 1), slice(1, 3))]
    assert_same_with_gradient(parts[0] + parts[1], whole, c["student"])
    whole, total = divergence(c, 0.5, "bucket")[0], (c["weights"] * c["mask"].any(-1)).sum()
    parts = [divergence(c, 0.5, "bucket", rows, total.item())[0] for rows in (slice(0, 1), slice(1, 3))]
    assert_same_with_gradient(parts[0] + parts[1], whole, c["student"])


def test_no_weight_at_all_gives_zero():
    c = chain()
    c["weights"] = 0 * c["weights"]
    for loss, _ in (bellman_distill(*arguments(c), leak=1.0), max_min(c), divergence(c, 0.5, "inside")):
        assert loss == 0 and (torch.autograd.grad(loss, c["student"], retain_graph=True)[0] == 0).all()


@pytest.mark.parametrize("options, message", [
    (dict(gauge="max"), "gauge='max'"), (dict(gauge="centred", cut="bootstrap"), "without bootstrap"),
    (dict(outside="keep"), "outside='keep'"), (dict(cut="zero"), "cut='zero'"), (dict(phi="tv"), "phi='tv'"),
    (dict(alpha=0), "alpha=0"), (dict(toward="student"), "toward='student'"),
    (dict(expected=True, outside="join"), "no 'join'"), (dict(toward="teacher", outside="join"), "no 'join'")])
def test_other_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bellman_distill(*arguments(chain()), **options)
