"""A run that is killed, stopped or crowded: what it leaves behind, and that it ends as if nothing had happened."""
import contextlib
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import torture
import train
from data import prepare, runs
from data.cache import CacheWriter
from data.batches import Batch, Rows
from data.files import read_json, sealed, stamp
from model import GPT, GPTConfig

ROOT = Path(train.__file__).resolve().parent
TINY = ("--n_layer=1 --n_embd=16 --n_head=2 --test_paragraphs=1 --device=cpu --threads=1 --start_tokens=20000 --student_tokens=40000 "
        "--step_tokens=512").split()


@pytest.fixture(autouse=True)
def one_thread():
    """Models as small as these are slower with two; conftest.py puts it back."""
    torch.set_num_threads(1)


def files(out):
    """{name: bytes} of what a run leaves, but for what differs from run to run."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
            and path.name not in (".lock", "seconds.json")}


def refused(out, match, *options):
    """The command is refused in one line, and nothing is changed."""
    before = files(out)
    with pytest.raises(ValueError, match=match) as error:
        train.main([*options, f"--out_dir={out}"])
    assert "\n" not in str(error.value) and files(out) == before


# --- killed, stopped -----------------------------------------------------------------------------------------------------

@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks")
def test_runs_that_are_killed_ten_times_end_bit_for_bit_the_same():
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "torture.py"), "--kills=10"], capture_output=True, text=True)
    assert done.returncode == 0 and "10 kills; 0 differences" in done.stdout, done.stdout + done.stderr


def test_a_signal_ends_a_run_at_the_next_step_and_all_its_processes(tmp_path):
    """Two students in processes of their own: SIGTERM to the run alone. The same command goes on."""
    arguments = [sys.executable, str(ROOT / "train.py"), f"--out_dir={tmp_path}", *TINY, "--threads=2", "--start_tokens=2000"]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "distilled" / "model.made_of.json").exists() and process.poll() is None:
        time.sleep(0.1)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from there" in told and "Traceback" not in told, told
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "results.json").exists()


PROGRAM = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from data import runs

def work(n):
    runs.stops.training = True
    if sys.argv[2] == "error" and n == 1:
        while not os.path.exists("begun0"):
            time.sleep(0.01)
        raise OSError("an error, as that of a full disk")
    open(f"begun{n}", "w").write(str(os.getpid()))
    while not runs.stops.wanted:
        time.sleep(0.01)
    open(f"saved{n}", "w").close()
    runs.stops.end(f"{n}: saved")

if __name__ == "__main__":
    runs.stops.listen()
    try:
        with runs.processes(3) as pool:
            futures = [pool.submit(runs.job, work, n) for n in range(1, -1, -1)]
            pool.submit(int)
            open("asked", "w").close()
            for future in futures:
                future.result()
    except (runs.Stopped, OSError) as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("whom, number, said, saved", [
    ("run", signal.SIGTERM, "Stopped", 2), ("all", signal.SIGINT, "Stopped", 2), ("young", signal.SIGINT, "Stopped", 0),
    ("run", getattr(signal, "SIGKILL", 9), "", 0),
    ("worker", getattr(signal, "SIGKILL", 9), "OSError a process that worked for this one was killed; is there enough memory?", 1),
    ("error", 0, "OSError an error, as that of a full disk", 1)])
def test_processes_end_with_the_one_that_they_work_for(tmp_path, whom, number, said, saved):
    """Two that work and one that waits; the pipe closes only when the last of them is gone."""
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    process = subprocess.Popen([sys.executable, "program.py", str(ROOT), whom], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    while whom == "young" and not (tmp_path / "asked").exists():
        time.sleep(0.3)
    while whom not in ("error", "young") and (len(list(tmp_path.glob("begun*"))) < 2 or not (tmp_path / "begun1").read_text()):
        time.sleep(0.05)
    if whom == "error":
        pass
    elif whom in ("all", "young"):
        os.killpg(process.pid, number)              # as Ctrl-C in a terminal does; the young ones have not begun to listen
    else:
        os.kill(process.pid if whom == "run" else int((tmp_path / "begun1").read_text()), number)
    try:
        out, error = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:               # nothing is left running
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert out.startswith(said) and out.count("\n") == bool(said) and "Traceback" not in error, out + error
    assert len(list(tmp_path.glob("saved*"))) == saved


def test_two_runs_in_one_folder(tmp_path):
    with runs.held(tmp_path):
        done = subprocess.run([sys.executable, "-c", f"from pathlib import Path; from data.files import held\nwith held(Path({str(tmp_path)!r})): pass"],
                              cwd=ROOT, capture_output=True, text=True)
        assert f"process {os.getpid()} is at work in this folder" in done.stderr
    with runs.held(tmp_path):       # it is free again
        pass


def test_a_lock_dies_with_its_process(tmp_path):
    code = f"from pathlib import Path; from data.files import held; import os\nwith held(Path({str(tmp_path)!r})): os._exit(9)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    with runs.held(tmp_path):
        assert (tmp_path / ".lock").read_text(encoding="utf-8") == str(os.getpid())


def small(seed=0):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(50, 32, 1, 2, 16))
    return model, train.optimizers(model, train.Config())


def test_a_training_goes_on_where_it_was(tmp_path):
    """Half of the steps, saved; another model goes on from the file: weights and losses of the one that ran through."""
    rows = Rows.pack([(np.random.default_rng(i).integers(0, 50, 20).tolist(), [0] * 20) for i in range(200)], 50)
    config = train.Config(device="cpu", step_tokens=128, warmup=2)
    (one, _), (two, _), (three, _) = small(), small(), small(5)
    losses, _ = train.fit("", one, [rows], [1.0], 3000, config, 0.5)
    saved, real = [], runs.save_training

    def stop_after_ten(*arguments):
        real(*arguments)
        saved.append(len(arguments[3]))
        if len(saved) == 10:
            raise KeyboardInterrupt
    runs.save_training, before = stop_after_ten, runs.SAVE_SECONDS
    runs.SAVE_SECONDS = 0.0
    try:
        with pytest.raises(KeyboardInterrupt):
            train.fit("", two, [rows], [1.0], 3000, config, 0.5, folder=tmp_path)
    finally:
        runs.save_training, runs.SAVE_SECONDS, runs.stops.training = real, before, False
    again, _ = train.fit("", three, [rows], [1.0], 3000, config, 0.5, folder=tmp_path)
    assert saved == list(range(10)) and len(again) == len(losses) > 12 and again == losses
    for a, b in zip(one.parameters(), three.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("spoil, words", [
    (lambda path: path.write_bytes(path.read_bytes()[:-200]), "remove the file"),
    (lambda path: path.write_bytes(b""), "remove the file"),
    (lambda path: path.write_bytes(path.read_bytes()[:3000] + b"x" + path.read_bytes()[3001:]), "its checksum is missing or another"),
    (lambda path: torch.save({"mark": "x"}, path) or stamp(path), "it has read other batches"),
    (lambda path: torch.save({"mark": "x"}, path), "checksum"),
    (lambda path: torch.save([1, 2], path) or stamp(path), "remove the file")])
def test_a_training_that_is_none_is_refused(tmp_path, spoil, words):
    model, optimizers = small()
    mark = runs.mark_of([Batch(0, np.array([1, 2]), 5)])
    runs.save_training(tmp_path / "training.pt", model, optimizers, [1.0], mark)
    assert runs.load_training(tmp_path / "training.pt", model, optimizers, mark) == [1.0]
    spoil(tmp_path / "training.pt")
    with pytest.raises(ValueError, match=words) as refused:
        runs.load_training(tmp_path / "training.pt", model, optimizers, mark)
    assert "\n" not in str(refused.value)


def test_other_batches_have_another_mark():
    marks = {runs.mark_of([Batch(s, np.array(d), 5)]) for s, d in ((0, [1, 2]), (1, [1, 2]), (0, [2, 1]), (0, [1]))}
    assert len(marks) == 4


# --- what a stage is made of ---------------------------------------------------------------------------------------------

OWN = [*TINY, "--n_vocab=280", "--block_size=64", "--start_tokens=2000", "--student_tokens=2000"]
WORLD = [*torture.SMALL, "--teacher=train"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The small world of torture.py, for this file."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        torture.small_world(folder, patch.setattr)
        yield folder


@pytest.fixture(scope="module")
def world_run(place):
    train.main([*WORLD, f"--out_dir={place / 'world'}"])
    return place / "world"


@pytest.fixture
def finished(world_run, tmp_path):
    """A finished run, to be spoilt."""
    return Path(shutil.copytree(world_run, tmp_path / "out"))


@pytest.fixture
def halfway(finished):
    """The same without its results, of which the tables are made."""
    (finished / "results.json").unlink()
    return finished


def change_json(path, **fields):
    """As somebody would who knows how to seal."""
    path.write_text(json.dumps(sealed(read_json(path, "") | fields)), encoding="utf-8")


def swap(one, other):
    one.rename(one.with_name("between"))
    other.rename(one)
    one.with_name("between").rename(other)


def test_a_text_that_was_edited(tmp_path):
    text, options = tmp_path / "my.txt", [*OWN, f"--corpus={tmp_path / 'my.txt'}"]
    text.write_text(torture.TEXT, encoding="utf-8")
    train.main([*options, f"--out_dir={tmp_path / 'out'}"])
    text.write_text(torture.TEXT.replace("bird", "frog"), encoding="utf-8")                        # as many batches as before
    refused(tmp_path / "out", "results.json: stale: the results was made with text [0-9a-f]{16}, which is .* now; --redo", *options)
    (tmp_path / "out" / "results.json").unlink()
    refused(tmp_path / "out", "stale: the student plain was made with text", *options)
    (tmp_path / "out" / "plain" / "model.pt").unlink()                                             # one that has only begun
    refused(tmp_path / "out", "stale: the student plain was made with text", *options)
    train.main([*options, f"--out_dir={tmp_path / 'new'}"])
    train.main([*options, f"--out_dir={tmp_path / 'out'}", "--redo"])
    model = (tmp_path / "out" / "plain" / "model.pt").read_bytes()
    assert model == (tmp_path / "new" / "plain" / "model.pt").read_bytes()
    text.write_bytes(text.read_bytes().replace(b"\n", b"\r\n"))                                    # the same text, from Windows
    train.main([*options, f"--out_dir={tmp_path / 'out'}"])


def test_an_annotated_corpus_that_was_edited(world_run, place, tmp_path):
    corpus, options = tmp_path / "a.jsonl", [*torture.SMALL, f"--corpus={tmp_path / 'a.jsonl'}", "--n_vocab=400"]
    lines = (world_run / "annotations.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    train.main([*options, f"--out_dir={tmp_path / 'out'}"])
    corpus.write_text("\n".join(lines[:-3]) + "\n", encoding="utf-8")
    train.annotated_text.cache_clear(), train.course_tokenizer.cache_clear()
    refused(tmp_path / "out", "stale: the results was made with (text|tokenizer)", *options)
    (tmp_path / "out" / "results.json").unlink()
    refused(tmp_path / "out", "stale: the student start was made with (text|tokenizer)", *options)


def test_a_file_that_was_edited_or_exchanged(finished):
    for file, other in (("annotations.jsonl", None), ("teacher/model.pt", "start/model.pt"), ("cache/header.json", None),
                        ("plain/model.pt", "brd/model.pt"), ("brd/config.json", "plain/config.json"), ("plain/test.json", "brd/test.json"),
                        ("distilled/tokenizer.json", None), ("results.json", None)):
        kept = (finished / file).read_bytes()
        (finished / file).write_bytes((finished / other).read_bytes() if other else kept.replace(b"1", b"2", 1))
        refused(finished, f"{file}: not the one that this run has made; put it back, or remove .*, and it is made again", *WORLD)
        (finished / file).write_bytes(kept)
    (finished / "plain" / "config.json").unlink()
    refused(finished, "plain/config.json: missing; put it back", *WORLD)


def test_two_folders_that_were_swapped(halfway):
    swap(halfway / "plain", halfway / "brd")
    refused(halfway, r"plain/model.pt: stale: the student plain was made with annotations \w+, which is None now", *WORLD)
    (halfway / "plain" / "model.pt").unlink()
    refused(halfway, r"plain/model.pt: stale: the student plain was made with annotations", *WORLD)


def test_a_teacher_of_another_run(halfway):
    """Its folder is whole and all of its options are the same, but the cache was read by another one."""
    note = halfway / "teacher" / "model.made_of.json"
    shutil.copy(halfway / "start" / "model.pt", halfway / "teacher" / "model.pt")
    shutil.copy(halfway / "start" / "config.json", halfway / "teacher" / "config.json")
    holds = json.loads(note.read_text(encoding="utf-8"))["holds"]
    change_json(note, holds={name: runs.digest(note.with_name(name)) for name in holds})
    refused(halfway, "header.json: stale: the cache was made with teacher", *WORLD)
    change_json(note, **{"--seed": 2})
    refused(halfway, "teacher/model.pt: stale: the teacher was made with --seed 2, which is 1 now; --redo", *WORLD)
    change_json(note, **{"--seed": 1, "format": 0})
    refused(halfway, "teacher/model.pt: stale: the teacher was made with format 0", *WORLD)


def test_the_cache_in_data_and_the_tasks_are_exchanged(world_run, place, tmp_path):
    shutil.copytree(world_run / "cache", place / "data" / "teacher")
    options, out = torture.SMALL, tmp_path / "out"
    train.main([*options, f"--out_dir={out}"])
    change_json(place / "data" / "teacher" / "header.json", made_by="another teacher")
    refused(out, "stale: the results was made with teacher's cache", *options)
    (out / "results.json").unlink()
    (out / "brd" / "test.json").unlink()
    refused(out, "stale: the student distilled was made with teacher's cache", *options)
    shutil.rmtree(out / "distilled")
    task = place / "data" / "tasks" / "moods.json"
    before = task.read_text(encoding="utf-8")
    task.write_text(before + "\n", encoding="utf-8")
    refused(out, "stale: the test of plain was made with tasks", *options)
    task.write_text(before, encoding="utf-8")


def test_what_nothing_is_noted_of_and_what_is_removed(halfway, world_run):
    for name in ("model.pt", "test.json"):
        (halfway / "plain" / name).unlink()
    train.main([*WORLD, f"--out_dir={halfway}"])                                                   # made again, the rest kept
    assert {name: data for name, data in files(halfway).items() if "results" not in name and "report" not in name} == \
           {name: data for name, data in files(world_run).items() if "results" not in name and "report" not in name}
    (halfway / "brd" / "model.made_of.json").unlink()
    (halfway / "results.json").unlink()
    refused(halfway, "brd/model.pt: stale: nothing tells what the student brd was made of; --redo", *WORLD)
    (halfway / "brd" / "model.made_of.json").write_text("[")
    refused(halfway, "model.made_of.json: not JSON", *WORLD)


def test_a_half_trained_student_of_another_folder(tmp_path):
    """Its batches are the same, what its folder was made of is not."""
    marks = set()
    for name in "ab":
        runs.made(tmp_path / name / "model.pt", {"stage": name})
        marks.add(runs.mark_of([Batch(0, np.array([1, 2]), 5)], tmp_path / name))
    assert len(marks) == 2


def test_hashes_go_by_content(tmp_path):
    (tmp_path / "x").write_bytes(b"ab")
    assert runs.digest(tmp_path / "x") == runs.digest(b"ab") == runs.digest("ab") != runs.digest("a", "b")
    assert len({runs.digest(*parts) for parts in (["ab"], ["a", "b"], ["", "ab"], ["ab", ""], ["b", "a"])}) == 5


# --- a cache that was cut off ----------------------------------------------------------------------------------------------

def half_a_cache(folder, parts, documents=40):
    """A writer that has got so far: parts of ten documents each, after a checkpoint a few more."""
    writer = CacheWriter(folder, n_vocab=300, tokenizer_hash="x", p=0.9, k_cap=8, temperature=1.0, teacher={}, made_by="", roles=["a"])
    for d in range(10 * writer.done, documents):
        n = d % 5 + 1
        writer.add([d] * n, [0] * n, [None] + [([d, 3], [-0.5, -2.0])] * (n - 1))
        if d % 10 == 9 and d // 10 < parts:
            writer.checkpoint(d // 10 + 1)
    return writer


@pytest.mark.parametrize("where", range(8))
def test_a_cache_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch, where):
    """Cut off after a few more documents, and at every rename of close()."""
    half_a_cache(tmp_path / "whole", 0).close()
    if where == 0:
        for file in half_a_cache(tmp_path / "cut", 2, 27).files.values():
            file.close()
    else:
        writer, real, left = half_a_cache(tmp_path / "cut", 3), os.replace, [where]

        def replace(*paths):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            real(*paths)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with contextlib.suppress(KeyboardInterrupt):
                writer.close()
        for file in writer.files.values():
            file.close()
    again = half_a_cache(tmp_path / "cut", 3)
    assert again.done == (3 if where else 2)
    again.close()
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


# --- limits ----------------------------------------------------------------------------------------------------------------

def plain_run(folder, *more):
    """A run on a text of one's own in `folder` -> what it leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my.txt").write_text(torture.TEXT, encoding="utf-8", newline="\n")
    train.main([*OWN, f"--corpus={folder / 'my.txt'}", f"--out_dir={folder / 'out'}", *more])
    return files(folder / "out")


