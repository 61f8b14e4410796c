"""Checks of assignment 4, the blind score (brd.py). The docstring of a check is its hint, in three steps.

SEED is set by the grader. Random inputs are compared with a slow computation, one token after the other."""
import copy
import functools
import random
from types import SimpleNamespace

import torch

from brd import TIE, blind_scores, eval_task, join, score_batch, split_tokens, tie_accuracy
from data.tokenizer import train_bpe
from model import GPT, GPTConfig

# Mean log-probabilities of ITEMS by a GPT with fixed weights.
ITEMS = [([3, 7, 7], [[4, 5], [9]], False), ([2], [[1, 1, 1], [8]], False),
         ([5, 6, 5, 6, 5], [[6, 5], [5, 6]], False)]
KNOWN = [[-3.214, -1.102], [-2.56, -1.232], [-1.466, -4.504]]
LOGITS = 3 * torch.sin(1.7 * torch.arange(63).double() ** 1.2).float().reshape(7, 9) + 5


class Letters:
    """Every letter is a token, but each of the given pairs is one token, 1000, 1001, ..."""

    def __init__(self, *pairs, end=7):
        self.pairs, self.end = pairs, end

    def encode(self, text):
        for i, pair in enumerate(self.pairs):
            text = text.replace(pair, chr(1000 + i))
        return [ord(letter) for letter in text]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


def after(state, token):
    """The state of Steps after one more token."""
    return (3 * state + token + 1) % 7


class Steps:
    """A model of 9 tokens whose hidden state is a number, 0 to 6, with a row of logits for each. It notes
    what it reads. As in GPT, prompts are padded on the left; model.hidden moves the cache that it gets."""

    def __init__(self, logits=LOGITS, block_size=99, dtype=torch.float32):
        self.table, self.config, self.dtype = logits, SimpleNamespace(block_size=block_size), dtype
        self.prompts, self.reads = [], []

    def prefill(self, prompts):
        assert all(len(prompt) for prompt in prompts), "model.prefill got an empty prompt"
        T, limit = max(map(len, prompts)), self.config.block_size
        assert T <= limit, f"model.prefill got {T} tokens, block_size is {limit}"
        self.prompts += [len(prompt) for prompt in prompts]
        hidden = torch.zeros(len(prompts), T, 1)
        for row, prompt in zip(hidden, prompts):
            state = 0
            for t, token in enumerate(prompt, T - len(prompt)):
                state = row[t, 0] = after(state, int(token))
        return hidden.to(self.dtype), StepsCache(hidden[:, -1, 0].long(), T)

    def hidden(self, ids, cache=None):
        """The states after ids -> (B, T, 1), in place of GPT.hidden."""
        cache = StepsCache(torch.zeros(len(ids), dtype=torch.long), 0) if cache is None else cache
        (B, T), limit, width = ids.shape, self.config.block_size, self.table.size(1)
        assert T > 0, "model.hidden got no column of ids"
        assert 0 <= ids.min() and ids.max() < width, f"model.hidden got ids from {ids.min()} to {ids.max()}"
        assert B == len(cache.states), f"model.hidden got {B} rows, but the cache has {len(cache.states)}"
        assert cache.length + T <= limit, f"{cache.length + T} tokens in a row, block_size is {limit}"
        self.reads.append((B, T))
        states = []
        for column in ids.unbind(1):
            cache.states = after(cache.states, column)
            states.append(cache.states)
        cache.length += T
        return torch.stack(states, 1)[..., None].to(self.dtype)

    def logits(self, hidden):
        assert hidden.dtype == self.dtype, f"model.logits got {hidden.dtype}, hidden states are {self.dtype}"
        return self.table[hidden[..., 0].long()]

    def score(self, prompt, tail):
        """The mean log-probability of a tail, slowly."""
        rows, state, total = self.table.double().log_softmax(-1).tolist(), 0, 0.0
        for token in prompt:
            state = after(state, token)
        for token in tail:
            total, state = total + rows[state][token], after(state, token)
        return total / len(tail)


class StepsCache:
    def __init__(self, states, length):
        self.states, self.length = states, length

    def select(self, rows):
        return StepsCache(self.states[rows], self.length)


