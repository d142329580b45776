"""Cuts labelled images into parts that share no group and have each class in the wanted proportions.

Why: scikit-learn's StratifiedGroupKFold makes equal folds only, and may leave a rare class out of one. Used through
`dataset.split_dataset`, `dataset.fold_datasets` and `temperatures.with_calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgemed.errors import InputError


def assigned_parts(
    labels: Sequence[int], groups: Sequence[str], classes: Sequence[str], fractions: Sequence[float], *, seed: int
) -> dict[str, int]:
    """group -> part 0..len(fractions) - 1. The order of the images does not matter; the same seed cuts the same.

    labels, groups: one per image, labels index `classes`. fractions: positive, sum 1.

    Greedy on chi-squared = sum over parts and classes of (images - wanted)^2 / wanted. Large groups go first, so that
    the many small ones level what they leave. Before that every part gets one small group of every class, rarest class
    first: a part without a class could not be scored. `InputError` when a class has too few groups for that.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.zeros((len(names), len(classes)))  # images of each group and class
    np.add.at(sizes, (index, np.asarray(labels)), 1)
    groups_per_class = (sizes > 0).sum(axis=0)
    for name, images, independent in zip(classes, sizes.sum(axis=0), groups_per_class, strict=True):
        if independent < len(fractions):
            raise InputError(f"class {name!r} has {images:.0f} images in {independent} groups, but each of the "
                             f"{len(fractions)} parts of the data needs one; add images of other patients, ask for "
                             "fewer folds, or leave the class out.")  # fmt: skip
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order].sum(axis=1), kind="stable")]  # large first, equal ones shuffled
    wanted = np.outer(fractions, sizes.sum(axis=0))  # (parts, classes)
    filled = np.zeros_like(wanted)
    part = np.full(len(names), -1)

    def put(group: int, where: int) -> None:
        part[group] = where
        filled[where] += sizes[group]

    for k in np.argsort(groups_per_class, kind="stable"):
        for where in np.argsort(fractions, kind="stable"):
            if filled[where, k] == 0:
                free = order[(part[order] < 0) & (sizes[order, k] > 0)]
                if not len(free):
                    raise InputError(f"class {classes[int(k)]!r} shares so many groups with other classes that it "
                                     f"cannot be in all {len(fractions)} parts of the data; ask for fewer folds, or "
                                     "leave the class out.")  # fmt: skip
                put(int(free[-1]), int(where))
    for group in order[part[order] < 0]:
        add = sizes[group]
        cost = ((2 * (filled - wanted) * add + add**2) / wanted).sum(axis=1)
        put(int(group), int(np.argmin(cost)))
    return {str(name): int(part[k]) for k, name in enumerate(names)}


def held_out_groups(
    labels: Sequence[int], groups: Sequence[str], classes: Sequence[str], share: float, *, seed: int
) -> set[str]:
    """Groups that hold about `share` (0 to 1) of the images of each class, by the rules of `assigned_parts`.

    A class of one group, or of so few that its share is less than half of one, keeps all of them: what it would lose is
    more than what a single group could tell. Empty when that holds for every class.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    has = np.zeros((len(names), len(classes)), bool)  # which classes each group holds
    has[index, np.asarray(labels)] = True
    free = np.full(len(names), True)
    least = max(2, 0.5 / share)
    while (small := (has[free].sum(axis=0) < least) & has[free].any(axis=0)).any():
        free &= ~has[:, small].any(axis=1)
    if not free.any():
        return set()
    known = np.flatnonzero(has[free].any(axis=0)).tolist()
    rows = [k for k in range(len(labels)) if free[index[k]]]
    parts = assigned_parts(
        [known.index(labels[k]) for k in rows],
        [groups[k] for k in rows],
        [classes[k] for k in known],
        (1 - share, share),
        seed=seed,
    )
    return {group for group, part in parts.items() if part == 1}
