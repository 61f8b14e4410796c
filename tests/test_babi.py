"""The bAbI experiment: what is learnt and tested, runs that were stopped, the table against plain loops."""
import json
import math
import random
import re
import shutil
import statistics
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import train
from data.files import write_json
from data.tokenizer import train_bpe
from experiments import babi, blind, tables
from model import GPT, GPTConfig
from tests.test_compare import InTurn

PEOPLE, PLACES = "Ann Bob Cid Dov".split(), "hall park cave".split()


def write_task(path, sizes, seed=0):
    """A made-up file of bAbI: a story for each size, its number of questions. No two items are alike."""
    rng, lines = random.Random(seed), []
    for story, size in enumerate(sizes):
        lines.append(f"1 The day is {story}.")
        for n in range(2, 2 + 2 * size, 2):
            who, at = rng.choice(PEOPLE), PLACES[len(lines) // 2 % 3]
            lines += [f"{n} {who} went to the {at}.", f"{n + 1} Where is {who}?\t{at}\t{n}"]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two task files, and two runs of train.py with students of random weights."""
    folder = tmp_path_factory.mktemp("babi")
    write_task(folder / "qa1_one_train.txt", [2] * 12)
    write_task(folder / "qa12_two_train.txt", [1, 3, 2, 1, 4, 1, 2, 3], seed=1)
    tokenizer = train_bpe((folder / "qa1_one_train.txt").read_text(encoding="utf-8").splitlines(), 400)
    for seed in (1, 2):
        for i, name in enumerate(("plain", "brd")):
            torch.manual_seed(10 * seed + i)
            GPT(GPTConfig(tokenizer.n_vocab, 128, 1, 2, 16)).save(folder / f"out{seed}" / name)
            tokenizer.save(folder / f"out{seed}" / name)
        write_json(folder / f"out{seed}" / "results.json",
                   {"seed": seed, "config": {}, "students": {"plain": {}, "brd": {}}})
    return folder


@pytest.fixture
def command(folder, monkeypatch, tmp_path):
    """command(*options, files=...) in this process, on both files and both runs -> {values of KEY: line}."""
    monkeypatch.setattr(babi, "worker_pool", lambda n: nullcontext(InTurn(n)))
    out = tmp_path / "new" / "babi.jsonl"

    def run(*options, files="qa*.txt", runs=("out1", "out2")):
        babi.main([*map(str, sorted(folder.glob(files))), "--runs", *(str(folder / name) for name in runs),
                   "--students=plain,brd", f"--out={out}", *options])
        return babi.read(out)
    run.out = out
    return run


@pytest.mark.parametrize("sizes", [[1] * 4, [5] * 10, [1, 1, 9, 9, 1, 1], [1, 8, 9, 5, 1], [3, 1, 1, 4, 2]])
def test_no_story_is_in_both_halves(tmp_path, sizes):
    path = write_task(tmp_path / "qa1.txt", sizes)
    first, second = babi.halves(path)
    (task,) = babi.importlib.import_module("adapters.task_files").load_tasks(path)
    assert [item for item, _ in first + second] == task["items"]
    apart = [{story for _, story in half} for half in (first, second)]
    assert not set.intersection(*apart) and min(map(len, apart)) >= 2 and max(apart[0]) < min(apart[1])
    texts = [{item[0].split(".")[0] for item, _ in half} for half in (first, second)]
    assert not set.intersection(*texts)
    largest = max(sizes)                                # the border is the story that holds the middle item
    assert abs(len(first) - len(second)) <= 2 * largest


@pytest.mark.parametrize("sizes", [[5, 5, 5], [9], [1, 9, 1, 1], [3, 1, 1, 9]])
def test_a_file_without_two_stories_in_each_half_is_refused(tmp_path, sizes):
    with pytest.raises(ValueError, match="qa1.txt: expected a file of bAbI, with two stories in each half"):
        babi.halves(write_task(tmp_path / "qa1.txt", sizes))


@pytest.fixture
def seen(monkeypatch):
    """What students learn from and are tested on, in place of learning."""
    seen, eval_task = [], babi.brd.eval_task

    def teach(model, tokenizer, items, answers, options, passes):
        seen.append(("learnt", [item[0] for item in items], answers, options.seed, passes))
        return model

    def tested(model, tokenizer, task):
        seen.append(("tested", [item[0] for item in task["items"]]))
        return eval_task(model, tokenizer, task)
    monkeypatch.setattr(blind, "teach", teach)
    monkeypatch.setattr(babi.brd, "eval_task", tested)
    return seen


@pytest.mark.parametrize("labels, passes", [(0, None), (5, 20), (64, 20), (65, 6), (500, 6), (501, 3)])
def test_labels_come_from_the_first_half_and_the_test_is_the_second(folder, command, seen, labels, passes):
    command(f"--labels={labels}", files="qa12*")
    first, second = ([item for item, _ in half] for half in babi.halves(folder / "qa12_two_train.txt"))
    tests = [texts for what, texts, *_ in seen if what == "tested"]
    assert tests == [[text for text, *_ in second]] * 4
    learnt = [rest for what, *rest in seen if what == "learnt"]
    assert len(learnt) == (4 if labels else 0)
    rights = {text: words[min(right)] for text, words, right in first}
    for texts, answers, seed, read in learnt:
        assert len(set(texts)) == len(texts) == min(labels, len(first)) and read == passes
        assert [rights[text] for text in texts] == answers           # KeyError for a text of the second half
    if 0 < labels < len(first):
        by_seed = {seed: texts for texts, _, seed, _ in learnt}
        assert by_seed[1] != by_seed[2] and learnt[0][0] == learnt[1][0]    # all students of a run the same


def test_a_line_holds_the_credit_of_every_item_a_word_a_story(folder, command, monkeypatch):
    credits = [(1.0, 0.0, 0.5)[i % 3] for i in range(99)]
    monkeypatch.setattr(babi.brd, "eval_task", lambda model, tokenizer, task: {
        "cut": 5, "credits": credits[:len(task["items"])]})
    _, second = babi.halves(folder / "qa12_two_train.txt")
    stories, answers = [story for _, story in second], [words[min(right)] for (_, words, right), _ in second]
    sizes, often = [stories.count(n) for n in dict.fromkeys(stories)], max(map(answers.count, answers))
    assert len(second) % 3 and often > len(second) / 3
    for row in command(files="qa12*").values():
        credits, majority = (row[name].replace(" ", "") for name in ("credits", "majority"))
        assert row["cut"] == 5 and credits == ("10=" * 33)[:len(second)] and majority.count("1") == often
        assert len({answer for answer, sign in zip(answers, majority) if sign == "1"}) == 1
        assert all(list(map(len, row[name].split())) == sizes for name in ("credits", "majority"))


def test_the_dev_half_is_tested_blind_alone(folder, command, seen):
    command("--half=dev", files="qa12*")
    first, _ = babi.halves(folder / "qa12_two_train.txt")
    assert [texts for _, texts, *_ in seen] == [[item[0] for item, _ in first]] * 4
    with pytest.raises(ValueError, match="--labels come from the dev half, so it is no test then"):
        command("--half=dev", "--labels=4")


def test_the_labels_that_are_drawn_do_not_depend_on_the_folder(folder, command, seen, monkeypatch):
    command("--labels=5", files="qa12*", runs=["out1"])
    monkeypatch.chdir(folder)
    babi.main("qa12_two_train.txt --runs=out1 --students=plain --labels=5 --out=other/babi.jsonl".split())
    assert seen[-2] == seen[0] and seen[0][0] == "learnt"


def test_a_student_learns_for_as_many_passes_as_it_is_told(folder, monkeypatch):
    read = []
    monkeypatch.setattr(train, "fit", lambda name, model, mix, tokens, config: read.append((mix, tokens)))
    model, tokenizer = babi.load_student(folder / "out1" / "brd")
    items = [item for item, _ in babi.halves(folder / "qa1_one_train.txt")[0]]
    answers, options = blind.gold_answers(items), babi.SimpleNamespace(seed=1, device="cpu")
    for passes in ([], [3]):
        blind.teach(model, tokenizer, items, answers, options, *passes)
    once = int((read[0][0].sources[0].lengths - 1).sum())
    assert [tokens for _, tokens in read] == [blind.PASSES * once, 3 * once]


def test_a_stopped_command_goes_on_and_makes_nothing_twice(command, monkeypatch, capsys):
    made, written, test, write_text = [], [], babi.test, tables.write_text

    def killed(path, text):
        written.append(text)
        if len(written) == 6:
            raise KeyboardInterrupt
        write_text(path, text)
    monkeypatch.setattr(babi, "test", lambda job: made.append(job[:6]) or test(job))
    monkeypatch.setattr(tables, "write_text", killed)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from there"):
        command()
    assert len(made) == len(set(made)) == 8
    lines = command.out.read_text(encoding="utf-8").splitlines()
    kept = [tuple(json.loads(line)[name] for name in babi.KEY) for line in lines]
    assert len(kept) == 5 and set(kept) < set(made) and list(babi.read(command.out)) == kept
    rows = command()
    assert set(made[8:]) == set(made[:8]) - set(kept) and len(made) == 8 + 3
    assert set(rows) == set(made) and list(rows)[:5] == kept
    assert command() == rows and len(made) == 11                            # finished: nothing is made
    more = command("--labels=2", files="qa1_*", runs=["out2", "out2"])      # a run that is given twice is one
    assert len(made) == 13 and list(more)[:8] == list(rows)
    shown = capsys.readouterr().out
    assert "\n0 labels, test half, 2 seeds\n" in shown and "\n2 labels, test half, 1 seeds\n" in shown
    babi.main([f"--show={command.out}"])
    assert shown.endswith(capsys.readouterr().out)


def test_another_file_or_student_of_the_same_name_is_refused(folder, command, tmp_path):
    rows, again = command(runs=["out1"]), tmp_path / "again"
    write_task(tmp_path / "qa1_one_train.txt", [3] * 6)                     # of another language, for example
    shutil.copytree(folder / "out2", again)                                 # trained anew with the same seed
    shutil.copy(folder / "out1" / "results.json", again)
    for path, out in ((tmp_path, folder / "out1"), (folder, again)):
        options = [f"--runs={out}", "--students=plain", f"--out={command.out}"]
        with pytest.raises(ValueError, match="babi.jsonl: holds tests of another file or student of"):
            babi.main([str(path / "qa1_one_train.txt"), *options])
    assert babi.read(command.out) == rows


# --- the table ----------------------------------------------------------------------------------------------


def made_up(accuracy, sizes, seeds=(1, 2, 3), file="qa1_x.txt", labels=0):
    """Lines of results of students {name: accuracy} on stories of these sizes, in a random order."""
    rng = random.Random(f"{file} {sizes} {labels}")

    def words(part):
        return " ".join("".join("1" if rng.random() < part else rng.choice("000=") for _ in range(n))
                        for n in sizes)
    majority = words(0.3).replace("=", "0")
    rows = [{"file": file, "student": name, "seed": seed, "labels": labels, "half": "test", "hash": "",
             "cut": 0, "credits": words(part), "majority": majority}
            for name, part in accuracy.items() for seed in seeds]
    rng.shuffle(rows)
    return rows


def by_hand(rows, minus=None):
    """(mean, error) of "credits", a str a seed, or of their difference from others, in plain loops."""
    numbers = {"1": 1.0, "0": 0.0, "=": 0.5}
    read, less = ([[[numbers[sign] for sign in word] for word in row.split()] for row in some]
                  for some in (rows, minus or rows))
    n, means, stories = sum(map(len, read[0])), [], [0.0] * len(read[0])
    for seed, other in zip(read, less):
        total = 0.0
        for s, (word, taken) in enumerate(zip(seed, other)):
            for credit, its in zip(word, taken):
                difference = credit - (its if minus else 0.0)
                total += difference
                stories[s] += difference / len(read)
        means.append(total / n)
    mean, m = sum(means) / len(means), len(stories)
    squares = sum((total - mean * len(word)) ** 2 for total, word in zip(stories, read[0]))
    over_stories = m / (m - 1) * squares / n ** 2
    over_seeds = statistics.variance(means) / len(means) if len(means) > 1 else 0.0
    return mean, math.sqrt(over_stories + over_seeds)


def credits_of(rows, name):
    """The "credits" of a student, in the order of the seeds."""
    return [row["credits"] for row in sorted(rows, key=lambda row: row["seed"]) if row["student"] == name]


@pytest.mark.parametrize("seeds, sizes", [((1, 2, 3), [1, 5, 2, 8]), ((1,), [2] * 30), ((3, 1), [1] * 40)])
def test_means_and_errors_are_those_by_hand(seeds, sizes):
    rows = made_up({"brd": 0.8, "plain": 0.4, "brd+td": 0.6}, sizes, seeds)
    credits = {name: credits_of(rows, name) for name in ("plain", "brd", "brd+td")}
    majority = [rows[0]["majority"]] * len(seeds)
    head, _, line, mean, *_ = babi.table(rows)
    assert head == "| task | majority | plain | brd | brd+td | brd - plain, in SE | brd - majority, in SE |"
    expected = [by_hand(majority)[0], *sum(map(by_hand, credits.values()), ())]
    for other in (credits["plain"], majority):
        value, error = by_hand(credits["brd"], other)
        expected += [value, value / error]
    number, *shown = re.findall(r"[-+]?[\d.]+", line)
    assert number == "1" and len(shown) == len(expected)
    for text, value in zip(shown, expected):
        assert float(text) == pytest.approx(value, abs=0.51 * 10 ** -len(text.partition(".")[2]))
    assert mean.split(" | ")[1:5] == [shown[0], *shown[1:7:2]]


def test_the_error_is_not_below_what_fresh_stories_and_seeds_show():
    """Accuracies that a seed and a story shift: 300 such means spread about as far as they say."""
    rng, means, squares = np.random.default_rng(2), [], []
    for _ in range(300):
        stories, seeds = rng.normal(0, 0.08, 25), rng.normal(0, 0.03, 3)
        found = {"brd": {i: rng.binomial(4, 0.5 + stories + seed) for i, seed in enumerate(seeds)},
                 "items": np.full(25, 4)}
        mean, error = babi.value_of(found, "brd")
        means, squares = [*means, mean], [*squares, error ** 2]
    spread, told = np.std(means), np.mean(squares) ** 0.5
    assert 0.95 * spread < told < 1.5 * spread


def test_differences_are_paired_by_seed_and_of_those_that_both_have():
    rows = made_up({"brd": 0.7, "plain": 0.5}, [3] * 20)
    lacking = [row for row in rows if (row["student"], row["seed"]) != ("plain", 1)]
    value, error = by_hand(credits_of(lacking, "brd")[1:], credits_of(lacking, "plain"))
    assert list(babi.table(lacking))[2].split(" | ")[4] == f"{value:+.3f}, {value / error:+.1f}"
    alone = list(babi.table([row for row in rows if row["student"] == "plain"]))
    assert alone[2].endswith(" | - | - |") and "on 0 of 1 tasks: -" in alone[-1]
    part = rows + made_up({"brd": 0.7}, [1] * 9, file="qa2_y.txt")
    assert list(babi.table(part))[4].split(" | ")[2] == "-"                 # no mean of different tasks


def test_a_gain_that_is_equal_everywhere_is_clear():
    """Without an error it is as many errors as one likes, with its sign; no gain is none."""
    rows = made_up({"brd": 1.0, "plain": 0.0}, [2] * 20)
    rows = [row | {"credits": row["credits"].replace("=", "0")} for row in rows]
    assert list(babi.table(rows))[2].split(" | ")[4] == "+1.000, +inf"
    assert (babi.Value(-0.5, 0.0).times, babi.Value(0.0, 0.0).times) == (-float("inf"), 0.0)


def test_results_of_two_files_of_one_name_do_not_mix():
    rows = made_up({"brd": 0.7}, [2] * 20, (1,)) + made_up({"brd": 0.7}, [2] * 21, (2,))
    with pytest.raises(ValueError, match="qa1_.*: tests of two files of this name"):
        list(babi.table(rows))


def test_a_task_is_clear_where_both_gains_are_above_five_errors():
    accuracy = {"qa10_both.txt": (0.9, 0.2), "qa2_alike.txt": (0.9, 0.88), "qa3_below.txt": (0.35, 0.05)}
    rows = sum((made_up({"brd": brd, "plain": plain}, [2] * 60, file=file)
                for file, (brd, plain) in accuracy.items()), [])
    lines = list(babi.table(rows))
    cells = [line.strip(" |").split(" | ") for line in lines[2:5]]
    assert [task for task, *_ in cells] == ["2", "3", "10"]                 # in the order of their numbers
    above = [[float(cell.rpartition(" ")[2]) > 5 for cell in gains] for _, _, _, _, *gains in cells]
    assert above == [[False, True], [True, False], [True, True]]
    assert lines[-1].endswith("on 1 of 3 tasks: 10")


def test_labels_and_halves_have_tables_of_their_own_and_cut_prompts_are_told():
    rows = sum((made_up({"brd": 0.5, "plain": 0.5}, [2] * 8, labels=labels) for labels in (0, 64)), [])
    rows.append({**rows[0], "half": "dev", "cut": 3, "file": "own.txt"})
    text = "\n".join(babi.show(rows))
    heads = [line for line in text.splitlines() if " half, " in line]
    assert heads == [f"{head} seeds" for head in (
        "0 labels, dev half, 1", "0 labels, test half, 3", "64 labels, test half, 3")]
    assert text.count("| task |") == 3 and text.count("cut on the left, are in: own.txt") == 1


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, message", [
    (["no.txt"], "no.txt"), ([], "no task file; expected files of bAbI"),
    (["pyproject.toml"], "pyproject.toml: line 1: .*bAbI"),
    (["data/tasks/who.json"], "who.json: expected a file of bAbI, with two stories in each half"),
    (["QA", "--runs=no"], "no: no results.json, which python train.py writes at the end of a run"),
    (["QA", "--runs=OUT", "--students=brd,brd+kd"], "out1: no student brd.kd; expected plain, brd"),
    (["QA", "--labels=-1"], "--labels=-1, but"), (["QA", "--workers=0"], "--workers=0, but expected"),
    (["--show=no.jsonl"], "no.jsonl"), (["--show=x", "--labels=3"], "other options beside it have no effect"),
    (["--show=x", "QA"], "other options beside it have no effect"),
    (["--show=pyproject.toml"], "pyproject.toml: line 1: expected a JSON object"),
    (["--show=data/primer/level1.jsonl"], "level1.jsonl: line 1: no test of experiments.babi")])
def test_bad_arguments_are_told_in_a_line(folder, tmp_path, options, message):
    names = {"QA": str(folder / "qa1_one_train.txt"), "OUT": str(folder / "out1")}
    for name, text in names.items():
        options = [option.replace(name, text) for option in options]
    show = any(option.startswith("--show") for option in options)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        babi.main([*options, *([] if show else [f"--out={tmp_path / 'babi.jsonl'}"])])
    assert "\n" not in str(caught.value) and not (tmp_path / "babi.jsonl").exists()


@pytest.mark.parametrize("damage", [
    lambda row: json.dumps(row)[:-30], lambda row: "[1]",
    *(lambda row, change=change: json.dumps(row | change) for change in (
        {"credits": "11 10"}, {"credits": 7}, {"seed": [1]})),
    lambda row: json.dumps({name: value for name, value in row.items() if name != "cut"})])
def test_a_damaged_line_is_named_and_is_made_again_without_it(command, damage):
    rows = command(files="qa1_*")
    lines = command.out.read_text(encoding="utf-8").splitlines()
    damaged = [*lines[:2], damage(json.loads(lines[2])), *lines[3:]]
    command.out.write_text("\n".join(damaged), encoding="utf-8")
    with pytest.raises(ValueError, match="babi.jsonl: ") as caught:
        command(files="qa1_*")
    assert "line 3: " in str(caught.value) and "\n" not in str(caught.value)
    command.out.write_text("\n".join(lines[:2] + lines[3:]), encoding="utf-8")
    assert command(files="qa1_*") == rows
