"""The run folder, training's result: what is in it, how it is begun, resumed and read again.

    run.json  split.csv  duplicates.json  predictions.csv  metrics.json  report.html
    operating_point.json    with a calibration split: see operating_fit.py
    members/imagenet/{model.safetensors, history.jsonl}   members/mae/{pretrained.safetensors, model..., history...}
    folds/K/  with --folds: each a run of its own

`split.csv`, `predictions.csv`, `duplicates.json` and `report.html` name or show patient data; so may a warning in
`run.json`, by a file's name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from edgemed import __version__
from edgemed.config import TrainConfig
from edgemed.dataset import Dataset, read_split_csv, write_split_csv
from edgemed.ensemble import Ensemble
from edgemed.errors import InputError, flag
from edgemed.files import read_json, write_json
from edgemed.models import create_backbone, normalisation, weights_digest
from edgemed.place import device_here, versions
from edgemed.predictions import MEMBERS
from edgemed.preprocess import FrontEnd

RETRAIN = "delete it and run its `edgemed train` command again: the members are kept"
"""What to do about a `metrics.json` that is damaged."""
RUN_SCHEMA = 2
"""Of `run.json` and `duplicates.json`. A setting that is added needs no other number: see `read_info`."""
METRICS_SCHEMA = 3
"""Of `metrics.json`: 3 has intervals that hold near 1, too."""


@dataclass(frozen=True)
class Run:
    """A finished run: the ensemble (evaluation mode, CPU) and what is known of it."""

    path: Path
    ensemble: Ensemble
    classes: tuple[str, ...]
    size: int
    backbone: str
    member_names: tuple[str, ...]
    temperatures: tuple[float, ...]
    info: dict[str, Any]
    metrics: dict[str, Any]
    dataset: Dataset


def load_run(path: Path) -> Run:
    """Read a finished run.

    Raises:
        InputError: no run, an unfinished one, or a folded one (which has K models, not one).
    """
    info, metrics = finished_run(path)
    config = info["config"]
    if "folds" in metrics:
        raise InputError(
            f"{path} is a folded run: its models judge the method; train one without --folds to build from"
        )
    classes = tuple(info["dataset"]["classes"])
    temperatures = tuple(float(metrics["temperatures"][name]) for name in MEMBERS)
    members = [trained_member(path, name, config["backbone"], len(classes)) for name in MEMBERS]
    front = FrontEnd(config["size"], *normalisation(config["backbone"]))
    return Run(
        path=path,
        ensemble=Ensemble(front, members, temperatures).eval(),
        classes=classes,
        size=config["size"],
        backbone=config["backbone"],
        member_names=MEMBERS,
        temperatures=temperatures,
        info=info,
        metrics=metrics,
        dataset=read_split_csv(path / "split.csv", Path(info["dataset"]["root"])),
    )


def finished_run(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`run.json` and `metrics.json` of a finished run, folded or not.

    Raises:
        InputError: no run, or an unfinished one.
    """
    if not (path / "run.json").exists():
        raise InputError(
            f"{path} is not an edgemed run (it has no run.json); make one with `edgemed train DATA --out RUN`"
        )
    if not (path / "metrics.json").exists():
        raise InputError(f"{path} is not finished; run its `edgemed train` command again: it goes on where it stopped")
    return read_info(path), read_metrics(path)


def read_info(run: Path) -> dict[str, Any]:
    """`run.json` of a run; a setting that is younger than it has its default there, as it had in effect.

    Raises:
        InputError: it is missing, damaged, or of another version of edgemed.
    """
    info = read_json(run / "run.json")
    if not isinstance(info, dict) or info.get("schema") != RUN_SCHEMA:
        raise InputError(
            f"{run} was begun by another version of edgemed; use that version, or train anew into another folder"
        )
    return info | {"config": TrainConfig.from_dict(info["config"]).as_dict()}


def read_metrics(run: Path) -> dict[str, Any]:
    """`metrics.json` of a run. InputError: it is damaged, or of another version of edgemed."""
    if (found := _metrics(run)) is None:
        raise InputError(
            f"{run / 'metrics.json'} was written by another version of edgemed; run its `edgemed train` (or `ablate`) "
            "command again: trained members are kept, only the evaluation is repeated; then repeat `edgemed calibrate` "
            "if it was used"
        )
    return found


def evaluated(run: Path) -> bool:
    """Whether a run has a `metrics.json` of this version. InputError: it is damaged."""
    return _metrics(run) is not None


def _metrics(run: Path) -> dict[str, Any] | None:
    file = run / "metrics.json"
    found = read_json(file, RETRAIN) if file.exists() else None
    return found if isinstance(found, dict) and found.get("schema") == METRICS_SCHEMA else None


