"""Patch entropy and entropy masks in vectorised NumPy: the path for arrays, with nothing but NumPy installed.

One `np.bincount` counts all patches of a few images at once: a pixel's code is its patch times 256 plus its bin, and
the images of one step are as many as keep codes and counters in the second-level cache. Same integers as every backend.

Check: `python -m pytest tests/kernels`; timing: `python benchmarks/patch_entropy.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemed.kernels import definition

PIXELS_PER_STEP = 1 << 16  # codes of 8 bytes and counters: half a megabyte


def _luma(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (N, H, W, 3) -> uint8 (N, H, W); 255 * 256 + 128 fits into 16 bits.

    Widened outright: NumPy 1 would multiply in 8 bits, since the weights fit into them.
    """
    weighted = np.full(images.shape[:-1], 128, np.uint16)
    for channel, weight in enumerate(definition.LUMA):
        weighted += np.multiply(images[..., channel], weight, dtype=np.uint16)
    grey: NDArray[np.uint8] = (weighted >> np.uint16(8)).astype(np.uint8)
    return grey


def _bits_from_counts(
    counts: NDArray[np.intp], terms: NDArray[np.int32] | NDArray[np.float64], pixels: int, order: float
) -> NDArray[np.float32]:
    """Counts (patches, 256) -> entropies (patches,), multiples of 2^-17 bit."""
    summed = terms[counts].sum(axis=1, dtype=terms.dtype)
    bits = pixels.bit_length() - 1  # log2(n)
    if order == 1:
        grid = (((pixels * bits) << definition.GRID_BITS) - summed + pixels // 2) >> bits
    else:
        grid = np.floor(np.log2(summed) / (1 - order) * 2**definition.GRID_BITS + 0.5)
    result: NDArray[np.float32] = (grid * 2.0**-definition.GRID_BITS).astype(np.float32)
    return result


def patch_entropy(images: NDArray[np.uint8], patch: int, bins: int = 256, order: float = 1.0) -> NDArray[np.float32]:
    """uint8 (N, H, W, 3) RGB or (N, H, W) -> float32 (N, H/P, W/P), bits. Errors: `definition.geometry`."""
    shape = definition.geometry(images.shape, images.dtype.name, patch, bins, order)
    terms = definition.terms(shape.pixels, order)
    per_image = shape.rows * shape.columns
    step = max(1, min(shape.count, PIXELS_PER_STEP // (shape.height * shape.width)))
    blocks = (step, shape.rows, patch, shape.columns, patch)
    # A code is 256 * patch + bin. The upper bytes are written once and for all, the bin goes into the lowest.
    codes = np.empty(blocks, dtype=np.int64)
    codes[...] = 256 * np.arange(step * per_image).reshape(step, shape.rows, 1, shape.columns, 1)
    bin_bytes = codes.view(np.uint8).reshape(*blocks, 8)[..., definition.LOW_BYTE]
    entropy = np.zeros((shape.count, per_image), dtype=np.float32)
    for start in range(0, shape.count, step):
        chunk = images[start : start + step]
        used = len(chunk)
        grey = _luma(chunk) if shape.channels == 3 else chunk
        bin_bytes[:used] = (grey >> shape.bin_shift if shape.bin_shift else grey).reshape(used, *blocks[1:])
        counts = np.bincount(codes[:used].reshape(-1), minlength=used * per_image * 256).reshape(-1, 256)
        entropy[start : start + used] = _bits_from_counts(counts, terms, shape.pixels, order).reshape(used, per_image)
    return entropy.reshape(shape.count, shape.rows, shape.columns)


def _noise(plan: definition.MaskPlan, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, U) Gumbel noise in units of 2^-16: `reference.philox` and `reference.gumbel` for all units at once."""
    word = np.uint64(0xFFFFFFFF)
    counters = ids.astype(np.uint64)[:, None]
    x0 = np.broadcast_to(np.arange(plan.units, dtype=np.uint64), (len(ids), plan.units))
    x1, x2, x3 = counters & word, counters >> np.uint64(32), np.zeros_like(counters)
    multiply_0, multiply_1 = (np.uint64(value) for value in definition.PHILOX_MULTIPLIERS)
    for turn in range(definition.PHILOX_ROUNDS):
        key_0 = np.uint64((plan.seed_low + turn * definition.PHILOX_WEYL[0]) & 0xFFFFFFFF)
        key_1 = np.uint64((plan.seed_high + turn * definition.PHILOX_WEYL[1]) & 0xFFFFFFFF)
        product_0, product_1 = multiply_0 * x0, multiply_1 * x2
        x0, x1 = (product_1 >> np.uint64(32)) ^ x1 ^ key_0, product_1 & word
        x2, x3 = (product_0 >> np.uint64(32)) ^ x3 ^ key_1, product_0 & word
    uniform = ((x0 >> np.uint64(8)).astype(np.float64) + 0.5) * 2.0**-24
    noise: NDArray[np.int64] = np.floor(-np.log(-np.log(uniform)) * 2**definition.SCORE_BITS + 0.5).astype(np.int64)
    return noise


def entropy_mask(
    entropy: NDArray[np.float32], ratio: float, sharpness: float, seed: int, ids: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """float32 (N, h, w) bits -> bool (N, h, w), True = removed: `reference.entropy_mask`, vectorised."""
    plan = definition.mask_plan(entropy.shape, entropy.dtype.name, (ids.shape, ids.dtype.name), ratio, sharpness, seed)
    bits = entropy.reshape(len(entropy), plan.units)
    clamped = np.where(bits > 0, np.minimum(bits, definition.MAX_BITS), 0).astype(np.float64)
    quantised = np.floor(clamped * 2**definition.SCORE_BITS + 0.5).astype(np.int64)
    total = quantised.sum(axis=1, keepdims=True)
    spread = np.sqrt(
        (plan.units * (quantised * quantised).sum(axis=1, keepdims=True) - total * total).astype(np.float64)
    )
    centred = (quantised * plan.units - total).astype(np.float64)
    guided = np.floor(plan.slope * centred / np.where(spread > 0, spread, 1.0) + 0.5).astype(np.int64)
    scores = guided + _noise(plan, ids)
    keys = scores * definition.MAX_UNITS + np.arange(
        definition.MAX_UNITS - 1, definition.MAX_UNITS - 1 - plan.units, -1
    )
    mask = np.zeros_like(keys, dtype=np.bool_)
    np.put_along_axis(mask, np.argsort(-keys, axis=1)[:, : plan.removed], True, axis=1)
    return mask.reshape(entropy.shape)
