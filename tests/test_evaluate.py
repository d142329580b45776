"""What predictions are worth: the ensemble against its better member, files in their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from edgemed import evaluate

LABELS = np.arange(40) % 2


def predictor(wrong: int) -> np.ndarray:
    """Probabilities (40, 2) of one that is wrong on the first so many images."""
    decided = np.where(np.arange(40) < wrong, 1 - LABELS, LABELS)
    return np.eye(2, dtype=np.float32)[decided]


@pytest.mark.parametrize(("errors", "better"), [((4, 12), "imagenet"), ((12, 4), "mae")])
def test_the_ensemble_is_compared_with_the_better_of_its_members(errors: tuple[int, int], better: str) -> None:
    members = np.stack([predictor(wrong) for wrong in errors], axis=1)
    table = evaluate.Table((), LABELS, tuple(map(str, range(40))), members, predictor(2))
    found = evaluate.evaluation(table, ("imagenet", "mae"), ("a", "b"))
    gain = found["ensemble_minus_better"]
    assert (gain["better"], gain["value"]) == (better, pytest.approx((4 - 2) / 40))  # above 0: the ensemble is better
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert found["members"][better]["accuracy"]["value"] == pytest.approx(36 / 40)


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_every_file_is_predicted_in_its_order(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "image_from_file", lambda file: np.full((1, 1, 3), int(file.name), np.uint8))
    done: list[tuple[int, int]] = []

    def predict(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return image[0, 0].astype(np.float32), np.stack([image[0, 0], image[0, 0] + 1]).astype(np.float32)

    files = [Path(str(k)) for k in range(count)]
    mean, members, _ = evaluate.predict_files(predict, files, lambda *at: done.append(at))
    assert mean[:, 0].tolist() == list(range(count))
    assert members[:, 1, 0].tolist() == list(range(1, count + 1))
    assert done == [(k + 1, count) for k in range(count)]
