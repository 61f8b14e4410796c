"""The claims: errors against sums by hand, arms that differ in what they say, a run that goes on."""
import dataclasses
import json
import math
import random
import re
from collections import Counter
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from data import world
from data.batches import plan_batches
from data.documents import course_tokenizer
from data.files import open_run
from experiments import blind, claim_arms, claim_items, claim_tables, claims, retelling, tables
from experiments.claim_arms import ARMS, CLAIMS, Job, Size, mix_of
from model import GPT, GPTConfig

TINY = Size(6000, 1500, 1000, 1000, 12, 1, 32, 1, 32)


def job(arm, **changes):
    return Job(arm, 1, 0.01, "nowhere", str(claims.DEV), TINY)._replace(**changes)


def test_errors_are_those_of_the_formula():
    """Means by task .75 .5 | 1 0, by seed .875 .25; over items: variances 1/4 1/3 | 0 0 over 4 items each."""
    blocks = [[np.array([1.0, 1, 0, 1]), np.array([1.0, 0, 0, 1, np.nan])],
              [np.array([1.0, 1]), np.array([0.0, 0, 0])]]
    value = claim_tables.estimate(blocks)
    over_seeds = math.sqrt(((0.875 - 0.5625) ** 2 + (0.25 - 0.5625) ** 2) / 1 / 2)
    assert value == pytest.approx(((0.875 + 0.25) / 2, over_seeds))        # items: sqrt(1/16 + 1/12) / 4 = .1
    assert value.times == pytest.approx(0.5625 / over_seeds)
    alike = claim_tables.estimate([[blocks[0][0], blocks[0][0]]])           # seeds do not differ: items do
    assert alike == pytest.approx((0.75, math.sqrt(0.25 / 4 * 2) / 2))
    one = claim_tables.estimate([[np.array([0.0, 1, 1, 1])]])
    assert one == pytest.approx((0.75, math.sqrt(0.25 / 4)))
    bits = claim_tables.estimate([[np.array([x]) for x in (0.4, 0.5, 0.9)]])
    assert bits == pytest.approx((0.6, math.sqrt(0.14 / 2 / 3)))


def rows_of(**credits):
    """Lines of a file of results: arm -> {seed: (credits of task who, tokens seen)}."""
    return [{"arm": arm, "seed": seed, "tasks": {"who": signs}, "seen": seen}
            for arm, runs in credits.items() for seed, (signs, seen) in runs.items()]


def test_differences_are_paired_by_item_and_leave_out_what_is_near():
    rows = rows_of(plain={1: ("0101", 100_000), 2: ("0000", 100_000)},
                   brd={1: ("1101", 100_400), 2: ("11=0", 100_000)})
    results = claim_tables.Results(rows)
    assert results.value("brd", ["who"], minus="plain").mean == pytest.approx((1 / 4 + 2.5 / 4) / 2)
    rows[0]["near"], rows[3]["near"] = {"who": [0]}, {"who": [3]}        # what any arm of the seed has read
    results = claim_tables.Results(rows)
    assert results.value("brd", ["who"], minus="plain").mean == pytest.approx((0 + 2.5 / 3) / 2)
    assert results.value("plain", ["who"]).mean == pytest.approx((2 / 3 + 0) / 2)
    assert results.value("brd", ["who"], "centred") is None


def test_a_difference_from_a_student_that_has_learnt_items_is_about_the_others():
    results = claim_tables.Results([{"arm": arm, "seed": 1, "tasks": {"who": signs}}
                                    for arm, signs in (("brd", "0101"), ("brd:relaxed", "-111"))])
    assert results.value("brd:relaxed", ["who"], minus="brd").mean == pytest.approx(1 / 3)


SIGNS, VALUES = st.sampled_from("<=>"), st.builds(tables.Value, st.floats(-1, 1), st.one_of(
    st.floats(0, 0.3), st.just(math.nan)))


