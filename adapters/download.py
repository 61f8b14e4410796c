"""Well-known texts, downloaded and checked, as files that train.py reads; and the bAbI tasks, to test on.

    python -m adapters.download tinyshakespeare      # or tinystories, dolly, babi
    python train.py --corpus=downloads/tinyshakespeare.txt --minutes=3 --out_dir=out_play

A file is kept as published in downloads/NAME/, and as UTF-8 text, paragraphs between blank lines, in
downloads/NAME.txt; an archive is left as it is. Size and SHA-256 are checked. Without a network a line says
which file to put where.
"""
import argparse
import hashlib
import json
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from data.cli import Parser, printable, run_command
from data.files import write_bytes, write_text

HUB, GIT = "https://huggingface.co/datasets", "https://raw.githubusercontent.com"
SETS = {    # name: address of a fixed revision, size in bytes, SHA-256, licence
    "tinyshakespeare": (
        f"{GIT}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
        1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", "public domain"),
    "tinystories": (
        f"{HUB}/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/"
        "TinyStories-valid.txt",
        19_447_282, "94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4", "CDLA-Sharing-1.0"),
    "dolly": (
        f"{HUB}/databricks/databricks-dolly-15k/resolve/bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a/"
        "databricks-dolly-15k.jsonl",
        13_085_339, "2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec", "CC BY-SA 3.0"),
    "babi": (
        f"{HUB}/facebook/babi_qa/resolve/dc80d34a44d86281fe820e05eb8c4c62057c3075/data/"
        "tasks_1-20_v1-2.tar.gz",
        15_719_851, "0364ebde659f14d11bc21744516c5ec49d3d06cb692733f66680771244998898", "CC BY 3.0"),
}


def to_text(name, text):
    """A file as published (str) -> str, paragraphs between blank lines."""
    if name == "tinyshakespeare":
        return text
    parts = text.split("<|endoftext|>")                 # TinyStories
    if name == "dolly":                                 # JSON lines: instruction, context if any, response
        records = map(json.loads, text.rstrip("\n").split("\n"))
        parts = [record[key] for record in records for key in ("instruction", "context", "response")]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def download(name, folder="downloads"):
    """Fetches a set of SETS unless it is there, checks it, and writes it as text -> Path of the text, or of
    the archive if it is one. ValueError for a file that is not the published one, ConnectionError if it
    cannot be had."""
    url, size, sha256, _ = SETS[name]
    path = Path(folder) / name / url.rpartition("/")[2]
    if path.exists():                                   # an earlier run or the user put it there
        content, remedy = path.read_bytes(), f"move {path} away and run this again"
    else:
        remedy = "run this again (a proxy may have answered in place of the server)"
        try:
            with urlopen(Request(url, headers={"User-Agent": "nanoreader"}), timeout=30) as answer:
                content = answer.read(size + 1)
        except (OSError, HTTPException) as error:
            raise ConnectionError(f"{url}: {error}; run this again, or fetch it elsewhere, put it at {path}, "
                                  "and run this again") from None
    if (len(content), hashlib.sha256(content).hexdigest()) != (size, sha256):
        raise ValueError(f"{url}: expected {size:,} bytes with SHA-256 {sha256[:12]}; {remedy}")
    write_bytes(path, content)
    if path.suffix == ".gz":
        return path
    text = Path(folder) / f"{name}.txt"
    write_text(text, to_text(name, content.decode("utf-8")))
    return text


def main(arguments=None):
    """The command: downloads the sets that are named; ValueError and ConnectionError as `download`."""
    parser = Parser(prog="python -m adapters.download", description=__doc__,
                    formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="+", choices=SETS, metavar="NAME", help=", ".join(SETS))
    parser.add_argument("--folder", default="downloads", help="where to keep them [%(default)s]")
    options = parser.parse_args(arguments)
    for name in options.names:
        text = download(name, options.folder)
        size, licence = text.stat().st_size, SETS[name][-1]
        use = f"python train.py --corpus={text}"
        if text.suffix == ".gz":
            use = f"tar -xzf {text} -C {options.folder}"
        print(printable(f"{text}: {size:,} bytes ({licence}); {use}"))


if __name__ == "__main__":
    run_command(main)
