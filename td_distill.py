"""Top-p distillation: what a teacher knows about the next token, kept small, and the losses that learn from it.

A teacher puts most of its probability on a few tokens. For every token that it draws we keep those few alone, its
top-p set with their log-probabilities, in a cache on disk (data/cache.py): made once, read by every student. Then a
distillation loss is a function of three numbers that the student gives at a position (`student_terms`):

    z_K    its logits on the teacher's K tokens
    z_a    its logit on the token that was taken
    log_Z  the logarithm of its softmax denominator over the whole vocabulary

and each objective is a few lines below the same ruler, with

    V_p  = logsumexp of z_K over the set                the student's soft value inside the set
    leak = log_Z - V_p = -log(student's mass inside)    what it still spends on tokens outside

Shapes: B documents, T tokens of a document, K teacher tokens kept, V vocabulary, N rows of any kind.

Alignment, the one thing to get right: everything in the cache belongs to the token that it PREDICTS. The set of token
t is the distribution from which token t was drawn, given the tokens before it. So one training step reads

    batch = cache.batch(rows)
    logits = model.logits(model.hidden(batch["tokens"][:, :-1]))                       # (B, T-1, V)
    z_K, z_a, log_Z = student_terms(logits, batch["ids"][:, 1:], batch["tokens"][:, 1:])
    weights = batch["mask"][:, 1:].any(-1).float()                                     # 1 where the teacher drew
    loss, figures = topp_forward_kl(z_K, log_Z, batch["log_probs"][:, 1:], batch["mask"][:, 1:], weights)

Commands:

    python td_distill.py inspect FOLDER        what a cache holds and costs
"""

import argparse
import random
import sys

import numpy as np
import torch
from tqdm import tqdm

from data.annotations import parse_question
from data.cache import ABSENT, Cache, CacheWriter  # noqa: F401 (CacheWriter: what teacher_reads writes to)

SLACK = 1e-6        # float32 rounding of a mass: .5 + .3 reaches p = .8


# ---------------------------------------------------------------------------------------------------------------
# The teacher's top-p sets, and how it fills a cache with them


def top_p_sets(logits, p, k_cap, temperature=1.0):
    """The smallest set of most probable tokens whose mass reaches p, for each row: A_p(s) of the paper.

    logits (N, V) float; 0 < p <= 1; k_cap: at most so many tokens are kept, even where they do not reach p.
    Returns ids (N, K) long, log_probs (N, K) float32, mask (N, K) bool, with K the largest set among the rows. The
    token that crosses p is in the set; the most probable comes first, among equals the lower id. Tokens of probability
    0 are never kept. Where mask is False: id 0 and log-probability ABSENT.

    log_probs are the teacher's own, log softmax(logits / temperature), not renormalised over the set: the mass that is
    missing is known. This is the one place where a temperature is applied; no loss has one.
    Raises ValueError for p, k_cap or temperature out of range, and for NaN logits.
    """
    if not 0 < p <= 1 or k_cap < 1 or temperature <= 0:
        raise ValueError(f"p={p}, k_cap={k_cap}, temperature={temperature}; "
                         "expected 0 < p <= 1, k_cap >= 1, temperature > 0")
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)      # (N, V)
    k = min(k_cap, log_probs.shape[-1])
    values, ids = log_probs.topk(k, dim=-1)                                  # (N, k)
    if torch.isnan(values).any():
        raise ValueError("the teacher's logits hold NaN or only infinities; expected numbers: check its checkpoint")
    # topk is 50 times as fast as a sort of the vocabulary, but takes equals in any order: put those that it took in
    # order, and sort in full the rare rows where equals stand on both sides of the cap.
    ids = ids.sort(dim=-1).values
    values, order = log_probs.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, order)                                              # (N, k)
    for row in ((log_probs >= values[:, -1:]).sum(-1) > k).nonzero()[:, 0].tolist():
        ids[row] = log_probs[row].sort(descending=True, stable=True).indices[:k]
    probs = values.double().exp()
    before = probs.cumsum(-1) - probs                                        # mass of the tokens ranked above
    mask = (before < p - SLACK) if p < 1 else torch.ones_like(before, dtype=torch.bool)
    mask[:, 0] = True                                                        # also for p below SLACK
    mask &= values > -torch.inf
    width = int(mask.sum(-1).max()) if len(mask) else 0
    ids, values, mask = ids[:, :width], values[:, :width], mask[:, :width]   # (N, K)
    return ids.masked_fill(~mask, 0), values.masked_fill(~mask, ABSENT), mask


