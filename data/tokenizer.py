"""
Byte-level byte pair encoding (BPE), trained from scratch and encoded by tiktoken.

A tokenizer turns text into whole numbers (ids) and back. This one starts from the 256 possible bytes, so that there is
no unknown character, and then learns merges: the two neighbouring tokens met most often in the corpus become one new
token, again and again, until the vocabulary is as large as asked for. A text is first cut into words by PATTERN, and no
merge crosses the border of a word.

    from data.tokenizer import Tokenizer, get_tokenizer, train_bpe
    tok = train_bpe(["low lower lowest"] * 100, n_vocab=300)
    tok.encode("slow")                  # ordinary text -> list of int
    tok.decode(tok.encode("slow"))      # -> "slow"
    tok.save("out/tokenizer")           # tokenizer.tiktoken and tokenizer.json
    tok = Tokenizer.load("out/tokenizer")
    tok = get_tokenizer("gpt2")         # a published one; tiktoken downloads it once and keeps it

Ids: 0-255 are the bytes themselves, then one id a merge in the order of learning, then the two special tokens,
`<|end|>` (a document ends here) and `<|sep|>` (text and annotation part here). Training in Python takes about a second
for a megabyte; encoding is left to tiktoken, which applies the same merges in Rust.
"""
import base64
import hashlib
import heapq
import json
import os
import re
from collections import Counter, defaultdict
from itertools import pairwise

import tiktoken
from tqdm import tqdm

from data.files import brief, read_json, sealed

END, SEP = "<|end|>", "<|sep|>"

# Python's `re` cuts the words in training and tiktoken's Rust engine cuts them in encoding, so both must cut alike. The
# classes \w, \d and \s do not mean the same in the two (combining marks, fractions and the separators \x1c-\x1f differ,
# and every Unicode version moves more), so the pattern names its characters. LETTERS: ASCII letters, then whole blocks of
# Unicode that hold scripts. Left out between them: Latin-1 signs, quotes, dashes, arrows, mathematics, CJK punctuation.
LETTERS = "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u1fff\u2c00-\u2dff\u3040-\U0010ffff"
BLANKS = " \t\r\v\f"
# Runs are bounded: a script without spaces, or a million times the letter a, would otherwise be one word, and the time to
# merge inside a word grows with the square of its length. One space before a word belongs to it. A newline stands alone.
PATTERN = (
    f" ?[{LETTERS}]{{1,48}}"                        # letters: "Anna", " took"
    "| ?[0-9]{1,3}"                                 # digits, at most three, or every year of history becomes a token
    f"| ?[^{LETTERS}0-9{BLANKS}\n]{{1,16}}"         # all other signs: ",", " (", "?!"
    "|\n"                                           # one newline, one token
    f"|[{BLANKS}]{{1,16}}"                          # blanks that lead no word: indentation, the \r of \r\n
)

MIN_COUNT = 2  # a pair met once saves a single token in the whole corpus, and its embedding would be trained once


