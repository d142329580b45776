"""Patch entropy in operators that every ONNX runtime has: a torch module to export as a part of the fused graph.

There is no histogram in ONNX, and a one-hot of 256 bins per pixel is slow. So a bin number is split into its upper and
lower half (4 bits each for 256 bins): the counts are the matrix product of two one-hot matrices of 16 columns, an
eighth of the comparisons. Counts up to 1,024 are exact in float32 and in float16. The logarithms are taken in float32.

Check: `python -m pytest tests/kernels/test_kernels_onnx.py` (ONNX Runtime and OpenVINO against the oracle).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgemed.kernels import definition


class PatchEntropy(nn.Module):
    """float (N, 3, H, W) RGB in 0..255 -> float32 (N, H/P, W/P), bits per patch. H and W are fixed multiples of P.

    The pixels are rounded half to even and clamped to 0..255, as they are when an image is stored after a resize. On
    whole numbers the result lies within 1e-5 bit of `reference.patch_entropy` (Rényi near order 1: 1e-3).
    """

    upper_bins: Tensor
    lower_bins: Tensor

    def __init__(self, patch: int = 32, bins: int = 256, order: float = 1.0) -> None:
        """Raise InputError for a patch, bin count or order outside the definition (`definition.geometry`)."""
        super().__init__()
        self.shift = definition.geometry((1, patch, patch, 3), "uint8", patch, bins, order).bin_shift
        self.patch, self.order = patch, float(order)
        self.lower = 1 << ((bins.bit_length() - 1) // 2)
        self.register_buffer(
            "upper_bins", torch.arange(bins // self.lower, dtype=torch.float32)[:, None], persistent=False
        )
        self.register_buffer("lower_bins", torch.arange(self.lower, dtype=torch.float32), persistent=False)

    def counts(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, patches, upper bins, lower bins) float32, whole numbers that sum to P * P."""
        height, width = pixels.shape[2] // self.patch, pixels.shape[3] // self.patch
        red, green, blue = pixels.float().round().clamp(0, 255).unbind(1)
        weights = definition.LUMA
        grey = torch.floor((weights[0] * red + weights[1] * green + weights[2] * blue + 128) / 256)
        code = torch.floor(grey / 2**self.shift)
        code = code.reshape(-1, height, self.patch, width, self.patch).permute(0, 1, 3, 2, 4)
        code = code.reshape(-1, height * width, self.patch * self.patch)
        upper = torch.floor(code / self.lower)
        lower = code - upper * self.lower
        return (upper[:, :, None, :] == self.upper_bins).float() @ (lower[..., None] == self.lower_bins).float()

    def forward(self, pixels: Tensor) -> Tensor:
        """float (N, 3, H, W) RGB in 0..255 -> float32 (N, H/P, W/P), bits."""
        counts, n = self.counts(pixels).flatten(2), float(self.patch * self.patch)
        if self.order == 1:
            bits = math.log2(n) - (counts * torch.log(counts.clamp(min=1))).sum(2) * (1 / (n * math.log(2)))
        else:  # scaled by the largest count, so that no power underflows
            top = counts.amax(2, keepdim=True)
            power = torch.log((counts / top).pow(self.order).sum(2)) + self.order * torch.log(top[..., 0] / n)
            bits = power * (1 / (math.log(2) * (1 - self.order)))
        return bits.clamp(min=0).reshape(-1, pixels.shape[2] // self.patch, pixels.shape[3] // self.patch)
