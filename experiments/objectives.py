"""The objectives that are compared (experiments/compare.py): each is a row, a loss and what it reads.

Shapes: B documents, T predicted tokens, K teacher tokens kept, C channels, V vocabulary.
"""

from functools import partial
from types import SimpleNamespace
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

import td_distill as td
import train
from data.batches import DataMix, Rows
from data.cache import MASKED
from experiments.losses import bellman_variant, charge, sampled_sets, topp_jsd


class Row(NamedTuple):
    source: str                     # "references"; the teacher's answers, "free" or drawn in its "nucleus";
                                    # "own": the student's answers, drawn at every step
    p: float                        # mass of the teacher's sets
    loss: Callable                  # loss(s) -> scalar; s: see terms
    control: str = "KD p=.8"        # the row that this one is compared with


def terms(model, source, documents, task):
    """What a loss may ask for, in the columns that are predicted: student (StudentTerms), teacher
    (TeacherSets, empty for references), weights (B, T), ids (B, T, K) of sets, hidden (B, T, C); model."""
    if isinstance(source, Rows):
        given, taken, weights = source.batch(documents, task.weights.numpy())
        tokens = torch.cat([given[:, :1], taken], 1)                                        # (B, T + 1)
        sets = {"ids": tokens[..., None], "mask": torch.zeros(*tokens.shape, 1, dtype=torch.bool),
                "log_probs": torch.full((*tokens.shape, 1), MASKED)}
    else:
        sets = source.batch(documents)
        tokens = sets["tokens"]
        taken, weights = tokens[:, 1:], task.weights[sets["roles"][:, 1:]] * sets["real"][:, 1:]
    ids, log_probs, mask = (sets[name][:, 1:] for name in ("ids", "log_probs", "mask"))     # (B, T, K)
    hidden = model.hidden(tokens[:, :-1])                                                   # (B, T, C)
    return SimpleNamespace(
        student=td.student_terms(model.logits(hidden), ids, taken), weights=weights, ids=ids, hidden=hidden,
        teacher=td.TeacherSets(log_probs, mask, ids == taken[..., None], taken == task.stop), model=model)


def learn(name, model, tokens, config, row, task):
    """train.fit with the source and the loss of a row -> Fitted."""
    def loss(model, source, batch, *_):
        inputs = own_answers if row.source == "own" else terms
        return {"loss": row.loss(inputs(model, source, batch.documents, task))}
    source = task.sources[row.source, row.p]
    return train.fit(name, model, DataMix([source], [1.0]), tokens, config, loss=loss)


def sft(s):
    return td.sft_loss(s.student, s.weights)[0]


def with_options(loss, **options):
    """A function of student, teacher and weights -> the loss of a row."""
    return lambda s: loss(s.student, s.teacher, s.weights, **options)[0]


kl, bd = partial(with_options, td.topp_forward_kl), partial(with_options, td.bellman_distill)
stable = partial(bd, leak=1.0, alpha=10.0, gauge="log_softmax")
variant = partial(with_options, bellman_variant, leak=1.0, gauge="log_softmax")
to_teacher = partial(variant, cost=partial(charge, alpha=1.0, phi="chi2"), toward="teacher", expected=True)


def published(lm=0.0):
    """Bellman Distill as published: logits are clipped at -10, and a next-token loss is added, there on
    pretraining text, here with the factor lm on the teacher's tokens."""
    def loss(s):
        student = s.student._replace(z_K=s.student.z_K.clamp(min=-10.0), z_a=s.student.z_a.clamp(min=-10.0))
        return td.bellman_distill(student, s.teacher, s.weights)[0] + (lm * sft(s) if lm else 0)
    return loss


def sampled(n):
    """Forward KL on n draws of the whole teacher: unbiased, and about as sparse as a top-p set."""
    def loss(s):
        found = sampled_sets(s.teacher.log_probs.flatten(0, 1), n)                          # (B * T, n)
        drawn, log_q, mask = (x.unflatten(0, s.weights.shape) for x in found)               # (B, T, n)
        student = s.student._replace(z_K=s.student.z_K.gather(-1, drawn))
        teacher = td.TeacherSets(log_q, mask & s.teacher.mask.any(-1, keepdim=True))
        return td.topp_forward_kl(student, teacher, s.weights)[0]
    return loss


def leaks(s):
    """The student's leak log_Z - V_p, (B, T), 0 where there is no set."""
    V_p = torch.where(s.teacher.mask, s.student.z_K, MASKED).logsumexp(-1)
    return torch.where(s.teacher.mask.any(-1), s.student.log_Z - V_p, 0)


