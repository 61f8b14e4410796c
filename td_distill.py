"""Distillation on a reduced vocabulary: losses on the teacher's few probable tokens, without and with TD.

When a teacher draws a token after a text s, we keep its few most probable tokens with log-probabilities, the
top-p set A_p(s) (data/sets.py), in a cache on disk (data/cache.py), made once and read by every student. A
loss sees of the student, at a position (`student_terms`):

    z_K    its logits on the teacher's K tokens
    z_a    its logit on the token that was taken
    log_Z  the logarithm of its softmax denominator over the whole vocabulary
    v, U   two heads, where a temporal difference (TD) needs them

The leak, log_Z - logsumexp of z_K, is -log(the student's probability of the set). Losses:

    sft_loss            cross-entropy on the token taken
    topp_forward_kl     KL(teacher || student), the teacher cut to its set; the default
    reverse_kl          KL(student || teacher), both cut to the set
    with values         bellman_distill, ls_iq, soft_q, stay, path_consistency, retrace, improve

Column t of a cached document holds token t and the set from which it was drawn, so it is compared with the
logits of column t - 1. A training step on batch = cache.batch(rows):

    student = student_terms(model(batch["tokens"][:, :-1]), batch["ids"][:, 1:], batch["tokens"][:, 1:])
    teacher = TeacherSets(batch["log_probs"][:, 1:], batch["mask"][:, 1:])
    loss, figures = topp_forward_kl(student, teacher, teacher.mask.any(-1).float())

    python td_distill.py inspect FOLDER        what a teacher's cache holds and costs
    python td_distill.py theory                what each objective recovers, solved exactly (course/theory.py)
    python td_distill.py compare --seeds=5     what each objective teaches (experiments/compare.py)

Shapes: B documents, T tokens of a document, K teacher tokens kept, V vocabulary, C channels.
"""

import math
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from data.cache import MASKED
from data.cli import run_command, run_named
from data.head import LARGE, at_least_float32, head_terms
from data.sets import restrict_to_p

TRUNK = 0.1         # part of the gradient of U(s, a) that reaches the model


class StudentTerms(NamedTuple):
    z_K: torch.Tensor                       # (B, T, K) logits on the teacher's tokens
    z_a: torch.Tensor                       # (B, T) logit on the token that was taken
    log_Z: torch.Tensor                     # (B, T) logsumexp of all V logits
    v: torch.Tensor = None                  # (B, T) and (B, T, K), of TDHeads
    U: torch.Tensor = None


class TeacherSets(NamedTuple):
    log_probs: torch.Tensor                 # (B, T, K) log pi_T of the set's tokens, not renormalised
    mask: torch.Tensor                      # (B, T, K) bool, False for padding and where there is no set
    is_taken: torch.Tensor = None           # (B, T, K) bool, ids == taken[..., None]; for TD losses alone
    terminal: torch.Tensor = None           # (B, T) bool, the token taken ends the text: V(s') = 0


def student_terms(logits, ids, taken, hidden=None, heads=None):
    """logits (B, T, V), ids (B, T, K) long, taken (B, T) long -> StudentTerms, of at least float32; with v
    and U where hidden (B, T, C) and heads (TDHeads) are given. Where a set is padded, z_K is that of id 0."""
    logits = at_least_float32(logits)
    v, U = (None, None) if heads is None else heads(hidden, ids)
    z_K, z_a = logits.gather(-1, ids), logits.gather(-1, taken[..., None])[..., 0]
    return StudentTerms(z_K, z_a, torch.logsumexp(logits, dim=-1), v, U)


