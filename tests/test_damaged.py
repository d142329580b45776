"""Twelve kinds of damaged or foreign bundle: each is refused before a byte reaches a runtime, with its own message."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_bundles as tiny
from PIL import Image

import edgemed
from edgemed import engines
from edgemed.bundle import Bundle, open_bundle
from edgemed.errors import InputError
from edgemed.manifest import canonical_bytes, sha256_of
from edgemed.pack import add_plan
from edgemed.preflight import Here
from edgemed.records import PlanRecord
from edgemed.runtimes import PlanModule

serialization = pytest.importorskip(
    "cryptography.hazmat.primitives.serialization", reason="extra sign is not installed"
)
ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")

HERE = Here("tensorrt-rtx", "1.7.1.116", "sm86", "Linux", "x86_64")
RTX = b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]) + bytes(100)
CLASSIC = b"ftrt" + bytes(124)
OTHER = -tiny.WEIGHTS  # of a model that answers otherwise


class Spy(PlanModule):
    """A runtime that says it works here, and remembers every plan that it is given."""

    def __init__(self, here: Here) -> None:
        self.machine = here
        self.seen: list[bytes] = []

    def availability(self) -> None:
        return None

    def here(self) -> Here:
        return self.machine

    def open_plan(self, plan: bytes, record: PlanRecord, *, cuda_graph: bool = True) -> Any:
        self.seen.append(plan)
        raise AssertionError("a damaged plan reached the runtime")


@pytest.fixture(scope="module")
def keys() -> tuple[bytes, bytes]:
    """A private key, and the public key of another one, in PEM."""
    mine, other = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    private = mine.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = other.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


def record(bundle: Bundle, plan: bytes, **changes: Any) -> PlanRecord:
    values: dict[str, Any] = {
        "id": "made-by-hand",
        "created": "2026-01-01T00:00:00Z",
        "onnx_sha256": bundle.manifest.files["model.fp32.onnx"].sha256,
        "precision": "fp32",
        "runtime": "tensorrt-rtx",
        "version": "1.7.1.116",
        "targets": ("sm86",),
        "os": "Linux",
        "architecture": "x86_64",
        "batch": (1, 1, 1),
        "image_side": (16, 48, 512),
        "sha256": sha256_of(plan),
        "bytes": len(plan),
        "state": "built",
    }
    return PlanRecord.model_validate(values | changes)


def flipped(name: str) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        path = bundle / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return damage


def with_plan(plan: bytes, **changes: Any) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        opened = open_bundle(bundle)
        add_plan(opened, record(opened, plan, **changes), plan)

    return damage


def flipped_plan(bundle: Path) -> None:
    with_plan(RTX)(bundle)
    flipped("plans/made-by-hand.plan")(bundle)


def flipped_record(bundle: Path) -> None:
    with_plan(RTX)(bundle)
    path = bundle / "plans" / "made-by-hand.json"
    path.write_bytes(path.read_bytes().replace(b'"precision"', b'"prdcision"'))


def plan_of_another_model(bundle: Path) -> None:
    other = tiny.bundle(bundle.parent / "other", files={**tiny.fields()["files"], "model.fp32.onnx": tiny.model(OTHER)})
    with_plan(RTX)(other.path)
    shutil.copytree(other.path / "plans", bundle / "plans", dirs_exist_ok=True)


def cut_plan(bundle: Path) -> None:
    with_plan(RTX)(bundle)
    cut("plans/made-by-hand.plan")(bundle)


def cut(name: str) -> Callable[[Path], None]:
    return lambda bundle: os.truncate(bundle / name, (bundle / name).stat().st_size - 9)


def record_in_another_form(bundle: Path) -> None:
    with_plan(RTX)(bundle)
    path = bundle / "plans" / "made-by-hand.json"
    path.write_bytes(path.read_bytes()[:-1])  # its last line has no end, as an editor may leave it


def manifest_with(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        path = bundle / "manifest.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_bytes(canonical_bytes(document))

    return damage


def outside(document: dict[str, Any]) -> None:
    document["files"]["../../etc/passwd"] = document["files"]["model.fp32.onnx"]


def newer(document: dict[str, Any]) -> None:
    document["schema_version"] = 2


def link(bundle: Path) -> None:
    target = bundle.parent / "elsewhere.onnx"
    shutil.move(bundle / "model.fp32.onnx", target)
    (bundle / "model.fp32.onnx").symlink_to(target)


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped byte in the manifest": (flipped("manifest.json"), "manifest.json"),
    "a flipped byte in a graph": (flipped("model.fp32.onnx"), r"model\.fp32\.onnx was changed after the build"),
    "a flipped byte in a golden image": (flipped("golden/000.png"), r"golden/000\.png was changed after the build"),
    "a flipped byte in the golden outputs": (flipped("golden/outputs.json"), r"outputs\.json was changed after"),
    "a flipped byte in the reference": (flipped("reference.npz"), r"reference\.npz was changed after the build"),
    "a flipped byte in the model card": (flipped("model_card.md"), r"model_card\.md was changed after the build"),
    "a flipped byte in a plan": (flipped_plan, r"made-by-hand\.plan was changed after the build"),
    "a flipped byte in a plan's record": (flipped_record, r"made-by-hand\.json"),
    "a plan of another model": (plan_of_another_model, "was built from another fp32 graph than this bundle's"),
    "a record in another form": (record_in_another_form, r"made-by-hand\.json was changed after the build"),
    "a missing file": (lambda bundle: (bundle / "golden" / "001.png").unlink(), r"001\.png is missing"),
    "a shorter graph that is not asked for": (cut("model.fp16.onnx"), r"fp16\.onnx has \d+ bytes, the manifest states"),
    "an extra file": (lambda bundle: (bundle / "golden" / "x.so").touch() or None, r"x\.so is not listed"),
    "a file named like plans": (lambda bundle: (bundle / "plans.so").touch() or None, r"plans\.so is not listed"),
    "a pipe": (lambda bundle: os.mkfifo(bundle / "pipe"), "pipe is not a plain file"),
    "an endless manifest": (lambda bundle: os.truncate(bundle / "manifest.json", 5 << 20), "larger than 4194304 bytes"),
    "a plan of another version": (
        with_plan(RTX, version="1.6.0.5"),
        r"for TensorRT-RTX 1\.6\.0\.5, this is 1\.7",
    ),
    "a plan whose header is of another version": (
        with_plan(RTX[:24] + bytes([1, 6, 0, 5]) + RTX[28:]),
        r"header says version 1\.6\.0, this is TensorRT-RTX 1\.7",
    ),
    "a plan whose header is of another patch": (with_plan(RTX[:26] + bytes([2]) + RTX[27:]), r"says version 1\.7\.2"),
    "a plan for another architecture": (
        with_plan(RTX, architecture="aarch64"),
        "built for aarch64 machines, this is x86_64",
    ),
    "a plan for another system": (with_plan(RTX, os="Windows"), "built for Windows, this is Linux"),
    "a plan for another GPU": (with_plan(RTX, targets=("sm80", "sm120")), "built for sm80, sm120, this GPU is sm86"),
    "a classic header under an RTX record": (with_plan(CLASSIC), "recorded as TensorRT-RTX, its header is classic"),
    "bytes that are no plan": (with_plan(b"\x7fELF" + bytes(200)), "is not a TensorRT plan"),
    "a plan of a few bytes": (with_plan(b"vtrt"), "is cut off: 4 bytes"),
    "a plan of hardly a header": (with_plan(RTX[:63]), "is cut off: 63 bytes"),
    "a truncated plan": (cut_plan, "has not the 128 bytes that were built"),
    "a manifest with a path outside": (manifest_with(outside), "is not a plain file name inside the bundle"),
    "a manifest of a newer schema": (manifest_with(newer), "has schema version 2, this edgemed reads up to 1"),
    "a symbolic link": (link, "is a symbolic link"),
}


def refusal(bundle: Path, monkeypatch: pytest.MonkeyPatch, here: Here = HERE, **options: Any) -> str:
    """The message with which the bundle is refused by a runtime that would take anything."""
    spy = Spy(here)
    monkeypatch.setattr(engines, "runtime_module", lambda name: spy)
    with pytest.raises(InputError) as caught:
        keys = {name: value for name, value in options.items() if value is not None}
        opened = open_bundle(bundle, **keys)
        edgemed.load(opened, runtime=here.runtime)
    assert spy.seen == []
    return str(caught.value)


@pytest.mark.parametrize("kind", CASES)
def test_damage_is_refused_before_the_runtime_with_a_message_of_its_own(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, expected = CASES[kind]
    bundle = tiny.bundle(tmp_path / "bundle").path
    damage(bundle)
    message = refusal(bundle, monkeypatch)
    assert re.search(expected, message), message


def test_an_rtx_plan_given_to_classic_tensorrt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny.bundle(tmp_path / "bundle").path
    with_plan(RTX, runtime="tensorrt")(bundle)
    message = refusal(bundle, monkeypatch, Here("tensorrt", "11.4.0", "sm86", "Linux", "x86_64"))
    assert "recorded as classic TensorRT, its header is TensorRT-RTX's" in message


def test_each_kind_has_a_message_of_its_own() -> None:
    expected = [message for _, message in CASES.values()]
    assert len(set(expected)) == len(expected) >= 12


def test_a_bad_or_missing_signature_is_refused(
    tmp_path: Path, keys: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgemed.signature import public_of

    private, other = keys
    unsigned = tiny.bundle(tmp_path / "unsigned").path
    assert "is not signed" in refusal(unsigned, monkeypatch, public_key=other)
    signed = tiny.bundle(tmp_path / "signed", signing_key=private).path
    assert "is not by the given key" in refusal(signed, monkeypatch, public_key=other)
    mine = public_of(private)
    assert open_bundle(signed, public_key=mine).manifest.labels == tiny.LABELS
    flipped("manifest.sig")(signed)
    assert "is not by the given key" in refusal(signed, monkeypatch, public_key=mine)


@pytest.mark.parametrize(
    "command",
    ["predict BUNDLE IMAGE", "evaluate BUNDLE DATA", "parity BUNDLE DATA", "inspect BUNDLE", "build-engine BUNDLE",
     "bench BUNDLE --warmup 0 --duration 0.1", "certify BUNDLE DATA --sign KEY"],
)  # fmt: skip
def test_every_command_that_reads_a_bundle_refuses_an_unsigned_one_where_a_key_is_given(
    command: str, tmp_path: Path, keys: tuple[bytes, bytes], edgemed: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from edgemed.signature import public_of

    named = {"BUNDLE": tiny.bundle(tmp_path / "unsigned").path, "KEY": tmp_path / "key.pem", "DATA": tmp_path / "data"}
    for k, label in enumerate(tiny.LABELS):
        named["IMAGE"] = named["DATA"] / label / "one.png"
        named["IMAGE"].parent.mkdir(parents=True)
        Image.fromarray(tiny.image(k)).save(named["IMAGE"])
    named["KEY"].write_bytes(keys[0])
    (tmp_path / "public.pem").write_bytes(public_of(keys[0]))
    words = [str(named.get(word, word)) for word in command.split()]
    assert edgemed(*words, "--verify", tmp_path / "public.pem") == 2
    assert "is not signed (manifest.sig is missing)" in " ".join(capsys.readouterr().err.split())


def test_a_signed_bundle_refuses_a_plan_that_nobody_signed(
    tmp_path: Path, keys: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgemed.signature import public_of

    private, _ = keys
    device = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    bundle = tiny.bundle(tmp_path / "bundle", signing_key=private).path
    mine = public_of(private)
    with_plan(RTX)(bundle)
    assert "made-by-hand.json is not signed" in refusal(bundle, monkeypatch, public_key=mine)
    opened = open_bundle(bundle)
    add_plan(opened, record(opened, RTX), RTX, device)
    assert "is not by the given key" in refusal(bundle, monkeypatch, public_key=mine)
    trusting = open_bundle(bundle, public_key=mine, plan_key=public_of(device))
    assert trusting.read_plan(trusting.plans()[0]) == RTX
    add_plan(opened, record(opened, RTX, targets=("sm80",)), RTX)  # without a key: the old signature does not stay
    assert not (bundle / "plans" / "made-by-hand.sig").exists()
