"""`edgemed calibrate` fits another operating point on the calibration rows of a finished run, and on no others."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="extra train is not installed")

from answers import CLASSES, drawn

from edgemed.calibrate import calibrate
from edgemed.curves import risk_coverage
from edgemed.errors import InputError
from edgemed.operating import read_operating_point
from edgemed.operating_fit import Wanted, allowed_failures, fitted_point
from edgemed.operating_quality import Part, judged, require_judged, selective_metrics
from edgemed.predictions import read_table
from edgemed.run import METRICS_SCHEMA, RUN_SCHEMA


def write_run(run: Path, seed: int) -> None:
    """A finished run's documents, with made-up predictions."""
    rng = np.random.default_rng(seed)
    run.mkdir(parents=True)
    header = [f"{member}:{name}" for member in ("imagenet", "mae") for name in CLASSES]
    with (run / "predictions.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "label", "group", "split", *header])
        for split in ("validation", "calibration", "test"):
            table = drawn(rng, 80)
            for k, (label, members) in enumerate(zip(table.labels, table.members, strict=True)):
                name = f"{split}{k}.png"
                writer.writerow([name, CLASSES[label], name, split, *map(float, members.ravel())])
    info = {"schema": RUN_SCHEMA, "config": {"folds": 0}, "dataset": {"classes": CLASSES}}
    (run / "run.json").write_text(json.dumps(info))
    (run / "metrics.json").write_text(json.dumps({"schema": METRICS_SCHEMA, "n": 80}))


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemed.calibrate.report_of_run", lambda run, metrics: "report")


WANTED = Wanted("malignant", sensitivity=0.9, answer=0.8)


def test_fewer_may_be_wrong_where_the_threshold_was_fitted_on_the_same_images() -> None:
    """By simulation, 0.05 would else be 0.058 in the mean, with 80 calibration images and --sensitivity 0.9."""
    assert [allowed_failures(0.05, 80, 80, spare) for spare in (1, 2)] == [3, 2]
    assert [allowed_failures(0.05, 240, 80, spare) for spare in (1, 2)] == [9, 6]
    table = drawn(np.random.default_rng(0), 30)
    with pytest.raises(InputError, match=r"--max-error 0\.05 needs at least 39 .* are 30; ask for at least 0\.065"):
        fitted_point(Wanted("malignant", sensitivity=0.8, max_error=0.05, coverage=0), CLASSES, table)


@pytest.mark.usefixtures("no_report")
def test_refitting_reads_no_test_row(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, 0)
    before = calibrate(run, WANTED)["operating"]
    assert before["wanted"] == {"positive": "malignant", "sensitivity": 0.9, "answer": 0.8, "coverage": 0.9}
    point = (run / "operating_point.json").read_bytes()
    lines = (run / "predictions.csv").read_text().splitlines()
    turned = [
        ",".join([*line.split(",")[:4], "0.0", "1.0", "0.0", "0.0", "0.0", "1.0"]) if ",test," in line else line
        for line in lines
    ]
    (run / "predictions.csv").write_text("\n".join(turned) + "\n")
    after = calibrate(run, WANTED)["operating"]
    assert (run / "operating_point.json").read_bytes() == point
    assert after["points"] == before["points"]
    assert after["sets"] != before["sets"]
    assert after["threshold"]["sensitivity"] != before["threshold"]["sensitivity"]


def test_a_test_row_need_not_even_be_readable(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, 0)
    point = fitted_point(WANTED, CLASSES, read_table(run, CLASSES, "calibration"))
    lines = (run / "predictions.csv").read_text().splitlines()
    poisoned = [",".join([*line.split(",")[:4], *["poison"] * 6]) if ",test," in line else line for line in lines]
    (run / "predictions.csv").write_text("\n".join(poisoned))
    assert fitted_point(WANTED, CLASSES, read_table(run, CLASSES, "calibration")) == point


def judged_by_hand(run: Path) -> dict[str, Any]:
    """What the operating point in the folder of a run is worth on that run's test rows."""
    point, calibration = read_operating_point(run), read_table(run, CLASSES, "calibration")
    assert point is not None
    asked = {"positive": "malignant", "sensitivity": 0.9, "answer": 0.8, "coverage": 0.9}
    return judged([Part(point, calibration, read_table(run, CLASSES, "test"))], CLASSES) | {"wanted": asked}


@pytest.mark.usefixtures("no_report")
def test_training_judges_its_operating_point_as_a_refitting_does_on_the_test_rows(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, 0)
    refitted = calibrate(run, WANTED)["operating"]
    assert refitted == judged_by_hand(run)
    found = selective_metrics([run], CLASSES)  # what `edgemed train` writes
    assert found["operating"] | {"wanted": refitted["wanted"]} == refitted
    assert found["risk_coverage"] == risk_coverage(read_table(run, CLASSES, "test"))


@pytest.mark.usefixtures("no_report")
def test_refitting_replaces_the_whole_point_and_keeps_the_other_metrics(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, 0)
    calibrate(run, WANTED)
    metrics = calibrate(run, Wanted(coverage=0.8))
    point = read_operating_point(run)
    assert point is not None
    assert (point.threshold, point.max_disagreement, point.coverage, point.images) == (None, None, 0.8, 80)
    assert json.loads((run / "metrics.json").read_text()) == metrics
    assert metrics["n"] == 80
    assert "threshold" not in metrics["operating"]


@pytest.mark.usefixtures("no_report")
def test_a_refitting_that_breaks_off_leaves_no_page_of_the_old_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    write_run(run, 0)
    (run / "report.html").write_text("old")

    def full(path: Path, document: object) -> None:
        raise InputError("cannot write: the disk is full")

    monkeypatch.setattr("edgemed.calibrate.write_json", full)
    with pytest.raises(InputError, match="full"):
        calibrate(run, WANTED)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(("calibration", "known"), [(12, False), (19, True)])
def test_the_coverage_of_sets_that_no_failure_is_allowed_has_no_bounds(calibration: int, known: bool) -> None:
    """Their limit is the least probability of all, and no draw of so few images has a lower one."""
    rng = np.random.default_rng(0)
    fitted_on, test = drawn(rng, calibration), drawn(rng, 200)
    point = fitted_point(Wanted(), CLASSES, fitted_on)
    sets = judged([Part(point, fitted_on, test)], CLASSES)["sets"]
    assert (sets["coverage"]["low"] is not None) == (sets["coverage"]["high"] is not None) == known
    assert sets["coverage_of_these_sets"]["low"] is not None


@pytest.mark.usefixtures("no_report")
def test_a_folded_run_gets_a_point_in_every_fold_and_their_pooled_figures(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for k in range(3):
        write_run(run / "folds" / str(k), k)
    info = {"schema": RUN_SCHEMA, "config": {"folds": 3}, "dataset": {"classes": CLASSES}}
    (run / "run.json").write_text(json.dumps(info))
    (run / "metrics.json").write_text(json.dumps({"schema": METRICS_SCHEMA, "n": 240, "folds": {"ensemble": {}}}))
    metrics = calibrate(run, WANTED)
    points = [read_operating_point(run / "folds" / str(k)) for k in range(3)]
    assert len({point.threshold for point in points if point}) == 3
    assert not (run / "operating_point.json").exists()
    found = metrics["operating"]
    assert [point["threshold"] for point in found["points"]] == [point.threshold for point in points if point]
    each = [json.loads((run / "folds" / str(k) / "metrics.json").read_text())["operating"] for k in range(3)]
    for part, key in (("sets", "coverage"), ("referral", "answered")):  # 80 images each, so the mean is the pooled one
        assert found[part][key]["value"] == pytest.approx(np.mean([fold[part][key]["value"] for fold in each]))
    assert np.sum(found["decisions"]) == 240
    folds = [run / "folds" / str(k) for k in range(3)]
    require_judged(run, folds, metrics)
    for k, fold in enumerate(each):
        require_judged(folds[k], [folds[k]], {"operating": fold})
        with pytest.raises(InputError, match="is not the one that metrics.json judges"):
            require_judged(run, folds[:k] + folds[k + 1 :], metrics)
        assert fold["points"] == found["points"][k : k + 1]
        assert fold == judged_by_hand(run / "folds" / str(k))


@pytest.mark.usefixtures("no_report")
def test_what_cannot_be_calibrated_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, 0)
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(InputError, match="is not a class"):
        calibrate(run, Wanted("cyst", sensitivity=0.9))
    text = (run / "predictions.csv").read_text()
    (run / "predictions.csv").write_text(text.replace(",calibration,", ",validation,"))
    with pytest.raises(InputError, match="no calibration split; train another run with --calibration"):
        calibrate(run, Wanted())
    (run / "predictions.csv").write_text(text)
    before[run / "predictions.csv"] = text.encode()
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    with pytest.raises(InputError, match="not an edgemed run"):
        calibrate(tmp_path, Wanted())
