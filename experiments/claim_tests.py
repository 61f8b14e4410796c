"""What is measured in a student for the claims (course/claims.py), kept item by item so that errors can be told later.

    credits(model, tokenizer, task)          -> ("1101=0...", the same after centring, or None)
    unpacked("10=-")                         -> array([1., 0., .5, nan])

One sign an item: 1 right, 0 wrong, = a tie that holds the right one (counts as a half), - not tested (it was learnt from).
A file of results then has a line of some kilobytes a student, and any two arms can be compared on the same items.
"""

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import torch

import brd
from course import settings
from data import world
from data.tasks import items

LABELS = 32                  # items of a task that are learnt from in the relaxed and in the supervised setting
AGREED = 60                  # items of a task on which student and teacher are compared
LEARNT = ("swapped", "nli", "paraphrase", "who", "negation", "entity_new", "sentiment", "sentiment_words")     # ... in these tasks


def packed(credits):
    """Credits (floats) as one sign an item."""
    return "".join("1" if c == 1 else "0" if c == 0 else "=" for c in credits)


def unpacked(signs):
    """(n,) float64 of a string of packed; NaN for an item that was not tested."""
    return np.array([{"1": 1.0, "0": 0.0, "=": 0.5, "-": np.nan}[sign] for sign in signs])


def scored(model, tokenizer, task, which="items"):
    """(credits, centred credits or None) of one task, packed; which: "items", or "blank" for those without a paragraph."""
    prompts, candidates, rights = zip(*task[which])
    scores = brd.blind_scores(model, tokenizer, list(zip(prompts, candidates)))
    rows = brd.calibrate(candidates, scores)
    return packed(map(brd.tie_accuracy, scores, rights)), rows and packed(map(brd.tie_accuracy, rows, rights))


def blind(model, tokenizer, tasks, control=False):
    """{"tasks", "centred", and with control "blank"}: {task: packed credits}."""
    found = {name: scored(model, tokenizer, task) for name, task in tasks.items()}
    results = {"tasks": {name: raw for name, (raw, _) in found.items()}, "centred": {name: c for name, (_, c) in found.items() if c}}
    if control:
        results["blank"] = {name: scored(model, tokenizer, task, "blank")[0] for name, task in tasks.items()}
    return results


def learnt(model, tokenizer, tasks, setting, teacher, seed):
    """{"tasks": {task: packed credits}} of students that have learnt LABELS items of a task, answered by the teacher in the folder
    (setting "relaxed") or rightly ("supervised"), and are tested on the others."""
    options = SimpleNamespace(setting=setting, labels=LABELS, teacher=teacher if setting == "relaxed" else None, seed=seed, folder="",
                              device=str(next(model.parameters()).device))
    teach, results = settings.adapter(model, tokenizer, options), {}
    for name in LEARNT:
        student, rest = teach(tasks[name])
        raw, left = iter(scored(student, tokenizer, rest)[0]), {id(item) for item in rest["items"]}
        results[name] = "".join(next(raw) if id(item) in left else "-" for item in tasks[name]["items"])
    return {"tasks": results}


@torch.no_grad()
def answer_log_probs(model, tokenizer, items):
    """(n, V) float32: log-probabilities of the token that an answer begins with."""
    contexts = [brd.split_tokens(tokenizer, prompt, candidates, model.config.block_size)[0] for prompt, candidates, _ in items]
    return torch.cat([model.logits(model.prefill(contexts[i:i + brd.ROWS])[0][:, -1]).log_softmax(-1)
                      for i in range(0, len(contexts), brd.ROWS)])


def agreement(model, teacher, tokenizer, tasks):
    """{task: [cross-entropy -sum pT log pS of each of its first AGREED items]} in nats, over the whole vocabulary, where the answer
    begins: how far the student is from what the teacher would say (Zhou et al., the study of cross-entropies by task)."""
    found = {}
    for name, task in tasks.items():
        log_s, log_t = (answer_log_probs(m, tokenizer, task["items"][:AGREED]) for m in (model, teacher))     # (n, V)
        found[name] = [round(float(x), 3) for x in -(log_t.exp() * log_s).sum(-1)]
    return found


def reading(model, tokenizer, n=60):
    """{"who", "wh", "yes", "swapped"}: {"value", "se", "n"} in free running on n paragraphs about two people: answers that are names,
    other wh answers, true claims said to be true, and claims that mix up two people said to be false."""
    rng, groups = random.Random("claims reading"), {"who": [], "wh": [], "yes": [], "swapped": []}
    at = dataclasses.replace(world.FULL, swapped=0.6)
    drawn = [world.draw_paragraph(rng, at, split="test") for _ in range(n)]
    records = [world.annotate(rng, paragraph, i, at) for i, paragraph in enumerate(drawn)]
    for paragraph, answers in zip(drawn, brd.free_answers(model, tokenizer, records, random.Random(0), brd.ALL_FORMS)):
        values = {fact.value for fact in paragraph.facts}
        for item, answer in answers:
            right, question = item["answer"], item["question"]
            mixed = right == "No" and any(v and v in question for v in values) and not any(
                f.denied and f.value in question for f in paragraph.facts)
            group = "yes" if right == "Yes" else "swapped" if mixed else None if right == "No" else "who" if right in paragraph.people \
                else None if item["kind"] == "attitude" else "wh"
            if group:
                groups[group].append(float(answer == right))
    return {name: brd.mean_se(values) for name, values in groups.items()}


def texts_read(sources, tokenizer):
    """Every document of Rows as text, separators and ends left out."""
    special = [tokenizer.sep, tokenizer.end]
    for rows in sources:
        for d in range(len(rows)):
            tokens, _ = rows.document(d)
            yield tokenizer.decode(tokens[~np.isin(tokens, special)].tolist())


def near(tasks, sources, tokenizer):
    """{task: indices of items that are near-duplicates of what these sources hold}."""
    return {name: found for name, found in items.near_duplicates(tasks, texts_read(sources, tokenizer)).items() if found}
