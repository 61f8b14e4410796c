"""The rows of experiments/routes.py: losses on the same cached answers, from the same start.

Shapes: B documents, T tokens of an answer, K tokens of a set. U: the head of td_distill.improve.
"""

from types import SimpleNamespace
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F

import td_distill as td
from data.cache import MASKED


class Row(NamedTuple):
    loss: Callable                  # loss(s) -> scalar; s: see inputs
    heads: bool = True              # the student gets value heads for its training
    longer: int = 1                 # times as many steps
    stop: bool = False              # no gradient from the heads into the trunk


def inputs(model, row, tokens, ids, log_probs):
    """tokens (B, P + T), ids and log_probs (B, T, K) of the answers' sets -> what a loss may ask for."""
    T = ids.size(1)
    hidden, taken, mask = model.hidden(tokens[:, :-1])[:, -T:], tokens[:, -T:], log_probs > MASKED
    student = td.student_terms(model.logits(hidden), ids, taken, hidden.detach() if row.stop else hidden,
                               model.td_heads if row.heads else None)
    terminal = torch.arange(T).expand(len(tokens), T) == T - 1
    teacher = td.TeacherSets(log_probs, mask, mask & (ids == taken[..., None]), terminal)
    choice = (mask.sum(-1) > 1) & teacher.is_taken.any(-1)                                  # (B, T)
    return SimpleNamespace(student=student, teacher=teacher, weights=torch.ones_like(student.z_a), ids=ids,
                           choice=choice)


def leaks(s):
    """The student's leak -log S, (B, T) >= 0."""
    return s.student.log_Z - torch.where(s.teacher.mask, s.student.z_K, MASKED).logsumexp(-1)


def later_leaks(s):
    """What leaks after each token, summed along the teacher's answer (B, T)."""
    outside = leaks(s).detach()
    return outside.flip(1).cumsum(1).flip(1) - outside


def guided(s, U, beta=1.0):
    """KD towards the teacher times exp(beta U), renormalised in its sets; U (B, T, K)."""
    better = s.teacher.log_probs + beta * torch.where(s.teacher.mask, U.detach(), 0)
    return td.topp_forward_kl(s.student, s.teacher._replace(log_probs=better), s.weights)[0]


def fitted(s, error):
    """error(U of the token taken (B, T)) >= 0, the mean over choices, its share of the positions."""
    taken = torch.where(s.teacher.is_taken, s.student.U, 0).sum(-1)
    return td.weighted_mean(torch.where(s.choice, error(taken), 0), s.weights)


def tree(change=None, beta=1.0, gamma=1.0):
    """td_distill.improve, with change(s, U) in place of U as the guide."""
    def loss(s):
        returns = td.soft_returns(s.student, s.teacher, gamma)
        U = s.student.U.detach()
        return guided(s, change(s, U) if change else U, beta) + fitted(s, lambda u: (u - returns) ** 2)
    return loss


def door(s, U):
    """Only the first choice of an answer is guided: a contextual bandit."""
    return F.pad(U[:, :1], (0, 0, 0, U.size(1) - 1))


def shuffled(s, U):
    """The guides of all choices in the batch in random order."""
    guides = U[s.choice]
    return U.masked_scatter(s.choice[..., None], guides[torch.randperm(len(guides))])


def by_class(s, U):
    """The mean of U for each token, whatever the state."""
    ids, sums = s.ids[s.teacher.mask], torch.zeros(2, int(s.ids.max()) + 1)
    sums.index_add_(1, ids, torch.stack([U[s.teacher.mask], torch.ones(len(ids))]))
    return (sums[0] / sums[1].clamp(min=1))[s.ids]


def one_step(s):
    """TD(0): the target of U is the value of the next state by U alone, at every position of the answer."""
    log_s = torch.where(s.teacher.mask, s.student.z_K - s.student.log_Z[..., None] + s.student.U, MASKED)
    live = s.teacher.mask.any(-1)
    after = td.successor_values(log_s.logsumexp(-1).detach(), live, s.teacher.terminal)
    s.choice = s.teacher.is_taken.any(-1)
    return guided(s, s.student.U) + fitted(s, lambda u: (u - after) ** 2)


def mc_weight(s):
    """KD, but at a choice the cross-entropy on the token taken, weighted by exp(-what leaks later)."""
    weights = torch.exp(-later_leaks(s))
    weights = torch.where(s.choice, weights / weights[s.choice].mean(), 1)
    hot = torch.where(s.choice[..., None] & ~s.teacher.is_taken, MASKED, s.teacher.log_probs)
    kl = td.topp_forward_kl(s.student, s.teacher._replace(log_probs=hot), weights, s.weights.sum(), leak=0.0)[0]
    return kl + td.weighted_mean(leaks(s), s.weights)


def mc_head(s):
    """The head as a logit of P(stay) is fitted to exp(-what leaks later) on the teacher's way, no bootstrap."""
    stayed = torch.exp(-later_leaks(s))
    fit = fitted(s, lambda u: F.binary_cross_entropy_with_logits(u, stayed, reduction="none"))
    return guided(s, F.logsigmoid(s.student.U)) + fit


def member(loss, **options):
    """A function of student, teacher and weights -> the loss of a row."""
    return lambda s: loss(s.student, s.teacher, s.weights, **options)[0]


ROWS = {
    "KD": Row(member(td.topp_forward_kl), heads=False),
    "KD leak 3": Row(member(td.topp_forward_kl, leak=3.0), heads=False),
    "KD longer": Row(member(td.topp_forward_kl), heads=False, longer=4),
    "reverse KL": Row(member(td.reverse_kl), heads=False),
    "TD": Row(member(td.improve)),
    "MC weight": Row(mc_weight, heads=False),
    "MC head": Row(mc_head),
    "TD(0)": Row(one_step),
    "door only": Row(tree(door)),
    "gamma 0": Row(tree(gamma=0.0)),
    "beta -1": Row(tree(beta=-1.0)),
    "shuffled": Row(tree(shuffled)),
    "by class": Row(tree(by_class)),
    "stop-gradient": Row(member(td.improve), stop=True),
    "residual": Row(member(td.bellman_distill, alpha=1.0, leak=1.0, expected=True)),
    "stay": Row(member(td.stay)),
}
