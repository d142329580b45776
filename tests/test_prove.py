"""What would fail the self-test of a bundle is found before the bundle is written."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import test_build
from PIL import Image
from test_build import SIDES, Made

import edgemed
from edgemed import build, precision, prove
from edgemed.ensemble import Ensemble, predict_callable
from edgemed.errors import GateError, InputError
from edgemed.evaluate import predict_files
from edgemed.gates import Gates, default_gates
from edgemed.images import image_from_file, pixels_sha256
from edgemed.manifest import OperatingPoint
from edgemed.sources import CheckImage, source_from_run

made, quick = test_build.made, test_build.quick


def test_a_graph_that_would_fail_its_own_self_test_is_not_shipped(
    made: Made, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(ensemble: Ensemble) -> Any:
        return lambda image: tuple(np.roll(each, 1, axis=-1) for each in predict_callable(ensemble)(image))

    monkeypatch.setattr(build, "predict_callable", elsewhere)  # what PyTorch made of the golden images
    with pytest.raises(GateError, match="fp32 graph in openvino .* on the golden images differs from its reference"):
        build.build_bundle(source_from_run(made.run.path), tmp_path / "b", image_size=SIDES)
    assert not (tmp_path / "b").exists()


def test_a_graph_that_gives_every_image_of_a_batch_the_first_ones_answer_is_not_shipped(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(ensemble: Ensemble, precision: str, **settings: Any) -> bytes:
        model = onnx.load_from_string(made.bundle.read_model(precision))
        for node in model.graph.node:
            node.output[:] = ["mean" if name == "probabilities" else name for name in node.output]
        zero, one = (onnx.numpy_helper.from_array(np.array([k]), f"row{k}") for k in (0, 1))
        model.graph.initializer.extend([zero, one])
        first = onnx.helper.make_node("Slice", ["mean", "row0", "row1", "row0"], ["first"])
        shape = onnx.helper.make_node("Shape", ["mean"], ["rows"])
        spread = onnx.helper.make_node("Expand", ["first", "rows"], ["probabilities"])
        model.graph.node.extend([first, shape, spread])
        return model.SerializeToString()

    monkeypatch.setattr(build, "onnx_from_ensemble", export)
    with pytest.raises(GateError, match="in a batch of two different images differs from its reference"):
        build.build_bundle(source_from_run(made.run.path), tmp_path / "b", image_size=SIDES, precisions=("fp32",))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_the_images_that_half_precision_is_tried_on_are_the_least_certain_of_all_classes(
    made: Made, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    tried: list[np.ndarray] = []

    def noted(ensemble: Ensemble, images: Any, close: Any, every: Any) -> precision.SafeHalf:
        tried.extend(images())
        return precision.safe_half(ensemble, images)

    monkeypatch.setattr(build, "safe_half", noted)
    source = source_from_run(made.run.path)
    monkeypatch.setattr(build, "ROUNDED_IMAGES", classes)
    build.build_bundle(source, tmp_path / "b", image_size=SIDES)
    validation = [proof for proof in source.check_images if proof.split == "validation"]
    certain = source.noted.mean(axis=1).max(axis=1)
    of_image = {pixels_sha256(image_from_file(proof.file)): proof for proof in validation}
    found = [of_image[pixels_sha256(image)] for image in tried[:classes]]
    assert [proof.label for proof in found] == list(range(classes))
    for proof in found:  # the least certain of its class
        kind = (proof.label, "validation")
        others = [k for k, other in enumerate(source.check_images) if (other.label, other.split) == kind]
        assert certain[source.check_images.index(proof)] == min(certain[others])


def test_a_test_image_that_was_changed_since_the_evaluation_is_named(made: Made, quick: None, tmp_path: Path) -> None:
    """The bundle's reference would pair its pixels with what was said of others."""
    source = source_from_run(made.run.path)
    file = next(proof.file for proof in source.check_images if proof.split == "test")
    before = file.read_bytes()
    try:
        Image.fromarray(255 - image_from_file(file)).save(file)
        with pytest.raises(InputError, match=rf"{file.name} is not the image that .* was evaluated on"):
            build.build_bundle(source, tmp_path / "b", image_size=SIDES, precisions=("fp32",))
    finally:
        file.write_bytes(before)
    assert list(tmp_path.iterdir()) == []


