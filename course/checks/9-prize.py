"""Checks of assignment 9: an objective that looks ahead, and a report of what it does and of where looking
ahead helps. The docstring of a check is its hint.

The objective must have the properties of a loss, whatever its idea. The figures of the report are computed
again from the runs. Whether the term helps earns no points.
"""
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import torch

import td_distill as td
from data.cache import MASKED
from experiments.objectives import OBJECTIVES

FOLDER, FIGURE, RATES = Path(td.__file__).parent / "course", "T=1", 3
OPTIONS = {"facts", "embd", "trap", "prefer", "corridor", "lapse"}      # of a world; one of them is changed
B, T, K, V, C = 3, 6, 3, 12, 8


def batch(other=0):
    """A batch: hidden states and the head of a student, a teacher's sets. Document 1 is two tokens shorter;
    the first column of documents 1 and 2 is given, without a set. other: draws another one."""
    g = torch.Generator().manual_seed(1000 * other + SEED)
    hidden, head, teacher = (torch.randn(*shape, generator=g) for shape in ((B, T, C), (V, C), (B, T, V)))
    log_probs, ids = teacher.log_softmax(-1).topk(K, dim=-1)
    sizes = torch.randint(1, K + 1, (B, T), generator=g)
    sizes[1:, 0] = 0
    sizes[1, -2:] = 0
    mask = torch.arange(K) < sizes[..., None]
    place = (torch.rand(B, T, generator=g) * sizes.clamp(min=1)).long()[..., None]
    terminal = torch.zeros(B, T, dtype=torch.bool)
    terminal[[0, 1, 2], [T - 1, T - 3, T - 1]] = True
    return {"hidden": hidden, "head": head, "ids": ids.masked_fill(~mask, 0), "mask": mask,
            "log_probs": log_probs.masked_fill(~mask, MASKED), "taken": ids.gather(-1, place)[..., 0],
            "terminal": terminal, "weights": (sizes > 0) * (0.5 + torch.rand(B, T, generator=g))}


def run(row, parts, seed=SEED):
    """(loss, gradient by the hidden states (B, T, C)) of a row on a batch; a new model each time, with random
    heads where the row has some."""
    torch.manual_seed(seed)
    hidden, ids, taken = parts["hidden"].clone().requires_grad_(), parts["ids"], parts["taken"]
    heads = td.TDHeads(hidden.size(-1), len(parts["head"])) if row.heads else None
    if heads:
        torch.nn.init.normal_(heads.U.weight, std=0.05)
        torch.nn.init.normal_(heads.v.weight, std=0.1)
    given = SimpleNamespace(
        student=td.student_terms(hidden @ parts["head"].T, ids, taken, hidden, heads), ids=ids, hidden=hidden,
        teacher=td.TeacherSets(parts["log_probs"], parts["mask"], ids == taken[..., None], parts["terminal"]),
        weights=parts["weights"], model=SimpleNamespace(config=SimpleNamespace(n_vocab=V, n_embd=C)))
    before, terms = dict(vars(given)), [x.clone() for x in given.student if x is not None]
    value = row.loss(given)
    now, terms_now = vars(given), [x for x in before["student"] if x is not None]
    written = [name for name in {**before, **now} if now.get(name) is not before.get(name)]
    written += ["student"] * (not all(map(torch.equal, terms, terms_now)))
    assert not written, f"the objective writes s.{written[0]}"
    assert value.shape == (), f"the loss has the shape {tuple(value.shape)}, expected one number"
    return value.detach(), torch.autograd.grad(value, hidden, allow_unused=True)[0]


def prize(parts, seed=SEED):
    return run(OBJECTIVES["prize"], parts, seed)


def later_changed(parts):
    """The same batch with other hidden states and other probabilities of the teacher from column 2 on."""
    other = batch(1)
    log_probs = torch.where(parts["mask"], other["log_probs"].clamp(min=-9), MASKED)
    return {**parts, "hidden": torch.cat([parts["hidden"][:, :2], other["hidden"][:, 2:]], 1),
            "log_probs": torch.cat([parts["log_probs"][:, :2], log_probs[:, 2:]], 1)}


def some(parts, chosen):
    """The batch of the documents that are chosen, a list of numbers; one may stand there twice."""
    return {name: x if name == "head" else x[chosen] for name, x in parts.items()}


