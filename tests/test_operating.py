"""A decision follows the operating point to the letter; the C library is tested against the same rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemed.errors import InputError
from edgemed.manifest import OperatingPoint
from edgemed.operating import (
    REFER,
    changed_decisions,
    decide,
    disagreement,
    read_operating_point,
    write_operating_point,
)

LABELS = ("benign", "malignant", "normal")


def test_without_an_operating_point_the_most_probable_label_decides() -> None:
    found = decide(None, LABELS, [0.4, 0.4, 0.2], [[0.4, 0.4, 0.2]])
    assert found == ("benign", 0.0, None)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.7, 0.3, 0.0], "malignant"),  # at the threshold, though less probable
        ([0.7, 0.299, 0.001], "benign"),
        ([0.1, 0.2999, 0.6001], "normal"),  # below it, the best of the others
        ([0.3, 0.29, 0.41], "normal"),
    ],
)
def test_a_threshold_moves_the_decision_for_its_label_alone(shares: list[float], expected: str) -> None:
    point = OperatingPoint(images=50, positive="malignant", threshold=0.3, target="sensitivity", target_value=0.95)
    assert decide(point, LABELS, shares, [shares]).decision == expected


def test_below_the_threshold_the_positive_label_is_not_chosen_even_where_it_is_the_most_probable() -> None:
    point = OperatingPoint(images=50, positive="malignant", threshold=0.9, target="specificity", target_value=0.9)
    assert decide(point, LABELS, [0.1, 0.8, 0.1], [[0.1, 0.8, 0.1]]).decision == "benign"


def test_disagreement_is_the_mean_total_variation_distance_to_the_mean() -> None:
    members = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.4], [0.6, 0.4]], [[0.9, 0.1], [0.5, 0.5]]])
    assert np.allclose(disagreement(members.mean(axis=1), members), [0.5, 0.0, 0.2])


@pytest.mark.parametrize(("count", "labels"), [(2, 3), (2, 10), (2, 200), (20, 3), (20, 23)])
def test_disagreement_is_added_up_in_order_as_in_c(count: int, labels: int) -> None:
    """NumPy's own sum of 8 and more takes them in pairs, and the last digit decides at a limit."""
    logits = np.exp(np.random.default_rng(0).normal(size=(50, count, labels)) * 8)
    members = (logits / logits.sum(axis=2, keepdims=True)).astype(np.float32)
    shares = members.mean(axis=1, dtype=np.float32)
    for row, found in enumerate(disagreement(shares, members).tolist()):
        total = 0.0
        for each in members[row].tolist():
            distance = 0.0
            for share, mean in zip(each, shares[row].tolist(), strict=True):
                distance += abs(share - mean)
            total += distance
        assert found == total / count / 2
        assert found == disagreement(shares[row][None], members[row][None])[0]


def test_members_that_disagree_refer_the_image() -> None:
    members = [[0.9, 0.1, 0.0], [0.5, 0.5, 0.0]]  # 0.2 from their mean
    shares = [0.7, 0.3, 0.0]
    assert decide(OperatingPoint(images=9, max_disagreement=0.19), LABELS, shares, members).decision == REFER
    assert decide(OperatingPoint(images=9, max_disagreement=0.21), LABELS, shares, members).decision == "benign"


def test_the_prediction_set_holds_every_label_that_is_probable_enough() -> None:
    point = OperatingPoint(images=99, coverage=0.9, min_probability=0.25)
    assert decide(point, LABELS, [0.5, 0.25, 0.25], [[0.5, 0.25, 0.25]]).prediction_set == LABELS
    assert decide(point, LABELS, [0.76, 0.24, 0.0], [[0.76, 0.24, 0.0]]).prediction_set == ("benign",)


def test_a_threshold_is_compared_in_float64() -> None:
    point = OperatingPoint(images=9, positive="malignant", threshold=0.1, target="sensitivity", target_value=0.9)
    just_above = np.float32(0.1)  # 0.100000001490116
    shares = np.array([0.9, just_above, 0.0], np.float32)
    assert decide(point, LABELS, shares, shares[None]).decision == "malignant"
    point = point.model_copy(update={"threshold": 0.10000001})
    assert decide(point, LABELS, shares, shares[None]).decision == "benign"


THRESHOLD = OperatingPoint(images=50, positive="malignant", threshold=0.3, target="sensitivity", target_value=0.95)
SETS = OperatingPoint(images=50, coverage=0.9, min_probability=0.25)


