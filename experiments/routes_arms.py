"""The rows of experiments/routes.py: losses on the same cached answers, from the same start.

U (B, T, K), the head of td_distill.improve: for each token of a set log P(the student stays in all sets after
it). Shapes: B documents, T tokens of an answer, K tokens of a set.
"""

from functools import partial
from types import SimpleNamespace
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F

import td_distill as td
from data.cache import MASKED
from experiments.objectives import with_options


class Row(NamedTuple):
    loss: Callable                  # loss(s) -> scalar; s: see inputs
    heads: bool = True              # the student gets value heads for its training
    longer: int = 1                 # times as many steps
    stop: bool = False              # no gradient goes from the heads into the trunk


def inputs(model, row, tokens, ids, log_probs):
    """tokens (B, P + T) of documents, ids and log_probs (B, T, K) of the answers' sets -> terms of a loss.
    choice (B, T): the set has more than one token, and holds the one taken; leak (B, T): -log P(set);
    later (B, T): its sum over what follows, so exp(-later) = P(stay in all later sets)."""
    T = ids.size(1)
    hidden, taken, mask = model.hidden(tokens[:, :-1])[:, -T:], tokens[:, -T:], log_probs > MASKED
    student = td.student_terms(model.logits(hidden), ids, taken, hidden.detach() if row.stop else hidden,
                               model.td_heads if row.heads else None)
    is_taken, terminal = mask & (ids == taken[..., None]), (torch.arange(T) == T - 1).expand(taken.shape)
    leak = student.log_Z - torch.where(mask, student.z_K, MASKED).logsumexp(-1)                # (B, T)
    return SimpleNamespace(
        student=student, teacher=td.TeacherSets(log_probs, mask, is_taken, terminal), ids=ids, leak=leak,
        weights=torch.ones_like(leak), choice=(mask.sum(-1) > 1) & is_taken.any(-1),
        later=(leak.flip(1).cumsum(1).flip(1) - leak).detach())


def guided(s, guide, error, beta=1.0):
    """KD to the teacher times exp(beta guide), guide (B, T, K); at choices plus error(U of the taken)."""
    better = s.teacher.log_probs + beta * torch.where(s.teacher.mask, guide.detach(), 0)
    kl = td.topp_forward_kl(s.student, s.teacher._replace(log_probs=better), s.weights)[0]
    u = torch.where(s.teacher.is_taken, s.student.U, 0).sum(-1)                                # (B, T)
    return kl + td.weighted_mean(torch.where(s.choice, error(u), 0), s.weights)


def tree(s, change=lambda s, U: U, beta=1.0, gamma=1.0):
    """td_distill.improve, guided by change(s, U) in place of U."""
    returns = td.soft_returns(s.student, s.teacher, gamma)
    return guided(s, change(s, s.student.U.detach()), lambda u: (u - returns) ** 2, beta)


def shuffled(s, U):
    """The guides of all choices in the batch, in random order."""
    guides = U[s.choice]
    return U.masked_scatter(s.choice[..., None], guides[torch.randperm(len(guides))])


def by_class(s, U):
    """The mean of U over the batch for each token, whatever the state."""
    ids, sums = s.ids[s.teacher.mask], torch.zeros(2, int(s.ids.max()) + 1)
    sums.index_add_(1, ids, torch.stack([U[s.teacher.mask], torch.ones(len(ids))]))
    return (sums[0] / sums[1].clamp(min=1))[s.ids]


def one_step(s):
    """TD(0): U(s, a) is fitted to V(s') = log of the sum of pi exp(U), at every token of the answer."""
    log_s = s.student.z_K - s.student.log_Z[..., None] + s.student.U.detach()
    V = torch.where(s.teacher.mask, log_s, MASKED).logsumexp(-1).detach()
    after = td.successor_values(V, s.teacher.mask.any(-1), s.teacher.terminal)
    s.choice = s.teacher.is_taken.any(-1)
    return guided(s, s.student.U, lambda u: (u - after) ** 2)


def mc_weight(s):
    """KD, but at a choice cross-entropy on the token taken, times P(stay on the teacher's way) / its mean."""
    weights = torch.exp(-s.later)
    weights = torch.where(s.choice, weights / weights[s.choice].mean(), 1)
    hot = torch.where(s.choice[..., None] & ~s.teacher.is_taken, MASKED, s.teacher.log_probs)
    terms = s.student, s.teacher._replace(log_probs=hot), weights, s.weights.sum()
    return td.topp_forward_kl(*terms, leak=0.0)[0] + s.leak.mean()


def mc_head(s):
    """U as the logit of P(stay on the teacher's way), without bootstrap; the guide is its logarithm."""
    stay = torch.exp(-s.later)
    return guided(s, F.logsigmoid(s.student.U),
                  lambda u: F.binary_cross_entropy_with_logits(u, stay, reduction="none"))


ROWS = {
    "KD": Row(with_options(td.topp_forward_kl), heads=False),  # the baseline of all
    "KD leak 3": Row(with_options(td.topp_forward_kl, leak=3.0), heads=False),  # is a heavier leak enough?
    "KD longer": Row(with_options(td.topp_forward_kl), heads=False, longer=4),  # are more steps enough?
    "reverse KL": Row(with_options(td.reverse_kl), heads=False),  # may it leave out tokens?
    "TD": Row(with_options(td.improve)),  # the arm `improve` of train.py
    "MC weight": Row(mc_weight, heads=False),                       # returns without a head
    "MC head": Row(mc_head),                                        # a head without bootstrap
    "TD(0)": Row(one_step),                                         # one step in place of long returns
    "door only": Row(partial(tree, change=lambda s, U: F.pad(U[:, :1], (0, 0, 0, U.size(1) - 1)))),
    "gamma 0": Row(partial(tree, gamma=0.0)),                       # no future
    "beta -1": Row(partial(tree, beta=-1.0)),                       # the wrong way
    "shuffled": Row(partial(tree, change=shuffled)),                # the U of other places
    "by class": Row(partial(tree, change=by_class)),                # no state
    "stop-gradient": Row(with_options(td.improve), stop=True),  # must U shape the trunk?
    "residual": Row(with_options(td.bellman_distill, alpha=1.0, leak=1.0, expected=True)),
    "stay": Row(with_options(td.stay)),
    "stay v=0": Row(with_options(td.stay), heads=False),  # V(s) = -leak
    "soft Q v=0": Row(with_options(td.soft_q), heads=False),
}
