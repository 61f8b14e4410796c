"""Tests of adapters/gpt2.py: GPT-2 written out literally, and against transformers, there and back.

What needs transformers is skipped where it is not installed."""
import json
import math
import random

import pytest
import torch
import torch.nn.functional as F

from adapters import gpt2
from adapters.gpt2 import GPT2, SPELLING, GPT2Config, export, merges_of
from data import world
from data.tokenizer import Tokenizer, train_bpe
from model import GPT, GPTConfig

TEXTS = [" ".join(sentences) for sentences in world.plain(200, "test gpt2")]
# How GPT-2 cuts words, as tiktoken writes it.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
NEW = {"do_sample": False, "max_new_tokens": 12}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # models of this width lose time on a second one


@pytest.fixture(scope="module")
def hf():
    """The package transformers."""
    pytest.importorskip("safetensors")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="module")
def own():
    return train_bpe(TEXTS, 501)


def with_specials(name, ranks, pattern):
    end, sep = ("<|endoftext|>", "<|sep|>")
    return Tokenizer(name, ranks, pattern, {end: len(ranks), sep: len(ranks) + 1}, end, sep)


@pytest.fixture(params=["own", "gpt2"])
def tok(request, own):
    """A tokenizer that was trained here, and one with the pattern and the order of bytes of GPT-2's."""
    order = sorted(range(256), key=lambda b: (ord(SPELLING[b]) >= 256, b))  # "!" is 0, a space 220
    ranks = {bytes([b]): i for i, b in enumerate(order)} | {t: i for t, i in own.ranks.items() if i >= 256}
    return own if request.param == "own" else with_specials("gpt2", ranks, GPT2_PATTERN)


