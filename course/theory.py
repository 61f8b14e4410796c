"""The theory of top-p distillation, solved exactly: claims, each beside the numbers found.

    python td_distill.py theory             some seconds on a CPU

A language model is a decision maker: a state is the text so far, an action is the next token. With short
texts and a tiny vocabulary every state fits in a table, so there is no network, no sampling and no learning
rate: what fails here fails because of the objective. The claims are those of Yu, Li, Zhang, "Language Model
Distillation: A Temporal Difference Imitation Learning Perspective" (AAAI 2026, arXiv 2505.20335).

Shapes: S states, A actions; "..." in front is a batch of tables. Q (S, A) are the student's logits, inside
(S, A) bool is A_p, V_p(s) = log sum of exp Q(s, a) over A_p(s), s' follows s after a, pi* is the teacher,
proj_p pi* the teacher renormalised over its sets.
"""

from collections import namedtuple
from functools import partial
from itertools import chain, product

import numpy as np

# A decision process. follow (S, A) int: the next state, -1 where the action ends the text; reward (S, A).
MDP = namedtuple("MDP", "follow reward gamma")
# What a loss knows. teacher, target (S, A): pi* and proj_p pi*; inside (S, A): its sets; visits (S,): the
# share of the texts drawn inside the sets that reach a state.
World = namedtuple("World", "follow teacher inside target visits gamma")


def token_follow(letters, depth):
    """The tree of texts of fewer than `depth` letters -> follow (S, A), A = letters + 1. State 0 is the empty
    text, action 0 is EOS, any other appends its letter. In the longest texts every action ends the text."""
    texts, follow = [()], []
    for text in texts:                                          # the list grows: breadth first
        grows = len(text) < depth - 1
        follow.append([-1] + [len(texts) + i if grows else -1 for i in range(letters)])
        texts += [text + (i,) for i in range(letters) if grows]
    return np.array(follow)                                     # (S, A)


def random_mdp(rng, n_states, n_actions, gamma):
    """Any state may follow any other; one action in eight ends the text."""
    follow = rng.integers(0, n_states, (n_states, n_actions))                   # (S, A)
    follow = np.where(rng.random(follow.shape) < 1 / 8, -1, follow)
    return MDP(follow, 2 * rng.normal(size=follow.shape), gamma)


def top_p(probs, p):
    """A_p(s): the fewest of the most probable actions whose mass reaches p; probs (S, A) -> (S, A) bool."""
    order = np.argsort(-probs, axis=-1, kind="stable")
    ranked = np.take_along_axis(probs, order, -1)                               # (S, A)
    inside = np.zeros(probs.shape, bool)
    np.put_along_axis(inside, order, ranked.cumsum(-1) - ranked < p - 1e-12, -1)
    return inside


def soft_value(Q, inside=True):
    """V_p(s), Q (..., S, A) -> (..., S); inside=True: of the whole softmax."""
    top = np.where(inside, Q.real, -np.inf).max(-1, keepdims=True)
    return top[..., 0] + np.log(np.exp(np.where(inside, Q - top, -np.inf)).sum(-1))


def softmax(Q, inside=True):
    """proj_p pi_Q(a|s), 0 outside; Q (..., S, A) -> (..., S, A)."""
    return np.exp(np.where(inside, Q - soft_value(Q, inside)[..., None], -np.inf))


def after(V, follow):
    """V(s') of every action, 0 where it ends the text; V (..., S) -> (..., S, A)."""
    return np.where(follow < 0, 0, V[..., follow])


def bellman(Q, mdp, inside, policy=None):
    """The paper's top-p soft Bellman operator: r(s,a) + gamma E_{a'}[Q(s',a') - log pi(a'|s')] -> (S, A), a'
    drawn from policy (S, A), 0 outside the sets. None: from proj_p pi_Q, and the mean is V_p(s')."""
    V = soft_value(Q, inside)                                                   # (S,)
    if policy is not None:
        V = (policy * (Q - np.log(np.where(policy > 0, policy, 1)))).sum(-1)
    return mdp.reward + mdp.gamma * after(V, mdp.follow)


