"""What the distillation losses recover, solved exactly: claims, each beside the numbers found.

    python td_distill.py theory             some seconds on a CPU

A state is the text so far, an action the next token. With short texts and a tiny vocabulary every state fits
in a table, so there is no network, no sampling and no learning rate: what fails here fails because of the
objective. The losses are those of td_distill.py; claims 1 to 4 are of Bellman Distill (arXiv 2505.20335).

Shapes: S states, A actions, B texts of at most T tokens. Q (S, A) is the student, log pi(a|s) + v(s); inside
is A_p, V_p(s) = log sum of exp Q(s, a) over A_p(s), s' follows s after a, pi* is the teacher, proj_p pi* the
teacher renormalised over its sets.
"""

from collections import namedtuple
from functools import partial

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import td_distill as td

# A decision process. follow (S, A) int: the next state, -1 where the action ends the text; reward (S, A).
MDP = namedtuple("MDP", "follow reward gamma")
# teacher, target (S, A): pi*, proj_p pi*; inside (S, A): its sets; visits (S,): the share of the texts drawn
# inside the sets that reach a state; live (S, A): inside, in a state that is reached.
World = namedtuple("World", "follow teacher inside target visits live gamma")


def token_follow(letters, depth):
    """The tree of texts of fewer than `depth` letters -> follow (S, A), A = letters + 1. State 0 is the empty
    text, action 0 is EOS, any other appends its letter. In the longest texts every action ends the text."""
    n_states, action = sum(letters ** n for n in range(depth)), np.arange(letters + 1)
    follow = letters * np.arange(n_states)[:, None] + action                    # (S, A), breadth first
    return np.where((action > 0) & (follow < n_states), follow, -1)


def top_p(probs, p):
    """A_p(s): the fewest of the most probable actions whose mass reaches p; probs (S, A) -> (S, A) bool."""
    order = np.argsort(-probs, axis=-1, kind="stable")
    ranked = np.take_along_axis(probs, order, -1)                               # (S, A)
    inside = np.zeros(probs.shape, bool)
    np.put_along_axis(inside, order, ranked.cumsum(-1) - ranked < p - 1e-12, -1)
    return inside


def soft_value(Q, inside=True):
    """V_p(s), Q (..., S, A) -> (..., S); inside=True: of the whole softmax."""
    return np.logaddexp.reduce(np.where(inside, Q, -np.inf), axis=-1)


def softmax(Q, inside=True):
    """proj_p pi_Q(a|s), 0 outside; Q (..., S, A) -> (..., S, A)."""
    return np.exp(np.where(inside, Q - soft_value(Q, inside)[..., None], -np.inf))


def after(V, follow):
    """V(s') of every action, 0 where it ends the text; V (..., S) -> (..., S, A)."""
    return np.where(follow < 0, 0, V[..., follow])


def bellman(Q, mdp, inside):
    """The paper's top-p soft Bellman operator: r(s,a) + gamma V_p(s') -> (S, A)."""
    return mdp.reward + mdp.gamma * after(soft_value(Q, inside), mdp.follow)


def solve(mdp, inside=True):
    """The operator's fixed point (S, A): Q* where all is inside, Q_p* inside the sets."""
    Q, old = np.zeros(mdp.reward.shape), np.inf
    while distance(Q, old) > 1e-12:
        Q, old = bellman(Q, mdp, inside), Q
    return Q


def distance(Q, R, inside=True):
    """The largest |Q - R| over the actions inside; (S, A) -> scalar."""
    return np.abs(np.where(inside, Q - R, 0)).max()


def world(follow, teacher, p, gamma):
    """A teacher (S, A) with its sets and the states that it reaches inside them -> World."""
    inside = top_p(teacher, p)
    target, visits = softmax(np.log(teacher), inside), np.eye(len(follow))[0]
    for s, a in np.argwhere(follow >= 0):                       # parents first
        visits[follow[s, a]] += visits[s] * target[s, a]
    return World(follow, teacher, inside, target, visits, inside & (visits[:, None] > 0), gamma)


def reward(w, Q):
    """The reward that Q implies: Q(s,a) - gamma V_p(s') -> (S, A)."""
    return Q - w.gamma * after(soft_value(Q, w.inside), w.follow)


