"""Byte-level byte pair encoding (BPE), trained from scratch; tiktoken encodes with it.

It starts from the 256 bytes and learns merges: the two neighbouring tokens that occur most often in the
corpus become one new token, until the vocabulary is as large as asked for. PATTERN cuts a text into words
before, and no merge crosses the border of a word.

Ids: 0-255 are the bytes, then one id for each merge in the order of learning, then the two special tokens
`<|end|>` (end of a document) and `<|sep|>` (between text and annotation).
"""

import base64
import contextlib
import hashlib
import heapq
import importlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import tiktoken

from data.files import read_json, write_json, write_text

END, SEP = "<|end|>", "<|sep|>"
BORDER, GONE = -1, -2   # in place of an id: the end of a word, the right half of a merged pair
MIN_COUNT = 2       # a pair that occurs once saves one token in the whole corpus, and would hardly be trained
# Python's `re` cuts words in training, tiktoken's Rust engine in encoding. Their \w, \d and \s differ, so the
# pattern names its characters: ASCII letters, then blocks of Unicode that hold scripts. Runs are bounded.
LETTERS = "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u1fff\u2c00-\u2dff\u3040-\U0010ffff"
BLANKS = " \t\r\v\f"
PATTERN = (
    f" ?[{LETTERS}]{{1,48}}"                        # letters: "Anna", " took"
    "| ?[0-9]{1,3}"                                 # at most three digits, or every year becomes a token
    f"| ?[^{LETTERS}0-9{BLANKS}\n]{{1,16}}"         # all other signs: ",", " (", "?!"
    "|\n"                                           # one newline, one token
    f"|[{BLANKS}]{{1,16}}"                          # blanks that lead no word: indentation, the \r of \r\n
)
# tiktoken panics where a regular expression steps back a million times, as GPT-2's does over blanks: it gets
# parts. They end where every known pattern cuts, behind a letter before white space, if there is a place.
PARTS = re.compile(r"(?s).{1,100000}(?:(?<=\w)(?=[ \n])|\Z)|.{1,100000}")


def checked_ids(ids, n_vocab):
    """Ids (list, array or 1-D tensor of int) -> list of int; ValueError for one outside the vocabulary."""
    ids = [int(i) for i in ids]
    if outside := [i for i in ids if not 0 <= i < n_vocab]:
        raise ValueError(f"token id {outside[0]} is outside the vocabulary, 0 to {n_vocab - 1}")
    return ids


class Tokenizer:
    """A tiktoken encoding. name: "bpe" if it was trained here; n_vocab: number of ids, special ones included;
    end, sep: ids of the special tokens, which `encode` never gives; hash: 16 hex digits that identify it."""

    def __init__(self, name, ranks, pattern, specials, end, sep):
        """ranks: {bytes: id}; pattern: str; specials: {str: id}; end, sep: names of two of the specials."""
        self.card = {"name": name, "pattern": pattern, "specials": specials, "end": end, "sep": sep}
        self.name, self.pattern, self.ranks, self.specials = name, pattern, ranks, specials
        self.end, self.sep = specials[end], specials[sep]
        self.ends = frozenset({self.end})               # a tokenizer of transformers may have several
        self.n_vocab = len(ranks) + len(specials)
        if missing := [b for b in range(256) if bytes([b]) not in ranks]:
            raise ValueError(f"{len(missing)} of 256 bytes have no token, 0x{missing[0]:02x} is the first; "
                             "take a tokenizer that encodes any text")
        if end == sep:
            raise ValueError(f"{end} ends documents and separates annotations; expected two tokens")
        self.hash = tokenizer_hash(ranks, self.card)
        # explicit_n_vocab: tiktoken checks that the ids are 0 .. n_vocab - 1 without a gap
        self._encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks,
                                           special_tokens=specials, explicit_n_vocab=self.n_vocab)

    def __str__(self):
        return f"{self.n_vocab} tokens, end {self.card['end']}, separator {self.card['sep']} ({self.hash})"

    def encode(self, text):
        """str -> list of int. A special token spelled in the text, "<|end|>", is encoded as ordinary text."""
        return [i for part in PARTS.findall(text) for i in self._encoding.encode_ordinary(part)]

    def encode_batch(self, texts):
        """Iterable of str -> list of lists of int. tiktoken's threads would only slow short texts down."""
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        """Ids (list, array or 1-D tensor of int) -> str; half a character becomes U+FFFD, a special id its
        name. ValueError for an id outside the vocabulary."""
        return self._encoding.decode(checked_ids(ids, self.n_vocab))

    def save(self, folder):
        """Write tokenizer.tiktoken (a line a token: base64, space, id) and tokenizer.json (the rest)."""
        by_id = sorted(self.ranks, key=self.ranks.get)
        lines = [f"{base64.b64encode(token).decode()} {self.ranks[token]}\n" for token in by_id]
        write_text(Path(folder) / "tokenizer.tiktoken", "".join(lines))
        write_json(Path(folder) / "tokenizer.json", self.card | {"hash": self.hash})

    @classmethod
    def load(cls, folder):
        """Read what `save` wrote, or HFTokenizer.save: an adapters.hf.HFTokenizer then. OSError for a missing
        file, ValueError of one line for a damaged one."""
        path, remedy = Path(folder) / "tokenizer.tiktoken", "restore it, or make the tokenizer again"
        if not path.exists() and path.with_name("tokenizer_config.json").exists():
            return importlib.import_module("adapters.hf").HFTokenizer.load(folder)
        card, ranks = read_json(path.with_suffix(".json"), remedy, "specials", "hash"), {}
        with contextlib.suppress(ValueError):           # no list of base64 tokens and ids: the hash will tell
            pairs = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
            ranks = {base64.b64decode(token, validate=True): int(i) for token, i in pairs}
        found, saved = tokenizer_hash(ranks, card), card.pop("hash")
        if found != saved:
            raise ValueError(f"{path}: hash {found}, but {saved} was saved; {remedy}")
        student = path.with_name("config.json")                 # beside it, if it is a student's
        extra = json.loads(student.read_bytes()).get("extra", {}) if student.exists() else {}
        if extra.get("tokenizer", saved) != saved:
            raise ValueError(f"{path}: not the tokenizer with which this student has learnt; {remedy}")
        return cls(ranks=ranks, **card)


