"""Phantoms are the same everywhere, differ from each other, and cannot be told apart by their brightness."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgemed.errors import InputError
from edgemed.images import image_from_file
from edgemed.phantoms import CLASSES, MIN_SIDE, phantom, write_dataset


def _hashes(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first = _hashes(write_dataset(tmp_path / "a", per_class=3, size=48, seed=5))
    assert _hashes(write_dataset(tmp_path / "b", per_class=3, size=48, seed=5)) == first
    other = _hashes(write_dataset(tmp_path / "c", per_class=3, size=48, seed=6))
    assert set(other) == set(first) and not set(other.values()) & set(first.values())
    assert len(set(first.values())) == 9


def test_a_data_set_has_its_classes_in_full_and_images_of_many_sizes(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "new" / "phantoms", per_class=6, size=64)
    files = sorted(folder.rglob("*.png"))
    assert Counter(file.parent.name for file in files) == dict.fromkeys(CLASSES, 6)
    sizes = {image_from_file(file).shape[:2] for file in files}
    assert len(sizes) > 12 and all(0.8 * 64 - 1 < side < 1.25 * 64 + 1 for shape in sizes for side in shape)
    assert {file.name for file in folder.parent.iterdir()} == {"phantoms"}  # nothing half-written beside it


def test_the_files_hold_the_pixels_of_phantom(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", per_class=2, size=64, seed=3)
    image = image_from_file(folder / "oval" / "oval_0001.png")
    np.testing.assert_array_equal(image, phantom("oval", 3_000_001, *image.shape[:2]))


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not an empty folder"):
        write_dataset(tmp_path, per_class=1)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_bad_requests_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'oval'"):
        phantom("ovall", 0)
    with pytest.raises(InputError, match=str(MIN_SIDE)):
        phantom("oval", 0, MIN_SIDE - 1, 64)
    with pytest.raises(InputError, match="at least"):
        write_dataset(tmp_path / "x", per_class=0)
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    """(180, 96, 96) uint8 grey and their 180 classes."""
    images = np.stack([phantom(kind, seed, 96, 96)[:, :, 0] for kind in CLASSES for seed in range(60)])
    return images, np.repeat(np.arange(3), 60)


def _accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Cross-validated accuracy of a logistic regression; 1/3 is guessing."""
    linear = pytest.importorskip("sklearn.linear_model")
    selection = pytest.importorskip("sklearn.model_selection")
    scaled = (features - features.mean(0)) / (features.std(0) + 1e-9)
    folds = selection.StratifiedKFold(5, shuffle=True, random_state=0)
    return float(selection.cross_val_score(linear.LogisticRegression(max_iter=2000), scaled, labels, cv=folds).mean())


def test_brightness_contrast_and_histograms_do_not_give_the_class_away(sample: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = sample
    flat = images.reshape(len(images), -1)
    assert _accuracy(np.stack((flat.mean(1), flat.std(1)), axis=1), labels) < 0.5
    histograms = np.stack([np.histogram(row, 16, (0, 256))[0] for row in flat])
    assert _accuracy(histograms.astype(float), labels) < 0.6


def test_where_the_dark_lies_tells_the_classes_apart(sample: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = sample
    coarse = np.stack([np.asarray(Image.fromarray(image).resize((12, 12), Image.Resampling.BOX)) for image in images])
    whole = _accuracy(coarse.reshape(len(images), -1).astype(float), labels)
    assert whole > 0.6  # where it is dark, at 12 x 12; a network that sees edges does better
