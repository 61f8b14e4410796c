"""The experiment of the Bellman Distill paper (Yu et al. 2026): a teacher, a smaller student, instructions.

    python -m experiments.pair --teacher=HuggingFaceTB/SmolLM2-135M-Instruct --corpus=dolly.jsonl
    python -m experiments.pair --teacher=gpt2-xl --student=gpt2 --corpus=dolly.jsonl --plain=my.txt --stemmed
    python -m experiments.pair --cache=out_fill/cache --corpus=dolly.jsonl --tests=selfinst.jsonl,vicuna.jsonl

The student is made with the teacher's tokenizer, or is a --student with the same one. It learns the responses
(SFT, --start_tokens). The teacher, tuned on them before (--tune_tokens), answers every prompt --answers
times, and a cache keeps the sets of its nucleus; or a --cache is there already. From the SFT student start
four others, --student_tokens each: more SFT, the teacher's answers alone, and their sets by two objectives;
each reads --plain text beside it. Test: Rouge-L on the last tenth of the prompts (500 at most), held out, and
on those of --tests; no student learns from a prompt of a test.

A teacher is what experiments/answers.py opens; a student a folder of GPT.save or a GPT-2. p and alpha are
those of the paper, whose loss is that of --leak=0. A stopped run goes on.
"""

import importlib
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, product
from pathlib import Path

import torch
import torch.nn.functional as F

import train
from data.batches import DataMix, Rows
from data.cache import TeacherCache, cache_hash
from data.cli import parse_options, progress, run_command
from data.documents import ROLES, role_weights
from data.figures import cell, mean_se, rouge_l
from data.files import (folder_lock, hash_of, is_finished, open_run, read_json, save_finished, weights_hash,
                        write_json)
from data.machine import pick_device
from data.own_text import read_text, text_files, windows
from data.tokenizer import Tokenizer
from experiments.answers import (ANSWER, MAX_NEW, ROWS, TEXT, answer_cache, as_document, check_teacher,
                                 encode_prompts, is_served, open_model, open_teacher)
from experiments.teacher import K_CAP
from model import GPT
from td_distill import add_heads, weighted_mean

DRAWS, TOP_P, TOP_K = 5, 0.8, 1024  # answers to a prompt of a test; TOP_K spares sorting a large vocabulary
OBJECTIVES = ("seqkd", "kd", "td")                     # of the students that learn from the cache
FILES = dict.fromkeys(("teacher", "sft", "more_sft", *OBJECTIVES, "cache", "stages", "results.json"),
                      "see pair.py")


