r"""From annotated paragraphs to rows of tokens: three copies of a text, and what a student reads of them.

    ori  s1 s2 s3 <end>
    ner  s1 <sep> Anna: person, traveller\n Oslo: place, goal\n <sep> s2 <sep> ... <sep> <end>
    qra  s1 <sep> Where did Anna go? Oslo\n <sep> s2 <sep> ... <sep> <end>

A document is a list of pieces (text, role); <sep> and <end> are one token each. A token's role decides its
weight in the loss.
"""

import functools
import importlib
import random
from itertools import islice
from pathlib import Path

import numpy as np

from data import annotations, world
from data.annotations import ALL_FORMS, BRIDGES, ENTITY_FORMS, NO_ENTITY, OPENERS, entity_line, question_texts
from data.batches import DataMix, Rows
from data.cache import cache_hash
from data.cli import printable, progress
from data.files import hash_of
from data.machine import barrier
from data.tokenizer import Tokenizer, train_bpe

ROLES = ("text", "entity", "question", "answer", "sep", "end")
SEP, END = ("", "sep"), ("", "end")
BEHAVIOURS = ("ori", "ner", "qra")
PLAIN_TOKENS, QRA_TOKENS = 10, 88       # predicted tokens of an average document, rounded down,
OPEN_QRA_TOKENS = 120                   # and of the open world
PIECE = 3                               # sentences of a natural paragraph in one document
TEST_LEVELS = {"single": world.SINGLE, "paragraph": world.FULL, "alike": world.ALIKE}   # see fresh_text
QUESTIONS_FIRST = 0.3                   # part of a reading student's run that is questions alone
NER_JOIN = 0.3      # how much less often sentences wait to be read together for entities than for questions
# Words for vary_layout, without answers, words that speak of the task itself, and short words.
PHRASE_WORDS = sorted(
    {word.strip(".,:?") for line in OPENERS + BRIDGES + world.SAYINGS for word in line.split()
     if len(word.strip(".,:?")) > 3}
    - {"none", "good", "true", "text", "question", "Question", "answer", "Answer", *annotations.TYPES})


def render_reading(record, behaviour, rng, forms=ALL_FORMS):
    """Pieces (text, role) of the reading of one sentence, without the separators around it; behaviour: "ner",
    "qra". Every line draws its own form, one of the first `forms`. The record is not changed."""
    if behaviour == "ner":
        lines = [entity_line(e["text"], e["type"], e["about"], rng.randrange(min(forms, len(ENTITY_FORMS))))
                 for e in record["entities"]]
        return [(f" {line}\n", "entity") for line in lines or [NO_ENTITY]]
    pieces = []
    for item in record["questions"]:
        pieces += [(text, "question") for text in question_texts(item["question"], forms, rng)]
        pieces.append((f" {item['answer']}\n", "answer"))
    return pieces


def render(paragraph, behaviour, rng, forms=ALL_FORMS, join_prob=0.0):
    """One paragraph (list of records, none of them changed) -> one document (list of pieces, END last).
    ValueError for a behaviour that is not in BEHAVIOURS, and for forms below 1.

    rng: a random.Random that draws one of the first `forms` surface forms for every line, 1 = the plain one.
    join_prob: the probability that a sentence waits to be read together with the next one; it is drawn for
    every sentence but the last. Every piece with text but the first begins with a space, so that pieces
    encoded one by one are the tokens of the running text."""
    if behaviour not in BEHAVIOURS or forms < 1:
        raise ValueError(f"behaviour {behaviour!r}, {forms} forms; expected ori, ner or qra and at least 1")
    pieces, waiting = [], []
    for record in paragraph:
        pieces.append((" " + record["text"] if pieces else record["text"], "text"))
        waiting.append(record)
        if behaviour == "ori" or (record is not paragraph[-1] and rng.random() < join_prob):
            continue
        # "Is this good or bad?" is asked of the sentence read last. All other questions come in any order: in
        # the order of their sentences, the position of a question would reveal its answer.
        asked = [question for read in waiting for question in read["questions"]
                 if read is record or not (question["kind"] == "attitude" or question.get("now"))]
        if len(waiting) > 1:
            rng.shuffle(asked)
        joined = {"entities": [e for read in waiting for e in read["entities"]], "questions": asked}
        pieces += [SEP, *render_reading(joined, behaviour, rng, forms), SEP]
        waiting = []
    return pieces + [END]


def phrase(rng):
    """Up to three words and perhaps a mark, drawn at random; "" one time in three."""
    words = [rng.choice(PHRASE_WORDS) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]
    return " ".join(words) + rng.choice(("", ":", ",", " -", ".")) if words else ""


