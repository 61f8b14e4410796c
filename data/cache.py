"""The teacher's cache: documents, and for every token that the teacher drew the set of tokens from which it
was drawn, with log-probabilities. Made once (data/cache_tools.py), memory-mapped by every student.

Ragged rows in flat arrays, and a header in JSON:

    tokens.bin     uint16, uint32 if n_vocab > 65536    the tokens of all documents
    documents.bin  uint32 or uint64, documents + 1      document i is tokens[documents[i] : documents[i + 1]]
    roles.bin      uint8                                role of a token: an index into the header's "roles"
    counts.bin     uint8, uint16 if k_cap > 255         size of a drawn token's set; 0: given, a hard target
    ids.bin        as tokens.bin                        the sets, one after another
    logprobs.bin   float16                              the teacher's log-probabilities of these ids
    header.json    written last: a folder without it is no cache

Shapes: B documents, T tokens of a document, K largest set of a batch, M tokens in all sets of a document.
"""

import copy
from pathlib import Path

import numpy as np
import torch

from data.files import hash_of, read_json, sha256_of

FORMAT = "nanoreader teacher cache 2"
MASKED = -1e30      # an absent log-probability: exp(MASKED) is 0, and so is 0 * MASKED, while 0 * -inf is NaN
AGAIN = "make the cache again"
ARRAYS = ("tokens", "documents", "roles", "counts", "ids", "logprobs")


def read_header(folder):
    """The header of a cache as a dict; ValueError of one line if the folder holds none, or a foreign one."""
    path = Path(folder) / "header.json"
    if not path.exists():
        raise ValueError(f"{folder}: no teacher cache here, header.json is written last and missing; {AGAIN}")
    names = "n_vocab", "tokenizer", "p", "roles", "arrays"
    header = read_json(path, f"expected the header of a teacher cache: {AGAIN}", *names)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path}: format {header.get('format')!r:.60}, expected {FORMAT!r}; {AGAIN}")
    return header


def cache_hash(folder, p, roles):
    """A hash of a whole cache; ValueError as of read_header, where its sets hold less mass than p, and where
    its role numbers are not those of `roles`."""
    header = read_header(folder)
    if p > header["p"]:
        raise ValueError(f"--p={p}, but the sets of {folder} hold {header['p']}; expected at most that")
    if header["roles"] != list(roles):
        raise ValueError(f"{folder}: roles {header['roles']!s:.60}, expected {list(roles)}; {AGAIN}")
    return hash_of(Path(folder) / "header.json")


def open_cache(folder, tokenizer):
    """A teacher's cache -> (the part to learn from, the last tenth to be tested on); ValueError as of
    TeacherCache."""
    cache = TeacherCache(folder, tokenizer.n_vocab, tokenizer.hash)
    cut = len(cache) * 9 // 10
    return cache.part(0, cut), cache.part(cut, len(cache))