class TDHeads(nn.Module):
    """Two functions of a hidden state, for training alone, 0 at the start: v(s), the free part of V(s), and
    U(s,a), log P(stay in the sets after a), see improve. TRUNK of U's gradient reaches the model."""

    def __init__(self, n_embd, n_vocab, width=64):
        super().__init__()
        self.v, self.mix, self.U = nn.Linear(n_embd, 1), nn.Linear(n_embd, width), nn.Linear(width, n_vocab)
        for parameter in *self.v.parameters(), *self.U.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden, ids):
        """hidden (B, T, C), ids (B, T, K) long -> v (B, T), U of gelu(mix) (B, T, K), of the heads' type."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(self.v.weight.dtype)
            features = F.gelu(self.mix(TRUNK * hidden + (1 - TRUNK) * hidden.detach()))     # (B, T, width)
            weight, bias = F.embedding(ids, self.U.weight), self.U.bias[ids]    # of the K ids, not of all V
            return self.v(hidden)[..., 0], (weight @ features[..., None])[..., 0] + bias


def add_heads(model, seed=0):
    """Gives the model TDHeads, as model.td_heads, which GPT.save leaves out; the run's own stream stays."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model.td_heads = TDHeads(model.config.n_embd, model.config.n_vocab).to(next(model.parameters()))


def weighted_mean(values, weights, denominator=None):
    """sum(weights * values) / denominator over positions; values, weights (B, T) -> scalar.
    denominator None: the sum of these weights. For micro-batches pass the sum over all of them: then their
    losses and gradients add up to those of the one batch. Positions of weight 0 count for nothing, whatever
    stands there; NaN at any other position stays NaN. No weight at all gives 0. Weights may be tiny."""
    total = torch.where(weights > 0, weights * values, 0).sum()
    denominator = weights.sum() if denominator is None else torch.as_tensor(denominator, dtype=total.dtype)
    return total / denominator.clamp(min=torch.finfo(values.dtype).tiny)


def sum_terms(terms, weights, denominator):
    """{name: (factor, values)} -> sum of factor * weighted_mean (0: left out), {name: the mean, detached}."""
    means = {name: weighted_mean(values, weights, denominator) for name, (_, values) in terms.items()}
    loss = sum(factor * means[name] for name, (factor, _) in terms.items() if factor)
    return loss, {name: mean.detach() for name, mean in means.items()}


def mask_terms(student, teacher, weights):
    """-> z_K, log_Z, log_t, weights, at least float32; MASKED, 0, MASKED, 0 in padding, empty sets, weight 0.
    BEFORE any arithmetic, as a NaN that where() removes afterwards still makes the gradient NaN."""
    z_K, log_Z, log_t = map(at_least_float32, (student.z_K, student.log_Z, teacher.log_probs))
    live = teacher.mask.any(-1) & (weights > 0)                             # (B, T)
    mask = teacher.mask & live[..., None]                                   # (B, T, K)
    return (torch.where(mask, z_K, MASKED), torch.where(live, log_Z, 0), torch.where(mask, log_t, MASKED),
            torch.where(live, weights, 0).to(log_Z.dtype))


def log_outside(log_mass):
    """log(1 - exp(log_mass)), precise also near 0; where it is below log(8 eps): that, without gradient."""
    return torch.log(-torch.expm1(log_mass.clamp(max=-8 * torch.finfo(log_mass.dtype).eps)))


# --- the objectives: each returns (loss, figures), a scalar and a dict of detached scalars ----------------
# weights (B, T) >= 0; denominator: see weighted_mean. Only sft_loss counts positions without a set.


def sft_loss(student, weights, denominator=None):
    """Cross-entropy on the token taken (figure nll): SFT on references, SeqKD on the teacher's tokens."""
    nll = at_least_float32(student.log_Z) - at_least_float32(student.z_a)
    return sum_terms({"nll": (1, nll)}, weights.to(nll.dtype), denominator)


def topp_forward_kl(student, teacher, weights, denominator=None, *, tail="inside", leak=1.0):
    """Forward KL(teacher || student) where of the teacher only the set A_p is known.

        inside    sum over A_p of q (log q - log(s / S)) + leak (-log S),   q = t / M, M = sum over A_p of t
        bucket    sum over A_p of t (log t - log s) + (1 - M) (log(1 - M) - log(1 - S)),   S = sum of s

    t are the teacher's probabilities, s the student's over the WHOLE vocabulary; -log S is the leak.
    Inside, at leak 1, this is KL(q || s): its optimum s = t / M is sharper than the teacher, the bias
    of truncation. At leak 0 only the proportions in the set count; above 1 leaking costs more. The bucket's
    optimum is s = t, S = M. figures: kl (the loss), leak, kept_mass M, entropy (of q; or of t and 1 - M)."""
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
    terms = {"kl": (1, kl), "leak": (0, outside), "kept_mass": (0, kept_mass), "entropy": (0, entropy)}
    return sum_terms(terms, weights, denominator)


