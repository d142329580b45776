"""The TensorRT module of the C++ library: on stand-ins for TensorRT and CUDA, on a real GPU, against NVIDIA's headers.

NVIDIA's headers are no part of this repository. Given a folder with one subfolder per version, such as 10.3, 11.1 (each
NVIDIA/TensorRT's `include/` at that release), the module is compiled against each:

    EDGEMED_TENSORRT_HEADERS=headers python -m pytest tests/test_cpp_tensorrt.py
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import test_damaged as damaged
import tiny_bundles as tiny
from cpp_build import ROOT, built, probe, require_packages

from edgemed.files import write_atomic
from edgemed.runtimes import cache_folder

NO_GPU = 3  # what test_tensorrt ends with where the module cannot run


def cuda_folder() -> Path:
    """A CUDA toolkit. Its runtime's header is the only one of NVIDIA's that the stand-ins need."""
    for folder in (Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"))):
        if (folder / "include" / "cuda_runtime_api.h").is_file():
            return folder
    pytest.skip("no CUDA toolkit: /usr/local/cuda/include/cuda_runtime_api.h is not there")


def cmake(source: Path, folder: Path, *settings: str, targets: tuple[str, ...]) -> None:
    """Configure and build. Skips where a compiler or a package is missing, fails with what the build printed."""
    require_packages()
    build = ["cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1), "--target", *targets]
    for command in (["cmake", "-S", source, "-B", folder, *settings], build):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}{done.stderr[-4000:]}", pytrace=False)


@functools.cache
def module_tests(name: str, *settings: str) -> Path:
    """The build folder of tests/cpp/tensorrt."""
    include = f"-DEDGEMED_CUDA_INCLUDE_DIR={cuda_folder() / 'include'}"
    cmake(ROOT / "tests/cpp/tensorrt", ROOT / "build" / name, include, *settings, targets=("test_tensorrt",))
    return ROOT / "build" / name


def with_real_cuda() -> Path:
    static = cuda_folder() / "lib64" / "libcudart_static.a"
    if not static.is_file():
        pytest.skip(f"no CUDA runtime library: {static} is not there")
    return module_tests("cpp-tensorrt-cuda", "-DREAL_CUDA=ON", f"-DEDGEMED_CUDART={static}")


def run(folder: Path, cache: Path, module: Path | None = None, before: tuple[str, ...] = ()) -> Any:
    module = module or folder / "edgemed" / "edgemed_tensorrt_rtx.so"
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [*before, folder / "test_tensorrt", module]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_promises_hold_on_stand_ins(tmp_path: Path) -> None:
    done = run(module_tests("cpp-tensorrt"), tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]


def test_kernels_that_were_compiled_here_are_kept_and_a_damaged_cache_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = module_tests("cpp-tensorrt")
    assert run(folder, tmp_path).returncode == 0
    (kernels,) = tmp_path.rglob("kernels.bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = ("ab", "1.7.1.116", "Stand-in 3090")  # as Python's: of another plan, version or GPU they would be wrong
    assert kernels.parent == cache_folder("tensorrt-rtx", *key)
    compiled, written = kernels.read_bytes(), kernels.stat().st_mtime_ns
    for shape in (b"1 x 16 x 16", b"8 x 64 x 48", b"3 x 20 x 30", b"2 x 48 x 48"):  # of one session, and of others
        assert b"kernels of " + shape in compiled
    assert kernels.parent.stat().st_mode & 0o777 == 0o700
    assert run(folder, tmp_path).returncode == 0
    assert kernels.stat().st_mtime_ns == written  # they were read, and nothing was compiled anew
    kernels.write_bytes(compiled.replace(b"k", b"K"))
    assert run(folder, tmp_path).returncode == 0
    assert kernels.read_bytes() == compiled
    write_atomic(kernels.with_suffix(".sha256"), b"0" * 64)
    assert run(folder, tmp_path).returncode == 0
    assert kernels.with_suffix(".sha256").read_bytes() != b"0" * 64


def test_a_cache_that_cannot_be_looked_into_stops_nothing(tmp_path: Path) -> None:
    folder = module_tests("cpp-tensorrt")
    assert run(folder, tmp_path).returncode == 0
    (kernels,) = tmp_path.rglob("kernels.bin")
    kernels.unlink()
    kernels.symlink_to(kernels.name)
    done = run(folder, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_machine_without_tensorrt_says_what_is_missing(tmp_path: Path) -> None:
    folder = module_tests("cpp-tensorrt")
    alone = Path(shutil.copy(folder / "edgemed" / "edgemed_tensorrt_rtx.so", tmp_path))
    done = run(folder, tmp_path, alone)
    assert done.returncode == NO_GPU
    assert "libtensorrt_rtx.so.1: cannot open shared object file" in done.stderr
    assert "put its folder into LD_LIBRARY_PATH" in done.stderr


def test_a_machine_without_a_driver_says_so(tmp_path: Path) -> None:
    folder = with_real_cuda()
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    done = run(folder, tmp_path)
    assert done.returncode == NO_GPU
    assert "cudaErrorInsufficientDriver (35): the NVIDIA driver is missing or older" in done.stderr


@pytest.mark.gpu
def test_promises_hold_on_a_gpu(tmp_path: Path) -> None:
    done = run(with_real_cuda(), tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("median_us") == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["address,undefined", "thread"])
def test_sanitizers_are_silent(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = f"-DCMAKE_CXX_FLAGS=-fsanitize={kind} -fno-sanitize-recover=all -g"
    folder = module_tests(f"cpp-tensorrt-{kind.split(',')[0]}", flags)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder / "edgemed"))  # their dlopen does not know the module's own folder
    done = run(folder, tmp_path, before=("setarch", "-R"))  # ThreadSanitizer wants fixed addresses
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Sanitizer" not in done.stderr


HEADERS = os.environ.get("EDGEMED_TENSORRT_HEADERS", "")
FOLDERS = sorted(file.parent for file in Path(HEADERS).glob("*/NvInferRuntime.h")) if HEADERS else []


@pytest.mark.skipif(not FOLDERS, reason="EDGEMED_TENSORRT_HEADERS names no folder with NVIDIA's headers")
@pytest.mark.parametrize("headers", FOLDERS, ids=lambda folder: folder.name)
def test_the_module_compiles_against_nvidias_headers(headers: Path, tmp_path: Path) -> None:
    cuda = cuda_folder()
    major = headers.name.split(".")[0]
    cmake(
        ROOT / "edgemed/cpp",
        tmp_path,
        "-DEDGEMED_OPENVINO=OFF",
        "-DCMAKE_BUILD_TYPE=Debug",
        f"-DEDGEMED_TENSORRT_INCLUDE_DIRS={headers}",
        f"-DEDGEMED_CUDA_INCLUDE_DIR={cuda / 'include'}",
        f"-DEDGEMED_CUDART={cuda / 'lib64' / 'libcudart_static.a'}",
        targets=(f"edgemed_tensorrt{major}",),
    )
    module = tmp_path / f"edgemed_tensorrt{major}.so"
    exported = subprocess.run(["nm", "-D", "--defined-only", module], capture_output=True, text=True).stdout
    assert [line.split()[-1] for line in exported.splitlines()] == ["edgemed_runtime_v4"]
    assert f"libnvinfer.so.{major}".encode() in module.read_bytes()


@pytest.mark.parametrize(
    ("version", "status"), [("1.7.1", 0), ("1.7.1.116", 0), ("1.7.1.11", 4), ("1.7.2", 4), ("1.7", 4), ("1", 4)]
)
def test_a_version_may_leave_the_build_number_out(version: str, status: int, tmp_path: Path) -> None:
    """Python's module on a Jetson says 10.3.0 where the library says 10.3.0.30."""
    bundle = tiny.bundle(tmp_path / "bundle").path
    damaged.with_plan(damaged.RTX, version=version)(bundle)
    build = built("cpp")
    found = probe(build, "open", bundle, f"modules={build / 'stub'}", "runtime=tensorrt-rtx")
    assert found["status"] == status, found


