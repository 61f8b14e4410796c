"""The command fill: a teacher answers prompts; a cache keeps its tokens with the sets they were drawn from.

    python -m experiments.teacher fill --teacher=HuggingFaceTB/SmolLM2-135M-Instruct --prompts=dolly.jsonl
    python -m experiments.teacher fill --teacher=model.gguf --prompts=dolly.jsonl
    python -m experiments.teacher fill --teacher=http://localhost:8080/v1 --model=qwen3 --tokenizer=folder \\
        --prompts=dolly.jsonl
    python td_distill.py inspect out_fill/cache

The teacher is a causal language model of transformers (a name, a folder or a .gguf file; extra [hf]), a model
behind an OpenAI-compatible server with its tokenizer in a folder, or a folder of GPT.save. The prompts are
JSONL (adapters/instructions.py). The cache holds the tokenizer too, with which a student is created. A run
that was stopped goes on.
"""

import importlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

import torch

from data.cache import TeacherCache
from data.cache_tools import CacheWriter, inspect
from data.cli import Options, parse_options, progress
from data.documents import ROLES
from data.files import folder_lock, hash_of, is_finished, open_run, save_finished, weights_hash
from data.machine import PROCESSES, pick_device
from data.sets import draw_with_sets
from data.tokenizer import Tokenizer
from model import GPT

TEXT, ANSWER, END = map(ROLES.index, ("text", "answer", "end"))
MAX_NEW, ROWS = 128, 32         # tokens of an answer at most; prompts answered together, then a checkpoint
FILES = {"stages": "finished stages", "cache": "the cache, and the teacher's tokenizer"}


@dataclass
class FillConfig(Options):
    teacher: str = ""                # a folder, a name to download, a .gguf file, or http://localhost:8080/v1
    prompts: str = ""                # JSONL of prompts; their responses, if there are any, are not used
    model: str = ""                  # of a server: the model's name there
    tokenizer: str = ""              # of a server: the folder of the model's tokenizer.json
    out_dir: str = "out_fill"        # the folder of everything that this run makes
    redo: bool = False               # throw away what an earlier run left in out_dir
    seed: int = 1                    # of what is drawn
    answers: int = 1                 # to each prompt
    max_new: int = MAX_NEW           # tokens of an answer at most
    p: float = 0.8                   # mass of the teacher's sets A_p
    k_cap: int = 64                  # tokens of a set at most, even where they do not reach p
    temperature: float = 1.0         # of the teacher, also in its sets; a server's is 1
    dtype: str = "auto"              # of the weights: auto (as they are saved), float32 or bfloat16
    parallel: int = 4                # of a server: requests in flight
    timeout: float = 300.0           # of a server: seconds for a request
    device: str = "auto"             # auto, cpu, cuda or mps
    threads: int = 0                 # CPU threads; 0: as many as there are cores

    PLACE = (*Options.PLACE, "parallel", "timeout")
    CHOICES = {"device": "auto cpu cuda mps".split(), "dtype": ["auto", "float32", "bfloat16"]}
    BOUNDS = {**dict.fromkeys(("answers", "max_new", "temperature", "timeout"), (0,)), "p": (0, 1),
              "k_cap": (0, 65535, "16 bits"), "parallel": (0, 1000), "threads": (None, PROCESSES, "8 a core")}

    def __post_init__(self):
        super().__post_init__()
        if not self.teacher or not self.prompts:
            raise ValueError("expected a --teacher and --prompts; --help explains them")
        self.refuse(is_served(self.teacher), "on a server", "temperature dtype device threads")
        check_teacher(self)


class Teacher(NamedTuple):
    """draw(prompts, max_new, *, p, k_cap, temperature, seed) -> (new, sets) as data.sets.draw_with_sets;
    about: dict for the header of its cache; model: GPT, HFTeacher, or None behind a server."""
    draw: Callable
    tokenizer: object
    block_size: int
    about: dict
    model: object


def is_served(teacher):
    return teacher.startswith(("http://", "https://"))


def is_own_model(teacher):
    return (Path(teacher) / "model.pt").is_file()


def check_teacher(config):
    """ValueError for what a server lacks, and for options that its kind of teacher leaves without effect."""
    served = is_served(config.teacher)
    if served and not (config.model and config.tokenizer):
        raise ValueError("expected the --model and the --tokenizer of a server; --help explains them")
    config.refuse(not served, "without a server", "model tokenizer parallel timeout")
    config.refuse(is_own_model(config.teacher), "on a folder of GPT.save", "dtype")


def open_model(where, device):
    """A folder of GPT.save, or a GPT-2 in Hugging Face's format, or its name -> (GPT, its tokenizer)."""
    if is_own_model(where):
        return GPT.load(where, device), Tokenizer.load(where)
    gpt2, hf = (importlib.import_module(f"adapters.{name}") for name in ("gpt2", "hf"))
    folder = gpt2.locate(where)
    model, tokenizer = gpt2.GPT2.from_pretrained(folder, device=device), hf.HFTokenizer.load(folder)
    if model.config.n_vocab < tokenizer.n_vocab:
        raise ValueError(f"{where}: {model.config.n_vocab} embeddings, but {tokenizer.n_vocab} ids of tokens")
    return model, tokenizer


