"""Files that can be told from damaged ones: what is written here carries its SHA-256, and is refused where that is another.

    json.dumps(sealed({"tokens": 300}))                # '{"tokens": 300, "sha256": "5f.."}': JSON, which anyone may read
    read_sealed("out/results.json", "run it again")    # {"tokens": 300}; ValueError where one digit is not as it was written
    stamp("training.pt"); check_stamp("training.pt")   # for a file that is no JSON: 32 bytes at its end
    read_tensors("model.pt")                           # of torch.save: numbers only, and no more of them than the file is long

A checksum finds accidents: a bad disk, half a copy, a file of another folder. Whoever means harm can seal as well, so nothing
that is read here is ever run.
"""

import hashlib
import json
import os
import zipfile

DIGEST = 32     # bytes of a SHA-256


def brief(error, limit=120):
    """What an exception says, on one line of at most `limit` characters: some say it on forty."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:limit]


def sha256_of(path, size=None):
    """The SHA-256 of a file (its first `size` bytes; None: all), 64 hex digits."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size if size is None else size
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            found.update(block)
            left -= len(block)
    return found.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# JSON


def digest(value):
    """The SHA-256 of a JSON object, 64 hex digits: of what it says, whatever its blanks and the order of its names."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


def sealed(value):
    """A dict, any JSON -> the same with its digest as "sha256"."""
    return {**value, "sha256": digest(value)}


def read_sealed(path, remedy):
    """The object that `sealed` gave, from a JSON file, without "sha256". ValueError of one line, which ends with the remedy."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
        whole = isinstance(value, dict) and value.pop("sha256", None) == digest(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({brief(error)}); {remedy}") from None
    if not whole:
        raise ValueError(f"{path}: not as it was written, its checksum is missing or another; {remedy}")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# What torch.save writes


def stamp(path):
    """Put the SHA-256 of a file at its end. torch.load does not mind."""
    found = bytes.fromhex(sha256_of(path))
    with open(path, "ab") as file:
        file.write(found)


def check_stamp(path):
    """ValueError unless `path` is as `stamp` left it."""
    size = os.path.getsize(path) - DIGEST
    with open(path, "rb") as file:
        file.seek(max(0, size))
        if size < 0 or file.read() != bytes.fromhex(sha256_of(path, size)):
            raise ValueError("its checksum is missing or another")


def read_tensors(path, device="cpu"):
    """What a file of torch.save holds: tensors, numbers, strings, lists and dicts. ValueError for anything else, in one line
    without the path.

    torch.save packs nothing. A file that holds more than it is long was made to fill the memory: 80 kB can hold 80 MB."""
    import torch        # only here: text alone needs none of it
    try:
        if zipfile.is_zipfile(path):                            # GPT-2 was published in an older format, which has no parts
            with zipfile.ZipFile(path) as archive:
                size = sum(part.file_size for part in archive.infolist())
            if size > os.path.getsize(path):
                raise ValueError(f"{size:,} bytes packed into {os.path.getsize(path):,}")
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:                                  # a cut-off or foreign file fails in many ways
        raise ValueError(brief(error)) from None
