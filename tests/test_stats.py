"""Intervals: right on cases with a known answer, and honest about groups."""

from __future__ import annotations

import numpy as np
import pytest

from edgemed.errors import InputError
from edgemed.stats import group_bootstrap


def test_an_ordinary_bootstrap_of_a_mean_has_the_textbook_width() -> None:
    samples = np.random.default_rng(0).normal(10, 2, 400)
    standard_error = samples.std() / 20
    found = group_bootstrap(lambda index: samples[index].mean(), range(400), resamples=4000)
    assert found.value == pytest.approx(samples.mean())
    assert found.low == pytest.approx(samples.mean() - 1.96 * standard_error, abs=0.1 * standard_error)
    assert found.high == pytest.approx(samples.mean() + 1.96 * standard_error, abs=0.1 * standard_error)


def test_groups_are_drawn_whole() -> None:
    groups = np.repeat([3, 1, 2], [1, 4, 2])
    drawn = []

    def statistic(index: np.ndarray) -> float:
        drawn.append(index)
        return 0.0

    group_bootstrap(statistic, groups, resamples=200)
    assert {len(index) for index in drawn[:-1]} > {3, 7, 12}  # three draws of groups of 1, 4 and 2 images
    for index in drawn[:-1]:
        times = np.bincount(index, minlength=7)
        assert all(len(set(times[groups == group])) == 1 for group in (1, 2, 3))


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
    group_bootstrap(lambda index: float(seen.append(len(set(index))) or 0), [1, "1", ("1",)], resamples=100)
    assert max(seen) == 3  # taken as one group, a resample would always hold all three
    assert min(seen) == 1


def test_undefined_resamples_are_left_out_and_an_undefined_statistic_has_no_bounds() -> None:
    positives = np.array([1, 0, 0, 0])

    def share_if_any(index: np.ndarray) -> float:
        return float(positives[index].mean()) if positives[index].any() else float("nan")

    found = group_bootstrap(share_if_any, range(4))
    assert found.low == 0.25  # never 0: those resamples had no positive
    assert np.isnan(group_bootstrap(lambda index: float("nan"), range(4)).low)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    samples = np.random.default_rng(5).normal(size=30)
    first, again, other = (group_bootstrap(lambda rows: samples[rows].mean(), range(30), seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_a_single_sample_is_its_own_interval() -> None:
    assert group_bootstrap(lambda rows: 4.0, ["only"]) == (4.0, 4.0, 4.0)


def test_nothing_to_compute_from_is_refused() -> None:
    with pytest.raises(InputError, match="no samples"):
        group_bootstrap(lambda index: 0.0, [])
    with pytest.raises(InputError, match="level"):
        group_bootstrap(lambda index: 0.0, [1], level=95)
    with pytest.raises(InputError, match="resamples"):
        group_bootstrap(lambda index: 0.0, [1], resamples=0)
