"""Tests of model.py: the cache against the plain forward, GPT-2 written out literally, sampling, files."""
import json
import math
import os
import shutil
import zipfile

import pytest
import torch
import torch.nn.functional as F

import model as model_module
from data.files import sealed
from model import GPT, Cache, GPTConfig, draw, most_probable, sample

LAYOUTS = ["modern", "gpt2"]
PROMPTS = [[1, 2, 3, 4, 5], [7], [8, 9, 1, 2, 3, 4, 5, 6, 7, 3], [6, 6]]  # of different lengths, one token among them
# Convolutions of all widths (without any, nothing but the cache itself clears the pads), no, some and all heads shared.
VARIANTS = [{"layout": "gpt2"}] + [{"conv_width": width, "shared_heads": shared} for width, shared in [
    (0, 0), (0, 3), (0, 9), (1, 3), (2, 3), (4, 0), (4, 3), (4, 9), (6, 3)]]


def make(layout="modern", seed=0, std=0.4, **fields):
    """A small model in which every parameter matters: the initial zeros would hide mistakes."""
    config = GPTConfig(**{"n_vocab": 37, "block_size": 40, "n_layer": 2, "n_head": 4, "n_embd": 32,
                          "shared_heads": 3, "layout": layout, **fields})
    torch.manual_seed(seed)
    model = GPT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * std)
    return model


@torch.no_grad()
def plain_logits(model, ids):
    """Logits (V,) of the token after ids, by the forward pass of this one row without cache and padding."""
    return model.logits(model.hidden(torch.tensor([ids])))[0, -1]


@torch.no_grad()
def plain_generate(model, prompts, n, stop=(), seed=None, **settings):
    """generate in its simplest form: every step reads every running row anew, alone and unpadded."""
    new = [[] for _ in prompts]
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for _ in range(n):
        running = [r for r, ids in enumerate(new) if not (ids and ids[-1] in stop)]
        if not running:
            break
        logits = torch.stack([plain_logits(model, prompts[r] + new[r]) for r in running])
        for r, token in zip(running, sample(logits, generator=generator, **settings).tolist()):
            new[r].append(token)
    return new


# ---------------------------------------------------------------------------------------------------------------------
# The cache


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cached_greedy_equals_uncached(layout):
    model = make(layout)
    expected = plain_generate(model, PROMPTS, 25, temperature=0)
    assert len({tuple(row) for row in expected}) == len(PROMPTS)  # rows that differ, so a mix-up would show
    assert model.generate(PROMPTS, 25, temperature=0) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("settings", [{}, {"top_p": 0.8}, {"top_k": 5, "temperature": 1.5}])
def test_cached_sampling_with_stop_tokens_equals_uncached(layout, settings):
    """Rows leave the batch at different steps; the rest must go on as if nothing had happened."""
    model, stop, left_early = make(layout, std=0.15), set(range(0, 37, 5)), 0
    for seed in range(4):
        expected = plain_generate(model, PROMPTS, 12, stop=stop, seed=seed, **settings)
        assert model.generate(PROMPTS, 12, stop=stop, seed=seed, **settings) == expected
        assert all(not stop & set(row[:-1]) for row in expected)
        left_early += len({len(row) for row in expected}) >= 3
    assert left_early >= 2  # at least three different lengths in a batch of four


