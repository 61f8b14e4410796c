"""Devices; worker processes and how they end; two processes that train one model take the steps of one."""
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from data import machine
from data.batches import DataMix, Rows
from data.cli import run_command
from model import GPT, GPTConfig
from tests.torture import OWN, TEXT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks of this one")
CPU = torch.device("cpu")


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


# --- worker processes ---------------------------------------------------------------------------------------

PROGRAM = """
import time
from data.cli import run_command
from data.machine import worker_pool

def main():
    print("begun", flush=True)
    with worker_pool(2) as pool:
        print(pool.submit(abs, -7).result(), flush=True)
        pool.submit(time.sleep, 600).result()

if __name__ == "__main__":
    run_command(main)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Three times the program, in a group of its own each; they start at the same time."""
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    root = str(Path(train.__file__).resolve().parent)
    started = [subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, "PYTHONPATH": root}, start_new_session=True) for _ in range(3)]
    yield started
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number, lines, seconds", [(signal.SIGINT, 1, 1.0), (signal.SIGINT, 2, 0), (signal.SIGKILL, 2, 0)])
def test_workers_end_with_their_parent(programs, number, lines, seconds):
    """Ctrl-C for the whole group, while the workers start and while they work; SIGKILL for the parent alone.
    The pipes close when the last process is gone."""
    process = programs.pop(0)
    for _ in range(lines):
        process.stdout.readline()
    time.sleep(seconds)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    told = process.communicate(timeout=60)[1]
    assert told == ("stopped; the same command goes on from there\n" if number == signal.SIGINT else "")
    assert process.returncode == (130 if number == signal.SIGINT else -9)


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
                      MASTER_PORT=str(port))
    machine.start_processes(CPU)
    rng, config = np.random.default_rng(0), train.Config(block_size=32, step_tokens=64, accumulate=2, device="cpu")
    rows = Rows.pack([(rng.integers(0, 50, n).tolist(), rng.integers(0, 6, n).tolist())
                      for n in rng.integers(3, 30, 60)], 50)
    torch.manual_seed(1)
    model = GPT(GPTConfig(50, 32, 2, 2, 16))
    losses, *_ = train.fit("plain", model, DataMix([rows], [1.0]), 2000, config)
    if not machine.rank():
        (folder / f"{size}.json").write_text(json.dumps(losses), encoding="utf-8")
    train.main([*OWN, f"--corpus={folder / 'my.txt'}", f"--out_dir={folder / str(size)}"])


def test_two_processes_take_the_steps_of_one_and_write_the_same_files(tmp_path, monkeypatch, capfd):
    """In float32, since under autocast a gradient is rounded to bfloat16 before it is summed."""
    torch.set_num_threads(1)
    monkeypatch.setattr(train, "pick_device", lambda name: (CPU, None))
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    for size in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [multiprocessing.get_context("fork").Process(target=train_two_ways, args=(rank, size, port, tmp_path))
                   for rank in range(size)]
        for process in started:
            process.start()
        for process in started:
            process.join(120)
            process.kill()
        assert [process.exitcode for process in started] == [0] * size
        assert capfd.readouterr().out.count("s in all;") == 1           # only the first prints
    one, two = (json.loads((tmp_path / f"{size}.json").read_text(encoding="utf-8")) for size in (1, 2))
    np.testing.assert_allclose(two[:10], one[:10], rtol=1e-5)
    np.testing.assert_allclose(two, one, rtol=1e-3)         # Muon computes in bfloat16, where a last digit grows
    one, two = (train.read_json(tmp_path / str(size) / "results.json", "")["students"]["plain"] for size in (1, 2))
    assert two["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=0.02)
    assert two["tokens_seen"] == one["tokens_seen"]
    written = [sorted(path.relative_to(tmp_path / str(size)) for path in (tmp_path / str(size)).rglob("*")) for size in (1, 2)]
    assert written[0] == written[1]
