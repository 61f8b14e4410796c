"""The sparse teacher cache: documents that a teacher wrote or read, and for every token that it drew the few tokens
from which it was drawn, with their log-probabilities. Made once, memory-mapped by every student.

    writer = CacheWriter("out/cache", n_vocab=800, tokenizer_hash="1f..", p=0.8, k_cap=64, temperature=1.0,
                         teacher={"hash": "8c..", "params": 1800000}, made_by="python ...", roles=brd.ROLES)
    writer.add([5, 17, 9], [2, 3, 5], [None, (ids, log_probs), None])        # roles: indices into the names above
    writer.checkpoint(1)                                # a writer that takes this up has writer.done == 1
    writer.close()
    batch = Cache("out/cache", n_vocab=800, tokenizer_hash="1f..").batch([0, 5, 2])

Ragged rows in flat arrays, beside a header in JSON:

    tokens.bin     uint16, uint32 where n_vocab > 65536     every document's tokens, one after another
    documents.bin  uint32 or uint64, documents + 1          document i is tokens[documents[i] : documents[i + 1]]
    roles.bin      uint8                                    what a token is: an index into the header's "roles"
    counts.bin     uint8, uint16 where k_cap > 255          size of the set from which token i was drawn;
                                                            0: it was given, not drawn, and is a hard target
    ids.bin        as tokens.bin                            the sets, one after another, counts[i] of them for token i
    logprobs.bin   float16                                  the teacher's log-probabilities of these ids
    header.json    written last: a folder without it is no cache

A cache holds what the teacher did and no training weight: weights are the trainer's choice, by role. Nor is the kept
mass stored: it is the sum of exp(log-probabilities).

Shapes: B documents, T tokens of a document, K teacher tokens kept, M all those of a document.
"""

import contextlib
import hashlib
import json
import os

import numpy as np
import torch

from data.annotations import shown
from data.files import read_json, sealed, sha256_of

FORMAT = "nanoreader teacher cache 2"
# Stands where a log-probability or a logit is absent: its exp() is exactly 0, and 0 * MASKED is 0 (0 * -inf is NaN).
MASKED = -1e30
AGAIN = "make the cache again"
ARRAYS = ("tokens", "documents", "roles", "counts", "ids", "logprobs")
FIELDS = ("format", "n_vocab", "tokenizer", "p", "k_cap", "temperature", "roles", "teacher", "made_by",
          "documents", "tokens", "drawn", "kept", "arrays")


def round_down_to_half(log_probs):
    """log_probs (M,) float32 -> (M,) float16, none above its original, none above 0 or below -65504 (numpy).

    Rounding to the nearest could lift the sum of a set above 1 and push the mass left over below 0. Rounding down costs
    at most .1 % of a log-probability, and the mass that is read back is never larger than the teacher's.
    """
    exact = np.clip(np.asarray(log_probs, dtype=np.float32), np.finfo(np.float16).min, 0)
    half = exact.astype(np.float16)
    above = half > exact
    half[above] = np.nextafter(half[above], np.float16(-np.inf))
    return half


def array_types(n_vocab, k_cap, n_tokens):
    """dict of array name -> numpy dtype string, little-endian, the smallest that holds the numbers."""
    token = "<u2" if n_vocab <= 1 << 16 else "<u4"
    return {"tokens": token, "documents": "<u4" if n_tokens < 1 << 32 else "<u8", "roles": "|u1",
            "counts": "|u1" if k_cap < 1 << 8 else "<u2", "ids": token, "logprobs": "<f2"}


