"""Checks of assignment 2, attention and the KV cache (model.py). The docstring of a check is its hints:
what must hold, why, and nearly the line of code. The grader sets SEED, from which random inputs are drawn."""
import contextlib
import math
import random

import torch

from model import GPT, Attention, GPTConfig, KVCache, attend

SIZES = dict(n_vocab=20, n_embd=16, n_head=4, n_layer=2, block_size=64)
CONFIG = GPTConfig(**SIZES, shared_heads=2, conv_width=3)
# Every fifth channel of an Attention with the weights of `filled`, for x = wave(1, 4, 16).
KNOWN = [[0.0, 0.0, 0.0, 0.0], [0.2212, 0.4214, 0.0657, 0.2033], [-0.3672, -0.0515, -0.2272, -0.0891],
         [-0.203, -0.4288, -0.3823, -0.3738]]


def wave(*shape, step=0.7):
    """Numbers between -1 and 1 that are the same on every machine."""
    return torch.sin(step * torch.arange(math.prod(shape)).double() ** 1.1).float().reshape(shape)


def filled(module, factor=0.5):
    """The module with a different wave in every matrix."""
    for i, p in enumerate(module.parameters()):
        p.data = factor * wave(*p.shape, step=0.7 + 0.1 * i) if p.dim() > 1 else p.data
    return module.eval()


@contextlib.contextmanager
def empty_is_nan():
    """Meanwhile torch.empty gives NaN, in place of whatever lies in memory."""
    torch.set_deterministic_debug_mode("warn")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode("default")


def sources():
    """Random sizes and random tensors: random.Random and torch.Generator of SEED."""
    return random.Random(SEED), torch.Generator().manual_seed(SEED)


def triangle(T):
    return torch.full((T, T), -math.inf).triu(1)


def random_mask(generator, *shape):
    """0 and -inf at random; each token sees one column at least."""
    seen = torch.rand(shape, generator=generator) < 0.5
    sure = torch.randint(shape[-1], (*shape[:-1], 1), generator=generator)
    return torch.zeros(shape).masked_fill(~seen.scatter(-1, sure, True), -math.inf)


def turn(positions, D):
    """Rotary tables as GPT keeps them: positions (...) -> cos, sin (..., D)."""
    angle = positions[..., None] * 1000 ** (-torch.arange(0, D, 2) / D)
    return torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)


def close(found, want, what, tolerance=1e-5):
    """Fails with one line where a number of `found` is not `want`, NaN included."""
    assert found.shape == want.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(want.shape)}"
    found, want = found.detach().double(), want.detach().double()
    bad = ~((found - want).abs() <= tolerance * (1 + want.abs()))
    if bad.any():
        at = tuple(bad.nonzero()[0].tolist())
        raise AssertionError(f"{what}: {found[at]:.5g} at index {at}, expected {want[at]:.5g}; "
                             f"{int(bad.sum())} of {bad.numel()} numbers are wrong")


# A slow computation in float64, a head at a time, from the formulas of the page.

def slow_attend(q, k, v, mask):
    """What `attend` must return, in float64."""
    seen = (mask == 0).expand(q.size(0), 1, q.size(2), k.size(2))
    rows = []
    for row in range(q.size(0)):
        for head in range(q.size(1)):
            scores = q[row, head].double() @ k[row, head].double().T                   # (T, S)
            scores = scores.masked_fill_(~seen[row, 0], -math.inf)
            weights = scores.sub_(scores.detach().amax(-1, keepdim=True)).exp()
            rows.append(weights @ v[row, head].double() / weights.sum(-1, keepdim=True))
    return torch.stack(rows).reshape(*q.shape[:3], v.size(3))


