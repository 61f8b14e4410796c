"""The teacher reads: its top-p sets, kept while it draws, fill a cache for students to come.

    writer = CacheWriter("out/cache", ...)                        # data/cache.py
    teacher_reads(teacher, tokenizer, paragraphs, writer, copy="qra", p=0.95, k_cap=64, seed=1)
    writer.close()

Shapes: N rows of any kind, K teacher tokens kept, V vocabulary.
"""

import hashlib
import random
import shutil
import tempfile
from itertools import chain
from types import SimpleNamespace

import torch
from tqdm import tqdm

from data import machine as ranks, world
from data.annotations import parse_question
from data.cache import MASKED, CacheWriter
from model import most_probable

SLACK = 1e-6        # float32 rounding of a mass: .5 + .3 reaches p = .8
K_CAP = 64          # most tokens that the cache of a run keeps of one distribution
CHUNK = 256         # documents of it that are made, and kept, at a time


def top_p_sets(logits, p, k_cap, temperature=1.0):
    """The smallest set of most probable tokens whose mass reaches p, for each row: A_p(s) of the paper.

    logits (N, V) float; 0 < p <= 1; k_cap: at most so many tokens are kept, even where they do not reach p.
    Returns ids (N, K) long, log_probs (N, K) float32, mask (N, K) bool, with K the largest set among the rows. The
    token that crosses p is in the set; the most probable comes first, among equals the lower id. Tokens of probability
    0 are never kept. Where mask is False: id 0 and log-probability MASKED.

    log_probs are the teacher's own, log softmax(logits / temperature), not renormalised over the set: the mass that is
    missing is known. This is the one place where a temperature is applied; no loss has one.
    Raises ValueError for p, k_cap or temperature out of range, and for NaN logits.
    """
    if not 0 < p <= 1 or k_cap < 1 or temperature <= 0:
        raise ValueError(f"p={p}, k_cap={k_cap}, temperature={temperature}; "
                         "expected 0 < p <= 1, k_cap >= 1, temperature > 0")
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)      # (N, V)
    values, ids = most_probable(log_probs, k_cap)                            # (N, k), k = min(k_cap, V)
    if torch.isnan(values).any():
        raise ValueError("the teacher's logits hold NaN or only infinities; expected numbers: check its checkpoint")
    probs = values.double().exp()
    before = probs.cumsum(-1) - probs                                        # mass of the tokens ranked above
    mask = (before < p - SLACK) if p < 1 else torch.ones_like(before, dtype=torch.bool)
    mask[:, 0] = True                                                        # also for p below SLACK
    mask &= values > -torch.inf
    width = int(mask.sum(-1).max()) if len(mask) else 0
    ids, values, mask = ids[:, :width], values[:, :width], mask[:, :width]   # (N, K)
    return ids.masked_fill(~mask, 0), values.masked_fill(~mask, MASKED), mask


def narrow(log_probs, mask, p):
    """The part of cached sets (..., K) that a smaller p would have kept, as a mask; sets stand most probable first."""
    probs = log_probs.double().exp() * mask
    return mask & (probs.cumsum(-1) - probs < p - SLACK)


def narrow_cache(cache, folder, p):
    """Writes the part of a cache that a smaller p would have kept, into another folder; the documents are the same.

    The tokens were drawn from the larger sets, so some of them now lie outside. ValueError for a p that is not smaller."""
    if not p < cache.header["p"]:
        raise ValueError(f"{cache.folder}: made with p={cache.header['p']}, which does not hold the sets of p={p}; try a smaller p")
    names = ("n_vocab", "k_cap", "temperature", "teacher", "roles", "made_by")
    writer = CacheWriter(folder, tokenizer_hash=cache.header["tokenizer"], p=p, **{name: cache.header[name] for name in names})
    for d in range(len(cache)):
        batch = cache.batch([d])
        ids, log_probs = batch["ids"][0].numpy(), batch["log_probs"][0].numpy()                      # (T, K)
        counts = narrow(batch["log_probs"], batch["mask"], p)[0].sum(-1).tolist()                    # a prefix of each set
        writer.add(batch["tokens"][0].tolist(), batch["roles"][0].tolist(),
                   [(ids[t, :n], log_probs[t, :n]) if n else None for t, n in enumerate(counts)])
    return writer.close()


