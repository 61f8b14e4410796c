"""Options, the losses of a batch, the one training loop, and whole runs at a tiny budget."""
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import td_distill
import train
from adapters.read import main as read_main
from data import documents, machine
from data.batches import Batch, DataMix, Rows, plan_batches
from data.cache import TeacherCache
from data.cache_tools import CacheWriter
from data.cli import parse_options
from data.documents import ROLES, course_tokenizer
from data.figures import bits_per_byte
from model import GPT, GPTConfig
from tests.torture import TINY, small_world
from train import Config

ROOT = Path(train.__file__).resolve().parent
TEXT, ENTITY, QUESTION, ANSWER, SEP, END = range(len(ROLES))
N_VOCAB, CPU = 50, torch.device("cpu")


# --- options ------------------------------------------------------------------------------------------------

def parse(*arguments):
    return parse_options(Config, arguments, train.__doc__)


def test_options_are_read_in_both_spellings_and_with_their_types():
    assert parse() == Config()
    config = parse("--p=0.8", "--seed", "7", "--redo", "--out_dir=elsewhere", "--objective=seqkd")
    assert config == Config(p=0.8, seed=7, redo=True, out_dir="elsewhere", objective="seqkd")
    assert (type(config.p), type(config.seed)) == (float, int)


@pytest.mark.parametrize("option, words", [
    ("--learning_rat=0.1", "unknown option --learning_rat; did you mean --learning_rate?"),
    ("--learning-rate=0.1", "--learning_rate?"), ("--xyzzy=1", "unknown option --xyzzy; --help"),
    ("stray", "stray"), ("--p=1.5", "--p=1.5, but expected more than 0 and at most 1"), ("--p=0", "--p=0.0"),
    ("--p=much", "'much'"), ("--p", "expected one argument"), ("--seed=1.5", "'1.5'"), ("--redo=1", "redo"),
    ("--seed=-1", "--seed=-1, but expected at least 0"), ("--device=tpu", "one of auto cpu cuda mps"),
    ("--objective=kl", "one of topp_kd bellman seqkd"), ("--learning_rate=0", "more than 0"),
    ("--block_size=100", "a multiple of 8"), ("--ner_share=0.9", "leave no D_QRA"), ("--n_embd=102", "n_embd"),
    ("--cooldown=2", "at most 1"), ("--plain_share=1.5", "at most 1"), ("--n_layer=0", "n_layer")])
def test_bad_options_are_named_in_one_line(option, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        parse(option)
    assert "\n" not in str(refused.value)


def test_numbers_are_finite_and_not_negative():
    for field in (field for field in dataclasses.fields(Config) if field.type in (int, float)):
        for value in ("nan", "inf", "-1"):
            with pytest.raises(ValueError, match=f"{field.name}.*{value}"):
                parse(f"--{field.name}={value}")


def test_help_tells_every_option_with_its_comment_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    shown = "".join(capsys.readouterr().out.split())                # lines are wrapped anywhere
    assert end.value.code == 0 and "pythontrain.py--minutes=30" in shown
    for field in dataclasses.fields(Config):
        default = re.escape("".join(str(field.default).split()))
        found = re.search(rf"--{field.name}(?:int|float|str)?([^\[]+)\[{default}\]", shown)
        assert found and len(found[1]) > 5, field.name


def test_every_option_is_used_somewhere():
    names = "train.py", "td_distill.py", "data/documents.py", "data/own_text.py"
    code = "".join((ROOT / name).read_text(encoding="utf-8") for name in names)
    for field in dataclasses.fields(Config):
        assert re.search(rf"config\.{field.name}\b", code), field.name


# --- losses and the loop ------------------------------------------------------------------------------------

def config_of(**fields):
    return Config(**{"n_head": 2, "n_layer": 1, "n_embd": 16, "block_size": 64, "warmup": 0, "cooldown": 0.0,
                     "answer_weight": 3.0, "device": "cpu", "step_tokens": 96, **fields})


def small_model(n_vocab=N_VOCAB):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_vocab, 64, 1, 2, 16))
    for parameter in model.parameters():            # away from the start, where every block is the identity
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def some_rows(n=12, seed=5, role=None):
    rng = np.random.default_rng(seed)
    return Rows.pack([(rng.integers(0, N_VOCAB, k).tolist(),
                       rng.integers(0, len(ROLES), k).tolist() if role is None else [role] * k)
                      for k in rng.integers(2, 30, n)], N_VOCAB)


ROWS = DataMix([some_rows()], [1.0])