def reverse_kl(student, teacher, weights, denominator=None, *, leak=1.0):
    """Reverse KL(student || teacher), both renormalised over A_p (MiniLLM's direction, Gu et al. 2024), plus
    a leak. The student may leave out some of the teacher's tokens, which the forward KL must cover.

        mean of  sum over A_p of s / S (log(s / S) - log(t / M))  +  leak (-log S)"""
    z_K, log_Z, log_t, weights = mask_terms(student, teacher, weights)
    V_p = torch.logsumexp(z_K, dim=-1)                                      # (B, T)
    log_s, log_q = z_K - V_p[..., None], log_t - torch.logsumexp(log_t, dim=-1, keepdim=True)
    kl = (log_s.exp() * (log_s - log_q)).sum(-1)
    return sum_terms({"kl": (1, kl), "leak": (leak, log_Z - V_p)}, weights, denominator)


# --- temporal differences ---------------------------------------------------------------------------------
# In column t, s is the text before token t, a = token t, and s' = s + a is the s of column t + 1. pi is the
# student, pi_T the teacher; proj_p renormalises over A_p(s), S(s) is the student's probability of it.
#     Q(s,a) = log pi(a|s) + v(s)        V(s) = log of the sum of exp Q over A_p(s) = v(s) + log S(s)
# A residual is Q(s,a) minus its target: a reward and the discounted V(s'). soft_q, path_consistency and
# retrace recover what KD does, bellman_distill and ls_iq with a bias; stay, and improve where the student is
# limited, recover something else.


class TDTerms(NamedTuple):              # each (B, T), of at least float32 and finite
    log_s: torch.Tensor                     # log proj_p pi(a|s), the student's, renormalised over A_p(s)
    Q: torch.Tensor                         # log_s + V
    V: torch.Tensor
    V_next: torch.Tensor                    # V(s'), 0 after a terminal token
    r: torch.Tensor                         # log proj_p pi_T(a|s), the teacher's
    raw_r: torch.Tensor                     # log pi_T(a|s), not renormalised
    cross_entropy: torch.Tensor             # to the teacher's whole set, both renormalised over it
    leak: torch.Tensor                      # -log S(s)
    live: torch.Tensor                      # the weights, 0 where there is no set
    known: torch.Tensor                     # bellman_weights


def successor_values(values, exists, terminal):
    """V(s') (B, T): the next column of values, 0 where that does not exist or a is terminal. All (B, T)."""
    follows = F.pad(exists[:, 1:], (0, 1)) & ~terminal
    return torch.where(follows, F.pad(values[:, 1:], (0, 1)), 0)


def bellman_weights(teacher, weights):
    """The weights (B, T), 0 where a residual is not known: (a) no set, (b) the token taken is not in A_p, (c)
    a text that was cut: a is not terminal, and the next column has no set, weighs 0 or does not exist."""
    live = teacher.mask.any(-1) & (weights > 0)                             # (B, T)
    inside, follows = (teacher.is_taken & teacher.mask).any(-1), F.pad(live[:, 1:], (0, 1))
    return torch.where(live & inside & (teacher.terminal | follows), weights, 0)


