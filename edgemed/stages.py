"""One run, from pretraining to the report: each stage is skipped when its result is there.

`edgemed train DATA --out RUN` calls it once, with `--folds K` once for every fold.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from edgemed.config import TrainConfig, derive_seed
from edgemed.dataset import Dataset
from edgemed.distributed import cpu_threads, on_all_ranks
from edgemed.ensemble import Ensemble, predict_callable
from edgemed.errors import InputError
from edgemed.evaluate import evaluation, predict_files
from edgemed.files import read_json, write_atomic, write_json
from edgemed.finetune import finetune, logits_of_files
from edgemed.loop import log
from edgemed.models import create_backbone, imagenet_state, load_backbone, normalisation
from edgemed.operating import POINT_NAME, write_operating_point
from edgemed.operating_fit import Wanted, fitted_point
from edgemed.operating_quality import require_judged, selective_metrics
from edgemed.place import note_another_place
from edgemed.predictions import MEMBERS, predictions_csv, read_table
from edgemed.preprocess import FrontEnd
from edgemed.pretrain import pretrain
from edgemed.progress import Progress, counted
from edgemed.report_data import report_of_run
from edgemed.run import METRICS_SCHEMA, evaluated, read_metrics, require_same_weights, trained_member, with_duration
from edgemed.temperatures import at_a_limit, fitted_temperatures


def train_one(config: TrainConfig, dataset: Dataset, out: Path, device: str, progress: Progress) -> dict[str, Any]:
    """One split, from pretraining to the report; returns `metrics.json`.

    Raises:
        EdgemedError: training failed, or a file of an earlier call is damaged; the run resumes.
    """
    torch.set_num_threads(cpu_threads(config.threads))
    mae, training = out / "members" / "mae", dataset.subset("train")
    weights = Path(config.weights) if config.weights else None
    whole = all((out / "members" / member / "model.safetensors").exists() for member in MEMBERS)
    if not whole or not evaluated(out):
        _forget_results(config, out)
    if not whole:
        state, source = imagenet_state(config.backbone, weights)
        require_same_weights(read_json(out / "run.json"), state, source, out)
        note_another_place(out, device, config.threads)
        log.info("ImageNet weights: %s", source)
        if not (mae / "pretrained.safetensors").exists():
            start = state if config.start == "imagenet" else None
            stage = partial(on_all_ranks, pretrain, config, training.files, start, source, mae, device)
            with_duration(out, "pretrain", partial(stage, progress=progress))
        for member in MEMBERS:
            folder = out / "members" / member
            if (folder / "model.safetensors").exists():
                continue
            model = new_member(config, member, len(dataset.classes), state, source, mae)
            front = FrontEnd(config.size, *normalisation(config.backbone))
            stage = partial(on_all_ranks, finetune, config, member, model, front, dataset, folder, device)
            with_duration(out, f"finetune {member}", partial(stage, progress=progress))
    for leftover in out.glob("members/*/*.ckpt"):  # of a kill between a stage's result and its clean-up
        leftover.unlink()
    if not evaluated(out):
        with_duration(out, "evaluate", lambda: _evaluate(config, dataset, out, progress))
    metrics = read_metrics(out)
    if not (out / "report.html").exists():
        require_judged(out, [out], metrics)
        write_atomic(out / "report.html", report_of_run(out, metrics))
    return metrics


def _forget_results(config: TrainConfig, out: Path) -> None:
    """Delete what older weights or figures may have left in a run and, where it is a fold, in the run of all folds."""
    if (out / POINT_NAME).exists():
        log.warning("%s is evaluated anew, with the default operating point; see `edgemed calibrate`", out)
    for folder in (out, out.parents[1]) if config.folds else (out,):
        for name in ("metrics.json", "predictions.csv", POINT_NAME, "report.html"):
            (folder / name).unlink(missing_ok=True)


def new_member(
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
    """Temperatures from calibration, or validation without one; predictions through the exported module; their worth.

    Neither temperatures nor operating point depend on a row of the test split.
    """
    front = FrontEnd(config.size, *normalisation(config.backbone))
    members = [trained_member(out, name, config.backbone, len(dataset.classes)) for name in MEMBERS]
    calibrated = bool(dataset.subset("calibration").rows)
    fitted_on = dataset.subset("calibration" if calibrated else "validation")
    logits = [logits_of_files(model, front, fitted_on.files, "cpu") for model in members]
    temperatures = fitted_temperatures(logits, fitted_on.labels)
    if beyond := [f"{name} {t:.2f}" for name, t in zip(MEMBERS, temperatures, strict=True) if at_a_limit(t)]:
        log.warning(
            "a temperature is at a limit of its search (%s): by the %d images that it is fitted on, the probabilities "
            "could not be calibrated; give more of them, or train longer", ", ".join(beyond), len(fitted_on.rows),
        )  # fmt: skip
    ensemble = Ensemble(front, members, temperatures).eval()
    predictions = []
    for split in ("validation", *(["calibration"] if calibrated else []), "test"):
        part = dataset.subset(split)
        found = predict_files(predict_callable(ensemble), part.files, counted(progress, f"evaluate {split}"))
        predictions.append((part, found.members, found.pixels))
    write_atomic(out / "predictions.csv", predictions_csv(predictions))
    validation, test = (
        evaluation(read_table(out, dataset.classes, split), MEMBERS, dataset.classes)
        for split in ("validation", "test")
    )
    if calibrated:
        write_operating_point(
            out, fitted_point(Wanted(), dataset.classes, read_table(out, dataset.classes, "calibration"))
        )
    write_json(
        out / "metrics.json",
        {"schema": METRICS_SCHEMA, "split": "test"}
        | test
        | {"temperatures": dict(zip(MEMBERS, temperatures, strict=True)), "validation": validation}
        | selective_metrics([out], dataset.classes),
    )
