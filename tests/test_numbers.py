"""Numbers at their edges: what is not finite stops a run and is kept for replay; empty, masked and huge is right or refused."""
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import brd
import td_distill
import train
from data import reads
from data.cache import TeacherCache, CacheWriter
from data.batches import Batch, Rows
from data.files import check_stamp, read_tensors
from model import GPT, GPTConfig

TEXT, ENTITY, QUESTION, ANSWER, SEP, END = range(len(brd.ROLES))
LARGE = 152_064         # ids of a common tokenizer; more than 16 bits hold


def small(n_vocab=50, seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(n_vocab, 32, 1, 2, 8))


def some_rows(n=40, n_vocab=50, role=ANSWER, longest=20, seed=0):
    rng = np.random.default_rng(seed)
    return Rows.pack([(rng.integers(0, n_vocab, k).tolist(), [role] * k) for k in rng.integers(2, longest + 1, n)], n_vocab)


def some_cache(folder, n_vocab=50, documents=20, sets=lambda rng, n_vocab: 3, k_cap=8, length=9):
    """Every token drawn from a set of sets(...) tokens, itself the first; 0: it was given."""
    rng = np.random.default_rng(1)
    writer = CacheWriter(folder, n_vocab=n_vocab, tokenizer_hash="abc", p=0.95, k_cap=k_cap, temperature=1.0, teacher={}, made_by="",
                         roles=brd.ROLES)
    for _ in range(documents):
        ids = [np.unique(rng.integers(0, n_vocab, 20))[:sets(rng, n_vocab)] for _ in range(length)]
        probs = [np.sort(rng.dirichlet(np.ones(len(some))))[::-1] * 0.95 if len(some) else None for some in ids]
        tokens = [int(some[0]) if len(some) else int(rng.integers(0, n_vocab)) for some in ids]
        writer.add(tokens, [ANSWER] * (length - 1) + [END], [(some, np.log(q)) if len(some) else None for some, q in zip(ids, probs)])
    writer.close()
    return Cache(folder)


def config_of(**options):
    return train.Config(device="cpu", step_tokens=64, warmup=0, **options)


# --- what is not finite --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("objective, terms", [("topp_kd", ("hard", "sets")), ("bellman", ("hard", "bellman"))])
def test_a_loss_that_is_no_number_stops_the_run_and_can_be_replayed(tmp_path, objective, terms):
    cache, model, config = some_cache(tmp_path / "cache"), small(), config_of(objective=objective, accumulate=2, learning_rate=0.003)
    calls = []

    def broken(model, *rest):
        """At the fourth step the weights turn bad, as an overflow in the step before would turn them."""
        calls.append(1)
        if len(calls) == 2 * 3 + 1:
            with torch.no_grad():
                model.transformer.ln_f.weight[3] = math.inf
        return train.loss_terms(model, *rest)

    with pytest.raises(ValueError) as stopped:
        train.fit("brd", model, [some_rows(), cache], [0.5, 0.5], 2000, config, 0.0, loss_of=broken, folder=tmp_path / "brd")
    said, path = str(stopped.value), tmp_path / "brd" / "not_finite.pt"
    assert "\n" not in said and len(said.replace(str(path), "")) < 300 and str(path) in said
    for word in ("brd: loss nan", "gradient norm nan", "at step 3,", "learning rate 0.003", "weights_only=True", "try a lower --learning_rate"):
        assert word in said, said
    check_stamp(path)
    state = torch.load(path, weights_only=True)
    assert state["what"] in said and state["options"] == dataclasses.asdict(config) and len(state["batches"]) == 2
    again = GPT(GPTConfig(**state["config"]))
    again.load_state_dict(state["model"])
    sources = [some_rows(), cache]
    for batch in state["batches"]:                       # the same rows as the sources', and the same loss
        rows, source = batch["rows"], sources[batch["source"]]
        documents = np.array(batch["documents"])
        read = source.batch(documents, train.role_weights(config)) if batch["source"] == 0 else list(source.batch(documents).values())
        assert all(torch.equal(a, b) for a, b in zip(rows.values(), read))
        ids, targets = (rows["ids"], rows["targets"]) if batch["source"] == 0 else (rows["tokens"][:, :-1], rows["tokens"][:, 1:])
        loss = F.cross_entropy(again.logits(again.hidden(ids)).flatten(0, 1), targets.flatten())
        assert not torch.isfinite(loss)
    found = {name for batch in state["batches"] for name in train.loss_terms(
        again, sources[batch["source"]], Batch(batch["source"], np.array(batch["documents"]), 1), config, torch.device("cpu"), 1.0)}
    assert found <= set(terms) and all(f"{name} nan" in said for name in found)


