"""Checks of assignment 6, distillation on a set (td_distill.py). The docstring of a check holds three hints.

Every loss is compared with `expected`, which does the same one position at a time, in float64, on random
inputs. The grader sets SEED."""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from data.cache import MASKED
from td_distill import (StudentTerms, TeacherSets, log_outside, mask_terms, sft_loss, student_terms,
                        sum_terms, topp_forward_kl, weighted_mean)

TAILS = "inside", "bucket"
# A worked example of 3 positions: a teacher of 6 tokens, and its sets of mass .8 .9 .7, padded with id 0.
V = 6
TEACHER = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.03, 0.02], [0.02, 0.9, 0.05, 0.01, 0.01, 0.01],
                        [0.2, 0.2, 0.3, 0.1, 0.1, 0.1]]).double()
IDS = torch.tensor([[[0, 1, 0], [1, 0, 0], [2, 0, 1]]])
MASK = torch.tensor([[[True, True, False], [True, False, False], [True, True, True]]])
LOG_T = torch.where(MASK, TEACHER.log()[None].gather(-1, IDS), MASKED)


class Example(NamedTuple):
    logits: torch.Tensor                    # (B, T, V) float64, with a gradient
    ids: torch.Tensor                       # (B, T, K)
    log_t: torch.Tensor                     # (B, T, K), MASKED in padding
    mask: torch.Tensor                      # (B, T, K)
    taken: torch.Tensor                     # (B, T)
    weights: torch.Tensor                   # (B, T) float64, some of them 0


def random_example(number, scale=2.0):
    """Random sizes, logits, sets and weights. Position (0, 0) has a full set, (0, 1) a set and weight 0,
    (0, 2) padding in its set, the last one an empty set. Number 4 has one leading axis in place of (B, T),
    number 5 three."""
    g = torch.Generator().manual_seed(100 * SEED + number)
    B, T, n_vocab = (int(torch.randint(*ends, (), generator=g)) for ends in ((1, 4), (4, 6), (7, 12)))
    K, lead = (3, 1, 4, 2)[number % 4], {4: (B * T,), 5: (B, 1, T)}.get(number, (B, T))
    logits, teacher = (torch.randn(B, T, n_vocab, generator=g, dtype=torch.float64) for _ in range(2))
    mask, weights = torch.rand(B, T, K, generator=g) < 0.7, torch.rand(B, T, generator=g).double() + 0.1
    weights = weights ** 9 if number % 2 else weights               # from 1e-9 to 2.3, or from 0.1 to 1.1
    mask[0, :2], mask[0, 2, 1:], mask[0, 2, 0], mask[-1, -1] = True, False, True, False
    weights = torch.where(torch.rand(B, T, generator=g) < 0.8, weights, 0)
    weights[0, :3], weights[-1, -1] = torch.tensor([0.3, 0.0, 0.9]), 0.8
    ids = torch.where(mask, torch.rand(B, T, n_vocab, generator=g).argsort(-1)[..., :K], 0)
    log_t = torch.where(mask, (2 * teacher).log_softmax(-1).gather(-1, ids), MASKED)
    taken = torch.randint(n_vocab, (B, T), generator=g)
    x = Example(scale * logits, ids, log_t, mask, taken, weights)
    x = Example(*(y.view(*lead, *y.shape[2:]) for y in x))
    return x._replace(logits=x.logits.requires_grad_())


def expected(x, tail, leak=1.0, denominator=None, log_s=None):
    """-> the loss and its figures by their definition. log_s (B, T, K): the student's log-probabilities of
    the set, where they do not come from x.logits."""
    log_s = x.logits.log_softmax(-1).gather(-1, x.ids) if log_s is None else log_s
    sums, total = dict.fromkeys(("kl", "leak", "kept_mass", "entropy"), 0.0), 0.0
    rows = (y.flatten(0, -2) for y in (x.log_t, log_s, x.mask))
    for log_p, log_s, kept, weight in zip(*rows, x.weights.double().flatten()):
        if weight == 0 or not kept.any():
            continue
        p, s = log_p[kept].double().exp(), log_s[kept].exp()
        M, S = p.sum(), s.sum()
        if tail == "bucket":
            target, student, price = torch.cat([p, 1 - M[None]]), torch.cat([s, 1 - S[None]]), 0
        else:
            target, student, price = p / M, s / S, leak * -S.log()
        figures = {"kl": (target * (target.log() - student.log())).sum() + price, "leak": -S.log(),
                   "kept_mass": M, "entropy": -(target * target.log()).sum()}
        sums = {name: sums[name] + weight * figures[name] for name in sums}
        total = total + weight
    means = {name: value / (total if denominator is None else denominator) for name, value in sums.items()}
    return means["kl"], means


