"""The main job on phantoms, command by command, as a user would type it.

    make demo            (or: python benchmarks/demo.py build/demo)

The last line is one JSON document: accuracies, parity of the engine with PyTorch on the test images, and the latency.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgemed.errors import GateError

TRAIN = shlex.split(
    "--backbone tf_efficientnet_lite0 --size 96 --pretrain-size 128 --epochs 24 --pretrain-epochs 8 "
    "--learning-rate 1e-3 --layer-decay 0.9"
)


def edgemed(*arguments: str | Path, capture: bool = False, allowed: int = 0) -> subprocess.CompletedProcess[str]:
    """Run one command of edgemed, shown as it would be typed; stop the demo where it fails otherwise than allowed."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ edgemed {' '.join(words if len(words) < 20 else [*words[:6], '...', *words[-3:]])}", flush=True)
    command = [sys.executable, "-m", "edgemed", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True)
    if done.returncode not in (0, allowed):
        sys.exit(f"edgemed {words[0]} ended with exit code {done.returncode}")
    return done


def test_rows(run: Path) -> list[dict[str, str]]:
    """The test images of `predictions.csv`: path, label and each member's probabilities, as PyTorch gave them."""
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as handle:
        return [row for row in csv.DictReader(handle) if row["split"] == "test"]


def parity(rows: list[dict[str, str]], predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """The engine against PyTorch on the same files: largest difference of a probability, changed labels."""
    largest, flips = 0.0, 0
    for row, got in zip(rows, predictions, strict=True):
        labels = list(got["probabilities"])
        wanted = {label: sum(float(row[f"{member}:{label}"]) for member in got["members"]) / 2 for label in labels}
        largest = max(largest, *(abs(wanted[label] - got["probabilities"][label]) for label in labels))
        flips += max(wanted, key=wanted.__getitem__) != got["label"]
    return {"images": len(rows), "max_probability_error": largest, "decision_flips": flips}


def main() -> None:
    began = time.monotonic()
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo")
    data, run, bundle = root / "data", root / "run", root / "bundle"
    if not data.exists():
        edgemed("sample", data, "--per-class", "100", "--size", "160")
    edgemed("train", data, "--out", run, *TRAIN)
    shutil.rmtree(bundle, ignore_errors=True)
    if edgemed("build-engine", run, "--out", bundle, allowed=GateError.exit_code).returncode:
        print("the gate has refused the fp16 graph of this training: the fp32 graph alone is built", flush=True)
        edgemed("build-engine", run, "--out", bundle, "--precision", "fp32")
    rows = test_rows(run)
    files = [data / row["path"] for row in rows]
    edgemed("predict", bundle, *files[:5])
    predictions = json.loads(edgemed("predict", bundle, "--json", *files, capture=True).stdout)
    edgemed("bench", bundle, "--duration", "3", "--json", root / "bench.json")
    bench = json.loads((root / "bench.json").read_text(encoding="utf-8"))
    [runtime] = bench["runtimes"]
    [result] = runtime["results"]
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    accuracy = {name: values["accuracy"]["value"] for name, values in metrics["members"].items()}
    document = {
        "demo": "phantoms",
        "test_images": metrics["n"],
        "accuracy": {**accuracy, "ensemble": metrics["ensemble"]["accuracy"]["value"]},
        "parity": parity(rows, predictions),
        "latency_ms": {name: result["latency_ms"][name] for name in ("mean", "p50", "p90", "p99")},
        "throughput_images_per_s": result["throughput_images_per_s"],
        "runtime": {name: runtime[name] for name in ("name", "version", "threads")},
        "cores": len(os.sched_getaffinity(0)),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
