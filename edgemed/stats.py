"""95 % confidence intervals for metrics of grouped images: a bootstrap over groups, and of shares an exact one.

Why its own module: images of one patient are not independent, so a resample has to draw whole groups, and a share
counts for less than its images. Latencies have intervals of their own kind: see `timing.py`. NumPy; SciPy where an
interval is computed, which not every device has.

Sources: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13, where the cluster form draws
groups with replacement and keeps each one whole; its percentiles are expanded as Hesterberg has it (2015, arXiv
1411.5279), since plain ones are too narrow for few groups. Shares: Korn and Graubard, Survey Methodology 24 (1998).
Tests: `python -m pytest tests/test_stats.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import compress
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import InputError

LEVEL = 0.95  # of every interval
TOO_FEW = 6
"""From fewer groups that differ from the rest, nothing is told: five of five, by the sign test, have p = 0.06."""
FEWEST_GROUPS = 10
"""Below this effective number of groups no bounds are given. Measured, with 20 images a group: 95 % intervals of the
difference of two predictors that do not differ leave out 0 in 6 % of cases at 10 groups and in 5 % at 15, and in 6 %
where they differ by patient. By plain percentiles it would be 9 % and 7 %.
"""


class Interval(NamedTuple):
    """A figure with its confidence interval: the value on all samples, and the bounds, NaN where there are none."""

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
    fewest: float | None = None,
) -> Interval:
    """The statistic of all samples, with the interval of `interval_of_resamples` over resampled groups.

    `statistic` takes indices (M,) int64 into the samples and gives a float; a resample draws as many groups as there
    are, with replacement, each with all of its samples (so M varies where groups differ in size). `groups`: (N,) one
    key per sample; one key each makes it the ordinary bootstrap. A resample for which the statistic is undefined (NaN,
    such as an AUROC without a positive) is left out; where all are or none differs, and below `FEWEST_GROUPS`, the
    bounds are NaN.
    fewest: of how many groups the figure is, where it is less sure than all of them make it, as an average over classes
    is: see `effective_groups_of_rarest`.

    Raises InputError without samples, or when `resamples` is below 1.
    """
    _check(len(groups), resamples)
    value = float(statistic(np.arange(len(groups), dtype=np.int64)))
    count = effective_groups(groups) if fewest is None else fewest
    if count < FEWEST_GROUPS:
        return Interval(value, math.nan, math.nan)
    values = np.array([statistic(rows) for rows in group_resamples(groups, resamples=resamples, seed=seed)])
    return interval_of_resamples(value, values, count)


def share(hits: NDArray[np.bool_], among: NDArray[np.bool_], groups: Sequence[Hashable]) -> Interval:
    """The share of hits (N,) among the samples that count (N,), with its interval over the groups that hold one.

    Clopper and Pearson's (1934) for as many independent images as these are worth, which is Korn and Graubard's: their
    number over the design effect, less a little for the few groups that it is estimated from, at most all of them. One
    image a group is worth one. Where hits, or misses, are in fewer than `TOO_FEW` groups, little tells how alike the
    images of a group are, and the interval holds that of as many images as there are effective groups, too. The bounds
    are NaN with fewer than `FEWEST_GROUPS`; all is NaN without a sample that counts. Too narrow where few of many
    groups hold most images, and these are alike.
    """
    from scipy.stats import t  # not on every device

    if not among.any():
        return Interval(math.nan, math.nan, math.nan)
    kept, group_of = hits[among].astype(np.float64), _numbered([*compress(groups, among.tolist())])
    value, images, count = float(kept.mean()), len(kept), effective_groups(group_of)
    if count < FEWEST_GROUPS:
        return Interval(value, math.nan, math.nan)
    if value in (0.0, 1.0):
        return exact(value, count)
    of_groups = np.bincount(group_of, weights=kept - value)  # by how much the hits of each exceed what they would be
    variance = float(of_groups @ of_groups) * len(of_groups) / (len(of_groups) - 1) / images**2
    effect = variance * (images - 1) / (value * (1 - value))
    certain = (t.ppf((1 + LEVEL) / 2, images - 1) / t.ppf((1 + LEVEL) / 2, count - 1)) ** 2
    found = exact(value, images if effect <= certain else images * certain / effect)
    rarer = kept == (value <= 0.5)
    return found if len(set(group_of[rarer])) >= TOO_FEW else wider(found, exact(value, count))


def exact(value: float, images: float) -> Interval:
    """A share with Clopper and Pearson's 95 % interval for so many independent images, which may be a fraction."""
    from scipy.stats import beta  # not on every device

    hits, tail = value * images, (1 - LEVEL) / 2
    low = beta.ppf(tail, hits, images - hits + 1) if value > 0 else 0.0
    high = beta.ppf(1 - tail, hits + 1, images - hits) if value < 1 else 1.0
    return Interval(value, float(low), float(high))


