"""A small GPT that trains fast on a CPU: configuration, blocks, cached generation, save and load.

A pre-norm transformer as in nanoGPT, with rotary positions (Su et al. 2021), normalised queries and keys (Henry
et al. 2020), no biases, and three changes that let a small model learn to read from far fewer tokens: causal
convolutions before attention and MLP (So et al. 2021) give every token its last few neighbours; attention is to the
past only, never to the token itself; and heads whose keys are their queries (Kitaev et al. 2020) find equal words.

    model = GPT(GPTConfig(n_vocab=800))
    logits = model(ids)                                                        # (B, T) -> (B, T, V)
    new = model.generate([[5, 6, 7], [8]], 20, top_p=0.9, stop=799, seed=1)    # prompts of different lengths
    model.save("out/student"); model = GPT.load("out/student")
    python model.py export out/student out/hf                                  # GPT-2 layout: adapters/gpt2.py

Shapes: B batch, T time (new tokens), S time (cached and new tokens), C channels, H heads, D channels of a head
(C = H * D), V vocabulary, L layers, W width of the convolution, b rows that are still being generated.
"""
import contextlib
import copy
import hashlib
import importlib
import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

# On a CPU, rows up to this long attend by an explicit softmax(q k^T) v, QUERIES rows of scores at a time: the fused
# kernel has a fixed cost that short rows cannot repay (measured in experiments/README.md).
EXPLICIT_ATTENTION_UP_TO, QUERIES = 512, 128


@dataclass
class GPTConfig:
    n_vocab: int             # V, the ids of the tokenizer, special ones included
    block_size: int = 256    # longest row in tokens
    n_layer: int = 3         # L
    n_head: int = 4          # H
    n_embd: int = 128        # C, an even multiple of n_head
    rope_base: float = 1000  # longest wavelength of the rotary positions, in units of 2 pi tokens
    qk_scale: float = 1.2    # start of the learnt factor on the scores of normalised queries and keys
    shared_heads: int = 2    # heads whose keys are their queries, see Attention
    conv_width: int = 8      # W, tokens that a convolution sees (itself and W - 1 before); 0 for none

    def __post_init__(self):
        for name, value in asdict(self).items():
            least = 0 if name in ("shared_heads", "conv_width") else 1
            kind = (int, float) if name in ("rope_base", "qk_scale") else int
            if not isinstance(value, kind) or not (0 < value if kind != int else least <= value):
                raise ValueError(f"{name} is {value!r:.60}, but expected a number of at least {least}")
        C, H = self.n_embd, self.n_head
        if C % H or C // H % 2:
            raise ValueError(f"n_embd {C} is no even multiple of n_head {H}; try n_embd={-(-C // (2 * H)) * 2 * H}")


# ------------------------------------------------------------------------------------------------------------
# Blocks, and the cache of a left-padded batch