def sampled_sets(logits, n, generator=None):
    """Sets for topp_forward_kl that are not biased by a cut: n draws of the teacher, each token weighted count / n.

    logits (N, V) float -> ids (N, n) long, log_probs (N, n) float32 = log(count / n), mask (N, n) bool: True where a
    token stands for the first time. The mean of the weights over draws is softmax(logits), so the gradient of the
    loss at leak 1 is, in the mean, that of the whole KL ("Sparse Logit Sampling", ACL 2025, proposal = teacher;
    about 12 distinct tokens do). The figures kl and entropy are biased; and these are no A_p: not for bellman_distill.
    """
    ids = torch.multinomial(torch.softmax(logits.float(), dim=-1), n, replacement=True, generator=generator)
    same = ids[:, :, None] == ids[:, None, :]                                # (N, n, n)
    mask = ~same.tril(diagonal=-1).any(-1)
    return ids.masked_fill(~mask, 0), (same.sum(-1) / n).log().masked_fill(~mask, MASKED), mask


def draw_with_sets(model, prompts, max_new, *, p, k_cap, temperature, stop, seed):
    """Continue every prompt with tokens drawn from their top-p sets -> (new, sets), two lists of lists, one a prompt:
    the new ids, and for each the (ids (K,), log_probs (K,)) that CacheWriter.add takes. See GPT.generate."""
    sets = [[] for _ in prompts]

    def watch(rows, logits, drawn):
        kept = (x.cpu().numpy() for x in top_p_sets(logits, p, k_cap, temperature))
        for row, ids, log_probs, mask in zip(rows.tolist(), *kept):
            sets[row].append((ids[mask], log_probs[mask]))

    # A little less than p: a token at the very edge must not be drawn by one rounding and left out by another.
    new = model.generate(prompts, max_new, temperature=temperature, top_k=k_cap, top_p=max(p - 2 * SLACK, SLACK),
                         stop=stop, seed=seed, watch=watch)
    return new, sets


def reading_roles(tokens, copy, tokenizer):
    """The role of every token of one reading, as rendering would have it: list of "entity", "question" or "answer".

    Of a question line, the answer is the longest run of tokens at its end whose text, but for white space around, is
    the answer that parse_question finds; opener, question and bridge before it are "question", and so is all of a line
    that cannot be parsed.
    """
    if copy == "ner":
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


def read_batch(model, tokenizer, paragraphs, copy, max_new, rng, **drawing):
    """The documents of teacher_reads for paragraphs that share a batch: for each (tokens, role names, sets), or None
    where it is left out. Round k reads sentence k of every paragraph."""
    from brd import first_tokens                # only here: all else in this file knows nothing of prompts
    documents, sep = [([], [], []) for _ in paragraphs], tokenizer.sep

    def append(i, *columns):
        for column, values in zip(documents[i], columns):
            column += values

    for k in range(max(map(len, paragraphs))):
        rows = [i for i, sentences in enumerate(paragraphs) if documents[i] and k < len(sentences)]
        for i in rows:
            sentence = tokenizer.encode(" " * bool(k) + paragraphs[i][k])
            append(i, sentence + [sep], ["text"] * len(sentence) + ["sep"], [None] * (len(sentence) + 1))
            if len(documents[i][0]) + max_new >= model.config.block_size:
                documents[i] = None
        rows = [i for i in rows if documents[i]]
        prompts, firsts = [documents[i][0] for i in rows], [[] for _ in rows]
        if k == 0:                              # ner and qra copies begin alike: the first token decides
            generator = torch.Generator(next(model.parameters()).device).manual_seed(rng.getrandbits(63))
            tokens = first_tokens(model, tokenizer, prompts, [paragraphs[i][0] for i in rows], copy,
                                  drawing["temperature"], drawing["p"], generator)
            firsts = [[token] for token in tokens]
        prompts = [prompt + first for prompt, first in zip(prompts, firsts)]
        drawn = draw_with_sets(model, prompts, max_new, stop={sep, tokenizer.end}, seed=rng.getrandbits(63), **drawing)
        for i, first, new, sets in zip(rows, firsts, *drawn):
            if first == [sep]:                  # the reading is empty, what was drawn behind it means nothing
                new, sets = [], []
            new, sets = first + new, [None] * len(first) + sets
            if new[-1] == sep:
                append(i, new, reading_roles(new[:-1], copy, tokenizer) + ["sep"], sets)
            else:
                documents[i] = None
    for i, document in enumerate(documents):
        if document:
            append(i, [tokenizer.end], ["end"], [None])
    return documents


