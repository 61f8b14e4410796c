"""Checks of assignment 7, the value head and temporal differences (td_distill.py). The docstring of a check
is its hint. Beside fixed examples stand random ones, compared with slow loops over the page's formulas."""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from data.cache import MASKED
from td_distill import (TRUNK, StudentTerms, TDHeads, TeacherSets, bellman_distill, bellman_weights,
                        soft_returns, student_terms, successor_values, td_terms)

# Two documents of 4 tokens out of 5. The first ends with token 3 in its last column. The second is cut off:
# column 1 has no set, the token of column 2 is not in its set, and after column 3 nothing is known.
IDS = torch.tensor([[[0, 1], [2, 0], [1, 4], [3, 0]], [[4, 2], [0, 0], [1, 2], [0, 3]]])
MASK = torch.tensor([[[1, 1], [1, 0], [1, 1], [1, 1]], [[1, 1], [0, 0], [1, 1], [1, 1]]]).bool()
TAKEN = torch.tensor([[1, 2, 4, 3], [4, 3, 0, 3]])
TERMINAL = torch.tensor([[False, False, False, True], [False] * 4])
SHARES = torch.tensor([[0.6, 0.3], [0.8, 0.1], [0.5, 0.2], [0.7, 0.1]], dtype=torch.float64)
TEACHER = TeacherSets(torch.where(MASK, SHARES.log(), MASKED), MASK, IDS == TAKEN[..., None], TERMINAL)
ONES = torch.ones(2, 4, dtype=torch.float64)
YES, NO = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)


def wave(*shape, speed=1.7):
    """Numbers (*shape) between -2 and 2, with a gradient."""
    x = 2 * torch.sin(speed * torch.arange(math.prod(shape)).double() ** 1.1)
    return x.reshape(shape).requires_grad_()


def fixed_student():
    """Logits (2, 4, 5), v (2, 4), and the terms of a student who has them and U."""
    logits, v = wave(2, 4, 5), wave(2, 4, speed=0.9)
    return logits, v, student_terms(logits, IDS, TAKEN)._replace(v=v, U=wave(2, 4, 2, speed=1.3))


class Scene(NamedTuple):
    """A random batch of B documents, T tokens and up to K tokens in a set."""
    student: StudentTerms
    teacher: TeacherSets
    weights: torch.Tensor                   # (B, T)
    logits: torch.Tensor                    # (B, T, 7), of which the student's terms are computed
    v: torch.Tensor                         # (B, T)


def random_scene(n):
    """Scene n of this seed. It has columns without a set, weights of 0, tokens outside their set, texts that
    are cut, end early or follow one another in a row."""
    g = torch.Generator().manual_seed(1000 * SEED + n)

    def normal(*shape):
        return (1.5 * torch.randn(shape, generator=g, dtype=torch.float64)).requires_grad_()

    def chance(share, *shape):
        return torch.rand(shape, generator=g) < share
    B, T, K = (int(torch.randint(1, high, (), generator=g)) for high in (4, 8, 5))
    size = (torch.rand(B, T, 1, generator=g) * (K + 0.3) - 0.3).ceil().clamp(0, K)
    mask = torch.rand(B, T, K, generator=g).argsort(-1) < size              # any cells of the K
    ids = torch.where(mask, torch.rand(B, T, 7, generator=g).argsort(-1)[..., :K], 0)
    place = torch.randint(K, (B, T, 1), generator=g)
    taken = ids.gather(-1, place)[..., 0]
    taken = torch.where(chance(0.8, B, T), taken, torch.randint(7, (B, T), generator=g))
    log_probs = torch.where(mask, normal(B, T, K).detach().log_softmax(-1) - 0.1, MASKED)
    weights = torch.where(chance(0.1, B, T), 0, 0.2 + torch.rand(B, T, generator=g, dtype=torch.float64))
    weights = weights * (1.0, 0.01, 30.0, 1.0, 0.01)[n % 5]
    logits, v, U = normal(B, T, 7), normal(B, T), normal(B, T, K)
    student = student_terms(logits, ids, taken)._replace(v=v, U=U)
    teacher = TeacherSets(log_probs, mask, ids == taken[..., None], chance(0.25, B, T))
    return Scene(student, teacher, weights, logits, v)


def positions(s):
    return [(b, t) for b in range(s.weights.size(0)) for t in range(s.weights.size(1))]


def lives(s, b, t):
    """Whether column t of row b exists, has a set, and counts."""
    return t < s.weights.size(1) and s.weights[b, t].item() > 0 and any(s.teacher.mask[b, t].tolist())


def goes_on(s, b, t):
    return not s.teacher.terminal[b, t].item() and lives(s, b, t + 1)


def is_known(s, b, t):
    inside = any((s.teacher.is_taken[b, t] & s.teacher.mask[b, t]).tolist())
    return inside and lives(s, b, t) and (s.teacher.terminal[b, t].item() or goes_on(s, b, t))


def terms_at(s, b, t):
    """The terms of one live position, by the formulas of the page: {name: scalar with a gradient}."""
    inside = s.teacher.mask[b, t]
    log_pi = (s.student.z_K[b, t] - s.student.log_Z[b, t])[inside]
    log_t, taken = s.teacher.log_probs[b, t][inside], s.teacher.is_taken[b, t][inside]
    log_S, log_q = log_pi.logsumexp(-1), log_t - log_t.logsumexp(-1)
    terms = {"V": s.student.v[b, t] + log_S, "leak": -log_S,
             "cross_entropy": -(log_q.exp() * (log_pi - log_S)).sum()}
    if taken.any():
        terms |= {"log_s": (log_pi - log_S)[taken][0], "r": log_q[taken][0], "raw_r": log_t[taken][0],
                  "Q": log_pi[taken][0] + s.student.v[b, t]}
    return terms


