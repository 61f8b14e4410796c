"""An LLM as the teacher, against a real server on this machine that misbehaves in every way that real ones do."""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import brd
from data import annotate, annotations, corpus, endpoint, prompts
from data.tokenizer import train_bpe

ROOT = Path(__file__).parent.parent
KEY = "sk-a-key-to-be-kept-1234"
PEOPLE, PLACES = "Anna Ben Clara Dora".split(), "Oslo Rome Lima".split()


# --- a teacher that knows every answer, and its server ---------------------------------------------------------------

def text_of(n):
    """n sentences, three a paragraph, no two alike."""
    lines = [f"{PEOPLE[i % 4]} sold {i} lamps in {PLACES[i % 3]}." for i in range(n)]
    return "\n\n".join(" ".join(lines[i:i + 3]) for i in range(0, n, 3)), lines


def truth(behaviour, sentence):
    who, _, n, _, _, place = sentence.rstrip(".").split()
    if behaviour == "ner":
        return [{"text": who, "type": "person", "about": "seller"}, {"text": place, "type": "place", "about": "of the sale"}]
    return [{"kind": "content", "question": f"Who sold {n} lamps?", "answer": who},
            {"kind": "content", "question": f"Did {who} sell lamps?", "answer": "Yes"},
            {"kind": "structure", "question": "Who is named first?", "answer": who},
            {"kind": "attitude", "question": "Is this good or bad?", "answer": "neutral"}]


def good(behaviour, sentence, items=None):
    return json.dumps({prompts.FIELDS[behaviour]: truth(behaviour, sentence) if items is None else items})


INVENTED = {"ner": {"text": "Zanzibar", "type": "place", "about": "far away"},
            "qra": {"kind": "content", "question": "Where to?", "answer": "Zanzibar"}}


class Teacher(ThreadingHTTPServer):
    """respond(behaviour, sentence, seed, nth time that this is asked) -> a reply (str), or (status, headers, body), or
    "HANG". sent and asked count by (behaviour, sentence, seed)."""
    daemon_threads, request_queue_size = True, 64

    def __init__(self, respond, delay=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond, self.delay, self.lock, self.closing = respond, delay, threading.Lock(), threading.Event()
        self.asked, self.sent, self.bodies, self.headers, self.now, self.most = Counter(), Counter(), [], [], 0, 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that is gone is no news here."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        behaviour = "ner" if body["messages"][0]["content"] == prompts.messages("ner", "")[0]["content"] else "qra"
        job = behaviour, body["messages"][-1]["content"].removeprefix("Sentence: "), body.get("seed")
        with server.lock:
            server.asked[job] += 1
            server.bodies.append(body)
            server.headers.append((self.path, dict(self.headers)))
            server.now += 1
            server.most = max(server.most, server.now)
            nth = server.asked[job]
        server.closing.wait(server.delay)
        said = server.respond(*job, nth)
        with server.lock:
            server.now -= 1
        if said == "HANG":
            server.closing.wait(5)
            return
        status, headers, data = said if isinstance(said, tuple) else (200, {}, json.dumps(
            {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
             "usage": {"prompt_tokens": 500, "completion_tokens": 50}}))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data.encode())}.items():
            self.send_header(name, value)
        self.end_headers()
        with server.lock:
            server.sent[job] += status == 200
        self.wfile.write(data.encode())


def perfect(behaviour, sentence, seed, nth):
    return good(behaviour, sentence)


def misbehaving(behaviour, sentence, seed, nth):
    """10 % HTTP 429, 5 % HTTP 500, 5 % hang, 5 % broken JSON, 5 % an invented span; one sentence is always broken."""
    chance = random.Random(f"{behaviour} {sentence} {seed} {nth}").random()
    if sentence == "Ben sold 5 lamps in Lima.":
        return '{"entities": [{"text": "Ben", "type": '
    if chance < 0.15:
        return (429, {}, "slow down") if chance < 0.10 else (500, {}, "oops")
    if chance < 0.20:
        return "HANG"
    if chance < 0.25:
        return good(behaviour, sentence)[:-9]
    return good(behaviour, sentence, truth(behaviour, sentence) + [INVENTED[behaviour]] * (chance < 0.30))


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def options(*arguments):
    parser = argparse.ArgumentParser()
    annotate.add_arguments(parser)
    parsed = parser.parse_args([str(argument) for argument in arguments])
    parsed.url, parsed.secret = endpoint.endpoint_url(parsed.teacher), KEY
    return parsed


