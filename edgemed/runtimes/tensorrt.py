"""TensorRT on a GPU: classic (Jetson, data centre) and TensorRT-RTX (desktop), through one piece of code. No torch.

A request copies its pixels into pinned memory; one stream then carries upload, execution and download. Every thread
has a context, a stream and buffers of its own, so requests of several threads may overlap. Buffers grow to the largest
request seen. A plan of one fixed shape is captured into a CUDA graph after its first request: one launch then stands
for all three steps. TensorRT-RTX compiles its kernels on the device at first use; they are kept in the user's cache.

Written against TensorRT 10.3 to 11 and TensorRT-RTX 1.7; the tests run its logic on a stand-in, `make test-gpu` on a
GPU. `edgemed bench BUNDLE --runtime tensorrt-rtx`
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import threading
import weakref
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import EdgemedError, InputError
from edgemed.preflight import Here
from edgemed.records import PlanRecord
from edgemed.runtimes import OUTPUTS, PlanModule, Session, outputs_of
from edgemed.runtimes.tensorrt_cache import KernelCache
from edgemed.runtimes.tensorrt_limits import (
    CudaError,
    Shape,
    check_shape,
    checked,
    is_fixed,
    output_shapes,
    served_capabilities,
)
from edgemed.runtimes.tensorrt_log import process_logger

_NON_BLOCKING = 1  # cudaStreamNonBlocking
_log = logging.getLogger("edgemed")


@dataclass(frozen=True)
class Flavour(PlanModule):
    """Classic TensorRT or TensorRT-RTX: the same interface under two names."""

    name: str
    package: str
    install: str

    def availability(self) -> str | None:
        """See `runtimes.PlanModule`."""
        if importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed ({self.install})"
        try:
            ctypes.CDLL("libcuda.so.1")  # asked first: importing the packages takes long, and tells less
        except OSError:
            return "no NVIDIA driver (libcuda.so.1) is installed"
        for package in (self.package, "cuda.bindings.runtime"):
            try:
                importlib.import_module(package)
            except ImportError as error:
                return f"{package} does not load ({error}); {self.install}"
        try:
            count = checked(self._cuda().cudaGetDeviceCount(), "cudaGetDeviceCount")
        except CudaError as error:
            return str(error)
        if not count:
            return "no NVIDIA GPU is visible"
        served, capability = served_capabilities(self._tensorrt()), _capability(self._cuda())
        if served is not None and capability not in served:
            # Seen on an H100: a plan builds, and is then refused when it is opened.
            return f"this GPU ({capability}) is not served by TensorRT-RTX ({', '.join(served)}); use classic TensorRT"
        return None

    def here(self) -> Here:
        """See `runtimes.PlanModule`."""
        return Here(self.name, str(self._tensorrt().__version__), _capability(self._cuda()))

    def open_plan(self, plan: bytes, record: PlanRecord, *, cuda_graph: bool = True) -> Session:
        """See `runtimes.PlanModule`."""
        return _Session(self, self._tensorrt(), self._cuda(), plan, record, cuda_graph)

    def free_memory(self) -> int:
        """Bytes of the GPU's memory that are free now."""
        return int(checked(self._cuda().cudaMemGetInfo(), "cudaMemGetInfo")[0])

    def _tensorrt(self) -> Any:
        return importlib.import_module(self.package)

    @staticmethod
    def _cuda() -> Any:
        return importlib.import_module("cuda.bindings.runtime")


FLAVOURS = {
    "tensorrt": Flavour(
        "tensorrt",
        "tensorrt",
        "on a Jetson use JetPack's, in a venv with --system-site-packages; on x86-64 pip install 'edgemed[tensorrt]'",
    ),
    "tensorrt-rtx": Flavour("tensorrt-rtx", "tensorrt_rtx", "pip install 'edgemed[rtx]'"),
}