class TeacherCache:
    """A cache for reading. header: dict; lengths (documents,): tokens of each document. ValueError for no
    cache, damaged arrays, and where vocabulary or tokenizer are not the given ones."""

    def __init__(self, folder, n_vocab=None, tokenizer_hash=None):
        self.folder, self.header = str(folder), read_header(folder)
        made = self.header["tokenizer"], self.header["n_vocab"]
        own = tokenizer_hash or made[0], n_vocab or made[1]
        if own != made:
            raise ValueError(f"{folder}: made with tokenizer {made[0]} of {made[1]} ids, but the student has "
                             f"{own[0]} of {own[1]}; {AGAIN}, or train without arms")
        self.arrays = {name: self.open_array(name, **self.header["arrays"][name]) for name in ARRAYS}
        self.starts = np.asarray(self.arrays["documents"], dtype=np.int64)                 # (documents + 1,)
        self.lengths = np.diff(self.starts)
        kept = np.concatenate([[0], np.cumsum(self.arrays["counts"], dtype=np.int64)])     # (tokens + 1,)
        self.check(int(kept[-1]))
        self.kept_starts = kept[self.starts]                                               # (documents + 1,)

    def open_array(self, name, dtype, length, sha256):
        """One array (length,), read-only; its sha256 must be that of the header."""
        path = Path(self.folder) / f"{name}.bin"
        if sha256_of(path) != sha256:
            raise ValueError(f"{path}: not the sha256 of header.json; truncated or of another cache: {AGAIN}")
        return np.memmap(path, dtype, "r") if length else np.empty(0, dtype)   # an empty file has no map

    def check(self, kept):
        """ValueError unless the arrays fit each other and the header; kept: what `counts` sum up to."""
        a, V, R = self.arrays, self.header["n_vocab"], len(self.header["roles"])
        T, most = len(a["tokens"]), {name: a[name].max(initial=0) for name in ("tokens", "roles", "ids")}
        fits = {"tokens": most["tokens"] < V, "roles": len(a["roles"]) == T and most["roles"] < R,
                "counts": len(a["counts"]) == T, "ids": len(a["ids"]) == kept and most["ids"] < V,
                "logprobs": len(a["logprobs"]) == kept and np.all(a["logprobs"] <= 0),    # False for NaN
                "documents": [*self.starts[:1], *self.starts[-1:]] == [0, T] and np.all(self.lengths >= 0)}
        if wrong := [name for name in fits if not fits[name]]:
            raise ValueError(f"{self.folder}: {wrong[0]}.bin does not fit the header and the others; {AGAIN}")

    def __len__(self):
        return len(self.lengths)

    def part(self, begin, end):
        """Documents begin .. end - 1 alone, as another TeacherCache."""
        part = copy.copy(self)
        part.starts, part.kept_starts = self.starts[begin:end + 1], self.kept_starts[begin:end + 1]
        part.lengths = self.lengths[begin:end]
        return part

    def document(self, i):
        """tokens (T,), roles (T,), counts (T,), ids (M,), logprobs (M,) float16: views; M = counts.sum().
        IndexError for an i outside 0 .. len(self) - 1."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.folder}: document {i} of {len(self)}")
        span = slice(self.starts[i], self.starts[i + 1])
        sets = slice(self.kept_starts[i], self.kept_starts[i + 1])
        a = self.arrays
        return a["tokens"][span], a["roles"][span], a["counts"][span], a["ids"][sets], a["logprobs"][sets]

    def batch(self, indices, T=None):
        """Documents side by side, padded at the end to T tokens (None: the longest): a dict of new tensors.

        tokens, roles (B, T) long; real (B, T) bool, False for padding; ids (B, T, K) long, log_probs
        (B, T, K) float32, mask (B, T, K) bool, K the largest set of the batch, at least 1. Padding: 0, MASKED
        and False. ValueError for no document or one longer than T; IndexError as of document."""
        rows = [self.document(int(i)) for i in indices]
        longest = max(len(row[0]) for row in rows)
        T = longest if T is None else T
        if longest > T:
            raise ValueError(f"{self.folder}: a document of {longest} tokens, but T is {T}")
        B, K = len(rows), max([1] + [int(row[2].max()) for row in rows if len(row[2])])
        tokens, roles, counts = (np.zeros((B, T), np.int64) for _ in range(3))
        real, ids = np.zeros((B, T), bool), np.zeros((B, T, K), np.int64)
        log_probs = np.full((B, T, K), MASKED, np.float32)
        for b, row in enumerate(rows):
            n = len(row[0])
            tokens[b, :n], roles[b, :n], counts[b, :n], real[b, :n] = row[0], row[1], row[2], True
        mask = np.arange(K) < counts[:, :, None]                  # (B, T, K), filled in the order of the sets
        ids[mask] = np.concatenate([row[3] for row in rows])
        log_probs[mask] = np.concatenate([row[4] for row in rows])
        arrays = dict(tokens=tokens, roles=roles, real=real, ids=ids, log_probs=log_probs, mask=mask)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
