"""Checks of assignment 2, attention and the KV cache (model.py). The docstring of a check is its hint."""
import math

import torch
import torch.nn.functional as F

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


def triangle(T):
    return torch.full((T, T), -math.inf).triu(1)


def turn(first, T, D):
    """Rotary tables of T positions from `first` on, as GPT keeps them: cos, sin (1, T, D)."""
    angle = torch.arange(first, first + T)[:, None] * 1000 ** (-torch.arange(0, D, 2) / D)
    return torch.cat([angle.cos()] * 2, -1)[None], torch.cat([-angle.sin(), angle.sin()], -1)[None]


def attention(x, first=0, change=None):
    """The output of a filled Attention whose c_proj is the identity: channels h * D .. are those of head
    h."""
    module = filled(Attention(CONFIG))
    module.c_proj.weight.data = torch.eye(CONFIG.n_embd)
    if change:
        change(module)
    with torch.no_grad():
        return module(x, turn(first, x.size(1), CONFIG.n_embd // CONFIG.n_head), triangle(x.size(1)))


def close(found, want, tolerance=1e-5):
    torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)


def check_attend_is_softmax_attention(points=2):
    """Scores q k^T (q is scaled already), plus the mask, softmax over the COLUMNS (last axis), times v."""
    q, k, v = 2 * wave(2, 3, 5, 4), wave(2, 3, 7, 4, step=0.9), wave(2, 3, 7, 4, step=1.3)
    mask = torch.zeros(5, 7)
    close(attend(q, k, v, mask, False), F.scaled_dot_product_attention(q, k, v, scale=1.0))
    q, mask = 2 * wave(2, 3, 7, 4), triangle(7)
    close(attend(q, k, v, mask, True), F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0))


def check_what_is_masked_has_no_weight(points=2):
    """Masked means a score of -inf before the softmax, so a weight of exactly 0. A score of 0 is not
    masked."""
    q, k, v = wave(2, 3, 5, 4), wave(2, 3, 7, 4, step=0.9), wave(2, 3, 7, 4, step=1.3)
    mask = torch.zeros(2, 1, 5, 7)
    mask[0, :, :, 2], mask[1, :, :3, 4] = -math.inf, -math.inf          # a different mask for every row
    before = attend(q, k, v, mask, False)
    keep = [0, 1, 3, 4, 5, 6]
    close(before[0], attend(q[:1], k[:1, :, keep], v[:1, :, keep], torch.zeros(5, 6), False)[0])
    k[0, :, 2], v[0, :, 2] = 50.0, 1e6
    close(attend(q, k, v, mask, False), before)


def check_long_rows_and_types(points=1):
    """Long rows (beyond EXPLICIT_ATTENTION_UP_TO) have the same answer, and it comes in the type of v."""
    q, k, v = wave(1, 2, 600, 4), wave(1, 2, 600, 4, step=0.9), wave(1, 2, 600, 4, step=1.3)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    close(attend(q, k, v, triangle(600), True), want, 1e-4)
    for T in (6, 300, 600):
        half = attend(*(x[:, :, :T].bfloat16() for x in (q, k, v)), triangle(T), True)
        assert half.dtype == torch.bfloat16, f"bfloat16 goes in, {half.dtype} comes out"
        close(half.float(), want[:, :, :T], 0.03)


def check_the_first_token_attends_to_nothing(points=1):
    """Keys and values stand one column later, behind an empty (zero) one. The first token sees that one
    alone."""
    y = attention(wave(2, 5, 16))
    assert (y[:, 0] == 0).all() and (y[:, 1:] != 0).all()


def check_never_itself_never_later(points=2):
    """A token attends to the tokens before it, not to itself: its value must not appear at its own place."""
    x = torch.zeros(1, 6, 16)
    x[0, 3] = wave(16)
    y = attention(x)
    assert (y[0, :4] == 0).all(), "the value of token 3 appears at token 3 or before"
    assert (y[0, 4:].abs().sum(-1) > 0.01).all(), "tokens 4 and 5 do not see token 3"


def check_shared_heads(points=2):
    """In the first `shared` heads the keys ARE the queries. The last part of c_attn's output holds the keys
    of the other heads."""
    def other_keys(module):
        module.c_attn.weight.data[32:] = wave(8, 16, step=0.33)
    x = wave(1, 6, 16)
    before, after = attention(x), attention(x, change=other_keys)
    close(after[..., :8], before[..., :8])
    moved = (after - before)[:, 2:].abs() > 1e-4
    assert moved[..., 8:12].any() and moved[..., 12:].any(), "other keys change nothing in the other heads"

    def other_queries(module):
        module.c_attn.weight.data[:4] = -module.c_attn.weight.data[:4]
    close(attention(x, change=other_queries), before)           # q and k of head 0 change sign: same scores


def check_queries_and_keys_are_normalised(points=1):
    """RMS norm over the channels of a head: |q| = |k| = sqrt(D) for any size of the matrix. Only `scale`
    makes attention sharper. Values are not normalised."""
    def larger(module):
        module.c_attn.weight.data[:16] *= 7
        module.c_attn.weight.data[32:] *= 7
    x = wave(1, 6, 16)
    close(attention(x, change=larger), attention(x), 1e-3)

    def sharper(module):
        module.scale.data *= 9
    assert (attention(x, change=sharper) - attention(x)).abs().max() > 0.05, "scale changes nothing"