def vary_layout(document, rng):
    """A rendered document as running text: without separator tokens, with line breaks, and with random words
    around passage, question and entity, since a blind task has a layout that was never read."""
    gap, joint = rng.choice(("", "\n", "\n\n")), rng.choice((" ", "\n"))
    first, before, after, reworded = phrase(rng), phrase(rng), phrase(rng), rng.random() < 0.5
    varied = [(first, "text")] if first else []
    for i, (text, role) in enumerate(document):
        entity = annotations.parse_entity(text) if reworded and role == "entity" else None
        if entity:  # "Oslo: place, goal" as words, Oslo, words, place
            varied += [(joint + part, "entity") for part in (before, entity["text"], after) if part]
            varied.append((f" {entity['type']}\n", "answer"))
        elif role == "question" and not reworded:
            varied.append((joint + text[1:], role))
        elif role == "question":  # the phrases stand in place of its opener and bridge
            if text.endswith("?"):
                varied += [(joint + part, role) for part in (before, text[1:], after) if part]
        elif role != "sep":
            varied.append((joint + text if first and i == 0 else text, role))
        elif gap:
            varied.append((gap, role))
    return varied


def encode_documents(documents, tokenizer):
    """Documents (lists of pieces) -> list of (ids, roles), two lists of int of equal length. A piece without
    text is the special token of its role, "sep" or "end"; any other piece is its text, whatever its role. All
    distinct texts go to tokenizer.encode_batch in one call, each once."""
    distinct = list({text for document in documents for text, _ in document if text})
    known = dict(zip(distinct, tokenizer.encode_batch(distinct)))
    special, encoded = {"sep": [tokenizer.sep], "end": [tokenizer.end]}, []
    for document in documents:
        pieces = [(known[text] if text else special[role], ROLES.index(role)) for text, role in document]
        encoded.append(([i for ids, _ in pieces for i in ids], [role for ids, role in pieces for _ in ids]))
    return encoded


def role_weights(config):
    """(len(ROLES),) float32: what a token of each role weighs in the loss; options of train.Config."""
    weights = {"answer": config.answer_weight, "text": config.text_weight}
    return np.array([weights.get(role, 1.0) for role in ROLES], np.float32)


def plain_rows(paragraphs, tokenizer):
    """Rows of paragraphs without annotation (lists of sentences): D_ORI."""
    documents = [[(" ".join(sentences), "text"), END] for sentences in progress(paragraphs, "text", delay=5)]
    return Rows.pack(encode_documents(documents, tokenizer), tokenizer.n_vocab)


def plain_text(tokens, seed, tokenizer, corpus="world"):
    """Rows of plain text of the world that is read with `corpus`, enough for `tokens` tokens."""
    return plain_rows(world.plain(int(tokens / PLAIN_TOKENS) + 1, seed, levels_of(corpus)), tokenizer)


def levels_of(corpus):
    """The levels of the world in a run that reads `corpus`: those of data/stories.py for "open"."""
    return importlib.import_module("data.stories").OPEN if corpus == "open" else world.LEVELS


def fitting_rows(documents, tokenizer, block_size):
    """Rows of rendered documents, without those that are too long for block_size."""
    encoded = [pair for pair in encode_documents(documents, tokenizer) if len(pair[0]) <= block_size + 1]
    return Rows.pack(encoded, tokenizer.n_vocab)


def reading_documents(paragraphs, behaviour, seed, levels=world.LEVELS):
    """Annotated paragraphs rendered as D_NER or D_QRA, which look as the levels tell."""
    rng = random.Random(f"{behaviour} {seed}")
    for i, paragraph in enumerate(progress(paragraphs, behaviour, delay=5)):
        level = world.level(i / len(paragraphs), levels)
        join_prob = 1.0 if level.whole and rng.random() < level.whole else level.join_prob
        join_prob *= 1.0 if behaviour == "qra" else NER_JOIN
        document = render(paragraph, behaviour, rng, level.forms, join_prob)
        yield vary_layout(document, rng) if level.varied and rng.random() < level.varied else document


def reading_rows(paragraphs, behaviour, tokenizer, seed, block_size, levels=world.LEVELS):
    """Rows of annotated paragraphs as D_NER or D_QRA; see reading_documents."""
    return fitting_rows(list(reading_documents(paragraphs, behaviour, seed, levels)), tokenizer, block_size)


