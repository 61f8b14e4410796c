"""Top-p sets, the distillation losses against literal loops and dense references, and the command line."""
import math
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import td_distill
from data.cache import MASKED, TeacherCache
from data.cache_tools import CacheWriter
from model import GPT, GPTConfig
from td_distill import (SLACK, StudentTerms, TeacherSets, bellman_distill, bellman_terms, bellman_weights,
                        draw_with_sets, restrict_to_p, reverse_kl, sft_loss, student_terms, successor_values,
                        top_p_sets, topp_forward_kl)

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
    """A batch of random student logits, and a teacher's dense logits and sets; one weight is 0."""
    g = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(B, T, V, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    dense = 2 * torch.randn(B, T, V, generator=g, dtype=torch.float64)
    ids, _, mask = (x.view(B, T, -1) for x in top_p_sets(dense.view(B * T, V), p, k_cap))
    log_probs = torch.where(mask, dense.log_softmax(-1).gather(-1, ids), MASKED).to(dtype)
    weights = torch.rand(B, T, generator=g, dtype=torch.float64).to(dtype)
    weights[0, 0] = 0
    taken = torch.randint(V, (B, T), generator=g)
    terminal = torch.zeros(B, T, dtype=torch.bool)
    return SimpleNamespace(logits=logits, dense=dense, ids=ids, log_probs=log_probs, mask=mask,
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


def inputs(c, logits=None, rows=slice(None)):
    """What the losses take: student, teacher, weights."""
    logits = (c.logits if logits is None else logits)[rows]
    ids, taken = c.ids[rows], c.taken[rows]
    teacher = TeacherSets(c.log_probs[rows], c.mask[rows], ids == taken[..., None], c.terminal[rows])
    return student_terms(logits, ids, taken), teacher, c.weights[rows]


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
# what holds of every loss. test_losses.py checks the same of the losses of experiments/losses.py


def live_weight(teacher, weights):
    return (weights * teacher.mask.any(-1)).sum()


def bellman_weight(teacher, weights):
    return bellman_weights(teacher, weights).sum()


LOSSES = {"sft": (lambda s, t, w, d=None: sft_loss(s, w * t.mask.any(-1), d), live_weight),
          "inside": (topp_forward_kl, live_weight),
          "bucket": (partial(topp_forward_kl, tail="bucket"), live_weight),
          "reverse": (reverse_kl, live_weight),
          "bellman": (partial(bellman_distill, leak=0.5), bellman_weight),
          "bellman expected": (partial(bellman_distill, expected=True, gauge="log_softmax"), live_weight)}
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


@every_loss
def test_gradients_by_finite_differences(loss, denominator):
    c = chain(T=4, V=5)
    assert torch.autograd.gradcheck(lambda x: loss(*inputs(c, x))[0], c.logits)


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
    """Padded entries, positions without a set, the token's logit at weight 0."""
    c = chain(dtype=torch.float32)
    student, teacher, weights = inputs(c)
    teacher.is_taken[1, 1] = False                          # the token taken there is in nobody's set
    dead, silent = ~c.mask.any(-1), ~c.mask.any(-1) | (weights == 0)

    def value_and_gradients(fill):
        counts = c.mask, ~silent, ~dead
        parts = [torch.where(kept, x.detach(), fill).requires_grad_() for kept, x in zip(counts, student)]
        filled = teacher._replace(log_probs=torch.where(c.mask, c.log_probs, fill))
        found, figures = loss(StudentTerms(*parts), filled, weights)
        grads = torch.autograd.grad(found, parts, allow_unused=True, materialize_grads=True)
        return [found.detach(), *figures.values(), *grads]
    for clean, dirty in zip(value_and_gradients(0.0), value_and_gradients(garbage)):
        assert torch.isfinite(dirty).all() and torch.equal(clean, dirty)


# ------------------------------------------------------------------------------------------------------------
# the losses of one position


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_student_terms_against_indexing(dtype):
    logits = torch.randn(2, 3, 7).to(dtype)
    ids, taken = torch.randint(7, (2, 3, 4)), torch.randint(7, (2, 3))
    student, wide = student_terms(logits, ids, taken), logits.double()
    assert {x.dtype for x in student} == {torch.float64 if dtype == torch.float64 else torch.float32}
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
# Bellman Distill


def square(x, alpha=0.1):
    return x ** 2 / (4 * alpha)


def literal(c, logits, *, cost=square, gamma=0.99, leak=0.0, expected=False, toward="zero", gauge="raw",
            stop_gradient=False, target_values=None):
    """bellman_distill, and to_teacher, position by position with lists for sets -> (loss, positions)."""
    def in_set(b, t):
        return [i for i, kept in zip(c.ids[b, t].tolist(), c.mask[b, t].tolist()) if kept]

    def values(b, t):
        """V_p in the gauge, what the gauge subtracts, the teacher's V_p."""
        z, centre = logits[b, t], logits[b, t].logsumexp(0) if gauge == "log_softmax" else 0.0
        return z[in_set(b, t)].logsumexp(0) - centre, centre, c.log_probs[b, t][c.mask[b, t]].logsumexp(0)

    total, weight, used = 0.0, 0.0, []
    for b, t in product(*map(range, c.weights.shape)):
        kept, a, w = in_set(b, t), c.taken[b, t].item(), c.weights[b, t]
        follows = t + 1 < c.weights.shape[1] and bool(in_set(b, t + 1))
        known = a in kept and (bool(c.terminal[b, t]) or follows)
        if w == 0 or not kept or not (known or expected):
            continue
        V, centre, teacher_V = values(b, t)
        after = teacher_after = 0.0
        if known and not c.terminal[b, t]:
            after, _, teacher_after = values(b, t + 1)
            after = after if target_values is None else target_values[b, t + 1]
            after = after.detach() if stop_gradient else after
        x = logits[b, t, a] - centre - gamma * after if known else torch.zeros(()).double()
        if toward == "teacher" and known:
            x = x - (c.log_probs[b, t, kept.index(a)] - gamma * teacher_after)
        log_proj = logits[b, t, kept].log_softmax(0)
        q = c.log_probs[b, t][c.mask[b, t]].softmax(0)
        cloning = -(q * log_proj).sum() if expected else -log_proj[kept.index(a)]
        leaks = logits[b, t].logsumexp(0) - logits[b, t, kept].logsumexp(0)
        total, weight = total + w * (cloning + cost(x) + leak * leaks), weight + w
        used.append([b, t])
    return total / weight, used


VALUES = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("options", [
    {}, dict(gamma=0.5), dict(leak=0.3), dict(gauge="log_softmax"), dict(stop_gradient=True), dict(gamma=0.0),
    dict(expected=True, gauge="log_softmax"), dict(target_values=VALUES)], ids=str)
@pytest.mark.parametrize("alpha", [0.1, 2.0])
def test_bellman_distill_against_the_loop(options, alpha):
    c = chain()
    loss, figures = bellman_distill(*inputs(c), alpha=alpha, **options)
    expected, used = literal(c, c.logits, cost=partial(square, alpha=alpha), **options)
    assert 3 < len(used) < 15                               # some positions are dropped, some are left
    assert_same_with_gradient(loss, expected, c.logits)
    parts = figures["cloning"] + figures["bellman"] + options.get("leak", 0) * figures["leak"]
    torch.testing.assert_close(loss.detach(), parts)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 7), st.sampled_from([0.3, 0.8, 1.0]),
       st.integers(0, 10 ** 6), st.sampled_from([0.0, 0.9, 1.0]), st.sampled_from(["raw", "log_softmax"]))
