"""Checks of assignment 6, distillation on a set (td_distill.py). The docstring of a check is its hint."""
import math

import torch
import torch.nn.functional as F

from data.cache import MASKED
from td_distill import (StudentTerms, TeacherSets, log_outside, mask_terms, sft_loss, student_terms,
                        topp_forward_kl, weighted_mean)

V = 6
TEACHER = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.03, 0.02], [0.02, 0.9, 0.05, 0.01, 0.01, 0.01],
                        [0.2, 0.2, 0.3, 0.1, 0.1, 0.1]]).double()
# Its sets of mass .8 .9 .7, padded to K = 3 with id 0.
IDS = torch.tensor([[[0, 1, 0], [1, 0, 0], [2, 0, 1]]])
MASK = torch.tensor([[[True, True, False], [True, False, False], [True, True, True]]])
LOG_T = torch.where(MASK, TEACHER.log()[None].gather(-1, IDS), MASKED)
TAKEN = torch.tensor([[1, 1, 4]])


def student(seed=0, scale=2.0, dtype=torch.float64):
    """Logits (1, 3, V) of a student, with a gradient."""
    return (scale * torch.sin(torch.arange(3 * V) * (1.3 + seed))).to(dtype).reshape(1, 3, V).requires_grad_()


def kl(logits, weights=(1.0, 1.0, 1.0), mask=MASK, denominator=None, **options):
    terms, teacher = student_terms(logits, IDS, TAKEN), TeacherSets(LOG_T, mask)
    return topp_forward_kl(terms, teacher, torch.tensor([weights]), denominator, **options)


def parts(logits, t):
    """Position t: the teacher's and the student's probabilities on the set, and their masses."""
    kept = IDS[0, t][MASK[0, t]]
    q, s = TEACHER[t][kept], logits[0, t].softmax(-1)[kept]
    return q, s, q.sum(), s.sum()


def same(loss, want, logits, what):
    """Values, and gradients by the student's logits."""
    close = dict(rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(loss.detach(), want.detach(), **close, msg=lambda text: f"{what}: {text}")
    ours, theirs = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, want))
    torch.testing.assert_close(ours, theirs, **close, msg=lambda text: f"gradient of {what}: {text}")


def check_student_terms(points=2):
    """z_K and z_a are the logits themselves (no softmax). log_Z is the logsumexp over the whole vocabulary,
    so that z - log_Z is log pi."""
    logits = student()
    z_K, z_a, log_Z, *_ = student_terms(logits, IDS, TAKEN)
    log_pi = logits.log_softmax(-1)
    torch.testing.assert_close(z_K - log_Z[..., None], log_pi.gather(-1, IDS))
    torch.testing.assert_close(z_a - log_Z, log_pi[0, torch.arange(3), TAKEN[0]][None])
    torch.testing.assert_close(z_K, logits.gather(-1, IDS))


def check_shapes_and_types_of_the_terms(points=1):
    """Any leading shape will do. Half precision becomes float32, and large logits do not overflow."""
    found = student_terms((1000 * student()[0]).bfloat16(), IDS[0], TAKEN[0])[:3]
    assert [x.shape for x in found] == [(3, 3), (3,), (3,)] and {x.dtype for x in found} == {torch.float32}
    assert torch.isfinite(found[2]).all()
    assert student_terms(student(), IDS, TAKEN)[2].dtype == torch.float64


def check_weighted_mean(points=2):
    """sum(w x) / sum(w), or / denominator: with the denominator of a whole update, the parts of two
    micro-batches ADD UP."""
    x, w = torch.tensor([[1.0, 2.0], [6.0, 5.0]]), torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    assert weighted_mean(x, w) == (1 + 12 + 5) / 4 and weighted_mean(x, w, 9) == 2
    total = w.sum()
    assert weighted_mean(x[:1], w[:1], total) + weighted_mean(x[1:], w[1:], total) == weighted_mean(x, w)
    assert weighted_mean(x, 2 * w) == weighted_mean(x, w)


def check_what_has_no_weight_does_not_count(points=1):
    """Anything may stand at weight 0, NaN too: where() BEFORE the sum. No weight at all gives 0, not 0 /
    0."""
    x = torch.tensor([[1.0, math.nan, math.inf]], requires_grad=True)
    mean = weighted_mean(x, torch.tensor([[2.0, 0.0, 0.0]]))
    assert mean == 1 and weighted_mean(x, torch.zeros(1, 3)) == 0
    assert torch.autograd.grad(mean, x)[0].tolist() == [[1.0, 0.0, 0.0]]