def write(folder, text):
    (folder / "my.txt").write_text(text, encoding="utf-8")
    return folder / "my.txt"


def command(folder, server, *more):
    return [folder / "my.txt", "--teacher", server.url, "--model", "m", "--out", folder / "a.jsonl", *more]


def run(folder, server, *more):
    """-> (lines printed, paragraphs written)"""
    lines = list(annotate.annotate(options(*command(folder, server, *more))))
    return lines, annotations.read_annotations(folder / "a.jsonl")


def counts(lines):
    """{"sentences": (total, annotated, not, sum of the reasons), "items": the same}"""
    found = {}
    for i, line in enumerate(lines):
        for name, word in (("sentences", " sentences: "), ("items", " entities and questions in their replies: ")):
            if word in line:
                numbers = [int(part.replace(",", "")) for part in line.replace(word, " ").split() if part[0].isdigit()]
                table = [x for x in iter(lines[i + 1:] + [""])]
                end = next(j for j, x in enumerate(table) if not x.startswith("  "))
                found[name] = *numbers, sum(int(x.split()[0].replace(",", "")) for x in table[:end])
    return found


# --- prompts and replies ---------------------------------------------------------------------------------------------

def test_the_examples_in_the_prompts_are_what_is_accepted():
    for behaviour in prompts.FIELDS:
        chat = prompts.messages(behaviour, 'He said {"entities": []} and left.')
        assert [turn["role"] for turn in chat] == ["user", "assistant"] * 3 + ["user"]
        assert chat[-1]["content"] == 'Sentence: He said {"entities": []} and left.'
        for asked, told in zip(chat[:-1:2], chat[1::2]):
            sentence = asked["content"].rpartition("Sentence: ")[2]
            items, dropped, why = prompts.parse(behaviour, sentence, told["content"])
            assert (dropped, why) == ({}, None) and items == json.loads(told["content"])[prompts.FIELDS[behaviour]]
            assert behaviour == "ner" or {item["kind"] for item in items} == set(annotations.KINDS)
    assert all(name in prompts.TASKS["ner"] for name in annotations.TYPES)


ONE = '{"entities": []}'


@pytest.mark.parametrize("reply, found", [
    (ONE, {"entities": []}), (f"```json\n{ONE}\n```", {"entities": []}), (f"Sure! Here it is:\n{ONE}\nAnything else?", {"entities": []}),
    (f'<think>\nperhaps {{"entities": [1]}}?\n</think>\n\n{ONE}', {"entities": []}), (f'or {{"a": 1}}?</think>{ONE}', {"entities": []}),
    (f"{ONE} I repeat: {ONE}", {"entities": []}), (f"The {{set}} is {ONE}", {"entities": []}),
    ('{"a": "</think> {}"}', {"a": "</think> {}"}), ('```\n{"a": "</think> {}"}\n```', {"a": "</think> {}"}),
    ('{"a": {"b": {}}}', {"a": {"b": {}}}),
    (f'{ONE} or {{"entities": [1]}}', "several JSON objects"), ("I cannot do this.", "no JSON object"), ("", "no JSON object"),
    ('{"entities": [', "no JSON object"), (f"<think> {ONE}", "a thought without an end"), ("[1, 2]", "no JSON object"),
    ('{"a":' * 100000, "JSON nested too deep"), ("{" * 100000, "no JSON object"), ('{"a": ' + "1" * 5000 + "}", "no JSON object"),
])
def test_the_one_json_object_is_found_in_what_models_wrap_it_in(reply, found):
    assert prompts.find_object(reply) == ((None, found) if isinstance(found, str) else (found, None))


SAID = "Ann and Anna's père flew from New York to 東京都 on 25 May, _sad_."


