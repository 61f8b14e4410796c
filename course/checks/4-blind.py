"""Checks of assignment 4, the blind score (brd.py). The docstring of a check is its hint."""
import math
from types import SimpleNamespace

import torch

from brd import TIE, blind_scores, credit, score_batch, split_tokens, test_task
from data.tokenizer import train_bpe
from model import GPT, GPTConfig

# Mean log-probabilities of ITEMS by a GPT of fixed weights.
ITEMS = [([3, 7, 7], [[4, 5], [9]], False), ([2], [[1, 1, 1], [8]], False), ([5, 6, 5, 6, 5], [[6, 5], [5, 6]], False)]
KNOWN = [[-3.214, -1.102], [-2.56, -1.232], [-1.466, -4.504]]


class Letters:
    """Every letter is a token, but the pairs named are one."""
    end = 0

    def __init__(self, *pairs):
        self.pairs = pairs

    def encode_batch(self, texts):
        out = []
        for text in texts:
            for i, pair in enumerate(self.pairs):
                text = text.replace(pair, chr(1000 + i))
            out.append([ord(letter) for letter in text])
        return out


class Steps:
    """A model of 9 tokens whose state is a number: token t takes state s to (3 s + t + 1) % 7. It notes what it reads."""
    table = torch.log_softmax(3 * torch.sin(1.7 * torch.arange(63).double() ** 1.2).float().reshape(7, 9), -1)     # (states, V)
    config = SimpleNamespace(block_size=20)

    def __init__(self):
        self.starts, self.reads = [], []

    @staticmethod
    def after(state, ids):
        for token in ids:
            state = (3 * state + int(token) + 1) % 7
        return state

    def start(self, prompts):
        self.starts.append([len(p) for p in prompts])
        states = [self.after(0, prompt) for prompt in prompts]
        hidden = torch.full((len(prompts), max(map(len, prompts)), 1), math.nan)       # only the last column means something
        hidden[:, -1, 0] = torch.tensor(states).float()
        return hidden, StepsCache(states)

    def hidden(self, ids, cache=None):
        self.reads.append(tuple(ids.shape))
        cache = StepsCache([0] * len(ids)) if cache is None else cache
        assert ids.min() >= 0, "ids below 0 are given to model.hidden"
        assert ids.size(0) == len(cache.states), f"{ids.size(0)} rows, but the cache has {len(cache.states)}"
        rows = [[self.after(state, row[:t + 1]) for t in range(len(row))] for state, row in zip(cache.states, ids.tolist())]
        return torch.tensor(rows).float()[..., None]

    def logits(self, hidden):
        return self.table[hidden[..., 0].long()] + 5.0              # logits, no log-probabilities

    def log_prob(self, text, token):
        return float(self.table[self.after(0, text), token])


class StepsCache:
    def __init__(self, states):
        self.states = states

    def select(self, rows):
        return StepsCache([self.states[int(row)] for row in rows])

    def repeat(self, n):
        return StepsCache([state for state in self.states for _ in range(n)])


def near(found, want):
    flat = [[x for row in rows for x in row] for rows in (found, want)]
    assert [len(row) for row in found] == [len(row) for row in want], f"{[len(row) for row in found]} scores an item"
    worst = max(abs(a - b) for a, b in zip(*flat))
    assert worst < 1e-3, f"scores {[round(x, 3) for x in flat[0]]}, expected {[round(x, 3) for x in flat[1]]}"


def tokenizer():
    return train_bpe(["did Anna go to Oslo? A: Oslo did Anna go to Rome? A: Rome No way, no way."] * 9, 320)


def check_where_prompt_and_candidate_part(points=2):
    """Encode prompt + space + candidate WHOLE; context is the longest prefix shared by all of them and the prompt
    itself."""
    tok = tokenizer()
    context, tails, cut = split_tokens(tok, "did Anna go? A:", ["Oslo", "No way"], 99)
    assert tok.decode(context) == "did Anna go? A:" and cut is False
    assert tails == [tok.encode(" Oslo"), tok.encode(" No way")] and len(tails[0]) == 1, f"tails {[tok.decode(t) for t in tails]}"


def check_the_space_between(points=2):
    """One space joins them, and it is the candidate's, wherever it was written; after a line break or nothing there is
    none."""
    tok = tokenizer()
    want = split_tokens(tok, "did Anna go? A:", ["Oslo", "No way"], 99)
    assert split_tokens(tok, "did Anna go? A: ", ["Oslo", "No way"], 99) == want, "a space behind the prompt matters"
    assert split_tokens(tok, "did Anna go? A:", [" Oslo", " No way"], 99) == want, "a space before the candidate matters"
    context, tails, _ = split_tokens(Letters(), "\n", ["a", "b"], 9)
    assert (context, tails) == ([10], [[97], [98]]), f"after a line break: {context}, {tails}"
    context, tails, _ = split_tokens(Letters(), "", ["a", "b"], 9)
    assert (context, tails) == ([0], [[97], [98]]), f"an empty prompt: {context}, {tails}; expected the document end as context"


def check_a_candidate_that_melts_with_the_prompt(points=2):
    """Where a candidate's first letters become ONE token with the prompt's last, all candidates are scored from there
    on."""
    found = split_tokens(Letters(" b", "a" + chr(1000)), "ca", ["b", "c"], 9)
    assert found[:2] == ([99], [[1001], [97, 32, 99]]), f"context {found[0]}, tails {found[1]}"
    found = split_tokens(Letters(), "ab", ["cx", "cy"], 9)
    assert found[:2] == ([97, 98], [[32, 99, 120], [32, 99, 121]]), "what the candidates share with each other is scored"


