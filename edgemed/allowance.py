"""What this process may use of its machine: cores and memory, within the limits of a container.

Why its own module: training and serving have to agree. One that overlooked a limit would start more threads than it has
cores, and be slower for it. The C library counts likewise (`cpp/src/files.cpp`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def usable_cores() -> int:
    """Physical cores that this process may use: those of its affinity, within a container's quota."""
    threads = os.sched_getaffinity(0)
    siblings = set()
    for number in threads:
        topology = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        try:
            siblings.add(topology.read_text(encoding="ascii").strip())
        except OSError:  # no sysfs: every hardware thread counts as a core
            siblings.add(str(number))
    return max(1, min(len(siblings), _quota(Path("/sys/fs/cgroup/cpu.max"))))


def _quota(path: Path) -> int:
    """Whole CPUs that a container may use (cgroup 2: "MICROSECONDS PERIOD", or "max PERIOD"); very many without one."""
    try:
        allowed, period = path.read_text(encoding="ascii").split()
        return int(allowed) // int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return 1 << 20


def available_gib() -> float:
    """The memory that the system could give, by Linux, and a container's limit; infinite where neither says."""
    known = [float("inf")]
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        known.append(next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 2**20)
    with contextlib.suppress(OSError, ValueError):  # "max" where there is none
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text()) / 2**30)
    return min(known)
