"""What an operating point promises holds, on images that it never saw."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="extra train is not installed")

from answers import CLASSES, drawn

from edgemed import operating_quality
from edgemed.errors import InputError
from edgemed.evaluate import Table
from edgemed.manifest import OperatingPoint
from edgemed.operating import REFER, decide, disagreement
from edgemed.operating_fit import Wanted, allowed_failures, fitted_point, outcomes
from edgemed.operating_quality import Part, judged, selective_metrics

WANTED = Wanted("malignant", sensitivity=0.9, answer=0.8)


def decisions(point: Any, table: Table) -> list[Any]:
    return [decide(point, CLASSES, *row) for row in zip(table.probabilities, table.members, strict=True)]


def covered(point: Any, table: Table) -> float:
    truth = [CLASSES[k] for k in table.labels]
    sets = [one.prediction_set for one in decisions(point, table)]
    return float(np.mean([name in kept for name, kept in zip(truth, sets, strict=True)]))


@pytest.mark.parametrize(("groups", "copies"), [(50, 1), (15, 10)])
def test_the_sets_hold_the_true_label_as_often_as_stated_on_new_images(groups: int, copies: int) -> None:
    """Over many draws: at least the stated share, and not much more. Copies must not pass for so many more images."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        point = fitted_point(Wanted(coverage=0.9), CLASSES, drawn(rng, groups, copies))
        found.append(covered(point, drawn(rng, 60)))
    error = np.std(found) / math.sqrt(len(found))
    assert np.mean(found) > 0.9 - 2 * error
    assert np.mean(found) < 0.9 + 1 / (groups + 1) + 2 * error


@pytest.mark.parametrize(("largest", "told"), [(10, False), (11, True)])
def test_a_group_of_many_images_is_told_of(largest: int, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    table = drawn(np.random.default_rng(0), 50)
    groups = tuple("one" if k < largest else group for k, group in enumerate(table.groups))
    fitted_point(Wanted(coverage=0.9), CLASSES, replace(table, groups=groups))
    assert (f"--coverage 0.9 may be missed: it is exact for groups of one size, and {largest}" in caplog.text) is told


@given(st.integers(1, 300), st.integers(1, 99))
@example(9, 90)  # as many as 90 % needs: a float of 0.1 is a little less
def test_the_rank_is_that_of_split_conformal_prediction(images: int, percent: int) -> None:
    rank = math.ceil((images + 1) * Fraction(percent, 100))  # of the score that bounds the set
    assert allowed_failures(1 - percent / 100, images, images) == images - rank


@st.composite
def tables(draw: st.DrawFn) -> Table:
    table = drawn(np.random.default_rng(draw(st.integers(0, 1000))), draw(st.integers(60, 120)))
    rounded = table.members.round(draw(st.sampled_from([1, 6])))  # one digit: many ties
    return replace(table, members=rounded / rounded.sum(axis=2, keepdims=True))


@settings(max_examples=40, deadline=None)
@given(tables(), st.floats(0.3, 0.9))
def test_the_threshold_attains_the_wanted_sensitivity_and_no_higher_one_does(table: Table, wanted: float) -> None:
    positive = table.labels == 1
    scores = table.probabilities[positive, 1].astype(np.float64)
    point = fitted_point(Wanted("malignant", sensitivity=wanted), CLASSES, table)
    called = [one.decision == "malignant" for one, own in zip(decisions(point, table), positive, strict=True) if own]
    assert np.mean(called) >= wanted
    higher = scores[scores >= point.threshold].min() + 1e-9
    assert (scores < higher).sum() > allowed_failures(1 - wanted, len(scores), len(scores))


@settings(max_examples=40, deadline=None)
@given(tables(), st.floats(0.3, 0.9))
def test_the_threshold_attains_the_wanted_specificity_and_no_lower_one_does(table: Table, wanted: float) -> None:
    others = table.labels != 1
    scores = table.probabilities[others, 1].astype(np.float64)
    point = fitted_point(Wanted("malignant", specificity=wanted), CLASSES, table)
    called = [one.decision == "malignant" for one, own in zip(decisions(point, table), others, strict=True) if own]
    assert 1 - np.mean(called) >= wanted
    lower = scores[scores < point.threshold].max()
    assert (scores >= lower).sum() > allowed_failures(1 - wanted, len(scores), len(scores))


def test_sensitivity_and_answers_hold_on_new_images_on_average() -> None:
    rng = np.random.default_rng(1)
    found, answered, wrong = [], [], []
    for _ in range(200):
        fitted_on, new = drawn(rng, 90), drawn(rng, 90)
        point = fitted_point(Wanted("malignant", sensitivity=0.9, answer=0.8), CLASSES, fitted_on)
        each = decisions(point.model_copy(update={"max_disagreement": None}), new)
        found.append(np.mean([d.decision == "malignant" for d, k in zip(each, new.labels, strict=True) if k == 1]))
        answered.append(np.mean([one.decision != REFER for one in decisions(point, new)]))
        point = fitted_point(Wanted(max_error=0.1), CLASSES, fitted_on)
        truth = [CLASSES[k] for k in new.labels]
        decided = [one.decision for one in decisions(point, new)]
        wrong.append(np.mean([d not in (name, REFER) for d, name in zip(decided, truth, strict=True)]))
    for values, promised in ((found, 0.9), (answered, 0.8), (1 - np.array(wrong), 0.9)):
        error = np.std(values) / math.sqrt(len(values))
        assert promised - 2 * error < np.mean(values) < promised + 0.05


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(),
        Wanted("malignant", sensitivity=0.8, coverage=0),
        Wanted("malignant", specificity=0.8, coverage=0),
        Wanted(answer=0.8, coverage=0),
        Wanted(max_error=0.1, coverage=0),
    ],
)
def test_more_images_of_the_same_patients_promise_no_more(wanted: Wanted) -> None:
    for seed in range(6):
        once, thrice = (drawn(np.random.default_rng(seed), 63, copies) for copies in (1, 3))
        point = fitted_point(wanted, CLASSES, thrice)
        assert point == fitted_point(wanted, CLASSES, once).model_copy(update={"images": 189})


