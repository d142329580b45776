"""What a report is made of, made up, and a reader of its page: for the tests of the report."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np

from edgemed.curves import risk_coverage
from edgemed.evaluate import Table
from edgemed.metrics import metrics_with_intervals, paired_difference
from edgemed.report_evidence import Duplicate, Hard
from edgemed.report_training import MaskExample

CLASSES = ["benign", "malignant", "normal"]
EVIL = "<script>alert('x')</script>\"&<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Every tag with its attributes, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + "\n"


def answers(classes: list[str]) -> Table:
    """Two members' answers on 60 images in 30 groups."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % len(classes)
    members = []
    for strength in (2.0, 1.5):
        scores = rng.normal(size=(60, len(classes)))
        scores[np.arange(60), labels] += strength
        members.append(np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True))
    groups = tuple(f"g{k // 2}" for k in range(60))
    return Table(tuple(f"{k}.png" for k in range(60)), labels, groups, np.stack(members, axis=1).astype(np.float32))


def metrics_of(classes: list[str]) -> dict[str, Any]:
    table = answers(classes)
    labels, groups, ensemble = table.labels, table.groups, table.probabilities
    members = {"imagenet": table.members[:, 0], "mae": table.members[:, 1]}
    difference = paired_difference(labels, ensemble, members["imagenet"], groups)
    return {
        "schema": 1,
        "split": "test",
        "classes": classes,
        "n": 60,
        "groups": 30,
        "ensemble": metrics_with_intervals(labels, ensemble, groups, classes),
        "members": {
            name: metrics_with_intervals(labels, probabilities, groups, classes, resamples=50)
            for name, probabilities in members.items()
        },
        "ensemble_minus_better": {"better": "imagenet", **difference._asdict()},
        "comparisons": [
            {
                "a": "ensemble",
                "b": "mae",
                "accuracy": {"value": 0.0123, "low": -0.0341, "high": 0.0567},
                "auroc": {"value": -0.0234, "low": -0.0456, "high": 0.0678},
                "mcnemar": {"only_a": 1432, "only_b": 11, "p": 0.0314},
            }
        ],
        "temperatures": {"imagenet": 1.234, "mae": 0.876},
        "risk_coverage": risk_coverage(table),
        "operating": None,
    }


def arguments(classes: list[str] | None = None) -> dict[str, Any]:
    classes = classes or CLASSES
    rows = [
        {
            "epoch": k,
            "train_loss": 1 / k,
            "validation_loss": [0.9, 0.4321, 0.7][k - 1],
            "validation_accuracy": [0.5, 0.765, 0.7][k - 1],
            "kept": k < 3,
            "learning_rate": 1e-3,
        }
        for k in (1, 2, 3)
    ]
    image = np.full((64, 64, 3), 200, np.uint8)
    mask = np.array([[True, False], [False, False]])
    example = MaskExample(image, np.array([[1.25, 2.0], [3.0, 6.75]], np.float32), mask, image // 2)
    return {
        "info": {
            "schema": 1,
            "edgemed": "9.8.7",
            "config": {"backbone": "convnext_atto", "size": 96, "pretrain_size": 160, "mask_ratio": 0.55}
            | {"train_size": 0, "pretrain_epochs": 1, "seed": 4321},
            "dataset": {"root": "scans/breast", "fingerprint": "abc123", "classes": classes, "n": 1234, "groups": 567},
            "device": {"device": "cpu", "threads": 2},
            "versions": {"torch": "2.14.1", "timm": "1.0.31"},
            "durations": {"pretrain": 3725.0, "finetune mae": 62.0, "evaluate": 4.25},
        },
        "metrics": metrics_of(classes),
        "histories": {"imagenet": rows, "mae": rows, "pretraining": [{"epoch": 1, "loss": 0.8765}]},
        "split_table": {"train": dict.fromkeys(classes, 41), "test": dict.fromkeys(classes, 17)},
        "fold_table": {},
        "examples": [example],
        "test": answers(classes),
        "hardest": [Hard(image, "b/7.png", classes[0], 0.0123, classes[1], 0.9456)],
        "duplicates": [
            Duplicate("b/2.png", "b/3.png", classes[0], classes[0], 0.991),
            Duplicate("b/1.png", "m/1.png", classes[0], classes[1], 0.987, (image, image // 3)),
        ],
        "warnings": ["class malignant has few images"],
    }


def operating() -> dict[str, Any]:
    interval = {"value": 0.9123, "low": 0.8765, "high": 0.9432}
    return {
        "points": [{"images": 77, "threshold": 0.2345, "max_disagreement": 0.1357, "min_probability": 0.0579}],
        "wanted": {"answer": 0.85},
        "sets": {"stated": 0.9, "coverage": interval, "mean_size": 1.4321},
        "threshold": {
            "positive": "malignant",
            "target": "sensitivity",
            "target_value": 0.95,
            "sensitivity": interval | {"value": 0.9611},
            "specificity": interval | {"value": 0.7222},
        },
        "referral": {
            "answered": interval | {"value": 0.8444},
            "accuracy_of_answers": interval | {"value": 0.9333},
            "wrong_answers": interval | {"value": 0.0555},
        },
        "decisions": [[15, 3, 0, 2], [1, 18, 1, 0], [0, 0, 19, 1]],
    }
