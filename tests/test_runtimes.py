"""Each runtime computes what the graph says, and the cache never changes an answer."""

from __future__ import annotations

import builtins
import importlib.util
import logging
import os
import re
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_bundles as tiny

from edgemed import allowance, runtimes
from edgemed.errors import InputError
from edgemed.manifest import sha256_of
from edgemed.runtimes import Session, onnxruntime, openvino

NAMES = ("openvino", "onnxruntime")
MODEL = tiny.model()
KEY = sha256_of(MODEL)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(name: str, model: bytes = MODEL, threads: int | None = 1) -> Session:
    module = runtimes.runtime_module(name)
    assert not isinstance(module, str)
    if name == "onnxruntime" and importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed (extra train)")
    return module.open_session(model, threads=threads, cache_key=sha256_of(model))


def assert_right(session: Session, images: np.ndarray, weights: np.ndarray = tiny.WEIGHTS) -> None:
    found = session.run(images)
    probabilities, members = tiny.expected(images, weights)
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=2e-6)
    np.testing.assert_allclose(found["member_probabilities"], members, atol=2e-6)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_a_session_answers_like_numpy_at_every_batch_and_image_size(name: str) -> None:
    session = opened(name)
    for batch, height, width in ((1, 40, 56), (3, 40, 56), (1, 17, 301), (2, 128, 16), (1, 40, 56)):
        assert_right(session, np.stack([tiny.image(seed, height, width) for seed in range(batch)]))


@pytest.mark.parametrize("name", NAMES)
def test_answers_stay_when_the_next_request_runs(name: str) -> None:
    session = opened(name)
    first = session.run(tiny.image(1)[None])
    kept = {key: value.copy() for key, value in first.items()}
    session.run(tiny.image(2)[None])
    for key, value in first.items():
        np.testing.assert_array_equal(value, kept[key])


@pytest.mark.parametrize("name", NAMES)
def test_pixels_in_any_memory_order_give_the_same_answer(name: str) -> None:
    session = opened(name)
    image = tiny.image(3)
    read_only = image[None].copy()
    read_only.flags.writeable = False
    assert_right(session, read_only)
    assert_right(session, image[None, ::-1, ::2])
    assert_right(session, np.asfortranarray(image)[None])


@pytest.mark.parametrize("name", NAMES)
def test_several_threads_may_use_one_session(name: str) -> None:
    session = opened(name)
    images = [np.stack([tiny.image(10 * k + n) for n in range(k % 3 + 1)]) for k in range(6)]
    together = threading.Barrier(len(images))

    def work(batch: np.ndarray) -> None:
        together.wait(timeout=60)
        for _ in range(20):
            assert_right(session, batch)

    with ThreadPoolExecutor(len(images)) as pool:
        list(pool.map(work, images))


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_that_the_runtime_refuses_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match="refuses the graph") as raised:
        opened(name, b"\x08\x0a this is no graph")
    assert "\n" not in str(raised.value)


def test_openvino_computes_in_float32_on_one_stream_with_the_threads_asked_for() -> None:
    session = opened("openvino", threads=2)
    compiled = session.prepare(1)  # type: ignore[attr-defined]
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert compiled.get_property("NUM_STREAMS") == 1
    assert session.threads == 2


def test_openvino_compiles_once_per_batch_size_and_not_per_image_size() -> None:
    session = opened("openvino")
    for side in (20, 30, 40):
        session.run(tiny.image(0, side, side)[None])
    session.run(np.stack([tiny.image(0)] * 4))
    assert sorted(session._compiled) == [1, 4]  # type: ignore[attr-defined]
    assert session.prepare(4).input("image").partial_shape.to_string() == "[4,?,?,3]"  # type: ignore[attr-defined]


def test_the_second_session_comes_from_the_cache_and_answers_alike(cache: Path) -> None:
    first = opened("openvino")
    assert first.from_cache is False
    folders = [folder for folder in cache.rglob("*") if folder.is_dir()]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
    assert len(list(cache.glob("edgemed/openvino/*/*.blob"))) == 1
    second = opened("openvino")
    assert second.from_cache is True
    images = tiny.image(5)[None]
    for name, value in first.run(images).items():
        np.testing.assert_array_equal(second.run(images)[name], value)


