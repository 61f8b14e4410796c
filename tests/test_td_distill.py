"""Top-p sets, the distillation losses against literal loops and dense references, and the command line."""
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import td_distill
from course import theory
from data.cache import MASKED, TeacherCache
from data.cache_tools import CacheWriter
from data.sets import SLACK, draw_with_sets, restrict_to_p, top_p_sets
from model import GPT, GPTConfig
from td_distill import (StudentTerms, TDHeads, TeacherSets, bellman_distill, bellman_weights, improve, ls_iq,
                        path_consistency, retrace, reverse_kl, sft_loss, soft_q, soft_returns, stay,
                        student_terms, successor_values, td_terms, topp_forward_kl)

def literal_top_p(log_probs, p, k_cap):
    """Log-probabilities of the set by the definition: the most probable tokens until the mass reaches p."""
    left, kept, mass = sorted(log_probs, reverse=True), [], 0.0
    while left and left[0] > -math.inf and len(kept) < k_cap and (not kept or p == 1 or mass < p - SLACK):
        kept.append(left.pop(0))
        mass += math.exp(kept[-1])
    return kept


number = st.one_of(st.integers(-3, 3), st.floats(-20, 20, width=32))            # integers: many ties
logits_rows = st.integers(1, 9).flatmap(
    lambda V: st.lists(st.lists(number, min_size=V, max_size=V), min_size=1, max_size=5))


@settings(max_examples=100, deadline=None)
@given(logits_rows, st.sampled_from([1e-9, 0.1, 0.5, 0.8, 0.95, 1 - 1e-9, 1.0]), st.integers(1, 10),
       st.sampled_from([0.5, 1.0, 3.0]))
def test_top_p_sets_are_those_of_the_literal_loop(rows, p, k_cap, temperature):
    logits = torch.tensor(rows, dtype=torch.float32)
    ids, log_probs, mask = top_p_sets(logits, p, k_cap, temperature)
    assert (ids.dtype, log_probs.dtype, mask.dtype) == (torch.int64, torch.float32, torch.bool)
    full, sizes = torch.log_softmax(logits / temperature, dim=-1), []
    for n in range(len(rows)):
        expected = literal_top_p(full[n].tolist(), p, k_cap)
        sizes.append(len(expected))
        assert log_probs[n][mask[n]].tolist() == expected == full[n][ids[n][mask[n]]].tolist()
        assert len(set(ids[n][mask[n]].tolist())) == len(expected)
        assert (ids[n][len(expected):] == 0).all() and (log_probs[n][len(expected):] == MASKED).all()
        assert mask[n].tolist() == [k < len(expected) for k in range(ids.shape[1])]
    assert ids.shape == log_probs.shape == mask.shape == (len(rows), max(sizes))


def test_top_p_sets_worked_example():
    logits = torch.tensor([[0.2, 0.5, 0.3], [0.98, 0.02, 0.0], [0.2, 0.3, 0.5]]).log()
    ids, log_probs, mask = top_p_sets(logits, p=0.8, k_cap=3)
    assert ids.tolist() == [[1, 2], [0, 0], [2, 1]]
    assert mask.tolist() == [[True, True], [True, False], [True, True]]
    torch.testing.assert_close(log_probs[0].exp(), torch.tensor([0.5, 0.3]))      # not renormalised
    ids, _, mask = top_p_sets(logits[1:2], p=1.0, k_cap=3)
    assert ids[mask].tolist() == [0, 1]                                           # no token of probability 0


@pytest.mark.parametrize("k_cap", [3, 30])
def test_a_smaller_p_keeps_the_sets_that_it_would_have_made(k_cap):
    """Also where the cap has cut a set short of p: padding stays out."""
    logits = 2 * torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    _, log_probs, mask = top_p_sets(logits, 0.95, k_cap)
    assert (log_probs.exp().sum(-1) < 0.8).any() == (k_cap == 3)
    for p in (0.8, 0.3):
        wanted = top_p_sets(logits, p, k_cap)[2]
        found = restrict_to_p(log_probs, mask, p)
        assert not found[:, wanted.shape[1]:].any() and torch.equal(found[:, :wanted.shape[1]], wanted)


@pytest.mark.parametrize("p, temperature", [(0.5, 1.0), (1.0, 2.0)])
def test_draw_with_sets_returns_the_sets_of_a_forward_pass(p, temperature):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_vocab=30, block_size=32, n_layer=2, n_head=2, n_embd=16)).double()
    for parameter in model.parameters():                    # at the start every block is the identity
        torch.nn.init.normal_(parameter, std=0.3)
    prompts, options = [[1, 2, 3], [4]], dict(p=p, k_cap=20, temperature=temperature, stop=5, seed=1)
    new, sets = draw_with_sets(model, prompts, 8, **options)
    assert new == draw_with_sets(model, prompts, 8, **options)[0]
    for prompt, drawn, kept in zip(prompts, new, sets):
        assert len(drawn) == len(kept) and (len(drawn) == 8 or drawn[-1] == 5) and 5 not in drawn[:-1]
        logits = model(torch.tensor([prompt + drawn]))[0, len(prompt) - 1:-1]
        ids, log_probs, mask = top_p_sets(logits, p, 20, temperature)
        for t, (token, (found, values)) in enumerate(zip(drawn, kept)):
            assert token in found and found.tolist() == ids[t][mask[t]].tolist()
            np.testing.assert_allclose(values, log_probs[t][mask[t]].detach(), atol=1e-4)