def terms_by_hand(s, target_values=None, stop_gradient=False):
    """{(b, t): the terms} of the live positions, with V_next = V(s')."""
    terms = {(b, t): terms_at(s, b, t) for b, t in positions(s) if lives(s, b, t)}
    for b, t in terms:
        behind = torch.zeros((), dtype=torch.float64)
        if goes_on(s, b, t):
            behind = terms[b, t + 1]["V"] if target_values is None else target_values[b, t + 1]
        terms[b, t]["V_next"] = behind.detach() if stop_gradient else behind
    return terms


def loss_by_hand(s, denominator, alpha, gamma, leak, expected, **options):
    """bellman_distill by a loop -> the loss and the four figures."""
    zero, weight = 0 * s.logits.sum() + 0 * s.v.sum(), 0
    sums = dict.fromkeys(("cloning", "bellman", "leak", "reward"), zero)
    for (b, t), terms in terms_by_hand(s, **options).items():
        known, w = is_known(s, b, t), s.weights[b, t]
        if known or expected:
            weight = weight + w
            sums["cloning"] = sums["cloning"] + w * (terms["cross_entropy"] if expected else -terms["log_s"])
            sums["leak"] = sums["leak"] + w * terms["leak"]
        if known:
            reward = terms["Q"] - gamma * terms["V_next"]
            sums["reward"] = sums["reward"] + w * reward
            sums["bellman"] = sums["bellman"] + w * reward ** 2 / (4 * alpha)
    denominator = weight if denominator is None else denominator
    means = {name: total / denominator if weight else total for name, total in sums.items()}
    return means["cloning"] + means["bellman"] + leak * means["leak"], means


def returns_by_hand(s, gamma):
    """soft_returns by a loop, for weights of 1 -> (B, T)."""
    values, returns = {}, torch.zeros_like(s.weights)
    for b, t in reversed(positions(s)):
        if goes_on(s, b, t):
            returns[b, t] = gamma * values[b, t + 1]
        parts = []
        for k in s.teacher.mask[b, t].nonzero()[:, 0]:
            use_return = s.teacher.is_taken[b, t, k] and is_known(s, b, t)
            worth = returns[b, t] if use_return else s.student.U[b, t, k].detach()
            parts.append((s.student.z_K[b, t, k] - s.student.log_Z[b, t]).detach() + worth)
        values[b, t] = torch.stack(parts).logsumexp(0) if parts else 0.0
    return returns


def extreme(student):
    """A student whose logarithms are 400 times as large; the exponential of one is 0 or infinite."""
    return student._replace(**{name: 400 * getattr(student, name) for name in ("z_K", "z_a", "log_Z")})


def near(found, want, what, tolerance=1e-9):
    found, want = (float(x.detach() if isinstance(x, torch.Tensor) else x) for x in (found, want))
    assert abs(found - want) < tolerance, f"{what}: {found:.6f}, expected {want:.6f}"


def same(found, want, what, tolerance=1e-9):
    """Asserts that two tensors are equal, and names the first place where they are not."""
    assert found.shape == want.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(want.shape)}"
    a, b = found.detach().double(), want.detach().double()
    differ = ~torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    if differ.any():
        place = differ.nonzero()[0].tolist()
        raise AssertionError(f"{what}{place or ''}: {a[differ][0]:.6f}, expected {b[differ][0]:.6f}")


def gradients(value, *inputs):
    """Zeros where the value does not depend on an input."""
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)


def untouched(function, *inputs, **options):
    """The result of a function. AssertionError where it writes into one of its inputs."""
    tensors = [x for one in inputs for x in (one if isinstance(one, tuple) else [one])
               if isinstance(x, torch.Tensor)]
    before = [x.detach().clone() for x in tensors]
    result = function(*inputs, **options)
    for x, old in zip(tensors, before):
        assert torch.equal(x.nan_to_num(7), old.nan_to_num(7)), f"{function.__name__} writes into its inputs"
    return result


def heads_by_hand(heads, hidden, ids):
    """v and U of TDHeads by a loop, both with their whole gradient."""
    v, U = torch.zeros(ids.shape[:2], dtype=hidden.dtype), torch.zeros(ids.shape, dtype=hidden.dtype)
    for b in range(ids.size(0)):
        for t in range(ids.size(1)):
            h = hidden[b, t]
            mixed = heads.mix.weight @ h + heads.mix.bias
            v[b, t] = heads.v.weight[0] @ h + heads.v.bias[0]
            for k, token in enumerate(ids[b, t].tolist()):
                U[b, t, k] = heads.U.weight[token] @ F.gelu(mixed) + heads.U.bias[token]
    return v, U


def random_heads(n):
    """TDHeads, a hidden state (B, T, 3) and ids (B, T, K); small sizes, so an axis of 1 is common."""
    g = torch.Generator().manual_seed(1000 * SEED + n)
    B, T, K = (int(torch.randint(1, high, (), generator=g)) for high in (3, 4, 3))
    heads = TDHeads(3, 5, width=4).double()
    for parameter in heads.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    hidden = torch.randn(B, T, 3, generator=g, dtype=torch.float64)
    ids = torch.randint(5, (B, T, K), generator=g)
    ids[0, 0, 0] = 4 * n % 5                                                # the first and the last id as well
    return heads, hidden.bfloat16().double().requires_grad_(), ids


