"""What every script of this folder does at its end: keep the result, with all that one has to know to believe it.

    keep("near-duplicates", {"recall": 0.98})      # writes results/near-duplicates.json, prints it as the last line

Beside the script's own figures stand its command (as its docstring gives it: the paths of this machine are nobody's
business), the date, the commit, the machine with who else used it, and the versions of what computed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgemed.conditions import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "edgemed", "numpy", "pillow", "openvino", "onnxruntime", "onnx", "torch", "torchvision", "timm", "triton",
    "nvidia-dali-cuda130", "tensorrt-rtx-cu13", "opencv-python-headless", "scikit-learn", "imagehash",
)  # fmt: skip


def keep(name: str, document: dict[str, Any]) -> None:
    """Write results/`name`.json and print it as one line."""
    whole = {
        "benchmark": name,
        "command": command_of(sys.modules["__main__"].__doc__ or ""),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": {**machine(), "os": system(), "load_average": os.getloadavg()[0]},
        "versions": versions(),
        **document,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(whole))


def command_of(docstring: str) -> str:
    """The first line that runs a script of this folder, without the remark behind it."""
    lines = (line.strip() for line in docstring.splitlines())
    found = [line for line in lines if line.startswith(("python benchmarks/", "make "))]
    return found[0].partition("#")[0].partition("(")[0].strip() if found else ""


def commit() -> str:
    """The commit of the checkout, with "+" where code or a recipe differs from it; "unknown" outside of one."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "edgemed", "kernels", "benchmarks/*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def system() -> str:
    """The system and its release, without what a distribution or a provider adds to the name of its kernel."""
    return f"{platform.system()} {platform.release().partition('-')[0]}"


def versions() -> dict[str, str]:
    """Those packages of `PACKAGES` that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
