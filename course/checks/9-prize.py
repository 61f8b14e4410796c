"""Checks of assignment 9: an objective that looks ahead, and a report of what it does and of where looking
ahead helps. The docstring of a check is its hint.

The objective must have the properties of a loss, whatever its idea. The figures of the report are computed
again from the runs. Whether the term helps earns no points.
"""
import json
import math
from pathlib import Path
from types import SimpleNamespace

import torch

import td_distill as td
from data.cache import MASKED
from experiments.objectives import OBJECTIVES

FOLDER, FIGURE, RATES = Path(td.__file__).parent / "course", "T=1", 3
B, T, K, V, C = 3, 6, 3, 12, 8


def batch(seed=0):
    """A batch: hidden states and the head of a student, a teacher's sets. Document 1 is two tokens shorter,
    and the first column of each is given, without a set."""
    g = torch.Generator().manual_seed(seed)
    hidden, head, teacher = (torch.randn(*shape, generator=g) for shape in ((B, T, C), (V, C), (B, T, V)))
    log_probs, ids = teacher.log_softmax(-1).topk(K, dim=-1)
    sizes = torch.randint(1, K + 1, (B, T), generator=g)
    sizes[:, 0] = 0
    sizes[1, -2:] = 0
    mask = torch.arange(K) < sizes[..., None]
    place = (torch.rand(B, T, generator=g) * sizes.clamp(min=1)).long()[..., None]
    terminal = torch.zeros(B, T, dtype=torch.bool)
    terminal[[0, 1, 2], [T - 1, T - 3, T - 1]] = True
    return {"hidden": hidden, "head": head, "ids": ids.masked_fill(~mask, 0), "mask": mask,
            "log_probs": log_probs.masked_fill(~mask, MASKED), "taken": ids.gather(-1, place)[..., 0],
            "terminal": terminal, "weights": (sizes > 0).float()}


def run(row, parts, seed=0):
    """(loss, gradient by the hidden states (B, T, C)) of a row on a batch; a new model each time, with random
    heads where the row has some."""
    torch.manual_seed(seed)
    hidden, ids, taken = parts["hidden"].clone().requires_grad_(), parts["ids"], parts["taken"]
    heads = td.TDHeads(hidden.size(-1), len(parts["head"])) if row.heads else None
    if heads:
        torch.nn.init.normal_(heads.U.weight, std=0.05)
        torch.nn.init.normal_(heads.v.weight, std=0.1)
    value = row.loss(SimpleNamespace(
        student=td.student_terms(hidden @ parts["head"].T, ids, taken, hidden, heads), ids=ids, hidden=hidden,
        teacher=td.TeacherSets(parts["log_probs"], parts["mask"], ids == taken[..., None], parts["terminal"]),
        weights=parts["weights"], model=SimpleNamespace(config=SimpleNamespace(n_vocab=V, n_embd=C))))
    assert value.shape == (), f"the loss has the shape {tuple(value.shape)}, expected one number"
    return value.detach(), torch.autograd.grad(value, hidden, allow_unused=True)[0]


def prize(parts, seed=0):
    return run(OBJECTIVES["prize"], parts, seed)


def later_changed(parts):
    """The same batch with other hidden states and other probabilities of the teacher from column 2 on."""
    other = batch(seed=1)
    log_probs = torch.where(parts["mask"], other["log_probs"].clamp(min=-9), MASKED)
    return {**parts, "hidden": torch.cat([parts["hidden"][:, :2], other["hidden"][:, 2:]], 1),
            "log_probs": torch.cat([parts["log_probs"][:, :2], log_probs[:, 2:]], 1)}


def turned(a, b):
    """How much the directions of two gradients differ: 1 - cosine."""
    return 1 - float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def read_report():
    """The report; {(row, seed, rate): run}; {seed: run} of prize and of its control, without seed 0."""
    report = json.loads((FOLDER / "9-report.json").read_text(encoding="utf-8"))
    rows = report["row"], report["control"]
    assert rows == ("prize", OBJECTIVES["prize"].control), f"rows {rows} in the report, others in OBJECTIVES"
    lines = (FOLDER / "9-results.jsonl").read_text(encoding="utf-8").splitlines()
    runs = [run for run in map(json.loads, lines) if run["row"] in rows]
    runs = {(run["row"], run["seed"], run["rate"]): run for run in runs}
    table = [{seed: run for (name, seed, _), run in runs.items() if name == row and seed > 0} for row in rows]
    return report, runs, table


