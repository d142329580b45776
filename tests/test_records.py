"""What a plan's record says counts: which images the plan takes, where it was proven, and of what that is no proof."""

from __future__ import annotations

import calendar
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_bundle
import tiny_bundles as tiny
from PIL import Image
from test_plans_classic import Session

from edgemed.certify import Finding, certify
from edgemed.evidence import reference_file
from edgemed.gates import Gates
from edgemed.images import pixels_sha256
from edgemed.infer import Model, load
from edgemed.manifest import ImageInput, OperatingPoint, sha256_of
from edgemed.pack import add_plan
from edgemed.plans import tried
from edgemed.preflight import Here
from edgemed.records import now
from edgemed.runtimes.tensorrt import Flavour

pytestmark = pytest.mark.usefixtures("cache")
PLAN = b"machine code"


def known(folder: Path, pixels: list[np.ndarray], **fields: object) -> Path:
    """A bundle at `folder`/bundle whose reference knows these images; they lie in `folder`/data."""
    (folder / "data").mkdir()
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "data" / f"{k}.png")
    truth = np.concatenate([tiny.expected(image[None])[1] for image in pixels])
    rows = range(len(pixels))
    table = reference_file([pixels_sha256(one) for one in pixels], [0 for _ in rows], rows, ["test"] * len(rows), truth)
    files = {**tiny.fields()["files"], "reference.npz": table}
    return tiny.bundle(folder / "bundle", files=files, **fields).path


@pytest.fixture
def onnx(tmp_path: Path) -> tuple[Model, Finding]:
    """A model without a plan, and its certificate."""
    path = known(tmp_path, [tiny.image(k) for k in range(3)])
    found = certify(load(path, runtime="openvino"), tmp_path / "data", Gates())
    return load(path, runtime="openvino"), found


def test_a_record_counts_as_certified_only_in_that_state(onnx: tuple[Model, Finding]) -> None:
    record, bundle_id = onnx[1].record, onnx[0].bundle.manifest.bundle_id
    assert record.certificate is not None and record.certified_at(record.certificate.place, bundle_id)
    for state in ("built", "self-tested"):
        other = record.model_copy(update={"state": state})
        assert not other.certified_at(record.certificate.place, bundle_id)


def test_a_certificate_counts_for_nothing_in_a_bundle_that_decides_otherwise(
    onnx: tuple[Model, Finding], tmp_path: Path
) -> None:
    """The engine is the same, byte for byte; but its decisions were judged by another operating point."""
    mine = onnx[0].bundle
    point = OperatingPoint(images=9, coverage=0.9, min_probability=0.3)
    files = {name: mine.read(name) for name in mine.manifest.files}
    other = tiny.bundle(tmp_path / "other", files=files, operating_point=point)
    shutil.copytree(mine.path / "plans", other.path / "plans")
    assert other.manifest.files["model.fp32.onnx"] == mine.manifest.files["model.fp32.onnx"]
    assert load(mine.path, runtime="openvino").state == "certified"
    assert load(other.path, runtime="openvino").state == "built"


def test_a_plans_certificate_is_none_for_the_onnx_file(onnx: tuple[Model, Finding]) -> None:
    model, found = onnx
    assert model.state == "certified"
    of_plan = found.record.model_copy(update={"id": "a-plan", "sha256": sha256_of(PLAN), "bytes": len(PLAN)})
    add_plan(model.bundle, of_plan, PLAN)
    (model.bundle.path / "plans" / f"{found.record.id}.json").unlink()
    assert replace(model, record=of_plan).state == "certified"
    assert model.state == "built"


def test_a_certificate_that_was_copied_from_another_models_bundle_counts_for_nothing(
    onnx: tuple[Model, Finding], tmp_path: Path
) -> None:
    assert onnx[0].state == "certified"
    files = {**tiny.fields()["files"], "model.fp32.onnx": tiny.model(-tiny.WEIGHTS)}
    other = tiny.bundle(tmp_path / "other", files=files)
    shutil.copytree(onnx[0].bundle.path / "plans", other.path / "plans")
    assert load(other.path, runtime="openvino").state == "built"


