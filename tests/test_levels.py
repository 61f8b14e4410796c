"""The primer, level by level: what the arms read, runs that were stopped, the table against plain loops."""
import json
import math
import random
import statistics
from collections import Counter
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest

import train
from data.annotated import PRIMER, read_annotations
from data.batches import plan_batches
from data.documents import course_tokenizer
from experiments import levels
from experiments.levels import ARMS, FIGURES
from tests.test_compare import InTurn

TOKENS, SHORT = 30_000, PRIMER[3:5]                     # SHORT: two files of few paragraphs
CONFIG = train.Config(corpus="open", n_vocab=1536, student_tokens=TOKENS, n_layer=1, n_embd=16, n_head=2,
                      device="cpu", step_tokens=512)


@pytest.fixture(scope="module")
def read():
    """{arm: (DataMix, [text of each document of a source], ...)} of short runs."""
    tokenizer = course_tokenizer("open", 1536)
    found = {}
    for arm in ARMS:
        mix = levels.mix_of(arm, CONFIG, tokenizer)
        found[arm] = mix, [[tokenizer.decode(rows.document(d)[0].tolist()) for d in range(len(rows))]
                           for rows in mix.sources]
    return found


def test_no_arm_reads_a_held_out_sentence(read):
    pairs = [(i % 3 == 2, record["text"]) for path in PRIMER
             for i, paragraph in enumerate(read_annotations(path)) for record in paragraph]
    training, held_out = ([text for is_out, text in pairs if is_out == wanted] for wanted in (False, True))
    assert len(training) > 1000 and len(held_out) > 500
    for arm, (_, texts) in read.items():
        everything = "\n".join(text for source in texts for text in source)
        assert not [sentence for sentence in held_out if sentence in everything], arm
        known = sum(sentence in everything for sentence in training) / len(training)
        assert known > 0.97 if arm != "world" else known == 0


