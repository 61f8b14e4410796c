"""A text of your own, of any size: read in blocks, encoded once into a flat file, trained on from a map of
it.

    text = own_text(config, Path("out"))             # made in out/text, or taken from there if it is finished

    out/text/tokens.bin          windows of block_size tokens, each begins with the last one of the one before
    out/text/validation.txt      the held-out end of the text, a tenth of it
    out/text/tokenizer.*         trained on SAMPLE characters that lie evenly over the text
"""

import importlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.batches import Rows
from data.files import is_finished, rename, save_finished, write_text
from data.machine import barrier, rank
from data.tokenizer import Tokenizer, train_bpe

SUFFIXES = (".txt", ".md")   # what is read from a folder
BLOCK = 1 << 20              # characters that are read, cut and encoded at a time
SAMPLE = 8_000_000           # characters that a tokenizer is trained on
HELD_OUT = 2_000_000         # characters held out at most: scoring more would take longer than training


class OwnText(NamedTuple):
    tokenizer: Tokenizer
    training: Rows           # from a memory map
    held_out: Rows
    held_out_text: str


def text_files(path):
    """The file itself, or all .txt and .md files below a folder in the order of their names -> list of
    Path."""
    path = Path(path)
    if path.is_dir():
        names = [p.relative_to(path) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        if not names:
            raise ValueError(f"{path}: no {' or '.join(SUFFIXES)} file in this folder")
        return [path / name for name in sorted(names, key=Path.as_posix)]
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    return [path]


def blocks(path, size=BLOCK):
    """The text of all files in parts of about `size` characters, which end before a blank line, or in a text
    without any, at about four times the size before the end of a line or a word. Line ends become "\\n".

    ValueError for what is not UTF-8 text, and for a text of white space alone."""
    rest, blank = "", True
    for number, file in enumerate(text_files(path)):
        rest += "\n\n" if number else ""
        with open(file, encoding="utf-8-sig") as source:
            try:
                while part := source.read(size):
                    if "\0" in part:
                        raise ValueError(f"{file}: holds a NUL character; expected UTF-8 text")
                    rest, blank = rest + part, blank and not part.strip()
                    at = rest.rfind("\n\n") if len(rest) >= size else 0
                    if at <= 0 and len(rest) > 4 * size:
                        at = max(rest.rfind("\n"), 0) or max(rest.rfind(" "), 0) or len(rest)
                    if at > 0:
                        yield rest[:at]
                        rest = rest[at:]
            except UnicodeDecodeError as error:
                byte = f"byte 0x{error.object[error.start]:02x}"
                raise ValueError(f"{file}: not UTF-8 ({error.reason}, {byte}); if it is Latin-1: "
                                 f"iconv -f LATIN1 -t UTF-8 {file.name} > new.txt") from None
    if blank:
        raise ValueError(f"{path}: empty; expected text, paragraphs separated by blank lines")
    yield rest


def read_text(path):
    """A file or folder -> str; see blocks."""
    return "".join(blocks(path))


def paragraphs(text):
    """str -> list of str: what blank lines separate, without the white space around it."""
    return [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]


def pieces_of(path, by_paragraph):
    """Lists of paragraphs, a list a block; by_paragraph=False: of sentences, with the white space behind
    them."""
    for block in blocks(path):
        pieces = paragraphs(block) if by_paragraph else re.findall(r".+?(?:[.!?]+\s+|\n+|$)", block, re.S)
        if pieces:
            yield pieces


def survey(path):
    """One pass over the text -> (by_paragraph, number of pieces to train on, sample of them as a list of
    str).

    Held out is the last tenth, at most HELD_OUT characters: neighbours share people and phrases, so a random
    sample would be easier than fresh text. ValueError for a text of one piece."""
    for by_paragraph in True, False:                # a text with few blank lines is cut between sentences
        counts = [(len(pieces), sum(map(len, pieces))) for pieces in pieces_of(path, by_paragraph)]
        total = sum(n for n, _ in counts)
        if total >= 10:
            break
    if total < 2:
        raise ValueError(f"{path}: one sentence, which leaves nothing to hold out; expected a longer text")
    held, characters = 0, 0
    for n, size in reversed(counts):                # whole blocks from the end, and a part of one
        part = min(1.0, (HELD_OUT - characters) / size)
        held, characters = held + int(n * part), characters + size * part
    cut = total - max(1, min(held, round(0.1 * total)))
    every, sample, seen = max(1, sum(size for _, size in counts) / SAMPLE), [], 0
    for i, pieces in enumerate(pieces_of(path, by_paragraph)):
        if i == 0 or int(i / every) > int((i - 1) / every):         # every so-many-th block
            sample.append(("\n\n" if by_paragraph else "").join(pieces[:max(0, cut - seen)]))
        seen += len(pieces)
    return by_paragraph, cut, sample


def write_windows(path, arrays, block, dtype):
    """Arrays of ids -> windows of `block` ids, each overlapping the one before by one, in a file."""
    rest = np.empty(0, dtype)
    with open(path, "wb") as file:
        for ids in arrays:
            rest = np.concatenate([rest, ids])
            n = max(0, (len(rest) - 1) // (block - 1))
            if n:
                windows = np.lib.stride_tricks.sliding_window_view(rest, block)
                windows[::block - 1][:n].tofile(file)                               # (n, block)
                rest = rest[n * (block - 1):].copy()
        if len(rest) > 1:
            rest.tofile(file)


def encode_text(folder, config):
    """Writes tokenizer, tokens and held-out text into the folder out/text."""
    by_paragraph, cut, sample = survey(config.corpus)
    if config.tokenizer == "bpe":
        tokenizer = train_bpe(sample, config.n_vocab)
    else:
        tokenizer = importlib.import_module("adapters.tokenizers").get_tokenizer(config.tokenizer)
    glue, held_out = "\n\n" if by_paragraph else "", []

    def training():
        seen = 0
        for pieces in pieces_of(config.corpus, by_paragraph):
            mine = pieces[:max(0, cut - seen)]
            held_out.extend(pieces[len(mine):])
            if mine:
                text = (glue if seen else "") + glue.join(mine)
                yield np.array(tokenizer.encode(text), token_type(tokenizer))
            seen += len(pieces)
    folder.mkdir(parents=True, exist_ok=True)
    write_windows(folder / "tokens.bin.tmp", training(), config.block_size, token_type(tokenizer))
    rename(folder / "tokens.bin.tmp", folder / "tokens.bin")
    write_text(folder / "validation.txt", glue.join(held_out))
    tokenizer.save(folder)


def token_type(tokenizer):
    """The numpy type of its ids in tokens.bin."""
    return np.uint16 if tokenizer.n_vocab <= 1 << 16 else np.uint32


def own_text(config, out):
    """The text of config.corpus as OwnText, made in out/text once.

    ValueError as `blocks` and `survey` raise, and for a text that is shorter than two windows."""
    folder, block = out / "text", config.block_size
    names = ("tokens.bin", "validation.txt", "tokenizer.json", "tokenizer.tiktoken")
    if not is_finished(out, "text"):
        if not rank():
            encode_text(folder, config)
        barrier()
    tokenizer = Tokenizer.load(folder)
    size = os.path.getsize(folder / "tokens.bin") // np.dtype(token_type(tokenizer)).itemsize
    held_out_text = (folder / "validation.txt").read_bytes().decode("utf-8")
    held_out = tokenizer.encode(held_out_text)
    if size < 2 * block or len(held_out) < 2:
        raise ValueError(f"{config.corpus}: {size} tokens to train on, {len(held_out)} held out; expected "
                         f"{2 * block} and 2: try a longer text, or a smaller --block_size")
    if not is_finished(out, "text"):
        save_finished(out, "text", *(folder / name for name in names))
    tokens = np.memmap(folder / "tokens.bin", token_type(tokenizer), "r")
    starts = np.append(np.arange(0, len(tokens), block), len(tokens))
    rows = Rows(tokens, np.broadcast_to(np.uint8(0), len(tokens)), starts)          # one role for all
    return OwnText(tokenizer, rows, Rows.windows(held_out, block, tokenizer.n_vocab), held_out_text)