def loss_of(x, denominator=None, **options):
    return topp_forward_kl(student_terms(x.logits, x.ids, x.taken), TeacherSets(x.log_t, x.mask), x.weights,
                           denominator, **options)


def same(found, want, what, tolerance=1e-6):
    """Two tensors or numbers, relative to the size of the greatest."""
    found, want = (torch.as_tensor(y).detach().double() for y in (found, want))
    assert found.shape == want.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(want.shape)}"
    if not want.numel():
        return
    error = (found - want).abs().nan_to_num(nan=math.inf).flatten()
    worst = int(error.argmax())
    assert error[worst] <= tolerance * (1 + want.abs().max()), (
        f"{what}: {found.flatten()[worst]:.6g}, expected {want.flatten()[worst]:.6g}")


def same_loss(loss, want, inputs, what, tolerance=1e-9):
    """Value, and gradient by the inputs, a tensor or several."""
    same(loss, want, what, tolerance)
    assert loss.requires_grad, f"{what}: no gradient goes through it"
    assert loss.dtype == want.dtype or loss.dtype == torch.float64, f"{what}: {loss.dtype}, not {want.dtype}"
    options = dict(retain_graph=True, allow_unused=True, materialize_grads=True)
    for ours, theirs in zip(*(torch.autograd.grad(y, inputs, **options) for y in (loss, want))):
        same(ours, theirs, f"gradient of {what}", tolerance)


def is_detached(figure):
    return not getattr(figure, "requires_grad", False)


def at_least_32(*tensors):
    return all(y.dtype in (torch.float32, torch.float64) for y in tensors)


def check_student_terms(points=2):
    """z_K and z_a are the logits themselves (no softmax); log_Z is the logsumexp over the whole vocabulary.

    z - log_Z must be log pi. After a softmax log_Z would be subtracted a second time.

    Logits are picked with gather along the last axis; taken needs an axis of length 1 for it."""
    for number in range(4):
        x = random_example(number)
        before, log_pi = x.logits.detach().clone(), x.logits.log_softmax(-1)
        z_K, z_a, log_Z, *_ = student_terms(x.logits, x.ids, x.taken)
        same(z_K, x.logits.gather(-1, x.ids), "z_K")
        want = torch.stack([row[i] for row, i in zip(log_pi.flatten(0, 1), x.taken.flatten())])
        same_loss(((z_a - log_Z) * x.weights).sum(), (want.view_as(x.taken) * x.weights).sum(), x.logits,
                  "z_a - log_Z, which is log pi(taken)")
        same(log_Z, x.logits.exp().sum(-1).log(), "log_Z over the vocabulary")
        assert torch.equal(before, x.logits), "the logits were changed in place"


def check_shapes_and_types_of_the_terms(points=1):
    """Any leading shape will do. Half precision becomes float32 before the sum; large logits do not overflow.

    The last axis is always the vocabulary, so count axes from the end; exp(1000) is inf.

    at_least_float32(logits) comes first; torch.logsumexp subtracts the maximum itself."""
    g = torch.Generator().manual_seed(SEED)
    for shape in ((3,), (2, 2), (2, 1, 3)):
        for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32),
                            (torch.float64, torch.float64)):
            logits = (300 * torch.randn(*shape, 9, generator=g, dtype=torch.float64)).to(dtype)
            ids, taken = torch.randint(9, (*shape, 4), generator=g), torch.randint(9, shape, generator=g)
            z_K, z_a, log_Z = student_terms(logits, ids, taken)[:3]
            found = [tuple(y.shape) for y in (z_K, z_a, log_Z)]
            assert found == [(*shape, 4), shape, shape], f"shapes {found} for logits {(*shape, 9)}"
            assert {y.dtype for y in (z_K, z_a, log_Z)} == {wide}, f"{dtype} became {log_Z.dtype}, not {wide}"
            same(log_Z, torch.logsumexp(logits.double(), -1), f"log_Z of {dtype}")
            same(z_a, logits.double().gather(-1, taken[..., None])[..., 0], f"z_a of {dtype}")


def check_heads_of_the_terms(points=1):
    """Where heads are given, v and U are heads(hidden, ids); without heads they are None.

    The heads see the hidden state and the ids of the set, not the logits and not the token taken.

    v, U = heads(hidden, ids) if there are heads, else None, None; the last two fields of StudentTerms."""
    x = random_example(0)
    hidden = torch.randn(*x.taken.shape, 3, generator=torch.Generator().manual_seed(SEED)).requires_grad_()

    def heads(hidden, ids):
        return hidden.sum(-1), 2.0 * ids + hidden[..., :1] ** 2
    terms = student_terms(x.logits, x.ids, x.taken, hidden, heads)
    assert terms.v is not None and terms.U is not None, "with heads v or U is None"
    same_loss((terms.v * x.weights).sum(), (heads(hidden, x.ids)[0] * x.weights).sum(), hidden, "v")
    same(terms.U, heads(hidden, x.ids)[1], "U")
    same_loss((terms.U * x.mask).sum(), (heads(hidden, x.ids)[1] * x.mask).sum(), hidden, "U")
    bare = student_terms(x.logits, x.ids, x.taken, hidden)
    assert bare.v is None and bare.U is None, f"without heads v is {bare.v}, U is {bare.U}; expected None"


