"""A chat endpoint that may be slow, busy or broken, and a file that keeps every reply: what is paid for is never lost.

    replies = read_replies("my.replies.jsonl")              # {key: {"reply": "...", "finish": "stop", "tokens": [600, 80]}}
    failures, counts, problem = ask_all(jobs, next_request, replies, "my.replies.jsonl", options)

Any server will do that answers POST .../chat/completions as OpenAI's does: llama.cpp, Ollama, vLLM, a hosted one. What is
asked and what a reply is worth is told by data/annotate.py; here a job is any tuple, and

    next_request(job) -> (key, body) of what is to be asked next for it, or None where nothing is

A reply is appended to the file before anyone looks at it. A line holds key, model, job and the raw reply; the key is a hash
of model, prompt and sampling settings, so that the same request is never sent twice, by this run or a later one. The API key
comes from the environment and goes into one header: what servers send back is searched for it before it is kept or shown.
"""
import hashlib
import http.client
import json
import os
import queue
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from tqdm import tqdm

from data.cli import printable
from data.files import digest, with_checksum

BACKOFF, LONGEST_WAIT = 1.0, 300    # seconds before the first retry, doubled each time; the longest that is waited
GIVE_UP = 8                         # requests in a row that stay without a reply end a run
GRACE = 10                          # seconds that a run which ends early waits for a reply that is on its way
MAX_BODY = 1 << 20                  # bytes of an answer; a common one has two thousand
LINE = ("key", "model", "job", "reply", "finish", "tokens")         # the fields of a kept reply
PLACEHOLDER = 8                     # a key shorter than this is one like "none", and replies may well hold the word

# ----------------------------------------------------------------------------------------------------------------------
# 1. The file of replies

def key_of(*what):
    """Anything JSON -> the hash that names its reply."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def read_replies(path):
    """The file -> {key: {"reply": str, "finish", "tokens": [in, out], ...}}, {} where there is none. A torn last line, which
    a killed run leaves, is cut off, so that it is asked for again. ValueError "file:line: ..." for another bad line."""
    if not os.path.exists(path):
        return {}
    with open(path, "rb+") as file:
        lines = file.read().split(b"\n")
        if lines[-1]:
            file.truncate(file.tell() - len(lines[-1]))
    replies = {}
    for number, line in enumerate(lines[:-1], 1):
        try:
            reply = json.loads(line)
            if not (isinstance(reply["key"], str) and isinstance(reply["reply"], str) and "finish" in reply):
                raise ValueError
            found = reply.pop("sha256", None)
            if found != digest(reply) and (found or set(reply) != set(LINE)):       # before there were checksums: the six fields
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{path}:{number}: not a kept reply, or not as it was written; without this line it is asked for "
                             "again") from None
        replies[reply["key"]] = reply
    return replies


def keep(file, line, secret):
    """Append a reply (dict) to a file opened unbuffered, by one write, so that threads need no lock -> the reply as it will
    be read back. OSError where the disk is full."""
    text = json.dumps(line)                             # ASCII, so a key can be found in it and half a character is no harm
    line = json.loads(text.replace(secret, "[key]") if len(secret) >= PLACEHOLDER else text)
    text = json.dumps(with_checksum(line))
    if file.write(text.encode() + b"\n") <= len(text):
        raise OSError(f"{file.name}: could not be written in full; is the disk full?")
    return line


# ----------------------------------------------------------------------------------------------------------------------
# 2. One request

class Refused(ValueError):
    """An answer that no retry will mend, told in one line."""


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to an address that the user never gave."""
    def redirect_request(self, *_):
        return None


OPENER = urllib.request.build_opener(NoRedirect)


def endpoint_url(teacher):
    """"http://localhost:11434/v1" -> the address of its chat completions; ValueError where it is no address."""
    try:
        parts = urlsplit(teacher)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:                                                  # a port that is no number
        valid = False
    if not valid or not re.fullmatch("[!-~]+", teacher) or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("--teacher: expected an address such as http://localhost:11434/v1, and no key in it")
    return teacher.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"


def secret_key():
    """The API key of the environment, or "" -> str."""
    secret = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch(r"[!#-\[\]-~]*", secret):                       # urllib would quote it in its error
        raise ValueError("OPENAI_API_KEY holds what no key holds: spaces, quotes, or characters that are not ASCII")
    return secret


def received(response, deadline):
    """The body of a response -> bytes; TimeoutError behind the deadline (of time.monotonic), ValueError above MAX_BODY.
    Not response.read(): a server that sends a byte now and then would hold it for ever."""
    body = b""
    while chunk := response.read1(1 << 16):
        body += chunk
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(body) > MAX_BODY:
            raise ValueError
    return body


def post(url, body, secret, timeout):
    """Send a JSON object -> the bytes of the answer; timeout: seconds, for the whole of it. Refused for a status that is
    final; OSError (HTTPError too), HTTPException or ValueError where another try may do better."""
    headers = {"Content-Type": "application/json", "User-Agent": "nanoreader"}
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    deadline = time.monotonic() + timeout
    try:
        with OPENER.open(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=timeout) as response:
            return received(response, deadline)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (408, 429) or error.code >= 500:
                raise
            hint = {401: "; is OPENAI_API_KEY set?", 403: "; is OPENAI_API_KEY set?",
                    404: "; is this the address (many end in /v1), and does it have the model?"}.get(error.code, "")
            raise Refused(f"{url}: HTTP {error.code}: {complaint(error, secret, deadline)}{hint}") from None


