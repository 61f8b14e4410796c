"""An LLM as the teacher, against a server on this machine that misbehaves in the ways that real ones do."""

import _thread
import contextlib
import gzip
import itertools
import json
import random
import re
import subprocess
import sys
import threading
import traceback
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

ROOT = Path(annotate.__file__).parents[1]
KEY, PATH = "sk-a-key-to-be-kept-1234", "/v1/chat/completions"
BROKEN = "Clara sold 5 lamps in Rome."


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
    if sentence in prompts.EXAMPLES:
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


def misbehaving(*job):
    invented = entity("Zanzibar", "place") if job[0] == "ner" else question(answer="Zanzibar")
    good, more = perfect(*job), perfect(*job, [invented])
    answers = (429, {}, ""), (500, {}, ""), "HANG", good[:-9], more, good
    answer = random.Random(str(job)).choices(answers, (10, 5, 5, 5, 5, 70))[0]
    return "I cannot." if job[1] == BROKEN else answer


@contextlib.contextmanager
def teacher(respond):
    """respond(behaviour, sentence, seed, n-th time) -> a reply (str), "HANG", "DROP", or (status,
    headers, body), the body str or bytes."""
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
        behaviour = "ner" if body["messages"][0] == prompts.messages("ner", "")[0] else "qra"
        job = behaviour, body["messages"][-1]["content"].removeprefix("Sentence: "), body.get("seed")
        server.asked[job] += 1                          # no lock: each job has one request at a time
        server.bodies.append(body)
        server.headers.add((self.path, self.headers.get("Authorization")))
        said = server.respond(*job, server.asked[job])
        if said in ("HANG", "DROP"):
            return said == "DROP" or server.closing.wait(5)
        if isinstance(said, str):
            said = 200, {}, chat({"content": said})
        status, headers, data = said
        data = data if isinstance(data, bytes) else data.encode()
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
        *chat, last = prompts.messages(behaviour, "Anna left.")
        assert last == {"role": "user", "content": "Sentence: Anna left."} and len(chat) == 6
        for asked, told in zip(chat[::2], chat[1::2]):
            sentence = asked["content"].rpartition("Sentence: ")[2]
            items, dropped, why = prompts.parse(behaviour, sentence, told["content"])
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
        found, dropped, why = prompts.parse(behaviour, SAID, json.dumps({field: [other, item]}))
        assert dropped == ({problem: 1} if problem else {}) and len(found) + dropped.total() == 2
        assert why is None and all(set(kept) == set(prompts.ITEMS[behaviour]) for kept in found)
        check_record({**empty, field: found})


def test_a_span_occurs_in_whole_words_and_a_reply_is_usable_or_not():
    there = ["Ann", "Anna", "Ann and", "New York", "York to", "père", "東京", "25 May", "sad", "May, _sad_."]
    absent = ["An", "ew York", "new york", "New  York", "pèr", "5 May", "Bob", ".*", "York,"]
    assert [span for span in there + absent if prompts.occurs(span, SAID)] == there
    parse, bob, ann = prompts.parse, [entity("Bob")], [entity(), entity(about="x")]
    assert parse("ner", SAID, '{"entities": []}') == ([], {}, None)         # there may be none
    assert parse("qra", SAID, '{"questions": []}')[2] == "no valid item"
    assert parse("ner", SAID, json.dumps({"entities": bob}))[::2] == ([], "no valid item")
    assert parse("ner", SAID, json.dumps({"entities": ann})) == (ann[:1], {"listed twice": 1}, None)
    assert parse("qra", SAID, '{"questions": {}}')[2] == "no list 'questions' in the JSON"
    trap = f"Ann wrote </think> ```{json.dumps({'entities': bob})}``` to Ben. "     # a reply in a sentence
    assert parse("ner", trap, trap + json.dumps({"entities": ann}))[::2] == ([], "several JSON objects")
    assert parse("ner", SAID, '{"entities": [', "length")[2] == "no JSON object, cut off at --max_tokens"
    assert parse("ner", SAID, "", "content_filter")[2] == "no JSON object, finish_reason content_filter"