def check_what_has_no_weight_does_not_count(points=2):
    """Anything may stand at weight 0, NaN too. No weight at all gives 0. NaN at a weight above 0 stays NaN.

    0 * NaN is NaN, so a product with the weight removes nothing; 0 / 0 is NaN as well.

    where(weights > 0, ..., 0) BEFORE the sum. Test the weights, never the values (no nan_to_num)."""
    x = torch.tensor([[1.0, math.nan, math.inf, -math.inf]], requires_grad=True)
    mean = weighted_mean(x, torch.tensor([[2.0, 0.0, 0.0, 0.0]]))
    same(mean, 1, "the mean of 1 at weight 2, and NaN and infinity at weight 0")
    grad = torch.autograd.grad(mean, x)[0].tolist()
    assert grad == [[1.0, 0.0, 0.0, 0.0]], f"its gradient: {grad}, expected [[1, 0, 0, 0]]"
    for values in (x, x.double(), torch.ones(2, 3), torch.ones(2, 3).double(), torch.ones(2, 0)):
        for denominator in (None, 0, 0.0, torch.tensor(0.0), 5.0):
            same(weighted_mean(values, torch.zeros_like(values), denominator), 0,
                 f"no weight at all, denominator {denominator}, {values.dtype}, shape {tuple(values.shape)}")
    for weight in (1.0, 1e-12):
        mean = weighted_mean(x.detach(), torch.tensor([[2.0, weight, 0.0, 0.0]]))
        assert math.isnan(mean), f"NaN at weight {weight:g} was hidden: the mean is {mean}"


def check_weighted_mean(points=2):
    """sum(w x) / sum(w), or / denominator, whatever its size: with the sum of all weights of an update as the
    denominator, the parts of two micro-batches ADD UP.

    Weights may be below 1, and so may their sum. A denominator that is given is used as it is.

    Add nothing to the denominator; a floor is for the 0 of a batch without weight, so make it tiny."""
    g = torch.Generator().manual_seed(SEED)
    cases = [(size, ratio * size) for size in (1.0, 10.0, 1e-3, 1e-12) for ratio in (0.3, 2.5)]
    cases += [(1.0, 9), (1.0, torch.tensor(0.7)), (1.0, None), (1e-12, None)]
    for size, denominator in cases:
        for shape, dtype in (((4,), torch.float64), ((2, 3, 2), torch.float32)):
            values = torch.randn(shape, generator=g, dtype=dtype).requires_grad_()
            weights = size * (torch.rand(shape, generator=g, dtype=dtype) + 0.1)
            total = math.fsum(weights.flatten().tolist()) if denominator is None else float(denominator)
            want = (weights.double() * values.double()).sum().to(dtype) / total
            same_loss(weighted_mean(values, weights, denominator), want, values,
                      f"the mean for weights of about {size:g} and denominator {denominator}",
                      1e-5 if dtype == torch.float32 else 1e-9)
    x, w = torch.tensor([[1.0, 2.0], [6.0, 5.0]]), torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    parts = weighted_mean(x[:1], w[:1], w.sum()) + weighted_mean(x[1:], w[1:], w.sum())
    same(parts, (1 + 12 + 5) / 4, "the sum of two micro-batches")


