"""Patch entropy and entropy masks in torch operators: for training on the CPU, and on any device that has float64.

The same integers as `numpy.py`, so the same entropies and masks to the last bit (`definition.py` says why).

Check: `python -m pytest tests/kernels`; timing: `python benchmarks/patch_entropy.py`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from edgemed.kernels import definition

PIXELS_PER_STEP = 1 << 18  # on the CPU: 2 MB of codes, about the size of a second-level cache
PIXELS_PER_STEP_DEVICE = 1 << 24


@functools.lru_cache(maxsize=64)
def terms_tensor(pixels: int, order: float, device: torch.device) -> Tensor:
    """(n + 1,): `definition.terms` on the device, kept there: copying it would cost more than the kernel."""
    return torch.from_numpy(definition.terms(pixels, order)).to(device)


def geometry(images: Tensor, patch: int, bins: int, order: float) -> definition.Geometry:
    """The checked shape of a call; errors as `definition.geometry` lists them."""
    return definition.geometry(tuple(images.shape), str(images.dtype).removeprefix("torch."), patch, bins, order)


def _luma(images: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) -> int32 (N, H, W)."""
    red, green, blue = (images[..., channel].to(torch.int32) for channel in range(3))
    return (red * definition.LUMA[0] + green * definition.LUMA[1] + blue * definition.LUMA[2] + 128) >> 8


def patch_entropy(images: Tensor, patch: int, bins: int = 256, order: float = 1.0) -> Tensor:
    """uint8 (N, H, W, 3) RGB or (N, H, W) -> float32 (N, H/P, W/P), bits. Errors: `definition.geometry`."""
    shape = geometry(images, patch, bins, order)
    device, pixels, per_image = images.device, shape.pixels, shape.rows * shape.columns
    log_pixels = pixels.bit_length() - 1
    terms = terms_tensor(pixels, order, device)
    budget = PIXELS_PER_STEP if device.type == "cpu" else PIXELS_PER_STEP_DEVICE
    step = max(1, min(shape.count, budget // (shape.height * shape.width)))
    blocks = (shape.rows, patch, shape.columns, patch)
    # A code is 256 * patch + bin. The upper bytes are written once and for all, the bin goes into the lowest.
    codes = torch.empty(step, *blocks, dtype=torch.int64, device=device)
    codes[...] = torch.arange(0, 256 * step * per_image, 256, device=device).view(step, shape.rows, 1, shape.columns, 1)
    bin_bytes = codes.view(torch.uint8).view(step, *blocks, 8)[..., definition.LOW_BYTE]
    # Written out in full: torch adds a contiguous source twice as fast as an expanded one.
    ones = torch.ones(codes.numel(), dtype=torch.int32, device=device)
    counts = torch.empty(step * per_image * 256, dtype=torch.int32, device=device)
    entropy = torch.zeros(shape.count, per_image, dtype=torch.float32, device=device)
    for start in range(0, shape.count, step):
        chunk = images[start : start + step]
        used = len(chunk)
        grey = _luma(chunk) if shape.channels == 3 else chunk
        grey = grey >> shape.bin_shift if shape.bin_shift else grey
        bin_bytes[:used].copy_(grey.reshape(used, *blocks))
        code = codes[:used].view(-1)
        count = counts[: used * per_image * 256].zero_().scatter_add_(0, code, ones[: code.numel()])
        summed = terms.index_select(0, count).view(-1, 256).sum(1, dtype=terms.dtype)
        if order == 1:
            grid = (((pixels * log_pixels) << definition.GRID_BITS) - summed + pixels // 2) >> log_pixels
        else:
            grid = torch.floor(torch.log2(summed) / (1 - order) * 2**definition.GRID_BITS + 0.5)
        entropy[start : start + used] = (grid * 2.0**-definition.GRID_BITS).view(used, per_image)
    return entropy.view(shape.count, shape.rows, shape.columns)


def mask_plan(entropy: Tensor, ratio: float, sharpness: float, seed: int, ids: Tensor) -> definition.MaskPlan:
    """The checked plan of a draw; errors as `definition.mask_plan` lists them."""
    names = [str(tensor.dtype).removeprefix("torch.") for tensor in (entropy, ids)]
    return definition.mask_plan(tuple(entropy.shape), names[0], (tuple(ids.shape), names[1]), ratio, sharpness, seed)


def noise(plan: definition.MaskPlan, ids: Tensor) -> Tensor:
    """int64 (N,) counters -> int64 (N, U) Gumbel noise in units of 2^-16: `reference.gumbel` of `reference.philox`.

    A product of two 32-bit words overflows int64 and wraps; the upper word is right after the mask, as is the lower
    one.
    """
    word = 0xFFFFFFFF
    x0 = torch.arange(plan.units, device=ids.device).expand(len(ids), plan.units)
    x1, x2 = (ids & word)[:, None], ((ids >> 32) & word)[:, None]
    x3 = torch.zeros_like(x1)
    for turn in range(definition.PHILOX_ROUNDS):
        key_0 = (plan.seed_low + turn * definition.PHILOX_WEYL[0]) & word
        key_1 = (plan.seed_high + turn * definition.PHILOX_WEYL[1]) & word
        product_0, product_1 = x0 * definition.PHILOX_MULTIPLIERS[0], x2 * definition.PHILOX_MULTIPLIERS[1]
        x0, x1 = ((product_1 >> 32) & word) ^ x1 ^ key_0, product_1 & word
        x2, x3 = ((product_0 >> 32) & word) ^ x3 ^ key_1, product_0 & word
    uniform = ((x0 >> 8).double() + 0.5) * 2.0**-24
    return torch.floor(-torch.log(-torch.log(uniform)) * 2**definition.SCORE_BITS + 0.5).long()


def entropy_mask(entropy: Tensor, ratio: float, sharpness: float, seed: int, ids: Tensor) -> Tensor:
    """float32 (N, h, w) bits -> bool (N, h, w), True = removed: `reference.entropy_mask` on the entropies' device."""
    plan = mask_plan(entropy, ratio, sharpness, seed, ids)
    bits = entropy.reshape(len(entropy), plan.units)
    clamped = torch.where(bits > 0, bits.clamp(max=definition.MAX_BITS), 0.0).double()
    quantised = torch.floor(clamped * 2**definition.SCORE_BITS + 0.5).long()
    total = quantised.sum(1, keepdim=True)
    spread = (plan.units * (quantised * quantised).sum(1, keepdim=True) - total * total).double().sqrt()
    centred = (quantised * plan.units - total).double()
    guided = torch.floor(plan.slope * centred / torch.where(spread > 0, spread, 1.0) + 0.5).long()
    scores = guided + noise(plan, ids.to(entropy.device))
    last = definition.MAX_UNITS - 1
    keys = scores * definition.MAX_UNITS + torch.arange(last, last - plan.units, -1, device=scores.device)
    chosen = keys.topk(plan.removed, dim=1).indices
    return torch.zeros_like(keys, dtype=torch.bool).scatter_(1, chosen, True).view(entropy.shape)
