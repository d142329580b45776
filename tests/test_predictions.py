"""`predictions.csv` says by name what each member gave each class, to the last digit."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="extra train is not installed")

from edgemed.dataset import Dataset
from edgemed.predictions import predictions_csv, read_pixels, read_table
from edgemed.rows import Row

CLASSES = ("benign", "malignant", "normal")


def test_each_value_stands_under_its_member_and_class_and_reads_back_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = []
    for split in ("validation", "test"):
        rows = tuple(Row(f"{split}{k}.png", CLASSES[k % 3], f"g{k // 2}", split) for k in range(5))
        members = rng.dirichlet([1, 1, 1], (5, 2)).astype(np.float32)
        parts.append((Dataset(Path(), rows, CLASSES), members, [f"{split}{k}" for k in range(5)]))
    text = predictions_csv(parts)
    lines = list(csv.DictReader(io.StringIO(text)))
    every = np.concatenate([members for _, members, _ in parts])
    for m, member in enumerate(("imagenet", "mae")):
        for k, name in enumerate(CLASSES):
            assert [np.float32(line[f"{member}:{name}"]) for line in lines] == every[:, m, k].tolist()
    (tmp_path / "predictions.csv").write_text(text)
    found = read_table(tmp_path, CLASSES, "test")
    assert np.array_equal(found.members, parts[1][1])
    assert np.allclose(found.probabilities, parts[1][1].mean(axis=1))
    assert read_pixels(tmp_path, "test") == [f"test{k}" for k in range(5)]
    assert found.paths == tuple(f"test{k}.png" for k in range(5))
    assert found.labels.tolist() == [0, 1, 2, 0, 1]
    assert found.groups == ("g0", "g0", "g1", "g1", "g2")
