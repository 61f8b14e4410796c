"""A teacher for the arms of train.py: a larger reader is trained, reads new text, and fills a cache.

    python -m experiments.teacher                       # trains the teacher, fills out_teacher/cache
    python train.py --cache=out_teacher/cache           # students learn from it
    python -m experiments.teacher fill --help           # any language model answers prompts: answers.py

The teacher learns from the scripted reader's annotations. Then it reads text that nobody has annotated, and
draws every token from its top-p set; the cache keeps the token with the set. A stopped run goes on.
"""

import importlib
import random
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

import brd
import train
from data import world
from data.annotations import parse_question
from data.batches import DataMix
from data.cache_tools import CacheWriter
from data.cli import parse_options, printable, progress, run_command
from data.documents import QUESTIONS_FIRST, ROLES, course_tokenizer, is_own, levels_of, reading_mix
from data.figures import cell
from data.files import folder_lock, is_finished, open_run, save_finished, weights_hash
from data.machine import MEMORY, check_weights, pick_device
from data.sets import draw_with_sets
from model import GPT, GPTConfig

K_CAP, ROWS = 64, 64    # most tokens that the cache keeps of one distribution; paragraphs read together
CHUNK = 256             # documents that are read between two checkpoints of the cache
DOCUMENT_TOKENS = 75    # of an average document of the cache
MAX_NEW = 96            # tokens of a reading at most, for the cache
SHARES = {"ner": 0.25, "qra": 0.75}                                         # parts of the cache's documents
FILES = {"stages": "finished stages", "teacher": "the model", "cache/model": "the same in half precision",
         "cache": "its cache"}
FIGURES = ("entity_f1", "answer.wh", "answer.yes_no", "answer.attitude")    # noted in the cache's header


