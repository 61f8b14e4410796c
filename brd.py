"""Basic Reading Distillation (Zhou et al., ACL 2025): a teacher reads generic text, a small student learns to read it.

The teacher annotates EVERY sentence of ordinary text with two reading behaviours:
    NER  the entities in the sentence, each with a type and a short description
    QRA  questions raised about content, structure and attitude, each answered from the sentence
and the student learns three separate copies of each paragraph with the ordinary next-token loss:
    ori  s1 s2 s3 <end>
    ner  s1 <sep> Anna: person, traveller\\n Oslo: place, goal\\n <sep> s2 <sep> ... <sep> <end>
    qra  s1 <sep> Where did Anna go? Oslo\\n <sep> s2 <sep> ... <sep> <end>          <sep> and <end> are one token each
Only afterwards does it meet a task, blind: the candidate of highest mean log-probability a token is its answer.

Annotations and the forms of their lines are in data/annotations.py; here follow 1 rendering, 2 the blind score,
3 reading in free running, and 4 the command line:
    python brd.py read out/student "Anna took a train to Oslo."    # entities and questions, as the student reads them;
                                                                   # without a text, of what is typed (course/reader.py)
    python brd.py test out/student data/tasks/*.json               # blind accuracy on task files, see data/task_files.py
    python brd.py annotate my.txt --teacher URL --model NAME       # an LLM annotates a text (data/annotate.py)
Shapes: B batch, T time, C channels, V vocabulary, R rows (candidates of all items of a batch), N scored tokens.
"""
import argparse
import json
import math
import os
import random
import re
import sys
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from course import reader, settings
from data import annotate, ranks
from data.annotations import (ALL_FORMS, ENTITY_FORMS, NO_ENTITY, TYPES, entity_line, lines_of, parse_entities, parse_entity,
                              parse_question, question_texts, shown)
from adapters.task_files import join, load_task, load_tasks  # noqa: F401 (load_task: for whoever tests on one file)
from data.tokenizer import Tokenizer
from model import GPT, sample

# ----------------------------------------------------------------------------------------------------------------------
# 1. Rendering: a paragraph of annotated records becomes documents, a document is a list of pieces (text, role)

ROLES = ("text", "entity", "question", "answer", "sep", "end")     # a token's role decides its weight in the loss
SEP, END = ("", "sep"), ("", "end")


def reading(record, copy, rng, forms=ALL_FORMS):
    """Pieces of the reading of one sentence, without the separators around it; copy is "ner" or "qra"."""
    if copy == "ner":
        lines = [entity_line(e["text"], e["type"], e["about"], rng.randrange(min(forms, len(ENTITY_FORMS))))
                 for e in record["entities"]]
        return [(f" {line}\n", "entity") for line in lines or [NO_ENTITY]]
    pieces = []
    for item in record["questions"]:
        pieces += [(text, "question") for text in question_texts(item["question"], forms, rng)]
        pieces.append((f" {item['answer']}\n", "answer"))
    return pieces


def render(paragraph, copy, rng, forms=ALL_FORMS, join_prob=0.0):
    """One paragraph (list of records) -> one document; copy: "ori", "ner" or "qra", ValueError for another.

    rng: a random.Random that draws the surface of every line. forms: how many of the forms may be drawn, 1 = only the
    plain one (a curriculum starts there). join_prob: how often a sentence is read only together with the next one, so that
    some documents are a whole passage and then what there is to say about it. Every piece but the first begins with a
    space, so that pieces encoded one by one are the tokens of the running text."""
    if copy not in ("ori", "ner", "qra") or forms < 1:
        raise ValueError(f"copy '{copy}' with {forms} forms, expected ori, ner or qra and at least 1")
    pieces, waiting = [], []
    for record in paragraph:
        pieces.append((" " * bool(pieces) + record["text"], "text"))
        waiting.append(record)
        if copy == "ori" or (record is not paragraph[-1] and rng.random() < join_prob):
            continue
        # "Is this good or bad?" is asked of what was read last. All else is asked in any order: if questions stood in the order
        # of their sentences, their turn would tell where the answer is, and nobody would learn whose it is.
        pieces.append(SEP)
        asked = [question for read in waiting for question in read["questions"] if read is record or question["kind"] != "attitude"]
        if len(waiting) > 1:
            rng.shuffle(asked)
        pieces += reading({"entities": [e for read in waiting for e in read["entities"]], "questions": asked}, copy, rng, forms)
        pieces.append(SEP)
        waiting = []
    return pieces + [END]


