"""Top-p sets, the distillation losses, and the command line."""
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import td_distill
from data.cache import MASKED, Cache
from experiments.teacher import SLACK, top_p_sets
from td_distill import sft_loss, student_terms, topp_forward_kl
from test_cache import write_cache

# ---------------------------------------------------------------------------------------------------------------
# top-p sets


def literal_top_p(log_probs, p, k_cap):
    """One row, as the definition says it: take the most probable token that is left until the mass reaches p."""
    left, kept, mass = list(range(len(log_probs))), [], 0.0
    while left and len(kept) < k_cap and (not kept or p == 1 or mass < p - SLACK):
        best = left[0]
        for token in left:
            if log_probs[token] > log_probs[best]:
                best = token
        if log_probs[best] == -math.inf:
            break
        left.remove(best)
        kept.append(best)
        mass += math.exp(log_probs[best])
    return kept


number = st.one_of(st.integers(-3, 3), st.floats(-20, 20, width=32))            # integers: many ties
logits_rows = st.integers(1, 9).flatmap(
    lambda V: st.lists(st.lists(number, min_size=V, max_size=V), min_size=1, max_size=5))


@settings(max_examples=300, deadline=None)
@given(logits_rows, st.sampled_from([1e-9, 0.1, 0.5, 0.8, 0.95, 1 - 1e-9, 1.0]), st.integers(1, 10),
       st.sampled_from([0.5, 1.0, 3.0]))
def test_top_p_sets_are_those_of_the_literal_loop(rows, p, k_cap, temperature):
    logits = torch.tensor(rows, dtype=torch.float32)
    ids, log_probs, mask = top_p_sets(logits, p, k_cap, temperature)
    assert (ids.dtype, log_probs.dtype, mask.dtype) == (torch.int64, torch.float32, torch.bool)
    full = torch.log_softmax(logits / temperature, dim=-1)
    sizes = []
    for n in range(len(rows)):
        expected = literal_top_p(full[n].tolist(), p, k_cap)
        sizes.append(len(expected))
        assert ids[n][mask[n]].tolist() == expected
        assert torch.equal(log_probs[n][mask[n]], full[n][expected])
        assert (ids[n][len(expected):] == 0).all() and (log_probs[n][len(expected):] == MASKED).all()
        assert mask[n].tolist() == [k < len(expected) for k in range(ids.shape[1])]
    assert ids.shape == log_probs.shape == mask.shape == (len(rows), max(sizes))


def test_top_p_sets_worked_example():
    logits = torch.tensor([[0.2, 0.5, 0.3], [0.98, 0.01, 0.01], [0.25, 0.25, 0.5]]).log()
    ids, log_probs, mask = top_p_sets(logits, p=0.8, k_cap=3)
    assert ids.tolist() == [[1, 2, 0], [0, 0, 0], [2, 0, 1]]
    assert mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    torch.testing.assert_close(log_probs[0, :2].exp(), torch.tensor([0.5, 0.3]))      # not renormalised


def test_ties_across_the_cap_take_the_lower_ids():
    ids, _, mask = top_p_sets(torch.zeros(2, 5000), p=0.9, k_cap=7)
    assert ids.tolist() == [list(range(7))] * 2 and mask.all()


def test_impossible_tokens_are_never_kept():
    ids, _, mask = top_p_sets(torch.tensor([[0.0, -math.inf, 1.0]]), p=1.0, k_cap=3)
    assert ids[mask].tolist() == [2, 0]


@pytest.mark.parametrize("p, k_cap, temperature", [(0, 1, 1), (1.1, 1, 1), (0.5, 0, 1), (0.5, 1, 0), (math.nan, 1, 1)])
def test_settings_out_of_range_are_refused(p, k_cap, temperature):
    with pytest.raises(ValueError, match="expected 0 < p <= 1"):
        top_p_sets(torch.zeros(1, 3), p, k_cap, temperature)


def test_nan_logits_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        top_p_sets(torch.tensor([[0.0, math.nan]]), 0.5, 1)


# ---------------------------------------------------------------------------------------------------------------
# the losses


