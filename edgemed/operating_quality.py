"""What operating points and referral are worth on the test split, the folds pooled: a part of `metrics.json`.

    edgemed calibrate RUN --positive malignant --sensitivity 0.95
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemed import stats
from edgemed.curves import risk_coverage
from edgemed.errors import InputError
from edgemed.evaluate import Table
from edgemed.manifest import OperatingPoint
from edgemed.operating import POINT_NAME, read_operating_point
from edgemed.operating_fit import Flags, Outcomes, allowed_failures, outcomes
from edgemed.predictions import joined, read_table
from edgemed.stats import effective_groups, group_bootstrap


class Part(NamedTuple):
    """An operating point, the rows that it was fitted on (None where they are not at hand), and those that judge it."""

    point: OperatingPoint
    calibration: Table | None
    test: Table


def part_of_run(run: Path, classes: Sequence[str]) -> Part | None:
    """A finished run's operating point with its rows; None where it has no such point."""
    point = read_operating_point(run)
    if point is None:
        return None
    return Part(point, read_table(run, classes, "calibration"), read_table(run, classes, "test"))


def require_judged(run: Path, runs: Sequence[Path], metrics: Mapping[str, Any]) -> None:
    """Raise InputError unless `metrics` of `run` judges the operating points of `runs`, itself or its folds.

    A killed `edgemed calibrate` leaves others: a report would state what no decision is made by.
    """
    stated = (metrics["operating"] or {}).get("points", [])
    found = [point.model_dump(mode="json") for one in runs if (point := read_operating_point(one)) is not None]
    if stated != found and (stated or runs == [run]):  # folds of unlike points are not judged together
        raise InputError(
            f"{run}: {POINT_NAME} is not the one that metrics.json judges; run `edgemed calibrate` again"
        )


def selective_metrics(runs: Sequence[Path], classes: Sequence[str]) -> dict[str, Any]:
    """What `metrics.json` says of referral and operating point; `runs`: the run, or the folds, which are pooled."""
    found = [part_of_run(run, classes) for run in runs]
    test = joined([read_table(run, classes, "test") for run in runs])
    parts = [part for part in found if part]
    if len({part and _wanted(part.point) for part in found}) > 1:
        logging.getLogger("edgemed").warning(
            "the folds have unlike operating points, so none is judged; run `edgemed calibrate` on the run of all folds"
        )
        parts = []
    return {"risk_coverage": risk_coverage(test), "operating": judged(parts, classes) if parts else None}


def _wanted(point: OperatingPoint) -> tuple[object, ...]:
    """What a point was fitted for: points that were fitted for other things cannot be pooled."""
    return point.positive, point.target, point.target_value, point.coverage, point.max_disagreement is None


def judged(parts: Sequence[Part], classes: Sequence[str]) -> dict[str, Any]:
    """What operating points are worth on their own test rows, all parts (the folds) pooled; ready for JSON.

    Intervals are of 95 % over groups of test images. `coverage` draws the calibration images anew as well and fits
    the sets again, since coverage is promised over both draws; `coverage_of_these_sets` does not. Sensitivity and
    specificity are of the decisions before any referral; `of_answers` are those of the images that are answered.
    """
    found = [outcomes(part.point, classes, part.test) for part in parts]
    every = Outcomes(*(np.concatenate(column) for column in zip(*found, strict=True)))
    labels = np.concatenate([part.test.labels for part in parts])
    groups = [group for part in parts for group in part.test.groups]

    def share(flags: Flags, among: Flags) -> dict[str, float | None]:
        """Of the images in `among`, those with the flag."""
        return stats.share(flags, among, groups).as_dict()

    everyone, point = np.full(len(labels), True), parts[0].point
    result: dict[str, Any] = {"points": [part.point.model_dump(mode="json") for part in parts]}
    if point.coverage is not None:
        sizes = np.bincount(every.set_size, minlength=len(classes) + 1)
        these = share(every.covered, everyone)
        result["sets"] = {
            "stated": point.coverage,
            "coverage": these | (_coverage_bounds(parts) if these["low"] is not None else {}),
            "coverage_of_these_sets": these,
            "coverage_by_class": {
                name: float(every.covered[labels == k].mean()) if (labels == k).any() else None
                for k, name in enumerate(classes)
            },
            "mean_size": float(every.set_size.mean()),
            "share_by_size": (sizes / sizes.sum()).tolist(),
        }
    if point.positive is not None:
        result["threshold"] = {
            "positive": point.positive,
            "target": point.target,
            "target_value": point.target_value,
            "sensitivity": share(every.called, every.of_positive),
            "specificity": share(~every.called, ~every.of_positive),
            "accuracy": share(every.right, everyone),
        }
        if point.max_disagreement is not None:
            answered = ~every.referred
            result["threshold"]["of_answers"] = {
                "sensitivity": share(every.called, every.of_positive & answered),
                "specificity": share(~every.called, ~every.of_positive & answered),
            }
    if point.positive is not None or point.max_disagreement is not None:
        decided = np.where(every.referred, len(classes), every.decided)
        cells = np.bincount(labels * (len(classes) + 1) + decided, minlength=len(classes) * (len(classes) + 1))
        result["decisions"] = cells.reshape(len(classes), -1).tolist()  # like a confusion matrix; last column: referred
    if point.max_disagreement is not None:
        result["referral"] = {
            "answered": share(~every.referred, everyone),
            "accuracy_of_answers": share(every.right, ~every.referred),
            "wrong_answers": share(~every.right & ~every.referred, everyone),
        }
    return result


