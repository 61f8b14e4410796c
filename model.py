"""
A small GPT that trains fast on a CPU: configuration, blocks, hidden states, logits, cached generation, save and load.

Two layouts share one class:

    "modern" (default)   rotary positions (Su et al. 2021), normalised queries and keys (Henry et al. 2020), no
                         biases, and what lets a small model learn to read from far fewer tokens: convolutions
                         before attention and MLP (So et al. 2021 have them inside attention) hand every token its
                         last few neighbours; attention is to the past only, never to the token itself; and heads
                         whose keys are their queries (Kitaev et al. 2020) detect that the same word stood before.
    "gpt2"               GPT-2 to the letter (Radford et al. 2019), only without dropout: learned positions, biases,
                         and the parameter names of the published weights (`transformer.h.0.attn.c_attn.weight` ...).

    from model import GPT, GPTConfig
    model = GPT(GPTConfig(n_vocab=800))
    hidden = model.hidden(ids)                              # (B, T, C)
    loss = F.cross_entropy(model.logits(hidden).flatten(0, 1), targets.flatten())
    new = model.generate([[5, 6, 7], [8]], 20, top_p=0.9, stop=799, seed=1)      # prompts of different lengths
    model.save("out/student"); model = GPT.load("out/student")
    model = GPT.from_pretrained("gpt2-xl")                    # published weights by name, or a folder that holds them

    python model.py export out/student out/hf                 # a "gpt2" student as a folder that transformers opens

Letters: B batch, T time (new tokens), S time (cached and new tokens), C channels, H heads, D channels of a head
(C = H * D), V vocabulary, L layers, W width of the convolution, b rows that are still being generated.
"""
import argparse
import contextlib
import copy
import dataclasses
import json
import math
import os
import sys
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from data.sealed import read_sealed, read_tensors, sealed, sha256_of

# On a CPU, rows up to this long attend by an explicit softmax(q k^T) v, QUERIES rows of scores at a time, each over the keys
# up to its last one: what a causal mask hides is mostly not computed. The fused kernel has a fixed cost that short rows
# cannot repay. Measured on one thread (4 heads of 32 channels, bfloat16, forward and backward, CPU time), explicit / fused:
# 14 rows of 72 tokens 2.4 / 12 ms, 12 of 256: 17 / 32, 4 of 384: 12 / 20, 3 of 512: 14 / 25, 2 of 1,024: 42 / 42.
EXPLICIT_ATTENTION_UP_TO = 512
QUERIES = 128
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.tiktoken")      # that may lie beside the weights
REMEDY = "restore the folder, or remove it and train again"


@dataclass
class GPTConfig:
    n_vocab: int             # V, the ids of the tokenizer, special ones included
    block_size: int = 256    # longest row in tokens
    n_layer: int = 3         # L
    n_head: int = 4          # H
    n_embd: int = 128        # C, a multiple of n_head
    layout: str = "modern"   # "modern" or "gpt2"
    rope_base: float = 1000  # modern: longest wavelength of the rotary positions, in units of 2 pi tokens
    qk_scale: float = 1.2    # modern: start of the learnt factor on the scores of normalised queries and keys
    shared_heads: int = 2    # modern: heads whose keys are their queries, see Attention; n_head or more is all of them
    conv_width: int = 8      # modern: W, tokens that a convolution sees (itself and W - 1 before); 0 for none

    def __post_init__(self):
        if self.layout not in ("modern", "gpt2"):
            raise ValueError(f"layout is {self.layout!r:.60}, but expected 'modern' or 'gpt2'")
        for name in ("n_vocab", "block_size", "n_layer", "n_head", "n_embd", "shared_heads", "conv_width"):
            value, least = getattr(self, name), 0 if name in ("shared_heads", "conv_width") else 1
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r:.60}, but expected a whole number of at least {least}")
        for name in ("rope_base", "qk_scale"):
            if not isinstance(getattr(self, name), (int, float)) or not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r:.60}, but expected a number above 0")
        C, H = self.n_embd, self.n_head
        if C % H:
            raise ValueError(f"n_embd {C} is not a multiple of n_head {H}; try n_embd={math.ceil(C / H) * H}")
        if self.layout == "modern" and C // H % 2:
            raise ValueError(f"n_embd / n_head is {C // H} channels, but rotary positions turn pairs; try an even one")


