"""The masked autoencoder sees visible pixels only, and is scored on removed units only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgemed.mae import (
    MaskedAutoencoder,
    patchified,
    reconstructed,
    reconstruction_loss,
    unit_statistics,
    unpatchified,
    visible_only,
)
from edgemed.masking import upsampled
from edgemed.models import create_backbone

BACKBONES = ("tf_efficientnet_lite0", "resnet18", "resnet26d", "convnext_atto")


def _case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (2, 3, 128, 128), a mask (2, 4, 4), and the same images with other hidden pixels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, 128, 128, generator=generator)
    removed = torch.rand(2, 4, 4, generator=generator) < 0.5
    hidden = upsampled(removed, 128, 128)[:, None].expand_as(images)
    changed = torch.where(hidden, 50 * torch.randn(2, 3, 128, 128, generator=generator), images)
    return images, removed, changed


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_hidden_pixels_change_nothing_that_the_encoder_says(backbone: str, training: bool) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(create_backbone(backbone, classes=0)).train(training)
    images, removed, changed = _case()
    with torch.no_grad():
        features, same = model.encode(images, removed), model.encode(changed, removed)
    assert features.abs().max() > 0.01
    assert torch.equal(features, same)


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "resnet18"])
def test_batch_statistics_are_those_of_the_visible_positions(backbone: str) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(create_backbone(backbone, classes=0)).train()
    images, removed, changed = _case()
    norm = next(layer for layer in model.encoder.modules() if isinstance(layer, nn.BatchNorm2d))
    norm.momentum = 1.0  # the running mean is then the last batch's mean
    stem = next(layer for layer in model.encoder.modules() if isinstance(layer, nn.Conv2d))
    model.encode(changed, removed)
    keep = ~upsampled(removed, 128, 128)[:, None]
    visible = stem(images * keep).permute(0, 2, 3, 1)[~upsampled(removed, 64, 64)]
    assert torch.allclose(norm.running_mean, visible.mean(0), atol=1e-5)


def test_the_encoder_is_a_plain_network_again_afterwards() -> None:
    torch.manual_seed(0)
    encoder = create_backbone("resnet18", classes=0).eval()
    images, removed, changed = _case()
    before = encoder.forward_features(images)
    with visible_only(encoder, removed):
        masked = encoder.forward_features(images)
    assert not torch.equal(before, masked)
    assert torch.equal(before, encoder.forward_features(images))
    assert not torch.equal(before, encoder.forward_features(changed))


def test_patchify_keeps_each_unit_together_and_is_undone() -> None:
    images = torch.arange(2 * 3 * 64 * 96, dtype=torch.float32).reshape(2, 3, 64, 96)
    units = patchified(images)
    assert torch.equal(units[1, 1, 2].reshape(32, 32, 3), images[1, :, 32:, 64:].permute(1, 2, 0))
    assert torch.equal(unpatchified(units), images)


def test_loss_is_zero_for_the_truth_and_blind_to_visible_units() -> None:
    images, removed, _ = _case()
    target = patchified(images)
    mean, deviation = unit_statistics(target)
    truth = (target - mean) / deviation
    assert reconstruction_loss(truth, images, removed) < 1e-10
    wrong_where_visible = torch.where(removed[..., None], truth, truth + 100)
    assert reconstruction_loss(wrong_where_visible, images, removed) < 1e-10
    wrong_where_removed = torch.where(removed[..., None], truth + 2, truth)
    assert reconstruction_loss(wrong_where_removed, images, removed).item() == pytest.approx(4, rel=1e-4)
    assert torch.allclose(reconstructed(truth, images, removed), images, atol=1e-4)


def test_gradients_reach_every_layer_that_the_features_pass() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(create_backbone("tf_efficientnet_lite0", classes=0)).train()
    images, removed, _ = _case()
    reconstruction_loss(model(images, removed), images, removed).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "resnet18"])
def test_the_gradient_is_the_slope_of_the_loss(backbone: str, layout: torch.memory_format) -> None:
    """Not to be taken for granted: for a transposed input, torch 2.14's batch norm returns a wrong one on a CPU."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(create_backbone(backbone, classes=0), width=16).double().to(memory_format=layout).train()
    images, removed, _ = _case()
    images = images.double().to(memory_format=layout)
    reconstruction_loss(model(images, removed), images, removed).backward()
    parameters = list(model.encoder.parameters())
    slope = sum(parameter.grad.square().sum() for parameter in parameters)  # along the gradient itself
    losses = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter in parameters:
                parameter += sign * 1e-6 * parameter.grad
            losses.append(reconstruction_loss(model(images, removed), images, removed))
    assert (losses[0] - losses[1]).item() / 2e-6 == pytest.approx(slope.item(), rel=0.01)
