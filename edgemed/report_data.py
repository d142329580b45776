"""Gathers from a run folder what its report shows, and from the data the images that are worth a look.

    edgemed train DATA --out RUN        # writes RUN/report.html
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemed.columns import SPLITS
from edgemed.config import TrainConfig
from edgemed.dataset import Dataset, DuplicatePair, read_split_csv
from edgemed.evaluate import Table
from edgemed.files import read_json
from edgemed.images import image_from_file
from edgemed.loop import read_history
from edgemed.predictions import MEMBERS, joined, read_table
from edgemed.report import report_html
from edgemed.report_evidence import Duplicate, Hard
from edgemed.report_examples import mask_examples
from edgemed.report_training import MaskExample
from edgemed.run import fold_folders, read_info

HARDEST, CONFLICTS, EXAMPLES = 12, 12, 6
"""So many pictures are shown of each at most; the tables are longer."""


def report_of_run(run: Path, metrics: dict[str, Any]) -> str:
    """The report of a run, of one of its folds, or of all of them; `metrics`: what metrics.json holds, or will.

    Raises:
        InputError: an image that it shows cannot be read.
    """
    info = read_info(run)
    config = TrainConfig.from_dict(info["config"])
    dataset = read_split_csv(run / "split.csv", Path(info["dataset"]["root"]))
    folded = "folds" in metrics
    runs = fold_folders(run, config.folds) if folded else [run]
    fold_table: dict[str, dict[str, int]] = {}
    for k, fold in enumerate(runs if folded else []):
        fold_table |= _split_table(read_split_csv(fold / "split.csv", dataset.root), f"fold {k + 1}, ")
    whole = run.resolve().parents[1] if config.folds and not folded else run  # a fold has no file of its own
    pairs = [DuplicatePair(**pair) for pair in read_json(whole / "duplicates.json")]
    test = joined([read_table(each, dataset.classes, "test") for each in runs])
    histories = {member: read_history(run / "members" / member / "history.jsonl") for member in MEMBERS}
    stages = {name: [row for row in rows if row["stage"] == "finetune"] for name, rows in histories.items()}
    stages["pretraining"] = [row for row in histories["mae"] if row["stage"] == "pretrain"]
    return report_html(
        info=info,
        metrics=metrics,
        histories=stages,
        split_table=_split_table(dataset),
        fold_table=fold_table,
        examples=[] if folded or not config.pretrain_epochs else _examples(config, dataset, run),
        test=test,
        hardest=_hardest(test, dataset),
        duplicates=_duplicates(pairs, dataset),
        warnings=_warnings([info, *(read_info(each) for each in runs if folded)]),
    )


def _warnings(infos: Sequence[dict[str, Any]]) -> list[str]:
    """Those of a run and of its folds, each once."""
    return list(dict.fromkeys(warning for info in infos for warning in info["dataset"]["warnings"]))


def _split_table(dataset: Dataset, name: str = "") -> dict[str, dict[str, int]]:
    """Images of each class in each split."""
    table: dict[str, dict[str, int]] = {}
    for split in sorted({row.split for row in dataset.rows}, key=("", *SPLITS).index):
        labels = [row.label for row in dataset.rows if row.split == split]
        table[f"{name}{split or 'all'}"] = {label: labels.count(label) for label in dataset.classes}
    return table


def _examples(config: TrainConfig, dataset: Dataset, run: Path) -> list[MaskExample]:
    training = dataset.subset("train")
    first = [training.file(next(row for row in training.rows if row.label == name)) for name in training.classes]
    return mask_examples(config, first[:EXAMPLES], run / "members" / "mae" / "pretrained.safetensors")


def _hardest(test: Table, dataset: Dataset) -> list[Hard]:
    shares = test.probabilities
    of_true = shares[np.arange(len(test.labels)), test.labels]
    return [
        Hard(
            picture=image_from_file(dataset.root / test.paths[k]),
            path=test.paths[k],
            label=dataset.classes[test.labels[k]],
            share=float(of_true[k]),
            decided=dataset.classes[int(shares[k].argmax())],
            share_of_decided=float(shares[k].max()),
        )
        for k in np.argsort(of_true, kind="stable")[:HARDEST].tolist()
    ]


def _duplicates(pairs: Sequence[DuplicatePair], dataset: Dataset) -> list[Duplicate]:
    paths = {row.path for row in dataset.rows}
    pairs = [pair for pair in pairs if {pair.a, pair.b} & paths]  # one may be left out for the other's split
    shown = sorted((pair for pair in pairs if pair.conflicting), key=lambda pair: -pair.correlation)[:CONFLICTS]
    return [
        Duplicate(
            **vars(pair),
            pictures=(image_from_file(dataset.root / pair.a), image_from_file(dataset.root / pair.b))
            if pair in shown
            else None,
        )
        for pair in pairs
    ]
