"""A task with answers of several words, for methods that distil what a teacher says: a question is answered in a full sentence.

    Hugo went to Rome. Clara has a house in Lima.
    In full, where does Clara live?                     Clara is at home in Lima.<|end|>

Any way of the world to tell the fact is right. It stands for the instructions (Dolly) on which the papers distil: in their
experiment on orthogonality (Zhou et al., ACL 2025) each method is applied to a student with and without basic reading.

    teacher = instructed_teacher(folder, reader, tokenizer, config)    # a reader that has learnt the task from references
    source = sources(folder, teacher, tokenizer, config)["topp_kd"]    # references, or the cache of the teacher's answers
    credits = test(model, tokenizer)                                   # 1.0 for each right answer about held-out facts
"""

import dataclasses
import random

import brd
import train
from course import pair
from data import runs, world
from data.tasks import items

# What each method learns from, and the fields of train.Config that make it; "cache": the teacher's answers and their sets.
METHODS = {"SFT": ("references", {}), "SeqKD": ("cache", {"objective": "seqkd"}), "top-p KD": ("cache", {"objective": "topp_kd"}),
           "top-p TD": ("cache", {"objective": "bellman"})}
RATE, P = 0.005, 0.8                # of all methods alike; mass of the teacher's nucleus, as the Bellman paper has it
KINDS = tuple(kind for kind in world.KINDS if kind != "feel")
TESTS = 300                         # questions of the test


def exchanges(n, split, seed):
    """n questions about one of two people who did the same kind of thing -> list of (prompt, the ways to answer it right)."""
    rng, found = random.Random(f"retelling {split} {seed}"), []
    while len(found) < n:
        if split == "test":
            paragraph, facts, _ = items.scene(rng, 2, KINDS[len(found) % len(KINDS)])
        else:
            paragraph = world.draw_paragraph(rng, world.FULL)
            facts = [f for f in paragraph.facts if f.kind in KINDS and not f.denied]
        if not facts:
            continue
        fact = world.pick(rng, facts)
        kind = world.KINDS[fact.kind]
        question = world.pick(rng, kind.what).format(n=fact.person)
        prompt = f"{' '.join(paragraph.sentences)}\nIn full, {question[0].lower()}{question[1:]}"
        found.append((prompt, [form.format(s=fact.person, a=fact.value) + "." for form in kind.says]))
    return found


def config_of(config, tokens, method="SFT"):
    """The Config of one short training: answers alone are learnt, at a small rate."""
    return dataclasses.replace(config, text_weight=0.0, answer_weight=1.0, learning_rate=RATE, student_tokens=tokens, p=P,
                               alpha=10.0, gamma=0.99, leak=1.0, **METHODS[method][1])


def references(tokens, tokenizer, config):
    """(prompts, rows) of about this many tokens, each answered in one of the right ways."""
    rng, asked = random.Random("retelling answers"), exchanges(tokens // 50 + 1, "train", 1)
    return pair.encode_pairs([(prompt, world.pick(rng, right)) for prompt, right in asked], tokenizer, config.block_size)


def instructed_teacher(folder, reader, tokenizer, config):
    """The teacher, a reader, after two passes over references of config.student_tokens tokens; kept in the folder."""
    config = config_of(config, config.student_tokens)
    _, rows = references(config.student_tokens, tokenizer, config)
    of = runs.made_of("instructed teacher", config, tokenizer, "", reader=pair.weights_hash(reader))
    model = train.kept(folder, config, of)
    if not model:
        model = reader
        _, seen = train.fit("instructed teacher", model, [rows], [1.0], 2 * config.student_tokens, config, config.decay, folder=folder)
        train.keep(model, folder, tokenizer, {"tokens_seen": reader.extra["tokens_seen"] + seen}, of)
    return model


def sources(folder, teacher, tokenizer, config):
    """{"references": Rows, "cache": Cache} of the same prompts."""
    own = train.Config(student_tokens=config.student_tokens, p=P, teacher="instructed", answers=1, device=config.device)
    prompts, rows = references(own.student_tokens, tokenizer, own)
    of = runs.made_of("retelling cache", own, tokenizer, "", teacher=pair.weights_hash(teacher))
    return {"references": rows, "cache": pair.answer_cache(folder, teacher, tokenizer, prompts, own, of, "python course/claims.py 5")}


def test(model, tokenizer, n=TESTS, seed=1):
    """1.0 for each of n questions about held-out facts that is answered right in a full sentence, greedily, else 0.0."""
    asked = exchanges(n, "test", seed)
    prompts = tokenizer.encode_batch([prompt for prompt, _ in asked])
    texts = [tokenizer.decode([t for t in new if t != tokenizer.end]).strip()
             for new in brd.greedy(model, prompts, 24, {tokenizer.end})]
    return [float(text in right) for text, (_, right) in zip(texts, asked)]
