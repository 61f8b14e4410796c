"""The experiment of the Bellman Distill paper (Yu et al. 2026): a teacher, a smaller student, instructions.

    python -m experiments.pair --teacher=gpt2-xl --student=gpt2 --corpus=dolly.jsonl --p=0.8

The student learns the responses (SFT, --start_tokens). The teacher answers every prompt --answers times, and
a cache keeps the sets of its nucleus. From the SFT student start four others, --student_tokens each: more
SFT, the teacher's answers alone, and their sets by two objectives. Test: Rouge-L on one prompt in ten, held
out. Teacher and student are folders of GPT.save or in Hugging Face's format, or names to download (extra
[hf]); they share a tokenizer. A stopped run goes on.
"""

import importlib
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch

import train
from data.batches import DataMix, Rows
from data.cli import parse_options, progress, run_command
from data.figures import cell, mean_se, rouge_l
from data.files import folder_lock, hash_of, open_run, read_json, weights_hash, write_json
from data.machine import pick_device
from data.sets import draw_with_sets
from experiments.answers import MAX_NEW, ROWS, answer_cache, as_document, encode_prompts, open_model
from experiments.teacher import K_CAP

DRAWS = 5                           # answers to a held-out prompt
OBJECTIVES = ("seqkd", "kd", "td")                     # of the students that learn from the cache
FILES = dict.fromkeys(("sft", "more_sft", *OBJECTIVES, "cache", "stages", "results.json"), "see pair.py")


@dataclass
class PairConfig(train.Config):
    teacher: str = ""                # a folder, or the name of a GPT-2
    student: str = ""                # the same
    corpus: str = ""                 # JSONL of prompts with responses (adapters/instructions.py)
    out_dir: str = "out_pair"        # the folder of everything that this run makes
    answers: int = 8                 # of the teacher to each prompt
    learning_rate: float = 1e-4      # small: Muon moves a matrix by as much whatever its gradient
    answer_weight: float = 1.0       # weight of an answer's tokens in the loss
    text_weight: float = 0.0         # weight of a prompt's tokens
    LEFT_OUT = ("corpus_share", "cache", "minutes", "test_paragraphs", "n_layer", "n_head", "n_embd",
                "block_size", "tokenizer", "n_vocab", "init_from", "plain_share", "ner_share", "arms",
                "arm_rate")
    BOUNDS = {**train.Config.BOUNDS, "answers": (0,)}


def encode_pairs(pairs, tokenizer, block_size):
    """(prompts, rows): ids of the prompts with room for MAX_NEW tokens, and Rows of prompt, response and END.
    Responses are cut to MAX_NEW tokens, then without END: one that is cut does not end there."""
    prompts, documents = [], []
    asked = encode_prompts([prompt for prompt, _ in pairs], tokenizer)
    for prompt, response in zip(asked, tokenizer.encode_batch([" " + response for _, response in pairs])):
        if len(prompt) + MAX_NEW <= block_size:
            prompts.append(prompt)
            documents.append(as_document(prompt, (response + [tokenizer.end])[:MAX_NEW], tokenizer))
    if not prompts:
        raise ValueError(f"no prompt leaves room for an answer of {MAX_NEW} tokens in {block_size}")
    return prompts, Rows.pack(documents, tokenizer.n_vocab)


def test_answers(model, tokenizer, prompts, references):
    """Rouge-L of answers drawn from the nucleus of .8, the mean of DRAWS a prompt -> {"value", "se", "n"}."""
    scores = [[] for _ in prompts]
    for at, seed in progress(list(product(range(0, len(prompts), ROWS), range(DRAWS))), "test"):
        news = model.generate(prompts[at:at + ROWS], MAX_NEW, top_p=0.8, stop=tokenizer.end, seed=seed)
        for i, new in enumerate(news, at):
            answer = tokenizer.decode([t for t in new if t != tokenizer.end])
            scores[i].append(rouge_l(answer, references[i]))
    return mean_se([sum(row) / len(row) for row in scores])


def train_pair(teacher, student, tokenizer, prompts, rows, config):
    """Cache and students -> {name: model}, the teacher's too; rows: of prompts with responses."""
    models, command = {"teacher": teacher}, f"python -m experiments.pair --teacher={config.teacher}"
    draw, about = partial(draw_with_sets, teacher, stop=tokenizer.end), {"hash": weights_hash(teacher)}
    cache = answer_cache(Path(config.out_dir) / "cache", draw, tokenizer, prompts, p=config.p, k_cap=K_CAP,
                         about=about | {"params": teacher.num_params()}, seed=config.seed, made_by=command,
                         answers=config.answers)
    plans = [("sft", rows, config.start_tokens), ("more_sft", rows, config.student_tokens)]
    plans += [(name, cache, config.student_tokens) for name in OBJECTIVES]
    for name, source, tokens in plans:
        start = train.finished_model("sft", config) or student
        models[name] = train.finished_model(name, config) or train.train_model(
            name, start, DataMix([source], [1.0]), tokens, config, tokenizer, objective=name)
    return models


def main(arguments=None):
    """The stages in order, results.json and its table; ValueError in one line for what cannot be done."""
    config = parse_options(PairConfig, arguments, __doc__)
    if "" in (config.teacher, config.student, config.corpus):
        raise ValueError("expected a --teacher, a --student and a --corpus; --help explains them")
    torch.set_num_threads(config.threads or torch.get_num_threads())
    both = [open_model(where, pick_device(config.device)[0]) for where in (config.teacher, config.student)]
    (teacher, theirs), (student, tokenizer) = both
    if theirs.hash != tokenizer.hash:
        raise ValueError(f"teacher {config.teacher} has {theirs}, student {config.student} has {tokenizer}; "
                         "expected one tokenizer")
    pairs = importlib.import_module("adapters.instructions").read_instructions(config.corpus)
    n, limit = -min(500, max(1, len(pairs) // 10)), min(model.config.block_size for model, _ in both)
    (prompts, rows), (asked, right) = (encode_pairs(p, tokenizer, limit) for p in (pairs[:n], pairs[n:]))
    right = [tokenizer.decode(right.document(d)[0][len(p):].tolist()) for d, p in enumerate(asked)]
    out, hashes = Path(config.out_dir), [hash_of(Path(config.corpus)), *map(weights_hash, (teacher, student))]
    with folder_lock(out):
        open_run(out, config.decisive() | {"hashes of text and models": hashes}, FILES, config.redo)
        if not (out / "results.json").exists():
            print(f"{len(prompts):,} prompts to learn from, {len(asked):,} to be tested on", flush=True)
            models = train_pair(teacher, student, tokenizer, prompts, rows, config)
            results = {name: {"params": m.num_params(), "tokens_seen": m.extra.get("tokens_seen", 0),
                              "rouge_l": test_answers(m.eval(), tokenizer, asked, right)}
                       for name, m in models.items()}
            write_json(out / "results.json", {"pair": results, "config": config.decisive()})
        results = read_json(out / "results.json", "remove it, and the students are tested again")["pair"]
    print(f"{'':12}{'parameters':>14}{'tokens':>12}{'Rouge-L':>18}")
    for name, row in results.items():
        print(f"{name:12}{row['params']:14,}{row['tokens_seen']:12,}{cell(row['rouge_l']):>18}")


if __name__ == "__main__":
    run_command(main)