@pytest.mark.parametrize("span, there", [
    ("Ann", True), ("Anna", True), ("Ann and", True), ("New York", True), ("York to", True), ("père", True), ("東京", True),
    ("25 May", True), ("sad", True), ("on 25 May, _sad_.", True), ("An", False), ("ew York", False), ("new york", False),
    ("New  York", False), ("pèr", False), ("5 May", False), ("Bob", False), (".*", False), ("York,", False)])
def test_a_span_stands_in_the_sentence_word_for_word(span, there):
    assert prompts.occurs(span, SAID) is there


def entity(text="Ann", type="person", about="traveller", **more):
    return {"text": text, "type": type, "about": about, **more}


def question(kind="content", question="Who flew?", answer="Ann", **more):
    return {"kind": kind, "question": question, "answer": answer, **more}


@pytest.mark.parametrize("behaviour, item, problem", [
    ("ner", entity(), None), ("ner", entity(confidence=0.9), None), ("ner", entity("Bob"), "entity not in the sentence"),
    ("ner", entity("An"), "entity not in the sentence"), ("ner", entity(type="animal"), "unknown type 'animal'"),
    ("ner", entity(type="Person"), "unknown type 'Person'"), ("ner", entity(about="x" * 201), "about of more than 200 characters"),
    *[("ner", bad, "a field is missing, or not one line of text") for bad in (
        "Ann", None, 7, ["Ann"], {"text": "Ann"}, entity(about=""), entity(about=3), entity(about="a\nb"), entity(about="\x1b[31m"),
        entity(about="\ud800"), entity(text=" Ann"), entity(type=["person"]))],
    ("qra", question(), None), ("qra", question(answer="Yes"), None), ("qra", question("attitude", answer="good"), None),
    ("qra", question("structure", answer="a statement"), None), ("qra", question(answer="Bob"), "answer not in the sentence"),
    ("qra", question(answer="yes"), "answer not in the sentence"), ("qra", question("trivia"), "unknown kind 'trivia'"),
    *[("qra", bad, "question without '?' at its end, or that its line would hide") for bad in (
        question(question="Who?!"), question(question="Who flew"), question(question="Q: Who?"))],
    ("qra", question(question=None), "a field is missing, or not one line of text"),
])
def test_an_item_is_valid_or_its_reason_is_told(behaviour, item, problem):
    field, other = prompts.FIELDS[behaviour], entity("Anna") if behaviour == "ner" else question(question="Who is it?")
    items, dropped, why = prompts.parse(behaviour, SAID, json.dumps({field: [other, item]}))
    assert len(items) == 2 - (problem is not None) and dropped == ({problem: 1} if problem else {}) and why is None
    assert all(set(kept) == set(prompts.ITEMS[behaviour]) for kept in items)
    annotations.check_record({"paragraph": 0, "sentence": 0, "text": SAID, "entities": [], "questions": [], field: items})


def test_a_reply_as_a_whole_is_usable_or_not():
    parse = prompts.parse
    assert parse("ner", SAID, ONE) == ([], {}, None)                                   # a sentence may be without entities
    assert parse("qra", SAID, '{"questions": []}')[2] == "no valid item"                # ... but not without a question
    assert parse("ner", SAID, json.dumps({"entities": [entity("Bob")]})) == ([], {"entity not in the sentence": 1}, "no valid item")
    assert parse("qra", SAID, ONE)[2] == parse("qra", SAID, '{"questions": {}}')[2] == "no list 'questions' in the JSON"
    assert parse("ner", SAID, '{"entities": [', cut=True)[2] == "no JSON object, cut off at --max_tokens"
    assert parse("ner", SAID, json.dumps({"entities": [entity(), entity(about="x")]}))[:2] == ([entity()], {"said twice": 1})


