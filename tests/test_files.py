"""Files, and the folder of a run: damage is named, and a run that was stopped ends as if it had not been."""
import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from adapters.task_files import load_tasks
from data import files, own_text
from data.annotated import read_annotations
from data.batches import DataMix, Rows
from data.cache import TeacherCache
from data.files import folder_lock, is_finished, open_run, read_json, save_finished, write_json, write_text
from data.own_text import text_bytes, text_files
from data.tokenizer import Tokenizer
from model import GPT, GPTConfig
from tests.torture import OWN, SMALL, TINY, outcome, small_world, start

NAMES = dict.fromkeys(("README.txt", "run.json", "stages", "a", "plan.json"), "what such a file is")
ARMS = "--arms=gold,td"             # one reads annotations; one reads the teacher's cache, with a value head
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks of this process")


pytestmark = pytest.mark.usefixtures("one_thread")


def refused(words, function, *arguments):
    """The call ends in one line that holds these words."""
    with pytest.raises(ValueError, match=words) as error:
        function(*arguments)
    assert "\n" not in str(error.value)


# --- single files -------------------------------------------------------------------------------------------

def test_a_file_is_written_beside_and_renamed_and_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch):
    path, full = tmp_path / "new" / "a.txt", OSError(errno.ENOSPC, "No space left on device")
    write_text(path, "old é\r\n")
    assert path.read_bytes() == "old é\r\n".encode()

    def half(self, content):
        self.open("wb").write(content[:2])
        raise full

    def fail(*_):
        raise full
    for module, name, error in ((Path, "write_bytes", half), (os, "replace", fail), (os, "fsync", fail)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, error)
            with pytest.raises(OSError, match="No space"):
                write_text(path, "new")
        assert "old" in path.read_text("utf-8")
    write_text(path, "new")
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]       # no half file is left


def test_hashes_go_by_content(tmp_path):
    (tmp_path / "x").write_bytes(b"ab")
    parts = ["ab"], ["a", "b"], ["", "ab"], ["ab", ""], ["b", "a"], [tmp_path / "x"]
    assert files.hash_of(b"ab") == files.hash_of("ab") and len({files.hash_of(*some) for some in parts}) == 6
    assert files.sha256_of(tmp_path / "x") == hashlib.sha256(b"ab").hexdigest()


def test_json_comes_back_and_a_damaged_one_is_refused(tmp_path):
    path, value = tmp_path / "a.json", {"b": [0.1, None, "é"], "a": {"2": 1e300, "1": True}}
    write_json(path, value)
    assert read_json(path, "mend it") == value
    text = path.read_bytes()
    write_text(path, json.dumps(dict(reversed(json.loads(text).items()))))                  # in another order
    assert read_json(path, "mend it") == value
    spoilt = text[:-9], text.replace(b"0.1", b"0.2"), b"[" * 100_000, b"\xff", b"", b"[", b"[]", b"3", b"{}"
    for damaged in spoilt:
        path.write_bytes(damaged)
        refused("a.json: .*; mend it$", read_json, path, "mend it")
    write_json(path, value)
    assert read_json(path, "mend it", "a", "b") == value
    refused("a.json: .*; mend it$", read_json, path, "mend it", "a", "c")       # a file of another kind


# --- a training that goes on --------------------------------------------------------------------------------

def small(seed=0):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(50, 32, 1, 2, 16))
    return model, train.make_optimizers(model, train.Config())


