"""The front end that lies inside the engine: uint8 pixels of any size in, the network's normalised input out.

It exists because preprocessing that differs between training and serving is the commonest way to lose accuracy without
an error. Training's evaluation runs this module, and `edgemed build-engine` exports this same module:

    edgemed build-engine RUN --out BUNDLE

The resize is bilinear with antialiasing (a triangle filter as wide as the reduction), written as two matrix products,
because TensorRT's ONNX parser refuses `Resize` with antialiasing. The aspect is squashed: H and W both become S.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def resize_weights(n_in: int, n_out: int, device: torch.device) -> Tensor:
    """The (n_out, n_in) float32 matrix of an antialiased bilinear resize along one axis; its rows sum to 1.

    Output sample i lies at (i + 1/2) * n_in / n_out and takes the pixels within max(n_in / n_out, 1) of it, weighted by
    a triangle: what `torch.nn.functional.interpolate(mode="bilinear", antialias=True)` computes. Both distances are
    multiplied by 2 * n_out here, so that they are whole numbers, exact in float32 for any image side below
    2**23 / n_out (37,449 at size 224). A graph exported from this keeps `n_in` symbolic.
    """
    centre = (2.0 * torch.arange(n_out, dtype=torch.float32, device=device) + 1.0) * n_in
    pixel = (2.0 * torch.arange(n_in, dtype=torch.float32, device=device) + 1.0) * n_out
    # The last pixel's position is (2 n_in - 1) n_out: this reads n_in back as a tensor, where max() would add a guard.
    support = (pixel[-1:] / n_out + 1.0).clamp(min=2.0 * n_out)  # (1,) = 2 max(n_in, n_out)
    weights = (1.0 - (centre[:, None] - pixel[None, :]).abs() / support).clamp(min=0.0)
    return weights / weights.sum(dim=1, keepdim=True)


class FrontEnd(nn.Module):
    """uint8 (N, H, W, 3) RGB -> float32 (N, 3, S, S), normalised. Call it outside autocast: the products need float32.

    `size` is S; `mean` and `std` are per channel for values in 0..1, as in timm's `pretrained_cfg`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        mean_, std_ = (torch.tensor(tuple(v), dtype=torch.float64).reshape(1, 3, 1, 1) for v in (mean, std))
        self.register_buffer("scale", (1.0 / (255.0 * std_)).float(), persistent=False)
        self.register_buffer("shift", (-mean_ / std_).float(), persistent=False)

    def resized(self, image: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) -> float32 (N, 3, S, S) in 0..255, not rounded, not yet normalised."""
        n, height, width, _ = image.shape
        rows = resize_weights(height, self.size, image.device)  # (S, H)
        columns = resize_weights(width, self.size, image.device)  # (S, W)
        # Cast first: TensorRT refuses layout operations on uint8. Rows first: only the reduced image is transposed.
        pixels = image.float().reshape(n, height, width * 3)
        reduced = (rows @ pixels).reshape(n, self.size, width, 3).permute(0, 3, 1, 2)  # (N, 3, S, W)
        return reduced @ columns.t()

    def normalised(self, pixels: Tensor) -> Tensor:
        """float (N, 3, h, w) in 0..255 -> float32 of the same shape: (value / 255 - mean) / std."""
        # Not folded into the stem: that is exact only for a stem without padding (ConvNeXt's), and this multiply-add
        # is 0.06 of 446 ms (two ConvNeXt-Tiny, ONNX Runtime, one thread).
        return pixels * self.scale + self.shift

    def forward(self, image: Tensor) -> Tensor:
        return self.normalised(self.resized(image))
