"""
Texts that people know, downloaded and checked, as files that train.py reads.

    python data/download.py tinyshakespeare      # 1.1 MB, the plays
    python data/download.py tinystories          # 19 MB, 21,990 stories for small children (its validation file)
    python data/download.py wikitext             # WikiText-2, 11 MB of encyclopaedia articles
    python data/download.py dolly                # 13 MB, 15,011 instructions with answers, as JSON lines and as text
    python train.py --corpus=downloads/tinyshakespeare.txt --minutes=3 --out_dir=out_play

A file is kept as published in downloads/NAME/, and as UTF-8 text, paragraphs between blank lines, in downloads/NAME.txt.
While it comes in it is called .part; a run that was cut off goes on where that one ends. It is renamed when size and
SHA-256 are those below, and refused when they are not. Without a network a line says which file to put where by hand.
"""
import argparse
import hashlib
import json
import os
import re
import sys
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

if not __package__:  # python data/download.py: the modules stand one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.cli import printable  # noqa: E402

CHUNK = 1 << 16          # bytes read at once
TIMEOUT = 30             # seconds without a byte

# name: where it is (a fixed revision), its size in bytes, its SHA-256, what may be done with it
HUB, GIT = "https://huggingface.co/datasets", "https://raw.githubusercontent.com"
SETS = {
    "tinyshakespeare": {
        "url": f"{GIT}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
        "size": 1_115_394, "sha256": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "licence": "public domain"},
    "tinystories": {
        "url": f"{HUB}/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/TinyStories-valid.txt",
        "size": 19_447_282, "sha256": "94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4",
        "licence": "CDLA-Sharing-1.0"},
    "wikitext": {
        "url": f"{HUB}/ggml-org/ci/resolve/927b3642933080f1b0e811e2f916e14c292992f9/wikitext-2-raw-v1.zip",
        "size": 4_721_645, "sha256": "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
        "licence": "CC BY-SA 3.0"},
    "dolly": {
        "url": f"{HUB}/databricks/databricks-dolly-15k/resolve/bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a/"
               "databricks-dolly-15k.jsonl",
        "size": 13_085_339, "sha256": "2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec",
        "licence": "CC BY-SA 3.0"},
}


# ---------------------------------------------------------------------------------------------------------------------
# as published -> text: str, paragraphs between blank lines

def plays(path):
    """tinyshakespeare: as it is."""
    return path.read_text(encoding="utf-8")


def stories(path):
    """TinyStories: a blank line where a story ends."""
    parts = re.split(r"\s*<\|endoftext\|>\s*", path.read_text(encoding="utf-8"))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def articles(path):
    """WikiText-2, training part: a paragraph a line, headings "= Oslo =" among them. Its marks stand apart, like this :
    " the @-@ 7 @.@ 5 m , " becomes "the-7.5 m,"; quotation marks stay apart, as nothing says which side is theirs."""
    with zipfile.ZipFile(path) as archive:
        text = archive.read("wikitext-2-raw/wiki.train.raw").decode("utf-8")
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([,.;:!?)\]]|'s\b|n't\b)", r"\1", re.sub(r"([(\[]) ", r"\1", text))
    return "\n\n".join(line.strip() for line in text.splitlines() if line.strip()) + "\n"


def instructions(path):
    """Dolly: instruction, context where there is one, and response, each a paragraph or more."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                found += [json.loads(line)[key].strip() for key in ("instruction", "context", "response")]
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{path}:{number}: expected an object with the strings instruction, context and response"
                                 ) from None
    return "\n\n".join(text for text in found if text) + "\n"


TEXTS = {"tinyshakespeare": plays, "tinystories": stories, "wikitext": articles, "dolly": instructions}


# ---------------------------------------------------------------------------------------------------------------------
# downloading

def continue_part(url, part, size, bar):
    """Append to the file `part` what it lacks of `size` bytes, in one request (HTTP Range, RFC 9110 section 14). A server
    that knows no ranges sends all from the first byte on: then `part` begins anew. OSError or HTTPException where it
    breaks off; a connection may also end early without one."""
    begin = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "nanoreader"} | ({"Range": f"bytes={begin}-"} if begin else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.status != 206:
            begin = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
            raise HTTPException(f"asked for bytes {begin}-, the server sent {answer.headers.get('Content-Range')}")
        with open(part, "ab" if begin else "wb") as file:
            bar.update(begin - bar.n)
            while file.tell() <= size and (chunk := answer.read(CHUNK)):    # one byte too many is enough to refuse it
                bar.update(file.write(chunk))


def fetch(url, path, size):
    """Download into PATH.part until `size` bytes are there, taking up a broken connection as long as each brings more ->
    Path of the part. ConnectionError of one line where none comes; what has come in is kept for the next run."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    had, error = -1, ""
    with tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=None, leave=False) as bar:
        while (now := part.stat().st_size if part.exists() else 0) < size:
            if now <= had:
                raise ConnectionError(f"{url}: {error}; {now:,} of {size:,} bytes are here. Run this again to go on, or "
                                      f"fetch it elsewhere, put it at {path}, and run this again")
            had, error = now, "the connection ended early"
            try:
                continue_part(url, part, size, bar)
            except (OSError, HTTPException) as problem:
                error = problem
    return part


def sha256(path):
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check(path, name, remedy):
    """ValueError, which ends with the remedy, where the file has not the size and SHA-256 of the set."""
    size, digest = path.stat().st_size, sha256(path)
    if (size, digest) != (SETS[name]["size"], SETS[name]["sha256"]):
        raise ValueError(f"{path}: {size:,} bytes with SHA-256 {digest[:12]}, expected {SETS[name]['size']:,} with "
                         f"{SETS[name]['sha256'][:12]}; {remedy}")


def download(name, folder="downloads"):
    """Fetch a set of SETS unless it is there, check it, and write it as text -> Path of the text. ValueError for a file
    that is not what it should be, ConnectionError where it cannot be had."""
    url, text = SETS[name]["url"], Path(folder) / f"{name}.txt"
    path = Path(folder) / name / url.rpartition("/")[2]
    if path.exists():                                       # from an earlier run, or put there by hand
        check(path, name, "move it away and run this again")
    else:
        part = fetch(url, path, SETS[name]["size"])
        try:
            check(part, name, "it is deleted; run this again, and if it comes again, something between here and there "
                  "answers in its place")
        except ValueError:
            part.unlink()
            raise
        os.replace(part, path)
    beside = text.with_name(text.name + ".tmp")
    beside.write_text(TEXTS[name](path), encoding="utf-8", newline="\n")
    os.replace(beside, text)
    return text


def main(arguments=None):
    """Download the sets that are named; one line and exit code 2 for what cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="+", choices=SETS, metavar="NAME", help=", ".join(SETS))
    parser.add_argument("--folder", default="downloads", help="where to keep them (default: %(default)s)")
    options = parser.parse_args(arguments)
    for name in options.names:
        try:
            text = download(name, options.folder)
        except (ValueError, OSError) as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 2
        print(printable(f"{text}: {text.stat().st_size:,} bytes ({SETS[name]['licence']}); python train.py --corpus={text}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
