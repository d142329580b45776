"""The AUROC of one class against the rest, sorted once for all resamples, and its interval over groups.

    auroc_of(ranked(scores, positive), times)       # times: how often a resample drew each image
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import nan

import numpy as np
from numpy.typing import NDArray

from edgemed.stats import FEWEST_GROUPS, Interval, group_times, interval_of_resamples, rarest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Ranking = tuple[Ints, Ints, Ints, Ints]


def auroc_interval(
    positive: NDArray[np.bool_],
    scores: Floats,
    groups: Sequence[Hashable],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The AUROC of scores (N,) for the positive images (N,), with its bounds over groups; NaN without both kinds.

    The bounds are NaN where either kind is in too few groups, and where no resample differs from another.
    """
    ranking = ranked(scores, positive)
    value = auroc_of(ranking, np.ones(len(scores), np.int64))
    if value is None:
        return Interval(nan, nan, nan)
    if (count := rarest(positive, groups)) < FEWEST_GROUPS:
        return Interval(value, nan, nan)
    drawn = [auroc_of(ranking, times) for times in group_times(groups, resamples=resamples, seed=seed)]
    return interval_of_resamples(value, np.array(drawn, np.float64), count)


def ranked(column: Floats, positive: NDArray[np.bool_]) -> Ranking:
    """What `auroc_of` needs of one class's scores (N,), sorted once for all resamples.

    Returns the rows of the positives (P,), those of the negatives in ascending order of score (N - P,), and for every
    positive how many of these score strictly below it (P,) and at most like it (P,).
    """
    positives, negatives = np.flatnonzero(positive), np.flatnonzero(~positive)
    negatives = negatives[np.argsort(column[negatives], kind="stable")]
    ascending = column[negatives]
    below = np.searchsorted(ascending, column[positives], side="left")
    at_most = np.searchsorted(ascending, column[positives], side="right")
    return positives, negatives, below, at_most


def auroc_of(ranking: Ranking, times: Ints) -> float | None:
    """The share of (positive, negative) pairs in the right order, ties half (Mann and Whitney's U over its maximum).

    times (N,): how often each image occurs. None where the images drawn lack positives or negatives.
    """
    positives, negatives, below, at_most = ranking
    drawn = times[positives]
    passed = np.concatenate([[0], np.cumsum(times[negatives])])  # negatives among the first i of the ascending order
    pairs = int(drawn.sum()) * int(passed[-1])
    if pairs == 0:
        return None
    return float(drawn @ (passed[below] + passed[at_most]) / 2 / pairs)
