"""Prompts with responses, and the whole experiment of a teacher and a smaller student on a few of them."""
import json
import random
import re
import sys

import numpy as np
import pytest
import torch

import train
from adapters.gpt2 import GPT2, GPT2Config, export
from adapters.instructions import read_instructions
from data.batches import Batch
from data.cache import TeacherCache
from data.cli import run_command
from data.documents import role_weights
from data.files import read_json, weights_hash
from data.tokenizer import Tokenizer, train_bpe
from experiments import pair
from model import GPT

WORDS = "red blue green small large old new cat dog house tree river stone bird".split()


@pytest.fixture(autouse=True)
def one_draw(monkeypatch):
    monkeypatch.setattr(pair, "DRAWS", 1)               # for speed


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n \n" for record in records), encoding="utf-8")
    return path


def test_every_field_name_is_read(tmp_path):
    path = write(tmp_path / "x.jsonl", [
        {"instruction": " Say hello. ", "input": "", "output": "Hello."}, {"prompt": "1 + 1?", "output": "2"},
        {"instruction": "Name it.", "context": "A cat.", "response": "cat", "category": "x"}])
    assert read_instructions(path) == [("Say hello.", "Hello."), ("1 + 1?", "2"),
                                       ("Name it.\n\nA cat.", "cat")]
    with pytest.raises(ValueError, match="no prompts"):
        read_instructions(write(path, []))


def test_selfinst_and_vicuna_are_read_as_they_are_published(tmp_path, capsys):
    """user_oriented_instructions.jsonl and question.jsonl; the last has no references."""
    path = write(tmp_path / "user.jsonl", [
        {"id": "user_oriented_task_0", "motivation_app": "Grammarly", "instruction": "Shorten it.",
         "instances": [{"input": "A long line.", "output": "A line."}, {"input": "", "output": "None."}]}])
    assert read_instructions(path) == [("Shorten it.\n\nA long line.", "A line."), ("Shorten it.", "None.")]
    path = write(tmp_path / "question.jsonl", [
        {"question_id": 1, "text": "How do I rest?", "category": "generic"}])
    assert read_instructions(path, responses=False) == [("How do I rest?", "")]
    with pytest.raises(ValueError, match="question.jsonl: no prompts with responses"):
        read_instructions(path)
    assert read_instructions(write(path, [{"instruction": "a", "instances": []}]), False) == [("a", "")]
    path = write(path, [{"instruction": "a"}, {"instruction": "b", "output": "c"}])
    assert read_instructions(path) == [("b", "c")] and "1 rows without a response" in capsys.readouterr().out
    assert read_instructions(path, responses=False) == [("a", ""), ("b", "c")]


def test_an_array_is_read_and_an_empty_response_left_out(tmp_path, capsys):
    """As Alpaca is published, some rows without an output; the line ends are those of Windows."""
    rows = [{"instruction": "Say\r\nhello.", "input": "", "output": "Hello."},
            {"instruction": "a", "output": " "}]
    for content in (json.dumps(rows, indent=4).replace("\n", "\r\n"), "\r\n".join(map(json.dumps, rows))):
        (tmp_path / "x.json").write_bytes(("\ufeff" + content).encode())
        assert read_instructions(tmp_path / "x.json") == [("Say\nhello.", "Hello.")]
        place = "row 2" if content[0] == "[" else "line 2"
        said = f"{tmp_path / 'x.json'}: 1 rows without a response left out, first {place}\n"
        assert capsys.readouterr().out == said
    (tmp_path / "x.json").write_text(json.dumps([*rows, {"output": "b"}]), encoding="utf-8")
    with pytest.raises(ValueError, match="x.json: row 3: expected an object with"):
        read_instructions(tmp_path / "x.json")
    (tmp_path / "x.json").write_text(json.dumps(rows)[:-1], encoding="utf-8")
    with pytest.raises(ValueError, match="x.json: Expecting ',' delimiter: line 1 column"):
        read_instructions(tmp_path / "x.json")