def check_sum_terms(points=2):
    """The sum of factor * mean. Figures: the mean of every term, without its factor, also if that is 0,
    detached; all with the same weights and the same denominator.

    A figure that keeps its graph keeps all activations of a step in memory. 0 * NaN is NaN.

    Compute the means first; leave terms of factor 0 out of the sum; .detach() is for the figures alone."""
    g = torch.Generator().manual_seed(SEED)
    a, b, c = torch.randn(3, 2, 4, generator=g, dtype=torch.float64).unbind()
    a, weights = a.requires_grad_(), torch.rand(2, 4, generator=g).double()
    for denominator, one, two, three in ((None, 2.0, 0, -0.5), (0.25, 1, 1, 3), (11, 0, 1.0, 1e-3)):
        terms = {"a": (one, a), "b": (two, b), "c": (three, c * a)}
        total = weights.sum() if denominator is None else denominator
        means = {name: (weights * values).sum() / total for name, (_, values) in terms.items()}
        loss, figures = sum_terms(terms, weights, denominator)
        want = one * means["a"] + two * means["b"] + three * means["c"]
        same_loss(loss, want, a, f"the sum with factors {one}, {two}, {three}, denominator {denominator}")
        assert set(figures) == set(terms), f"the figures are {sorted(figures)}, expected {sorted(terms)}"
        for name, mean in means.items():
            same(figures[name], mean, f"figure {name} with denominator {denominator}")
            assert is_detached(figures[name]), f"figure {name} keeps the graph"
    loss, figures = sum_terms({"a": (1, a), "b": (0, b * math.nan)}, weights, None)
    assert math.isfinite(loss.detach()), "a term of factor 0 reaches the loss: its NaN does"
    assert math.isnan(figures["b"]), f"the figure of a term that is NaN is {figures['b']}"


def check_mask_terms(points=2):
    """z_K and log_t are MASKED (not 0) where the mask is False. Where a position has an empty set or weight
    0, all its z_K and log_t are MASKED, its log_Z and weight are 0. All else stays, in float32 at least.

    A position counts where some cell of its mask is True AND its weight is above 0.

    live = mask.any(-1) & (weights > 0), and a cell counts where mask & live[..., None]; then where()."""
    for number in range(6):
        x, half = random_example(number), number % 2 == 1
        z, log_Z = torch.randn(2, *x.mask.shape, dtype=torch.float64,
                               generator=torch.Generator().manual_seed(SEED)).unbind()
        log_Z, log_t, weights = log_Z[..., 0], x.log_t, x.weights
        if half:
            z, log_Z, log_t, weights = z.bfloat16(), log_Z.bfloat16(), log_t.half(), weights.bfloat16()
        live = x.mask.any(-1) & (weights > 0)
        cells = x.mask & live[..., None]
        dirty = torch.where(x.mask, z, math.nan).requires_grad_()
        found = mask_terms(StudentTerms(dirty, None, torch.where(live, log_Z, math.inf)),
                           TeacherSets(torch.where(x.mask, log_t, math.nan), x.mask), weights)
        types = {y.dtype for y in found}
        assert types <= {torch.float64, torch.float32 if half else torch.float64}, (
            f"types {types}; expected at least float32, and float64 where the input has it")
        wants = (torch.where(cells, z.double(), MASKED), torch.where(live, log_Z.double(), 0),
                 torch.where(cells, log_t.double(), MASKED), torch.where(live, weights.double(), 0))
        names = "z_K", "log_Z", "log_t", "weights"
        for name, counts, y, want in zip(names, (cells, live, cells, live), found, wants):
            same(y[counts], want[counts], f"{name} where it counts")
            same(y[~counts], want[~counts], f"{name} where it does not count")
        grad = torch.autograd.grad(found[0][cells].sum(), dirty)[0]
        same(grad, cells, "gradient of the z_K that count")


def check_log_outside(points=2):
    """log(1 - exp(x)), precise where exp(x) is near 1; where it is 1 or more, log(8 eps) without gradient.

    1 - exp(x) has few digits left when exp(x) is near 1. A where() after log(0) has NaN as its gradient.

    expm1(x) is exp(x) - 1 without that loss; clamp x below 0, at -8 eps of its type, before it."""
    spread = torch.rand(20, generator=torch.Generator().manual_seed(SEED))
    for dtype, smallest, tolerance in ((torch.float32, 4e-6, 3e-5), (torch.float64, 1e-14, 3e-6)):
        x = torch.tensor([-smallest, -1e-5, -1e-3, -1.0, -30.0, -120.0])
        x = torch.cat([x, -2 * smallest ** spread, -20 * spread - 1e-3]).to(dtype).requires_grad_()
        out = log_outside(x)
        want = torch.tensor([math.log(-math.expm1(one)) for one in x.tolist()])
        slope = torch.tensor([-math.exp(one) / -math.expm1(one) for one in x.tolist()])
        grad = torch.autograd.grad(out.sum(), x)[0]
        for one, y, d, a, b in zip(x.tolist(), out.tolist(), grad.tolist(), want.tolist(), slope.tolist()):
            assert abs(y - a) < tolerance, f"log_outside({one:g}) in {dtype}: {y:.6f}, expected {a:.6f}"
            assert abs(d - b) < 1e-3 * (0.01 + abs(b)), f"gradient at {one:g}, {dtype}: {d:g}, expected {b:g}"
        eps = torch.finfo(dtype).eps
        one = torch.tensor([0.0, eps, -eps, 0.5, 1.0], dtype=dtype, requires_grad=True)
        out = log_outside(one)
        same(out, torch.full((5,), math.log(8 * eps)), f"log_outside of a mass of 1 or more, {dtype}", 1e-3)
        same(torch.autograd.grad(out.sum(), one)[0], torch.zeros(5), "gradient for a mass of 1 or more")


