"""Patch entropy and entropy masks in plain code: the definition, and the oracle that every backend is held against.

Entropy of a patch of P x P pixels (n = P * P), in bits:
    luma Y = (77 R + 150 G + 29 B + 128) >> 8, bin k = Y >> shift, c_k = pixels of the patch in bin k
    Shannon (order 1):  H = log2(n) - (1/n) sum c_k log2 c_k,  0 log 0 = 0
    Rényi (order a):    H = log2(sum (c_k/n)^a) / (1 - a)
Mask of an image of U units: sharpness * (H_i - mean) / std + Gumbel noise; the round(ratio * U) highest are True =
removed. The noise of unit i comes from Philox4x32-10 with key = seed and counter = (i, id low, id high, 0): first word
w, u = ((w >> 8) + 1/2) / 2^24, g = -log(-log u). What makes the masks the same on every device stands in `mask_scores`.

Slow on purpose. Check: `python -m pytest tests/kernels`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgemed.kernels import definition


def luma(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (..., 3) RGB -> uint8 (...): (77 R + 150 G + 29 B + 128) >> 8."""
    red, green, blue = (images[..., channel].astype(np.int64) for channel in range(3))
    weights = definition.LUMA
    return ((weights[0] * red + weights[1] * green + weights[2] * blue + 128) >> 8).astype(np.uint8)


def entropy_of_counts(counts: NDArray[np.int64], order: float) -> float:
    """Bits, from the counts of the bins of one patch, in float64."""
    shares = counts[counts > 0] / counts.sum()
    if order == 1:
        return float(-np.sum(shares * np.log2(shares))) + 0.0  # + 0.0: a flat patch has entropy 0, not -0
    return float(np.log2(np.sum(shares**order)) / (1 - order)) + 0.0


def patch_entropy(images: NDArray[np.uint8], patch: int, bins: int = 256, order: float = 1.0) -> NDArray[np.float32]:
    """uint8 (N, H, W, 3) RGB or (N, H, W) -> float32 (N, H/P, W/P), bits. Errors: `definition.geometry`."""
    shape = definition.geometry(images.shape, images.dtype.name, patch, bins, order)
    grey = luma(images) if shape.channels == 3 else images
    entropy = np.zeros((shape.count, shape.rows, shape.columns), dtype=np.float32)
    for image, row, column in np.ndindex(entropy.shape):
        pixels = grey[image, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        counts = np.bincount((pixels >> shape.bin_shift).ravel(), minlength=bins)
        entropy[image, row, column] = entropy_of_counts(counts, order)
    return entropy


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four random 32-bit words: the block cipher Philox4x32-10 of the counter, all words unsigned 32 bit."""
    (multiply_0, multiply_1), (weyl_0, weyl_1) = definition.PHILOX_MULTIPLIERS, definition.PHILOX_WEYL
    x0, x1, x2, x3 = counter
    key_0, key_1 = key
    for _ in range(definition.PHILOX_ROUNDS):
        product_0, product_1 = multiply_0 * x0, multiply_1 * x2
        x0, x1 = (product_1 >> 32) ^ x1 ^ key_0, product_1 & 0xFFFFFFFF
        x2, x3 = (product_0 >> 32) ^ x3 ^ key_1, product_0 & 0xFFFFFFFF
        key_0, key_1 = (key_0 + weyl_0) & 0xFFFFFFFF, (key_1 + weyl_1) & 0xFFFFFFFF
    return x0, x1, x2, x3


def gumbel(word: int) -> int:
    """Gumbel noise in units of 2^-16 from a random 32-bit word.

    Of the 2^24 possible results none lies nearer than 6e-9 of a unit to a rounding border (tested, all of them), while
    a float64 logarithm that is off by 8 units in its last place moves them by 1e-9. So every device rounds to the same
    integer.
    """
    uniform = ((word >> 8) + 0.5) * 2.0**-24
    return math.floor(-math.log(-math.log(uniform)) * 2.0**definition.SCORE_BITS + 0.5)


def mask_scores(entropy: list[float], slope: float, seed: tuple[int, int], image_id: int) -> list[int]:
    """The scores of the units of one image, as integers in units of 2^-16.

    Entropies are clamped to 0..8 bits, NaN to 0, and rounded to q = multiples of 2^-16. With U units, S1 = sum q and
    S2 = sum q^2 (exact integers), (q U - S1) / sqrt(U S2 - S1^2) is the standardised entropy (population deviation; 0
    where all are equal). One float64 product, square root and quotient follow, each correctly rounded by IEEE 754, then
    a rounding to an integer; the rest is integers. No step depends on the order of a sum or a fused multiply-add.
    """
    quantised = [
        math.floor((min(value, float(definition.MAX_BITS)) if value > 0 else 0.0) * 2**definition.SCORE_BITS + 0.5)
        for value in entropy
    ]
    units, total = len(quantised), sum(quantised)
    spread = math.sqrt(units * sum(value * value for value in quantised) - total * total)
    low, high = image_id & 0xFFFFFFFF, (image_id >> 32) & 0xFFFFFFFF
    scores = []
    for unit, value in enumerate(quantised):
        guided = math.floor(slope * (value * units - total) / spread + 0.5) if spread > 0 else 0
        scores.append(guided + gumbel(philox((unit, low, high, 0), seed)[0]))
    return scores


def entropy_mask(
    entropy: NDArray[np.float32], ratio: float, sharpness: float, seed: int, ids: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """float32 (N, h, w) bits -> bool (N, h, w), True = removed, exactly round(ratio * h * w) per image.

    Of two equal scores the unit that comes first in the image is removed first. Errors: `definition.mask_plan`.
    """
    plan = definition.mask_plan(entropy.shape, entropy.dtype.name, (ids.shape, ids.dtype.name), ratio, sharpness, seed)
    mask = np.zeros((len(entropy), plan.units), dtype=np.bool_)
    for image, image_id in enumerate(ids.tolist()):
        scores = mask_scores(entropy[image].ravel().tolist(), plan.slope, (plan.seed_low, plan.seed_high), image_id)
        order = sorted(range(plan.units), key=lambda unit: (-scores[unit], unit))
        mask[image, order[: plan.removed]] = True
    return mask.reshape(entropy.shape)
