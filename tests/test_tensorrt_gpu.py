"""TensorRT on a real GPU: `make test-gpu`. Without one these tests are not run, and nothing is claimed."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_bundles as tiny

import edgemed
from edgemed.bundle import Bundle, open_bundle
from edgemed.plans import PlanOptions, add_plans
from edgemed.runtimes.tensorrt import FLAVOURS

pytestmark = pytest.mark.gpu


@pytest.fixture(params=sorted(FLAVOURS))
def runtime(request: pytest.FixtureRequest) -> str:
    if why_not := FLAVOURS[request.param].availability():
        pytest.skip(why_not)
    return str(request.param)


def built(folder: Path, runtime: str, side: int | None = None, batch: int = 1) -> Bundle:
    """The tiny bundle with a plan for this GPU."""

    bundle = tiny.bundle(folder)
    sides = (16, 48, 512) if side is None else (side, side, side)
    targets = [FLAVOURS[runtime].here().capability]
    add_plans(bundle, PlanOptions(runtime, tuple(targets), (1, 1, batch), sides), precisions=["fp32"])
    return open_bundle(bundle.path)


def test_a_plan_gives_the_golden_answers(tmp_path: Path, runtime: str) -> None:
    model = edgemed.load(built(tmp_path / "bundle", runtime), runtime=runtime, self_test=True)
    assert model.runtime == runtime


def test_a_cuda_graph_changes_nothing(tmp_path: Path, runtime: str, caplog: pytest.LogCaptureFixture) -> None:
    bundle = built(tmp_path / "bundle", runtime, side=48)
    (record,) = bundle.plans()
    images = [tiny.image(seed, 48, 48)[None] for seed in range(5)]
    answers = []
    for graph in (True, False):
        session = FLAVOURS[runtime].open_plan(bundle.read_plan(record), record, cuda_graph=graph)
        answers.append(np.concatenate([session.run(one)["member_probabilities"] for one in images]))
    assert "no CUDA graph is used" not in caplog.text
    assert np.array_equal(*answers)
    assert np.allclose(answers[0], np.concatenate([tiny.expected(one)[1] for one in images]), atol=1e-3)


def test_threads_get_their_own_answers(tmp_path: Path, runtime: str) -> None:
    model = edgemed.load(built(tmp_path / "bundle", runtime, batch=4), runtime=runtime)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for k in range(50):
            images = np.stack([tiny.image(seed * 100 + k, 40 + seed, 64)] * (1 + k % 4))
            if not np.allclose(model.predict_pixels(images)[0], tiny.expected(images)[0], atol=1e-3):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []
