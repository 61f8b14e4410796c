"""When does a temporal difference beat KD? All answers are right, but a small student cannot finish all.

    python -m experiments.routes                            all rows of routes_arms.py on task A, 5 seeds
    python -m experiments.routes --task=D --rows=KD,TD      only these, on task D
    python -m experiments.routes --show=experiments/results/routes.jsonl     the runs that the README reports

A prompt shows two doors, each with a corridor of symbols and two items. An item is a label, a type h, and a
key of two symbols. The answer names a door, copies its corridor, and gives one of its items with three marks:

    prompt    door0 s4 s31  L2 h0 s7 s9  L5 h3 s1 s20   door1 s8 s8  L0 h1 s3 s3  L7 h1 s30 s2   go
    answer    door0 s4 s31  L2 h0 s7 s9 . . .  end      or      door0 s4 s31  L5 h3 s1 s20 s11 s2 s34  end

The first h marks are a fact: a random table, which no prompt shows, gives them for the key. The others are
dots. Every door and item is right, but an item of type 0 can be read, one of type 3 must be known, and a
small student cannot learn all facts. In a trap one door has the types 0 and 3, the other 1 and 1: the first
is better if one then takes the 0. On task D a door has no corridor and two pairs of items, one of each pair
is given, and facts depend on labels too.

All rows of a seed begin with one student and read one teacher's answers in one order, each at the rate that
was best on a seed kept for that. Seeds share prompts and answers. Measures are exact: right answers are
enumerated. A finished run is a line of results.jsonl: more rows, seeds and tasks are added.
Shapes: n prompts, P their tokens, A tokens of an answer, K tokens of a set, V vocabulary.
"""

import functools
import itertools
import math
import re
import time
from dataclasses import asdict, dataclass, fields, replace
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import td_distill as td
import train
from data.cache import MASKED
from data.cli import Options as Base, parse_options, progress, run_command
from data.figures import mean_se
from data.files import folder_lock, hash_of, open_run, save_finished
from data.machine import check_weights, worker_pool
from data.sets import draw_with_sets
from experiments.compare import TUNING, number_list, table, tables, tune
from experiments.routes_arms import ROWS, inputs
from experiments.tables import BOUNDS, run_all
from model import GPT, GPTConfig

END, GO, DOT, DOOR, TYPE, LABEL, SYMBOL = 0, 1, 2, 3, 5, 9, 17      # 2 doors, 4 types, 8 labels, 36 symbols
LABELS, SYMBOLS, MARKS = 8, 36, 3
N_VOCAB = SYMBOL + SYMBOLS
NONE = -1                                   # in place of a set's second token: there is only one
ANSWERS, TESTS, BATCH = 48_000, 1500, 48    # cached answers, test prompts, documents in a batch
START_RATE = 0.005                          # of the common start: at .01 some seeds do not learn to read
TEACHER_STEPS, TEACHER_P, TEACHER_K = 4000, 0.95, 8     # of a trained teacher: its training and its sets
FILES = dict.fromkeys(("stages", "starts/*", "starts", "teachers/*", "teachers", "results.jsonl"), "")


@dataclass(frozen=True)
class World(Base):
    """What the runs of one table have in common."""
    task: str = "A"                     # A: a corridor and one pair of items a door; D: two pairs
    facts: int = 1296                   # different keys, a square up to 36 * 36; on task D with each label
    trap: float = 0.5                   # part of the prompts that are traps
    corridor: int = 2                   # symbols of a corridor on task A, up to 4
    prefer: float = 0.6                 # the teacher's probability of the first door, and of the first item
    lapse: float = 0.0                  # P(it writes type 0 and dots for a harder item): easy, but wrong
    teacher: str = "scripted"           # scripted: exact; trained: a network with 2 layers and 64 channels
    layers: int = 1                     # layers of the students
    embd: int = 24                      # channels of the students
    start: int = 1800                   # steps of KD that all rows have in common
    steps: int = 800                    # steps of each row after it
    CHOICES = {"task": ["A", "D"], "teacher": ["scripted", "trained"], "rows": ["", *ROWS]}
    BOUNDS = {**BOUNDS, **dict.fromkeys(("trap", "prefer", "lapse"), (None, 1)), "corridor": (None, 4),
              "facts": (0, SYMBOLS ** 2)}

    def __post_init__(self):
        super().__post_init__()
        if math.isqrt(self.facts) ** 2 < self.facts:
            raise ValueError(f"--facts={self.facts}, but expected the square of a number")
        self.refuse(self.task == "D", "on task D", "corridor")
        check_weights(self.shape)

    @property
    def shape(self):
        return GPTConfig(N_VOCAB, block_size=64, n_layer=self.layers, n_embd=self.embd)

    @property
    def pairs(self):
        return 2 if self.task == "D" else 1