def test_any_shape_any_flags(B, T, V, p, seed, gamma, gauge):
    c = example(B, T, V, p, seed=seed)
    g = torch.Generator().manual_seed(seed)
    c.mask &= torch.rand(B, T, 1, generator=g) < 0.8
    c.terminal = torch.rand(B, T, generator=g) < 0.2
    _, teacher, weights = inputs(c)
    counted = bellman_weights(teacher, weights)
    loss, _ = bellman_distill(*inputs(c), gamma=gamma, gauge=gauge)
    if not counted.any():
        assert loss == 0
        return
    expected, used = literal(c, c.logits, gamma=gamma, gauge=gauge)
    assert counted.nonzero().tolist() == used
    assert_same_with_gradient(loss, expected, c.logits, rtol=1e-7, atol=1e-9)


def test_the_published_max_min_form_is_the_same_loss():
    """max over Q of E[phi(x)] - E[V - gamma V'], phi(x) = x - x^2 / (4 alpha): gamma V' cancels."""
    c = chain()
    reward, _, gain, _, counted = bellman_terms(*inputs(c), 0.99)
    published = (counted * (gain - (reward - square(reward)))).sum() / counted.sum()
    assert_same_with_gradient(bellman_distill(*inputs(c))[0], published, c.logits)


def test_bellman_terms_by_hand():
    """Two columns, sets {0, 1} of three tokens; token 0, then token 1 ends the text."""
    logits = torch.log(torch.tensor([[[1.0, 2.0, 1.0], [3.0, 1.0, 4.0]]], dtype=torch.float64))
    ids, taken = torch.tensor([[[0, 1], [0, 1]]]), torch.tensor([[0, 1]])
    teacher = TeacherSets(torch.zeros(1, 2, 2), torch.ones(1, 2, 2).bool(), ids == taken[..., None],
                          torch.tensor([[False, True]]))
    known = student_terms(logits, ids, taken), teacher, torch.ones(1, 2), 0.5
    # V_p = log 3, log 4; reward = log 1 - .5 log 4, log 1; cloning = log 3 - log 1, log 4 - log 1
    by_hand = [[1 / 2, 1], [3, 4], [3 / 2, 4], [4 / 3, 2]]
    for values, expected in zip(bellman_terms(*known), by_hand):
        torch.testing.assert_close(values.exp(), torch.tensor([expected], dtype=torch.float64))
    reward = bellman_terms(*known, gauge="log_softmax")[0]              # log 1/4 - .5 log 4/8, log 1/8
    torch.testing.assert_close(reward.exp(), torch.tensor([[0.25 * 2 ** 0.5, 0.125]], dtype=torch.float64))


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
    assert_same_with_gradient(bellman_distill(*inputs(c))[0], literal(c, c.logits)[0], c.logits)


