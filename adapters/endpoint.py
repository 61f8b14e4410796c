"""Many requests to a chat endpoint that may be slow, busy or broken, and a file that keeps every reply.

    replies = read_replies("my.replies.jsonl")      # {key: {"reply": "{...}", "tokens": [600, 80], ...}}
    failures, retries, problem = ask_all(jobs, next_request, replies, "my.replies.jsonl", options)

The server answers POST .../chat/completions as OpenAI's does (llama.cpp, Ollama, vLLM and others). A reply is
appended to the file before it is parsed, under a key that is a hash of the request, so that none is sent
twice. The API key is taken from the environment, sent in one header, and removed from what servers send back.
"""
import json
import os
import random
import re
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException

from data.cli import brief, printable, progress
from data.files import digest

BACKOFF, LONGEST_WAIT = 1.0, 300    # seconds before the first retry, doubled each time; the longest wait
GIVE_UP = 8                         # jobs in a row without a reply that end a run
MAX_BODY = 1 << 20                  # bytes of an answer; a common one has two thousand


def read_replies(path):
    """The file of replies -> {key: {"reply": str, "finish", "tokens": [in, out], ...}}; made if missing. A
    torn last line, which a killed run leaves, is cut off. ValueError "file:line: ..." for another bad one."""
    with open(path, "ab+") as file:
        file.seek(0)
        lines = file.read().split(b"\n")
        if lines[-1]:
            file.truncate(file.tell() - len(lines[-1]))
    replies = {}
    for number, line in enumerate(lines[:-1], 1):
        try:
            reply = json.loads(line)
            if reply.pop("sha256") != digest(reply):
                raise ValueError
            replies[reply["key"]] = reply
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{path}:{number}: not a reply as it was written; remove this line") from None
    return replies


def hide(text, secret):
    """Text without the API key. A key of fewer than 8 characters is a word such as "none", and stays."""
    return text.replace(secret, "[key]") if len(secret) >= 8 else text


def keep(file, reply, secret):
    """Appends a reply (dict) to an unbuffered file, in one write -> the reply as it will be read."""
    reply = json.loads(hide(json.dumps(reply), secret))     # ASCII, so that the API key can be found in it
    line = json.dumps({**reply, "sha256": digest(reply)}).encode() + b"\n"
    if file.write(line) < len(line):
        raise OSError(f"{file.name}: not written in full; is the disk full?")
    return reply


def endpoint_url(teacher):
    """"http://localhost:11434/v1" -> the address of its chat completions, or ValueError."""
    if not re.fullmatch(r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?(/[\w.~%/-]*)?", teacher, re.ASCII):
        raise ValueError("--teacher: expected an address such as http://localhost:11434/v1, without a key")
    return teacher.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"


def secret_key():
    """The API key of the environment, or ""."""
    secret = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch(r"[!#-\[\]-~]*", secret):       # urllib would show it in its error
        raise ValueError("OPENAI_API_KEY holds a space, a quote or a character that is not ASCII")
    return secret


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        """None: the key would go to an address that the user did not name."""


OPENER = urllib.request.build_opener(NoRedirect)


def post(body, options):
    """Sends one request -> {"reply": str, "finish", "tokens": [in, out]}. OSError or HTTPException if another
    try may succeed, ValueError if none will."""
    headers = {"Content-Type": "application/json", "User-Agent": "nanoreader"}
    if options.secret:
        headers["Authorization"] = f"Bearer {options.secret}"
    request = urllib.request.Request(options.url, json.dumps(body).encode(), headers)
    try:
        with OPENER.open(request, timeout=options.timeout) as response:
            value = json.loads(response.read(MAX_BODY))
        choice, usage = value["choices"][0], value.get("usage") or {}
        reply = choice["message"]["content"] or ""      # null: the model wrote nothing but thoughts
        if not isinstance(reply, str):
            raise ValueError
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        return {"reply": reply, "finish": choice.get("finish_reason"), "tokens": tokens}
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (408, 429) or error.code >= 500:
                raise
            said = " ".join(hide(error.read(MAX_BODY).decode("utf-8", "replace"), options.secret).split())
        raise ValueError(f"{options.url}: HTTP {error.code}: {printable(said[:200])}; check --teacher (many "
                         "addresses end in /v1), --model and OPENAI_API_KEY") from None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise OSError("no chat completion") from None


def ask(body, options, stop, retries):
    """One request, repeated --retries times at most -> (reply, None), or (None, what went wrong). Before each
    it waits as the server asks in Retry-After, plus BACKOFF, doubled each time and multiplied by a random
    number. stop: an Event that ends the waiting; retries: a list, gets the reasons. ValueError as post."""
    for k in range(options.retries + 1):
        try:
            return post(body, options), None
        except urllib.error.HTTPError as error:
            asked = error.headers.get("Retry-After", "")                # seconds; a date is ignored
            why, wait = f"HTTP {error.code}", float(asked) if asked.isdecimal() else 0.0
        except (OSError, HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            why, wait = hide(brief(cause, 10**4), options.secret)[:120], 0.0
        if k < options.retries:
            retries.append(why)
            if stop.wait(min(LONGEST_WAIT, wait + BACKOFF * 2 ** min(k, 9) * random.uniform(0.5, 1.5))):
                break
    return None, why


def ask_all(jobs, next_request, replies, path, options):
    """Sends the requests of all jobs, and adds what comes to the file and to `replies`.

    A job is a tuple that JSON can hold; next_request(job): the (key, body) to send for it now, or None.
    options: url, secret, model, timeout (seconds), retries, parallel. Returns (failures, retries, problem):
    {job: what went wrong}, reasons of retries, and the exception that ended the run early or None. After one
    it waits for the requests in flight."""
    failures, retries, problem, streak = {}, [], None, 0
    pool, stop = ThreadPoolExecutor(options.parallel), threading.Event()

    def work(job):
        while not stop.is_set() and (request := next_request(job)):
            reply, why = ask(request[1], options, stop, retries)
            if why:
                return why
            reply = {"key": request[0], "model": options.model, "job": job, **reply}
            replies[request[0]] = keep(file, reply, options.secret)

    with open(path, "ab", buffering=0) as file, progress(None, "replies", total=len(jobs)) as bar:
        try:
            futures = {pool.submit(work, job): job for job in jobs}
            for future in as_completed(futures):
                bar.update()
                why = future.result()
                streak = streak + 1 if why else 0
                if why:
                    failures[futures[future]] = f"no reply ({why})"
                if streak == GIVE_UP:
                    raise ValueError(f"{options.url}: {streak} requests in a row without a reply: {why}")
        except (KeyboardInterrupt, ValueError, OSError) as error:
            problem = error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return failures, retries, problem