def example(B=2, T=3, V=11, p=0.7, k_cap=99, seed=0, dtype=torch.float64, scale=2.0):
    """A batch of random student logits and heads, and a teacher's dense logits and sets; a weight is 0."""
    g = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(B, T, V, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    dense = 2 * torch.randn(B, T, V, generator=g, dtype=torch.float64)
    ids, _, mask = (x.view(B, T, -1) for x in top_p_sets(dense.view(B * T, V), p, k_cap))
    log_probs = torch.where(mask, dense.log_softmax(-1).gather(-1, ids), MASKED).to(dtype)
    weights = torch.rand(B, T, generator=g, dtype=torch.float64).to(dtype)
    weights[0, 0] = 0
    taken = torch.randint(V, (B, T), generator=g)
    terminal = torch.zeros(B, T, dtype=torch.bool)
    v, U = (torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
            for shape in ((B, T), ids.shape))
    return SimpleNamespace(logits=logits, v=v, U=U, dense=dense, ids=ids, log_probs=log_probs, mask=mask,
                           weights=weights, taken=taken, terminal=terminal)


def chain(B=3, T=5, seed=0, **options):
    """An example with everything that can happen to a position: documents that end and that are cut, padding,
    tokens inside and outside the set, a position without a set in the middle, one of weight 0."""
    c = example(B, T, **{"V": 9, "seed": seed, **options})
    g = torch.Generator().manual_seed(seed)
    inside = c.ids.gather(-1, (torch.rand(B, T, generator=g) * c.mask.sum(-1)).long()[..., None])[..., 0]
    c.taken = torch.where(torch.rand(B, T, generator=g) < 0.75, inside, c.taken)
    if T > 3:
        c.terminal[0, -2] = True                            # row 0 ends, and is padded
        c.mask[0, -1] = False
        c.mask[1, 1] = False                                # row 1 has a given token, and is cut by length
        c.mask[2, -1] = False                               # row 2 is cut, and has a column of padding
    c.log_probs = torch.where(c.mask, c.log_probs, MASKED)
    return c


def inputs(c, logits=None, rows=slice(None), heads=True):
    """What the losses take: student, teacher, weights."""
    logits = (c.logits if logits is None else logits)[rows]
    ids, taken = c.ids[rows], c.taken[rows]
    teacher = TeacherSets(c.log_probs[rows], c.mask[rows], ids == taken[..., None], c.terminal[rows])
    student = student_terms(logits, ids, taken)
    if heads:
        student = student._replace(v=c.v[rows], U=c.U[rows])
    return student, teacher, c.weights[rows]


def dense_kl(log_p, log_q):
    """KL(p || q) of whole distributions, (B, T)."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)


def mean_of(c, each):
    return (c.weights * each).sum() / c.weights.sum()


def assert_same_with_gradient(ours, theirs, logits, **tolerance):
    torch.testing.assert_close(ours, theirs, **tolerance)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, **tolerance)


# ------------------------------------------------------------------------------------------------------------
# what holds of every loss. test_losses.py checks the same of the losses of experiments/objectives.py


def live_weight(teacher, weights):
    return (weights * teacher.mask.any(-1)).sum()


def bellman_weight(teacher, weights):
    return bellman_weights(teacher, weights).sum()


LOSSES = {"sft": (lambda s, t, w, d=None: sft_loss(s, w * t.mask.any(-1), d), live_weight),
          "inside": (topp_forward_kl, live_weight),
          "bucket": (partial(topp_forward_kl, tail="bucket"), live_weight),
          "reverse": (reverse_kl, live_weight),
          "bellman": (partial(bellman_distill, leak=0.5), bellman_weight),
          "bellman expected": (partial(bellman_distill, expected=True), live_weight),
          "LS-IQ": (ls_iq, bellman_weight),
          "soft Q": (soft_q, live_weight),
          "stay": (stay, live_weight),
          "path": (partial(path_consistency, steps=3), live_weight),
          "retrace": (retrace, live_weight),
          "improve": (improve, live_weight)}
SEMI_GRADIENT = "soft Q", "stay", "retrace", "improve"          # their target is a constant
every_loss = pytest.mark.parametrize("loss, denominator", LOSSES.values(), ids=LOSSES)


@every_loss
def test_micro_batches_add_up_to_the_batch(loss, denominator):
    c = chain()
    _, teacher, weights = inputs(c)
    whole, figures = loss(*inputs(c))
    total = denominator(teacher, weights).item()
    parts = [loss(*inputs(c, rows=rows), total) for rows in (slice(0, 1), slice(1, 3))]
    assert_same_with_gradient(parts[0][0] + parts[1][0], whole, c.logits)
    for name, value in figures.items():
        torch.testing.assert_close(parts[0][1][name] + parts[1][1][name], value)
        assert not value.requires_grad


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in SEMI_GRADIENT])
def test_gradients_by_finite_differences(name):
    c = chain(T=4, V=5)

    def loss(logits, v):
        student, teacher, weights = inputs(c, logits)
        return LOSSES[name][0](student._replace(v=v), teacher, weights)[0]
    assert torch.autograd.gradcheck(loss, (c.logits, c.v))


@every_loss
def test_no_weight_at_all_gives_zero(loss, denominator):
    for empty in ("weights", "mask"):
        c = chain()
        setattr(c, empty, torch.zeros_like(getattr(c, empty)))
        found, _ = loss(*inputs(c))
        assert found == 0 and (torch.autograd.grad(found, c.logits)[0] == 0).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [2, 2000])
def test_finite_for_large_logits(loss, denominator, dtype, scale):
    """A student that is sure, rightly or wrongly: mass inside the set of exactly 1 and of exactly 0."""
    for seed in range(3):
        c = chain(dtype=dtype, scale=scale, seed=seed)
        wide = c.logits.detach().float().requires_grad_()   # a large gradient is more than float16 can hold
        found, figures = loss(*inputs(c, wide))
        grad, = torch.autograd.grad(found, wide)
        assert found.dtype == torch.float32 and torch.isfinite(found)
        assert torch.isfinite(grad).all() and all(torch.isfinite(value) for value in figures.values())


@every_loss
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e38])
def test_what_stands_where_nothing_counts_is_never_seen(loss, denominator, garbage):
    """Padded entries, positions without a set, positions of weight 0."""
    c = chain(dtype=torch.float32)
    student, teacher, weights = inputs(c)
    teacher.is_taken[1, 1] = False                          # the token taken there is in nobody's set
    live = c.mask.any(-1) & (weights > 0)
    inside = c.mask & live[..., None]

    def value_and_gradients(fill):
        kept = inside, live, live, live, inside
        parts = [torch.where(k, x.detach(), fill).requires_grad_() for k, x in zip(kept, student)]
        filled = teacher._replace(log_probs=torch.where(inside, c.log_probs, fill))
        found, figures = loss(StudentTerms(*parts), filled, weights)
        grads = torch.autograd.grad(found, parts, allow_unused=True, materialize_grads=True)
        return [found.detach(), *figures.values(), *grads]
    for clean, dirty in zip(value_and_gradients(0.0), value_and_gradients(garbage)):
        assert torch.isfinite(dirty).all() and torch.equal(clean, dirty)


@every_loss
def test_more_padding_changes_nothing(loss, denominator):
    """A column at the end, and an entry in every set."""
    c = chain()
    student, teacher, weights = inputs(c)
    wide = StudentTerms(*(F.pad(x, (0, 2, 0, 1) if x.dim() == 3 else (0, 1), value=7.0) for x in student))
    both = (0, 2, 0, 1)
    padded = TeacherSets(F.pad(c.log_probs, both, value=MASKED), F.pad(c.mask, both),
                         F.pad(teacher.is_taken, both, value=True), F.pad(c.terminal, (0, 1), value=True))
    found, _ = loss(wide, padded, F.pad(weights, (0, 1), value=1.0))
    if loss is LOSSES["sft"][0]:
        found, _ = loss(wide, padded, F.pad(weights, (0, 1)))
    assert_same_with_gradient(found, loss(student, teacher, weights)[0], c.logits)


# ------------------------------------------------------------------------------------------------------------
# the losses of one position


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_student_terms_against_indexing(dtype):
    logits = torch.randn(2, 3, 7).to(dtype)
    ids, taken = torch.randint(7, (2, 3, 4)), torch.randint(7, (2, 3))
    student, wide = student_terms(logits, ids, taken), logits.double()
    assert {x.dtype for x in student[:3]} == {torch.float64 if dtype == torch.float64 else torch.float32}
    for b, t in np.ndindex(2, 3):
        assert student.z_a[b, t] == wide[b, t, taken[b, t]]
        assert student.z_K[b, t].tolist() == [wide[b, t, i] for i in ids[b, t]]
        log_Z = math.log(sum(math.exp(x) for x in wide[b, t]))
        assert student.log_Z[b, t].item() == pytest.approx(log_Z, rel=1e-5)


def test_sft_is_cross_entropy():
    c = example()
    loss, figures = sft_loss(inputs(c)[0], c.weights)
    each = F.cross_entropy(c.logits.flatten(0, 1), c.taken.flatten(), reduction="none").view_as(c.weights)
    assert_same_with_gradient(loss, mean_of(c, each), c.logits)
    assert figures["nll"] == loss.detach()


@pytest.mark.parametrize("k_cap", [11, 10])
@pytest.mark.parametrize("tail", ["inside", "bucket"])
def test_with_the_whole_vocabulary_it_is_the_dense_kl(tail, k_cap):
    """Also where a single token is outside, and is the bucket."""
    c = example(p=1.0, k_cap=k_cap)
    assert c.mask.all() and c.ids.shape[-1] == k_cap
    loss, figures = topp_forward_kl(*inputs(c), tail=tail)
    log_t, log_s = c.dense.log_softmax(-1), c.logits.log_softmax(-1)
    if tail == "bucket" or k_cap == 11:
        assert_same_with_gradient(loss, mean_of(c, dense_kl(log_t, log_s)), c.logits, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(figures["entropy"], mean_of(c, -(log_t.exp() * log_t).sum(-1)))
    if k_cap == 11:
        assert figures["kept_mass"].item() == pytest.approx(1) and abs(figures["leak"]) < 1e-9


def test_renormalised_kl_is_the_dense_kl_to_the_projected_teacher():
    c = example()
    assert c.mask.any(-1).all() and not c.mask.all()
    inside = torch.zeros_like(c.dense).scatter_add(-1, c.ids, c.mask.double())
    projected = c.dense.softmax(-1) * inside
    kept = projected.sum(-1)
    projected = projected / kept[..., None]
    each = F.kl_div(c.logits.log_softmax(-1), projected, reduction="none").sum(-1)
    loss, figures = topp_forward_kl(*inputs(c))
    assert_same_with_gradient(loss, mean_of(c, each), c.logits)
    leak = -(c.logits.softmax(-1) * inside).sum(-1).log()
    entropy = -torch.xlogy(projected, projected).sum(-1)
    for name, value in (("leak", leak), ("kept_mass", kept), ("entropy", entropy), ("kl", each)):
        torch.testing.assert_close(figures[name], mean_of(c, value).detach())
    without, _ = topp_forward_kl(*inputs(c), leak=0.0)
    torch.testing.assert_close(loss.detach(), without.detach() + figures["leak"])


def coarse(c, b, t, tail):
    """Teacher's and student's distributions over the set, as `tail` says, with plain probabilities."""
    kept = c.ids[b, t][c.mask[b, t]]
    q, s = c.dense[b, t].softmax(-1)[kept], c.logits[b, t].softmax(-1)[kept]
    if tail == "inside":
        return q / q.sum(), s / s.sum()
    return torch.cat([q, 1 - q.sum()[None]]), torch.cat([s, 1 - s.sum()[None]])


def mean_of_coarse(c, divergence, tail):
    """The weighted mean of divergence(q, s) over the positions that have a set."""
    places = [(b, t) for b, t in np.ndindex(*c.weights.shape) if c.weights[b, t] > 0 and c.mask[b, t].any()]
    total = sum(c.weights[b, t] * divergence(*coarse(c, b, t, tail)) for b, t in places)
    return total / sum(c.weights[b, t] for b, t in places)


def test_bucket_and_reverse_kl_against_the_loop():
    c = chain()
    expected = mean_of_coarse(c, lambda q, s: (q * (q / s).log()).sum(), "bucket")
    assert_same_with_gradient(topp_forward_kl(*inputs(c), tail="bucket")[0], expected, c.logits)
    loss, figures = reverse_kl(*inputs(c), leak=0.0)
    expected = mean_of_coarse(c, lambda q, s: (s * (s / q).log()).sum(), "inside")
    assert_same_with_gradient(loss, expected, c.logits)
    whole, _ = reverse_kl(*inputs(c), leak=0.3)
    torch.testing.assert_close(whole.detach(), loss.detach() + 0.3 * figures["leak"])
    c = example(p=1.0)
    each = dense_kl(c.logits.log_softmax(-1), c.dense.log_softmax(-1))
    assert_same_with_gradient(reverse_kl(*inputs(c))[0], mean_of(c, each), c.logits)


def write_cache(folder, documents, n_vocab=300):
    writer = CacheWriter(folder, n_vocab=n_vocab, tokenizer_hash="abc", p=0.8, k_cap=64, temperature=1.0,
                         teacher={}, made_by="", roles=["text", "sep", "answer", "end"])
    for document in documents:
        writer.add(*document)
    writer.close()


def test_cached_sets_give_the_loss_of_the_sets(tmp_path):
    """logits -> sets -> cache -> batch -> loss: up to float16, that of the sets kept in memory."""
    c = example(B=1, T=5, V=40, p=0.95, dtype=torch.float32)
    sets = [(c.ids[0, t][c.mask[0, t]].numpy(), c.log_probs[0, t][c.mask[0, t]].numpy()) for t in range(5)]
    write_cache(tmp_path, [([1, 2, 3, 4, 5], [0] * 5, sets)], n_vocab=40)
    batch = TeacherCache(tmp_path).batch([0])
    student, teacher, weights = inputs(c)
    for tail in ("inside", "bucket"):
        exact, _ = topp_forward_kl(student, teacher, weights, tail=tail)
        again = student_terms(c.logits, batch["ids"], c.taken), TeacherSets(batch["log_probs"], batch["mask"])
        found, figures = topp_forward_kl(*again, weights, tail=tail)
        torch.testing.assert_close(found, exact, rtol=3e-3, atol=1e-3)
        assert figures["kept_mass"] <= 1


# ------------------------------------------------------------------------------------------------------------
# temporal differences


def positions(c, logits, v):
    """{(b, t): what the formulas need there}, plain floats from lists; nothing where there is no set or
    weight. c: a chain; logits (B, T, V), v (B, T): arrays."""
    found = {}
    for b, t in np.ndindex(*v.shape):
        kept = [k for k, inside in enumerate(c.mask[b, t].tolist()) if inside]
        if kept and c.weights[b, t] > 0:
            ids, log_t = c.ids[b, t].tolist(), c.log_probs[b, t].tolist()
            log_Z = math.log(sum(math.exp(z) for z in logits[b, t]))
            log_pi = {ids[k]: logits[b, t][ids[k]] - log_Z for k in kept}
            log_t, a = {ids[k]: log_t[k] for k in kept}, int(c.taken[b, t])
            log_S, log_M = (math.log(sum(map(math.exp, some.values()))) for some in (log_pi, log_t))
            x = found[b, t] = SimpleNamespace(
                w=float(c.weights[b, t]), a=a, ends=bool(c.terminal[b, t]), leak=-log_S, V=v[b][t] + log_S,
                log_M=log_M, log_pi=log_pi, inside=a in log_pi, log_s={i: y - log_S for i, y in log_pi.items()},
                log_q={i: y - log_M for i, y in log_t.items()}, slot={ids[k]: k for k in kept})
            if x.inside:
                x.Q, x.r, x.raw_r = x.log_s[a] + x.V, x.log_q[a], log_t[a]
    for (b, t), x in found.items():
        x.next = None if x.ends else found.get((b, t + 1))
        x.known = x.inside and (x.ends or x.next is not None)
        x.V_next = 0.0 if x.next is None else x.next.V
    return found


SEED = 3                            # of a chain that has every case, see below


def literal(c, logits, v, member, constant=None, counts="live"):
    """The weighted mean of member(position, the same position with what is held constant) over positions."""
    now = positions(c, logits, v)
    then = positions(c, *(constant or (logits, v)))
    used = [key for key, x in now.items() if counts == "live" or x.known]
    return sum(now[key].w * member(now[key], then[key]) for key in used) / sum(now[key].w for key in used)


def bellman_literal(x, _, alpha=0.1, gamma=0.99, leak=0.0, expected=False, r_max=None):
    residual, end = 0.0, 0.0 if r_max is None else r_max / (1 - gamma)
    if x.known:
        residual = x.Q - gamma * (end if x.ends else x.V_next) - (r_max or 0.0)
    cloning = -sum(math.exp(q) * x.log_s[i] for i, q in x.log_q.items()) if expected else -x.log_s[x.a]
    return cloning + residual ** 2 / (4 * alpha) + leak * x.leak


def squared(residual):
    def member(x, then):
        return (residual(x, then) ** 2 if x.known else 0.0) + 0.7 * x.leak
    return member


def path_residual(x, n, gamma):
    """V(s_t) minus the rewards of up to n known tokens and the value after them."""
    total, factor, at = 0.0, 1.0, x
    for _ in range(n):
        if at is None or not at.known:
            break
        total += factor * (at.r - at.log_s[at.a])
        factor, at = factor * gamma, at.next
    return x.V - total - (0.0 if at is None else factor * at.V)


def retrace_target(x, lam, gamma):
    """As published: Q plus the errors of all later tokens, each with the product of the traces up to it."""
    target, factor, at = x.Q, 1.0, x
    while at is not None and at.known:
        target += factor * (at.r + gamma * at.V_next - at.Q)
        at = at.next
        if at is not None and at.known:
            factor *= gamma * lam * min(1.0, math.exp(at.log_s[at.a] - at.r))
    return target


MEMBERS = {
    **{f"bellman {o}": (partial(bellman_distill, **o), partial(bellman_literal, **o),
                        "live" if "expected" in o else "known")
       for o in ({}, dict(alpha=2.0, gamma=0.5, leak=0.3), dict(gamma=0.0), dict(expected=True, leak=2.0))},
    "LS-IQ": (partial(ls_iq, gamma=0.9, r_max=0.2, leak=0.3),
              partial(bellman_literal, gamma=0.9, r_max=0.2, leak=0.3), "known"),
    "soft Q": (partial(soft_q, gamma=0.8, leak=0.7),
               squared(lambda x, then: x.Q - x.r - 0.8 * then.V_next), "live"),
    "stay": (partial(stay, leak=0.7), squared(lambda x, then: x.Q - x.raw_r - then.V_next), "live"),
    **{f"path {n}": (partial(path_consistency, steps=n, gamma=0.8, leak=0.7),
                     squared(lambda x, _, n=n: path_residual(x, n, 0.8)), "live") for n in (1, 2, 9)},
    **{f"retrace {lam}": (partial(retrace, lam=lam, gamma=0.8, leak=0.7),
                          squared(lambda x, then, lam=lam: x.Q - retrace_target(then, lam, 0.8)), "live")
       for lam in (0.0, 0.9)}}


def differences(f, x, h=1e-6):
    """The gradient of f (array -> float) by central differences."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * h
            gradient[place] += sign * f(moved) / (2 * h)
    return gradient


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_and_its_gradient_against_loops(name):
    (member, reference, counts), c = MEMBERS[name], chain(T=7, V=5, seed=SEED)
    held = logits, v = c.logits.detach().numpy(), c.v.detach().numpy()
    loss, _ = member(*inputs(c))
    assert loss.item() == pytest.approx(literal(c, logits, v, reference, counts=counts), rel=1e-9)
    by_logits = differences(lambda z: literal(c, z, v, reference, held, counts), logits)
    by_v = differences(lambda y: literal(c, logits, y, reference, held, counts), v)
    for found, wanted in zip(torch.autograd.grad(loss, (c.logits, c.v)), (by_logits, by_v)):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_example_has_every_case():
    c = chain(T=7, V=5, seed=SEED)
    x = list(positions(c, c.logits.detach().numpy(), c.v.detach().numpy()).values())
    assert any(p.known and p.next and p.next.known and p.next.next and p.next.next.known for p in x)
    assert any(p.known and p.ends for p in x) and any(p.inside and not p.known for p in x)
    assert any(p.known and p.next and not p.next.known for p in x) and not all(p.inside for p in x)
    assert any(p.known and p.next and p.next.known and p.next.log_s[p.next.a] < p.next.r for p in x)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 7), st.sampled_from([0.3, 0.8, 1.0]),
       st.integers(0, 10 ** 6), st.sampled_from(sorted(MEMBERS)))
