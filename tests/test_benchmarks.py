"""The figures that benchmarks/ shows are those that were measured, and say where, when and with what."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def test_a_kept_result_says_by_which_command_when_where_and_with_what_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import common

    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(
        sys.modules["__main__"], "__doc__", "What.\n\n    python benchmarks/what.py DATA  # minutes\n", raising=False
    )
    common.keep("what", {"figure": 3})
    kept = json.loads((tmp_path / "results" / "what.json").read_text())
    assert kept == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert kept["figure"] == 3 and kept["benchmark"] == "what"
    assert kept["command"] == "python benchmarks/what.py DATA"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=FOLDER, capture_output=True, text=True)
    assert head.returncode or head.stdout[:12] == kept["commit"].rstrip("+")
    assert kept["machine"]["cpu"] and kept["machine"]["cores"] and kept["versions"]["numpy"] and kept["date"]


def test_every_script_has_its_command_and_every_result_its_figure() -> None:
    import readme

    rows = readme.rows()
    shown = "\n".join(" | ".join(row) for row in rows)
    for path in sorted((FOLDER / "results").glob("*.json")):
        assert f"(results/{path.name})" in shown, f"no script of benchmarks/ makes {path.name}"
        assert path.stem in readme.FIGURES, path.stem
    for script in FOLDER.glob("*.py"):
        tree = ast.parse(script.read_text(encoding="utf-8"))
        runs = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if runs and script.name != "readme.py":
            assert any(script.name in row[1] or row[1] == f"make {script.stem}" for row in rows), script.name
    page = readme.page(rows)
    assert all(page.count(f"\n## {row[0]}\n") == 1 for row in rows) and all(row[3] in page for row in rows)


def test_the_page_shows_the_value_the_interval_and_what_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import readme

    document = {
        "date": "2026-01-02",
        "machine": {"cpu": "A CPU", "cores": 4, "gpu": "not measured"},
        "warnings": ["other processes used 1.5 of 4 CPUs during the measurement"],
        "images_per_s": {"dali": 900.4, "torch": 720.0},
        "dali_times_torch": {"value": 1.251, "low": 1.2, "high": 1.3},
    }
    (tmp_path / "loading.json").write_text(json.dumps(document))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    (row,) = [row for row in readme.rows() if "loading.py" in row[1]]
    assert row[2].startswith("dali 900 images/s, torch 720 images/s: 1.25 [1.20, 1.30] times")
    assert row[4:] == [
        "2026-01-02",
        "A CPU, 4 cores, note: other processes used 1.5 of 4 CPUs during the measurement",
    ]
    (other,) = [row for row in readme.rows() if "peers.py" in row[1]]
    assert other[2] == "not measured"


def test_a_bar_is_judged_by_the_better_eager_network_and_the_bound_that_is_against_us() -> None:
    pytest.importorskip("torch", reason="extra train is not installed")
    import peers

    def times(value: float) -> dict[str, dict[str, float]]:
        return {"times_bundle": {"value": value, "low": value - 0.1, "high": value + 0.1}}

    timed = {name: times(2.0) for name in ("PyTorch eager", "torch.compile", "OpenVINO by hand")}
    timed["PyTorch eager, channels_last"] = times(1.25)  # the better one; its lower bound is below 1.2
    found = peers.verdicts(timed)
    assert found["PyTorch eager, the better"]["share"]["value"] == pytest.approx(1 / 1.25)
    assert not found["PyTorch eager, the better"]["met"]
    assert found["torch.compile"]["met"] and found["OpenVINO by hand"]["met"]
    assert found["ONNX Runtime by hand"] == {"bar": 1.05, "met": False, "share": "not measured"}
    timed["PyTorch eager, channels_last"] = times(1.35)
    timed["OpenVINO by hand"] = times(0.96)
    found = peers.verdicts(timed)
    assert found["PyTorch eager, the better"]["met"] and not found["OpenVINO by hand"]["met"]


def test_images_that_are_joined_across_given_groups_are_counted_once_and_not_by_pairs() -> None:
    pytest.importorskip("cv2", reason="extra train is not installed")
    import near_duplicates

    groups = ["a", "a", "b", "c", *(f"{k}" for k in range(96))]
    found = near_duplicates.across_groups(groups, [(0, 1), (0, 2), (1, 2), (4, 5)])  # the first is within a group
    assert found["pairs_across_given_groups"] == 3
    assert (found["images_across_given_groups"], found["share_across_given_groups"]) == (5, 0.05)
