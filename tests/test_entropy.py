"""`build-engine --with-entropy`: the third output is the entropy that the kernels define, or nothing ships."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import test_build
import tiny_bundles as tiny
import torch
from cpp_build import BUNDLE, GATE, OK, opened, probe
from PIL import Image
from test_build import SIDES, Made
from test_export import ensemble_of

import edgemed
from edgemed import build
from edgemed.ensemble import Ensemble, entropy_map
from edgemed.errors import GateError, InputError
from edgemed.export import onnx_from_ensemble
from edgemed.gates import check_entropy, check_rows
from edgemed.images import image_from_file
from edgemed.infer import Model
from edgemed.kernels import reference
from edgemed.manifest import canonical_bytes, sha256_of
from edgemed.pack import write_bundle
from edgemed.phantoms import phantom
from edgemed.preprocess import FrontEnd
from edgemed.runtimes import runtime_module
from edgemed.sources import source_from_run

pytestmark = pytest.mark.usefixtures("cache")
made = test_build.made
TOLERANCE = 0.02  # bits
SHAPES = {"probabilities": (3, 2), "member_probabilities": (3, 2, 2), "entropy": (3, 2, 2)}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_graph_gives_the_entropy_of_the_resized_image(precision: str) -> None:
    ensemble = ensemble_of("convnext", 1)
    plain = onnx_from_ensemble(ensemble, precision)
    graph = onnx_from_ensemble(ensemble, precision, entropy=True)
    images = [phantom("oval", 3, height, width) for height, width in ((64, 64), (97, 131), (240, 33), (480, 640))]
    for name in ("openvino", "onnxruntime"):
        module: Any = runtime_module(name)
        with_map, without = (
            module.open_session(one, threads=1, cache_key=sha256_of(one)) for one in (graph, plain)
        )
        for image in images:
            batch = np.stack([image, 255 - image // 3])  # two rows, each with a map of its own
            found, plain_found = with_map.run(batch), without.run(batch)
            pixels = torch.nn.functional.interpolate(
                torch.from_numpy(batch).permute(0, 3, 1, 2).float(), (64, 64), mode="bilinear", antialias=True
            )
            stored = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
            assert found["entropy"].shape == (2, 2, 2)
            np.testing.assert_allclose(found["entropy"], reference.patch_entropy(stored, 32), atol=TOLERANCE)
            np.testing.assert_allclose(found["probabilities"], plain_found["probabilities"], atol=1e-6)


def test_a_size_without_whole_patches_is_refused_before_the_proof(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = dataclasses.replace(source_from_run(made.run.path), size=80)
    monkeypatch.setattr(build, "Prover", None)  # not reached
    with pytest.raises(InputError, match="resizes to 80 pixels, which are not whole patches of 32"):
        build.build_bundle(source, tmp_path / "b", image_size=SIDES, entropy=True)


def test_a_bundle_built_with_it_gives_it_with_every_prediction(made: Made, tmp_path: Path) -> None:
    source = source_from_run(made.run.path)
    bundle = build.build_bundle(source, tmp_path / "bundle", image_size=SIDES, precisions=("fp32",), entropy=True)
    assert bundle.manifest.entropy and not made.bundle.manifest.entropy
    model, files = edgemed.load(bundle, runtime="openvino"), made.run.dataset.subset("test").files
    model.self_test()
    for file, prediction in zip(files, model(files), strict=True):
        want = entropy_map(made.run.ensemble.front, image_from_file(file))
        np.testing.assert_allclose(prediction.entropy, want, atol=TOLERANCE)
        assert json.loads(json.dumps(prediction.as_dict()))["entropy"] == prediction.entropy
    plain = edgemed.load(made.bundle, runtime="openvino")(files[0])
    assert plain.entropy is None and "entropy" not in plain.as_dict()


@pytest.mark.parametrize("constant", [6.5, np.nan])
def test_a_graph_whose_entropy_is_wrong_is_never_written(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: float
) -> None:
    def export(ensemble: Ensemble, precision: str, **settings: Any) -> bytes:
        graph = onnx.load_from_string(made.bundle.read_model(precision))  # a constant map, as from a broken exporter
        flat = onnx.numpy_helper.from_array(np.full((1, 1, 1), constant, np.float32), "flat")
        graph.graph.initializer.append(flat)
        graph.graph.node.append(onnx.helper.make_node("Identity", ["flat"], ["entropy"]))
        graph.graph.output.append(onnx.helper.make_tensor_value_info("entropy", onnx.TensorProto.FLOAT, [1, 1, 1]))
        return graph.SerializeToString()

    monkeypatch.setattr(build, "onnx_from_ensemble", export)
    with pytest.raises(GateError, match="the fp32 graph in openvino .* differs from the reference.s entropy on 6"):
        build.build_bundle(source_from_run(made.run.path), tmp_path / "b" / "bundle", image_size=SIDES, entropy=True)
    assert not (tmp_path / "b").exists()


def test_pixels_are_rounded_half_to_even_as_the_graph_does() -> None:
    image = np.zeros((64, 32, 3), np.uint8)
    image[::2, :16], image[::2, 16:] = 3, 5  # pairs of rows become 1.5 and 2.5: both are 2, but in the outermost rows
    front = FrontEnd(32, (0.5,) * 3, (0.5,) * 3)
    assert front.resized(torch.from_numpy(image)[None])[0, 0, 5, [5, 20]].tolist() == [1.5, 2.5]
    assert entropy_map(front, image)[0, 0] < 0.5  # rounded half up, it would be more than 1 bit


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_every_row_of_a_batch_has_its_own_map(runtime: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", **tiny.entropy_fields())
    model: Model = edgemed.load(bundle, runtime=runtime)
    images = [tiny.image(seed) for seed in range(4)]
    for batch in (1, 2):
        found = [prediction.entropy for prediction in model(images, batch=batch)]
        np.testing.assert_allclose(found, tiny.entropy(np.stack(images)), rtol=1e-5)
    assert model.outputs(np.stack(images)[:0])["entropy"].shape == (0, 2, 2)


def test_a_map_is_judged_in_every_row_and_place() -> None:
    true = np.array([[1, 2], [3, 4]], np.float32)
    assert check_entropy([true, true], [true[None], np.stack([true, true + np.float32(0.015)])], "it") == pytest.approx(
        0.015, abs=1e-6
    )
    for wrong in (0.03, np.nan, np.inf):
        for row, column in np.ndindex(2, 2):
            rows = np.stack([true, true])
            rows[1, row, column] += wrong
            with pytest.raises(GateError, match="largest error"):
                check_entropy([true, true], [true[None], rows], "it")
            with pytest.raises(GateError, match="largest error"):
                check_entropy([true, rows[1]], [true[None], true[None]], "it")
            with pytest.raises(GateError, match="largest error"):
                check_entropy([true, true], [rows, true[None]], "it")  # the first image's
    for shape in ((1, 1, 1), (2, 2), (1, 3, 3), (0, 2, 2)):
        with pytest.raises(GateError, match="gives an entropy of the shape"):
            check_entropy([true], [np.ones(shape)], "it")


def test_a_batch_is_compared_with_single_images_row_by_row() -> None:
    true = {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()}
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 8, 8, 3), np.uint8)

    def run(batch: np.ndarray, together: dict[str, np.ndarray] = true) -> dict[str, np.ndarray]:
        return {name: values[batch[:, 0, 0, 0]] for name, values in (together if len(batch) == 3 else true).items()}

    check_rows(run, images, 2, "fp32", "a batch of 3,")
    for name, message in {"probabilities": "probab", "member_probabilities": "member", "entropy": "entropy"}.items():
        for place in (1, -1):  # the last is the last member's
            wrong = {key: values.copy() for key, values in true.items()}
            wrong[name][2].flat[place] += 0.03
            with pytest.raises(GateError, match=f"a batch of 3,.*{message}"):
                check_rows(partial(run, together=wrong), images, 2, "fp32", "a batch of 3,")


@pytest.mark.parametrize(("error", "right"), [(0.01, True), (0.03, False)])
def test_the_self_test_judges_the_entropy_too(error: float, right: bool, build: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", **tiny.entropy_fields(error))
    model, message = edgemed.load(bundle, runtime="openvino"), "differs from the reference's entropy"
    if right:
        model.self_test()
    else:
        with pytest.raises(GateError, match=message):
            model.self_test()
    found = opened(build, bundle.path, "openvino", self_test=1)
    assert found["status"] == (OK if right else GATE)
    assert right or message in found["message"]


@pytest.mark.parametrize("promised", [True, False])
def test_an_engine_with_other_outputs_than_the_manifest_states_does_not_run(
    promised: bool, build: Path, tmp_path: Path
) -> None:
    fields = tiny.entropy_fields() if promised else tiny.fields()
    fields["files"]["model.fp32.onnx"] = tiny.model(entropy=not promised)
    bundle = write_bundle(tmp_path / "bundle", **fields)
    with pytest.raises(InputError, match="state other outputs"):
        edgemed.load(bundle, runtime="openvino").predict_pixels(tiny.image(1)[None])
    found = opened(build, bundle.path, "openvino")
    assert (found["status"], "other outputs than the manifest" in found["message"]) == (BUNDLE, True), found


def test_the_c_library_gives_the_map_that_python_gives(build: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", **tiny.entropy_fields())
    Image.fromarray(tiny.image(5)).save(tmp_path / "image.png")
    want = edgemed.load(bundle, runtime="openvino")(tmp_path / "image.png").entropy
    np.testing.assert_allclose(probe(build, "entropy", bundle.path, tmp_path / "image.png"), np.ravel(want), rtol=1e-6)
    plain = tiny.bundle(tmp_path / "plain").path
    assert probe(build, "entropy", plain, tmp_path / "image.png") == []


@pytest.mark.parametrize("wrong", ["none", "one missing", "smaller", "a row too few", "not promised"])
def test_golden_maps_must_fit_the_manifest(wrong: str, build: Path, tmp_path: Path) -> None:
    fields = tiny.entropy_fields()
    outputs = json.loads(fields["files"]["golden/outputs.json"])
    for image in outputs["images"][: 0 if wrong == "not promised" else 1 if wrong == "one missing" else 2]:
        image["entropy"] = [[1.5, 2.5]] if wrong == "a row too few" else [[1.5]]
        if wrong in ("none", "one missing"):
            del image["entropy"]
    fields["files"]["golden/outputs.json"] = canonical_bytes(outputs)
    if wrong == "not promised":
        fields |= {"entropy": False, "files": fields["files"] | {"model.fp32.onnx": tiny.model()}}
    bundle = write_bundle(tmp_path / "bundle", **fields)
    with pytest.raises(InputError, match="other entropy maps than the manifest"):
        edgemed.load(bundle, runtime="openvino").self_test()
    found = opened(build, bundle.path, "openvino", self_test=1)
    assert (found["status"], "entropy" in found["message"]) == (BUNDLE, True), found


def test_a_bundle_without_it_is_written_as_before_it_was_there(tmp_path: Path) -> None:
    assert b"entropy" not in (tiny.bundle(tmp_path / "bundle").path / "manifest.json").read_bytes()


def test_a_manifest_that_promises_part_of_a_patch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="size 80 has no whole ones"):
        write_bundle(tmp_path / "bundle", **(tiny.entropy_fields() | {"size": 80}))


def test_it_is_of_a_new_bundle_only(edgemed: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle").path
    assert edgemed("build-engine", bundle, "--with-entropy") == 2
    assert "leave out --with-entropy" in " ".join(capsys.readouterr().err.split())
