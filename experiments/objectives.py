"""The objectives that are compared (experiments/compare.py): each is a row, a loss and what it reads.

Shapes: B documents, T predicted tokens, K teacher tokens kept, C channels, V vocabulary.
"""

import copy
import math
from functools import partial
from types import SimpleNamespace
from typing import Callable, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import td_distill as td
import train
from data.batches import DataMix, Rows
from data.cache import MASKED
from data.sets import restrict_to_p


class Row(NamedTuple):
    source: str                     # "references"; the teacher's answers, "free" or drawn in its "nucleus";
                                    # "own": the student's answers, drawn at every step
    p: float                        # mass of the teacher's sets, at most that of the cache
    loss: Callable                  # loss(s) -> scalar; s: see terms
    control: str = "KD p=.8"        # the row that this one is compared with
    heads: bool = False             # the loss needs v or U of td_distill.TDHeads
    plain: bool = False             # it also reads plain text, and half as much of its source: equal tokens


def terms(model, source, documents, task, p=1.0):
    """What a loss may ask for, in the columns that are predicted: student (StudentTerms), teacher
    (TeacherSets, empty for references), weights (B, T), ids (B, T, K) of sets, hidden (B, T, C), tokens
    (B, T + 1), model. The student has v and U where the model has td_heads."""
    if isinstance(source, Rows):
        given, taken, weights = source.batch(documents, task.weights.numpy())
        tokens = torch.cat([given[:, :1], taken], 1)                                        # (B, T + 1)
        sets = {"ids": tokens[..., None], "mask": torch.zeros(*tokens.shape, 1, dtype=torch.bool),
                "log_probs": torch.full((*tokens.shape, 1), MASKED)}
    else:
        sets = source.batch(documents)
        tokens = sets["tokens"]
        taken, weights = tokens[:, 1:], task.weights[sets["roles"][:, 1:]] * sets["real"][:, 1:]
        if p < source.header["p"]:
            sets["mask"] = restrict_to_p(sets["log_probs"], sets["mask"], p)
    K = int(sets["mask"].sum(-1).max().clamp(min=1))
    ids, log_probs, mask = (sets[name][:, 1:, :K] for name in ("ids", "log_probs", "mask"))     # (B, T, K)
    hidden = model.hidden(tokens[:, :-1])                                                   # (B, T, C)
    heads = getattr(model, "td_heads", None)
    return SimpleNamespace(
        student=td.student_terms(model.logits(hidden), ids, taken, hidden, heads), weights=weights, ids=ids,
        teacher=td.TeacherSets(log_probs, mask, ids == taken[..., None], taken == task.stop), hidden=hidden,
        tokens=tokens, model=model, task=task, documents=documents)