def check_long_prompts_are_cut_on_the_left(points=2):
    """Keep the END of the prompt, as much as fits: the last token is predicted, never read, so one more than block_size."""
    prompt = "abcdefgh"
    context, tails, cut = split_tokens(Letters(), prompt, ["x", "xyz"], 7)
    assert [len(tail) for tail in tails] == [2, 4] and "".join(map(chr, context)) == "efgh" and cut is True, f"{context}, {cut}"
    assert split_tokens(Letters(), "efgh", ["x", "xyz"], 7)[::2] == (context, False), "it fits, and need not be cut"


def check_what_is_refused(points=1):
    """A candidate of blanks alone, or longer than block_size, is a ValueError; one that just fits is not."""
    for candidates in (["a", " "], ["a", ""], ["a" * 7, "b"]):
        try:
            split_tokens(Letters(), "?", candidates, 6)
        except ValueError:
            continue
        raise AssertionError(f"candidates {candidates} gave no ValueError")
    assert split_tokens(Letters(), "?", ["a" * 6], 7)[0] == [63]


def check_one_item_by_hand(points=3):
    """(1/n) sum of log P(y_i | prompt, y_<i): the hidden state of the LAST prompt token predicts the first token."""
    model = Steps()
    want = [(model.log_prob([4, 2], a) + model.log_prob([4, 2, a], b)) / 2 for a, b in ((8, 1), (3, 3))]
    near(score_batch(model, [([4, 2], [[8, 1], [3, 3]], False)]), [want])


def check_candidates_of_different_lengths(points=2):
    """The MEAN over a candidate's own tokens: padding is neither added up nor counted, and token 0 is a token like any
    other."""
    model = Steps()
    want = [model.log_prob([4], 0), (model.log_prob([4], 5) + model.log_prob([4, 5], 0) + model.log_prob([4, 5, 0], 0)) / 3,
            (model.log_prob([4], 0) + model.log_prob([4, 0], 6)) / 2]
    near(score_batch(model, [([4], [[0], [5, 0, 0], [0, 6]], False)]), [want])


def check_items_side_by_side(points=2):
    """Every candidate goes on from its OWN prompt: hidden[owner, -1], cache.select(owner). An item scores as it does
    alone."""
    items = [([1, 2, 3, 4], [[5], [6, 7]], False), ([8], [[2, 2, 2], [1], [0, 4]], False), ([3, 3], [[7, 1]], True)]
    near(score_batch(Steps(), items), [score_batch(Steps(), [item])[0] for item in items])
    assert score_batch(Steps(), items)[0] != score_batch(Steps(), items)[1][:2]


def check_a_prompt_is_read_once(points=2):
    """model.start reads all prompts once; then one call of model.hidden reads all but the last token of every candidate."""
    model = Steps()
    score_batch(model, [([1, 2, 3, 4], [[5, 1], [6, 7, 8]], False), ([8], [[2, 2], [1], [0]], False)])
    assert model.starts == [[4, 1]], f"prompts read: {model.starts}"
    assert model.reads == [(5, 2)], f"model.hidden read {model.reads}, expected 5 candidates, 2 tokens of each"
    model = Steps()
    score_batch(model, [([1, 2], [[5], [6]], False)])
    assert not any(B * T for B, T in model.reads), "candidates of one token need no further reading"


def check_a_gpt_of_fixed_weights(points=2):
    """The same with a real model, whose prompts are padded on the left by model.start."""
    model = GPT(GPTConfig(n_vocab=10, block_size=16, n_layer=2, n_head=2, n_embd=8, shared_heads=1, conv_width=2))
    for i, p in enumerate(model.parameters()):
        wave = torch.sin((0.7 + 0.1 * i) * torch.arange(p.numel()).double() ** 1.1).float().reshape(p.shape)
        p.data = wave if p.dim() > 1 else p.data
    near(score_batch(model.eval(), ITEMS), KNOWN)


def check_credit(points=2):
    """The best score must be a right candidate's; right is a set of indices, and may hold several."""
    assert credit([-1.0, -2.0], {0}) == 1 and credit([-1.0, -2.0], {1}) == 0
    assert credit([-3.0, -2.0, -9.0], {1, 2}) == 1 and credit([-3.0, -2.0, -1.0], {0, 1}) == 0


def check_ties(points=2):
    """m candidates share the best score: the share of right ones among them. Scores closer than TIE are equal."""
    scores = [-1.0, -1.0, -2.0, -1.0]
    assert abs(credit(scores, {0}) - 1 / 3) < 1e-9 and abs(credit(scores, {0, 3}) - 2 / 3) < 1e-9
    assert credit([-1.0, -1.0, -2.0], {2}) == 0
    assert credit([-1.0, -1.0 + TIE / 2], {0}) == 0.5 and credit([-1.0, -1.0 + 3 * TIE], {0}) == 0


def check_a_whole_task(points=1):
    """Scores come in the order of the items, whatever the order in which batches read them; accuracy is the mean credit."""
    model = Steps()
    model.table = torch.cat([model.table, torch.full((7, 200), -50.0)], 1)
    items = [("\n" * n, ["\1", "\2\3", "\4"], {n % 3}) for n in (9, 1, 5, 2, 7)]
    tok = Letters()
    alone = [blind_scores(model, tok, [item[:2]])[0] for item in items]
    near(blind_scores(model, tok, [item[:2] for item in items], batch_tokens=20), alone)
    want = sum(credit(row, right) for row, (_, _, right) in zip(alone, items)) / 5
    assert abs(eval_task(model, tok, {"name": "t", "items": items})["accuracy"] - want) < 1e-9