def check_the_heads(points=2):
    """v is linear in the hidden state; U = U.weight gelu(mix(hidden)) + U.bias at the K ids. U's gradient
    into the hidden state, but not its value, is scaled by TRUNK; v's is not.

    The parameters of both heads learn at the full gradient: only what U sends on into `hidden` shrinks. v is
    (B, T), U is (B, T, K), also where an axis is 1.

    A part c of a gradient: c * x + (1 - c) * x.detach() has the value of x. Apply it to the input of mix."""
    heads, hidden = TDHeads(3, 5, width=4).double(), wave(2, 4, 3)
    for i, parameter in enumerate(heads.parameters()):
        parameter.data = wave(*parameter.shape, speed=1.1 + i).detach()
    v, U = untouched(heads.forward, hidden, IDS)
    same(v, heads.v(hidden)[..., 0], "v, column ")
    whole = heads.U(F.gelu(heads.mix(hidden))).gather(-1, IDS)              # (2, 4, 2)
    same(U, whole, "U, place ")
    (of_v,), (of_U,), (full,) = (gradients(x.sum(), hidden) for x in (v, U, whole))
    same(of_v, heads.v.weight.expand(2, 4, 3), "the gradient of v by the hidden state, place ")
    same(of_U, TRUNK * full, "the gradient of U by the hidden state, which is TRUNK of it, place ")
    for n in range(3):
        heads, hidden, ids = random_heads(n)
        results, by_hand = heads(hidden, ids), heads_by_hand(heads, hidden, ids)
        for name, found, want, part in zip("vU", results, by_hand, (1, TRUNK)):
            same(found, want, f"{name} of {ids.tolist()}, place ")
            factors = torch.arange(1.0, 1 + found.numel()).view(found.shape)
            (of_hidden, *found), (of_all, *want) = (
                gradients((factors * x).sum(), hidden, *heads.parameters()) for x in (found, want))
            same(of_hidden, part * of_all, f"the gradient of {name} by the hidden state, place ")
            for (parameter, _), a, b in zip(heads.named_parameters(), found, want):
                same(a, b, f"the gradient of {name} by the parameter {parameter}, place ")


def check_types_of_the_heads(points=1):
    """v and U have the type of the heads, whatever the type of the hidden state, and under autocast as well.

    A head in float32 on a hidden state in bfloat16 computes in float32: the hidden state is lifted first.

    A block `with torch.autocast(hidden.device.type, enabled=False)`, in it hidden.to(self.v.weight.dtype)."""
    heads, hidden, ids = random_heads(20)
    want = heads_by_hand(heads, hidden, ids)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        heads = heads.to(dtype)
        for kind in (torch.float32, torch.float64, torch.bfloat16):         # the numbers are the same in all
            for autocast in (False, True):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    found = heads(hidden.detach().to(kind), ids)
                for name, x, y in zip("vU", found, want):
                    what = f"{name} of {dtype} heads, a {kind} hidden state, autocast {autocast}"
                    assert x.dtype == dtype, f"{what}: {x.dtype}"
                    assert torch.allclose(x.double(), y, tolerance, tolerance), f"{what}: {x.tolist()}"


def check_successor_values(points=2):
    """V(s') of column t stands in column t + 1 of `values`. It is 0 after a terminal token, where the next
    column does not exist, and in the last column.

    `exists` belongs to s', so it is read in column t + 1; `terminal` belongs to the token a, so it is read in
    column t. Both are bool (B, T). A value that is not used may be NaN: select, do not multiply.

    Move values and exists one column to the left with F.pad(x[:, 1:], (0, 1)), and choose by torch.where."""
    V = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert successor_values(V, YES, NO).tolist() == [[2, 3, 4, 0]], f"{successor_values(V, YES, NO).tolist()}"
    assert successor_values(V, YES, torch.tensor([[False, True, False, False]])).tolist() == [[2, 0, 4, 0]]
    assert successor_values(V, torch.tensor([[False, True, False, True]]), NO).tolist() == [[2, 0, 4, 0]]
    bad = successor_values(torch.tensor([[1.0, math.nan, math.inf]]), NO[:, :3], NO[:, :3])
    assert bad.tolist() == [[0, 0, 0]], "values that do not exist must be left out, not multiplied by 0"
    for n in range(6):
        s = random_scene(n)
        values, exists = s.v, s.teacher.mask.any(-1) & (s.weights > 0)
        want, grad = torch.zeros_like(values), torch.zeros_like(values)
        for b, t in positions(s):
            if goes_on(s, b, t):
                want[b, t], grad[b, t + 1] = values[b, t + 1], 1
        found = untouched(successor_values, values, exists, s.teacher.terminal)
        same(found, want, f"successor_values of {values.tolist()}, column")
        same(gradients(found.sum(), values)[0], grad, "gradient of the sum of successor_values")
    nan = successor_values(torch.tensor([[0.0, math.nan]]), YES[:, :2], NO[:, :2])
    assert math.isnan(nan[0, 0]), "a NaN of a value that exists must stay: it shows an error"


