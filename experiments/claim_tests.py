"""What experiments/claims.py measures in a student, kept item by item, so that errors can be computed later.

    blind(model, tokenizer, tasks)           -> {"tasks": {"who": "1101=0..."}, "centred": {...}}
    unpacked("10=-")                         -> array([1., 0., .5, nan])

One sign an item: 1 right, 0 wrong, = a tie that holds the right one (a half), - not tested (it was learnt
from). A line of a file of results has some kilobytes, and any two arms can be compared on the same items.
"""

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import torch

import brd
from data import world
from data.documents import test_paragraphs
from data.figures import mean_se
from experiments import claim_items
from experiments.blind import adapter

LABELS, AGREED = 32, 60      # items of a task to learn from; items on which student and teacher are compared
LEARNT = ("swapped", "nli", "paraphrase", "who", "negation", "entity_new", "sentiment", "sentiment_words")
SIGNS = {1.0: "1", 0.0: "0", 0.5: "="}


def packed(credits):
    """Credits (floats) as one sign an item."""
    return "".join(SIGNS.get(credit, "=") for credit in credits)


def unpacked(signs):
    """(n,) float64 of a string of packed; NaN for an item that was not tested."""
    values = {sign: credit for credit, sign in SIGNS.items()}
    return np.array([values.get(sign, np.nan) for sign in signs])


def scored(model, tokenizer, task, which="items"):
    """(credits, centred credits or None) of one task, packed; which: "items", or "blank" without a
    paragraph."""
    prompts, candidates, rights = zip(*task[which])
    scores, _ = brd.blind_scores(model, tokenizer, list(zip(prompts, candidates)))
    rows = brd.calibrate(candidates, scores)
    centred = packed(map(brd.tie_accuracy, rows, rights)) if rows else None
    return packed(map(brd.tie_accuracy, scores, rights)), centred


def blind(model, tokenizer, tasks, control=False):
    """{"tasks", "centred", and with control "blank"}: {task: packed credits}."""
    found = {name: scored(model, tokenizer, task) for name, task in tasks.items()}
    results = {"tasks": {name: raw for name, (raw, _) in found.items()},
               "centred": {name: centred for name, (_, centred) in found.items() if centred}}
    if control:
        results["blank"] = {name: scored(model, tokenizer, task, "blank")[0] for name, task in tasks.items()}
    return results


def learnt(model, tokenizer, tasks, setting, teacher, seed):
    """{"tasks": {task: packed credits}} of students that have learnt LABELS items of a task, answered by the
    teacher of a folder (setting "relaxed") or rightly ("supervised"), and are tested on the others."""
    teacher, device = teacher if setting == "relaxed" else None, str(next(model.parameters()).device)
    options = SimpleNamespace(setting=setting, labels=LABELS, teacher=teacher, seed=seed, device=device)
    learn, results = adapter(model, tokenizer, options), {}
    for name in LEARNT:
        student, rest = learn(tasks[name])
        credits, left = iter(scored(student, tokenizer, rest)[0]), {id(item) for item in rest["items"]}
        results[name] = "".join(next(credits) if id(item) in left else "-" for item in tasks[name]["items"])
    return {"tasks": results}


@torch.no_grad()
def agreement(model, teacher, tokenizer, tasks):
    """{task: [cross-entropy -sum pT log pS of each of its first AGREED items]} in nats over the whole
    vocabulary, at the token where the answer begins (Zhou et al., the study of cross-entropies by task)."""
    found = {}
    for name, task in tasks.items():
        contexts = [brd.split_tokens(tokenizer, prompt, candidates, model.config.block_size)[0]
                    for prompt, candidates, _ in task["items"][:AGREED]]
        hidden = (m.prefill(contexts)[0][:, -1] for m in (model, teacher))
        log_s, log_t = (m.logits(h).log_softmax(-1) for m, h in zip((model, teacher), hidden))     # (n, V)
        found[name] = [round(float(x), 3) for x in -(log_t.exp() * log_s).sum(-1)]
    return found


def reading(model, tokenizer, n=60):
    """{"who", "wh", "yes", "swapped"}: {"value", "se", "n"} in free running on n paragraphs about two people:
    answers that are names, other wh answers, true claims called true, and claims that mix up two people
    called false."""
    drawn, records = test_paragraphs(n, "claims reading", dataclasses.replace(world.FULL, swapped=0.6))
    groups = {"who": [], "wh": [], "yes": [], "swapped": [], "other": []}
    for paragraph, answers in zip(drawn, brd.free_answers(model, tokenizer, records, random.Random(0))):
        for item, answer in answers:
            right, group = item["answer"], "other"
            asked = [fact for fact in paragraph.facts if fact.value and fact.value in item["question"]]
            if right == "Yes":
                group = "yes"
            elif right == "No" and asked and not any(fact.denied for fact in asked):
                group = "swapped"
            elif right in paragraph.people:
                group = "who"
            elif right != "No" and item["kind"] != "attitude":
                group = "wh"
            groups[group].append(float(answer == right))
    return {name: mean_se(values) for name, values in groups.items() if name != "other"}


def near(tasks, sources, tokenizer):
    """{task: indices of items that are near-duplicates of a document of these Rows}."""
    documents = (rows.document(d)[0] for rows in sources for d in range(len(rows)))
    special = [tokenizer.sep, tokenizer.end]
    texts = (tokenizer.decode(tokens[~np.isin(tokens, special)].tolist()) for tokens in documents)
    found = claim_items.near_duplicates(tasks, texts)
    return {name: indices for name, indices in found.items() if indices}
