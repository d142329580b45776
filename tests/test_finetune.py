"""Fine-tuning keeps the right epoch and leaves frozen stages alone; what pretraining leaves to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgemed import finetune as module
from edgemed.config import TrainConfig
from edgemed.dataset import scan, split_dataset
from edgemed.errors import InputError
from edgemed.images import image_from_file
from edgemed.loop import read_history
from edgemed.models import create_backbone, freeze_stages, normalisation, train_mode
from edgemed.phantoms import write_dataset
from edgemed.preprocess import FrontEnd
from edgemed.pretrain import pretrain
from edgemed.sam import sharpness_aware


@pytest.mark.parametrize("doubt", [False, True])
def test_the_last_epoch_that_is_as_good_as_the_lowest_loss_is_kept_and_patience_ends_the_stage(
    doubt: bool, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without doubt, all images have one loss. With it, one of nine is wrong, and the error of the mean is 0.3."""
    dataset = split_dataset(scan(phantoms), (0.6, 0.2, 0.2), 0)
    truth = torch.nn.functional.one_hot(torch.tensor(dataset.subset("validation").labels), 3).float()
    if doubt:
        truth[0] = truth[0].roll(1)
    # Mean losses without doubt: 0.55, 0.09, 0.24, 0.15, then patience runs out; with it: 0.66, 0.43, 0.45, 0.89.
    certainty = iter([1.0, 3.0, 3.5, 8.0, 9.0] if doubt else [1.0, 3.0, 2.0, 2.5, 9.0])
    states = []

    def scripted(model: torch.nn.Module, *_: object) -> torch.Tensor:
        states.append({key: value.clone() for key, value in model.state_dict().items()})
        return truth * next(certainty)

    monkeypatch.setattr(module, "logits_of_files", scripted)
    config = TrainConfig(backbone="resnet18", size=32, epochs=5, batch=8, patience=2, threads=1, loader="torch")
    front = FrontEnd(32, *normalisation("resnet18"))
    model = create_backbone("resnet18", 3)
    module.finetune(config, "imagenet", model, front, dataset, tmp_path, "cpu", lambda *_: None)
    assert len(states) == 4
    labels = torch.tensor(dataset.subset("validation").labels)
    losses = torch.nn.functional.cross_entropy(truth, labels, reduction="none")  # of the first epoch
    error = read_history(tmp_path / "history.jsonl")[0]["validation_error"]
    assert error == pytest.approx(float(losses.std(correction=0)) / len(labels) ** 0.5, abs=1e-6)  # of the mean
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[key], states[2 if doubt else 1][key]) for key in kept)


