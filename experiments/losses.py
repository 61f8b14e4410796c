"""Losses that an experiment compares with those of td_distill.py, in the same signature and shapes.

    head_terms         student_terms from hidden states, in less time and memory at a large vocabulary
    topp_jsd           generalised Jensen-Shannon divergence, between forward and reverse KL
    bellman_variant    Bellman Distill with another charge, or a residual around the teacher's own reward
    sampled_sets       sets of sampled tokens in place of the most probable ones
    narrow_cache       a teacher's cache for a smaller p

Shapes: B documents, T tokens, K teacher tokens kept, V vocabulary, C channels, N rows of any kind.
"""

import math

import torch
import torch.nn.functional as F

import td_distill as td
from data.cache import MASKED
from data.cache_tools import CacheWriter

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


# ------------------------------------------------------------------------------------------------------------
# Losses: (loss, figures) of student, teacher and weights, as in td_distill.py


def topp_jsd(student, teacher, weights, denominator=None, *, beta, tail="inside", leak=0.0):
    """Generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024, eq. 1), teacher q and student s:

        beta KL(q || m) + (1 - beta) KL(s || m),  m = beta q + (1 - beta) s;  0: KL(q || s), 1: KL(s || q)

    At 0 and 1 the limits are divided by beta and by 1 - beta, as is the custom. tail "inside": q and s are
    renormalised over A_p. "bucket": they are not, and the mass outside is one token more. leak times
    (log_Z - V_p) is added. figures: jsd, leak in nats. ValueError for another tail or beta."""
    if tail not in ("inside", "bucket") or not 0 <= beta <= 1:
        raise ValueError(f"tail={tail!r}, beta={beta}; expected 'inside' or 'bucket', and 0 <= beta <= 1")
    z_K, log_Z, log_q, weights = td.mask_terms(student, teacher, weights)
    V_p, log_M = torch.logsumexp(z_K, dim=-1), torch.logsumexp(log_q, dim=-1)            # (B, T)
    if tail == "inside":
        log_q, log_s = log_q - log_M[..., None], z_K - V_p[..., None]                    # (B, T, K)
    else:
        log_q = torch.cat([log_q, td.log_outside(log_M)[..., None]], dim=-1)             # (B, T, K + 1)
        log_s = torch.cat([z_K - log_Z[..., None], td.log_outside(V_p - log_Z)[..., None]], dim=-1)
    q, s = log_q.exp(), log_s.exp()                                                      # 0 where masked
    if beta == 0:
        terms = q * (log_q - log_s)
    elif beta == 1:
        terms = s * (log_s - log_q)
    else:
        log_m = torch.logaddexp(log_q + math.log(beta), log_s + math.log1p(-beta))
        terms = beta * q * (log_q - log_m) + (1 - beta) * s * (log_s - log_m)
    jsd, outside = (td.weighted_mean(x, weights, denominator) for x in (terms.sum(-1), log_Z - V_p))
    return jsd + leak * outside, {"jsd": jsd.detach(), "leak": outside.detach()}


def charge(x, alpha, phi):
    """x - phi(x): the cost of an implied reward x (any shape). phi of IQ-Learn (Garg et al. 2021):

        chi2        phi(x) = x - x^2 / 4       Pearson chi^2, as in td_distill.bellman_distill
        kl          phi(x) = 1 - exp(-x)       KL, as in the authors' code; the dual is -exp(-x - 1)
        js          phi(x) = log(2 - exp(-x))  Jensen-Shannon, x > -log 2
        hellinger   phi(x) = x / (1 + x)       squared Hellinger, x > -1

    each concave with slope 1 at 0, used as alpha phi(x / alpha), so the cost is convex and 0 at 0. js and
    hellinger end, and exp overflows: left of u = x / alpha = -1/2 (kl: -8) the cost continues along its
    tangent. ValueError for another phi, and for an alpha that is not positive and finite."""
    if phi not in ("chi2", "kl", "js", "hellinger") or not 0 < alpha < math.inf:
        raise ValueError(f"{phi=}, {alpha=}; expected chi2, kl, js or hellinger, and 0 < alpha < inf")
    if phi == "chi2":
        return x * (x / (4 * alpha))
    end = -8.0 if phi == "kl" else -0.5
    u = (x / alpha).clamp(min=end)
    if phi == "kl":
        cost, slope = u + torch.expm1(-u), 1 - math.exp(-end)
    elif phi == "js":
        cost, slope = u - torch.log1p(-torch.expm1(-u)), 1 - 1 / (2 * math.exp(end) - 1)
    else:
        cost, slope = u * u / (1 + u), 1 - 1 / (1 + end) ** 2
    return alpha * cost + slope * (x - alpha * u)