IDS = np.random.default_rng(0).integers(0, 50, (200, 20)).tolist()
MIX = DataMix([Rows.pack([(ids, [0] * 20) for ids in IDS], 50)], [1.0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_goes_on_bit_for_bit(tmp_path, number):
    """The step in which the signal comes is finished; another model goes on from the file."""
    def stop_at_10(*arguments):
        calls.append(1)
        if len(calls) == 10:
            signal.raise_signal(number)
        return train.loss_terms(*arguments)
    config, calls = train.Config(device="cpu", step_tokens=128, warmup=2), []
    (one, _), (two, _), (three, _) = small(), small(), small(5)
    losses, curve, seen = train.fit("x", one, MIX, 3000, config, look=lambda: {"x": 1})
    with pytest.raises(KeyboardInterrupt, match=f"x: stopped after 10 of {len(losses)} steps"):
        train.fit("x", two, MIX, 3000, config, tmp_path, lambda: {"x": 1}, stop_at_10)
    assert train.fit("x", three, MIX, 3000, config, tmp_path, lambda: {"x": 1}) == (losses, curve, seen)
    assert len(losses) > 12 and all(torch.equal(a, b) for a, b in zip(one.parameters(), three.parameters()))


def test_a_training_that_is_none_is_refused(tmp_path):
    path, state, (model, optimizers) = tmp_path / "training.pt", {"plan": "p", "losses": [1.0]}, small()
    assert files.load_training(path, model, optimizers, state) is state
    files.save_training(path, model, optimizers, state)
    assert files.load_training(path, model, optimizers, {"plan": "p"}) == state
    words, saved = "training.pt: damaged, or of another training; remove it", path.read_bytes()
    refused(words, files.load_training, path, model, optimizers, {"plan": "of other batches"})
    for damaged in (saved[:-200], b"", b"PK" + saved[2:], saved[:3000] + b"x" + saved[3001:]):
        path.write_bytes(damaged)
        refused(words, files.load_training, path, model, optimizers, state)


# --- the folder of a run ------------------------------------------------------------------------------------

def stage_a(out):
    write_text(out / "a" / "model.pt", "weights")
    save_finished(out, "a", out / "a" / "model.pt")


def test_the_folder_of_a_run_belongs_to_its_options(tmp_path):
    out, run = tmp_path / "out", {"p": 0.9, "text hash": "12"}
    open_run(out, {"p": 0.8}, NAMES)
    write_text(out / "plan.json", "made for these options")
    open_run(out, run, NAMES)                                       # nothing is made yet: they may change
    assert read_json(out / "run.json", "").items() >= run.items() and not (out / "plan.json").exists()
    write_text(out / "a" / "training.pt", "a training has begun")
    refused("holds a run with p=0.9, this one has 0.8; use .*--redo", open_run, out, {"p": 0.8}, NAMES)
    assert not is_finished(out, "a")
    stage_a(out)
    open_run(out, run, NAMES)
    assert is_finished(out, "a") and "plan.json" in (out / "README.txt").read_text(encoding="utf-8")
    refused("text hash=12, this one has 13", open_run, out, run | {"text hash": "13"}, NAMES)
    write_text(out / "a" / "model.pt", "changed")
    refused("model.pt: changed since it was written; restore it, or remove .*json", open_run, out, run, NAMES)
    (out / "a" / "model.pt").unlink()
    open_run(out, run, NAMES)
    assert not is_finished(out, "a")                                # it is missing, and is made again
    stage_a(out)
    write_text(out / "mine.txt", "precious")
    for name in ("a/novel.txt", "a/backup/model.pt", "a/model-best.pt", "stages/notes.txt"):
        write_text(out / name, "precious")
    open_run(out, {"p": 0.8}, NAMES, redo=True)                     # throws away its own files alone
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert left == {"README.txt", "run.json", ".redo", "mine.txt", "a/novel.txt", "a/backup/model.pt",
                    "a/model-best.pt", "stages/notes.txt"}


def test_what_no_run_or_another_run_has_written_is_left_alone(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("a", "run.json"):
        write_text(one / name, "{}")
        refused(f"{name}.*use another --out_dir", open_run, one, {"p": 1}, NAMES)
        assert [path.name for path in one.iterdir()] == [name]
        shutil.rmtree(one)
    for out, p in ((one, 1), (two, 2)):
        open_run(out, {"p": p}, NAMES)
        stage_a(out)
    shutil.copy(two / "stages" / "a.json", one / "stages" / "a.json")
    refused("a.json: of another run; remove it, and the stage is done again", open_run, one, {"p": 1}, NAMES)
    write_text(one / "stages" / "a.json", "{")
    refused("a.json: damaged, edited or of another kind; remove it", open_run, one, {"p": 1}, NAMES)


def test_the_folder_of_another_program_is_left_alone_also_by_redo(tmp_path):
    """And a run whose notes are gone is not thrown away for one of other options."""
    open_run(tmp_path, {"p": 1}, NAMES)
    stage_a(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for redo in (False, True):
        refused("run.json: of another program", open_run, tmp_path, {"p": 1}, {**NAMES, "b": "more"}, redo)
    shutil.rmtree(tmp_path / "stages")
    refused("holds a run with p=1, this one has 2", open_run, tmp_path, {"p": 2}, NAMES)
    assert sorted(tmp_path.rglob("*")) == [path for path in before if "stages" not in path.parts]
    write_text(tmp_path / "run.json", "{}")
    refused("run.json: damaged.*use another --out_dir$", open_run, tmp_path, {"p": 1}, NAMES, True)


def test_redo_that_was_stopped_goes_on_and_one_that_was_finished_starts_over(tmp_path):
    def redo(p, at_end=None):
        """Whether stage a is there when a run with --redo begins; it makes a and ends, or is stopped."""
        with contextlib.suppress(KeyboardInterrupt), folder_lock(tmp_path):
            open_run(tmp_path, {"p": p}, NAMES, redo=True)
            found.append(is_finished(tmp_path, "a"))
            stage_a(tmp_path)
            if at_end:
                raise at_end
    found = []
    redo(1)
    redo(1, KeyboardInterrupt)              # the run before was finished
    redo(1, KeyboardInterrupt)
    redo(1)
    redo(1)
    redo(1, KeyboardInterrupt)
    redo(2)                                 # of other options
    assert found == [False, False, True, True, False, False, False]


def test_redo_says_what_it_cannot_remove(tmp_path, monkeypatch):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for link in ("a", "stages"):
        open_run(out, {"p": 1}, NAMES)
        stage_a(out)
        (out / link).rename(elsewhere)
        (out / link).symlink_to(elsewhere)
        before = sorted(elsewhere.iterdir())
        refused(f"{link}: a link, which no run has made; remove it yourself", open_run, out, {"p": 1}, NAMES, True)
        assert before == sorted(elsewhere.iterdir()) != []
        (out / link).unlink()
        shutil.rmtree(elsewhere)
    stage_a(out)

    def fail(path, **_):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(PermissionError, match="Operation not permitted: .*out"):
        open_run(out, {"p": 1}, NAMES, redo=True)


def test_a_file_system_without_locks_and_links_in_the_way(tmp_path, monkeypatch, capsys):
    """A lock that cannot be had is said, not waited for; nothing is written through a link."""
    fcntl, precious = pytest.importorskip("fcntl"), tmp_path / "precious.txt"
    write_text(precious, "precious")
    for name in (".lock", "a.txt.tmp"):
        (tmp_path / name).symlink_to(precious)
    with folder_lock(tmp_path):
        pass
    write_text(tmp_path / "a.txt", "new")
    assert precious.read_text("utf-8") == "precious" and (tmp_path / "a.txt").read_text("utf-8") == "new"

    def fail(*_):
        raise OSError(errno.EINVAL, "Invalid argument")
    monkeypatch.setattr(fcntl, "flock", fail)
    with folder_lock(tmp_path / "out"):
        pass
    assert ": no lock (Invalid argument); start one process at a time\n" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_a_pipe_and_a_device_are_no_files(tmp_path):
    """Nothing waits for a pipe that nobody writes into, or reads a device without end."""
    pipe, endless = tmp_path / "pipe", tmp_path / "endless"
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    for path in (pipe, endless, Path("/dev/zero")):
        for read in (read_json, lambda path, _: files.sha256_of(path), lambda path, _: text_bytes(path),
                     lambda path, _: text_files(path), lambda path, _: load_tasks(path)):
            refused("a pipe or a device; expected a file", read, path, "")
    for corpus in (pipe, tmp_path / "pipe.jsonl"):
        with contextlib.suppress(FileExistsError):
            os.mkfifo(corpus)
        refused("a pipe or a device", train.main, [*SMALL, f"--corpus={corpus}", f"--out_dir={tmp_path / 'out'}"])


@pytest.mark.parametrize("read", [GPT.load, Tokenizer.load, TeacherCache, load_tasks, read_annotations,
                                  lambda path: read_json(path / "header.json", "")])
def test_a_stop_passes_every_reader(tmp_path, monkeypatch, read):
    """Ctrl-C while a file is read is not taken for a damaged file."""
    def stop(*_, **__):
        raise KeyboardInterrupt
    for name in ("model.pt", "tokenizer.tiktoken", "task.json", "header.json"):
        write_text(tmp_path / name, "{}")
    for module, name in ((json, "loads"), (Path, "read_bytes"), (files, "regular"), (own_text, "text_bytes")):
        monkeypatch.setattr(module, name, stop)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path)


@forks
def test_a_folder_is_for_one_process_and_free_when_it_ends(tmp_path):
    def hold():
        with folder_lock(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    with folder_lock(tmp_path):
        refused("another process is at work here", lambda: folder_lock(tmp_path).__enter__())
        refused("is at work here", train.main, [f"--out_dir={tmp_path}", "--redo", "--threads=1"])
    process = train.machine.multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    process.join()
    with folder_lock(tmp_path):
        assert process.exitcode == -9


# --- whole runs ---------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small world (tests/torture.py), and whole: a run that nobody has disturbed; saved at every step."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        small_world(folder, patch.setattr)
        patch.setattr(train, "SAVE_SECONDS", 0.0)
        train.main([*TINY, ARMS, f"--out_dir={folder / 'whole'}"])
        yield folder


@forks
def test_a_run_that_is_stopped_in_every_stage_ends_as_if_it_had_not_been(place, tmp_path, capfd):
    """Killed, or stopped by a signal, which is told in one line, when these files are there."""
    for where, number in (("start/training.pt", 9), ("stages/start.json", 9), ("plain/training.pt", 2),
                          ("stages/plain.json", 9), ("annotations.jsonl", 9), ("brd/training.pt", 1),
                          ("stages/brd.json", 2), ("brd+gold/training.pt", 9), ("stages/brd+gold.json", 15),
                          ("brd+td/training.pt", 2), ("stages/brd+td.json", 9)):
        process = start([*TINY, ARMS, f"--out_dir={tmp_path}"])
        while not (tmp_path / where).exists() and process.is_alive():
            time.sleep(0.001)
        os.kill(process.pid, number)
        process.join()
        told = capfd.readouterr().err
        if number == 9:
            assert (process.exitcode, told) == (-9, ""), where
        else:
            assert process.exitcode == 130 and told.endswith("; the same command goes on from there\n"), told
            assert told.count("\n") == 1, told
    assert not (tmp_path / "results.json").exists()
    train.main([*TINY, ARMS, f"--out_dir={tmp_path}"])
    assert outcome(tmp_path) == outcome(place / "whole")


def test_a_disk_that_is_full_at_every_file_of_a_run(place, tmp_path, monkeypatch):
    """The n-th rename fails, for n = 1, 2, ...: each time one error, and the next run goes on."""
    options, real, left = [*OWN, f"--corpus={place / 'my.txt'}", "--student_tokens=500"], os.replace, [0]

    def replace(source, target):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)
    train.main([*options, f"--out_dir={tmp_path / 'whole'}"])
    monkeypatch.setattr(os, "replace", replace)
    for n in range(1, 40):
        left[0] = n
        try:
            train.main([*options, f"--out_dir={tmp_path / 'out'}"])
            break
        except OSError as error:
            assert error.errno == errno.ENOSPC and not (tmp_path / "out" / "results.json").exists()
    assert n > 5 and outcome(tmp_path / "out") == outcome(tmp_path / "whole")


def test_a_checkpoint_that_is_damaged_is_named(place, tmp_path):
    shutil.copytree(place / "whole", tmp_path / "out")
    path = tmp_path / "out" / "plain" / "model.pt"
    path.write_bytes(path.read_bytes()[:-5])
    refused("model.pt: changed since it was written", train.main, [*TINY, ARMS, f"--out_dir={tmp_path / 'out'}"])
    refused("no model that GPT.save wrote", GPT.load, path.parent)