def solve(mdp, inside=True, policy=None):
    """The operator's fixed point (S, A): Q* where all is inside, Q_p* inside the sets, Q^pi for a policy."""
    Q = np.zeros(mdp.reward.shape)
    for _ in range(int(np.log(1e-17) / np.log(mdp.gamma))):     # until gamma^n is below rounding
        Q = bellman(Q, mdp, inside, policy)
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
    return World(follow, teacher, inside, target, visits, gamma)


# Objectives: World and Q (..., S, A) -> loss (...,), the mean over the teacher's texts of a sum over tokens.
def mean(w, x, probs=None):
    """x (..., S, A) -> (...,), with a drawn from probs (..., S, A); None: from proj_p pi*."""
    probs = w.target if probs is None else probs
    return (w.visits[:, None] * np.where(probs.real > 0, probs * x, 0)).sum((-1, -2))


def forward_kl(w, Q):
    """KL(pi* || pi) of the whole softmax: KD, and in the mean SFT on texts that the teacher draws freely."""
    return mean(w, np.log(w.teacher) - Q + soft_value(Q)[..., None], w.teacher)


def leak(w, Q):
    """-log of the student's mass inside. With cloning it is -log pi(a|s): SFT on the tokens drawn inside."""
    return ((soft_value(Q) - soft_value(Q, w.inside)) * w.visits).sum(-1)


def reward(w, Q):
    """The reward that Q implies: Q(s,a) - gamma V_p(s') -> (..., S, A)."""
    return Q - w.gamma * after(soft_value(Q, w.inside), w.follow)


def bellman_tokens(w, Q, alpha, target=0.0):
    """Bellman Distill: -log proj_p pi_Q(a|s) + (reward - target)^2 / (4 alpha) of a token, (..., S, A). At
    alpha = inf only the first term, cloning, is left; it does not depend on Q outside the sets."""
    return soft_value(Q, w.inside)[..., None] - Q + (reward(w, Q) - target) ** 2 / (4 * alpha)


def max_min_tokens(w, Q, alpha):
    """As published, to minimise: V_p(s) - gamma V_p(s') - phi(reward), phi(x) = x - x^2 / (4 alpha)."""
    V, r = soft_value(Q, w.inside), reward(w, Q)
    return V[..., None] - w.gamma * after(V, w.follow) - (r - r ** 2 / (4 * alpha))         # (..., S, A)


def minimise(loss, Q, steps=200, tolerance=1e-10):
    """Damped Newton's method; loss (..., S, A) -> (...,), Q (S, A) -> (Q, largest gradient). Gradients by the
    complex step, Im loss(Q + ih) / h, exact to rounding; the Hessian by their differences."""
    eye = np.eye(Q.size).reshape(-1, *Q.shape)                                  # (S A, S, A)

    def gradient(Q):
        return loss(Q[..., None, :, :] + 1e-30j * eye).imag / 1e-30             # (..., S, A) -> (..., S A)

    damping, g = 1e-3, gradient(Q)
    for _ in range(steps):
        if np.abs(g).max() < tolerance or damping > 1e9:
            break
        H = (gradient(Q + 1e-5 * eye) - gradient(Q - 1e-5 * eye)) / 2e-5        # (S A, S A)
        curvature, axes = np.linalg.eigh((H + H.T) / 2)
        step = axes @ (axes.T @ g / (np.abs(curvature) + damping))              # abs: no step uphill
        new = Q - np.clip(step, -2, 2).reshape(Q.shape)
        if loss(new) <= loss(Q) + 1e-14 * abs(loss(Q)):                         # not larger, up to rounding
            Q, g, damping = new, gradient(new), max(damping / 8, 1e-12)
        else:
            damping *= 8
    return Q, np.abs(g).max()


