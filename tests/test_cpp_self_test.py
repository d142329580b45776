"""The self-test of the C++ library: golden images through the engine, as Python runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import test_damaged as damaged
import tiny_bundles as tiny
from cpp_build import BUNDLE, GATE, INPUT, OK, opened

import edgemed
from edgemed.errors import GateError, InputError
from edgemed.evidence import Golden, golden_files
from edgemed.manifest import canonical_bytes
from edgemed.pack import write_bundle

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
    exact = tiny.bundle(tmp_path / "exact").path
    damaged.with_plan(damaged.RTX, image_side=(40, 48, 56))(exact)  # of the two images, one has just these sides
    assert "differs from its reference on 1 images" in opened(build, exact, self_test=1)["message"]


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
    members = np.stack([np.roll(shares, -m) / shares.sum() for m in range(2)])
    files = tiny.fields()["files"]
    files = {name: content for name, content in files.items() if not name.startswith("golden/")}
    files |= golden_files([Golden(image, members.mean(0), members)])
    bundle = tiny.bundle(tmp_path / "bundle", files=files).path
    damaged.with_plan(damaged.RTX, batch=(least, least, 4))(bundle)
    assert opened(build, bundle, self_test=1)["status"] == status


def test_the_self_test_looks_at_the_map_of_every_row(build: Path, tmp_path: Path) -> None:
    """By 7 the stub's maps are off in the rows after the first."""
    for marker, status in ((4, OK), (7, GATE)):
        image = tiny.image(100)
        image[0, 0] = (255, 0, marker)
        shares = 1 + image.reshape(-1, 3).mean(0)
        members = np.stack([np.roll(shares, -m) / shares.sum() for m in range(2)])
        entropy = (shares[0] - 1 + np.arange(4).reshape(2, 2)).astype(np.float32)
        fields = tiny.entropy_fields()
        files = {name: content for name, content in fields["files"].items() if not name.startswith("golden/")}
        fields["files"] = files | golden_files([Golden(image, members.mean(0), members, entropy)])
        bundle = write_bundle(tmp_path / str(marker), **fields).path
        damaged.with_plan(damaged.RTX, batch=(2, 2, 4))(bundle)
        assert opened(build, bundle, self_test=1)["status"] == status, marker


WRONG_BY = {  # what the reference has above 1/3 for each label: two members, the ensemble; the status at fp32 and fp16
    "little": ((0.0008, -0.0004, -0.0004),) * 3 + (OK, OK),
    "more": ((0.002, -0.001, -0.001),) * 3 + (GATE, OK),
    "more than fp16 may": ((0.006, -0.003, -0.003),) * 3 + (GATE, GATE),
    "another label": ((-0.0008, 0.0004, 0.0004),) * 3 + (GATE, OK),
    "members alone": ((0.006, -0.003, -0.003), (-0.006, 0.003, 0.003), (0, 0, 0), GATE, GATE),
    "a member's label": ((-0.0008, 0.0004, 0.0004), (0.0008, -0.0004, -0.0004), (0, 0, 0), OK, OK),  # decides nothing
}


@pytest.mark.parametrize("kind", WRONG_BY)
def test_the_self_test_has_the_tolerances_of_python(kind: str, build: Path, tmp_path: Path) -> None:
    """The graph answers 1/3 for each label of every image."""
    *members, mean, single, half = WRONG_BY[kind]
    golden = golden_files([Golden(tiny.image(1), np.add(mean, 1 / 3), np.add(members, 1 / 3))])
    graphs = {f"model.{each}.onnx": tiny.model(np.zeros_like(tiny.WEIGHTS)) for each in ("fp32", "fp16")}
    bundle = tiny.bundle(tmp_path / "bundle", files={**tiny.evidence_files(), **graphs, **golden}).path
    for precision, status in (("fp32", single), ("fp16", half)):
        try:
            edgemed.load(bundle, runtime="openvino", precision=precision).self_test()
            assert status == OK
        except GateError:
            assert status == GATE
        assert opened(build, bundle, "openvino", self_test=1, precision=precision)["status"] == status, precision


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


@pytest.mark.parametrize("wrong", ["a member too few", "a member too many", "another file", "no images"])
def test_golden_outputs_that_do_not_fit_the_manifest_are_refused(wrong: str, build: Path, tmp_path: Path) -> None:
    files = tiny.fields()["files"]
    outputs = json.loads(files["golden/outputs.json"])
    image = outputs["images"][0]
    if wrong == "another file":
        image["file"] = "002.png"
    image["members"] = image["members"][: 1 if wrong == "a member too few" else 2]
    image["members"] += image["members"][: wrong == "a member too many"]
    if wrong == "no images":
        outputs["images"] = []
    bundle = tiny.bundle(tmp_path / "bundle", files=files | {"golden/outputs.json": canonical_bytes(outputs)}).path
    with pytest.raises(InputError):
        edgemed.load(bundle, runtime="openvino").self_test()
    assert opened(build, bundle, "openvino", self_test=1)["status"] == BUNDLE
