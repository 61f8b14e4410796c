"""
GPT-2 in and out: weights in the files of the Hugging Face format, read and written.

    model = GPT.from_pretrained("gpt2-xl")                     # by name: huggingface_hub downloads it once
    model = GPT.from_pretrained("my/folder", n_vocab=50258)    # config.json and model.safetensors or pytorch_model.bin

    python model.py export out/student out/hf                  # a student of GPT-2's layout, for other software:
    AutoModelForCausalLM.from_pretrained("out/hf"), AutoTokenizer.from_pretrained("out/hf")     # transformers
    lm_eval --model hf --model_args pretrained=out/hf --tasks ...                               # lm-evaluation-harness

Only GPT-2 itself is read: the four published sizes, DistilGPT2, and what was trained from them. A field of config.json
that asks for anything else is refused by name, as nothing but wrong logits would tell. The tokenizers of these folders
are the matter of data/gpt2_tokenizer.py.
"""
import importlib
import json
import os
import re
import shutil

import torch

from adapters.gpt2_tokenizer import read_json, tokenizer_files
from data.files import brief, read_tensors

FIELDS = {"n_vocab": "vocab_size", "block_size": "n_positions", "n_layer": "n_layer", "n_head": "n_head",
          "n_embd": "n_embd"}                                           # of GPTConfig, and what config.json calls them
# What the layout "gpt2" of model.py computes; of several values the first is the default. gelu_pytorch_tanh is another
# name of gelu_new. Dropout belongs to training, and reorder_and_upcast_attn is a matter of rounding alone.
COMPUTED = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (1e-5,),
            "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
            "tie_word_embeddings": (True,), "quantization_config": (None,)}