@pytest.mark.parametrize("line, message", [
    ("{", ": line 2: expected a JSON object, found {"), ("[]", ": line 2: expected a JSON object, found []"),
    ('{"output": "a"}', ': line 2: expected an object with "instruction"'),
    ('{"instruction": "a", "instances": "b"}', ': line 2: expected "instances" to be a list of objects'),
    ('{"prompt": " ", "response": "b"}', ": line 2: expected an object")])
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"x.jsonl{message}")):
        read_instructions(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher, a student and twenty prompts, each answered by a word of it."""
    folder, rng = tmp_path_factory.mktemp("pair"), random.Random(0)
    drawn = [rng.sample(WORDS, 3) for _ in range(20)]
    write(folder / "x.jsonl", [{"instruction": "Which word is first?", "input": " ".join(words),
                                "output": words[0]} for words in drawn])
    tokenizer = train_bpe([" ".join(WORDS) + " Which word is first?\n\nAnswer:"] * 3, 300)
    for name, vocabulary, layers, channels in (("teacher", tokenizer, 2, 32), ("student", tokenizer, 1, 16),
                                               ("other", train_bpe([" ".join(WORDS)], 280), 1, 16)):
        torch.manual_seed(1)
        GPT2(GPT2Config(vocabulary.n_vocab, 256, layers, 2, channels)).save(folder / name)
        vocabulary.save(folder / name)
    return folder


def run(folder, *more, teacher="teacher", out="out"):
    given = {"corpus": folder / "x.jsonl", "out_dir": folder / out, "teacher": teacher and folder / teacher}
    pair.main([*(f"--{name}={path}" for name, path in given.items() if path), "--start_tokens=300",
               "--student_tokens=300", "--device=cpu", "--threads=1", *more])
    return read_json(folder / out / "results.json", "")["pair"]


TUNED = "--tune_tokens=3000", "--tune_rate=0.01", "--step_tokens=256", "--warmup=2"
SMALL = "--answers=2", "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=256"      # of a new student


def test_responses_alone_are_learnt_and_long_ones_lose_their_end(folder):
    tokenizer, weights = Tokenizer.load(folder / "teacher"), role_weights(pair.PairConfig())
    prompts, rows = pair.encode_pairs("x", read_instructions(folder / "x.jsonl")[:3], tokenizer, 256)
    for d, prompt in enumerate(prompts):
        ids, targets, w = (t[0].tolist() for t in rows.batch([d], weights))
        assert ids[:len(prompt)] == prompt and w[:len(prompt) - 1] == [0.0] * (len(prompt) - 1)
        assert tokenizer.decode(prompt).endswith("\n\nAnswer:")
        response = [t for t, one in zip(targets, w) if one]
        assert response[-1] == tokenizer.end and tokenizer.decode(response[:-1])[1:] in WORDS
    pairs = [("cat", "dog " * 300), ("cat " * 300, "dog")]
    prompts, rows = pair.encode_pairs("x", pairs, tokenizer, 256)
    tokens, _ = rows.document(0)
    assert len(prompts) == len(rows) == 1 and len(tokens) == len(prompts[0]) + pair.MAX_NEW
    assert tokenizer.end not in tokens


def test_the_whole_recipe(folder, capsys):
    write(folder / "more.jsonl", [{"prompt": f"Say {word}.", "output": word} for word in WORDS[:3]])
    options = f"--student={folder / 'student'}", "--answers=2", f"--tests={folder / 'more.jsonl'}", "--seed=3"
    results = run(folder, *options)
    out, text = folder / "out", capsys.readouterr().out
    assert "Rouge-L; seed 3\n" in text and "held out              more\n" in text
    assert "more: 3 of 3 prompts leave room" in text and "held out: 2 of 2 prompts" in text
    assert list(results) == ["teacher", "sft", "more_sft", "seqkd", "kd", "td"]
    for name, result in results.items():
        for test, n in {"held out": 2, "more": 3}.items():
            assert result["rouge_l"][test]["n"] == n and 0 <= result["rouge_l"][test]["value"] <= 1
        assert name in text and result["params"]
    config = read_json(out / "results.json", "")["config"]
    assert [config[name] for name in ("seed", "p", "alpha", "learning_rate")] == [3, 0.8, 0.1, 1e-4]
    cache = TeacherCache(out / "cache")
    assert len(cache) == 2 * 18 and all(cache.document(0)[2][-3:] > 0)
    before = {name: (out / name / "model.pt").read_bytes() for name in list(results)[1:]}
    assert len(set(before.values())) == 5                          # five students, no two alike
    (out / "results.json").unlink()
    assert run(folder, *options) == results                        # goes on from the trained students
    assert before == {name: (out / name / "model.pt").read_bytes() for name in before}


def test_a_model_that_was_tested_is_not_tested_again(folder, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt
    with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
        first.setattr(train, "train_model", stopped)
        run(folder, *SMALL, out="stopped")
    kept = read_json(folder / "stopped" / "results.json", "")
    assert list(kept["pair"]) == ["teacher"]
    kept["pair"]["teacher"]["params"] = 7
    pair.write_json(folder / "stopped" / "results.json", kept)
    assert run(folder, *SMALL, out="stopped")["teacher"]["params"] == 7


def test_no_student_learns_from_a_prompt_of_a_test(folder, tmp_path, capsys):
    """Of twelve pairs the last is held out; its prompt, and that of another test, stand before it too."""
    records = [{"prompt": word, "output": word} for word in [*WORDS[:6], *WORDS[:6]]]
    path, more = write(tmp_path / "x.jsonl", records), write(tmp_path / "more.jsonl", records[:1])
    pairs, tests = pair.read_pairs(pair.PairConfig(corpus=str(path), tests=str(more)))
    assert [prompt for prompt, _ in pairs] == 2 * WORDS[1:5] and list(tests) == ["held out", "more"]
    assert "3 of 11 prompts to learn from left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="x.jsonl: no prompt is left to learn from"):
        pair.read_pairs(pair.PairConfig(corpus=str(write(path, records[:1]))))


def test_a_student_is_made_with_the_tokenizer_of_its_teacher(folder):
    run(folder, *SMALL, out="made")
    model, tokenizer = GPT.load(folder / "made" / "sft"), Tokenizer.load(folder / "made" / "sft")
    assert tokenizer.hash == Tokenizer.load(folder / "teacher").hash and model.layout == "modern"
    assert (model.config.n_layer, model.config.n_embd, model.config.block_size) == (1, 16, 256)
    assert model.config.n_vocab == tokenizer.n_vocab


def test_a_filled_cache_stands_in_for_the_teacher(folder, capsys):
    """Answers to a prompt of the test are in the cache; no student learns from them."""
    tokenizer, cache = Tokenizer.load(folder / "teacher"), folder / "filled"
    draw, *_ = pair.open_teacher(pair.PairConfig(teacher=str(folder / "teacher"), device="cpu"))
    asked = [prompt for prompt, _ in read_instructions(folder / "x.jsonl")]
    pair.answer_cache(cache, draw, tokenizer, pair.encode_prompts(asked, tokenizer), p=0.8, k_cap=8,
                      about={}, seed=1, answers=2, made_by="a test")
    small = [option for option in SMALL if "answers" not in option]
    results = run(folder, f"--cache={cache}", *small, teacher="", out="from_cache")
    assert list(results) == ["sft", "more_sft", "seqkd", "kd", "td"]
    assert "40 answers of the teacher, 4 to prompts of a test left out" in capsys.readouterr().out
    held_out = pair.encode_prompts(asked[18:], tokenizer)
    parts = pair.untested_parts(TeacherCache(cache), {"x": (held_out, [])}, 256)
    assert [len(part) for part in parts] == [18, 18]
    texts = {tokenizer.decode(part.document(i)[0]) for part in parts for i in range(len(part))}
    assert not [text for text in texts if text.startswith((asked[18], asked[19]))]
    with pytest.raises(ValueError, match="filled: answers to prompts of the test alone"):
        pair.untested_parts(TeacherCache(cache), {"x": (pair.encode_prompts(asked, tokenizer), [])}, 256)
    with pytest.raises(ValueError, match="a document of .* block_size is 8; try a larger --block_size"):
        pair.untested_parts(TeacherCache(cache), {}, 8)
    with pytest.raises(ValueError, match="--p=0.9, but the sets of .* hold 0.8"):
        run(folder, f"--cache={cache}", "--p=0.9", teacher="", out="from_cache")


def test_a_teacher_is_tuned_on_the_responses_first(folder):
    """It fits the responses better than before, and the cache is of the tuned weights."""
    results = run(folder, *SMALL, *TUNED, out="tuned")
    tuned, tokenizer = pair.open_model(folder / "tuned" / "teacher", "cpu")
    assert TeacherCache(folder / "tuned" / "cache").header["teacher"]["hash"] == weights_hash(tuned)
    assert results["teacher"]["tokens_seen"] == 3000 and not list((folder / "tuned").glob("*/training.pt"))
    pairs = read_instructions(folder / "x.jsonl")[:18]
    _, rows = pair.encode_pairs("x", pairs, tokenizer, 256)
    config, batch = pair.PairConfig(device="cpu"), Batch(0, np.arange(18), 0)
    before, after = (train.loss_terms(model, rows, batch, config, "cpu", 90.0)["hard"].item()
                     for model in (GPT2.load(folder / "teacher"), tuned))
    assert after < before - 1
    stamp = (folder / "tuned" / "teacher" / "model.pt").stat().st_mtime_ns
    (folder / "tuned" / "results.json").unlink()
    assert run(folder, *SMALL, *TUNED, out="tuned") == results
    assert (folder / "tuned" / "teacher" / "model.pt").stat().st_mtime_ns == stamp


def test_plain_text_stands_beside_what_students_read_after_sft(folder, monkeypatch):
    """The text is a folder; the student could read more than the teacher does."""
    (folder / "texts").mkdir()
    (folder / "texts" / "plain.txt").write_text("A red cat and a blue dog. " * 200, encoding="utf-8")
    plans, heads, train_model = {}, {}, train.train_model

    def noted(name, model, mix, tokens, config, tokenizer, **options):
        plans[name], heads[name] = mix, getattr(model, "td_heads", None) is not None
        return train_model(name, model, mix, tokens, config, tokenizer, **options)
    monkeypatch.setattr(train, "train_model", noted)
    run(folder, *SMALL, f"--plain={folder / 'texts'}", "--plain_share=0.3", "--plain_kd=0.5",
        "--block_size=384", out="plain")
    assert plans["sft"].shares == [1.0] and [name for name in heads if heads[name]] == ["td"]
    for name in ("more_sft", *pair.OBJECTIVES):
        assert plans[name].shares == pytest.approx([0.7, 0.3])
        rows = plans[name].sources[1]
        assert all(role_weights(pair.PairConfig())[rows.roles] == 1) and len(rows.tokens) > 1000
        assert max(rows.lengths) == 256


def test_kd_on_plain_text_is_cross_entropy_and_a_full_kl(folder):
    """Value and gradient against the literal formula."""
    teacher, student = (GPT2.load(folder / name) for name in ("teacher", "student"))
    tokenizer, n = Tokenizer.load(folder / "teacher"), 30
    rows = pair.windows(tokenizer.encode("A red cat. " * 50)[:2 * n - 1], n, tokenizer.n_vocab)
    rows.roles[:] = pair.ANSWER
    config, batch = pair.PairConfig(plain="x", plain_kd=0.3, device="cpu"), Batch(0, np.arange(2), 0)
    found = pair.dense_loss(student, rows, batch, config, "cpu", 2.0 * (n - 1), "kd", (rows, teacher))
    found["plain"].backward()
    gradients = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    ids = torch.tensor([rows.document(d)[0].astype(int).tolist() for d in range(2)])
    log_s, log_t = (model(ids[:, :-1]).log_softmax(-1) for model in (student, teacher))
    log_t = log_t.detach()
    nll = -log_s.gather(-1, ids[:, 1:, None])[..., 0]
    kl, entropy = (log_t.exp() * (log_t - log_s)).sum(-1), -(log_t.exp() * log_t).sum(-1)
    loss = (0.7 * nll + 0.3 * kl).mean()
    assert found["plain"].item() == pytest.approx((loss + 0.3 * entropy.mean()).item(), rel=1e-5)
    loss.backward()
    for p, gradient in zip(student.parameters(), gradients):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_stems_of_words_count(monkeypatch, capsys):
    pytest.importorskip("rouge_score")
    assert pair.rouge_of(True)("The dogs jumped", "A dog jumps") == pytest.approx(2 / 3)
    assert pair.rouge_of(False)("The dogs jumped", "A dog jumps") == 0
    monkeypatch.setitem(sys.modules, "rouge_score", None)           # as where it is not installed
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: pair.main(["--teacher=x", "--corpus=y", "--stemmed"]))
    assert 'pip install -e ".[rouge]" brings it' in capsys.readouterr().err


def test_a_gpt2_of_transformers_is_opened_as_a_student(folder, tmp_path):
    pytest.importorskip("transformers")
    here, own = GPT2.load(folder / "teacher"), Tokenizer.load(folder / "teacher")
    export(here, own, tmp_path / "there")
    model, tokenizer = pair.open_model(tmp_path / "there", "cpu")
    assert weights_hash(model) == weights_hash(here)
    assert tokenizer.encode(" red cat") == own.encode(" red cat")


@pytest.fixture(scope="module")
def llama(folder):
    """A tiny model of transformers that answers in a chat, in the folder's vocabulary."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    export(GPT2.load(folder / "teacher"), Tokenizer.load(folder / "teacher"), folder / "llama")
    for path in (folder / "llama").glob("*.safetensors"):
        path.unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "llama")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    n = len(tokenizer) + 3                                          # a padded head
    config = transformers.LlamaConfig(
        vocab_size=n, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, bos_token_id=None, eos_token_id=Tokenizer.load(folder / "teacher").end)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder / "llama"


