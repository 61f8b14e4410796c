"""Basic Reading Distillation (Zhou et al., ACL 2025): a student learns to read generic text from a teacher.

The teacher, a language model or a program, annotates EVERY sentence of a text with two reading behaviours:
    NER  the entities in the sentence, each with a type and a short description
    QRA  questions raised about content, structure and attitude, each answered from the sentence
The student learns three separate copies of each paragraph (ori, ner, qra: data/documents.py) with the
next-token loss. After training it is tested blind, on tasks whose form it has never seen: of the candidate
answers it takes the one with the highest log-probability, averaged over the candidate's tokens.

    python brd.py read out/brd "Anna took a train to Oslo."   # entities, questions (adapters/read.py)
    python brd.py test out/brd data/tasks/*.json              # blind accuracy (experiments/blind.py)
    python brd.py annotate my.txt --teacher URL --model NAME        # an LLM annotates (adapters/annotate.py)

Shapes: T time, C channels, V vocabulary, R rows (candidates of all items of a batch), N scored tokens.
"""

import math
import os
import random
from collections import Counter, defaultdict
from itertools import chain

import numpy as np
import torch
from torch.nn.functional import cross_entropy, pad

import td_distill
from data import world
from data.annotations import ALL_FORMS, NO_ENTITY, TYPES, lines_of, parse_question, question_texts
from data.cli import progress, run_command, run_named
from data.documents import TEST_LEVELS, fresh_text
from data.figures import count_answer, count_entities, count_raised, majorities, mean_se, ratio_se
from model import sample

# --- 1. The blind score: no task data, no examples; the candidate that surprises the model least ----------

TIE, CALIBRATE_FROM = 1e-6, 5   # closer scores differ by rounding only; items a candidate for `calibrate`


def join(prompt, answer):
    """Prompt and answer as running text, with the prompt's own white space between them, or one space."""
    kept = prompt.rstrip(" ")
    gap = prompt[len(kept):] or (" " if kept[-1:].strip() else "")
    return kept + gap + answer.lstrip(" ")


def split_tokens(tokenizer, prompt, candidates, block_size):
    """One item in tokens -> (context, tails, cut): ids to read once, ids to score for each candidate, and
    whether the left of context was cut so that it and the longest tail have at most block_size + 1 ids.

    Prompt and candidate are joined (see `join`) and encoded as one text, because tokens may cross the border:
    " Oslo" is one token. context: the longest prefix of ids that all texts share with prompt.rstrip(" "), or
    [tokenizer.end] for none. ValueError for a candidate of white space alone, or a tail above block_size."""
    if not all(candidate.strip() for candidate in candidates):
        raise ValueError(f"an empty candidate after the prompt '{prompt[-40:]}'")
    joined = [join(prompt, candidate) for candidate in candidates]
    own, *joined = tokenizer.encode_batch([prompt.rstrip(" "), *joined])
    shared = len(os.path.commonprefix([own, *joined]))          # of any sequences, not of paths alone
    tails = [ids[shared:] for ids in joined]
    longest = max(map(len, tails))
    room = block_size + 1 - longest                             # the last token is predicted, but never read
    if room < 1:
        raise ValueError(f"a candidate of {longest} tokens, but block_size is {block_size}; shorten it")
    return own[:shared][-room:] or [tokenizer.end], tails, shared > room


@torch.no_grad()
def score_batch(model, batch):
    """Mean log-probability a token of every tail: list of split items -> list of lists of float. A context
    is read once; its cache row is taken once for each of its tails, which are padded on the right."""
    hidden, cache = model.prefill([context for context, _, _ in batch])                    # (B, T, C)
    device = hidden.device
    owner = torch.tensor([i for i, item in enumerate(batch) for _ in item[1]], device=device)          # (R,)
    tails = [tail for _, tails, _ in batch for tail in tails]
    width = max(map(len, tails))
    padded = [tail + [-1] * (width - len(tail)) for tail in tails]
    targets = torch.tensor(padded, device=device)                                          # (R, width)
    states = hidden[owner, -1:]                                                            # (R, 1, C)
    if width > 1:
        after = model.hidden(targets[:, :-1].clamp(min=0), cache.select(owner))
        states = torch.cat([states, after], 1)                                             # (R, width, C)
    log_probs = torch.zeros(targets.shape, device=device)
    for part in (targets >= 0).nonzero().split(1024):           # (N, 2); in pieces, for (N, V) may be large
        r, t = part.unbind(1)
        log_probs[r, t] = -cross_entropy(model.logits(states[r, t]).float(), targets[r, t], reduction="none")
    means = iter((log_probs.sum(1) / (targets >= 0).sum(1)).tolist())
    return [[next(means) for _ in tails] for _, tails, _ in batch]


