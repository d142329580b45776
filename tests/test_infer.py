"""`edgemed.load(bundle)(image)`: the right answer, from the right runtime, or one clear error."""

from __future__ import annotations

import ctypes
import importlib.util
import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_bundles as tiny
from PIL import Image

import edgemed
from edgemed import engines
from edgemed.bundle import Bundle
from edgemed.errors import GateError, InputError
from edgemed.infer import Model
from edgemed.manifest import OperatingPoint
from edgemed.runtimes import openvino


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.bundle(tmp_path_factory.mktemp("infer") / "bundle")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that is not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def model(bundle: Bundle) -> Model:
    return edgemed.load(bundle.path, threads=1)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_prediction_says_what_numpy_computes(model: Model, bundle: Bundle) -> None:
    probabilities, members = tiny.expected(tiny.image(1)[None])
    found = model(tiny.image(1))
    assert found.label == tiny.LABELS[int(probabilities[0].argmax())]
    assert list(found.probabilities) == list(tiny.LABELS)
    assert list(found.probabilities.values()) == pytest.approx(probabilities[0].tolist(), abs=2e-6)
    for row, name in enumerate(tiny.MEMBERS):
        assert found.members[name] == pytest.approx(dict(zip(tiny.LABELS, members[0, row], strict=True)), abs=2e-6)
    assert (found.runtime, found.bundle_id, found.path) == ("openvino", bundle.manifest.bundle_id, None)


def test_the_label_is_the_most_probable_one_whatever_the_operating_point_decides(tmp_path: Path) -> None:
    shares = tiny.expected(tiny.image(1)[None])[0][0]
    first, second = np.argsort(-shares)[:2]
    threshold = float(shares[second]) - 1e-3
    point = OperatingPoint(
        images=9, positive=tiny.LABELS[second], threshold=threshold, target="sensitivity", target_value=0.9
    )
    found = edgemed.load(tiny.bundle(tmp_path / "bundle", operating_point=point).path)(tiny.image(1))
    assert (found.label, found.decision) == (tiny.LABELS[first], tiny.LABELS[second])


