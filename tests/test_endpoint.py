"""An LLM as the teacher, against a server on this machine that misbehaves in the ways that real ones do."""

import contextlib
import html
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from http.client import BadStatusLine
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from adapters import annotate, endpoint, prompts
from data.annotated import KINDS, check_record, read_annotations
from data.annotations import TYPES
from data.files import lock

ROOT = Path(annotate.__file__).parents[1]
KEY, PATH = "sk-a-key-to-be-kept-1234", "/v1/chat/completions"
PROMPTS = prompts.read_prompts(ROOT / "adapters" / "prompts.txt")


def parse(behaviour, sentence, reply, finish=None):
    return prompts.parse(behaviour, sentence, reply, PROMPTS, finish)


def write_text(folder, n):                              # n sentences, three a paragraph, no two alike
    names = itertools.cycle(["Anna", "Ben", "Clara"])
    lines = [f"{next(names)} sold {i} lamps in {'Rome' if i % 2 else 'Oslo'}." for i in range(n)]
    text = "\n\n".join(" ".join(lines[i:i + 3]) for i in range(0, n, 3))
    (folder / "my.txt").write_text(text, encoding="utf-8")
    return lines


def entity(text="Ann", type="person", about="traveller", **more):
    return {"text": text, "type": type, "about": about, **more}


def question(kind="content", question="Who flew?", answer="Ann", **more):
    return {"kind": kind, "question": question, "answer": answer, **more}


def truth(behaviour, sentence):
    if sentence in PROMPTS.examples:
        return []
    who, _, n, _, _, place = sentence.rstrip(".").split()
    if behaviour == "ner":
        return [entity(who, "person", "seller"), entity(place, "place", "of the sale")]
    return [question("content", f"Who sold {n} lamps?", who), question("attitude", "Good or bad?", "neutral")]


def perfect(behaviour, sentence, seed, nth, more=()):
    return json.dumps({prompts.FIELDS[behaviour]: [*truth(behaviour, sentence), *more]})


def chat(message, finish="stop"):
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}],
                       "usage": {"prompt_tokens": 500, "completion_tokens": 50}})


