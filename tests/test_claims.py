"""The claims' driver: errors against sums by hand, arms that differ in what they say alone, a run that was killed goes on."""
import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from course import claim_arms, claim_tables, claim_tests, claims, retelling
from experiments.claim_arms import ARMS, CLAIM_ARMS, Job, Size
from data import world
from data.documents import course_tokenizer
from data.batches import plan_batches
from data.tasks import items
from model import GPT, GPTConfig

TINY = Size(6000, 1500, 1000, 1000, 12, 1, 32, 1, 32)


def job(arm, **changes):
    return Job(arm, 1, 0.01, "nowhere", str(claims.DEV), TINY)._replace(**changes)


# --- estimates --------------------------------------------------------------------------------------------------------

def test_errors_are_those_of_the_formula():
    """Two tasks, two seeds. Means by task .75 .5 | 1 0; by seed .875 .25; over items: variances 1/4 1/3 | 0 0 over 4 items each."""
    blocks = [[np.array([1.0, 1, 0, 1]), np.array([1.0, 0, 0, 1, np.nan])], [np.array([1.0, 1]), np.array([0.0, 0, 0])]]
    value = claim_tables.estimate(blocks)
    assert value.mean == pytest.approx((0.875 + 0.25) / 2)
    assert value.seeds == pytest.approx(math.sqrt(((0.875 - 0.5625) ** 2 + (0.25 - 0.5625) ** 2) / 1 / 2))
    assert value.items == pytest.approx(math.sqrt(0.25 / 4 + (1 / 3) / 4) / 2 / 2)
    assert value.error == value.seeds and value.times == pytest.approx(0.5625 / value.seeds)


def test_one_seed_has_errors_over_items_and_bits_have_them_over_seeds():
    one = claim_tables.estimate([[np.array([0.0, 1, 1, 1])]])
    assert math.isnan(one.seeds) and one.error == one.items == pytest.approx(math.sqrt(0.25 / 4))
    bits = claim_tables.of_seeds([0.4, 0.5, 0.9])
    assert bits.mean == pytest.approx(0.6) and bits.error == bits.seeds == pytest.approx(math.sqrt(0.14 / 2 / 3))
    assert claim_tables.Value(0.0, 0.0, 0.0).times == 0 and claim_tables.Value(-0.1, 0.0, 0.0).times == -math.inf


def test_the_error_over_seeds_is_the_whole_error():
    """Where seeds do differ, only the larger figure has the spread of means that many repetitions show."""
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        rows = [(rng.random(60) < 0.5 + rng.normal(0, 0.15)).astype(float) for _ in range(8)]
        found.append(claim_tables.estimate([rows]))
    spread = np.std([value.mean for value in found])
    assert abs(np.mean([value.error for value in found]) / spread - 1) < 0.1
    assert np.mean([value.items for value in found]) < 0.7 * spread


def rows_of(**credits):
    """Lines of a file of results: arm -> {seed: (credits of task who, tokens seen)}."""
    return [{"arm": arm, "seed": seed, "tasks": {"who": signs}, "seen": seen, "bits": 1.0}
            for arm, runs in credits.items() for seed, (signs, seen) in runs.items()]


def test_differences_are_paired_by_item_and_leave_out_what_is_near():
    rows = rows_of(plain={1: ("0101", 100_000), 2: ("0000", 100_000)}, brd={1: ("1101", 100_400), 2: ("11=0", 100_000)})
    results = claim_tables.Results(rows)
    assert results.value("brd", ["who"], minus="plain").mean == pytest.approx((1 / 4 + 2.5 / 4) / 2)
    rows[0]["near"], rows[3]["near"] = {"who": [0]}, {"who": [3]}             # what any arm of the seed has read
    results = claim_tables.Results(rows)
    value = results.value("brd", ["who"], minus="plain")
    assert value.mean == pytest.approx((0 + 2.5 / 3) / 2)
    assert value.items == pytest.approx(math.sqrt((np.var([1, 1, 0.5], ddof=1) / 3)) / 2)
    assert results.value("plain", ["who"]).mean == pytest.approx((2 / 3 + 0) / 2)


def test_arms_that_read_more_are_not_compared():
    rows = rows_of(plain={1: ("01", 100_000)}, brd={1: ("11", 101_400)})
    with pytest.raises(ValueError, match="brd has read 101,400 tokens with seed 1, plain 100,000"):
        claim_tables.Results(rows).value("brd", ["who"], minus="plain")
    claim_tables.Results(rows_of(brd_half={1: ("01", 50_000)}, brd={1: ("11", 101_400)})).value("brd", ["who"], minus="brd_half")