@pytest.mark.skipif(not FOLDERS, reason="EDGEMED_TENSORRT_HEADERS names no folder with NVIDIA's headers")
def test_nvidias_own_library_is_started_and_its_words_are_in_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX of the Python wheel by the newest headers; CUDA is the stand-in, so that this needs no driver."""
    if (wheel := importlib.util.find_spec("tensorrt_rtx_libs")) is None or not wheel.submodule_search_locations:
        pytest.skip("no tensorrt_rtx_libs: pip install 'edgemed[rtx]'")
    if (version := importlib.metadata.version("tensorrt-rtx-cu13")) != "1.7.1.116":
        pytest.skip(f"the plan made by hand is one of TensorRT-RTX 1.7.1.116, this is {version}")
    folder = module_tests("cpp-tensorrt-wheel", f"-DTENSORRT_HEADERS={FOLDERS[-1]}")
    bundle = tiny.bundle(tmp_path / "bundle").path
    damaged.with_plan(damaged.RTX)(bundle)
    monkeypatch.setenv("LD_LIBRARY_PATH", wheel.submodule_search_locations[0])
    found = probe(built("cpp"), "open", bundle, f"modules={folder / 'edgemed'}", "runtime=tensorrt-rtx")
    assert found["status"] == 5
    assert f"tensorrt-rtx {version} refuses plan made-by-hand: IRuntime::deserializeCudaEngine" in found["message"]
