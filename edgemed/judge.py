"""A run or a bundle on labelled images that it was not trained on.

    edgemed evaluate RUN|BUNDLE DATA [--json]
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemed.dataset import Dataset, join_near_duplicates, scan
from edgemed.dicom import frame_of
from edgemed.duplicates import readable_thumbnails, shown_in
from edgemed.errors import InputError, did_you_mean
from edgemed.evaluate import Predict, Table, evaluation, predict_files
from edgemed.evidence import REFERENCE_NAME
from edgemed.infer import Model, load
from edgemed.manifest import MANIFEST_NAME, OperatingPoint
from edgemed.operating import read_operating_point
from edgemed.operating_quality import Part, judged
from edgemed.progress import Count, Progress, counted

log = logging.getLogger("edgemed")


@dataclass(frozen=True)
class _Subject:
    """What is judged, and what it is known to have seen."""

    predict: Predict
    classes: Sequence[str]
    member_names: Sequence[str]
    point: OperatingPoint | None
    learnt: Sequence[Path] = ()  # of a run: the files that it learnt from
    split_of: Mapping[str, str] = field(default_factory=dict)  # of a bundle: splits of images, by their pixels' hash


def judge(
    model: Path,
    data: Path,
    *,
    runtime: str,
    precision: str,
    public_key: Path | None = None,
    plan_key: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Metrics of each member and of the ensemble on `data`, by the names of the model's own classes.

    With an operating point also `operating`: what its decisions are worth there, see `operating_quality.judged`.

    Of data that name their splits, the test images are judged. Near-duplicates count as one group, as in training.
    Where `model` is a run that has learnt from some of these pictures, whatever they are called or how they are stored
    here, a warning says so.
    A bundle knows the images that it was validated on, by their pixels, and warns where these are among them. Its
    runtime, precision and keys are those of `infer.load`.

    Raises:
        InputError: `model` is neither a run nor a bundle, or the data have a class that it does not know.
    """
    if (model / "run.json").exists():
        if (runtime, precision, public_key, plan_key) != ("auto", "fp32", None, None):
            raise InputError(
                f"{model} is a run, which PyTorch evaluates; --runtime, --precision and --verify are for a bundle"
            )
        subject = _of_run(model)
    elif (model / MANIFEST_NAME).exists():
        subject = _of_bundle(
            load(model, runtime=runtime, precision=precision, public_key=public_key, plan_key=plan_key)
        )
    else:
        raise InputError(
            f"{model} is neither a run (`edgemed train DATA --out RUN`) nor a bundle (`edgemed build-engine RUN`)"
        )
    classes = subject.classes
    dataset = scan(data, min_classes=1, progress=counted(progress, "scan images"))
    dataset = _test_rows(dataset)
    for row in dataset.rows:
        if row.label not in classes:
            hint = did_you_mean(row.label, classes)
            raise InputError(f"{dataset.file(row)}: {model} has no class '{row.label}'.{hint}")
    if seen := _seen(dataset, subject.learnt, progress):
        log.warning(
            f"{seen} of the {len(dataset.rows)} images show what {model} was trained or tuned on: it has learnt from "
            f"them, and looks better than it is; its figures on images that it has not seen: {model / 'metrics.json'}"
        )
    groups = _groups(dataset, counted(progress, "compare images"))
    probabilities, members, pixels = predict_files(subject.predict, dataset.files, counted(progress, "evaluate"))
    if met := sum(subject.split_of.get(sha256, "test") != "test" for sha256 in pixels):
        log.warning(
            f"{met} of the {len(dataset.rows)} images were used to choose, calibrate or check {model}: on these it "
            "looks better than it is"
        )
    if subject.split_of:
        log.info("a bundle does not know its training images: make sure that none of them is here")
    labels = np.array([classes.index(row.label) for row in dataset.rows])
    table = Table(tuple(row.path for row in dataset.rows), labels, tuple(groups), members, probabilities)
    result: dict[str, Any] = {"model": str(model), "data": str(data)}
    result |= evaluation(table, subject.member_names, classes)
    if subject.point is not None:
        result["operating"] = judged([Part(subject.point, None, table)], classes)
    return result


def _test_rows(dataset: Dataset) -> Dataset:
    """The test split of data that come with one; a warning says what is left out, or that there is none."""
    counts = Counter(row.split for row in dataset.rows if row.split)
    named = ", ".join(f"{count} of {split}" for split, count in sorted(counts.items()))
    if "test" in counts and len(counts) > 1:
        log.warning("the data name their splits (%s): the test images are judged", named)
        return dataset.subset("test")
    if counts and "test" not in counts:
        log.warning("the data name their splits, and none is test (%s): all of them are judged", named)
    return dataset


def _groups(dataset: Dataset, progress: Count) -> list[str]:
    """The group of every image, near-duplicates joined; which splits the data name does not matter here."""
    return join_near_duplicates(dataset.unsplit(), progress=progress)[0].groups


def _seen(dataset: Dataset, learnt: Sequence[Path], progress: Progress) -> int:
    """How many images of a scanned data set are near-duplicates of one of the files `learnt` that are still there."""
    there = [file for file in learnt if frame_of(file)[0].is_file()]
    known, bad = readable_thumbnails(there, counted(progress, "read training images"))
    if bad:
        log.warning(
            f"{len(bad)} of the images that the model has learnt from cannot be read: whether they are among these "
            f"cannot be told; the first: {bad[0]}"
        )
    images = [dataset.thumbnails[row.path] for row in dataset.rows]
    return sum(shown_in(images, known, counted(progress, "compare with training images"))) if known else 0


def _of_run(path: Path) -> _Subject:
    from edgemed.ensemble import predict_callable
    from edgemed.run import load_run

    run = load_run(path)
    learnt = [run.dataset.file(row) for row in run.dataset.rows if row.split != "test"]
    if missing := sum(not frame_of(file)[0].is_file() for file in learnt):
        log.warning(
            f"{missing} of the images that {path} has learnt from are no longer below {run.dataset.root}: whether "
            "they are among these cannot be told"
        )
    point = read_operating_point(path)
    return _Subject(predict_callable(run.ensemble), run.classes, run.member_names, point, learnt=learnt)


def _of_bundle(model: Model) -> _Subject:
    manifest = model.bundle.manifest
    known = model.bundle.reference() if REFERENCE_NAME in manifest.files else None
    split_of = dict(zip(known.sha256.tolist(), known.split.tolist(), strict=True)) if known else {}

    def predict(image: Any) -> Any:
        probabilities, members = model.predict_pixels(image[None])
        return probabilities[0], members[0]

    return _Subject(predict, manifest.labels, manifest.member_names, manifest.operating_point, split_of=split_of)
