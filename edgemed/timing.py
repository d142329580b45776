"""How long calls take, and what may be concluded from the samples. Numpy only; knows nothing of bundles or runtimes.

Why its own module: `edgemed bench` and every script in `benchmarks/` measure with the same few functions, so that their
figures can be compared. Every sample counts: none is dropped, clipped or averaged away. Neighbours in time resemble
each other (a neighbour process, a clock that falls), so intervals come from a bootstrap that draws whole blocks of
neighbours, half a second or more; one that draws single samples would promise far too much. Of a disturbance that
lasts as long as a block or longer they hold less than they say, and of what differs from run to run, nothing. Even of
independent samples (simulated), the 95 % interval of the median of 10 to 30 misses it in 8 % of cases, of 100 in 4 %;
that of the 90th percentile of 100 in 9 %, of the 99th of 1,000 in 8 %.

    rounds = interleaved({"old": old, "new": new}, rounds=50)
    ratio_interval(rounds["new"], rounds["old"], paired=True)        # Interval(value=0.83, low=0.81, high=0.86)

Sources: non-overlapping block bootstrap of Carlstein, Annals of Statistics 14 (1986), its percentiles expanded for few
blocks (`stats.tail`); windows that have to agree before a measurement is settled are Triton Model Navigator's. Tests:
`python -m pytest tests/test_timing.py`.
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
from edgemed.stats import Interval, tail

Call = Callable[[], object]

RESAMPLES = 1000
WINDOWS = 5
WINDOW_SAMPLES = 3  # fewer have no median to speak of
FEWEST_SAMPLES = 6  # for bounds; the median of five lies beyond all of them once in sixteen times
SAMPLES_ABOVE = 10  # a percentile above the median, for a bound: the true one lies above all of too few samples
TOLERANCE = 0.10  # by which a window's median may differ from that of all samples; less of a drift widens intervals
BLOCK_SECONDS, BLOCKS = 0.5, (10, 100)  # of each block at least, where there is time for so many
_GRID = 1000  # distinct bounds that an interval can take, and as many more next to each percentile


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


def percentile_intervals(samples: Sequence[float], qs: Sequence[float], blocks: int | None = None) -> list[Interval]:
    """`percentile` at each q, with 95 % block-bootstrap intervals, of samples (N,) in ms in the order of time.

    blocks: how many; None = `block_count` of samples that were taken one after the other. The bounds are NaN with fewer
    than `FEWEST_SAMPLES`; above the median, with fewer than `SAMPLES_ABOVE` beyond the percentile.
    """
    drawn, count = resampled_percentiles(samples, qs, blocks), blocks or block_count(samples)
    found = [_interval(percentile(samples, q), column, count) for q, column in zip(qs, drawn.T, strict=True)]
    few = [q > 50 and len(samples) * (100 - q) < 100 * SAMPLES_ABOVE for q in qs]
    return [Interval(each.value, nan, nan) if bare else each for each, bare in zip(found, few, strict=True)]


def mean_interval(samples: Sequence[float], blocks: int | None = None) -> Interval:
    """The mean with its 95 % block-bootstrap interval, of samples and blocks as in `percentile_intervals`."""
    values = _finite(samples)
    count = blocks or block_count(values)
    return _interval(float(values.mean()), resampled_means(samples, count), count)


def resampled_percentiles(
    samples: Sequence[float], qs: Sequence[float], blocks: int | None = None
) -> NDArray[np.float64]:
    """(RESAMPLES, Q) percentiles of block-bootstrap resamples of samples and blocks as in `percentile_intervals`."""
    return _percentiles(_finite(samples), qs, _draws(blocks or block_count(samples)))


def resampled_means(samples: Sequence[float], blocks: int | None = None) -> NDArray[np.float64]:
    """(RESAMPLES,) means of block-bootstrap resamples of samples and blocks as in `percentile_intervals`."""
    values, count = _finite(samples), blocks or block_count(samples)
    counts, block = _draws(count), _block_of(len(values), count)
    means: NDArray[np.float64] = (counts @ np.bincount(block, weights=values)) / (counts @ np.bincount(block))
    return means


def block_count(samples: Sequence[float] | NDArray[np.float64], seconds: float | None = None) -> int:
    """Into how many blocks of neighbours samples (N,) in ms are cut, as `BLOCK_SECONDS` and `BLOCKS` say; at most N.

    seconds: how long they took, None = their sum, as of samples that were taken one after the other. Seconds and not
    numbers of samples, since what disturbs a machine lasts as long for a fast engine as for a slow one.
    """
    least, most = BLOCKS
    whole = float(sum(samples)) / 1e3 if seconds is None else seconds
    return min(len(samples), most, max(least, int(whole / BLOCK_SECONDS)))


def ratio_interval(a: Sequence[float], b: Sequence[float], *, paired: bool = False) -> Interval:
    """The median of `a` over the median of `b`, with its 95 % block-bootstrap interval. Below 1: a is faster.

    paired: sample k of both was taken in the same round (`interleaved`), so the same blocks are drawn for both and
    what disturbed both cancels out. Raises InputError where paired lists differ in length.
    """
    of_a, of_b, blocks = _medians(a, b, paired)
    return _interval(percentile(a, 50) / percentile(b, 50), of_a / of_b, blocks)


def difference_interval(a: Sequence[float], b: Sequence[float]) -> Interval:
    """The median of `a` minus the median of `b` in ms, paired as in `ratio_interval`, with its 95 % interval."""
    of_a, of_b, blocks = _medians(a, b, paired=True)
    return _interval(percentile(a, 50) - percentile(b, 50), of_a - of_b, blocks)


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


def _medians(
    a: Sequence[float], b: Sequence[float], paired: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Medians of resamples of each, and the number of blocks that they are of."""
    if not paired:
        draws = _draws(block_count(a)), _draws(block_count(b), seed=1)
    elif len(a) == len(b):
        draws = (_draws(min(len(a), block_count([*a, *b]))),) * 2
    else:
        raise InputError(f"paired samples come in equal numbers; got {len(a)} and {len(b)}")
    of_a, of_b = (_percentiles(_finite(each), (50,), drawn)[:, 0] for each, drawn in zip((a, b), draws, strict=True))
    return of_a, of_b, min(drawn.shape[1] for drawn in draws)