def test_a_text_that_speaks_to_the_parser_invents_nothing():
    """The sentence holds a whole reply; a teacher that repeats it, in whatever place, adds no entity and no answer."""
    trap = json.dumps({"entities": [entity("Zanzibar", "place", "far")]})
    sentence = f"Ann wrote </think> ```{trap}``` to Ben."
    for reply in (f"{sentence}\n{good('ner', 'Ann a b c d Ben.')}", f"{good('ner', 'Ann a b c d Ben.')} {trap}"):
        assert prompts.parse("ner", sentence, reply)[0::2] == ([], "several JSON objects")
    honest = json.dumps({"entities": [entity(), entity(f"</think> ```{trap}```", "thing", "letter")]})
    assert [item["text"] for item in prompts.parse("ner", sentence, honest)[0]][0] == "Ann"
    assert prompts.parse("ner", "Ann left.", trap)[0::2] == ([], "no valid item")


# --- runs ------------------------------------------------------------------------------------------------------------

def expected(lines, left_out=()):
    """The records of text_of, in one paragraph for each stretch without a gap."""
    paragraphs = []
    for i, line in enumerate(lines):
        if line not in left_out:
            if i % 3 == 0 or lines[i - 1] in left_out:
                paragraphs.append([])
            paragraphs[-1].append({"paragraph": len(paragraphs) - 1, "sentence": len(paragraphs[-1]), "text": line,
                                   "entities": truth("ner", line), "questions": truth("qra", line)})
    return paragraphs


def test_a_misbehaving_server_costs_time_and_nothing_else(tmp_path):
    text, lines = text_of(60)
    write(tmp_path, text)
    with Teacher(misbehaving) as server:
        said, found = run(tmp_path, server, "--timeout", 0.6, "--retries", 12)
        assert found == expected(lines, ["Ben sold 5 lamps in Lima."])
        sentences, items = counts(said)["sentences"], counts(said)["items"]
        assert sentences == (60, 59, 1, 1) and "          1  ner: no JSON object" in said
        assert items[:2] == (items[1] + items[2], 59 * 6) and items[2] == items[3] > 0
        assert set(server.sent.values()) == {1}                               # no reply was asked for twice
        assert {"HTTP 429", "HTTP 500", "timed out"} <= {line.split("  ")[-1] for line in said}
        assert sum(server.sent.values()) == len(endpoint.read_replies(tmp_path / "a.replies.jsonl"))
        before, asked = (tmp_path / "a.jsonl").read_bytes(), server.asked.copy()
        again, _ = run(tmp_path, server)                                      # all is there: nothing is asked for
        assert server.asked == asked and before == (tmp_path / "a.jsonl").read_bytes()
        assert counts(again) == counts(said)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "a.replies.jsonl", "my.txt"]


PROGRAM = """
import argparse, sys
from data import annotate, endpoint
endpoint.BACKOFF = 0.01
parser = argparse.ArgumentParser()
annotate.add_arguments(parser)
for line in annotate.annotate(parser.parse_args()):
    print(line, flush=True)
"""


def start(arguments):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, encoding="utf-8",
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))       # a shell's background ignores it


def wait_for(condition, process):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_a_killed_run_asks_for_nothing_twice(tmp_path):
    text, lines = text_of(60)
    write(tmp_path, text)
    path = tmp_path / "a.replies.jsonl"
    with Teacher(misbehaving, delay=0.02) as server:
        arguments = command(tmp_path, server, "--timeout", 0.6, "--retries", 12)
        process = start(arguments)
        wait_for(lambda: server.sent.total() > 50, process)
        process.kill()
        process.wait()
        assert 40 < path.read_bytes().count(b"\n") <= server.sent.total() and not (tmp_path / "a.jsonl").exists()
        kept = set(endpoint.read_replies(path))
        with open(path, "ab") as file:                                        # torn in the middle of a line as well
            file.write(b'{"key": "00", "reply": "{\\"ent')
        _, found = run(tmp_path, server, "--timeout", 0.6, "--retries", 12)
        assert found == expected(lines, ["Ben sold 5 lamps in Lima."])
        for job, n in server.sent.items():
            key = annotate.request(*job, options(*arguments))[0]
            assert n == 1 or (n == 2 and key not in kept), job
        assert server.sent.total() - len(server.sent) <= 8                    # those in flight when it was killed
    assert len(path.read_bytes().splitlines()) == len(server.sent) == len(endpoint.read_replies(path))