@given(SIGNS, VALUES)
@settings(deadline=None)
def test_no_verdict_flatters(sign, value):
    said, (mean, error) = claim_tables.verdict(sign, value), value
    shown = abs(mean) * (1 + 1e-9) >= 3 * error                          # False where the error is NaN
    if said == "as in the paper":
        assert abs(mean) + 3 * error <= 0.02 if sign == "=" else shown and (mean > 0) == (sign == ">")
    if said != "as in the paper" and error and abs(mean) > 3.01 * error:
        assert said == "opposite"
    assert claim_tables.verdict(sign, None) == "not tested"


@given(st.lists(st.sampled_from(["as in the paper", "opposite", "not shown", "not tested"]), min_size=1))
def test_a_claim_is_reproduced_where_all_comparisons_hold(found):
    said, held = claim_tables.verdict_of(found), found.count("as in the paper")
    assert said.startswith("reproduced") == (held == len(found)) and said.startswith("not") == (held == 0)
    assert f": {held} of {len(found)}" in said and ("opposite" in said) == ("opposite" in found)


def made_up(**rates):
    """The summary's lines of claim 4 or 7 for arms that are right in n of 50 items, in three seeds."""
    rng = np.random.default_rng(1)
    rows = [{"arm": arm, "seed": seed, "tasks": {task: tables.packed(rng.permutation(np.arange(50) < n))
                                                 for task in claim_items.TASKS}}
            for arm, n in rates.items() for seed in (1, 2, 3)]
    return claim_tables.summary("4" if "sentence" in rates else "7", claim_tables.Results(rows))


@pytest.mark.parametrize("brd, sentence, verdict, whole", [
    (20, 30, "opposite", "not: 0 of 1, 1 opposite"), (25, 25, "not shown", "not: 0 of 1"),
    (30, 20, "as in the paper", "reproduced: 1 of 1")])
def test_a_sign_against_the_paper_is_told(brd, sentence, verdict, whole):
    head, line = made_up(brd=brd, sentence=sentence)
    assert head.endswith(f" **{whole}** |") and line.endswith(f" {verdict} |")


def test_a_rise_where_the_paper_has_none_is_told():
    head, *lines = made_up(brd_eighth=10, brd_quarter=20, brd_half=20, brd=30, brd_double=40)
    said = [line.split(" | ")[-1] for line in lines]
    assert said == ["as in the paper |", "not shown |", "as in the paper |", "opposite |"]
    assert "in part: 2 of 4, 1 opposite" in head


def test_signs_of_credits():
    assert tables.packed([1.0, 0.0, 0.5, 1 / 3]) == "10=="
    assert np.array_equal(tables.unpacked("10=-"), [1, 0, 0.5, np.nan], equal_nan=True)


def test_the_tables_of_the_results_that_are_kept(capsys):
    path = Path(claims.__file__).parent / "results" / "claims.jsonl"
    head, rows = claim_tables.read(path)
    final = claims.sha256_of(claim_items.WRAPPERS / "final.json")
    assert head["sha256"] == final and head["seeds"] >= 3 and head["size"] == Size()._asdict()
    claims.main([f"--show={path}"])
    text = capsys.readouterr().out
    assert re.findall(r"^\| \*\*(\w+)\*\* ", text, re.M) == list(CLAIMS) and "nan" not in text
    assert all(f"\n{claim}: {entry.title}\n" in text for claim, entry in CLAIMS.items())
    first, page = ((folder / "README.md").read_text(encoding="utf-8") for folder in path.parents[2:0:-1])
    made = text[text.index("BRD minus plain text"):]
    assert made in page                                                     # as --show prints it
    for gain in re.findall(r"\+0(\.\d+) ± 0(\.\d+)", made.splitlines()[0]):
        assert "+{} ± {}".format(*gain) in first
    kinds = re.findall(r"^\| \*\*\d.* \*\*([\w ]+): \d", made, re.M)
    assert (kinds.count("reproduced"), kinds.count("in part"), len(kinds)) == (1, 6, 8)
    assert "One of the paper's eight claims is reproduced (answers weigh 20), six in part" in first


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_differs_in_what_its_line_says(arm):
    entry, tokens = ARMS[arm], 1500 if arm == "start" else round(6000 * ARMS[arm].tokens)
    expected = train.Config(
        seed=1, n_layer=1, n_embd=32, out_dir="nowhere", student_tokens=tokens,
        answer_weight=1.0 if arm.startswith("uniform") else train.Config.answer_weight,
        cooldown=train.Config.cooldown if entry.start else 0.0)
    assert claim_arms.config_of(job(arm)) == expected
    assert arm == "start" or arm in {name for claim in CLAIMS.values() for name in claim.arms}
    start = job(arm, rate=0.02).start
    assert (start and start[:3]) == ((entry.start, 1, claim_arms.RATE) if entry.start else None)


