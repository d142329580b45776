"""Does the masked pretraining add to a second seed? Members and ensembles of two on real ultrasound images (BUSI).

    python benchmarks/busi_ablation.py DATA [CELLS [NAME]]     # DATA: a folder per class, or a CSV

Five group-safe folds of `edgemed ablate`: masks by entropy, random, none, another seed; all with the recipe that
busi_folds.py had before, at 128 px for 20 epochs; 2 hours on two cores. CELLS: of these, those wanted. Resumable: it
lies in build/busi. Writes results/NAME.json (busi-ablation).
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
FLAGS = (
    "--backbone tf_efficientnet_lite0 --size 128 --pretrain-size 128 --epochs 20 --pretrain-epochs 5 --batch 16 "
    "--learning-rate 1e-3 --layer-decay 0.9 --freeze 2 --pretrain-learning-rate 2e-4 --drop-path 0.2 "
    "--class-weighting 0 --patience 20 --seed 0 --folds 5 --split 0.8,0.08,0.12 --calibration 0.1 --threads 1"
)
CELLS = "entropy-imagenet,none-imagenet,random-imagenet,again-imagenet"
KEPT = ("name", "accuracy", "balanced_accuracy", "auroc", "ece", "accuracy_by_fold", "minus")


def summary(found: dict[str, Any], cells: str) -> dict[str, Any]:
    """What is kept of `ablation.json`: each member and ensemble, the comparison chosen beforehand, the sentence."""
    rows = {kind: [{key: row[key] for key in KEPT} for row in found[kind]] for kind in ("members", "ensembles")}
    return {
        "training": f"edgemed ablate DATA --out {ABLATION} --cells {cells} {FLAGS}",
        **{key: found[key] for key in ("n", "groups", "folds", "cells", "not_run", "sentence", "claim")},
        **rows,
    }


def main() -> None:
    if len(sys.argv) not in (2, 3, 4):
        sys.exit(__doc__)
    given = [str(Path(sys.argv[1]).resolve()), *sys.argv[2:]]
    data, cells, name = given + ["", CELLS, "busi-ablation"][len(given) :]
    command = ["ablate", data, "--out", str(ABLATION), "--cells", cells, *shlex.split(FLAGS)]
    subprocess.run([sys.executable, "-m", "edgemed", *command], cwd=ROOT, check=True)
    keep(name, summary(json.loads((ROOT / ABLATION / "ablation.json").read_text(encoding="utf-8")), cells))


if __name__ == "__main__":
    main()