class _Session:
    """One deserialised engine; a `_Lane` for each thread that calls `run`."""

    threads = 1

    def __init__(
        self, flavour: Flavour, trt: Any, cuda: Any, plan: bytes, record: PlanRecord, cuda_graph: bool
    ) -> None:
        self.name, self.version = flavour.name, str(trt.__version__)
        self.device, self.capability = _device_name(cuda), _capability(cuda)
        self.from_cache: bool | None = None
        self._cuda, self._record = cuda, record
        self._graphs = cuda_graph and is_fixed(record)
        self._log = process_logger(trt.ILogger, flavour.package)
        self._log.said()  # of an earlier failure
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise InputError(
                f"{self.name} {self.version} refuses plan {record.id}: {self._log.said()}; "
                f"build it again here with `edgemed build-engine BUNDLE --runtime {self.name}`"
            )
        names = [self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors)]
        missing = {"image", *OUTPUTS} - set(names)
        if missing:
            raise InputError(f"plan {record.id} has no tensor '{min(missing)}'; it is not a plan of this edgemed")
        self._declared = {name: tuple(self._engine.get_tensor_shape(name)) for name in outputs_of(names)}
        self._cache = KernelCache(self._engine, record, self.version, self.device)
        self.from_cache = self._cache.loaded
        self._local = threading.local()

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """See `runtimes.Session.run`. InputError for a shape outside the plan's profile."""
        return self._lane().run(images, graph=self._graphs)

    def run_timed(self, images: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], dict[str, float]]:
        """`run` without a CUDA graph, with the milliseconds of each stage on the stream: h2d, compute, d2h."""
        lane = self._lane()
        events = [checked(self._cuda.cudaEventCreate(), "cudaEventCreate") for _ in range(4)]
        try:
            outputs = lane.run(images, graph=False, events=events)
            spans = [
                checked(self._cuda.cudaEventElapsedTime(first, second), "cudaEventElapsedTime")
                for first, second in pairwise(events)
            ]
        finally:
            for event in events:
                self._cuda.cudaEventDestroy(event)
        return outputs, dict(zip(("h2d", "compute", "d2h"), map(float, spans), strict=True))

    def _lane(self) -> _Lane:
        self._log.said()  # what nobody asked for is not about this request
        lane: _Lane | None = getattr(self._local, "lane", None)
        if lane is None:
            context = self._cache.context(self._engine)
            if context is None:
                why = self._log.said()
                raise InputError(f"{self.name} cannot make a context for plan {self._record.id}: {why}; free memory")
            lane = self._local.lane = _Lane(self._cuda, context, self._record, self._declared, self._cache, self._log)
        return lane