def test_claims_name_arms_that_there_are():
    named = {arm for claim in CLAIMS.values() for arm in claim.arms}
    assert named == set(ARMS) - {"start"} | set(claim_arms.AFTER) | {
        f"{first}:{setting}" for first in ("plain", "brd") for setting in ("relaxed", "supervised")}
    for claim in CLAIMS.values():
        assert {arm for name in claim.differences for arm in name.split(" - ")} <= set(claim.arms)
    assert [claim_arms.family(arm) for arm in ("further", "no_qra", "brd+SFT", "plain:relaxed")] == [
        "plain", "brd", "brd", "plain"]
    assert job("brd+SFT", rate=0.02).start == job("brd", rate=0.02)


@pytest.fixture(scope="module")
def read():
    """What each arm reads of 20,000 tokens: {arm: (DataMix, tokens of each source)}."""
    found = {}
    for arm in ARMS:
        one = job(arm, size=TINY._replace(tokens=20_000, start=20_000))
        mix = claim_arms.mix_of(one)
        plan = plan_batches(mix, claim_arms.config_of(one).student_tokens, 1024, 1)
        found[arm] = mix, [sum(b.tokens for b in plan if b.source == s) for s in range(len(mix.sources))]
    return found


def test_arms_read_equal_tokens_and_no_text_twice(read):
    for arm, (mix, tokens) in read.items():
        wanted = 20_000 * ARMS[arm].tokens
        assert abs(sum(tokens) - wanted) < 300 + 0.015 * wanted, arm    # documents are not cut
        for rows, share, seen in zip(mix.sources, mix.shares, tokens, strict=True):
            assert abs(seen - share * wanted) < 250 + 0.01 * wanted, arm
            assert seen <= 1.05 * (rows.lengths - 1).sum() + 100, arm
    assert read["no_ner"][1][1] == 0 == read["no_qra"][1][2]
    ori, ner, qra = read["brd"][1]
    assert read["ner_more"][1] == pytest.approx([ori, 4 * ner, qra], rel=0.05)


def test_a_sentence_alone_asks_nothing_beyond_it():
    """As many sentences as in whole paragraphs, and no question that needs another one to be answered."""
    whole, single = (claim_arms.annotated(read, 600, 3, world.LEVELS) for read in ("brd", "sentences"))
    assert {len(paragraph) for paragraph in single} == {1}
    assert len(single) == pytest.approx(sum(map(len, whole)), rel=0.05)
    kinds, lone = Counter(), 0
    for (record,) in single:
        words = set(re.findall(r"\w+", record["text"]))
        people, unnamed = words & set(world.WORDS["person"]), bool(words & {"She", "He", "she", "he"})
        lone += unnamed
        for item in record["questions"]:
            asked, answer = set(re.findall(r"\w+", item["question"])), item["answer"]
            kinds[item["kind"]] += 1
            assert asked & set(world.WORDS["person"]) <= people
            if item["kind"] == "content":
                assert people and (answer in ("Yes", "No") or answer in record["text"])
            elif item["kind"] == "structure":
                assert not unnamed and answer in {*people, "statement", "denial", "exclamation"}
    assert min(kinds.values()) > 30 and lone > 15


