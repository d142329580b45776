"""Runtimes are judged on the same pixels, decoders are compared and told apart from edgemed's own rules."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundles as tiny
from image_cases import DEEP, turned
from PIL import Image

from edgemed.decoders import PLAIN
from edgemed.errors import InputError
from edgemed.images import image_from_file
from edgemed.runtimes import onnxruntime as onnxruntime_module

Edgemed = Callable[..., int]

pytest.importorskip("onnxruntime", reason="extra train is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny.bundle(tmp_path / "bundle").path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four plain files; one with alpha, one of 16 bit, one that lies on its side."""
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(tiny.image(k)).save(folder / f"{k}.png")
    Image.fromarray(tiny.image(3)).save(folder / "3.jpg", quality=90)
    alpha = np.tile(np.arange(56, dtype=np.uint8) * 4, (40, 1))
    Image.fromarray(np.dstack((tiny.image(4), alpha))).save(folder / "alpha.png")
    Image.fromarray(np.resize(DEEP, (40, 56))).save(folder / "deep.png")
    Image.fromarray(tiny.image(5)).save(folder / "turned.jpg", exif=turned(6))
    return folder


def report_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def by_decoder(report: dict[str, Any], second: str) -> dict[str, dict[str, Any]]:
    """By kind of file: how that decoder compares with edgemed's own."""
    return {
        pair["files"]: pair
        for pair in report["decoder_pairs"]
        if (pair["first"], pair["second"]) == ("edgemed", second)
    }


