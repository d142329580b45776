"""A contender is timed only where it gives the bundle's answers, and a ratio says who is the faster one."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tiny_bundles as tiny
from numpy.typing import NDArray

from edgemed.contenders import BUNDLE, BY_HAND, COMPILED, EAGER, SEPARATE, Contender, compared, contenders, lines_of
from edgemed.errors import GateError
from edgemed.infer import Model, load

SIDE = 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that is not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(tiny.bundle(tmp_path / "bundle"), runtime="openvino", threads=1)


def ensemble_of(seed: int) -> Any:
    """Two small random networks whose answers differ from image to image."""
    import timm
    import torch
    from torch import nn

    from edgemed.ensemble import Ensemble
    from edgemed.preprocess import FrontEnd

    torch.manual_seed(seed)
    shape = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}
    networks = [timm.create_model("resnet18", num_classes=len(tiny.LABELS), **shape) for _ in tiny.MEMBERS]
    for layer in (layer for network in networks for layer in network.modules()):
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)  # timm begins with blocks that do nothing
    return Ensemble(FrontEnd(32, (0.5,) * 3, (0.25,) * 3), networks, (0.2, 0.3)).eval()


def built(ensemble: Any, out: Path) -> Model:
    """The bundle of an ensemble, on OpenVINO."""
    from edgemed.ensemble import predict_callable
    from edgemed.evidence import Golden, golden_files
    from edgemed.export import onnx_from_ensemble

    graph = onnx_from_ensemble(ensemble, image_size=(16, 48, 512))
    images = [tiny.image(seed) for seed in range(3)]
    golden = golden_files([Golden(image, *predict_callable(ensemble)(image)) for image in images])
    files = {"model.fp32.onnx": graph, "model.fp16.onnx": graph, **tiny.evidence_files(), **golden}
    return load(tiny.bundle(out, files=files), runtime="openvino", threads=1)


def fake(model: Model, name: str, milliseconds: float = 0.0, error: float = 0.0) -> Contender:
    """A contender that gives the bundle's answers, late or wrong."""

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        time.sleep(milliseconds / 1e3)
        return model.predict_pixels(pixels)[0] + np.float32(error)

    return Contender(name, "made up", lambda: predict)


@pytest.mark.slow
def test_every_way_to_the_same_answer_is_timed_and_one_of_another_run_is_not(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="extra train is not installed")
    ensemble = ensemble_of(0)
    model = built(ensemble, tmp_path / "bundle")
    shape = (2, SIDE, SIDE, 3)
    quick = [one for one in contenders(model, ensemble, shape) if one.name != COMPILED]  # it compiles for a minute
    report = compared(model, quick, batch=2, side=SIDE, seconds=0.1)
    assert report["request"] == list(shape)
    assert set(report["timed"]) == {*EAGER, SEPARATE, *BY_HAND.values()} and not report["not_timed"]
    assert all(one["max_prob_error"] < 1e-5 for one in report["timed"].values())

    others = [one for one in contenders(model, ensemble_of(1), shape) if one.name != COMPILED]
    report = compared(model, others, batch=2, side=SIDE, seconds=0.1)
    assert set(report["timed"]) == set(BY_HAND.values())
    assert set(report["not_timed"]) == {*EAGER, SEPARATE}
    assert all("not the bundle's" in reason and "error" in reason for reason in report["not_timed"].values())


@pytest.mark.slow
def test_a_compiled_network_gives_the_bundles_answers(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="extra train is not installed")
    ensemble = ensemble_of(0)
    model = built(ensemble, tmp_path / "bundle")
    only = [one for one in contenders(model, ensemble, (1, SIDE, SIDE, 3)) if one.name == COMPILED]
    report = compared(model, only, side=SIDE, seconds=0.1)
    assert report["timed"][COMPILED]["max_prob_error"] < 1e-5


def test_channels_last_is_what_its_name_says() -> None:
    torch = pytest.importorskip("torch", reason="extra train is not installed")
    from edgemed import contenders as module

    given = ensemble_of(0)
    network = module._channels_last(module._network(given, cast(Any, None), "cpu", torch.get_num_threads()))
    assert given.members[0].conv1.weight.is_contiguous()  # what the others time stays as it was
    seen = []
    network.members[0].conv1.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output]))
    network(torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8))
    assert all(one.is_contiguous(memory_format=torch.channels_last) and not one.is_contiguous() for one in seen)


def test_without_the_run_pytorch_is_left_out_and_the_flag_is_named(model: Model) -> None:
    report = compared(model, contenders(model, None, (1, SIDE, SIDE, 3)), side=SIDE, seconds=0.01)
    assert set(report["timed"]) == set(BY_HAND.values())
    assert set(report["not_timed"]) == {*EAGER, COMPILED, SEPARATE}
    assert all("--compare RUN" in reason for reason in report["not_timed"].values())


