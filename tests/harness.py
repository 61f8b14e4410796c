"""The blind score of brd.py beside that of lm-evaluation-harness: one student, exported, and the same items.

    pip install "lm_eval[hf]"
    python -m tests.harness                 # a student with random weights
    python -m tests.harness out/student     # yours, of GPT-2's layout

    200 items, 800 candidates, tokenizer bpe, 501 ids
    mean log-probability a token, -13.92 to -6.24: largest difference 3.8e-06
    the same answer to 200 of 200 items

The items are sentences of the built-in world without their last words, which stand among those of other
sentences. The prompt ends without a space and the candidate begins with one, the rule of brd.split_tokens, so
both read the same tokens. The harness returns the sum over a candidate's tokens; its "acc" compares sums, its
"acc_norm" sums a byte, while the blind score is the mean a token. Exit code 1 where the difference is above
1e-3, 2 for what cannot be read.
"""
import random
import sys
import tempfile
from pathlib import Path

import torch

from adapters.gpt2 import GPT2, GPT2Config, export
from brd import blind_scores, tie_accuracy
from data import world
from data.tokenizer import Tokenizer, train_bpe
from model import GPT

N_ITEMS, N_CANDIDATES, TOLERANCE = 200, 4, 1e-3


def random_student():
    """A small GPT of GPT-2's layout whose logits are far from uniform, and its tokenizer."""
    tokenizer = train_bpe([" ".join(sentences) for sentences in world.plain(200, "harness vocabulary")], 501)
    torch.manual_seed(0)
    model = GPT2(GPT2Config(tokenizer.n_vocab, 128, 3, 4, 64))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model.eval(), tokenizer


def plain_items(rng):
    """[(prompt, [candidate, ...])]: a sentence without its last words, and such ends of four sentences."""
    sentences = [sentence for paragraph in world.plain(400, "harness items") for sentence in paragraph]
    items = []
    while len(items) < N_ITEMS:
        n, drawn = rng.randint(1, 3), rng.sample(sentences, N_CANDIDATES)
        ends = [" ".join(sentence.split()[-n:]) for sentence in drawn]
        prompt = " ".join(drawn[0].split()[:-n])
        if len(set(ends)) == N_CANDIDATES:
            items.append((prompt if len(items) % 20 else "", ends))  # some of them without a prompt
    return items


def harness_scores(HFLM, Instance, folder, items, tokenizer):
    """What HFLM.loglikelihood gives for every candidate, divided by its tokens: list of lists of float."""
    pairs = [(prompt, f" {end}" if prompt else end) for prompt, candidates in items for end in candidates]
    # Without its cache of logits: where two items cut one text at different words, as some do here, version
    # 0.4.13 reads the log-probabilities of the later cut from the place of the earlier one.
    there = HFLM(pretrained=str(folder), device="cpu", batch_size=16, logits_cache=False)
    sums = there.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)])
    tokens = [len(tokenizer.encode(prompt + end)) - len(tokenizer.encode(prompt)) for prompt, end in pairs]
    means = iter([total / n for (total, _), n in zip(sums, tokens)])
    return [[next(means) for _ in candidates] for _, candidates in items]


def main(arguments):
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ValueError(f"lm_eval is missing ({error}); try pip install \"lm_eval[hf]\"") from None
    model, tokenizer = random_student()
    if arguments:
        model, tokenizer = GPT.load(arguments[0]).eval(), Tokenizer.load(arguments[0])
    items = plain_items(random.Random(0))
    with tempfile.TemporaryDirectory() as folder:
        export(model, tokenizer, Path(folder) / "hf")
        theirs = harness_scores(HFLM, Instance, Path(folder) / "hf", items, tokenizer)
    ours, _ = blind_scores(model, tokenizer, items)
    flat = [(a, b) for row, other in zip(ours, theirs) for a, b in zip(row, other)]
    worst = max(abs(a - b) for a, b in flat)
    same = sum(tie_accuracy(row, {other.index(max(other))}) > 0 for row, other in zip(ours, theirs))
    low, high = min(flat)[0], max(flat)[0]
    print(f"{len(items)} items, {len(flat)} candidates, tokenizer {tokenizer.name}, {tokenizer.n_vocab} ids\n"
          f"mean log-probability a token, {low:.2f} to {high:.2f}: largest difference {worst:.1e}\n"
          f"the same answer to {same} of {len(items)} items")
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