def paired(mine, theirs):
    """(mean, standard error) of the differences mine - theirs; mine, theirs: {seed: run}."""
    pairs = torch.tensor([mine[seed][FIGURE] - theirs[seed][FIGURE] for seed in mine], dtype=torch.float64)
    return float(pairs.mean()), float(pairs.std(correction=1)) / math.sqrt(len(pairs))


def read_routes():
    """[the two worlds] and [(difference, standard error)] of TD minus KD in each; the report must agree."""
    routes, found = read_report()[0]["routes"], []
    assert len(routes) == 2, f"{len(routes)} worlds in the report, expected two"
    runs = list(map(json.loads, (FOLDER / "9-routes.jsonl").read_text(encoding="utf-8").splitlines()))
    for number, entry in enumerate(routes):
        here = [run for run in runs if run["name"] == entry["world"] and run["seed"] > 0]
        mine, theirs = ({run["seed"]: run for run in here if run["row"] == row} for row in ("TD", "KD"))
        seeds = f"routes[{number}]: seeds {sorted(mine)} of TD and {sorted(theirs)} of KD"
        assert len(mine) >= 3 and set(mine) == set(theirs), f"{seeds}, expected the same three or more"
        found.append(paired(mine, theirs))
        for name, value in zip(("difference", "standard_error"), found[-1]):
            said = f"routes[{number}]: {name} is {entry[name]}, but the runs give {value:.4f}"
            assert abs(entry[name] - value) < 2e-4, said
    return [entry["world"] for entry in routes], found


def check_one_finite_number(points=2):
    """A scalar. It and its gradient are finite, also for logits of some hundred."""
    parts = batch()
    for scale in (1.0, 50.0):
        loss, grad = prize({**parts, "hidden": scale * parts["hidden"]})
        finite = torch.isfinite(loss) and torch.isfinite(grad).all()
        assert finite, f"hidden states times {scale:g}: loss {loss}, it or its gradient is not finite"
        assert grad.abs().max() > 1e-4, "nothing is learnt: the gradient is 0"


def check_the_same_twice(points=1):
    """The same batch, a new model and the same seed of torch give the same loss."""
    (loss, grad), (again, grad_again) = (prize(batch(), seed=3) for _ in range(2))
    assert torch.equal(loss, again) and torch.equal(grad, grad_again)


def check_padding_does_not_count(points=2):
    """After the end of a document comes padding: it gets no gradient, and what stands there changes
    nothing."""
    parts = batch()
    loss, grad = prize(parts)
    assert not grad[1, -2:].any(), "padding gets a gradient"
    other = parts["hidden"].clone()
    other[1, -2:] = 7 * other[1, -2:].flip(-1) + 3
    again, grad_again = prize({**parts, "hidden": other})
    same = abs(again - loss) < 1e-5 and torch.allclose(grad_again[:, :-2], grad[:, :-2], atol=1e-5)
    assert same, "padding changes the loss"


def check_the_order_of_documents(points=1):
    """The loss does not depend on the order of the documents in a batch."""
    parts, order = batch(), [2, 0, 1]
    (loss, grad), (again, grad_again) = prize(parts), prize(
        {name: x if name == "head" else x[order] for name, x in parts.items()})
    assert abs(again - loss) < 1e-5 and torch.allclose(grad_again, grad[order], atol=1e-5)


def check_the_order_within_a_set(points=2):
    """Nor on the order of the tokens in a set, nor on the width of its padding."""
    parts = batch()
    loss, _ = prize(parts)
    padding = {"ids": 0, "mask": False, "log_probs": MASKED}
    flipped = {name: parts[name].flip(-1) for name in padding}
    wider = {name: torch.nn.functional.pad(parts[name], (0, 2), value=x) for name, x in padding.items()}
    assert abs(prize({**parts, **flipped})[0] - loss) < 1e-5, "another order within the sets changes the loss"
    assert abs(prize({**parts, **wider})[0] - loss) < 1e-5, "wider padding of the sets changes the loss"


