"""GPT-2: its layers and published weights, and students as folders that transformers opens.

    model = GPT2.from_pretrained("gpt2-xl")                 # by name: huggingface_hub downloads it once
    model = GPT2.from_pretrained("folder")                  # config.json, model*.safetensors (or .bin)
    python model.py export out_gpt2/plain out/hf            # a student of this layout, for transformers

A field of config.json that asks for another architecture is refused, because only wrong logits would tell.
"""
import json
import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

from data.cli import Parser, brief, printable
from data.files import write_bytes, write_text
from data.tokenizer import Tokenizer
from model import GPT, Block, GPTConfig, KVCache, attend

# Fields of GPT2Config, and their names in config.json.
FIELDS = {"n_vocab": "vocab_size", "block_size": "n_positions", "n_layer": "n_layer", "n_head": "n_head",
          "n_embd": "n_embd"}
# Fields of config.json that change the logits, and the values that are computed here, the default first.
COMPUTED = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (1e-5,),
            "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,), "tie_word_embeddings": (True,), "quantization_config": (None,)}
# GPT-2 was published with matrices (in, out); torch.nn.Linear has (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
PREFIX = re.compile(r"^(?:.*\.)?(?=(?:wte|wpe|ln_f|lm_head|h\.\d+)\.)")      # of a weight, by its wrappers
# Hugging Face's files have visible characters for bytes: of Latin-1, or from U+0100 on ("Ġ": space).
HIDDEN = [*range(33), *range(127, 161), 173]
SPELLING = {b: chr(b) for b in range(256)} | {b: chr(256 + i) for i, b in enumerate(HIDDEN)}


@dataclass
class GPT2Config(GPTConfig):
    shared_heads: int = 0
    conv_width: int = 0


class GPT2Cache(KVCache):
    shift = 0  # a token attends to itself as well