def test_verdicts_count_tasks_beyond_three_errors():
    signs = {"who": ("1" * 40, "0" * 36 + "1" * 4), "what": ("01" * 20, "10" * 20), "nli": ("0" * 39 + "1", "1" * 40)}
    rows = [{"arm": arm, "seed": 1, "seen": 5, "tasks": {task: both[i] for task, both in signs.items()}}
            for i, arm in enumerate(("brd", "plain"))]
    line = claim_tables.verdict(claim_tables.Results(rows), "brd", "plain", list(signs))
    assert line.endswith("on 1 of 3 tasks: who; below on 1: nli")


def test_each_wording_has_its_own_items():
    results = claim_tables.Results(rows_of(brd={1: ("110100", 5), 2: ("101110", 5)}))
    wrappers = {"question": [{}, {}, {}]}
    ((task, by_chance, values),) = claim_tables.wordings_table(results, ["who"], wrappers).rows
    assert (task, by_chance, [v.mean for v in values]) == ("who", 0.5, [1.0, 0.5, 0.25])
    values = claim_tables.wordings_table(results, ["who"], {"question": [{}, {}]}).rows[0][2]
    assert [v and v.mean for v in values] == [pytest.approx(2 / 3), pytest.approx(0.5), None]


def test_signs_of_credits():
    assert claim_tests.packed([1.0, 0.0, 0.5, 1 / 3]) == "10=="
    assert np.array_equal(claim_tests.unpacked("10=-"), [1, 0, 0.5, np.nan], equal_nan=True)
    assert claim_tables.mean_accuracy({"a": "10", "b": "1-"}) == 0.75


# --- arms -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_differs_in_what_its_line_says(arm):
    entry, default = ARMS[arm], dataclasses.asdict(train.Config())
    size = {"seed": 1, "n_layer": 1, "n_embd": 32, "teacher_layer": 1, "teacher_embd": 32, "teacher_tokens": 1000, "start_tokens": 1500,
            "student_tokens": round(6000 * entry.tokens), **({} if entry.start else {"start_tokens": 1500})}
    assert dataclasses.asdict(claim_arms.config_of(job(arm))) == default | size | dict(entry.changes)
    assert entry.start in ("start", "pretrained", "") and (entry.tokens == 1 or not entry.changes or arm == "ner_more")
    assert arm in {name for arms in CLAIM_ARMS.values() for name in arms}


@pytest.fixture(scope="module")
def read():
    """What each arm reads of 20,000 tokens: {arm: (sources, shares, tokens of each source)}."""
    found, size = {}, TINY._replace(tokens=20_000)
    for arm in ARMS:
        sources, shares, begins = claim_arms.sources_of(job(arm, size=size))
        config = claim_arms.config_of(job(arm, size=size))
        plan = plan_batches(sources, shares, config.student_tokens if ARMS[arm].start else config.start_tokens, 1024, 1, begins)
        found[arm] = sources, shares, [sum(b.tokens for b in plan if b.source == s) for s in range(len(sources))]
    return found


def test_four_times_the_entities_beside_all_that_brd_reads(read):
    assert read["ner_more"][2] == pytest.approx([read["brd"][2][i] * times for i, times in enumerate((1, 4, 1))], rel=0.05)


def test_arms_read_equal_tokens(read):
    for arm, (_, shares, tokens) in read.items():
        wanted = 20_000 * ARMS[arm].tokens
        assert abs(sum(tokens) - wanted) < claim_tables.SPILL + 0.015 * wanted, arm         # documents are not cut
        assert all(abs(t - share * wanted) < 250 + 0.01 * wanted for share, t in zip(shares, tokens, strict=True)), arm
    assert [round(read[arm][1][0], 2) for arm in ("plain", "brd", "ori_25", "ori_50", "no_ner", "no_qra")] == [1, 0.1, 0.25, 0.5, 0.1, 0.1]
    assert read["no_ner"][2][1] == 0 == read["no_qra"][2][2]
    for mixed, alone in (("brd", "plain_10"), ("ori_25", "plain_25"), ("ori_50", "plain_50")):
        assert abs(read[mixed][2][0] - read[alone][2][0]) < 150              # as many tokens of plain text


def test_no_arm_reads_its_text_twice(read):
    for arm, (sources, _, tokens) in read.items():
        assert all(t <= 1.05 * (rows.lengths - 1).sum() + 100 for rows, t in zip(sources, tokens)), arm