def test_the_auroc_is_judged_on_images_that_lack_a_class_as_certify_does(made: Made) -> None:
    source = source_from_run(made.run.path)
    two = [k for k, proof in enumerate(source.check_images) if proof.label < 2]
    source = replace(source, check_images=tuple(source.check_images[k] for k in two), noted=source.noted[two])
    golden = made.bundle.golden()
    loose = Gates(max_flips=999, max_prob_error=1, max_auroc_drop=0.1)
    judge = prove.Prover(source, 999, SIDES, {"fp16": loose}, golden, lambda *_: None)
    share = np.array([0.9 if each.label == 0 else 0.1 for each in judge.check_images], np.float32)  # the right way
    judge._truth = np.stack([share, 1 - share, 0 * share], axis=1)
    worse = np.concatenate([judge._truth[:, [1, 0, 2]], [item.probabilities for item in golden]])
    members = np.concatenate([judge._members, [item.members for item in golden]])
    with pytest.raises(GateError, match="AUROC lower by 1.0000, at most 0.1 allowed"):
        judge.judge_rounded(precision.Rounded(worse, members, {}))


@pytest.mark.parametrize(("limit", "flips"), [(0.897, False), (0.88, True)])
def test_in_half_precision_a_decision_that_the_reference_was_near_to_is_no_flip(
    made: Made, limit: float, flips: bool
) -> None:
    point = OperatingPoint(images=9, coverage=0.9, min_probability=limit)
    source, golden = replace(source_from_run(made.run.path), operating_point=point), made.bundle.golden()
    gates = {"fp16": Gates(max_prob_error=1, max_auroc_drop=1)}
    judge = prove.Prover(source, 9, SIDES, gates, golden, lambda *_: None)
    judge._truth = np.tile(np.float32([0.9, 0.06, 0.04]), (len(judge.check_images), 1))  # near a limit, or not
    lower = np.tile(np.float32([0.87, 0.08, 0.05]), (len(judge.check_images), 1))
    answers = np.concatenate([lower, [item.probabilities for item in golden]])
    rounded = precision.Rounded(answers, np.concatenate([judge._members, [item.members for item in golden]]), {})
    with pytest.raises(GateError, match="decision flips") if flips else nullcontext():
        judge.judge_rounded(rounded)


@pytest.mark.parametrize("golden_image", [0, 5])
def test_golden_images_that_lose_too_much_in_half_precision_are_not_shipped(
    made: Made, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_image: int
) -> None:
    def lossy(ensemble: Ensemble, images: Any, close: Any, every: Any) -> precision.SafeHalf:
        found = precision.safe_half(ensemble, images)
        found.rounded.members[-6 + golden_image, 0, :2] += np.float32([6e-3, -6e-3])  # the gate is 5e-3
        return found

    monkeypatch.setattr(build, "safe_half", lossy)
    with pytest.raises(GateError, match="rounded on the golden images, member imagenet, differs .* --golden"):
        build.build_bundle(source_from_run(made.run.path), tmp_path / "b", image_size=SIDES)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("image", [0, -1])  # a validation image, a golden one
@pytest.mark.parametrize(
    ("of", "lost", "kept"),
    [(0, 2e-3, False), (0, 3e-3, True), (1, 2e-3, False), (1, 3e-3, True), (0, np.nan, True)],
)
@pytest.mark.parametrize("bound", [5e-3, 5e-2])
def test_a_stage_more_stays_float32_where_half_precision_leaves_no_room_below_the_gates(
    made: Made, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    image: int, of: int, lost: float, kept: bool, bound: float,
) -> None:  # fmt: skip
    """The mean (of 0) or a member (of 1) loses less than the gate of 5e-3, but more than half of it, or less.

    A wider gate of the user's makes no more room: with it, labels could change.
    """
    tried: list[Any] = []
    half_ensemble = precision.half_ensemble
    answers = predict_callable(made.run.ensemble)

    def noted(ensemble: Ensemble, keep: Any = (), wide: bool = False) -> Ensemble:
        if wide:
            return ensemble  # loses nothing by its weights
        tried.append(keep)
        return half_ensemble(ensemble, keep)

    def lossy(half: Ensemble, images: Any) -> precision.Rounded:
        outputs = [np.stack(part) for part in zip(*map(answers, images), strict=True)]
        twice = 2 if image == 0 and of else 1  # a member counts half in the mean of a validation image
        if len(tried) == 1 and half is not made.run.ensemble:
            outputs[of][image].reshape(-1)[:2] += np.float32([lost, -lost]) * twice
        return precision.Rounded(*outputs, {})

    monkeypatch.setattr(precision, "rounded_outputs", lossy)
    monkeypatch.setattr(precision, "half_ensemble", noted)
    gates = {precision: default_gates(precision, max_prob_error=bound) for precision in ("fp32", "fp16")}
    bundle = build.build_bundle(source_from_run(made.run.path), tmp_path / "b", image_size=SIDES, gates=gates)
    assert tried == ([[], ["layer1"]] if kept else [[]])
    said = "too imprecise in fp16, and stay fp32: layer1." in (bundle.path / "model_card.md").read_text()
    assert said == kept


