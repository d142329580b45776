"""What near-duplicates across a split do to accuracy: one ImageNet member, three ways to group real images (BUSI).

    python benchmarks/busi_leak.py DATA           # DATA: a folder per class, or a CSV; an hour

The recipe, seed and five folds of `busi_ablation.py DATA busi-ablation`, whose own ImageNet members are the last way:
run it first, the whole of it, since it writes a result of its own.
Each way hides from the split what it does not call a copy, and every test image is then asked, by edgemed's finder,
whether a copy of it was trained on. Resumable: it lies in build/busi-leak. Writes results/busi-leak.json.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import torch
from busi_ablation import FLAGS
from common import ROOT, keep
from PIL import Image

from edgemed.config import TrainConfig, derive_seed
from edgemed.dataset import Dataset, join_near_duplicates, scan
from edgemed.duplicates import merged_groups
from edgemed.finetune import finetune, logits_of_files
from edgemed.models import imagenet_state, normalisation
from edgemed.preprocess import FrontEnd
from edgemed.run import trained_member
from edgemed.stages import new_member
from edgemed.train import fold_parts

MEMBER, BITS = "imagenet", 2
ABLATION = "busi-ablation"
RUN = Path("build") / ABLATION / "cells" / "entropy-imagenet"
Pairs = Sequence[tuple[int, int]]


def config(flags: str) -> TrainConfig:
    """The settings that a script's flags ask for."""
    words = shlex.split(flags)
    given: dict[str, Any] = {}
    for name, text in zip(words[::2], words[1::2], strict=True):
        key = name[2:].replace("-", "_")
        kind = type(getattr(TrainConfig(), key))
        given[key] = tuple(map(float, text.split(","))) if kind is tuple else kind(text)
    return TrainConfig(**given)


def hash_pairs(dataset: Dataset) -> list[tuple[int, int]]:
    """Images whose 64-bit perceptual hashes differ in at most `BITS` bits."""
    hashes = np.stack([imagehash.phash(Image.open(file).convert("L")).hash.ravel() for file in dataset.files])
    near = (hashes[:, None] != hashes[None]).sum(-1) <= BITS
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(near, k=1)), strict=True)]


def fold(own: TrainConfig, part: Dataset, folder: Path) -> torch.Tensor:
    """Whether each test image is classified rightly, bool (N,), by the member that is trained unless it is there."""
    front = FrontEnd(own.size, *normalisation(own.backbone))
    trained = folder / "members" / MEMBER
    if not (trained / "model.safetensors").exists():
        model = new_member(own, MEMBER, len(part.classes), *imagenet_state(own.backbone, None), folder)
        finetune(own, MEMBER, model, front, part, trained, "cpu", lambda *step: print(folder, *step, flush=True))
    member = trained_member(folder, MEMBER, own.backbone, len(part.classes))
    test = part.subset("test")
    return logits_of_files(member, front, test.files, "cpu").argmax(1) == torch.tensor(test.labels)


def measured(settings: TrainConfig, dataset: Dataset, copies: Pairs, out: Path) -> dict[str, Any]:
    """Accuracy over five folds of the dataset's groups, and apart for images with a copy in training and without."""
    at = {row.path: k for k, row in enumerate(dataset.rows)}
    of: dict[int, set[int]] = {k: set() for k in at.values()}
    for i, j in copies:
        of[i].add(j)
        of[j].add(i)
    accuracies, rights, leaked = [], [], []
    for k, part in enumerate(fold_parts(settings, dataset)):
        own = replace(settings, seed=derive_seed(settings.seed, "fold", k))
        right = fold(own, part, out / "folds" / str(k)).tolist()
        training = {at[row.path] for row in part.subset("train").rows}
        accuracies.append(float(np.mean(right)))
        rights += right
        leaked += [bool(of[at[row.path]] & training) for row in part.subset("test").rows]
    right, copied = np.array(rights), np.array(leaked)
    apart = {
        name: {"images": int(chosen.sum()), "accuracy": float(right[chosen].mean()) if chosen.any() else None}
        for name, chosen in (("with a copy in training", copied), ("without one", ~copied))
    }
    return {"accuracy": {"mean": float(np.mean(accuracies)), "folds": accuracies}, **apart}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if not (ROOT / RUN / "metrics.json").exists():
        sys.exit(f"{RUN} is not there; run `python benchmarks/busi_ablation.py DATA {ABLATION}` first, the whole of it")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    settings, alone = config(FLAGS), scan(Path(sys.argv[1]).resolve())
    joined, pairs = join_near_duplicates(alone)
    at = {row.path: k for k, row in enumerate(alone.rows)}
    copies = [(at[pair.a], at[pair.b]) for pair in pairs]
    near = hash_pairs(alone)
    groups = merged_groups(alone.groups, near)
    hashed = replace(alone, rows=tuple(replace(row, group=g) for row, g in zip(alone.rows, groups, strict=True)))
    rows = {}
    for name, dataset, known, out in (
        (f"perceptual hashes within {BITS} bits", hashed, near, ROOT / "build" / "busi-leak" / "hash"),
        ("none: every image by itself", alone, [], ROOT / "build" / "busi-leak" / "none"),
        ("edgemed's finder", joined, copies, ROOT / RUN),
    ):
        rows[name] = {"pairs": len(known), **measured(settings, dataset, copies, out)}
        keep("busi-leak", {"recipe": f"the ImageNet member of: edgemed train DATA --out RUN {FLAGS}", "groups": rows})


if __name__ == "__main__":
    main()
