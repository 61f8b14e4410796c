"""Many requests to a chat endpoint that may be slow, busy or broken, and a file that keeps every reply.

    replies = read_replies("my.replies.jsonl")      # {key: {"reply": "{...}", "tokens": [600, 80], ...}}
    new, failures, retries, problem = ask_all(jobs, next_request, replies, "my.replies.jsonl", options)

The server answers POST .../chat/completions as OpenAI's does (llama.cpp, Ollama, vLLM and others). A reply is
appended to the file before it is parsed, under a key that is a hash of the request, so that none is sent
twice. The API key is taken from the environment, sent in one header, and removed from what servers send back.
"""
import contextlib
import html
import json
import os
import queue
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from http.client import HTTPException

from data.cli import brief, printable, progress
from data.files import digest

BACKOFF, LONGEST_WAIT = 1.0, 300    # seconds before the first retry, doubled each time; the longest wait
GIVE_UP = 8                         # requests in a row without a reply that end a run
PROBE, GRACE = 5, 5                 # seconds: to connect at the beginning, for what is in flight at the end
BEGIN = b'{"key": '                 # of a reply in the file
MAX_BODY = 1 << 20                  # bytes of an answer; a common one has two thousand
CUT = "length", "max_tokens", "max_output_tokens", "model_length"       # finish_reason at --max_tokens
PARTS = "content", "reasoning_content", "reasoning", "thinking", "refusal"      # of a message
ERRORS = ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError   # odd JSON


def read_replies(path):
    """The file of replies -> {key: {"reply": str, "finish", "tokens": [in, out], ...}}; made if missing. The
    beginning of a reply at its end, which a killed run leaves, is cut off. ValueError "file:line: ..." for
    another bad line."""
    replies = {}
    with open(path, "ab+") as file:
        file.seek(0)
        for number, line in enumerate(file.readlines(), 1):
            try:
                reply = json.loads(line)
                if reply.pop("sha256") != digest(reply):
                    raise ValueError
                replies[reply["key"]] = reply
                if not line.endswith(b"\n"):            # an editor has taken it
                    file.write(b"\n")
            except ERRORS:
                if line.endswith(b"\n") or line.strip(b"\0") and not line.startswith(BEGIN[:len(line)]):
                    place = f"{path}:{number}"
                    raise ValueError(f"{place}: not a reply as it was written; remove this line") from None
                file.truncate(file.tell() - len(line))
    return replies


def hide(text, secret):
    """Text without the API key, also where a server has escaped some of its characters as JSON, a URL or HTML
    do. A key of fewer than 8 characters is a word such as "none", and stays."""
    if len(secret) < 8:
        return text
    codes = [(re.escape(c), f"{ord(c):02x}", ord(c), re.escape(html.escape(c))) for c in secret]
    form = "".join(rf"\\*({c}|(?i:[ux]0*{x}|%(25)*{x}|&#(x0*{x}|0*{n});?|{h}))" for c, x, n, h in codes)
    return re.sub(rf"(?<!\\){form}", "[key]", text)


def keep(file, reply, secret):
    """Appends a reply (dict) to an unbuffered file, in one write -> the reply as it will be read."""
    reply = json.loads(hide(json.dumps(reply), secret))     # ASCII, so that the API key can be found in it
    line = json.dumps({**reply, "sha256": digest(reply)}).encode() + b"\n"
    if file.write(line) < len(line):
        raise OSError(f"{file.name}: not written in full; is the disk full?")
    return reply


def endpoint_url(teacher):
    """"http://localhost:11434/v1" -> the address of its chat completions, or ValueError."""
    pattern = r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:(?P<port>\d{1,5}))?(/[\w.~%/-]*)?"
    found = re.fullmatch(pattern, teacher, re.ASCII)
    if not found or int(found["port"] or 0) >= 2 ** 16:
        raise ValueError("--teacher: expected an address such as http://localhost:11434/v1, without a key")
    return teacher.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"


def secret_key():
    """The API key of the environment, or ""."""
    secret = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch(r"[!#-\[\]-~]*", secret):       # urllib would show it in its error
        raise ValueError("OPENAI_API_KEY holds a space, a quote or a character that is not ASCII")
    return secret


class Answers(urllib.request.HTTPErrorProcessor):
    def https_response(self, request, response):
        """Returns an error too. Follows no redirect: the key would go where the user did not send it."""
        return response
    http_response = https_response


class Proxies(urllib.request.ProxyHandler):
    def proxy_open(self, request, *more):
        """Uses the proxies of the environment, but none for a server on this machine."""
        if not re.match(r"(localhost|127\.[\d.]+|0\.0\.0\.0|\[::1\])(:|$)", request.host):
            return super().proxy_open(request, *more)


OPENER = urllib.request.build_opener(Answers, Proxies)


