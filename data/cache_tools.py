"""Writing a teacher's cache, and inspecting one. data/cache.py describes the format.

    writer = CacheWriter("out/cache", n_vocab=800, tokenizer_hash="1f..", p=0.8, k_cap=64, temperature=1.0,
                         teacher={"hash": "8c..", "params": 1800000}, made_by="python ...", roles=ROLES)
    writer.add([5, 17, 9], [2, 3, 5], [None, (ids, log_probs), None])       # tokens, roles, sets
    writer.checkpoint(1)              # after an interruption, the next writer continues with writer.done == 1
    writer.close()
    inspect("out/cache")
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from data.cache import ARRAYS, FORMAT, TeacherCache
from data.cli import printable
from data.files import read_json, rename, sha256_of, write_json


def round_down_to_half(log_probs):
    """log_probs (M,) float32 -> (M,) float16: for each the largest float16 that is not above it (numpy).

    What is above 0 becomes 0, what is below -65504, the lowest float16, becomes -65504. With rounding to the
    nearest, the mass of a set could exceed 1 and the mass outside could be negative. Rounding down changes a
    log-probability by at most .1 % or 6e-8.
    """
    exact = np.clip(np.asarray(log_probs, dtype=np.float32), np.finfo(np.float16).min, 0)
    half = exact.astype(np.float16)
    above = half > exact
    half[above] = np.nextafter(half[above], np.float16(-np.inf))
    return half


def array_types(n_vocab, k_cap, n_tokens):
    """{array name: numpy dtype string}, little-endian, the smallest types that hold the numbers."""
    token = "<u2" if n_vocab <= 1 << 16 else "<u4"
    return {"tokens": token, "documents": "<u4" if n_tokens < 1 << 32 else "<u8", "roles": "|u1",
            "counts": "|u1" if k_cap < 1 << 8 else "<u2", "ids": token, "logprobs": "<f2"}


class CacheWriter:
    """Writes a cache, document by document; the settings go into its header.

    teacher: any JSON that describes the teacher; made_by: the command; roles: the names of the role numbers.
    The arrays grow in files NAME.part; an older cache in the folder stays valid until close(). After an
    interruption, a writer of the same settings continues from the last checkpoint: `done` is the number given
    to checkpoint(), 0 if there is none.
    """

    def __init__(self, folder, *, n_vocab, tokenizer_hash, p, k_cap, temperature, teacher, made_by, roles):
        if not 1 <= k_cap < 1 << 16 or len(roles) > 256:
            raise ValueError(f"k_cap={k_cap} and {len(roles)} roles; expected 1 to 65535 and at most 256")
        self.folder = Path(folder)
        self.header = {"format": FORMAT, "n_vocab": n_vocab, "tokenizer": tokenizer_hash, "p": p,
                       "k_cap": k_cap, "temperature": temperature, "roles": list(roles), "teacher": teacher,
                       "made_by": made_by}
        self.types = array_types(n_vocab, k_cap, 0) | {"documents": "<i8"}      # lengths, until close()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parts = {name: self.folder / f"{name}.part" for name in ARRAYS}
        self.done, sizes = self.resume()
        self.files = {name: open(path, "ab") for name, path in self.parts.items()}
        for name, file in self.files.items():
            file.truncate(sizes.get(name, 0))
            file.seek(0, os.SEEK_END)

    def resume(self):
        """(done, {array: bytes}) of the last checkpoint of these settings; (0, {}) if there is none, or it is
        damaged."""
        self.hashes = {name: hashlib.sha256() for name in ARRAYS}
        try:
            state = read_json(self.folder / "part.json", "", "arrays", "header", "done")
            for name, (size, sha256) in state["arrays"].items():
                if size:
                    self.hashes[name].update(np.memmap(self.parts[name], np.uint8, "r", shape=size))
                if self.hashes[name].hexdigest() != sha256:
                    raise ValueError("damaged")
            if state["header"] != json.loads(json.dumps(self.header)):
                raise ValueError("of other settings")
        except (OSError, ValueError):
            self.hashes = {name: hashlib.sha256() for name in ARRAYS}
            for path in self.parts.values():                    # half a file, or a link
                path.unlink(missing_ok=True)
            return 0, {}
        return state["done"], {name: size for name, (size, _) in state["arrays"].items()}

    def checkpoint(self, done):
        """Put what was added so far on the disk, for the next writer to continue; done: int, up to where."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        arrays = {name: [file.tell(), self.hashes[name].hexdigest()] for name, file in self.files.items()}
        write_json(self.folder / "part.json", {"header": self.header, "done": done, "arrays": arrays})

    def add(self, tokens, roles, sets):
        """One document. tokens: list of int; roles: list of int; sets: list of None (the token was given) or
        (ids (K,), log_probs (K,)), the distribution from which the token was drawn. All have one length.

        ValueError where a token, a role or a set does not fit the header; nothing is written then.
        """
        n_vocab, k_cap, n_roles = self.header["n_vocab"], self.header["k_cap"], len(self.header["roles"])
        at = f"document {self.files['documents'].tell() // 8}"
        if not len(tokens) == len(roles) == len(sets):
            raise ValueError(f"{at}: {len(tokens)} tokens, {len(roles)} roles, {len(sets)} sets; expected "
                             "one role and one set for each token")
        counts = [0 if one is None else len(one[0]) for one in sets]
        kept = [one for one in sets if one is not None]
        if max(counts, default=0) > k_cap or any(len(ids) != len(log_probs) for ids, log_probs in kept):
            raise ValueError(f"{at}: sets of up to {max(counts)} ids; expected at most k_cap={k_cap}, and "
                             "one log-probability for each")
        ids = np.concatenate([[], *(ids for ids, _ in kept)]).astype(np.int64)                      # (kept,)
        log_probs = np.concatenate([[], *(log_probs for _, log_probs in kept)]).astype(np.float32)  # (kept,)
        for name, values, bound in (("tokens", tokens, n_vocab), ("roles", roles, n_roles),
                                    ("ids of sets", ids, n_vocab)):
            if len(values) and (np.min(values) < 0 or np.max(values) >= bound):
                raise ValueError(f"{at}: {name} {min(values)} to {max(values)}; expected 0 to {bound - 1}")
        if not ((log_probs <= 1e-4) & (log_probs > -np.inf)).all():             # also False for NaN
            raise ValueError(f"{at}: a log-probability is NaN, above 0 or -inf; expected log-softmax of the "
                             "teacher's logits, and no token of probability 0")
        for name, values in (("tokens", tokens), ("roles", roles), ("counts", counts), ("ids", ids),
                             ("logprobs", round_down_to_half(log_probs)), ("documents", [len(tokens)])):
            data = np.asarray(values, self.types[name]).tobytes()
            self.files[name].write(data)
            self.hashes[name].update(data)

    def close(self):
        """Put the arrays in their places, and the header last -> the header."""
        for file in self.files.values():
            file.close()
        lengths = np.fromfile(self.parts["documents"], self.types["documents"])
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        counts = np.fromfile(self.parts["counts"], self.types["counts"])
        types = array_types(self.header["n_vocab"], self.header["k_cap"], int(starts[-1]))
        (self.folder / "header.json").unlink(missing_ok=True)       # it must not stand beside new arrays
        starts.astype(types["documents"]).tofile(self.parts["documents"])
        arrays = {}
        for name, part in self.parts.items():
            length = part.stat().st_size // np.dtype(types[name]).itemsize
            arrays[name] = {"dtype": types[name], "length": length, "sha256": sha256_of(part)}
            rename(part, self.folder / f"{name}.bin")
        drawn, kept = int(np.count_nonzero(counts)), arrays["ids"]["length"]
        self.header |= {"documents": len(lengths), "tokens": len(counts), "drawn": drawn, "kept": kept,
                        "arrays": arrays}
        write_json(self.folder / "header.json", self.header)
        (self.folder / "part.json").unlink(missing_ok=True)
        return self.header