def test_names_with_spaces_and_of_any_script(tmp_path, capsys):
    plain = plain_run(tmp_path / "plain")
    other = plain_run(tmp_path / "mit Leerzeichen & 'Zeichen'" / "東京 ünïcode 🐈")
    assert plain.keys() == other.keys() and plain["plain/model.pt"] == other["plain/model.pt"]
    assert "東京 ünïcode 🐈" in capsys.readouterr().out


def test_line_ends_of_other_systems_are_the_same_text(tmp_path):
    """As many tokens, the same ones, the same hash; a byte order mark is no part of the text."""
    found = []
    for name, end, mark in (("unix", "\n", ""), ("windows", "\r\n", "\ufeff"), ("old", "\r", "")):
        (tmp_path / name).write_bytes((mark + torture.TEXT.replace("\n", end)).encode("utf-8"))
        config = train.parse_options([*OWN, f"--corpus={tmp_path / name}"])
        tokenizer, parts = train.own_text(config)
        found.append((tokenizer.hash, train.text_of(config, parts), [rows.tokens.tobytes() for rows, _ in parts.values()]))
    assert found[0] == found[1] == found[2]


def test_a_corpus_of_ten_thousand_files(tmp_path):
    for i in range(10_000):
        (tmp_path / f"{i % 100:02}").mkdir(exist_ok=True)
        (tmp_path / f"{i % 100:02}" / f"{i:05}.txt").write_bytes(b"Page %d.\r\n" % i)
    begin = time.process_time()
    text = prepare.read_text(tmp_path)
    assert len(text) == sum(len(f"Page {i}.\n") for i in range(10_000)) + 2 * 9_999 and time.process_time() - begin < 20
    assert prepare.paragraphs(text) == [f"Page {i}." for k in range(100) for i in range(k, 10_000, 100)]


