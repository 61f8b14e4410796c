"""Additions to td_distill.py: the terms of a loss straight from the head, and a narrower cache.

Shapes: B documents, T tokens, K teacher tokens kept, V vocabulary, C channels, N rows of any kind.
"""

import torch
import torch.nn.functional as F

import td_distill as td
from data.cache_tools import CacheWriter
from data.sets import restrict_to_p

HEAD_CELLS = 1 << 19    # logits at a time: 2 MB in float32 fit the cache of a core


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
        hidden = hidden.to(F.linear(hidden[:1], weight[:1]).dtype)          # autocast's, where it is on
        logits = hidden.new_empty(len(weight), len(hidden))                 # (V, N)
        log_Z = td.at_least_float32(hidden.new_full((len(hidden),), -torch.inf))
        for chunk in vocabulary_chunks(*logits.shape):
            torch.mm(weight[chunk].to(hidden.dtype), hidden.T, out=logits[chunk])
            log_Z = torch.logaddexp(log_Z, torch.logsumexp(td.at_least_float32(logits[chunk]), dim=0))
        ctx.save_for_backward(hidden, weight, ids, logits, log_Z)
        return td.at_least_float32(logits.gather(0, ids.T).T), log_Z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_z, grad_log_Z):
        hidden, weight, ids, logits, log_Z = ctx.saved_tensors
        grad_hidden = td.at_least_float32(torch.zeros_like(hidden))
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


def head_terms(hidden, weight, ids, taken):
    """student_terms(F.linear(hidden, weight), ids, taken) without V numbers of gradient at all positions.

    hidden (B, T, C); weight (V, C), the head's (tied: of the embedding); ids (B, T, K), taken (B, T) long.
    Logits are kept once, in the type that the head computes in (bfloat16 under autocast); log_Z is exact. Not
    twice differentiable. `python -m experiments.bench losses` measures it."""
    columns = torch.cat([ids, taken[..., None]], dim=-1)                    # (B, T, K + 1)
    z, log_Z = HeadTerms.apply(hidden.flatten(0, -2), weight, columns.flatten(0, -2))
    z = z.view(columns.shape)
    return td.StudentTerms(z[..., :-1], z[..., -1], log_Z.view(taken.shape))


def narrow_cache(cache, folder, p):
    """Writes what a smaller p would have kept of a TeacherCache into another folder. Some tokens of the
    documents then lie outside their sets."""
    same = "n_vocab", "k_cap", "temperature", "teacher", "roles", "made_by"
    settings = {name: cache.header[name] for name in same}
    writer = CacheWriter(folder, tokenizer_hash=cache.header["tokenizer"], p=p, **settings)
    for d in range(len(cache)):
        batch = {name: x[0] for name, x in cache.batch([d]).items()}
        sets = []
        for t, inside in enumerate(restrict_to_p(batch["log_probs"], batch["mask"], p)):     # (K,)
            one = batch["ids"][t, inside].numpy(), batch["log_probs"][t, inside].numpy()
            sets.append(one if len(one[0]) else None)
        writer.add(batch["tokens"].tolist(), batch["roles"].tolist(), sets)
    writer.close()
