"""Intervals: right on cases with a known answer, and honest about groups."""

from __future__ import annotations

import numpy as np
import pytest

from edgemed.errors import InputError
from edgemed.stats import (
    Interval,
    effective_groups,
    effective_groups_of_rarest,
    exact,
    group_bootstrap,
    group_resamples,
    group_times,
    mean_of,
    share,
    tail,
)


def test_an_ordinary_bootstrap_of_a_mean_has_the_textbook_width() -> None:
    samples = np.random.default_rng(0).normal(10, 2, 400)
    standard_error = samples.std() / 20
    found = group_bootstrap(lambda index: samples[index].mean(), range(400), resamples=4000)
    assert found.value == pytest.approx(samples.mean())
    assert found.low == pytest.approx(samples.mean() - 1.96 * standard_error, abs=0.1 * standard_error)
    assert found.high == pytest.approx(samples.mean() + 1.96 * standard_error, abs=0.1 * standard_error)


def test_of_ten_groups_the_interval_of_a_mean_is_students_and_not_a_narrower_one() -> None:
    samples = np.array([-2, -1.2, -0.7, -0.4, -0.1, 0.1, 0.4, 0.7, 1.2, 2])
    half = 2.2622 * samples.std(ddof=1) / np.sqrt(10)
    found = group_bootstrap(lambda index: samples[index].mean(), range(10), resamples=20_000)
    assert (found.low, found.high) == pytest.approx((-half, half), rel=0.06)
    plain = group_bootstrap(lambda index: samples[index].mean(), range(10), resamples=20_000, fewest=10**6)
    assert plain.high - plain.low < 0.85 * (found.high - found.low)


def test_the_tails_are_those_of_hesterbergs_table_and_shrink_with_the_groups() -> None:
    from scipy.stats import norm

    expected = [float(norm.cdf(-t * np.sqrt(n / (n - 1)))) for n, t in ((10, 2.26216), (20, 2.09302), (40, 2.02269))]
    assert [tail(groups) for groups in (10, 20, 40)] == pytest.approx(expected, abs=1e-6)
    assert tail(10**6) == pytest.approx(0.025, abs=1e-6)


def test_two_that_do_not_differ_are_told_apart_in_about_one_of_twenty_cases() -> None:
    """The plain percentiles do so in one of eleven."""
    rng, apart = np.random.default_rng(3), 0
    for _ in range(400):
        gains = rng.multinomial(20, [0.05, 0.9, 0.05], 10) @ [-1, 0, 1] / 20  # of ten patients, 20 images each
        found = group_bootstrap(lambda rows, gains=gains: float(gains[rows].mean()), range(10), resamples=400)
        apart += not found.low <= 0 <= found.high
    assert 0.02 < apart / 400 < 0.075


def test_one_image_a_group_makes_the_interval_of_a_share_clopper_and_pearsons() -> None:
    from scipy.stats import binomtest

    hits = np.arange(50) >= 3
    low, high = binomtest(47, 50).proportion_ci()
    assert share(hits, np.full(50, True), range(50)) == (0.94, pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(("chance", "alike"), [(0.85, 0.3), (0.95, 0.05), (0.95, 0.3), (0.98, 0.3)])
def test_the_interval_of_a_share_holds_the_truth_in_95_of_100_cases_however_alike_a_patients_images(
    chance: float, alike: float
) -> None:
    """The percentiles of the bootstrap hold it in 86 to 91 of 100 here; 20 patients of five images each."""
    rng, held, spread = np.random.default_rng(4), 0, 1 / alike - 1
    groups, every = np.repeat(range(20), 5).tolist(), np.full(100, True)
    for _ in range(400):
        of_patients = rng.beta(chance * spread, (1 - chance) * spread, 20)
        _, low, high = share(rng.random(100) < np.repeat(of_patients, 5), every, groups)
        held += low <= chance <= high
    assert held / 400 > 0.93


def test_one_miss_does_not_raise_the_lower_bound() -> None:
    """Of one group that misses, no one can tell how alike the images of a group are."""
    groups, every = np.repeat(range(12), 20).tolist(), np.full(240, True)
    of_all, of_all_but_one = (share(np.arange(240) >= misses, every, groups).low for misses in (0, 1))
    assert of_all == pytest.approx(0.025 ** (1 / 12))
    assert of_all_but_one < of_all


@pytest.mark.parametrize(("groups", "images", "chance"), [(12, 20, 0.95), (30, 5, 0.95), (60, 10, 0.98)])
def test_a_share_near_1_lies_below_its_interval_in_few_cases(groups: int, images: int, chance: float) -> None:
    """Where half of what an image does is its patient's. By the design effect alone: in 10 of 100 cases."""
    rng, below = np.random.default_rng(0), 0
    of_group, every = np.repeat(range(groups), images).tolist(), np.full(groups * images, True)
    for _ in range(300):
        hits = rng.random(len(every)) < np.repeat(rng.beta(chance, 1 - chance, groups), images)
        below += share(hits, every, of_group).low > chance
    assert below / 300 < 0.05


def test_the_mean_of_two_alike_is_surer_than_either_by_the_root_of_two() -> None:
    found = mean_of([Interval(0.8, 0.7, 0.9), Interval(0.6, 0.5, 0.7)])
    assert found == pytest.approx((0.7, 0.7 - 0.1 / 2**0.5, 0.7 + 0.1 / 2**0.5))
    assert np.isnan(mean_of([Interval(0.8, 0.7, 0.9), Interval(0.6, np.nan, np.nan)]).low)


def test_images_that_are_alike_count_as_one_and_those_that_balance_each_other_as_no_more_than_they_are() -> None:
    hits = np.arange(40) >= 4
    alone = share(hits, np.full(40, True), range(40))
    copies = share(np.repeat(hits, 5), np.full(200, True), np.repeat(range(40), 5).tolist())
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high), abs=0.01)
    half = np.arange(40) % 2 == 0  # of each patient one of two
    balanced = share(half, np.full(40, True), np.repeat(range(20), 2).tolist())
    assert balanced == exact(0.5, 40)


def test_the_rarest_label_is_counted_in_groups() -> None:
    assert effective_groups_of_rarest(np.array([0, 0, 0, 1, 1, 1, 1]), ["a", "b", "c", "d", "d", "e", "e"]) == 2


def test_groups_of_which_one_holds_most_images_count_for_few_and_give_no_bounds() -> None:
    """With one group of 40 among 19 single images, 95 % intervals would hold the truth in 73 of 100 cases."""
    sizes = [40, *[1] * 19]
    groups = np.repeat(range(20), sizes).tolist()
    hits = np.arange(59) % 5 > 0
    assert effective_groups(groups) == pytest.approx(59**2 / (40**2 + 19))
    assert effective_groups([k // 5 for k in range(100)]) == 20
    assert share(hits, np.full(59, True), groups).as_dict() == {"value": hits.mean(), "low": None, "high": None}
    assert np.isnan(group_bootstrap(lambda rows: float(hits[rows].mean()), groups).low)


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
