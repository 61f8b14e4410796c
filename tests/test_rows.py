"""Documents as rows: batches against literal padding, and the plan of a run: what is read, when and how often."""
import copy

import numpy as np
import pytest
import torch

from data.batches import LENGTH_STEP, WINDOW, Rows, padded, plan_batches

WEIGHTS = np.array([1.0, 0.5, 20.0], np.float32)


def some_rows(n, seed, longest=60, n_vocab=900):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest, n)
    documents = [(rng.integers(1, n_vocab, k).tolist(), rng.integers(0, 3, k).tolist()) for k in lengths]
    return Rows.pack(documents, n_vocab), documents


def read(plan, source):
    """The documents of one source in the order of the plan."""
    return [int(d) for batch in plan if batch.source == source for d in batch.documents]


@pytest.mark.parametrize("n_vocab, dtype", [(900, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_packing_keeps_every_token_and_role(n_vocab, dtype):
    rows, documents = some_rows(50, 1, n_vocab=n_vocab)
    assert rows.tokens.dtype == dtype and len(rows) == 50
    for d, (ids, roles) in enumerate(documents):
        assert [part.tolist() for part in rows.document(d)] == [ids, roles]
        assert rows.lengths[d] == len(ids)


@pytest.mark.parametrize("chosen", [[0], [3, 1, 3], list(range(20))])
def test_a_batch_is_literal_padding(chosen):
    rows, documents = some_rows(20, 2)
    ids, targets, weights = rows.batch(np.array(chosen), WEIGHTS)
    T = max(len(documents[d][0]) for d in chosen) - 1
    T = next(t for t in range(T, T + LENGTH_STEP) if t % LENGTH_STEP == 0)
    assert ids.shape == targets.shape == weights.shape == (len(chosen), T)
    assert (ids.dtype, targets.dtype, weights.dtype) == (torch.int64, torch.int64, torch.float32)
    for row, d in enumerate(chosen):
        tokens, roles = documents[d]
        for t in range(T):
            last = t + 1 == len(tokens)                            # the last token is an input, with nothing to predict
            assert ids[row, t] == (tokens[t] if t < len(tokens) else 0)
            assert targets[row, t] == (tokens[t + 1] if t + 1 < len(tokens) else 0)
            assert weights[row, t] == (WEIGHTS[roles[t + 1]] if t + 1 < len(tokens) else 0.0)
            assert not last or weights[row, t] == 0


def test_padded_is_the_next_multiple():
    assert [padded(n) for n in (0, 1, 7, 8, 9, 16, 383)] == [8, 8, 8, 8, 16, 16, 384]


def test_a_plan_is_a_pure_function():
    sources = [some_rows(300, 3)[0], some_rows(500, 4)[0]]
    arguments = sources, [0.3, 0.7], 20_000, 256, 5, [0.0, 0.2]
    before = copy.deepcopy([(rows.tokens, rows.roles, rows.starts, rows.lengths) for rows in sources])
    plans = [[(b.source, b.documents.tolist(), b.tokens) for b in plan_batches(*arguments)] for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0] != [(b.source, b.documents.tolist(), b.tokens) for b in plan_batches(*arguments[:4], 6, [0.0, 0.2])]
    for rows, arrays in zip(sources, before):
        assert all(np.array_equal(a, b) for a, b in zip((rows.tokens, rows.roles, rows.starts, rows.lengths), arrays))


def test_a_batch_is_of_one_source_and_within_its_positions():
    sources = [some_rows(400, 6)[0], some_rows(400, 7, longest=300)[0]]
    for batch in plan_batches(sources, [0.5, 0.5], 60_000, 256, 1):
        lengths = sources[batch.source].lengths[batch.documents]
        assert len(lengths) == 1 or len(lengths) * padded(int(lengths.max()) - 1) <= 256
        assert batch.tokens == sum(int(n) - 1 for n in lengths)
        ids, _, weights = sources[batch.source].batch(batch.documents, np.ones(3, np.float32))
        assert weights.sum() == batch.tokens and ids.numel() <= max(256, padded(int(lengths.max()) - 1))


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_every_document_of_a_short_source_is_read_once_an_epoch(epochs):
    rows, _ = some_rows(3000, 8)
    plan = plan_batches([rows], [1.0], epochs * int((rows.lengths - 1).sum()), 512, 1)
    assert sorted(read(plan, 0)) == sorted(list(range(3000)) * epochs)
    half = plan_batches([rows], [1.0], (2 * epochs + 1) * int((rows.lengths - 1).sum()) // 2, 512, 1)
    counts = np.bincount(read(half, 0), minlength=3000)
    assert set(counts) == {epochs, epochs + 1} and 0.45 < (counts == epochs + 1).mean() < 0.55


def test_of_a_long_source_documents_are_left_out_evenly():
    rows, _ = some_rows(10_000, 9)
    plan = plan_batches([rows], [1.0], int((rows.lengths - 1).sum()) // 4, 512, 1)
    chosen = np.array(read(plan, 0))
    assert len(set(chosen.tolist())) == len(chosen)                 # none twice
    assert all(abs(len(part) - len(chosen) / 10) < 0.03 * len(chosen) for part in
               [chosen[(chosen >= a) & (chosen < a + 1000)] for a in range(0, 10_000, 1000)])


def test_the_order_of_a_source_is_kept_but_for_its_neighbourhood():
    """Easy documents stand first, and must be read first."""
    rows, _ = some_rows(12_000, 10)
    order = np.array(read(plan_batches([rows], [1.0], int((rows.lengths - 1).sum()), 512, 1), 0))
    assert len(order) == 12_000
    assert np.abs(order - np.arange(12_000)).max() < 2 * WINDOW + 1
    assert (np.abs(np.diff(order)) > 1).mean() > 0.9                # and yet it is shuffled


@pytest.mark.parametrize("tokens", [30_000, 120_000, 600_000])
@pytest.mark.parametrize("begins", [None, [0.1, 0.1, 0.0, 0.1]])
def test_shares_are_shares_of_the_predicted_tokens(tokens, begins):
    """Within 2 % of the run; documents of every source are of other lengths, one source is short, one long."""
    sources = [some_rows(n, 11 + n, longest)[0] for n, longest in ((9000, 12), (2000, 60), (300, 250), (7000, 80))]
    shares = [0.1, 0.1, 0.6, 0.2]
    plan = plan_batches(sources, shares, tokens, 1024, 2, begins)
    total = sum(batch.tokens for batch in plan)
    assert abs(total / tokens - 1) < 0.02
    for s, share in enumerate(shares):
        assert abs(sum(batch.tokens for batch in plan if batch.source == s) / total - share) < 0.02


def test_runs_of_different_documents_are_of_equal_tokens():
    """Short documents have a larger part of given first tokens; students are compared at the tokens they predict."""
    seen = [sum(b.tokens for b in plan_batches([some_rows(20_000, 1, longest)[0]], [1.0], 90_000, 1024, 1)) for longest in (8, 90)]
    assert abs(seen[0] / seen[1] - 1) < 0.01


def test_a_source_comes_in_where_it_begins():
    sources = [some_rows(4000, 20)[0], some_rows(4000, 21)[0]]
    plan = plan_batches(sources, [0.2, 0.8], 100_000, 512, 1, [0.5, 0.0])
    seen = np.cumsum([batch.tokens for batch in plan]) / 100_000
    first = next(place for place, batch in zip(seen, plan) if batch.source == 0)
    # 0.2 in the second half and 0.8 in the whole: the first half of places holds .4 of all tokens
    assert abs(first - 0.4) < 2 * WINDOW * 30 / 100_000
    early = [batch.source for place, batch in zip(seen, plan) if place < 0.05]
    assert early and set(early) == {1}
    last = [batch.source for place, batch in zip(seen, plan) if place > 0.9]
    assert set(last) == {0, 1}


def test_a_source_without_share_is_not_read():
    sources = [some_rows(100, 22)[0], some_rows(100, 23)[0]]
    assert {batch.source for batch in plan_batches(sources, [0.0, 1.0], 5000, 256, 1)} == {1}


def test_documents_are_never_cut():
    """One far longer than a batch is a batch alone, with all of its tokens."""
    rows = Rows.pack([([1, 2, 3], [0, 0, 0]), (list(range(1, 701)), [0] * 700), ([4, 5], [0, 1])], 900)
    plan = plan_batches([rows], [1.0], 702, 64, 1)
    assert sorted(read(plan, 0)) == [0, 1, 2]
    alone = next(batch for batch in plan if 1 in batch.documents)
    ids, targets, _ = rows.batch(alone.documents, WEIGHTS)
    assert len(alone.documents) == 1 and ids[0, :699].tolist() == list(range(1, 700)) and targets[0, 698] == 700
