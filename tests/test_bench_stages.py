"""Stages add up to the request, a GPU's come from its stream, and the front end's share is found from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_bundle
import tiny_bundles as tiny

from edgemed.bench_stages import front_end_flops, front_end_share, stages
from edgemed.infer import Model, load
from edgemed.manifest import ImageInput


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return load(tiny.bundle(tmp_path / "bundle"), runtime="onnxruntime", threads=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands until a test moves it: [milliseconds]."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: round(now[0] * 1e6))
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds * 1e3))
    return now


class Session:
    """A session that takes a constant time, and a front end's for the side of the images, in ms."""

    name = "slow"

    def __init__(
        self, session: Any, clock: list[float], constant: float, front_end: Callable[[int], float] = lambda side: 0.0
    ) -> None:
        self.session, self.clock, self.constant, self.front_end = session, clock, constant, front_end

    def run(self, images: np.ndarray) -> Any:
        self.clock[0] += self.constant + self.front_end(images.shape[1])
        return self.session.run(images)


class Gpu(Session):
    """A session with marks on its stream."""

    def run_timed(self, images: np.ndarray) -> Any:
        return self.run(images), {"h2d": 1.0, "compute": 5.0, "d2h": 0.5}


def pixels(side: int = 48) -> np.ndarray:
    return np.zeros((1, side, side, 3), dtype=np.uint8)


def test_stages_add_up_to_the_request(model: Model, clock: list[float]) -> None:
    slow = replace(model, session=Session(model.session, clock, 7.0))

    def request(one: Model) -> None:
        clock[0] += 2  # decoding
        one.predict_pixels(pixels())
        clock[0] += 0.25

    found = stages(slow, request, 0.1, decodes=True)
    assert {name: found[name] for name in ("decode", "compute", "post")} == {"decode": 2, "compute": 7, "post": 0.25}
    assert (found["h2d"], found["d2h"], found["launch"]) == (None, None, None)
    assert found["requests"] == 11
    without = stages(slow, request, 0.1, decodes=False)
    assert (without["decode"], without["compute"], without["post"]) == (None, 7, 2.25)


def test_an_idle_device_is_seen_in_its_stages(model: Model, clock: list[float]) -> None:
    slow = replace(model, session=Session(model.session, clock, 7.0))
    found = stages(slow, lambda one: one.predict_pixels(pixels()), 0.1, decodes=False, idle=0.018)
    assert (found["requests"], found["compute"], found["post"]) == (4, 7, 0)  # one every 25 ms


def test_a_gpus_stages_come_from_its_stream(model: Model, clock: list[float]) -> None:
    gpu = replace(model, session=Gpu(model.session, clock, 7.0))
    found = stages(gpu, lambda one: one.predict_pixels(pixels()), 0.05, decodes=False)
    assert [found[name] for name in ("h2d", "compute", "d2h", "launch")] == [1.0, 5.0, 0.5, pytest.approx(0.5)]


def test_a_request_of_several_runs_counts_them_all(model: Model, clock: list[float]) -> None:
    slow = replace(model, session=Session(model.session, clock, 7.0))
    found = stages(slow, lambda one: [one.predict_pixels(pixels()) for _ in range(3)], 0.05, decodes=False)
    assert found["compute"] == 21


@pytest.mark.parametrize(("side", "other"), [(48, 16), (20, 40), (512, 16)])
def test_the_front_ends_share_is_what_grows_with_the_image(
    model: Model, clock: list[float], side: int, other: int
) -> None:
    """tiny_bundles takes sides from 16 to 512."""
    size = model.bundle.manifest.size
    slow = replace(
        model, session=Session(model.session, clock, 9.0, lambda s: 3.0 * s * (s + size) / (side * (side + size)))
    )
    found = front_end_share(slow, pixels(side), 12.0, 1.0)
    assert isinstance(found, dict)
    assert found["value"] == pytest.approx(3 / 12)
    assert found["low"] <= found["value"] + 1e-9 and found["value"] <= found["high"] + 1e-9
    assert (found["other_side"], found["rounds"]) == (other, 41)


def test_on_a_gpu_copies_that_grow_with_the_image_are_not_the_front_ends(model: Model, clock: list[float]) -> None:
    size = model.bundle.manifest.size

    class Copying(Session):
        """1 ms of the front end in 10 ms of execution at 256 px; beside it, 5 ms of copies that grow with it."""

        def run_timed(self, images: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, float]]:
            side = images.shape[1]
            copies, compute = 5 * (side / 256) ** 2, 9.0 + side * (side + size) / (256 * (256 + size))
            clock[0] += copies + compute
            return self.session.run(images), {"h2d": copies, "compute": compute, "d2h": 0.0}

    burst = 60.0  # the p50 of one, in which requests wait for each other
    found = front_end_share(replace(model, session=Copying(model.session, clock, 15.0)), pixels(256), burst, 1.0)
    assert isinstance(found, dict)
    assert found["value"] == pytest.approx(1 / 15)


@pytest.mark.parametrize(
    ("sides", "side", "other"),
    [((40, 48, 512), 100, 40), ((40, 48, 512), 48, 96), ((48, 48, 80), 48, 80), ((48, 48, 60), 48, None)],
)
def test_a_plan_is_run_on_sizes_of_its_own_range_alone(
    model: Model, clock: list[float], sides: tuple[int, int, int], side: int, other: int | None
) -> None:
    ran = set[int]()

    def front_end(height: int) -> float:
        ran.add(height)
        return 0.0

    plan = replace(model, record=test_bundle.record(b"plan", image_side=sides))
    found = front_end_share(replace(plan, session=Session(model.session, clock, 9.0, front_end)), pixels(side), 9, 1)
    if other is None:
        assert (found, ran) == ("not measured: the engine takes no size that differs enough", set())
    else:
        assert isinstance(found, dict)
        assert (found["other_side"], ran) == (other, {side, other})


@pytest.mark.parametrize(("size", "side"), [(224, 512), (224, 224), (32, 50)])
def test_the_front_ends_flops_are_those_of_the_resize_in_the_graph(size: int, side: int) -> None:
    products = size * side * side + size * side * size  # the rows first, then the columns of what is left
    assert front_end_flops(size, side) == 3 * 2 * products  # red, green and blue; a multiplication and an addition
    torch = pytest.importorskip("torch", reason="extra train is not installed")
    from torch.utils.flop_counter import FlopCounterMode

    from edgemed.preprocess import FrontEnd

    with FlopCounterMode(display=False) as counter:
        FrontEnd(size, (0.5,) * 3, (0.25,) * 3)(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    assert counter.get_total_flops() == front_end_flops(size, side)


def test_an_engine_of_one_size_has_no_share_that_could_be_measured(tmp_path: Path) -> None:
    fixed = tiny.bundle(tmp_path / "fixed", image_input=ImageInput(min_side=48, opt_side=48, max_side=48))
    model = load(fixed, runtime="onnxruntime", threads=1)
    assert front_end_share(model, pixels(), 1.0, 1.0) == "not measured: the engine takes no size that differs enough"