def check_where_they_lead(points=1):
    """The bias of truncation: the optimum inside is s = t / M, with the bucket s = t. Loss and gradient are 0
    there.

    If the loss is not 0 at its optimum, a term of the entropy of the target is missing.

    Put in logits = log t, by hand, for one position: every logarithm of a ratio must be 0."""
    def at_rest(logits, tail):
        terms = student_terms(logits.requires_grad_(), IDS, IDS[..., 0])
        loss, _ = topp_forward_kl(terms, TeacherSets(LOG_T, MASK), torch.ones(1, 3), tail=tail)
        same(loss, 0, f"the loss at the optimum, {tail}")
        grad = torch.autograd.grad(loss, logits)[0]
        same(grad, torch.zeros(1, 3, V), f"the gradient at the optimum, {tail}")
    at_rest(TEACHER.log()[None].clone(), "bucket")
    sharp = torch.full((1, 3, V), -40.0).double()
    for t in range(3):
        sharp[0, t, IDS[0, t][MASK[0, t]]] = LOG_T[0, t][MASK[0, t]]
    at_rest(sharp, "inside")


def check_another_tail(points=1):
    """ValueError for an unknown tail.

    A misspelt name would be taken for the other tail without a word.

    Compare tail with the two names first, and raise."""
    x = random_example(0)
    loss_of(x)
    for tail in ("outside", "Bucket", "buck", "", None):
        try:
            loss_of(x, tail=tail)
        except ValueError:
            continue
        raise AssertionError(f"tail={tail!r} gave no ValueError")


def check_nan_shows(points=1):
    """NaN at a position that counts reaches the loss: a run that fails must not look healthy.

    A mask is made from mask and weights; values are never tested for NaN.

    Without nan_to_num, nansum and isfinite this holds by itself."""
    x = random_example(2)
    terms = StudentTerms(*(y.detach() for y in student_terms(x.logits, x.ids, x.taken)[:3]))
    for name in ("z_K", "log_Z", "log_probs"):
        broken = {"z_K": terms.z_K, "log_Z": terms.log_Z, "log_probs": x.log_t}[name].clone()
        broken[0, 0] = math.nan
        student, teacher = terms, TeacherSets(x.log_t, x.mask)
        if name == "log_probs":
            teacher = TeacherSets(broken, x.mask)
        else:
            student = terms._replace(**{name: broken})
        for tail in TAILS:
            loss = topp_forward_kl(student, teacher, x.weights, tail=tail)[0]
            assert math.isnan(loss), f"{name} has NaN where it counts, but the loss is {loss}, {tail}"
    loss = sft_loss(terms._replace(log_Z=torch.full_like(terms.log_Z, math.nan)), x.weights)[0]
    assert math.isnan(loss), f"log_Z is NaN, but sft_loss is {loss}"


def check_inputs_stay(points=1):
    """No function changes its inputs, and another call gives the same.

    The same teacher's sets serve several losses of one step.

    where() and masked_fill make new tensors; masked_fill_, clamp_, *= and x[mask] = ... do not."""
    for dtype in (torch.float64, torch.float32):
        x = random_example(3)
        logits, weights = x.logits.detach().to(dtype), x.weights.to(dtype)
        log_t = torch.where(x.mask, x.log_t, 7).to(dtype)
        weights[0, 0], weights[0, 1] = 0, 1
        terms, teacher = student_terms(logits, x.ids, x.taken), TeacherSets(log_t, x.mask)
        inputs = {"logits": logits, "z_K": terms.z_K, "z_a": terms.z_a, "log_Z": terms.log_Z,
                  "log_probs": log_t, "mask": x.mask, "weights": weights,
                  "log_mass": torch.tensor([0.0, -1e-9, -1.0])}
        before = {name: y.clone() for name, y in inputs.items()}
        calls = {"mask_terms": lambda: mask_terms(terms, teacher, weights),
                 "weighted_mean": lambda: weighted_mean(terms.z_a, weights),
                 "sft_loss": lambda: sft_loss(terms, weights),
                 "log_outside": lambda: log_outside(inputs["log_mass"]),
                 "topp_forward_kl, inside": lambda: topp_forward_kl(terms, teacher, weights),
                 "topp_forward_kl, bucket": lambda: topp_forward_kl(terms, teacher, weights, tail="bucket")}
        for call, function in calls.items():
            function()
            for name, y in inputs.items():
                assert torch.equal(y, before[name]), f"{call} changed {name} in place"


