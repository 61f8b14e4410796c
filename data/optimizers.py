"""AdamW, and Muon (Jordan et al. 2024), in float32 where the processor has no bfloat16 instructions."""

import torch

from data.machine import pick_device


class Float32Muon(torch.optim.Muon):
    """torch.optim.Muon with adjust_lr_fn="match_rms_adamw" and its Newton-Schulz iteration in float32."""

    @torch.no_grad()
    def step(self):
        """One step; every parameter is a matrix (A, B)."""
        for group in self.param_groups:
            a, b, c = group["ns_coefficients"]
            for p in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"])                          # Nesterov
                tall = p.size(0) > p.size(1)
                x = update.T if tall else update
                x = x / x.norm().clamp(min=group["eps"])
                for _ in range(group["ns_steps"]):
                    gram = x @ x.T
                    x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x.T if tall else x, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def make_optimizers(model, config):
    """Muon for the matrices inside the blocks, AdamW for embeddings, heads and vectors, at one learning rate.
    config: device, learning_rate and weight_decay, of the matrices, as in train.Config."""
    blocks = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    matrices = list({p: None for part in blocks for p in part.parameters() if p.dim() == 2})
    chosen = {id(p) for p in matrices}  # embeddings go to AdamW: Muon moves the rows of rare tokens too far
    others, lr = [p for p in model.parameters() if id(p) not in chosen], config.learning_rate
    device, dtype = pick_device(config.device)
    Muon = Float32Muon if device.type == "cpu" and dtype is None else torch.optim.Muon
    return [Muon(matrices, lr, config.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]