class _Lane:
    """What one thread needs to run requests: a context, a stream, pinned and device buffers, a CUDA graph."""

    def __init__(
        self, cuda: Any, context: Any, record: PlanRecord, declared: dict[str, Shape], cache: KernelCache, log: Any
    ) -> None:
        self._cuda, self._context, self._record, self._declared, self._cache = cuda, context, record, declared, cache
        self._log = log
        self._stream = checked(cuda.cudaStreamCreateWithFlags(_NON_BLOCKING), "cudaStreamCreate")
        self._buffers: dict[str, tuple[int, int, int]] = {}  # by tensor: pinned address, device address, bytes
        self._shape: Shape = ()
        self._graphs: list[Any] = []  # the captured one, if any
        self._capturable = True
        weakref.finalize(self, _release, cuda, self._stream, self._buffers, self._graphs)

    def run(
        self, images: NDArray[np.uint8], *, graph: bool, events: list[Any] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        shape = images.shape
        shapes = output_shapes(self._declared, shape[0])
        if shape != self._shape:
            self._prepare(shape, shapes)
        self._pinned("image", shape, np.uint8)[...] = images
        if self._graphs and graph:
            checked(self._cuda.cudaGraphLaunch(self._graphs[0], self._stream), "cudaGraphLaunch")
        else:
            self._enqueue(shapes, events)
        checked(self._cuda.cudaStreamSynchronize(self._stream), "cudaStreamSynchronize")
        if graph and not self._graphs and self._capturable:
            try:
                self._capture(shapes)  # after a plain request: a context may not be captured before it has run
            except EdgemedError as error:  # the answer is there, and the next ones need no graph
                self._capturable = False
                _log.warning("no CUDA graph is used: %s", error)
        self._cache.keep()
        return {name: self._pinned(name, wanted, np.float32).copy() for name, wanted in shapes.items()}

    def _prepare(self, shape: Shape, shapes: dict[str, Shape]) -> None:
        check_shape(self._record, shape)
        self._shape = ()
        self._reserve("image", int(np.prod(shape)))
        for name, wanted in shapes.items():
            self._reserve(name, 4 * int(np.prod(wanted)))
        if not self._context.set_input_shape("image", shape):
            why = self._log.said()
            raise InputError(f"TensorRT refuses the shape {shape} for plan {self._record.id}: {why}; build it again")
        self._shape = shape

    def _reserve(self, name: str, size: int) -> None:
        """Pinned and device memory for a tensor, at least `size` bytes, told to the context."""
        pinned, device, have = self._buffers.get(name, (0, 0, 0))
        if have < size:
            self._buffers.pop(name, None)
            if have:
                self._cuda.cudaFreeHost(pinned)
                self._cuda.cudaFree(device)
            pinned = int(checked(self._cuda.cudaHostAlloc(size, 0), "cudaHostAlloc"))
            try:
                device = int(checked(self._cuda.cudaMalloc(size), "cudaMalloc"))
            except EdgemedError:  # the next request, with memory free again, starts from nothing
                self._cuda.cudaFreeHost(pinned)
                raise
            self._buffers[name] = (pinned, device, size)
        self._context.set_tensor_address(name, device)

    def _enqueue(self, shapes: dict[str, Shape], events: list[Any] | None = None) -> None:
        def mark(number: int) -> None:
            if events is not None:
                checked(self._cuda.cudaEventRecord(events[number], self._stream), "cudaEventRecord")

        kinds = self._cuda.cudaMemcpyKind
        mark(0)
        pinned, device, _ = self._buffers["image"]
        self._copy(device, pinned, int(np.prod(self._shape)), kinds.cudaMemcpyHostToDevice)
        mark(1)
        if not self._context.execute_async_v3(int(self._stream)):
            why = self._log.said()
            raise InputError(f"TensorRT failed to run plan {self._record.id}: {why}; build it again")
        mark(2)
        for name, shape in shapes.items():
            pinned, device, _ = self._buffers[name]
            self._copy(pinned, device, 4 * int(np.prod(shape)), kinds.cudaMemcpyDeviceToHost)
        mark(3)

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        checked(self._cuda.cudaMemcpyAsync(to, source, size, kind, self._stream), "cudaMemcpyAsync")

    def _capture(self, shapes: dict[str, Shape]) -> None:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(self._cuda.cudaStreamBeginCapture(self._stream, mode), "cudaStreamBeginCapture")
        try:
            self._enqueue(shapes)
        finally:
            graph = checked(self._cuda.cudaStreamEndCapture(self._stream), "cudaStreamEndCapture")
        try:
            self._graphs.append(checked(self._cuda.cudaGraphInstantiate(graph, 0), "cudaGraphInstantiate"))
        finally:
            self._cuda.cudaGraphDestroy(graph)

    def _pinned(self, name: str, shape: Shape, dtype: Any) -> NDArray[Any]:
        """The pinned buffer of a tensor as an array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = (ctypes.c_uint8 * size).from_address(self._buffers[name][0])
        return np.frombuffer(raw, dtype=dtype).reshape(shape)


def _release(cuda: Any, stream: Any, buffers: dict[str, tuple[int, int, int]], graphs: list[Any]) -> None:
    cuda.cudaStreamSynchronize(stream)
    for graph in graphs:
        cuda.cudaGraphExecDestroy(graph)
    for pinned, device, _ in buffers.values():
        cuda.cudaFreeHost(pinned)
        if device:
            cuda.cudaFree(device)
    cuda.cudaStreamDestroy(stream)


def _capability(cuda: Any) -> str:
    kinds = cuda.cudaDeviceAttr
    names = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
    numbers = (checked(cuda.cudaDeviceGetAttribute(name, 0), "cudaDeviceGetAttribute") for name in names)
    return "sm" + "".join(map(str, numbers))


def _device_name(cuda: Any) -> str:
    name = checked(cuda.cudaGetDeviceProperties(0), "cudaGetDeviceProperties").name
    return name.decode(errors="replace").strip("\0 ") if isinstance(name, bytes) else str(name)
