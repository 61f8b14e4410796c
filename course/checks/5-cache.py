"""Checks of assignment 5, nucleus sets (td_distill.py) and the sparse cache (data/cache.py, cache_tools.py).
The docstring of a check is its hint."""
import math
import tempfile

import numpy as np
import torch

from data.cache import MASKED, TeacherCache
from data.cache_tools import CacheWriter, round_down_to_half
from data.sets import restrict_to_p, top_p_sets

LOGITS = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log() + 7.0         # logits are known up to a constant
WAVES = (3 * torch.sin(1.3 * torch.arange(600.0) ** 1.1)).reshape(20, 30)


def sets(logits, p, k_cap=99, **options):
    """The sets as lists of ids."""
    ids, _, mask = top_p_sets(logits, p, k_cap, **options)
    return [row[kept].tolist() for row, kept in zip(ids, mask)]


def refused(call, *arguments):
    """The error that a call raises, or None."""
    try:
        call(*arguments)
    except (ValueError, IndexError) as error:
        return type(error)


def opened():
    """A cache of documents of 3, 1 and 2 tokens: token 1 has the set {4, 7}, token 2 {9}, token 5 {0, 2,
    3}."""
    cache = TeacherCache.__new__(TeacherCache)
    cache.folder, cache.starts, cache.kept_starts = "made up", np.array([0, 3, 4, 6]), np.array([0, 3, 3, 6])
    cache.lengths = np.diff(cache.starts)
    numbers = {"tokens": [5, 7, 9, 1, 8, 2], "roles": [0, 3, 3, 0, 1, 3], "counts": [0, 2, 1, 0, 0, 3],
               "ids": [4, 7, 9, 0, 2, 3]}
    cache.arrays = {name: np.array(values, np.uint16) for name, values in numbers.items()}
    cache.arrays["logprobs"] = np.array([-0.5, -1.5, -0.25, -0.75, -1.0, -2.0], np.float16)
    return cache


def check_sets_by_hand(points=3):
    """Most probable first, until their mass REACHES p: the token that crosses p is in. .5 + .3 reaches .8 up
    to rounding (SLACK)."""
    for p, want in ((0.4, [1]), (0.5, [1]), (0.6, [1, 3]), (0.8, [1, 3]), (0.81, [1, 3, 2]),
                    (1.0, [1, 3, 2, 0])):
        found = sets(LOGITS, p)
        assert found == [want], f"p={p}: {found[0]}, expected {want} of the probabilities .05 .5 .15 .3"


def check_equal_probabilities(points=2):
    """Among equal tokens any order will do, but the set has no more of them than p and k_cap ask for."""
    logits = torch.tensor([[1.0, 3.0, 1.0, 1.0, 3.0, 1.0]])
    first, = sets(logits, 0.5, 99)
    assert sorted(first) == [1, 4] and set(sets(logits, 1.0, 3)[0]) > {1, 4}
    for k_cap, p, size in ((5, 1.0, 5), (99, 0.5, 2), (1, 0.9, 1)):
        ids, = sets(torch.zeros(1, 4 if p == 0.5 else 3000), p, k_cap)
        assert len(set(ids)) == size, f"p={p}, k_cap={k_cap}: {len(ids)} equal tokens, expected {size}"


def check_log_probs_are_the_teachers_own(points=2):
    """log softmax over the WHOLE vocabulary, not over the set: the mass that is missing must stay known."""
    _, log_probs, mask = top_p_sets(LOGITS, 0.8, 99)
    torch.testing.assert_close(log_probs[mask].exp(), torch.tensor([0.5, 0.3]))
    logits = torch.sin(torch.arange(5000.0)).reshape(5, 1000)
    ids, log_probs, mask = top_p_sets(logits, 0.9, 1000)
    torch.testing.assert_close(log_probs[mask], logits.log_softmax(-1).gather(-1, ids)[mask])
    mass = torch.where(mask, log_probs, -math.inf).exp().sum(-1)
    least = torch.where(mask, log_probs, 0).exp().amin(-1)
    assert (mass >= 0.9 - 2e-6).all(), "a set does not reach p"
    assert (mass - least < 0.9).all(), "a set is not the smallest that reaches p"


def check_temperature_is_applied_once(points=2):
    """softmax(logits / temperature): the set and the log-probabilities are those of the flattened teacher."""
    assert sets(LOGITS, 0.8, temperature=3.0) == [[1, 3, 2]] and sets(LOGITS, 0.8, temperature=0.3) == [[1]]
    ids, log_probs, _ = top_p_sets(LOGITS, 1.0, 99, temperature=2.0)
    torch.testing.assert_close(log_probs, (LOGITS / 2).log_softmax(-1).gather(-1, ids))


