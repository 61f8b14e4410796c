"""What it costs: each figure is a ratio of two ways to do the same thing, timed in turns in one run.

    python -m experiments.bench losses --threads=1      a loss at GPT-2's vocabulary (10 minutes; 1 minute with
                                                        --positions=256 --rounds=3)
    python -m experiments.bench cache                   bytes a token of the sparse cache
    python -m experiments.bench teacher                 drawing and caching against drawing alone
    python -m experiments.bench --nanogpt=../nanoGPT    training and generation beside nanoGPT (15 minutes)
    python -m experiments.bench shakespeare --nanogpt=../nanoGPT --rounds=3    seconds to a loss (race.py)

A ratio is the median over `--rounds` rounds of the ratio within a round. Elapsed and CPU time are both given:
trust the second where other programs run. losses goes from the last hidden states to their gradient and that
of the head's weight:

    dense masks       the loss of the authors' code of Bellman Distill (not the paper's, see course/theory.py):
                      logits, mask, Q, its exponential and a residual, each over the whole vocabulary, and a
                      sort of the teacher's logits, which are given, for its top-p set
    dense ...         cross-entropy, and td_distill's losses on student_terms of dense logits
    head_terms ...    the same losses; logits are kept once, softmax and gradient never
    the head alone    three matrix products, for the logits and two gradients

Memory is the peak of the resident set (on CUDA, of what is allocated) above the inputs, in a fresh process for
each row, without the gradient of the weight (V, C), which every row would have to return.
Shapes: B documents, T tokens, C channels, V vocabulary, K teacher tokens kept.
"""

import contextlib
import io
import math
import sys
import tempfile
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import td_distill
from data.cache_tools import CacheWriter, inspect
from data.cli import check_range, parse_options, run_command
from data.machine import pick_device, worker_pool
from experiments import race
from experiments.losses import head_terms
from model import GPT, GPTConfig
from train import Config

K, C = 16, 768          # of the losses
P, K_CAP = 0.8, 64      # of the caches
KEEP = 0.9999           # mass of the made-up teacher's sets: a sort finds just the K tokens that are known


@dataclass
class Options:
    nanogpt: str = ""           # folder of a checkout of nanoGPT
    text: str = "input.txt"     # of shakespeare: nanoGPT's data/shakespeare_char/input.txt
    positions: int = 1024       # of losses: B * T
    n_vocab: int = 50257        # of losses and cache: V
    rounds: int = 5             # of timing; of shakespeare: trainings, each with a seed of its own
    threads: int = 0            # of PyTorch; 0: as many as there are cores
    device: str = "cpu"         # of losses and teacher: cpu, cuda, mps or auto

    def __post_init__(self):
        Config(device=self.device)
        for name, above in (("positions", 0), ("n_vocab", K), ("rounds", 0)):
            check_range(name, getattr(self, name), above=above)


def in_turns(calls, rounds):
    """calls {name: function -> (elapsed, CPU) seconds} -> {name: (rounds, 2)}. A round runs each of them once,
    so that what disturbs one disturbs all."""
    seconds = {name: [] for name in calls}
    for _ in tqdm(range(rounds), "rounds", disable=None, leave=False):
        for name, call in calls.items():
            seconds[name].append(call())
    return {name: np.array(pairs) for name, pairs in seconds.items()}


def ratio(seconds, name, base):
    """Median over rounds of name / base -> [elapsed, CPU]."""
    return np.median(seconds[name] / seconds[base], axis=0).tolist()


def extra_memory(call, device):
    """Peak bytes of a call above what stood before; NaN where the system does not tell: no CUDA, no Linux."""
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