def teacher_reads(model, tokenizer, paragraphs, writer, *, copy, p, k_cap, temperature=1.0, seed, batch_rows=64,
                  max_new=64):
    """The teacher reads text that nobody has annotated; its readings go into the cache, with the sets they came from.

        s1 SEP <drawn until SEP> " s2" SEP <drawn until SEP> ... END         entities (copy "ner"), questions ("qra")

    paragraphs: list of lists of sentences (str); writer: a CacheWriter of the same settings, which stays open. Given,
    without a set, are the sentences with the SEP behind each, END, and the first token of the first reading, because
    it was drawn among those that begin the copy asked for (brd.first_tokens). batch_rows paragraphs are read together;
    the same seed draws the same tokens. A paragraph is left out as a whole where a reading does not end within max_new
    tokens, or where block_size has no room for so many. Returns the number of paragraphs left out.
    Raises ValueError for another copy, and where the writer's header has other settings or another tokenizer.
    """
    if copy not in ("ner", "qra"):
        raise ValueError(f"copy={copy!r}; expected 'ner' or 'qra'")
    drawing = dict(p=p, k_cap=k_cap, temperature=temperature)
    for name, value in (drawing | dict(n_vocab=tokenizer.n_vocab, tokenizer=tokenizer.hash)).items():
        if writer.header[name] != value:
            raise ValueError(f"{name}={value}, but the cache is opened with {writer.header[name]}; give both the same")
    rng, left_out = random.Random(seed), 0
    for start in tqdm(range(0, len(paragraphs), batch_rows), desc=f"teacher reads, {copy}", disable=None, leave=False):
        batch = paragraphs[start:start + batch_rows]
        for document in read_batch(model, tokenizer, batch, copy, max_new, rng, **drawing):
            if document is None:
                left_out += 1
                continue
            tokens, roles, sets = document
            writer.add(tokens, [writer.header["roles"].index(role) for role in roles], sets)
    return left_out


def write_cache(folder, teacher, tokenizer, config):
    """The teacher reads fresh, unannotated text of the built-in world, sampling inside its nucleus; what it says and weighs is
    kept in `folder`. config: train.Config. A cache that was cut off goes on behind its last chunk; several processes share the
    reading (data/ranks.py). ValueError where no reading was finished."""
    from brd import ROLES
    shown = ("entity_f1", "answer.wh", "answer.yes_no", "answer.attitude")
    figures = {place: {name: round(r[name]["value"], 4) for name in shown if r[name]["value"] is not None}
               for place, r in teacher.extra["reading"].items()}
    weights = b"".join(p.detach().cpu().numpy().tobytes() for p in teacher.parameters())
    place = tempfile.mkdtemp() if ranks.rank() else folder         # of several processes, the first one writes
    writer = CacheWriter(
        place, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash, roles=ROLES,
        p=config.p, k_cap=K_CAP, temperature=1.0,
        teacher={"hash": hashlib.sha256(weights).hexdigest()[:16], "params": teacher.num_params(), "figures": figures,
                 "tokens_seen": teacher.extra["tokens_seen"]},
        made_by=f"python train.py --teacher=train --seed={config.seed} --teacher_tokens={config.teacher_tokens} "
                f"--cache_tokens={config.cache_tokens}")
    rng, jobs = random.Random(f"cache {config.seed}"), []
    n = config.cache_tokens // 49  # documents: one has about so many tokens
    for number, start in enumerate(range(0, n, CHUNK), 1):
        # Three in four documents are questions and answers. Every place of the run gets texts of its own level.
        for copy, part in (("ner", 0.25), ("qra", 0.75)):
            some = round(min(CHUNK, n - start) * part)
            texts = [world.draw_paragraph(rng, world.level((start + i / part) / n)).sentences for i in range(some)]
            jobs.append((number, texts, copy, config.seed + start))

    def documents_of(number, texts, copy, seed):
        documents = []
        kept = SimpleNamespace(header=writer.header, add=lambda *document: documents.append(document))
        teacher_reads(teacher, tokenizer, texts, kept, copy=copy, p=config.p, k_cap=K_CAP, seed=seed, max_new=96)
        return documents

    jobs, at_once = jobs[2 * ranks.agreed(writer.done):], 2 * ranks.size()
    for i in tqdm(range(0, len(jobs), at_once), desc="cache", disable=None, leave=False):
        found = ranks.merged([documents_of(*job) for job in ranks.share(jobs[i:i + at_once])])
        for document in chain.from_iterable(found if not ranks.rank() else ()):
            writer.add(*document)
        writer.checkpoint(jobs[i:i + at_once][-1][0])
    if ranks.rank():
        shutil.rmtree(place)
    if not ranks.agreed(0 if ranks.rank() else writer.close()["documents"]):
        shutil.rmtree(folder, ignore_errors=True)
        raise ValueError("the teacher finished none of its readings, so there is nothing to learn from; "
                         f"try more than --teacher_tokens={config.teacher_tokens} and --cache_tokens={config.cache_tokens}")