@dataclass(frozen=True)
class Options(World):
    rows: str = ""                      # rows of routes_arms.py, separated by commas; "": all
    seeds: int = 5                      # students of each row in the table
    rates: str = "0.005,0.01,0.02"      # learning rates that every row tries, separated by commas
    out_dir: str = "out/routes"         # folder of all that is made
    redo: bool = False                  # throw away what an earlier comparison left in out_dir
    workers: int = torch.get_num_threads()  # processes side by side
    show: str = ""                      # print the tables of a results.jsonl, and train nothing
    png: str = ""                       # with show: also draw KD and TD against the number of facts

    def __post_init__(self):
        super().__post_init__()
        self.refuse(not self.show, "without --show", "png")


# ------------------------------------------------------------------------------------------------------------
# The task


class Prompts(NamedTuple):
    corridors: np.ndarray               # (n, 2, corridor) tokens, of each door
    items: np.ndarray                   # (n, 2, pairs, 2, 7): label, type, key (2), marks (3)
    tokens: np.ndarray                  # (n, P)


def draw_prompts(world, n, seed):
    """n prompts; the same seed gives the same ones."""
    rng, size, by_label = np.random.default_rng(seed), math.isqrt(world.facts), world.task == "D"
    table = np.random.default_rng(1).integers(SYMBOLS, size=(LABELS, size, size, MARKS))        # the facts
    shape = n, 2, world.pairs, 2                                                    # (n, door, pair, item)
    types, trap = rng.integers(4, size=shape), rng.random(n) < world.trap
    mixed = (rng.integers(2, size=n)[:, None] == np.arange(2))[..., None, None]     # the door with 0 and 3
    trapped = np.where(mixed, rng.permuted(np.broadcast_to([0, 3], shape), axis=-1), 1)
    types = np.where(trap[:, None, None, None], trapped, types)
    labels = rng.permuted(np.tile(np.arange(LABELS), (n, 1)), axis=1)[:, :4 * world.pairs].reshape(shape)
    keys = rng.integers(size, size=(*shape, 2))
    fact = table[labels if by_label else 0, keys[..., 0], keys[..., 1]]             # (*shape, 3)
    marks = np.where(np.arange(MARKS) < types[..., None], SYMBOL + fact, DOT)
    items = np.concatenate([LABEL + labels[..., None], TYPE + types[..., None], SYMBOL + keys, marks], -1)
    corridors = SYMBOL + rng.integers(SYMBOLS, size=(n, 2, 0 if by_label else world.corridor))
    parts = [[np.full((n, 1), DOOR + d), corridors[:, d], items[:, d, i, :, :4].reshape(n, 8)]
             for d in range(2) for i in range(world.pairs)]
    return Prompts(corridors, items, np.concatenate([*sum(parts, []), np.full((n, 1), GO)], 1))


