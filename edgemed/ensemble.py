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
from edgemed.preprocess import FrontEnd


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
        pixels = self.front(image)
        # Logits leave the networks as float32 at every precision: softmax, temperature and mean never run in fp16.
        logits = torch.stack([member(pixels).float() for member in self.members], dim=1)  # (N, M, K)
        member_probabilities = torch.softmax(logits / self.temperatures[:, None], dim=-1)
        return member_probabilities.mean(dim=1), member_probabilities


def predict_callable(ensemble: Ensemble) -> Predict:
    """`ensemble` as a function of one image: uint8 (H, W, 3) RGB -> probabilities (K,), member probabilities (M, K)."""

    def predict(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            probabilities, members = ensemble(torch.from_numpy(image)[None])
        return probabilities[0].numpy(), members[0].numpy()

    return predict
