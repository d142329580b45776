"""TensorRT-RTX compiles its kernels on the device when it meets a shape: here they are kept across processes.

In the user's cache folder, by plan, version and GPU: the second `edgemed.load` of a bundle is the fast one.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from edgemed.errors import InputError
from edgemed.manifest import sha256_of
from edgemed.records import PlanRecord
from edgemed.runtimes import cache_folder, held, keep, kept
from edgemed.runtimes.tensorrt_limits import Shape, is_fixed

_log = logging.getLogger("edgemed")


class KernelCache:
    """The kernels of one plan, and the contexts that run them.

    loaded: whether the kernels came from the cache; None: classic TensorRT, which needs none. scratch: bytes of the
    GPU's memory that each context has to be given; 0: it brings its own.
    """

    def __init__(self, trt: Any, engine: Any, record: PlanRecord, device: str) -> None:
        self.loaded: bool | None = None
        self.scratch = 0
        self._config: Any = None
        self._file: Path | None = None  # where the kernels are kept; None: nowhere
        self._written = ""  # the digest of what is there
        self._shapes: set[Shape] = set()  # whose kernels are there
        self._lock = threading.Lock()
        if not hasattr(engine, "create_runtime_config"):
            return
        config = engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return
        # By default a fallback answers until these are compiled: what serves would not be what was tested and timed.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if is_fixed(record.batch, record.image_side):  # built by REQUIRE_USER_ALLOCATION
            config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            self.scratch = int(engine.device_memory_size_v2)
        self._config, self._kernels, self.loaded = config, config.create_runtime_cache(), False
        try:
            self._file = cache_folder("tensorrt-rtx", str(record.sha256), str(trt.__version__), device) / "kernels.bin"
            if (data := kept(self._file)) is not None and self._kernels.deserialize(data):
                self.loaded, self._written = True, sha256_of(data)
        except OSError as error:
            _log.warning("TensorRT-RTX's kernel cache is not used: %s", error)
        config.set_runtime_cache(self._kernels)

    def context(self, engine: Any) -> Any:
        """A new execution context, or None where TensorRT cannot make one."""
        return engine.create_execution_context(*(() if self._config is None else (self._config,)))

    def keep(self, shape: Shape) -> None:
        """Write the kernels down after the first request of a shape, where it needed new ones."""
        if self._file is None or shape in self._shapes:
            return
        with self._lock:
            self._shapes.add(shape)
            kernels = self._kernels.serialize()
            if kernels is None or self._file is None:
                return
            data = bytes(kernels)
            if (digest := sha256_of(data)) == self._written:
                return
            try:
                with held(self._file.parent):
                    keep(self._file, data)
                self._written = digest
            except (InputError, OSError) as error:
                self._file = None
                _log.warning("TensorRT-RTX's kernel cache is not kept: %s", error)
