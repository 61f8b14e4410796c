"""Ours and nanoGPT on the same work, on a CPU: training, generation, and seconds to a loss.

    python -m experiments.bench --nanogpt=../nanoGPT     # a checkout of github.com/karpathy/nanoGPT
    python -m experiments.bench shakespeare --nanogpt=../nanoGPT --text=input.txt --rounds=3

Training and generation: the same shapes, batches, vocabulary and tokens, each as it ships. nanoGPT: float32,
AdamW, the whole row read anew for every new token. Ours: train.fit with its optimizers, bf16 where the
processor has it, a KV cache. "modern" is our own layout, "gpt2" has the blocks that nanoGPT has. A share is
that of the matrix-multiply rate measured in the same run, in the type that the model computes in.
Floating-point operations of a token in training (Chowdhery et al. 2022, appendix B):

    6 (matrices of the blocks + head) + 12 L C T         the second term: attention, as if of whole rows

Seconds to a loss: nanoGPT by the recipe of its README for a CPU, ours with the settings OURS, both on the
first nine tenths of its data/shakespeare_char, a token a character. Both are judged on the whole last tenth,
outside the clock, in windows of a block. The README expects 1.88 nats a character of its recipe.

Shapes: B rows, T tokens, C channels, L layers, H heads, V vocabulary.
"""

import contextlib
import functools
import importlib.util
import io
import math
import os
import sys
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from adapters.gpt2 import GPT2, GPT2Config
from data.batches import DataMix, Rows
from data.machine import worker_pool
from model import GPT, GPTConfig
from train import Config, fit

CPU = torch.device("cpu")
GOAL = 1.88                                     # nats a character
PROMPT = 16                                     # tokens before the new ones
DRAWING = dict(temperature=0.8, top_k=200)      # as in nanoGPT's sample.py


class Shape(NamedTuple):
    L: int
    C: int
    H: int
    T: int
    V: int
    B: int              # rows of a step
    parts: int = 1      # batches that they come in, in ours
    steps: int = 1      # of a round


# Rows of a step as in two recipes of nanoGPT: its README for a CPU, and train_shakespeare_char.
SHAPES = {"4x128": Shape(4, 128, 4, 256, 2048, 12, steps=8),
          "6x384": Shape(6, 384, 6, 256, 2048, 64, parts=4)}
RECIPE = Shape(4, 128, 4, 64, 0, 12, steps=2000)        # V is that of the text
# Chosen on the last tenth of the training part, among 2 or 3 layers, blocks of 64 or 128, steps of 512 or
# 1,024 tokens and rates of .01 or .02, one seed each; then with a quarter more tokens.
OURS, OUR_TOKENS, OUR_OPTIONS = Shape(2, 128, 4, 64, 0, 16), 240_000, dict(learning_rate=0.01, cooldown=0.7)


def clock(call, device=CPU):
    """Runs call() -> (elapsed, CPU) seconds; CPU time is that of all threads of this process."""
    def now():
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()
    start = now()
    call()
    return tuple(after - before for before, after in zip(start, now()))


