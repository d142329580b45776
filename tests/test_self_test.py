"""`inspect --self-test` fails by wrong answers and by what does not run, and not by what is of another machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import test_damaged as damaged
import tiny_bundles as tiny

from edgemed.errors import InputError
from edgemed.preflight import Here
from edgemed.runtimes.tensorrt import Flavour

Edgemed = Callable[..., int]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_self_test_fails_by_wrong_answers_by_a_graph_that_does_not_run_and_where_nothing_ran(
    tmp_path: Path, edgemed: Edgemed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tiny.bundle(tmp_path / "good").path
    monkeypatch.setattr(Flavour, "availability", lambda self: None)  # so that TensorRT is asked, and has no plan
    monkeypatch.setattr(Flavour, "here", lambda self: Here(self.name, "1.7.1", "sm86"))
    assert edgemed("inspect", good, "--self-test", "--json") == 0
    tests = json.loads(capsys.readouterr().out)["self_tests"]
    assert {test["runtime"] for test in tests if test["not_run"]} == {"tensorrt", "tensorrt-rtx"}
    assert {test["state"] for test in tests if not test["not_run"]} == {"self-tested"}
    for name, other in {"wrong": tiny.evidence_files(tiny.WEIGHTS[::-1]), "broken": {"model.fp16.onnx": b"x"}}.items():
        files = tiny.fields()["files"] | other
        assert edgemed("inspect", tiny.bundle(tmp_path / name, files=files).path, "--self-test") == 3
    monkeypatch.setattr("edgemed.runtimes.openvino.availability", lambda: "not here")
    monkeypatch.setattr("edgemed.runtimes.onnxruntime.availability", lambda: "not here")
    assert edgemed("inspect", good, "--self-test") == 3


@pytest.mark.parametrize(("target", "says"), [("sm86", "TensorRT refuses it"), ("sm120", "built for sm120")])
def test_a_self_test_fails_by_a_plan_of_this_machine_that_does_not_run_and_not_by_another_machines(
    target: str, says: str, tmp_path: Path, edgemed: Edgemed, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refused(*_: object, **__: object) -> None:
        raise InputError("TensorRT refuses it")

    monkeypatch.setattr(Flavour, "availability", lambda self: None)
    monkeypatch.setattr(Flavour, "here", lambda self: damaged.HERE)
    monkeypatch.setattr(Flavour, "open_plan", refused)
    path = tiny.bundle(tmp_path / "bundle").path
    damaged.with_plan(damaged.RTX, targets=(target,))(path)
    assert edgemed("inspect", path, "--self-test", "--json") == (3 if target == "sm86" else 0)
    tests = json.loads(capsys.readouterr().out)["self_tests"]
    [found] = [test for test in tests if (test["runtime"], test["precision"]) == ("tensorrt-rtx", "fp32")]
    assert says in found["failure" if target == "sm86" else "not_run"]
