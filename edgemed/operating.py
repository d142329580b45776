"""From probabilities to a decision: a label, or "refer". Applied by `edgemed predict` and by the C library alike.

Why its own module: the rule is part of what was validated, so it stands once, in plain arithmetic: float32
probabilities against the manifest's float64 thresholds, compared in float64. Numpy only.

Disagreement of an image: mean over members m of 1/2 sum_k |p_mk - p_k|, the total variation distance of each member to
the mean, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from edgemed.errors import InputError, first_line
from edgemed.files import write_atomic
from edgemed.manifest import OperatingPoint, document_bytes

REFER = "refer"
"""The decision that leaves an image to a human. A data set with a class of this name cannot have one."""


POINT_NAME = "operating_point.json"

UNCLEAR = 1e-4
"""Nearer than this to a limit, the reference itself decides nothing: engines repeat a probability to about 1e-6."""


class Decision(NamedTuple):
    """What to do with one image. prediction_set: labels that hold the stated coverage, or None without one."""

    decision: str
    disagreement: float
    prediction_set: tuple[str, ...] | None


def disagreement(probabilities: ArrayLike, members: ArrayLike) -> NDArray[np.float64]:
    """Total variation distance of the members (N, M, K) to their mean (N, K), averaged over members: (N,) in [0, 1]."""
    mean, each = np.asarray(probabilities, np.float64), np.asarray(members, np.float64)
    # In order, as in C: NumPy's own sum takes eight and more in pairs, and at a limit the last digit decides.
    distances = np.abs(each - mean[:, None]).cumsum(axis=2)[:, :, -1]
    return np.asarray(distances.cumsum(axis=1)[:, -1] / each.shape[1] / 2)


def decide(
    point: OperatingPoint | None, labels: Sequence[str], probabilities: ArrayLike, members: ArrayLike
) -> Decision:
    """The decision for one image: probabilities (K,) in the order of `labels`, members (M, K).

    Without an operating point it is the most probable label, the first one at a tie.
    """
    shares = np.asarray(probabilities, np.float64)
    apart = float(disagreement(shares[None], np.asarray(members)[None])[0])
    label = labels[int(shares.argmax())]
    if point is None:
        return Decision(label, apart, None)
    if point.positive is not None and point.threshold is not None:
        index = list(labels).index(point.positive)
        others = np.where(np.arange(len(shares)) == index, -1.0, shares)
        label = point.positive if shares[index] >= point.threshold else labels[int(others.argmax())]
    if point.max_disagreement is not None and apart > point.max_disagreement:
        label = REFER
    if point.min_probability is None:
        return Decision(label, apart, None)
    kept = tuple(name for name, share in zip(labels, shares, strict=True) if share >= point.min_probability)
    return Decision(label, apart, kept)


def in_words(point: OperatingPoint | None) -> str:
    """How a decision comes about, in sentences."""
    if point is None:
        return "The decision is always the most probable class: no operating point was fitted."
    found = []
    if point.positive is not None:
        found.append(
            f"The decision is {point.positive} from a probability of {point.threshold:.4f} on (for a {point.target} of "
            f"{point.target_value:g}), else the most probable other class."
        )
    if point.max_disagreement is not None:
        found.append(f'It is "refer" where the members disagree by more than {point.max_disagreement:.4f}.')
    if point.min_probability is not None:
        found.append(
            f"The prediction set holds each class of a probability of at least {point.min_probability:.4f} (for a "
            f"coverage of {point.coverage:g})."
        )
    return " ".join([*found, f"Fitted on {point.images} calibration images."])


def changed_decisions(
    point: OperatingPoint,
    labels: Sequence[str],
    reference: ArrayLike,
    candidate: ArrayLike,
    members: tuple[ArrayLike, ArrayLike],
    *,
    margin: float = 0.0,
) -> tuple[list[int], list[int]]:
    """The images, of N, for which the candidate crosses a limit of the operating point: threshold, set or referral; or
    where, below the threshold, another one of the other classes is the most probable.

    Probabilities (N, K) of the same images. members: (N, M, K) of the reference and of the candidate. Those that count,
    and the others: what the reference has within `margin` (at least `UNCLEAR`) of a limit, or of each other, does not.
    See `gates.compare` for the most probable label of all.
    """
    before, after = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    within, (clear, changed) = max(margin, UNCLEAR), np.zeros((2, len(before)), np.bool_)
    limits: list[tuple[NDArray[np.float64], NDArray[np.float64], float | None]] = [
        (before, after, point.min_probability)
    ]
    if point.positive is not None and point.threshold is not None:
        index = list(labels).index(point.positive)
        limits.append((before[:, [index]], after[:, [index]], point.threshold))
        others, now = np.delete(before, index, axis=1), np.delete(after, index, axis=1)
        ordered = np.sort(np.pad(others, ((0, 0), (1, 0)), constant_values=-1.0), axis=1)
        other = (before[:, index] < point.threshold) & (others.argmax(axis=1) != now.argmax(axis=1))
        changed |= other
        clear |= other & (ordered[:, -1] - ordered[:, -2] > within)
    apart, now = (-disagreement(*each)[:, None] for each in zip((before, after), members, strict=True))
    limits.append((apart, now, None if point.max_disagreement is None else -point.max_disagreement))
    for old, new, limit in limits:
        if limit is not None:
            crossed = (old >= limit) != (new >= limit)
            changed |= crossed.any(axis=1)
            clear |= (crossed & (np.abs(old - limit) > within)).any(axis=1)
    return np.flatnonzero(clear).tolist(), np.flatnonzero(changed & ~clear).tolist()


def read_operating_point(run: Path) -> OperatingPoint | None:
    """The operating point of a run folder, or None where it has none.

    Raises InputError where its file is not one.
    """
    file = run / POINT_NAME
    try:
        return OperatingPoint.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        step = f"run `edgemed calibrate {run}` again"
        raise InputError(f"{file} is not an operating point ({first_line(error)}); {step}") from error


def write_operating_point(run: Path, point: OperatingPoint) -> None:
    """Store the operating point in a run folder, in one piece."""
    write_atomic(run / POINT_NAME, document_bytes(point))