def fixed_point(w, Q, alpha):
    """pi_Q / proj_p pi* (S, A) and E_{pi*}[r|s] (S,) where the gradient of Bellman Distill is 0:
        pi_Q / pi* = (1 - r(s,a) / (2 alpha)) / (1 - gamma e(s) / (2 alpha)),    E_{pi*}[r | s] = gamma e(s)
    with e(s) the mean reward of the actions into s, 0 at the start; it comes from V_p(s')."""
    r, e, goes = reward(w, Q), np.zeros(len(Q)), w.follow >= 0
    np.add.at(e, w.follow[goes], (w.visits[:, None] * w.target * r)[goes])
    e /= np.where(w.visits > 0, w.visits, 1)                                    # (S,)
    return (1 - r / (2 * alpha)) / (1 - w.gamma * e[:, None] / (2 * alpha)), w.gamma * e


def measures(w, Q):
    """KL(proj_p pi* || proj_p pi_Q) a token, mass outside the sets a token, P(a text never leaves a set)."""
    log_ratio, V = np.log(np.where(w.inside, w.target, 1)) - Q, soft_value(Q, w.inside)[:, None]
    kl, outside = w.target * (log_ratio + V), softmax(Q) * ~w.inside
    stay = soft_value(solve(MDP(w.follow, np.log(softmax(Q)), 1.0), w.inside), w.inside)[0]
    return *(w.visits @ x.sum(-1) / w.visits.sum() for x in (kl, outside)), np.exp(stay)


def all_texts(w):
    """Every text that can be drawn inside the sets, as a document of a batch -> states, taken (B, T) long,
    teacher, weights (B, T): its probability."""
    parent = {w.follow[s, a]: (s, a) for s, a in np.argwhere(w.follow >= 0)}
    texts = [[(s, a)] for s, a in np.argwhere(w.live & (w.follow < 0))]
    for text in texts:
        while text[0][0] in parent:
            text.insert(0, parent[text[0][0]])
    share = torch.tensor([w.visits[text[-1][0]] * w.target[text[-1]] for text in texts])        # (B,)
    steps = pad_sequence([torch.tensor(np.array(text)) for text in texts], batch_first=True, padding_value=-1)
    weights, (states, taken) = share[:, None] * (steps[..., 0] >= 0), steps.clamp(min=0).unbind(-1)
    mask = torch.tensor(w.inside)[states] & (weights > 0)[..., None]                            # (B, T, A)
    is_taken = taken[..., None] == torch.arange(mask.size(-1))
    terminal, log_probs = torch.tensor(w.follow)[states, taken] < 0, torch.tensor(w.teacher).log()[states]
    return states, taken, td.TeacherSets(log_probs, mask, is_taken, terminal), weights


def evaluate(texts, loss, tables, gauge):
    """A loss of N students on all texts -> its sum, the gradients. tables (N, S, .): logits, v and maybe U.
    gauge: "head", v is free; "raw", v = log Z, and Q is the logit; "zero" and "U", v = 0."""
    tables = tables.detach().requires_grad_()
    states, taken, teacher, weights = texts
    taken, weights, *teacher = (torch.cat([x] * len(tables)) for x in (taken, weights, *teacher))
    rows, n_actions = tables[:, states].flatten(0, 1), teacher[0].size(-1)                      # (N B, T, .)
    logits, ids = rows[..., :n_actions], torch.arange(n_actions).expand(teacher[0].shape)
    v = {"head": rows[..., n_actions], "raw": logits.logsumexp(-1)}.get(gauge)
    student = td.student_terms(logits, ids, taken)._replace(v=v, U=rows[..., n_actions + 1:])
    value, _ = loss(student, td.TeacherSets(*teacher), weights, 1.0)
    return value.item(), torch.autograd.grad(value, tables)[0]


