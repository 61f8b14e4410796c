"""An LLM as the teacher: every sentence of a text goes to a chat endpoint, annotations.jsonl comes back.

    python brd.py annotate my.txt --teacher http://localhost:11434/v1 --model qwen3 --dry_run     # the first prompts
    python brd.py annotate my.txt --teacher http://localhost:11434/v1 --model qwen3 --limit 20    # a look at 20 sentences
    OPENAI_API_KEY=... python brd.py annotate my.txt --teacher https://host.example/v1 --model name --parallel 16

    text -> sentences -> requests -> annotations.replies.jsonl -> annotations.jsonl
            each once    in flight   as they come, unparsed       parsed anew by every run, written whole

There are two requests a sentence, one for each reading behaviour. A better parser needs no new request, and a run that was
killed asks for nothing again that has a reply. A reply that cannot be used is asked for again, TRIES times in all: first at
temperature 0, then warmer and with another seed, because the same request would bring the same words.

A sentence for which a behaviour is missing in the end gets no record, and its paragraph goes on as a new one behind the gap:
what stands together in the file stood together in the text.
"""
import json
from collections import Counter
from pathlib import Path

from data.annotations import BREAKS, write_annotations
from adapters.endpoint import ask_all, endpoint_url, key_of, read_replies, secret_key
from adapters.sentences import paragraphs, read_text, sentences
from adapters.prompts import FIELDS, messages, parse

TRIES, WARM = 3, 0.7                # of a reply that cannot be used, and their temperature after the first
CONTROL = "control characters in the sentence"


def read_sentences(path, limit=None):
    """A text -> list of paragraphs, each the list of its sentences (str, one line each); limit: that many sentences."""
    text, room = [], limit
    for paragraph in paragraphs(read_text(path)):
        text.append([" ".join(sentence.split()) for sentence in sentences(paragraph)][:room])
        if limit and (room := room - len(text[-1])) == 0:
            break
    return text


def request(behaviour, sentence, k, options):
    """Try number k -> (key, body): the name of its reply in the cache, and the JSON object to send."""
    body = {"model": options.model, "messages": messages(behaviour, sentence), "temperature": WARM if k else 0, "seed": k,
            "max_tokens": options.max_tokens, **options.body}
    body = {name: value for name, value in body.items() if value is not None}
    return key_of(body, k), body


def outcome(behaviour, sentence, replies, options):
    """What the replies give for a sentence -> (items, dropped, why, next): as adapters.prompts.parse, and the request to be
    sent next, None where a reply can be used or all TRIES are spent."""
    for k in range(TRIES):
        key, body = request(behaviour, sentence, k, options)
        if key not in replies:
            return [], Counter(), "not asked yet", (key, body)
        items, dropped, why = parse(behaviour, sentence, replies[key]["reply"], replies[key]["finish"] == "length")
        if why is None:
            break
    return items, dropped, why, None


def collect(text, replies, failures, options):
    """All that the replies give -> (paragraphs, fates, dropped): annotated paragraphs (lists of records), a Counter of what
    became of each sentence (None: it has its record), and one of the reasons for items that are missing in records."""
    annotated, fates, dropped = [], Counter(), Counter()
    for lines in text:
        gap = True
        for line in lines:
            found, lost, fate = {}, Counter(), CONTROL if BREAKS.search(line) else None
            for behaviour, field in () if fate else FIELDS.items():
                found[field], some, why, after = outcome(behaviour, line, replies, options)
                if after and (behaviour, line) in failures:
                    why = f"no reply ({failures[behaviour, line]})"
                fate = fate or (why and f"{behaviour}: {why}")
                lost.update({f"{behaviour}: {reason}": n for reason, n in some.items()})
            fates[fate] += 1
            if fate is None:
                annotated += [[]] * gap
                place = {"paragraph": len(annotated) - 1, "sentence": len(annotated[-1])}
                annotated[-1].append({**place, "text": line, **found})
                dropped += lost
            gap = fate is not None
    return annotated, fates, dropped


def listed(counts, most=12):
    """Lines of a table of a Counter, the most common first."""
    for reason, n in counts.most_common(most):
        yield f"  {n:9,}  {reason}"
    if len(counts) > most:
        yield f"  {counts.total() - sum(n for _, n in counts.most_common(most)):9,}  of {len(counts) - most} more reasons"


