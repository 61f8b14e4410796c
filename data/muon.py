"""Muon (Jordan et al. 2024) for the matrices of a model, in a number format that the processor is fast in."""

import torch

from data.machine import pick_device


class Float32Muon(torch.optim.Muon):
    """torch.optim.Muon with the Newton-Schulz iteration in float32: a CPU without bfloat16 instructions takes
    many times as long for bfloat16. Learning rates as with adjust_lr_fn="match_rms_adamw"."""

    @torch.no_grad()
    def step(self):
        """One step; every parameter is a matrix (A, B)."""
        for group in self.param_groups:
            a, b, c = group["ns_coefficients"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum_buffer"], group["momentum"])          # Nesterov
                tall = p.size(0) > p.size(1)
                x = update.T if tall else update
                x = x / x.norm().clamp(min=group["eps"])
                for _ in range(group["ns_steps"]):
                    gram = x @ x.T
                    x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x.T if tall else x, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def make_muon(matrices, lr, weight_decay, device):
    """torch.optim.Muon, or Float32Muon on a CPU without bfloat16; device: as in the options of train.py."""
    kind, dtype = pick_device(device)
    Muon = Float32Muon if kind.type == "cpu" and dtype is None else torch.optim.Muon
    return Muon(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")
