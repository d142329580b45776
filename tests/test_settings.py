"""What training's settings do: which units are hidden, which rates, decays, weights and averages a stage works with."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="extra train is not installed")
from conftest import tiny_flags  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edgemed import finetune as finetuning  # noqa: E402
from edgemed import pretrain as pretraining  # noqa: E402
from edgemed.config import TrainConfig  # noqa: E402
from edgemed.dataset import Dataset  # noqa: E402
from edgemed.errors import EdgemedError  # noqa: E402
from edgemed.loader import Batch, Loader  # noqa: E402
from edgemed.loop import read_history  # noqa: E402
from edgemed.mae import MaskedAutoencoder  # noqa: E402
from edgemed.models import create_backbone, normalisation  # noqa: E402
from edgemed.preprocess import FrontEnd  # noqa: E402
from edgemed.rows import Row  # noqa: E402
from edgemed.stages import new_member  # noqa: E402

Tensors = dict[str, Tensor]
Step = tuple[dict[str, dict[str, float]], Tensors]
"""What an optimizer's step applied to each parameter by its name (lr, weight_decay), and the model after it."""


@pytest.fixture
def dataset(phantoms: Path) -> Dataset:
    """Six training images of one class, four and two of the others; two of validation each."""
    rows = []
    for label, count in zip(sorted(path.name for path in phantoms.iterdir()), (6, 4, 2), strict=True):
        paths = sorted(path.relative_to(phantoms).as_posix() for path in (phantoms / label).iterdir())
        rows += [Row(path, label, path, "train") for path in paths[:count]]
        rows += [Row(path, label, path, "validation") for path in paths[-2:]]
    return Dataset(phantoms, tuple(rows), tuple(sorted({row.label for row in rows})))