def completion(text):
    """A chat completion, or the events of a stream (str) -> {"reply": str, "finish", "tokens": [in, out],
    "by": the model's true name}; the reply is the first of PARTS that is not empty. ERRORS for another
    text."""
    said, finish, usage, by = dict.fromkeys(PARTS, ""), None, None, None
    streamed = re.findall(r"^data: *(\{.*)", text, re.MULTILINE)
    for chunk in map(json.loads, streamed or [text]):
        usage, by = chunk.get("usage") or usage, chunk.get("model") or by
        for choice in chunk["choices"][:1]:
            finish, message = choice.get("finish_reason") or finish, choice.get("message") or choice["delta"]
            for name in PARTS:
                part = message.get(name) or ""
                if not isinstance(part, str):           # a list of parts
                    part = "".join(piece["text"] for piece in part if piece["type"].endswith("text"))
                said[name] += part
    if finish == "error" or not (finish or any(said.values())) or streamed and not finish:
        raise ValueError                                # also where a stream breaks off
    finish = "length" if str(finish).lower() in CUT else finish and str(finish)
    name = next((name for name in PARTS if said[name].strip()), PARTS[0])
    if name == "refusal":
        finish = f"refusal: {said[name]}"
    reply = f"<think>{said[name]}" if finish == "length" and name != PARTS[0] else said[name]
    counts = map((usage if isinstance(usage, dict) else {}).get, ("prompt_tokens", "completion_tokens"))
    tokens = [n if isinstance(n, int) and 0 <= n < 2 ** 53 else 0 for n in counts]
    return {"reply": reply, "finish": finish, "tokens": tokens, "by": by and str(by)}


def fetch(request, seconds, most):
    """Sends a request -> (response, its body, `most` bytes at most). TimeoutError after so many seconds in
    all: a server may send a byte now and then, for ever. The thread that waits for it is left alone."""
    def work():
        try:
            with OPENER.open(request, timeout=seconds) as response:
                answer.put((response, response.read(most), None))
        except Exception as error:                      # raised below
            answer.put((None, None, error))
    answer = queue.SimpleQueue()
    threading.Thread(target=work, daemon=True).start()
    try:
        response, data, error = answer.get(timeout=1.05 * seconds + 0.1)    # after the time of the socket
    except queue.Empty:
        raise TimeoutError("timed out") from None
    if error:
        raise error
    return response, data


def post(body, options, parse=completion, most=MAX_BODY):
    """Sends one request -> (parse(text), None, None), or (None, what went wrong, seconds to wait), None for
    these where another try would be in vain. most: bytes of an answer."""
    headers = {"Content-Type": "application/json", "User-Agent": "nanoreader"}
    if options.secret:
        headers["Authorization"] = f"Bearer {options.secret}"
    request = urllib.request.Request(options.url, json.dumps(body).encode(), headers)
    try:
        response, data = fetch(request, options.timeout, most)
    except (OSError, HTTPException, ValueError) as error:           # ValueError: a chunk of -5 bytes
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        late = None if isinstance(cause, TimeoutError) else 0.0         # the same again would be late again
        return None, hide(brief(cause, 10**4), options.secret)[:120], late
    text, status = data.decode("utf-8-sig", "replace"), response.status
    what = f"HTTP {status}"
    if status < 300:
        with contextlib.suppress(*ERRORS):
            return parse(text), None, None
        what += " without a chat completion"
        with contextlib.suppress(*ERRORS):              # some servers send errors as HTTP 200
            status = int(json.loads(text)["error"]["code"])
    if where := response.headers.get("Location"):       # a redirect
        text = f"-> {where} {text}"
    said = printable(" ".join(hide(text, options.secret).split())[:300])
    asked = response.headers.get("Retry-After", "")     # seconds; a date is ignored
    unpaid = re.search("insufficient_quota|billing", said)
    in_vain = unpaid or 300 <= status < 500 and status not in (408, 425, 429)
    wait = float(asked) if asked.isdecimal() else 0.0
    return None, f"{what}: {said}".rstrip(": "), None if in_vain else wait


def probe(options):
    """ValueError if no connection can be made to the address, or none of TLS to one of https. A server that
    accepts it and says nothing in PROBE seconds is busy."""
    try:
        fetch(options.url.replace("/chat/completions", "/models"), PROBE, 1)
    except urllib.error.URLError as error:
        raise ValueError(f"{options.url}: {brief(error.reason)}; is the server running, and is --teacher its "
                         "address (http or https, name, port)?") from None
    except (OSError, HTTPException, ValueError):        # after the connection
        pass


