"""One run, from pretraining to the report: each stage is skipped when its result is there.

`edgemed train DATA --out RUN` calls it once, with `--folds K` once for every fold.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from edgemed.calibrate import fitted_temperature
from edgemed.config import TrainConfig, derive_seed
from edgemed.dataset import Dataset, DuplicatePair
from edgemed.ensemble import Ensemble, predict_callable
from edgemed.errors import InputError
from edgemed.evaluate import evaluation, predict_files
from edgemed.examples import mask_examples
from edgemed.files import read_json, write_atomic, write_json
from edgemed.finetune import finetune, logits_of_files
from edgemed.loop import Progress, log, read_history
from edgemed.models import create_backbone, imagenet_state, load_backbone, normalisation
from edgemed.preprocess import FrontEnd
from edgemed.pretrain import pretrain
from edgemed.report import report_html
from edgemed.run import MEMBERS, predictions_csv, timed, trained_member


def train_one(
    config: TrainConfig, dataset: Dataset, out: Path, device: str, pairs: list[DuplicatePair], progress: Progress
) -> dict[str, Any]:
    """One split, from pretraining to the report; returns `metrics.json`.

    Raises:
        EdgemedError: training failed, or a file of an earlier call is damaged; the run resumes.
    """
    torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    mae, training = out / "members" / "mae", dataset.subset("train")
    weights = Path(config.weights) if config.weights else None
    if not all((out / "members" / member / "model.safetensors").exists() for member in MEMBERS):
        for folder in (out, *([out.parents[1]] if out.parent.name == "folds" else [])):
            for name in ("metrics.json", "predictions.csv", "report.html"):  # what older weights may have left
                (folder / name).unlink(missing_ok=True)
        state, source = imagenet_state(config.backbone, weights)
        log.info("ImageNet weights: %s", source)
        if not (mae / "pretrained.safetensors").exists():
            start = state if config.start == "imagenet" else None
            files = [training.file(row) for row in training.rows]
            timed(out, "pretrain", lambda: pretrain(config, files, start, source, mae, device, progress))
        for member in MEMBERS:
            folder = out / "members" / member
            if (folder / "model.safetensors").exists():
                continue
            model = _member(config, member, len(dataset.classes), state, source, mae)
            front = FrontEnd(config.size, *normalisation(config.backbone))
            timed(
                out,
                f"finetune {member}",
                lambda m=member, f=folder, net=model, fr=front: finetune(  # type: ignore[misc]
                    config, m, net, fr, dataset, f, device, progress
                ),
            )
    for leftover in out.glob("members/*/*.ckpt"):  # of a kill between a stage's result and its clean-up
        leftover.unlink()
    if not (out / "metrics.json").exists():
        timed(out, "evaluate", lambda: _evaluate(config, dataset, out, progress))
    metrics: dict[str, Any] = read_json(out / "metrics.json")
    if not (out / "report.html").exists():
        first = [next(training.file(row) for row in training.rows if row.label == name) for name in training.classes]
        examples = mask_examples(config, first[:6], mae / "pretrained.safetensors")
        write_atomic(out / "report.html", run_report(out, metrics, dataset, pairs, examples))
    return metrics


def _member(
    config: TrainConfig, member: str, classes: int, state: dict[str, torch.Tensor], source: str, mae: Path
) -> torch.nn.Module:
    """A network with a new classifier on ImageNet's backbone, or on the pretrained encoder's."""
    torch.manual_seed(derive_seed(config.seed, "finetune", member, "init"))
    model = create_backbone(config.backbone, classes, config.drop_path)
    if member == "mae":
        file = mae / "pretrained.safetensors"
        try:
            state, source = load_file(file), "masked pretraining"
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} is damaged; delete it and run the same command again") from error
    load_backbone(model, state, source)
    return model


def _evaluate(config: TrainConfig, dataset: Dataset, out: Path, progress: Progress) -> None:
    """Temperatures from validation, then predictions of validation and test through the exported module."""
    front = FrontEnd(config.size, *normalisation(config.backbone))
    members = [trained_member(out, name, config.backbone, len(dataset.classes)) for name in MEMBERS]
    validation = dataset.subset("validation")
    files = [validation.file(row) for row in validation.rows]
    temperatures = [
        fitted_temperature(logits_of_files(model, front, files, "cpu"), validation.labels) for model in members
    ]
    ensemble = Ensemble(front, members, temperatures).eval()
    results, predictions = {}, []
    for split in ("validation", "test"):
        part = dataset.subset(split)
        probabilities, of_members = predict_files(
            predict_callable(ensemble),
            [part.file(row) for row in part.rows],
            lambda done, total, split=split: progress(f"evaluate {split}", done, total, ""),  # type: ignore[misc]
        )
        groups = [row.group for row in part.rows]
        results[split] = evaluation(part.labels, probabilities, of_members, MEMBERS, groups, part.classes)
        predictions.append((part, of_members))
    write_atomic(out / "predictions.csv", predictions_csv(predictions))
    write_json(
        out / "metrics.json",
        {"schema": 1, "split": "test"}
        | results["test"]
        | {"temperatures": dict(zip(MEMBERS, temperatures, strict=True)), "validation": results["validation"]},
    )


def run_report(
    out: Path, metrics: dict[str, Any], dataset: Dataset, pairs: list[DuplicatePair], examples: list[Any]
) -> str:
    """`report.html` of a run or of a folded run."""
    histories = {member: read_history(out / "members" / member / "history.jsonl") for member in MEMBERS}
    stages = {name: [row for row in rows if row["stage"] == "finetune"] for name, rows in histories.items()}
    stages["pretraining"] = [row for row in histories["mae"] if row["stage"] == "pretrain"]
    table: dict[str, dict[str, int]] = {}
    for row in dataset.rows:
        counts = table.setdefault(row.split or "all", dict.fromkeys(dataset.classes, 0))
        counts[row.label] += 1
    return report_html(
        info=read_json(out / "run.json"),
        metrics=metrics,
        histories=stages,
        split_table=table,
        examples=examples,
        duplicates=[(pair.a, pair.b, pair.correlation, pair.conflicting) for pair in pairs],
        warnings=list(dataset.warnings),
    )
