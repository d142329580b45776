"""edgemed inside of somebody's service: nothing is sent, nothing hangs, paths and folders mean what they meant."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_bundles as tiny
from PIL import Image

from edgemed import images, runtimes
from edgemed.errors import InputError
from edgemed.infer import load
from edgemed.listing import image_files
from edgemed.rows import rows_of_csv

pytestmark = pytest.mark.usefixtures("cache")

QUIET = """
import logging, os, socket, sys, urllib.request

def noted(*arguments, **options):
    print("NETWORK", arguments)
    raise OSError

urllib.request.urlopen = socket.socket.connect = noted
os.fork = lambda: print("FORK") or 1
import edgemed
assert edgemed.load(sys.argv[1], runtime="openvino").runtime == "openvino"
assert not logging.getLogger().handlers
print("openvino_telemetry" in sys.modules)
"""


def test_loading_a_bundle_sends_nothing_forks_nothing_and_writes_into_the_cache_alone(tmp_path: Path) -> None:
    """By itself, importing OpenVINO reports to Google Analytics, and keeps an id in the home folder."""
    bundle, home = tiny.bundle(tmp_path / "bundle").path, tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "XDG_CACHE_HOME")}
    environment["HOME"] = str(home)
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(bundle)], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stdout + done.stderr
    assert [path.relative_to(home).as_posix() for path in home.glob("*/*")] == [".cache/edgemed"]


def test_a_process_that_was_forked_after_loading_is_told_to_load_for_itself(tmp_path: Path) -> None:
    """It may wait for ever for a thread that only its parent has."""
    model, (reading, writing) = load(tiny.bundle(tmp_path / "bundle").path, runtime="openvino"), os.pipe()
    if not (child := os.fork()):
        try:
            model(tiny.image(0))
        except InputError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    assert b"call edgemed.load in each process, after the fork" in os.read(reading, 1000)
    assert model(tiny.image(0)).runtime == "openvino"


def test_a_process_that_was_forked_meanwhile_holds_no_lock_of_the_cache(tmp_path: Path) -> None:
    ending, end = os.pipe()
    with runtimes.held(tmp_path):
        if not (child := os.fork()):
            os.close(end)
            os.read(ending, 1)  # until the parent closes its end
            os._exit(0)
    with (tmp_path / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError where the child still holds it
    os.close(end)
    os.waitpid(child, 0)


def test_a_bundle_is_found_again_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.bundle(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    model = load("bundle", runtime="openvino")
    monkeypatch.chdir("/")
    assert model.self_test().n


def test_answers_name_the_files_as_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edgemed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.bundle(tmp_path / "bundle")
    (tmp_path / "a").mkdir()
    Image.fromarray(tiny.image(0)).save(tmp_path / "a" / "x.png")
    monkeypatch.chdir(tmp_path)
    assert edgemed("predict", "bundle", "./a/x.png", "a//x.png", "a", "--json") == 0
    assert [one["path"] for one in json.loads(capsys.readouterr().out)] == ["./a/x.png", "a//x.png", "a/x.png"]


def test_a_folder_below_that_cannot_be_read_is_reported_and_the_others_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "locked", "z"):
        (tmp_path / name).mkdir()
        Image.fromarray(tiny.image(0)).save(tmp_path / name / "x.png")
    listed = Path.iterdir

    def refused(folder: Path) -> object:
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refused)
    errors: list[InputError] = []
    assert [path.parent.name for path in image_files(tmp_path, errors.append)] == ["a", "z"]
    assert [str(error).startswith(f"{tmp_path / 'locked'}: cannot be read") for error in errors] == [True]
    with pytest.raises(InputError, match="locked: cannot be read"):
        list(image_files(tmp_path))


def test_an_image_for_which_there_is_no_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> None:
        raise MemoryError

    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "x.png")
    for what in ("edgemed.images._rgb", "pathlib.Path.read_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(what, none_left)
            with pytest.raises(InputError, match=r"x\.png: needs more memory than there is"):
                images.image_from_file(tmp_path / "x.png")


@pytest.mark.parametrize("text", ["", "\npath,label\n"])
def test_an_empty_first_line_of_a_csv_is_called_empty(text: str, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(InputError, match=r"its first line \(empty\) needs one column"):
        rows_of_csv(tmp_path / "data.csv", tmp_path)