def _block_of(n: int, blocks: int) -> NDArray[np.int64]:
    """(n,) the block of each sample, all of one size but for one sample."""
    return np.arange(n, dtype=np.int64) * blocks // n


def _draws(blocks: int, seed: int = 0) -> NDArray[np.float64]:
    """(RESAMPLES, blocks): how often each resample draws each block."""
    drawn = np.random.default_rng(seed).multinomial(blocks, [1 / blocks] * blocks, RESAMPLES)
    return drawn.astype(np.float64)


def _percentiles(values: NDArray[np.float64], qs: Sequence[float], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(RESAMPLES, len(qs)): percentiles of every resample, read off its distribution function, without building it."""
    n, (_, blocks) = len(values), counts.shape
    near = [np.linspace(q / 100 - 0.01, q / 100 + 0.01, _GRID) for q in qs]  # of many samples, bounds lie close by
    ranks = np.concatenate([np.linspace(0, 1, _GRID), *near]).clip(0, 1) * (n - 1)
    ordered, block = np.sort(values), _block_of(n, blocks)
    grid = ordered[np.unique(ranks.round().astype(np.int64))]
    starts = np.searchsorted(block, np.arange(blocks + 1))
    parts = [np.sort(values[low:high]) for low, high in pairwise(starts)]
    below = np.array([np.searchsorted(part, grid, side="right") for part in parts], dtype=np.float64)  # (blocks, grid)
    share = (counts @ below) / (counts @ np.diff(starts))[:, None]  # (RESAMPLES, grid)
    found = np.array([(share < q / 100 - 1e-9).sum(axis=1) for q in qs]).T
    bounds: NDArray[np.float64] = grid[np.minimum(found, len(grid) - 1)]
    return bounds


def _interval(value: float, resampled: NDArray[np.float64], blocks: int) -> Interval:
    if blocks < FEWEST_SAMPLES:
        return Interval(value, nan, nan)
    low, high = np.quantile(resampled, [tail(blocks), 1 - tail(blocks)])
    return Interval(value, float(low), float(high))


def _finite(samples: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64).ravel()
    if not len(values) or not np.isfinite(values).all():
        raise InputError("a latency needs samples, each a finite number of milliseconds")
    return values
