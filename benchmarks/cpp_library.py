"""The C library from Python, by ctypes: for `cpp_parity.py` and `cpp_latency.py`, which compare the two.

Both build it as the tests do, in build/cpp (CMake, a compiler, `make cpp-deps`).
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import ROOT
from numpy.typing import NDArray

BUILD = ROOT / "build" / "cpp"
LIBRARY = BUILD / "edgemed" / "libedgemed.so"
REFER = -1


class Options(ctypes.Structure):
    """The first fields of edgemed_options; those behind `threads` keep the library's defaults."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("runtime", ctypes.c_char_p),
        ("precision", ctypes.c_char_p),
        ("threads", ctypes.c_int),
    )


class Image(ctypes.Structure):
    """edgemed_image."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("stride", ctypes.c_ssize_t),
        ("format", ctypes.c_int),
    )


class Decision(ctypes.Structure):
    """edgemed_decision."""

    _fields_ = (
        ("label", ctypes.c_int),
        ("decision", ctypes.c_int),
        ("disagreement", ctypes.c_double),
        ("set_size", ctypes.c_int),
    )


class Outputs(ctypes.Structure):
    """edgemed_outputs."""

    _fields_ = (
        ("probabilities", ctypes.c_void_p),
        ("member_probabilities", ctypes.c_void_p),
        ("decisions", ctypes.c_void_p),
        ("prediction_sets", ctypes.c_void_p),
    )


class Answer(NamedTuple):
    """One image's answer. decision: a label or "refer"; kept: the labels of the prediction set, None without one."""

    probabilities: NDArray[np.float32]  # (K,)
    members: NDArray[np.float32]  # (M, K)
    decision: str
    disagreement: float
    kept: tuple[str, ...] | None


def build() -> None:
    """Bring build/cpp up to date."""
    configure = ["cmake", "-S", ROOT / "tests" / "cpp", "-B", BUILD, f"-DPython3_EXECUTABLE={sys.executable}"]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", BUILD, "--parallel", "2"], check=True, stdout=subprocess.DEVNULL)


class Model:
    """A bundle on OpenVINO through libedgemed."""

    def __init__(self, bundle: Path, threads: int) -> None:
        self._c = ctypes.CDLL(str(LIBRARY))
        self._c.edgemed_last_error.restype = ctypes.c_char_p
        self._c.edgemed_label.restype = ctypes.c_char_p
        self._c.edgemed_runtime_version.restype = ctypes.c_char_p
        self._handle = ctypes.c_void_p()
        options = Options()
        self._c.edgemed_options_init(ctypes.byref(options), ctypes.c_size_t(ctypes.sizeof(Options)))
        options.runtime, options.threads = b"openvino", threads
        self._check(self._c.edgemed_open(str(bundle).encode(), ctypes.byref(options), ctypes.byref(self._handle)))
        count, members = self._c.edgemed_label_count(self._handle), self._c.edgemed_member_count(self._handle)
        self.labels = tuple(self._c.edgemed_label(self._handle, k).decode() for k in range(count))
        self.version = self._c.edgemed_runtime_version(self._handle).decode()
        self._probabilities = np.zeros(count, np.float32)
        self._members = np.zeros((members, count), np.float32)
        self._sets = np.zeros(count, np.uint8)
        self._decision = Decision()
        self._outputs = Outputs(
            self._probabilities.ctypes.data,
            self._members.ctypes.data,
            ctypes.addressof(self._decision),
            self._sets.ctypes.data,
        )

    def request(self, pixels: NDArray[np.uint8]) -> Image:
        """What `run` takes for (H, W, 3) RGB, C-contiguous; the pixels must stay alive."""
        return Image(pixels.ctypes.data, *pixels.shape[:2], 0, 0)

    def run(self, image: Image) -> None:
        """The bare call, for timing."""
        self._check(self._c.edgemed_predict(self._handle, ctypes.byref(image), 1, ctypes.byref(self._outputs)))

    def predict(self, pixels: NDArray[np.uint8]) -> Answer:
        """The answer for (H, W, 3) RGB."""
        self.run(self.request(pixels))
        return self._answer()

    def predict_encoded(self, data: bytes) -> Answer:
        """The answer for a PNG or JPEG. ValueError where the library refuses it."""
        size = ctypes.c_size_t(len(data))
        self._check(self._c.edgemed_predict_encoded(self._handle, data, size, ctypes.byref(self._outputs)))
        return self._answer()

    def _answer(self) -> Answer:
        number, kept = self._decision.decision, None
        if self._decision.set_size >= 0:
            kept = tuple(name for name, inside in zip(self.labels, self._sets, strict=True) if inside)
        return Answer(
            self._probabilities.copy(),
            self._members.copy(),
            "refer" if number == REFER else self.labels[number],
            float(self._decision.disagreement),
            kept,
        )

    def _check(self, status: int) -> None:
        if status != 0:
            raise ValueError(self._c.edgemed_last_error().decode(errors="replace"))