@contextlib.contextmanager
def teacher(respond):
    """respond(behaviour, sentence, seed, n-th time) -> a reply (str), "HANG", "DROP", or (status,
    headers, body)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket.listen(64)
    server.respond, server.closing, server.bodies, server.headers = respond, threading.Event(), [], set()
    server.asked, server.sent = Counter(), Counter()
    server.handle_error = lambda *_: None               # a client that has gone is not an error here
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


class Handler(BaseHTTPRequestHandler):
    log_message = lambda *_: None  # noqa: E731

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        behaviour = "ner" if '"entities"' in body["messages"][0]["content"] else "qra"
        if "\nQuestion:" in body["messages"][-1]["content"]:
            behaviour = "answer"
        job = behaviour, re.sub("^(Sentence|Satz): ", "", body["messages"][-1]["content"]), body.get("seed")
        server.asked[job] += 1                          # no lock: each job has one request at a time
        server.bodies.append(body)
        server.headers.add((self.path, self.headers.get("Authorization")))
        said = server.respond(*job, server.asked[job])
        if said in ("HANG", "DROP"):
            return said == "DROP" or server.closing.wait(5)
        if isinstance(said, str):
            said = 200, {}, chat({"content": said})
        status, headers, data = said
        data = data.encode()
        self.send_response(status)
        for header in {**headers, "Content-Length": len(data)}.items():
            self.send_header(*header)
        self.end_headers()
        server.sent[job] += status == 200
        self.wfile.write(data)


def command(folder, url, *more):
    return [str(folder / "my.txt"), "--teacher", url, "--model=m", f"--out={folder / 'a.jsonl'}", *more]


@pytest.fixture(autouse=True)
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def run(server, *more):                             # -> (lines printed, paragraphs written)
        annotate.main(command(tmp_path, server.url, *more))
        return capsys.readouterr().out.splitlines(), read_annotations(tmp_path / "a.jsonl")
    return run


def counts(lines, what="sentences: "):
    """A line of the report and the table below it -> [all, one part, the other part, sum of the table]."""
    at = next(i for i, line in enumerate(lines) if what in line)
    table = itertools.takewhile(lambda line: line.startswith("  "), lines[at + 1:])
    return [*map(int, re.findall(r"\d+", lines[at])), sum(int(line.split()[0]) for line in table)]


def expected(lines, left_out=()):
    """The records of write_text, a paragraph for each stretch without a gap."""
    paragraphs = []
    for i, line in enumerate(lines):
        if i % 3 == 0 or line in left_out:
            paragraphs.append([])
        if line not in left_out:
            paragraphs[-1].append([line, truth("ner", line), truth("qra", line)])
    fields = "paragraph", "sentence", "text", "entities", "questions"
    return [[dict(zip(fields, (i, j, *read))) for j, read in enumerate(paragraph)]
            for i, paragraph in enumerate(filter(None, paragraphs))]


def test_the_examples_in_the_prompts_are_accepted():
    for behaviour, field in prompts.FIELDS.items():
        *chat, last = PROMPTS.messages(behaviour, "Anna left.")
        assert last == {"role": "user", "content": "Sentence: Anna left."} and len(chat) == 6
        for asked, told in zip(chat[::2], chat[1::2]):
            sentence = asked["content"].rpartition("Sentence: ")[2]
            items, dropped, why = parse(behaviour, sentence, told["content"])
            assert (dropped, why) == ({}, None) and items == json.loads(told["content"])[field]
            assert behaviour == "ner" or {item["kind"] for item in items} == set(KINDS)


def test_the_one_json_object_is_found():
    one = '{"entities": []}'
    for reply in (one, f"```json\n{one}\n```", f"Sure! Here it is:\n{one}\nMore?", f"The {{set}} is {one}",
                  f'<think>\nor {{"entities": [1]}}?\n</think>\n\n{one}', f'or {{"a": 1}}?</think>{one}',
                  f"{one} I repeat: {one}"):
        assert prompts.find_object(reply) == ({"entities": []}, None)
    for reply in ('{"a": "</think> {}"}', '```\n{"a": "</think> {}"}\n```'):
        assert prompts.find_object(reply) == ({"a": "</think> {}"}, None)
    for reply in ("No.", "", "[1]", '{"a": [', '{"a":' * 100000, "{" * 100000, '{"a": %s}' % ("1" * 5000)):
        assert prompts.find_object(reply) == (None, "no JSON object")
    assert prompts.find_object(f"<think> {one}") == (None, "a thought without an end")
    assert prompts.find_object(f'{one} or {{"entities": [1]}}') == (None, "several JSON objects")


MARK = "question without '?' at its end, or with a label"
SAID = "Ann and Anna's père flew from New York to 東京都 on 25 May, _sad_."


@pytest.mark.parametrize("behaviour, problem, items", [
    ("ner", None, [entity(), entity(confidence=0.9)]), ("ner", "unknown type", [entity(type="animal")]),
    ("ner", "entity not in the sentence", [entity("Bob"), entity("An")]),
    ("ner", "a field is missing, or not one line of at most 200 characters", [
        "Ann", None, 7, ["Ann"], {"text": "Ann"}, entity(about=""), entity(about=3), entity(about="x" * 201),
        entity(about="a\nb"), entity(about="\x1b[31m"), entity(about="\ud800"), entity(type=["person"])]),
    ("qra", None, [question(answer="Yes"), question("attitude", answer="good"), question("structure")]),
    ("qra", "answer not in the sentence", [question(answer="Bob"), question(answer="yes")]),
    ("qra", "unknown kind", [question("trivia")]),
    ("qra", MARK, [question(question=text) for text in ("Who?!", "Who flew", "Q: Who?")])])
def test_an_item_is_valid_or_has_a_reason(behaviour, problem, items):
    field = prompts.FIELDS[behaviour]
    other = entity("Anna") if behaviour == "ner" else question(question="Who is it?")
    empty = {"paragraph": 0, "sentence": 0, "text": SAID, "entities": [], "questions": []}
    for item in items:
        found, dropped, why = parse(behaviour, SAID, json.dumps({field: [other, item]}))
        assert dropped == ({problem: 1} if problem else {}) and len(found) + dropped.total() == 2
        assert why is None and all(set(kept) == set(prompts.ITEMS[behaviour]) for kept in found)
        check_record({**empty, field: found})


def test_a_span_occurs_in_whole_words_and_a_reply_is_usable_or_not():
    there = ["Ann", "Anna", "Ann and", "New York", "York to", "père", "東京", "25 May", "sad", "May, _sad_."]
    absent = ["An", "ew York", "new york", "New  York", "pèr", "5 May", "Bob", ".*", "York,"]
    assert [span for span in there + absent if prompts.occurs(span, SAID)] == there
    bob, ann = [entity("Bob")], [entity(), entity(about="x")]
    assert parse("ner", SAID, '{"entities": []}') == ([], {}, None)         # there may be none
    assert parse("qra", SAID, '{"questions": []}')[2] == "no valid item"
    assert parse("ner", SAID, json.dumps({"entities": bob}))[::2] == ([], "no valid item")
    assert parse("ner", SAID, json.dumps({"entities": ann})) == (ann[:1], {"listed twice": 1}, None)
    assert parse("qra", SAID, '{"questions": {}}')[2] == "no list 'questions' in the JSON"
    trap = f"Ann wrote </think> ```{json.dumps({'entities': bob})}``` to Ben. "     # a reply in a sentence
    assert parse("ner", trap, trap + json.dumps({"entities": ann}))[::2] == ([], "several JSON objects")
    assert parse("ner", SAID, '{"entities": [', "length")[2] == "no JSON object, cut off at --max_tokens"
    assert parse("ner", SAID, "", "content_filter")[2] == "no JSON object, finish_reason content_filter"


def test_a_killed_run_asks_for_nothing_twice(tmp_path, run):
    lines, path = write_text(tmp_path, 60), tmp_path / "a.replies.jsonl"
    program = "import sys; from adapters import annotate; annotate.main(sys.argv[1:])"
    fifty, killed = threading.Event(), threading.Event()
    with teacher(lambda *job: wait() and perfect(*job)) as server:
        wait = lambda: server.sent.total() < 50 or fifty.set() or killed.wait(60)  # noqa: E731
        process = subprocess.Popen([sys.executable, "-c", program, *command(tmp_path, server.url)], cwd=ROOT)
        assert fifty.wait(60)
        process.kill()
        killed.set()
        assert process.wait() and not (tmp_path / "a.jsonl").exists()
        with open(path, "ab") as file:                              # torn in the middle of a line as well
            file.write(b'{"key": "00", "reply": "{\\"ent')
        assert run(server)[1] == expected(lines)
        assert server.sent.total() - len(server.sent) <= 8          # those in flight when it was killed
    assert len(path.read_bytes().splitlines()) == len(server.sent) == len(endpoint.read_replies(path))


def test_eight_are_in_flight_at_a_time(tmp_path, run):
    lines, eight = write_text(tmp_path, 12), threading.Barrier(8)           # 24 requests are 3 rounds
    with teacher(lambda *job: eight.wait(10) >= 0 and perfect(*job)) as server:
        assert run(server, "--retries=0")[1] == expected(lines) and server.asked.total() == 24


def test_a_broken_reply_is_asked_for_three_times_and_kept(tmp_path, run, monkeypatch):
    lines, broken, old = write_text(tmp_path, 3), "Entities of it: Ben.", annotate.parse
    with teacher(lambda *job: broken if job[:2] == ("ner", lines[1]) else perfect(*job)) as server:
        said, found = run(server, "--parallel=1")
        assert counts(said) == [3, 2, 1, 1] and found == expected(lines, lines[1:2])
        tries = [body for body in server.bodies if lines[1] in body["messages"][-1]["content"]][:3]
        assert [(body["seed"], body["temperature"]) for body in tries] == [(0, 0), (1, 0.7), (2, 0.7)]
        monkeypatch.setattr(annotate, "parse", lambda *job: old(*job[:2], perfect(*job), PROMPTS))   # a better parser
        asked = server.asked.total()
        assert run(server)[1] == expected(lines) and server.asked.total() == asked      # sends no request


def test_a_sentence_without_an_end_is_told_before_it_is_sent(tmp_path, capsys):
    (tmp_path / "my.txt").write_text("Ann left.[1] She said " + "no, no " * 99 + "\n\nNo end", encoding="utf-8")
    annotate.main(command(tmp_path, "http://localhost:1/v1", "--dry_run"))
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith("in sentences of more than 500 characters: 1") and second.startswith("8 requests")


def test_a_sentence_is_asked_about_once_without_control_characters(tmp_path, run):
    text = "Ann sold 3 lamps\nin Oslo. Ann sold 3 lamps in Oslo.\n\nAnn sold 3 lamps\x1bin Oslo.\n\n\x1b"
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    with teacher(perfect) as server:
        said, found = run(server)
    assert [len(p) for p in found] == [2, 1] and counts(said) == [3, 3, 0, 0] and server.asked.total() == 2


def test_waits_are_as_long_as_asked_and_grow(monkeypatch):
    monkeypatch.setattr(endpoint, "BACKOFF", 1.0)
    answers = [(429, {"Retry-After": "7"}, ""), (500, {}, ""), (408, {"Retry-After": "soon"}, ""),
               (200, {}, "<html>"), (200, {}, '{"choices": [{"message": {"content": ["a"]}}]}'),
               (429, {"Retry-After": "9" * 5000}, ""), "done", *[(500, {}, "out of\nmemory")] * 7]
    body, retries, waits = {"messages": PROMPTS.messages("ner", "Ann left.")}, [], []
    stop, done = SimpleNamespace(wait=waits.append), {"reply": "done", "finish": "stop", "tokens": [500, 50], "by": None}
    with teacher(lambda *job: answers[job[-1] - 1]) as server:
        options = SimpleNamespace(url=endpoint.endpoint_url(server.url), secret=KEY, timeout=5, retries=6)
        assert endpoint.ask(body, options, stop, retries) == (done, None)
        assert endpoint.ask(body, options, stop, []) == (None, "HTTP 500: out of memory") and len(waits) == 12
    monkeypatch.setattr(endpoint.OPENER, "open", Mock(side_effect=BadStatusLine(KEY)))
    assert endpoint.ask(body, options, stop, []) == (None, "BadStatusLine: [key]") and waits[5] == 300
    bodies = [f"HTTP 200 without a chat completion: {body}" for _, _, body in answers[3:5]]
    assert retries == ["HTTP 429", "HTTP 500", "HTTP 408", *bodies, "HTTP 429"]
    for k, (wait, asked) in enumerate(zip(waits, (7, 0, 0, 0, 0))):
        assert asked + 2 ** k / 2 <= wait <= asked + 1.5 * 2 ** k


def stream(text, end="stop"):
    """A chat completion as the events of a stream, a word in each."""
    deltas = [{"role": "assistant"}, *({"content": word} for word in re.findall(r"\S*\s*", text))]
    chunks = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks += [{"choices": [{"delta": {}, "finish_reason": end}]}, {"choices": [], "usage": {"prompt_tokens": 9}}]
    return ": busy\r\n\r\n" + "".join(f"data: {json.dumps(c)}\r\n\r\n" for c in chunks) + "data: [DONE]\r\n"


def test_a_completion_is_read_in_every_shape():
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a "},
             {"type": "text", "text": "b"}]
    for message, reply in (
            ({"content": "a b"}, "a b"), ({"content": parts}, "a b"), ({"content": parts[:1]}, ""),
            ({"content": None, "reasoning_content": "a b"}, "a b"), ({"content": "", "reasoning": "a b"}, "a b"),
            ({"content": [{"type": "output_text", "text": "a b"}]}, "a b"), ({"content": "", "thinking": "a"}, "a"),
            ({"content": "a b", "reasoning": "c"}, "a b"), ({"content": "Done.", "reasoning": "{}"}, "Done.")):
        assert endpoint.completion(chat(message)) == {"reply": reply, "finish": "stop", "tokens": [500, 50], "by": None}
    refused = endpoint.completion(chat({"content": None, "refusal": "I cannot."}))
    assert refused["finish"] == "refusal: I cannot."
    thought = {"content": None, "reasoning_content": '{"entities": []} or'}
    for finish in ("length", "max_tokens", "MAX_TOKENS"):
        cut = {"reply": '<think>{"entities": []} or', "finish": "length", "tokens": [500, 50], "by": None}
        assert endpoint.completion(chat(thought, finish)) == cut
    streamed = {"reply": "a b  c\n", "finish": "stop", "tokens": [9, 0], "by": None}
    assert endpoint.completion(stream("a b  c\n")) == streamed
    odd = json.dumps({"model": {"id": 7}, "choices": [{"message": {"content": "a"}, "finish_reason": ["stop"]}]})
    assert endpoint.completion(odd) == {"reply": "a", "finish": "['stop']", "tokens": [0, 0], "by": "{'id': 7}"}
    for usage in ("null", "[]", '{"prompt_tokens": "many", "completion_tokens": null}'):
        text = f'{{"choices": [{{"message": {{"content": "a"}}}}], "usage": {usage}}}'
        assert endpoint.completion(text) == {"reply": "a", "finish": None, "tokens": [0, 0], "by": None}
    for text in ("", "null", "[]", "{}", '{"choices": null}', '{"choices": []}', '{"choices": [{}]}', "<html>",
                 '{"choices": [{"message": {"content": null}}]}', 'data: {"error": "no"}', "[" * 10 ** 5,
                 'data: {"choices": [{"delta": {"content": "torn"}}]}', chat({"content": ""}, "error"),
                 chat({"content": 7}), chat({"content": [{"type": "text"}]})):
        with pytest.raises(endpoint.ERRORS):
            endpoint.completion(text)


FILTER = 400, {}, '{"error": {"message": "The prompt was filtered.", "code": "content_filter"}}'
LONG = 413, {}, "<h1>Payload too large</h1>"
QUOTA = 429, {}, '{"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}}'
INSIDE = 200, {}, '{"error": {"message": "The context is full.", "code": 400}}'
BUSY, NULL = ((200, {}, text) for text in ('{"error": {"message": "Try again."}}', '{"choices": null}'))
# What happens to a request -> the answers to it, one after the other, the last for ever; "": a good one.
MENDED = {
    "good": lambda good: [good], "busy": lambda good: [(429, {"Retry-After": "0"}, "slow"), good],
    "down": lambda good: [(503, {}, "loading"), good], "error inside": lambda good: [BUSY, good],
    "null": lambda good: [NULL, good], "drop": lambda good: ["DROP", good],
    "parts": lambda good: [(200, {}, chat({"content": [{"type": "text", "text": good}]}))],
    "thought": lambda good: [(200, {}, chat({"content": None, "reasoning_content": good}))],
    "stream": lambda good: [(200, {}, stream(good))],
    "end": lambda good: [(200, {}, "\ufeff" + chat({"content": good}, "max_tokens"))]}
LOST = {      # ... and what the report says of it
    "filter": (FILTER, "no reply, HTTP 400: .*The prompt was filtered.*content_filter"),
    "long": (LONG, "no reply, HTTP 413: <h1>Payload too large</h1>"),
    "quota": (QUOTA, "no reply, HTTP 429: .*insufficient_quota"),
    "inside": (INSIDE, "no reply, HTTP 200 without a chat completion: .*The context is full"),
    "moved": ((307, {"Location": "https://other/v2"}, ""), "no reply, HTTP 307: -> https://other/v2"),
    "cut": ((200, {}, chat({"content": '{"entities": ['}, "max_tokens")),
            "no JSON object, cut off at --max_tokens"),
    "empty": ((200, {}, chat({"content": None}, "content_filter")),
              "no JSON object, finish_reason content_filter")}


def test_300_requests_to_a_server_that_misbehaves(tmp_path, run, monkeypatch):
    """Every valid reply is kept once, every loss is named in the server's words, nothing is asked for again but
    what was refused, and a chapter that is refused stops nothing. pytest -s shows the report."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")          # a proxy that nobody asked for this machine
    opener = urllib.request.build_opener(endpoint.Answers, endpoint.Proxies)
    monkeypatch.setattr(endpoint, "OPENER", opener)
    lines, fates = write_text(tmp_path, 150), {}
    for i, line in enumerate(lines):
        for j, behaviour in enumerate(prompts.FIELDS):
            fates[behaviour, line] = "filter" if 50 <= i < 80 else list(MENDED)[(2 * i + j) % len(MENDED)]
            if i % 9 == 4 and i % 2 == j:
                fates[behaviour, line] = list(LOST)[i // 9 % len(LOST)]
    valid = Counter()

    def respond(behaviour, sentence, seed, nth):
        good, fate = perfect(behaviour, sentence, seed, nth), fates.get((behaviour, sentence), "good")
        answers = [LOST[fate][0]] if fate in LOST else MENDED[fate](good)
        answer = answers[min(nth, len(answers)) - 1]
        bad = answer == "DROP" or answer[0] != 200 or answer in (BUSY, INSIDE, NULL)
        valid[behaviour, sentence, seed] += answer == good or not bad
        return answer
    with teacher(respond) as server:
        said, found = run(server)
        lost = {job: fate for job, fate in fates.items() if fate in LOST}
        without = {line for _, line in lost}
        n = len(without)
        assert len(fates) == 300 and len(lost) == 74 and found == expected(lines, without)
        assert counts(said) == [150, 150 - n, n, n] and n == 44
        named = [line for line in said if line.startswith("not annotated, ")]
        for (behaviour, line), fate in lost.items():
            words = f"not annotated, {behaviour}: {LOST[fate][1]}.*: {re.escape(line)}"
            assert sum(bool(re.fullmatch(words, text)) for text in named) == 1, words
        assert len(named) == len(lost)
        kept = endpoint.read_replies(tmp_path / "a.replies.jsonl")
        kept_lines = (tmp_path / "a.replies.jsonl").read_bytes().splitlines()
        assert set(valid.values()) == {0, 1} and len(kept) == len(kept_lines) == valid.total()
        assert any(job[1] in PROMPTS.examples for job in valid)         # an example was answered in between
        before, again = server.asked.copy(), run(server)
        asked = {job[:2] for job in server.asked - before if job[1] in lines}
        assert asked == {job for job, fate in lost.items() if fate not in ("cut", "empty")}
        assert again[1] == found and [line for line in again[0] if line in named] == named
    print("\n".join(said))


def test_an_endpoint_that_refuses_all_is_given_up_in_its_own_words(tmp_path, run):
    lines = write_text(tmp_path, 30)
    error, refused = (404, {}, f"too long \x1b[31mred\nline {KEY}" + "x" * 500), [*lines[20:], *PROMPTS.examples]
    with teacher(lambda *job: error if job[1] in refused else perfect(*job)) as server:
        with pytest.raises(ValueError) as caught:
            run(server, "--parallel=1")
        assert 49 <= server.asked.total() < 53                      # 40 replies, 8 errors, one for the example
    said = str(caught.value)
    assert r"8 requests in a row without a reply: HTTP 404: too long \x1b[31mred line [key]x" in said
    assert "check --teacher" in said and len(said) < 600
    with teacher(lambda *job: (401, {}, "no such model")) as server, pytest.raises(ValueError):
        run(server, "--model=other", "--parallel=1")                # brings nothing: the file stays
    assert server.asked.total() < 13 and read_annotations(tmp_path / "a.jsonl") == expected(lines[:20])


def test_a_run_that_brings_nothing_fails(tmp_path, run, capsys):
    for text, asked in (("\x1b\n\n\x1b", 0), ("One. Two. Three.", 18)):           # no sentence, and three of them
        (tmp_path / "my.txt").write_text(text, encoding="utf-8")
        with teacher(lambda *job: "I cannot.") as server, pytest.raises(ValueError) as caught:
            annotate.main(command(tmp_path, server.url))
        assert str(caught.value).endswith(f"annotated, so {tmp_path / 'a.jsonl'} is not written")
        assert server.asked.total() == asked and not (tmp_path / "a.jsonl").exists()


def test_a_file_that_another_hand_wrote_is_kept(tmp_path):
    write_text(tmp_path, 1)
    (tmp_path / "a.jsonl").write_text("mine", encoding="utf-8")
    with teacher(perfect) as server, pytest.raises(ValueError, match="no a.replies.jsonl beside it.* another --out"):
        annotate.main(command(tmp_path, server.url))
    assert not server.asked and (tmp_path / "a.jsonl").read_text(encoding="utf-8") == "mine"


def test_the_key_is_sent_and_nowhere_else(tmp_path, capsys):
    lines = write_text(tmp_path, 5)
    moved = 302, {"Location": f"http://127.0.0.1:9/{KEY}", KEY: KEY}, f"<b>{KEY}</b>"

    def respond(*job):
        return moved if job[1] == lines[2] else (
            f"Your key is {KEY}. " + perfect(*job, [question(KEY, KEY + "?", KEY)]))

    with teacher(respond) as server:
        annotate.main(command(tmp_path, server.url, "--parallel=1"))
    with teacher(lambda *_: moved) as other, pytest.raises(ValueError) as caught:
        annotate.main(command(tmp_path, other.url, "--model=other"))
    assert server.headers == other.headers == {(PATH, f"Bearer {KEY}")}
    assert "Your key is [key]." in (tmp_path / "a.replies.jsonl").read_text(encoding="utf-8")
    seen = [capsys.readouterr().out, *(file.read_text(encoding="utf-8") for file in tmp_path.iterdir())]
    assert KEY not in "".join(seen + traceback.format_exception(caught.value)) and "4 annotated," in seen[0]
    for text in (seen[0], str(caught.value)):
        assert "HTTP 302: -> http://127.0.0.1:9/[key] <b>[key]</b>" in text


def test_a_bad_key_is_refused_unseen_and_a_placeholder_spoils_no_reply(tmp_path, run, monkeypatch):
    for key in ("two words", "a\nb", "schlüssel-1234", 'quo"te'):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ValueError, match="OPENAI_API_KEY holds") as caught:
            annotate.main(["x", "--teacher=http://localhost:1", "--model=m"])
        assert key not in str(caught.value)
    lines = write_text(tmp_path, 1)
    for key, header in (("", None), ("Oslo", "Bearer Oslo")):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with teacher(perfect) as server:
            assert run(server, f"--model=m{key}")[1] == expected(lines) and server.headers == {(PATH, header)}