def multiply_rates(n=1024):
    """{type: operations a second} of products of n x n matrices, the best of five."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
        seconds = [clock(lambda: [a @ b for _ in range(10)])[0] for _ in range(6)]
        rates[dtype] = 10 * 2 * n ** 3 / min(seconds[1:])
    return rates


def operations(model, shape):
    """Floating-point operations of one token in training; the blocks of every model are transformer.h."""
    matrices = sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2)
    return 6 * (matrices + shape.V * shape.C) + 12 * shape.L * shape.C * shape.T


# ------------------------------------------------------------------------------------------------------------
# Models, and functions that train them


def load_nanogpt(folder):
    """The module model.py of a checkout; ValueError where there is none."""
    file = os.path.join(folder, "model.py")
    if not os.path.isfile(file):
        raise ValueError(f"{file}: no such file; git clone https://github.com/karpathy/nanoGPT {folder}")
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module       # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def new_model(way, folder, shape):
    """A model with random weights; way: "modern", "gpt2", or "nanoGPT" from the checkout in `folder`."""
    L, C, H, T, V = shape[:5]
    if way == "modern":
        return GPT(GPTConfig(V, T, L, H, C))
    if way == "gpt2":
        return GPT2(GPT2Config(V, T, L, H, C))
    nanogpt = load_nanogpt(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        return nanogpt.GPT(nanogpt.GPTConfig(T, V, L, H, C, dropout=0.0, bias=False))


def block_rows(tokens, T):
    """Tokens (n * (T + 1),) as Rows, every document a whole block and the token after it."""
    return Rows(tokens, np.zeros(len(tokens), np.uint8), np.arange(0, len(tokens) + 1, T + 1))


def our_trainer(way, shape, tokens, amount, **options):
    """-> (a model, a function that trains it on `amount` tokens); tokens: blocks of T + 1."""
    config = Config(block_size=shape.T, step_tokens=shape.B // shape.parts * shape.T, accumulate=shape.parts,
                    device="cpu", **options)
    model, mix = new_model(way, "", shape), DataMix([block_rows(tokens, shape.T)], [1.0])
    return model, lambda: fit(way, model, mix, amount, config)


def nanogpt_trainer(folder, shape, ids, betas=(0.9, 0.95), rate_at=lambda step: 6e-4):
    """-> (a model, a function that trains it on shape.steps batches, as nanoGPT's train.py does)."""
    model, T = new_model("nanoGPT", folder, shape), shape.T
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = model.configure_optimizers(0.1, rate_at(0), betas, "cpu")

    def train():
        model.train()
        for step in range(shape.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step)
            starts = torch.randint(len(ids) - T, (shape.B,)).tolist()
            rows = np.stack([ids[i:i + T + 1] for i in starts]).astype(np.int64)           # (B, T + 1)
            rows = torch.from_numpy(rows)
            _, loss = model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return model, train


# ------------------------------------------------------------------------------------------------------------
# Training and generation. Each yields (what, tokens of a round, {way: call -> seconds}, {way: operations}).


@functools.cache            # made once in the process of its way, and run there for every round
def trainer(way, folder, shape):
    torch.manual_seed(0)
    tokens = np.random.default_rng(0).integers(0, shape.V, 400 * (shape.T + 1)).astype(np.uint16)
    if way == "nanoGPT":
        return nanogpt_trainer(folder, shape, tokens)[1]
    return our_trainer(way, shape, tokens, shape.steps * shape.B * shape.T)[1]


def timed_round(way, folder, shape, threads):
    """One round of training, for a process of its own -> (elapsed, CPU) seconds."""
    torch.set_num_threads(threads)
    return clock(trainer(way, folder, shape))


def training(ways, folder, threads):
    """Each way has a process of its own: how memory is given back (data.machine) is set for a process."""
    for name, shape in SHAPES.items():
        counts = {way: operations(new_model(way, folder, shape), shape) for way in ways}
        with contextlib.ExitStack() as stack:
            pools = {way: stack.enter_context(worker_pool(1)) for way in ways}

            def timed(way):
                return pools[way].submit(timed_round, way, folder, shape, threads).result()
            calls = {way: functools.partial(timed, way) for way in ways}
            yield f"training {name}", shape.T * shape.B * shape.steps, calls, counts


def generation(ways, folder, rows=(1, 64), new=256):
    """`new` tokens for so many rows, drawn as in nanoGPT's sample.py."""
    shape = SHAPES["4x128"]._replace(T=PROMPT + new)
    models = {way: new_model(way, folder, shape).eval() for way in ways}
    for B in rows:
        prompts = torch.randint(shape.V, (B, PROMPT))

        def timed(way):
            given = prompts if way == "nanoGPT" else prompts.tolist()
            return clock(lambda: models[way].generate(given, new, **DRAWING))
        yield f"generation, {B} x {new}", B * new, {way: functools.partial(timed, way) for way in ways}, {}


# ------------------------------------------------------------------------------------------------------------
# Seconds to a loss


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
    """Mean nats a character; logits_of: ids (B, T) -> logits (B, T, V); windows of T + 1 overlap by one."""
    ids = torch.from_numpy(ids.astype(np.int64))
    rows, nats = ids[:(len(ids) - 1) // T * T + 1].unfold(0, T + 1, T), 0.0                # (n, T + 1)
    for part in rows.split(64):
        logits = logits_of(part[:, :-1]).float().flatten(0, 1)                             # (B * T, V)
        nats += F.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum").item()
    return nats / rows[:, 1:].numel()


def recipe_rate(step, warmup=100, most=1e-3, least=1e-4):
    """nanoGPT's learning rate: a warm-up, then half a cosine."""
    part = (step - warmup) / (RECIPE.steps - warmup)
    if part < 0:
        return most * (step + 1) / (warmup + 1)
    return least + (most - least) * (1 + math.cos(math.pi * part)) / 2


def seconds_to_loss(way, text, folder, seed, threads):
    """One training, for a process of its own -> (elapsed, CPU seconds, held-out nats a character)."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    ids, held_out, V = characters(text)
    if way == "nanoGPT":
        model, train = nanogpt_trainer(folder, RECIPE._replace(V=V), ids, (0.9, 0.99), recipe_rate)
        seconds = clock(train)
        model.eval()                # without targets it gives the logits of the last position alone
        return *seconds, loss_on(lambda part: model(part, part)[0], held_out, RECIPE.T)
    T, order = OURS.T, np.random.default_rng(seed).permutation((len(ids) - 1) // OURS.T)
    # Windows overlap by one character, so that each is predicted once a pass.
    tokens = np.concatenate([ids[i * T:(i + 1) * T + 1] for i in order])
    model, train = our_trainer("modern", OURS._replace(V=V), tokens, OUR_TOKENS, seed=seed, **OUR_OPTIONS)
    return *clock(train), loss_on(model, held_out, T)
