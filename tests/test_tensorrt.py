"""TensorRT's execution without a GPU: the order of its calls on a stand-in for TensorRT and CUDA, and its limits.

The stand-in keeps "device" and pinned memory as real host buffers, so that a copy in the wrong direction, a missing
upload or a buffer that is too small gives a wrong answer here too. What only a GPU can show: `make test-gpu`.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_bundles as tiny
from test_damaged import HERE, record

from edgemed.bundle import Bundle
from edgemed.errors import EdgemedError, InputError
from edgemed.runtimes import Session
from edgemed.runtimes.tensorrt import FLAVOURS, Flavour
from edgemed.runtimes.tensorrt_limits import HELP, check_shape, checked, is_fixed, output_shapes

PLAN = b"vtrt" + bytes(200)


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35


class Cuda:
    """Enough of `cuda.bindings.runtime`: work is queued on a stream and done at its synchronisation."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="h2d", cudaMemcpyDeviceToHost="d2h")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=8, cudaDevAttrComputeCapabilityMinor=6)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.work: dict[int, list[Any]] = {}
        self.capturing: dict[int, list[Any]] = {}
        self.streams = 0
        self.full = False

    def cudaDeviceGetAttribute(self, name: int, device: int) -> tuple[Status, int]:
        return Status.cudaSuccess, name

    def cudaGetDeviceProperties(self, device: int) -> tuple[Status, Any]:
        return Status.cudaSuccess, SimpleNamespace(name=b"Stand-in 3090\0\0")

    def _allocate(self, size: int) -> tuple[Status, int]:
        if self.full:
            return Status.cudaErrorMemoryAllocation, 0
        buffer = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(buffer)
        self.memory[address] = buffer
        return Status.cudaSuccess, address

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Status, int]:
        return self._allocate(size)

    def cudaMalloc(self, size: int) -> tuple[Status, int]:
        return self._allocate(size)

    def cudaFree(self, address: int) -> tuple[Status]:
        del self.memory[address]
        return (Status.cudaSuccess,)

    cudaFreeHost = cudaFree

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, int]:
        self.streams += 1
        self.work[self.streams] = []
        return Status.cudaSuccess, self.streams

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def push(self, stream: int, name: str, action: Any) -> None:
        self.calls.append(name)
        self.capturing.get(stream, self.work[stream]).append(action)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, stream: int) -> tuple[Status]:
        assert size <= min(len(self.memory[to]), len(self.memory[source]))
        self.push(stream, kind, lambda: ctypes.memmove(to, source, size))
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        self.calls.append("sync")
        for action in self.work[stream]:
            action()
        self.work[stream].clear()
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple[Status]:
        self.calls.append("capture")
        self.capturing[stream] = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, Any]:
        return Status.cudaSuccess, self.capturing.pop(stream)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Status, Any]:
        return Status.cudaSuccess, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Status]:
        self.calls.append("launch")
        self.work[stream] += graph
        return (Status.cudaSuccess,)

    def cudaEventCreate(self) -> tuple[Status, list[int]]:
        return Status.cudaSuccess, [0]

    def cudaEventRecord(self, event: list[int], stream: int) -> tuple[Status]:
        event[0] = len(self.calls)
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, first: list[int], second: list[int]) -> tuple[Status, float]:
        return Status.cudaSuccess, float(second[0] - first[0])

    def cudaEventDestroy(self, event: list[int]) -> tuple[Status]:
        return (Status.cudaSuccess,)


class Context:
    """An execution context that computes the tiny graph from device memory."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        shape, addresses = self.shape, dict(self.addresses)

        def compute() -> None:
            size = int(np.prod(shape))
            raw = (ctypes.c_uint8 * size).from_address(addresses["image"])
            mean, members = tiny.expected(np.frombuffer(raw, np.uint8).reshape(shape))
            for name, value in (("probabilities", mean), ("member_probabilities", members)):
                data = np.float32(value).tobytes()
                ctypes.memmove(addresses[name], data, len(data))

        self.cuda.push(stream, "execute", compute)
        return True


class Logger:
    WARNING = 1

    def __init__(self, level: int) -> None:
        self.level = level


class Kernels:
    """TensorRT-RTX's runtime cache: filled by running, taken back from bytes."""

    def __init__(self) -> None:
        self.given: bytes | None = None

    def serialize(self) -> bytes:
        return b"compiled kernels"

    def deserialize(self, data: bytes) -> bool:
        self.given = data
        return True