def test_a_gradient_that_is_no_number_stops_it_too(tmp_path):
    """The loss is finite, its derivative is not: sqrt at 0."""
    def rooted(model, source, batch, *rest):
        return model.transformer.wte.weight.sub(model.transformer.wte.weight.detach()).square().sum().sqrt() + 1.5

    model = small()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"x: loss 1.5 \(loss 1.5\) and gradient norm nan at step 0") as stopped:
        train.fit("x", model, [some_rows()], [1.0], 300, config_of(), 0.0, loss_of=rooted, folder=tmp_path)
    assert "not_finite.pt" in str(stopped.value)
    saved = read_tensors(tmp_path / "not_finite.pt")["model"]
    assert all(torch.equal(before[name], p) and torch.equal(saved[name], p) for name, p in model.state_dict().items())


def test_without_a_folder_there_is_one_line_and_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="try a lower --learning_rate$"):
        train.fit("x", small(), [some_rows()], [1.0], 300, config_of(), 0.0, loss_of=lambda model, *_: model.transformer.ln_f.weight.sum() * math.nan)
    assert not list(tmp_path.iterdir())


# --- nothing to learn from -----------------------------------------------------------------------------------------------

def test_batches_without_any_weight_change_nothing_but_by_decay():
    """Of two sources one is masked as a whole: its batches give a loss of 0 and gradients of 0, no NaN."""
    model, config = small(), config_of(text_weight=0.0, weight_decay=0.0)
    masked = some_rows(role=TEXT)
    assert train.weight_of(masked, Batch(0, np.arange(3), 1), config) == 0
    before = {name: p.clone() for name, p in model.state_dict().items()}
    losses, _ = train.fit("x", model, [masked], [1.0], 300, config, 0.0)
    assert losses == [0.0] * len(losses) and len(losses) > 3
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    losses, _ = train.fit("x", model, [masked, some_rows(seed=2)], [0.5, 0.5], 3000, config, 0.0)
    assert 0.0 in losses and max(losses) > 1 and all(map(math.isfinite, losses))
    assert all(torch.isfinite(p).all() for p in model.parameters()) and not torch.equal(before["transformer.wte.weight"], model.transformer.wte.weight)


def test_documents_of_one_token():
    """They have nothing to predict: alone they are refused, among others they count for nothing."""
    alone = Rows.pack([([3], [ANSWER])] * 5, 50)
    with pytest.raises(ValueError, match="5 documents without a token to predict"):
        train.fit("x", small(), [alone], [1.0], 300, config_of(), 0.0)
    ids, targets, weights = alone.batch(np.array([0, 1]), train.role_weights(config_of()))
    assert ids.shape == (2, 8) and not weights.any()
    mixed = Rows.pack([([3], [ANSWER])] * 5 + [([1, 2, 3, 4], [ANSWER] * 4)] * 5, 50)
    losses, seen = train.fit("x", small(), [mixed], [1.0], 60, config_of(), 0.0)
    assert all(map(math.isfinite, losses)) and max(losses) > 1 and seen >= 60


def test_a_cache_of_documents_of_one_token(tmp_path):
    cache = some_cache(tmp_path, length=1)
    assert train.loss_terms(small(), cache, Batch(0, np.arange(4), 1), config_of(), torch.device("cpu"), 1.0)["sets"] == 0
    with pytest.raises(ValueError, match="without a token to predict"):
        train.fit("x", small(), [cache], [1.0], 300, config_of(), 0.0)


# --- sets that are empty, single, or of no mass --------------------------------------------------------------------------

