"""What an engine is built from: an ensemble, and labelled images on which the engine has to equal it.

    edgemed build-engine RUN --out BUNDLE
    edgemed build-engine --member a.safetensors --member b.safetensors --backbone convnext_tiny --labels cat,dog \\
        --size 224 --check IMAGES --out BUNDLE

A run brings its images of validation, calibration and test, with the probabilities that training's evaluation wrote
down. Checkpoints of the user's own need `--check IMAGES`: an engine that was never compared with its model is not
written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.columns import HELD_OUT
from edgemed.dataset import Dataset, join_near_duplicates, scan
from edgemed.ensemble import Ensemble, predict_callable
from edgemed.errors import InputError
from edgemed.evaluate import Table, evaluation, predict_files
from edgemed.manifest import OperatingPoint, sha256_of
from edgemed.models import check_backbone, normalisation
from edgemed.operating import read_operating_point
from edgemed.operating_quality import require_judged
from edgemed.predictions import read_pixels, read_table
from edgemed.preprocess import FrontEnd
from edgemed.progress import Progress, counted, unseen
from edgemed.run import load_run, network_from_file


@dataclass(frozen=True)
class CheckImage:
    """An image that the engine is compared on. `group` is a number: names of patients do not travel.

    pixels: the `images.pixels_sha256` of what the evaluation saw.
    """

    file: Path
    label: int
    group: int
    split: str
    pixels: str


@dataclass(frozen=True)
class Source:
    """An ensemble (evaluation mode, CPU), what is known of it, and the images that prove an engine of it."""

    name: str  # for errors: the run's path, or the checkpoints
    ensemble: Ensemble
    backbone: str
    labels: tuple[str, ...]
    size: int
    member_names: tuple[str, ...]
    temperatures: tuple[float, ...]
    operating_point: OperatingPoint | None
    check_images: tuple[CheckImage, ...]
    noted: NDArray[np.float32]  # (N, M, K): the members' probabilities of `check_images`, as noted by the evaluation
    metrics: dict[str, Any]  # of the split that `quality_of` names
    quality_of: str
    made_from: str  # a sentence for the model card
    data: str  # likewise: how many images, of what origin
    counts: dict[str, Counter[str]]  # by split: images of each label


def source_from_run(path: Path) -> Source:
    """A finished run of `edgemed train`, with its operating point where it has one.

    InputError: see `run.load_run`; or an operating point that is not the one which the run's metrics judge.
    """
    run = load_run(path)
    point = read_operating_point(path)
    require_judged(path, [path], run.metrics)
    groups = {name: number for number, name in enumerate(sorted(set(run.dataset.groups)))}
    images: list[CheckImage] = []
    noted = []
    for split in HELD_OUT:
        table = read_table(path, run.classes, split)
        if missing := {row.path for row in run.dataset.subset(split).rows} - set(table.paths):
            raise InputError(
                f"{path / 'predictions.csv'} lacks {len(missing)} {split} images of split.csv; delete "
                f"{path / 'metrics.json'} and run its `edgemed train` command again: it evaluates anew"
            )
        images += [
            CheckImage(run.dataset.root / name, label, groups[group], split, pixels)
            for name, label, group, pixels in zip(
                table.paths, table.labels.tolist(), table.groups, read_pixels(path, split), strict=True
            )
        ]
        noted.append(table.members)
    known = run.info["dataset"]
    return Source(
        name=str(path),
        ensemble=run.ensemble,
        backbone=run.backbone,
        labels=run.classes,
        size=run.size,
        member_names=run.member_names,
        temperatures=run.temperatures,
        operating_point=point,
        check_images=tuple(images),
        noted=np.concatenate(noted),
        metrics=run.metrics,
        quality_of=f"split: {run.metrics['split']}",
        made_from=f"Trained with edgemed {run.info['edgemed']} from seed {run.info['config']['seed']}",
        data=f"{known['n']} labelled images in {known['groups']} groups (a patient, a lesion, or near-duplicates; a "
        f"group\nnever crosses a split). Fingerprint {known['fingerprint'][:16]}.",
        counts=_counts(run.dataset),
    )


def source_from_members(
    members: Sequence[Path],
    *,
    backbone: str,
    labels: Sequence[str],
    size: int,
    check: Path,
    progress: Progress = unseen,
) -> Source:
    """Checkpoints of the user's own: safetensors under timm's names, each with a classifier of `labels`' length.

    members: named by their files, or by their folders too where two files have one name.
    check: labelled images (folder per class or CSV) with these labels. Temperatures are 1: nothing is fitted on them.

    Raises InputError for a backbone, a checkpoint or images that do not fit.
    """
    check_backbone(backbone)
    names = tuple(path.stem for path in members)
    if len(set(names)) < len(names):  # such as a/model.safetensors and b/model.safetensors
        names = tuple(f"{path.parent.resolve().name}-{path.stem}" for path in members)
    if len(set(names)) < len(names):
        raise InputError(f"--member: two files would be the member '{Counter(names).most_common(1)[0][0]}'; rename one")
    if len(set(labels)) < len(labels) or len(labels) < 2:
        raise InputError(f"--labels {','.join(labels)}: give two or more different labels, in the checkpoints' order")
    networks = [network_from_file(path, backbone, len(labels), "see --backbone and --labels") for path in members]
    ensemble = Ensemble(FrontEnd(size, *normalisation(backbone)), networks, [1.0] * len(networks)).eval()
    given = scan(check)
    if unknown := sorted(set(given.classes) - set(labels)):
        raise InputError(f"--check {check} has the label '{unknown[0]}', not among --labels {','.join(labels)}")
    dataset, _ = join_near_duplicates(given.unsplit())  # all of them are checked, whichever splits the data name
    found = predict_files(predict_callable(ensemble), dataset.files, counted(progress, "PyTorch"))
    groups = {name: number for number, name in enumerate(sorted(set(dataset.groups)))}
    images = tuple(
        CheckImage(file, labels.index(row.label), groups[row.group], "validation", sha256)
        for file, row, sha256 in zip(dataset.files, dataset.rows, found.pixels, strict=True)
    )
    truth = np.array([image.label for image in images])
    paths = tuple(row.path for row in dataset.rows)
    table = Table(paths, truth, tuple(dataset.groups), found.members, found.probabilities)
    metrics = evaluation(table, names, labels)
    digests = ", ".join(f"{path.name} (sha256 {sha256_of(path.read_bytes())[:16]})" for path in members)
    return Source(
        name=", ".join(map(str, members)),
        ensemble=ensemble,
        backbone=backbone,
        labels=tuple(labels),
        size=size,
        member_names=names,
        temperatures=(1.0,) * len(networks),
        operating_point=None,
        check_images=images,
        noted=found.members,
        metrics=metrics,
        quality_of="the images given to --check; whether training saw them is not known here",
        made_from=f"Made from the checkpoints {digests}, whose training edgemed has not seen",
        data=f"The training data are not known here. Checked on {len(images)} images in {len(groups)} groups.",
        counts={"check": Counter(row.label for row in dataset.rows)},
    )


def _counts(dataset: Dataset) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for row in dataset.rows:
        counts.setdefault(row.split, Counter())[row.label] += 1
    return counts