def test_a_clock_that_runs_backwards(tmp_path, monkeypatch):
    plain, now = plain_run(tmp_path / "plain"), [2e9]

    def earlier():
        now[0] -= 3600
        return now[0]
    monkeypatch.setattr(time, "time", earlier)
    assert plain_run(tmp_path / "back")["plain/model.pt"] == plain["plain/model.pt"]


def test_a_second_run_in_the_folder(tmp_path):
    plain_run(tmp_path)
    with runs.held(tmp_path / "out"):
        for more in ("--redo", "--seed=2"):
            with pytest.raises(ValueError, match=f"process {os.getpid()} is at work|holds a run with seed=1"):
                plain_run(tmp_path, more)
        (tmp_path / "out" / "results.json").unlink()
        with pytest.raises(ValueError, match=f"process {os.getpid()} is at work"):
            plain_run(tmp_path)
    plain_run(tmp_path)


def test_a_folder_that_was_taken_between_two_looks(tmp_path, monkeypatch):
    """Two new runs at the same moment: the second one does not throw away what the first has begun."""
    config = train.parse_options([f"--out_dir={tmp_path / 'out'}"])
    held = runs.held

    @contextlib.contextmanager
    def late(out):
        runs.write_json(out / "options.json", {"options": {}})
        with held(out):
            yield
    monkeypatch.setattr(runs, "held", late)
    with pytest.raises(ValueError, match="another run has just begun"):
        runs.open_out(config)
    assert json.loads((tmp_path / "out" / "options.json").read_text(encoding="utf-8"))["options"] == {}


