"""From text to rows: stages 1 to 3 of the course.

    tokenizer = course_tokenizer("world", 1024)
    sources, shares = reading_mix(1_000_000, config, tokenizer, seed=1)     # D_ORI, D_NER, D_QRA of the built-in world
    training, held_out = annotated_text("primer")                               # natural text that a teacher has annotated
    tokenizer, parts = own_text(config)                                         # a text of your own, without annotations
"""

import functools
import math
import random
from pathlib import Path

import brd
from data import annotations, prepare, world
from data.batches import LENGTH_STEP, Rows
from data.tokenizer import get_tokenizer, train_bpe

# Predicted tokens in an average document, rounded down: they tell how many paragraphs to write for a number of tokens.
PLAIN_TOKENS, QRA_TOKENS = 10, 56
# Words for vary_layout: no answers, and none that speak of the task itself, lest the wrapper of a test be met by chance; for the
# same reason no short ones, of which two in a row are in every other sentence.
PHRASE_WORDS = sorted({word for word in (word.strip(".,:?") for line in annotations.OPENERS + annotations.BRIDGES + world.SAYINGS
                                         for word in line.split()) if len(word) > 3}
                      - {"none", "good", "true", "text", "question", "Question", "answer", "Answer", *annotations.TYPES})


PRIMER = Path(__file__).resolve().parent / "primer" / "primer.jsonl"
PIECE = 3    # sentences of a natural paragraph in one document; longer ones would often not fit into a row


def is_annotated(corpus):
    """Whether a corpus is one that a teacher has annotated: "primer", or a file as brd.py annotate writes it."""
    return corpus == "primer" or corpus.endswith(".jsonl")


@functools.cache
def annotated_text(corpus):
    """Paragraphs of an annotated corpus -> (training, held out), lists of lists of records; every third is held out.

    Raises ValueError where the file holds fewer than three paragraphs, and as annotations.read_annotations does."""
    paragraphs = annotations.read_annotations(PRIMER if corpus == "primer" else corpus)
    if len(paragraphs) < 3:
        raise ValueError(f"{corpus}: {len(paragraphs)} paragraphs, of which every third is held out; expected at least 3")
    return [paragraph for i, paragraph in enumerate(paragraphs) if i % 3 != 2], paragraphs[2::3]


def text_sources(corpus, tokenizer, block_size, seed):
    """Rows of an annotated corpus' training part: [D_ORI, D_NER, D_QRA]. A natural paragraph is cut into pieces of PIECE
    sentences, and read four times over in other surface forms."""
    pieces = [paragraph[i:i + PIECE] for paragraph in annotated_text(corpus)[0] for i in range(0, len(paragraph), PIECE)]
    rows = [plain_rows([[record["text"] for record in piece] for piece in pieces], tokenizer)]
    for copy in ("ner", "qra"):
        rng = random.Random(f"{corpus} {copy} {seed}")
        encoded = brd.encode_documents([brd.render(piece, copy, rng) for piece in pieces * 4], tokenizer)
        rows.append(Rows.pack([(ids, roles) for ids, roles in encoded if len(ids) <= block_size + 1], tokenizer.n_vocab))
    return rows


@functools.cache                    # a process asks for it more than once, and it takes a second
def course_tokenizer(corpus, n_vocab):
    """A BPE of a fixed sample of the built-in world, and of the training part of an annotated corpus if there is one. Without
    one, every run and the teacher's cache share this vocabulary."""
    rng = random.Random("tokenizer")
    documents = [document for paragraph in world.annotated(4000, "tokenizer") for copy in ("ner", "qra")
                 for document in brd.documents(paragraph, copy, rng)]
    if is_annotated(corpus):        # as often as makes it weigh like the world's own words
        documents += [brd.render(paragraph, copy, rng) for paragraph in annotated_text(corpus)[0] * 20 for copy in ("ner", "qra")]
    texts = ["".join(text for text, _ in document) for document in documents]
    return train_bpe(texts + [" ".join(sentences) for sentences in world.plain(4000, "tokenizer")], n_vocab)


def plain_rows(paragraphs, tokenizer):
    """Rows of paragraphs without annotation (lists of sentences): D_ORI."""
    documents = [[(" " * (k > 0) + s, "text") for k, s in enumerate(sentences)] + [brd.END] for sentences in paragraphs]
    return Rows.pack(brd.encode_documents(documents, tokenizer), tokenizer.n_vocab)


