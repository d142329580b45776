"""The ensemble: one front end, one or two networks, and the mean of their calibrated probabilities.

It exists so that evaluation and export run the very same module: `edgemed train` evaluates it, and
`edgemed build-engine RUN --out BUNDLE` exports it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemed.evaluate import Predict
from edgemed.kernels import reference
from edgemed.kernels.onnx import PatchEntropy
from edgemed.preprocess import FrontEnd

ENTROPY_PATCH = 32  # pixels of the resized image: the unit of the masked pretraining


class Ensemble(nn.Module):
    """uint8 (N, H, W, 3) RGB -> probabilities (N, K) and member_probabilities (N, M, K), both float32.

    `members` are networks that map the front end's (N, 3, S, S) to logits (N, K); member m's probabilities are
    softmax(logits / temperatures[m]), and the ensemble's are their mean. One member (M = 1) is allowed.
    """

    temperatures: Tensor

    def __init__(self, front: FrontEnd, members: Sequence[nn.Module], temperatures: Sequence[float]) -> None:
        super().__init__()
        if not members or len(members) != len(temperatures):
            raise ValueError(f"{len(members)} members but {len(temperatures)} temperatures")
        self.front = front
        self.members = nn.ModuleList(members)
        self.register_buffer("temperatures", torch.tensor(tuple(temperatures), dtype=torch.float32))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.of_pixels(self.front(image))

    def of_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` from what the front end gives: float32 (N, 3, S, S), normalised."""
        # Logits leave the networks as float32 at every precision: softmax, temperature and mean never run in fp16.
        logits = torch.stack([member(pixels).float() for member in self.members], dim=1)  # (N, M, K)
        member_probabilities = torch.softmax(logits / self.temperatures[:, None], dim=-1)
        return member_probabilities.mean(dim=1), member_probabilities


class WithEntropy(nn.Module):
    """An ensemble with a third output, `entropy`: float32 (N, S/32, S/32), bits per patch of the resized image.

    Patches have 32 pixels a side. The pixels are rounded half to even and clamped first. S must be a multiple of 32.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.entropy = PatchEntropy(ENTROPY_PATCH)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        front = self.ensemble.front
        resized = front.resized(image)
        return (*self.ensemble.of_pixels(front.normalised(resized)), self.entropy(resized))


def entropy_map(front: FrontEnd, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What `WithEntropy` has to give for uint8 (H, W, 3) RGB, by the oracle: (S/32, S/32) bits."""
    with torch.inference_mode():
        pixels = front.resized(torch.from_numpy(image)[None]).round().clamp(0, 255).byte()
    bits: NDArray[np.float32] = reference.patch_entropy(pixels.permute(0, 2, 3, 1).numpy(), ENTROPY_PATCH)[0]
    return bits


def predict_callable(ensemble: Ensemble) -> Predict:
    """`ensemble` as a function of one image: uint8 (H, W, 3) RGB -> probabilities (K,), member probabilities (M, K)."""

    def predict(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            probabilities, members = ensemble(torch.from_numpy(image)[None])
        return probabilities[0].numpy(), members[0].numpy()

    return predict
