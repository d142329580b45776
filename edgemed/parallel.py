"""Several trainings at once, each in a process of its own: how `--folds` uses a machine with many cores.

On a small network one thread per fold beats many threads on one fold by far. The workers die with their parent, so a
killed command leaves nobody behind who writes into the run that the next one resumes.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any

from edgemed.loop import Progress

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_jobs(work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int, progress: Progress) -> None:
    """Call `work(*job, progress)` for every job, `workers` at a time. `work` must be a module's own function.

    Raises:
        What a job raises: the jobs that have begun are finished first, the others are not begun.
    """
    if workers <= 1:
        for job in jobs:
            work(*job, progress)
        return
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(workers, context, initializer=_die_with_parent, initargs=(os.getpid(),)) as pool,
    ):
        messages = manager.Queue()
        pending = {pool.submit(_work, work, job, messages) for job in jobs}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                while not messages.empty():
                    progress(*messages.get())
                for future in done:
                    future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _work(work: Callable[..., Any], job: tuple[Any, ...], messages: Any) -> None:
    work(*job, lambda *message: messages.put(message))


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