def check_which_positions_count(points=3):
    """A position is dropped where it has no set or weighs 0, where its token is not in the set, and where it
    is not terminal and the next column has no set or weighs 0. A text that was cut off is NOT terminal.

    The result is the weights as they came, with 0 in the positions that are dropped. The next column needs a
    set and a weight, no more: its own token may lie outside its set. Padding of a set is not in the set.

    live = has a set and weighs more than 0; keep where live, where (is_taken & mask) has a true entry, and
    where the token is terminal or live is true one column later (false after the last column)."""
    w = torch.tensor([[1.0, 2.0, 0.0, 3.0], [4.0, 5.0, 6.0, 7.0]])
    found = bellman_weights(TEACHER, w)
    assert found.tolist() == [[1, 0, 0, 3], [0, 0, 0, 0]], f"weights {found.tolist()}"
    taken = TEACHER.is_taken.clone()
    taken[1, 2, 0] = True                                           # the token of column 2 is in its set now
    found = bellman_weights(TEACHER._replace(is_taken=taken), w)
    assert found.tolist() == [[1, 0, 0, 3], [0, 0, 6, 0]], f"weights {found.tolist()}"
    padded = MASK.clone()
    padded[0, 3, 0] = False                                             # token 3 stands in the padding now
    found = bellman_weights(TEACHER._replace(mask=padded), w)
    assert found[0].tolist() == [1, 0, 0, 0], "a token in the padding of a set is not in the set"
    for n in range(10):
        s = random_scene(n)
        want = torch.zeros_like(s.weights)
        for b, t in positions(s):
            want[b, t] = s.weights[b, t] if is_known(s, b, t) else 0
        found = untouched(bellman_weights, s.teacher, s.weights)
        same(found, want, f"bellman_weights of the weights {s.weights.tolist()}, column")


def compare_returns(numbers):
    """soft_returns on scenes against the loop, in the columns that have a set."""
    for n in numbers:
        s, gamma = random_scene(n), (1.0, 0.8, 0.0, 0.3)[n % 4]
        s = s._replace(weights=torch.ones_like(s.weights))
        if n % 5 == 0:
            s = s._replace(student=extreme(s.student))
        if n % 4 == 0:
            found = soft_returns(s.student, s.teacher)                      # gamma is 1
        else:
            found = soft_returns(s.student, s.teacher, gamma)
        want, has_set = returns_by_hand(s, gamma), s.teacher.mask.any(-1)
        assert found.shape == want.shape, f"returns: shape {tuple(found.shape)}, expected {tuple(want.shape)}"
        found, want = torch.where(has_set, found, 0), torch.where(has_set, want, 0)
        same(found, want, f"return at gamma {gamma}, column ")


def check_returns_by_hand(points=3):
    """Backwards: the token taken is worth its return, the others what the head says: V = log of the sum of
    pi(a|s) exp U(s, a), over the set but not renormalised; return = gamma V of the next column, 0 at the
    end.

    pi is z_K - log_Z, over the whole vocabulary. gamma is applied once a step, to V(s'), not to U. U and a
    return may be above 0: clip nothing. A column that follows a terminal token belongs to another text.

    From the last column to the first: the return of column t from V of column t + 1; put it in the place of
    the taken token in a COPY of U; then V of column t = logsumexp of log pi + U over the set."""
    # Student: .5 | .5 taken, .3 | .4 | .6 taken, which ends, .2; exp U of the others: .1 and .5. Three more
    # numbers stand where the token is taken, or in padding: they are not used.
    probs = torch.tensor([[0.5, 0.9], [0.3, 0.5], [0.4, 0.9], [0.6, 0.2]], dtype=torch.float64)
    heads = torch.tensor([[0.7, 0.6], [0.1, 0.6], [0.8, 0.6], [0.7, 0.5]], dtype=torch.float64)
    mask = torch.tensor([[[1, 0], [1, 1], [1, 0], [1, 1]]]).bool()
    taken = torch.tensor([[[1, 0], [0, 1], [1, 0], [1, 0]]]).bool()
    teacher = TeacherSets(torch.zeros(1, 4, 2), mask, taken, torch.tensor([[False, False, False, True]]))
    log_Z = torch.tensor([[0.5, -1.0, 2.0, 0.0]]).double()
    terms = StudentTerms(probs.log()[None] + log_Z[..., None], None, log_Z, None, heads.log()[None])
    for gamma in (1.0, 0.5):
        stay = 0.7 ** gamma                                     # .6 + .2 * .5 in the last column
        door = (0.4 * stay) ** gamma
        want = [(0.5 * door + 0.3 * 0.1) ** gamma, door, stay, 1.0]
        for t, found in enumerate(soft_returns(terms, teacher, gamma)[0]):
            near(found, math.log(want[t]), f"return of column {t} at gamma {gamma}")
    two = teacher._replace(terminal=torch.tensor([[False, True, False, True]]))         # two texts in a row
    for t, want in enumerate((0.5 + 0.3 * 0.1, 1.0, 0.7, 1.0)):
        near(soft_returns(terms, two)[0, t], math.log(want), f"return of column {t} of two texts in a row")
    compare_returns(range(200, 210))