def test_wrong_answers_are_those_of_the_decisions_by_the_threshold() -> None:
    """A low threshold calls many images malignant that are not the most probably so: these errors are referred, too."""
    table = drawn(np.random.default_rng(4), 200)
    point = fitted_point(Wanted("malignant", sensitivity=0.98, max_error=0.2, coverage=0), CLASSES, table)
    truth = [CLASSES[k] for k in table.labels]
    wrong = [one.decision not in (REFER, name) for one, name in zip(decisions(point, table), truth, strict=True)]
    assert sum(wrong) == allowed_failures(0.2, 200, 200, spare=2)  # as few are referred as that takes


def test_what_so_few_images_cannot_promise_is_refused_with_what_they_can() -> None:
    table = drawn(np.random.default_rng(0), 8)
    with pytest.raises(
        InputError, match=r"--coverage 0\.9 needs at least 9 .*, and there are 8; ask for at most 0\.888"
    ):
        fitted_point(Wanted(), CLASSES, table)
    fitted_point(Wanted(coverage=0.888), CLASSES, table)
    with pytest.raises(InputError, match=r"--sensitivity 0\.95 needs at least 19 "):
        fitted_point(Wanted("malignant", sensitivity=0.95, coverage=0), CLASSES, table)
    with pytest.raises(InputError, match=r"--max-error 0\.05 needs at least 19 .* are 8; ask for at least 0\.112"):
        fitted_point(Wanted(max_error=0.05, coverage=0), CLASSES, table)
    fitted_point(Wanted(max_error=0.112, coverage=0), CLASSES, table)
    with pytest.raises(InputError, match="Did you mean 'malignant'"):
        fitted_point(Wanted("malignat", sensitivity=0.5, coverage=0), CLASSES, table)


def test_where_few_enough_answers_are_wrong_nothing_is_referred() -> None:
    table = drawn(np.random.default_rng(0), 60)
    point = fitted_point(Wanted(max_error=0.9), CLASSES, table)
    assert not [one for one in decisions(point, table) if one.decision == REFER]


