"""Images per second for training: edgemed's DALI loader against a torch DataLoader with two workers, on real JPEGs.

    python benchmarks/loading.py DATA [ROUNDS]      # DATA: a folder per class; default 8 epochs of each; minutes

Both decode, crop, resize to 224 pixels, flip, turn, and change brightness and contrast, in batches of 32 on two CPU
threads or workers. The DataLoader is what a user would write: Pillow and torchvision's transforms, workers that stay
alive. Without augmentation both have to give the same pixels before anything is timed. Then epochs of the two are
timed in turn. Exits with 1 where DALI is less than 1.1 times as fast.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import keep
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from edgemed.conditions import changes, machine, snapshot, warnings
from edgemed.dataset import scan
from edgemed.loader import Augment, open_loader
from edgemed.timing import interleaved, percentile, ratio_interval

BAR, SIZE, BATCH, WORKERS, FILES = 1.1, 224, 32, 2, 1024
LEVELS = 1.0  # grey levels that plain resizes may differ by in the mean: filters treat the border differently

PLAIN = v2.Compose([v2.Resize((SIZE, SIZE)), v2.PILToTensor()])
AUGMENTED = v2.Compose(
    [
        v2.RandomResizedCrop(SIZE, scale=(0.6, 1.0), ratio=(0.8, 1.25)),
        v2.RandomHorizontalFlip(),
        v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR),
        v2.ColorJitter(brightness=0.2, contrast=0.2),
        v2.PILToTensor(),
    ]
)


class Files(Dataset[tuple[torch.Tensor, int]]):
    """What a user would write."""

    def __init__(self, files: list[Path], labels: list[int], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files, self.labels, self.transform = files, labels, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB")), self.labels[index]


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    rounds = int(sys.argv[2]) if len(sys.argv) == 3 else 8
    dataset = scan(Path(sys.argv[1]).resolve())
    chosen = torch.randperm(len(dataset.rows), generator=torch.Generator().manual_seed(0))[:FILES].tolist()
    files = [dataset.files[k] for k in chosen]
    labels = [dataset.classes.index(dataset.rows[k].label) for k in chosen]

    # Workers are forked before DALI's threads start.
    of_torch = DataLoader(
        Files(files, labels, AUGMENTED), BATCH, shuffle=True, drop_last=True, num_workers=WORKERS,
        persistent_workers=True,
    )  # fmt: skip
    sum(1 for _ in of_torch)
    plain = Files(files[:BATCH], labels[:BATCH], PLAIN)
    wanted = torch.stack([plain[k][0] for k in range(BATCH)]).permute(0, 2, 3, 1)
    check = open_loader(files[:BATCH], labels[:BATCH], size=SIZE, batch=BATCH, augment=None, seed=0, backend="dali")
    (got,) = check.epoch(0)
    error = float((got.images.float() - wanted.float()).abs().mean())
    if error > LEVELS or got.labels.tolist() != labels[:BATCH]:
        sys.exit(f"the loaders' pixels differ by {error:.2f} grey levels in the mean: nothing to time")

    of_dali = open_loader(
        files, labels, size=SIZE, batch=BATCH, augment=Augment(), seed=0, backend="dali", threads=WORKERS
    )
    epochs = iter(range(10_000))
    seen = {"dali": 0, "torch": 0}

    def dali() -> None:
        seen["dali"] += sum(len(batch.images) for batch in of_dali.epoch(next(epochs)))

    def loader() -> None:
        seen["torch"] += sum(len(images) for images, _ in of_torch)

    before = snapshot()
    times = interleaved({"dali": dali, "torch": loader}, rounds, warmup=1)
    conditions = changes(before, snapshot())
    assert seen["dali"] == seen["torch"], seen
    images = seen["dali"] // (rounds + 1)
    ratio = ratio_interval(times["torch"], times["dali"], paired=True)
    document: dict[str, Any] = {
        "data": dataset.root.name,
        "images_per_epoch": images,
        "epochs": rounds,
        "size": SIZE,
        "batch": BATCH,
        "workers": WORKERS,
        "dali": of_dali.reason,
        "mean_difference_levels": error,
        "images_per_s": {name: images / percentile(samples, 50) * 1e3 for name, samples in times.items()},
        "epoch_ms": times,
        "dali_times_torch": {**ratio.as_dict(), "bar": BAR},
        "conditions": conditions,
        "warnings": warnings(machine(), conditions),
    }
    keep("loading", document)
    sys.exit(0 if ratio.value >= BAR else 1)


if __name__ == "__main__":
    main()
