"""A stack-and-copy token grammar: a small world in which a distillation objective can be judged exactly.

A prompt leaves things to do; the answer must do them, the last one first, as from a stack:

    prompt    (c b4 (a << e2 e0 f7 >> a1 copy (b =>
    answer    b) (d d0 d3 d) e2 e0 f7 a) c) end

- `(c` opens a bracket of type c: the answer must close it with `c)`.
- `<< .. >>` marks a span of symbols. `copy` obliges the answer to write the span, `back` to write it backwards.
- Other symbols of the prompt (b4, a1) mean nothing and must be skipped.
- Before each of these duties, and before `end`, the answer may put extras, as `(d d0 d3 d)` here: a bracket with
  symbols of its own type, or smaller extras, inside. Whether, and which, is drawn with known probabilities.

So a prompt has endlessly many right answers, their probabilities are known to the last digit (`next_distribution` is a
perfect teacher), and whether an answer is right is a matter of computation, not of taste (`valid`). A student must tell
what is certain (duties) from what is free (extras); where it spreads its mass too widely, one wrong token spoils all.

The 202 tokens are numbers, no text tokenizer is involved. A prompt has 18 tokens on average and at most 23; an answer
has 25 on average, and one answer in 90 more than 64.

    python data/grammar.py        prints a few prompts with two answers each

    rng = random.Random(0)
    ask = prompt(rng)
    assert valid(ask, answer(rng, ask))
"""

import random

TYPES = "abcdefghijklmn"            # 14 types of brackets
SYMBOLS = 12                        # symbols of each type
END, GO, MARK, UNMARK, COPY, BACK = range(6)
OPEN = 6                            # OPEN + type
CLOSE = OPEN + len(TYPES)           # CLOSE + type
SYMBOL = CLOSE + len(TYPES)         # SYMBOL + 12 * type + number
N_VOCAB = SYMBOL + SYMBOLS * len(TYPES)
NAMES = (["end", "=>", "<<", ">>", "copy", "back"] + ["(" + t for t in TYPES] + [t + ")" for t in TYPES]
         + [f"{t}{number}" for t in TYPES for number in range(SYMBOLS)])

# The policy. Shares of the types and of a type's symbols fall as 1, 1/2, 1/3, ..: a few likely tokens and a long tail,
# all of it right, so that a top-p set cuts off right answers too.
EXTRA = 0.23                        # probability of one more extra before a duty
SHUT, FILL, NEST = 0.4, 0.45, 0.15  # inside an extra: close it, add a symbol, open an extra inside
DEPTH = 3                           # extras inside extras, at most; at the deepest, NEST counts as FILL


def falling_shares(n):
    total = sum(1 / (i + 1) for i in range(n))
    return [1 / (i + 1) / total for i in range(n)]


TYPE_SHARES, SYMBOL_SHARES = falling_shares(len(TYPES)), falling_shares(SYMBOLS)


def prompt(rng):
    """A prompt as a list of ids, the last one GO: 4 to 8 brackets, 1 or 2 copies, 2 to 5 idle symbols and one marked
    span of 3 to 5 symbols, in any order. rng: random.Random; the same state gives the same prompt.
    """
    def symbols(low, high):
        return [rng.randrange(SYMBOL, N_VOCAB) for _ in range(rng.randint(low, high))]

    items = [[OPEN + rng.randrange(len(TYPES))] for _ in range(rng.randint(4, 8))]
    items += [[rng.choice((COPY, BACK))] for _ in range(rng.randint(1, 2))]
    items += [[symbol] for symbol in symbols(2, 5)]
    items.append([MARK, *symbols(3, 5), UNMARK])
    rng.shuffle(items)
    return [token for item in items for token in item] + [GO]


