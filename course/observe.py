"""One number to observe in every assignment, computed by the functions that the student has written.

    python -m course.observe 5          some seconds on a CPU; the page of the assignment explains the number
"""

import argparse
import json
import random
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import brd
import model
import td_distill as td
from course import theory
from data import world
from data.cache import TeacherCache
from data.cli import printable, run_command
from data.documents import BEHAVIOURS, course_tokenizer, encode_documents, render

REPOSITORY = Path(__file__).resolve().parent.parent


def observe_1():
    """How many ids a tokenizer of the built-in world has when 1,024 are asked for."""
    tokenizer = course_tokenizer("world", 1024)
    longest = max(tokenizer.ranks, key=len).decode()
    return f"asked for 1,024 ids, got {tokenizer.n_vocab:,}; the longest token is {longest!r}"


@torch.no_grad()
def observe_2():
    """How much an untrained model attends to the same token earlier in the row."""
    seen, plain = [], model.attend

    def attend(q, k, v, mask, causal):
        seen.append(torch.softmax(q @ k.transpose(-2, -1) + mask, -1))      # (B, H, T, S)
        return plain(q, k, v, mask, causal)
    torch.manual_seed(1)
    rows = torch.stack([torch.randperm(1000)[:40] for _ in range(256)])     # (B, T); no token twice
    rows[:, -1] = rows[:, 10]                                               # but the last
    with mock.patch.object(model, "attend", attend):
        model.GPT(model.GPTConfig(n_vocab=1000, conv_width=0)).hidden(rows)
    weights = seen[0][:, :, -1, 11].mean(0)                                 # (H,); token 10 is in column 11
    return (f"attention to the one equal token among 39: {weights[:2].mean():.2f} in heads whose keys are "
            f"their queries, {weights[2:].mean():.2f} in the others")


def observe_3():
    """How long the three copies of a text are."""
    tokenizer, rng, tokens = course_tokenizer("world", 1024), random.Random(1), {}
    paragraphs = [world.annotate(rng, world.draw_paragraph(rng)) for _ in range(1000)]
    for behaviour in BEHAVIOURS:
        documents = [render(paragraph, behaviour, rng) for paragraph in paragraphs]
        tokens[behaviour] = sum(len(ids) for ids, _ in encode_documents(documents, tokenizer))
    return (f"tokens of 1,000 paragraphs: D_ORI {tokens['ori']:,}, D_NER {tokens['ner']:,}, D_QRA "
            f"{tokens['qra']:,}; together {sum(tokens.values()) / tokens['ori']:.1f} times the text")


def observe_4():
    """Which of two answers, of one token and of two, an untrained model prefers."""
    tokenizer, rng = course_tokenizer("world", 1024), random.Random(1)
    torch.manual_seed(1)
    gpt, items = model.GPT(model.GPTConfig(n_vocab=tokenizer.n_vocab, conv_width=0)), []
    for _ in range(1000):
        person, short, long = (rng.choice(world.WORDS[name]) for name in ("person", "place", "organisation"))
        items.append((f"{person} told us. What did {person} like?", [short, long]))
    scores, _ = brd.blind_scores(gpt, tokenizer, items)
    lengths = [[len(tokenizer.encode(" " + word)) for word in candidates] for _, candidates in items]
    mean = sum(b > a for a, b in scores) / len(items)
    total = sum(b * m > a * n for (a, b), (n, m) in zip(scores, lengths)) / len(items)
    return (f"the longer of two answers wins {mean:.0%} of 1,000 items by the mean log-probability, "
            f"{total:.0%} by the sum")


def observe_5():
    """What a smaller p keeps of the teacher's sets in data/teacher."""
    cache, sizes, mass = TeacherCache(REPOSITORY / "data" / "teacher"), [], []
    for some in np.array_split(np.argsort(cache.lengths), 64):              # of similar lengths
        batch = cache.batch(some)
        kept = td.restrict_to_p(batch["log_probs"], batch["mask"], 0.8)
        drawn = batch["mask"].any(-1)
        sizes.append(kept.sum(-1)[drawn])
        mass.append((batch["log_probs"].double().exp() * kept).sum(-1)[drawn])
    sizes, mass = torch.cat(sizes), torch.cat(mass)
    return (f"at p = .8 the teacher's sets hold {sizes.float().mean():.2f} tokens in the mean and "
            f"{mass.mean():.3f} of its mass; {(sizes == 1).float().mean():.1%} of them hold a single token")


def observe_6():
    """The probability that a student gives to the most probable token after distillation on a set."""
    probs = 1 / torch.arange(1, 51).double()
    probs = probs / probs.sum()
    ids, log_probs, mask = (x[None] for x in td.top_p_sets(probs.log()[None], 0.8, 50))
    found = []
    for tail in ("inside", "bucket"):
        logits = torch.zeros(1, 1, 50, dtype=torch.float64, requires_grad=True)
        lbfgs = torch.optim.LBFGS([logits], max_iter=100, tolerance_change=0, line_search_fn="strong_wolfe")

        def closure():
            lbfgs.zero_grad()
            student, teacher = td.student_terms(logits, ids, ids[..., 0]), td.TeacherSets(log_probs, mask)
            loss, _ = td.topp_forward_kl(student, teacher, torch.ones(1, 1), tail=tail)
            loss.backward()
            return loss
        lbfgs.step(closure)
        found.append(f"{logits.detach().softmax(-1)[0, 0, 0]:.3f} with tail={tail!r}")
    return f"teacher {probs[0]:.3f}, set of {int(mask.sum())} tokens of 50; student " + ", ".join(found)


def observe_7():
    """Where Bellman Distill leads the student of a .9 / .1 teacher, for texts of one token."""
    one, found = theory.world(np.full((1, 2), -1), np.array([[0.9, 0.1]]), 1, 0.99), []
    for alpha in (10, 1, 0.1):
        def loss(Q):
            return theory.mean(one, theory.bellman_tokens(one, Q, alpha))
        Q, _ = theory.minimise(loss, np.zeros((1, 2)))
        found.append(f"{theory.softmax(Q)[0, 0]:.3f} at alpha {alpha:g}")
    return "teacher .900; student " + ", ".join(found)


def observe_8():
    """The difference that a term of temporal difference makes; the grader compares it with the runs."""
    report = json.loads((REPOSITORY / "course" / "8-report.json").read_text(encoding="utf-8"))
    return ("{row} minus {control}, right answers at T = 1, {seeds} seeds: {difference:+.3f} ± "
            "{standard_error:.3f}".format(**report))


OBSERVE = (observe_1, observe_2, observe_3, observe_4, observe_5, observe_6, observe_7, observe_8)


def main(arguments=None):
    """Prints the number of an assignment; ValueError where its functions are not written yet."""
    parser = argparse.ArgumentParser(prog="python -m course.observe", description=__doc__.split("\n")[0])
    parser.add_argument("number", type=int, choices=range(1, 9), help="of the assignment")
    try:
        print(printable(OBSERVE[parser.parse_args(arguments).number - 1]()))
    except NotImplementedError as error:
        raise ValueError(f"not written yet: {error}") from None


if __name__ == "__main__":
    run_command(main)
