"""Teachers of transformers and of servers: random weights, tokenizers built here, exact sets."""
import importlib.util
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

import train
from data.batches import DataMix
from data.cache import TeacherCache
from data.cache_tools import inspect
from data.cli import run_command
from data.sets import top_p_sets
from data.tokenizer import Tokenizer
from experiments import answers, teacher
from model import GPT
from tests.test_house import FILES, ROOT

V = 100_000             # ids of the tokenizers below, at least
TEXTS = ["Which word is first?", "Anna took 1234 trains to Oslo.", "red blue green", "ﬁne naïve 日本"]
CHAT = ("{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|stop|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}")
EOS, START, STOP = "<|eos|>", "<|start|>", "<|stop|>"


@pytest.fixture(scope="module")
def hf():
    return pytest.importorskip("transformers")


def bytes_and_digits():
    """Byte-level BPE that cuts digits, as SmolLM2's: refused by tiktoken's kind of tokenizer."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers
    fast = Fast(models.BPE())
    cuts = pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)
    fast.pre_tokenizer = pre_tokenizers.Sequence(list(cuts))
    fast.decoder = decoders.ByteLevel()
    fast.train_from_iterator(TEXTS * 9, trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return fast


def pieces_and_normalizer():
    """Pieces with a mark for a space, bytes for what has none, and a normalizer, as Gemma's."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, normalizers
    vocab = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *"▁abcdefghijklmnopqrstuvwxyz"]
    vocab += ["re", "▁re", "▁red"]
    fast = Fast(models.BPE({t: i for i, t in enumerate(vocab)}, [("r", "e"), ("▁", "re"), ("▁re", "d")],
                           unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    fast.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return fast


def write_tokenizer(folder, fast, **card):
    """A folder of at least V ids; the last three: EOS, START, STOP -> {name: id} of these."""
    from tokenizers import AddedToken
    n = fast.get_vocab_size()
    made = json.loads(fast.to_str())
    made["model"]["vocab"] |= {f"<unused {i}>": i for i in range(n, V)}     # no merge makes them
    folder.mkdir(parents=True, exist_ok=True)
    fast = type(fast).from_str(json.dumps(made))
    fast.add_special_tokens([AddedToken(name, normalized=False) for name in (EOS, START, STOP)])
    fast.save(str(folder / "tokenizer.json"))
    card = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "pad_token": EOS,
            "chat_template": CHAT} | card
    (folder / "tokenizer_config.json").write_text(json.dumps(card), encoding="utf-8")
    return {name: fast.token_to_id(name) for name in (EOS, START, STOP)}


KINDS = {"qwen2": dict(tie_word_embeddings=False), "qwen3": dict(head_dim=8, tie_word_embeddings=True),
         "gemma2": dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=8, final_logit_softcapping=60.0),
         "gemma3_text": dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=8)}


def write_model(hf, folder, kind, n_vocab, ends):
    """A tiny model with random weights whose logits are far from uniform."""
    torch.manual_seed(0)
    config = hf.AutoConfig.for_model(
        kind, vocab_size=n_vocab, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, eos_token_id=None,
        bos_token_id=None, pad_token_id=None, **KINDS[kind])
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(100)
        model.get_output_embeddings().weight[ends] *= 2.5                   # an answer ends now and then
    model.generation_config = hf.GenerationConfig(eos_token_id=ends, do_sample=True, top_k=3,
                                                  repetition_penalty=5.0)
    hf.logging.disable_progress_bar()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(hf, tmp_path_factory):
    """{kind: folder} of a model and a tokenizer; heads are padded to a round number of ids."""
    root, found = tmp_path_factory.mktemp("hf"), {}
    for kind in KINDS:
        fast = bytes_and_digits() if kind.startswith("qwen") else pieces_and_normalizer()
        ids = write_tokenizer(root / kind, fast)
        write_model(hf, root / kind, kind, V + 64, [ids[EOS], ids[STOP]])
        found[kind] = root / kind
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_sets_are_those_of_a_plain_forward(kind, folders):
    from adapters.hf import HFTeacher
    mine, drawing = HFTeacher(folders[kind]), {"p": 0.8, "k_cap": 20, "temperature": 1.3}
    tok = mine.tokenizer
    prompts = [tok.prompt_ids(text) for text in TEXTS] + [[5]]
    state = torch.get_rng_state()
    new, sets = mine.draw(prompts, 12, seed=1, **drawing)
    assert torch.equal(state, torch.get_rng_state())                        # the caller's numbers are its own
    again, _ = mine.draw(prompts, 12, seed=1, **drawing)
    other, _ = mine.draw(prompts, 12, seed=2, **drawing)
    assert new == again != other
    sizes = set()
    for prompt, answer, kept in zip(prompts, new, sets):
        assert len(answer) == len(kept) >= 1 and not tok.ends & set(answer[:-1])
        assert len(answer) == 12 or answer[-1] in tok.ends
        with torch.no_grad():
            logits = mine.hf(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1:-1, :tok.n_vocab]
        for token, (ids, log_probs), *expected in zip(answer, kept, *top_p_sets(logits, **drawing)):
            right, their, mask = expected
            assert ids.tolist() == right[mask].tolist() and token in ids
            np.testing.assert_allclose(log_probs, their[mask], atol=2e-4)
            sizes.add(len(ids))
    assert len(sizes) > 2 and mine.block_size == 128 and tok.n_vocab == V + 3