def turned(a, b):
    """How much the directions of two gradients differ: 1 - cosine."""
    return 1 - float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def alike(one, other):
    """Whether two (loss, gradient) are the same but for rounding."""
    (loss, grad), (again, grad_again) = one, other
    return abs(again - loss) < 1e-5 * max(1, abs(loss)) and torch.allclose(grad_again, grad, 1e-3, 1e-5)


def read_report():
    """The report; {(row, seed, rate): run}; {seed: run} of prize and of its control, without seed 0."""
    report = json.loads((FOLDER / "9-report.json").read_text(encoding="utf-8"))
    rows = report["row"], report["control"]
    assert rows == ("prize", OBJECTIVES["prize"].control), f"rows {rows} in the report, others in OBJECTIVES"
    lines = (FOLDER / "9-results.jsonl").read_text(encoding="utf-8").splitlines()
    runs = [run for run in map(json.loads, lines) if run["row"] in rows]
    names = [(run["row"], run["seed"], run["rate"]) for run in runs]
    twice = [name for name in names if names.count(name) > 1]
    assert not twice, f"the run {twice[:1]} (row, seed, learning rate) stands there twice"
    runs = dict(zip(names, runs))
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
        pairs = [run for run in here if run["row"] in ("TD", "KD")]
        assert len(pairs) == len(mine) + len(theirs), f"routes[{number}]: a row has one seed twice"
        distinct = {(run[FIGURE], run["kl"]) for run in pairs}
        assert len(distinct) == len(pairs), f"routes[{number}]: two runs have the same figures: copied?"
        seeds = f"routes[{number}]: seeds {sorted(mine)} of TD and {sorted(theirs)} of KD"
        assert len(mine) >= 3 and set(mine) == set(theirs), f"{seeds}, expected the same three or more"
        found.append(paired(mine, theirs))
        for name, value in zip(("difference", "standard_error"), found[-1]):
            said = f"routes[{number}]: {name} is {entry[name]}, but the runs give {value:.4f}"
            assert abs(entry[name] - value) < 1e-4, said
    return [entry["world"] for entry in routes], found


def check_one_finite_number(points=2):
    """A scalar. It and its gradient are finite, also for logits of some hundred.

    Early in a run, and for a bad learning rate, logits are large: exp and log by hand then overflow.

    Use logsumexp, log_softmax and the terms of td_terms, which are masked before any arithmetic."""
    parts = batch()
    for scale in (1.0, 50.0):
        loss, grad = prize({**parts, "hidden": scale * parts["hidden"]})
        finite = torch.isfinite(loss) and torch.isfinite(grad).all()
        assert finite, f"hidden states times {scale:g}: loss {loss}, it or its gradient is not finite"
        assert grad.abs().max() > 1e-4, "nothing is learnt: the gradient is 0"


def check_the_same_twice(points=1):
    """The same batch, a new model and the same seed of torch give the same loss.

    A run must be repeatable from its seed, and nothing may be kept from the batch before.

    Draw with torch if at all, not with random or numpy; keep no state outside the model."""
    (loss, grad), (again, grad_again) = (prize(batch(), seed=3) for _ in range(2))
    prize(batch(2))
    third, _ = prize(batch(), seed=3)
    assert torch.equal(loss, again) and torch.equal(grad, grad_again), f"first {loss:.6f}, then {again:.6f}"
    assert torch.equal(loss, third), f"{loss:.6f}, and {third:.6f} after another batch"


def check_padding_does_not_count(points=2):
    """After the end of a document comes padding: it gets no gradient, and what stands there changes
    nothing.

    Documents of a batch differ in length. Padding has weight 0, no set, and hidden states that mean nothing.

    weighted_mean(values, weights) in place of values.mean(); where(known > 0, ...) before a square."""
    parts = batch()
    loss, grad = prize(parts)
    assert not grad[1, -2:].any(), "padding gets a gradient"
    other = parts["hidden"].clone()
    other[1, -2:] = 7 * other[1, -2:].flip(-1) + 3
    again, grad_again = prize({**parts, "hidden": other})
    same = alike((loss, grad[:, :-2]), (again, grad_again[:, :-2]))
    assert same, f"other hidden states in the padding change the loss from {loss:.5f} to {again:.5f}"