def duties(prompt):
    """What an answer must contain, in order: a list of (token, free), END the last. free: extras may stand before it
    (not inside a copy). ValueError for a list of ids that is no prompt.
    """
    if not prompt or prompt[-1] != GO or prompt.count(MARK) != 1 or UNMARK not in prompt:
        raise ValueError(f"not a prompt: {decode(prompt)!r}; expected one marked span << .. >> and => at the end")
    span = prompt[prompt.index(MARK) + 1:prompt.index(UNMARK)]
    todo = []
    for token in reversed(prompt):                          # a stack: the last thing opened comes first
        if OPEN <= token < CLOSE:
            todo.append((token - OPEN + CLOSE, True))
        elif token in (COPY, BACK):
            copied = span if token == COPY else span[::-1]
            todo += [(symbol, i == 0) for i, symbol in enumerate(copied)]
    return todo + [(END, True)]


# ---------------------------------------------------------------------------------------------------------------
# The policy seen from above: how an answer is made


def extra(rng, depth=1):
    """One more pair of brackets and what stands in it, drawn as the policy draws: list of tokens."""
    kind = rng.choices(range(len(TYPES)), TYPE_SHARES)[0]
    inside = []
    while (draw := rng.random()) >= SHUT:
        if draw >= SHUT + FILL and depth < DEPTH:
            inside += extra(rng, depth + 1)
        else:
            inside.append(SYMBOL + SYMBOLS * kind + rng.choices(range(SYMBOLS), SYMBOL_SHARES)[0])
    return [OPEN + kind, *inside, CLOSE + kind]


def answer(rng, prompt):
    """An answer drawn from the policy, as a list of ids, the last one END."""
    out = []
    for token, free in duties(prompt):
        while free and rng.random() < EXTRA:
            out += extra(rng)
        out.append(token)
    return out


# ---------------------------------------------------------------------------------------------------------------
# The same policy token by token, as a language model sees it. The state is (duties done, types of the open extras);
# a duty never begins with an opening bracket, so that every token says which of the two it belongs to.


def options(todo, done, extras):
    """dict of id -> probability of the next token in this state; empty after END."""
    if extras:
        kind, can_nest = extras[-1], len(extras) < DEPTH
        shares = {CLOSE + kind: SHUT}
        for number, share in enumerate(SYMBOL_SHARES):
            shares[SYMBOL + SYMBOLS * kind + number] = (FILL if can_nest else FILL + NEST) * share
        opening = NEST if can_nest else 0
    elif done == len(todo):
        return {}
    else:
        token, free = todo[done]
        opening = EXTRA if free else 0
        shares = {token: 1 - opening}
    if opening:
        shares |= {OPEN + kind: opening * share for kind, share in enumerate(TYPE_SHARES)}
    return shares


def walk(todo, partial):
    """The state after the tokens of partial: (duties done, extras), or None once one of them had probability 0."""
    done, extras = 0, []
    for token in partial:
        if token not in options(todo, done, extras):
            return None
        if OPEN <= token < CLOSE:
            extras.append(token - OPEN)
        elif not extras:
            done += 1
        elif token == CLOSE + extras[-1]:
            extras.pop()
    return done, extras


def next_distribution(prompt, partial):
    """The exact teacher: dict of id -> probability > 0 (sum 1) of the token after prompt + partial.

    Empty where nothing can follow: after END, or where partial has left the language.
    """
    todo = duties(prompt)
    state = walk(todo, partial)
    return {} if state is None else options(todo, *state)


def valid(prompt, answer):
    """True where the policy can give this answer: every duty done, in order, extras well formed, END at the end."""
    todo = duties(prompt)
    return walk(todo, answer) == (len(todo), [])


def decode(ids):
    """Ids as names for people; an id outside the vocabulary is shown as ?id."""
    return " ".join(NAMES[i] if 0 <= i < N_VOCAB else f"?{i}" for i in ids)


if __name__ == "__main__":
    rng = random.Random(0)
    for _ in range(3):
        ask = prompt(rng)
        print("prompt   ", decode(ask))
        for _ in range(2):
            print("answer   ", decode(answer(rng, ask)))
        print()
