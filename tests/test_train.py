"""The course: options, the one training loop, the losses of a batch, and whole runs at a tiny budget."""
import contextlib
import dataclasses
import json
import math
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import brd
import train
from data import world
from data.cache import TeacherCache, CacheWriter
from data.documents import annotated_text
from data.batches import Batch, Rows
from model import GPT, GPTConfig
from train import Config, parse_options

ROOT = Path(train.__file__).resolve().parent
SHIPPED = ROOT / "data" / "teacher" / "header.json"
TINY = ("--n_layer=1 --n_embd=32 --n_head=4 --teacher_layer=1 --teacher_embd=32 --test_paragraphs=2 --device=cpu "
        "--start_tokens=3000 --student_tokens=3000 --threads=1").split()


# --- options -----------------------------------------------------------------------------------------------------------

def test_no_options_are_the_defaults():
    assert parse_options([]) == Config()


def test_options_are_read_in_both_spellings_and_with_their_types():
    config = parse_options(["--p=0.8", "--seed", "7", "--redo", "--out_dir=elsewhere", "--objective=seqkd"])
    assert config == Config(p=0.8, seed=7, redo=True, out_dir="elsewhere", objective="seqkd")
    assert (type(config.p), type(config.seed)) == (float, int)


@pytest.mark.parametrize("option, words", [
    ("--learning_rat=0.1", "--learning_rat; did you mean --learning_rate?"), ("--learning-rate=0.1", "--learning_rate?"),
    ("--xyzzy=1", "unknown option --xyzzy; --help"), ("--see=1", "did you mean --seed?"), ("stray", "stray"),
    ("--p=1.5", "--p=1.5, but expected more than 0 and at most 1"), ("--p=0", "--p=0.0"), ("--p=nan", "--p=nan"),
    ("--p=much", "'much'"), ("--p", "expected one argument"), ("--seed=1.5", "'1.5'"), ("--seed=-1", "--seed=-1, but expected at least 0"),
    ("--objective=kl", "expected one of topp_kd, bellman, seqkd"), ("--teacher=me", "cached, train"), ("--device=tpu", "auto, cpu"),
    ("--n_layer=0", "--n_layer=0"), ("--minutes=-1", "--minutes=-1.0"), ("--learning_rate=0", "more than 0"),
    ("--block_size=100", "try --block_size=104"), ("--n_embd=102", "try n_embd=104"), ("--redo=1", "redo"),
    ("--ner_share=0.9", "leave nothing for D_QRA")])
def test_bad_options_are_named_in_one_line(option, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        parse_options([option])
    assert "\n" not in str(refused.value)


def test_help_tells_every_option_with_its_comment_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse_options(["--help"])
    assert end.value.code == 0
    shown = "".join(capsys.readouterr().out.split())               # lines are wrapped anywhere
    for field in dataclasses.fields(Config):
        found = re.search(rf"--{field.name}(?:int|float|str)?([^\[]+)\[{re.escape(''.join(str(field.default).split()))}\]", shown)
        assert found and len(found[1]) > 8, field.name
    assert "pythontrain.py--minutes=30" in shown


def test_every_option_is_used_somewhere():
    """A flag that is read nowhere promises something that does not happen."""
    code = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("train.py", "data/corpus.py", "data/reads.py", "data/runs.py", "course/pair.py"))
    for field in dataclasses.fields(Config):
        assert re.search(rf"config\.{field.name}\b", code), field.name


# --- losses and the loop -----------------------------------------------------------------------------------------------

N_VOCAB = 50


def config_of(**fields):
    return Config(**{"n_head": 2, "n_layer": 1, "n_embd": 16, "block_size": 64, "warmup": 0, "answer_weight": 3.0,
                     "device": "cpu", **fields})


