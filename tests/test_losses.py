"""The losses of the experiments against literal loops, and head_terms against the dense head."""
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import test_td_distill as core
from data.cache import MASKED
from experiments import losses
from experiments.losses import bellman_variant, charge, head_terms, sampled_sets, topp_jsd, vocabulary_chunks
from td_distill import bellman_distill, reverse_kl, sft_loss, student_terms, topp_forward_kl
from test_td_distill import assert_same_with_gradient, chain, dense_kl, example, inputs, literal, mean_of

PHIS = ["chi2", "kl", "js", "hellinger"]
CHI2 = partial(charge, alpha=0.1, phi="chi2")
LOSSES = {f"jsd {beta} {tail}": (partial(topp_jsd, beta=beta, tail=tail, leak=0.3), core.live_weight)
          for beta in (0, 0.5, 1) for tail in ("inside", "bucket")}
LOSSES |= {phi: (partial(bellman_variant, cost=partial(charge, alpha=0.1, phi=phi)), core.bellman_weight)
           for phi in PHIS[1:]}
LOSSES["toward"] = (partial(bellman_variant, cost=CHI2, toward="teacher", expected=True), core.live_weight)
every_loss = pytest.mark.parametrize("loss, denominator", LOSSES.values(), ids=LOSSES)


@every_loss
def test_what_holds_of_the_losses_of_the_core(loss, denominator):
    """Micro-batches add up, gradients are those of finite differences, no weight gives 0, nothing overflows,
    and what stands at padding counts for nothing."""
    core.test_micro_batches_add_up_to_the_batch(loss, denominator)
    core.test_gradients_by_finite_differences(loss, denominator)
    core.test_no_weight_at_all_gives_zero(loss, denominator)
    for dtype in (torch.float16, torch.float32):
        core.test_finite_for_large_logits(loss, denominator, dtype, 2000)
    for garbage in (math.nan, math.inf):
        core.test_what_stands_where_nothing_counts_is_never_seen(loss, denominator, garbage)


# ------------------------------------------------------------------------------------------------------------
# divergences


def divergence_of(beta):
    """The literal one, of plain probabilities q and s (N,)."""
    def divergence(q, s):
        m = beta * q + (1 - beta) * s
        ends = {0: (q * (q / s).log()).sum(), 1: (s * (s / q).log()).sum()}
        return ends.get(beta, beta * (q * (q / m).log()).sum() + (1 - beta) * (s * (s / m).log()).sum())
    return divergence


@pytest.mark.parametrize("tail", ["inside", "bucket"])
@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_jsd_against_the_loop(beta, tail):
    c = chain()
    loss, figures = topp_jsd(*inputs(c), beta=beta, tail=tail)
    assert_same_with_gradient(loss, core.mean_of_coarse(c, divergence_of(beta), tail), c.logits)
    assert figures["jsd"] == loss.detach() and figures["leak"] > 0
    with_leak, _ = topp_jsd(*inputs(c), beta=beta, tail=tail, leak=0.3)
    torch.testing.assert_close(with_leak.detach(), loss.detach() + 0.3 * figures["leak"])


