"""Checks of assignment 1, byte pair encoding (data/tokenizer.py). The docstring of a check is its hint."""
import json
import time
from pathlib import Path

import data.tokenizer
from data.tokenizer import learn_merges, train_bpe

# "hug" ten times, "pug" five times ...: u+g is met 20 times, then u+n 16, then h+ug 15, then p+un 12.
HUGS = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
# The merges of 60 made-up words (see made_up) of the letters 0, 1, 2.
MADE_UP = [(2, 0), (1, 1), (2, 2), (1, 0), (1, 2), (256, 0), (0, 0), (258, 2), (257, 0), (1, 256), (1, 261),
           (256, 2), (2, 261), (258, 1), (260, 1), (0, 268), (259, 258), (259, 257), (0, 261), (2, 265)]


def made_up(n, letters):
    """n words of 2 to 10 letters, the same on every machine."""
    words, x = [], 7
    for _ in range(n):
        x = (1103515245 * x + 12345) % 2 ** 31
        word = []
        for _ in range(2 + (x >> 16) % 9):
            x = (1103515245 * x + 12345) % 2 ** 31
            word.append((x >> 16) % letters)
        words.append(word)
    return words


def tokens_of(tok):
    """The learnt tokens in order, as bytes."""
    return [token for token, i in sorted(tok.ranks.items(), key=lambda item: item[1]) if i >= 256]


