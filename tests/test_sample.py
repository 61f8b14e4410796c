"""model.py at the command line: a model goes on with a text, and one of GPT-2's layout is written for others."""
import json
import runpy
from types import SimpleNamespace

import pytest
import torch

import model as model_module
import train
from adapters.sample import main, sample
from data import world
from data.tokenizer import Tokenizer, train_bpe
from model import GPT, GPTConfig
from tests.torture import OWN

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tok():
    return train_bpe([" ".join(sentences) for sentences in world.plain(60, "sample")], 400)


@pytest.fixture(scope="module")
def folder(tok, tmp_path_factory):
    """A model with random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    GPT(GPTConfig(tok.n_vocab, 32, 1, 2, 16)).save(folder)
    tok.save(folder)
    return folder


def test_more_text_than_a_row_holds(tok, folder):
    """Every part goes on from the last half of a row; the same seed draws the same text."""
    model = GPT.load(folder).eval()
    text = sample(model, tok, "Anna took a train.", 70, temperature=0)
    assert text.startswith("Anna took a train.") and sample(model, tok, "", 0) == ""
    ids = tok.encode("Anna took a train.")
    for n in (16, 16, 16, 16, 6):
        ids += model.generate([ids[-16:]], n, temperature=0)[0]
    assert text == tok.decode(ids)
    drawn = [sample(model, tok, "", 40, seed=seed) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_it_ends_with_the_document(tok):
    given = []

    def generate(prompts, n, *, stop, seed, **drawing):
        given.append((prompts, n, stop, drawing))
        return [[65, 10, stop] if len(given) == 2 else [65] * n]
    model = SimpleNamespace(config=SimpleNamespace(block_size=8), generate=generate)
    assert sample(model, tok, "", 100, top_k=3) == "AAAAA\n"
    assert given == [([[tok.end]], 4, tok.end, {"top_k": 3}), ([[65] * 4], 4, tok.end, {"top_k": 3})]


@pytest.mark.parametrize("options, words", [
    (["--temperature", "-1"], "temperature=-1.0"), (["--top_p", "2"], "top_p=2.0"), (["--tokens=-3"], "tokens=-3"),
    (["--seed", str(2 ** 64)], "--seed=1844"), (["--temperature", "nan"], "temperature=nan")])
def test_numbers_that_cannot_be(options, words, folder, tmp_path):
    with pytest.raises(ValueError, match=words):
        main([str(folder), "Anna", *options])
    with pytest.raises(ValueError, match="no model that GPT.save wrote"):
        main([str(tmp_path), "Anna"])


def program(monkeypatch, *arguments):
    monkeypatch.setattr("data.cli.run_command", lambda main: main())
    monkeypatch.setattr("sys.argv", ["model.py", *arguments])
    runpy.run_path(model_module.__file__, run_name="__main__")


def test_a_student_of_gpt2s_layout_is_trained_sampled_from_and_exported(tmp_path, monkeypatch, capsys):
    text, out = tmp_path / "my.txt", tmp_path / "out"
    text.write_text("\n\n".join(" ".join(sentences) for sentences in world.plain(400, "own")), encoding="utf-8")
    train.main([*OWN, f"--corpus={text}", f"--out_dir={out}", "--layout=gpt2"])
    assert GPT.load(out / "plain").layout == "gpt2"
    capsys.readouterr()
    program(monkeypatch, "sample", str(out / "plain"), "Anna\x1b took", "--tokens", "9", "--temperature", ".8")
    assert capsys.readouterr().out.startswith("Anna\\x1b took")
    with pytest.raises(ValueError, match="nonsense: expected one of export, sample; --help shows how"):
        program(monkeypatch, "nonsense")
    pytest.importorskip("safetensors")
    program(monkeypatch, "export", str(out / "plain"), str(tmp_path / "hf"))
    card = json.loads((tmp_path / "hf" / "config.json").read_text(encoding="utf-8"))
    assert card["vocab_size"] == Tokenizer.load(out / "plain").n_vocab and card["model_type"] == "gpt2"
