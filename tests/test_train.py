"""Options, the losses of a batch, the one training loop, and whole runs at a tiny budget."""
import contextlib
import dataclasses
import functools
import math
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import td_distill
import train
from adapters.read import main as read_main
from data import documents, head, world
from data.batches import Batch, DataMix, Rows, plan_batches
from data.cache import TeacherCache, open_cache
from data.cache_tools import CacheWriter
from data.annotated import annotated_text, read_annotations
from data.annotations import write_annotations
from data.cli import parse_options
from data.documents import ROLES, course_tokenizer
from data.figures import bits_per_byte
from data.files import read_json
from model import GPT, GPTConfig
from tests.torture import OWN, TINY, small_world
from train import Config

ROOT = Path(train.__file__).resolve().parent
TEXT, ENTITY, QUESTION, ANSWER, SEP, END = range(len(ROLES))
N_VOCAB, CPU, EVERY_ARM = 50, torch.device("cpu"), tuple(f"brd+{arm}" for arm in train.ARMS)
TOKENIZER = functools.partial(course_tokenizer, "world", Config.n_vocab)


pytestmark = pytest.mark.usefixtures("one_thread")


# --- options ------------------------------------------------------------------------------------------------

parse = functools.partial(parse_options, Config, doc=train.__doc__)


def test_options_are_read_in_both_spellings_and_with_their_types():
    config = parse(["--p=0.8", "--seed", "7", "--redo", "--out_dir=elsewhere", "--arms=td,kd"])
    assert config == Config(p=0.8, seed=7, redo=True, out_dir="elsewhere", arms="td,kd")
    assert parse([]) == Config() and (type(config.p), type(config.seed)) == (float, int)


@pytest.mark.parametrize("option, words", [
    ("--learning_rat=1", "arguments: --learning_rat=1; did you mean --learning_rate? --help explains every option"),
    ("--learning-rate=0.1", "--learning-rate=0.1"), ("stray", "stray"),
    ("--p=1.5", "--p=1.5, but expected more than 0 and at most 1"), ("--p=0", "p=0.0"), ("--p=nan", "p=nan"),
    ("--leak=inf", "leak=inf"), ("--minutes=nan", "minutes=nan"), ("--clip=inf", "clip=inf"),
    ("--p=much", "'much'"), ("--p", "expected one argument"), ("--seed=1.5", "'1.5'"), ("--redo=1", "redo"),
    ("--seed=-1", "--seed=-1, but expected at least 0"), ("--device=tpu", "one of auto, cpu, cuda, mps"),
    ("--arms=kd,kl", "--arms=kd,kl, but expected some, each once, of gold, seqkd, kd"), ("--learning_rate=0", "than 0"),
    ("--arms=kd,kd", "some, each once, of gold"), ("--arms=,", "some, each once"), ("--device=cpu,cuda", "one of auto"),
    ("--layout=bert", "one of modern, gpt2"),
    ("--block_size=100", "a multiple of 8"), ("--ner_share=0.9", "leave no D_QRA"), ("--n_layer=0", "layer"),
    ("--n_embd=102", "n_embd"), ("--cooldown=2", "at most 1"), ("--plain_share=1.5", "at most 1"),
    ("--minutes=1e308", "at most 1000000 (float32)"), ("--learning_rate=1e308", "(float32)"),
    ("--answer_weight=1e308", "(float32)"), ("--seed=9223372036854775808", "at most 9223372036854775807 (64 bits)"),
    ("--n_layer=999999", "a model of 8.1e+11 bytes, but this machine has"),
    ("--n_embd=800000", "bytes"), ("--block_size=80000000", "<= 1e6"), ("--threads=99999999", "(8 a core)"),
    ("--test_paragraphs=99999999", "(memory)"), ("--start_tokens=99999999999", "(memory)"),
    ("--block_size=150016", "bytes"), ("--step_tokens=99999999", "(memory)"),
    ("--lr=1", "--lr=1; did you mean --learning_rate?"), ("--batch_size=8", "did you mean --step_tokens?"),
    ("--students=brd", "did you mean --arms?"), ("--seeds=1", "did you mean --seed?")])