def slow_parts(module, x, positions):
    """Scaled queries, keys and values of x before any shift, (B, H, T, D) in float64; positions (B, T)."""
    C, H, shared = x.size(2), module.n_head, module.shared
    D = C // H
    numbers = module.c_attn(x).double()                                                # (B, T, C + C + own)
    angle = positions[..., None].double() * 1000 ** (-torch.arange(0, D, 2).double() / D)
    cos, sin = angle.cos(), angle.sin()                                                # (B, T, D / 2)

    def part(start, head):
        return numbers[..., start + head * D:start + (head + 1) * D]                   # (B, T, D)

    def turned(x):
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        a, b = x[..., :D // 2], x[..., D // 2:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    queries = [turned(part(0, head)) for head in range(H)]
    values = [part(C, head) for head in range(H)]
    keys = queries[:shared] + [turned(part(2 * C, head)) for head in range(H - shared)]
    q, k, v = (torch.stack(heads, 1) for heads in (queries, keys, values))
    return q * module.scale.double() / math.sqrt(D), k, v


def slow_output(module, q, k, v, mask):
    """The heads side by side, times c_proj: (B, T, C) in float64."""
    y = torch.cat(list(slow_attend(q, k, v, mask).unbind(1)), -1)
    return y @ module.c_proj.weight.double().T


def slow_attention(module, x, positions):
    """What Attention.forward returns without a cache: behind an empty column stand the tokens before."""
    q, k, v = slow_parts(module, x, positions)
    k, v = (torch.cat([torch.zeros_like(t[:, :, :1]), t[:, :, :-1]], 2) for t in (k, v))
    return slow_output(module, q, k, v, triangle(x.size(1)))


def random_attention(numbers, generator, B, T):
    """An Attention of random sizes and weights, an input, and positions (B, T), other ones in every row."""
    H, D = numbers.randint(1, 4), 2 * numbers.randint(1, 4)
    module = Attention(GPTConfig(n_vocab=9, n_embd=H * D, n_head=H, shared_heads=numbers.randint(0, H),
                                 qk_scale=numbers.uniform(0.6, 2.5)))
    for weight in (module.c_attn.weight, module.c_proj.weight):
        weight.data = torch.randn(weight.shape, generator=generator) * 0.5
    positions = torch.randint(4, (B, T), generator=generator).cumsum(-1) - 3
    return module, torch.randn(B, T, H * D, generator=generator), positions


def tables(module, x, positions):
    """cos and sin (B, 1, T, D) of positions (B, T)."""
    return [table[:, None] for table in turn(positions, x.size(2) // module.n_head)]


def attention(x, first=0, change=None):
    """The output of a filled Attention whose c_proj is the identity: head h gives channels h * D and on."""
    module = filled(Attention(CONFIG))
    module.c_proj.weight.data = torch.eye(CONFIG.n_embd)
    if change:
        change(module)
    cos, sin = turn(torch.arange(first, first + x.size(1)), CONFIG.n_embd // CONFIG.n_head)
    with torch.no_grad():
        return module(x, (cos[None], sin[None]), triangle(x.size(1)))


class Recorder:
    """In place of a cache: notes what is appended, and gives fixed keys and values, (B, H, S, D) each."""

    def __init__(self, k, v):
        self.given, self.appended = torch.stack([k, v]), []

    def append(self, layer, k, v):
        self.appended.append((layer, k, v))
        return self.given


def check_attend_is_softmax_attention(points=2):
    """Scores q k^T (q is scaled already), plus the mask, softmax over the columns (last axis), times v.

    The weights of a token add up to 1 over the S columns. Scores may be large: exp of 300 is no float32.

    The scores are q @ (k with its last two axes swapped); torch.softmax(scores, dim=-1)
    subtracts the maximum."""
    q, k, v = torch.tensor([[[[1.0, 0], [0, 1]]]]), torch.tensor([[[[0.0, 0], [1, 0], [0, 2]]]]), torch.eye(3)
    want = torch.tensor([[[[1.0, math.e, 1], [1, 1, math.e ** 2]]]])
    found = attend(q, k, v[None, None], torch.zeros(2, 3), False)
    close(found, want / want.sum(-1, keepdim=True), "weights for scores 0 1 0 and 0 0 2")
    _, generator = sources()
    q, k, v = (torch.randn(2, 3, n, 4, generator=generator) for n in (5, 7, 7))
    none = torch.zeros(5, 7)
    close(attend(q, k, v, none, False), slow_attend(q, k, v, none), "5 queries, 7 keys")
    q[:, :, 0], q[:, :, 1], k[..., 0] = 300.0, -300.0, 1.0              # one token high, another low
    close(attend(q, k, v, none, False), slow_attend(q, k, v, none), "scores of 300 and -300", 1e-3)


def check_what_is_masked_has_no_weight(points=2):
    """Masked means a score of -inf before the softmax, so a weight of exactly 0. A score of 0 is not masked.

    A mask (B, 1, T, S) is another one for every row, and the same for all heads of a row.

    Add the mask to the scores: (B, H, T, S) + (B, 1, T, S). Nothing else needs to be done with it."""
    _, generator = sources()
    q, k, v = (torch.randn(2, 2, n, 4, generator=generator) for n in (5, 7, 7))
    mask = torch.zeros(2, 1, 5, 7)
    mask[0, :, :, 2], mask[1, :, :3, 4] = -math.inf, -math.inf          # a different mask for every row
    before, want, keep = attend(q, k, v, mask, False), slow_attend(q, k, v, mask), [0, 1, 3, 4, 5, 6]
    without = slow_attend(q[:1], k[:1, :, keep], v[:1, :, keep], torch.zeros(5, 6))
    close(before[:1], without, "column 2 masked in row 0")
    close(before[1, :, :3], want[1, :, :3], "column 4 masked for tokens 0 to 2 of row 1")
    close(before[1, :, 3:], want[1, :, 3:], "nothing masked for tokens 3 and 4 of row 1")
    k[0, :, 2], v[0, :, 2] = 500 * q[0, :, 0], 1e6                      # scores far above all others
    close(attend(q, k, v, mask, False), before, "a masked column with another key and value")


@empty_is_nan()
def check_the_first_token_attends_to_nothing(points=1):
    """Keys and values stand one column later, behind an empty (zero) one. The first
    token sees that one alone.

    Column 0 has key 0 and value 0, so its score is 0 and it adds nothing. The last token's key is not needed.

    Put one zero in front on the axis of time and drop the last column; torch.roll would put
    the last one in front."""
    y = attention(wave(2, 5, 16))
    assert (y[:, 0] == 0).all(), f"the first token's output is {y[0, 0, 0]:.4f} in channel 0, expected 0"
    assert (y[:, 1:] != 0).all(), "the output of a later token is 0, though it sees tokens before it"
    assert (attention(wave(1, 1, 16)) == 0).all(), "the output of a row of one token is not 0"


def check_never_itself_never_later(points=2):
    """A token attends to the tokens before it, not to itself: its value must not appear at its own place.

    The mask lets token t see the columns 0 .. t. It is the shift of k AND v that makes
    column t hold token t - 1.

    With x = [[1], [2], [3]] keys and values are those of [0], [1], [2]."""
    x = torch.zeros(1, 6, 16)
    x[0, 3] = wave(16)
    y = attention(x)
    assert (y[0, :4] == 0).all(), "the value of token 3 appears at token 3 or before"
    assert (y[0, 4:].abs().sum(-1) > 0.01).all(), "tokens 4 and 5 do not see token 3"


def check_shared_heads(points=2):
    """In the first `shared` heads the keys ARE the queries. Last in c_attn's output
    are the keys of other heads.

    c_attn gives H heads of queries, H heads of values and H - shared heads of keys, of D numbers each.

    Take the first `shared` heads of the turned queries, before `scale`, and put the
    turned own keys behind them."""
    def other_keys(module):
        module.c_attn.weight.data[32:] = wave(8, 16, step=0.33)
    x = wave(1, 6, 16)
    before, after = attention(x), attention(x, change=other_keys)
    close(after[..., :8], before[..., :8], "shared heads after a change of the other heads' keys")
    moved = (after - before)[:, 2:].abs() > 1e-4
    assert moved[..., 8:12].any() and moved[..., 12:].any(), "other keys change nothing in the other heads"

    def other_queries(module):
        module.c_attn.weight.data[:4] = -module.c_attn.weight.data[:4]
    close(attention(x, change=other_queries), before, "q and k of head 0 both change sign")


def check_queries_and_keys_are_normalised(points=1):
    """RMS norm over the channels of a head: |q| = |k| = sqrt(D) for any size of the
    matrix; not of the values.

    Only `scale` makes attention sharper. The 1e-6 stands inside the root: it counts for queries close to
    zero, and a query of zeros stays zero.

    Divide by the root of (mean of the D squares + 1e-6), each head by its own."""
    def larger(module):
        module.c_attn.weight.data[:16] *= 7
        module.c_attn.weight.data[32:] *= 7
    x = wave(1, 6, 16)
    close(attention(x, change=larger), attention(x), "queries and keys 7 times as large", 1e-3)

    def sharper(module):
        module.scale.data *= 9
    assert (attention(x, change=sharper) - attention(x)).abs().max() > 0.05, "scale changes nothing"
    numbers, generator = sources()
    for size in (1e-2, 1e-3, 1e-4):
        module, x, positions = random_attention(numbers, generator, 2, 5)
        C = x.size(2)
        module.c_attn.weight.data[:C] *= size
        module.c_attn.weight.data[2 * C:] *= size
        x[0, 2] = 0                                                     # like a pad
        with torch.no_grad():
            close(module(x, tables(module, x, positions), triangle(5)), slow_attention(module, x, positions),
                  f"queries and keys of about {size:g}", 1e-4)


def check_positions_are_relative(points=1):
    """Rotary: queries AND keys are turned by their own position, so a row five tokens
    later has the same output.

    Channel i and channel i + D / 2 are the two coordinates of a point that turns. Values do not turn.

    x.roll(D // 2, -1) brings each coordinate to the place of its partner; the table of sin has the signs."""
    x = wave(1, 6, 16)
    close(attention(x, first=5), attention(x), "the same row five positions later", 1e-4)
    turned = x.clone()
    turned[0, 1:5] = x[0, [4, 3, 2, 1]]
    apart = (attention(turned)[0, 5] - attention(x)[0, 5]).abs().max()
    assert apart > 0.01, "the order of the past makes no difference"


def check_known_output(points=2):
    """All together on fixed weights: turn q as (a cos - b sin, b cos + a sin), scale, mask; c_proj last.

    Where this check alone fails: the sign of the turn, the order of the parts of c_attn, or the factor of q.

    Queries are multiplied by scale / sqrt(D), once, and D is the number of channels of a head."""
    x = wave(1, 4, 16)
    y = attention(x)
    close(y[0, :, ::5], torch.tensor(KNOWN), "every fifth channel of four tokens", 2e-4)

    def other_output(module):
        module.c_proj.weight.data = wave(16, 16, step=0.33)
    close(attention(x, change=other_output), y @ wave(16, 16, step=0.33).T, "with another c_proj")


def read_positions(position, B, T):
    """(B, T), also where a slice or one row stands for all rows."""
    if isinstance(position, slice):
        position = torch.arange(10_000)[position]
    assert not position.is_floating_point(), f"positions are {position.dtype}, expected integers"
    return position.expand(B, T)


def check_advance(points=2):
    """Positions count from a row's first real token, and are below 0 at pads. A pad sees only its own column.

    The mask holds 0 and -inf, one (T, S) for each row: T new columns, S columns so far, new ones
    included. A token sees the columns from its row's first real one to its own. Without its own
    column a pad's softmax is NaN.

    Column 4 of a row with 3 pads has position 1 and sees columns 3 and 4; column 2 sees column 2."""
    cache, inf = KVCache(CONFIG, torch.tensor([0, 2])), -math.inf
    position, mask = cache.advance(3)
    found = read_positions(position, 2, 3).tolist()
    assert found == [[0, 1, 2], [-2, -1, 0]], f"positions {found}, expected [[0, 1, 2], [-2, -1, 0]]"
    assert mask.shape == (2, 1, 3, 3), f"mask of shape {tuple(mask.shape)}, expected (2, 1, 3, 3)"
    found = mask[0, 0].tolist()
    assert found == [[0, inf, inf], [0, 0, inf], [0, 0, 0]], f"mask of the row without pads {found}"
    found = mask[1, 0].tolist()
    assert found == [[0, inf, inf], [inf, 0, inf], [inf, inf, 0]], f"mask of the padded row {found}"
    position, mask = cache.advance(2)
    assert cache.length == 5, f"length {cache.length} after 3 and 2 columns, expected 5"
    found = read_positions(position, 2, 2).tolist()
    assert found == [[3, 4], [1, 2]], f"then positions {found}, expected [[3, 4], [1, 2]]"
    found = mask[1, 0].tolist()
    assert found == [[inf, inf, 0, 0, inf], [inf, inf, 0, 0, 0]], f"then mask of the padded row {found}"


def check_advance_of_any_rows(points=2):
    """The same for any rows, pieces of any size, and after `select` has dropped or repeated rows.

    One token of rows without pads may have a slice as its position and a mask (1, 1), but not where
    any row has pads. The pads of a row may reach beyond the first piece. Row b has self.pads[b]
    pads, and no other row's.

    Keep no tables of your own: compute all from self.length and self.pads, which `select` keeps right."""
    numbers, _ = sources()
    for case in range(15):
        B, some, none = numbers.randint(1, 4), numbers.randint(1, 5), [0] * numbers.randint(1, 3)
        mixed = [numbers.randint(0, 5) for _ in range(B)]
        pads = (mixed, [some, *none], [*none, some], [some] * B, none)[case % 5]
        B = len(pads)
        cache, length = KVCache(CONFIG, torch.tensor(pads)), 0
        for _ in range(6):
            T = numbers.choice([1, 1, 2, 3, 5])
            position, mask = cache.advance(T)
            new, length = range(length, length + T), length + T
            what = f"{T} new columns after {length - T}, pads {pads}"
            assert cache.length == length, f"{what}: length {cache.length}, expected {length}"
            assert cache.pads.tolist() == pads, f"{what}: the pads become {cache.pads.tolist()}"
            found = read_positions(position, B, T).tolist()
            want = [[c - first for c in new] for first in pads]
            assert found == want, f"{what}: positions {found}, expected {want}"
            seen = [[[s == c or first <= s <= c for s in range(length)] for c in new] for first in pads]
            want = torch.zeros(B, T, length).masked_fill(~torch.tensor(seen), -math.inf)
            close(mask.expand(B, 1, T, length).exp(), want[:, None].exp(), f"exp of the mask, {what}")
            if numbers.random() < 0.3:
                rows = [numbers.randrange(B) for _ in range(numbers.randint(1, 4))]
                cache, pads, B = cache.select(torch.tensor(rows)), [pads[row] for row in rows], len(rows)


class Unshifted(KVCache):
    shift = 0


@empty_is_nan()
def check_append(points=2):
    """New columns come behind the old ones: token s stands in column s + shift;
    `length` columns are returned.

    With shift 1 column 0 stays zero, and the newest token is stored, but only the next call shows it. advance
    has already counted the new columns when append is called.

    The new columns end at self.length + self.shift, and there are k.size(2) of them."""
    for cls in (KVCache, Unshifted):
        cache, k, v = cls(CONFIG, torch.tensor([0])), wave(1, 4, 5, 4), wave(1, 4, 5, 4, step=0.9)
        cache.advance(3)
        cache.append(0, k[:, :, :3], v[:, :, :3])
        cache.advance(2)
        keys, values = cache.append(0, k[:, :, 3:], v[:, :, 3:])
        assert keys.shape == (1, 4, 5, 4), f"{keys.size(2)} columns are returned, expected 5"
        close(keys[:, :, cls.shift:], k[:, :, :5 - cls.shift], f"keys, shift {cls.shift}")
        close(values[:, :, cls.shift:], v[:, :, :5 - cls.shift], f"values, shift {cls.shift}")
        assert not cls.shift or not keys[:, :, 0].any(), "column 0 is not empty"


@empty_is_nan()
def check_append_of_any_pieces(points=2):
    """Layers are kept apart, old columns survive when room is made, and the type is
    that of the keys that come.

    An empty cache is float32; with bfloat16 keys it must become bfloat16. What was
    returned before stays as it was.

    self.kv[layer] is (2, B, H, room, D): widen it on the axis of columns only, at its end,
    and keep what is there."""
    numbers, generator = sources()
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float32):
        cls, B, L, H, D = numbers.choice([KVCache, KVCache, Unshifted]), numbers.randint(1, 3), 3, 2, 4
        cache = cls(GPTConfig(n_vocab=9, n_embd=H * D, n_head=H, n_layer=L), torch.zeros(B, dtype=torch.long))
        stored, earlier = [torch.zeros(2, B, H, cls.shift, D, dtype=dtype) for _ in range(L)], []
        caches = [(cache, stored)]
        for step in range(9):
            cache, stored = numbers.choice(caches)
            T = (1, 9, 30)[step] if step < 3 else numbers.choice([1, 1, 1, 2, 4, 9])   # more than the room
            rooms = [kv.size(3) for kv in cache.kv]
            cache.advance(T)
            for layer in numbers.sample(range(L), L):
                new = torch.randn(2, len(cache.pads), T, H, D, generator=generator).to(dtype).transpose(2, 3)
                k, v = new.clone(memory_format=torch.preserve_format)
                found = cache.append(layer, k, v)
                stored[layer] = torch.cat([stored[layer], new], 3)
                what = f"layer {layer}, {T} more tokens of {dtype}, shift {cls.shift}"
                for name, mine, ours in zip(("keys", "values"), found, stored[layer]):
                    assert mine.dtype == dtype, f"{what}: {name} are {mine.dtype}"
                    close(mine, ours[:, :, :cache.length], f"{name} of {what}", 0)
                    earlier.append((mine, mine.clone()))
                room, needed = cache.kv[layer].size(3), cache.length + cls.shift
                assert room <= max(rooms[layer], 2 * needed + 2), \
                    f"{what}: {needed} columns are needed, and room is made for {room}, expected {2 * needed}"
                assert torch.equal(torch.stack([k, v]), new), f"{what}: k or v is changed"
            assert all(torch.equal(*both) for both in earlier), "what append returned before is changed later"
            if numbers.random() < 0.3:                                  # both caches go on
                rows = torch.tensor([numbers.randrange(len(cache.pads)) for _ in range(B)])
                caches.append((cache.select(rows), [columns[:, rows] for columns in stored]))


def check_room_grows_by_doubling(points=1):
    """Making room for one token at a time copies the cache S times. Twice the room needed: log2(S) times.

    Fixed steps copy it S / step times; and room for much more than twice as many columns is wasted memory.

    Where S columns do not fit any more, make room for 2 S columns in all."""
    cache, rooms = KVCache(CONFIG, torch.tensor([0])), [0]
    for S in range(1, 401):
        cache.advance(1)
        cache.append(1, torch.ones(1, 4, 1, 4), torch.ones(1, 4, 1, 4))
        room = cache.kv[1].shape[3]
        assert room <= 2 * S + 4 or room == rooms[-1], f"{S} tokens get room for {room}, expected {2 * S + 2}"
        rooms += [room] if room != rooms[-1] else []
    assert len(rooms) <= 13, f"room was made {len(rooms) - 1} times in 400 tokens, expected about 9 times"


@empty_is_nan()
def check_any_attention(points=2):
    """Any number of heads, shared heads, rows and tokens: the formulas of the page, at each row's positions.

    The tables cos and sin are (1, T, D) for all rows, or (B, 1, T, D) where rows differ.

    Queries and keys are (B, H, T, D), so that both tables broadcast; no index is needed."""
    numbers, generator = sources()
    for B, T, factor in ((1, 1, 1), (2, 2, -0.5), (3, 5, 1), (1, 9, 5), (4, 4, -5)):
        module, x, positions = random_attention(numbers, generator, B, T)
        module.scale.data *= factor
        what = f"{module.n_head} heads, {module.shared} shared, {x.size(2)} channels, {B} x {T} tokens"
        with torch.no_grad():
            want = slow_attention(module, x, positions)
            close(module(x, tables(module, x, positions), triangle(T)), want, what, 1e-4)
            same = positions[:1].expand(B, T)
            cos, sin = turn(same[0], x.size(2) // module.n_head)
            close(module(x, (cos[None], sin[None]), triangle(T)), slow_attention(module, x, same), what, 1e-4)


def check_gradients_of_attention(points=1):
    """Gradients reach x, c_attn, c_proj and scale: nothing is detached or turned into a Python number.

    The gradient of `scale` is the one that is lost most easily: it is a parameter with one number.

    Multiply q by the tensor self.scale, without .item(), .data or torch.no_grad()."""
    numbers, generator = sources()
    for shared in (0, 1, 3):
        module, x, positions = random_attention(numbers, generator, 2, 6)
        module.shared = min(shared, module.n_head)                      # and a matrix of the size that fits
        C = x.size(2)
        rows = 2 * C + (module.n_head - module.shared) * C // module.n_head
        module.c_attn.weight.data = torch.randn(rows, C, generator=generator)
        weight, found = torch.randn(x.shape, generator=generator), []
        for slow in (False, True):
            module.zero_grad()
            x = x.detach().requires_grad_()
            y = (slow_attention(module, x, positions) if slow
                 else module(x, tables(module, x, positions), triangle(6)))
            (y * weight).sum().backward()
            named = [("x", x), *module.named_parameters()]
            found.append([(name, p.grad if p.grad is None else p.grad.clone()) for name, p in named])
        for (name, mine), (_, ours) in zip(*found):
            assert mine is not None, f"no gradient for {name}"
            close(mine, ours, f"gradient of {name}", 1e-3)


def check_inputs_stay_as_they_are(points=1):
    """No function changes its inputs: x, the tables, the mask, q, k, v, the weights, the pads.

    The mask and the tables belong to the model and serve every layer.

    Write q = q * factor, not q *= factor; mask + scores makes a new tensor."""
    numbers, generator = sources()
    T = 6
    q, k, v, mask = *(torch.randn(2, 2, T, 4, generator=generator) for _ in range(3)), triangle(T)
    module, x, positions = random_attention(numbers, generator, 2, T)
    rotary = tables(module, x, positions)
    for times in (1, 25, 4):                                            # 6, 150 and 600 tokens
        q, k, v = (t.repeat(1, 1, times, 1) for t in (q, k, v))
        mask = triangle(q.size(2))
        kept = {"q": q, "k": k, "v": v, "mask": mask, "x": x, "cos": rotary[0], "sin": rotary[1],
                **dict(module.named_parameters())}
        before = {name: t.detach().clone() for name, t in kept.items()}
        with torch.no_grad():
            attend(q, k, v, mask, True)
            attend(q, k, v, mask, False)
            first, again = (module(x, rotary, triangle(T)) for _ in range(2))
        for name, t in kept.items():
            assert torch.equal(t.detach(), before[name]), f"{name} is changed"
        close(again, first, "the second of two equal calls")


def check_half_precision(points=1):
    """bfloat16 goes in and comes out; queries and keys are normalised AND turned in
    float32, then rounded once.

    Rounding between the steps costs about half of the 8 bits that bfloat16 has. Under autocast x is float32
    and c_attn gives bfloat16: the type is that of v, not that of x.

    Take .float() of queries and own keys first, and .to(v.dtype) of both after the turn."""
    numbers, generator = sources()
    bfloat16, float16 = (torch.bfloat16, 8), (torch.float16, 11)
    for (dtype, bits), factor, auto in ((bfloat16, 1, False), (float16, 1, False), (float16, 300, False),
                                        (bfloat16, 1, True)):
        T = 12
        module, x, positions = random_attention(numbers, generator, 2, T)
        module = module if auto else module.to(dtype)
        module.c_attn.weight.data *= factor                             # squares of 300 are no float16
        x = (x if auto else x.to(dtype)) / x.size(2) ** 0.5
        rotary, mask = tables(module, x, positions + 3), random_mask(generator, 2, 1, T, T)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=auto):
            q, k, v = slow_parts(module, x, positions + 3)
            cache = Recorder(k.to(dtype), v.to(dtype) / factor)
            y = module(x, rotary, mask, cache)
            (_, new_k, new_v), = cache.appended
            assert new_k.dtype == new_v.dtype == y.dtype == dtype, \
                f"x is {x.dtype}, c_attn gives {dtype}; k, v, y are {new_k.dtype}, {new_v.dtype}, {y.dtype}"
            close(new_k, k, f"{dtype} keys", 12 * 2.0 ** -bits)
            step = 2.0 ** (k.abs().clamp(min=1e-3).log2().floor() + 1 - bits)          # between two numbers
            wrong = ((new_k.double() - k).abs() > 0.505 * step).double().mean()
            assert wrong < 0.03, f"{wrong:.0%} of the {dtype} keys are not the nearest, but rounded twice"
            want = slow_output(module, q, k.to(dtype), v.to(dtype) / factor, mask)
            close(y, want, f"output in {dtype}", 12 * 2.0 ** -bits)


def check_forward_with_a_cache(points=2):
    """With a cache, turned keys and plain values go to append, unshifted; what comes back is attended to.

    Keys go in without `scale`. The cache shifts, not forward; the mask decides what
    is seen, in long rows too.

    k, v = cache.append(layer, k, v), with the layer that forward was called with;
    attend is not causal then."""
    numbers, generator = sources()
    middle, long = numbers.randint(130, 200), numbers.randint(513, 520)
    for T, S in ((3, 3), (4, 9), (1, 7), (1, 6), (middle, 210), (long, 530)):
        B = 2 if T < 100 else 1
        module, x, positions = random_attention(numbers, generator, B, T)
        shape = B, module.n_head, S, x.size(2) // module.n_head
        k, v = (torch.randn(shape, generator=generator) for _ in range(2))
        mask = torch.zeros(1, 1) if S == 6 else random_mask(generator, B, 1, T, S)
        cache, layer = Recorder(k, v), numbers.randint(1, 9)
        with torch.no_grad():
            found = module(x, tables(module, x, positions), mask, cache, layer)
            q, new_k, new_v = slow_parts(module, x, positions)
            assert len(cache.appended) == 1, f"append was called {len(cache.appended)} times, expected once"
            assert cache.appended[0][0] == layer, f"layer {layer} appends as layer {cache.appended[0][0]}"
            close(cache.appended[0][1], new_k, f"keys appended for {T} tokens", 1e-4)
            close(cache.appended[0][2], new_v, f"values appended for {T} tokens", 1e-4)
            close(found, slow_output(module, q, k, v, mask), f"{T} tokens and {S} columns of a cache", 1e-4)


def random_model(numbers, generator, **sizes):
    """A GPT with random weights, also where a new one has zeros."""
    model = GPT(GPTConfig(**{**SIZES, "shared_heads": numbers.randint(0, 4),
                             "conv_width": numbers.choice([0, 3]), **sizes})).eval()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.4 if p.dim() > 1 else p.data
    return model


def check_in_pieces_as_at_once(points=2):
    """Reading 12 tokens as 4 + 1 + 3 + 4 with a cache must give the hidden states of reading them at once.

    Where the first piece is right and the second wrong, look at positions, and at the columns of the cache.

    Read 2 + 1 tokens by hand: the third sees columns 0 (empty), 1 and 2, and its key stands in column 3."""
    ids = torch.tensor([[3, 7, 7, 1, 12, 3, 7, 19, 0, 2, 3, 7], [5, 6, 5, 6, 5, 6, 5, 6, 5, 6, 6, 5]])
    numbers, generator = sources()
    for model, sizes in ((filled(GPT(CONFIG)), [4, 1, 3, 4]),
                         (random_model(numbers, generator), [1, 1, 1, 1, 1, 1, 6]),
                         (random_model(numbers, generator), [1, 1, 2, 7, 1])):
        cache = KVCache(model.config, torch.zeros(2, dtype=torch.long))
        parts = [model.hidden(part, cache) for part in ids.split(sizes, dim=1)]
        with torch.no_grad():
            close(torch.cat(parts, 1), model.hidden(ids), f"12 tokens read as {sizes}", 1e-3)


def check_pads_leave_no_trace(points=2):
    """A row padded on the left must give what it gives alone: masked columns, positions from its own start.

    Rows of a batch start in different columns. A new token of a padded row must not see the pads either, and
    long prompts are padded as well as short ones.

    Compare the mask and the positions of the padded row with those of the row alone:
    pads cut off, the same."""
    prompts, more = [[4, 9, 2, 2, 17, 9], [9, 2], [13]], torch.tensor([[5], [2], [8]])
    numbers, generator = sources()
    cases = [(filled(GPT(config)), prompts, more) for config in (CONFIG, GPTConfig(**SIZES, conv_width=0))]
    for longest in (9, 530):
        model = random_model(numbers, generator, block_size=540, n_layer=2 if longest < 99 else 1)
        prompts = [[numbers.randrange(20) for _ in range(n)]
                   for n in (numbers.randint(1, 9), longest, numbers.randint(5, 9))]
        cases.append((model, prompts, torch.randint(20, (3, 4), generator=generator)))
    for model, prompts, more in cases:
        hidden, cache = model.prefill(prompts)
        later = [model.hidden(part, cache) for part in more.split([1, 1, 2][:more.size(1)], dim=1)]
        for row, prompt in enumerate(prompts):
            with torch.no_grad():
                alone = model.hidden(torch.tensor([prompt + more[row].tolist()]))[0]
            found = torch.cat([hidden[row, -len(prompt):], torch.cat(later, 1)[row]])
            longest = max(map(len, prompts))
            close(found, alone, f"prompt of {len(prompt)} tokens beside one of {longest}", 1e-3)


@empty_is_nan()
def check_attend_of_any_size(points=2):
    """Every length and every kind of mask gives the same formula: short and long rows, causal or not.

    With causal=False the mask decides, also in rows beyond EXPLICIT_ATTENTION_UP_TO, and S may be larger than
    T. A mask (1, 1) hides nothing. With causal=True the mask is the triangle: token t sees s <= t.

    A kernel that takes is_causal=True needs no mask, any other call does. Queries a .. b of a causal row need
    the mask's rows a .. b and its columns 0 .. b. No kernel may scale again: scale=1.0."""
    numbers, generator = sources()
    kinds = ["triangle"] * 5 + ["row by row", "one for all", "nothing"] * 4
    lengths = [128, 129, 256] + [numbers.randint(*some) for some in ((257, 512), (513, 530))]
    lengths += [1, 1, 2]
    for some in ((3, 40), (129, 200), (513, 530)):
        lengths += [numbers.randint(*some) for _ in range(3)]
    for T, kind in zip(lengths, kinds):
        S = T if kind == "triangle" else T + numbers.randint(0, 30)
        B, H = (2, 2) if T < 300 and kind != "triangle" else (2, 1) if kind == "row by row" else (1, 1)
        q, k, v = (torch.randn(B, H, n, 4, generator=generator) for n in (T, S, S))
        shape = {"nothing": (1, 1), "one for all": (T, S), "row by row": (B, 1, T, S)}.get(kind)
        mask = random_mask(generator, *shape) if shape else triangle(T)
        found = attend(q, k, v, mask, kind == "triangle")
        close(found, slow_attend(q, k, v, mask), f"T = {T}, S = {S}, mask: {kind}", 1e-4)


def check_types_and_gradients_of_attend(points=1):
    """The result comes in the type of v, in all branches, and gradients flow to q, k and v.

    float16 and bfloat16 keys and values meet a float32 mask: the softmax is then
    float32, its weights are not.

    Turn the weights into v.dtype before they meet v; a fused kernel wants the mask in q.dtype."""
    numbers, generator = sources()
    for T in (6, numbers.randint(130, 150), numbers.randint(513, 520)):
        inputs = [torch.randn(1, 1, T, 4, generator=generator) * size for size in (0.7, 1, 1)]
        for mask, causal in ((triangle(T), True), (random_mask(generator, 1, 1, T, T), False)):
            mine, ours = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
            want = slow_attend(*ours, mask)
            types = (torch.bfloat16, 0.05), (torch.float16, 0.01), (torch.float64, 1e-5)
            for dtype, tolerance in types if T < 512 else types[::2]:
                found = attend(*(x.to(dtype) for x in inputs), mask, causal)
                assert found.dtype == dtype, f"{T} tokens of {dtype}: {found.dtype} comes out"
                close(found, want, f"{T} tokens of {dtype}, causal={causal}", tolerance)
            weight = torch.randn(1, 1, T, 4, generator=generator)
            (attend(*mine, mask, causal) * weight).sum().backward()
            (want * weight).sum().backward()
            for name, a, b in zip("qkv", mine, ours):
                assert a.grad is not None, f"{T} tokens, causal={causal}: no gradient for {name}"
                close(a.grad, b.grad, f"{T} tokens, causal={causal}: gradient of {name}", 1e-4)
