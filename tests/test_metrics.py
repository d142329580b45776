"""What a user relies on in a metrics table: the values are right, and the intervals say what they claim."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from answers import predictor
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from edgemed.auroc import auroc_interval
from edgemed.by_class import intervals_by_class
from edgemed.errors import InputError
from edgemed.metrics import (
    INTERVAL_METRICS,
    auroc_change,
    calibration_error_by_chance,
    classification_metrics,
    expected_calibration_error,
    metrics_with_intervals,
)
from edgemed.stats import Interval, mean_of, mean_of_bounds, tail

CLASSES = ("a", "b", "c")


def test_values_computed_by_hand() -> None:
    labels = [0, 0, 0, 1, 1, 2]
    probabilities = [
        [0.8, 0.1, 0.1],
        [0.6, 0.3, 0.1],
        [0.2, 0.7, 0.1],  # a decided b
        [0.1, 0.8, 0.1],
        [0.5, 0.4, 0.1],  # b decided a
        [0.3, 0.1, 0.6],
    ]
    metrics = classification_metrics(labels, probabilities, CLASSES)
    assert metrics["n"] == 6
    assert metrics["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]  # rows are the truth
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["sensitivity"] == pytest.approx({"a": 2 / 3, "b": 1 / 2, "c": 1})
    assert metrics["specificity"] == pytest.approx({"a": 2 / 3, "b": 3 / 4, "c": 1})
    assert metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)  # F1 of a is 4/6, of b 2/4
    # a: of its 3 x 3 pairs the score 0.2 loses to 0.5 and to 0.3. b: 0.4 loses to 0.7 only, 0.8 to none, of 8 pairs.
    assert metrics["auroc_per_class"] == pytest.approx({"a": 7 / 9, "b": 7 / 8, "c": 1})
    assert metrics["auroc"] == pytest.approx((7 / 9 + 7 / 8 + 1) / 3)


def test_a_tie_of_probabilities_decides_for_the_first_class_and_counts_half_in_the_auroc() -> None:
    metrics = classification_metrics([0, 1], [[0.5, 0.5], [0.5, 0.5]], ("a", "b"))
    assert metrics["confusion"] == [[1, 0], [1, 0]]
    assert metrics["auroc"] == 0.5


def test_a_perfect_predictor_scores_one_everywhere_and_claims_no_certainty_of_it() -> None:
    labels = np.arange(30) % 3
    metrics = metrics_with_intervals(labels, np.eye(3)[labels], list(range(30)), CLASSES)
    exact = 0.025 ** (1 / 30)  # below it, 30 of 30 would be right in less than 2.5 %
    assert metrics["accuracy"] == {"value": 1.0, "low": pytest.approx(exact), "high": 1.0}
    of_class = 0.025 ** (1 / 10)  # ten of ten; three that are independent fall short by as much together only rarely
    low = 1 - (1 - of_class) / 3**0.5
    assert metrics["balanced_accuracy"] == {"value": 1.0, "low": pytest.approx(low), "high": 1.0}
    for name in ("macro_f1", "auroc"):
        assert metrics[name]["value"] == metrics[name]["high"] == 1 and 0.8 < metrics[name]["low"] < 0.95
    assert metrics["ece"] == 0.0


def test_draws_without_a_rare_class_do_not_lift_the_bounds_of_its_averages() -> None:
    labels = np.array([0] * 5000 + [1] * 5000 + [2] * 100)
    groups = [*range(10_000), *(k % 10 for k in range(100))]  # the rare class in ten groups, which also hold others
    decided = np.where(labels == 2, 0, labels)  # it is never recognised, the first one in nine of ten
    decided[:5000:10] = 1
    metrics = metrics_with_intervals(labels, np.eye(3)[decided], groups, CLASSES, resamples=300)
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(1.9 / 3)
    for name in ("balanced_accuracy", "macro_f1"):  # without the rare class they are 0.95; its 0 of 10 may be 0.31
        assert metrics[name]["high"] < 0.8, metrics[name]


@pytest.mark.parametrize("rare", [9, 10])
def test_averages_over_classes_have_no_bounds_where_one_class_is_in_few_groups(rare: int) -> None:
    """With three groups of it, 95 % intervals of the balanced accuracy would hold the truth in 59 of 100 cases."""
    labels = np.array([0] * 60 + [1] * 60 + [2] * rare)
    _, probabilities = predictor(len(labels), seed=0)
    metrics = metrics_with_intervals(labels, probabilities, range(len(labels)), CLASSES, resamples=100)
    assert metrics["accuracy"]["low"] < metrics["accuracy"]["value"] < metrics["accuracy"]["high"]
    for name in ("balanced_accuracy", "macro_f1", "auroc"):
        assert (metrics[name]["low"] is None) == (metrics[name]["high"] is None) == (rare < 10)
    _, other = predictor(len(labels), seed=1)
    change = auroc_change(labels, probabilities, other, range(len(labels)))
    assert np.isfinite(change.value) and np.isnan(change.low) == (rare < 10)


def test_the_calibration_error_by_chance_is_that_of_coins_which_fall_as_often_as_they_are_said_to() -> None:
    rights = np.arange(61)  # of 60 images, all of confidence 0.8, which share a bin
    error, weight = np.abs(rights / 60 - 0.8), binom.pmf(rights, 60, 0.8)
    chance = calibration_error_by_chance(np.tile([0.8, 0.15, 0.05], (60, 1)), resamples=4000)
    assert chance["mean"] == pytest.approx((error * weight).sum(), rel=0.03)
    assert weight[error > chance["high"] + 1e-9].sum() < 0.025 < weight[error >= chance["high"] - 1e-9].sum()


def test_overconfidence_stands_out_from_chance_and_exact_probabilities_do_not() -> None:
    rng = np.random.default_rng(0)
    exact = rng.dirichlet([1, 1, 1], 600)
    labels = (exact.cumsum(axis=1) < rng.random((600, 1))).sum(axis=1)
    sharp = exact**2 / (exact**2).sum(axis=1, keepdims=True)
    for probabilities, stands_out in ((exact, False), (sharp, True)):
        metrics = metrics_with_intervals(labels, probabilities, list(range(600)), CLASSES)
        assert (metrics["ece"] > metrics["ece_by_chance"]["high"]) is stands_out


def test_a_class_without_labels_is_undefined_and_leaves_the_averages_alone() -> None:
    probabilities = [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.2, 0.7]]
    metrics = classification_metrics([0, 1, 1], probabilities, CLASSES)
    assert metrics["sensitivity"] == {"a": 1.0, "b": 0.5, "c": None}
    assert metrics["auroc_per_class"] == {"a": 1.0, "b": 1.0, "c": None}
    assert metrics["auroc"] == 1.0
    assert metrics["balanced_accuracy"] == 0.75
    assert metrics["specificity"]["c"] == pytest.approx(2 / 3)
    json.dumps(metrics, allow_nan=False)


def test_a_decision_for_a_class_without_labels_is_in_the_interval_of_the_macro_f1_as_in_its_value() -> None:
    labels = np.arange(200) % 2
    decided = np.where(np.arange(200) < 10, 2, labels)  # ten for class c, whose F1 is 0
    found = metrics_with_intervals(labels, np.eye(3)[decided], range(200), CLASSES)["macro_f1"]
    assert found["low"] < found["value"] < found["high"] < 0.7


def test_one_class_alone_has_no_auroc_and_no_interval_for_it() -> None:
    metrics = metrics_with_intervals([1, 1], [[0.4, 0.6], [0.7, 0.3]], ["x", "y"], ("a", "b"), resamples=20)
    assert metrics["auroc"] == {"value": None, "low": None, "high": None}
    assert metrics["specificity"] == {"a": 0.5, "b": None}
    assert metrics["accuracy"]["value"] == 0.5
    json.dumps(metrics, allow_nan=False)


def held_by_both(resampled: list[float], labels: np.ndarray, alone: Interval) -> tuple[float, float]:
    """The bounds that hold the expanded percentiles and those of the classes' own intervals."""
    beyond = tail(np.bincount(labels).min())
    low, high = np.quantile(resampled, [beyond, 1 - beyond])
    return min(low, alone.low), max(high, alone.high)