def test_bad_options_are_named_in_one_line(option, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        parse([option])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("options, words", [
    ("--tokenizer=nonsense", "--tokenizer=nonsense has no effect without a text of your own; leave it out"),
    ("--corpus_share=0.5", "without annotations"), ("--minutes=3 --student_tokens=9", "beside --minutes"),
    ("--arms= --p=0.8", "without arms"), ("--arms= --cache=x", "--cache=x has"),
    ("--arms=kd --alpha=3", "--alpha=3.0 has no effect without td and td0"),
    ("--corpus=primer --arms=kd", "--arms=kd has no effect without a --cache of this corpus"),
    ("--corpus=open --arms=kd", "--arms=kd has no effect without a --cache of this corpus"),
    ("--arms=gold,seqkd --leak=3", "--leak=3.0 has no effect without kd, td, td0 and improve"),
    ("--text_weight=0", "plain text alone would teach nothing"), ("--init_from=x", "x: no model that GPT.save wrote"),
    ("--corpus=my.txt --arms=kd", "--arms=kd"), ("--corpus=my.txt --text_weight=0", "--text_weight=0.0 has no"),
    ("--corpus=my.txt --start_tokens=9", "on a text that nobody annotated"), ("--p=0.99", "hold 0.95; expected"),
    ("--corpus=my.txt --tokenizer=gpt2 --n_vocab=300", "beside --tokenizer")])
def test_an_option_without_effect_is_refused(options, words, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)):
        train.main([*options.split(), f"--out_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_more_tokens_than_memory_has_room_for_are_refused_before_any_training(monkeypatch):
    monkeypatch.setattr(train, "train_start", None)
    with pytest.raises(ValueError, match=r"--student_tokens=\d+, but expected more than 0 and at most .*memory"):
        train.train_students(("plain",), Config(student_tokens=10 ** 15), 1, 1)


def test_help_tells_every_option_and_every_option_is_used(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    shown = "".join(capsys.readouterr().out.split())                # lines are wrapped anywhere
    assert end.value.code == 0 and "pythontrain.py--minutes=30" in shown
    names = "train.py", "td_distill.py", "data/documents.py", "data/own_text.py", "data/optimizers.py"
    code = "".join((ROOT / name).read_text(encoding="utf-8") for name in names)
    for field in dataclasses.fields(Config):
        default = re.escape("".join(str(field.default).split()))
        found = re.search(rf"--{field.name}(?:int|float|str)?([^\[]+)\[{default}\]", shown)
        assert found and len(found[1]) > 5 and re.search(rf"config\.{field.name}\b", code), field.name


# --- losses and the loop ------------------------------------------------------------------------------------

def config_of(**fields):
    return Config(**{"n_head": 2, "n_layer": 1, "n_embd": 16, "block_size": 64, "warmup": 0, "cooldown": 0.0,
                     "answer_weight": 3.0, "device": "cpu", "step_tokens": 96, **fields})


def small_model():
    torch.manual_seed(0)
    model = GPT(GPTConfig(N_VOCAB, 64, 1, 2, 16))
    for parameter in model.parameters():            # away from the start, where every block is the identity
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def write_cache(folder, cached, n_vocab=N_VOCAB, tokenizer=""):
    writer = CacheWriter(folder, n_vocab=n_vocab, tokenizer_hash=tokenizer, p=0.95, k_cap=8, temperature=1.0,
                         teacher={"hash": "t"}, made_by="", roles=ROLES)
    for document in cached:
        writer.add(*document)
    writer.close()
    return TeacherCache(folder)


def some_documents():
    """[(tokens, roles, sets)]: many tokens drawn, two in three times from their sets; the last one is SEP."""
    rng, found = np.random.default_rng(3), []
    for n in rng.integers(4, 30, 12):
        tokens, roles, sets = rng.integers(0, N_VOCAB, n).tolist(), rng.integers(0, 4, n).tolist(), [None] * n
        for t in range(1, n, 2) if n % 3 else range(2, n):
            probs = np.sort(rng.dirichlet(np.ones(9)))[::-1][:rng.integers(1, 9)]
            ids = rng.permutation(N_VOCAB)[:len(probs)]
            tokens[t], sets[t] = int(ids[0]) if rng.random() < 0.67 else tokens[t], (ids, np.log(probs))
        found.append((tokens, roles[:-1] + [SEP], sets))
    return found


ROWS = Rows.pack([document[:2] for document in some_documents()], N_VOCAB)
MIX = DataMix([ROWS], [1.0])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Rows, and three caches: with sets of many tokens, of none, of one."""
    none, one = ([(ids, roles, [make(i) for i in ids]) for ids, roles, _ in some_documents()]
                 for make in (lambda i: None, lambda i: ([i], [-0.2])))
    caches = [write_cache(tmp_path_factory.mktemp("cache"), some) for some in (some_documents(), none, one)]
    return [ROWS, *caches]


def literal_loss(model, source, chosen, config, objective="kd"):
    """The weighted loss, token by token in float64 on the model's logits -> (its sum, sum of the weights)."""
    total = weight = 0.0
    for d in chosen:
        tokens, roles, *teacher = source.document(d)
        counts, ids, log_probs = teacher or (np.zeros(len(tokens), int), [], [])
        with torch.no_grad():
            hidden = model.hidden(torch.tensor([tokens.tolist()]))
            log_s = model.logits(hidden).double().log_softmax(-1)[0].numpy()
            v = model.td_heads.v(hidden)[0, :, 0].tolist() if "td" in objective else [0.0] * len(tokens)
        ends, sets, V = np.cumsum(counts), [{} for _ in tokens], [0.0] * len(tokens)
        for t in range(len(tokens)):                # the nucleus of config.p, inside the one that was cached
            for k in range(ends[t] - counts[t], ends[t]):
                if sum(sets[t].values()) < config.p - 1e-6:
                    sets[t][int(ids[k])] = math.exp(float(log_probs[k]))
            V[t] = math.log(sum(math.exp(log_s[t - 1][i]) for i in sets[t]) or 1.0)
        for t in range(1, len(tokens)):
            w, a, mass = config.answer_weight if roles[t] == ANSWER else 1.0, tokens[t], sum(sets[t].values())
            weight += w
            if not sets[t] or objective == "seqkd":
                total -= w * log_s[t - 1][a]
                continue
            total -= w * sum(q / mass * (log_s[t - 1][i] - V[t]) for i, q in sets[t].items())
            total -= w * config.leak * V[t]
            if objective == "kd":
                total += w * sum(q / mass * math.log(q / mass) for q in sets[t].values())
            elif a in sets[t] and (roles[t] in (SEP, END) or (t + 1 < len(tokens) and sets[t + 1])):
                after = 0.0 if roles[t] in (SEP, END) or objective == "td0" else v[t] + V[t + 1]
                total += w * (log_s[t - 1][a] + v[t - 1] - config.gamma * after) ** 2 / (4 * config.alpha)
    return total, weight


@pytest.mark.parametrize("large", [False, True], ids=["all", "weighted"])    # positions that get logits
@pytest.mark.parametrize("objective, options", [
    ("kd", dict()), ("kd", dict(p=0.5, leak=2.0)), ("seqkd", dict()),
    ("td", dict(leak=2.0, alpha=3.0, gamma=0.9)), ("td0", dict(leak=2.0, alpha=3.0, gamma=0.9))])
def test_the_loss_of_a_batch_is_a_literal_loop(sources, objective, options, large, monkeypatch):
    if large:
        monkeypatch.setattr(td_distill, "LARGE", 2)
        monkeypatch.setattr(head, "LARGE", 2)
    model, config, chosen, soft = small_model(), config_of(**options), np.array([7, 0, 3, 11, 5]), []
    if "td" in objective:
        td_distill.add_heads(model)
        torch.nn.init.normal_(model.td_heads.v.weight)
    for source in sources:
        expected, weight = literal_loss(model, source, chosen, config, objective)
        terms = train.loss_terms(model, source, Batch(0, chosen, 0), config, CPU, weight, objective)
        assert sum(terms.values()).item() == pytest.approx(expected / weight, rel=1e-4)
        soft.append(sum(value.item() for name, value in terms.items() if name != "hard") != 0)
    assert soft == [False, objective != "seqkd", False, objective != "seqkd"]
    nats, _ = literal_loss(model, ROWS, range(len(ROWS)), config_of(answer_weight=1.0))
    assert bits_per_byte(model, ROWS, 321) == pytest.approx(nats / math.log(2) / 321, rel=1e-5)


def test_a_large_vocabulary_has_the_gradients_of_a_small_one(sources, monkeypatch):
    """Only the positions with a weight get logits; not all have one here, but the sets of the others count for V(s')."""
    config, chosen, found = config_of(text_weight=0.0), np.arange(6), []
    for large in (1 << 20, 2):
        monkeypatch.setattr(td_distill, "LARGE", large)
        monkeypatch.setattr(head, "LARGE", large)
        for source in sources[:2]:
            for objective in ("kd", "td", "improve"):
                model = small_model()
                td_distill.add_heads(model)
                torch.nn.init.normal_(model.td_heads.v.weight)
                terms = train.loss_terms(model, source, Batch(0, chosen, 0), config, CPU, 9.0, objective)
                sum(terms.values()).backward()
                found.append([p.grad for p in model.parameters() if p.grad is not None])
    for dense, lean in zip(found[:6], found[6:]):
        torch.testing.assert_close(lean, dense, rtol=1e-4, atol=1e-6)


def test_improve_is_that_of_td_distill(sources):
    """On the positions with a set; the others are hard targets as in "kd"."""
    model, config, chosen = small_model(), config_of(leak=2.0), np.arange(6)
    td_distill.add_heads(model)
    torch.nn.init.normal_(model.td_heads.U.weight)
    rows = sources[1].batch(chosen)
    ends = torch.isin(rows["roles"], torch.tensor([SEP, END]))
    student, teacher, _ = td_distill.cached_terms(model, rows, ends, config.p)
    weights = torch.from_numpy(documents.role_weights(config))[rows["roles"]] * rows["real"]
    wanted, _ = td_distill.improve(student, teacher, weights[:, 1:] * teacher.mask.any(-1), 100.0, leak=2.0)
    improved, kd = (train.loss_terms(model, sources[1], Batch(0, chosen, 0), config, CPU, 100.0, objective)
                    for objective in ("improve", "kd"))
    assert improved["sets"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert improved["hard"] == kd["hard"] > 0 and abs(improved["sets"] - kd["sets"]) > 1e-3


def test_k_micro_batches_are_one_batch(sources, monkeypatch):
    """The first batch is of the shortest documents, the last of the longest."""
    monkeypatch.setattr(train, "pick_device", lambda name: (CPU, None))         # float32
    for source in sources[:2]:
        grads = []
        for k in (1, 2, 3, 6):
            model = small_model()
            parts = [Batch(0, part, 0) for part in np.array_split(np.argsort(source.lengths), k)]
            loss, _ = train.add_gradients(model, [source], parts, config_of(), train.loss_terms)
            grads.append([torch.tensor(loss), *(p.grad for p in model.parameters())])
        for one, *others in zip(*grads):
            assert one.abs().max() > 0
            for added in others:
                torch.testing.assert_close(added, one, rtol=1e-5, atol=1e-6)


def test_two_runs_of_one_seed_are_bit_identical(sources):
    def ten_losses(seed):
        config, mix = config_of(seed=seed, accumulate=2), DataMix([ROWS, sources[1]], [0.5, 0.5])
        model = train.new_model(1, 16, SimpleNamespace(n_vocab=N_VOCAB), config)
        return train.fit("", model, mix, 2600, config)[0][:10]
    assert len(ten_losses(1)) == 10 and ten_losses(1) == ten_losses(1) != ten_losses(2)


def test_the_learning_rate_rises_stays_and_falls_to_zero_and_the_model_learns(monkeypatch):
    rates, real, model = [], train.make_optimizers, small_model()

    def watched(*arguments):
        both = real(*arguments)
        both[1].register_step_pre_hook(lambda adam, *_: rates.append(adam.param_groups[0]["lr"]))
        return both
    monkeypatch.setattr(train, "make_optimizers", watched)
    config = config_of(warmup=5, learning_rate=0.02, cooldown=0.25)
    losses, curve, seen = train.fit("", model, MIX, 5000, config, look=lambda: {"x": 1})
    falling = round(0.25 * len(rates))
    assert rates[:5] == pytest.approx([0.004, 0.008, 0.012, 0.016, 0.02]) and max(rates) == 0.02
    assert set(rates[5:-falling]) == {0.02} and rates[-1] == pytest.approx(0.02 / falling)
    assert len(losses) == len(rates) and np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert abs(seen - 5000) < 40 and not model.training and len(curve) == train.EVAL_STEPS
    assert 0 < curve[0]["tokens"] < curve[-1]["tokens"] < seen and curve[0]["x"] == 1


def test_a_loss_that_is_no_number_stops_the_run_in_one_line(sources):
    def broken(model, *rest):
        calls.append(1)
        if len(calls) == 7:                         # two batches a step: at step 3
            torch.nn.init.constant_(model.transformer.ln_f.weight, math.inf)
        return train.loss_terms(model, *rest)
    calls, config = [], config_of(accumulate=2, learning_rate=0.003)
    with pytest.raises(ValueError) as stopped:
        train.fit("brd", small_model(), DataMix([sources[1]], [1.0]), 2000, config, loss=broken)
    assert re.fullmatch(r"brd: loss \{.*'sets': nan.*\}, gradient nan at step 3, learning rate 0.003; try a "
                        "lower --learning_rate", str(stopped.value))


def test_a_training_of_which_no_token_has_a_weight_is_refused():
    rows = Rows.pack([([1, 2, 3], [TEXT] * 3)] * 20, N_VOCAB)
    with pytest.raises(ValueError, match="x: no token that is read has a weight; try a --text_weight above 0"):
        train.fit("x", small_model(), DataMix([rows], [1.0]), 100, config_of(text_weight=0.0))
    some = Rows.pack([([1, 2, 3], [TEXT, TEXT, END])] + [([1, 2, 3], [TEXT] * 3)] * 20, N_VOCAB)
    train.fit("x", small_model(), DataMix([some], [1.0]), 100, config_of(text_weight=0.0))


def test_documents_of_one_token_have_nothing_to_predict(tmp_path):
    one = [([3], [ANSWER], [([3, 4], [-0.5, -1.0])])] * 5
    for source in (Rows.pack([document[:2] for document in one], N_VOCAB), write_cache(tmp_path, one)):
        with pytest.raises(ValueError, match="5 documents without a token to predict"):
            train.fit("x", small_model(), DataMix([source], [1.0]), 300, config_of())
        terms = train.loss_terms(small_model(), source, Batch(0, np.arange(4), 1), config_of(), CPU, 1.0)
        assert {term.item() for term in terms.values()} == {0.0}


# --- what students read, and whole runs ---------------------------------------------------------------------

def test_the_shipped_teacher_fits():
    tokenizer, teacher = TOKENIZER(), GPT.load(train.TEACHER / "model")
    cache = TeacherCache(train.TEACHER, tokenizer.n_vocab, tokenizer.hash)
    assert cache.header["roles"] == list(ROLES) and cache.header["p"] >= Config.p
    assert cache.lengths.max() <= Config.block_size + 1 and cache.header["tokens"] > 100_000
    assert teacher.num_params() == cache.header["teacher"]["params"]
    assert (teacher.config.n_vocab, teacher.config.block_size) == (tokenizer.n_vocab, Config.block_size)


def test_plain_and_brd_read_equal_tokens():
    config, tokenizer, seen = Config(student_tokens=40_000), TOKENIZER(), []
    paragraphs = documents.world_paragraphs(config.student_tokens, config, 1)
    for name in train.STUDENTS:
        mix = documents.data_mix(name, config, tokenizer, paragraphs)
        seen.append(sum(batch.tokens for batch in plan_batches(mix, 40_000, config.step_tokens, 1)))
        for source, share in zip(mix.sources, mix.shares):          # enough text: no document is read twice
            assert (source.lengths - 1).sum() > 0.95 * share * 40_000
    assert max(seen) / min(seen) < 1.04


def test_more_annotations_are_those_of_the_last_level():
    """Document by document, for as many tokens as they are to last."""
    tokenizer, last = TOKENIZER(), world.LEVELS[-1]
    mix = documents.gold_mix(20_000, Config(seed=3), tokenizer)
    paragraphs = list(world.annotated(20_000 // documents.QRA_TOKENS + 1, "3 gold", [last]))
    assert mix.shares == [0.25, 0.75] and max(map(len, paragraphs)) == 4
    for behaviour, source, share in zip(("ner", "qra"), mix.sources, mix.shares):
        rng, wanted = random.Random(f"{behaviour} 3 gold"), []
        join_prob = last.join_prob * (documents.NER_JOIN if behaviour == "ner" else 1.0)
        for paragraph in paragraphs:
            document = documents.render(paragraph, behaviour, rng, 24, join_prob)
            wanted.append(documents.vary_layout(document, rng) if rng.random() < last.varied else document)
        wanted = [ids for ids, _ in documents.encode_documents(wanted, tokenizer)]
        assert [source.document(d)[0].tolist() for d in range(len(source))] == wanted
        assert (source.lengths - 1).sum() > share * 20_000          # no document is read twice


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        small_world(folder, patch.setattr)
        yield folder


@pytest.fixture(scope="module")
def trained(place):
    """A finished run -> its folder."""
    train.main([*TINY, f"--out_dir={place / 'deep' / 'out'}"])
    return place / "deep" / "out"


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.suffix}


def test_a_run_leaves_everything_and_running_again_changes_nothing(trained, place, capsys):
    results, names = read_json(trained / "results.json", ""), {path.name for path in trained.iterdir()}
    assert not any(str(path) in str(results) for path in (place, ROOT, Path.home()))
    assert names == set(train.FILES) - {"plan.json", "text", "report.html"} | {".lock"}
    assert not [path for path in trained.rglob("*") if path.name == "training.pt" or path.suffix == ".tmp"]
    assert "annotations.jsonl" in (trained / "README.txt").read_text(encoding="utf-8")
    assert tuple(results["students"]) == train.STUDENTS + EVERY_ARM and results["teacher"] == {"params": 7}
    start, (learnt, _) = GPT.load(trained / "start"), open_cache(place / "teacher", TOKENIZER())
    arm_tokens = (learnt.lengths - 1).sum()
    for name, student in results["students"].items():
        seen = results["students"]["brd"]["tokens_seen"] + arm_tokens if "+" in name else 7000
        assert abs(student["tokens_seen"] / seen - 1) < 0.05 and start.extra["tokens_seen"] > 2800
        assert len(student["losses"]) > 1 and bool(student["reading_curve"]) == (name == "brd")
        beside = [] if name == "plain" else ["outside", "residual", "right", "distinct", "nats"]
        assert list(student["beside_teacher"]) == beside
        assert list(student["reading"]) == list(documents.TEST_LEVELS) and set(student["blind"]) == {"moods"}
        assert not torch.equal(GPT.load(trained / name).transformer.wte.weight, start.transformer.wte.weight)
    before = stamps(trained)
    train.main([*TINY, f"--out_dir={trained}"])
    shown = capsys.readouterr().out
    assert train.report(results) in shown and "--redo" in shown and stamps(trained) == before
    read_main([str(trained / "brd"), "Anna took a train to Oslo."])
    assert "Anna" in capsys.readouterr().out


def test_another_option_cache_task_or_text_is_named(trained, place, tmp_path, monkeypatch):
    def refused(words, *options):
        with pytest.raises(ValueError, match=f"holds a run with {words}.*--redo") as error:
            train.main([*options, f"--out_dir={trained}"])
        assert "\n" not in str(error.value) and stamps(trained) == before
    tokenizer, before = TOKENIZER(), stamps(trained)
    refused("seed=1, this one has 2", *TINY, "--seed=2")
    refused("corpus=world", *OWN, f"--corpus={place / 'my.txt'}")
    write_cache(tmp_path, [([1, 2], [TEXT, END], [None, ([2], [-0.1])])], tokenizer.n_vocab, tokenizer.hash)
    refused("cache=, this one has", *TINY, f"--cache={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(train, "TEACHER", tmp_path)
        refused("cache hash=", *TINY)
    monkeypatch.setattr(train, "TASKS", [])
    refused("task files=", *TINY)


def test_arms_may_be_added_to_a_finished_run(trained, tmp_path, monkeypatch, capsys):
    """Without another training of those that are there; the table has all of them."""
    def fit(name, *rest):
        names.append(name)
        return real(name, *rest)
    names, real, out = [], train.fit, tmp_path / "out"
    shutil.copytree(trained, out)
    for name in ("stages/brd+td.json", "stages/brd+td.test.json", "stages/results.json", "results.json"):
        (out / name).unlink()
    shutil.rmtree(out / "brd+td")
    monkeypatch.setattr(train, "fit", fit)
    train.main([*TINY, "--arms=kd", f"--out_dir={out}"])
    assert names == [] and len(read_json(out / "results.json", "")["students"]) == 2 + len(train.ARMS) - 1
    with monkeypatch.context() as patch:                    # a finished run is shown without a tokenizer
        patch.setattr("data.documents.train_bpe", None)
        train.main([*TINY, "--arms=kd", f"--out_dir={out}"])
    assert "finished before" in capsys.readouterr().out
    train.main([*TINY, "--arms=td", f"--out_dir={out}"])
    assert names == ["brd+td"] and "finished before" not in capsys.readouterr().out
    assert read_json(out / "results.json", "") == read_json(trained / "results.json", "")


def test_a_run_without_arms_takes_some_later(trained, tmp_path, capsys):
    """Its `brd` has been tested beside the teacher, too."""
    without, some = (train.documents.run_inputs(Config(arms=arms), [], train.TEACHER) for arms in ("", "kd"))
    assert without == some and "cache hash" in some
    out, students = tmp_path / "out", {}
    shutil.copytree(trained, out)
    for path in out.glob("stages/brd+*.json"):
        path.rename(tmp_path / path.name)
    for name in ("stages/brd.test.json", "stages/results.json", "results.json"):
        (out / name).unlink()
    for arms in ("", "kd"):
        for path in tmp_path.glob(f"brd+{arms}.*json") if arms else ():
            path.rename(out / "stages" / path.name)
        train.main([*TINY, f"--arms={arms}", f"--out_dir={out}"])
        students[arms] = set(read_json(out / "results.json", "")["students"])
    assert students == {"": {"plain", "brd"}, "kd": {"plain", "brd", "brd+kd"}}
    assert "tokens more" in capsys.readouterr().out


def test_redo_throws_away_all_that_a_run_made(trained, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt
    shutil.copytree(trained, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").touch()
    monkeypatch.setattr(train, "train_start", stop)
    with pytest.raises(KeyboardInterrupt):
        train.main([*TINY, "--arms=kd", "--redo", f"--out_dir={tmp_path / 'out'}"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.txt", "run.json", ".lock", ".redo", "mine.txt", "tokenizer.json", "tokenizer.tiktoken"}


def test_an_annotated_corpus_is_read_beside_the_world(trained, tmp_path, capsys):
    """Without arms, since the cache in data/teacher has another vocabulary."""
    corpus = tmp_path / "my.jsonl"
    write_annotations(corpus, read_annotations(trained / "annotations.jsonl")[-18:])
    train.main([*TINY, f"--corpus={corpus}", "--n_vocab=400", f"--out_dir={tmp_path / 'out'}"])
    results = read_json(tmp_path / "out" / "results.json", "")
    students = results["students"]
    _, held_out = annotated_text(str(corpus))
    asked = sum(len(record["questions"]) for paragraph in held_out for record in paragraph)
    assert students["brd"]["reading"]["corpus"]["answer.all"]["n"] == asked > 0
    assert not (results["config"]["arms"] or results["teacher"] or students["brd"]["beside_teacher"])
    answers = Counter(item["answer"] for paragraph in held_out for record in paragraph
                      for item in record["questions"] if item["kind"] == "attitude")
    share, shown = max(answers.values()) / answers.total(), capsys.readouterr().out
    assert students["brd"]["reading"]["corpus"]["answer.attitude"]["majority"] == share
    corpus_lines = shown.partition("reading text of the corpus")[2].splitlines()
    (line,) = (line.split() for line in corpus_lines if line.startswith("  attitude"))
    assert line[:3] == ["attitude,", "exact", f"{share:.3f}"]
    assert list(students) == ["plain", "brd"] and "reading text of the corpus" in shown
    assert "vocabulary 400 of at most 400, 4,000 tokens a student, no arms" in shown
    assert "fewer than 300,000 tokens answers hardly any question" in shown


def test_minutes_plan_the_tokens_once(tmp_path, monkeypatch):
    """The first steps are slow and do not count. The clock moves by 5 s, then by 1 s for 1,000 tokens."""
    now, names = [0.0], []

    def fit(name, model, mix, tokens, config):
        names.append(name)
        now[0] += tokens / 1000 if len(names) > 1 else 5
        return [], [], tokens
    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    config, tokenizer = config_of(step_tokens=1000, out_dir=str(tmp_path)), SimpleNamespace(n_vocab=N_VOCAB)
    for seconds, students in (250, 1), (1000, 1), (-1, 2):                          # it goes on
        assert train.planned_tokens(config, tokenizer, None, seconds, students, 25_000) == 250 * 900 - 25_000
    other = config_of(out_dir=str(tmp_path / "new"), minutes=1.0)
    with pytest.raises(ValueError, match="--minutes=1.0: all but the training takes longer; try more"):
        train.planned_tokens(other, tokenizer, None, -1, 1, 0)
    assert names == ["measuring"] * 2


@pytest.mark.parametrize("threads, arms, students, later", [
    (1, "gold,kd,td", 2, 3), (2, "gold,kd,td", 1, 2), (4, "", 1, 0)])
def test_minutes_pay_for_all(place, tmp_path, monkeypatch, threads, arms, students, later):
    """A student's tokens are what is left by the arms, which read the cache; 15 s: the start, 30 s: a test. The
    speed is measured with the threads of one student, and all are there for the training."""
    given, now = [], [0.0]
    options = [*TINY, f"--student_tokens={Config.student_tokens}", f"--threads={threads}", f"--arms={arms}"]

    def stop(names, config, *shared):
        given.extend([config.student_tokens, shared])
        raise KeyboardInterrupt
    monkeypatch.setattr(train, "planned_tokens", lambda *arguments: given.append(arguments[-3:]) or 90_000)
    monkeypatch.setattr(train, "train_students", stop)
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    with pytest.raises(KeyboardInterrupt):
        train.main([*options, "--minutes=10", f"--out_dir={tmp_path / 'a'}"])
    arm_tokens = int(open_cache(place / "teacher", TOKENIZER())[0].lengths.sum())
    assert given == [(600 - 15 - 30 * (students + later), students, later * arm_tokens), 90_000, (threads, threads)]


@pytest.mark.parametrize("arm", train.ARMS)
def test_what_an_arm_learns(place, monkeypatch, arm):
    """From `brd`, as many tokens as the part of the cache for learning, at its own rate, all of one weight."""
    calls, config = [], Config(arm_rate=0.004, learning_rate=0.02, answer_weight=20.0, device="cpu")
    monkeypatch.setattr(train, "finished_model", lambda name, config: name if name == "brd" else None)
    monkeypatch.setattr(train, "train_model", lambda *given, **options: calls.append((given, options)))
    monkeypatch.setattr(train, "test_student", lambda name, *_: name)
    learnt, _ = open_cache(place / "teacher", TOKENIZER())
    assert train.train_and_test(f"brd+{arm}", config, 1) == f"brd+{arm}"
    [((name, model, mix, tokens, settings, _), options)] = calls
    assert (name, model, tokens) == (f"brd+{arm}", "brd", int((learnt.lengths - 1).sum()))
    assert settings == dataclasses.replace(config, learning_rate=0.004, answer_weight=1.0)
    assert options == {"objective": arm} and len(mix.sources) == (2 if arm == "gold" else 1)
    assert arm == "gold" or mix.sources[0].lengths.tolist() == learnt.lengths.tolist()


@pytest.mark.parametrize("workers, groups", [
    (1, [["plain"], ["brd"], ["brd+gold"], ["brd+kd"], ["brd+td"]]),
    (2, [["plain", "brd"], ["brd+gold", "brd+kd"], ["brd+td"]]),
    (5, [["plain", "brd"], ["brd+gold", "brd+kd", "brd+td"]])])
def test_arms_begin_when_brd_is_finished(monkeypatch, workers, groups):
    """Each has an equal part of six threads."""
    names, begun, calls = tuple(sum(groups, [])), [[]], []

    def submit(call, *how):
        def result():
            if begun[-1]:
                begun.append([])
            return call(*how)
        if call is train.train_and_test:
            begun[-1].append(how[0])
        return SimpleNamespace(result=result)
    pool = contextlib.nullcontext(SimpleNamespace(submit=submit))
    monkeypatch.setattr(train.machine, "worker_pool", lambda n: pool if n == workers > 1 else None)
    monkeypatch.setattr(train, "train_start", lambda config, threads: calls.append(("start", threads)))
    monkeypatch.setattr(train, "train_and_test", lambda name, _, threads: calls.append((name, threads)) or name)
    assert train.train_students(names, Config(), 6, workers) == {name: name for name in names}
    assert calls == [(name, 6 // workers) for name in ("start", *names)]
    assert workers == 1 or begun == [*groups, []]