def narrow(log_probs, mask, p):
    """The part of cached sets (..., K) that a smaller p would have kept, as a mask; sets stand most probable first."""
    probs = log_probs.double().exp() * mask
    return mask & (probs.cumsum(-1) - probs < p - SLACK)


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


# ---------------------------------------------------------------------------------------------------------------
# What the losses need of the student


def at_least_float32(x):
    """float64 stays (the tests take finite differences in it), every other type becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def student_terms(logits, ids, taken):
    """The three terms of which every loss here is made.

    logits (B, T, V), ids (B, T, K) long, taken (B, T) long -> z_K (B, T, K), z_a (B, T), log_Z (B, T), float32 (float64
    for float64 logits). Any leading shape will do in place of (B, T): positions that bear no weight may be left out
    before the head is applied, and cost nothing. Where a set is padded, z_K is that of id 0; the losses mask it.
    """
    logits = at_least_float32(logits)
    z_K = logits.gather(-1, ids)                            # (B, T, K)
    z_a = logits.gather(-1, taken[..., None])[..., 0]       # (B, T)
    log_Z = torch.logsumexp(logits, dim=-1)                 # (B, T)
    return z_K, z_a, log_Z


def weighted_mean(values, weights, denominator=None):
    """sum(weights * values) / denominator over positions; values, weights (B, T) -> scalar.

    denominator None: the sum of these weights. Where an update comes in micro-batches, pass the sum over all of them:
    then their losses and gradients ADD UP to those of the one batch, which means of means do not.
    Positions of weight 0 count for nothing, whatever stands there. No weight at all gives 0.
    """
    total = torch.where(weights > 0, weights * values, 0).sum()
    denominator = weights.sum() if denominator is None else torch.as_tensor(denominator)
    return total / denominator.clamp(min=torch.finfo(values.dtype).tiny)


# ---------------------------------------------------------------------------------------------------------------
# The objectives, side by side: pure functions of the student's terms, the cached teacher and a weight a position.
# Each returns (loss, figures): a scalar to differentiate, and a dict of detached scalars over the same denominator.


def sft_loss(z_a, log_Z, weights, denominator=None):
    """Cross-entropy on the token taken: SFT on references, SeqKD where the teacher wrote the tokens.

        loss = mean of  log_Z - z_a  =  -log pi(a | s)          in nats

    z_a, log_Z, weights (B, T), weights >= 0; denominator: see weighted_mean. figures: nll.
    """
    z_a, log_Z = at_least_float32(z_a), at_least_float32(log_Z)
    loss = weighted_mean(log_Z - z_a, weights.to(log_Z.dtype), denominator)
    return loss, {"nll": loss.detach()}


def topp_forward_kl(z_K, log_Z, log_probs, mask, weights, denominator=None, tail="renormalise"):
    """Forward KL(teacher || student) where of the teacher only the set A_p is known.

        renormalise   sum over A_p of q (log q - log s),   q = t / M, M = sum over A_p of t
        bucket        sum over A_p of t (log t - log s) + (1 - M) (log(1 - M) - log(1 - S)),   S = sum over A_p of s

    t are the teacher's probabilities (exp of log_probs), log s = z_K - log_Z the student's over the WHOLE vocabulary,
    so mass that leaks out of the set costs. Renormalised, the optimum is s = t / M, sharper than the teacher: the bias
    of truncation (often welcome). The bucket's optimum is s = t, S = M; how the tail is shared out, it leaves open.

    z_K, log_probs (B, T, K) float; mask (B, T, K) bool; log_Z, weights (B, T); denominator: see weighted_mean.
    Positions whose set is empty are left out, of the default denominator as well: they are hard targets, for sft_loss.
    figures: kl (the loss), leak = log_Z - V_p in nats, kept_mass M, entropy of the teacher's target in nats.
    Raises ValueError for another tail.
    """
    if tail not in ("renormalise", "bucket"):
        raise ValueError(f"tail={tail!r}; expected 'renormalise' or 'bucket'")
    z_K, log_Z, log_probs = at_least_float32(z_K), at_least_float32(log_Z), at_least_float32(log_probs)
    live = mask.any(-1) & (weights > 0)                                     # (B, T)
    weights = torch.where(live, weights, 0).to(log_Z.dtype)
    # Masked BEFORE any arithmetic: a where() afterwards hides a NaN in the value, but 0 * NaN comes back in the gradient.
    mask = mask & live[..., None]
    z_K, log_t = torch.where(mask, z_K, ABSENT), torch.where(mask, log_probs, ABSENT)
    log_Z = torch.where(live, log_Z, 0)
    log_s = z_K - log_Z[..., None]                                          # (B, T, K)
    leak = log_Z - torch.logsumexp(z_K, dim=-1)                             # (B, T)
    kept_mass = log_t.exp().sum(-1)
    log_q = log_t - torch.logsumexp(log_t, dim=-1, keepdim=True) if tail == "renormalise" else log_t
    q = log_q.exp()
    kl = (q * (log_q - log_s)).sum(-1)                                      # (B, T)
    entropy = -(q * log_q).sum(-1)
    if tail == "bucket":
        rest = (1 - kept_mass).clamp(min=0)                                 # a sum of float32 may pass 1
        # log(1 - S), S = exp(-leak). Close to S = 1 the difference log_Z - V_p has no digits left: the clamp keeps the
        # logarithm finite, and ends the pull outwards where the student's outside mass is below 8 roundings (1e-6).
        log_outside = torch.log(-torch.expm1(-leak.clamp(min=8 * torch.finfo(leak.dtype).eps)))
        kl = kl + torch.xlogy(rest, rest) - rest * log_outside
        entropy = entropy - torch.xlogy(rest, rest)
    loss = weighted_mean(kl, weights, denominator)
    figures = {"kl": loss, "leak": weighted_mean(leak, weights, denominator),
               "kept_mass": weighted_mean(kept_mass, weights, denominator),
               "entropy": weighted_mean(entropy, weights, denominator)}
    return loss, {name: figure.detach() for name, figure in figures.items()}


# ---------------------------------------------------------------------------------------------------------------
# The command line


def inspect(folder):
    """Prints what a cache holds and costs; returns the figures as a dict.

    Coverage is the mean kept mass, sum of exp(log_probs), over the drawn positions. The dense cost beside it is that of
    the same documents with all V logits in float16 at the drawn positions, and no ids.
    """
    cache = Cache(folder)
    header, counts = cache.header, np.asarray(cache.arrays["counts"])
    n_tokens, drawn = max(header["tokens"], 1), max(header["drawn"], 1)
    size = sum(array.nbytes for array in cache.arrays.values())
    sets = cache.arrays["ids"].nbytes + cache.arrays["logprobs"].nbytes
    figures = {
        "documents": len(cache), "tokens": header["tokens"], "drawn": header["drawn"],
        "mean_kept": header["kept"] / drawn,
        "size_one": float((counts == 1).sum() / drawn),
        "coverage": float(np.exp(cache.arrays["logprobs"].astype(np.float64)).sum() / drawn),
        "bytes_per_token": size / n_tokens,
        "dense_bytes_per_token": (size - sets + 2 * header["n_vocab"] * header["drawn"]) / n_tokens,
    }
    teacher = header["teacher"] if isinstance(header["teacher"], dict) else {}
    print(f"{folder}: top-p sets, p={header['p']}, k_cap={header['k_cap']}, temperature {header['temperature']}")
    print(f"  teacher           {teacher.get('hash')}, {teacher.get('params')} parameters, {teacher.get('figures')}")
    print(f"  tokenizer         {header['tokenizer']}, {header['n_vocab']} tokens")
    print(f"  made by           {header['made_by']}")
    print(f"  documents         {len(cache):,}")
    print(f"  tokens            {header['tokens']:,}, of which the teacher drew {header['drawn']:,}")
    print(f"  mean kept         {figures['mean_kept']:.2f} tokens a drawn position; "
          f"{figures['size_one']:.1%} of the sets have only one")
    print(f"  coverage          {figures['coverage']:.4f} of the teacher's mass")
    print(f"  bytes a token     {figures['bytes_per_token']:.1f}; "
          f"with dense float16 logits {figures['dense_bytes_per_token']:.1f}")
    return figures


def main(argv=None):
    parser = argparse.ArgumentParser(description="The sparse teacher cache.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("inspect", help="print what a cache holds and costs")
    command.add_argument("folder")
    args = parser.parse_args(argv)
    try:
        inspect(args.folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
