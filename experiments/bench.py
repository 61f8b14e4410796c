"""What it costs: each figure is a ratio of two ways to do the same thing, timed in turns in one run.

    python bench.py --nanogpt=../nanoGPT       one table: training, generation, scoring, loss, cache, memory, and the machine;
                                               ours beside a checkout of nanoGPT (course/race.py; 15 minutes on two cores)
    python bench.py shakespeare --nanogpt=../nanoGPT     seconds to the loss of nanoGPT's README (course/shakespeare.py)
    python bench.py losses                     loss forward and backward at GPT-2's vocabulary (10 minutes on one core)
    python bench.py losses --positions=256 --rounds=3 --dtype=bf16                           (1 minute)
    python bench.py cache                      bytes a token of the sparse cache, for sharp and for flat teachers
    python bench.py teacher                    a teacher that draws and caches its sets, against one that only draws
    python bench.py losses --json=out.json     the same tables, as a file too

A ratio is the median over `--rounds` rounds of the ratio within a round. Elapsed and CPU time are both given: trust the
second where other programs run. losses goes from the last hidden states to their gradient and that of the head's weight:

    dense masks           the loss of the authors' released code of Bellman Distill (not the paper's, see course/theory.py):
                          logits, mask, Q, its exponential and a residual, each over the whole vocabulary. That code runs
                          its teacher at every step. Here the teacher's logits are given, dense, and cost nothing; but its
                          top-p set is found in them at every step, by a sort.
    dense masks, sets known     the same without that search: what the masks alone cost
    dense ...             cross-entropy, and td_distill's losses on student_terms of dense logits
    head_terms ...        these losses, the same numbers: logits are kept once, softmax and gradient never
    the head alone        three matrix products, for the logits and two gradients: no exact way is below

Memory is the peak of the resident set (on CUDA, of what is allocated) above the inputs, in a fresh process for each row.
There the weight is frozen: its gradient (V, C), which every row would have to return, is counted for none.
Shapes: B documents, T tokens, C channels, V vocabulary, K teacher tokens kept.
"""

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import td_distill
from course import race, shakespeare
from data.cli import printable
from data.cache import CacheWriter
from experiments.teacher import draw_with_sets, top_p_sets
from model import GPT, GPTConfig
from train import Config, pick_device

# ---------------------------------------------------------------------------------------------------------------
# Clocks, memory, the table


def in_turns(calls, rounds, device):
    """calls: dict of name -> function without arguments -> dict of name -> (rounds, 2) seconds, elapsed and of the CPU
    (all threads). A round runs each of them once, so that what disturbs one disturbs all."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = {name: [] for name in calls}
    for _ in tqdm(range(rounds), "rounds", disable=None, leave=False):
        for name, call in calls.items():
            wait()
            start = time.perf_counter(), time.process_time()
            told = call()                           # what runs in another process tells its own seconds
            wait()
            found = time.perf_counter() - start[0], time.process_time() - start[1]
            seconds[name].append(told if isinstance(told, tuple) else found)
    return {name: np.array(pairs) for name, pairs in seconds.items()}


def ratio(seconds, name, base):
    """Median over rounds of name / base -> [elapsed, CPU]."""
    return np.median(seconds[name] / seconds[base], axis=0).tolist()


def in_fresh_process(function, *arguments):
    """What function(*arguments) returns in a new interpreter, where no earlier call has left memory to use again."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def extra_memory(call, device):
    """Peak bytes of a call above what stood before; NaN where the system does not tell (neither CUDA nor Linux)."""
    def resident(field):
        with open("/proc/self/status", encoding="utf-8") as file:
            return 1024 * int(next(line for line in file if line.startswith(field)).split()[1])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    try:
        with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
            file.write("5")                         # the peak, VmHWM, begins anew at VmRSS
        before = resident("VmRSS")
        call()
        return resident("VmHWM") - before
    except OSError:
        return math.nan