def check_cap(points=1):
    """At most k_cap tokens, also where they do not reach p. A cap above the vocabulary is no error."""
    assert sets(LOGITS, 0.95, 2) == [[1, 3]] and sets(LOGITS, 1.0, 1) == [[1]]
    assert top_p_sets(LOGITS, 1.0, 4)[0].shape == top_p_sets(LOGITS, 1.0, 400)[0].shape == (1, 4)


def check_impossible_tokens(points=1):
    """A token of probability 0 is never kept, not even at p = 1. A tiny p still keeps one token."""
    logits = torch.tensor([[2.0, -math.inf, 1.0, -math.inf]])
    assert sets(logits, 1.0) == [[0, 2]] and sets(logits, 1e-9) == [[0]]


def check_shape_and_padding(points=2):
    """K is the largest set among the rows. Behind a smaller set: id 0, MASKED, False. Types: long, float32,
    bool."""
    logits = torch.tensor([[9.0, 0, 0, 0, 0], [0, 0, 2.5, 2.0, 0], [1.25, 1.125, 1.0, 0.875, 0.75]])
    ids, log_probs, mask = top_p_sets(logits.bfloat16(), 0.7, 99)
    assert (ids.dtype, log_probs.dtype, mask.dtype) == (torch.int64, torch.float32, torch.bool)
    assert ids.tolist() == [[0, 0, 0, 0], [2, 3, 0, 0], [0, 1, 2, 3]], f"ids {ids.tolist()}"
    assert mask.sum(-1).tolist() == [1, 2, 4] and (log_probs[~mask] == MASKED).all()
    want = logits.log_softmax(-1).gather(-1, ids)[mask]
    torch.testing.assert_close(log_probs[mask], want, rtol=1e-5, atol=1e-5)
    assert top_p_sets(torch.zeros(0, 5), 0.8, 3)[0].size(0) == 0


def check_what_is_refused(points=1):
    """ValueError for p outside 0 .. 1, k_cap below 1, a temperature of 0, and NaN among the logits."""
    for arguments in ((LOGITS, 0.0, 9), (LOGITS, 1.1, 9), (LOGITS, 0.8, 0), (LOGITS, 0.8, 9, 0.0),
                      (torch.tensor([[0.0, math.nan]]), 0.8, 9)):
        assert refused(top_p_sets, *arguments) is ValueError, f"top_p_sets{arguments} gave no ValueError"


def check_restrict_to_p(points=3):
    """The part of a set that a smaller p would have kept: as top_p_sets with that p, for any leading
    shape."""
    _, log_probs, mask = top_p_sets(WAVES, 0.95, 99)
    for p in (0.3, 0.5, 0.8):
        found, want = restrict_to_p(log_probs, mask, p), top_p_sets(WAVES, p, 99)[2].sum(-1)
        assert found.dtype == torch.bool and found.shape == mask.shape
        sizes = found.sum(-1)
        assert (sizes == want).all(), f"p={p}: sizes {sizes.tolist()}, expected {want.tolist()}"
        first = torch.arange(mask.size(-1)) < want[:, None]
        assert (found == first).all(), "not the first tokens of each set"
    cube = restrict_to_p(log_probs.reshape(4, 5, -1), mask.reshape(4, 5, -1), 0.5)
    assert (cube == restrict_to_p(log_probs, mask, 0.5).reshape(cube.shape)).all()


def check_restrict_to_p_keeps_no_padding(points=1):
    """Nothing of the padding is kept, whatever stands there. .5 + .3 reaches .8 here as well."""
    log_probs = torch.tensor([[0.5, 0.3, 0.1], [0.5, 0.5, 0.5]]).log()
    mask = torch.tensor([[True] * 3, [False] * 3])
    assert restrict_to_p(log_probs, mask, 0.8).tolist() == [[True, True, False], [False] * 3]
    assert not restrict_to_p(torch.full((1, 3), MASKED), torch.zeros(1, 3, dtype=torch.bool), 0.8).any()


