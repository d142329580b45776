"""One training in several processes, as torchrun starts them: who leads, what they share, how they end together.

    torchrun --nproc-per-node 2 -m edgemed train DATA --out RUN

It exists so that the rest of the training knows nothing of processes: the first process (the leader) runs the command
as if it were alone, alone writes files, and calls the others for the stages that train (`on_all_ranks`); between the
stages they wait. Without torchrun every function here does nothing and costs nothing.

Two ranks take the steps of one with the same --batch: to 1e-9 in float64 (`tests/test_scale.py`). In float32 the order
of sums differs, and Adam amplifies it: with ImageNet weights on 96 phantoms (96 px, 8 epochs, no drop path, two gloo
processes) the training losses differed by at most 8e-3, the test probabilities by 0.03 at most and 0.003 on average;
accuracy and AUROC of the 38 test images were the same. Dropped paths, erased rectangles and mixup's shares
are drawn by rank and add noise of their own.

Faults: an `EdgemedError` of one process, inside `agreed` or `together`, is raised in all of them, so that one line
tells of it and nobody waits for ever. A process that was killed ends the others. Tensors on a CPU travel by gloo, those
on a GPU by NCCL.
"""

from __future__ import annotations

import ctypes
import datetime
import logging
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgemed.allowance import usable_cores
from edgemed.errors import EdgemedError, InputError
from edgemed.norms import synchronise
from edgemed.progress import unseen

T = TypeVar("T")

PATIENCE = datetime.timedelta(hours=12)
"""How long the others wait for the leader: it may scan a large data set or evaluate. A dead process is seen at once."""

GOES_ON = "the same command goes on where it stopped"

