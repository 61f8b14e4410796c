"""A text of your own that is larger than memory should hold: read in blocks, encoded on all cores, trained on from a file.

    tokenizer, parts = streamed_text(config, Path("out"))       # the same as data/corpus.own_text, from out/text

    out/text/tokens.bin         windows of block_size tokens, uint16 or uint32; each begins with the last token of the one before
    out/text/validation.txt     the held-out end of the text
    out/text/tokenizer.*        trained on SAMPLE characters that lie evenly over the text
    out/text/header.json        of what it was made, written last: a folder without it is made again

Memory does not grow with the text: a few blocks of it are held at a time, and the file of tokens is mapped, not read.
"""

import os
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from data import prepare
from data.batches import Rows
from data.files import digest, rename, write_json
from data.files import read_json
from data.tokenizer import Tokenizer, get_tokenizer, train_bpe

LARGE = 8_000_000       # bytes of text from which on it is streamed; below, data/corpus.own_text reads it whole
BLOCK = 1 << 20         # characters of a block
SAMPLE = 8_000_000      # characters that a tokenizer is trained on: ten seconds, and what is rare in them is rare
HELD_OUT = 2_000_000    # characters held out at most; a tenth of less text. Scoring more would take longer than training
AHEAD = 4               # blocks that are encoded before the first of them is written


def is_large(path):
    """Whether a file, or the files of a folder, are at least LARGE; False where there is nothing, for read_text to tell."""
    return os.path.exists(path) and sum(os.path.getsize(file) for file in prepare.text_files(path)) >= LARGE


def pieces_of(path, by_paragraph):
    """Lists of paragraphs (or sentences, which keep the white space between them), a list a block."""
    for block in prepare.blocks(path, BLOCK):
        if pieces := prepare.paragraphs(block) if by_paragraph else prepare.sentences(block):
            yield pieces


def survey(path):
    """One pass over the text -> (by_paragraph, number of pieces that are trained on, sample of them as a list of str).

    Held out is the last tenth, as prepare.split has it, but no more than HELD_OUT characters. ValueError as read_text raises."""
    for by_paragraph in True, False:            # a text without blank lines is cut between sentences
        counts = [(len(pieces), sum(map(len, pieces))) for pieces in pieces_of(path, by_paragraph)]
        total = sum(n for n, _ in counts)
        if total >= 10:
            break
    held, characters = 0, 0
    for n, size in reversed(counts):            # whole blocks from the end, and a part of one
        part = min(1.0, (HELD_OUT - characters) / size)
        held, characters = held + int(n * part), characters + size * part
        if part < 1:
            break
    cut = total - max(1, min(held, round(0.1 * total)))
    every, sample, seen = max(1, sum(size for _, size in counts) / SAMPLE), [], 0
    for i, pieces in enumerate(pieces_of(path, by_paragraph)):
        if int(i / every) > int((i - 1) / every) or i == 0:     # every so-many-th block
            sample.append(glue(by_paragraph).join(pieces[:max(0, cut - seen)]))
        seen += len(pieces)
    return by_paragraph, cut, sample


def glue(by_paragraph):
    """What stands between two pieces."""
    return "\n\n" if by_paragraph else ""


def in_order(function, items, threads):
    """function(item) for each, computed side by side, in order and never more than AHEAD before they are asked for."""
    with ThreadPoolExecutor(threads) as pool:   # threads will do: tiktoken works without Python's lock
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def write_windows(path, arrays, block, dtype):
    """Arrays of ids -> windows of `block` ids, overlapping by one, in a file; returns the number of ids written."""
    rest, written = np.empty(0, dtype), 0
    with open(path, "wb") as file:
        for ids in arrays:
            rest = np.concatenate([rest, ids])
            n = max(0, (len(rest) - 1) // (block - 1))
            if n:
                windows = np.lib.stride_tricks.sliding_window_view(rest, block)[::block - 1][:n]       # (n, block)
                windows.tofile(file)
                written, rest = written + windows.size, rest[n * (block - 1):].copy()
        if len(rest) > 1:
            rest.tofile(file)
            written += len(rest)
    return written


def write_text(folder, config, made_of):
    """Everything in the folder out/text, the header last."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    by_paragraph, cut, sample = survey(config.corpus)
    tokenizer = train_bpe(sample, config.n_vocab) if config.tokenizer == "bpe" else get_tokenizer(config.tokenizer)
    dtype = np.uint16 if tokenizer.n_vocab <= 65536 else np.uint32
    held_out, join = [], glue(by_paragraph)

    def training():
        seen = 0
        for pieces in tqdm(pieces_of(config.corpus, by_paragraph), "text, blocks", disable=None, leave=False):
            mine = pieces[:max(0, cut - seen)]
            held_out.extend(pieces[len(mine):])
            if mine:                            # what joins two blocks goes before the second: so they are cut into words as one
                yield join * bool(seen) + join.join(mine)
            seen += len(pieces)

    arrays = in_order(lambda text: np.array(tokenizer.encode(text), dtype), training(), os.cpu_count())
    n = write_windows(folder / "tokens.bin.tmp", arrays, config.block_size, dtype)
    rename(folder / "tokens.bin.tmp", folder / "tokens.bin")
    (folder / "validation.txt").write_bytes(join.join(held_out).encode("utf-8"))
    tokenizer.save(folder)
    write_json(folder / "header.json", made_of | {"tokens": n, "dtype": np.dtype(dtype).name, "tokenizer": tokenizer.hash})


def streamed_text(config, out):
    """(tokenizer, {"training", "validation": (rows, text)}) of a large text, made in out/text or taken from there; of the
    training text only the hash is given. ValueError as prepare.read_text and get_tokenizer raise, and for less text than a block holds."""
    folder = out / "text"
    made_of = {"corpus": digest(*prepare.text_files(config.corpus)), "block_size": config.block_size, "n_vocab": config.n_vocab,
               "name": config.tokenizer}
    path = folder / "header.json"
    remedy = f"remove {folder}, and it is made again"
    header = read_json(path, remedy) if path.exists() else {}
    if any(header.get(name) != value for name, value in made_of.items()):
        write_text(folder, config, made_of)
        header = read_json(path, remedy)
    tokenizer, block = Tokenizer.load(folder), config.block_size
    size = header["tokens"] * np.dtype(header["dtype"]).itemsize
    if os.path.getsize(folder / "tokens.bin") != size:
        raise ValueError(f"{folder / 'tokens.bin'}: {os.path.getsize(folder / 'tokens.bin')} bytes, but its header says {size}; "
                         f"{remedy}")
    tokens = np.memmap(folder / "tokens.bin", header["dtype"], "r")
    starts = np.append(np.arange(0, len(tokens), block), len(tokens))
    rows = Rows(tokens, np.broadcast_to(np.uint8(0), len(tokens)), starts)      # one role, however many tokens
    text = (folder / "validation.txt").read_bytes().decode("utf-8")
    return tokenizer, {"training": (rows, made_of["corpus"]), "validation": (Rows.windows(tokenizer.encode(text), block, tokenizer.n_vocab), text)}
