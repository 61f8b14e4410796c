"""One number to observe in every assignment, computed by the functions that the student has written.

    python course/observe.py 5          prints a line or two; the page of the assignment says why it comes out so

All but number 8 take some seconds of a CPU; number 8 reads the results of a comparison that was run before.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(REPOSITORY)                               # in place of course/, where this file lies

import brd  # noqa: E402
import model  # noqa: E402
import td_distill as td  # noqa: E402
from data import reads, world  # noqa: E402
from data.cache import TeacherCache  # noqa: E402
from data.documents import course_tokenizer  # noqa: E402


def observe_1():
    """How many ids a tokenizer of the built-in world gets that is asked for 1,024 of them."""
    tokenizer = course_tokenizer("world", 1024)
    longest = max(tokenizer.ranks, key=len).decode()
    yield f"asked for 1,024 ids, got {tokenizer.n_vocab:,}; the longest token is {longest!r}"


@torch.no_grad()
def observe_2():
    """How much of its attention a token gives to the same token earlier in the row, in a model that has learnt nothing."""
    seen, plain = [], model.attend

    def attend(q, k, v, mask, causal):
        seen.append(torch.softmax(q @ k.transpose(-2, -1) + mask, -1))                  # (B, H, T, S)
        return plain(q, k, v, mask, causal)
    torch.manual_seed(1)
    rows = torch.stack([torch.randperm(1000)[:40] for _ in range(256)])                 # (B, T), no token twice
    rows[:, -1] = rows[:, 10]                                                           # but the last
    gpt = model.GPT(model.GPTConfig(n_vocab=1000, conv_width=0))
    try:
        model.attend = attend
        gpt.hidden(rows)
    finally:
        model.attend = plain
    weights = seen[0][:, :, -1, 11].mean(0)                                             # (H,); token 10 stands in column 11
    yield (f"attention to the one equal token among 39: {weights[:2].mean():.2f} in heads whose keys are their queries, "
           f"{weights[2:].mean():.2f} in the others")


def observe_3():
    """How long the three copies of a text are."""
    tokenizer, rng, tokens = course_tokenizer("world", 1024), random.Random(1), {}
    paragraphs = [world.annotate(rng, world.draw_paragraph(rng)) for _ in range(1000)]
    for copy in ("ori", "ner", "qra"):
        documents = [document for paragraph in paragraphs for document in brd.documents(paragraph, copy, rng)]
        tokens[copy] = sum(len(ids) for ids, _ in brd.encode_documents(documents, tokenizer))
    yield (f"tokens of 1,000 paragraphs: D_ORI {tokens['ori']:,}, D_NER {tokens['ner']:,}, D_QRA {tokens['qra']:,}; "
           f"together {sum(tokens.values()) / tokens['ori']:.1f} times the text")


def observe_4():
    """Which of two answers, one token long and two, a model prefers that has learnt nothing."""
    tokenizer, rng = course_tokenizer("world", 1024), random.Random(1)
    torch.manual_seed(1)
    gpt, items = model.GPT(model.GPTConfig(n_vocab=tokenizer.n_vocab, conv_width=0)).eval(), []
    for _ in range(1000):
        person, place, job = (rng.choice(world.WORDS[name]) for name in ("person", "place", "organisation"))
        items.append((f"{person} told us. What did {person} like?", [place, job]))
    scores = brd.blind_scores(gpt, tokenizer, items)
    lengths = [[len(tokenizer.encode(" " + candidate)) for candidate in candidates] for _, candidates in items]
    mean = sum(b > a for a, b in scores) / len(items)
    total = sum(b * m > a * n for (a, b), (n, m) in zip(scores, lengths)) / len(items)
    yield f"the longer of two answers wins {mean:.0%} of 1,000 items by the mean log-probability, {total:.0%} by the sum"


def observe_5():
    """What is left of the teacher's sets in data/teacher at a smaller p."""
    cache, sizes, mass = Cache(REPOSITORY / "data" / "teacher"), [], []
    for some in np.array_split(np.argsort(cache.lengths), 64):                          # of like length: little padding
        batch = cache.batch(some)
        kept = reads.narrow(batch["log_probs"], batch["mask"], 0.8)
        drawn = batch["mask"].any(-1)
        sizes.append(kept.sum(-1)[drawn])
        mass.append((batch["log_probs"].double().exp() * kept).sum(-1)[drawn])
    sizes, mass = torch.cat(sizes), torch.cat(mass)
    yield (f"at p = .8 the teacher's sets hold {sizes.float().mean():.2f} tokens in the mean and {mass.mean():.3f} of its mass; "
           f"{(sizes == 1).float().mean():.1%} of them hold a single token")


