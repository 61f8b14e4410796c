"""The terms of a loss straight from the head of a large vocabulary, at those positions alone that count.

Shapes: B documents, T tokens, K teacher tokens kept, V vocabulary, C channels, N rows of any kind.
"""

import torch
import torch.nn.functional as F

LARGE = 8192            # ids of a vocabulary, from which on only positions that count get logits
HEAD_CELLS = 1 << 19    # logits at a time, where 512 ids are not more: 2 MB fit the cache of a core


def at_least_float32(x):
    """float64 stays (the tests take finite differences in it), every other type becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def vocabulary_chunks(V, N):
    """Slices of a vocabulary of V tokens for N positions."""
    width = max(512, HEAD_CELLS // max(1, N))
    return [slice(v, min(v + width, V)) for v in range(0, V, width)]


class HeadTerms(torch.autograd.Function):
    """head_terms for hidden (N, C), weight (V, C), ids (N, J) -> z (N, J), log_Z (N,).

    Logits are kept as (V, N), so that a chunk of the vocabulary is one block of memory. Their gradient,
    softmax * g and J numbers a position, exists for one chunk at a time."""

    @staticmethod
    def forward(ctx, hidden, weight, ids):
        """The logits, chunk by chunk, and log_Z as it grows."""
        hidden = hidden.to(F.linear(hidden[:1], weight[:1]).dtype)          # autocast's, where it is on
        logits = hidden.new_empty(len(weight), len(hidden))                 # (V, N)
        log_Z = at_least_float32(hidden.new_full((len(hidden),), -torch.inf))
        for chunk in vocabulary_chunks(*logits.shape):
            torch.mm(weight[chunk].to(hidden.dtype), hidden.T, out=logits[chunk])
            log_Z = torch.logaddexp(log_Z, torch.logsumexp(at_least_float32(logits[chunk]), dim=0))
        ctx.save_for_backward(hidden, weight, ids, logits, log_Z)
        return at_least_float32(logits.gather(0, ids.T).T), log_Z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_z, grad_log_Z):
        """Gradients of hidden and, where it is asked for, of weight."""
        hidden, weight, ids, logits, log_Z = ctx.saved_tensors
        grad_hidden = at_least_float32(torch.zeros_like(hidden))
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for chunk in vocabulary_chunks(*logits.shape):
            grad = (logits[chunk] - log_Z).exp_().mul_(grad_log_Z)          # (chunk, N)
            here = (ids >= chunk.start) & (ids < chunk.stop)
            place = (ids - chunk.start).clamp(0, len(grad) - 1)
            grad.scatter_add_(0, place.T, torch.where(here, grad_z, 0).T)
            grad = grad.to(hidden.dtype)
            grad_hidden += grad.T @ weight[chunk].to(hidden.dtype)
            if grad_weight is not None:
                grad_weight[chunk] = grad @ hidden
        return grad_hidden, grad_weight, None


def head_terms(hidden, weight, ids, taken, live):
    """z_K (B, T, K), z_a (B, T) and log_Z (B, T) of td_distill.student_terms(F.linear(hidden, weight), ids,
    taken) where live (B, T) is true, 0 elsewhere, without V numbers of gradient at all positions.

    hidden (B, T, C); weight (V, C), the head's (tied: of the embedding); ids (B, T, K), taken (B, T) long.
    Logits are kept once, in the type that the head computes in (bfloat16 under autocast); log_Z is a sum in
    float32. Not twice differentiable. `python -m experiments.bench losses` and `vocabulary` measure it."""
    columns = torch.cat([ids, taken[..., None]], dim=-1)                    # (B, T, K + 1)
    z, log_Z = (x.new_zeros(*live.shape, *x.shape[1:]).index_put((live,), x)
                for x in HeadTerms.apply(hidden[live], weight, columns[live]))
    return z[..., :-1], z[..., -1], log_Z


def token_nll(model, ids, targets, live):
    """-log of the probability that a model which reads ids (B, T) gives to targets (B, T) -> (B, T). Of a
    vocabulary of LARGE ids or more 0 where live (B, T), bool, is false."""
    if model.config.n_vocab < LARGE:
        return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    weight = model.transformer.wte.weight
    _, z_a, log_Z = head_terms(model.hidden(ids), weight, targets[..., None], targets, live)
    return log_Z - z_a