def documents(paragraph, copy, rng, level="paragraph", forms=ALL_FORMS, join_prob=0.0):
    """The documents of one paragraph: one at level "paragraph", one a sentence at "sentence" (the paper's ablation)."""
    if level not in ("paragraph", "sentence"):
        raise ValueError(f"level '{level}', expected paragraph or sentence")
    parts = [paragraph] if level == "paragraph" else [[record] for record in paragraph]
    return [render(part, copy, rng, forms, join_prob) for part in parts]


def encode_documents(documents, tokenizer, known=None):
    """Encode many documents (lists of pieces) -> list of (ids, roles), two lists of int of equal length each;
    roles index ROLES. Each distinct piece is encoded once, all in one batch; pass the same dict as `known` to keep
    the encodings from one call to the next (for one tokenizer only)."""
    known = {} if known is None else known
    new = list({text for document in documents for text, role in document if text and text not in known})
    known.update(zip(new, tokenizer.encode_batch(new)))
    special, encoded = {"sep": [tokenizer.sep], "end": [tokenizer.end]}, []
    for document in documents:
        pieces = [(known[text] if text else special[role], ROLES.index(role)) for text, role in document]
        encoded.append(([i for ids, _ in pieces for i in ids], [role for ids, role in pieces for _ in ids]))
    return encoded


def encode_document(pieces, tokenizer):
    """Encode one document -> (ids, roles); see encode_documents."""
    return encode_documents([pieces], tokenizer)[0]


# ----------------------------------------------------------------------------------------------------------------------
# 2. The blind score: no task data, no examples; of the candidates y the one that the model finds least surprising

TIE = 1e-6                    # scores closer than this differ by float32 rounding only
CENTRE_FROM = 5               # centred accuracy needs this many occurrences a candidate, or its mean says nothing
SPARE_TOKENS = 8              # an answer to generate may be spelt in some tokens more than the tokenizer would take


def split_tokens(tokenizer, prompt, candidates, block_size):
    """One item in tokens -> (context, tails, cut): what is read once, what is scored for each candidate, and whether
    the prompt had to be cut (on the left) to fit block_size.

    Prompt and candidate are joined as in running text (data/task_files.py), by one space, and this space is the
    candidate's: " Oslo" is one token, " " + "Oslo" are two that no text holds.
    The joined texts are encoded whole, and context is the longest prefix of tokens that they share with the prompt:
    where one candidate melts with its last token, all are scored from there on. None shared: it is the document end.
    Raises ValueError for a candidate that is empty or longer than block_size."""
    if not all(candidate.strip() for candidate in candidates):
        raise ValueError(f"an empty candidate after the prompt '{prompt[-40:]}'")
    own, *joined = tokenizer.encode_batch([prompt.rstrip(" ")] + [join(prompt, candidate) for candidate in candidates])
    shared = len(os.path.commonprefix([own, *joined]))          # of any sequences, not of paths alone
    tails = [ids[shared:] for ids in joined]
    room = block_size + 1 - max(map(len, tails))                # the last token is predicted, but never read
    if room < 1:
        raise ValueError(f"a candidate of {max(map(len, tails))} tokens, but block_size is {block_size}; shorten it")
    return own[:shared][-room:] or [tokenizer.end], tails, shared > room


