"""The operating point: fitted on the calibration split, judged on the test split.

    edgemed calibrate RUN --positive malignant --sensitivity 0.95 --answer 0.9 --coverage 0.9

Every part of it limits one kind of failure on images like those of the calibration split, and is the most useful value
whose failures there are rare enough: with R of N calibration images in G groups failing, (G R / N + 1) / (G + 1) <= the
share that may fail. That is conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814), whose promise holds on
average over the draw of the calibration images; for prediction sets and one image a group it is split conformal
prediction with its quantile of rank ceil((N + 1) coverage). Images of a group count as one draw, since they are alike.
Exact where groups are of one size; a few much larger ones weaken it, and so do temperatures from the same images.

What fails: an image of the positive class below the threshold (sensitivity), one of another class at or above it
(specificity), a true label outside of the set (coverage), an image that is referred (`answer`), a wrong answer that is
given (`max_error`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemed.curves import joined, risk_coverage
from edgemed.errors import InputError, did_you_mean
from edgemed.evaluate import Table
from edgemed.manifest import OperatingPoint
from edgemed.operating import REFER, decide, disagreement, read_operating_point
from edgemed.run import read_table
from edgemed.stats import group_bootstrap

MARGIN = 1e-4
"""By how much at most a threshold keeps clear of the image that sets it: engines repeat a probability to about 1e-6."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Wanted:
    """What an operating point is to attain; each a share of 0 to 1, None (of coverage: 0) where it is not wanted."""

    positive: str | None = None
    sensitivity: float | None = None
    specificity: float | None = None
    answer: float | None = None  # of the images: the members disagree most on the others, which are referred
    max_error: float | None = None  # wrong answers among all images; as few as that takes are referred
    coverage: float = 0.9  # of the prediction sets

    def __post_init__(self) -> None:
        targets = [value for value in (self.sensitivity, self.specificity) if value is not None]
        if len(targets) != (self.positive is not None):
            raise InputError("a threshold needs --positive CLASS and one of --sensitivity and --specificity")
        if self.answer is not None and self.max_error is not None:
            raise InputError("--answer and --max-error both set the limit of disagreement; give one")
        for name, value in asdict(self).items():
            if isinstance(value, float) and not 0 < value < 1 and (name, value) != ("coverage", 0.0):
                raise InputError(f"--{name.replace('_', '-')} {value:g} is no share between 0 and 1")
        if self.positive is None and self.answer is None and self.max_error is None and not self.coverage:
            raise InputError("nothing is wanted; give --coverage, --positive, --answer or --max-error")


def fitted_point(wanted: Wanted, classes: Sequence[str], table: Table) -> OperatingPoint:
    """The operating point that attains what is wanted, from the calibration split's rows alone.

    Raises:
        InputError: a class that is none, or a share that so few images cannot promise.
    """
    shares, labels = table.probabilities.astype(np.float64), table.labels
    point = OperatingPoint(images=len(labels))
    if wanted.coverage:
        of_true = shares[np.arange(len(labels)), labels]
        allowed = _allowed("--coverage", wanted.coverage, table.groups)
        lowest = _just_below(of_true, allowed)
        point = point.model_copy(update={"coverage": wanted.coverage, "min_probability": lowest})
    if wanted.positive is not None:
        if wanted.positive not in classes:
            raise InputError(f"--positive '{wanted.positive}' is no class.{did_you_mean(wanted.positive, classes)}")
        point = point.model_copy(update=_threshold(wanted, list(classes).index(wanted.positive), table))
    if wanted.answer is not None or wanted.max_error is not None:
        if REFER in classes:
            raise InputError(f"a class is named '{REFER}', which is the decision that leaves an image to a human")
        point = point.model_copy(update={"max_disagreement": _max_disagreement(wanted, point, classes, table)})
    return OperatingPoint.model_validate(point.model_dump())


def allowed_failures(share: float, images: int, groups: int) -> int:
    """How many of the calibration images may fail for a promised share of failures; negative: none can be promised."""
    return math.floor(images * (share - (1 - share) / groups) + 1e-9)


