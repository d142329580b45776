"""What image size and pretraining of busi_folds.py were chosen by: members trained and validated without a test image.

    python benchmarks/busi_inner.py DATA          # DATA: a folder per class, or a CSV; an hour

The images on fold 0's training side are split anew into five group-safe folds, of which the first two validate every
variant. They are test images of folds 1 to 4: only fold 0 is untouched by the choice. Resumable, in build/busi-inner;
names of variants behind DATA train these alone. Writes results/busi-inner.json.

Three more variants of the ImageNet member were tried on the same images and dropped (log loss, accuracy): crops of
160 px for 192 px (--train-size 160) 0.476, 0.865; crops of 192 px for 224 px 0.451, 0.875; --random-erasing 0.25 0.436,
0.845. That was in another training, where 192 px had 0.438, 0.855. One of 60 epochs was begun and stopped after 15.

On the first three of the five, 300 images, with seeds of their own, the recipe's ImageNet member later had 0.496 and
0.830; the mean with its answers to the mirrored image 0.483 and 0.833. Dropped too, beside the recipe on the same
images: 60 epochs with --mixup 0.2 --random-erasing 0.25 (two folds) 0.466 and 0.845, the recipe 0.491 and 0.850, a
difference of -0.026 with a standard error of 0.032; fine-tuned on 2,200 phantoms first (one fold) 0.558 and 0.790, the
recipe 0.537 and 0.860; batch statistics kept as they are (one fold, stopped after nine epochs), behind by 0.1 in both.

In a plain training loop of its own, to see whether ours costs accuracy: untuned (128 px, 20 epochs, nothing frozen,
crops of 0.7 to 1, the last epoch) 0.629 and 0.799 on all five folds. There, sharpness-aware minimisation (Foret et al.
2021, radius 0.05; twice the time) had 0.448 and 0.835 on four of the five, and the recipe without it 0.481 and 0.835.

Batch norms whose last statistics are of whole training images in place of crops, which have more black (no weight
changed): on the 450 validation and calibration images of the five test folds, the finished members had (before, after)
imagenet 0.505, 0.811 and 0.502, 0.820; mae 0.516, 0.780 and 0.481, 0.820; another seed 0.532, 0.802 and 0.516, 0.807;
imagenet and mae together 0.478, 0.818 and 0.458, 0.831, a difference in accuracy of +0.013 (-0.013 to +0.040); the two
ImageNet members 0.490, 0.824 and 0.484, 0.809. On 351 images of HyperKvasir the ensemble had 0.263, 0.960 and 0.276,
0.943. It helps one member and harms another: dropped.

Dropped last, on all five folds, 498 images, by our loop: crops of 0.6 to 1 of the area, which keep the lesion, in place
of 0.3 to 1: 0.510 and 0.815, the recipe 0.529 and 0.807, a difference of -0.019 with a standard error of 0.023. Both
are wrong on the same 13 % of the images.

Both of these together, on all five folds by edgemed itself, with the recipe's seeds (--sam 0.05 --crop-area 0.6): 0.484
and 0.827, where the recipe had 0.529 and 0.807. Taken, for BUSI trained once first (data_sets.py); the test folds have
not been measured with it.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from busi_folds import FLAGS
from busi_leak import config
from common import ROOT, keep

from edgemed.config import TrainConfig, derive_seed
from edgemed.dataset import Dataset, fold_datasets, join_near_duplicates, scan
from edgemed.files import write_json
from edgemed.finetune import finetune, logits_of_files
from edgemed.models import imagenet_state, normalisation
from edgemed.preprocess import FrontEnd
from edgemed.pretrain import pretrain
from edgemed.run import trained_member
from edgemed.stages import new_member
from edgemed.train import fold_parts

FOLDS, VALIDATED = 5, 2
OUT = ROOT / "build" / "busi-inner"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "128 px": ("imagenet", {"size": 128}),
    "192 px": ("imagenet", {"size": 192}),
    "192 px, 5 epochs of masked pretraining": ("mae", {"pretrain_epochs": 5}),
    "192 px, 40 epochs of masked pretraining": ("mae", {"pretrain_epochs": 40}),
}


def inner_folds(dataset: Dataset) -> list[Dataset]:
    """The first folds of what fold 0 trains on: training images and, as validation, what would test."""
    outer = fold_parts(config(FLAGS), dataset)[0]
    rows = tuple(replace(row, split="") for row in outer.rows if row.split != "test")
    parts = fold_datasets(replace(outer, rows=rows), FOLDS, derive_seed(0, "inner"))[:VALIDATED]
    split = {"test": "validation", "validation": "train", "train": "train"}
    return [replace(part, rows=tuple(replace(row, split=split[row.split]) for row in part.rows)) for part in parts]


def validated(own: TrainConfig, member: str, part: Dataset, folder: Path) -> dict[str, Any]:
    """Log loss and rightness of each validation image, by the member that is trained unless it is there."""
    result, mae = folder / "validation.json", folder / "members" / "mae"
    if not result.exists():
        front = FrontEnd(own.size, *normalisation(own.backbone))
        progress = partial(print, folder.relative_to(OUT), flush=True)
        state, source = imagenet_state(own.backbone, None)
        if member == "mae" and not (mae / "pretrained.safetensors").exists():
            training = part.subset("train")
            pretrain(own, training.files, state, source, mae, "cpu", progress)
        if not (folder / "members" / member / "model.safetensors").exists():
            model = new_member(own, member, len(part.classes), state, source, mae)
            finetune(own, member, model, front, part, folder / "members" / member, "cpu", progress)
        trained = trained_member(folder, member, own.backbone, len(part.classes))
        validation = part.subset("validation")
        labels, logits = torch.tensor(validation.labels), logits_of_files(trained, front, validation.files, "cpu")
        losses = F.cross_entropy(logits, labels, reduction="none")
        write_json(result, {"loss": losses.tolist(), "right": (logits.argmax(1) == labels).tolist()})
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dataset, _ = join_near_duplicates(scan(Path(sys.argv[1]).resolve()))
    rows = {}
    for name in sys.argv[2:] or VARIANTS:
        member, changes = VARIANTS[name]
        loss, right = [], []
        for k, part in enumerate(inner_folds(dataset)):
            own = replace(config(FLAGS), **changes, seed=derive_seed(0, "inner", k))
            settings = zlib.crc32(json.dumps(own.as_dict()).encode())
            found = validated(own, member, part, OUT / f"{member}-{k}-{settings:08x}")
            loss += found["loss"]
            right += found["right"]
        means = {"accuracy": sum(right) / len(right), "log_loss": sum(loss) / len(loss)}
        rows[name] = {"member": member, "settings": changes, "images": len(right), **means}
        print(name, rows[name], flush=True)
    if not sys.argv[2:]:
        training = f"one member of each: edgemed train DATA --out RUN {FLAGS}"
        keep("busi-inner", {"training": training, "variants": rows})


if __name__ == "__main__":
    main()
