"""A text of one's own: blocks, what is held out, windows in a file, and a tiny run."""
import gzip
import random
import re
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings, strategies as st

import train
from adapters.read import main as read_main
from data import files, own_text
from data.files import read_json, write_text
from data.own_text import blocks, paragraphs, read_text, survey
from tests.torture import OWN, TEXT

WORDS = "the old lamp stands by a window and Anna, who came from Oslo; waits: 1905 é – \t so!".split(" ")


def some_text(size, blank="\n\n", seed=0):
    """About so many characters of random words."""
    rng, parts = random.Random(seed), []
    while sum(map(len, parts)) < size:
        parts.append(" ".join(rng.choices(WORDS, k=rng.randrange(2, 60))).strip())
    return blank.join(parts)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(own_text, "blocks", lambda path: blocks(path, 1500))


# --- blocks -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("blank", ["\n\n", "\n \n\n\n", "\n", " "], ids=repr)
@pytest.mark.parametrize("size", [100, 1500, 10 ** 6])
def test_blocks_joined_are_the_text(tmp_path, blank, size):
    """Of all files in the order of their names, whatever their line ends, and without a byte order mark."""
    texts = {f"{i}.txt": some_text(3000, blank, i) for i in range(3)}
    texts |= {"4/z.MD": "Last.\n\nEnd\n.", "4/empty.txt": ""}
    write_text(tmp_path / "4" / "run.json", "of another program")
    for name, text in texts.items():
        write_text(tmp_path / name, text)
    for name in ("c.py", ".git/x.txt", "4/.x.md", "out/run.json", "out/.lock", "out/README.txt", "out/text/validation.txt"):
        write_text(tmp_path / name, "no text")                  # out: what a run has written
    (tmp_path / "4" / "z.MD").write_bytes("\ufeffLast.\r\n\r\nEnd\r.".encode())
    (tmp_path / "5").mkdir()
    with pytest.raises(ValueError, match="no .txt or .md file in this folder"):
        read_text(tmp_path / "5")
    found = list(blocks(tmp_path, size))
    assert "".join(found) == read_text(str(tmp_path)) == "\n\n".join(texts[name] for name in sorted(texts))
    assert max(map(len, found)) <= 2 * size + 400
    assert all(block[:1].isspace() for block in found[1:])      # so that no token crosses the border of a block


@settings(max_examples=100, deadline=None)
@given(st.text("ab. \n\t\u2028é", max_size=60))
def test_paragraphs_keep_every_word(text):
    cut = paragraphs(text)
    assert [word for p in cut for word in p.split()] == text.split() and paragraphs("\n\n".join(cut)) == cut
    assert all(p == p.strip() != "" and not re.search(r"\n\s*\n", p) for p in cut)


@pytest.mark.parametrize("content, words", [
    (b"", "empty"), (b"\xef\xbb\xbf \r\n", "empty"), (b"Two. " * 900 + b"\0", "NUL"),
    (None, "no such file or folder"),
    (b"One.\n\n" * 500 + b"caf\xe9", "byte 0xe9.*iconv -f LATIN1 -t UTF-8 .*bad"), (b"cut \xc3", "byte 0xc3"),
    ("text".encode("utf-16"), "not UTF-8 text but UTF-16; convert"), (b"%PDF-1.4 in ASCII", "but a PDF; conv"),
    (b"\x89PNG\r\n\x1a\n\0", "but an image"), (gzip.compress(b"text", mtime=0), "but an archive or an office"),
    (b"%-257s" % b"PK" + b"ustar\0", "an archive"), (b"{\\rtf1 in ASCII}", "but an RTF document"),
    (b"word", "tokens to train on"),
    (b"He left. She stayed.", "tokens to train on.*longer text, or a smaller --block_size")])
def test_a_bad_text_is_named_in_one_line(tmp_path, content, words):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as refused:
        train.main([*OWN, f"--corpus={path}", f"--out_dir={tmp_path / 'out'}"])
    assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)


# --- the text of a run --------------------------------------------------------------------------------------

def prepared(tmp_path, text):
    """The OwnText of a text in tmp_path/out -> (OwnText, config)."""
    write_text(tmp_path / "my.txt", text)
    path = str(tmp_path / "my.txt")
    config = SimpleNamespace(corpus=path, tokenizer="bpe", n_vocab=300, block_size=64, init_from="")
    files.open_run(tmp_path / "out", {"text": files.hash_of(text)}, {})
    return own_text.own_text(config, tmp_path / "out"), config


@pytest.mark.parametrize("blank", ["\n\n", ". "], ids=repr)
def test_the_windows_in_the_file_are_those_of_the_whole_text(tmp_path, small_blocks, blank):
    """Cut at line ends, or at blanks where there are few; a tenth is held out."""
    text = some_text(30_000, blank).replace("\t", "a")           # a run of blanks may be cut in two
    found, _ = prepared(tmp_path, text)
    assert text.endswith(found.held_out_text) and abs(len(found.held_out_text) / len(text) - 0.1) < 0.03
    tokens = found.tokenizer.encode(text[:len(text) - len(found.held_out_text)])
    whole = own_text.windows(tokens, 64, found.tokenizer.n_vocab)
    assert np.array_equal(found.training.lengths, whole.lengths)
    some = [rows.batch([3, 0, len(whole) - 1], np.ones(6, np.float32)) for rows in (found.training, whole)]
    assert all((a == b).all() for a, b in zip(*some))
    held_out = found.tokenizer.encode(found.held_out_text)
    held_out = own_text.windows(held_out, 64, found.tokenizer.n_vocab)
    assert np.array_equal(found.held_out.tokens, held_out.tokens)
    small = own_text.windows(list(range(9)), 4, 300)
    assert [small.document(d)[0].tolist() for d in range(3)] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8]]


