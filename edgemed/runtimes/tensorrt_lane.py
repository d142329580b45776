"""What one thread runs requests with on the GPU: a context, a stream, buffers, a CUDA graph. See `tensorrt.py`.

Made and used within `on_device`.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import EdgemedError, InputError
from edgemed.records import PlanRecord
from edgemed.runtimes.tensorrt_cache import KernelCache
from edgemed.runtimes.tensorrt_limits import CudaError, Shape, check_shape, checked, output_shapes

DEVICE = 0  # CUDA's number of the GPU that is used
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_log = logging.getLogger("edgemed")


@contextlib.contextmanager
def on_device(cuda: Any) -> Iterator[None]:
    """Makes `DEVICE` current for this thread, and the one before it afterwards."""
    before = checked(cuda.cudaGetDevice(), "cudaGetDevice")
    if before != DEVICE:
        checked(cuda.cudaSetDevice(DEVICE), "cudaSetDevice")
    try:
        yield
    finally:
        if before != DEVICE:
            cuda.cudaSetDevice(before)


class Lane:
    """What one thread needs to run requests: a context, a stream, pinned and device buffers, a CUDA graph."""

    def __init__(
        self, cuda: Any, context: Any, record: PlanRecord, declared: dict[str, Shape], cache: KernelCache, log: Any
    ) -> None:
        self._cuda, self._context, self._record, self._declared, self._cache = cuda, context, record, declared, cache
        self._log = log
        self._stream = checked(cuda.cudaStreamCreateWithFlags(_NON_BLOCKING), "cudaStreamCreate")
        self._buffers: dict[str, tuple[int, int, int]] = {}  # by tensor: pinned, device, bytes; and "scratch"
        self._shape: Shape = ()
        self._graphs: list[Any] = []  # the captured one, if any
        self._capturable = True
        weakref.finalize(self, _release, cuda, self._stream, self._buffers, self._graphs)
        if cache.scratch:
            address = int(checked(cuda.cudaMalloc(cache.scratch), "cudaMalloc"))
            self._buffers["scratch"] = (0, address, cache.scratch)
            context.set_device_memory(address, cache.scratch)

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
        self._cache.keep(shape)
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
        capturable = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX's alone
        if capturable is not None and not capturable(int(self._stream)):
            raise InputError(f"TensorRT-RTX cannot capture plan {self._record.id}")
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
    with contextlib.suppress(CudaError), on_device(cuda):  # the driver may be gone when a process ends
        cuda.cudaStreamSynchronize(stream)
        for graph in graphs:
            cuda.cudaGraphExecDestroy(graph)
        for pinned, device, _ in buffers.values():
            if pinned:
                cuda.cudaFreeHost(pinned)
            cuda.cudaFree(device)
        cuda.cudaStreamDestroy(stream)
