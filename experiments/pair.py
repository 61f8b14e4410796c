"""The experiment of the Bellman Distill paper: a teacher, a smaller student, prompts with responses.

    python train.py --teacher=gpt2-xl --student=gpt2 --corpus=dolly.jsonl --p=0.8 --out_dir=out_dolly

    1 text       prompts and responses, one in ten held out (at most 500)
    2 SFT        the student learns the responses
    3 cache      the teacher answers every prompt --answers times, with the sets of its nucleus
    4 students   from the SFT student and at equal tokens: more SFT, the teacher's answers alone, their distributions
    5 test       Rouge-L on the held-out prompts, answers drawn from the nucleus of .8, five draws of the generator

Teacher and student are folders of GPT.save, folders in Hugging Face's format, or names to download (extra [hf]). They must
share a tokenizer. --start_tokens is the length of stage 2, --student_tokens of stage 4. Where no --learning_rate is given it
is 1e-4: pretrained weights want a small one, as Muon moves a matrix by as much whatever its gradient.
Shapes: T tokens of a document.
"""

import dataclasses
import os
import time
from pathlib import Path

import brd
import train
from experiments.report import figure
from data import reads, runs
from data.cache import TeacherCache, CacheWriter
from adapters.gpt2 import locate
from adapters.gpt2_tokenizer import read_tokenizer
from adapters.instructions import read_instructions
from data.batches import Rows
from data.files import read_json
from data.tokenizer import Tokenizer
from model import GPT

TEXT, ANSWER, END = (brd.ROLES.index(role) for role in ("text", "answer", "end"))
MAX_NEW, DRAWS = 128, 5             # tokens of an answer at most; answers to a held-out prompt
RATE = 1e-4                         # the learning rate, where none is given
STUDENTS = ("more_sft", "seqkd", "topp_kd", "bellman")      # what the SFT student goes on with


def open_model(where, config):
    """A folder of GPT.save, or a GPT-2 of Hugging Face's format -> (GPT, Tokenizer)."""
    device = train.pick_device(config)[0]
    if os.path.isfile(os.path.join(where, "model.pt")):
        return GPT.load(where, device), Tokenizer.load(where)
    folder = locate(where)
    tokenizer = read_tokenizer(folder)
    return GPT.from_pretrained(folder, n_vocab=tokenizer.n_vocab, device=device), tokenizer


def open_pair(config):
    """(teacher, student, tokenizer). ValueError with names and sizes where the two do not share one tokenizer."""
    (teacher, theirs), (student, tokenizer) = (open_model(where, config) for where in (config.teacher, config.student))
    if theirs.hash != tokenizer.hash:
        raise ValueError(f"teacher {config.teacher} has {theirs.n_vocab} tokens ({theirs.hash}), student {config.student} has "
                         f"{tokenizer.n_vocab} ({tokenizer.hash}); expected one tokenizer: distributions cannot be compared otherwise")
    return teacher, student, tokenizer


def encode_pairs(pairs, tokenizer, block_size):
    """(prompts, rows): lists of ids of the prompts with room for MAX_NEW tokens, and Rows of prompt, response and END.
    Responses are cut to MAX_NEW tokens, then without END: one that is cut does not end there."""
    prompts, documents = [], []
    asked = tokenizer.encode_batch([prompt for prompt, _ in pairs])
    for prompt, response in zip(asked, tokenizer.encode_batch([" " + response for _, response in pairs])):
        response = (response + [tokenizer.end])[:MAX_NEW]
        if len(prompt) + MAX_NEW <= block_size:
            prompts.append(prompt)
            documents.append((prompt + response, [TEXT] * len(prompt) + [ANSWER] * (len(response) - 1) +
                              [END if response[-1] == tokenizer.end else ANSWER]))
    return prompts, Rows.pack(documents, tokenizer.n_vocab)


def answer_cache(folder, teacher, tokenizer, prompts, config, of, made_by=""):
    """The teacher's answers to the training prompts and their sets; made once, by a command that its header names. Answers
    without an end are kept as far as they go: their last position has no s' and is dropped by the Bellman residual."""
    made_by = made_by or f"python train.py --teacher={config.teacher} --student={config.student} --corpus={config.corpus}"
    if not runs.made(folder / "header.json", of):
        writer = CacheWriter(folder, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash, p=config.p, k_cap=reads.K_CAP,
                             temperature=1.0, teacher={"name": config.teacher, "params": teacher.num_params()}, roles=brd.ROLES,
                             made_by=made_by)
        parts = [(k, at) for k in range(config.answers) for at in range(0, len(prompts), brd.ROWS)]
        for number, (k, at) in list(enumerate(parts, 1))[writer.done:]:
            some = prompts[at:at + brd.ROWS]
            new, sets = reads.draw_with_sets(teacher, some, MAX_NEW, p=config.p, k_cap=reads.K_CAP, temperature=1.0,
                                             stop=tokenizer.end, seed=config.seed + 1_000_003 * k + at)
            for prompt, tokens, kept in zip(some, new, sets):
                roles = [TEXT] * len(prompt) + [END if t == tokenizer.end else ANSWER for t in tokens]
                writer.add(prompt + tokens, roles, [None] * len(prompt) + kept)
            writer.checkpoint(number)
        writer.close()
        runs.note(folder / "header.json", of)
    return Cache(folder, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash)