def report(annotated, fates, dropped, counts):
    """Lines to print at the end; each table adds up to the number before it."""
    records = [record for paragraph in annotated for record in paragraph]
    kept = sum(len(record[field]) for record in records for field in FIELDS.values())
    yield f"{fates.total():,} sentences: {len(records):,} annotated, {fates.total() - len(records):,} not"
    yield from listed(Counter({reason: n for reason, n in fates.items() if reason}))
    yield f"{kept + dropped.total():,} entities and questions in their replies: {kept:,} kept, {dropped.total():,} not"
    yield from listed(dropped)
    if counts["requests"]:
        yield f"{counts['requests']:,} replies in this run, {counts['in']:,} tokens in prompts, {counts['out']:,} in replies"
    retries = Counter({key[1]: n for key, n in counts.items() if key[0] == "retry"})
    yield from [f"{retries.total():,} requests repeated after"] * bool(retries)
    yield from listed(retries)


def annotate(options):
    """The command -> lines to print as they come; options: see add_arguments. Writes --out, and beside it the replies.
    ValueError or OSError for what stops it, raised after all that there is has been written and told."""
    check(options)
    options.url, options.secret = endpoint_url(options.teacher), secret_key()
    text = read_sentences(options.text, options.limit)
    jobs = list(dict.fromkeys((b, line) for lines in text for line in lines if not BREAKS.search(line) for b in FIELDS))
    if options.dry_run:
        yield f"{sum(map(len, text)):,} sentences, {len(jobs):,} requests to {options.url}; nothing is sent. The first:"
        for job in jobs[:len(FIELDS)]:
            body = request(*job, 0, options)[1]
            for turn in body.pop("messages"):
                yield from f"\n{turn['role']}: {turn['content']}".split("\n")
            yield from ("", json.dumps(body))
        return
    out = Path(options.out)
    path = out.with_suffix(".replies.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    replies = read_replies(path)

    def next_request(job):
        return outcome(*job, replies, options)[3]

    todo, failures, counts, problem = [job for job in jobs if next_request(job)], {}, Counter(), None
    yield f"{sum(map(len, text)):,} sentences, {len(jobs):,} readings, {len(jobs) - len(todo):,} of them settled by {path}"
    if todo:
        failures, counts, problem = ask_all(todo, next_request, replies, path, options, len(jobs) - len(todo))
    annotated, fates, dropped = collect(text, replies, failures, options)
    if annotated:                       # a wrong model name must not empty the file of a right one
        write_annotations(out, annotated)
    yield from report(annotated, fates, dropped, counts)
    yield f"{out}: {len(annotated):,} paragraphs" if annotated else f"{out}: not written, as nothing is annotated"
    if failures:
        yield f"{len(failures):,} readings are without a reply; the same command asks for them again"
    if problem:
        raise problem


def check(options):
    """ValueError for numbers and names that cannot be."""
    for name, least, most in (("parallel", 1, 256), ("retries", 0, 100), ("timeout", 0.01, 86400), ("max_tokens", 1, 10**6),
                              ("limit", 1, 10**9)):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"--{name}={value}, expected {least} to {most}")
    if not options.out.endswith(".jsonl") or Path(options.out).is_dir():                # never over the text itself
        raise ValueError(f"--out={options.out}, expected a file name that ends in .jsonl")


def json_object(text):
    """argparse type of --body."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def add_arguments(parser):
    """The options of the command."""
    add = parser.add_argument
    add("text", help="a UTF-8 text file, or a folder with .txt and .md files")
    add("--teacher", required=True, metavar="URL", help="an OpenAI-compatible endpoint, such as http://localhost:11434/v1; the "
        "key, where one is needed, is read from the environment: OPENAI_API_KEY")
    add("--model", required=True, metavar="NAME", help="the model's name there")
    add("--out", default="annotations.jsonl", metavar="FILE", help="default %(default)s; raw replies stay beside it, in "
        "annotations.replies.jsonl")
    add("--limit", type=int, metavar="N", help="only the first N sentences")
    add("--parallel", type=int, default=8, metavar="N", help="requests in flight (default %(default)s)")
    add("--timeout", type=float, default=120, metavar="S", help="seconds for one answer (default %(default)s)")
    add("--retries", type=int, default=6, metavar="N", help="after HTTP 429, 5xx, timeouts and lost connections, each after a "
        "longer wait (default %(default)s); another HTTP error stops the run")
    add("--max_tokens", type=int, default=2048, metavar="N", help="of a reply, thoughts included (default %(default)s)")
    add("--body", type=json_object, default={}, metavar="JSON", help="fields to add to each request, null takes one out: "
        """'{"temperature": null, "reasoning_effort": "low"}'""")
    add("--dry_run", action="store_true", help="print the first prompts, send nothing")
