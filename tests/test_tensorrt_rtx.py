"""What TensorRT-RTX alone does, without a GPU: its kernels, its cache, its capture; and what its wheel builds.

What only a GPU can show: `make test-gpu`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_tensorrt
import tiny_bundles as tiny
from cuda_stand_in import Cuda
from tensorrt_stand_in import Kernels, RtxContext, modules
from test_damaged import record
from test_tensorrt import PLAN, right

from edgemed.bundle import Bundle
from edgemed.errors import InputError
from edgemed.manifest import Range
from edgemed.plans import PlanOptions, add_plans
from edgemed.runtimes import Session
from edgemed.runtimes.tensorrt import FLAVOURS, Flavour

cuda, bundle = test_tensorrt.cuda, test_tensorrt.bundle


Open = Callable[..., tuple[Session, Kernels]]


@pytest.fixture
def opened(cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Open:
    """Opens a plan as a new process would."""
    monkeypatch.setattr(Flavour, "_cuda", staticmethod(lambda: cuda))

    def open_it(shape: tuple[int, int, int] | None = None) -> tuple[Session, Kernels]:
        kernels = Kernels()
        monkeypatch.setattr(Flavour, "_tensorrt", lambda self: modules(cuda, kernels=kernels, shape=shape))
        n, side, _ = shape or (0, 0, 0)
        profile = ((n, n, n), (side, side, side)) if shape else ((1, 1, 4), (16, 48, 512))
        one = record(bundle, PLAN, batch=profile[0], image_side=profile[1])
        return FLAVOURS["tensorrt-rtx"].open_plan(PLAN, one), kernels

    return open_it


def test_the_first_request_of_a_shape_is_answered_by_the_kernels_that_serve_later(opened: Open) -> None:
    found, _ = opened()
    for side in (48, 64, 48):
        assert all(right(found, tiny.image(1, side, side)[None]))


@pytest.mark.parametrize("capturable", [True, False])
def test_a_fixed_plan_is_given_memory_and_captured_where_tensorrt_says_that_it_can_be(
    capturable: bool, opened: Open, cuda: Cuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(RtxContext, "capturable", capturable)
    found, _ = opened((2, 48, 48))
    assert all(right(found, np.stack([tiny.image(1, 48, 48), tiny.image(2, 48, 48)])))
    assert ("capture" in cuda.calls, cuda.calls.count("launch")) == ((True, 2) if capturable else (False, 0))
    assert caplog.text.count("no CUDA graph is used: TensorRT-RTX cannot capture plan") == (0 if capturable else 1)
    del found
    assert len(cuda.memory) == 0 or not capturable  # pytest keeps the warning, and that the lane


def test_cudas_device_0_is_used_and_the_applications_own_stays_current(opened: Open, cuda: Cuda) -> None:
    images = np.stack([tiny.image(1, 48, 48), tiny.image(2, 48, 48)])

    def work(session: Any) -> None:
        cuda.cudaSetDevice(1)
        assert all(right(session, images))
        session.run_timed(images)
        done.append(cuda.cudaGetDevice()[1])

    done: list[int] = []
    cuda.cudaSetDevice(1)
    found, _ = opened((2, 48, 48))
    thread = threading.Thread(target=work, args=(found,))
    thread.start()
    thread.join()
    del thread
    work(found)
    assert FLAVOURS["tensorrt-rtx"].free_memory() == 1000
    assert done == [1, 1]
    del found
    assert (cuda.elsewhere, len(cuda.memory), cuda.cudaGetDevice()[1]) == ([], 0, 1)


@pytest.mark.parametrize(
    ("batch", "sides", "shape"),
    [
        ((2, 2, 2), (64, 64, 64), (2, 64, 64, 3)),
        ((1, 2, 8), (64, 64, 64), (-1, -1, -1, 3)),
        ((2, 2, 2), (16, 48, 512), (-1, -1, -1, 3)),
    ],
)
def test_a_plan_of_one_shape_is_built_for_capture(
    batch: Range, sides: Range, shape: tuple[int, ...], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="extra rtx is not installed")
    build, seen = trt.Builder.build_serialized_network, []

    def watched(builder: Any, network: Any, config: Any) -> Any:
        flagged = config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        seen.append((tuple(network.get_input(0).shape), flagged))
        return build(builder, network, config)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", watched)
    (made,) = add_plans(bundle, PlanOptions("tensorrt-rtx", ("sm86",), batch, sides), precisions=["fp16"])
    assert seen == [(shape, shape[0] > 0)]
    assert (made.batch, made.image_side) == (batch, sides)


def test_the_wheel_has_what_the_stand_in_stands_for() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="extra rtx is not installed")
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert hasattr(trt.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(trt.IRuntimeConfig, "set_execution_context_allocation_strategy")
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED")
    assert hasattr(trt.ICudaEngine, "device_memory_size_v2")
    assert hasattr(trt.IExecutionContext, "set_device_memory")
    assert hasattr(trt.IExecutionContext, "is_stream_capturable")


def test_kernels_that_were_compiled_here_are_kept_and_a_damaged_cache_is_not_used(opened: Open, cache: Path) -> None:
    first, _ = opened()
    assert first.from_cache is False
    assert all(right(first, tiny.image(1)[None]))
    second, kernels = opened()
    assert (second.from_cache, kernels.given) == (True, b"1 x 40 x 56")
    (file,) = cache.rglob("kernels.bin")
    assert file.parent.stat().st_mode & 0o777 == 0o700
    file.write_bytes(b"1 x 40 x 57")
    third, kernels = opened()
    assert (third.from_cache, kernels.given) == (False, None)


def test_kernels_of_a_shape_that_is_new_are_kept_too_and_others_are_not_written_again(
    opened: Open, cache: Path
) -> None:
    first, kernels = opened()
    for side in (48, 64, 48, 64):
        assert all(right(first, tiny.image(1, side, side)[None]))
    assert kernels.serialized == 2
    (file,) = cache.rglob("kernels.bin")
    written = file.stat().st_mtime_ns
    second, kernels = opened()
    assert kernels.given == b"1 x 48 x 48\n1 x 64 x 64"
    for side in (64, 48):
        assert all(right(second, tiny.image(1, side, side)[None]))
    assert file.stat().st_mtime_ns == written  # they were read, and nothing was compiled anew
    assert all(right(second, tiny.image(1, 32, 32)[None]))
    _, kernels = opened()
    assert kernels.given == b"1 x 32 x 32\n1 x 48 x 48\n1 x 64 x 64"


def test_a_cache_that_cannot_be_written_is_told_of_once_and_stops_nothing(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*written: Any) -> None:
        raise InputError("no space left")

    monkeypatch.setattr("edgemed.runtimes.write_atomic", full)
    found, _ = opened()
    for side in (48, 64):
        assert all(right(found, tiny.image(1, side, side)[None]))
    assert caplog.text.count("kernel cache is not kept: no space left") == 1