def test_the_ends_of_jsd_are_the_losses_of_the_core():
    c = chain()
    assert torch.equal(topp_jsd(*inputs(c), beta=1, leak=1.0)[0], reverse_kl(*inputs(c))[0])
    for tail in ("inside", "bucket"):
        forward, _ = topp_forward_kl(*inputs(c), tail=tail, leak=0.0)
        low, near_low, near_high, high = (topp_jsd(*inputs(c), beta=beta, tail=tail)[0]
                                          for beta in (0, 1e-6, 1 - 1e-6, 1))
        assert_same_with_gradient(low, forward, c.logits, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(near_low / 1e-6, low, rtol=1e-3, atol=0)
        torch.testing.assert_close(near_high / 1e-6, high, rtol=1e-3, atol=0)


@pytest.mark.parametrize("beta", [0, 0.3, 1])
@pytest.mark.parametrize("tail", ["inside", "bucket"])
def test_jsd_of_whole_sets_is_dense(beta, tail):
    c = example(p=1.0)
    q, s = c.dense.log_softmax(-1), c.logits.log_softmax(-1)
    m = (beta * q.exp() + (1 - beta) * s.exp()).log()
    between = beta * dense_kl(q, m) + (1 - beta) * dense_kl(s, m)
    each = {0: dense_kl(q, s), 1: dense_kl(s, q)}.get(beta, between)
    loss, _ = topp_jsd(*inputs(c), beta=beta, tail=tail)        # the bucket is empty up to 8 roundings
    assert_same_with_gradient(loss, mean_of(c, each), c.logits, rtol=1e-9, atol=1e-9)


def test_sampled_sets_are_unbiased():
    """The weights of a token, summed over its set, have the mean softmax(logits)."""
    row, n, rows = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0]), 4, 40_000
    ids, log_probs, mask = sampled_sets(row.expand(rows, -1), n, torch.Generator().manual_seed(0))
    dense = torch.zeros(rows, 5).scatter_add_(-1, ids, torch.where(mask, log_probs.exp(), 0))
    torch.testing.assert_close(dense.sum(-1), torch.ones(rows))
    pi = row.softmax(-1)
    assert ((dense.mean(0) - pi).abs() < 5 * (pi * (1 - pi) / n / rows).sqrt()).all()
    assert (log_probs[~mask] == MASKED).all() and not mask.all()
    assert all(len(set(i[m].tolist())) == m.sum() for i, m in zip(ids[:200], mask[:200]))


# ------------------------------------------------------------------------------------------------------------
# Bellman Distill with another charge, or another target


@pytest.mark.parametrize("options", [{}, dict(gauge="log_softmax", leak=1.0),
                                     dict(expected=True, gamma=0.5)], ids=str)
def test_variant_against_the_loop_and_the_core(options):
    c = chain()
    found, _ = bellman_variant(*inputs(c), cost=CHI2, **options)
    assert torch.equal(found, bellman_distill(*inputs(c), **options)[0])
    found, _ = bellman_variant(*inputs(c), cost=CHI2, toward="teacher", **options)
    assert_same_with_gradient(found, literal(c, c.logits, toward="teacher", **options)[0], c.logits)
    with pytest.raises(ValueError, match="toward='student'"):
        bellman_variant(*inputs(c), cost=CHI2, toward="student")


def test_without_a_cost_it_is_cloning():
    """With a leak of 1, cross-entropy on the positions that count."""
    c = chain()
    student, teacher, weights = inputs(c)
    loss, figures = bellman_variant(student, teacher, weights, cost=torch.zeros_like, leak=1.0)
    assert_same_with_gradient(loss, sft_loss(student, core.bellman_weights(teacher, weights))[0], c.logits)
    assert figures["bellman"] == 0


def test_a_student_that_is_the_teacher_has_no_residual_toward_the_teacher():
    c = example(p=1.0)
    c.terminal[:, -1] = True
    c.logits = c.dense.clone().requires_grad_()
    _, figures = bellman_variant(*inputs(c), cost=CHI2, toward="teacher", gauge="log_softmax")
    assert figures["bellman"].item() == pytest.approx(0, abs=1e-20)
    assert bellman_variant(*inputs(c), cost=CHI2, gauge="log_softmax")[1]["bellman"] > 0.1


def phi_literal(x, alpha, phi):
    """As the table says; only where phi is defined."""
    u = x / alpha
    return alpha * {"chi2": lambda: u - u ** 2 / 4, "kl": lambda: 1 - torch.exp(-u),
                    "js": lambda: torch.log(2 - torch.exp(-u)), "hellinger": lambda: u / (1 + u)}[phi]()


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("alpha", [0.1, 2.0])
def test_charge_is_the_identity_minus_phi(phi, alpha):
    x = alpha * torch.linspace(-0.49, 30, 200, dtype=torch.float64)
    torch.testing.assert_close(charge(x, alpha, phi), x - phi_literal(x, alpha, phi))


@pytest.mark.parametrize("phi, end", [("kl", -8.0), ("js", -0.5), ("hellinger", -0.5)])
def test_where_the_tangent_of_a_charge_begins(phi, end):
    """phi itself up to the end that the docstring names; behind it a line of the slope that phi has there."""
    alpha, ends = 0.3, torch.tensor([end, 0.99 * end], dtype=torch.float64, requires_grad=True)
    exact = alpha * ends - phi_literal(alpha * ends, alpha, phi)
    torch.testing.assert_close(charge(alpha * ends, alpha, phi), exact)
    slope = torch.autograd.grad(exact.sum(), ends)[0][0] / alpha
    behind = alpha * torch.tensor([end - 0.1, end - 5], dtype=torch.float64)
    expected = exact[0].detach() + slope * (behind - alpha * end)
    torch.testing.assert_close(charge(behind, alpha, phi), expected)