PROMISE = (
    "What is asked holds on average over calibration sets of this size; this one may miss it. Brackets are for this "
    "one; of a run, that of the sets' coverage is over calibration sets, too."
)


class Attained(NamedTuple):
    """A line of what an operating point is worth, for people to read."""

    name: str
    asked: str  # empty where nothing was
    found: Mapping[str, float | None]  # value, low, high


def attained(operating: Mapping[str, Any]) -> list[Attained]:
    """What `judged` found and `calibrate` was asked for, line by line, in the order in which it is told."""
    lines = []
    if sets := operating.get("sets"):
        lines.append(Attained("prediction sets that hold the true label", f"{sets['stated']:g}", sets["coverage"]))
    if threshold := operating.get("threshold"):
        for key in ("sensitivity", "specificity"):
            asked = f"at least {threshold['target_value']:g}" if threshold["target"] == key else ""
            lines.append(Attained(f"{key} for {threshold['positive']}", asked, threshold[key]))
        for key, found in threshold.get("of_answers", {}).items():
            lines.append(Attained(f"{key} for {threshold['positive']}, among the answered", "", found))
    if referral := operating.get("referral"):
        wanted = operating.get("wanted", {})
        at_least, at_most = (wanted.get(key) for key in ("answer", "max_error"))
        lines += [
            Attained("images that are answered", f"at least {at_least:g}" if at_least else "", referral["answered"]),
            Attained("right among the answered", "", referral["accuracy_of_answers"]),
            Attained(
                "wrong answers among all images", f"at most {at_most:g}" if at_most else "", referral["wrong_answers"]
            ),
        ]
    return lines


def _coverage_bounds(parts: Sequence[Part]) -> dict[str, float | None]:
    """The bounds of the coverage over draws of groups, each with its calibration rows and its test rows.

    They are those of these sets where a part's calibration rows are not at hand, and none where a part allows no
    failure: no draw of its rows has a lower least probability.
    """
    fitted = [part.calibration for part in parts if part.calibration is not None]
    if len(fitted) < len(parts):
        return {}
    tables = [table for each, part in zip(fitted, parts, strict=True) for table in (each, part.test)]
    of_true = np.concatenate([each.probabilities[np.arange(len(each.labels)), each.labels] for each in tables])
    where = np.repeat(np.arange(len(tables)), [len(each.labels) for each in tables])
    coverage = parts[0].point.coverage
    assert coverage is not None
    allowed = [allowed_failures(1 - coverage, len(each.labels), len(set(each.groups))) for each in fitted]
    if not all(allowed):
        return {"low": None, "high": None}
    failing = [count / len(each.labels) for count, each in zip(allowed, fitted, strict=True)]

    def statistic(rows: NDArray[np.int64]) -> float:
        place, values = where[rows], of_true[rows]
        held = total = 0
        for k, share in enumerate(failing):
            fitted_on, tested = values[place == 2 * k], values[place == 2 * k + 1]
            if not len(fitted_on):
                return math.nan
            rank = math.floor(share * len(fitted_on) + 1e-9)
            held += int((tested >= np.partition(fitted_on, rank)[rank]).sum())
            total += len(tested)
        return held / total if total else math.nan

    sides = ([group for each in side for group in each.groups] for side in (fitted, [part.test for part in parts]))
    groups = [group for each in tables for group in each.groups]
    interval = group_bootstrap(statistic, groups, fewest=min(map(effective_groups, sides)))
    return {key: value for key, value in interval.as_dict().items() if key != "value"}