def small_model(seed=0):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(N_VOCAB, 64, 1, 2, 16))
    for parameter in model.parameters():                           # away from the start, where every block is the identity
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def small_documents(n, seed):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, N_VOCAB, k).tolist(), rng.integers(0, len(brd.ROLES), k).tolist()) for k in rng.integers(2, 30, n)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Twelve random documents; every other token was drawn, from a random set of one to eight tokens."""
    folder, rng = tmp_path_factory.mktemp("cache"), np.random.default_rng(3)
    writer = CacheWriter(folder, n_vocab=N_VOCAB, tokenizer_hash="", p=0.95, k_cap=8, temperature=1.0, teacher={}, made_by="",
                         roles=brd.ROLES)
    for tokens, roles in small_documents(12, 4):
        sets = []
        for t in range(len(tokens)):
            probs = np.sort(rng.dirichlet(np.ones(9)))[::-1][:rng.integers(1, 9)]
            sets.append((rng.permutation(N_VOCAB)[:len(probs)], np.log(probs)) if t % 2 else None)
        writer.add(tokens, roles, sets)
    writer.close()
    return Cache(folder)


@pytest.fixture(scope="module")
def rows():
    return Rows.pack(small_documents(12, 5), N_VOCAB)


def batch_of(documents):
    return Batch(0, np.array(documents), 0)


def literal_loss(model, source, documents, config, summed):
    """The weighted loss, one document and one token at a time, in float64 arithmetic on the model's logits."""
    total = weight = 0.0
    for d in documents:
        tokens, roles, *teacher = source.document(d)
        counts, ids, log_probs = teacher if teacher else (np.zeros(len(tokens), int), [], [])
        logits = model.logits(model.hidden(torch.tensor([tokens.astype(np.int64).tolist()[:-1]])))[0].detach().double().numpy()
        for t in range(1, len(tokens)):
            log_s = logits[t - 1] - np.log(np.exp(logits[t - 1]).sum())
            first = int(counts[:t].sum())
            kept, mass = [], 0.0
            for k in range(first, first + int(counts[t])):         # the nucleus of config.p, inside the one that was cached
                if mass < config.p - 1e-6:
                    kept.append((int(ids[k]), math.exp(float(log_probs[k]))))
                mass += math.exp(float(log_probs[k]))
            w = config.answer_weight if brd.ROLES[roles[t]] == "answer" else 1.0
            if kept and config.objective == "topp_kd":
                sum_kept = sum(prob for _, prob in kept)
                total += w * sum(prob / sum_kept * (math.log(prob / sum_kept) - log_s[i]) for i, prob in kept)
            else:
                total -= w * log_s[int(tokens[t])]
            weight += w
    return total / (weight if summed is None else summed), weight


@pytest.mark.parametrize("objective, p", [("topp_kd", 0.95), ("topp_kd", 0.5), ("seqkd", 0.95)])
def test_the_loss_of_a_cached_batch_is_a_literal_loop(cache, objective, p):
    model, config, documents = small_model(), config_of(objective=objective, p=p), [7, 0, 3, 11]
    expected, weight = literal_loss(model, cache, documents, config, None)
    assert train.weight_of(cache, batch_of(documents), config) == pytest.approx(weight)
    loss = train.loss_of(model, cache, batch_of(documents), config, "cpu", weight)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_bellman_loss_of_a_cached_batch_is_a_literal_loop(tmp_path):
    """Set tokens by --objective=bellman, the others by plain cross-entropy; a drawn separator is terminal."""
    rng, answer, sep = np.random.default_rng(4), brd.ROLES.index("answer"), brd.ROLES.index("sep")
    writer = CacheWriter(tmp_path, n_vocab=N_VOCAB, tokenizer_hash="", p=1.0, k_cap=5, temperature=1.0, teacher={}, made_by="",
                         roles=brd.ROLES)
    for n in (6, 9, 4):                                            # two tokens given, n drawn (two in three from their sets), one given
        sets = [(rng.permutation(N_VOCAB)[:4], np.log(rng.dirichlet(np.ones(4)))) for _ in range(n)]
        drawn = [int(ids[0]) if rng.random() < 0.67 else int(rng.integers(N_VOCAB)) for ids, _ in sets]
        writer.add([1, 2, *drawn, 3], [0, 0, *[answer] * (n - 1), sep, 0], [None, None, *sets, None])
    writer.close()
    model, source, total, known = small_model(), Cache(tmp_path), 0.0, 0
    config = config_of(objective="bellman", p=1.0, leak=2.0, alpha=3.0, gamma=0.9)
    for d in range(3):
        tokens, roles, counts, ids, log_probs = source.document(d)
        log_s = model.logits(model.hidden(torch.tensor([tokens.astype(np.int64).tolist()[:-1]])))[0].detach().double().log_softmax(-1).numpy()
        kept = {t: ids[4 * (t - 2):4 * (t - 1)].astype(int) for t in range(2, len(tokens) - 1)}
        inside = {t: np.log(np.exp(log_s[t - 1][kept[t]]).sum()) for t in kept}              # V_p in the gauge log-softmax
        for t in range(1, len(tokens)):
            w, log_a = 3.0 if roles[t] == answer else 1.0, log_s[t - 1][int(tokens[t])]
            if t not in kept:
                total -= w * log_a
                continue
            q = np.exp(log_probs[4 * (t - 2):4 * (t - 1)].astype(np.float64))
            total += w * (-(q / q.sum() * (log_s[t - 1][kept[t]] - inside[t])).sum() - 2.0 * inside[t])
            if int(tokens[t]) in kept[t]:
                total += w * (log_a - (0.0 if roles[t] == sep else 0.9 * inside[t + 1])) ** 2 / (4 * 3.0)
                known += 1
    loss = train.loss_of(model, source, batch_of(range(3)), config, "cpu", 10.0)
    assert 5 < known < 19 and loss.item() == pytest.approx(total / 10.0, rel=1e-5)


