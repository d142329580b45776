"""A latency is measured only on a bundle that answers right, and says how far it is to be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_bundles as tiny

from edgemed import bench as bench_module
from edgemed.bench import bench, table
from edgemed.bundle import Bundle
from edgemed.errors import GateError, InputError
from edgemed.infer import Model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.bundle(tmp_path_factory.mktemp("bench") / "bundle")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that is not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of every request, in order; the clock advances 1 ms in each, and 9 ms more in every tenth."""
    seen: list[tuple[int, ...]] = []
    now = [0]
    real = Model.predict_pixels

    def predict(self: Model, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(batch.shape)
        now[0] += 10_000_000 if len(seen) % 10 == 0 else 1_000_000
        return real(self, batch)

    monkeypatch.setattr(Model, "predict_pixels", predict)
    monkeypatch.setattr(bench_module.time, "perf_counter_ns", lambda: now[0])
    return seen


def test_the_report_is_one_json_document_with_every_figure_and_its_place(bundle: Bundle) -> None:
    report = json.loads(json.dumps(bench(bundle, iterations=20, warmup=0, threads=1), allow_nan=False))
    assert report["schema"] == "edgemed.bench/1"
    assert report["bundle"] == {
        "path": str(bundle.path),
        "id": bundle.manifest.bundle_id,
        "precision": "fp32",
    }
    assert (report["runtime"]["name"], report["runtime"]["threads"]) == ("openvino", 1)
    assert (report["batch"], report["image_size"], report["samples"]) == (1, [48, 48], 20)
    assert report["correctness"]["golden_images"] == 2
    assert report["cold_start_ms"]["load"] > 0
    for name in ("cpu", "cores", "governor", "load_average_before", "architecture"):
        assert report["machine"][name] not in (None, "")
    for figure in (report["latency_ms"]["mean"], report["latency_ms"]["p50"], report["throughput_images_per_s"]):
        assert 0 < figure["low"] <= figure["value"] <= figure["high"]


def test_every_sample_counts_and_percentiles_are_those_of_the_samples(
    bundle: Bundle, requests: list[tuple[int, ...]]
) -> None:
    report = bench(bundle, iterations=100, warmup=0, batch=2, image_size=64)
    assert report["samples"] == 100
    assert requests[0] == (2, 64, 64, 3)  # the first answer, before the golden images
    assert requests[3:] == [(2, 64, 64, 3)] * 100
    latency = report["latency_ms"]
    assert latency["mean"]["value"] == pytest.approx(1.9)  # one request in ten takes 10 ms: none is dropped
    assert latency["p50"]["value"] == 1
    assert latency["p90"]["high"] == 10
    assert report["throughput_images_per_s"]["value"] == pytest.approx(2 / 1.9e-3)


def test_warm_up_and_duration_are_seconds(bundle: Bundle, requests: list[tuple[int, ...]]) -> None:
    report = bench(bundle, warmup=0.019, duration=0.19)
    assert report["samples"] == pytest.approx(100, abs=5)
    assert len(requests) - 3 - report["samples"] == pytest.approx(10, abs=5)


def test_p99_needs_a_thousand_samples(bundle: Bundle, requests: list[tuple[int, ...]]) -> None:
    few = bench(bundle, iterations=999, warmup=0)
    assert few["latency_ms"]["p99"] is None
    assert few["p99_note"] == "needs 1000 samples, has 999"
    assert "needs 1000 samples, has 999" in table(few)
    enough = bench(bundle, iterations=1000, warmup=0)
    assert enough["latency_ms"]["p99"]["value"] == 10
    assert enough["p99_note"] is None


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
        bench(wrong, iterations=5, warmup=0)
    assert ("member imagenet" in str(raised.value)) == (member is not None)
    assert len(requests) == 3  # the first answer and the golden images: no sample


def test_the_second_run_starts_from_the_cache(bundle: Bundle) -> None:
    runs = [bench(bundle, iterations=2, warmup=0)["cold_start_ms"]["from_cache"] for _ in range(2)]
    assert runs == [False, True]


def test_the_table_states_unit_samples_place_and_interval(bundle: Bundle) -> None:
    report = bench(bundle, iterations=30, warmup=0)
    text = table(report)
    p50 = report["latency_ms"]["p50"]
    assert f"p50        {p50['value']:.2f} [{p50['low']:.2f}, {p50['high']:.2f}] ms" in text
    for part in ("30 samples", "batch 1, 48 x 48 px", "2 golden images", report["machine"]["cpu"], "images/s"):
        assert part in text


def test_what_the_machine_does_not_tell_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = Path.read_text

    def hidden(self: Path, *args: str, **options: str) -> str:
        if self.parts[:2] in (("/", "sys"), ("/", "proc")):
            raise FileNotFoundError(self)
        return real(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", hidden)
    machine = bench_module.machine()
    assert (machine["cpu"], machine["governor"]) == ("not measured", "not measured")


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 0}, {"warmup": -1.0}, {"duration": 0.0}, {"iterations": 0}, {"image_size": 0}, {"image_size": 600}],
)
def test_wrong_arguments_are_refused(bundle: Bundle, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        bench(bundle, **wrong)  # type: ignore[arg-type]
