"""Tests of model.py: the cache against the plain forward, attention written out, sampling, files."""
import hashlib
import json
import math

import pytest
import torch
import torch.nn.functional as F

import model as model_module
from adapters.gpt2 import GPT2, GPT2Config
from model import GPT, Convolution, GPTConfig, KVCache, sample

LAYOUTS = pytest.mark.parametrize("layout", ["modern", "gpt2"])
PROMPTS = [[1, 2, 3, 4, 5], [7], [8, 9, 1, 2, 3, 4, 5, 6, 7, 3], [6, 6]]
# Convolutions of all widths, without any, and no, some and all heads shared.
VARIANTS = [{"layout": "gpt2"}] + [{"conv_width": width, "shared_heads": shared} for width, shared in [
    (0, 0), (0, 3), (0, 9), (1, 3), (2, 3), (4, 0), (4, 3), (4, 9), (6, 3)]]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # models of this width lose time on a second one


def make(layout="modern", seed=0, std=0.4, **fields):
    """A small model in which every parameter matters: the initial zeros would hide mistakes."""
    fields = {"n_vocab": 37, "block_size": 40, "n_layer": 2, "n_head": 4, "n_embd": 32, **fields}
    torch.manual_seed(seed)
    if layout == "gpt2":
        model = GPT2(GPT2Config(**fields))
    else:
        model = GPT(GPTConfig(**{"shared_heads": 3, **fields}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * std)
    return model


@torch.no_grad()
def plain_logits(model, ids):
    """Logits (V,) of the token after ids, by the forward pass of this one row without cache and padding."""
    return model(torch.tensor([ids]))[0, -1]


def plain_generate(model, prompts, n, stop=(), seed=0, **settings):
    """generate in its simplest form: every step reads every running row anew, alone and unpadded."""
    new, generator = [[] for _ in prompts], torch.Generator().manual_seed(seed)
    for _ in range(n):
        running = [r for r, ids in enumerate(new) if not (ids and ids[-1] in stop)]
        if not running:
            break
        logits = torch.stack([plain_logits(model, prompts[r] + new[r]) for r in running])
        for r, token in zip(running, sample(logits, generator=generator, **settings).tolist()):
            new[r].append(token)
    return new


# ------------------------------------------------------------------------------------------------------------
# The cache

@LAYOUTS
@pytest.mark.parametrize("settings", [{}, {"top_p": 0.8}, {"top_k": 5, "temperature": 1.5}])
def test_cached_generation_equals_uncached(layout, settings):
    """Rows leave the batch at different steps; the rest must go on as if nothing had happened."""
    model, stop, left_early = make(layout, std=0.15), set(range(0, 37, 5)), 0
    for seed in range(4):
        expected = plain_generate(model, PROMPTS, 12, stop=stop, seed=seed, **settings)
        assert model.generate(PROMPTS, 12, stop=stop, seed=seed, **settings) == expected
        assert all(not stop & set(row[:-1]) for row in expected)
        left_early += len({len(row) for row in expected}) >= 3
    assert left_early >= 2  # batches with at least three different lengths
    greedy = plain_generate(model, PROMPTS, 12, temperature=0)
    assert [model.generate(PROMPTS, 12, temperature=t) for t in (0, 1e-320, 1e-30)] == [greedy] * 3


@pytest.mark.parametrize("fields", VARIANTS)
def test_padded_rows_with_a_cache_equal_each_row_alone(fields):
    """Each prompt with two continuations, read in pieces shorter and longer than the convolution."""
    model, T = make(**fields), max(map(len, PROMPTS))
    hidden, cache = model.prefill(PROMPTS)
    assert hidden.shape == (len(PROMPTS), T, 32) and hidden.isfinite().all()
    for row, prompt in enumerate(PROMPTS):
        alone = model.hidden(torch.tensor([prompt]))[0]
        torch.testing.assert_close(hidden[row, T - len(prompt):], alone, rtol=1e-4, atol=1e-5)
    new = torch.randint(0, 37, (2 * len(PROMPTS), 9), generator=torch.Generator().manual_seed(1))
    twice = cache.select(torch.arange(len(PROMPTS)).repeat_interleave(2))
    pieces = torch.cat([model.hidden(piece, twice) for piece in new.split([1, 2, 6], dim=1)], dim=1)
    for row in range(len(new)):
        full = model.hidden(torch.tensor([PROMPTS[row // 2] + new[row].tolist()]))[0, -9:]
        torch.testing.assert_close(pieces[row], full, rtol=1e-4, atol=1e-5)


@LAYOUTS
def test_select_leaves_the_old_cache_alone_and_no_gradient_flows(layout):
    model = make(layout)
    _, cache = model.prefill(PROMPTS)
    model.hidden(torch.tensor([[4, 5], [5, 4]]), cache.select(torch.tensor([2, 0])))
    after = model.hidden(torch.tensor([[9], [8], [7], [6]]), cache)[:, -1]
    assert not after.requires_grad  # the cache is written in place, so a gradient through it would be wrong
    for row, token in enumerate([9, 8, 7, 6]):
        expected = plain_logits(model, PROMPTS[row] + [token])
        torch.testing.assert_close(model.logits(after)[row], expected, rtol=1e-4, atol=1e-4)
    assert cache.select(torch.tensor([True, False, False, True])).pads.tolist() == [5, 8]


@LAYOUTS
def test_cache_under_autocast_and_in_bfloat16(layout):
    """Both run, and stay near float32."""
    model = make(layout, std=0.1)
    expected = model.prefill(PROMPTS)[0][:, -1]
    with torch.autocast("cpu", torch.bfloat16):
        hidden, cache = model.prefill(PROMPTS)
        assert model.logits(model.hidden(torch.tensor([[1]] * 4), cache)).dtype == torch.float32
    assert (hidden[:, -1] - expected).abs().max() < 0.1 * expected.abs().max()
    half = make(layout, std=0.1).to(torch.bfloat16)
    assert (half.prefill(PROMPTS)[0][:, -1] - expected).abs().max() < 0.1 * expected.abs().max()
    assert [len(row) for row in half.generate(PROMPTS, 6, seed=1)] == [6] * 4


def test_cache_grows_without_copying_every_step():
    """Room doubles: 32 new tokens after one move the keys six times, not 32 times."""
    model, rooms = make(n_layer=1), set()
    _, cache = model.prefill([[1]])
    for token in range(32):
        model.hidden(torch.tensor([[token]]), cache)
        rooms.add(cache.kv[0].size(3))
    assert isinstance(cache, KVCache) and cache.length == 33 and len(rooms) <= 6


# ------------------------------------------------------------------------------------------------------------
# The forward pass

@LAYOUTS
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
    conv = Convolution(GPTConfig(5, n_embd=6, n_head=1, conv_width=3))
    with torch.no_grad():
        conv.weight.normal_()
    x, w = torch.randn(2, 7, 6, requires_grad=True), conv.weight[:, 0]  # w: (C, W)
    padded = torch.cat([torch.zeros(2, 2, 6), x], dim=1)
    expected = padded[:, 0:7] * w[:, 0] + padded[:, 1:8] * w[:, 1] + padded[:, 2:9] * w[:, 2]
    torch.testing.assert_close(conv(x), expected)
    g = torch.randn(2, 7, 6)
    for ours, theirs in zip(torch.autograd.grad(conv(x), (x, conv.weight), g),
                            torch.autograd.grad(expected, (x, conv.weight), g)):
        torch.testing.assert_close(ours, theirs)


def test_convolution_starts_with_the_token_itself_or_with_the_sum_of_a_window():
    x = torch.randn(2, 9, 6)
    y = Convolution(GPTConfig(5, n_embd=6, n_head=1, conv_width=4))(x)
    assert torch.equal(y[..., :3], x[..., :3])
    torch.testing.assert_close(y[:, 8, 3:], x[:, 5:9, 3:].sum(1) / 2)


def first_attention(model, x):
    """Output (1, T, C) of the first block's attention for x (1, T, C)."""
    T = x.size(1)
    return model.transformer.h[0].attn(x, model.rotary[:, :T], model.mask[:T, :T])


@pytest.mark.parametrize("shared_heads", [0, 3, 4])
def test_modern_attention_by_complex_numbers(shared_heads):
    """Complex multiplication, a mask that hides the token itself, and a score of 0 for the empty key."""
    model = make(n_layer=1, shared_heads=shared_heads)
    attention, T, C, H, D = model.transformer.h[0].attn, 11, 32, 4, 8
    x, weight = torch.randn(1, T, C, requires_grad=True), attention.c_attn.weight
    keys = torch.cat([weight[:shared_heads * D], weight[2 * C:]])
    q, k, v = ((x[0] @ w.T).view(T, H, D).transpose(0, 1) for w in (weight[:C], keys, weight[C:2 * C]))
    angle = torch.arange(T)[:, None] * 1000.0 ** (-torch.arange(D // 2) * 2 / D)

    def turned(z):
        z = z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return torch.complex(z[..., :D // 2], z[..., D // 2:]) * torch.polar(torch.ones_like(angle), angle)

    scores = (turned(q) @ turned(k).conj().transpose(1, 2)).real * attention.scale / math.sqrt(D)
    scores = scores.masked_fill(torch.ones(T, T).triu(0).bool(), float("-inf"))
    weights = torch.cat([torch.zeros(H, T, 1), scores], -1).softmax(-1)[..., 1:]  # the empty value is 0
    expected = attention.c_proj((weights @ v).transpose(0, 1).reshape(1, T, C))
    ours, g, inputs = first_attention(model, x), torch.randn(1, T, C), (x, weight, attention.scale)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(*(torch.autograd.grad(y, inputs, g) for y in (ours, expected))):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("conv_width", [0, 4])
def test_the_first_token_attends_to_nothing(conv_width):
    """Its attention is exactly zero, alone and behind pads, also in the second block."""
    model, outputs = make(conv_width=conv_width), []
    model.transformer.h[1].attn.register_forward_hook(lambda module, args, y: outputs.append(y))
    model.hidden(torch.tensor([PROMPTS[0]]))
    model.prefill(PROMPTS)
    for y, first in [(outputs[0][0], 0)] + [(outputs[1][row], 10 - len(p)) for row, p in enumerate(PROMPTS)]:
        assert (y[first] == 0).all() and (y[first + 1:] != 0).all()


@LAYOUTS
@pytest.mark.parametrize("constant, value", [("EXPLICIT_ATTENTION_UP_TO", 0), ("QUERIES", 7)])
def test_fused_attention_and_attention_in_parts(layout, constant, value, monkeypatch):
    model = make(layout)
    ids = torch.randint(0, 37, (2, 20))
    explicit, start = model.hidden(ids), model.prefill(PROMPTS)[0][:, -1]
    monkeypatch.setattr(model_module, constant, value)
    other, g = model.hidden(ids), torch.randn(2, 20, 32)
    torch.testing.assert_close(other, explicit, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.prefill(PROMPTS)[0][:, -1], start, rtol=1e-4, atol=1e-4)
    for one, two in zip(*(torch.autograd.grad(y, list(model.parameters()), g) for y in (other, explicit))):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


@LAYOUTS
def test_huge_weights_and_inputs_stay_finite(layout):
    """Embeddings and matrices a thousand times too large: the loss and all gradients are finite."""
    model, ids = make(layout), torch.randint(0, 37, (2, 20))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1000 if p.dim() == 2 else 1)
    loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("n_embd", [64, 128, 512])
def test_the_first_loss_is_near_uniform(n_embd):
    torch.manual_seed(0)
    ids = torch.randint(0, 800, (4, 65))
    logits = GPT(GPTConfig(800, n_embd=n_embd, n_layer=2))(ids[:, :-1])
    assert abs(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item() - math.log(800)) < 0.8


def test_initial_spreads():
    torch.manual_seed(0)
    parameters = dict(GPT(GPTConfig(800)).named_parameters())
    for ending, std in {"wte.weight": 0.05, "attn.c_attn.weight": 128 ** -0.5, "attn.c_proj.weight": 0,
                        "mlp.c_fc.weight": 128 ** -0.5, "mlp.c_proj.weight": 0}.items():
        matching = [p for name, p in parameters.items() if name.endswith(ending)]
        assert matching and all(abs(p.std().item() - std) <= 0.03 * std for p in matching), ending


@pytest.mark.parametrize("fields", [{"shared_heads": 0}, {"shared_heads": 3}, {"conv_width": 0}])
def test_every_parameter_gets_a_gradient_after_one_step(fields):
    """Zero-initialised outputs hide what lies before them for one step, and for one step only."""
    torch.manual_seed(0)
    model, ids = GPT(GPTConfig(37, 40, 2, 4, 32, **fields)), torch.randint(0, 37, (2, 20))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(ids).flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
        optimizer.step()
    for name, p in model.named_parameters():
        rows = p.grad if p.dim() < 2 else p.grad.abs().sum(1)  # queries, values and keys of every head
        assert name == "transformer.wte.weight" or rows.abs().min() > 0


# ------------------------------------------------------------------------------------------------------------
# Drawing tokens

KNOWN = torch.tensor([0.05, 0.40, 0.10, 0.25, 0.20])  # in order: 1, 3, 4, 2, 0


@pytest.mark.parametrize("settings, expected", [
    ({"top_p": 0.01}, {1}), ({"top_p": 0.39}, {1}), ({"top_p": 0.41}, {1, 3}), ({"top_p": 0.64}, {1, 3}),
    ({"top_p": 0.66}, {1, 3, 4}), ({"top_p": 0.96}, {0, 1, 2, 3, 4}), ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
    ({"top_k": 1}, {1}), ({"top_k": 3}, {1, 3, 4}), ({"top_k": 9}, {0, 1, 2, 3, 4}),
    ({"top_k": 3, "top_p": 0.7}, {1, 3}), ({"top_p": 0.7}, {1, 3, 4})])
def test_top_p_and_top_k_of_a_known_distribution(settings, expected):
    """The smallest set whose mass reaches p: the token that crosses p is in it. top_k comes before top_p."""
    drawn = sample(KNOWN.log().expand(2000, 5), generator=torch.Generator().manual_seed(0), **settings)
    assert set(drawn.tolist()) == expected


@pytest.mark.parametrize("settings, expected", [
    ({}, KNOWN), ({"temperature": 0.5}, KNOWN ** 2 / (KNOWN ** 2).sum()),
    ({"top_k": 2}, torch.tensor([0, 0.40, 0, 0.25, 0]) / 0.65)])
def test_frequencies_of_samples(settings, expected):
    """40,000 draws: a standard error is below .0025."""
    drawn = sample(KNOWN.log().expand(40_000, 5), generator=torch.Generator().manual_seed(0), **settings)
    assert (torch.bincount(drawn, minlength=5) / 40_000 - expected).abs().max() < 0.01


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
    given = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert model.generate(given, 5, seed=1) == model.generate(given.tolist(), 5, seed=1)


# ------------------------------------------------------------------------------------------------------------
# Files and bad input

@LAYOUTS
def test_save_and_load(layout, tmp_path):
    model, ids = make(layout), torch.randint(0, 37, (2, 20))
    extra, folder = {"tokens_seen": 7, "steps": [1, 2], "name": "Zoë"}, tmp_path / "a" / "b"
    model.save(folder, extra=extra)
    loaded = GPT.load(folder)
    assert type(loaded) is type(model) and loaded.config == model.config and loaded.extra == extra
    assert torch.equal(loaded(ids), model(ids))
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.pt"}
    model.save(folder)
    assert GPT.load(folder).extra == {}


def edit(path, sign=True, **changes):
    """Changes fields of the configuration, as if they had been saved so, or in the file alone."""
    card = json.loads(path.read_text("utf-8"))
    old = card.pop("sha256")
    card["model"].update(changes)
    new = hashlib.sha256(path.with_name("model.pt").read_bytes() + json.dumps(card).encode()).hexdigest()
    path.write_text(json.dumps(card | {"sha256": new if sign else old}), "utf-8")


@pytest.mark.parametrize("spoil, words", [
    (lambda f: (f / "config.json").unlink(), "config.json"),
    (lambda f: (f / "model.pt").unlink(), "model.pt"),
    (lambda f: (f / "config.json").write_text("{", "utf-8"), "no model that GPT.save wrote"),
    *((lambda f, text=text: (f / "config.json").write_text(text, "utf-8"), "no model that GPT.save wrote")
      for text in ("[1]", "3", "[" * 100_000)),
    *((lambda f, name=name, value=value: edit(f / "config.json", **{name: value}), f"{name} is .*, expected")
      for name, value in (("block_size", True), ("block_size", 10**9), ("rope_base", 1e300), ("n_layer", 0))),
    (lambda f: edit(f / "config.json", n_layer=10**6), "n_layer=1000000, .*but model.pt has"),
    (lambda f: edit(f / "config.json", conv_width=10**6), "alloc"),
    (lambda f: edit(f / "config.json", sign=False, rope_base=1001.0), "not as they were written together"),
    (lambda f: edit(f / "config.json", n_experts=8), "n_experts"),
    (lambda f: edit(f / "config.json", n_head="4"), "n_head is '4'"),
    (lambda f: edit(f / "config.json", n_embd=64), "size mismatch"),
    (lambda f: (f / "model.pt").write_bytes((f / "model.pt").read_bytes()[:500]), "not as they were written"),
    (lambda f: make(seed=9).save(f / "x") or (f / "x" / "model.pt").replace(f / "model.pt"), "not as they were")])
def test_bad_folders_are_refused_in_one_line(spoil, words, tmp_path):
    make().save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=words) as e:
        GPT.load(tmp_path)
    assert "\n" not in str(e.value) and str(e.value).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize("fields, words", [
    ({"n_head": 5}, "n_embd is 32, expected a multiple of 2 n_head = 10"), ({"n_head": 32}, "multiple of 2"),
    ({"n_layer": 0}, "n_layer is 0"), ({"n_vocab": 2.0}, "n_vocab is 2.0"), ({"conv_width": -1}, "is -1"),
    ({"rope_base": 0}, "rope_base"), ({"qk_scale": math.nan}, "qk_scale"), ({"shared_heads": 0.5}, "is 0.5")])
def test_bad_configs(fields, words):
    with pytest.raises(ValueError, match=words):
        make(**fields)


@pytest.mark.parametrize("call, words", [
    (lambda m: m(torch.zeros(1, 41, dtype=torch.long)), "41 tokens, but block_size is 40"),
    (lambda m: m.hidden(torch.zeros(1, 31).long(), m.prefill([[1] * 10])[1]), "a row of 41 tokens"),
    (lambda m: m.prefill([[1], []]), "prompt 1 has 0 tokens; expected 1 to 40"),
    (lambda m: m.prefill([[1] * 41]), "prompt 0 has 41 tokens; expected 1 to 40"),
    (lambda m: m.prefill([[1], [36, 37]]), "prompt 1 .* ids below 37"),
    (lambda m: m.prefill([[-1]]), "prompt 0 has 1 token"),
    (lambda m: m.generate([[1], [1] * 30], 11), "prompt 1 has 30 tokens; expected 1 to 29"),
    *[(lambda m, given=given: m.generate(given, 5), "prompt 0 has no list of tokens; expected 1 to 35")
      for given in ([5, 6, 7], torch.tensor([5, 6]), ["Once"], "Once", torch.ones(1, 1, 2).long())],
    *[(lambda m, name=name, value=value: m.generate([[1]], 5, **{name: value}), f"{name}={value}")
      for name, value in [("temperature", -1), ("temperature", math.nan), ("top_k", 0), ("top_p", 0)]]])
def test_bad_calls_are_refused_in_one_line(call, words):
    with pytest.raises(ValueError, match=words) as e:
        call(make())
    assert "\n" not in str(e.value)
