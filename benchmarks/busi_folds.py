"""Five group-safe folds on real ultrasound images (BUSI), from the ImageNet wheel of tf_efficientnet_lite0.

    python benchmarks/busi_folds.py DATA          # DATA: the folder with benign/, malignant/, normal/; about an hour

Resumable: the run lies in build/busi-folds. Writes benchmarks/results/busi-folds.json and prints it as the last line.
The settings below were chosen on validation images only (the test folds were run once, with them frozen).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RUN = Path("build") / "busi-folds"
FLAGS = (
    "--backbone tf_efficientnet_lite0 --folds 5 --seed 0 --size 160 --pretrain-size 160 --epochs 22 "
    "--pretrain-epochs 10 --learning-rate 1e-3 --layer-decay 0.9 --pretrain-learning-rate 2e-4 --drop-path 0.2 "
    "--class-weighting 0 --threads 1"
)


def summary(metrics: dict[str, Any], info: dict[str, Any], command: str) -> dict[str, Any]:
    """What is kept of the run: the figures by fold and pooled, with the command, machine and versions."""
    folds = metrics["folds"]
    return {
        "benchmark": "busi-folds",
        "command": command,
        "date": date.today().isoformat(),
        "machine": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores",
        "versions": info["versions"],
        "images": metrics["n"],
        "groups": metrics["groups"],
        "ensemble": folds["ensemble"],
        **{name: folds[name] for name in metrics["members"]},
        "pooled": {"ensemble": metrics["ensemble"], "members": metrics["members"]},
        "ensemble_minus_better": metrics["ensemble_minus_better"],
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    data = str(Path(sys.argv[1]).resolve())
    subprocess.run(
        [sys.executable, "-m", "edgemed", "train", data, "--out", str(RUN), *shlex.split(FLAGS)],
        cwd=ROOT,
        check=True,
    )
    metrics = json.loads((ROOT / RUN / "metrics.json").read_text(encoding="utf-8"))
    info = json.loads((ROOT / RUN / "run.json").read_text(encoding="utf-8"))
    document = summary(metrics, info, f"edgemed train DATA --out {RUN} {FLAGS}")
    result = ROOT / "benchmarks" / "results" / "busi-folds.json"
    result.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
