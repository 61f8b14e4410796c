"""The pictures of assignments 1 to 4: tokens in cells. The command is course/figures.py."""

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import torch

import brd
from course.assignments import REPOSITORY
from course.figures_canvas import (BLUE, GREY, PALE_BLUE, PALE_GREEN, PALE_GREY, PALE_ORANGE, RED, WHITE,
                                   Canvas, shown)
from data.documents import BEHAVIOURS, ROLES, course_tokenizer, encode_documents, render
from data.tokenizer import learn_merges
from model import GPT, GPTConfig, KVCache

HOW_OFTEN = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}


def merged(n):
    """The words of HOW_OFTEN after n merges -> lists of tokens (str); the merges; the counts of all pairs."""
    words, names, counts = [list(word.encode()) for word in HOW_OFTEN], list(map(chr, range(256))), Counter()
    merges = learn_merges(words, list(HOW_OFTEN.values()), n)
    for left, right in merges:
        names.append(names[left] + names[right])
    words = [[names[i] for i in word] for word in words]
    for word, count in zip(words, HOW_OFTEN.values()):
        for pair in pairwise(word):
            counts[pair] += count
    return words, [(names[left], names[right]) for left, right in merges], counts


def draw_1_bpe(n=3):
    """Five words and their pairs of neighbours, from letters through n merges."""
    canvas = Canvas(8.1, 4.95)
    for step in range(n + 1):
        x, (words, merges, counts) = 0.75 + 1.85 * step, merged(step)
        canvas.title(x, 0.25, "merge {}: {} + {}".format(step, *merges[-1]) if step else "start: letters")
        for row, (word, count) in enumerate(zip(words, HOW_OFTEN.values())):
            y, at = 0.5 + 0.4 * row, x
            if not step:
                canvas.text(0.6, y + 0.16, f"{count} ×", 10, ha="right")
            for token in word:
                new = step and token == "".join(merges[-1])
                fill = PALE_ORANGE if new else PALE_BLUE if len(token) > 1 else WHITE
                canvas.box(at, y, 0.28 * len(token), 0.32, token, fill, family="monospace")
                at += 0.28 * len(token) + 0.04
        canvas.text(x, 2.72, "pairs, and how often")
        for row, (pair, count) in enumerate(sorted(counts.items(), key=lambda item: (-item[1], item[0]))):
            y, length = 2.9 + 0.29 * row, count / 22
            canvas.text(x, y + 0.13, " ".join(pair), family="monospace")
            best = row == 0 and step < n
            canvas.box(x + 0.62, y + 0.03, length, 0.2, "", PALE_ORANGE if best else PALE_GREY)
            canvas.text(x + 0.66 + length, y + 0.13, str(count))
        if step < n:
            canvas.arrow((x + 1.42, 1.46), (x + 1.76, 1.46))
    canvas.legend(0.75, 4.78, (PALE_ORANGE, "the most frequent pair, and the token that it becomes", 4.2),
                  (PALE_BLUE, "learnt before", 1.5), (WHITE, "a byte", 1))
    return canvas.fig


def attention_panel(canvas, x, words, pads):
    """What each token of a row sees: all words but the last are a prompt, the last is read with the cache."""
    cache, side, n = KVCache(GPTConfig(n_vocab=8), torch.tensor([pads])), 0.56, len(words)
    names = ["pad"] * pads + words[pads:]
    for column, name in enumerate(names):
        left = x + 1 + side * column
        canvas.box(left, 0.5, side, 0.3, name, PALE_GREY if column < pads else WHITE, size=9)
        canvas.box(left, 1.3, side, 0.3, names[column - 1] if column else "empty",
                   PALE_GREY if column <= pads else PALE_BLUE, size=9)
        if column < n - 1:
            canvas.arrow((left + side / 2, 0.82), (left + side * 1.5, 1.28), GREY)
    for T, first in ((n - 1, 0), (1, n - 1)):
        positions, mask = cache.advance(T)
        positions = range(first, n) if isinstance(positions, slice) else positions[0].tolist()
        seen = (mask == 0).expand(1, 1, T, cache.length)[0, 0]
        for row, position in enumerate(positions, first):
            top = 1.66 + 0.35 * row + 0.12 * (T == 1)
            canvas.text(x + 0.94, top + 0.17, f"{names[row]}, {position}", ha="right")
            for column in range(n):
                fill, word = WHITE, ""
                if column < cache.length and seen[row - first, column]:
                    fill, word = (PALE_ORANGE, "own") if row < pads else (
                        (PALE_GREY, "∅") if column == pads else (BLUE, ""))
                canvas.box(x + 1 + side * column, top, side, 0.35, word, fill, size=9)


