"""The C++ library for a Jetson, cross-compiled with the toolchain that it ships, and run under qemu.

Skipped, visibly, where the cross-compiler, qemu or the target's libraries are missing:

    apt install g++-aarch64-linux-gnu qemu-user && sh edgemed/cpp/cmake/sysroot-aarch64.sh build/sysroot-aarch64

They build everything anew for another processor, so they are among the long ones (`make test-long`).
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cpp_build import ROOT
from test_cpp_tensorrt import cmake, cuda_folder

pytestmark = pytest.mark.slow

SYSROOT = ROOT / "build" / "sysroot-aarch64"
TARGETS = ("edgemed", "edgemed-predict", "stub", "test_api", "test_inside", "test_threads")
# What JetPack 6's Ubuntu 22.04 has.
NEWEST = {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13)}
LIBRARIES = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "ld-linux-aarch64.so.1", "libedgemed.so.0"}


def cross(name: str, source: Path, targets: tuple[str, ...], *settings: str) -> Path:
    lacking = [tool for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64") if shutil.which(tool) is None]
    if lacking or not SYSROOT.is_dir():
        pytest.skip(f"{', '.join(lacking) or SYSROOT} missing; see this file's first lines")
    folder = ROOT / "build" / name
    toolchain = ROOT / "edgemed/cpp/cmake/toolchain-aarch64.cmake"
    cmake(
        source,
        folder,
        f"-DCMAKE_TOOLCHAIN_FILE={toolchain}",
        f"-DEDGEMED_SYSROOT={SYSROOT}",
        "-DEDGEMED_STATIC=ON",
        *settings,
        targets=targets,
    )
    return folder


@functools.cache
def library() -> Path:
    python = f"-DPython3_EXECUTABLE={sys.executable}"
    return cross("cpp-aarch64", ROOT / "tests/cpp", TARGETS, "-DEDGEMED_OPENVINO=OFF", python)


def emulated(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    emulator = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
    everything = {**os.environ, **environment}
    return subprocess.run([*emulator, *command], capture_output=True, text=True, env=everything, timeout=600)


def needs(file: Path) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """The newest version of each symbol family that a binary refers to, and the libraries that it names."""
    text = subprocess.run(["readelf", "-V", "-d", file], capture_output=True, text=True, check=True).stdout
    newest: dict[str, tuple[int, ...]] = {}
    for family, version in re.findall(r"\b(GLIBC|GLIBCXX|CXXABI)_([0-9.]+)", text):
        newest[family] = max(newest.get(family, ()), tuple(map(int, version.split("."))))
    return newest, set(re.findall(r"\(NEEDED\).*\[(.*)\]", text))


@pytest.mark.parametrize("name", ["libedgemed.so", "edgemed-predict"])
def test_a_jetson_has_every_symbol_and_library_that_is_needed(name: str) -> None:
    file = library() / "edgemed" / name
    versions, libraries = needs(file)
    assert set(versions) == set(NEWEST)
    assert all(versions[family] <= limit for family, limit in NEWEST.items()), versions
    assert libraries <= LIBRARIES, libraries


def test_a_newer_symbol_would_be_seen(tmp_path: Path) -> None:
    library()
    (tmp_path / "new.c").write_text("#include <stdlib.h>\nint main(void) { return (int)arc4random(); }\n")
    command = ["aarch64-linux-gnu-gcc", tmp_path / "new.c", "-o", tmp_path / "new"]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("the cross-compiler's C library has nothing newer than 2.35")
    assert needs(tmp_path / "new")[0]["GLIBC"] > NEWEST["GLIBC"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden files of tests/cpp, the plan among them built for aarch64."""
    folder = tmp_path_factory.mktemp("golden") / "data"
    script = ROOT / "tests/cpp/golden_files.py"
    code = f"import platform, runpy, sys; sys.argv = [{str(script)!r}, {str(folder)!r}]; "
    code += "platform.machine = lambda: 'aarch64'; runpy.run_path(sys.argv[0], run_name='__main__')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
    return folder


@pytest.mark.parametrize("name", ["test_api", "test_inside"])
def test_the_librarys_own_tests_pass_on_aarch64(name: str, data: Path, tmp_path: Path) -> None:
    folder = library()
    done = emulated(folder / name, data, folder / "stub", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_example_says_what_it_lacks_and_is_not_killed(data: Path) -> None:
    done = emulated(library() / "edgemed" / "edgemed-predict", data / "bundle", "none.png")
    assert done.returncode == 2
    assert "this library was built without OpenVINO" in done.stderr


def test_the_tensorrt_module_keeps_its_promises_on_aarch64(tmp_path: Path) -> None:
    include = f"-DEDGEMED_CUDA_INCLUDE_DIR={cuda_folder() / 'include'}"
    folder = cross("cpp-tensorrt-aarch64", ROOT / "tests/cpp/tensorrt", ("test_tensorrt",), include)
    module = folder / "edgemed" / "edgemed_tensorrt_rtx.so"
    assert needs(module)[0]["GLIBC"] <= NEWEST["GLIBC"]
    done = emulated(folder / "test_tensorrt", module, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
