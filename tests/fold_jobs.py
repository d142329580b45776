"""Jobs for the tests of parallel folds: worker processes import them by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from edgemed.errors import InputError


def touch(folder: Path, number: int, progress: Callable[[str, int, int, str], None]) -> None:
    """Leave a trace; job 0 fails, the others take a moment."""
    (folder / str(number)).touch()
    if number == 0:
        raise InputError("job 0 is bad")
    progress(f"job {number}", 1, 1, "")
    time.sleep(1)


def tell_gpu(folder: Path, number: int, progress: Callable[[str, int, int, str], None]) -> None:
    """Write down which GPU this worker sees, in time for the other worker to take a job too."""
    (folder / str(number)).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    while number < 2 and len(list(folder.iterdir())) < 2:
        time.sleep(0.01)


def linger(folder: Path, number: int, progress: Callable[[str, int, int, str], None]) -> None:
    """Get the Ctrl-C that a terminal sends to all, say so, and stay for ten minutes unless killed."""
    (folder / str(os.getpid())).touch()
    os.kill(os.getpid(), signal.SIGINT)
    progress("still here", 1, 1, "")
    time.sleep(600)