class Tokenizer:
    """
    A tiktoken encoding with two special tokens and a hash that tells it from every other.

    name     "bpe" for a tokenizer trained here, otherwise a name of tiktoken's such as "gpt2"
    n_vocab  number of ids, special tokens included; every id in range(n_vocab) can be decoded
    end, sep ids of the end of a document and of the separator
    hash     16 hex digits of the sha256 over tokens, pattern and special tokens; tells data made with another tokenizer

    Special ids enter a token row as numbers only. `encode` never gives them, whatever the text says.
    """

    def __init__(self, name, ranks, pattern, specials, end, sep):
        """ranks: {bytes: id}; pattern: str; specials: {str: id}; end, sep: the names of two of the specials."""
        self.name, self.pattern, self.ranks, self.specials = name, pattern, ranks, specials
        self.end, self.sep = specials[end], specials[sep]
        self.n_vocab = len(ranks) + len(specials)
        self.hash = _hash(ranks, pattern, specials)
        # explicit_n_vocab makes tiktoken check that the ids are 0 .. n_vocab - 1 without a gap
        self._encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials,
                                           explicit_n_vocab=self.n_vocab)

    def encode(self, text):
        """str -> list of int. A special token spelled in the text, "<|end|>", comes out as ordinary signs and letters."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts):
        """Iterable of str -> list of lists of int, in the same order."""
        # one call after the other on purpose: for sentences and paragraphs tiktoken's thread pool, encode_ordinary_batch,
        # costs two to ten times what the encoding itself does
        return [self._encoding.encode_ordinary(text) for text in texts]

    def encode_bytes(self, data):
        """
        bytes -> list of int, for data that need not be UTF-8: `decode_bytes(encode_bytes(data)) == data`, always.

        Stretches of valid UTF-8 are encoded as text. A byte that belongs to no character becomes the token of that byte.
        """
        # surrogateescape turns the stray byte b into the character U+DC00 + b, which no valid UTF-8 contains
        ids = []
        for run in re.findall("[\udc80-\udcff]|[^\udc80-\udcff]+", data.decode("utf-8", "surrogateescape")):
            stray = "\udc80" <= run <= "\udcff"
            ids += [self.ranks[bytes([ord(run) - 0xDC00])]] if stray else self.encode(run)
        return ids

    def decode_bytes(self, ids):
        """Ids (list, array or 1-D tensor of int) -> bytes. ValueError for an id outside the vocabulary."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.n_vocab:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.name!r}, 0 to {self.n_vocab - 1}")
        return self._encoding.decode_bytes(ids)

    def decode(self, ids):
        """Ids -> str. Half a character becomes U+FFFD, special ids show their names. ValueError as in decode_bytes."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, folder):
        """Write tokenizer.tiktoken (a line a token: base64, space, id) and tokenizer.json (all else) into the folder."""
        os.makedirs(folder, exist_ok=True)
        by_id = sorted(self.ranks.items(), key=lambda item: item[1])
        lines = [f"{base64.b64encode(token).decode('ascii')} {i}\n" for token, i in by_id]
        names = {i: s for s, i in self.specials.items()}
        card = {"name": self.name, "pattern": self.pattern, "specials": self.specials,
                "end": names[self.end], "sep": names[self.sep], "hash": self.hash}
        _write(os.path.join(folder, "tokenizer.tiktoken"), "".join(lines))
        _write(os.path.join(folder, "tokenizer.json"), json.dumps(sealed(card), indent=1) + "\n")

    @classmethod
    def load(cls, folder):
        """Read what `save` wrote. ValueError of one line: a file is missing or unreadable, or the hash is another."""
        ranks_file, card_file = (os.path.join(folder, f"tokenizer.{end}") for end in ("tiktoken", "json"))
        for path in (ranks_file, card_file):
            if not os.path.isfile(path):
                raise ValueError(f"{path}: no such file; expected a folder written by Tokenizer.save")
        card = read_json(card_file, "not the file that Tokenizer.save writes; restore it or make the tokenizer again")
        try:
            name, pattern, specials, end, sep, saved = (
                card[key] for key in ("name", "pattern", "specials", "end", "sep", "hash"))
            specials = {str(s): int(i) for s, i in specials.items()}
            _ = specials[end], specials[sep]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{card_file}: not the file that Tokenizer.save writes ({brief(error)})") from None
        try:
            with open(ranks_file, encoding="utf-8") as f:
                pairs = [line.split() for line in f if line.strip()]
            ranks = {base64.b64decode(token, validate=True): int(i) for token, i in pairs}
        except ValueError as error:
            raise ValueError(f"{ranks_file}: not a list of base64 tokens and ids ({brief(error)})") from None
        found = _hash(ranks, pattern, specials)
        if found != saved:
            raise ValueError(f"{ranks_file}: its hash with tokenizer.json is {found}, but {saved} was saved; one of the "
                             "two files is damaged, restore both or make the tokenizer again")
        return cls(name, ranks, pattern, specials, end, sep)


def _hash(ranks, pattern, specials):
    """16 hex digits over {bytes: id}, str, {str: id}; each part goes in with its length, so none poses as another."""
    digest = hashlib.sha256()
    for table in (ranks, {pattern: 0}, specials):
        digest.update(b"%d;" % len(table))
        for key, i in sorted(table.items(), key=lambda item: item[1]):
            key = key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogatepass")
            digest.update(b"%d:%d:%s" % (i, len(key), key))
    return digest.hexdigest()[:16]


def _write(path, text):
    """Write a text file beside its place and rename it: a crash leaves the old file or the new one, never half of one."""
    with open(path + ".tmp", "w", encoding="utf-8", newline="\n") as f:
        f.write(text)
    os.replace(path + ".tmp", path)


# ---------------------------------------------------------------------------------------------------------------------
# training

def train_bpe(texts, n_vocab):
    """
    Learn a byte-level BPE with n_vocab ids: 256 bytes, n_vocab - 258 merges, 2 special tokens.

    texts: iterable of str; n_vocab: int of at least 258. The tokenizer is smaller where the corpus has fewer pairs that
    occur MIN_COUNT times. Only how often each word occurs matters, so the order of the texts does not. Among pairs met
    equally often the one with the smaller ids, left then right, is merged, that is the one made of older tokens: the same
    corpus gives the same tokenizer everywhere. ValueError for a smaller n_vocab, or one str in place of the list.
    """
    if n_vocab < 258:
        raise ValueError(f"n_vocab is {n_vocab}, but 256 bytes and 2 special tokens need at least 258")
    if isinstance(texts, str):
        raise ValueError("train_bpe takes a list of texts, not one string; try train_bpe([text], n_vocab)")
    counts = Counter()
    for text in texts:
        counts.update(match.group() for match in re.finditer(PATTERN, text))
    words = [list(word.encode("utf-8", "replace")) for word in counts]  # ids of every word type; bytes at first
    tokens = [bytes([b]) for b in range(256)]                           # id -> the bytes that it stands for
    for left, right in learn_merges(words, list(counts.values()), n_vocab - 258):
        tokens.append(tokens[left] + tokens[right])
    ranks = {token: i for i, token in enumerate(tokens)}
    return Tokenizer("bpe", ranks, PATTERN, {END: len(ranks), SEP: len(ranks) + 1}, END, SEP)


def learn_merges(words, freqs, n_merges):
    """
    The merges, a list of (left id, right id); merge number k makes the token 256 + k. `words` is rewritten in place.

    words: list of lists of ids, one a word type; freqs: how often each occurs. Recounting all pairs after every merge
    would take time merges x corpus. Two tables make it fast: the count of every pair, and for every pair the words that
    hold it, so that a merge touches these words alone. The best pair comes from a heap.
    """
    pair_counts, holders = Counter(), defaultdict(set)
    for w, (word, freq) in enumerate(zip(words, freqs)):
        for pair in pairwise(word):
            pair_counts[pair] += freq
            holders[pair].add(w)
    heap = [(-count, pair) for pair, count in pair_counts.items()]      # smallest first: largest count, then smallest ids
    heapq.heapify(heap)
    merges = []
    progress = tqdm(total=n_merges, desc="merges", disable=None, leave=False)
    while heap and len(merges) < n_merges:
        negative, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count != -negative:
            # The entry is old: a merge since then took some of the pair's occurrences. Counts of pairs in the heap only
            # fall, so an old entry comes up too early, never too late, and goes back to where it belongs.
            if count:
                heapq.heappush(heap, (-count, pair))
            continue
        if count < MIN_COUNT:
            break
        new, changes = 256 + len(merges), Counter()
        for w in holders.pop(pair):                 # some have lost the pair since; merging does nothing to them
            merged = merge(words[w], pair, new)
            for old in pairwise(words[w]):
                changes[old] -= freqs[w]
            for fresh in pairwise(merged):
                changes[fresh] += freqs[w]
                holders[fresh].add(w)
            words[w] = merged
        for changed, change in changes.items():
            pair_counts[changed] += change
            if change > 0:                          # only pairs with the new token gain
                heapq.heappush(heap, (-pair_counts[changed], changed))
        merges.append(pair)
        progress.update()
    progress.close()
    return merges


def merge(ids, pair, new):
    """
    The ids with every occurrence of the pair replaced, from left to right.

    >>> merge([1, 1, 1, 2], (1, 1), 9)
    [9, 1, 2]
    """
    out, i = [], 0
    while i < len(ids):
        if ids[i] == pair[0] and i + 1 < len(ids) and ids[i + 1] == pair[1]:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


# ---------------------------------------------------------------------------------------------------------------------
# published tokenizers

def get_tokenizer(name):
    """
    A published tiktoken encoding, "gpt2" or "cl100k_base" for instance, as a Tokenizer: its own end, and `<|sep|>` added.

    The first use downloads the merges; the variable TIKTOKEN_CACHE_DIR names the folder that keeps them. ValueError of
    one line for a name that tiktoken does not know, and where the download fails.
    """
    if name not in tiktoken.list_encoding_names():
        raise ValueError(f"unknown tokenizer {name!r}; known: {', '.join(sorted(tiktoken.list_encoding_names()))}")
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: what arrived has the wrong hash
        raise ValueError(f"tokenizer {name!r} could not be downloaded ({type(error).__name__}); connect once, or set "
                         "TIKTOKEN_CACHE_DIR to a folder that has it, or use train_bpe, which needs no network") from None
    return _with_separator(name, encoding)


def _with_separator(name, encoding):
    """tiktoken.Encoding -> Tokenizer with one more id. Gaps between its ids get names, so that every id can be decoded."""
    ranks, specials = encoding._mergeable_ranks, dict(encoding._special_tokens)
    used = {*ranks.values(), *specials.values()}
    for i in range(encoding.max_token_value + 1):
        if i not in used:
            specials[f"<|unused {i}|>"] = i
    specials[SEP] = encoding.max_token_value + 1
    return Tokenizer(name, ranks, encoding._pat_str, specials, "<|endoftext|>", SEP)
