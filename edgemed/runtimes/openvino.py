"""OpenVINO on the CPU: the embedded default.

One compilation per batch size: N is fixed, H and W stay dynamic up to the resize, and everything after it is static.
Compiled models are kept in the user's cache folder. A kept file stands in for the bundle's verified weights, so its
sha256 is kept beside it, and the bytes that were hashed are those that OpenVINO gets: a file that was damaged, or cut
short by a kill, is compiled anew. OpenVINO's own cache (CACHE_DIR) parses the ONNX file even where it has the compiled
form: two ConvNeXt-Tiny were ready after 1.3 s that way, and after 0.5 s this way.

Settings: one stream on all cores, said outright. On one CPU with AVX2 the LATENCY hint took 223 ms in place of 178 (two
ConvNeXt-Tiny, batch 1); on another 0.96 of the time (0.91 to 0.98). Precision hint f32, since OpenVINO would compute in
bfloat16 where the CPU can. `python benchmarks/graph_forms.py` measures these on the machine that it runs on.

    edgemed bench BUNDLE --runtime openvino
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.allowance import usable_cores
from edgemed.errors import InputError
from edgemed.preflight import cpu
from edgemed.runtimes import Session, cache_folder, held, keep, kept, outputs_of

KEPT = "compiled.blob"
_log = logging.getLogger(__name__)


def availability() -> str | None:
    """None where OpenVINO can run on this CPU, else why not."""
    if importlib.util.find_spec("openvino") is None:
        return "the package openvino is not installed (pip install openvino)"
    try:
        openvino = imported()
    except ImportError as error:
        return f"the package openvino does not load ({error}); pip install --force-reinstall openvino"
    found = "CPU" in openvino.Core().available_devices
    return None if found else "this openvino has no CPU plugin, or there is too little memory to load it"


def imported() -> Any:
    """The module openvino, without its telemetry.

    By itself, importing it sends an event over the network, from a process that it forks, and writes into the home
    folder. Without the package openvino_telemetry it takes a stub of its own; that package is hidden only meanwhile.
    """
    hidden = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # as Python marks what cannot be imported
    try:
        import openvino
    finally:
        sys.modules.pop("openvino_telemetry", None)
        if hidden is not None:
            sys.modules["openvino_telemetry"] = hidden
    return openvino


def open_session(model: bytes, *, threads: int | None, cache_key: str) -> Session:
    """A session with batch size 1 compiled, or loaded from the cache. See `runtimes.RuntimeModule`.

    A CPU executes an fp16 graph in fp32 too.
    """
    session = _Session(model, threads or usable_cores(), cache_key)
    session.prepare(1)
    return session


class _Session:
    """Compiled models by batch size, and a request of its own for each thread and batch size.

    Thread-safe. With one stream, requests of several threads take turns on all cores, which is the shortest latency. A
    forked process is refused: what it inherits may wait for a thread that it does not have, and then waits for ever.
    """

    name = "openvino"

    def __init__(self, model: bytes, threads: int, cache_key: str) -> None:
        openvino = imported()
        self.version: str = openvino.get_version()
        self.threads = threads
        self.from_cache: bool | None = None
        self._openvino = openvino
        self.device, self.capability = cpu()
        self._core = openvino.Core()
        self._model = model
        self._cache_key = cache_key
        self._compiled: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._local = threading.local()
        self._process = os.getpid()

    def prepare(self, batch: int) -> Any:
        """The compiled model for a batch size, made on first use."""
        with self._lock:
            if batch not in self._compiled:
                try:
                    self._compiled[batch] = self._compile(batch)
                except MemoryError as error:
                    raise InputError(
                        "there is not enough memory to compile the engine; free some, or use a smaller --threads"
                    ) from error
                except RuntimeError as error:
                    raise InputError(
                        f"OpenVINO {self.version} refuses the graph ({_last_line(error)}); "
                        "build the bundle again, or use --runtime onnxruntime"
                    ) from error
            return self._compiled[batch]

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """See `runtimes.Session.run`. The pixels are not copied where the array is contiguous and writable."""
        if os.getpid() != self._process:
            raise InputError(
                "this process was forked after the bundle was loaded, and OpenVINO's threads stayed behind; call "
                "edgemed.load in each process, after the fork (gunicorn: without --preload; multiprocessing: spawn)"
            )
        requests: dict[int, Any] = self._local.__dict__.setdefault("requests", {})
        request = requests.get(len(images))
        if request is None:
            compiled = self.prepare(len(images))
            names = outputs_of(name for output in compiled.outputs for name in output.names)
            request = requests[len(images)] = (compiled.create_infer_request(), names)
        running, names = request
        pixels = np.require(images, requirements=["C", "W"])  # OpenVINO wraps writable buffers only
        running.set_input_tensor(self._openvino.Tensor(pixels, shared_memory=True))
        running.infer(share_outputs=True)
        return {name: np.array(running.get_tensor(name).data, dtype=np.float32) for name in names}

    def _compile(self, batch: int) -> Any:
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            "CPU_RUNTIME_CACHE_CAPACITY": 0,  # else memory grows by a MiB with each new size of an image, for ever
        }
        compiled, from_cache = None, False
        try:
            device = self._core.get_property("CPU", "FULL_DEVICE_NAME")
            folder = cache_folder("openvino", self._cache_key, self.version, device, str(batch))
            with held(folder):
                blob = kept(folder / KEPT)
                if blob is None and (folder / KEPT).is_file():
                    _log.warning("%s was damaged, and is compiled again", folder / KEPT)
                if blob is not None:
                    try:
                        compiled, from_cache = self._core.import_model(blob, "CPU", settings), True
                    except RuntimeError as error:
                        _log.warning("%s is refused (%s), and is compiled again", folder / KEPT, _last_line(error))
                if compiled is None:
                    compiled = self._from_graph(batch, settings)
                    keep(folder / KEPT, compiled.export_model().getvalue())
        except (OSError, InputError, RuntimeError) as error:
            # The cache only saves time. A fault of the graph itself comes up again below.
            _log.warning("OpenVINO's cache is not used: %s", _last_line(error))
            if compiled is None:
                compiled = self._from_graph(batch, settings)
        self.from_cache = from_cache if self.from_cache is None else self.from_cache
        return compiled

    def _from_graph(self, batch: int, settings: dict[str, Any]) -> Any:
        model = self._core.read_model(self._model)
        model.reshape({"image": [batch, -1, -1, 3]})
        return self._core.compile_model(model, "CPU", settings)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
