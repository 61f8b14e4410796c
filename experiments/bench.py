"""What it costs, on a CPU: each figure is a ratio of two ways to do the same thing, timed in turns.

    python -m experiments.bench losses                        a loss at V = 50,257 (quick: --positions=256)
    python -m experiments.bench vocabulary                    a step at V = 49,153 and 151,936: time, memory
    python -m experiments.bench cache                         bytes a token of the sparse cache
    python -m experiments.bench race --nanogpt=../nanoGPT     training and generation beside nanoGPT
    python -m experiments.bench shakespeare --rounds=3        seconds to a loss, beside nanoGPT

OMP_NUM_THREADS=1 before it: one thread. nanoGPT and ours run as they ship. nanoGPT: float32, AdamW, the whole
row read anew for every new token. Ours: train.fit with its optimizers, bf16 where there is some, a KV cache.
Shapes: B rows, T tokens, C channels, L layers, H heads, V vocabulary, K teacher tokens kept.
"""

import math
import re
import runpy
import sys
import tempfile
import time
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from timeit import timeit
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

import td_distill
from data.batches import DataMix, Rows
from data.cache_tools import CacheWriter
from data.cli import Options as Base, parse_options, progress, run_command
from data.head import head_terms
from data.machine import MEMORY, worker_pool
from data.optimizers import make_optimizers
from data.sets import top_p_sets
from model import GPT, GPTConfig
from train import Config, fit