def ask(body, options, stop, retries, **reading):
    """One request, repeated --retries times at most -> (reply, None), or (None, what went wrong). Before each
    it waits as the server asks in Retry-After, plus BACKOFF, doubled each time and multiplied by a random
    number. A request that was late is not repeated. Where a server refuses a schema it is asked without one.
    stop: an Event that ends the waiting; retries: a list, gets the reasons; reading: of `post`."""
    for k in range(options.retries + 1):
        reply, why, wait = post(body, options, **reading)
        if "response_format" in body and re.match("HTTP 4(00|22)", why or ""):
            retries.append(f"{why[:8]} with --schema, sent without it")
            body = {name: value for name, value in body.items() if name != "response_format"}
            reply, why, wait = post(body, options, **reading)
        if wait is None or k == options.retries:
            break
        retries.append(why)
        if stop.wait(min(LONGEST_WAIT, wait + BACKOFF * 2 ** min(k, 9) * random.uniform(0.5, 1.5))):
            break
    return reply, why


class Flight:
    """The requests in flight, a thread for each, and what comes of them; see `ask_all`."""

    def __init__(self, file, replies, options):
        self.file, self.replies, self.options = file, replies, options
        self.failures, self.retries, self.new, self.streak = {}, [], [], 0
        self.flying, self.most = 0, options.parallel    # requests in flight, and how many may be
        self.stop, self.answers = threading.Event(), queue.SimpleQueue()

    def send(self, job, key, body):
        """Sends a request. A daemon's thread does not keep a program that was stopped from its end."""
        def work(most):
            try:
                answer = ask(body, self.options, self.stop, self.retries)
            except Exception as error:                  # raised by `take`
                answer = None, error
            self.answers.put((job, key, most, *answer))
        self.flying += 1
        threading.Thread(target=work, args=[self.most], daemon=True).start()

    def take(self, timeout=None):
        """Waits for an answer -> (its job, whether the job may go on). One that is late counts as a reply
        that cannot be used, in this run alone, and halves the number in flight, once for those sent
        together."""
        job, key, most, reply, why = self.answers.get(timeout=timeout)
        self.flying -= 1
        if isinstance(why, Exception):
            raise why
        if reply:
            self.streak = 0
            self.failures.pop(job, None)
            self.add(key, job, reply)
            return job, True
        self.failures[job] = f"no reply, {why}"
        late = why.startswith("TimeoutError")           # as `post` begins
        if late:
            self.replies[key] = {"reply": "", "finish": "no reply within --timeout"}
            if most == self.most > 1:
                self.most //= 2
                why += f", from here on {self.most} in flight"
            self.retries.append(why)
        if not late or most == 1:
            self.streak += 1
        return job, late

    def add(self, key, job, reply):
        asked = {"model": self.options.model, "max_tokens": self.options.max_tokens}
        reply = keep(self.file, {"key": key, "job": job, **asked, **reply}, self.options.secret)
        self.replies[key] = reply
        self.new.append(reply)

    def check(self, next_request):
        """After GIVE_UP failures in a row: ValueError unless an example, next_request(None), is answered."""
        if self.streak < GIVE_UP:
            return
        self.streak = 0
        key, body = next_request(None)
        reply, why, _ = post(body, self.options)
        if why:
            raise ValueError(f"{self.options.url}: {GIVE_UP} requests in a row without a reply: {why}; check "
                             "--teacher (many addresses end in /v1), --model and OPENAI_API_KEY")
        self.add(key, None, reply)


def ask_all(jobs, next_request, replies, path, options):
    """Sends the requests of all jobs, and adds what comes to the file and to `replies`.

    A job is a tuple that JSON can hold; next_request(job): the (key, body) to send for it now, or None.
    options: url, secret, model, max_tokens, timeout (seconds), retries, parallel. Returns (new, failures,
    retries, problem): the replies that came, {job: what went wrong}, reasons of retries, and the exception
    that ended the run early or None. After GIVE_UP failures in a row next_request(None) is sent once, which
    any endpoint that works answers: where it fails too the run ends, else the jobs alone were refused. At the
    end, and after Ctrl-C, requests in flight are waited for, GRACE seconds at most."""
    problem, waiting = None, deque(jobs)
    with open(path, "ab", buffering=0) as file, progress(None, "replies", total=len(jobs)) as bar:
        flight = Flight(file, replies, options)
        try:
            while waiting or flight.flying:
                while waiting and flight.flying < flight.most:
                    job = waiting.popleft()
                    if request := next_request(job):
                        flight.send(job, *request)
                    else:
                        bar.update()
                if flight.flying:
                    job, more = flight.take()
                    if more:
                        waiting.appendleft(job)
                    else:
                        bar.update()
                    flight.check(next_request)
        except KeyboardInterrupt:
            problem = KeyboardInterrupt("stopped; the same command goes on from there")
        except Exception as error:                      # raised by the caller, who writes all first
            problem = error
        flight.stop.set()
        end = time.monotonic() + (0 if isinstance(problem, OSError) else GRACE)     # 0: half a line stands
        while flight.flying and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty, ValueError, OSError):
                flight.take(left)
    return flight.new, flight.failures, flight.retries, problem