def shaken(model):
    """The model with noise on every parameter, so that each matters (biases start at 0, norms at 1)."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


def published(hf, n_layer=2, n_head=3, n_vocab=259):
    """A GPT-2 of transformers at reduced width."""
    torch.manual_seed(0)
    config = hf.GPT2Config(vocab_size=n_vocab, n_positions=40, n_embd=4 * n_head, n_layer=n_layer,
                           n_head=n_head, bos_token_id=n_vocab - 2, eos_token_id=n_vocab - 2)
    return shaken(hf.GPT2LMHeadModel(config).eval())


def student(tok, n_layer=3, n_embd=24):
    torch.manual_seed(0)
    return shaken(GPT2(GPT2Config(tok.n_vocab, 48, n_layer, 3, n_embd)))


@torch.no_grad()
def check_same_model(here, there, eos=257):
    """The same logits, and the same greedy continuation of two prompts of different lengths."""
    ids = torch.randint(0, here.config.n_vocab, (2, 40), generator=torch.Generator().manual_seed(1))
    ours, theirs = here(ids), there(ids).logits
    assert theirs.std() > 0.5 and (ours - theirs).abs().max() < 1e-4
    prompts = [ids[0, :7].tolist(), ids[1, :3].tolist()]
    for prompt, new in zip(prompts, here.generate(prompts, 12, temperature=0, stop=eos)):
        assert there.generate(torch.tensor([prompt]), pad_token_id=eos, **NEW)[0].tolist() == prompt + new


def literal_gpt2(state, ids, n_layer, n_head):
    """GPT-2 (Radford et al. 2019) from the named weights: ids (B, T) -> logits (B, T, V)."""
    def weights(name):
        return state[f"transformer.{name}.weight"], state[f"transformer.{name}.bias"]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], *weights(name))

    wte, wpe = state["transformer.wte.weight"], state["transformer.wpe.weight"]
    x, causal = wte[ids] + wpe[:ids.size(1)], torch.ones(ids.size(1), ids.size(1)).tril().bool()
    for i in range(n_layer):
        q, k, v = F.linear(norm(x, f"h.{i}.ln_1"), *weights(f"h.{i}.attn.c_attn")).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (n_head, -1)).transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        scores = (q @ k.mT / math.sqrt(q.size(-1))).masked_fill(~causal, -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
        x = x + F.linear(y, *weights(f"h.{i}.attn.c_proj"))
        y = F.linear(norm(x, f"h.{i}.ln_2"), *weights(f"h.{i}.mlp.c_fc"))
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y ** 3)))
        x = x + F.linear(y, *weights(f"h.{i}.mlp.c_proj"))
    return norm(x, "ln_f") @ wte.T


def test_the_model_equals_a_literal_gpt2_of_the_published_names(own):
    model, ids = student(own), torch.randint(0, 501, (2, 23), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model(ids), literal_gpt2(model.state_dict(), ids, 3, 3), rtol=1e-4, atol=1e-4)
    assert len(model.state_dict()) == 4 + 3 * 12  # these names, and no others


def test_initial_spreads_and_published_sizes():
    torch.manual_seed(0)
    parameters = dict(GPT2(GPT2Config(800)).named_parameters())
    for ending, std in {"wte.weight": 0.02, "wpe.weight": 0.02, "attn.c_attn.weight": 0.02, "c_attn.bias": 0,
                        "c_proj.weight": 0.02 / math.sqrt(6), "mlp.c_fc.weight": 0.02}.items():
        matching = [p for name, p in parameters.items() if name.endswith(ending)]
        assert matching and all(abs(p.std().item() - std) <= 0.03 * std for p in matching), ending
    with torch.device("meta"):
        assert GPT2(GPT2Config(50257, 1024, 12, 12, 768)).num_params() == 124_439_808
        assert GPT2(GPT2Config(50257, 1024, 48, 25, 1600)).num_params() == 1_557_611_200


@pytest.mark.parametrize("n_layer, n_head, n_vocab", [(12, 12, 259), (24, 25, 357)])
def test_there_and_back(n_layer, n_head, n_vocab, hf, tmp_path):
    """Made by transformers -> from_pretrained -> save and load -> export -> opened by transformers."""
    tok, there = train_bpe(TEXTS, n_vocab), published(hf, n_layer, n_head, n_vocab)
    there.save_pretrained(tmp_path / "there")
    here = GPT2.from_pretrained(tmp_path / "there")
    assert here.config == GPT2Config(n_vocab, 40, n_layer, n_head, 4 * n_head)
    here.save(tmp_path / "here")
    here = GPT.load(tmp_path / "here")
    export(here, tok, tmp_path / "back")
    back = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    check_same_model(here, back, tok.end)
    before, after = there.state_dict(), back.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert back.config.eos_token_id == back.generation_config.eos_token_id == tok.end


# What torch.save has got of a state dict that holds embedding and head, for one that is published.
PICKLED = {
    "PyTorch's file": dict, "checkpoint": lambda s: {"model": s, "optimizer": {"state": {}}, "iter_num": 3},
    "Lightning": lambda s: {"state_dict": {f"model.{name}": w for name, w in s.items()}, "epoch": 3},
    "DeepSpeed": lambda s: {"module": {f"gpt.{name}": w for name, w in s.items()}, "ds_version": "0.15"},
    "compiled and parallel": lambda s: {f"module._orig_mod.{name}": w for name, w in s.items()} | {"epoch": 3},
    "head alone": lambda s: {name: w for name, w in s.items() if name != "transformer.wte.weight"},
    "no head": lambda s: {name: w for name, w in s.items() if name != "lm_head.weight"},
    "padded": lambda s: s | {name: torch.cat([s[name], torch.ones(5, 12)]) for name in
                             ("lm_head.weight", "transformer.wte.weight")},
    "(out, in)": lambda s: {name: w.T if name.endswith(gpt2.TRANSPOSED) else w for name, w in s.items()}}


@pytest.mark.parametrize("how", ["with masks", "in parts", "no prefix", "half precision", *PICKLED])
def test_the_forms_in_which_weights_are_kept(how, hf, tmp_path):
    there = published(hf).half() if how == "half precision" else published(hf)
    model = there.transformer if how == "no prefix" else there
    model.save_pretrained(tmp_path, max_shard_size="5KB" if how.endswith("parts") else "1GB")
    if how == "with masks":  # as published, or with the head
        from safetensors.torch import load_file, save_file
        more = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 40, 40).tril() for i in range(2)}
        more["lm_head.weight"] = there.lm_head.weight.detach().clone()
        save_file(load_file(tmp_path / "model.safetensors") | more, tmp_path / "model.safetensors")
    if how in PICKLED:
        (tmp_path / "model.safetensors").unlink()
        torch.save(PICKLED[how](there.state_dict()), tmp_path / "pytorch_model.bin")
    assert (len([*tmp_path.glob("*.safetensors")]) > 2) == how.endswith("parts")
    here = GPT2.from_pretrained(tmp_path)
    assert {p.dtype for p in here.parameters()} == {torch.float32}
    check_same_model(here, there.float())


def check_refused(where, said):
    with pytest.raises(ValueError) as error:
        GPT2.from_pretrained(where)
    assert said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("changes, said", [
    ({"scale_attn_by_inverse_layer_idx": True}, "is True"), ({"scale_attn_weights": False}, "is False"),
    ({"n_inner": 13}, "n_inner is 13"), ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"), ({"add_cross_attention": True}, "is True"),
    ({"tie_word_embeddings": False}, "is False"), ({"quantization_config": {"bits": 4}}, "{'bits': 4}"),
    ({"model_type": "gpt_neo"}, "expected 'gpt2'"), ({"n_head": None}, "n_head is None"),
    ({"n_embd": "12"}, "n_embd is '12'"), ({"n_head": 5}, "a multiple of 2 n_head"),
    ({"vocab_size": 260}, "no GPT-2 that is computed here"), ({"n_layer": 3}, "Missing key"),
    ({"n_inner": 48, "activation_function": "gelu_pytorch_tanh", "resid_pdrop": 0.0}, None)], ids=str)
def test_another_architecture_is_refused_by_name(changes, said, hf, tmp_path):
    published(hf).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    if said is None:
        GPT2.from_pretrained(tmp_path)
    else:
        check_refused(tmp_path, said)


@pytest.mark.parametrize("change, said", [
    ({"lm_head.weight": torch.zeros(264, 12)}, "lm_head.weight; found (259, 12) and (264, 12)"),
    ({"transformer.h.1.ln_2.bias": None}, "h.1.ln_2.bias"),
    ({"ref.transformer.h.1.ln_2.bias": torch.zeros(12)}, "h.1.ln_2.bias is there twice"),
    ({"transformer.h.0.ln_1.weight": torch.zeros(12, dtype=torch.int8)}, "torch.int8"),
    ({"transformer.h.0.ln_1.weight": torch.full((12,), math.nan)}, "finite")], ids=range(5))
def test_damaged_weights_are_refused_in_one_line(change, said, hf, tmp_path):
    published(hf).save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file
    state = load_file(tmp_path / "model.safetensors") | change
    save_file({name: tensor for name, tensor in state.items() if tensor is not None},
              tmp_path / "model.safetensors")
    check_refused(tmp_path, said)


def test_damaged_folders_are_refused_in_one_line(hf, tmp_path):
    there, path = published(hf), tmp_path / "model.safetensors"
    there.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file
    save_file(load_file(path) | {"transformer.h.0.attn.lora.weight": torch.zeros(2)}, path)
    check_refused(tmp_path, "lora")
    save_file({name: w for name, w in there.state_dict().items() if name.startswith("transformer.h")}, path)
    check_refused(tmp_path, "found None and None beside transformer.h.0.")
    path.write_bytes(b"\0" * 99)
    check_refused(tmp_path, "model.safetensors: ")
    path.rename(tmp_path / "optimizer.pt")
    check_refused(tmp_path, "no model.safetensors or pytorch_model.bin, whole or in parts, but config.json, ")
    for content, said in ((there, "pytorch_model.bin: UnpicklingError"), ([1], "beside no weights"),
                          ({"optimizer": {}, "epoch": 3}, "beside no weights"), (b"", "pytorch_model.bin: ")):
        torch.save(content, tmp_path / "pytorch_model.bin")
        check_refused(tmp_path, said)
    (tmp_path / "config.json").write_text("[", encoding="utf-8")
    check_refused(tmp_path, "JSONDecodeError")


def test_by_name(hf, tmp_path, monkeypatch):
    there = published(hf)
    there.save_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path))
    check_same_model(GPT2.from_pretrained("owner/gpt2-xl"), there)

    def offline(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    check_refused("gpt2-xl", "no such folder, and not downloaded (ConnectionError: no route to host")


def strings(n):
    """n strings: any characters, those of a few scripts, white space, and special tokens spelled out."""
    rng, every = random.Random(0), [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    pools = [every, every[0x20:0x600] + every[0x4e00:0x4f00], list("abcdlrsTV 's\t\n\r 129.<|>"),
             ["<|end|>", "<|sep|>", "<|endoftext|>", "Anna", " took", "\n", "  ", "\r\n", "e\u0301", "\x1c",
              "\x85", "\u2028", "\xa0", "½", "٣", "👩\u200d👧", "日本", "\0", "1111111"]]
    return ["".join(rng.choices(pools[i % 4], k=rng.randrange(50))) for i in range(n)]


def test_the_same_ids_and_the_same_text(tok, hf, tmp_path):
    export(student(tok, n_layer=1, n_embd=6), tok, tmp_path / "hf")
    there, rng = hf.AutoTokenizer.from_pretrained(tmp_path / "hf"), random.Random(1)
    assert len(there) == there.vocab_size == tok.n_vocab and there.model_max_length == 48
    assert there.eos_token_id == there.bos_token_id == tok.end
    assert set(there("a")) == {"input_ids", "attention_mask"}
    codes = [*range(0x3400), *range(0x3400, 0xD800, 16), *range(0xE000, 0x110000, 99)]
    for text in ["".join(f"a{chr(c)}1 {chr(c)}!" for c in codes[i::40]) for i in range(40)] + strings(1000):
        ids = tok.encode(text)
        assert there(text)["input_ids"] == ids and there.decode(ids) == text, ascii(text)
        drawn = rng.choices(range(tok.n_vocab), k=10)  # also parts of characters
        assert there.decode(drawn) == tok.decode(drawn)
    for name, i in tok.specials.items():
        assert not set(tok.specials.values()) & set(there.encode(f"a{name} {name}\n{name}"))
        assert there.convert_tokens_to_ids(name) == i and there.convert_ids_to_tokens(i) == name
    assert there.decode([*tok.encode("Anna took"), tok.end], skip_special_tokens=True) == "Anna took"


def test_a_bounded_pattern_and_a_token_that_no_merges_make(own, hf, tmp_path):
    """cl100k_base bounds runs of digits by "{1,3}+"; tiktoken finds "qxqzq" where it is a whole word."""
    ranks = own.ranks | {token: len(own.ranks) + i for i, token in enumerate([b"11", b"1111", b"qxqzq"])}
    tok = with_specials("other", ranks, r" ?\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s")
    export(student(tok, n_layer=1, n_embd=6), tok, tmp_path / "hf")
    there = hf.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert len(tok.encode("qxqzq")) == 1 and len(tok.encode("qxqzqa")) == 6
    for text in ["qxqzq", "qxqzqa", "qxqzq\nqxqzq", *strings(200)]:
        assert there(text)["input_ids"] == tok.encode(text), ascii(text)


def test_merges_follow_from_the_ids():
    ranks = {b"a": 0, b"b": 1, b"abab": 2, b"ab": 3, b"a ": 4, b"aba": 5}
    assert merges_of(ranks) == ["a b", "a Ġ", "ab a"]  # of abab four parts are left


def test_the_command_exports_a_student(own, hf, tmp_path, capsys):
    here = student(own)
    here.save(tmp_path / "student", {"tokens_seen": 1})
    own.save(tmp_path / "student")
    gpt2.main([str(tmp_path / "student"), str(tmp_path / "hf")])
    assert f"{here.num_params():,} parameters" in capsys.readouterr().out
    check_same_model(here, hf.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval(), own.end)


def test_exports_that_cannot_be(own, tmp_path):
    with pytest.raises(ValueError, match="layout is 'modern', but transformers has 'gpt2' alone: train with --layout"):
        export(GPT(GPTConfig(own.n_vocab, n_layer=1, n_embd=16)), own, tmp_path / "hf")
    with pytest.raises(ValueError, match="the tokenizer has 501 ids, the model 502"):
        export(GPT2(GPT2Config(502, n_layer=1, n_embd=16)), own, tmp_path / "hf")
    with pytest.raises(ValueError, match="is there already; name a new folder"):
        export(student(own), own, tmp_path)
    assert not [*tmp_path.iterdir()]