@torch.no_grad()
def score_batch(model, batch):
    """Mean log-probabilities for a list of split items -> list of lists of float. A prompt is read once, left-padded;
    its cache row is then taken once for each of its candidates, which are padded on the right."""
    hidden, cache = model.start([context for context, _, _ in batch])                                # (B, T, C)
    owner = torch.tensor([i for i, item in enumerate(batch) for _ in item[1]], device=hidden.device)    # (R,)
    tails = [tail for _, tails, _ in batch for tail in tails]
    width = max(map(len, tails))
    targets = torch.tensor([tail + [-1] * (width - len(tail)) for tail in tails], device=hidden.device)  # (R, width)
    states = hidden[owner, -1:]                                                                      # (R, 1, C)
    if width > 1:
        states = torch.cat([states, model.hidden(targets[:, :-1].clamp(min=0), cache.select(owner))], 1)  # (R, width, C)
    log_probs = torch.zeros(targets.shape, device=hidden.device)
    for part in (targets >= 0).nonzero().split(1024):           # (N, 2); in pieces, as (N, V) may not fit in memory
        r, t = part.unbind(1)
        log_probs[r, t] = -cross_entropy(model.logits(states[r, t]).float(), targets[r, t], reduction="none")
    means = iter((log_probs.sum(1) / (targets >= 0).sum(1)).tolist())
    return [[next(means) for _ in tails] for _, tails, _ in batch]


def blind_scores(model, tokenizer, items, batch_tokens=16384, counts=None):
    """(1/n) sum_i log P(y_i | prompt, y_<i) for every candidate y (the paper's blind test), in nats a token: list of
    (prompt, [y, ...]) -> list of lists of float. batch_tokens bounds rows x length of a batch; a dict given as counts
    gets "cut", the number of prompts that were cut."""
    block_size = model.config.block_size
    split = [split_tokens(tokenizer, prompt, candidates, block_size) for prompt, candidates in items]
    if counts is not None:
        counts["cut"] = sum(cut for _, _, cut in split)
    batches = [[]]
    for i in sorted(range(len(items)), key=lambda i: len(split[i][0])):          # rows of like length share a batch
        trial = [split[j] for j in batches[-1] + [i]]
        width = len(split[i][0]) + max(len(tail) for _, tails, _ in trial for tail in tails)
        if width > block_size + 1 or sum(len(tails) for _, tails, _ in trial) * width > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    batches, scores = [batch for batch in batches if batch], {}
    found = ranks.merged([score_batch(model, [split[i] for i in batch]) for batch in ranks.share(batches)])
    for batch, values in zip(batches, found):
        scores.update(zip(batch, values))
    return [scores[i] for i in range(len(items))]


def credit(scores, right):
    """1 where the best score is a right candidate's, 0 where not; a tie of m candidates gives the share of right ones,
    so that a model which scores all alike gets chance, whatever stands first."""
    best = [i for i, score in enumerate(scores) if score >= max(scores) - TIE]
    return sum(i in right for i in best) / len(best)


def centre(candidates, scores):
    """Scores less the mean of their candidate over the items that have it, as lists of lists of float; None where the items
    share no candidates."""
    seen = defaultdict(list)
    for word, score in zip(chain(*candidates), chain(*scores)):
        seen[word].append(score)
    if sum(map(len, seen.values())) < CENTRE_FROM * len(seen):
        return None
    means = {word: sum(values) / len(values) for word, values in seen.items()}
    return [[score - means[word] for word, score in zip(words, row)] for words, row in zip(candidates, scores)]


def eval_task(model, tokenizer, task):
    """Blind accuracy on a task of load_task -> {"name", "accuracy", "se", "n", "chance", "centred", "cut", "skipped"}.

    "centred" subtracts each candidate's mean score over the items that have it, which removes the model's liking for
    a word as such. It uses the unlabelled test items, so it is a second figure beside the blind one, never in its
    place. None where the items share no candidates. A task without candidates is scored by exact_matches, chance 0."""
    prompts, candidates, rights = zip(*task["items"])
    counts, rows, centred = {}, None, None
    if not candidates[0]:
        credits = exact_matches(model, tokenizer, prompts, rights, counts)
    else:
        scores = blind_scores(model, tokenizer, list(zip(prompts, candidates)), counts=counts)
        credits, rows = list(map(credit, scores, rights)), centre(candidates, scores)
    if rows:
        centred = mean_se(list(map(credit, rows, rights)))["value"]
    raw = mean_se(credits)
    chance = mean_se([len(right) / len(words) if words else 0.0 for words, right in zip(candidates, rights)])["value"]
    return {"name": task["name"], "accuracy": raw["value"], "se": raw["se"], "n": raw["n"], "chance": chance,
            "centred": centred, "cut": counts["cut"], "skipped": task.get("skipped", 0)}


