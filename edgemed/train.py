"""`edgemed train`: labelled images in, a run folder out: split, pretrain, fine-tune both, evaluate, report.

    edgemed train DATA --out RUN
    edgemed train DATA --out RUN --folds 5
    torchrun --nproc-per-node 2 -m edgemed train DATA --out RUN        (several processes or GPUs; --batch is shared)

Every stage writes its result in one piece and is skipped when that result is there: a killed command, run again, goes
on where it stopped, and a finished one does nothing.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgemed.config import TrainConfig, derive_seed
from edgemed.dataset import (
    Dataset,
    fold_datasets,
    join_near_duplicates,
    read_split_csv,
    scan,
    split_dataset,
)
from edgemed.distributed import batch_of_rank
from edgemed.errors import InputError
from edgemed.evaluate import evaluation
from edgemed.files import held_alone, read_json, write_atomic, write_json
from edgemed.loader import check_backend
from edgemed.loop import log
from edgemed.metrics import INTERVAL_METRICS
from edgemed.models import check_backbone, create_backbone, freeze_stages, imagenet_state, load_backbone, weights_digest
from edgemed.operating_quality import require_judged, selective_metrics
from edgemed.parallel import folds_at_once, gpus_of, run_jobs
from edgemed.predictions import MEMBERS, joined, read_table
from edgemed.progress import Progress, counted
from edgemed.report_data import report_of_run
from edgemed.run import (
    METRICS_SCHEMA,
    begin_run,
    evaluated,
    fold_folders,
    note_root,
    previous_run,
    read_metrics,
    require_same_settings,
    require_same_weights,
)
from edgemed.stages import train_one
from edgemed.temperatures import with_calibration


@dataclass(frozen=True)
class Begun:
    """A run whose `run.json` and `split.csv` are written: what its stages need."""

    dataset: Dataset
    parts: tuple[Dataset, ...]  # the folds; none without --folds
    fingerprint: str
    device: str
    weights: dict[str, str]


def train(config: TrainConfig, data: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Run every stage that is not done yet and return `metrics.json`.

    Raises:
        InputError: the data, a flag, or an `out` that holds something else; nothing is written then.
        EdgemedError: training failed; the message says on what, and the run resumes.
    """
    return trained(config, begun(config, data, out, progress), out, progress)


def begun(config: TrainConfig, data: Path, out: Path, progress: Progress, last: str = "report.html") -> Begun:
    """Check everything, scan and split the data, and write what marks `out` as a run; or take up an earlier one.

    `last`: the file that ends it; where it is there, the ImageNet weights are not looked for, unless `--weights` names
    another file than before.

    Raises:
        InputError: the data, a flag, or an `out` that holds something else; nothing is written then.
    """
    check_backbone(config.backbone)
    device = resolved_device(config.device)
    if config.compile and device == "cpu" and not (out / last).exists():
        raise InputError("--compile is for a GPU: on a CPU it gains nothing and needs a compiler; leave it out")
    check_backend(config.loader)
    batch_of_rank(config.batch)
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise InputError(f"--out {out} lies inside of {data}, and would be scanned as a class; choose another folder")
    if data.is_file() and data.resolve().parent == out.resolve():
        raise InputError(f"--out {out} is the folder of {data}, which holds something else; choose another folder")
    previous = previous_run(out)
    if previous is not None:
        require_same_settings(previous, config, out)
    if config.weights and not (out / last).exists() and not Path(config.weights).is_file():
        raise InputError(f"--weights {config.weights}: no such file")
    dataset = scan(data, progress=counted(progress, "scan images"))
    fingerprint = dataset.fingerprint()
    if previous is not None and previous["dataset"]["fingerprint"] != fingerprint:
        raise InputError(
            f"{data} has changed since {out} was begun, or edgemed {previous['edgemed']} named its files otherwise; "
            f"choose another --out, or delete {out}"
        )
    root = dataset.root
    if previous is not None:
        dataset = dataclasses.replace(
            read_split_csv(out / "split.csv", dataset.root), warnings=tuple(previous["dataset"]["warnings"])
        )
    else:
        dataset, pairs = join_near_duplicates(dataset)
        dataset = dataset if config.folds else _split(config, dataset)
    parts = fold_parts(config, dataset) if config.folds else []
    for warning in dict.fromkeys(warning for part in (dataset, *parts) for warning in part.warnings):
        log.warning("%s", warning)
    if not (out / last).exists() or (previous and previous["config"]["weights"] != config.weights):
        weights = _weights(config, previous, out)
    with held_alone(out):
        if previous is None and (out / "run.json").exists():
            raise InputError(f"another edgemed has begun a run in {out} meanwhile; choose another --out")
        if previous is None:
            write_json(out / "duplicates.json", [dataclasses.asdict(pair) for pair in pairs])
            begin_run(out, config, dataset, fingerprint, device, weights)
        else:
            note_root(out, root)
    return Begun(dataset, tuple(parts), fingerprint, device, read_json(out / "run.json")["weights"])


def trained(config: TrainConfig, run: Begun, out: Path, progress: Progress) -> dict[str, Any]:
    """Every stage of the run in `out` that is not done yet, on the split or folds of `run`; returns `metrics.json`.

    Raises:
        InputError: another command is training there.
        EdgemedError: training failed.
    """
    with held_alone(out):
        return _trained(config, run, out, progress)