def check_positions_are_relative(points=1):
    """Rotary: queries AND keys are turned by their own position, so a row five tokens later has the same
    output."""
    x = wave(1, 6, 16)
    close(attention(x, first=5), attention(x), 1e-4)
    turned = x.clone()
    turned[0, 1:5] = x[0, [4, 3, 2, 1]]
    apart = (attention(turned)[0, 5] - attention(x)[0, 5]).abs().max()
    assert apart > 0.01, "the order of the past makes no difference"


def check_known_output(points=2):
    """All together on fixed weights: turn q as (a cos - b sin, b cos + a sin), scale, mask; c_proj last."""
    x = wave(1, 4, 16)
    y = attention(x)
    close(y[0, :, ::5], torch.tensor(KNOWN), 2e-4)

    def other_output(module):
        module.c_proj.weight.data = wave(16, 16, step=0.33)
    close(attention(x, change=other_output), y @ wave(16, 16, step=0.33).T)


def check_advance(points=2):
    """Positions count from a row's first real token, and are below 0 at pads. The mask holds 0 and -inf; a
    pad sees only its own column."""
    cache, inf = KVCache(CONFIG, torch.tensor([0, 2])), -math.inf
    position, mask = cache.advance(3)
    assert position.tolist() == [[0, 1, 2], [-2, -1, 0]], f"positions {position.tolist()}"
    assert mask.shape == (2, 1, 3, 3) and mask[0, 0].tolist() == [[0, inf, inf], [0, 0, inf], [0, 0, 0]]
    found = mask[1, 0].tolist()
    assert found == [[0, inf, inf], [inf, 0, inf], [inf, inf, 0]], f"mask of the padded row {found}"
    position, mask = cache.advance(2)
    assert position.tolist() == [[3, 4], [1, 2]] and cache.length == 5, f"then positions {position.tolist()}"
    assert mask[1, 0].tolist() == [[inf, inf, 0, 0, inf], [inf, inf, 0, 0, 0]]


class Unshifted(KVCache):
    shift = 0


def check_append(points=2):
    """New columns come behind the old ones: token s stands in column s + shift. Only `length` columns are
    returned, so with a shift of 1 column 0 stays zero, and the newest token is kept for later."""
    for cls in (KVCache, Unshifted):
        cache, k, v = cls(CONFIG, torch.tensor([0])), wave(1, 4, 5, 4), wave(1, 4, 5, 4, step=0.9)
        cache.advance(3)
        cache.append(0, k[:, :, :3], v[:, :, :3])
        cache.advance(2)
        keys, values = cache.append(0, k[:, :, 3:], v[:, :, 3:])
        assert keys.shape == (1, 4, 5, 4), f"{keys.size(2)} columns are returned, expected 5"
        close(keys[:, :, cls.shift:], k[:, :, :5 - cls.shift])
        close(values[:, :, cls.shift:], v[:, :, :5 - cls.shift])
        assert not cls.shift or not keys[:, :, 0].any(), "column 0 is not empty"


def check_in_pieces_as_at_once(points=2):
    """Reading 12 tokens as 4 + 1 + 3 + 4 with a cache must give the hidden states of reading them at once."""
    ids = torch.tensor([[3, 7, 7, 1, 12, 3, 7, 19, 0, 2, 3, 7], [5, 6, 5, 6, 5, 6, 5, 6, 5, 6, 6, 5]])
    model = filled(GPT(CONFIG))
    cache = KVCache(CONFIG, torch.zeros(2, dtype=torch.long))
    parts = [model.hidden(part, cache) for part in ids.split([4, 1, 3, 4], dim=1)]
    with torch.no_grad():
        close(torch.cat(parts, 1), model.hidden(ids), 1e-3)


def check_pads_leave_no_trace(points=2):
    """A row padded on the left must give what it gives alone: masked columns, positions from its own
    start."""
    prompts, more = [[4, 9, 2, 2, 17, 9], [9, 2], [13]], torch.tensor([[5], [2], [8]])
    for config in (CONFIG, GPTConfig(**SIZES, conv_width=0)):
        model = filled(GPT(config))
        hidden, cache = model.prefill(prompts)
        later = model.hidden(more, cache)
        for row, prompt in enumerate(prompts):
            with torch.no_grad():
                alone = model.hidden(torch.tensor([prompt + more[row].tolist()]))[0]
            close(torch.stack([hidden[row, -1], later[row, 0]]), alone[-2:], 1e-3)


def check_room_grows_by_doubling(points=1):
    """Making room for one token at a time copies the cache S times. Twice the room that is needed: log2(S)
    times."""
    cache, rooms = KVCache(CONFIG, torch.tensor([0])), set()
    for _ in range(60):
        cache.advance(1)
        cache.append(1, torch.ones(1, 4, 1, 4), torch.ones(1, 4, 1, 4))
        rooms.add(cache.kv[1].shape[3])
    assert len(rooms) <= 8, f"room was made {len(rooms)} times in 60 tokens, expected at most 8 times"