def fold_folders(run: Path, folds: int) -> list[Path]:
    """Where the folds of a folded run lie, each a run of its own."""
    return [run / "folds" / str(k) for k in range(folds)]


def trained_member(run: Path, name: str, backbone: str, classes: int) -> torch.nn.Module:
    """A member's fine-tuned network in evaluation mode, on the CPU: float (N, 3, S, S) -> logits (N, classes).

    Raises:
        InputError: its file is missing or damaged.
    """
    file = run / "members" / name / "model.safetensors"
    return network_from_file(file, backbone, classes, "delete it and run the same `edgemed train` again")


def network_from_file(file: Path, backbone: str, classes: int, step: str) -> torch.nn.Module:
    """A network of timm's in evaluation mode with the weights of a safetensors file, classifier included.

    Raises:
        InputError: the file is missing, damaged or of another network; it ends with `step`, the way out.
    """
    model = create_backbone(backbone, classes)
    try:
        model.load_state_dict(load_file(file))
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file; {step}") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is damaged ({error}); {step}") from error
    except RuntimeError as error:  # torch lists every tensor; the first line with one says enough
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(f"{file} is not a {backbone} of {classes} classes ({reason}); {step}") from error
    return model.eval()


def previous_run(out: Path) -> dict[str, Any] | None:
    """The `run.json` of an earlier call, or None for a new or empty folder.

    Raises:
        InputError: the folder holds something else.
    """
    if (out / "run.json").exists():
        return read_info(out)
    if not out.exists():
        return None
    begun = ("duplicates.json", "split.csv", "run.json")  # written in this order: a kill may leave some, or a temporary
    held = {entry.name.lstrip(".").removesuffix(".tmp") for entry in out.iterdir()} if out.is_dir() else {out.name}
    if held and not {begun[0]} <= held <= set(begun):
        raise InputError(f"--out {out} holds something that is not an edgemed run; choose another folder")
    return None


def require_same_settings(previous: dict[str, Any], config: TrainConfig, out: Path) -> None:
    """A run goes on under the settings that it was begun with, except where it computes and how it rounds.

    Raises:
        InputError: naming each flag that differs.
    """
    old, new = previous["config"], config.as_dict()
    # `require_same_weights` looks at what is in the weights, wherever they lie; `note_another_place` notes a device.
    free = ("device", "threads", "compile", "weights")
    differ = [name for name in new if name not in free and old[name] != new[name]]
    if differ:
        changed = [f"{flag(name)} {old[name]} -> {new[name]}" for name in differ]
        raise InputError(f"--out {out} holds a run with other settings ({', '.join(changed)}); choose another --out")


def require_same_weights(previous: dict[str, Any], state: dict[str, torch.Tensor], source: str, out: Path) -> None:
    """A run, and each cell of an ablation, starts from the ImageNet weights that it was begun with.

    Raises:
        InputError: these are others.
    """
    if previous["weights"]["sha256"] != weights_digest(state):
        began = previous["weights"]["source"]
        raise InputError(f"{out} was begun with other ImageNet weights ({began}; now {source}); choose another --out")


def begin_run(
    out: Path, config: TrainConfig, dataset: Dataset, fingerprint: str, device: str, weights: dict[str, str]
) -> None:
    """Write split.csv and run.json, unless they are there: run.json last, since it marks the folder as a run."""
    if (out / "run.json").exists():
        return
    write_split_csv(dataset, out / "split.csv")
    write_json(
        out / "run.json",
        {
            "schema": RUN_SCHEMA,
            "edgemed": __version__,
            "config": config.as_dict(),
            "dataset": {
                "root": str(dataset.root.resolve()),
                "fingerprint": fingerprint,
                "classes": list(dataset.classes),
                "n": len(dataset.rows),
                "groups": len({row.group for row in dataset.rows}),
                "warnings": list(dataset.warnings),
            },
            "weights": weights,
            "device": device_here(device, config.threads),
            "versions": versions(),
            "durations": {},
        },
    )


def note_root(out: Path, root: Path) -> None:
    """Where the data lie now, in run.json of a run, its folds and an ablation's cells: they may have moved."""
    for places in ("run.json", "folds/*/run.json", "cells/*/run.json", "cells/*/folds/*/run.json"):
        for file in out.glob(places):
            info = read_json(file)
            if info["dataset"]["root"] != str(root.resolve()):
                info["dataset"]["root"] = str(root.resolve())
                write_json(file, info)


def with_duration(out: Path, stage: str, work: Callable[[], None]) -> None:
    """Do `work` and note its seconds in run.json; after a kill only the last attempt's are known."""
    began = time.monotonic()
    work()
    info = read_json(out / "run.json")
    info["durations"][stage] = round(time.monotonic() - began, 1)
    write_json(out / "run.json", info)
