"""The ONNX form of patch entropy in the runtimes that execute it, against the oracle."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import TOLERANCES, Case, expected, varied_images
from numpy.typing import NDArray

from edgemed.errors import InputError
from edgemed.kernels import patch_entropy
from edgemed.kernels.onnx import PatchEntropy

torch.set_num_threads(1)
IMAGES = varied_images()
CASES = [Case(patch, bins, 1.0) for patch in (8, 16, 32) for bins in (2, 8, 256)]
RENYI = [Case(16, 256, order) for order in (0.5, 0.9, 1.1, 2.0, 100.0)]


def planar(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous()


@pytest.mark.parametrize("case", [*CASES, *RENYI], ids=str)
def test_the_module_agrees_with_the_oracle_on_whole_numbers(case: Case) -> None:
    answer = PatchEntropy(*case)(planar(IMAGES)).numpy()
    assert np.abs(answer - expected(IMAGES, case)).max() <= TOLERANCES["onnx" if case.order == 1 else "onnx-renyi"]


def test_the_counts_are_whole_and_complete() -> None:
    counts = PatchEntropy(16).counts(planar(IMAGES)).flatten(2)
    assert torch.equal(counts, counts.round())
    assert torch.equal(counts.sum(2), torch.full((5, 24), 256.0))


def test_pixels_are_rounded_half_to_even_and_clamped() -> None:
    pixels = torch.full((1, 3, 8, 8), 2.5)
    pixels[..., :2] = 1.5  # both become 2
    assert PatchEntropy(8)(pixels).item() == 0
    pixels[...] = 255
    pixels[..., :4] = 300
    assert PatchEntropy(8)(pixels).item() == 0
    pixels[..., :4] = 254.4
    assert PatchEntropy(8)(pixels).item() == pytest.approx(1, abs=1e-6)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="patch is 7"):
        PatchEntropy(7)


@pytest.fixture(scope="module")
def graph() -> bytes:
    """The module of 32-pixel patches as ONNX, opset 20, with a dynamic batch."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    batch = {"pixels": {0: torch.export.Dim("N")}}
    program = torch.onnx.export(
        PatchEntropy(32).eval(), (planar(IMAGES[:2]),), dynamic_shapes=batch, opset_version=20, dynamo=True,
        input_names=["pixels"], output_names=["entropy"], verbose=False,
    )  # fmt: skip
    assert program is not None
    out = io.BytesIO()
    program.save(out)
    return out.getvalue()


def in_onnxruntime(graph: bytes, pixels: Any) -> Any:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"pixels": pixels})[0]


def in_openvino(graph: bytes, pixels: Any) -> Any:
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    core = ov.Core()
    return core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([pixels])[0]


@pytest.mark.parametrize("runtime", [in_onnxruntime, in_openvino])
@pytest.mark.parametrize("count", [1, 5])
def test_runtimes_agree_with_the_oracle_on_whole_numbers(graph: bytes, runtime: Any, count: int) -> None:
    images = IMAGES[:count]
    answer = runtime(graph, planar(images).numpy())
    assert np.abs(answer - expected(images, Case(32, 256, 1.0))).max() <= TOLERANCES["onnx"]


@pytest.mark.parametrize("runtime", [in_onnxruntime, in_openvino])
def test_runtimes_round_what_lies_between(graph: bytes, runtime: Any) -> None:
    """After a resize: the entropy of the stored image, which is rounded half to even and clamped."""
    pixels = planar(IMAGES) + torch.rand(5, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 8 - 4
    stored = pixels.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    assert np.abs(runtime(graph, pixels.numpy()) - patch_entropy(stored, 32)).max() <= TOLERANCES["onnx"]
