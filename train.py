"""The whole run, in order: students learn from a teacher's cached outputs, are tested and compared.

    python train.py                          # four minutes on two CPU cores with bf16, no network
    python train.py --minutes=30             # the same with more tokens
    python train.py --corpus=my.txt          # your own text, read plainly (no teacher has annotated it)
    python train.py --corpus=primer          # annotated natural English, beside the built-in world
    torchrun --nproc_per_node=2 train.py     # several GPUs, or cores (data/machine.py)
    python train.py --help                   # every option

Stages: 1 text, annotations, tokens; 2 a common start on plain text; 3 two students, equal tokens each:
`plain` goes on with plain text (FURTHER in the paper), `brd` learns from annotations; 4 arms go on from
`brd`, equal tokens each: more annotations, or a teacher's cache; 5 tests, tables. B documents, T positions.
"""

import importlib
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

import brd
import td_distill
from data import documents, files, machine
from data.annotations import write_annotations
from data.batches import LENGTH_STEP, DataMix, Rows, plan_batches, total_weight
from data.cache import open_cache
from data.cli import Options, check_range, parse_options, printable, progress, run_command
from data.documents import ROLES, is_annotated, role_weights, run_tokenizer
from data.figures import bits_per_byte, thinned
from data.files import is_finished, read_json, save_finished, write_json
from data.head import token_nll
from data.machine import check_weights, pick_device
from data.optimizers import make_optimizers
from data.report import ARMS, FILES, STUDENTS, report
from data.task_files import load_task
from model import GPT, GPTConfig

DATA = Path(__file__).resolve().parent / "data"
TEACHER, TASKS = DATA / "teacher", sorted((DATA / "tasks").glob("*.json"))
EVAL_STEPS = 7          # steps at which a student is briefly tested, for the reading curve
READS_FROM = 300_000    # tokens; a student that has read fewer answers hardly any question
SAVE_SECONDS = 20.0     # at most so much training is lost when the power fails