class GPT2Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, rotary, mask, cache=None, layer=0):
        """x (B, T, C) -> (B, T, C); rotary: None; mask: see model.attend."""
        (B, T, C), H = x.shape, self.n_head
        q, k, v = self.c_attn(x).view(B, T, 3, H, C // H).permute(2, 0, 3, 1, 4)       # (3, B, H, T, D)
        if cache is not None:
            k, v = cache.append(layer, k, v)                                           # (B, H, S, D)
        y = attend(q * (C // H) ** -0.5, k, v, mask, causal=cache is None)             # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))                         # (B, T, C)


class GPT2Block(Block):
    def __init__(self, config):
        nn.Module.__init__(self)
        C = config.n_embd
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(C), GPT2Attention(config), nn.LayerNorm(C)
        c_fc, c_proj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.mlp = nn.Sequential(OrderedDict(c_fc=c_fc, gelu=nn.GELU("tanh"), c_proj=c_proj))
        self.conv_1 = self.conv_2 = None


class GPT2(GPT):
    """GPT-2 (Radford et al. 2019) without dropout, with the published names of the parameters."""
    layout, config_class, cache_class = "gpt2", GPT2Config, GPT2Cache

    def __init__(self, config):
        nn.Module.__init__(self)
        self.config, self.extra = config, {}
        C, T = config.n_embd, config.block_size
        wte, ln_f = nn.Embedding(config.n_vocab, C), nn.LayerNorm(C)
        blocks = nn.ModuleList(GPT2Block(config) for _ in range(config.n_layer))
        self.transformer = nn.ModuleDict({"wte": wte, "h": blocks, "ln_f": ln_f, "wpe": nn.Embedding(T, C)})
        self.register_buffer("mask", torch.full((T, T), -math.inf).triu(1), persistent=False)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif name.endswith("c_proj.weight"):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))  # 2 L of them are added up
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def embed(self, ids, position):
        """The input of the first block: the sum of two embeddings, (B, T, C), and no rotary table."""
        return self.transformer.wte(ids) + self.transformer.wpe.weight[position], None

    @classmethod
    def from_pretrained(cls, where, device="cpu"):
        """The model of a folder, or by name. ValueError for another architecture or damaged files."""
        folder = locate(where)
        try:
            config, state = read_config(folder), read_weights(folder)
            wte = state["transformer.wte.weight"][:config.n_vocab]     # (V, C), without rows that fill it up
            model = cls(config)
            model.load_state_dict(state | {"transformer.wte.weight": wte})
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{folder}: no GPT-2 that is computed here ({brief(error, 200)})") from None
        return model.to(device)


def locate(where):
    """A local folder as it is; a name such as "gpt2-xl" or "owner/model" as the folder of its download."""
    if Path(where).is_dir():
        return where
    from huggingface_hub import snapshot_download as download
    try:
        return download(where, allow_patterns=["config.json", "model*.safetensors", "*token*.json"])
    except Exception as error:  # of the hub, its HTTP library or the disk
        raise ValueError(f"{where}: no such folder, and not downloaded ({brief(error, 160)})") from None


def read_config(folder):
    """The GPT2Config of a folder; ValueError for another architecture."""
    found = json.loads(Path(folder, "config.json").read_bytes())
    if found["model_type"] != "gpt2":
        raise ValueError(f"model_type is {found['model_type']!r:.60}, expected 'gpt2'")
    config = GPT2Config(**{ours: found.get(theirs) for ours, theirs in FIELDS.items()})
    for name, values in {**COMPUTED, "n_inner": (None, 4 * config.n_embd)}.items():
        if found.get(name, values[0]) not in values:
            raise ValueError(f"{name} is {found[name]!r:.60}, but only {values[0]!r} is computed")
    return config


def weights_in(found):
    """The weights of GPT-2 in the first part of a nested dict that has some: list of (name, tensor)."""
    if isinstance(found, dict):
        here = [(PREFIX.sub("", name), tensor) for name, tensor in found.items()
                if isinstance(name, str) and PREFIX.match(name) and isinstance(tensor, torch.Tensor)]
        return here or next(filter(None, map(weights_in, found.values())), [])
    return []


def read_tensors(path):
    """A file of safetensors or of torch.save, also a training checkpoint -> list of (name, tensor)."""
    if safe := path.suffix == ".safetensors":
        from safetensors.torch import load_file
    try:
        found = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
        found = weights_in(found)
        for name, tensor in found:
            if (size := tensor.numel() * tensor.itemsize) > tensor.untyped_storage().nbytes():    # stride 0
                raise ValueError(f"{name} claims {size:,} bytes, more than it holds")
        return found
    except Exception as error:  # of safetensors or pickle, or what is found is no dict
        raise ValueError(f"{path.name}: {brief(error)}") from None


def read_weights(folder):
    """The weights of a folder -> a state dict of GPT2; ValueError if damaged. In one file or more, under the
    prefixes of wrappers, with the head, the head alone or without it, matrices (in, out) or (out, in)."""
    paths = sorted(Path(folder).glob("model*.safetensors")) or sorted(Path(folder).glob("pytorch_model*.bin"))
    if not paths:
        names = ", ".join(sorted(path.name for path in Path(folder).iterdir()))
        raise ValueError(f"no model.safetensors or pytorch_model.bin, whole or in parts, but {names:.80}")
    state = {}
    for name, tensor in (pair for path in paths for pair in read_tensors(path)):
        if re.search(r"\.attn\.(masked_)?bias$", name):            # not a parameter but the causal mask
            continue
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():       # as it is loaded
            raise ValueError(f"{name}, {tensor.dtype}, is not all finite floating point numbers")
        name = name if name == "lm_head.weight" else f"transformer.{name}"
        if name in state:
            raise ValueError(f"{name} is there twice; expected the weights of one model")
        state[name] = tensor
    head, wte = state.pop("lm_head.weight", None), state.get("transformer.wte.weight")         # (V, C)
    if head is not None and (wte is None or torch.equal(head, wte)):
        wte = state["transformer.wte.weight"] = head
    elif head is not None or wte is None:
        sizes = [None if w is None else tuple(w.shape) for w in (wte, head)]
        raise ValueError("expected an embedding wte.weight that is also the head lm_head.weight; found "
                         f"{sizes[0]} and {sizes[1]} beside {', '.join(state) or 'no weights':.80}")
    if len(state["transformer.h.0.attn.c_attn.weight"]) == wte.size(1):                # (C, 3C)
        state |= {name: tensor.T for name, tensor in state.items() if name.endswith(TRANSPOSED)}
    return state


def merges_of(ranks):
    """{bytes: id} -> the merges "left right", in Hugging Face's spelling, in the order in which they apply.

    The merge of a token joins the two parts that tokens of lower ids leave of it. If they leave more, it has
    none, and is found only where it is a whole word (`ignore_merges`)."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:
            lowest, i = min((ranks.get(parts[i] + parts[i + 1], math.inf), i) for i in range(len(parts) - 1))
            if lowest >= rank:
                break
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append(" ".join(map(spell, parts)))
    return merges


def spell(token):
    """bytes -> str in visible characters: b" to" is "Ġto"."""
    return token.decode("latin-1").translate(SPELLING)


def tokenizer_files(tokenizer, block_size):
    """{file name: JSON object} with which transformers' AutoTokenizer gives the ids of the Tokenizer."""
    names = {i: name for name, i in sorted(tokenizer.specials.items(), key=lambda item: item[1])}
    vocab = {spell(token): i for token, i in tokenizer.ranks.items()} | tokenizer.specials
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": name, **flags} for i, name in names.items()]
    # "{1,3}+" (cl100k_base) is possessive in tiktoken's regular expressions, but a repeated {1,3} in these.
    pattern = re.sub(r"(\{\d+,?\d*\})\+", r"\1", tokenizer.pattern)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cut = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, level]
    bpe = {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": merges_of(tokenizer.ranks)}
    card = {"version": "1.0", "added_tokens": added, "decoder": level, "model": bpe,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut}}
    # A text that spells a special token gets ordinary ids. GPT-2 would add embeddings for token_type_ids.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size,
                "bos_token": names[tokenizer.end], "eos_token": names[tokenizer.end],
                "split_special_tokens": True, "clean_up_tokenization_spaces": False,
                "model_input_names": ["input_ids", "attention_mask"]}
    return {"tokenizer.json": card, "tokenizer_config.json": settings}


