"""Tests of data/gpt2.py and data/gpt2_tokenizer.py: GPT-2 against transformers, there and back. Skipped without it."""
import json
import os
import random
import runpy
import sys
from pathlib import Path

import pytest
import torch

from data import world
from adapters.gpt2 import export
from adapters.gpt2_tokenizer import GPT2_PATTERN, SPELLING, merges_of, read_tokenizer, tokenizer_files
from data.tokenizer import Tokenizer, get_tokenizer, learn_merges, train_bpe
from model import GPT, GPTConfig

transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"gpt2": (12, 12, 259), "gpt2-medium": (24, 16, 301), "gpt2-large": (36, 20, 333), "gpt2-xl": (48, 25, 357)}
TEXTS = [" ".join(sentences) for sentences in world.plain(200, "test gpt2")]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)        # models of this width lose time on a second one


@pytest.fixture(scope="module")
def own():
    return train_bpe(TEXTS, 501)


@pytest.fixture(scope="module")
def gpt2(own):
    """A stand-in for tiktoken's gpt2, so that no network is needed: its pattern, its order of bytes, other merges."""
    order = sorted(range(256), key=lambda b: (ord(SPELLING[b]) >= 256, b))          # "!" is 0, a space 220
    ranks = {bytes([b]): i for i, b in enumerate(order)} | {token: i for token, i in own.ranks.items() if i >= 256}
    n = len(ranks)
    return Tokenizer("gpt2", ranks, GPT2_PATTERN, {"<|endoftext|>": n, "<|sep|>": n + 1}, "<|endoftext|>", "<|sep|>")


@pytest.fixture(params=["own", "gpt2", "published"])
def tok(request):
    """Every tokenizer that can be exported; the published one only where it can be had without a network."""
    if request.param != "published":
        return request.getfixturevalue(request.param)
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        pytest.skip("TIKTOKEN_CACHE_DIR names no folder that holds gpt2")
    return get_tokenizer("gpt2")


def published(n_layer=2, n_head=3, n_vocab=259, seed=0, **fields):
    """A GPT-2 of transformers at reduced width, in which every parameter matters (biases start at 0, norms at 1)."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(**{
        "vocab_size": n_vocab, "n_positions": 40, "n_embd": 4 * n_head, "n_layer": n_layer, "n_head": n_head,
        "bos_token_id": n_vocab - 2, "eos_token_id": n_vocab - 2, **fields})
    there = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in there.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return there


def student(tok, seed=0, **fields):
    """A GPT of GPT-2's layout for this tokenizer, in which every parameter matters."""
    torch.manual_seed(seed)
    here = GPT(GPTConfig(**{"n_vocab": tok.n_vocab, "block_size": 48, "n_layer": 3, "n_head": 3, "n_embd": 24,
                            "layout": "gpt2", **fields}))
    with torch.no_grad():
        for p in here.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return here


@torch.no_grad()
def logits_of(model, ids):
    return model.logits(model.hidden(ids)) if isinstance(model, GPT) else model(ids).logits


def check_same_logits(here, there):
    ids = torch.randint(0, here.config.n_vocab, (2, 40), generator=torch.Generator().manual_seed(1))
    ours, theirs = logits_of(here, ids), logits_of(there, ids)
    assert theirs.std() > 0.5 and (ours - theirs).abs().max() < 1e-4
    return ids


def check_same_model(here, there, eos):
    """Logits, and the greedy continuation of two prompts of different lengths, each alone there, side by side here."""
    ids = check_same_logits(here, there)
    prompts = [ids[0, :7].tolist(), ids[1, :3].tolist()]
    new = here.generate(prompts, 12, temperature=0, stop=eos)
    for prompt, ours in zip(prompts, new):
        row = there.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=eos)[0]
        assert row[len(prompt):].tolist() == ours


# ---------------------------------------------------------------------------------------------------------------------
# weights

