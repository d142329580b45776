"""A temperature per member, so that its probabilities mean what they say.

Fitted on the validation split by `edgemed train`, after fine-tuning, before the test split is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

LOWEST, HIGHEST = 0.1, 10.0


def fitted_temperature(logits: Tensor, labels: Sequence[int]) -> float:
    """The T in 0.1..10 that minimises the cross-entropy of softmax(logits / T), logits float (N, K).

    Guo et al. 2017 (arXiv 1706.04599). The loss is convex in 1/T, so the bounded search over log T finds its minimum.
    The targets are those of Platt 1999 for N images, (N + 1) / (N + K) for the label and 1 / (N + K) elsewhere: a few
    dozen images that are all classified rightly would otherwise ask for T = 0, a certainty that they do not give.
    """
    count, classes = logits.shape
    target = torch.full((count, classes), 1 / (count + classes), dtype=torch.float64)
    target[torch.arange(count), torch.tensor(list(labels))] = (count + 1) / (count + classes)
    exact = logits.double()

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(exact / torch.tensor(log_t).double().exp(), target))

    found = minimize_scalar(loss, bounds=(log(LOWEST), log(HIGHEST)), method="bounded", options={"xatol": 1e-6})
    return float(exp(found.x))
