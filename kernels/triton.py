"""Patch entropy and entropy masks in Triton: what training on a GPU uses.

`_entropy_kernel` reads the image once and writes one number per patch; luma, histogram and entropy stay on the chip.
`_mask_kernel` makes the scores, the noise and the mask of one image. Neither copies anything to the host.

Bytes that must move for 64 RGB images of 224 x 224, P = 32: 64 * 224 * 224 * 3 = 9,633,792 in, 64 * 49 * 4 = 12,544
out. At the memory bandwidth of an Orin (204 GB/s) 47.3 us, an RTX 4090 (1,008 GB/s) 9.6 us, an H100 (3,350 GB/s) 2.9
us. These are floors, not measurements (`benchmarks/patch_entropy.py` times the kernels on a GPU). The table of c log2 c
(4 KB) stays in the cache. A mask moves 5 bytes per unit and 8 per image: 64 masks of 49 units 16 KB, so a launch is all
it costs.

Check without a GPU: `python -m pytest tests/kernels` (Triton's interpreter), `make kernels` (cubins for nine targets).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from edgemed.kernels import definition
from edgemed.kernels.torch import geometry, mask_plan, terms_tensor

PIXELS_PER_PROGRAM = 1024  # one patch of 32 x 32, four of 16 x 16, sixteen of 8 x 8
KEY_LIMIT = tl.constexpr(1 << 58)  # above every key: 1e7 * 2^16 * sqrt(4096) * 4096 < 2^58


@triton.jit
def _entropy_kernel(
    images,  # uint8 (N, H, W, channels)
    terms,  # (n + 1,) int32 for Shannon, float64 for Rényi
    entropy,  # float32 (patches,)
    patches,  # N * rows * columns
    columns,
    bin_shift,
    one_minus_order: tl.float64,
    side: tl.constexpr,
    log_n: tl.constexpr,  # log2(side * side)
    per_program: tl.constexpr,  # patches
    channels: tl.constexpr,
    shannon: tl.constexpr,
):
    n: tl.constexpr = side * side
    slot = tl.arange(0, per_program)[:, None]
    patch = tl.program_id(0) * per_program + slot
    pixel = tl.arange(0, n)[None, :]
    # H is a multiple of the side, so the images stack into one column of pixel rows.
    y = (patch // columns).to(tl.int64) * side + pixel // side
    x = (patch % columns) * side + pixel % side
    address = images + (y * (columns * side) + x) * channels
    inside = (patch < patches) & (pixel >= 0)
    grey = tl.load(address, mask=inside, other=0).to(tl.int32)
    if channels == 3:
        green = tl.load(address + 1, mask=inside, other=0).to(tl.int32)
        blue = tl.load(address + 2, mask=inside, other=0).to(tl.int32)
        grey = (77 * grey + 150 * green + 29 * blue + 128) >> 8
    code = tl.reshape(slot * 256 + (grey >> bin_shift), (per_program * n,))
    counts = tl.reshape(tl.histogram(code, per_program * 256), (per_program, 256))
    summed = tl.sum(tl.load(terms + counts), axis=1)
    if shannon:
        grid = (((n * log_n) << 17) - summed + n // 2) >> log_n
    else:
        grid = tl.floor(tl.log2(summed) / one_minus_order * 131072.0 + 0.5)
    out = tl.program_id(0) * per_program + tl.arange(0, per_program)
    tl.store(entropy + out, grid.to(tl.float32) * (1.0 / 131072.0), mask=out < patches)


@triton.jit
def philox_word(c0, c1, c2, k0, k1):
    """First word of Philox4x32-10 with the counter (c0, c1, c2, 0) and the key (k0, k1), all uint32."""
    c3 = c2 * 0
    for _ in tl.static_range(10):
        product_0 = c0.to(tl.uint64) * 0xD2511F53
        product_1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product_1.to(tl.uint32)
        c3 = product_0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0


@triton.jit(do_not_specialize=["units", "removed", "slope", "seed_low", "seed_high"])
def _mask_kernel(
    entropy,  # float32 (N, units)
    ids,  # int64 (N,)
    mask,  # int8 (N, units)
    units: tl.int32,
    removed: tl.int32,
    slope: tl.float64,
    seed_low: tl.int64,  # 32 bits used
    seed_high: tl.int64,
    block: tl.constexpr,
):
    """The arithmetic of `reference.mask_scores`, step for step; float64 products are never followed by an addition."""
    image = tl.program_id(0).to(tl.int64)
    unit = tl.arange(0, block)
    inside = unit < units
    bits = tl.load(entropy + image * units + unit, mask=inside, other=0.0)
    bits = tl.where(bits > 0.0, bits, 0.0)
    bits = tl.where(bits < 8.0, bits, 8.0).to(tl.float64)
    quantised = tl.floor(bits * 65536.0 + 0.5).to(tl.int64)
    total = tl.sum(quantised, axis=0)
    spread = tl.sqrt((units * tl.sum(quantised * quantised, axis=0) - total * total).to(tl.float64))
    centred = (quantised * units - total).to(tl.float64)
    guided = tl.floor(slope * centred / tl.where(spread > 0.0, spread, 1.0) + 0.5).to(tl.int64)
    counter = tl.load(ids + image)
    zero = (unit * 0).to(tl.uint32)
    word = philox_word(
        unit.to(tl.uint32),
        zero + counter.to(tl.uint32),
        zero + (counter >> 32).to(tl.uint32),
        zero + seed_low.to(tl.uint32),
        zero + seed_high.to(tl.uint32),
    )
    uniform = ((word >> 8).to(tl.float64) + 0.5) * (1.0 / 16777216.0)
    noise = tl.floor(-tl.log(-tl.log(uniform)) * 65536.0 + 0.5).to(tl.int64)
    # Keys differ, since the unit is in them. Bisection finds the key of rank `removed`: 59 counts, no sort.
    key = tl.where(inside, (guided + noise) * 4096 + (4095 - unit), -KEY_LIMIT - 1)
    low = total * 0 - KEY_LIMIT  # at least `removed` keys are >= low
    high = total * 0 + KEY_LIMIT
    for _ in range(59):
        middle = (low + high) >> 1
        enough = tl.sum((key >= middle).to(tl.int32), axis=0) >= removed
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    chosen = (key >= low) & (removed > 0)
    tl.store(mask + image * units + unit, chosen.to(tl.int8), mask=inside)


def entropy_constants(patch: int, channels: int, order: float) -> dict[str, int | bool]:
    """The compile-time arguments of `_entropy_kernel`."""
    pixels = patch * patch
    return {
        "side": patch,
        "log_n": pixels.bit_length() - 1,
        "per_program": PIXELS_PER_PROGRAM // pixels,
        "channels": channels,
        "shannon": order == 1,
    }


def mask_block(units: int) -> int:
    """The compile-time length of `_mask_kernel`: the power of two that holds all units."""
    return int(triton.next_power_of_2(max(32, units)))


def mask_warps(block: int) -> int:
    """Warps of `_mask_kernel`: two to four units per thread keep the keys in registers."""
    return min(32, max(1, block // 64))


def patch_entropy(images: Tensor, patch: int, bins: int = 256, order: float = 1.0) -> Tensor:
    """uint8 (N, H, W, 3) RGB or (N, H, W) CUDA tensor -> float32 (N, H/P, W/P), bits, on the current stream.

    Raises:
        InputError: input outside the definition (`definition.geometry`).
    """
    shape = geometry(images, patch, bins, order)
    entropy = torch.empty(shape.count, shape.rows, shape.columns, dtype=torch.float32, device=images.device)
    if shape.patches == 0:
        return entropy
    constants = entropy_constants(patch, shape.channels, order)
    grid = (triton.cdiv(shape.patches, int(constants["per_program"])),)
    with torch.cuda.device_of(images):
        _entropy_kernel[grid](
            images.contiguous(),
            terms_tensor(shape.pixels, order, images.device),
            entropy,
            shape.patches,
            shape.columns,
            shape.bin_shift,
            1.0 - order,
            **constants,
        )
    return entropy


def entropy_mask(entropy: Tensor, ratio: float, sharpness: float, seed: int, ids: Tensor) -> Tensor:
    """float32 (N, h, w) CUDA tensor -> bool (N, h, w), True = removed, on the current stream; nothing goes to the host.

    Raises:
        InputError: input outside the definition (`definition.mask_plan`).
    """
    plan = mask_plan(entropy, ratio, sharpness, seed, ids)
    mask = torch.empty(entropy.shape, dtype=torch.int8, device=entropy.device)
    if mask.numel() == 0:
        return mask.view(torch.bool)
    block = mask_block(plan.units)
    with torch.cuda.device_of(entropy):
        _mask_kernel[(len(entropy),)](
            entropy.contiguous(),
            ids.to(entropy.device).contiguous(),
            mask,
            plan.units,
            plan.removed,
            plan.slope,
            plan.seed_low,
            plan.seed_high,
            block=block,
            num_warps=mask_warps(block),
        )
    return mask.view(torch.bool)


def compiled_variants(target: int) -> Iterator[tuple[str, bytes, int]]:
    """(name, cubin, bytes of shared memory) of every kernel for one compute capability, as the launchers use them.

    No GPU is needed. Of the masks: the 49 units of a 224-pixel image, and the largest.
    """
    pointers = {(index,): [["tt.divisibility", 16]] for index in range(3)}  # torch's allocations are 16-byte aligned
    scalars = {"patches": "i32", "columns": "i32", "bin_shift": "i32", "one_minus_order": "fp64"}
    for patch in definition.PATCHES:
        for channels, colour in ((1, "grey"), (3, "rgb")):
            for order, kind, terms in ((1.0, "shannon", "*i32"), (2.0, "renyi", "*fp64")):
                signature = {"images": "*u8", "terms": terms, "entropy": "*fp32", **scalars}
                constants = entropy_constants(patch, channels, order)
                name = f"entropy_p{patch}_{colour}_{kind}"
                yield name, *_compiled(_entropy_kernel, signature, constants, pointers, target, warps=4)
    scalars = {"units": "i32", "removed": "i32", "slope": "fp64", "seed_low": "i64", "seed_high": "i64"}
    for units in (49, definition.MAX_UNITS):
        signature = {"entropy": "*fp32", "ids": "*i64", "mask": "*i8", **scalars}
        block = mask_block(units)
        yield (
            f"entropy_mask_{units}",
            *_compiled(_mask_kernel, signature, {"block": block}, pointers, target, warps=mask_warps(block)),
        )


def _compiled(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], attributes: Any, target: int, warps: int
) -> tuple[bytes, int]:
    source = ASTSource(kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": warps})
    return compiled.asm["cubin"], compiled.metadata.shared