def wider(a: Interval, b: Interval) -> Interval:
    """What holds both intervals of a value; where one has no bounds, the other."""
    return Interval(a.value, float(np.fmin(a.low, b.low)), float(np.fmax(a.high, b.high)))


def mean_of(parts: Sequence[Interval]) -> Interval:
    """The mean of figures that are independent, such as shares of different classes, from their own intervals.

    Zou and Donner's (2008) recovery of variances: a bound's distance from the mean is the root of the sum of squares of
    the parts' own distances, over the number of parts. NaN where a part has no bounds.
    """
    value, low, high = (np.array(side) for side in zip(*parts, strict=True))
    below, above = (float(np.linalg.norm(value - side)) / len(parts) for side in (low, high))
    return Interval(float(value.mean()), float(value.mean()) - below, float(value.mean()) + above)


def mean_of_bounds(parts: Sequence[Interval]) -> Interval:
    """The mean of figures that may rise and fall together, such as F1s, with the means of their bounds."""
    return Interval(*np.mean(parts, axis=0).tolist())


def effective_groups(groups: Sequence[Hashable] | NDArray[Any]) -> float:
    """So many groups of one size tell as much: Kish's (1965) n^2 / sum of squared sizes; of equal ones, their number.

    Of ten groups, one of which holds 40 of 49 samples: 1.5.
    """
    sizes = np.bincount(_numbered(groups))
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def effective_groups_of_rarest(labels: NDArray[Any], groups: Sequence[Hashable] | NDArray[Any]) -> float:
    """The `effective_groups` of the label (N,) for which it is lowest: what a mean over labels rests on."""
    return min(effective_groups([*compress(groups, (labels == label).tolist())]) for label in np.unique(labels))


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


def interval_of_resamples(value: float, resampled: NDArray[np.float64], groups: float) -> Interval:
    """The value with the expanded percentiles of its resamples (R,); those that are undefined (NaN) are left out.

    groups: how many the figure is of, see `tail`. The bounds are NaN where no resample differs from another: that these
    samples leave no doubt does not mean that others would not.
    """
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(defined, [tail(groups), 1 - tail(groups)])
    return Interval(value, float(low), float(high)) if low < high else Interval(value, math.nan, math.nan)


def tail(groups: float) -> float:
    """The share of resamples beyond either bound: 0.025 of many groups, 0.009 of ten, whose resamples vary too little.

    Hesterberg's expanded percentile: what makes the bounds of a mean those of Student's t and the unbiased deviation.
    """
    return NormalDist().cdf(-math.sqrt(groups / (groups - 1)) * t_quantile(groups - 1))


def t_quantile(degrees: float) -> float:
    """By how many standard errors the 95 % interval of a mean reaches to either side: Student's t, as 2.26 for 9.

    Abramowitz and Stegun's 26.7.5, right to 1e-3 from 4 degrees of freedom on: not every device has SciPy.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))
