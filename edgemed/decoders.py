"""The decoders that people use elsewhere, with their plain calls, to be compared with `images.py`. No torch.

Why: a service around edgemed, or a colleague's script, may decode by Pillow's `convert("RGB")`, OpenCV's `imdecode` or
DALI's `decoders.image`. `edgemed parity BUNDLE DATA` shows what that changes. Each package is imported only when asked.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgemed import dicom
from edgemed.errors import one_line
from edgemed.images import MODES_16, Rgb, decodes_alike

Decode = Callable[[bytes], "Rgb | None"]
"""An encoded file -> its pixels (H, W, 3) uint8 RGB, or None where this decoder cannot read it."""

PLAIN = "plain"  # upright 8-bit grey or RGB, JPEG or PNG, without transparency: nothing for a rule to decide
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, LookupError)


def plain_decoders() -> tuple[dict[str, Decode], dict[str, dict[str, Any]]]:
    """The plain decoders that are installed, by name; and of each its version, or why it is not run."""
    decode: dict[str, Decode] = {}
    told: dict[str, dict[str, Any]] = {}
    for name, package, opened in (
        ("Pillow", "pillow", _pillow),
        ("OpenCV", "opencv-python-headless", _opencv),
        ("DALI", "nvidia-dali-cuda130", _dali),
    ):
        try:
            version, decode[name] = opened()
            told[name] = {"version": version, "not_run": None}
        except ModuleNotFoundError:
            told[name] = {"version": None, "not_run": f"not installed (pip install {package})"}
        except (ImportError, OSError, RuntimeError) as error:
            told[name] = {"version": None, "not_run": f"{package} does not load: {one_line(error)}"}
    return decode, told


def _pillow() -> tuple[str, Decode]:
    import PIL
    from PIL import Image

    def decode(data: bytes) -> Rgb | None:
        try:
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(image.convert("RGB"))
        except _PILLOW_ERRORS:
            return None

    return PIL.__version__, decode


def _opencv() -> tuple[str, Decode]:
    import cv2

    def decode(data: bytes) -> Rgb | None:
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            return None
        return None if image is None else np.ascontiguousarray(image[:, :, ::-1])

    return str(cv2.__version__), decode


def _dali() -> tuple[str, Decode]:
    import nvidia.dali
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        encoded = fn.external_source(name="encoded", ndim=1, dtype=types.UINT8)
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB)

    built: list[Any] = []

    def decode(data: bytes) -> Rgb | None:
        if not built:
            built.append(pipeline())
            built[0].build()
        try:
            (output,) = built[0].run(encoded=[np.frombuffer(data, np.uint8)])
            return np.array(output[0])
        except RuntimeError:
            built.clear()  # DALI calls a pipeline that failed invalid
            return None

    return str(nvidia.dali.__version__), decode


def kind_of(file: Path) -> str:
    """`PLAIN`, or by which rule of `images.py` the file is read, like "16 bit" or "orientation"."""
    from PIL import ExifTags, Image

    path, _ = dicom.frame_of(file)
    if dicom.is_dicom(path.read_bytes()):
        return "DICOM"
    if decodes_alike(path):
        return PLAIN
    with Image.open(path) as image:
        raw = str(image.tile[0].args) if image.tile else ""
        found = [
            name
            for name, holds in {
                "16 bit": image.mode in MODES_16 or "16" in raw,
                "transparency": image.has_transparency_data,
                "orientation": image.getexif().get(ExifTags.Base.Orientation, 1) != 1,
                "palette": image.mode in ("P", "PA"),
                image.mode: image.mode in ("CMYK", "YCbCr"),
                "fewer than 8 bits": image.mode == "1" or ";4" in raw or ";2" in raw,
            }.items()
            if holds
        ]
        return ", ".join(found) or f"other {image.format}"