# ---------------------------------------------------------------------------------------------------------------------
# Blocks, and the cache of a left-padded batch

class Convolution(nn.Module):
    """Causal depthwise convolution: y[t] = sum_i weight[i] * x[t - W + 1 + i].

    It starts with two kinds of channels. One half hands on the token itself, the other half the sum of the last W tokens,
    divided by sqrt(W): words that stand close together look alike there, which is what attention needs in order to find
    out who did what ("Anna went to Oslo", "Where did Anna go?"). Measured on questions about one of two people who did
    the same kind of thing, share of right answers to "what" (8 heads, one run each): .90 after 500,000 tokens; with all
    channels the token alone .60 (W = 4) and .55 (W = 8) after 600,000.
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
            if T == 1:  # the next token: one sum, where a convolution costs more to start than to compute
                return (x * self.weight[:, 0].T).sum(1, keepdim=True)                  # (B, 1, C)
        # Taken as a picture one pixel high: convolutions of pictures know the memory order (B, T, C), "channels
        # last", while conv1d would copy the input and the output into (B, C, T).
        picture = x.transpose(1, 2).unsqueeze(2)                                       # (B, C, 1, W - 1 + T)
        kernel = self.weight.unsqueeze(2)                                              # (C, 1, 1, W)
        # In float32 on a CPU: so little arithmetic is bound by memory, and the bfloat16 kernel takes half as long again.
        with torch.autocast(x.device.type, enabled=False) if x.device.type == "cpu" else contextlib.nullcontext():
            y = F.conv2d(picture, kernel, groups=x.size(2))                            # (B, C, 1, T)
        return y.squeeze(2).transpose(1, 2)                                            # (B, T, C)


class Attention(nn.Module):
    """Causal self-attention; in the modern layout to the past only, and with shared heads.

    Past only: keys and values stand one column later, behind an empty (zero) one in column 0. A token attends to the
    tokens before it or to nothing, never to itself: its own content travels in the residual stream and the convolution.
    Shared heads: in the first `shared_heads` heads the keys are the queries, as in Reformer (Kitaev et al. 2020), which
    masks the token itself for the same reason: a shared query would always find itself. Such a head looks for equals.

    Measured on yes/no questions whether a value occurred, accuracy .91: past only with keys that START as the queries,
    115,000 to 150,000 training positions; all 8 heads shared, 175,000, also behind 100,000 tokens of plain text, which
    unteach a mere start; neither, 250,000 and more. All 8 shared cost entity F1 .08; 2 of 8 cost nothing we could see.
    """

    def __init__(self, config):
        super().__init__()
        bias = config.layout == "gpt2"
        self.n_head = config.n_head
        self.shared = 0 if bias else min(config.shared_heads, config.n_head)
        own_keys = (config.n_head - self.shared) * (config.n_embd // config.n_head)
        # One matrix. gpt2: queries, keys, values. modern: queries, values, and the keys of the heads with their own.
        self.c_attn = nn.Linear(config.n_embd, 2 * config.n_embd + own_keys, bias=bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=bias)
        self.scale = nn.Parameter(torch.tensor([float(config.qk_scale)])) if config.layout == "modern" else None

    def forward(self, x, rotary, mask, cache=None, layer=0):
        """x (B, T, C) -> (B, T, C); rotary: (cos, sin), (1, T, D) or (B, 1, T, D); None for gpt2; mask: see attend."""
        (B, T, C), H = x.shape, self.n_head
        D = C // H
        if rotary is None:
            q, k, v = self.c_attn(x).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)        # (3, B, H, T, D)
            q = q * D ** -0.5
        else:
            # Normalised to |q| = |k| = sqrt(D), so that q.k / sqrt(D) has a spread of about 1 however large the
            # matrices grow, and `scale` alone says how sharp attention is. In float32, like every other norm.
            cos, sin = rotary
            q, v, own = self.c_attn(x).view(B, T, -1, D).transpose(1, 2).split([H, H, H - self.shared], dim=1)
            qk = F.rms_norm(torch.cat([q, own], 1).float(), (D,), eps=1e-6)
            qk = (qk * cos + qk.roll(D // 2, -1) * sin).to(v.dtype)                    # (B, 2 H - shared, T, D)
            q, k = qk[:, :H], torch.cat([qk[:, :self.shared], qk[:, H:]], 1)           # (B, H, T, D)
            q = q * (self.scale * D ** -0.5).to(v.dtype)
        if cache is not None:
            k, v = cache.append(layer, k, v)                                           # (B, H, S, D)
        elif rotary is not None:  # past only: column 0 is empty, column s is token s - 1, the last is never needed
            k, v = F.pad(k, (0, 0, 1, -1)), F.pad(v, (0, 0, 1, -1))                    # (B, H, T, D)
        y = attend(q, k, v, mask, causal=cache is None)                                # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))                         # (B, T, C)


def attend(q, k, v, mask, causal):
    """softmax(q k^T + mask) v: q (B, H, T, D) already scaled; k, v (B, H, S, D); mask (T, S) or (B, 1, T, S), 0 / -inf,
    or (1, 1), a 0, where nothing is hidden.

    causal: the mask is the plain triangle of T = S, which the fused kernel knows without reading it.
    """
    if q.is_cuda or q.size(2) > EXPLICIT_ATTENTION_UP_TO:
        mask = None if causal or mask.numel() == 1 else mask.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=1.0)
    if causal and q.size(2) > QUERIES:
        return torch.cat([attend(q[:, :, a:a + QUERIES], k[:, :, :a + QUERIES], v[:, :, :a + QUERIES],
                                 mask[a:a + QUERIES, :a + QUERIES], causal=False) for a in range(0, q.size(2), QUERIES)], dim=2)
    weights = torch.softmax(q @ k.transpose(-2, -1) + mask, dim=-1)                    # (B, H, T, S) float32
    return weights.to(v.dtype) @ v                                                     # (B, H, T, D)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        bias = config.layout == "gpt2"
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=bias)
        # GPT-2 was trained with the tanh form ("gelu_new"); the exact form is three times as fast on a CPU.
        self.gelu = nn.GELU("tanh" if config.layout == "gpt2" else "none")

    def forward(self, x):
        return self.c_proj(self.gelu(self.c_fc(x)))                                    # (B, T, C)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        gpt2 = config.layout == "gpt2"
        convolve = not gpt2 and config.conv_width > 0
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=gpt2)
        self.conv_1 = Convolution(config) if convolve else None
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=gpt2)
        self.conv_2 = Convolution(config) if convolve else None
        self.mlp = MLP(config)

    def forward(self, x, rotary, mask, cache=None, layer=0):
        y = self.ln_1(x)
        y = y if self.conv_1 is None else self.conv_1(y, cache, 2 * layer)
        x = x + self.attn(y, rotary, mask, cache, layer)                               # (B, T, C)
        y = self.ln_2(x)
        y = y if self.conv_2 is None else self.conv_2(y, cache, 2 * layer + 1)
        return x + self.mlp(y)                                                         # (B, T, C)


class Cache:
    """What the next token needs to know of the tokens before it: keys, values, and the ends of the convolutions.

    Rows are padded on the left, so that all end together. A pad must leave no trace: its column is masked, its key,
    value and convolution input are zero, and positions count from the row's first real token. `GPT.hidden` advances a
    cache in place; `select` and `repeat` return new ones, so that many continuations can start from one prompt.
    """

    def __init__(self, config, pads):
        W = config.conv_width if config.layout == "modern" else 0
        self.shift = int(config.layout == "modern")                         # 1: column 0 is the empty key
        self.length = 0                                                     # columns seen, pads included
        self.pads = pads                                                    # (B,) pads before the first token
        self.padded = bool(pads.any())                                      # if not, a single new token sees every column
        self.nothing_hidden = torch.zeros(1, 1, device=pads.device)
        self.real = None                                                    # (B, T, 1) 0 at pads; None: no pads left
        L, B, C, H, device = config.n_layer, len(pads), config.n_embd, config.n_head, pads.device
        self.kv = list(torch.zeros(L, 2, B, H, 0, C // H, device=device))   # per layer (2, B, H, room, D)
        self.tails = list(torch.zeros(2 * L, B, max(W - 1, 0), C, device=device))  # per convolution (B, W - 1, C)

    def advance(self, T):
        """Make place for T new columns; returns their positions, (B, T) or (1, T) where all rows are alike, and the additive
        mask (B, 1, T, S), or (1, 1) where nothing is hidden."""
        if T == 1 and self.length and not self.padded:
            self.real, self.length = None, self.length + 1
            return slice(self.length - 1, self.length), self.nothing_hidden
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

        modern: token s is stored in column s + 1, so the newest one is kept but shown only to the tokens after it.
        """
        kv, end = self.kv[layer], self.length + self.shift
        if kv.size(3) < end:  # room for twice as many: copied log2(S) times, not S times
            kv = self.kv[layer] = F.pad(kv.to(k.dtype), (0, 0, 0, 2 * end - kv.size(3)))
        if self.real is not None:  # modern: the last pad stands in the first token's column and must be its empty key
            k, v = k * self.real[:, None], v * self.real[:, None]
        kv[:, :, :, end - k.size(2):end] = torch.stack([k, v])
        return kv[:, :, :, :self.length]                                    # (2, B, H, S, D)

    def select(self, rows):
        """A new cache of the given rows: a list or LongTensor of row numbers, or a bool mask."""
        rows = torch.as_tensor(rows, device=self.pads.device)
        new = copy.copy(self)
        new.pads = self.pads[rows]
        new.kv = [kv[:, rows] for kv in self.kv]
        new.tails = [tail[rows] for tail in self.tails]
        return new

    def repeat(self, n):
        """A new cache with every row n times in a row: r, r, ..., s, s, ..."""
        return self.select(torch.arange(len(self.pads)).repeat_interleave(n))


