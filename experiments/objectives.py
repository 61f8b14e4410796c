"""The objectives that are compared (course/compare.py): each is one line of a table, a loss of td_distill.py and what it reads.

Shapes: B documents, T predicted tokens, K teacher tokens kept, C channels, V vocabulary.
"""

from types import SimpleNamespace
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F

import td_distill as td
import train
from data import reads
from data.cache import MASKED
from data.batches import Rows
from model import GPT


class Row(NamedTuple):
    source: str                     # "references"; the teacher's answers, "free" draws or "nucleus" draws inside p; or the
                                    # student's "own", drawn at every step
    p: float                        # mass of the teacher's sets
    loss: Callable                  # loss(s) -> scalar; s: see terms
    control: str = "KD p=.8"        # the row that this one is set against


def terms(model, source, documents, task):
    """What a loss may ask for, in the columns that are predicted: z_K (B, T, K), z_a, log_Z, weights, terminal (B, T),
    ids, log_probs, mask, is_taken (B, T, K), hidden (B, T, C); tokens (B, T + 1), lengths of prompts, and the model itself.

    References have no sets: K is 1, and the mask is empty."""
    if isinstance(source, Rows):
        given, taken, weights = source.batch(documents, task.weights.numpy())
        tokens = torch.cat([given[:, :1], taken], 1)
        sets = {"ids": tokens[..., None], "mask": torch.zeros(*tokens.shape, 1, dtype=torch.bool),
                "log_probs": torch.full((*tokens.shape, 1), MASKED)}
    else:
        sets = source.batch(documents)
        tokens = sets["tokens"]
        taken, weights = tokens[:, 1:], task.weights[sets["roles"][:, 1:]] * sets["real"][:, 1:]
    ids, log_probs, mask = (sets[name][:, 1:] for name in ("ids", "log_probs", "mask"))              # (B, T, K)
    hidden = model.hidden(tokens[:, :-1])                                                            # (B, T, C)
    z_K, z_a, log_Z = td.student_terms(model.logits(hidden), ids, taken)
    return SimpleNamespace(z_K=z_K, z_a=z_a, log_Z=log_Z, ids=ids, log_probs=log_probs, mask=mask, weights=weights,
                           is_taken=ids == taken[..., None], terminal=taken == task.stop, hidden=hidden, model=model)


# ---------------------------------------------------------------------------------------------------------------
# The losses of td_distill.py


def sft(s):
    return td.sft_loss(s.z_a, s.log_Z, s.weights)[0]


def kl(**options):
    """Forward KL; options of topp_forward_kl."""
    return lambda s: td.topp_forward_kl(s.z_K, s.log_Z, s.log_probs, s.mask, s.weights, **options)[0]


def jsd(beta, **options):
    """From forward to reverse KL; options of topp_jsd."""
    return lambda s: td.topp_jsd(s.z_K, s.log_Z, s.log_probs, s.mask, s.weights, beta=beta, **options)[0]


def bd(floor=-torch.inf, lm=0.0, **options):
    """Bellman Distill; options of bellman_distill. As published, logits are clipped at a floor of -10, and a next-token
    loss is added, there on pretraining text, here with the factor lm on the teacher's tokens."""
    def loss(s):
        z_K, z_a = s.z_K.clamp(min=floor), s.z_a.clamp(min=floor)
        step = s.log_probs, s.mask, s.is_taken, s.terminal, s.weights
        return td.bellman_distill(z_K, z_a, s.log_Z, *step, **options)[0] + (lm * sft(s) if lm else 0)
    return loss


def sampled(n):
    """Forward KL on n draws of the whole teacher: unbiased, and about as sparse as a top-p set."""
    def loss(s):
        drawn, log_q, mask = (x.unflatten(0, s.mask.shape[:2]) for x in reads.sampled_sets(s.log_probs.flatten(0, 1), n))
        return td.topp_forward_kl(s.z_K.gather(-1, drawn), s.log_Z, log_q, mask & s.mask.any(-1, keepdim=True), s.weights)[0]
    return loss


# ---------------------------------------------------------------------------------------------------------------
# Two objectives that look ahead: where the student's mass leaks out of the sets later on, is it worth avoiding now?


def to_come(leak, gamma=0.95):
    """KD with a leak that weighs more where more tokens are still to come, which a leak would spoil: 1 - gamma^n of them,
    divided by its mean over the batch."""
    def loss(s):
        live = s.mask.any(-1)                                                                        # (B, T)
        n = live.flip(1).cumsum(1).flip(1)                                       # tokens of the answer, this one included
        ahead = 1 - gamma ** n
        ahead = ahead / td.weighted_mean(ahead, s.weights * live)
        inside = td.topp_forward_kl(s.z_K, s.log_Z, s.log_probs, s.mask, s.weights, leak=0.0)[0]
        outside = s.log_Z - torch.where(s.mask, s.z_K, MASKED).logsumexp(-1)                         # (B, T)
        return inside + leak * td.weighted_mean(ahead * outside, s.weights * live)
    return loss


