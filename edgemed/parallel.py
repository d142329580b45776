"""Several trainings at once, each in a process of its own: how `--folds` uses a machine with many cores or GPUs.

On a small network one thread per fold beats many threads on one fold by far. The workers die with their parent, so a
killed command leaves nobody behind who writes into the run that the next one resumes.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch

from edgemed.allowance import available_gib, usable_cores
from edgemed.config import TrainConfig
from edgemed.distributed import die_with_parent, world
from edgemed.errors import EdgemedError
from edgemed.loader_torch import MEMORY_LIMIT
from edgemed.progress import Progress


def gpus_of(device: str) -> list[str]:
    """The GPUs that folds are dealt to, as CUDA_VISIBLE_DEVICES names them; none on a CPU, by number or by torchrun."""
    if device != "cuda" or world() > 1:
        return []
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(k) for k in range(count)]


def folds_at_once(
    config: TrainConfig, device: str, gpus: Sequence[str] = (), files: Sequence[Path] = ()
) -> tuple[int, int]:
    """How many folds at once, and the threads of each: as many as the cores and the memory allow.

    The threads are --threads or, without it, each fold's share of the cores, whatever the memory: they decide how sums
    are rounded, and the same command is to give the same figures. One fold for each of `gpus`; one on a GPU by number,
    and under torchrun. files: the images.
    """
    cores = usable_cores()
    if gpus:
        return len(gpus), config.threads or max(1, cores // len(gpus))
    if device != "cpu" or world() > 1:
        return 1, config.threads
    at_once = min(config.folds, max(1, cores // (config.threads or 1)))
    threads = config.threads or cores // at_once
    by_memory = max(1, int(available_gib() / _gib_of_fold(config, files)))
    if by_memory < at_once and (more := cores // by_memory) > threads:
        logging.getLogger("edgemed").warning(
            "the memory is enough for %d of %d folds at once, which use %d of %d cores; --threads %d would use %d",
            by_memory, at_once, by_memory * threads, cores, more, by_memory * more,
        )  # fmt: skip
    return min(at_once, by_memory), threads


def _gib_of_fold(config: TrainConfig, files: Sequence[Path]) -> float:
    """The memory of a fold in GiB: measured on convnext_tiny at 224 px, 1.17 at a batch of 2 and 1.83 at one of 8.

    And the images that the loader and the validation remember: decoded, they are up to twenty times their files.
    """
    side = max(config.train_size or config.size, config.pretrain_size)
    sizes = sum(file.stat().st_size for file in files if file.is_file())
    return 1 + 0.11 * config.batch / config.accumulate * (side / 224) ** 2 + min(20 * sizes, 2 * MEMORY_LIMIT) / 2**30


def run_jobs(
    work: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    progress: Progress,
    gpus: Sequence[str] = (),
) -> None:
    """Call `work(*job, progress)` for every job, `workers` at a time. `work` must be a module's own function.

    gpus: one for each worker, as CUDA_VISIBLE_DEVICES names it; the worker sees that one alone, as `cuda`.

    Raises:
        What the first failing job raises, when those that run beside it are done; the others are not begun.
        EdgemedError: a worker was killed.
        KeyboardInterrupt: at once; the workers, which do not hear of Ctrl-C themselves, are killed.
    """
    if workers <= 1:
        for job in jobs:
            work(*job, progress)
        return
    context = multiprocessing.get_context("spawn")
    level = logging.getLogger("edgemed").getEffectiveLevel()
    manager = SyncManager(ctx=context)
    with _no_interrupt():
        manager.start(die_with_parent, (os.getpid(),))
    with manager:
        messages, free = manager.Queue(), manager.Queue()
        for gpu in gpus:
            free.put(gpu)
        own = (os.getpid(), level, free if gpus else None)
        with (
            ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=own) as pool,
            _killed_by_an_interrupt(),
        ):
            waiting, running = list(jobs), set[Future[None]]()
            failure: BaseException | None = None
            while running or (waiting and failure is None):
                # Submitted one by one: a job in the pool's own queue could not be taken back after a failure.
                while waiting and failure is None and len(running) < workers:
                    with _no_interrupt():  # a worker may be born here
                        running.add(pool.submit(_work, work, waiting.pop(0), messages))
                done, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                while not messages.empty():
                    progress(*messages.get())
                failure = next((found for job in done if (found := job.exception())), failure)
    if isinstance(failure, BrokenProcessPool):
        message = "a fold's process was killed, perhaps for want of memory; the same command goes on where it stopped"
        message += "" if gpus else f"; --threads {usable_cores()} trains one fold at a time"
        raise EdgemedError(message) from failure
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C waits until the end; a process that is begun meanwhile never hears of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _killed_by_an_interrupt() -> Iterator[None]:
    """Ctrl-C ends the processes that were begun within: their stages are resumable, and nobody waits for minutes."""
    before = multiprocessing.active_children()
    try:
        yield
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            if process not in before:
                process.kill()
        raise


def _work(work: Callable[..., Any], job: tuple[Any, ...], messages: Any) -> None:
    work(*job, lambda *message: messages.put(message))


def _start_worker(parent: int, level: int, free: Any) -> None:
    die_with_parent(parent)
    if free is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = free.get_nowait()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("edgemed").setLevel(level)