class CacheWriter:
    """Writes a cache, document by document; the settings go into its header.

    teacher: any JSON, what a reader should know of it; made_by: the command; roles: the names of the roles, to which
    the numbers of `add` are indices. Until close() everything stands in files NAME.part beside; an older cache in the
    folder stays whole until then. A writer that did not come to close() is continued by the next one of the same settings, from
    its last checkpoint; `done` is what that was told, 0 where there is none.
    """

    def __init__(self, folder, *, n_vocab, tokenizer_hash, p, k_cap, temperature, teacher, made_by, roles):
        if not 1 <= k_cap < 1 << 16 or len(roles) > 256:
            raise ValueError(f"k_cap={k_cap} and {len(roles)} roles; expected 1 to 65535 and at most 256")
        self.folder = str(folder)
        self.header = {"format": FORMAT, "n_vocab": n_vocab, "tokenizer": tokenizer_hash, "p": p, "k_cap": k_cap,
                       "temperature": temperature, "roles": list(roles), "teacher": teacher, "made_by": made_by}
        self.types = array_types(n_vocab, k_cap, 0)
        self.offsets, self.drawn, self.kept, self.done = [0], 0, 0, 0
        os.makedirs(self.folder, exist_ok=True)
        self.hashes = {name: hashlib.sha256() for name in ARRAYS}
        whole = self.resume()
        parts = [self.path(name) + ".part" for name in ARRAYS] + [os.path.join(self.folder, "offsets.part")]
        self.files = {name: open(path, "ab" if whole else "wb") for name, path in zip((*ARRAYS, "offsets"), parts)}

    def resume(self):
        """Goes back to the last checkpoint of a cache of these settings -> whether there is one; done: what it was told."""
        try:
            part = read_json(os.path.join(self.folder, "part.json"), "")
            if not all(type(number) is int for number in (part["drawn"], part["kept"], part["done"], *part["sizes"].values())):
                return False
            sizes, parts = part["sizes"], {name: self.path(name) + ".part" for name in ARRAYS}
            for name, path in parts.items():            # killed while the arrays were put in their place
                if not os.path.exists(path) and not os.path.exists(os.path.join(self.folder, "header.json")):
                    os.replace(self.path(name), path)
            parts["offsets"] = os.path.join(self.folder, "offsets.part")
            if part["header"] != json.loads(json.dumps(self.header)) or any(os.path.getsize(parts[n]) < sizes[n] for n in parts):
                return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        for name, path in parts.items():
            os.truncate(path, sizes[name])
        with open(parts.pop("offsets"), "rb") as file:
            offsets = np.frombuffer(file.read(), np.int64).tolist()
        found = {name: hashlib.sha256() for name in ARRAYS}
        for name, path in parts.items():
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    found[name].update(block)
        if part["arrays"] != self.checksum(found, offsets):         # damaged since
            return False
        self.hashes, self.offsets = found, [0, *offsets]
        self.drawn, self.kept, self.done = part["drawn"], part["kept"], part["done"]
        return True

    @staticmethod
    def checksum(hashes, offsets):
        """Of the arrays (their hashes so far) and of the ends of all documents."""
        return hashlib.sha256(json.dumps([[hashes[name].hexdigest() for name in ARRAYS], offsets]).encode()).hexdigest()

    def checkpoint(self, done):
        """What has been added is on the disk, and need not be made again; done: int, to know where to go on."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        part = {"header": self.header, "done": done, "drawn": self.drawn, "kept": self.kept,
                "arrays": self.checksum(self.hashes, self.offsets[1:]),
                "sizes": {name: file.tell() for name, file in self.files.items()}}
        path = os.path.join(self.folder, "part.json")
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(sealed(part), file)
        os.replace(path + ".tmp", path)

    def path(self, name):
        return os.path.join(self.folder, name + ".bin")

    def write(self, name, values):
        data = np.ascontiguousarray(values, dtype=self.types[name]).tobytes()
        self.files[name].write(data)
        self.hashes[name].update(data)

    def add(self, tokens, roles, sets):
        """One document. tokens: list of int; roles: list of int; sets: list of None (the token was given) or
        (ids (K,), log_probs (K,)), the distribution from which this token was drawn. All three have one length.

        Raises ValueError where the lengths differ, or a token, role or set does not fit the header; then nothing of
        this document is written.
        """
        n_vocab, k_cap, at = self.header["n_vocab"], self.header["k_cap"], f"document {len(self.offsets) - 1}"
        if not len(tokens) == len(roles) == len(sets):
            raise ValueError(f"{at}: {len(tokens)} tokens, {len(roles)} roles, {len(sets)} sets; expected equal numbers")
        given = (np.empty(0, np.int64), np.empty(0, np.float32))
        pairs = [given if one is None else (np.asarray(one[0]), np.asarray(one[1], np.float32)) for one in sets]
        counts = [len(ids) for ids, _ in pairs]
        if any(ids.shape != log_probs.shape or len(ids) > k_cap for ids, log_probs in pairs):
            raise ValueError(f"{at}: a set of up to {max(counts)} ids; expected at most k_cap={k_cap}, "
                             "and one log-probability for each")
        ids = np.concatenate([given[0]] + [ids for ids, _ in pairs])                     # (kept,)
        log_probs = np.concatenate([given[1]] + [log_probs for _, log_probs in pairs])   # (kept,)
        for name, values, bound in (("tokens", tokens, n_vocab), ("roles", roles, len(self.header["roles"])),
                                    ("ids of sets", ids, n_vocab)):
            if len(values) and not 0 <= np.min(values) <= np.max(values) < bound:
                raise ValueError(f"{at}: {name} {np.min(values)} to {np.max(values)}; expected 0 to {bound - 1}")
        if not ((log_probs <= 1e-4) & (log_probs > -np.inf)).all():                      # also False for NaN
            raise ValueError(f"{at}: a log-probability is NaN, above 0, or that of a token which cannot be; expected log-softmax of "
                             "the teacher's logits, and no token of probability 0")
        self.write("tokens", tokens)
        self.write("roles", roles)
        self.write("counts", counts)
        self.write("ids", ids)
        self.write("logprobs", round_down_to_half(log_probs))
        self.offsets.append(self.offsets[-1] + len(tokens))
        self.files["offsets"].write(np.int64(self.offsets[-1]).tobytes())      # "documents" waits until its type is known
        self.drawn += sum(count > 0 for count in counts)
        self.kept += len(ids)

    def close(self):
        """Writes what is left, puts the arrays in their place and the header last; returns the header."""
        n_tokens, n_documents = self.offsets[-1], len(self.offsets) - 1
        self.types = array_types(self.header["n_vocab"], self.header["k_cap"], n_tokens)
        self.write("documents", self.offsets)
        header_path = os.path.join(self.folder, "header.json")
        if os.path.exists(header_path):
            os.remove(header_path)              # an old header must never stand beside new arrays
        lengths = dict(tokens=n_tokens, documents=n_documents + 1, roles=n_tokens, counts=n_tokens,
                       ids=self.kept, logprobs=self.kept)
        for name in ARRAYS:
            self.files[name].close()
            os.replace(self.path(name) + ".part", self.path(name))
        self.header |= {"documents": n_documents, "tokens": n_tokens, "drawn": self.drawn, "kept": self.kept}
        self.header["arrays"] = {name: {"dtype": self.types[name], "length": lengths[name],
                                        "sha256": self.hashes[name].hexdigest()} for name in ARRAYS}
        with open(header_path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(sealed(self.header), file, indent=1)
        os.replace(header_path + ".tmp", header_path)
        self.files["offsets"].close()
        for name in ("offsets.part", "part.json"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self.folder, name))
        return self.header


def read_header(folder):
    """The header of a cache as a dict; ValueError of one line where the folder holds none, or one that is not ours."""
    path = os.path.join(folder, "header.json")
    if not os.path.exists(path):
        raise ValueError(f"{folder}: no teacher cache here, header.json is written last and missing; {AGAIN}")
    header = read_json(path, f"expected the header of a teacher cache: {AGAIN}")
    if header.get("format") != FORMAT:
        raise ValueError(f"{path}: format {header.get('format')!r:.60}, expected {FORMAT!r}; {AGAIN} with this version")
    missing = [field for field in FIELDS if field not in header]
    whole = ("n_vocab", "k_cap", "documents", "tokens", "drawn", "kept")
    wrong = [field for field in whole if field in header and type(header[field]) is not int]
    wrong += [] if isinstance(header.get("roles"), list) else ["roles"]
    if missing or wrong:
        raise ValueError(f"{path}: field {(missing + wrong)[0]!r} is missing or not of its type; {AGAIN}")
    return header


class Cache:
    """A cache opened for reading; the arrays are memory-mapped, so a large one costs no memory until it is read.

        cache = Cache("out/cache", n_vocab=tokenizer.n_vocab, tokenizer_hash=tokenizer.hash)
        tokens, roles, counts, ids, logprobs = cache.document(0)
        batch = cache.batch([0, 5, 2])

    Opening reads every byte once, for its sha256. Raises ValueError of one line for a folder that is no cache, for
    damaged, truncated or foreign arrays, and where the vocabulary or the tokenizer is not the one named.
    header: dict; lengths: (documents,) tokens in each.
    """

    def __init__(self, folder, n_vocab=None, tokenizer_hash=None):
        self.folder = str(folder)
        self.header = header = read_header(self.folder)
        made = header["tokenizer"], header["n_vocab"]
        own = tokenizer_hash or made[0], n_vocab or made[1]                                           # None: any will do
        if own != made:
            raise ValueError(f"{self.folder}: made with tokenizer {made[0]} of {made[1]} ids, but the student has {own[0]} "
                             f"of {own[1]}; teacher and student must share one tokenizer: {AGAIN}")
        types = array_types(header["n_vocab"], header["k_cap"], header["tokens"])
        lengths = dict(tokens=header["tokens"], documents=header["documents"] + 1, roles=header["tokens"],
                       counts=header["tokens"], ids=header["kept"], logprobs=header["kept"])
        self.arrays = {name: self.open_array(name, types[name], lengths[name]) for name in ARRAYS}
        self.starts = np.asarray(self.arrays["documents"], dtype=np.int64)                            # (documents + 1,)
        self.lengths = np.diff(self.starts)
        kept_before = np.concatenate([[0], np.cumsum(self.arrays["counts"], dtype=np.int64)])         # (tokens + 1,)
        if self.starts[0] != 0 or (self.lengths < 0).any() or self.starts[-1] != header["tokens"]:
            raise ValueError(f"{self.folder}/documents.bin: the offsets do not span {header['tokens']} tokens; {AGAIN}")
        if kept_before[-1] != header["kept"] or np.count_nonzero(self.arrays["counts"]) != header["drawn"]:
            raise ValueError(f"{self.folder}/counts.bin: {kept_before[-1]} ids kept, the header says {header['kept']} "
                             f"at {header['drawn']} positions; {AGAIN}")
        self.kept_starts = kept_before[self.starts]                                                   # (documents + 1,)
        bounds = {"tokens": header["n_vocab"], "ids": header["n_vocab"], "roles": len(header["roles"])}
        for name, bound in bounds.items():
            if len(self.arrays[name]) and self.arrays[name].max() >= bound:
                raise ValueError(f"{self.folder}/{name}.bin: holds {self.arrays[name].max()}; "
                                 f"expected less than {bound}; {AGAIN}")

    def open_array(self, name, dtype, length):
        """One array, after its type, size and sha256 have been checked against the header; (length,), read-only."""
        path = os.path.join(self.folder, name + ".bin")
        note = self.header["arrays"].get(name) if isinstance(self.header["arrays"], dict) else None
        if not isinstance(note, dict) or (note.get("dtype"), note.get("length")) != (dtype, length):
            raise ValueError(f"{self.folder}/header.json: array {name} is noted as {note}; "
                             f"expected {length} of {dtype}; {AGAIN}")
        if not os.path.exists(path):
            raise ValueError(f"{path}: missing, though the header names it; {AGAIN}")
        size, want = os.path.getsize(path), length * np.dtype(dtype).itemsize
        if size != want:
            raise ValueError(f"{path}: {size} bytes, the header says {want}; truncated or foreign: {AGAIN}")
        found = sha256_of(path)
        if found != note.get("sha256"):
            raise ValueError(f"{path}: sha256 {found[:16]}, the header says {str(note.get('sha256'))[:16]}; "
                             f"damaged or from another cache: {AGAIN}")
        return np.memmap(path, dtype=dtype, mode="r") if length else np.empty(0, dtype)   # an empty file has no map

    def __len__(self):
        return len(self.lengths)

    def document(self, i):
        """tokens (T,), roles (T,), counts (T,), ids (M,), logprobs (M,) float16: views; M = counts.sum()."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.folder}: document {i} of {len(self)}")
        span = slice(self.starts[i], self.starts[i + 1])
        sets = slice(self.kept_starts[i], self.kept_starts[i + 1])
        a = self.arrays
        return a["tokens"][span], a["roles"][span], a["counts"][span], a["ids"][sets], a["logprobs"][sets]

    def batch(self, indices, T=None):
        """Documents side by side, padded at the end to T tokens (None: the longest of them), as a dict of tensors:

        tokens (B, T) long, roles (B, T) long, real (B, T) bool: True for a token of the document, False for padding;
        ids (B, T, K) long, log_probs (B, T, K) float32, mask (B, T, K) bool, K the batch's largest set (at least 1).
        Padding: token, role and id 0, log-probability MASKED, mask False. mask.any(-1) tells where the teacher drew.
        Raises ValueError for a document longer than T: cutting it is the caller's decision, not this one's.
        """
        rows = [self.document(int(i)) for i in indices]
        longest = max(rows, key=lambda row: len(row[0]), default=None)
        if longest is None:
            raise ValueError("a batch of no documents; expected at least one index")
        T = len(longest[0]) if T is None else T
        if len(longest[0]) > T:
            raise ValueError(f"{self.folder}: a document of {len(longest[0])} tokens, but T is {T}; "
                             "choose documents by cache.lengths, or a larger T")
        K = max([1] + [int(row[2].max()) for row in rows if len(row[2])])
        B = len(rows)
        tokens, roles = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
        counts, ids = np.zeros((B, T), np.int64), np.zeros((B, T, K), np.int64)
        log_probs = np.full((B, T, K), MASKED, np.float32)
        real = np.zeros((B, T), bool)
        for b, row in enumerate(rows):
            n = len(row[0])
            tokens[b, :n], roles[b, :n], counts[b, :n], real[b, :n] = row[0], row[1], row[2], True
        mask = np.arange(K) < counts[:, :, None]                                    # (B, T, K)
        ids[mask] = np.concatenate([row[3] for row in rows])        # a mask is filled in reading order, as the sets lie
        log_probs[mask] = np.concatenate([row[4] for row in rows])
        arrays = dict(tokens=tokens, roles=roles, real=real, ids=ids, log_probs=log_probs, mask=mask)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def inspect(folder):
    """Prints what a cache holds and costs; returns the figures as a dict.

    Coverage is the mean kept mass, sum of exp(log_probs), over the drawn positions. The dense cost beside it is that of
    the same documents with all V logits in float16 at the drawn positions, and no ids.
    """
    cache = Cache(folder)
    header, counts = cache.header, np.asarray(cache.arrays["counts"])
    n_tokens, drawn = max(header["tokens"], 1), max(header["drawn"], 1)
    size = sum(array.nbytes for array in cache.arrays.values())
    sets = cache.arrays["ids"].nbytes + cache.arrays["logprobs"].nbytes
    figures = {
        "documents": len(cache), "tokens": header["tokens"], "drawn": header["drawn"],
        "mean_kept": header["kept"] / drawn,
        "size_one": float((counts == 1).sum() / drawn),
        "coverage": float(np.exp(cache.arrays["logprobs"].astype(np.float64)).sum() / drawn),
        "bytes_per_token": size / n_tokens,
        "dense_bytes_per_token": (size - sets + 2 * header["n_vocab"] * header["drawn"]) / n_tokens,
    }
    teacher = header["teacher"] if isinstance(header["teacher"], dict) else {}
    print(shown(f"{folder}: top-p sets, p={header['p']}, k_cap={header['k_cap']}, temperature {header['temperature']}"))
    print(shown(f"  teacher           {teacher.get('hash')}, {teacher.get('params')} parameters, {teacher.get('figures')}"))
    print(shown(f"  tokenizer         {header['tokenizer']}, {header['n_vocab']} tokens"))
    print(shown(f"  made by           {header['made_by']}"))
    print(f"  documents         {len(cache):,}")
    print(f"  tokens            {header['tokens']:,}, of which the teacher drew {header['drawn']:,}")
    print(f"  mean kept         {figures['mean_kept']:.2f} tokens a drawn position; "
          f"{figures['size_one']:.1%} of the sets have only one")
    print(f"  coverage          {figures['coverage']:.4f} of the teacher's mass")
    print(f"  bytes a token     {figures['bytes_per_token']:.1f}; "
          f"with dense float16 logits {figures['dense_bytes_per_token']:.1f}")
    return figures