def test_the_loss_of_rows_is_a_literal_loop(rows):
    model, config, documents = small_model(), config_of(), [1, 8, 2, 5, 10]
    expected, weight = literal_loss(model, rows, documents, config, None)
    assert train.weight_of(rows, batch_of(documents), config) == pytest.approx(weight)
    assert train.loss_of(model, rows, batch_of(documents), config, "cpu", weight).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["rows", "cache"])
@pytest.mark.parametrize("k", [2, 3, 6])
def test_k_micro_batches_are_one_batch(kind, k, request, monkeypatch):
    """Through `fit`: one step on twelve documents at once, and on k batches of unlike lengths added up."""
    source, seen = request.getfixturevalue(kind), []

    class Recorder:
        param_groups = [{"lr": 0.0}]

        def __init__(self, model):
            self.model = model

        def step(self):
            seen.append([p.grad.clone() for p in self.model.parameters()])

        def zero_grad(self, set_to_none):
            self.model.zero_grad(set_to_none)

    order = np.argsort(source.lengths)                             # the first batch is of the shortest, the last of the longest
    plans = {1: [batch_of(order)], k: [batch_of(part) for part in np.array_split(order, k)]}
    monkeypatch.setattr(train, "pick_device", lambda config: (torch.device("cpu"), None))        # float32
    monkeypatch.setattr(train, "optimizers", lambda model, config: [Recorder(model)])
    losses = []
    for n in (1, k):
        monkeypatch.setattr(train, "plan_batches", lambda *_: plans[n])
        losses += train.fit("", small_model(), [source], [1.0], 0, config_of(accumulate=n, clip=1e9), 0.0)[0]
    assert len(losses) == len(seen) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-6)
    for one, added in zip(*seen):
        torch.testing.assert_close(added, one, rtol=1e-5, atol=1e-6)
        assert one.abs().max() > 0


def test_two_runs_of_one_seed_are_bit_identical(rows, cache):
    """In the arithmetic that this machine would train in, over both kinds of sources."""
    def first_ten(seed):
        config = config_of(seed=seed, step_tokens=96, accumulate=2)
        model = train.new_model(1, 16, type("T", (), {"n_vocab": N_VOCAB}), config)
        return train.fit("", model, [rows, cache], [0.5, 0.5], 2600, config, 0.5)[0][:10]

    assert len(first_ten(1)) == 10 and first_ten(1) == first_ten(1) != first_ten(2)


def test_fit_learns_reads_what_was_asked_and_tells_the_tokens(rows):
    config = config_of(step_tokens=96, learning_rate=0.02)
    model = small_model()
    losses, seen = train.fit("", model, [rows], [1.0], 6000, config, 0.5)
    assert abs(seen - 6000) < 40 and not model.training
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


def test_the_learning_rate_rises_stays_and_falls_to_zero(rows, monkeypatch):
    rates = []
    real = train.optimizers

    def watched(model, config):
        optims = real(model, config)
        step = optims[1].step
        optims[1].step = lambda *a: (rates.append(optims[1].param_groups[0]["lr"]), step(*a))
        return optims

    monkeypatch.setattr(train, "optimizers", watched)
    train.fit("", small_model(), [rows], [1.0], 4000, config_of(step_tokens=96, warmup=5, learning_rate=0.01), 0.25)
    falling = round(0.25 * len(rates))
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01]) and max(rates) == 0.01
    assert set(rates[5:-falling]) == {0.01} and rates[-1] == pytest.approx(0.01 / falling)


