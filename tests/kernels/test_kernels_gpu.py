"""On a GPU: every backend against the oracle, masks without a copy to the host, and times against the memory floor."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import CASES, TOLERANCES, Case, expected, varied_images

from edgemed.kernels import backend_for, driver, entropy_mask, patch_entropy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]
BACKENDS = ("torch", "triton", "cuda")


def skip_without_kernels(backend: str) -> None:
    if backend == "cuda" and (reason := driver.unavailable()) is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_the_oracle(backend: str, case: Case, channels: int) -> None:
    skip_without_kernels(backend)
    images = varied_images(channels)
    tensor = torch.from_numpy(images).cuda()
    answer = patch_entropy(tensor, *case, backend=backend)
    assert answer.device == tensor.device
    assert np.abs(answer.cpu().numpy() - expected(images, case)).max() <= TOLERANCES.get(backend, 1e-5)
    if case.order == 1:
        assert np.array_equal(answer.cpu().numpy(), patch_entropy(images, *case)), "Shannon is the same to the last bit"


def test_arrays_through_the_driver_equal_numpys() -> None:
    skip_without_kernels("cuda")
    images = varied_images()
    assert np.array_equal(patch_entropy(images, 16, backend="cuda"), patch_entropy(images, 16))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_view_that_starts_anywhere_in_memory(backend: str) -> None:
    skip_without_kernels(backend)
    flat = torch.randint(0, 256, (64 * 64 * 3 + 5,), dtype=torch.uint8, device="cuda")
    images = flat[5:].view(1, 64, 64, 3)
    assert torch.equal(patch_entropy(images, 8, backend=backend).cpu(), patch_entropy(images.cpu(), 8))


@pytest.mark.parametrize("units", [(7, 7), (1, 1), (12, 16), (64, 64)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_equal_those_of_the_cpu(backend: str, units: tuple[int, int]) -> None:
    skip_without_kernels(backend)
    bits = 8 * torch.rand(6, *units, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([0, 1, -1, 2**40 + 3, 5, 2**62])
    for ratio, sharpness, seed in (
        (0.6, 1.0, 0),
        (0.75, -2.5, 2**64 - 1),
        (0.5, 0.0, 2**33),
        (1.0, 1e7, 1),
        (0.0, 0.0, 1),
    ):
        mask = entropy_mask(bits.cuda(), ratio, sharpness, seed, ids.cuda(), backend=backend)
        assert torch.equal(mask.cpu(), entropy_mask(bits, ratio, sharpness, seed, ids))


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_nothing_waits_for_the_device(backend: str) -> None:
    """No copy to the host between image and mask: torch would raise at any synchronising call."""
    skip_without_kernels(backend)
    images = torch.zeros(2, 64, 64, 3, dtype=torch.uint8, device="cuda")
    ids = torch.arange(2, device="cuda")
    entropy_mask(
        patch_entropy(images, 16, backend=backend), 0.5, 1.0, 0, ids, backend=backend
    )  # compiles, fills the table
    torch.cuda.set_sync_debug_mode("error")
    try:
        entropy_mask(patch_entropy(images, 16, backend=backend), 0.5, 1.0, 0, ids, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_training_takes_triton_by_default() -> None:
    assert backend_for(torch.zeros(1, device="cuda")).name == "triton"


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_time_against_the_floor(backend: str, record_property: Any) -> None:
    """Not a limit: the measured time and the memory floor of this GPU go into the report and the warnings summary."""
    skip_without_kernels(backend)
    images = torch.randint(0, 256, (64, 224, 224, 3), dtype=torch.uint8, device="cuda")
    assert torch.equal(patch_entropy(images, 32, backend=backend), patch_entropy(images, 32, backend="torch"))
    from triton.testing import do_bench

    milliseconds = do_bench(lambda: patch_entropy(images, 32, backend=backend), return_mode="median")
    properties = torch.cuda.get_device_properties(0)
    bandwidth = (
        2e3 * properties.memory_clock_rate * properties.memory_bus_width / 8
    )  # bytes/s: kHz, two transfers a clock
    floor = images.numel() / bandwidth * 1e6
    line = (
        f"{properties.name}, {backend}: {milliseconds * 1e3:.1f} us, floor {floor:.1f} us at {bandwidth / 1e9:.0f} GB/s"
    )
    record_property("patch_entropy", line)
    warnings.warn(line, stacklevel=1)