def test_any_shape_any_flags(B, T, V, p, seed, name):
    c, (member, reference, counts) = example(B, T, V, p, seed=seed), MEMBERS[name]
    g = torch.Generator().manual_seed(seed)
    c.mask &= torch.rand(B, T, 1, generator=g) < 0.8
    c.terminal = torch.rand(B, T, generator=g) < 0.2
    logits, v = c.logits.detach().numpy(), c.v.detach().numpy()
    loss, _ = member(*inputs(c))
    found = positions(c, logits, v)
    known = bellman_weights(*inputs(c)[1:]).nonzero().tolist()
    assert known == [list(key) for key, x in found.items() if x.known]
    if not (found if counts == "live" else known):
        assert loss == 0
    else:
        assert loss.item() == pytest.approx(literal(c, logits, v, reference, counts=counts), rel=1e-7)


def improve_literal(c, logits, U, frozen, beta, gamma, leak):
    """improve, with all it does not differentiate taken from `frozen`, (logits, U)."""
    v = np.zeros(c.weights.shape)
    now, then = positions(c, logits, v), positions(c, frozen[0], v)

    def value(key):
        """V(s) of the soft tree: the token taken has its return, where it is known."""
        x, total = then[key], 0.0
        for i, k in x.slot.items():
            u = frozen[1][key][k]
            if i == x.a and x.known:
                u = 0.0 if x.ends else gamma * value((key[0], key[1] + 1))
            total += math.exp(x.log_pi[i] + u)
        return math.log(total)
    total = 0.0
    for (b, t), x in now.items():
        tilted = {i: math.exp(q + beta * frozen[1][b, t][x.slot[i]]) for i, q in x.log_q.items()}
        target = {i: y / sum(tilted.values()) for i, y in tilted.items()}
        loss = sum(y * (math.log(y) - x.log_s[i]) for i, y in target.items()) + leak * x.leak
        if x.known and len(x.slot) > 1:
            loss += (U[b, t][x.slot[x.a]] - (0.0 if x.ends else gamma * value((b, t + 1)))) ** 2
        total += x.w * loss
    return total / sum(x.w for x in now.values())