@pytest.mark.parametrize("size", SIZES)
def test_there_and_back(size, tmp_path):
    """Made by transformers -> from_pretrained -> save and load -> export -> opened by transformers."""
    n_layer, n_head, n_vocab = SIZES[size]
    tok = train_bpe(TEXTS, n_vocab)
    assert tok.n_vocab == n_vocab
    there = published(n_layer, n_head, n_vocab)
    there.save_pretrained(tmp_path / "there")
    here = GPT.from_pretrained(tmp_path / "there")
    assert here.config == GPTConfig(n_vocab, 40, n_layer, n_head, 4 * n_head, layout="gpt2")
    check_same_logits(here, there)
    here.save(tmp_path / "here")
    here = GPT.load(tmp_path / "here")
    check_same_logits(here, there)
    export(here, tok, tmp_path / "back")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    check_same_model(here, back, tok.end)
    before, after = there.state_dict(), back.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert back.config.eos_token_id == back.generation_config.eos_token_id == tok.end
    assert sum(p.numel() for p in back.parameters()) == here.num_params()


@pytest.mark.parametrize("how", ["safetensors", "bin", "safetensors in parts", "bin in parts", "no prefix"])
def test_the_forms_in_which_weights_are_kept(how, tmp_path):
    there = published()
    model = there.transformer if how == "no prefix" else there
    model.save_pretrained(tmp_path, max_shard_size="5KB" if how.endswith("parts") else "1GB")
    if how.startswith("bin"):
        files = sorted(tmp_path.glob("*.safetensors"))
        for file in files:
            state = safetensors_file(file)
            if "lm_head.weight" not in state and "transformer.wte.weight" in state:     # as old versions wrote it
                state["lm_head.weight"] = state["transformer.wte.weight"]
            for i in range(2):                                                          # and the masks
                state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 40, 40).tril().bool()
                state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
            torch.save(state, tmp_path / file.name.replace("safetensors", "bin").replace("model", "pytorch_model"))
            file.unlink()
        for index in tmp_path.glob("*.index.json"):
            text = index.read_text(encoding="utf-8").replace("safetensors", "bin").replace('"model', '"pytorch_model')
            (tmp_path / "pytorch_model.bin.index.json").write_text(text, encoding="utf-8")
            index.unlink()
    n_files = len([*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")])
    assert n_files > 2 if how.endswith("parts") else n_files == 1
    check_same_model(GPT.from_pretrained(tmp_path), there, 257)


def safetensors_file(path):
    from safetensors.torch import load_file
    return load_file(path)


def test_half_precision_is_read_as_float32(tmp_path):
    there = published().half()
    there.save_pretrained(tmp_path)
    here = GPT.from_pretrained(str(tmp_path))
    assert {p.dtype for p in here.parameters()} == {torch.float32}
    check_same_model(here, there.float(), 257)


def test_new_ids_change_nothing_for_the_others(tmp_path):
    there = published()
    there.save_pretrained(tmp_path)
    ids = torch.randint(0, 259, (2, 30), generator=torch.Generator().manual_seed(1))
    logits, expected = logits_of(GPT.from_pretrained(tmp_path, n_vocab=261), ids), logits_of(there, ids)
    assert logits.shape == (2, 30, 261) and (logits[..., :259] - expected).abs().max() < 1e-4
    torch.testing.assert_close(logits[..., 259:], expected.mean(-1, keepdim=True).expand(-1, -1, 2), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="n_vocab is 258, but there are 259 ids"):
        GPT.from_pretrained(tmp_path, n_vocab=258)


@pytest.mark.parametrize("size, n", [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080),
                                     ("gpt2-xl", 1_557_611_200)])
def test_published_sizes(size, n):
    """Parameters of the real ones, and the same by transformers (without memory for them)."""
    n_layer, n_head, _ = SIZES[size]
    with torch.device("meta"):
        here = GPT(GPTConfig(50257, 1024, n_layer, n_head, 64 * n_head, layout="gpt2"))
        there = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=64 * n_head))
    assert here.num_params() == there.num_parameters() == n


# ---------------------------------------------------------------------------------------------------------------------
# what cannot be read is refused in one line

def edit(file, **changes):
    path = Path(file)
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(changes)
    path.write_text(json.dumps({k: v for k, v in content.items() if v != "gone"}), encoding="utf-8")


