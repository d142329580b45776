"""How well each class is told from the rest: the intervals of its sensitivity, specificity and AUROC, over groups.

Why: these are what a clinician reads first, and of a rare class they are the least certain figures of all. A part of
`metrics.json`, in which they stand beside the figures:

    "sensitivity": {"melanoma": 0.712}, "intervals": {"sensitivity": {"melanoma": {"low": 0.61, "high": 0.8}}}
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import compress
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.stats import FEWEST_GROUPS, Interval, group_times, interval_of_resamples, share

BY_CLASS = ("sensitivity", "specificity", "auroc_per_class")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Ranking = tuple[Ints, Ints, Ints, Ints]


def intervals_by_class(
    truth: Ints,
    scores: Floats,
    groups: Sequence[Hashable],
    classes: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """By figure of `BY_CLASS` and class: {"low", "high"}, the bounds of 95 % over groups; ready for JSON.

    truth (N,), scores (N, K), groups (N,). Sensitivity is of the images of the class, specificity of the others, and
    each draws the groups that hold one: see `stats.share`. The bounds are None where these are too few
    (`stats.FEWEST_GROUPS`), where the figure is undefined, and of an AUROC that no resample changes, such as 1.
    """
    decided = scores.argmax(axis=1)
    found: dict[str, dict[str, dict[str, float | None]]] = {key: {} for key in BY_CLASS}
    for k, name in enumerate(classes):
        own = truth == k
        intervals = (
            share(decided == k, own, groups, resamples=resamples, seed=seed),
            share(decided != k, ~own, groups, resamples=resamples, seed=seed),
            auroc_interval(own, scores[:, k], groups, resamples=resamples, seed=seed),
        )
        for key, interval in zip(BY_CLASS, intervals, strict=True):
            bounds = interval.as_dict()
            found[key][name] = {"low": bounds["low"], "high": bounds["high"]}
    return found


def figure_of_class(metrics: Mapping[str, Any], key: str, name: str) -> dict[str, float | None]:
    """{"value", "low", "high"} of a predictor's figure for a class; the metrics of an older version have no bounds."""
    bounds = metrics.get("intervals", {}).get(key, {}).get(name, {"low": None, "high": None})
    return {"value": metrics[key].get(name), **bounds}


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
    if value is None or in_few_groups(positive, groups):
        return Interval(nan if value is None else value, nan, nan)
    drawn = [auroc_of(ranking, times) for times in group_times(groups, resamples=resamples, seed=seed)]
    found = interval_of_resamples(value, np.array(drawn, np.float64))
    return Interval(value, nan, nan) if found.low == found.high else found


def in_few_groups(positive: NDArray[np.bool_], groups: Sequence[Hashable]) -> bool:
    """Whether the positive images (N,), or the others, are in too few groups for an interval."""
    return any(len(set(compress(groups, side.tolist()))) < FEWEST_GROUPS for side in (positive, ~positive))


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
