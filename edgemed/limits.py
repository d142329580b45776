"""What this machine can do at best: a matrix product and a copy, measured in the process that measures the engine.

Why: "178 ms" alone does not say whether there is something left to gain. The FLOPs of one request, divided by the rate
of the machine's own sgemm, and its bytes, divided by the rate of a plain copy, are times that no runtime can go below
by much; the larger of the two, as a share of the measured time, is what the engine makes of the machine.

    python -c "from edgemed.limits import cpu_limits; print(cpu_limits(2))"

The best of several repeats, since a limit is what is possible. Bytes of a copy: those read and those written.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

SIDE = 1536  # of the square float32 matrices: 7.2 GFLOP a product
COPY_BYTES = 128 << 20  # more than any CPU's cache
REPEATS = 7


def cpu_limits(threads: int) -> dict[str, Any]:
    """{"sgemm_gflops", "copy_gb_per_s", "threads", "sgemm_threads", "blas"} of NumPy's matrix product and copy.

    blas: the library and the processor that it computes for, which may be an older one than this (OPENBLAS_CORETYPE).
    sgemm_threads: as `threads`, or None where NumPy's BLAS does not let itself be told, and takes its own number.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.random((SIDE, SIDE), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    with blas_threads(threads) as told:
        product = _best_seconds(lambda: np.matmul(a, b, out=out))
    source = np.ones(COPY_BYTES // 4, dtype=np.float32)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:  # NumPy copies without holding the interpreter's lock
        copy = _best_seconds(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))
    return {
        "sgemm_gflops": 2 * SIDE**3 / product / 1e9,
        "copy_gb_per_s": 2 * COPY_BYTES / copy / 1e9,
        "threads": threads,
        "sgemm_threads": threads if told else None,
        "blas": ", ".join(f"{one['internal_api']} {one.get('architecture', '')}".strip() for one in _blas()),
    }


def share_of_limit(
    limits: dict[str, Any], *, flops: int, weight_bytes: int, pixel_bytes: int, batch: int, images_per_s: float
) -> dict[str, Any]:
    """How near a measured rate comes to the limits. flops, pixel_bytes: of one image; weight_bytes: of one request.

    {"least_ms_by_flops", "least_ms_by_bytes": of one request at the limit; "bound": "flops" or "bytes", the longer of
    them; "share": that time over the measured one, 0 to 1 and a little; "gflops": the rate that was reached}
    """
    by_flops = flops * batch / (limits["sgemm_gflops"] * 1e9)
    by_bytes = (weight_bytes + pixel_bytes * batch) / (limits["copy_gb_per_s"] * 1e9)
    return {
        "least_ms_by_flops": by_flops * 1e3,
        "least_ms_by_bytes": by_bytes * 1e3,
        "bound": "flops" if by_flops >= by_bytes else "bytes",
        "share": max(by_flops, by_bytes) * images_per_s / batch,
        "gflops": flops * images_per_s / 1e9,
    }


@contextlib.contextmanager
def blas_threads(threads: int) -> Iterator[bool]:
    """Let NumPy's BLAS use so many threads for a while; yields False where it is one that cannot be told."""
    with threadpool_limits(threads, user_api="blas"):
        yield {library["num_threads"] for library in _blas()} == {threads}


def _blas() -> list[dict[str, Any]]:
    return [library for library in threadpool_info() if library["user_api"] == "blas"]


def _best_seconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)
