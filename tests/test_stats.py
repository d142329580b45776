"""Intervals: right on cases with a known answer, and honest about groups."""

from __future__ import annotations

import numpy as np
import pytest

from edgemed.errors import InputError
from edgemed.stats import group_bootstrap, mean_interval, percentile_interval


def test_an_ordinary_bootstrap_of_a_mean_has_the_textbook_width() -> None:
    samples = np.random.default_rng(0).normal(10, 2, 400)
    standard_error = samples.std() / 20
    for found in (
        group_bootstrap(lambda index: samples[index].mean(), range(400), resamples=4000),
        mean_interval(samples, resamples=4000),
    ):
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


@pytest.mark.parametrize("q", [0, 10, 50, 90, 99, 100])
def test_percentile_intervals_equal_a_bootstrap_that_really_draws(q: float) -> None:
    samples = np.random.default_rng(2).lognormal(size=101)
    found = percentile_interval(samples, q, resamples=20_000)
    draws = np.random.default_rng(3).choice(samples, (20_000, len(samples)))
    low, high = np.quantile(np.percentile(draws, q, axis=1), [0.025, 0.975])
    spread = max(high - low, 1e-9)
    assert found.value == np.percentile(samples, q)
    assert found.low == pytest.approx(low, abs=0.05 * spread)
    assert found.high == pytest.approx(high, abs=0.05 * spread)


def test_percentile_intervals_cover_the_true_percentile_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(4)
    true_p90 = float(np.log(10))  # of the exponential distribution
    hits = 0
    for seed in range(400):
        found = percentile_interval(rng.exponential(size=200), 90, seed=seed, resamples=400)
        hits += found.low <= true_p90 <= found.high
    assert 0.90 <= hits / 400 <= 0.985


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    samples = np.random.default_rng(5).normal(size=30)
    assert percentile_interval(samples, 90, seed=1) == percentile_interval(samples, 90, seed=1)
    assert percentile_interval(samples, 90, seed=1) != percentile_interval(samples, 90, seed=2)


def test_a_single_sample_is_its_own_interval() -> None:
    assert percentile_interval([4.0], 99) == (4.0, 4.0, 4.0)
    assert mean_interval([4.0]) == (4.0, 4.0, 4.0)


@pytest.mark.parametrize("q", [-1, 101])
def test_a_percentile_out_of_range_is_refused(q: float) -> None:
    with pytest.raises(InputError, match="0 to 100"):
        percentile_interval([1.0, 2.0], q)


def test_nothing_to_compute_from_is_refused() -> None:
    with pytest.raises(InputError, match="no samples"):
        percentile_interval([], 50)
    with pytest.raises(InputError, match="no samples"):
        group_bootstrap(lambda index: 0.0, [])
    with pytest.raises(InputError, match="not a finite number"):
        mean_interval([1.0, float("nan")])
    with pytest.raises(InputError, match="level"):
        mean_interval([1.0], level=95)
    with pytest.raises(InputError, match="resamples"):
        mean_interval([1.0], resamples=0)
