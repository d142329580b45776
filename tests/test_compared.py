"""Two predictors on the same images: differences that are paired, and none where too few patients show one."""

from __future__ import annotations

import numpy as np
import pytest
from answers import predictor

from edgemed.evaluate import Table, evaluation
from edgemed.metrics import auroc_change, mcnemar, metrics_with_intervals, paired_difference

CLASSES = ("a", "b", "c")


def test_two_that_both_rank_perfectly_have_no_proof_of_being_alike() -> None:
    labels = np.arange(60) % 3
    change = auroc_change(labels, np.eye(3)[labels], np.eye(3)[labels], range(60))
    assert change.as_dict() == {"value": 0, "low": None, "high": None}


def test_the_difference_of_one_that_is_always_right_and_one_that_never_is_lies_within_its_bounds() -> None:
    right = np.eye(2)[np.arange(40) % 2]
    found = paired_difference(np.arange(40) % 2, right, right[:, ::-1], range(40))
    assert found.low == pytest.approx(0.025 ** (1 / 40)) and found.value == found.high == 1


def test_a_predictor_does_not_differ_from_itself() -> None:
    labels, probabilities = predictor(50, seed=4)
    same = paired_difference(labels, probabilities, probabilities, list(range(50)))
    most = 1 - 0.025 ** (1 / 50)  # were more groups to differ, none of 50 would in less than 2.5 %
    assert same == (0.0, pytest.approx(-most), pytest.approx(most))


@pytest.mark.parametrize(("differ", "shown"), [(1, False), (5, False), (6, True)])
def test_a_few_patients_who_differ_show_no_difference(differ: int, shown: bool) -> None:
    """All of them speak for the same predictor: five of five has p = 0.06 by the sign test, six of six 0.03."""
    labels = np.arange(100) % 2
    right = np.eye(2)[labels]
    wrong = right.copy()
    wrong[: 5 * differ] = right[: 5 * differ, ::-1]
    found = paired_difference(labels, right, wrong, np.repeat(range(20), 5).tolist())
    assert found.value == pytest.approx(differ / 20) and (found.low > 0) == shown
    most = 1 - 0.025 ** (1 / 20)
    assert shown or (found.low == pytest.approx(-most) and found.high >= most)


def test_a_paired_difference_is_signed_and_much_narrower_than_two_intervals() -> None:
    labels, weaker = predictor(200, seed=6, strength=1.0)
    better = weaker.copy()
    mended = np.flatnonzero(weaker.argmax(axis=1) != labels)[:12]
    better[mended] = np.eye(3)[labels[mended]]
    gain = paired_difference(labels, better, weaker, list(range(200)))
    loss = paired_difference(labels, weaker, better, list(range(200)))
    alone = metrics_with_intervals(labels, weaker, list(range(200)), CLASSES)["accuracy"]
    assert gain.value == pytest.approx(12 / 200)
    assert loss == pytest.approx((-gain.value, -gain.high, -gain.low))
    assert gain.low > 0
    assert gain.high - gain.low < 0.6 * (alone["high"] - alone["low"])


@pytest.mark.parametrize(("only_a", "only_b", "p"), [(8, 1, 20 / 512), (1, 8, 20 / 512), (3, 3, 1.0), (0, 0, 1.0)])
def test_mcnemar_counts_the_images_that_one_alone_gets_right(only_a: int, only_b: int, p: float) -> None:
    """By hand: of 9 throws of a fair coin, at most 1 or at least 8 heads have probability 2 (1 + 9) / 512."""
    both_right, both_wrong = 20, 5
    right_a = [True] * only_a + [False] * only_b + [True] * both_right + [False] * both_wrong
    right_b = [False] * only_a + [True] * only_b + [True] * both_right + [False] * both_wrong
    labels = np.arange(len(right_a)) % 2
    tables = [np.eye(2)[np.where(right, labels, 1 - labels)] for right in (right_a, right_b)]
    found = mcnemar(labels, *tables)
    assert (found["only_a"], found["only_b"]) == (only_a, only_b)
    assert found["p"] == pytest.approx(p)


def test_every_two_predictors_of_a_run_are_compared_on_the_same_images() -> None:
    labels, first = predictor(90, 0, 1.0)
    members = np.stack([first, predictor(90, 0, 2.0)[1]], axis=1).astype(np.float32)
    groups = tuple(str(k // 3) for k in range(90))
    found = evaluation(Table((), labels, groups, members), ("imagenet", "mae"), CLASSES)
    figures = found["members"] | {"ensemble": found["ensemble"]}
    pairs = [(pair["a"], pair["b"]) for pair in found["comparisons"]]
    assert pairs == [("ensemble", "imagenet"), ("ensemble", "mae"), ("mae", "imagenet")]
    for pair in found["comparisons"]:
        for key in ("accuracy", "auroc"):
            difference = figures[pair["a"]][key]["value"] - figures[pair["b"]][key]["value"]
            assert pair[key]["value"] == pytest.approx(difference)
            assert pair[key]["low"] < pair[key]["value"] < pair[key]["high"]
        test = pair["mcnemar"]
        assert test["only_a"] - test["only_b"] == pytest.approx(pair["accuracy"]["value"] * 90)
    assert found["comparisons"][2]["auroc"]["low"] > 0  # the second member was made the better one