def check_returns_of_a_text_that_was_cut(points=2):
    """Where the return is not known, because the token is not in the set, or the text was cut after it,
    the token taken has the head's value, like the others. A column without a set has V = 0.

    bellman_weights says where the return is known. The return itself is gamma V of the next column even where
    the token taken lies outside its set, and 0 where the next column has no set or does not exist.

    taken = is_taken where bellman_weights(teacher, live) > 0; V = torch.where(live, logsumexp(...), 0)."""
    _, _, terms = fixed_student()
    for U in (terms.U, terms.U + 9):
        V = (terms.z_K + U - terms.log_Z[..., None]).logsumexp(-1)[1]
        found = soft_returns(terms._replace(U=U), TEACHER)[1]
        for t, want in enumerate((0.0, V[2], V[3], 0.0)):
            near(found[t], want, f"return of column {t} in a text that was cut")


def check_returns_leave_padding_and_inputs_alone(points=1):
    """What does not count may be anything, NaN too: padding, a U that a return replaces, and the return of a
    token that is not known. No gradient goes into a return. U is not written to. bfloat16 is lifted first.

    z_K and U are masked before the loop, log_Z counts for nothing in a column without a set. The loop writes
    into a copy of U. A NaN of U that counts must stay, so nan_to_num is no mask.

    torch.where(mask, U, 0) makes a new tensor; torch.where(mask, log pi, MASKED) masks the student; and
    torch.where(taken, return, U) chooses without arithmetic."""
    nan = fixed_student()[2]
    nan = nan._replace(U=torch.where(IDS == 1, math.nan, nan.U))            # not taken in columns 2
    found = soft_returns(nan, TEACHER)[0, :2]
    assert found.isnan().all(), f"U is NaN in a set, and the returns before it are {found.tolist()}"
    late = fixed_student()[2]
    late.U.data[1, 3] = math.nan                            # the return of column 2, whose token is outside
    found = soft_returns(late, TEACHER)[1].tolist()
    assert math.isnan(found[2]) and math.isfinite(found[1]), f"a return of NaN that is not known: {found}"
    s = random_scene(240)
    for student, teacher in ((fixed_student()[2], TEACHER), (s.student, s.teacher)):
        want, mask = untouched(soft_returns, student, teacher), teacher.mask
        assert not want.requires_grad, "a return has a gradient"
        known = bellman_weights(teacher, mask.any(-1).double()) > 0         # there a return replaces U
        for bad in (math.nan, 1e4, math.inf):
            z_K = torch.where(mask, student.z_K, bad)
            U = torch.where(mask & ~(teacher.is_taken & known[..., None]), student.U, bad)
            log_Z = torch.where(mask.any(-1), student.log_Z, bad)
            found = soft_returns(student._replace(z_K=z_K, U=U, log_Z=log_Z), teacher)
            assert torch.allclose(found, want), f"{bad} where nothing counts changes the returns"
        half = StudentTerms(*(x.detach().bfloat16() for x in student))
        found = soft_returns(half, teacher, 0.7)
        want = soft_returns(StudentTerms(*(x.double() for x in half)), teacher, 0.7)
        assert found.dtype in (torch.float32, torch.float64), f"returns of bfloat16 logits: {found.dtype}"
        same(found, want, "returns of bfloat16 logits, column ", 1e-4)


def check_terms_by_hand(points=3):
    """V = v + log S, S the student's mass in the set; Q = log pi(a|s) + v, pi over the WHOLE vocabulary.
    log_s and r are renormalised over the set, raw_r is not. V_next is V of the next column, 0 at the end.

    V_p = logsumexp of z_K over the set, so log S = V_p - log_Z. cross_entropy is the sum of -q log pi_A over
    the set, teacher and student renormalised. live and known are weights, not truth values.

    After mask_terms: log_s_K = z_K minus V_p, leak = log_Z minus V_p, V = v minus leak, Q = log_s plus V; the
    entry of the taken token is a sum over K of where(is_taken and mask, x, 0)."""
    _, v, terms = fixed_student()
    x = td_terms(terms, TEACHER, ONES)
    assert x.known.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]] and x.live.tolist()[1] == [1, 0, 1, 1]
    fixed = Scene(terms, TEACHER, ONES, None, v)
    for (b, t), terms in terms_by_hand(fixed).items():
        for name, want in terms.items():
            near(getattr(x, name)[b, t], want, f"{name}[{b}, {t}]")
    assert not x.V_next[1, [0, 3]].any(), "V(s') where the next column has no set"
    for n in range(20, 26):
        s = random_scene(n)
        x = untouched(td_terms, s.student, s.teacher, s.weights)
        for name, found in x._asdict().items():
            assert found.shape == s.weights.shape, f"{name}: shape {tuple(found.shape)}"
            assert torch.isfinite(found).all(), f"{name} is not finite: {found.tolist()}"
        for b, t in positions(s):
            near(x.live[b, t], s.weights[b, t] if lives(s, b, t) else 0, f"live[{b}, {t}]")
            near(x.known[b, t], s.weights[b, t] if is_known(s, b, t) else 0, f"known[{b}, {t}]")
        for (b, t), terms in terms_by_hand(s).items():
            for name, want in terms.items():
                near(getattr(x, name)[b, t], want, f"{name}[{b}, {t}]")


