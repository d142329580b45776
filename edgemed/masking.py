"""Which units of an image the autoencoder hides: those of high entropy, drawn with seeded noise.

A unit is 32 x 32 pixels. Convention, here and everywhere: True (1) = removed.
Scores are the per-image standardised entropies times the sharpness plus Gumbel noise; the top round(ratio * units) are
removed (Gumbel top-k: Kool et al. 2019, arXiv 1903.06059). Sharpness 0 is random masking, a large value always takes
the units of highest entropy, a negative one the lowest (a control).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgemed.config import UNIT
from edgemed.kernels import entropy_mask, patch_entropy


def unit_entropy(images: Tensor, patch: int = 16, order: float = 1.0) -> Tensor:
    """uint8 (N, S, S, 3) RGB -> float32 (N, S/32, S/32): entropy in bits, finer patches averaged per unit.

    `order` 1 is Shannon's entropy, another one Rényi's of that order: 2 weighs the frequent grey values more.
    """
    entropy = patch_entropy(images, patch, order=order)
    per_unit = UNIT // patch
    return F.avg_pool2d(entropy[:, None], per_unit)[:, 0] if per_unit > 1 else entropy


def removed_units(
    images: Tensor, ratio: float, sharpness: float, seed: int, ids: Tensor, patch: int = 16, order: float = 1.0
) -> Tensor:
    """uint8 (N, S, S, 3) RGB -> bool (N, S/32, S/32), True = removed, exactly round(ratio * units) of each image.

    `ids` int64 (N,): one counter per image and draw; the same (seed, id) draws the same noise on every device.
    """
    return entropy_mask(unit_entropy(images, patch, order), ratio, sharpness, seed, ids)


def upsampled(mask: Tensor, height: int, width: int) -> Tensor:
    """bool (N, h, w) per unit -> bool (N, height, width) per position of a feature map or per pixel."""
    rows, columns = height // mask.shape[1], width // mask.shape[2]
    return torch.repeat_interleave(torch.repeat_interleave(mask, rows, dim=1), columns, dim=2)
