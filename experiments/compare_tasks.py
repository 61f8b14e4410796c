"""The two tasks of the comparison (course/compare.py): prompts, a judge of answers, a teacher and its cached answers.

    task = open_task("grammar", Path("out/compare-grammar"), SIZES["grammar"])       # made on the first call, kept in the folder

Shapes: B documents, T positions, K teacher tokens kept.
"""

import functools
import hashlib
import random
from typing import Callable, NamedTuple

import torch
from tqdm import tqdm

import brd
import train
from experiments.objectives import Row, learn, new_model, settings, sft
from data import annotations, grammar, reads, world
from data.cache import TeacherCache, CacheWriter
from data.documents import course_tokenizer, reading_rows
from data.batches import Rows
from data.files import read_json
from model import GPT, GPTConfig

MASSES = (1.0, 0.95, 0.8)           # p of the sets that are kept on disk; p = 1 is the dense teacher


REMEDY = "remove it, and they are drawn again"


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
    references: Rows                # right answers to the training prompts, in documents like those of the caches
    caches: dict                    # (draw, p) -> Cache; draw: "free" or "nucleus", how the teacher's answers were drawn
    prompts: list                   # prompts to be tested on: the first half in tuning, the second half in the table
    answers: list                   # the teacher's answer to each of them
    judge: Callable                 # judge(number of a prompt, answer) -> True where the answer is right
    stop: int                       # token that ends an answer
    max_new: int                    # longest answer
    weights: torch.Tensor           # (roles,) float32: what a token of each role weighs
    student: GPTConfig              # of some number of channels


SIZES = {"grammar": Size(4000, 4, 800, 5_000_000, 1_000_000, 72),
         "reading": Size(6000, 1, 400, 4_000_000, 800_000, 64)}
STUDENTS = {"grammar": (64, 1_000_000), "reading": (128, 300_000)}       # channels, and tokens after the start


def grammar_documents(prompts, n, seed):
    """n right answers to every prompt, those of more than 64 tokens left out: list of (ids, roles)."""
    rng, text, answer = random.Random(seed), brd.ROLES.index("text"), brd.ROLES.index("answer")
    drawn = [(prompt, grammar.answer(rng, prompt)) for _ in range(n) for prompt in prompts]
    return [(p + a, [text] * len(p) + [answer] * len(a)) for p, a in drawn if len(a) <= 64]


def grammar_prompts(n, seed):
    rng = random.Random(seed)
    return [grammar.prompt(rng) for _ in range(n)]


