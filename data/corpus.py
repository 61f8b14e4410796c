"""From text to rows: stages 1 to 3 of the course.

    tokenizer = world_tokenizer(1024)
    sources, shares = reading_sources(1_000_000, config, tokenizer, seed=1)     # D_ORI, D_NER, D_QRA of the built-in world
    tokenizer, parts = own_text(config)                                         # a text of your own, without annotations
"""

import math
import random

import brd
from data import annotations, prepare, world
from data.rows import LENGTH_STEP, Rows
from data.tokenizer import get_tokenizer, train_bpe

# Predicted tokens in an average document, rounded down: they tell how many paragraphs to write for a number of tokens.
PLAIN_TOKENS, QRA_TOKENS = 10, 56


def world_tokenizer(n_vocab):
    """A BPE of a fixed sample of the built-in world, so that every run and the teacher's cache share one vocabulary."""
    rng = random.Random("tokenizer")
    documents = [document for paragraph in world.annotated(4000, "tokenizer") for copy in ("ner", "qra")
                 for document in brd.documents(paragraph, copy, rng)]
    texts = ["".join(text for text, _ in document) for document in documents]
    return train_bpe(texts + [" ".join(sentences) for sentences in world.plain(4000, "tokenizer")], n_vocab)


def plain_rows(paragraphs, tokenizer):
    """Rows of paragraphs without annotation (lists of sentences): D_ORI."""
    documents = [[(" " * (k > 0) + s, "text") for k, s in enumerate(sentences)] + [brd.END] for sentences in paragraphs]
    return Rows.pack(brd.encode_documents(documents, tokenizer), tokenizer.n_vocab)


def vary_separator(document, rng):
    """A rendered document with the separator token, or in four of ten with line breaks or nothing in its place.

    A blind task is running text, without a separator token: a student that has only ever read behind one does not know
    that it may read elsewhere.
    """
    draw = rng.random()
    if draw < 0.6:
        return document
    return [("\n", "sep") if piece == brd.SEP else piece for piece in document if draw < 0.8 or piece != brd.SEP]


def reading_rows(paragraphs, copy, tokenizer, seed):
    """Rows of annotated paragraphs as D_NER or D_QRA; early ones use few of the surface forms, as world.LEVELS says, and
    only those of the last level have other separators."""
    rng, documents = random.Random(f"{copy} {seed}"), []
    for i, paragraph in enumerate(paragraphs):
        level = world.level(i / len(paragraphs))
        for document in brd.documents(paragraph, copy, rng, forms=level.forms):
            documents.append(vary_separator(document, rng) if level is world.LEVELS[-1] else document)
    return Rows.pack(brd.encode_documents(documents, tokenizer), tokenizer.n_vocab)


def annotated_paragraphs(tokens, config, seed, path=None):
    """Annotated paragraphs of the built-in world, enough for `tokens` tokens; kept in `path`, and read from there if made."""
    if path and path.exists():
        return annotations.read_annotations(path)
    share = 1 - config.plain_share - config.ner_share
    paragraphs = list(world.annotated(int(tokens * share / QRA_TOKENS) + 1, seed))
    if path:
        annotations.write_annotations(path, paragraphs)
    return paragraphs


def reading_sources(tokens, config, tokenizer, seed, path=None):
    """(sources, shares) of Basic Reading Distillation, enough for `tokens` tokens; path: see annotated_paragraphs."""
    shares = [config.plain_share, config.ner_share, 1 - config.plain_share - config.ner_share]
    paragraphs = annotated_paragraphs(tokens, config, seed, path)
    plain = plain_rows(world.plain(int(tokens * shares[0] / PLAIN_TOKENS) + 1, f"{seed} D_ORI"), tokenizer)
    return [plain] + [reading_rows(paragraphs, copy, tokenizer, seed) for copy in ("ner", "qra")], shares


def own_text(config):
    """(tokenizer, {"training", "validation": (rows, text)}) of a user's text. ValueError where it is too short."""
    text, glue = prepare.read_text(config.corpus).strip(), "\n\n"
    pieces = prepare.paragraphs(text)
    if len(pieces) < 10:  # a tenth is not one paragraph (no blank lines, one long line): split between sentences instead
        pieces, glue = prepare.sentences(text), ""
    if len(pieces) < 2:
        raise ValueError(f"{config.corpus}: one sentence, which leaves nothing to hold out; expected a longer text")
    texts = dict(zip(("training", "validation"), (glue.join(part) for part in prepare.split(pieces))))
    trained = config.tokenizer == "bpe"
    tokenizer = train_bpe([texts["training"]], config.n_vocab) if trained else get_tokenizer(config.tokenizer)
    parts = {}
    for name, text in texts.items():
        ids, block = tokenizer.encode(text), config.block_size
        if len(ids) < (2 * block if name == "training" else 2):
            smaller = 2 ** int(math.log2(max(len(ids), 2) / 2))
            remedy = f"try --block_size={smaller}, or a longer text" if smaller >= LENGTH_STEP else "try a longer text"
            raise ValueError(f"{config.corpus}: {len(ids)} tokens of {name} text, but block_size is {block}; {remedy}")
        windows = [ids[i:i + block] for i in range(0, len(ids) - 1, block - 1)]
        parts[name] = Rows.pack([(window, [0] * len(window)) for window in windows], tokenizer.n_vocab), text
    return tokenizer, parts
