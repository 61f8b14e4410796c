"""Checks of assignment 5, nucleus sets (data/sets.py) and the sparse cache (data/cache.py, cache_tools.py).
The docstring of a check is its hint, in three steps."""
import math
import random
import tempfile
from typing import NamedTuple

import numpy as np
import torch

from data.cache import MASKED, TeacherCache
from data.cache_tools import CacheWriter, round_down_to_half
from data.sets import SLACK, restrict_to_p, top_p_sets

LOGITS = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log() + 7.0         # logits are known up to a constant
HALVES = -math.log(2) * torch.arange(1, 201.0)[None]                # 1/2, 1/4, 1/8, ...: k hold 1 - 2 ** -k
BATCH_TYPES = {"tokens": torch.int64, "roles": torch.int64, "real": torch.bool, "ids": torch.int64,
               "log_probs": torch.float32, "mask": torch.bool}


def sets(logits, p, k_cap=999, **options):
    """The sets as lists of ids."""
    ids, _, mask = top_p_sets(logits, p, k_cap, **options)
    return [row[kept].tolist() for row, kept in zip(ids, mask)]


def refused(call, *arguments):
    """The name of the error that a call raises, or "no error"."""
    try:
        call(*arguments)
    except (ValueError, IndexError, RuntimeError, TypeError) as error:
        return type(error).__name__
    return "no error"


def expect(what, found, want):
    """Asserts that two numbers, names or lists are equal."""
    assert found == want, f"{what}: found {found}, expected {want}"


def same(what, found, want):
    """Asserts that two tensors have one shape, one type and one content, up to 5e-5."""
    expect(what + ", shape", tuple(found.shape), tuple(want.shape))
    expect(what + ", type", found.dtype, want.dtype)
    other = (found != want).nonzero().tolist()
    if found.is_floating_point():
        other = [at for at in other if not abs(found[tuple(at)] - want[tuple(at)]) <= 5e-5]
    if other:
        at = tuple(other[0])
        raise AssertionError(f"{what}{list(at)} is {found[at].item():g}, expected {want[at].item():g}")


def slow_log_probs(row, temperature):
    """log softmax of a list of logits, in plain Python."""
    scaled = [x / temperature for x in row]
    largest = max(scaled)
    log_Z = largest + math.log(math.fsum(math.exp(x - largest) for x in scaled))
    return [x - log_Z for x in scaled]


def clear_p(rng, rows, margin):
    """A p far enough from every sum of the first log-probabilities of the rows, so that rounding cannot
    decide which token crosses it."""
    sums = np.concatenate([np.cumsum(np.exp(row)) for row in rows])
    while True:
        p = rng.uniform(0.02, 0.98)
        if (abs(sums - p) > margin).all():
            return p


def slow_size(log_probs, p, k_cap=999):
    """How many of log_probs, the largest first, a set with p has."""
    size = mass = 0
    while size < min(k_cap, len(log_probs)) and mass < p - SLACK:
        mass += math.exp(log_probs[size])
        size += 1
    return size


def check_sets_by_hand(points=2):
    """A set takes the most probable token first, then the next, until its mass reaches p.

    The token that crosses p is in the set. Whether a token is in depends on the mass of those before it.

    With probabilities .5 .3 .15 .05 the masses before are 0 .5 .8 .95: a token is in where that is below
    p."""
    for p, want in ((0.4, [1]), (0.5, [1]), (0.6, [1, 3]), (0.8, [1, 3]), (0.81, [1, 3, 2]),
                    (1.0, [1, 3, 2, 0])):
        expect(f"set of the probabilities .05 .5 .15 .3 at p={p}", sets(LOGITS, p)[0], want)


def check_a_mass_reaches_p_up_to_slack(points=1):
    """A mass reaches p where it is p - SLACK or more, in top_p_sets and in restrict_to_p.

    Probabilities are float32: whether .5 + .3 is above or below .8 is chance. SLACK decides instead.

    Compare the mass of the tokens before with p - SLACK, not with p and not with p + SLACK."""
    stored = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for p, size in ((0.5, 1), (0.8, 2), (0.8 + SLACK / 2, 2), (0.8 + 1.5 * SLACK, 3), (0.8 - 2 * SLACK, 2)):
        what = f"size at p = {p:.8f} of the probabilities .5 .3 .15 .05, "
        expect(what + "top_p_sets", len(sets(LOGITS, p)[0]), size)
        expect(what + "restrict_to_p", int(restrict_to_p(stored, stored > MASKED, p).sum()), size)