def example(B=2, T=3, V=11, p=0.7, k_cap=99, seed=0, dtype=torch.float64, scale=2.0):
    """Student logits, teacher logits, the teacher's sets (B, T, K) and weights, some of them 0."""
    g = torch.Generator().manual_seed(seed)
    student = (scale * torch.randn(B, T, V, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    teacher = 2 * torch.randn(B, T, V, generator=g, dtype=torch.float64)
    ids, _, mask = (x.view(B, T, -1) for x in top_p_sets(teacher.view(B * T, V), p, k_cap))
    log_probs = torch.where(mask, teacher.log_softmax(-1).gather(-1, ids), MASKED).to(dtype)
    weights = torch.rand(B, T, generator=g, dtype=torch.float64).to(dtype)
    weights[0, 0] = 0
    taken = torch.randint(V, (B, T), generator=g)
    return student, teacher, ids, log_probs, mask, weights, taken


def kl_of(student, ids, log_probs, mask, weights, **options):
    z_K, _, log_Z = student_terms(student, ids, torch.zeros_like(ids[..., 0]))
    return topp_forward_kl(z_K, log_Z, log_probs, mask, weights, **options)


def assert_same_with_gradient(ours, theirs, student, **tolerance):
    torch.testing.assert_close(ours, theirs, **tolerance)
    gradients = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_student_terms_against_indexing(dtype):
    logits = torch.randn(2, 3, 7).to(dtype)
    ids, taken = torch.randint(7, (2, 3, 4)), torch.randint(7, (2, 3))
    z_K, z_a, log_Z = student_terms(logits, ids, taken)
    wide = logits.double()
    assert {z_K.dtype, z_a.dtype, log_Z.dtype} == {torch.float64 if dtype == torch.float64 else torch.float32}
    for b in range(2):
        for t in range(3):
            assert z_a[b, t] == wide[b, t, taken[b, t]] and z_K[b, t].tolist() == [wide[b, t, i] for i in ids[b, t]]
            assert log_Z[b, t].item() == pytest.approx(math.log(sum(math.exp(x) for x in wide[b, t])), rel=1e-5)


def test_sft_is_cross_entropy():
    student, _, _, _, _, weights, taken = example()
    _, z_a, log_Z = student_terms(student, taken[..., None], taken)
    loss, figures = sft_loss(z_a, log_Z, weights)
    each = F.cross_entropy(student.flatten(0, 1), taken.flatten(), reduction="none").view_as(weights)
    assert_same_with_gradient(loss, (weights * each).sum() / weights.sum(), student)
    assert figures["nll"] == loss.detach() and not figures["nll"].requires_grad
    ones = torch.ones_like(weights)
    mean = F.cross_entropy(student.flatten(0, 1), taken.flatten())
    assert_same_with_gradient(sft_loss(z_a, log_Z, ones)[0], mean, student)


@pytest.mark.parametrize("tail", ["inside", "bucket"])
def test_with_the_whole_vocabulary_it_is_the_dense_kl(tail):
    student, teacher, ids, log_probs, mask, weights, _ = example(p=1.0)
    assert mask.all() and ids.shape[-1] == 11
    loss, figures = kl_of(student, ids, log_probs, mask, weights, tail=tail)
    each = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert_same_with_gradient(loss, (weights * each).sum() / weights.sum(), student, rtol=1e-9, atol=1e-9)
    assert figures["kept_mass"].item() == pytest.approx(1) and figures["leak"].item() == pytest.approx(0, abs=1e-9)


def test_renormalised_kl_is_the_dense_kl_to_the_projected_teacher():
    student, teacher, ids, log_probs, mask, weights, _ = example(p=0.7)
    assert mask.any(-1).all() and not mask.all()
    inside = torch.zeros_like(teacher, dtype=torch.bool)
    for b, t in np.ndindex(2, 3):
        inside[b, t, ids[b, t][mask[b, t]]] = True
    projected = teacher.softmax(-1) * inside
    kept = projected.sum(-1, keepdim=True)
    projected = projected / kept
    each = F.kl_div(student.log_softmax(-1), projected, reduction="none").sum(-1)
    loss, figures = kl_of(student, ids, log_probs, mask, weights)
    assert_same_with_gradient(loss, (weights * each).sum() / weights.sum(), student)
    share = weights / weights.sum()
    leak = -(student.softmax(-1) * inside).sum(-1).log()
    entropy = -torch.xlogy(projected, projected).sum(-1)
    for name, value in (("leak", leak), ("kept_mass", kept[..., 0]), ("entropy", entropy), ("kl", each)):
        torch.testing.assert_close(figures[name], (share * value).sum().detach())


def test_bucket_with_one_token_outside_is_the_dense_kl():
    student, teacher, ids, log_probs, mask, weights, _ = example(p=1.0, k_cap=10)
    assert ids.shape[-1] == 10 and mask.all()
    loss, figures = kl_of(student, ids, log_probs, mask, weights, tail="bucket")
    each = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert_same_with_gradient(loss, (weights * each).sum() / weights.sum(), student, rtol=1e-8, atol=1e-10)
    entropy = -torch.xlogy(teacher.softmax(-1), teacher.softmax(-1)).sum(-1)
    torch.testing.assert_close(figures["entropy"], (weights * entropy).sum() / weights.sum())


def test_bucket_against_the_coarse_distribution():
    student, teacher, ids, log_probs, mask, weights, _ = example(p=0.7)
    loss, _ = kl_of(student, ids, log_probs, mask, weights, tail="bucket")
    expected = 0.0
    for b, t in np.ndindex(2, 3):
        kept = ids[b, t][mask[b, t]]
        t_coarse, s_coarse = (torch.cat([pi[kept], 1 - pi[kept].sum()[None]])
                              for pi in (teacher[b, t].softmax(-1), student[b, t].softmax(-1)))
        expected = expected + weights[b, t] * (t_coarse * (t_coarse.log() - s_coarse.log())).sum()
    assert_same_with_gradient(loss, expected / weights.sum(), student)


@pytest.mark.parametrize("tail", ["inside", "bucket"])
def test_gradients_by_finite_differences(tail):
    student, _, ids, log_probs, mask, weights, taken = example(V=6)
    assert torch.autograd.gradcheck(lambda x: kl_of(x, ids, log_probs, mask, weights, tail=tail)[0], student)
    assert torch.autograd.gradcheck(lambda x: sft_loss(*student_terms(x, ids, taken)[1:], weights)[0], student)


@pytest.mark.parametrize("tail", ["inside", "bucket"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [2, 2000])
def test_finite_for_large_logits(tail, dtype, scale):
    """A student that is sure, rightly or wrongly: mass inside the set of exactly 1 and of exactly 0, in float32."""
    for seed in range(5):
        student, _, ids, log_probs, mask, weights, taken = example(dtype=dtype, scale=scale, seed=seed)
        loss, figures = kl_of(student, ids, log_probs, mask, weights, tail=tail)
        hard, _ = sft_loss(*student_terms(student, ids, taken)[1:], weights)
        grad, = torch.autograd.grad(loss + hard, student)
        assert loss.dtype == hard.dtype == torch.float32 and grad.dtype == dtype
        assert torch.isfinite(loss) and torch.isfinite(hard) and torch.isfinite(grad).all() and grad.abs().max() > 0
        assert all(torch.isfinite(value) and not value.requires_grad for value in figures.values())


@pytest.mark.parametrize("tail", ["inside", "bucket"])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e38])
def test_what_stands_at_padding_counts_for_nothing(tail, garbage):
    """Padded entries of a set, empty sets, positions of weight 0: neither value nor gradient, whatever stands there."""
    student, _, ids, log_probs, mask, weights, taken = example(dtype=torch.float32)
    mask = mask.clone()
    mask[1, 2] = False                                      # an empty set at a position with a weight
    dead = (weights == 0) | ~mask.any(-1)
    assert dead.sum() == 2 and (~mask & ~dead[..., None]).any()
    z_K, z_a, log_Z = (x.detach() for x in student_terms(student, ids, taken))

    def value_and_gradients(fill):
        kept = mask & ~dead[..., None]
        terms = [torch.where(kept, z_K, fill), torch.where(dead, fill, z_a), torch.where(dead, fill, log_Z)]
        terms = [x.requires_grad_() for x in terms]
        teacher = torch.where(kept, log_probs, fill)
        loss, figures = topp_forward_kl(terms[0], terms[2], teacher, mask, weights, tail=tail)
        hard, _ = sft_loss(terms[1], terms[2], torch.where(dead, 0, weights))
        return [loss.detach(), hard.detach(), *figures.values(), *torch.autograd.grad(loss + hard, terms)]
    clean, dirty = value_and_gradients(0.0), value_and_gradients(garbage)
    for a, b in zip(clean, dirty):
        assert torch.equal(a, b) and torch.isfinite(b).all()
    assert (dirty[-3][~mask | dead[..., None]] == 0).all() and (dirty[-1][dead] == 0).all()
    assert (dirty[-1][~dead] != 0).all()


@pytest.mark.parametrize("tail", ["inside", "bucket"])
def test_micro_batches_add_up_to_the_batch(tail):
    student, _, ids, log_probs, mask, weights, taken = example(B=4)
    total = weights.sum()

    def losses(rows, denominator):
        z_K, z_a, log_Z = student_terms(student[rows], ids[rows], taken[rows])
        loss, figures = topp_forward_kl(z_K, log_Z, log_probs[rows], mask[rows], weights[rows], denominator, tail=tail)
        return loss + sft_loss(z_a, log_Z, weights[rows], denominator)[0], figures
    whole, figures = losses(slice(0, 4), None)
    parts = [losses(rows, total) for rows in (slice(0, 1), slice(1, 4))]
    assert_same_with_gradient(parts[0][0] + parts[1][0], whole, student)
    for name in figures:
        torch.testing.assert_close(parts[0][1][name] + parts[1][1][name], figures[name])
    torch.testing.assert_close(losses(slice(0, 4), total.item())[0], whole)              # a plain number will do


def test_no_weight_at_all_gives_zero():
    student, _, ids, log_probs, mask, weights, taken = example()
    z_K, z_a, log_Z = student_terms(student, ids, taken)
    for loss, _ in (sft_loss(z_a, log_Z, 0 * weights), topp_forward_kl(z_K, log_Z, log_probs, mask, 0 * weights),
                    topp_forward_kl(z_K, log_Z, log_probs, torch.zeros_like(mask), weights)):
        assert loss == 0 and (torch.autograd.grad(loss, student, retain_graph=True)[0] == 0).all()


@pytest.mark.parametrize("tail", ["inside", "bucket"])
def test_the_optimum_is_the_one_that_the_docstring_names(tail):
    teacher = torch.tensor([[[0.5, 0.2, 0.1, 0.15, 0.05]]], dtype=torch.float64)
    ids, log_probs, mask = (x[None] for x in top_p_sets(teacher[0].log(), p=0.6, k_cap=9))
    logits = torch.zeros(1, 1, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss, _ = kl_of(logits, ids, log_probs, mask, torch.ones(1, 1), tail=tail)
        loss.backward()
        return loss
    optimizer.step(closure)
    found = logits.detach().softmax(-1)[0, 0]
    if tail == "inside":
        expected = torch.tensor([5 / 7, 2 / 7, 0, 0, 0], dtype=torch.float64)
    else:
        expected = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_other_tails_are_refused():
    student, _, ids, log_probs, mask, weights, _ = example()
    with pytest.raises(ValueError, match="tail='drop'; expected 'inside' or 'bucket'"):
        kl_of(student, ids, log_probs, mask, weights, tail="drop")


def test_cached_sets_give_the_loss_of_the_sets(tmp_path):
    """logits -> sets -> cache -> batch -> loss: up to float16, that of the sets kept in memory."""
    student, teacher, ids, log_probs, mask, weights, _ = example(B=1, T=5, V=40, p=0.95, dtype=torch.float32)
    sets = [(ids[0, t][mask[0, t]].numpy(), log_probs[0, t][mask[0, t]].numpy()) for t in range(5)]
    write_cache(tmp_path, [([1, 2, 3, 4, 5], [0] * 5, sets)], n_vocab=40)
    batch = Cache(tmp_path).batch([0])
    for tail in ("inside", "bucket"):
        cached, figures = kl_of(student, batch["ids"], batch["log_probs"], batch["mask"], weights, tail=tail)
        exact, _ = kl_of(student, ids, log_probs, mask, weights, tail=tail)
        torch.testing.assert_close(cached, exact, rtol=3e-3, atol=1e-3)
        assert figures["kept_mass"] <= 1


# ---------------------------------------------------------------------------------------------------------------
# the command line


def test_command_line(tmp_path):
    write_cache(tmp_path, [([1, 2], [0, 3], [None, ([2], [-0.5])])])

    def run(*arguments):
        return subprocess.run([sys.executable, td_distill.__file__, *arguments], capture_output=True, text=True)
    found = run("inspect", str(tmp_path))
    assert found.returncode == 0 and "bytes a token" in found.stdout
    found = run("inspect", str(tmp_path / "none"))
    assert found.returncode == 2 and found.stderr.startswith("error: ") and "Traceback" not in found.stderr


def test_the_other_commands_and_what_cannot_be_read(tmp_path, monkeypatch, capsys):
    """In this process, with the course's own work replaced."""
    given = []
    monkeypatch.setattr("course.theory.lines", lambda: iter(["1. a claim", "2. another"]))
    monkeypatch.setattr("experiments.compare.main", given.append)
    assert td_distill.main(["theory"]) == 0 and capsys.readouterr().out == "1. a claim\n2. another\n"
    assert td_distill.main(["compare", "--seeds", "5"]) == 0 and given == [["--seeds", "5"]]
    assert td_distill.main(["inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no teacher cache here")
