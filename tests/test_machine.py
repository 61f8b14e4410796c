"""Devices; worker processes and how they end; two processes that train one model take the steps of one."""
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import train
from data import cli, machine
from data.batches import DataMix, Rows
from data.cli import run_command
from data.files import read_json, write_json, write_text
from model import GPT, GPTConfig
from tests.torture import OWN, TEXT, free_port

pytest.importorskip("fcntl", reason="the processes and signals of POSIX")
ROOT = os.path.dirname(train.__file__)
CPU, FORK = torch.device("cpu"), multiprocessing.get_context("fork")


@pytest.mark.parametrize("supported, dtype", [
    ((False, False), None), ((True, False), torch.bfloat16), ((False, True), torch.bfloat16)])
def test_bf16_is_taken_where_the_processor_computes_in_it(monkeypatch, supported, dtype):
    for name, value in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), supported):
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value, raising=False)
    assert machine.pick_device.__wrapped__("cpu") == (CPU, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="--device=cuda, but this machine has .*; try --device=auto"):
        machine.pick_device("cuda")


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(cli, "EVERY", 0.1)
    bar = cli.progress(range(40), "brd", total=40)
    for step in bar:
        time.sleep(0.02)
        bar.set_postfix_str(f"loss {step}", refresh=False)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 12 and all("brd: " in line and "/40 " in line and "loss" in line for line in lines)
    monkeypatch.setattr(cli, "EVERY", 30)
    assert len(list(cli.progress(range(40), "brd"))) == 40 and not capsys.readouterr().err


# --- worker processes ---------------------------------------------------------------------------------------

def parent(write):
    """A process with one worker, in a group of its own, as a terminal gives it; both print into a pipe."""
    def main():
        print("begun")
        with machine.worker_pool(1) as pool:
            print(pool.submit(abs, -7).result())
            pool.submit(time.sleep, 600).result()
    os.setsid()
    os.dup2(write, 1), os.dup2(write, 2)
    sys.stdout = sys.stderr = open(write, "w", encoding="utf-8", buffering=1)
    run_command(main)


@pytest.mark.parametrize("kill, number, line", [
    (os.killpg, signal.SIGINT, b"begun\n"), (os.killpg, signal.SIGINT, b"7\n"),
    (os.killpg, signal.SIGHUP, b"7\n"), (os.kill, signal.SIGKILL, b"7\n")])
def test_workers_end_with_their_parent(kill, number, line):
    """Ctrl-C or a closed terminal for the whole group, while the worker starts and while it works, twice and
    more; SIGKILL for the parent alone. The pipe ends when the last process is gone."""
    read, write = os.pipe()
    process = FORK.Process(target=parent, args=(write,))
    process.start()
    os.close(write)
    with open(read, "rb") as told:
        while told.readline() != line:
            pass
        time.sleep(0.3)
        kill(process.pid, number)
        for delay in (0.002, 0.05, 0.1) if number == signal.SIGINT else ():     # again, while it ends
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                kill(process.pid, number)
        rest = told.read().decode("utf-8")
    process.join()
    if number != signal.SIGKILL:
        assert (process.exitcode, rest) == (130, "stopped\n")      # it promises nothing
    assert "Traceback" not in rest


@pytest.mark.parametrize("number", cli.STOPS)
def test_the_first_signal_stops_and_the_others_are_ignored(number, capsys):
    def main():
        try:
            signal.raise_signal(number)
        finally:
            for again in cli.STOPS:
                signal.raise_signal(again)
            written.append("all")
    before, written = {n: signal.getsignal(n) for n in cli.STOPS}, []
    with pytest.raises(SystemExit) as end:
        run_command(main)
    machine.restore(before)
    assert (end.value.code, capsys.readouterr().err, written) == (130, "stopped\n", ["all"])


@pytest.mark.parametrize("error, told", [
    (MemoryError("Unable to allocate 7 TiB"), "not enough memory (MemoryError: Unable to allocate 7 TiB); try smaller"),
    (MemoryError(), "not enough memory (MemoryError:); try"), (NotImplementedError("no fork"), "no fork"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."), "64 bytes.); try"),
    (RuntimeError("[gloo/pair.cc:553] Connection closed by peer [::1]. GLHF!"), "another process of this training has"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "allocate 2 GiB.); try")])
