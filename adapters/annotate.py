"""An LLM as the teacher: every sentence of a text goes to a chat endpoint, annotations.jsonl comes back.

    python brd.py annotate my.txt --teacher http://localhost:11434/v1 --model qwen3

Each sentence is asked about twice, once for each reading behaviour; with --roundtrip its questions are asked
again. Raw replies are kept in annotations.replies.jsonl: a run that was killed continues from them, and a
better parser needs no new request. A reply that is late or cannot be used is asked for again, TRIES times in
all, the first at temperature 0 and the others at WARM with another seed. A sentence without usable replies is
named and gets no record; what follows it is a new paragraph: the sentences of a paragraph are neighbours in
the text.
"""
import json
import re
from collections import Counter
from pathlib import Path

from adapters.endpoint import ask_all, endpoint_url, probe, read_replies, secret_key
from adapters.prompts import FIELDS, agree, occurs, parse, read_prompts
from adapters.sentences import END, MAX_SENTENCE, sentences
from data.annotations import write_annotations
from data.cli import CONTROL, Parser, check_range, printable
from data.files import digest, lock, sha256_of, write_text
from data.own_text import paragraphs, read_text

TRIES, WARM, UNASKED = 3, 0.7, "not asked yet"
LIMITS = "max_tokens", "max_completion_tokens"      # fields of a body that a reply is not found by


