"""A bundle is written whole or not at all, and nothing of it is believed unseen."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_bundles as tiny

from edgemed import pack as pack_module
from edgemed.bundle import open_bundle
from edgemed.errors import InputError
from edgemed.manifest import canonical_bytes, sha256_of
from edgemed.pack import add_plan, write_bundle
from edgemed.records import PlanRecord


def record(plan: bytes | None, **changes: object) -> PlanRecord:
    values = {
        "id": "rtx-fp32",
        "created": "2026-01-02T03:04:05Z",
        "onnx_sha256": sha256_of(tiny.model()),
        "precision": "fp32",
        "runtime": "tensorrt-rtx",
        "version": "1.7.1",
        "targets": ("sm80", "sm86"),
        "os": "Linux",
        "architecture": "x86_64",
        "batch": (1, 1, 8),
        "image_side": (16, 48, 512),
        "sha256": None if plan is None else sha256_of(plan),
        "bytes": None if plan is None else len(plan),
        "state": "built",
    }
    return PlanRecord.model_validate({**values, **changes})


def test_a_written_bundle_gives_back_what_went_in(tmp_path: Path) -> None:
    written = tiny.bundle(tmp_path / "deep" / "bundle")
    opened = open_bundle(tmp_path / "deep" / "bundle")
    assert opened.manifest == written.manifest
    assert opened.manifest.labels == tiny.LABELS
    assert opened.manifest.temperatures == (1.0, 1.25)
    assert opened.read("model.fp32.onnx") == tiny.model()
    assert opened.read_model("fp16") == tiny.model()
    golden = opened.golden()
    assert [item.image.shape for item in golden] == [(40, 56, 3), (64, 48, 3)]
    for item, image in zip(golden, (tiny.image(100), tiny.image(101, 64, 48)), strict=True):
        probabilities, members = tiny.expected(image[None])
        np.testing.assert_array_equal(item.image, image)
        np.testing.assert_allclose(item.probabilities, probabilities[0], atol=1e-7)
        np.testing.assert_allclose(item.members, members[0], atol=1e-7)
    assert opened.reference().split.tolist() == ["validation", "test"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bundle"]  # nothing is left of the staging


def test_the_id_depends_on_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny.bundle(tmp_path / "a").manifest
    monkeypatch.setattr(pack_module, "__version__", "9.9.9")
    second = tiny.bundle(tmp_path / "b").manifest
    assert second.edgemed_version == "9.9.9"
    assert first.bundle_id == second.bundle_id
    assert tiny.bundle(tmp_path / "c", labels=("a", "b", "c")).manifest.bundle_id != first.bundle_id
    files = {**tiny.fields()["files"], "model.fp32.onnx": tiny.model(tiny.WEIGHTS * 2)}
    assert tiny.bundle(tmp_path / "d", files=files).manifest.bundle_id != first.bundle_id


def edit_manifest(folder: Path, change: Callable[[dict[str, object]], object], canonical: bool = True) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(canonical_bytes(document) if canonical else json.dumps(document).encode())


def replace_by_link(folder: Path) -> None:
    (folder / "model.fp32.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "model.fp32.onnx").symlink_to(folder.parent / "elsewhere.onnx")


def rename_entry(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit_manifest(folder, lambda d: d["files"].update({name: d["files"].pop("model_card.md")}))  # type: ignore[attr-defined]

    return change


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "does not exist; build a bundle"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "holds no manifest.json"),
    "not JSON": (lambda f: (f / "manifest.json").write_text("{"), "is not JSON"),
    "deeply nested": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "is not JSON"),
    "huge manifest": (lambda f: (f / "manifest.json").write_bytes(b" " * 5_000_000), "is larger than"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "is not valid"),
    "newer schema": (
        lambda f: edit_manifest(f, lambda d: d.update(schema_version=2)),
        "install a newer edgemed (the wheel or clone that made the bundle)",
    ),
    "unknown field": (lambda f: edit_manifest(f, lambda d: d.update(surprise=1)), "surprise: Extra inputs"),
    "text for a number": (lambda f: edit_manifest(f, lambda d: d.update(size="32")), "size: Input should be"),
    "other label": (lambda f: edit_manifest(f, lambda d: d.update(labels=["x", "y", "z"])), "was changed after"),
    "other time": (lambda f: edit_manifest(f, lambda d: d.update(created="2001-01-01T00:00:00Z")), "was changed after"),
    "reformatted": (lambda f: edit_manifest(f, lambda d: None, canonical=False), "was changed after"),
    "missing file": (lambda f: (f / "reference.npz").unlink(), "reference.npz is missing"),
    "missing image": (lambda f: (f / "golden" / "001.png").unlink(), "golden/001.png is missing"),
    "extra file": (lambda f: (f / "run.sh").write_text("rm"), "run.sh is not listed"),
    "extra in golden": (lambda f: (f / "golden" / "x.png").write_text(""), "golden/x.png is not listed"),
    "truncated": (lambda f: os.truncate(f / "model.fp32.onnx", 100), "has 100 bytes, the manifest states"),
    "longer": (lambda f: (f / "model_card.md").write_bytes(b"# Tiny\n\n"), "has 8 bytes, the manifest states 7"),
    "symbolic link": (replace_by_link, "is a symbolic link"),
    "linked folder": (lambda f: (f / "plans").symlink_to(f / "golden"), "plans is a symbolic link"),
    "pipe": (lambda f: os.mkfifo(f / "pipe"), "is not a plain file"),
    "path outside": (rename_entry("../outside"), "is not a plain file name"),
    "absolute path": (rename_entry("/etc/passwd"), "is not a plain file name"),
    "hidden step up": (rename_entry("golden/../../x"), "is not a plain file name"),
    "listed plan": (rename_entry("plans/x.plan"), "cannot be listed"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_has_its_own_one_line_error(tmp_path: Path, name: str) -> None:
    folder = tiny.bundle(tmp_path / "bundle").path
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        open_bundle(folder)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


def test_one_changed_byte_of_any_file_is_noticed(tmp_path: Path) -> None:
    folder = tiny.bundle(tmp_path / "bundle").path
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        good = path.read_bytes()
        middle = len(good) // 2
        path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
        with pytest.raises(InputError, match=re.escape(str(path))):
            open_bundle(folder).verify()
        path.write_bytes(good)
    open_bundle(folder).verify()


def test_a_file_swapped_for_a_link_after_opening_is_not_read(tmp_path: Path) -> None:
    opened = tiny.bundle(tmp_path / "bundle")
    replace_by_link(opened.path)
    with pytest.raises(InputError, match="cannot read"):
        opened.read_model("fp32")


WRONG_FIELDS: dict[str, tuple[dict[str, object], str]] = {
    "one label": ({"labels": ("a",)}, "labels"),
    "a label twice": ({"labels": ("a", "b", "a")}, "a name stands twice"),
    "a label that moves the cursor": ({"labels": ("a", "b\x1b[2J")}, "does not print"),
    "temperatures": ({"temperatures": (1.0,)}, "one value per member"),
    "temperature 0": ({"temperatures": (1.0, 0.0)}, "temperatures.1"),
    "no graph": ({"files": tiny.evidence_files()}, "files must list model.fp32.onnx"),
    "no golden images": ({"files": {"model.fp32.onnx": b"x"}}, "files must list golden/outputs.json"),
    "file outside": ({"files": {"model.fp32.onnx": b"x", "../x": b""}}, "is not a plain file name"),
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_wrong_fields_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    changes, message = WRONG_FIELDS[name]
    with pytest.raises(InputError, match=re.escape(message)):
        write_bundle(tmp_path / "bundle", **tiny.fields(**changes))
    assert not list(tmp_path.iterdir())


def test_plans_are_added_later_and_leave_the_manifest_alone(tmp_path: Path) -> None:
    opened = tiny.bundle(tmp_path / "bundle")
    before = (opened.path / "manifest.json").read_bytes()
    add_plan(opened, record(b"machine code"), b"machine code")
    add_plan(opened, record(None, id="cpu", runtime="openvino"), None)
    again = open_bundle(opened.path)
    assert [plan.id for plan in again.plans()] == ["cpu", "rtx-fp32"]
    assert again.read_plan(again.plans()[1]) == b"machine code"
    assert (opened.path / "manifest.json").read_bytes() == before
    with pytest.raises(InputError, match="runs without a plan"):
        again.read_plan(again.plans()[0])


def test_a_changed_plan_or_record_is_refused(tmp_path: Path) -> None:
    plan = b"machine code"
    opened = tiny.bundle(tmp_path / "bundle", complete=lambda staged: add_plan(staged, record(plan), plan))
    path = opened.path / "plans" / "rtx-fp32.plan"
    path.write_bytes(b"machine bode")
    with pytest.raises(InputError, match="sha256 differs"):
        opened.read_plan(opened.plans()[0])
    path.write_bytes(plan[:-1])
    with pytest.raises(InputError, match="has not the 12 bytes"):
        opened.read_plan(opened.plans()[0])
    path.with_suffix(".json").rename(path.with_name("other.json"))
    with pytest.raises(InputError, match="was renamed"):
        opened.plans()


def test_a_plan_of_another_graph_or_with_a_wrong_record_is_not_added(tmp_path: Path) -> None:
    opened = tiny.bundle(tmp_path / "bundle")
    with pytest.raises(InputError, match="another fp32 graph"):
        add_plan(opened, record(b"x", onnx_sha256="0" * 64), b"x")
    with pytest.raises(InputError, match="another sha256"):
        add_plan(opened, record(b"x"), b"y")
    assert not (opened.path / "plans").exists()
    with pytest.raises(ValueError, match="id"):
        record(b"x", id="../x")


def test_a_plan_that_was_copied_from_another_models_bundle_is_not_read(tmp_path: Path) -> None:
    plan = b"machine code"
    opened = tiny.bundle(tmp_path / "one", complete=lambda staged: add_plan(staged, record(plan), plan))
    files = {**tiny.fields()["files"], "model.fp32.onnx": tiny.model(-tiny.WEIGHTS)}
    other = tiny.bundle(tmp_path / "other", files=files)
    shutil.copytree(opened.path / "plans", other.path / "plans")
    for refused in (lambda: other.read_plan(other.plans()[0]), other.verify):
        with pytest.raises(InputError, match="plan rtx-fp32 was built from another fp32 graph"):
            refused()
    opened.verify()


def test_with_a_key_an_unsigned_record_is_refused_though_there_is_no_plan_to_it(tmp_path: Path) -> None:
    opened = tiny.bundle(tmp_path / "bundle")
    add_plan(opened, record(None, id="cpu", runtime="openvino"), None)
    opened.verify()
    with pytest.raises(InputError, match="cpu.json is not signed"):
        replace(opened, plan_key=b"a key").verify()


def test_unknown_names_get_a_suggestion(tmp_path: Path) -> None:
    opened = tiny.bundle(tmp_path / "bundle")
    with pytest.raises(InputError, match=r"Did you mean 'model_card\.md'"):
        opened.read("modelcard.md")
    with pytest.raises(InputError, match="Did you mean 'fp16'"):
        opened.read_model("f16")