def test_a_sentence_that_names_nobody_alone_has_an_attitude_at_most():
    her = world.Fact("She felt proud.", "feel", "Anna", "proud", pronoun="she", mood="good")
    record = claim_arms.alone(random.Random(1), her, world.FULL)
    assert record["text"] == her.text and {item["answer"] for item in record["questions"]} == {"good"}
    assert {item["kind"] for item in record["questions"]} == {"attitude"}


def test_brd_reads_the_binding_levels_first_and_short_without_them(read):
    """Two people who did alike, in the first of them with wh questions about both alone."""
    tokenizer, first = course_tokenizer("world", 1024), {}
    for arm in ("brd", "short"):
        rows = read[arm][0].sources[2]
        texts = [tokenizer.decode(rows.document(d)[0].tolist()) for d in range(len(rows))]
        n = int((claim_arms.SHORT if arm == "short" else world.LEVELS)[0].until * len(texts)) - 1
        first[arm] = [re.findall(r"\w+", text.split("<|sep|>")[0]) for text in texts[:n]]
        answers = [set(re.findall(r" (\w+)\n", text)) for text in texts[:n]]
        assert (not set.union(*answers) & {"Yes", "No"}) == (arm == "brd")
    people, binding = set(world.WORDS["person"]), world.LEVELS[:2]
    both = {arm: np.mean([len(people & set(words)) == 2 for words in found]) for arm, found in first.items()}
    assert both["brd"] > 0.9 and both["short"] == 0
    assert all(at.alike == 1.0 and at.sentences == (2, 2) for at in binding) and not binding[0].whether
    assert all(at.alike < 1.0 for at in claim_arms.SHORT)


@pytest.fixture(scope="module")
def models():
    tokenizer = course_tokenizer("world", 1024)
    torch.manual_seed(0)
    return tokenizer, [GPT(GPTConfig(tokenizer.n_vocab, 384, 1, 2, 16)).eval() for _ in range(2)]


def test_agreement_is_the_cross_entropy_at_the_answer(models, monkeypatch):
    tokenizer, (student, teacher) = models
    monkeypatch.setattr(claims, "AGREED", 2)
    task = {"items": [("Anna went to Oslo. Who? It is", ["Anna", "Ben"], {0}), ("So", ["Yes", "No"], {1}),
                      ("never reached", ["a", "b"], {0})]}
    found = claims.agreement(student, teacher, tokenizer, {"t": task})["t"]
    for (prompt, *_), value in zip(task["items"], found):
        ids = torch.tensor([tokenizer.encode(prompt)])
        log_s, log_t = (m.logits(m.hidden(ids))[0, -1].log_softmax(-1) for m in (student, teacher))
        assert value == pytest.approx(-(log_t.exp() * log_s).sum().item(), abs=1e-3)
    assert len(found) == 2


def test_items_that_are_learnt_from_are_not_tested(models, monkeypatch):
    tokenizer, (student, _) = models
    monkeypatch.setattr(claim_items, "LEARNT", ("who",))
    monkeypatch.setattr(claims, "LABELS", 10)
    monkeypatch.setattr(blind, "PASSES", 1)
    tasks = {"who": claim_items.draw_task("who", claim_items.read_wrappers(claims.DEV), "x", 24)}
    signs = claims.learnt(student, tokenizer, tasks, "supervised", None, seed=1)["who"]
    assert len(signs) == 24 and signs.count("-") == 10


def test_near_duplicates_are_looked_for_in_what_an_arm_reads(read):
    tokenizer, sources = course_tokenizer("world", 1024), read["brd"][0].sources
    text = tokenizer.decode(sources[2].document(5)[0].tolist()).replace("<|sep|>", "").replace("<|end|>", "")
    task = {"texts": [text, "Words that nobody in this world would ever put side by side again."]}
    assert claims.near({"t": task}, sources, tokenizer) == {"t": [0]}


