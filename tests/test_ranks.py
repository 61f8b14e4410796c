"""Two processes that train one model take the steps of one, and a whole run of two writes what a run of one writes."""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import machine as ranks

ROOT = Path(__file__).resolve().parent.parent
# Float32, since under autocast a gradient is rounded to bfloat16 before it is summed.
PROGRAM = """
import sys, torch
torch.set_num_threads(1)
import train
from data import machine as ranks
found = train.pick_device
train.pick_device = lambda config: (found(config)[0], None)
"""
FIT = PROGRAM + """
import json
from data.batches import Rows
ranks.start("cpu")
g = torch.Generator().manual_seed(0)
documents = [(torch.randint(50, (n,), generator=g).tolist(), torch.randint(6, (n,), generator=g).tolist())
             for n in torch.randint(3, 30, (60,), generator=g).tolist()]
config = train.Config(block_size=32, step_tokens=64, accumulate=2, device="cpu")
torch.manual_seed(1)
model = train.GPT(train.GPTConfig(50, 32, 2, 2, 16))
losses, seen = train.fit("plain", model, [Rows.pack(documents, 50)], [1.0], 2000, config, 0.5)
places = ranks.merged([10 * i + ranks.rank() for i in ranks.share(list(range(5)))])
if not ranks.rank():
    print(json.dumps([losses, [p.double().sum().item() for p in model.parameters()], places, ranks.agreed(7)]))
else:
    ranks.agreed(8)
"""
RUN = PROGRAM + "train.main(sys.argv[1:])"
SMALL = ("--student_tokens=4000", "--n_layer=1", "--n_embd=32", "--n_vocab=300", "--block_size=64", "--device=cpu", "--threads=1")


def together(n, code, *arguments):
    """The standard output of n processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start = [subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=os.environ | {"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1",
                                                "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}) for r in range(n)]
    told = [process.communicate(timeout=500) for process in start]
    assert all(process.returncode == 0 for process in start), [error[-2000:] for _, error in told]
    assert not any(out for out, _ in told[1:])
    return told[0][0]


def test_alone_nothing_is_shared():
    assert (ranks.size(), ranks.rank(), ranks.share([1, 2]), ranks.merged([1, 2]), ranks.agreed(3)) == (1, 0, [1, 2], [1, 2], 3)


def test_two_processes_take_the_steps_of_one():
    """Also where a batch holds one document, and the other process none of it."""
    one, two = (json.loads(together(n, FIT)) for n in (1, 2))
    assert len(one[0]) > 10
    np.testing.assert_allclose(two[0][:10], one[0][:10], rtol=1e-5)
    np.testing.assert_allclose(two[0], one[0], rtol=1e-3)           # Muon computes in bfloat16, where a last digit grows
    assert one[2:] == [[0, 10, 20, 30, 40], 7] and two[2:] == [[0, 11, 20, 31, 40], 7]


def test_a_run_of_two_writes_what_a_run_of_one_writes(tmp_path):
    """Own text, from options to the page; only the first process writes and prints."""
    text = " ".join(f"Anna took {n} trains to Oslo and Ben saw {n % 7} lamps.\n\n" for n in range(300))
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    printed = [together(n, RUN, f"--corpus={tmp_path / 'my.txt'}", f"--out_dir={tmp_path / str(n)}", *SMALL) for n in (1, 2)]
    one, two = (json.loads((tmp_path / str(n) / "results.json").read_text(encoding="utf-8"))["students"]["plain"] for n in (1, 2))
    assert two["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=0.02) and two["tokens_seen"] == one["tokens_seen"]
    files = [sorted(path.relative_to(tmp_path / str(n)) for path in (tmp_path / str(n)).rglob("*")) for n in (1, 2)]
    assert files[0] == files[1] and all("s in all" in text for text in printed)
