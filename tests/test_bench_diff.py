"""`edgemed bench --diff`: a change is called one only where the samples and its size both say so."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edgemed.bench import SCHEMA
from edgemed.bench_diff import diff, read_report, read_reports, table
from edgemed.bench_latency import latency_figures
from edgemed.errors import InputError


def report(samples: np.ndarray, *, threads: int = 2, batch: int = 1, **settings: Any) -> dict[str, Any]:
    """What of a report a comparison reads."""
    moment = {"cpu_mhz": [3000.0, 800.0, 2900.0], "gpu": {"sm_mhz": 1500}}
    result = {
        "batch": batch,
        "latency_ms": latency_figures(samples.tolist(), samples.sum() / 1e3),
        "stability": {"settled": True},
        "conditions": {"before": moment},
        "warnings": [],
    }
    same = {"precision": "fp32", "mode": "single-stream", "streams": 1, "idle_ms": 0.0, "image_size": 48, "include": []}
    same |= {"warmup": 1, "duration": 5}
    return {
        "schema": SCHEMA,
        "edgemed": "1",
        "bundle": {"id": "0123456789abcdef"},
        "machine": {"cpu": "a CPU", "governor": "performance"},
        "settings": {**same, **settings},
        "runtimes": [{"name": "openvino", "version": "1", "threads": threads, "limits": {"sgemm_gflops": 100.0},
                      "results": [result]}],
    }


def latencies(seed: int, scale: float = 1.0, n: int = 200, noise: float = 0.02) -> np.ndarray:
    return 10 * scale * (1 + noise * np.random.default_rng(seed).gamma(2, size=n))


def row_of(old: dict[str, Any], new: dict[str, Any], figure: str = "p50") -> dict[str, Any]:
    [row] = [row for row in diff([old], [new])["rows"] if row["figure"] == figure]
    return row


def verdict(old: np.ndarray, new: np.ndarray, figure: str = "p50") -> str:
    return str(row_of(report(old), report(new), figure)["verdict"])


def test_the_same_bench_twice_shows_no_significant_change() -> None:
    verdicts = [verdict(latencies(seed, noise=0.05), latencies(1000 + seed, noise=0.05)) for seed in range(50)]
    assert verdicts.count("no significant change") >= 48
    wide = [verdict(latencies(seed, noise=0.2), latencies(1000 + seed, noise=0.2)) for seed in range(50)]
    assert wide.count("no significant change") + wide.count("undecided") >= 48
    assert wide.count("undecided") > 10


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(1.3, "slower"), (0.7, "faster"), (1.04, "no significant change"), (0.96, "no significant change")],
)
def test_a_change_counts_above_five_percent(scale: float, expected: str) -> None:
    assert verdict(latencies(0), latencies(1, scale)) == expected


@pytest.mark.parametrize(("scale", "expected"), [(0.8, "faster"), (1.2, "slower")])
def test_an_interval_that_reaches_to_one_does_not_exclude_it(scale: float, expected: str) -> None:
    old, new = report(np.full(50, 10.0)), report(np.full(50, 10.0 * scale))
    assert row_of(old, new)["verdict"] == expected
    new["runtimes"][0]["results"][0]["latency_ms"]["resampled"]["p50"][:5] = [10.0] * 5  # some resamples saw no change
    row = row_of(old, new)
    assert 1 in (row["ratio"]["low"], row["ratio"]["high"])
    assert row["verdict"] == "undecided"


def test_a_large_change_within_the_noise_is_undecided_and_not_called_none() -> None:
    old, new = latencies(0, n=12, noise=1.0), latencies(3, 1.15, n=12, noise=1.0)
    row = row_of(report(old), report(new))
    assert abs(row["ratio"]["value"] - 1) > 0.05
    assert row["ratio"]["low"] < 1 < row["ratio"]["high"]
    assert row["verdict"] == "undecided"


def test_a_tail_that_grows_is_told_where_the_median_stands_still() -> None:
    old = latencies(0, n=2000)
    new = latencies(1, n=2000)
    new[5::10] *= 5
    found = [verdict(old, new, name) for name in ("p50", "mean", "p95", "p99")]
    assert found == ["no significant change", "slower", "slower", "slower"]


def test_a_figure_without_bounds_is_not_compared() -> None:
    rows = diff([report(latencies(0))], [report(latencies(1, n=150))])["rows"]
    assert [row["figure"] for row in rows] == ["mean", "p50", "p90"]  # p95 takes 200 samples, p99 takes 1,000


@pytest.mark.parametrize("n", [1, 5])
def test_a_handful_of_samples_is_not_compared_and_said_to_be_too_few(n: int) -> None:
    found = diff([report(latencies(0))], [report(latencies(1, n=n))])
    assert found["rows"] == []
    assert found["notes"] == ["openvino, batch 1, new: too few samples to compare; measure longer (--duration)"]


def test_the_ratio_and_its_interval_are_those_of_the_samples() -> None:
    held = 0
    for seed in range(60):
        row = row_of(report(latencies(seed, noise=0.2)), report(latencies(100 + seed, 1.25, noise=0.2)))
        held += row["ratio"]["low"] <= 1.25 <= row["ratio"]["high"]
        assert row["ratio"]["value"] == pytest.approx(row["new_ms"] / row["old_ms"])
    assert 50 <= held <= 60


def test_what_else_differs_stands_beside_the_ratio() -> None:
    old, new = report(latencies(0), cuda_graph=True), report(latencies(1, 1.5), threads=1, cuda_graph=False, warmup=0)
    old["runtimes"][0]["plan"], new["runtimes"][0]["plan"] = "a", "b"
    new["machine"]["governor"], new["edgemed"] = "powersave", "2"
    new["runtimes"][0]["limits"]["sgemm_gflops"] = 50.0
    new["runtimes"][0]["results"][0]["conditions"]["before"] = {"cpu_mhz": [1500.0] * 3, "gpu": {"sm_mhz": 1480}}
    assert row_of(old, new)["verdict"] == "slower"
    new["runtimes"][0]["results"][0]["stability"]["settled"] = False
    new["runtimes"][0]["results"][0]["warnings"] = ["the CPU was throttled"]
    found = diff([old], [new])
    assert found["rows"][0]["verdict"] == "not settled"
    assert found["notes"] == [
        "edgemed 1, now 2",
        "cuda graph: True, now False",
        "warmup: 1, now 0",
        "governor: performance, now powersave",
        "openvino, batch 1: threads 2, now 1",
        "openvino, batch 1: plan a, now b",
        "openvino, batch 1: highest CPU clock in MHz 3000, now 1500",
        "openvino, batch 1: the machine's own sgemm in GFLOP/s 100, now 50",
        "openvino, batch 1: the new measurement is unstable",
        "openvino, batch 1, new: the CPU was throttled",
    ]
    assert diff([old], [copy.deepcopy(old)])["notes"] == []
    table(found)


@pytest.mark.parametrize(
    "setting",
    [{"precision": "fp16"}, {"mode": "burst"}, {"streams": 2}, {"idle_ms": 500.0}, {"image_size": 64},
     {"include": ["decode"]}],
)  # fmt: skip
def test_different_things_are_not_compared(setting: dict[str, Any]) -> None:
    flag = "--" + next(iter(setting)).replace("_", "-")
    with pytest.raises(InputError, match=flag):
        diff([report(latencies(0))], [report(latencies(0), **setting)])


def test_reports_without_a_common_measurement_are_not_compared() -> None:
    with pytest.raises(InputError, match="in common"):
        diff([report(latencies(0))], [report(latencies(0), batch=4)])


def runs_of(seed: int, scale: float = 1.0, count: int = 4, offset: float = 0.03) -> list[dict[str, Any]]:
    """Runs of one engine on a machine that is faster or slower from run to run, by a standard deviation of `offset`."""
    drawn = np.random.default_rng(seed).normal(size=count) * offset
    return [report(latencies(100 * seed + k, scale * float(np.exp(by)), n=50)) for k, by in enumerate(drawn)]


def test_several_runs_tell_a_change_from_what_differs_between_runs() -> None:
    def verdicts(of: Callable[[int], list[dict[str, Any]]]) -> list[str]:
        rows = [diff(of(seed), of(1000 + seed))["rows"] for seed in range(60)]
        return [row["verdict"] for found in rows for row in found if row["figure"] == "p50"]

    alone = verdicts(lambda seed: runs_of(seed, count=1))
    assert alone.count("slower") + alone.count("faster") > 6  # of one run, a verdict that is none
    together = verdicts(runs_of)
    assert together.count("slower") + together.count("faster") <= 3
    [row] = [row for row in diff(runs_of(1), runs_of(2, 1.3))["rows"] if row["figure"] == "p50"]
    assert row["verdict"] == "slower"
    old, new = ([one["runtimes"][0]["results"][0]["latency_ms"]["p50"]["value"] for one in side]
                for side in (runs_of(1), runs_of(2, 1.3)))  # fmt: skip
    told = stats.ttest_ind(np.log(new), np.log(old)).confidence_interval(0.95)
    assert [row["ratio"]["low"], row["ratio"]["high"]] == pytest.approx(np.exp([told.low, told.high]), rel=1e-3)


@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 1), (2, 2), (2, 4)])
def test_too_few_runs_are_refused_and_not_averaged(old: int, new: int) -> None:
    with pytest.raises(InputError, match=f"one report on each side, or at least 3; got {old} and {new}"):
        diff(runs_of(0, count=old), runs_of(1, count=new))


def test_a_folder_is_its_reports(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no report; write some with .*--json"):
        read_reports(tmp_path)
    for name, batch in (("2", 2), ("1", 1)):
        (tmp_path / f"{name}.json").write_text(json.dumps(report(latencies(0), batch=batch)))
    assert [one["runtimes"][0]["results"][0]["batch"] for one in read_reports(tmp_path)] == [1, 2]
    assert read_reports(tmp_path / "1.json") == [report(latencies(0))]
    (tmp_path / "3.json").write_bytes((tmp_path / "1.json").read_bytes())
    with pytest.raises(InputError, match=r"3\.json is a copy of another report"):
        read_reports(tmp_path)


@pytest.mark.parametrize("document", [{"schema": "edgemed.bench/1"}, [], {"rows": []}])
def test_another_document_is_refused(tmp_path: Path, document: Any) -> None:
    file = tmp_path / "other.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match="not a report of this edgemed's bench"):
        read_report(file)