@dataclass
class TeacherConfig(train.Config):
    out_dir: str = "out_teacher"     # the folder of the teacher and its cache
    teacher_tokens: int = 4_000_000  # what the teacher reads
    cache_tokens: int = 160_000      # length of the cache
    teacher_layer: int = 4           # blocks of the teacher
    teacher_embd: int = 192          # channels of the teacher
    LEFT_OUT = ("corpus_share", "cache", "minutes", "start_tokens", "student_tokens", "n_layer", "n_embd",
                "tokenizer", "init_from", "arms", "arm_rate", "leak", "alpha", "gamma")
    BOUNDS = {**train.Config.BOUNDS, "teacher_tokens": (0, MEMORY // 100, "memory"),
              "cache_tokens": (DOCUMENT_TOKENS, MEMORY // 100, "memory")}

    def __post_init__(self):
        super().__post_init__()
        sizes = self.n_vocab, self.block_size, self.teacher_layer, self.n_head, self.teacher_embd
        check_weights(GPTConfig(*sizes))


def train_teacher(config, tokenizer, mix=None):
    """The teacher, trained on config.teacher_tokens tokens of a DataMix (None: the scripted reader's) and
    tested -> model; kept in out_dir/teacher. model.extra has "tokens_seen" and "reading": the figures of
    brd.eval_fresh_text."""
    model = train.finished_model("teacher", config)
    if model is None:
        model = train.new_model(config.teacher_layer, config.teacher_embd, tokenizer, config)
        if mix is None:
            sources, shares = reading_mix(config.teacher_tokens, config, tokenizer, f"teacher {config.seed}")
            mix = DataMix(sources, shares, [QUESTIONS_FIRST, QUESTIONS_FIRST, 0.0])
        train.train_model("teacher", model, mix, config.teacher_tokens, config, tokenizer)
    if "reading" not in model.extra:
        model.extra["reading"] = brd.eval_fresh_text(model, tokenizer, config.test_paragraphs)
        model.save(Path(config.out_dir) / "teacher", model.extra)
    return model


def reading_roles(tokens, behaviour, tokenizer):
    """The role of every token of one reading, as in a rendered document: list of str.

    The answer of a question line is the longest run of tokens at its end whose stripped text is the answer
    that parse_question finds. A line that cannot be parsed is all "question"."""
    if behaviour == "ner":
        return ["entity"] * len(tokens)
    roles, start = ["question"] * len(tokens), 0
    for end in range(1, len(tokens) + 1):
        if end < len(tokens) and "\n" not in tokenizer.decode(tokens[end - 1:end]):
            continue
        parsed = parse_question(tokenizer.decode(tokens[start:end]))
        for i in range(start, end if parsed else start):
            if tokenizer.decode(tokens[i:end]).strip() == parsed["answer"]:
                roles[i:end] = ["answer"] * (end - i)
                break
        start = end
    return roles


def read_batch(model, tokenizer, paragraphs, behaviour, max_new, rng, **drawing):
    """Documents of paragraphs that are read together: lists of (token, role, set or None), None where one is
    left out. drawing: p, k_cap and temperature of draw_with_sets. See teacher_reads."""
    documents, sep, ends = [[] for _ in paragraphs], tokenizer.sep, {tokenizer.sep, tokenizer.end}
    for k in range(max(map(len, paragraphs))):                  # round k reads sentence k of every paragraph
        for i, sentences in enumerate(paragraphs):
            if documents[i] is not None and k < len(sentences):
                ids = tokenizer.encode(" " + sentences[k] if k else sentences[k])
                documents[i] += [(token, "text", None) for token in ids] + [(sep, "sep", None)]
                if len(documents[i]) + max_new >= model.config.block_size:
                    documents[i] = None
        rows = [i for i, sentences in enumerate(paragraphs) if documents[i] and k < len(sentences)]
        prompts, firsts = [[token for token, *_ in documents[i]] for i in rows], [[] for _ in rows]
        if k == 0:                              # ner and qra copies begin alike: the first token decides
            generator = torch.Generator(next(model.parameters()).device).manual_seed(rng.getrandbits(63))
            tokens = brd.first_tokens(
                model, tokenizer, prompts, [paragraphs[i][0] for i in rows], behaviour,
                temperature=drawing["temperature"], top_p=drawing["p"], generator=generator)
            prompts, firsts = [prompt + [t] for prompt, t in zip(prompts, tokens)], [[t] for t in tokens]
        drawn = draw_with_sets(model, prompts, max_new, stop=ends, seed=rng.getrandbits(63), **drawing)
        for i, first, new, sets in zip(rows, firsts, *drawn):
            if first == [sep]:                  # the reading is empty, what was drawn behind it means nothing
                new, sets = [], []
            new, sets = first + new, [None] * len(first) + sets
            if new[-1] == sep:
                documents[i] += zip(new, reading_roles(new[:-1], behaviour, tokenizer) + ["sep"], sets)
            else:
                documents[i] = None
    end = [(tokenizer.end, "end", None)]
    return [None if document is None else document + end for document in documents]


def teacher_reads(model, tokenizer, paragraphs, writer, behaviour, seed, max_new=64):
    """The teacher reads paragraphs (lists of str); its readings go into the cache of a CacheWriter, drawn by
    the p, k_cap and temperature of its header.

        s1 SEP <drawn until SEP> " s2" SEP <drawn until SEP> ... END     behaviour "ner" or "qra"

    Without a set stand the sentences with the SEP behind each, END, and the first token of the first reading,
    which decides the behaviour (brd.first_tokens). The same seed draws the same tokens. A paragraph is left
    out where a reading does not end within max_new tokens, or where block_size has no room for them."""
    rng, drawing = random.Random(seed), {name: writer.header[name] for name in ("p", "k_cap", "temperature")}
    for some in (paragraphs[at:at + ROWS] for at in range(0, len(paragraphs), ROWS)):
        for document in read_batch(model, tokenizer, some, behaviour, max_new, rng, **drawing):
            if document:
                tokens, roles, sets = zip(*document)
                writer.add(tokens, [ROLES.index(role) for role in roles], sets)


def write_cache(folder, teacher, tokenizer, config):
    """Fills a cache with the teacher's readings of new text of its world, of the last level, about
    config.cache_tokens tokens. One that was stopped goes on behind its last chunk. ValueError where no
    reading was finished."""
    figures = {place: {name: cell(found[name]) for name in FIGURES}
               for place, found in teacher.extra["reading"].items()}
    about = {"hash": weights_hash(teacher), "params": teacher.num_params(), "figures": figures,
             "tokens_seen": teacher.extra["tokens_seen"]}
    amounts = f"--teacher_tokens={config.teacher_tokens} --cache_tokens={config.cache_tokens}"
    writer = CacheWriter(
        folder, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash, p=config.p, k_cap=K_CAP,
        temperature=1.0, teacher=about, roles=ROLES,
        made_by=f"python -m experiments.teacher --seed={config.seed} {amounts}")
    rng, n = random.Random(f"cache {config.seed}"), config.cache_tokens // DOCUMENT_TOKENS
    level = levels_of(config.corpus)[-1]
    for number, start in enumerate(progress(range(0, n, CHUNK), "cache"), 1):
        for behaviour, share in SHARES.items():
            texts = [world.draw_sentences(rng, level) for _ in range(round(min(CHUNK, n - start) * share))]
            if number > writer.done:
                teacher_reads(teacher, tokenizer, texts, writer, behaviour, config.seed + start, MAX_NEW)
        writer.checkpoint(max(number, writer.done))
    if not writer.close()["documents"]:
        (folder / "header.json").unlink()
        raise ValueError(f"the teacher finished none of its readings; try more than {amounts}")


def main(arguments=None):
    """The command; ValueError or OSError, in one line, for what the user can mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["fill"]:
        return importlib.import_module("experiments.answers").main(arguments[1:])
    config = parse_options(TeacherConfig, arguments, __doc__)
    if is_own(config.corpus):
        raise ValueError(f"--corpus={config.corpus}; expected annotations: world, primer or a .jsonl file")
    device, _ = pick_device(config.device)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    out, tokenizer = Path(config.out_dir), course_tokenizer(config.corpus, config.n_vocab)
    with folder_lock(out):
        open_run(out, config.decisive() | {"tokenizer hash": tokenizer.hash}, FILES, config.redo)
        teacher = train_teacher(config, tokenizer)
        if not is_finished(out, "cache"):
            for figure in chain(*(figures.values() for figures in teacher.extra["reading"].values())):
                figure.pop("groups", None)                      # thousands of counts that nobody reads
            folder, extra = out / "cache", {name: teacher.extra[name] for name in ("tokens_seen", "reading")}
            teacher.half().save(folder / "model", extra)        # half the size; the cache is of these weights
            write_cache(folder, GPT.load(folder / "model", device), tokenizer, config)
            save_finished(out, "cache", folder / "header.json")
    print(f"finished; python train.py --cache={printable(str(out / 'cache'))} learns from it")


if __name__ == "__main__":
    run_command(main)