@dataclass
class PairConfig(train.Config):
    teacher: str = ""                # a folder, or the name of a model
    cache: str = ""                  # or the folder of a cache that a teacher has filled
    student: str = ""                # a folder, or the name of a GPT-2; "": made with the sizes below
    corpus: str = ""                 # JSON of prompts with responses (adapters/instructions.py)
    tests: str = ""                  # more such files, with commas between, to be tested on
    stemmed: bool = False            # Rouge-L of stems of English words, the paper's (extra [rouge])
    out_dir: str = "out_pair"        # the folder of everything that this run makes
    dtype: str = "auto"              # of a teacher of transformers: auto (as saved), float32 or bfloat16
    model: str = ""                  # of a server: the model's name there
    tokenizer: str = ""              # of a server: the folder of the model's tokenizer.json
    parallel: int = 4                # of a server: requests in flight
    timeout: float = 300.0           # of a server: seconds for a request
    start_tokens: int = 100_000      # of the responses, in SFT
    answers: int = 8                 # of the teacher to each prompt
    k_cap: int = K_CAP               # most tokens of a set
    shared_heads: int = 2            # of a student's four heads those whose keys are their queries
    tune_tokens: int = 0             # of the responses, on which the teacher is tuned first
    tune_rate: float = 1e-5          # learning rate of that
    plain: str = ""                  # a text, or a folder of texts, that students read after SFT
    plain_share: float = 0.2         # part of their tokens that it is
    plain_kd: float = 0.0            # part of its loss that is KD on the whole vocabulary; the authors' is .5
    learning_rate: float = 0.0       # 0: .003, or 1e-4 with a --student, whose weights Muon would forget
    p: float = 0.8                   # mass of the teacher's sets A_p
    alpha: float = 0.1               # "td": the TD residual costs its square / (4 alpha)
    answer_weight: float = 1.0       # weight of an answer's tokens in the loss, and of plain text
    text_weight: float = 0.0         # weight of a prompt's tokens
    LEFT_OUT = ("corpus_share", "minutes", "test_paragraphs", "n_vocab", "init_from", "ner_share",
                "arms", "arm_rate")
    PLACE = (*train.Config.PLACE, "parallel", "timeout")
    CHOICES = {**train.Config.CHOICES, "dtype": ["auto", "float32", "bfloat16"]}
    BOUNDS = {**train.Config.BOUNDS, **dict.fromkeys(("answers", "tune_rate", "timeout"), (0,)),
              "k_cap": (0, 65535, "16 bits"), "parallel": (0, 1000), "learning_rate": (),
              "plain_share": (0, 0.8), "plain_kd": (None, 1)}

    def __post_init__(self):
        super().__post_init__()
        check_teacher(self)
        self.refuse(is_served(self.teacher), "on a server, which gives answers alone",
                    "dtype tune_tokens tune_rate plain_kd")
        self.refuse(self.cache, "beside --cache",
                    "teacher dtype answers k_cap tune_tokens tune_rate plain_kd")
        self.refuse(self.student, "beside --student", "layout n_layer n_head n_embd block_size")
        self.refuse(not self.plain, "without --plain", "plain_share plain_kd")
        self.refuse(not self.tune_tokens, "without --tune_tokens", "tune_rate")
        if not self.learning_rate:
            self.learning_rate = 1e-4 if self.student else 0.003


# --- the prompts ------------------------------------------------------------------------------------------