def _watched(monkeypatch: pytest.MonkeyPatch, stage: ModuleType) -> list[Step]:
    """The steps that `stage` will take."""
    steps: list[Step] = []
    create = stage.create_optimizer_v2

    def created(model: nn.Module, *args: Any, **settings: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = create(model, *args, **settings)
        name_of = {id(parameter): name for name, parameter in model.named_parameters()}

        def note(*_: object) -> None:
            applied = {
                name_of[id(parameter)]: {key: group[key] for key in ("lr", "weight_decay")}
                for group in optimizer.param_groups
                for parameter in group["params"]
            }
            steps.append((applied, {name: value.clone() for name, value in model.state_dict().items()}))

        optimizer.register_step_post_hook(note)
        return optimizer

    monkeypatch.setattr(stage, "create_optimizer_v2", created)
    return steps


def _finetuned(dataset: Dataset, folder: Path, model: nn.Module | None = None, **settings: Any) -> None:
    small: dict[str, Any] = {"backbone": "resnet18", "size": 32, "threads": 1, "loader": "torch"}
    config = TrainConfig(**small | {"batch": 4, "epochs": 1} | settings)
    torch.manual_seed(0)
    front, model = FrontEnd(32, *normalisation("resnet18")), model or create_backbone("resnet18", 3)
    finetuning.finetune(config, "imagenet", model, front, dataset, folder, "cpu", lambda *_: None)


def _pretrained(dataset: Dataset, folder: Path, **settings: Any) -> None:
    small: dict[str, Any] = {"backbone": "convnext_atto", "pretrain_size": 64, "threads": 1, "loader": "torch"}
    config = TrainConfig(**small | {"batch": 4, "pretrain_epochs": 1} | settings)
    pretraining.pretrain(config, dataset.subset("train").files, None, "", folder, "cpu", lambda *_: None)


def _four_units() -> Tensor:
    """uint8 (64, 64, 3) of the units a, b / c, d, of other entropies by other settings.

    a is flat. b has two levels in turn: 1 bit. c has four flat quarters: 2 bits as a whole, none within a quarter.
    d is black but for 64 pixels in 256 that all differ: 2.3 bits, and 0.8 by order 2.
    """
    image = torch.zeros(64, 64, dtype=torch.uint8)
    image[:32, 32::2] = 200
    image[32:48, 16:32], image[48:, :16], image[48:, 16:32] = 80, 160, 240
    tile = torch.zeros(16, 16, dtype=torch.uint8)
    tile[:4] = torch.arange(100, 164).reshape(4, 16)
    image[32:, 32:] = tile.repeat(2, 2)
    return image[:, :, None].expand(64, 64, 3).contiguous()


def test_without_epochs_nothing_is_pretrained_and_the_log_says_so(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _pretrained(dataset, tmp_path / "mae", pretrain_epochs=0)
    assert [record.getMessage() for record in caplog.records] == ["no masked pretraining: --pretrain-epochs 0"]
    kept = load_file(tmp_path / "mae" / "pretrained.safetensors")
    start = pretraining.autoencoder(TrainConfig(backbone="convnext_atto"), None, "").encoder.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in start.items())


@pytest.fixture
def masks(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Bool (E, N, 4): which of the four units each of E epochs' steps hides from the network in each of N images."""

    def of(images: int, epochs: int, **settings: Any) -> Tensor:
        batch = Batch(_four_units().repeat(images, 1, 1, 1), torch.zeros(images), torch.arange(images))
        loader = Loader("scripted", "", 1, lambda epoch: iter([batch]))
        monkeypatch.setattr("edgemed.loop.open_loader", lambda *_, **__: loader)
        seen, encode = [], MaskedAutoencoder.encode

        def watched(model: MaskedAutoencoder, pixels: Tensor, removed: Tensor) -> Tensor:
            seen.append(removed.flatten(1).clone())
            return encode(model, pixels, removed)

        monkeypatch.setattr(MaskedAutoencoder, "encode", watched)
        _pretrained(dataset, tmp_path / "mae", pretrain_epochs=epochs, **settings)
        return torch.stack(seen)

    return of


@pytest.mark.parametrize(
    ("settings", "hidden"),
    [
        ({}, "bd"),
        ({"mask_ratio": 0.25}, "d"),
        ({"mask_ratio": 0.75, "entropy_patch": 32}, "bcd"),
        ({"sharpness": -1e6}, "ac"),
        ({"entropy_patch": 32}, "cd"),
        ({"mask_ratio": 0.25, "renyi_order": 2.0}, "b"),
    ],
    ids=str,
)
def test_pretraining_hides_the_units_that_its_settings_choose(
    masks: Callable[..., Tensor], settings: dict[str, float], hidden: str
) -> None:
    found = masks(2, 1, **{"mask_ratio": 0.5, "sharpness": 1e6} | settings)
    assert found.tolist() == [[[unit in hidden for unit in "abcd"]] * 2]


def test_without_sharpness_each_image_and_epoch_hides_units_of_its_own(masks: Callable[..., Tensor]) -> None:
    found = masks(12, 2, mask_ratio=0.5, sharpness=0.0)
    assert (found.sum(-1) == 2).all()
    assert found.any(0).any(0).all()  # flat ones, too
    assert not (found[0] == found[0, 0]).all()
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("start", ["imagenet", "scratch"])
def test_pretraining_starts_where_start_says(
    start: str,
    phantoms: Path,
    weights: Path,
    edgemed: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[Tensors] = []

    def spy(config: TrainConfig, files: object, given: Tensors | None, source: str, *_: object) -> None:
        begun.append(pretraining.autoencoder(config, given, source).encoder.state_dict())
        raise EdgemedError("seen enough")

    monkeypatch.setattr("edgemed.stages.pretrain", spy)
    assert edgemed("train", phantoms, "--out", tmp_path / "run", *tiny_flags(weights), "--start", start) == 1
    imagenet = load_file(weights)["conv_stem.weight"]
    assert torch.equal(begun[0]["conv_stem.weight"], imagenet) == (start == "imagenet")


@pytest.mark.parametrize("stage", [finetuning, pretraining], ids=["fine-tuning", "pretraining"])
def test_the_rate_of_a_stage_warms_up_by_its_epochs_then_falls(
    stage: ModuleType, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs of three steps, of which one warms up."""
    steps = _watched(monkeypatch, stage)
    if stage is finetuning:
        _finetuned(dataset, tmp_path, epochs=3, warmup_epochs=1, learning_rate=2e-4)
    else:
        _pretrained(dataset, tmp_path, pretrain_epochs=3, warmup_epochs=1, pretrain_learning_rate=2e-4)
    rates = [max(values["lr"] for values in applied.values()) for applied, _ in steps]
    assert len(rates) == 9
    warm_up = [0.01 + 0.99 * k / 3 for k in range(3)]
    cosine = [0.01 + 0.99 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)]
    assert [rate / 2e-4 for rate in rates] == pytest.approx(warm_up + cosine, rel=1e-6)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_each_layer_learns_slower_than_the_next_by_the_layer_decay(
    decay: float, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = _watched(monkeypatch, finetuning)
    _finetuned(dataset, tmp_path, layer_decay=decay)
    names = ["conv1", *(f"layer{stage}.{block}.conv2" for stage in range(1, 5) for block in range(2)), "fc"]
    rates = [steps[-1][0][f"{name}.weight"]["lr"] for name in names]
    assert [a / b for a, b in pairwise(rates)] == pytest.approx([decay] * 9)


@pytest.mark.parametrize("stage", [finetuning, pretraining], ids=["fine-tuning", "pretraining"])
def test_weights_decay_as_asked_for_and_biases_do_not(
    stage: ModuleType, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = _watched(monkeypatch, stage)
    (_finetuned if stage is finetuning else _pretrained)(dataset, tmp_path, weight_decay=0.125)
    applied, state = steps[-1]
    assert {name: values["weight_decay"] for name, values in applied.items()} == {
        name: 0.125 if state[name].ndim > 1 else 0.0 for name in applied
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
@pytest.mark.parametrize("weighting", [0.0, 0.5, 1.0])
def test_the_loss_smooths_labels_and_weighs_classes_as_asked_for(
    smoothing: float, weighting: float, dataset: Dataset, tmp_path: Path
) -> None:
    """A network that says 0.5, 0.3 and 0.2 to every image, whatever was done to it."""
    model, said = create_backbone("resnet18", 3), torch.tensor([0.5, 0.3, 0.2])
    model.fc.weight.data.zero_()
    model.fc.bias.data.copy_(said.log())
    _finetuned(dataset, tmp_path, model, batch=12, label_smoothing=smoothing, class_weighting=weighting)
    counts = (6, 4, 2)
    weight = [(12 / (3 * count)) ** weighting for count in counts]
    loss = 0.0
    for label, count in enumerate(counts):
        for k in range(3):
            share = (1 - smoothing) * (k == label) + smoothing / 3
            loss -= count * weight[k] * share * math.log(said[k])
    loss /= sum(count * each for count, each in zip(counts, weight, strict=True))
    assert read_history(tmp_path / "history.jsonl")[0]["train_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("limit", [0.2, 0.99])
def test_the_averaged_weights_are_validated_and_kept(
    limit: float, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average's decay grows step by step (1 - n^(-2/3)), up to --ema-decay."""
    steps, judge = _watched(monkeypatch, finetuning), finetuning.logits_of_files
    validated: list[Tensors] = []

    def watched(model: nn.Module, *rest: Any) -> Tensor:
        validated.append({name: value.clone() for name, value in model.state_dict().items()})
        return judge(model, *rest)

    monkeypatch.setattr(finetuning, "logits_of_files", watched)
    _finetuned(dataset, tmp_path, batch=2, ema_decay=limit, learning_rate=0.01)
    average = steps[0][1]["fc.weight"]
    for number, (_, state) in enumerate(steps):
        decay = min(limit, 1 - max(1, number) ** (-2 / 3))
        average = decay * average + (1 - decay) * state["fc.weight"]
    kept = load_file(tmp_path / "model.safetensors")
    assert torch.allclose(kept["fc.weight"], average, atol=1e-5)
    assert not torch.allclose(kept["fc.weight"], steps[-1][1]["fc.weight"], atol=1e-4)
    assert all(torch.equal(validated[0][name], kept[name]) for name in kept)


@pytest.mark.parametrize("member", ["imagenet", "mae"])
def test_a_member_drops_paths_in_training_as_often_as_asked_for(member: str, tmp_path: Path) -> None:
    state = create_backbone("tf_efficientnet_lite0", 0).state_dict()
    save_file(state, tmp_path / "pretrained.safetensors")
    pixels = torch.randn(4, 3, 64, 64)
    for rate in (0.0, 0.5):
        config = TrainConfig(backbone="tf_efficientnet_lite0", drop_path=rate)
        model = new_member(config, member, 3, state, "test", tmp_path).train()
        with torch.no_grad():
            assert torch.equal(model(pixels), model(pixels)) == (rate == 0)