def phrase(rng):
    """Up to three words and perhaps a mark, drawn at random; "" one time in three."""
    words = [rng.choice(PHRASE_WORDS) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]
    return " ".join(words) + rng.choice(("", ":", ",", " -", ".")) if words else ""


def vary_layout(document, rng):
    """A rendered document as running text: without separator tokens, with line breaks, with random words around passage,
    question and entity.

    A blind task looks like nothing that was read before. A student that knows a single layout takes a strange word before
    the answer for a sign of it; what changes at random tells it nothing, and it learns to look at the passage.
    """
    gap, joint = rng.choice(("", "\n", "\n\n")), rng.choice((" ", "\n"))
    first, before, after, reworded = phrase(rng), phrase(rng), phrase(rng), rng.random() < 0.5
    varied = [(first, "text")] * bool(first)
    for i, (text, role) in enumerate(document):
        entity = annotations.parse_entity(text) if reworded and role == "entity" else None
        if entity:  # "Oslo: place, goal" as words, Oslo, words, place
            varied += [(joint + part, "entity") for part in (before, entity["text"], after) if part]
            varied.append((f" {entity['type']}\n", "answer"))
        elif role == "question" and not reworded:
            varied.append((joint + text[1:], role))
        elif role == "question":  # in place of its opener and bridge
            varied += [(joint + part, role) for part in (before, text[1:], after) if part] if text.endswith("?") else []
        elif (text, role) == brd.SEP:
            varied += [(gap, role)] * bool(gap)
        else:
            varied.append((joint + text if first and i == 0 else text, role))
    return varied


def reading_documents(paragraphs, copy, seed, levels=world.LEVELS):
    """Annotated paragraphs rendered as D_NER or D_QRA. How they look is told by the levels: early ones have few of the surface
    forms; of late ones, some are laid out in another way."""
    rng = random.Random(f"{copy} {seed}")
    for i, paragraph in enumerate(paragraphs):
        level = world.level(i / len(paragraphs), levels)
        for document in brd.documents(paragraph, copy, rng, forms=level.forms, join_prob=level.join_prob):
            yield vary_layout(document, rng) if level.varied and rng.random() < level.varied else document


def reading_rows(paragraphs, copy, tokenizer, seed, block_size, levels=world.LEVELS):
    """Rows of annotated paragraphs as D_NER or D_QRA, without the few that are too long for block_size."""
    encoded = brd.encode_documents(list(reading_documents(paragraphs, copy, seed, levels)), tokenizer)
    return Rows.pack([(ids, roles) for ids, roles in encoded if len(ids) <= block_size + 1], tokenizer.n_vocab)


def annotated_paragraphs(tokens, config, seed, path=None):
    """Annotated paragraphs of the built-in world, enough for `tokens` tokens; kept in `path`, and read from there if made."""
    if path and path.exists():
        return annotations.read_annotations(path)
    share = 1 - config.plain_share - config.ner_share
    paragraphs = list(world.annotated(int(tokens * share / QRA_TOKENS) + 1, seed))
    if path:
        annotations.write_annotations(path, paragraphs)
    return paragraphs


def reading_mix(tokens, config, tokenizer, seed, path=None):
    """(sources, shares) of Basic Reading Distillation on the built-in world, enough for `tokens` tokens; path: see
    annotated_paragraphs."""
    shares = [config.plain_share, config.ner_share, 1 - config.plain_share - config.ner_share]
    paragraphs = annotated_paragraphs(tokens, config, seed, path)
    plain = plain_rows(world.plain(int(tokens * shares[0] / PLAIN_TOKENS) + 1, f"{seed} D_ORI"), tokenizer)
    return [plain] + [reading_rows(paragraphs, copy, tokenizer, seed, config.block_size) for copy in ("ner", "qra")], shares


def own_text(config):
    """(tokenizer, {"training", "validation": (rows, text)}) of a user's text. ValueError where it is too short. A text from
    data/stream.LARGE on is not read whole, but streamed (data/stream.py)."""
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
        parts[name] = Rows.windows(ids, block, tokenizer.n_vocab), text
    return tokenizer, parts