def near(found, want, what="scores", tolerance=5e-6):
    sizes, expected = [len(row) for row in found], [len(row) for row in want]
    assert sizes == expected, f"{what}: {sizes} of the items, expected {expected}"
    for i, (row, right) in enumerate(zip(found, want)):
        assert all(isinstance(x, float) for x in row), f"{what} of item {i}: {row!r:.80}, expected floats"
        good = all(abs(a - b) <= tolerance for a, b in zip(row, right))
        row, right = ([round(x, 6) for x in numbers] for numbers in (row, right))
        assert good, f"{what} of item {i}: {row}, expected {right}"


def slow_scores(model, batch):
    return [[model.score(context, tail) for tail in tails] for context, tails, _ in batch]


def draw_items(rng, n, tokens, longest):
    """n split items of random ids; an item may come twice, and a tail may come twice in an item."""
    def draw(most):
        return [rng.randrange(tokens) for _ in range(rng.randint(1, most))]
    items = [(draw(6), [draw(longest) for _ in range(rng.randint(1, 4))], rng.random() < 0.5)
             for _ in range(n)]
    if n > 1:
        context, (tail, *_), cut = rng.choice(items)
        items[rng.randrange(n)] = list(context), [draw(longest), list(tail), list(tail)], cut
    return items


@functools.cache
def tokenizer():
    return train_bpe(["did Anna go to Oslo? A: Oslo did Anna go to Rome? A: Rome No way, no way."] * 9, 320)


def check_where_prompt_and_candidate_part(points=2):
    """Encode prompt + space + candidate as ONE text. The context is the longest prefix of tokens that all of
    them share with the prompt itself.

    " Oslo" is one token, with the space; " " and "Oslo" are two or more.

    Encode the prompt and every joined text, compare the lists column by column, and stop at the first column
    in which one of them differs or has ended."""
    tok = tokenizer()
    context, tails, cut = split_tokens(tok, "did Anna go? A:", ["Oslo", "No way"], 99)
    assert tok.decode(context) == "did Anna go? A:" and not cut, f"context {tok.decode(context)!r}, cut {cut}"
    found = [(tok.decode(tail), len(tail)) for tail in tails]
    assert found[0] == (" Oslo", 1) and found[1][0] == " No way", f"tails and numbers of tokens {found}"


def check_the_space_between(points=2):
    """`join` puts the spaces of the prompt, or one space, between them; they belong to the tail. After a line
    break and after an empty prompt there is none.

    The context is compared with the prompt WITHOUT the spaces at its end; other white space stays in it.

    join("A:", "x"), join("A: ", "x") and join("A:", " x") are the same text, and so are split in the same
    way."""
    tok = tokenizer()
    want = split_tokens(tok, "did Anna go? A:", ["Oslo", "No way"], 99)
    for prompt, space in (("did Anna go? A: ", ""), ("did Anna go? A:", " "), ("did Anna go? A: ", "  ")):
        found = split_tokens(tok, prompt, [space + "Oslo", space + "No way"], 99)
        assert found == want, f"prompt {prompt!r}, candidates after {space!r}: other tokens than without"
    for prompt, context, gap in (("?", "?", " "), ("? ", "?", " "), ("?  ", "?", "  "), ("\n", "\n", ""),
                                 ("?\n", "?\n", ""), ("\n ", "\n", " "), ("?\t", "?\t", ""),
                                 ("", "\7", ""), ("  ", "\7", "  ")):
        found = split_tokens(Letters(), prompt, ["a", "b ", " \nc"], 9)
        texts = ["".join(map(chr, ids)) for ids in (found[0], *found[1])]
        want = [context, gap + "a", gap + "b ", gap + "\nc"]
        assert texts == want, f"prompt {prompt!r}: context and tails {texts}, expected {want}"