def modules(cuda: Cuda, refuses: bool = False, kernels: Kernels | None = None) -> Any:
    """A stand-in for the module tensorrt_rtx; with `kernels`, one that compiles on the device."""
    names = {"image": (-1, -1, -1, 3), "probabilities": (-1, 3), "member_probabilities": (-1, 2, 3)}
    engine = SimpleNamespace(
        num_io_tensors=3,
        get_tensor_name=lambda k: list(names)[k],
        get_tensor_shape=names.__getitem__,
        create_execution_context=lambda *config: Context(cuda),
    )
    if kernels is not None:
        config = SimpleNamespace(create_runtime_cache=lambda: kernels, set_runtime_cache=lambda cache: None)
        engine.create_runtime_config = lambda: config
    return SimpleNamespace(
        __version__=HERE.version,
        Logger=Logger,
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: None if refuses else engine),
    )


@pytest.fixture
def cuda() -> Cuda:
    return Cuda()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny.bundle(tmp_path / "bundle")


def session(cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Session:
    monkeypatch.setattr(Flavour, "_cuda", staticmethod(lambda: cuda))
    monkeypatch.setattr(Flavour, "_tensorrt", lambda self: modules(cuda))
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


def test_a_full_gpu_is_one_clear_error_and_the_next_request_works(
    cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = session(cuda, bundle, monkeypatch)
    cuda.full = True
    with pytest.raises(EdgemedError, match=r"cudaErrorMemoryAllocation \(2\): the GPU's memory is full"):
        found.run(tiny.image(1)[None])
    cuda.full = False
    assert all(right(found, tiny.image(1)[None]))


def test_an_engine_that_does_not_deserialise_is_refused(
    cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flavour, "_cuda", staticmethod(lambda: cuda))
    monkeypatch.setattr(Flavour, "_tensorrt", lambda self: modules(cuda, refuses=True))
    with pytest.raises(InputError, match="refuses plan made-by-hand"):
        FLAVOURS["tensorrt-rtx"].open_plan(PLAN, record(bundle, PLAN))


def test_kernels_that_were_compiled_here_are_kept_and_a_damaged_cache_is_not_used(
    cuda: Cuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Flavour, "_cuda", staticmethod(lambda: cuda))

    def opened() -> tuple[Session, Kernels]:
        kernels = Kernels()
        monkeypatch.setattr(Flavour, "_tensorrt", lambda self: modules(cuda, kernels=kernels))
        one = record(bundle, PLAN, image_side=(16, 48, 512))
        return FLAVOURS["tensorrt-rtx"].open_plan(PLAN, one), kernels

    first, _ = opened()
    assert first.from_cache is False
    assert all(right(first, tiny.image(1)[None]))
    second, kernels = opened()
    assert (second.from_cache, kernels.given) == (True, b"compiled kernels")
    (file,) = (tmp_path / "cache").rglob("kernels.bin")
    assert file.parent.stat().st_mode & 0o777 == 0o700
    file.write_bytes(b"compiled kernelz")
    third, kernels = opened()
    assert (third.from_cache, kernels.given) == (False, None)


def test_cudas_errors_say_what_to_do() -> None:
    assert checked((Status.cudaSuccess, 7), "call") == 7
    assert checked((Status.cudaSuccess,), "call") == ()
    with pytest.raises(EdgemedError, match="cudaErrorInsufficientDriver.*install a newer driver"):
        checked((Status.cudaErrorInsufficientDriver, None), "cudaGetDeviceCount")
    assert all(text and text[0].islower() for text in HELP.values())


def test_limits_of_a_plan(bundle: Bundle) -> None:
    one = record(bundle, PLAN, batch=(1, 1, 1), image_side=(48, 48, 48))
    assert is_fixed(one)
    check_shape(one, (1, 48, 48, 3))
    assert not is_fixed(record(bundle, PLAN, batch=(1, 1, 2), image_side=(48, 48, 48)))
    assert not is_fixed(record(bundle, PLAN, batch=(1, 1, 1), image_side=(16, 48, 48)))
    assert output_shapes({"a": (-1, 3), "b": (2, 2, 3)}, 2) == {"a": (2, 3), "b": (2, 2, 3)}
    with pytest.raises(InputError, match="not a plan of this edgemed"):
        output_shapes({"a": (-1, -1)}, 1)


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="extra rtx is not installed")

    def no_driver(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    assert FLAVOURS["tensorrt-rtx"].availability() == "no NVIDIA driver (libcuda.so.1) is installed"
    assert "not installed" in str(FLAVOURS["tensorrt"].availability())
