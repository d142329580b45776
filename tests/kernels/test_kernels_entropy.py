"""Patch entropy in NumPy and torch: the oracle, closed forms, invariants, and the errors of wrong input."""

from __future__ import annotations

import importlib.util
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CASES, TOLERANCES, Case, expected, varied_images
from numpy.typing import NDArray

from edgemed.errors import InputError
from edgemed.kernels import backend_for, dispatch, driver, patch_entropy, reference

torch.set_num_threads(1)
HERE = ("numpy", "torch")  # backends of this file: they run on any CPU


def run(images: NDArray[np.uint8], case: Case, backend: str) -> NDArray[np.float32]:
    """The backend's answer for an array; torch gets a tensor and returns one."""
    if backend == "torch":
        return patch_entropy(torch.from_numpy(images), *case, backend="torch").numpy()
    return patch_entropy(images, *case, backend=backend)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", HERE)
def test_agrees_with_the_oracle(backend: str, case: Case, channels: int) -> None:
    images = varied_images(channels)
    answer = run(images, case, backend)
    assert answer.dtype == np.float32
    assert np.abs(answer - expected(images, case)).max() <= TOLERANCES[backend]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_numpy_and_torch_return_the_same_bits(case: Case) -> None:
    images = varied_images()
    assert np.array_equal(run(images, case, "numpy"), run(images, case, "torch"))


def test_shannon_entropies_are_multiples_of_2_to_the_minus_17() -> None:
    scaled = run(varied_images(), Case(16, 256, 1.0), "numpy").astype(np.float64) * 2**17
    assert np.array_equal(scaled, np.rint(scaled))


@pytest.mark.parametrize("order", [1.0, 0.5, 2.0, 100.0])
@pytest.mark.parametrize("backend", ["reference", *HERE])
def test_closed_forms(backend: str, order: float) -> None:
    flat = np.full((1, 16, 16), 137, dtype=np.uint8)
    halves = np.repeat(np.array([3, 250], dtype=np.uint8), 128).reshape(1, 16, 16)
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for images, bits in ((flat, 0.0), (halves, 1.0), (every, 8.0)):
        assert run(images, Case(16, 256, order), backend).item() == pytest.approx(bits, abs=1e-6)
    assert math.copysign(1, run(flat, Case(16, 256, order), backend).item()) == 1, "a flat patch has entropy 0, not -0"


@pytest.mark.parametrize("backend", ["reference", *HERE])
def test_unequal_counts(backend: str) -> None:
    """One pixel in 64 differs: H = log2(64) - 63 log2(63) / 64, worked out by hand: 0.116115."""
    images = np.zeros((1, 8, 8), dtype=np.uint8)
    images[0, 5, 2] = 255
    assert run(images, Case(8, 256, 1.0), backend).item() == pytest.approx(0.116115, abs=5e-6)
    renyi = -math.log2((63 / 64) ** 2 + (1 / 64) ** 2)
    assert run(images, Case(8, 256, 2.0), backend).item() == pytest.approx(renyi, abs=5e-6)


@pytest.mark.parametrize(
    ("colour", "grey"),
    [((255, 255, 255), 255), ((255, 0, 0), 77), ((0, 255, 0), 149), ((0, 0, 255), 29), ((1, 1, 1), 1)],
)
@pytest.mark.parametrize("backend", ["reference", *HERE])
def test_a_colour_falls_into_the_bin_of_its_grey_value(backend: str, colour: tuple[int, int, int], grey: int) -> None:
    images = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    images[0, :4] = colour
    images[0, 4:] = grey
    assert run(images, Case(8, 256, 1.0), backend).item() == 0
    images[0, 4:] = grey - 1
    assert run(images, Case(8, 256, 1.0), backend).item() == 1


@pytest.mark.parametrize("backend", ["reference", *HERE])
def test_fewer_bins_join_neighbouring_grey_values(backend: str) -> None:
    images = np.zeros((1, 8, 8), dtype=np.uint8)
    images[0, :4] = 15
    assert run(images, Case(8, 16, 1.0), backend).item() == 0
    images[0, :4] = 16
    assert run(images, Case(8, 16, 1.0), backend).item() == 1


