"""Batch normalisation with the statistics of all processes together, on any device.

Why not `torch.nn.SyncBatchNorm`: it refuses CPU tensors, and edgemed's tests of several ranks run on CPUs; one
implementation for both is tested where it is used. The ranks may bring different numbers of positions: in masked
pretraining a layer sees the visible ones only (`mae.visible_only`), and the statistics are then those of all visible
positions of the global batch. With gradient accumulation they are those of one part of it, over all ranks.

    torchrun --nproc-per-node 2 -m edgemed train DATA --out RUN --backbone tf_efficientnet_lite0

Tested by `python -m pytest tests/test_scale.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Summed(torch.autograd.Function):
    """The sum of a tensor over all ranks. The gradient of what all ranks do with it is summed likewise."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        result = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        result = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result)
        return result


class RankBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over all ranks' positions; then `drop` and `act`, as timm's BatchNormAct2d has them."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float
    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """float (N, C, H, W) -> the same shape and dtype; N and H, W may differ between the ranks."""
        y = self._normalised(x) if self.training else super().forward(x)
        activated: Tensor = self.act(self.drop(y))
        return activated

    def _normalised(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, variance, count = moments_of_all_ranks(wide)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def moments_of_all_ranks(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float (N, C, H, W) of each rank -> mean (C,), biased variance (C,) and number of positions, of all together.

    Each rank's own moments are exchanged and joined as Chan, Golub and LeVeque 1983 do: no difference of large squares.
    """
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    count = torch.full_like(mean[:1], x.numel() / x.shape[1])
    mine = torch.cat([count, mean, variance])
    row = torch.arange(dist.get_world_size(), device=x.device) == dist.get_rank()
    counts, means, variances = _Summed.apply(row[:, None] * mine).split([1, len(mean), len(mean)], dim=1)
    share = counts / counts.sum()
    joint = (share * means).sum(0)
    return joint, (share * (variances + (means - joint).square())).sum(0), counts.sum()


def synchronise(model: nn.Module) -> None:
    """Exchange every batch norm inside of `model` for one over all ranks, with the same tensors by the same names."""
    for name, layer in model.named_children():
        if isinstance(layer, nn.BatchNorm2d):
            setattr(model, name, _of_all_ranks(layer))
        else:
            synchronise(layer)


def _of_all_ranks(layer: nn.BatchNorm2d) -> RankBatchNorm2d:
    new = RankBatchNorm2d(layer.num_features, layer.eps, layer.momentum)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(layer, name))
    new.drop, new.act = getattr(layer, "drop", nn.Identity()), getattr(layer, "act", nn.Identity())
    return new.train(layer.training)