class LookAhead:
    """U(s, a): the student's own discounted log mass inside the sets after token a, as a linear function of its hidden
    state at s, fitted on the cached answers by Adam beside the student and without a gradient into it."""

    def __init__(self, channels, n_vocab, gamma):
        self.weight = torch.zeros(n_vocab, channels, requires_grad=True)                             # (V, C)
        self.bias = torch.zeros(n_vocab, requires_grad=True)                                         # (V,)
        self.adam, self.gamma = torch.optim.Adam([self.weight, self.bias], lr=0.003), gamma

    def fit(self, s, outside):
        """One step towards what came after the tokens taken; outside (B, T) >= 0, 0 where there is no set."""
        ahead, column = torch.zeros_like(outside), torch.zeros(len(outside))
        for t in range(outside.size(1) - 2, -1, -1):
            column = self.gamma * column - outside[:, t + 1]
            ahead[:, t] = column
        is_taken = s.is_taken & s.mask
        error = (self.of(s) - ahead[..., None])[is_taken]
        loss = error.square().mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def of(self, s):
        """(B, T, K) for the tokens of the sets."""
        return (F.linear(s.hidden.detach().float(), self.weight) + self.bias).gather(-1, s.ids)


def improve(beta, leak=3.0, gamma=0.95, control=None):
    """KD towards an improved teacher, q exp(beta A) on its own set: one step of soft policy improvement for the student,
    A the advantage of U (see LookAhead), at most 3 standard deviations.

    control: what else U could be helping by. "shuffled": the advantages of other positions with sets of the same size
    in another order. "class": a mean advantage for every token, the same in all states."""
    def loss(s):
        head = s.model.__dict__.setdefault("look_ahead", LookAhead(s.hidden.size(-1), s.model.config.n_vocab, gamma))
        outside = torch.where(s.mask.any(-1), s.log_Z - torch.where(s.mask, s.z_K, MASKED).logsumexp(-1), 0).detach()
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            head.fit(s, outside)
        with torch.no_grad():
            log_q = torch.where(s.mask, s.log_probs, MASKED).log_softmax(-1)                         # (B, T, K)
            U = torch.where(s.mask, head.of(s), 0)
            A = torch.where(s.mask, U - (log_q.exp() * U).sum(-1, keepdim=True), 0)
            A = (A / A[s.mask].std().clamp(min=1e-6)).clamp(-3, 3)
            if control == "shuffled":
                sizes = s.mask.sum(-1)                                                               # (B, T)
                for size in sizes.unique().tolist():
                    at = (sizes == size).nonzero(as_tuple=True)
                    A[at] = A[at][torch.randperm(len(at[0]))]
            elif control == "class":
                sums, counts = s.model.__dict__.setdefault("classes", torch.zeros(2, s.model.config.n_vocab))
                sums.mul_(0.99).index_add_(0, s.ids[s.mask], A[s.mask])
                counts.mul_(0.99).index_add_(0, s.ids[s.mask], torch.ones(int(s.mask.sum())))
                A = (sums / counts.clamp(min=1e-6))[s.ids] * s.mask
            target = torch.where(s.mask, (log_q + beta * A).log_softmax(-1), MASKED)
        return td.topp_forward_kl(s.z_K, s.log_Z, target, s.mask, s.weights, leak=leak)[0]
    return loss


def prize(s):
    """KD with a leak of 3 and a term of temporal difference: an entry for the prize of course/8-prize.md.

    s: what `terms` returns -> scalar. Here the term is the Bellman residual around the teacher's own reward, which is 0 for the
    teacher itself, with V_p(s') of the student's next column. Its control, "KD leak 3", is the same without the residual.
    """
    return bd(leak=3.0, expected=True, toward="teacher", gauge="log_softmax", alpha=1.0)(s)


# ---------------------------------------------------------------------------------------------------------------
# On-policy distillation (GKD, Agarwal et al. 2024): the student answers, the teacher says what it would have said