def check_random_rows(points=3):
    """top_p_sets agrees with a slow computation in plain Python, on random logits, p, k_cap and temperature.

    Rows are independent. Half precision is lifted to float32 before anything else is computed. Logits of 100
    more or less are the same teacher: exp(100) overflows float32.

    log_softmax(logits.float() / temperature) over the last axis; sort; running sum; cut at p and k_cap;
    pad."""
    rng, generator = random.Random(SEED), torch.Generator().manual_seed(SEED)
    for trial in range(24):
        N, V, k_cap = rng.choice([1, 2, 5]), rng.randint(2, 50), rng.choice([1, 3, 8, 60])
        temperature, shift = rng.choice([0.6, 1.0, 1.7]), rng.choice([-110, 0, 100])
        logits = rng.choice([0.5, 2, 4]) * torch.randn(N, V, generator=generator) + shift
        if trial % 4 == 3:
            logits = logits.round()                                 # many tokens of one probability
        logits = logits.to(rng.choice([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
        given, rows = logits.clone(), [slow_log_probs(row, temperature) for row in logits.tolist()]
        ranked = [sorted(row, reverse=True) for row in rows]
        p = clear_p(rng, ranked, 6e-5)
        ids, log_probs, mask = top_p_sets(logits, p, k_cap, temperature)
        what = f"top_p_sets(logits {(N, V)} {logits.dtype}, {p=:.3f}, {k_cap=}, {temperature=}), "
        sizes = torch.tensor([slow_size(row, p, k_cap) for row in ranked])
        same(what + "size", mask.sum(-1), sizes)
        want_mask = torch.arange(int(sizes.max())) < sizes[:, None]
        same(what + "mask", mask, want_mask)
        want = torch.tensor([(row + [0.0] * len(mask[0]))[:len(mask[0])] for row in ranked])
        same(what + "log_probs", log_probs, want.masked_fill(~mask, MASKED))
        same(what + "ids of padding", ids[~mask], torch.zeros(int((~mask).sum()), dtype=torch.int64))
        expect(what + "shape of ids", tuple(ids.shape), tuple(mask.shape))
        for n in range(N):
            kept = ids[n, mask[n]].tolist()
            expect(what + f"different ids among {kept}", len(set(kept)), len(kept))
            own = torch.tensor([rows[n][v] for v in kept])
            same(what + f"row {n}, log-probabilities beside ids {kept}", log_probs[n, mask[n]], own)
        assert torch.equal(logits, given), what + "the logits were changed in place"


def check_log_probs_are_the_teachers_own(points=1):
    """log_probs are log softmax over the WHOLE vocabulary, not over the set.

    A loss needs the mass that is missing, 1 - sum of exp(log_probs). After renormalisation it is lost.

    Take log_softmax first, then cut: .5 and .3 stay log .5 and log .3, they do not become log .625 and log
    .375."""
    for k_cap, p in ((99, 0.8), (2, 1.0)):
        _, log_probs, mask = top_p_sets(LOGITS, p, k_cap)
        found = [round(x, 4) for x in log_probs[mask].exp().tolist()]
        expect(f"probabilities in the set of .05 .5 .15 .3 at p={p}, k_cap={k_cap}", found, [0.5, 0.3])


def check_temperature_is_applied_once(points=1):
    """softmax(logits / temperature): the set and the log-probabilities are those of the flattened teacher.

    The set and log_probs must come from the same scaled logits. float16 ends at 65504: divide after .float().

    logits.float() / temperature stands once, in front of log_softmax; the temperature is nowhere else."""
    for temperature, want in ((3.0, [1, 3, 2]), (1.0, [1, 3]), (0.3, [1])):
        expect(f"set at temperature {temperature}", sets(LOGITS, 0.8, temperature=temperature)[0], want)
    ids, log_probs, _ = top_p_sets(LOGITS, 1.0, 99, temperature=2.0)
    same("log_probs at temperature 2", log_probs, (LOGITS / 2).log_softmax(-1).gather(-1, ids))
    half = torch.tensor([[100.0, 100.0, 99.0]], dtype=torch.float16)
    found = sorted(sets(half, 0.9, temperature=1e-3)[0])
    expect("set of the float16 logits 100, 100, 99 at temperature .001", found, [0, 1])


def check_p_of_one(points=1):
    """p = 1 keeps every token whose log-probability is finite. A p just below 1 follows the rule of any p.

    At p = 1 there is no SLACK: tokens of 1e-12, or of 1e-60, are kept. p = .9999995 is not p = 1.

    Test for p == 1 exactly. float32 has no 1e-60, float64 has no exp(-1000): keep a token by its
    log-probability, not by its probability."""
    for p, want in ((1, 200), (1.0, 200), (1 - 1e-5, 17), (1 - 2e-6, 19), (1 - 5e-7, 20)):
        expect(f"size at p = {p:.7f} of 200 tokens of 1/2, 1/4, 1/8, ...", len(sets(HALVES, p)[0]), want)
    far = [-30.0, 0.0, -1e9, -math.inf, -1000.0]
    expect(f"set of the logits {far} at p=1", sets(torch.tensor([far]), 1.0)[0], [1, 0, 4, 2])


def check_equal_probabilities(points=1):
    """Among equal tokens any order will do, but the set has no more of them than p and k_cap ask for.

    A rule such as "probability at least that of the last one" lets all equal tokens in.

    Count positions after sorting; do not compare probabilities with a threshold."""
    logits = torch.tensor([[1.0, 3.0, 1.0, 1.0, 3.0, 1.0]])
    expect("set of the logits 1 3 1 1 3 1 at p=.5, sorted", sorted(sets(logits, 0.5)[0]), [1, 4])
    three = sets(logits, 1.0, 3)[0]
    expect("first two ids of the set at p=1, k_cap=3, sorted", sorted(three[:2]), [1, 4])
    expect("number of different ids in it", len(set(three)), 3)
    for V, k_cap, p, size in ((3000, 5, 1.0, 5), (4, 99, 0.5, 2), (3000, 1, 0.9, 1)):
        ids = sets(torch.zeros(1, V), p, k_cap)[0]
        expect(f"different ids of a set of {V} equal tokens, {p=}, {k_cap=}", len(set(ids)), size)


def check_many_small_probabilities(points=1):
    """Two tokens of .6 and .39975, then 3,000 of 8e-8 each: p = .99987 keeps 1,431 of these, up to 300.

    Near 1, float32 has steps of 6e-8. A running sum in float32 loses a part of every 8e-8 that is added.

    Sum in float64: log_probs.double().exp().cumsum(-1), in top_p_sets and in restrict_to_p."""
    # log_softmax sums in float32 as well: 100 tokens less. A running sum of float32 keeps 600 more.
    small, p = 1.4 * 2 ** -24, 0.99987
    logits = torch.tensor([[0.6, 0.4 - 3000 * small] + [small] * 3000], dtype=torch.float64).log().float()
    want = slow_size(slow_log_probs(logits[0].tolist(), 1), p, 9999)
    for name, found in (("top_p_sets", len(sets(logits, p, 9999)[0])),
                        ("restrict_to_p", int(restrict_to_p(logits, logits < 0, p).sum()))):
        assert abs(found - want) <= 300, f"{name} keeps {found} of 3,002 tokens, expected about {want}"


def check_cap(points=1):
    """A set has at most k_cap tokens, also where they do not reach p. A cap above the vocabulary is no error.

    The cap cuts the ranked tokens, after softmax; K is then the largest set that is left.

    topk refuses more than V: use min(k_cap, V)."""
    for p, k_cap, want in ((0.95, 2, [1, 3]), (1.0, 1, [1]), (1.0, 3, [1, 3, 2]), (0.4, 3, [1])):
        ids, _, mask = top_p_sets(LOGITS, p, k_cap)
        expect(f"set at {p=}, {k_cap=}", ids[mask].tolist(), want)
        expect(f"shape of ids at {p=}, {k_cap=}", tuple(ids.shape), (1, len(want)))
    for k_cap in (4, 5, 400):
        ids, _, _ = top_p_sets(LOGITS, 1.0, k_cap)
        expect(f"shape of ids, 4 tokens, p=1, {k_cap=}", tuple(ids.shape), (1, 4))


def check_impossible_tokens(points=1):
    """A token of logit -inf is never kept, not even at p = 1. A tiny p still keeps one token in every row.

    At p = 1 every ranked token is in, also those of probability 0. For p below SLACK, p - SLACK is negative.

    Set the first column of the mask to True in all rows; then and it with log-probability > -inf."""
    logits = torch.tensor([[2.0, -math.inf, 1.0, -math.inf], [-math.inf, -math.inf, -math.inf, 0.0],
                           [0.0, 3.0, 1.0, 2.0]])
    for p, k_cap, want in ((1.0, 99, [[0, 2], [3], [1, 3, 2, 0]]), (1.0, 3, [[0, 2], [3], [1, 3, 2]]),
                           (1e-9, 99, [[0], [3], [1]]), (1e-6, 99, [[0], [3], [1]])):
        expect(f"sets at {p=}, {k_cap=}", sets(logits, p, k_cap), want)


def check_shape_and_padding(points=1):
    """K is the largest set among the rows. Behind a smaller set: id 0, MASKED, False. Types: long, float32,
    bool.

    What was ranked behind the set is still there after the cut: its ids and log-probabilities must be
    overwritten.

    Cut all three to mask.sum(-1).max() columns; masked_fill(~mask, ...). No rows: the result has no rows."""
    logits = torch.tensor([[9.0, 0, 0, 0, 0], [0, 0, 2.5, 2.0, 0], [1.25, 1.125, 1.0, 0.875, 0.75]])
    ids, log_probs, mask = top_p_sets(logits.bfloat16(), 0.7, 99)
    same("mask", mask, torch.arange(4) < torch.tensor([[1], [2], [4]]))
    want = torch.tensor([[0, 0, 0, 0], [2, 3, 0, 0], [0, 1, 2, 3]])
    same("ids", ids, want)
    same("log_probs", log_probs, logits.log_softmax(-1).gather(-1, want).masked_fill(~mask, MASKED))
    for x, dtype in zip(top_p_sets(torch.zeros(0, 5), 0.8, 3), (torch.int64, torch.float32, torch.bool)):
        assert x.dim() == 2 and len(x) == 0 and x.dtype == dtype, f"no rows: {x.dtype} {tuple(x.shape)}"


def check_what_is_refused(points=1):
    """ValueError for p outside 0 < p <= 1, k_cap below 1, temperature of 0 or less, and for rows without a
    softmax.

    NaN may stand in any row. A logit of inf, or a row of -inf, gives NaN in its softmax as well.

    Look for NaN among the log-probabilities of all rows: isnan(log_probs).any()."""
    for p, k_cap, temperature in ((0.0, 9, 1.0), (-0.1, 9, 1.0), (1.001, 9, 1.0), (math.nan, 9, 1.0),
                                  (0.8, 0, 1.0), (0.8, -2, 1.0), (0.8, 9, 0.0), (0.8, 9, -1.0)):
        found = refused(top_p_sets, LOGITS, p, k_cap, temperature)
        expect(f"top_p_sets(logits, {p=}, {k_cap=}, {temperature=})", found, "ValueError")
    for bad in ([math.nan, 0.0, 1.0], [1.0, 0.0, math.nan], [-math.inf] * 3, [0.0, math.inf, 1.0]):
        for row in range(3):
            logits = torch.arange(9.0).reshape(3, 3)
            logits[row] = torch.tensor(bad)
            for p, k_cap in ((0.8, 1), (1.0, 9)):
                expect(f"row {row} of 3 is {bad}", refused(top_p_sets, logits, p, k_cap), "ValueError")


def check_restrict_to_p(points=3):
    """The part of a set that a smaller p would have kept, as top_p_sets with that p, for any leading shape.

    The log-probabilities are the teacher's own, so p counts the teacher's mass, not the set's. A p that the
    set does not reach keeps all of it.

    mask & (mass of the tokens before < p - SLACK), with a running sum over the last axis; a new tensor."""
    rng, generator = random.Random(SEED), torch.Generator().manual_seed(SEED)
    for shape in ((), (1,), (7,), (3, 4), (0,), (2, 1, 3), (5,), (6,)):
        N, K = math.prod(shape), rng.randint(3, 20)
        logits = rng.choice([0.5, 2, 4]) * torch.randn(N, K + 9, generator=generator)
        rows = [sorted(slow_log_probs(row, 1), reverse=True)[:K] for row in logits.tolist()]
        sizes = [rng.choice([0, 1, K, rng.randint(1, K)]) for _ in rows]
        p = clear_p(rng, [[MASKED], *rows], 1e-5)
        smaller = [min(size, slow_size(row, p)) for row, size in zip(rows, sizes)]
        mask, want = (torch.arange(K) < torch.tensor(x, dtype=torch.int64).reshape(*shape, 1)
                      for x in (sizes, smaller))
        log_probs = torch.tensor(rows, dtype=rng.choice([torch.float32, torch.float64])).reshape(*shape, K)
        log_probs = log_probs.masked_fill(~mask, MASKED)
        copies = log_probs.clone(), mask.clone()
        found = restrict_to_p(log_probs, mask, p)
        same(f"restrict_to_p(log_probs {(*shape, K)}, mask, {p=:.3f})", found, want)
        assert torch.equal(log_probs, copies[0]) and torch.equal(mask, copies[1]), "an argument was changed"
    stored = torch.tensor([0.4, 0.2]).log()
    for p, want in ((1e-5, [True, False]), (0.3, [True, False]), (0.5, [True, True]), (0.99, [True, True])):
        found = restrict_to_p(stored, torch.ones(2, dtype=torch.bool), p).tolist()
        expect(f"the probabilities .4 .2 are stored, restricted to p={p}", found, want)


def check_restrict_to_p_keeps_no_padding(points=1):
    """Where the mask is False nothing is kept, whatever log-probability stands there, also in a row without a
    set.

    Padding lies behind the set. Its mass before may be below p: the mask has to take part in the result.

    The old mask & the new condition."""
    mask = torch.tensor([[True, True, True], [True, False, False], [False] * 3, [False] * 3])
    for padding in (MASKED, -math.inf, -5.0, 0.0):
        log_probs = torch.tensor([0.5, 0.3, 0.1]).log().expand(4, 3).masked_fill(~mask, padding)
        for p, want in ((0.8, [2, 1, 0, 0]), (0.9, [3, 1, 0, 0]), (0.95, [3, 1, 0, 0])):
            found = restrict_to_p(log_probs, mask, p)
            assert not found[~mask].any(), f"padding of log-probability {padding:g} is kept at p={p}"
            expect(f"sizes at p={p}", found.sum(-1).tolist(), want)


def check_rounding_down(points=2):
    """The largest float16 that is not above the given float32 number.

    float16 rounds to the nearest number, which is too large half of the time: then take the next one below.
    An exact number stays.

    np.nextafter(half, -inf), only where half > exact. Below 6e-5 the steps are 6e-8: nextafter knows them, a
    factor such as 1.001 does not. Work on a copy."""
    rng = np.random.default_rng(SEED)
    table = np.sort(-np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64))     # all up to 0
    edges = [-1e-9, -5e-8, -5.96e-8, -6.1e-5, -65504, -65500, -65503.9, 0]
    given = np.concatenate([-np.exp(rng.uniform(-20, 11, 3000)), -rng.uniform(0, 30, 1000),
                            rng.choice(table, 500), edges]).astype(np.float32)
    for exact in (given, given[:1], given[7:2000:3], given[:0], np.array([-1.0001], np.float32)):
        copy = exact.copy()
        half = round_down_to_half(exact)
        expect("type and shape", (half.dtype, half.shape), (np.float16, exact.shape))
        assert (exact == copy).all(), "the given array was changed"
        want = table[np.searchsorted(table, exact.astype(np.float64), side="right") - 1]
        for one, found, right in zip(exact, half, want):
            assert found == right, f"{one:.9g} became {found:.9g}, expected {right:.9g}"


def check_ends_of_the_range(points=1):
    """A number above 0 becomes 0, a number below -65504 becomes -65504, inf and -inf as well.

    Rounding may put a log-probability above 0; a mass above 1 must not come of it. float16 has no number
    below -65504 but -inf, and a probability of 0 would make 0 * inf in a loss.

    Clip to -65504 .. 0 in float32, before the type is changed."""
    pairs = {one: 0 for one in (1e-5, 1e-9, 3.5, 1e30, math.inf, 0.0)}
    pairs |= {one: -65504 for one in (-65504.0, -65519.0, -65520.0, -65536.0, -1e9, MASKED, -math.inf)}
    given = np.array(list(pairs), np.float32)
    half, copy = round_down_to_half(given), np.array(list(pairs), np.float32)
    assert (given == copy).all(), "the given array was changed"
    for (one, right), found in zip(pairs.items(), half.tolist()):
        assert found == right, f"{one:g} became {found:g}, expected {right:g}"


class Token(NamedTuple):
    id: int
    role: int
    set: list = ()              # pairs (id, log-probability); none: the token was given


def columns(document):
    """The five lists of a list of Token, as TeacherCache.document has them."""
    pairs = [pair for one in document for pair in one.set]
    return {"tokens": [one.id for one in document], "roles": [one.role for one in document],
            "counts": [len(one.set) for one in document], "ids": [v for v, _ in pairs],
            "logprobs": [float(np.float16(x)) for _, x in pairs]}


def made_up(documents, token_type=np.uint16, count_type=np.uint8):
    """A cache in memory, read-only. documents: list of lists of Token."""
    cache, flat = TeacherCache.__new__(TeacherCache), [one for document in documents for one in document]
    starts = np.cumsum([0] + [len(document) for document in documents])
    kept = np.cumsum([0] + [len(one.set) for one in flat])
    types = {"tokens": token_type, "documents": np.uint32, "roles": np.uint8, "counts": count_type,
             "ids": token_type, "logprobs": np.float16}
    lists = columns(flat) | {"documents": starts}
    cache.arrays = {name: np.array(lists[name], dtype) for name, dtype in types.items()}
    cache.folder, cache.header = "made up", {"p": 0.9}
    cache.starts, cache.lengths, cache.kept_starts = starts, np.diff(starts), kept[starts]
    for array in cache.arrays.values():
        array.setflags(write=False)
    return cache


def small():
    """A cache of three documents, of 3, 1 and 2 tokens."""
    return made_up([[Token(5, 0), Token(7, 3, [(4, -0.5), (7, -1.5)]), Token(9, 3, [(9, -0.25)])],
                    [Token(1, 0)],
                    [Token(0, 1), Token(2, 3, [(0, -0.75), (2, -1.0), (3, -2.0)])]])


def random_documents(rng, largest=9, n_vocab=1 << 16):
    """Twelve documents for made_up, some of them without tokens; sets of up to `largest` tokens. Token 0,
    role 0 and log-probability 0 are as good as any."""
    def number(bound):
        return int(bound * max(0, 1.25 * rng.random() - 0.25))             # one of five is 0

    def token():
        size = rng.choice([0, 0, 1, 1, 3, largest])
        pairs = [(number(n_vocab), -(k + number(100)) / 100) for k in range(size)]
        return Token(number(n_vocab), number(256), pairs)
    return [[token() for _ in range(rng.choice([0, 1, 1, 2, 5, 12]))] for _ in range(12)]


def slow_batch(documents, T):
    """What TeacherCache.batch returns for lists of Token, filled token by token."""
    B, K = len(documents), max([1] + [len(one.set) for document in documents for one in document])
    shape = {"tokens": (B, T), "roles": (B, T), "real": (B, T)}
    want = {name: torch.zeros(shape.get(name, (B, T, K)), dtype=dtype) for name, dtype in BATCH_TYPES.items()}
    want["log_probs"].fill_(MASKED)
    for b, document in enumerate(documents):
        for t, one in enumerate(document):
            want["tokens"][b, t], want["roles"][b, t], want["real"][b, t] = one.id, one.role, True
            n = len(one.set)
            want["ids"][b, t, :n] = torch.tensor([v for v, _ in one.set])
            want["log_probs"][b, t, :n] = torch.tensor([x for _, x in one.set]).half().float()
            want["mask"][b, t, :n] = True
    return want


def check_document(points=2):
    """Five views of the arrays. starts counts tokens, kept_starts counts the ids of sets.

    A document has as many ids as its counts sum up to, so the two kinds of offsets differ. Numbers outside 0
    .. len - 1 are an IndexError: -1 is not the last document.

    tokens, roles and counts from starts[i] to starts[i + 1]; ids and logprobs from kept_starts[i] to
    kept_starts[i + 1]. A part of a cache (`part`) has offsets of its own, and the arrays of the whole."""
    rng = random.Random(SEED)
    documents = random_documents(rng, 200)                      # uint8 is too small for the sum of two counts
    documents[rng.randrange(3, 9)] = [Token(t, t, [(k, -k / 9) for k in range(150)]) for t in range(3)]
    whole = made_up(documents)
    for first, last, cache in ((0, 12, whole), (3, 9, whole.part(3, 9)), (5, 6, whole.part(3, 9).part(2, 3))):
        for i, document in enumerate(documents[first:last]):
            found = cache.document(np.int64(i) if i % 2 else i)
            expect("number of arrays of a document", len(found), 5)
            for (name, right), array in zip(columns(document).items(), found):
                expect(f"document {i} of {last - first}, {name}", array.tolist(), right)
                expect(f"type of {name}", array.dtype, cache.arrays[name].dtype)
                shared = not right or np.shares_memory(array, cache.arrays[name])
                assert shared, f"document {i}, {name}: a copy, expected a view"
        for i in (last - first, last - first + 1, 99, -1, first - last, np.int64(-1)):
            expect(f"document({i}) of {last - first} documents", refused(cache.document, i), "IndexError")


def check_batch_by_hand(points=2):
    """The set of token t stands in column t. Given tokens have an empty set. Padding comes at the end.

    The order of the documents is that of the indices. real says which columns are tokens: token 0 is a real
    one.

    Start from arrays full of 0, False and MASKED; fill the first tokens of every row, and mask[b, t,
    :counts[t]]."""
    batch = small().batch([2, 0])
    want = {"tokens": [[0, 2, 0], [5, 7, 9]], "roles": [[1, 3, 0], [0, 3, 3]], "real": [[1, 1, 0], [1, 1, 1]],
            "mask": [[[0, 0, 0], [1, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [1, 0, 0]]],
            "ids": [[[0, 0, 0], [0, 2, 3], [0, 0, 0]], [[0, 0, 0], [4, 7, 0], [9, 0, 0]]]}
    expect("names that are missing in the dict", sorted(set(BATCH_TYPES) - set(batch)), [])
    for name, right in want.items():
        expect(f"batch([2, 0]), {name}", batch[name].int().tolist(), right)
    found = batch["log_probs"][batch["mask"]].tolist()
    expect("batch([2, 0]), log_probs of the sets", found, [-0.75, -1.0, -2.0, -0.5, -1.5, -0.25])
    assert (batch["log_probs"][~batch["mask"]] == MASKED).all(), "log_probs outside the sets are not MASKED"


def check_random_batches(points=2):
    """batch agrees with a slow computation: any documents in any order, some of them twice, some without
    tokens.

    Ids go up to 65535, or further as uint32; roles up to 255; sets may have more than 255 tokens. The tensors
    are new: who writes into them does not change the cache.

    Convert to int64 before anything is computed. A document that has no tokens has no largest set either."""
    rng = random.Random(SEED)
    for trial, (largest, token_type, count_type, B, more) in enumerate((
            (9, np.uint16, np.uint8, 8, 0), (9, np.uint16, np.uint8, 8, 7), (255, np.uint16, np.uint8, 3, 0),
            (300, np.uint32, np.uint16, 3, 1), (3, np.uint16, np.uint8, 1, 0), (9, np.uint32, np.uint8, 1, 0),
            (1, np.uint16, np.uint8, 3, 0), (3, np.uint16, np.uint8, 1, 2))):
        documents = random_documents(rng, largest, {np.uint16: 1 << 16, np.uint32: 1 << 18}[token_type])
        cache = made_up(documents, token_type, count_type)
        before = {name: array.tolist() for name, array in cache.arrays.items()}
        if trial % 2:
            documents, cache = documents[3:10], cache.part(3, 10)
        indices = [rng.randrange(len(documents)) for _ in range(B)]
        some = [documents[i] for i in indices]
        lengths = [len(document) for document in some]
        T = max(lengths) + more
        copies, want = tuple(indices), slow_batch(some, T)
        for given in (indices, np.array(indices)):
            found = cache.batch(given) if T == max(lengths) else cache.batch(given, T)
            for name, right in want.items():
                same(f"batch of documents of {lengths} tokens, T={T}, {name}", found[name], right)
                found[name].zero_()
            assert list(given) == indices == list(copies), "the given indices were changed"
        after = {name: array.tolist() for name, array in cache.arrays.items()}
        assert before == after, "who writes into a batch changes the cache"


def check_batch_sizes(points=1):
    """T is the argument, or the longest of THESE documents. K is their largest set, at least 1.

    A document that is too long is a ValueError and is not cut, whatever T is, also 0. No documents:
    ValueError. A number that is none of a document: IndexError.

    `T or longest` takes a T of 0 for none; write `longest if T is None else T`."""
    for indices, T, want in (([1], None, (1, 1, 1)), ([0, 1], None, (2, 3, 2)), ([1, 1], 4, (2, 4, 1)),
                             ([2, 2], 5, (2, 5, 3)), ([2, 1], 2, (2, 2, 3))):
        expect(f"batch({indices}, T={T}), shape of ids", tuple(small().batch(indices, T)["ids"].shape), want)
    found = tuple(made_up([[], [Token(3, 0)]]).batch([0])["ids"].shape)
    expect("batch of one document without tokens, shape of ids", found, (1, 0, 1))
    for indices, T, want in (([1, 0], 2, "ValueError"), ([0, 1], 2, "ValueError"), ([1], 0, "ValueError"),
                             ([], None, "ValueError"), ([], 3, "ValueError"), ([0, 3], None, "IndexError"),
                             ([-1], None, "IndexError"), (np.array([1, -3]), 9, "IndexError")):
        found = refused(small().batch, indices, T)
        expect(f"batch({indices}, T={T}) of a cache of documents of 3, 1, 2 tokens", found, want)


def check_there_and_back(points=1):
    """From logits to sets, to a cache on disk and back: the same ids, log-probabilities within .1 %, no more
    mass.

    This calls all five functions, and CacheWriter. Where another check fails too, mend that one first.

    Compare what stands in `batch` with what top_p_sets returned; what is stored may only be lower."""
    generator = torch.Generator().manual_seed(SEED)
    ids, log_probs, mask = top_p_sets(3 * torch.randn(20, 30, generator=generator), 0.9, 8)
    drawn = [None] + [(ids[i, mask[i]].numpy(), log_probs[i, mask[i]].numpy()) for i in range(20)]
    with tempfile.TemporaryDirectory() as folder:
        writer = CacheWriter(folder, n_vocab=50, tokenizer_hash="x", p=0.9, k_cap=8, temperature=1.0,
                             teacher={}, made_by="", roles=["a"])
        writer.add(list(range(3)), [0] * 3, [None] * 3)
        writer.add(list(range(21)), [0] * 21, drawn)
        writer.close()
        batch = {name: x[0, 1:21].clone() for name, x in TeacherCache(folder).batch([1, 0], 30).items()}
    same("ids", batch["ids"], ids)
    same("mask", batch["mask"], mask)
    found, want = batch["log_probs"][mask], log_probs[mask]
    assert (found <= want).all(), f"{int((found > want).sum())} of {len(want)} log-probabilities grew"
    assert (found >= 1.001 * want - 1e-4).all(), "a log-probability fell by more than .1 %"
    kept = restrict_to_p(batch["log_probs"], batch["mask"], 0.4)
    assert kept[:, 0].all(), "restricted to p=.4, a set lost its first token"