def check_rounding_down(points=2):
    """float16 rounds to the nearest number, which is too large half of the time: then take the next one
    below."""
    exact = [*-np.exp(np.linspace(-20, 11, 2000)), 0.0, -0.5, -1.0, MASKED, -np.inf]
    exact = np.array(exact).astype(np.float32)
    given, half = exact.copy(), round_down_to_half(exact)
    assert half.dtype == np.float16 and half.shape == exact.shape and (exact == given).all()
    fits = exact > -65504
    above = int((half[fits] > exact[fits]).sum())
    assert not above, f"{above} of 2000 numbers were rounded up"
    next_one = np.nextafter(half[fits], np.float16(1))
    assert (next_one > exact[fits]).all(), "a number was rounded down further than needed"
    assert half[-5:].tolist() == [0.0, -0.5, -1.0, -65504.0, -65504.0]


def check_rounding_of_positive_numbers(points=1):
    """A log-probability that rounding has put above 0 becomes 0: no set may have a mass above the
    teacher's."""
    assert round_down_to_half([1e-5, 0.0, -1e-9]).tolist()[:2] == [0.0, 0.0]
    assert -1e-7 < round_down_to_half([-1e-9])[0] < 0 and len(round_down_to_half([])) == 0


def check_document(points=2):
    """Two kinds of offsets: starts counts tokens, kept_starts counts kept ids. IndexError for other
    documents."""
    for i, want in enumerate(([[5, 7, 9], [0, 3, 3], [0, 2, 1], [4, 7, 9], [-0.5, -1.5, -0.25]],
                              [[1], [0], [0], [], []],
                              [[8, 2], [1, 3], [0, 3], [0, 2, 3], [-0.75, -1.0, -2.0]])):
        found = [array.tolist() for array in opened().document(i)]
        assert found == want, f"document {i}: {found}, expected {want}"
    assert refused(opened().document, 3) is IndexError and refused(opened().document, -1) is IndexError


def check_batch(points=3):
    """The set of token t stands in column t. Given tokens have an empty set. Padding comes at the end."""
    batch = opened().batch([2, 0])
    found = {name: x.int().tolist() for name, x in batch.items()}
    assert found["tokens"] == [[8, 2, 0], [5, 7, 9]] and found["roles"] == [[1, 3, 0], [0, 3, 3]]
    assert found["real"] == [[1, 1, 0], [1, 1, 1]]
    assert found["mask"] == [[[0, 0, 0], [1, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [1, 0, 0]]]
    ids = found["ids"]
    assert ids == [[[0, 0, 0], [0, 2, 3], [0, 0, 0]], [[0, 0, 0], [4, 7, 0], [9, 0, 0]]], f"ids {ids}"
    kept = batch["log_probs"][batch["mask"]].tolist()
    assert kept == [-0.75, -1.0, -2.0, -0.5, -1.5, -0.25], f"log-probabilities {kept}"
    assert (batch["log_probs"][~batch["mask"]] == MASKED).all()


def check_batch_sizes(points=2):
    """T is the argument, or the longest of THESE documents. K is their largest set, at least 1. A document
    that is too long is a ValueError and is not cut."""
    assert opened().batch([1])["ids"].shape == (1, 1, 1) and opened().batch([0, 1])["ids"].shape == (2, 3, 2)
    longer = opened().batch([2, 2], T=5)
    assert longer["mask"].shape == (2, 5, 3) and not longer["real"][:, 2:].any()
    assert refused(opened().batch, [1, 0], 2) is ValueError and refused(opened().batch, []) is ValueError
    types = {name: x.dtype for name, x in opened().batch(np.array([2])).items()}
    want = {"tokens": torch.int64, "roles": torch.int64, "ids": torch.int64, "log_probs": torch.float32,
            "real": torch.bool, "mask": torch.bool}
    assert types == want, f"{types}"


def check_there_and_back(points=2):
    """From logits to sets, to a cache on disk and back: the same ids, log-probabilities within .1 %, never
    more mass."""
    ids, log_probs, mask = top_p_sets(WAVES, 0.9, 8)
    one = [None] + [(ids[i, mask[i]].numpy(), log_probs[i, mask[i]].numpy()) for i in range(20)]
    with tempfile.TemporaryDirectory() as folder:
        writer = CacheWriter(folder, n_vocab=50, tokenizer_hash="x", p=0.9, k_cap=8, temperature=1.0,
                             teacher={}, made_by="", roles=["a"])
        writer.add(list(range(21)), [0] * 21, one)
        writer.close()
        batch = {name: x[0, 1:].clone() for name, x in TeacherCache(folder).batch([0]).items()}
    assert (batch["ids"] == ids).all() and (batch["mask"] == mask).all()
    found, want = batch["log_probs"][mask], log_probs[mask]
    assert (found <= want).all() and (found >= 1.001 * want - 1e-4).all()