def test_answers_end_at_each_end_id_and_no_top_k_of_the_generation_config_matters(folders):
    from adapters.hf import HFTeacher
    mine = HFTeacher(folders["qwen2"])
    new, sets = mine.draw([mine.tokenizer.encode(f"a{i}") for i in range(32)], 30, p=0.95, k_cap=500, seed=1)
    assert {answer[-1] for answer in new} >= mine.tokenizer.ends
    assert max(list(kept[0]).index(token) for a, s in zip(new, sets) for token, kept in zip(a, s)) >= 3


def small_config(folder, **options):
    return answers.FillConfig(teacher=str(folder), prompts="x", **options)


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text"])
def test_fill_inspect_and_a_student_that_learns(kind, folders, tmp_path, capsys, monkeypatch):
    lines = [json.dumps({"prompt": text}) for text in TEXTS * 10]
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = ["fill", f"--teacher={folders[kind]}", f"--prompts={tmp_path / 'p.jsonl'}", "--device=cpu",
               f"--out_dir={tmp_path / 'out'}", "--k_cap=2", "--max_new=6", "--answers=2", "--dtype=bfloat16",
               "--threads=1"]
    checkpoint, done = answers.CacheWriter.checkpoint, []

    def killed(writer, number):
        checkpoint(writer, number)
        done.append(number)
        if number == 2 and len(done) == 2:
            raise KeyboardInterrupt
    monkeypatch.setattr(answers.CacheWriter, "checkpoint", killed)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        teacher.main(command)
    teacher.main(command)
    assert done == [1, 2, 3, 4]                                             # nothing is asked twice
    cache, tokenizer = TeacherCache(tmp_path / "out" / "cache"), Tokenizer.load(tmp_path / "out" / "cache")
    assert (cache.header["k_cap"], cache.header["tokenizer"]) == (2, tokenizer.hash) and len(cache) == 80
    figures = inspect(tmp_path / "out" / "cache")
    assert 0 < figures["top_7"] <= figures["top_50"] == figures["coverage"] and 0 < figures["at_cap"] <= 1
    assert "at the cap" in capsys.readouterr().out
    assert {answers.END, answers.ANSWER} >= {int(cache.document(i)[1][-1]) for i in range(80)}
    config = train.Config(out_dir=str(tmp_path / "out"), n_head=2, block_size=64, device="cpu")
    student = train.new_model(1, 8, tokenizer, config)
    train.train_model("student", student, DataMix([cache], [1.0]), 600, config, tokenizer)
    tokenizer = Tokenizer.load(tmp_path / "out" / "student")                # as every command opens a student
    assert GPT.load(tmp_path / "out" / "student").config.n_vocab == tokenizer.n_vocab == V + 3
    assert tokenizer.hash == cache.header["tokenizer"]
    importlib.import_module("adapters.sample").main([str(tmp_path / "out" / "student"), "red", "--tokens=3"])
    with pytest.raises(ValueError, match="has no separator of readings"):
        importlib.import_module("adapters.read").main([str(tmp_path / "out" / "student"), "Anna took a bus."])


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_a_tokenizer_is_used_as_it_is(kind, hf, folders, tmp_path):
    from adapters.hf import HFTokenizer
    tok, there = HFTokenizer.load(folders[kind]), hf.PreTrainedTokenizerFast.from_pretrained(folders[kind])
    file = type(there.backend_tokenizer).from_file(str(folders[kind] / "tokenizer.json"))
    for text in [*TEXTS, "", " ", "  a\n\n", "\0\x1b", "👩\u200d👧"]:
        assert tok.encode(text) == there(text, add_special_tokens=False)["input_ids"] == file.encode(text).ids
        decoded = there.decode(tok.encode(text), clean_up_tokenization_spaces=False)
        assert tok.decode(tok.encode(text)) == decoded
        prompt = there.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        assert tok.prompt_ids(text) == getattr(prompt, "input_ids", prompt)
    for encode in (tok.encode, tok.prompt_ids):                             # half a character
        assert encode("a\ud800b") == encode("a\ufffdb")
    assert tok.encode_batch(TEXTS) == [tok.encode(text) for text in TEXTS]
    ids = {name: there.convert_tokens_to_ids(name) for name in (EOS, START, STOP)}
    assert not set(ids.values()) & set(tok.encode(f"a{EOS} {STOP}")) and tok.decode([ids[STOP]]) == STOP
    assert tok.ends == {ids[EOS], ids[STOP]} and tok.end == ids[STOP]       # which the template puts there
    with pytest.raises(ValueError, match=re.escape(f"spells {STOP}, a special token")):
        tok.prompt_ids(f"What is {STOP}?")
    for outside in (-1, tok.n_vocab):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            tok.decode([outside])
    tok.save(tmp_path)
    for back in (Tokenizer.load(tmp_path), HFTokenizer.load(tmp_path / "tokenizer.json")):
        assert (back.hash, back.ends, back.end, str(back)) == (tok.hash, tok.ends, tok.end, str(tok))
        assert back.prompt_ids(TEXTS[1]) == tok.prompt_ids(TEXTS[1])
    assert hf.AutoTokenizer.from_pretrained(tmp_path)(TEXTS)["input_ids"] == tok.encode_batch(TEXTS)
    for name, text, said in (
            ("generation_config", '{"eos_token_id": 7}', "was saved; restore tokenizer.json"),
            ("generation_config", "{", "JSONDecodeError"), ("tokenizer", "{", "EOF while parsing"),
            ("tokenizer_config", "[1]", "TypeError"),
            ("tokenizer_config", '{"chat_template": "{% for"}', "TemplateSyntaxError")):
        tok.save(tmp_path)
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}: cannot be opened .*{said}"):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize("generation, config, eos, expected", [
    (7, 8, EOS, {7, 8, EOS}), ([7, 9], None, None, {7, 9}),
    (None, {"text_config": {"eos_token_id": [5]}}, None, {5}), (None, None, EOS, {EOS}),
    (None, None, None, "expected one or more"), (10 ** 6, None, None, "expected one or more")])