def test_a_wrong_answer_gets_a_reason_and_no_time(model: Model) -> None:
    others = [fake(model, "right"), fake(model, "wrong", error=2e-3), fake(model, "no number", error=float("nan"))]
    report = compared(model, others, side=SIDE, seconds=0.01)
    assert set(report["timed"]) == {"right"}
    assert "2.00e-03" in report["not_timed"]["wrong"] and "inf" in report["not_timed"]["no number"]
    text = "\n".join(lines_of(report))
    assert "not timed: its answers are not the bundle's" in text


def test_a_contender_has_to_be_right_on_every_image_and_not_on_the_timed_one_alone(model: Model) -> None:
    first: list[NDArray[np.float32]] = []  # the answer that it gives ever after

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        first.append(model.predict_pixels(pixels)[0])
        return first[0]

    report = compared(model, [Contender("cached", "made up", lambda: predict)], side=SIDE, seconds=0.01)
    assert not report["timed"] and "its answers are not the bundle's" in report["not_timed"]["cached"]


def test_beside_a_plan_the_cpus_runtimes_get_all_cores(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemed.contenders.usable_cores", lambda: 7)
    told = {way.name: way.what for way in contenders(model, None, (1, 48, 48, 3))}
    assert told["OpenVINO by hand"].endswith(" 1 threads")  # as the bundle here
    given: list[int] = []
    for name in ("_openvino", "_onnxruntime"):
        monkeypatch.setattr(f"edgemed.contenders.{name}", lambda *asked: given.append(asked[-1]))
    plan = replace(model, session=cast(Any, SimpleNamespace(name="tensorrt-rtx", threads=1)))
    ways = [way for way in contenders(plan, None, (1, 48, 48, 3)) if way.name in BY_HAND.values()]
    assert [way.what.rpartition(", ")[2] for way in ways] == ["7 threads"] * 2
    for way in ways:
        way.prepare()
    assert given == [7, 7]


def test_a_library_that_is_not_there_is_a_reason(model: Model) -> None:
    def absent() -> Any:
        raise ImportError("No module named 'fastest'")

    def broken() -> Any:
        raise RuntimeError("the compiler ended with 1\nand many more lines")

    report = compared(model, [Contender("a", "", absent), Contender("b", "", broken)], side=SIDE, seconds=0.01)
    assert report["not_timed"] == {"a": "No module named 'fastest'", "b": "the compiler ended with 1"}


def test_a_ratio_above_one_means_that_the_bundle_is_faster(model: Model) -> None:
    calm, slow = fake(model, "as fast"), fake(model, "slow", milliseconds=20)
    report = compared(model, [calm, slow], side=SIDE, seconds=0.2)
    slower = report["timed"]["slow"]["times_bundle"]
    assert 1 < slower["low"] <= slower["value"] <= slower["high"]
    bundle = report["bundle"]["p50_ms"]["value"]
    assert slower["value"] == pytest.approx(report["timed"]["slow"]["p50_ms"]["value"] / bundle)
    line = next(line for line in lines_of(report) if line.startswith("slow"))
    assert f"{slower['value']:.2f} [{slower['low']:.2f}, {slower['high']:.2f}]" in line


def test_a_bundle_that_is_wrong_itself_is_compared_with_nothing(tmp_path: Path) -> None:
    wrong = {**tiny.fields()["files"], **tiny.evidence_files(tiny.WEIGHTS[::-1] * 0.5)}
    model = load(tiny.bundle(tmp_path / "bundle", files=wrong), runtime="openvino", threads=1)
    with pytest.raises(GateError):
        compared(model, [fake(model, BUNDLE)], side=SIDE, seconds=0.01)


def test_the_command_compares_the_first_batch_and_says_it_in_table_and_json(
    tmp_path: Path, edgemed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny.bundle(tmp_path / "bundle").path
    flags = "--compare none --batches 3,1 --image-size 40 --threads 1 --warmup 0 --duration 0.1".split()
    assert edgemed("bench", bundle, *flags, "--json", tmp_path / "bench.json") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (BY_HAND["openvino"], "not timed", "compared on 3 x 40 x 40 x 3"))
    comparison = json.loads((tmp_path / "bench.json").read_text())["comparison"]
    assert comparison["request"] == [3, 40, 40, 3] and set(comparison["timed"]) == set(BY_HAND.values())
    assert edgemed("bench", bundle, "--compare", tmp_path / "no-run") == 2

    def failing(*_: Any, **__: Any) -> None:
        raise GateError("wrong")

    (tmp_path / "bench.json").unlink()
    monkeypatch.setattr("edgemed.contenders.compared", failing)
    assert edgemed("bench", bundle, *flags, "--json", tmp_path / "bench.json") == 3
    assert json.loads((tmp_path / "bench.json").read_text())["runtimes"][0]["results"]  # what was measured is kept