def test_ctrl_c_writes_what_there_is(tmp_path):
    text, lines = text_of(60)
    write(tmp_path, text)
    with Teacher(perfect, delay=0.05) as server:
        process = start(command(tmp_path, server))
        wait_for(lambda: server.sent.total() > 30, process)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=20)
    assert "interrupted; the same command continues" in error
    total, annotated, missing, reasons = counts(out.splitlines())["sentences"]
    assert total == 60 and 0 < annotated == 60 - missing and missing == reasons
    assert sum(map(len, annotations.read_annotations(tmp_path / "a.jsonl"))) == annotated


def test_eight_are_in_flight_at_a_time(tmp_path):
    """The server answers only when eight requests stand before it: 24 requests in 3 rounds."""
    write(tmp_path, text_of(12)[0])
    rounds = threading.Barrier(8)

    def respond(behaviour, sentence, seed, nth):
        rounds.wait(10)
        return good(behaviour, sentence)

    with Teacher(respond) as server:
        said, _ = run(tmp_path, server, "--retries", 0, "--timeout", 20)
        assert server.most == 8 and server.asked.total() == 24 and counts(said)["sentences"] == (12, 12, 0, 0)


@pytest.mark.skipif(hasattr(os, "getloadavg") and os.getloadavg()[0] > os.cpu_count(), reason="a busy machine, where times say nothing")
def test_eight_in_flight_are_five_times_as_fast_as_one(tmp_path):
    """The server takes 100 ms for an answer. The best of a few, as the machine may be busy with other things."""
    write(tmp_path, text_of(12)[0])
    seconds = {1: [], 8: []}
    with Teacher(perfect, delay=0.1) as server:
        for parallel in (1, 8, 8, 8, 8, 8):
            if seconds[8] and seconds[1][0] >= 5 * min(seconds[8]):
                break
            begin = time.monotonic()
            run(tmp_path, server, "--parallel", parallel)
            seconds[parallel].append(time.monotonic() - begin)
            assert server.most <= parallel
            (tmp_path / "a.replies.jsonl").unlink()
    assert seconds[1][0] >= 5 * min(seconds[8]) and server.most == 8, seconds


def test_a_broken_reply_is_asked_for_three_times_and_then_kept(tmp_path, monkeypatch):
    write(tmp_path, "Ann sold 3 lamps in Oslo. Ben sold 4 lamps in Rome. Ann sold 5 lamps in Oslo.")
    broken = "Entities of it: Ben."

    def respond(behaviour, sentence, seed, nth):
        return broken if (behaviour, sentence[:3]) == ("ner", "Ben") else good(behaviour, sentence)

    with Teacher(respond) as server:
        said, found = run(tmp_path, server, "--parallel", 1)
        assert [[(r["paragraph"], r["sentence"], r["text"][:10]) for r in p] for p in found] == [
            [(0, 0, "Ann sold 3")], [(1, 0, "Ann sold 5")]]                   # a gap ends the paragraph
        assert counts(said)["sentences"] == (3, 2, 1, 1)
        tries = [body for body in server.bodies if "Ben" in body["messages"][-1]["content"]
                 and "list its entities" in body["messages"][0]["content"]]
        assert [(body["seed"], body["temperature"]) for body in tries] == [(0, 0), (1, 0.7), (2, 0.7)]
        # a better parser reads the same replies, and the server hears nothing of it
        old, asked = annotate.parse, server.asked.total()
        monkeypatch.setattr(annotate, "parse", lambda behaviour, sentence, reply, cut: (
            truth(behaviour, sentence), Counter(), None) if reply == broken else old(behaviour, sentence, reply, cut))
        said, found = run(tmp_path, server)
        assert server.asked.total() == asked and [len(p) for p in found] == [3]
        # another model is another teacher
        run(tmp_path, server, "--model", "other", "--limit", 1)
        assert server.asked.total() == asked + 2


def test_a_sentence_that_comes_twice_is_asked_about_once(tmp_path):
    write(tmp_path, "Ann sold 3 lamps\nin Oslo. Ann sold 3 lamps in Oslo.\n\nAnn sold 3 lamps in Oslo.")
    with Teacher(perfect) as server:
        said, found = run(tmp_path, server)
        assert server.asked.total() == 2 and [len(p) for p in found] == [2, 1] and counts(said)["sentences"][:2] == (3, 3)