def test_a_misbehaving_server_costs_nothing_but_time(tmp_path, run):
    lines = write_text(tmp_path, 60)
    with teacher(misbehaving) as server:
        said, found = run(server, "--timeout=0.6", "--retries=12")
        assert found == expected(lines, [BROKEN])
        assert counts(said) == [60, 59, 1, 1] and "          1  ner: no JSON object" in said
        total, kept, dropped, table = counts(said, "questions: ")
        assert total - dropped == kept == 59 * 4 and dropped == table > 0
        assert set(server.sent.values()) == {1}                     # no reply was asked for twice
        assert {"HTTP 429", "HTTP 500", "TimeoutError: timed out"} <= {line.split("  ")[-1] for line in said}
        assert sum(server.sent.values()) == len(endpoint.read_replies(tmp_path / "a.replies.jsonl"))
        asked, (again, same) = server.asked.total(), run(server)    # all is there: nothing is asked for
        assert server.asked.total() == asked and same == found and counts(again) == counts(said)


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


def test_ctrl_c_writes_what_there_is(tmp_path, capsys):
    stop = ("ner", write_text(tmp_path, 60)[30])
    with teacher(lambda *job: job[:2] == stop and _thread.interrupt_main() or perfect(*job)) as server:
        with pytest.raises(KeyboardInterrupt):
            annotate.main(command(tmp_path, server.url))
    _, done, missing, _ = counts(capsys.readouterr().out.splitlines())
    assert 0 < done == 60 - missing == sum(map(len, read_annotations(tmp_path / "a.jsonl")))


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
        monkeypatch.setattr(annotate, "parse", lambda *job: old(*job[:2], perfect(*job)))   # a better parser
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
    body, retries, waits = {"messages": prompts.messages("ner", "Ann left.")}, [], []
    stop, done = SimpleNamespace(wait=waits.append), {"reply": "done", "finish": "stop", "tokens": [500, 50]}
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
        assert endpoint.completion(chat(message)) == {"reply": reply, "finish": "stop", "tokens": [500, 50]}
    refused = endpoint.completion(chat({"content": None, "refusal": "I cannot."}))
    assert refused["finish"] == "refusal: I cannot."
    thought = {"content": None, "reasoning_content": '{"entities": []} or'}
    for finish in ("length", "max_tokens", "MAX_TOKENS"):
        cut = {"reply": '<think>{"entities": []} or', "finish": "length", "tokens": [500, 50]}
        assert endpoint.completion(chat(thought, finish)) == cut
    assert endpoint.completion(stream("a b  c\n")) == {"reply": "a b  c\n", "finish": "stop", "tokens": [9, 0]}
    for usage in ("null", "[]", '{"prompt_tokens": "many", "completion_tokens": null}'):
        text = f'{{"choices": [{{"message": {{"content": "a"}}}}], "usage": {usage}}}'
        assert endpoint.completion(text) == {"reply": "a", "finish": None, "tokens": [0, 0]}
    for text in ("", "null", "[]", "{}", '{"choices": null}', '{"choices": []}', '{"choices": [{}]}', "<html>",
                 '{"choices": [{"message": {"content": null}}]}', 'data: {"error": "no"}', "[" * 10 ** 5,
                 'data: {"choices": [{"delta": {"content": "torn"}}]}', chat({"content": ""}, "error"), chat({"content": 7}), chat({"content": [{"type": "text"}]})):
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
    "gzip": lambda good: [(200, {"Content-Encoding": "gzip"}, gzip.compress(chat({"content": good}).encode()))],
    "end": lambda good: [(200, {}, "\ufeff" + chat({"content": good}, "max_tokens"))]}
