"""Bad input ends with one clear line and exit code 2, and leaves nothing half-written."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Edgemed = Callable[..., int]


def _dataset(root: Path, classes: int = 2, images: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for label in "abcde"[:classes]:
        (root / label).mkdir(parents=True)
        for k in range(images):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(root / label / f"{k}.png")
    return root


def _header_only_png(path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)))


def _empty_folder(root: Path) -> Path:
    root.mkdir()
    return root


def _one_class(root: Path) -> Path:
    return _dataset(root, classes=1)


def _csv_without_label(root: Path) -> Path:
    _dataset(root)
    (root / "data.csv").write_text("path,diagnosis\na/0.png,a\n")
    return root / "data.csv"


def _missing_file(root: Path) -> Path:
    _dataset(root)
    (root / "data.csv").write_text("path,label\na/0.png,a\na/none.png,a\nb/0.png,b\n")
    return root / "data.csv"


def _truncated_png(root: Path) -> Path:
    victim = _dataset(root) / "a" / "3.png"
    victim.write_bytes(victim.read_bytes()[:-300])
    return root


def _text_named_jpg(root: Path) -> Path:
    (_dataset(root) / "b" / "note.jpg").write_text("the patient was not seen")
    return root


def _zero_bytes(root: Path) -> Path:
    (_dataset(root) / "b" / "zero.png").write_bytes(b"")
    return root


def _gigantic(root: Path) -> Path:
    _header_only_png(_dataset(root) / "a" / "huge.png", 60_000, 60_000)
    return root


CASES = [
    (_empty_folder, "holds no folders"),
    (_one_class, "class"),
    (_csv_without_label, "label"),
    (_missing_file, "none.png"),
    (_truncated_png, "3.png"),
    (_text_named_jpg, "note.jpg"),
    (_zero_bytes, "zero.png"),
    (_gigantic, "huge.png"),
]


@pytest.mark.parametrize(("make", "names"), CASES, ids=[make.__name__.strip("_") for make, _ in CASES])
def test_training_refuses_bad_data(
    make: Callable[[Path], Path], names: str, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="extra train is not installed")
    data, run = make(tmp_path / "data"), tmp_path / "run"
    assert edgemed("train", data, "--out", run, "--backbone", "tf_efficientnet_lite0") == 2
    _one_line(capsys, names)
    assert not run.exists()


def _one_line(capsys: pytest.CaptureFixture[str], *names: str) -> None:
    """Standard error holds one error line that names all of `names`, and no traceback."""
    text = capsys.readouterr().err
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in text
    for name in names:
        assert name in errors[0]


def test_a_class_with_fewer_images_than_folds_is_refused(
    tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="extra train is not installed")
    data, run = _dataset(tmp_path / "data", images=4), tmp_path / "run"
    assert edgemed("train", data, "--out", run, "--folds", "5", "--backbone", "resnet18") == 2
    _one_line(capsys, "5", "class")
    assert not run.exists()


def test_an_out_folder_inside_the_data_is_refused(
    tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="extra train is not installed")
    data = _dataset(tmp_path / "data")
    assert edgemed("train", data, "--out", data / "run", "--backbone", "resnet18") == 2
    _one_line(capsys, "choose another folder")
    assert not (data / "run").exists()


def test_weights_of_another_backbone_leave_nothing_behind(
    tmp_path: Path, weights: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = _dataset(tmp_path / "data", images=12), tmp_path / "run"
    assert edgemed("train", data, "--out", run, "--backbone", "resnet18", "--weights", weights) == 2
    _one_line(capsys, "another backbone")
    assert not run.exists()


def test_a_plan_with_one_byte_changed_is_refused(
    tiny_bundle: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgemed.bundle import open_bundle
    from edgemed.pack import add_plan
    from edgemed.records import PlanRecord

    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    bundle, plan = open_bundle(tmp_path / "bundle"), b"vtrt" + bytes(100)
    record = PlanRecord(
        id="made-by-hand",
        created="2026-01-01T00:00:00Z",
        onnx_sha256=bundle.manifest.files["model.fp32.onnx"].sha256,
        precision="fp32",
        runtime="tensorrt-rtx",
        version="1.0",
        os="Linux",
        architecture="x86_64",
        targets=("sm86",),
        batch=(1, 1, 1),
        image_side=(32, 512, 4096),
        sha256=hashlib.sha256(plan).hexdigest(),
        bytes=len(plan),
        state="built",
    )
    add_plan(bundle, record, plan)
    assert edgemed("inspect", tmp_path / "bundle") == 0
    (tmp_path / "bundle" / "plans" / "made-by-hand.plan").write_bytes(plan[:-1] + b"x")
    capsys.readouterr()
    assert edgemed("inspect", tmp_path / "bundle") == 2
    _one_line(capsys, "made-by-hand.plan", "sha256")


def test_an_out_folder_that_holds_something_else_is_left_alone(
    tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="extra train is not installed")
    data, other = _dataset(tmp_path / "data"), tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    assert edgemed("train", data, "--out", other) == 2
    _one_line(capsys, str(other), "choose another folder")
    assert [entry.name for entry in other.iterdir()] == ["thesis.txt"]


def test_a_mistyped_backbone_gets_a_suggestion(
    tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="extra train is not installed")
    assert edgemed("train", _dataset(tmp_path / "data"), "--out", tmp_path / "run", "--backbone", "convnext_tinny") == 2
    _one_line(capsys, "Did you mean 'convnext_tiny'?")


def test_without_imagenet_weights_the_ways_to_get_them_are_named(
    tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm", reason="extra train is not installed")
    create = timm.create_model

    def offline(*arguments: object, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("no network")
        return create(*arguments, **options)

    monkeypatch.setattr("timm.create_model", offline)
    data, run = _dataset(tmp_path / "data", images=12), tmp_path / "run"
    assert edgemed("train", data, "--out", run, "--backbone", "resnet18") == 2
    _one_line(capsys, "resnet18", "--weights FILE.safetensors", "network")
    assert not run.exists()


@pytest.mark.parametrize("command", ["inspect", "bench", "predict"])
def test_a_bundle_with_one_byte_changed_is_refused(
    command: str, tiny_bundle: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, broken)
    model = broken / "model.fp32.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    image = next((broken / "golden").glob("*.png"))
    capsys.readouterr()
    assert edgemed(command, broken, *([image] if command == "predict" else [])) == 2
    _one_line(capsys, "model.fp32.onnx", "sha256")


def test_build_engine_refuses_what_is_no_finished_run(
    tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="extra train is not installed")
    assert edgemed("build-engine", tmp_path, "--out", tmp_path / "bundle") == 2
    _one_line(capsys, "run.json", "edgemed train")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--out", "b", "--golden", "images"), "leave out --golden, --out"),
        (("--check", "images", "--size", "96"), "leave out --check, --size"),
        (("--max-flips", "0", "--max-auroc-drop", "0.1", "--overwrite"), "--max-auroc-drop, --max-flips, --overwrite"),
    ],
)
def test_build_engine_refuses_flags_that_a_bundle_has_no_use_for(
    flags: tuple[str, ...], named: str, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx", reason="extra train is not installed")
    import tiny_bundles as tiny

    tiny.bundle(tmp_path / "bundle")
    assert edgemed("build-engine", tmp_path / "bundle", *flags) == 2
    _one_line(capsys, "is a bundle", named)


@pytest.mark.parametrize("flags", [("--check", "other"), ("--labels", "a,b"), ("--verify", "key.pem")])
def test_build_engine_refuses_flags_that_a_run_has_no_use_for(
    flags: tuple[str, str], tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` reads as if the engine was then proven on those images."""
    assert edgemed("build-engine", tmp_path / "none", "--out", tmp_path / "bundle", *flags) == 2
    _one_line(capsys, "does not exist")
    assert edgemed("build-engine", tmp_path, "--out", tmp_path / "bundle", *flags) == 2
    _one_line(capsys, f"leave out {flags[0]}")


def test_predict_goes_on_after_a_bad_file_and_ends_with_2(
    tiny_bundle: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next((tiny_bundle / "golden").glob("*.png"))
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:200])
    capsys.readouterr()
    assert edgemed("predict", tiny_bundle, bad, good, "--json") == 2
    captured = capsys.readouterr()
    assert "bad.png" in captured.err
    assert [answer["path"] for answer in json.loads(captured.out)] == [str(good)]