def check_half_precision(points=2):
    """Terms, log-probabilities and weights in half precision become float32 before any arithmetic.

    bfloat16 has 8 bits: a sum of weights in it is wrong in its third digit.

    mask_terms lifts z_K, log_Z and log_t with at_least_float32, the weights to the type of log_Z, at once."""
    g = torch.Generator().manual_seed(SEED)
    z_K, weights = torch.randn(2, 20, 4, generator=g).bfloat16(), torch.rand(2, 20, generator=g).bfloat16()
    log_Z = (torch.logsumexp(z_K.float(), -1) + 0.5 + torch.rand(2, 20, generator=g)).bfloat16()
    log_t = torch.randn(2, 20, 5, generator=g).log_softmax(-1)[..., :4].half()
    mask = torch.rand(2, 20, 4, generator=g) < 0.8
    log_s = z_K.double() - log_Z.double()[..., None]
    x, terms = Example(None, None, log_t, mask, None, weights), StudentTerms(z_K, None, log_Z)
    for tail in TAILS:
        loss, figures = topp_forward_kl(terms, TeacherSets(log_t, mask), weights, tail=tail)
        want, means = expected(x, tail, log_s=log_s)
        same(loss, want, f"{tail} in half precision", 1e-5)
        assert at_least_32(loss), f"{tail}: the loss is {loss.dtype}"
        for name in means:
            same(figures[name], means[name], f"figure {name}, {tail}, in half precision", 1e-5)


def check_sft(points=2):
    """Cross-entropy on the token taken, log_Z - z_a. The figure nll is the loss, without a graph.

    Half precision becomes float32 BEFORE the difference and before the sum of the weights.

    F.cross_entropy(logits, taken) is the same; lift both terms and the weights, then call sum_terms."""
    for number, denominator in ((1, None), (2, 0.2), (3, 10), (4, None), (5, 0.2)):
        x = random_example(number)
        terms = student_terms(x.logits, x.ids, x.taken)
        each = F.cross_entropy(x.logits.flatten(0, -2), x.taken.flatten(), reduction="none").view_as(x.taken)
        loss, figures = sft_loss(terms, x.weights, denominator)
        want = (x.weights * each).sum() / (x.weights.sum() if denominator is None else denominator)
        same_loss(loss, want, x.logits, f"sft_loss with denominator {denominator}")
        same(figures["nll"], want, f"figure nll with denominator {denominator}")
        assert is_detached(figures["nll"]), "figure nll keeps the graph"
        dirty = terms._replace(log_Z=torch.where(x.weights > 0, terms.log_Z, math.nan))
        same_loss(sft_loss(dirty, x.weights)[0], sft_loss(terms, x.weights)[0], x.logits, "NaN at weight 0")
    g = torch.Generator().manual_seed(SEED)
    log_Z, weights = (torch.rand(301, generator=g) + 100).bfloat16(), torch.rand(301, generator=g).bfloat16()
    z_a = torch.rand(301, generator=g).bfloat16()
    loss, _ = sft_loss(StudentTerms(None, z_a, log_Z), weights)
    z_a, log_Z, weights = z_a.double(), log_Z.double(), weights.double()
    same(loss, (weights * (log_Z - z_a)).sum() / weights.sum(), "the loss of terms and weights in bfloat16")
    assert at_least_32(loss), f"the loss of bfloat16 terms is {loss.dtype}"


def check_figures(points=2):
    """kl (the loss), leak = log_Z - V_p (without its factor), kept_mass M, entropy of the TARGET (q inside; t
    and 1 - M with the bucket), all detached, and means with the weights of the loss.

    A figure is a weighted mean over positions like the loss; a position that does not count is not in it.

    Give all four to sum_terms; those that are no part of the loss have factor 0."""
    for number in range(4):
        x = random_example(number)
        log_s = x.logits.detach().log_softmax(-1).gather(-1, x.ids)
        for tail, leak, more in (("inside", 0.0, 0), ("inside", 3.0, 1.5), ("bucket", 3.0, 0)):
            y = x._replace(log_t=torch.where(x.mask, x.log_t + more, MASKED))       # inside M may exceed 1
            _, figures = loss_of(y, tail=tail, leak=leak)
            means = expected(y, tail, leak, log_s=log_s)[1]
            assert set(figures) == set(means), f"figures {sorted(figures)}, expected {sorted(means)}"
            for name in means:
                same(figures[name], means[name], f"figure {name}, {tail}, leak {leak:g}")
                assert is_detached(figures[name]), f"figure {name}, {tail}: it keeps the graph"


