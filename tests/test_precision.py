"""Half precision on a CPU: every operator rounded, overflow seen, and the layers that stay float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from test_export import _images, ensemble_of
from torch import Tensor, nn

from edgemed import precision
from edgemed.errors import GateError, InputError
from edgemed.export import float32_layers, onnx_from_ensemble
from edgemed.precision import FLOAT32_NAMES, Rounded, half_ensemble, rounded_outputs, safe_half, stages_of


@pytest.mark.parametrize("name", ["convnext", "resnet", "lite"])
def test_rounding_after_every_operator_stays_close_and_equals_torchs_own_half_precision(name: str) -> None:
    ensemble = ensemble_of(name, 1)
    ensemble.temperatures.fill_(1.0)
    half = half_ensemble(ensemble)
    images = _images(2, 80, 72)
    found = rounded_outputs(half, images)
    with torch.no_grad():
        want, own = (model(torch.from_numpy(images))[0].numpy() for model in (ensemble, half))
    assert 0 < np.abs(found.probabilities - want).max() < 5e-3  # it did round
    np.testing.assert_allclose(found.probabilities, own, atol=1e-3)
    assert not found.unsafe
    assert any("aten.convolution" in operator for operator in found.largest)


def test_an_overflow_that_cpu_runtimes_hide_is_seen() -> None:
    import onnxruntime

    ensemble = ensemble_of("convnext_linear", 1)
    block = ensemble.members[0].stages[2].blocks[0]
    with torch.no_grad():
        block.mlp.fc1.weight *= 3e5  # fits into float16; its products do not
        block.mlp.fc2.weight *= 1e-4
    graph = onnx_from_ensemble(ensemble, "fp16")
    images = _images(1, 64, 64)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {"image": images})[0]).all()
    found = rounded_outputs(half_ensemble(ensemble), images)
    beyond = {name.split(":")[0] for name, value in found.unsafe.items() if not np.isfinite(value)}
    assert "members.0.stages.2.blocks.0.mlp.fc1" in beyond
    assert not any("stages.1" in name for name in found.unsafe)  # what runs before it is well


def test_what_is_no_number_is_not_safe_either() -> None:
    none = np.empty((0, 0), np.float32)
    largest = {"nan": np.nan, "inf": np.inf, "beyond": 16_001.0, "at": 16_000.0, "none": 0.0}
    assert set(Rounded(none, none, largest).unsafe) == {"nan", "inf", "beyond"}


def test_layers_that_would_overflow_stay_float32_and_the_graph_is_then_right() -> None:
    ensemble = ensemble_of("convnext_linear", 2)
    ensemble.temperatures.fill_(1.0)
    with torch.no_grad():
        for name, value in ensemble.named_parameters():
            if name.endswith("fc1.bias"):
                nn.init.normal_(value, std=0.1)  # all different: the exporter keeps equal tensors once
        mlp = ensemble.members[1].stages[2].blocks[0].mlp
        mlp.fc1.weight *= 3e5
        mlp.fc2.weight *= 1e-4
    images = _images(2, 64, 64)
    assert rounded_outputs(half_ensemble(ensemble), images).unsafe
    found = safe_half(ensemble, lambda: images)
    # fc1's own output is beyond float16, so the whole MLP, whose output is not, stays float32.
    assert found.kept == ("stages.2.blocks.0.mlp",)
    assert not found.rounded.unsafe
    with torch.no_grad():
        want = ensemble(torch.from_numpy(images))[0].numpy()
    np.testing.assert_allclose(found.rounded.probabilities, want, atol=5e-3)
    graph = onnx_from_ensemble(ensemble, "fp16", keep=found.kept)
    biases = [v for v in onnx.load_from_string(graph).graph.initializer if v.name.endswith("fc1.bias")]
    wide = {value.name for value in biases if value.data_type == TensorProto.FLOAT}
    # This layer, in both members: they share their code.
    assert wide == {f"members.{m}.stages.2.blocks.0.mlp.layer.fc1.bias" for m in range(2)}
    assert len(biases) == 2 * 4
    norms = {name for name, layer in ensemble.members[0].named_modules() if isinstance(layer, nn.LayerNorm)}
    assert set(float32_layers(graph)) - norms == {"stem", *found.kept}


@pytest.mark.parametrize("name", ["convnext", "resnet", "lite"])
def test_a_layer_that_overflows_on_one_of_the_many_images_stays_float32_too(name: str) -> None:
    """Rounding every operator is slow and sees a few images; the sizes of all values are watched on many more."""
    ensemble = ensemble_of(name, 1)
    many = _images(8, 64, 64) // np.arange(1, 9, dtype=np.uint8)[:, None, None, None]
    wide = half_ensemble(ensemble, wide=True)
    largest = [max(rounded_outputs(wide, image[None]).largest.values()) for image in many]
    few = many[[int(np.argmin(largest))]]
    safe = (min(largest) + max(largest)) / 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "LARGEST_SAFE", safe)
        assert not safe_half(ensemble, lambda: few).kept
        kept = safe_half(ensemble, lambda: few, every=lambda: many).kept
        assert kept and not rounded_outputs(half_ensemble(ensemble, kept), many).unsafe


@pytest.mark.parametrize("name", ["convnext", "resnet", "lite"])
def test_the_sizes_that_are_watched_with_rounded_weights_are_those_of_rounding_every_operator(name: str) -> None:
    """So a first layer that computes in float32 is watched by what it gives as float16, and nothing else of it is."""
    ensemble, images = ensemble_of(name, 1), _images(2, 64, 64)
    rounded, weights = (
        rounded_outputs(half_ensemble(ensemble, wide=wide), images).largest for wide in (False, True)
    )
    assert set(rounded) <= set(weights)
    assert all(weights[operator] < 1e-4 for operator in set(weights) - set(rounded))  # nothing is left of it in float16
    for operator, size in rounded.items():
        assert weights[operator] == pytest.approx(size, rel=5e-3, abs=1e-3)


def test_a_layer_to_keep_that_the_network_has_not_is_refused() -> None:
    ensemble = ensemble_of("convnext_linear", 1)
    with pytest.raises(InputError, match="no layer of the network is named network.stages.0"):
        half_ensemble(ensemble, ["network.stages.0"])


def test_a_network_that_overflows_as_a_whole_is_refused() -> None:
    ensemble = ensemble_of("resnet", 1)
    with torch.no_grad():
        ensemble.members[0].fc.weight *= 1e3
        ensemble.members[0].fc.bias += 6e4
    with pytest.raises(GateError, match="fp16 would overflow: members.0"):
        safe_half(ensemble, lambda: _images(1, 64, 64))


def test_a_weight_that_half_precision_cannot_hold_is_refused() -> None:
    ensemble = ensemble_of("resnet", 1)
    with torch.no_grad():
        ensemble.members[0].fc.weight[0, 0] = 7e4
    with pytest.raises(GateError, match=r"fc\.weight does not fit"):
        half_ensemble(ensemble)


FIRST = {"convnext": ["stem"], "resnet": ["conv1"], "lite": ["conv_stem", "blocks.0", "blocks.1"]}


def _note_type(given: dict[str, torch.dtype], stage: str, _: nn.Module, __: Any, output: Tensor) -> None:
    given[stage] = output.dtype


@pytest.mark.parametrize("name", FIRST)
def test_between_stages_that_stay_float32_nothing_is_rounded(name: str) -> None:
    """Each of the first stages gives float32 to the next one; the last of them gives float16."""
    ensemble = ensemble_of(name, 1)
    stages = stages_of(ensemble.members[0])
    of_start = len(FIRST[name])
    assert stages[:of_start] == FIRST[name] == [stage for stage in stages if stage in FLOAT32_NAMES]
    for more in (0, 2):
        half = half_ensemble(ensemble, stages[of_start : of_start + more])
        network = half.members[0]
        given: dict[str, torch.dtype] = {}
        for stage in stages:
            network.get_submodule(stage).register_forward_hook(partial(_note_type, given, stage))
        with torch.no_grad():
            half(torch.from_numpy(_images(1, 64, 64)))
        wide = [stage for stage in stages if given[stage] == torch.float32]
        assert list(given) == stages and wide == stages[: of_start + more - 1]


def test_a_float32_layer_around_all_stages_is_told_from_the_stages() -> None:
    half = half_ensemble(ensemble_of("convnext", 1), ["stages"])
    given: dict[str, torch.dtype] = {}
    for name in ("stem", "stages"):
        half.members[0].get_submodule(name).register_forward_hook(partial(_note_type, given, name))
    with torch.no_grad():
        half(torch.from_numpy(_images(1, 64, 64)))
    assert given == {"stem": torch.float32, "stages": torch.float16}


def test_stages_stay_float32_from_the_start_until_the_outputs_are_close_enough() -> None:
    ensemble = ensemble_of("convnext_linear", 2)
    overflowing = "stages.2.blocks.0.mlp"  # of one member; stays float32 whatever `close` says
    with torch.no_grad():
        mlp = ensemble.members[1].get_submodule(overflowing)
        mlp.fc1.weight *= 3e5
        mlp.fc2.weight *= 1e-4
    kept = {}
    for enough in range(1, 6):
        seen: list[Rounded] = []

        def close(rounded: Rounded, _: Rounded, seen: list[Rounded] = seen, enough: int = enough) -> bool:
            seen.append(rounded)
            return len(seen) == enough

        found = safe_half(ensemble, lambda: _images(1, 64, 64), close)
        assert found.rounded is seen[-1] and not found.rounded.unsafe
        kept[enough] = found.kept
    assert kept == {
        1: (overflowing,),
        2: ("stages.0", overflowing),
        3: ("stages.0", "stages.1", overflowing),
        4: ("stages.0", "stages.1", "stages.2"),
        5: ("stages.0", "stages.1", "stages.2"),  # the last stage would have had to stay float32 as well
    }
