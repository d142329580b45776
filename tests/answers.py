"""Made-up answers of an ensemble, for the tests of operating points and curves."""

from __future__ import annotations

import numpy as np

from edgemed.evaluate import Table

CLASSES = ("benign", "malignant", "normal")


def drawn(rng: np.random.Generator, groups: int, copies: int = 1, members: int = 2) -> Table:
    """Labels, and answers of members that are right more often than not; every group holds `copies` equal images."""
    labels = rng.integers(0, 3, groups)
    logits = rng.normal(size=(groups, members, 3))
    logits[np.arange(groups), :, labels] += 1.5
    shares = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    repeat = np.repeat(np.arange(groups), copies)
    names = tuple(f"g{k}" for k in repeat)
    return Table(names, labels[repeat], names, shares[repeat].astype(np.float32))
