"""From a run to a bundle: nothing is written unless every graph is right, and nothing of a patient travels."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn

import edgemed
from edgemed import build, prove, sources
from edgemed.bundle import Bundle, open_bundle
from edgemed.dataset import Dataset
from edgemed.ensemble import Ensemble, predict_callable
from edgemed.errors import GateError, InputError
from edgemed.evaluate import Table, evaluation, predict_files
from edgemed.images import image_from_file, pixels_sha256
from edgemed.phantoms import CLASSES, write_dataset
from edgemed.plans import PlanOptions
from edgemed.predictions import MEMBERS, predictions_csv
from edgemed.preprocess import FrontEnd
from edgemed.rows import Row
from edgemed.run import Run
from edgemed.sources import source_from_run

SIZE, SIDES = 32, (32, 96, 512)
PATIENT = "Doe_Jane_1971"  # a group's name, as a user might choose it


@dataclass(frozen=True)
class Made:
    run: Run
    bundle: Bundle


def _run(folder: Path) -> Run:
    """A run as `edgemed train` leaves it, but for its networks: random ones."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = write_dataset(folder / "hospital_archive", per_class=6, size=64)
    splits = ("train", "train", "validation", "validation", "test", "test")
    rows = tuple(
        Row(f"{label}/{label}_{k:04d}.png", label, f"{PATIENT}_{label}_{k // 2}", splits[k])
        for label in CLASSES
        for k in range(6)
    )
    dataset = Dataset(data, rows, CLASSES)
    shape = {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48)}
    networks = [timm.create_model("resnet18", num_classes=3, **shape) for _ in MEMBERS]
    for layer in (layer for network in networks for layer in network.modules()):
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)  # timm begins with blocks that do nothing
    temperatures = (0.03, 0.05)
    front = FrontEnd(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ensemble = Ensemble(front, networks, temperatures).eval()
    parts, results = [], {}
    for split in ("validation", "test"):
        part = dataset.subset(split)
        found = predict_files(predict_callable(ensemble), part.files)
        parts.append((part, found.members, found.pixels))
        table = Table((), np.array(part.labels), tuple(part.groups), found.members, found.probabilities)
        results[split] = evaluation(table, MEMBERS, CLASSES)
    path = folder / "run"
    path.mkdir()
    (path / "predictions.csv").write_text(predictions_csv(parts))
    info = {
        "edgemed": "0.1.0",
        "config": {"seed": 7},
        "dataset": {"root": str(data), "n": 18, "groups": 9, "fingerprint": "ab" * 32},
    }
    metrics = {"split": "test", "operating": None} | results["test"]
    return Run(path, ensemble, CLASSES, SIZE, "resnet18", MEMBERS, temperatures, info, metrics, dataset)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("build")
    run = _run(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(sources, "load_run", lambda path: run)
        source = source_from_run(run.path)
        yield Made(run, build.build_bundle(source, folder / "bundle", image_size=SIDES, plans=PlanOptions()))


@pytest.fixture
def quick(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take seconds: further builds take the graphs of the first."""
    monkeypatch.setattr(
        build, "onnx_from_ensemble", lambda ensemble, precision, **settings: made.bundle.read_model(precision)
    )


def test_the_bundle_predicts_what_pytorch_does(made: Made) -> None:
    files = made.run.dataset.subset("test").files
    want, of_members, _ = predict_files(predict_callable(made.run.ensemble), files)
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 5e-3)):
        found = edgemed.load(made.bundle.path, runtime="openvino", precision=precision)(files)
        for k, prediction in enumerate(found):
            assert prediction.label == CLASSES[int(want[k].argmax())]
            np.testing.assert_allclose([prediction.probabilities[name] for name in CLASSES], want[k], atol=tolerance)
            for m, member in enumerate(MEMBERS):
                values = [prediction.members[member][name] for name in CLASSES]
                np.testing.assert_allclose(values, of_members[k, m], atol=tolerance)


def test_a_key_signs_the_manifest_and_the_plans(
    made: Made, quick: None, tmp_path: Path, edgemed: Callable[..., int], key_files: tuple[Path, Path]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="extra rtx is not installed")
    (private, public), out = key_files, tmp_path / "b"
    plan = ("--runtime", "tensorrt-rtx", "--targets", "sm86", "--precision", "fp32", "--image-size", "32,96,512")
    assert edgemed("build-engine", made.run.path, "--out", out, *plan, "--sign", private) == 0
    assert [record.targets for record in open_bundle(out).plans()] == [("sm86",)]
    assert edgemed("inspect", out, "--verify", public) == 0  # the manifest's signature, and the plan's


def test_golden_images_cover_every_class_and_carry_pytorchs_outputs(made: Made) -> None:
    golden = made.bundle.golden()
    assert len(golden) == 2 * len(CLASSES)
    assert len({item.image.shape for item in golden}) == 2
    for item in golden:
        probabilities, members = predict_callable(made.run.ensemble)(item.image)
        np.testing.assert_allclose(item.probabilities, probabilities, atol=1e-6)
        np.testing.assert_allclose(item.members, members, atol=1e-6)


def test_red_and_blue_in_the_wrong_order_fail_the_golden_images(made: Made) -> None:
    ensemble, gate = predict_callable(made.run.ensemble), 1e-3  # the gate of fp32
    errors: dict[tuple[int, ...], float] = {}
    for item in made.bundle.golden():
        error = np.abs(ensemble(item.image[..., ::-1].copy())[0] - item.probabilities).max()
        errors[item.image.shape] = max(errors.get(item.image.shape, 0), error)
    assert len(errors) == 2 and min(errors.values()) > gate


def test_golden_images_of_ones_own_travel_with_pytorchs_outputs(made: Made, quick: None, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    shutil.copy(made.run.dataset.files[0], chosen / "one.png")
    bundle = build.build_bundle(source_from_run(made.run.path), tmp_path / "b", image_size=SIDES, golden=chosen)
    (item,) = bundle.golden()
    assert np.array_equal(item.image, image_from_file(chosen / "one.png"))
    np.testing.assert_allclose(item.probabilities, predict_callable(made.run.ensemble)(item.image)[0], atol=1e-6)


@pytest.mark.parametrize("option", ["golden", "targets"])
def test_an_option_that_will_not_do_is_refused_before_the_proof(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    given: dict[str, Any] = {"golden": made.run.path}
    if option == "targets":
        pytest.importorskip("tensorrt_rtx", reason="extra rtx is not installed")
        given = {"plans": PlanOptions("tensorrt-rtx", ("sm99",))}
    monkeypatch.setattr(build, "Prover", None)  # not reached
    with pytest.raises(InputError, match={"golden": "holds no image", "targets": "'sm99' is unknown"}[option]):
        build.build_bundle(source_from_run(made.run.path), tmp_path / "b", image_size=SIDES, **given)


@pytest.mark.parametrize(("runtime", "says"), [("none", "leave them out"), ("auto", "no TensorRT is .* pip")])
@pytest.mark.parametrize("given", [{"targets": ("sm86",)}, {"batch": (1, 1, 4)}])
def test_options_of_a_plan_that_is_not_built_are_refused(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, says: str, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(build, "plan_runtime", lambda choice: None)
    monkeypatch.setattr(build, "Prover", None)  # not reached
    with pytest.raises(InputError, match=says):
        build.build_bundle(source_from_run(made.run.path), tmp_path / "b", plans=PlanOptions(runtime, **given))


def test_the_reference_names_images_by_their_pixels(made: Made) -> None:
    reference = made.bundle.reference()
    index = {digest: k for k, digest in enumerate(reference.sha256.tolist())}
    predict = predict_callable(made.run.ensemble)
    for split in ("validation", "test"):
        part = made.run.dataset.subset(split)
        for file, label in zip(part.files, part.labels, strict=True):
            image = image_from_file(file)
            k = index.pop(pixels_sha256(image))
            assert (reference.split[k], reference.label[k]) == (split, label)
            np.testing.assert_allclose(reference.probabilities[k], predict(image)[0], atol=1e-6)
    assert not index  # no training image, and none twice
    assert len(set(reference.group.tolist())) == 6


def test_no_patients_name_and_no_path_is_in_the_bundle(made: Made) -> None:
    for file in (path for path in made.bundle.path.rglob("*") if path.is_file()):
        data = file.read_bytes()
        for secret in (PATIENT, "hospital_archive", str(made.run.path)):
            assert secret.encode() not in data and secret.encode("utf-32-le") not in data, file.name
    for name, values in made.bundle.reference()._asdict().items():
        assert PATIENT not in str(values.tolist()), name


def test_the_model_card_states_the_runs_own_facts(made: Made) -> None:
    card = made.bundle.read("model_card.md").decode()
    accuracy = made.run.metrics["ensemble"]["accuracy"]
    assert "Not a medical device" in card
    assert f"| ensemble | {accuracy['value']:.3f} |" in card and accuracy["low"] is None  # of three groups
    assert all(f"| {name} | 2 | 2 | 2 |" in card for name in CLASSES)
    assert all(f"the {p} graph in {runtime}" in card for p in ("fp32", "fp16") for runtime in prove.RUNTIMES)
    assert "| the fp16 network with every operator rounded | 6 |" in card and "rounds every operator" in card


def test_the_model_card_of_an_fp32_engine_claims_no_rounding(made: Made, quick: None, tmp_path: Path) -> None:
    source = source_from_run(made.run.path)
    bundle = build.build_bundle(source, tmp_path / "b", image_size=SIDES, precisions=("fp32",))
    card = bundle.read("model_card.md").decode()
    assert "the fp32 graph in openvino" in card and "fp16" not in card and "round" not in card


def test_flops_are_two_per_multiply_add() -> None:
    """Resize: S x H x 3W and 3 S x W x S. Convolution: 5 x 3 x 3 x 3 per output pixel. Linear: 5 x S*S x 4."""
    side = 50
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * SIZE * SIZE, 4))
    ensemble = Ensemble(FrontEnd(SIZE, (0.5,) * 3, (0.5,) * 3), [network], (1.0,)).eval()
    resize = SIZE * side * 3 * side + 3 * SIZE * side * SIZE
    want = 2 * (resize + SIZE * SIZE * 5 * 27 + 5 * SIZE * SIZE * 4)
    assert build.flops_of(ensemble, side) == want


def test_the_manifest_states_size_and_cost(made: Made) -> None:
    manifest = made.bundle.manifest
    assert (manifest.input.min_side, manifest.input.opt_side, manifest.input.max_side) == SIDES
    assert manifest.weight_bytes == 4 * sum(p.numel() for m in made.run.ensemble.members for p in m.parameters())
    assert manifest.flops == build.flops_of(made.run.ensemble, SIDES[1])


def _another_networks_graph(precision: str, good: Bundle) -> bytes:
    """A graph that loads, runs and gives probabilities: just not this run's. One weight tensor is reversed."""
    model = onnx.load_from_string(good.read_model(precision))
    largest = max(model.graph.initializer, key=lambda value: len(value.raw_data))
    largest.raw_data = onnx.numpy_helper.to_array(largest)[::-1].tobytes()
    return model.SerializeToString()


@pytest.mark.parametrize("wrong", ["fp32", "fp16"])
def test_a_graph_that_differs_from_pytorch_is_never_written(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    def export(ensemble: Ensemble, precision: str, **settings: Any) -> bytes:
        if precision == wrong:
            return _another_networks_graph(precision, made.bundle)
        return made.bundle.read_model(precision)

    monkeypatch.setattr(build, "onnx_from_ensemble", export)
    with pytest.raises(GateError, match=f"the {wrong} graph in openvino") as caught:
        build.build_bundle(source_from_run(made.run.path), tmp_path / "deep" / "bundle", image_size=SIDES)
    assert ("--precision fp32" in str(caught.value)) == (wrong == "fp16")  # the way on
    assert list(tmp_path.iterdir()) == []


def test_an_activation_beyond_the_safe_range_stops_the_build(
    made: Made, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemed.precision.LARGEST_SAFE", 0.5)
    with pytest.raises(GateError, match=r"fp16 would overflow: members\.[01]\S*: aten\.\S+ reaches"):
        build.build_bundle(source_from_run(made.run.path), tmp_path / "bundle", image_size=SIDES)
    assert list(tmp_path.iterdir()) == []


def test_predictions_that_no_longer_hold_are_refused(made: Made, quick: None, tmp_path: Path) -> None:
    file = made.run.path / "predictions.csv"
    before = file.read_text()
    lines = before.splitlines()
    head, row = lines[0], lines[1].split(",")
    row[5:8] = row[7], row[5], row[6]
    try:
        file.write_text("\n".join([head, ",".join(row), *lines[2:]]) + "\n")
        with pytest.raises(InputError, match="images or weights were changed"):
            build.build_bundle(source_from_run(made.run.path), tmp_path / "bundle", image_size=SIDES)
    finally:
        file.write_text(before)
    assert list(tmp_path.iterdir()) == []


def test_an_image_outside_the_range_names_the_flag(made: Made, quick: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--image-size"):
        build.build_bundle(source_from_run(made.run.path), tmp_path / "bundle", image_size=(32, 40, 48))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_else_is_refused_before_any_work(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    monkeypatch.setattr(build, "Prover", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(InputError, match="something else"):
        build.build_bundle(source_from_run(made.run.path), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