# GPT-2 was published with matrices (in, out), which its code called Conv1D; torch.nn.Linear has (out, in).
TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def optional(module):
    """An optional package, imported; ValueError of one line where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"the package {module.split('.')[0]} is missing; try pip install -e \".[hf]\"") from None


# ---------------------------------------------------------------------------------------------------------------------
# in

def locate(where):
    """A local folder as it is; a name such as "gpt2-xl" or "owner/model" as the folder into which it is downloaded."""
    where = os.fspath(where)
    if os.path.isdir(where):
        return where
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", where):
        raise ValueError(f"{where}: no such folder; expected one in Hugging Face's format, or a name such as gpt2-xl")
    download = optional("huggingface_hub").snapshot_download
    wanted = ["config.json", "model*.safetensors*", "tokenizer*.json", "vocab.json", "merges.txt"]
    try:
        folder = download(where, allow_patterns=wanted)
        if not any("safetensors" in name for name in os.listdir(folder)):
            folder = download(where, allow_patterns=wanted + ["pytorch_model*.bin*"])
    except Exception as error:      # of the hub, its HTTP library or the disk, and they have no common ancestor
        raise ValueError(f"{where}: no such folder, and it could not be downloaded ({brief(error, 160)})") from None
    return folder


def read_weights(where, n_vocab=None):
    """
    A folder or a name -> fields of GPTConfig (a dict), and the weights in the names of model.py (a state dict).

    n_vocab: the number of token embeddings to return; None: as many as there are. The new ones are the mean of the
    others: their logit is then the mean logit, so that a new id has a probability of 1 / V at most, and the others keep
    their ratios. GPT-2 has no `<|sep|>`: a student that learns to read from its weights needs 50258.
    ValueError of one line: see GPT.from_pretrained.
    """
    folder = locate(where)
    path = os.path.join(folder, "config.json")
    config = read_json(path)
    if config.get("model_type") != "gpt2":
        raise ValueError(f"{path}: model_type is {config.get('model_type')!r:.60}, but expected 'gpt2'; a folder that "
                         "GPT.save wrote is opened by GPT.load")
    for name in FIELDS.values():
        if type(config.get(name)) is not int:
            raise ValueError(f"{path}: {name} is {config.get(name)!r:.60}, but expected a whole number")
    for name, values in {**COMPUTED, "n_inner": (None, 4 * config["n_embd"])}.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(f"{path}: {name} is {config[name]!r:.60}, but only {values[0]!r} is computed here; "
                             "the logits would be wrong")
    state = {}
    for file in weight_files(folder):
        for name, tensor in load_tensors(file).items():
            if re.search(r"\.attn\.(masked_)?bias$", name):             # not a parameter but the causal mask
                continue
            if not tensor.is_floating_point():
                raise ValueError(f"{file}: {name} is of type {tensor.dtype}, but expected floating point numbers")
            name = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
            state[name] = tensor.T if name.endswith(TURNED) else tensor
    wte = state.get("transformer.wte.weight")
    head = state.pop("lm_head.weight", wte)
    if wte is None or not torch.equal(head, wte):
        raise ValueError(f"{folder}: the head lm_head.weight and the embedding wte.weight are not the same, "
                         "but expected one matrix, as in GPT-2")
    fields = {ours: config[theirs] for ours, theirs in FIELDS.items()}
    if n_vocab is not None:
        if n_vocab < len(wte):
            raise ValueError(f"{folder}: n_vocab is {n_vocab}, but there are {len(wte)} ids; expected at least as many")
        new = wte.mean(0, keepdim=True).expand(n_vocab - len(wte), -1)                         # (n_vocab - V, C)
        fields["n_vocab"], state["transformer.wte.weight"] = n_vocab, torch.cat([wte, new])    # (n_vocab, C)
    return fields, state


def weight_files(folder):
    """Paths of the files that hold the weights: one, or those that an index names. safetensors where there are both."""
    for file in ("model.safetensors", "pytorch_model.bin"):
        path = os.path.join(folder, file)
        if os.path.isfile(path):
            return [path]
        if os.path.isfile(path + ".index.json"):
            parts = read_json(path + ".index.json").get("weight_map")
            if not isinstance(parts, dict) or any(os.path.basename(str(part)) != part for part in parts.values()):
                raise ValueError(f"{path}.index.json: expected a weight_map from parameters to files of this folder")
            return [os.path.join(folder, part) for part in sorted(set(parts.values()))]
    raise ValueError(f"{folder}: no model.safetensors and no pytorch_model.bin here, in one piece or in parts")


def load_tensors(path):
    """{name: tensor} of a .safetensors or .bin file, on the CPU; ValueError of one line for a damaged or missing one."""
    load_file = optional("safetensors.torch").load_file if path.endswith(".safetensors") else None
    try:
        return load_file(path) if load_file else dict(read_tensors(path))
    except Exception as error:                                          # a cut-off or foreign file fails in many ways
        raise ValueError(f"{path}: no weights can be read from it ({brief(error)})") from None


# ---------------------------------------------------------------------------------------------------------------------
# out

def export(model, tokenizer, folder):
    """
    Write a GPT of layout "gpt2" and its Tokenizer as a new folder that transformers opens; it appears when it is whole.

    ValueError of one line: the layout is another, the tokenizer has not the model's number of ids, or the folder is
    there already and holds something.
    """
    config = model.config
    if config.layout != "gpt2":
        raise ValueError(f"layout is {config.layout!r}, which transformers has no model for; open the student with "
                         "GPT.load, or train one with GPTConfig(layout='gpt2') to export it")
    if tokenizer.n_vocab != config.n_vocab:
        raise ValueError(f"tokenizer {tokenizer.name!r} has {tokenizer.n_vocab} ids, but the model has {config.n_vocab}; "
                         "expected the tokenizer that it was trained with")
    folder = os.path.normpath(folder)
    if os.path.exists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise ValueError(f"{folder}: is there already; name a new folder, so that nothing is overwritten or mixed")
    save_file = optional("safetensors.torch").save_file
    files = {"config.json": {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
                             **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
                             "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
                             "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
                             "bos_token_id": tokenizer.end, "eos_token_id": tokenizer.end},
             **tokenizer_files(tokenizer, config.block_size)}
    state = {name: (tensor.T if name.endswith(TURNED) else tensor).cpu().contiguous()
             for name, tensor in model.state_dict().items()}
    beside = folder + ".tmp"
    shutil.rmtree(beside, ignore_errors=True)
    os.makedirs(beside)
    try:
        save_file(state, os.path.join(beside, "model.safetensors"), metadata={"format": "pt"})
    except Exception as error:                                          # safetensors has its own words for a full disk
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(f"{folder}: not written ({' '.join(str(error).split()):.80}); is the disk full?") from None
    for name, content in files.items():
        with open(os.path.join(beside, name), "w", encoding="utf-8", newline="\n") as f:
            f.write(content if isinstance(content, str) else json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if os.path.isdir(folder):
        os.rmdir(folder)            # it is empty
    os.rename(beside, folder)
