"""A certificate says what was compared, and where; a gate that fails leaves none; another place needs its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundles as tiny
from PIL import Image

import edgemed
from edgemed.bundle import open_bundle
from edgemed.certify import certify
from edgemed.errors import GateError, InputError
from edgemed.evidence import reference_file
from edgemed.gates import Gates
from edgemed.images import pixels_sha256
from edgemed.infer import Model, load
from edgemed.manifest import OperatingPoint
from edgemed.operating import disagreement

Edgemed = Callable[..., int]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve images, the last two unknown to the reference, one of the others there twice."""
    folder = tmp_path / "data"
    for k in range(12):
        path = folder / tiny.LABELS[k % 3] / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.image(k)).save(path)
    Image.fromarray(tiny.image(0)).save(folder / "copy.png")
    return folder


def bundle(folder: Path, error: float = 0.0, apart: float = 0.0, **fields: Any) -> Path:
    """A bundle whose reference knows ten images; of image 3 PyTorch is said to have answered `error` more.

    apart: what its first member is said to have answered more, and its second less.
    """
    pixels = [tiny.image(k) for k in range(10)]
    truth = np.concatenate([tiny.expected(one[None])[1] for one in pixels])
    for label, sign in ((0, 1), (1, -1)):
        truth[3, :, label] += sign * error
        truth[3, :, label] += sign * apart * np.array([1, -1])
    table = reference_file(
        [pixels_sha256(one) for one in pixels],
        [k % 3 for k in range(10)],
        list(range(10)),
        ["test"] * 10,
        truth,
    )
    files = {**tiny.fields()["files"], "reference.npz": table}
    return tiny.bundle(folder, files=files, **fields).path