@pytest.mark.parametrize(("positives", "negatives", "apart"), [(12, 400, 3.0), (30, 30, 3.0), (40, 40, 0.5)])
def test_a_true_auroc_lies_below_its_interval_in_few_cases_also_near_1(
    positives: int, negatives: int, apart: float
) -> None:
    """Below the percentiles of the bootstrap, it would lie in 22, 11 and 3 of 100 cases."""
    rng, below = np.random.default_rng(0), 0
    positive = np.arange(positives + negatives) < positives
    for _ in range(120):
        scores = rng.normal(size=len(positive)) + apart * positive
        below += auroc_interval(positive, scores, range(len(positive)), resamples=100).low > norm.cdf(apart / 2**0.5)
    assert below / 120 < 0.06


def test_the_interval_of_a_balanced_accuracy_knows_that_a_rare_class_may_not_always_be_right() -> None:
    labels = np.repeat([0, 1, 2], [200, 100, 12])
    decided = labels.copy()
    decided[:20] = 1  # of the rare class all twelve are right
    found = metrics_with_intervals(labels, np.eye(3)[decided], range(312), CLASSES)["balanced_accuracy"]
    assert found["value"] == pytest.approx(2.9 / 3)
    assert found["low"] < 2.9 / 3 - (1 - 0.025 ** (1 / 12)) / 3  # by the bootstrap alone: 0.952


