"""Five group-safe folds on real ultrasound images (BUSI), from the ImageNet wheel of tf_efficientnet_lite0.

    python benchmarks/busi_folds.py DATA          # DATA: the folder with benign/, malignant/, normal/; about an hour

Resumable: the run lies in build/busi, where busi_ablation.py goes on from it. Writes results/busi-folds.json.
The settings below were chosen on validation images only (the test folds were run once, with them frozen).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import ROOT, keep

ABLATION = Path("build") / "busi"
RUN = ABLATION / "cells" / "entropy-imagenet"
RECIPE = (
    "--backbone tf_efficientnet_lite0 --size 128 --pretrain-size 128 --epochs 20 --pretrain-epochs 6 --batch 16 "
    "--learning-rate 1e-3 --layer-decay 0.9 --freeze 2 --pretrain-learning-rate 2e-4 --drop-path 0.2 "
    "--class-weighting 0 --patience 20 --seed 0"
)
FLAGS = f"{RECIPE} --folds 5 --split 0.8,0.08,0.12 --calibration 0.1 --threads 1"


def summary(metrics: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the run: the figures by fold and pooled."""
    folds = metrics["folds"]
    return {
        "training": f"edgemed train DATA --out {RUN} {FLAGS}",
        "images": metrics["n"],
        "groups": metrics["groups"],
        "ensemble": folds["ensemble"],
        **{name: folds[name] for name in metrics["members"]},
        "pooled": {"ensemble": metrics["ensemble"], "members": metrics["members"]},
        "ensemble_minus_better": metrics["ensemble_minus_better"],
    }


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
    keep("busi-folds", summary(metrics))


if __name__ == "__main__":
    main()