@pytest.mark.parametrize("changes, said", [
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ({"n_inner": 13}, "n_inner is 13"),
    ({"activation_function": "relu"}, "activation_function is 'relu'"),
    ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
    ({"scale_attn_weights": False}, "scale_attn_weights is False"),
    ({"add_cross_attention": True}, "add_cross_attention is True"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ({"quantization_config": {"bits": 4}}, "quantization_config is"),
    ({"model_type": "gpt_neo"}, "model_type is 'gpt_neo', but expected 'gpt2'"),
    ({"model_type": "gone"}, "GPT.load"),
    ({"n_head": "gone"}, "n_head is None"),
    ({"n_embd": "12"}, "n_embd is '12'"),
    ({"n_head": 5}, "n_embd 12 is not a multiple of n_head 5"),
    ({"vocab_size": 260}, "not those that its config.json describes"),
    ({"n_layer": 3}, "not those that its config.json describes"),
])
def test_another_architecture_is_refused_by_name(changes, said, tmp_path):
    published().save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **changes)
    check_refused(tmp_path, said)


def check_refused(where, said):
    with pytest.raises(ValueError) as error:
        GPT.from_pretrained(where)
    assert said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("fields", [{"n_inner": 48}, {"activation_function": "gelu_pytorch_tanh"},
                                    {"reorder_and_upcast_attn": True}, {"resid_pdrop": 0.0}])
def test_fields_that_change_nothing_are_accepted(fields, tmp_path):
    there = published(**fields)
    there.save_pretrained(tmp_path)
    check_same_model(GPT.from_pretrained(tmp_path), there, 257)