def check_documents_do_not_mix(points=1):
    """The loss does not depend on the order of the documents in a batch, and no document turns the gradient
    of the others.

    Documents share a batch by chance. A mean or a spread over the batch, subtracted, makes them depend on
    each other.

    Dimension 0 is documents, dimension 1 columns: roll, cumsum and flip go along 1."""
    parts, order = batch(), [2, 0, 1]
    (loss, grad), (again, grad_again) = prize(parts), prize(some(parts, order))
    assert alike((loss, grad[order]), (again, grad_again)), \
        f"documents in another order change the loss from {loss:.5f} to {again:.5f}, or the gradient"
    alone = [i for i in range(B) if not grad[i].any()]
    assert not alone, f"document {alone[:1]} has weight, but gets no gradient"
    hidden = torch.cat([parts["hidden"][:2], batch(1)["hidden"][2:]])
    apart = turned(prize({**parts, "hidden": hidden})[1][:2], grad[:2])
    assert apart < 1e-6, f"another document 2 turns the gradient of documents 0 and 1 by {apart:.0e}"


def check_the_order_within_a_set(points=2):
    """Nor does it depend on the order of the tokens in a set, or on the width of its padding.

    Sets are stored by probability, but the token taken may stand anywhere, and a batch is as wide as its
    largest set.

    Use teacher.mask, and is_taken for the token taken; column 0 of a set is nothing special."""
    parts = batch()
    loss, grad = prize(parts)
    padding = {"ids": 0, "mask": False, "log_probs": MASKED}
    order = torch.randperm(K, generator=torch.Generator().manual_seed(SEED + 1))
    for what, change in (("reversed", lambda x, _: x.flip(-1)),
                         ("in another order", lambda x, _: x[..., order]),
                         ("padded", lambda x, value: torch.nn.functional.pad(x, (0, 2), value=value))):
        again, grad_again = prize({**parts, **{name: change(parts[name], x) for name, x in padding.items()}})
        same = alike((loss, grad), (again, grad_again))
        assert same, f"sets {what} change the loss from {loss:.5f} to {again:.5f}, or the gradient"


def check_it_is_a_mean(points=2):
    """A weighted mean over positions: three times the weights change nothing, a document of weight 2 counts
    as if it stood there twice, and one of weight 0 as if it did not.

    The learning rate is chosen for a mean. A sum grows with the batch, and then rows with short documents
    have other steps.

    td.weighted_mean divides by the summed weights; hand s.weights on, not s.weights > 0."""
    parts = batch()
    loss, _ = prize(parts)
    per_document = torch.tensor([2.0, 1.0, 0.0])[:, None]
    weights = parts["weights"]
    for what, one, other in (
            ("three times the weights", {**parts, "weights": 3 * weights}, parts),
            ("the same documents twice", some(parts, [0, 1, 2, 0, 1, 2]), parts),
            ("weights 2, 1, 0", {**parts, "weights": weights * per_document}, some(parts, [0, 0, 1]))):
        found, want = prize(one)[0], prize(other)[0]
        assert abs(found - want) < 1e-4 * max(1, abs(want)), f"{what}: {found:.5f}, expected {want:.5f}"


def check_the_teacher_is_not_changed(points=1):
    """Do not write into the tensors of the cache: they are used again.

    The same documents come again in the next epoch and in the next row.

    x + 1 and torch.where make new tensors; x += 1, mul_, x[mask] = 0 do not."""
    parts = batch()
    before = {name: x.clone() for name, x in parts.items()}
    prize(parts)
    changed = [name for name in parts if not torch.equal(before[name], parts[name])]
    assert not changed, f"the objective changes its input: {', '.join(changed)}"


def check_it_looks_ahead(points=3):
    """Temporal difference: what stands in LATER columns must change the direction of the gradient of the
    early columns, taken together.

    A loss that treats every column alone does not look ahead, and a new factor on all of it changes the size
    of the gradient only.

    For example: a term of column t that holds V of column t + 1 (td_terms gives V_next)."""
    change = 0.0
    for k, scale, near in itertools.product(range(5), (1.0, 0.2), (0.0, 0.4)):     # near: it leaks little
        parts = batch(k)
        inside = (parts["head"][parts["ids"]] * parts["mask"][..., None]).sum(2)        # (B, T, C)
        pair = [prize({**one, "hidden": scale * one["hidden"] + near * inside})[1][:, :2]
                for one in (parts, later_changed(parts))]
        change = max(change, turned(*pair))
        if change > 1e-8:
            return
    raise AssertionError(f"other later columns turn the gradient of the first columns by {change:.0e}")