@pytest.mark.parametrize("backend", ["reference", *HERE])
@pytest.mark.parametrize("patch", [8, 16, 32])
def test_a_busy_patch_is_found_where_it_is(backend: str, patch: int) -> None:
    images = np.zeros((2, 3 * patch, 5 * patch), dtype=np.uint8)
    images[1, patch : 2 * patch, 3 * patch : 4 * patch] = np.arange(patch * patch).reshape(patch, patch) % 256
    assert np.argwhere(run(images, Case(patch, 256, 1.0), backend) > 0).tolist() == [[1, 1, 3]]


@pytest.mark.parametrize("backend", HERE)
def test_many_images_give_what_each_gives_alone(backend: str) -> None:
    """More pixels than one step of the loop takes, and a last step that is not full."""
    images = np.random.default_rng(0).integers(0, 256, (11, 192, 160), dtype=np.uint8)
    case = Case(32, 256, 1.0)
    alone = np.concatenate([run(images[index : index + 1], case, backend) for index in range(len(images))])
    assert np.array_equal(run(images, case, backend), alone)


@pytest.mark.parametrize("backend", ["reference", *HERE])
def test_no_images_give_no_entropies(backend: str) -> None:
    assert run(np.zeros((0, 64, 96, 3), dtype=np.uint8), Case(16, 256, 1.0), backend).shape == (0, 4, 6)


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_arrays_of_any_strides(backend: str) -> None:
    images = varied_images()
    views = [images[:, ::-1], images[::2], images[:, :, :, ::-1], images.transpose(0, 2, 1, 3), images[:, 8:40, 3:67]]
    for view in views:
        assert np.array_equal(run(view, Case(8, 256, 1.0), backend), run(view.copy(), Case(8, 256, 1.0), backend))


def test_tensors_of_any_strides() -> None:
    images = torch.from_numpy(varied_images())
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for view in (planar, images[1::2], images.transpose(1, 2), images[:, 8:40, 3:67]):
        assert torch.equal(patch_entropy(view, 8), patch_entropy(view.clone(memory_format=torch.contiguous_format), 8))


