"""A start is measured from the process on, cold and warm, and its parts are the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_bundles as tiny

from edgemed.startup import start_up

PARTS = ("process", "verify", "runtime", "engine", "first_answer")


def test_a_start_is_the_sum_of_its_parts_and_the_second_one_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = tmp_path / "users"
    monkeypatch.setenv("XDG_CACHE_HOME", str(users))
    files = {**tiny.fields()["files"], "model_card.md": bytes(64 << 20)}  # so that hashing is seen
    bundle = tiny.bundle(tmp_path / "bundle", files=files)
    found = start_up(bundle.path, runtime="openvino", precision="fp32", threads=1, side=48)
    assert [found[kind]["from_cache"] for kind in ("cold", "warm")] == [False, True]
    for start in found.values():
        assert all(start[name] > 0 for name in PARTS)
        assert sum(start[name] for name in PARTS) == pytest.approx(start["total"], rel=0.02)
        assert start["peak_host_bytes"] > 20e6
        assert start["device_bytes"] == "not measured"
    assert not users.exists()  # the user's own cache is as it was


def test_files_of_the_users_folder_are_not_taken_for_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.bundle(tmp_path / "bundle")
    (tmp_path / "numpy.py").write_text("raise SystemExit('this is no numpy')")
    monkeypatch.chdir(tmp_path)
    found = start_up(Path("bundle"), runtime="onnxruntime", precision="fp32", threads=1, side=48)
    assert found["cold"]["from_cache"] is None  # ONNX Runtime has no cache
    assert found["cold"]["total"] > 0


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle")
    (bundle.path / "model.fp32.onnx").write_bytes(b"other")
    found = start_up(bundle.path, runtime="openvino", precision="fp32", threads=1, side=48)
    for start in found.values():
        assert start.startswith("not measured: ")
        assert "model.fp32.onnx" in start
