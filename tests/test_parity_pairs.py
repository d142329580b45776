"""The figures of a pair in `edgemed parity` are of these two alone, over all files, by the rule of the gates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_bundles as tiny
from PIL import Image
from test_parity import by_decoder, report_of, wrong

from edgemed import parity as parity_module
from edgemed.decoders import PLAIN
from edgemed.images import Rgb

Edgemed = Callable[..., int]
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(tiny.image(k)).save(folder / f"{k}.png")
    return folder


def decoded_otherwise(monkeypatch: pytest.MonkeyPatch, **changes: Callable[[Rgb], Rgb]) -> None:
    """The plain decoders are these: Pillow's pixels, each with a change of its own."""
    pillow = parity_module.plain_decoders()[0]["Pillow"]

    def changed(change: Callable[[Rgb], Rgb]) -> Callable[[bytes], Rgb | None]:
        return lambda data: None if (pixels := pillow(data)) is None else change(pixels)

    told = {name: {"version": "1", "not_run": None} for name in changes}
    made = {name: changed(change) for name, change in changes.items()}
    monkeypatch.setattr(parity_module, "plain_decoders", lambda: (made, told))


@pytest.mark.parametrize(("precision", "flips"), [("fp16", 0), ("fp32", 3)])
def test_between_runtimes_a_label_without_a_clear_answer_may_change_at_fp16_alone(
    precision: str, flips: int, tmp_path: Path, images: Path, edgemed: Edgemed,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    weights = tiny.WEIGHTS * np.float32(1e-3)  # all labels are nearly as probable
    files = {f"model.{each}.onnx": tiny.model(weights) for each in ("fp32", "fp16")} | tiny.evidence_files(weights)
    bundle = tiny.bundle(tmp_path / "bundle", files=files).path
    wrong(monkeypatch, None)
    assert edgemed("parity", bundle, images, "--precision", precision, "--json") == (3 if flips else 0)
    (pair,) = report_of(capsys)["runtime_pairs"]
    assert (pair["images"], len(pair["flips"])) == (3, flips)
    assert 0 < pair["max_prob_difference"] < 1e-2


@pytest.mark.parametrize("largest", [0, 1, 2])
def test_the_largest_difference_of_a_pixel_is_that_of_all_files(
    largest: int, tmp_path: Path, images: Path, edgemed: Edgemed,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    steps = iter(9 if k == largest else 3 for k in range(3))

    def brighter(pixels: Rgb) -> Rgb:
        pixels = pixels.copy()
        pixels[0, 0, 0] += next(steps)
        return pixels

    decoded_otherwise(monkeypatch, Brighter=brighter)
    assert edgemed("parity", tiny.bundle(tmp_path / "bundle").path, images, "--json") == 0
    plain = by_decoder(report_of(capsys), "Brighter")[PLAIN]
    assert plain["max_pixel_difference"] == 9
    assert plain["mean_pixel_difference"] == pytest.approx(5 / tiny.image(0).size)


def test_two_decoders_are_compared_with_each_other(
    tmp_path: Path, images: Path, edgemed: Edgemed,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    dark, black = (lambda pixels: pixels // 2), (lambda pixels: pixels * 0)
    decoded_otherwise(monkeypatch, Dark=dark, Again=dark, Black=black)
    assert edgemed("parity", tiny.bundle(tmp_path / "bundle").path, images, "--json") == 0
    found = {(pair["first"], pair["second"]): pair for pair in report_of(capsys)["decoder_pairs"]}
    assert len(found) == 6
    pixels = [tiny.image(k) for k in range(3)]
    change = {"edgemed": lambda image: image, "Dark": dark, "Again": dark, "Black": black}
    for (first, second), pair in found.items():
        one, other = ([change[name](image) for image in pixels] for name in (first, second))
        answers = [np.concatenate([tiny.expected(image[None])[0] for image in each]) for each in (one, other)]
        assert pair["max_prob_difference"] == pytest.approx(np.abs(answers[0] - answers[1]).max(), abs=2e-6)
        assert pair["max_pixel_difference"] == np.abs(np.subtract(one, other, dtype=int)).max()
    assert found["Dark", "Again"]["max_prob_difference"] == 0 < found["Dark", "Black"]["max_prob_difference"]
