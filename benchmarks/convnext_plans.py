"""Two ConvNeXt-Tiny at 224 px, from a run of `edgemed train` to TensorRT-RTX plans: sizes, times, fp16's error.

    python benchmarks/convnext_plans.py DATA      # DATA: a folder per class; about ten minutes on two idle cores

ImageNet weights of ConvNeXt-Tiny need a network; seeded random ones stand in, with a layer scale of 0.3 so that every
block counts (timm's 1e-6 would leave an untrained network almost linear). A short run on 30 images of each class turns
them into an ensemble whose size, graph and arithmetic are the real ones; its accuracy, no point here, is not kept.
Then: fp32 and fp16 plans for five GPU generations, what is said of SM75, and fp16 with every operator rounded against
PyTorch in fp32 on 50 images (`fp16_rounding.py`). Resumable: all lies in build/convnext-plans. Exits with 1 where a bar
is missed.
"""

from __future__ import annotations

import csv
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import keep
from fp16_rounding import rounding

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "convnext-plans"
BACKBONE, PER_CLASS, LAYER_SCALE = "convnext_tiny", 30, 0.3
FLAGS = (
    f"--backbone {BACKBONE} --size 224 --pretrain-size 224 --split 0.34,0.33,0.33 --epochs 2 --warmup-epochs 1 "
    "--pretrain-epochs 1 --batch 6 --seed 0 --threads 1"
)
TARGETS = ("sm80", "sm86", "sm89", "sm120", "sm121")
SIZES = {"32 to 4096 px": (32, 512, 4096), "224 px only": (224, 224, 224)}
FP16_SECONDS, FP16_MB = 10, 130  # bars


def random_weights(file: Path) -> None:
    """Seeded random weights under timm's names."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = timm.create_model(BACKBONE, pretrained=False).state_dict()
    for name, value in state.items():
        if name.endswith(".gamma"):
            value.fill_(LAYER_SCALE)
    save_file(state, file)


def sample(data: Path, file: Path) -> None:
    """A CSV of `PER_CLASS` images of each class folder, drawn with a fixed seed."""
    rows = []
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
        rows += [(path, folder.name) for path in random.Random(0).sample(files, PER_CLASS)]
    with file.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("path", "label"), *rows])


def plans(bundle: Path) -> list[dict[str, Any]]:
    """Size in MB and seconds of each precision and range of sizes, all five targets in one plan.

    CPU seconds, of all threads together, bound the time on an idle machine; where other processes run, the time on the
    clock shows what they took.
    """
    from edgemed.bundle import open_bundle
    from edgemed.runtimes.tensorrt_builder import plan_from_onnx

    opened, found = open_bundle(bundle), []
    for precision in ("fp32", "fp16"):
        graph = opened.read_model(precision)
        for name, sides in SIZES.items():
            began, used = time.perf_counter(), time.process_time()
            record, plan = plan_from_onnx(
                graph, runtime="tensorrt-rtx", precision=precision, targets=TARGETS, image_size=sides
            )
            found.append(
                {
                    "precision": precision,
                    "image_sides": name,
                    "targets": list(record.targets),
                    "megabytes": round(len(plan) / 1e6, 1),
                    "onnx_megabytes": round(len(graph) / 1e6, 1),
                    "seconds": round(time.perf_counter() - began, 2),
                    "cpu_seconds": round(time.process_time() - used, 2),
                    "load_average": os.getloadavg()[0],
                    "state": "built, not executed",
                }
            )
            print(found[-1], file=sys.stderr)
    return found


def refusal_of_sm75(bundle: Path) -> str:
    """What `build-engine --targets sm75` says; exit code 2."""
    command = [sys.executable, "-m", "edgemed", "build-engine", str(bundle), "--runtime", "tensorrt-rtx"]
    done = subprocess.run([*command, "--targets", "sm75"], capture_output=True, text=True)
    if done.returncode != 2:
        sys.exit(f"sm75 was not refused: {done.stdout}{done.stderr}")
    return " ".join(done.stderr.split())


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    data, run, bundle = Path(sys.argv[1]).resolve(), WORK / "run", WORK / "bundle"
    WORK.mkdir(parents=True, exist_ok=True)
    weights, rows = WORK / "weights.safetensors", WORK / "data.csv"
    if not weights.exists():
        random_weights(weights)
    sample(data, rows)
    command = [sys.executable, "-m", "edgemed"]
    flags = [*shlex.split(FLAGS), "--weights", str(weights)]
    subprocess.run([*command, "train", str(rows), "--out", str(run), *flags], check=True)
    if not (bundle / "manifest.json").exists():
        subprocess.run([*command, "build-engine", str(run), "--out", str(bundle), "--runtime", "none"], check=True)
    built = plans(bundle)
    fp16 = [entry for entry in built if entry["precision"] == "fp16"]
    rounded = rounding(run)
    passed = rounded["passed"] and all(
        entry["cpu_seconds"] < FP16_SECONDS and entry["megabytes"] < FP16_MB for entry in fp16
    )
    keep(
        "convnext-plans",
        {
            "plans": built,
            "bars": {"fp16_cpu_seconds": FP16_SECONDS, "fp16_megabytes": FP16_MB},
            "sm75": refusal_of_sm75(bundle),
            "fp16_rounded": rounded,
            "passed": passed,
        },
    )
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