def script(world, prompts, choices):
    """The answers after choices (n, 1 + pairs), a door and an item of each pair, 0 or 1 -> tokens (n, A), the
    other token of each set or NONE (n, A), the teacher's probability of each token (n, A)."""
    row, door, n = np.arange(len(choices)), choices[:, 0], len(choices)
    shares = np.where(choices, 1 - world.prefer, world.prefer)
    columns = [[DOOR + door, DOOR + 1 - door, shares[:, 0]]]
    columns += [[symbol, NONE, 1.0] for symbol in prompts.corridors[row, door].T]
    for i, pick in enumerate(choices[:, 1:].T):
        item, other = prompts.items[row, door, i, pick], prompts.items[row, door, i, 1 - pick]      # (n, 7)
        columns.append([item[:, 0], other[:, 0], shares[:, 1 + i]])
        columns += [[symbol, NONE, 1.0] for symbol in item[:, 1:].T]
    columns.append([END, NONE, 1.0])
    return tuple(np.stack([np.broadcast_to(x, n) for x in part], 1) for part in zip(*columns))


def right_answers(world, prompts):
    """Yields (tokens (n, A), the teacher's probability (n,)) for each door and items: all right answers."""
    for choices in itertools.product((0, 1), repeat=1 + world.pairs):
        tokens, _, shares = script(world, prompts, np.tile(choices, (len(prompts.items), 1)))
        yield tokens, shares.prod(1)


# ------------------------------------------------------------------------------------------------------------
# The teacher's answers, and what a student makes of them


class Answers(NamedTuple):
    tokens: torch.Tensor                # (n, P + A) prompts with their answers
    ids: torch.Tensor                   # (n, A, K) the set of each token of the answer
    log_probs: torch.Tensor             # (n, A, K), MASKED where a set is smaller


def scripted_answers(world, prompts, seed):
    """An answer of the exact teacher to each prompt, lapses included."""
    n, pairs = len(prompts.items), world.pairs
    chance = np.random.default_rng(seed).random((n, 1 + 2 * pairs))
    tokens, other, shares = script(world, prompts, (chance[:, :1 + pairs] < 1 - world.prefer) + 0)
    for i in range(pairs if world.lapse else 0):
        at = tokens.shape[1] - 7 * (pairs - i)                                      # column of the type
        hard = tokens[:, at] != TYPE
        lapsed = hard & (chance[:, 1 + pairs + i] < world.lapse)
        other[:, at] = np.where(hard, np.where(lapsed, tokens[:, at], TYPE), NONE)
        shares[:, at] = np.where(hard, np.where(lapsed, world.lapse, 1 - world.lapse), 1.0)
        tokens[lapsed, at], tokens[lapsed, at + 3:at + 6] = TYPE, DOT
    rest = np.where(other == NONE, MASKED, np.log(np.maximum(1 - shares, 1e-30)))
    arrays = (np.concatenate([prompts.tokens, tokens], 1), np.stack([tokens, np.maximum(other, 0)], -1),
              np.stack([np.log(shares), rest], -1).astype(np.float32))
    return Answers(*map(torch.from_numpy, arrays))


def drawn_answers(teacher, prompts, length):
    """Answers that a network draws from its top-p sets; one of another length is dropped."""
    tokens, sets = [], []
    for at in range(0, len(prompts.tokens), 1000):
        some = prompts.tokens[at:at + 1000].tolist()
        drawn = draw_with_sets(teacher, some, length, p=TEACHER_P, k_cap=TEACHER_K, stop=END, seed=at)
        good = [(p + a, kept) for p, a, kept in zip(some, *drawn) if len(a) == length and a[-1] == END]
        tokens += [document for document, _ in good]
        sets += [[np.pad(pair, ((0, 0), (0, TEACHER_K - len(pair[0]))), constant_values=MASKED)
                  for pair in kept] for _, kept in good]
    ids, log_probs = torch.from_numpy(np.array(sets)).unbind(2)                     # (n, A, K)
    return Answers(torch.tensor(tokens), ids.clamp(min=0).long(), log_probs.float())


