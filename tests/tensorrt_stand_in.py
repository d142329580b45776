"""A stand-in for CUDA and TensorRT: "device" and pinned memory are real host buffers, and it computes the tiny graph.

A copy in the wrong direction, a missing upload or a buffer that is too small gives a wrong answer here too.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import tiny_bundles as tiny
from test_damaged import HERE


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
        self.full: tuple[str, ...] = ()  # which memory is: "host", "device"
        self.graphs = 0  # those that are there
        self.graphs_fail = False

    def cudaDeviceGetAttribute(self, name: int, device: int) -> tuple[Status, int]:
        return Status.cudaSuccess, name

    def cudaGetDeviceProperties(self, device: int) -> tuple[Status, Any]:
        return Status.cudaSuccess, SimpleNamespace(name=b"Stand-in 3090\0\0")

    def _allocate(self, size: int, kind: str) -> tuple[Status, int]:
        if kind in self.full:
            return Status.cudaErrorMemoryAllocation, 0
        buffer = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(buffer)
        self.memory[address] = buffer
        return Status.cudaSuccess, address

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Status, int]:
        return self._allocate(size, "host")

    def cudaMalloc(self, size: int) -> tuple[Status, int]:
        return self._allocate(size, "device")

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
        if self.graphs_fail:
            return Status.cudaErrorMemoryAllocation, None
        self.graphs += 1
        return Status.cudaSuccess, list(graph)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Status]:
        self.graphs -= 1
        return (Status.cudaSuccess,)

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
    """An execution context that computes the tiny graph from device memory.

    TensorRT-RTX by default answers the first request of a shape with a fallback kernel: here with another answer. What
    it computes with, a context of the user's own memory has been given, or it fails.
    """

    SCRATCH = 4096

    def __init__(self, cuda: Cuda, entropy: bool, config: Any) -> None:
        self.cuda, self.entropy, self.config = cuda, entropy, config
        self.compiled: set[tuple[int, ...]] = set()
        self.given = 0  # bytes
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert size <= len(self.cuda.memory[address])
        self.given = size

    def execute_async_v3(self, stream: int) -> bool:
        if getattr(self.config, "allocation", "static") == "user managed" and self.given < self.SCRATCH:
            return False
        shape, addresses = self.shape, dict(self.addresses)
        lazy = getattr(self.config, "dynamic_shapes_kernel_specialization_strategy", None) == "lazy"
        fallback = 1e-3 * (lazy and shape not in self.compiled)
        self.compiled.add(shape)

        def compute() -> None:
            size = int(np.prod(shape))
            raw = (ctypes.c_uint8 * size).from_address(addresses["image"])
            mean, members = tiny.expected(np.frombuffer(raw, np.uint8).reshape(shape))
            answers = {"probabilities": mean, "member_probabilities": members}
            answers |= {"entropy": tiny.entropy(np.frombuffer(raw, np.uint8).reshape(shape))} if self.entropy else {}
            for name, value in answers.items():
                data = np.float32(value + fallback).tobytes()
                ctypes.memmove(addresses[name], data, len(data))

        self.cuda.push(stream, "execute", compute)
        return True


class RtxContext(Context):
    """What only TensorRT-RTX's contexts have. `capturable`: what they say."""

    capturable = True

    def execute_async_v3(self, stream: int) -> bool:
        self.config.kernels.compile(self.shape)
        return super().execute_async_v3(stream)

    def is_stream_capturable(self, stream: int) -> bool:
        assert isinstance(stream, int)
        return self.capturable


class Config:
    """TensorRT-RTX's runtime configuration."""

    dynamic_shapes_kernel_specialization_strategy = "lazy"
    allocation = "static"

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def create_runtime_cache(self) -> Kernels:
        return self.kernels

    def set_runtime_cache(self, cache: Kernels) -> bool:
        return True

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.allocation = strategy


class Logger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)


class Kernels:
    """TensorRT-RTX's runtime cache: filled by running, taken back from bytes."""

    def __init__(self) -> None:
        self.given: bytes | None = None
        self.shapes: set[str] = set()
        self.serialized = 0  # how often

    def compile(self, shape: tuple[int, ...]) -> None:
        self.shapes.add(" x ".join(map(str, shape[:3])))

    def serialize(self) -> bytes:
        self.serialized += 1
        return "\n".join(sorted(self.shapes)).encode()

    def deserialize(self, data: bytes) -> bool:
        self.given = data
        self.shapes |= set(data.decode().splitlines())
        return True


def modules(
    cuda: Cuda,
    refuses: bool = False,
    kernels: Kernels | None = None,
    entropy: bool = False,
    shape: tuple[int, int, int] | None = None,
) -> Any:
    """A stand-in for the module tensorrt_rtx; with `kernels`, one that compiles on the device.

    shape: of the images, where the plan is built for it alone and by REQUIRE_USER_ALLOCATION: as the real one, it then
    makes no context but one that is given its memory.
    """
    n, *sides = shape or (-1, -1, -1)
    names = {"image": (n, *sides, 3), "probabilities": (n, 3), "member_probabilities": (n, 2, 3)}
    names |= {"entropy": (-1, 2, 2)} if entropy else {}
    engine = SimpleNamespace(
        num_io_tensors=len(names),
        get_tensor_name=lambda k: list(names)[k],
        get_tensor_shape=names.__getitem__,
        create_execution_context=lambda config=None: Context(cuda, entropy, config),
    )
    if kernels is not None:
        engine.device_memory_size_v2 = Context.SCRATCH
        engine.create_runtime_config = lambda: Config(kernels)
        engine.create_execution_context = lambda config: (
            None if shape and config.allocation != "user managed" else RtxContext(cuda, entropy, config)
        )

    def opened(log: Any, plan: bytes) -> Any:
        if refuses:
            log.log(Logger.Severity.ERROR, "the plan is\n of another version")
        return None if refuses else engine

    return SimpleNamespace(
        __version__=HERE.version,
        ILogger=Logger,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=partial(opened, log)),
    )