def test_too_little_memory_and_a_process_that_is_gone_are_one_line(error, told, capsys):
    def main():
        raise error
    with pytest.raises(SystemExit) as end:
        run_command(main)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and told in said and said.count("\n") == 1


def test_an_error_of_ours_is_still_a_traceback():
    def main():
        raise RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes"):
        run_command(main)


def test_closed_streams_other_encodings_and_python_without_docstrings(tmp_path):
    """What cannot be shown is escaped or dropped; it never ends a run."""
    program = ("import sys; from data.cli import progress, run_command\n"
               "run_command(lambda: print('Анна', *progress(range(2), 'x')) or sys.stderr.write('\\u2713'))")
    def told(redirect, *options, **names):
        command = f'"{sys.executable}" {" ".join(options)} -c "$PROGRAM" {redirect}'
        done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True,
                              env={**os.environ, "PROGRAM": program, **names})
        return done.returncode, done.stdout.strip(), done.stderr.strip()
    assert told("", PYTHONIOENCODING="ascii") == (1, rb"\u0410\u043d\u043d\u0430 0 1", rb"\u2713")
    assert told("<&-", PYTHONIOENCODING="utf-8")[0] == 1
    assert told(">&-")[:2] == (1, b"") and told("2>&-")[2] == told(">&- 2>&-")[2] == b""
    code, _, said = told("", "-OO")
    assert code == 2 and said.startswith(b"error: python -OO leaves out the texts")


def test_a_worker_that_is_killed_is_told_in_one_line(capsys):
    def main():
        with machine.worker_pool(1) as pool:
            pool.submit(os._exit, 9).result()
    with pytest.raises(SystemExit) as end:
        run_command(main)
    told = capsys.readouterr().err
    assert (end.value.code, told) == (2, "error: a worker process was killed; is there enough memory?\n")


# --- torchrun -----------------------------------------------------------------------------------------------

def train_two_ways(rank, size, port, folder):
    """fit on documents of which some batches hold one, then a whole run on a text of one's own."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=port)
    machine.start_processes(CPU)
    config = train.Config(block_size=32, step_tokens=64, accumulate=2, device="cpu")
    rng = np.random.default_rng(0)
    rows = Rows.pack([(rng.integers(0, 50, n).tolist(), [0] * n) for n in rng.integers(3, 30, 60)], 50)
    torch.manual_seed(1)
    model = GPT(GPTConfig(50, 32, 2, 2, 16))
    losses, *_ = train.fit("plain", model, DataMix([rows], [1.0]), 2000, config)
    write_json(folder / f"{size}.json", {"losses": losses})
    train.main([*OWN, f"--corpus={folder / 'my.txt'}", f"--out_dir={folder / str(size)}"])


def test_two_processes_take_the_steps_of_one_and_write_the_same_files(tmp_path, monkeypatch, capfd):
    """In float32, since under autocast a gradient is rounded to bfloat16 before it is summed."""
    torch.set_num_threads(1)
    monkeypatch.setattr(train, "pick_device", lambda name: (CPU, None))
    write_text(tmp_path / "my.txt", TEXT)
    losses, plain, written = [], [], []
    for size in (1, 2):
        port = free_port()
        started = [FORK.Process(target=train_two_ways, args=(r, size, port, tmp_path)) for r in range(size)]
        for process in started:
            process.start()
        for process in started:
            process.join(120)
            process.kill()
        assert [process.exitcode for process in started] == [0] * size
        assert capfd.readouterr().out.count("s in all;") == 1           # only the first prints
        out = tmp_path / str(size)
        losses.append(read_json(tmp_path / f"{size}.json", "")["losses"])
        plain.append(read_json(out / "results.json", "")["students"]["plain"])
        written.append(sorted(path.relative_to(out) for path in out.rglob("*")))
    np.testing.assert_allclose(losses[1][:6], losses[0][:6], rtol=1e-5)
    np.testing.assert_allclose(*losses, rtol=1e-3)      # Muon computes in bfloat16, where a last digit grows
    assert plain[0]["bits_per_byte"] == pytest.approx(plain[1]["bits_per_byte"], rel=0.02)
    assert plain[0]["tokens_seen"] == plain[1]["tokens_seen"] and written[0] == written[1]