def check_merge_replaces_every_pair(points=2):
    """Walk from left to right; where the pair stands, put the new id and go on two places further, otherwise
    one."""
    words = [[5, 1, 2, 3, 1, 2], [2, 1], [1, 2, 1, 2], [1, 1, 2, 2]]
    assert learn_merges(words, [1, 1, 1, 1], 1) == [(1, 2)]
    assert words == [[5, 256, 3, 256], [2, 1], [256, 256], [1, 256, 2]], f"found {words}"
    words = [[1, 1, 1, 2], [1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert learn_merges(words, [1, 1, 1], 1) == [(1, 1)]
    assert words == [[256, 1, 2], [256, 256], [256, 256, 1]], f"found {words}"


def check_merge_at_the_edges(points=1):
    """The last id of a word has no right neighbour, an empty word has none at all. The list of frequencies
    must stay as it is."""
    words, freqs = [[3, 1], [2, 3, 1], [], [1, 2], [1], [2]], [9, 1, 7, 2, 9, 9]
    assert learn_merges(words, freqs, 2) == [(3, 1), (1, 2)] and freqs == [9, 1, 7, 2, 9, 9]
    assert words == [[256], [2, 256], [], [257], [1], [2]], f"found {words}"


def check_worked_example(points=3):
    """By hand: hug 10, pug 5, pun 12, bun 4, hugs 5 times. A pair counts as often as the WORD occurs, not
    once a word."""
    words = [list(word.encode()) for word in HUGS]
    found = learn_merges(words, list(HUGS.values()), 4)
    want = [(ord("u"), ord("g")), (ord("u"), ord("n")), (ord("h"), 256), (ord("p"), 257)]
    assert found == want, f"found {found}, expected {want}: u+g, u+n, h+ug, p+un"


def check_words_are_rewritten(points=1):
    """learn_merges leaves in `words` what training has made of them."""
    words = [list(word.encode()) for word in HUGS]
    learn_merges(words, list(HUGS.values()), 4)
    assert words == [[258], [ord("p"), 256], [259], [ord("b"), 257], [258, ord("s")]]


def check_equal_counts(points=2):
    """Among pairs met equally often the smaller left id wins, then the smaller right id, whatever comes first
    in the text."""
    assert learn_merges([[8, 3], [4, 9], [4, 6]], [5, 5, 5], 3) == [(4, 6), (4, 9), (8, 3)]
    assert learn_merges([[4, 6], [8, 3], [4, 9]], [5, 5, 5], 3) == [(4, 6), (4, 9), (8, 3)]
    texts = ["to be or not", "to be a bee"]
    assert train_bpe(texts, 300).hash == train_bpe(texts[::-1], 300).hash


def check_counts_stay_right(points=3):
    """Every merge takes occurrences away from pairs beside it, and brings new ones with the new id. Count
    again and compare."""
    words = made_up(60, 3)
    found = learn_merges(words, [1 + i % 7 for i in range(60)], 20)
    k = next((k for k, (a, b) in enumerate(zip(found + [None] * 20, MADE_UP)) if a != b), None)
    assert k is None, f"merge number {k} is {(found + [None] * 20)[k]}, expected {MADE_UP[k]}"
    # 1 1 1 holds the pair once when merged from the left, not twice: overlaps must not stay in the counts.
    assert learn_merges([[1, 1, 1], [2, 3]], [4, 5], 3) == [(1, 1), (2, 3), (256, 1)]


def check_rare_pairs_are_left(points=2):
    """A pair that is met fewer than MIN_COUNT times is not merged, and the tokenizer is smaller than asked
    for."""
    assert learn_merges([[1, 2, 3]], [1], 5) == [] and learn_merges([[1, 2], [1, 2]], [1, 1], 5) == [(1, 2)]
    tok = train_bpe(["ab ab abc"], 300)
    assert tokens_of(tok) == [b"ab", b" ab"] and tok.n_vocab == 260
    assert learn_merges([[1, 2, 1, 2, 1, 2]], [9], 1) == [(1, 2)]          # no more than asked for


def check_words_keep_their_borders(points=1):
    """The text is first cut by PATTERN; a space goes with the word behind it, and no merge crosses the border
    of a word."""
    tokens = tokens_of(train_bpe(["Anna met Ben. Anna met Ben. " * 9], 400))
    assert b" met" in tokens and b" Ben" in tokens and b" Anna" in tokens
    assert all(b" " not in token[1:] for token in tokens) and b"n." not in tokens


def check_ids(points=2):
    """0 to 255 are the bytes, then the merges in the order of learning, then <|end|>, then <|sep|>."""
    tok = train_bpe(["low low low lower lowest"], 300)
    assert [tok.ranks[bytes([b])] for b in range(256)] == list(range(256))
    assert tokens_of(tok) == [b"lo", b"low", b" low", b" lowe"]
    assert (tok.end, tok.sep, tok.n_vocab) == (260, 261, 262)
    tok = train_bpe(["low low low lower lowest"], 259)
    assert tokens_of(tok) == [b"lo"] and tok.n_vocab == 259


def check_round_trip(points=1):
    """Bytes can spell everything, also what was never seen: encode then decode gives the text back."""
    tok = train_bpe(["naïve café, naïve café"], 280)
    for text in ("naïve café 日本語 🙂\n\tx", "<|end|>", ""):
        assert tok.decode(tok.encode(text)) == text
    assert "é".encode() in tokens_of(train_bpe(["éa éb éc"], 300))           # two bytes, one letter
    assert train_bpe(["half a character \ud83d half"], 300).decode([104]) == "h"


def check_bad_arguments(points=1):
    """train_bpe refuses, with a ValueError, what its docstring names: fewer than 258 ids, one str in place of
    a list."""
    for arguments in ((["abc"], 257), ("abc abc", 300)):
        try:
            train_bpe(*arguments)
        except ValueError:
            continue
        raise AssertionError(f"train_bpe{arguments} gave no ValueError")
    assert train_bpe(["abab abab"], 258).n_vocab == 258 and train_bpe([], 300).n_vocab == 258


def check_the_tokenizer_of_the_course(points=1):
    """All of it together: the course's tokenizer must have the hash for which the teacher's cache was
    made."""
    from data.documents import course_tokenizer
    header = Path(data.tokenizer.__file__).parent / "teacher" / "header.json"
    want = json.loads(header.read_text(encoding="utf-8"))["tokenizer"]
    assert course_tokenizer("world", 1024).hash == want


def check_speed(points=2):
    """Recounting all pairs after every merge takes time merges x corpus. Touch only the words that hold the
    merged pair."""
    words = made_up(4000, 60)
    begin = time.process_time()
    for _ in range(5):
        counts = {}
        for word in words:
            for pair in zip(word, word[1:]):
                counts[pair] = counts.get(pair, 0) + 1
    recount = (time.process_time() - begin) / 5
    begin = time.process_time()
    assert len(learn_merges(words, [2] * 4000, 300)) == 300
    ratio = (time.process_time() - begin) / recount
    assert ratio < 100, f"300 merges take as long as {ratio:.0f} recounts of all pairs, expected at most 100"
