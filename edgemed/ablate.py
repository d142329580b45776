"""`edgemed ablate`: which part of the method helps, on the user's own images: one table of trainings that differ in it.

    edgemed ablate DATA --out FOLDER --folds 5
    edgemed ablate DATA --out FOLDER --folds 5 --cells entropy-imagenet,none-imagenet --budget 600

A cell is a run of its own (FOLDER/cells/NAME, with its report). All have the same folds, the same seeds and the same
ImageNet member, which is trained once; they differ in what their second member was pretrained with: masks by entropy,
random or by low entropy, from ImageNet's weights or from scratch, by Rényi's entropy, with another seed, or not at all.
No pretraining from ImageNet's weights is the control that matters: a second ImageNet member with another seed.

A finished cell is kept: a killed or ended command, run again, goes on with the next one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgemed.ablation import CELLS, ablation, ablation_html
from edgemed.config import TrainConfig, derive_seed
from edgemed.errors import InputError, did_you_mean
from edgemed.files import read_json, write_atomic, write_json
from edgemed.place import place_line
from edgemed.progress import Progress
from edgemed.run import begin_run, evaluated, fold_folders, read_info
from edgemed.train import Begun, begun, trained

LAST = "ablation.html"  # the last file that is written


def ablate(
    config: TrainConfig,
    data: Path,
    out: Path,
    progress: Progress,
    cells: Sequence[str] = tuple(CELLS),
    budget: float = 0.0,
) -> dict[str, Any]:
    """Train those `cells` that are not done yet and return `ablation.json`, which is of all that are.

    budget: minutes after which no further cell is begun; 0 for none.

    Raises:
        InputError: the data, a flag, or an `out` that holds something else.
        EdgemedError: training failed, or there was time for no cell at all; the same command goes on.
    """
    began = time.monotonic()
    _check(config, cells, out)
    run = begun(config, data, out, progress, LAST)
    waiting = [name for name in CELLS if name in cells and not _finished(out, name, config.folds)]
    for done, name in enumerate(waiting):
        progress("cells", done, len(waiting), name)
        if budget and time.monotonic() - began > 60 * budget:
            break
        _train_cell(cell_config(config, name), run, out, name, progress)
        progress("cells", done + 1, len(waiting), name)
    finished = [name for name in CELLS if _finished(out, name, config.folds)]
    if not finished:
        raise InputError(f"--budget {budget:g}: it was over before the first cell was begun; give more minutes")
    made, step = all((out / name).exists() for name in ("ablation.json", LAST)), "delete it and run this command again"
    if waiting or not made or read_json(out / "ablation.json", step)["cells"] != finished:
        progress("compare", 0, 1, "")
        runs = {name: _runs(out, name, run) for name in finished}
        found = ablation(runs, run.dataset.classes, read_info(out))
        found["places"] = _places(out, finished)
        (out / LAST).unlink(missing_ok=True)  # so that a kill here leaves no page of fewer cells
        write_json(out / "ablation.json", found)
        write_atomic(out / LAST, ablation_html(found, data.resolve().stem))
        progress("compare", 1, 1, "")
    document: dict[str, Any] = read_json(out / "ablation.json")
    return document


def cell_config(config: TrainConfig, name: str) -> TrainConfig:
    """The settings of one cell; `config`: those that all share, with Rényi's order for the cell that takes it."""
    kind, _, start = name.rpartition("-")
    own: dict[str, dict[str, Any]] = {
        "entropy": {},
        "random": {"sharpness": 0.0},
        "low-entropy": {"sharpness": -config.sharpness},
        "none": {"pretrain_epochs": 0},
        "renyi": {"renyi_order": config.renyi_order},
        "again": {"seed": derive_seed(config.seed, "again")},
    }
    changes: dict[str, Any] = {"start": start, "renyi_order": 1.0}
    return replace(config, **changes | own[kind])


def _check(config: TrainConfig, cells: Sequence[str], out: Path) -> None:
    for name in cells:
        if name not in CELLS:
            raise InputError(f"--cells '{name}' is not a cell.{did_you_mean(name, CELLS)}")
    if not cells:
        raise InputError(f"--cells names none; they are: {', '.join(CELLS)}")
    if config.sharpness <= 0 or not config.pretrain_epochs:
        raise InputError(
            "an ablation sets --sharpness 0, its negative, and --pretrain-epochs 0 itself, cell by cell; give the "
            "positive values of the method"
        )
    if config.freeze and "none-scratch" in cells:
        raise InputError(
            "--freeze would keep the random weights of the cell none-scratch; leave one of them out: see --cells"
        )
    if config.renyi_order == 1 and "renyi-imagenet" in cells:
        raise InputError("--renyi-order 1 is Shannon's entropy, with which Rényi's is compared; try --renyi-order 2")
    first = "entropy-imagenet"
    if "again-imagenet" in cells and first not in cells and not _finished(out, first, config.folds):
        raise InputError("--cells again-imagenet is entropy-imagenet with another seed; ask for both")


def _places(out: Path, cells: Sequence[str]) -> dict[str, list[str]]:
    """The cells of each place that cells were begun in: figures of one place are compared best."""
    places: dict[str, list[str]] = {}
    for name in cells:
        places.setdefault(place_line(read_info(out / "cells" / name)), []).append(name)
    return places


def _train_cell(config: TrainConfig, run: Begun, out: Path, name: str, progress: Progress) -> None:
    folder = out / "cells" / name
    if not (folder / "run.json").exists():
        write_atomic(folder / "duplicates.json", (out / "duplicates.json").read_bytes())
        begin_run(folder, config, run.dataset, run.fingerprint, run.device, run.weights)
    for k, target in enumerate(_runs(out, name, run)):
        for other in CELLS:
            source = _runs(out, other, run)[k] / "members" / "imagenet"
            if other != "again-imagenet" and (source / "model.safetensors").exists():
                _share(source, target / "members" / "imagenet")
                break

    def of_cell(stage: str, done: int, total: int, detail: str) -> None:
        progress("stage", done, total, f"{name}, {stage} {detail}")

    trained(config, run, folder, of_cell)


def _share(source: Path, target: Path) -> None:
    """The trained ImageNet member of another cell: it is the same in all; its model last, which says that it is done.

    Linked where the file system can: every file of a run is written by renaming, so none changes under another name.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in ("history.jsonl", "model.safetensors"):
        if (target / "model.safetensors").exists():
            return
        (target / name).unlink(missing_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError:
            write_atomic(target / name, (source / name).read_bytes())


def _runs(out: Path, name: str, run: Begun) -> list[Path]:
    """The folds of a cell, or the cell where there are none."""
    folder = out / "cells" / name
    return fold_folders(folder, len(run.parts)) or [folder]


def _finished(out: Path, name: str, folds: int) -> bool:
    cell = out / "cells" / name
    return (cell / "report.html").exists() and all(map(evaluated, (cell, *fold_folders(cell, folds))))
