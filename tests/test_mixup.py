"""Mixup in fine-tuning: two images in known shares, and the loss of both labels by the same shares."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from edgemed.config import TrainConfig
from edgemed.finetune import _loss
from edgemed.preprocess import FrontEnd

CONFIG = TrainConfig(label_smoothing=0.0, mixup=0.4)


class Levels(nn.Module):
    """Logits are the mean levels of red, green and blue; remembers what it was given."""

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen = pixels
        return pixels.mean((2, 3))


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_images_and_labels_are_mixed_by_the_same_shares(mixup: float) -> None:
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    images[0, ..., 0], images[1, ..., 1] = 255, 255  # one red, one green
    net, front = Levels(), FrontEnd(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    torch.manual_seed(5)
    config = dataclasses.replace(CONFIG, mixup=mixup)
    loss = float(_loss(config, net, front, torch.ones(3), images, torch.tensor([0, 1])))
    share = float(net.seen[0, 0].mean())  # of its own red in the first image
    assert (share == 1.0) if mixup == 0 else (0 < share < 1)
    logits = torch.tensor([[share, 1 - share, 0.0], [1 - share, share, 0.0]])
    torch.testing.assert_close(net.seen.mean((2, 3)), logits)
    surprise = -logits.log_softmax(1)
    want = [
        share * surprise[0, 0] + (1 - share) * surprise[0, 1],
        share * surprise[1, 1] + (1 - share) * surprise[1, 0],
    ]
    assert loss == pytest.approx(float(sum(want) / 2), abs=1e-6)
