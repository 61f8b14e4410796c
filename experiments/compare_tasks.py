"""The two tasks of experiments/compare.py: prompts, a judge of answers, a teacher and its cached answers."""

import functools
import random
from dataclasses import replace
from typing import Callable, NamedTuple

import torch
from tqdm import tqdm

import train
from data import world
from data.annotations import lines_of, parse_question
from data.batches import Rows
from data.cache import TeacherCache
from data.cache_tools import CacheWriter
from data.documents import ROLES, SEP, course_tokenizer, encode_documents, reading_rows, render
from data.files import hash_of, is_finished, read_json, save_finished, write_json
from experiments import grammar
from experiments.losses import narrow_cache
from experiments.objectives import OBJECTIVES, learn
from experiments.teacher import DOCUMENT_TOKENS, TeacherConfig, train_teacher, write_cache
from model import GPT, GPTConfig
from td_distill import draw_with_sets


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
    fill: Callable                  # fill(folder, p) writes a cache of the teacher's answers, sets of mass p
    prompts: list                   # test prompts: the first half in tuning, the second half in the table
    judge: Callable                 # judge(number of a prompt, answer) -> True where the answer is right
    stop: int                       # token that ends an answer
    max_new: int                    # longest answer
    weights: torch.Tensor           # (roles,) float32: what a token of each role weighs
    student: GPTConfig              # of some number of channels
    sources: dict                   # (source, p) of a row of OBJECTIVES -> Rows or TeacherCache
    answers: list = ()              # the teacher's answer to each test prompt


SIZES = {"grammar": Size(4000, 4, 800, 5_000_000, 1_000_000, 72),
         "reading": Size(6000, 1, 400, 4_000_000, 800_000, 64)}
STUDENTS = {"grammar": (64, 1_000_000), "reading": (128, 300_000)}   # channels, tokens after the start
TEXT, ANSWER = ROLES.index("text"), ROLES.index("answer")


@functools.cache
def open_task(name, out, size):
    """The task "grammar" or "reading" -> Task, made where it is not yet in `out`, the folder of a run."""
    task = {"grammar": grammar_task, "reading": reading_task}[name](out, size)
    if not (out / "answers.json").exists():
        answers = task.teacher.generate(task.prompts, size.max_new, stop=task.stop, seed=1)
        write_json(out / "answers.json", {"answers": answers})
    for draw, p in (("free", 1.0), ("free", 0.95), ("free", 0.8), ("nucleus", 0.8)):        # p = 1: dense
        folder = out / "caches" / f"{draw}-{p}"
        if not (folder / "header.json").exists() and draw == "free" and p < 1:
            narrow_cache(task.sources["free", 1.0], folder, p)
        elif not (folder / "header.json").exists():
            task.fill(folder, p)
        task.sources[draw, p] = TeacherCache(folder)
    task.sources["own", 1.0] = task.sources["free", 1.0]        # prompts; the student draws its own answers
    answers = read_json(out / "answers.json", "remove it, and they are drawn again")["answers"]
    return task._replace(answers=answers)


def grammar_prompts(n, seed):
    rng = random.Random(seed)
    return [grammar.prompt(rng) for _ in range(n)]


def grammar_rows(prompts, seed):
    """Rows of a right answer to every prompt, those of more than 64 tokens left out."""
    rng = random.Random(seed)
    drawn = [(prompt, grammar.answer(rng, prompt)) for prompt in prompts]
    documents = [(p + a, [TEXT] * len(p) + [ANSWER] * len(a)) for p, a in drawn if len(a) <= 64]
    return Rows.pack(documents, grammar.N_VOCAB)