def inspect(folder):
    """Print what a cache holds and costs -> the figures as a dict.

    coverage: the mean mass of the sets, sum of exp(log_probs), over the drawn positions;
    top_7, top_50: the mean mass of the most probable ones kept; at_cap: share of sets of k_cap tokens;
    dense_bytes_per_token: the cost with all V logits in float16 at the drawn positions, and no ids.
    """
    cache = TeacherCache(folder)
    header, counts = cache.header, np.asarray(cache.arrays["counts"])
    n_tokens, drawn = max(header["tokens"], 1), max(header["drawn"], 1)
    size = sum(array.nbytes for array in cache.arrays.values())
    sets = cache.arrays["ids"].nbytes + cache.arrays["logprobs"].nbytes
    kept, mass = counts[counts > 0].astype(np.int64), np.exp(cache.arrays["logprobs"].astype(np.float64))
    rank = np.arange(len(mass)) - np.repeat(np.cumsum(kept) - kept, kept)      # in its set, 0: most probable
    figures = {
        "documents": len(cache), "tokens": header["tokens"], "drawn": header["drawn"],
        "mean_kept": header["kept"] / drawn,
        "median_kept": float(np.median(kept)) if len(kept) else 0.0,
        "size_one": float((counts == 1).sum() / drawn),
        "at_cap": float((counts == header["k_cap"]).sum() / drawn),
        "coverage": float(mass.sum() / drawn),
        **{f"top_{k}": float(mass[rank < k].sum() / drawn) for k in (7, 50)},
        "bytes_per_token": size / n_tokens,
        "dense_bytes_per_token": (size - sets + 2 * header["n_vocab"] * header["drawn"]) / n_tokens,
    }
    teacher = header["teacher"] if isinstance(header["teacher"], dict) else {}
    dense = figures["dense_bytes_per_token"]
    lines = {
        "teacher": f"{teacher.get('hash')}, {teacher.get('params')} parameters, "
                   f"{teacher.get('name') or teacher.get('figures')}",
        "tokenizer": f"{header['tokenizer']}, {header['n_vocab']} tokens",
        "made by": header["made_by"],
        "documents": f"{len(cache):,}",
        "tokens": f"{header['tokens']:,}, of which the teacher drew {header['drawn']:,}",
        "sets": f"{figures['mean_kept']:.2f} tokens in the mean, median {figures['median_kept']:g}; "
                f"{figures['size_one']:.1%} have only one, {figures['at_cap']:.1%} are at the cap",
        "coverage": f"{figures['coverage']:.4f} of the teacher's mass, the 7 most probable "
                    f"{figures['top_7']:.4f}, the 50 most probable {figures['top_50']:.4f}",
        "bytes a token": f"{figures['bytes_per_token']:.1f}; with dense float16 logits {dense:.1f}",
    }
    print(printable(f"{folder}: top-p sets, p={header['p']}, k_cap={header['k_cap']}, temperature "
                    f"{header['temperature']}"))
    for name, line in lines.items():
        print(printable(f"  {name:<18}{line}"))
    return figures


def main(arguments):
    """The command td_distill.py inspect FOLDER."""
    if len(arguments) != 1:
        raise ValueError(f"inspect {' '.join(arguments)}: expected one folder, for example data/teacher")
    inspect(arguments[0])
