"""Figures with standard errors, counted item by item: {"value", "se", "n"}, None where there is nothing."""

import math
import re
from collections import Counter, defaultdict

import numpy as np
import torch

from data import annotations
from data.annotations import NO_ENTITY, TYPES, lines_of, parse_entities, parse_entity, parse_question
from data.batches import DataMix, plan_batches


def ratio_se(groups):
    """sum of a / sum of b with its standard error -> {"value", "se", "n"}; groups: list of (a, b, n), each an
    independent unit: a paragraph. Delta method: se^2 = m/(m-1) sum (a - value b)^2 / (sum b)^2.

    m counts the units whose b is not 0: the others are left out. n: that of the units, summed. Without units
    value and se are None and n is 0; with a single one se is None."""
    groups = [group for group in groups if group[1]]
    total, n, m = sum(b for _, b, _ in groups), sum(n for *_, n in groups), len(groups)
    value = sum(a for a, *_ in groups) / total if groups else None
    se = math.sqrt(m / (m - 1) * sum((a - value * b) ** 2 for a, b, _ in groups)) / total if m > 1 else None
    return {"value": value, "se": se, "n": n}


def paired_se(groups, others):
    """The difference, `groups` minus `others`, of two ratios over the same units in the same order, as
    ratio_se has them -> {"value", "se", "n"}. A unit changes the difference by (a - value b) / (sum of b) of
    its own side minus that of the other; se^2 = m/(m-1) times the sum of their squares.

    m and n count all units, also those whose b is 0. Where a side has no b above 0, value and se are None and
    n is 0; se is None for a single unit. ValueError where the numbers of units differ."""
    if len(groups) != len(others):
        raise ValueError(f"{len(groups)} and {len(others)} units; expected the same units twice")
    if not all(sum(b for _, b, _ in some) for some in (groups, others)):
        return mean_se([])

    def deviations(groups):
        total = sum(b for _, b, _ in groups)
        value = sum(a for a, *_ in groups) / total
        return value, np.array([(a - value * b) / total for a, b, _ in groups])
    (x, dx), (y, dy) = deviations(groups), deviations(others)
    se = math.sqrt(len(dx) / (len(dx) - 1) * ((dx - dy) ** 2).sum()) if len(dx) > 1 else None
    return {"value": x - y, "se": se, "n": len(dx)}


def mean_se(values):
    """The mean of independent values with its standard error -> {"value", "se", "n"}."""
    return ratio_se([(value, 1, 1) for value in values])


def cell(entry, form=".3f"):
    """A figure with its standard error as a cell of a table; entry: a dict with "value" and "se", or None."""
    if not entry or entry["value"] is None:
        return "-"
    return f"{entry['value']:{form}} " + ("±-" if entry["se"] is None else f"±{entry['se']:.3f}")


def thinned(losses, n=200):
    """At most n means of neighbours of a list: a loss curve that is small and not jagged."""
    return [round(float(np.mean(part)), 4) for part in np.array_split(losses, min(n, len(losses)))]


@torch.no_grad()
def bits_per_byte(model, rows, text_bytes):
    """Bits that `model` needs for a byte of the text of `rows`, document ends included."""
    nats, one_weight = 0.0, np.ones(256, np.float32)                            # for every role
    positions = min(4096, 2 ** 26 // model.config.n_vocab)                      # 268 MB of logits at most
    for batch in plan_batches(DataMix([rows], [1.0]), int((rows.lengths - 1).sum()), positions, 0):
        ids, targets, weights = (t.to(model.mask.device) for t in rows.batch(batch.documents, one_weight))
        logits = model(ids)                                                     # (B, T, V)
        nll = logits.logsumexp(-1) - logits.gather(-1, targets[..., None])[..., 0]
        nats += (weights * nll).sum().item()
    return nats / math.log(2) / text_bytes


def rouge_l(text, reference):
    """Rouge-L F (Lin 2004) of the longest common subsequence of words, in lower case, not stemmed."""
    a, b = (re.findall(r"\w+", t.lower()) for t in (text, reference))
    places = Counter()                                    # bit j of places[w]: w is word j of b
    for j, word in enumerate(b):
        places[word] |= 1 << j
    every = row = (1 << len(b)) - 1                       # bit j is 0: the longest of a so far and b[:j + 1]
    for word in a:                                        # is by one longer than of b[:j] (Hyyrö 2004)
        met = row & places[word]
        row = (row + met | row - met) & every
    n = len(b) - row.bit_count()
    return 2 * n / (len(a) + len(b)) if a and b else float(text.strip() == reference.strip())


def count_entities(record, text):
    """Yields (name, a, b, n), what figures of brd.eval_reading gain by the entity lines of one sentence."""
    both = record["entities"], parse_entities(text)
    wanted, given = ([(entity["text"], entity["type"]) for entity in entities] for entities in both)
    names = [("entity_f1", TYPES)] + [(f"entity_f1.{t}", (t,)) for t in TYPES]
    for name, kept in names if record["entities"] != annotations.NOT_LISTED else ():
        want, give = (Counter(e for e in entities if e[1] in kept) for entities in (wanted, given))
        yield name, (want & give).total(), (want.total() + give.total()) / 2, want.total()
    for line in lines_of(text):
        yield "entity_lines", line.strip() == NO_ENTITY or parse_entity(line) is not None, 1, 1


def answer_figures(item):
    """The figures for which an answer to a question counts, whether it is right or not."""
    groups = {"Yes": ["yes_no"], "No": ["yes_no", "no"]}.get(item["answer"], ["wh"])
    groups = groups if item["kind"] == "content" else [item["kind"]]
    return [f"answer.{name}" for name in ["all", *groups]]


def count_answer(item, answer):
    """The same for one answer to a given question."""
    for name in answer_figures(item):
        yield name, answer == item["answer"], 1, 1
    yield "rouge_l", rouge_l(answer, item["answer"]), 1, 1


def majorities(records):
    """{figure of brd.eval_reading: {"majority": what one answer to all questions has}}: the most frequent
    right answer of these records, those of the test; "entity_f1": right texts, all of the commonest type."""
    right = defaultdict(Counter)
    for record in records:
        right["entity_f1"].update(entity["type"] for entity in record["entities"])
        for item in record["questions"]:
            for name in answer_figures(item):
                right[name][item["answer"]] += 1
    return {name: {"majority": max(seen.values()) / seen.total()} for name, seen in right.items() if seen}


def count_raised(text, known):
    """The same for a student's own questions; known: {question: answer} that an oracle gives, or None."""
    for line in lines_of(text):
        own = parse_question(line)
        yield "raised", own is not None, 1, 1
        if own and known is not None:
            yield "raised.known", own["question"] in known, 1, 1
            yield "raised.right", known.get(own["question"]) == own["answer"], 1, 1
