"""The machine's own limits, and what an engine makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from edgemed import limits
from edgemed.limits import blas_threads, cpu_limits, share_of_limit


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller than the real ones, which take a second."""
    monkeypatch.setattr(limits, "SIDE", 256)
    monkeypatch.setattr(limits, "COPY_BYTES", 8 << 20)


def test_a_rate_is_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_best_seconds", lambda call: (call(), 0.5)[1])
    found = cpu_limits(2)
    assert found["sgemm_gflops"] == pytest.approx(2 * 256**3 / 0.5 / 1e9)
    assert found["copy_gb_per_s"] == pytest.approx(2 * (8 << 20) / 0.5 / 1e9)  # read and written


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_copied_is_every_byte_once(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[tuple[int, int]] = []  # address and length of each part
    monkeypatch.setattr(limits, "_best_seconds", lambda call: (call(), 0.5)[1])
    monkeypatch.setattr(limits.np, "copyto", lambda target, source: copied.append((target.ctypes.data, source.nbytes)))
    cpu_limits(threads)
    begins = np.array(sorted(copied))
    assert len(copied) == threads and begins[:, 1].sum() == 8 << 20
    assert (np.diff(begins[:, 0]) == begins[:-1, 1]).all()


def test_the_best_repeat_is_the_limit() -> None:
    found = cpu_limits(1)
    assert 0.1 < found["sgemm_gflops"] < 1e5
    assert 0.1 < found["copy_gb_per_s"] < 1e4


def _blas() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_the_product_uses_the_threads_of_the_request_and_gives_them_back() -> None:
    with threadpool_limits(2, user_api="blas"):
        with blas_threads(1) as told:
            assert told and _blas() == {1}
        assert _blas() == {2}
    found = cpu_limits(1)
    assert found["sgemm_threads"] == 1
    assert found["blas"] == ", ".join(
        f"{one['internal_api']} {one['architecture']}" for one in threadpool_info() if one["user_api"] == "blas"
    )


def test_a_blas_that_cannot_be_told_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "threadpool_info", list)
    assert cpu_limits(1)["sgemm_threads"] is None


MACHINE = {"sgemm_gflops": 100.0, "copy_gb_per_s": 10.0}


def test_the_share_is_the_least_time_over_the_measured_one() -> None:
    found = share_of_limit(MACHINE, flops=10**9, weight_bytes=10**6, pixel_bytes=1000, batch=2, images_per_s=50.0)
    assert found["least_ms_by_flops"] == pytest.approx(20.0)
    assert found["bound"] == "flops"
    assert found["share"] == pytest.approx(0.5)  # 40 ms a request
    assert found["gflops"] == pytest.approx(50.0)


def test_a_network_with_many_weights_and_little_work_is_bound_by_bytes() -> None:
    found = share_of_limit(MACHINE, flops=10**6, weight_bytes=10**8, pixel_bytes=10**7, batch=10, images_per_s=100.0)
    assert found["least_ms_by_bytes"] == pytest.approx(20.0)  # weights once a request, pixels once an image
    assert (found["bound"], found["share"]) == ("bytes", pytest.approx(0.2))
