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
from edgemed.stats import Interval, share

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
) -> dict[str, dict[str, Interval]]:
    """By figure of `BY_CLASS`, and "f1", and by class: the figure with its bounds of 95 % over groups.

    truth (N,), scores (N, K), groups (N,). Sensitivity is of the images of the class, specificity of the others, F1 of
    those that are of the class or decided as it; each draws the groups that hold one: see `stats.share`. The bounds are
    NaN where these are too few (`stats.FEWEST_GROUPS`), and all is where the figure is undefined.
    """
    decided = scores.argmax(axis=1)
    found: dict[str, dict[str, Interval]] = {key: {} for key in (*BY_CLASS, "f1")}
    for k, name in enumerate(classes):
        own, called = truth == k, decided == k
        found["sensitivity"][name] = share(called, own, groups)
        found["specificity"][name] = share(~called, ~own, groups)
        found["auroc_per_class"][name] = auroc_interval(own, scores[:, k], groups, resamples=resamples, seed=seed)
        # 2 TP / (2 TP + FP + FN) rises with TP / (TP + FP + FN), which is a share; a class that no label names has 0.
        both = share(own & called, own | called, groups) if own.any() or not called.any() else Interval(0.0, 0.0, 0.0)
        found["f1"][name] = Interval(*(2 * each / (1 + each) for each in both))
    return found


def figure_of_class(metrics: Mapping[str, Any], key: str, name: str) -> dict[str, float | None]:
    """{"value", "low", "high"} of a predictor's figure for a class."""
    return {"value": metrics[key].get(name), **metrics["intervals"][key][name]}
