"""The curves behind the report's charts: reliability, risk against coverage, ROC. Arrays in, arrays out.

Why apart from the drawing: they are figures that a reader relies on, so they are tested as numbers.

    edgemed train DATA --out RUN        # writes RUN/report.html
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemed.auroc import auroc_interval
from edgemed.evaluate import Table
from edgemed.metrics import equal_mass
from edgemed.operating import disagreement
from edgemed.stats import (
    FEWEST_GROUPS,
    Interval,
    effective_groups,
    effective_groups_of_rarest,
    exact,
    group_times,
    tail,
)

Floats = NDArray[np.float64]
POINTS = 100
"""A risk-coverage curve is given at so many coverages, evenly spaced up to 1."""


class Reliability(NamedTuple):
    """Bins of equal mass by confidence, (B,) each: what was claimed, what held, and its 95 % interval."""

    confidence: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    images: NDArray[np.int64]


class Roc(NamedTuple):
    """One class against the rest: sensitivity over the false-positive rate, with a 95 % band; the area under it."""

    rates: Floats  # (P,) false-positive rates from 0 to 1
    sensitivity: Floats  # (P,)
    low: Floats
    high: Floats
    area: Interval


def reliability(table: Table) -> Reliability:
    """The bins of `metrics.expected_calibration_error`: images sorted by their largest probability, equally many each.

    The interval is Wilson's (1927), with the groups of a bin for its n: a bin that is all right has one too.
    """
    shares = table.probabilities
    confidence, right = shares.max(axis=1).astype(np.float64), shares.argmax(axis=1) == table.labels
    bin_of = equal_mass(confidence)
    used, images = np.unique(bin_of, return_counts=True)
    accuracy = np.bincount(bin_of, weights=right)[used] / images
    claimed = np.bincount(bin_of, weights=confidence)[used] / images
    groups = np.array(table.groups)
    n = np.array([len(set(groups[bin_of == k])) for k in used], np.float64)
    z = 1.96
    centre = (accuracy + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(accuracy * (1 - accuracy) / n + z**2 / (4 * n**2))
    return Reliability(claimed, accuracy, centre - half, centre + half, images)


def risk_coverage(table: Table) -> dict[str, Any]:
    """The error among the images that are answered, when the doubtful ones are not; ready for JSON.

    By `disagreement` of the members (what an operating point refers by) and, to compare, by `confidence`, the largest
    probability: `risk` at each `coverage`, and `area`, the mean risk over all coverages (Geifman and El-Yaniv 2017,
    arXiv 1705.08500), lower is better. Images of equal doubt are answered together: their errors are spread evenly.
    """
    shares = table.probabilities
    wrong = (shares.argmax(axis=1) != table.labels).astype(np.float64)
    counts = np.unique(np.ceil(np.linspace(1 / POINTS, 1, POINTS) * len(wrong) - 1e-9).astype(np.int64))
    result: dict[str, Any] = {"coverage": (counts / len(wrong)).tolist()}
    doubts = {"disagreement": disagreement(shares, table.members), "confidence": -shares.max(axis=1)}
    for name, doubt in doubts.items():
        _, inverse, ties = np.unique(doubt, return_inverse=True, return_counts=True)
        even = (np.bincount(inverse, weights=wrong) / ties)[inverse][np.argsort(inverse, kind="stable")]
        risk = np.cumsum(even) / np.arange(1, len(wrong) + 1)
        result[name] = {"risk": risk[counts - 1].tolist(), "area": float(risk.mean())}
    return result


def roc(table: Table, positive: int, resamples: int = 300) -> Roc | None:
    """The ROC of class `positive` against the rest, bootstrapped over groups; None without both kinds of image.

    The band holds `stats.exact` of the sensitivity, too: at the height of a curve no resample differs. Band and bounds
    are NaN where either kind is in too few groups; the area is that of `metrics.json`.
    """
    scores, truth = table.probabilities[:, positive].astype(np.float64), table.labels == positive
    if truth.all() or not truth.any():
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are passed together
    rates = np.linspace(0, 1, 101)

    def curve(times: NDArray[np.int64]) -> Floats | None:
        hits, alarms = (np.append(0, np.cumsum((times * flag)[order])[last]) for flag in (truth, ~truth))
        if not hits[-1] or not alarms[-1]:
            return None
        x, y = alarms / alarms[-1], hits / hits[-1]
        # At a rate where the curve rises straight up, its upper end: what a threshold there attains.
        keep = np.append(np.diff(x) > 0, True)
        return np.asarray(np.interp(rates, x[keep], y[keep]), np.float64)

    whole, area = curve(np.ones(len(truth), np.int64)), auroc_interval(truth, scores, table.groups)
    assert whole is not None
    if (count := effective_groups_of_rarest(truth, table.groups)) < FEWEST_GROUPS:
        nowhere = np.full(len(rates), np.nan)
        return Roc(rates, whole, nowhere, nowhere, area)
    drawn = [found for times in group_times(table.groups, resamples=resamples) if (found := curve(times)) is not None]
    worth = effective_groups([group for group, own in zip(table.groups, truth.tolist(), strict=True) if own])
    alone = np.array([exact(min(each, 1.0), worth) for each in whole.tolist()])
    low, high = np.quantile(drawn, [tail(count), 1 - tail(count)], axis=0)
    return Roc(rates, whole, np.minimum(low, alone[:, 1]), np.maximum(high, alone[:, 2]), area)
