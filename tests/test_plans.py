"""Plans from a bundle's own ONNX: real TensorRT-RTX builds, which need no GPU, and what is refused."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_bundles as tiny
from onnx import TensorProto, helper

from edgemed.bundle import Bundle, open_bundle
from edgemed.errors import InputError
from edgemed.plans import PlanOptions, add_plans
from edgemed.runtimes.tensorrt import FLAVOURS
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
        (["--runtime", "none"], "--runtime none builds none"),
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


PRESSED = """
import logging, os, signal, sys
from edgemed.bundle import open_bundle
from edgemed.plans import PlanOptions, add_plans

class Pressing(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith("tensorrt_rtx"):
            self.setLevel(logging.CRITICAL)
            os.kill(os.getpid(), signal.SIGINT)

log = logging.getLogger("edgemed")
log.setLevel(logging.DEBUG)
log.addHandler(Pressing())
try:
    add_plans(open_bundle(sys.argv[1]), PlanOptions("tensorrt-rtx", ("sm86",)), precisions=["fp32"])
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_stops_a_build_wherever_it_is_pressed(bundle: Bundle) -> None:
    """TensorRT swallows what a callback raises, and Python raises in whichever callback comes next."""
    rtx()
    done = subprocess.run([sys.executable, "-c", PRESSED, str(bundle.path)], capture_output=True, text=True)
    assert done.stdout == "stopped\n", done.stderr
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
