"""The wheel, without extras and far from the clone, is all that a device needs; the build brings what it must."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_the_wheel_alone_answers_and_with_rtx_builds_a_plan(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from base_install import base_install

    try:
        found = base_install(tiny_bundle, tmp_path)
    finally:
        sys.modules.pop("base_install", None)
    assert found["base"]["predicted"] >= 2
    assert set(found["base"]["self_tests"]) == {"openvino fp32", "openvino fp16"}
    assert "pip install 'edgemed[rtx]'" in found["base"]["build_engine_says"]
    assert found["base"]["megabytes"] < 400  # stated in benchmarks/results/base-install.json
    assert not found["torch_installed"]
    assert found["with_rtx"]["plan"]["targets"] == ["sm86", "sm89"]