def check_whole_sets_are_ordinary_kd(points=1):
    """Where the set is the whole vocabulary both tails are KL(teacher || student). The mass may exceed 1 by a
    rounding.

    Then 1 - M is 0 or a little less, and its logarithm is -inf or NaN; 1 - S is 0 as well.

    Clamp 1 - M at 0, use xlogy for x log x, and log_outside for the student's side."""
    logits = 2 * torch.randn(1, 3, V, generator=torch.Generator().manual_seed(SEED))
    logits.requires_grad_()
    for excess in (0.0, 1e-7, 1e-6):
        log_t = TEACHER.log()[None].float() + excess
        want = F.kl_div(logits.log_softmax(-1), log_t, log_target=True, reduction="none").sum(-1).mean()
        terms = student_terms(logits, torch.arange(V).expand(1, 3, V), IDS[..., 0])
        for tail in TAILS:
            loss, figures = topp_forward_kl(terms, TeacherSets(log_t, log_t < 1), torch.ones(1, 3), tail=tail)
            same(loss, want, f"the loss, {tail}", 1e-4)
            same(figures["entropy"], -(log_t.exp() * log_t).sum(-1).mean(), f"entropy, {tail}", 1e-4)
            ours, theirs = (torch.autograd.grad(y, logits, retain_graph=True)[0] for y in (loss, want))
            same(ours, theirs, f"gradient, {tail}", 1e-4)


def check_inside_is_kl_to_the_renormalised_set(points=3):
    """At leak 1: sum over the set of q (log q - log s), q = t / M renormalised, s the student's over the
    WHOLE vocabulary. A weighted mean over positions.

    log s = log(s / S) + log S: the KL between two renormalised sets, and the leak on top.

    log_q = log_t - logsumexp(log_t), log(s / S) = z_K - logsumexp(z_K), both over the last axis."""
    for number, scale, shift in ((0, 2.0, 0), (1, 0.3, -900), (2, 30.0, 0), (4, 2.0, 0), (5, 2.0, 900)):
        x = random_example(number, scale)
        x = x._replace(logits=(x.logits + shift).detach().requires_grad_())         # the softmax is the same
        want = expected(x, "inside")[0]
        same_loss(loss_of(x)[0], want, x.logits, "the loss inside")
        more = x._replace(log_t=torch.where(x.mask, x.log_t + 1, MASKED))
        same_loss(loss_of(more, tail="inside")[0], want, x.logits, "the loss inside for a mass above 1")


def check_leak(points=2):
    """leak (-log S) = leak (log_Z - V_p). At leak 0 the logits outside get no gradient, at 3 three times as
    much.

    The leak is part of the loss inside alone, multiplied by its factor, 0 and fractions too.

    V_p = logsumexp(z_K); kl + leak * (log_Z - V_p). A test like `if leak:` is not needed."""
    x = random_example(0)
    for leak, denominator in ((0, None), (0.0, 0.4), (0.3, 0.4), (1, None), (3.0, None)):
        want = expected(x, "inside", leak, denominator)[0]
        same_loss(loss_of(x, denominator, leak=leak)[0], want, x.logits,
                  f"the loss inside at leak {leak}, denominator {denominator}")
    grad = torch.autograd.grad(loss_of(x, leak=0.0)[0], x.logits)[0]
    outside = torch.ones_like(grad).scatter(-1, x.ids, 0.0)
    same((grad * outside)[0, 0], torch.zeros_like(grad[0, 0]), "gradient outside the set at leak 0", 1e-12)


def check_bucket(points=3):
    """The mass outside is one more token on both sides: sum t (log t - log s) + (1 - M) (log(1 - M) - log(1 -
    S)). leak is not used.

    Neither side is renormalised: log t is log_t, log s is z_K - log_Z; log(1 - S) is log_outside(log S).

    rest = 1 - M; add xlogy(rest, rest) - rest * log_outside(V_p - log_Z); rest is never below 0."""
    for number, lift, shift in ((0, 0, 0), (2, 15, 0), (3, -10, 0), (4, 1, 900), (5, 0, -900)):
        x = random_example(number)                                  # lift: of the student's logits on the set
        lifted = x.logits + shift + lift * torch.zeros_like(x.logits).scatter(-1, x.ids, 1.0)
        x = x._replace(logits=lifted.detach().requires_grad_())
        loss = loss_of(x, tail="bucket")[0]
        same_loss(loss, expected(x, "bucket")[0], x.logits, "the bucket", 1e-6)
        for leak in (0.0, 5.0) if number < 3 else ():
            same_loss(loss_of(x, tail="bucket", leak=leak)[0], loss, x.logits, f"the bucket at leak {leak:g}")


