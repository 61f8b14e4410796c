"""A task with answers of several words, for methods that distil what a teacher says.

    Hugo went to Rome. Clara has a house in Lima.
    In full, where does Clara live?                     Clara is at home in Lima.<|end|>

Any way of the world to tell the fact is right. The task stands for the instructions (Dolly) of the papers,
which are learnt by students with and without BRD (Zhou et al., ACL 2025, orthogonality).
"""

import dataclasses
import random
from functools import partial
from pathlib import Path

import train
from data import world
from data.batches import DataMix, Rows
from data.files import weights_hash
from data.sets import draw_with_sets
from experiments.answers import answer_cache, as_document
from experiments.teacher import K_CAP

# What each method learns from, the references or the teacher's answers with their sets, and its objective.
METHODS = {"SFT": ("references", "seqkd"), "SeqKD": ("cache", "seqkd"), "top-p KD": ("cache", "kd"),
           "top-p TD": ("cache", "td")}
RATE, P = 0.005, 0.8                # learning rate of all methods; the teacher's nucleus, as the paper has it
KINDS = tuple(kind for kind in world.KINDS if kind != "feel")


def exchanges(n):
    """n questions about a fact of a paragraph -> list of (prompt, the right answers)."""
    rng, found = random.Random("retelling train 1"), []
    while len(found) < n:
        paragraph = world.draw_paragraph(rng, world.FULL)
        facts = [f for f in paragraph.facts if f.kind in KINDS and not f.denied]
        if facts:
            fact = world.pick(rng, facts)
            kind = world.KINDS[fact.kind]
            question = world.pick(rng, kind.what).format(n=fact.person)
            prompt = f"{' '.join(paragraph.sentences)}\nIn full, {question[0].lower()}{question[1:]}"
            found.append((prompt, [form.format(s=fact.person, a=fact.value) + "." for form in kind.says]))
    return found


def config_of(config, tokens):
    """The Config of one short training: answers alone are learnt, at a small rate."""
    return dataclasses.replace(config, text_weight=0.0, answer_weight=1.0, learning_rate=RATE, p=P,
                               student_tokens=tokens)


def instructed_teacher(reader, tokenizer, config):
    """The reader after two passes over the references; kept in out_dir/instructed."""
    mix, tokens = DataMix([source("SFT", tokenizer, config)], [1.0]), 2 * config.student_tokens
    return (train.finished_model("instructed", config)
            or train.train_model("instructed", reader, mix, tokens, config, tokenizer))


def source(method, tokenizer, config):
    """What a method learns from, about config.student_tokens tokens: Rows of references, each in one of the
    right ways, or the cache of the teacher's answers to the same prompts."""
    rng, asked = random.Random("retelling answers"), exchanges(config.student_tokens // 50 + 1)
    prompts = tokenizer.encode_batch([prompt for prompt, _ in asked])
    if METHODS[method][0] == "references":
        answers = tokenizer.encode_batch([" " + world.pick(rng, right) for _, right in asked])
        return Rows.pack([as_document(prompt, answer + [tokenizer.end], tokenizer)
                          for prompt, answer in zip(prompts, answers)], tokenizer.n_vocab)
    teacher = train.finished_model("instructed", config)
    draw = partial(draw_with_sets, teacher, stop=tokenizer.end)
    about = {"hash": weights_hash(teacher), "params": teacher.num_params()}
    return answer_cache(Path(config.out_dir) / "cache", draw, tokenizer, prompts, p=P, k_cap=K_CAP,
                        about=about, seed=1, made_by="python -m experiments.claims 5")
