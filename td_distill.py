"""Distillation on a reduced vocabulary: the teacher's few probable tokens, and losses that learn from them.

A teacher puts most of its probability on a few tokens. When it draws a token after a text s, we keep these
few and their log-probabilities: the top-p set A_p(s). They go into a cache on disk (data/cache.py), made once
and read by every student. A loss is a function of three terms that the student gives at a position
(`student_terms`):

    z_K    its logits on the teacher's K tokens
    z_a    its logit on the token that was taken
    log_Z  the logarithm of its softmax denominator over the whole vocabulary

From these follow V_p = logsumexp of z_K over the set, a soft maximum that serves as the value of s, and the
leak log_Z - V_p = -log(the student's probability of the set), 0 where nothing lies outside. Objectives:

    sft_loss          cross-entropy on the token taken
    topp_forward_kl   KL(teacher || student), the teacher cut to its set; the default
    reverse_kl        KL(student || teacher), both cut to the set: the student may leave tokens out
    bellman_distill   imitation in the set, plus the square of a temporal-difference (TD) residual

Column t of a cached document holds token t and the set from which it was drawn, so it is compared with the
logits of column t - 1. A training step:

    batch = cache.batch(rows)
    logits = model(batch["tokens"][:, :-1])                                                    # (B, T-1, V)
    student = student_terms(logits, batch["ids"][:, 1:], batch["tokens"][:, 1:])
    teacher = TeacherSets(batch["log_probs"][:, 1:], batch["mask"][:, 1:])
    loss, figures = topp_forward_kl(student, teacher, teacher.mask.any(-1).float())

    python td_distill.py inspect FOLDER        what a teacher's cache holds and costs
    python td_distill.py theory                what each objective recovers, solved exactly (course/theory.py)
    python td_distill.py compare --seeds=5     what each objective teaches (experiments/compare.py)

Shapes: B documents, T tokens of a document, K teacher tokens kept, V vocabulary, N rows of any kind.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from data.cache import MASKED
from data.cli import run_command, run_named

SLACK = 1e-6        # probabilities are float32: .5 + .3 is taken to reach p = .8


# ------------------------------------------------------------------------------------------------------------
# The reduced vocabulary: the teacher's sets A_p, and drawing from them


def top_p_sets(logits, p, k_cap, temperature=1.0):
    """The smallest set of most probable tokens whose mass reaches p, for each row: A_p(s) of the paper.

    logits (N, V) float; 0 < p <= 1; k_cap: at most so many tokens are kept, even where they do not reach p.
    Returns ids (N, K) long, log_probs (N, K) float32, mask (N, K) bool, with K the largest set among the
    rows; the most probable token comes first, the token that crosses p is in the set, one of probability 0
    never is. Where mask is False: id 0 and log-probability MASKED. log_probs are log softmax(logits /
    temperature), not renormalised over the set: the mass that is missing is known. ValueError for p, k_cap or
    temperature out of range, and NaN logits.
    """
    if not 0 < p <= 1 or k_cap < 1 or temperature <= 0:
        raise ValueError(f"p={p}, k_cap={k_cap}, temperature={temperature}; "
                         "expected 0 < p <= 1, k_cap >= 1, temperature > 0")
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)     # (N, V)
    values, ids = log_probs.topk(min(k_cap, logits.size(-1)))               # (N, k) sorted
    if torch.isnan(values).any():
        raise ValueError("the teacher's logits hold NaN or only infinities; check its checkpoint")
    probs = values.double().exp()
    before = probs.cumsum(-1) - probs                                       # mass of the tokens ranked above
    mask = (before < p - SLACK) if p < 1 else torch.ones_like(before, dtype=torch.bool)
    mask[:, 0] = True                                                       # also for p below SLACK
    mask &= values > -torch.inf
    width = int(mask.sum(-1).max()) if len(mask) else 0
    ids, values, mask = ids[:, :width], values[:, :width], mask[:, :width]  # (N, K)
    return ids.masked_fill(~mask, 0), values.masked_fill(~mask, MASKED), mask


def restrict_to_p(log_probs, mask, p):
    """What a smaller p would keep of cached sets (..., K), the most probable tokens first, as a mask."""
    probs = log_probs.double().exp() * mask
    return mask & (probs.cumsum(-1) - probs < p - SLACK)


def draw_with_sets(model, prompts, max_new, *, p, k_cap, temperature=1.0, stop=None, seed=None):
    """Continues every prompt with tokens drawn from their top-p sets -> (new, sets), two lists of lists.

    new: the new ids of each prompt; sets: (ids (K,), log_probs (K,)) for each, as CacheWriter.add takes them.
    """
    sets = [[] for _ in prompts]

    def keep_sets(rows, logits, drawn):
        ids, log_probs, mask = (x.cpu().numpy() for x in top_p_sets(logits, p, k_cap, temperature))
        for i, row in enumerate(rows.tolist()):
            sets[row].append((ids[i][mask[i]], log_probs[i][mask[i]]))

    # A little less than p: rounding must not let a token be drawn that the set above leaves out.
    new = model.generate(prompts, max_new, temperature=temperature, top_k=k_cap,
                         top_p=max(p - 2 * SLACK, SLACK), stop=stop, seed=seed, watch=keep_sets)
    return new, sets


# ------------------------------------------------------------------------------------------------------------
# What the losses take from student and teacher


class StudentTerms(NamedTuple):
    z_K: torch.Tensor                       # (B, T, K) logits on the teacher's tokens
    z_a: torch.Tensor                       # (B, T) logit on the token that was taken
    log_Z: torch.Tensor                     # (B, T) logsumexp of all V logits


class TeacherSets(NamedTuple):
    log_probs: torch.Tensor                 # (B, T, K) log pi_T of the set's tokens, not renormalised
    mask: torch.Tensor                      # (B, T, K) bool, False for padding and where there is no set
    is_taken: torch.Tensor = None           # (B, T, K) bool, ids == taken[..., None]; for the residual alone
    terminal: torch.Tensor = None           # (B, T) bool, the token taken ends the text: V_p(s') = 0


def at_least_float32(x):
    """float64 stays (the tests take finite differences in it), every other type becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def student_terms(logits, ids, taken):
    """logits (B, T, V), ids (B, T, K) long, taken (B, T) long -> StudentTerms, of at least float32.

    Any leading shape will do in place of (B, T). Where a set is padded, z_K is that of id 0; losses mask it.
    """
    logits = at_least_float32(logits)
    return StudentTerms(logits.gather(-1, ids), logits.gather(-1, taken[..., None])[..., 0],
                        torch.logsumexp(logits, dim=-1))