@pytest.mark.parametrize("beta, gamma, leak", [(1.0, 1.0, 1.0), (0.5, 0.9, 3.0)])
def test_improve_and_its_gradients_against_the_loop(beta, gamma, leak):
    c = chain(T=7, V=5, seed=SEED)
    frozen = logits, U = c.logits.detach().numpy(), c.U.detach().numpy()
    loss, figures = improve(*inputs(c), beta=beta, gamma=gamma, leak=leak)
    assert loss.item() == pytest.approx(improve_literal(c, logits, U, frozen, beta, gamma, leak), rel=1e-9)
    torch.testing.assert_close(loss.detach(), figures["kl"] + figures["fit"])
    grads = torch.autograd.grad(loss, (c.logits, c.U))
    np.testing.assert_allclose(grads[0], differences(
        lambda z: improve_literal(c, z, U, frozen, beta, gamma, leak), logits), atol=1e-6)
    np.testing.assert_allclose(grads[1], differences(
        lambda u: improve_literal(c, logits, u, frozen, beta, gamma, leak), U), atol=1e-6)
    without, figures = improve(*inputs(c), beta=0.0, gamma=gamma, leak=leak)
    assert_same_with_gradient(without - figures["fit"], topp_forward_kl(*inputs(c), leak=leak)[0], c.logits)


