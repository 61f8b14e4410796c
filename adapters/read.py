"""Reading at the command line: what a student reads in a text, or in lines that are typed or piped in.

    python brd.py read out/brd "Anna took a train to Oslo."
    python brd.py read out/brd "Anna took a train to Oslo." --ask "Where did Anna go?"
    python brd.py read out/brd --json < sentences.txt          # a line of JSON for each sentence
    python brd.py read out/brd                                 # a prompt; it takes questions as well

    [Anna|person] took a train to [Oslo|place].
        Where did Anna go? Oslo                                      # its own questions, and its answers
"""
import json
import random
import re
import sys

import brd
from data.annotated import marked
from data.annotations import lines_of, parse_entities, parse_question
from data.cli import Parser, printable
from data.tokenizer import Tokenizer
from model import GPT

STRANGE = 2         # tokens a word; a text of known words has about 1.2


def read(model, tokenizer, text):
    """Text (str) -> list of {"text", "entities", "questions"}, one a sentence; ValueError without any."""
    paragraph = [" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()]
    if not paragraph:
        raise ValueError('no text to read; try "Anna took a train to Oslo."')
    (found,), (raised,) = (brd.free_reading(model, tokenizer, [paragraph], b) for b in ("ner", "qra"))
    return [{"text": sentence, "entities": parse_entities(entities),
             "questions": list(filter(None, map(parse_question, lines_of(questions))))}
            for sentence, entities, questions in zip(paragraph, found, raised)]


def answer(model, tokenizer, records, question):
    """The student's answer to a question after the last of these sentences (what read returns) -> str."""
    question = question.strip().rstrip("?") + "?"
    asked = [{"text": record["text"], "questions": []} for record in records]
    asked[-1]["questions"] = [{"question": question, "kind": "content", "answer": ""}]
    ((_, found),), = brd.free_answers(model, tokenizer, [asked], random.Random(0), forms=1)
    return found


def doubts(tokenizer, text, records):
    """Why a reading may be worth nothing, in one line; "" where there is no doubt."""
    found = []
    if not any(record["entities"] or record["questions"] for record in records):
        found.append("no entity or question found; a student of plain text alone finds none")
    if len(tokenizer.encode(text)) > STRANGE * len(text.split()):
        found.append("few of these words were learnt: see annotations.jsonl of the student's run")
    return "; ".join(found)


def main(arguments=None):
    """The command brd.py read; ValueError for a folder without a student, and where there is no text."""
    parser = Parser(prog="brd.py read", description="A student reads a text.")
    parser.add_argument("folder", help="a trained student, for example out/brd")
    parser.add_argument("text", nargs="*", help="the text, in quotes; none: lines that are typed or piped in")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--ask", metavar="QUESTION", help="the answer to this question is printed instead")
    kind.add_argument("--json", action="store_true", help="a line of JSON for each sentence")
    options = parser.parse_intermixed_args(arguments)
    model, tokenizer = GPT.load(options.folder).eval(), Tokenizer.load(options.folder)
    at_prompt, records = not options.text and sys.stdin.isatty(), []
    if at_prompt:
        print("Type a sentence, or a paragraph in one line, then questions about it; Ctrl-D ends.")
    for text in [" ".join(options.text)] if options.text else filter(str.strip, sys.stdin):
        question = text if at_prompt and records and text.rstrip().endswith("?") else options.ask
        if question is not text:
            records = read(model, tokenizer, text)
            if doubt := doubts(tokenizer, text, records):
                print(f"note: {doubt}", file=sys.stderr, flush=True)
        if question:
            found = answer(model, tokenizer, records, question)
            print(printable(found) if found.strip() else "(an empty answer)", flush=True)
            continue
        for record in records:
            if options.json:
                print(json.dumps(record), flush=True)                # ASCII: safe in a terminal
                continue
            print(printable(marked(record["text"], record["entities"])), flush=True)
            for own in record["questions"]:
                print(f"    {printable(own['question'])} {printable(own['answer'])}", flush=True)
