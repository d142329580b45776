"""Plans from a bundle's own ONNX: real TensorRT-RTX builds (they need no GPU), classic TensorRT on a stand-in."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_bundles as tiny
from onnx import TensorProto, helper

from edgemed import plans
from edgemed.bundle import Bundle, open_bundle
from edgemed.errors import GateError, InputError
from edgemed.plans import PlanOptions, add_plans
from edgemed.preflight import Here
from edgemed.runtimes import OUTPUTS
from edgemed.runtimes.tensorrt import FLAVOURS, Flavour
from edgemed.runtimes.tensorrt_builder import plan_from_onnx

SIDES = (16, 48, 512)
RTX = PlanOptions("tensorrt-rtx", ("sm86",))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny.bundle(tmp_path / "bundle")


def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="extra rtx is not installed")


def plan_files(bundle: Bundle) -> list[str]:
    return sorted(path.name for path in (bundle.path / "plans").glob("*"))


def test_a_bundle_gets_plans_by_the_command_without_torch(bundle: Bundle) -> None:
    rtx()
    before = (bundle.path / "manifest.json").read_bytes()
    arguments = [str(bundle.path), "--runtime", "tensorrt-rtx", "--targets", "sm86,sm89", "--json"]
    script = (
        "import sys\nfor name in ('torch', 'timm', 'onnx'): sys.modules[name] = None\n"
        f"sys.argv = ['edgemed', 'build-engine', *{arguments!r}]\nfrom edgemed.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    opened = open_bundle(bundle.path)
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert {record.precision for record in opened.plans()} == {"fp32", "fp16"}
    for record in opened.plans():
        assert opened.read_plan(record)[:4] == b"vtrt"
        assert (record.state, record.targets, record.image_side) == ("built", ("sm86", "sm89"), SIDES)
        assert record.onnx_sha256 == bundle.manifest.files[f"model.{record.precision}.onnx"].sha256
        assert record.version == importlib.import_module("tensorrt_rtx").__version__


def test_plans_of_several_profiles_live_side_by_side(bundle: Bundle) -> None:
    rtx()
    for options in (RTX, PlanOptions("tensorrt-rtx", ("sm86",), (1, 2, 8), (64, 64, 64)), RTX):
        add_plans(bundle, options, precisions=["fp32"])
    profiles = {(record.batch, record.image_side) for record in bundle.plans()}
    assert profiles == {((1, 1, 1), SIDES), ((1, 2, 8), (64, 64, 64))}
    assert len(bundle.plans()) == 2  # the third call built the first one's plan again


def test_sizes_beyond_the_bundles_own_are_refused(bundle: Bundle) -> None:
    rtx()
    with pytest.raises(InputError, match="outside of the bundle's own range, 16 to 512"):
        add_plans(bundle, PlanOptions("tensorrt-rtx", None, (1, 1, 1), (16, 48, 1024)), precisions=["fp32"])
    assert plan_files(bundle) == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max-prob-error", "0"], "leave out --max-prob-error"),
        (["--runtime", "none"], "--runtime none builds no plan"),
    ],
)
def test_what_a_bundle_is_not_built_by_is_refused(
    bundle: Bundle, flags: list[str], says: str, edgemed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgemed("build-engine", bundle.path, *flags) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert plan_files(bundle) == []


def test_one_plan_that_cannot_be_built_keeps_all_of_them_out(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx()
    read = Bundle.read_model
    monkeypatch.setattr(Bundle, "read_model", lambda self, p: read(self, p) if p == "fp32" else b"no graph")
    with pytest.raises(InputError, match="cannot read the fp16 graph"):
        add_plans(bundle, RTX, precisions=["fp32", "fp16"])
    assert plan_files(bundle) == []


def test_ctrl_c_stops_a_build_and_leaves_nothing(bundle: Bundle) -> None:
    rtx()

    def pressed(stage: str, done: int, total: int, detail: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_plans(bundle, RTX, precisions=["fp32"], progress=pressed)
    assert plan_files(bundle) == []


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("sm87", "Jetson Orin.*classic TensorRT"),
        ("sm90", "Hopper.*classic TensorRT"),
        ("sm75", "no float32 matrix products"),
        ("sm999", "unknown.*sm75, sm80"),
        ("current", "unknown"),
    ],
)
def test_a_target_that_rtx_cannot_serve_is_refused_with_the_reason(target: str, reason: str) -> None:
    rtx()
    with pytest.raises(InputError, match=reason):
        plan_from_onnx(b"", runtime="tensorrt-rtx", precision="fp16", targets=("sm86", target), image_size=SIDES)


def test_a_parser_error_names_the_node() -> None:
    rtx()
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "h", "w", 3])
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], "widen", to=TensorProto.FLOAT),
        helper.make_node("Unique", ["x"], ["y"], "the_culprit"),
    ]
    graph = helper.make_graph(nodes, "g", [image], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["k"])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    with pytest.raises(InputError, match="Unique 'the_culprit'"):
        plan_from_onnx(model, runtime="tensorrt-rtx", precision="fp32", targets=("sm86",), image_size=SIDES)


@pytest.mark.parametrize(("runtime", "extra"), [("tensorrt-rtx", r"edgemed\[rtx\]"), ("tensorrt", "JetPack")])
def test_without_tensorrt_the_error_says_how_to_get_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, runtime: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, FLAVOURS[runtime].package, None)
    with pytest.raises(InputError, match=extra):
        add_plans(bundle, PlanOptions(runtime), precisions=["fp32"])


def test_an_unknown_runtime_is_refused_with_the_nearest_name(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="Did you mean 'tensorrt'"):
        add_plans(bundle, PlanOptions("tensorrtt"), precisions=["fp32"])


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
    assert plan_files(bundle) == []