def test_members_that_are_each_other():
    """One step of a path and lambda 0 are soft Q; LS-IQ is Bellman Distill with shifted values; v = log_Z
    makes Q the logit, and V the logsumexp of the logits in the set."""
    c = chain()
    student, teacher, weights = inputs(c)
    one = soft_q(student, teacher, weights, gamma=0.9)[0]
    assert_same_with_gradient(retrace(student, teacher, weights, lam=0.0, gamma=0.9)[0], one, c.logits)
    torch.testing.assert_close(path_consistency(student, teacher, weights, steps=1, gamma=0.9)[0], one)
    shifted = student._replace(v=student.v + 0.2 / (1 - 0.9))
    assert_same_with_gradient(ls_iq(shifted, teacher, weights, gamma=0.9, r_max=0.2)[0],
                              bellman_distill(student, teacher, weights, gamma=0.9)[0], c.logits)
    x = td_terms(student._replace(v=student.log_Z), teacher, weights)
    V_p = torch.where(c.mask, student.z_K, -math.inf).logsumexp(-1)
    torch.testing.assert_close(x.Q[x.known > 0], student.z_a[x.known > 0])
    torch.testing.assert_close(x.V[x.live > 0], V_p[x.live > 0])


def test_the_published_max_min_form_is_the_same_loss():
    """max over Q of E[phi(x)] - E[V - gamma V'], phi(x) = x - x^2 / (4 alpha): gamma V' cancels."""
    c = chain()
    x = td_terms(*inputs(c))
    reward, gain = x.Q - 0.99 * x.V_next, x.V - 0.99 * x.V_next
    published = (x.known * (gain - (reward - reward ** 2 / 0.4))).sum() / x.known.sum()
    assert_same_with_gradient(bellman_distill(*inputs(c))[0], published, c.logits)