def check_it_is_a_mean(points=2):
    """A weighted mean: three times the weights give the same loss, and a batch that is repeated does as
    well."""
    parts = batch()
    loss, _ = prize(parts)
    heavier = prize({**parts, "weights": 3 * parts["weights"]})[0]
    assert abs(heavier - loss) < 1e-5, "three times the weights change the loss"
    twice = {name: x if name == "head" else torch.cat([x, x]) for name, x in parts.items()}
    assert abs(prize(twice)[0] - loss) < 0.05 * abs(loss), "the same documents twice change the loss"


def check_the_teacher_is_not_changed(points=1):
    """Do not write into the tensors of the cache: they are used again."""
    parts = batch()
    before = {name: x.clone() for name, x in parts.items()}
    prize(parts)
    assert all(torch.equal(before[name], parts[name]) for name in parts), "the objective changes its input"


def check_it_looks_ahead(points=3):
    """Temporal difference: what stands in LATER columns must change the direction of the gradient of an early
    column. A new factor on all of it is not enough, and a loss that treats every column alone does not do
    it."""
    parts = batch()
    change = turned(*(prize(one)[1][:, :2] for one in (parts, later_changed(parts))))
    assert change > 1e-7, f"other later columns turn the gradient of the first columns by {change:.0e}"


def check_it_learns(points=3):
    """Along this gradient the teacher's tokens become more probable: by .3 nats in the mean after 60 small
    steps."""
    parts = batch()
    start = run(OBJECTIVES["SFT"], parts)[0].item()
    for _ in range(60):
        parts = {**parts, "hidden": parts["hidden"] - 0.1 * prize(parts)[1].sign()}
    end = run(OBJECTIVES["SFT"], parts)[0].item()
    assert end < start - 0.3, f"the tokens drawn cost {start:.2f} nats before and {end:.2f} after 60 steps"


def check_the_teacher_is_followed(points=2):
    """Texts of two tokens, each .9 one and .1 the other: the student must come to prefer the likely one. A
    square alone pulls every reward to 0, and then nothing tells what the teacher would do."""
    likely = (torch.arange(10) == 9).long()
    first, second = (x.flatten() for x in torch.meshgrid(likely, likely, indexing="ij"))
    shape, zero = (100, 3), torch.zeros(100, dtype=torch.long)
    column = torch.tensor([False, True, True]).expand(shape)                    # the first column is given
    parts = {"head": torch.eye(4), "ids": torch.arange(2).expand(*shape, 2) * column[..., None],
             "log_probs": torch.where(column[..., None], torch.tensor([0.9, 0.1]).log(), MASKED),
             "mask": column[..., None].expand(*shape, 2), "taken": torch.stack([zero, first, second], 1),
             "terminal": torch.tensor([False, False, True]).expand(shape), "weights": column.float()}
    logits = torch.tensor([-1.0, 1.0, 0.0, 0.0]).repeat(3, 1)               # a student that prefers the other
    for step in range(80):
        grad = prize({**parts, "hidden": logits.expand(100, 3, 4)})[1].sum(0)
        logits = logits - 0.1 * 0.96 ** step * grad.sign()
    found = logits[1:, :2].softmax(-1)[:, 0]
    assert found.min() > 0.55, f"the likely tokens have {found[0]:.2f} and {found[1]:.2f} of their sets"


def check_the_row_and_its_control(points=3):
    """OBJECTIVES["prize"] and its control read the same cache. The control has no term that looks ahead, and
    is another loss."""
    row = OBJECTIVES["prize"]
    control = OBJECTIVES[row.control]
    same = row.control != "prize" and row[:2] == control[:2]
    assert same, f"the row reads {row[:2]}, its control {row.control} {control[:2]}"
    parts = batch()
    grads = [run(control, one)[1] for one in (parts, later_changed(parts))]
    assert turned(*(grad[:, :2] for grad in grads)) < 1e-9, f"{row.control} looks ahead itself"
    apart = turned(prize(parts)[1], grads[0])
    assert apart > 1e-4, f"the gradient has the direction of the control's: they differ by {apart:.0e}"