@pytest.mark.parametrize("fields", VARIANTS)
def test_start_gives_the_hidden_states_of_each_row(fields):
    model = make(**fields)
    hidden, _ = model.start(PROMPTS)
    T = max(len(p) for p in PROMPTS)
    assert hidden.shape == (len(PROMPTS), T, 32) and hidden.isfinite().all()
    for row, prompt in enumerate(PROMPTS):
        alone = model.hidden(torch.tensor([prompt]))[0]
        torch.testing.assert_close(hidden[row, T - len(prompt):], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", VARIANTS)
def test_repeated_rows_go_on_like_the_full_forward(fields):
    """Each prompt with two continuations, read in pieces shorter and longer than the convolution."""
    model = make(**fields)
    _, cache = model.start(PROMPTS)
    new = torch.randint(0, 37, (2 * len(PROMPTS), 9), generator=torch.Generator().manual_seed(1))
    twice = cache.repeat(2)
    pieces = [model.hidden(piece, twice) for piece in new.split([1, 2, 6], dim=1)]
    hidden = torch.cat(pieces, dim=1)
    for row in range(len(new)):
        full = model.hidden(torch.tensor([PROMPTS[row // 2] + new[row].tolist()]))[0, -9:]
        torch.testing.assert_close(hidden[row], full, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_select_and_repeat_leave_the_old_cache_alone(layout):
    model = make(layout)
    _, cache = model.start(PROMPTS)
    some = cache.select([2, 0])
    model.hidden(torch.tensor([[4, 5], [5, 4]]), some)
    after = model.hidden(torch.tensor([[9], [8], [7], [6]]), cache)[:, -1]
    for row, token in enumerate([9, 8, 7, 6]):
        expected = plain_logits(model, PROMPTS[row] + [token])
        torch.testing.assert_close(model.logits(after)[row], expected, rtol=1e-4, atol=1e-4)
    mask = torch.tensor([True, False, False, True])
    assert cache.select(mask).pads.tolist() == cache.select([0, 3]).pads.tolist() == [5, 8]


def test_cached_states_carry_no_gradient():
    """The cache is written in place, so a gradient through it would be wrong; there is none."""
    model = make()
    _, cache = model.start(PROMPTS)
    assert not model.hidden(torch.tensor([[1]] * 4), cache).requires_grad


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cache_under_autocast_and_in_bfloat16(layout):
    """Both run, and stay near float32."""
    model = make(layout, std=0.1)
    expected = model.start(PROMPTS)[0][:, -1]
    with torch.autocast("cpu", torch.bfloat16):
        hidden, cache = model.start(PROMPTS)
        assert model.logits(model.hidden(torch.tensor([[1]] * 4), cache)).dtype == torch.float32
    assert (hidden[:, -1] - expected).abs().max() < 0.1 * expected.abs().max()
    half = make(layout, std=0.1).to(torch.bfloat16)
    assert (half.start(PROMPTS)[0][:, -1] - expected).abs().max() < 0.1 * expected.abs().max()
    assert [len(row) for row in half.generate(PROMPTS, 6, seed=1)] == [6] * 4


# ---------------------------------------------------------------------------------------------------------------------
# The forward pass


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_future_does_not_reach_the_past(layout):
    model = make(layout)
    ids = torch.randint(0, 37, (1, 20), generator=torch.Generator().manual_seed(2))
    before = model.hidden(ids)
    for t in (1, 7, 19):
        changed = ids.clone()
        changed[0, t:] = (changed[0, t:] + 5) % 37
        difference = (model.hidden(changed) - before).abs().amax(-1)[0]  # (T,)
        assert difference[:t].max() == 0 and (difference[t:] > 1e-3).all()


def test_convolution_sees_exactly_its_width():
    """y[t] = sum_i w[i] x[t - W + 1 + i], written out; the gradient agrees too."""
    conv = model_module.Convolution(GPTConfig(5, n_embd=6, n_head=1, conv_width=3))
    with torch.no_grad():
        conv.weight.normal_()
    x = torch.randn(2, 7, 6, requires_grad=True)
    w = conv.weight[:, 0]  # (C, W)
    padded = torch.cat([torch.zeros(2, 2, 6), x], dim=1)
    expected = padded[:, 0:7] * w[:, 0] + padded[:, 1:8] * w[:, 1] + padded[:, 2:9] * w[:, 2]
    torch.testing.assert_close(conv(x), expected)
    g = torch.randn(2, 7, 6)
    for ours, theirs in zip(torch.autograd.grad(conv(x), (x, conv.weight), g),
                            torch.autograd.grad(expected, (x, conv.weight), g)):
        torch.testing.assert_close(ours, theirs)


def test_convolution_starts_with_the_token_itself_or_with_the_sum_of_a_window():
    """Half of the channels each; both kinds leave the spread of independent inputs as it is."""
    x = torch.randn(2, 9, 6)
    y = model_module.Convolution(GPTConfig(5, n_embd=6, n_head=1, conv_width=4))(x)
    assert torch.equal(y[..., :3], x[..., :3])
    torch.testing.assert_close(y[:, 8, 3:], x[:, 5:9, 3:].sum(1) / 2)
    torch.testing.assert_close(y[:, 1, 3:], x[:, :2, 3:].sum(1) / 2)


def gpt2_reference(state, ids, n_layer, n_head):
    """GPT-2 (Radford et al. 2019) by hand, one row at a time, from nothing but the named weights. Logits (T, V)."""
    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * state[name + ".weight"] + state[name + ".bias"]

    def linear(x, name):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    T = len(ids)
    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][:T]
    for i in range(n_layer):
        h = f"transformer.h.{i}."
        q, k, v = linear(norm(x, h + "ln_1"), h + "attn.c_attn").chunk(3, dim=-1)
        D, heads = q.size(-1) // n_head, []
        for s in range(0, q.size(-1), D):
            scores = q[:, s:s + D] @ k[:, s:s + D].T / math.sqrt(D)
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
            heads.append(F.softmax(scores, dim=-1) @ v[:, s:s + D])
        x = x + linear(torch.cat(heads, dim=-1), h + "attn.c_proj")
        y = linear(norm(x, h + "ln_2"), h + "mlp.c_fc")
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y ** 3)))
        x = x + linear(y, h + "mlp.c_proj")
    return norm(x, "transformer.ln_f") @ state["transformer.wte.weight"].T


def test_gpt2_layout_equals_a_literal_gpt2():
    model = make("gpt2", n_layer=3)
    ids = torch.randint(0, 37, (2, 23), generator=torch.Generator().manual_seed(3))
    logits = model.logits(model.hidden(ids))
    for row in range(2):
        expected = gpt2_reference(model.state_dict(), ids[row], 3, 4)
        torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-4)


def test_gpt2_parameter_names_are_the_published_ones():
    names = set(make("gpt2", n_layer=1).state_dict())
    h = "transformer.h.0."
    parts = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    assert names == ({"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight",
                      "transformer.ln_f.bias"} | {h + p + end for p in parts for end in (".weight", ".bias")})


def test_gpt2_small_has_its_published_size():
    with torch.device("meta"):
        assert GPT(GPTConfig(50257, 1024, 12, 12, 768, layout="gpt2")).num_params() == 124_439_808


def first_attention(model, x, turn=True):
    """Output (1, T, C) of the first block's attention for x (1, T, C); turn=False leaves the positions out."""
    T, cos, sin = x.size(1), model.cos[:x.size(1)], model.sin[:x.size(1)]
    rotary = (cos, sin) if turn else (torch.ones_like(cos), torch.zeros_like(sin))
    return model.transformer.h[0].attn(x, rotary, model.mask[:T, :T])


@pytest.mark.parametrize("shared_heads", [0, 3, 4])
def test_modern_attention_by_complex_numbers(shared_heads):
    """Written with complex multiplication, a mask that hides the token itself, and a score of 0 for the empty key."""
    model = make(n_layer=1, shared_heads=shared_heads)
    attention, T, C, H, D = model.transformer.h[0].attn, 11, 32, 4, 8
    x, weight = torch.randn(1, T, C, requires_grad=True), attention.c_attn.weight
    keys = torch.cat([weight[:shared_heads * D], weight[2 * C:]])
    q, k, v = ((x[0] @ w.T).view(T, H, D).transpose(0, 1) for w in (weight[:C], keys, weight[C:2 * C]))  # (H, T, D)
    turn = torch.polar(torch.ones(T, D // 2), torch.arange(T)[:, None] * 1000.0 ** (-torch.arange(D // 2) * 2 / D))

    def turned(z):
        z = z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return torch.complex(z[..., :D // 2], z[..., D // 2:]) * turn  # (H, T, D/2)

    scores = (turned(q) @ turned(k).conj().transpose(1, 2)).real * attention.scale / math.sqrt(D)
    scores = scores.masked_fill(torch.ones(T, T).triu(0).bool(), float("-inf"))
    weights = torch.cat([torch.zeros(H, T, 1), scores], -1).softmax(-1)[..., 1:]  # the empty value is 0, so drop it
    expected = attention.c_proj((weights @ v).transpose(0, 1).reshape(1, T, C))
    ours, g = first_attention(model, x), torch.randn(1, T, C)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(*(torch.autograd.grad(y, (x, weight, attention.scale), g) for y in (ours, expected))):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shared_heads", [0, 3, 4])
@pytest.mark.parametrize("t", [0, 1, 6, 8])
def test_a_token_takes_its_query_from_itself_and_keys_and_values_from_the_past(shared_heads, t):
    """Which of all heads' queries, values and keys the output of token t depends on: exactly these, by gradients."""
    model, seen, H = make(n_layer=1, shared_heads=shared_heads), [], 4
    model.transformer.h[0].attn.c_attn.register_forward_hook(lambda module, args, y: seen.append(y))
    y = first_attention(model, torch.randn(1, 9, 32))[0, t].sum()
    depends = torch.autograd.grad(y, seen[0])[0].view(9, -1, 8).abs().amax(-1) > 0  # (T, H queries, H values, own keys)
    expected = torch.zeros(9, 3 * H - shared_heads, dtype=torch.bool)
    if t > 0:  # the first token has nothing but the empty key, so that not even its query matters
        expected[t, :H] = True
        expected[:t, :shared_heads] = True  # queries of the past, in their second office as keys
        expected[:t, H:] = True
    assert torch.equal(depends, expected)


def test_shared_heads_find_the_same_word_before_and_not_themselves():
    """Tokens of a word and a mark. Queries see the word, values the mark: token 3 must read the mark of token 0."""
    model = make(n_layer=1, shared_heads=4)
    attention, generator = model.transformer.h[0].attn, torch.Generator().manual_seed(0)
    words = torch.randn(4, 16, generator=generator)[[0, 1, 2, 0, 3]]
    x = torch.cat([words, torch.randn(5, 16, generator=generator)], dim=1)[None]  # (1, 5, C)
    with torch.no_grad():
        attention.c_attn.weight[:32, 16:] = 0
        attention.c_attn.weight[32:, :16] = 0
        attention.scale.fill_(200)
        marks = attention.c_proj(attention.c_attn(x)[..., 32:])[0]
        found = first_attention(model, x, turn=False)[0]
    torch.testing.assert_close(found[3], marks[0], rtol=1e-4, atol=1e-4)
    assert (marks[3] - marks[0]).abs().max() > 1  # had it found itself, too, the two would mix


@pytest.mark.parametrize("conv_width", [0, 4])
def test_the_first_token_attends_to_nothing(conv_width):
    """Its attention is exactly zero, alone and behind pads, also in the second block, where pads carry something."""
    model, outputs = make(conv_width=conv_width), []
    model.transformer.h[1].attn.register_forward_hook(lambda module, args, y: outputs.append(y))
    model.hidden(torch.tensor([PROMPTS[0]]))
    model.start(PROMPTS)
    firsts = [(outputs[0][0], 0)] + [(outputs[1][row], 10 - len(p)) for row, p in enumerate(PROMPTS)]
    for y, first in firsts:
        assert (y[first] == 0).all() and (y[first + 1:] != 0).all()


def test_shared_heads_equal_keys_with_the_weights_of_the_queries():
    shared, own, ids = make(shared_heads=3), make(shared_heads=0), torch.randint(0, 37, (2, 20))
    state = shared.state_dict()
    for name, w in state.items():
        if name.endswith("c_attn.weight"):
            assert w.shape == (2 * 32 + 8, 32)
            state[name] = torch.cat([w[:64], w[:24], w[64:]])
    own.load_state_dict(state)
    torch.testing.assert_close(shared.hidden(ids), own.hidden(ids), rtol=1e-4, atol=1e-4)


def test_more_shared_heads_than_heads_are_all_heads():
    nine, four, ids = make(shared_heads=9), make(shared_heads=4), torch.randint(0, 37, (2, 20))
    assert nine.transformer.h[0].attn.c_attn.weight.shape == (64, 32)
    assert torch.equal(nine.hidden(ids), four.hidden(ids))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_attention_equals_explicit_attention(layout, monkeypatch):
    model = make(layout)
    ids = torch.randint(0, 37, (2, 20))
    explicit, start = model.hidden(ids), model.start(PROMPTS)[0][:, -1]
    monkeypatch.setattr(model_module, "EXPLICIT_ATTENTION_UP_TO", 0)
    fused, g = model.hidden(ids), torch.randn(2, 20, 32)
    torch.testing.assert_close(fused, explicit, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.start(PROMPTS)[0][:, -1], start, rtol=1e-4, atol=1e-4)
    for one, other in zip(*(torch.autograd.grad(y, list(model.parameters()), g) for y in (fused, explicit))):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_embd", [64, 128, 512])
def test_the_first_loss_is_near_uniform(layout, n_embd):
    """The tied head must not begin by insisting on the token it has just read."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(800, n_embd=n_embd, layout=layout, n_layer=2))
    ids = torch.randint(0, 800, (4, 65))
    logits = model.logits(model.hidden(ids[:, :-1]))
    assert abs(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item() - math.log(800)) < 0.8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_huge_weights_and_inputs_stay_finite(layout):
    """Embeddings and matrices a thousand times too large: values and gradients are finite, and there are some."""
    model = make(layout)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1000 if p.dim() == 2 else 1)
    ids = torch.randint(0, 37, (2, 20))
    loss = F.cross_entropy(model.logits(model.hidden(ids)).flatten(0, 1), ids.flatten())
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
    assert model.transformer.wte.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("layout, expected", [
    ("modern", {"wte.weight": 0.05, "attn.c_attn.weight": 128 ** -0.5, "attn.c_proj.weight": 0,
                "mlp.c_fc.weight": 128 ** -0.5, "mlp.c_proj.weight": 0}),
    ("gpt2", {"wte.weight": 0.02, "wpe.weight": 0.02, "attn.c_attn.weight": 0.02, "attn.c_attn.bias": 0,
              "attn.c_proj.weight": 0.02 / math.sqrt(6), "mlp.c_fc.weight": 0.02,
              "mlp.c_proj.weight": 0.02 / math.sqrt(6), "mlp.c_proj.bias": 0})])
def test_initial_spreads(layout, expected):
    """Standard deviations at the start, 3 layers of 128 channels; zero means exactly zero."""
    torch.manual_seed(0)
    parameters = dict(GPT(GPTConfig(800, layout=layout)).named_parameters())
    for ending, std in expected.items():
        matching = [p for name, p in parameters.items() if name.endswith(ending)]
        assert matching and all(abs(p.std().item() - std) <= 0.03 * std for p in matching), ending


@pytest.mark.parametrize("fields", [{"shared_heads": 0}, {"shared_heads": 3}, {"shared_heads": 9}, {"conv_width": 0}])
def test_every_parameter_gets_a_gradient_after_one_step(fields):
    """Zero-initialised outputs hide what lies before them for one step, and for one step only."""
    torch.manual_seed(0)
    model, ids = GPT(GPTConfig(37, 40, 2, 4, 32, **fields)), torch.randint(0, 37, (2, 20))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model.logits(model.hidden(ids)).flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
        optimizer.step()
    assert all((p.grad if p.dim() < 2 else p.grad.abs().sum(1)).abs().min() > 0 for name, p in model.named_parameters()
               if name != "transformer.wte.weight")  # every row of every matrix: queries, values and keys of each head


def test_parameter_groups():
    model = make(n_layer=2)
    matrices, others = model.parameter_groups()
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split(".", 3)[3] for p in matrices} == {
        "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    assert len(matrices) == 8 and len(matrices) + len(others) == len(names)
    assert sum(p.numel() for p in matrices + others) == model.num_params()
    assert len(make("gpt2", n_layer=2).parameter_groups()[0]) == 8  # the position embedding is not among them


# ---------------------------------------------------------------------------------------------------------------------
# Drawing tokens

KNOWN = torch.tensor([0.05, 0.40, 0.10, 0.25, 0.20])  # in order: 1, 3, 4, 2, 0


def support(draws=2000, **settings):
    logits = KNOWN.log().expand(draws, 5)
    return set(sample(logits, generator=torch.Generator().manual_seed(0), **settings).tolist())


@pytest.mark.parametrize("top_p, expected", [
    (0.01, {1}), (0.39, {1}), (0.41, {1, 3}), (0.64, {1, 3}), (0.66, {1, 3, 4}), (0.86, {1, 3, 4, 2}),
    (0.94, {1, 3, 4, 2}), (0.96, {0, 1, 2, 3, 4}), (1.0, {0, 1, 2, 3, 4})])
def test_top_p_of_a_known_distribution(top_p, expected):
    """The smallest set whose mass reaches p: the token that crosses p is in it."""
    assert support(top_p=top_p) == expected


@pytest.mark.parametrize("top_k, expected", [(1, {1}), (2, {1, 3}), (3, {1, 3, 4}), (9, {0, 1, 2, 3, 4})])
def test_top_k_of_a_known_distribution(top_k, expected):
    assert support(top_k=top_k) == expected


def test_top_k_comes_before_top_p():
    """Of the three most probable (.47 .29 .24 after renormalising) p = .7 keeps two; without top_k, three."""
    assert support(top_k=3, top_p=0.7) == {1, 3} and support(top_p=0.7) == {1, 3, 4}


def test_top_k_of_equal_logits_keeps_k():
    drawn = sample(torch.zeros(500, 6), top_k=2, generator=torch.Generator().manual_seed(0))
    assert len(set(drawn.tolist())) == 2


def test_draws_have_their_frequencies_and_never_probability_zero():
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]).repeat(20_000, 1)
    drawn = draw(probs, torch.Generator().manual_seed(0)).view(-1, 2)
    shares = drawn[:, 0].bincount(minlength=6) / len(drawn)
    assert (drawn[:, 1] == 0).all() and (shares[[0, 2, 5]] == 0).all()
    torch.testing.assert_close(shares[[1, 3, 4]], torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=4 * (0.25 / 20_000) ** 0.5)


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"top_k": 64, "top_p": 0.8}, {"top_p": 0.9}, {"top_k": 999}], ids=str)
@pytest.mark.parametrize("V", [5, 300])
def test_draws_are_those_of_a_full_stable_sort(V, settings):
    """Also where equals stand on both sides of the cut, and in the order in which a seed's random numbers are used up."""
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        logits = torch.randn(40, V, generator=g).mul(3 - seed % 2).round(decimals=seed % 3)
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        k = min(settings.get("top_k", V), V)
        for found, wanted in zip(most_probable(logits, k), (values[:, :k], ids[:, :k])):
            assert torch.equal(found, wanted)
        probs = (values - values[:, :1]).masked_fill(torch.arange(V) >= k, -math.inf).softmax(-1)
        before = F.pad(probs.cumsum(-1)[:, :-1], (1, 0))
        probs = probs * (before < settings.get("top_p", 2))
        points = torch.rand(40, 1, generator=torch.Generator().manual_seed(seed)).double() * probs.double().sum(-1, keepdim=True)
        wanted = ids.gather(1, (probs.double().cumsum(-1) <= points).sum(-1, keepdim=True))[:, 0]
        assert torch.equal(sample(logits, generator=torch.Generator().manual_seed(seed), **settings), wanted)


@pytest.mark.parametrize("settings, expected", [
    ({}, KNOWN), ({"temperature": 0.5}, KNOWN ** 2 / (KNOWN ** 2).sum()),
    ({"top_k": 2}, torch.tensor([0, 0.40, 0, 0.25, 0]) / 0.65)])
def test_frequencies_of_draws(settings, expected):
    """40,000 draws: a standard error is below .0025."""
    drawn = sample(KNOWN.log().expand(40_000, 5), generator=torch.Generator().manual_seed(0), **settings)
    frequency = torch.bincount(drawn, minlength=5) / 40_000
    assert (frequency - expected).abs().max() < 0.01


@pytest.mark.parametrize("temperature", [0, 1e-30, 1e-3])
def test_small_temperatures_are_greedy(temperature):
    logits = 100 * torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    assert sample(logits, temperature=temperature).tolist() == logits.argmax(-1).tolist()


def test_a_seed_repeats_and_another_does_not():
    model = make(std=0.1)
    first = model.generate(PROMPTS, 20, seed=1)
    torch.randn(7)  # the seed does not depend on the global generator
    assert model.generate(PROMPTS, 20, seed=1) == first != model.generate(PROMPTS, 20, seed=2)


def test_ids_outside_the_vocabulary_are_never_drawn():
    """There are no padded ids: logits are exactly n_vocab wide, also where n_vocab is no round number."""
    model = make(n_vocab=3, std=0)
    assert model.logits(model.start([[0]])[0]).shape[-1] == 3
    rows = model.generate([[0]] * 50, 30, temperature=3.0, seed=0)
    assert {token for row in rows for token in row} == {0, 1, 2}


def test_watch_sees_raw_logits_of_the_running_rows():
    model, stop, seen = make(std=0.15), {3, 11, 20, 30}, []
    new = model.generate(PROMPTS, 12, temperature=2.0, top_k=30, stop=stop, seed=5,
                         watch=lambda rows, logits, drawn: seen.append((rows, logits, drawn)))
    again = [[] for _ in PROMPTS]
    for rows, logits, drawn in seen:
        assert logits.dtype == torch.float32 and logits.shape == (len(rows), 37)
        for i, row in enumerate(rows.tolist()):
            expected = plain_logits(model, PROMPTS[row] + again[row])
            torch.testing.assert_close(logits[i], expected, rtol=1e-4, atol=1e-4)
            again[row].append(drawn[i].item())
    assert again == new and len({len(row) for row in new}) > 1


@pytest.mark.parametrize("stop", [3, {3}, [3]])
def test_stop_tokens_end_a_row_and_are_returned(stop):
    rows = make(n_vocab=4, std=0).generate([[0]] * 20, 30, stop=stop, seed=0)
    assert all(3 not in row[:-1] for row in rows) and sum(row[-1] == 3 for row in rows) > 15


def test_nothing_to_generate():
    model = make()
    assert model.generate([], 5) == [] and model.generate([[1], [2, 3]], 0) == [[], []]
    assert [len(row) for row in model.generate([[1] * 39], 1)] == [1]  # block_size is 40: it just fits


# ---------------------------------------------------------------------------------------------------------------------
# Files and bad input


@pytest.mark.parametrize("layout", LAYOUTS)
def test_save_and_load(layout, tmp_path):
    model, ids = make(layout, conv_width=3), torch.randint(0, 37, (2, 20))
    folder = tmp_path / "a" / "b"
    model.save(folder, extra={"tokenizer": "0123abcd", "steps": [1, 2], "name": "Zoë"})
    loaded = GPT.load(folder)
    assert loaded.config == model.config and loaded.extra == {"tokenizer": "0123abcd", "steps": [1, 2], "name": "Zoë"}
    assert torch.equal(loaded.logits(loaded.hidden(ids)), model.logits(model.hidden(ids)))
    assert sorted(os.listdir(folder)) == ["config.json", "model.pt"]
    assert set(json.loads((folder / "config.json").read_text("utf-8"))) == set(vars(model.config)) | {"extra", "files", "sha256"}
    model.save(folder)
    assert GPT.load(folder).extra == {}


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(sealed({k: v for k, v in config.items() if v is not None and k != "sha256"})), "utf-8")


def other(folder):
    """The weights of another model of the same shapes."""
    make(seed=9).save(folder / "other")
    shutil.move(folder / "other" / "model.pt", folder / "model.pt")


def not_finite(path):
    state = torch.load(path, weights_only=True)
    state["transformer.ln_f.weight"][3] = math.nan
    torch.save(state, path)


def packed(path):
    """The same weights, but deflated: 20 kB on the disk can be 20 MB in memory."""
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, bytes(len(content)) if "/data/" in name else content)


@pytest.mark.parametrize("spoil, words", [
    (lambda f: os.remove(f / "config.json"), "no config.json"),
    (lambda f: os.remove(f / "model.pt"), "no model.pt"),
    (lambda f: (f / "config.json").write_text("{", "utf-8"), "not JSON"),
    (lambda f: (f / "config.json").write_text("[1]", "utf-8"), "not as it was written"),
    (lambda f: (f / "config.json").write_text((f / "config.json").read_text("utf-8").replace("1000", "1001"), "utf-8"), "not as it was written"),
    (lambda f: edit_config(f, n_experts=8), "unknown field n_experts"),
    (lambda f: edit_config(f, n_head=None), "missing field n_head"),
    (lambda f: edit_config(f, n_head="4"), "n_head is '4'"),
    (lambda f: edit_config(f, n_embd=64), r"c_attn.weight is \(.*, expected \("),
    (lambda f: edit_config(f, layout="gpt2"), "is missing, expected"),
    (lambda f: edit_config(f, n_layer=10**12), "tensors for 1000000000000 layers"),
    (lambda f: edit_config(f, n_vocab=10**12), r"expected \(1000000000000"),
    (lambda f: edit_config(f, conv_width=10**5), "conv_1.weight"),
    (lambda f: edit_config(f, files=3.5), "files is 3.5"),
    (lambda f: edit_config(f, files={}) or torch.save([1], f / "model.pt"), "no tensors for 2 layers"),
    (lambda f: edit_config(f, files={}) or not_finite(f / "model.pt"), "ln_f.weight holds numbers that are not finite"),
    (lambda f: (f / "model.pt").write_bytes((f / "model.pt").read_bytes()[:500]), "model.pt: not the one that config.json was written with"),
    (lambda f: other(f), "model.pt: not the one that config.json was written with"),
    (lambda f: edit_config(f, files={}) or (f / "model.pt").write_bytes(b"PK"), "does not hold weights"),
    (lambda f: edit_config(f, files={}) or packed(f / "model.pt"), "bytes packed into"),
    (lambda f: (f / "model.pt").write_bytes(b""), "not the one that")])
def test_bad_folders_are_refused_in_one_line(spoil, words, tmp_path):
    make().save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=words) as e:
        GPT.load(tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("fields, words", [
    ({"n_head": 5}, "n_embd 32 is not a multiple of n_head 5; try n_embd=35"),
    ({"n_head": 32}, "1 channels"), ({"layout": "llama"}, "'llama'"), ({"n_layer": 0}, "n_layer is 0"),
    ({"n_vocab": 2.0}, "n_vocab is 2.0"), ({"conv_width": -1}, "conv_width is -1"), ({"rope_base": 0}, "rope_base"),
    ({"shared_heads": -1}, "shared_heads is -1"), ({"shared_heads": 0.5}, "shared_heads is 0.5")])
def test_bad_configs(fields, words):
    with pytest.raises(ValueError, match=words):
        make(**fields)


def test_heads_of_odd_width_are_fine_without_rotary_positions():
    assert make("gpt2", n_head=32).generate([[1]], 2, temperature=0)


@pytest.mark.parametrize("call, words", [
    (lambda m: m.hidden(torch.zeros(1, 41, dtype=torch.long)), "41 tokens, but block_size is 40"),
    (lambda m: m.hidden(torch.zeros(1, 31, dtype=torch.long), m.start([[1] * 10])[1]), "41 tokens, but block_size"),
    (lambda m: m.start([]), "no prompts"), (lambda m: m.start([[1], []]), "prompt 1 is empty"),
    (lambda m: m.start([[1] * 41]), "prompt 0 has 41 tokens, but block_size is 40"),
    (lambda m: m.start([[1], [36, 37]]), "prompt 1 holds ids 36 to 37, but n_vocab is 37"),
    (lambda m: m.start([[-1]]), "prompt 0 holds ids -1"),
    (lambda m: m.generate([[1], []], 5), "prompt 1 is empty"),
    (lambda m: m.generate([[1], [1] * 30], 11), "a prompt of 30 tokens and 11 new ones, but block_size is 40"),
    (lambda m: m.generate([[1]], -1), "max_new_tokens is -1"),
    (lambda m: m.generate([[1]], 5, temperature=-1), "temperature is -1"),
    (lambda m: m.generate([[1]], 5, temperature=float("nan")), "temperature is nan"),
    (lambda m: m.generate([[1]], 5, top_k=0), "top_k is 0"),
    (lambda m: m.generate([[1]], 5, top_p=0), "top_p is 0"),
    (lambda m: m.generate([[1]], 5, top_p=1.5), "top_p is 1.5")])
def test_bad_calls_are_refused_in_one_line(call, words):
    with pytest.raises(ValueError, match=words) as e:
        call(make())
    assert "\n" not in str(e.value)


def test_cache_grows_without_copying_every_step():
    """Room doubles: 32 new tokens after one move the keys six times, not 32 times."""
    model = make(n_layer=1)
    _, cache = model.start([[1]])
    buffers = set()
    for token in range(32):
        model.hidden(torch.tensor([[token]]), cache)
        buffers.add(cache.kv[0].size(3))
    assert isinstance(cache, Cache) and cache.length == 33 and len(buffers) <= 6