def test_a_run_that_explodes_stops_with_a_remedy(rows):
    with pytest.raises(ValueError, match="try a lower --learning_rate") as stopped:
        train.fit("x", small_model(), [rows], [1.0], 20_000, config_of(step_tokens=96, learning_rate=1e30, clip=1e30), 0.0)
    assert "\n" not in str(stopped.value)


def test_bits_per_byte_are_those_of_a_literal_loop(rows):
    """Every document counts, once."""
    model, nats = small_model(), 0.0
    for d in range(len(rows)):
        ids = torch.tensor([rows.document(d)[0].astype(np.int64).tolist()])
        log_probs = model.logits(model.hidden(ids[:, :-1])).log_softmax(-1)[0]
        nats -= sum(log_probs[t, ids[0, t + 1]].item() for t in range(ids.size(1) - 1))
    assert train.bits_per_byte(model, rows, 321) == pytest.approx(nats / math.log(2) / 321, rel=1e-5)


# --- what students read ------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def tokenizer():
    return train.course_tokenizer("world", Config.n_vocab)


def test_enough_text_is_written_for_the_tokens(tokenizer):
    """No document need be read twice: the average lengths that are reckoned with are rounded down."""
    config = Config(student_tokens=60_000)
    sources, shares = train.reading_mix(60_000, config, tokenizer, 1)
    for rows, share in zip(sources, shares):
        assert (rows.lengths - 1).sum() > 0.97 * share * 60_000
    (plain,), _, _ = train.treatment("plain", config, None, tokenizer)
    assert (plain.lengths - 1).sum() > 0.97 * 60_000


def test_students_read_equal_tokens(tokenizer, tmp_path):
    config, seen = Config(student_tokens=60_000), {}
    for name in ("plain", "brd"):
        sources, shares, begins = train.treatment(name, config, tmp_path, tokenizer)
        seen[name] = sum(b.tokens for b in train.plan_batches(sources, shares, 60_000, config.step_tokens, 1, begins))
    assert abs(seen["plain"] / seen["brd"] - 1) < 0.02


def test_rows_hold_the_text_as_rendered(tokenizer):
    texts = list(world.plain(30, 3))
    rows = train.plain_rows(texts, tokenizer)
    for d, sentences in enumerate(texts):
        tokens, roles = rows.document(d)
        assert tokens.tolist() == tokenizer.encode(" ".join(sentences)) + [tokenizer.end]
        assert [brd.ROLES[role] for role in roles] == ["text"] * (len(tokens) - 1) + ["end"]


# --- whole runs --------------------------------------------------------------------------------------------------------

