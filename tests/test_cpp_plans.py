"""Which of a bundle's plans and records the C library believes and takes: those that Python does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import test_damaged as damaged
import tiny_bundles as tiny
from cpp_build import BUNDLE, INPUT, INTERNAL, OK, RUNTIME, certificate_record, opened, probe

import edgemed
from edgemed.manifest import document_bytes
from edgemed.pack import add_plan, put_record
from edgemed.records import Bounds, Change, Place

pytestmark = pytest.mark.usefixtures("cache")


STUB_PLACE = {"runtime": "tensorrt-rtx", "version": "1.7.1.116", "device": "stub", "capability": "sm86"}


def test_a_certificate_counts_in_its_own_place_only(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    assert opened(build, bundle.path, "openvino")["state"] == "built"
    put_record(bundle, certificate_record(bundle.path))
    found = opened(build, bundle.path, "openvino")
    model = edgemed.load(bundle.path, runtime="openvino", threads=1)
    assert (found["state"], found["version"]) == ("certified", model.session.version) == (model.state, found["version"])
    elsewhere = {"runtime": "onnxruntime", "precision": "fp16"}  # of every other field, any other text
    for field in Place.model_fields:
        put_record(bundle, certificate_record(bundle.path, **{field: elsewhere.get(field, "another")}))
        assert opened(build, bundle.path, "openvino")["state"] == "built", field
    record = certificate_record(bundle.path)
    assert record.certificate is not None
    other = record.certificate.model_copy(update={"bundle_id": "0" * 16})
    put_record(bundle, record.model_copy(update={"certificate": other}))
    assert opened(build, bundle.path, "openvino")["state"] == "built"


@pytest.mark.parametrize(
    "figures",
    [
        {"auroc_change": Change(value=0.0, low=None, high=None)},  # few patients, or nothing changed
        {"auroc_change": None, "gates": Bounds(max_flips=0, max_prob_error=1e-3, max_auroc_drop=None)},  # of one class
    ],
    ids=["no bounds", "no AUROC"],
)
def test_a_certificate_that_states_no_more_than_it_knows_counts(
    figures: dict[str, Any], build: Path, tmp_path: Path
) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    record = certificate_record(bundle.path)
    assert record.certificate is not None
    put_record(bundle, record.model_copy(update={"certificate": record.certificate.model_copy(update=figures)}))
    assert edgemed.load(bundle.path, runtime="openvino", threads=1).state == "certified"
    assert opened(build, bundle.path, "openvino", threads=1)["state"] == "certified"


def test_a_certificate_that_its_record_does_not_claim_counts_for_nothing(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    put_record(bundle, certificate_record(bundle.path).model_copy(update={"state": "built"}))
    assert edgemed.load(bundle.path, runtime="openvino", threads=1).state == "built"
    assert opened(build, bundle.path, "openvino")["state"] == "built"


def test_another_models_certificate_counts_for_nothing(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle").path
    files = tiny.fields()["files"] | {"model.fp32.onnx": tiny.model(damaged.OTHER)}
    other = tiny.bundle(tmp_path / "other", files=files)
    put_record(other, certificate_record(other.path))
    assert opened(build, other.path, "openvino")["state"] == "certified"
    shutil.copytree(other.path / "plans", bundle / "plans", dirs_exist_ok=True)
    assert edgemed.load(bundle, runtime="openvino", threads=1).state == "built"
    assert opened(build, bundle, "openvino")["state"] == "built"


@pytest.mark.parametrize(("sha256", "size"), [(None, None), ("0" * 64, None), (None, 5), ("0" * 64, 5)])
def test_a_record_with_a_plans_hash_does_not_certify_the_onnx_file(
    sha256: str | None, size: int | None, build: Path, tmp_path: Path
) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    put_record(bundle, certificate_record(bundle.path).model_copy(update={"sha256": sha256, "bytes": size}))
    state = edgemed.load(bundle.path, runtime="openvino", threads=1).state
    assert state == ("built" if sha256 else "certified")
    assert opened(build, bundle.path, "openvino")["state"] == state


def test_with_a_key_an_unsigned_certificate_does_not_count(build: Path, tmp_path: Path) -> None:
    from edgemed.signature import public_of

    serialization = damaged.serialization
    private = damaged.ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(public_of(private))
    bundle = tiny.bundle(tmp_path / "bundle", signing_key=private)
    put_record(bundle, certificate_record(bundle.path))
    found = opened(build, bundle.path, "openvino", public_key=tmp_path / "key.pem")
    assert (found["state"], "is not signed" in found["warnings"][0]) == ("built", True), found
    put_record(bundle, certificate_record(bundle.path), private)
    found = opened(build, bundle.path, "openvino", public_key=tmp_path / "key.pem")
    assert (found["state"], found["warnings"]) == ("certified", [])


@pytest.mark.parametrize("read", ["forged", "signed"])
def test_a_record_counts_by_the_bytes_that_were_read(read: str, build: Path, tmp_path: Path) -> None:
    """Beside the signed record lies one with a certificate that nobody gave, and takes its place between two looks."""
    from edgemed.signature import public_of

    serialization = damaged.serialization
    private = damaged.ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(public_of(private))
    bundle = tiny.bundle(tmp_path / "bundle", signing_key=private)
    add_plan(bundle, damaged.record(bundle, damaged.RTX), damaged.RTX, private)
    certificate = certificate_record(bundle.path, runtime="tensorrt-rtx").certificate
    forged = document_bytes(damaged.record(bundle, damaged.RTX, state="certified", certificate=certificate))
    record = bundle.path / "plans" / "made-by-hand.json"
    (tmp_path / "other.json").write_bytes(forged if read == "signed" else record.read_bytes())
    if read == "forged":
        record.write_bytes(forged)
    found = probe(build, "swap", bundle.path, tmp_path / "key.pem", tmp_path / "other.json")
    if read == "signed":
        assert found == {"status": OK, "state": "built"}
    else:
        assert (found["status"], "is not by the given key" in found["message"]) == (BUNDLE, True), found


def test_auto_passes_over_a_plan_that_is_not_certified_here(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    damaged.with_plan(damaged.RTX)(bundle.path)
    found = opened(build, bundle.path, "auto")
    assert found["runtime"] == "openvino"
    assert "tensorrt-rtx: plan made-by-hand is not certified on this machine" in found["reason"]
    assert any("tensorrt-rtx is passed over" in warning for warning in found["warnings"])
    trusting = opened(build, bundle.path, "auto", uncertified=1)
    assert (trusting["runtime"], trusting["state"]) == ("tensorrt-rtx", "built")
    assert any("runs because it was asked for" in warning for warning in trusting["warnings"])


def test_a_folder_of_modules_that_cannot_be_looked_into_is_a_reason(build: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    found = opened(build, tiny.bundle(tmp_path / "bundle").path, "auto", modules=tmp_path / "loop")
    assert (found["status"], found.get("runtime")) == (OK, "openvino"), found
    assert "edgemed_tensorrt_rtx.so: Too many levels of symbolic links" in found["reason"]


def test_a_certified_plan_is_preferred_to_a_newer_one(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    add_plan(bundle, damaged.record(bundle, damaged.RTX, id="tested", state="self-tested"), damaged.RTX)
    assert opened(build, bundle.path, "tensorrt-rtx")["state"] == "self-tested"
    certificate = certificate_record(bundle.path, **STUB_PLACE).certificate
    add_plan(bundle, damaged.record(bundle, damaged.RTX, id="newer", created="2026-02-02T00:00:00Z"), damaged.RTX)
    add_plan(bundle, damaged.record(bundle, damaged.RTX, state="certified", certificate=certificate), damaged.RTX)
    found = opened(build, bundle.path, "auto")
    assert (found["runtime"], found["state"], found["warnings"]) == ("tensorrt-rtx", "certified", [])


@pytest.mark.parametrize(("device", "state"), [("stub", "certified"), ("another GPU", "built")])
@pytest.mark.parametrize("version", ["1.7.1.116", "1.7.1"])  # Python's module may leave the build number out
def test_a_plan_is_certified_on_the_device_of_its_certificate_only(
    device: str, state: str, version: str, build: Path, tmp_path: Path
) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    place = STUB_PLACE | {"device": device, "version": version}
    changes = {"state": "certified", "certificate": certificate_record(bundle.path, **place).certificate}
    add_plan(bundle, damaged.record(bundle, damaged.RTX, version=version, **changes), damaged.RTX)
    found = opened(build, bundle.path)
    assert (found["state"], len(found["warnings"])) == (state, state == "built"), found
    assert opened(build, bundle.path, "auto")["runtime"] == ("openvino" if state == "built" else "tensorrt-rtx")


def test_the_newest_plan_runs_where_none_is_certified(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    for name, month in (("a", 1), ("b", 3), ("c", 2)):
        changes = {"id": name, "created": f"2026-0{month}-01T00:00:00Z"}
        add_plan(bundle, damaged.record(bundle, damaged.RTX, **changes), damaged.RTX)
    assert opened(build, bundle.path)["plan"] == "b"


def test_a_plan_of_another_precision_does_not_run(build: Path, tmp_path: Path) -> None:
    files = tiny.fields()["files"] | {"model.fp16.onnx": tiny.model(damaged.OTHER)}
    bundle = tiny.bundle(tmp_path / "bundle", files=files)
    half = {"id": "half", "precision": "fp16", "onnx_sha256": bundle.manifest.files["model.fp16.onnx"].sha256}
    add_plan(bundle, damaged.record(bundle, damaged.RTX, **half), damaged.RTX)
    assert opened(build, bundle.path, precision="fp16")["plan"] == "half"
    found = opened(build, bundle.path)
    assert (found["status"], "holds no fp32 plan for tensorrt-rtx" in found["message"]) == (BUNDLE, True), found


def test_a_longer_plan_is_not_the_one_that_was_built(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle").path
    damaged.with_plan(damaged.RTX)(bundle)
    with (bundle / "plans" / "made-by-hand.plan").open("ab") as plan:
        plan.write(b"x")
    found = opened(build, bundle)
    assert (found["status"], "has not the 128 bytes that were built" in found["message"]) == (BUNDLE, True), found


def test_a_record_is_found_by_the_name_that_it_states(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle").path
    damaged.with_plan(damaged.RTX)(bundle)
    record = bundle / "plans" / "made-by-hand.json"
    (bundle / "plans" / ".other.json").write_bytes(b"what a copy that was broken off left behind")
    assert opened(build, bundle)["status"] == OK
    record.rename(record.with_name("other.json"))
    found = opened(build, bundle)
    assert (found["status"], "the file was renamed" in found["message"]) == (BUNDLE, True), found


def test_a_runtime_gets_the_threads_that_were_asked_for(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle").path
    damaged.with_plan(damaged.RTX[:64] + b"threads")(bundle)
    assert opened(build, bundle, threads=3)["warnings"][-1] == "the stub was given threads: 3"
    assert opened(build, bundle, threads=0)["warnings"][-1] == "the stub was given threads: 0"
    for threads, status in ((4096, OK), (4097, INPUT), (-1, INPUT)):
        assert opened(build, bundle, threads=threads)["status"] == status


def test_a_damaged_plan_is_told_of_though_another_one_runs(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    other = damaged.RTX[:-1] + b"x"
    add_plan(bundle, damaged.record(bundle, damaged.RTX, id="good"), damaged.RTX)
    add_plan(bundle, damaged.record(bundle, other, id="newer", created="2026-02-02T00:00:00Z"), other)
    damaged.flipped("plans/newer.plan")(bundle.path)
    found = opened(build, bundle.path)
    assert (found["plan"], len(found["warnings"])) == ("good", 2), found
    assert "newer.plan was changed after the build" in found["warnings"][0]


def test_a_plan_is_taken_by_its_id(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    for name, batch in (("one", (1, 1, 1)), ("several", (2, 2, 4))):
        add_plan(bundle, damaged.record(bundle, damaged.RTX, id=name, batch=batch), damaged.RTX)
    for name in ("one", "several"):
        found = opened(build, bundle.path, "auto", plan=name)
        assert (found["plan"], found["reason"]) == (name, f"tensorrt-rtx: plan {name} was asked for")
    put_record(bundle, certificate_record(bundle.path))  # without a plan
    assert opened(build, bundle.path, "openvino")["plan"] is None
    for options, message in (
        ({"runtime": "auto", "plan": "sevral"}, "holds no plan 'sevral'. Known: one, several."),
        ({"runtime": "auto", "plan": "openvino-fp32"}, "holds no plan 'openvino-fp32'. Known: one, several."),
        ({"runtime": "openvino", "plan": "one"}, "plan one is for tensorrt-rtx, not openvino"),
        ({"runtime": "auto", "plan": "one", "precision": "fp16"}, "plan one is fp32; ask for that precision"),
        ({"runtime": "auto", "plan": ""}, "options.plan is a plan's id, or NULL"),
    ):
        found = opened(build, bundle.path, **options)
        assert (found["status"], message in found["message"]) == (INPUT, True), found


@pytest.mark.parametrize(("told", "status"), [("wrong", BUNDLE), ("full", INTERNAL), ("fails", RUNTIME)])
def test_the_status_of_an_opening_is_the_one_that_the_runtime_gave(
    told: str, status: int, build: Path, tmp_path: Path
) -> None:
    files = tiny.fields()["files"] | {"model.fp32.onnx": b"no graph"}
    bundle = tiny.bundle(tmp_path / "bundle", files=files).path
    damaged.with_plan(damaged.RTX[:64] + told.encode())(bundle)
    found = opened(build, bundle)
    assert (found["status"], found["message"]) == (status, f"the stub was told: {told}")
    found = opened(build, bundle, "auto", uncertified=1)  # where none works, memory is told from what will never work
    assert found["status"] == (INTERNAL if status == INTERNAL else RUNTIME), found
    assert "no runtime for" in found["message"] and f"the stub was told: {told}" in found["message"]
