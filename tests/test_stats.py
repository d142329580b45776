"""Intervals: right on cases with a known answer, and honest about groups."""

from __future__ import annotations

import numpy as np
import pytest

from edgemed.errors import InputError
from edgemed.stats import group_bootstrap, group_resamples, group_times, share


def test_an_ordinary_bootstrap_of_a_mean_has_the_textbook_width() -> None:
    samples = np.random.default_rng(0).normal(10, 2, 400)
    standard_error = samples.std() / 20
    found = group_bootstrap(lambda index: samples[index].mean(), range(400), resamples=4000)
    assert found.value == pytest.approx(samples.mean())
    assert found.low == pytest.approx(samples.mean() - 1.96 * standard_error, abs=0.1 * standard_error)
    assert found.high == pytest.approx(samples.mean() + 1.96 * standard_error, abs=0.1 * standard_error)


def test_groups_are_drawn_whole() -> None:
    groups = np.repeat(range(12), [1, 4, *[2] * 10])
    drawn = []

    def statistic(index: np.ndarray) -> float:
        drawn.append(index)
        return 0.0

    group_bootstrap(statistic, groups, resamples=200)
    assert len(drawn) == 201 and len({len(index) for index in drawn}) > 3  # twelve draws of groups of 1, 4 or 2 images
    for index in drawn:
        times = np.bincount(index, minlength=25)
        assert all(len(set(times[groups == group])) == 1 for group in range(12))


def test_the_counts_of_each_sample_are_those_of_the_same_resamples() -> None:
    groups = [k // 3 if k < 30 else f"{k}" for k in range(50)]
    counts = [np.bincount(rows, minlength=50) for rows in group_resamples(groups, resamples=20, seed=4)]
    np.testing.assert_array_equal(list(group_times(groups, resamples=20, seed=4)), counts)


def test_ten_copies_of_each_image_in_a_group_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(1).normal(size=50)
    single = group_bootstrap(lambda index: values[index].mean(), range(50))
    copies = np.repeat(values, 10)
    grouped = group_bootstrap(lambda index: copies[index].mean(), np.repeat(np.arange(50), 10))
    ungrouped = group_bootstrap(lambda index: copies[index].mean(), range(500))
    assert grouped == pytest.approx(single)
    assert ungrouped.high - ungrouped.low < 0.5 * (grouped.high - grouped.low)


def test_group_keys_may_be_of_any_kind_and_stay_apart() -> None:
    seen = []
    keys = [1, "1", ("1",), *range(2, 9)]  # ten: with two taken for one, there would be no bounds
    found = group_bootstrap(lambda index: float(seen.append(set(index)) or len(seen)), keys, resamples=100)
    assert found.low < found.high
    assert {len(rows & {0, 1, 2}) for rows in seen} == {0, 1, 2, 3}


def test_undefined_resamples_are_left_out_and_an_undefined_statistic_has_no_bounds() -> None:
    positives = np.array([1, *[0] * 11])

    def share_if_any(index: np.ndarray) -> float:
        return float(positives[index].mean()) if positives[index].any() else float("nan")

    found = group_bootstrap(share_if_any, range(12))
    assert found.low == 1 / 12  # never 0: those resamples had no positive
    assert np.isnan(group_bootstrap(lambda index: float("nan"), range(12)).low)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    samples = np.random.default_rng(5).normal(size=30)
    first, again, other = (group_bootstrap(lambda rows: samples[rows].mean(), range(30), seed=s) for s in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("groups", [1, 9])
def test_few_groups_have_no_bounds_however_many_images_they_hold(groups: int) -> None:
    found = group_bootstrap(lambda rows: float(rows.mean()), [k % groups for k in range(900)])
    assert found.value == 449.5
    assert found.as_dict() == {"value": 449.5, "low": None, "high": None}
    assert None not in group_bootstrap(lambda rows: float(rows.mean()), [k % 10 for k in range(900)]).as_dict().values()


def test_nothing_to_compute_from_is_refused() -> None:
    with pytest.raises(InputError, match="no samples"):
        group_bootstrap(lambda index: 0.0, [])
    with pytest.raises(InputError, match="resamples"):
        group_bootstrap(lambda index: 0.0, [1], resamples=0)


def test_where_nothing_varies_the_bounds_are_those_of_so_many_patients_and_not_images() -> None:
    pytest.importorskip("sklearn")
    from edgemed.metrics import metrics_with_intervals, paired_difference

    groups, labels = np.repeat(range(20), 5), np.arange(100) % 2
    right = np.stack([1 - labels, labels], axis=1).astype(float)
    least = 0.025 ** (1 / 20)  # Clopper and Pearson's for 20 of 20
    every = np.ones(100, np.bool_)
    assert share(every, every, groups.tolist()) == (1, pytest.approx(least), 1)
    accuracy = metrics_with_intervals(labels, right, groups, ["a", "b"], resamples=20)["accuracy"]
    assert accuracy == {"value": 1, "low": pytest.approx(least), "high": 1}
    assert paired_difference(labels, right, right, groups) == (0, pytest.approx(least - 1), pytest.approx(1 - least))