@pytest.mark.parametrize("objective", ["topp_kd", "bellman", "seqkd"])
def test_empty_sets_are_hard_targets(tmp_path, objective):
    cache, model, config = some_cache(tmp_path, sets=lambda *_: 0), small(), config_of(objective=objective)
    batch = cache.batch([0, 1])
    logits = model.logits(model.hidden(batch["tokens"][:, :-1]))
    weights = torch.from_numpy(train.role_weights(config))[batch["roles"][:, 1:]]
    literal = (F.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten(), reduction="none") * weights.flatten()).sum() / 7
    terms = train.loss_terms(model, cache, Batch(0, np.array([0, 1]), 1), config, torch.device("cpu"), 7.0)
    assert sum(terms.values()).item() == pytest.approx(literal.item(), rel=1e-5)
    assert all(value.item() == 0 for name, value in terms.items() if name != "hard")
    losses, _ = train.fit("x", model, [cache], [1.0], 400, config, 0.0)
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("objective", ["topp_kd", "bellman"])
def test_sets_of_one_token(tmp_path, objective):
    """K = 1: the proportions inside say nothing, what is left is the leak, which is the cross-entropy on that token."""
    cache, model, config = some_cache(tmp_path, sets=lambda *_: 1, k_cap=1), small(), config_of(objective=objective, alpha=1e30)
    batch = cache.batch([0, 1, 2])
    assert batch["ids"].shape[-1] == 1 and torch.equal(batch["ids"][..., 0], batch["tokens"])
    logits = model.logits(model.hidden(batch["tokens"][:, :-1]))
    weights = torch.from_numpy(train.role_weights(config))[batch["roles"][:, 1:]]
    literal = (F.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten(), reduction="none") * weights.flatten()).sum() / 7
    terms = train.loss_terms(model, cache, Batch(0, np.arange(3), 1), config, torch.device("cpu"), 7.0)
    assert terms["hard"].item() == 0 and sum(terms.values()).item() == pytest.approx(literal.item(), rel=1e-5)


def test_a_token_that_the_teacher_could_not_have_drawn(tmp_path):
    """p(a) = 0: refused in a set; outside of the set it weighs nothing in the sets' loss, however unlikely it is."""
    writer = CacheWriter(tmp_path / "bad", n_vocab=50, tokenizer_hash="abc", p=0.9, k_cap=8, temperature=1.0, teacher={}, made_by="",
                         roles=brd.ROLES)
    for worst in (-math.inf, math.nan, math.inf):
        with pytest.raises(ValueError, match="no token of probability 0"):
            writer.add([1], [ANSWER], [([1, 2], [-0.1, worst])])
    writer.add([7, 9], [TEXT, ANSWER], [None, ([1, 2], [-0.1, -70_000.0])])          # below what 16 bits hold, and its exp is 0
    writer.close()
    batch = Cache(tmp_path / "bad").batch([0])
    assert batch["log_probs"][0, 1, 1] == -65504 and batch["log_probs"][0, 1, 1].exp() == 0
    logits = torch.zeros(1, 1, 50, requires_grad=True)
    z_K, _, log_Z = td_distill.student_terms(logits, batch["ids"][:, 1:], batch["tokens"][:, 1:])
    for tail in ("inside", "bucket"):
        loss, figures = td_distill.topp_forward_kl(z_K, log_Z, batch["log_probs"][:, 1:], batch["mask"][:, 1:], torch.ones(1, 1), tail=tail)
        assert torch.isfinite(loss) and all(torch.isfinite(value) for value in figures.values())
        assert torch.isfinite(torch.autograd.grad(loss, logits, retain_graph=True)[0]).all()
    logits = torch.full((2, 50), -math.inf)
    logits[:, 4] = 0.0
    ids, log_probs, mask = reads.top_p_sets(logits, 0.9, 8)
    assert ids.shape == (2, 1) and ids[0, 0] == 4 and log_probs[0, 0] == 0 and mask.all()       # nothing else is kept