def check_a_candidate_that_merges_with_the_prompt(points=2):
    """Where the first letters of ONE candidate form a token with the end of the prompt, all candidates are
    scored from there on. Where nothing is shared, the context is [tokenizer.end].

    Otherwise a candidate would be scored after a context that is no part of its own tokens.

    Compare all of them together, the prompt as well: the shortest shared prefix counts, and what only the
    candidates share is scored."""
    for candidates in (["b", "c", "d"], ["c", "b", "d"], ["c", "d", "b"]):
        found = split_tokens(Letters(" b", "a" + chr(1000)), "ca", candidates, 9)
        want = [99], [[1001] if name == "b" else [97, 32, ord(name)] for name in candidates]
        assert found[:2] == want, f"{candidates}: context and tails {found[:2]}, expected {want}"
    found = split_tokens(Letters("b ", "b" + chr(1000)), "abb", ["b"], 9)
    want = [97], [[1001, 98]]
    assert found[:2] == want, f"tokens 97 98 98 beside 97 1001 98: {found[:2]}, expected {want}"
    found = split_tokens(Letters(), "ab", ["cx", "cy"], 9)
    want = [97, 98], [[32, 99, 120], [32, 99, 121]]
    assert found[:2] == want, "tokens that only the candidates share must be scored"
    found = split_tokens(Letters(" b", "a" + chr(1000)), "a", ["b"], 9)
    assert found[:2] == ([7], [[1001]]), f"nothing is shared: context {found[0]}, expected [tokenizer.end]"


def check_long_prompts_are_cut_on_the_left(points=2):
    """Keep the END of the prompt, as much as fits. The last token is predicted but never read, so context and
    the longest tail may have block_size + 1 tokens together.

    All candidates of an item get the same context, so the longest tail decides, wherever it stands.

    With block_size 7 and a longest tail of 4 tokens, 7 + 1 - 4 = 4 tokens of context are kept."""
    for candidates in (["x", "xyz"], ["xyz", "x"], ["x", "xyz", "xy"]):
        context, tails, cut = split_tokens(Letters(), "abcdefgh", candidates, 7)
        text = "".join(map(chr, context))
        assert (text, cut) == ("efgh", True), f"candidates {candidates}: context {text}, cut {cut}"
        assert [len(tail) for tail in tails] == [len(name) + 1 for name in candidates], f"tails {tails}"
        found = split_tokens(Letters(), "efgh", candidates, 7)
        assert found == (context, tails, False), f"a prompt that fits was cut: {found}"


def check_what_is_refused(points=1):
    """ValueError for a candidate of white space alone, and for a tail of more than block_size tokens; not for
    a tail of block_size tokens.

    At least one token is read before a tail; a tail of block_size tokens leaves room for exactly one. What
    counts is the tail, with its space and with what it took from the prompt.

    Test every candidate, before any is used: "", " ", "\\n" and "\\t" have nothing left after strip()."""
    plain, melted = Letters(), Letters(" b", "a" + chr(1000))    # of "ca", "b" and "c" the longest tail has 3
    blank = ["a", " "], ["", "a"], ["a", "\n", "b"], ["\t "], ["\r\n"], ["a", "\u00a0"]
    long = ["a" * 6, "b"], ["b", "a" * 6], ["b" * 99]
    for tok, prompt, candidates, size in (*((plain, "?", names, 9) for names in blank),
                                          *((plain, "?", names, 6) for names in long),
                                          (melted, "ca", ["b", "c"], 2), (plain, "", ["aaa"], 2)):
        try:
            found = split_tokens(tok, prompt, candidates, size)
        except ValueError:
            continue
        raise AssertionError(f"prompt {prompt!r}, candidates {candidates}, block_size {size}: {found!r:.80}, "
                             "expected a ValueError")
    fitting = ((plain, "?", ["a" * 6], 7, [63]), (plain, "!?", ["b", "aa"], 3, [63]),
               (plain, "", ["aaa"], 3, [7]), (melted, "ca", ["b", "c"], 3, [99]))
    for tok, prompt, candidates, size, want in fitting:
        found = split_tokens(tok, prompt, candidates, size)[0]
        assert found == want, f"a tail that just fits: context {found}, expected {want}"


def check_one_item_by_hand(points=2):
    """(1/n) sum of log P(y_i | prompt, y_<i). The hidden state of the LAST prompt token predicts the first
    token.

    A hidden state predicts the token that comes NEXT: n tokens need the states after the prompt and after
    their first n - 1 tokens.

    states: hidden[:, -1:] of the prompt, then model.hidden of the tail without its last token; log_softmax of
    model.logits(states), of which take the entry of each token."""
    model = Steps()
    batch = [([4, 2], [[8, 1], [3, 3]], False)]
    near(score_batch(model, batch), slow_scores(model, batch))
    batch = [([4], [[6]], False)]
    near(score_batch(model, batch), slow_scores(model, batch), "one token after one token: scores")


