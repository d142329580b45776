"""`edgemed parity` on 300 real JPEGs: every runtime given the same pixels, every decoder given the same runtime.

    python benchmarks/runtime_parity.py DATA [BUNDLE]     # DATA: a folder per class; about ten minutes on two cores

Without BUNDLE, the ensemble of `onnx_parity.py` is trained on DATA, or taken from its folder. Bar: no label changes
between two runtimes given the same pixels, at fp32 and at fp16 (a CPU executes both in fp32). What decoders change is
told, not judged. Exits with 1 where a label changes between runtimes, or fewer than 300 images could be read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import keep
from onnx_parity import trained_bundle

IMAGES = 300


def figures(bundle: Path, data: Path, precision: str) -> dict[str, Any]:
    """The report of `edgemed parity`, without the names of files."""
    command = [sys.executable, "-m", "edgemed", "parity", str(bundle), str(data), "--limit", str(IMAGES), "--json"]
    done = subprocess.run([*command, "--precision", precision], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3):
        sys.exit(done.returncode)
    report: dict[str, Any] = json.loads(done.stdout)
    pairs = {
        kind: [{**pair, "flips": len(pair["flips"])} for pair in report[kind]]
        for kind in ("runtime_pairs", "decoder_pairs")
    }
    told = {key: report[key] for key in ("images", "runtimes", "decoders", "decoders_on")}
    return {**told, "refused": len(report["refused"]), **pairs, "exit_code": done.returncode}


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    data = Path(sys.argv[1]).resolve()
    bundle = Path(sys.argv[2]).resolve() if len(sys.argv) == 3 else trained_bundle(data)[1]
    found = {precision: figures(bundle, data, precision) for precision in ("fp32", "fp16")}
    keep("runtime-parity", {"data": data.name, **found})
    passed = all(one["exit_code"] == 0 and one["images"] == IMAGES for one in found.values())
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