def test_end_ids_stand_in_many_places(generation, config, eos, expected, hf, tmp_path):
    from adapters.hf import HFTokenizer
    ids = write_tokenizer(tmp_path, bytes_and_digits(), eos_token=eos, chat_template=None)
    config = config if isinstance(config, dict) else {"eos_token_id": config}
    cards = {"generation_config": {"eos_token_id": generation}, "config": {"model_type": "qwen2", **config}}
    for name, card in cards.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(card), encoding="utf-8")
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            HFTokenizer.load(tmp_path)
        return
    tok = HFTokenizer.load(tmp_path)
    assert tok.ends == {ids.get(i, i) for i in expected} and tok.end == (ids[EOS] if eos else min(tok.ends))
    assert tok.prompt_ids("red?") == tok.encode("red?\n\nAnswer:")          # without a template


def test_what_cannot_be_a_teacher_is_told_in_one_line(hf, folders, tmp_path):
    from adapters.hf import HFTeacher
    ids = write_tokenizer(tmp_path / "short", bytes_and_digits())
    write_model(hf, tmp_path / "short", "qwen2", V - 1, 7)
    with pytest.raises(ValueError, match=f"99999 logits, but .* has {ids[STOP] + 1} ids, such as '<unused"):
        HFTeacher(tmp_path / "short")
    write_tokenizer(tmp_path / "special", bytes_and_digits())
    write_model(hf, tmp_path / "special", "qwen2", V + 2, ids[EOS])       # no logit for the last special one
    (_, (kept, _)), = HFTeacher(tmp_path / "special").draw([[5]], 2, p=1.0, k_cap=V + 3, seed=1)[1]
    assert kept.max() < V + 2
    mine = HFTeacher(folders["qwen2"])
    for length in (0, 128 - 3):
        with pytest.raises(ValueError, match=f"prompt 1 has {length} tokens; expected 1 to 124"):
            mine.draw([[5], [5] * length], 4, p=0.8, k_cap=9, seed=1)
    (tmp_path / "model.gguf").write_bytes(b"x")
    for where in (tmp_path / "none", tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(ValueError) as error:
            HFTeacher(where)
        said = "cannot be opened" if where.exists() else "no such file or folder"
        assert str(error.value).startswith(f"{where}: {said}")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("options, said", [
    ({}, "expected a --teacher and --prompts"),
    ({"teacher": "http://a/v1"}, "the --model and the --tokenizer"),
    ({"teacher": "http://a/v1", "model": "m", "tokenizer": "t", "dtype": "float32"}, "no effect on a server"),
    ({"teacher": "http://a/v1", "model": "m", "tokenizer": "t", "temperature": 0.5}, "no effect on a server"),
    ({"teacher": "t", "parallel": 2}, "no effect without a server")])
def test_options_without_effect_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        answers.FillConfig(**{"prompts": "x", **options})


def test_a_folder_of_our_own_is_a_teacher_too(tmp_path):
    from data.tokenizer import train_bpe
    tok = train_bpe(TEXTS * 3, 300)
    torch.manual_seed(1)
    GPT(answers.GPT.config_class(tok.n_vocab, 64, 1, 2, 16)).save(tmp_path / "own")
    tok.save(tmp_path / "own")
    draw, tokenizer, block_size, about, model = answers.open_teacher(small_config(tmp_path / "own"))
    prompts = answers.encode_prompts(TEXTS[:2], tokenizer)
    assert prompts == [tok.encode(f"{text}\n\nAnswer:") for text in TEXTS[:2]] and block_size == 64
    cache = answers.answer_cache(tmp_path / "cache", draw, tokenizer, prompts, p=0.9, k_cap=5, about=about,
                                 seed=1, made_by="test", max_new=4)
    assert len(cache) == 2 and cache.header["teacher"]["params"] == model.num_params()
    assert cache.header["k_cap"] == 5 and cache.header["temperature"] == 1.0


# --- servers ----------------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """Answers as llama.cpp or vLLM does, by the model of a class attribute `mine`; `shape` says how."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        if self.shape == "short" and len(body["prompt"]) > 99:
            return self.send_error(400)
        drawing = {"p": 1.0 if self.shape == "no top_p" else max(body["top_p"], 1e-6), "k_cap": body["top_k"]}
        with self.lock:
            (new,), _ = self.mine.draw([body["prompt"]], body["max_tokens"], seed=body["seed"], **drawing)
            with torch.no_grad():
                logits = self.mine.hf(torch.tensor([body["prompt"] + new])).logits[0, -1 - len(new):-1]
        tops = torch.log_softmax(logits[:, :self.mine.n_vocab], -1).topk(body["logprobs"])
        tops = [list(zip(ids.tolist(), values.tolist())) for values, ids in zip(*tops)]
        ends = self.mine.tokenizer.ends
        if self.shape == "hides the end" and new[-1] in ends:
            new, tops = new[:-1], tops[:-1]
        finish = "stop" if len(new) < body["max_tokens"] or new[-1] in ends else "length"
        if self.shape == "llama.cpp":
            found = {"content": [{"id": t, "logprob": 0.0, "top_logprobs": [
                {"id": i, "token": "x", "logprob": x} for i, x in top]} for t, top in zip(new, tops)]}
        else:
            name = "{}" if self.shape == "no ids" else "token_id:{}"
            found = {"tokens": [name.format(t) for t in new],
                     "top_logprobs": [{name.format(i): x for i, x in top} for top in tops]}
        text = self.mine.tokenizer.decode([t for t in new if t not in self.mine.tokenizer.specials.values()])
        text = {"other text": "other", "no text": None}.get(self.shape, text)
        content = json.dumps({"model": "true name", "choices": [
            {"text": text, "finish_reason": finish, "logprobs": found}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(folders):
    """serve(shape) -> (url, the model behind it, bodies of its requests)."""
    from adapters.hf import HFTeacher
    mine, servers = HFTeacher(folders["qwen2"]), []

    def serve(shape):
        kind = type("Kind", (Server,), {"mine": mine, "shape": shape, "bodies": [], "lock": threading.Lock()})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), kind))
        servers[-1].daemon_threads = False                                  # server_close waits for replies
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1", mine, kind.bodies
    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("shape", ["llama.cpp", "vllm"])
def test_a_server_gives_the_sets_of_the_model_behind_it(shape, served, folders):
    url, mine, bodies = served(shape)
    config = small_config(url, model="m", tokenizer=str(folders["qwen2"] / "tokenizer.json"))
    draw, tokenizer, _, about, model = answers.open_teacher(config)
    assert about == {"hash": None, "params": None, "name": "true name"} and model is None
    assert tokenizer.hash == mine.tokenizer.hash
    prompts, drawing = answers.encode_prompts(TEXTS, tokenizer), {"p": 0.8, "k_cap": 500}
    new, sets = draw(prompts, 30, seed=1, **drawing)
    assert any(answer[-1] in tokenizer.ends for answer in new)
    assert bodies[1]["prompt"] in prompts and len({body["seed"] for body in bodies[1:]}) == 4
    assert {bodies[1][name] for name in ("repetition_penalty", "repeat_penalty")} == {1.0}
    assert bodies[1]["samplers"] == ["top_p", "top_k", "temperature"]       # p of all tokens, not of top_k
    for i, (prompt, answer, kept) in enumerate(zip(prompts, new, sets)):
        (right,), (their,) = mine.draw([prompt], 30, seed=1 + i, **drawing)
        assert answer == right
        for (ids, log_probs), (i_right, p_right) in zip(kept, their, strict=True):
            assert ids.tolist() == i_right.tolist()
            np.testing.assert_allclose(log_probs, p_right, atol=1e-4)
    with pytest.raises(ValueError, match="temperature=0.5, but a server's"):
        draw(prompts, 4, p=0.8, k_cap=9, temperature=0.5, seed=1)


@pytest.mark.parametrize("shape, said", [
    ("no ids", "no token ids in .* expected llama.cpp's"), ("no text", "no token ids in .*"),
    ("other text", "expected the tokenizer of the model"),
    ("no top_p", "not in its set of p=0.3"), ("hides the end", "stops behind .* without an end token")])
def test_servers_that_cannot_fill_a_cache_are_told_in_one_line(shape, said, served, folders):
    from adapters.logprobs import EndpointTeacher
    url, mine, _ = served(shape)
    with pytest.raises(ValueError, match=said) as error:
        remote = EndpointTeacher(url, "m", folders["qwen2"])
        prompts, p = [mine.tokenizer.encode(f"a{i}") for i in range(12)], {"no top_p": 0.3}.get(shape, 0.95)
        remote.draw(prompts, 20, p=p, k_cap=100, seed=1)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="127.0.0.1:9/v1/completions: "):
        EndpointTeacher("http://127.0.0.1:9/v1", "m", folders["qwen2"])