def _trained(config: TrainConfig, run: Begun, out: Path, progress: Progress) -> dict[str, Any]:
    if not run.parts:
        return train_one(config, run.dataset, out, run.device, progress)
    gpus = gpus_of(run.device)[: config.folds]
    at_once, threads = folds_at_once(config, run.device, gpus, run.dataset.files)
    own = dataclasses.replace(config, threads=threads)
    jobs = [(own, k, part, out, run.fingerprint, run.device, run.weights) for k, part in enumerate(run.parts)]
    run_jobs(_train_fold, jobs, at_once, progress, gpus)
    if not evaluated(out):
        (out / "report.html").unlink(missing_ok=True)
        write_json(out / "metrics.json", _pooled_folds(config, run.dataset, out))
    metrics = read_metrics(out)
    if not (out / "report.html").exists():
        require_judged(out, fold_folders(out, config.folds), metrics)
        write_atomic(out / "report.html", report_of_run(out, metrics))
    return metrics


def _split(config: TrainConfig, dataset: Dataset) -> Dataset:
    if dataset.subset("validation").rows and tuple(config.split) != TrainConfig().split:
        raise InputError("the data come with a split of their own; leave out --split, or drop their column")
    parts = split_dataset(dataset, config.split, config.seed)
    return with_calibration(parts, config.calibration, derive_seed(config.seed, "calibration"))


def fold_parts(config: TrainConfig, dataset: Dataset) -> list[Dataset]:
    """The data set of each fold, with its test, validation, training and, where asked for, calibration images."""
    parts = fold_datasets(dataset, config.folds, config.seed, _validation_share(config))
    seeds = [derive_seed(config.seed, "calibration", k) for k in range(config.folds)]
    return [with_calibration(part, config.calibration, seed) for part, seed in zip(parts, seeds, strict=True)]


def _train_fold(
    config: TrainConfig,
    k: int,
    part: Dataset,
    out: Path,
    fingerprint: str,
    device: str,
    weights: dict[str, str],
    progress: Progress,
) -> None:
    """Fold k as a run of its own, with a seed of its own."""
    folder = fold_folders(out, config.folds)[k]
    own = dataclasses.replace(config, seed=derive_seed(config.seed, "fold", k))
    begin_run(folder, own, part, fingerprint, device, weights)
    begun_on = read_split_csv(folder / "split.csv", part.root).rows
    same = [(row.path, row.split) for row in begun_on] == [(row.path, row.split) for row in part.rows]
    if not same and not (folder / "report.html").exists():
        raise InputError(f"{folder} was begun with other folds, by another edgemed; choose another --out")

    name = f"fold {k + 1}/{config.folds}"

    def named(stage: str, done: int, total: int, detail: str) -> None:
        progress(f"{name} {stage}", done, total, detail)

    def signed(record: logging.LogRecord) -> bool:
        record.msg = f"{name}: {record.msg}"
        return True

    log.addFilter(signed)
    try:
        train_one(own, part, folder, device, named)
    finally:
        log.removeFilter(signed)


def _weights(config: TrainConfig, previous: dict[str, Any] | None, out: Path) -> dict[str, str]:
    """Source and hash of the ImageNet weights, tried on the backbone before anything is written.

    Raises:
        InputError: there are none, they belong to another backbone, or the run was begun with others.
    """
    state, source = imagenet_state(config.backbone, Path(config.weights) if config.weights else None)
    backbone = create_backbone(config.backbone, classes=2)
    load_backbone(backbone, state, source)
    freeze_stages(backbone, config.freeze)
    if previous is not None:
        require_same_weights(previous, state, source, out)
    return {"source": source, "sha256": weights_digest(state)}


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
    number = device.partition(":")[2]
    if number and not (kind == "cuda" and number.isdigit() and int(number) < torch.cuda.device_count()):
        count = torch.cuda.device_count()
        raise InputError(f"--device {device}: no such device; this machine has {count} CUDA devices")
    return device


def _validation_share(config: TrainConfig) -> float:
    """The part of a fold's training side that validates: as large, against training, as --split asks."""
    return config.split[1] / (config.split[0] + config.split[1])


def _pooled_folds(config: TrainConfig, dataset: Dataset, out: Path) -> dict[str, Any]:
    """The out-of-fold predictions of all folds as one, and the mean and spread over the folds."""
    runs = fold_folders(out, config.folds)
    folds = [read_metrics(run) for run in runs]
    table = joined([read_table(run, dataset.classes, "test") for run in runs])
    pooled = evaluation(table, MEMBERS, dataset.classes)
    of_fold = {"ensemble": [fold["ensemble"] for fold in folds]}
    of_fold |= {member: [fold["members"][member] for fold in folds] for member in MEMBERS}
    summary = {
        name: {key: spread([fold[key]["value"] for fold in of]) for key in INTERVAL_METRICS}
        for name, of in of_fold.items()
    }
    head = {"schema": METRICS_SCHEMA, "split": f"out of fold, {config.folds} folds"}
    return head | pooled | {"folds": summary} | selective_metrics(runs, dataset.classes)


def spread(folds: list[float | None]) -> dict[str, Any]:
    """Mean and standard deviation over the folds where a metric is defined, and each fold's own value."""
    known = [value for value in folds if value is not None]
    mean = float(np.mean(known)) if known else None
    return {"mean": mean, "std": float(np.std(known, ddof=1)) if len(known) > 1 else None, "folds": folds}
