"""Prompts with responses, and the whole experiment of a teacher and a smaller student on a few of them."""
import json
import random
import re

import pytest
import torch

import train
from course import pair
from data.cache import TeacherCache
from adapters.instructions import read_instructions
from data.tokenizer import train_bpe
from model import GPT, GPTConfig

WORDS = "red blue green small large old new cat dog house tree river stone bird".split()


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_every_field_name_is_read(tmp_path):
    path = write(tmp_path / "x.jsonl", [
        {"instruction": " Say hello. ", "input": "", "output": "Hello."}, {"prompt": "1 + 1?", "response": "2"},
        {"instruction": "Name it.", "context": "A cat.", "response": "cat", "category": "x"}])
    path.write_text(path.read_text(encoding="utf-8").replace("\n", "\n \n"), encoding="utf-8")      # empty lines are nothing
    assert read_instructions(path) == [("Say hello.\n\nAnswer:", "Hello."), ("1 + 1?\n\nAnswer:", "2"),
                                       ("Name it.\n\nA cat.\n\nAnswer:", "cat")]


@pytest.mark.parametrize("line, message", [("{", ":2: not JSON"), ("[]", ":2: expected an object"),
                                           ('{"prompt": "a"}', ":2: expected"), ('{"prompt": " ", "response": "b"}', ":2: expected")])
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"x.jsonl{message}")):
        read_instructions(path)


def test_no_prompts_at_all(tmp_path):
    with pytest.raises(ValueError, match="no prompts"):
        read_instructions(write(tmp_path / "x.jsonl", []))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher, a student and forty prompts, each answered by a word of it."""
    folder, rng = tmp_path_factory.mktemp("pair"), random.Random(0)
    records = []
    for _ in range(40):
        words = rng.sample(WORDS, 3)
        records.append({"instruction": "Which word is first?", "input": " ".join(words), "output": words[0]})
    write(folder / "x.jsonl", records)
    tokenizer = train_bpe([" ".join(WORDS) + " Which word is first?\n\nAnswer:"] * 3, 300)
    for name, layers, channels in (("teacher", 2, 32), ("student", 1, 16)):
        torch.manual_seed(1)
        GPT(GPTConfig(tokenizer.n_vocab, 256, layers, 2, channels, layout="gpt2")).save(folder / name)
        tokenizer.save(folder / name)
    return folder


def arguments(folder, *more):
    return [f"--teacher={folder / 'teacher'}", f"--student={folder / 'student'}", f"--corpus={folder / 'x.jsonl'}",
            f"--out_dir={folder / 'out'}", "--start_tokens=300", "--student_tokens=300", "--answers=2", "--device=cpu", *more]


def test_responses_alone_are_learnt(folder):
    tokenizer = pair.open_model(str(folder / "teacher"), train.Config(device="cpu"))[1]
    prompts, rows = pair.encode_pairs(read_instructions(folder / "x.jsonl")[:3], tokenizer, 256)
    weights = train.role_weights(train.Config(text_weight=0.0, answer_weight=1.0))
    for d, prompt in enumerate(prompts):
        ids, targets, w = (t[0].tolist() for t in rows.batch([d], weights))
        assert ids[:len(prompt)] == prompt and w[:len(prompt) - 1] == [0.0] * (len(prompt) - 1)
        response = [t for t, one in zip(targets, w) if one]
        assert response[-1] == tokenizer.end and tokenizer.decode(response[:-1])[1:] in WORDS


def test_long_responses_lose_their_end_and_long_prompts_are_left_out(folder):
    tokenizer = pair.open_model(str(folder / "teacher"), train.Config(device="cpu"))[1]
    prompts, rows = pair.encode_pairs([("cat\n\nAnswer:", "dog " * 300), ("cat " * 300 + "\n\nAnswer:", "dog")], tokenizer, 256)
    tokens, roles = rows.document(0)
    assert len(prompts) == len(rows) == 1 and len(tokens) == len(prompts[0]) + pair.MAX_NEW
    assert tokenizer.end not in tokens and pair.END not in roles


def test_the_whole_recipe(folder, capsys):
    train.main(arguments(folder))
    text = capsys.readouterr().out
    results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))["pair"]
    assert list(results) == ["teacher", "sft", "more_sft", "seqkd", "topp_kd", "bellman"]
    for name, result in results.items():
        assert result["rouge_l"]["n"] == 4 and 0 <= result["rouge_l"]["value"] <= 1 and name in text
    cache = Cache(folder / "out" / "cache")
    assert len(cache) == 2 * 36 and all(cache.document(0)[2][len(cache.document(0)[0]) - 3:] > 0)
    before = {name: (folder / "out" / name / "model.pt").read_bytes() for name in ("sft", *pair.STUDENTS)}
    assert len(set(before.values())) == 5                          # five students, no two alike
    train.main(arguments(folder))
    assert "finished before" in capsys.readouterr().out
    (folder / "out" / "results.json").unlink()
    train.main(arguments(folder))                                  # goes on from the trained students
    assert json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))["pair"] == results
    assert before == {name: (folder / "out" / name / "model.pt").read_bytes() for name in before}


def test_folders_of_transformers_make_a_pair(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    from adapters.gpt2 import export
    for name in ("teacher", "student"):
        model, tokenizer = pair.open_model(str(folder / name), train.Config(device="cpu"))
        export(model, tokenizer, tmp_path / name)                          # for its tokenizer; the weights are made by transformers
        config = transformers.AutoConfig.from_pretrained(tmp_path / name)
        torch.manual_seed(2)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
    found, same = (pair.open_model(str(where), train.Config(device="cpu"))[1] for where in (tmp_path / "teacher", folder / "teacher"))
    assert found.hash == same.hash
    train.main(arguments(folder, f"--teacher={tmp_path / 'teacher'}", f"--student={tmp_path / 'student'}", f"--out_dir={tmp_path / 'out'}"))
    assert len(json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["pair"]) == 6


def test_another_tokenizer_is_refused_with_names_and_sizes(folder, tmp_path):
    tokenizer = train_bpe([" ".join(WORDS)], 280)
    GPT(GPTConfig(tokenizer.n_vocab, 256, 1, 2, 16, layout="gpt2")).save(tmp_path / "other")
    tokenizer.save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"teacher .* has \d+ tokens .* student .*other has \d+ .* expected one tokenizer"):
        train.main(arguments(folder, f"--student={tmp_path / 'other'}"))


def test_prompts_without_room_are_told(folder, tmp_path):
    write(tmp_path / "x.jsonl", [{"prompt": "cat " * 300, "response": "dog"}] * 3)
    with pytest.raises(ValueError, match="leave room for an answer of 128 tokens in 256"):
        train.main(arguments(folder, f"--corpus={tmp_path / 'x.jsonl'}"))
