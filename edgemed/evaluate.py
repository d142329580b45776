"""Predictions for many files, and what they are worth.

    edgemed evaluate RUN|BUNDLE DATA --json

Works on a predict callable, so that a run (PyTorch) and a bundle (any runtime) are judged by the same lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemed.ahead import ahead
from edgemed.images import image_from_file, pixels_sha256
from edgemed.metrics import auroc_change, mcnemar, metrics_with_intervals, paired_difference
from edgemed.progress import Count

Predict = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""One image uint8 (H, W, 3) RGB -> probabilities float32 (K,) and member probabilities float32 (M, K)."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Table:
    """What the M members said of N labelled images."""

    paths: tuple[str, ...]
    labels: NDArray[np.int64]  # (N,)
    groups: tuple[str, ...]
    members: Array  # (N, M, K) probabilities
    fused: Array | None = None  # (N, K): the ensemble's, where it computes them itself

    @property
    def probabilities(self) -> Array:
        """The ensemble's, (N, K): its own, or the mean of its members'."""
        return np.asarray(self.members.mean(axis=1), np.float32) if self.fused is None else self.fused


def decoded(files: Sequence[Path]) -> Iterator[NDArray[np.uint8]]:
    """The files' images, uint8 (H, W, 3) RGB, in order, decoded by two threads at most 16 images ahead."""
    return ahead(image_from_file, files, threads=2, depth=16)


class Predicted(NamedTuple):
    """What a predictor said of N files."""

    probabilities: Array  # (N, K)
    members: Array  # (N, M, K)
    pixels: list[str]  # `images.pixels_sha256` of each


def predict_files(predict: Predict, files: Sequence[Path], progress: Count | None = None) -> Predicted:
    """Every file at its own size.

    Raises:
        InputError: a file cannot be decoded.
    """
    rows, pixels = [], []
    for done, image in enumerate(decoded(files), 1):
        rows.append(predict(image))
        pixels.append(pixels_sha256(image))
        if progress:
            progress(done, len(files))
    return Predicted(np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows]), pixels)


def evaluation(table: Table, member_names: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """The metrics of the ensemble and of each member with 95 % intervals over groups, and how they compare, paired.

    "Better" is the member of higher accuracy on these very images: the stricter comparison for the ensemble.
    `comparisons` are of the ensemble with each member and of a member with those before it.
    """
    known, groups, probabilities = table.labels, table.groups, table.probabilities
    of_member = {name: table.members[:, m] for m, name in enumerate(member_names)}
    result: dict[str, Any] = {
        "classes": list(classes),
        "n": len(known),
        "groups": len(set(groups)),
        "ensemble": metrics_with_intervals(known, probabilities, groups, classes),
        "members": {name: metrics_with_intervals(known, each, groups, classes) for name, each in of_member.items()},
    }
    if len(member_names) > 1:
        better = max(of_member, key=lambda name: (of_member[name].argmax(1) == known).mean())  # the first of equal ones
        interval = paired_difference(known, probabilities, of_member[better], groups)
        result["ensemble_minus_better"] = {"better": better, **interval.as_dict()}
    predictors = of_member | {"ensemble": probabilities}
    pairs = [("ensemble", name) for name in member_names]
    pairs += [(later, name) for k, later in enumerate(member_names) for name in member_names[:k]]
    result["comparisons"] = [
        {"a": a, "b": b} | comparison(known, predictors[a], predictors[b], groups) for a, b in pairs
    ]
    return result


def comparison(
    labels: Sequence[int] | NDArray[np.int64], a: Array, b: Array, groups: Sequence[Any]
) -> dict[str, Any]:
    """Predictor a against b on the same images, (N, K) each; ready for JSON.

    `accuracy` and `auroc`: a minus b, with the 95 % interval of a paired bootstrap over groups; `mcnemar`: see there.
    """
    return {
        "accuracy": paired_difference(labels, a, b, groups).as_dict(),
        "auroc": auroc_change(labels, b, a, groups).as_dict(),
        "mcnemar": mcnemar(labels, a, b),
    }