def check_the_row_and_its_control(points=3):
    """OBJECTIVES["prize"] and its control read the same cache. The control has no term that looks ahead, and
    is another loss.

    The difference of the two rows is the effect of your term only if all else is equal.

    Row("free", p, prize, "name of the control"): the same source and the same p in both lines."""
    row = OBJECTIVES["prize"]
    control = OBJECTIVES[row.control]
    same = row.control != "prize" and row[:2] == control[:2] and row.plain == control.plain
    assert same, f"the row reads {row[:2]}, its control {row.control} {control[:2]}"
    parts = batch()
    grads = [run(control, one)[1] for one in (parts, later_changed(parts))]
    assert turned(*(grad[:, :2] for grad in grads)) < 1e-9, f"{row.control} looks ahead itself"
    apart = turned(prize(parts)[1], grads[0])
    assert apart > 1e-4, f"the gradient has the direction of the control's: they differ by {apart:.0e}"


def check_the_runs(points=3):
    """9-results.jsonl: both rows, the same three learning rates on seed 0, then the same three or more seeds
    for both, and equal tokens.

    A row that tried more rates, or read more, wins by that. Each run is a line, and no two have the same
    figures.

    One command for both rows writes exactly these lines; take them as they are."""
    report, runs, (mine, theirs) = read_report()
    assert len(mine) >= 3 and set(mine) == set(theirs), f"seeds {sorted(mine)} and {sorted(theirs)}"
    tuned = [sorted(rate for name, seed, rate in runs if (name, seed) == (row, 0))
             for row in (report["row"], report["control"])]
    assert len(tuned[0]) == RATES and tuned[0] == tuned[1], f"on seed 0 {tuned[0]} and {tuned[1]} were tried"
    budgets = {(run["embd"], run["tokens"], run["seconds"]) for run in runs.values()}
    assert len(budgets) == 1, f"the runs have different sizes (embd, tokens, seconds): {sorted(budgets)}"
    seen = [run["seen"] for run in runs.values()]
    assert max(seen) < 1.01 * min(seen), f"the runs have read {min(seen):,} to {max(seen):,} tokens"
    assert len(runs) == 2 * (RATES + len(mine)), "a row has several learning rates on one seed of the table"
    distinct = {(run[FIGURE], run["kl"]) for run in runs.values()}
    assert len(distinct) == len(runs), "two runs have the same figures: was one copied?"
    shares = [run[FIGURE] for run in runs.values()]
    assert 0 <= min(shares) <= max(shares) <= 1, f"right answers: {min(shares)} to {max(shares)}"


def check_the_learning_rates(points=2):
    """Each row is run at the rate that was best on seed 0, which has its own prompts.

    Choosing the rate on the seeds of the table reports the best of three draws, which is too high.

    For each row: the rate of its line with the largest T=1 among those of seed 0."""
    report, runs, table = read_report()
    for row, of_table in zip((report["row"], report["control"]), table):
        tried = {rate: run.get(FIGURE, -1.0) for (name, seed, rate), run in runs.items()
                 if (name, seed) == (row, 0)}
        used = {run["rate"] for run in of_table.values()}
        assert used == {max(tried, key=tried.get)}, f"{row}: run at {sorted(used)}, on seed 0: {tried}"


def check_the_difference(points=3):
    """difference: the mean over seeds of prize minus control at T = 1. standard_error: of these PAIRED
    differences, with n - 1.

    Both rows of a seed begin with one student and read one text, so seeds that are hard are hard for both.
    Seed 0 chose the rates and is not in the table.

    d = the differences, a number a seed; difference = mean(d), standard_error = stdev(d) / sqrt(n)."""
    report, _, (mine, theirs) = read_report()
    difference, error = paired(mine, theirs)
    want = {"seeds": len(mine), "difference": difference, "standard_error": error}
    for name, value in want.items():
        assert abs(report[name] - value) < 1e-4, f"{name} is {report[name]}, but the runs give {value:.4f}"


def check_the_verdict(points=2):
    """"helps" or "hurts" only where the difference is more than two standard errors from 0, otherwise
    "open".

    Exactly two errors, or fewer, are "open". A difference that is not shown is not shown to be 0 either.

    "helps" where difference > 2 standard_error, "hurts" where difference < -2 standard_error."""
    report, _, (mine, theirs) = read_report()
    difference, error = paired(mine, theirs)
    want = "open" if abs(difference) <= 2 * error else "helps" if difference > 0 else "hurts"
    text = f"the difference is {difference:+.4f}, its error {error:.4f}"
    assert report["verdict"] == want, f"the verdict is {report['verdict']!r}, but {text}"


