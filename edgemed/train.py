"""`edgemed train`: labelled images in, a run folder out: split, pretrain, fine-tune both, evaluate, report.

    edgemed train DATA --out RUN
    edgemed train DATA --out RUN --folds 5

Every stage writes its result in one piece and is skipped when that result is there: a killed command, run again, goes
on where it stopped, and a finished one does nothing.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from edgemed.calibrate import fitted_temperature
from edgemed.config import TrainConfig, derive_seed
from edgemed.dataset import (
    Dataset,
    DuplicatePair,
    fold_datasets,
    join_near_duplicates,
    read_split_csv,
    scan,
    split_dataset,
)
from edgemed.ensemble import Ensemble, predict_callable
from edgemed.errors import InputError
from edgemed.evaluate import evaluation, predict_files
from edgemed.examples import mask_examples
from edgemed.files import read_json, write_atomic, write_json
from edgemed.finetune import finetune, logits_of_files
from edgemed.loop import Progress, log, read_history
from edgemed.metrics import INTERVAL_METRICS
from edgemed.models import check_backbone, create_backbone, imagenet_state, load_backbone, normalisation
from edgemed.parallel import run_jobs
from edgemed.preprocess import FrontEnd
from edgemed.pretrain import pretrain
from edgemed.report import report_html
from edgemed.run import (
    MEMBERS,
    begin_run,
    predictions_csv,
    previous_run,
    read_predictions,
    require_same_settings,
    timed,
)


def train(config: TrainConfig, data: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Run every stage that is not done yet and return `metrics.json`.

    Raises:
        InputError: the data, a flag, or an `out` that holds something else; nothing is written then.
        EdgemedError: training failed; the message says on what, and the run resumes.
    """
    check_backbone(config.backbone)
    device = resolved_device(config.device)
    previous = previous_run(out)
    if previous is not None:
        require_same_settings(previous, config, out)
    dataset = scan(data, progress=lambda done, total: progress("scan images", done, total, ""))
    fingerprint = dataset.fingerprint()
    if previous is not None and previous["dataset"]["fingerprint"] != fingerprint:
        raise InputError(f"{data} has changed since {out} was begun; choose another --out, or delete {out}")
    if previous is not None:
        dataset = dataclasses.replace(
            read_split_csv(out / "split.csv", dataset.root), warnings=tuple(previous["dataset"]["warnings"])
        )
        pairs = [DuplicatePair(**pair) for pair in read_json(out / "duplicates.json")]
    else:
        dataset, pairs = join_near_duplicates(dataset)
        dataset = dataset if config.folds else split_dataset(dataset, config.split, config.seed)
    parts = fold_datasets(dataset, config.folds, config.seed, _validation_share(config)) if config.folds else []
    if previous is None:
        imagenet_state(config.backbone, Path(config.weights) if config.weights else None)  # or fail before writing
        write_json(out / "duplicates.json", [dataclasses.asdict(pair) for pair in pairs])
    begin_run(out, config, dataset, fingerprint, device)
    if not config.folds:
        return _train_one(config, dataset, out, device, pairs, progress)
    jobs = [(config, k, part, out, fingerprint, device, pairs) for k, part in enumerate(parts)]
    run_jobs(_train_fold, jobs, _folds_at_once(config, device), progress)
    if not (out / "metrics.json").exists():
        write_json(out / "metrics.json", _pooled_folds(config, dataset, out))
    metrics: dict[str, Any] = read_json(out / "metrics.json")
    if not (out / "report.html").exists():
        write_atomic(out / "report.html", _report(out, metrics, dataset, pairs, []))
    return metrics