@dataclass
class Config(Options):
    # what to read, from whom, and where to
    corpus: str = "world"            # or "open"; "primer" or a .jsonl, read with the world; or an own text
    corpus_share: float = 0.2        # part of a student's tokens that is "primer" or annotations.jsonl
    cache: str = ""                  # folder of a teacher's cache (experiments.teacher); "": data/teacher
    out_dir: str = "out"             # the folder of everything that this run makes
    redo: bool = False               # throw away what an earlier run left in out_dir
    seed: int = 1                    # of the text, the weights and the order of reading
    # how much
    minutes: float = 0.0             # plan student_tokens so that the run takes this long; 0: as below
    start_tokens: int = 100_000      # plain text that the common start reads
    student_tokens: int = 2_000_000  # what every student reads after it
    test_paragraphs: int = 150       # fresh paragraphs, and as many single sentences, in the reading test
    # the students
    layout: str = "modern"           # or "gpt2", which model.py export writes for transformers
    n_layer: int = 3                 # blocks
    n_head: int = 4                  # attention heads
    shared_heads: int = 4            # of them those whose keys are their queries (layout "modern")
    n_embd: int = 128                # channels
    block_size: int = 384            # longest row in tokens
    tokenizer: str = "bpe"           # "bpe": trained on the text; own text also takes gpt2 and others
    n_vocab: int = 1024              # ids of a trained tokenizer, at most
    init_from: str = ""              # folder of a student to go on from, with its sizes and tokenizer
    # learning
    step_tokens: int = 1024          # positions in a batch
    accumulate: int = 1              # batches added up for a step
    learning_rate: float = 0.01      # of Muon (matrices) and of AdamW (the rest)
    weight_decay: float = 0.1        # of the matrices
    warmup: int = 30                 # steps in which the learning rate rises
    cooldown: float = 0.5            # part of a run, at its end, in which it falls to zero
    clip: float = 1.0                # largest gradient norm
    answer_weight: float = 20.0      # weight of an answer's tokens in the loss; 1 is the paper's, and slower
    text_weight: float = 1.0         # weight of what is read
    plain_share: float = 0.1         # part of a reading student's tokens that is plain text (D_ORI)
    ner_share: float = 0.12          # part that is text with entities (D_NER); the rest is questions (D_QRA)
    # the arms: what goes on from `brd`
    arms: str = ",".join(ARMS)       # some of these, see data/report.py; "": none
    arm_rate: float = 0.003          # learning rate of the arms; their answers weigh 1
    p: float = 0.95                  # mass of the teacher's sets A_p
    leak: float = 1.0                # weight of the loss on the student's probability outside the sets
    alpha: float = 10.0              # "td": the TD residual costs its square / (4 alpha)
    gamma: float = 0.99              # "td", and the tests of all: discount of the value of what follows
    device: str = "auto"             # auto, cpu, cuda or mps
    threads: int = 0                 # CPU threads; 0: as many as there are cores

    PLACE = (*Options.PLACE, "arms")            # more arms may be added to a run
    CHOICES = {"arms": ["", *ARMS], "device": "auto cpu cuda mps".split(), "layout": ["modern", "gpt2"]}
    BOUNDS = {**dict.fromkeys(("student_tokens", "accumulate", "learning_rate", "clip", "answer_weight",
                               "arm_rate", "alpha"), (0,)),
              **dict.fromkeys(("corpus_share", "plain_share", "ner_share", "cooldown", "gamma"), (None, 1)),
              "start_tokens": (None, machine.MEMORY // 100, "memory"),           # bytes: of its text,
              "test_paragraphs": (0, machine.MEMORY // 5000, "memory"),          # of its records,
              "step_tokens": (0, machine.MEMORY // 4096, "memory"), "p": (0, 1),      # and of 1,024 logits
              "threads": (None, machine.PROCESSES, "8 a core")}

    def __post_init__(self):
        super().__post_init__()
        if self.plain_share + self.ner_share >= 1:
            raise ValueError("plain_share + ner_share leave no D_QRA; expected less than 1")
        self.refuse(self.layout == "gpt2" and not self.init_from, "in layout gpt2", "shared_heads")
        if self.block_size % LENGTH_STEP:
            raise ValueError(f"--block_size={self.block_size}, but expected a multiple of {LENGTH_STEP}")
        check_weights(GPTConfig(self.n_vocab, self.block_size, self.n_layer, self.n_head, self.n_embd))


# --- one training loop for every objective ----------------------------------------------------------------


def loss_terms(model, source, batch, config, device, denominator, objective="kd"):
    """The loss terms of one batch: "hard" on tokens; "sets" or "td" on the sets of a teacher's cache.
    denominator: the summed weights of all batches of the step, so that the losses of batches add up;
    objective: of td_distill.cached_loss."""
    weights_of = role_weights(config)
    if isinstance(source, Rows):
        ids, targets, weights = (t.to(device) for t in source.batch(batch.documents, weights_of))
        nll = token_nll(model, ids, targets, weights > 0)                                          # (B, T)
        return {"hard": td_distill.weighted_mean(nll, weights, denominator)}
    T = max(2, int(source.lengths[batch.documents].max()))         # a document of one token predicts nothing
    rows = {name: t.to(device) for name, t in source.batch(batch.documents, T).items()}
    terminal = (rows["roles"] == ROLES.index("sep")) | (rows["roles"] == ROLES.index("end"))  # no V(s') there
    weights = torch.from_numpy(weights_of).to(device)[rows["roles"].long()] * rows["real"]         # (B, T)
    return td_distill.cached_loss(model, rows, weights, terminal, config, objective, denominator)


def add_gradients(model, sources, batches, config, loss):
    """Adds the gradients of the batches of one step to the model's -> (loss, {name: term}), summed floats."""
    (device, dtype), total, terms = pick_device(config.device), 0.0, {}
    denominator = total_weight(sources, batches, role_weights(config))
    for batch in batches:
        batch = batch._replace(documents=batch.documents[machine.rank()::machine.size()])
        if not len(batch.documents):                               # fewer documents than processes
            continue
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            found = loss(model, sources[batch.source], batch, config, device, denominator)
        summed = sum(found.values())
        summed.backward()
        total += summed.item()
        terms |= {name: terms.get(name, 0.0) + term.item() for name, term in found.items()}
    return total, terms


def fit(name, model, mix, tokens, config, folder=None, look=None, loss=loss_terms):
    """Trains `model` on `tokens` tokens of a DataMix -> (loss of every step, figures of `look`, tokens seen).

    folder: where training.pt is kept, from which a training that was stopped goes on. look(): called up to
    EVAL_STEPS times, returns a dict of figures and leaves the model as it is. loss: as loss_terms."""
    plan = plan_batches(mix, tokens, config.step_tokens, config.seed)
    steps = [plan[i:i + config.accumulate] for i in range(0, len(plan), config.accumulate)]
    if not any(total_weight(mix.sources, step, role_weights(config)) for step in steps):
        raise ValueError(f"{name}: no token that is read has a weight; try a --text_weight above 0")
    optimizers, n, saved = make_optimizers(model, config), len(steps), time.monotonic()
    batches = (batch.documents.tobytes() + bytes([batch.source]) for batch in plan)
    state = {"plan": files.hash_of(*batches), "losses": [], "curve": []}
    if folder:
        state = files.load_training(folder / "training.pt", model, optimizers, state)
    looks = {n * i // (EVAL_STEPS + 1) for i in range(1, EVAL_STEPS + 1)} if look else ()
    first, row = len(state["losses"]), list(FILES).index(name) % 2 if name in FILES else 0
    bar = progress(range(first, n), name, total=n, initial=first, disable=machine.rank() > 0, position=row)
    stopping = False
    model.train()
    with machine.delayed_stop() as stop:
        for step in bar:
            if folder and (stopping or time.monotonic() - saved > SAVE_SECONDS):
                files.save_training(folder / "training.pt", model, optimizers, state)
                saved = time.monotonic()
            if stopping:                                           # all processes have agreed on it
                raise KeyboardInterrupt(f"{name}: stopped after {step} of {n} steps")
            if step in looks:
                seen = sum(batch.tokens for batch in plan[:step * config.accumulate])
                state["curve"].append({"tokens": seen} | look())
            warm = (step + 1) / config.warmup if config.warmup else 1.0
            rate = config.learning_rate * min(1.0, warm, (n - step) / max(1, round(n * config.cooldown)))
            total, terms = add_gradients(model, mix.sources, steps[step], config, loss)
            total, stopping = machine.sum_gradients(model, total, float(stop.is_set()))
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            if not math.isfinite(total) or not torch.isfinite(norm):
                raise ValueError(f"{name}: loss {terms}, gradient {norm:.3g} at step {step}, learning rate "
                                 f"{rate:.3g}; try a lower --learning_rate")
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            state["losses"].append(total)
            bar.set_postfix_str(f"loss {total:.3f}, learning rate {rate:.4f}", refresh=False)
    model.eval()
    return state["losses"], state["curve"], sum(batch.tokens for batch in plan)


# --- the students: one common start, then an equal number of tokens each ----------------------------------


def new_model(n_layer, n_embd, tokenizer, config):
    """The student config.init_from, or a model with random weights by config.seed, on the run's device."""
    device, _ = pick_device(config.device)
    torch.manual_seed(config.seed)
    if config.init_from:
        return GPT.load(config.init_from, device)
    kind = GPT if config.layout == "modern" else importlib.import_module("adapters.gpt2").GPT2
    sizes = kind.config_class(tokenizer.n_vocab, config.block_size, n_layer, config.n_head, n_embd)
    return kind(replace(sizes, shared_heads=config.shared_heads) if kind is GPT else sizes).to(device)


def finished_model(name, config):
    """The model of a finished stage in out_dir/name, or None."""
    out = Path(config.out_dir)
    return GPT.load(out / name, pick_device(config.device)[0]) if is_finished(out, name) else None


def train_model(name, model, mix, tokens, config, tokenizer, look=None, objective="kd"):
    """Trains a model and keeps it in out_dir/name, with its tokenizer, losses and the tokens it has seen.
    objective: what it learns from a TeacherCache in the mix, see td_distill.cached_loss; or a loss of fit."""
    folder, before = Path(config.out_dir) / name, model.extra.get("tokens_seen", 0)
    if objective in ("td", "td0", "improve"):
        td_distill.add_heads(model, config.seed)
    loss = objective if callable(objective) else partial(loss_terms, objective=objective)
    losses, curve, seen = fit(name, model, mix, tokens, config, folder, look, loss)
    model.td_heads = None                                          # training alone needs them
    model.extra = {"tokens_seen": before + seen, "tokenizer": tokenizer.hash, "losses": losses[:10],
                   "loss_curve": thinned(losses), "reading_curve": [
                       {**point, "tokens": before + point["tokens"]} for point in curve]}
    if not machine.rank():
        tokenizer.save(folder)
        model.save(folder, model.extra)
    save_finished(folder.parent, name, folder / "model.pt", folder / "tokenizer.json")
    (folder / "training.pt").unlink(missing_ok=True)
    return model


def train_start(config, threads):
    """Trains the common start of all students, unless it is there."""
    torch.set_num_threads(threads)
    tokenizer = run_tokenizer(config)
    if not is_finished(Path(config.out_dir), "start"):
        options = config.start_tokens, f"{config.seed} start", tokenizer, config.corpus
        mix = DataMix([documents.plain_text(*options)], [1.0])
        model = new_model(config.n_layer, config.n_embd, tokenizer, config)
        train_model("start", model, mix, config.start_tokens, replace(config, cooldown=0.0), tokenizer)


def train_and_test(name, config, threads):
    """One student from its start to its test results; a process of its own where there are cores. `plain` and
    `brd` go on from the common start, an arm from `brd`, with as many tokens as the cache has."""
    torch.set_num_threads(threads)
    tokenizer, model = run_tokenizer(config), finished_model(name, config)
    _, _, arm = name.partition("+")
    if model is None and arm:
        cache, _ = open_cache(config.cache or TEACHER, tokenizer)
        tokens, model = int((cache.lengths - 1).sum()), finished_model("brd", config)
        mix = documents.gold_mix(tokens, config, tokenizer) if arm == "gold" else DataMix([cache], [1.0])
        settings = replace(config, learning_rate=config.arm_rate, answer_weight=1.0)
        train_model(name, model, mix, tokens, settings, tokenizer, objective=arm)
    elif model is None:
        model, paragraphs, look = finished_model("start", config), None, None
        if name == "brd":
            paragraphs = documents.world_paragraphs(config.student_tokens, config, config.seed)
            write_annotations(Path(config.out_dir) / "annotations.jsonl", paragraphs)
            look = partial(brd.glance, model, tokenizer, documents.held_out_records(12, "glance"))
        mix = documents.data_mix(name, config, tokenizer, paragraphs)
        train_model(name, model, mix, config.student_tokens, config, tokenizer, look)
    return test_student(name, model, config, tokenizer)


def train_students(names, config, threads, workers):
    """The common start, then every student -> {name: results}. A small student leaves a second core idle:
    workers train `plain` and `brd` side by side, then the arms, as many at a time as there are workers."""
    check_range("student_tokens", config.student_tokens, 0, machine.MEMORY // 100, "memory")
    if workers == 1:
        train_start(config, threads)
        return {name: train_and_test(name, config, threads) for name in names}
    with machine.worker_pool(workers) as pool:
        pool.submit(train_start, config, threads // workers).result()
        results, first = {}, names[:2]                             # the arms need a finished `brd`
        for group in (first, *(names[i:i + workers] for i in range(2, len(names), workers))):
            jobs = {name: pool.submit(train_and_test, name, config, threads // workers) for name in group}
            results |= {name: job.result() for name, job in jobs.items()}
    return results


# --- the tests --------------------------------------------------------------------------------------------


def test_student(name, model, config, tokenizer):
    """The tests of one student, kept in out_dir/name/test.json: reading, blind tasks, plain text."""
    out = Path(config.out_dir)
    path = out / name / "test.json"
    if not is_finished(out, f"{name}.test"):
        reading = brd.eval_fresh_text(model, tokenizer, config.test_paragraphs)
        if is_annotated(config.corpus):
            from data.annotated import annotated_text               # the built-in world does without
            reading["corpus"] = brd.eval_reading(model, tokenizer, annotated_text(config.corpus)[1])
        blind = {file.stem: brd.eval_task(model, tokenizer, load_task(file)) for file in TASKS}
        beside = {}
        if name != "plain" and (config.corpus == "world" or config.cache):
            _, cache = open_cache(config.cache or TEACHER, tokenizer)
            beside, weights = brd.eval_sets(model, cache, config.p, config.gamma), Path(cache.folder, "model")
            if weights.exists():                                   # of the teacher
                teacher = GPT.load(weights, model.mask.device)
                beside |= brd.eval_own_questions(model, tokenizer, teacher, config.test_paragraphs)
        kept = {key: model.extra[key] for key in ("tokens_seen", "losses", "loss_curve", "reading_curve")}
        write_json(path, {**kept, "reading": reading, "blind": blind, "beside_teacher": beside,
                          "plain_bits_per_byte": bits_per_byte(model, *documents.plain_test(tokenizer))})
        save_finished(out, f"{name}.test", path)
    return read_json(path, "remove it, and the student is tested again")


# --- a text of your own, and the whole run ----------------------------------------------------------------


def read_plainly(config, text):
    """An OwnText without a teacher: one student, bits per byte, a sample -> its results."""
    model, mix = finished_model("plain", config), DataMix([text.training], [1.0])
    if model is None:
        model = new_model(config.n_layer, config.n_embd, text.tokenizer, config)
        train_model("plain", model, mix, config.student_tokens, config, text.tokenizer)
    return model.extra | text.test(model, config.seed)


def planned_tokens(config, tokenizer, rows, seconds, students, arm_tokens):
    """student_tokens with which so many students in turn, and arms of arm_tokens, take `seconds`, at .9
    of a fresh model's speed (`rows` are short); kept in plan.json. ValueError where there is no time."""
    path, rate = Path(config.out_dir) / "plan.json", 0.0
    if not path.exists():
        for n in (4, 25) if seconds > 0 else ():       # the first steps prepare kernels and memory
            model, start = new_model(config.n_layer, config.n_embd, tokenizer, config), time.perf_counter()
            *_, seen = fit("measuring", model, DataMix([rows], [1.0]), n * config.step_tokens, config)
            rate = 0.9 * seen / (time.perf_counter() - start)
        tokens = (int(seconds * rate) - arm_tokens) // students
        if tokens < 1:
            raise ValueError(f"--minutes={config.minutes}: all but the training takes longer; try more")
        write_json(path, {"student_tokens": tokens})
        machine.barrier()
    return read_json(path, "remove it, and it is planned anew", "student_tokens")["student_tokens"]


def started_from(config):
    """The options with the layout and the sizes of the student config.init_from; ValueError without one."""
    names = "n_layer n_head shared_heads n_embd block_size n_vocab"
    config.refuse(True, "beside --init_from", f"layout tokenizer {names}")
    model = GPT.load(config.init_from)
    return replace(config, layout=model.layout, **{n: getattr(model.config, n) for n in names.split()})


def main(arguments=None):
    """A run from options to report; ValueError or OSError, in one line, for a mistake of the user."""
    begin, config = time.perf_counter(), parse_options(Config, arguments, __doc__.split("\n\nStages")[0])
    device, dtype = pick_device(config.device)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    machine.start_processes(device)
    out, shown_out, threads = Path(config.out_dir), printable(config.out_dir), torch.get_num_threads()
    workers = min(threads, 5) if device.type == "cpu" and machine.size() == 1 else 1    # students at a time
    if config.init_from:
        config = started_from(config)
    inputs, own = documents.run_inputs(config, TASKS, TEACHER), documents.is_own(config.corpus)
    with files.folder_lock(out):
        files.open_run(out, config.decisive() | inputs, FILES, config.redo)
        wanted = [arm for arm in ARMS if arm in config.arms.split(",") or is_finished(out, f"brd+{arm}.test")]
        config.arms, arms = ",".join(wanted), tuple(f"brd+{arm}" for arm in wanted)
        names = STUDENTS[:1] if own else STUDENTS + arms
        if is_finished(out, "results"):
            saved = read_json(out / "results.json", "remove it, and it is written anew")
            if set(names) <= set(saved["students"]):
                return print(f"{shown_out}: finished before; --redo starts over\n\n{report(saved)}")
        text = own and importlib.import_module("data.own_text").own_text(config, out)
        tokenizer = text.tokenizer if own else run_tokenizer(config)
        cache = open_cache(config.cache or TEACHER, tokenizer)[0] if arms else None
        if config.minutes:
            rows = text.training if own else documents.reading_mix(100_000, config, tokenizer, "speed")[0][-1]
            students, later = math.ceil(len(names[:2]) / workers), math.ceil(len(arms) / workers)
            spent = time.perf_counter() - begin + (5 if own else 15 + 30 * (students + later))  # start, tests
            arm_tokens = later * int(cache.lengths.sum()) if cache else 0
            torch.set_num_threads(threads if own else threads // workers)                  # as in training
            config.student_tokens = planned_tokens(config, tokenizer, rows, 60 * config.minutes - spent,
                                                   students, arm_tokens)
        print(f"{device}, {dtype or 'float32'}, {threads} threads, "
              f"vocabulary {tokenizer.n_vocab} of at most {config.n_vocab}, "
              f"{config.student_tokens:,} tokens a student{'' if arms else ', no arms'}", flush=True)
        if not own and config.student_tokens < READS_FROM:
            print(f"a student of fewer than {READS_FROM:,} tokens answers hardly any question", flush=True)
        students = ({"plain": read_plainly(config, text)} if own
                    else train_students(names, config, threads, workers))
        results = {"students": students, "config": config.decisive() | {"arms": config.arms},
                   "seed": config.seed, "tokenizer": tokenizer.hash, "threads": threads,
                   "teacher": cache and cache.header["teacher"], "torch": torch.__version__}
        write_json(out / "results.json", results)
        save_finished(out, "results", out / "results.json")
    print(f"\n{report(results)}\n\n{time.perf_counter() - begin:.0f} s in all; {shown_out}/results.json "
          f"holds every figure\nIn pictures: python -m experiments.report {shown_out}")


if __name__ == "__main__":
    run_command(main)