def print_table(title, rows):
    """rows: dicts with the same keys, of strings and numbers."""
    def text(x):
        if isinstance(x, str):
            return x
        return f"{x:,}" if isinstance(x, int) else f"{x:,.3f}" if x < 100 else f"{x:,.0f}"
    lines = [list(rows[0])] + [[text(x) for x in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    print("\n" + title)
    for first, *others in lines:
        print(" ", first.ljust(widths[0]), *(x.rjust(width + 1) for x, width in zip(others, widths[1:])))


# ------------------------------------------------------------------------------------------------------------
# losses


def loss_inputs(positions, V, C, device):
    """Random hidden states (B, T, C), head (V, C) and teacher, with the arguments of the losses."""
    torch.manual_seed(0)
    B = max(1, positions // 256)
    shape = B, positions // B
    x = SimpleNamespace(hidden=torch.randn(*shape, C, device=device, requires_grad=True),
                        weight=(torch.randn(V, C, device=device) / math.sqrt(C)).requires_grad_(),
                        weights=torch.ones(shape, device=device))
    x.teacher = torch.randn(*shape, V, device=device)                                      # (B, T, V)
    x.ids = x.teacher.topk(K).indices                                                      # (B, T, K)
    x.teacher.scatter_add_(-1, x.ids, torch.full(x.ids.shape, 16.0, device=device))
    x.taken = x.ids.gather(-1, torch.randint(K, (*shape, 1), device=device))[..., 0]       # (B, T)
    terminal = (torch.arange(shape[1], device=device) == shape[1] - 1).expand(shape)
    x.sets = td_distill.TeacherSets(x.teacher.log_softmax(-1).gather(-1, x.ids), torch.ones_like(x.ids, dtype=torch.bool),
                                    x.ids == x.taken[..., None], terminal)
    return x


def sorted_mask(logits, p):
    """Top-p by a sort of the whole vocabulary: logits (B, T, V) -> (B, T, V) float, 1 inside the set."""
    logits, ids = logits.sort(dim=-1, descending=True)
    probs = logits.softmax(-1)
    return torch.zeros_like(probs).scatter_(-1, ids, (probs.cumsum(-1) - probs < p).float())


def dense_masks(x, alpha=0.1, gamma=0.99):
    """The loss of the released code plus cross-entropy -> scalar."""
    logits, mask = F.linear(x.hidden, x.weight).float(), sorted_mask(x.teacher, KEEP)      # (B, T, V)
    Q = ((logits - logits.amax(-1, keepdim=True)) * mask).clamp(min=-10)    # outside: 0, its largest value
    V = (Q.exp() + 1e-8).sum(-1).log()                                                     # (B, T)
    later = gamma * F.pad(V[:, 1:], (0, 1))
    residual = Q - later[..., None]                                                        # (B, T, V)
    phi = residual - residual ** 2 / (4 * alpha)                            # of every token, not of the one taken
    return (V - later - phi.mean(-1)).mean() + cross_entropy(x, logits)


def cross_entropy(x, logits):
    return F.cross_entropy(logits.float().flatten(0, 1), x.taken.flatten())


def forward_kl(x, student):
    return td_distill.topp_forward_kl(student, x.sets, x.weights)[0]


def bellman(x, student):
    """With leak, and with cross-entropy, which the released code has too."""
    loss, _ = td_distill.bellman_distill(student, x.sets, x.weights, leak=1.0)
    return loss + td_distill.sft_loss(student, x.weights)[0]


def dense_terms(x):
    return td_distill.student_terms(F.linear(x.hidden, x.weight), x.ids, x.taken)


def lean_terms(x):
    return head_terms(x.hidden, x.weight, x.ids, x.taken)


WAYS = {     # name -> function of loss_inputs -> what is differentiated; the first one is the base of the ratios
    "dense masks": dense_masks,
    "dense cross-entropy": lambda x: cross_entropy(x, F.linear(x.hidden, x.weight)),
    "dense forward KL": lambda x: forward_kl(x, dense_terms(x)),
    "dense Bellman": lambda x: bellman(x, dense_terms(x)),
    "head_terms forward KL": lambda x: forward_kl(x, lean_terms(x)),
    "head_terms Bellman": lambda x: bellman(x, lean_terms(x)),
    "the head alone": lambda x: F.linear(x.hidden, x.weight),
}


def forward_backward(name, x, dtype):
    """One row: the loss, under autocast to dtype unless that is None, and both gradients; returns the loss."""
    x.hidden.grad = x.weight.grad = None
    with torch.autocast(x.hidden.device.type, dtype, enabled=dtype is not None):
        loss = WAYS[name](x)
    loss.backward(loss.detach() if loss.dim() else None)        # for the head alone any gradient will do
    return loss.detach()


def peak_of(name, positions, V, C, device, dtype):
    """For a fresh process -> extra_memory of one row, bytes."""
    torch.set_num_threads(1)
    forward_backward(name, loss_inputs(2, K + 1, C, device), dtype)         # libraries take their memory
    x = loss_inputs(positions, V, C, device)
    x.weight.requires_grad_(False)
    return extra_memory(lambda: forward_backward(name, x, dtype), device)


def bench_losses(options):
    """Yields a table for float32, and one for autocast to bf16 where the device computes in it."""
    device, best = pick_device(options.device)
    sizes, (base, *_) = (options.positions, options.n_vocab, C, device), WAYS
    x = loss_inputs(*sizes)
    for dtype in [None, best] if best else [None]:
        calls = {name: lambda name=name: race.clock(lambda: forward_backward(name, x, dtype), device) for name in WAYS}
        seconds, rows, extra = in_turns(calls, options.rounds), [], {}
        for name in tqdm(WAYS, "memory", disable=None, leave=False):
            with worker_pool(1) as pool:
                extra[name] = pool.submit(peak_of, name, *sizes, dtype).result()
        for name in WAYS:
            (elapsed, cpu), (of, cpu_of) = np.median(seconds[name], axis=0).tolist(), ratio(seconds, name, base)
            rows.append({"way": name, "seconds": elapsed, "ratio": of, "CPU s": cpu, "CPU ratio": cpu_of,
                         "extra MB": extra[name] / 1e6, "memory ratio": extra[name] / max(extra[base], 1)})
        yield (f"{options.positions:,} positions, {options.n_vocab:,} tokens, {C} channels, {K} kept; "
               f"{'bf16 autocast' if dtype else 'float32'}, {device}, threads: {torch.get_num_threads()}"), rows


# ------------------------------------------------------------------------------------------------------------
# cache and teacher

# The made-up teachers give a token of rank i a probability of i^-s / sum, with an s of its own at every position:
# .95 + Gamma(shape, mean - .95). Sharp: the top 50 hold .96 of the mass and the top 7 .90, as Yu et al. report.
# Flat, as GPT-2 is on free text: 3.2 nats. Where s varies, half of the sets at p .8 have about a dozen tokens or
# fewer, and some have thousands, which the cap cuts.
TEACHERS = {"sharp": (2, 2.8), "flat, even": (math.inf, 1.5), "flat, varied": (4, 1.6)}
K_CAPS = (64, 32, 16, 8)


def made_up_teacher(kind, n, n_vocab):
    """Logits (n, n_vocab) float32 of a teacher of TEACHERS at n positions."""
    rng, (shape, mean) = np.random.default_rng(0), TEACHERS[kind]
    s = np.full(n, mean) if shape == math.inf else 0.95 + rng.gamma(shape, (mean - 0.95) / shape, n)
    return -torch.from_numpy(s).float()[:, None] * torch.from_numpy(rng.permutation(n_vocab) + 1.0).float().log()


def write(folder, n_vocab, k_cap, documents):
    """A cache of documents (tokens, sets), all tokens drawn by the teacher."""
    writer = CacheWriter(folder, n_vocab=n_vocab, tokenizer_hash="none", p=P, k_cap=k_cap, temperature=1.0,
                         teacher={"hash": "made up"}, made_by="experiments.bench", roles=["text"])
    for tokens, sets in documents:
        writer.add(tokens, [0] * len(tokens), sets)
    writer.close()


def bench_cache(options, n=2000):
    """Yields one table: what a cache of n positions costs a token, for each teacher and cap."""
    rows = []
    for kind in TEACHERS:
        log_probs = made_up_teacher(kind, n, options.n_vocab).log_softmax(-1)              # (n, V)
        nats = -(log_probs.exp() * log_probs).sum(-1).mean().item()
        for k_cap in K_CAPS:
            parts = [zip(*td_distill.top_p_sets(part, P, k_cap)) for part in log_probs.split(64)]
            sets = [(ids[mask].numpy(), values[mask].numpy()) for part in parts for ids, values, mask in part]
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                write(folder, options.n_vocab, k_cap, [([int(ids[0]) for ids, _ in sets], sets)])
                found = inspect(folder)
            rows.append({"teacher": kind, "nats": nats, "cap": k_cap, "mean kept": found["mean_kept"],
                         "coverage": found["coverage"], "bytes a token": found["bytes_per_token"],
                         "dense float16": found["dense_bytes_per_token"]})
    yield f"p={P}, {options.n_vocab:,} tokens, {n:,} positions", rows


def bench_teacher(options, B=32, new=32):
    """Yields one table. A random model, nearly uniform: every set is as large as the cap."""
    torch.manual_seed(0)
    device, _ = pick_device(options.device)
    model = GPT(GPTConfig(n_vocab=1014, n_layer=4, n_embd=192, block_size=16 + new)).to(device)
    torch.nn.init.normal_(model.transformer.ln_f.weight, std=0.1)
    prompts = torch.randint(model.config.n_vocab, (B, 16)).tolist()

    def drawn():
        model.generate(prompts, new, top_k=K_CAP, top_p=P, seed=0)

    def cached():
        documents = zip(*td_distill.draw_with_sets(model, prompts, new, p=P, k_cap=K_CAP, seed=0))
        with tempfile.TemporaryDirectory() as folder:
            write(folder, model.config.n_vocab, K_CAP, documents)

    calls = {"drawn from top-p sets": drawn, "drawn and cached": cached}
    seconds = in_turns({name: lambda call=call: race.clock(call, device) for name, call in calls.items()}, options.rounds)
    rows = [{"way": name, "tokens/s": B * new / np.median(seconds[name][:, 0]).item(),
             "speed": 1 / ratio(seconds, name, "drawn from top-p sets")[0],
             "CPU speed": 1 / ratio(seconds, name, "drawn from top-p sets")[1]} for name in calls]
    yield f"4x192, 1,014 tokens: {B} rows of {new} new tokens; {device}, threads: {torch.get_num_threads()}", rows


# ------------------------------------------------------------------------------------------------------------
# race and shakespeare


def bench_race(options):
    """Yields one table: a row for each way to do each work, divided by the last way."""
    ways, (_, best) = ("modern", "gpt2", "nanoGPT")[:3 if options.nanogpt else 2], pick_device("cpu")
    rates, threads = race.multiply_rates(), torch.get_num_threads()
    rows = [{"what": "matrix multiply", "way": str(dtype)[6:], "figure": rate / 1e9, "unit": "GFLOP/s", "ratio": "",
             "CPU ratio": "", "share": 1.0} for dtype, rate in rates.items()]
    for works in (race.training(ways, options.nanogpt, threads), race.generation(ways, options.nanogpt)):
        for what, amount, calls, operations in works:
            for call in calls.values():
                call()                              # the first call is slower
            seconds = in_turns(calls, options.rounds)
            for way in ways:
                figure = amount / np.median(seconds[way][:, 0]).item()
                dtype = torch.float32 if best is None or way == "nanoGPT" else best
                of, cpu = (1 / x for x in ratio(seconds, way, ways[-1]))
                share = figure * operations[way] / rates[dtype] if operations else ""
                rows.append({"what": what, "way": way, "figure": figure, "unit": "tokens/s", "ratio": of,
                             "CPU ratio": cpu, "share": share})
    yield f"cpu, {'bf16' if best else 'float32'}, threads: {threads}; median of {options.rounds}", rows


def bench_shakespeare(options):
    """Yields one table: a row for each way, seconds are medians over rounds and losses means."""
    ways, found = ("ours", "nanoGPT")[:2 if options.nanogpt else 1], {}
    for seed in tqdm(range(options.rounds), "rounds", disable=None, leave=False):
        for way in ways:
            with worker_pool(1) as pool:
                arguments = way, options.text, options.nanogpt, seed, torch.get_num_threads()
                found.setdefault(way, []).append(pool.submit(race.seconds_to_loss, *arguments).result())
    seconds, rows = {way: np.array(values)[:, :2] for way, values in found.items()}, []
    for way in ways:
        (elapsed, cpu), (of, cpu_of) = np.median(seconds[way], axis=0).tolist(), ratio(seconds, way, ways[-1])
        loss = np.mean([nats for *_, nats in found[way]]).item()
        rows.append({"way": way, "seconds": elapsed, "ratio": of, "CPU s": cpu, "CPU ratio": cpu_of,
                     "nats a character": loss, f"to {race.GOAL}": "yes" if loss <= race.GOAL else "no"})
    yield f"the last tenth of {options.text}, threads: {torch.get_num_threads()}, seeds: {options.rounds}", rows


BENCHES = {"losses": bench_losses, "cache": bench_cache, "teacher": bench_teacher, "race": bench_race,
           "shakespeare": bench_shakespeare}


def main(arguments=None):
    """Runs one bench, "race" where none is named; ValueError or OSError for what cannot be."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "race"
    if name not in BENCHES:
        raise ValueError(f"{name}: expected one of {', '.join(BENCHES)}")
    options = parse_options(Options, arguments, __doc__)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    for title, rows in BENCHES[name](options):
        print_table(title, rows)


if __name__ == "__main__":
    run_command(main)