def td_terms(student, teacher, weights, *, target_values=None, stop_gradient=False):
    """-> TDTerms. Without a value head v is 0. With student._replace(v=student.log_Z) Q is the logit.
    target_values (B, T): V(s) of another network, such as a slow copy, in place of the student's own V(s');
    stop_gradient: none goes through V(s')."""
    z_K, log_Z, log_t, live = mask_terms(student, teacher, weights)
    taken = teacher.is_taken & teacher.mask & (live > 0)[..., None]         # (B, T, K)
    V_p = torch.logsumexp(z_K, dim=-1)                                      # (B, T)
    leak = torch.where(live > 0, log_Z - V_p, 0)
    v = 0 if student.v is None else torch.where(live > 0, at_least_float32(student.v), 0)
    log_s_K, log_q = z_K - V_p[..., None], log_t.log_softmax(-1)            # (B, T, K)
    log_s, r, raw_r = (torch.where(taken, x, 0).sum(-1) for x in (log_s_K, log_q, log_t))
    cross_entropy, V = -(log_q.exp() * log_s_K).sum(-1), v - leak
    later = V if target_values is None else at_least_float32(target_values)
    V_next = successor_values(later.detach() if stop_gradient else later, live > 0, teacher.terminal)
    known = bellman_weights(teacher, live)
    return TDTerms(log_s, log_s + V, V, V_next, r, raw_r, cross_entropy, leak, live, known)


def squared_residual(x, residual, leak, denominator):
    """Mean of residual^2, 0 where it is not known, + leak (-log S) over positions with a set; x: TDTerms."""
    square = torch.where(x.known > 0, residual, 0) ** 2
    return sum_terms({"square": (1, square), "leak": (leak, x.leak)}, x.live, denominator)


def bellman_distill(student, teacher, weights, denominator=None, *, alpha=0.1, gamma=0.99, leak=0.0,
                    expected=False, **options):
    """Bellman Distill (Yu et al. 2026), with the chi^2 of IQ-Learn (Garg et al. 2021), and a leak of ours:

        mean of  -log proj_p pi(a|s)  +  (Q(s,a) - gamma V(s'))^2 / (4 alpha)  +  leak (-log S(s))

    The first term clones the token taken. The square keeps the implied reward x = Q - gamma V(s') small. In
    the first state of a text pi / proj_p pi_T = 1 - x / (2 alpha) at the optimum: flatter than the teacher,
    and KD where alpha is large. v = log_Z is as published. Where x is not known a position is left out, or,
    if expected, its square alone: then cloning is cross_entropy, with less noise. The gradient goes through
    V(s') too, but for options. ValueError unless 0 < alpha < inf. figures: cloning, bellman, leak, reward."""
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha}; expected 0 < alpha < inf")
    x = td_terms(student, teacher, weights, **options)
    reward = torch.where(x.known > 0, x.Q - gamma * x.V_next, 0)
    terms = {"cloning": (1, x.cross_entropy if expected else -x.log_s), "leak": (leak, x.leak),
             "bellman": (1, reward * (reward / (4 * alpha))), "reward": (0, reward)}
    return sum_terms(terms, x.live if expected else x.known, denominator)


def ls_iq(student, teacher, weights, denominator=None, *, alpha=0.1, gamma=0.99, leak=0.0, r_max=0.1):
    """LS-IQ, its offline part (Al-Hafez et al. 2023): bellman_distill with the reward around r_max in place
    of 0, and an absorbing end, after which V(s') = r_max / (1 - gamma); gamma < 1.

    Optimum: that of bellman_distill, bias included, with V larger by r_max / (1 - gamma)."""
    x = td_terms(student, teacher, weights)
    V_next = torch.where(teacher.terminal, r_max / (1 - gamma), x.V_next)
    square = (x.Q - gamma * V_next - r_max) ** 2 / (4 * alpha)
    terms = {"cloning": (1, -x.log_s), "bellman": (1, square), "leak": (leak, x.leak)}
    return sum_terms(terms, x.known, denominator)


def soft_q(student, teacher, weights, denominator=None, *, gamma=0.99, leak=1.0, **options):
    """Soft Q-learning with the teacher's reward r = log proj_p pi_T(a|s) (Haarnoja et al. 2017):

        mean of  (Q(s,a) - r - gamma V(s'))^2 + leak (-log S(s)),   no gradient through V(s')

    Optimum, for any gamma: the teacher in its sets, and V = 0, as exp r sums to 1 in every set."""
    x = td_terms(student, teacher, weights, stop_gradient=True, **options)
    return squared_residual(x, x.Q - x.r - gamma * x.V_next, leak, denominator)