def check_candidates_of_different_lengths(points=2):
    """The MEAN over a candidate's own tokens: padding adds nothing and is not counted. Token 0 is no
    padding.

    A tail of 1 token beside one of 3 has 2 columns of padding; its sum is divided by 1.

    Keep a mask or the lengths of the tails. -1 can mark padding, since no id is below 0, but model.hidden
    must get ids of the vocabulary."""
    model = Steps()
    batch = [([4], [[0], [0, 6], [5, 0, 0]], False)]
    near(score_batch(model, batch), slow_scores(model, batch))


def check_items_side_by_side(points=2):
    """Every candidate continues its OWN prompt: hidden[owner, -1], cache.select(owner).

    Items have prompts of different length and different numbers of candidates, in any order. Prompts are
    padded on the LEFT, so the last column belongs to the last token of every prompt.

    For items of 2, 3 and 1 candidates owner is [0, 0, 1, 1, 1, 2]."""
    model, batch = Steps(), [([1, 2, 3, 4], [[5], [6, 7]], False), ([8], [[2, 2, 2], [1], [0, 4]], False),
                             ([3, 3], [[7, 1]], True)]
    for items in (batch, batch[::-1], batch[1:], batch[:1] * 2):
        near(score_batch(model, items), slow_scores(model, items))


def check_a_prompt_is_read_once(points=2):
    """model.prefill reads every prompt once. Then model.hidden reads the candidates without their last
    tokens; where all have one token, nothing more is to be read.

    The cache holds what the prompt left behind, so no prompt token is read a second time. The last token of a
    candidate is predicted, not read.

    One call of model.prefill; one call of model.hidden for R candidates, padded to the longest, less its last
    column: (R, width - 1) ids."""
    model = Steps()
    score_batch(model, [([1, 2, 3, 4], [[5, 1], [6, 7, 8]], False), ([8], [[2, 2], [1], [0]], False)])
    assert sorted(model.prompts) == [1, 4], f"prompts of {model.prompts} tokens were read, expected 4 and 1"
    read = sum(B * T for B, T in model.reads)
    assert read <= 10, f"model.hidden read {model.reads}, {read} tokens; expected 2 of each of 5 candidates"
    model = Steps()
    score_batch(model, [([1, 2], [[5], [6]], False)])
    assert not model.reads, f"candidates of one token: model.hidden read {model.reads}, expected nothing"


def check_improbable_tokens(points=1):
    """A token of probability e^-300 has the log-probability -300, not -inf.

    exp(-300) is 0 in float32, and exp(300) is inf: log(softmax(x)) loses such tokens.

    log_softmax and cross_entropy subtract the maximum first and take no logarithm of 0."""
    for shift in (0, 400, -400):
        model = Steps(100 * LOGITS + shift)
        batch = [([4, 2], [[8, 1], [3, 3], [0]], False), ([1], [[t] for t in range(9)], False)]
        near(score_batch(model, batch), slow_scores(model, batch), tolerance=0.01)


def check_right_answers(points=1):
    """The best score must be that of a right candidate; `right` is a set of indices, perhaps several.

    It is enough that ONE right candidate has the best score; the others may have any.

    Find the indices of the best score, and ask whether they are in `right`."""
    for scores, right, want in (([-1.0, -2.0], {0}, 1), ([-1.0, -2.0], {1}, 0), ([-4.0], {0}, 1),
                                ([-3.0, -2.0, -9.0], {1, 2}, 1), ([-3.0, -2.0, -1.0], {0, 1}, 0),
                                ([5, 0, 7], {2}, 1), ([0.5, -0.5], {1}, 0)):
        found = tie_accuracy(scores, right)
        assert found == want, f"scores {scores}, right {right}: {found}, expected {want}"


