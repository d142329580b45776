"""What `edgemed bench` shows: unit, interval, samples and conditions with every figure, and what makes it doubtful."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_bundles as tiny
from rich.console import Console

from edgemed import bench as bench_module
from edgemed.bench import Settings, bench, results
from edgemed.bench_diff import DIFF_SCHEMA
from edgemed.bench_report import doubts, markdown, svg, table
from edgemed.bundle import Bundle
from edgemed.errors import InputError
from edgemed.timing import Stability

START = {
    "process": 100.0, "verify": 1.0, "runtime": 200.0, "engine": 40.0, "first_answer": 2.0, "total": 343.0,
    "from_cache": False, "peak_host_bytes": 120_000_000, "device_bytes": "not measured",
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.bundle(tmp_path_factory.mktemp("report") / "bundle")


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that is not the user's, and no start of processes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bench_module, "start_up", lambda *_, **__: {"cold": START, "warm": "not measured: it failed"})
    limits = {"sgemm_gflops": 100.0, "copy_gb_per_s": 10.0, "threads": 1, "sgemm_threads": 1, "blas": "openblas Zen"}
    monkeypatch.setattr(bench_module, "cpu_limits", lambda threads: limits)


@pytest.fixture
def report(bundle: Bundle) -> dict[str, Any]:
    return bench(bundle, Settings(iterations=40, warmup=0, duration=0.1, batches=(1, 3)))


def shown(renderable: Any) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_table_states_unit_samples_place_and_interval(report: dict[str, Any]) -> None:
    text = shown(table(report))
    [_, second] = [result for _, result in results(report)]
    p50 = second["latency_ms"]["p50"]
    assert f"{p50['value']:.2f} [{p50['low']:.2f}, {p50['high']:.2f}]" in text
    for part in (
        "p50 (ms)", "p99 (ms)", "images/s", "openvino, batch 3", "48 x 48 px", "2 golden images", "resize in the graph",
        "sgemm 100 GFLOP/s", "share of the machine's limit", report["machine"]["cpu"], "CPUs used by other processes",
    ):  # fmt: skip
        assert part in text, part
    assert "343 ms to the first answer (process 100, verify 1, runtime 200, engine 40, first answer 2)" in text
    assert "compiled; peak memory host 120 MB, device not measured" in text
    assert "warm start: not measured: it failed" in text
    assert "needs 1000 samples, has 40" in text
    assert "h2d" not in text  # a CPU has no upload


def test_a_gpu_and_a_cpu_stand_side_by_side(report: dict[str, Any]) -> None:
    for number in (0, 1):  # whichever comes first
        both = copy.deepcopy(report)
        [_, result] = list(results(both))[number]
        result["stages_ms"] |= {"h2d": 0.125, "compute": 0.5, "launch": 0.25, "d2h": 0.0625}
        text = shown(table(both))
        assert "0.500 without CUDA graph" in text and "0.250 without CUDA graph" in text
        assert text.count("CUDA graph") == 2
        assert "0.500 without CUDA graph" in markdown(both)


def test_few_samples_have_no_bounds_and_the_report_still_stands(bundle: Bundle) -> None:
    found = bench(bundle, Settings(iterations=1, warmup=0, duration=0.1))
    [(_, result)] = results(json.loads(json.dumps(found, allow_nan=False)))
    assert result["latency_ms"]["p50"]["low"] is None and result["throughput_images_per_s"]["low"] is None
    assert f"{result['latency_ms']['p50']['value']:.2f} no interval" in shown(table(found))
    assert svg(found).count("<rect") >= 2


def test_what_was_not_measured_says_so(report: dict[str, Any]) -> None:
    for _, result in results(report):
        result |= {"limit": "not measured", "power": "not measured", "peak_host_bytes": "not measured"}
        result["conditions"]["other_processes_cpus"] = "not measured"
    rows = [line for line in markdown(report).splitlines() if "not measured" in line and line.startswith("|")]
    assert len(rows) == 4


def test_doubts_are_said_aloud(report: dict[str, Any]) -> None:
    for number, (_, result) in enumerate(results(report)):
        result["warnings"] = ["the CPU's clock fell from 3000 to 1000 MHz"] * number
        result["stability"] = {"settled": not number, "windows": [1.0, 2.0, 1.0, 1.0, 1.0], "spread": 1.0}
    found = doubts(report)
    assert len(found) == 2
    assert found[0].startswith("unstable: openvino, batch 3: the medians of its windows differ by up to 100%")
    assert "3000 to 1000 MHz" in found[1]
    assert all(line in shown(table(report)) and line in markdown(report) for line in found)


def test_a_limit_that_the_engine_is_faster_than_is_doubted(report: dict[str, Any]) -> None:
    [(_, result), *_] = results(report)
    result["limit"]["share"] = 1.0
    assert not [line for line in doubts(report) if "limit" in line]
    result["limit"]["share"] = 1.2
    [line] = [line for line in doubts(report) if "limit" in line]
    assert "openvino, batch 1: faster than this machine's limit" in line and "(openblas Zen)" in line


def test_markdown_is_a_table_with_a_column_per_measurement(report: dict[str, Any]) -> None:
    rows = [line for line in markdown(report).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {4}
    assert rows[0] == "|  | openvino, batch 1 | openvino, batch 3 |"


def test_the_picture_holds_every_sample(report: dict[str, Any]) -> None:
    slow = copy.deepcopy(report)
    [result, _] = [result for _, result in results(slow)]
    result["times_ms"] = [10.0] * 39 + [500.0]
    root = ElementTree.fromstring(svg(slow))
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"10.00 ms", "500.00 ms", "openvino, batch 1: 40 samples"} <= set(texts)
    assert {text.split()[0] for text in texts} >= {"p50", "p90", "p95"}
    [first, _] = root.findall("{http://www.w3.org/2000/svg}g")
    few, many = sorted(float(bar.get("height", 0)) for bar in first.findall("{http://www.w3.org/2000/svg}rect"))
    assert many / few == pytest.approx(39, rel=0.1)  # two bars: 39 samples in the first bin, one in the last


def test_power_is_shown_with_its_source(report: dict[str, Any]) -> None:
    for _, result in results(report):
        result["power"] = {"sources": [{"name": "rail VDD_IN", "watts": 12.34, "joules_per_image": 0.25}]}
    assert "rail VDD_IN: 12.3 W, 0.250 J per image" in markdown(report)


def test_the_command_writes_what_it_is_told_to(
    edgemed: Callable[..., int], bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["bench", bundle.path, "--warmup", "0", "--duration", "0.2"]
    files = {name: tmp_path / name for name in ("a.json", "times.json", "a.md", "a.svg")}
    assert edgemed(*flags, "--json", files["a.json"], "--markdown", files["a.md"], "--plot", files["a.svg"]) == 0
    assert "p50 (ms)" in capsys.readouterr().out
    assert "p50 (ms)" in files["a.md"].read_text()
    assert files["a.svg"].read_text().startswith("<svg")
    [(_, result)] = results(json.loads(files["a.json"].read_text()))
    assert "times_ms" not in result
    assert edgemed(*flags, "--json", files["times.json"], "--export-times") == 0
    [(_, result)] = results(json.loads(files["times.json"].read_text()))
    assert len(result["times_ms"]) == result["samples"]
    capsys.readouterr()
    assert edgemed(*flags, "--json", "-", "--batches", "1,2") == 0
    assert len(list(results(json.loads(capsys.readouterr().out)))) == 2  # standard output is one document
    assert edgemed("bench", "--diff", files["a.json"], files["times.json"], "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)  # and nothing else is printed
    assert found["schema"] == DIFF_SCHEMA
    assert found["rows"] or any("too few samples" in line for line in found["notes"])  # of 0.2 s on a busy machine


@pytest.mark.parametrize("flag", ["--markdown", "--plot", "--json", "--compare"])
def test_what_was_measured_is_shown_and_kept_whatever_fails_then(
    flag: str, edgemed: Callable[..., int], bundle: Bundle, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def failing(*_: object) -> None:
        raise InputError("nothing to compare with")

    monkeypatch.setattr("edgemed.commands.bench._comparison", failing)
    folder = tmp_path / "there is a folder.svg"
    folder.mkdir()
    files = {"json": tmp_path / "a.json", "markdown": tmp_path / "a.md", "plot": tmp_path / "a.svg"}
    flags = [part for name, file in files.items() for part in (f"--{name}", file)]
    flags += [flag, "none" if flag == "--compare" else folder]
    assert edgemed("bench", bundle.path, "--warmup", "0", "--duration", "0.1", *flags) == 2
    assert "p50 (ms)" in capsys.readouterr().out
    assert {name for name, file in files.items() if not file.exists()} == {flag.lstrip("-")} - {"compare"}


def test_strict_ends_with_4_where_a_measurement_did_not_settle(
    edgemed: Callable[..., int], bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["bench", bundle.path, "--warmup", "0", "--duration", "0.1"]
    monkeypatch.setattr("edgemed.bench.stability", lambda _: Stability(False, [1.0, 2.0], 0.5))
    assert edgemed(*flags) == 0  # marked only
    assert "unstable: openvino, batch 1" in capsys.readouterr().out
    assert edgemed(*flags, "--strict") == 4
    captured = capsys.readouterr()
    assert "unstable: openvino, batch 1" in captured.out  # the figures are there all the same
    assert "did not settle" in captured.err
    monkeypatch.setattr("edgemed.bench.stability", lambda _: Stability(True, [1.0, 1.0], 0.0))
    assert edgemed(*flags, "--strict") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a bundle"),
        (["BUNDLE", "--batches", "1,x"], "--batches"),
        (["BUNDLE", "--export-times"], "--json FILE"),
        (["BUNDLE", "--plot", "a.png"], ".svg"),
        (["BUNDLE", "--diff", "a", "b"], "--diff"),
        (["--diff", "missing.json", "missing.json"], "missing"),
        (["--diff", "a.json", "b.json", "--strict"], "measures nothing; leave out --strict"),
        (["--diff", "a.json", "b.json", "--runtime", "openvino", "--batches", "1"], "leave out --batches, --runtime"),
    ],
)
def test_wrong_usage_is_refused_with_2(
    edgemed: Callable[..., int], bundle: Bundle, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgemed("bench", *(str(bundle.path) if part == "BUNDLE" else part for part in arguments)) == 2
    assert message in capsys.readouterr().err