def settle(w, loss, gauge="head", shared=None, seed=0, steps=300):
    """Where training with a loss ends: from a random table, implicit Euler steps down its gradient, longer as
    it vanishes -> Q, U (S, A). Gradients that are stopped stay stopped. shared (S,): states of one number
    have the same parameters. RuntimeError where the gradient does not vanish. Of a loss with plateaus, such
    as reverse_kl, it may find one."""
    (states, *rest), (n_states, n_actions), h = all_texts(w), w.follow.shape, 1e-5
    numbers = np.where(w.visits > 0, range(n_states) if shared is None else shared, 0)
    place = torch.tensor(np.unique(numbers, return_inverse=True)[1])            # (S,): the row of a state
    texts, width = (place[states], *rest), 2 * n_actions + 1 if gauge == "U" else n_actions + 1
    table = torch.randn(int(place.max()) + 1, width, generator=torch.Generator().manual_seed(seed)).double()
    eye = torch.eye(table.numel()).double()                                     # (P, P)
    moves = h * torch.cat([0 * eye[:1], eye, -eye]).view(-1, *table.shape)
    for _ in range(steps):
        _, slopes = evaluate(texts, loss, table + moves, gauge)
        g, up, down = slopes.flatten(1).split([1, len(eye), len(eye)])
        if g.abs().max() < 1e-7:
            break
        step = torch.linalg.solve((up - down).T / (2 * h) + 0.3 * g.norm() * eye, g[0])
        table = table - step.clamp(-3, 3).view(table.shape)
    else:
        raise RuntimeError(f"the gradient is still {g.abs().max():.0e} after {steps} steps")
    logits, v, U = table[place].split([n_actions, 1, width - n_actions - 1], -1)
    log_Z = logits.logsumexp(-1, keepdim=True)
    return (logits - log_Z + {"head": v, "raw": log_Z}.get(gauge, 0)).numpy(), U.numpy()


def operator_lines(rng):
    """Parts 1 and 2 of the page: the operator, and what the sets cost."""
    yield """\
1. The top-p soft Bellman operator is a contraction: over supported actions it shrinks the largest difference
   of two tables Q to gamma times as much or less, so it has one fixed point. Largest ratio of 300 pairs:"""
    for gamma in (0.5, 0.9, 0.99):
        mdp = MDP(rng.integers(-1, 6, (6, 5)), 2 * rng.normal(size=(6, 5)), gamma)
        inside = top_p(softmax(solve(mdp)), 0.8)
        Q, R = 3 * rng.normal(size=(2, 300, 6, 5)) + 9 * rng.normal(size=(2, 300, 1, 1))
        moved = bellman(Q, mdp, inside) - bellman(R, mdp, inside)
        ratio = np.abs(moved[:, inside]).max(-1) / np.abs((Q - R)[:, inside]).max(-1)
        yield f"     gamma {gamma:<4} ratio {ratio.max():.4f}"
    loop = MDP(np.zeros((1, 5), int), np.zeros((1, 5)), 0.99)
    gap = distance(solve(loop), solve(loop, top_p(softmax(loop.reward), 0.8)))
    yield f"""
2. The cost of the sets: ||Q* - Q_p*|| <= -gamma / (1 - gamma) log p, as a step loses at most -log p nats
     five equal actions without end, p .8, gamma .99: gap {gap:.3f}, bound {-99 * np.log(0.8):.3f}
   Logits differ far less. In texts of at most D tokens the factor is only gamma + ... + gamma^(D-1)."""


