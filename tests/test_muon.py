"""Muon on stacks of matrices: the update of torch.optim.Muon, to bfloat16's rounding."""
import copy

import pytest
import torch

from course.muon import Muon, orthogonalised


def trained(optimizer_of, steps=3):
    torch.manual_seed(0)
    shapes = (16, 16), (40, 16), (16, 40), (16, 40), (8, 24)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = optimizer_of(params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return params, optimizer


def test_the_update_is_that_of_torch():
    (ours, mine), (theirs, other) = (trained(of) for of in (
        lambda params: Muon(params, lr=0.1, weight_decay=0.3),
        lambda params: torch.optim.Muon(params, lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")))
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q, rtol=0, atol=4e-3)         # updates are of size .06; a matrix not turned is off by .1
    for a, b in zip(mine.state_dict()["state"].values(), other.state_dict()["state"].values()):
        torch.testing.assert_close(a["momentum_buffer"], b["momentum_buffer"])


def test_singular_values_come_close_to_one():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(3, 16, 48).bfloat16()).float())
    assert values.shape == (3, 16) and 0.6 < values.min() and values.max() < 1.3


def test_a_matrix_without_gradient_stays_and_states_go_on():
    params, optimizer = trained(lambda params: Muon(params, lr=0.1, weight_decay=0.3))
    kept, saved = [p.clone() for p in params], copy.deepcopy(optimizer.state_dict())
    grads = [torch.randn_like(p) for p in params]
    params[0].grad, rest = None, list(zip(params, grads))[1:]
    for p, grad in rest:
        p.grad = grad
    optimizer.step()
    assert torch.equal(params[0], kept[0])
    again = [torch.nn.Parameter(p.clone()) for p in kept]
    other = Muon(again, lr=0.1, weight_decay=0.3)
    other.load_state_dict(saved)
    for p, grad in list(zip(again, grads))[1:]:
        p.grad = grad
    other.step()
    assert all(torch.equal(p, q) for p, q in zip(params, again))


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="2D"):
        Muon([torch.nn.Parameter(torch.randn(3))])