def grammar_task(out, size):
    """The stack-and-copy grammar (data/grammar.py): a teacher that is good but not perfect, and a smaller student."""
    layers = dict(n_vocab=grammar.N_VOCAB, block_size=96)
    references = Rows.pack(grammar_documents(grammar_prompts(size.prompts, "train"), size.answers, "references"), grammar.N_VOCAB)
    weights = torch.tensor([float(role == "answer") for role in brd.ROLES])
    prompts = grammar_prompts(size.tests, "test")
    task = Task(None, references, {}, prompts, [], lambda i, answer: grammar.valid(prompts[i], answer), grammar.END, size.max_new, weights,
                GPTConfig(n_layer=2, n_head=4, n_embd=64, **layers))
    if not (out / "teacher" / "config.json").exists():
        texts = grammar_documents(grammar_prompts(size.teacher_tokens // 42, "teacher"), 1, "teacher")
        teacher = new_model(GPTConfig(n_layer=4, n_head=4, n_embd=128, **layers), 1)
        learn("teacher", teacher, Rows.pack(texts, grammar.N_VOCAB), size.teacher_tokens, settings(0.01, 1),
              Row("references", 1, sft), task, decay=0.5)
        teacher.save(out / "teacher")
    teacher = GPT.load(out / "teacher")
    if not (out / "answers.json").exists():
        train.write_json(out / "answers.json", {"answers": teacher.generate(prompts, size.max_new, stop=grammar.END, seed=1)})
    task = task._replace(teacher=teacher, answers=read_json(out / "answers.json", REMEDY)["answers"])
    for draw, p in (("free", 1.0), ("nucleus", 0.8)):
        if not (out / f"{draw}-{p}" / "header.json").exists():
            grammar_cache(out / f"{draw}-{p}", task.teacher, grammar_prompts(size.prompts, "train"), size, p)
    return task._replace(caches=open_caches(out))


def open_caches(out):
    """The caches of a task by (draw, p), those of a smaller p made from that of the whole teacher."""
    for p in MASSES:
        if not (out / f"free-{p}" / "header.json").exists():
            reads.narrow_cache(Cache(out / "free-1.0"), out / f"free-{p}", p)
    return {(folder.name.split("-")[0], float(folder.name.split("-")[1])): Cache(folder)
            for folder in sorted(out.glob("free-*")) + sorted(out.glob("nucleus-*"))}


def grammar_cache(folder, teacher, prompts, size, p):
    """The teacher answers every prompt `size.answers` times, its sets of mass p go into a cache."""
    digest = hashlib.sha256(b"".join(w.detach().numpy().tobytes() for w in teacher.parameters())).hexdigest()[:16]
    writer = CacheWriter(folder, n_vocab=grammar.N_VOCAB, tokenizer_hash="grammar", p=p, k_cap=grammar.N_VOCAB, temperature=1.0,
                         teacher={"hash": digest, "params": teacher.num_params()}, roles=brd.ROLES,
                         made_by="python td_distill.py compare --task=grammar")
    text, answer = brd.ROLES.index("text"), brd.ROLES.index("answer")
    prompts = prompts * size.answers
    begin = writer.done                        # prompts that were answered before it was cut off
    for start in tqdm(range(begin, len(prompts), 256), desc=f"teacher answers, p={p}", disable=None, leave=False):
        some = prompts[start:start + 256]
        new, sets = reads.draw_with_sets(teacher, some, size.max_new, p=p, k_cap=grammar.N_VOCAB, temperature=1.0,
                                         stop=grammar.END, seed=start)
        for prompt, tokens, kept in zip(some, new, sets):
            if tokens[-1] == grammar.END:      # one that was cut is not an answer
                writer.add(prompt + tokens, [text] * len(prompt) + [answer] * len(tokens), [None] * len(prompt) + kept)
        writer.checkpoint(start + 256)
    writer.close()


def reading_prompts(tokenizer, n, longest):
    """(n prompts of at most `longest` tokens, judge): a held-out paragraph with the readings of all but its last sentence."""
    rng = random.Random("compare test")
    prompts, known = [], []
    while len(prompts) < n:
        paragraph = world.draw_paragraph(rng, world.FULL, split="test")
        *before, last = world.annotate(rng, paragraph)
        pieces = brd.render(before, "qra", rng)[:-1] + [(" " + last["text"], "text"), brd.SEP]
        prompt = brd.encode_document(pieces, tokenizer)[0]
        if len(prompt) <= longest:
            prompts.append(prompt)
            known.append(world.all_answers(paragraph, len(paragraph.facts) - 1))

    def judge(i, answer):
        lines = annotations.lines_of(tokenizer.decode(answer[:-1]))
        raised = [annotations.parse_question(line) for line in lines]
        return answer[-1] == tokenizer.sep and bool(lines) and all(r and known[i].get(r["question"]) == r["answer"] for r in raised)
    return prompts, judge


def reading_task(out, size):
    """The built-in world: the student raises and answers questions about the last sentence of a paragraph.

    Right is an answer of which every line is a question that the scripted reader could have asked, with his answer. The
    teacher is that of train.py, but draws from its whole distribution (its 64 most probable tokens)."""
    tokenizer = course_tokenizer("world", 1024)
    config = train.Config(teacher="train", p=1.0, teacher_tokens=size.teacher_tokens, cache_tokens=49 * size.prompts * size.answers, device="cpu")
    weights = torch.from_numpy(train.role_weights(config)) * torch.tensor([float(role != "text") for role in brd.ROLES])
    prompts, judge = reading_prompts(tokenizer, size.tests, config.block_size - size.max_new)
    paragraphs = list(world.annotated(size.prompts * size.answers, "references"))
    references = reading_rows(paragraphs, "qra", tokenizer, "references", config.block_size)
    teacher = train.train_teacher(out / "teacher", tokenizer, config)
    if not (out / "answers.json").exists():
        train.write_json(out / "answers.json", {"answers": teacher.generate(prompts, size.max_new, stop=tokenizer.sep, seed=1)})
    if not (out / "free-1.0" / "header.json").exists():
        train.write_cache(out / "free-1.0", teacher, tokenizer, config)
    return Task(teacher, references, open_caches(out), prompts, read_json(out / "answers.json", REMEDY)["answers"], judge,
                tokenizer.sep, size.max_new, weights, GPTConfig(n_vocab=tokenizer.n_vocab, block_size=384, n_layer=3, n_head=4, n_embd=128))


@functools.cache
def open_task(name, out, size):
    return {"grammar": grammar_task, "reading": reading_task}[name](out, size)