def test_of_whole_sets_it_is_dense():
    """K = V: V_p is log_Z, nothing leaks, cloning is cross-entropy."""
    c = example(B=2, T=4, p=1.0)
    c.terminal[:, -1] = True
    loss, figures = bellman_distill(*inputs(c), leak=0.7)
    nll = F.cross_entropy(c.logits.flatten(0, 1), c.taken.flatten(), reduction="none").view(2, 4)
    after = F.pad(c.logits.logsumexp(-1)[:, 1:], (0, 1))
    r = c.logits.gather(-1, c.taken[..., None])[..., 0] - 0.99 * after
    assert_same_with_gradient(loss, mean_of(c, nll + square(r)), c.logits)
    assert abs(figures["leak"]) < 1e-12


def test_bad_values_are_refused():
    for p, k_cap, temperature in ((0, 1, 1), (1.1, 1, 1), (0.5, 0, 1), (0.5, 1, 0), (math.nan, 1, 1)):
        with pytest.raises(ValueError, match="expected 0 < p <= 1"):
            top_p_sets(torch.zeros(1, 3), p, k_cap, temperature)
    with pytest.raises(ValueError, match="NaN"):
        top_p_sets(torch.tensor([[0.0, math.nan]]), 0.5, 1)
    with pytest.raises(ValueError, match="tail='drop'; expected 'inside' or 'bucket'"):
        topp_forward_kl(*inputs(example()), tail="drop")
    for options in (dict(gauge="max"), dict(alpha=0), dict(alpha=math.inf), dict(alpha=math.nan)):
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