def own_answers(model, source, documents, task):
    """The student answers the prompts of these documents, T = 1 -> what gkd wants: z, log_t (B, T, V), weights (B, T).

    Everything anew at every step, as the student has changed: the draws, the teacher's pass, the student's pass."""
    batch = source.batch(documents)
    lengths = (batch["real"] & ~batch["mask"].any(-1)).sum(1).tolist()                # of the prompts, which have no sets
    prompts = [row[:n] for row, n in zip(batch["tokens"].tolist(), lengths)]
    answers = model.generate(prompts, task.max_new, stop=task.stop)
    width = max(len(p) + len(a) for p, a in zip(prompts, answers))
    tokens, weights = torch.zeros(len(prompts), width, dtype=torch.long), torch.zeros(len(prompts), width)
    for b, (p, a) in enumerate(zip(prompts, answers)):
        tokens[b, :len(p) + len(a)] = torch.tensor(p + a)
        weights[b, len(p):len(p) + len(a)] = 1
    with torch.no_grad():
        log_t = task.teacher.logits(task.teacher.hidden(tokens[:, :-1])).log_softmax(-1)             # (B, T, V)
    return SimpleNamespace(z=model.logits(model.hidden(tokens[:, :-1])), log_t=log_t, weights=weights[:, 1:])


def gkd(beta):
    """Generalised Jensen-Shannon divergence over the whole vocabulary; 1 is the reverse KL of MiniLLM, a position."""
    def loss(s):
        everything = torch.ones_like(s.log_t, dtype=torch.bool)
        return td.topp_jsd(s.z, s.z.logsumexp(-1), s.log_t, everything, s.weights, beta=beta)[0]
    return loss


STABLE = dict(alpha=10.0, gauge="log_softmax")
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
    "reverse KL": Row("free", 0.8, jsd(1.0, leak=1.0)),
    "JSD": Row("free", 0.8, jsd(0.5, leak=1.0)),
    "cloning": Row("free", 0.8, bd(phi="linear", leak=1.0)),
    "BD published": Row("free", 0.8, bd(floor=-10.0), "cloning"),
    "BD + LM": Row("free", 0.8, bd(floor=-10.0, lm=1.0), "cloning"),
    "BD alpha .1": Row("free", 0.8, bd(leak=1.0), "cloning"),
    "BD": Row("free", 0.8, bd(leak=1.0, **STABLE), "cloning"),
    "BD p=1": Row("free", 1.0, bd(leak=1.0, **STABLE), "BD"),
    "BD raw": Row("free", 0.8, bd(leak=1.0, alpha=10.0), "cloning"),
    "BD alpha 1": Row("free", 0.8, bd(leak=1.0, alpha=1.0, gauge="log_softmax"), "cloning"),
    "KD + residual": Row("free", 0.8, bd(leak=1.0, expected=True, **STABLE), "KD p=.8"),
    "KD + residual 1": Row("free", 0.8, bd(leak=1.0, expected=True, alpha=1.0, gauge="log_softmax"), "KD p=.8"),
    "BD to teacher": Row("free", 0.8, bd(leak=1.0, expected=True, toward="teacher", gauge="log_softmax", alpha=1.0), "KD p=.8"),
    "BD kl": Row("free", 0.8, bd(leak=1.0, phi="kl", **STABLE), "cloning"),
    "BD js": Row("free", 0.8, bd(leak=1.0, phi="js", **STABLE), "cloning"),
    "BD hellinger": Row("free", 0.8, bd(leak=1.0, phi="hellinger", **STABLE), "cloning"),
    "KD 3 + residual": Row("free", 0.8, bd(leak=3.0, expected=True, **STABLE), "KD leak 3"),
    "KD 3 in p + residual": Row("nucleus", 0.8, bd(leak=3.0, expected=True, **STABLE), "KD 3 in p"),
    "BD in p": Row("nucleus", 0.8, bd(leak=3.0, **STABLE), "KD 3 in p"),
    "improve": Row("free", 0.8, improve(0.5), "KD leak 3"),
    "improve shuffled": Row("free", 0.8, improve(0.5, control="shuffled"), "improve"),
    "improve class": Row("free", 0.8, improve(0.5, control="class"), "improve"),
    "improve back": Row("free", 0.8, improve(-0.5), "KD leak 3"),
    "prize": Row("free", 0.8, prize, "KD leak 3"),
    "GKD": Row("own", 1.0, gkd(0.5)),
    "GKD reverse": Row("own", 1.0, gkd(1.0)),
}


# ---------------------------------------------------------------------------------------------------------------
# Training with one of them


def settings(rate, seed):
    """The options of train.py for one student; batches of 1,024 tokens, on the CPU."""
    return train.Config(learning_rate=rate, seed=seed, device="cpu")


def new_model(config, seed):
    torch.manual_seed(seed)
    return GPT(config)


def learn(name, model, source, tokens, config, row, task, decay):
    """train.fit with the loss of a row; decay: the part of the run in which the rate falls -> (losses, tokens seen)."""
    def loss_of(model, source, batch, config, device, denominator):
        return row.loss((own_answers if row.source == "own" else terms)(model, source, batch.documents, task))
    return train.fit(name, model, [source], [1.0], tokens, config, decay, loss_of=loss_of)
