"""Made-up answers of an ensemble and of a predictor, for the tests of figures and operating points."""

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


def predictor(n: int, seed: int, strength: float = 1.5, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and probabilities (n, classes) of a fair classifier; rounded, so that scores tie."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    scores = rng.normal(size=(n, classes))
    scores[np.arange(n), labels] += strength
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return labels, probabilities.round(2)