def test_control_characters_in_the_text_are_not_sent(tmp_path):
    write(tmp_path, "Ann sold 3 lamps in Oslo. Ben sold \x1b[31m lamps.")
    with Teacher(perfect) as server:
        said, found = run(tmp_path, server)
        assert server.asked.total() == 2 and counts(said)["sentences"] == (2, 1, 1, 1)


# --- the endpoint ----------------------------------------------------------------------------------------------------

class Stop:
    """An Event that never waits, and notes how long it should have."""
    def __init__(self):
        self.waits = []

    def wait(self, seconds):
        self.waits.append(seconds)


def test_waits_are_as_long_as_asked_and_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "BACKOFF", 1.0)
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    answers = [(429, {"Retry-After": "7"}, ""), (503, {"Retry-After": date}, ""), (500, {}, ""), (408, {"Retry-After": "soon"}, ""),
               (200, {}, "<html>"), (429, {"Retry-After": "9" * 5000}, ""), (502, {"Retry-After": "86400"}, "")]
    heard = []
    with Teacher(lambda *job: answers[job[-1] - 1] if job[-1] <= len(answers) else "done") as server:
        chosen, stop = options("x", "--teacher", server.url, "--model", "m", "--retries", 7), Stop()
        body = {"messages": prompts.messages("ner", "Ann left.")}
        reply, why = endpoint.ask(body, chosen, stop, heard.append)
    assert (reply, why) == ({"reply": "done", "finish": "stop", "tokens": [500, 50]}, None)
    assert heard == ["HTTP 429", "HTTP 503", "HTTP 500", "HTTP 408", "no chat completion", "HTTP 429", "HTTP 502"]
    for k, (wait, asked) in enumerate(zip(stop.waits, (7, 60, 0, 0, 0, 0, None))):
        assert wait == 300 if asked is None else asked - 2 + 2 ** k / 2 <= wait <= asked + 1.5 * 2 ** k
    assert stop.waits[0] >= 7.5
    with Teacher(lambda *job: (500, {}, "")) as server:
        chosen, stop = options("x", "--teacher", server.url, "--model", "m", "--retries", 2), Stop()
        assert endpoint.ask(body, chosen, stop, heard.append) == (None, "HTTP 500") and len(stop.waits) == 2


@pytest.mark.parametrize("status, said", [(401, "key"), (404, "v1"), (400, "too long"), (307, "HTTP 307")])
def test_another_error_stops_at_once_and_keeps_what_came(tmp_path, status, said):
    text, lines = text_of(30)
    write(tmp_path, text)
    message = json.dumps({"error": {"message": f"too long \x1b[31mred\nline {KEY}" + "x" * 500}})

    def respond(behaviour, sentence, seed, nth):
        elsewhere = {"Location": "http://127.0.0.1:9/other"} if status == 307 else {}
        return (status, elsewhere, message) if sentence == lines[20] else good(behaviour, sentence)

    with Teacher(respond) as server:
        with pytest.raises(endpoint.Refused) as caught:
            run(tmp_path, server, "--parallel", 1)
        assert server.asked.total() == 41                                     # 40 replies, then the one that was refused
    error = str(caught.value)
    assert f"HTTP {status}" in error and said in error and r"\x1b[31mred\nline [key]" in error and len(error) < 400
    assert annotations.read_annotations(tmp_path / "a.jsonl") == expected(lines[:20])