@functools.cache
def open_answers(out, world):
    """The cached answers of a world -> Answers. A trained teacher that is not in `out` yet is trained."""
    prompts = draw_prompts(world, ANSWERS, seed=1)
    answers = scripted_answers(world, prompts, seed=2)
    if world.teacher == "scripted":
        return answers
    network = replace(world, layers=2, embd=64, start=0, steps=TEACHER_STEPS)
    folder = out / "teachers" / hash_of(repr(network))
    if not (folder / "config.json").exists():
        torch.manual_seed(1)
        teacher = GPT(network.shape)
        learn(teacher, ROWS["KD"], answers, network.steps, START_RATE, seed=1, cooldown=0.5)
        teacher.save(folder)
    return drawn_answers(GPT.load(folder), prompts, answers.ids.size(1))


@torch.no_grad()
def measure(model, world, prompts, p=0.8):
    """What a model answers to these prompts, by enumeration -> dict. The probability of a right answer: T=1,
    nucleus (of mass p), greedy. Of whole answers: kl, KL(scripted teacher without lapses || student) in nats,
    and overlap, the sum of the smaller probability, 1 where they agree."""
    figures, ask = {}, torch.from_numpy(prompts.tokens)
    for tokens, share in right_answers(world, prompts):
        tokens, share = torch.from_numpy(tokens), torch.from_numpy(share).float()
        logits = model(torch.cat([ask, tokens[:, :-1]], 1))[:, ask.size(1) - 1:]    # (n, A, V)
        probs = logits.softmax(-1)
        drawn = probs.gather(-1, tokens[..., None])                                 # (n, A, 1)
        above = torch.where(probs > drawn, probs, 0).sum(-1)                        # mass of likelier tokens
        ranked = probs.sort(-1, descending=True).values
        kept = torch.where(ranked.cumsum(-1) - ranked < p, ranked, 0).sum(-1)       # mass of the nucleus
        s = drawn[..., 0].prod(-1)                                                  # (n,)
        each = {"T=1": s, "nucleus": torch.where(above < p, drawn[..., 0] / kept, 0).prod(-1),
                "greedy": (logits.argmax(-1) == tokens).all(-1).float(), "overlap": torch.minimum(s, share),
                "kl": torch.xlogy(share, share) - share * drawn[..., 0].log().sum(-1)}
        figures = {name: figures.get(name, 0) + value for name, value in each.items()}
    return {name: float(value.mean()) for name, value in figures.items()}


def learn(model, row, answers, steps, rate, seed, cooldown):
    """Trains a model with the loss of a row; cooldown: the part of the steps in which the rate falls to 0."""
    optimizers = train.make_optimizers(model, train.Config(learning_rate=rate, device="cpu"))
    rng, order = np.random.default_rng(seed), np.empty(0, int)
    for step in progress(range(steps), "steps"):
        if len(order) < BATCH:
            order = rng.permutation(len(answers.tokens))
        batch, order = order[:BATCH], order[BATCH:]
        loss = row.loss(inputs(model, row, *(part[batch] for part in answers)))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 30, (steps - step) / max(1.0, steps * cooldown))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


# ------------------------------------------------------------------------------------------------------------
# The comparison


class Job(NamedTuple):
    """One student; the first four fields identify it in results.jsonl."""
    row: str
    rate: float
    seed: int
    name: str                           # the fields of the world in words
    world: World
    out: Path


KEY = Job._fields[:4]


def start(job):
    """The student that all rows of a seed begin with, trained by KD -> its folder."""
    torch.set_num_threads(1)
    world = replace(job.world, steps=0)
    folder = job.out / "starts" / f"{hash_of(repr(world))}-{job.seed}"
    if not (folder / "config.json").exists():
        torch.manual_seed(100 + job.seed)
        model = GPT(world.shape)
        learn(model, ROWS["KD"], open_answers(job.out, world), world.start, START_RATE, 100 + job.seed, 0.0)
        model.save(folder)
    return folder


