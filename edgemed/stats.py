"""Confidence intervals by the percentile bootstrap, for metrics of grouped images.

Why its own module: images of one patient are not independent, so a resample has to draw whole groups. Latencies have
intervals of their own kind: see `timing.py`. Numpy only.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13; the cluster form draws groups
with replacement and keeps each one whole. Tests: `python -m pytest tests/test_stats.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import InputError

LEVEL = 0.95  # of every interval
FEWEST_GROUPS = 10
"""From fewer groups no bounds are given. Of 95 % intervals for two predictors that do not differ, with 20 images a
group, 5 % leave out 0 with 15 groups, 8 % with 8, 13 % with 5, 44 % with 2, and nearly all with one."""


class Interval(NamedTuple):
    """A figure with its confidence interval: the value on all samples, and the bounds of the bootstrap."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """Ready for JSON: what is not a finite number is None."""
        return {name: float(value) if math.isfinite(value) else None for name, value in self._asdict().items()}


def group_bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    groups: Sequence[Hashable] | NDArray[Any],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The statistic of all samples, with the percentile interval over resampled groups.

    `statistic` takes indices (M,) int64 into the samples and gives a float; a resample draws as many groups as there
    are, with replacement, each with all of its samples (so M varies where groups differ in size). `groups`: (N,) one
    key per sample; one key each makes it the ordinary bootstrap. A resample for which the statistic is undefined (NaN,
    such as an AUROC without a positive) is left out; where all are, and below `FEWEST_GROUPS`, the bounds are NaN.

    Raises InputError without samples, or when `resamples` is below 1.
    """
    _check(len(groups), resamples)
    value = float(statistic(np.arange(len(groups), dtype=np.int64)))
    if len(set(groups)) < FEWEST_GROUPS:
        return Interval(value, math.nan, math.nan)
    values = np.array([statistic(rows) for rows in group_resamples(groups, resamples=resamples, seed=seed)])
    return interval_of_resamples(value, values)


def share(
    hits: NDArray[np.bool_],
    among: NDArray[np.bool_],
    groups: Sequence[Hashable],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The share of hits (N,) among the samples that count (N,), with its interval over the groups that hold one.

    Where no resample differs from another, as where all are hits, it is Clopper and Pearson's (1934) for so many groups
    (needs SciPy). NaN without a sample that counts.
    """
    if not among.any():
        return Interval(math.nan, math.nan, math.nan)
    kept = hits[among].astype(np.int64)
    own = [group for group, counts in zip(groups, among.tolist(), strict=True) if counts]
    value, count = float(kept.mean()), len(set(own))
    if count < FEWEST_GROUPS:
        return Interval(value, math.nan, math.nan)
    drawn = group_times(own, resamples=resamples, seed=seed)
    found = interval_of_resamples(value, np.array([times @ kept / times.sum() for times in drawn]))
    return exact(value, count) if found.low == found.high else found


def exact(value: float, groups: int) -> Interval:
    """A share, nearly 0 or 1, with Clopper and Pearson's 95 % interval for so many independent groups."""
    from scipy.stats import binomtest  # not on every device

    low, high = binomtest(round(value * groups), groups).proportion_ci()
    return Interval(value, float(low), float(high))


def group_resamples(
    groups: Sequence[Hashable] | NDArray[Any], *, resamples: int = 1000, seed: int = 0
) -> Iterator[NDArray[np.int64]]:
    """The indices (M,) of every resample that `group_bootstrap` judges."""
    group_of = _numbered(groups)
    order = np.argsort(group_of, kind="stable")  # samples, sorted by group
    sizes = np.bincount(group_of)
    starts = np.cumsum(sizes) - sizes
    for drawn in _drawn(len(sizes), resamples, seed):
        lengths = sizes[drawn]
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)  # 0, 1, ... inside each drawn group
        yield order[np.repeat(starts[drawn], lengths) + within]


def group_times(
    groups: Sequence[Hashable] | NDArray[Any], *, resamples: int = 1000, seed: int = 0
) -> Iterator[NDArray[np.int64]]:
    """How often each sample (N,) is in every one of `group_resamples`: for statistics that only count, much faster."""
    group_of = _numbered(groups)
    count = int(group_of.max()) + 1
    for drawn in _drawn(count, resamples, seed):
        yield np.bincount(drawn, minlength=count)[group_of]


def _numbered(groups: Sequence[Hashable] | NDArray[Any]) -> NDArray[np.int64]:
    """The number of each sample's group (N,), from 0, in the order in which they appear."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def _drawn(count: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The groups of every resample: as many as there are, with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield rng.integers(0, count, count)


def _check(count: int, resamples: int) -> None:
    if count == 0:
        raise InputError("no samples to compute an interval from")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; give at least 1 (1000 is usual)")


def interval_of_resamples(value: float, resampled: NDArray[np.float64]) -> Interval:
    """The value with the percentile bounds of its resamples (R,); those that are undefined (NaN) are left out."""
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