def test_the_key_is_sent_and_nowhere_else(tmp_path, capsys):
    """The server has it, and sends it back in every place it can."""
    write(tmp_path, text_of(3)[0])

    def respond(behaviour, sentence, seed, nth):
        if seed == 0 and behaviour == "ner":
            return f"Your key is {KEY}. " + good(behaviour, sentence)
        if "sold 2" in sentence and behaviour == "qra":
            return 302, {"Location": f"http://127.0.0.1:9/{KEY}", KEY: KEY}, f"<b>{KEY}</b>"
        return good(behaviour, sentence, truth(behaviour, sentence) + [{"kind": KEY, "question": KEY + "?", "answer": KEY}])

    with Teacher(respond) as server, pytest.raises(SystemExit) as caught:
        brd.main(["annotate", *map(str, command(tmp_path, server, "--parallel", 1))])
    assert caught.value.code == 2
    out, error = capsys.readouterr()
    assert error.startswith("error: http://127.0.0.1:") and "HTTP 302: <b>[key]</b>" in error and error.count("\n") == 1
    assert {headers["Authorization"] for _, headers in server.headers} == {f"Bearer {KEY}"}
    assert {path for path, _ in server.headers} == {"/v1/chat/completions"}
    assert "Your key is [key]." in (tmp_path / "a.replies.jsonl").read_text(encoding="utf-8")
    files = "".join(file.read_text(encoding="utf-8") for file in tmp_path.iterdir())
    assert KEY not in out + error + files
    assert "2 annotated, 1 not" in out


@pytest.mark.parametrize("key", ["two words", "a\nb", "schlüssel-1234", 'quo"te'])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="OPENAI_API_KEY holds") as caught:
        list(annotate.annotate(options("x", "--teacher", "http://localhost:1", "--model", "m")))
    assert key not in str(caught.value)


