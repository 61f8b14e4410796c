"""Top-p distillation: what a teacher knows about the next token, kept small, and the losses that learn from it.

A teacher puts most of its probability on a few tokens. For every token that it draws we keep those few alone, its
top-p set with their log-probabilities (data/reads.py), in a cache on disk (data/cache.py): made once, read by every
student. Then a distillation loss is a function of three numbers that the student gives at a position (`student_terms`,
or `head_terms` where the vocabulary is large):

    z_K    its logits on the teacher's K tokens
    z_a    its logit on the token that was taken
    log_Z  the logarithm of its softmax denominator over the whole vocabulary

and each objective is a few lines below the same ruler, with

    V_p  = logsumexp of z_K over the set                the student's soft value inside the set
    leak = log_Z - V_p = -log(student's mass inside)    what it still spends on tokens outside

    sft_loss           the token taken, hard                      topp_forward_kl    the teacher's set, three ways
    topp_jsd           reverse KL, and what lies between          bellman_distill    cloning in the set, a Bellman residual
    bellman_max_min    the same objective as published

Shapes: B documents, T tokens of a document, K teacher tokens kept, V vocabulary, N rows of any kind.

Alignment, the one thing to get right: everything in the cache belongs to the token that it PREDICTS. The set of token
t is the distribution from which token t was drawn, given the tokens before it. So one training step reads

    batch = cache.batch(rows)
    logits = model.logits(model.hidden(batch["tokens"][:, :-1]))                       # (B, T-1, V)
    z_K, z_a, log_Z = student_terms(logits, batch["ids"][:, 1:], batch["tokens"][:, 1:])
    weights = batch["mask"][:, 1:].any(-1).float()                                     # 1 where the teacher drew
    loss, figures = topp_forward_kl(z_K, log_Z, batch["log_probs"][:, 1:], batch["mask"][:, 1:], weights)

Commands:

    python td_distill.py inspect FOLDER        what a cache holds and costs
    python td_distill.py theory                claims about these objectives, solved exactly in tables (course/theory.py)
    python td_distill.py compare --seeds 5     every objective from one start at equal tokens (course/compare.py)
"""

import argparse
import math
import sys

import torch
import torch.nn.functional as F

from data import runs
from data.annotations import shown
from data.cache import MASKED, inspect

# ---------------------------------------------------------------------------------------------------------------
# What the losses need of the student


