"""head_terms against the dense head, and the residual around the teacher's own against a literal loop."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from data import head
from data.head import head_terms, vocabulary_chunks
from experiments.objectives import cloning, to_teacher
from td_distill import bellman_weights, sft_loss, student_terms
from test_td_distill import SEED, assert_same_with_gradient, chain, differences, example, inputs, literal


def columns(c):
    """The columns of a batch, as a loss of OBJECTIVES gets them."""
    student, teacher, weights = inputs(c)
    return SimpleNamespace(student=student, teacher=teacher, weights=weights)


@pytest.mark.parametrize("leak, gamma", [(0.0, 0.99), (3.0, 0.5)])
def test_toward_the_teacher_against_the_loop(leak, gamma):
    c = chain(T=7, V=5, seed=SEED)
    logits, v = c.logits.detach().numpy(), np.zeros(c.weights.shape)

    def member(x, _):
        residual = 0.0
        if x.known:
            residual = x.Q - gamma * x.V_next - (x.raw_r - gamma * (x.next.log_M if x.next else 0.0))
        cross_entropy = -sum(math.exp(q) * x.log_s[i] for i, q in x.log_q.items())
        return cross_entropy + residual ** 2 / 4 + leak * x.leak
    loss = to_teacher(leak, gamma)(columns(c))
    assert loss.item() == pytest.approx(literal(c, logits, v, member))
    gradient = differences(lambda z: literal(c, z, v, member), logits)
    np.testing.assert_allclose(torch.autograd.grad(loss, c.logits)[0], gradient, atol=1e-6)


def test_cloning_is_cross_entropy_on_the_positions_that_count():
    c = chain()
    _, teacher, weights = inputs(c)
    expected, _ = sft_loss(inputs(c)[0], bellman_weights(teacher, weights))
    assert_same_with_gradient(cloning(columns(c)), expected, c.logits)


def test_a_student_that_is_the_teacher_has_no_residual_toward_the_teacher():
    """gamma changes the residual alone: nothing is left of it, and its gradient is 0."""
    c = example(p=1.0)
    c.terminal[:, -1] = True
    c.logits = c.dense.clone().requires_grad_()
    assert_same_with_gradient(to_teacher(0.0, 0.9)(columns(c)), to_teacher(0.0, 0.5)(columns(c)), c.logits)


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


def terms_and_gradients(terms, hidden, weight, ids, taken, live=None):
    """The three terms, and the gradients of a random mixture of them; live: where they count, None: all."""
    live = torch.ones(taken.shape, dtype=torch.bool) if live is None else live
    options, g = [live] if terms is head_terms else [], torch.Generator().manual_seed(1)
    found = [x * live.view(live.shape + (1,) * (x.dim() - live.dim()))
             for x in terms(hidden, weight, ids, taken, *options)[:3]]
    mixture = sum((x * torch.randn(x.shape, generator=g, dtype=torch.float64)).sum() for x in found)
    return *found, *torch.autograd.grad(mixture, [hidden, weight])


@pytest.mark.parametrize("shape, V", [((2, 3), 7), ((4,), 512), ((2, 2, 1), 513), ((700,), 1500)])
def test_head_terms_are_the_terms_of_the_logits(shape, V, monkeypatch):
    monkeypatch.setattr(head, "HEAD_CELLS", 1)            # chunks of 512 tokens
    found = head_inputs(shape, V)
    for live in None, torch.arange(math.prod(shape)).view(shape) % 3 > 0:           # all, two thirds
        both = (terms_and_gradients(terms, *found, live) for terms in (head_terms, dense_terms))
        for lean, dense in zip(*both):
            assert lean.abs().max() > 0
            torch.testing.assert_close(lean, dense, rtol=1e-9, atol=1e-9)


def test_no_position_counts():
    hidden, weight, ids, taken = head_inputs()
    terms = head_terms(hidden, weight, ids, taken, torch.zeros(taken.shape, dtype=torch.bool))
    sum(x.sum() for x in terms).backward()
    assert not any(x.any() for x in terms) and not hidden.grad.any() and not weight.grad.any()


@pytest.mark.parametrize("autocast", [True, False])
def test_head_terms_in_bfloat16(autocast, monkeypatch):
    """Under autocast, and with a head of that type: sums over 40 chunks must not be kept in bfloat16."""
    monkeypatch.setattr(head, "HEAD_CELLS", 1)
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
