"""A temperature per member, so that its probabilities mean what they say.

Fitted on the validation split by `edgemed train`, after fine-tuning, before the test split is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

LOWEST, HIGHEST = 0.1, 10.0


def fitted_temperature(logits: Tensor, labels: Sequence[int]) -> float:
    """The T in 0.1..10 that minimises the cross-entropy of softmax(logits / T), logits float (N, K).

    Guo et al. 2017 (arXiv 1706.04599). The loss is convex in 1/T, so the bounded search over log T finds its minimum.
    """
    target = torch.tensor(list(labels))
    exact = logits.double()

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(exact / torch.tensor(log_t).double().exp(), target))

    bounds = (float(torch.tensor(LOWEST).log()), float(torch.tensor(HIGHEST).log()))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(torch.tensor(found.x).double().exp())