def square_lines(w, rng):
    """Parts 3 and 4: the square of Bellman Distill, and where it leads in the small world w."""
    Q, texts = 3 * rng.normal(size=w.follow.shape), all_texts(w)
    V, r = soft_value(Q, w.inside)[:, None], reward(w, Q)
    published = torch.tensor(V - (Q - r) - (r - r ** 2 / 0.4))[texts[:2]] * texts[3]            # (B, T)
    table = torch.tensor(np.hstack([Q, V]))[None]
    found, _ = evaluate(texts, partial(td.bellman_distill, gamma=w.gamma), table, "raw")
    yield f"""
3. The published objective is cloning and a square, token by token. With V' = gamma V_p(s') and r = Q - V':
   V_p(s) - V' - (r - r^2 / (4 alpha))  =  -log proj_p pi_Q(a|s) + r^2 / (4 alpha):  TD is in the square
     a random Q, {found:.3f}: bellman_distill differs by {abs(found - published.sum()):.0e}

4. Where the square leads: pi_Q / pi* = 1 - r / (2 alpha) and E_{{pi*}}[r] = 0: it flattens the student
   So in the first state. Later a gradient flows through V_p(s') as well: with e the reward on the way into s,
   E_{{pi*}}[r|s] = gamma e, and the ratio is divided by 1 - gamma e / (2 alpha). As alpha falls r goes to 0:
   at gamma 1 all texts get equally probable. A raw Q, as published, and a value head give the same policy.
     alpha    KL to the teacher    off this law    off the first law    raw or head    off r = 0"""
    even = softmax(solve(MDP(w.follow, 0 * Q, w.gamma), w.inside), w.inside)
    for alpha in (10, 1, 0.1, 0.01):
        loss = partial(td.bellman_distill, alpha=alpha, gamma=w.gamma, leak=1.0)
        (Q, _), (head, _) = settle(w, loss, "raw"), settle(w, loss)
        pi, law, first = softmax(Q, w.inside), fixed_point(w, Q, alpha)[0], 1 - reward(w, Q) / (2 * alpha)
        gaps = pi - w.target * law, pi - w.target * first, pi - softmax(head, w.inside), pi - even
        yield "     {:<8} {:>17.6f} {:>15.0e} {:>19.3f} {:>14.0e} {:>13.4f}".format(
            alpha, measures(w, Q)[0], *(distance(gap, 0, w.live) for gap in gaps))


# Three tokens at the start; after each another one is right. With SHARED, two of the states that follow have
# the same parameters, and the student is right in them with .625 and .375.
LIMITED, SHARED = world(np.array([[1, 2, 3], *[[-1] * 3] * 3]),
                        np.array([[0.5, 0.3, 0.2], *np.eye(3) * 0.94 + 0.02]), 0.9, 0.99), [0, 1, 1, 2]


def member_lines(w):
    """Part 5: the optimum of each loss."""
    yield """
5. What does each loss recover, and when does it differ from KD?
   Texts of up to 3 tokens, p .8; leak 1, alpha 1, gamma .99. Distance: from the optimum that is stated. KL to
   the teacher in its sets, mass outside: a token. Limited: P(the student of 7 never leaves a set).
     loss                   distance        KL   outside   limited"""
    kd, stay, kl = w.target, solve(MDP(w.follow, np.log(w.teacher), 1.0), w.inside), td.topp_forward_kl
    bd, ls_iq = (partial(loss, alpha=1.0, leak=1.0) for loss in (td.bellman_distill, td.ls_iq))
    raw, blind = settle(w, bd, "raw")[0], settle(w, partial(bd, gamma=0.0), "zero")[0]
    law, raw, blind = kd * fixed_point(w, raw, 1.0)[0], softmax(raw, w.inside), softmax(blind, w.inside)
    given, free = softmax(stay, w.inside), partial(td.stay, leak=0.0)
    rows = [
        ("topp_forward_kl", kl, "zero", kd, "KD: the teacher, renormalised in its sets."),
        ("  tail bucket", partial(kl, tail="bucket"), "zero", w.teacher, "The teacher and its mass outside."),
        ("sft_loss", lambda student, _, *rest: td.sft_loss(student, *rest), "zero", kd, "As KD."),
        ("bellman_distill, raw", bd, "raw", law, "The paper's: flatter than KD (4)."),
        ("  value head", bd, "head", raw, "The paper's: v is the free number of a state that a raw Q has."),
        ("  v = 0", bd, "zero", blind, "Flatter than KD, each state by itself: the optimum of gamma 0 (6)."),
        ("ls_iq", ls_iq, "head", raw, "bellman_distill's, with V larger by r_max / (1 - gamma)."),
        ("soft_q", td.soft_q, "head", kd, "As KD, with V = 0, for any gamma."),
        ("path_consistency", td.path_consistency, "head", kd, "As KD, with V = 0, for any number of steps."),
        ("retrace", td.retrace, "head", kd, "As KD, with V = 0, for any lambda."),
        ("stay", td.stay, "head", given, "The teacher GIVEN that it never leaves a set. Needs a free v:"),
        ("  v = 0", td.stay, "zero", kd, "The leak holds V at 0, and KD is left."),
        ("  v = 0, leak 0", free, "zero", np.exp(stay), "V is free again; the mass in a set is P(stay)."),
        ("improve", td.improve, "U", kd, "As KD, with U = 0, if the student can learn all; if not, see 7.")]
    for name, loss, gauge, optimum, answer in rows:
        (Q, _), (small, _) = settle(w, loss, gauge), settle(LIMITED, loss, gauge, SHARED)
        (kl, outside, _), (_, _, limited) = measures(w, Q), measures(LIMITED, small)
        yield "     {:<22} {:>8.0e} {:>9.6f} {:>9.6f} {:>9.4f}\n       {}".format(
            name, distance(softmax(Q), optimum, w.live), abs(kl), outside, limited, answer)


