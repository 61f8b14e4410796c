"""Reading with a student: what is printed, typed and piped."""
import io
import json
import sys

import pytest
import torch

import brd
from course import reader
from experiments.teacher import top_p_sets
from data.tokenizer import Tokenizer, train_bpe
from model import GPT, GPTConfig

RECORD = {"text": "Anna took a train to Oslo.", "entities": [{"text": "Anna", "type": "person", "about": "x"},
                                                             {"text": "Oslo", "type": "place", "about": "y"}],
          "questions": [{"question": "Where did Anna go?", "answer": "Oslo"}], "reading": " Where did Anna go? Oslo\n"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader") / "student"
    tokenizer = train_bpe([RECORD["text"] + RECORD["reading"]] * 3, 300)
    torch.manual_seed(0)
    GPT(GPTConfig(tokenizer.n_vocab, 128, 1, 2, 16)).save(folder)
    tokenizer.save(folder)
    return str(folder)


def printed(capsys, *arguments):
    brd.main(["read", *arguments])
    return capsys.readouterr().out


def test_brackets_or_colours():
    plain = list(reader.lines_of_reading([RECORD], None, False, False))
    assert plain == ["[Anna|person] took a train to [Oslo|place].", "    Where did Anna go? Oslo"]
    (line, _) = reader.lines_of_reading([RECORD], None, True, False)
    person, place = (f"\x1b[1;38;5;{reader.COLOURS[t]}m" for t in ("person", "place"))
    assert line == f"{person}Anna\x1b[0m took a train to {place}Oslo\x1b[0m." and person != place
    assert len(set(reader.COLOURS.values())) == len(reader.COLOURS)


@pytest.mark.parametrize("colour", [False, True])
def test_nothing_but_our_own_colours_reaches_the_terminal(colour):
    evil = "\x1b[2J"
    record = {"text": f"Anna{evil} left.", "entities": [{"text": f"Anna{evil}", "type": "person", "about": ""}],
              "questions": [{"question": f"Who{evil}?", "answer": evil}]}
    for teacher in (None, [record]):
        assert evil not in "\n".join(reader.lines_of_reading([record], teacher, colour, False))
        assert evil not in "\n".join(reader.lines_of_reading([record], teacher, colour, True))


def test_the_teacher_stands_beside():
    lines = list(reader.lines_of_reading([RECORD], [RECORD], False, False))
    assert lines[1:] == ["    Where did Anna go? Oslo", "    teacher: Where did Anna go? Oslo"]


def test_the_sets_of_an_answer_are_those_of_the_student(folder):
    model, tokenizer = GPT.load(folder).eval(), Tokenizer.load(folder)
    lines = list(reader.top_lines(model, tokenizer, [RECORD]))
    ids = tokenizer.encode(RECORD["text"]) + [tokenizer.sep] + tokenizer.encode(RECORD["reading"] + "\n")
    answer = tokenizer.encode(" Oslo\n")
    assert lines[0] == "    Where did Anna go?" and len(lines) == 1 + len(answer)
    position = len(tokenizer.encode(RECORD["text"])) + 1 + len(tokenizer.encode(" Where did Anna go?"))
    logits = model.logits(model.hidden(torch.tensor([ids])))[0, position - 1]
    kept, log_probs, mask = top_p_sets(logits[None], 0.95, 8)
    for i, q in zip(kept[mask].tolist(), log_probs[mask].exp().tolist()):
        assert f"{tokenizer.decode([i])!r} {q:.2f}" in lines[1].replace("\\\\", "\\")


def test_a_text_lines_of_a_pipe_and_json(folder, capsys, monkeypatch):
    assert printed(capsys, folder, "Anna left. Ben went.").splitlines()[0].startswith("Anna left.")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Anna left.\n\nBen went to Oslo.\n"))
    records = [json.loads(line) for line in printed(capsys, folder, "--json").splitlines()]
    assert [record["text"] for record in records] == ["Anna left.", "Ben went to Oslo."]
    assert set(records[0]) == {"text", "entities", "questions"}


def test_a_prompt(folder, capsys, monkeypatch):
    typed = iter([":top", "Anna left.", "", ":top", ":quit", "never read"])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    out = printed(capsys, folder).splitlines()
    assert out[0].startswith("Type a sentence") and out[1] == "nothing has been read yet" and out[2].startswith("Anna left.")
    assert next(typed) == "never read"


def test_no_text_is_told(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        brd.main(["read", folder, " "])
    assert stopped.value.code == 2 and "no text to read" in capsys.readouterr().err
