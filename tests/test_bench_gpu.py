"""`edgemed bench` on a real GPU: `make test-gpu`. Without one these tests are not run, and nothing is claimed."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_tensorrt_gpu import built, runtime  # noqa: F401  # a fixture: every TensorRT that works here

from edgemed import nvml
from edgemed.bench import Settings, bench, results
from edgemed.power import all_meters, power_of

pytestmark = pytest.mark.gpu


def test_a_gpus_report_has_its_stages_its_memory_and_its_state(tmp_path: Path, runtime: str) -> None:  # noqa: F811
    bundle = built(tmp_path / "bundle", runtime)
    report = bench(bundle, Settings(runtime=runtime, warmup=0.1, duration=1.0))
    [(entry, result)] = results(report)
    assert entry["limits"] == result["limit"] == "not measured"  # those of a CPU say nothing here
    assert all(result["stages_ms"][name] > 0 for name in ("h2d", "compute", "d2h"))
    assert all(start["device_bytes"] > 0 for start in entry["start"].values())
    assert result["conditions"]["after"]["gpu"]["sm_mhz"] > 0
    assert report["machine"]["gpu"] != "not measured"


@pytest.mark.parametrize("graph", [True, False])
def test_a_plan_of_one_shape_is_timed_with_and_without_a_cuda_graph(
    tmp_path: Path,
    runtime: str,  # noqa: F811
    graph: bool,
) -> None:
    bundle = built(tmp_path / "bundle", runtime, side=48)
    report = bench(bundle, Settings(runtime=runtime, image_size=48, warmup=0.1, duration=1.0, cuda_graph=graph))
    [(_, result)] = results(report)
    assert report["settings"]["cuda_graph"] is graph
    assert result["latency_ms"]["p50"]["value"] > 0


def test_a_gpu_tells_its_clocks_and_its_power() -> None:
    state = nvml.gpu_state()
    if state is None:
        pytest.skip("no NVIDIA GPU is visible")
    assert state["name"] and state["driver"]
    assert 0 < state["sm_mhz"] <= state["sm_mhz_max"]
    assert isinstance(state["throttling"], list)
    meters = [meter for meter in all_meters() if meter.name == "gpu"]
    found = power_of(lambda: None, images=1, seconds=1.0, meters=meters)
    assert isinstance(found, dict)
    assert 5 < found["sources"][0]["watts"] < 2000
