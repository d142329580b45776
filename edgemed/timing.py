"""How long calls take, and what may be concluded from the samples. Numpy only; knows nothing of bundles or runtimes.

Why its own module: `edgemed bench` and every script in `benchmarks/` measure with the same few functions, so that their
figures can be compared. Every sample counts: none is dropped, clipped or averaged away. Neighbours in time resemble
each other (a neighbour process, a clock that falls), so intervals come from a bootstrap that draws whole blocks of
neighbours; one that draws single samples would promise far too much.

    rounds = interleaved({"old": old, "new": new}, rounds=50)
    ratio_interval(rounds["new"], rounds["old"], paired=True)        # Interval(value=0.83, low=0.81, high=0.86)

Source: non-overlapping block bootstrap of Carlstein, Annals of Statistics 14 (1986); windows that have to agree before
a measurement counts as settled are Triton Model Navigator's. Tests: `python -m pytest tests/test_timing.py`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import nan
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import InputError
from edgemed.stats import Interval

Call = Callable[[], object]

RESAMPLES = 1000
WINDOWS = 5
WINDOW_SAMPLES = 3  # fewer have no median to speak of
SAMPLES_ABOVE = 10  # a percentile above the median, for a bound: the true one lies above all of too few samples
TOLERANCE = 0.10  # by which a window's median may differ from that of all samples
_MIN_BLOCKS = 20
_GRID = 2000  # distinct bounds that an interval can take, at most


class Timed(NamedTuple):
    """latencies: ms of each request, in the order in which they ended; seconds: from the first's start to the end."""

    latencies: list[float]
    seconds: float


class Stability(NamedTuple):
    """Whether a measurement settled; medians of its windows in ms; the farthest of them from the whole's, as a share.

    `windows` is empty and `spread` None where there are too few samples to tell: such a run is not settled.
    """

    settled: bool
    windows: list[float]
    spread: float | None


def timed(
    call: Call,
    *,
    seconds: float,
    requests: int | None = None,
    streams: int = 1,
    idle: float = 0.0,
    warmup: float = 0.0,
    begin: Callable[[], object] = lambda: None,
) -> Timed:
    """Call again and again, each time after the last answer, and keep the latency of every call.

    seconds: how long, at least one call. requests: so many calls of each stream instead. streams: threads that call at
    the same time; one is the calling thread itself. idle: seconds of sleep before each call. warmup: seconds of calls
    before those that count, in each stream. begin: called once between warm-up and measurement.

    Raises what `call` raises.
    """
    started: list[int] = []

    def start() -> None:
        begin()
        started.append(time.perf_counter_ns())

    gate = threading.Barrier(streams, action=start)

    def stream() -> list[tuple[int, int]]:
        try:
            if warmup > 0:
                _calls(call, warmup, None, idle)
            gate.wait()
            return _calls(call, seconds, requests, idle)
        except BaseException:
            gate.abort()  # or the others would wait for ever
            raise

    if streams == 1:
        ended = stream()
    else:
        with ThreadPoolExecutor(streams) as pool:
            futures = [pool.submit(stream) for _ in range(streams)]
        faults = [fault for future in futures if (fault := future.exception()) is not None]
        if faults:
            raise min(faults, key=lambda fault: isinstance(fault, threading.BrokenBarrierError))
        ended = sorted(pair for future in futures for pair in future.result())
    return Timed([taken / 1e6 for _, taken in ended], (ended[-1][0] - started[0]) / 1e9)


def _calls(call: Call, seconds: float, requests: int | None, idle: float) -> list[tuple[int, int]]:
    """(end, duration) of each call, in ns."""
    found: list[tuple[int, int]] = []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while len(found) < requests if requests is not None else not found or time.perf_counter_ns() < end:
        if idle > 0:
            time.sleep(idle)
        begin = time.perf_counter_ns()
        call()
        after = time.perf_counter_ns()
        found.append((after, after - begin))
    return found


def interleaved(calls: Mapping[str, Call], rounds: int, *, warmup: int = 2) -> dict[str, list[float]]:
    """The latency in ms of each call, by name, `rounds` samples each: sample k of every name is of round k.

    Each round calls every one once, in an order drawn anew, so that whatever the machine does meets all of them alike.
    warmup: rounds before those that count. Compare two of the lists with `ratio_interval(..., paired=True)`.
    """
    names, order = list(calls), random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        for name in order.sample(names, len(names)):
            begin = time.perf_counter_ns()
            calls[name]()
            taken = (time.perf_counter_ns() - begin) / 1e6
            if number >= warmup:
                found[name].append(taken)
    return found


def percentile(samples: Sequence[float], q: float) -> float:
    """The smallest sample that at least q % of the samples (N,) do not exceed: always one that was measured."""
    return float(np.percentile(_finite(samples), q, method="inverted_cdf"))


