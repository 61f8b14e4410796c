"""Checks of assignment 1, byte pair encoding (data/tokenizer.py). The docstring of a check is its hint, in
three steps. Random inputs are drawn from SEED, which the grader sets."""
import json
import random
import re
import time
from collections import Counter
from pathlib import Path

import data.tokenizer
from data.tokenizer import END, MIN_COUNT, PATTERN, SEP, learn_merges, train_bpe

# "hug" ten times, "pug" five times ...: u+g is met 20 times, then u+n 16, then h+ug 15, then p+un 12.
HUGS = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
HUG_MERGES = [(ord("u"), ord("g")), (ord("u"), ord("n")), (ord("h"), 256), (ord("p"), 257)]
# Words, and borders of texts, of all kinds that PATTERN tells apart; random texts are made of them.
PARTS = ("low", " low", "er", " lowest", " new", "New", " wide", "é", " né", "日本", " 🙂🙂", "12", " 1234567",
         "?!", " ?", "...", "  ", "\t\t", "\n", "\r\n", "<|end|>", "<|sep|>", " \ud83d", "\ud83d?", "ab" * 30,
         "aaaaaaa", "-----", " \r ", "\v\f\v\f", "\u2028\u2028", "\x85\x1c", "ne\u0301", "ﬁ", " LOW")
BLANK = ("  ", "\t\t", "\n", "\r\n", " \r ", "\v\f\v\f", "    ")


def recount_merges(words, freqs, n_merges):
    """Byte pair encoding the slow way, all pairs counted again for every merge -> (merges, words)."""
    words, merges = [list(word) for word in words], []
    while len(merges) < n_merges:
        counts = Counter()
        for word, freq in zip(words, freqs):
            for pair in zip(word, word[1:]):
                counts[pair] += freq
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < MIN_COUNT:
            break
        for word in words:
            for i in range(len(word)):                          # the word gets shorter meanwhile
                if tuple(word[i:i + 2]) == best:
                    word[i:i + 2] = [256 + len(merges)]
        merges.append(best)
    return merges, words


def same_lists(found, want, what):
    k = next((k for k, (a, b) in enumerate(zip(found, want)) if a != b), min(len(found), len(want)))
    assert found == want, (f"{what} {k} is {found[k:k + 1]}, expected {want[k:k + 1]}; {len(found)} of them, "
                           f"expected {len(want)}")


def same_merges(words, freqs, n_merges, what):
    """Asserts that learn_merges does what recount_merges does, and leaves freqs as it is."""
    want, rows = recount_merges(words, freqs, n_merges)
    shown = f"{str(words):.60}, {str(freqs):.40}"
    before = list(freqs)
    found = [(int(left), int(right)) for left, right in learn_merges(words, freqs, n_merges)]
    same_lists(found, want, f"{what}, words {shown}: merge")
    assert freqs == before, f"{what}: learn_merges has changed freqs from {before} to {freqs}"
    same_lists(words, rows, f"{what}, words {shown}: afterwards word")


def random_words(n, letters, seed):
    """n words of 2 to 10 letters."""
    rng = random.Random(f"{SEED} {seed}")
    return [[rng.randrange(letters) for _ in range(rng.randint(2, 10))] for _ in range(n)]


def tokens_of(tok):
    """The learnt tokens in order, as bytes."""
    return [token for token, i in sorted(tok.ranks.items(), key=lambda item: item[1]) if i >= 256]


def same_tokenizer(texts, n_vocab, what, given=None):
    """Asserts that train_bpe of `given` learns what the slow way learns from the list texts."""
    counts = Counter(word for text in texts for word in re.findall(PATTERN, text))
    words = [word.encode("utf-8", "replace") for word in counts]
    merges, _ = recount_merges(words, counts.values(), n_vocab - 258)
    want = [bytes([b]) for b in range(256)]
    for left, right in merges:
        want.append(want[left] + want[right])
    tok = train_bpe(texts if given is None else given, n_vocab)
    found, want = tokens_of(tok), want[256:]
    same_lists(found, want, f"{what}: learnt token")
    assert tok.n_vocab == 258 + len(want), f"{what}: n_vocab {tok.n_vocab}, expected {258 + len(want)}"


