"""The CUDA C++ kernels without a GPU: through a stand-in for the driver, and under the thread sanitizer."""

from __future__ import annotations

import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_cases import CASES, TOLERANCES, expected, tied_draw, varied_images

from edgemed.errors import EdgemedError
from edgemed.kernels import driver, entropy_mask, patch_entropy

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
IMAGES = varied_images()
IDS = np.array([0, -1, 2**40 + 3, 5, 2**62], dtype=np.int64)
BITS = (8 * np.random.default_rng(3).random((5, 13, 17))).astype(np.float32)  # 221 units: more than threads in a block
MASKS = [(0.6, 1.0, 0), (0.75, 0.0, 2**64 - 1), (0.5, -1e7, 2**33 + 5), (0.0, 1.0, 1), (1.0, 1e7, 1)]
BARRIERS = [
    f"{file}:{number}"
    for file in ("patch_entropy.cuh", "entropy_mask.cuh")
    for number, line in enumerate((KERNELS / file).read_text().splitlines(), start=1)
    if "__syncthreads();" in line
]


def compiled(out: Path, *flags: str) -> Path:
    """stand_in_driver.cpp, compiled; skips without a C++20 compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++ or clang++)")
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    includes = [f"-I{KERNELS}", f"-I{HERE}"]
    command = [compiler, "-std=c++20", "-O1", "-g", "-fno-strict-aliasing", "-pthread", *warnings, *includes, *flags]
    subprocess.run([*command, "-o", str(out), str(HERE / "stand_in_driver.cpp"), "-ldl"], check=True)
    return out


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Every call of this file, answered by one process whose CUDA driver is the stand-in."""
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    folder = tmp_path_factory.mktemp("stand-in")
    compiled(folder / "libcuda.so.1", "-shared", "-fPIC")
    calls: dict[Any, Any] = {("rgb", case): ("patch_entropy", (IMAGES, *case)) for case in CASES}
    calls |= {("grey", case): ("patch_entropy", (np.ascontiguousarray(IMAGES[..., 1]), *case)) for case in CASES[::4]}
    calls["odd"] = ("patch_entropy", (IMAGES[:3, :24, :40], 8))
    calls["none"] = ("patch_entropy", (IMAGES[:0], 16))
    calls |= {mask: ("entropy_mask", (BITS, *mask, IDS)) for mask in MASKS}
    calls["tie"] = ("entropy_mask", tied_draw().arguments)
    calls["flat"] = ("entropy_mask", (np.full((5, 7, 7), 3, np.float32), 0.6, 1.0, 0, IDS))
    (folder / "calls").write_bytes(pickle.dumps(list(calls.values())))
    (folder / "edgemed_kernels.fatbin").write_bytes(b"the stand-in opens it and looks no further")
    script = (
        "import pathlib, pickle, sys; from edgemed import kernels; from edgemed.kernels import driver;"
        "folder = pathlib.Path(sys.argv[1]); driver.binaries_folder = lambda: folder;"
        "calls = pickle.loads((folder / 'calls').read_bytes());"
        "answers = [getattr(kernels, name)(*arguments, backend='cuda') for name, arguments in calls];"
        "(folder / 'answers').write_bytes(pickle.dumps(answers)); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.strip() == "False", "the driver path loaded torch"
    return dict(zip(calls, pickle.loads((folder / "answers").read_bytes()), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_entropies_agree_with_the_oracle_and_equal_numpys(emulated: dict[Any, Any], case: Any) -> None:
    assert np.abs(emulated["rgb", case] - expected(IMAGES, case)).max() <= TOLERANCES["cuda"]
    assert np.array_equal(emulated["rgb", case], patch_entropy(IMAGES, *case))


@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_grey_images(emulated: dict[Any, Any], case: Any) -> None:
    assert np.array_equal(emulated["grey", case], patch_entropy(IMAGES[..., 1], *case))


def test_odd_sizes_and_empty_batches(emulated: dict[Any, Any]) -> None:
    assert np.array_equal(emulated["odd"], patch_entropy(IMAGES[:3, :24, :40], 8))
    assert emulated["none"].shape == (0, 4, 6)


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_masks_equal_those_of_numpy(emulated: dict[Any, Any], mask: Any) -> None:
    assert np.array_equal(emulated[mask], entropy_mask(BITS, *mask, IDS))


def test_flat_images_are_masked_at_random(emulated: dict[Any, Any]) -> None:
    assert np.array_equal(emulated["flat"], entropy_mask(np.zeros((5, 7, 7), np.float32), 0.6, 0.0, 0, IDS))


def test_of_two_equal_scores_the_first_unit_is_removed(emulated: dict[Any, Any]) -> None:
    assert np.array_equal(emulated["tie"], entropy_mask(*tied_draw().arguments))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the kernels under the thread sanitizer."""
    if shutil.which("setarch") is None:
        pytest.skip("no setarch: the thread sanitizer needs address randomisation switched off")
    program = compiled(tmp_path_factory.mktemp("sanitized") / "kernels", "-fsanitize=thread", "-DAS_PROGRAM")
    return ["setarch", platform.machine(), "-R", str(program)]


@pytest.mark.parametrize("job", ["entropy", "mask"])
def test_the_thread_sanitizer_finds_no_race(sanitized: list[str], job: str) -> None:
    done = subprocess.run([*sanitized, job], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("barrier", BARRIERS)
def test_the_thread_sanitizer_catches_every_barrier_that_is_taken_out(sanitized: list[str], barrier: str) -> None:
    job = "entropy" if barrier.startswith("patch") else "mask"
    environment = {**os.environ, "EDGEMED_SKIP_BARRIER": barrier}
    done = subprocess.run([*sanitized, job], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    assert "data race" in done.stderr


def test_without_compiled_kernels_the_error_says_how_to_make_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    driver._driver.cache_clear()
    monkeypatch.setattr(driver, "binaries_folder", lambda: tmp_path)
    with pytest.raises(EdgemedError, match=r"fatbin is missing \(make kernels"):
        patch_entropy(IMAGES, 32, backend="cuda")


def test_without_a_driver_the_error_names_another_backend(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    script = (
        "import pathlib, sys, numpy; from edgemed import kernels; from edgemed.kernels import driver;"
        "from edgemed.errors import EdgemedError\n"
        "driver.unavailable = lambda: None\n"
        "try: kernels.patch_entropy(numpy.zeros((1, 32, 32), 'u1'), 32, backend='cuda')\n"
        "except EdgemedError as error: print(error)\nelse: print('ran')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    if done.stdout.strip() == "ran" or "loading" in done.stdout:
        pytest.skip("this machine has a CUDA driver")
    assert re.search(r"(no NVIDIA driver|cuInit says).*(backend='numpy'|nvidia-smi)", done.stdout)
