"""Small image files, and what the tests of the loader have in common."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgemed.loader import Augment, Batch, Loader, open_loader

SIZE = 48
NO_DALI = find_spec("nvidia") is None or find_spec("nvidia.dali") is None
needs_dali = pytest.mark.skipif(NO_DALI, reason="nvidia.dali is not installed")
both_backends = pytest.mark.parametrize("backend", [pytest.param("dali", marks=needs_dali), "torch"])


def smooth(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """A colour image without sharp edges, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_images(folder: Path, count: int) -> list[Path]:
    files = []
    for i in range(count):
        files.append(folder / f"{i:02}.{'jpg' if i % 3 == 0 else 'png'}")
        Image.fromarray(smooth(i, 60 + 7 * i % 40, 70 + 11 * i % 30)).save(files[-1])
    return files


def write_one(folder: Path, image: NDArray[np.uint8], copies: int = 1) -> list[Path]:
    """The same image as several files of a data set, so that one epoch shows several draws."""
    Image.fromarray(image).save(folder / "one.png")
    return [folder / "one.png"] * copies


def opened(files: list[Path], backend: str, augment: Augment | None, **options: int) -> Loader:
    settings = {"size": SIZE, "batch": 4, "seed": 7, **options}
    return open_loader(files, list(range(len(files))), augment=augment, backend=backend, **settings)


def by_index(batches: Iterable[Batch]) -> dict[int, NDArray[np.uint8]]:
    """The image of each file of an epoch; fails when one comes twice or with another file's label."""
    found: dict[int, NDArray[np.uint8]] = {}
    for images, labels, indices in batches:
        assert images.dtype == torch.uint8 and len(images) == len(labels) == len(indices)
        assert labels.tolist() == indices.tolist()
        for index, image in zip(indices.tolist(), images.numpy(), strict=True):
            assert index not in found
            found[index] = image
    return found


def levels_apart(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.abs(a.astype(np.float64) - b.astype(np.float64))


def same_epoch(a: Iterable[Batch], b: Iterable[Batch]) -> bool:
    return all(torch.equal(x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))
