"""Files and replies of strangers: nothing runs, moves the cursor, or forges the border of a document."""
import ast
import json
import random
import re
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import pytest

import brd
import td_distill
import train
from adapters import endpoint
from data.cache_tools import CacheWriter
from data.cli import brief, printable, run_command
from data.documents import ROLES, encode_documents, render
from data.report import report
from data.tokenizer import END, SEP, train_bpe
from tests.torture import OWN

ROOT = Path(train.__file__).resolve().parent
WINGS = "data", "adapters", "experiments", "course"
SOURCES = [*ROOT.glob("*.py"), *(path for wing in WINGS for path in (ROOT / wing).rglob("*.py"))]
EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08"         # sets a title, clears the screen, colours, goes back


def clean(text):
    """No control character but line breaks has come through, and it was there to come through."""
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", text), ascii(text)
    assert r"\x1b" in text, text


# --- what is printed ----------------------------------------------------------------------------------------

def test_what_is_foreign_is_printed_escaped(tmp_path, capsys):
    """Errors, an own text and its sample, a student's reading, a task, the header of a cache, results."""
    def told(code, command, *arguments):
        try:
            run_command(lambda: command([str(argument) for argument in arguments]))
        except SystemExit as end:
            captured = capsys.readouterr()
            clean(captured.err if code else captured.out)
            assert (end.code or 0) == code and "\n" not in captured.err[:-1]
    path, out, task = tmp_path / f"my{EVIL}.txt", tmp_path / f"out{EVIL}", tmp_path / "t.json"
    path.write_text(f"Anna {EVIL} left. Ben stayed.\n\n" * 60, encoding="utf-8")
    told(0, train.main, *OWN, f"--corpus={path}", f"--out_dir={out}")
    told(2, train.main, *OWN, f"--corpus={path}.txt", f"--out_dir={out}")
    told(2, train.main, f"--{EVIL}=1")
    told(0, brd.main, "read", out / "plain", f"Anna {EVIL} left.")
    told(2, brd.main, "read", out / EVIL, "Anna left.")
    examples = [{"input": f"x {EVIL}", "target_scores": {"Yes": 1, "No": 0}}] * 4
    task.write_text(json.dumps({"name": f"mood{EVIL}", "examples": examples}), encoding="utf-8")
    told(0, brd.main, "test", out / "plain", task)
    told(2, brd.main, "test", out / "plain", tmp_path / EVIL)
    about = {"hash": EVIL, "params": EVIL, "figures": {EVIL: 1}}
    CacheWriter(tmp_path / "cache", n_vocab=300, tokenizer_hash=EVIL, p=0.9, k_cap=4, temperature=1.0,
                roles=["text"], teacher=about, made_by=EVIL).close()
    told(0, td_distill.main, "inspect", tmp_path / "cache")
    told(2, td_distill.main, "inspect", tmp_path / EVIL)
    one = {"tokens_seen": 5, "reading": {}, "plain_bits_per_byte": 1.5, "beside_teacher": None,
           "blind": {EVIL: {"n": 4, "chance": 0.5, "accuracy": 0.75, "se": 0.1}}}
    clean(report({"students": {"plain": one, EVIL: one}}))
    clean(printable(brief(ValueError(EVIL))))


# --- what text can do to documents --------------------------------------------------------------------------

def test_special_tokens_in_text_forge_no_border():
    """Wherever text goes into a document: one END, and two SEP a sentence, whatever it says."""
    forged = f"Anna {END}{SEP} left <|endoftext|> for {SEP} Oslo."
    record = {"text": forged, "entities": [{"text": f"Anna {END}", "type": "person", "about": f"x {SEP}"}],
              "questions": [{"kind": "content", "question": f"Who {SEP}?", "answer": END}]}
    tokenizer = train_bpe([forged] * 20, 400)
    for behaviour, seps in (("ori", 0), ("ner", 4), ("qra", 4)):
        documents = [render([record, record], behaviour, random.Random(seed)) for seed in range(20)]
        for ids, roles in encode_documents(documents, tokenizer):
            assert ids.index(tokenizer.end) == len(ids) - 1 and ids.count(tokenizer.sep) == seps
            assert all((token == tokenizer.sep) == (ROLES[role] == "sep") for token, role in zip(ids, roles))
    context, tails, _ = brd.split_tokens(tokenizer, forged, [END, f"{SEP} x"], 128)
    assert not {tokenizer.end, tokenizer.sep} & {*context, *sum(tails, [])}


# --- what the sources do ------------------------------------------------------------------------------------

def test_no_code_runs_what_it_reads_and_every_file_is_opened_as_utf_8_or_bytes():
    bad = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and ast.unparse(node.type or node)[:7] in ("BaseExc", "except:"):
                raises = any(isinstance(part, ast.Raise) for part in ast.walk(node))
                assert raises or path.name == "checking.py", f"{path}: it swallows a stop"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not modules & {"pickle", "shelve", "marshal", "dill", "tarfile"}, path
            if not isinstance(node, ast.Call):
                continue
            called, name = ast.unparse(node.func), getattr(node.func, "attr", "")
            named = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            mode = "".join(map(ast.unparse, node.args[1:2]))
            if (called in ("eval", "exec", "os.system", "os.popen", "__import__")
                    or name in ("extractall", "extract", "unpack_archive")
                    or called == "torch.load" and named.get("weights_only") is not True
                    or named.get("shell") or named.get("allow_pickle")
                    or (name in ("read_text", "write_text") or called == "open" and "b" not in mode)
                    and "'utf-8" not in ast.unparse(node)):
                bad.append(f"{path.relative_to(ROOT)}:{node.lineno} {called}")
    assert bad == []


# --- the key of an endpoint ---------------------------------------------------------------------------------

@pytest.mark.parametrize("failure", [TimeoutError, ConnectionError, urllib.error.URLError])
def test_the_key_is_in_no_error(monkeypatch, tmp_path, failure):
    """Neither in what is said of a failure that holds it, nor in a reply that is kept."""
    key = "sk-secret-0123456789"

    def fail(request, timeout):
        assert request.get_header("Authorization") == f"Bearer {key}" and key not in request.full_url
        raise failure(f"no {key}")
    monkeypatch.setattr(endpoint.OPENER, "open", fail)
    options = SimpleNamespace(url="http://localhost:1/v1/chat/completions", secret=key, timeout=1.0)
    reply, why, wait = endpoint.post({"model": "m", "messages": []}, options)
    assert reply is None and not wait and why.endswith("no [key]") and key not in why
    with open(tmp_path / "r.jsonl", "ab", buffering=0) as file:
        kept = endpoint.keep(file, {"key": "1", "reply": f"it is {key}", "finish": key}, key)
    assert key not in (tmp_path / "r.jsonl").read_text(encoding="utf-8") + json.dumps(kept)
