"""A text of your own, of any size: read in blocks, encoded once into a flat file, trained on from a map.

    text = own_text(config, Path("out"))             # made in out/text, or taken from there if it is finished

    out/text/tokens.bin          windows of block_size tokens, each begins with the last one of the one before
    out/text/validation.txt      the held-out end of the text, a tenth of it
    out/text/tokenizer.*         trained on SAMPLE characters that lie evenly over the text
"""

import contextlib
import importlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.batches import Rows, token_type
from data.cli import brief, progress
from data.figures import bits_per_byte
from data.files import hash_of, is_finished, regular, rename, save_finished, write_text
from data.machine import rank
from data.tokenizer import Tokenizer, train_bpe

FILES = ("tokens.bin", "validation.txt", "tokenizer.json", "tokenizer.tiktoken")
BLOCK = 1 << 20              # characters that are read, cut and encoded at a time
SAMPLE = 8_000_000           # characters that a tokenizer is trained on
HELD_OUT = 2_000_000         # characters held out at most: scoring more would take longer than training
LINE_END = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")      # those that are not "\n"
NO_TEXT = {                  # first bytes of files that people mistake for text
    "a PDF": rb"%PDF", "an RTF document": rb"{\\rtf", "UTF-16": rb"\xff\xfe|\xfe\xff",
    "a Parquet table": rb"PAR1[^ -~\s]",
    "an image": rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|RIFF.{4}WEBP",
    "an archive or an office document":
        rb"PK\x03\x04|\x1f\x8b|BZh\d|\xfd7z|7z\xbc|Rar!|\(\xb5/\xfd|\xd0\xcf\x11|.{257}ustar"}