# ---------------------------------------------------------------------------------------------------------------------
# The model

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.extra = config, {}
        gpt2, D = config.layout == "gpt2", config.n_embd // config.n_head
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(config.n_vocab, config.n_embd),  # also the head: logits = hidden @ wte^T
            "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            "ln_f": nn.LayerNorm(config.n_embd, bias=gpt2),
        })
        if gpt2:
            self.transformer["wpe"] = nn.Embedding(config.block_size, config.n_embd)
        else:
            angle = torch.arange(config.block_size)[:, None] * config.rope_base ** (-torch.arange(0, D, 2) / D)
            # (a, b) turns into (a cos - b sin, b cos + a sin): b is rolled to a's place, its sign is in the table.
            self.register_buffer("cos", torch.cat([angle.cos(), angle.cos()], -1), persistent=False)
            self.register_buffer("sin", torch.cat([-angle.sin(), angle.sin()], -1), persistent=False)
        self.register_buffer("mask", torch.full([config.block_size] * 2, -math.inf).triu(1), persistent=False)
        self.initialise()

    def initialise(self):
        """Starting values: fan-in and outputs of zero (modern), or GPT-2's own; convolutions bring theirs."""
        L, C, gpt2 = self.config.n_layer, self.config.n_embd, self.config.layout == "gpt2"
        for name, p in self.named_parameters():
            if name.endswith("bias") or (not gpt2 and name.endswith("c_proj.weight")):
                nn.init.zeros_(p)  # a modern block starts as the identity
            elif name.endswith("c_proj.weight"):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * L))  # 2 L of them add up in the residual stream
            elif p.dim() == 2:
                modern = 0.05 if name == "transformer.wte.weight" else p.size(1) ** -0.5  # N(0, 1 / fan_in)
                nn.init.normal_(p, std=0.02 if gpt2 else modern)
        if not gpt2:
            # At the start hidden is the token's own embedding at unit variance, so the tied head gives that very
            # token a logit of .05 C: a harmless 6.4 at C = 128, but 38 at C = 768. Wide models start with a lower gain.
            nn.init.constant_(self.transformer.ln_f.weight, min(1.0, 128 / C))

    def hidden(self, ids, cache=None):
        """Final-normed hidden states (B, T, C) of ids (B, T) long; with a cache, ids are the new tokens only.

        The cache is advanced in place and no gradient goes through it: it is for reading and generating only. Rows
        padded on the right need no mask, as nothing looks ahead. Raises ValueError for a row beyond block_size.
        """
        T, past, limit = ids.size(1), 0 if cache is None else cache.length, self.config.block_size
        if past + T > limit:
            raise ValueError(f"a row of {past + T} tokens, but block_size is {limit}; "
                             f"shorten the row or train with block_size={past + T}")
        position, mask = (slice(0, T), self.mask[:T, :T]) if cache is None else cache.advance(T)
        x = self.transformer.wte(ids)                                                  # (B, T, C)
        if self.config.layout == "gpt2":
            x, rotary = x + self.transformer.wpe.weight[position], None                # (B, T, C)
        else:
            rotary = self.cos[position].unsqueeze(-3), self.sin[position].unsqueeze(-3)  # (1, T, D) or (B, 1, T, D)
        with torch.set_grad_enabled(cache is None and torch.is_grad_enabled()):
            for layer, block in enumerate(self.transformer.h):
                x = block(x, rotary, mask, cache, layer)                               # (B, T, C)
            return self.transformer.ln_f(x)

    def logits(self, hidden):
        """hidden (..., C) -> logits (..., V), float32 also under autocast, so that losses are."""
        return F.linear(hidden, self.transformer.wte.weight).float()                   # (..., V)

    @torch.no_grad()
    def start(self, prompts):
        """Read the prompts at once: hidden (B, T, C) of the left-padded rows, and the cache to go on from.

        prompts: lists of ids. T is the longest; the last column is the last token of every row, and what stands at
        the pads means nothing. Raises ValueError where a prompt is empty, too long, or holds ids beyond n_vocab.
        """
        limit, V, device = self.config.block_size, self.config.n_vocab, self.mask.device
        if len(prompts) == 0:
            raise ValueError("no prompts; expected a list of at least one list of token ids")
        for i, p in enumerate(prompts):
            if len(p) == 0:
                raise ValueError(f"prompt {i} is empty; start it with one token at least, for example the document end")
            if len(p) > limit:
                raise ValueError(f"prompt {i} has {len(p)} tokens, but block_size is {limit}; shorten it")
            if not 0 <= min(p) <= max(p) < V:
                raise ValueError(f"prompt {i} holds ids {min(p)} to {max(p)}, but n_vocab is {V}; "
                                 f"was it made with another tokenizer?")
        T = max(len(p) for p in prompts)
        ids = torch.tensor([[0] * (T - len(p)) + list(p) for p in prompts], device=device)  # (B, T)
        cache = Cache(self.config, torch.tensor([T - len(p) for p in prompts], device=device))
        return self.hidden(ids, cache), cache

    @torch.no_grad()
    def generate(self, prompts, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, stop=None, seed=None,
                 watch=None):
        """Continue every prompt; returns lists of the new ids, one a prompt, a drawn stop token included.

        temperature    logits are divided by it; 0 takes the most probable token
        top_k, top_p   draw from the k most probable tokens, or from the smallest set of the most probable whose mass
                       reaches p (Holtzman et al. 2020); of both, top_k comes first
        stop           one id or a set of ids that end a row
        seed           the same seed, prompts and settings give the same tokens
        watch          called every step as watch(rows (b,) long, logits (b, V) float32 before temperature and
                       truncation, drawn (b,) long) with the rows still running
        Raises ValueError where a prompt is empty or has no room for max_new_tokens.
        """
        check_sampling(temperature, top_k, top_p, max_new_tokens)
        new = [[] for _ in prompts]
        longest = max((len(p) for p in prompts), default=0)
        if longest + max_new_tokens > self.config.block_size:
            raise ValueError(f"a prompt of {longest} tokens and {max_new_tokens} new ones, but block_size is "
                             f"{self.config.block_size}; shorten the prompt or ask for fewer")
        if not prompts or max_new_tokens == 0:
            return new
        hidden, cache = self.start(prompts)
        device = hidden.device
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        stop = torch.tensor([stop] if isinstance(stop, int) else sorted(stop or ()), dtype=torch.long, device=device)
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

    def parameter_groups(self):
        """(matrices, others): the 2-D weights inside the blocks, for Muon, and the rest, for AdamW."""
        matrices = [p for p in self.transformer.h.parameters() if p.dim() == 2]
        chosen = {id(p) for p in matrices}  # no embeddings: Muon would move rare tokens as far as frequent ones
        return matrices, [p for p in self.parameters() if id(p) not in chosen]

    def num_params(self):
        """Number of parameters; the head is the token embedding and counts once."""
        return sum(p.numel() for p in self.parameters())

    def save(self, folder, extra=None):
        """Write model.pt (the weights) and config.json (every field, `extra`, any JSON, and the SHA-256 of the weights and of a
        tokenizer that lies there already) into the folder."""
        os.makedirs(folder, exist_ok=True)
        weights, config = os.path.join(folder, "model.pt"), os.path.join(folder, "config.json")
        try:
            with open(weights + ".tmp", "wb") as f:
                torch.save(self.state_dict(), f)
        except RuntimeError as error:  # torch.save has its own words for a full disk
            raise OSError(f"{weights}: not written ({str(error).splitlines()[0]:.80}); is the disk full?") from None
        beside = [name for name in TOKENIZER_FILES if os.path.isfile(os.path.join(folder, name))]
        files = {"model.pt": sha256_of(weights + ".tmp")} | {name: sha256_of(os.path.join(folder, name)) for name in beside}
        with open(config + ".tmp", "w", encoding="utf-8") as f:
            json.dump(sealed({**asdict(self.config), "extra": extra or {}, "files": files}), f, indent=1, ensure_ascii=False)
        os.replace(weights + ".tmp", weights)  # renamed only when whole: a crash leaves the old checkpoint
        os.replace(config + ".tmp", config)

    @classmethod
    def load(cls, folder, device="cpu"):
        """The model that `save` wrote, with its `extra`. Raises ValueError of one line for a folder that is none, and for one
        of which a file is not that which was written: damaged, or from another folder."""
        weights, path = os.path.join(folder, "model.pt"), os.path.join(folder, "config.json")
        for file in ("config.json", "model.pt"):
            if not os.path.isfile(os.path.join(folder, file)):
                raise ValueError(f"{folder}: no {file} here; expected a folder written by GPT.save")
        config = read_sealed(path, f"expected the file that GPT.save writes; {REMEDY}")
        extra, files = config.pop("extra", {}), config.pop("files", {})
        known = {f.name for f in dataclasses.fields(GPTConfig)}
        if set(config) != known:
            what, name = ("unknown", set(config) - known) if set(config) - known else ("missing", known - set(config))
            raise ValueError(f"{path}: {what} field {', '.join(sorted(name))}; expected {', '.join(sorted(known))}")
        if not isinstance(files, dict):
            raise ValueError(f"{path}: field files is {files!r:.60}, but expected names with checksums")
        for name in ("model.pt", *TOKENIZER_FILES):
            file = os.path.join(folder, name)
            if name in files and not (os.path.isfile(file) and sha256_of(file) == files[name]):
                raise ValueError(f"{file}: not the one that config.json was written with; damaged, or of another folder: {REMEDY}")
        try:
            state = read_tensors(weights)
        except ValueError as error:
            raise ValueError(f"{weights}: does not hold weights ({error})") from None
        try:
            fields = GPTConfig(**config)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        model = cls.of(fields, state, weights)
        model.extra = extra
        return model.to(device)

    @classmethod
    def from_pretrained(cls, where, n_vocab=None, device="cpu"):
        """GPT-2 with its weights, of layout "gpt2": by name ("gpt2-xl", downloaded once), or from a local folder.

        n_vocab: grow the vocabulary to so many ids, for `<|sep|>` (see data/gpt2.py); None: as published. Raises
        ValueError of one line for a folder that holds no GPT-2, or one that this class would compute otherwise.
        """
        from data.gpt2 import read_weights
        fields, state = read_weights(where, n_vocab)
        try:
            config = GPTConfig(layout="gpt2", **fields)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return cls.of(config, state, where).to(device)

    @classmethod
    def of(cls, config, state, where):
        """A model with these weights (a state dict), of the file or folder `where`. ValueError of one line unless names and
        shapes are those of the configuration, and all numbers finite; a layer too many is not built to find out."""
        fit = isinstance(state, dict) and config.n_layer <= len(state)
        wrong = [] if fit else [f"{len(state) if isinstance(state, dict) else 'no'} tensors for {config.n_layer} layers"]
        if fit:
            with torch.device("meta"):                                      # shapes alone
                wanted = {name: tuple(p.shape) for name, p in cls(config).state_dict().items()}
            shapes = {name: tuple(t.shape) if isinstance(t, torch.Tensor) else type(t).__name__ for name, t in state.items()}
            wrong = [f"{name} is {shapes.get(name, 'missing')}, expected {wanted.get(name, 'none')}"
                     for name in sorted({*wanted, *shapes}, key=str) if wanted.get(name) != shapes.get(name)]
            wrong = wrong or [f"{name} holds numbers that are not finite" for name, t in state.items() if not torch.isfinite(t).all()]
        if wrong:
            raise ValueError(f"{where}: the weights are not those that its config.json describes: {wrong[0]:.160}")
        model = cls(config)
        model.load_state_dict(state)
        return model