def test_the_certificate_states_the_comparison_and_its_place(
    tmp_path: Path, images: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle(tmp_path / "bundle", error=2e-4)
    assert edgemed("certify", path, images, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["files"], told["unmatched"], told["reference_images"]) == (13, 3, 10)
    (record,) = open_bundle(path).plans()
    assert record.model_dump(mode="json") == told["record"]
    assert record.state == "certified"
    assert record.sha256 is None
    statement = record.certificate
    assert statement is not None
    assert statement.images == 10
    assert statement.max_prob_error == pytest.approx(2e-4, abs=5e-6)
    assert statement.mean_prob_error == pytest.approx(4e-4 / 30, abs=2e-6)
    assert statement.flips == ()
    assert statement.place.runtime == "openvino"
    assert statement.auroc_change is not None
    assert statement.auroc_change.value == 0
    assert edgemed("inspect", path) == 0
    assert "certified on 10 images" in " ".join(capsys.readouterr().out.split())


def test_a_bundle_that_takes_no_certificate_is_told_of_before_any_image_is_run(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = edgemed.load(bundle(tmp_path / "bundle"), runtime="openvino")
    monkeypatch.setattr("os.access", lambda *_: False)  # as on a disk that is mounted read-only
    monkeypatch.setattr("edgemed.certify.image_from_file", lambda _: pytest.fail("an image was read"))
    with pytest.raises(InputError, match="cannot write into .*plans; choose a copy of the bundle"):
        certify(model, images, Gates())


def test_a_certificate_holds_in_its_own_place_alone(tmp_path: Path, images: Path) -> None:
    path = bundle(tmp_path / "bundle")
    model = edgemed.load(path, runtime="openvino")
    assert model.state == "built"
    found = certify(model, images, Gates())
    assert edgemed.load(path, runtime="openvino").state == "certified"
    assert edgemed.load(path, runtime="onnxruntime").state == "built"
    assert edgemed.load(path, runtime="openvino", precision="fp16").state == "built"
    assert found.record.certificate is not None
    place, bundle_id = found.record.certificate.place, model.bundle.manifest.bundle_id
    for change in ({"capability": "x86_64:avx2"}, {"version": "1.0"}, {"device": "another CPU"}, {"os": "Windows"}):
        assert found.record.certified_at(place, bundle_id)
        assert not found.record.certified_at(place.model_copy(update=change), bundle_id)


@pytest.mark.parametrize(
    ("gate", "value", "error"), [("--max-prob-error", "1e-4", 2e-4), ("--max-prob-error", "1e-3", 2e-3)]
)
def test_a_gate_that_fails_writes_nothing_and_exits_with_3(
    gate: str,
    value: str,
    error: float,
    tmp_path: Path,
    images: Path,
    edgemed: Edgemed,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = bundle(tmp_path / "bundle", error=error)
    assert edgemed("certify", path, images, gate, value) == 3
    assert "largest probability error" in capsys.readouterr().err
    assert open_bundle(path).plans() == ()


def test_a_flip_is_named_by_its_file_and_can_be_allowed(tmp_path: Path, images: Path) -> None:
    row = tiny.expected(tiny.image(3)[None])[0][0]
    path = bundle(tmp_path / "bundle", error=float(row[1] - row[0]) / 2 + 0.05)  # label 0 in place of label 1
    assert row.argmax() == 1
    model = edgemed.load(path)
    with pytest.raises(GateError, match=r"1 decision flips \(images \S*03\.png\)"):
        certify(model, images, Gates())
    found = certify(model, images, Gates(max_flips=1, max_prob_error=1, max_auroc_drop=1))
    assert [name.name for name in found.flips] == ["03.png"]
    assert found.record.certificate is not None
    assert found.record.certificate.flips == (pixels_sha256(tiny.image(3)),)


def test_a_decision_that_changes_by_the_operating_point_alone_is_a_flip(tmp_path: Path, images: Path) -> None:
    share = float(tiny.expected(tiny.image(3)[None])[0][0, 0])  # of label 0, which is not the most probable
    for folder, error, flips in (("changed", 9e-4, ["03.png"]), ("nearer", -9e-4, [])):
        point = OperatingPoint(images=9, coverage=0.9, min_probability=share + 5e-4)
        model = edgemed.load(bundle(tmp_path / folder, error=error, operating_point=point))
        assert [path.name for path in certify(model, images, Gates(max_flips=1)).flips] == flips
        if flips:
            with pytest.raises(GateError, match=r"1 decision flips \(images \S*03\.png\)"):
                certify(model, images, Gates())


def test_a_referral_that_changes_is_a_flip_though_the_mean_is_the_same(tmp_path: Path, images: Path) -> None:
    probabilities, members = tiny.expected(tiny.image(3)[None])
    shift = 9e-4 if members[0, 0, 0] > members[0, 1, 0] else -9e-4  # away from each other
    before = float(disagreement(probabilities, members)[0])
    point = OperatingPoint(images=9, max_disagreement=before + 4e-4)
    model = load(bundle(tmp_path / "changed", apart=shift, operating_point=point))
    with pytest.raises(GateError, match=r"1 decision flips \(images \S*03\.png\)"):
        certify(model, images, Gates())
    model = load(bundle(tmp_path / "same", operating_point=point))
    assert certify(model, images, Gates()).flips == ()


def test_members_whose_errors_cancel_in_the_mean_fail(tmp_path: Path, images: Path) -> None:
    model = load(bundle(tmp_path / "bundle", apart=3e-3))
    with pytest.raises(GateError, match=r"member imagenet, differs .* error 3\.00e-03, at most 0\.002"):
        certify(model, images, Gates())
    certificate = certify(model, images, Gates(max_prob_error=2e-3)).record.certificate
    assert certificate is not None and certificate.max_prob_error < 1e-6


def test_a_fall_of_the_auroc_is_a_gate_of_its_own(tmp_path: Path, images: Path) -> None:
    row = tiny.expected(tiny.image(3)[None])[0][0]
    path = bundle(tmp_path / "bundle", error=float(row[1] - row[0]) / 2 + 0.05)
    with pytest.raises(GateError, match="AUROC lower by"):
        certify(edgemed.load(path), images, Gates(max_flips=1, max_prob_error=1))


@pytest.mark.parametrize("row", [0, 1, None])
def test_every_row_of_a_plans_batch_has_to_be_right_and_to_be_of_its_own_image(
    row: int | None, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle(tmp_path / "bundle")
    model = edgemed.load(path, runtime="openvino")
    record = certify(model, images, Gates()).record.model_copy(update={"batch": (2, 2, 4), "state": "built"})
    plan, real = replace(model, record=record), model.session.run
    assert plan.self_test().n == len(plan.golden())

    def run(pixels: Any) -> Any:
        outputs = {name: values.copy() for name, values in real(pixels).items()}
        for values in outputs.values():
            if row is None:
                values[:] = values[0]  # each image gets the answer of the first
            else:
                values[row] = np.roll(values[row], 1, axis=-1)
        return outputs

    monkeypatch.setattr(model.session, "run", run)
    # Rolled probabilities are another label for all; the negative's label need not be another one.
    flips = "differs from its reference on 10 images" if row is None else "on 10 images: 10 decision flips"
    with pytest.raises(GateError, match=flips):
        certify(plan, images, Gates())
    with pytest.raises(GateError, match="largest probability error" if row is None else "decision flips"):
        plan.self_test()
    put = [one.state for one in open_bundle(path).plans()]
    assert put == ["certified"]  # that of the ONNX file, from before


def test_the_data_are_read_by_the_rules_of_training(tmp_path: Path, images: Path) -> None:
    (images / "__MACOSX").mkdir()
    for hidden in (images / "__MACOSX" / "00.png", images / "._00.png", images / ".thumbs.png"):
        hidden.write_text("no image")
    (images / "benign" / "back").symlink_to(images)
    model = edgemed.load(bundle(tmp_path / "bundle"), runtime="openvino")
    assert certify(model, images, Gates()).files == 13
    names = [path.relative_to(tmp_path) for path in sorted(images.glob("*/0?.png")) if "MACOSX" not in str(path)]
    (tmp_path / "data.csv").write_text("\n".join(["Label, Path", *(f"benign, {name} " for name in names), "", ","]))
    found = certify(model, tmp_path / "data.csv", Gates())
    assert found.record.certificate is not None
    assert (found.files, found.record.certificate.images) == (10, 10)


def test_known_images_that_the_bundle_does_not_take_are_counted(tmp_path: Path, images: Path) -> None:
    path = bundle(tmp_path / "bundle")
    model = edgemed.load(path, runtime="openvino")
    limits = model.bundle.manifest.input.model_copy(update={"max_side": 50})
    manifest = model.bundle.manifest.model_copy(update={"input": limits})
    small, told = replace(model, bundle=replace(model.bundle, manifest=manifest)), []
    with pytest.raises(InputError, match="none of the 10 known images .* fits the engine, whose sides are .* to 50;"):
        certify(small, images, Gates(), progress=lambda stage, done, total, detail: told.append((done, total)))
    assert told == [(k, 13) for k in range(1, 14)]  # each file


def test_images_that_the_reference_does_not_know_prove_nothing(tmp_path: Path) -> None:
    path = bundle(tmp_path / "bundle")
    folder = tmp_path / "other"
    folder.mkdir()
    Image.fromarray(tiny.image(99)).save(folder / "x.png")
    with pytest.raises(InputError, match="none of the 1 images .* is known"):
        certify(edgemed.load(path), folder, Gates())
    (tmp_path / "data.csv").write_text("file,label\nother/x.png,benign\n")
    with pytest.raises(InputError, match="no column 'path'"):
        certify(edgemed.load(path), tmp_path / "data.csv", Gates())


def test_a_plan_is_certified_by_images_that_it_takes_and_as_many_at_once_as_it_wants(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle(tmp_path / "bundle")
    model = edgemed.load(path, runtime="openvino")
    record = certify(model, images, Gates()).record

    def as_plan(side: int) -> Model:
        return replace(model, record=record.model_copy(update={"batch": (2, 2, 4), "image_side": (32, side, side)}))

    asked: list[int] = []
    real = model.session.run

    def run(pixels: Any) -> Any:
        asked.append(len(pixels))
        return real(pixels)

    monkeypatch.setattr(model.session, "run", run)
    found = certify(as_plan(56), images, Gates())
    assert found.record.certificate is not None
    assert (asked, found.record.certificate.images, found.unfit) == ([2] * 20, 10, 0)  # each image in both places
    with pytest.raises(InputError, match="none of the 10 known images .* fits the engine, whose sides are 32 to 50;"):
        certify(as_plan(50), images, Gates())


@pytest.mark.parametrize("signed", [True, False])
def test_where_there_is_a_key_an_unsigned_certificate_does_not_count(
    signed: bool, tmp_path: Path, images: Path, edgemed: Edgemed, key_files: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    private, public = key_files
    path = bundle(tmp_path / "bundle", signing_key=private.read_bytes())
    assert edgemed("certify", path, images, "--runtime", "openvino", *(("--sign", private) if signed else ())) == 0
    assert load(path, runtime="openvino").state == "certified"
    assert load(path, runtime="openvino", public_key=public).state == ("certified" if signed else "built")
    capsys.readouterr()
    assert edgemed("inspect", path, "--verify", public) == (0 if signed else 2)
    assert ("is not signed" in " ".join(capsys.readouterr().err.split())) != signed


def test_a_certificate_that_verify_would_refuse_is_not_made(images: Path, tmp_path: Path, edgemed: Edgemed) -> None:
    path = bundle(tmp_path / "bundle")
    assert edgemed("certify", path, images, "--verify", tmp_path / "key.pem") == 2
    assert not list(path.glob("plans/*"))
