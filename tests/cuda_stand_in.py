"""A stand-in for CUDA: "device" and pinned memory are real host buffers, and work is done when a stream is waited for.

A copy in the wrong direction, a missing upload or a buffer that is too small gives a wrong answer here too.
"""

from __future__ import annotations

import ctypes
import threading
from enum import IntEnum
from types import SimpleNamespace
from typing import Any


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
        self.local = threading.local()
        self.elsewhere: list[str] = []  # what was asked for while another device than 0 was current

    def cudaGetDevice(self) -> tuple[Status, int]:
        return Status.cudaSuccess, getattr(self.local, "device", 0)

    def cudaSetDevice(self, device: int) -> tuple[Status]:
        self.local.device = device
        return (Status.cudaSuccess,)

    def used(self, name: str) -> None:
        if self.cudaGetDevice()[1] != 0:
            self.elsewhere.append(name)

    def cudaMemGetInfo(self) -> tuple[Status, int, int]:
        self.used("cudaMemGetInfo")
        return Status.cudaSuccess, 1000, 2000

    def cudaDeviceGetAttribute(self, name: int, device: int) -> tuple[Status, int]:
        return Status.cudaSuccess, name

    def cudaGetDeviceProperties(self, device: int) -> tuple[Status, Any]:
        return Status.cudaSuccess, SimpleNamespace(name=b"Stand-in 3090\0\0")

    def _allocate(self, size: int, kind: str) -> tuple[Status, int]:
        self.used("allocate")
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
        self.used("free")
        del self.memory[address]
        return (Status.cudaSuccess,)

    cudaFreeHost = cudaFree

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, int]:
        self.used("cudaStreamCreate")
        self.streams += 1
        self.work[self.streams] = []
        return Status.cudaSuccess, self.streams

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        self.used("cudaStreamDestroy")
        return (Status.cudaSuccess,)

    def push(self, stream: int, name: str, action: Any) -> None:
        self.used(name)
        self.calls.append(name)
        self.capturing.get(stream, self.work[stream]).append(action)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, stream: int) -> tuple[Status]:
        assert size <= min(len(self.memory[to]), len(self.memory[source]))
        self.push(stream, kind, lambda: ctypes.memmove(to, source, size))
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        self.used("sync")
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
        self.used("launch")
        self.calls.append("launch")
        self.work[stream] += graph
        return (Status.cudaSuccess,)

    def cudaEventCreate(self) -> tuple[Status, list[int]]:
        self.used("cudaEventCreate")
        return Status.cudaSuccess, [0]

    def cudaEventRecord(self, event: list[int], stream: int) -> tuple[Status]:
        event[0] = len(self.calls)
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, first: list[int], second: list[int]) -> tuple[Status, float]:
        return Status.cudaSuccess, float(second[0] - first[0])

    def cudaEventDestroy(self, event: list[int]) -> tuple[Status]:
        return (Status.cudaSuccess,)
