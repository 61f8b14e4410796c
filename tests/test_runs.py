"""A run that is killed, stopped or crowded: what it leaves behind, and that it ends as if nothing had happened."""
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from data import runs
from data.rows import Batch, Rows
from data.sealed import stamp
from model import GPT, GPTConfig

ROOT = Path(train.__file__).resolve().parent
TINY = ("--n_layer=1 --n_embd=16 --n_head=2 --test_paragraphs=1 --device=cpu --start_tokens=20000 --student_tokens=40000 "
        "--step_tokens=512").split()
TEXT = "The cat sat on the mat. The dog ran to the red house and saw a bird.\n\n" * 400


def command(out, *more, save_seconds=0.0):
    """A run in a process of its own, in which a training is saved at every step (in one process, so that the constant is its own)."""
    code = f"import sys; from data import runs; runs.SAVE_SECONDS = {save_seconds}; import train; runs.stops.listen(); train.main(sys.argv[1:])"
    return [sys.executable, "-c", code, f"--out_dir={out}", *TINY, *more]


def start(arguments):
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def artefacts(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
            and path.name not in (".lock", "seconds.json", "options.json")}


@pytest.fixture(scope="module")
def own_text(tmp_path_factory):
    """A text of one's own, and what a run on it leaves that nobody disturbs."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "my.txt").write_text(TEXT, encoding="utf-8")
    options = (f"--corpus={folder / 'my.txt'}", "--threads=1", "--n_vocab=300", "--block_size=64")
    begin = time.monotonic()
    subprocess.run(command(folder / "whole", *options), cwd=ROOT, check=True, capture_output=True)
    return folder, options, time.monotonic() - begin


@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_at_random_ends_bit_for_bit_the_same(own_text, seed):
    folder, options, seconds = own_text
    out, rng, kills = folder / f"killed{seed}", random.Random(seed), 0
    while not (out / "results.json").exists() and kills < 40:
        process = start(command(out, *options))
        try:
            process.wait(timeout=rng.uniform(0.5, 0.95) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    whole, found = artefacts(folder / "whole"), artefacts(out)
    for files in (whole, found):
        for name in ("results.json", "report.html"):
            files[name] = files[name].replace(str(out).encode(), b"OUT").replace(str(folder / "whole").encode(), b"OUT")
    assert kills > 0 and found == whole and "plain/training.pt" not in whole


def test_a_signal_ends_a_run_at_the_next_step_and_all_its_processes(tmp_path):
    """Two students in processes of their own: SIGTERM to the run alone. The same command goes on."""
    arguments = [sys.executable, str(ROOT / "train.py"), f"--out_dir={tmp_path}", *TINY, "--student_tokens=400000", "--threads=2"]
    process = start(arguments)
    while not (tmp_path / "annotations.jsonl").exists() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(4.0)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from there" in told and "Traceback" not in told, told
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "results.json").exists()


def test_two_runs_in_one_folder(tmp_path):
    with runs.held(tmp_path):
        done = subprocess.run([sys.executable, "-c", f"from pathlib import Path; from data.runs import held\nwith held(Path({str(tmp_path)!r})): pass"],
                              cwd=ROOT, capture_output=True, text=True)
        assert f"process {os.getpid()} is at work in this folder" in done.stderr
    with runs.held(tmp_path):       # it is free again
        pass


def test_a_lock_dies_with_its_process(tmp_path):
    code = f"from pathlib import Path; from data.runs import held; import os\nwith held(Path({str(tmp_path)!r})): os._exit(9)"
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