def fixed_point(w, Q, alpha):
    """pi_Q / proj_p pi* (S, A) and E_{pi*}[r|s] (S,) where the gradient of Bellman Distill is 0:

        pi_Q / pi* = (1 - r(s,a) / (2 alpha)) / (1 - gamma e(s) / (2 alpha)),    E_{pi*}[r | s] = gamma e(s)

    with e(s) the mean reward of the actions into s, 0 at the start; it comes from V_p(s')."""
    r, e, goes = reward(w, Q), np.zeros(len(Q)), w.follow >= 0
    np.add.at(e, w.follow[goes], (w.visits[:, None] * w.target * r)[goes])
    e /= np.where(w.visits > 0, w.visits, 1)                                    # (S,)
    return (1 - r / (2 * alpha)) / (1 - w.gamma * e[:, None] / (2 * alpha)), w.gamma * e


def measures(w, Q):
    """KL(proj_p pi* || proj_p pi_Q) and mass outside the sets, both a token; the mean length of the texts
    that the student draws inside the sets."""
    proj, outside, length = softmax(Q, w.inside), softmax(Q) * ~w.inside, np.ones(len(Q))
    for s in reversed(range(len(Q))):                           # children first
        length[s] = 1 + proj[s] @ after(length, w.follow[s])
    tokens = w.visits.sum()
    kl = mean(w, np.log(np.where(w.inside, w.target, 1)) - Q + soft_value(Q, w.inside)[:, None]) / tokens
    return abs(kl), w.visits @ outside.sum(-1) / tokens, length[0]


# The page: each function yields a part of it; w is a World.
def operator_lines(rng):
    yield """\
1. The top-p soft Bellman operator is a contraction on supported actions
   Applied to two tables Q, it shrinks their largest difference over supported actions to gamma times as much
   or less. So it has one fixed point, which every start reaches. The largest ratio of 1000 random pairs (the
   last one depends on actions that the distance leaves out):
     gamma (the claim)      with V_p     with a fixed policy     wrong: V over all actions"""
    for gamma in (0.5, 0.9, 0.99):
        mdp, largest = random_mdp(rng, 6, 5, gamma), np.zeros(3)
        inside = top_p(softmax(solve(mdp)), 0.8)
        policy = softmax(rng.normal(size=inside.shape), inside)
        for _ in range(1000):
            Q, R = 3 * rng.normal(size=(2, *inside.shape)) + 9 * rng.normal(size=(2, 1, 1))
            moved = [distance(bellman(Q, mdp, *how), bellman(R, mdp, *how), inside)
                     for how in ((inside,), (inside, policy), (True,))]
            largest = np.maximum(largest, np.array(moved) / distance(Q, R, inside))
        yield "     {:<20} {:>10.4f} {:>23.4f} {:>29.4f}".format(gamma, *largest)


def value_lines(rng):
    yield """\

2. The cost of the sets: ||Q* - Q_p*|| <= -gamma / (1 - gamma) log p
   Losing a mass of 1 - p costs at most -log p nats a step; gamma .99:
     world             p      gap    bound"""
    follow = token_follow(3, 4)
    worlds = {"random": random_mdp(rng, 6, 5, 0.99),
              "up to 4 tokens": MDP(follow, rng.normal(size=follow.shape), 0.99),
              "five equals": MDP(np.zeros((1, 5), int), np.zeros((1, 5)), 0.99)}
    for name, p in product(worlds, (0.8, 0.5)):
        best = solve(worlds[name])                              # Q*; the teacher is its softmax
        gap = distance(best, solve(worlds[name], top_p(softmax(best), p)))
        yield f"     {name:<14} {p:>4} {gap:8.3f} {-99 * np.log(p):8.3f}"
    yield """\
   At p .8 the bound is 22 nats, far more than logits differ, but five equal actions without end reach it. For
   texts of at most D tokens gamma / (1 - gamma) is only gamma + ... + gamma^(D-1)."""


