"""Five group-safe folds on real ultrasound images (BUSI), from the ImageNet wheel of tf_efficientnet_lite0.

    python benchmarks/busi_folds.py DATA          # DATA: the folder with benign/, malignant/, normal/; about an hour

Resumable: the run lies in build/busi, where busi_ablation.py goes on from it. Writes results/busi-folds.json.
The settings were chosen on validation images only, then frozen, then the test folds were run. Seven variants on one
inner split (100 images of fold 0's training side; accuracy, log loss): 160 px, batch 32, 20 epochs: 0.83, 0.479; that
with batch 16: 0.84, 0.433; and with mixup 0.3: 0.78, 0.529; 192 px: 0.87, 0.427; 128 px, 30 epochs: 0.87, 0.405; 20
epochs, for two thirds of the time: 0.82, 0.438 (taken); that with nothing frozen: 0.82, 0.532. An earlier recipe (160
px, nothing frozen, no calibration split) had been run on the same folds before: accuracy 0.790, AUROC 0.909.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import ROOT, bars, keep

ABLATION = Path("build") / "busi"
RUN = ABLATION / "cells" / "entropy-imagenet"
RECIPE = (
    "--backbone tf_efficientnet_lite0 --size 128 --pretrain-size 128 --epochs 20 --pretrain-epochs 5 --batch 16 "
    "--learning-rate 1e-3 --layer-decay 0.9 --freeze 2 --pretrain-learning-rate 2e-4 --drop-path 0.2 "
    "--class-weighting 0 --patience 20 --seed 0"
)
FLAGS = f"{RECIPE} --folds 5 --split 0.8,0.08,0.12 --calibration 0.1 --threads 1"


def summary(metrics: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the run: the figures by fold and pooled."""
    folds, minus = metrics["folds"], metrics["ensemble_minus_better"]
    asked = {"ensemble's mean accuracy": (folds["ensemble"]["accuracy"]["mean"], 0.86),
             "lower bound of ensemble minus better member": (minus["low"], -0.02)}  # fmt: skip
    return {
        "training": f"edgemed train DATA --out {RUN} {FLAGS}",
        "images": metrics["n"],
        "groups": metrics["groups"],
        "ensemble": folds["ensemble"],
        **{name: folds[name] for name in metrics["members"]},
        "pooled": {"ensemble": metrics["ensemble"], "members": metrics["members"]},
        "ensemble_minus_better": minus,
        "sets": metrics["operating"]["sets"],
        "bars": bars(asked),
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
