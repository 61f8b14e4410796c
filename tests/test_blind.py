"""The tests on task files: generated answers, means, the command, and the settings relaxed and supervised."""
import json
import random

import pytest
import torch

from data.tokenizer import train_bpe
from experiments import blind
from model import GPT, GPTConfig

KINDS = {"animal": "cat dog cow hen fox owl pig bee", "tool": "saw axe pen cup pot key bag jar"}


def write_task(path, examples):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"examples": examples}), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blind")
    words = [(word, kind) for kind in KINDS for word in KINDS[kind].split()] * 4
    random.Random(1).shuffle(words)
    for name, score in (("kinds.json", 1), ("wrong/kinds.json", 0)):        # every label is right, or none
        write_task(folder / name, [{"input": f"The {word} is a", "target_scores": {
            k: score if k == kind else 1 - score for k in KINDS}} for word, kind in words])
    tokenizer = train_bpe([f"The {word} is a animal tool" for word, _ in words], 400)
    for name, seed in (("student", 0), ("teacher", 5)):
        torch.manual_seed(seed)
        GPT(GPTConfig(tokenizer.n_vocab, 64, 1, 2, 32)).save(folder / name)
        tokenizer.save(folder / name)
    return folder


def run(folder, *arguments):
    blind.main([str(folder / "student"), "--json", str(folder / "results.json"), *map(str, arguments)])
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_labels_teach_a_task_and_are_not_tested_on(folder):
    task = folder / "kinds.json"
    first, taught = run(folder, task), run(folder, task, "--setting=supervised", "--labels=32")
    assert first["tasks"][0]["n"] == 64 and taught["tasks"][0]["n"] == 32
    assert first["mean"]["accuracy"] < 0.7 and taught["mean"]["accuracy"] > 0.8


def test_items_that_are_learnt_and_tested_share_no_story():
    items, stories = list("abcdefghij"), [1, 1, 1, 2, 2, 3, 3, 3, 3, 4]
    task, found = {"name": "t", "items": items, "stories": stories}, set()
    for seed in range(40):
        shown, rest = blind.split_items(task, 4, seed)
        apart = [{stories[items.index(item)] for item in part} for part in (shown, rest)]
        assert len(shown) == 4 and shown == sorted(shown) and rest and not set.intersection(*apart)
        assert rest == [item for item, story in zip(items, stories) if story in apart[1]]
        found.add("".join(shown))
    assert len(found) > 4
    for one, message in ((task, "t: 10 items of 4 stories, of which 10 are to be learnt from; try --labels="),
                         ({**task, "stories": [1] * 10}, "t: 10 items of 1 stories, .*; expected others to")):
        with pytest.raises(ValueError, match=message) as caught:
            blind.split_items(one, 10, 0)
        hint = str(caught.value).rpartition("--labels=")[2]
        assert not hint.isdigit() or blind.split_items(one, int(hint), 0)


def test_babi_is_tested_shown_and_learnt(folder):
    lines = [f"{n} {text}" for word, kind in [(word, k) for k in KINDS for word in KINDS[k].split()] * 2
             for n, text in enumerate((f"The {word} is a {kind}.", f"The {word} is a\t{kind}\t1"), 1)]
    path = folder / "qa.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert run(folder, path, "--fewshot=2")["tasks"][0]["n"] == 32
    taught = run(folder, path, "--setting=supervised", "--labels=20")["tasks"][0]
    assert taught["n"] == 12 and taught["name"] == "qa" and taught["chance"] == 0.5


def test_the_relaxed_setting_never_sees_a_label(folder):
    options = "--setting=relaxed", "--labels=16", f"--teacher={folder / 'teacher'}"
    right, wrong = (run(folder, folder / name, *options) for name in ("kinds.json", "wrong/kinds.json"))
    assert wrong["mean"]["accuracy"] == pytest.approx(1 - right["mean"]["accuracy"])     # the same student


@pytest.mark.parametrize("options, message", [
    ("--setting=relaxed", "a teacher for relaxed"), ("--labels=8", "no labels for blind"),
    ("--setting=supervised --labels=0", "labels=0, but expected more than 0"),
    ("--setting=supervised --labels=64", "kinds: 64 items, of which 64 .* try --labels=32"),
    ("--fewshot=-1", "least 0"), ("--fewshot=64", "kinds.json: --fewshot=64, but"), ("no.json", "no.json")])
def test_bad_options_are_told(folder, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(folder, folder / "kinds.json", *options.split())


def test_generated_answers_end_with_the_line_and_match_word_for_word(folder, monkeypatch):
    tokenizer, model = blind.Tokenizer.load(folder / "student"), GPT.load(folder / "student")
    said = [tokenizer.encode(text) + [tokenizer.end] for text in (" 24\n", "24 \nMore? 25", "24.", " [ ]\n")]
    monkeypatch.setattr(blind.brd, "continued", lambda model, prompts, max_new, stop: said)
    items = [("4 * 6 =", [], {"24", "x"})] * 3 + [("4 * 6 = " * 99, [], {"[ ]"})]
    found = blind.eval_task(model, tokenizer, {"name": "t", "items": items, "skipped": 3})
    assert list(found.values()) == ["t", 0.75, pytest.approx(0.25), 4, 0, 0.75, None, 1, 3]
    assert blind.gold_answers([("a", ["x", "y"], {1}), *items[:1]]) == ["y", "24"]


def test_subtasks_count_as_one_task_in_the_mean(folder, capsys):
    """Two subtasks of accuracy .5 and a generated task of accuracy 0: the mean is .25, not .33."""
    for name in ("a", "b"):
        write_task(folder / "moods" / name / "task.json", [
            {"input": "So? A:", "target_scores": {"Yes": i % 2, "No": 1 - i % 2}} for i in range(10)])
    write_task(folder / "fr\x1bee.json", [{"input": "Sort these:", "target": "zyx"}] * 10)
    report = run(folder, folder / "moods", folder / "fr\x1bee.json")
    head, a, b, both, alone, mean = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head == ["task", "n", "chance", "majority", "accuracy", "+-", "centred"]
    assert a == ["moods/a", "10", *["0.500"] * 3, "0.167", "0.500"] and b[0] == "moods/b"
    assert both[4:] == ["20", *["0.500"] * 3, "0.118", "-"]
    assert alone == [r"fr\x1bee", "10", "0.000", "1.000", "0.000", "0.000", "-"]      # always the same answer
    assert mean == ["mean", "of", "2", "tasks", "30", "0.250", "0.750", "0.250", "0.059", "-"]
    assert [task["name"] for task in report["tasks"]] == ["moods/a", "moods/b", "fr\x1bee"]
    assert report["mean"] == {"of": 2, "accuracy": 0.25, "chance": 0.25, "majority": 0.75,
                              "se": pytest.approx(0.0589, 1e-2), "n": 30, "cut": 0, "skipped": 0}