def square_lines(w, rng):
    Q = 3 * rng.normal(size=w.follow.shape)
    ours, published = bellman_tokens(w, Q, 0.1), max_min_tokens(w, Q, 0.1)
    yield f"""
3. The published objective is cloning and a square, token by token. With V' = gamma V_p(s'):
   V_p(s) - V' - phi(Q - V')  =  -log proj_p pi_Q(a|s) + (Q - V')^2 / (4 alpha)
     a random Q, values up to {ours.max():.0f}: largest difference {distance(ours, published):.0e}
   V' cancels in the linear part of phi, so only the square has a temporal difference.

4. Where the square leads: pi_Q / pi* = 1 - r / (2 alpha) and E_{{pi*}}[r] = 0: it flattens the student
   This holds in the first state of a text. Later a gradient flows through V_p(s') as well: with e the reward
   on the way into s, E_{{pi*}}[r|s] = gamma e, and the ratio is divided by 1 - gamma e / (2 alpha)."""
    live = w.inside & (w.visits[:, None] > 0)
    for alpha in (1, 0.1):
        Q, _ = minimise(lambda Q: mean(w, bellman_tokens(w, Q, alpha)), rng.normal(size=live.shape))
        ratio = softmax(Q, w.inside) / np.where(live, w.target, 1)
        law, first = fixed_point(w, Q, alpha)[0], 1 - reward(w, Q) / (2 * alpha)
        yield (f"     alpha {alpha:<4} texts of 3 tokens, ratio off by {distance(ratio, law, live):.0e}; "
               f"by the first law {distance(ratio, first, live):.3f}")


def objective_lines(w, rng):
    start, teacher = rng.normal(size=w.follow.shape), np.log(w.teacher)

    def bd(Q, alpha=np.inf, target=0.0):
        return mean(w, bellman_tokens(w, Q, alpha, target))
    losses = {
        "SFT or KD: forward KL, whole": lambda Q: forward_kl(w, Q),
        "top-p cloning": bd,
        "  + leak: SFT inside": lambda Q: bd(Q) + leak(w, Q),
        **{f"Bellman Distill, alpha {alpha}": partial(bd, alpha=alpha) for alpha in (10, 1, 0.1)},
        "  + leak": lambda Q: bd(Q, 0.1) + leak(w, Q),
        "  to the teacher's reward": lambda Q: bd(Q, 0.1, reward(w, teacher))}
    yield """
5. Which objectives give the teacher back
   Texts of up to 3 tokens, p .8, each objective minimised from the same random student. KL to the teacher in
   its sets and mass outside, both a token; mean length of texts drawn inside; the gradient that is left.
     objective                             KL    outside   length   gradient"""
    found = {"the start": (start, np.nan), "the teacher": (teacher, np.nan)}
    for name, (Q, slope) in {**found, **{name: minimise(losses[name], start) for name in losses}}.items():
        row = "     {:<31} {:9.6f} {:10.6f} {:8.3f} {:10.0e}".format(name, *measures(w, Q), slope)
        yield row.replace("nan", "").rstrip()
    yield """\
   Cloning has the right proportions but trains nothing outside. The leak corrects that, and no proportion. As
   alpha falls all texts become equally probable: a token after which much can follow wins over EOS. A square
   around the teacher's own reward changes nothing."""


def lines(seed=0):
    """The parts of the page (str, some of several lines); another seed gives other random worlds."""
    rng, follow, w = np.random.default_rng(seed), token_follow(3, 3), None
    while w is None or not w.inside[0, 0] or w.inside[0].sum() < 3:     # a text may end at once or go on
        w = world(follow, softmax(1.5 * rng.normal(size=follow.shape)), 0.8, 0.99)
    return chain(operator_lines(rng), value_lines(rng), square_lines(w, rng), objective_lines(w, rng))


def main(arguments=None):
    """Prints the page."""
    print(*lines(), sep="\n")