# --- small and large vocabularies ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("n_vocab", [300, 65_536, LARGE])
def test_ids_of_any_size_go_through_rows_cache_and_losses(tmp_path, n_vocab):
    """The last ids of the vocabulary, whose low 16 bits are those of others, against the dense loss."""
    wide = np.uint16 if n_vocab <= 1 << 16 else np.uint32
    last, model, config = n_vocab - 1, small(n_vocab), config_of(answer_weight=1.0)
    documents = [([last, 5, last - 2, last % 65_536, 7], [ANSWER] * 5)]
    rows = Rows.pack(documents, n_vocab)
    ids, targets, weights = rows.batch(np.array([0]), train.role_weights(config))
    assert rows.tokens.dtype == wide and rows.tokens.tolist() == documents[0][0]
    assert ids[0, :4].tolist() == documents[0][0][:4] and targets[0, :4].tolist() == documents[0][0][1:]
    log_probs = model.logits(model.hidden(ids)).log_softmax(-1)
    literal = -sum(log_probs[0, t, documents[0][0][t + 1]] for t in range(4)) / 3
    loss = train.loss_of(model, rows, Batch(0, np.array([0]), 4), config, torch.device("cpu"), 3.0)
    assert float(loss) == pytest.approx(float(literal), rel=1e-5)

    writer = CacheWriter(tmp_path, n_vocab=n_vocab, tokenizer_hash="abc", p=0.95, k_cap=4, temperature=1.0, teacher={}, made_by="",
                         roles=brd.ROLES)
    kept, q = [last, 5, last - 1], np.array([0.5, 0.25, 0.125])
    writer.add([7, last, last - 1], [TEXT, ANSWER, ANSWER], [None, (kept, np.log(q)), (kept, np.log(q))])
    writer.close()
    cache = Cache(tmp_path, n_vocab=n_vocab)
    assert cache.arrays["ids"].dtype == wide == cache.arrays["tokens"].dtype and cache.document(0)[3].tolist() == kept * 2
    log_s = model.logits(model.hidden(torch.tensor([[7, last]]))).log_softmax(-1)[0]            # (2, V)
    share = torch.from_numpy(q / q.sum()).float()
    literal = sum((share * (share.log() - log_s[t, kept])).sum() for t in range(2)) / 3        # KL inside + leak is the KL to the share
    terms = train.loss_terms(model, cache, Batch(0, np.array([0]), 2), config, torch.device("cpu"), 3.0)
    assert float(terms["sets"]) == pytest.approx(float(literal), rel=1e-3) and float(terms["hard"]) == 0
    hidden = model.hidden(torch.tensor([[7, last]]))
    for a, b in zip(td_distill.head_terms(hidden, model.transformer.wte.weight, torch.tensor([[kept, kept]]), torch.tensor([[last, last - 1]])),
                    td_distill.student_terms(model.logits(hidden), torch.tensor([[kept, kept]]), torch.tensor([[last, last - 1]]))):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=f"expected 0 to {last}"):
        CacheWriter(tmp_path / "new", **{name: cache.header[name] for name in ("n_vocab", "p", "k_cap", "temperature", "teacher", "made_by")},
                    tokenizer_hash="abc", roles=brd.ROLES).add([n_vocab], [ANSWER], [None])


@pytest.mark.parametrize("objective", ["topp_kd", "bellman", "seqkd"])
def test_a_training_on_a_large_vocabulary(tmp_path, objective):
    """Drawn by a teacher, cached, and learnt by a student, at 152,064 ids."""
    teacher, student = small(LARGE), small(LARGE, seed=1)
    writer = CacheWriter(tmp_path, n_vocab=LARGE, tokenizer_hash="abc", p=0.5, k_cap=16, temperature=1.0, teacher={}, made_by="", roles=brd.ROLES)
    prompts = [[LARGE - 1, 70_000], [3]]
    new, sets = reads.draw_with_sets(teacher, prompts, 6, p=0.5, k_cap=16, temperature=1.0, stop=LARGE - 5, seed=1)
    for prompt, tokens, kept in zip(prompts, new, sets):
        assert all(token in ids for token, (ids, _) in zip(tokens, kept))
        writer.add(prompt + tokens, [TEXT] * len(prompt) + [ANSWER] * len(tokens), [None] * len(prompt) + kept)
    writer.close()
    cache = Cache(tmp_path, n_vocab=LARGE)
    losses, _ = train.fit("x", student, [cache], [1.0], 72, config_of(objective=objective, p=0.5, learning_rate=0.02), 0.0)
    assert len(losses) > 1 and all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    json.dumps(losses)