def check_terms_of_other_types(points=1):
    """Every term has at least float32, also of a student and a teacher in bfloat16. It is finite for logits
    of any size, and where no position counts.

    Values in bfloat16 are lifted BEFORE arithmetic; at_least_float32 does so, float64 stays. mask_terms lifts
    z_K, log_Z and log_probs, but not v or target_values. exp(1000) is infinite: so is log(sum(exp(z))).

    at_least_float32 of student.v, inside the torch.where that masks it, and of target_values; torch.logsumexp
    and log_softmax, without exp and log of your own."""
    for n in range(3):
        s = random_scene(n + 40)
        half, targets = [x.detach().bfloat16() for x in s.student], s.v.detach().cos().bfloat16()
        targets = targets if n else None
        x = td_terms(StudentTerms(*half), s.teacher._replace(log_probs=s.teacher.log_probs.bfloat16()),
                     s.weights.float(), target_values=targets)
        lifted = s._replace(student=StudentTerms(*(y.double() for y in half)), teacher=s.teacher._replace(
            log_probs=s.teacher.log_probs.bfloat16().double()))
        for name, found in x._asdict().items():
            assert found.dtype in (torch.float32, torch.float64), f"{name} of bfloat16 terms: {found.dtype}"
        for (b, t), terms in terms_by_hand(lifted, targets if targets is None else targets.double()).items():
            for name, want in terms.items():
                near(getattr(x, name)[b, t], want, f"{name}[{b}, {t}] of bfloat16 terms", 1e-4)
        big = s._replace(student=extreme(s.student))
        x = td_terms(*big[:3])
        for (b, t), terms in terms_by_hand(big).items():
            for name, want in terms.items():
                near(getattr(x, name)[b, t], want, f"{name}[{b}, {t}] of large logits", 1e-6)
        for no in (s._replace(weights=0 * s.weights),
                   s._replace(teacher=s.teacher._replace(mask=torch.zeros_like(s.teacher.mask)))):
            x = td_terms(*no[:3])
            assert all(torch.isfinite(found).all() for found in x), "not finite where no position counts"
            assert not x.live.any() and not x.known.any(), "weights where no position counts"


def check_what_the_value_head_frees(points=1):
    """With a value head a constant on all logits of a column changes nothing. Without one v is 0, so V = log
    S. With v = log_Z, the form that was published, Q is the logit.

    pi is a softmax, so log pi, S and the terms do not see a constant on all logits; v alone is free. Do not
    centre v, clip it, or put log_Z in its place.

    v = 0 if student.v is None, otherwise the masked student.v as it is."""
    logits, v, terms = fixed_student()
    x = td_terms(terms, TEACHER, ONES)
    moved = student_terms(logits + v[..., None], IDS, TAKEN)
    for name, a, b in zip(x._fields, x, td_terms(moved._replace(v=v), TEACHER, ONES)):
        assert torch.allclose(a[0], b[0]), f"{name} changes with a constant on all logits"
    x = td_terms(terms._replace(v=None), TEACHER, ONES)
    assert torch.allclose(x.V, -x.leak) and torch.allclose(x.Q[0], x.log_s[0] - x.leak[0])
    x = td_terms(terms._replace(v=terms.log_Z), TEACHER, ONES)
    assert torch.allclose(x.Q[0], terms.z_a[0]), "Q with v = log_Z is not the logit"
    s = random_scene(60)
    x = td_terms(s.student, s.teacher, s.weights)
    y = td_terms(s.student._replace(v=s.v + 3), s.teacher, s.weights)
    for b, t in terms_by_hand(s):
        near(y.V[b, t] - x.V[b, t], 3, f"V[{b}, {t}] where v is larger by 3: the change")


def check_where_gradients_flow(points=2):
    """The residual changes V(s') too, unless stop_gradient. target_values (B, T) replace V(s') alone, and are
    read in the next column.

    stop_gradient detaches V(s') and nothing else. target_values are values V(s) of another network, one a
    column: they pass through successor_values like the student's own, and V and Q stay the student's.

    V_next = successor_values(V or target_values, live > 0, terminal), detached where stop_gradient."""
    logits, v, terms = fixed_student()
    for stop in (False, True):
        x = td_terms(terms, TEACHER, ONES, stop_gradient=stop)
        of_logits, of_v = gradients(x.Q[0, 0] - x.V_next[0, 0], logits, v)
        want = [[1, 0 if stop else -1, 0, 0], [0] * 4]
        assert of_v.tolist() == want, f"stop_gradient={stop}: gradient of v {of_v.tolist()}"
        assert bool(of_logits[0, 1].any()) != stop and not of_logits[0, 2:].any() and not of_logits[1].any()
    x = td_terms(terms, TEACHER, ONES, target_values=torch.arange(8.0).reshape(2, 4).double())
    assert x.V_next.tolist() == [[1, 2, 3, 0], [0, 6, 7, 0]], f"V_next of target_values {x.V_next.tolist()}"
    x = td_terms(terms, TEACHER, ONES, target_values=torch.zeros_like(ONES))
    assert not x.V_next.any(), "target_values of 0 are values as well"
    x = td_terms(terms, TEACHER, ONES, target_values=v, stop_gradient=True)
    assert not gradients(x.V_next.sum(), v)[0].any(), "stop_gradient must stop that of target_values as well"
    for n in range(4):
        s = random_scene(n + 80)
        options = dict(stop_gradient=n % 2 == 1, target_values=None)
        if n % 3 == 0:
            options["target_values"] = (s.v if n else s.v.detach()).flip(1) - 1     # with a gradient to stop
        what = f"stop_gradient={options['stop_gradient']}, {'own' if n % 3 else 'given'} values"
        x, factor = td_terms(s.student, s.teacher, s.weights, **options), 1.0
        found = want = torch.zeros((), dtype=torch.float64)
        for (b, t), terms in terms_by_hand(s, **options).items():
            for name, value in terms.items():
                near(getattr(x, name)[b, t], value, f"{name}[{b}, {t}], {what}")
                factor = -1.01 * factor if abs(factor) < 3 else 1.0         # a gradient must not cancel
                found, want = found + factor * getattr(x, name)[b, t], want + factor * value
        for name, a, b in zip(("logits", "v"), *(gradients(y, s.logits, s.v) for y in (found, want))):
            same(a, b, f"gradient of the {name}, {what}, place ")


