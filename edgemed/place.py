"""Where a run is made: device, processor, threads, ranks, versions. Another place rounds otherwise.

`run.json` holds it; a run that goes on elsewhere says so (`note_another_place`), and an ablation counts its places.
"""

from __future__ import annotations

import logging
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from edgemed import __version__
from edgemed.distributed import cpu_threads, world
from edgemed.files import read_json, write_json
from edgemed.preflight import cpu

PACKAGES = (
    "torch", "timm", "torchvision", "nvidia-dali-cuda130", "numpy", "pillow", "opencv-python-headless", "scikit-learn",
    "scipy", "imagehash", "pydicom", "imagecodecs",
)  # fmt: skip


def device_here(device: str, threads: int) -> dict[str, Any]:
    """`run.json`'s "device": device ("cpu", "cuda"), processor (the model of it), threads, ranks.

    threads: as `--threads` asks for them, 0 = all.
    """
    processor = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu()[0]
    return {"device": device, "processor": processor, "threads": cpu_threads(threads), "ranks": world()}


def versions() -> dict[str, str]:
    """Python's version, and those of the packages that a result may depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def place_line(info: dict[str, Any]) -> str:
    """The place of a `run.json` in a line, but for its threads and ranks."""
    named = {name: info["device"][name] for name in ("device", "processor")}
    named["edgemed"] = info["edgemed"]
    return ", ".join(f"{key} {value}" for key, value in (named | info["versions"]).items())


def note_another_place(out: Path, device: str, threads: int) -> None:
    """A warning in run.json where a run goes on elsewhere than it was begun: its figures are of both places then."""
    info = read_json(out / "run.json")
    was = {"edgemed": info["edgemed"]} | info["device"] | info["versions"]
    now = {"edgemed": __version__} | device_here(device, threads) | versions()
    warnings: list[str] = info["dataset"]["warnings"]
    if changed := [f"{name} {was[name]} -> {now[name]}" for name in now if was.get(name, now[name]) != now[name]]:
        warning = f"the run was begun in one place and went on in another ({', '.join(changed)})."
        if warning not in warnings:
            warnings.append(warning)
            logging.getLogger("edgemed").warning("%s", warning)
            write_json(out / "run.json", info)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
