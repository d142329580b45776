"""Confidence intervals by the percentile bootstrap, for metrics of grouped images and for latencies.

Why its own module: images of one patient are not independent, so a resample has to draw whole groups; and a
bootstrap of latency percentiles can be had without drawing any sample at all. Numpy only.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13; the cluster form draws groups
with replacement and keeps each one whole. Tests: `python -m pytest tests/test_stats.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemed.errors import InputError


class Interval(NamedTuple):
    """A figure with its confidence interval: the value on all samples, and the bounds of the bootstrap."""

    value: float
    low: float
    high: float


def group_bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    groups: Sequence[Hashable] | NDArray[Any],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The statistic of all samples, with the percentile interval over resampled groups.

    `statistic` takes indices (M,) int64 into the samples and gives a float; a resample draws as many groups as there
    are, with replacement, each with all of its samples (so M varies where groups differ in size). `groups`: (N,) one
    key per sample; one key each makes it the ordinary bootstrap. A resample for which the statistic is undefined (NaN,
    such as an AUROC without a positive) is left out; where all are, the bounds are NaN.

    Raises InputError without samples, or when `resamples` or `level` (0 < level < 1) is out of range.
    """
    _check(len(groups), resamples, level)
    values = np.array([statistic(rows) for rows in group_resamples(groups, resamples=resamples, seed=seed)])
    return _interval(float(statistic(np.arange(len(groups), dtype=np.int64))), values, level)


def group_resamples(
    groups: Sequence[Hashable] | NDArray[Any], *, resamples: int = 1000, seed: int = 0
) -> Iterator[NDArray[np.int64]]:
    """The indices (M,) of every resample that `group_bootstrap` judges: for statistics that are more than a number."""
    numbers: dict[Hashable, int] = {}
    group_of = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
    order = np.argsort(group_of, kind="stable")  # samples, sorted by group
    sizes = np.bincount(group_of)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = rng.integers(0, len(sizes), len(sizes))
        lengths = sizes[drawn]
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)  # 0, 1, ... inside each drawn group
        yield order[np.repeat(starts[drawn], lengths) + within]


def percentile_interval(
    samples: ArrayLike, q: float, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The q-th percentile (0 <= q <= 100, linear between samples) of independent samples (N,), with its interval.

    Equal in distribution to drawing N samples `resamples` times, without doing it: the k-th smallest of N uniform
    draws follows Beta(k, N + 1 - k), and given it the next one lies Beta(1, N - k) of the rest above (David and
    Nagaraja, Order Statistics, 2003, chapter 2); a uniform draw u picks the sorted sample floor(u * N).

    Raises InputError without samples, for a sample that is not finite, or for arguments out of range.
    """
    ordered = _finite(samples, resamples, level)
    if not 0 <= q <= 100:
        raise InputError(f"percentile {q} is out of range; give a number from 0 to 100")
    n = len(ordered)
    position = q / 100 * (n - 1)
    below = min(int(position), max(n - 2, 0))  # 0-based rank of the sample below, and how far on to the next
    fraction = position - below
    rng = np.random.default_rng(seed)
    first = rng.beta(below + 1, n - below, resamples)
    second = first + (1 - first) * rng.beta(1, n - below - 1, resamples) if n > 1 else first
    low, high = (ordered[np.minimum((u * n).astype(np.int64), n - 1)] for u in (first, second))
    return _interval(float(np.percentile(ordered, q)), low + fraction * (high - low), level)


def mean_interval(samples: ArrayLike, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean of independent samples (N,), with its interval. Raises InputError as `percentile_interval` does."""
    values = _finite(samples, resamples, level)
    rng = np.random.default_rng(seed)
    rows = max(1, 1_000_000 // len(values))  # at most 8 MB of indices at a time
    means = [
        values[rng.integers(0, len(values), (min(rows, resamples - k), len(values)))].mean(axis=1)
        for k in range(0, resamples, rows)
    ]
    return _interval(float(values.mean()), np.concatenate(means), level)


def _finite(samples: ArrayLike, resamples: int, level: float) -> NDArray[np.float64]:
    """The samples as a sorted float64 vector."""
    values = np.sort(np.asarray(samples, dtype=np.float64).ravel())
    _check(len(values), resamples, level)
    if not np.isfinite(values).all():
        raise InputError("a sample is not a finite number; an interval of it would mean nothing")
    return values


def _check(count: int, resamples: int, level: float) -> None:
    if count == 0:
        raise InputError("no samples to compute an interval from")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; give at least 1 (1000 is usual)")
    if not 0 < level < 1:
        raise InputError(f"level is {level}; give a number between 0 and 1, such as 0.95")


def _interval(value: float, resampled: NDArray[np.float64], level: float) -> Interval:
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