def test_sentences_are_those_of_the_paragraphs_and_ask_nothing_beyond():
    whole, single = (claim_arms.annotated(read, 400, 3, world.LEVELS) for read in ("brd", "sentences"))
    assert [r["text"] for p in whole for r in p] == [r["text"] for (r,) in single]
    assert [r["entities"] for p in whole for r in p] == [r["entities"] for (r,) in single]
    kinds = Counter(q["kind"] for (r,) in single for q in r["questions"])
    assert kinds["structure"] == 0 and kinds["content"] > 200 and kinds["attitude"] > 50
    for (record,) in single:
        names = set(world.WORDS["person"]) & set(re.findall(r"\w+", record["text"]))
        assert names or all(q["kind"] == "attitude" for q in record["questions"])
        for q in record["questions"]:
            assert q["kind"] == "attitude" or q["answer"] in ("Yes", "No") or q["answer"] in record["text"]


def test_attitudes_offer_two_feelings_and_never_a_word_of_the_test():
    plain, varied = ([q for p in claim_arms.annotated(read, 600, 3, world.LEVELS) for r in p for q in r["questions"]] for read in ("brd", "attitudes"))
    changed, moods = [(a, b) for a, b in zip(plain, varied, strict=True) if a != b], {w for words in world.MOODS.values() for w in words}
    assert 80 < len(changed) < sum(a["kind"] == "attitude" for a in plain)
    for before, after in changed:
        words = set(re.findall(r"\w+", after["question"]))
        assert before["kind"] == "attitude" and after["answer"] in words and not moods & (words | {after["answer"]})
        assert after["answer"] in {"good": world.GOOD, "bad": world.BAD}[before["answer"]]
        assert len(words & set(world.GOOD)) == len(words & set(world.BAD)) == 1


def test_whose_it_is_comes_first(read):
    """The first level is two people who did alike, with wh questions alone; it takes the tokens that it was given."""
    n, levels = world.binding_curriculum(16_000)                                       # what the arm brd reads of questions
    both = []
    for paragraph in claim_arms.annotated("brd", n, 3, levels)[:int(levels[0].until * n)]:
        asked = [[q["answer"] for q in record["questions"] if q["kind"] == "content"] for record in paragraph]
        assert sum(map(len, asked)) > 5 and not {"Yes", "No"} & set(sum(asked, []))
        both.append([len(set(answers) & set(world.WORDS["person"])) for answers in asked] == [1, 1])
    assert np.mean(both) > 0.95
    rows = read["brd"][0][2]
    first, later = np.add.reduceat((rows.lengths - 1).astype(float), [0, int(len(rows) * levels[0].until)])
    assert 0.45 < first / 16_000 < 0.56 and first + later > 16_000              # half, in so short a run
    assert world.binding_curriculum(1_600_000)[1][0].until < 0.25


def test_claims_name_arms_that_there_are():
    assert set(CLAIM_ARMS) == set(claim_tables.TITLES)
    assert {arm for arms in CLAIM_ARMS.values() for arm in arms} == set(ARMS) | set(claim_arms.AFTER) | set(claim_arms.LEARNT)
    for claim, pairs in claim_tables.PAIRS.items():
        assert {arm for pair in pairs for arm in pair} <= set(CLAIM_ARMS[claim])
    assert [ARMS[arm].tokens for arm in CLAIM_ARMS["7"]] == [0.125, 0.25, 0.5, 1, 2]


def test_the_plan_fits_two_hours_on_two_cores():
    rows = claims.plan(list(CLAIM_ARMS), 3, Size())
    assert 8_000 < sum(seconds for *_, seconds in rows) < 14_000
    assert sum(n for _, n, *_ in rows) == 4 + 6 + 3 * len(ARMS) + 1 + 3 * 12


# --- what is measured ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def models():
    tokenizer = course_tokenizer("world", 1024)
    torch.manual_seed(0)
    return tokenizer, [GPT(GPTConfig(tokenizer.n_vocab, 384, 1, 2, 16)).eval() for _ in range(2)]