def weighted_mean(values, weights, denominator=None):
    """sum(weights * values) / denominator over positions; values, weights (B, T) -> scalar.

    denominator None: the sum of these weights. Where an update comes in micro-batches, pass the sum over all
    of them: then their losses and gradients ADD UP to those of the one batch, which means of means do not.
    Positions of weight 0 count for nothing, whatever stands there. No weight at all gives 0.
    """
    total = torch.where(weights > 0, weights * values, 0).sum()
    denominator = weights.sum() if denominator is None else torch.as_tensor(denominator)
    return total / denominator.clamp(min=torch.finfo(values.dtype).tiny)


def mask_terms(student, teacher, weights):
    """-> z_K, log_Z, log_t, weights, of at least float32, with harmless numbers where a position does not
    count.

    They are masked BEFORE any arithmetic: a NaN that where() removes afterwards still makes the gradient NaN.
    """
    z_K, log_Z, log_t = map(at_least_float32, (student.z_K, student.log_Z, teacher.log_probs))
    live = teacher.mask.any(-1) & (weights > 0)                             # (B, T)
    mask = teacher.mask & live[..., None]                                   # (B, T, K)
    return (torch.where(mask, z_K, MASKED), torch.where(live, log_Z, 0), torch.where(mask, log_t, MASKED),
            torch.where(live, weights, 0).to(log_Z.dtype))


def log_outside(log_mass):
    """log(1 - exp(log_mass)), the log of the mass outside. The clamp keeps it finite, with a gradient of 0,
    where the mass outside is below 8 roundings (1e-6 in float32)."""
    return torch.log(-torch.expm1(log_mass.clamp(max=-8 * torch.finfo(log_mass.dtype).eps)))


# ------------------------------------------------------------------------------------------------------------
# The objectives. Each returns (loss, figures): a scalar, and a dict of detached scalars. weights (B, T) >= 0;
# denominator: see weighted_mean. Positions whose set is empty are left out of all but sft_loss.


def sft_loss(student, weights, denominator=None):
    """Cross-entropy on the token taken: SFT on references, SeqKD where the teacher wrote the tokens.

        loss = mean of  log_Z - z_a  =  -log pi(a | s)          in nats; figures: nll
    """
    z_a, log_Z = at_least_float32(student.z_a), at_least_float32(student.log_Z)
    loss = weighted_mean(log_Z - z_a, weights.to(log_Z.dtype), denominator)
    return loss, {"nll": loss.detach()}