def at_least_float32(x):
    """float64 stays (the tests take finite differences in it), every other type becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def student_terms(logits, ids, taken):
    """The three terms of which every loss here is made.

    logits (B, T, V), ids (B, T, K) long, taken (B, T) long -> z_K (B, T, K), z_a (B, T), log_Z (B, T), float32 (float64
    for float64 logits). Any leading shape will do in place of (B, T): positions that bear no weight may be left out
    before the head is applied, and cost nothing. Where a set is padded, z_K is that of id 0; the losses mask it.
    """
    logits = at_least_float32(logits)
    z_K = logits.gather(-1, ids)                            # (B, T, K)
    z_a = logits.gather(-1, taken[..., None])[..., 0]       # (B, T)
    log_Z = torch.logsumexp(logits, dim=-1)                 # (B, T)
    return z_K, z_a, log_Z


HEAD_CELLS = 1 << 19    # logits at a time, 2 MB in float32: a core's cache holds them, and matrix products are still large


def vocabulary_chunks(V, N):
    """Slices of a vocabulary of V tokens for N positions."""
    width = max(512, HEAD_CELLS // max(1, N))
    return [slice(v, min(v + width, V)) for v in range(0, V, width)]


class HeadTerms(torch.autograd.Function):
    """head_terms for hidden (N, C), weight (V, C), ids (N, J) -> z (N, J), log_Z (N,).

    Logits lie as (V, N), so that a chunk of the vocabulary is one block of memory for every matrix product. They are
    all that is kept. The gradient in them, softmax * g and J numbers a position, exists for one chunk at a time.
    """

    @staticmethod
    def forward(ctx, hidden, weight, ids):
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
        hidden, weight, ids, logits, log_Z = ctx.saved_tensors
        grad_hidden = at_least_float32(torch.zeros_like(hidden))
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for chunk in vocabulary_chunks(*logits.shape):
            grad = (logits[chunk] - log_Z).exp_().mul_(grad_log_Z)          # (chunk, N)
            here = (ids >= chunk.start) & (ids < chunk.stop)
            grad.scatter_add_(0, (ids - chunk.start).clamp(0, len(grad) - 1).T, torch.where(here, grad_z, 0).T)
            grad = grad.to(hidden.dtype)
            grad_hidden += grad.T @ weight[chunk].to(hidden.dtype)
            if grad_weight is not None:
                grad_weight[chunk] = grad @ hidden
        return grad_hidden, grad_weight, None


def head_terms(hidden, weight, ids, taken):
    """student_terms(F.linear(hidden, weight), ids, taken), log_Z exact, in less time and memory at a large vocabulary.

    hidden (B, T, C); weight (V, C), the head's (tied: of the embedding); ids, taken and what is returned: see there. A
    loss sends back one number for log_Z and one for each logit gathered. So logits are kept once, in the type that the
    head computes in (bfloat16 under autocast), and never a softmax or a gradient of V numbers at all positions. Not
    twice differentiable. `python bench.py losses` measures it.
    """
    columns = torch.cat([ids, taken[..., None]], dim=-1)                    # (B, T, K + 1)
    z, log_Z = HeadTerms.apply(hidden.flatten(0, -2), weight, columns.flatten(0, -2))
    z = z.view(columns.shape)
    return z[..., :-1], z[..., -1], log_Z.view(taken.shape)


def weighted_mean(values, weights, denominator=None):
    """sum(weights * values) / denominator over positions; values, weights (B, T) -> scalar.

    denominator None: the sum of these weights. Where an update comes in micro-batches, pass the sum over all of them:
    then their losses and gradients ADD UP to those of the one batch, which means of means do not.
    Positions of weight 0 count for nothing, whatever stands there. No weight at all gives 0.
    """
    total = torch.where(weights > 0, weights * values, 0).sum()
    denominator = weights.sum() if denominator is None else torch.as_tensor(denominator)
    return total / denominator.clamp(min=torch.finfo(values.dtype).tiny)


# ---------------------------------------------------------------------------------------------------------------
# The objectives, side by side: pure functions of the student's terms, the cached teacher and a weight a position.
# Each returns (loss, figures): a scalar to differentiate, and a dict of detached scalars over the same denominator.


def sft_loss(z_a, log_Z, weights, denominator=None):
    """Cross-entropy on the token taken: SFT on references, SeqKD where the teacher wrote the tokens.

        loss = mean of  log_Z - z_a  =  -log pi(a | s)          in nats

    z_a, log_Z, weights (B, T), weights >= 0; denominator: see weighted_mean. figures: nll.
    """
    z_a, log_Z = at_least_float32(z_a), at_least_float32(log_Z)
    loss = weighted_mean(log_Z - z_a, weights.to(log_Z.dtype), denominator)
    return loss, {"nll": loss.detach()}


def set_terms(z_K, log_Z, log_probs, mask, weights):
    """What does not count is made harmless: -> z_K, log_Z, log_t, weights, of at least float32.

    Masked BEFORE any arithmetic: a where() afterwards hides a NaN in the value, but 0 * NaN comes back in the gradient.
    """
    z_K, log_Z, log_probs = at_least_float32(z_K), at_least_float32(log_Z), at_least_float32(log_probs)
    live = mask.any(-1) & (weights > 0)                                     # (B, T)
    mask = mask & live[..., None]                                           # (B, T, K)
    return (torch.where(mask, z_K, MASKED), torch.where(live, log_Z, 0), torch.where(mask, log_probs, MASKED),
            torch.where(live, weights, 0).to(log_Z.dtype))


def log_outside(log_mass):
    """log(1 - exp(log_mass)), of the mass that is left. Close to a mass of 1 the argument has no digits left: the clamp
    keeps the logarithm finite, and ends every pull where the outside is below 8 roundings (1e-6 in float32)."""
    return torch.log(-torch.expm1(log_mass.clamp(max=-8 * torch.finfo(log_mass.dtype).eps)))


def topp_forward_kl(z_K, log_Z, log_probs, mask, weights, denominator=None, *, tail="inside", leak=1.0):
    """Forward KL(teacher || student) where of the teacher only the set A_p is known.

        inside    sum over A_p of q (log q - log(s / S)) + leak (-log S),   q = t / M, M = sum over A_p of t
        bucket    sum over A_p of t (log t - log s) + (1 - M) (log(1 - M) - log(1 - S)),   S = sum over A_p of s

    t are the teacher's probabilities (exp of log_probs), log s = z_K - log_Z the student's over the WHOLE vocabulary,
    and -log S = log_Z - V_p is what leaks out of the set. Inside, at leak 1, this is KL(q || s): its optimum is s = t / M,
    sharper than the teacher: the bias of truncation (often welcome). At leak 0 only the proportions in the set count
    and leaking is free; above 1 it costs more. The bucket's optimum is s = t, S = M; how the tail is shared out, it
    leaves open, and leak is not used.

    z_K, log_probs (B, T, K) float; mask (B, T, K) bool; log_Z, weights (B, T); denominator: see weighted_mean.
    Positions whose set is empty are left out, of the default denominator as well: they are hard targets, for sft_loss.
    figures: kl (the loss), leak = log_Z - V_p in nats, kept_mass M, entropy of the teacher's target in nats.
    Raises ValueError for another tail.
    """
    if tail not in ("inside", "bucket"):
        raise ValueError(f"tail={tail!r}; expected 'inside' or 'bucket'")
    z_K, log_Z, log_t, weights = set_terms(z_K, log_Z, log_probs, mask, weights)
    V_p = torch.logsumexp(z_K, dim=-1)                                      # (B, T)
    outside = log_Z - V_p
    log_s = z_K - (log_Z if tail == "bucket" else V_p)[..., None]           # (B, T, K)
    kept_mass = log_t.exp().sum(-1)
    log_q = log_t if tail == "bucket" else log_t - torch.logsumexp(log_t, dim=-1, keepdim=True)
    q = log_q.exp()
    kl = (q * (log_q - log_s)).sum(-1)                                      # (B, T)
    entropy = -(q * log_q).sum(-1)
    if tail == "bucket":
        rest = (1 - kept_mass).clamp(min=0)                                 # a sum of float32 may pass 1
        kl = kl + torch.xlogy(rest, rest) - rest * log_outside(-outside)
        entropy = entropy - torch.xlogy(rest, rest)
    else:
        kl = kl + leak * outside
    loss = weighted_mean(kl, weights, denominator)
    figures = {"kl": loss, "leak": weighted_mean(outside, weights, denominator),
               "kept_mass": weighted_mean(kept_mass, weights, denominator),
               "entropy": weighted_mean(entropy, weights, denominator)}
    return loss, {name: figure.detach() for name, figure in figures.items()}


def topp_jsd(z_K, log_Z, log_probs, mask, weights, denominator=None, *, beta, tail="inside", leak=0.0):
    """Generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024, eq. 1), q the teacher's part, s the student's:

        beta KL(q || m) + (1 - beta) KL(s || m),   m = beta q + (1 - beta) s;   0: KL(q || s),   1: reverse KL(s || q)

    At 0 and 1 stand the limits divided by beta and by 1 - beta, as is the custom. tail "inside": q and s are both
    renormalised over A_p (proj_p of the paper). "bucket": both are as they are, with the mass outside as one token
    more; reverse KL then charges for leaking where the teacher's tail is thin. leak (log_Z - V_p) is added. Shapes,
    weights, empty sets: as in topp_forward_kl. figures: jsd, leak (before its factor). Raises ValueError for another tail, and beta out of 0 .. 1.
    """
    if tail not in ("inside", "bucket") or not 0 <= beta <= 1:
        raise ValueError(f"tail={tail!r}, beta={beta}; expected 'inside' or 'bucket', and 0 <= beta <= 1")
    z_K, log_Z, log_q, weights = set_terms(z_K, log_Z, log_probs, mask, weights)
    V_p, log_M = torch.logsumexp(z_K, dim=-1), torch.logsumexp(log_q, dim=-1)            # (B, T)
    if tail == "inside":
        log_q, log_s = log_q - log_M[..., None], z_K - V_p[..., None]                    # (B, T, K)
    else:
        log_q = torch.cat([log_q, log_outside(log_M)[..., None]], dim=-1)                # (B, T, K + 1)
        log_s = torch.cat([z_K - log_Z[..., None], log_outside(V_p - log_Z)[..., None]], dim=-1)
    q, s = log_q.exp(), log_s.exp()                                                      # 0 where masked
    if beta in (0, 1):
        terms = s * (log_s - log_q) if beta else q * (log_q - log_s)
    else:
        log_m = torch.logaddexp(log_q + math.log(beta), log_s + math.log1p(-beta))
        terms = beta * q * (log_q - log_m) + (1 - beta) * s * (log_s - log_m)
    jsd, outside = (weighted_mean(x, weights, denominator) for x in (terms.sum(-1), log_Z - V_p))
    return jsd + leak * outside, {"jsd": jsd.detach(), "leak": outside.detach()}


# ---------------------------------------------------------------------------------------------------------------
# Temporal differences: columns are steps of one document. In column t, s is the text before token t, a = token t, and
# s' is the s of column t + 1. Q(s, .) are the student's logits.


def successor_values(values, exists, terminal):
    """V(s') from V(s), one column to the right -> (B, T); values (B, T), exists and terminal (B, T) bool.

    0 after a terminal action, whatever stands to the right, and where there is nothing that exists.
    """
    follows = F.pad(exists[:, 1:], (0, 1)) & ~terminal
    return torch.where(follows, F.pad(values[:, 1:], (0, 1)), 0)


def bellman_weights(mask, hit, terminal, weights, *, outside="drop", cut="drop"):
    """The weights (B, T) with 0 at every position that bellman_distill drops; shapes and options as there.

    Their sum over all micro-batches is the denominator to give to each. Left out as a whole, cloning and all, is a
    position (a) without a set, (b) whose token is not in A_p, unless outside = "join", (c) that is not terminal and
    whose next column has no set, or does not exist, unless cut = "bootstrap" and there is one.
    Raises ValueError for another outside or cut.
    """
    if outside not in ("drop", "join") or cut not in ("drop", "bootstrap"):
        raise ValueError(f"outside={outside!r}, cut={cut!r}; expected 'drop' or 'join', and 'drop' or 'bootstrap'")
    live = mask.any(-1)                                                     # (B, T)
    inside = (hit & mask).any(-1) | (outside == "join")
    known = terminal | F.pad((live | (cut == "bootstrap"))[:, 1:], (0, 1))
    return torch.where(live & inside & known & (weights > 0), weights, 0)


def bellman_terms(z_K, z_a, log_Z, mask, hit, terminal, weights, gamma, *, gauge="raw", outside="drop", cut="drop",
                  stop_gradient=False, target_values=None):
    """What both forms are made of, each (B, T): implied reward Q(s,a) - gamma V_p(s'), 0 where nothing counts;
    cloning V_p(s) - Q(s,a); V_p(s) - gamma V_p(s'); leak; the weights that count. Options: see bellman_distill.

    Raises ValueError for another gauge, and for "centred" with cut = "bootstrap": without a set there is no centre.
    """
    if gauge not in ("raw", "log_softmax", "centred") or (gauge, cut) == ("centred", "bootstrap"):
        raise ValueError(f"gauge={gauge!r}, cut={cut!r}; expected 'raw', 'log_softmax', or 'centred' without bootstrap")
    z_K, z_a, log_Z = at_least_float32(z_K), at_least_float32(z_a), at_least_float32(log_Z)
    weights = bellman_weights(mask, hit, terminal, weights, outside=outside, cut=cut).to(log_Z.dtype)
    live, exists = mask.any(-1), mask.any(-1) | (cut == "bootstrap")        # (B, T)
    # Masked before logsumexp. Elsewhere z_a and log_Z are only added up: a NaN there meets a weight of 0 and is gone.
    joins = live & ~(hit & mask).any(-1) & (outside == "join")
    mask = torch.cat([mask, joins[..., None]], dim=-1)                      # (B, T, K + 1)
    z_K = torch.where(mask, torch.cat([z_K, z_a[..., None]], dim=-1), MASKED)
    V_p = torch.where(live, torch.logsumexp(z_K, dim=-1), log_Z)            # without a set: of the whole vocabulary
    centre = {"raw": torch.zeros_like(V_p), "log_softmax": log_Z,
              "centred": torch.where(mask, z_K, 0).sum(-1) / mask.sum(-1).clamp(min=1)}[gauge]
    Q, V = z_a - centre, V_p - centre                                       # (B, T)
    after = gamma * successor_values(V if target_values is None else target_values, exists, terminal)
    after = after.detach() if stop_gradient else after
    return torch.where(weights > 0, Q - after, 0), V - Q, V - after, log_Z - V_p, weights


def charge(x, alpha, phi):
    """x - phi(x): what an implied reward x (any shape) costs; convex, 0 at 0. phi of IQ-Learn (Garg et al. 2021):

        linear      phi(x) = x                 nothing is charged: cloning
        chi2        phi(x) = x - x^2 / 4       Pearson chi^2, the paper's
        kl          phi(x) = 1 - exp(-x)       KL, as the authors' code mends it; the dual is -exp(-x - 1)
        js          phi(x) = log(2 - exp(-x))  Jensen-Shannon, x > -log 2
        hellinger   phi(x) = x / (1 + x)       squared Hellinger, x > -1

    each concave with slope 1 at 0, used as alpha phi(x / alpha): chi2 gives x^2 / (4 alpha). js and hellinger end, and
    exp overflows: left of u = x / alpha = -1/2 (kl: -8) the charge goes on along its tangent. Raises ValueError for
    another phi, and for an alpha that is not positive and finite.
    """
    if phi not in ("linear", "chi2", "kl", "js", "hellinger") or not 0 < alpha < math.inf:
        raise ValueError(f"phi={phi!r}, alpha={alpha}; expected linear, chi2, kl, js or hellinger, and 0 < alpha < inf")
    if phi in ("linear", "chi2"):
        return torch.zeros_like(x) if phi == "linear" else x * (x / (4 * alpha))
    end = -8.0 if phi == "kl" else -0.5
    u = (x / alpha).clamp(min=end)
    if phi == "kl":
        cost, slope = u + torch.expm1(-u), 1 - math.exp(-end)
    elif phi == "js":
        cost, slope = u - torch.log1p(-torch.expm1(-u)), 1 - 1 / (2 * math.exp(end) - 1)
    else:
        cost, slope = u * u / (1 + u), 1 - 1 / (1 + end) ** 2
    return alpha * cost + slope * (x - alpha * u)


def bellman_distill(z_K, z_a, log_Z, log_probs, mask, hit, terminal, weights, denominator=None, *, alpha=0.1, gamma=0.99,
                    leak=0.0, phi="chi2", expected=False, toward="zero", **options):
    """Bellman Distill (Yu et al. 2026), the published objective written out a token (see bellman_max_min):

        loss = mean of  -log proj_p pi(a|s)  +  charge(Q(s,a) - gamma V_p(s'))  +  leak (log_Z - V_p(s))
                        = V_p(s) - Q(s,a)       = (..)^2 / (4 alpha) for chi2      not in the paper

    z_K, log_probs (B, T, K) float; mask, hit = (ids == taken[..., None]) (B, T, K) bool; z_a, log_Z, weights (B, T);
    terminal (B, T) bool: a ends the document (END, or what a reading ends with), V_p(s') = 0. denominator: None, or the
    sum of bellman_weights, which says what is dropped. A column of weight 0 that has a set still is an s'. Cloning
    alone, which needs no s': phi = "linear", terminal all True.

    expected: cloning takes the teacher's mean over A_p for the token drawn, cross-entropy to the renormalised set: the
    same in the mean, with less noise. Then every position with a set counts, and the denominator is the sum of their
    weights; the residual stays that of the token taken, whose s' alone is known, and is 0 where it would be dropped.
    toward: "zero", or "teacher": the residual's target is the teacher's own, Q_T(s,a) - gamma V_T(s'), Q_T = log_probs.
    options, of bellman_terms: gauge, what is subtracted from Q and V at a state: "raw" nothing, "log_softmax" log_Z,
    "centred" the mean logit of the set; cloning does not see it. outside: "drop" or "join", a token out of A_p becomes
    one of it. cut: "drop" or "bootstrap", where s' has no set V(s') is log_Z of that column (p = 1; give a column of
    padding behind a cut document). stop_gradient of V_p(s'). target_values (B, T): V(s) of another network, in the same
    gauge, used in place of V_p(s').
    figures: cloning, bellman, leak (before its factor), reward = mean of Q - gamma V_p(s'). Raises ValueError for other
    options, and for outside = "join" where the teacher's probability of the token is needed.
    """
    outside = options.get("outside", "drop")
    if toward not in ("zero", "teacher") or outside == "join" and (expected or toward == "teacher"):
        raise ValueError(f"toward={toward!r}, expected={expected}, outside={outside!r}; expected 'zero' or 'teacher', "
                         "and no 'join' with the teacher's probabilities: of a token out of the set they are not known")
    step = mask, hit, terminal, weights, gamma
    reward, cloning, _, leaks, counted = bellman_terms(z_K, z_a, log_Z, *step, **options)
    log_t = torch.where(mask, at_least_float32(log_probs), MASKED)          # (B, T, K)
    if expected:
        log_s = torch.where(mask, at_least_float32(z_K), MASKED).log_softmax(-1)
        cloning = -(log_t.softmax(-1) * log_s).sum(-1)
        counted = torch.where(mask.any(-1) & (weights > 0), weights, 0).to(counted.dtype)
    target = 0.0
    if toward == "teacher":
        log_t_a = torch.where(hit & mask, log_t, 0).sum(-1)                 # (B, T)
        target = bellman_terms(log_t, log_t_a, torch.zeros_like(log_t_a), *step, cut=options.get("cut", "drop"))[0]
    terms = {"cloning": cloning, "bellman": charge(reward - target, alpha, phi), "leak": leaks, "reward": reward}
    terms = {name: weighted_mean(term, counted, denominator) for name, term in terms.items()}
    loss = terms["cloning"] + terms["bellman"] + leak * terms["leak"]
    return loss, {name: term.detach() for name, term in terms.items()}


def bellman_max_min(z_K, z_a, log_Z, mask, hit, terminal, weights, denominator=None, *, alpha=0.1, gamma=0.99,
                    phi="chi2", **options):
    """The same as published, from IQ-Learn: max over Q of  E[phi(Q(s,a) - gamma V_p(s'))] - E[V_p(s) - gamma V_p(s')]

    as a loss to minimise. gamma V_p(s') cancels in the linear part, and bellman_distill is what is left. Arguments as
    there; figures: reward = E[phi(..)], value = E[V_p(s) - gamma V_p(s')].
    """
    x, _, gain, _, weights = bellman_terms(z_K, z_a, log_Z, mask, hit, terminal, weights, gamma, **options)
    reward = weighted_mean(x - charge(x, alpha, phi), weights, denominator)
    value = weighted_mean(gain, weights, denominator)
    return value - reward, {"reward": reward.detach(), "value": value.detach()}


# ---------------------------------------------------------------------------------------------------------------
# The command line


def main(argv=None):
    """The commands -> exit code: 0, or 2 with one line for what cannot be read."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("inspect", help="print what a cache holds and costs").add_argument("folder")
    commands.add_parser("theory", help="print the theory, solved exactly in tables")
    commands.add_parser("compare", help="train every objective from one start, and tell what each has learnt")
    args = parser.parse_args(arguments[:1] if arguments[:1] == ["compare"] else arguments)
    try:
        if args.command == "compare":
            from course import compare  # only here: it knows the whole course, and nothing else needs it
            compare.main(arguments[1:])
        elif args.command == "theory":
            from course.theory import lines
            for line in lines():
                print(line, flush=True)
        else:
            inspect(args.folder)
    except (ValueError, OSError) as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        return 2
    except runs.Stopped:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    runs.stops.listen()
    sys.exit(main())
