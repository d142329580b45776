"""One model per data set, trained once by one `edgemed train` command with a fixed seed, on its own held-out images.

    python benchmarks/data_sets.py DATA [NAME ...]      # DATA: the folder with busi/, ham10000/, hyperkvasir5/, ...

Resumable: the runs lie in build/data-sets. Skin images (ham10000) are split by lesion: the CSV that is written for them
names it as the group. Writes results/data-sets.json, which keeps the figures of the sets that were not asked for.
"""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from busi_folds import RECIPE
from common import RESULTS, ROOT, bars, commit, keep

RUNS = Path("build") / "data-sets"
SMALL = "--backbone tf_efficientnet_lite0 --size 128 --pretrain-size 128 --epochs 6 --pretrain-epochs 2 --batch 16 " \
        "--learning-rate 1e-3 --layer-decay 0.9 --freeze 2 --calibration 0.1 --seed 0"  # fmt: skip
FLAGS = {
    "busi": f"{RECIPE} --calibration 0.1",
    "ham10000": "--backbone tf_efficientnet_lite0 --size 128 --pretrain-size 128 --epochs 8 --pretrain-epochs 2 "
    "--learning-rate 1e-3 --layer-decay 0.9 --freeze 2 --calibration 0.1 --vertical-flip --seed 0",
    "hyperkvasir5": SMALL,
    "chest_xray": SMALL,
}
AIMS = {
    "busi": {"accuracy": 0.88, "auroc": 0.96},
    "ham10000": {"accuracy": 0.80, "balanced_accuracy": 0.70},
}


def lesions(source: Path, target: Path) -> Path:
    """A CSV path,label,group of HAM10000's images; the group is the lesion."""
    with (source / "HAM10000_metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "group"))
        for row in rows:
            writer.writerow((source / row["dx"] / f"{row['image_id']}.jpg", row["dx"], row["lesion_id"]))
    return target


def train(folder: Path, name: str) -> dict[str, Any]:
    """The figures of one data set, from its run."""
    began = time.monotonic()
    data = folder / name
    if name == "ham10000":
        data = lesions(data, ROOT / RUNS / "ham10000.csv")
    run = ROOT / RUNS / name
    command = ["train", str(data), "--out", str(run), *shlex.split(FLAGS[name])]
    subprocess.run([sys.executable, "-m", "edgemed", *command], cwd=ROOT, check=True)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    operating = metrics.get("operating") or {}
    return {
        "training": f"edgemed train {'CSV' if name == 'ham10000' else 'DATA'} --out RUN {FLAGS[name]}",
        "minutes": (time.monotonic() - began) / 60,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        **{key: metrics[key] for key in ("split", "n", "groups", "ensemble", "members", "ensemble_minus_better")},
        "folds": metrics.get("folds"),
        "sets": operating.get("sets"),
        "bars": bars({key: (metrics["ensemble"][key]["value"], aim) for key, aim in AIMS.get(name, {}).items()}),
    }


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder, names = Path(sys.argv[1]).resolve(), sys.argv[2:] or list(FLAGS)
    kept = RESULTS / "data-sets.json"
    sets = json.loads(kept.read_text(encoding="utf-8"))["sets"] if kept.exists() else {}
    for name in names:
        sets[name] = train(folder, name)
    keep("data-sets", {"sets": sets})


if __name__ == "__main__":
    main()
