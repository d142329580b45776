"""TensorRT on a GPU: classic (Jetson, data centre) and TensorRT-RTX (desktop), through one piece of code. No torch.

A request copies its pixels into pinned memory; one stream then carries upload, execution and download. Every thread
has a context, a stream and buffers of its own, so requests of several threads may overlap. Buffers grow to the largest
request seen. A plan of one fixed shape is captured into a CUDA graph after its first request, where TensorRT can be
captured: one launch then stands for all three steps. TensorRT-RTX compiles its kernels on the device before the first
answer of a shape; they are kept in the user's cache. The GPU is CUDA's number 0, whichever the application has made
current; CUDA_VISIBLE_DEVICES chooses another.

Written against TensorRT 10.3 to 11 and TensorRT-RTX 1.7; the tests run its logic on a stand-in, `make test-gpu` on a
GPU. `edgemed bench BUNDLE --runtime tensorrt-rtx`
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import InputError
from edgemed.preflight import Here
from edgemed.records import PlanRecord
from edgemed.runtimes import OUTPUTS, PlanModule, Session, outputs_of
from edgemed.runtimes.tensorrt_cache import KernelCache
from edgemed.runtimes.tensorrt_lane import DEVICE, Lane, on_device
from edgemed.runtimes.tensorrt_limits import CudaError, checked, is_fixed, served_capabilities
from edgemed.runtimes.tensorrt_log import process_logger


@dataclass(frozen=True)
class Flavour(PlanModule):
    """Classic TensorRT or TensorRT-RTX: the same interface under two names."""

    name: str
    package: str
    install: str

    def availability(self) -> str | None:
        """See `runtimes.PlanModule`."""
        try:
            ctypes.CDLL("libcuda.so.1")  # asked first: without it no package helps, and importing them takes long
        except OSError:
            return "no NVIDIA driver (libcuda.so.1) is installed"
        if importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed ({self.install})"
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
        with on_device(self._cuda()):
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
    """One deserialised engine; a `Lane` for each thread that calls `run`."""

    threads = 1

    def __init__(
        self, flavour: Flavour, trt: Any, cuda: Any, plan: bytes, record: PlanRecord, cuda_graph: bool
    ) -> None:
        self.name, self.version = flavour.name, str(trt.__version__)
        self.device, self.capability = _device_name(cuda), _capability(cuda)
        self.from_cache: bool | None = None
        self._cuda, self._record = cuda, record
        self._graphs = cuda_graph and is_fixed(record.batch, record.image_side)
        self._log = process_logger(trt.ILogger, flavour.package)
        self._log.said()  # of an earlier failure
        with on_device(cuda):
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
        with on_device(cuda):
            self._cache = KernelCache(trt, self._engine, record, self.device)
        self.from_cache = self._cache.loaded
        self._local = threading.local()

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """See `runtimes.Session.run`. InputError for a shape outside the plan's profile."""
        with on_device(self._cuda):
            return self._lane().run(images, graph=self._graphs)

    def run_timed(self, images: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], dict[str, float]]:
        """`run` without a CUDA graph, with the milliseconds of each stage on the stream: h2d, compute, d2h."""
        with on_device(self._cuda):
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

    def _lane(self) -> Lane:
        self._log.said()  # what nobody asked for is not about this request
        lane: Lane | None = getattr(self._local, "lane", None)
        if lane is None:
            context = self._cache.context(self._engine)
            if context is None:
                why = self._log.said()
                raise InputError(f"{self.name} cannot make a context for plan {self._record.id}: {why}; free memory")
            lane = self._local.lane = Lane(self._cuda, context, self._record, self._declared, self._cache, self._log)
        return lane


def _capability(cuda: Any) -> str:
    kinds = cuda.cudaDeviceAttr
    names = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
    numbers = (checked(cuda.cudaDeviceGetAttribute(name, DEVICE), "cudaDeviceGetAttribute") for name in names)
    return "sm" + "".join(map(str, numbers))


def _device_name(cuda: Any) -> str:
    name = checked(cuda.cudaGetDeviceProperties(DEVICE), "cudaGetDeviceProperties").name
    return name.decode(errors="replace").strip("\0 ") if isinstance(name, bytes) else str(name)