def check_ties(points=2):
    """Where m candidates share the best score: the share of right ones among these m. Scores that differ from
    the best by less than TIE are equal to it.

    Rounding separates neighbours at a border, a factor of the score is no TIE, and a chain from neighbour to
    neighbour has no end. Compare each score with the best one, in 64 bits: at -40 float32 has steps of 4 TIE.

    Four scores, three of them best, one of these right: 1/3."""
    chain = [-1.0, -1.0 + 0.8 * TIE, -1.0 + 1.6 * TIE]
    for scores, right, want in (([-1.0, -1.0, -2.0, -1.0], {0}, 1 / 3), ([-1.0, -1.0, -2.0], {2}, 0),
                                ([-1.0, -1.0, -2.0, -1.0], {0, 3}, 2 / 3), (chain, {0}, 0), (chain, {1}, 0.5),
                                ([-1.0, -1.0 + TIE / 2], {0}, 0.5), ([-1.0, -1.0 + 3 * TIE], {0}, 0),
                                ([0, -1, 0], {2}, 0.5)):
        found = tie_accuracy(scores, right)
        assert abs(found - want) < 1e-9, f"scores {scores}, right {right}: {found}, expected {want}"
    rng = random.Random(f"ties {SEED}")
    for _ in range(400):
        best, n = rng.uniform(-4, 1) * rng.choice([1, 1, 10, 100]), rng.randint(1, 6)
        below = [rng.choice([0, 0.2, 0.5, 0.9, 1.1, 1.5, 2, 3, 20, 1e4, 1e6]) for _ in range(n)] + [0]
        rng.shuffle(below)
        scores, right = [best - x * TIE for x in below], set(rng.sample(range(n + 1), rng.randint(1, n + 1)))
        first = [i for i, x in enumerate(below) if x < 1]
        want, given = len(right & set(first)) / len(first), (list(scores), set(right))
        found = tie_accuracy(*given)
        assert abs(found - want) < 1e-9, (f"scores {best:.7f} less {below} TIE, right {right}: {found:.4f}, "
                                          f"expected {want:.4f}")
        assert given == (scores, right), "tie_accuracy has changed what it was given"


def slow_split(tok, prompt, candidates, block_size):
    """What split_tokens must give, or None for a ValueError."""
    own, texts = tok.encode(prompt.rstrip(" ")), [tok.encode(join(prompt, name)) for name in candidates]
    shared = 0
    while shared < len(own) and all(ids[:shared + 1] == own[:shared + 1] for ids in texts):
        shared += 1
    tails, context = [ids[shared:] for ids in texts], own[:shared]
    longest = max(len(tail) for tail in tails)
    if longest > block_size or not all(name.strip() for name in candidates):
        return None
    while len(context) + longest > block_size + 1:
        context = context[1:]
    return context or [tok.end], tails, len(context) < shared


def check_random_texts(points=3):
    """All of `split_tokens` on random texts, with random pairs of letters that are one token.

    The message gives the texts: encode them by hand, and mark the longest prefix that all share.

    Print the tokens of this prompt and of every joined text, one list below the other."""
    rng = random.Random(f"texts {SEED}")
    for _ in range(600):
        letters, pairs = list("ab \n"), []
        for i in range(rng.randint(0, 4)):
            pairs.append(rng.choice(letters) + rng.choice(letters))
            letters.append(chr(1000 + i))
        prompt = "".join(rng.choices("aab  \n", k=rng.randint(0, 9)))
        names = ["".join(rng.choices("ab \n", k=rng.randint(0, 4))) for _ in range(rng.randint(1, 4))]
        names = [name[:2] + rng.choice("ab") + name[2:] for name in names]
        names.insert(0, " " if rng.random() < 0.02 else rng.choice(names))
        given, size, tok = list(names), rng.randint(1, 14), Letters(*pairs, end=rng.randint(0, 50))
        want = slow_split(tok, prompt, names, size)
        try:
            found = split_tokens(tok, prompt, given, size)
        except ValueError:
            found = None
        found = found and (list(found[0]), list(map(list, found[1])), found[2])
        assert found == want, (f"pairs {pairs}, prompt {prompt!r}, candidates {names}, block_size {size}: "
                               f"{found or 'ValueError'}, expected {want or 'ValueError'}")
        assert given == names, f"the list of candidates has become {given}"


