"""The task of experiments/routes.py and its words, its measures and plain loops, a run that goes on."""
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import td_distill as td
from data.cache import MASKED
from experiments import routes
from experiments.routes import DOOR, DOT, END, GO, LABEL, N_VOCAB, TYPE, World
from experiments.routes_arms import ROWS, by_class, guided, inputs, shuffled
from model import GPT
from tests.test_compare import InTurn

A, D = World(), World(task="D")


def read_prompt(tokens, corridor):
    """{door: (corridor, [pair of {label: (type, key)}])}, from the tokens of a prompt alone."""
    doors, tokens = {}, list(tokens)
    assert tokens.pop() == GO
    while tokens:
        door, tokens = tokens[0], tokens[1:]
        path, items, tokens = tokens[:corridor], tokens[corridor:corridor + 8], tokens[corridor + 8:]
        pair = {items[at]: (items[at + 1], items[at + 2:at + 4]) for at in (0, 4)}
        doors.setdefault(door, (path, []))[1].append(pair)
    return doors


@pytest.mark.parametrize("world", [A, D, World(trap=1.0), World(task="D", trap=1.0)])
def test_right_answers_follow_from_the_prompt_and_one_table(world):
    prompts, facts, corridor = routes.draw_prompts(world, 300, 5), {}, 2 if world.task == "A" else 0
    found = list(routes.right_answers(world, prompts))
    assert len(found) == 2 ** (1 + world.pairs)
    np.testing.assert_allclose(sum(share for _, share in found), 1)
    for i, prompt in enumerate(prompts.tokens.tolist()):
        doors, answers = read_prompt(prompt, corridor), {tuple(tokens[i].tolist()) for tokens, _ in found}
        assert len(answers) == len(found) and set(doors) == {DOOR, DOOR + 1}
        kinds = {tuple(sorted(kind - TYPE for kind, _ in pair.values()))
                 for _, pairs in doors.values() for pair in pairs}
        assert world.trap < 1 or kinds == {(0, 3), (1, 1)}
        for door, *rest, end in answers:
            path, pairs = doors[door]
            assert rest[:corridor] == path and end == END and len(rest) == corridor + 7 * len(pairs)
            for at, pair in enumerate(pairs):
                label, kind, *tail = rest[corridor + 7 * at:corridor + 7 * at + 7]
                assert (kind, tail[:2]) == pair[label] and LABEL <= label < LABEL + 8
                for place, mark in enumerate(tail[2:]):
                    key = label * (world.task == "D"), *tail[:2], place
                    assert (mark == DOT) == (place >= kind - TYPE)
                    assert mark == DOT or facts.setdefault(key, mark) == mark


@pytest.mark.parametrize("world", [A, World(task="D", lapse=0.3)])
def test_cached_answers_have_the_teachers_sets(world):
    prompts = routes.draw_prompts(world, 3000, 1)
    answers = routes.scripted_answers(world, prompts, 2)
    length = answers.ids.size(1)
    torch.testing.assert_close(answers.log_probs.exp().sum(-1), torch.ones(3000, length))
    assert torch.equal(answers.ids[..., 0], answers.tokens[:, -length:])
    assert (answers.ids[:, 0, 0] == DOOR).float().mean() == pytest.approx(0.6, abs=0.03)
    given = answers.tokens[:, -length:].numpy()
    right = sum((tokens == given).all(1) for tokens, _ in routes.right_answers(world, prompts))
    likely = answers.log_probs[..., 0].exp()                    # a lapse has .3 and the type 0
    lapsed = ((answers.ids[..., 0] == TYPE) & torch.isclose(likely, torch.tensor(0.3))).any(-1)
    assert (right == 1 - lapsed.numpy()).all() and lapsed.any() == (world.lapse > 0)


def test_measures_are_those_of_plain_loops(one_thread):
    torch.manual_seed(3)
    model, prompts = GPT(A.shape), routes.draw_prompts(A, 4, 6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    expected = dict.fromkeys(("T=1", "nucleus", "kl", "overlap"), 0.0)
    for tokens, share in routes.right_answers(A, prompts):
        for i in range(4):
            s = nucleus = 1.0
            for t, token in enumerate(tokens[i].tolist()):
                ids = torch.tensor([[*prompts.tokens[i].tolist(), *tokens[i, :t].tolist()]])
                probs = model(ids)[0, -1].double().softmax(0).tolist()
                kept, mass = [], 0.0
                for token_id in sorted(range(N_VOCAB), key=lambda v: -probs[v]):
                    if mass < 0.8:
                        kept.append(token_id)
                        mass += probs[token_id]
                s, nucleus = s * probs[token], nucleus * (probs[token] / mass if token in kept else 0)
            kl = share[i] * math.log(share[i] / s)
            for name, value in (("T=1", s), ("nucleus", nucleus), ("kl", kl), ("overlap", min(s, share[i]))):
                expected[name] += value / 4
    found = routes.measure(model, A, prompts)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-30)