def test_a_server_that_is_not_there_is_said_at_once(tmp_path, capsys, monkeypatch):
    write_text(tmp_path, 30)
    monkeypatch.setattr(endpoint, "PROBE", 0.2)
    monkeypatch.setattr(endpoint, "ask_all", None)                  # nothing is asked
    silent = socket.create_server(("127.0.0.1", 0))                 # accepts, and says nothing
    with teacher(perfect) as server, silent:
        for url, why in (("http://127.0.0.1:1/v1", "ConnectionRefusedError"), (server.url.replace("http", "https"), "SSL"),
                         (f"https://127.0.0.1:{silent.getsockname()[1]}/v1", "TimeoutError: .*handshake")):
            with pytest.raises(ValueError, match=f"completions: {why}.*is the server running") as caught:
                annotate.main(command(tmp_path, url))
            assert "\n" not in str(caught.value)
        assert server.asked.total() == 0
    options = SimpleNamespace(url=endpoint.endpoint_url("http://no-such-host/v1"))
    for error, said in ((urllib.error.URLError(OSError("No route to host")), "OSError: No route"),
                        (urllib.error.URLError(TimeoutError("timed out")), "TimeoutError"),         # to connect
                        (TimeoutError("timed out"), None), (BadStatusLine("x"), None)):             # and later
        monkeypatch.setattr(endpoint.OPENER, "open", Mock(side_effect=error))
        with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext():
            endpoint.probe(options)


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("first, again", [
    (b"H", b"T"), (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
    (b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (HEAD, b"1"), (HEAD, b"1\r\nx\r\n"), (HEAD + b"1;", b"x"),
    (HEAD + b"1\r\n{\r\n0\r\n", b"X: y\r\n"), (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b" "),
    (b"HTTP/1.1 302 Found\r\n", b"X: y\r\n")])
def test_a_server_that_sends_a_byte_now_and_then_is_late(first, again):
    def drip():
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(first)
            while not ended.wait(0.02):
                connection.sendall(again)
    server, ended = socket.create_server(("127.0.0.1", 0)), threading.Event()
    threading.Thread(target=drip, daemon=True).start()
    with server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        options, begin = SimpleNamespace(url=url, secret="", timeout=0.3), time.monotonic()
        reply, why, wait = endpoint.post({}, options)
        ended.set()
    assert (reply, wait) == (None, None) and why.startswith("TimeoutError") and time.monotonic() - begin < 2


def test_annotations_that_were_corrected_by_hand_are_not_written_over(tmp_path, run):
    lines, path = write_text(tmp_path, 3), tmp_path / "a.jsonl"
    with teacher(perfect) as server:
        run(server)
        path.write_text(mine := path.read_text(encoding="utf-8").replace("seller", "dealer"), encoding="utf-8")
        with pytest.raises(ValueError, match="a.jsonl: changed since it was written; move it"):
            run(server)
        assert path.read_text(encoding="utf-8") == mine
        path.rename(tmp_path / "mine.jsonl")
        assert run(server)[1] == run(server)[1] == expected(lines)


def test_two_commands_on_one_file_do_not_pay_twice(tmp_path, run):
    pytest.importorskip("fcntl")
    write_text(tmp_path, 3)
    with teacher(perfect) as server:
        with open(tmp_path / "a.replies.jsonl", "ab") as file:
            lock(file, "this test")
            with pytest.raises(ValueError, match="a.replies.jsonl: another process is at work here"):
                run(server)
        assert not server.asked and run(server)


def test_a_key_is_hidden_however_a_server_escapes_it():
    key = "sk-a.Key+to/be=kept~1234"
    forms = [key, json.dumps(key)[1:-1], urllib.parse.quote(key, safe=""), html.escape(key), key.replace("/", "\\/"),
             "".join(f"\\u{ord(c):04x}" for c in key), "".join(f"%{ord(c):02X}" for c in key),
             "".join(f"&#0{ord(c)};" for c in key), "".join(f"&#{ord(c)}" for c in key),
             "".join(f"%25{ord(c):02x}" for c in key), "".join(f"\\x{ord(c):02x}" for c in key), json.dumps("".join(f"\\u{ord(c):04X}" for c in key))]
    for form in forms:
        assert endpoint.hide(f"x {form} y", key).strip('x y"') == "[key]", form
    assert endpoint.hide(key[:-1], key) == key[:-1] and endpoint.hide("none", "none") == "none"
    assert endpoint.hide(html.escape("a&b<c>d'e\"f"), "a&b<c>d'e\"f") == "[key]"
    begin = time.process_time()
    endpoint.hide("\\" * 200_000, key)
    assert time.process_time() - begin < 2
    text = json.dumps({"a": f"\\\n{key}\\", key: 1})
    assert json.loads(endpoint.hide(text, key)) == {"a": "\\\n[key]\\", "[key]": 1}


def test_a_reply_of_braces_takes_no_time():
    formulas = r"So \frac{1}{2}, set {x}. " * 2000
    assert prompts.find_object(formulas + '\n{"entities": []}') == ({"entities": []}, None)
    begin = time.process_time()
    for text in ('{"a": [' * 480 + "0, " * 250_000, '{"a":' * 100_000, "{" * 500_000):
        assert prompts.find_object(text) == (None, "no JSON object")
    assert time.process_time() - begin < 5


def test_odd_numbers_of_a_server_end_no_run_and_a_cut_refusal_tells_no_key(tmp_path, run):
    lines = write_text(tmp_path, 2)
    odd = chat({"refusal": "x" * 60 + KEY}), '{"error": {"code": 1e999}}', chat({"content": "1"}).replace("500", "9" * 400)

    def respond(behaviour, sentence, seed, nth):
        return (200, {}, odd[nth % 3]) if sentence == lines[0] else perfect(behaviour, sentence, seed, nth)
    with teacher(respond) as server:
        said, found = run(server, "--retries=1")
    assert found == expected(lines, {lines[0]}) and KEY[:-1] not in "".join(said)
    assert KEY[:-1] not in (tmp_path / "a.replies.jsonl").read_text(encoding="utf-8")


def test_a_dry_run_prints_the_prompts_and_sends_nothing(tmp_path, capsys):
    lines, body = write_text(tmp_path, 3), '--body={"seed": null, "top_k": 5}'
    annotate.main(command(tmp_path, "http://localhost:1/v1", "--dry_run", body))
    out = capsys.readouterr().out
    assert out.startswith("6 requests to http://localhost:1/v1/chat/completions; nothing is sent.")
    assert out.count(f"Sentence: {lines[0]}") == 2 and KEY not in out
    assert '{"model": "m", "temperature": 0, "max_tokens": 500, "top_k": 5}' in out
    assert len(list(tmp_path.iterdir())) == 1


def test_a_bad_option_is_one_line():
    urls = ("localhost:80", "http://u:pw@host", "file:///x", "http:///v1", "http://host:x", "http://host?key=1",
            "http://host:99999")
    for option in ["--parallel=0", "--parallel=257", "--timeout=nan", "--limit=0", "--retries=-1", "--out=my.txt", "--body=[]",
                   *map("--teacher={}".format, urls)]:
        with pytest.raises(ValueError, match=option.partition("=")[0] + ".*expected") as caught:
            annotate.main(["my.txt", "--teacher=http://localhost:1/v1", "--model=m", option])
        assert "pw" not in str(caught.value) and "\n" not in str(caught.value)
    for body in ('{"model": null}', '{"messages": []}'):
        with pytest.raises(ValueError, match="--body: m.* is what --model and --prompts say; leave it out"):
            annotate.main(["my.txt", "--teacher=http://localhost:1/v1", "--model=m", f"--body={body}"])


def test_a_torn_line_is_cut_off_and_a_bad_one_named(tmp_path):
    path, reply = tmp_path / "a.jsonl", {"key": "1", "model": "m", "reply": "é", "tokens": [0, 0]}
    assert endpoint.read_replies(path) == {}
    with open(path, "ab", buffering=0) as file:
        assert endpoint.keep(file, reply, "") == reply
    line = path.read_bytes()
    path.write_bytes(line + '{"key": "2", "reply": "é'.encode()[:-1])
    assert endpoint.read_replies(path) == {"1": reply} and path.read_bytes() == line
    path.write_bytes(line + line[:-1])                              # an editor took the line's end
    assert endpoint.read_replies(path) == {"1": reply} and path.read_bytes() == 2 * line
    for bad in (b'{"key": "2"}\n', b"[]\n", b"\n", line.replace(b'"m"', b'"n"'), b"my own notes"):
        path.write_bytes(line + bad)
        with pytest.raises(ValueError, match=r"a\.jsonl:2: not a reply as it was written; remove this line"):
            endpoint.read_replies(path)
    with pytest.raises(OSError, match="disk full"):
        endpoint.keep(SimpleNamespace(name="a.jsonl", write=lambda data: len(data) // 2), {"key": "1"}, "")


# --- small models -------------------------------------------------------------------------------------------

def test_what_is_late_is_tried_in_another_way_with_fewer_in_flight(tmp_path, run):
    lines = write_text(tmp_path, 6)
    with teacher(lambda *job: "HANG" if job[2] == 0 and job[1] in lines[:3] else perfect(*job)) as server:
        said, found = run(server, "--timeout=0.3", "--parallel=4")
        assert found == expected(lines)
        assert {job[:3] for job in server.asked if job[1] in lines[:3]} == {
            (behaviour, line, seed) for behaviour in prompts.FIELDS for line in lines[:3] for seed in (0, 1)}
        assert max(server.asked.values()) == 1 and "          1  TimeoutError: timed out, from here on 2 in flight" in said
        assert counts(said, "requests repeated")[-1] == 6
        kept = endpoint.read_replies(tmp_path / "a.replies.jsonl")
        assert len(kept) == 12                          # what was late is not in the file: it may be asked again
    with teacher(lambda *job: "HANG") as server:
        with pytest.raises(ValueError, match="8 requests in a row without a reply: TimeoutError"):
            run(server, "--timeout=0.1", "--parallel=2", "--model=hangs")


def test_what_was_sent_together_and_is_late_halves_the_number_in_flight_once():
    flight = endpoint.Flight(None, {}, SimpleNamespace(parallel=4))
    for sent, left in ((4, 2), (4, 2), (2, 1), (1, 1)):
        flight.answers.put((("ner", "Ann left."), "key", sent, None, "TimeoutError: timed out"))
        assert flight.take() == (("ner", "Ann left."), True) and flight.most == left
    assert flight.streak == 1               # only where one alone was late


def test_complete_items_of_a_list_that_was_cut_off_are_kept(tmp_path, run):
    three = [entity("Ann"), entity("Anna"), entity("New York", "place")]
    whole = json.dumps({"entities": three})
    rest = {"the rest of a list that was cut off at --max_tokens": 1}
    for end, n in ((1, 3), (2, 3), (3, 2), (40, 2), (100, 1)):
        assert parse("ner", SAID, "Here: " + whole[:-end], "length") == (three[:n], rest, None)
        assert parse("ner", SAID, "<think>" + whole[:-end], "length")[0] == []
        draft = "Perhaps " + json.dumps({"entities": three[:1]}) + " </think> "
        assert parse("ner", SAID, draft + whole[:-end], "length")[0] == three[:n]
        assert parse("ner", SAID, whole[:-end], "stop")[0] == []
    assert parse("ner", SAID, whole, "length") == (three, {}, None)
    for text in ('{"entities": [', '{"entities": [{"text": "Ann', "", "{" * 10 ** 5, '{"entities": [' + "[" * 10 ** 5):
        assert parse("ner", SAID, text, "length") == ([], {}, "no JSON object, cut off at --max_tokens")
    lines = write_text(tmp_path, 1)
    cut = lambda *job: (200, {}, chat({"content": perfect(*job)[:-3]}, "length"))  # noqa: E731
    with teacher(cut) as server:
        said, (records,) = run(server)
    assert [len(records[0][field]) for field in prompts.FIELDS.values()] == [1, 1]
    assert said[1].startswith("2 replies, 2 cut off, ") and counts(said, "questions: ") == [4, 2, 2, 2]


def test_a_limit_that_changed_asks_again_for_what_it_spoiled_alone(tmp_path, run):
    lines = write_text(tmp_path, 3)
    spoilt = lambda *job: (200, {}, chat({"content": '{"questions": ['}, "length"))  # noqa: E731
    with teacher(lambda *job: spoilt() if job[:2] == ("qra", lines[1]) else perfect(*job)) as server:
        run(server, "--max_tokens=20")
        assert server.asked.total() == 5 + 3
        run(server, "--max_tokens=20", "--timeout=7", "--retries=1", "--parallel=3")
        run(server, "--max_tokens=10", '--body={"max_completion_tokens": 5}')
        assert server.asked.total() == 5 + 3
        server.respond = perfect
        assert run(server)[1] == expected(lines) and server.asked.total() == 5 + 3 + 1
        assert server.bodies[-1]["max_tokens"] == 500 and server.bodies[-1]["seed"] == 0
        assert run(server, '--body={"top_p": 0.5}')[1] == expected(lines)               # another request
        assert server.asked.total() == 5 + 3 + 1 + 6


def test_sigterm_writes_what_there_is_though_requests_hang(tmp_path):
    lines = write_text(tmp_path, 30)
    program = ("import sys; from adapters import annotate, endpoint; from data.cli import run_command\n"
               "endpoint.GRACE = 0.2; run_command(lambda: annotate.main(sys.argv[1:]))")
    hangs, hung = lambda job: job[1] in lines[10:], threading.Event()  # noqa: E731
    with teacher(lambda *job: (hung.set() or "HANG") if hangs(job) else perfect(*job)) as server:
        process = subprocess.Popen([sys.executable, "-c", program, *command(tmp_path, server.url)], cwd=ROOT,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert hung.wait(60)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=4)     # the server would hang for five seconds
    assert process.returncode == 130 and "the same command goes on from there" in error
    assert "Traceback" not in error and counts(out.splitlines())[0] == 30
    found = [record["text"] for paragraph in read_annotations(tmp_path / "a.jsonl") for record in paragraph]
    assert 6 <= len(found) and found == lines[:len(found)]


def test_the_true_name_of_the_model_is_noted_and_said(tmp_path, run):
    lines = write_text(tmp_path, 1)
    named = lambda *job: (200, {}, json.dumps({"model": "m-135.gguf", **json.loads(chat({"content": perfect(*job)}))}))  # noqa: E731
    with teacher(named) as server:
        said, found = run(server)
        assert found == expected(lines) and said[1] == "--model=m, but the replies are of m-135.gguf"
        again, _ = run(server, "--model=m-135.gguf")
        assert not any("but the replies" in line for line in again)
    kept = endpoint.read_replies(tmp_path / "a.replies.jsonl").values()
    assert [(reply["model"], reply["by"]) for reply in kept] == [("m", "m-135.gguf")] * 2 + [("m-135.gguf",) * 2] * 2


# --- a schema of each sentence ------------------------------------------------------------------------------

def test_a_schema_allows_what_can_be_used():
    sentence = 'Ann and Mr. Wu left New York on 25 May, "sad" but well-fed; Ann\'s père took 東京.'
    found = prompts.spans(sentence, PROMPTS.edges)
    assert {"Ann", "Mr. Wu", "New York", "25 May", "sad", "well-fed", "père", "東京"} < set(found)
    assert not {"and", "on", "s", "May,", "York on", "and Mr", '"sad"', "May, \"sad", "well"} & set(found)
    assert all(prompts.occurs(span, sentence) for span in found) and len(set(found)) == len(found)
    assert len(prompts.spans("word other " * 900, PROMPTS.edges)) <= prompts.SPANS
    ner, qra = (PROMPTS.schema(behaviour, sentence)["properties"][field] for behaviour, field in prompts.FIELDS.items())
    texts = [item["properties"]["text"]["enum"] for item in ner["prefixItems"]]
    assert sum(texts, []) == found and 1 < len(texts) <= prompts.MOST               # each in one part
    for item, (kind, starts, answers) in zip(qra["prefixItems"], PROMPTS.slots, strict=True):
        fields = item["properties"]
        assert list(fields) == item["required"] == list(prompts.ITEMS["qra"]) and fields["kind"] == {"const": kind}
        pattern, given = fields["question"]["pattern"], fields["answer"]["enum"]
        assert set(given) <= set(found) if answers == ["copied"] else given == answers
        for start in starts:
            written = question(kind, f"{start} did it?", given[0])
            assert re.search(pattern, written["question"])
            assert prompts.item_problem("qra", written, sentence, PROMPTS.fixed()) is None
            assert not any(re.search(pattern, bad) for bad in (f"{start}ever did?", f"{start} a? b?", "Q: Who?"))
    assert PROMPTS.schema("ner", "...")["properties"]["entities"]["prefixItems"][0]["properties"]["text"] == {"enum": ["..."]}


def test_a_schema_is_sent_and_left_out_where_a_server_refuses_it(tmp_path, run):
    lines = write_text(tmp_path, 2)
    with teacher(perfect) as server:
        assert run(server, "--schema")[1] == expected(lines)
        for body in server.bodies:
            sentence = body["messages"][-1]["content"].removeprefix("Sentence: ")
            behaviour = "ner" if body["messages"][0] == PROMPTS.messages("ner", "")[0] else "qra"
            sent = body["response_format"]
            assert sent["type"] == "json_schema" and sent["json_schema"]["strict"] is True
            assert sent["json_schema"]["schema"] == json.loads(json.dumps(PROMPTS.schema(behaviour, sentence)))
    with teacher(None) as server:
        refused = {"ner": (400, {}, "no"), "qra": (422, {}, "no")}
        server.respond = lambda *job: refused[job[0]] if "response_format" in server.bodies[-1] else perfect(*job)
        said, found = run(server, "--schema", "--model=old", "--parallel=1", "--retries=0")
        assert found == expected(lines) and len(server.bodies) == 8
        assert all(f"          2  HTTP {code} with --schema, sent without it" in said for code in (400, 422))
        run(server, "--schema", "--model=old")
        assert len(server.bodies) == 8


# --- the round trip -----------------------------------------------------------------------------------------

def test_a_question_is_kept_if_it_is_answered_alike_again(tmp_path, run):
    lines = write_text(tmp_path, 3)

    def respond(behaviour, sentence, *more):
        if behaviour != "answer":
            return perfect(behaviour, sentence, *more)
        sentence, asked = sentence.split("\nQuestion: ")
        return "Not neutral" if asked.startswith("Good") else f"The {sentence.split()[0].upper()}."
    with teacher(respond) as server:
        said, found = run(server, "--roundtrip")
        asked = server.asked.total()
        assert asked == 6 + 6 and counts(said, "questions: ") == [12, 9, 3, 3]
        assert "          3  qra: not answered alike when asked again" in said
        assert [record["questions"] for p in found for record in p] == [truth("qra", line)[:1] for line in lines]
        assert run(server, "--roundtrip")[1] == found and server.asked.total() == asked     # from the file
        assert run(server)[1] == expected(lines) and server.asked.total() == asked          # all of them again
        server.bodies.clear()
        assert run(server, "--roundtrip", "--schema", "--limit=1")[1] == [found[0][:1]]
        kinds = [body["response_format"]["json_schema"]["schema"] for body in server.bodies[2:]]
        assert kinds[0] == {"enum": prompts.spans(lines[0], PROMPTS.edges)}
        assert kinds[1] == {"enum": ["good", "bad", "neutral"]}
        told = json.dumps({"entities": [], "questions": [question(question="Who is Anna?", answer="Anna")]})
        server.respond = lambda *job: told              # a question that tells its answer tests nothing
        said, (records,) = run(server, "--roundtrip", "--limit=1", "--model=tells")
        assert records[0]["questions"] == [] and "          1  qra: answer that its question tells" in said
        assert sum(body["model"] == "tells" for body in server.bodies) == 2


@pytest.mark.parametrize("reply, answer, alike, same", [
    ("Bergen.", "Bergen", True, True), ("hill clinic", "the Hill Clinic", True, True), ('"No"', "No", True, True),
    ("<think>No?</think>Yes.", "Yes", True, True), ("seven hours", "the seven hours", True, True),
    ("to Oslo", "Oslo", True, False), ("not good", "good", True, False), ("", "Bergen", False, False),
    ("Yes", "No", False, False), ("Berg", "Bergen", False, False), ("He flew to Oslo", "Oslo", False, False),
    ("the", "a", False, False)])
def test_answers_agree_whatever_their_case_and_articles(reply, answer, alike, same):
    assert (prompts.agree(reply, answer, exact=False), prompts.agree(reply, answer, exact=True)) == (alike, same)


# --- a file of prompts --------------------------------------------------------------------------------------

def test_prompts_of_another_language_are_read_from_a_file(tmp_path, run):
    text = (ROOT / "adapters" / "prompts.txt").read_text(encoding="utf-8")
    assert all(name in PROMPTS.tasks["ner"] for name in TYPES) and all(k in PROMPTS.tasks["qra"] for k in KINDS)
    german = re.sub(r"\[example\].*", "[example]\nAnna fährt nach Köln.\nAnna | person | Reisende\n"
                    "content | Köln | Wohin fährt Anna?\ncontent | Nein | Bleibt Anna?\n", text, flags=re.DOTALL)
    german = german.replace("| No", "| Nein").replace("Does, Do, Did, Can, Will", "Bleibt").replace("Sentence:", "Satz:")
    (tmp_path / "de.txt").write_text("\ufeff" + german, encoding="utf-8")
    read = prompts.read_prompts(tmp_path / "de.txt")
    assert list(read.examples) == ["Anna fährt nach Köln."] and read.fixed() == ["Yes", "Nein"]
    chat = read.messages("qra", "Ben bleibt.")
    assert chat[0]["content"].endswith("\n\nSatz: Anna fährt nach Köln.") and chat[-1]["content"] == "Satz: Ben bleibt."
    assert json.loads(chat[1]["content"])["questions"][1] == question(question="Bleibt Anna?", answer="Nein")
    assert prompts.parse("qra", "Ben bleibt.", json.dumps({"questions": [question(answer="No")]}), read)[0] == []
    write_text(tmp_path, 1)
    with teacher(perfect) as server:
        run(server)
        run(server, "--prompts", str(ROOT / "adapters" / "prompts.txt"))
        assert server.asked.total() == 2                # the same prompts
        run(server, "--prompts", str(tmp_path / "de.txt"))
        assert len(server.bodies) == 4                  # others are other requests


@pytest.mark.parametrize("old, new, error", [
    ("[qra]", "[qar]", r"\d+: \[qar\], expected \[example\] or, once each, .*'qra'"), ("[ner]", "x\n[ner]", r"\d+: expected \[ner\]"),
    ("[labels]\nSentence:\nQuestion:", "", r" no section \[labels\]"), ("Question:\n", "", " 1 lines in .labels., expected"),
    ("Hill Clinic |", "Hill clinic |", r"\d+: entity not in the sentence: Hill clinic"),
    ("attitude | Is", "mood | Is", r"\d+: mood \| Is.*expected kind \| beginnings \| answers"),
    ("Rome | place | start", "Rome | town | start", r"\d+: unknown type"), ("Rome | place | start", "Rome", r"\d+: a field"),
    ("[edges]", "[ner]\nother\n[edges]", r"\d+: \[ner\], expected .* once each"), ("by she?", "by she? | x", r"\d+: question without"),
    ('\n"My old clock is broken," said Maria, and she was sad.', "", r"\d+: clock \| thing .*expected the sentence of these"),
    ("clock | thing |", "clock | thing", r"\d+: a field is missing")])
def test_a_mistake_in_a_file_of_prompts_is_named(tmp_path, old, new, error):
    text = (ROOT / "adapters" / "prompts.txt").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "p.txt").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"p\.txt:{error}") as caught:
        prompts.read_prompts(tmp_path / "p.txt")
    assert "\n" not in str(caught.value)