def world_paragraphs(tokens, config, seed):
    """Annotated paragraphs of the built-in world, enough for `tokens` tokens: list of lists of records."""
    share = 1 - config.plain_share - config.ner_share
    length, levels = OPEN_QRA_TOKENS if config.corpus == "open" else QRA_TOKENS, levels_of(config.corpus)
    n = int(tokens * share / length) + 1
    return list(progress(world.annotated(n, seed, levels), "annotations", total=n, delay=5))


def reading_mix(tokens, config, tokenizer, seed, paragraphs=None):
    """([D_ORI, D_NER, D_QRA] as Rows, their shares) of the built-in world, enough for `tokens` tokens."""
    shares = [config.plain_share, config.ner_share, 1 - config.plain_share - config.ner_share]
    paragraphs = paragraphs or world_paragraphs(tokens, config, seed)
    plain = plain_text(tokens * shares[0], f"{seed} D_ORI", tokenizer, config.corpus)
    options = tokenizer, seed, config.block_size, levels_of(config.corpus)
    ner, qra = (reading_rows(paragraphs, behaviour, *options) for behaviour in ("ner", "qra"))
    return [plain, ner, qra], shares


def gold_mix(tokens, config, tokenizer):
    """More annotated text like that of the cache: paragraphs of the last level, a quarter of it D_NER."""
    seed, levels = f"{config.seed} gold", levels_of(config.corpus)[-1:]
    paragraphs = list(world.annotated(int(tokens / QRA_TOKENS) + 1, seed, levels))
    rows = [reading_rows(paragraphs, b, tokenizer, seed, config.block_size, levels) for b in ("ner", "qra")]
    return DataMix(rows, [0.25, 0.75])


def data_mix(name, config, tokenizer, paragraphs):
    """What "plain" or "brd" reads in config.student_tokens tokens -> DataMix of Rows, whose shares sum to 1.

    plain   plain_text that no other student reads, by the seed "SEED plain" (SEED is config.seed), enough for
            the run, so that none of it is read twice
    brd     reading_mix of config.seed and of `paragraphs` (of world_paragraphs). The D_QRA of the world
            begins with the run, all other sources begin at QUESTIONS_FIRST

    An annotated config.corpus takes corpus_share of all tokens: `plain` reads its D_ORI alone, after its own
    text in the list; `brd` all three, after those of the world and in the same proportions. Where nobody
    listed entities, the share of its D_NER is 0, and its D_QRA takes that part."""
    own, share = iter(()), 0.0
    if is_annotated(config.corpus):
        own = text_sources(config.corpus, tokenizer, config.block_size, config.seed)
        share = config.corpus_share
    if name == "plain":
        text = plain_text(config.student_tokens, f"{config.seed} plain", tokenizer, config.corpus)
        rows = [text, *islice(own, 1)]
        return DataMix(rows, [1 - share, share][:len(rows)])
    sources, shares = reading_mix(config.student_tokens, config, tokenizer, config.seed, paragraphs)
    own = list(own)
    ner = shares[1] if own and len(own[1]) else 0.0
    of_own = [part * share for part in (shares[0], ner, 1 - (shares[0] + ner))][:len(own)]
    # Questions come first and alone: other tasks hold up a reader who is still guessing.
    start_at = [0.0 if i == 2 else QUESTIONS_FIRST for i in range(len(sources + own))]
    return DataMix(sources + own, [part * (1 - share) for part in shares] + of_own, start_at)


def plain_test(tokenizer):
    """500 fresh paragraphs of plain text, the same for every seed -> (Rows, bytes of their text)."""
    texts = list(world.plain(500, "test plain"))
    return plain_rows(texts, tokenizer), sum(len(" ".join(text).encode("utf-8")) for text in texts)


def fresh_text(place, n):
    """The text of a reading test, of pairs that no training text tells, and the same for every student ->
    (n world.Paragraphs, their records). place: "single" sentences, a "paragraph" about two people, or
    "alike": two people who did alike, and questions about both at the end."""
    rng, level = random.Random(f"test {place}"), TEST_LEVELS[place]
    drawn = [world.draw_paragraph(rng, level, split="test", asides=0 if place == "alike" else 0.2)
             for _ in range(n)]
    records = [world.annotate(rng, paragraph, i, level) for i, paragraph in enumerate(drawn)]
    if place == "alike":
        for some, paragraph in zip(records, drawn):
            for record in some:
                record["questions"] = []
            some[-1]["questions"] = world.questions_at_end(rng, paragraph, level)
    return drawn, records


def held_out_records(n, seed):
    """The records of n fresh paragraphs about two people, for a short look at a student."""
    rng = random.Random(seed)
    return [world.annotate(rng, world.draw_paragraph(rng, split="test"), i) for i in range(n)]


