"""Reading with a student: type a sentence, see what it reads in it.

    python brd.py read out/distilled "Anna took a train to Oslo."     # one reading
    python brd.py read out/distilled                                  # a prompt: a sentence or a paragraph, :top, :quit
    python brd.py read out/distilled --json < sentences.txt           # a line of text in, a line of JSON out

    [Anna|person] took a train to [Oslo|place].
        Where did Anna go? Oslo                                       # its own questions, and its answers
        teacher: Who went to Oslo? Anna                               # with --teacher=FOLDER

:top shows, for every token of the answers just given, the student's own set: the fewest tokens that hold 95 % of its mass.
Entities are coloured in a terminal, unless NO_COLOR is set; elsewhere they stand in brackets. Text is shown with its control
characters escaped, whoever wrote it.
"""

import json
import os
import re
import sys

import torch

from data.annotations import TYPES, marked, parse_entities, parse_questions, shown
from adapters.sentences import sentences
from experiments.teacher import top_p_sets
from data.tokenizer import Tokenizer
from model import GPT

# Of the 256 colours of terminals: seven that most colour-blind people can tell apart, and that can be read on black and white.
COLOURS = dict(zip(TYPES, (32, 166, 35, 133, 172, 68, 167)))


def add_arguments(parser):
    """The options of the command `brd.py read`."""
    parser.add_argument("folder", help="a trained student, for example out/distilled")
    parser.add_argument("what", nargs="*", help="the text, in quotes; none: a prompt, or the lines of a file that is piped in")
    parser.add_argument("--teacher", metavar="FOLDER", help="another checkpoint, whose questions are shown beside the student's")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each sentence")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")


def read(model, tokenizer, text):
    """Text (str) -> list of {"text", "entities", "questions", "reading"}, one a sentence; reading: the raw lines of questions
    and answers. ValueError where there is no text."""
    from brd import free_reading         # only here: brd.py knows this file
    paragraph = [" ".join(sentence.split()) for sentence in sentences(text) if sentence.strip()]
    if not paragraph:
        raise ValueError('no text to read; try "Anna took a train to Oslo."')
    (found,), (raised,) = (free_reading(model, tokenizer, [paragraph], copy) for copy in ("ner", "qra"))
    return [{"text": sentence, "entities": parse_entities(entities), "questions": parse_questions(questions), "reading": questions}
            for sentence, entities, questions in zip(paragraph, found, raised)]


def coloured(sentence, entities, colour):
    """A sentence for the eye: its entities in the colour of their type, or in brackets."""
    if not colour:
        return printable(marked(sentence, entities))
    types = {printable(entity["text"]): entity["type"] for entity in entities}
    words = "|".join(re.escape(text) for text in sorted(types, key=len, reverse=True))
    paint = lambda m: f"\x1b[1;38;5;{COLOURS[types[m[0]]]}m{m[0]}\x1b[0m"                                  # noqa: E731
    return re.sub(rf"(?<!\w)(?:{words})(?!\w)", paint, printable(sentence)) if types else printable(sentence)


def lines_of_reading(records, teachers, colour, as_json):
    """Lines to print for what `read` gave; teachers: the same of a teacher, or None."""
    for i, record in enumerate(records):
        if as_json:
            yield json.dumps({name: record[name] for name in ("text", "entities", "questions")})      # ASCII: safe in a terminal
            continue
        yield coloured(record["text"], record["entities"], colour)
        yield from (f"    {printable(own['question'])} {printable(own['answer'])}" for own in record["questions"])
        yield from (f"    teacher: {printable(own['question'])} {printable(own['answer'])}" for own in (teachers[i]["questions"] if teachers else ()))


@torch.no_grad()
def top_lines(model, tokenizer, records, p=0.95):
    """Lines to print: the set of mass p, with probabilities, at every token of the answers in the last sentence's reading."""
    ids = []
    for record in records[:-1]:
        ids += tokenizer.encode(" " * bool(ids) + record["text"]) + [tokenizer.sep] + tokenizer.encode(record["reading"]) + [tokenizer.sep]
    ids += tokenizer.encode(" " * bool(ids) + records[-1]["text"]) + [tokenizer.sep]
    for line in records[-1]["reading"].split("\n"):
        own = parse_questions(line)
        tokens = tokenizer.encode(line + "\n")
        if own and len(ids) + len(tokens) <= model.config.block_size:
            yield f"    {printable(own[0]['question'])}"
            logits = model.logits(model.hidden(torch.tensor([ids + tokens], device=model.mask.device)))[0, len(ids) - 1:-1]   # (T, V)
            begin = next(i for i in range(len(tokens) + 1) if len(tokenizer.decode(tokens[i:]).strip()) <= len(own[0]["answer"]))
            for token, sets, log_probs, mask in zip(tokens[begin:], *(x[begin:] for x in top_p_sets(logits, p, 8))):
                kept = [f"{printable(tokenizer.decode([i]))!r} {q:.2f}" for i, q in zip(sets[mask].tolist(), log_probs[mask].exp().tolist())]
                yield f"        {printable(tokenizer.decode([token]))!r:16} {'  '.join(kept)}"
        ids += tokens


def run(options):
    """The command: prints readings of the text given, of what is piped in, or of what is typed. ValueError in one line."""
    def opened(folder):
        return GPT.load(folder, options.device).eval(), Tokenizer.load(folder)
    student, teacher = opened(options.folder), opened(options.teacher) if options.teacher else None
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    typed = not options.what and sys.stdin.isatty()
    if typed:
        print("Type a sentence, or a paragraph in one line. :top shows the sets behind its answers, :quit ends.")
    records = []
    for text in [" ".join(options.what)] if options.what else prompted() if typed else sys.stdin:
        try:
            if text.strip() == ":top" and typed:
                lines = top_lines(*student, records) if records else ["nothing has been read yet"]
            elif typed and not text.strip() or not options.what and not text.strip():
                continue
            else:
                records = read(*student, text)
                lines = lines_of_reading(records, read(*teacher, text) if teacher else None, colour, options.json)
            for line in lines:
                print(line, flush=True)
        except ValueError as error:
            if not typed:                    # at a prompt, one may try again
                raise
            print(printable(str(error)))


def prompted():
    """The lines that are typed, until :quit or the end of the input."""
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            return print()
        if text.strip() == ":quit":
            return
        yield text