def test_agreement_is_the_cross_entropy_at_the_answer(models, monkeypatch):
    tokenizer, (student, teacher) = models
    monkeypatch.setattr(claim_tests, "AGREED", 3)
    task = {"items": [("Anna went to Oslo. Who? It is", ["Anna", "Ben"], {0}), ("So", ["Yes", "No"], {1}),
                      ("A day. All", ["good", "bad"], {0}), ("never reached", ["a", "b"], {0})]}
    found = claim_tests.agreement(student, teacher, tokenizer, {"t": task})["t"]
    for (prompt, *_), value in zip(task["items"], found, strict=False):
        ids = torch.tensor([tokenizer.encode(prompt)])
        log_s, log_t = (m.logits(m.hidden(ids))[0, -1].log_softmax(-1) for m in (student, teacher))
        assert value == pytest.approx(-(log_t.exp() * log_s).sum().item(), abs=1e-3)
    assert len(found) == 3


def test_items_that_are_learnt_from_are_not_tested(models, monkeypatch):
    tokenizer, (student, _) = models
    monkeypatch.setattr(claim_tests, "LEARNT", ("who",))
    monkeypatch.setattr(claim_tests, "LABELS", 10)
    task = items.draw_task("who", items.read_wrappers(claims.DEV), "x", 24)
    one, again = (claim_tests.learnt(student, tokenizer, {"who": task}, "supervised", None, seed=1)["tasks"]["who"] for _ in range(2))
    assert one == again and len(one) == 24 and one.count("-") == 10


def test_near_duplicates_are_looked_for_in_what_an_arm_reads():
    tokenizer, sources = course_tokenizer("world", 1024), claim_arms.sources_of(job("brd"))[0]
    texts = list(claim_tests.texts_read(sources, tokenizer))
    assert sum(map(len, sources)) == len(texts) and not any("<|" in text for text in texts)
    task = {"texts": [max(texts, key=len), "Words that nobody in this world would ever put side by side again."]}
    assert claim_tests.near({"t": task}, sources, tokenizer) == {"t": [0]}


def test_answers_of_the_reading_test_are_told_apart(models, monkeypatch):
    """An oracle that answers all but one group: its figures are 1, that group's 0."""
    tokenizer, (student, _) = models
    seen = Counter()

    def oracle(model, tokenizer, records, rng, forms, wrong="Yes"):
        for paragraph in records:
            seen.update(q["answer"] for r in paragraph for q in r["questions"])
        return [[(q, "?" if q["answer"] == wrong else q["answer"]) for r in paragraph for q in r["questions"]] for paragraph in records]
    monkeypatch.setattr(claim_tests.brd, "free_answers", oracle)
    figures = claim_tests.reading(student, tokenizer)
    assert [figures[name]["value"] for name in ("who", "wh", "yes", "swapped")] == [1, 1, 0, 1]
    assert figures["yes"]["n"] == seen["Yes"] and 10 < figures["swapped"]["n"] < seen["No"]
    assert figures["who"]["n"] == sum(n for answer, n in seen.items() if answer in world.WORDS["person"])


def test_full_sentences_are_judged_by_the_text():
    asked = retelling.exchanges(60, "test", 1)
    assert asked == retelling.exchanges(60, "test", 1) != retelling.exchanges(60, "test", 2)
    for prompt, right in asked:
        person = next(p for p in world.WORDS["person"] if right[0].startswith(p))
        value = next(v for words in world.WORDS.values() for v in words if right[0].endswith(f" {v}."))
        assert world.held_out(person, value) and person in prompt.split("In full")[1] and value in prompt.split("In full")[0]
        assert all(text.startswith(person) and text.endswith(f"{value}.") for text in right) and len(set(right)) == 3
        assert any(text[:-1] in prompt for text in right)                       # what is told is one of the ways to tell it


def test_only_right_sentences_count(models, monkeypatch):
    tokenizer, (student, _) = models
    asked = retelling.exchanges(4, "test", 1)
    texts = [asked[0][1][2], asked[1][1][0] + " And more.", asked[0][1][0], ""]
    monkeypatch.setattr(retelling.brd, "greedy", lambda *_: [tokenizer.encode(" " + text) + [tokenizer.end] for text in texts])
    assert retelling.test(student, tokenizer, 4) == [1, 0, 0, 0]


@pytest.mark.parametrize("method", retelling.METHODS)
def test_methods_differ_in_their_objective(method):
    config = retelling.config_of(train.Config(), 500, method)
    assert (config.text_weight, config.answer_weight, config.student_tokens, config.p) == (0, 1, 500, 0.8)
    assert retelling.METHODS[method][0] == ("references" if method == "SFT" else "cache")
    assert config.objective == {"SFT": "topp_kd", "SeqKD": "seqkd", "top-p KD": "topp_kd", "top-p TD": "bellman"}[method]


# --- the driver -------------------------------------------------------------------------------------------------------------

