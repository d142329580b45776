"""Metrics of a classifier from labels and probabilities, with intervals that respect patients and lesions.

Why it exists: a figure without an interval invites a wrong conclusion, and an interval that treats two images of one
patient as independent is too narrow. Point values are scikit-learn's; the resamples use counting versions of the same
definitions, so that a thousand of them take well under a second. `edgemed train` and `edgemed evaluate` call it:

    edgemed train DATA --out RUN        # metrics.json and report.html hold what is computed here

Rules for a class that no label names: its sensitivity and AUROC are undefined (None), and averages run over the classes
that have one. In JSON an undefined figure is null, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score, roc_auc_score

from edgemed.auroc import ranked
from edgemed.by_class import BY_CLASS, intervals_by_class
from edgemed.errors import InputError
from edgemed.stats import (
    FEWEST_GROUPS,
    TOO_FEW,
    Interval,
    effective_groups,
    effective_groups_of_rarest,
    exact,
    group_bootstrap,
    mean_of,
    mean_of_bounds,
    share,
    wider,
)

AVERAGED = {"balanced_accuracy": "sensitivity", "macro_f1": "f1", "auroc": "auroc_per_class"}
INTERVAL_METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
BINS = 10  # of the calibration error

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def classification_metrics(labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]) -> dict[str, Any]:
    """Every metric of one predictor, ready for JSON.

    labels: (N,) integers, indices into `classes`. probabilities: (N, K) in 0..1. The decision is the first largest one.

    Returns n; accuracy; balanced_accuracy (mean sensitivity over the classes that occur); macro_f1 (mean over the
    classes that occur in labels or decisions); auroc (macro one-vs-rest); ece (see `expected_calibration_error`);
    sensitivity, specificity and auroc_per_class by class name; confusion (K rows = true class, K columns = decision).
    All are fractions in 0..1; what is undefined is None.
    Raises InputError where shapes, label range or probability range are wrong, or there are no images.
    """
    truth, scores = _checked(labels, probabilities, len(classes))
    decided = scores.argmax(axis=1)
    present = np.unique(truth)
    indices = list(range(len(classes)))
    counts = confusion_matrix(truth, decided, labels=indices)
    recalls = recall_score(truth, decided, labels=indices, average=None, zero_division=np.nan)
    negatives = len(truth) - counts.sum(axis=1)
    false_positives = counts.sum(axis=0) - counts.diagonal()
    aurocs = [
        float(roc_auc_score(truth == k, scores[:, k])) if k in present and len(present) > 1 else None for k in indices
    ]
    defined = [auroc for auroc in aurocs if auroc is not None]
    return {
        "n": len(truth),
        "accuracy": float(accuracy_score(truth, decided)),
        # balanced_accuracy_score warns about decisions for a class without labels; this is the same mean without it.
        "balanced_accuracy": float(recalls[present].mean()),
        "macro_f1": float(f1_score(truth, decided, average="macro")),
        "auroc": float(np.mean(defined)) if defined else None,
        "ece": expected_calibration_error(truth, scores),
        "sensitivity": {name: float(recalls[k]) if k in present else None for k, name in enumerate(classes)},
        "specificity": {
            name: float(1 - false_positives[k] / negatives[k]) if negatives[k] else None
            for k, name in enumerate(classes)
        },
        "auroc_per_class": dict(zip(classes, aurocs, strict=True)),
        "confusion": counts.tolist(),
    }


def metrics_with_intervals(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: Sequence[Hashable],
    classes: Sequence[str],
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """`classification_metrics`, where accuracy, balanced_accuracy, macro_f1 and auroc are {"value", "low", "high"}.

    groups: (N,) patients or lesions. low and high bound 95 %. Of the accuracy: see `stats.share`. Of the averages over
    classes, they hold both a bootstrap that draws whole groups and the mean of the classes' own intervals, since no
    resample knows that a class which is all right here could be otherwise: `stats.mean_of` of the sensitivities, which
    are independent, and `stats.mean_of_bounds` of F1s and AUROCs, which are not. The resamples depend on groups and
    seed only, so every predictor of a run is judged on the same ones. One that lacks a class is left out: it would
    average others. The bounds are None with too few groups (`stats.FEWEST_GROUPS`), for an average with those of any
    class; all three are None where the metric is undefined.
    intervals holds the bounds of sensitivity, specificity and auroc_per_class: see `by_class.intervals_by_class`.
    ece_by_chance is what `ece` would be of exact probabilities: {"mean", "high"}, see `calibration_error_by_chance`.
    """
    metrics = classification_metrics(labels, probabilities, classes)
    truth, scores = _checked(labels, probabilities, len(classes))
    _check_groups(groups, len(truth))
    statistics = _statistics(truth, scores)
    metrics["accuracy"] = share(scores.argmax(axis=1) == truth, np.full(len(truth), True), groups).as_dict()
    fewest = effective_groups_of_rarest(truth, groups)
    by_class = intervals_by_class(truth, scores, groups, classes, resamples=resamples, seed=seed)
    for name, statistic in statistics.items():
        found = Interval(math.nan, math.nan, math.nan)
        if metrics[name] is not None:
            found = group_bootstrap(statistic, groups, resamples=resamples, seed=seed, fewest=fewest)
            parts = [part for part in by_class[AVERAGED[name]].values() if not math.isnan(part.value)]
            alone = mean_of(parts) if name == "balanced_accuracy" else mean_of_bounds(parts)
            found = wider(found, alone) if fewest >= FEWEST_GROUPS else found
        metrics[name] = found.as_dict() | {"value": metrics[name]}
    metrics["intervals"] = {
        key: {name: {bound: part.as_dict()[bound] for bound in ("low", "high")} for name, part in by_class[key].items()}
        for key in BY_CLASS
    }
    metrics["ece_by_chance"] = calibration_error_by_chance(scores, seed=seed, resamples=resamples)
    return metrics


def paired_difference(
    labels: ArrayLike,
    probabilities_a: ArrayLike,
    probabilities_b: ArrayLike,
    groups: Sequence[Hashable],
) -> Interval:
    """accuracy(a) - accuracy(b) on the same images, in -1..1, with the interval of a paired bootstrap over groups.

    Paired: every resample compares both predictors on the very same images, so what both get wrong cancels out. Where
    all groups are alike, as where none differs, the bounds are the share of groups that may yet be otherwise: see
    `stats.exact`. Where fewer than `TOO_FEW` differ, whose resamples promise too much, the interval holds these, too.
    """
    classes = np.shape(probabilities_a)[-1] if np.ndim(probabilities_a) else 0
    truth, scores_a = _checked(labels, probabilities_a, classes)
    _, scores_b = _checked(labels, probabilities_b, classes)
    _check_groups(groups, len(truth))
    gain = (scores_a.argmax(axis=1) == truth).astype(np.int64) - (scores_b.argmax(axis=1) == truth)
    found = group_bootstrap(lambda rows: float(gain[rows].mean()), groups)
    if effective_groups(groups) < FEWEST_GROUPS:
        return found
    of_groups: dict[Hashable, int] = {}
    for group, each in zip(groups, gain.tolist(), strict=True):
        of_groups[group] = of_groups.get(group, 0) + each
    most = exact(0.0, len(of_groups)).high
    if np.isnan(found.low):
        return Interval(found.value, max(found.value - most, -1), min(found.value + most, 1))
    if sum(each != 0 for each in of_groups.values()) < TOO_FEW:
        return Interval(found.value, min(found.low, -most), max(found.high, most))
    return found


def auroc_change(
    labels: ArrayLike,
    reference: ArrayLike,
    candidate: ArrayLike,
    groups: Sequence[Hashable] | NDArray[Any],
) -> Interval:
    """AUROC (macro one-vs-rest) of the candidate minus that of the reference, with a paired group-bootstrap interval.

    Two models of the same images, (N, K) each. NaN where it is undefined: images of one class only. The bounds are NaN
    where a class is in too few groups, and where no resample changes the value: other images may. Where they rank all
    but a few images alike, the interval is too narrow: it excludes 0 for one in ten that do not differ.
    """
    classes = np.shape(reference)[-1]
    before, after = (_statistics(*_checked(labels, table, classes))["auroc"] for table in (reference, candidate))
    fewest = effective_groups_of_rarest(np.asarray(labels), groups)
    return group_bootstrap(lambda rows: after(rows) - before(rows), groups, fewest=fewest)


def mcnemar(labels: ArrayLike, probabilities_a: ArrayLike, probabilities_b: ArrayLike) -> dict[str, Any]:
    """McNemar's exact test of two predictors on the same images: {"only_a", "only_b", "p"}, ready for JSON.

    only_a, only_b: the images that one of them decides rightly and the other does not. p: two-sided, of as uneven a
    division of these by a fair coin (McNemar 1947; the exact form is the binomial test); 1 where there are none. It
    takes images for independent, so where groups hold several of them, `paired_difference` is the one to trust.
    """
    classes = np.shape(probabilities_a)[-1] if np.ndim(probabilities_a) else 0
    truth, scores_a = _checked(labels, probabilities_a, classes)
    _, scores_b = _checked(labels, probabilities_b, classes)
    right_a, right_b = scores_a.argmax(axis=1) == truth, scores_b.argmax(axis=1) == truth
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": p}


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Top-label expected calibration error in 0..1, over `BINS` of equal mass.

    ECE = sum over bins b of n_b / n * |accuracy(b) - mean confidence(b)| (Guo et al. 2017, arXiv 1706.04599, eq. 3),
    where the confidence is the largest probability and the bins hold equally many images instead of spanning equal
    widths (the adaptive binning of Nixon et al. 2019, arXiv 1904.01685). Images of equal confidence share a bin, that
    of their middle rank: the value does not depend on the order of the images.
    """
    truth, scores = _checked(labels, probabilities, np.shape(probabilities)[-1] if np.ndim(probabilities) else 0)
    confidence = scores.max(axis=1)
    return _calibration_error(confidence, scores.argmax(axis=1) == truth, equal_mass(confidence))