def test_td_terms_by_hand():
    """Two columns, sets {0, 1} of three tokens; token 0, then token 1 ends the text."""
    logits = torch.log(torch.tensor([[[1.0, 2.0, 1.0], [3.0, 1.0, 4.0]]], dtype=torch.float64))
    ids, taken = torch.tensor([[[0, 1], [0, 1]]]), torch.tensor([[0, 1]])
    log_t = torch.log(torch.tensor([[[0.6, 0.2], [0.4, 0.4]]], dtype=torch.float64))
    teacher = TeacherSets(log_t, torch.ones(1, 2, 2).bool(), ids == taken[..., None],
                          torch.tensor([[False, True]]))
    student, weights = student_terms(logits, ids, taken), torch.ones(1, 2)
    by_hand = dict(log_s=[1 / 3, 1 / 4], Q=[1 / 4, 1 / 8], V=[3 / 4, 1 / 2], V_next=[1 / 2, 1],
                   r=[3 / 4, 1 / 2], raw_r=[0.6, 0.4], leak=[4 / 3, 2])
    twice = student._replace(v=torch.full((1, 2), 2.0, dtype=torch.float64).log())
    for given, factor in ((student, 1), (twice, 2)):
        x = td_terms(given, teacher, weights)
        for name, wanted in by_hand.items():
            wanted = torch.tensor([wanted], dtype=torch.float64)
            if name in ("Q", "V"):
                wanted = factor * wanted
            if name == "V_next":
                wanted = wanted * torch.tensor([[factor, 1]])           # after the end it is 0
            torch.testing.assert_close(getattr(x, name).exp(), wanted)
    assert x.live.tolist() == x.known.tolist() == [[1.0, 1.0]]


