"""The comparison of objectives: what it measures against plain loops, and a whole small run that is stopped and goes on."""
import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import brd
import td_distill
from course import compare, objectives, tasks
from experiments.objectives import OBJECTIVES
from data import grammar, reads, world
from data.documents import course_tokenizer

SMALL = tasks.Size(prompts=24, answers=2, tests=24, teacher_tokens=3000, start_tokens=2000, max_new=16)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def task(out):
    """The grammar, with a teacher that knows next to nothing: its answers end by luck."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    task = tasks.open_task("grammar", out, SMALL)
    torch.set_num_threads(threads)
    return task


@pytest.fixture(scope="module")
def model(task):
    return objectives.new_model(task.student, 3)


# --- what is measured ----------------------------------------------------------------------------------------------------

def test_position_figures_are_those_of_one_document_at_a_time(task, model):
    documents = [(task.prompts[i], task.answers[i]) for i in range(5)]
    for (prompt, answer), (log_s, log_t, kl) in zip(documents, compare.position_figures(model, task.teacher, documents)):
        ids = torch.tensor([prompt + answer])
        both = [m.logits(m.hidden(ids))[0, len(prompt) - 1:-1].log_softmax(-1) for m in (model, task.teacher)]   # (T, V)
        taken = torch.tensor(answer)[:, None]
        torch.testing.assert_close(log_s, both[0].gather(1, taken)[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(log_t, both[1].gather(1, taken)[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(kl, (both[1].exp() * (both[1] - both[0])).sum(-1), rtol=1e-3, atol=1e-4)


def test_excess_errors_by_hand():
    own, teachers = [torch.full((40,), 0.3), torch.full((4,), 0.1)], [torch.full((40,), 0.1)]
    # the first 4 positions have mean .2, the others .3: over 8 tokens .8 + 1.2 = 2.0 against .8
    found = compare.excess_errors(own, teachers)
    assert found[8] == pytest.approx(100 * (2.0 / 0.8 - 1)) and found[32] == pytest.approx(100 * ((0.8 + 28 * 0.3) / 3.2 - 1))


def test_time_to_is_linear_in_log_seconds():
    curve = {10.0: 0.2, 40.0: 0.6, 80.0: 0.5}
    assert compare.time_to(curve, 0.4) == pytest.approx(20.0)
    assert compare.time_to(curve, 0.1) == 10.0 and compare.time_to(curve, 0.7) == math.inf


def test_mean_se_by_hand():
    assert compare.mean_se([1.0, 3.0]) == (2.0, pytest.approx(1.0)) and math.isnan(compare.mean_se([1.0])[1])


# --- what the objectives are given ----------------------------------------------------------------------------------------

def test_caches_hold_one_text_and_smaller_sets(task):
    whole, small = task.caches["free", 1.0], task.caches["free", 0.8]
    assert len(whole) == len(small) > 0 and small.header["p"] == 0.8
    for d in range(len(whole)):
        tokens, _, counts, ids, log_probs = whole.document(d)
        assert (small.document(d)[0] == tokens).all()
        at = small_at = 0
        for t, n in enumerate(counts.tolist()):
            probs = np.exp(log_probs[at:at + n].astype(np.float64))
            keep = int((np.cumsum(probs) - probs < 0.8 - reads.SLACK).sum())
            assert small.document(d)[2][t] == keep
            assert (small.document(d)[3][small_at:small_at + keep] == ids[at:at + keep]).all()
            at, small_at = at + n, small_at + keep


def test_a_cache_cannot_be_widened(task, tmp_path):
    with pytest.raises(ValueError, match="made with p=0.8, which does not hold the sets of p=0.95"):
        reads.narrow_cache(task.caches["free", 0.8], tmp_path, 0.95)


@pytest.mark.parametrize("source", ["references", "free"])
def test_terms_are_those_of_the_answers(task, model, source):
    rows = task.references if source == "references" else task.caches["free", 0.8]
    s = objectives.terms(model, rows, [0, 3], task)
    for b, d in enumerate([0, 3]):
        tokens = torch.tensor(rows.document(d)[0].astype(np.int64))
        go = tokens.tolist().index(grammar.GO)
        logits = model.logits(model.hidden(tokens[None, :-1]))[0]
        answer = slice(go, len(tokens) - 1)
        assert s.weights[b].nonzero()[:, 0].tolist() == list(range(go, len(tokens) - 1))
        torch.testing.assert_close(s.z_a[b, answer], logits[answer].gather(1, tokens[1:, None][answer])[:, 0], rtol=1e-4, atol=1e-4)
        assert s.terminal[b, answer].nonzero()[:, 0].tolist() == [len(tokens) - 2 - go]
        assert s.mask[b].any(-1).nonzero()[:, 0].tolist() == ([] if source == "references" else list(range(go, len(tokens) - 1)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_control_and_a_finite_gradient(task, model, name):
    row = OBJECTIVES[name]
    assert row.control in OBJECTIVES
    torch.manual_seed(1)
    source = task.references if row.source == "references" else task.caches["nucleus" if row.source == "nucleus" else "free", row.p]
    loss = row.loss((objectives.own_answers if row.source == "own" else objectives.terms)(model, source, range(6), task))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(g.isfinite().all() for g in gradients) and max(float(g.abs().max()) for g in gradients) > 0


def test_sampled_targets_are_the_dense_loss_in_the_mean(task, model):
    s = objectives.terms(model, task.caches["free", 1.0], range(4), task)
    dense = objectives.kl()(s)
    entropy = td_distill.topp_forward_kl(s.z_K, s.log_Z, s.log_probs, s.mask, s.weights)[1]["entropy"]
    torch.manual_seed(0)
    means = []
    for _ in range(300):            # the loss holds the entropy of the draws; without it, it is the cross-entropy
        drawn, log_q, mask = (x.unflatten(0, s.mask.shape[:2]) for x in reads.sampled_sets(s.log_probs.flatten(0, 1), 12))
        loss, figures = td_distill.topp_forward_kl(s.z_K.gather(-1, drawn), s.log_Z, log_q, mask & s.mask.any(-1, keepdim=True), s.weights)
        means.append(float(loss.detach() + figures["entropy"]))
    assert np.mean(means) == pytest.approx(float(dense.detach() + entropy), abs=4 * np.std(means) / 300 ** 0.5)


def test_a_leak_that_weighs_what_is_to_come(task, model):
    """Equal weights where gamma is 0; otherwise the weight of a position is 1 - gamma^(tokens left), over its mean."""
    s = objectives.terms(model, task.caches["free", 0.8], [0, 1], task)
    torch.testing.assert_close(objectives.to_come(3.0, gamma=0.0)(s), objectives.kl(leak=3.0)(s))
    total, weighted, count = 0.0, 0.0, 0
    for b in range(2):
        live = s.mask[b].any(-1).nonzero()[:, 0].tolist()
        for i, t in enumerate(live):
            outside = s.log_Z[b, t] - s.z_K[b, t][s.mask[b, t]].logsumexp(0)
            weight = 1 - 0.9 ** (len(live) - i)
            total, weighted, count = total + weight, weighted + weight * outside, count + 1
    expected = objectives.kl(leak=0.0)(s) + 3.0 * weighted / total
    torch.testing.assert_close(objectives.to_come(3.0, gamma=0.9)(s), expected)


def test_looking_ahead_learns_the_discounted_mass_to_come():
    """One token in the set, and a leak that grows: the regression finds the sums that a loop finds."""
    torch.manual_seed(0)
    B, T, C = 2, 5, 8
    s = SimpleNamespace(hidden=torch.randn(B, T, C), ids=torch.randint(0, 3, (B, T, 1)), mask=torch.ones(B, T, 1, dtype=torch.bool),
                        hit=torch.ones(B, T, 1, dtype=torch.bool))
    outside = torch.rand(B, T)
    head = objectives.LookAhead(C, 3, gamma=0.9)
    head.adam.param_groups[0]["lr"] = 0.03
    for _ in range(3000):
        head.fit(s, outside)
    for b in range(B):
        for t in range(T):
            wanted = -sum(0.9 ** (k - t - 1) * float(outside[b, k]) for k in range(t + 1, T))
            assert float(head.of(s)[b, t, 0].detach()) == pytest.approx(wanted, abs=0.02)


def test_improving_by_nothing_is_kd(task):
    """beta 0, or a head that has learnt nothing yet: the target is the teacher's own set."""
    for beta, control in ((0.0, None), (0.0, "shuffled"), (0.0, "class")):
        model = objectives.new_model(task.student, 3)
        s = objectives.terms(model, task.caches["free", 0.8], range(4), task)
        torch.testing.assert_close(objectives.improve(beta, leak=3.0, control=control)(s), objectives.kl(leak=3.0)(s), rtol=1e-4, atol=1e-5)


