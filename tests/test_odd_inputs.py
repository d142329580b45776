"""Names, files and terminals that nobody means: each is told of in a line, and none is passed over in silence."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_bundles as tiny
from conftest import tiny_flags
from PIL import Image

pytest.importorskip("cv2", reason="extra train is not installed")

from edgemed.dataset import scan
from edgemed.errors import InputError
from edgemed.listing import image_files
from edgemed.models import imagenet_state
from edgemed.pack import check_target
from edgemed.phantoms import write_dataset

Edgemed = Callable[..., int]


def test_a_class_whose_folder_is_a_broken_link_is_not_lost(phantoms: Path, tmp_path: Path) -> None:
    data = shutil.copytree(phantoms, tmp_path / "data")
    (data / "spiculated").symlink_to(tmp_path / "unmounted")
    with pytest.raises(InputError, match="spiculated: a link to what is not there"):
        scan(data)


def test_a_pipe_among_the_images_is_refused_and_not_waited_for(phantoms: Path, tmp_path: Path) -> None:
    data = shutil.copytree(phantoms, tmp_path / "data")
    os.mkfifo(data / "oval" / "pipe.png")
    script = f"from edgemed.dataset import scan; scan({str(data)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "pipe.png" in done.stderr.splitlines()[-1] and "InputError" in done.stderr


def test_a_row_of_a_csv_that_names_a_folder_is_not_said_to_be_missing(phantoms: Path) -> None:
    (phantoms / "rows.csv").write_text("path,label\noval,a\n")
    try:
        with pytest.raises(InputError, match="row 2: .*oval is no file"):
            scan(phantoms / "rows.csv")
    finally:
        (phantoms / "rows.csv").unlink()


@pytest.mark.parametrize(("group", "told"), [("N/A", True), ("unknown", True), ("patient 7", False)])
def test_a_group_that_says_that_no_one_knows_is_told_of(group: str, told: bool, phantoms: Path, tmp_path: Path) -> None:
    data = shutil.copytree(phantoms, tmp_path / "data")
    files = [path.relative_to(data).as_posix() for path in sorted(data.glob("*/*.png"))]
    lines = [f"{file},{file.split('/')[0]},{group if k % 3 else ''}" for k, file in enumerate(files)]
    (data / "rows.csv").write_text("\n".join(["path,label,group", *lines]))
    found = [warning for warning in scan(data / "rows.csv").warnings if "kept together, as of one patient" in warning]
    assert [repr(group) in warning for warning in found] == [True] * told


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", "", str(tmp_path)):
        with pytest.raises(InputError, match="is the folder that you are in"):
            write_dataset(name, per_class=1, size=64)
        with pytest.raises(InputError, match="is the folder that you are in"):
            check_target(name)
    assert list(tmp_path.iterdir()) == []


def test_phantoms_follow_a_link_to_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write_dataset(tmp_path / "link", per_class=1, size=64)
    assert len(list((tmp_path / "empty").glob("*/*.png"))) == 3


@pytest.mark.parametrize("error", [ImportError("Using SOCKS proxy, but\nthe package is missing"), KeyError("url")])
def test_whatever_keeps_the_hub_away_is_told_with_the_ways_out(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(InputError, match=rf"{type(error).__name__}: .*--weights FILE\.safetensors") as caught:
        imagenet_state("convnext_atto")
    assert "\n" not in str(caught.value)


def test_a_name_with_a_line_in_it_is_one_line_of_an_error_and_of_a_table(
    tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny.bundle(tmp_path / "bundle").path
    small, good = tmp_path / "a\nsmall.png", tmp_path / "a\n\x1b[31mgood.png"
    Image.new("RGB", (1, 1)).save(small)
    Image.fromarray(tiny.image(1)).save(good)
    assert edgemed("predict", bundle, small, good) == 2
    shown = capsys.readouterr()
    assert "a\\nsmall.png' has 1 x 1 pixels" in shown.err and "\x1b[31m" not in shown.out


def test_files_of_a_folder_that_are_no_images_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "b.webp", "c.gif", "deeper/d.jp2", "deeper/e.PNG", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in image_files(tmp_path)] == ["a.png", "e.PNG"]
    assert "3 of 5 files below" in caplog.text


def test_a_line_that_is_missing_in_the_predictions_is_missed(
    tiny_run: Path, phantoms: Path, weights: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    lines = (run / "predictions.csv").read_text().splitlines(keepends=True)
    (run / "predictions.csv").write_text("".join(lines[:1] + lines[2:]))
    assert edgemed("build-engine", run, "--out", tmp_path / "bundle") == 2
    assert "predictions.csv lacks 1 validation images" in " ".join(capsys.readouterr().err.split())
    (run / "metrics.json").unlink()
    assert edgemed("train", phantoms, "--out", run, *tiny_flags(weights)) == 0
    assert (run / "predictions.csv").read_text() == "".join(lines)


def test_a_terminal_of_no_columns_is_one_of_unknown_width(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgemed", "predict", str(tmp_path), "none.png"],
        capture_output=True, text=True, env=os.environ | {"COLUMNS": "0"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: ")