def check_random_items(points=3):
    """All of `score_batch` on random items, with hidden states in float32 or bfloat16; the items stay as they
    are.

    Score the item of the message alone, then one of its candidates alone. Is only the third digit wrong? Then
    a sum is in bfloat16; model.logits gives float32, log-probabilities and means stay float32.

    Is only a large batch wrong? Then a part of the tokens was left out. Are only equal items or equal tails
    wrong? Then something is looked up by its ids."""
    rng, generator = random.Random(f"items {SEED}"), torch.Generator().manual_seed(SEED)
    for n, longest in ((1, 1), (1, 5), (2, 2), (3, 1), (5, 4), (8, 8), (180, 9)):
        batch = draw_items(rng, n, 9, longest)
        width = max(len(tail) for _, tails, _ in batch for tail in tails)
        size = max(len(context) for context, _, _ in batch) + width - 1
        dtype = rng.choice([torch.float32, torch.bfloat16]) if n < 180 else torch.bfloat16
        model, before = Steps(2 * torch.randn(7, 9, generator=generator), size, dtype), copy.deepcopy(batch)
        found = score_batch(model, batch)
        assert batch == before, "score_batch has changed the items that it was given"
        near(found, slow_scores(model, batch), f"batch of {n}, hidden states in {dtype}: scores")


def small_gpt():
    return GPT(GPTConfig(n_vocab=10, block_size=16, n_layer=2, n_head=2, n_embd=8, shared_heads=1,
                         conv_width=2)).eval()


def random_gpt():
    """A small GPT with random weights, away from the start, where every block is the identity."""
    torch.manual_seed(SEED)
    model = small_gpt()
    for p in model.parameters():
        torch.nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.4)
    return model


@torch.no_grad()
def check_a_gpt(points=2):
    """The same with a real model, whose prompts are padded on the left by model.prefill.

    A GPT's cache keeps whatever model.hidden reads with it, and model.hidden cannot read zero columns.

    cache.select(owner) gives a new cache with a row for each candidate; use it for one call. The weights of
    the model, their type and its mode stay as they are."""
    model = small_gpt()
    for i, p in enumerate(model.parameters()):
        wave = torch.sin((0.7 + 0.1 * i) * torch.arange(p.numel()).double() ** 1.1).float().reshape(p.shape)
        p.data = wave if p.dim() > 1 else p.data
    near(score_batch(model, ITEMS), KNOWN, tolerance=2e-3)
    model, rng = random_gpt().train(), random.Random(f"gpt {SEED}")
    before = copy.deepcopy(model.state_dict())
    for n, longest in ((1, 4), (3, 1), (4, 5)):
        batch, want = draw_items(rng, n, 10, longest), []
        for context, tails, _ in batch:
            rows = [context + tail + [0] * (longest - len(tail)) for tail in tails]
            log_probs = model(torch.tensor(rows))[:, len(context) - 1:].log_softmax(-1).tolist()
            want.append([sum(places[i][token] for i, token in enumerate(tail)) / len(tail)
                         for tail, places in zip(tails, log_probs)])
        near(score_batch(model, batch), want, tolerance=1e-4)
    same = all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())
    assert same and model.training, "score_batch has changed the model: its weights, or train() into eval()"


def check_a_whole_task(points=1):
    """Scores come in the order of the items, also where batches read them in another; accuracy is the mean of
    tie_accuracy.

    `blind_scores` sorts items by the length of their context and splits them into batches.

    Every row of score_batch must stand where its item stands in the batch."""
    model = Steps(torch.cat([LOGITS - 5, torch.full((7, 200), -50.0)], 1), block_size=20)
    tok = Letters()
    items = [("\n" * n, ["\1", "\2\3", "\4"], {n % 3}) for n in (9, 1, 5, 2, 7)]
    alone = [blind_scores(model, tok, [item[:2]])[0][0] for item in items]
    near(blind_scores(model, tok, [item[:2] for item in items], batch_tokens=20)[0], alone)
    near(alone, [[model.score([10] * len(prompt), list(map(ord, name))) for name in names]
                 for prompt, names, _ in items])
    want = sum(tie_accuracy(row, right) for row, (_, _, right) in zip(alone, items)) / 5
    found = eval_task(model, tok, {"name": "t", "items": items})["accuracy"]
    assert abs(found - want) < 1e-9, f"accuracy {found}, expected {want}"