def test_each_epoch_drops_and_erases_by_draws_of_its_own(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, seeded = [], module.seed_noise
    monkeypatch.setattr(module, "seed_noise", lambda *given: (seeded(*given), drawn.append(torch.initial_seed())))
    config = TrainConfig(backbone="resnet18", size=32, epochs=3, batch=8, threads=1, loader="torch")
    dataset = split_dataset(scan(phantoms), (0.2, 0.4, 0.4))
    front, model = FrontEnd(32, *normalisation("resnet18")), create_backbone("resnet18", 3)
    module.finetune(config, "imagenet", model, front, dataset, tmp_path, "cpu", lambda *_: None)
    assert len(set(drawn)) == 3


def test_frozen_stages_neither_learn_nor_count_statistics(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", per_class=4, size=64)
    dataset = split_dataset(scan(tmp_path / "data"), (0.5, 0.25, 0.25))
    config = TrainConfig(backbone="tf_efficientnet_lite0", size=64, epochs=1, batch=4, freeze=2, loader="torch")
    model = create_backbone(config.backbone, len(dataset.classes))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    front = FrontEnd(64, *normalisation(config.backbone))
    module.finetune(config, "imagenet", model, front, dataset, tmp_path / "member", "cpu", lambda *_: None)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert not any(key.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1")) for key in changed)
    assert {"blocks.2.0.conv_pw.weight", "blocks.2.0.bn1.running_mean", "classifier.weight"} <= changed


@pytest.mark.parametrize("epochs", [0, 1])
def test_pretraining_ends_with_the_batch_statistics_of_whole_images(tmp_path: Path, epochs: int) -> None:
    folder = write_dataset(tmp_path / "data", per_class=4, size=64)
    files = sorted(folder.glob("*/*.png"))
    config = TrainConfig(
        backbone="resnet18",
        pretrain_size=64,
        pretrain_epochs=epochs,
        batch=4,
        loader="torch",
        pretrain_learning_rate=1e-7,
    )
    start = create_backbone("resnet18", 0).state_dict()
    pretrain(config, files, start, "test", tmp_path / "mae", "cpu", lambda *_: None)
    found = load_file(tmp_path / "mae" / "pretrained.safetensors")
    if not epochs:
        assert torch.equal(found["bn1.running_var"], start["bn1.running_var"])
        return
    front = FrontEnd(64, *normalisation("resnet18"))
    pixels = torch.cat([front(torch.from_numpy(image_from_file(file))[None]) for file in files])
    stem = torch.nn.functional.conv2d(pixels, start["conv1.weight"], stride=2, padding=3)
    ratio = found["bn1.running_var"] / stem.var((0, 2, 3))
    assert abs(float(ratio.log().mean())) < 0.15  # a crop is not the whole image


def test_a_frozen_stage_drops_no_path() -> None:
    model = create_backbone("convnext_atto", 2, drop_path=0.5)
    freeze_stages(model, 1)
    train_mode(model)
    images = torch.randn(2, 3, 64, 64)
    stem, first, second = model.stem, model.stages[0], model.stages[1]
    assert torch.equal(first(stem(images)), first(stem(images)))
    assert second.training and model.training


@pytest.mark.parametrize(("backbone", "stages"), [("tf_efficientnet_lite0", 7), ("convnext_atto", 4), ("resnet18", 4)])
def test_more_stages_than_there_are_cannot_be_frozen(backbone: str, stages: int) -> None:
    model = create_backbone(backbone, 2)
    freeze_stages(model, stages)
    assert any(parameter.requires_grad for parameter in model.get_classifier().parameters())
    with pytest.raises(InputError, match=f"--freeze {stages + 1}: this backbone has {stages} stages"):
        freeze_stages(model, stages + 1)


def test_sharpness_aware_gradients_are_those_a_radius_uphill_and_all_else_is_as_it_was() -> None:
    """Of w . diag(1, 9) w / 2, whose gradient is (w1, 9 w2)."""
    weights, frozen = torch.nn.Parameter(torch.tensor([3.0, 4.0 / 9])), torch.nn.Parameter(torch.ones(1), False)
    norm = torch.nn.BatchNorm1d(2)
    model = torch.nn.ParameterDict({"weights": weights, "frozen": frozen})
    model.add_module("norm", norm.train())
    seen = []

    def backward() -> torch.Tensor:
        norm(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
        loss = (weights**2 * torch.tensor([1.0, 9.0])).sum() / 2
        loss.backward()
        seen.append(weights.detach().clone())
        return loss.detach()

    loss = sharpness_aware(model, 0.5, backward)  # the gradient is (3, 4), of length 5
    torch.testing.assert_close(seen[1], torch.tensor([3.3, 4 / 9 + 0.4]))
    torch.testing.assert_close(weights.grad, torch.tensor([3.3, 4 + 3.6]))
    assert torch.equal(seen[0], weights) and float(loss) == pytest.approx(4.5 + 8 / 9)
    torch.testing.assert_close(norm.running_mean, torch.tensor([0.2, 0.4]))  # learnt once, by a momentum of 0.1
    assert norm.momentum == 0.1


def test_a_loss_that_is_not_finite_uphill_is_not_passed_over() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))

    def backward() -> torch.Tensor:
        loss = weight.sum() * (1 if weight < 1.2 else torch.inf)
        loss.backward()
        return loss.detach()

    assert float(sharpness_aware(torch.nn.ParameterList([weight]), 0.1, backward)) == 1.0
    assert not sharpness_aware(torch.nn.ParameterList([weight]), 0.5, backward).isfinite()


@pytest.mark.parametrize(("option", "value"), [("sam", 0.05), ("crop_area", 0.8)])
def test_training_is_another_by_each_of_them(option: str, value: float, phantoms: Path, tmp_path: Path) -> None:
    dataset, front = split_dataset(scan(phantoms), (0.6, 0.2, 0.2), 0), FrontEnd(32, *normalisation("resnet18"))
    losses = []
    for changes in ({}, {option: value}):
        torch.manual_seed(0)
        config = TrainConfig(backbone="resnet18", size=32, epochs=2, batch=8, threads=1, loader="torch", **changes)
        folder = tmp_path / str(len(changes))
        folder.mkdir()
        model = create_backbone("resnet18", 3)
        module.finetune(config, "imagenet", model, front, dataset, folder, "cpu", lambda *_: None)
        losses.append([row["train_loss"] for row in read_history(folder / "history.jsonl")])
    assert losses[0][1] != losses[1][1]
