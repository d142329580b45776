"""A masked autoencoder for ConvNets with dense operations only.

A convolution lets hidden pixels leak into visible places, and lets visible ones bleed into hidden places, layer by
layer. Following SparK (Tian et al. 2023, arXiv 2301.03580) and ConvNeXt V2 (Woo et al. 2023, arXiv 2301.00808), without
sparse kernels: the pixels of removed units are zeroed, features are zeroed again before every spatial operation, and
batch normalisation sees visible positions only. What the encoder says about a visible unit then depends on visible
pixels alone (`tests/test_mae.py` changes the hidden pixels and compares). The loss follows He et al. 2022 (arXiv
2111.06377): mean squared error to the per-patch normalised pixels, on removed units only.

Convention: mask True (1) = removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from edgemed.config import UNIT
from edgemed.masking import upsampled

SPATIAL = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


@contextmanager
def visible_only(encoder: nn.Module, removed: Tensor) -> Iterator[None]:
    """Within this block, `encoder` computes from visible units alone. `removed`: bool (N, h, w), True = removed.

    Works by hooks on the encoder's own layers, so that it stays a plain timm network, before and after.
    """
    keep_of: dict[tuple[int, int], Tensor] = {}  # feature size -> bool (N, H, W), True = visible

    def keep(x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        if size not in keep_of:
            keep_of[size] = ~upsampled(removed, *size)
        return keep_of[size]

    def zero_removed(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        (x,) = inputs
        return (x * keep(x)[:, None],)

    shape_of: dict[nn.Module, torch.Size] = {}

    def gather_visible(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        (x,) = inputs  # (N, C, H, W) -> (visible, C, 1, 1): the layer's batch statistics are then those of the visible
        shape_of[layer] = x.shape
        # Contiguous: given a transposed (1, C, visible, 1), torch 2.14's batch norm returns wrong gradients on a CPU.
        return (x.permute(0, 2, 3, 1)[keep(x)].contiguous()[:, :, None, None],)

    def scatter_visible(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        shape = shape_of[layer]
        visible = keep_of[(shape[2], shape[3])]
        full = output.new_zeros(shape[0], shape[2], shape[3], shape[1])
        full[visible] = output[:, :, 0, 0]
        return full.permute(0, 3, 1, 2)

    handles = []
    for layer in encoder.modules():
        if isinstance(layer, SPATIAL) and _side(layer.kernel_size) > 1:
            handles.append(layer.register_forward_pre_hook(zero_removed))
        elif isinstance(layer, nn.BatchNorm2d):
            handles.append(layer.register_forward_pre_hook(gather_visible))
            handles.append(layer.register_forward_hook(scatter_visible))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _side(kernel: Any) -> int:
    return kernel if isinstance(kernel, int) else max(kernel)


class MaskedAutoencoder(nn.Module):
    """A timm encoder and a light decoder: projection, mask token, `depth` ConvNeXt blocks, prediction."""

    def __init__(self, encoder: nn.Module, width: int = 256, depth: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        with torch.no_grad():
            was_training = encoder.training
            empty = torch.zeros(1, 3, 2 * UNIT, 2 * UNIT)
            channels = encoder.eval().forward_features(empty).shape[1]  # type: ignore[operator]
            encoder.train(was_training)
        for parameter in getattr(encoder, "head", nn.Identity()).parameters():
            parameter.requires_grad_(False)  # ConvNeXt's last norm stands behind the features: no gradient reaches it
        self.project = nn.Conv2d(channels, width, 1)
        self.mask_token = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.blocks = nn.Sequential(*(ConvNeXtBlock(width, width, ls_init_value=None) for _ in range(depth)))
        self.predict = nn.Conv2d(width, 3 * UNIT * UNIT, 1)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def encode(self, images: Tensor, removed: Tensor) -> Tensor:
        """Normalised images float (N, 3, S, S) -> features (N, C, S/32, S/32), zero where removed."""
        pixels = images * ~upsampled(removed, images.shape[2], images.shape[3])[:, None]
        with visible_only(self.encoder, removed):
            features: Tensor = self.encoder.forward_features(pixels)  # type: ignore[operator]
        return features * ~removed[:, None]

    def forward(self, images: Tensor, removed: Tensor) -> Tensor:
        """Normalised images float (N, 3, S, S) -> predicted units float (N, S/32, S/32, 3072), per-patch normalised."""
        projected = self.project(self.encode(images, removed))
        filled = torch.where(removed[:, None], self.mask_token, projected)
        return self.predict(self.blocks(filled)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


def patchified(images: Tensor) -> Tensor:
    """float (N, 3, S, S) -> (N, S/32, S/32, 3072), the pixels of each unit in the order row, column, channel."""
    n, _, height, width = images.shape
    h, w = height // UNIT, width // UNIT
    return images.reshape(n, 3, h, UNIT, w, UNIT).permute(0, 2, 4, 3, 5, 1).reshape(n, h, w, UNIT * UNIT * 3)


def unpatchified(units: Tensor) -> Tensor:
    """The inverse of `patchified`: (N, h, w, 3072) -> (N, 3, 32 h, 32 w)."""
    n, h, w, _ = units.shape
    return units.reshape(n, h, w, UNIT, UNIT, 3).permute(0, 5, 1, 3, 2, 4).reshape(n, 3, h * UNIT, w * UNIT)


def unit_statistics(units: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each unit's pixels, (N, h, w, 1) each; a flat unit's deviation is 1e-3."""
    return units.mean(-1, keepdim=True), (units.var(-1, keepdim=True) + 1e-6).sqrt()


def reconstruction_loss(predicted: Tensor, images: Tensor, removed: Tensor) -> Tensor:
    """Mean squared error to the per-patch normalised pixels, averaged over the removed units: a scalar.

    `predicted` (N, h, w, 3072), `images` float (N, 3, S, S) normalised, `removed` bool (N, h, w), True = removed.
    """
    target = patchified(images)
    mean, deviation = unit_statistics(target)
    error = (predicted - (target - mean) / deviation).square().mean(-1)  # (N, h, w)
    return error[removed].mean()


def reconstructed(predicted: Tensor, images: Tensor, removed: Tensor) -> Tensor:
    """The normalised images with their removed units replaced by what the decoder says: float (N, 3, S, S).

    The prediction is de-normalised with each true unit's own mean and deviation, as in He et al.: a picture for people.
    """
    target = patchified(images)
    mean, deviation = unit_statistics(target)
    return unpatchified(torch.where(removed[..., None], predicted * deviation + mean, target))
