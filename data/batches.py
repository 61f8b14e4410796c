"""Documents as flat arrays, and the order in which a run reads them.

    rows = Rows.pack(documents, weights)          # documents: list of (ids, roles)
    plan = plan_batches([rows, cache], [.7, .3], tokens=1_000_000, step_tokens=1024, seed=1)
    ids, targets, weights = rows.batch(plan[0].documents)

Shapes: B documents, T positions. A document fills one row and is never cut, so attention cannot cross from one to the next;
rows of similar length share a batch, so little is padded.
"""

from dataclasses import dataclass

import numpy as np
import torch

LENGTH_STEP = 8      # rows are padded to a multiple of this: few shapes, so allocators and kernels are reused
WINDOW = 1024        # documents sorted by length at a time: large enough for full batches, small enough to keep the order


class Rows:
    """D documents in three flat arrays.

    tokens (N,) uint16 or uint32; roles (N,) uint8, an index into brd.ROLES; starts (D+1,) int64.
    """

    def __init__(self, tokens, roles, starts):
        self.tokens, self.roles, self.starts = tokens, roles, starts
        self.lengths = np.diff(starts)

    def __len__(self):
        return len(self.lengths)

    @classmethod
    def pack(cls, documents, n_vocab):
        """documents: list of (ids, roles), two lists of the same length."""
        lengths = np.fromiter((len(ids) for ids, _ in documents), np.int64, len(documents))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        dtype = np.uint16 if n_vocab <= 65536 else np.uint32
        tokens = np.fromiter((i for ids, _ in documents for i in ids), dtype, starts[-1])
        roles = np.fromiter((r for _, roles in documents for r in roles), np.uint8, starts[-1])
        return cls(tokens, roles, starts)

    @classmethod
    def windows(cls, ids, block, n_vocab):
        """Running text, a list of ids -> documents of `block` tokens, each beginning with the last token of the one before."""
        windows = [ids[i:i + block] for i in range(0, len(ids) - 1, block - 1)]
        return cls.pack([(window, [0] * len(window)) for window in windows], n_vocab)

    def document(self, d):
        """(tokens, roles) of document d, two arrays of its length."""
        place = slice(self.starts[d], self.starts[d + 1])
        return self.tokens[place], self.roles[place]

    def batch(self, documents, role_weights):
        """Padded rows for next-token training.

        documents: indices of B documents; role_weights (len(ROLES),) float32: what a token of each role weighs.
        Returns ids (B, T) int64, targets (B, T) int64 and weights (B, T) float32, which are 0 on padding.
        """
        T = padded(int(self.lengths[documents].max()) - 1)
        place, lengths = np.arange(T + 1), self.lengths[documents][:, None]                    # (T + 1,), (B, 1)
        index = self.starts[documents][:, None] + np.minimum(place, lengths - 1)               # (B, T + 1)
        tokens, weights = self.tokens[index].astype(np.int64), role_weights[self.roles[index]]
        tokens[place >= lengths], weights[place >= lengths] = 0, 0
        tokens, weights = torch.from_numpy(tokens), torch.from_numpy(weights)
        return tokens[:, :-1], tokens[:, 1:], weights[:, 1:]


def padded(length):
    """`length` rounded up to a multiple of LENGTH_STEP."""
    return -(-max(length, 1) // LENGTH_STEP) * LENGTH_STEP


@dataclass
class Batch:
    source: int              # which of the sources
    documents: np.ndarray    # indices into it
    tokens: int              # tokens that are predicted, padding not counted


def reading_order(lengths, tokens, seed):
    """Document indices that hold about `tokens` tokens to predict, and their place (0..1) in the run.

    Documents come in their own order (easy ones first) but for a shuffle among neighbours. Of a source that is longer
    than needed every so-many-th document is left out; one that is too short is read again, shuffled as a whole.
    """
    rng, n, epoch_tokens = np.random.default_rng(seed), len(lengths), int(lengths.sum())
    if epoch_tokens < 1:
        raise ValueError(f"{n} documents without a token to predict; expected one of two tokens at least")
    chosen = np.unique(np.linspace(0, n - 1, max(1, round(n * min(1.0, tokens / epoch_tokens)))).astype(np.int64))
    orders = [chosen[np.argsort(np.arange(len(chosen)) + rng.uniform(0, WINDOW, len(chosen)), kind="stable")]]
    for _ in range(int(tokens // epoch_tokens)):
        orders.append(rng.permutation(n))
    order = np.concatenate(orders)
    seen = np.cumsum(lengths[order])
    order = order[:int(np.searchsorted(seen, tokens)) + 1]      # up to and with the document that completes them
    return order, seen[:len(order)] / max(tokens, 1)


def plan_batches(sources, shares, tokens, step_tokens, seed, begins=None):
    """The whole run as a list of Batch: a pure function of its arguments, so a resumed run reads the same.

    sources: objects with `lengths` (D,); shares: the part of all tokens that comes from each; tokens: the run's total of
    predicted tokens, one fewer a document than it has; step_tokens: at most this many positions, padding included, in a
    batch (a longer document is a batch alone); begins: the place (0..1) in the run at which each source comes in, 0 for
    all by default.
    """
    documents, places, source = [], [], []
    for s, (rows, share) in enumerate(zip(sources, shares)):
        if share > 0:
            order, place = reading_order(rows.lengths - 1, share * tokens, seed + s)  # the first token is given
            begin = begins[s] if begins else 0.0
            documents.append(order), places.append(begin + (1 - begin) * place), source.append(np.full(len(order), s))
    by_place = np.argsort(np.concatenate(places), kind="stable")
    documents, source = np.concatenate(documents)[by_place], np.concatenate(source)[by_place]
    rng, batches = np.random.default_rng(seed), []
    for a in range(0, len(documents), WINDOW):
        window = []
        for s, rows in enumerate(sources):
            chosen = documents[a:a + WINDOW][source[a:a + WINDOW] == s]
            chosen = chosen[np.argsort(rows.lengths[chosen], kind="stable")]
            while len(chosen):
                # From the longest down: the first document of a batch decides how many fit.
                fit = max(1, step_tokens // padded(int(rows.lengths[chosen[-1]]) - 1))
                batch, chosen = chosen[-fit:], chosen[:-fit]
                window.append(Batch(s, batch, int(rows.lengths[batch].sum()) - len(batch)))
        batches += [window[i] for i in rng.permutation(len(window))]
    return batches
