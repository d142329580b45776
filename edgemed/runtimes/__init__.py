"""What executes a bundle's graph: one module per runtime.

    availability() -> str | None            None = works on this machine, else the reason why not, in one line
    open_session(model, *, threads, cache_key) -> Session       those that take the ONNX file
    open_plan(plan, record, *, cuda_graph=True) -> Session      TensorRT, which takes a plan built from it

Why: `engines.open_engine` goes through `ORDER` and takes the first that works; nothing above knows
which one runs. No torch. `edgemed predict BUNDLE IMAGE --runtime NAME` asks for one by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import InputError, did_you_mean
from edgemed.files import locked, write_atomic
from edgemed.manifest import sha256_of
from edgemed.preflight import Here
from edgemed.records import PlanRecord

ORDER = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
"""The order of preference of `--runtime auto`."""

OUTPUTS = ("probabilities", "member_probabilities")
ENTROPY = "entropy"
"""A third output, of graphs that were built with it: see the manifest's `entropy`."""


def outputs_of(names: Iterable[str]) -> tuple[str, ...]:
    """Which outputs a graph gives that has tensors of these names."""
    return (*OUTPUTS, ENTROPY) if ENTROPY in set(names) else OUTPUTS


class Session(Protocol):
    """A graph that is ready to run. May be used from several threads at once."""

    @property
    def name(self) -> str:
        """The runtime: one of `ORDER`."""

    @property
    def version(self) -> str:
        """The runtime's own version."""

    @property
    def device(self) -> str:
        """The GPU's or CPU's model."""

    @property
    def capability(self) -> str:
        """The GPU's compute capability, like "sm86", or the CPU's features, like "x86_64:avx2,fma"."""

    @property
    def threads(self) -> int:
        """CPU threads that one request may use."""

    @property
    def from_cache(self) -> bool | None:
        """Whether the session was loaded from the runtime's cache; None where the runtime has no cache."""

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """(N, H, W, 3) uint8 RGB, N >= 1 -> {"probabilities": (N, K), "member_probabilities": (N, M, K)} float32.

        And "entropy": (N, S/32, S/32), where the graph gives it.
        """


class RuntimeModule(Protocol):
    """A module of this folder."""

    def availability(self) -> str | None:
        """None where the runtime works on this machine, else why not and what to do, in one line."""

    def open_session(self, model: bytes, *, threads: int | None, cache_key: str) -> Session:
        """A session for a serialised ONNX model; an fp16 graph is executed in fp32, too.

        threads: None = `usable_cores()`. cache_key: the sha256 of `model`, under which compiled forms are kept.
        Raises InputError where the runtime refuses the model.
        """


class PlanModule(ABC):
    """A runtime that executes plans instead of ONNX files: one flavour of TensorRT."""

    @abstractmethod
    def availability(self) -> str | None:
        """None where the runtime and a GPU work on this machine, else why not and what to do, in one line."""

    @abstractmethod
    def here(self) -> Here:
        """This machine, as `preflight.check_plan` compares it with a plan."""

    @abstractmethod
    def open_plan(self, plan: bytes, record: PlanRecord, *, cuda_graph: bool = True) -> Session:
        """A session for a plan that passed `preflight.check_plan`. Raises InputError where the runtime refuses it.

        cuda_graph: whether a plan of one shape is captured into a CUDA graph.
        """


def runtime_module(name: str) -> RuntimeModule | PlanModule:
    """The module of a runtime. InputError for an unknown name."""
    if name not in ORDER:
        raise InputError(f"runtime '{name}' is unknown.{did_you_mean(name, (*ORDER, 'auto'))}")
    if name.startswith("tensorrt"):
        tensorrt = importlib.import_module("edgemed.runtimes.tensorrt")
        return cast(PlanModule, tensorrt.FLAVOURS[name])
    return cast(RuntimeModule, importlib.import_module(f"edgemed.runtimes.{name}"))


def cache_folder(runtime: str, *key: str) -> Path:
    """A folder, mode 0700, for what a runtime compiles: ~/.cache/edgemed/RUNTIME/HASH-OF-KEY, or in $XDG_CACHE_HOME.

    Raises OSError where it cannot be made or written, or where it belongs to somebody else: what lies in a cache is
    run, so it has to be the user's own.
    """
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = configured if configured.is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(f"no home folder: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("edgemed", runtime, hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]):
        folder = folder / part
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written")
    return folder


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """One process at a time works in a folder of the cache; the others wait. C++ holds the same lock."""
    with locked(os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)) as state:
        if state != "held":
            raise OSError(f"{folder} has no locks")
        yield


def kept(file: Path) -> bytes | None:
    """What `keep` wrote, byte for byte; None where it wrote nothing, or the file was damaged or cut short since."""
    note = file.with_suffix(".sha256")
    if not file.is_file() or not note.is_file():
        return None
    data = file.read_bytes()
    return data if note.read_bytes() == sha256_of(data).encode() else None


def keep(file: Path, data: bytes) -> None:
    """Write a compiled form into the cache, its sha256 beside it: what lies there is run, so it has to be whole."""
    write_atomic(file, data)
    write_atomic(file.with_suffix(".sha256"), sha256_of(data))