def exact_matches(model, tokenizer, prompts, answers, counts):
    """1.0 for every prompt whose greedy continuation, up to the end of the line, is one of its answers (a set of str)
    word for word, else 0.0. No more is generated than the longest answer needs; counts gets "cut" as in blind_scores."""
    longest = max(map(len, tokenizer.encode_batch([f" {answer}" for answer in chain(*answers)])))
    max_new = min(longest + SPARE_TOKENS, model.config.block_size // 2)
    ids = [own or [tokenizer.end] for own in tokenizer.encode_batch([prompt.rstrip(" ") for prompt in prompts])]
    counts["cut"] = sum(len(own) + max_new > model.config.block_size for own in ids)
    ends = {tokenizer.sep, tokenizer.end}
    news = greedy(model, ids, max_new, ends | line_ends(tokenizer))
    texts = [tokenizer.decode([t for t in new if t not in ends]).partition("\n")[0].strip() for new in news]
    return [float(text in right) for text, right in zip(texts, answers)]


def mean_of(results):
    """The mean over tasks (each counts alike) -> a result as of test_task. Its standard error is that of the items: the
    tasks are these, not a sample of tasks."""
    mean = {key: sum(result[key] for result in results) / len(results) for key in ("accuracy", "chance")}
    known = all(result["se"] is not None for result in results)
    se = math.sqrt(sum(result["se"] ** 2 for result in results)) / len(results) if known else None
    return {**mean, "se": se, **{key: sum(result[key] for result in results) for key in ("n", "cut", "skipped")}}


# ----------------------------------------------------------------------------------------------------------------------
# 3. Reading in free running: the student sees a paragraph sentence by sentence, and its own output stays in its context

MAX_READING, MAX_ANSWER = 64, 16      # new tokens for the reading of a sentence and for one answer
ROWS = 64                             # prompts generated together


def line_ends(tokenizer):
    """The set of token ids that hold a line break."""
    return {t for t in range(tokenizer.n_vocab) if "\n" in tokenizer.decode([t])}


def greedy(model, prompts, max_new, stop):
    """Greedy continuations; prompts that leave no room for max_new tokens are cut on the left."""
    max_new = min(max_new, model.config.block_size // 2)
    kept = [prompt[max_new - model.config.block_size:] for prompt in prompts]
    return [new for i in range(0, len(kept), ROWS)
            for new in model.generate(kept[i:i + ROWS], max_new, temperature=0, stop=stop)]


@torch.no_grad()
def first_tokens(model, tokenizer, prompts, sentences, copy, temperature=0, top_p=None, generator=None):
    """The first token of the reading of a document's first sentence, which decides whether it is a ner or a qra copy.

    Both begin alike, sentence and separator, and a free reader would take whichever it likes better. So it is asked for
    one: an entity line begins with a type, with "none" or with a word of the sentence (entities occur in it word for
    word), a question line does not. Of the tokens allowed it draws one; the last arguments are those of model.sample,
    and temperature 0 is the likeliest."""
    block_size, taken = model.config.block_size, []
    for i in range(0, len(prompts), ROWS):
        hidden, _ = model.start([prompt[-block_size:] for prompt in prompts[i:i + ROWS]])
        logits = model.logits(hidden[:, -1])                                                         # (b, V)
        barred = torch.full_like(logits, copy == "ner", dtype=torch.bool)
        barred[:, tokenizer.end] = True
        for row, sentence in zip(barred, sentences[i:i + ROWS]):
            words = [NO_ENTITY, *TYPES, *(word.strip("\"'([{") or word for word in sentence.split())]
            row[[ids[0] for ids in tokenizer.encode_batch([" " + word for word in words])]] = copy == "qra"
        taken += sample(logits.masked_fill(barred, -math.inf), temperature, None, top_p, generator).tolist()
    return taken


def free_reading(model, tokenizer, paragraphs, copy):
    """The student's own reading: list of paragraphs, each a list of sentences (str) -> the same of text, one line an
    entity (copy "ner") or a question with its answer (copy "qra"). Round k reads sentence k of every paragraph."""
    contexts, readings, ends = [[] for _ in paragraphs], [[] for _ in paragraphs], {tokenizer.sep, tokenizer.end}
    for k in range(max(map(len, paragraphs), default=0)):
        rows = [p for p, sentences in enumerate(paragraphs) if k < len(sentences)]
        for p in rows:
            contexts[p] += tokenizer.encode(" " * bool(k) + paragraphs[p][k]) + [tokenizer.sep]
        prompts, news = [contexts[p] for p in rows], [[] for _ in rows]
        if k == 0:
            news = [[t] for t in first_tokens(model, tokenizer, prompts, [paragraphs[p][0] for p in rows], copy)]
        tails = greedy(model, [prompt + new for prompt, new in zip(prompts, news)], MAX_READING, ends)
        for p, new, tail in zip(rows, news, tails):
            new = [t for t in new + tail * (new[-1:] != [tokenizer.sep]) if t not in ends]
            contexts[p] += new + [tokenizer.sep]
            readings[p].append(tokenizer.decode(new))
    return readings


def free_answers(model, tokenizer, paragraphs, rng, forms):
    """The student answers every question of the records -> for each paragraph a list of (question item, answer str).
    Questions stand in forms drawn with rng; each call generates the j-th answer at sentence k of all paragraphs."""
    contexts, answers, ends = [[] for _ in paragraphs], [[] for _ in paragraphs], {tokenizer.sep, tokenizer.end}
    breaks = line_ends(tokenizer)
    for k in range(max(map(len, paragraphs), default=0)):
        questions = {p: records[k]["questions"] for p, records in enumerate(paragraphs) if k < len(records)}
        for p in questions:
            contexts[p] += tokenizer.encode(" " * bool(k) + paragraphs[p][k]["text"]) + [tokenizer.sep]
        for j in range(max(map(len, questions.values()))):
            asking = [p for p in questions if j < len(questions[p])]
            for p in asking:
                texts = question_texts(questions[p][j]["question"], forms, rng)
                contexts[p] += tokenizer.encode("".join(texts))
            for p, new in zip(asking, greedy(model, [contexts[p] for p in asking], MAX_ANSWER, breaks | ends)):
                new = [t for t in new if t not in ends]
                answers[p].append((questions[p][j], tokenizer.decode(new).strip()))
                contexts[p] += new + tokenizer.encode("\n") * (not new or new[-1] not in breaks)
        for p in questions:
            contexts[p].append(tokenizer.sep)
    return answers


def rouge_l(text, reference):
    """Rouge-L F (Lin 2004): the harmonic mean of precision and recall of the longest common subsequence of words,
    lower case, not stemmed. rouge_l("the red lamp", "a red old lamp") = 2 * 2 / (3 + 4)."""
    a, b = (re.findall(r"\w+", t.lower()) for t in (text, reference))
    row = [0] * (len(b) + 1)                                  # row[j]: the longest for the words so far and b[:j]
    for word in a:
        above, row = row, [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return 2 * row[-1] / (len(a) + len(b)) if a and b else float(text.strip() == reference.strip())


def ratio_se(groups):
    """sum of a / sum of b with its standard error -> {"value", "se", "n"}; groups: list of (a, b, n), one an
    independent unit (a paragraph: its questions hang together, so they are not independent draws). Delta method:
    se^2 = m/(m-1) sum (a - value b)^2 / (sum b)^2 over m units. None where there is nothing to say."""
    groups = [group for group in groups if group[1]]
    total, n, m = sum(b for _, b, _ in groups), sum(n for *_, n in groups), len(groups)
    value = sum(a for a, *_ in groups) / total if groups else None
    se = math.sqrt(m / (m - 1) * sum((a - value * b) ** 2 for a, b, _ in groups)) / total if m > 1 else None
    return {"value": value, "se": se, "n": n}


def mean_se(values):
    """Mean of independent values with its standard error -> {"value", "se", "n"}."""
    return ratio_se([(value, 1, 1) for value in values])


def eval_reading(model, tokenizer, paragraphs, seed=0, forms=ALL_FORMS, oracle=None):
    """How well the student reads paragraphs of annotated records, free running -> dict of {"value", "se", "n"}.

    entity_f1, entity_f1.person ...   micro F1 over the multiset of (text, type), n = reference entities
    entity_lines                      share of its entity lines that can be parsed
    answer.all, .wh, .yes_no, .attitude, .structure    exact match. attitude: questions of that kind; yes_no: the others
                                      whose answer is Yes or No; wh: the rest. structure: that kind, also in wh or yes_no
    rouge_l                           mean Rouge-L F of all answers
    raised                            share of the lines in its own questions and answers that can be parsed
    raised.known, raised.right        with oracle(paragraph index, sentence index) -> {question: answer}: share of its
                                      own questions that the oracle knows, and that it answers in the same way
    Value and se are None where n = 0. The question forms are drawn with `seed`, alike for every student."""
    names = ["entity_f1", *(f"entity_f1.{t}" for t in TYPES), "entity_lines", "rouge_l", "raised"]
    names += [f"answer.{name}" for name in ("all", "wh", "yes_no", "attitude", "structure")]
    sums = {name: [[0, 0, 0] for _ in paragraphs] for name in names + ["raised.known", "raised.right"] * bool(oracle)}
    sentences = [[record["text"] for record in paragraph] for paragraph in paragraphs]
    found, raised = (free_reading(model, tokenizer, sentences, copy) for copy in ("ner", "qra"))
    answers = free_answers(model, tokenizer, paragraphs, random.Random(seed), forms)
    for p, paragraph in enumerate(paragraphs):
        counted = [count_answer(item, answer) for item, answer in answers[p]]
        for k, record in enumerate(paragraph):
            counted += [count_entities(record, found[p][k]), count_raised(raised[p][k], oracle and oracle(p, k))]
        for name, *amounts in chain.from_iterable(counted):
            sums[name][p] = [x + y for x, y in zip(sums[name][p], amounts)]
    return {name: ratio_se(groups) for name, groups in sums.items()}


def count_entities(record, text):
    """Yields (name, a, b, n), what each figure gains by one sentence; F1 = hits / mean of those wanted and given."""
    both = record["entities"], parse_entities(text)
    wanted, given = ([(entity["text"], entity["type"]) for entity in entities] for entities in both)
    for name, kept in [("entity_f1", TYPES)] + [(f"entity_f1.{t}", (t,)) for t in TYPES]:
        want, give = (Counter(e for e in entities if e[1] in kept) for entities in (wanted, given))
        yield name, (want & give).total(), (want.total() + give.total()) / 2, want.total()
    for line in lines_of(text):
        yield "entity_lines", line.strip() == NO_ENTITY or parse_entity(line) is not None, 1, 1


def count_answer(item, answer):
    """Yields (name, a, b, n), what each figure gains by one answer to a given question."""
    group = "attitude" if item["kind"] == "attitude" else "yes_no" if item["answer"] in ("Yes", "No") else "wh"
    for name in ["all", group] + ["structure"] * (item["kind"] == "structure"):
        yield f"answer.{name}", answer == item["answer"], 1, 1
    yield "rouge_l", rouge_l(answer, item["answer"]), 1, 1


def count_raised(text, known):
    """Yields (name, a, b, n) for the student's own questions at one sentence; known: what the oracle says, or None."""
    for line in lines_of(text):
        own = parse_question(line)
        yield "raised", own is not None, 1, 1
        if own and known is not None:
            yield "raised.known", own["question"] in known, 1, 1
            yield "raised.right", known.get(own["question"]) == own["answer"], 1, 1


# ----------------------------------------------------------------------------------------------------------------------
# 4. The command line

def table(model, tokenizer, options):
    """Lines to print: a table of results, one task a line, then means; options: those of the command test."""
    def line(name, result):
        se, centred = ("-" if result.get(key) is None else f"{result[key]:.3f}" for key in ("se", "centred"))
        notes = [f"{result[key]} {what}" for key, what in (("cut", "prompts cut on the left"), ("skipped", "skipped"))
                 if result[key]]
        return (f"{name:40} {result['n']:6} {result['chance']:7.3f} {result['accuracy']:8.3f} {se:>6} {centred:>8}"
                f"{'   ' * bool(notes)}{', '.join(notes)}")
    if options.fewshot < 0:
        raise ValueError(f"--fewshot={options.fewshot}; expected 0 or more")
    learnt = settings.adapter(model, tokenizer, options)
    loaded = [(path, load_tasks(path, options.fewshot, options.seed)) for path in options.what]      # all first: a bad one is told before work
    yield f"{'task':40} {'n':>6} {'chance':>7} {'accuracy':>8} {'+-':>6} {'centred':>8}"
    tested, means = [], []
    for path, tasks in loaded:
        try:
            results = []
            for task in tasks:
                student, rest = learnt(task) if learnt else (model, task)
                results.append({"file": str(path), **eval_task(student, tokenizer, rest)})
                yield line(task["name"], results[-1])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        tested += results
        means.append(mean_of(results))
        if len(results) > 1:
            yield line(f"{Path(path).resolve().name}, mean of {len(results)}", means[-1])
        if options.json:
            report = {"student": options.folder, "setting": options.setting, "labels": options.labels, "fewshot": options.fewshot,
                      "seed": options.seed, "tasks": tested, "mean": {"of": len(means), **mean_of(means)}}
            Path(f"{options.json}.tmp").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(f"{options.json}.tmp", options.json)
    if len(means) > 1:
        yield line(f"mean of {len(means)} tasks", mean_of(means))


def main(arguments=None):
    """The commands read, test and annotate; exit code 2 and one line for what cannot be read."""
    parser = argparse.ArgumentParser(prog="brd.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    reader.add_arguments(commands.add_parser("read", help="a student reads a text, or what is typed"))
    test = commands.add_parser("test", help="a student is tested on tasks never trained on")
    test.add_argument("folder", help="a trained student, for example out/distilled")
    test.add_argument("what", nargs="+", help="task files: BIG-bench, BIG-bench-Hard, SNLI, MNLI, XNLI, RTE, CB, PAWS-X, BoolQ, SST-2 "
                      "(data/task_files.py). chance: the accuracy of guessing; centred: accuracy once each candidate's mean over the "
                      "(unlabelled) test items is taken off its scores")
    test.add_argument("--fewshot", type=int, default=0, help="solved examples before each question [0: blind]")
    test.add_argument("--seed", type=int, default=0, help="of what is drawn: examples, items to learn from [0]")
    test.add_argument("--json", metavar="FILE", help="the results as JSON too")
    test.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    settings.add_arguments(test)
    annotate.add_arguments(commands.add_parser("annotate", help="an LLM annotates every sentence of a text"))
    options = parser.parse_args(arguments)
    try:
        if options.command != "annotate":
            try:
                torch.empty(0, device=options.device)
            except (RuntimeError, AssertionError) as error:      # a device unknown, or not in this build of torch
                raise ValueError(f"--device={options.device}: {str(error).splitlines()[0]}") from None
        if options.command == "read":
            return reader.run(options)
        for line in annotate.annotate(options) if options.command == "annotate" else table(
                GPT.load(options.folder, options.device).eval(), Tokenizer.load(options.folder), options):
            print(shown(line), flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
