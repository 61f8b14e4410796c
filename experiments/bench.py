"""What it costs, on a CPU: each figure is a ratio of two ways to do the same thing, timed in turns.

    python -m experiments.bench losses                  a loss at V = 50,257 (quick: --positions=256)
    python -m experiments.bench cache                   bytes a token of the sparse cache
    python -m experiments.bench teacher                 drawing and caching against drawing alone
    python -m experiments.bench --nanogpt=../nanoGPT    training and generation beside nanoGPT (race.py)
    python -m experiments.bench shakespeare --nanogpt=../nanoGPT --rounds=3     seconds to a loss (race.py)

A ratio is the median over rounds of the ratio within a round. OMP_NUM_THREADS=1 before it: one thread.
Shapes: B documents, T tokens, C channels, V vocabulary, K teacher tokens kept.
"""

import math
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import td_distill
from data.cache_tools import CacheWriter
from data.cli import check_range, parse_options, run_command
from data.machine import pick_device, worker_pool
from data.sets import draw_with_sets, top_p_sets
from experiments import race
from experiments.losses import head_terms
from model import GPT, GPTConfig

V, C, K = 50257, 768, 16        # of losses; cache has V tokens as well
P, K_CAP = 0.8, 64              # of the caches


@dataclass
class Options:
    nanogpt: str = ""           # folder of a checkout of nanoGPT
    text: str = "input.txt"     # of shakespeare: nanoGPT's data/shakespeare_char/input.txt
    positions: int = 1024       # of losses: T
    rounds: int = 5             # of timing; of shakespeare: trainings, each with a seed of its own


def in_fresh_process(function, *arguments):
    """What function(*arguments) returns in a new process."""
    with worker_pool(1) as pool:
        return pool.submit(function, *arguments).result()


def in_turns(ways, timed, rounds, base):
    """timed(way, round) -> (elapsed, CPU) seconds gives {way: columns of a table}: median seconds, and the
    median over rounds of its time / that of the way `base`. A round runs each way once, in turn."""
    seconds = {way: [] for way in ways}
    for i, way in tqdm([(i, way) for i in range(rounds) for way in ways], disable=None, leave=False):
        seconds[way].append(timed(way, i))

    columns = {way: (np.median(pairs, axis=0)[0], *np.median(np.array(pairs) / seconds[base], axis=0))
               for way, pairs in seconds.items()}
    return {way: dict(zip(("seconds", "time", "CPU time"), columns[way])) for way in ways}


def print_table(title, rows):
    """rows: dicts with the same keys, of strings and numbers."""
    texts = [rows[0], *map(dict.values, rows)]
    lines = [[x if isinstance(x, str) else f"{x:,.4g}" for x in line] for line in texts]
    widths = [max(map(len, column)) for column in zip(*lines)]
    print(f"\n{title}; threads: {torch.get_num_threads()}")
    for line in lines:
        print(*(text.rjust(width + 1) for text, width in zip(line, widths)))


# --- losses: from the last hidden states (1, T, C) and the head's weight (V, C) to the gradients of both ----

WAYS = "dense masks", "dense Bellman", "head_terms Bellman", "the head alone"


def loss_inputs(T, V, C):
    """Random hidden states, head and teacher, and what the losses take, as attributes."""
    torch.manual_seed(0)
    hidden = torch.randn(1, T, C, requires_grad=True)
    weight, teacher = (torch.randn(V, C) / math.sqrt(C)).requires_grad_(), torch.randn(1, T, V)
    ids = teacher.topk(K).indices                                                          # (1, T, K)
    teacher.scatter_add_(-1, ids, torch.full(ids.shape, 16.0))
    taken = ids.gather(-1, torch.randint(K, (1, T, 1)))[..., 0]                            # (1, T)
    is_taken, terminal = ids == taken[..., None], torch.arange(T)[None] == T - 1
    log_probs = teacher.log_softmax(-1).gather(-1, ids)
    sets = td_distill.TeacherSets(log_probs, torch.ones_like(is_taken), is_taken, terminal)
    return SimpleNamespace(hidden=hidden, weight=weight, teacher=teacher, ids=ids, taken=taken, sets=sets)


def dense_masks(logits, teacher, alpha=0.1, gamma=0.99):
    """The loss of the authors' code of Bellman Distill (not the paper's): mask, Q, its
    exponential and a residual over the whole vocabulary. The teacher's logits are given, and sorted here."""
    ranked, ids = teacher.sort(dim=-1, descending=True)                                    # (B, T, V)
    probs = ranked.softmax(-1)
    mask = torch.zeros_like(probs).scatter_(-1, ids, (probs.cumsum(-1) - probs < 0.9999).float())
    Q = ((logits - logits.amax(-1, keepdim=True)) * mask).clamp(min=-10)    # outside: 0, its largest value
    values = (Q.exp() + 1e-8).sum(-1).log()                                                # (B, T)
    later = gamma * F.pad(values[:, 1:], (0, 1))
    residual = Q - later[..., None]                                                        # (B, T, V)
    phi = residual - residual ** 2 / (4 * alpha)                # of every token, not of the one taken
    return (values - later - phi.mean(-1)).mean()


