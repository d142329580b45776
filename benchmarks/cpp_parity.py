"""The C library against Python on 200 real images, both on OpenVINO: the same pixels, then each with its own decoder.

    python benchmarks/cpp_parity.py BUNDLE DATA        # DATA: a folder of images, at any depth; minutes on two cores

The bundle is copied and given an operating point half-way through its answers, so that thresholds, referrals and
prediction sets all occur. Bars: 1e-6 in every probability and every decision alike, from the same pixels. What another
decoder does to the pixels and to the answers is measured apart. Exits with 1 where a bar is missed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import keep
from cpp_library import BUILD, Answer, Model, build
from numpy.typing import NDArray

import edgemed
from edgemed.bundle import open_bundle
from edgemed.images import image_from_file
from edgemed.infer import Prediction
from edgemed.manifest import OperatingPoint
from edgemed.pack import write_bundle

IMAGES, BAR = 200, 1e-6
SUFFIXES = {".png", ".jpg", ".jpeg"}


def chosen_files(data: Path) -> list[Path]:
    """IMAGES files, drawn evenly from the folders just below `data`."""
    draw = np.random.default_rng(0)
    folders = [
        sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) for folder in sorted(data.iterdir())
    ]
    folders = [files for files in folders if files]
    share = [files[k] for files in folders for k in draw.permutation(len(files))[: IMAGES // len(folders)]]
    return sorted(share)


def with_operating_point(source: Path, out: Path, files: list[Path]) -> Path:
    """A copy of the bundle that decides by thresholds that lie in the middle of these images' answers."""
    bundle = open_bundle(source)
    plain = edgemed.load(bundle, runtime="openvino")
    answers = [plain(path) for path in files[::8]]
    positive = bundle.manifest.labels[0]
    point = OperatingPoint(
        images=len(answers),
        positive=positive,
        threshold=float(np.median([one.probabilities[positive] for one in answers])),
        target="sensitivity",
        target_value=0.5,
        max_disagreement=float(np.quantile([one.disagreement for one in answers], 0.8)),
        coverage=0.9,
        min_probability=float(np.median([value for one in answers for value in one.probabilities.values()])),
    )
    names = ("backbone", "labels", "member_names", "temperatures", "size", "flops", "weight_bytes", "entropy")
    fields: dict[str, Any] = {name: getattr(bundle.manifest, name) for name in names}
    contents = {name: bundle.read(name) for name in bundle.manifest.files}
    write_bundle(out, **fields, image_input=bundle.manifest.input, files=contents, operating_point=point)
    return out


def difference(python: Prediction, c: Answer) -> tuple[float, bool]:
    """(largest difference of a probability, whether label, decision and prediction set are the same)."""
    mean = np.array(list(python.probabilities.values()))
    members = np.array([list(shares.values()) for shares in python.members.values()])
    largest = max(np.abs(mean - c.probabilities).max(), np.abs(members - c.members).max())
    alike = python.decision == c.decision and python.prediction_set == c.kept
    return float(max(largest, abs(python.disagreement - c.disagreement))), alike


def decoded(path: Path, folder: Path) -> NDArray[np.uint8]:
    """The pixels that the C library decodes."""
    copy = folder / "image"
    copy.write_bytes(path.read_bytes())
    subprocess.run([BUILD / "probe", "decode", copy], check=True, stdout=subprocess.DEVNULL)
    header, _, body = copy.with_name("image.rgb").read_bytes().partition(b"\n")
    height, width = map(int, header.split())
    return np.frombuffer(body, np.uint8).reshape(height, width, 3)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    build()
    files = chosen_files(Path(sys.argv[2]).resolve())
    same, own, pixel_errors, refused, decisions = [], [], [], [], dict[str, int]()
    with tempfile.TemporaryDirectory() as work:
        bundle = with_operating_point(Path(sys.argv[1]), Path(work) / "bundle", files)
        python, c = edgemed.load(bundle, runtime="openvino", threads=2), Model(bundle, threads=2)
        for path in files:
            pixels = image_from_file(path)
            expected = python(pixels)
            decisions[expected.decision] = decisions.get(expected.decision, 0) + 1
            same.append(difference(expected, c.predict(pixels)))
            try:
                own.append(difference(expected, c.predict_encoded(path.read_bytes())))
            except ValueError as error:
                refused.append(str(error))
                continue
            pixel_errors.append(int(np.abs(decoded(path, Path(work)).astype(int) - pixels).max()))
    document: dict[str, Any] = {
        "runtime": f"openvino {c.version}",
        "images": len(files),
        "decisions": dict(sorted(decisions.items())),
        "same_pixels": {
            "bar": BAR,
            "max_error": max(error for error, _ in same),
            "other_decisions": sum(not alike for _, alike in same),
        },
        "own_decoders": {
            "images": len(own),
            "files_with_other_pixels": sum(error > 0 for error in pixel_errors),
            "max_pixel_error": max(pixel_errors, default=None),
            "max_prob_error": max((error for error, _ in own), default=None),
            "other_decisions": sum(not alike for _, alike in own),
            "refused": sorted(set(refused)),
            "images_refused": len(refused),
        },
    }
    keep("cpp-parity", document)
    found = document["same_pixels"]
    sys.exit(1 if found["max_error"] > BAR or found["other_decisions"] else 0)


if __name__ == "__main__":
    main()