def stay(student, teacher, weights, denominator=None, *, leak=1.0, **options):
    """soft_q with gamma 1 and r = log pi_T(a|s), not renormalised: a nucleus normalised over whole texts.

    Optimum: V(s) = log P(the teacher never leaves a set from s on), and pi(a|s) in proportion to pi_T(a|s)
    exp V(s'): the teacher GIVEN that it never leaves one. V needs the head, as the leak drives S to 1."""
    x = td_terms(student, teacher, weights, stop_gradient=True, **options)
    return squared_residual(x, x.Q - x.raw_r - x.V_next, leak, denominator)


def path_consistency(student, teacher, weights, denominator=None, *, steps=4, gamma=0.99, leak=1.0,
                     target_values=None):
    """Path consistency (Nachum et al. 2017) over n = steps tokens, fewer where the text ends or is not known:

        (V(s_t) - G)^2,   G = sum over i < n of gamma^i (r_(t+i) - log_s_(t+i)) + gamma^n V(s_(t+n))

    The gradient goes through both values and log_s. One step has the value of soft_q; the same optimum."""
    x = td_terms(student, teacher, weights)
    G = bootstrap = x.V if target_values is None else at_least_float32(target_values)
    for _ in range(steps):
        later = gamma * successor_values(G, x.live > 0, teacher.terminal)
        G = torch.where(x.known > 0, x.r - x.log_s + later, bootstrap)
    return squared_residual(x, x.V - G, leak, denominator)


def retrace(student, teacher, weights, denominator=None, *, lam=0.95, gamma=0.99, leak=1.0, **options):
    """Retrace(lambda) in A_p (Munos et al. 2016): soft_q whose target also holds what followed in the text,

        target_t = r_t + gamma (V_(t+1) + c_(t+1) (target_(t+1) - Q_(t+1))),   c = lam min(1, pi / pi_T)

    both renormalised over A_p; c = 0 where a residual is not known. lam 0 is soft_q; the same optimum."""
    x = td_terms(student, teacher, weights, stop_gradient=True, **options)
    trace = torch.where(x.known > 0, lam * (x.log_s - x.r).clamp(max=0).exp(), 0).detach()
    target, Q, correction = torch.zeros_like(x.Q), x.Q.detach(), 0
    for t in reversed(range(Q.size(1))):
        correction = torch.where(teacher.terminal[:, t], 0, correction)     # c (target - Q) of column t + 1
        target[:, t] = x.r[:, t] + gamma * (x.V_next[:, t] + correction)
        correction = trace[:, t] * (target[:, t] - Q[:, t])
    return squared_residual(x, x.Q - target, leak, denominator)


@torch.no_grad()
def soft_returns(student, teacher, gamma=1.0):
    """gamma V(s') of the token taken by a soft tree backup -> (B, T), 0 where the text ends or was cut.

    V(s) = log of the sum over A_p of pi(a|s) exp U(s,a), with the return for the token taken, if it is known,
    and the head for the others: at gamma 1, log P(the student stays in all sets from s on)."""
    live = teacher.mask.any(-1)
    z_K, log_Z, U = map(at_least_float32, (student.z_K, student.log_Z, student.U))
    log_s, U = torch.where(teacher.mask, z_K - log_Z[..., None], MASKED), torch.where(teacher.mask, U, 0)
    taken = teacher.is_taken & (bellman_weights(teacher, live) > 0)[..., None]          # (B, T, K)
    returns, V = torch.zeros_like(log_s[..., 0]), 0
    for t in reversed(range(U.size(1))):
        returns[:, t] = torch.where(teacher.terminal[:, t], 0, gamma * V)
        U[:, t] = torch.where(taken[:, t], returns[:, t, None], U[:, t])
        V = torch.where(live[:, t], torch.logsumexp(log_s[:, t] + U[:, t], dim=-1), 0)
    return returns