def open_teacher(config):
    """The teacher of a config (teacher, device; of transformers dtype; of a server model, tokenizer, parallel
    and timeout) -> Teacher. ValueError where there is none."""
    if is_served(config.teacher):
        logprobs = importlib.import_module("adapters.logprobs")
        model = logprobs.EndpointTeacher(config.teacher, config.model, config.tokenizer,
                                         parallel=config.parallel, timeout=config.timeout)
        return Teacher(model.draw, model.tokenizer, model.block_size, model.about(), None)
    device, _ = pick_device(config.device)
    if is_own_model(config.teacher):
        model, tokenizer = open_model(config.teacher, device)
        about = {"hash": weights_hash(model), "params": model.num_params(), "name": config.teacher}
        draw = partial(draw_with_sets, model, stop=tokenizer.ends)
        return Teacher(draw, tokenizer, model.config.block_size, about, model)
    model = importlib.import_module("adapters.hf").HFTeacher(config.teacher, config.dtype, device)
    return Teacher(model.draw, model.tokenizer, model.block_size, model.about(), model)


def encode_prompts(prompts, tokenizer):
    """Prompts (str) -> lists of ids: by the chat template of a tokenizer of transformers, else with what
    adapters.instructions puts behind a prompt."""
    if isinstance(tokenizer, Tokenizer):
        behind = importlib.import_module("adapters.instructions").ANSWER
        return tokenizer.encode_batch([prompt + behind for prompt in prompts])
    return [tokenizer.prompt_ids(prompt) for prompt in prompts]


def as_document(prompt, answer, tokenizer):
    """(tokens, their roles) of a prompt with its answer, both ids."""
    return prompt + answer, [TEXT] * len(prompt) + [END if t in tokenizer.ends else ANSWER for t in answer]


def answer_cache(folder, draw, tokenizer, prompts, *, about, seed, made_by, answers=1, max_new=MAX_NEW,
                 **drawing):
    """The teacher's answers to the prompts (ids), and their sets -> TeacherCache, filled where it is not
    finished; the tokenizer stands beside it. draw, about: of a Teacher; drawing: its p, k_cap and temperature
    (1 if not given).

    An answer without END is kept: its last position has no s', and the Bellman residual drops it."""
    if not (folder / "header.json").exists():
        writer = CacheWriter(folder, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash, teacher=about,
                             roles=ROLES, made_by=made_by, **{"temperature": 1.0, **drawing})
        parts = [(k, at) for k in range(answers) for at in range(0, len(prompts), ROWS)]
        for number, (k, at) in progress(list(enumerate(parts, 1))[writer.done:], "answers"):
            some = prompts[at:at + ROWS]
            new, sets = draw(some, max_new, seed=seed + 1_000_003 * k + at, **drawing)
            for prompt, tokens, kept in zip(some, new, sets):
                writer.add(*as_document(prompt, tokens, tokenizer), [None] * len(prompt) + kept)
            writer.checkpoint(number)
        tokenizer.save(folder)
        writer.close()
    return TeacherCache(folder, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash)


def main(arguments=None):
    """The command; ValueError or OSError, in one line, for what the user can mend."""
    config = parse_options(FillConfig, arguments, __doc__)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    instructions = importlib.import_module("adapters.instructions")
    asked = instructions.read_instructions(config.prompts, responses=False)
    draw, tokenizer, block_size, about, _ = open_teacher(config)
    encoded = encode_prompts([prompt for prompt, _ in asked], tokenizer)
    prompts = [ids for ids in encoded if 1 <= len(ids) <= block_size - config.max_new]
    if not prompts:
        raise ValueError(f"no prompt leaves room for an answer of {config.max_new} tokens in {block_size}")
    out = Path(config.out_dir)
    with folder_lock(out):
        inputs = {"hash of prompts": hash_of(Path(config.prompts)), "hash of tokenizer": tokenizer.hash}
        inputs["teacher's header"] = about
        open_run(out, config.decisive() | inputs, FILES, config.redo)
        print(f"{len(prompts):,} prompts, {len(encoded) - len(prompts):,} more are too long; {tokenizer}",
              flush=True)
        if not is_finished(out, "cache"):
            given = " ".join(f"--{name}={value}" for name, value in config.decisive().items()
                             if value != getattr(FillConfig, name))
            drawing = {name: getattr(config, name) for name in ("p", "k_cap", "temperature")}
            if is_served(config.teacher):       # nobody knows its limit: what is too long is refused at once
                draw([max(prompts, key=len)], config.max_new, seed=config.seed, **drawing)
            answer_cache(out / "cache", draw, tokenizer, prompts, about=about, seed=config.seed,
                         made_by=f"python -m experiments.teacher fill {given}", answers=config.answers,
                         max_new=config.max_new, **drawing)
            save_finished(out, "cache", out / "cache" / "header.json", out / "cache" / "tokenizer.json")
    inspect(out / "cache")
