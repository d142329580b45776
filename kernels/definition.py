"""What every implementation of patch entropy and of the entropy mask shares: constants, tables, checks of the input.

It exists so that backends do not differ in a constant or accept different input; Triton's copy of a few constants is
held equal by its tests. It needs NumPy and nothing else.

Integers make the backends agree to the last bit. A count is an integer, so c log2 c takes at most 1,025 values: they
are rounded once, here, to multiples of 2^-17, and summed as integers, in any order, to the same result. The entropy
comes out as a multiple of 2^-17 bit (within 1e-5 of the real number), hence float32 averages of up to 16 of them are
exact as well.

Check: `python -m pytest tests/kernels`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import InputError

PATCHES = (8, 16, 32)  # pixels
LUMA = (77, 150, 29)  # of R, G, B; rounded, >> 8
GRID_BITS = 17  # entropies are multiples of 2^-17 bit
SCORE_BITS = 16  # scores and noise are multiples of 2^-16
LOW_BYTE = 0 if sys.byteorder == "little" else 7  # of an int64 in memory
MAX_BITS = 8  # entropies of 256 bins lie in 0..8
MAX_UNITS = 4096  # of one mask: a power of two; keeps every integer of the score below 2^63
MAX_ORDER = 100.0  # (1/256)^100 is a normal float64
MAX_SHARPNESS = 1e7  # from here on every difference of 2^-16 bit outweighs the noise

# Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10


@dataclass(frozen=True)
class Geometry:
    """The shape of one call: `count` images of `height` x `width` pixels and 1 or 3 channels."""

    count: int
    height: int
    width: int
    channels: int
    patch: int
    bin_shift: int  # bin = luma >> bin_shift

    @property
    def rows(self) -> int:
        return self.height // self.patch

    @property
    def columns(self) -> int:
        return self.width // self.patch

    @property
    def patches(self) -> int:
        return self.count * self.rows * self.columns

    @property
    def pixels(self) -> int:
        """Of one patch: n in the formulas, a power of two."""
        return self.patch * self.patch


def geometry(shape: tuple[int, ...], dtype: str, patch: int, bins: int, order: float) -> Geometry:
    """The checked shape of a call of `patch_entropy`; `dtype` is the name of the element type.

    Raises:
        InputError: not uint8, not (N, H, W[, 3]), no side, sides that are no multiple of the patch, a patch, bin count
            or order outside the definition. The message names what to change.
    """
    if dtype != "uint8":
        raise InputError(
            f"images are {dtype}, patch entropy needs uint8 in 0..255: convert them with (x * 255).round() first"
        )
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
        raise InputError(
            f"images have shape {shape}, needed is (N, H, W, 3) RGB or (N, H, W) grey; for one image use images[None]"
        )
    if not is_whole(patch) or patch not in PATCHES:
        raise InputError(f"patch is {patch}, possible are 8, 16 and 32 pixels")
    if not is_whole(bins) or bins not in (2, 4, 8, 16, 32, 64, 128, 256):
        raise InputError(f"bins is {bins}, possible are the powers of two from 2 to 256")
    check_order(order)
    count, height, width = shape[:3]
    if height < patch or width < patch or height % patch or width % patch:
        near = " x ".join(str(max(patch, side // patch * patch)) for side in (height, width))
        raise InputError(
            f"images are {height} x {width}, no multiple of patch={patch} pixels: resize or crop them to {near}"
        )
    return Geometry(count, height, width, 1 if len(shape) == 3 else 3, patch, 8 - (int(bins).bit_length() - 1))


def is_whole(value: object) -> bool:
    """Whether `value` is an integer, Python's or NumPy's: 16.0 equals 16, and has no bits."""
    return isinstance(value, Integral)


def check_order(order: float) -> None:
    """Raise InputError unless `order` is 1 (Shannon) or a Rényi order in (0, 100] at least 0.01 away from 1."""
    if not 0 < order <= MAX_ORDER:
        raise InputError(f"order is {order}, needed is 0 < order <= 100: 1.0 is Shannon, 2.0 the usual Rényi order")
    if order != 1 and abs(order - 1) < 0.01:
        raise InputError(
            f"order {order} is too near 1, where Rényi's formula divides by 0: use order=1.0, which is its limit"
        )


def shannon_terms(pixels: int) -> NDArray[np.int32]:
    """(n + 1,) int32: c log2 c in units of 2^-17, for every count c of a patch of n pixels; 0 log 0 = 0.

    The nearest rounding border is 5e-4 of a unit away (tested for all c), so that every log2 gives the same integers.
    """
    counts = np.arange(pixels + 1, dtype=np.float64)
    terms = counts * np.log2(np.maximum(counts, 1))
    rounded: NDArray[np.int32] = np.rint(terms * 2**GRID_BITS).astype(np.int32)
    return rounded


def renyi_terms(pixels: int, order: float) -> NDArray[np.float64]:
    """(n + 1,) float64: (c/n)^a for every count c of a patch of n pixels."""
    return (np.arange(pixels + 1, dtype=np.float64) / pixels) ** order


def terms(pixels: int, order: float) -> NDArray[np.int32] | NDArray[np.float64]:
    """(n + 1,): the addend of every possible count, `shannon_terms` for order 1, else `renyi_terms`."""
    return shannon_terms(pixels) if order == 1 else renyi_terms(pixels, order)


@dataclass(frozen=True)
class MaskPlan:
    """The checked, device-independent part of one draw of masks."""

    units: int  # of one image
    removed: int  # of one image: round(ratio * units), a half to the even number
    slope: float  # sharpness in units of 2^-16, exact in float64
    seed_low: int  # uint32
    seed_high: int  # uint32


def mask_plan(
    shape: tuple[int, ...], dtype: str, ids: tuple[tuple[int, ...], str], ratio: float, sharpness: float, seed: int
) -> MaskPlan:
    """The plan for entropies of this shape and element type; `ids` is the shape and element type of the counters.

    Raises:
        InputError: wrong shapes or types, a ratio outside 0..1, a sharpness beyond 1e7, a seed outside 64 bits, more
            than 4,096 units.
    """
    if dtype != "float32" or len(shape) != 3:
        raise InputError(f"entropy is {dtype} {shape}, needed is float32 (N, h, w) as patch_entropy returns it")
    if ids != (shape[:1], "int64"):
        raise InputError(f"ids are {ids[1]} {ids[0]}, needed is int64 ({shape[0]},): one counter per image and draw")
    units = shape[1] * shape[2]
    if not 1 <= units <= MAX_UNITS:
        raise InputError(
            f"entropy has {units} units per image, possible are 1 to {MAX_UNITS}: use a smaller image or a larger patch"
        )
    if not 0 <= ratio <= 1:
        raise InputError(f"ratio is {ratio}, needed is the share of units to remove, 0 to 1")
    if not abs(sharpness) <= MAX_SHARPNESS:
        raise InputError(f"sharpness is {sharpness}, needed is -1e7 to 1e7 (1e7 always takes the highest entropies)")
    if not is_whole(seed) or not 0 <= seed < 2**64:
        raise InputError(f"seed is {seed}, needed is an integer from 0 to 2^64 - 1")
    seed = int(seed)
    return MaskPlan(units, round(ratio * units), float(sharpness) * 2**SCORE_BITS, seed & 0xFFFFFFFF, seed >> 32)