def test_of_two_classes_the_auroc_is_no_surer_than_that_of_either() -> None:
    positive = np.arange(412) < 12
    scores = np.where(positive, 0.9, 0.1)
    metrics = metrics_with_intervals(positive.astype(int), np.stack([1 - scores, scores], 1), range(412), ("a", "b"))
    assert metrics["auroc"]["low"] == pytest.approx(metrics["intervals"]["auroc_per_class"]["b"]["low"])


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_auroc_is_scikit_learns_and_its_interval_that_of_a_plain_bootstrap_over_it(classes: int) -> None:
    labels, probabilities = predictor(140, seed=classes, classes=classes)
    names = [str(k) for k in range(classes)]
    metrics = metrics_with_intervals(labels, probabilities, list(range(140)), names, seed=3, resamples=200)
    rng, values = np.random.default_rng(3), []
    for _ in range(200):
        rows = rng.integers(0, 140, 140)
        defined = [k for k in range(classes) if k in labels[rows]]
        values.append(np.mean([roc_auc_score(labels[rows] == k, probabilities[rows, k]) for k in defined]))
    expected = np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in range(classes)])
    assert metrics["auroc"]["value"] == pytest.approx(expected)
    parts = intervals_by_class(labels, probabilities, range(140), names, seed=3, resamples=200)["auroc_per_class"]
    alone = mean_of_bounds(list(parts.values()))
    bounds = [metrics["auroc"]["low"], metrics["auroc"]["high"]]
    assert bounds == pytest.approx(held_by_both(values, labels, alone))


@pytest.mark.parametrize("name", INTERVAL_METRICS)
def test_intervals_hold_the_value_and_shrink_with_the_root_of_the_images(name: str) -> None:
    widths = []
    for n in (100, 1600):
        labels, probabilities = predictor(n, seed=1)
        interval = metrics_with_intervals(labels, probabilities, list(range(n)), CLASSES, resamples=400)[name]
        assert interval["low"] < interval["value"] < interval["high"]
        widths.append(interval["high"] - interval["low"])
    assert 3 < widths[0] / widths[1] < 5.3  # 4 in theory


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1"])
def test_an_interval_comes_from_resampling_the_very_metric_it_is_about(name: str) -> None:
    labels, probabilities = predictor(40, seed=5)
    probabilities = probabilities * [1.0, 1.0, 0.4]  # uneven classes: the three metrics differ
    interval = metrics_with_intervals(labels, probabilities, list(range(40)), CLASSES, seed=2, resamples=60)[name]
    rng, values = np.random.default_rng(2), []
    for _ in range(60):
        rows = rng.integers(0, 40, 40)
        values.append(classification_metrics(labels[rows], probabilities[rows], CLASSES)[name])
    parts = intervals_by_class(labels, probabilities, range(40), CLASSES, seed=2, resamples=60)
    if name == "balanced_accuracy":
        alone = mean_of(list(parts["sensitivity"].values()))
    else:
        alone = mean_of_bounds(list(parts["f1"].values()))
    assert [interval["low"], interval["high"]] == pytest.approx(held_by_both(values, labels, alone))


