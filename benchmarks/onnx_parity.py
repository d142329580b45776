"""The exported graphs against PyTorch on real endoscopy images (HyperKvasir): own sizes, 1080p, 4K and portrait.

    python benchmarks/onnx_parity.py DATA         # DATA: a folder per class; about ten minutes on two cores

Trains a small ensemble on DATA under build/onnx-parity, builds its bundle, and compares OpenVINO with PyTorch on the
same pixels: 200 images at their own sizes, 20 of them enlarged. The fp16 graph is executed in fp32 on a CPU: that shows
its wiring, not its rounding (`edgemed build-engine` checks the rounding apart). Exits with 1 where a bar is missed.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import ROOT, keep
from numpy.typing import NDArray
from PIL import Image

from edgemed.ensemble import predict_callable
from edgemed.gates import TIE_MARGINS, compare
from edgemed.images import image_from_file
from edgemed.infer import load
from edgemed.run import load_run

WORK = ROOT / "build" / "onnx-parity"
FLAGS = "--backbone tf_efficientnet_lite0 --size 128 --pretrain-size 128 --epochs 3 --pretrain-epochs 1"
LARGE = {"1080p": (1920, 1080), "4K": (3840, 2160), "portrait": (1080, 1920)}  # width, height
BARS = {"fp32": 1e-3, "fp16": 5e-3}
IMAGES, ENLARGED = 200, 20


def pixels(files: list[Path]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """(kind of size, uint8 (H, W, 3)) of every comparison."""
    for number, file in enumerate(files):
        image = image_from_file(file)
        yield "own size", image
        if number % (IMAGES // ENLARGED) == 0:
            for kind, size in LARGE.items():
                yield kind, np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def trained_bundle(data: Path) -> tuple[Path, Path]:
    """A run on `data`, made once and resumed, and a bundle of it, built by the edgemed that is here now."""
    run, bundle = WORK / "run", WORK / "bundle"
    command = [sys.executable, "-m", "edgemed"]
    subprocess.run([*command, "train", str(data), "--out", str(run), *shlex.split(FLAGS)], check=True)
    shutil.rmtree(bundle, ignore_errors=True)
    subprocess.run([*command, "build-engine", str(run), "--out", str(bundle), "--runtime", "none"], check=True)
    return run, bundle


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run, bundle = trained_bundle(Path(sys.argv[1]).resolve())
    trained = load_run(run)
    parts = [trained.dataset.subset(split) for split in ("test", "validation")]
    files = [part.file(row) for part in parts for row in part.rows]
    chosen = np.random.default_rng(0).permutation(len(files))[:IMAGES]
    torch_predict = predict_callable(trained.ensemble)
    engines = {precision: load(bundle, runtime="openvino", precision=precision) for precision in BARS}
    reference: list[NDArray[np.float32]] = []
    answers: dict[str, list[NDArray[np.float32]]] = {precision: [] for precision in BARS}
    kinds: list[str] = []
    for kind, image in pixels([files[k] for k in chosen]):
        kinds.append(kind)
        reference.append(torch_predict(image)[0])
        for precision, engine in engines.items():
            answers[precision].append(engine.predict_pixels(image[None])[0][0])
    document: dict[str, object] = {"runtime": f"openvino {engines['fp32'].session.version}"}
    missed = False
    for precision, bar in BARS.items():
        of_kind = {}
        for kind in dict.fromkeys(kinds):
            rows = [k for k, name in enumerate(kinds) if name == kind]
            result = compare(
                np.stack([reference[k] for k in rows]),
                np.stack([answers[precision][k] for k in rows]),
                tie_margin=TIE_MARGINS[precision],
            )
            of_kind[kind] = {"images": result.n, "max_prob_error": result.max_prob_error, "flips": len(result.flips)}
            missed |= result.max_prob_error > bar or len(result.flips) > 0
        document[precision] = {"bar": bar, **of_kind}
    keep("onnx-parity", document)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
