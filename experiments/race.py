"""Ours and nanoGPT on the same work, on a CPU, each as it ships; experiments/bench.py times it.

nanoGPT: float32, AdamW, the whole row read anew for every new token. Ours: train.fit with its optimizers,
bf16 where the processor has it, a KV cache. "modern" is our own layout, "gpt2" has the blocks of nanoGPT.

Seconds to a loss: nanoGPT by the recipe of its README for a CPU, ours with settings chosen on the training
part (OURS), both on the first nine tenths of its data/shakespeare_char, a token a character; judged on the
whole last tenth, outside the clock, in windows of a block. Its README expects 1.88 nats a character.
Shapes: B rows, T tokens, C channels, L layers, H heads, V vocabulary.
"""

import contextlib
import importlib
import io
import math
import runpy
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import torch

from data.batches import DataMix, Rows
from model import GPT, GPTConfig
from train import Config, fit

# B rows of a step, which come in `parts` batches in ours; steps of a round of training
Shape = namedtuple("Shape", "L C H T V B parts steps", defaults=(1, 1))
# Rows of a step as in two recipes of nanoGPT: its README for a CPU, and train_shakespeare_char.
SHAPES = {"4x128": Shape(4, 128, 4, 256, 2048, 12, steps=8), "6x384": Shape(6, 384, 6, 256, 2048, 64, 4)}
RECIPE = Shape(4, 128, 4, 64, 0, 12, steps=2000)            # V is that of the text
OURS, OUR_TOKENS, OUR_OPTIONS = Shape(2, 128, 4, 64, 0, 16), 240_000, dict(learning_rate=0.01, cooldown=0.7)


def clock(call):
    """Runs call() -> (elapsed, CPU) seconds; CPU time is that of all threads of this process."""
    start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def operations(model, shape):
    """6 (matrices of blocks and head) + 12 L C T a token in training (Chowdhery et al. 2022, appendix B)."""
    matrices = sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2)
    return 6 * (matrices + shape.V * shape.C) + 12 * shape.L * shape.C * shape.T


def new_model(way, folder, shape):
    """A model with random weights; way: "modern", "gpt2", or "nanoGPT" from the checkout in `folder`."""
    L, C, H, T, V = shape[:5]
    if way == "modern":
        return GPT(GPTConfig(V, T, L, H, C))
    if way == "gpt2":
        gpt2 = importlib.import_module("adapters.gpt2")
        return gpt2.GPT2(gpt2.GPT2Config(V, T, L, H, C))
    file = Path(folder) / "model.py"
    if not file.is_file():
        raise ValueError(f"{file}: no such file; git clone https://github.com/karpathy/nanoGPT {folder}")
    names = runpy.run_path(str(file))
    with contextlib.redirect_stdout(io.StringIO()):
        return names["GPT"](names["GPTConfig"](T, V, L, H, C, dropout=0.0, bias=False))


def our_trainer(way, shape, tokens, amount, **options):
    """-> (a model, a function that trains it on `amount` tokens); tokens: blocks of T + 1."""
    config = Config(block_size=shape.T, step_tokens=shape.B // shape.parts * shape.T, accumulate=shape.parts,
                    device="cpu", **options)
    rows = Rows(tokens, np.zeros(len(tokens), np.uint8), np.arange(0, len(tokens) + 1, shape.T + 1))
    model = new_model(way, "", shape)
    return model, lambda: fit(way, model, DataMix([rows], [1.0]), amount, config)


def nanogpt_trainer(folder, shape, ids, betas=(0.9, 0.95), rate_at=lambda step: 6e-4):
    """-> (a model, a function that trains it for shape.steps steps, as nanoGPT's train.py does)."""
    model, T = new_model("nanoGPT", folder, shape), shape.T
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = model.configure_optimizers(0.1, rate_at(0), betas, "cpu")

    def train():
        for step in range(shape.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step)
            starts = torch.randint(len(ids) - T, (shape.B,)).tolist()
            rows = torch.from_numpy(np.stack([ids[i:i + T + 1] for i in starts]).astype(np.int64))
            model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())[1].backward()       # (B, T) each
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return model, train


def seconds_of_training(way, folder, shape):
    """One round of training on random tokens, after another one -> (elapsed, CPU) seconds. For a process of
    its own, since data.machine.pick_device decides how a process gives memory back."""
    tokens = np.random.default_rng(0).integers(0, shape.V, 400 * (shape.T + 1)).astype(np.uint16)
    if way == "nanoGPT":
        _, train = nanogpt_trainer(folder, shape, tokens)
    else:
        _, train = our_trainer(way, shape, tokens, shape.steps * shape.B * shape.T)
    train()
    return clock(train)


def seconds_to_loss(way, path, folder, seed):
    """One training on a text file -> ((elapsed, CPU) seconds, nats a character of its last tenth)."""
    text = Path(path).read_text(encoding="utf-8")
    known = {c: i for i, c in enumerate(sorted(set(text)))}
    ids, held_out = np.split(np.array([known[c] for c in text], np.uint16), [int(0.9 * len(text))])
    torch.manual_seed(seed)
    if way == "nanoGPT":
        model, train = nanogpt_trainer(folder, RECIPE._replace(V=len(known)), ids, (0.9, 0.99), recipe_rate)
        # Without targets it gives the logits of the last position alone.
        return clock(train), loss_on(lambda part: model(part, part)[0], held_out, RECIPE.T)
    T, order = OURS.T, np.random.default_rng(seed).permutation((len(ids) - 1) // OURS.T)
    # Windows overlap by one character, so that each is predicted once a pass.
    tokens, shape = np.concatenate([ids[i * T:(i + 1) * T + 1] for i in order]), OURS._replace(V=len(known))
    model, train = our_trainer("modern", shape, tokens, OUR_TOKENS, seed=seed, **OUR_OPTIONS)
    return clock(train), loss_on(model, held_out, T)


def recipe_rate(step, warmup=100, most=1e-3, least=1e-4):
    """nanoGPT's learning rate: a warm-up, then half a cosine."""
    part = (step - warmup) / (RECIPE.steps - warmup)
    if part < 0:
        return most * (step + 1) / (warmup + 1)
    return least + (most - least) * (1 + math.cos(math.pi * part)) / 2


@torch.no_grad()
def loss_on(logits_of, ids, T):
    """Mean nats a character; logits_of: ids (B, T) -> logits (B, T, V); windows of T + 1 overlap by one."""
    ids = torch.from_numpy(ids.astype(np.int64))
    rows = ids[:(len(ids) - 1) // T * T + 1].unfold(0, T + 1, T)                           # (B, T + 1)
    logits = logits_of(rows[:, :-1]).float()                                               # (B, T, V)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