def calibration_error_by_chance(
    probabilities: ArrayLike, *, seed: int = 0, resamples: int = 1000
) -> dict[str, float]:
    """The calibration error that probabilities (N, K) show where they are exactly right: its mean, its 97.5 % quantile.

    The error is never 0 on finitely many images: on 624 of which 80 % are classified rightly, it is 0.04. Outcomes are
    drawn from the confidences themselves, each image for itself: images of a group, which are alike, would show more.
    """
    confidence = np.asarray(probabilities, np.float64).max(axis=1)
    bin_of, rng = equal_mass(confidence), np.random.default_rng(seed)
    drawn = (rng.random(len(confidence)) < confidence for _ in range(resamples))
    errors = [_calibration_error(confidence, correct, bin_of) for correct in drawn]
    return {"mean": float(np.mean(errors)), "high": float(np.quantile(errors, 0.975))}


def equal_mass(confidence: Floats) -> Ints:
    """The bin of each image (N,), 0..BINS - 1, by its confidence."""
    _, inverse, ties = np.unique(confidence, return_inverse=True, return_counts=True)
    middle = (np.cumsum(ties) - ties / 2)[inverse]  # middle rank in 0..n: i + 1/2 for the i-th of untied images
    return np.minimum((middle * BINS / len(confidence)).astype(np.int64), BINS - 1)


