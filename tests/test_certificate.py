"""The figures of a certificate: the change of AUROC has a sign and counts patients, limits have a margin at fp16."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundles as tiny
from PIL import Image

from edgemed import tables
from edgemed.certify import certify
from edgemed.errors import GateError
from edgemed.evidence import reference_file
from edgemed.gates import Gates, default_gates
from edgemed.images import pixels_sha256
from edgemed.infer import Model, load
from edgemed.listing import image_files
from edgemed.manifest import OperatingPoint
from edgemed.metrics import auroc_change

pytestmark = pytest.mark.usefixtures("cache")
WIDE = Gates(max_flips=99, max_prob_error=1, max_auroc_drop=1)


def noted(folder: Path, members: np.ndarray, groups: Sequence[int], precision: str = "fp32", **fields: Any) -> Model:
    """A model of which PyTorch is said to have answered `members` (N, M, K) on the N images in `folder`/data.

    Image k is of class k % 3.
    """
    (folder / "data").mkdir()
    pixels = [tiny.image(k) for k in range(len(members))]
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "data" / f"{k:02d}.png")
    labels = [k % 3 for k in range(len(pixels))]
    hashes = [pixels_sha256(image) for image in pixels]
    table = reference_file(hashes, labels, groups, ["test"] * len(pixels), members)
    files = {**tiny.fields()["files"], "reference.npz": table}
    return load(tiny.bundle(folder / "bundle", files=files, **fields).path, runtime="openvino", precision=precision)


def answers(count: int) -> np.ndarray:
    """What the tiny model's members answer: (count, M, K)."""
    return np.concatenate([tiny.expected(tiny.image(k)[None])[1] for k in range(count)])