# ---------------------------------------------------------------------------------------------------------------------
# Drawing tokens

def check_sampling(temperature, top_k, top_p, max_new_tokens):
    """Raises ValueError for settings that GPT.generate cannot take; top_k and top_p may be None."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, but expected 0 (greedy) or a positive number")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, but expected at least 1 (or None for all tokens)")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, but expected more than 0 and at most 1 (or None for all tokens)")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, but expected 0 or more")


def most_probable(logits, k):
    """The k largest of each row, the largest first, among equals the lower id: logits (N, V) -> values, ids (N, k).

    k of V or more: all of them. topk is 50 times as fast as a sort of the vocabulary, but takes equals in any order: where
    there are any, put those that it took in order, and sort in full the rare rows where equals stand on both sides of the cut.
    """
    if k >= logits.size(-1):
        return logits.sort(dim=-1, descending=True, stable=True)
    values, ids = logits.topk(k + 1, dim=-1)                                           # (N, k + 1)
    if not (values[:, 1:] == values[:, :-1]).any():
        return values[:, :k], ids[:, :k]
    ids = ids[:, :k].sort(dim=-1).values
    values, order = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, order)                                                        # (N, k)
    for row in ((logits >= values[:, -1:]).sum(-1) > k).nonzero()[:, 0].tolist():
        ids[row] = logits[row].sort(descending=True, stable=True).indices[:k]
    return values, ids


def sample(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """One id a row, (b,), drawn from logits (b, V); the arguments are those of `GPT.generate`."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the maximum is 0, so a tiny temperature is safe
    if top_k is None and top_p is None:
        return draw(logits.softmax(-1), generator)
    logits, ids = most_probable(logits, logits.size(-1) if top_k is None else top_k)   # (b, k)
    probs = logits.softmax(-1)                                                         # (b, k)
    if top_p is not None and top_p < 1:
        before = F.pad(probs.cumsum(-1)[:, :-1], (1, 0))  # mass of the tokens before: below p, the token is needed
        probs = probs * (before < top_p)
    return ids.gather(1, draw(probs, generator)[:, None])[:, 0]                        # (b,)