def read_pairs(config):
    """-> (pairs to learn from, {name of a test: pairs}); a pair is (prompt, response), two str. Held out is
    the last tenth of config.corpus, 500 at most. ValueError for two tests of one name, and for no prompt
    that is in no test."""
    read = importlib.import_module("adapters.instructions").read_instructions
    pairs, files = read(config.corpus), [file for file in config.tests.split(",") if file]
    n = len(pairs) - min(500, max(1, len(pairs) // 10))
    tests = {"held out": pairs[n:]} | {Path(file).stem: read(file) for file in files}
    if len(tests) <= len(files):
        raise ValueError(f"--tests={config.tests}: two files of one name, or \"held out\"; expected others")
    tested = {prompt for some in tests.values() for prompt, _ in some}
    free = [pair for pair in pairs if pair[0] not in tested]
    if not free:
        raise ValueError(f"{config.corpus}: no prompt is left to learn from, all are those of a test")
    if len(free) < n:
        print(f"{n - len(free):,} of {n:,} prompts to learn from left out: they are those of a test too")
    return free, tests


def encode_pairs(name, pairs, tokenizer, block_size):
    """Pairs of read_pairs -> (prompts, rows): those prompts (ids) with room for MAX_NEW tokens, and Rows of
    prompt, response and END; a line says how many. A response is cut to MAX_NEW tokens, END included: one
    that is cut does not end there."""
    lead, kept, documents = " ", [], []
    if not isinstance(tokenizer, Tokenizer) and tokenizer.template.chat_template:
        lead = ""                                       # the template ends where the answer begins
    asked, responses = zip(*pairs)
    answers = tokenizer.encode_batch([lead + response for response in responses])
    for prompt, answer in zip(encode_prompts(asked, tokenizer), answers):
        if len(prompt) + MAX_NEW <= block_size:
            kept.append(prompt)
            documents.append(as_document(prompt, (answer + [tokenizer.end])[:MAX_NEW], tokenizer))
    if not kept:
        raise ValueError(f"{name}: no prompt leaves room for an answer of {MAX_NEW} tokens in {block_size}")
    print(f"{name}: {len(kept):,} of {len(pairs):,} prompts leave room for an answer", flush=True)
    return kept, Rows.pack(documents, tokenizer.n_vocab)


def encode_tests(tests, tokenizer, block_size):
    """The tests of read_pairs -> {name: (prompts, references)}, lists of ids and of str, cut as encode_pairs
    cuts them."""
    encoded = {}
    for name, pairs in tests.items():
        prompts, rows = encode_pairs(name, pairs, tokenizer, block_size)
        answers = (tokens[roles == ANSWER] for tokens, roles in map(rows.document, range(len(rows))))
        encoded[name] = prompts, [tokenizer.decode(answer) for answer in answers]
    return encoded


def read_plain(config, tokenizer, block_size):
    """The text of config.plain as Rows whose tokens all weigh as answers do, or None without one."""
    if not config.plain:
        return None
    rows = windows(tokenizer.encode(read_text(config.plain)), block_size, tokenizer.n_vocab)
    rows.roles[:] = ANSWER
    return rows


# --- the teacher: it is tuned, and gives what students read -----------------------------------------------


def next_logits(teacher, ids, **options):
    """ids (B, T) long -> logits (B, T, V) float32 of a GPT or an HFTeacher; options of the latter's model."""
    if isinstance(teacher, GPT):
        return teacher(ids)
    logits = teacher.hf(input_ids=ids, use_cache=False, **options).logits[..., :teacher.n_vocab].float()
    return F.pad(logits, (0, teacher.n_vocab - logits.size(-1)), value=-torch.inf)      # see HFTeacher.draw


def response_loss(_, rows, batch, config, device, denominator, *, teacher):
    """train.loss_terms of an HFTeacher, with logits in those columns alone where some row has a weight."""
    ids, targets, weights = (t.to(device) for t in rows.batch(batch.documents, role_weights(config)))
    columns = weights.any(0).nonzero()[:, 0]                                                       # (n,)
    logits = next_logits(teacher, ids, logits_to_keep=columns)                                  # (B, n, V)
    nll = F.cross_entropy(logits.flatten(0, 1), targets[:, columns].flatten(), reduction="none")
    return {"hard": weighted_mean(nll, weights[:, columns].flatten(), denominator)}


def tuned_teacher(teacher, tokenizer, rows, config):
    """A GPT or an HFTeacher after config.tune_tokens of rows, kept in out_dir/teacher -> as open_teacher."""
    out, folder = Path(config.out_dir), Path(config.out_dir) / "teacher"
    if not is_finished(out, "teacher"):
        if isinstance(teacher, GPT):
            model, save, loss = teacher, teacher.save, train.loss_terms
        else:
            model, loss = teacher.hf, partial(response_loss, teacher=teacher)
            save = model.save_pretrained
        settings = replace(config, learning_rate=config.tune_rate)
        train.fit("teacher", model.float(), DataMix([rows], [1.0]), config.tune_tokens, settings, folder,
                  loss=loss)
        save(folder)
        tokenizer.save(folder)
        save_finished(out, "teacher", *sorted(folder.glob("model*")))
        (folder / "training.pt").unlink(missing_ok=True)
    return open_teacher(replace(config, teacher=str(folder)))


def untested_parts(cache, tests, block_size):
    """The documents of a cache whose prompts are in no test -> list of TeacherCache. ValueError where there
    is none, and for one that is longer than the student's rows."""
    asked = {tuple(prompt) for prompts, _ in tests.values() for prompt in prompts}
    documents = (cache.document(i)[:2] for i in range(len(cache)))
    free = [tuple(tokens[roles == TEXT].tolist()) not in asked for tokens, roles in documents]
    parts, at = [], 0
    for is_free, run in groupby(free):
        end = at + len(list(run))
        if is_free:
            parts.append(cache.part(at, end))
        at = end
    if not parts:
        raise ValueError(f"{cache.folder}: answers to prompts of the test alone, none to learn from")
    if (longest := max(int(part.lengths.max()) for part in parts) - 1) > block_size:
        raise ValueError(f"{cache.folder}: a document of {longest} tokens to predict, but the student's "
                         f"block_size is {block_size}; try a larger --block_size")
    print(f"{len(cache):,} answers of the teacher, {len(cache) - sum(free):,} to prompts of a test left out")
    return parts


# --- the students -----------------------------------------------------------------------------------------


def dense_loss(model, source, batch, config, device, denominator, objective, taught):
    """train.loss_terms, but for plain text; taught: (its Rows, a teacher). There it is config.plain_kd times
    the cross-entropy with the teacher's whole distribution, and the rest with the text."""
    plain, teacher = taught
    if source is not plain:
        return train.loss_terms(model, source, batch, config, device, denominator, objective)
    ids, targets, weights = (t.to(device) for t in source.batch(batch.documents, role_weights(config)))
    with torch.no_grad():
        target = config.plain_kd * next_logits(teacher, ids).softmax(-1)                        # (B, T, V)
        target.scatter_add_(-1, targets[..., None], torch.full_like(target[..., :1], 1 - config.plain_kd))
    nll = F.cross_entropy(model(ids).flatten(0, 1), target.flatten(0, 1), reduction="none")     # (B * T,)
    return {"plain": weighted_mean(nll, weights.flatten(), denominator)}


def train_students(student, tokenizer, rows, parts, taught, config):
    """-> {name: model}. rows: of prompts with responses; parts: list of TeacherCache; taught: (Rows of plain
    text or None, the teacher or None)."""
    models, plain = {}, taught[0]
    plans = [("sft", [rows], config.start_tokens), ("more_sft", [rows], config.student_tokens)]
    plans += [(name, parts, config.student_tokens) for name in OBJECTIVES]
    for name, sources, tokens in plans:
        models[name] = train.finished_model(name, config)
        if models[name] is None:
            start, loss = train.finished_model("sft", config) or student, name
            sizes = [int((source.lengths - 1).sum()) for source in sources]
            shares = [size / sum(sizes) for size in sizes]
            if plain is not None and name != "sft":
                shares = [(1 - config.plain_share) * share for share in shares] + [config.plain_share]
                sources = [*sources, plain]
            if config.plain_kd:
                loss = partial(dense_loss, objective=name, taught=taught)
                if name == "td":
                    add_heads(start, config.seed)
            models[name] = train.train_model(name, start, DataMix(sources, shares), tokens, config, tokenizer,
                                             objective=loss)
    return models


# --- the tests --------------------------------------------------------------------------------------------


def rouge_of(stemmed):
    """The function (text, reference) -> Rouge-L F; stemmed: of the package rouge_score."""
    if not stemmed:
        return rouge_l
    from rouge_score import rouge_scorer
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    return lambda text, reference: scorer.score(reference, text)["rougeL"].fmeasure


def score_answers(name, generate, figures, *, tokenizer, tests, config):
    """Adds to results.json, unless `name` is there, its figures (dict) and "rouge_l", of the mean of DRAWS
    answers a prompt: {name of a test: {"value", "se", "n"}}.

    generate(prompts, seed=): lists of new ids; tests: as encode_tests returns them."""
    path, results, rouge = Path(config.out_dir) / "results.json", {}, rouge_of(config.stemmed)
    if path.exists():
        results = read_json(path, "remove it, and all models are tested again", "pair")["pair"]
    if name in results:
        return
    found, ends = {}, tokenizer.ends
    for test, (prompts, references) in tests.items():
        scores = [[] for _ in prompts]
        for at, seed in progress(list(product(range(0, len(prompts), ROWS), range(DRAWS))), f"test {test}"):
            for i, new in enumerate(generate(prompts[at:at + ROWS], seed=seed), at):
                answer = tokenizer.decode([t for t in new if t not in ends])
                scores[i].append(rouge(answer, references[i]))
        found[test] = mean_se([sum(row) / len(row) for row in scores])
    results[name] = {**figures, "rouge_l": found}
    write_json(path, {"pair": results, "config": config.decisive()})


def run_pair(opened, student, tokenizer, pairs, tests, config):
    """Teacher, cache, students and their tests. opened: what open_teacher returns, None where a cache is
    given; pairs, tests: as read_pairs returns them."""
    out, block, teacher = Path(config.out_dir), student.config.block_size, None
    limit = min(block, opened.block_size if opened else block)
    prompts, rows = encode_pairs("to learn from", pairs, tokenizer, limit)
    tests, plain = encode_tests(tests, tokenizer, limit), read_plain(config, tokenizer, limit)
    test = partial(score_answers, tokenizer=tokenizer, tests=tests, config=config)
    if opened:
        if config.tune_tokens:
            opened = tuned_teacher(opened.model, tokenizer, rows, config)
        draw, _, _, about, teacher = opened
        cache = answer_cache(out / "cache", draw, tokenizer, prompts, p=config.p, k_cap=config.k_cap,
                             about=about, seed=config.seed, answers=config.answers,
                             made_by=f"python -m experiments.pair --teacher={config.teacher}")
        k_cap = TOP_K if teacher else config.k_cap              # a server lists no more tokens
        drawn = partial(draw, max_new=MAX_NEW, p=TOP_P, k_cap=k_cap, temperature=1.0)
        test("teacher", lambda some, seed: drawn(some, seed=seed)[0],
             {"params": about.get("params"), "tokens_seen": config.tune_tokens})
    else:
        cache = TeacherCache(config.cache, tokenizer.n_vocab, tokenizer.hash)
    parts = untested_parts(cache, tests, block)
    for name, model in train_students(student, tokenizer, rows, parts, (plain, teacher), config).items():
        generate = partial(model.eval().generate, max_new_tokens=MAX_NEW, top_p=TOP_P, top_k=TOP_K,
                           stop=tokenizer.ends)
        test(name, generate, {"params": model.num_params(), "tokens_seen": model.extra["tokens_seen"]})


def open_student(config, tokenizer):
    """The student, made with a tokenizer, or config.student; ValueError where that has another tokenizer."""
    if not config.student:
        return train.new_model(config.n_layer, config.n_embd, tokenizer, config)
    student, own = open_model(config.student, pick_device(config.device)[0])
    if own.hash != tokenizer.hash:
        raise ValueError(f"teacher {config.teacher or config.cache} has {tokenizer}, student "
                         f"{config.student} has {own}; expected one tokenizer")
    if student.config.n_vocab != own.n_vocab:
        raise ValueError(f"{config.student}: {student.config.n_vocab} embeddings, but {own.n_vocab} ids of "
                         "tokens; expected one for each")
    return student


def main(arguments=None):
    """The stages in order, and the table of results.json; ValueError in one line for what cannot be done."""
    config = parse_options(PairConfig, arguments, __doc__)
    if not config.corpus or not config.teacher + config.cache:
        raise ValueError("expected a --corpus, and a --teacher or a --cache; --help explains them")
    torch.set_num_threads(config.threads or torch.get_num_threads())
    rouge_of(config.stemmed)                                        # a missing package is told before work
    opened = None
    if config.cache:
        teacher, tokenizer = cache_hash(config.cache, config.p, ROLES), Tokenizer.load(config.cache)
    else:
        opened = open_teacher(config)
        tokenizer, teacher = opened.tokenizer, opened.about
    student, (pairs, tests) = open_student(config, tokenizer), read_pairs(config)
    out, files = Path(config.out_dir), [config.corpus, *filter(None, config.tests.split(","))]
    if config.plain:
        files += text_files(config.plain)
    inputs = {"teacher's weights or cache": teacher, "student's weights": weights_hash(student),
              "hash of texts": hash_of(*map(Path, files))}
    with folder_lock(out):
        open_run(out, config.decisive() | inputs, FILES, config.redo)
        run_pair(opened, student, tokenizer, pairs, tests, config)
    show(read_json(out / "results.json", "")["pair"], config)


def show(results, config):
    """Prints the table of results.json."""
    stems = ", of stems" if config.stemmed else ""
    print(f"\nRouge-L{stems}; seed {config.seed}\n{'':12}{'parameters':>14}{'tokens':>12}"
          + "".join(f"{name:>18.17}" for name in results["sft"]["rouge_l"]))
    for name, row in results.items():
        params = f"{row['params']:,}" if row["params"] else "-"
        print(f"{name:12}{params:>14}{row['tokens_seen']:12,}"
              + "".join(f"{cell(figure):>18}" for figure in row["rouge_l"].values()))


if __name__ == "__main__":
    run_command(main)
