"""Splits and folds: no group ever crosses, every class is everywhere, the shares come out."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cv2", reason="extra train is not installed")

from edgemed.dataset import (
    CUT,
    Dataset,
    Row,
    fold_datasets,
    split_dataset,
)
from edgemed.errors import InputError
from edgemed.splits import assigned_parts, held_out_groups


def _rows(counts: dict[str, dict[str, int]]) -> Dataset:
    """A data set without files: label -> group -> number of images."""
    rows = [
        Row(f"{label}/{group}-{k}.png", label, group)
        for label, groups in counts.items()
        for group, count in groups.items()
        for k in range(count)
    ]
    return Dataset(Path(), tuple(rows), tuple(sorted(counts)))


def test_every_class_gets_its_share_of_every_split() -> None:
    dataset = split_dataset(
        _rows({label: {f"{label}{k}": 1 for k in range(n)} for label, n in zip("abc", (200, 40, 20), strict=True)})
    )
    counts = Counter((row.label, row.split) for row in dataset.rows)
    assert {split: counts["a", split] for split in CUT} == {"train": 140, "validation": 30, "test": 30}
    assert {split: counts["b", split] for split in CUT} == {"train": 28, "validation": 6, "test": 6}
    assert {split: counts["c", split] for split in CUT} == {"train": 14, "validation": 3, "test": 3}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_groups_never_cross_and_no_class_is_missing(data: st.DataObject) -> None:
    sizes = st.lists(st.integers(1, 12), min_size=3, max_size=40)
    counts = {label: {f"{label}{k}": n for k, n in enumerate(data.draw(sizes))} for label in "abc"}
    for k in range(data.draw(st.integers(0, 3))):  # patients with images of two classes
        counts["a"][f"both{k}"], counts["b"][f"both{k}"] = 2, 3
    dataset = _rows(counts)
    seed = data.draw(st.integers(0, 5))
    parts = [split_dataset(dataset, seed=seed)]
    assert Counter(row.split for row in parts[0].rows).total() == len(dataset.rows)
    if min(len(groups) for groups in counts.values()) >= 4:
        parts += fold_datasets(dataset, 3, seed, 0.2)
    for part in parts:
        where = defaultdict(set)
        for row in part.rows:
            where[row.group].add(row.split)
        assert all(len(splits) == 1 for splits in where.values())
        assert {(row.label, row.split) for row in part.rows} == {(label, split) for label in "abc" for split in CUT}


def test_large_groups_do_not_spoil_the_shares() -> None:
    rng = np.random.default_rng(0)
    counts = {label: {f"{label}{k}": int(n) for k, n in enumerate(rng.geometric(0.2, 120))} for label in "ab"}
    dataset = split_dataset(_rows(counts), (0.6, 0.2, 0.2), seed=3)
    for label, groups in counts.items():
        for split, fraction in zip(CUT, (0.6, 0.2, 0.2), strict=True):
            share = sum(row.split == split for row in dataset.rows if row.label == label) / sum(groups.values())
            assert share == pytest.approx(fraction, abs=0.01)


def test_a_rare_class_gets_its_shares_though_its_images_lie_among_those_of_a_common_one() -> None:
    rng = np.random.default_rng(2)  # patients of 1 to 29 images of class a, and 0 to 2 of class b
    counts = {f"p{k}": (int(rng.integers(1, 30)), int(rng.integers(3))) for k in range(60)}
    labels = [k for of_both in counts.values() for k in (0, 1) for _ in range(of_both[k])]
    groups = [group for group, of_both in counts.items() for _ in range(sum(of_both))]
    parts = assigned_parts(labels, groups, "ab", (0.7, 0.15, 0.15), seed=0)
    for k in (0, 1):
        where = [parts[group] for group, label in zip(groups, labels, strict=True) if label == k]
        assert np.bincount(where) / len(where) == pytest.approx([0.7, 0.15, 0.15], abs=0.03)


def test_the_split_follows_the_seed_and_not_the_order_of_the_rows() -> None:
    dataset = _rows({label: {f"{label}{k}": 1 + k % 3 for k in range(30)} for label in "ab"})
    first = {row.path: row.split for row in split_dataset(dataset, seed=1).rows}
    turned = replace(dataset, rows=dataset.rows[::-1])
    assert {row.path: row.split for row in split_dataset(turned, seed=1).rows} == first
    assert {row.path: row.split for row in split_dataset(dataset, seed=2).rows} != first


def test_a_class_with_too_few_groups_is_named_with_its_counts() -> None:
    dataset = _rows({"common": {f"c{k}": 1 for k in range(30)}, "rare": {"p1": 9, "p2": 1}})
    with pytest.raises(InputError, match=r"class 'rare' has 10 images in 2 groups.* 3 parts"):
        split_dataset(dataset)
    with pytest.raises(InputError, match=r"class 'rare' has 10 images in 2 groups.* 5 parts"):
        fold_datasets(dataset, 5)


@pytest.mark.parametrize("fractions", [(0.7, 0.3), (0.7, 0.3, 0.0), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_that_are_no_split_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="three positive shares"):
        split_dataset(_rows({"a": {"1": 5}, "b": {"2": 5}}), fractions)


def test_folds_test_every_image_once_and_keep_a_validation_part_of_the_rest() -> None:
    dataset = _rows({label: {f"{label}{k}": 1 for k in range(50)} for label in "ab"})
    folds = fold_datasets(dataset, 5, seed=4, validation_fraction=0.25)
    tested = Counter(row.path for fold in folds for row in fold.rows if row.split == "test")
    assert tested == Counter(row.path for row in dataset.rows)
    for fold in folds:
        assert Counter(row.split for row in fold.rows) == {"train": 60, "validation": 20, "test": 20}


def test_a_split_that_is_none_is_refused_with_the_names() -> None:
    with pytest.raises(InputError, match="validation"):
        _rows({"a": {"1": 1}}).subset("valid")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_held_out_is_the_wanted_share_of_every_class_that_can_spare_a_group(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 60), min_size=2, max_size=5))
    share = data.draw(st.sampled_from([0.1, 0.15, 0.3, 0.5]))
    groups = [f"{k}-{i}" for k, count in enumerate(counts) for i in range(count)]
    labels = [k for k, count in enumerate(counts) for _ in range(count)]
    classes = [f"c{k}" for k in range(len(counts))]
    held = held_out_groups(labels, groups, classes, share, seed=data.draw(st.integers(0, 3)))
    for k, count in enumerate(counts):
        taken = sum(group.startswith(f"{k}-") for group in held)
        assert taken == 0 if count < max(2, 0.5 / share) else 1 <= taken < count
        assert abs(taken - count * share) <= 1


def test_a_group_that_a_small_class_needs_is_not_held_out() -> None:
    groups = [f"a{k}" for k in range(20)] + ["a0", "a1"]  # two patients have an image of the rare class too
    held = held_out_groups([0] * 20 + [1] * 2, groups, ["a", "rare"], 0.2, seed=0)
    assert held
    assert not held & {"a0", "a1"}
    assert held_out_groups([0, 1], ["p", "q"], ["a", "b"], 0.2, seed=0) == set()
