"""What the machine offers: a device, worker processes for two students at a time, several processes for one.

With torchrun (see train.py) every process runs the whole program. Of each batch it computes every size-th
document, gradients are summed, and the first process (rank 0) writes for all.
"""

import atexit
import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

import torch
import torch.distributed as dist

from data.cli import STOPS

PROCESSES = 8 * (os.cpu_count() or 1)                        # more threads or workers than that only wait
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 40


@functools.cache
def pick_device(name):
    """"auto", "cpu", "cuda" or "mps" -> (torch.device, dtype of autocast or None): bf16 where the processor
    has it. ValueError for a device that this machine does not have."""
    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(found if name == "auto" else name)
    if device.type not in ("cpu", found):
        raise ValueError(f"--device={name}, but this machine has {found}; try --device=auto")
    if device.type != "cpu":
        return device, torch.bfloat16 if found == "cuda" and torch.cuda.is_bf16_supported() else None
    with contextlib.suppress(OSError, AttributeError, TypeError):
        # glibc is to keep large blocks between steps: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD.
        for parameter, size in ((-3, 1 << 25), (-1, 1 << 30), (-2, 1 << 27)):
            ctypes.CDLL(None).mallopt(parameter, size)
    tests = "_is_avx512_bf16_supported", "_is_amx_tile_supported"
    return device, torch.bfloat16 if any(getattr(torch.cpu, test, bool)() for test in tests) else None


def follow_parent():
    """What a worker does first: it ends when the process that started it ends, however that happens."""
    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def worker_pool(n):
    """A ProcessPoolExecutor of n processes. They ignore Ctrl-C and a closed terminal; after it, or an error,
    they get SIGTERM, save what they train and end first. OSError where one was killed."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPS if number != signal.SIGTERM}
    with ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), initializer=follow_parent) as pool:
        for _ in range(n):
            pool.submit(os.getpid)                           # starts a worker
        restore(before)
        try:
            yield pool
        except BaseException as error:
            workers = multiprocessing.active_children()
            while any(worker.is_alive() for worker in workers):     # one that was stopped begins its next job
                for worker in workers:
                    worker.terminate()
                time.sleep(0.2)
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenExecutor):
                raise OSError("a worker process was killed; is there enough memory?") from None
            raise


def restore(handlers):
    """Undoes signal.signal; handlers: {number: what it returned}."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def delayed_stop():
    """Within, a signal of STOPS only sets the given Event; KeyboardInterrupt at the end if it is set then."""
    wanted, heard = threading.Event(), [n for n in STOPS if signal.getsignal(n) != signal.SIG_IGN]
    before = {n: signal.signal(n, lambda *_: wanted.set()) for n in heard}
    try:
        yield wanted
    finally:
        restore(before)
    if wanted.is_set():                                      # in the last step
        raise KeyboardInterrupt


def start_processes(device):
    """Joins the other processes if torchrun started this one; only the first prints. device: torch.device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and size() == 1:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)          # a thread that still runs at the end would abort
        if rank():
            sys.stdout = open(os.devnull, "w", encoding="utf-8")


def check_weights(config):
    """ValueError for a GPTConfig whose weights do not fit in the memory of this machine."""
    block = 12 * config.n_embd ** 2 + 5000                   # 5000: a block of few channels takes as much
    size = 4 * (config.n_layer * block + config.n_vocab * config.n_embd + 2 * config.block_size ** 2)
    if size > MEMORY:
        raise ValueError(f"a model of {size:.1e} bytes, but this machine has {MEMORY:.1e}; try a smaller "
                         "n_layer, n_embd, n_vocab or block_size")


def size():
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    """The number of this process; 0 is the first, and the only one without torchrun."""
    return dist.get_rank() if size() > 1 else 0


def barrier():
    """Waits until all processes are here."""
    if size() > 1:
        dist.barrier()


def sum_gradients(model, *numbers):
    """Sums the gradients over all processes, in place -> the numbers (float), summed as well."""
    if size() == 1:
        return numbers
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad      # None: no document came here
        dist.all_reduce(p.grad)
    total = next(model.parameters()).new_tensor(numbers)
    dist.all_reduce(total)
    return total.tolist()
