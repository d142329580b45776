"""Fit another operating point on a finished run, without training: `edgemed calibrate`.

    edgemed calibrate RUN --positive malignant --sensitivity 0.95 --answer 0.9

It reads the members' probabilities of the calibration split in `predictions.csv`, so it takes seconds. A folded run
gets a point in each fold, and their pooled figures: how well this way of choosing does on images that it never saw.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgemed.errors import InputError
from edgemed.files import held_alone, write_atomic, write_json
from edgemed.operating import write_operating_point
from edgemed.operating_fit import Wanted, fitted_point
from edgemed.operating_quality import Part, judged
from edgemed.predictions import read_table
from edgemed.report_data import report_of_run
from edgemed.run import finished_run, fold_folders


def calibrate(run: Path, wanted: Wanted) -> dict[str, Any]:
    """Fit, judge on the test rows, rewrite `operating_point.json`, `metrics.json` and the report; returns the metrics.

    Raises:
        InputError: no finished run, no calibration split, something that cannot be promised, or images that the report
            needs are gone; nothing is written then.
    """
    finished_run(run)
    with held_alone(run):
        return _calibrated(run, wanted)


def _calibrated(run: Path, wanted: Wanted) -> dict[str, Any]:
    info, metrics = finished_run(run)
    classes = info["dataset"]["classes"]
    folds = metrics.get("folds")
    runs = fold_folders(run, info["config"]["folds"]) if folds else [run]
    tables = [read_table(folder, classes, "calibration") for folder in runs]
    if not all(len(table.labels) for table in tables):
        raise InputError(f"{run} has no calibration split; train another run with --calibration 0.15")
    points = [fitted_point(wanted, classes, table) for table in tables]
    parts = [
        Part(point, table, read_table(folder, classes, "test"))
        for point, table, folder in zip(points, tables, runs, strict=True)
    ]
    found = {
        folder: finished_run(folder)[1] | {"operating": judged([part], classes)}
        for folder, part in zip(runs, parts, strict=True)
    }
    if folds:
        found[run] = metrics | {"operating": judged(parts, classes)}
    asked = {name: value for name, value in dataclasses.asdict(wanted).items() if value is not None}
    for document in found.values():
        document["operating"]["wanted"] = asked
    reports = {folder: report_of_run(folder, document) for folder, document in found.items()}
    for folder in found:  # a kill leaves no page of the old point; of the new one, `require_judged` keeps it out
        (folder / "report.html").unlink(missing_ok=True)
    for folder, point in zip(runs, points, strict=True):
        write_operating_point(folder, point)
    for folder, document in found.items():
        write_json(folder / "metrics.json", document)
        write_atomic(folder / "report.html", reports[folder])
    return found[run]