def check_the_gain_on_routes(points=3):
    """routes[0]: a world of experiments/routes.py, by the name that its table has, where TD beats KD by more
    than two standard errors. Both ran on the same three or more seeds.

    First a gain that is known to be there: a term that finds none here has an error.

    The command of step 1 gives such a world; the name stands in every line of its results.jsonl."""
    _, ((difference, error), _) = read_routes()
    assert difference > 2 * error, f"TD minus KD is {difference:.4f}, with a standard error of {error:.4f}"


def check_where_the_gain_ends(points=3):
    """routes[1]: a world that differs from the first in ONE of the options of step 2, which is then the
    cause. There the gain is less than a tenth, or a loss.

    With two changes nobody knows which one did it. More steps or another task are no cause in the world.

    For example the number of facts: so few that the student learns all of them."""
    worlds, ((gain, _), (left, _)) = read_routes()
    pairs = list(zip(*(world.split(", ") for world in worlds), strict=True))
    changed = [one.split(" ")[0] for one, other in pairs if one != other]
    assert len(changed) == 1 and changed[0] in OPTIONS, f"the worlds differ in {changed}, expected one option"
    assert left < gain / 10, f"the gain is {gain:.4f} in the first world and still {left:.4f} in the second"


def check_the_text(points=2):
    """where, idea, result, doubt: texts of 80 to 2000 letters. The result names the difference and its error
    with three digits, the doubt names another explanation or what was not measured.

    A difference without its error cannot be judged, and a report without a doubt is not believed.

    "-0.067 with a standard error of 0.006", for example; four different texts."""
    report, *_ = read_report()
    texts = "where", "idea", "result", "doubt"
    for name in texts:
        length = len(report[name].strip())
        assert 80 <= length <= 2000, f"{name} has {length} letters, expected 80 to 2000"
    assert len({report[name] for name in texts}) == 4, "two of where, idea, result, doubt are the same text"
    for value in (f"{abs(report['difference']):.3f}", f"{report['standard_error']:.3f}"):
        assert value in report["result"], f"the result does not name {value}"


# --- what the gradient leads to; these two take longest -----------------------------------------------------


def check_it_learns(points=3):
    """Against this gradient the teacher's tokens become more probable: by .3 nats in the mean after 20 steps.

    A loss of the wrong sign, or one whose terms cancel, has a gradient, too.

    Compare the sign with that of td.topp_forward_kl, which falls where the student comes nearer."""
    parts = batch()
    start = run(OBJECTIVES["SFT"], parts)[0].item()
    for _ in range(20):
        parts = {**parts, "hidden": parts["hidden"] - 0.3 * prize(parts)[1].sign()}
    end = run(OBJECTIVES["SFT"], parts)[0].item()
    assert end < start - 0.3, f"the tokens drawn cost {start:.2f} nats before and {end:.2f} after 20 steps"


def check_the_teacher_is_followed(points=2):
    """Texts of two tokens, each .9 one and .1 the other: the student must come to prefer the likely one.

    A square alone pulls every reward to 0, and then nothing tells what the teacher would do.

    Keep a term that is least at the teacher's probabilities, for example the KD of the control."""
    first, second, shape = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), (4, 3)   # 1: the rare one
    likely = SEED % 2                                                           # the id of the likely token
    column = torch.tensor([False, True, True]).expand(shape)                    # the first column is given
    times, probs = torch.tensor([81.0, 9.0, 9.0, 1.0])[:, None], torch.tensor([0.9, 0.1]).roll(likely)
    parts = {"head": torch.eye(4), "ids": torch.arange(2).expand(*shape, 2) * column[..., None],
             "log_probs": torch.where(column[..., None], probs.log(), MASKED),
             "mask": column[..., None].expand(*shape, 2), "terminal": torch.arange(3).expand(shape) == 2,
             "taken": torch.stack([0 * first, abs(first - likely), abs(second - likely)], 1),
             "weights": times * column}
    logits = torch.tensor([-1.0, 1.0]).roll(likely).tolist()                # a student that prefers the other
    logits = torch.tensor([*logits, 0.0, 0.0]).repeat(3, 1)
    for step in range(30):
        grad = prize({**parts, "hidden": logits.expand(4, 3, 4)})[1].sum(0)
        logits = logits - 0.25 * 0.9 ** step * grad.sign()
    found = logits[1:, :2].softmax(-1)[:, likely]
    assert found.min() > 0.55, f"the likely tokens have {found[0]:.2f} and {found[1]:.2f} of their sets"
