"""The benches at tiny shapes: what they compare is the same thing, and what they report is what was done."""
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from experiments import bench

NANOGPT = """
from dataclasses import dataclass
import torch, torch.nn.functional as F
@dataclass
class GPTConfig:
    block_size: int; vocab_size: int; n_layer: int; n_head: int; n_embd: int; dropout: float; bias: bool
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
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
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    (tmp_path / bench.TEXT).write_text("abcd" * 500, encoding="utf-8")
    shape = bench.Shape(1, 16, 2, 8, 0, 16, 13_056)
    for name, value in dict(in_fresh_process=lambda call, *given: call(*given), V=90, C=4, VOCABULARIES=(50, 90),
                            peak_of=lambda *_: 5, RACE=bench.Shape(1, 16, 2, 64, 30, 4, 512),
                            RECIPES={"nanoGPT": shape, "ours": shape._replace(tokens=4000)}).items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench.td_distill, "LARGE", bench.td_distill.LARGE)     # a bench sets it
    torch.set_num_threads(1)
    return [f"--nanogpt={tmp_path}", "--positions=8", "--rounds=2"]


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


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from /proc")
def test_head_terms_keep_the_logits_and_no_more():
    logits, sizes = 256 * 50257 * 4, (256, 50257, 8)
    assert logits <= bench.in_fresh_process(bench.peak_of, "head_terms", *sizes) < 1.4 * logits


def test_rounds_run_in_turn_and_ratios_are_medians_of_rounds():
    order, seconds = [], {"a": [1, 2, 3], "b": [1, 4, 9]}
    first, second = bench.in_turns("ab", lambda way, i: order.append(way) or seconds[way][i], 3)
    assert order == list("ababab") and first["time"] == 1
    assert second == {"way": "b", "seconds": 4, "time": 2}


def test_every_bench_end_to_end(small):
    options = bench.parse_options(bench.Options, small, "")
    sizes = {"cache": {"n": 200}, "race": {"new": 8}}
    tables = {name: run(options, **sizes.get(name, {}))[1] for name, run in bench.BENCHES.items()}
    assert [row["way"] for row in tables["losses"]] == list(bench.LOSSES)
    assert tables["losses"][0]["time"] == tables["losses"][1]["memory"] == 1
    for row in tables["cache"]:         # 2 bytes of token, 1 of role, 1 of count, 2 offsets; 4 a token kept
        assert row["bytes"] == pytest.approx(4 + 8 / 200 + 4 * row["kept"]) and row["kept"] <= row["cap"]
    assert [(row["what"], row["way"]) for row in tables["race"]] == [
        (what, way) for what in ("generation", "training") for way in ("nanoGPT", "ours")]
    assert all(row["nats a character"] < 1.2 for row in tables["shakespeare"])              # of log 4 = 1.39


def test_the_loss_counts_every_character_once(monkeypatch):
    ids = np.arange(41) % 5
    ids[21:] = 3                        # a model that is sure of the next letter is right on the first half

    def sure(part):
        return 100 * F.one_hot((part + 1) % 5, 5).float()
    monkeypatch.setattr(bench, "new_model", lambda *_: sure)
    monkeypatch.setitem(bench.RIVALS, "ours", lambda *_: None)
    _, nats = bench.trained("ours", "", bench.Shape(0, 0, 0, 4, 5, 1, 1), ids, ids, 0)
    assert nats == pytest.approx(100 * (ids[1:] != (ids[:-1] + 1) % 5).mean())


@pytest.mark.parametrize("arguments, message", [
    (["race", "--nanogpt=no/such"], "no/such/model.py"), (["looses"], "looses: expected one of losses"),
    (["losses", "--rounds=0"], "--rounds=0"), (["shakespeare", "--nanogpt=no/such"], "no/such")])
def test_bad_options_get_one_line(small, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        bench.main(arguments)