def draw_2_attention():
    """Keys behind an empty one, the mask of attention to the past, and that of a row with pads."""
    canvas = Canvas(8.2, 4.25)
    for x, title, words, pads in ((0, "a row without pads", "Anna took a train to", 0),
                                  (4.1, "a row with two pads on the left", "pad pad Ben left to", 2)):
        canvas.title(x + 0.2, 0.22, title)
        canvas.text(x + 0.94, 0.65, "tokens", ha="right")
        canvas.text(x + 0.94, 1.45, "keys", ha="right")
        attention_panel(canvas, x, words.split(), pads)
    canvas.text(4.1, 3.73, "a row: a token and its position; the last one is read later, with the cache",
                ha="center")
    canvas.legend(0.3, 4.03, (BLUE, "sees an earlier token", 1.95),
                  (PALE_GREY, "∅: sees the empty key", 2.05),
                  (PALE_ORANGE, "a pad sees its own column: no softmax over nothing", 3))
    return canvas.fig


def record(text, entities, kind, question, answer):
    """An annotated sentence, as data/annotations.py has it."""
    return {"text": text, "entities": [dict(zip(("text", "type", "about"), e)) for e in entities],
            "questions": [{"kind": kind, "question": question, "answer": answer}]}


def draw_3_reading():
    """Two sentences in their three copies, token by token."""
    trip = [("Anna", "person", "traveller"), ("Oslo", "place", "goal")]
    paragraph = [record("Anna took a train to Oslo.", trip, "content", "Where did Anna go?", "Oslo"),
                 record("She felt proud.", [("proud", "feeling", "mood")],
                        "structure", "Who is she?", "Anna")]
    documents = [render(paragraph, behaviour, random.Random(1), forms=1) for behaviour in BEHAVIOURS]
    tokenizer, canvas, y = course_tokenizer("world", 1024), Canvas(8.6, 3.95), 0.25
    fills = dict(zip(ROLES, (WHITE, PALE_BLUE, PALE_ORANGE, PALE_GREEN, PALE_GREY, PALE_GREY)))
    for behaviour, (ids, roles) in zip(BEHAVIOURS, encode_documents(documents, tokenizer)):
        canvas.title(0.1, y, f"D_{behaviour.upper()}, {len(ids)} tokens")
        x, y = 0.1, y + 0.18
        for i, role in zip(ids, roles):
            role = ROLES[role]
            word = f"<{role}>" if role in ("sep", "end") else shown(tokenizer, i)
            width = 0.16 + 0.085 * len(word)
            if x + width > 8.5:
                x, y = 0.1, y + 0.34
            canvas.box(x, y, width, 0.28, word, fills[role], size=9)
            x += width + 0.03
        y += 0.58
    canvas.legend(0.1, y, *((fills[role], role, 1.4) for role in ROLES[:4]), (PALE_GREY, "separator, end", 2))
    return canvas.fig


def draw_4_blind():
    """Two items in a batch of score_batch, scored by the teacher in data/teacher."""
    model, tokenizer = GPT.load(REPOSITORY / "data/teacher/model").eval(), course_tokenizer("world", 1024)
    items = [("Anna took a train to", ["Oslo", "Star Bank"]), ("Ben works for", ["Oslo", "Star Bank"])]
    batch = [brd.split_tokens(tokenizer, *item, model.config.block_size) for item in items]
    canvas, longest = Canvas(8.6, 4.1), max(len(context) for context, *_ in batch)
    start = 0.2 + 0.8 * longest
    canvas.title(0.2, 0.22, "prompts: padded on the left, read once")
    canvas.title(start + 0.5, 0.22, "candidates: padded right")
    canvas.title(8.4, 0.22, "mean log p", ha="right")
    for k, ((context, tails, _), means) in enumerate(zip(batch, brd.score_batch(model, batch))):
        y = 0.85 + 1.6 * k
        for column, i in enumerate([None] * (longest - len(context)) + context):
            fill = PALE_GREY if i is None else PALE_BLUE
            canvas.box(0.2 + 0.8 * column, y, 0.8, 0.34, shown(tokenizer, i), fill)
        for row, (tail, mean) in enumerate(zip(tails, means)):
            top, best = y - 0.3 + 0.75 * row, mean == max(means)
            (sums,) = brd.score_batch(model, [(context, [tail[:n + 1] for n in range(len(tail))], False)])
            log_p = np.diff([mean * (n + 1) for n, mean in enumerate(sums)], prepend=0)
            canvas.arrow((start, y + 0.17), (start + 0.5, top + 0.17), RED)
            for column in range(2):
                i, left = tail[column] if column < len(tail) else None, start + 0.5 + 1.1 * column
                canvas.box(left, top, 0.8, 0.34, shown(tokenizer, i), PALE_GREY if i is None else PALE_ORANGE)
                if i is not None:
                    canvas.text(left + 0.4, top + 0.48, f"{log_p[column]:.2f}", ha="center")
                if i is not None and column:
                    canvas.arrow((left - 0.3, top + 0.17), (left, top + 0.17), RED)
            canvas.text(8.1, top + 0.17, f"{mean:.2f}", 10, ha="right", weight="bold" if best else "normal")
            canvas.text(8.2, top + 0.17, "◀" if best else "")
    canvas.arrow((0.25, 3.85), (0.7, 3.85), RED)
    canvas.text(0.8, 3.85, "from a hidden state to the token that it predicts; below a token its log p; "
                "◀ the answer")
    return canvas.fig
