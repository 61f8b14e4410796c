"""The benches at tiny shapes: what they compare is the same thing, and what they report is what was done."""
import json
import mmap
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bench

CPU = torch.device("cpu")


def small(**changes):
    return SimpleNamespace(**(dict(positions=512, n_vocab=60, n_embd=8, kept=4, threads=1) | changes))


@pytest.fixture(scope="module")
def inputs():
    return bench.loss_inputs(small(), CPU)


def gradients(name, x, dtype=None):
    loss = bench.forward_backward(name, x, dtype)
    return loss, x.hidden.grad, x.weight.grad


def test_inputs_are_those_of_a_cache(inputs):
    x = inputs
    assert x.hidden.shape == (2, 256, 8) and x.ids.shape == (2, 256, 4)
    assert (x.hit.sum(-1) == 1).all() and x.terminal[:, -1].all() and x.terminal.sum() == 2
    torch.testing.assert_close(x.log_probs, x.teacher.log_softmax(-1).gather(-1, x.ids))
    assert x.log_probs.exp().sum(-1).min() > bench.KEEP and (x.log_probs.diff(dim=-1) <= 0).all()


def test_the_sort_finds_the_sets_that_are_known(inputs):
    mask = bench.sorted_mask(inputs.teacher, bench.KEEP)
    assert torch.equal(mask, torch.zeros_like(mask).scatter_(-1, inputs.ids, 1.0))
    mask = bench.sorted_mask(torch.tensor([[[0.1, 0.5, 0.4]]]).log(), 0.8)
    assert mask.tolist() == [[[0, 1, 1]]]


def test_dense_masks_by_loops(inputs):
    """Token by token, as the released code is described."""
    x = SimpleNamespace(**{name: value[:, :3] for name, value in vars(inputs).items() if name != "weight"})
    x.weight = inputs.weight
    z = F.linear(x.hidden, x.weight).double()
    total, alpha, gamma = 0.0, 0.1, 0.99
    Q, V = torch.zeros(2, 3, 60, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    for b in range(2):
        for t in range(3):
            for v in range(60):
                if v in x.ids[b, t]:
                    Q[b, t, v] = max(z[b, t, v] - z[b, t].max(), -10)
            V[b, t] = sum(Q[b, t].exp() + 1e-8).log()
    for b in range(2):
        for t in range(3):
            later = gamma * V[b, t + 1]
            phi = [r - r ** 2 / (4 * alpha) for r in (Q[b, t] - later)]
            total += V[b, t] - later - sum(phi) / 60 - z[b, t].log_softmax(-1)[x.taken[b, t]]
    mask = torch.zeros(2, 3, 60).scatter_(-1, x.ids, 1.0)
    torch.testing.assert_close(bench.dense_masks(x, mask).double(), total / 6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("one, other", [("dense masks", "dense masks, sets known"),
                                        ("dense forward KL", "head_terms forward KL"),
                                        ("dense Bellman", "head_terms Bellman")])
def test_two_ways_to_the_same_numbers(inputs, one, other, dtype):
    rounding = dict(rtol=1e-4, atol=1e-6) if dtype is None else dict(rtol=0.05, atol=2e-3)
    for a, b in zip(gradients(one, inputs, dtype), gradients(other, inputs, dtype)):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, **rounding)


def test_losses_end_to_end(tmp_path, monkeypatch, capsys):
    """In this process: a fresh one for each row takes seconds."""
    monkeypatch.setattr(bench, "in_fresh_process", lambda function, *arguments: function(*arguments))
    path = tmp_path / "out.json"
    assert bench.main(["losses", "--positions=8", "--n_vocab=40", "--n_embd=4", "--kept=3", "--rounds=2",
                       f"--json={path}"]) == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert written["options"]["positions"] == 8 and written["options"]["bench"] == "losses"
    for one in written["tables"]:
        assert [row["way"] for row in one["rows"]] == list(bench.WAYS)
        assert one["rows"][0]["ratio"] == one["rows"][0]["CPU ratio"] == 1
        assert one["title"] in printed and "8 positions, 40 tokens, 4 channels, 3 kept" in one["title"]
    assert all(name in printed for name in bench.WAYS) and not list(tmp_path.glob("*.tmp"))


def test_every_round_runs_every_way_in_turn():
    order = []
    seconds = bench.in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 3, CPU)
    assert order == list("ababab") and seconds["a"].shape == (3, 2)
    seconds = {"a": np.array([[1, 2], [4, 2], [9, 2]]), "b": np.array([[1, 1], [2, 1], [3, 4]])}
    assert bench.ratio(seconds, "a", "b") == [2, 2]                     # of 1, 2, 3 and of 2, 2, .5


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from /proc")
def test_extra_memory_is_the_peak():
    """In blocks that come from the system and go back to it: malloc keeps some, and how many depends on what ran before."""
    def call():
        for size in (16, 48, 16):
            with mmap.mmap(-1, size << 20) as block:
                for page in range(0, len(block), mmap.PAGESIZE):
                    block[page] = 1
    call()
    assert 47 < bench.extra_memory(call, CPU) / 2 ** 20 < 60            # the system counts some pages late
    x = torch.zeros(80 << 18).add_(1)
    assert bench.extra_memory(lambda: x.add_(1), CPU) / 2 ** 20 < 8


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from /proc")
def test_head_terms_keep_the_logits_and_no_more():
    options = small(positions=256, n_vocab=50257)
    logits = 256 * 50257 * 4
    peak = bench.in_fresh_process(bench.peak_of, "head_terms Bellman", options, CPU, None)
    assert logits <= peak < 1.4 * logits