def test_the_change_of_auroc_is_the_engines_minus_pytorchs_with_an_interval_over_patients(tmp_path: Path) -> None:
    """Where PyTorch ranked better than the engine does, the change is negative."""
    count, groups = 36, [k // 3 for k in range(36)]
    given, labels = answers(count), np.arange(count) % 3
    better = given * 0.6
    better[np.arange(count), :, labels] += 0.4
    certificate = certify(noted(tmp_path, better, groups), tmp_path / "data", WIDE).record.certificate
    expected = auroc_change(labels, better.mean(1), given.mean(1), groups)
    assert expected is not None and expected.value < -0.1
    assert certificate is not None and (change := certificate.auroc_change) is not None
    # The table is sorted by hash, so that the resamples draw the patients in another order.
    assert change.value == pytest.approx(expected.value, abs=1e-6)
    assert change.high - change.low == pytest.approx(expected.high - expected.low, rel=0.15)
    of_images = auroc_change(labels, better.mean(1), given.mean(1), range(count))
    assert of_images is not None and abs(of_images.high - of_images.low - expected.high + expected.low) > 0.03


def test_few_patients_give_a_certificate_the_change_of_auroc_without_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = noted(tmp_path, answers(18), [k // 2 for k in range(18)])
    found = certify(model, tmp_path / "data", Gates())
    certificate = found.record.certificate
    assert certificate is not None and certificate.auroc_change is not None
    assert certificate.auroc_change.model_dump() == {"value": 0, "low": None, "high": None}
    assert load(model.bundle.path, runtime="openvino").state == "certified"  # and it is read back
    tables.certificate(found)
    assert "change of AUROC +0.00000 (no interval)" in " ".join(capsys.readouterr().out.split())


def test_a_bundle_that_serves_on_two_cpus_keeps_a_certificate_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = noted(tmp_path, answers(12), range(12))
    mine = certify(model, tmp_path / "data", Gates()).record
    assert mine.certificate is not None
    other = mine.certificate.place.model_copy(update={"capability": "x86_64:avx512vnni,amx_int8"})
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("edgemed.certify.place_of", lambda *_: other)
        theirs = certify(model, tmp_path / "data", Gates()).record
    again = certify(model, tmp_path / "data", Gates()).record
    kept = {record.id: record.certificate.place for record in model.bundle.plans() if record.certificate}
    assert kept == {again.id: mine.certificate.place, theirs.id: other} and again.id == mine.id


def test_each_place_of_a_plans_batch_is_compared_with_its_own_image(tmp_path: Path) -> None:
    """By label, by AUROC and by the operating point: an engine that is right in all places has changed nothing."""
    point = OperatingPoint(images=9, positive="malignant", threshold=0.4, target="sensitivity", target_value=0.9)
    model = noted(tmp_path, answers(12), range(12), operating_point=point)
    record = certify(model, tmp_path / "data", Gates()).record
    plan = replace(model, record=record.model_copy(update={"batch": (2, 2, 4)}))
    found = certify(plan, tmp_path / "data", Gates())
    assert found.flips == () and found.record.certificate is not None
    change = found.record.certificate.auroc_change
    assert change is not None and change.value == 0


@pytest.mark.parametrize(("precision", "flips"), [("fp32", ["03.png"]), ("fp16", [])])
def test_at_fp16_a_decision_that_pytorch_was_not_clear_about_does_not_count(
    precision: str, flips: list[str], tmp_path: Path
) -> None:
    members = answers(12)
    share = float(members[3, :, 0].mean())
    members[3] += 4e-3 * np.array([1, -1, 0])
    point = OperatingPoint(images=9, coverage=0.9, min_probability=share + 2e-3)
    model = noted(tmp_path, members, range(12), precision, operating_point=point)
    gates = default_gates(precision, max_flips=1, max_prob_error=5e-3)
    assert [path.name for path in certify(model, tmp_path / "data", gates).flips] == flips


@pytest.mark.parametrize(("off", "name"), [((2.9e-3, -1e-3), "imagenet"), ((-1e-3, 2.9e-3), "mae")])
def test_each_member_is_judged(off: tuple[float, float], name: str, tmp_path: Path) -> None:
    """The mean is within the gate, and so is the other member."""
    members = answers(3)
    members[1] += np.array(off)[:, None] * np.array([1, -1, 0])
    with pytest.raises(GateError, match=rf"member {name}, differs .* error 2\.90e-03, at most 0\.002"):
        certify(noted(tmp_path, members, range(3)), tmp_path / "data", Gates())


def test_a_certificate_states_the_gates_that_it_kept(tmp_path: Path) -> None:
    gates = Gates(max_flips=2, max_prob_error=3e-3, max_auroc_drop=0.04)
    certificate = certify(noted(tmp_path, answers(3), range(3)), tmp_path / "data", gates).record.certificate
    assert certificate is not None
    assert certificate.gates.model_dump() == vars(gates)


def test_a_smaller_certificate_in_place_of_a_larger_one_is_warned_of_and_looser_gates_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    members = answers(33)
    members[4] = members[4, :, [1, 0, 2]].T  # PyTorch would have said another class
    model = noted(tmp_path, members, range(33))
    certify(model, tmp_path / "data", Gates(max_flips=1, max_prob_error=1.0, max_auroc_drop=1.0))
    assert "replaces" not in caplog.text
    tables.inspection(model.bundle, None, as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "certified on 33 images, 1 changed, by --max-flips 1 --max-prob-error 1 --max-auroc-drop 1" in shown
    for k in range(31):
        (tmp_path / "data" / f"{k:02d}.png").unlink()
    certify(model, tmp_path / "data", Gates())
    assert "covers 2 images, and replaces one made here on 33" in caplog.text


def test_a_gate_that_nothing_was_judged_by_is_not_among_those_that_were_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of one class have no AUROC."""
    model = noted(tmp_path, answers(33), range(33))
    for k in range(33):
        if k % 3:
            (tmp_path / "data" / f"{k:02d}.png").unlink()
    found = certify(model, tmp_path / "data", Gates())
    certificate = found.record.certificate
    assert certificate is not None and certificate.images == 11 and certificate.auroc_change is None
    assert certificate.gates.model_dump() == {"max_flips": 0, "max_prob_error": 1e-3, "max_auroc_drop": None}
    assert load(model.bundle.path, runtime="openvino").state == "certified"
    tables.certificate(found)
    assert "change of AUROC not judged: images of one class" in " ".join(capsys.readouterr().out.split())
    tables.inspection(model.bundle, None, as_json=False)
    assert "certified on 11 images, AUROC not judged" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("known", "compared", "says"),
    [
        (33, 33, None),
        (62, 31, None),
        (63, 31, "certified on 31 of 63 known images: on the others nothing is proven"),
        (29, 29, "certified on 29 of 29 known images: even if none of so few changes, up to 10% of other"),
        (30, 1, "certified on 1 of 30 known images: on the others"),
    ],
)
def test_a_certificate_on_few_images_is_given_with_a_warning(
    known: int, compared: int, says: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = noted(tmp_path, answers(known), range(known))
    for k in range(compared, known):
        (tmp_path / "data" / f"{k:02d}.png").unlink()
    with caplog.at_level("WARNING", "edgemed.certify"):
        assert certify(model, tmp_path / "data", Gates()).record.state == "certified"
    told = [record.getMessage() for record in caplog.records if "certified on" in record.getMessage()]
    assert [bool(re.match(says or "", line)) for line in told] == [True] * (says is not None)


def test_a_csv_of_excels_names_the_files_as_any_other(tmp_path: Path) -> None:
    """It begins with a byte order mark, which is no part of the first column's name."""
    (tmp_path / "data.csv").write_text("path,label\na.png,benign\n", encoding="utf-8-sig")
    assert [path.name for path in image_files(tmp_path / "data.csv")] == ["a.png"]
