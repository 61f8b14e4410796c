"""Rows and plans: batches against literal padding, and what a plan reads, when and how often."""
import numpy as np
import pytest
import torch

from data.batches import LENGTH_STEP, WINDOW, DataMix, Rows, padded, plan_batches

WEIGHTS = np.array([1.0, 0.5, 20.0], np.float32)


def some_rows(n, seed, longest=60, n_vocab=900):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest, n)
    documents = [(rng.integers(1, n_vocab, k).tolist(), rng.integers(0, 3, k).tolist()) for k in lengths]
    return Rows.pack(documents, n_vocab), documents


def documents_of(plan, source=0):
    return [int(d) for batch in plan if batch.source == source for d in batch.documents]


def read(rows, tokens):
    return documents_of(plan_batches(DataMix([rows], [1.0]), tokens, 512, 1))


@pytest.mark.parametrize("n_vocab, dtype", [(900, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_packing_keeps_every_token_and_role(n_vocab, dtype):
    rows, documents = some_rows(50, 1, n_vocab=n_vocab)
    assert rows.tokens.dtype == dtype and len(rows) == 50
    for d, (ids, roles) in enumerate(documents):
        assert [part.tolist() for part in rows.document(d)] == [ids, roles] and rows.lengths[d] == len(ids)


@pytest.mark.parametrize("chosen", [[0], [3, 1, 3], list(range(20))])
def test_a_batch_is_literal_padding(chosen):
    rows, documents = some_rows(20, 2)
    ids, targets, weights = rows.batch(np.array(chosen), WEIGHTS)
    T = padded(max(len(documents[d][0]) for d in chosen) - 1)
    assert (ids.dtype, targets.dtype, weights.dtype) == (torch.int64, torch.int64, torch.float32)
    for row, (tokens, roles) in enumerate(documents[d] for d in chosen):
        zeros = [0] * (T + 1 - len(tokens))
        assert ids[row].tolist() == (tokens + zeros)[:T] and targets[row].tolist() == tokens[1:] + zeros
        assert weights[row].tolist() == WEIGHTS[roles[1:]].tolist() + zeros
    assert ids.shape == targets.shape == weights.shape == (len(chosen), T)
    assert [padded(n) for n in (0, 1, 7, 8, 9, 16, 383)] == [8, 8, 8, 8, 16, 16, 384] and LENGTH_STEP == 8


def test_a_plan_is_a_pure_function():
    mix = DataMix([some_rows(300, 3)[0], some_rows(500, 4)[0]], [0.3, 0.7], [0.0, 0.2])
    plans = [[(b.source, b.documents.tolist(), b.tokens) for b in plan_batches(mix, 20_000, 256, seed)]
             for seed in (5, 5, 6)]
    assert plans[0] == plans[1] != plans[2]


def test_a_batch_is_of_one_source_and_within_its_positions():
    """A document longer than a batch is never cut: it is a batch alone."""
    sources = [some_rows(400, 6)[0], some_rows(400, 7, longest=300)[0]]
    for batch in plan_batches(DataMix(sources, [0.5, 0.5]), 60_000, 256, 1):
        lengths = sources[batch.source].lengths[batch.documents]
        assert len(lengths) == 1 or len(lengths) * padded(int(lengths.max()) - 1) <= 256
        ids, _, weights = sources[batch.source].batch(batch.documents, np.ones(3, np.float32))
        assert weights.sum() == batch.tokens == sum(int(n) - 1 for n in lengths)
        assert ids.numel() <= max(256, padded(int(lengths.max()) - 1))


@pytest.mark.parametrize("epochs", [1, 2])
def test_every_document_of_a_short_source_is_read_once_an_epoch(epochs):
    rows, _ = some_rows(3000, 8)
    tokens = int((rows.lengths - 1).sum())
    assert sorted(read(rows, epochs * tokens)) == sorted(list(range(3000)) * epochs)
    counts = np.bincount(read(rows, (2 * epochs + 1) * tokens // 2), minlength=3000)
    assert set(counts) == {epochs, epochs + 1} and 0.45 < (counts == epochs + 1).mean() < 0.55


def test_documents_of_a_long_source_are_left_out_evenly_and_the_order_is_kept():
    rows, _ = some_rows(10_000, 9)
    tokens = int((rows.lengths - 1).sum())
    quarter = np.array(read(rows, tokens // 4))
    assert len(set(quarter.tolist())) == len(quarter)                 # none twice
    assert (abs(np.histogram(quarter, 10, (0, 10_000))[0] - len(quarter) / 10) < 0.03 * len(quarter)).all()
    order = np.array(read(rows, tokens))
    assert len(order) == 10_000 and np.abs(order - np.arange(10_000)).max() < 2 * WINDOW + 1
    assert (np.abs(np.diff(order)) > 1).mean() > 0.9


@pytest.mark.parametrize("tokens", [30_000, 600_000])
@pytest.mark.parametrize("start_at", [None, [0.1, 0.1, 0.0, 0.1]])
def test_shares_are_shares_of_the_predicted_tokens(tokens, start_at):
    """Within 2 % of the run: documents differ in length, one source is short, one long, one has no share."""
    sources = [some_rows(n, 11 + n, k)[0] for n, k in ((9000, 12), (2000, 60), (300, 250), (9, 80))]
    shares = [0.1, 0.2, 0.7, 0.0]
    plan = plan_batches(DataMix(sources, shares, start_at), tokens, 1024, 2)
    total = sum(batch.tokens for batch in plan)
    assert abs(total / tokens - 1) < 0.02 and not documents_of(plan, 3)
    for s, share in enumerate(shares):
        assert abs(sum(batch.tokens for batch in plan if batch.source == s) / total - share) < 0.02


def test_a_source_comes_in_where_it_starts():
    sources = [some_rows(4000, 20)[0], some_rows(4000, 21)[0]]
    plan = plan_batches(DataMix(sources, [0.2, 0.8], [0.5, 0.0]), 100_000, 512, 1)
    seen = np.cumsum([batch.tokens for batch in plan]) / 100_000
    first = next(place for place, batch in zip(seen, plan) if batch.source == 0)
    assert abs(first - 0.4) < 2 * WINDOW * 30 / 100_000     # half of the run, and .8 / 2 of its tokens
    assert {batch.source for place, batch in zip(seen, plan) if place < 0.05} == {1}
    assert {batch.source for place, batch in zip(seen, plan) if place > 0.9} == {0, 1}
    with pytest.raises(ValueError, match="1 documents without a token to predict"):
        plan_batches(DataMix([Rows.pack([([1], [0])], 9)], [1.0]), 10, 8, 1)