def test_where_gradients_flow_and_target_values():
    """Into V(s') of Bellman Distill, unless stop_gradient; target_values stand for it everywhere."""
    c, values = chain(T=7, V=5, seed=SEED), torch.randn(3, 7, dtype=torch.float64)
    x = td_terms(*inputs(c), target_values=values)
    after = successor_values(values, c.mask.any(-1) & (c.weights > 0), c.terminal)
    assert torch.equal(x.V_next, after) and not x.V_next.requires_grad
    assert not td_terms(*inputs(c), stop_gradient=True).V_next.requires_grad
    for member in (soft_q, stay, retrace, bellman_distill, path_consistency):
        own, slow = (member(*inputs(c), **o)[0] for o in ({}, dict(target_values=values)))
        assert abs(own - slow) > 1e-3
    one, two = (path_consistency(*inputs(c), steps=n, target_values=values, gamma=0.9)[0] for n in (1, 2))
    assert one.item() == pytest.approx(soft_q(*inputs(c), gamma=0.9, target_values=values)[0].item())
    assert abs(one - two) > 1e-3


def tree(depth=3, seed=0):
    """All texts of a small world as documents, whose weights are their probabilities under the teacher ->
    (World, states (B, T), document). document(Q, v, U): student, teacher, weights; K = V, in order."""
    rng, follow = np.random.default_rng(seed), theory.token_follow(2, depth)
    w = theory.world(follow, theory.softmax(1.5 * rng.normal(size=follow.shape)), 0.8, 1.0)
    texts = [((0,), (), 1.0)]
    for states, actions, prob in texts:
        if len(states) > len(actions):
            s = states[-1]
            for a in np.flatnonzero(w.inside[s]):
                after = () if follow[s, a] < 0 else (int(follow[s, a]),)
                texts.append((states + after, (*actions, int(a)), prob * w.target[s, a]))
    texts = [text for text in texts if len(text[0]) == len(text[1])]
    states, taken, ends = torch.zeros(3, len(texts), depth, dtype=torch.long)
    weights = torch.zeros(len(texts), depth, dtype=torch.float64)
    for b, (path, actions, prob) in enumerate(texts):
        n = len(path)
        states[b, :n], taken[b, :n] = torch.tensor(path), torch.tensor(actions)
        weights[b, :n], ends[b, n - 1] = prob, 1
    ids = torch.arange(3).expand(*states.shape, 3)
    mask = torch.tensor(w.inside)[states] & (weights > 0)[..., None]
    teacher = TeacherSets(torch.tensor(w.teacher).log()[states], mask, ids == taken[..., None], ends > 0)

    def document(Q, v, U=None):
        student = student_terms(Q[states], ids, taken)
        return student._replace(v=v[states], U=None if U is None else U[states]), teacher, weights
    return w, states, document


def log_staying(w, log_pi):
    """log P(never leaving a set) from every state on, for a policy log_pi (S, A)."""
    V = np.zeros(len(log_pi))
    for s in reversed(range(len(V))):                           # children first
        later = np.array([0.0 if i < 0 else V[i] for i in w.follow[s]])
        V[s] = math.log(np.exp(log_pi[s] + later)[w.inside[s]].sum())
    return V


def after_each(w, V):
    return np.where(w.follow < 0, 0.0, V[w.follow])


def test_the_stated_optima_have_no_loss():
    """The teacher in its sets with V = 0; for stay the teacher given that it never leaves one."""
    w, _, document = tree()
    never, zero = np.where(w.inside, 0.0, -40.0), torch.zeros(len(w.follow), dtype=torch.float64)
    student = document(torch.tensor(np.log(w.teacher) + never), zero)
    for member in (soft_q, path_consistency, retrace):
        assert member(*student, 1.0)[0] < 1e-12 < stay(*student, 1.0)[0]
    V = log_staying(w, np.log(w.teacher))
    staying = torch.tensor(np.log(w.teacher) + after_each(w, V) + never)
    student = document(staying, torch.tensor(V))
    assert stay(*student, 1.0)[0] < 1e-12 < soft_q(*student, 1.0)[0]
    apart = np.abs(np.exp(staying.log_softmax(-1).numpy()) - w.target).max()
    assert V[0] < -0.1 and apart > 0.005                            # another policy than the nucleus