class Narrow:
    """A session with a plan for one size: it refuses every image that is not upright 40 x 56."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if images.shape[1:3] != (40, 56):
            raise InputError("the plan takes 40 x 56")
        answers: dict[str, np.ndarray] = self._inner.run(images)
        return answers


class Wrong:
    """A session whose answers are those of another, with the first two labels exchanged, or shifted by a little."""

    def __init__(self, inner: Any, shift: float | None) -> None:
        self._inner, self._shift = inner, shift

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        outputs: dict[str, np.ndarray] = self._inner.run(images)
        before = outputs["probabilities"]
        order = np.argsort(before, axis=1)
        after = before.copy()
        if self._shift is None:
            rows = np.arange(len(before))
            after[rows, order[:, -1]], after[rows, order[:, -2]] = (
                before[rows, order[:, -2]],
                before[rows, order[:, -1]],
            )
        else:
            after[:, 0] += self._shift
        return {**outputs, "probabilities": after}


def wrong(monkeypatch: pytest.MonkeyPatch, shift: float | None) -> None:
    right = onnxruntime_module.open_session
    monkeypatch.setattr(onnxruntime_module, "open_session", lambda *a, **k: Wrong(right(*a, **k), shift))


def test_runtimes_given_the_same_pixels_agree(
    bundle: Path, images: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgemed("parity", bundle, images, "--json") == 0
    report = report_of(capsys)
    (pair,) = report["runtime_pairs"]
    assert (pair["first"], pair["second"], pair["images"], pair["flips"]) == ("openvino", "onnxruntime", 7, [])
    assert pair["max_prob_difference"] < 1e-6
    assert report["runtimes"]["openvino"]["version"] and report["decoders_on"] == "openvino"
    assert "driver" in report["runtimes"]["tensorrt-rtx"]["not_run"] or report["runtimes"]["tensorrt-rtx"]["version"]


def test_a_label_that_changes_between_runtimes_is_a_failed_gate(
    bundle: Path,
    images: Path,
    edgemed: Edgemed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong(monkeypatch, None)
    assert edgemed("parity", bundle, images, "--json") == 3
    told = capsys.readouterr()
    (pair,) = json.loads(told.out)["runtime_pairs"]
    assert len(pair["flips"]) == 7 and str(images / "3.jpg") in pair["flips"]
    message = " ".join(told.err.split())
    assert "openvino and onnxruntime on 7 of 7 images" in message and "0.png" in message


def test_the_largest_difference_of_a_probability_is_told_and_alone_fails_nothing(
    bundle: Path,
    images: Path,
    edgemed: Edgemed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong(monkeypatch, 3e-4)
    assert edgemed("parity", bundle, images, "--json") == 0
    assert report_of(capsys)["runtime_pairs"][0]["max_prob_difference"] == pytest.approx(3e-4, rel=1e-2)


def test_files_of_edgemeds_own_rules_are_counted_apart(
    bundle: Path, images: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgemed("parity", bundle, images, "--json") == 0
    pillow = by_decoder(report_of(capsys), "Pillow")
    assert {kind: pair["images"] for kind, pair in pillow.items()} == {
        PLAIN: 4, "16 bit": 1, "orientation": 1, "transparency": 1,
    }  # fmt: skip
    assert pillow[PLAIN]["max_pixel_difference"] == 0 and pillow[PLAIN]["max_prob_difference"] == 0
    ours = image_from_file(images / "alpha.png").astype(int)  # over black; Pillow leaves the colour as it is
    plain = np.asarray(Image.open(images / "alpha.png").convert("RGB")).astype(int)
    difference = np.abs(ours - plain)
    assert pillow["transparency"]["max_pixel_difference"] == difference.max() > 100
    assert pillow["transparency"]["mean_pixel_difference"] == pytest.approx(difference.mean())
    assert pillow["transparency"]["max_prob_difference"] > 1e-3
    assert pillow["orientation"]["other_shape"] == 1 and pillow["orientation"]["max_pixel_difference"] is None
    assert next(iter(pillow)) == PLAIN  # the table begins with what has no excuse


@pytest.mark.parametrize(("name", "module"), [("OpenCV", "cv2"), ("DALI", "nvidia.dali")])
def test_other_decoders_read_plain_files_alike(
    name: str, module: str, bundle: Path, images: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(module, reason="extra train is not installed")
    assert edgemed("parity", bundle, images, "--json") == 0
    report = report_of(capsys)
    plain = by_decoder(report, name)[PLAIN]
    assert report["decoders"][name]["version"] and plain["images"] == 4 and plain["undecoded"] == 0
    assert plain["mean_pixel_difference"] < 1 and plain["flips"] == []  # blue and red are not exchanged
    pairs = {(pair["first"], pair["second"]) for pair in report["decoder_pairs"]}
    assert {("edgemed", name), ("Pillow", name)} <= pairs


def test_a_file_that_a_decoder_cannot_read_is_counted_not_compared(
    bundle: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pydicom", reason="extra dicom is not installed")
    pytest.importorskip("imagecodecs", reason="extra dicom is not installed")
    from dicom_cases import dicom

    folder = tmp_path / "data"
    folder.mkdir()
    Image.fromarray(tiny.image(1)).save(folder / "plain.png")
    (folder / "scan.dcm").write_bytes(dicom(tiny.image(2)[:, :, 0]))
    assert edgemed("parity", bundle, folder, "--json") == 0
    pillow = by_decoder(report_of(capsys), "Pillow")["DICOM"]
    assert (pillow["undecoded"], pillow["images"], pillow["max_prob_difference"]) == (1, 0, None)
    assert edgemed("parity", bundle, folder) == 0
    told = capsys.readouterr().out
    assert "1 not decoded" in told and "not measured" in told


def test_what_is_not_installed_is_said(
    bundle: Path,
    images: Path,
    edgemed: Edgemed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("cv2", "nvidia.dali"):
        monkeypatch.setitem(sys.modules, module, None)
    reason = "the package onnxruntime is not installed"
    monkeypatch.setattr(onnxruntime_module, "availability", lambda: reason)
    assert edgemed("parity", bundle, images) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "not run: OpenCV: not installed (pip install opencv-python-headless)" in out
    assert "not run: DALI: not installed" in out
    assert f"not run: onnxruntime: {reason}" in out
    assert "nothing to compare it with" in out
    assert "edgemed, Pillow" in out and "transparency" in out


def test_a_refused_file_is_named_and_the_others_go_on(
    bundle: Path, images: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "empty.png").touch()
    Image.fromarray(tiny.image(1, 8, 8)).save(images / "small.png")
    assert edgemed("parity", bundle, images, "--json") == 2
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert report["images"] == 7
    assert [Path(one["path"]).name for one in report["refused"]] == ["empty.png", "small.png"]
    message = " ".join(told.err.split())
    assert "empty.png: is empty" in message and "sides from 16 to 512" in message


def test_an_image_that_one_runtime_refuses_is_not_compared_on_it(
    bundle: Path,
    images: Path,
    edgemed: Edgemed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = onnxruntime_module.open_session
    monkeypatch.setattr(onnxruntime_module, "open_session", lambda *a, **k: Narrow(whole(*a, **k)))
    assert edgemed("parity", bundle, images, "--json") == 0
    report = report_of(capsys)
    assert (report["images"], report["refused"]) == (7, [])
    assert report["runtime_pairs"][0]["images"] == 6  # all but the one that lies on its side
    assert report["runtimes"]["onnxruntime"]["refused"] == 1
    assert "turned.jpg: the plan takes 40 x 56" in report["runtimes"]["onnxruntime"]["refusal"]
    assert by_decoder(report, "Pillow")["orientation"]["images"] == 1  # compared on openvino
    assert edgemed("parity", bundle, images) == 0
    assert "onnxruntime refuses 1 images" in capsys.readouterr().out


def test_nothing_to_compare_is_an_error(
    bundle: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "x.png").touch()
    assert edgemed("parity", bundle, folder) == 2
    assert "none of the 1 images" in capsys.readouterr().err


def test_limit_spreads_over_the_files(
    bundle: Path, images: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgemed("parity", bundle, images, "--limit", "2", "--json") == 0
    report = report_of(capsys)
    assert report["images"] == 2
    assert set(by_decoder(report, "Pillow")) == {PLAIN, "orientation"}  # the first file and the last


def test_a_named_runtime_that_cannot_serve_is_an_error(
    bundle: Path, images: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgemed("parity", bundle, images, "--runtime", "tensorrt") == 2
    assert "--runtime tensorrt cannot serve" in capsys.readouterr().err
    assert edgemed("parity", bundle, images, "--runtime", "onnxruntim") == 2
    assert "Did you mean 'onnxruntime'?" in capsys.readouterr().err
