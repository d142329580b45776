"""Sharpness-aware minimisation (SAM): fine-tuning looks for weights whose whole neighbourhood has a low loss.

    edgemed train DATA --out RUN --sam 0.05

Why: a few hundred images are fitted by many weights, and flat minima generalise better. It takes twice the time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def sharpness_aware(model: nn.Module, radius: float, backward: Callable[[], Tensor]) -> Tensor:
    """Leave the gradients of the highest loss within `radius` of the weights, to first order; return the loss here.

    That is Foret et al.'s (2021, arXiv 2010.01412, equations 2 and 3) with the Euclidean norm over all parameters that
    have a gradient: at w + radius * g / |g|, where g is the gradient at w. The weights end as they were. Batch norms
    learn their statistics at w alone.

    Args:
        backward: leaves one step's gradients in the parameters and returns its loss. It is called twice, and draws
            what is random (dropped paths, mixup, erased rectangles) anew for each: the climb is not fitted to it.
    """
    loss = backward()
    moved = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    scale = radius / (torch.stack([gradient.norm() for _, gradient in moved]).norm() + 1e-12)
    before = [parameter.detach().clone() for parameter, _ in moved]
    norms = [(module, module.momentum) for module in model.modules() if isinstance(module, _BatchNorm)]
    with torch.no_grad():
        for parameter, gradient in moved:
            parameter.add_(gradient * scale)
            parameter.grad = None
    for module, _ in norms:
        module.momentum = 0.0
    there = backward()
    for module, momentum in norms:
        module.momentum = momentum
    with torch.no_grad():
        for (parameter, _), kept in zip(moved, before, strict=True):
            parameter.copy_(kept)
    return loss if there.isfinite() else there
