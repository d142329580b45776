"""A fresh virtual environment with the wheel alone: what a device needs to answer, and how much space that takes.

    python benchmarks/base_install.py BUNDLE      # a bundle of `edgemed build-engine`; some minutes, most of them pip's

Builds the wheel, installs it without extras (no torch), and from a folder that is not the clone: loads the bundle, runs
its golden images, predicts, compares decoders, refuses to build what it has no builder for. Then adds the extra `rtx`
and builds a TensorRT-RTX plan from the bundle. Every step has to succeed; sizes are those of site-packages on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import keep

ROOT = Path(__file__).parents[1]
ABSENT = ("torch", "timm", "onnx", "onnxruntime", "cv2", "sklearn", "tensorrt_rtx")  # of the base install
SHIPPED = ("py.typed", "cpp/CMakeLists.txt", "cpp/include/edgemed.h", "kernels/patch_entropy.cuh")


class Device:
    """A virtual environment that stands for a device: its commands run in a folder of their own."""

    def __init__(self, work: Path) -> None:
        self.folder = work / "elsewhere"
        self.folder.mkdir()
        self.venv = work / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(self.venv)], check=True)
        self.python = str(self.venv / "bin" / "python")
        self._bare = self.megabytes()

    def install(self, requirement: str) -> float:
        """Seconds that pip took."""
        began = time.perf_counter()
        subprocess.run(
            [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement], check=True
        )
        return time.perf_counter() - began

    def megabytes(self) -> float:
        """Space that the files of the environment take on the disk."""
        files = (path for path in self.venv.rglob("*") if path.is_file() and not path.is_symlink())
        return sum(path.stat().st_blocks * 512 for path in files) / 1e6

    def added_megabytes(self) -> float:
        """The same without what an empty environment has (pip)."""
        return self.megabytes() - self._bare

    def packages(self) -> dict[str, str]:
        done = self._run([self.python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"])
        return {entry["name"]: entry["version"] for entry in json.loads(done.stdout)}

    def says(self, code: str) -> str:
        """What a line of Python prints."""
        done = self._run([self.python, "-c", code])
        if done.returncode:
            sys.exit(f"{code}: {done.stderr}")
        return done.stdout.strip()

    def edgemed(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """A command of the installed edgemed; another exit code than expected ends the script."""
        done = self._run([str(self.venv / "bin" / "edgemed"), *arguments])
        if done.returncode != expect:
            sys.exit(f"edgemed {' '.join(arguments)}: exit code {done.returncode}, not {expect}: {done.stderr}")
        return done

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        clean["XDG_CACHE_HOME"] = str(self.folder / "cache")
        return subprocess.run(command, cwd=self.folder, env=clean, capture_output=True, text=True)


def wheel_of(work: Path) -> Path:
    """The project's wheel, built in isolation."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(work), str(ROOT)], check=True, capture_output=True
    )
    (wheel,) = work.glob("*.whl")
    return wheel


def base_install(bundle: Path, work: Path) -> dict[str, Any]:
    """The figures of both installs; ends with a message where a step fails. work: an empty folder outside the clone."""
    wheel = wheel_of(work)
    mine = work / "bundle"  # a copy: the plan goes into it
    shutil.copytree(bundle, mine)
    device = Device(work)
    base_seconds = device.install(str(wheel))
    base_size = device.added_megabytes()
    packages = device.packages()
    where = Path(device.says("import edgemed; print(edgemed.__file__)")).parent
    if device.venv not in where.parents:
        sys.exit(f"the clone was imported, not the wheel: {where}")
    found = device.says(f"import importlib.util as u; print([m for m in {ABSENT} if u.find_spec(m)])")
    if found != "[]":
        sys.exit(f"the base install brings {found}")
    if missing := [name for name in SHIPPED if not (where / name).is_file()]:
        sys.exit(f"the wheel lacks {missing}")
    tests = json.loads(device.edgemed("inspect", str(mine), "--self-test", "--json").stdout)["self_tests"]
    ran = {f"{test['runtime']} {test['precision']}": test["comparison"] for test in tests if not test["not_run"]}
    golden = sorted((mine / "golden").glob("*.png"))
    answers = json.loads(device.edgemed("predict", str(mine), *map(str, golden), "--json").stdout)
    parity = json.loads(device.edgemed("parity", str(mine), str(mine / "golden"), "--json").stdout)
    refusal = device.edgemed("build-engine", str(mine), expect=2).stderr
    rtx_seconds = device.install(f"edgemed[rtx] @ file://{wheel}")
    built = device.edgemed(
        "build-engine",
        str(mine),
        "--runtime",
        "tensorrt-rtx",
        "--precision",
        "fp16",
        "--targets",
        "sm86,sm89",
        "--json",
    )
    (plan,) = json.loads(built.stdout)["plans"]
    return {
        "wheel_megabytes": round(wheel.stat().st_size / 1e6, 2),
        "base": {
            "megabytes": round(base_size, 1),
            "seconds_of_pip": round(base_seconds, 1),
            "packages": packages,
            "self_tests": {name: value["max_prob_error"] for name, value in ran.items()},
            "predicted": len(answers),
            "decoders_not_run": {name: one["not_run"] for name, one in parity["decoders"].items() if one["not_run"]},
            "build_engine_says": " ".join(refusal.split()),
        },
        "with_rtx": {
            "megabytes": round(device.added_megabytes(), 1),
            "seconds_of_pip": round(rtx_seconds, 1),
            "plan": {key: plan[key] for key in ("id", "bytes", "targets", "state")},
        },
        "torch_installed": "torch" in device.packages(),
    }


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    bundle = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory(prefix="edgemed-base-") as work:
        figures = base_install(bundle, Path(work))
    keep("base-install", figures)


if __name__ == "__main__":
    main()