def tokenizer_hash(ranks, card):
    """16 hex digits over {bytes: id}, the pattern and the special tokens of a card, in the order of ids, but
    end and separator come first; the length of each part goes in as well."""
    digest, end, sep = hashlib.sha256(), card["end"], card["sep"]
    for table in (ranks, {card["pattern"]: 0}, card["specials"]):
        digest.update(b"%d;" % len(table))
        for key, i in sorted(table.items(), key=lambda item: (item[0] != end, item[0] != sep, item[1])):
            key = key if isinstance(key, bytes) else key.encode("utf-8", "surrogatepass")
            digest.update(b"%d:%d:%s" % (i, len(key), key))
    return digest.hexdigest()[:16]


def train_bpe(texts, n_vocab):
    """Learn a byte-level BPE with n_vocab ids: 256 bytes, n_vocab - 258 merges, 2 special tokens.

    texts: iterable of str, in any order, read once; not one str, which is a ValueError like n_vocab < 258.
    Words are cut in each text by itself; half a character (a lone surrogate) becomes "?". There are fewer ids
    if too few pairs occur MIN_COUNT times. Of equally frequent pairs the one with the smaller ids, left then
    right, is merged."""
    if n_vocab < 258:
        raise ValueError(f"n_vocab is {n_vocab}, but 256 bytes and 2 special tokens need at least 258")
    if isinstance(texts, str):
        raise ValueError("train_bpe takes a list of texts, not one string; try train_bpe([text], n_vocab)")
    counts = Counter(match.group() for text in texts for match in re.finditer(PATTERN, text))
    words = [list(word.encode("utf-8", "replace")) for word in counts]      # ids of every distinct word
    tokens = [bytes([b]) for b in range(256)]                               # id -> the bytes it stands for
    for left, right in learn_merges(words, list(counts.values()), n_vocab - 258):
        tokens.append(tokens[left] + tokens[right])
    ranks = {token: i for i, token in enumerate(tokens)}
    return Tokenizer("bpe", ranks, PATTERN, {END: len(ranks), SEP: len(ranks) + 1}, END, SEP)


def learn_merges(words, freqs, n_merges):
    """The merges, a list of (left id, right id), n_merges or fewer; merge number k makes token 256 + k. The
    list `words` is rewritten: it ends with what the merges make of its rows.

    words: lists of ids 0 to 255, one for each word; rows may be empty, equal, or the same list. freqs: how
    often each occurs, from 0 on; it is not changed. A pair counts at every place where it stands, twice in
    1 1 1; of overlapping places the first is merged. Below a count of MIN_COUNT nothing is merged.

    All ids stand in one row of slots, each linked to its neighbours. A merge touches only the slots of its
    pair. It makes new pairs, and of an old pair it can only take: the heap holds what a pair counted when it
    was last looked at."""
    ids = np.array([i for word in words for i in (*word, BORDER)], np.int64)               # (slots,)
    freqs = np.repeat(np.array(freqs, np.int64), [len(word) + 1 for word in words])        # of a slot's word
    before, after = (np.roll(np.arange(len(ids)), by) for by in (1, -1))                   # its neighbours
    places, heap, merges = {}, [], []               # heap: (-count, pair), the best pair comes first

    def note(slots):
        """Puts the pairs that begin in these slots into `places` and the heap; none crosses a BORDER."""
        slots = slots[(ids[slots] >= 0) & (ids[after[slots]] >= 0)]
        pairs = ids[slots] << 32 | ids[after[slots]]                    # in the order of left id, then right
        order = pairs.argsort(kind="stable")
        pairs, slots = pairs[order], slots[order]
        starts = np.flatnonzero(np.diff(pairs, prepend=-1))
        counts = np.add.reduceat(freqs[slots], starts).tolist()
        for pair, count, a, b in zip(pairs[starts].tolist(), counts, starts, [*starts[1:], None]):
            places[pair] = slots[a:b]
            heapq.heappush(heap, (-count, pair))

    note(np.arange(len(ids)))
    while heap and len(merges) < n_merges:
        negative, pair = heapq.heappop(heap)
        left, right = divmod(pair, 1 << 32)
        slots = places.pop(pair)
        slots = slots[(ids[slots] == left) & (ids[after[slots]] == right)]      # a merge may have taken some
        count = int(freqs[slots].sum())
        if count < -negative:                       # the entry is old: the pair goes back with what is left
            places[pair] = slots
            heapq.heappush(heap, (-count, pair))
            continue
        if count < MIN_COUNT:
            break
        number = np.arange(len(slots))              # of 1 1 1 1 the first and the third begin a merge
        first = np.append(True, after[slots[:-1]] != slots[1:])
        slots = slots[(number - np.maximum.accumulate(number * first)) % 2 == 0]
        gone, new = after[slots], 256 + len(merges)
        ids[slots], ids[gone], after[slots] = new, GONE, after[gone]
        before[after[slots]] = slots
        note(np.concatenate([slots, before[slots][ids[before[slots]] != new]]))
        merges.append((left, right))
    ids = ids[ids != GONE]
    words[:] = [part[:-1].tolist() for part in np.split(ids, np.flatnonzero(ids == BORDER) + 1)[:-1]]
    return merges