def test_what_the_methods_learn_from(tmp_path, monkeypatch):
    """A reference is one of the right sentences behind its prompt; the teacher answers the same prompts."""
    tokenizer, one = course_tokenizer("world", 1024), job("teacher", out=str(tmp_path))
    open_run(tmp_path, {}, {})
    monkeypatch.setattr("brd.eval_fresh_text", lambda *_: {})           # a minute of a random teacher
    claims.teach(one)
    asked = retelling.exchanges(1000 // 50 + 1)
    rows, cache = (mix_of(one._replace(arm=f"brd+{name}")).sources[0] for name in ("SFT", "SeqKD"))
    assert len(rows) == len(cache) == len(asked)
    for d, (prompt, right) in enumerate(asked):
        (tokens, roles), (drawn, others, *_) = rows.document(d), cache.document(d)
        n = len(tokenizer.encode(prompt))
        for ids, of in ((tokens, roles), (drawn, others)):
            assert tokenizer.decode(ids[:n]) == prompt and (of[:n] == 0).all() and (of[n:] > 0).all()
        assert tokenizer.decode(tokens[n:-1]).strip() in right and tokens[-1] == tokenizer.end


def test_methods_learn_the_answers_alone():
    config = claim_arms.config_of(job("brd+top-p TD"))
    changed = dict(text_weight=0.0, answer_weight=1.0, learning_rate=0.005, student_tokens=1000, p=0.8)
    assert config == dataclasses.replace(claim_arms.config_of(job("brd")), **changed)


class InTurn:
    """In place of a pool: jobs run at once, in this process."""

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """run(folder, ...) of claim 4 with one seed and three tasks, and the list of trainings that it starts."""
    tasks = "who", "yes_no", "nli"
    monkeypatch.setattr(claims, "worker_pool", lambda n: nullcontext(InTurn()))
    monkeypatch.setattr(claim_items, "TASKS", {name: claim_items.TASKS[name] for name in tasks})
    trained, fit = [], train.fit
    monkeypatch.setattr(train, "fit", lambda name, *rest: trained.append(name) or fit(name, *rest))
    sizes = [f"--{name}={value}" for name, value in TINY._asdict().items()]

    def run(folder, *options, wrappers="dev"):
        trained.clear()
        claims.main(["4", "--seeds=1", *sizes, f"--out_dir={tmp_path / folder}", *options])
        return claim_tables.read(tmp_path / folder / f"results-{wrappers}.jsonl")
    return SimpleNamespace(run=run, trained=trained, path=tmp_path)


def test_a_run_that_was_killed_goes_on_and_other_wrappers_test_the_same_students(driver, monkeypatch, capsys):
    whole = driver.run("whole")
    assert len(driver.trained) == 2 + 3 + 2 and capsys.readouterr().out.count("\n4: paragraphs against") == 1
    assert [row["arm"] for row in whole[1]] == ["brd", "sentence"]
    scored, calls = claims.scored, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 9:                             # the last one of three rates and three tasks
            raise KeyboardInterrupt
        return scored(*arguments)
    monkeypatch.setattr(claims, "scored", killed)
    with pytest.raises(KeyboardInterrupt):
        driver.run("cut")
    assert len(driver.trained) == 5                                         # the start twice, three rates
    monkeypatch.setattr(claims, "scored", scored)
    assert driver.run("cut") == whole and len(driver.trained) == 2          # nothing is trained again
    assert driver.run("cut") == whole and driver.trained == []
    with pytest.raises(ValueError, match="holds a run with tokens=6000"):
        driver.run("cut", "--tokens=7000")
    other = {name: some[::-1] for name, some in claim_items.read_wrappers(claims.DEV).items()}
    (driver.path / "other.json").write_text(json.dumps(other), encoding="utf-8")
    head, _ = driver.run("cut", f"--wrappers={driver.path / 'other.json'}", wrappers="other")
    assert driver.trained == [] and head["sha256"] != whole[0]["sha256"]


@pytest.mark.parametrize("arguments, message", [
    (["9"], "claim 9; expected 1, weighted, 2"), (["--seeds=0"], "--seeds=0, but expected"),
    (["--wrappers=no.json"], "no.json"),
    (["--show", "pyproject.toml"], "pyproject.toml: expected the results of experiments.claims")])
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        claims.main(arguments)