def learn(name, model, tokens, config, row, task, folder=None):
    """train.fit with the source and the loss of a row, which returns the same; folder: keeps the model."""
    def loss(model, source, batch, *_):
        inputs = own_answers if row.source == "own" else partial(terms, p=row.p)
        return {"loss": row.loss(inputs(model, source, batch.documents, task))}
    if row.heads:
        td.add_heads(model, config.seed)
    mix, n = DataMix([task.sources[row.source]], [1.0]), 2 if row.plain else 1
    losses, curve, seen = train.fit(name, model, mix, tokens // n, config, folder, loss=loss)
    if folder:
        model.save(folder)
        (folder / "training.pt").unlink(missing_ok=True)
    return losses, curve, n * seen


def sft(s):
    return td.sft_loss(s.student, s.weights)[0]


def with_options(loss, **options):
    """A function of student, teacher and weights -> the loss of a row."""
    return lambda s: loss(s.student, s.teacher, s.weights, **options)[0]


kl = partial(with_options, td.topp_forward_kl)
bd = partial(with_options, td.bellman_distill, leak=1.0, alpha=10.0)


def cloning(s):
    """Bellman Distill without its square, with a leak of 1."""
    x = td.td_terms(s.student, s.teacher, s.weights)
    return td.weighted_mean(x.leak - x.log_s, x.known)


def published(s, dense=None):
    """Bellman Distill with the published gauge and alpha, logits clipped at -10. dense: with the published
    loss on plain text as well, here as many references: language modelling, and in part `dense` KD to all of
    the teacher's distribution (0 in the paper, .5 in the authors' script). None: without it."""
    student = s.student._replace(z_K=s.student.z_K.clamp(min=-10.0), v=s.student.log_Z)
    loss, _ = td.bellman_distill(student, s.teacher, s.weights)
    if dense is None:
        return loss
    source = s.task.sources["references"]
    plain = terms(s.model, source, np.asarray(s.documents) % len(source), s.task)
    loss = loss + (1 - dense) * sft(plain)
    if dense:
        with torch.no_grad():
            log_t = s.task.teacher(plain.tokens[:, :-1]).log_softmax(-1)                    # (B, T, V)
        log_s = s.model.logits(plain.hidden).log_softmax(-1)
        loss = loss + dense * td.weighted_mean((log_t.exp() * (log_t - log_s)).sum(-1), plain.weights)
    return loss


def slow_values(s, rate=0.02):
    """V(s) (B, T) of a slow copy of the model, a target network, which follows it by `rate` a step."""
    if "slow" not in s.model.__dict__:
        s.model.__dict__["slow"] = copy.deepcopy(s.model)           # no parameter of the model itself
    slow = s.model.__dict__["slow"]
    with torch.no_grad():
        for old, new in zip(slow.parameters(), s.model.parameters()):
            old.lerp_(new, rate)
        hidden = slow.hidden(s.tokens[:, :-1])
        student = td.student_terms(slow.logits(hidden), s.ids, s.tokens[:, 1:], hidden, slow.td_heads)
        return td.td_terms(student, s.teacher, s.weights).V


def soft_q_target(s):
    return td.soft_q(s.student, s.teacher, s.weights, target_values=slow_values(s))[0]


def to_teacher(leak, gamma=0.99):
    """Cross-entropy to the sets, the squared difference / 4 between the student's residual and that of the
    teacher, Q_T(s,a) - gamma V_T(s') with Q_T = log_probs, and a leak. Both residuals with v = 0."""
    def loss(s):
        teachers = td.StudentTerms(s.teacher.log_probs, None, torch.zeros_like(s.weights))
        own, wanted = (td.td_terms(student, s.teacher, s.weights)
                       for student in (s.student._replace(v=None), teachers))
        apart = own.Q - gamma * own.V_next - (wanted.Q - gamma * wanted.V_next)             # (B, T)
        square = torch.where(own.known > 0, apart, 0) ** 2 / 4
        return td.weighted_mean(own.cross_entropy + square + leak * own.leak, own.live)
    return loss


def prize(s):
    """An entry for the prize of course/9-prize.md: KD with a leak of 3, and the Bellman residual around the
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


def gkd(s):
    """GKD (Agarwal et al. 2024): Jensen-Shannon divergence over the whole vocabulary; s: see own_answers."""
    log_s = s.z.log_softmax(-1)                                                             # (B, T, V)
    log_m = torch.logaddexp(s.log_t, log_s) - math.log(2)
    jsd = (s.log_t.exp() * (s.log_t - log_m) + log_s.exp() * (log_s - log_m)).sum(-1) / 2
    return td.weighted_mean(jsd, s.weights)


OBJECTIVES = {
    "SFT": Row("references", 1.0, sft),
    "SeqKD": Row("free", 0.8, sft),
    "SeqKD in p": Row("nucleus", 0.8, sft),
    "KD p=1": Row("free", 1.0, kl()),
    "KD p=.8": Row("free", 0.8, kl()),
    "KD in p": Row("nucleus", 0.8, kl()),
    "KD 3 in p": Row("nucleus", 0.8, kl(leak=3.0), "KD in p"),
    "KD leak 3": Row("free", 0.8, kl(leak=3.0)),
    "reverse KL": Row("free", 0.8, with_options(td.reverse_kl)),
    "cloning": Row("free", 0.8, cloning),
    "BD without LM": Row("free", 0.8, published, "cloning"),
    "BD + LM": Row("free", 0.8, partial(published, dense=0.0), "cloning", plain=True),
    "BD + LM + dense KD": Row("free", 0.8, partial(published, dense=0.5), "BD + LM", plain=True),
    "BD": Row("free", 0.8, bd(), "cloning", heads=True),
    "BD v=0": Row("free", 0.8, bd(), "cloning"),
    "KD + residual": Row("free", 0.8, bd(expected=True), heads=True),
    "soft Q": Row("free", 0.8, with_options(td.soft_q), heads=True),
    "TD target net": Row("free", 0.8, soft_q_target, "soft Q", heads=True),
    "stay": Row("free", 0.8, with_options(td.stay), heads=True),
    "path 4": Row("free", 0.8, with_options(td.path_consistency, steps=4), heads=True),
    "retrace": Row("free", 0.8, with_options(td.retrace), heads=True),
    "LS-IQ": Row("free", 0.8, with_options(td.ls_iq, alpha=10.0, leak=1.0), "cloning", heads=True),
    "improve": Row("free", 0.8, with_options(td.improve), heads=True),
    "prize": Row("free", 0.8, prize, "KD leak 3"),
    "GKD": Row("own", 1.0, gkd),
}
