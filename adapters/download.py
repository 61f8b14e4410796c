"""Well-known texts, downloaded and checked, as files that train.py reads.

    python -m adapters.download tinyshakespeare      # 1.1 MB, the plays
    python -m adapters.download tinystories          # 19 MB, 21,990 stories for small children
    python -m adapters.download wikitext             # WikiText-2, 11 MB of encyclopaedia articles
    python -m adapters.download dolly                # 13 MB, 15,011 instructions with answers
    python train.py --corpus=downloads/tinyshakespeare.txt --minutes=3 --out_dir=out_play

A file is kept as published in downloads/NAME/, and as UTF-8 text, paragraphs between blank lines, in
downloads/NAME.txt. Its size and SHA-256 are checked. Without a network a line says which file to put where.
"""
import argparse
import json
import os
import re
import zipfile
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from tqdm import tqdm

from data.cli import printable, run_command
from data.files import sha256_of, write_text

HUB, GIT = "https://huggingface.co/datasets", "https://raw.githubusercontent.com"
SETS = {    # name: address of a fixed revision, size in bytes, SHA-256, licence
    "tinyshakespeare": (
        f"{GIT}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
        1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", "public domain"),
    "tinystories": (
        f"{HUB}/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/"
        "TinyStories-valid.txt",
        19_447_282, "94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4", "CDLA-Sharing-1.0"),
    "wikitext": (
        f"{HUB}/ggml-org/ci/resolve/927b3642933080f1b0e811e2f916e14c292992f9/wikitext-2-raw-v1.zip",
        4_721_645, "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11", "CC BY-SA 3.0"),
    "dolly": (
        f"{HUB}/databricks/databricks-dolly-15k/resolve/bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a/"
        "databricks-dolly-15k.jsonl",
        13_085_339, "2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec", "CC BY-SA 3.0"),
}


def to_text(name, path):
    """A file as published -> str, paragraphs between blank lines."""
    if name == "wikitext":                              # an archive; a paragraph a line
        with zipfile.ZipFile(path) as archive:
            text = archive.read("wikitext-2-raw/wiki.train.raw").decode("utf-8")
        text = re.sub(r" @([-,.])@ ", r"\1", text)      # " the @-@ 7 @.@ 5 m , " becomes "the-7.5 m,"
        text = re.sub(r" ([,.;:!?)\]]|'s\b|n't\b)", r"\1", re.sub(r"([(\[]) ", r"\1", text))
        parts = text.splitlines()
    elif name == "dolly":                               # JSON lines: instruction, context if any, response
        records = map(json.loads, path.read_text(encoding="utf-8").rstrip("\n").split("\n"))
        parts = [record[key] for record in records for key in ("instruction", "context", "response")]
    elif name == "tinystories":
        parts = path.read_text(encoding="utf-8").split("<|endoftext|>")
    else:
        return path.read_text(encoding="utf-8")
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def fetch(url, path, size):
    """Downloads into PATH.part, at most a little more than `size` bytes -> Path of the part. ConnectionError
    if it cannot be had."""
    part, request = path.with_name(path.name + ".part"), Request(url, headers={"User-Agent": "nanoreader"})
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (urlopen(request, timeout=30) as answer, open(part, "wb") as file,
              tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=None, leave=False) as bar):
            while file.tell() <= size and (chunk := answer.read(1 << 16)):
                bar.update(file.write(chunk))
    except (OSError, HTTPException) as error:
        raise ConnectionError(f"{url}: {error}; run this again, or fetch it elsewhere, put it at {path}, and "
                              "run this again") from None
    return part


def download(name, folder="downloads"):
    """Fetches a set of SETS unless it is there, checks it, and writes it as text -> Path of the text.
    ValueError for a file that is not the published one, ConnectionError if it cannot be had."""
    url, size, sha256, _ = SETS[name]
    path = Path(folder) / name / url.rpartition("/")[2]
    found = path if path.exists() else fetch(url, path, size)       # an earlier run or the user put it there
    if (found.stat().st_size, sha256_of(found)) != (size, sha256):
        remedy = "move it away and run this again"
        if found != path:
            found.unlink()
            remedy = "it is deleted; run this again (a proxy may have answered in place of the server)"
        raise ValueError(f"{found}: expected {size:,} bytes with SHA-256 {sha256[:12]}; {remedy}")
    os.replace(found, path)
    text = Path(folder) / f"{name}.txt"
    write_text(text, to_text(name, path))
    return text


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m adapters.download", description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="+", choices=SETS, metavar="NAME", help=", ".join(SETS))
    parser.add_argument("--folder", default="downloads", help="where to keep them [%(default)s]")
    options = parser.parse_args(arguments)
    for name in options.names:
        text = download(name, options.folder)
        size, licence = text.stat().st_size, SETS[name][-1]
        print(printable(f"{text}: {size:,} bytes ({licence}); python train.py --corpus={text}"))


if __name__ == "__main__":
    run_command(main)
