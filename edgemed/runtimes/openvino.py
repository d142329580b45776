"""OpenVINO on the CPU: the embedded default.

One compilation per batch size: N is fixed, H and W stay dynamic up to the resize, and everything after it is static.
Compiled models are kept in OpenVINO's own cache, in the user's cache folder. A cached file stands in for the bundle's
verified weights, so its sha256 is kept beside it: a file that was damaged, or cut short by a kill, is compiled anew.

Settings: one stream on all cores, said outright. On one CPU with AVX2 the LATENCY hint took 223 ms in place of 178 (two
ConvNeXt-Tiny, batch 1); on one with AVX-512 both come to the same. Precision hint f32, since OpenVINO would compute in
bfloat16 where the CPU can. `python benchmarks/graph_forms.py` measures these on the machine that it runs on.

    edgemed bench BUNDLE --runtime openvino
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import InputError
from edgemed.files import write_atomic
from edgemed.preflight import cpu
from edgemed.runtimes import OUTPUTS, Session, cache_folder, usable_cores

_log = logging.getLogger(__name__)


def availability() -> str | None:
    """None where OpenVINO can run on this CPU, else why not."""
    if importlib.util.find_spec("openvino") is None:
        return "the package openvino is not installed (pip install openvino)"
    try:
        import openvino
    except ImportError as error:
        return f"the package openvino does not load ({error}); pip install --force-reinstall openvino"
    return None if "CPU" in openvino.Core().available_devices else "this openvino has no CPU plugin"


def open_session(model: bytes, *, precision: str, threads: int | None, cache_key: str) -> Session:
    """A session with batch size 1 compiled, or loaded from the cache. See `runtimes.RuntimeModule`.

    A CPU executes an fp16 graph in fp32 too, so `precision` changes nothing here.
    """
    session = _Session(model, threads or usable_cores(), cache_key)
    session.prepare(1)
    return session


class _Session:
    """Compiled models by batch size, and a request of its own for each thread and batch size.

    Thread-safe. With one stream, requests of several threads take turns on all cores, which is the shortest latency.
    """

    name = "openvino"

    def __init__(self, model: bytes, threads: int, cache_key: str) -> None:
        import openvino

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

    def prepare(self, batch: int) -> Any:
        """The compiled model for a batch size, made on first use."""
        with self._lock:
            if batch not in self._compiled:
                try:
                    self._compiled[batch] = self._compile(batch)
                except RuntimeError as error:
                    raise InputError(
                        f"OpenVINO {self.version} refuses the graph ({_first_line(error)}); "
                        "build the bundle again, or use --runtime onnxruntime"
                    ) from error
            return self._compiled[batch]

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """See `runtimes.Session.run`. The pixels are not copied where the array is contiguous and writable."""
        requests: dict[int, Any] = self._local.__dict__.setdefault("requests", {})
        request = requests.get(len(images))
        if request is None:
            request = requests[len(images)] = self.prepare(len(images)).create_infer_request()
        pixels = np.require(images, requirements=["C", "W"])  # OpenVINO wraps writable buffers only
        request.set_input_tensor(self._openvino.Tensor(pixels, shared_memory=True))
        request.infer(share_outputs=True)
        return {name: np.array(request.get_tensor(name).data, dtype=np.float32) for name in OUTPUTS}

    def _compile(self, batch: int) -> Any:
        model = self._core.read_model(self._model)
        model.reshape({"image": [batch, -1, -1, 3]})
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
        }
        try:
            device = self._core.get_property("CPU", "FULL_DEVICE_NAME")
            folder = cache_folder("openvino", self._cache_key, self.version, device, str(batch))
            with _locked(folder):
                _drop_damaged(folder)
                compiled = self._core.compile_model(model, "CPU", {**settings, "CACHE_DIR": str(folder)})
                from_cache = bool(compiled.get_property("LOADED_FROM_CACHE"))
                if not from_cache:
                    _record(folder)
        except (OSError, InputError, RuntimeError) as error:
            # The cache only saves time. A fault of the graph itself comes up again below.
            _log.warning("OpenVINO's cache is not used: %s", _first_line(error))
            compiled, from_cache = self._core.compile_model(model, "CPU", settings), False
        self.from_cache = from_cache if self.from_cache is None else self.from_cache
        return compiled


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: a cached file is mapped into memory, so nobody may write it while another reads."""
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when the file is closed, or the process ends
        yield


def _drop_damaged(folder: Path) -> None:
    """Remove cached files that are not, byte for byte, what was recorded when they were written."""
    for blob in folder.glob("*.blob"):
        note = blob.with_suffix(".sha256")
        if not note.is_file() or note.read_text(encoding="ascii") != _sha256(blob):
            _log.warning("%s was damaged, and is compiled again", blob)
            blob.unlink(missing_ok=True)


def _record(folder: Path) -> None:
    """Note the sha256 of every cached file beside it."""
    for blob in folder.glob("*.blob"):
        write_atomic(blob.with_suffix(".sha256"), _sha256(blob))


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        digest = hashlib.sha256()
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