class Convolution(nn.Module):
    """Causal depthwise convolution: y[t] = sum_i weight[i] * x[t - W + 1 + i].

    Half of the channels start as the token itself, the other half as the sum of the last W tokens divided by
    sqrt(W): words that stand close together look alike there, which tells attention who did what.
    """

    def __init__(self, config):
        super().__init__()
        C, W = config.n_embd, config.conv_width
        weight = torch.eye(W)[-1].repeat(C, 1, 1)                                      # (C, 1, W)
        weight[C // 2:] = W ** -0.5
        self.weight = nn.Parameter(weight)

    def forward(self, x, cache=None, slot=0):
        """x (B, T, C) -> (B, T, C); with a cache, the tokens before x are in its tail number `slot`."""
        T, W = x.size(1), self.weight.size(2)
        if cache is None:
            x = F.pad(x, (0, 0, W - 1, 0))                                             # (B, W - 1 + T, C)
        else:
            if cache.real is not None:
                x = x * cache.real  # pads must be the zeros that stand before a row without pads
            x = torch.cat([cache.tails[slot].to(x.dtype), x], dim=1)                   # (B, W - 1 + T, C)
            cache.tails[slot] = x[:, T:]                                               # (B, W - 1, C)
            if T == 1:  # one new token: a sum costs less than a convolution
                return (x * self.weight[:, 0].T).sum(1, keepdim=True)                  # (B, 1, C)
        # A picture one pixel high: conv2d knows the memory order (B, T, C), conv1d would copy into (B, C, T).
        picture = x.transpose(1, 2).unsqueeze(2)                                       # (B, C, 1, W - 1 + T)
        kernel = self.weight.unsqueeze(2)                                              # (C, 1, 1, W)
        # In float32 on a CPU: the work is bound by memory, and the bfloat16 kernel is slower.
        cpu = x.device.type == "cpu"
        with torch.autocast(x.device.type, enabled=False) if cpu else contextlib.nullcontext():
            y = F.conv2d(picture, kernel, groups=x.size(2))                            # (B, C, 1, T)
        return y.squeeze(2).transpose(1, 2)                                            # (B, T, C)


class Attention(nn.Module):
    """Causal self-attention to the past only, with shared heads.

    Past only: keys and values stand one column later, behind an empty (zero) one in column 0. A token attends
    to the tokens before it or to nothing; its own content travels in the residual stream and the convolution.
    Shared heads: in the first `shared_heads` heads the keys are the queries. Such a head looks for equals.
    """

    def __init__(self, config):
        super().__init__()
        self.n_head, self.shared = config.n_head, min(config.shared_heads, config.n_head)
        own_keys = (config.n_head - self.shared) * (config.n_embd // config.n_head)
        # One matrix for queries, values, and the keys of the heads that have their own.
        self.c_attn = nn.Linear(config.n_embd, 2 * config.n_embd + own_keys, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.scale = nn.Parameter(torch.tensor([float(config.qk_scale)]))

    def forward(self, x, rotary, mask, cache=None, layer=0):
        """x (B, T, C) -> (B, T, C); rotary: (cos, sin), (1, T, D) or (B, 1, T, D); mask: see attend."""
        (B, T, C), H = x.shape, self.n_head
        D = C // H
        cos, sin = rotary
        q, v, own = self.c_attn(x).view(B, T, -1, D).transpose(1, 2).split([H, H, H - self.shared], dim=1)
        # Normalised to |q| = |k| = sqrt(D), so that q.k / sqrt(D) has a spread of about 1 however large the
        # matrices grow, and `scale` alone says how sharp attention is. In float32, like every other norm.
        qk = F.rms_norm(torch.cat([q, own], 1).float(), (D,), eps=1e-6)
        qk = (qk * cos + qk.roll(D // 2, -1) * sin).to(v.dtype)                        # (B, 2H - shared, T, D)
        q, k = qk[:, :H], torch.cat([qk[:, :self.shared], qk[:, H:]], 1)               # (B, H, T, D)
        q = q * (self.scale * D ** -0.5).to(v.dtype)
        if cache is not None:
            k, v = cache.append(layer, k, v)                                           # (B, H, S, D)
        else:  # past only: column 0 is empty, column s is token s - 1, the last is never needed
            k, v = F.pad(k, (0, 0, 1, -1)), F.pad(v, (0, 0, 1, -1))                    # (B, H, T, D)
        y = attend(q, k, v, mask, causal=cache is None)                                # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))                         # (B, T, C)


def attend(q, k, v, mask, causal):
    """softmax(q k^T + mask) v: q (B, H, T, D) already scaled; k, v (B, H, S, D) -> (B, H, T, D).

    mask: (T, S) or (B, 1, T, S), 0 / -inf, or (1, 1), a 0, where nothing is hidden.
    causal: the mask is the plain triangle of T = S, which the fused kernel knows without reading it.
    """
    T = q.size(2)
    if q.is_cuda or T > EXPLICIT_ATTENTION_UP_TO:
        mask = None if causal or mask.numel() == 1 else mask.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=1.0)
    if causal and T > QUERIES:  # a part of the queries needs the keys up to its own end only
        parts = [(slice(a, a + QUERIES), slice(0, a + QUERIES)) for a in range(0, T, QUERIES)]
        return torch.cat([attend(q[:, :, rows], k[:, :, keys], v[:, :, keys], mask[rows, keys], causal=False)
                          for rows, keys in parts], dim=2)
    weights = torch.softmax(q @ k.transpose(-2, -1) + mask, dim=-1)                    # (B, H, T, S) float32
    return weights.to(v.dtype) @ v                                                     # (B, H, T, D)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))                                       # (B, T, C)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=False)
        self.conv_1 = Convolution(config) if config.conv_width else None
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=False)
        self.conv_2 = Convolution(config) if config.conv_width else None
        self.mlp = MLP(config)

    def forward(self, x, rotary, mask, cache=None, layer=0):
        y = self.ln_1(x)
        y = y if self.conv_1 is None else self.conv_1(y, cache, 2 * layer)
        x = x + self.attn(y, rotary, mask, cache, layer)                               # (B, T, C)
        y = self.ln_2(x)
        y = y if self.conv_2 is None else self.conv_2(y, cache, 2 * layer + 1)
        return x + self.mlp(y)                                                         # (B, T, C)


class KVCache:
    """What the next token needs of the tokens before it: keys, values, and the ends of the convolutions.

    Rows are padded on the left, so that all end together. A pad must leave no trace: its column is masked, its key,
    value and convolution input are zero, and positions count from the row's first real token. `GPT.hidden` advances
    a cache in place; `select` returns a new one, so that many continuations can start from one prompt.
    """
    shift = 1                                                               # column 0 is the empty key

    def __init__(self, config, pads):
        self.length, self.pads = 0, pads                   # columns seen, pads included; (B,) pads of every row
        self.padded = bool(pads.any())                     # if not, a new token sees every column
        self.real = None                                   # (B, T, 1) 0 at pads; None: no pads left
        L, B, H, C, W = config.n_layer, len(pads), config.n_head, config.n_embd, config.conv_width
        self.kv = list(torch.zeros(L, 2, B, H, 0, C // H, device=pads.device))          # a layer: (2, B, H, room, D)
        self.tails = list(torch.zeros(2 * L, B, max(W - 1, 0), C, device=pads.device))  # (B, W - 1, C)

    def advance(self, T):
        """Makes place for T new columns -> their positions, (B, T) or a slice, and the mask for `attend`."""
        if T == 1 and self.length and not self.padded:
            self.real, self.length = None, self.length + 1
            return slice(self.length - 1, self.length), torch.zeros(1, 1, device=self.pads.device)
        column = torch.arange(self.length + T, device=self.pads.device)     # (S,)
        new, first = column[self.length:], self.pads[:, None]               # (T,), (B, 1)
        seen = (column <= new[:, None]) & (column >= first[:, None])        # (B, T, S)
        seen |= column == new[:, None]  # a pad sees its own column: a softmax over nothing would be NaN
        mask = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -math.inf)
        self.real = (new >= first)[:, :, None] if self.length == 0 else None
        self.length += T
        return (new - first).clamp(min=0), mask[:, None]                    # (B, T), (B, 1, T, S)

    def append(self, layer, k, v):
        """Keys and values (B, H, T, D) of the new tokens -> those of the S columns that these tokens may see.

        Token s stands in column s + shift, so the newest one is kept but shown only to the tokens after it.
        """
        kv, end = self.kv[layer], self.length + self.shift
        if kv.size(3) < end:  # room for twice as many: copied log2(S) times, not S times
            kv = self.kv[layer] = F.pad(kv.to(k.dtype), (0, 0, 0, 2 * end - kv.size(3)))
        if self.real is not None:  # the last pad stands in the first token's column and must be its empty key
            k, v = k * self.real[:, None], v * self.real[:, None]
        kv[:, :, :, end - k.size(2):end] = torch.stack([k, v])
        return kv[:, :, :, :self.length]                                    # (2, B, H, S, D)

    def select(self, rows):
        """A new cache of the given rows: a LongTensor of row numbers, which may repeat, or a bool mask."""
        new = copy.copy(self)
        new.pads = self.pads[rows]
        new.kv = [kv[:, rows] for kv in self.kv]
        new.tails = [tail[rows] for tail in self.tails]
        return new


# ------------------------------------------------------------------------------------------------------------
# The model

class GPT(nn.Module):
    layout, config_class, cache_class = "modern", GPTConfig, KVCache        # adapters/gpt2.py has others

    def __init__(self, config):
        super().__init__()
        self.config, self.extra = config, {}
        C, D = config.n_embd, config.n_embd // config.n_head
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(config.n_vocab, C),  # also the head: logits = hidden @ wte^T
            "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            "ln_f": nn.LayerNorm(C, bias=False),
        })
        angle = torch.arange(config.block_size)[:, None] * config.rope_base ** (-torch.arange(0, D, 2) / D)
        # (a, b) turns into (a cos - b sin, b cos + a sin): b is rolled to a's place, the table has its sign.
        self.register_buffer("cos", torch.cat([angle.cos(), angle.cos()], -1), persistent=False)
        self.register_buffer("sin", torch.cat([-angle.sin(), angle.sin()], -1), persistent=False)
        self.register_buffer("mask", torch.full([config.block_size] * 2, -math.inf).triu(1), persistent=False)
        self.initialise()

    def initialise(self):
        """Starting values: N(0, 1 / fan_in), and 0 for what a block adds, so it starts as the identity."""
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.05 if name == "transformer.wte.weight" else p.size(1) ** -0.5)
        # At the start the tied head gives the token itself a logit of .05 C: 6.4 at C = 128 is harmless, 38 at
        # C = 768 is not. Wide models start with a lower gain.
        nn.init.constant_(self.transformer.ln_f.weight, min(1.0, 128 / self.config.n_embd))

    def forward(self, ids):
        """ids (B, T) long -> logits (B, T, V) float32 of the tokens that follow each."""
        return self.logits(self.hidden(ids))

    def hidden(self, ids, cache=None):
        """Final-normed hidden states (B, T, C) of ids (B, T) long; with a cache, ids are the new tokens only.

        The cache is advanced in place, and no gradient goes through it. Rows padded on the right need no mask, as
        nothing looks ahead. ValueError for a row beyond block_size.
        """
        T, past, limit = ids.size(1), 0 if cache is None else cache.length, self.config.block_size
        if past + T > limit:
            raise ValueError(f"a row of {past + T} tokens, but block_size is {limit}; shorten the row")
        position, mask = (slice(0, T), self.mask[:T, :T]) if cache is None else cache.advance(T)
        x, rotary = self.embed(ids, position)                                          # (B, T, C)
        with torch.set_grad_enabled(cache is None and torch.is_grad_enabled()):
            for layer, block in enumerate(self.transformer.h):
                x = block(x, rotary, mask, cache, layer)                               # (B, T, C)
            return self.transformer.ln_f(x)

    def embed(self, ids, position):
        """What the first block gets: embeddings (B, T, C), and (cos, sin), (1, T, D) or (B, 1, T, D)."""
        return self.transformer.wte(ids), (self.cos[position].unsqueeze(-3), self.sin[position].unsqueeze(-3))

    def logits(self, hidden):
        """hidden (..., C) -> logits (..., V), float32 also under autocast, so that losses are."""
        return F.linear(hidden, self.transformer.wte.weight).float()                   # (..., V)

    @torch.no_grad()
    def prefill(self, prompts):
        """Reads the prompts (lists of ids) at once: hidden (B, T, C) of the left-padded rows, and the cache.

        The last column is the last token of every row. ValueError for a prompt that is empty, longer than
        block_size, or holds ids beyond n_vocab.
        """
        limit, V, device = self.config.block_size, self.config.n_vocab, self.mask.device
        for i, p in enumerate(prompts):
            if not 0 < len(p) <= limit or not 0 <= min(p) <= max(p) < V:
                raise ValueError(f"prompt {i} has {len(p)} tokens, the largest {max(p, default=None)}; expected 1 to "
                                 f"{limit} tokens below {V}")
        T = max(map(len, prompts))
        ids = torch.tensor([[0] * (T - len(p)) + list(p) for p in prompts], device=device)     # (B, T)
        cache = self.cache_class(self.config, torch.tensor([T - len(p) for p in prompts], device=device))
        return self.hidden(ids, cache), cache

    @torch.no_grad()
    def generate(self, prompts, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, stop=None,
                 seed=None, watch=None):
        """Continues every prompt -> lists of the new ids, one a prompt, a drawn stop token included.

        temperature    logits are divided by it; 0 takes the most probable token
        top_k, top_p   draw from the k most probable tokens, or from the smallest set whose mass reaches p
                       (Holtzman et al. 2020); of both, top_k comes first
        stop, seed     one id or a set of ids that end a row; the same seed gives the same tokens
        watch          called every step as watch(rows (b,) long, logits (b, V) float32 before temperature and
                       truncation, drawn (b,) long) with the rows still running
        ValueError where a prompt is empty or has no room for max_new_tokens, and for settings out of range.
        """
        longest = max((len(p) for p in prompts), default=0)
        if longest + max_new_tokens > self.config.block_size:
            raise ValueError(f"a prompt of {longest} tokens and {max_new_tokens} new ones, but block_size is "
                             f"{self.config.block_size}; shorten the prompt or ask for fewer")
        new = [[] for _ in prompts]
        if not prompts or max_new_tokens == 0:
            return new
        hidden, cache = self.prefill(prompts)
        device = hidden.device
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        stop = torch.tensor([stop] if isinstance(stop, int) else sorted(stop or ()), device=device).long()
        rows = torch.arange(len(prompts), device=device)
        for step in range(max_new_tokens):
            logits = self.logits(hidden[:, -1])                                        # (b, V)
            drawn = sample(logits, temperature, top_k, top_p, generator)               # (b,)
            if watch is not None:
                watch(rows, logits, drawn)
            for row, token in zip(rows.tolist(), drawn.tolist()):
                new[row].append(token)
            running = ~torch.isin(drawn, stop)
            if step == max_new_tokens - 1 or not running.any():
                break
            if not running.all():  # finished rows leave the batch
                rows, drawn, cache = rows[running], drawn[running], cache.select(running)
            hidden = self.hidden(drawn[:, None], cache)                                # (b, 1, C)
        return new

    def num_params(self):
        """Number of parameters; the head is the token embedding and counts once."""
        return sum(p.numel() for p in self.parameters())

    def save(self, folder, extra=None):
        """Writes model.pt (weights) and config.json (fields, `extra`, any JSON, the SHA-256 of model.pt)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "model.pt.tmp")
        sha256 = hashlib.sha256((folder / "model.pt.tmp").read_bytes()).hexdigest()
        card = {"layout": self.layout, "model": asdict(self.config), "extra": extra or {}, "sha256": sha256}
        (folder / "config.json.tmp").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        for name in ("model.pt", "config.json"):  # renamed when whole: a crash leaves no half of a file
            os.replace(folder / f"{name}.tmp", folder / name)

    @classmethod
    def load(cls, folder, device="cpu"):
        """The model that `save` wrote, with its `extra`. ValueError of one line for anything else."""
        weights = Path(folder) / "model.pt"
        try:
            card = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
            if hashlib.sha256(weights.read_bytes()).hexdigest() != card["sha256"]:
                raise ValueError("model.pt is not the one that config.json was written with")
            if card["layout"] == "gpt2":
                cls = importlib.import_module("adapters.gpt2").GPT2
            model = cls(cls.config_class(**card["model"]))
            model.load_state_dict(torch.load(weights, weights_only=True))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{folder}: no model that GPT.save wrote ({' '.join(str(error).split()):.160}); restore "
                             "the folder, or remove it and train again") from None
        model.extra = card.get("extra", {})
        return model.to(device)


# ------------------------------------------------------------------------------------------------------------
# Drawing tokens

def sample(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """One id a row, (b,), drawn from logits (b, V); the arguments are those of `GPT.generate`."""
    if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1) or not 0 < (top_p or 1) <= 1:
        raise ValueError(f"temperature={temperature}, top_k={top_k}, top_p={top_p}; expected temperature >= 0, "
                         "top_k >= 1, 0 < top_p <= 1, or None for no limit")
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the maximum is 0, at any temperature
    if top_k is None and top_p is None:
        return draw_index(logits.softmax(-1), generator)
    logits, ids = logits.topk(min(top_k or logits.size(-1), logits.size(-1)))          # (b, k) sorted
    probs = logits.softmax(-1)                                                         # (b, k)
    if top_p is not None and top_p < 1:
        before = F.pad(probs.cumsum(-1)[:, :-1], (1, 0))  # mass of the tokens ranked above
        probs = probs * (before < top_p)
    return ids.gather(1, draw_index(probs, generator)[:, None])[:, 0]                  # (b,)


def draw_index(probs, generator=None):
    """One column a row, (b,), in proportion to probs (b, k), never one of 0; a row takes one random number.

    Where the running sum first passes a uniform number, which costs a sum. torch.multinomial draws a number for
    every column, which took longer than all matrix products of a small model. On the CPU: MPS has no float64.
    """
    mass = probs.cpu().double().cumsum(-1)                                             # (b, k)
    uniform = torch.rand(len(probs), 1, generator=generator, device=probs.device).cpu().double()
    return torch.searchsorted(mass, uniform * mass[:, -1:], right=True)[:, 0].to(probs.device)


if __name__ == "__main__":
    importlib.import_module("adapters.gpt2").main(sys.argv[1:])
