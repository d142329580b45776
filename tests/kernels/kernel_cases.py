"""What the tests of the kernels share: tolerances, images, and the calls that every backend has to get right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemed.kernels import reference

# Largest difference to the oracle, in bits. The integer backends differ from it by rounding to multiples of 2^-17 only.
TOLERANCES = {
    "numpy": 1e-5,
    "torch": 1e-5,
    "triton": 1e-5,
    "cuda": 1e-5,
    "onnx": 1e-5,  # on whole numbers; after a resize a pixel may round the other way: 0.02
    "onnx-renyi": 1e-4,  # float32 powers; 1 / (1 - order) amplifies their error
}


class Case(NamedTuple):
    """One call: the arguments of `patch_entropy` but for the images."""

    patch: int
    bins: int
    order: float


CASES = [
    *(Case(patch, bins, 1.0) for patch in (8, 16, 32) for bins in (2, 16, 256)),
    *(Case(patch, 256, order) for patch in (8, 16, 32) for order in (0.5, 0.99, 1.01, 2.0, 100.0)),
    Case(16, 4, 2.0),
]


def varied_images(channels: int = 3) -> NDArray[np.uint8]:
    """uint8 (5, 64, 96[, 3]): noise, a flat image, two values, every grey value equally often, a smooth ramp."""
    generator = np.random.default_rng(7)
    images = np.zeros((5, 64, 96, 3), dtype=np.uint8)
    images[0] = generator.integers(0, 256, images[0].shape)
    images[1] = (9, 200, 77)
    images[2, :, ::2] = 255
    images[3] = (np.arange(64 * 96).reshape(64, 96, 1) % 256).astype(np.uint8)
    images[4] = np.clip(
        np.add.outer(np.arange(64), 2 * np.arange(96))[..., None] + generator.integers(0, 4, (64, 96, 3)), 0, 255
    )
    return images if channels == 3 else np.ascontiguousarray(images[..., 1])


def expected(images: NDArray[np.uint8], case: Case) -> NDArray[np.float32]:
    """The oracle's answer."""
    return reference.patch_entropy(images, case.patch, case.bins, case.order)


class Tie(NamedTuple):
    """A draw of masks whose border runs between two units of equal score: the first is removed, the second is not."""

    arguments: tuple[NDArray[np.float32], float, float, int, NDArray[np.int64]]
    removed: int  # unit
    kept: int  # unit


def tied_draw() -> Tie:
    """One flat image of 4,096 units: so many draw equal noise somewhere."""
    units, seed, image_id = 4096, 3, 17
    scores = reference.mask_scores([0.0] * units, 0.0, (seed, 0), image_id)
    order = sorted(range(units), key=lambda unit: (-scores[unit], unit))
    rank = next(rank for rank in range(1000, units) if scores[order[rank]] == scores[order[rank + 1]])
    arguments = (np.zeros((1, 64, 64), np.float32), (rank + 1) / units, 0.0, seed, np.array([image_id], dtype=np.int64))
    return Tie(arguments, order[rank], order[rank + 1])
