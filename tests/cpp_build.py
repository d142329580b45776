"""Builds the C++ library and its tests, once per session and kind, for tests/test_cpp.py."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_damaged import record

import edgemed
from edgemed.bundle import open_bundle
from edgemed.engines import place_of
from edgemed.records import Certificate, PlanRecord

ROOT = Path(__file__).parents[1]
OK, INTERNAL, INPUT, GATE, BUNDLE, RUNTIME = 0, 1, 2, 3, 4, 5  # edgemed_status
HEADERS = {
    "nlohmann/json.hpp": "nlohmann-json3-dev",
    "png.h": "libpng-dev",
    "jpeglib.h": "libjpeg-dev",
    "openssl/evp.h": "libssl-dev",
}


FUZZER = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'


@functools.cache
def missing(compiler: str = "c++") -> str | None:
    """What a build would lack, in one line, or None. With clang++: what a fuzz target would."""
    lacking = [name for name in ("cmake", "ctest", compiler) if shutil.which(name) is None]
    step = "run `sudo make cpp-deps`" + (" and `apt install clang libclang-rt-dev`" if compiler == "clang++" else "")
    if not lacking:
        for header, package in HEADERS.items():
            source = f"#include <cstdio>\n#include <{header}>\n"
            lacking += [package] * (not _compiles([compiler, "-E"], source))
        if compiler == "clang++" and not _compiles([compiler, "-fsanitize=fuzzer,address,undefined"], FUZZER):
            lacking.append("libFuzzer")
    return f"the C++ library cannot be built: {', '.join(lacking)} missing; {step}" if lacking else None


def require_packages(compiler: str = "c++") -> None:
    """Skip the test where a build lacks something; fail it where EDGEMED_CPP_TESTS=required says that nothing can be.

    The fuzz targets' compiler is none of the packages of `make cpp-deps`: without it, their test is always skipped.
    """
    if (reason := missing(compiler)) is not None:
        if os.environ.get("EDGEMED_CPP_TESTS") == "required" and compiler != "clang++":
            pytest.fail(f"{reason} (EDGEMED_CPP_TESTS=required)", pytrace=False)
        pytest.skip(reason)


def _compiles(command: list[str], source: str) -> bool:
    done = subprocess.run([*command, "-x", "c++", "-", "-o", os.devnull], input=source, capture_output=True, text=True)
    return done.returncode == 0


@functools.cache
def built(name: str, *settings: str, compiler: str = "c++", targets: tuple[str, ...] = ("all",)) -> Path:
    """The build folder build/NAME, up to date. Skips the test where something is missing."""
    require_packages(compiler)
    folder = ROOT / "build" / name
    configure = ["cmake", "-S", ROOT / "tests" / "cpp", "-B", folder, f"-DPython3_EXECUTABLE={sys.executable}"]
    configure += [f"-DCMAKE_CXX_COMPILER={compiler}", *settings]
    if compiler == "clang++":
        configure.append("-DCMAKE_C_COMPILER=clang")
    build = ["cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1), "--target", *targets]
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:  # another worker of pytest-xdist may build it
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, build):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                words = " ".join(map(str, command))
                pytest.fail(f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}", pytrace=False)
    return folder


def ctest(folder: Path, pattern: str, **environment: str) -> None:
    """Run the CTest tests whose name fits, and fail with what they print."""
    command = [
        "ctest",
        "--test-dir",
        folder,
        "-R",
        pattern,
        "--output-on-failure",
        "--no-tests=error",
        "--timeout",
        "900",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        pytest.fail(done.stdout[-6000:] + done.stderr[-2000:], pytrace=False)


def probe(folder: Path, *arguments: str | Path) -> Any:
    """What tests/cpp/probe.cpp says."""
    done = subprocess.run([folder / "probe", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"probe {arguments} ended with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def certificate_record(bundle: Path, **changes: Any) -> PlanRecord:
    """A record that certifies the ONNX file on this machine, as `edgemed certify` writes it."""
    model = edgemed.load(bundle, runtime="openvino", threads=1)
    place = place_of(model.session, "fp32")
    opened_bundle = open_bundle(bundle)
    values: dict[str, Any] = {
        "id": "openvino-fp32",
        "runtime": "openvino",
        "version": place.version,
        "targets": (),
        "sha256": None,
        "bytes": None,
        "state": "certified",
        "certificate": Certificate.model_validate(
            {
                "created": "2026-01-01T00:00:00Z",
                "bundle_id": opened_bundle.manifest.bundle_id,
                "place": place.model_dump() | changes,
                "images": 3,
                "max_prob_error": 1e-7,
                "mean_prob_error": 1e-8,
                "flips": ("ab" * 32,),
                "unclear": 2,
                "auroc_change": {"value": -0.001, "low": -0.01, "high": 0.0},
                "gates": {"max_flips": 1, "max_prob_error": 1e-3, "max_auroc_drop": 0.005},
            }
        ),
    }
    return record(opened_bundle, b"", **values)


def opened(build: Path, bundle: Path, runtime: str = "tensorrt-rtx", **options: Any) -> dict[str, Any]:
    """What edgemed_open says, with the stub module in TensorRT-RTX's place."""
    settings = [f"{name}={value}" for name, value in {"modules": build / "stub", "runtime": runtime, **options}.items()]
    found: dict[str, Any] = probe(build, "open", bundle, *settings)
    return found