def spoil_weights(folder, change):
    from safetensors.torch import save_file
    state = safetensors_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("spoil, said", [
    (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors and no pytorch_model.bin"),
    (lambda d: (d / "model.safetensors").write_bytes(b"\0" * 99), "no weights can be read from it"),
    (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "no weights can be read from it"),
    (lambda d: (d / "config.json").unlink(), "config.json: no such file"),
    (lambda d: (d / "config.json").write_text("[", encoding="utf-8"), "not a JSON object"),
    (lambda d: spoil_weights(d, lambda s: s.update({"lm_head.weight": s["transformer.wte.weight"] + 1})), "lm_head.weight"),
    (lambda d: spoil_weights(d, lambda s: s.pop("transformer.wte.weight")), "wte.weight"),
    (lambda d: spoil_weights(d, lambda s: s.pop("transformer.h.1.ln_2.bias")), "h.1.ln_2.bias"),
    (lambda d: spoil_weights(d, lambda s: s.update({"transformer.h.0.attn.lora.weight": torch.zeros(2)})), "lora"),
    (lambda d: spoil_weights(d, lambda s: s.update(
        {"transformer.h.0.ln_1.weight": torch.zeros(12, dtype=torch.int8)})), "torch.int8"),
    (lambda d: (d / "model.safetensors").rename(d / "x") and (d / "model.safetensors.index.json").write_text(
        '{"weight_map": {"wte.weight": "../x"}}', encoding="utf-8"), "files of this folder"),
    (lambda d: (d / "model.safetensors").rename(d / "x") and (d / "model.safetensors.index.json").write_text(
        '{"weight_map": {"wte.weight": "y.safetensors"}}', encoding="utf-8"), "y.safetensors: no weights"),
])
def test_damaged_folders_are_refused_in_one_line(spoil, said, tmp_path):
    published().save_pretrained(tmp_path)
    spoil(tmp_path)
    check_refused(tmp_path, said)


def test_by_name(tmp_path, monkeypatch):
    """The safetensors are asked for first, the pickled weights only where there are none."""
    there, asked = published(), []
    there.save_pretrained(tmp_path)

    def download(name, allow_patterns):
        asked.append((name, any("bin" in pattern for pattern in allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    check_same_model(GPT.from_pretrained("gpt2-xl"), there, 257)
    assert asked == [("gpt2-xl", False)]
    torch.save(there.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    check_same_model(GPT.from_pretrained("owner/gpt2-xl"), there, 257)
    assert asked[1:] == [("owner/gpt2-xl", False), ("owner/gpt2-xl", True)]


def test_what_cannot_be_downloaded_is_one_line(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    check_refused("gpt2-xl", "gpt2-xl: no such folder, and it could not be downloaded (ConnectionError: no route to host)")
    check_refused("./gpt2-xl", "expected one in Hugging Face's format, or a name")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    published().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    check_refused(tmp_path, 'package safetensors is missing; try pip install -e ".[hf]"')
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    check_refused("gpt2-xl", "package huggingface_hub is missing")


# ---------------------------------------------------------------------------------------------------------------------
# tokenizers

def strings(n, seed=0):
    """n strings: any characters, those of a few scripts, awkward white space and quotes, special tokens spelled out."""
    rng = random.Random(seed)
    codes = [*range(0xD800), *range(0xE000, 0x110000)]
    scripts = [*range(0x20, 0x250), *range(0x370, 0x600), *range(0x4e00, 0x4f00), *range(0x1f300, 0x1f700)]
    pieces = ["<|end|>", "<|sep|>", "<|endoftext|>", "Anna", " took", " a train", "\n", "  ", "\r\n", "e\u0301", "\u0130",
              "\x1c", "\x85", "\u2028", "\xa0", "½", "٣", "👩\u200d👧", "日本", "\0"]
    for i in range(n):
        pool = (codes, scripts, [ord(c) for c in "abcdlrsTV 's\t\n\r 129.<|>"], None)[i % 4]
        yield "".join(rng.choice(pieces) if pool is None else chr(rng.choice(pool)) for _ in range(rng.randrange(50)))


def exported(tok, folder):
    """The tokenizer files of a student in a folder, opened by transformers as its users do."""
    export(student(tok, n_layer=1, n_embd=3), tok, folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_the_same_ids_and_the_same_text(tok, tmp_path):
    there, rng = exported(tok, tmp_path / "hf"), random.Random(1)
    assert len(there) == there.vocab_size == tok.n_vocab and there.model_max_length == 48
    assert there.eos_token_id == there.bos_token_id == tok.end and set(there("a")) == {"input_ids", "attention_mask"}
    for text in strings(1000):
        ids = tok.encode(text)
        assert there(text)["input_ids"] == ids, ascii(text)
        assert there.decode(ids) == text == tok.decode(ids)
        drawn = [rng.randrange(tok.n_vocab) for _ in range(10)]         # also halves of characters, and special tokens
        assert there.decode(drawn) == tok.decode(drawn)


def test_every_character(tok, tmp_path):
    """Between a letter and a digit, behind a space, and before a sign; every 16th of the Chinese and Korean ones, every
    128th beyond the basic plane."""
    there = exported(tok, tmp_path / "hf")
    codes = [*range(0x3400), *range(0x3400, 0xD800, 16), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 128)]
    for start in range(0, len(codes), 1000):
        text = "".join(f"a{c}1 {c}!" for c in map(chr, codes[start:start + 1000]))
        assert there(text)["input_ids"] == tok.encode(text)


def test_special_tokens_cannot_be_forged_there_either(tok, tmp_path):
    there = exported(tok, tmp_path / "hf")
    for name, i in tok.specials.items():
        text = f"a{name} {name}\n{name}"
        assert there(text)["input_ids"] == there.encode(text) == tok.encode(text)
        assert not set(tok.specials.values()) & set(there.encode(text))
        assert there.convert_tokens_to_ids(name) == i and there.convert_ids_to_tokens(i) == name
    assert there.decode([*tok.encode("Anna took"), tok.end], skip_special_tokens=True) == "Anna took"


def test_words_of_other_published_patterns(own, tmp_path):
    """cl100k_base bounds runs of digits with "{1,3}+", which would have no bound in the other regular expressions."""
    pattern = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
               r"\s+(?!\S)|\s")
    ranks = dict(own.ranks) | {token: len(own.ranks) + i for i, token in enumerate((b"11", b"1111"))}
    n = len(ranks)
    tok = Tokenizer("cl100k_base", ranks, pattern, {"<|endoftext|>": n, "<|sep|>": n + 1}, "<|endoftext|>", "<|sep|>")
    there = exported(tok, tmp_path / "hf")
    assert len(tok.encode("1111111")) == 5
    for text in ["1111111", *strings(1000)]:
        assert there(text)["input_ids"] == tok.encode(text), ascii(text)


def test_a_token_that_no_merges_make(own, tmp_path):
    """tiktoken knows it where it is a whole word, and only there."""
    ranks = dict(own.ranks) | {b"qxqzq": len(own.ranks)}
    n = len(ranks)
    tok = Tokenizer("bpe", ranks, own.pattern, {"<|end|>": n, "<|sep|>": n + 1}, "<|end|>", "<|sep|>")
    there = exported(tok, tmp_path / "hf")
    assert tok.encode("qxqzq") == [n - 1] and len(tok.encode("qxqzqa")) == 6
    for text in ("qxqzq", "qxqzqa", " qxqzq", "qxqzq\nqxqzq"):
        assert there(text)["input_ids"] == tok.encode(text)


def test_merges_follow_from_the_ids(own):
    words = [list(word.encode()) for text in TEXTS for word in text.split()]
    tokens, expected = [bytes([b]) for b in range(256)], []
    for left, right in learn_merges(words, [1] * len(words), 300):
        expected.append(" ".join("".join(SPELLING[b] for b in tokens[side]) for side in (left, right)))
        tokens.append(tokens[left] + tokens[right])
    assert merges_of({token: i for i, token in enumerate(tokens)}) == expected and len(expected) == 300
    assert merges_of({b"a": 0, b"b": 1, b"abab": 2, b"ab": 3, b"a ": 4}) == ["a b", "a Ġ"]  # of abab 4 parts are left


def test_the_spelling_of_bytes_is_the_published_one():
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    assert bytes_to_unicode() == SPELLING and len(set(SPELLING.values())) == 256
    assert [SPELLING[b] for b in (0, 10, 32, 33, 127, 160, 173, 255)] == list("ĀĊĠ!ġłŃÿ")


def test_the_pattern_is_tiktokens():
    from tiktoken_ext import openai_public
    assert getattr(openai_public, "r50k_pat_str", GPT2_PATTERN) == GPT2_PATTERN


def test_a_tokenizer_comes_back_from_an_export(tok, tmp_path):
    export(student(tok, n_layer=1, n_embd=3), tok, tmp_path / "hf")
    back = read_tokenizer(tmp_path / "hf")
    assert (back.hash, back.end, back.sep) == (tok.hash, tok.end, tok.sep)
    assert sorted(os.listdir(tmp_path)) == ["hf"]
    assert (tmp_path / "hf" / "merges.txt").exists() == (tmp_path / "hf" / "vocab.json").exists() == (tok.name == "gpt2")


@pytest.mark.parametrize("how", ["tokenizer.json", "vocab.json"])
def test_the_tokenizer_of_gpt2_gets_a_separator(how, gpt2, tmp_path):
    """From files like the published ones, which have no <|sep|>: the same hash as get_tokenizer gives."""
    vocab = {token: i for token, i in tokenizer_files(gpt2, 48)["vocab.json"].items() if token != "<|sep|>"}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text(tokenizer_files(gpt2, 48)["merges.txt"], encoding="utf-8")
    if how == "tokenizer.json":
        transformers.GPT2TokenizerFast.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / "saved" / name).unlink(missing_ok=True)
    back = read_tokenizer(tmp_path / "saved" if how == "tokenizer.json" else tmp_path)
    assert (back.name, back.hash, back.sep, back.n_vocab) == ("gpt2", gpt2.hash, gpt2.sep, gpt2.n_vocab)
    for text in strings(200):
        assert back.encode(text) == gpt2.encode(text)


def spoil_card(folder, change):
    card = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(card)
    (folder / "tokenizer.json").write_text(json.dumps(card), encoding="utf-8")


@pytest.mark.parametrize("change, said", [
    (lambda c: c["model"]["merges"].reverse(), "its merges are not in the order of its ids"),
    (lambda c: c["model"]["vocab"].pop("Ġ"), "its ids are not 0, 1, 2 and so on"),
    (lambda c: c["model"]["vocab"].update({"日": 7}), "日"),
    (lambda c: c.update(normalizer={"type": "NFC"}), "cuts or changes texts as GPT-2 does not"),
    (lambda c: c["model"].update(type="Unigram"), "cuts or changes texts as GPT-2 does not"),
    (lambda c: c.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), "cuts or changes texts"),
    (lambda c: c.update(pre_tokenizer={"type": "Metaspace"}), "cuts or changes texts as GPT-2 does not"),
    (lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "cuts or changes texts"),
    (lambda c: c.pop("model"), "model"),
    (lambda c: c.update(added_tokens=[]), "<|end|>"),
])
def test_other_tokenizers_are_refused_in_one_line(change, said, own, tmp_path):
    export(student(own, n_layer=1, n_embd=3), own, tmp_path / "hf")
    spoil_card(tmp_path / "hf", change)
    with pytest.raises(ValueError) as error:
        read_tokenizer(tmp_path / "hf")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="vocab.json: "):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{"<|endoftext|>": 0}', encoding="utf-8")
    with pytest.raises((ValueError, OSError), match="merges.txt"):
        read_tokenizer(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# export

def command(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of `python model.py ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["model.py", *map(str, arguments)])
    try:
        runpy.run_path(str(ROOT / "model.py"), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    return code, *capsys.readouterr()


def test_an_exported_student_writes_the_same_text(tok, tmp_path, monkeypatch, capsys):
    """Text to text: encode, continue greedily, decode; a student saved as train.py saves it."""
    here = student(tok)
    here.save(tmp_path / "student", {"tokens_seen": 1})
    tok.save(tmp_path / "student")
    code, stdout, stderr = command(monkeypatch, capsys, "export", tmp_path / "student", tmp_path / "hf")
    assert (code, stderr) == (0, "") and f"{here.num_params():,} parameters" in stdout
    there = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    check_same_model(here, there, tok.end)
    for text in ["Anna took a train to Oslo.", "日本 <|sep|>", "\n\n x"]:
        row = there.generate(**words(text, return_tensors="pt"), do_sample=False, max_new_tokens=20, pad_token_id=tok.end)[0]
        ids = tok.encode(text)
        assert words.decode(row) == tok.decode(ids + here.generate([ids], 20, temperature=0, stop=tok.end)[0])


def test_a_modern_student_is_refused(own, tmp_path, monkeypatch, capsys):
    GPT(GPTConfig(n_vocab=own.n_vocab, n_layer=1, n_embd=16)).save(tmp_path / "student")
    own.save(tmp_path / "student")
    code, stdout, stderr = command(monkeypatch, capsys, "export", tmp_path / "student", tmp_path / "hf")
    assert code == 2 and stdout == "" and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert "layout is 'modern', which transformers has no model for" in stderr and "layout='gpt2'" in stderr
    assert os.listdir(tmp_path) == ["student"]


def test_exports_that_cannot_be(own, gpt2, tmp_path, monkeypatch, capsys):
    here = student(own)
    with pytest.raises(ValueError, match="tokenizer 'bpe' has 501 ids, but the model has 502"):
        export(student(own, n_vocab=502), own, tmp_path / "hf")
    here.save(tmp_path / "student")
    own.save(tmp_path / "student")
    for folder in (tmp_path / "student", tmp_path / "student" / "model.pt"):
        code, _, stderr = command(monkeypatch, capsys, "export", tmp_path / "student", folder)
        assert code == 2 and "is there already; name a new folder" in stderr and stderr.count("\n") == 1
    code, _, stderr = command(monkeypatch, capsys, "export", tmp_path / "nothing", tmp_path / "hf")
    assert code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.tmp").mkdir()
    (tmp_path / "empty.tmp" / "vocab.json").write_text("half", encoding="utf-8")        # of an export that was stopped
    export(here, own, tmp_path / "empty")
    assert sorted(os.listdir(tmp_path / "empty")) == ["config.json", "model.safetensors", "tokenizer.json",
                                                      "tokenizer_config.json"]
    assert not (tmp_path / "empty.tmp").exists()


def test_a_full_disk_leaves_nothing_half_written(own, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("Error while serializing:\nNo space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="hf: not written .*No space left on device.*; is the disk full") as error:
        export(student(own), own, tmp_path / "hf")
    assert "\n" not in str(error.value) and not os.listdir(tmp_path)
