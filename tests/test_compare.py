"""The comparison of objectives: measures against plain loops, and a small run that is stopped and goes on."""
import json
import re
import signal
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import pytest
import torch

import td_distill
from data.files import open_run
from data.sets import restrict_to_p
from experiments import bench, claims, compare, compare_tasks, grammar, objectives, pair, routes, teacher
from experiments.objectives import OBJECTIVES, terms
from model import GPT

SMALL = compare_tasks.Size(24, 2, 24, teacher_tokens=3000, start_tokens=2000, max_new=16)


class InTurn(Executor):
    """A pool of no processes: every job is done when it is submitted."""
    def __init__(self, n):
        pass

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The grammar, with a teacher that knows next to nothing: its answers end by luck."""
    threads, out = torch.get_num_threads(), tmp_path_factory.mktemp("compare")
    torch.set_num_threads(1)
    open_run(out, {"task": "grammar", **SMALL._asdict()}, compare.FILES)
    task = compare_tasks.open_task(out, SMALL)
    torch.set_num_threads(threads)
    return task


@pytest.fixture
def model(task):
    torch.manual_seed(3)
    return GPT(task.student)


def test_the_cross_entropy_of_answers_is_that_of_one_document_at_a_time(task, model):
    documents, found = [(task.prompts[i], task.answers[i]) for i in range(5)], []
    for prompt, answer in documents:
        logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1:-1]                      # (T, V)
        found += torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none").tolist()
    assert compare.answer_nll(model, documents) == pytest.approx(sum(found) / len(found), rel=1e-4)


def test_a_row_takes_smaller_sets_from_the_cache(task, model):
    source = task.sources["free"]
    wide, narrow = (terms(model, source, [0, 3], task, p) for p in (1.0, 0.8))
    kept = restrict_to_p(wide.teacher.log_probs, wide.teacher.mask, 0.8)
    assert torch.equal(wide.weights, narrow.weights) and narrow.ids.size(-1) == kept.sum(-1).max()
    assert torch.equal(kept.sum(-1), narrow.teacher.mask.sum(-1)) and kept.sum() < wide.teacher.mask.sum()
    assert torch.equal(wide.ids[kept], narrow.ids[narrow.teacher.mask])


@pytest.mark.parametrize("source, p", [("references", 1.0), ("free", 0.8)])
def test_terms_are_those_of_the_answers(task, model, source, p):
    s = terms(model, task.sources[source], [0, 3], task, p)
    for b, d in enumerate([0, 3]):
        tokens = torch.tensor(task.sources[source].document(d)[0].astype(np.int64))
        go, last = tokens.tolist().index(grammar.GO), len(tokens) - 1
        expected = model(tokens[None, :-1])[0].gather(1, tokens[1:, None])[go:, 0]
        assert s.weights[b].nonzero()[:, 0].tolist() == list(range(go, last))
        torch.testing.assert_close(s.student.z_a[b, go:last], expected, rtol=1e-4, atol=1e-4)
        assert s.teacher.terminal[b, go:last].nonzero()[:, 0].tolist() == [last - 1 - go]
        has_set = s.teacher.mask[b].any(-1).nonzero()[:, 0].tolist()
        assert has_set == ([] if source == "references" else list(range(go, last)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_control_and_a_finite_gradient(task, model, name):
    row, inputs = OBJECTIVES[name], objectives.own_answers if name == "GKD" else terms
    assert row.control in OBJECTIVES
    if row.heads:
        td_distill.add_heads(model)
    loss = row.loss(inputs(model, task.sources[row.source], range(6), task))
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    gradients = torch.cat([g.flatten() for g in grads])
    assert gradients.isfinite().all() and gradients.any()


def test_a_target_network_follows_slowly(task, model):
    td_distill.add_heads(model)
    s = terms(model, task.sources["free"], range(4), task, 0.8)
    live = (s.weights > 0) & s.teacher.mask.any(-1)
    first, before = objectives.slow_values(s), td_distill.td_terms(s.student, s.teacher, s.weights).V
    torch.testing.assert_close(first[live], before[live], rtol=1e-4, atol=1e-4)     # a copy at the start
    with torch.no_grad():
        model.td_heads.v.bias += 1.0
    torch.testing.assert_close(objectives.slow_values(s, rate=0.25)[live], first[live] + 0.25)
    assert not any("slow" in name for name in model.state_dict())


def test_gkd_is_the_dense_divergence_of_own_answers(task, model):
    torch.manual_seed(2)
    s = objectives.own_answers(model, task.sources["own"], [1], task)
    go = task.sources["own"].document(1)[0].tolist().index(grammar.GO)
    assert s.weights[0].nonzero()[:, 0].tolist() == list(range(go, go + int(s.weights.sum())))
    student, teacher = s.z.softmax(-1), s.log_t.exp()
    mean = (student + teacher) / 2
    each = [(x * (x / mean).log()).sum(-1)[s.weights > 0].mean() for x in (student, teacher)]
    torch.testing.assert_close(objectives.gkd(s), sum(each) / 2, rtol=1e-4, atol=1e-5)


def test_seconds_become_tokens_at_the_speed_of_a_first_pass(task, monkeypatch):
    """The clock moves by one second with each look at it, and a pass takes one."""
    clock = iter(range(1000))
    monkeypatch.setattr(compare, "learn", lambda name, model, tokens, *_: ([1.0], [], tokens))
    monkeypatch.setattr(compare, "measure", lambda *_: {})
    monkeypatch.setattr(compare, "start", lambda job: compare.Path("start"))
    monkeypatch.setattr(compare.GPT, "load", lambda folder: GPT(task.student))
    monkeypatch.setattr(compare.time, "process_time", lambda: next(clock))
    out = Path(task.sources["free"].folder).parents[1]
    figures = compare.run(compare.Job("SFT", 0.01, 1, 16, 0, 3.0, out, SMALL))
    assert figures["seen"] == 3 * 60 * 1024 and figures["cpu seconds"] == 1


def test_a_teacher_that_was_stopped_goes_on(task, tmp_path, monkeypatch):
    """In the middle of its training, with the weights of one that was not."""
    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return sft(*arguments)
    calls, sft = [], OBJECTIVES["SFT"].loss
    torch.set_num_threads(1)                    # as the other teacher
    open_run(tmp_path, {"task": "grammar", **SMALL._asdict()}, compare.FILES)
    monkeypatch.setitem(OBJECTIVES, "SFT", OBJECTIVES["SFT"]._replace(loss=stopping))
    with pytest.raises(KeyboardInterrupt, match="teacher: stopped after 2 of"):
        compare_tasks.open_task(tmp_path, SMALL)
    assert (tmp_path / "teacher" / "training.pt").exists()
    open_run(tmp_path, {"task": "grammar", **SMALL._asdict()}, compare.FILES)           # leaves it there
    again = compare_tasks.open_task(tmp_path, SMALL).teacher
    assert all(map(torch.equal, task.teacher.parameters(), again.parameters()))
    assert not (tmp_path / "teacher" / "training.pt").exists() and len(calls) > 2


@pytest.mark.parametrize("program, options, words", [
    (compare, "--rates=0.1,nan", "--rates=nan, but expected more than 0 and at most 1000000 (float32)"),
    (compare, "--rates=abc", "--rates=abc, but expected numbers with commas between"),
    (compare, "--tokens=99999999999", "(memory)"), (teacher, "--cache_tokens=99999999999", "(memory)"),
    (compare, "--seconds=inf", "--seconds=inf"), (compare, "--seeds=0", "--seeds=0"), (compare, "--embd=6", "n_embd"),
    (compare, "--workers=99999999", "(8 a core)"), (compare, "--seconds=3 --tokens=9", "--tokens=9 has no effect"),
    (compare, "--show=x --seeds=3", "--seeds=3 has no effect beside --show"), (routes, "--rates=0", "--rates=0.0"),
    (routes, "--show=x --rows=KD", "beside --show"), (routes, "--png=x", "--png=x has no effect without --show"),
    (routes, "--facts=1000", "the square of a number"), (routes, "--facts=9999", "at most 1296"),
    (routes, "--prefer=1.5", "at most 1"), (routes, "--task=AD", "one of A, D"), (routes, "--layers=999999", "bytes"),
    (routes, "--task=D --corridor=3", "--corridor=3 has no effect on task D"), (bench, "cache --rounds=3", "on cache"),
    (bench, "race --positions=3", "--positions=3"), (bench, "losses --positions=99999999", "(memory)"),
    (claims, "--tokens=9999999999", "(memory)"), (claims, "--n_layer=999999", "bytes"),
    (claims, "--show=x --seeds=2", "other options beside it"), (pair, "--arms=kd", "unrecognized"),
    (pair, "--teacher=x", "expected a --corpus, and a --teacher or a --cache"), (pair, "--answers=0", "--answers=0"),
    (teacher, "--cache=x", "unrecognized"), (teacher, "--teacher_layer=999999", "bytes"),
    (teacher, "--teacher_tokens=9999999999", "(memory)")])
def test_options_that_cannot_be_meant_are_refused_at_once(program, options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        program.main(options.split())
    assert "\n" not in str(refused.value)


def test_a_comparison_goes_on_where_it_was_stopped_and_prints_a_table(task, monkeypatch, capsys):
    out = Path(task.sources["free"].folder).parents[1]
    monkeypatch.setattr(compare, "SIZE", SMALL)
    command = ["compare", f"--out_dir={out}", "--rows=SFT,KD p=.8", "--seeds=2", "--embd=16", "--tokens=1500",
               "--rates=0.005,0.01", "--workers=1"]
    td_distill.main(command)
    first, path = capsys.readouterr().out.splitlines(), out / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    runs = [json.loads(line) for line in lines]
    assert [run["seed"] for run in runs] == [0] * 4 + [1, 1, 2, 2] and runs[4]["row"] == "SFT"
    assert all(abs(run["seen"] - 1500) < 88 and 0 <= run["T=1"] <= 1 for run in runs)
    sft, kd = (np.array([run["coverage"] for run in runs[4 + i::2]]) for i in range(2))
    cell = f"{(sft - kd).mean():.3f} ±{(sft - kd).std(ddof=1) / 2 ** 0.5:.3f}"
    assert first[-1].startswith("SFT - KD p=.8") and cell in first[-1]
    path.write_text("\n".join(lines[:-1]), encoding="utf-8")                        # killed before the last
    monkeypatch.setattr(compare, "worker_pool", InTurn)                             # faster than processes
    td_distill.main(command)
    again = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [run["coverage"] for run in again] == [run["coverage"] for run in runs]
    td_distill.main(["compare", f"--show={path}"])
    assert capsys.readouterr().out.splitlines()[-2] == first[-1]
    monkeypatch.setattr(compare, "SIZE", SMALL._replace(answers=1))
    path.write_text(lines[0][:-30] + "\n", encoding="utf-8")
    for arguments, message in ((command, "answers=2, this one has 1; use another --out_dir"),
                               (["compare", f"--show={path}"], "results.jsonl: line 1: expected a JSON object"),
                               (["compare", "--rows=KD,SFT"], "rows=KD,SFT, but expected some, each once, of SFT, SeqKD")):
        with pytest.raises(ValueError, match=message):
            td_distill.main(arguments)


def test_of_several_rates_the_one_that_most_seeds_have_is_shown(tmp_path):
    runs = [{"row": row, "rate": rate, "seed": seed} for row, rate, seeds in (
        ("KD", 0.01, (0, 1)), ("KD", 0.02, (0, 1, 2, 3)), ("TD", 0.01, (1, 2)), ("TD", 0.02, (0,)))
        for seed in seeds]
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(map(json.dumps, runs)), encoding="utf-8")
    (found,) = compare.tables(path, ("KD", "TD"), lambda run: "", ("row", "rate", "seed")).values()
    assert [(row, rate, run["seed"]) for (row, _), (rate, runs) in found.items() for run in runs] == [
        ("KD", 0.02, 1), ("KD", 0.02, 2), ("KD", 0.02, 3), ("TD", 0.01, 1), ("TD", 0.01, 2)]
