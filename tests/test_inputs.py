"""Bad input, as users meet it: one line that begins with `error:`, exit code 2, no traceback, nothing half-written."""
import errno
import io
import json
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import brd
import train
from data import world
from data.cache import CacheWriter

ROOT = Path(train.__file__).resolve().parent
TINY = ("--n_layer=1 --n_embd=32 --n_head=4 --threads=1 --device=cpu --block_size=64 --n_vocab=300 "
        "--student_tokens=2000").split()


def words(n_bytes, seed=1):
    """Ordinary text of n_bytes bytes, without a line break."""
    rng, text = random.Random(seed), ""
    while len(text) < n_bytes:
        text += " ".join(world.draw_paragraph(rng).sentences) + " "
    return text[:n_bytes]


def end_of(command, monkeypatch, capsys):
    """(exit code, stdout, stderr) of `python COMMAND`, run inside this process to save the import of torch."""
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    try:
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    return code, *capsys.readouterr()


def check_refusal(code, stderr, said):
    assert code == 2, stderr
    assert stderr.startswith("error: ") and stderr.endswith("\n") and stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    for word in said:
        assert word in stderr


BAD_TEXTS = {
    "empty": (b"", ["empty"]),
    "blank lines": (b" \n\n \r\n", ["empty"]),
    "300 bytes": (words(300).encode(), ["tokens of training text", "block_size is 384", "try --block_size="]),
    "300 bytes in paragraphs": ((words(23) + "\n\n").encode() * 12, ["tokens of training text", "try --block_size="]),
    "one word": (b"word", ["one sentence", "longer text"]),
    "two sentences": (b"He left. She stayed.", ["try a longer text"]),
    "binary": (bytes(range(256)) * 40, ["NUL byte"]),
    "binary without NUL": (bytes(range(128, 256)) * 40, ["not UTF-8"]),
    "Latin-1": ("Zoë saw the café.\n\n".encode("latin-1") * 100, ["is not UTF-8", "iconv -f LATIN1"]),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_a_bad_text_is_refused_before_anything_is_written(name, tmp_path, monkeypatch, capsys):
    content, said = BAD_TEXTS[name]
    path = tmp_path / "my.txt"
    path.write_bytes(content)
    code, _, stderr = end_of(["train.py", f"--corpus={path}", f"--out_dir={tmp_path / 'out'}", "--threads=1"], monkeypatch, capsys)
    check_refusal(code, stderr, ["my.txt", *said])
    assert os.listdir(tmp_path) == ["my.txt"]


def test_the_remedy_for_a_short_text_is_one(tmp_path, monkeypatch, capsys):
    path = tmp_path / "my.txt"
    path.write_text(words(300), encoding="utf-8")
    command = ["train.py", *TINY, f"--corpus={path}", f"--out_dir={tmp_path / 'out'}"]
    _, _, stderr = end_of([*command, "--block_size=384"], monkeypatch, capsys)
    remedy = next(word for word in stderr.split() if word.startswith("--block_size=")).rstrip(",")
    code, stdout, stderr = end_of([*command, remedy], monkeypatch, capsys)
    assert code == 0 and "bits per byte" in stdout, stderr


@pytest.mark.parametrize("name", ["sentences", "no stops", "no spaces"])
def test_a_line_of_a_megabyte_is_a_text_without_paragraphs(name, tmp_path, monkeypatch, capsys):
    """It is split between its sentences, and read like any other; 300 kB where nothing depends on the size."""
    text = {"sentences": words(1_000_000), "no stops": words(300_000).replace(".", ""), "no spaces": "ab" * 150_000}[name]
    (tmp_path / "line.txt").write_text(text, encoding="utf-8")
    command = ["train.py", *TINY, f"--corpus={tmp_path / 'line.txt'}", f"--out_dir={tmp_path / 'out'}"]
    code, stdout, stderr = end_of(command, monkeypatch, capsys)
    assert code == 0 and "bits per byte" in stdout, stderr
    parts = train.own_text(train.parse_options(command[1:]))[1]
    assert parts["training"][1] + parts["validation"][1] == text.strip()          # nothing is lost at the cut
    assert abs(len(parts["validation"][1]) / len(text) - 0.1) < 0.02


@pytest.mark.parametrize("options, said", [
    (["--learning_rat=0.1"], ["did you mean --learning_rate?"]), (["--p=1.5"], ["--p=1.5", "at most 1"]), (["--p", "x"], ["'x'"]),
    (["--n_embd=102"], ["try n_embd=104"]), (["--block_size=100"], ["try --block_size=104"]), (["stray\nword"], ["stray"]),
    (["--n_vocab=100"], ["n_vocab is 100", "258"]), (["--corpus=nowhere.txt"], ["nowhere.txt: no such file"]),
    (["--teacher=train", "--teacher_embd=102"], ["n_embd 102"])])
def test_bad_options_are_refused_before_anything_is_written(options, said, tmp_path, monkeypatch, capsys):
    code, _, stderr = end_of(["train.py", *options, f"--out_dir={tmp_path / 'out'}"], monkeypatch, capsys)
    check_refusal(code, stderr, said)
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there(tmp_path, monkeypatch, capsys):
    code, _, stderr = end_of(["train.py", "--device=cuda", f"--out_dir={tmp_path / 'out'}"], monkeypatch, capsys)
    check_refusal(code, stderr, ["--device=cuda", "try --device=auto"])
    assert not os.listdir(tmp_path)


def test_a_teacher_that_is_not_there_or_speaks_otherwise(tmp_path, monkeypatch):
    """In this process, with another data folder: no cache in it; and then options of another vocabulary."""
    monkeypatch.setattr(train, "DATA", tmp_path / "data")
    with pytest.raises(ValueError, match="no teacher cache here") as refused:
        train.main([f"--out_dir={tmp_path / 'out'}"])
    assert "\n" not in str(refused.value) and not os.listdir(tmp_path)
    writer = CacheWriter(tmp_path / "data" / "teacher", n_vocab=300, tokenizer_hash="other", p=0.9, k_cap=4,
                         temperature=1.0, teacher={}, made_by="", roles=brd.ROLES)
    writer.close()
    with pytest.raises(ValueError, match="must share one tokenizer"):
        train.main([f"--out_dir={tmp_path / 'out'}"])
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("command", [["read", "nowhere", "Anna left."], ["test", "nowhere", "x.json"],
                                     ["read", "folder", "Anna left."], ["test", "folder", "x.json"]])
def test_a_checkpoint_that_is_none(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "folder" / "model.pt").write_bytes(b"not weights")
    code, _, stderr = end_of(["brd.py", *command], monkeypatch, capsys)
    check_refusal(code, stderr, [command[1]])


def test_a_damaged_checkpoint_in_out_dir(tmp_path, monkeypatch, capsys):
    """A run meets weights of which nothing is noted, and which are no weights."""
    monkeypatch.setattr(train, "DATA", tmp_path)
    options = train.parse_options([*TINY, "--teacher=train", f"--out_dir={tmp_path / 'out'}"])
    out, _ = train.open_out(options)
    tokenizer = train.course_tokenizer("world", options.n_vocab)
    train.new_model(options.teacher_layer, 32, tokenizer, options).save(out / "teacher")
    (out / "teacher" / "model.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match="nothing tells what the teacher was made of") as refused:
        train.main([*TINY, "--teacher=train", f"--out_dir={out}"])
    assert "\n" not in str(refused.value)


def test_damaged_options_of_an_earlier_run(tmp_path):
    for content in ("", "[]", "{}", '{"options": 3}', "\udcff".encode("utf-8", "surrogateescape")):
        (tmp_path / "options.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match="options.json.*--redo") as refused:
            train.open_out(train.Config(out_dir=str(tmp_path)))
        assert "\n" not in str(refused.value)


# --- a disk that is full or read-only ----------------------------------------------------------------------------------

@pytest.fixture
def own(tmp_path):
    """Options for a run on a small text of one's own, which takes a fraction of a second."""
    (tmp_path / "my.txt").write_text(words(6000), encoding="utf-8")
    return [*TINY, f"--corpus={tmp_path / 'my.txt'}", f"--out_dir={tmp_path / 'out'}"]


def check_nothing_half_written(out):
    assert not list(out.rglob("*.tmp"))
    for path in out.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in out.rglob("model.pt"):
        torch.load(path, weights_only=True)


def test_a_full_disk_at_every_file_of_a_run(own, tmp_path, monkeypatch):
    """The n-th rename fails, for n = 1, 2, ...; each time one error, whole files only, and the next run goes on."""
    real, out, left = os.replace, tmp_path / "out", [0]

    def replace(source, target):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    failed = 0
    for n in range(1, 20):
        left[0] = n
        try:
            train.main([*own, "--redo"])
            break
        except OSError as error:
            assert error.errno == errno.ENOSPC
            failed += 1
            check_nothing_half_written(out)
            assert not (out / "results.json").exists()
    assert failed >= 5 and (out / "results.json").exists()
    check_nothing_half_written(out)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")])
def test_a_full_disk_while_weights_are_written(own, tmp_path, monkeypatch, error):
    """torch.save leaves half a file, and some versions of it tell so in words of their own."""
    def save(state, path):
        (path if hasattr(path, "write") else open(path, "wb")).write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError) as refused:
        train.main(own)
    assert "\n" not in str(refused.value)
    check_nothing_half_written(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("model.pt"))
    monkeypatch.undo()
    train.main(own)                                                # there is room again: the same command
    assert (tmp_path / "out" / "results.json").exists()


def test_a_full_disk_while_json_is_written(own, tmp_path, monkeypatch):
    def write_text(self, text, **_):
        with io.open(self, "w", encoding="utf-8") as file:
            file.write(text[:20])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(OSError, match="No space left"):
        train.main(own)
    monkeypatch.undo()
    check_nothing_half_written(tmp_path / "out")


def test_the_commands_themselves(tmp_path, own):
    """In processes of their own, side by side: an out_dir below a file, a disk with room for 20 kB, a Latin-1 text."""
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("Zoë\n".encode("latin-1"))
    start = "import sys, runpy; sys.argv = sys.argv[1:]; sys.path.insert(0, '.'); runpy.run_path(sys.argv[0], run_name='__main__')"
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    runs = {
        "below": ([sys.executable, "train.py", *own, f"--out_dir={tmp_path / 'file' / 'out'}"], ["--out_dir=", "cannot be made"]),
        "full": ([sys.executable, "-B", "-c", full + start, "train.py", *own, f"--out_dir={tmp_path / 'full'}"], []),
        "latin": ([sys.executable, "train.py", f"--corpus={tmp_path / 'latin.txt'}", f"--out_dir={tmp_path / 'latin'}"], ["UTF-8"]),
    }
    if os.name != "posix":
        del runs["full"]
    started = {name: subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for name, (command, _) in runs.items()}
    for name, process in started.items():
        _, stderr = process.communicate(timeout=120)
        check_refusal(process.returncode, stderr, runs[name][1])
    assert (tmp_path / "file").read_text(encoding="utf-8") == "a file" and not (tmp_path / "latin").exists()
    check_nothing_half_written(tmp_path / "full")
    assert not (tmp_path / "full" / "plain" / "config.json").exists()
