"""TensorRT's execution without a GPU: the order of its calls on a stand-in for TensorRT and CUDA, and its limits.

What only a GPU can show: `make test-gpu`.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_bundles as tiny
from cuda_stand_in import Cuda, Status
from tensorrt_stand_in import modules
from test_damaged import record

from edgemed.bundle import Bundle
from edgemed.errors import EdgemedError, InputError
from edgemed.runtimes import Session
from edgemed.runtimes.tensorrt import FLAVOURS, Flavour
from edgemed.runtimes.tensorrt_limits import HELP, check_shape, checked, is_fixed, output_shapes

PLAN = b"vtrt" + bytes(200)


@pytest.fixture
def cuda() -> Cuda:
    return Cuda()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny.bundle(tmp_path / "bundle")


def session(cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Session:
    monkeypatch.setattr(Flavour, "_cuda", staticmethod(lambda: cuda))
    entropy = changes.pop("entropy", False)
    monkeypatch.setattr(Flavour, "_tensorrt", lambda self: modules(cuda, entropy=entropy))
    options = {key: changes.pop(key) for key in ("cuda_graph",) if key in changes}
    fields: dict[str, Any] = {"batch": (1, 1, 4), "image_side": (16, 48, 512)} | changes
    return FLAVOURS["tensorrt-rtx"].open_plan(PLAN, record(bundle, PLAN, **fields), **options)


def right(found: Session, images: Any) -> Iterator[bool]:
    for _ in range(3):
        outputs = found.run(images)
        mean, members = tiny.expected(images)
        yield np.allclose(outputs["probabilities"], mean, atol=1e-6)
        yield np.allclose(outputs["member_probabilities"], members, atol=1e-6)


def test_a_request_is_uploaded_executed_downloaded_in_that_order(
    cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = session(cuda, bundle, monkeypatch)
    assert all(right(found, tiny.image(1)[None]))
    assert cuda.calls == ["h2d", "execute", "d2h", "d2h", "sync"] * 3
    assert (found.device, found.capability) == ("Stand-in 3090", "sm86")


@pytest.mark.parametrize("sides", [(16, 48, 512), (48, 48, 48)])  # as it is, and from a captured graph
def test_an_entropy_map_is_an_output_like_the_others(
    cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, sides: tuple[int, int, int]
) -> None:
    found = session(cuda, bundle, monkeypatch, entropy=True, batch=(2, 2, 2), image_side=sides)
    for seed in range(3):
        images = np.stack([tiny.image(seed, 48, 48), tiny.image(seed + 10, 48, 48)])
        assert all(right(found, images))
        np.testing.assert_allclose(found.run(images)["entropy"], tiny.entropy(images), rtol=1e-6)
    assert ("launch" in cuda.calls) == (sides[0] == sides[2])


def test_sizes_and_batches_may_change_from_request_to_request(
    cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = session(cuda, bundle, monkeypatch)
    large = np.stack([tiny.image(seed, 200, 300) for seed in range(4)])
    for images in (tiny.image(1)[None], large, tiny.image(2, 16, 16)[None], large[:2]):
        assert all(right(found, images))
    assert len(cuda.memory) == 6  # a pinned and a device buffer for each tensor: what was too small was freed


def test_a_fixed_plan_is_captured_once_and_replayed(
    cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = {"batch": (1, 1, 1), "image_side": (48, 48, 48)}
    found = session(cuda, bundle, monkeypatch, **fixed)
    assert all(right(found, tiny.image(1, 48, 48)[None]))
    assert all(right(found, tiny.image(2, 48, 48)[None]))
    steps = ["h2d", "execute", "d2h", "d2h"]
    assert cuda.calls == [*steps, "sync", "capture", *steps, *["launch", "sync"] * 5]
    cuda.calls.clear()
    assert all(right(session(cuda, bundle, monkeypatch, cuda_graph=False, **fixed), tiny.image(1, 48, 48)[None]))
    assert "capture" not in cuda.calls


def test_a_thread_that_ended_gives_its_graph_back(cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    found = session(cuda, bundle, monkeypatch, batch=(1, 1, 1), image_side=(48, 48, 48))
    during: list[int] = []

    def work() -> None:
        assert all(right(found, tiny.image(1, 48, 48)[None]))
        during.append(cuda.graphs)

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert (during, cuda.graphs) == ([1, 1, 1], 0)


def test_a_plan_that_cannot_be_captured_serves_without_a_graph_and_says_so_once(
    cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.graphs_fail = True
    found = session(cuda, bundle, monkeypatch, batch=(1, 1, 1), image_side=(48, 48, 48))
    assert all(right(found, tiny.image(1, 48, 48)[None]))
    assert caplog.text.count("no CUDA graph is used: cudaGraphInstantiate failed") == 1
    assert (cuda.calls.count("capture"), cuda.calls.count("launch")) == (1, 0)


def test_timings_split_a_request_into_its_stages(cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    found = session(cuda, bundle, monkeypatch)
    outputs, stages = found.run_timed(tiny.image(1)[None])  # type: ignore[attr-defined]
    assert np.allclose(outputs["probabilities"], tiny.expected(tiny.image(1)[None])[0], atol=1e-6)
    assert stages == {"h2d": 1.0, "compute": 1.0, "d2h": 2.0}  # the stand-in counts calls


def test_every_thread_has_a_stream_and_buffers_of_its_own(
    cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = session(cuda, bundle, monkeypatch)
    wrong: list[int] = []
    ready = threading.Barrier(4)

    def work(seed: int) -> None:
        ready.wait()
        images = tiny.image(seed, 40 + seed, 50)[None]
        if not all(right(found, images)):
            wrong.append(seed)
        ready.wait()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []
    assert cuda.streams == 4
    assert len(cuda.memory) == 0  # a thread that ended gave its buffers back


def test_a_shape_outside_the_profile_names_the_flag(
    cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = session(cuda, bundle, monkeypatch)
    with pytest.raises(InputError, match=r"batches from 1 to 4, not 5; build one with --batch 1,1,5"):
        found.run(np.zeros((5, 48, 48, 3), np.uint8))
    with pytest.raises(InputError, match=r"not 48 x 600; build one with --image-size 16,48,600"):
        found.run(np.zeros((1, 48, 600, 3), np.uint8))
    assert all(right(found, tiny.image(1)[None]))


@pytest.mark.parametrize("full", [("host", "device"), ("device",)])
def test_a_full_gpu_is_one_clear_error_and_the_next_request_works(
    full: tuple[str, ...], cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = session(cuda, bundle, monkeypatch)
    cuda.full = full
    with pytest.raises(EdgemedError, match=r"cudaErrorMemoryAllocation \(2\): the GPU's memory is full"):
        found.run(tiny.image(1)[None])
    cuda.full = ()
    assert all(right(found, tiny.image(1)[None]))


def test_an_engine_that_does_not_deserialise_is_refused(
    cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flavour, "_cuda", staticmethod(lambda: cuda))
    monkeypatch.setattr(Flavour, "_tensorrt", lambda self: modules(cuda, refuses=True))
    with pytest.raises(InputError, match="refuses plan made-by-hand: the plan is of another version; build"):
        FLAVOURS["tensorrt-rtx"].open_plan(PLAN, record(bundle, PLAN))


def test_cudas_errors_say_what_to_do() -> None:
    assert checked((Status.cudaSuccess, 7), "call") == 7
    assert checked((Status.cudaSuccess,), "call") == ()
    with pytest.raises(EdgemedError, match="cudaErrorInsufficientDriver.*install a newer driver"):
        checked((Status.cudaErrorInsufficientDriver, None), "cudaGetDeviceCount")
    assert all(text and text[0].islower() for text in HELP.values())


def test_limits_of_a_plan(bundle: Bundle) -> None:
    check_shape(record(bundle, PLAN, batch=(1, 1, 1), image_side=(48, 48, 48)), (1, 48, 48, 3))
    assert is_fixed((1, 1, 1), (48, 48, 48))
    assert not is_fixed((1, 1, 2), (48, 48, 48))
    assert not is_fixed((1, 1, 1), (16, 48, 48))
    assert output_shapes({"a": (-1, 3), "b": (2, 2, 3)}, 2) == {"a": (2, 3), "b": (2, 2, 3)}
    with pytest.raises(InputError, match="not a plan of this edgemed"):
        output_shapes({"a": (-1, -1)}, 1)


def test_a_machine_without_a_driver_says_so_before_it_asks_for_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    assert FLAVOURS["tensorrt"].availability() == "no NVIDIA driver (libcuda.so.1) is installed"
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "tensorrt is not installed (on a Jetson" in str(FLAVOURS["tensorrt"].availability())


def test_a_gpu_that_rtx_does_not_serve_is_named(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr("importlib.import_module", lambda name: None)
    monkeypatch.setattr(Flavour, "_cuda", staticmethod(lambda: cuda))
    cuda.cudaGetDeviceCount = lambda: (Status.cudaSuccess, 1)  # type: ignore[attr-defined]
    served = SimpleNamespace(ComputeCapability=SimpleNamespace(SM89=1, SM120=2, SM86=3))
    monkeypatch.setattr(Flavour, "_tensorrt", lambda self: served)
    assert FLAVOURS["tensorrt-rtx"].availability() is None  # the stand-in is an sm86
    del served.ComputeCapability.SM86
    reason = FLAVOURS["tensorrt-rtx"].availability()
    assert reason is not None and "this GPU (sm86)" in reason and "(sm89, sm120)" in reason