def draw(probs, generator=None):
    """One column a row, (b,), drawn in proportion to probs (b, k), never one of 0; a row takes one random number, whatever k.

    Where the running sum first passes a uniform number, so that the cost is that of a sum. torch.multinomial draws a random
    number for every column, which at 64 rows of 2,048 took longer than all matrix products of a 4x128 model."""
    device = "cpu" if probs.device.type == "mps" else probs.device  # MPS has no float64, without which a sum may pass its end
    mass = probs.to(device).double().cumsum(-1)                                        # (b, k)
    point = torch.rand(len(probs), 1, generator=generator, device=probs.device).to(device).double() * mass[:, -1:]
    return torch.searchsorted(mass, point, right=True)[:, 0].to(probs.device)          # (b,)


# ---------------------------------------------------------------------------------------------------------------------
# The command line

def main(arguments=None):
    """The command export; exit code 2 and one line for what cannot be exported."""
    parser = argparse.ArgumentParser(prog="model.py", description="Write a student as a folder that transformers opens.")
    parser.add_argument("command", choices=("export",))
    parser.add_argument("checkpoint", help="a student of layout \"gpt2\" with its tokenizer, for example out/student")
    parser.add_argument("folder", help="the new folder, for example out/hf")
    options = parser.parse_args(arguments)
    from data.annotations import shown
    from data.gpt2 import export
    from data.tokenizer import Tokenizer
    try:
        model = GPT.load(options.checkpoint)
        export(model, Tokenizer.load(options.checkpoint), options.folder)
    except (ValueError, OSError) as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        sys.exit(2)
    print(f"{shown(options.folder)}: {model.num_params():,} parameters, {model.config.n_vocab:,} ids; open it with "
          "transformers.AutoModelForCausalLM and AutoTokenizer")


if __name__ == "__main__":
    main()