def check_where_the_square_leads(points=1):
    """One state, tokens that end the text, a .9 / .1 teacher, alpha .1: the loss is least where student /
    teacher is 1 - Q(a) / (2 alpha) and the mean of Q is 0: Q is .0577 and -.519, the student has .640.

    With c(a) = 1 - Q(a) / (2 alpha), elsewhere the gradient is s(a) times the teacher's mean of c, minus q(a)
    c(a), for logit a, and the teacher's mean of Q / (2 alpha) for v: it is 0 where that law holds.

    Compare the factor 1 / (4 alpha), the signs of both terms, and what is detached; nothing is centred."""
    q = torch.tensor([0.9, 0.1], dtype=torch.float64)
    optimum = torch.tensor([0.057696, -9 * 0.057696], dtype=torch.float64)
    g = torch.Generator().manual_seed(SEED)
    for Q, alpha in ((optimum, 0.1), *((torch.randn(2, generator=g).double(), a) for a in (0.1, 0.5, 3.0))):
        taken, yes = torch.tensor([[0], [1]]), torch.ones(2, 1, dtype=torch.bool)
        ids, mask = torch.arange(2).expand(2, 1, 2), yes[..., None].expand(2, 1, 2)
        teacher = TeacherSets(q.log().expand(2, 1, 2), mask, ids == taken[..., None], yes)
        logits = Q.expand(2, 1, 2).clone().requires_grad_()
        v = Q.logsumexp(-1).expand(2, 1).clone().requires_grad_()
        terms = student_terms(logits, ids, taken)._replace(v=v)
        loss, _ = bellman_distill(terms, teacher, q[:, None], alpha=alpha)
        of_logits, of_v = (x.sum((0, 1)) for x in gradients(loss, logits, v))
        c = 1 - Q / (2 * alpha)
        what = f"at Q = {Q.tolist()}, alpha {alpha}"
        same(of_logits, Q.softmax(-1) * (q * c).sum() - q * c, f"gradient of the logits {what}, token ")
        near(of_v, (q * Q).sum() / (2 * alpha), f"gradient of v {what}")
        if Q is optimum:
            near(of_logits.abs().max(), 0, "gradient of the logits at the optimum", 1e-4)


def compare_losses(n, expected, s=None, **options):
    """bellman_distill on scene n, or s, against the loop: the loss, its gradients, its figures."""
    s, targets = s or random_scene(n), None
    if "target_values" in options:
        targets = options["target_values"] = s.v.detach().sin() * 2
    alpha, gamma, leak = [(0.3, 0.9, 0.5), (2.5, 1.0, 0.0), (0.1, 0.0, 2.0), (1.0, 0.5, 1.0)][n % 4]
    denominator = [None, 0.25, torch.tensor(12.5, dtype=torch.float64)][n % 3]
    arguments = dict(alpha=alpha, gamma=gamma, leak=leak, expected=expected, **options)
    loss, figures = untouched(bellman_distill, s.student, s.teacher, s.weights, denominator, **arguments)
    want, means = loss_by_hand(s, denominator, **arguments)
    shown = ", ".join(f"{name}={value}" for name, value in arguments.items() if name != "target_values")
    what = f"with denominator={denominator}, {shown}" + (" and target_values" if targets is not None else "")
    same(loss, want, f"bellman_distill {what}")
    for name, a, b in zip(("logits", "v"), *(gradients(y, s.logits, s.v) for y in (loss, want))):
        same(a, b, f"gradient of the {name} {what}, place ")
    for name, mean in means.items():
        assert name in figures, f'figures["{name}"] is missing; found {sorted(figures)}'
        assert not getattr(figures[name], "requires_grad", False), f'figures["{name}"] holds the graph'
        near(figures[name], mean, f'figures["{name}"] {what}')


def check_bellman_distill_by_hand(points=3):
    """The mean over known positions of -log_s + (Q - gamma V')^2 / (4 alpha) + leak (-log S). ValueError
    unless 0 < alpha < inf.

    All three terms share the weights `known` and one denominator: the one that was given, or else the sum of
    these weights. gamma stands at V(s') alone. No known position gives 0, with gradient 0.

    Let sum_terms do it: {"cloning": (1, -log_s), "bellman": (1, square), "leak": (leak, x.leak), "reward":
    (0, reward)} with known and denominator; the reward is 0 by torch.where where it is not known."""
    logits, v, terms = fixed_student()
    x = td_terms(terms, TEACHER, ONES)
    square = (x.Q - 0.9 * x.V_next) ** 2 / 1.2
    options = dict(alpha=0.3, gamma=0.9, leak=0.5)
    loss, figures = bellman_distill(terms, TEACHER, ONES, **options)
    near(loss, (square - x.log_s + 0.5 * x.leak)[0].mean(), "bellman_distill")
    near(figures["reward"], (x.Q - 0.9 * x.V_next)[0].mean(), 'figures["reward"]')
    near(bellman_distill(terms, TEACHER, ONES, 10.0, **options)[0], loss * 0.4, "with the denominator 10")
    for n in range(120, 126):
        compare_losses(n, expected=False)
    for alpha in (0.0, -1.0, math.inf, math.nan, -math.inf):
        for expected in (False, True):
            try:
                bellman_distill(terms, TEACHER, ONES, alpha=alpha, expected=expected)
            except ValueError:
                continue
            raise AssertionError(f"alpha={alpha}, expected={expected} gave no ValueError")
    none, unknown = torch.zeros_like(ONES), torch.tensor([[0.0], [1.0]]).double().expand(2, 4)
    for weights, expected in ((none, False), (none, True), (unknown, False)):
        loss, _ = bellman_distill(terms, TEACHER, weights, expected=expected)
        near(loss, 0, "where no position counts")
        for grad in gradients(loss, logits, v):
            near(abs(grad).max(), 0, "gradient where no position counts")


