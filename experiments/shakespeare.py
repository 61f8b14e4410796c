"""Seconds to a loss: the recipe of nanoGPT's README for a CPU, and ours, to 1.88 nats a character of Shakespeare.

    python bench.py shakespeare --nanogpt=../nanoGPT --text=input.txt       # the 1.1 MB of data/shakespeare_char

nanoGPT: 4 layers, 4 heads, 128 channels, block 64, 12 rows a step, 2,000 steps, a token a character. Ours: train.fit on the
same characters (a token each, so the losses are in the same unit), of the same first nine tenths, with settings of its own
(OURS). Both are then judged alike, outside the clock: on the whole last tenth, in windows of each one's own block, every
character but the first of a window predicted once. 1.88 is what the README expects of its recipe.

Each trains in a process of its own, in turns. "to 1.88" is the ratio of seconds where both reach it; a loss above it is told.
"""

import contextlib
import io
import math
import time
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from experiments.race import load_nanogpt, new_nanogpt
from data.batches import Rows
from model import GPT, GPTConfig
from train import Config, fit

GOAL = 1.88         # nats a character
RECIPE = dict(T=64, B=12, steps=2000, warmup=100, rate=1e-3, least=1e-4, betas=(0.9, 0.99), decay=0.1)
# Chosen on the last tenth of the training text, among 2 or 3 layers, blocks of 64 or 128, steps of 512 or 1,024 characters and
# rates of .01 or .02, one seed and 9 to 14 CPU seconds each; then with a quarter more characters, for a margin.
OURS = dict(T=64, L=2, H=4, C=128, tokens=240_000, step_tokens=1024, rate=0.01, decay=0.7)


def characters(path):
    """A text as ids -> (ids of the first nine tenths, of the last tenth, number of different characters)."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    known = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = np.array([known[c] for c in text], np.uint16)
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:], len(known)


@torch.no_grad()
def loss_on(logits_of, ids, T):
    """Mean nats a character; logits_of: ids (B, T) -> logits (B, T, V); windows of T + 1 that overlap by one."""
    ids = torch.from_numpy(ids.astype(np.int64))
    rows = ids[:(len(ids) - 1) // T * T + 1].unfold(0, T + 1, T)                                   # (n, T + 1)
    nats = sum(F.cross_entropy(logits_of(part[:, :-1]).float().flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
               for part in rows.split(64))
    return nats / rows[:, 1:].numel()


def theirs(ids, V, path, seed):
    """nanoGPT by its recipe -> logits_of."""
    torch.manual_seed(seed)
    r = SimpleNamespace(**RECIPE)
    model = new_nanogpt(load_nanogpt(path), r.T, V, 4, 4, 128)
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = model.configure_optimizers(r.decay, r.rate, r.betas, "cpu")
    model.train()
    for step in range(r.steps):
        if step < r.warmup:
            rate = r.rate * (step + 1) / (r.warmup + 1)
        else:
            rate = r.least + (r.rate - r.least) * (1 + math.cos(math.pi * (step - r.warmup) / (r.steps - r.warmup))) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(ids) - r.T, (r.B,)).tolist()
        rows = torch.stack([torch.from_numpy(ids[i:i + r.T + 1].astype(np.int64)) for i in starts])  # (B, T + 1)
        model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    return lambda part: model(part, part)[0]    # without targets it gives the last position alone


def ours(ids, V, path, seed):
    """Ours by train.fit -> logits_of; path is for nanoGPT's."""
    o = SimpleNamespace(**OURS)
    torch.manual_seed(seed)
    config = Config(seed=seed, block_size=o.T, step_tokens=o.step_tokens, learning_rate=o.rate, device="cpu")
    n = (len(ids) - 1) // o.T
    # Windows overlap by one character, so that each is predicted once a pass.
    tokens = np.concatenate([ids[i * o.T:(i + 1) * o.T + 1] for i in np.random.default_rng(seed).permutation(n)])
    rows = Rows(tokens, np.zeros(len(tokens), np.uint8), np.arange(0, len(tokens) + 1, o.T + 1))
    model = GPT(GPTConfig(V, o.T, o.L, o.H, o.C))
    fit("shakespeare", model, [rows], [1.0], o.tokens, config, o.decay)
    return lambda part: model.logits(model.hidden(part))


def timed(way, text, path, seed, threads):
    """For a process of its own: one training -> (elapsed, CPU seconds, held-out nats a character)."""
    torch.set_num_threads(threads)
    training, held_out, V = characters(text)
    start = time.perf_counter(), time.process_time()
    logits_of = {"ours": ours, "nanoGPT": theirs}[way](training, V, path, seed)
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    return *seconds, loss_on(logits_of, held_out, (OURS if way == "ours" else RECIPE)["T"])