def test_arms_read_the_sources_and_shares_that_they_say(read):
    (world, of_world), (primer, of_primer), (both, of_both) = (read[arm] for arm in ARMS)
    assert of_both == of_world + of_primer and (len(of_world), len(of_primer)) == (3, 2)
    tokens = 2_400_000
    for mix in (world, primer, both):
        plan = plan_batches(mix, tokens, CONFIG.step_tokens, 1)
        seen = [sum(batch.tokens for batch in plan if batch.source == s) for s in range(len(mix.sources))]
        assert seen == pytest.approx([share * tokens for share in mix.shares], rel=0.01, abs=500)
    assert primer.shares == pytest.approx([0.2, 0.8])                           # entities, questions
    assert [np.mean(["?" in text for text in source]) > 0.5 for source in of_primer] == [False, True]
    assert both.shares == pytest.approx([0.6 * x for x in world.shares] + [0.4 * x for x in primer.shares])
    first = [i for i, batch in enumerate(plan) if batch.source >= 3][0]         # in `both`
    before = [batch.tokens for batch in plan[:first]]
    assert 0.2 * tokens < sum(before) < 0.26 * tokens and {b.source for b in plan[:first]} == {0, 1, 2}
    assert {batch.source for batch in plan[first + len(plan) // 20:]} == set(range(5))


def test_the_primer_is_read_level_by_level_in_several_forms(read):
    """The levels in order, but for one part of 24 at each border; every piece four times."""
    level_of = {record["text"]: level for level, path in enumerate(PRIMER, 1)
                for paragraph in read_annotations(path) for record in paragraph}
    for source in read["primer"][1]:
        found = [next(level for text, level in level_of.items() if text in document) for document in source]
        for level in range(2, 7):
            assert found[::-1].index(level - 1) > len(found) - found.index(level) - len(found) / 12
        assert found[0] == 1 and found[-1] == 6 and len(set(found[:len(found) // 24])) == 1
        assert found.count(1) == 4 * 167                                        # one piece a paragraph
        assert len(set(source)) > 0.5 * len(source)                             # mostly not the same twice


def test_an_entity_at_random_answers_as_often_as_plain_loops_say():
    paragraphs, right, asked = read_annotations(PRIMER[2])[2::3], 0.0, 0
    for paragraph in paragraphs:
        for record in paragraph:
            for question in record["questions"]:
                if question["kind"] != "content" or question["answer"] in ("Yes", "No"):
                    continue
                asked += 1
                for entity in record["entities"]:
                    if entity["text"] == question["answer"]:
                        right += 1 / len(record["entities"])
    assert 0.05 < right / asked < 0.5 and levels.random_entity(paragraphs) == pytest.approx(right / asked)
    bare = [[{"entities": [], "questions": [{"kind": "content", "question": "Who?", "answer": "Ann"}]}]]
    assert levels.random_entity(bare) == 0


# --- a run --------------------------------------------------------------------------------------------------


def figures(value, se=0.02, majority=0.3, n=100):
    """What the reading test finds, the same in all figures, with some that are not shown."""
    return {name: {"value": value, "se": se, "n": n, "majority": majority, "groups": [(1, 2, 3)]}
            for name in (*FIGURES.values(), "answer.all")}


@pytest.fixture
def command(monkeypatch, tmp_path):
    """command(*options) in this process, without any training -> lines of results; calls: what it did."""
    def fit(name, model, mix, tokens, *rest):
        command.calls.append((name, tokens))
        return [1.0], [], tokens

    def eval_reading(model, tokenizer, paragraphs, own_questions):
        command.calls.append(("test", [paragraph[0]["paragraph"] for paragraph in paragraphs]))
        if len(command.calls) == command.stop_at:
            raise KeyboardInterrupt
        return figures(0.5 + len(paragraphs) / 1000)

    def command(*options):
        levels.main([f"--out_dir={tmp_path / 'run'}", "--tokens=900", "--seeds=1", *options])
        return levels.read(tmp_path / "run" / "levels.jsonl")
    command.calls, command.stop_at, command.out = [], 0, tmp_path / "run"
    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(levels.brd, "eval_reading", eval_reading)
    monkeypatch.setattr(levels, "mix_of", lambda arm, *rest: arm)
    monkeypatch.setattr(levels, "PRIMER", SHORT)
    monkeypatch.setattr(levels, "worker_pool", lambda n: nullcontext(InTurn(n)))
    monkeypatch.setattr(levels, "Config", partial(train.Config, n_layer=1, n_embd=16, n_head=2, device="cpu"))
    return command


def test_a_stopped_run_goes_on_and_trains_and_tests_nothing_twice(command, capsys):
    command.stop_at = 3 + 3                                                     # in the tests of the second
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from there"):
        command()
    command.stop_at = 0
    rows = command()
    trained = [call for call in command.calls if call[0] != "test"]
    assert trained == [("world-1", 900), ("primer-1", 900), ("both-1", 900)]
    assert len(command.calls) == 3 * (1 + 2) + 2
    assert [(row["arm"], row["seed"], row["level"]) for row in rows] == [
        (arm, 1, level) for arm in ARMS for level in (1, 2)]
    calls = len(command.calls)
    assert command() == rows and len(command.calls) == calls
    more = command("--seeds=2")
    assert more[:6] == rows and len(more) == 12 and len(command.calls) == calls + 3 * 3
    shown = capsys.readouterr().out
    levels.main([f"--show={command.out / 'levels.jsonl'}"])
    assert shown.endswith(capsys.readouterr().out)
    with pytest.raises(ValueError, match="holds a run with tokens=900, this one has 1000"):
        command("--tokens=1000")


def test_a_run_of_another_primer_is_refused(command, monkeypatch):
    command()
    monkeypatch.setattr(levels, "PRIMER", SHORT[1:])
    with pytest.raises(ValueError, match="holds a run with primer="):
        command()


def test_every_third_paragraph_of_a_level_is_the_test(command):
    rows = command()
    tested = [numbers for name, numbers in command.calls if name == "test"]
    assert tested[:2] * 3 == tested and all(n % 3 == 2 for numbers in tested for n in numbers)
    assert [len(numbers) for numbers in tested[:2]] == [len(read_annotations(path)) // 3 for path in SHORT]
    for row in rows:
        assert row["entity F1"] == {"value": 0.5 + len(tested[row["level"] - 1]) / 1000, "se": 0.02, "n": 100,
                                    "majority": 0.3}
        assert [label for label in FIGURES if "entity" in row[label]] == ["wh, exact"]


# --- the table ----------------------------------------------------------------------------------------------


def made_up(seeds=(1, 2, 3), of_levels=(1, 2)):
    """Lines of results with random figures, in random order."""
    rng, rows = random.Random(f"{seeds} {of_levels}"), []
    for level in of_levels:
        base = {label: {"majority": rng.random(), "n": rng.randrange(50, 90)} for label in FIGURES}
        base["wh, exact"]["entity"] = base["wh, exact"]["majority"] * level / 1.5       # better at level 2
        rows += [{"arm": arm, "seed": seed, "level": level, **{
            label: {"value": rng.random(), "se": rng.uniform(0.1, 0.3), **base[label]} for label in FIGURES}}
            for arm in ARMS for seed in seeds]
    rng.shuffle(rows)
    return rows


@pytest.mark.parametrize("seeds", [(1, 2, 3), (7,)])
def test_the_table_is_that_of_plain_loops_with_the_better_baseline(seeds):
    rows = made_up(seeds)
    head, _, *lines = levels.show(rows)
    assert len(lines) == 2 * len(FIGURES) and head.endswith("both - best baseline, in SE |")
    better = Counter()
    for line, (level, label) in zip(lines, [(level, label) for level in (1, 2) for label in FIGURES]):
        cells, expected = line.strip("| ").split(" | "), []
        for arm in ARMS:
            some = [row[label] for row in rows if row["arm"] == arm and row["level"] == level]
            values, squares = [entry["value"] for entry in some], 0.0
            if len(some) > 1:
                squares = statistics.variance(values) / len(some)
            error = math.sqrt((sum(entry["se"] for entry in some) / len(some)) ** 2 + squares)
            mean = sum(values) / len(some)
            expected.append(f"{mean:.3f} ± {error:.3f}")
        baseline, entity = some[0]["majority"], ""
        if label == "wh, exact":
            better[some[0]["entity"] > baseline] += 1
            baseline, entity = max(baseline, some[0]["entity"]), f"{some[0]['entity']:.3f}"
        told = [str(level), label, str(some[0]["n"]), f"{some[0]['majority']:.3f}", entity, *expected]
        assert cells == [*told, f"{(mean - baseline) / error:+.1f}"]
    assert better == {False: 1, True: 1}


def test_a_student_that_answers_nothing_is_shown():
    rows = made_up()
    for row in rows:
        for label in FIGURES:
            row[label] |= {"value": 0.0, "se": 0.0}
    assert all("| 0.000 ± 0.000 | -inf |" in line for line in list(levels.show(rows))[2:])


def test_the_error_is_not_below_what_fresh_paragraphs_and_seeds_show():
    """Accuracies that a seed and a paragraph shift: 300 such means spread at most as far as they say."""
    rng, means, squares = np.random.default_rng(3), [], []
    for _ in range(300):
        shifts, found = rng.normal(0, 0.2, 40), []
        for seed in rng.normal(0, 0.03, 3):
            credits = rng.binomial(3, np.clip(0.5 + shifts + seed, 0, 1)) / 3
            found.append({"value": credits.mean(), "se": credits.std(ddof=1) / 40 ** 0.5})
        mean, error = levels.value_of(found)
        means, squares = [*means, mean], [*squares, error ** 2]
    spread, told = np.std(means), np.mean(squares) ** 0.5
    assert spread < told < 1.5 * spread


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, message", [
    (["--seeds=0"], "--seeds=0, but expected"), (["--tokens=-1"], "--tokens=-1, but expected"),
    (["--workers=0"], "--workers=0, but expected"), (["--show=no.jsonl"], "no.jsonl"),
    (["--show=x", "--seeds=2"], "--seeds=2 has no effect beside --show"),
    (["--show=pyproject.toml"], "pyproject.toml: line 1: expected a JSON object"),
    (["--show=data/primer/level1.jsonl"], "level1.jsonl: line 1: no test of experiments.levels"),
    (["--show=EMPTY"], "EMPTY: expected a test of each arm, seed and level")])
def test_bad_arguments_are_told_in_a_line(tmp_path, monkeypatch, options, message):
    (tmp_path / "EMPTY").touch()
    options = [option.replace("EMPTY", str(tmp_path / "EMPTY")) for option in options]
    with pytest.raises((ValueError, OSError), match=message) as caught:
        levels.main(options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage, message", [
    (lambda row: json.dumps(row)[:-9], "line 3: expected a JSON object"), (lambda row: "", "each arm, seed"),
    (lambda row: json.dumps(row | {"arm": "ARM"}), "each arm, seed"),
    (lambda row: json.dumps(row | {"level": None}), "each arm, seed"),
    (lambda row: json.dumps(row | {"wh, exact": {"value": 1}}), "line 3: no test of"),
    (lambda row: json.dumps(row | {"wh, exact": 1}), "line 3: ")])
def test_damaged_and_missing_lines_are_named(tmp_path, damage, message):
    rows, path = made_up(), tmp_path / "levels.jsonl"
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert levels.read(path) == rows
    path.write_text("\n".join([*lines[:2], damage(rows[2]), *lines[3:]]), encoding="utf-8")
    with pytest.raises(ValueError, match=f"levels.jsonl: .*{message}"):
        levels.read(path)