def export(model, tokenizer, folder):
    """Writes a GPT2 and its Tokenizer as a new folder, which transformers opens. ValueError if it exists."""
    config, folder = model.config, Path(folder)
    if model.layout != "gpt2":
        raise ValueError(f"layout is {model.layout!r}, but transformers has 'gpt2' alone: "
                         "train with --layout=gpt2")
    if tokenizer.n_vocab != config.n_vocab:
        raise ValueError(f"the tokenizer has {tokenizer.n_vocab} ids, the model {config.n_vocab}")
    if folder.exists():
        raise ValueError(f"{folder}: is there already; name a new folder, so that nothing is overwritten")
    from safetensors.torch import save
    state = {name: (tensor.T if name.endswith(TRANSPOSED) else tensor).cpu().contiguous()
             for name, tensor in model.state_dict().items()}
    card = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
            **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}, "layer_norm_epsilon": 1e-5,
            "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": True,
            "bos_token_id": tokenizer.end, "eos_token_id": tokenizer.end}
    write_bytes(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
    for name, content in {"config.json": card, **tokenizer_files(tokenizer, config.block_size)}.items():
        write_text(folder / name, json.dumps(content, indent=1, ensure_ascii=False))


def main(arguments=None):
    """The command `model.py export`; ValueError as `export` and GPT.load raise."""
    parser = Parser(prog="model.py export", description="A student as transformers has it.")
    parser.add_argument("checkpoint", help="a student of GPT-2's layout, such as out_gpt2/plain")
    parser.add_argument("folder", help="the new folder, such as out/hf")
    options = parser.parse_args(arguments)
    model = GPT.load(options.checkpoint)
    export(model, Tokenizer.load(options.checkpoint), options.folder)
    print(f"{printable(options.folder)}: {model.num_params():,} parameters, to be opened by transformers")
