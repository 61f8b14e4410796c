"""The whole course, in order: a teacher's readings are cached, students learn from them, and are tested and compared.

    python train.py                          # about five minutes on two CPU cores, no network
    python train.py --minutes=30             # the same with more tokens
    python train.py --corpus=my.txt          # your own text, read plainly (no teacher has annotated it)
    python train.py --corpus=primer          # natural English that a language model has annotated, beside the built-in world;
                                             # annotations.jsonl of brd.py annotate in the same way
    python train.py --teacher=train          # train the teacher and make its cache anew, instead of the one in data/teacher
    torchrun --nproc_per_node=2 train.py     # several GPUs, or cores (data/ranks.py)
    python train.py --help                   # every option

The stages stand in `main` and `course` in the order in which they run:

    1 corpus     text -> paragraphs -> sentences            5 students   one common start, then one treatment each,
    2 annotate   entities and questions, a line a sentence               all at the same number of tokens
    3 tokens     byte-level BPE, three copies as rows       6 test       reading on fresh text, blind tasks
    4 teacher    a larger reader and its sparse cache       7 report     tables, results.json, report.html

Students: `plain` goes on with plain text (the paper's FURTHER), `brd` learns basic reading from the scripted reader's
annotations, `distilled` learns it from these and from the teacher's cached top-p distributions.

Every stage leaves a file in --out_dir; a run that was stopped takes up again behind the last finished stage.
Shapes: B documents, T positions, C channels, V vocabulary, K cached teacher tokens.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import difflib
import functools
import inspect
import math
import platform
import random
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import brd
import td_distill
from experiments.report import glance, page_line, read_results, report, thinned
from data import machine as ranks, reads, runs, world
from data.cache import TeacherCache
from data.documents import (PLAIN_TOKENS, PRIMER, annotated_paragraphs, annotated_text, course_tokenizer, is_annotated, own_text, plain_rows,
                         reading_mix, text_sources)
from experiments.teacher import write_cache
from data.batches import LENGTH_STEP, Rows, plan_batches
from data.files import open_out, stops, write_json
from data.files import read_json
from data.own_text import is_large, streamed_text
from model import GPT, GPTConfig

DATA = Path(__file__).resolve().parent / "data"
STUDENTS = ("plain", "brd", "distilled")
GLANCES = 7   # short looks at how a student reads on the way, for the reading curve
ALONE = 0.1   # part of a reading student's run that is questions alone


# --- options -----------------------------------------------------------------------------------------------------------

@dataclass
class Config:
    # what to read, from whom, and where to
    corpus: str = "world"            # "world" (built in), "primer" or annotations.jsonl beside it, or a text to read plainly
    corpus_share: float = 0.2        # part of a student's tokens that is "primer" or annotations.jsonl
    teacher: str = "cached"          # "cached": the outputs in data/teacher; "train": teacher and cache are made anew
    student: str = ""                # a GPT-2, folder or name; --teacher is then one too, and --corpus JSONL (course/pair.py)
    out_dir: str = "out"             # the folder of everything this run makes
    redo: bool = False               # throw away what an earlier run left in out_dir
    seed: int = 1                    # of the text, the weights and the order of reading
    # how much
    minutes: float = 0.0             # plan student_tokens so that the run takes this long; 0: as below
    start_tokens: int = 100_000      # plain text that the common start reads
    student_tokens: int = 1_350_000  # what every student reads after it
    teacher_tokens: int = 4_000_000  # what the teacher reads (--teacher=train)
    cache_tokens: int = 200_000      # length of the teacher's cache (--teacher=train)
    answers: int = 8                 # of the teacher to a prompt (--student)
    test_paragraphs: int = 150       # fresh paragraphs, and as many single sentences, in the reading test
    # students and teacher
    n_layer: int = 3                 # blocks of a student
    n_head: int = 4                  # attention heads, also the teacher's
    n_embd: int = 128                # channels of a student
    teacher_layer: int = 4           # blocks of the teacher
    teacher_embd: int = 192          # channels of the teacher
    block_size: int = 384            # longest row in tokens
    tokenizer: str = "bpe"           # "bpe": trained on the text; own text also takes tiktoken's names, such as gpt2
    n_vocab: int = 1024              # ids of a trained tokenizer, at most
    # learning
    step_tokens: int = 1024          # positions in a batch
    accumulate: int = 1              # batches added up before a step
    learning_rate: float = 0.01      # of Muon (matrices) and of AdamW (the rest)
    weight_decay: float = 0.1        # of the matrices
    warmup: int = 30                 # steps in which the learning rate rises
    decay: float = 0.5               # part of a run, at its end, in which it falls to zero
    clip: float = 1.0                # largest gradient norm
    answer_weight: float = 20.0      # weight of an answer's tokens in the loss; 1 is the paper's, and slower
    text_weight: float = 1.0         # weight of what is read; 0: prompts are not learnt
    plain_share: float = 0.1         # part of a reading student's tokens that is plain text (D_ORI)
    ner_share: float = 0.1           # ... that is text with entities (D_NER); the rest is D_QRA
    cache_share: float = 0.2         # ... that the distilled student takes from the teacher's cache instead
    # distillation
    objective: str = "topp_kd"       # on cached tokens: "topp_kd" forward KL on the sets, "bellman" with a TD term, "seqkd" tokens alone
    p: float = 0.95                  # mass of the teacher's nucleus
    leak: float = 1.0                # factor of what a student's mass outside the sets costs
    alpha: float = 10.0              # "bellman": the squared residual is divided by 4 alpha
    gamma: float = 0.99              # "bellman": discount of the value of what follows
    # machine
    device: str = "auto"             # auto, cpu, cuda, mps
    threads: int = 0                 # CPU threads; 0: as many as there are cores
    compile: bool = False            # on CUDA: torch.compile with CUDA graphs, for small models that wait for launches


CHOICES = {"teacher": ("cached", "train"), "objective": ("topp_kd", "bellman", "seqkd"), "device": ("auto", "cpu", "cuda", "mps")}
ABOVE_ZERO = {"p", "alpha", "learning_rate", "clip", "answer_weight", "test_paragraphs", "step_tokens", "accumulate", "student_tokens",
              "start_tokens", "teacher_tokens", "cache_tokens", "answers", "n_layer", "n_head", "n_embd", "block_size", "n_vocab"}
AT_MOST_ONE = {"p", "corpus_share", "gamma", "plain_share", "ner_share", "cache_share", "decay"}


def parse_options(arguments):
    """A Config from --name=value options; --help is made from its comments. ValueError names what is wrong and a remedy."""
    comments = dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(Config), re.M))
    parser = argparse.ArgumentParser(description=__doc__.split("\n\nThe stages")[0], usage="python train.py [--name=value ...]",
                                     allow_abbrev=False, formatter_class=functools.partial(
                                         argparse.RawDescriptionHelpFormatter, max_help_position=26, width=140))
    for field in dataclasses.fields(Config):
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type, "metavar": field.type.__name__}
        text = f"{comments[field.name]} [{field.default}]"
        parser.add_argument(f"--{field.name}", default=field.default, help=text.replace("%", "%%"), **kind)
    names = [field.name for field in dataclasses.fields(Config)]
    for argument in arguments:
        name = argument.split("=")[0].lstrip("-")
        if argument.startswith("--") and name not in names + ["help"]:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean --{near[0]}?" if near else "--help lists them all"
            raise ValueError(f"unknown option --{name}; {hint}")
    parser.error = lambda message: (_ for _ in ()).throw(ValueError(f"{message}; --help explains every option"))
    config = Config(**vars(parser.parse_args(arguments)))
    for name, value in dataclasses.asdict(config).items():
        if name in CHOICES and value not in CHOICES[name] and not (name == "teacher" and config.student):
            raise ValueError(f"--{name}={value}, but expected one of {', '.join(CHOICES[name])}")
        low, high = (0, name in ABOVE_ZERO), (1 if name in AT_MOST_ONE else math.inf)
        if isinstance(value, (int, float)) and not (low[0] <= value <= high and not (low[1] and value == 0)):
            raise ValueError(f"--{name}={value}, but expected {'more than' if low[1] else 'at least'} 0"
                             + (" and at most 1" if high == 1 else ""))
    if config.plain_share + config.ner_share + config.cache_share >= 1:
        raise ValueError("plain_share, ner_share and cache_share leave nothing for D_QRA; their sum must be below 1")
    if config.block_size % LENGTH_STEP:
        raise ValueError(f"--block_size={config.block_size}, but rows are padded to multiples of {LENGTH_STEP}; "
                         f"try --block_size={-(-config.block_size // LENGTH_STEP) * LENGTH_STEP}")
    GPTConfig(config.n_vocab, config.block_size, config.n_layer, config.n_head, config.n_embd)  # ValueError for what does not fit
    if config.teacher == "train":
        GPTConfig(config.n_vocab, config.block_size, config.teacher_layer, config.n_head, config.teacher_embd)
    return config


# --- the machine -------------------------------------------------------------------------------------------------------

def pick_device(config):
    """(torch.device, dtype of autocast or None). bf16 where the processor computes in it, otherwise float32."""
    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(found if config.device == "auto" else config.device)
    if device.type != "cpu" and device.type != found:
        raise ValueError(f"--device={config.device}, but this machine has {found}; try --device=auto")
    if device.type == "cuda":
        return device, torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    if device.type == "cpu":
        with contextlib.suppress(OSError, AttributeError, TypeError):
            # glibc gives large blocks back to the system after every step and asks for them again in the next: keeping
            # them saves a fifth of the time. Parameters -3, -1, -2 are M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD.
            for parameter, size in ((-3, 1 << 25), (-1, 1 << 30), (-2, 1 << 27)):
                ctypes.CDLL(None).mallopt(parameter, size)
        tests = "_is_avx512_bf16_supported", "_is_amx_tile_supported"
        return device, torch.bfloat16 if any(getattr(torch.cpu, test, bool)() for test in tests) else None
    return device, None


@contextlib.contextmanager
def hidden_by(model, function):
    """Inside, model.hidden is `function`, where there is one: a compiled form is for training, not for what reads on the way."""
    if function:
        torch.compiler.cudagraph_mark_step_begin()
        model.hidden = function
    try:
        yield
    finally:
        vars(model).pop("hidden", None)


def compiled(model, device, config):
    """model.hidden compiled, or None where it is not asked for. One compilation for all shapes, a CUDA graph for each shape."""
    if not config.compile or device.type != "cuda":
        return None
    torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is, with a warning
    return torch.compile(model.hidden, mode="reduce-overhead", dynamic=True)


# --- one training loop for every objective -----------------------------------------------------------------------------

def loss_of(model, source, batch, config, device, denominator):
    """The loss of one batch, divided by `denominator`: the summed weights of all batches of the step."""
    return sum(loss_terms(model, source, batch, config, device, denominator).values())


def loss_terms(model, source, batch, config, device, denominator):
    """The terms of the loss of one batch, by name: "hard" on tokens, "sets" or "bellman" on the teacher's sets."""
    weights_of = role_weights(config)
    if isinstance(source, Rows):
        ids, targets, weights = (t.to(device) for t in source.batch(batch.documents, weights_of))
        logits = model.logits(model.hidden(ids))                                               # (B, T, V)
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")       # sft_loss, in fewer passes
        return {"hard": td_distill.weighted_mean(nll, weights.flatten(), denominator)}
    T = max(2, int(source.lengths[batch.documents].max()))                                    # a document of one token predicts nothing
    rows = {name: t.to(device) for name, t in source.batch(batch.documents, T).items()}
    ids, targets = rows["tokens"][:, :-1], rows["tokens"][:, 1:]
    weights = torch.from_numpy(weights_of).to(device)[rows["roles"][:, 1:].long()] * rows["real"][:, 1:]
    mask = reads.narrow(rows["log_probs"], rows["mask"], config.p)[:, 1:]                      # (B, T, K)
    soft = mask.any(-1) & (config.objective != "seqkd")                                        # (B, T)
    logits = model.logits(model.hidden(ids))
    z_K, z_a, log_Z = td_distill.student_terms(logits, rows["ids"][:, 1:], targets)
    hard, _ = td_distill.sft_loss(z_a, log_Z, weights * ~soft, denominator)
    sets = rows["log_probs"][:, 1:], mask
    if config.objective != "bellman":
        return {"hard": hard, "sets": td_distill.topp_forward_kl(z_K, log_Z, *sets, weights * soft, denominator, leak=config.leak)[0]}
    terminal = (rows["roles"][:, 1:] == brd.ROLES.index("sep")) | (rows["roles"][:, 1:] == brd.ROLES.index("end"))  # (B, T)
    step = rows["ids"][:, 1:] == targets[..., None], terminal, weights * soft
    bellman = td_distill.bellman_distill(z_K, z_a, log_Z, *sets, *step, denominator, alpha=config.alpha, gamma=config.gamma,
                                         leak=config.leak, gauge="log_softmax", expected=True)[0]
    return {"hard": hard, "bellman": bellman}


