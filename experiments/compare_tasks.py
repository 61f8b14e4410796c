"""The task of experiments/compare.py: prompts of the token grammar, a teacher and its cached answers."""

import functools
import random
from typing import Callable, NamedTuple

import torch

import train
from data.batches import Rows
from data.cache import TeacherCache
from data.cache_tools import CacheWriter
from data.cli import progress
from data.documents import ROLES
from data.files import hash_of, is_finished, read_json, save_finished, write_json
from data.sets import draw_with_sets
from experiments import grammar
from experiments.grammar import END, N_VOCAB
from experiments.objectives import OBJECTIVES, learn
from model import GPT, GPTConfig


class Size(NamedTuple):
    """What all runs in a folder have in common."""
    prompts: int                    # training prompts
    answers: int                    # teacher's answers, and references, to each
    tests: int                      # test prompts, half of them for tuning
    teacher_tokens: int
    start_tokens: int               # SFT of the common start
    max_new: int                    # longest answer


class Task(NamedTuple):
    teacher: GPT
    prompts: list                   # test prompts: the first half in tuning, the second half in the table
    answers: list                   # the teacher's answer to each
    judge: Callable                 # judge(number of a prompt, answer) -> True where the answer is right
    stop: int                       # token that ends an answer
    max_new: int                    # longest answer
    weights: torch.Tensor           # (roles,) float32: what a token of each role weighs
    student: GPTConfig              # of some number of channels
    sources: dict                   # source of a row of OBJECTIVES -> Rows or TeacherCache


SIZE = Size(4000, 4, 800, 5_000_000, 1_000_000, 72)
TEXT, ANSWER = ROLES.index("text"), ROLES.index("answer")
SHAPE = {"n_vocab": N_VOCAB, "block_size": 96, "n_head": 4}


def grammar_prompts(n, seed):
    rng = random.Random(seed)
    return [grammar.prompt(rng) for _ in range(n)]


def grammar_rows(prompts, seed):
    """Rows of a right answer to every prompt, those of more than 64 tokens left out."""
    rng = random.Random(seed)
    drawn = [(prompt, grammar.answer(rng, prompt)) for prompt in prompts]
    documents = [(p + a, [TEXT] * len(p) + [ANSWER] * len(a)) for p, a in drawn if len(a) <= 64]
    return Rows.pack(documents, N_VOCAB)


def write_answers(folder, teacher, about, prompts, max_new, p):
    """A cache of the teacher's answers, drawn from sets of mass p; one that was cut is not an answer."""
    writer = CacheWriter(folder, n_vocab=N_VOCAB, tokenizer_hash="grammar", p=p, k_cap=N_VOCAB, roles=ROLES,
                         temperature=1.0, teacher=about, made_by="python td_distill.py compare")
    for start in progress(range(writer.done, len(prompts), 256), f"answers, p={p}"):
        some = prompts[start:start + 256]
        drawn = draw_with_sets(teacher, some, max_new, p=p, k_cap=N_VOCAB, stop=END, seed=start)
        for prompt, tokens, sets in zip(some, *drawn):
            if tokens[-1] == END:
                roles = [TEXT] * len(prompt) + [ANSWER] * len(tokens)
                writer.add(prompt + tokens, roles, [None] * len(prompt) + sets)
        writer.checkpoint(start + 256)
    writer.close()


@functools.cache
def open_task(out, size):
    """The grammar with a teacher that is good but not perfect, and a smaller student -> Task, made where it
    is not yet in `out`, the folder of a run."""
    prompts = grammar_prompts(size.tests, "test")
    known = grammar_prompts(size.prompts, "train") * size.answers
    task = Task(teacher=None, prompts=prompts, answers=None, stop=END, max_new=size.max_new,
                judge=lambda i, answer: grammar.valid(prompts[i], answer),
                weights=torch.tensor([float(role == "answer") for role in ROLES]),
                student=GPTConfig(n_layer=2, n_embd=64, **SHAPE),
                sources={"references": grammar_rows(known, "references")})
    if not is_finished(out, "teacher"):
        texts = grammar_rows(grammar_prompts(size.teacher_tokens // 42, "teacher"), "teacher")
        reading, config = task._replace(sources={"references": texts}), train.Config(device="cpu")
        torch.manual_seed(1)
        teacher = GPT(GPTConfig(n_layer=4, n_embd=128, **SHAPE))
        learn("teacher", teacher, size.teacher_tokens, config, OBJECTIVES["SFT"], reading, out / "teacher")
        save_finished(out, "teacher", out / "teacher" / "model.pt")
    teacher = GPT.load(out / "teacher")
    if not (out / "answers.json").exists():
        answers = teacher.generate(prompts, size.max_new, stop=END, seed=1)
        write_json(out / "answers.json", {"answers": answers})
    about = {"hash": hash_of(out / "teacher" / "model.pt"), "params": teacher.num_params()}
    for draw, p in (("free", 1.0), ("nucleus", 0.8)):       # mass of the sets that answers are drawn from
        folder = out / "caches" / f"{draw}-{p}"
        if not (folder / "header.json").exists():
            write_answers(folder, teacher, about, known, size.max_new, p)
        task.sources[draw] = TeacherCache(folder)
    task.sources["own"] = task.sources["free"]                  # prompts; the student draws its own answers
    answers = read_json(out / "answers.json", "remove it, and they are drawn again", "answers")["answers"]
    return task._replace(teacher=teacher, answers=answers)