class InTurn:
    """Stands in for runs.processes: jobs run at once, in this process."""
    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:      # noqa: BLE001 (as a pool would hand it on)
            future.set_exception(error)
        return future


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """run(folder) of claim 4 with one seed and three tasks, and the list of trainings that it started."""
    monkeypatch.setattr(claims.runs, "processes", InTurn)
    monkeypatch.setattr(items, "TASKS", {name: items.TASKS[name] for name in ("who", "yes_no", "nli")})
    silent = dict.fromkeys(("who", "wh", "yes", "swapped"), {"value": None})
    monkeypatch.setattr(claim_tests, "reading", lambda *_: silent)      # many tokens of a student that has learnt nothing
    trained, fit = [], train.fit

    def counted(name, *arguments, **options):
        trained.append(name)
        return fit(name, *arguments, **options)
    monkeypatch.setattr(train, "fit", counted)
    sizes = [f"--{name}={value}" for name, value in TINY._asdict().items()]

    def run(folder):
        trained.clear()
        claims.main(["4", "--seeds=1", *sizes, f"--out_dir={tmp_path / folder}"])
        head, rows = claim_tables.read(tmp_path / folder / "results-dev.jsonl")
        return head, [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return SimpleNamespace(run=run, trained=trained, path=tmp_path)


def test_a_driver_that_was_killed_goes_on(driver, monkeypatch, capsys):
    whole = driver.run("whole")
    assert len(driver.trained) == 2 + 3 + 2 and capsys.readouterr().out.count("4: paragraphs against sentences") == 1
    assert len({(row["arm"], row["seed"]) for row in whole[1]}) == 2 and whole[0]["rates"]["brd"] in claims.RATES
    blind, calls = claim_tests.blind, []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return blind(*arguments, **options)
    monkeypatch.setattr(claim_tests, "blind", killed)
    with pytest.raises(KeyboardInterrupt):
        driver.run("cut")
    before = len(driver.trained)
    monkeypatch.setattr(claim_tests, "blind", blind)
    assert driver.run("cut") == whole and before == 5                       # the start twice, three rates
    assert len(driver.trained) == 2, driver.trained                         # what was trained is not trained again
    assert driver.run("cut") == whole and driver.trained == []
    with pytest.raises(ValueError, match="students of another size"):
        claims.main(["4", f"--out_dir={driver.path / 'cut'}"])


def test_other_wrappers_test_the_same_students(driver, monkeypatch, tmp_path):
    driver.run("one")
    other = json.loads(claims.DEV.read_text(encoding="utf-8"))
    for wrappers in other.values():
        wrappers.reverse()
    (tmp_path / "other.json").write_text(json.dumps(other), encoding="utf-8")
    driver.trained.clear()
    claims.main(["4", "--seeds=1", *[f"--{name}={value}" for name, value in TINY._asdict().items()], f"--out_dir={tmp_path / 'one'}",
                 f"--wrappers={tmp_path / 'other.json'}"])
    (one, _), (two, _) = (claim_tables.read(tmp_path / "one" / f"results-{name}.jsonl") for name in ("dev", "other"))
    assert driver.trained == [] and one["sha256"] != two["sha256"] and one["rates"] == two["rates"]


@pytest.mark.parametrize("arguments, message", [
    (["9"], "claim 9; expected 1, 2"), (["--seeds=0"], "--seeds: expected more"), (["--minutes=-1"], "--minutes: expected"),
    (["--wrappers=nowhere.json"], "nowhere.json"), (["--show", "pyproject.toml"], "not results of course/claims.py")])
def test_bad_arguments_are_told(arguments, message):
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        claims.main(arguments)


def test_learning_rates_are_those_of_the_family():
    rates = {"plain": 0.02, "brd": 0.005}
    assert [claim_arms.rate_of(arm, rates) for arm in ("plain", "further", "brd", "no_qra", "pretrained", "brd+SFT")] == [
        0.02, 0.02, 0.005, 0.005, 0.01, 0.01]


def test_the_readme_has_the_table_of_the_results_that_are_kept():
    root = Path(claims.__file__).resolve().parents[1]
    head, rows = claim_tables.read(root / "course" / "results" / "claims.jsonl")
    lines = [line for line in claim_tables.show(head, rows) if line.startswith("|")]
    assert len(lines) > 10 and "\n".join(lines) in (root / "README.md").read_text(encoding="utf-8")
    final = items.HERE / "wrappers" / "final.json"
    assert head["sha256"] == hashlib.sha256(final.read_bytes()).hexdigest() and head["seeds"] >= 3