def _allowed(name: str, wanted: float, groups: Sequence[str]) -> int:
    """The failures that leave `wanted`, the share of successes, a promise."""
    count = len(set(groups))
    allowed = allowed_failures(1 - wanted, len(groups), count) if count else -1
    if not count:
        raise InputError(f"{name} speaks of a class that has no calibration image; give more images, or another class")
    if allowed < 0:
        needed = math.ceil(wanted / (1 - wanted) - 1e-9)
        raise InputError(
            f"{name} {wanted:g} cannot be promised from {count} calibration groups that it speaks of: it needs "
            f"{needed}; ask for at most {math.floor(1000 * count / (count + 1)) / 1000:g}, or give more images"
        )
    return allowed


def _threshold(wanted: Wanted, positive: int, table: Table) -> dict[str, Any]:
    """The highest threshold of the wanted sensitivity, or the lowest of the wanted specificity."""
    target = "sensitivity" if wanted.sensitivity is not None else "specificity"
    value = getattr(wanted, target)
    speaks_of = (table.labels == positive) == (target == "sensitivity")
    groups = [group for group, spoken in zip(table.groups, speaks_of, strict=True) if spoken]
    allowed = _allowed(f"--{target}", value, groups)
    of_positive = table.probabilities[speaks_of, positive].astype(np.float64)
    if target == "sensitivity":
        threshold = _just_below(of_positive, allowed)
    else:
        threshold = _just_above(of_positive, allowed)
        if (of_positive >= threshold).sum() > allowed:  # they have probability 1
            raise InputError(f"--specificity {value:g} is out of reach: too many others are surely '{wanted.positive}'")
    return {"positive": wanted.positive, "target": target, "target_value": value, "threshold": threshold}


def _max_disagreement(wanted: Wanted, point: OperatingPoint, classes: Sequence[str], table: Table) -> float:
    apart = disagreement(table.probabilities, table.members)
    if wanted.answer is not None:
        return _just_above(apart, _allowed("--answer", wanted.answer, table.groups))
    assert wanted.max_error is not None
    groups = len(set(table.groups))
    if (allowed := allowed_failures(wanted.max_error, len(table.groups), groups)) < 0:
        needed, least = math.ceil(1 / wanted.max_error - 1 - 1e-9), math.ceil(1000 / (groups + 1)) / 1000
        raise InputError(
            f"--max-error {wanted.max_error:g} cannot be promised from {groups} calibration groups: it needs {needed}; "
            f"ask for at least {least:g}, or give more images"
        )
    wrong = apart[~_outcomes(point, classes, table).right]
    if len(wrong) <= allowed:
        return 1.0
    limit = _just_below(wrong, allowed)
    if (wrong <= limit).sum() > allowed:  # with a disagreement of 0
        raise InputError(f"--max-error {wanted.max_error:g} is out of reach: the members are wrong together too often")
    return limit


def _just_below(values: Floats, k: int) -> float:
    """A value that all but (at most) the k smallest of `values` in 0..1 reach, as high as that allows."""
    value = np.sort(values)[k]
    lower = values[values < value].max(initial=0.0)
    return float(value - min(MARGIN, (value - lower) / 2))


def _just_above(values: Floats, k: int) -> float:
    """A value that at most the k largest of `values` in 0..1 reach, as low as that allows."""
    return 1 - _just_below(1 - values, k)


class Outcomes(NamedTuple):
    """What the operating point made of each of N images; (N,) each."""

    decided: NDArray[np.int64]  # index of the class, before any referral
    right: Flags
    referred: Flags
    called: Flags  # decided as the positive class
    of_positive: Flags  # of the positive class
    covered: Flags  # the true label is in the set
    set_size: NDArray[np.int64]


class Part(NamedTuple):
    """An operating point, the rows that it was fitted on, and those that judge it."""

    point: OperatingPoint
    calibration: Table
    test: Table


def part_of_run(run: Path, classes: Sequence[str]) -> Part | None:
    """A finished run's operating point with its rows; None where it has no such point."""
    point = read_operating_point(run)
    if point is None:
        return None
    return Part(point, read_table(run, classes, "calibration"), read_table(run, classes, "test"))