class OwnText(NamedTuple):
    tokenizer: Tokenizer
    training: Rows           # from a memory map
    held_out: Rows
    held_out_text: str

    def test(self, model, seed):
        """{"sample": that continues the first held-out words, "bits_per_byte": of the held-out text,
        "passes": how often the model has read the rest}."""
        limit, text = model.config.block_size, self.held_out_text
        prompt = self.tokenizer.encode(text)[:min(16, limit // 2)]
        n = min(200, limit - len(prompt))
        new = model.generate([prompt], n, temperature=0.8, top_p=0.95, seed=seed)[0]
        return {"sample": self.tokenizer.decode(prompt + new),
                "passes": model.extra["tokens_seen"] / int((self.training.lengths - 1).sum()),
                "bits_per_byte": bits_per_byte(model, self.held_out, len(text.encode("utf-8")))}


def text_files(path):
    """The file itself, or all .txt and .md files below a folder in the order of their names: list of Path."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [regular(path)]
    runs = {p.parent for p in path.rglob("run.json") if p.with_name(".lock").exists()} - {path}   # of ours
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*")
                   if p.is_file() and not runs & {*p.parents})
    found = [path / n for n in names if re.search(r"\.(txt|md)$", n, re.I) and "/." not in f"/{n}"]
    if not found:
        raise ValueError(f"{path}: no .txt or .md file in this folder")
    return found


@contextlib.contextmanager
def named(place):
    """Puts a place, such as the name of a file, before what a ValueError says that is raised within."""
    try:
        yield
    except (ValueError, TypeError, RecursionError) as error:    # TypeError: a field of another type
        told = str(error)
        raise ValueError(told if told.startswith(f"{place}: ") else f"{place}: {told}") from None


def text_bytes(path, n=-1):
    """The first n bytes of a text, or all; ValueError for a file of NO_TEXT, which says what it is."""
    with open(regular(path), "rb") as file:
        data = file.read(n)
    for kind, start in NO_TEXT.items():
        if re.match(start, data, re.DOTALL):
            raise ValueError(f"not UTF-8 text but {kind}; convert or unpack it first")
    return data


def load_json(data):
    """JSON in UTF-8 (bytes) -> value. A byte order mark will do, and a line end in a string becomes "\\n"."""
    def one(value):
        return LINE_END.sub("\n", value) if isinstance(value, str) else value
    return json.loads(data.decode("utf-8-sig"),
                      object_hook=lambda found: {one(key): one(value) for key, value in found.items()})


def json_rows(path):
    """JSON objects, one a line or all in one array -> list of (place, object), place: "line 3" or "row 3".
    ValueError for another file, with the place but without the file's name."""
    data, place, rows = text_bytes(path), "line", []
    parts = data.splitlines()                   # of bytes: they end in \n, in \r\n, or in \r
    if re.match(rb"(\xef\xbb\xbf)?\s*\[\s*\{", data):
        place, parts = "row", [json.dumps(row).encode() for row in load_json(data)]
    for n, part in enumerate(parts, 1):
        try:
            if part.strip():
                rows.append((f"{place} {n}", {**load_json(part)}))
        except (ValueError, TypeError, RecursionError) as error:
            found = f"{part.decode('utf-8', 'replace').strip():.40} ({brief(error, 80)})"
            raise ValueError(f"{place} {n}: expected a JSON object, found {found}") from None
    return rows


def text_hash(config):
    """{"text hash": of the files of config.corpus}; ValueError for an option that has no effect on them."""
    config.refuse(True, "on a text that nobody annotated",
                  "start_tokens test_paragraphs answer_weight text_weight plain_share ner_share")
    config.refuse(config.tokenizer != "bpe", "beside --tokenizer", "n_vocab")
    return {"text hash": hash_of(*text_files(config.corpus))}


def blocks(path, size=BLOCK):
    """The text of all files in parts of about `size` characters that end before a line end, or before a blank
    where there is none, all line ends as "\\n". ValueError for what is not UTF-8, and for blanks alone."""
    rest, is_blank, glue = "", True, ""
    for file in text_files(path):
        rest, glue = rest + glue, "\n\n"
        with named(file), open(file, encoding="utf-8-sig") as source:
            text_bytes(file, 300)                           # for its error
            try:
                while part := source.read(size):
                    if "\0" in part:
                        raise ValueError("holds a NUL character; expected UTF-8 text")
                    rest, is_blank = rest + part, is_blank and not part.strip()
                    if len(rest) >= size:
                        at = border(rest, len(rest))
                        yield rest[:at]
                        rest = rest[at:]
            except UnicodeDecodeError as error:
                byte = f"byte 0x{error.object[error.start]:02x}"
                raise ValueError(f"not UTF-8 ({error.reason}, {byte}); if it is Latin-1: "
                                 f"iconv -f LATIN1 -t UTF-8 {file} > new.txt") from None
    if is_blank:
        raise ValueError(f"{path}: empty; expected text")
    yield rest


def border(text, end):
    """Where to cut a text before `end`: at its last line end, else at its last blank, else at `end`."""
    return max(text.rfind("\n", 0, end), 0) or max(text.rfind(" ", 0, end), 0) or end


def read_text(path):
    """A file or folder -> str; see blocks."""
    return "".join(blocks(path))


def paragraphs(text):
    """str -> list of str: what blank lines separate, without the white space around it."""
    return [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]


def halves(path, cut):
    """(what is trained on, what is held out) of every block; the text is cut at about `cut` characters."""
    seen = 0
    for block in blocks(path):
        at = min(len(block), max(0, cut - seen))
        seen += len(block)
        at = border(block, at) if 0 < at < len(block) else at
        yield block[:at], block[at:]


def survey(path):
    """(number of characters to train on, sample of them: list of str).

    Held out is the last tenth, at most HELD_OUT characters: neighbours share people and phrases, so a random
    sample would be easier than fresh text."""
    total = sum(map(len, blocks(path)))
    cut, every = total - max(1, min(HELD_OUT, total // 10)), max(1, total / SAMPLE)
    return cut, [part for i, (part, _) in enumerate(halves(path, cut)) if i // every > (i - 1) // every]


def encode_text(folder, config):
    """Writes tokenizer, tokens and held-out text into the folder out/text. ValueError as blocks raises, and
    for a text that is shorter than two windows."""
    cut, sample = survey(config.corpus)
    if config.init_from:
        tokenizer = Tokenizer.load(config.init_from)
    elif config.tokenizer == "bpe":
        tokenizer = train_bpe(sample, config.n_vocab)
    else:
        tokenizer = importlib.import_module("adapters.tokenizers").get_tokenizer(config.tokenizer)
    block, dtype, held_out = config.block_size, token_type(tokenizer.n_vocab), []
    ids = np.empty(0, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokens.bin.tmp").unlink(missing_ok=True)     # half a file, or a link
    with open(folder / "tokens.bin.tmp", "wb") as file:
        for text, rest in progress(halves(config.corpus, cut), "encoded", unit=" MB", delay=5):
            held_out.append(rest)
            ids = np.append(ids, np.array(tokenizer.encode(text), dtype))
            while len(ids) >= block:                        # each begins with the last id of the one before
                file.write(ids[:block])
                ids = ids[block - 1:]
        file.write(ids if len(ids) > 1 else b"")
        size, n = file.tell() // dtype.itemsize, len(tokenizer.encode("".join(held_out)))
    if size < 2 * block or n < 2:
        raise ValueError(f"{config.corpus}: {size} tokens to train on, {n} held out; expected {2 * block} "
                         "and 2: try a longer text, or a smaller --block_size")
    rename(folder / "tokens.bin.tmp", folder / "tokens.bin")
    write_text(folder / "validation.txt", "".join(held_out))
    tokenizer.save(folder)


def windows(ids, block, n_vocab):
    """A list of ids -> Rows of `block` tokens; each begins with the last token of the one before."""
    parts = [ids[i:i + block] for i in range(0, len(ids) - 1, block - 1)]
    return Rows.pack([(part, [0] * len(part)) for part in parts], n_vocab)


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
    held_out = windows(tokenizer.encode(text), block, tokenizer.n_vocab)
    return OwnText(tokenizer, rows, held_out, text)
