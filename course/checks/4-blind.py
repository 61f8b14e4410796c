"""Checks of assignment 4, the blind score (brd.py). The docstring of a check is its hint."""
import math
from types import SimpleNamespace

import torch

from brd import TIE, blind_scores, eval_task, score_batch, split_tokens, tie_accuracy
from data.tokenizer import train_bpe
from model import GPT, GPTConfig

# Mean log-probabilities of ITEMS by a GPT with fixed weights.
ITEMS = [([3, 7, 7], [[4, 5], [9]], False), ([2], [[1, 1, 1], [8]], False),
         ([5, 6, 5, 6, 5], [[6, 5], [5, 6]], False)]
KNOWN = [[-3.214, -1.102], [-2.56, -1.232], [-1.466, -4.504]]


class Letters:
    """Every letter is a token, but each of the given pairs is one token."""
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
    """A model of 9 tokens whose state is a number: token t takes state s to (3 s + t + 1) % 7. It notes what
    it reads."""
    table = torch.log_softmax(3 * torch.sin(1.7 * torch.arange(63).double() ** 1.2).float().reshape(7, 9), -1)
    config = SimpleNamespace(block_size=20)

    def __init__(self):
        self.prompts, self.reads = [], []

    @staticmethod
    def after(state, ids):
        for token in ids:
            state = (3 * state + int(token) + 1) % 7
        return state

    def prefill(self, prompts):
        self.prompts.append([len(p) for p in prompts])
        states = [self.after(0, prompt) for prompt in prompts]
        hidden = torch.full((len(prompts), max(map(len, prompts)), 1), math.nan)
        hidden[:, -1, 0] = torch.tensor(states).float()         # only the last column has a meaning
        return hidden, StepsCache(states)

    def hidden(self, ids, cache=None):
        """The states after ids -> (B, T, 1), in place of GPT.hidden; the shape of ids is noted."""
        self.reads.append(tuple(ids.shape))
        cache = StepsCache([0] * len(ids)) if cache is None else cache
        assert ids.min() >= 0, "ids below 0 are given to model.hidden"
        assert ids.size(0) == len(cache.states), f"{ids.size(0)} rows, but the cache has {len(cache.states)}"
        rows = [[self.after(state, row[:t + 1]) for t in range(len(row))]
                for state, row in zip(cache.states, ids.tolist())]
        return torch.tensor(rows).float()[..., None]

    def logits(self, hidden):
        return self.table[hidden[..., 0].long()] + 5.0          # logits, not log-probabilities

    def log_prob(self, text):
        """log P(last token | the tokens before)."""
        return float(self.table[self.after(0, text[:-1]), text[-1]])


class StepsCache:
    def __init__(self, states):
        self.states = states

    def select(self, rows):
        return StepsCache([self.states[int(row)] for row in rows])


def near(found, want):
    sizes = [len(row) for row in found]
    assert sizes == [len(row) for row in want], f"{sizes} scores an item"
    found, want = ([x for row in rows for x in row] for rows in (found, want))
    worst = max(abs(a - b) for a, b in zip(found, want))
    assert worst < 1e-3, f"scores {[round(x, 3) for x in found]}, expected {[round(x, 3) for x in want]}"


def tokenizer():
    return train_bpe(["did Anna go to Oslo? A: Oslo did Anna go to Rome? A: Rome No way, no way."] * 9, 320)


def check_where_prompt_and_candidate_part(points=2):
    """Encode prompt + space + candidate as ONE text. The context is the longest prefix of tokens that all of
    them share with the prompt itself."""
    tok = tokenizer()
    context, tails, cut = split_tokens(tok, "did Anna go? A:", ["Oslo", "No way"], 99)
    assert tok.decode(context) == "did Anna go? A:" and cut is False
    found = [tok.decode(tail) for tail in tails]
    assert tails == [tok.encode(" Oslo"), tok.encode(" No way")] and len(tails[0]) == 1, f"tails {found}"


def check_the_space_between(points=2):
    """One space joins them, and it belongs to the candidate, wherever it was written. After a line break and
    after an empty prompt there is none."""
    tok = tokenizer()
    want = split_tokens(tok, "did Anna go? A:", ["Oslo", "No way"], 99)
    found = split_tokens(tok, "did Anna go? A: ", ["Oslo", "No way"], 99)
    assert found == want, "a space after the prompt counts"
    found = split_tokens(tok, "did Anna go? A:", [" Oslo", " No way"], 99)
    assert found == want, "a space before the candidate counts"
    context, tails, _ = split_tokens(Letters(), "\n", ["a", "b"], 9)
    assert (context, tails) == ([10], [[97], [98]]), f"after a line break: {context}, {tails}"
    context, tails, _ = split_tokens(Letters(), "", ["a", "b"], 9)
    assert (context, tails) == ([0], [[97], [98]]), f"after nothing: {context}, {tails}"


def check_a_candidate_that_merges_with_the_prompt(points=2):
    """Where the first letters of a candidate form ONE token with the last letter of the prompt, all
    candidates are scored from that token on."""
    found = split_tokens(Letters(" b", "a" + chr(1000)), "ca", ["b", "c"], 9)
    assert found[:2] == ([99], [[1001], [97, 32, 99]]), f"context {found[0]}, tails {found[1]}"
    found = split_tokens(Letters(), "ab", ["cx", "cy"], 9)
    want = [97, 98], [[32, 99, 120], [32, 99, 121]]
    assert found[:2] == want, "tokens that only the candidates share must be scored"