def check_the_expected_form(points=2):
    """expected: cross_entropy and leak of every position with a set, and the square where it is known, all
    divided by the weight of the positions with a set.

    One denominator for all terms: the weights `live`, not `known`, unless a denominator is given. A position
    that is not known keeps its cloning term and loses its square.

    The same sum_terms with x.cross_entropy for -x.log_s and x.live for x.known."""
    _, _, terms = fixed_student()
    x, live = td_terms(terms, TEACHER, ONES), MASK.any(-1)
    loss, _ = bellman_distill(terms, TEACHER, ONES, alpha=0.3, gamma=0.9, leak=0.5, expected=True)
    square = ((x.Q - 0.9 * x.V_next)[0] ** 2 / 1.2).sum()
    near(loss, ((x.cross_entropy + 0.5 * x.leak)[live].sum() + square) / 7, "bellman_distill, expected")
    for n in range(140, 145):
        compare_losses(n, expected=True)


def check_options_reach_the_terms(points=1):
    """The options target_values and stop_gradient of bellman_distill act on V(s') in both forms, and the
    defaults are alpha .1, gamma .99, leak 0.

    They are collected in **options; td_terms takes them.

    td_terms(student, teacher, weights, **options)."""
    logits, v, terms = fixed_student()
    fixed = Scene(terms, TEACHER, ONES, logits, v)
    for expected in (False, True):
        compare_losses(0, expected, fixed, stop_gradient=True)
        compare_losses(0, expected, fixed, target_values=True)
    for n in range(160, 163):
        compare_losses(n, expected=n % 2 == 0, stop_gradient=n % 4 < 2, target_values=True)
    s = random_scene(172)
    near(bellman_distill(s.student, s.teacher, s.weights)[0], loss_by_hand(s, None, 0.1, 0.99, 0.0, False)[0],
         "bellman_distill with its defaults")


def check_what_does_not_count_is_harmless(points=2):
    """Padding and columns without a set or a weight may hold anything, NaN too: mask first, then compute, or
    NaN returns in the gradient. A NaN in a position that counts must reach the loss.

    0 * NaN is NaN, also in the gradient of a torch.where that removes the NaN later. mask_terms masks z_K,
    log_Z, log_probs and weights; v and target_values are not among them.

    torch.where(live > 0, v, 0) first; do not use nan_to_num, which would hide real errors."""
    (logits, v, clean), weights = fixed_student(), ONES.clone()
    weights[0, 2] = 0
    assert td_terms(clean, TEACHER, weights).known.tolist() == [[1, 0, 0, 1], [0] * 4], "known is wrong"
    for s in (Scene(clean, TEACHER, weights, logits, v), *map(random_scene, (100, 101))):
        live = s.teacher.mask.any(-1) & (s.weights > 0)
        mask, targets = s.teacher.mask & live[..., None], s.v.detach().cos()
        want = td_terms(s.student, s.teacher, s.weights, target_values=targets)
        clean_loss = {expected: bellman_distill(s.student, s.teacher, s.weights, expected=expected)[0]
                      for expected in (False, True)}
        for bad in (math.nan, 1e4, -math.inf):
            z_K, log_t = (torch.where(mask, x, bad) for x in (s.student.z_K, s.teacher.log_probs))
            dirty = s.student._replace(z_K=z_K, **{name: torch.where(live, getattr(s.student, name), bad)
                                                   for name in ("z_a", "log_Z", "v")})
            teacher = s.teacher._replace(log_probs=log_t)
            x = td_terms(dirty, teacher, s.weights, target_values=torch.where(live, targets, bad))
            for name, a, b in zip(x._fields, x, want):
                assert torch.isfinite(a).all(), f"{name} is not finite where {bad} stands in the padding"
                same(a[live], b[live], f"{name} depends on what does not count; live position ")
            for expected in (False, True):
                loss, figures = bellman_distill(dirty, teacher, s.weights, expected=expected)
                near(loss, clean_loss[expected], f"bellman_distill where {bad} stands in the padding")
                assert all(torch.isfinite(figure) for figure in figures.values()), f"figures {figures}"
                finite = all(torch.isfinite(grad).all() for grad in gradients(loss, s.logits, s.v))
                assert finite, f"{bad} returns in the gradient"
    real = clean._replace(v=torch.where(torch.arange(4) == 1, math.nan, v))
    loss, _ = bellman_distill(real, TEACHER, weights)
    loss = loss.item()
    assert math.isnan(loss), f"v is NaN in a position that counts, and the loss is {loss:.4f}"