def loss_of(way, x):
    """What one of WAYS differentiates: with cross-entropy on the token taken, or the logits."""
    weights = torch.ones(x.taken.shape)
    if way == "head_terms Bellman":
        student = head_terms(x.hidden, x.weight, x.ids, x.taken)
    else:
        logits = F.linear(x.hidden, x.weight)
        if way == "the head alone":
            return logits
        if way == "dense masks":
            nll = F.cross_entropy(logits.float().flatten(0, 1), x.taken.flatten())
            return nll + dense_masks(logits.float(), x.teacher)
        student = td_distill.student_terms(logits, x.ids, x.taken)
    loss, _ = td_distill.bellman_distill(student, x.sets, weights, leak=1.0)
    return loss + td_distill.sft_loss(student, weights)[0]


def forward_backward(way, x, dtype):
    """The loss, under autocast to dtype unless that is None, and both gradients -> the loss."""
    x.hidden.grad = x.weight.grad = None
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = loss_of(way, x)
    loss.backward(loss.detach() if loss.dim() else None)        # for the head alone any gradient will do
    return loss.detach()


def peak_of(way, T, V, C, dtype):
    """Peak bytes of one way above its inputs, for a fresh process, without the gradient (V, C) that all ways
    must return. OSError where the system is not Linux."""
    def resident(field):
        return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text("utf-8"))[1])
    forward_backward(way, loss_inputs(2, K + 1, C), dtype)                  # libraries take their memory
    x = loss_inputs(T, V, C)
    x.weight.requires_grad_(False)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")         # the peak begins anew
    before = resident("VmRSS")
    forward_backward(way, x, dtype)
    return resident("VmHWM") - before


def bench_losses(options):
    """Yields a table for float32, and one for autocast to bf16 where the processor has it."""
    sizes, (_, best) = (options.positions, V, C), pick_device("cpu")
    x = loss_inputs(*sizes)
    for dtype in [None, best] if best else [None]:
        def timed(way, _):
            return race.clock(lambda: forward_backward(way, x, dtype))
        rows = in_turns(WAYS, timed, options.rounds, WAYS[0])
        extra = {way: in_fresh_process(peak_of, way, *sizes, dtype) / 1e6 for way in WAYS}
        yield f"{sizes} positions, tokens, channels; {K} kept; {'bf16' if dtype else 'float32'}", [
            {"way": way, **row, "extra MB": extra[way], "memory": extra[way] / extra[WAYS[0]]}
            for way, row in rows.items()]


# --- cache and teacher --------------------------------------------------------------------------------------
# A made-up teacher gives the token of rank i a probability of i^-s / sum, s = .95 + Gamma(shape, mean - .95)
# at each position. Sharp: the top 50 hold .96 of the mass and the top 7 .90, as Yu et al. report. Flat, as
# GPT-2 is on free text: 3.2 nats; varied: half of the sets have a dozen tokens, and some thousands.
TEACHERS = {"sharp": (2, 2.8), "flat, even": (math.inf, 1.5), "flat, varied": (4, 1.6)}


def made_up_teacher(kind, n, V):
    """Logits (n, V) float32 of a teacher of TEACHERS at n positions."""
    rng, (shape, mean) = np.random.default_rng(0), TEACHERS[kind]
    s = np.full(n, mean) if shape == math.inf else 0.95 + rng.gamma(shape, (mean - 0.95) / shape, n)
    ranks = torch.from_numpy(rng.permutation(V) + 1.0).float()
    return -torch.from_numpy(s).float()[:, None] * ranks.log()


def write_cache(V, k_cap, documents):
    """Writes a cache of documents (tokens, sets), all drawn by the teacher -> its header."""
    with tempfile.TemporaryDirectory() as folder:
        writer = CacheWriter(folder, n_vocab=V, tokenizer_hash="", p=P, k_cap=k_cap, temperature=1.0,
                             teacher={}, made_by="", roles=["text"])
        for tokens, sets in documents:
            writer.add(tokens, [0] * len(tokens), sets)
        return writer.close()


def bench_cache(options, n=2000):
    """Yields one table: what a cache of n positions costs a token, for each teacher and cap."""
    rows = []
    for kind in TEACHERS:
        logits = made_up_teacher(kind, n, V)                                               # (n, V)
        for k_cap in (64, 32, 16, 8):
            parts = [zip(*top_p_sets(part, P, k_cap)) for part in logits.split(64)]
            sets = [(ids[mask].numpy(), values[mask].numpy()) for part in parts for ids, values, mask in part]
            header = write_cache(V, k_cap, [([int(ids[0]) for ids, _ in sets], sets)])
            size = sum(np.dtype(a["dtype"]).itemsize * a["length"] for a in header["arrays"].values())
            rows.append({"teacher": kind, "cap": k_cap, "kept": header["kept"] / n, "bytes": size / n})
    yield f"a token of {n:,}, p={P}; logits of {V:,} in float16: {2 * V:,} bytes", rows


