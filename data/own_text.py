"""A text of your own, of any size: read in blocks, encoded once into a flat file, trained on from a map.

    text = own_text(config, Path("out"))             # made in out/text, or taken from there if it is finished

    out/text/tokens.bin          windows of block_size tokens, each begins with the last one of the one before
    out/text/validation.txt      the held-out end of the text, a tenth of it
    out/text/tokenizer.*         trained on SAMPLE characters that lie evenly over the text
"""

import importlib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.batches import Rows, token_type
from data.files import is_finished, rename, save_finished, write_text
from data.machine import rank
from data.tokenizer import Tokenizer, train_bpe

FILES = ("tokens.bin", "validation.txt", "tokenizer.json", "tokenizer.tiktoken")
BLOCK = 1 << 20              # characters that are read, cut and encoded at a time
SAMPLE = 8_000_000           # characters that a tokenizer is trained on
HELD_OUT = 2_000_000         # characters held out at most: scoring more would take longer than training


class OwnText(NamedTuple):
    tokenizer: Tokenizer
    training: Rows           # from a memory map
    held_out: Rows
    held_out_text: str


def text_files(path):
    """The file itself, or all .txt and .md files below a folder in the order of their names: list of Path."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    found = [path / n for n in names if re.search(r"\.(txt|md)$", n, re.I) and "/." not in f"/{n}"]
    if not found:
        raise ValueError(f"{path}: no .txt or .md file in this folder")
    return found


def blocks(path, size=BLOCK):
    """The text of all files in parts of about `size` characters that end before a blank line; without any, in
    parts of four times the size that end before a line end or a blank. Line ends become "\\n". ValueError for
    what is not UTF-8 text, and for white space alone."""
    rest, blank, glue = "", True, ""
    for file in text_files(path):
        rest, glue = rest + glue, "\n\n"
        try:
            with open(file, encoding="utf-8-sig") as source:
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
    """Lists of paragraphs, a list a block, or of sentences with the white space behind them."""
    cut = paragraphs if by_paragraph else re.compile(r".+?(?:[.!?]+\s+|\n+|$)", re.S).findall
    return filter(None, map(cut, blocks(path)))


def survey(path):
    """(by_paragraph, number of pieces to train on, sample of them: list of str); ValueError for one piece.

    Held out is the last tenth, at most HELD_OUT characters: neighbours share people and phrases, so a random
    sample would be easier than fresh text."""
    for by_paragraph in True, False:                # a text with few blank lines is cut between sentences
        counts = [(len(pieces), sum(map(len, pieces))) for pieces in pieces_of(path, by_paragraph)]
        total, characters = map(sum, zip(*counts))
        if total >= 10:
            break
    if total < 2:
        raise ValueError(f"{path}: one sentence, which leaves nothing to hold out; expected a longer text")
    held, left = 0, HELD_OUT
    for n, size in reversed(counts):                # whole blocks from the end, and a part of one
        held, left = held + int(n * min(1.0, left / size)), max(0, left - size)
    cut = total - max(1, min(held, round(0.1 * total)))
    every, sample, seen = max(1, characters / SAMPLE), [], 0
    for i, pieces in enumerate(pieces_of(path, by_paragraph)):
        if i // every > (i - 1) // every:                           # every so-many-th block
            sample.append(("\n\n" if by_paragraph else "").join(pieces[:max(0, cut - seen)]))
        seen += len(pieces)
    return by_paragraph, cut, sample


def encode_text(folder, config):
    """Writes tokenizer, tokens and held-out text into the folder out/text. ValueError as blocks and survey
    raise, and for a text that is shorter than two windows."""
    by_paragraph, cut, sample = survey(config.corpus)
    if config.tokenizer == "bpe":
        tokenizer = train_bpe(sample, config.n_vocab)
    else:
        tokenizer = importlib.import_module("adapters.tokenizers").get_tokenizer(config.tokenizer)
    glue, block, dtype = "\n\n" if by_paragraph else "", config.block_size, token_type(tokenizer.n_vocab)
    ids, held_out, seen = np.empty(0, dtype), [], 0
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "tokens.bin.tmp", "wb") as file:
        for pieces in pieces_of(config.corpus, by_paragraph):
            mine = pieces[:max(0, cut - seen)]
            text = (glue if seen and mine else "") + glue.join(mine)
            held_out, seen = held_out + pieces[len(mine):], seen + len(pieces)
            ids = np.append(ids, np.array(tokenizer.encode(text), dtype))
            while len(ids) >= block:                        # each begins with the last id of the one before
                file.write(ids[:block])
                ids = ids[block - 1:]
        file.write(ids if len(ids) > 1 else b"")
        size, n = file.tell() // dtype.itemsize, len(tokenizer.encode(glue.join(held_out)))
    if size < 2 * block or n < 2:
        raise ValueError(f"{config.corpus}: {size} tokens to train on, {n} held out; expected {2 * block} "
                         "and 2: try a longer text, or a smaller --block_size")
    rename(folder / "tokens.bin.tmp", folder / "tokens.bin")
    write_text(folder / "validation.txt", glue.join(held_out))
    tokenizer.save(folder)


def own_text(config, out):
    """The text of config.corpus as OwnText, made in out/text once; ValueError as encode_text."""
    folder, block = out / "text", config.block_size
    if not is_finished(out, "text"):
        if not rank():
            encode_text(folder, config)
        save_finished(out, "text", *(folder / name for name in FILES))
    tokenizer, text = Tokenizer.load(folder), (folder / "validation.txt").read_bytes().decode("utf-8")
    tokens = np.memmap(folder / "tokens.bin", token_type(tokenizer.n_vocab), "r")
    starts = np.append(np.arange(0, len(tokens), block), len(tokens))
    rows = Rows(tokens, np.broadcast_to(np.uint8(0), len(tokens)), starts)          # one role for all
    held_out = Rows.windows(tokenizer.encode(text), block, tokenizer.n_vocab)
    return OwnText(tokenizer, rows, held_out, text)
