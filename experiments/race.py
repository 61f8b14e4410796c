"""Ours and nanoGPT on the same work, in turns, in one run: training, generation, and with them scoring and the cache.

    python bench.py --nanogpt=../nanoGPT        # a checkout of github.com/karpathy/nanoGPT; without it, our figures alone

Both get the same shapes, batch, vocabulary and tokens, and each is as it ships. nanoGPT: float32 on a CPU, AdamW with its
settings, the whole row read anew for every new token, compiled on CUDA. Ours: `train.fit` with its optimizers, bf16 where
the processor computes in it, a cache. "modern" is our own layout; "gpt2" has the blocks that nanoGPT has.

A share is that of the matrix-multiply rate, measured in the same run, in the type that the model computes in. Floating-point
operations of a token in training, forward and backward (Chowdhery et al. 2022, appendix B; what is less than a matrix is
not counted, nor are optimizers):

    6 (matrices of the blocks + head) + 12 L C T           the second term: scores and weighted values of whole rows

Shapes: B rows, T tokens, C channels, L layers, V vocabulary.
"""

import contextlib
import importlib.util
import io
import multiprocessing
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

import brd
from data import world
from data.cache import TeacherCache, CacheWriter
from data.documents import course_tokenizer
from data.batches import Rows
from model import GPT, GPTConfig
from train import Config, fit

SIDES = 1024, 8192      # of the square matrices multiplied, on a CPU and on CUDA
PROMPT = 16      # tokens before the new ones
DRAWING = dict(temperature=0.8, top_k=200)      # as nanoGPT's sample.py has them
# name -> layers, channels, heads, block, vocabulary, rows of a step, in how many batches (ours, nanoGPT's), steps of a round.
# The rows are those of nanoGPT's recipes: its README on a CPU, train_shakespeare_char, and GPT-2 in batches of 12.
CPU_SHAPES = {"4x128": (4, 128, 4, 256, 2048, 12, (1, 1), 8), "6x384": (6, 384, 6, 256, 2048, 64, (4, 1), 1)}
CUDA_SHAPES = {"GPT-2 124M": (12, 768, 12, 1024, 50257, 96, (8, 8), 4), "4x128": (4, 128, 4, 256, 2048, 12, (1, 1), 100)}


# ---------------------------------------------------------------------------------------------------------------
# The machine


