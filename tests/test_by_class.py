"""Each class's figures have intervals that count patients, and none where there are too few: in JSON and model card."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="extra eval is not installed")

from sklearn.metrics import roc_auc_score

from edgemed.auroc import auroc_interval, score_interval
from edgemed.by_class import BY_CLASS, figure_of_class, intervals_by_class
from edgemed.card import model_card
from edgemed.evaluate import Table, evaluation
from edgemed.metrics import metrics_with_intervals
from edgemed.stats import group_resamples, share, tail

CLASSES = ("benign", "malignant", "normal")
RARE = 13  # groups of the class "normal"


def predicted(groups: int = 90, each: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels (N,), probabilities (N, 3) and groups of `each` images, whose scores are nearly alike."""
    rng = np.random.default_rng(seed)
    labels = np.where(np.arange(groups) < RARE, 2, np.arange(groups) % 2)
    scores = rng.normal(size=(groups, 3))
    scores[np.arange(groups), labels] += 1
    labels, scores = np.repeat(labels, each), np.repeat(scores, each, axis=0) + rng.normal(0, 0.1, (groups * each, 3))
    return labels, np.exp(scores) / np.exp(scores).sum(1, keepdims=True), [f"p{k // each}" for k in range(len(labels))]


def test_the_intervals_are_over_patients_and_the_auroc_that_of_a_plain_bootstrap_of_them() -> None:
    labels, shares, groups = predicted()
    metrics = metrics_with_intervals(labels, shares, groups, CLASSES, seed=3, resamples=200)
    decided = shares.argmax(axis=1)
    for k, (name, of_class) in enumerate(zip(CLASSES, (38, 39, RARE), strict=True)):
        for key, counts, hits in (
            ("sensitivity", labels == k, decided == k), ("specificity", labels != k, decided != k)
        ):  # fmt: skip
            own = [group for group, here in zip(groups, counts, strict=True) if here]
            value, *bounds = share(hits[counts], np.full(len(own), True), own)
            assert list(metrics["intervals"][key][name].values()) == bounds
            assert metrics[key][name] == pytest.approx(value) == pytest.approx(hits[counts].mean())
        aurocs = [
            roc_auc_score(labels[rows] == k, shares[rows, k])
            for rows in group_resamples(groups, resamples=200, seed=3)
        ]
        low, high = np.quantile(aurocs, [tail(of_class), 1 - tail(of_class)])
        alone = score_interval(metrics["auroc_per_class"][name], of_class, 90 - of_class)
        expected = {"low": pytest.approx(min(low, alone.low)), "high": pytest.approx(max(high, alone.high))}
        assert metrics["intervals"]["auroc_per_class"][name] == expected


def test_more_images_of_the_same_patients_do_not_narrow_an_interval() -> None:
    few, many = (intervals_by_class(*predicted(each=each), CLASSES) for each in (1, 6))
    for key in BY_CLASS:
        widths = [found[key]["malignant"].high - found[key]["malignant"].low for found in (few, many)]
        assert widths[1] == pytest.approx(widths[0], rel=0.25)  # the root of 6 would be 2.4


@pytest.mark.parametrize(("groups_of_class", "known"), [(9, False), (10, True)])
def test_a_class_of_few_patients_has_no_interval_however_many_images_there_are(
    groups_of_class: int, known: bool
) -> None:
    labels, shares, groups = predicted(each=8)
    kept = (labels != 2) | np.isin(groups, [f"p{k}" for k in range(groups_of_class)])
    own = [group for group, here in zip(groups, kept, strict=True) if here]
    found = intervals_by_class(labels[kept], shares[kept], own, CLASSES)
    assert np.isfinite(found["sensitivity"]["normal"].low) == known
    assert np.isfinite(found["auroc_per_class"]["normal"].low) == known
    assert np.isfinite([found["specificity"]["normal"].low, found["sensitivity"]["benign"].low]).all()
    turned = auroc_interval(labels[kept] != 2, -shares[kept][:, 2], own)  # few of the other kind
    assert np.isfinite(turned.low) == known


def test_what_is_always_right_has_bounds_all_the_same() -> None:
    labels, _, groups = predicted()
    found = intervals_by_class(labels, np.eye(3)[labels], groups, CLASSES)
    assert found["sensitivity"]["normal"] == (1.0, pytest.approx(0.025 ** (1 / RARE)), 1.0)
    assert found["auroc_per_class"]["normal"] == score_interval(1.0, RARE, 90 - RARE)


def test_a_class_without_images_is_undefined_and_none_of_its_bounds_is_a_number() -> None:
    labels, shares, groups = predicted()
    metrics = metrics_with_intervals(labels % 2, shares, groups, CLASSES, resamples=20)
    nothing = {"value": None, "low": None, "high": None}
    assert figure_of_class(metrics, "sensitivity", "normal") == nothing
    assert figure_of_class(metrics, "auroc_per_class", "normal") == nothing
    assert figure_of_class(metrics, "specificity", "normal")["low"] is not None
    json.dumps(metrics, allow_nan=False)


def test_members_and_ensemble_have_them_all() -> None:
    labels, shares, groups = predicted()
    members = np.stack([shares, predicted(seed=0)[1] ** 2], axis=1).astype(np.float32)
    members /= members.sum(axis=2, keepdims=True)
    found = evaluation(Table((), labels, tuple(groups), members), ("imagenet", "mae"), CLASSES)
    for predictor in (found["ensemble"], *found["members"].values()):
        for key in BY_CLASS:
            for name in CLASSES:
                figure = figure_of_class(predictor, key, name)
                assert figure["low"] < figure["value"] < figure["high"]  # type: ignore[operator]


def card(metrics: dict[str, Any]) -> str:
    source = SimpleNamespace(
        backbone="convnext_atto", labels=CLASSES, operating_point=None, counts={"test": dict.fromkeys(CLASSES, 60)},
        member_names=("imagenet",), temperatures=(1.0,), size=64, data="Data.", made_from="A run",
        quality_of="split: test",
        metrics={"n": 180, "groups": 90, "ensemble": metrics, "members": {}},
    )  # fmt: skip
    return model_card(source, [], (), (32, 64, 96), 10**9, 10**6)  # type: ignore[arg-type]


def test_the_model_card_gives_the_intervals_of_each_class() -> None:
    labels, shares, groups = predicted()
    metrics = metrics_with_intervals(labels, shares, groups, CLASSES, resamples=20)
    figures = [figure_of_class(metrics, key, "malignant") for key in BY_CLASS]
    told = " | ".join(f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in figures)
    assert f"| malignant | {told} |" in card(metrics)
