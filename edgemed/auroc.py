"""The AUROC of one class against the rest, sorted once for all resamples, and its interval over groups.

    ranked(scores, positive).auroc(times)       # times: how often a resample drew each image
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import compress
from math import nan
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from edgemed.stats import (
    FEWEST_GROUPS,
    LEVEL,
    Interval,
    effective_groups,
    effective_groups_of_rarest,
    group_times,
    interval_of_resamples,
    wider,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


class Ranking(NamedTuple):
    """The images of one class against the rest, in the order of their scores."""

    positives: Ints  # (P,) rows of the positives
    negatives: Ints  # (N - P,) rows of the others, by ascending score
    below: Ints  # (P,) how many of the others score strictly below each positive
    at_most: Ints  # (P,) and at most like it

    def auroc(self, times: Ints) -> float | None:
        """The share of (positive, negative) pairs in the right order, ties half: Mann and Whitney's U over its maximum.

        times (N,): how often each image occurs. None where the images drawn lack positives or negatives.
        """
        drawn = times[self.positives]
        passed = np.concatenate([[0], np.cumsum(times[self.negatives])])  # of the others, among the first i
        pairs = int(drawn.sum()) * int(passed[-1])
        if pairs == 0:
            return None
        return float(drawn @ (passed[self.below] + passed[self.at_most]) / 2 / pairs)


def auroc_interval(
    positive: NDArray[np.bool_],
    scores: Floats,
    groups: Sequence[Hashable],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The AUROC of scores (N,) for the positive images (N,), with its bounds over groups; NaN without both kinds.

    They hold the percentiles of the resamples and `score_interval`. Near 1, the percentiles alone promise too much: of
    twelve positives, a true 0.98 lies below in one of five cases. NaN where either kind is in too few groups.
    """
    ranking = ranked(scores, positive)
    value = ranking.auroc(np.ones(len(scores), np.int64))
    if value is None:
        return Interval(nan, nan, nan)
    if (count := effective_groups_of_rarest(positive, groups)) < FEWEST_GROUPS:
        return Interval(value, nan, nan)
    drawn = [ranking.auroc(times) for times in group_times(groups, resamples=resamples, seed=seed)]
    worth = [effective_groups([*compress(groups, each.tolist())]) for each in (positive, ~positive)]
    return wider(interval_of_resamples(value, np.array(drawn, np.float64), count), score_interval(value, *worth))


def score_interval(value: float, positives: float, negatives: float) -> Interval:
    """An AUROC with the values that are within 1.96 of their own standard errors from it, by effective groups of each.

    The standard errors are Hanley and McNeil's (1982), made alike in both kinds: Newcombe's (2006) method 5.
    """
    others = (positives + negatives) / 2 - 1

    def excess(true: float) -> float:
        spread = 1 + others * (1 - true) / (2 - true) + others * true / (1 + true)
        return (value - true) ** 2 - Z**2 * true * (1 - true) * spread / (positives * negatives)

    # At the value itself nothing is in excess, and below and above it less than nothing.
    low = brentq(excess, 0, value - min(1e-9, value / 2)) if value > 0 else 0.0
    high = brentq(excess, value + min(1e-9, (1 - value) / 2), 1) if value < 1 else 1.0
    return Interval(value, float(low), float(high))


def ranked(column: Floats, positive: NDArray[np.bool_]) -> Ranking:
    """One class's scores (N,), sorted once for all resamples."""
    positives, negatives = np.flatnonzero(positive), np.flatnonzero(~positive)
    negatives = negatives[np.argsort(column[negatives], kind="stable")]
    ascending = column[negatives]
    below = np.searchsorted(ascending, column[positives], side="left")
    at_most = np.searchsorted(ascending, column[positives], side="right")
    return Ranking(positives, negatives, below, at_most)