def check_long_prompts_are_cut_on_the_left(points=2):
    """Keep the END of the prompt, as much as fits. The last token is predicted but never read, so one more
    than block_size tokens fit."""
    context, tails, cut = split_tokens(Letters(), "abcdefgh", ["x", "xyz"], 7)
    text = "".join(map(chr, context))
    assert ([len(tail) for tail in tails], text, cut) == ([2, 4], "efgh", True), f"context {text}, cut {cut}"
    found = split_tokens(Letters(), "efgh", ["x", "xyz"], 7)
    assert found[::2] == (context, False), "a prompt that fits was cut"


def check_what_is_refused(points=1):
    """ValueError for a candidate of spaces alone, and for one longer than block_size; not for one that just
    fits."""
    for candidates in (["a", " "], ["a", ""], ["a" * 7, "b"]):
        try:
            split_tokens(Letters(), "?", candidates, 6)
        except ValueError:
            continue
        raise AssertionError(f"candidates {candidates} gave no ValueError")
    assert split_tokens(Letters(), "?", ["a" * 6], 7)[0] == [63]


def check_one_item_by_hand(points=3):
    """(1/n) sum of log P(y_i | prompt, y_<i). The hidden state of the LAST prompt token predicts the first
    token."""
    model = Steps()
    want = [(model.log_prob([4, 2, a]) + model.log_prob([4, 2, a, b])) / 2 for a, b in ((8, 1), (3, 3))]
    near(score_batch(model, [([4, 2], [[8, 1], [3, 3]], False)]), [want])


def check_candidates_of_different_lengths(points=2):
    """The MEAN over a candidate's own tokens: padding adds nothing and is not counted. Token 0 is no
    padding."""
    model = Steps()
    want = [model.log_prob([4, 0]), (model.log_prob([4, 0]) + model.log_prob([4, 0, 6])) / 2,
            (model.log_prob([4, 5]) + model.log_prob([4, 5, 0]) + model.log_prob([4, 5, 0, 0])) / 3]
    near(score_batch(model, [([4], [[0], [0, 6], [5, 0, 0]], False)]), [want])


def check_items_side_by_side(points=2):
    """Every candidate continues its OWN prompt: hidden[owner, -1], cache.select(owner)."""
    items = [([1, 2, 3, 4], [[5], [6, 7]], False), ([8], [[2, 2, 2], [1], [0, 4]], False),
             ([3, 3], [[7, 1]], True)]
    near(score_batch(Steps(), items), [score_batch(Steps(), [item])[0] for item in items])
    assert score_batch(Steps(), items)[0] != score_batch(Steps(), items)[1][:2]


def check_a_prompt_is_read_once(points=2):
    """model.prefill reads all prompts once. Then one call of model.hidden reads all but the last token of
    every candidate; where all have one token, nothing more is to be read."""
    model = Steps()
    score_batch(model, [([1, 2, 3, 4], [[5, 1], [6, 7, 8]], False), ([8], [[2, 2], [1], [0]], False)])
    assert model.prompts == [[4, 1]], f"prompts of {model.prompts} tokens were read"
    assert model.reads == [(5, 2)], f"model.hidden read {model.reads}, expected 2 tokens of 5 candidates"
    model = Steps()
    score_batch(model, [([1, 2], [[5], [6]], False)])
    assert not any(B * T for B, T in model.reads), "candidates of one token were read"


def check_a_gpt_with_fixed_weights(points=2):
    """The same with a real model, whose prompts are padded on the left by model.prefill."""
    config = GPTConfig(n_vocab=10, block_size=16, n_layer=2, n_head=2, n_embd=8, shared_heads=1, conv_width=2)
    model = GPT(config).eval()
    for i, p in enumerate(model.parameters()):
        wave = torch.sin((0.7 + 0.1 * i) * torch.arange(p.numel()).double() ** 1.1).float().reshape(p.shape)
        p.data = wave if p.dim() > 1 else p.data
    near(score_batch(model, ITEMS), KNOWN)


def check_right_answers(points=2):
    """The best score must be that of a right candidate; `right` is a set of indices, perhaps several."""
    assert tie_accuracy([-1.0, -2.0], {0}) == 1 and tie_accuracy([-1.0, -2.0], {1}) == 0
    assert tie_accuracy([-3.0, -2.0, -9.0], {1, 2}) == 1 and tie_accuracy([-3.0, -2.0, -1.0], {0, 1}) == 0


def check_ties(points=2):
    """Where m candidates share the best score: the share of right ones among them. Scores closer than TIE are
    equal."""
    scores = [-1.0, -1.0, -2.0, -1.0]
    assert abs(tie_accuracy(scores, {0}) - 1 / 3) < 1e-9 and abs(tie_accuracy(scores, {0, 3}) - 2 / 3) < 1e-9
    assert tie_accuracy([-1.0, -1.0, -2.0], {2}) == 0
    assert tie_accuracy([-1.0, -1.0 + TIE / 2], {0}) == 0.5 and tie_accuracy([-1.0, -1.0 + 3 * TIE], {0}) == 0


def check_a_whole_task(points=1):
    """Scores come in the order of the items, also where batches read them in another; accuracy is the mean of
    tie_accuracy."""
    model, tok = Steps(), Letters()
    model.table = torch.cat([model.table, torch.full((7, 200), -50.0)], 1)
    items = [("\n" * n, ["\1", "\2\3", "\4"], {n % 3}) for n in (9, 1, 5, 2, 7)]
    alone = [blind_scores(model, tok, [item[:2]])[0][0] for item in items]
    near(blind_scores(model, tok, [item[:2] for item in items], batch_tokens=20)[0], alone)
    want = sum(tie_accuracy(row, right) for row, (_, _, right) in zip(alone, items)) / 5
    assert abs(eval_task(model, tok, {"name": "t", "items": items})["accuracy"] - want) < 1e-9