def is_annotated(corpus):
    """Whether a corpus has been annotated by a teacher: "primer", or a file that brd.py annotate wrote."""
    return corpus == "primer" or corpus.endswith(".jsonl")


def is_own(corpus):
    """Whether a corpus is a text of one's own, which nobody has annotated."""
    return corpus not in ("world", "open") and not is_annotated(corpus)


def run_inputs(config, tasks, teacher):
    """Hashes of what a run of train.py reads: {name: hash}. tasks: files; teacher: the world's cache (path).
    Drops arms that have no cache. ValueError for an option that has no effect on what is read."""
    annotated, own = is_annotated(config.corpus), is_own(config.corpus)
    if own or config.corpus != "world" and not config.cache:
        if config.arms:
            config.refuse(True, "without annotations" if own else "without a --cache of this corpus", "arms")
        config.arms = ""
    config.refuse(not own, "without a text of your own", "tokenizer")
    config.refuse(not annotated, "without annotations as --corpus", "corpus_share")
    config.refuse(config.minutes, "beside --minutes", "student_tokens")
    config.refuse(not config.arms, "without arms", "cache arm_rate p gamma")
    arms = set(config.arms.split(","))
    config.refuse(not arms & {"kd", "td", "td0", "improve"}, "without kd, td, td0 and improve", "leak")
    config.refuse(not arms & {"td", "td0"}, "without td and td0", "alpha")
    if config.text_weight == 0 and not own:
        raise ValueError("--text_weight=0.0: plain text alone would teach nothing; expected more than 0")
    inputs = {}
    if config.init_from:
        inputs["start hash"] = hash_of(Path(config.init_from) / "model.pt")
    if own:
        return inputs | importlib.import_module("data.own_text").text_hash(config)
    inputs["task files"] = hash_of(*tasks)
    if config.corpus.endswith(".jsonl"):
        inputs["text hash"] = hash_of(Path(config.corpus))
    if config.cache or config.corpus == "world":
        inputs["cache hash"] = cache_hash(config.cache or teacher, config.p, ROLES)
    return inputs


def run_tokenizer(config):
    """The tokenizer of a run, which is trained once and kept in its out_dir."""
    out = Path(config.out_dir)
    if not (out / "tokenizer.json").exists():
        tokenizer = (Tokenizer.load(config.init_from) if config.init_from
                     else course_tokenizer(config.corpus, config.n_vocab))
        tokenizer.save(out)
    barrier()
    return Tokenizer.load(out)


def text_sources(corpus, tokenizer, block_size, seed):
    """Yields D_ORI, D_NER, D_QRA as Rows of an annotated corpus' training part, in pieces of PIECE sentences;
    annotated ones are read four times over in other surface forms. Where nobody listed entities, D_NER has no
    rows. A line says how many documents are too long."""
    from data.annotated import annotated_text           # the built-in world does without
    pieces = [paragraph[i:i + PIECE] for paragraph in annotated_text(corpus)[0]
              for i in range(0, len(paragraph), PIECE)]
    yield plain_rows([[record["text"] for record in piece] for piece in pieces], tokenizer)
    listed = [piece for piece in pieces if all(r["entities"] != annotations.NOT_LISTED for r in piece)]
    for behaviour, pieces in (("ner", listed), ("qra", pieces)):
        rng = random.Random(f"{corpus} {behaviour} {seed}")
        documents = [render(piece, behaviour, rng) for piece in pieces * 4]
        rows = fitting_rows(documents, tokenizer, block_size)
        if len(rows) < len(documents):
            what = f"{len(documents) - len(rows)} of {len(documents)} {behaviour} readings"
            print(printable(f"{corpus}: left out: {what}, longer than --block_size={block_size}"), flush=True)
        yield rows


@functools.cache                    # a process asks for it more than once, and it takes a second
def course_tokenizer(corpus, n_vocab):
    """A BPE of a fixed sample of the built-in world, and of the training part of an annotated corpus; "open":
    of the primer, which holds common English words."""
    rng, levels = random.Random("tokenizer"), levels_of(corpus)
    paragraphs = list(world.annotated(4000, "tokenizer", levels))
    if corpus != "world":           # so often that its words weigh like the world's own
        from data.annotated import annotated_text
        paragraphs += annotated_text("primer")[0] if corpus == "open" else annotated_text(corpus)[0] * 20
    texts = ["".join(text for text, _ in render(paragraph, behaviour, rng))
             for paragraph in paragraphs for behaviour in ("ner", "qra")]
    plain = [" ".join(sentences) for sentences in world.plain(4000, "tokenizer", levels)]
    return train_bpe(texts + plain, n_vocab)
