"""Prompts with responses, and the whole experiment of a teacher and a smaller student on a few of them."""
import json
import random
import re

import pytest
import torch

from adapters.gpt2 import GPT2, GPT2Config, export
from adapters.instructions import read_instructions
from data.cache import TeacherCache
from data.documents import role_weights
from data.files import read_json
from data.tokenizer import END, SEP, Tokenizer, train_bpe
from experiments import pair

WORDS = "red blue green small large old new cat dog house tree river stone bird".split()


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


def test_an_array_is_read_and_an_empty_response_left_out(tmp_path, capsys):
    """As Alpaca is published, some rows without an output; the line ends are those of Windows."""
    rows = [{"instruction": "Say\r\nhello.", "input": "", "output": "Hello."},
            {"instruction": "a", "output": " "}]
    for content in (json.dumps(rows, indent=4).replace("\n", "\r\n"), "\r\n".join(map(json.dumps, rows))):
        (tmp_path / "x.json").write_bytes(("\ufeff" + content).encode())
        assert read_instructions(tmp_path / "x.json") == [("Say\nhello.", "Hello.")]
        place = "row 2" if content[0] == "[" else "line 2"
        said = f"{tmp_path / 'x.json'}: 1 rows with an empty response left out, first {place}\n"
        assert capsys.readouterr().out == said
    (tmp_path / "x.json").write_text(json.dumps([*rows, {"instruction": "b"}]), encoding="utf-8")
    with pytest.raises(ValueError, match="x.json: row 3: expected an object with"):
        read_instructions(tmp_path / "x.json")
    (tmp_path / "x.json").write_text(json.dumps(rows)[:-1], encoding="utf-8")
    with pytest.raises(ValueError, match="x.json: Expecting ',' delimiter: line 1 column"):
        read_instructions(tmp_path / "x.json")


@pytest.mark.parametrize("line, message", [
    ("{", ": line 2: expected a JSON object, found {"), ("[]", ": line 2: expected a JSON object, found []"),
    ('{"prompt": "a"}', ': line 2: expected an object with "instruction"'),
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


def run(folder, *more):
    paths = {"teacher": "teacher", "student": "student", "corpus": "x.jsonl", "out_dir": "out"}
    pair.main([*(f"--{name}={folder / path}" for name, path in paths.items()), "--start_tokens=300",
               "--student_tokens=300", "--answers=2", "--device=cpu", "--threads=1", *more])


def test_responses_alone_are_learnt_and_long_ones_lose_their_end(folder):
    tokenizer, weights = Tokenizer.load(folder / "teacher"), role_weights(pair.PairConfig())
    prompts, rows = pair.encode_pairs(read_instructions(folder / "x.jsonl")[:3], tokenizer, 256)
    for d, prompt in enumerate(prompts):
        ids, targets, w = (t[0].tolist() for t in rows.batch([d], weights))
        assert ids[:len(prompt)] == prompt and w[:len(prompt) - 1] == [0.0] * (len(prompt) - 1)
        response = [t for t, one in zip(targets, w) if one]
        assert response[-1] == tokenizer.end and tokenizer.decode(response[:-1])[1:] in WORDS
    prompts, rows = pair.encode_pairs([("cat:", "dog " * 300), ("cat " * 300, "dog")], tokenizer, 256)
    tokens, _ = rows.document(0)
    assert len(prompts) == len(rows) == 1 and len(tokens) == len(prompts[0]) + pair.MAX_NEW
    assert tokenizer.end not in tokens


def test_the_whole_recipe(folder, capsys):
    run(folder)
    out, text = folder / "out", capsys.readouterr().out
    results = read_json(out / "results.json", "")["pair"]
    assert list(results) == ["teacher", "sft", "more_sft", "seqkd", "kd", "td"]
    for name, result in results.items():
        assert result["rouge_l"]["n"] == 2 and 0 <= result["rouge_l"]["value"] <= 1 and name in text
    cache = TeacherCache(out / "cache")
    assert len(cache) == 2 * 18 and all(cache.document(0)[2][-3:] > 0)
    before = {name: (out / name / "model.pt").read_bytes() for name in list(results)[1:]}
    assert len(set(before.values())) == 5                          # five students, no two alike
    (out / "results.json").unlink()
    run(folder)                                                    # goes on from the trained students
    assert read_json(out / "results.json", "")["pair"] == results
    assert before == {name: (out / name / "model.pt").read_bytes() for name in before}


def test_folders_of_transformers_make_a_pair(folder, tmp_path):
    pytest.importorskip("safetensors")
    for name in ("teacher", "student"):
        export(GPT2.load(folder / name), Tokenizer.load(folder / name), tmp_path / name)
        model, tokenizer = pair.open_model(tmp_path / name, "cpu")
        own = Tokenizer.load(folder / name)
        assert (tokenizer.n_vocab, tokenizer.ends) == (own.n_vocab, {own.end})
        assert tokenizer.encode("red <|sep|>bird") == own.encode("red <|sep|>bird")
        assert pair.weights_hash(model) == pair.weights_hash(GPT2.load(folder / name))


def test_what_cannot_be_done_is_told(folder, tmp_path):
    with pytest.raises(ValueError, match=r"teacher .* \d+ tokens.* student .*other has \d+ .* one tokenizer"):
        run(folder, f"--student={folder / 'other'}")
    GPT2.load(folder / "student").save(tmp_path / "turned")
    same = Tokenizer.load(folder / "student")
    Tokenizer("bpe", same.ranks, same.pattern, same.specials, SEP, END).save(tmp_path / "turned")
    with pytest.raises(ValueError, match=r"teacher .* end <\|end\|>.* student .* end <\|sep\|>.* one tokenizer"):
        run(folder, f"--student={tmp_path / 'turned'}")
    write(tmp_path / "x.jsonl", [{"prompt": "cat " * 300, "response": "dog"}] * 3)
    with pytest.raises(ValueError, match="no prompt leaves room for an answer of 128 tokens in 256"):
        run(folder, f"--corpus={tmp_path / 'x.jsonl'}")