@pytest.mark.parametrize(
    ("point", "before", "after", "margin", "changed"),
    [
        (THRESHOLD, [0.697, 0.303, 0.0], [0.703, 0.297, 0.0], 0.0, True),  # still the most probable: no flip of it
        (THRESHOLD, [0.697, 0.303, 0.0], [0.703, 0.297, 0.0], 0.01, False),  # the reference was that near itself
        (THRESHOLD, [0.70004, 0.29996, 0.0], [0.69996, 0.30004, 0.0], 0.0, False),
        (THRESHOLD, [0.55, 0.45, 0.0], [0.4, 0.6, 0.0], 0.0, False),  # decided malignant either way
        (SETS, [0.7, 0.26, 0.04], [0.7, 0.24, 0.06], 0.0, True),
        (SETS, [0.7, 0.26, 0.04], [0.7, 0.24, 0.06], 0.02, False),
        (SETS, [0.7, 0.26, 0.04], [0.7, 0.255, 0.045], 0.0, False),
    ],
)
def test_a_changed_decision_or_set_is_one_that_the_reference_was_clear_about(
    point: OperatingPoint, before: list[float], after: list[float], margin: float, changed: bool
) -> None:
    members = [[before], [before]], [[before], [after]]
    found = changed_decisions(point, LABELS, [before, before], [before, after], members, margin=margin)
    crossed = decide(point, LABELS, before, [before])[::2] != decide(point, LABELS, after, [after])[::2]
    assert found == (([1], []) if changed else ([], [1] if crossed else []))


def test_below_the_threshold_the_best_of_the_others_may_change_though_the_most_probable_does_not() -> None:
    point = OperatingPoint(images=50, positive="malignant", threshold=0.9, target="specificity", target_value=0.9)
    before, after = [0.11, 0.8, 0.09], [0.09, 0.8, 0.11]
    assert decide(point, LABELS, before, [before]).decision != decide(point, LABELS, after, [after]).decision
    members = [[before]], [[after]]
    assert changed_decisions(point, LABELS, [before], [after], members) == ([0], [])
    assert changed_decisions(point, LABELS, [before], [after], members, margin=0.03) == ([], [0])


def test_a_referral_changes_by_the_members_alone() -> None:
    point = OperatingPoint(images=9, max_disagreement=0.2)
    mean = np.array([[0.7, 0.3]])
    apart = np.array([[[0.95, 0.05], [0.45, 0.55]]])  # 0.25 from their mean
    together = np.array([[[0.8, 0.2], [0.6, 0.4]]])  # 0.1
    assert changed_decisions(point, LABELS[:2], mean, mean, (together, apart)) == ([0], [])
    assert changed_decisions(point, LABELS[:2], mean, mean, (together, together)) == ([], [])
    assert changed_decisions(point, LABELS[:2], mean, mean, (together, apart), margin=0.11) == ([], [0])


def test_at_the_limit_of_disagreement_an_image_is_answered_before_and_after() -> None:
    """Quarters and eighths, so that the disagreement is the limit itself."""
    point = OperatingPoint(images=9, max_disagreement=0.125)
    mean = np.array([[0.75, 0.25]])
    at, below, above = (np.array([[[0.75 + d, 0.25 - d], [0.75 - d, 0.25 + d]]]) for d in (0.125, 0.0625, 0.25))
    for before, after in ((above, at), (at, above), (below, at), (at, below)):
        decided = {decide(point, LABELS[:2], mean[0], each[0]).decision for each in (before, after)}
        found, _ = changed_decisions(point, LABELS[:2], mean, mean, (before, after))
        clear = before is not at  # the reference was at the limit itself
        assert bool(found) == (len(decided) > 1 and clear)


def test_a_run_keeps_its_operating_point_to_the_last_digit(tmp_path: Path) -> None:
    assert read_operating_point(tmp_path) is None
    point = OperatingPoint(
        images=50, positive="malignant", threshold=1 / 3, target="sensitivity", target_value=0.95,
        max_disagreement=float(np.float32(0.1)), coverage=0.9, min_probability=0.0,
    )  # fmt: skip
    write_operating_point(tmp_path, point)
    assert read_operating_point(tmp_path) == point


@pytest.mark.parametrize("text", ["{", '{"images": 5, "threshold": 0.5}', '{"images": 5, "max_disagreement": 2.0}'])
def test_a_damaged_operating_point_is_refused_with_the_way_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "operating_point.json").write_text(text)
    with pytest.raises(InputError, match="operating_point.json is not an operating point.* run `edgemed calibrate"):
        read_operating_point(tmp_path)
