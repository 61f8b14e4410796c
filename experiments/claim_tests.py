"""What experiments/claims.py measures in a student, kept item by item, so that errors can be computed later.

One sign an item: 1 right, 0 wrong, = a tie that holds the right one (a half), - not tested (it was learnt
from). Any two arms can be compared on the same items.
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


def scored(model, tokenizer, items):
    """Packed credits of items (prompt, candidates, {index of a right one})."""
    prompts, candidates, rights = zip(*items)
    scores, _ = brd.blind_scores(model, tokenizer, list(zip(prompts, candidates)))
    return packed(map(brd.tie_accuracy, scores, rights))


def blind(model, tokenizer, tasks, control=False):
    """{"tasks": {task: packed credits}}, and with control "blank": the same without paragraphs."""
    kinds = {"tasks": "items", "blank": "blank"} if control else {"tasks": "items"}
    return {key: {name: scored(model, tokenizer, task[which]) for name, task in tasks.items()}
            for key, which in kinds.items()}


def learnt(model, tokenizer, tasks, setting, teacher, seed):
    """{"tasks": {task: packed credits}} of students that have learnt LABELS items of a task, answered by the
    teacher of a folder (setting "relaxed") or rightly ("supervised"), and are tested on the others."""
    teacher, device = teacher if setting == "relaxed" else None, str(next(model.parameters()).device)
    options = SimpleNamespace(setting=setting, labels=LABELS, teacher=teacher, seed=seed, device=device)
    learn, results = adapter(model, tokenizer, options), {}
    for name in LEARNT:
        student, rest = learn(tasks[name])
        credits, left = iter(scored(student, tokenizer, rest["items"])), {id(item) for item in rest["items"]}
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
    answers that are names, other wh answers, true claims, and claims that mix up two people."""
    drawn, records = test_paragraphs(n, "claims reading", dataclasses.replace(world.FULL, swapped=0.6))
    groups = {"who": [], "wh": [], "yes": [], "swapped": []}
    for paragraph, answers in zip(drawn, brd.free_answers(model, tokenizer, records, random.Random(0))):
        for item, answer in answers:
            right = item["answer"]
            asked = [fact for fact in paragraph.facts if fact.value and fact.value in item["question"]]
            if right == "Yes":
                groups["yes"].append(answer == right)
            elif right == "No" and asked and not any(fact.denied for fact in asked):
                groups["swapped"].append(answer == right)
            elif right in paragraph.people:
                groups["who"].append(answer == right)
            elif right != "No" and item["kind"] != "attitude":
                groups["wh"].append(answer == right)
    return {name: mean_se(values) for name, values in groups.items()}


def near(tasks, sources, tokenizer):
    """{task: indices of items that are near-duplicates of a document of these Rows}."""
    documents = (rows.document(d)[0] for rows in sources for d in range(len(rows)))
    special = [tokenizer.sep, tokenizer.end]
    texts = (tokenizer.decode(tokens[~np.isin(tokens, special)].tolist()) for tokens in documents)
    found = claim_items.near_duplicates(tasks, texts)
    return {name: indices for name, indices in found.items() if indices}