@pytest.mark.parametrize("world", [A, D])
def test_the_teacher_itself_measures_one(world):
    prompts = routes.draw_prompts(world, 50, 6)
    rights = [(torch.from_numpy(tokens), torch.from_numpy(share)) for tokens, share in
              routes.right_answers(world, prompts)]

    def teacher(ids):
        """Logits of the exact teacher: the share of each next token among right answers of this beginning."""
        given, probs = ids[:, prompts.tokens.shape[1]:], torch.zeros(*ids.shape, N_VOCAB, dtype=torch.double)
        for t in range(given.size(1) + 1):
            for tokens, share in rights:
                same = (tokens[:, :t] == given[:, :t]).all(-1)
                column = prompts.tokens.shape[1] - 1 + t
                probs[torch.arange(50), column, tokens[:, t]] += share * same
        return probs.log().clamp(min=-1e4).float()
    found = routes.measure(teacher, world, prompts)
    expected = {"T=1": 1, "nucleus": 1, "greedy": 1, "kl": 0, "overlap": 1}
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def terms(one_thread):
    """Terms of 6 documents with lapses, for a student with heads that are not 0."""
    torch.manual_seed(1)
    world = World(lapse=0.3)
    model, answers = GPT(world.shape), routes.scripted_answers(world, routes.draw_prompts(world, 6, 1), 2)
    td.add_heads(model)
    torch.nn.init.normal_(model.td_heads.U.weight)
    return lambda name: (model, inputs(model, ROWS[name], *answers))


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_a_finite_gradient(terms, name):
    model, s = terms(name)
    gradients = torch.autograd.grad(ROWS[name].loss(s), list(model.parameters()), allow_unused=True)
    assert all(g.isfinite().all() for g in gradients if g is not None)
    assert any(g.any() for g in gradients if g is not None)


def test_the_rows_are_what_their_names_say(terms):
    _, s = terms("TD")
    torch.testing.assert_close(ROWS["TD"].loss(s), routes.ROWS["shuffled"].loss.func(s))    # tree is improve
    for b in range(6):
        for t in range(s.leak.size(1)):
            torch.testing.assert_close(s.later[b, t], s.leak[b, t + 1:].detach().sum())
    U = s.student.U.detach()
    assert torch.equal(shuffled(s, U)[s.choice].sort(0).values, U[s.choice].sort(0).values)
    place = s.ids == DOOR + 1
    mean = U[place & s.teacher.mask].mean()
    torch.testing.assert_close(by_class(s, U)[place], mean.expand(int(place.sum())))
    kd = ROWS["KD"].loss(s)
    torch.testing.assert_close(guided(s, U, lambda u: 0 * u, beta=0.0), kd)
    _, stopped = terms("stop-gradient")
    torch.testing.assert_close(stopped.student.U, s.student.U)
    weights = torch.where(s.choice, torch.exp(-s.later) / torch.exp(-s.later[s.choice]).mean(), 1)
    z = torch.where(s.teacher.mask, s.student.z_K, MASKED).log_softmax(-1)
    log_p = torch.where(s.teacher.is_taken, z, 0).sum(-1)
    torch.testing.assert_close(ROWS["MC weight"].loss(s), (-weights * log_p).mean() + s.leak.mean())


def test_a_comparison_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys, one_thread):
    for name, value in {"worker_pool": InTurn, "ANSWERS": 200, "TESTS": 20, "TEACHER_STEPS": 2}.items():
        monkeypatch.setattr(routes, name, value)
    command = ["--rows=KD,MC head", "--seeds=2", "--rates=0.01,0.02", "--start=3", "--steps=2", "--workers=1",
               f"--out_dir={tmp_path}"]
    routes.main(command)
    first, path = capsys.readouterr().out, tmp_path / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    runs = [json.loads(line) for line in lines]
    assert sorted((run["row"], run["seed"]) for run in runs) == [
        (row, seed) for row in ("KD", "MC head") for seed in (0, 0, 1, 2)]
    path.write_text("\n".join(lines[:-1]), encoding="utf-8")                        # killed before the last
    routes.main(command)
    again = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert sorted(run["kl"] for run in again) == sorted(run["kl"] for run in runs)
    assert first.startswith("task A, facts 1296") and "MC head - KD" in first
    routes.main([f"--show={path}"])
    assert capsys.readouterr().out.splitlines()[-2] == first.splitlines()[-2]
    with pytest.raises(ValueError, match="rows=KD,SFT, but expected some, each once, of KD, KD leak 3"):
        routes.main(["--rows=KD,SFT"])


def test_a_trained_teacher_draws_from_its_own_sets():
    world = World(teacher="trained")
    exact = routes.scripted_answers(world, routes.draw_prompts(world, 50, 1), 2)
    length = exact.ids.size(1)

    def generate(prompts, *_, watch, **__):                     # a network that knows the answers
        for t in range(length):
            probs = exact.log_probs[:, t].exp()
            probs = torch.full((50, N_VOCAB), 1e-9).scatter_add(1, exact.ids[:, t], probs)
            watch(torch.arange(50), probs.log(), exact.ids[:, t, 0])
        return [row[-length:].tolist() if i else [END] for i, row in enumerate(exact.tokens)]
    prompts = routes.draw_prompts(world, 50, 1)
    drawn = routes.drawn_answers(SimpleNamespace(generate=generate), prompts, length)
    assert torch.equal(drawn.tokens, exact.tokens[1:])          # the first answer has another length
    assert (drawn.log_probs > MASKED).sum(-1).unique().tolist() == [1, 2]
    torch.testing.assert_close(drawn.log_probs.exp().sum(-1), torch.ones(49, length), rtol=0, atol=1e-3)


def test_the_picture_of_the_runs_that_ship(tmp_path):
    pytest.importorskip("matplotlib")
    runs = Path(routes.__file__).parent / "results" / "routes.jsonl"
    routes.main([f"--show={runs}", f"--png={tmp_path / 'a.png'}"])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(ValueError, match="no runs of KD and TD"):
        routes.draw(tmp_path / "none.jsonl", tmp_path / "b.png")