def test_a_record_that_cannot_be_read_keeps_no_onnx_file_from_answering(
    onnx: tuple[Model, Finding], caplog: pytest.LogCaptureFixture
) -> None:
    (onnx[0].bundle.path / "plans" / "other.json").write_text("{}")
    model = load(onnx[0].bundle.path, runtime="openvino")
    assert (model.state, model(tiny.image(0)).runtime) == ("built", "openvino")
    assert "other.json is not valid" in caplog.text


@pytest.mark.parametrize(("capability", "state"), [("sm86", "self-tested"), ("sm89", "built")])
def test_a_plan_is_tried_on_a_gpu_that_it_was_built_for_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str, state: str
) -> None:
    opened: list[bytes] = []
    monkeypatch.setattr(Flavour, "availability", lambda self: None)
    monkeypatch.setattr(Flavour, "here", lambda self: Here(self.name, "1.7.1", capability, "Linux", "x86_64"))
    monkeypatch.setattr(Flavour, "open_plan", lambda self, plan, record: opened.append(plan) or Session(0.0))
    record = test_bundle.record(PLAN, targets=("sm80", "sm86"))
    assert tried(tiny.bundle(tmp_path / "bundle"), record, PLAN).state == state
    assert opened == ([PLAN] if state == "self-tested" else [])


@pytest.mark.parametrize(
    ("height", "width", "taken"),
    [(16, 16, True), (512, 512, True), (15, 48, False), (48, 15, False), (513, 48, False), (48, 513, False)],
)
def test_a_plan_takes_images_whose_sides_are_both_in_its_range(height: int, width: int, taken: bool) -> None:
    record = test_bundle.record(PLAN, image_side=(16, 48, 512))
    assert record.takes(tiny.image(0, height, width)) == taken


def test_the_golden_images_of_a_plan_are_those_that_it_takes(onnx: tuple[Model, Finding]) -> None:
    """tiny_bundles has one of 40 x 56 and one of 64 x 48."""
    for sides, shapes in {(16, 48, 60): [(40, 56, 3)], (41, 48, 64): [(64, 48, 3)], (16, 48, 50): []}.items():
        plan = replace(onnx[0], record=test_bundle.record(PLAN, image_side=sides))
        assert [item.image.shape for item in plan.golden()] == shapes
        if shapes:
            assert plan.self_test().n == 1


@pytest.mark.parametrize("least", [1, 3])
def test_a_self_test_gives_a_plan_as_many_images_at_once_as_it_wants(
    onnx: tuple[Model, Finding], monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    model, asked = onnx[0], set[int]()
    real = model.session.run
    monkeypatch.setattr(model.session, "run", lambda pixels: asked.add(len(pixels)) or real(pixels))
    replace(model, record=test_bundle.record(PLAN, batch=(least, 4, 8))).self_test()
    assert asked == {least}


def test_a_record_states_the_time_in_utc_wherever_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(time, "tzset"):
        pytest.skip("this system's time zone cannot be changed for a process")
    monkeypatch.setenv("TZ", "XYZ-11")  # eleven hours ahead of UTC
    time.tzset()
    try:
        stated = calendar.timegm(time.strptime(now(), "%Y-%m-%dT%H:%M:%SZ"))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert abs(stated - time.time()) < 60


def test_known_images_that_do_not_fit_are_not_counted_as_unknown_too(
    tmp_path: Path, edgemed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = [tiny.image(0, 40, 40), tiny.image(1, 40, 40), tiny.image(2, 40, 56), tiny.image(3, 64, 40)]
    path = known(tmp_path, pixels, image_input=ImageInput(min_side=16, opt_side=48, max_side=50))
    Image.fromarray(tiny.image(9)).save(tmp_path / "data" / "unknown.png")
    assert edgemed("certify", path, tmp_path / "data", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["files"], told["record"]["certificate"]["images"]) == (5, 2)
    assert (told["unfit"], told["unmatched"]) == (2, 1)


def test_what_a_system_hides_in_plans_is_no_record(onnx: tuple[Model, Finding]) -> None:
    bundle = onnx[0].bundle
    before = bundle.plans()
    for name in (f"._{before[0].id}.json", "._other.plan", ".DS_Store"):  # macOS's, on a stick
        (bundle.path / "plans" / name).write_bytes(b"\0\5\x16\7")
    assert bundle.plans() == before
    bundle.verify()
