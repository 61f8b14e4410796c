"""A stack-and-copy token grammar: a small language in which the answers of a student can be judged exactly.

A prompt is a list of duties; the answer must do them in reverse order, as from a stack:

    prompt    (c b4 (a << e2 e0 f7 >> a1 copy (b =>
    answer    b) (d d0 d3 d) e2 e0 f7 a) c) end

- `(c` opens a bracket of type c: the answer must close it with `c)`.
- `<< .. >>` marks a span of symbols. `copy` asks the answer to write the span, `back` to write it backwards.
- Other symbols of the prompt (b4, a1) mean nothing and must be skipped.
- Before each duty, and before `end`, the answer may put extras, such as `(d d0 d3 d)`: a bracket with symbols
  of its own type, or smaller extras, inside. They are drawn with known probabilities.

So a prompt has endlessly many right answers, the probability of each is known (`options`), and `valid`
computes whether an answer is right. The 202 tokens are numbers, no text. A prompt has 18 tokens on average
and at most 23; an answer has 25, and one answer in 90 more than 64.
"""

TYPES = "abcdefghijklmn"            # 14 types of brackets
SYMBOLS = 12                        # symbols of each type
END, GO, MARK, UNMARK, COPY, BACK = range(6)
OPEN = 6                            # OPEN + type
CLOSE = OPEN + len(TYPES)           # CLOSE + type
SYMBOL = CLOSE + len(TYPES)         # SYMBOL + 12 * type + number
N_VOCAB = SYMBOL + SYMBOLS * len(TYPES)

# The policy. Shares of the types and of a type's symbols fall as 1, 1/2, 1/3, ..: a few likely tokens and a
# long tail, all of it right, so that a top-p set cuts off right answers too.
EXTRA = 0.23                        # probability of one more extra before a duty
SHUT, FILL, NEST = 0.4, 0.45, 0.15  # inside an extra: close it, add a symbol, open an extra inside
DEPTH = 3                           # extras inside extras, at most; at the deepest, NEST counts as FILL
TYPE_SHARES, SYMBOL_SHARES = ([1 / (i + 1) / sum(1 / (j + 1) for j in range(n)) for i in range(n)]
                              for n in (len(TYPES), SYMBOLS))


def prompt(rng):
    """A prompt as a list of ids, the last one GO; the same state of rng (random.Random) gives the same one.

    4 to 8 brackets, 1 or 2 copies, 2 to 5 idle symbols and a marked span of 3 to 5 symbols, in any order."""
    def symbols(low, high):
        return [rng.randrange(SYMBOL, N_VOCAB) for _ in range(rng.randint(low, high))]
    items = [[OPEN + rng.randrange(len(TYPES))] for _ in range(rng.randint(4, 8))]
    items += [[rng.choice((COPY, BACK))] for _ in range(rng.randint(1, 2))]
    items += [[symbol] for symbol in symbols(2, 5)]
    items.append([MARK, *symbols(3, 5), UNMARK])
    rng.shuffle(items)
    return [token for item in items for token in item] + [GO]


def duties(prompt):
    """What an answer must contain, in order: a list of (token, free), END last; free: extras may precede it,
    which they may not inside a copy."""
    span = prompt[prompt.index(MARK) + 1:prompt.index(UNMARK)]
    todo = []
    for token in reversed(prompt):                          # a stack: the last thing opened comes first
        if OPEN <= token < CLOSE:
            todo.append((token - OPEN + CLOSE, True))
        elif token in (COPY, BACK):
            copied = span if token == COPY else span[::-1]
            todo += [(symbol, i == 0) for i, symbol in enumerate(copied)]
    return todo + [(END, True)]


def extra(rng, depth=1):
    """One pair of brackets with its content, drawn from the policy: list of tokens."""
    kind, inside = rng.choices(range(len(TYPES)), TYPE_SHARES)[0], []
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


# ------------------------------------------------------------------------------------------------------------
# The same policy token by token, as a language model sees it. The state is (duties done, types of the open
# extras). A duty never begins with an opening bracket, so the state follows from the tokens.


def options(todo, done, extras):
    """dict of id -> probability of the next token in this state; empty after END."""
    if extras:
        kind, first = extras[-1], SYMBOL + SYMBOLS * extras[-1]
        fill, opening = (FILL, NEST) if len(extras) < DEPTH else (FILL + NEST, 0)
        shares = {CLOSE + kind: SHUT} | {first + i: fill * share for i, share in enumerate(SYMBOL_SHARES)}
    elif done == len(todo):
        return {}
    else:
        token, free = todo[done]
        opening = EXTRA if free else 0
        shares = {token: 1 - opening}
    return shares | {OPEN + kind: opening * share for kind, share in enumerate(TYPE_SHARES) if opening}


def walk(todo, partial):
    """The state after the tokens of partial: (duties done, extras), or None once one has probability 0."""
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


def valid(prompt, answer):
    """True where the policy can give this answer: all duties in order, extras well formed, END at the end."""
    todo = duties(prompt)
    return walk(todo, answer) == (len(todo), [])
