"""Image files to batches of uint8 pixels for training: NVIDIA DALI, or a torch loader with the same contract.

Why it exists: decoding and augmentation must keep up with the network, and must be repeatable. All random choices of an
epoch are drawn here, by a counter-based generator, one row per file; the backends only carry them out. So what is done
to a file depends on (seed, epoch, its place in the list) and on nothing else: not on the number of ranks, the batch
size, the threads or the backend. Any epoch can be made again without the ones before it.

    loader = open_loader(files, labels, size=224, batch=32, augment=Augment(), seed=0)
    for epoch in range(30):
        for images, labels, indices in loader.epoch(epoch):   # (32, 224, 224, 3) uint8 RGB, (32,), (32,)

What is done to an image, in this order: crop, antialiased linear resize to a square (the aspect is squashed), flips,
brightness and contrast, rotation about the centre with black corners. On a CPU the backends agree to rounding (0.13
grey levels in the mean over 32 ultrasound images), but for an image's outermost ring of pixels, where DALI's filter
repeats the border and Pillow's does not. On a GPU nvJPEG decodes, whose pixels can differ by a few levels: not
measured. Files that DALI would decode by other rules than `edgemed.images` (16 bit, alpha, palette, CMYK, EXIF, BMP,
TIFF) are decoded there and handed to DALI without loss.

Its test, which also runs it: `python -m pytest tests/test_loader.py`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgemed.config import LOADERS
from edgemed.errors import InputError, did_you_mean, first_line
from edgemed.loader_dali import open_dali
from edgemed.loader_torch import Draws, ImagesOf, remembering, torch_images

DALI_COMMAND = "pip install nvidia-dali-cuda130"


@dataclass(frozen=True)
class Augment:
    """Ranges of the random changes; each is drawn uniformly and independently per image."""

    scale: tuple[float, float] = (0.6, 1.0)
    """Area of the crop as a share of the image's area, in (0, 1]."""
    ratio: tuple[float, float] = (0.8, 1.25)
    """Width over height of the crop, relative to the image's own (log-uniform): evaluation squashes the whole image to
    a square, and this is the distortion on top of it. Narrowed where a crop of the drawn area would not fit."""
    hflip: bool = True
    """Left and right change places in half of the draws."""
    vflip: bool = False
    """Top and bottom change places in half of the draws."""
    rotate: float = 15.0
    """Largest angle in degrees, to both sides; corners without image are black."""
    turns: bool = False
    """Turned by 0, 90, 180 or 270 degrees, equally often, and the angle above is added. An image that is not square has
    been squashed before: its distortion turns with it."""
    brightness: float = 0.2
    """Factor on all levels: from 1 - this to 1 + this; in [0, 1]."""
    contrast: float = 0.2
    """Factor on the distance from level 128: from 1 - this to 1 + this; in [0, 1]."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"Augment(scale={self.scale}): give (low, high) with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise InputError(f"Augment(ratio={self.ratio}): give (low, high) with 0 < low <= high")
        if not 0 <= self.rotate <= 180:
            raise InputError(f"Augment(rotate={self.rotate}): give degrees from 0 to 180")
        for name, value in (("brightness", self.brightness), ("contrast", self.contrast)):
            if not 0 <= value <= 1:
                raise InputError(f"Augment({name}={value}): give a value from 0 to 1")


class Batch(NamedTuple):
    """One step's data, on the loader's device."""

    images: torch.Tensor  # (B, S, S, 3) uint8, RGB
    labels: torch.Tensor  # (B,) int64
    indices: torch.Tensor  # (B,) int64, into the loader's files


@dataclass(frozen=True)
class Loader:
    """What `open_loader` returns."""

    backend: str
    """`dali` or `torch`."""
    reason: str
    """One line for the log: which backend runs and why, and where DALI decodes."""
    steps: int
    """Batches per epoch on this rank."""
    _epoch: Callable[[int], Iterator[Batch]]

    def epoch(self, k: int) -> Iterator[Batch]:
        """The batches of epoch k >= 0: the same at every call, whatever was iterated before or is at the same time.

        Raises:
            InputError: a file is damaged or gone (it is named); raised while iterating.
        """
        return self._epoch(k)


def check_backend(backend: str) -> None:
    """Raise InputError where `dali` is asked for by name and is not installed: to be asked before the work begins."""
    try:
        found = importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even the namespace `nvidia`
        found = False
    if backend == "dali" and not found:
        raise InputError(f"nvidia.dali is not installed; run `{DALI_COMMAND}`, or use --loader torch")


def open_loader(
    files: Sequence[Path],
    labels: Sequence[int],
    *,
    size: int,
    batch: int,
    augment: Augment | None,
    seed: int,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    backend: str = "auto",
    threads: int = 2,
) -> Loader:
    """Batches of `files`, each image resized to (size, size) pixels.

    With `augment`: a new order and new draws in every epoch. Each of the `world` ranks gets len(files) // world files,
    none of which another rank gets, and the same number of steps; step t of all ranks together holds the files of
    step t of one rank with `world` times the batch. A last short batch is left out unless it is the only one.
    Without: the plain order, the whole image, each exactly once over all ranks; the last batch may be short, and
    a rank may have one step less than another.

    Args:
        device: where batches are put. With DALI, `cuda` or `cuda:N` also decodes and augments there.
        backend: `auto` takes DALI where it can be imported and started, else torch; a name insists on that one.
        threads: for decoding and augmentation, at least 1.

    Raises:
        InputError: arguments that do not fit together; `dali` asked for and not to be had.
    """
    count = len(files)
    if count == 0 or len(labels) != count:
        raise InputError(f"a loader needs files and one label for each: got {count} files and {len(labels)} labels")
    if min(size, batch, threads) < 1 or seed < 0 or not 0 <= rank < world:
        raise InputError(
            f"a loader needs size, batch and threads >= 1, seed >= 0 and 0 <= rank < world: "
            f"got {size=}, {batch=}, {threads=}, {seed=}, {rank=}, {world=}"
        )
    if augment is not None and count < world:
        raise InputError(f"{count} files cannot be shared by {world} ranks: use fewer ranks or more files")
    paths = [Path(file) for file in files]
    all_labels = torch.as_tensor(labels, dtype=torch.int64)
    backend, reason, images_of = _opened(backend, paths, size, batch, augment, threads, device)

    def epoch(k: int) -> Iterator[Batch]:
        batches = _batches(count, batch, augment is not None, seed, k, rank, world)
        images = images_of(_draws(count, augment, seed, k), batches)
        for chosen, pixels in zip(batches, images, strict=True):
            indices = torch.from_numpy(chosen)
            yield Batch(pixels.to(device), all_labels[indices].to(device), indices.to(device))

    return Loader(backend, reason, len(_batches(count, batch, augment is not None, seed, 0, rank, world)), epoch)


def _batches(
    count: int, batch: int, shuffled: bool, seed: int, epoch: int, rank: int, world: int
) -> list[NDArray[np.int64]]:
    """The indices of each step of this rank: every `world`-th file of the order, so that the ranks never share one."""
    if not shuffled:
        mine = np.arange(rank, count, world)
        return [mine[at : at + batch] for at in range(0, len(mine), batch)]
    mine = _generator(seed, epoch, 0).permutation(count)[rank::world][: count // world]
    return [mine[at : at + batch] for at in range(0, max(1, len(mine) - batch + 1), batch)]


def _draws(count: int, augment: Augment | None, seed: int, epoch: int) -> Draws:
    """The augmentation of `count` files. A file's row depends on its index, the seed and the epoch only."""
    if augment is None:
        one = np.ones(count, np.float32)
        return Draws(np.zeros((count, 2), np.float32), np.ones((count, 2), np.float32), one, one, 0 * one)
    unit = _generator(seed, epoch, 1).random((count, 9))  # filled row by row: more files do not change earlier rows
    area = augment.scale[0] + unit[:, 0] * (augment.scale[1] - augment.scale[0])
    # A crop of share `area` with relative aspect a has the sides sqrt(area * a) and sqrt(area / a): both are at most 1
    # exactly if area <= a <= 1 / area.
    low, high = (np.clip(math.log(bound), np.log(area), -np.log(area)) for bound in augment.ratio)
    aspect = np.exp(low + unit[:, 1] * (high - low))
    sides = np.minimum(1.0, np.stack([np.sqrt(area / aspect), np.sqrt(area * aspect)], axis=1))  # height, width
    start = unit[:, 2:4] * (1 - sides)
    end = start + sides
    flipped = (unit[:, 4:6] < 0.5) & np.array([augment.vflip, augment.hflip])
    angle = augment.rotate * (2 * unit[:, 8] - 1)
    if augment.turns:
        angle += 90 * _generator(seed, epoch, 2).integers(0, 4, count)
    return Draws(
        start=np.where(flipped, end, start).astype(np.float32),
        end=np.where(flipped, start, end).astype(np.float32),
        brightness=(1 + augment.brightness * (2 * unit[:, 6] - 1)).astype(np.float32),
        contrast=(1 + augment.contrast * (2 * unit[:, 7] - 1)).astype(np.float32),
        angle=angle.astype(np.float32),
    )


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, stream))))