def bench_teacher(options, B=32, new=32):
    """Yields one table. The model is random and nearly uniform: every set is as large as the cap."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_vocab=1014, n_layer=4, n_embd=192, block_size=16 + new))
    torch.nn.init.normal_(model.transformer.ln_f.weight, std=0.1)
    prompts = torch.randint(1014, (B, 16)).tolist()
    ways = {"drawn": lambda: model.generate(prompts, new, top_k=K_CAP, top_p=P, seed=0),
            "drawn and cached": lambda: write_cache(1014, K_CAP, zip(
                *draw_with_sets(model, prompts, new, p=P, k_cap=K_CAP, seed=0)))}
    rows = in_turns(ways, lambda way, _: race.clock(ways[way]), options.rounds, "drawn")
    yield f"4x192, 1,014 tokens, {B} rows of {new} new tokens", [
        {"way": way, **row, "tokens/s": B * new / row["seconds"]} for way, row in rows.items()]


# --- race and shakespeare -----------------------------------------------------------------------------------

def matrix_rate(dtype, n=1024):
    """Operations a second of products of n x n matrices, the best of five."""
    a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
    seconds = [race.clock(lambda: [a @ b for _ in range(10)])[0] for _ in range(6)]
    return 10 * 2 * n ** 3 / min(seconds[1:])


def race_works(ways, folder, new=256):
    """Yields (what, tokens of a round, timed as in in_turns, {way: operations of a token}) of each work."""
    for name, shape in race.SHAPES.items():
        counts = {way: race.operations(race.new_model(way, folder, shape), shape) for way in ways}
        yield (f"training {name}", shape.T * shape.B * shape.steps,
               lambda way, _: in_fresh_process(race.seconds_of_training, way, folder, shape), counts)
    shape = race.SHAPES["4x128"]._replace(T=16 + new)
    models = {way: race.new_model(way, folder, shape).eval() for way in ways}
    for B in (64, 1):
        prompts = torch.randint(shape.V, (B, 16))

        def generate(way, _):                                   # drawn as in nanoGPT's sample.py
            given = prompts if way == "nanoGPT" else prompts.tolist()
            return race.clock(lambda: models[way].generate(given, new, temperature=0.8, top_k=200))
        in_turns(ways, generate, 1, ways[0])                    # the first call is slower
        yield f"generation, {B} x {new}", B * new, generate, {}


def bench_race(options):
    """Yields one table: a row for each way to do each work. A share is that of the rate of matrix products,
    in the type that the model computes in."""
    ways = ["modern", "gpt2"] + (["nanoGPT"] if options.nanogpt else [])
    rows, ours = [], pick_device("cpu")[1] or torch.float32
    rates = {dtype: matrix_rate(dtype) for dtype in (torch.float32, ours)}
    for what, amount, timed, operations in race_works(ways, options.nanogpt):
        for way, row in in_turns(ways, timed, options.rounds, ways[-1]).items():
            speed, dtype = amount / row["seconds"], torch.float32 if way == "nanoGPT" else ours
            share = speed * operations[way] / rates[dtype] if operations else ""
            rows.append({"what": what, "way": way, **row, "tokens/s": speed, "share": share})
    told = ", ".join(f"{rate / 1e9:.0f} in {str(dtype)[6:]}" for dtype, rate in rates.items())
    yield f"matrix products, GFLOP/s: {told}", rows


def bench_shakespeare(options):
    """Yields one table: a row for each way; seconds are medians over seeds, losses means."""
    ways = ["ours"] + (["nanoGPT"] if options.nanogpt else [])
    nats = {way: [] for way in ways}

    def timed(way, seed):
        seconds, loss = in_fresh_process(race.seconds_to_loss, way, options.text, options.nanogpt, seed)
        nats[way].append(loss)
        return seconds
    yield f"the last tenth of {options.text}, {options.rounds} seeds", [
        {"way": way, **row, "nats a character": np.mean(nats[way])}
        for way, row in in_turns(ways, timed, options.rounds, ways[-1]).items()]


BENCHES = {"losses": bench_losses, "cache": bench_cache, "teacher": bench_teacher, "race": bench_race,
           "shakespeare": bench_shakespeare}


def main(arguments=None):
    """Runs one bench, "race" where none is named; ValueError or OSError for what cannot be."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "race"
    if name not in BENCHES:
        raise ValueError(f"{name}: expected one of {', '.join(BENCHES)}")
    options = parse_options(Options, arguments, __doc__)
    check_range("rounds", options.rounds, above=0)
    for table in BENCHES[name](options):
        print_table(*table)


if __name__ == "__main__":
    run_command(main)
