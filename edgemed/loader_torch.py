"""The loader's side without DALI: the same draws, carried out by Pillow and OpenCV in threads.

Why it exists: DALI is Linux only and large; training must run without it, on the same augmentation. Used through
`edgemed.loader.open_loader(..., backend="torch")`; tested by `python -m pytest tests/test_loader.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgemed.ahead import ahead
from edgemed.images import image_from_file

CENTRE = 128.0
"""The grey level that a change of contrast leaves as it is."""


class Draws(NamedTuple):
    """What is done to every file in one epoch. Row i belongs to file i; float32, as DALI takes them."""

    start: NDArray[np.float32]  # (N, 2) y, x in 0..1 of the image: the edge that becomes the output's top, left
    end: NDArray[np.float32]  # (N, 2) y, x: the edge that becomes its bottom, right; below start = flipped
    brightness: NDArray[np.float32]  # (N,) factor on all levels
    contrast: NDArray[np.float32]  # (N,) factor on the distance from level 128
    angle: NDArray[np.float32]  # (N,) degrees, counter-clockwise as seen on the screen


ImagesOf = Callable[[Draws, Sequence[NDArray[np.int64]]], Iterator[torch.Tensor]]
"""A backend: the images of each batch of indices, (B, S, S, 3) uint8 RGB, with the draws done to them."""


MEMORY_LIMIT = 2_000_000_000
"""Bytes of images (for DALI: encoded) that a loader, or a stage's validation, keeps; others are read again."""


def remembering(read: Callable[[Path], NDArray[np.uint8]] = image_from_file) -> Callable[[Path], NDArray[np.uint8]]:
    """`read` that keeps what it returns, up to `MEMORY_LIMIT` bytes: not to be written into."""
    kept: dict[Path, NDArray[np.uint8]] = {}
    used = 0
    counting = Lock()

    def image_of(file: Path) -> NDArray[np.uint8]:
        nonlocal used
        if file in kept:
            return kept[file]
        image = read(file)
        with counting:
            if file not in kept and used + image.nbytes <= MEMORY_LIMIT:
                kept[file] = image
                used += image.nbytes
        return image

    return image_of


def torch_images(
    read: Callable[[Path], NDArray[np.uint8]],
    files: Sequence[Path],
    size: int,
    threads: int,
    draws: Draws,
    batches: Sequence[NDArray[np.int64]],
) -> Iterator[torch.Tensor]:
    """(B, size, size, 3) uint8 RGB on the CPU for each batch of indices into `files`, which `read` decodes.

    Raises:
        InputError: a file is damaged or gone (it is named).
    """

    def image_of(index: int) -> NDArray[np.uint8]:
        return augmented(read(files[index]), size, draws, index)

    wanted = np.concatenate(batches).tolist() if batches else []
    images = ahead(image_of, wanted, threads, depth=2 * max(map(len, batches), default=1))
    for batch in batches:
        yield torch.from_numpy(np.stack(list(islice(images, len(batch)))))


def augmented(image: NDArray[np.uint8], size: int, draws: Draws, index: int) -> NDArray[np.uint8]:
    """`image` (H, W, 3) uint8 with row `index` of the draws done to it: (size, size, 3) uint8."""
    height, width = image.shape[:2]
    (y0, x0), (y1, x1) = draws.start[index].tolist(), draws.end[index].tolist()
    box = (min(x0, x1) * width, min(y0, y1) * height, max(x0, x1) * width, max(y0, y1) * height)
    result = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box)  # antialiased in Pillow
    if x1 < x0:
        result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if y1 < y0:
        result = result.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    brightness, contrast = float(draws.brightness[index]), float(draws.contrast[index])
    if (brightness, contrast) != (1.0, 1.0):
        levels = brightness * (CENTRE + contrast * (np.arange(256) - CENTRE))
        result = result.point(np.clip(np.rint(levels), 0, 255).astype(int).tolist() * 3)
    return rotated(np.asarray(result), float(draws.angle[index]))


def rotated(image: NDArray[np.uint8], angle: float) -> NDArray[np.uint8]:
    """A square image (S, S, 3) turned by `angle` degrees counter-clockwise about its centre; black corners."""
    if angle == 0.0:
        return image
    size = image.shape[0]
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), angle, 1.0)
    turned: NDArray[np.uint8] = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)
    return turned