def blind_scores(model, tokenizer, items, batch_tokens=16384):
    """The paper's blind test, (1/n) sum_i log P(y_i | prompt, y_<i) for every candidate y, in nats a token:
    list of (prompt, [y, ...]) -> (lists of float, prompts cut on the left); batch_tokens: rows x length."""
    limit, parts, batches, scores, cuts = model.config.block_size, [], [[]], [[] for _ in items], 0
    for i, (prompt, candidates) in enumerate(items):
        context, tails, cut = split_tokens(tokenizer, prompt, candidates, limit)
        cuts, most = cuts + cut, max(1, batch_tokens // (len(context) + max(map(len, tails))))
        parts += [(i, (context, tails[a:a + most], cut)) for a in range(0, len(tails), most)]
    # In the order of context length, so that a batch has little padding and its last context is its longest.
    for i, part in sorted(parts, key=lambda part: len(part[1][0])):
        tails = [tail for _, (_, tails, _) in [*batches[-1], (i, part)] for tail in tails]
        width = len(part[0]) + max(map(len, tails))
        if width > limit + 1 or len(tails) * width > batch_tokens:
            batches.append([])
        batches[-1].append((i, part))
    for batch in progress(list(filter(None, batches)), "scores", delay=5):
        for (i, _), means in zip(batch, score_batch(model, [part for _, part in batch])):
            scores[i] += means
    return scores, cuts


def tie_accuracy(scores, right):
    """1 where the best score is a right candidate's, 0 where not. Scores closer than TIE to the best are best
    too: then the share of right ones, so that a model which scores all candidates alike gets chance."""
    least = max(scores) - TIE
    best = [i for i, score in enumerate(scores) if score > least]
    return sum(i in right for i in best) / len(best)


def calibrate(candidates, scores):
    """Scores minus their candidate's mean; None where candidates occur under CALIBRATE_FROM times each."""
    seen = defaultdict(list)
    for word, score in zip(chain(*candidates), chain(*scores)):
        seen[word].append(score)
    if sum(map(len, seen.values())) < CALIBRATE_FROM * len(seen):
        return None
    means = {word: sum(values) / len(values) for word, values in seen.items()}
    return [[score - means[word] for word, score in zip(*pair)] for pair in zip(candidates, scores)]


def eval_task(model, tokenizer, task):
    """Blind accuracy on a task {"name", "items": [(prompt, candidates, indices of right ones), ...]} -> dict.
    "centred", a second figure: after `calibrate`, without the model's liking for a word as such. "majority":
    of the candidate that is right most often, None where `calibrate` is. "credits": those of the items."""
    prompts, candidates, rights = zip(*task["items"])
    scores, cut = blind_scores(model, tokenizer, list(zip(prompts, candidates)))
    credits = list(map(tie_accuracy, scores, rights))
    raw, rows = mean_se(credits), calibrate(candidates, scores)
    often = Counter(words[i] for words, right in zip(candidates, rights) for i in right)
    centred, majority = (mean_se(list(map(tie_accuracy, found, rights)))["value"] if rows else None
                         for found in (rows, [[often[word] for word in words] for words in candidates]))
    chance = mean_se([len(right) / len(words) for words, right in zip(candidates, rights)])["value"]
    return {"name": task["name"], "accuracy": raw["value"], "se": raw["se"], "n": raw["n"], "chance": chance,
            "majority": majority, "centred": centred, "cut": cut, "skipped": task.get("skipped", 0),
            "credits": credits}


# --- 2. Reading in free running: sentence by sentence; the student's own output stays in its context ------

MAX_READING, MAX_ANSWER = 64, 16      # new tokens for the reading of a sentence and for one answer
ROWS = 64                             # prompts generated together
PAIRED = ("entity_f1", "answer.wh", "answer.yes_no")    # figures that are compared paragraph by paragraph
FIGURES = ("entity_lines", "rouge_l", "answer.all", "answer.wh", "answer.yes_no", "answer.no",
           "answer.attitude", "answer.structure", "raised", "raised.known", "raised.right")


def line_ends(tokenizer):
    """The set of token ids that hold a line break."""
    return {t for t in range(tokenizer.n_vocab) if "\n" in tokenizer.decode([t])}


def continued(model, prompts, max_new, stop, temperature=0):
    """New tokens for every prompt; prompts that leave no room for max_new tokens are cut on the left."""
    max_new = min(max_new, model.config.block_size // 2)
    kept = [prompt[max_new - model.config.block_size:] for prompt in prompts]
    return [new for i in range(0, len(kept), ROWS)
            for new in model.generate(kept[i:i + ROWS], max_new, temperature=temperature, stop=stop)]


@torch.no_grad()
def first_tokens(model, tokenizer, prompts, sentences, behaviour, **drawing):
    """The first token of a first reading, which decides between the copies: "ner" begins with a type, "none"
    or a word of the sentence, "qra" with none of these and no person of the world. drawing: of sample."""
    taken = []
    for i in range(0, len(prompts), ROWS):
        hidden, _ = model.prefill([prompt[-model.config.block_size:] for prompt in prompts[i:i + ROWS]])
        logits = model.logits(hidden[:, -1])                                               # (b, V)
        barred = torch.full_like(logits, behaviour == "ner", dtype=torch.bool)
        barred[:, tokenizer.end] = True
        for row, sentence in zip(barred, sentences[i:i + ROWS]):
            words = [NO_ENTITY, *TYPES, *(word.strip("\"'([{") or word for word in sentence.split())]
            words += world.WORDS["person"] if behaviour == "qra" else []        # a reader may mistake a name
            starts = [ids[0] for ids in tokenizer.encode_batch([" " + word for word in words])]
            row[starts] = behaviour == "qra"                    # barred for questions, allowed for entities
        taken += sample(logits.masked_fill(barred, -math.inf), **drawing).tolist()
    return taken


def free_reading(model, tokenizer, paragraphs, behaviour, temperature=0):
    """The student reads paragraphs, lists of sentences -> a text for each sentence, whose lines are entities
    ("ner") or questions with answers ("qra"). Round k reads sentence k of every paragraph."""
    contexts, readings = [[] for _ in paragraphs], [[] for _ in paragraphs]
    ends = {tokenizer.sep, tokenizer.end}
    for k in progress(range(max(map(len, paragraphs), default=0)), "reading", delay=5):
        rows = [p for p, sentences in enumerate(paragraphs) if k < len(sentences)]
        for p in rows:
            contexts[p] += tokenizer.encode((" " if k else "") + paragraphs[p][k]) + [tokenizer.sep]
        prompts, starts = [contexts[p] for p in rows], [[] for _ in rows]
        if k == 0:
            first, drawing = [paragraphs[p][0] for p in rows], {"temperature": temperature}
            starts = [[t] for t in first_tokens(model, tokenizer, prompts, first, behaviour, **drawing)]
        tails = continued(model, [a + b for a, b in zip(prompts, starts)], MAX_READING, ends, temperature)
        for p, start, tail in zip(rows, starts, tails):
            new = [t for t in (start if start == [tokenizer.sep] else start + tail) if t not in ends]
            contexts[p] += new + [tokenizer.sep]
            readings[p].append(tokenizer.decode(new))
    return readings


def free_answers(model, tokenizer, paragraphs, rng, forms=ALL_FORMS):
    """The student answers every question of the records, in forms drawn with rng -> for each paragraph a list
    of (question item, answer). Question j at sentence k is asked in all paragraphs at once."""
    contexts, answers = [[] for _ in paragraphs], [[] for _ in paragraphs]
    ends, breaks = {tokenizer.sep, tokenizer.end}, line_ends(tokenizer)
    for k in progress(range(max(map(len, paragraphs), default=0)), "answers", delay=5):
        questions = {p: records[k]["questions"] for p, records in enumerate(paragraphs) if k < len(records)}
        for p in questions:
            text = paragraphs[p][k]["text"]
            contexts[p] += tokenizer.encode(" " + text if k else text) + [tokenizer.sep]
        for j in range(max(map(len, questions.values()))):
            asked = [p for p in questions if j < len(questions[p])]
            for p in asked:
                texts = question_texts(questions[p][j]["question"], forms, rng)
                contexts[p] += tokenizer.encode("".join(texts))
            prompts = [contexts[p] for p in asked]
            for p, new in zip(asked, continued(model, prompts, MAX_ANSWER, breaks | ends)):
                new = [t for t in new if t not in ends]
                answers[p].append((questions[p][j], tokenizer.decode(new).strip()))
                if not new or new[-1] not in breaks:
                    new += tokenizer.encode("\n")
                contexts[p] += new
        for p in questions:
            contexts[p].append(tokenizer.sep)
    return answers


def eval_reading(model, tokenizer, paragraphs, oracle=None, own_questions=True):
    """How well the student reads paragraphs of records, free running -> dict of {"value", "se", "n"}, with
    "groups", the counts of each paragraph, for those of PAIRED, and "majority", see data.figures.majorities.

    entity_f1, entity_f1.person ...   micro F1 over the multiset of (text, type), n = reference entities
    entity_lines                      share of its entity lines that can be parsed
    answer.all, .attitude ...         exact match; of content: yes_no and no (right is No), and wh, the rest
    rouge_l                           mean Rouge-L F of all answers
    raised                            share of the lines in its own questions and answers that can be parsed
    raised.known, raised.right        share of its questions that the oracle knows, and answers alike
    oracle(paragraph index, sentence index) -> {question: answer}, or None: without the last two figures; the
    question forms are drawn alike for every student. own_questions=False leaves out the last three."""
    sums = defaultdict(lambda: [[0, 0, 0] for _ in paragraphs])
    sentences = [[record["text"] for record in paragraph] for paragraph in paragraphs]
    found = free_reading(model, tokenizer, sentences, "ner")
    raised = free_reading(model, tokenizer, sentences, "qra") if own_questions else None
    answers = free_answers(model, tokenizer, paragraphs, random.Random(0))
    for p, paragraph in enumerate(paragraphs):
        counted = [count_answer(item, answer) for item, answer in answers[p]]
        for k, record in enumerate(paragraph):
            counted.append(count_entities(record, found[p][k]))
            if own_questions:
                counted.append(count_raised(raised[p][k], oracle(p, k) if oracle else None))
        for name, *amounts in chain.from_iterable(counted):
            sums[name][p] = [x + y for x, y in zip(sums[name][p], amounts)]
    for name in FIGURES if own_questions else FIGURES[:8]:
        _ = sums[name]                                          # also where there was nothing to count
    baselines = majorities(chain.from_iterable(paragraphs))
    return {name: ratio_se(groups) | ({"groups": groups} if name in PAIRED else {}) | baselines.get(name, {})
            for name, groups in sums.items() if oracle or "raised." not in name}


def eval_fresh_text(model, tokenizer, n):
    """eval_reading on n texts of each place of documents.TEST_LEVELS -> {"single", "paragraph", "alike":
    figures}; "alike", where all is asked at the end, without the student's own questions."""
    found = {}
    for place in TEST_LEVELS:
        drawn, records = fresh_text(place, n)
        found[place] = eval_reading(model, tokenizer, records, lambda p, k: world.all_answers(drawn[p], k),
                                    own_questions=place != "alike")
    return found


def glance(model, tokenizer, records):
    """A short reading test without the student's own questions -> {name: value}, for the reading curve."""
    found = eval_reading(model, tokenizer, records, own_questions=False)
    return {name: round(found[name]["value"], 4) for name in (*PAIRED, "answer.attitude")
            if found[name]["value"] is not None}


# --- 3. A distilled student beside its teacher ------------------------------------------------------------
# Both tests return {figure: [(a, b, n) per unit]} for data.figures.ratio_se: a figure is sum a / sum b.

@torch.no_grad()
def eval_own_questions(model, tokenizer, teacher, n):
    """What the student asks and answers by itself at T = 1 on n fresh paragraphs of two people, the units.

    right       share of its lines that are a question which the scripted reader knows, with a right answer
    distinct    different ones of these per sentence
    nats        -log of the teacher's probability (GPT) per token of its readings, all lines of them"""
    rng, found, sep = random.Random("own questions"), defaultdict(list), [tokenizer.sep]
    drawn = [world.draw_paragraph(rng, split="test") for _ in range(n)]
    torch.manual_seed(1)
    readings = free_reading(model, tokenizer, [p.sentences for p in drawn], "qra", temperature=1)
    limit, device = teacher.config.block_size + 1, teacher.mask.device
    for paragraph, texts in zip(drawn, readings):
        ids, is_own, lines, right, distinct = [], [], 0, 0, 0
        for k, (sentence, text) in enumerate(zip(paragraph.sentences, texts)):
            known, asked = world.all_answers(paragraph, k), list(map(parse_question, lines_of(text)))
            good = [q["question"] for q in asked if q and known.get(q["question"]) == q["answer"]]
            lines, right, distinct = lines + len(asked), right + len(good), distinct + len(set(good))
            given, written = (tokenizer.encode(x) + sep for x in (" " + sentence if k else sentence, text))
            ids, is_own = ids + given + written, is_own + [0] * len(given) + [1] * len(written)
        ids, is_own = (torch.tensor(row[-limit:], device=device) for row in (ids, is_own))
        nll = cross_entropy(teacher(ids[None, :-1])[0], ids[1:], reduction="none") * is_own[1:]
        found["right"].append((right, lines, lines))
        found["distinct"].append((distinct, len(texts), len(texts)))
        found["nats"].append((nll.sum().item(), is_own[1:].sum().item(), is_own[1:].sum().item()))
    return dict(found)


@torch.no_grad()
def eval_sets(model, cache, p, gamma):
    """On the documents of a TeacherCache; a unit is a document.

    outside     the student's probability outside A_p
    residual    (Q(s,a) - gamma V(s'))^2, with the linear v(s) of its hidden states that makes it smallest on
                these documents: what no linear value head can remove"""
    found, device = [], model.mask.device
    ends = torch.tensor([cache.header["roles"].index(role) for role in ("sep", "end")], device=device)
    for some in np.array_split(np.arange(len(cache)), len(cache) // 32 + 1):
        rows = {name: tensor.to(device) for name, tensor in cache.batch(some).items()}
        student, teacher, hidden = td_distill.cached_terms(model, rows, torch.isin(rows["roles"], ends), p)
        x = td_distill.td_terms(student, teacher, rows["real"][:, 1:].float())
        follows = pad(x.live[:, 1:], (0, 1)) * ~teacher.terminal                           # (B, T)
        states = torch.cat([hidden.float(), torch.ones_like(hidden[..., :1])], -1)         # (B, T, C + 1)
        change = states - gamma * follows[..., None] * pad(states[:, 1:], (0, 0, 0, 1))    # v - gamma v(s')
        known, unit = x.known > 0, torch.from_numpy(some).to(device)[:, None].expand_as(x.known)
        found.append([y[known] for y in (unit, 1 - (-x.leak).exp(), x.Q - gamma * x.V_next, change)])
    unit, outside, residual, change = (torch.cat(parts).cpu() for parts in zip(*found))    # (N,), (N, C + 1)
    change, residual = change.double(), residual.double()[:, None]     # rcond: rounding is not fitted
    v = torch.linalg.lstsq(change, -residual, rcond=1e-5, driver="gelsd").solution      # (C + 1, 1)
    square = (residual + change @ v)[:, 0] ** 2
    sums = [np.bincount(unit, y, len(cache)).tolist() for y in (outside, square, torch.ones_like(outside))]
    return {name: list(zip(total, sums[2], sums[2])) for name, total in zip(("outside", "residual"), sums)}


def main(arguments=None):
    """The commands read, test and annotate; ValueError or OSError for a mistake of the user."""
    commands = {"read": "adapters.read", "test": "experiments.blind", "annotate": "adapters.annotate"}
    run_named(commands, arguments, __doc__)


if __name__ == "__main__":
    run_command(main)
