"""Documents as flat arrays, and the order in which a run reads them. Amounts of text are measured in
predicted tokens: all tokens of a document but its first, without padding.

Shapes: B documents, T positions. A document fills one row and is never cut; rows of similar length share a
batch, so there is little padding.
"""
from typing import NamedTuple

import numpy as np
import torch

LENGTH_STEP = 8      # rows are padded to a multiple of this: few shapes, so allocators and kernels are reused
WINDOW = 1024        # documents that are sorted by length at a time: full batches, and the order roughly kept


def token_type(n_vocab):
    """The smallest numpy type that holds every id."""
    return np.dtype(np.uint16 if n_vocab <= 1 << 16 else np.uint32)


class Rows:
    """tokens (N,) uint16 or 32; roles (N,) uint8, places in ROLES; starts (D + 1,), lengths (D,) int64."""

    def __init__(self, tokens, roles, starts):
        self.tokens, self.roles, self.starts = tokens, roles, starts
        self.lengths = np.diff(starts)

    def __len__(self):
        return len(self.lengths)

    @classmethod
    def pack(cls, documents, n_vocab):
        """documents: list of (ids, roles), two lists of the same length."""
        starts = np.cumsum([0, *(len(ids) for ids, _ in documents)], dtype=np.int64)
        tokens = np.fromiter((i for ids, _ in documents for i in ids), token_type(n_vocab), starts[-1])
        roles = np.fromiter((r for _, roles in documents for r in roles), np.uint8, starts[-1])
        return cls(tokens, roles, starts)

    def document(self, d):
        """(tokens, roles) of document d, two arrays of its length."""
        place = slice(self.starts[d], self.starts[d + 1])
        return self.tokens[place], self.roles[place]

    def batch(self, documents, role_weights):
        """Padded rows: ids (B, T) int64, targets (B, T) int64, weights (B, T) float32, 0 on padding.
        documents: indices of B documents; role_weights (len(ROLES),) float32: of a target of each role."""
        T = padded(int(self.lengths[documents].max()) - 1)
        place, lengths = np.arange(T + 1), self.lengths[documents][:, None]                # (T + 1,), (B, 1)
        index = self.starts[documents][:, None] + np.minimum(place, lengths - 1)           # (B, T + 1)
        tokens, weights = self.tokens[index].astype(np.int64), role_weights[self.roles[index]]
        tokens[place >= lengths], weights[place >= lengths] = 0, 0
        tokens, weights = torch.from_numpy(tokens), torch.from_numpy(weights)
        return tokens[:, :-1], tokens[:, 1:], weights[:, 1:]


def padded(length):
    """`length` rounded up to a multiple of LENGTH_STEP."""
    return -(-max(length, 1) // LENGTH_STEP) * LENGTH_STEP


class DataMix(NamedTuple):
    sources: list            # objects with `lengths` (D,), such as Rows and TeacherCache
    shares: list             # the part of all tokens that comes from each
    start_at: list = None    # the place (0..1) in the run at which each source comes in; None: 0 for all


class Batch(NamedTuple):
    source: int              # which of the sources
    documents: np.ndarray    # indices into it
    tokens: int              # predicted tokens


def reading_order(lengths, tokens, seed):
    """Indices of documents with about `tokens` predicted tokens, shuffled among neighbours, and their place
    (0..1) in the run. A longer source is thinned out evenly, a shorter one read again in random order."""
    rng, n, epoch_tokens = np.random.default_rng(seed), len(lengths), int(lengths.sum())
    if epoch_tokens < 1:
        raise ValueError(f"{n} documents without a token to predict; expected one of two tokens at least")
    wanted = max(1, round(n * min(1.0, tokens / epoch_tokens)))
    chosen = np.unique(np.linspace(0, n - 1, wanted).astype(np.int64))
    shuffled = np.argsort(np.arange(len(chosen)) + rng.uniform(0, WINDOW, len(chosen)), kind="stable")
    again = [rng.permutation(n) for _ in range(int(tokens // epoch_tokens))]
    order = np.concatenate([chosen[shuffled], *again])
    seen = np.cumsum(lengths[order])
    order = order[:int(np.searchsorted(seen, tokens)) + 1]      # up to the document that completes them
    return order, seen[:len(order)] / max(tokens, 1)


def plan_batches(mix, tokens, step_tokens, seed):
    """The whole run as a list of Batch; tokens: predicted tokens of the run; step_tokens: most positions of a
    batch, padding included (a longer document is a batch alone)."""
    parts = []
    for s, (rows, share) in enumerate(zip(mix.sources, mix.shares)):
        if share > 0:
            order, place = reading_order(rows.lengths - 1, share * tokens, seed + s)
            begin = mix.start_at[s] if mix.start_at else 0.0
            parts.append((begin + (1 - begin) * place, order, np.full(len(order), s)))
    places, documents, source = map(np.concatenate, zip(*parts))
    by_place = np.argsort(places, kind="stable")
    documents, source = documents[by_place], source[by_place]
    rng, batches = np.random.default_rng(seed), []
    for a in range(0, len(documents), WINDOW):
        window = []
        for s, rows in enumerate(mix.sources):
            chosen = documents[a:a + WINDOW][source[a:a + WINDOW] == s]
            chosen = chosen[np.argsort(rows.lengths[chosen], kind="stable")]
            while len(chosen):
                fit = max(1, step_tokens // padded(int(rows.lengths[chosen[-1]]) - 1))  # by the longest one
                batch, chosen = chosen[-fit:], chosen[:-fit]
                window.append(Batch(s, batch, int(rows.lengths[batch].sum()) - len(batch)))
        batches += [window[i] for i in rng.permutation(len(window))]
    return batches


def total_weight(sources, batches, role_weights):
    """The weights of all tokens that are predicted in some batches, summed: float."""
    return sum(float(role_weights[sources[batch.source].document(d)[1][1:]].sum())
               for batch in batches for d in batch.documents)