def test_members_that_are_wrong_together_cannot_be_told_by_their_disagreement() -> None:
    table = drawn(np.random.default_rng(0), 60, members=1)
    with pytest.raises(InputError, match="wrong together"):
        fitted_point(Wanted(max_error=0.05), CLASSES, table)


def test_a_limit_that_refers_every_image_is_no_operating_point() -> None:
    table = drawn(np.random.default_rng(0), 60)
    apart = disagreement(table.probabilities, table.members)
    first = int(apart.argmin())  # wrong, and less apart than any other
    shares = table.members.copy()
    shares[first] = np.roll(shares[first], 1 + table.labels[first] - shares[first].mean(0).argmax(), axis=-1)
    wrong = Table(table.paths, table.labels, table.groups, shares)
    with pytest.raises(InputError, match="every calibration image would be referred"):
        fitted_point(Wanted(max_error=1 / 61, coverage=0), CLASSES, wrong)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"positive": "a"}, "one of --sensitivity and --specificity"),
        ({"positive": "a", "sensitivity": 0.9, "specificity": 0.9}, "one of"),
        ({"sensitivity": 0.9}, "--positive"),
        ({"answer": 0.9, "max_error": 0.1}, "give one"),
        ({"coverage": 1.0}, "--coverage 1 is not a share"),
        ({"coverage": math.nan}, "--coverage nan"),
        ({"max_error": 0.0}, "--max-error 0"),
        ({"coverage": 0.0}, "nothing is wanted"),
    ],
)
def test_what_cannot_be_wanted_names_the_flag(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Wanted(**flags)


def test_the_judgement_counts_what_the_decisions_do() -> None:
    rng = np.random.default_rng(5)
    calibration, test = drawn(rng, 80), drawn(rng, 200)
    point = fitted_point(WANTED, CLASSES, calibration)
    found = judged([Part(point, calibration, test)], CLASSES)
    each = decisions(point, test)
    truth = np.array(CLASSES)[test.labels]
    made = np.array([one.decision for one in each])
    assert found["sets"]["coverage"]["value"] == pytest.approx(covered(point, test))
    assert found["referral"]["answered"]["value"] == pytest.approx(np.mean(made != REFER))
    assert found["referral"]["wrong_answers"]["value"] == pytest.approx(np.mean((made != truth) & (made != REFER)))
    assert found["referral"]["accuracy_of_answers"]["value"] == pytest.approx(np.mean((made == truth)[made != REFER]))
    positive, answered, named = truth == WANTED.positive, made != REFER, made == WANTED.positive
    threshold = found["threshold"]["of_answers"]
    assert threshold["sensitivity"]["value"] == pytest.approx(named[positive & answered].mean())
    assert threshold["specificity"]["value"] == pytest.approx(1 - named[~positive & answered].mean())
    columns = (*CLASSES, REFER)
    counts = [[int(((truth == a) & (made == b)).sum()) for b in columns] for a in CLASSES]
    assert found["decisions"] == counts
    assert found["sets"]["share_by_size"] == pytest.approx(
        [np.mean([len(one.prediction_set) == size for one in each]) for size in range(4)]
    )


def test_an_image_at_the_limit_of_disagreement_is_judged_as_it_is_decided() -> None:
    members = np.array([[[0.875, 0.125, 0], [0.625, 0.375, 0]], [[1, 0, 0], [0.5, 0.5, 0]]], np.float32)  # 1/8, 1/4
    table = Table(("a", "b"), np.array([0, 0]), ("a", "b"), members)
    point = OperatingPoint(images=9, max_disagreement=0.125)
    assert [one.decision for one in decisions(point, table)] == [CLASSES[0], REFER]
    assert outcomes(point, CLASSES, table).referred.tolist() == [False, True]


def test_few_positive_groups_promise_nothing_and_those_that_are_all_right_no_certainty() -> None:
    point = OperatingPoint(images=50, positive=CLASSES[1], threshold=0.3, target="sensitivity", target_value=0.9)
    for positives, low in ((3, None), (20, 0.025 ** (1 / 20))):
        labels = np.array([1] * positives + [0] * 60)
        shares = np.where(labels[:, None] == 1, [[0.1, 0.9, 0.0]], [[0.9, 0.1, 0.0]]).astype(np.float32)
        groups = tuple(str(k) for k in range(len(labels)))
        test = Table(groups, labels, groups, np.stack([shares, shares], axis=1))
        found = judged([Part(point, None, test)], CLASSES)["threshold"]
        assert found["sensitivity"] == {"value": 1.0, "low": low and pytest.approx(low), "high": low and 1.0}
        assert found["specificity"]["low"] == pytest.approx(0.025 ** (1 / 60))


def test_a_coverage_over_few_test_groups_has_no_bounds_however_many_calibrated_it() -> None:
    rng = np.random.default_rng(2)
    calibration, test = drawn(rng, 80), drawn(rng, 6)
    point = fitted_point(Wanted(), CLASSES, calibration)
    coverage = judged([Part(point, calibration, test)], CLASSES)["sets"]["coverage"]
    assert coverage["low"] is None and coverage["high"] is None and coverage["value"] is not None


def test_the_interval_of_the_coverage_is_honest_about_the_draw_of_the_calibration_images() -> None:
    """The stated coverage lies in the 95 % interval about that often; in one over test images alone it does not."""
    rng = np.random.default_rng(2)
    both, alone = [], []
    for _ in range(60):
        calibration, test = drawn(rng, 40), drawn(rng, 400)
        found = judged([Part(fitted_point(Wanted(), CLASSES, calibration), calibration, test)], CLASSES)["sets"]
        for hits, name in ((both, "coverage"), (alone, "coverage_of_these_sets")):
            hits.append(found[name]["low"] <= 0.9 <= found[name]["high"])
    assert np.mean(both) > 0.85
    assert np.mean(alone) < 0.7


def test_the_interval_of_the_coverage_is_that_of_the_sets_that_were_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted again on the very calibration images, the sets hold the true label as often as those that are stated."""
    rng, seen, real = np.random.default_rng(2), list[float](), operating_quality.group_bootstrap

    def noted(*arguments: Any, **settings: Any) -> Any:
        found = real(*arguments, **settings)
        seen.append(found.value)
        return found

    monkeypatch.setattr(operating_quality, "group_bootstrap", noted)
    calibration, test = drawn(rng, 40), drawn(rng, 400)
    found = judged([Part(fitted_point(Wanted(), CLASSES, calibration), calibration, test)], CLASSES)["sets"]
    assert seen == [pytest.approx(found["coverage"]["value"], abs=1 / 400)]


def test_folds_that_were_fitted_for_different_things_are_not_pooled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    tables = [(drawn(rng, 60), drawn(rng, 60)) for _ in range(3)]
    parts = {Path(str(k)): Part(fitted_point(WANTED, CLASSES, own), own, test) for k, (own, test) in enumerate(tables)}
    found: dict[Path, Part | None] = dict(parts)
    monkeypatch.setattr(operating_quality, "part_of_run", lambda run, classes: found[run])
    monkeypatch.setattr(operating_quality, "read_table", lambda run, classes, split: parts[run].test)
    runs = list(parts)
    assert selective_metrics(runs, CLASSES)["operating"] == judged(list(parts.values()), CLASSES)
    assert not caplog.records
    for other in (Wanted(coverage=0.9), replace(WANTED, sensitivity=0.8), None):
        for fold, (own, test) in zip(runs, tables, strict=True):
            found = dict(parts) | {fold: other and Part(fitted_point(other, CLASSES, own), own, test)}
            assert selective_metrics(runs, CLASSES)["operating"] is None
            assert "run `edgemed calibrate`" in caplog.records[-1].getMessage()
    found = dict.fromkeys(runs)
    assert selective_metrics(runs, CLASSES)["operating"] is None
    assert len(caplog.records) == 9