def test_a_model_of_transformers_is_tuned_and_gives_the_tokenizer(folder, llama):
    """The loss at weighted columns is that of all logits; then the whole recipe, with dense KD."""
    teacher = pair.open_teacher(pair.PairConfig(teacher=str(llama), device="cpu"))[4]
    pairs, tokenizer = read_instructions(folder / "x.jsonl")[:18], teacher.tokenizer
    prompts, rows = pair.encode_pairs("x", pairs, tokenizer, 256)
    assert tokenizer.decode(prompts[0]).startswith("[Which") and "Answer:" not in tokenizer.decode(prompts[0])
    tokens, _ = rows.document(0)                            # no space behind the template
    assert tokenizer.decode(tokens[len(prompts[0]):-1]) == pairs[0][1] and tokens[-1] == tokenizer.end
    config, batch = pair.PairConfig(device="cpu"), Batch(0, np.arange(18), 0)

    def loss(teacher):
        return pair.response_loss(None, rows, batch, config, "cpu", 90.0, teacher=teacher)["hard"].item()
    ids, targets, weights = rows.batch(batch.documents, role_weights(config))
    log_probs = teacher.hf(ids).logits[..., :teacher.n_vocab].log_softmax(-1)
    whole = (log_probs.gather(-1, targets[..., None])[..., 0] * -weights).sum() / 90
    assert loss(teacher) == pytest.approx(whole.item(), rel=1e-4)
    (folder / "plain.txt").write_text("A red cat and a blue dog. " * 200, encoding="utf-8")
    results = run(folder, *SMALL, *TUNED, f"--plain={folder / 'plain.txt'}", "--plain_kd=0.5",
                  teacher="llama", out="out_llama")
    assert set(results) == {"teacher", "sft", "more_sft", *pair.OBJECTIVES}
    out = folder / "out_llama"
    tuned = pair.open_teacher(pair.PairConfig(teacher=str(out / "teacher"), device="cpu"))[4]
    assert loss(tuned) < loss(teacher) - 1
    cache = TeacherCache(out / "cache")
    assert cache.header["teacher"]["hash"] == tuned.about()["hash"]
    assert cache.header["tokenizer"] == Tokenizer.load(out / "td").hash == tokenizer.hash == tuned.tokenizer.hash


