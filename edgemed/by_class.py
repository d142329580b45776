"""How well each class is told from the rest: the intervals of its sensitivity, specificity and AUROC, over groups.

Why: these are what a clinician reads first, and of a rare class they are the least certain figures of all. A part of
`metrics.json`, in which they stand beside the figures:

    "sensitivity": {"melanoma": 0.712}, "intervals": {"sensitivity": {"melanoma": {"low": 0.61, "high": 0.8}}}
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.auroc import auroc_interval
from edgemed.stats import share

BY_CLASS = ("sensitivity", "specificity", "auroc_per_class")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
            share(decided == k, own, groups),
            share(decided != k, ~own, groups),
            auroc_interval(own, scores[:, k], groups, resamples=resamples, seed=seed),
        )
        for key, interval in zip(BY_CLASS, intervals, strict=True):
            bounds = interval.as_dict()
            found[key][name] = {"low": bounds["low"], "high": bounds["high"]}
    return found


def figure_of_class(metrics: Mapping[str, Any], key: str, name: str) -> dict[str, float | None]:
    """{"value", "low", "high"} of a predictor's figure for a class."""
    return {"value": metrics[key].get(name), **metrics["intervals"][key][name]}
