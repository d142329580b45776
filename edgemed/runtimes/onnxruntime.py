"""ONNX Runtime on the CPU: where OpenVINO does not work, and a second opinion on the same graph.

One session serves all batch and image sizes. `edgemed bench BUNDLE --runtime onnxruntime`
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.allowance import usable_cores
from edgemed.errors import InputError, one_line
from edgemed.preflight import cpu
from edgemed.runtimes import Session, outputs_of


def availability() -> str | None:
    """None where ONNX Runtime can run on this CPU, else why not."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "the package onnxruntime is not installed (pip install onnxruntime)"
    try:
        import onnxruntime
    except ImportError as error:
        return f"the package onnxruntime does not load ({error}); pip install --force-reinstall onnxruntime"
    if "CPUExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CPU execution provider"
    return None


def open_session(model: bytes, *, threads: int | None, cache_key: str) -> Session:
    """A session. See `runtimes.RuntimeModule`. A CPU executes an fp16 graph in fp32 too; there is no cache."""
    return _Session(model, threads or usable_cores())


class _Session:
    """Thread-safe: ONNX Runtime's `run` may be called from several threads on one session."""

    name = "onnxruntime"
    from_cache = None

    def __init__(self, model: bytes, threads: int) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as faults

        self.version: str = onnxruntime.__version__
        self.threads = threads
        self.device, self.capability = cpu()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only: its warnings are about graph optimisation
        # Its exceptions have no common base of their own.
        names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
        refusals: tuple[type[Exception], ...] = tuple(getattr(faults, name) for name in names)
        try:
            self._session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except refusals as error:
            raise InputError(
                f"ONNX Runtime {self.version} refuses the graph ({one_line(error)}); "
                "build the bundle again, or use --runtime openvino"
            ) from error

        self._outputs = outputs_of(output.name for output in self._session.get_outputs())

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """See `runtimes.Session.run`."""
        values = self._session.run(list(self._outputs), {"image": np.ascontiguousarray(images)})
        return dict(zip(self._outputs, values, strict=True))
