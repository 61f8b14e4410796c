"""Which optimizer has which weights; Muon in float32 against PyTorch's own, whose iteration runs in bfloat16."""
import pytest
import torch

from data import optimizers
from data.optimizers import Float32Muon, make_optimizers
from model import GPT, GPTConfig
from train import Config


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


@pytest.mark.parametrize("dtype, muon", [(None, Float32Muon), (torch.bfloat16, torch.optim.Muon)])
def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(monkeypatch, dtype, muon):
    monkeypatch.setattr(optimizers, "pick_device", lambda name: (torch.device("cpu"), dtype))
    model = GPT(GPTConfig(50, 32, 2, 2, 16))
    for_matrices, others = make_optimizers(model, Config(learning_rate=0.02, weight_decay=0.3))
    given = [{id(p) for group in o.param_groups for p in group["params"]} for o in (for_matrices, others)]
    inside = {id(p) for name, p in model.named_parameters() if ".h." in name and p.dim() == 2}
    assert given[0] == inside and given[1] == {id(p) for p in model.parameters()} - inside and len(inside) >= 8
    assert type(for_matrices) is muon and type(others) is torch.optim.AdamW
    for optimizer, decay in ((for_matrices, 0.3), (others, 0.0)):
        assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.02, decay)]