def check_the_runs(points=3):
    """9-results.jsonl: both rows, three learning rates on seed 0, then the same three or more seeds for both,
    and equal tokens."""
    report, runs, (mine, theirs) = read_report()
    assert len(mine) >= 3 and set(mine) == set(theirs), f"seeds {sorted(mine)} and {sorted(theirs)}"
    tuned = [name for name, seed, _ in runs if seed == 0]
    tried = [tuned.count(row) for row in (report["row"], report["control"])]
    assert tried == [RATES, RATES], f"{tried} learning rates on seed 0, expected {RATES} for each row"
    budgets = {(run["embd"], run["tokens"], run["seconds"]) for run in runs.values()}
    assert len(budgets) == 1, f"the runs have different sizes (embd, tokens, seconds): {sorted(budgets)}"
    assert len(runs) == 2 * (RATES + len(mine)), "a row has several learning rates on one seed of the table"
    assert len({run[FIGURE] for run in runs.values()}) > 3, "runs were copied"


def check_the_learning_rates(points=2):
    """Each row is run at the rate that was best on seed 0, which has its own prompts. Choosing it on the
    seeds of the table is cheating."""
    report, runs, table = read_report()
    for row, of_table in zip((report["row"], report["control"]), table):
        tried = {rate: run.get(FIGURE, -1.0) for (name, seed, rate), run in runs.items()
                 if (name, seed) == (row, 0)}
        used = {run["rate"] for run in of_table.values()}
        assert used == {max(tried, key=tried.get)}, f"{row}: run at {sorted(used)}, on seed 0: {tried}"


def check_the_difference(points=3):
    """difference: the mean over seeds of prize minus control at T = 1. standard_error: of these PAIRED
    differences, with n - 1."""
    report, _, (mine, theirs) = read_report()
    difference, error = paired(mine, theirs)
    want = {"seeds": len(mine), "difference": difference, "standard_error": error}
    for name, value in want.items():
        assert abs(report[name] - value) < 2e-4, f"{name} is {report[name]}, but the runs give {value:.4f}"


def check_the_verdict(points=2):
    """"helps" or "hurts" only where the difference is more than two standard errors from 0, otherwise
    "open"."""
    report, *_ = read_report()
    ratio = report["difference"] / report["standard_error"]
    want = "open" if abs(ratio) <= 2 else "helps" if ratio > 0 else "hurts"
    found = report["verdict"]
    assert found == want, f"the verdict is {found!r}, but the difference is {ratio:+.1f} standard errors"


def check_the_gain_on_routes(points=3):
    """routes[0]: a world of experiments/routes.py, by the name that its table has, where TD beats KD by more
    than two standard errors. Both ran on the same three or more seeds."""
    _, ((difference, error), _) = read_routes()
    assert difference > 2 * error, f"TD minus KD is {difference:.4f}, with a standard error of {error:.4f}"


def check_where_the_gain_ends(points=3):
    """routes[1]: a world that differs from the first in ONE option, which is then the cause. There the gain
    is less than a tenth, or a loss."""
    worlds, ((gain, _), (left, _)) = read_routes()
    changed = [pair for pair in zip(*(world.split(", ") for world in worlds)) if pair[0] != pair[1]]
    assert len(changed) == 1, f"the worlds differ in {len(changed)} options: {changed}"
    assert left < gain / 10, f"the gain is {gain:.4f} in the first world and still {left:.4f} in the second"


def check_the_text(points=2):
    """where, idea, result, doubt: texts of 80 to 2000 letters. The result names the difference and its error
    with three digits, the doubt names another explanation or what was not measured."""
    report, *_ = read_report()
    texts = "where", "idea", "result", "doubt"
    for name in texts:
        assert 80 <= len(report[name]) <= 2000, f"{name} has {len(report[name])} letters, expected 80 to 2000"
    assert len({report[name] for name in texts}) == 4
    for value in (f"{report['difference']:+.3f}", f"{report['standard_error']:.3f}"):
        assert value in report["result"], f"the result does not name {value}"