def table(title, rows):
    """Prints rows, a list of dicts with the same keys, strings and numbers; returns them with their title."""
    texts = [[x if isinstance(x, str) else f"{x:,}" if isinstance(x, int) else f"{x:,.3f}" if x < 100 else f"{x:,.0f}"
              for x in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(list(rows[0]), *texts)]
    print("\n" + title)
    for first, *others in [list(rows[0])] + texts:
        print("  " + first.ljust(widths[0]), *(x.rjust(width) for x, width in zip(others, widths[1:])), sep="  ")
    return {"title": title, "rows": rows}


# ---------------------------------------------------------------------------------------------------------------
# losses

KEEP = 0.9999    # mass of the made-up teacher's sets, all but rounding: the sort finds just the K tokens that are known
EPSILON = 1e-8


def loss_inputs(options, device):
    """Random hidden states (B, T, C), head (V, C) and teacher, with the arguments of the losses, as attributes."""
    torch.manual_seed(0)
    B = max(1, options.positions // 256)
    shape, V, C = (B, options.positions // B), options.n_vocab, options.n_embd
    x = SimpleNamespace(hidden=torch.randn(*shape, C, device=device, requires_grad=True),
                        weight=(torch.randn(V, C, device=device) / math.sqrt(C)).requires_grad_())
    x.teacher = torch.randn(*shape, V, device=device)                                              # (B, T, V)
    x.ids = x.teacher.topk(options.kept).indices                                                   # (B, T, K)
    x.teacher.scatter_add_(-1, x.ids, torch.full(x.ids.shape, 16.0, device=device))
    x.log_probs = x.teacher.log_softmax(-1).gather(-1, x.ids)
    x.mask = torch.ones_like(x.ids, dtype=torch.bool)
    x.taken = x.ids.gather(-1, torch.randint(options.kept, (*shape, 1), device=device))[..., 0]    # (B, T)
    x.is_taken, x.weights = x.ids == x.taken[..., None], torch.ones(shape, device=device)
    x.terminal = (torch.arange(shape[1], device=device) == shape[1] - 1).expand(shape)
    return x


def sorted_mask(logits, p):
    """Top-p by a sort of the whole vocabulary: logits (B, T, V) -> (B, T, V) float, 1 inside the set."""
    logits, ids = logits.sort(dim=-1, descending=True)
    probs = logits.softmax(-1)
    return torch.zeros_like(probs).scatter_(-1, ids, (probs.cumsum(-1) - probs < p).float())


def dense_masks(x, mask, alpha=0.1, gamma=0.99):
    """The released code's loss plus cross-entropy -> scalar; mask (B, T, V) float."""
    logits = F.linear(x.hidden, x.weight).float()                                                  # (B, T, V)
    Q = ((logits - logits.amax(-1, keepdim=True)) * mask).clamp(min=-10)    # outside: 0, its largest value
    V = (Q.exp() + EPSILON).sum(-1).log()                                                          # (B, T)
    later = gamma * F.pad(V[:, 1:], (0, 1))
    residual = Q - later[..., None]                                                                # (B, T, V)
    phi = residual - residual ** 2 / (4 * alpha)                            # of every token, not of the one taken
    return (V - later - phi.mean(-1)).mean() + cross_entropy(x, logits)


def cross_entropy(x, logits):
    return F.cross_entropy(logits.float().flatten(0, 1), x.taken.flatten())


def forward_kl(x, z_K, z_a, log_Z):
    return td_distill.topp_forward_kl(z_K, log_Z, x.log_probs, x.mask, x.weights)[0]


def bellman(x, z_K, z_a, log_Z):
    """With leak, and with cross-entropy, which the released code has too."""
    loss, _ = td_distill.bellman_distill(z_K, z_a, log_Z, x.log_probs, x.mask, x.is_taken, x.terminal, x.weights, leak=1.0)
    return loss + td_distill.sft_loss(z_a, log_Z, x.weights)[0]


def dense_terms(x):
    return td_distill.student_terms(F.linear(x.hidden, x.weight), x.ids, x.taken)


def lean_terms(x):
    return td_distill.head_terms(x.hidden, x.weight, x.ids, x.taken)


WAYS = {     # name -> function of loss_inputs -> what is differentiated; the first is what the others are divided by
    "dense masks": lambda x: dense_masks(x, sorted_mask(x.teacher, KEEP)),
    "dense masks, sets known": lambda x: dense_masks(x, torch.zeros_like(x.teacher).scatter_(-1, x.ids, 1.0)),
    "dense cross-entropy": lambda x: cross_entropy(x, F.linear(x.hidden, x.weight)),
    "dense forward KL": lambda x: forward_kl(x, *dense_terms(x)),
    "dense Bellman": lambda x: bellman(x, *dense_terms(x)),
    "head_terms forward KL": lambda x: forward_kl(x, *lean_terms(x)),
    "head_terms Bellman": lambda x: bellman(x, *lean_terms(x)),
    "the head alone": lambda x: F.linear(x.hidden, x.weight),
}


def forward_backward(name, x, dtype):
    """One row: the loss, under autocast to dtype unless that is None, and both gradients; returns the loss."""
    x.hidden.grad = x.weight.grad = None
    with torch.autocast(x.hidden.device.type, dtype, enabled=dtype is not None):
        loss = WAYS[name](x)
    loss.backward(loss.detach() if loss.dim() else None)        # behind the head alone any gradient will do: its output
    return loss.detach()


def peak_of(name, options, device, dtype):
    """For a fresh process -> extra_memory of one row, bytes; the weight is frozen, so its gradient is not in it."""
    torch.set_num_threads(options.threads)
    few = SimpleNamespace(**(vars(options) | dict(positions=2, n_vocab=options.kept + 1)))
    forward_backward(name, loss_inputs(few, device), dtype)                                        # libraries wake up
    x = loss_inputs(options, device)
    x.weight.requires_grad_(False)
    return extra_memory(lambda: forward_backward(name, x, dtype), device)


def bench_losses(options, device, best):
    """best: the type of autocast in which the device computes, or None. Yields a table for float32, and one for best."""
    dtypes = {"float32": [None], "bf16": [torch.bfloat16], "all": [None, best] if best else [None]}
    if options.dtype not in dtypes or options.kept >= options.n_vocab:
        raise ValueError(f"--dtype={options.dtype}, --kept={options.kept}, --n_vocab={options.n_vocab}; "
                         f"expected {', '.join(dtypes)}, and fewer tokens kept than there are")
    x, (base, *_) = loss_inputs(options, device), WAYS
    for dtype in dtypes[options.dtype]:
        calls = {name: lambda name=name: forward_backward(name, x, dtype) for name in WAYS}
        seconds, rows = in_turns(calls, options.rounds, device), []
        extra = {name: in_fresh_process(peak_of, name, options, device, dtype)
                 for name in tqdm(WAYS, "memory", disable=None, leave=False)}
        for name in WAYS:
            (elapsed, cpu), (of, cpu_of) = np.median(seconds[name], axis=0).tolist(), ratio(seconds, name, base)
            rows.append({"way": name, "seconds": elapsed, "ratio": of, "CPU s": cpu, "CPU ratio": cpu_of,
                         "extra MB": extra[name] / 1e6, "memory ratio": extra[name] / max(extra[base], 1)})
        yield (f"{x.taken.numel():,} positions, {options.n_vocab:,} tokens, {options.n_embd} channels, {options.kept} "
               f"kept; {'bf16 autocast' if dtype else 'float32'}, {device}, threads: {options.threads}"), rows


# ---------------------------------------------------------------------------------------------------------------
# cache

# The made-up teachers give a token of rank i a probability of i^-s / sum, with an s of its own at every position:
# .95 + Gamma(shape, mean - .95). Sharp: the top 50 hold .96 of the mass and the top 7 .90, as Yu et al. report. Flat, as
# GPT-2 is on free text: 3.2 nats. With one s for all positions their sets at p .8 are of 14; where s varies, half of them
# have about a dozen tokens or fewer, and some have thousands, which the cap cuts.
TEACHERS = {"sharp": (2, 2.8), "flat, even": (math.inf, 1.5), "flat, varied": (4, 1.6)}
K_CAPS = (64, 32, 16, 8)


def made_up_teacher(kind, n, n_vocab):
    """Logits (n, n_vocab) float32 of a teacher of TEACHERS at n positions."""
    rng, (shape, mean) = np.random.default_rng(0), TEACHERS[kind]
    s = np.full(n, mean) if shape == math.inf else 0.95 + rng.gamma(shape, (mean - 0.95) / shape, n)
    return -torch.from_numpy(s).float()[:, None] * torch.from_numpy(rng.permutation(n_vocab) + 1.0).float().log()


def write(folder, n_vocab, p, k_cap, documents):
    """A cache of documents (tokens, sets), all tokens drawn by the teacher."""
    writer = CacheWriter(folder, n_vocab=n_vocab, tokenizer_hash="none", p=p, k_cap=k_cap, temperature=1.0,
                         teacher={"hash": "made up"}, made_by="bench.py", roles=["text"])
    for tokens, sets in documents:
        writer.add(tokens, [0] * len(tokens), sets)
    writer.close()


def bench_cache(options, device, best):
    """Prints td_distill.inspect of the caches with the largest cap, and a table of all."""
    rows = []
    for kind in TEACHERS:
        log_probs = made_up_teacher(kind, options.positions, options.n_vocab).log_softmax(-1)      # (N, V)
        for k_cap in K_CAPS:
            parts = [zip(*top_p_sets(part, options.p, k_cap)) for part in log_probs.split(64)]
            sets = [(ids[mask].numpy(), values[mask].numpy()) for part in parts for ids, values, mask in part]
            with tempfile.TemporaryDirectory() as folder:
                folder = os.path.join(folder, kind)
                write(folder, options.n_vocab, options.p, k_cap, [([int(ids[0]) for ids, _ in sets], sets)])
                with contextlib.redirect_stdout(sys.stdout if k_cap == K_CAPS[0] else io.StringIO()):
                    found = td_distill.inspect(folder)
            rows.append({"teacher": kind, "nats": -(log_probs.exp() * log_probs).sum(-1).mean().item(), "cap": k_cap,
                         "mean kept": found["mean_kept"], "coverage": found["coverage"],
                         "bytes a token": found["bytes_per_token"], "dense float16": found["dense_bytes_per_token"]})
    yield f"p={options.p}, {options.n_vocab:,} tokens, {options.positions:,} positions", rows


# ---------------------------------------------------------------------------------------------------------------
# teacher

MODELS = {"4x192": (1014, 4, 192), "6x384": (50257, 6, 384)}    # vocabulary, layers, channels


def bench_teacher(options, device, best):
    """Random models, nearly uniform: every set is as large as the cap, and nothing is cheaper than with a real one."""
    p, k_cap, new = options.p, options.k_cap, options.new
    for title, (V, L, C) in MODELS.items():
        torch.manual_seed(0)
        model = GPT(GPTConfig(n_vocab=V, n_layer=L, n_embd=C, block_size=16 + new)).to(device)
        torch.nn.init.normal_(model.transformer.ln_f.weight, std=0.1)
        prompts = torch.randint(V, (options.rows, 16)).tolist()

        def cached():
            drawn = draw_with_sets(model, prompts, new, p=p, k_cap=k_cap, temperature=1.0, stop=None, seed=0)
            with tempfile.TemporaryDirectory() as folder:
                write(folder, V, p, k_cap, zip(*drawn))

        calls = {"drawn from top-p sets": lambda: model.generate(prompts, new, top_k=k_cap, top_p=p, seed=0),
                 "drawn from the whole softmax": lambda: model.generate(prompts, new, seed=0),
                 "drawn from top-p sets, and cached": cached}
        seconds, (alone, whole, _) = in_turns(calls, options.rounds, device), calls
        rows = [{"way": name, "tokens/s": options.rows * new / np.median(seconds[name][:, 0]).item(),
                 "speed": 1 / ratio(seconds, name, alone)[0], "CPU speed": 1 / ratio(seconds, name, alone)[1],
                 "to whole softmax": 1 / ratio(seconds, name, whole)[1]} for name in calls]
        yield f"{title}, {V:,} tokens: {options.rows} rows of {new} new tokens; {device}, threads: {options.threads}", rows


# ---------------------------------------------------------------------------------------------------------------
# race


def peak_of_training(way, shape, options, device):
    """For a fresh process -> extra_memory of a new model, its optimizers and a few steps, bytes."""
    torch.set_num_threads(options.threads)
    small, shape = (1, 32, 2, 32, 64, 2, (1, 1), 1), (*shape[:-1], 2)
    race.trainer(way, small, options.nanogpt, device)()                                            # libraries wake up
    return extra_memory(lambda: race.trainer(way, shape, options.nanogpt, device)(), device)


def bench_race(options, device, best):
    """Yields one table: a row for each way to do each work, divided by the last way of it."""
    nanogpt = race.load_nanogpt(options.nanogpt) if options.nanogpt else None
    rates = race.multiply_rates(device, lambda call: in_turns({"": call}, 1, device)[""][0, 0])
    shapes = race.CUDA_SHAPES if device.type == "cuda" else race.CPU_SHAPES
    rows = [{"what": "matrix multiply", "way": str(dtype)[6:], "figure": rate / 1e9, "unit": "GFLOP/s", "ratio": "",
             "CPU ratio": "", "share": 1.0} for dtype, rate in rates.items()]
    with tempfile.TemporaryDirectory() as folder:
        works = (race.training(shapes, options.nanogpt, device, options.threads),
                 race.generation((1, 64), options.new, nanogpt, device), race.scoring(options.items, device),
                 race.reading_a_cache(folder), large_vocabulary(options, device, best))
        for what, unit, amount, calls, operations in chain.from_iterable(works):
            for call in calls.values():
                call()                                                                              # once for nothing
            seconds, base = in_turns(calls, options.rounds, device), list(calls)[-1]
            for way in calls:
                figure = amount / np.median(seconds[way][:, 0]).item()
                dtype = torch.float32 if best is None or (way == "nanoGPT" and device.type == "cpu") else best
                of, cpu = (1 / x for x in ratio(seconds, way, base)) if len(calls) > 1 else ("", "")
                rows.append({"what": what, "way": way, "figure": figure, "unit": unit, "ratio": of, "CPU ratio": cpu,
                             "share": figure * operations[way] / rates[dtype] if way in operations else ""})
        for name, shape in shapes.items():
            ways = ["modern", "gpt2"] + ["nanoGPT"] * bool(nanogpt)
            extra = {way: in_fresh_process(peak_of_training, way, shape, options, device) for way in ways}
            rows += [{"what": f"memory, training {name}", "way": way, "figure": extra[way] / 1e6, "unit": "MB",
                      "ratio": extra[way] / max(extra[ways[-1]], 1), "CPU ratio": "", "share": ""} for way in ways]
    yield f"{device}, {'bf16' if best else 'float32'}, threads: {options.threads}; median of {options.rounds}", rows


def large_vocabulary(options, device, best):
    """Top-p distillation at GPT-2's vocabulary beside plain cross-entropy, as one work of the race."""
    x = loss_inputs(SimpleNamespace(positions=512, n_vocab=50257, n_embd=768, kept=16), device)
    ways = "head_terms forward KL", "dense forward KL", "dense cross-entropy"
    yield ("loss, 50,257 tokens", "tokens/s", x.taken.numel(),
           {way: lambda way=way: forward_backward(way, x, best) for way in ways}, {})


def bench_shakespeare(options, device, best):
    """Yields one table: a row for each way, seconds are medians over rounds and losses means."""
    ways, found = ["ours"] + ["nanoGPT"] * bool(options.nanogpt), {}
    for seed in tqdm(range(options.rounds), "rounds", disable=None, leave=False):
        for way in ways:
            arguments = way, options.text, options.nanogpt, seed, options.threads
            found.setdefault(way, []).append(in_fresh_process(shakespeare.timed, *arguments))
    found = {way: np.array(values) for way, values in found.items()}                               # (rounds, 3)
    rows = []
    for way in ways:
        elapsed, cpu = np.median(found[way][:, :2], axis=0).tolist()
        of, cpu_of = ratio({name: values[:, :2] for name, values in found.items()}, way, ways[-1])
        loss = found[way][:, 2].mean().item()
        rows.append({"way": way, "seconds": elapsed, "ratio": of, "CPU s": cpu, "CPU ratio": cpu_of, "nats a character": loss,
                     "bits": loss / math.log(2), f"to {shakespeare.GOAL}": "yes" if loss <= shakespeare.GOAL else "no"})
    yield f"the last tenth of {options.text}, held out; threads: {options.threads}, seeds: {options.rounds}", rows


# ---------------------------------------------------------------------------------------------------------------

WHOLE = {"threads": (os.cpu_count(), "of PyTorch"), "device": ("auto", "cpu, cuda, mps or auto")}    # of the whole machine
BENCHES = {    # name -> function(options, device, type of autocast or None) that yields (title, rows), what it is, options
    "losses": (bench_losses, "loss forward and backward, with the head", {
        "positions": (1024, "B * T"), "n_vocab": (50257, "V"), "n_embd": (768, "C"), "kept": (16, "K"),
        "dtype": ("all", "float32, bf16 (autocast), or all in which the device computes"), "rounds": (5, "of timing")}),
    "cache": (bench_cache, "bytes a token of the sparse cache", {
        "positions": (2000, "of each made-up teacher"), "n_vocab": (50257, "V"), "p": (0.8, "mass of a set")}),
    "teacher": (bench_teacher, "drawing and caching against drawing alone", {
        "rows": (32, "drawn side by side"), "new": (32, "tokens drawn a row"), "p": (0.8, "mass of a set"),
        "k_cap": (64, "largest set"), "rounds": (5, "of timing")}),
    "race": (bench_race, "ours and nanoGPT on the same work (the default)", {
        "nanogpt": ("", "folder of a checkout of nanoGPT"), "new": (256, "tokens generated a row"),
        "items": (1000, "scored, of four candidates"), "rounds": (5, "of timing"), **WHOLE}),
    "shakespeare": (bench_shakespeare, "seconds to the loss of nanoGPT's README", {
        "nanogpt": ("", "folder of a checkout of nanoGPT"), "text": ("input.txt", "tinyshakespeare, 1.1 MB"),
        "rounds": (3, "of training, each with a seed of its own"), "threads": WHOLE["threads"]}),
}
SHARED = {"threads": (1, "of PyTorch"), "device": ("cpu", "cpu, cuda, mps or auto"), "json": ("", "file for the tables")}


def parse(argv):
    """The options of a bench, whose name is in `bench`. ValueError names what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benches = parser.add_subparsers(dest="bench", required=True)
    for bench, (_, text, own) in BENCHES.items():
        one = benches.add_parser(bench, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for name, (default, meaning) in (SHARED | own).items():
            one.add_argument("--" + name, type=type(default), default=default, help=meaning)
    options = parser.parse_args(argv)
    for name, value in vars(options).items():
        if isinstance(value, int) and value < 1:
            raise ValueError(f"--{name}={value}; expected at least 1")
    if options.device not in ("cpu", "cuda", "mps", "auto"):
        raise ValueError(f"--device={options.device}; expected cpu, cuda, mps or auto")
    return options


def main(argv=None):
    """Runs one bench -> exit code: 0, or 2 with one line for what cannot be."""
    try:
        argv = [argument.removeprefix("--task=") for argument in (sys.argv[1:] if argv is None else argv)]
        options = parse(argv if argv and argv[0] in (*BENCHES, "-h", "--help") else ["race", *argv])
        torch.set_num_threads(options.threads)
        machine = pick_device(Config(device=options.device))
        tables = [table(*found) for found in BENCHES[options.bench][0](options, *machine)]
        if options.json:
            with open(options.json + ".tmp", "w", encoding="utf-8") as file:
                json.dump({"options": vars(options), "torch": torch.__version__, "tables": tables}, file, indent=1)
            os.replace(options.json + ".tmp", options.json)
    except (ValueError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