def selective_metrics(runs: Sequence[Path], classes: Sequence[str]) -> dict[str, Any]:
    """What `metrics.json` says of referral and operating point; `runs`: the run, or the folds, which are pooled."""
    parts = [part for run in runs if (part := part_of_run(run, classes))]
    test = joined([read_table(run, classes, "test") for run in runs])
    return {"risk_coverage": risk_coverage(test), "operating": judged(parts, classes) if parts else None}


def judged(parts: Sequence[Part], classes: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """What operating points are worth on their own test rows, all parts (the folds) pooled; ready for JSON.

    Intervals are 95 % group bootstraps over test images. `coverage` draws the calibration images anew as well and fits
    the sets again, since coverage is promised over both draws; `coverage_of_these_sets` does not.
    """
    found = [_outcomes(part.point, classes, part.test) for part in parts]
    every = Outcomes(*(np.concatenate(column) for column in zip(*found, strict=True)))
    labels = np.concatenate([part.test.labels for part in parts])
    groups = [group for part in parts for group in part.test.groups]

    def share(flags: Flags, among: Flags) -> dict[str, float | None]:
        """Of the images in `among`, those with the flag."""

        def statistic(rows: NDArray[np.int64]) -> float:
            count = among[rows].sum()
            return float((flags & among)[rows].sum() / count) if count else math.nan

        interval = group_bootstrap(statistic, groups, seed=seed)
        return {key: value if math.isfinite(value) else None for key, value in interval._asdict().items()}

    everyone, point = np.full(len(labels), True), parts[0].point
    result: dict[str, Any] = {"points": [part.point.model_dump(mode="json") for part in parts]}
    if point.coverage is not None:
        sizes = np.bincount(every.set_size, minlength=len(classes) + 1)
        these = share(every.covered, everyone)
        result["sets"] = {
            "stated": point.coverage,
            "coverage": these | _coverage_bounds(parts, seed),
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
    if point.positive is not None or point.max_disagreement is not None:
        answered = np.where(every.referred, len(classes), every.decided)
        cells = np.bincount(labels * (len(classes) + 1) + answered, minlength=len(classes) * (len(classes) + 1))
        result["decisions"] = cells.reshape(len(classes), -1).tolist()  # like a confusion matrix; last column: referred
    if point.max_disagreement is not None:
        result["referral"] = {
            "answered": share(~every.referred, everyone),
            "accuracy_of_answers": share(every.right, ~every.referred),
            "wrong_answers": share(~every.right & ~every.referred, everyone),
        }
    return result


def _outcomes(point: OperatingPoint, classes: Sequence[str], table: Table) -> Outcomes:
    shares = table.probabilities
    answers = point.model_copy(update={"max_disagreement": None})
    decided = [decide(answers, classes, *row) for row in zip(shares, table.members, strict=True)]
    names = np.array([one.decision for one in decided])
    truth = np.array(classes)[table.labels]
    sets = [one.prediction_set or () for one in decided]
    limit = 1.0 if point.max_disagreement is None else point.max_disagreement
    return Outcomes(
        decided=np.array([list(classes).index(name) for name in names], np.int64),
        right=names == truth,
        referred=np.array([one.disagreement for one in decided]) > limit,
        called=names == point.positive,
        of_positive=truth == point.positive,
        covered=np.array([name in kept for name, kept in zip(truth, sets, strict=True)]),
        set_size=np.array([len(kept) for kept in sets], np.int64),
    )


def _coverage_bounds(parts: Sequence[Part], seed: int) -> dict[str, float | None]:
    """The bounds of the coverage over draws of groups, each with its calibration rows and its test rows."""
    tables = [table for part in parts for table in (part.calibration, part.test)]
    of_true = np.concatenate([each.probabilities[np.arange(len(each.labels)), each.labels] for each in tables])
    where = np.repeat(np.arange(len(tables)), [len(each.labels) for each in tables])
    coverage = parts[0].point.coverage
    assert coverage is not None
    failing = [
        allowed_failures(1 - coverage, len(part.calibration.labels), len(set(part.calibration.groups)))
        / len(part.calibration.labels)
        for part in parts
    ]

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

    interval = group_bootstrap(statistic, [group for each in tables for group in each.groups], seed=seed)
    return {"low": interval.low, "high": interval.high}