def bellman_variant(student, teacher, weights, denominator=None, *, cost, toward="zero", leak=0.0,
                    expected=False, **options):
    """td_distill.bellman_distill with another cost of the residual, or another target of it.

    cost: function of a residual (B, T), such as partial(charge, alpha=10.0, phi="kl"); torch.zeros_like for
    cloning alone. toward: "zero", or "teacher", the residual of the teacher itself, Q_T(s,a) - gamma V_T(s')
    with Q_T = log_probs. options: gamma (.99), and those of bellman_terms. ValueError for another toward."""
    if toward not in ("zero", "teacher"):
        raise ValueError(f"toward={toward!r}; expected 'zero' or 'teacher'")
    options = {"gamma": 0.99} | options
    reward, cloning, _, outside, counted = td.bellman_terms(student, teacher, weights, **options)
    if expected:
        cloning = td.expected_cloning(student, teacher)
        counted = torch.where(teacher.mask.any(-1) & (weights > 0), weights, 0).to(counted.dtype)
    residual = reward
    if toward == "teacher":
        log_t = torch.where(teacher.mask, td.at_least_float32(teacher.log_probs), MASKED)    # (B, T, K)
        log_t_a = torch.where(teacher.is_taken & teacher.mask, log_t, 0).sum(-1)             # (B, T)
        own = td.StudentTerms(log_t, log_t_a, torch.zeros_like(log_t_a))
        residual = reward - td.bellman_terms(own, teacher, weights, options["gamma"])[0]
    terms = {"cloning": cloning, "bellman": cost(residual), "leak": outside, "reward": reward}
    terms = {name: td.weighted_mean(term, counted, denominator) for name, term in terms.items()}
    loss = terms["cloning"] + terms["bellman"] + leak * terms["leak"]
    return loss, {name: term.detach() for name, term in terms.items()}


def sampled_sets(logits, n, generator=None):
    """Sets for topp_forward_kl without the bias of a cut: n draws of the teacher, each weighted count / n.

    logits (N, V) float -> ids (N, n) long, log_probs (N, n) float32 = log(count / n), mask (N, n) bool, True
    at the first draw of a token. The mean weights are softmax(logits), and the mean gradient of the loss at
    leak 1 is that of the whole KL ("Sparse Logit Sampling", ACL 2025); its figures kl and entropy are biased.
    These sets are no A_p: not for bellman_distill."""
    ids = torch.multinomial(torch.softmax(logits.float(), dim=-1), n, replacement=True, generator=generator)
    same = ids[:, :, None] == ids[:, None, :]                                # (N, n, n)
    mask = ~same.tril(diagonal=-1).any(-1)
    return ids.masked_fill(~mask, 0), (same.sum(-1) / n).log().masked_fill(~mask, MASKED), mask


def narrow_cache(cache, folder, p):
    """Writes what a smaller p would have kept of a TeacherCache into another folder -> its header. Some
    tokens of the documents then lie outside their sets. ValueError for a p that is not smaller."""
    if not p < cache.header["p"]:
        raise ValueError(f"{cache.folder}: made with p={cache.header['p']}, expected more than {p}")
    same = "n_vocab", "k_cap", "temperature", "teacher", "roles", "made_by"
    settings = {name: cache.header[name] for name in same}
    writer = CacheWriter(folder, tokenizer_hash=cache.header["tokenizer"], p=p, **settings)
    for d in range(len(cache)):
        batch = {name: x[0] for name, x in cache.batch([d]).items()}
        sets = []
        for t, inside in enumerate(td.restrict_to_p(batch["log_probs"], batch["mask"], p)):     # (K,)
            one = batch["ids"][t, inside].numpy(), batch["log_probs"][t, inside].numpy()
            sets.append(one if len(one[0]) else None)
        writer.add(batch["tokens"].tolist(), batch["roles"].tolist(), sets)
    return writer.close()
