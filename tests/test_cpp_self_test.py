"""The self-test of the C++ library: golden images through the engine, as Python runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import test_damaged as damaged
import tiny_bundles as tiny
from cpp_build import BUNDLE, GATE, INPUT, OK, opened

from edgemed.evidence import golden_files
from edgemed.manifest import canonical_bytes

pytestmark = pytest.mark.usefixtures("cache")


def test_the_self_test_asks_a_plan_for_what_it_takes(build: Path, tmp_path: Path) -> None:
    several = tiny.bundle(tmp_path / "several").path
    damaged.with_plan(damaged.RTX, batch=(2, 2, 4))(several)
    found = opened(build, several, self_test=1)  # the stub was run, and does not compute what the reference did
    assert (found["status"], "differs from its reference on 2 images" in found["message"]) == (GATE, True), found
    other = tiny.bundle(tmp_path / "other").path
    damaged.with_plan(damaged.RTX, image_side=(16, 20, 24))(other)
    assert "no golden image of" in opened(build, other, self_test=1)["message"]
    assert opened(build, other)["status"] == OK


def test_a_plan_of_endless_batches_is_not_tried(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle").path
    damaged.with_plan(damaged.RTX, batch=(2**62,) * 3)(bundle)
    found = opened(build, bundle, self_test=1)
    assert (found["status"], "1048576" in found["message"]) == (INPUT, True), found


@pytest.mark.parametrize(
    ("least", "marker", "status"), [(2, 4, OK), (4, 4, OK), (2, 3, GATE), (2, 5, GATE), (4, 6, GATE)]
)
def test_the_self_test_looks_at_every_row_of_a_batch(
    build: Path, tmp_path: Path, least: int, marker: int, status: int
) -> None:
    """By 3 the stub errs in later rows of a batch, by 5 they get the answer of the first, by 6 of the last but one."""
    image = tiny.image(100)
    image[0, 0] = (255, 0, marker)
    shares = 1 + image.reshape(-1, 3).mean(0)
    members = np.stack([np.roll(shares, -m) / shares.sum() for m in range(2)])[None]
    files = tiny.fields()["files"]
    files = {name: content for name, content in files.items() if not name.startswith("golden/")}
    bundle = tiny.bundle(tmp_path / "bundle", files=files | golden_files([image], members.mean(1), members)).path
    damaged.with_plan(damaged.RTX, batch=(least, least, 4))(bundle)
    assert opened(build, bundle, self_test=1)["status"] == status


def test_the_self_test_fails_where_the_answers_differ(build: Path, tmp_path: Path) -> None:
    good = tiny.bundle(tmp_path / "good").path
    assert opened(build, good, "openvino", self_test=1)["status"] == OK
    weights = tiny.WEIGHTS.copy()
    weights[0, 0, 0] += 0.1
    files = {"model.fp32.onnx": tiny.model(), "model.fp16.onnx": tiny.model(), **tiny.evidence_files(weights)}
    found = opened(build, tiny.bundle(tmp_path / "other", files=files).path, "openvino", self_test=1)
    assert (found["status"], "differs from its reference on 2 images" in found["message"]) == (GATE, True), found


def test_a_golden_row_that_holds_anything_else_is_refused(build: Path, tmp_path: Path) -> None:
    files = tiny.fields()["files"]
    outputs = json.loads(files["golden/outputs.json"])
    outputs["images"][0]["probabilities"].append([["deep"]])
    bundle = tiny.bundle(tmp_path / "bundle", files=files | {"golden/outputs.json": canonical_bytes(outputs)}).path
    found = opened(build, bundle, "openvino", self_test=1)
    assert (found["status"], "should hold 3 finite numbers" in found["message"]) == (BUNDLE, True), found