def check_sft(points=2):
    """Cross-entropy on the token taken, log_Z - z_a, as torch's own. The figures carry no gradient."""
    logits, w = student(), torch.tensor([[1.0, 0.0, 3.0]]).double()
    terms = student_terms(logits, IDS, TAKEN)
    each = F.cross_entropy(logits[0], TAKEN[0], reduction="none")
    loss, figures = sft_loss(terms, w)
    same(loss, (w[0] * each).sum() / 4, logits, "sft_loss")
    same(sft_loss(terms, w, 10)[0], (w[0] * each).sum() / 10, logits, "sft_loss with a denominator")
    assert not figures["nll"].requires_grad and figures["nll"] == loss.detach()


def check_mask_terms(points=2):
    """MASKED (not 0) where the mask is False. Where a position has no set or no weight, all of it is
    harmless."""
    z, nan = torch.full((1, 3, 3), 2.0), math.nan
    mask = torch.tensor([[[True, False, True], [False] * 3, [True] * 3]])
    z[0, 1], z[0, 2, 0] = nan, nan
    terms = StudentTerms(z, torch.zeros(1, 3), torch.tensor([[1.0, nan, nan]]))
    z_K, log_Z, log_t, weights = mask_terms(terms, TeacherSets(-z, mask), torch.tensor([[0.5, 1.0, 0.0]]))
    expected = torch.tensor([[[2.0, MASKED, 2.0], [MASKED] * 3, [MASKED] * 3]])
    assert torch.equal(z_K, expected), f"z_K {z_K.tolist()}"
    assert torch.equal(log_t[0, 0], torch.tensor([-2.0, MASKED, -2.0])), f"log_t {log_t[0, 0].tolist()}"
    assert log_Z.tolist() == [[1.0, 0.0, 0.0]]
    assert weights.tolist() == [[0.5, 0.0, 0.0]], f"weights {weights.tolist()}: an empty set does not count"


def check_log_outside(points=1):
    """log(1 - exp(x)) as log(-expm1(x)): exact also for a mass close to 1, and finite, with a finite
    gradient, for a mass of 1."""
    x = torch.tensor([-1e-5, -1e-3, -1.0, -30.0, -120.0], dtype=torch.float32)
    want = torch.log(-torch.expm1(x.double())).float()
    torch.testing.assert_close(log_outside(x), want, rtol=1e-5, atol=1e-7)
    one = torch.tensor([0.0, 1e-7, -1e-9], requires_grad=True)
    out = log_outside(one)
    grad = torch.autograd.grad(out.sum(), one)[0]
    assert torch.isfinite(out).all() and torch.isfinite(grad).all() and (out < -10).all()


def check_inside_is_kl_to_the_renormalised_set(points=3):
    """At leak 1: sum over the set of q (log q - log s), q = t / M renormalised, s the student's over the
    WHOLE vocabulary."""
    logits = student()
    want = 0
    for t in range(3):
        q, s, M, S = parts(logits, t)
        want = want + (q / M * ((q / M).log() - s.log())).sum() / 3
    same(kl(logits)[0], want, logits, "KL inside")


def check_leak(points=2):
    """leak (-log S) = leak (log_Z - V_p). At leak 0 the logits outside get no gradient, at 3 three times as
    much."""
    logits = student()
    inside = torch.autograd.grad(kl(logits, leak=0.0)[0], logits)[0]
    outside = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]).bool()
    assert (inside[0][outside].abs() < 1e-12).all(), "at leak 0 there is a gradient outside the set"
    want = sum(-parts(logits, t)[3].log() for t in range(3)) / 3
    same(kl(logits, leak=3.0)[0] - kl(logits, leak=0.0)[0], 3 * want, logits, "three leaks")


def check_bucket(points=3):
    """The mass outside is one more token on both sides: sum t (log t - log s) + (1 - M) (log(1 - M) - log(1 -
    S))."""
    logits, want = student(), 0
    for t in range(3):
        q, s, M, S = parts(logits, t)
        want = want + ((q * (q.log() - s.log())).sum() + (1 - M) * ((1 - M).log() - (1 - S).log())) / 3
    loss = kl(logits, tail="bucket")[0]
    same(loss, want, logits, "the bucket")
    assert torch.equal(kl(logits, tail="bucket", leak=5.0)[0], loss), "the bucket uses leak"


