"""Two ConvNeXt-Tiny at 224 px as a bundle, built by `edgemed build-engine`: for the scripts that measure its latency.

ImageNet weights need a network, and latency does not depend on what was learnt: seeded random weights stand in, with
a layer scale of 0.2, so that every block counts, and a classifier whose answers differ from image to image, so that a
contender that computes something else is seen. All lies in build/twins, and is built anew where the code of the graph
or the versions changed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common import ROOT, versions

if TYPE_CHECKING:
    from edgemed.ensemble import Ensemble

BACKBONE, SIZE, LABELS, LAYER_SCALE = "convnext_tiny", 224, ("irregular", "none", "oval"), 0.2
SEEDS = (1, 2)
SOURCES = ("build.py", "ensemble.py", "export.py", "manifest.py", "models.py", "preprocess.py", "sources.py")


def twins() -> tuple[Path, Ensemble]:
    """The bundle, and the ensemble that it was built from."""
    key = hashlib.sha256("\n".join(f"{name} {number}" for name, number in versions().items()).encode())
    for name in SOURCES:
        key.update((ROOT / "edgemed" / name).read_bytes())
    folder = ROOT / "build" / "twins" / key.hexdigest()[:16]
    bundle, data = folder / "bundle", folder / "phantoms"
    members = [folder / f"seed{seed}.safetensors" for seed in SEEDS]
    if not (bundle / "manifest.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for file, seed in zip(members, SEEDS, strict=True):
            _random_weights(file, seed)
        command = [sys.executable, "-m", "edgemed"]
        if not data.exists():
            subprocess.run([*command, "sample", str(data), "--per-class", "3"], check=True, stdout=sys.stderr)
        flags = [word for file in members for word in ("--member", str(file))]
        flags += ["--backbone", BACKBONE, "--labels", ",".join(LABELS), "--size", str(SIZE), "--check", str(data)]
        flags += ["--image-size", f"32,{SIZE},4096", "--precision", "fp32", "--runtime", "none", "--out", str(bundle)]
        subprocess.run([*command, "build-engine", *flags], check=True, stdout=sys.stderr)
    from edgemed.ensemble import Ensemble
    from edgemed.models import normalisation
    from edgemed.preprocess import FrontEnd
    from edgemed.run import network_from_file

    networks = [network_from_file(file, BACKBONE, len(LABELS), "remove build/twins") for file in members]
    return bundle, Ensemble(FrontEnd(SIZE, *normalisation(BACKBONE)), networks, [1.0] * len(networks)).eval()


def _random_weights(file: Path, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    from edgemed.models import create_backbone

    torch.manual_seed(seed)
    state = create_backbone(BACKBONE, len(LABELS)).state_dict()
    for name, value in state.items():
        if name.endswith(".gamma"):
            value.fill_(LAYER_SCALE)
        elif name.endswith(".bias") or name == "head.fc.weight":
            value.normal_(std=0.05)
    save_file(state, file)
