"""A small GPT that trains fast on a CPU: configuration, blocks, cached generation, save and load.

A pre-norm transformer as in nanoGPT: rotary positions (Su et al. 2021), normalised queries and keys (Henry
et al. 2020), causal convolutions (So et al. 2021), attention to the past only, and heads whose keys are
their queries (Kitaev et al. 2020). The last three let a small model learn to read from few tokens.

    model = GPT(GPTConfig(n_vocab=800))
    logits = model(ids)                                                        # (B, T) -> (B, T, V)
    new = model.generate([[5, 6, 7], [8]], 20, top_p=0.9, stop=799, seed=1)    # prompts of different lengths
    model.save("out/student"); model = GPT.load("out/student")
    python model.py sample out/plain "Once" --tokens 100; python model.py export out/student out/hf

Shapes: B batch, T time (new tokens), S time (cached and new), C channels, H heads, D = C / H channels a head,
V vocabulary, L layers, W width of the convolution, b rows that are still being generated.
"""
import copy
import hashlib
import importlib
import io
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

EXPLICIT_ATTENTION_UP_TO, QUERIES = 512, 128  # on a CPU, longer rows take the fused kernel; queries at once


@dataclass
class GPTConfig:
    n_vocab: int             # V, the ids of the tokenizer, special ones included
    block_size: int = 256    # longest row in tokens
    n_layer: int = 3         # L
    n_head: int = 4          # H
    n_embd: int = 128        # C, a multiple of 2 * n_head
    rope_base: float = 1000  # wavelengths of the rotary positions grow up to about 2 pi rope_base tokens
    qk_scale: float = 1.2    # start of the learnt factor on the scores of normalised queries and keys
    shared_heads: int = 2    # heads whose keys are their queries, see Attention
    conv_width: int = 8      # W, tokens that a convolution sees (itself and W - 1 before); 0 for none

    def __post_init__(self):
        for field in fields(self):
            value, may_be_0 = getattr(self, field.name), field.name in ("shared_heads", "conv_width")
            if type(value) not in (int, field.type) or not (0 < value <= 1e6 or value == 0 and may_be_0):
                raise ValueError(f"{field.name} is {value!r:.60}, expected 0 < {field.type.__name__} <= 1e6")
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd is {self.n_embd}, expected a multiple of 2 n_head = {2 * self.n_head}")