def run(job):
    """One student from its start to its measures, in a process of its own -> dict."""
    model, row, world = GPT.load(start(job)), ROWS[job.row], job.world
    answers, figures = open_answers(job.out, replace(world, steps=0)), dict(zip(KEY, job))
    torch.manual_seed(job.seed)
    if row.heads:
        td.add_heads(model)
    begin = time.process_time()
    try:
        learn(model, row, answers, row.longer * world.steps, job.rate, job.seed, cooldown=0.5)
        figures["cpu seconds"] = round(time.process_time() - begin, 1)
        figures |= measure(model, world, draw_prompts(world, TESTS, seed=3 if job.seed == TUNING else 4))
    except FloatingPointError as error:         # a loss that is not finite is an outcome like any other
        figures["failed"] = str(error)
    return figures


def name_of(world):
    """A World in words."""
    return ", ".join(f"{name} {value}" for name, value in asdict(world).items())


def compare(out, world, rows, options):
    """Tunes every row and runs it with every seed -> path of all results."""
    path, rates = out / "results.jsonl", number_list("rates", options.rates)

    def job(row, rate, seed):
        return Job(row, rate, seed, name_of(world), world, out)
    open_answers(out, replace(world, steps=0))                                      # trains a teacher
    with worker_pool(options.workers) as pool:
        tuned, seeds = [TUNING] if len(rates) > 1 else [], range(1, options.seeds + 1)
        list(pool.map(start, [job("", 0.0, seed) for seed in (*tuned, *seeds)]))
        best = tune(job, rows, rates, pool, KEY, run) if tuned else dict.fromkeys(rows, rates[0])
        run_all([job(row, best[row], seed) for seed in seeds for row in rows], path, pool, "seeds", run, KEY)
    return path


PAIRED = ("T=1", "nucleus", "greedy", "kl", "overlap")


def show(path):
    """Lines: for each world of a results.jsonl a table of its rows, and of their differences from KD."""
    for name, results in tables(path, ROWS, itemgetter("name"), KEY).items():
        lines = table(results, PAIRED, (*PAIRED, "cpu seconds"), dict.fromkeys(ROWS, "KD"))
        yield from (name, "", *lines, "")


def draw(path, png):
    """KD and TD, right answers at T=1 against the number of facts, as a file; needs matplotlib."""
    from matplotlib.figure import Figure
    points = {"KD": {}, "TD": {}}
    for name, results in tables(path, points, itemgetter("name"), KEY).items():
        facts = int(re.search(r"facts (\d+)", name)[1])
        for (row, _), (_, runs) in results.items():
            right = [run["T=1"] for run in runs if "failed" not in run]
            if right and name == name_of(World(facts=facts)):
                points[row][facts] = mean_se(right)
    if not all(points.values()):
        raise ValueError(f"{path}: no runs of KD and TD on task A as it is; a picture needs both")
    fig = Figure((4.6, 2.8), layout="constrained")
    axes = fig.subplots()
    for (row, found), colour, marker in zip(points.items(), ("#d55e00", "#0072b2"), "os"):
        facts = sorted(found)
        values, errors = zip(*((found[n]["value"], found[n]["se"] or 0) for n in facts))
        axes.errorbar(facts, values, errors, label=row, color=colour, marker=marker, capsize=3)
    axes.set(xscale="log", xticks=facts, xticklabels=facts, ylim=(0, 1.02), xlabel="facts that must be known",
             ylabel="right answers, T = 1")
    axes.minorticks_off()
    axes.legend(frameon=False)
    fig.savefig(png, dpi=150)


def main(arguments=None):
    """Options -> the tables on the terminal; ValueError in one line for what the user can mend."""
    options = parse_options(Options, arguments, __doc__)
    if options.show:
        if options.png:
            draw(Path(options.show), options.png)
        return print("\n".join(show(Path(options.show))))
    rows = options.rows.split(",") if options.rows else list(ROWS)
    world = World(**{field.name: getattr(options, field.name) for field in fields(World)})
    out = Path(options.out_dir)
    with folder_lock(out):
        open_run(out, {"experiment": "routes"}, FILES, options.redo)
        save_finished(out, "begun")                             # open_run leaves alone what stands here now
        print("\n".join(show(compare(out, world, rows, options))))


if __name__ == "__main__":
    run_command(main)