def topp_forward_kl(student, teacher, weights, denominator=None, *, tail="inside", leak=1.0):
    """Forward KL(teacher || student) where of the teacher only the set A_p is known.

        inside    sum over A_p of q (log q - log(s / S)) + leak (-log S),   q = t / M, M = sum over A_p of t
        bucket    sum over A_p of t (log t - log s) + (1 - M) (log(1 - M) - log(1 - S)),   S = sum of s

    t are the teacher's probabilities, s the student's over the WHOLE vocabulary; -log S = log_Z - V_p is the
    leak. Inside, at leak 1, this is KL(q || s): its optimum s = t / M is sharper than the teacher, the bias
    of truncation. At leak 0 only the proportions in the set count; above 1 leaking costs more. The bucket's
    optimum is s = t, S = M. figures: kl (the loss), leak in nats, kept_mass M, entropy of the target in nats.
    ValueError for another tail.
    """
    if tail not in ("inside", "bucket"):
        raise ValueError(f"tail={tail!r}; expected 'inside' or 'bucket'")
    z_K, log_Z, log_t, weights = mask_terms(student, teacher, weights)
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
    figures = {"kl": kl, "leak": outside, "kept_mass": kept_mass, "entropy": entropy}
    figures = {name: weighted_mean(values, weights, denominator) for name, values in figures.items()}
    return figures["kl"], {name: figure.detach() for name, figure in figures.items()}


def reverse_kl(student, teacher, weights, denominator=None, *, leak=1.0):
    """Reverse KL(student || teacher), both renormalised over A_p (MiniLLM's direction, Gu et al. 2024), plus
    a leak.

        loss = mean of  sum over A_p of s / S (log(s / S) - log(t / M))  +  leak (log_Z - V_p)

    The student may leave out some of the teacher's tokens, where the forward KL must cover them all. figures:
    kl and leak, in nats.
    """
    z_K, log_Z, log_t, weights = mask_terms(student, teacher, weights)
    V_p = torch.logsumexp(z_K, dim=-1)                                      # (B, T)
    log_s, log_q = z_K - V_p[..., None], log_t - torch.logsumexp(log_t, dim=-1, keepdim=True)
    kl = (log_s.exp() * (log_s - log_q)).sum(-1)
    kl, outside = (weighted_mean(values, weights, denominator) for values in (kl, log_Z - V_p))
    return kl + leak * outside, {"kl": kl.detach(), "leak": outside.detach()}


# ------------------------------------------------------------------------------------------------------------
# Temporal differences. In column t of a document, s is the text before token t, a = token t, and s' = s + a
# is the s of column t + 1. The student's logit is Q(s, a), V_p(s) its value, and the residual Q(s, a) - gamma
# V_p(s').


def successor_values(values, exists, terminal):
    """V(s') from V(s), one column to the right -> (B, T); values (B, T), exists and terminal (B, T) bool.

    0 where a is terminal, and where the next column does not exist."""
    follows = F.pad(exists[:, 1:], (0, 1)) & ~terminal
    return torch.where(follows, F.pad(values[:, 1:], (0, 1)), 0)


def bellman_weights(teacher, weights):
    """The weights (B, T), 0 where the residual is unknown: (a) no set, (b) the token taken is not in A_p, (c)
    a text that was cut: a is not terminal, and the next column has no set or does not exist."""
    live = teacher.mask.any(-1)                                             # (B, T)
    inside = (teacher.is_taken & teacher.mask).any(-1)
    known = teacher.terminal | F.pad(live[:, 1:], (0, 1))
    return torch.where(live & inside & known & (weights > 0), weights, 0)


def bellman_terms(student, teacher, weights, gamma, *, gauge="raw", target_values=None, stop_gradient=False):
    """-> five (B, T): residual Q(s,a) - gamma V_p(s'), the implied reward of IQ-Learn, 0 if unknown; cloning
    V_p(s) - Q(s,a) = -log proj_p pi(a|s); V_p(s) - gamma V_p(s'); the leak; bellman_weights.

    gauge: what is subtracted from all logits of a state, which leaves the policy as it is but not the
    residual: "raw" 0, "log_softmax" log_Z. target_values (B, T): V(s) of another network, such as a slow
    copy, in place of V_p(s'); stop_gradient: none goes through V_p(s'). ValueError for another gauge.
    """
    if gauge not in ("raw", "log_softmax"):
        raise ValueError(f"gauge={gauge!r}; expected 'raw' or 'log_softmax'")
    z_K, z_a, log_Z = map(at_least_float32, student)
    live = teacher.mask.any(-1)                                             # (B, T)
    weights = bellman_weights(teacher, weights).to(log_Z.dtype)
    z_K = torch.where(teacher.mask, z_K, MASKED)                            # masked before logsumexp
    V_p = torch.where(live, torch.logsumexp(z_K, dim=-1), log_Z)            # (B, T)
    centre = log_Z if gauge == "log_softmax" else torch.zeros_like(V_p)
    Q, V = z_a - centre, V_p - centre
    after = gamma * successor_values(V if target_values is None else target_values, live, teacher.terminal)
    after = after.detach() if stop_gradient else after
    return torch.where(weights > 0, Q - after, 0), V - Q, V - after, log_Z - V_p, weights