def test_bad_values_are_refused():
    for phi, alpha in (("tv", 1.0), ("chi2", 0.0), ("js", -1.0), ("kl", math.nan), ("kl", math.inf)):
        with pytest.raises(ValueError, match="expected chi2, kl, js or hellinger"):
            charge(torch.zeros(1), alpha, phi)
    for options in (dict(beta=0.5, tail="outside"), dict(beta=-0.1), dict(beta=math.nan)):
        with pytest.raises(ValueError, match="expected 'inside' or 'bucket', and 0 <= beta <= 1"):
            topp_jsd(*inputs(chain()), **options)


# ------------------------------------------------------------------------------------------------------------
# the terms, straight from the head


def head_inputs(shape=(2, 3), V=7, C=4, K=3, dtype=torch.float64, scale=1.0):
    """hidden, weight with gradients; ids, in which tokens occur twice; taken, at times one of them."""
    g = torch.Generator().manual_seed(0)
    hidden = (scale * torch.randn(*shape, C, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    weight = torch.randn(V, C, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    ids = torch.randint(V, (*shape, K), generator=g)
    inside = torch.rand(shape, generator=g) < 0.5
    return hidden, weight, ids, torch.where(inside, ids[..., 0], torch.randint(V, shape, generator=g))


def dense_terms(hidden, weight, ids, taken):
    return student_terms(F.linear(hidden, weight), ids, taken)


def terms_and_gradients(terms, hidden, weight, ids, taken):
    """The three terms, and the gradients of a random mixture of them."""
    found, g = terms(hidden, weight, ids, taken), torch.Generator().manual_seed(1)
    mixture = sum((x * torch.randn(x.shape, generator=g, dtype=torch.float64)).sum() for x in found)
    return *found, *torch.autograd.grad(mixture, [hidden, weight])


@pytest.mark.parametrize("shape, V", [((2, 3), 7), ((4,), 512), ((2, 2, 1), 513), ((700,), 1500)])
def test_head_terms_are_the_terms_of_the_logits(shape, V, monkeypatch):
    monkeypatch.setattr(losses, "HEAD_CELLS", 1)            # chunks of 512 tokens
    found = head_inputs(shape, V)
    for lean, dense in zip(*(terms_and_gradients(terms, *found) for terms in (head_terms, dense_terms))):
        assert lean.abs().max() > 0
        torch.testing.assert_close(lean, dense, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("autocast", [True, False])
def test_head_terms_in_bfloat16(autocast, monkeypatch):
    """Under autocast, and with a head of that type: sums over 40 chunks must not be kept in bfloat16."""
    monkeypatch.setattr(losses, "HEAD_CELLS", 1)
    dtype = torch.float32 if autocast else torch.bfloat16
    hidden, weight, ids, taken = head_inputs((16,), 20_000, C=16, dtype=dtype, scale=0.5)
    wide = (x.detach().bfloat16().double().requires_grad_() for x in (hidden, weight))
    exact, errors = terms_and_gradients(dense_terms, *wide, ids, taken), []
    for terms in (head_terms, dense_terms):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = terms_and_gradients(terms, hidden, weight, ids, taken)
        assert [x.dtype for x in found] == [torch.float32] * 3 + [dtype] * 2
        errors.append([((a - b).norm() / b.norm()).item() for a, b in zip(found, exact)])
    for lean, dense in zip(*errors):
        assert lean < 1.2 * dense + 1e-6 < 0.02


def test_head_terms_of_large_logits_are_finite():
    found = terms_and_gradients(head_terms, *head_inputs(V=600, dtype=torch.float32, scale=3000.0))
    assert found[2].abs().max() > 5000 and all(torch.isfinite(x).all() for x in found)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5000), st.integers(0, 5000))
def test_chunks_are_the_whole_vocabulary(V, N):
    assert [v for chunk in vocabulary_chunks(V, N) for v in range(V)[chunk]] == list(range(V))