def test_a_prompt_that_a_server_refuses_is_told_before_the_others_are_answered(served, folders, tmp_path):
    url, _, bodies = served("short")
    command = ["fill", f"--teacher={url}", "--model=m", f"--tokenizer={folders['qwen2']}", "--max_new=2",
               f"--prompts={tmp_path / 'p.jsonl'}", f"--out_dir={tmp_path / 'out'}"]

    def fill(texts):
        lines = [json.dumps({"prompt": text}) for text in texts]
        (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
        teacher.main(command)
    with pytest.raises(ValueError, match="completions: HTTP 400"):
        fill([*TEXTS * 9, "x y " * 40])
    assert len(bodies) == 2                                                 # the first request, the longest
    fill(TEXTS * 9)                                                         # no earlier run is in the way
    assert len(TeacherCache(tmp_path / "out" / "cache")) == 36


def test_a_drawn_token_is_in_its_set_and_no_request_is_waited_for_after_an_error(served, folders):
    from adapters.logprobs import EndpointTeacher
    remote, held = EndpointTeacher(served("vllm")[0], "m", folders["qwen2"]), threading.Event()
    remote.request = lambda *_: ([(7, {5: -1.0, 6: -1.0, 7: -1.0})], "", "length", None)   # bfloat16: ties
    assert remote.draw([[5]], 1, p=0.5, k_cap=9)[1][0][0][0].tolist() == [7, 5]

    def request(prompt, *_):
        if prompt == [5]:
            raise ValueError("refused")
        assert held.wait(60)
    remote.request, began = request, time.monotonic()
    with pytest.raises(ValueError, match="refused"):
        remote.draw([[5], [6]], 1, p=0.5, k_cap=9)
    assert time.monotonic() - began < 30
    held.set()


# --- without the extra ------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher_options", [["--teacher=x"], ["--teacher=http://127.0.0.1:9/v1", "--model=m",
                                                              "--tokenizer=t"]])
def test_without_the_extra_one_line_says_what_brings_it(teacher_options, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("data.cli.STOPS", [])
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}', encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        run_command(lambda: teacher.main(["fill", f"--prompts={tmp_path / 'p.jsonl'}", *teacher_options]))
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and 'pip install -e ".[hf]" brings it' in said


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_module_needs_the_extra_to_be_imported(file, monkeypatch):
    for name in ("transformers", "tokenizers", "safetensors", "huggingface_hub"):
        for module in [name, *(m for m in sys.modules if m.startswith(f"{name}."))]:
            monkeypatch.setitem(sys.modules, module, None)
    name = "without_" + str(file).replace("/", "_").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, ROOT / file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
