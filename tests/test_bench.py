"""The benches at tiny shapes: what they compare is the same thing, and what they report is what was done."""
import os
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adapters.gpt2 import GPT2, GPT2Config
from experiments import bench, race

NANOGPT = """
from dataclasses import dataclass
import torch, torch.nn.functional as F
@dataclass
class GPTConfig:
    block_size: int; vocab_size: int; n_layer: int; n_head: int; n_embd: int; dropout: float; bias: bool
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        print("noise")
        self.transformer = torch.nn.ModuleDict({"wte": torch.nn.Embedding(config.vocab_size, config.n_embd),
                                                "h": torch.nn.Linear(config.n_embd, config.n_embd)})
    def configure_optimizers(self, decay, rate, betas, device):
        return torch.optim.AdamW(self.parameters(), lr=rate, betas=betas, weight_decay=decay)
    def forward(self, x, y):
        assert x is y or (x[:, 1:] == y[:, :-1]).all()
        logits = F.linear(self.transformer.h(self.transformer.wte(x)), self.transformer.wte.weight)
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten())
    def generate(self, idx, new, temperature, top_k):
        return F.pad(idx, (0, new))
"""
x = bench.loss_inputs(200, 60, 8)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Tiny shapes, a stand-in for nanoGPT, and everything in this process: a fresh one takes seconds."""
    (tmp_path / "model.py").write_text(NANOGPT, encoding="utf-8")
    (tmp_path / "text.txt").write_text("abcd" * 500, encoding="utf-8")
    shape = race.Shape(1, 16, 2, 8, 0, 16, steps=102)
    for module, changes in ((bench, dict(in_fresh_process=lambda call, *given: call(*given), V=90, C=4,
                                         peak_of=lambda *_: 5, race_works=partial(bench.race_works, new=8),
                                         matrix_rate=partial(bench.matrix_rate, n=64))),
                            (race, dict(SHAPES={"4x128": race.Shape(1, 16, 2, 64, 30, 4, 2, 2)},
                                        RECIPE=shape, OURS=shape, OUR_TOKENS=4000))):
        for name, value in changes.items():
            monkeypatch.setattr(module, name, value)
    torch.set_num_threads(1)
    return [f"--nanogpt={tmp_path}", f"--text={tmp_path / 'text.txt'}", "--positions=8", "--rounds=2"]


def test_dense_masks_by_loops():
    """Token by token, as the released code is described; the sort finds the sets that are known."""
    torch.testing.assert_close(x.sets.log_probs, x.teacher.log_softmax(-1).gather(-1, x.ids))
    z = F.linear(x.hidden, x.weight)[:, :3].detach()
    total, Q, V = 0.0, torch.zeros(3, 60).double(), torch.zeros(4).double()
    for t in range(3):
        for v in x.ids[0, t].tolist():
            Q[t, v] = max(z[0, t, v] - z[0, t].max(), -10)
        V[t] = sum(Q[t].exp() + 1e-8).log()
    for t in range(3):
        rewards = Q[t] - 0.99 * V[t + 1]
        total += V[t] - 0.99 * V[t + 1] - (rewards - rewards ** 2 / 0.4).mean()
    found = bench.dense_masks(z, x.teacher[:, :3])
    torch.testing.assert_close(found.double(), total / 3, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, rtol, atol", [(None, 1e-4, 1e-6), (torch.bfloat16, 0.05, 2e-3)])
def test_two_ways_to_the_same_numbers(dtype, rtol, atol):
    dense, lean = ((bench.forward_backward(f"{way} Bellman", x, dtype), x.hidden.grad, x.weight.grad)
                   for way in ("dense", "head_terms"))
    for a, b in zip(dense, lean):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from /proc")
def test_head_terms_keep_the_logits_and_no_more():
    logits, sizes = 256 * 50257 * 4, (256, 50257, 8)
    assert logits <= bench.in_fresh_process(bench.peak_of, "head_terms Bellman", *sizes, None) < 1.4 * logits


def test_rounds_run_in_turn_and_ratios_are_medians_of_rounds():
    order, seconds = [], {"a": [(1, 2), (4, 2), (9, 2)], "b": [(1, 1), (2, 1), (3, 4)]}
    rows = bench.in_turns("ab", lambda way, i: order.append(way) or seconds[way][i], 3, "b")
    assert order == list("ababab") and rows["a"] == {"seconds": 4, "time": 2, "CPU time": 2}


@pytest.mark.parametrize("kind, nats, top", [("sharp", 1.5, {7: 0.90, 50: 0.96}),
                                             ("flat, even", 3.16, {14: 0.80}), ("flat, varied", 3.2, {})])
def test_made_up_teachers_are_as_they_are_described(kind, nats, top):
    probs = bench.made_up_teacher(kind, 200, 50257).softmax(-1).sort(dim=-1, descending=True).values
    assert -(probs * probs.log()).nan_to_num().sum(-1).mean() == pytest.approx(nats, abs=0.12)
    for k, mass in top.items():
        assert probs[:, :k].sum(-1).mean() == pytest.approx(mass, abs=0.012)


def test_every_bench_end_to_end(small, capsys):
    options = bench.parse_options(bench.Options, small, "")
    sizes = {"cache": {"n": 200}, "teacher": {"B": 2, "new": 4}}
    tables = {name: list(run(options, **sizes.get(name, {}))) for name, run in bench.BENCHES.items()}
    assert "noise" not in capsys.readouterr().out
    for _, rows in tables["losses"]:
        assert [row["way"] for row in rows] == list(bench.WAYS)
        assert rows[0]["time"] == rows[0]["memory"] == rows[1]["memory"] == 1
    for row in tables["cache"][0][1]:   # 2 bytes of token, 1 of role, 1 of count, 2 offsets; 4 a token kept
        assert row["bytes"] == pytest.approx(4 + 8 / 200 + 4 * row["kept"]) and row["kept"] <= row["cap"]
    rows = {(row["what"], row["way"]): row for row in tables["race"][0][1]}
    assert len(rows) == 9 and rows["generation, 64 x 8", "nanoGPT"]["time"] == 1
    assert 0 < rows["training 4x128", "gpt2"]["share"] < 1
    assert all(row["nats a character"] < 1.2 for row in tables["shakespeare"][0][1])        # of log 4 = 1.39
    assert [row["way"] for row in tables["teacher"][0][1]] == ["drawn", "drawn and cached"]


def test_losses_count_every_character_once_and_operations_those_of_matrices():
    ids = np.arange(41).astype(np.uint16) % 5
    ids[21:] = 3                        # a model that is sure of the next letter is right on the first half
    sure = race.loss_on(lambda part: 100 * F.one_hot((part + 1) % 5, 5).float(), ids, 4)
    assert sure == pytest.approx(100 * (ids[1:] != (ids[:-1] + 1) % 5).mean())
    found = race.operations(GPT2(GPT2Config(30, 8, 2, 2, 16)), race.Shape(2, 16, 2, 8, 30, 2))
    assert found == 6 * (2 * 12 * 16 ** 2 + 30 * 16) + 12 * 2 * 16 * 8          # 12 C^2 weights a block


@pytest.mark.parametrize("arguments, message", [
    (["--nanogpt=no/such"], "no/such/model.py: no such file"), (["looses"], "looses: expected one of losses"),
    (["losses", "--rounds=0"], "--rounds=0"), (["shakespeare", "--text=no/such"], "no/such")])
def test_bad_options_get_one_line(small, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        bench.main(arguments)