def complaint(error, secret, deadline):
    """What a server says in an HTTP error -> one line of at most 200 characters, without the key."""
    text = ""
    try:
        text = received(error.fp, deadline).decode("utf-8", "replace")
        value = json.loads(text)
        for name in ("error", "message"):
            value = value.get(name, value) if isinstance(value, dict) else value
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        pass                                                            # then it is shown as it came
    return printable((text.replace(secret, "[key]") if secret else text).strip()[:200])


def completion(body):
    """The bytes of a chat completion -> {"reply": str, "finish", "tokens": [in, out]}; ValueError for anything else."""
    try:
        value = json.loads(body)
        choice, usage = value["choices"][0], value.get("usage")
        reply, finish = choice["message"]["content"] or "", choice.get("finish_reason")      # null: all went into thoughts
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError):
        reply = None
    if not isinstance(reply, str):
        raise ValueError("not a chat completion")
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    return {"reply": reply, "finish": finish, "tokens": [n if type(n) is int else 0 for n in counts]}


def trouble(error):
    """An error -> (what went wrong in a few words, seconds that the server asks to wait)."""
    if isinstance(error, urllib.error.HTTPError):
        asked = error.headers.get("Retry-After", "")                    # seconds, or a date
        try:
            wait = int(asked) if asked.isdecimal() else parsedate_to_datetime(asked).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            wait = 0
        return f"HTTP {error.code}", max(wait, 0)
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "timed out", 0
    return type(cause).__name__ if isinstance(cause, (OSError, http.client.HTTPException)) else "no chat completion", 0


def ask(body, options, stop, retried):
    """One request, as often as needed -> (reply, None), or (None, what went wrong) after --retries or once `stop`, an Event,
    is set. Raises Refused. Waits as long as the server asks, and on top of that BACKOFF, doubled each time, times a random
    number around 1, so that requests which failed together do not return together. retried(why) is called before."""
    for k in range(options.retries + 1):
        try:
            return completion(post(options.url, body, options.secret, options.timeout)), None
        except Refused:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            why, wait = trouble(error)
        if k < options.retries:
            retried(why)
            if stop.wait(min(LONGEST_WAIT, wait + BACKOFF * 2 ** min(k, 9) * random.uniform(0.5, 1.5))):
                break
    return None, why


# ----------------------------------------------------------------------------------------------------------------------
# 3. Many of them

def work(jobs, events, stop, next_request, replies, file, options):
    """What a thread does: takes jobs from a queue until it is empty, asks, keeps, and puts (kind, value) to `events`."""
    try:
        while not stop.is_set():
            job, why = jobs.get_nowait(), None
            while why is None and not stop.is_set() and (request := next_request(job)):
                key, body = request
                reply, why = ask(body, options, stop, lambda reason: events.put(("retry", reason)))
                if reply:
                    replies[key] = keep(file, {"key": key, "model": body["model"], "job": job, **reply}, options.secret)
                    events.put(("reply", reply["tokens"]))
            events.put(("done", (job, why)))
    except queue.Empty:
        pass
    except Exception as error:                          # the main thread tells it, whatever it is
        stop.set()
        events.put(("stop", error))
    finally:
        events.put(("end", None))


def ask_all(todo, next_request, replies, path, options, done=0):
    """Ask for a list of jobs, options.parallel at a time, and add what comes to `replies` and to the file -> (failures,
    counts, problem): {job: what went wrong}; a Counter of "requests", "in", "out" (tokens) and ("retry", why); and the
    exception that ended the run early, or None. done: jobs that need nothing any more, for the progress bar.
    options: url, secret, timeout (seconds), retries, parallel."""
    jobs, events, stop = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
    failures, counts, streak, problem = {}, Counter(), 0, None
    for job in todo:
        jobs.put(job)
    running = min(options.parallel, len(todo))
    with open(path, "ab", buffering=0) as file, tqdm(total=done + len(todo), initial=done, unit=" readings", disable=None,
                                                     leave=False) as bar:
        for _ in range(running):
            threading.Thread(target=work, args=(jobs, events, stop, next_request, replies, file, options), daemon=True).start()
        try:
            while running:
                kind, value = events.get(timeout=GRACE if stop.is_set() else None)
                if kind == "reply":
                    streak = 0
                    counts.update({"requests": 1, "in": value[0], "out": value[1]})
                    bar.set_postfix_str(f"{counts['in'] + counts['out']:,} tokens")
                elif kind == "retry":
                    counts[kind, value] += 1
                elif kind == "stop":
                    problem = problem or value
                elif kind == "done" and value[1]:
                    failures.update([value])
                    streak += 1
                    if streak == GIVE_UP and not stop.is_set():
                        problem = ValueError(f"{options.url}: {streak} requests in a row without a reply: {value[1]}")
                        stop.set()
                bar.update(kind == "done")
                running -= kind == "end"
        except KeyboardInterrupt:
            problem = ValueError("interrupted; the same command continues")
        except queue.Empty:                             # GRACE is over
            pass
        stop.set()
    return failures, counts, problem