def _calibration_error(confidence: Floats, correct: NDArray[np.bool_], bin_of: Ints) -> float:
    # n_b * (accuracy - mean confidence) is the sum of (correct - confidence) over the bin.
    gaps = np.bincount(bin_of, weights=correct - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def _statistics(truth: Ints, scores: Floats) -> dict[str, Callable[[Ints], float]]:
    """The averages over classes as functions of row indices: counting only, nothing is sorted per resample."""
    classes = scores.shape[1]
    cells = truth * classes + scores.argmax(axis=1)  # the cell of the confusion matrix that each image counts in
    present = np.bincount(truth, minlength=classes) > 0
    rankings = [ranked(scores[:, k], truth == k) for k in range(classes)]

    def confusion(rows: Ints) -> Ints:
        return np.bincount(cells[rows], minlength=classes * classes).reshape(classes, classes)

    def balanced_accuracy(rows: Ints) -> float:
        counts = confusion(rows)
        totals = counts.sum(axis=1)[present]
        return float((counts.diagonal()[present] / totals).mean()) if totals.all() else float("nan")

    def macro_f1(rows: Ints) -> float:
        counts = confusion(rows)
        if not counts.sum(axis=1)[present].all():
            return float("nan")
        totals = counts.sum(axis=1) + counts.sum(axis=0)  # 2 TP + FN + FP
        occurs = totals > 0
        return float((2 * counts.diagonal()[occurs] / totals[occurs]).mean())

    def auroc(rows: Ints) -> float:
        times = np.bincount(rows, minlength=len(truth))  # how often the resample drew each image
        values = [ranking.auroc(times) for ranking, here in zip(rankings, present, strict=True) if here]
        defined = [value for value in values if value is not None]
        return float(np.mean(defined)) if len(defined) == len(values) else float("nan")

    return {"balanced_accuracy": balanced_accuracy, "macro_f1": macro_f1, "auroc": auroc}


def _checked(labels: ArrayLike, probabilities: ArrayLike, classes: int) -> tuple[Ints, Floats]:
    """labels (N,) int64 and probabilities (N, K) float64, or an InputError that says what is wrong with them."""
    truth = np.asarray(labels)
    scores = np.asarray(probabilities, dtype=np.float64)
    if truth.ndim != 1 or len(truth) == 0 or scores.shape != (len(truth), classes) or classes == 0:
        raise InputError(
            f"metrics need labels (N,) and probabilities (N, {classes}) of at least one image, "
            f"got {truth.shape} and {scores.shape}: pass one row of probabilities per label"
        )
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= classes:
        raise InputError(
            f"labels must be integers in 0..{classes - 1}, got {truth.min()}..{truth.max()} ({truth.dtype})"
        )
    # Written so that a NaN fails too.
    if not (scores.min() >= 0 and scores.max() <= 1 + 1e-4):
        raise InputError(
            f"probabilities must lie in 0..1, got {scores.min()}..{scores.max()}: pass the softmax, not logits"
        )
    return truth.astype(np.int64), scores


def _check_groups(groups: Sequence[Hashable], images: int) -> None:
    if len(groups) != images:
        raise InputError(f"metrics need one group per image, got {len(groups)} groups for {images} images")