def test_own_answers_are_scored_at_every_token_of_theirs(task, model):
    torch.manual_seed(2)
    s = objectives.own_answers(model, task.caches["free", 1.0], [1, 2], task)
    assert s.z.shape == s.log_t.shape == (2, s.weights.size(1), grammar.N_VOCAB)
    for b, d in enumerate([1, 2]):
        go = task.caches["free", 1.0].document(d)[0].tolist().index(grammar.GO)
        columns = s.weights[b].nonzero()[:, 0].tolist()
        assert columns[0] == go and columns == list(range(go, go + len(columns))) and len(columns) <= SMALL.max_new
    p, q = s.log_t.exp(), s.z.log_softmax(-1).exp()
    reverse = (q * (q.log() - p.log())).sum(-1)
    torch.testing.assert_close(objectives.gkd(1.0)(s), (reverse * s.weights).sum() / s.weights.sum(), rtol=1e-4, atol=1e-5)


# --- a whole comparison -----------------------------------------------------------------------------------------------------

def test_a_comparison_is_made_once_goes_on_and_prints_a_table(task, out):
    rows = ["SFT", "KD p=.8", "BD"]
    results = compare.compare("grammar", out, SMALL, rows, 2, 16, [(1500, 0.0)], 1, (0.005, 0.01))
    path = out / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 * (2 + 2)
    for rate, runs in results.values():
        assert rate in (0.005, 0.01) and [run["seed"] for run in runs] == [1, 2]
        assert all(abs(run["seen"] - 1500) < 88 for run in runs)
        assert all(0 <= run[name] <= 1 for run in runs for name in ("T=1", "T=.7", "nucleus", "greedy", "distinct"))
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:30], encoding="utf-8")   # killed while a line was written
    again = compare.compare("grammar", out, SMALL, rows, 2, 16, [(1500, 0.0)], 1, (0.005, 0.01))
    timeless = lambda run: {k: v for k, v in run.items() if k != "cpu seconds"}                             # noqa: E731
    assert [list(map(timeless, runs)) for _, runs in again.values()] == [list(map(timeless, runs)) for _, runs in results.values()]
    assert [json.loads(line)["row"] for line in path.read_text(encoding="utf-8").splitlines()].count("SFT") == 4
    text = "\n".join(compare.table(again))
    a, b = ([run["coverage"] for run in again[row, (1500, 0.0)][1]] for row in ("SFT", "KD p=.8"))
    difference = np.subtract(a, b)
    cell = f"{difference.mean():+.3f} ±{difference.std(ddof=1) / 2 ** 0.5:.3f}"
    assert cell in next(line for line in text.split("minus the control")[1].splitlines() if line.startswith("SFT"))
    assert "\n".join(compare.table(again)).splitlines()[2:] == "\n".join(compare.shown(path)).splitlines()[4:]
    with pytest.raises(ValueError, match="use another --out_dir"):
        compare.compare("grammar", out, SMALL._replace(answers=1), rows, 2, 16, [(1500, 0.0)], 1, (0.005, 0.01))