def _folds_at_once(config: TrainConfig, device: str) -> int:
    """As many folds as the cores allow at --threads each; one at a time on a GPU, or where a fold takes all cores."""
    if device != "cpu" or not config.threads:
        return 1
    return min(config.folds, max(1, len(os.sched_getaffinity(0)) // config.threads))


def _train_fold(
    config: TrainConfig,
    k: int,
    part: Dataset,
    out: Path,
    fingerprint: str,
    device: str,
    pairs: list[DuplicatePair],
    progress: Progress,
) -> None:
    """Fold k as a run of its own, with a seed of its own."""
    folder = out / "folds" / str(k)
    own = dataclasses.replace(config, seed=derive_seed(config.seed, "fold", k))
    begin_run(folder, own, part, fingerprint, device)

    def named(stage: str, done: int, total: int, detail: str) -> None:
        progress(f"fold {k + 1}/{config.folds} {stage}", done, total, detail)

    _train_one(own, part, folder, device, pairs, named)


def resolved_device(device: str) -> str:
    """`auto` -> `cuda` where torch sees one, else `cpu`.

    Raises:
        InputError: a device that is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(f"--device '{device}': use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device}: torch sees no CUDA device here; use --device cpu, or check `nvidia-smi`")
    return device


def _validation_share(config: TrainConfig) -> float:
    """The part of a fold's training side that validates: as large, against training, as --split asks."""
    return config.split[1] / (config.split[0] + config.split[1])


def _train_one(
    config: TrainConfig, dataset: Dataset, out: Path, device: str, pairs: list[DuplicatePair], progress: Progress
) -> dict[str, Any]:
    """One split, from pretraining to the report."""
    torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    mae, training = out / "members" / "mae", dataset.subset("train")
    weights = Path(config.weights) if config.weights else None
    if not all((out / "members" / member / "model.safetensors").exists() for member in MEMBERS):
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
        write_atomic(out / "report.html", _report(out, metrics, dataset, pairs, examples))
    return metrics


def _member(
    config: TrainConfig, member: str, classes: int, state: dict[str, torch.Tensor], source: str, mae: Path
) -> torch.nn.Module:
    """A network with a new classifier on ImageNet's backbone, or on the pretrained encoder's."""
    torch.manual_seed(derive_seed(config.seed, "finetune", member, "init"))
    model = create_backbone(config.backbone, classes, config.drop_path)
    if member == "mae":
        state, source = load_file(mae / "pretrained.safetensors"), "masked pretraining"
    load_backbone(model, state, source)
    return model


def _evaluate(config: TrainConfig, dataset: Dataset, out: Path, progress: Progress) -> None:
    """Temperatures from validation, then predictions of validation and test through the exported module."""
    front = FrontEnd(config.size, *normalisation(config.backbone))
    members = [create_backbone(config.backbone, len(dataset.classes)) for _ in MEMBERS]
    for name, model in zip(MEMBERS, members, strict=True):
        model.load_state_dict(load_file(out / "members" / name / "model.safetensors"))
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


def _pooled_folds(config: TrainConfig, dataset: Dataset, out: Path) -> dict[str, Any]:
    """The out-of-fold predictions of all folds as one, and the mean and spread over the folds."""
    folds = [read_json(out / "folds" / str(k) / "metrics.json") for k in range(config.folds)]
    parts = [
        read_predictions(out / "folds" / str(k) / "predictions.csv", dataset.classes, "test")
        for k in range(config.folds)
    ]
    rows = [row for part, _ in parts for row in part]
    members = np.concatenate([probabilities for _, probabilities in parts])
    labels = [dataset.classes.index(row.label) for row in rows]
    pooled = evaluation(labels, members.mean(1), members, MEMBERS, [row.group for row in rows], dataset.classes)
    of_fold = {"ensemble": [fold["ensemble"] for fold in folds]}
    of_fold |= {member: [fold["members"][member] for fold in folds] for member in MEMBERS}
    summary = {
        name: {key: _spread([fold[key]["value"] for fold in of]) for key in INTERVAL_METRICS}
        for name, of in of_fold.items()
    }
    return {"schema": 1, "split": f"out of fold, {config.folds} folds"} | pooled | {"folds": summary}


def _spread(folds: list[float | None]) -> dict[str, Any]:
    """Mean and standard deviation over the folds where a metric is defined, and each fold's own value."""
    known = [value for value in folds if value is not None]
    mean = float(np.mean(known)) if known else None
    return {"mean": mean, "std": float(np.std(known, ddof=1)) if len(known) > 1 else None, "folds": folds}


def _report(
    out: Path, metrics: dict[str, Any], dataset: Dataset, pairs: list[DuplicatePair], examples: list[Any]
) -> str:
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
