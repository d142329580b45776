"""A file of a run that is damaged is named, with what to do; and that works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="extra train is not installed")

from conftest import tiny_flags

from edgemed.errors import InputError
from edgemed.predictions import read_table
from edgemed.run import METRICS_SCHEMA, RUN_SCHEMA

Edgemed = Callable[..., int]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("metrics.json", "delete it and run its `edgemed train` command again: the members are kept"),
        ("run.json", "restore it from a copy, or make its folder anew"),
        ("members/mae/history.jsonl", "delete it: it holds nothing but the report's curves"),
    ],
)
def test_a_file_that_was_cut_is_named_with_the_way_out(
    name: str, step: str, tiny_run: Path, phantoms: Path, weights: Path, tmp_path: Path, edgemed: Edgemed,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "report.html").unlink()
    (run / name).write_text((run / name).read_text()[:-20])
    command = ("train", phantoms, "--out", run, *tiny_flags(weights))
    assert edgemed(*command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert Path(name).name in said and step in said
    if "delete it" in step:
        (run / name).unlink()
        assert edgemed(*command) == 0 and (run / "report.html").exists()


def test_figures_of_another_version_are_made_again_and_never_read_as_if_they_were_of_this_one(
    tiny_run: Path, phantoms: Path, weights: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    now, info = (run / "metrics.json").read_text(), json.loads((run / "run.json").read_text())
    (run / "metrics.json").write_text(json.dumps(json.loads(now) | {"schema": METRICS_SCHEMA - 1}))
    del info["config"]["train_size"]  # which a run of that version may lack
    (run / "run.json").write_text(json.dumps(info))
    (run / "report.html").write_text("old")
    build = ("build-engine", run, "--out", tmp_path / "bundle")
    for command in (("evaluate", run, phantoms), ("calibrate", run), build):
        assert edgemed(*command) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "metrics.json was written by another version of edgemed; run its `edgemed train` (or `ablate`)" in said
    assert not (tmp_path / "bundle").exists()
    assert edgemed("train", phantoms, "--out", run, *tiny_flags(weights)) == 0
    assert (run / "metrics.json").read_text() == now
    assert "<html" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"schema": RUN_SCHEMA + 1}, "was begun by another version of edgemed"),
        ([], "was begun by another version of edgemed"),
        ({"schema": RUN_SCHEMA, "config": {"warp": 9}}, "the setting 'warp', which this edgemed does not know"),
    ],
)
def test_a_run_of_another_version_is_told_in_one_line_by_every_command(
    tiny_run: Path, phantoms: Path, weights: Path, tmp_path: Path, document: Any, says: str, edgemed: Edgemed,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "run.json").write_text(json.dumps(document))
    build = ("build-engine", run, "--out", tmp_path / "bundle")
    resume = ("train", phantoms, "--out", run, *tiny_flags(weights))
    for command in (("evaluate", run, phantoms), ("calibrate", run), build, resume):
        assert edgemed(*command) == 2
        assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("damage", ["missing", "cut", "a word"])
def test_damaged_predictions_are_named_with_the_way_out(
    tiny_run: Path, phantoms: Path, weights: Path, tmp_path: Path, damage: str, edgemed: Edgemed,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = shutil.copytree(tiny_run, tmp_path / "run")
    file = run / "predictions.csv"
    whole = file.read_text()
    if damage == "missing":
        file.unlink()
    else:
        lines = whole.splitlines(keepends=True)
        last = lines[-1].rpartition(",")[0]
        file.write_text("".join(lines[:-1]) + (last if damage == "cut" else f"{last},much\n"))
    with pytest.raises(InputError, match=r"predictions.csv is missing or damaged; delete .*metrics.json and run"):
        read_table(run, ("irregular", "none", "oval"), "test")
    if damage == "cut":  # the way out works, and leaves nothing of what rested on the old figures
        (run / "metrics.json").unlink()
        for old in ("report.html", "operating_point.json"):
            (run / old).write_text("old")
        assert edgemed("train", phantoms, "--out", run, *tiny_flags(weights)) == 0
        assert file.read_text() == whole
        assert "<html" in (run / "report.html").read_text()
        assert not (run / "operating_point.json").exists()
        assert "with the default operating point" in " ".join(capsys.readouterr().err.split())