def to_come(leak, gamma=0.95):
    """KD with a leak that weighs more where more tokens follow, which a leak would spoil: 1 - gamma^n for n
    tokens, divided by its mean over the batch."""
    def loss(s):
        live = s.teacher.mask.any(-1)                                                       # (B, T)
        ahead = 1 - gamma ** live.flip(1).cumsum(1).flip(1)                 # this token is one of the n
        ahead = ahead / td.weighted_mean(ahead, s.weights * live)
        return kl(leak=0.0)(s) + leak * td.weighted_mean(ahead * leaks(s), s.weights * live)
    return loss


class LookAhead:
    """U(s, a): the student's own discounted log mass inside the sets after token a, a linear function of its
    hidden state at s. Fitted on the cached answers by Adam beside the student, without a gradient into it."""

    def __init__(self, channels, n_vocab, gamma):
        self.weight, self.bias, self.gamma = torch.zeros(n_vocab, channels), torch.zeros(n_vocab), gamma
        self.adam = torch.optim.Adam([self.weight.requires_grad_(), self.bias.requires_grad_()], lr=0.003)

    def fit(self, s, outside):
        """One step towards what came after the tokens taken; outside (B, T) >= 0, 0 where there is no set."""
        ahead, column = torch.zeros_like(outside), torch.zeros(len(outside))
        for t in range(outside.size(1) - 2, -1, -1):
            column = self.gamma * column - outside[:, t + 1]
            ahead[:, t] = column
        error = (self.values(s) - ahead[..., None])[s.teacher.is_taken & s.teacher.mask]
        self.adam.zero_grad()
        error.square().mean().backward()
        self.adam.step()

    def values(self, s):
        """U (B, T, K) for the tokens of the sets."""
        return (F.linear(s.hidden.detach().float(), self.weight) + self.bias).gather(-1, s.ids)


def improve(beta, control=None, leak=3.0, gamma=0.95):
    """KD towards an improved teacher, q exp(beta A) on its own set: one step of soft policy improvement for
    the student, A the advantage of U (see LookAhead), at most 3 standard deviations. control: "shuffled", the
    A of other positions with sets of the same size; "class", a mean A for every token."""
    def loss(s):
        mask, V = s.teacher.mask, s.model.config.n_vocab
        head = s.model.__dict__.setdefault("look_ahead", LookAhead(s.hidden.size(-1), V, gamma))
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            head.fit(s, leaks(s).detach())
        with torch.no_grad():
            log_q = torch.where(mask, s.teacher.log_probs, MASKED).log_softmax(-1)          # (B, T, K)
            U = torch.where(mask, head.values(s), 0)
            A = torch.where(mask, U - (log_q.exp() * U).sum(-1, keepdim=True), 0)
            A = (A / A[mask].std().clamp(min=1e-6)).clamp(-3, 3)
            if control == "shuffled":
                sizes = mask.sum(-1)                                                        # (B, T)
                for size in sizes.unique().tolist():
                    at = (sizes == size).nonzero(as_tuple=True)
                    A[at] = A[at][torch.randperm(len(at[0]))]
            elif control == "class":
                sums, counts = s.model.__dict__.setdefault("classes", torch.zeros(2, V))
                sums.mul_(0.99).index_add_(0, s.ids[mask], A[mask])
                counts.mul_(0.99).index_add_(0, s.ids[mask], torch.ones(int(mask.sum())))
                A = (sums / counts.clamp(min=1e-6))[s.ids] * mask
            target = torch.where(mask, (log_q + beta * A).log_softmax(-1), MASKED)
        return td.topp_forward_kl(s.student, s.teacher._replace(log_probs=target), s.weights, leak=leak)[0]
    return loss


def prize(s):
    """An entry for the prize of course/8-prize.md: KD with a leak of 3, and the Bellman residual around the
    teacher's own reward, which is 0 for the teacher itself; s: see terms. Control: "KD leak 3"."""
    return to_teacher(leak=3.0)(s)