def check_single_tokens(points=1):
    """A set of one token: inside this is cross-entropy on it, also if the teacher is sure of it (t = 1).

    Then q is 1 whatever t is, and the entropy of the target is 0.

    K may be 1: no squeeze() without an axis, and no branch for it."""
    x = random_example(1)
    x = x._replace(ids=x.ids[..., :1], mask=x.mask[..., :1])
    for log_t in (0.0, -0.7, -30.0):
        x = x._replace(log_t=torch.full_like(x.log_t, log_t).masked_fill(~x.mask, MASKED))
        loss, figures = loss_of(x, tail="inside")
        live = torch.where(x.mask[..., 0], x.weights, 0)
        nll = F.cross_entropy(x.logits.flatten(0, 1), x.ids.flatten(), reduction="none").view_as(live)
        same_loss(loss, (live * nll).sum() / live.sum(), x.logits, f"one token of log-probability {log_t}")
        same(figures["kept_mass"], math.exp(log_t), "kept_mass of one token")
        same(figures["entropy"], 0, "entropy of one token, inside")
        if log_t:
            same_loss(loss_of(x, tail="bucket")[0], expected(x, "bucket")[0], x.logits, "one token, bucket")


def check_denominators(points=2):
    """With a denominator the parts of micro-batches add up, the figures too; it may be below 1.

    The denominator belongs to the whole update: it replaces the sum of the weights in every mean.

    Hand it on to sum_terms, whatever the tail."""
    for number, denominator in enumerate((0.05, torch.tensor(40.0, dtype=torch.float64))):
        x = random_example(number)
        for tail in TAILS:
            loss, figures = loss_of(x, denominator, tail=tail, leak=0.5)
            want, means = expected(x, tail, 0.5, denominator)
            what = f"{tail}, denominator {float(denominator):g}"
            same_loss(loss, want, x.logits, f"the loss, {what}")
            for name in means:
                same(figures[name], means[name], f"figure {name}, {what}")
            whole = expected(x, tail)[0]
            total = torch.where(x.mask.any(-1), x.weights, 0).sum()
            parts = [loss_of(Example(*(y[:, columns] for y in x)), total, tail=tail)[0]
                     for columns in (slice(1), slice(1, None))]
            same_loss(sum(parts), whole, x.logits, f"the sum of two micro-batches, {tail}")


def check_padding_and_empty_sets(points=3):
    """Anything may stand in padding, in an empty set and at weight 0: loss and gradient do not change. A
    position with an empty set does not count in the denominator either.

    Mask BEFORE any arithmetic: 0 * NaN is NaN in the gradient, also if where() removes it from the value.

    Use the four tensors of mask_terms from here on, its weights too, and none of the arguments."""
    for number, numbers in enumerate(((math.nan, 50.0), (math.inf, -math.inf))):
        x = random_example(number)
        live = x.mask.any(-1) & (x.weights > 0)
        cells = x.mask & live[..., None]
        z_K, _, log_Z = (y.detach() for y in student_terms(x.logits, x.ids, x.taken)[:3])
        for bad in numbers:
            z, Z = (torch.where(*y, bad).requires_grad_() for y in ((cells, z_K), (live, log_Z)))
            student, teacher = StudentTerms(z, None, Z), TeacherSets(torch.where(cells, x.log_t, bad), x.mask)
            for tail in TAILS:
                loss, figures = topp_forward_kl(student, teacher, x.weights, tail=tail)
                log_s = torch.where(cells, z, 0) - torch.where(live, Z, 0)[..., None]
                want, means = expected(x, tail, log_s=log_s)
                what = f"{tail}, with {bad} where nothing counts"
                same_loss(loss, want, (z, Z), f"the loss, {what}")
                for name in means:
                    same(figures[name], means[name], f"figure {name}, {what}")


def check_no_position_counts(points=1):
    """Where no position counts (all sets empty, or all weights 0) loss, figures and gradient are 0.

    This happens in a micro-batch whose sets are all empty; 0 / 0 would end the run.

    weighted_mean gives 0 for it; nothing may divide by a sum of weights, or take logarithms, beside it."""
    x = random_example(0)
    empty, nothing = x._replace(mask=torch.zeros_like(x.mask)), torch.zeros_like(x.weights)
    for y in (empty, x._replace(weights=nothing)):
        for tail in TAILS:
            for denominator in (None, nothing[0, 0], 5.0):
                loss, figures = loss_of(y, denominator, tail=tail)
                what = f"{tail}, denominator {denominator if denominator is None else float(denominator)}"
                same(loss, 0, f"the loss, {what}")
                grad = torch.autograd.grad(loss + 0 * x.logits.sum(), x.logits)[0]
                same(grad, torch.zeros_like(grad), f"its gradient, {what}")
                for name, value in figures.items():
                    same(value, 0, f"figure {name}, {what}")
