"""Several processes that train one model, on as many GPUs or cores:

    torchrun --nproc_per_node=2 train.py

Each runs the whole program by the same plan. What costs time is shared: of every batch a process computes each size-th
document, and gradients and loss are summed over all, which is the step that one process makes (every loss is divided by the
weights of the whole step, so nothing is averaged twice); the teacher's readings and the blind scores are shared likewise and
merged in order. What is written is written by the first process alone, rank 0.
"""

import atexit
import contextlib
import os
import sys

import torch
import torch.distributed as dist


def start(kind):
    """Joins the others if it was torchrun that started this process; all but the first print nothing. kind: of the device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and size() == 1:
        if kind == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)     # ends its threads; one that still runs when the process ends aborts it
        if rank():
            sys.stdout = open(os.devnull, "w", encoding="utf-8")


def size():
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    return dist.get_rank() if size() > 1 else 0


def share(items):
    """The part of a sequence that this process computes; merged(what came of it) is what came of all, in order."""
    return items[rank()::size()]


def merged(mine):
    """Lists, one of share(items) a process -> one list of all, everywhere."""
    parts = [mine]
    if size() > 1:
        parts = [None] * size()
        dist.all_gather_object(parts, mine)
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def sum_step(model, total, wanted):
    """Sums the gradients over all processes, in place -> (summed loss, whether any of them wants to stop)."""
    if size() == 1:
        return total, wanted
    params = [p for p in model.parameters() if p.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]        # None: no document was this one's
    flat = torch.cat([grad.flatten().float() for grad in grads] + [grads[0].new_tensor([total, wanted]).float()])
    dist.all_reduce(flat)
    for p, grad, summed in zip(params, grads, flat[:-2].split([grad.numel() for grad in grads])):
        p.grad = summed.view_as(grad).to(grad.dtype)
    return flat[-2].item(), flat[-1].item() > 0


def agreed(value):
    """The first process's value, everywhere."""
    box = [value]
    if size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


@contextlib.contextmanager
def first_alone():
    """The first process goes through the block before all others: what it has written there, they find."""
    if rank():
        dist.barrier()
    yield
    if size() > 1 and not rank():
        dist.barrier()