def test_soft_returns_are_what_the_student_loses_later():
    """With a head that knows, every text's return is log P(the student stays), by enumeration; and where the
    head is fitted, improve has no error."""
    w, states, document = tree(depth=4, seed=1)
    Q = torch.randn(w.follow.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    U = after_each(w, log_staying(w, Q.log_softmax(-1).numpy()))
    student, teacher, weights = document(Q, torch.zeros(len(Q), dtype=torch.float64), torch.tensor(U))
    found, live = soft_returns(student, teacher), teacher.mask.any(-1)
    taken = torch.where(teacher.is_taken, torch.tensor(U)[states], 0).sum(-1)
    torch.testing.assert_close(found[live], taken[live])
    assert found[live].min() < -0.5 and improve(student, teacher, weights, 1.0)[1]["fit"] < 1e-20


def test_heads():
    """Both begin at 0; U is that of the ids; a tenth of its gradient goes on."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_vocab=20, block_size=8, n_layer=1, n_head=2, n_embd=16))
    state, draw = torch.get_rng_state(), set(model.state_dict())
    td_distill.add_heads(model, seed=3)
    assert torch.equal(state, torch.get_rng_state())                # the run's own stream goes on
    heads, ids = model.td_heads, torch.randint(20, (2, 3, 4))
    hidden = torch.randn(2, 3, 16, requires_grad=True)
    assert not any(x.any() for x in heads(hidden, ids)) and set(model.state_dict()) > draw
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    v, U = heads(hidden, ids)
    dense = heads.U(F.gelu(heads.mix(hidden)))                      # (2, 3, 20)
    torch.testing.assert_close(U, dense.gather(-1, ids))
    (through,), (whole,) = (torch.autograd.grad(x.sum(), hidden) for x in (U, dense.gather(-1, ids)))
    torch.testing.assert_close(through, 0.1 * whole)
    torch.testing.assert_close(torch.autograd.grad(v.sum(), hidden)[0], heads.v.weight.expand(2, 3, 16))
    with torch.autocast("cpu", torch.bfloat16):
        student = student_terms(torch.randn(2, 3, 20), ids, ids[..., 0], hidden.bfloat16(), heads)
    assert student.v.dtype == student.U.dtype == torch.float32 and student.v.shape == (2, 3)
    assert isinstance(heads, TDHeads) and student.U.shape == (2, 3, 4)


def test_saved_models_have_no_heads(tmp_path):
    model = GPT(GPTConfig(n_vocab=20, block_size=8, n_layer=1, n_head=2, n_embd=16))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    td_distill.add_heads(model)
    model.save(tmp_path)
    again = GPT.load(tmp_path).state_dict()
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in before)


def test_successor_values_worked_example():
    exists, terminal = torch.tensor([[True, True, True, False]]), torch.tensor([[False, True, False, False]])
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert successor_values(values, exists, terminal).tolist() == [[2.0, 0.0, 0.0, 0.0]]


def test_which_positions_count():
    """Of a row: a chain that runs, a token outside, a broken chain, a given token, the end, padding."""
    has_set = torch.tensor([[True, True, True, False, True, True, False]])[..., None]
    is_taken = torch.tensor([[True, False, True, False, True, True, False]])[..., None]
    ends = torch.tensor([[False] * 5 + [True, False]])

    def kept(terminal, n=7):
        teacher = TeacherSets(torch.zeros(1, n, 1), has_set[:, :n], is_taken[:, :n], terminal[:, :n])
        return bellman_weights(teacher, torch.ones(1, n))[0].nonzero()[:, 0].tolist()
    assert kept(ends) == [0, 4, 5]              # 0 counts: the set of 1 exists, its token does not matter
    assert kept(torch.zeros_like(ends)) == [0, 4] == kept(torch.zeros_like(ends), 6)


def test_padding_is_not_the_token_taken():
    """A set is padded with id 0: where token 0 was taken, that is no sign that it is in the set."""
    c = chain(B=1, T=3, V=5)
    c.ids = torch.tensor([[[3, 0], [1, 2], [2, 0]]])
    c.mask = torch.tensor([[[True, False], [True, True], [True, True]]])
    c.log_probs = torch.where(c.mask, -1.0, MASKED).double()
    c.taken, c.terminal = torch.tensor([[0, 2, 0]]), torch.tensor([[False, False, True]])
    c.weights = torch.ones(1, 3)
    assert bellman_weights(*inputs(c)[1:]).tolist() == [[0.0, 1.0, 1.0]]
    expected = literal(c, c.logits.detach().numpy(), c.v.detach().numpy(), bellman_literal, counts="known")
    assert bellman_distill(*inputs(c))[0].item() == pytest.approx(expected)


def test_of_whole_sets_it_is_dense():
    """K = V: V_p is log_Z, nothing leaks, cloning is cross-entropy."""
    c = example(B=2, T=4, p=1.0)
    c.terminal[:, -1] = True
    student, teacher, weights = inputs(c)
    loss, figures = bellman_distill(student._replace(v=student.log_Z), teacher, weights, leak=0.7)
    nll = F.cross_entropy(c.logits.flatten(0, 1), c.taken.flatten(), reduction="none").view(2, 4)
    after = F.pad(c.logits.logsumexp(-1)[:, 1:], (0, 1))
    r = c.logits.gather(-1, c.taken[..., None])[..., 0] - 0.99 * after
    assert bool(c.weights[0, 0] == 0) and mean_of(c, nll).isfinite()
    assert_same_with_gradient(loss, mean_of(c, nll + r ** 2 / 0.4), c.logits)
    assert abs(figures["leak"]) < 1e-12


def test_bad_values_are_refused():
    for p, k_cap, temperature in ((0, 1, 1), (1.1, 1, 1), (0.5, 0, 1), (0.5, 1, 0), (math.nan, 1, 1)):
        with pytest.raises(ValueError, match="expected 0 < p <= 1"):
            top_p_sets(torch.zeros(1, 3), p, k_cap, temperature)
    with pytest.raises(ValueError, match="NaN"):
        top_p_sets(torch.tensor([[0.0, math.nan]]), 0.5, 1)
    with pytest.raises(ValueError, match="tail='drop'; expected 'inside' or 'bucket'"):
        topp_forward_kl(*inputs(example()), tail="drop")
    for options in (dict(alpha=0), dict(alpha=math.inf), dict(alpha=math.nan)):
        with pytest.raises(ValueError, match="expected"):
            bellman_distill(*inputs(chain()), **options)


# ------------------------------------------------------------------------------------------------------------
# the command line


def test_commands(tmp_path, monkeypatch, capsys):
    write_cache(tmp_path, [([1, 2], [0, 3], [None, ([2], [-0.5])])])
    td_distill.main(["inspect", str(tmp_path)])
    assert "bytes a token" in capsys.readouterr().out
    given = []
    monkeypatch.setattr("course.theory.main", given.append)
    monkeypatch.setattr("experiments.compare.main", given.append)
    td_distill.main(["theory"])
    td_distill.main(["compare", "--seeds=5"])
    assert given == [[], ["--seeds=5"]]
    for arguments, message in ((["inspect", str(tmp_path / "none")], "no teacher cache here"),
                               (["inspect"], "expected"), (["learn"], "expected one of inspect, theory, compare")):
        with pytest.raises(ValueError, match=message):
            td_distill.main(arguments)