def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """A data folder with two small blind tasks of its own."""
    data, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    (data / "tasks").mkdir()
    for name in ("moods", "places"):
        examples = [{"input": f"Line {i}: {rng.random():.3f} is", "target_scores": {"good": i % 2, "bad": 1 - i % 2}} for i in range(12)]
        (data / "tasks" / f"{name}.json").write_text(json.dumps({"name": name, "examples": examples}), encoding="utf-8")
    return data


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_data):
    """(folder, options) of a finished run with --teacher=train, which everything below looks at."""
    out = tmp_path_factory.mktemp("run") / "deep" / "out"
    options = [*TINY, "--teacher=train", "--teacher_tokens=30000", "--cache_tokens=12000", f"--out_dir={out}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "DATA", small_data)
        train.main(options)
    return out, options


@pytest.fixture
def small_tasks(monkeypatch, small_data):
    monkeypatch.setattr(train, "DATA", small_data)
    return small_data


def check_results(out, tasks):
    results = results_of(out)
    assert results["seed"] == results["config"]["seed"] == 1 and set(results["config"]) == {f.name for f in dataclasses.fields(Config)} - {"out_dir"}
    assert set(results["versions"]) >= {"python", "torch", "numpy"}
    seconds = json.loads((out / "seconds.json").read_text(encoding="utf-8"))
    *stages, total = (seconds[stage] for stage in ("text", "teacher", "students", "total"))
    assert total > 0 and sum(stages) == pytest.approx(total, abs=0.3)
    assert set(results["students"]) == {"plain", "brd", "distilled"}
    wanted = results["config"]["start_tokens"] + results["config"]["student_tokens"]
    for name, student in results["students"].items():
        assert abs(student["tokens_seen"] / wanted - 1) < 0.05
        assert len(student["loss_curve"]) > 1 and bool(student["reading_curve"]) == (name != "plain")
        assert len(student["losses"]) == min(10, len(student["losses"])) > 1
        assert set(student["reading"]) == {"single", "paragraph"} and set(student["blind"]) == tasks
        for place in student["reading"].values():
            assert {"entity_f1", "answer.wh", "answer.yes_no", "raised.right"} <= set(place)
        for task in student["blind"].values():
            assert {"accuracy", "se", "n", "chance", "centred"} <= set(task)


def test_a_run_that_trains_its_teacher_leaves_everything(trained):
    out, _ = trained
    results = results_of(out)
    check_results(out, {"moods", "places"})
    made = Cache(out / "cache").header
    assert made["documents"] > 5 and made["drawn"] > 100 and results["teacher"] == made["teacher"]
    assert made["made_by"].startswith("python train.py --teacher=train")
    assert set(made["teacher"]["figures"]) == {"single", "paragraph"} and made["teacher"]["tokens_seen"] > 29_000
    assert not list(out.rglob("*.tmp"))
    lines = (out / "annotations.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"paragraph", "sentence", "text", "entities", "questions"} == set(json.loads(lines[0]))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('class="question"') > 10 and "A teacher's answer, token by token" in page
    for name in ("plain", "brd", "distilled"):                     # each a folder that brd.py reads
        brd.main(["read", str(out / name), "Anna took a train to Oslo."])


def test_all_students_set_out_from_one_start(trained):
    """The first loss of brd and distilled may differ in the text alone, the weights they begin with not at all."""
    out, _ = trained
    start = GPT.load(out / "start")
    assert start.extra["tokens_seen"] > 2800
    for name in ("plain", "brd", "distilled"):
        assert not torch.equal(GPT.load(out / name).transformer.wte.weight, start.transformer.wte.weight)
        assert GPT.load(out / name).extra["tokens_seen"] > start.extra["tokens_seen"] + 2600      # of 3,000, but for a document


def test_running_again_prints_the_result_and_changes_nothing(trained, small_tasks, capsys):
    out, options = trained
    before = stamps(out)
    train.main(options)
    shown = capsys.readouterr().out
    assert stamps(out) == before
    assert train.report(results_of(out)) in shown and "moods" in shown and "--redo" in shown


def test_a_stopped_run_goes_on_without_training_again(trained, small_tasks):
    """Without the results and the last student's test, the rest is taken from where it lies, and the figures are the same."""
    out, options = trained
    before, results = stamps(out), results_of(out)
    (out / "results.json").unlink()
    (out / "plain" / "test.json").unlink()
    train.main(options)
    again = results_of(out)
    changed = {path.relative_to(out).as_posix() for path, stamp in stamps(out).items() if before.get(path) != stamp}
    assert changed == {".lock", "seconds.json", "plain/seconds.json", "results.json", "plain/test.json", "report.html",
                       "results.made_of.json", "plain/test.made_of.json"}
    assert again == results


@pytest.mark.parametrize("other, named", [("--seed=2", "seed=1, this one has 2"), ("--p=0.9", "p=0.95, this one has 0.9")])
def test_another_run_in_the_same_folder_is_refused(trained, small_tasks, other, named):
    out, options = trained
    before = stamps(out)
    with pytest.raises(ValueError, match=f"{named}.*--redo") as refused:
        train.main([*options, other])
    assert "\n" not in str(refused.value) and stamps(out) == before


def test_a_folder_of_other_things_is_left_alone(tmp_path, small_tasks):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "precious.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="holds cache, but no options.json"):
        train.main([*TINY, "--teacher=train", f"--out_dir={tmp_path}"])
    assert [path.name for path in tmp_path.rglob("*")] == ["cache", "precious.txt"]


def test_the_default_teacher_is_the_cache_in_data(trained, small_tasks, tmp_path):
    """Here it is the one that the tiny teacher made, so this run and that one are alike to the last bit."""
    shutil.copytree(trained[0] / "cache", small_tasks / "teacher")
    train.main([*TINY, f"--out_dir={tmp_path}"])
    shutil.rmtree(small_tasks / "teacher")
    results, before = results_of(tmp_path), results_of(trained[0])
    check_results(tmp_path, {"moods", "places"})
    assert not (tmp_path / "cache").exists() and not (tmp_path / "teacher").exists()
    for name, student in results["students"].items():
        for figure in ("losses", "reading", "blind", "plain_bits_per_byte"):
            assert student[figure] == before["students"][name][figure]


def test_a_teacher_that_never_ends_its_readings_is_told_in_one_line(small_tasks, tmp_path, monkeypatch):
    """All its documents are left out then: no cache is left behind that would be empty."""
    monkeypatch.setattr(train.reads, "teacher_reads", lambda model, tokenizer, paragraphs, *_, **__: len(paragraphs))
    options = [*TINY, "--teacher=train", "--teacher_tokens=100", "--cache_tokens=300", f"--out_dir={tmp_path / 'out'}"]
    for _ in range(2):                                             # also when the teacher lies there ready
        with pytest.raises(ValueError, match="finished none of its readings.*--teacher_tokens=100") as refused:
            train.main(options)
        assert "\n" not in str(refused.value) and not (tmp_path / "out" / "cache").exists()


def test_minutes_plan_the_tokens_and_a_resumed_run_keeps_the_plan(tmp_path, tokenizer, monkeypatch):
    """No clock in this test: speed and time are given."""
    monkeypatch.setattr(train, "speed", lambda *_: 1000.0)
    monkeypatch.setattr(train, "reading_mix", lambda *_: ([None] * 3, None))
    planned = {}
    for minutes in (5.0, 30.0):
        config = Config(minutes=minutes, threads=1)
        train.plan_minutes(config, tokenizer, train.time.perf_counter())
        planned[minutes] = config.student_tokens
        assert config.start_tokens == Config.start_tokens
        assert 0 < config.start_tokens + 3 * config.student_tokens < 1000 * 60 * minutes    # one thread: three in turn
    assert planned[30.0] > 4 * planned[5.0]


def test_speed_is_measured_behind_a_few_steps_on_another_model(monkeypatch):
    """The first steps are slow and do not count. The clock goes on by 5 s, then by one for every 200 tokens."""
    model, now, trained = small_model(), [0.0], []

    def fit(name, probe, sources, shares, tokens, config, decay):
        trained.append(probe)
        now[0] += tokens / 200 if len(trained) > 1 else 5
        return [], tokens
    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])
    assert train.speed(model, None, config_of()) == 200 and len(trained) == 2
    assert all(probe is not model and probe.config == model.config for probe in trained)


