"""What fine-tuning does to its images: crops of a least area and of another side, mixup, erased rectangles, turns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_data import SIZE, both_backends, by_index, opened, write_one
from torch import Tensor, nn

from edgemed import finetune as module
from edgemed.config import TrainConfig
from edgemed.dataset import scan, split_dataset
from edgemed.finetune import _loss
from edgemed.loader import Augment, _draws
from edgemed.loop import seed_noise
from edgemed.models import create_backbone, normalisation
from edgemed.preprocess import FrontEnd

CONFIG = TrainConfig(label_smoothing=0.0, mixup=0.4)
PLAIN = FrontEnd(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Levels(nn.Module):
    """Logits are the mean levels of red, green and blue; remembers what it was given."""

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen = pixels
        return pixels.mean((2, 3))


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_images_and_labels_are_mixed_by_the_same_shares(mixup: float) -> None:
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    images[0, ..., 0], images[1, ..., 1] = 255, 255  # one red, one green
    net = Levels()
    torch.manual_seed(5)
    config = dataclasses.replace(CONFIG, mixup=mixup)
    loss = float(_loss(config, net, PLAIN, torch.ones(3), images, torch.tensor([0, 1])))
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


def _erased(probability: float, epoch: int) -> Tensor:
    """Which pixels of 400 white images (400, 24, 24) are the mean colour, 0, in the first step of `epoch`."""
    net, config = Levels(), TrainConfig(random_erasing=probability)
    seed_noise(3, epoch)
    white = torch.full((400, 24, 24, 3), 255, dtype=torch.uint8)
    _loss(config, net, PLAIN, torch.ones(3), white, torch.zeros(400).long())
    assert ((net.seen == 0) | (net.seen == 1)).all()
    assert torch.equal(net.seen.amin(1), net.seen.amax(1))  # all three colours alike
    return net.seen[:, 0] == 0


def test_a_rectangle_is_erased_in_the_wanted_share_of_the_images_and_again_in_a_resumed_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = _erased(0.25, epoch=1)
    assert 0.18 < float(first.any((1, 2)).float().mean()) < 0.32
    for one in first[first.any((1, 2))]:
        rows, columns = one.any(1).sum(), one.any(0).sum()
        assert one.sum() == rows * columns < 24 * 24 * 0.4  # a whole rectangle, at most a third but for rounding
    assert torch.equal(first, _erased(0.25, epoch=1))
    assert not torch.equal(first, _erased(0.25, epoch=2))
    assert not _erased(0.0, epoch=1).any()
    monkeypatch.setattr("edgemed.loop.rank", lambda: 1)
    assert not torch.equal(first, _erased(0.25, epoch=1))  # its images are others, and so are its rectangles


@pytest.mark.parametrize("flags", [set(), {"vertical_flip"}, {"quarter_turns"}])
def test_fine_tuning_flips_and_turns_as_its_flags_say(
    flags: set[str], phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OpenedError(Exception):
        pass

    def opened(*_: object, augment: Augment, **__: object) -> None:
        assert (augment.vflip, augment.turns) == ("vertical_flip" in flags, "quarter_turns" in flags)
        raise OpenedError

    monkeypatch.setattr("edgemed.loop.open_loader", opened)
    dataset = split_dataset(scan(phantoms), (0.6, 0.2, 0.2), 0)
    config = TrainConfig(backbone="resnet18", size=32, threads=1, **dict.fromkeys(flags, True))
    front, model = FrontEnd(32, *normalisation("resnet18")), create_backbone("resnet18", 3)
    with pytest.raises(OpenedError):
        module.finetune(config, "imagenet", model, front, dataset, tmp_path, "cpu", lambda *_: None)


@both_backends
def test_quarter_turns_are_exact_and_equally_frequent(tmp_path: Path, backend: str) -> None:
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[: SIZE // 2, : SIZE // 2], image[SIZE // 2 :, : SIZE // 2] = 250, 120
    files = write_one(tmp_path, image, copies=64)
    still = Augment(scale=(1, 1), ratio=(1, 1), hflip=False, rotate=0, brightness=0, contrast=0)
    turned = by_index(opened(files, backend, dataclasses.replace(still, turns=True)).epoch(0))
    whole = by_index(opened(files, backend, still).epoch(0))[0]
    turns = [[np.abs(np.rot90(whole, k).astype(int) - one).max() <= 1 for k in range(4)] for one in turned.values()]
    assert (np.sum(turns, axis=1) == 1).all()
    assert (np.sum(turns, axis=0) >= 8).all()


def test_quarter_turns_change_no_other_draw() -> None:
    without, turned = (_draws(50, Augment(rotate=20, turns=turns), seed=1, epoch=2) for turns in (False, True))
    for name in ("start", "end", "brightness", "contrast"):
        np.testing.assert_array_equal(getattr(without, name), getattr(turned, name))
    quarters = (turned.angle - without.angle) / 90
    np.testing.assert_allclose(quarters, np.rint(quarters), atol=1e-6)
    assert set(np.rint(quarters).tolist()) == {0, 1, 2, 3}


def test_train_size_is_the_side_of_training_crops_alone(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = split_dataset(scan(phantoms), (0.6, 0.2, 0.2), 0)
    front, model = FrontEnd(64, *normalisation("resnet18")), create_backbone("resnet18", 3)
    sides: dict[str, set[int]] = {"training": set(), "validation": set()}
    loss_of, logits_of = module._loss, module.logits_of_files

    def loss(*inputs: object) -> Tensor:
        images = inputs[-2]
        assert isinstance(images, Tensor)
        sides["training"].add(images.shape[1])
        return loss_of(*inputs)  # type: ignore[arg-type]

    def logits(model: nn.Module, *rest: object) -> Tensor:
        model.register_forward_pre_hook(lambda _, inputs: sides["validation"].add(inputs[0].shape[2]))
        return logits_of(model, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_loss", loss)
    monkeypatch.setattr(module, "logits_of_files", logits)
    config = TrainConfig(backbone="resnet18", size=64, train_size=32, epochs=1, batch=8, threads=1, loader="torch")
    module.finetune(config, "imagenet", model, front, dataset, tmp_path, "cpu", lambda *_: None)
    assert sides == {"training": {32}, "validation": {64}}
