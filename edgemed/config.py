"""The settings of a training run: one frozen dataclass, validated where it is made.

The method's paper (Florindo and Moura 2026, arXiv 2605.21970) does not publish its mask ratio, entropy formula, epochs
or split. Every default below is edgemed's own choice.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemed.errors import InputError, did_you_mean, flag

UNIT = 32
"""Side of a mask unit in pixels: the deepest stride of the supported networks."""

STARTS = ("imagenet", "scratch")
LOADERS = ("auto", "dali", "torch")


@dataclass(frozen=True)
class TrainConfig:
    """What `edgemed train` does. Sizes in pixels, rates per step, durations in epochs."""

    backbone: str = "convnext_tiny"
    size: int = 224
    train_size: int = 0
    pretrain_size: int = 224
    start: str = "imagenet"
    weights: str | None = None
    split: tuple[float, float, float] = (0.7, 0.15, 0.15)
    calibration: float = 0.0
    folds: int = 0
    epochs: int = 30
    pretrain_epochs: int = 30
    batch: int = 32
    learning_rate: float = 5e-4
    pretrain_learning_rate: float = 3e-4
    layer_decay: float = 0.75
    freeze: int = 0
    weight_decay: float = 0.05
    warmup_epochs: int = 2
    drop_path: float = 0.1
    label_smoothing: float = 0.1
    class_weighting: float = 0.5
    mixup: float = 0.0
    sam: float = 0.0
    ema_decay: float = 0.99
    crop_area: float = 0.3
    vertical_flip: bool = False
    quarter_turns: bool = False
    random_erasing: float = 0.0
    patience: int = 10
    mask_ratio: float = 0.6
    sharpness: float = 1.0
    entropy_patch: int = 16
    renyi_order: float = 1.0
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    loader: str = "auto"
    accumulate: int = 1
    amp: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        for name, lowest in (("size", UNIT), ("train_size", 0), ("pretrain_size", 2 * UNIT)):
            value = getattr(self, name)
            if value % UNIT or value < lowest:
                near = max(lowest, round(value / UNIT) * UNIT)
                raise InputError(f"{flag(name)} {value} must be a multiple of {UNIT}, at least {lowest}; try {near}")
        if self.start not in STARTS:
            raise InputError(f"--start '{self.start}' is unknown.{did_you_mean(self.start, STARTS)}")
        if self.loader not in LOADERS:
            raise InputError(f"--loader '{self.loader}' is unknown.{did_you_mean(self.loader, LOADERS)}")
        if len(self.split) != 3 or not (min(self.split) > 0 and abs(sum(self.split) - 1) < 1e-6):
            raise InputError(f"--split needs three positive parts that sum to 1, like 0.7,0.15,0.15; got {self.split}")
        if self.folds < 0 or self.folds == 1:
            raise InputError(f"--folds {self.folds}: use at least 2 folds, or leave the flag out for one split")
        if self.entropy_patch not in (8, 16, 32):
            raise InputError(f"--entropy-patch {self.entropy_patch}: use 8, 16 or 32")
        if self.renyi_order != 1 and abs(self.renyi_order - 1) < 0.01:
            raise InputError(f"--renyi-order {self.renyi_order} is too near to 1; use 1 itself, which is Shannon's")
        for name, low, high in (
            ("pretrain_size", 2 * UNIT, 2048),
            ("calibration", 0.0, 0.5),
            ("mask_ratio", 0.0, 1.0),
            ("sharpness", -1e6, 1e6),
            ("renyi_order", 0.01, 100.0),
            ("weight_decay", 0.0, 1.0),
            ("mixup", 0.0, 10.0),
            ("sam", 0.0, 10.0),
            ("crop_area", 0.01, 1.0),
            ("random_erasing", 0.0, 1.0),
            ("label_smoothing", 0.0, 0.5),
            ("class_weighting", 0.0, 1.0),
            ("ema_decay", 0.0, 0.99999),
            ("drop_path", 0.0, 0.9),
            ("layer_decay", 0.1, 1.0),
            ("freeze", 0, 100),
            ("learning_rate", 1e-7, 1.0),
            ("pretrain_learning_rate", 1e-7, 1.0),
            ("epochs", 1, 100_000),
            ("pretrain_epochs", 0, 100_000),
            ("warmup_epochs", 0, 100_000),
            ("batch", 2, 65_536),
            ("patience", 1, 100_000),
            ("threads", 0, 4096),
            ("accumulate", 1, 32_768),
            ("seed", 0, 2**63 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{flag(name)} {getattr(self, name)} is outside {low} to {high}")
        if self.freeze and self.start == "scratch" and not self.pretrain_epochs:
            raise InputError(
                f"--freeze {self.freeze} with --start scratch and --pretrain-epochs 0 would keep random weights; "
                "leave out --freeze"
            )
        if self.batch < 2 * self.accumulate:
            raise InputError(
                f"--accumulate {self.accumulate} leaves less than 2 of the --batch {self.batch} images for a part; "
                f"try --accumulate {self.batch // 2}"
            )
        units = (self.pretrain_size // UNIT) ** 2
        if not 1 <= round(self.mask_ratio * units) < units:
            raise InputError(
                f"--mask-ratio {self.mask_ratio} removes {round(self.mask_ratio * units)} of the {units} units of "
                f"--pretrain-size {self.pretrain_size}; some must be removed and some stay: try 0.6, or a larger size"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `run.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """What `as_dict` gave, read back from JSON. A setting that is younger than the run has its default.

        Raises:
            InputError: a setting that only a newer edgemed knows.
        """
        if unknown := values.keys() - {field.name for field in dataclasses.fields(cls)}:
            raise InputError(f"the run has the setting '{min(unknown)}', which this edgemed does not know; update it")
        return cls(**{**values, "split": tuple(values.get("split", cls.split))})


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed of its own for each stage, member or epoch: `derive_seed(0, "finetune", "mae", 3)`."""
    words = [zlib.crc32(str(name).encode()) for name in names]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> np.uint64(1))