def parse_arguments(arguments):
    """The options of the command, with url and secret. ValueError for bad ones."""
    parser = Parser(prog="brd.py annotate", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("text", help="a UTF-8 text file, or a folder with .txt and .md files")
    add("--teacher", required=True, metavar="URL", help="OpenAI-compatible; its key is OPENAI_API_KEY")
    add("--model", required=True, metavar="NAME", help="the model's name there")
    add("--out", default="annotations.jsonl", metavar="FILE", type=Path, help="[%(default)s]")
    add("--limit", type=int, default=10**9, metavar="N", help="only the first N sentences")
    add("--parallel", type=int, default=8, metavar="N", help="requests in flight [%(default)s]")
    add("--timeout", type=float, default=120, metavar="S", help="seconds for a request [%(default)s]")
    add("--retries", type=int, default=6, metavar="N", help="after a failed request [%(default)s]")
    add("--max_tokens", type=int, default=500, metavar="N", help="of a reply and its thoughts [%(default)s]")
    add("--schema", action="store_true", help="bind each reply to a JSON schema made of its sentence")
    add("--roundtrip", action="store_true", help="keep a question if the model answers it alike again")
    add("--prompts", default=Path(__file__).with_name("prompts.txt"), metavar="FILE", help="your own prompts")
    add("--body", default="{}", metavar="JSON", help="fields to add to each request, null "
        """removes one: '{"temperature": null, "reasoning_effort": "low"}'""")
    add("--dry_run", action="store_true", help="print the first prompts, send nothing")
    options = parser.parse_args(arguments)
    for name in ("limit", "parallel", "timeout", "retries", "max_tokens"):
        most = 256 if name == "parallel" else 10**9             # a thread each
        check_range(name, getattr(options, name), above=None if name == "retries" else 0, most=most)
    if options.out.suffix != ".jsonl":                  # never over the text itself
        raise ValueError(f"--out={options.out}, expected a file name that ends in .jsonl")
    try:
        options.body = {**json.loads(options.body)}
    except (ValueError, TypeError):
        raise ValueError(f"--body={options.body}, expected a JSON object") from None
    if told := {"model", "messages"} & set(options.body):       # replies are found by them
        raise ValueError(f"--body: {told.pop()} is what --model and --prompts say; leave it out")
    options.url, options.secret = endpoint_url(options.teacher), secret_key()
    options.prompts = read_prompts(options.prompts)
    return options


def request(messages, k, options, schema=None):
    """Try number k of a chat -> (key, body): the hash that names its reply, and the JSON object to send."""
    body = {"model": options.model, "messages": messages, "seed": k, "temperature": WARM if k else 0,
            "max_tokens": options.max_tokens}
    if schema:
        named = {"name": "reading", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    body = {name: value for name, value in {**body, **options.body}.items() if value is not None}
    return digest([{name: value for name, value in body.items() if name not in LIMITS}, k]), body


def is_open(key, replies, options):
    """Whether a request has no reply, or one that was cut off at a limit lower than that of now."""
    reply = replies.get(key)
    return not reply or reply["finish"] == "length" and reply["max_tokens"] < options.max_tokens


def outcome(behaviour, sentence, replies, options):
    """What the replies give -> (items, dropped, why) as prompts.parse gives them, and the request to send
    now, None if a reply can be used or all TRIES are spent, and its questions have been asked again."""
    prompts, kept, send = options.prompts, [], None
    messages = prompts.messages(behaviour, sentence)
    schema = prompts.schema(behaviour, sentence) if options.schema else None
    for k in range(TRIES):
        key, body = request(messages, k, options, schema)
        if key in replies:
            reply = replies[key]
            items, dropped, why = parse(behaviour, sentence, reply["reply"], prompts, reply["finish"])
            if why is None:
                break
        if is_open(key, replies, options):
            send = send or (key, body)
    else:                               # no reply can be used
        if send:
            return [], Counter(), UNASKED, send
    if behaviour == "ner" or not options.roundtrip:
        return items, dropped, why, None
    for item in items:
        if item["kind"] == "content" and occurs(item["answer"], item["question"]):     # no test of the answer
            dropped["answer that its question tells"] += 1
            continue
        schema = prompts.choices(sentence, item) if options.schema else None
        key, body = request(prompts.again(sentence, item), 0, options, schema)
        exact = item["answer"] in prompts.fixed(item["kind"])
        if key in replies and agree(replies[key]["reply"], item["answer"], exact):
            kept.append(item)
        elif is_open(key, replies, options):
            return [], Counter(), UNASKED, (key, body)
        else:
            dropped["not answered alike when asked again"] += 1
    return kept, dropped, why, None


def collect(text, replies, failures, options):
    """All that the replies give -> (annotated, missing, dropped): paragraphs (lists of records), a list of
    (sentence without a record, reasons), and a Counter of why items are missing in the records."""
    found, missing, dropped = [], [], Counter()
    for lines in text:
        found.append([])
        for line in lines:
            given = {behaviour: outcome(behaviour, line, replies, options) for behaviour in FIELDS}
            problems = [f"{b}: {failures.get((b, line), why)}" for b, (_, _, why, _) in given.items() if why]
            if problems:
                missing.append((line, problems))
                found.append([])        # a gap ends the paragraph
                continue
            found[-1].append({"text": line, **{FIELDS[b]: items for b, (items, *_) in given.items()}})
            for behaviour, (_, reasons, *_) in given.items():
                dropped.update({f"{behaviour}: {reason}": n for reason, n in reasons.items()})
    annotated = [[{"paragraph": i, "sentence": j, **record} for j, record in enumerate(records)]
                 for i, records in enumerate(filter(None, found))]
    return annotated, missing, dropped


def say(line, reasons=()):
    """Prints a line, and below it a table of reasons, the most common first, without the words of servers."""
    reasons = Counter(re.sub("(HTTP [^:]*): .*", r"\1", reason) for reason in reasons)
    for text in [line] + [f"  {n:9,}  {reason}" for reason, n in reasons.most_common()]:
        print(printable(text), flush=True)


def report(new, retries, options):
    """Says of the replies of this run whose they are, how many were cut off, and how long they are."""
    if others := {reply["by"] for reply in new} - {options.model, None}:
        say(f"--model={options.model}, but the replies are of {', '.join(sorted(others))}")
    cut_off = sum(reply["finish"] == "length" for reply in new)
    read, written = (sum(reply["tokens"][i] for reply in new) for i in (0, 1))
    say(f"{len(new):,} replies, {cut_off:,} cut off, {read:,} tokens read, {written:,} written; "
        f"{len(retries):,} requests repeated", retries)


def read_sentences(path, limit):
    """The first sentences of a text -> list of paragraphs, each a list of str; says how many were cut."""
    text, cut = [], 0
    for paragraph in paragraphs(read_text(path)):
        paragraph = " ".join(CONTROL.sub(" ", paragraph).split())
        text.append([sentence.strip() for sentence in sentences(paragraph)][:limit])
        limit -= len(text[-1])
        cut += sum(not END.search(line) for line in text[-1][:-1])
    if cut:
        say(f"cuts between words, in sentences of more than {MAX_SENTENCE} characters: {cut:,}")
    return text


def main(arguments=None):
    """The command. What stops it (ValueError, OSError, Ctrl-C) is raised after all is written."""
    options = parse_arguments(arguments)
    text = read_sentences(options.text, options.limit)
    jobs = list(dict.fromkeys((behaviour, line) for lines in text for line in lines for behaviour in FIELDS))
    if options.dry_run:
        say(f"{len(jobs):,} requests to {options.url}; nothing is sent. The first of each behaviour:")
        for behaviour, line in jobs[:len(FIELDS)]:
            body = outcome(behaviour, line, {}, options)[3][1]
            for turn in body.pop("messages"):
                print("\n".join(map(printable, f"{turn['role']}: {turn['content']}\n".split("\n"))))
            say(json.dumps(body))
        return
    path = options.out.with_suffix(".replies.jsonl")
    if options.out.exists() and not path.exists():
        raise ValueError(f"{options.out}: no {path.name} beside it, so this command did not write it; use "
                         "another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        lock(file, path)                # else all would be asked, and paid, twice
        annotate(text, jobs, path, options)


def annotate(text, jobs, path, options):
    """Asks for what the file of replies lacks, and writes options.out; reports both."""
    def next_request(job):
        if job is None:                 # an example of the prompt, under a key that no reply has
            example = next(iter(options.prompts.examples))
            return request(options.prompts.messages("ner", example), len(replies), options)
        return outcome(*job, replies, options)[3]
    mark = options.out.with_suffix(".sha256")           # of what this command wrote
    written = mark.exists() and options.out.exists()
    if written and sha256_of(options.out) != mark.read_text(encoding="utf-8"):
        raise ValueError(f"{options.out}: changed since it was written; move it to another place first")
    replies = read_replies(path)
    total, todo = sum(map(len, text)), list(filter(next_request, jobs))
    say(f"{total:,} sentences, {len(jobs):,} readings, {len(jobs) - len(todo):,} of them settled by {path}")
    if todo:
        probe(options)
    new, failures, retries, problem = ask_all(todo, next_request, replies, path, options)
    annotated, missing, dropped = collect(text, replies, failures, options)
    if annotated:                       # a wrong model name must not empty the file of a right one
        mark.unlink(missing_ok=True)                    # without it nothing is compared
        write_annotations(options.out, annotated)
        write_text(mark, sha256_of(options.out))
    report(new, retries, options)
    for why, line in dict.fromkeys((why, line) for line, problems in missing for why in problems):
        if not why.endswith(UNASKED):
            say(f"not annotated, {why}: {line}")
    say(f"{total:,} sentences: {total - len(missing):,} annotated, {len(missing):,} not",
        [problems[0] for _, problems in missing])
    kept = sum(len(record[field]) for records in annotated for record in records for field in FIELDS.values())
    say(f"{kept + dropped.total():,} entities and questions: {kept:,} kept, {dropped.total():,} not",
        dropped.elements())
    if 0 < len(annotated) < 3:
        say("train.py needs three paragraphs, as it holds out every third; an empty line stands between two")
    if problem:
        raise problem
    if not annotated:
        raise ValueError(f"{options.text}: not one sentence was annotated, so {options.out} is not written")