def test_what_is_held_out_is_bounded_and_the_sample_too(tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(own_text, "HELD_OUT", 2000)
    monkeypatch.setattr(own_text, "SAMPLE", 10_000)
    text = some_text(60_000)
    found, config = prepared(tmp_path, text)
    _, sample = survey(config.corpus)
    assert 5000 < sum(map(len, sample)) < 15_000
    assert 1500 < len(found.held_out_text) < 2300 and text.endswith(found.held_out_text)
    assert not any(found.held_out_text[:200] in part for part in sample)


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    """The peak of Python's memory for 50 kB and for 2 MB, in blocks of 5 kB."""
    monkeypatch.setattr(own_text, "HELD_OUT", 5000)
    monkeypatch.setattr(own_text, "SAMPLE", 20_000)
    block, peaks = some_text(5000) + "\n\n", []
    for n in (10, 400):
        monkeypatch.setattr(own_text, "blocks", lambda path: (block for _ in range(n)))
        tracemalloc.start()
        config = SimpleNamespace(corpus="x", tokenizer="bpe", n_vocab=300, block_size=64, init_from="")
        own_text.encode_text(tmp_path, config)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (tmp_path / "tokens.bin").stat().st_size > 3000 * n
    assert peaks[1] - peaks[0] < 200_000, peaks


def test_it_is_made_once_and_damage_is_named(tmp_path, small_blocks, monkeypatch):
    one, _ = prepared(tmp_path, some_text(20_000))
    monkeypatch.setattr(own_text, "encode_text", None)
    two, _ = prepared(tmp_path, some_text(20_000))
    assert np.array_equal(one.training.tokens, two.training.tokens) and one.held_out_text == two.held_out_text
    (tmp_path / "out" / "text" / "tokens.bin").write_bytes(b"12")
    with pytest.raises(ValueError, match="tokens.bin: changed since it was written"):
        prepared(tmp_path, some_text(20_000))


def test_a_run_goes_on_from_a_student_with_its_tokenizer(tmp_path):
    write_text(tmp_path / "my.txt", TEXT)
    write_text(tmp_path / "new.txt", TEXT.replace("cat", "horse"))
    start, sized = tmp_path / "a" / "plain", ("--n_", "--block_size")       # sizes are those of the student
    options = [option for option in OWN if not option.startswith(sized)] + [f"--init_from={start}"]
    new = [*options, f"--corpus={tmp_path / 'new.txt'}", f"--out_dir={tmp_path / 'b'}"]
    train.main([*OWN, f"--corpus={tmp_path / 'my.txt'}", f"--out_dir={tmp_path / 'a'}"])
    for more in "--n_embd=32", "--n_vocab=280", "--layout=gpt2", "--tokenizer=gpt2":
        with pytest.raises(ValueError, match=f"{more} has no effect beside --init_from; leave it out"):
            train.main([*new, more])
    train.main(new)
    one, two = (read_json(tmp_path / name / "results.json", "") for name in "ab")
    first, second = (results["students"]["plain"] for results in (one, two))
    assert one["tokenizer"] == two["tokenizer"] and second["tokens_seen"] > 1.9 * first["tokens_seen"]
    assert second["losses"][0] < first["losses"][-1] and two["config"]["n_embd"] == one["config"]["n_embd"]


def test_a_published_tokenizer_is_refused_clearly_without_a_network(tmp_path, monkeypatch):
    def no_network(name):
        raise OSError("no network")
    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    write_text(tmp_path / "my.txt", TEXT)
    options = [*OWN, "--n_vocab=1024", f"--corpus={tmp_path / 'my.txt'}", f"--out_dir={tmp_path / 'out'}"]
    for name, words in (("gpt2", "'gpt2' could not be downloaded"), ("gtp2", "unknown tokenizer 'gtp2'")):
        with pytest.raises(ValueError, match=words):
            train.main([*options, f"--tokenizer={name}"])


def test_an_own_text_end_to_end(tmp_path, capsys):
    """In a folder with any characters; another text in the same folder is named; the student reads."""
    out, text = tmp_path / "mit Leerzeichen & 'Zeichen'" / "東京 🐈", tmp_path / "東京.txt"
    write_text(text, TEXT)
    options = [*OWN, f"--corpus={text}", f"--out_dir={out}"]
    train.main(options)
    student, shown = read_json(out / "results.json", "")["students"]["plain"], capsys.readouterr().out
    assert f"{student['bits_per_byte']:.3f} bits per byte of held-out text" in shown and "A sample" in shown
    assert 0.1 < student["bits_per_byte"] < 4 and len(student["sample"]) > 50 and "東京 🐈" in shown
    assert abs(student["tokens_seen"] / 4000 - 1) < 0.05 and not list(out.rglob("*.tmp"))
    train.main(options)
    assert "finished before" in capsys.readouterr().out
    read_main([str(out / "plain"), "Anna went to Oslo."])
    write_text(text, TEXT.replace("bird", "frog"))                  # as many batches as before
    with pytest.raises(ValueError, match="holds a run with text hash=.*--redo"):
        train.main(options)