def check_where_they_lead(points=2):
    """The bias of truncation: the optimum inside is s = t / M, with the bucket s = t. Loss and gradient are 0
    there."""
    def at_rest(logits, **options):
        loss, _ = kl(logits.requires_grad_(), **options)
        slope = torch.autograd.grad(loss, logits)[0].abs().max()
        assert abs(loss) < 1e-6 and slope < 1e-6, f"{options}: loss {loss}, gradient {slope}"
    at_rest(TEACHER.log()[None].clone(), tail="bucket")
    sharp = torch.full((1, 3, V), -40.0).double()
    for t in range(3):
        sharp[0, t, IDS[0, t][MASK[0, t]]] = LOG_T[0, t][MASK[0, t]]
    at_rest(sharp, tail="inside")
    assert kl(TEACHER.log()[None])[0] > 0.1, "inside, the teacher itself still leaks"


def check_whole_sets_are_ordinary_kd(points=1):
    """Where the set is the whole vocabulary both tails are KL(teacher || student). The mass may exceed 1 by a
    rounding."""
    logits = student(dtype=torch.float32)
    log_t = TEACHER.log()[None].float() + 1e-7
    want = F.kl_div(logits.log_softmax(-1), log_t, log_target=True, reduction="none").sum(-1).mean()
    terms = student_terms(logits, torch.arange(V).expand(1, 3, V), TAKEN)
    for tail in ("inside", "bucket"):
        loss, _ = topp_forward_kl(terms, TeacherSets(log_t, log_t < 1), torch.ones(1, 3), tail=tail)
        assert abs(loss - want) < 1e-4, f"{tail}: {loss.item():.4f}, expected {want.item():.4f}"
        grad = torch.autograd.grad(loss, logits, retain_graph=True)[0]
        assert torch.isfinite(grad).all(), f"{tail}: the gradient is not finite"


def check_padding_and_empty_sets(points=3):
    """Mask BEFORE any arithmetic: 0 * NaN is NaN in the gradient. A position with an empty set does not count
    in the denominator either."""
    logits, hole = student(), MASK.clone()
    hole[0, 1] = False
    same(kl(logits, mask=hole)[0], kl(logits, (1.0, 0.0, 1.0))[0], logits, "an empty set")
    terms = student_terms(logits, IDS, TAKEN)
    for bad in (math.nan, math.inf, 50.0):
        for tail in ("inside", "bucket"):
            dirty = terms._replace(z_K=torch.where(hole, terms.z_K, bad))
            teacher = TeacherSets(torch.where(hole, LOG_T, bad), hole)
            loss, _ = topp_forward_kl(dirty, teacher, torch.ones(1, 3), tail=tail)
            same(loss, kl(logits, (1.0, 0.0, 1.0), tail=tail)[0], logits, f"padding of {bad}, {tail}")


def check_weights_and_denominator(points=1):
    """A weighted mean over positions (not over tokens of the sets). With a denominator, parts add up."""
    logits, w = student(), (1.0, 0.5, 2.0)
    each = [kl(logits, tuple(float(i == t) for i in range(3)))[0].detach() for t in range(3)]
    total = sum(a * b for a, b in zip(w, each))
    torch.testing.assert_close(kl(logits, w)[0].detach(), total / 3.5)
    torch.testing.assert_close(kl(logits, w, denominator=7.0)[0].detach(), total / 7)
    assert kl(logits, (0.0, 0.0, 0.0))[0] == 0


def check_figures(points=2):
    """kl, leak = log_Z - V_p (without its factor), kept_mass M, entropy of the TARGET (renormalised, or with
    the bucket), all detached."""
    logits = student()
    each = [parts(logits, t) for t in range(3)]
    for tail in ("inside", "bucket"):
        loss, figures = kl(logits, tail=tail, leak=3.0)
        target = [torch.cat([q, 1 - M[None]]) if tail == "bucket" else q / M for q, _, M, _ in each]
        want = {"kl": loss, "leak": sum(-S.log() for *_, S in each) / 3, "kept_mass": 0.8,
                "entropy": sum(-(q * q.log()).sum() for q in target) / 3}
        for name, value in want.items():
            assert abs(figures[name] - value) < 1e-6, f"{tail}, {name}: {figures[name]}, expected {value}"
            assert not figures[name].requires_grad, f"{tail}, {name}: it keeps the graph"


def check_another_tail(points=1):
    """ValueError for an unknown tail."""
    kl(student())
    try:
        kl(student(), tail="outside")
    except ValueError:
        return
    raise AssertionError("tail='outside' gave no ValueError")