def test_answers(model, tokenizer, prompts, references):
    """Rouge-L of answers drawn from the nucleus of .8 -> {"value", "se", "n"}; the standard error is over prompts, each with
    the mean of its DRAWS answers."""
    scores = [[] for _ in prompts]
    for seed in range(DRAWS):
        for at in range(0, len(prompts), brd.ROWS):
            new = model.generate(prompts[at:at + brd.ROWS], MAX_NEW, top_p=0.8, stop=tokenizer.end, seed=seed)
            for i, tokens in enumerate(new, at):
                scores[i].append(brd.rouge_l(tokenizer.decode([t for t in tokens if t != tokenizer.end]), references[i]))
    return brd.mean_se([sum(row) / len(row) for row in scores])


def trained(name, model, source, tokens, config, out, tokenizer, of):
    """`model` after training on a source; kept in out/<name>, and taken from there if it is finished. of: what it is made of."""
    folder = out / name
    if finished := train.kept(folder, config, of):
        return finished
    _, seen = train.fit(name, model, [source], [1.0], tokens, config, config.decay, folder=folder)
    train.keep(model, folder, tokenizer, {"tokens_seen": seen}, of)
    return model


def weights_hash(model):
    return runs.digest(*(p.detach().cpu().numpy().tobytes() for p in model.parameters()))


def pair(config):
    """The stages in order; writes results.json and prints its table. Raises ValueError in one line for what cannot be done."""
    begin, given = time.perf_counter(), config.learning_rate != train.Config.learning_rate
    config = dataclasses.replace(config, text_weight=0.0, answer_weight=1.0, learning_rate=config.learning_rate if given else RATE)
    teacher, student, tokenizer = open_pair(config)
    pairs = read_instructions(config.corpus)
    n_test, limit = min(500, max(1, len(pairs) // 10)), min(teacher.config.block_size, student.config.block_size)
    (prompts, rows), (asked, right) = (encode_pairs(part, tokenizer, limit) for part in (pairs[:-n_test], pairs[-n_test:]))
    if not prompts or not asked:
        raise ValueError(f"{config.corpus}: {len(pairs)} prompts, of which {len(prompts)} to learn from and {len(asked)} to be tested "
                         f"on leave room for an answer of {MAX_NEW} tokens in {limit}; expected at least one of each")
    references = [tokenizer.decode(right.document(d)[0][len(prompt):].tolist()) for d, prompt in enumerate(asked)]
    out, _ = runs.open_out(config)
    runs.verify(out)
    path, text = out / "results.json", runs.digest(Path(config.corpus))
    of = runs.made_of("results", config, tokenizer, text, teacher=weights_hash(teacher), student=weights_hash(student))
    if path.exists() and runs.made(path, of):
        before = read_json(path, "remove it, and the students are tested again")
        return print(f"{printable(str(out))}: finished before; --redo starts over\n{table(before['pair'])}")
    print(f"{len(prompts):,} prompts to learn from, {len(asked):,} to be tested on, vocabulary {tokenizer.n_vocab:,}", flush=True)
    with runs.held(out):
        models = treat(config, out, teacher, student, tokenizer, prompts, rows, of)
        results = {name: {"rouge_l": test_answers(model.eval(), tokenizer, asked, references), "params": model.num_params(),
                          "tokens_seen": model.extra.get("tokens_seen", 0)} for name, model in models.items()}
        runs.write_json(path, {"pair": results, "config": runs.noted(config), "made_of": of}, of)
    print(f"{table(results)}\n\n{time.perf_counter() - begin:.0f} s in all; {printable(str(path))} holds every figure")


def treat(config, out, teacher, student, tokenizer, prompts, rows, of):
    """Stages 2 to 4 -> {name: model} of the teacher and every student; rows: the references; of: what all of it is made of."""
    sft = trained("sft", student, rows, config.start_tokens, config, out, tokenizer, {**of, "stage": "student sft"})
    cache = answer_cache(out / "cache", teacher, tokenizer, prompts, config, {**of, "stage": "cache"})
    models, start, header = {"teacher": teacher, "sft": sft}, out / "sft" / "model.pt", out / "cache" / "header.json"
    for name in STUDENTS:
        model = GPT.load(out / "sft", train.pick_device(config)[0])
        objective = dataclasses.replace(config, objective=name if name != "more_sft" else config.objective)
        files = {"start": runs.digest(start)} | ({} if name == "more_sft" else {"teacher's cache": runs.digest(header)})
        models[name] = trained(name, model, rows if name == "more_sft" else cache, config.student_tokens, objective, out, tokenizer,
                               {**of, "stage": f"student {name}", **files})
    return models


def table(results):
    """The results of `pair` as text."""
    lines = [f"\n{'':12}{'parameters':>14}{'tokens':>12}{'Rouge-L':>18}"]
    for name, result in results.items():
        lines.append(f"{printable(name):12}{result['params']:14,}{result['tokens_seen']:12,}{figure(result['rouge_l']):>18}")
    return "\n".join(lines)