class Convolution(nn.Module):
    """Causal depthwise convolution: y[t] = sum_i weight[i] * x[t - W + 1 + i]."""

    def __init__(self, config):
        super().__init__()
        C, W = config.n_embd, config.conv_width
        # Half of the channels start as the token itself, half as the sum of the last W tokens / sqrt(W).
        weight = torch.eye(W)[-1].repeat(C, 1, 1)                                      # (C, 1, W)
        weight[C // 2:] = W ** -0.5
        self.weight = nn.Parameter(weight)

    def forward(self, x, cache=None, slot=0):
        """x (B, T, C) -> (B, T, C); cache.tails[slot] holds the W - 1 inputs before x."""
        T, W = x.size(1), self.weight.size(2)
        if cache is None:
            x = F.pad(x, (0, 0, W - 1, 0))                                             # (B, W - 1 + T, C)
        else:
            x = torch.cat([cache.tails[slot].to(x.dtype), x], dim=1)                   # (B, W - 1 + T, C)
            cache.tails[slot] = x[:, T:]                                               # (B, W - 1, C)
            if T == 1:  # a sum costs less than a convolution
                return (x * self.weight[:, 0].T).sum(1, keepdim=True)                  # (B, 1, C)
        # conv2d on images of height 1: it takes the memory order (B, T, C), which conv1d would copy.
        picture, kernel = x.transpose(1, 2).unsqueeze(2), self.weight.unsqueeze(2)
        with torch.autocast("cpu", enabled=False):  # the bfloat16 kernel of a CPU is slower
            y = F.conv2d(picture, kernel, groups=x.size(2))                            # (B, C, 1, T)
        return y.squeeze(2).transpose(1, 2)                                            # (B, T, C)


class Attention(nn.Module):
    """Causal self-attention to the past only: a token attends to those before it, and to an empty (zero) key.

    For this, keys and values move one column to the right. In the first `shared_heads` heads the keys are
    the queries: such a head finds earlier tokens that are alike (if it saw itself, it would find that)."""

    def __init__(self, config):
        super().__init__()
        C, H = config.n_embd, config.n_head
        self.n_head, self.shared = H, min(config.shared_heads, H)
        self.c_attn = nn.Linear(C, 2 * C + (H - self.shared) * (C // H), bias=False)  # queries, values, keys
        self.c_proj = nn.Linear(C, C, bias=False)
        self.scale = nn.Parameter(torch.tensor([float(config.qk_scale)]))

    def forward(self, x, rotary, mask, cache=None, layer=0):
        """x (B, T, C) -> (B, T, C); rotary: (cos, sin), (1, T, D) or (B, 1, T, D); mask: see attend."""
        (B, T, C), H = x.shape, self.n_head
        D, (cos, sin) = C // H, rotary
        q, v, own = self.c_attn(x).view(B, T, -1, D).transpose(1, 2).split([H, H, H - self.shared], dim=1)
        # Normalised to |q| = |k| = sqrt(D), so that `scale` alone says how sharp attention is.
        qk = F.rms_norm(torch.cat([q, own], 1).float(), (D,), eps=1e-6)
        qk = (qk * cos + qk.roll(D // 2, -1) * sin).to(v.dtype)                        # (B, 2H-shared, T, D)
        q, k = qk[:, :H], torch.cat([qk[:, :self.shared], qk[:, H:]], 1)               # (B, H, T, D)
        q = q * (self.scale * D ** -0.5).to(v.dtype)
        if cache is not None:
            k, v = cache.append(layer, k, v)                                           # (B, H, S, D)
        else:  # past only: column 0 is empty, column s is token s - 1, the last is never needed
            k, v = F.pad(k, (0, 0, 1, -1)), F.pad(v, (0, 0, 1, -1))                    # (B, H, T, D)
        y = attend(q, k, v, mask, causal=cache is None)                                # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))                         # (B, T, C)


def attend(q, k, v, mask, causal):
    """softmax(q k^T + mask) v: q (B, H, T, D) already scaled; k, v (B, H, S, D) -> (B, H, T, D), type of v.
    mask: (T, S) or (B, 1, T, S) of 0 and -inf; (1, 1) hides nothing. causal: T = S, mask is the triangle."""
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
        y = self.conv_1(self.ln_1(x), cache, 2 * layer) if self.conv_1 else self.ln_1(x)
        x = x + self.attn(y, rotary, mask, cache, layer)                               # (B, T, C)
        y = self.conv_2(self.ln_2(x), cache, 2 * layer + 1) if self.conv_2 else self.ln_2(x)
        return x + self.mlp(y)                                                         # (B, T, C)


class KVCache:
    """What the next token needs of those before it: keys, values, and the last inputs of the convolutions.

    Rows are padded on the left. A pad has a position below 0 and a zero embedding, which stays zero in every
    layer, as nothing has a bias. Pads are masked, but for the last: it serves as the row's empty key."""
    shift = 1  # column 0 is the empty key

    def __init__(self, config, pads):
        self.length, self.pads, self.padded = 0, pads, bool(pads.any())  # columns so far; pads of a row, (B,)
        L, B, H, C, W = config.n_layer, len(pads), config.n_head, config.n_embd, config.conv_width
        self.kv = list(torch.zeros(L, 2, B, H, 0, C // H, device=pads.device))          # (2, B, H, room, D)
        self.tails = list(torch.zeros(2 * L, B, max(W - 1, 0), C, device=pads.device))  # (B, W - 1, C)

    def advance(self, T):
        """Adds T columns -> their positions, (B, T), or a slice for one token of rows without pads; mask."""
        self.length += T
        if T == 1 and self.length > 1 and not self.padded:  # one new token sees every column
            return slice(self.length - 1, self.length), torch.zeros(1, 1, device=self.pads.device)
        column = torch.arange(self.length, device=self.pads.device)                    # (S,)
        new, first = column[-T:, None], self.pads[:, None, None]                       # (T, 1), (B, 1, 1)
        seen = (column <= new) & (column >= first) | (column == new)                   # (B, T, S)
        mask = torch.where(seen, 0.0, -math.inf)  # a pad sees one column: a softmax over none would be NaN
        return (new - first)[..., 0], mask[:, None]                                    # (B, T), (B, 1, T, S)

    def append(self, layer, k, v):
        """Stores keys, values (B, H, T, D) of new tokens -> all they may see, (2, B, H, S, D), same type."""
        kv, end = self.kv[layer], self.length + self.shift  # token s stands in column s + shift
        if kv.size(3) < end:  # room for twice as many: copied log2(S) times, not S times
            kv = self.kv[layer] = F.pad(kv.to(k.dtype), (0, 0, 0, 2 * end - kv.size(3)))
        kv[:, :, :, end - k.size(2):end] = torch.stack([k, v])
        return kv[:, :, :, :self.length]                                               # (2, B, H, S, D)

    def select(self, rows):
        """A new cache of the given rows: a LongTensor of row numbers, which may repeat, or a bool mask."""
        new = copy.copy(self)
        new.pads, new.kv = self.pads[rows], [kv[:, rows] for kv in self.kv]
        new.tails = [tail[rows] for tail in self.tails]
        return new


class GPT(nn.Module):
    layout, config_class, cache_class = "modern", GPTConfig, KVCache  # other values: adapters/gpt2.py

    def __init__(self, config):
        super().__init__()
        self.config, self.extra = config, {}
        C, D, T = config.n_embd, config.n_embd // config.n_head, config.block_size
        wte, ln_f = nn.Embedding(config.n_vocab, C), nn.LayerNorm(C, bias=False)  # wte is also the head
        blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.transformer = nn.ModuleDict({"wte": wte, "h": blocks, "ln_f": ln_f})
        angle = torch.arange(T)[:, None] * config.rope_base ** (-torch.arange(0, D, 2) / D)
        # (a, b) turns into (a cos - b sin, b cos + a sin): b is rolled to a's place, the table has its sign.
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)    # (T, D)
        self.register_buffer("rotary", torch.stack([cos, sin]), persistent=False)      # (2, T, D)
        self.register_buffer("mask", torch.full((T, T), -math.inf).triu(1), persistent=False)
        # N(0, 1 / fan_in), and 0 for what a block adds, so that it starts as the identity.
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.05 if name == "transformer.wte.weight" else p.size(1) ** -0.5)
        # The tied head first gives the token itself a logit of .05 C, too much where C is large.
        nn.init.constant_(self.transformer.ln_f.weight, min(1.0, 128 / C))

    def num_params(self):
        return sum(p.numel() for p in self.parameters())  # the head is wte, which counts once

    def forward(self, ids):
        """ids (B, T) long -> logits (B, T, V) float32 of the tokens that follow each."""
        return self.logits(self.hidden(ids))

    def hidden(self, ids, cache=None):
        """Hidden states (B, T, C) of ids (B, T) long, after the final norm. Rows may be padded on the right,
        as no token looks ahead. With a cache, ids follow the tokens that it holds; no gradient then."""
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
        """The input of the first block: x (B, T, C), and cos and sin, (2, 1, T, D) or (2, B, 1, T, D)."""
        x = self.transformer.wte(ids)
        x = x if isinstance(position, slice) else x * (position >= 0)[..., None]  # 0 at pads
        return x, self.rotary[:, position].unsqueeze(-3)

    def logits(self, hidden):
        """hidden (..., C) -> logits (..., V), float32 also under autocast, so that losses are."""
        return F.linear(hidden, self.transformer.wte.weight).float()                   # (..., V)

    @torch.no_grad()
    def prefill(self, prompts, room=0):
        """Reads prompts, lists of up to block_size - room ids -> hidden (B, T, C), padded left; a cache."""
        limit, V, device = self.config.block_size - room, self.config.n_vocab, self.mask.device
        for i, p in enumerate(prompts):
            n = len(p) if isinstance(p, (list, tuple)) or getattr(p, "ndim", 0) == 1 else "no list of"
            if n not in range(1, limit + 1) or not 0 <= min(p) <= max(p) < V:
                raise ValueError(f"prompt {i} has {n} tokens; expected 1 to {limit}, with ids below {V}")
        T = max(map(len, prompts))
        ids = torch.tensor([[0] * (T - len(p)) + list(p) for p in prompts], device=device)     # (B, T)
        cache = self.cache_class(self.config, torch.tensor([T - len(p) for p in prompts], device=device))
        return self.hidden(ids, cache), cache

    @torch.no_grad()
    def generate(self, prompts, max_new_tokens, *, stop=None, seed=None, watch=None, **drawing):
        """Continues every prompt -> a list of new ids for each prompt, with the stop token that ended it.

        stop: an id or a set of ids; seed: the same seed draws the same ids; **drawing: options of `sample`;
        watch: called every step with the rows still running, watch(rows (b,), logits (b, V), drawn (b,))."""
        new = [[] for _ in prompts]
        if not len(prompts) or max_new_tokens < 1:
            return new
        hidden, cache = self.prefill(prompts, room=max_new_tokens)
        device, rows = hidden.device, torch.arange(len(prompts), device=hidden.device)
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        stop = torch.tensor([stop] if isinstance(stop, int) else sorted(stop or ()), device=device).long()
        for step in range(max_new_tokens):
            logits = self.logits(hidden[:, -1])                                        # (b, V)
            drawn = sample(logits, **drawing, generator=generator)                     # (b,)
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

    def save(self, folder, extra=None):
        """Writes model.pt (weights) and config.json: fields, `extra` (any JSON), the SHA-256 of all this."""
        file, card = io.BytesIO(), {"layout": self.layout, "model": asdict(self.config), "extra": extra or {}}
        torch.save({k: w for k, w in self.state_dict().items() if not k.startswith("td_heads.")}, file)
        weights, folder = file.getvalue(), Path(folder)
        card["sha256"] = hashlib.sha256(weights + json.dumps(card).encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in ("model.pt", weights), ("config.json", json.dumps(card, indent=1).encode()):
            (folder / f"{name}.tmp").write_bytes(content)
            (folder / f"{name}.tmp").replace(folder / name)  # after a crash a file is old or new, not half

    @classmethod
    def load(cls, folder, device="cpu"):
        """The model that `save` wrote, with its `extra`. ValueError of one line for anything else."""
        try:
            weights = (Path(folder) / "model.pt").read_bytes()
            card = json.loads((Path(folder) / "config.json").read_bytes())
            if card.pop("sha256") != hashlib.sha256(weights + json.dumps(card).encode()).hexdigest():
                raise ValueError("model.pt and config.json are not as they were written together")
            cls = importlib.import_module("adapters.gpt2").GPT2 if card["layout"] == "gpt2" else cls
            config = cls.config_class(**card["model"])
            if config.n_layer * config.n_embd ** 2 > len(weights):
                raise ValueError(f"{config}, but model.pt has {len(weights)} bytes")
            model = cls(config)
            model.load_state_dict(torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True))
            model.extra = card["extra"]
        except Exception as error:  # a foreign file fails in many ways
            raise ValueError(f"{folder}: no model that GPT.save wrote ({' '.join(str(error).split()):.160}); "
                             "expected model.pt and config.json of one run, as in out/brd") from None
        return model.to(device)


def sample(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Draws an id for each row of logits (b, V) / temperature -> (b,); temperature 0: the most probable id.
    top_k keeps the k most probable ids, then top_p the smallest set with this part of their mass."""
    k, p = logits.size(-1) if top_k is None else top_k, 1 if top_p is None else top_p
    if not (0 <= temperature < math.inf and k >= 1 and 0 < p <= 1):
        raise ValueError(f"{temperature=}, {top_k=}, {top_p=}; try temperature 1, top_k 50 or top_p 0.9")
    if temperature < 1e-38:  # 0 in float32
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the maximum is 0, at any temperature
    if top_k is None and top_p is None:
        return draw_index(logits.softmax(-1), generator)
    logits, ids = logits.topk(min(k, logits.size(-1)))                                 # (b, k) sorted
    probs = logits.softmax(-1)                                                         # (b, k)
    mass_before = F.pad(probs.cumsum(-1)[:, :-1], (1, 0))                              # (b, k)
    probs = probs * (mass_before < p) if p < 1 else probs
    return ids.gather(1, draw_index(probs, generator)[:, None])[:, 0]                  # (b,)


def draw_index(probs, generator=None):
    """Draws a column for each row in proportion to probs (b, k) -> (b,), by inverting the running sum."""
    # One random number for a row; torch.multinomial draws one for each column. MPS has no float64: CPU.
    mass = probs.cpu().double().cumsum(-1)                                             # (b, k)
    uniform = torch.rand(len(probs), 1, generator=generator, device=probs.device).cpu().double()
    return torch.searchsorted(mass, uniform * mass[:, -1:], right=True)[:, 0].to(probs.device)


if __name__ == "__main__":
    cli, wings = importlib.import_module("data.cli"), {"export": "adapters.gpt2", "sample": "adapters.sample"}
    cli.run_command(lambda: cli.run_named(wings, None, __doc__))