def test_minutes_plan_an_own_text_too(tmp_path, monkeypatch, capsys):
    (tmp_path / "my.txt").write_text("\n\n".join(" ".join(sentences) for sentences in world.plain(200, 1)), encoding="utf-8")
    monkeypatch.setattr(train, "speed", lambda *_: 500.0)
    train.main([*TINY, "--block_size=64", "--n_vocab=300", "--minutes=0.1", f"--corpus={tmp_path / 'my.txt'}",
                f"--out_dir={tmp_path / 'out'}"])
    assert "; 2,500 tokens will be read" in capsys.readouterr().out                  # at the least, 5 seconds' worth


@pytest.mark.parametrize("cores, threads", [(2, (1, 1, 2)), (3, (1, 1, 1)), (5, (1, 1, 1)), (6, (2, 2, 2)), (1, (1, 1, 1))])
def test_a_student_that_trains_alone_has_all_cores(tmp_path, monkeypatch, cores, threads):
    given = {}

    def submit(_, function, *arguments):
        if arguments and arguments[0] is train.train_and_test:
            given[arguments[1]] = arguments[3]
        return SimpleNamespace(result=lambda: None)
    monkeypatch.setattr(train.runs, "processes", lambda n: contextlib.nullcontext(type("Pool", (), {"submit": submit})()))
    monkeypatch.setattr(train.torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(train, "train_start", lambda *_: None)
    monkeypatch.setattr(train, "train_and_test", lambda name, config, n: given.update({name: n}))
    train.train_students(Config(out_dir=str(tmp_path), device="cpu"))
    assert [given[name] for name in ("distilled", "brd", "plain")] == list(threads)


@pytest.mark.parametrize("supported, dtype", [((False, False), None), ((True, False), torch.bfloat16), ((False, True), torch.bfloat16)])
def test_bf16_is_taken_where_the_processor_computes_in_it(monkeypatch, supported, dtype):
    for name, value in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), supported):
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value, raising=False)
    assert train.pick_device(Config(device="cpu")) == (torch.device("cpu"), dtype)