@dataclass
class Options(Base):
    nanogpt: str = "../nanoGPT"     # a checkout of github.com/karpathy/nanoGPT
    positions: int = 1024           # of losses: T
    rounds: int = 5                 # of timing; of shakespeare: trainings, each with a seed of its own
    BOUNDS = {"positions": (0, MEMORY // 400_000, "memory"), "rounds": (0,)}


def in_fresh_process(function, *arguments):
    """What function(*arguments) returns in a new process."""
    with worker_pool(1) as pool:
        return pool.submit(function, *arguments).result()


def in_turns(ways, timed, rounds):
    """timed(way, round) -> seconds gives a row a way: median seconds, and the median over rounds of its time
    / that of the first way. A round runs each way once, in turn."""
    todo = progress(range(rounds), "rounds")
    seconds = np.array([[timed(way, i) for way in ways] for i in todo])                    # (rounds, ways)
    columns = zip(ways, np.median(seconds, axis=0), np.median(seconds / seconds[:, :1], axis=0))
    return [{"way": way, "seconds": median, "time": ratio} for way, median, ratio in columns]


# --- losses: from the last hidden states (1, T, C) and the head's weight (V, C) to the gradients of both ----

V, C, K = 50257, 768, 16        # cache has V tokens as well
LOSSES = "dense masks", "head_terms"


def loss_inputs(T, V, C):
    """Random hidden states, head and teacher, and what the losses take, as attributes."""
    torch.manual_seed(0)
    hidden = torch.randn(1, T, C, requires_grad=True)
    weight, teacher = (torch.randn(V, C) / math.sqrt(C)).requires_grad_(), torch.randn(1, T, V)
    ids = teacher.topk(K).indices                                                          # (1, T, K)
    teacher.scatter_add_(-1, ids, torch.full(ids.shape, 16.0))
    taken = ids.gather(-1, torch.randint(K, (1, T, 1)))[..., 0]                            # (1, T)
    is_taken, log_probs = ids == taken[..., None], teacher.log_softmax(-1).gather(-1, ids)
    terminal = torch.arange(T)[None] == T - 1
    sets = td_distill.TeacherSets(log_probs, torch.ones_like(is_taken), is_taken, terminal)
    return SimpleNamespace(hidden=hidden, weight=weight, teacher=teacher, ids=ids, taken=taken, sets=sets)


def dense_masks(logits, teacher, alpha=0.1, gamma=0.99):
    """The loss of the authors' code of Bellman Distill (not the paper's): mask, Q, its exponential and a
    residual over the whole vocabulary. The teacher's logits are given, and sorted here."""
    ranked, ids = teacher.sort(dim=-1, descending=True)                                    # (B, T, V)
    probs = ranked.softmax(-1)
    mask = torch.zeros_like(probs).scatter_(-1, ids, (probs.cumsum(-1) - probs < 0.9999).float())
    Q = ((logits - logits.amax(-1, keepdim=True)) * mask).clamp(min=-10)    # outside: 0, its largest value
    values = (Q.exp() + 1e-8).sum(-1).log()                                                # (B, T)
    later = gamma * F.pad(values[:, 1:], (0, 1))
    residual = Q - later[..., None]             # (B, T, V), of every token, not of the one taken
    return (values - later - (residual - residual ** 2 / (4 * alpha)).mean(-1)).mean()


def forward_backward(way, x):
    """Bellman Distill and cross-entropy on the token taken, by one of LOSSES, and both gradients."""
    x.hidden.grad = x.weight.grad = None
    if way == "dense masks":
        logits = F.linear(x.hidden, x.weight)                                              # (1, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), x.taken.flatten()) + dense_masks(logits, x.teacher)
    else:
        weights = torch.ones(x.taken.shape)
        terms = head_terms(x.hidden, x.weight, x.ids, x.taken, weights > 0)
        student = td_distill.StudentTerms(*terms)
        loss = td_distill.bellman_distill(student, x.sets, weights, leak=1.0)[0]
        loss = loss + td_distill.sft_loss(student, weights)[0]
    loss.backward()


def peak_of(way, T, V, C):
    """Peak bytes of one way above its inputs, without the gradient (V, C); for a fresh process, on Linux."""
    forward_backward(way, loss_inputs(2, K + 1, C))                         # libraries take their memory
    x = loss_inputs(T, V, C)
    x.weight.requires_grad_(False)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")         # the peak begins anew
    before = resident("VmRSS")
    forward_backward(way, x)
    return resident("VmHWM") - before


def bench_losses(options):
    """-> a table: its title and rows; so do the other benches."""
    sizes = options.positions, V, C
    x = loss_inputs(*sizes)
    rows = in_turns(LOSSES, lambda way, _: timeit(lambda: forward_backward(way, x), number=1), options.rounds)
    extra = [in_fresh_process(peak_of, way, *sizes) / 1e6 for way in LOSSES]
    return f"{sizes} positions, tokens, channels; {K} kept", [
        {**row, "extra MB": size, "memory": size / extra[0]} for row, size in zip(rows, extra)]


# --- vocabulary: a step of train.fit on a teacher's answers, in a vocabulary of a published model -----------

VOCABULARIES = 49_153, 151_936              # SmolLM2 and Qwen2.5, in round numbers of rows


def resident(field):
    """VmRSS or VmHWM of this process in bytes: its memory now, and its peak. Linux has them."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text("utf-8"))[1])


def vocabulary_step(way, V, rounds, B=4, T=256, K=16):
    """B documents of T tokens, the first two fifths a prompt of weight 0, then sets of K: the objective "td"
    -> (CPU seconds of a step, the median; peak bytes of the process). For a fresh process."""
    td_distill.LARGE = V + 1 if way == "dense" else 0
    config, weights = Config(device="cpu"), torch.ones(B, T)
    weights[:, :2 * T // 5] = 0
    torch.manual_seed(0)
    model, ids = GPT(GPTConfig(V, T)), torch.randint(V, (B, T, K))
    td_distill.add_heads(model)
    rows = {"tokens": ids[..., 0], "ids": ids, "log_probs": torch.full((B, T, K), -math.log(K)),
            "mask": (weights > 0)[..., None].expand(B, T, K), "real": weights >= 0}
    optimizers, seconds = make_optimizers(model, config), []
    for _ in range(rounds + 1):
        start = time.process_time()
        terms = td_distill.cached_loss(model, rows, weights, weights > 1, config, "td", weights.sum())
        sum(terms.values()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - start)
    return float(np.median(seconds[1:])), resident("VmHWM")


def bench_vocabulary(options):
    """Logits at all positions beside those of data/head.py, where a loss weighs something."""
    rows = []
    for V in VOCABULARIES:
        found = [in_fresh_process(vocabulary_step, way, V, options.rounds) for way in ("dense", "head_terms")]
        rows += [{"way": way, "V": V, "CPU s": seconds, "time": seconds / found[0][0], "peak GB": peak / 1e9}
                 for way, (seconds, peak) in zip(("dense", "head_terms"), found)]
    return "a step of 1,024 tokens, three fifths drawn; 3 blocks, 128 channels", rows


# --- cache --------------------------------------------------------------------------------------------------

def bench_cache(options, n=2000, p=0.8):
    """What a cache of n positions, all drawn, costs a token, for two made-up teachers and two caps.

    The token of rank i has a probability of i^-s / sum, s = .95 + Gamma(shape, mean - .95) at each position.
    Sharp: the top 50 hold .96 of the mass and the top 7 .90, as Yu et al. report. Flat, as GPT-2 is on free
    text: 3.2 nats; half of the sets have a dozen tokens, and some thousands."""
    rows = []
    for kind, shape, mean in (("sharp", 2, 2.8), ("flat", 4, 1.6)):
        rng = np.random.default_rng(0)
        s = torch.from_numpy(0.95 + rng.gamma(shape, (mean - 0.95) / shape, n)).float()
        logits = -s[:, None] * torch.from_numpy(rng.permutation(V) + 1.0).float().log()    # (n, V)
        for k_cap in (64, 8):
            parts = [zip(*top_p_sets(part, p, k_cap)) for part in logits.split(64)]
            sets = [(ids[mask].numpy(), values[mask].numpy()) for part in parts for ids, values, mask in part]
            with tempfile.TemporaryDirectory() as folder:
                writer = CacheWriter(folder, n_vocab=V, tokenizer_hash="", p=p, k_cap=k_cap, temperature=1.0,
                                     teacher={}, made_by="", roles=["text"])
                writer.add([int(ids[0]) for ids, _ in sets], [0] * n, sets)
                header = writer.close()
            size = sum(np.dtype(a["dtype"]).itemsize * a["length"] for a in header["arrays"].values())
            rows.append({"teacher": kind, "cap": k_cap, "kept": header["kept"] / n, "bytes": size / n})
    return f"a token of {n:,}, {p=}; logits of {V:,} in float16: {2 * V:,} bytes", rows


# --- race and shakespeare: ours and nanoGPT on the same work -----------------------------------------------

Shape = namedtuple("Shape", "L C H T V B tokens")       # a training on so many tokens in steps of B rows
RACE = Shape(4, 128, 4, 256, 2048, 12, 49_152)
# Shakespeare: nanoGPT by the recipe of its README for a CPU, which expects 1.88 nats a character; ours with
# settings chosen on the training part, the first nine tenths. A token is a character, V that of the text.
TEXT = "data/shakespeare_char/input.txt"
RECIPES = {"nanoGPT": Shape(4, 128, 4, 64, 0, 12, 1_536_000), "ours": Shape(2, 128, 4, 64, 0, 16, 240_000)}


def new_model(way, folder, shape):
    """A model with random weights; way: "ours", or "nanoGPT" from the checkout in `folder`."""
    L, C, H, T, V = shape[:5]
    if way == "ours":
        return GPT(GPTConfig(V, T, L, H, C))
    names = runpy.run_path(f"{folder}/model.py")
    return names["GPT"](names["GPTConfig"](T, V, L, H, C, dropout=0.0, bias=False))


def train_ours(model, shape, ids, seed):
    """Trains on windows of ids that overlap by one token, so that each is predicted once a pass."""
    T = shape.T
    windows = torch.from_numpy(ids.astype(np.uint16)).unfold(0, T + 1, T).numpy()          # (N, T + 1)
    tokens = np.random.default_rng(seed).permutation(windows).flatten()
    rows = Rows(tokens, np.zeros(len(tokens), np.uint8), np.arange(0, len(tokens) + 1, T + 1))
    config = Config(block_size=T, step_tokens=shape.B * T, device="cpu", seed=seed, learning_rate=0.01,
                    cooldown=0.7)
    fit("ours", model, DataMix([rows], [1.0]), shape.tokens, config)


def train_nanogpt(model, shape, ids, seed):
    """As nanoGPT's train.py does: the rate warms up for 100 steps, then falls by half a cosine."""
    windows, steps = torch.from_numpy(ids).unfold(0, shape.T + 1, 1), shape.tokens // (shape.B * shape.T)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    for step in range(steps):
        cosine = math.cos(math.pi * max(0, step - 100) / (steps - 100))
        for group in optimizer.param_groups:
            group["lr"] = min(1e-3 * (step + 1) / 101, 1e-4 + 9e-4 * (1 + cosine) / 2)
        rows = windows[torch.randint(len(windows), (shape.B,))]                            # (B, T + 1)
        model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


RIVALS = {"nanoGPT": train_nanogpt, "ours": train_ours}


def trained(way, folder, shape, ids, held_out, seed):
    """A training on ids (numpy) -> (seconds, nats a token of held_out). For a process of its own, since
    data.machine.pick_device decides how a process gives memory back."""
    torch.manual_seed(seed)
    model = new_model(way, folder, shape)
    seconds = timeit(lambda: RIVALS[way](model, shape, ids, seed), number=1)
    rows = torch.from_numpy(held_out).unfold(0, shape.T + 1, shape.T)                      # (B, T + 1)
    with torch.no_grad():                                                                  # (B, T, V)
        logits = model(rows[:, :-1]) if way == "ours" else model(rows[:, :-1], rows[:, 1:])[0]
    return seconds, F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten()).item()


def bench_race(options, B=64, new=256):
    """B rows of `new` tokens drawn as in nanoGPT's sample.py, and training on random tokens."""
    folder, shape = options.nanogpt, RACE._replace(T=16 + new)
    models = {way: new_model(way, folder, shape).eval() for way in RIVALS}
    prompts, ids = torch.randint(RACE.V, (B, 16)), np.random.default_rng(0).integers(0, RACE.V, 100_000)

    def generation(way, _):
        given = prompts if way == "nanoGPT" else prompts.tolist()
        return timeit(lambda: models[way].generate(given, new, temperature=0.8, top_k=200), number=1)

    def training(way, seed):
        return in_fresh_process(trained, way, folder, RACE, ids, ids[:RACE.T + 1], seed)[0]
    return "ours and nanoGPT", [{"what": timed.__name__, **row, "tokens/s": tokens / row["seconds"]}
                                for timed, tokens in ((generation, B * new), (training, RACE.tokens))
                                for row in in_turns(RIVALS, timed, options.rounds)]


def bench_shakespeare(options):
    """A training a seed on TEXT; seconds are medians, losses of its last tenth means."""
    text = Path(options.nanogpt, TEXT).read_text(encoding="utf-8")
    known, nats = sorted(set(text)), {way: [] for way in RIVALS}
    parts = np.split(np.array([known.index(c) for c in text]), [int(0.9 * len(text))])

    def timed(way, seed):
        shape = RECIPES[way]._replace(V=len(known))
        seconds, loss = in_fresh_process(trained, way, options.nanogpt, shape, *parts, seed)
        nats[way].append(loss)
        return seconds
    return f"{TEXT}, {options.rounds} seeds", [{**row, "nats a character": np.mean(nats[row["way"]])}
                                               for row in in_turns(RIVALS, timed, options.rounds)]


BENCHES = {"losses": bench_losses, "vocabulary": bench_vocabulary, "cache": bench_cache, "race": bench_race,
           "shakespeare": bench_shakespeare}


def main(arguments=None):
    """Runs the bench that is named first and prints its table; ValueError or OSError for what cannot be."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    options = parse_options(Options, ["--help"] if name == "--help" else rest, __doc__)
    if name not in BENCHES:
        raise ValueError(f"{name}: expected one of {', '.join(BENCHES)}")
    options.refuse(name != "losses", f"on {name}", "positions")
    options.refuse(name not in ("race", "shakespeare"), f"on {name}", "nanogpt")
    options.refuse(name == "cache", "on cache", "rounds")
    title, rows = BENCHES[name](options)
    print(f"{title}; threads: {torch.get_num_threads()}")
    for line in (rows[0], *map(dict.values, rows)):
        print(*((x if isinstance(x, str) else f"{x:,.4g}").rjust(16) for x in line))


if __name__ == "__main__":
    run_command(main)
