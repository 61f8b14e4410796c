"""Blind, relaxed, supervised: what is learnt from, what is tested on, and that it helps."""
import json
import random

import pytest
import torch

import brd
from course import settings
from data.tokenizer import train_bpe
from model import GPT, GPTConfig

ANIMALS, TOOLS = "cat dog cow hen fox owl pig bee".split(), "saw axe pen cup pot key bag jar".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("settings"), random.Random(1)
    words = [(word, kind) for kind, some in (("animal", ANIMALS), ("tool", TOOLS)) for word in some] * 4
    rng.shuffle(words)
    examples = [{"input": f"The {word} is a", "target_scores": {k: int(k == kind) for k in ("animal", "tool")}} for word, kind in words]
    (folder / "kinds.json").write_text(json.dumps({"name": "kinds", "examples": examples}), encoding="utf-8")
    tokenizer = train_bpe([" ".join(example["input"] for example in examples) + " animal tool"], 400)
    for name, seed in (("student", 0), ("teacher", 5)):
        torch.manual_seed(seed)
        GPT(GPTConfig(tokenizer.n_vocab, 64, 1, 2, 32)).save(folder / name)
        tokenizer.save(folder / name)
    return folder


def accuracy(folder, *options):
    brd.main(["test", str(folder / "student"), str(folder / "kinds.json"), "--json", str(folder / "results.json"), *options])
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_labels_teach_a_task_and_are_not_tested_on(folder):
    before = (folder / "student" / "model.pt").read_bytes()
    blind, taught = accuracy(folder), accuracy(folder, "--setting=supervised", "--labels=32")
    assert blind["tasks"][0]["n"] == 64 and taught["tasks"][0]["n"] == 32
    assert blind["mean"]["accuracy"] < 0.7 and taught["mean"]["accuracy"] > 0.8
    assert taught == accuracy(folder, "--setting=supervised", "--labels=32")              # the same seed, the same student
    assert before == (folder / "student" / "model.pt").read_bytes()


def test_a_teacher_without_gold_teaches_what_it_believes(folder):
    """The relaxed setting never sees a label: a task with every label turned round teaches the same student."""
    task = json.loads((folder / "kinds.json").read_text(encoding="utf-8"))
    result = accuracy(folder, "--setting=relaxed", "--labels=16", f"--teacher={folder / 'teacher'}")
    for example in task["examples"]:
        example["target_scores"] = {word: 1 - score for word, score in example["target_scores"].items()}
    (folder / "turned").mkdir(exist_ok=True)
    (folder / "turned" / "kinds.json").write_text(json.dumps(task), encoding="utf-8")
    brd.main(["test", str(folder / "student"), str(folder / "turned" / "kinds.json"), "--json", str(folder / "results.json"),
              "--setting=relaxed", "--labels=16", f"--teacher={folder / 'teacher'}"])
    turned = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert turned["mean"]["accuracy"] == pytest.approx(1 - result["mean"]["accuracy"])


def test_gold_answers_are_the_right_ones():
    items = [("a", ["x", "y"], {1}), ("b", [], {"24", "25"})]
    assert settings.gold_answers(items) == ["y", "24"]


@pytest.mark.parametrize("options, message", [
    (["--setting=relaxed"], "a teacher for relaxed alone"), (["--setting=supervised", "--labels=0"], "at least one label"),
    (["--setting=supervised", "--labels=64"], "kinds: 64 items, of which 64 are to be learnt from; try --labels=32")])
def test_what_cannot_be_is_told(folder, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        brd.main(["test", str(folder / "student"), str(folder / "kinds.json"), *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
