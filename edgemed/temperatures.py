"""The calibration split, and a temperature per member, so that probabilities mean what they say.

    edgemed train DATA --out RUN --calibration 0.15

The split is cut from training and used for nothing else: not for weights, not for the choice of an epoch. It is off
unless asked for, since it costs training images: without it the temperatures come from validation, which also chose
the epoch, and no operating point is stated. A promise that rests on nothing is worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp, log

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from edgemed.dataset import Dataset
from edgemed.errors import InputError
from edgemed.operating_fit import Wanted, allowed_failures
from edgemed.splits import held_out_groups

LOWEST, HIGHEST = 0.1, 10.0


def with_calibration(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The data set with `share` of its training images in the split `calibration`, whole groups, each class alike.

    A calibration split that the data came with is kept; without one and without a share nothing changes. A class with
    too few groups to give one keeps them all, and a warning says so.

    Raises:
        InputError: both a share and a given split; or too few images to state anything.
    """
    given = any(row.split == "calibration" for row in dataset.rows)
    if given and share:
        raise InputError("the data come with a calibration split of their own; leave out --calibration")
    if not given and not share:
        return dataset
    if not given:
        training = dataset.subset("train")
        chosen = held_out_groups(training.labels, training.groups, training.classes, share, seed=seed)
        rows = tuple(replace(row, split="calibration") if row.group in chosen else row for row in dataset.rows)
        dataset = replace(dataset, rows=rows)
    part, coverage = dataset.subset("calibration"), Wanted().coverage
    if not part.rows or allowed_failures(1 - coverage, len(part.rows), len(set(part.groups))) < 0:
        raise InputError(
            f"the calibration split has {len(part.rows)} images in {len(set(part.groups))} groups, too few to state a "
            f"coverage of {coverage:g}; give a larger --calibration, or leave it out"
        )
    if missing := sorted(set(dataset.classes) - {row.label for row in part.rows}):
        warning = f"no calibration image of {', '.join(missing)}: the operating point does not speak for these."
        dataset = replace(dataset, warnings=(*dataset.warnings, warning))
    return dataset


def fitted_temperatures(logits: Sequence[Tensor], labels: Sequence[int]) -> list[float]:
    """A temperature per member for which the mean of the members' probabilities is calibrated; logits: M of (N, K).

    First each member's own, then one factor on all of them, the same way, from the ensemble's cross-entropy: a mean of
    calibrated members that differ is less sure than it is right (Rahaman and Thiery 2021, arXiv 2007.08792).
    """
    own = [fitted_temperature(each, labels) for each in logits]
    exact, target = [each.double() for each in logits], _targets(labels, logits[0].shape[1])

    def within(temperature: float) -> float:
        return min(max(temperature, LOWEST), HIGHEST)

    def loss(factor: float) -> float:
        shares = [torch.softmax(each / within(factor * value), -1) for each, value in zip(exact, own, strict=True)]
        mean = torch.stack(shares).mean(0).clamp_min(torch.finfo(torch.float64).tiny)
        return float(-(target * mean.log()).sum(1).mean())

    factor = _minimum(loss)
    return [within(factor * value) for value in own]


def at_a_limit(temperature: float) -> bool:
    """Whether a fitted temperature ended where its search does: what calibrates those images lies beyond."""
    return not LOWEST * (1 + 1e-3) < temperature < HIGHEST / (1 + 1e-3)


def fitted_temperature(logits: Tensor, labels: Sequence[int]) -> float:
    """The T in 0.1..10 that minimises the cross-entropy of softmax(logits / T), logits float (N, K).

    Guo et al. 2017 (arXiv 1706.04599). The loss is convex in 1/T, so the bounded search over log T finds its minimum.
    The targets for N images are (N + 1 / K) / (N + 1) for the label and 1 / K / (N + 1) elsewhere: a few dozen images
    that are all classified rightly would otherwise ask for T = 0, a certainty that they do not give. They add one image
    of an unknown class, as Perks 1947 does. Those of Platt 1999 add K: on seven runs with 45 to 700 calibration images
    their mean confidence on validation lay 3.5 points below the accuracy, and the cross-entropy was higher in five.
    """
    exact, target = logits.double(), _targets(labels, logits.shape[1])
    return _minimum(lambda temperature: float(F.cross_entropy(exact / temperature, target)))


def _targets(labels: Sequence[int], classes: int) -> Tensor:
    """Each image's label, and over all of them one image that could be of any class: float64 (N, K)."""
    count = len(labels)
    target = torch.full((count, classes), 1 / classes / (count + 1), dtype=torch.float64)
    target[torch.arange(count), torch.tensor(list(labels))] += count / (count + 1)
    return target


def _minimum(loss: Callable[[float], float]) -> float:
    """The value in LOWEST..HIGHEST of the lowest loss, searched on a logarithmic scale."""
    found = minimize_scalar(
        lambda log_value: loss(exp(log_value)),
        bounds=(log(LOWEST), log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(exp(found.x))
