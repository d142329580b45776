"""The operating point, fitted on the calibration split; `operating_quality.py` judges it on the test split.

    edgemed calibrate RUN --positive malignant --sensitivity 0.95 --answer 0.9 --coverage 0.9

Every part of it limits one kind of failure on images like those of the calibration split, and is the most useful value
whose failures there are rare enough: with R of N calibration images in G groups failing, (G R / N + 1) / (G + 1) <= the
share that may fail. That is conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814), whose promise holds on
average over the draw of the calibration images; for prediction sets and one image a group it is split conformal
prediction with its quantile of rank ceil((N + 1) coverage). Images of a group count as one draw, since they are alike.
Exact where groups are of one size; a few much larger ones weaken it (with one of 40 images among 20, 0.90 becomes 0.88
to 0.84), and so do temperatures from the same images.

What fails: an image of the positive class below the threshold (sensitivity), one of another class at or above it
(specificity), a true label outside of the set (coverage), an image that is referred (`answer`), a wrong answer that is
given (`max_error`; beside a threshold with 2 for the 1 above, by simulation).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import InputError, did_you_mean, flag
from edgemed.evaluate import Table
from edgemed.manifest import OperatingPoint
from edgemed.operating import REFER, UNCLEAR, decide, disagreement

MARGIN = UNCLEAR
"""By how much at most a threshold keeps clear of the image that sets it."""

LARGE = 0.2
"""A group of more than this share of the images that a promise speaks of is told of."""

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
                raise InputError(f"{flag(name)} {value:g} is not a share between 0 and 1")
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
            raise InputError(f"--positive '{wanted.positive}' is not a class.{did_you_mean(wanted.positive, classes)}")
        point = point.model_copy(update=_threshold(wanted, list(classes).index(wanted.positive), table))
    if wanted.answer is not None or wanted.max_error is not None:
        if REFER in classes:
            raise InputError(f"a class is named '{REFER}', which is the decision that leaves an image to a human")
        point = point.model_copy(update={"max_disagreement": _max_disagreement(wanted, point, classes, table)})
    return OperatingPoint.model_validate(point.model_dump())


def allowed_failures(share: float, images: int, groups: int, spare: int = 1) -> int:
    """How many of the calibration images may fail for a promised share of failures; negative: none can be promised.

    spare: so many groups of the usual size are taken to fail beside them, where one, the next, is what exactness needs.
    """
    return math.floor(images * (share * (groups + 1) - spare) / groups + 1e-9)


def _allowed(name: str, wanted: float, groups: Sequence[str]) -> int:
    """The failures that leave `wanted`, the share of successes, a promise."""
    count = len(set(groups))
    allowed = allowed_failures(1 - wanted, len(groups), count) if count else -1
    if not count:
        raise InputError(f"{name} is about a class without calibration images; give more images, or another class")
    if allowed < 0:
        needed = math.ceil(wanted / (1 - wanted) - 1e-9)
        raise InputError(
            f"{name} {wanted:g} needs at least {needed} calibration groups that it is about, and there are {count}; "
            f"ask for at most {math.floor(1000 * count / (count + 1)) / 1000:g}, or give more images"
        )
    if (largest := max(Counter(groups).values())) > max(1, LARGE * len(groups)):
        logging.getLogger("edgemed").warning(
            "%s %g may be missed: it is exact for groups of one size, and %d of the %d calibration images that it "
            "speaks of are of one group; give more groups", name, wanted, largest, len(groups),
        )  # fmt: skip
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
    # Fewer of these images than of others are wrong by a threshold that was fitted on them: by one group, as simulated.
    spare = 1 if point.threshold is None else 2
    if (allowed := allowed_failures(wanted.max_error, len(table.groups), groups, spare)) < 0:
        needed, least = math.ceil(spare / wanted.max_error - 1 - 1e-9), math.ceil(1000 * spare / (groups + 1)) / 1000
        raise InputError(
            f"--max-error {wanted.max_error:g} needs at least {needed} calibration groups, and there are {groups}; "
            + (f"ask for at least {least:g}, or give more images" if least < 1 else "give more images")
        )
    wrong = apart[~outcomes(point, classes, table).right]
    if len(wrong) <= allowed:
        return 1.0
    limit = _just_below(wrong, allowed)
    if (wrong <= limit).sum() > allowed:  # with a disagreement of 0
        raise InputError(f"--max-error {wanted.max_error:g} is out of reach: the members are wrong together too often")
    if not (apart <= limit).any():
        raise InputError(
            f"--max-error {wanted.max_error:g} is out of reach: every calibration image would be referred; ask for more"
        )
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


def outcomes(point: OperatingPoint, classes: Sequence[str], table: Table) -> Outcomes:
    """What the operating point makes of the rows of a table."""
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
