"""`edgemed bench --diff`: a change is called one only where the samples and its size both say so."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemed.bench import SCHEMA
from edgemed.bench_diff import diff, read_report, table
from edgemed.errors import InputError
from edgemed.timing import percentile_intervals, resampled_medians


def report(samples: np.ndarray, *, threads: int = 2, batch: int = 1, **settings: Any) -> dict[str, Any]:
    """What of a report a comparison reads."""
    [p50] = percentile_intervals(samples, (50,))
    quantiles = np.quantile(resampled_medians(samples), (np.arange(101) + 0.5) / 101).tolist()
    result = {
        "batch": batch,
        "latency_ms": {"p50": p50._asdict(), "p50_resampled": quantiles},
        "stability": {"settled": True},
        "warnings": [],
    }
    same = {"precision": "fp32", "mode": "single-stream", "streams": 1, "idle_ms": 0.0, "image_size": 48, "include": []}
    return {
        "schema": SCHEMA,
        "bundle": {"id": "0123456789abcdef"},
        "machine": {"cpu": "a CPU", "governor": "performance"},
        "settings": {**same, **settings},
        "runtimes": [{"name": "openvino", "version": "1", "threads": threads, "results": [result]}],
    }


def latencies(seed: int, scale: float = 1.0, n: int = 200, noise: float = 0.02) -> np.ndarray:
    return 10 * scale * (1 + noise * np.random.default_rng(seed).gamma(2, size=n))


def verdict(old: np.ndarray, new: np.ndarray) -> str:
    [row] = diff(report(old), report(new))["rows"]
    return str(row["verdict"])


def test_the_same_bench_twice_shows_no_significant_change() -> None:
    verdicts = [verdict(latencies(seed, noise=0.1), latencies(1000 + seed, noise=0.1)) for seed in range(50)]
    assert verdicts.count("no significant change") >= 48


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(1.3, "slower"), (0.7, "faster"), (1.04, "no significant change"), (0.96, "no significant change")],
)
def test_a_change_counts_above_five_percent(scale: float, expected: str) -> None:
    assert verdict(latencies(0), latencies(1, scale)) == expected


@pytest.mark.parametrize(("scale", "expected"), [(0.8, "faster"), (1.2, "slower")])
def test_an_interval_that_reaches_to_one_does_not_exclude_it(scale: float, expected: str) -> None:
    old, new = report(np.full(50, 10.0)), report(np.full(50, 10.0 * scale))
    assert diff(old, new)["rows"][0]["verdict"] == expected
    new["runtimes"][0]["results"][0]["latency_ms"]["p50_resampled"][:5] = [10.0] * 5  # some resamples saw no change
    [row] = diff(old, new)["rows"]
    assert 1 in (row["ratio"]["low"], row["ratio"]["high"])
    assert row["verdict"] == "no significant change"


def test_a_large_change_within_the_noise_is_not_significant() -> None:
    old, new = latencies(0, n=12, noise=1.0), latencies(3, 1.15, n=12, noise=1.0)
    [row] = diff(report(old), report(new))["rows"]
    assert abs(row["ratio"]["value"] - 1) > 0.05
    assert row["ratio"]["low"] < 1 < row["ratio"]["high"]
    assert row["verdict"] == "no significant change"


def test_the_ratio_and_its_interval_are_those_of_the_samples() -> None:
    held = 0
    for seed in range(60):
        [row] = diff(report(latencies(seed, noise=0.2)), report(latencies(100 + seed, 1.25, noise=0.2)))["rows"]
        held += row["ratio"]["low"] <= 1.25 <= row["ratio"]["high"]
        assert row["ratio"]["value"] == pytest.approx(row["new_p50_ms"] / row["old_p50_ms"])
    assert 50 <= held <= 60


def test_what_else_differs_stands_beside_the_ratio() -> None:
    old, new = report(latencies(0), cuda_graph=True), report(latencies(1, 1.5), threads=1, cuda_graph=False)
    old["runtimes"][0]["plan"], new["runtimes"][0]["plan"] = "a", "b"
    new["machine"]["governor"] = "powersave"
    assert diff(old, new)["rows"][0]["verdict"] == "slower"
    new["runtimes"][0]["results"][0]["stability"]["settled"] = False
    new["runtimes"][0]["results"][0]["warnings"] = ["the CPU was throttled"]
    found = diff(old, new)
    assert found["rows"][0]["verdict"] == "not settled"
    assert found["notes"] == [
        "CUDA graph: True, now False",
        "governor: performance, now powersave",
        "openvino, batch 1: threads 2, now 1",
        "openvino, batch 1: plan a, now b",
        "openvino, batch 1: the new measurement is unstable",
        "openvino, batch 1, new: the CPU was throttled",
    ]
    assert diff(old, copy.deepcopy(old))["notes"] == []
    table(found)


@pytest.mark.parametrize(
    "setting",
    [{"precision": "fp16"}, {"mode": "burst"}, {"streams": 2}, {"idle_ms": 500.0}, {"image_size": 64},
     {"include": ["decode"]}],
)  # fmt: skip
def test_different_things_are_not_compared(setting: dict[str, Any]) -> None:
    flag = "--" + next(iter(setting)).replace("_", "-")
    with pytest.raises(InputError, match=flag):
        diff(report(latencies(0)), report(latencies(0), **setting))


def test_reports_without_a_common_measurement_are_not_compared() -> None:
    with pytest.raises(InputError, match="in common"):
        diff(report(latencies(0)), report(latencies(0), batch=4))


@pytest.mark.parametrize("document", [{"schema": "edgemed.bench/1"}, [], {"rows": []}])
def test_another_document_is_refused(tmp_path: Path, document: Any) -> None:
    file = tmp_path / "other.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match="no report of this edgemed's bench"):
        read_report(file)
