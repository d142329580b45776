"""Classic TensorRT's plans, built on a stand-in for the module and for an Orin: no GPU, no TensorRT."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_bundles as tiny

from edgemed import plans
from edgemed.bundle import Bundle, open_bundle
from edgemed.errors import GateError, InputError
from edgemed.plans import PlanOptions, add_plans
from edgemed.preflight import Here
from edgemed.runtimes import OUTPUTS
from edgemed.runtimes.tensorrt import Flavour


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny.bundle(tmp_path / "bundle")


class Session:
    """What a GPU would run; `wrong` is added to its answers."""

    name, version, device, capability, threads, from_cache = "tensorrt", "10.3", "Orin", "sm87", 1, None

    def __init__(self, wrong: float) -> None:
        self.wrong = wrong

    def run(self, images: Any) -> dict[str, Any]:
        return dict(zip(OUTPUTS, (np.float32(part + self.wrong) for part in tiny.expected(images)), strict=True))


class Config:
    """TensorRT's builder config: remembers what it was told."""

    def __init__(self) -> None:
        self.cleared: list[str] = []
        self.limits: dict[str, int] = {}
        self.cache = b""

    def clear_flag(self, flag: str) -> None:
        self.cleared.append(flag)

    def add_optimization_profile(self, profile: Any) -> None:
        self.profile = profile

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.limits[pool] = size

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
        self.cache = cache

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"timings of every layer")


class Classic:
    """A stand-in for the module `tensorrt` 10.3, as JetPack 6 has it."""

    __version__ = "10.3"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(TF32="TF32")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    IProgressMonitor = object

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2)

    def __init__(self) -> None:
        self.config = Config()
        self.flags: list[int] = []

    def Builder(self, log: Any) -> Any:  # noqa: N802
        profile = SimpleNamespace(shapes={})
        profile.set_shape = lambda name, *shapes: profile.shapes.update({name: shapes})
        return SimpleNamespace(
            create_network=self.flags.append,
            create_builder_config=lambda: self.config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda network, config: b"ftrt" + bytes(124),
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:  # noqa: N802
        return SimpleNamespace(parse=lambda graph: True)


@pytest.fixture
def orin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Classic:
    """A machine with classic TensorRT and an Orin."""
    module = Classic()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module.__spec__ = ModuleSpec("tensorrt", None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)  # type: ignore[arg-type]
    monkeypatch.setattr(Flavour, "availability", lambda self: None if self.name == "tensorrt" else "not installed")
    monkeypatch.setattr(Flavour, "here", lambda self: Here("tensorrt", "10.3", "sm87", "Linux", "aarch64"))
    monkeypatch.setattr(Flavour, "free_memory", lambda self: 4_000_000_000)
    monkeypatch.setattr(Flavour, "open_plan", lambda self, plan, record: Session(0.0))
    return module


def test_classic_tensorrt_builds_for_the_gpu_that_it_is_on(bundle: Bundle, orin: Classic) -> None:
    assert plans.plan_runtime("auto") == "tensorrt"
    (record,) = add_plans(bundle, PlanOptions(batch=(1, 2, 4)), precisions=["fp32"])
    assert orin.flags == [1 << 1]  # strongly typed: the graph's own types, whatever the builder thinks
    assert orin.config.cleared == ["TF32"]
    assert orin.config.limits == {"workspace": 2_000_000_000}  # half of what is free
    assert orin.config.profile.shapes["image"] == ((1, 16, 16, 3), (2, 48, 48, 3), (4, 512, 512, 3))
    assert (record.runtime, record.version, record.targets) == ("tensorrt", "10.3", ("sm87",))
    assert record.state == "self-tested"  # it was run on the golden images
    assert open_bundle(bundle.path).plans() == (record,)


def test_a_second_build_starts_from_the_timings_of_the_first(bundle: Bundle, orin: Classic) -> None:
    add_plans(bundle, PlanOptions(), precisions=["fp32"])
    assert orin.config.cache == b""
    add_plans(bundle, PlanOptions(), precisions=["fp32"])
    assert orin.config.cache == b"timings of every layer"


def test_without_a_cache_folder_a_plan_is_built_and_the_reason_is_said_once(
    bundle: Bundle, orin: Classic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    add_plans(bundle, PlanOptions(), precisions=["fp32"])
    (said,) = [text for text in caplog.messages if "timing cache" in text]
    assert said.startswith("TensorRT's timing cache is not used: ") and str(tmp_path / "file") in said
    assert len(open_bundle(bundle.path).plans()) == 1


def test_timings_that_tensorrt_does_not_take_are_no_failure_of_the_build(
    bundle: Bundle, orin: Classic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orin.config, "get_timing_cache", lambda: None)
    add_plans(bundle, PlanOptions(), precisions=["fp32"])
    assert len(open_bundle(bundle.path).plans()) == 1
    assert not list((tmp_path / "cache").rglob("timings.bin"))


def test_a_bundle_without_an_fp16_graph_gets_the_plan_that_it_can(
    bundle: Bundle, orin: Classic, edgemed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: data for name, data in tiny.fields()["files"].items() if name != "model.fp16.onnx"}
    single = tiny.bundle(bundle.path.parent / "single", files=files).path
    for path, precisions in ((single, {"fp32"}), (bundle.path, {"fp32", "fp16"})):
        assert edgemed("build-engine", path) == 0
        assert {record.precision for record in open_bundle(path).plans()} == precisions
    assert edgemed("build-engine", single, "--precision", "fp16") == 2
    assert "holds no fp16 graph (model.fp16.onnx); take another --prec" in " ".join(capsys.readouterr().err.split())


def test_a_plan_is_signed_by_the_devices_key(
    bundle: Bundle, orin: Classic, edgemed: Callable[..., int], key_files: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    private, public = key_files
    signed = tiny.bundle(bundle.path.parent / "signed", signing_key=private.read_bytes()).path
    for sign in ((), ("--sign", private)):
        assert edgemed("build-engine", signed, "--runtime", "tensorrt", "--precision", "fp32", *sign) == 0
        capsys.readouterr()
        assert edgemed("inspect", signed, "--verify", public) == (0 if sign else 2)
        assert ("is not signed" in " ".join(capsys.readouterr().err.split())) != bool(sign)
    opened = open_bundle(signed, public_key=public.read_bytes())
    assert opened.read_plan(opened.plans()[0])[:4] == b"ftrt"


def test_classic_tensorrt_refuses_another_gpu_than_its_own(bundle: Bundle, orin: Classic) -> None:
    with pytest.raises(InputError, match="the GPU of this machine, sm87, not for sm110"):
        add_plans(bundle, PlanOptions("tensorrt", ("sm110",)), precisions=["fp32"])


def test_a_plan_of_a_size_that_no_golden_image_has_is_built_and_not_tried(bundle: Bundle, orin: Classic) -> None:
    (record,) = add_plans(bundle, PlanOptions(image_size=(96, 96, 96)), precisions=["fp32"])
    assert (record.state, open_bundle(bundle.path).plans()) == ("built", (record,))


def test_a_plan_with_wrong_answers_is_never_written(
    bundle: Bundle, orin: Classic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flavour, "open_plan", lambda self, plan, record: Session(0.01))
    with pytest.raises(GateError, match="on tensorrt differs from its reference on 2 images"):
        add_plans(bundle, PlanOptions(), precisions=["fp32"])
    assert not (bundle.path / "plans").exists()
