"""A latency is measured only on a bundle that answers right, and says how far it is to be trusted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_bundles as tiny

from edgemed import bench as bench_module
from edgemed.bench import SCHEMA, Settings, bench, results
from edgemed.bundle import Bundle
from edgemed.errors import GateError, InputError
from edgemed.infer import Model
from edgemed.timing import Timed

QUICK = {"iterations": 20, "warmup": 0.0, "duration": 0.05}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.bundle(tmp_path_factory.mktemp("bench") / "bundle")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that is not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def only_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """No start of processes, no measuring of the machine: those have tests of their own."""
    limits = {"sgemm_gflops": 1e-3, "copy_gb_per_s": 1.0, "threads": 1, "sgemm_threads": 1, "blas": "openblas Zen"}
    monkeypatch.setattr(bench_module, "start_up", lambda *_, **__: {})
    monkeypatch.setattr(bench_module, "cpu_limits", lambda threads: limits)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, only_requests: None) -> list[tuple[int, ...]]:
    """The shape of every request, in order; the clock advances 1 ms in each, and 9 ms more in every tenth."""
    seen: list[tuple[int, ...]] = []
    now = [0]
    real = Model.outputs

    def outputs(self: Model, batch: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(batch.shape)
        now[0] += 10_000_000 if len(seen) % 10 == 0 else 1_000_000
        return real(self, batch)

    monkeypatch.setattr(Model, "outputs", outputs)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now[0])
    return seen


def measured(bundle: Bundle, **settings: Any) -> dict[str, Any]:
    """The first result of a report."""
    [(_, result), *_] = results(bench(bundle, Settings(**{**QUICK, **settings})))
    return result


def test_the_report_is_one_json_document_with_every_figure_and_its_place(bundle: Bundle) -> None:
    report = json.loads(json.dumps(bench(bundle, Settings(**QUICK, threads=1, batches=(1, 2))), allow_nan=False))
    assert report["schema"] == SCHEMA
    manifest = bundle.manifest
    assert report["bundle"]["id"] == manifest.bundle_id
    assert (report["bundle"]["flops_per_image"], report["bundle"]["weight_bytes"]) == (1000, manifest.weight_bytes)
    assert report["measured"] == "pixels in memory to probabilities, one request at a time"
    assert report["settings"]["image_size"] == 48
    for name in ("cpu", "cores", "governor", "architecture", "power_mode", "gpu"):
        assert report["machine"][name] not in (None, "")
    [runtime] = report["runtimes"]
    assert (runtime["name"], runtime["threads"], runtime["state"]) == ("openvino", 1, "built")
    assert runtime["correctness"]["golden_images"] == 2
    assert runtime["start"]["cold"]["total"] > 0
    assert runtime["limits"]["sgemm_gflops"] > 0
    assert [result["batch"] for result in runtime["results"]] == [1, 2]
    for result in runtime["results"]:
        latency = result["latency_ms"]
        for figure in (latency["mean"], latency["p50"], result["throughput_images_per_s"]):
            assert 0 < figure["low"] <= figure["value"] <= figure["high"]
        assert latency["p90"]["low"] is latency["p90"]["high"] is None and latency["p99"] is None  # of 20 samples
        assert latency["p50"]["value"] <= latency["p90"]["value"] <= latency["p95"]["value"] <= latency["max"]
        assert len(result["times_ms"]) == result["samples"] == 20
        assert result["stages_ms"]["compute"] > 0
        assert result["limit"]["share"] > 0
        assert result["peak_host_bytes"] > 10e6
        assert result["conditions"]["seconds"] > 0


@pytest.mark.parametrize("order", [np.s_[:, ..., ::-1], np.s_[::-1], np.s_[[0, 0]]], ids=["labels", "rows", "one row"])
@pytest.mark.parametrize("wrong", ["probabilities", "member_probabilities"])
def test_a_batch_that_answers_otherwise_than_one_image_is_not_timed(
    bundle: Bundle, only_requests: None, monkeypatch: pytest.MonkeyPatch, wrong: str, order: Any
) -> None:
    real = Model.outputs

    def outputs(self: Model, batch: np.ndarray) -> dict[str, np.ndarray]:
        found = real(self, batch)
        return found | {wrong: found[wrong][order].copy()} if len(batch) > 1 else found

    monkeypatch.setattr(Model, "outputs", outputs)
    with pytest.raises(GateError, match="a batch of 2,"):
        measured(bundle, iterations=3, batches=(2,), image_size=64)


def test_every_sample_counts_and_percentiles_are_those_of_the_samples(
    bundle: Bundle, requests: list[tuple[int, ...]]
) -> None:
    result = measured(bundle, iterations=100, batches=(2,), image_size=64)
    assert requests[:2] == [(1, 40, 56, 3), (1, 64, 48, 3)]  # the golden images come first
    assert requests[2:6] == [(2, 64, 64, 3), *[(1, 64, 64, 3)] * 2, (2, 64, 64, 3)]  # one compiles; a batch like each
    assert requests[6:106] == [(2, 64, 64, 3)] * 100  # the samples
    latency = result["latency_ms"]
    assert sorted(result["times_ms"]) == [1.0] * 90 + [10.0] * 10  # none is dropped
    assert latency["mean"]["value"] == pytest.approx(1.9)
    assert (latency["p50"]["value"], latency["p95"]["value"], latency["max"]) == (1, 10, 10)
    assert latency["cov"] == pytest.approx(2.7 / 1.9)
    assert result["throughput_images_per_s"]["value"] == pytest.approx(2 / 1.9e-3)


def test_warm_up_and_duration_are_seconds(bundle: Bundle, requests: list[tuple[int, ...]]) -> None:
    result = measured(bundle, iterations=None, warmup=0.019, duration=0.19)
    assert result["samples"] == pytest.approx(100, abs=5)


def test_p99_needs_a_thousand_samples(bundle: Bundle, requests: list[tuple[int, ...]]) -> None:
    few = measured(bundle, iterations=None, duration=0.19)
    assert few["latency_ms"]["p99"] is None
    assert few["p99_note"].startswith("needs 1000 samples, has 1")
    assert few["p99_note"].endswith(": --duration 3")
    enough = measured(bundle, iterations=1000)
    assert enough["latency_ms"]["p99"]["value"] == 10
    assert enough["p99_note"] is None


def test_the_share_of_the_limit_is_that_of_the_manifests_work(bundle: Bundle, requests: list[tuple[int, ...]]) -> None:
    limit = measured(bundle, iterations=100, batches=(4,))["limit"]
    assert limit["least_ms_by_flops"] == pytest.approx(4 * 1000 / 1e6 * 1e3)  # at 1e-3 GFLOP/s
    assert limit["least_ms_by_bytes"] == pytest.approx((bundle.manifest.weight_bytes + 4 * 48 * 48 * 3) / 1e9 * 1e3)
    assert (limit["bound"], limit["share"]) == ("flops", pytest.approx(4.0 / 1.9))


def test_the_share_of_the_limit_is_that_of_requests_and_not_of_the_pauses_between(
    bundle: Bundle, requests: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(bundle, iterations=100)["limit"]["share"]
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    real, now = time.perf_counter_ns, [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: real() + now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + round(seconds * 1e9)))
    sparse = measured(bundle, iterations=100, mode="sparse", idle_ms=50.0)
    assert sparse["limit"]["share"] == pytest.approx(whole)


def test_the_blocks_of_a_burst_are_of_its_time_and_not_of_all_its_latencies(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def four_at_a_time(*_: Any, begin: Callable[[], object], **__: Any) -> Timed:
        begin()
        return Timed([10.0] * 4000, 10.0)

    monkeypatch.setattr(bench_module, "timed", four_at_a_time)
    assert measured(bundle, mode="burst", streams=4)["latency_ms"]["blocks"] == 20  # of half a second


def test_burst_counts_the_images_of_all_streams(
    bundle: Bundle, only_requests: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Model.outputs
    monkeypatch.setattr(Model, "outputs", lambda self, batch: (time.sleep(0.005), real(self, batch))[1])
    result = measured(bundle, mode="burst", streams=3, iterations=20)
    assert result["samples"] == 60
    seconds = result["samples"] / result["throughput_images_per_s"]["value"]
    busy = sum(result["times_ms"]) / 1e3
    assert busy / 3 <= seconds < busy  # three at a time, and the last ones by themselves


def test_power_is_that_of_the_mode(bundle: Bundle, only_requests: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(bench_module, "power_of", lambda call, **pattern: seen.append(pattern) or "not measured")
    measured(bundle, mode="sparse", idle_ms=20, iterations=2)
    measured(bundle, mode="burst", streams=2, iterations=2, batches=(3,), warmup=0.01)
    found = [(one["images"], one["streams"], one["idle"], one["warmup"]) for one in seen]
    assert found == [(1, 1, 0.02, QUICK["warmup"]), (3, 2, 0, 0.01)]


def test_idle_time_between_requests_is_no_latency(bundle: Bundle, only_requests: None) -> None:
    result = measured(bundle, mode="sparse", idle_ms=20, iterations=10)
    assert result["latency_ms"]["p50"]["value"] < 20
    assert result["conditions"]["seconds"] > 0.2
    assert result["throughput_images_per_s"] is None


def test_decoding_is_part_of_the_request_where_it_is_included(bundle: Bundle, only_requests: None) -> None:
    report = bench(bundle, Settings(**QUICK, include=("decode",), image_size=480, batches=(2,)))
    [(_, result)] = results(report)
    stages = result["stages_ms"]
    assert report["measured"].startswith("JPEG in memory to decision")
    assert stages["decode"] > 0.5  # two JPEGs of 480 x 480
    assert measured(bundle, image_size=480)["stages_ms"]["decode"] is None


def test_all_runtimes_are_measured_and_those_that_do_not_work_say_why(bundle: Bundle, only_requests: None) -> None:
    report = bench(bundle, Settings(**QUICK, runtime="all"))
    found = {entry["name"]: entry for entry in report["runtimes"]}
    assert list(found) == ["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]
    assert {runtime["name"] for runtime, _ in results(report)} >= {"openvino", "onnxruntime"}
    assert all(entry["not_run"] for entry in found.values() if "results" not in entry)


@pytest.mark.parametrize("member", [None, 1])
def test_a_bundle_that_answers_wrong_is_not_timed(
    tmp_path: Path, member: int | None, requests: list[tuple[int, ...]]
) -> None:
    weights = tiny.WEIGHTS.copy()
    if member is None:
        weights *= 0.9
    else:  # the members' mean stays right: only the members themselves are exchanged
        weights = weights[::-1].copy()
    files = {**tiny.fields()["files"], "model.fp32.onnx": tiny.model(weights)}
    wrong = tiny.bundle(tmp_path / "bundle", files=files)
    with pytest.raises(GateError, match="differs from its reference on 2 images") as raised:
        bench(wrong, Settings(**QUICK))
    assert ("member imagenet" in str(raised.value)) == (member is not None)
    assert len(requests) == 2  # the golden images: no sample


def test_a_process_that_burns_a_core_beside_it_is_noticed(bundle: Bundle, only_requests: None) -> None:
    burner = "subprocess.Popen([sys.executable, '-c', 'while True: pass'], stdout=subprocess.DEVNULL).pid"
    start = [sys.executable, "-c", f"import subprocess, sys; print({burner})"]  # which ends: what we start is our own
    burning = int(subprocess.run(start, stdout=subprocess.PIPE, check=True).stdout)
    try:
        result = measured(bundle, iterations=None, duration=1.5)
    finally:
        os.kill(burning, signal.SIGKILL)
    assert result["conditions"]["other_processes_cpus"] > 0.2  # it has to share the cores with us
    assert any("other processes used" in line for line in result["warnings"])
    assert result["conditions"]["own_cpus"] <= len(os.sched_getaffinity(0)) + 0.1


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"mode": "brust"}, "'burst'"),
        ({"mode": "burst"}, "--streams"),
        ({"streams": 2}, "--streams"),
        ({"mode": "sparse"}, "--idle-ms"),
        ({"idle_ms": 5}, "--idle-ms"),
        ({"batches": ()}, "--batches"),
        ({"batches": (0,)}, "--batches"),
        ({"batches": (1, 1)}, "--batches"),
        ({"warmup": -1.0}, "--warmup"),
        ({"duration": 0.0}, "--duration"),
        ({"iterations": 0}, r"Settings\(iterations=0\): give 1 or more"),
        ({"image_size": 0}, "--image-size"),
        ({"include": ("encode",)}, "--include"),
    ],
)
def test_wrong_settings_are_refused_by_the_name_of_the_flag(wrong: dict[str, Any], flag: str) -> None:
    with pytest.raises(InputError, match=flag):
        Settings(**wrong)


def test_a_size_that_the_bundle_does_not_take_is_refused(bundle: Bundle, only_requests: None) -> None:
    with pytest.raises(InputError, match="--image-size 600: this bundle takes sides from 16 to 512"):
        bench(bundle, Settings(**QUICK, image_size=600))