def _opened(
    backend: str, files: Sequence[Path], size: int, batch: int, augment: Augment | None, threads: int, device: str
) -> tuple[str, str, ImagesOf]:
    """The backend's name, the line for the log, and its function from draws and batches to images."""
    if backend not in LOADERS:
        raise InputError(f"loader backend '{backend}' is unknown.{did_you_mean(backend, LOADERS)}")
    why = "asked for by name"
    if backend != "torch":
        drawn = {"brightness", "contrast"} if augment and (augment.brightness or augment.contrast) else set()
        drawn |= {"angle"} if augment and (augment.rotate or augment.turns) else set()
        try:
            about, images_of = open_dali(files, size, min(batch, len(files)), drawn, threads, torch.device(device))
        except ModuleNotFoundError:
            why, step = "nvidia.dali is not installed", f"run `{DALI_COMMAND}`"
        except (ImportError, OSError, RuntimeError) as error:
            why, step = (
                f"nvidia.dali does not start on {device}: {first_line(error)}",
                "check the driver (`nvidia-smi`)",
            )
        else:
            return "dali", f"{about}: {why if backend == 'dali' else 'installed, the first choice'}", images_of
        if backend == "dali":
            raise InputError(f"{why}; {step}, or use --loader torch")
    return "torch", f"torch: {why}", partial(torch_images, remembering(), files, size, threads)