def grammar_task(out, size):
    """The stack-and-copy grammar: a teacher that is good but not perfect, and a smaller student."""
    V, layers = grammar.N_VOCAB, dict(n_vocab=grammar.N_VOCAB, block_size=96, n_head=4)
    prompts = grammar_prompts(size.tests, "test")
    known = grammar_prompts(size.prompts, "train") * size.answers
    task = Task(teacher=None, fill=None, prompts=prompts, stop=grammar.END, max_new=size.max_new,
                judge=lambda i, answer: grammar.valid(prompts[i], answer),
                weights=torch.tensor([float(role == "answer") for role in ROLES]),
                student=GPTConfig(n_layer=2, n_embd=64, **layers),
                sources={("references", 1.0): grammar_rows(known, "references")})
    if not is_finished(out, "teacher"):
        texts = grammar_rows(grammar_prompts(size.teacher_tokens // 42, "teacher"), "teacher")
        reading, config = task._replace(sources={("references", 1.0): texts}), train.Config(device="cpu")
        torch.manual_seed(1)
        teacher = GPT(GPTConfig(n_layer=4, n_embd=128, **layers))
        learn("teacher", teacher, size.teacher_tokens, config, OBJECTIVES["SFT"], reading)
        teacher.save(out / "teacher")
        save_finished(out, "teacher", out / "teacher" / "model.pt")
    teacher = GPT.load(out / "teacher")
    about = {"hash": hash_of(out / "teacher" / "model.pt"), "params": teacher.num_params()}

    def fill(folder, p):
        writer = CacheWriter(folder, n_vocab=V, tokenizer_hash="grammar", p=p, k_cap=V, temperature=1.0,
                             teacher=about, roles=ROLES, made_by="python td_distill.py compare")
        for start in tqdm(range(writer.done, len(known), 256), f"answers, p={p}", disable=None, leave=False):
            some = known[start:start + 256]
            drawn = draw_with_sets(teacher, some, size.max_new, p=p, k_cap=V, stop=grammar.END, seed=start)
            for prompt, tokens, sets in zip(some, *drawn):
                if tokens[-1] == grammar.END:      # one that was cut is not an answer
                    roles = [TEXT] * len(prompt) + [ANSWER] * len(tokens)
                    writer.add(prompt + tokens, roles, [None] * len(prompt) + sets)
            writer.checkpoint(start + 256)
        writer.close()
    return task._replace(teacher=teacher, fill=fill)


def reading_prompts(tokenizer, n, longest):
    """n prompts of at most `longest` tokens, each a held-out paragraph with the readings of all but its last
    sentence -> (prompts, judge)."""
    rng, prompts, known = random.Random("compare test"), [], []
    while len(prompts) < n:
        paragraph = world.draw_paragraph(rng, world.FULL, split="test")
        *before, last = world.annotate(rng, paragraph)
        pieces = render(before, "qra", rng)[:-1] + [(" " + last["text"], "text"), SEP]
        prompt = encode_documents([pieces], tokenizer)[0][0]
        if len(prompt) <= longest:
            prompts.append(prompt)
            known.append(world.all_answers(paragraph, len(paragraph.facts) - 1))

    def judge(i, answer):
        raised = map(parse_question, lines_of(tokenizer.decode(answer[:-1])))
        right = [one is not None and known[i].get(one["question"]) == one["answer"] for one in raised]
        return answer[-1] == tokenizer.sep and bool(right) and all(right)
    return prompts, judge


def reading_task(out, size):
    """The built-in world: the student raises and answers questions about the last sentence of a paragraph.
    Every line must be a question that the scripted reader could have asked, with its answer. The teacher is
    that of experiments/teacher.py, whose caches have at most 64 tokens a set."""
    tokenizer, n = course_tokenizer("world", 1024), size.prompts * size.answers
    config = TeacherConfig(p=1.0, teacher_tokens=size.teacher_tokens, cache_tokens=DOCUMENT_TOKENS * n,
                           device="cpu", out_dir=str(out))
    prompts, judge = reading_prompts(tokenizer, size.tests, config.block_size - size.max_new)
    told = list(world.annotated(n, "references"))
    references = reading_rows(told, "qra", tokenizer, "references", config.block_size)
    teacher = train_teacher(config, tokenizer)

    def fill(folder, p):
        write_cache(folder, teacher, tokenizer, replace(config, p=p))
    weights = torch.from_numpy(train.role_weights(replace(config, text_weight=0.0)))
    return Task(teacher, fill, prompts, judge, tokenizer.sep, size.max_new, weights,
                GPTConfig(tokenizer.n_vocab, 384, 3, 4, 128), {("references", 1.0): references})