def percentile_intervals(samples: Sequence[float], qs: Sequence[float]) -> list[Interval]:
    """`percentile` at each q, with 95 % block-bootstrap intervals, of samples (N,) in the order of time.

    Above the median, the bounds are NaN with fewer than `SAMPLES_ABOVE` samples beyond the percentile.
    """
    values = _finite(samples)
    drawn = _percentiles(values, qs, _draws(len(values)))
    found = [_interval(percentile(samples, q), column) for q, column in zip(qs, drawn.T, strict=True)]
    few = [q > 50 and len(values) * (100 - q) < 100 * SAMPLES_ABOVE for q in qs]
    return [Interval(each.value, nan, nan) if bare else each for each, bare in zip(found, few, strict=True)]


def mean_interval(samples: Sequence[float]) -> Interval:
    """The mean with its 95 % block-bootstrap interval, of samples (N,) in the order of time."""
    values = _finite(samples)
    counts, block = _draws(len(values)), _block_of(len(values))
    sums = np.bincount(block, weights=values)
    return _interval(float(values.mean()), (counts @ sums) / (counts @ np.bincount(block)))


def resampled_medians(samples: Sequence[float], *, seed: int = 0) -> NDArray[np.float64]:
    """(RESAMPLES,) medians of block-bootstrap resamples of samples (N,) in the order of time."""
    values = _finite(samples)
    return _percentiles(values, (50,), _draws(len(values), seed))[:, 0]


def ratio_interval(a: Sequence[float], b: Sequence[float], *, paired: bool = False) -> Interval:
    """The median of `a` over the median of `b`, with its 95 % block-bootstrap interval. Below 1: a is faster.

    paired: sample k of both was taken in the same round (`interleaved`), so the same blocks are drawn for both and
    what disturbed both cancels out. Raises InputError where paired lists differ in length.
    """
    if paired and len(a) != len(b):
        raise InputError(f"paired samples come in equal numbers; got {len(a)} and {len(b)}")
    medians = resampled_medians(a), resampled_medians(b, seed=0 if paired else 1)
    return _interval(percentile(a, 50) / percentile(b, 50), medians[0] / medians[1])


def stability(samples: Sequence[float]) -> Stability:
    """Whether the medians of `WINDOWS` equal parts of the samples (N,) all lie within `TOLERANCE` of the whole's.

    Model Navigator lets the last windows decide; here all of them must agree, since no sample is dropped. Medians,
    because one slow request is a matter for p99 and not a measurement that did not settle.
    """
    values = _finite(samples)
    if len(values) < WINDOWS * WINDOW_SAMPLES:
        return Stability(False, [], None)
    medians = [float(np.median(part)) for part in np.array_split(values, WINDOWS)]
    whole = float(np.median(values))
    spread = max(abs(median - whole) for median in medians) / whole
    return Stability(spread <= TOLERANCE, medians, spread)


def _block_of(n: int) -> NDArray[np.int64]:
    """(n,) the block of each sample: blocks of about sqrt(n) neighbours, but at least 20 blocks where n allows."""
    blocks = max(int(n**0.5), min(n, _MIN_BLOCKS))
    return np.arange(n, dtype=np.int64) * blocks // n


def _draws(n: int, seed: int = 0) -> NDArray[np.float64]:
    """(RESAMPLES, blocks): how often each resample draws each block."""
    blocks = int(_block_of(n)[-1]) + 1
    drawn = np.random.default_rng(seed).multinomial(blocks, [1 / blocks] * blocks, RESAMPLES)
    return drawn.astype(np.float64)


def _percentiles(values: NDArray[np.float64], qs: Sequence[float], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(RESAMPLES, len(qs)): percentiles of every resample, read off its distribution function, without building it."""
    ordered, block = np.sort(values), _block_of(len(values))
    grid = ordered[np.linspace(0, len(ordered) - 1, min(len(ordered), _GRID)).round().astype(np.int64)]
    starts = np.searchsorted(block, np.arange(block[-1] + 2))
    parts = [np.sort(values[low:high]) for low, high in pairwise(starts)]
    below = np.array([np.searchsorted(part, grid, side="right") for part in parts], dtype=np.float64)  # (blocks, grid)
    share = (counts @ below) / (counts @ np.diff(starts))[:, None]  # (RESAMPLES, grid)
    found = np.array([(share < q / 100 - 1e-9).sum(axis=1) for q in qs]).T
    bounds: NDArray[np.float64] = grid[np.minimum(found, len(grid) - 1)]
    return bounds


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _finite(samples: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64).ravel()
    if not len(values) or not np.isfinite(values).all():
        raise InputError("a latency needs samples, each a finite number of milliseconds")
    return values