def multiply_rates(device, clock):
    """{type: operations a second} of square matrix products, the best of five; clock(call) -> seconds."""
    n, rates = SIDES[device.type == "cuda"], {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        clock(lambda: a @ b)
        rates[dtype] = 10 * 2 * n ** 3 / min(clock(lambda: [a @ b for _ in range(10)]) for _ in range(5))
    return rates


def operations(model, shape):
    """Floating-point operations of one token in training; model: ours or nanoGPT's, whose blocks are both transformer.h."""
    L, C, _, T, V, *_ = shape
    matrices = sum(p.numel() for p in model.transformer.h.parameters() if p.dim() == 2)
    return 6 * (matrices + V * C) + 12 * L * C * T


# ---------------------------------------------------------------------------------------------------------------
# The two runners


def load_nanogpt(path):
    """The module model.py of a checkout. ValueError where there is none."""
    file = os.path.join(path, "model.py")
    if not os.path.isfile(file):
        raise ValueError(f"{file}: no such file; expected a checkout: git clone https://github.com/karpathy/nanoGPT {path}")
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module       # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def new_nanogpt(nanogpt, T, V, L, H, C):
    """A model of nanoGPT's with its defaults, which tells nobody about itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        return nanogpt.GPT(nanogpt.GPTConfig(T, V, L, H, C, dropout=0.0, bias=False))


def text_of(shape, rows=400):
    """Random tokens as Rows, every document a whole block and the token after it."""
    T, V = shape[3:5]
    tokens = np.random.default_rng(0).integers(0, V, rows * (T + 1)).astype(np.uint16)
    return Rows(tokens, np.zeros(len(tokens), np.uint8), np.arange(0, len(tokens) + 1, T + 1))


def ours(shape, layout, device):
    """A function that trains our model for a round."""
    L, C, H, T, V, B, (parts, _), steps = shape
    config = Config(block_size=T, step_tokens=B // parts * T, accumulate=parts, device=device.type, compile=device.type == "cuda")
    model, rows = GPT(GPTConfig(V, T, L, H, C, layout=layout)).to(device), text_of(shape)
    return lambda: fit("race", model, [rows], [1.0], steps * B * T, config, 0.5)


def theirs(shape, nanogpt, device):
    """A function that trains nanoGPT's model for a round, as its train.py does."""
    L, C, H, T, V, B, (_, parts), steps = shape
    V = 50304 if V == 50257 else V              # padded, as it ships
    model = new_nanogpt(nanogpt, T, V, L, H, C).to(device)
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device.type)
    run = torch.compile(model) if device.type == "cuda" else model
    folder = tempfile.TemporaryDirectory()
    path = os.path.join(folder.name, "train.bin")
    text_of(shape).tokens.tofile(path)

    def rows(folder=folder):                    # the folder stays as long as this function
        data = np.memmap(path, np.uint16, "r")  # opened for every batch, as it does
        starts = torch.randint(len(data) - T, (B // parts,)).tolist()
        both = torch.stack([torch.from_numpy(data[i:i + T + 1].astype(np.int64)) for i in starts])     # (B, T + 1)
        both = both.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else both
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def train():
        batch = rows()
        for _ in range(steps):
            for _ in range(parts):
                with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                    _, loss = run(*batch)
                batch = rows()
                (loss / parts).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()
    return train


def trainer(way, shape, path, device):
    """The function that trains for a round; way: a layout of ours, or "nanoGPT", whose checkout is in path."""
    torch.manual_seed(0)
    return theirs(shape, load_nanogpt(path), device) if way == "nanoGPT" else ours(shape, way, device)


MADE = {}      # in a process of its own: the one function that it runs


def round_away(way, shape, path, device, threads):
    """One round in a process of its own -> (elapsed, CPU) seconds. The first call makes the model."""
    torch.set_num_threads(threads)
    train = MADE.setdefault("train", MADE.get("train") or trainer(way, shape, path, device))
    start = time.perf_counter(), time.process_time()
    train()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start[0], time.process_time() - start[1]


# ---------------------------------------------------------------------------------------------------------------
# What is measured: name -> calls in turns. Each function yields (what, unit, amount of a round, {way: call}, {way: model}).


def training(shapes, path, device, threads):
    """Each way in a process of its own: how memory is given back (see train.pick_device) is set for a whole process."""
    for name, shape in shapes.items():
        L, C, H, T, V, B, _, steps = shape
        models = {layout: GPT(GPTConfig(V, T, L, H, C, layout=layout)) for layout in ("modern", "gpt2")}
        if path:
            models["nanoGPT"] = new_nanogpt(load_nanogpt(path), T, V, L, H, C)
        pools = {way: ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) for way in models}
        calls = {way: lambda way=way, pool=pool, shape=shape: pool.submit(round_away, way, shape, path, device, threads).result()
                 for way, pool in pools.items()}
        yield f"training {name}", "tokens/s", T * B * steps, calls, {way: operations(m, shape) for way, m in models.items()}
        for pool in pools.values():
            pool.shutdown()


def generation(rows, new, nanogpt, device):
    """`new` tokens for so many rows, drawn as nanoGPT's sample.py draws; a work for each number in rows."""
    L, C, H, _, V, *_ = CPU_SHAPES["4x128"]
    models = {layout: GPT(GPTConfig(V, PROMPT + new, L, H, C, layout=layout)).to(device).eval() for layout in ("modern", "gpt2")}
    for B in rows:
        prompts = torch.randint(V, (B, PROMPT), device=device)
        calls = {way: lambda model=model: model.generate(prompts.tolist(), new, **DRAWING) for way, model in models.items()}
        if nanogpt:
            other = new_nanogpt(nanogpt, PROMPT + new, V, L, H, C).to(device).eval()
            calls["nanoGPT"] = lambda: other.generate(prompts, new, **DRAWING)
        yield f"generation, {B} x {new}", "tokens/s", B * new, calls, {}


@torch.no_grad()
def one_at_a_time(model, tokenizer, items, device):
    """The scores of brd.blind_scores by a loop: every candidate is read with its prompt, alone."""
    scores = []
    for prompt, candidates in items:
        scores.append([])
        for candidate in candidates:
            own, joined = tokenizer.encode(prompt), tokenizer.encode(f"{prompt} {candidate}")
            ids, n = torch.tensor([joined], device=device), len(joined) - len(own)
            log_probs = model.logits(model.hidden(ids[:, :-1])[:, -n:]).log_softmax(-1)                # (1, n, V)
            scores[-1].append(log_probs.gather(-1, ids[:, -n:, None]).mean().item())
    return scores


def scoring(count, device):
    """The blind score of `count` items of four candidates, in batches and by one_at_a_time."""
    tokenizer, rng = course_tokenizer("world", 1024), random.Random(0)
    texts = [" ".join(sentences) for sentences in world.plain(3 * count, "bench")]
    words = sorted({word for text in texts[:200] for word in text.split()})
    items = [(" ".join(texts[3 * i:3 * i + 1 + i % 3]), rng.sample(words, 4)) for i in range(count)]
    L, C, H, T, *_ = CPU_SHAPES["4x128"]
    model = GPT(GPTConfig(tokenizer.n_vocab, T, L, H, C)).to(device).eval()
    yield (f"blind scoring, {count} x 4", "items/s", count,
           {"ours": lambda: brd.blind_scores(model, tokenizer, items),
            "one at a time": lambda: one_at_a_time(model, tokenizer, items, device)}, {})


def reading_a_cache(folder, n=50_000, T=50):
    """A made-up cache of n tokens in documents of T, sets of 4 -> its bytes a token, and the call that reads all of it."""
    rng, folder = np.random.default_rng(0), os.path.join(folder, "cache")
    writer = CacheWriter(folder, n_vocab=2048, tokenizer_hash="none", p=0.95, k_cap=64, temperature=1.0,
                         teacher={"hash": "made up"}, made_by="bench.py", roles=["text"])
    for _ in range(n // T):
        ids = rng.permuted(np.arange(64)[None].repeat(T, 0), axis=1)[:, :4]                            # (T, 4)
        writer.add(ids[:, 0].tolist(), [0] * T, [(row, np.log(np.float32([.5, .25, .15, .07]))) for row in ids])
    writer.close()
    cache = Cache(folder)
    size = sum(array.nbytes for array in cache.arrays.values()) / n
    yield (f"cache read, {size:.0f} bytes a token", "tokens/s", n,
           {"ours": lambda: [cache.batch(range(i, min(i + 20, len(cache)))) for i in range(0, len(cache), 20)]}, {})