def temporal_lines(w):
    """Part 6: values with and without a head."""
    texts, square = all_texts(w), partial(td.bellman_distill, alpha=1e-9)   # nothing but the square counts
    def cosine(Q, gauge):
        table = torch.tensor(np.hstack([Q, soft_value(Q)[:, None]]))[None]
        slopes = (evaluate(texts, partial(square, gamma=gamma), table, gauge)[1] for gamma in (w.gamma, 0.0))
        return torch.cosine_similarity(*(x.flatten() for x in slopes), dim=0).item()
    yield """
6. Bellman Distill with v = 0 has no temporal difference, unless the student leaks
   There V(s) = log S(s) = -leak, which the leak term drives to 0. Left: distance of the optima of gamma .99
   and 0. Right: cosine of the gradients of the square with and without V(s'), at the optimum of gamma .99.
     alpha    leak       v = 0    outside    value head     cosine: v = 0     log Z      head"""
    for alpha, leak in ((1, 1), (0.1, 1), (0.1, 10)):
        found = [[settle(w, partial(td.bellman_distill, alpha=alpha, leak=leak, gamma=gamma), gauge)[0]
                  for gamma in (w.gamma, 0.0)] for gauge in ("zero", "head")]
        gaps = [distance(softmax(Q, w.inside), softmax(R, w.inside), w.live) for Q, R in found]
        (zero, _), (head, _) = found
        cosines = cosine(zero, "zero"), cosine(head, "raw"), cosine(head, "head")
        yield "     {:<6} {:>6} {:>11.7f} {:>10.6f} {:>13.7f} {:>17.3f} {:>9.3f} {:>9.3f}".format(
            alpha, leak, gaps[0], measures(w, zero)[1], gaps[1], *cosines)
    yield """\
   At alpha .1 a leak of 1 is too cheap: the student leaks, as V(s') < 0 makes the square smaller.

7. improve: a student with too few parameters takes the branches on which it can stay
   The first token opens one of three branches. Two need the same parameters, and the student is right there
   with .625 and .375. Optimum of the first token: pi* S(s')^beta, renormalised; beta 0 is KD."""
    for beta in (0.0, 1.0, 2.0):
        Q, _ = settle(LIMITED, partial(td.improve, beta=beta), "U", SHARED)
        best, first = LIMITED.target[0] * np.array([0.625, 0.375, 1]) ** beta, softmax(Q)[0]
        yield "     beta {:.0f}: {:.3f} {:.3f} {:.3f}, off by {:.0e}; never leaves a set: {:.4f}".format(
            beta, *first, distance(first, best / best.sum()), measures(LIMITED, Q)[2])


def lines(seed=0):
    """The parts of the page (str, some of several lines); another seed gives other random worlds."""
    rng, follow, w = np.random.default_rng(seed), token_follow(3, 3), None
    while w is None or not w.inside[0, 0] or w.inside[0].sum() < 3:     # a text may end at once or go on
        w = world(follow, softmax(1.5 * rng.normal(size=follow.shape)), 0.8, 0.99)
    return [*operator_lines(rng), *square_lines(w, rng), *member_lines(w), *temporal_lines(w)]


def main(arguments=None):
    """Prints the page; ValueError for arguments, which it has none."""
    if arguments:
        raise ValueError(f"{' '.join(arguments)}: theory has no options")
    print(*lines(), sep="\n")