@pytest.mark.parametrize("kind, entropy, top", [("sharp", 1.5, {7: 0.90, 50: 0.96}), ("flat, even", 3.16, {14: 0.80}),
                                                ("flat, varied", 3.2, {})])
def test_made_up_teachers_are_as_they_are_described(kind, entropy, top):
    probs = bench.made_up_teacher(kind, 200, 50257).softmax(-1).sort(dim=-1, descending=True).values
    assert -(probs * probs.log()).nan_to_num().sum(-1).mean() == pytest.approx(entropy, abs=0.12)
    for k, mass in top.items():
        assert probs[:, :k].sum(-1).mean() == pytest.approx(mass, abs=0.012)
    if kind == "flat, varied":
        sizes = (probs.cumsum(-1) < 0.8).sum(-1) + 1
        assert sizes.median() < 14 and sizes.max() > 1000


def test_cache_end_to_end(capsys):
    assert bench.main(["cache", "--positions=200", "--n_vocab=1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("bytes a token " in line and "dense float16 logits" in line for line in lines) == 3      # inspect's
    rows = [line.split() for line in lines if line.startswith("  flat, even")]
    assert [row[3] for row in rows] == ["64", "32", "16", "8"]
    for row in rows:        # 2 for the token, 1 for its role, 1 for the count, 8 for two offsets; 4 a token kept
        assert float(row[6]) == pytest.approx(4 + 8 / 200 + 4 * float(row[4]), abs=2e-3)


def test_teacher_end_to_end(monkeypatch, capsys):
    monkeypatch.setattr(bench, "MODELS", {"2x16": (90, 2, 16)})
    assert bench.main(["teacher", "--rows=3", "--new=4", "--rounds=1", "--k_cap=5"]) == 0
    printed = capsys.readouterr().out
    assert "2x16, 90 tokens: 3 rows of 4 new tokens" in printed and printed.count("drawn from") == 3


@pytest.mark.parametrize("arguments, message", [
    (["losses", "--positions=0"], "--positions=0; expected at least 1"),
    (["losses", "--kept=9", "--n_vocab=9"], "fewer tokens kept than there are"),
    (["losses", "--dtype=int8"], "--dtype=int8"), (["cache", "--p=1.5", "--positions=2", "--n_vocab=9"], "p=1.5"),
    (["teacher", "--device=warp"], "--device=warp; expected cpu, cuda, mps or auto"),
    (["cache", "--positions=2", "--n_vocab=9", "--json=no/such/folder/x.json"], "no/such/folder")])
def test_bad_options_get_one_line(arguments, message, capsys):
    assert bench.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