def test_groups_whose_images_fail_together_widen_the_interval() -> None:
    labels, probabilities = predictor(60, seed=2)
    repeated = np.repeat(labels, 4), np.repeat(probabilities, 4, axis=0)  # four copies of each patient's image

    def width(groups: list[int]) -> float:
        interval = metrics_with_intervals(*repeated, groups, CLASSES, resamples=400)["accuracy"]
        return float(interval["high"] - interval["low"])

    patients = np.repeat(np.arange(60), 4).tolist()
    assert width(patients) / width(list(range(240))) == pytest.approx(2, rel=0.2)  # the root of the 4 copies


def test_the_same_seed_gives_the_same_intervals_and_another_seed_does_not() -> None:
    labels, probabilities = predictor(50, seed=3)
    runs = [metrics_with_intervals(labels, probabilities, list(range(50)), CLASSES, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_the_calibration_error_is_zero_where_confidence_equals_accuracy_in_any_order() -> None:
    labels = np.repeat([0, 0, 0, 0, 1], 40)  # confidence 0.8 for class 0, right four times in five
    probabilities = np.tile([0.8, 0.2], (200, 1))
    assert expected_calibration_error(labels, probabilities) == pytest.approx(0, abs=1e-12)


def test_the_calibration_error_of_an_overconfident_predictor_is_its_excess() -> None:
    labels = np.repeat([0, 0, 0, 1, 1], 40)
    assert expected_calibration_error(labels, np.tile([0.9, 0.1], (200, 1))) == pytest.approx(0.3)


def test_calibration_bins_hold_equally_many_images_so_that_gaps_of_both_signs_do_not_cancel() -> None:
    # Twenty confidences between 0.90 and 0.92 would share one bin of equal width, with a gap of about 0.41. In ten bins
    # of two images each the ten right and the ten wrong ones stand apart: half gaps of 0.095 and half of 0.905.
    confidence = 0.9 + 0.001 * np.arange(20)
    labels = np.repeat([0, 1], 10)
    expected = (np.sum(1 - confidence[:10]) + np.sum(confidence[10:])) / 20
    error = expected_calibration_error(labels, np.stack([confidence, 1 - confidence], axis=1))
    assert error == pytest.approx(expected)
    assert error > 0.49


@pytest.mark.parametrize(
    ("labels", "probabilities", "says"),
    [
        ([], np.zeros((0, 2)), "at least one image"),
        ([0, 1], [[0.5, 0.5]], "one row of probabilities per label"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "integers in 0..1"),
        ([0.0, 1.0], [[0.5, 0.5], [0.5, 0.5]], "integers in 0..1"),
        ([0, 1], [[3.0, -2.0], [0.5, 0.5]], "not logits"),
        ([0, 1], [[np.nan, 0.5], [0.5, 0.5]], "probabilities must lie in 0..1"),
    ],
)
def test_wrong_input_is_named(labels: Any, probabilities: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        classification_metrics(labels, probabilities, ("a", "b"))


def test_groups_must_match_the_images() -> None:
    labels, probabilities = predictor(4, seed=0)
    with pytest.raises(InputError, match="3 groups for 4 images"):
        metrics_with_intervals(labels, probabilities, [1, 2, 3], CLASSES)