def test_minutes_are_planned_once_for_a_text_of_ones_own(tmp_path, monkeypatch):
    """The speed is another in the second run; the training that was cut off goes on all the same."""
    monkeypatch.setattr(train, "speed", lambda *_: 200.0)
    monkeypatch.setattr(train, "bits_per_byte", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plain_run(tmp_path, "--minutes=0.2")
    monkeypatch.undo()
    monkeypatch.setattr(train, "speed", lambda *_: 1 / 0)
    plain_run(tmp_path, "--minutes=0.2")
    plan = json.loads((tmp_path / "out" / "options.json").read_text(encoding="utf-8"))["plan"]
    seen = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["students"]["plain"]["tokens_seen"]
    assert 900 < plan <= 1000 and abs(seen - plan) < 100


def test_no_bars_without_a_terminal(tmp_path, capfd):
    plain_run(tmp_path)
    out, error = capfd.readouterr()
    assert error == "" and "\r" not in out and "it/s" not in out


def test_ctrl_c_within_a_bar(tmp_path):
    """In a terminal, where there is a bar: the last line says how to go on, and stands alone."""
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    (tmp_path / "my.txt").write_text(torture.TEXT, encoding="utf-8")
    own, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))        # rows, columns: tqdm draws no bar of no width
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *OWN, f"--corpus={tmp_path / 'my.txt'}",
                                f"--out_dir={tmp_path / 'out'}", "--student_tokens=400000"], stdout=its, stderr=its)
    os.close(its)
    said = b""
    with contextlib.suppress(OSError):              # that is how the other end of a terminal closes
        while select.select([own], [], [], 120)[0] and (more := os.read(own, 1 << 16)):
            if b"plain:" in more and b"plain:" not in said:
                process.send_signal(signal.SIGINT)
            said += more
    os.close(own)
    last = said.replace(b"\r\n", b"\n").decode("utf-8").splitlines()[-1]
    assert process.wait() == 130 and b"Traceback" not in said, said
    assert last.startswith("plain: stopped after ") and last.endswith("the same command goes on from there")
    assert (tmp_path / "out" / "plain" / "training.pt").exists() and not list((tmp_path / "out").rglob("*.tmp"))
