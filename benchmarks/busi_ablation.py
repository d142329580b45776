"""Does the masked pretraining add to a second seed? Members and ensembles of two on real ultrasound images (BUSI).

    python benchmarks/busi_ablation.py DATA [NAME [CELLS]]     # DATA: a folder per class, or a CSV

Five group-safe folds of `edgemed ablate`: masks by entropy, random, none, another seed. NAME, the result, says
the recipe: busi-ablation-folds that of busi_folds.py, 192 px, 40 epochs of pretraining, four hours on two cores;
busi-ablation (and -xeon, another machine) the one before, 128 px, 5 epochs, two hours. CELLS: of these, those wanted.
Resumable, in build/NAME. Writes results/NAME.json.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import busi_folds
from common import ROOT, keep

FLAGS = (
    "--backbone tf_efficientnet_lite0 --size 128 --pretrain-size 128 --epochs 20 --pretrain-epochs 5 --batch 16 "
    "--learning-rate 1e-3 --layer-decay 0.9 --freeze 2 --pretrain-learning-rate 2e-4 --drop-path 0.2 "
    "--class-weighting 0 --patience 20 --seed 0 --folds 5 --split 0.8,0.08,0.12 --calibration 0.1 --threads 1"
)
RECIPES = {"busi-ablation-folds": busi_folds.FLAGS, "busi-ablation": FLAGS, "busi-ablation-xeon": FLAGS}
CELLS = "entropy-imagenet,none-imagenet,random-imagenet,again-imagenet"
KEPT = ("name", "accuracy", "balanced_accuracy", "auroc", "ece", "accuracy_by_fold", "minus")


def summary(found: dict[str, Any], command: str) -> dict[str, Any]:
    """What is kept of `ablation.json`: each member and ensemble, the comparison chosen beforehand, the sentence."""
    rows = {kind: [{key: row[key] for key in KEPT} for row in found[kind]] for kind in ("members", "ensembles")}
    return {
        "training": f"edgemed ablate DATA {command}",
        **{key: found[key] for key in ("n", "groups", "folds", "cells", "not_run", "sentence", "claim")},
        **rows,
    }


def main() -> None:
    if not 2 <= len(sys.argv) <= 4 or (len(sys.argv) > 2 and sys.argv[2] not in RECIPES):
        sys.exit(__doc__)
    given = [str(Path(sys.argv[1]).resolve()), *sys.argv[2:]]
    data, name, cells = given + ["", "busi-ablation-folds", CELLS][len(given) :]
    out = Path("build") / name
    command = f"--out {out} --cells {cells} {RECIPES[name]}"
    subprocess.run([sys.executable, "-m", "edgemed", "ablate", data, *shlex.split(command)], cwd=ROOT, check=True)
    keep(name, summary(json.loads((ROOT / out / "ablation.json").read_text(encoding="utf-8")), command))


if __name__ == "__main__":
    main()