def test_curves_by_hand():
    runs = lambda *values: (0.01, [{"T=1": value} for value in values])                                    # noqa: E731
    results = {("a", (0, 10.0)): runs(0.2, 0.4), ("a", (0, 40.0)): runs(0.7, 0.7),
               ("b", (0, 10.0)): runs(0.1, 0.1), ("b", (0, 40.0)): runs(0.2, 0.4)}
    text = list(compare.curves(results))
    assert "0.300 ±0.100" in text[2] and "0.700 ±0.000" in text[2]
    assert text[-1] == "b is at 0.300 after 4.00 times the seconds of a"


def test_unknown_rows_are_named(capsys):
    assert td_distill.main(["compare", "--rows=KD,SFT"]) == 2
    assert "expected at least one seed, and of: SFT, SeqKD" in capsys.readouterr().err


def test_the_reading_task_judges_questions_and_answers():
    """The scripted reader's own reading of the last sentence is right; with one answer changed, or without an end, it is not."""
    tokenizer, rng = course_tokenizer("world", 1024), random.Random("compare test")
    prompts, judge = tasks.reading_prompts(tokenizer, 12, 320)
    for i in range(len(prompts)):
        *before, last = world.annotate(rng, world.draw_paragraph(rng, world.FULL, split="test"))
        brd.render(before, "qra", rng)
        if not last["questions"]:
            continue
        lines = "".join(f" {item['question']} {item['answer']}\n" for item in last["questions"])
        wrong = f" {last['questions'][0]['question']} Nobody\n"
        assert judge(i, tokenizer.encode(lines) + [tokenizer.sep])
        assert not judge(i, tokenizer.encode(lines + wrong) + [tokenizer.sep]) and not judge(i, tokenizer.encode(lines))