def test_another_graph_never_comes_from_the_cache() -> None:
    opened("openvino")
    other = tiny.WEIGHTS[::-1].copy()
    session = opened("openvino", tiny.model(other))
    assert session.from_cache is False
    assert_right(session, tiny.image(6)[None], other)


@pytest.mark.parametrize("damage", ["weights", "cut", "empty", "unrecorded", "note"])
def test_a_damaged_cache_is_compiled_anew(cache: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    opened("openvino")
    (blob,) = cache.glob("edgemed/openvino/*/*.blob")
    blob.chmod(0o600)
    good = blob.read_bytes()
    at = good.index(tiny.WEIGHTS[0, 0].tobytes()[:4])  # a weight: OpenVINO itself would not notice
    bad = {"weights": good[:at] + b"\0\0\0\x7f" + good[at + 4 :], "cut": good[: len(good) // 2], "empty": b""}
    if damage == "unrecorded":
        blob.with_suffix(".sha256").unlink()
    elif damage == "note":
        blob.with_suffix(".sha256").write_bytes(b"\xff" * 64)
    else:
        blob.write_bytes(bad[damage])
    with caplog.at_level(logging.WARNING):
        session = opened("openvino")
    assert session.from_cache is False
    assert "was damaged" in caplog.text
    assert_right(session, tiny.image(7)[None])
    assert opened("openvino").from_cache is True


def test_a_kept_form_that_openvino_refuses_is_compiled_and_kept_anew(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened("openvino")
    (blob,) = cache.glob("edgemed/openvino/*/*.blob")
    good = blob.read_bytes()
    openvino.keep(blob, good[: len(good) // 2])  # whole, by its note
    with caplog.at_level(logging.WARNING):
        session = opened("openvino")
    assert session.from_cache is False and "is refused" in caplog.text
    assert_right(session, tiny.image(7)[None])
    assert len(blob.read_bytes()) > len(good) // 2
    assert opened("openvino").from_cache is True


def test_of_two_that_start_at_once_the_second_waits_for_what_the_first_compiles(cache: Path) -> None:
    opened("openvino")
    (blob,) = cache.glob("edgemed/openvino/*/*.blob")
    compiled, inode = blob.read_bytes(), (blob.parent / "lock").stat().st_ino
    blob.unlink()
    with ThreadPoolExecutor() as pool:
        with runtimes.held(blob.parent):
            second = pool.submit(opened, "openvino")
            waits = re.compile(rf"-> FLOCK.*:{inode} ").search
            for _ in range(6000):
                if second.done() or waits(Path("/proc/locks").read_text()):
                    break
                time.sleep(0.01)
            assert not second.done()
            openvino.keep(blob, compiled)
        assert second.result().from_cache is True


def test_without_a_writable_cache_it_works_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        session = opened("openvino")
    assert "cache is not used" in caplog.text
    assert session.from_cache is False
    assert_right(session, tiny.image(8)[None])


def test_a_cache_folder_that_others_may_read_is_closed_and_a_foreign_one_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "edgemed").mkdir(parents=True)
    (cache / "edgemed").chmod(0o777)
    runtimes.cache_folder("openvino", "key")
    assert stat.S_IMODE((cache / "edgemed").stat().st_mode) == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        runtimes.cache_folder("openvino", "key")


def test_cache_folders_differ_by_every_part_of_the_key(cache: Path) -> None:
    keys = [("a", "b"), ("a", "c"), ("ab",), ("a",)]
    assert len({runtimes.cache_folder("openvino", *key) for key in keys}) == 4


def test_a_runtime_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in NAMES else real(name))
    assert "pip install openvino" in str(openvino.availability())
    assert "pip install onnxruntime" in str(onnxruntime.availability())


def test_a_runtime_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *rest: object, **options: object) -> object:
        if name in NAMES:
            raise ImportError("libfoo.so.1: cannot open shared object file")
        return real(name, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", broken)
    assert "libfoo" in str(openvino.availability())
    assert "libfoo" in str(onnxruntime.availability())


def test_cores_are_those_of_the_affinity_and_within_a_container_quota(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert allowance.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    for text, cpus in (("150000 100000", 1), ("400000 100000", 4)):
        (tmp_path / "cpu.max").write_text(text)
        assert allowance._quota(tmp_path / "cpu.max") == cpus
    for text in ("max 100000", ""):
        (tmp_path / "cpu.max").write_text(text)
        assert allowance._quota(tmp_path / "cpu.max") > 4096