def improve(student, teacher, weights, denominator=None, *, beta=1.0, gamma=1.0, leak=1.0, fit=1.0):
    """One step of soft policy improvement on the teacher, for this student; it needs the head U(s,a):

        mean of  topp_forward_kl to pi_T exp(beta U)  +  fit (U(s,a) - soft_returns)^2 where |A_p| > 1

    U falls where the student leaves the sets later: the target moves to those choices that it can go on from.
    Optimum of a student without limits: U = 0, and the teacher in its sets."""
    teacher = teacher._replace(mask=teacher.mask & (weights > 0)[..., None])
    U = torch.where(teacher.mask, at_least_float32(student.U), 0)           # (B, T, K)
    better = teacher._replace(log_probs=teacher.log_probs + beta * U.detach())
    loss, figures = topp_forward_kl(student, better, weights, denominator, leak=leak)
    choice = (bellman_weights(teacher, weights) > 0) & (teacher.mask.sum(-1) > 1)
    error = torch.where(teacher.is_taken, U, 0).sum(-1) - soft_returns(student, teacher, gamma)
    live = torch.where(teacher.mask.any(-1), weights, 0).to(U.dtype)
    square = weighted_mean(torch.where(choice, error, 0) ** 2, live, denominator)
    return loss + fit * square, figures | {"fit": square.detach()}


def cached_terms(model, rows, terminal, p, live=True):
    """A batch of TeacherCache.batch in the columns that are predicted -> StudentTerms, TeacherSets, hidden
    (B, T, C). terminal (B, T) bool; p: mass of the sets, at most that of the cache. Of a vocabulary of LARGE
    ids or more the terms are 0 where live (B, T), bool, is false and there is no set."""
    targets, ids, log_probs = (rows[name][:, 1:] for name in ("tokens", "ids", "log_probs"))
    mask = restrict_to_p(rows["log_probs"], rows["mask"], p)[:, 1:]                            # (B, T, K)
    hidden, heads = model.hidden(rows["tokens"][:, :-1]), getattr(model, "td_heads", None)     # (B, T, C)
    if model.config.n_vocab < LARGE:
        student = student_terms(model.logits(hidden), ids, targets, hidden, heads)
    else:
        live = (rows["real"] & live)[:, 1:] | mask.any(-1)
        terms = head_terms(hidden, model.transformer.wte.weight, ids, targets, live)
        student = StudentTerms(*terms, *(heads(hidden, ids) if heads else ()))
    return student, TeacherSets(log_probs, mask, ids == targets[..., None], terminal[:, 1:]), hidden


def cached_loss(model, rows, weights, terminal, config, objective, denominator):
    """The loss terms of a batch of TeacherCache documents: "hard" on tokens without a set (for "seqkd" all),
    on the others "sets" for "kd" and "improve", "td" for "td" and "td0" (V(s') = 0); the last three need
    model.td_heads. Weights, terminal: (B, T); config: p, leak, alpha, gamma of train.Config."""
    student, teacher, _ = cached_terms(model, rows, terminal, config.p, weights > 0)
    soft, weights = teacher.mask.any(-1) & (objective != "seqkd"), weights[:, 1:]              # (B, T)
    hard, _ = sft_loss(student, weights * ~soft, denominator)
    args = student, teacher, weights * soft, denominator
    if objective in ("td", "td0"):
        options = dict(alpha=config.alpha, gamma=config.gamma if objective == "td" else 0.0, leak=config.leak)
        return {"hard": hard, "td": bellman_distill(*args, expected=True, **options)[0]}
    loss = improve if objective == "improve" else topp_forward_kl
    return {"hard": hard, "sets": loss(*args, leak=config.leak)[0]}


def main(arguments=None):
    """The commands inspect, theory and compare; ValueError for another one."""
    commands = {"inspect": "data.cache_tools", "theory": "course.theory", "compare": "experiments.compare"}
    run_named(commands, arguments, __doc__)


if __name__ == "__main__":
    run_command(main)