def test_what_cannot_be_done_is_told(folder, tmp_path):
    def refused(message, *more, **options):
        with pytest.raises(ValueError, match=message):
            run(folder, *more, out="refused", **options)
    refused(r"teacher .* \d+ tokens.* student .*other has \d+ .* one tokenizer", f"--student={folder / 'other'}")
    same = Tokenizer.load(folder / "student")
    GPT2(GPT2Config(same.n_vocab + 4, 256, 1, 2, 16)).save(tmp_path / "padded")
    same.save(tmp_path / "padded")
    refused(r"padded: \d+ embeddings, but \d+ ids of tokens", f"--student={tmp_path / 'padded'}")
    path = write(tmp_path / "x.jsonl", [{"prompt": "cat " * n, "response": "dog"} for n in (300, 301)])
    refused("no prompt leaves room for an answer of 128 tokens in 256", f"--corpus={path}", *SMALL)
    refused("two files of one name", f"--tests={folder / 'x.jsonl'},{path}", *SMALL)
    refused("expected a --corpus, and a --teacher or a --cache", teacher="")
    refused("--dtype=bfloat16 has no effect on a folder of GPT.save", "--dtype=bfloat16", *SMALL)
    (tmp_path / "none.txt").write_text(" ", encoding="utf-8")
    refused("none.txt: empty; expected text", f"--plain={tmp_path / 'none.txt'}", *SMALL)
    assert not (folder / "refused" / "cache").exists()              # told before work is done


@pytest.mark.parametrize("options, message", [
    ("--cache=x --teacher=y", "--teacher=y has no effect beside --cache"),
    ("--cache=x --answers=2", "--answers=2 has no effect beside --cache"),
    ("--student=x --n_embd=64", "--n_embd=64 has no effect beside --student"),
    ("--plain_kd=0.5", "--plain_kd=0.5 has no effect without --plain"),
    ("--tune_rate=0.1", "--tune_rate=0.1 has no effect without --tune_tokens"),
    ("--model=x", "--model=x has no effect without a server"),
    ("--teacher=http://x/v1", "expected the --model and the --tokenizer of a server"),
    ("--teacher=http://x/v1 --model=m --tokenizer=t --tune_tokens=9", "--tune_tokens=9 has no effect on a server"),
    ("--plain_share=0.9 --plain=x", "--plain_share=0.9, but expected more than 0 and at most 0.8")])
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pair.main([*options.split(), "--corpus=x"])