def bellman_distill(student, teacher, weights, denominator=None, *, alpha=0.1, gamma=0.99, leak=0.0,
                    expected=False, **options):
    """Bellman Distill (Yu et al. 2026), the published objective for each token, and a leak term of our own:

        loss = mean of  V_p(s) - Q(s,a)  +  (Q(s,a) - gamma V_p(s'))^2 / (4 alpha)  +  leak (log_Z - V_p(s))

    The first term clones the token taken, the second keeps the implied reward small (chi^2 of IQ-Learn, Garg
    et al. 2021); course/theory.py has the optimum. Positions of weight 0 in bellman_weights are left out.
    expected=True: cloning is the cross-entropy to the teacher's whole set, with less noise, at every position
    that has one, and the residual is 0 where it is not known. options: of bellman_terms. figures: cloning,
    bellman (the square), leak, reward (mean residual). ValueError unless 0 < alpha < inf.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha}; expected 0 < alpha < inf")
    reward, cloning, _, outside, counted = bellman_terms(student, teacher, weights, gamma, **options)
    if expected:
        cloning = expected_cloning(student, teacher)
        counted = torch.where(teacher.mask.any(-1) & (weights > 0), weights, 0).to(counted.dtype)
    square = reward * (reward / (4 * alpha))
    terms = {"cloning": cloning, "bellman": square, "leak": outside, "reward": reward}
    terms = {name: weighted_mean(term, counted, denominator) for name, term in terms.items()}
    loss = terms["cloning"] + terms["bellman"] + leak * terms["leak"]
    return loss, {name: term.detach() for name, term in terms.items()}


def expected_cloning(student, teacher):
    """Cross-entropy to the teacher, both renormalised over A_p -> (B, T)."""
    log_t = torch.where(teacher.mask, at_least_float32(teacher.log_probs), MASKED)     # (B, T, K)
    log_s = torch.where(teacher.mask, at_least_float32(student.z_K), MASKED).log_softmax(-1)
    return -(log_t.softmax(-1) * log_s).sum(-1)


def cached_loss(model, rows, weights, terminal, config, denominator):
    """The loss terms of a batch of TeacherCache documents, to be added: "hard" on tokens without a set (all
    of them for "seqkd"), and "sets" (objective "topp_kd") or "bellman" where there is one.

    weights, terminal (B, T); config: objective, p, leak, alpha, gamma as in train.Config."""
    targets, ids, log_probs = (rows[name][:, 1:] for name in ("tokens", "ids", "log_probs"))
    weights, terminal = weights[:, 1:], terminal[:, 1:]
    mask = restrict_to_p(rows["log_probs"], rows["mask"], config.p)[:, 1:]                     # (B, T, K)
    soft = mask.any(-1) & (config.objective != "seqkd")                                        # (B, T)
    student = student_terms(model(rows["tokens"][:, :-1]), ids, targets)
    terms = {"hard": sft_loss(student, weights * ~soft, denominator)[0]}
    teacher = TeacherSets(log_probs, mask, ids == targets[..., None], terminal)
    args = student, teacher, weights * soft, denominator
    if config.objective == "bellman":
        terms["bellman"], _ = bellman_distill(*args, alpha=config.alpha, gamma=config.gamma, leak=config.leak,
                                              gauge="log_softmax", expected=True)
    else:
        terms["sets"], _ = topp_forward_kl(*args, leak=config.leak)
    return terms


# ------------------------------------------------------------------------------------------------------------
# The command line


def main(arguments=None):
    """The commands inspect, theory and compare; ValueError for another one."""
    commands = {"inspect": "data.cache_tools", "theory": "course.theory", "compare": "experiments.compare"}
    run_named(commands, arguments, __doc__)


if __name__ == "__main__":
    run_command(main)