def test_a_run_that_goes_on_keeps_its_plan(tmp_path, monkeypatch):
    """Whatever the machine is busy with the second time."""
    planned, speeds = [], iter([1000.0, 10.0])

    def stopped(config):
        planned.append(config.student_tokens)
        raise train.runs.Stopped("stopped")
    monkeypatch.setattr(train, "speed", lambda *_: next(speeds))
    monkeypatch.setattr(train, "reading_mix", lambda *_: ([None] * 3, None))
    monkeypatch.setattr(train, "train_students", stopped)
    for _ in range(2):
        with pytest.raises(train.runs.Stopped):
            train.main([*TINY, "--minutes=2", f"--out_dir={tmp_path / 'out'}"])
    assert planned[0] == planned[1] > 1000 * 0.9 * 5 / 3 - 1
    assert json.loads((tmp_path / "out" / "options.json").read_text(encoding="utf-8"))["plan"] == planned[0]


def test_an_own_text_is_read_plainly_end_to_end(tmp_path, capsys):
    text, out = "\n\n".join(" ".join(sentences) for sentences in world.plain(400, 1)), tmp_path / "out"
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    assert 15_000 < len(text) < 30_000
    options = [*TINY, "--block_size=64", "--n_vocab=400", "--student_tokens=30000", f"--corpus={tmp_path / 'my.txt'}",
               f"--out_dir={out}"]
    train.main(options)
    shown, results = capsys.readouterr().out, results_of(out)
    for word in ("No teacher has annotated this text", "vocabulary 400", "held out", "tokens", "bits per byte", "sample"):
        assert word in shown, word
    student = results["students"]["plain"]
    assert abs(student["tokens_seen"] / 30_000 - 1) < 0.05 and len(student["losses"]) == 10
    assert 0.5 < student["bits_per_byte"] < 4 and len(student["sample"]) > 100
    assert results["seed"] == 1 and results["config"]["corpus"].endswith("my.txt") and not list(out.rglob("*.tmp"))
    before = stamps(out)
    train.main(options)
    assert stamps(out) == before and f"{student['bits_per_byte']:.3f} bits per byte" in capsys.readouterr().out
    brd.main(["read", str(out / "plain"), "Anna went to Oslo."])


# --- what ships --------------------------------------------------------------------------------------------------------

@pytest.mark.skipif(not SHIPPED.exists(), reason="the teacher's cache is not made yet")
def test_the_shipped_cache_fits_the_world_and_its_tokenizer(tokenizer):
    cache = Cache(SHIPPED.parent, n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash)
    assert cache.header["roles"] == list(brd.ROLES) and cache.header["p"] >= Config.p
    assert sum(path.stat().st_size for path in SHIPPED.parent.iterdir()) < 4_000_000
    assert cache.header["made_by"].startswith("python train.py --teacher=train") and "figures" in cache.header["teacher"]
    assert cache.lengths.max() <= Config.block_size + 1 and cache.header["tokens"] > 100_000


def test_a_corpus_that_a_teacher_annotated_is_read_beside_the_world(tmp_path, capsys, small_tasks):
    """Two students without a distilled one, since the cache in data/teacher has another vocabulary, and a third table."""
    out = tmp_path / "out"
    train.main([f"--out_dir={out}", "--corpus=primer", "--n_vocab=1500", "--start_tokens=1000", "--student_tokens=3000",
                "--test_paragraphs=2", "--n_layer=1", "--n_embd=16", "--n_head=2", "--device=cpu", "--threads=1"])
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert list(results["students"]) == ["plain", "brd"]
    counted = results["students"]["brd"]["reading"]["corpus"]["answer.all"]["n"]
    assert counted == sum(len(record["questions"]) for p in annotated_text("primer")[1] for record in p)
    assert "reading held-out paragraphs of the corpus" in capsys.readouterr().out
    assert results["students"]["plain"]["tokens_seen"] == pytest.approx(results["students"]["brd"]["tokens_seen"], abs=400)
