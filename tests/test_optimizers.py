"""Muon in float32 against PyTorch's own, whose iteration runs in bfloat16."""
import pytest
import torch

from data.optimizers import Float32Muon


def trained(kind, shape, steps):
    """A matrix after some steps on fixed gradients."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = kind([matrix], 0.01, 0.1, adjust_lr_fn="match_rms_adamw")
    start = matrix.detach().clone()
    for _ in range(steps):
        matrix.grad = torch.randn(shape, generator=generator)
        optimizer.step()
    return matrix.detach() - start


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 40)])
def test_it_takes_the_steps_of_pytorch_up_to_the_rounding_of_bfloat16(shape):
    ours, theirs = trained(Float32Muon, shape, 3), trained(torch.optim.Muon, shape, 3)
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 40)])
def test_in_float32_it_is_pytorchs_own(shape, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    assert torch.allclose(trained(Float32Muon, shape, 3), trained(torch.optim.Muon, shape, 3), atol=1e-6)