def test_the_json_object_has_exactly_the_promised_fields(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    path.write_bytes(png(tiny.image(1)))
    document = json.loads(json.dumps(model(path).as_dict(), allow_nan=False))
    fields = "path label decision disagreement prediction_set probabilities members runtime bundle_id"
    assert list(document) == fields.split()
    assert document["path"] == str(path)
    assert set(document["members"]) == set(tiny.MEMBERS)
    assert set(document["members"]["mae"]) == set(document["probabilities"]) == set(tiny.LABELS)


def test_every_source_of_the_same_pixels_gives_the_same_probabilities(model: Model, tmp_path: Path) -> None:
    pixels = tiny.image(2)
    (tmp_path / "scan.png").write_bytes(png(pixels))
    rgba = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    answers = [
        model(pixels),
        model(tmp_path / "scan.png"),
        model(str(tmp_path / "scan.png")),
        model(png(pixels)),
        model(np.ascontiguousarray(pixels[:, :, ::-1]), format="BGR"),
        model(rgba, format="RGBA"),
    ]
    assert all(answer.probabilities == answers[0].probabilities for answer in answers)
    assert model(pixels, format="BGR").probabilities != answers[0].probabilities


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_list_keeps_its_order_whatever_the_sizes_and_the_batch(model: Model, batch: int) -> None:
    sizes = [(40, 56), (40, 56), (40, 56), (56, 40), (40, 56), (40, 56), (30, 30), (30, 30)]
    images = [tiny.image(seed, *size) for seed, size in enumerate(sizes)]
    found = model(images, batch=batch)
    assert len(found) == len(images)
    for prediction, image in zip(found, images, strict=True):
        probabilities, _ = tiny.expected(image[None])
        assert list(prediction.probabilities.values()) == pytest.approx(probabilities[0].tolist(), abs=2e-6)


def test_neighbours_of_one_size_run_as_batches_and_the_rest_one_by_one(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = model.session.run

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(len(images))
        return real(images)

    monkeypatch.setattr(model.session, "run", run)
    same, other = [tiny.image(k) for k in range(7)], [tiny.image(9, 64, 48)]
    model([*same, *other], batch=2)
    assert seen == [2, 2, 2, 1, 1]
    seen.clear()
    model([*same, *other], batch=4)
    assert seen == [4, 1, 1, 1, 1]
    assert model([], batch=4) == []


def test_predict_pixels_takes_any_batch(model: Model) -> None:
    images = np.stack([tiny.image(seed) for seed in range(3)])
    probabilities, members = model.predict_pixels(images)
    expected = tiny.expected(images)
    np.testing.assert_allclose(probabilities, expected[0], atol=2e-6)
    np.testing.assert_allclose(members, expected[1], atol=2e-6)
    empty = model.predict_pixels(images[:0])
    assert (empty[0].shape, empty[1].shape) == ((0, 3), (0, 2, 3))


@pytest.mark.parametrize(("height", "width"), [(15, 40), (40, 15), (513, 40), (40, 513)])
def test_a_size_out_of_range_is_refused_by_every_entrance(
    model: Model, tmp_path: Path, height: int, width: int
) -> None:
    image = tiny.image(0, height, width)
    (tmp_path / "scan.png").write_bytes(png(image))
    wanted = f"{min(16, height, width)},48,{max(512, height, width)}"
    for call in (
        lambda: model(image),
        lambda: model([tiny.image(0), image], batch=2),
        lambda: model(tmp_path / "scan.png"),
        lambda: model.predict_pixels(image[None]),
    ):
        with pytest.raises(InputError, match=f"{width} x {height} pixels.*--image-size {wanted}"):
            call()
    assert model(tiny.image(0, 16, 512)).label  # the ends of the range belong to it


def test_the_error_names_the_image(model: Model, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"bad\.png"):
        model([tiny.image(0), tmp_path / "bad.png"])
    with pytest.raises(InputError, match="image 1 of the list"):
        model([tiny.image(0), b"not an image"])
    with pytest.raises(InputError, match="image 1 of the list has 8 x 8 pixels"):
        model([tiny.image(0), tiny.image(0, 8, 8)])


@pytest.mark.parametrize(
    "wrong", [tiny.image(0).astype(np.float32), tiny.image(0)[None], tiny.image(0)[:, :, 0], 7, None, {"path": "x"}]
)
def test_what_is_no_image_is_an_input_error(model: Model, wrong: object) -> None:
    with pytest.raises(InputError):
        model(wrong)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="predict_pixels takes uint8"):
        model.predict_pixels(tiny.image(0))
    with pytest.raises(InputError, match="batch is 0"):
        model([tiny.image(0)], batch=0)


def test_a_result_that_is_not_finite_is_no_prediction(tmp_path: Path) -> None:
    weights = tiny.WEIGHTS.copy()
    weights[1, 0, 0] = np.nan
    files = {**tiny.fields()["files"], "model.fp32.onnx": tiny.model(weights)}
    broken = edgemed.load(tiny.bundle(tmp_path / "bundle", files=files))
    with pytest.raises(GateError, match="do not use this engine"):
        broken(tiny.image(0))


def test_auto_takes_openvino_and_says_why_and_logs_it(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="edgemed"):
        model = edgemed.load(bundle)
    assert model.runtime == "openvino"
    assert model.reason.startswith("openvino: the first that works here (tensorrt: ")
    assert model.reason in caplog.text


def test_a_name_takes_that_runtime(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime")
    model = edgemed.load(bundle, runtime="onnxruntime")
    assert (model.runtime, model.reason) == ("onnxruntime", "onnxruntime: asked for by name")
    both = [edgemed.load(bundle, runtime=name)(tiny.image(4)) for name in ("openvino", "onnxruntime")]
    assert both[0].probabilities == pytest.approx(both[1].probabilities, abs=2e-6)
    assert [answer.runtime for answer in both] == ["openvino", "onnxruntime"]


def test_auto_goes_on_where_openvino_is_missing_or_refuses(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(openvino, "availability", lambda: "the package openvino is not installed")
    model = edgemed.load(bundle)
    assert model.runtime == "onnxruntime"
    assert "openvino: the package openvino is not installed" in model.reason
    with pytest.raises(InputError, match="openvino: the package openvino is not installed"):
        edgemed.load(bundle, runtime="openvino")

    def refuse(*_: object, **__: object) -> None:
        raise InputError("OpenVINO refuses the graph")

    monkeypatch.setattr(openvino, "availability", lambda: None)
    monkeypatch.setattr(openvino, "open_session", refuse)
    assert edgemed.load(bundle).runtime == "onnxruntime"
    assert "OpenVINO refuses the graph" in caplog.text
    with pytest.raises(InputError, match="OpenVINO refuses the graph"):
        edgemed.load(bundle, runtime="openvino")


def test_with_no_runtime_at_all_the_error_lists_every_reason(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> SimpleNamespace:
        return SimpleNamespace(availability=lambda: f"{name} is broken")

    monkeypatch.setattr(engines, "runtime_module", broken)
    with pytest.raises(InputError, match=r"openvino: openvino is broken; onnxruntime: onnxruntime is broken"):
        edgemed.load(bundle)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_runtime_that_cannot_work_here_is_refused_by_name(
    bundle: Bundle, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: None)  # the driver, which is asked for first
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=f"{name}: the package tensorrt\\w* is not installed"):
        edgemed.load(bundle, runtime=name)


def test_mistyped_arguments_get_a_suggestion(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'openvino'"):
        edgemed.load(bundle, runtime="openvin")
    with pytest.raises(InputError, match="Did you mean 'fp16'"):
        edgemed.load(bundle, precision="f16")
    with pytest.raises(InputError, match="threads is 0"):
        edgemed.load(bundle, threads=0)
    with pytest.raises(InputError, match="build a bundle"):
        edgemed.load(tmp_path / "nowhere")


def test_the_precision_picks_the_graph(tmp_path: Path) -> None:
    other = tiny.WEIGHTS * 0.5
    files = {**tiny.fields()["files"], "model.fp16.onnx": tiny.model(other)}
    built = tiny.bundle(tmp_path / "bundle", files=files)
    found = edgemed.load(built, precision="fp16")(tiny.image(1))
    expected, _ = tiny.expected(tiny.image(1)[None], other)
    assert list(found.probabilities.values()) == pytest.approx(expected[0].tolist(), abs=2e-6)


def test_a_bundle_with_one_changed_byte_reaches_no_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = tiny.bundle(tmp_path / "bundle")
    path = built.path / "model.fp32.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    reached: list[str] = []
    monkeypatch.setattr(engines, "runtime_module", reached.append)
    with pytest.raises(InputError, match=r"model\.fp32\.onnx was changed"):
        edgemed.load(built.path)
    assert not reached


def test_loading_and_predicting_import_no_torch_and_no_training_package(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "scan.png").write_bytes(png(tiny.image(1)))
    script = (
        "import sys, edgemed; model = edgemed.load(sys.argv[1]); print(model(sys.argv[2]).label);"
        "print(sorted({'torch', 'timm', 'onnx', 'sklearn', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", script, str(bundle.path), str(tmp_path / "scan.png")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    expected, _ = tiny.expected(tiny.image(1)[None])
    assert done.stdout.split("\n")[:2] == [tiny.LABELS[int(expected[0].argmax())], "[]"]