def test_no_key_no_header_and_a_placeholder_spoils_no_reply(tmp_path, monkeypatch):
    write(tmp_path, "Ann sold 3 lamps in Oslo.")
    for key in ("", "Oslo"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with Teacher(perfect) as server:
            _, found = run(tmp_path, server, "--model", f"m{key}")
            assert found[0][0]["entities"][1]["text"] == "Oslo"
            assert [headers.get("Authorization") for _, headers in server.headers] == [f"Bearer {key}" if key else None] * 2


def test_an_endpoint_that_is_not_there_is_given_up(tmp_path):
    write(tmp_path, text_of(30)[0])
    with Teacher(perfect) as server:
        url = server.url
    arguments = tmp_path / "my.txt", "--teacher", url, "--model", "m", "--out", tmp_path / "a.jsonl", "--retries", 1
    with pytest.raises(ValueError, match="8 requests in a row without a reply: ConnectionRefusedError"):
        list(annotate.annotate(options(*arguments)))
    said = list(annotate.annotate(options(*arguments, "--limit", 2)))         # fewer than that: told, not raised
    assert counts(said)["sentences"] == (2, 0, 2, 2) and "          2  ner: no reply (ConnectionRefusedError)" in said
    assert "4 readings are without a reply; the same command asks for them again" in said


def test_a_run_without_any_reply_leaves_the_file_as_it_is(tmp_path):
    write(tmp_path, text_of(6)[0])
    with Teacher(perfect) as server:
        _, found = run(tmp_path, server)
    with Teacher(lambda *job: (404, {}, "no such model")) as server, pytest.raises(endpoint.Refused):
        run(tmp_path, server, "--model", "mm")
    assert annotations.read_annotations(tmp_path / "a.jsonl") == found


def test_a_server_that_drips_is_not_waited_for():
    class Drip:
        def read1(self, n):
            time.sleep(0.02)
            return b" "

    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        endpoint.received(Drip(), begin + 0.1)
    assert time.monotonic() - begin < 2


# --- the command -----------------------------------------------------------------------------------------------------

def test_a_dry_run_prints_the_prompts_and_sends_nothing(tmp_path, capsys):
    write(tmp_path, text_of(3)[0])
    with Teacher(perfect) as server:
        brd.main(["annotate", *map(str, command(tmp_path, server, "--dry_run", "--body", '{"seed": null, "top_k": 5}'))])
        assert not server.asked
    out = capsys.readouterr().out
    assert out.startswith("3 sentences, 6 requests to http://127.0.0.1:") and out.count("Sentence: Anna sold 0 lamps in Oslo.") == 2
    assert '{"model": "m", "temperature": 0, "max_tokens": 2048, "top_k": 5}' in out and KEY not in out
    assert [file.name for file in tmp_path.iterdir()] == ["my.txt"]


def test_help_says_where_the_key_comes_from(capsys):
    with pytest.raises(SystemExit):
        brd.main(["annotate", "--help"])
    assert "OPENAI_API_KEY" in capsys.readouterr().out


@pytest.mark.parametrize("more, said", [
    (["--parallel", 0], "--parallel=0"), (["--timeout", "nan"], "--timeout=nan"), (["--timeout", "inf"], "--timeout=inf"),
    (["--limit", 0], "--limit=0"), (["--out", "my.txt"], "--out=my.txt"), (["--teacher", "localhost:80"], "--teacher"),
    (["--teacher", "http://u:pw@host/v1"], "--teacher"), (["--teacher", "file:///etc/passwd"], "--teacher"),
    (["--teacher", "http://host:port/v1"], "--teacher"), (["--teacher", "http://host/v1?key=1"], "--teacher")])
def test_a_bad_option_is_one_line(tmp_path, capsys, more, said):
    write(tmp_path, "Ann left.")
    with pytest.raises(SystemExit) as caught:
        brd.main(["annotate", *map(str, [tmp_path / "my.txt", "--teacher", "http://localhost:1/v1", "--model", "m", *more])])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith(f"error: {said}") and error.count("\n") == 1 and "pw" not in error


def test_a_torn_line_is_cut_off_and_a_bad_one_named(tmp_path):
    path, line = tmp_path / "a.replies.jsonl", b'{"key": "1", "model": "m", "job": [], "reply": "x", "finish": null, "tokens": [0, 0]}\n'
    assert endpoint.read_replies(path) == {}
    path.write_bytes(line + '{"key": "2", "reply": "é'.encode()[:-1])
    assert list(endpoint.read_replies(path)) == ["1"] and path.read_bytes() == line
    for bad in (b'{"key": "2"}', b'{"key": 2, "reply": "x", "finish": null}', b'{"key": "2", "reply": null, "finish": null}', b"[]"):
        path.write_bytes(bad + b"\n" + line)
        with pytest.raises(ValueError, match=r"a\.replies\.jsonl:1: not a kept reply"):
            endpoint.read_replies(path)
    path.unlink()
    with open(path, "ab", buffering=0) as file:                             # the line above is of an older version
        kept = endpoint.keep(file, json.loads(line), "")
    assert endpoint.read_replies(path) == {"1": kept} and kept == json.loads(line)
    path.write_bytes(path.read_bytes().replace(b'"x"', b'"y"'))
    with pytest.raises(ValueError, match="or not as it was written; without this line it is asked for again"):
        endpoint.read_replies(path)


def test_many_reasons_are_summed_up():
    counts = Counter({"often": 5, "seldom": 2, **{f"once {i}": 1 for i in range(3)}})
    assert list(annotate.listed(counts, most=2)) == ["          5  often", "          2  seldom", "          3  of 3 more reasons"]
    assert len(list(annotate.listed(counts))) == 5


def test_fields_that_are_no_object_are_refused(capsys):
    for body in ("[]", "3", "{"):
        with pytest.raises(SystemExit) as caught:
            brd.main(["annotate", "my.txt", "--teacher", "http://localhost:1/v1", "--model", "m", "--body", body])
        assert caught.value.code == 2 and "--body" in capsys.readouterr().err.splitlines()[-1]


def test_a_full_disk_is_told(tmp_path):
    class Full:
        name = "a.replies.jsonl"

        def write(self, data):
            return len(data) // 2

    with pytest.raises(OSError, match="disk full"):
        endpoint.keep(Full(), {"key": "1"}, "")


def test_training_can_read_the_result(tmp_path):
    """The annotated paragraphs render, encode and pack as those of the built-in world do."""
    write(tmp_path, text_of(30)[0])
    with Teacher(perfect) as server:
        _, found = run(tmp_path, server)
    tokenizer = train_bpe([text_of(30)[0]], 300)
    for copy in ("ner", "qra"):
        rows = corpus.reading_rows(found, copy, tokenizer, seed=1, block_size=4096)
        assert len(rows.lengths) == len(found) == 10
