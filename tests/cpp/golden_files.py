"""The golden files of the C++ tests: bundles, images, and the answers that Python's engine gives for them.

CTest runs it before the tests; by hand: python tests/cpp/golden_files.py build/cpp/data. What is there and of this
version is kept; delete the folder, or raise VERSION, to have it written again.

    cases.json      {"version", "cases": [{"bundle", "images": [{"file", "format", "height", "width", "stride"}], or
                    "encoded", "probabilities" [N][K], "members" [N][M][K], "decisions", "disagreements", "sets",
                    "entropy" [N][E][E] or null each}]}
    bundle/ point/  a tiny bundle, and one with an operating point and the output entropy: ONNX for OpenVINO, and a plan
                    for the stub module
    *.raw *.png *.jpg
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_bundles as tiny

import edgemed
from edgemed.bundle import Bundle
from edgemed.files import write_json
from edgemed.images import image_from_pixels
from edgemed.infer import Model, Prediction
from edgemed.manifest import OperatingPoint, sha256_of
from edgemed.pack import add_plan, write_bundle
from edgemed.records import PlanRecord

VERSION = 3
STUB_PLAN = b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]) + bytes(100)
POINT = OperatingPoint(
    images=100,
    positive="malignant",
    threshold=0.52,
    target="sensitivity",
    target_value=0.95,
    max_disagreement=0.47,
    coverage=0.9,
    min_probability=0.4,
)
CHANNELS = {"RGB": 3, "BGR": 3, "RGBA": 4, "GRAY8": 1}


def with_plan(bundle: Bundle) -> Path:
    """The folder of the bundle, after it got a plan that the stub module takes."""
    record: dict[str, Any] = {
        "id": "stub",
        "created": "2026-01-01T00:00:00Z",
        "onnx_sha256": bundle.manifest.files["model.fp32.onnx"].sha256,
        "precision": "fp32",
        "runtime": "tensorrt-rtx",
        "version": "1.7.1.116",
        "targets": ("sm86",),
        "os": "Linux",
        "architecture": platform.machine(),
        "batch": (1, 1, 16),
        "image_side": (16, 48, 512),
        "sha256": sha256_of(STUB_PLAN),
        "bytes": len(STUB_PLAN),
        "state": "built",
    }
    add_plan(bundle, PlanRecord.model_validate(record), STUB_PLAN)
    return bundle.path


def pixels(seed: int, form: str, height: int, width: int) -> NDArray[np.uint8]:
    """An image as a caller might hold it: noise on one of eight colours, so that every decision comes up."""
    base = np.array([215 * (seed >> k & 1) for k in range(3)])
    rgb = (base + np.random.default_rng(seed).integers(0, 40, (height, width, 3))).astype(np.uint8)
    if form == "GRAY8":
        return rgb[:, :, 0]
    if form == "RGBA":
        alpha = np.random.default_rng(seed).integers(0, 256, (height, width, 1), np.uint8)
        return np.concatenate([rgb, alpha], axis=2)
    return rgb


def answers(found: list[Prediction]) -> dict[str, Any]:
    return {
        "probabilities": [list(one.probabilities.values()) for one in found],
        "members": [[list(shares.values()) for shares in one.members.values()] for one in found],
        "decisions": [one.decision for one in found],
        "disagreements": [one.disagreement for one in found],
        "sets": [None if one.prediction_set is None else list(one.prediction_set) for one in found],
        "entropy": [one.entropy for one in found],
    }


def raw_case(out: Path, model: Model, name: str, form: str, sides: tuple[int, int], n: int, pad: int) -> dict[str, Any]:
    """n images from memory, each row followed by `pad` bytes that belong to nobody (negative: bottom-up as well)."""
    height, width = sides
    images, entries = [], []
    for k in range(n):
        array = pixels(100 * n + k, form, height, width)
        images.append(image_from_pixels(array, form))  # type: ignore[arg-type]
        rows = np.ascontiguousarray(array).reshape(height, -1)
        stored = np.full((height, rows.shape[1] + abs(pad)), 77, np.uint8)
        stored[:, : rows.shape[1]] = rows[::-1] if pad < 0 else rows
        file = f"{name}-{k}.raw"
        (out / file).write_bytes(stored.tobytes())
        stride = 0 if pad == 0 else stored.shape[1] * (1 if pad > 0 else -1)
        entries.append({"file": file, "format": form, "height": height, "width": width, "stride": stride})
    found = [model(image) for image in images] if n == 1 else model(images, batch=n)
    return {"name": name, "bundle": model.bundle.path.name, "images": entries, **answers(list(found))}


def encoded_case(out: Path, model: Model, name: str, image: NDArray[np.uint8], **options: Any) -> dict[str, Any]:
    Image.fromarray(image).save(out / name, **options)
    data = (out / name).read_bytes()
    return {"name": name, "bundle": model.bundle.path.name, "encoded": name, **answers([model(data)])}


def write(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    plain = edgemed.load(with_plan(tiny.bundle(out / "bundle")), runtime="openvino", threads=1)
    fields = tiny.entropy_fields() | {"operating_point": POINT}
    point = edgemed.load(with_plan(write_bundle(out / "point", **fields)), runtime="openvino", threads=1)
    cases = []
    for form in CHANNELS:
        cases.append(raw_case(out, plain, f"{form}-packed", form, (40, 56), 1, 0))
        cases.append(raw_case(out, plain, f"{form}-padded", form, (17, 301), 1, 13))
        cases.append(raw_case(out, plain, f"{form}-bottom-up", form, (128, 16), 1, -5))
        cases.append(raw_case(out, plain, f"{form}-batch", form, (24, 32), 3, 2))
    cases.append(raw_case(out, plain, "largest", "RGB", (512, 512), 1, 0))
    cases += [raw_case(out, point, f"decision-{n}", "RGB", (16 + n, 40), n, 0) for n in range(1, 13)]
    cases.append(encoded_case(out, plain, "rgb.png", tiny.image(1, 60, 33)))
    cases.append(encoded_case(out, plain, "grey.png", tiny.image(2, 60, 33)[:, :, 0]))
    cases.append(encoded_case(out, point, "grey.jpg", tiny.image(3, 64, 64)[:, :, 0], quality=95))
    write_json(out / "cases.json", {"version": VERSION, "cases": cases})


def main() -> None:
    out = Path(sys.argv[1]).resolve()
    try:
        current = json.loads((out / "cases.json").read_text())["version"] == VERSION
    except (OSError, ValueError, KeyError):
        current = False
    if not current:
        write(out)


if __name__ == "__main__":
    main()
