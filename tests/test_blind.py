"""The tests on task files: generated answers, means, the command, and the settings relaxed and supervised."""
import json
import random

import pytest
import torch

from data.tokenizer import train_bpe
from experiments import blind
from model import GPT, GPTConfig

ANIMALS, TOOLS = "cat dog cow hen fox owl pig bee".split(), "saw axe pen cup pot key bag jar".split()


def write_task(path, examples, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"examples": examples, **fields}), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("settings"), random.Random(1)
    words = [(word, kind) for kind, some in (("animal", ANIMALS), ("tool", TOOLS)) for word in some] * 4
    rng.shuffle(words)
    examples = [{"input": f"The {word} is a", "target_scores": {k: int(k == kind) for k in ("animal", "tool")}}
                for word, kind in words]
    write_task(folder / "kinds.json", examples, name="kinds")
    for example in examples:
        example["target_scores"] = {word: 1 - score for word, score in example["target_scores"].items()}
    write_task(folder / "wrong" / "kinds.json", examples, name="kinds")
    tokenizer = train_bpe([" ".join(example["input"] for example in examples) + " animal tool"], 400)
    for name, seed in (("student", 0), ("teacher", 5)):
        torch.manual_seed(seed)
        GPT(GPTConfig(tokenizer.n_vocab, 64, 1, 2, 32)).save(folder / name)
        tokenizer.save(folder / name)
    return folder


def run(folder, *arguments):
    blind.main([str(folder / "student"), "--json", str(folder / "results.json"), *map(str, arguments)])
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))