patches = st.binary(min_size=256, max_size=256).map(
    lambda raw: np.frombuffer(raw, dtype=np.uint8).reshape(1, 16, 16).copy()
)
few_values = st.lists(st.integers(0, 3), min_size=256, max_size=256).map(
    lambda values: np.array(values, dtype=np.uint8).reshape(1, 16, 16)
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    images=patches | few_values, bins=st.sampled_from([2, 8, 64, 256]), backend=st.sampled_from(["reference", *HERE])
)
def test_bounds_and_permutation(images: NDArray[np.uint8], bins: int, backend: str) -> None:
    case = Case(16, bins, 1.0)
    bits = run(images, case, backend).item()
    assert 0 <= bits <= math.log2(bins)
    shuffled = np.random.default_rng(1).permutation(images.ravel()).reshape(images.shape)
    assert run(shuffled, case, backend).item() == pytest.approx(bits, abs=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(images=patches | few_values, backend=st.sampled_from(["reference", *HERE]))
def test_renyi_falls_with_its_order_and_brackets_shannon(images: NDArray[np.uint8], backend: str) -> None:
    bits = [
        run(images, Case(16, 256, order), backend).item()
        for order in (0.1, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0, 10.0, 100.0)
    ]
    assert all(higher >= lower - 1e-5 for higher, lower in itertools.pairwise(bits))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(images=patches | few_values, order=st.sampled_from([1.0, 0.3, 3.0]))
def test_any_patch_agrees_with_the_oracle(images: NDArray[np.uint8], order: float) -> None:
    for backend in HERE:
        answer = run(images, Case(16, 256, order), backend)
        assert np.abs(answer - reference.patch_entropy(images, 16, 256, order)).max() <= TOLERANCES[backend]


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (np.zeros((1, 32, 32), np.float32), (32,), r"float32.*\.round\(\)"),
        (np.zeros((32, 32), np.uint8), (32,), r"images\[None\]"),
        (np.zeros((1, 32, 32, 4), np.uint8), (32,), r"\(N, H, W, 3\)"),
        (np.zeros((1, 100, 64), np.uint8), (32,), r"100 x 64.*resize or crop them to 96 x 64"),
        (np.zeros((1, 0, 64), np.uint8), (32,), r"resize or crop them to 32 x 64"),
        (np.zeros((1, 56, 56), np.uint8), (7,), r"patch is 7, possible are 8, 16 and 32"),
        (np.zeros((1, 32, 32), np.uint8), (32.0,), r"patch is 32\.0, possible are 8, 16 and 32"),
        (np.zeros((1, 32, 32), np.uint8), (32, 16.0), r"bins is 16\.0"),
        (np.zeros((1, 32, 32), np.uint8), (32, 100), r"bins is 100, possible are the powers of two"),
        (np.zeros((1, 32, 32), np.uint8), (32, 256, 0.0), r"order is 0\.0.*1\.0 is Shannon"),
        (np.zeros((1, 32, 32), np.uint8), (32, 256, -1.0), r"order is -1\.0"),
        (np.zeros((1, 32, 32), np.uint8), (32, 256, math.nan), r"order is nan"),
        (np.zeros((1, 32, 32), np.uint8), (32, 256, 1.001), r"use order=1\.0"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", *HERE])
def test_wrong_input_is_refused_with_the_fix(
    images: NDArray[Any], arguments: tuple[Any, ...], message: str, backend: str
) -> None:
    with pytest.raises(InputError, match=message):
        patch_entropy(images, *arguments, backend=backend)


def test_the_choice_of_a_backend_depends_on_the_input_alone() -> None:
    assert backend_for(np.zeros(1)).name == "numpy"
    assert backend_for(torch.zeros(1)).name == "torch"
    assert backend_for(np.zeros(1), "torch") == ("torch", "asked for by name")


@pytest.mark.parametrize(
    ("absent", "name", "reason"),
    [
        ((), "triton", "a CUDA tensor, and triton is installed"),
        (("triton",), "cuda", "the compiled kernels are there"),
        (("triton", "cuda"), "torch", "triton is not installed and cuda-bindings is not installed"),
    ],
)
def test_a_cuda_tensor_takes_the_best_backend_that_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, absent: tuple[str, ...], name: str, reason: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module in absent else found(module))
    monkeypatch.setattr(driver, "binaries_folder", lambda: tmp_path)
    (tmp_path / driver.FATBIN).touch()
    choice = dispatch._automatic("cuda")
    assert choice.name == name
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("array", "backend", "message"),
    [
        (np.zeros(1), "tritn", "Did you mean 'triton'"),
        (np.zeros(1), "triton", r"cannot take a NumPy array: move it with images\.to\('cuda'\)"),
        (torch.zeros(1), "triton", r"cannot take a tensor on the device cpu: move it with images\.to\('cuda'\)"),
        (torch.zeros(1), "cuda", r"cannot take a tensor on the device cpu"),
        (torch.zeros(1), "numpy", r"images\.cpu\(\)\.numpy\(\)"),
        ([[1, 2]], "auto", r"got list.*numpy\.asarray"),
    ],
)
def test_an_impossible_backend_is_refused_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, array: Any, backend: str, message: str
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match=message):
        backend_for(array, backend)


@pytest.mark.parametrize(
    "call", ["", "; k.entropy_mask(k.patch_entropy(numpy.zeros((1, 32, 64), 'u1'), 8), .5, 1, 0, numpy.array([1]))"]
)
def test_arrays_need_neither_torch_nor_triton(call: str) -> None:
    heavy = "print(sorted({'torch', 'triton', 'cuda'} & set(sys.modules)))"
    script = f"import sys, numpy, edgemed.kernels as k{call}; {heavy}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