def own_answers(model, source, documents, task):
    """The student answers the prompts of these documents at T = 1, and the teacher scores its tokens -> z,
    log_t (B, T, V), weights (B, T): on-policy distillation, computed anew at every step."""
    batch = source.batch(documents)
    starts = (batch["real"] & ~batch["mask"].any(-1)).sum(1).tolist()       # of answers: prompts have no sets
    prompts = [row[:n] for row, n in zip(batch["tokens"].tolist(), starts)]
    rows = [p + a for p, a in zip(prompts, model.generate(prompts, task.max_new, stop=task.stop))]
    tokens = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)            # (B, T + 1)
    drawn = pad_sequence([torch.arange(len(row)) >= n for row, n in zip(rows, starts)], batch_first=True)
    with torch.no_grad():
        log_t = task.teacher(tokens[:, :-1]).log_softmax(-1)                                # (B, T, V)
    return SimpleNamespace(z=model(tokens[:, :-1]), log_t=log_t, weights=drawn[:, 1:].float())


def gkd(beta):
    """GKD (Agarwal et al. 2024): Jensen-Shannon divergence over the whole vocabulary; beta 1: reverse KL."""
    def loss(s):
        teacher = td.TeacherSets(s.log_t, torch.ones_like(s.log_t, dtype=torch.bool))
        return topp_jsd(td.StudentTerms(s.z, None, s.z.logsumexp(-1)), teacher, s.weights, beta=beta)[0]
    return loss


OBJECTIVES = {
    "SFT": Row("references", 1.0, sft),
    "SeqKD": Row("free", 0.8, sft),
    "SeqKD in p": Row("nucleus", 0.8, sft),
    "KD p=1": Row("free", 1.0, kl()),
    "KD p=.95": Row("free", 0.95, kl()),
    "KD p=.8": Row("free", 0.8, kl()),
    "KD in p": Row("nucleus", 0.8, kl()),
    "KD 3 in p": Row("nucleus", 0.8, kl(leak=3.0), "KD in p"),
    "KD bucket": Row("free", 0.8, kl(tail="bucket")),
    "KD sampled": Row("free", 1.0, sampled(12), "KD p=1"),
    "KD leak 2": Row("free", 0.8, kl(leak=2.0)),
    "KD leak 3": Row("free", 0.8, kl(leak=3.0)),
    "KD to come": Row("free", 0.8, to_come(3.0), "KD leak 3"),
    "reverse KL": Row("free", 0.8, with_options(td.reverse_kl)),
    "JSD": Row("free", 0.8, with_options(topp_jsd, beta=0.5, leak=1.0)),
    "cloning": Row("free", 0.8, variant(cost=torch.zeros_like, gauge="raw")),
    "BD published": Row("free", 0.8, published(), "cloning"),
    "BD + LM": Row("free", 0.8, published(lm=1.0), "cloning"),
    "BD alpha .1": Row("free", 0.8, bd(leak=1.0), "cloning"),
    "BD": Row("free", 0.8, stable(), "cloning"),
    "BD p=1": Row("free", 1.0, stable(), "BD"),
    "BD raw": Row("free", 0.8, bd(leak=1.0, alpha=10.0), "cloning"),
    "BD alpha 1": Row("free", 0.8, stable(alpha=1.0), "cloning"),
    "KD + residual": Row("free", 0.8, stable(expected=True)),
    "KD + residual 1": Row("free", 0.8, stable(alpha=1.0, expected=True)),
    "BD to teacher": Row("free", 0.8, to_teacher()),
    "BD kl": Row("free", 0.8, variant(cost=partial(charge, alpha=10.0, phi="kl")), "cloning"),
    "BD js": Row("free", 0.8, variant(cost=partial(charge, alpha=10.0, phi="js")), "cloning"),
    "BD hellinger": Row("free", 0.8, variant(cost=partial(charge, alpha=10.0, phi="hellinger")), "cloning"),
    "KD 3 + residual": Row("free", 0.8, stable(leak=3.0, expected=True), "KD leak 3"),
    "KD 3 in p + residual": Row("nucleus", 0.8, stable(leak=3.0, expected=True), "KD 3 in p"),
    "BD in p": Row("nucleus", 0.8, stable(leak=3.0), "KD 3 in p"),
    "improve": Row("free", 0.8, improve(0.5), "KD leak 3"),
    "improve shuffled": Row("free", 0.8, improve(0.5, "shuffled"), "improve"),
    "improve class": Row("free", 0.8, improve(0.5, "class"), "improve"),
    "improve back": Row("free", 0.8, improve(-0.5), "KD leak 3"),
    "prize": Row("free", 0.8, prize, "KD leak 3"),
    "GKD": Row("own", 1.0, gkd(0.5)),
    "GKD reverse": Row("own", 1.0, gkd(1.0)),
}
