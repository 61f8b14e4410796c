"""One number to observe in every assignment, computed by the functions that the student has written.

    python -m course.observe 5          some seconds on a CPU; the page of the assignment explains the number
"""

import json
import math
import random
from unittest import mock

import numpy as np
import torch

import brd
import model
import td_distill as td
from course.assignments import REPOSITORY
from data import world
from data.cache import TeacherCache
from data.cli import Parser, printable, run_command
from data.documents import BEHAVIOURS, course_tokenizer, encode_documents, render
from data.figures import paired_se, ratio_se
from data.report import STUDENTS
from data.sets import restrict_to_p, top_p_sets


def observe_1():
    """How many ids a tokenizer of the built-in world has when 2,048 are asked for."""
    tokenizer = course_tokenizer("world", 2048)
    longest = max(tokenizer.ranks, key=len)
    return f"asked for 2,048 ids, got {tokenizer.n_vocab:,}; the longest token is {longest.decode()!r}"


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
    gpt = model.GPT(model.GPTConfig(n_vocab=tokenizer.n_vocab, conv_width=0))
    words = [[rng.choice(world.WORDS[name]) for name in ("person", "place", "organisation")]
             for _ in range(1000)]
    items = [(f"{person} told us. What did {person} like?", both) for person, *both in words]
    scores, lengths = np.array(brd.blind_scores(gpt, tokenizer, items)[0]), np.array(
        [[len(tokenizer.encode(" " + word)) for word in both] for _, both in items])        # both (1000, 2)
    mean, total = (np.mean(x[:, 1] > x[:, 0]) for x in (scores, scores * lengths))
    return (f"the longer of two answers wins {mean:.0%} of 1,000 items by the mean log-probability, "
            f"{total:.0%} by the sum")


def observe_5():
    """What a smaller p keeps of the teacher's sets in data/teacher."""
    cache, drawn = TeacherCache(REPOSITORY / "data" / "teacher"), []
    for some in np.array_split(np.argsort(cache.lengths), 64):              # of similar lengths
        batch = cache.batch(some)
        kept = restrict_to_p(batch["log_probs"], batch["mask"], 0.8)
        probs = batch["log_probs"].double().exp() * kept
        drawn.append(torch.stack([kept.sum(-1), probs.sum(-1)])[:, batch["mask"].any(-1)])
    sizes, mass = torch.cat(drawn, 1)
    return (f"at p = .8 the teacher's sets hold {sizes.mean():.2f} tokens in the mean and "
            f"{mass.mean():.3f} of its mass; {(sizes == 1).double().mean():.1%} of them hold a single token")


def distilled(log_probs, ids, mask, V, tail):
    """The student's probabilities (V,) at which topp_forward_kl is smallest, for one set of top_p_sets."""
    logits = torch.zeros(1, V, dtype=torch.float64, requires_grad=True)
    lbfgs = torch.optim.LBFGS([logits], max_iter=100, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        lbfgs.zero_grad()
        student, teacher = td.student_terms(logits, ids, ids[:, 0]), td.TeacherSets(log_probs, mask)
        loss, _ = td.topp_forward_kl(student, teacher, torch.ones(1), tail=tail)
        loss.backward()
        return loss
    lbfgs.step(closure)
    return logits.detach().softmax(-1)[0]


def observe_6():
    """The probability that a student gives to the most probable token after distillation on a set."""
    log_t = (1 / torch.arange(1, 51).double()).log().log_softmax(-1)
    probs, (ids, log_probs, mask) = log_t.exp(), top_p_sets(log_t[None], 0.8, 50)
    found = [f"{distilled(log_probs, ids, mask, 50, tail)[0]:.3f} with tail={tail!r}"
             for tail in ("inside", "bucket")]
    return f"teacher {probs[0]:.3f}, set of {int(mask.sum())} tokens of 50; student " + ", ".join(found)


def two_doors():
    """A teacher takes one of two doors; a corridor follows, then a mark, which the student knows with .9
    behind the first door and with .3 behind the second -> student, teacher (of both texts), .9 and .3."""
    known, logits = torch.tensor([0.9, 0.3]), torch.full((2, 3, 5), -1e3)
    logits[:, 0, :2] = logits[:, 1, 2] = 0
    logits[:, 2, 3:] = torch.stack([known, 1 - known], -1).log()
    taken, terminal = torch.tensor([[0, 2, 3], [1, 2, 3]]), torch.tensor([False, False, True]).expand(2, 3)
    ids = torch.tensor([[0, 1], [2, 0], [3, 0]]).expand(2, 3, 2)
    mask = torch.tensor([[True, True], [True, False], [True, False]]).expand(2, 3, 2)
    student = td.student_terms(logits, ids, taken)._replace(U=torch.zeros(2, 3, 2))
    teacher = td.TeacherSets(torch.zeros(2, 3, 2), mask, (ids == taken[..., None]) & mask, terminal)
    return student, teacher, known


def observe_7():
    """What looking ahead is worth at the two doors."""
    (student, teacher, known), found = two_doors(), []
    for gamma in (0, 0.5, 1):
        doors = td.soft_returns(student, teacher, gamma)[:, 0].softmax(-1)
        found.append(f"{doors @ known:.3f} at gamma {gamma:g}")
    return "right answers: " + ", ".join(found)


def observe_8():
    """What annotations change on two blind tasks, with the error of paired items and that of two groups."""
    results, found = json.loads((REPOSITORY / "course" / "8-results.json").read_text(encoding="utf-8")), []
    for task in ("sentiment_words", "nli"):
        plain, brd = ([(credit, 1, 1) for credit in results["students"][name]["blind"][task]["credits"]]
                      for name in STUDENTS)
        apart = math.hypot(ratio_se(brd)["se"], ratio_se(plain)["se"])
        pair = paired_se(brd, plain)
        found.append(f"{task} {pair['value']:+.3f}, ± {pair['se']:.3f} paired, ± {apart:.3f} unpaired")
    return "brd minus plain: " + "; ".join(found)


def observe_9():
    """What a term of temporal difference makes of right answers; the grader compares it with the runs."""
    report = json.loads((REPOSITORY / "course" / "9-report.json").read_text(encoding="utf-8"))
    gains = ["{difference:+.3f} ± {standard_error:.3f}".format(**one) for one in (*report["routes"], report)]
    return "right answers: TD minus KD {}, where it ends {}; prize minus control {}".format(*gains)


OBSERVE = {int(name[8:]): function for name, function in list(vars().items()) if name.startswith("observe_")}


def main(arguments=None):
    """Prints the number of an assignment; NotImplementedError where its functions are not written yet."""
    parser = Parser(prog="python -m course.observe", description=__doc__.split("\n")[0])
    parser.add_argument("number", type=int, choices=OBSERVE, help="of the assignment")
    print(printable(OBSERVE[parser.parse_args(arguments).number]()))


if __name__ == "__main__":
    run_command(main)
