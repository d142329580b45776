"""`load` prefers a plan that is certified on this very machine, and never takes an unproven one by itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundles as tiny
from numpy.typing import NDArray
from test_damaged import HERE, RTX, record

import edgemed
from edgemed import engines
from edgemed.bench import Settings, bench
from edgemed.bundle import Bundle, open_bundle
from edgemed.engines import place_of
from edgemed.errors import GateError, InputError
from edgemed.pack import add_plan
from edgemed.preflight import Here
from edgemed.records import Bounds, Certificate, PlanRecord
from edgemed.runtimes import PlanModule, runtime_module


class Executor:
    """A session on a GPU that is not there: the answers of the tiny graph, from numpy."""

    name, version, device, capability, threads, from_cache = "tensorrt-rtx", HERE.version, "RTX 3090", "sm86", 1, None

    def __init__(self, plan: bytes, error: float) -> None:
        self.plan, self.error = plan, error

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        mean, members = tiny.expected(images)
        names = ("probabilities", "member_probabilities")
        return dict(zip(names, (np.float32(mean + self.error), np.float32(members)), strict=True))


class Desktop(PlanModule):
    def __init__(self, error: float = 0.0) -> None:
        self.error, self.graphs = error, list[bool]()

    def availability(self) -> None:
        return None

    def here(self) -> Here:
        return HERE

    def open_plan(self, plan: bytes, record: PlanRecord, *, cuda_graph: bool = True) -> Any:
        self.graphs.append(cuda_graph)
        return Executor(plan, self.error)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    use(monkeypatch, Desktop())
    return tiny.bundle(tmp_path / "bundle")


def use(monkeypatch: pytest.MonkeyPatch, desktop: Desktop) -> None:
    def module(name: str) -> Any:
        return desktop if name == "tensorrt-rtx" else runtime_module(name)

    monkeypatch.setattr(engines, "runtime_module", module)


def certified(bundle: Bundle, one: PlanRecord, **place: str) -> PlanRecord:
    where = place_of(Executor(b"", 0.0), "fp32").model_copy(update=place)
    statement = Certificate(
        created="2026-01-01T00:00:00Z",
        bundle_id=bundle.manifest.bundle_id,
        place=where,
        images=9,
        max_prob_error=0.0,
        mean_prob_error=0.0,
        flips=(),
        unclear=0,
        auroc_change=None,
        gates=Bounds(max_flips=0, max_prob_error=1e-3, max_auroc_drop=0.005),
    )
    return one.model_copy(update={"state": "certified", "certificate": statement})


def test_an_uncertified_plan_is_passed_over_with_a_warning(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    add_plan(bundle, record(bundle, RTX), RTX)
    model = edgemed.load(bundle)
    assert model.runtime == "openvino"
    assert "plan made-by-hand is not certified on this machine" in model.reason
    assert any("not certified" in line.message and line.levelno == logging.WARNING for line in caplog.records)


def test_asking_for_it_overrides_that_and_is_logged(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    add_plan(bundle, record(bundle, RTX), RTX)
    for options in ({"runtime": "tensorrt-rtx"}, {"uncertified": True}):
        caplog.clear()
        model = edgemed.load(bundle, **options)  # type: ignore[arg-type]
        assert (model.runtime, model.state) == ("tensorrt-rtx", "built")
        assert "runs because it was asked for" in caplog.text


def test_a_plan_certified_here_is_taken_before_a_newer_uncertified_one(bundle: Bundle) -> None:
    first, second = RTX + b"first", RTX + b"second"
    add_plan(bundle, certified(bundle, record(bundle, first, id="first")), first)
    add_plan(bundle, record(bundle, second, id="second", created="2026-06-01T00:00:00Z"), second)
    model = edgemed.load(bundle)
    assert (model.runtime, model.state) == ("tensorrt-rtx", "certified")
    assert isinstance(model.session, Executor)
    assert model.session.plan == first


def test_a_plan_can_be_asked_for_by_its_id_where_another_is_certified(bundle: Bundle) -> None:
    first, second = RTX + b"first", RTX + b"second"
    add_plan(bundle, certified(bundle, record(bundle, first, id="first")), first)
    add_plan(bundle, record(bundle, second, id="second"), second)
    model = edgemed.load(bundle, plan="second")
    assert (model.session.plan, model.state) == (second, "built")  # type: ignore[attr-defined]
    assert model.reason == "tensorrt-rtx: plan second was asked for"
    for options, says in (
        ({"plan": "secnd"}, "Did you mean 'second'"),
        ({"plan": "second", "runtime": "openvino"}, "is for tensorrt-rtx, not openvino"),
        ({"plan": "second", "precision": "fp16"}, "add --precision fp32"),
    ):
        with pytest.raises(InputError, match=says):
            edgemed.load(bundle, **options)  # type: ignore[arg-type]


def test_a_plan_runs_without_a_cuda_graph_where_that_is_asked_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    desktop = Desktop()
    use(monkeypatch, desktop)
    add_plan(bundle, record(bundle, RTX), RTX)
    for wanted in (True, False):
        edgemed.load(bundle, runtime="tensorrt-rtx", cuda_graph=wanted)
    assert desktop.graphs == [True, False]


def test_a_self_test_takes_the_golden_images_that_the_plan_takes(bundle: Bundle) -> None:
    sizes = {item.image.shape[:2] for item in bundle.golden()}
    assert sizes == {(40, 56), (64, 48)}
    plan = RTX + b"small"
    made = record(bundle, plan, id="small", image_side=(16, 40, 56), batch=(3, 3, 3), state="self-tested")
    add_plan(bundle, made, plan)
    model = edgemed.load(bundle, plan="small")
    assert (model.self_test().n, model.state) == (1, "self-tested")
    with pytest.raises(InputError, match="--batches 1,4: plan small takes 3 to 3"):
        bench(bundle, Settings(runtime="tensorrt-rtx", plan="small", batches=(1, 4)))
    none = record(bundle, plan, id="none", image_side=(16, 16, 16))
    add_plan(bundle, none, plan)
    with pytest.raises(InputError, match="no golden image"):
        edgemed.load(bundle, plan="none").self_test()


@pytest.mark.parametrize("place", [{"device": "RTX 4090"}, {"capability": "sm89"}, {"version": "1.6.0"}])
def test_a_certificate_from_another_place_counts_for_nothing_here(bundle: Bundle, place: dict[str, str]) -> None:
    add_plan(bundle, certified(bundle, record(bundle, RTX), **place), RTX)
    assert edgemed.load(bundle).runtime == "openvino"


def test_without_a_plan_of_the_precision_the_command_that_builds_one_is_named(bundle: Bundle) -> None:
    add_plan(bundle, record(bundle, RTX), RTX)
    with pytest.raises(InputError, match=r"no fp16 plan for tensorrt-rtx; build one with `edgemed build-engine"):
        edgemed.load(bundle, runtime="tensorrt-rtx", precision="fp16")


def test_the_self_test_refuses_an_engine_that_answers_differently(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plan(bundle, record(bundle, RTX), RTX)
    assert edgemed.load(bundle, runtime="tensorrt-rtx", self_test=True).runtime == "tensorrt-rtx"
    use(monkeypatch, Desktop(error=2e-3))
    with pytest.raises(GateError, match="largest probability error"):
        edgemed.load(bundle, runtime="tensorrt-rtx", self_test=True)


def test_a_key_and_an_opened_bundle_do_not_go_together(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="pass it to `open_bundle`"):
        edgemed.load(bundle, public_key="key.pem")
    with pytest.raises(InputError, match=r"cannot read the key .*nothing\.pem"):
        edgemed.load(open_bundle(bundle.path).path, public_key="nothing.pem")


def test_an_empty_key_is_not_the_same_as_no_key(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    with pytest.raises(InputError, match=r"the key .*empty\.pem is empty"):
        edgemed.load(bundle.path, public_key=tmp_path / "empty.pem")
    assert open_bundle(bundle.path, plan_key=b"").plan_key == b""  # with it every plan is refused, not believed


def test_a_key_of_plans_alone_is_refused_since_it_verifies_no_bundle(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "device.pem").touch()
    with pytest.raises(InputError, match=r"device\.pem is the key of plans alone"):
        edgemed.load(bundle.path, plan_key=tmp_path / "device.pem")