def check_merge_replaces_every_pair(points=2):
    """A merge replaces every place of the pair in every word; of overlapping places the first.

    Walk from left to right. A half of a merged pair cannot be half of another one.

    Where the pair stands, put the new id and go on two places further; otherwise copy one id, go on one."""
    words = [[5, 1, 2, 3, 1, 2], [2, 1], [1, 2, 1, 2], [1, 1, 2, 2]]
    assert learn_merges(words, [1, 1, 1, 1], 1) == [(1, 2)], "expected the one merge (1, 2)"
    assert words == [[5, 256, 3, 256], [2, 1], [256, 256], [1, 256, 2]], f"found {words}"
    words = [[1, 1, 1, 2], [1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert learn_merges(words, [1, 1, 1], 1) == [(1, 1)], "expected the one merge (1, 1)"
    assert words == [[256, 1, 2], [256, 256], [256, 256, 1]], f"found {words}"


def check_merge_at_the_edges(points=1):
    """The last id of a word has no right neighbour, an empty word has none at all, a list may hold no word.

    No pair crosses the border of a word. The list of frequencies must stay as it is.

    zip(word, word[1:]) gives the pairs of a word, none for a word of fewer than two ids."""
    words, freqs = [[3, 1], [2, 3, 1], [], [1, 2], [1], [2]], [9, 1, 7, 2, 9, 9]
    found = learn_merges(words, freqs, 2)
    assert found == [(3, 1), (1, 2)] and freqs == [9, 1, 7, 2, 9, 9], f"merges {found}, freqs {freqs}"
    assert words == [[256], [2, 256], [], [257], [1], [2]], f"found {words}"
    for words in ([], [[]], [[7], [], [7]]):
        same_merges(words, [5] * len(words), 3, "no pairs")


def check_worked_example(points=2):
    """By hand: hug 10, pug 5, pun 12, bun 4, hugs 5 times. The merges are u+g, u+n, h+ug, p+un.

    A pair counts as often as the WORD occurs, not once a word.

    counts[pair] += freq, where freq is that of the word in which the pair stands."""
    words = [list(word.encode()) for word in HUGS]
    found = learn_merges(words, list(HUGS.values()), 4)
    assert found == HUG_MERGES, f"found {found}, expected {HUG_MERGES}: u+g, u+n, h+ug, p+un"


def check_words_are_rewritten(points=1):
    """learn_merges leaves in the list `words` what training has made of its rows.

    The caller has no other way to see them: the list that was given must change, not a copy of it.

    words[:] = rows puts new rows into the given list; words = rows does not."""
    words = [list(word.encode()) for word in HUGS]
    learn_merges(words, list(HUGS.values()), 4)
    want = [[258], [ord("p"), 256], [259], [ord("b"), 257], [258, ord("s")]]
    assert words == want, f"words are {words}, expected {want}"
    words = [[1, 2], [1, 2]]
    assert learn_merges(words, [5, 5], 0) == [] and words == [[1, 2], [1, 2]], "words changed without a merge"


def check_rare_pairs_are_left(points=2):
    """A pair that counts less than MIN_COUNT is not merged, and the tokenizer is smaller than asked for.

    Training ends when the best pair is too rare, or when n_merges pairs are merged.

    Compare the best count with MIN_COUNT before the merge; `<` and not `<=`."""
    assert learn_merges([[1, 2, 3]], [1], 5) == [] and learn_merges([[1, 2], [1, 2]], [1, 1], 5) == [(1, 2)]
    tok = train_bpe(["ab ab abc"], 300)
    assert tokens_of(tok) == [b"ab", b" ab"] and tok.n_vocab == 260, f"{tokens_of(tok)}, {tok.n_vocab} ids"
    assert learn_merges([[1, 2, 1, 2, 1, 2]], [9], 1) == [(1, 2)], "more merges than asked for"


def check_words_keep_their_borders(points=1):
    """Every text is first cut by PATTERN; a space goes with the word behind it. No merge crosses a border.

    A learnt token can hold a space at its beginning only, and no letter beside a mark.

    re.findall(PATTERN, text) gives the words of a text with their spaces."""
    tokens = tokens_of(train_bpe(["Anna met Ben. Anna met Ben. " * 9], 400))
    assert b" met" in tokens and b" Ben" in tokens and b" Anna" in tokens, f"tokens {tokens}"
    assert all(b" " not in token[1:] for token in tokens) and b"n." not in tokens, f"tokens {tokens}"


def check_texts_stay_apart(points=2):
    """Words are cut in each text by itself; texts is any iterable, and is read once.

    Joined texts make words that are in no text. A generator that was looked at once is empty.

    for text in texts: ... one loop that does all: no join, no len(texts), no check of all texts before."""
    texts = ["low", "er", "low", "er", "new", "low", "er ", "low", "new", "12", "34", "?", "!", "?", "!"]
    same_tokenizer(texts, 300, "a list of short texts")
    before = list(texts)
    for what, given in (("a tuple", tuple(texts)), ("a generator", (text for text in texts)),
                        ("an iterator", iter(texts)), ("a Counter", Counter(texts).elements())):
        same_tokenizer(texts, 300, what, given)
    assert texts == before, "train_bpe has changed its list of texts"
    assert train_bpe(iter([]), 300).n_vocab == 258, "no texts: expected 258 ids"


def check_ids(points=2):
    """0 to 255 are the bytes, then the merges in the order of learning, then <|end|>, then <|sep|>.

    A tokenizer of n_vocab ids has n_vocab - 258 merges, if there are so many pairs.

    Both names are keys of `specials`; their ids are the number of ranks, and one more."""
    tok = train_bpe(["low low low lower lowest"], 300)
    assert [tok.ranks[bytes([b])] for b in range(256)] == list(range(256)), "the id of a byte is its value"
    assert tokens_of(tok) == [b"lo", b"low", b" low", b" lowe"], f"tokens {tokens_of(tok)}"
    assert (tok.end, tok.sep, tok.n_vocab) == (260, 261, 262), f"found {tok}, sep {tok.sep}"
    assert tok.specials == {END: 260, SEP: 261}, f"specials {tok.specials}"
    assert tok.pattern == PATTERN and tok.name == "bpe", f"name {tok.name!r}, pattern {tok.pattern!r}"
    for n_vocab in range(258, 262):
        found = train_bpe(["low low low lower lowest"], n_vocab)
        assert tokens_of(found) == tokens_of(tok)[:n_vocab - 258], f"of {n_vocab} ids: {tokens_of(found)}"
        assert found.n_vocab == n_vocab, f"{n_vocab} ids asked for, got {found.n_vocab}"


def check_round_trip(points=1):
    """Bytes can spell everything, also what was never seen: encode then decode gives the text back.

    The token of a merge is the bytes of its left id, then those of its right id.

    tokens.append(tokens[left] + tokens[right]); a word is the list of its UTF-8 bytes."""
    tok = train_bpe(["naïve café, naïve café"], 280)
    for text in ("naïve café 日本語 🙂\n\tx", "<|end|>", ""):
        assert tok.decode(tok.encode(text)) == text, f"{text!r} does not come back"
    assert "é".encode() in tokens_of(train_bpe(["éa éb éc"], 300)), "é, two bytes, is no token"
    assert train_bpe(["half a character \ud83d half"], 300).decode([104]) == "h"


def check_bad_arguments(points=1):
    """train_bpe refuses, with a ValueError, fewer than 258 ids and one str in place of a list of texts.

    A str is an iterable of str as well: its letters would be taken for texts.

    isinstance(texts, str), and n_vocab < 258, before anything else."""
    for arguments in ((["abc"], 257), ([], 257), (["abc"], 0), ("abc abc", 300), ("", 300)):
        try:
            train_bpe(*arguments)
        except ValueError:
            continue
        raise AssertionError(f"train_bpe{arguments} gave no ValueError")
    assert train_bpe(["abab abab"], 258).n_vocab == 258 and train_bpe([], 300).n_vocab == 258


def check_random_texts(points=3):
    """Random texts of letters, accents, digits, marks, blanks, names of special tokens, halves of characters.

    Every word counts as often as it occurs in all texts. Its ids are the bytes of UTF-8.

    Counter of all words of all texts; word.encode("utf-8", "replace"); nothing is stripped or lowered."""
    same_tokenizer([" ? ? ?", " \ud83d \ud83d", " ! ! ! !"], 300, "? three times, half a character twice")
    same_tokenizer([part for part in PARTS + BLANK for _ in range(3)], 600, "each of PARTS three times")
    rng = random.Random(f"{SEED} texts")
    for n in range(25):
        parts = rng.sample(PARTS, rng.randint(1, 8)) if n % 5 else BLANK
        texts = ["".join(rng.choices(parts, k=rng.randint(0, 12))) for _ in range(rng.randint(0, 9))]
        same_tokenizer(texts + texts[:2], rng.choice([258, 259, 263, 280, 400]), f"texts of {parts}")


def check_equal_counts(points=2):
    """Among pairs that count the same, the smaller left id is merged, then the smaller right id.

    Whatever comes first in the text or in a dict: another order of the texts must give the same tokenizer.

    The smallest (-count, left, right) is the best pair; a heap of such tuples finds it."""
    want = [(4, 6), (4, 9), (8, 3)]
    for words in ([[8, 3], [4, 9], [4, 6]], [[4, 6], [8, 3], [4, 9]], [[4, 9], [4, 6], [8, 3]]):
        found = learn_merges(words, [5, 5, 5], 3)
        assert found == want, f"merges {found}, expected {want}"
    texts = ["to be or not", "to be a bee"]
    assert train_bpe(texts, 300).hash == train_bpe(texts[::-1], 300).hash, "another order, another tokenizer"
    for n in range(5):
        same_merges(random_words(20, 9, f"ties {n}"), [1] * 20, 40, "all words occur once")


def check_counts_stay_right(points=3):
    """Random words: every merge takes occurrences away from the pairs beside it, and brings new ones.

    Left and right neighbour of every merged place, with the frequency of its word. Count again and compare.

    Take all pairs of a word out of the counts before a merge, and put all pairs of the new word in."""
    for n in range(8):
        freqs = [1 + i * (n + 3) % 7 for i in range(40)]
        same_merges(random_words(40, 2 + n, f"counts {n}"), freqs, 30, f"random words {n}")
    same_merges([[1, 1, 1], [2, 3]], [4, 5], 3, "1 1 1 holds 1 1 at two places")


def check_runs_and_odd_words(points=2):
    """Long runs of one id, empty and equal words, the same list twice, frequencies of 0 and up to 2 ** 50.

    A word of frequency 0 is rewritten like the others. A pair counts at overlapping places, too.

    No dict of words (equal ones would be one), no int32, no floats, no change of a row that stands twice."""
    rng = random.Random(f"{SEED} odd")
    same_merges([[1] * 37, [1, 1, 1], [1] * 8 + [2] + [1] * 5], [2, 5, 1], 12, "long runs")
    same_merges([[1, 1, 1], [1, 1]], [1, 0], 3, "a word that occurs once")
    same_merges([[1, 2]] * 9 + [[3, 4]] * 10, [2 ** 50] * 18 + [1], 2, "9 * 2 ** 50, and 1 more")
    for n in range(60):
        words = [[rng.choice([0, 1, 1, 255, 7]) for _ in range(rng.choice([0, 1, 2, 3, 5, 9, 25]))]
                 for _ in range(rng.randint(1, 9))]
        words += [words[0], list(words[-1])][:rng.randint(0, 2)]
        sizes = rng.choice([[0, 1, 2, 3], [0, 0, 1, 1, 2, 3, 2 ** 40, 2 ** 40 + 1], [2 ** 50 - 1, 2 ** 50]])
        freqs = [rng.choice(sizes) for _ in words]
        same_merges(words, freqs, rng.choice([0, 1, 4, 50]), "random words")


def check_many_merges(points=1):
    """A thousand merges: ids above 1,024 are no different from small ones.

    A pair packed into one number needs room for both ids.

    Tuples (left, right) need no packing; otherwise left * 2 ** 32 + right."""
    pairs = [[left, 100 + right] for left in range(32) for right in range(32)]
    words = pairs + [pairs[k] + pairs[k + 1] for k in range(900, 1000, 2)]
    freqs = [30000 - 20 * k for k in range(1024)] + [2] * 50      # merged in this order, the long ones last
    found = learn_merges([list(word) for word in words], freqs, 1100)
    want = [tuple(pair) for pair in pairs] + [(256 + k, 257 + k) for k in range(900, 1000, 2)]
    same_lists(found, want, "merge")


def check_speed(points=2):
    """100 merges take less time than 40 counts of all pairs.

    Recounting after every merge takes time merges x corpus. Touch only the words that hold the merged pair.

    A dict pair -> the words that hold it; a merge changes these, and the counts of their pairs."""
    words = random_words(4000, 60, "speed")
    begin = time.process_time()
    for _ in range(5):
        counts = {}
        for word in words:
            for pair in zip(word, word[1:]):
                counts[pair] = counts.get(pair, 0) + 1
    recount = (time.process_time() - begin) / 5
    begin = time.process_time()
    assert len(learn_merges(words, [2] * 4000, 100)) == 100, "expected 100 merges"
    ratio = (time.process_time() - begin) / recount
    assert ratio < 40, f"100 merges take as long as {ratio:.0f} counts of all pairs, expected less than 40"


def check_the_tokenizer_of_the_course(points=1):
    """All of it together: the course's tokenizer must have the hash for which the teacher's cache was made.

    The other checks look at the parts; if they pass and this one fails, look at ties and at long texts.

    Compare tokens with those of recount_merges in course/checks/1-bpe.py, and find the first that differs."""
    from data.documents import course_tokenizer
    header = Path(data.tokenizer.__file__).parent / "teacher" / "header.json"
    want, tok = json.loads(header.read_text(encoding="utf-8"))["tokenizer"], course_tokenizer("world", 1024)
    assert tok.hash == want, f"hash {tok.hash} with {tok.n_vocab} ids, expected {want}"