def write_cache(folder, docs, n_vocab=N_VOCAB, tokenizer=""):
    writer = CacheWriter(folder, n_vocab=n_vocab, tokenizer_hash=tokenizer, p=0.95, k_cap=8, temperature=1.0,
                         teacher={"hash": "t"}, made_by="", roles=ROLES)
    for document in docs:
        writer.add(*document)
    writer.close()
    return TeacherCache(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Random documents; many tokens were drawn, two in three times from their sets; the last one is SEP."""
    rng, docs = np.random.default_rng(3), []
    for n in rng.integers(4, 30, 12):
        tokens, roles, sets = rng.integers(0, N_VOCAB, n).tolist(), rng.integers(0, 4, n).tolist(), [None] * n
        for t in range(1, n, 2) if n % 3 else range(2, n):
            probs = np.sort(rng.dirichlet(np.ones(9)))[::-1][:rng.integers(1, 9)]
            ids = rng.permutation(N_VOCAB)[:len(probs)]
            tokens[t], sets[t] = int(ids[0]) if rng.random() < 0.67 else tokens[t], (ids, np.log(probs))
        docs.append((tokens, roles[:-1] + [SEP], sets))
    return write_cache(tmp_path_factory.mktemp("cache"), docs)


@pytest.fixture(scope="module")
def sources(cache, tmp_path_factory):
    """[(source, n_vocab)]: rows, caches with sets of many tokens, of none and of one, and wide ids, whose low 16
    bits are those of others."""
    found, rng = [(some_rows(), N_VOCAB), (cache, N_VOCAB)], np.random.default_rng(0)
    for size in (0, 1):
        docs = [(ids, [ANSWER] * 8 + [END], [([i], [-0.2]) if size else None for i in ids])
                for ids in rng.integers(0, N_VOCAB, (12, 9)).tolist()]
        found.append((write_cache(tmp_path_factory.mktemp("cache"), docs), N_VOCAB))
    wide = 152_064
    docs = [([wide - 1, 5, wide - 3, (wide - 1) % 65_536, 7], [ANSWER] * 5)] * 12
    sets = [None, *(([t, 9, wide - 2], np.log([0.5, 0.25, 0.125])) for t in docs[0][0][1:])]
    cached = write_cache(tmp_path_factory.mktemp("cache"), [(*docs[0], sets)] * 12, wide)
    return [*found, (Rows.pack(docs, wide), wide), (cached, wide)]


def literal_loss(model, source, chosen, config):
    """The weighted loss, one token at a time, in float64 on the model's logits -> (sum, sum of weights)."""
    total = weight = 0.0
    for d in chosen:
        tokens, roles, *teacher = source.document(d)
        counts, ids, log_probs = teacher or (np.zeros(len(tokens), int), [], [])
        with torch.no_grad():
            log_s = model(torch.tensor([tokens.tolist()])).double().log_softmax(-1)[0].numpy()
        ends, sets = np.cumsum(counts), [[] for _ in tokens]
        for t in range(len(tokens)):                # the nucleus of config.p, inside the one that was cached
            for k in range(ends[t] - counts[t], ends[t]):
                if sum(q for _, q in sets[t]) < config.p - 1e-6:
                    sets[t].append((int(ids[k]), math.exp(float(log_probs[k]))))

        def inside(t):
            return math.log(sum(math.exp(log_s[t - 1][i]) for i, _ in sets[t]))
        for t in range(1, len(tokens)):
            w, a, kept = config.answer_weight if roles[t] == ANSWER else 1.0, int(tokens[t]), sets[t]
            weight += w
            if not kept or config.objective == "seqkd":
                total -= w * log_s[t - 1][a]
                continue
            mass, V = sum(q for _, q in kept), inside(t)
            ce = -sum(q / mass * (log_s[t - 1][i] - V) for i, q in kept)
            entropy = -sum(q / mass * math.log(q / mass) for _, q in kept)
            if config.objective == "topp_kd":
                total += w * (ce - entropy - config.leak * V)
                continue
            total += w * (ce - config.leak * V)
            terminal = roles[t] in (SEP, END)
            if a in dict(kept) and (terminal or (t + 1 < len(tokens) and sets[t + 1])):
                residual = log_s[t - 1][a] - (0.0 if terminal else config.gamma * inside(t + 1))
                total += w * residual ** 2 / (4 * config.alpha)
    return total, weight


@pytest.mark.parametrize("options", [dict(), dict(p=0.5, leak=2.0), dict(objective="seqkd"),
                                     dict(objective="bellman", leak=2.0, alpha=3.0, gamma=0.9)], ids=str)
def test_the_loss_of_a_batch_is_a_literal_loop(sources, options):
    config, chosen, soft = config_of(**options), np.array([7, 0, 3, 11, 5]), []
    for source, n_vocab in sources:
        model = small_model(n_vocab)
        expected, weight = literal_loss(model, source, chosen, config)
        terms = train.loss_terms(model, source, Batch(0, chosen, 0), config, CPU, weight)
        assert sum(terms.values()).item() == pytest.approx(expected / weight, rel=1e-4)
        soft.append(sum(value.item() for name, value in terms.items() if name != "hard"))
    where = [0, 1, 0, 1, 0, 1] if config.objective != "seqkd" else [0] * 6
    assert [int(value != 0) for value in soft] == where


def test_k_micro_batches_are_one_batch(sources, monkeypatch):
    """The first batch is of the shortest documents, the last of the longest."""
    monkeypatch.setattr(train, "pick_device", lambda name: (CPU, None))         # float32
    for source, _ in sources[:2]:
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


def test_two_runs_of_one_seed_are_bit_identical(cache):
    def ten_losses(seed):
        config, mix = config_of(seed=seed, accumulate=2), DataMix([some_rows(), cache], [0.5, 0.5])
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
    losses, curve, seen = train.fit("", model, ROWS, 5000, config, look=lambda: {"x": 1})
    falling = round(0.25 * len(rates))
    assert rates[:5] == pytest.approx([0.004, 0.008, 0.012, 0.016, 0.02]) and max(rates) == 0.02
    assert set(rates[5:-falling]) == {0.02} and rates[-1] == pytest.approx(0.02 / falling)
    assert len(losses) == len(rates) and np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert abs(seen - 5000) < 40 and not model.training and 0 < curve[0]["tokens"] < curve[1]["tokens"] < seen
    assert len(curve) == train.EVAL_STEPS and curve[0]["x"] == 1


def test_a_loss_that_is_no_number_stops_the_run_in_one_line(cache):
    def broken(model, *rest):
        calls.append(1)
        if len(calls) == 7:                          # two batches a step: at step 3
            with torch.no_grad():
                model.transformer.ln_f.weight[3] = math.inf
        return train.loss_terms(model, *rest)
    calls, config = [], config_of(accumulate=2, learning_rate=0.003)
    with pytest.raises(ValueError) as stopped:
        train.fit("brd", small_model(), DataMix([cache], [1.0]), 2000, config, loss=broken)
    assert re.fullmatch(r"brd: loss \{.*'sets': nan.*\}, gradient nan at step 3, learning rate 0.003; try a "
                        "lower --learning_rate", str(stopped.value))

    def rooted(model, *_):                          # the loss is finite, its derivative is not: sqrt at 0
        weight = model.transformer.wte.weight
        return {"x": (weight - weight.detach()).square().sum().sqrt() + 1.5}
    model = small_model()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"x: loss \{'x': 1.5\}, gradient nan at step 0"):
        train.fit("x", model, ROWS, 300, config_of(), loss=rooted)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_batches_without_any_weight_change_nothing():
    model, config = small_model(), config_of(text_weight=0.0, weight_decay=0.0)
    before = [p.clone() for p in model.parameters()]
    losses, *_ = train.fit("x", model, DataMix([some_rows(role=TEXT)], [1.0]), 300, config)
    assert set(losses) == {0.0} and all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_documents_of_one_token(tmp_path):
    """They have nothing to predict: alone they are refused, among others they count for nothing."""
    one = [([3], [ANSWER])] * 5
    cached = write_cache(tmp_path, [([3], [ANSWER], [([3, 4], [-0.5, -1.0])])] * 5)
    for source in (Rows.pack(one, N_VOCAB), cached):
        with pytest.raises(ValueError, match="5 documents without a token to predict"):
            train.fit("x", small_model(), DataMix([source], [1.0]), 300, config_of())
        terms = train.loss_terms(small_model(), source, Batch(0, np.arange(4), 1), config_of(), CPU, 1.0)
        assert set(float(term) for term in terms.values()) == {0.0}
    mixed = Rows.pack(one + [([1, 2, 3, 4], [ANSWER] * 4)] * 5, N_VOCAB)
    losses, *_ = train.fit("x", small_model(), DataMix([mixed], [1.0]), 60, config_of())
    assert all(map(math.isfinite, losses)) and max(losses) > 1


def test_bits_per_byte_are_those_of_a_literal_loop():
    """Every document counts, once."""
    model, rows, nats = small_model(), some_rows(), 0.0
    for d in range(len(rows)):
        ids = rows.document(d)[0].tolist()
        log_probs = model(torch.tensor([ids])).log_softmax(-1)[0]
        nats -= sum(log_probs[t, ids[t + 1]].item() for t in range(len(ids) - 1))
    assert bits_per_byte(model, rows, 321) == pytest.approx(nats / math.log(2) / 321, rel=1e-5)