LOST = {      # ... and what the report says of it
    "filter": (FILTER, "no reply, HTTP 400: .*The prompt was filtered.*content_filter"),
    "long": (LONG, "no reply, HTTP 413: <h1>Payload too large</h1>"),
    "quota": (QUOTA, "no reply, HTTP 429: .*insufficient_quota"),
    "inside": (INSIDE, "no reply, HTTP 200 without a chat completion: .*The context is full"),
    "packed": ((400, {"Content-Encoding": "gzip"}, gzip.compress(b"too many tokens")),
               "no reply, HTTP 400: too many tokens"),
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
            fates[behaviour, line] = "filter" if 60 <= i < 70 else list(MENDED)[(2 * i + j) % len(MENDED)]
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
        assert len(fates) == 300 and len(lost) == 36 and found == expected(lines, without)
        assert counts(said) == [150, 124, 26, 26] and len(without) == 26
        named = [line for line in said if line.startswith("not annotated, ")]
        for (behaviour, line), fate in lost.items():
            words = f"not annotated, {behaviour}: {LOST[fate][1]}.*: {re.escape(line)}"
            assert sum(bool(re.fullmatch(words, text)) for text in named) == 1, words
        assert len(named) == len(lost)
        kept = endpoint.read_replies(tmp_path / "a.replies.jsonl")
        kept_lines = (tmp_path / "a.replies.jsonl").read_bytes().splitlines()
        assert set(valid.values()) == {0, 1} and len(kept) == len(kept_lines) == valid.total()
        assert any(job[1] in prompts.EXAMPLES for job in valid)         # an example was answered in between
        before, again = server.asked.copy(), run(server)
        asked = {job[:2] for job in server.asked - before if job[1] in lines}
        assert asked == {job for job, fate in lost.items() if fate not in ("cut", "empty")}
        assert again[1] == found and [line for line in again[0] if line in named] == named
    print("\n".join(said))


def test_an_endpoint_that_refuses_all_is_given_up_in_its_own_words(tmp_path, run):
    lines = write_text(tmp_path, 30)
    error, refused = (404, {}, f"too long \x1b[31mred\nline {KEY}" + "x" * 500), [*lines[20:], *prompts.EXAMPLES]
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


def test_an_endpoint_that_is_not_there_is_given_up(tmp_path, capsys):
    write_text(tmp_path, 30)
    url = "http://127.0.0.1:1/v1"                                   # nobody listens there
    with pytest.raises(ValueError, match="8 requests in a row without a reply: ConnectionRefusedError"):
        annotate.main(command(tmp_path, url, "--retries=1"))
    capsys.readouterr()
    with pytest.raises(ValueError, match="not one sentence was annotated"):             # fewer than 8
        annotate.main(command(tmp_path, url, "--retries=1", "--limit=2"))
    said = capsys.readouterr().out
    assert counts(said.splitlines()) == [2, 0, 2, 2] and "2  ner: no reply, ConnectionRefusedError" in said


def test_a_dry_run_prints_the_prompts_and_sends_nothing(tmp_path, capsys):
    lines, body = write_text(tmp_path, 3), '--body={"seed": null, "top_k": 5}'
    annotate.main(command(tmp_path, "http://localhost:1/v1", "--dry_run", body))
    out = capsys.readouterr().out
    assert out.startswith("6 requests to http://localhost:1/v1/chat/completions; nothing is sent.")
    assert out.count(f"Sentence: {lines[0]}") == 2 and KEY not in out
    assert '{"model": "m", "temperature": 0, "max_tokens": 2048, "top_k": 5}' in out
    assert len(list(tmp_path.iterdir())) == 1


def test_a_bad_option_is_one_line():
    urls = "localhost:80", "http://u:pw@host", "file:///x", "http:///v1", "http://host:x", "http://host?key=1"
    for option in ["--parallel=0", "--timeout=nan", "--limit=0", "--retries=-1", "--out=my.txt", "--body=[]",
                   *map("--teacher={}".format, urls)]:
        with pytest.raises(ValueError, match=option.partition("=")[0] + ".*expected") as caught:
            annotate.main(["my.txt", "--teacher=http://localhost:1/v1", "--model=m", option])
        assert "pw" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_torn_line_is_cut_off_and_a_bad_one_named(tmp_path):
    path, reply = tmp_path / "a.jsonl", {"key": "1", "model": "m", "reply": "é", "tokens": [0, 0]}
    assert endpoint.read_replies(path) == {}
    with open(path, "ab", buffering=0) as file:
        assert endpoint.keep(file, reply, "") == reply
    line = path.read_bytes()
    path.write_bytes(line + '{"key": "2", "reply": "é'.encode()[:-1])
    assert endpoint.read_replies(path) == {"1": reply} and path.read_bytes() == line
    for bad in (b'{"key": "2"}\n', b"[]\n", b"\n", line.replace(b'"m"', b'"n"')):
        path.write_bytes(line + bad)
        with pytest.raises(ValueError, match=r"a\.jsonl:2: not a reply as it was written; remove this line"):
            endpoint.read_replies(path)
    with pytest.raises(OSError, match="disk full"):
        endpoint.keep(SimpleNamespace(name="a.jsonl", write=lambda data: len(data) // 2), {"key": "1"}, "")