def minimised(loss, logits):
    """The logits where a loss comes to rest, from those given on, and without their gradient."""
    logits.requires_grad_()
    newton = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        newton.zero_grad()
        value = loss(logits)
        value.backward()
        return value
    newton.step(closure)
    return logits.detach()


def observe_6():
    """What a student makes of a teacher's set: its probability for the most probable token."""
    teacher = 1 / torch.arange(1, 51).double()
    teacher = teacher / teacher.sum()
    ids, log_probs, mask = (x[None] for x in reads.top_p_sets(teacher.log()[None], 0.8, 50))
    found = {}
    for tail in ("inside", "bucket"):
        def loss(logits):
            z_K, _, log_Z = td.student_terms(logits, ids, ids[..., 0])
            return td.topp_forward_kl(z_K, log_Z, log_probs, mask, torch.ones(1, 1), tail=tail)[0]
        found[tail] = minimised(loss, torch.zeros(1, 1, 50, dtype=torch.float64)).softmax(-1)[0, 0, 0]
    yield (f"teacher {teacher[0]:.3f}, set of {int(mask.sum())} tokens of 50; "
           f"student {found['inside']:.3f} with tail='inside', {found['bucket']:.3f} with tail='bucket'")


def observe_7():
    """Where Bellman Distill leads a student whose teacher says .9 and .1, in one state in which every token ends the text."""
    taken = torch.tensor([[0] * 9 + [1]])                                               # ten texts of one token
    ids, yes, ones = torch.arange(2).expand(1, 10, 2), torch.ones(1, 10, dtype=torch.bool), torch.ones(1, 10).double()
    found = {}
    for alpha in (10.0, 1.0, 0.1):
        def loss(logits):
            logits = logits.expand(1, 10, 2)
            mask, hit, unused = torch.ones_like(ids, dtype=torch.bool), ids == taken[..., None], torch.zeros(1, 10, 2)
            return td.bellman_distill(*td.student_terms(logits, ids, taken), unused, mask, hit, yes, ones, alpha=alpha)[0]
        found[alpha] = minimised(loss, torch.zeros(1, 1, 2, dtype=torch.float64)).softmax(-1)[0, 0, 0]
    yield "teacher .900; student " + ", ".join(f"{p:.3f} at alpha {alpha:g}" for alpha, p in found.items())


def observe_8():
    """The difference that a term of temporal difference makes, from course/8-results.jsonl."""
    lines = (REPOSITORY / "course" / "8-results.jsonl").read_text(encoding="utf-8").splitlines()
    runs = {(run["row"], run["seed"]): run["T=1"] for run in map(json.loads, lines) if run["seed"] > 0}
    seeds = sorted(seed for row, seed in runs if row == "prize")
    control = next(row for row, _ in runs if row != "prize")
    pairs = np.array([runs["prize", seed] - runs[control, seed] for seed in seeds])
    yield (f"prize minus {control}, right answers at T = 1, {len(pairs)} seeds: "
           f"{pairs.mean():+.3f} ± {pairs.std(ddof=1) / len(pairs) ** 0.5:.3f}")


OBSERVE = (observe_1, observe_2, observe_3, observe_4, observe_5, observe_6, observe_7, observe_8)


def main(argv=None):
    """The command -> exit code: 0, or 2 with one line for what cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, choices=range(1, 9), help="of the assignment")
    number = parser.parse_args(argv).number
    try:
        for line in OBSERVE[number - 1]():
            print(printable(line))
    except (ValueError, OSError, NotImplementedError) as error:         # the last: not written yet
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
