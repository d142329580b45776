"""The report's curves are the figures they claim to be: against closed forms, scikit-learn and the ECE."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="extra eval is not installed")

from answers import drawn
from sklearn.metrics import roc_auc_score, roc_curve

from edgemed.curves import reliability, risk_coverage, roc
from edgemed.evaluate import Table
from edgemed.metrics import expected_calibration_error


def test_the_bins_are_those_of_the_calibration_error() -> None:
    table = drawn(np.random.default_rng(0), 333)
    bins = reliability(table)
    gaps = np.abs(bins.accuracy - bins.confidence) * bins.images
    ece = expected_calibration_error(table.labels, table.probabilities)
    assert gaps.sum() / len(table.labels) == pytest.approx(ece, abs=1e-6)
    assert bins.images.sum() == 333
    assert (np.diff(bins.confidence) > 0).all()
    assert ((bins.low <= bins.accuracy + 1e-9) & (bins.accuracy <= bins.high + 1e-9)).all()


def test_copies_of_an_image_do_not_narrow_the_bars() -> None:
    alone, copied = drawn(np.random.default_rng(0), 200), drawn(np.random.default_rng(0), 200, copies=5)
    widths = [(bins.high - bins.low).mean() for bins in (reliability(alone), reliability(copied))]
    assert widths[1] == pytest.approx(widths[0], rel=0.05)


def test_a_few_right_answers_prove_little() -> None:
    """Wilson's interval of 10 right among 10 begins at 0.722 (scipy.stats.binomtest(10, 10).proportion_ci)."""
    bins = reliability(of([[0.9, 0.1]] * 10, [0] * 10))
    assert bins.accuracy.tolist() == [1.0]
    assert bins.low[0] == pytest.approx(0.7225, abs=1e-4)
    assert bins.high[0] == pytest.approx(1.0)


def of(shares: list[list[float]], labels: list[int]) -> Table:
    names = tuple(map(str, range(len(labels))))
    return Table(names, np.array(labels), names, np.array(shares, np.float32)[:, None])


def test_the_risk_is_the_error_among_the_surest_images() -> None:
    table = of([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]], [0, 1, 0, 1])
    found = risk_coverage(table)
    assert found["coverage"] == [0.25, 0.5, 0.75, 1.0]
    assert found["confidence"]["risk"] == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert found["confidence"]["area"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    # One member never disagrees with itself: nothing can be told apart, so every share has the same error.
    assert found["disagreement"]["risk"] == pytest.approx([1 / 2] * 4)


def test_the_order_of_the_images_does_not_matter_to_the_risk() -> None:
    table = drawn(np.random.default_rng(3), 120)
    table = replace(table, members=table.members.round(1))  # ties
    turned = Table(table.paths[::-1], table.labels[::-1], table.groups[::-1], table.members[::-1])
    for name in ("disagreement", "confidence"):
        assert risk_coverage(turned)[name]["risk"] == pytest.approx(risk_coverage(table)[name]["risk"])


@pytest.mark.parametrize("digits", [1, 6])
def test_the_roc_is_scikit_learns(digits: int) -> None:
    table = drawn(np.random.default_rng(1), 150)
    table = replace(table, members=table.members.round(digits))
    truth, scores = table.labels == 1, table.probabilities[:, 1]
    found = roc(table, 1, resamples=100)
    assert found is not None
    assert found.area.value == pytest.approx(roc_auc_score(truth, scores))
    assert found.area.low < found.area.value < found.area.high
    rates, hits, _ = roc_curve(truth, scores, drop_intermediate=False)
    upper = dict(zip(rates, hits, strict=True))  # the last, highest one at each rate
    assert found.sensitivity == pytest.approx(np.interp(found.rates, list(upper), list(upper.values())))
    assert (found.low <= found.sensitivity + 1e-9).all()
    assert (found.high >= found.sensitivity - 1e-9).all()


def test_the_band_is_no_line_where_the_curve_is_at_its_height() -> None:
    table = of([[0.1, 0.9]] * 20 + [[0.9, 0.1]] * 100, [1] * 20 + [0] * 100)
    found = roc(table, 1, resamples=50)
    assert found is not None
    assert (found.sensitivity[-1], found.high[-1]) == (1, 1)
    assert found.low[1:-1] == pytest.approx(np.full(99, 0.025 ** (1 / 20)))  # 20 of 20


def test_a_class_without_images_has_no_roc() -> None:
    table = drawn(np.random.default_rng(1), 50)
    assert roc(replace(table, labels=np.zeros(50, np.int64)), 1) is None


@pytest.mark.parametrize(("few", "known"), [(9, False), (10, True)])
def test_a_class_in_few_groups_has_a_roc_without_a_band(few: int, known: bool) -> None:
    table = drawn(np.random.default_rng(1), 150)
    found = roc(replace(table, labels=(np.arange(150) < few).astype(np.int64)), 1, resamples=50)
    assert found is not None and np.isfinite(found.area.value)
    assert [np.isfinite(values).all() for values in (found.low, found.high, found.area.low)] == [known] * 3