def role_weights(config):
    """(len(brd.ROLES),) float32: what a token of each role weighs in the loss."""
    weights = {"answer": config.answer_weight, "text": config.text_weight}
    return np.array([weights.get(role, 1.0) for role in brd.ROLES], np.float32)


def weight_of(source, batch, config):
    """The summed weights of a batch's targets, before anything is computed."""
    weights = role_weights(config)
    return sum(float(weights[source.document(d)[1][1:]].sum()) for d in batch.documents)


def optimizers(model, config):
    """Muon for the matrices inside the blocks, AdamW for embeddings and vectors, at one learning rate."""
    matrices, others = model.parameter_groups()
    rate = config.learning_rate
    return [torch.optim.Muon(matrices, lr=rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]


def fit(name, model, sources, shares, tokens, config, decay, begins=None, loss_of=loss_terms, folder=None, glance=None,
        notes=None):
    """Train `model` on `tokens` tokens drawn from `sources` by `shares`. Returns (losses of every step, tokens seen).

    folder: where training.pt is kept, from which a training that was cut off goes on; its owner removes it. glance(tokens seen
    so far), if given, is called GLANCES times on the way, and must leave the model as it is; notes, a list, is where it writes.
    loss_of: as loss_terms, or a scalar. ValueError where a loss or a gradient is not finite: see not_finite."""
    device, dtype = pick_device(config)
    plan = plan_batches(sources, shares, tokens, config.step_tokens, config.seed, begins)
    steps = [plan[i:i + config.accumulate] for i in range(0, len(plan), config.accumulate)]
    optims, mark, saved = optimizers(model, config), runs.mark_of(plan, folder), time.monotonic()
    losses = runs.load_training(folder / "training.pt", model, optims, mark, notes) if folder else []
    decay = max(1, round(len(steps) * decay))
    place = STUDENTS.index(name) if name in STUDENTS else 0  # students train side by side, a line each
    fast = compiled(model, device, config)
    looks = {len(steps) * i // (GLANCES + 1) for i in range(1, GLANCES + 1)} if glance else ()
    model.train()
    stops.training = folder is not None
    for step in tqdm(range(len(losses), len(steps)), name, len(steps), initial=len(losses), disable=True if ranks.rank() else None,
                     leave=False, position=place):
        if folder and (stops.wanted or time.monotonic() - saved > runs.SAVE_SECONDS):
            runs.save_training(folder / "training.pt", model, optims, losses, mark, notes)
            saved = time.monotonic()
            if stops.wanted:
                stops.end(f"{name}: stopped after {step} of {len(steps)} steps")
        batches = steps[step]
        if step in looks:
            glance(sum(batch.tokens for batch in plan[:step * config.accumulate]))
        scale = min(1.0, (step + 1) / config.warmup if config.warmup else 1.0, (len(steps) - step) / decay)
        denominator = sum(weight_of(sources[b.source], b, config) for b in batches)
        total, parts = 0.0, []
        for batch in batches:
            batch = dataclasses.replace(batch, documents=ranks.share(batch.documents))
            if not len(batch.documents):  # fewer documents than processes
                continue
            with torch.autocast(device.type, dtype, enabled=dtype is not None), hidden_by(model, fast):
                found = loss_of(model, sources[batch.source], batch, config, device, denominator)
            parts.append(found if isinstance(found, dict) else {"loss": found})
            loss = sum(parts[-1].values())
            loss.backward()
            total += loss.item()
        total, stops.wanted = ranks.sum_step(model, total, stops.wanted)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        if not math.isfinite(total) or not torch.isfinite(norm):
            raise not_finite(f"{name}: loss {total} ({told(parts)}) and gradient norm {norm:.3g} at step {step}, learning rate "
                             f"{config.learning_rate * scale:.3g}", model, sources, batches, config, folder)
        for optimizer in optims:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    stops.training = False
    model.eval()
    return losses, sum(batch.tokens for batch in plan)


def told(parts):
    """The terms of the batches of a step (dicts of scalars), added up by name, in words: "hard 3.21, sets nan"."""
    names = dict.fromkeys(name for part in parts for name in part)
    return ", ".join(f"{name} {sum(part[name].item() for part in parts if name in part):.4g}" for name in names)


def not_finite(what, model, sources, batches, config, folder):
    """The ValueError of a step whose loss or gradient is no number. What the step was made of goes into folder/not_finite.pt:

        state = torch.load("out/brd/not_finite.pt", weights_only=True)
        model = GPT(GPTConfig(**state["config"])); model.load_state_dict(state["model"])     # before the step
        state["batches"]        # for each "rows": the tensors of Rows.batch or Cache.batch; "source", "documents": where from
        state["what"], state["options"]"""
    said = f"{what}; try a lower --learning_rate"
    if not folder:
        return ValueError(said)
    read = []
    for batch in batches:
        source = sources[batch.source]
        rows = dict(zip(("ids", "targets", "weights"), source.batch(batch.documents, role_weights(config)))) \
            if isinstance(source, Rows) else source.batch(batch.documents)
        read.append({"source": batch.source, "documents": batch.documents.tolist(), "rows": rows})
    path = folder / "not_finite.pt"
    runs.save_tensors(path, {"what": what, "batches": read, "model": model.state_dict(), "config": dataclasses.asdict(model.config),
                             "options": dataclasses.asdict(config)})
    return ValueError(f"{said}. {path} holds the batch and the weights: torch.load(it, weights_only=True)")


# --- stages 4 and 5a: the teacher and its cache ------------------------------------------------------------------------

def new_model(n_layer, n_embd, tokenizer, config):
    torch.manual_seed(config.seed)
    return GPT(GPTConfig(n_vocab=tokenizer.n_vocab, block_size=config.block_size, n_layer=n_layer, n_head=config.n_head,
                         n_embd=n_embd)).to(pick_device(config)[0])


def text_of(config, parts=None):
    """The hash of the corpus, "" for the built-in world; parts: those of own_text."""
    if parts:
        return runs.digest(*(text for _, text in parts.values()))
    return runs.digest(PRIMER if config.corpus == "primer" else Path(config.corpus)) if is_annotated(config.corpus) else ""


def kept(folder, config, of):
    """The finished model in a folder, or None; of: what it is made of."""
    if not runs.made(folder / "model.pt", of):
        return None
    (folder / "training.pt").unlink(missing_ok=True)
    return GPT.load(folder, pick_device(config)[0])


def keep(model, folder, tokenizer, extra, of):
    """A finished model and its tokenizer go into a folder, in place of the training that led to it."""
    model.extra = extra
    with ranks.first_alone():
        if not ranks.rank():
            tokenizer.save(folder)
            model.save(folder, extra)
            runs.note(folder / "model.pt", of, *(folder / name for name in ("config.json", "tokenizer.json", "tokenizer.tiktoken")))
            (folder / "training.pt").unlink(missing_ok=True)


def train_teacher(folder, tokenizer, config, texts=None):
    """A larger student of the scripted reader, who then reads for others. Kept in `folder`. texts: a function that
    gives (sources, shares, begins) for fit, in place of those of the course."""
    of = runs.made_of("teacher", config, tokenizer, text_of(config))
    if model := kept(folder, config, of):
        return model
    model = new_model(config.teacher_layer, config.teacher_embd, tokenizer, config)
    sources, shares, begins = texts() if texts else (
        *reading_mix(config.teacher_tokens, config, tokenizer, f"teacher {config.seed}"), [ALONE, ALONE, 0.0])
    losses, seen = fit("teacher", model, sources, shares, config.teacher_tokens, config, config.decay, begins, folder=folder)
    keep(model, folder, tokenizer, {"tokens_seen": seen, "reading": eval_reading(model, tokenizer, config)}, of)
    return model


def teacher_cache(out, tokenizer, config):
    """The cache of the teacher's outputs: the one that ships in data/teacher, or one made anew."""
    folder = cache_folder(out, config)
    if config.teacher == "train":
        teacher = train_teacher(out / "teacher", tokenizer, config)
        of = runs.made_of("cache", config, tokenizer, text_of(config), teacher=out / "teacher" / "model.pt")
        if not runs.made(folder / "header.json", of):
            write_cache(folder, teacher, tokenizer, config)
            runs.note(folder / "header.json", of)      # which has the hashes of the arrays
    return Cache(folder, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash)


def cache_folder(out, config):
    return out / "cache" if config.teacher == "train" else DATA / "teacher"


# --- stage 5b: the students --------------------------------------------------------------------------------------------

def student(name, out, start, treatment, config, tokenizer, looks=True, of=None):
    """A copy of `start` (None: a new model) after its treatment. Kept in out/<name>, and taken from there if finished.
    looks: whether the reading curve is noted on the way. of: what it is made of, where that is not a run's (runs.made_of)."""
    folder = out / name
    of = of or student_of(name, out, config, tokenizer)
    if model := kept(folder, config, of):
        return model
    model = new_model(config.n_layer, config.n_embd, tokenizer, config)
    if start:
        model.load_state_dict(start.state_dict())
    begin = time.perf_counter()
    sources, shares, begins = treatment(name, config, out, tokenizer)
    tokens = config.student_tokens if start else config.start_tokens
    before, curve = start.extra["tokens_seen"] if start else 0, []
    note = None if name in ("start", "plain") or not looks else lambda seen: curve.append({"tokens": before + seen} | glance(model, tokenizer))
    losses, seen = fit(name, model, sources, shares, tokens, config, config.decay if start else 0.0, begins, folder=folder, glance=note,
                       notes=curve)
    write_json(folder / "seconds.json", {"training": round(time.perf_counter() - begin, 1)})
    keep(model, folder, tokenizer, {"tokens_seen": before + seen, "losses": losses[:10], "loss_curve": thinned(losses),
                                    "reading_curve": curve, "last_loss": float(np.mean(losses[-50:]))}, of)
    return model


def files_for(name, out, config):
    """{what: file} of the earlier stages that a student is made of."""
    files = {} if name == "start" else {"start": out / "start" / "model.pt"}
    if name in ("brd", "distilled"):
        files["annotations"] = out / "annotations.jsonl"
    return files | ({"teacher's cache": cache_folder(out, config) / "header.json"} if name == "distilled" else {})


def student_of(name, out, config, tokenizer):
    """What a student is made of; see runs.made_of."""
    return runs.made_of(f"student {name}", config, tokenizer, text_of(config), **files_for(name, out, config))


def check_students(out, config, tokenizer):
    """ValueError where a student that is there is stale: before the others are trained, not hours later."""
    for name in ("start", *students_of(config)):
        path, files = out / name / "model.pt", files_for(name, out, config)
        if runs.read_note(path) and all(file.exists() for file in files.values()):
            runs.made(path, student_of(name, out, config, tokenizer))


def treatment(name, config, out, tokenizer):
    """(sources, shares, begins) of one student, every one of the same number of tokens."""
    own = text_sources(config.corpus, tokenizer, config.block_size, config.seed) if is_annotated(config.corpus) else []
    share = config.corpus_share if own else 0.0
    if name == "plain":
        paragraphs = world.plain(config.student_tokens // PLAIN_TOKENS + 1, f"{config.seed} plain")
        return [plain_rows(paragraphs, tokenizer)] + own[:1], [1 - share] + [share] * bool(own), [0.0] * 2
    sources, shares = reading_mix(config.student_tokens, config, tokenizer, config.seed, out / "annotations.jsonl")
    if name == "distilled":
        sources.append(teacher_cache(out, tokenizer, config))
        shares = [*shares[:2], shares[2] - config.cache_share, config.cache_share]
    shares = [part * (1 - share) for part in shares] + [part * share for part in shares[:2] + [1 - sum(shares[:2])]][:len(own)]
    # Questions come first and alone: a reader who is still guessing is only held up by other tasks.
    return sources + own, shares, [0.0 if i == 2 else ALONE for i in range(len(shares))]


def students_of(config):
    """The students of a run. The teacher in data/teacher has the built-in world's vocabulary, so with another text there is
    no distilled student, unless the teacher is trained too."""
    return STUDENTS[:2] if is_annotated(config.corpus) and config.teacher == "cached" else STUDENTS


def train_and_test(name, config, threads):
    """One student from the common start to its test results. Runs in a process of its own where there are cores."""
    torch.set_num_threads(threads)
    out, tokenizer = Path(config.out_dir), course_tokenizer(config.corpus, config.n_vocab)
    start = GPT.load(out / "start", pick_device(config)[0])
    model = student(name, out, start, treatment, config, tokenizer)
    return test_student(name, model, out, tokenizer, config)


def side_by_side(config):
    """How many of the three students are trained at the same time. A student this small leaves a second core idle."""
    alone = pick_device(config)[0].type == "cpu" and ranks.size() == 1
    return min(len(students_of(config)), torch.get_num_threads()) if alone else 1


def train_start(config, threads):
    """What all students share: the common start, and the annotations, made once before several processes want them."""
    torch.set_num_threads(threads)
    out, tokenizer = Path(config.out_dir), course_tokenizer(config.corpus, config.n_vocab)
    early = plain_rows(world.plain(config.start_tokens // PLAIN_TOKENS + 1, f"{config.seed} start"), tokenizer)
    student("start", out, None, lambda *_: ([early], [1.0], [0.0]), config, tokenizer)
    path, of = out / "annotations.jsonl", runs.made_of("annotations", config, tokenizer, text_of(config))
    with ranks.first_alone():
        if not runs.made(path, of):
            path.unlink(missing_ok=True)
            annotated_paragraphs(config.student_tokens, config, config.seed, path)
            runs.note(path, of)


def train_students(config):
    """The common start, then every student. {name: results}."""
    cores, workers = torch.get_num_threads(), side_by_side(config)
    if workers == 1:
        train_start(config, cores)
        return {name: train_and_test(name, config, cores) for name in students_of(config)}
    with runs.processes(workers) as pool:
        pool.submit(runs.job, train_start, config, cores).result()
        # The distilled student takes longest, so it is in the first group; of three students on two cores the last has both,
        # but not before they are free: where a thread waits for its core, all its neighbours wait at every operation.
        order, results = students_of(config)[::-1], {}
        for group in (order[i:i + workers] for i in range(0, len(order), workers)):
            jobs = {name: pool.submit(runs.job, train_and_test, name, config, cores // len(group)) for name in group}
            pool.submit(int)   # given something, a pool looks at all its processes; it would not see the newest one die otherwise
            results |= {name: job.result() for name, job in jobs.items()}
        return {name: results[name] for name in students_of(config)}


# --- stage 6: the tests ------------------------------------------------------------------------------------------------

def eval_reading(model, tokenizer, config):
    """Free-running reading of fresh text with held-out pairs: single sentences, and paragraphs with two people."""
    results = {}
    for place, level in (("single", world.SINGLE), ("paragraph", world.FULL)):
        rng = random.Random(f"test {place}")  # the same for every seed and student, so that results can be paired
        drawn = [world.draw_paragraph(rng, level, split="test") for _ in range(config.test_paragraphs)]
        records = [world.annotate(rng, paragraph, i, level) for i, paragraph in enumerate(drawn)]
        results[place] = brd.eval_reading(model, tokenizer, records, oracle=lambda p, k: world.all_answers(drawn[p], k))
    if is_annotated(config.corpus):
        results["corpus"] = brd.eval_reading(model, tokenizer, annotated_text(config.corpus)[1])
    return results


@torch.no_grad()
def bits_per_byte(model, rows, text_bytes):
    """Bits that `model` needs for a byte of the rows' text, document ends included. The first token of every document is
    given and costs nothing, so short documents look a little cheaper than they are; it is the same for every model."""
    nats, device = 0.0, next(model.parameters()).device
    for batch in plan_batches([rows], [1.0], int((rows.lengths - 1).sum()), 4096, 0):  # every document once
        ids, targets, weights = (t.to(device) for t in rows.batch(batch.documents, np.ones(len(brd.ROLES), np.float32)))
        _, z_a, log_Z = td_distill.student_terms(model.logits(model.hidden(ids)), targets[..., None], targets)
        nats += td_distill.sft_loss(z_a, log_Z, weights, denominator=1.0)[0].item()
    return nats / math.log(2) / text_bytes


def plain_bits_per_byte(model, tokenizer):
    """bits_per_byte on 500 fresh paragraphs of plain text of the built-in world, the same for every seed and student."""
    texts = list(world.plain(500, "test plain"))
    return bits_per_byte(model, plain_rows(texts, tokenizer), sum(len(" ".join(sentences).encode("utf-8")) for sentences in texts))


def test_student(name, model, out, tokenizer, config):
    """Every test of one student, kept in out/<name>/test.json."""
    path = out / name / "test.json"
    of = runs.made_of(f"test of {name}", config, tokenizer, text_of(config), student=out / name / "model.pt", tasks=tasks_hash())
    if runs.made(path, of):
        return read_json(path, "remove it, and the student is tested again")
    begin = time.perf_counter()
    tasks = [brd.eval_task(model, tokenizer, brd.load_task(file)) for file in sorted((DATA / "tasks").glob("*.json"))]
    result = {**{name: model.extra[name] for name in ("tokens_seen", "losses", "loss_curve", "reading_curve") if name in model.extra},
              "reading": eval_reading(model, tokenizer, config),
              "blind": {task["name"]: task for task in tasks},
              "plain_bits_per_byte": plain_bits_per_byte(model, tokenizer)}
    seconds = out / name / "seconds.json"
    write_json(seconds, {**read_json(seconds, f"remove the folder {out / name}, and it is trained again"),
                         "test": round(time.perf_counter() - begin, 1)})
    write_json(path, result, of)
    return result


def tasks_hash():
    return runs.digest(*sorted((DATA / "tasks").glob("*.json")))


# --- a text of your own ------------------------------------------------------------------------------------------------

def read_plainly(config, out, plan, tokenizer, parts, begin):
    """Own text without a teacher: one student, bits per byte on held-out text, and a sample. Returns the results."""
    (rows, _), (held_out, held_text) = parts["training"], parts["validation"]
    print("No teacher has annotated this text, so it is read plainly, by next-token training alone (see README).")
    model = new_model(config.n_layer, config.n_embd, tokenizer, config)
    if config.minutes and not plan:
        rate = speed(model, rows, config)
        config.student_tokens = ranks.agreed(int(max(5, 60 * config.minutes - (time.perf_counter() - begin) - 10) * rate))
        runs.save_plan(out, config.student_tokens)
    print(f"{brd.shown(config.corpus)}: {rows.lengths.sum():,} tokens to train on, {held_out.lengths.sum():,} held out (the end of "
          f"the text), vocabulary {tokenizer.n_vocab:,}; {config.student_tokens:,} tokens will be read", flush=True)
    of = runs.made_of("student plain", config, tokenizer, text_of(config, parts))
    if finished := kept(out / "plain", config, of):
        model = finished
    else:
        losses, seen = fit("plain", model, [rows], [1.0], config.student_tokens, config, config.decay, folder=out / "plain")
        keep(model, out / "plain", tokenizer, {"tokens_seen": seen, "losses": losses[:10], "loss_curve": thinned(losses)}, of)
    prompt = tokenizer.encode(held_text)[:min(16, config.block_size // 2)]
    sample = model.generate([prompt], min(200, config.block_size - len(prompt)), temperature=0.8, top_p=0.95, seed=config.seed)[0]
    return {"plain": {**model.extra, "sample": tokenizer.decode(prompt + sample),
                      "bits_per_byte": bits_per_byte(model, held_out, len(held_text.encode("utf-8")))}}


# --- the course --------------------------------------------------------------------------------------------------------

def speed(model, rows, config):
    """Tokens a second in training, measured on a few steps of a throw-away model."""
    probe = GPT(model.config).to(next(model.parameters()).device)
    fit("measuring speed", probe, [rows], [1.0], 4 * config.step_tokens, config, 0.0)
    begin = time.perf_counter()
    _, seen = fit("measuring speed", probe, [rows], [1.0], 25 * config.step_tokens, config, 0.0)
    return seen / (time.perf_counter() - begin)


def plan_minutes(config, tokenizer, begin):
    """Set student_tokens so that the run takes config.minutes, the common start as it is."""
    sources, _ = reading_mix(100_000, config, tokenizer, "speed")
    workers, cores = side_by_side(config), torch.get_num_threads()
    torch.set_num_threads(cores // workers)
    model = new_model(config.n_layer, config.n_embd, tokenizer, config)
    rate = 0.9 * speed(model, sources[2], config)                  # long texts are slower
    torch.set_num_threads(cores)
    in_turn = -(-len(students_of(config)) // workers)                         # students that one worker trains, one after the other
    around = 10 + 4 * config.minutes + in_turn * 15                # seconds for text and tests
    seconds = 60 * config.minutes - around - (time.perf_counter() - begin) - config.start_tokens / rate
    config.student_tokens = ranks.agreed(int(max(5.0, seconds) * rate / in_turn))


def main(arguments=None):
    """A run from options to report; raises ValueError or OSError, in one line, for what the user can mend."""
    begin = time.perf_counter()
    config = parse_options(sys.argv[1:] if arguments is None else arguments)
    if config.threads:
        torch.set_num_threads(config.threads)
    ranks.start(pick_device(config)[0].type)
    if config.student and ranks.size() > 1:
        raise ValueError("--student runs in one process; start it with python, not with torchrun")
    if config.student:
        from experiments.pair import pair  # only here: the experiment of another paper
        return pair(config)
    # What can be wrong with a text or a cache is found before anything is written.
    course_text = config.corpus == "world" or is_annotated(config.corpus)
    large = not course_text and is_large(config.corpus)
    if course_text:
        tokenizer, parts = course_tokenizer(config.corpus, config.n_vocab), None
    elif not large:
        tokenizer, parts = own_text(config)
    if "distilled" in students_of(config) and course_text and config.teacher == "cached":
        teacher_cache(None, tokenizer, config)
    with ranks.first_alone():
        out, plan = open_out(dataclasses.replace(config, redo=config.redo and not ranks.rank()))
        if large:
            with runs.held(out):
                tokenizer, parts = streamed_text(config, out)
    config.student_tokens = plan or config.student_tokens
    runs.verify(out)
    if (out / "results.json").exists() and runs.made(out / "results.json", results_of(config, out, tokenizer, parts)):
        print(f"{brd.shown(str(out))}: finished before; --redo starts over\n\n{report(read_results(out / 'results.json'))}")
        return None if (out / "report.html").exists() or ranks.rank() else print(page_line(out))
    with runs.held(out):
        runs.sweep(out)
        try:
            course(config, out, plan, tokenizer, parts, begin)
        finally:
            runs.sweep(out)  # finished files stay, and the next run goes on from them


def results_of(config, out, tokenizer, parts):
    """What results.json is made of."""
    files = {} if parts else {"tasks": tasks_hash()}
    if not parts and "distilled" in students_of(config):
        files["teacher's cache"] = cache_folder(out, config) / "header.json"
    return runs.made_of("results", config, tokenizer, text_of(config, parts), **files)


def course(config, out, plan, tokenizer, parts, begin):
    """Stages 4 to 7, or those of own text; results.json and the tables at the end."""
    device, dtype = pick_device(config)
    print(f"{device}, {'bf16' if dtype else 'float32'}, {torch.get_num_threads()} threads, vocabulary {tokenizer.n_vocab}")
    results = {"versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
               "threads": torch.get_num_threads(), "tokenizer": tokenizer.hash}
    times = [begin]
    if parts:
        results["students"] = read_plainly(config, out, plan, tokenizer, parts, begin)
    else:
        if config.minutes and not plan:
            plan_minutes(config, tokenizer, begin)
            runs.save_plan(out, config.student_tokens)
        check_students(out, config, tokenizer)
        print(f"a common start of {config.start_tokens:,} tokens, then {config.student_tokens:,} a student", flush=True)
        times.append(time.perf_counter())
        if "distilled" in students_of(config):
            results["teacher"] = teacher_cache(out, tokenizer, config).header["teacher"]
        times.append(time.perf_counter())
        results["students"] = train_students(config)
    times.append(time.perf_counter())
    stages = ("students",) if parts else ("text", "teacher", "students")
    seconds = dict(zip(stages, np.diff(times).round(1).tolist())) | {"total": round(times[-1] - begin, 1)}
    write_json(out / "seconds.json", seconds)  # apart from the results, which are the same in every run
    of = results_of(config, out, tokenizer, parts)
    write_json(out / "results.json", results | {"config": runs.noted(config), "seed": config.seed, "made_of": of}, of)
    print(f"\n{report(results)}\n\n{seconds['total']:.0f} s in all; {brd.shown(str(out / 'results.json'))} holds every figure")
    if not ranks.rank():
        print(page_line(out))


if __name__ == "__main__":
    runs.command(main)
