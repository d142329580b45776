"""A stand-in for TensorRT, which computes the tiny graph in the memory of the stand-in for CUDA."""

from __future__ import annotations

import ctypes
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import tiny_bundles as tiny
from cuda_stand_in import Cuda
from test_damaged import HERE


class Context:
    """An execution context that computes the tiny graph from device memory.

    TensorRT-RTX by default answers the first request of a shape with a fallback kernel: here with another answer. What
    it computes with, a context of the user's own memory has been given, or it fails.
    """

    SCRATCH = 4096

    def __init__(self, cuda: Cuda, entropy: bool, config: Any) -> None:
        cuda.used("context")
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

    def __init__(self, cuda: Cuda, kernels: Kernels) -> None:
        cuda.used("create_runtime_config")
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
        engine.create_runtime_config = lambda: Config(cuda, kernels)
        engine.create_execution_context = lambda config: (
            None if shape and config.allocation != "user managed" else RtxContext(cuda, entropy, config)
        )

    def opened(log: Any, plan: bytes) -> Any:
        if refuses:
            log.log(Logger.Severity.ERROR, "the plan is\n of another version")
        cuda.used("deserialize")
        return None if refuses else engine

    return SimpleNamespace(
        __version__=HERE.version,
        ILogger=Logger,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=partial(opened, log)),
    )
