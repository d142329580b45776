"""Ahead-of-time compilation: what the table is read from, when it fails, and both toolchains on one real target."""

from __future__ import annotations

import ctypes
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgemed.errors import GateError
from edgemed.kernels import compile as ahead
from edgemed.kernels import definition

KERNELS = Path(ahead.__file__).resolve().parent
LOG = """
ptxas info    : Compiling entry function 'edgemed_entropy_p8_rgb_renyi' for 'sm_87'
ptxas info    : Function properties for edgemed_entropy_p8_rgb_renyi
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 44 registers, used 1 barriers, 16 bytes cumulative stack size, 17408 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'other' for 'sm_120'
ptxas info    : Function properties for other
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
"""
nvcc = pytest.mark.skipif(ahead.nvcc_path() is None, reason="no nvcc: install the CUDA toolkit")


def test_a_ptxas_log_is_read() -> None:
    first, second = ahead.ptxas_resources(LOG)
    assert first == ahead.Resources("CUDA", "entropy_p8_rgb_renyi", 87, 44, 17408, 16, 20)
    assert second == ahead.Resources("CUDA", "other", 120, 10, 0, 0, 0)


def test_a_spill_fails_and_names_the_kernel() -> None:
    with pytest.raises(
        GateError, match=r"1 of 2 kernels.*entropy_p8_rgb_renyi on sm_87: 16 bytes of stack, 20 bytes of spills"
    ):
        ahead.check_resources(ahead.ptxas_resources(LOG))


def test_after_a_spill_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ahead, "nvcc_path", lambda: "nvcc")
    monkeypatch.setattr(ahead, "fatbin_from_source", lambda *_: (b"code", ahead.ptxas_resources(LOG)))
    monkeypatch.setattr(ahead, "triton_resources", lambda _: [])
    with pytest.raises(GateError):
        ahead.compile_kernels(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compiler", [True, False])
def test_only_what_the_driver_loads_is_written_and_the_table(
    compiler: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitting = ahead.ptxas_resources(LOG)[1]
    triton = replace(fitting, toolchain="Triton")
    monkeypatch.setattr(ahead, "nvcc_path", lambda: "nvcc" if compiler else None)
    monkeypatch.setattr(ahead, "fatbin_from_source", lambda *_: (b"code", [fitting]))
    monkeypatch.setattr(ahead, "triton_resources", lambda _: [triton])
    ahead.compile_kernels(tmp_path)
    files = {path.name for path in tmp_path.rglob("*")}
    assert files == {"resources.json"} | ({ahead.FATBIN} if compiler else set())
    rows = json.loads((tmp_path / "resources.json").read_text())
    assert [row["toolchain"] for row in rows] == ["CUDA"] * compiler + ["Triton"]
    said = capsys.readouterr().out
    assert "| Triton other | 10 |" in said and (f"{ahead.FATBIN} (0 KiB), resources.json in " in said) == compiler


def test_without_toolchains_it_says_what_was_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(_: object) -> None:
        raise ModuleNotFoundError("no", name="triton")

    monkeypatch.setattr(ahead, "nvcc_path", lambda: None)
    monkeypatch.setattr(ahead, "triton_resources", absent)
    ahead.compile_kernels(tmp_path)
    said = capsys.readouterr().out
    assert "skipped: CUDA C++ (no nvcc" in said
    assert "skipped: Triton (triton is not installed)" in said


def test_the_readme_has_a_row_without_spills_for_every_kernel() -> None:
    """`kernels/README.md`: as many rows as kernels, a column for each target, no stack, no spills."""
    rows = [
        line
        for line in (KERNELS / "README.md").read_text().splitlines()
        if re.match(r"\| (CUDA|Triton) entropy_", line)
    ]
    assert len(rows) == 12 + 1 + 12 + 2
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 1 + len(ahead.TARGETS) + 3
        assert cells[-2:] == ["0", "0"], row


@nvcc
def test_the_real_kernels_compile_for_a_jetson_without_spills(tmp_path: Path) -> None:
    code, rows = ahead.fatbin_from_source(str(ahead.nvcc_path()), [87])
    assert len(code) > 10_000
    colours = [f"{colour}_{kind}" for colour in ("grey", "rgb") for kind in ("shannon", "renyi")]
    names = {f"entropy_p{patch}_{rest}" for patch in definition.PATCHES for rest in colours}
    assert {row.kernel for row in rows} == names | {"entropy_mask_kernel"}, "the names that driver.py looks up"
    ahead.check_resources(rows)


def test_the_triton_kernels_compile_for_a_jetson_without_spills() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    rows = ahead.triton_resources([87])
    assert len({row.kernel for row in rows}) == len(rows) == 14
    assert all(row.registers > 0 for row in rows)
    ahead.check_resources(rows)
    json.dumps([row.registers for row in rows])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The C interface, built by CMakeLists.txt for one target."""
    if ahead.nvcc_path() is None or shutil.which("cmake") is None:
        pytest.skip("no nvcc or no cmake")
    build = tmp_path_factory.mktemp("cmake")
    compiler = f"-DCMAKE_CUDA_COMPILER={ahead.nvcc_path()}"
    for command in (
        ["cmake", "-S", str(KERNELS), "-B", str(build), "-DCMAKE_CUDA_ARCHITECTURES=87", compiler],
        ["cmake", "--build", str(build)],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return ctypes.CDLL(str(next(build.glob("libedgemed_kernels.*"))))


@pytest.mark.parametrize(("patch", "order"), [(8, 1.0), (16, 1.0), (32, 1.0), (16, 2.0), (32, 0.5)])
def test_c_makes_the_table_of_terms_that_numpy_makes(library: ctypes.CDLL, patch: int, order: float) -> None:
    wanted = definition.terms(patch * patch, order)
    buffer = np.zeros(8200, dtype=np.uint8)
    assert library.edgemed_entropy_terms(patch, ctypes.c_double(order), buffer.ctypes.data_as(ctypes.c_void_p)) == 0
    made = buffer.view(wanted.dtype)[: len(wanted)]
    assert np.array_equal(made, wanted) if order == 1 else np.allclose(made, wanted, rtol=1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 7}, "patch must be 8, 16 or 32"),
        ({"bins": 100}, "power of two"),
        ({"order": math.nan}, "order must be"),
        ({"order": 1.001}, "order must be"),
        ({"width": 40}, "multiples of the patch"),
        ({"channels": 4}, "channels 1 or 3"),
        ({"count": 2**31}, "fewer than 2"),
        ({"images": 4}, "8-byte aligned"),
    ],
)
def test_c_refuses_wrong_arguments_before_it_starts_a_kernel(
    library: ctypes.CDLL, change: dict[str, float], message: str
) -> None:
    call = {
        "images": 0,
        "count": 1,
        "height": 64,
        "width": 64,
        "channels": 3,
        "patch": 32,
        "bins": 256,
        "order": 1.0,
    } | change
    images, count, order = (
        ctypes.c_void_p(int(call["images"])),
        ctypes.c_int64(int(call["count"])),
        ctypes.c_double(call["order"]),
    )
    whole = [int(call[name]) for name in ("height", "width", "channels", "patch", "bins")]
    library.edgemed_kernels_message.restype = ctypes.c_char_p
    status = library.edgemed_patch_entropy(images, count, *whole, order, None, None, None)
    assert status < 0
    assert message in library.edgemed_kernels_message(status).decode()