@pytest.mark.parametrize(("lost", "more"), [(2e-3, []), (4e-3, ["layer1"])])
def test_a_stage_more_stays_float32_where_the_weights_alone_leave_no_room_on_an_image_that_was_not_rounded(
    made: Made, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: float, more: list[str]
) -> None:
    tried: list[list[str]] = []
    answers, half_ensemble = predict_callable(made.run.ensemble), precision.half_ensemble

    def noted(ensemble: Ensemble, keep: Any = (), wide: bool = False) -> Ensemble:
        if not wide:
            return half_ensemble(ensemble, keep)
        tried.append(keep)
        return ensemble  # stands for the one with rounded weights

    def outputs(half: Ensemble, images: Any) -> precision.Rounded:
        mean, members = (np.stack(part) for part in zip(*map(answers, images), strict=True))
        if half is made.run.ensemble and len(tried) == 1:
            mean[-1, :2] += np.float32([lost, -lost])
        return precision.Rounded(mean, members, {})

    monkeypatch.setattr(precision, "rounded_outputs", outputs)
    monkeypatch.setattr(precision, "half_ensemble", noted)
    source = source_from_run(made.run.path)
    monkeypatch.setattr(build, "ROUNDED_IMAGES", 1)
    build.build_bundle(source, tmp_path / "b", image_size=SIDES)
    assert tried == [[], *([more] if more else [])]


def test_the_weights_alone_rounded_are_what_a_cpu_makes_of_the_fp16_graph(made: Made) -> None:
    files = made.run.dataset.subset("validation").files
    graph = edgemed.load(made.bundle.path, runtime="openvino", precision="fp16")
    images = [image_from_file(file) for file in files]
    of_graph = np.concatenate([graph.predict_pixels(image[None])[0] for image in images])
    alone, exact = (
        np.stack([predict_callable(ensemble)(image)[0] for image in images])
        for ensemble in (precision.half_ensemble(made.run.ensemble, wide=True), made.run.ensemble)
    )
    lost = np.abs(of_graph - exact).max()
    assert np.abs(of_graph - alone).max() < lost / 4, lost


def test_a_graph_that_changes_a_decision_of_the_operating_point_is_not_shipped(
    made: Made, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = predict_files(predict_callable(made.run.ensemble), [proof.file for proof in _validation(made)])[1]
    limit = float(members.mean(axis=1)[0].min())
    point = OperatingPoint(images=9, coverage=0.9, min_probability=limit + 5e-4)
    source = replace(source_from_run(made.run.path), operating_point=point)
    real = prove.Prover._judge

    def off(self: prove.Prover, what: str, precision: str, mean: Any, members: Any) -> None:
        wrong = mean.copy()
        wrong[np.abs(mean - limit) < 1e-5] += 8e-4  # within the gate of a probability, and across the limit
        real(self, what, precision, wrong, members)

    monkeypatch.setattr(prove.Prover, "_judge", off)
    with pytest.raises(GateError, match="1 decision flips"):
        build.build_bundle(source, tmp_path / "b", image_size=SIDES, precisions=("fp32",))


def _validation(made: Made) -> list[CheckImage]:
    return [proof for proof in source_from_run(made.run.path).check_images if proof.split == "validation"]