OUT_OF_MEMORY = "the GPU's memory does not suffice; use a higher --accumulate or a smaller --batch, and another --out"

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def rank() -> int:
    """This process's number, 0 for the leader or alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def batch_of_rank(batch: int) -> int:
    """How many of a step's `batch` images each process takes.

    Raises:
        InputError: they cannot be shared equally.
    """
    if batch % world():
        near = max(2, round(batch / world())) * world()
        raise InputError(f"--batch {batch} is not a multiple of torchrun's {world()} processes; try {near}")
    return batch // world()


def cpu_threads(asked: int) -> int:
    """`asked`, or for 0 this process's share of the cores that the command may use."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1
    return asked or max(1, usable_cores() // here)


@contextmanager
def process_group(device: str, threads: int) -> Iterator[bool]:
    """Join the processes that torchrun started; alone without it. Yields whether this one leads; the others `follow`.

    Raises:
        InputError: more processes than GPUs on this machine, or a numbered GPU for all of them.
        EdgemedError: another process was killed, this one is told to end, or the GPU's memory does not suffice. The
            leader says so; where it is the one that was killed, the first of the others.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        try:
            yield True
        except torch.OutOfMemoryError as error:
            raise EdgemedError(OUT_OF_MEMORY) from error
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    local, count = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpu:
        _require_a_gpu_each(device, count)
        torch.cuda.set_device(local)  # so that `cuda` is this process's own
    die_with_parent(os.getppid())
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    torch.set_num_threads(cpu_threads(threads))
    leader = _broadcast((socket.gethostname(), os.getpid()))
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of a 1 x 1 convolution: nothing to do about it
    if rank():
        logging.getLogger("edgemed").setLevel(logging.ERROR)  # the leader says everything once
    before = signal.signal(signal.SIGTERM, _terminated)  # what torchrun sends to all when one process has ended
    try:
        yield rank() == 0
    except EdgemedError:  # all know of it
        _release()
        raise
    except torch.OutOfMemoryError as error:
        raise EdgemedError(OUT_OF_MEMORY) from error
    except (_Terminated, RuntimeError) as error:
        if not _is_lost(error):
            raise
        before = signal.SIG_IGN  # torchrun sends it in a moment: our line comes first
        signal.signal(signal.SIGTERM, before)
        if rank() == 1 and _is_gone(*leader):
            message = "the first process of this training has ended or was killed; where it gave no reason above, "
            raise EdgemedError(message + GOES_ON) from error
        if rank():
            raise SystemExit(1) from error
        raise EdgemedError(f"another process of this training has ended or was killed; {GOES_ON}") from error
    else:
        _release()
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_a_gpu_each(device: str, count: int) -> None:
    there = torch.cuda.device_count()
    if device.startswith("cuda:"):
        problem = f"--device {device}: torchrun gives each process a GPU of its own; use --device cuda"
    elif count > there:
        problem = f"torchrun starts {count} processes here, but there are {there} GPUs; use --nproc-per-node {there}"
    else:
        return
    if int(os.environ["RANK"]):
        raise SystemExit(InputError.exit_code)  # the leader says it
    raise InputError(problem)


class _Terminated(BaseException):
    """SIGTERM, as an exception: the command then ends by a line and not in silence."""


def _terminated(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _is_gone(host: str, process: int) -> bool:
    """Whether a process of this machine has ended, or does so within two seconds: its connections close first."""
    for _ in range(20 if host == socket.gethostname() else 0):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":  # torchrun has not taken note of it yet
            return True
        time.sleep(0.1)
    return False


def _is_lost(error: BaseException) -> bool:
    """Whether `error` is what the communication raises when another process is gone, not a fault of our own."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "TCPStore")
    return isinstance(error, (_Terminated, dist.DistError)) or any(word in str(error) for word in words)


def _release() -> None:
    """The end: the leader tells those who wait that nothing more comes."""
    if rank() == 0:
        _broadcast(None)
    dist.destroy_process_group()


def on_all_ranks(work: Callable[..., None], *job: Any, progress: Any) -> None:
    """Call `work(*job, progress)` in every process; `work` is a module's own function and `job` can be pickled."""
    if world() > 1:
        _broadcast((work, job))
    work(*job, progress)


def follow() -> None:
    """What every process but the leader does: the leader's jobs, until it releases them."""
    while (message := _broadcast(None)) is not None:
        work, job = message
        try:
            work(*job, unseen)
        except EdgemedError:
            continue  # raised in the leader too, which tells of it


def _broadcast(message: Any) -> Any:
    """The leader's message, in all processes. Pickled: it comes from a process of the same command."""
    box = [message]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_leader(make: Callable[[], T]) -> T:
    """What `make()` returns in the leader, in all processes."""
    if world() == 1:
        return make()
    made: Any = None
    with agreed():
        if rank() == 0:
            made = make()
    shared: T = _broadcast(made)
    return shared


@contextmanager
def agreed() -> Iterator[None]:
    """Around what each process does for itself: an EdgemedError in one is raised in all, the lowest rank's first."""
    failure = None
    try:
        yield
    except EdgemedError as error:
        failure = error
        if world() == 1:
            raise
    if world() > 1 and summed(torch.tensor(failure is not None, dtype=torch.int32)) > 0:
        raise next(error for error in gathered(failure) if error is not None)


def together(items: Iterable[T]) -> Iterator[T]:
    """`items`, each handed out once every process has its own; all processes have the same number of them."""
    iterator = iter(items)
    while True:
        with agreed():
            item = next(iterator, None)
        if item is None:
            return
        yield item


def gathered(value: T) -> list[T]:
    """The `value` of every process, in the order of the ranks."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def summed(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in all of them; not for gradients."""
    if world() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def replicated(model: nn.Module, compiled: bool) -> nn.Module:
    """`model` as a training step calls it: compiled if asked for, and on several ranks with averaged gradients.

    On several ranks the batch norms of `model` itself are exchanged for those with the statistics of all ranks; the
    names of its tensors stay.
    """
    if world() > 1:
        synchronise(model)
    step: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
    if world() == 1:
        return step
    return DistributedDataParallel(step)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when `parent`, its starter, dies: no orphan writes into a resumed run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
