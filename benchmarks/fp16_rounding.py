"""fp16 with every operator rounded, as a GPU rounds, against PyTorch in fp32 on 50 real images of a run.

    python benchmarks/fp16_rounding.py RUN [RUN ...]       # finished runs of `edgemed train`; minutes each

A CPU executes an fp16 graph in fp32, so agreement there proves nothing about rounding. Here each float16 operator's
result is rounded before the next one sees it (`edgemed/precision.py`). Bars: no probability off by more than 5e-3; no
changed label where the reference's two highest probabilities differ by more than 1e-2; no float16 value above 16,000.
The images are the run's test images, then its validation images; stages stay fp32 as in `edgemed build-engine`, until
these images err by half of the first bar at most. Exits with 1 where a bar is missed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import keep

from edgemed.ensemble import predict_callable
from edgemed.evaluate import predict_files
from edgemed.gates import TIE_MARGINS, compare, default_gates
from edgemed.images import image_from_file
from edgemed.precision import LARGEST_SAFE, Rounded, safe_half
from edgemed.run import load_run

IMAGES = 50


def rounding(path: Path) -> dict[str, Any]:
    """The comparison on a run's images, with the layers that had to stay float32 (none: the usual ones sufficed)."""
    run = load_run(path)
    parts = [run.dataset.subset(split) for split in ("test", "validation")]
    files = [part.file(row) for part in parts for row in part.rows][:IMAGES]
    truth, of_members, _ = predict_files(predict_callable(run.ensemble), files)
    bar = default_gates("fp16").max_prob_error

    def has_room(rounded: Rounded, _: Rounded) -> bool:
        return bool(np.abs(rounded.probabilities - truth).max() <= bar / 2)

    found = safe_half(run.ensemble, lambda: (image_from_file(file) for file in files), has_room)
    compared = compare(truth, found.rounded.probabilities, tie_margin=TIE_MARGINS["fp16"])
    highest = np.sort(truth, axis=1)
    margins = highest[:, -1] - highest[:, -2]
    worst = max(found.rounded.largest, key=lambda name: found.rounded.largest[name])
    return {
        "backbone": run.backbone,
        "size": run.size,
        "images": compared.n,
        "max_prob_error": compared.max_prob_error,
        "mean_prob_error": compared.mean_prob_error,
        "max_member_prob_error": float(np.abs(of_members - found.rounded.members).max()),
        "bar": bar,
        "flips": len(compared.flips),
        "images_with_margin_above_1e-2": int((margins > TIE_MARGINS["fp16"]).sum()),
        "median_margin": float(np.median(margins)),
        "largest_float16_value": found.rounded.largest[worst],
        "in_operator": worst,
        "safe_below": LARGEST_SAFE,
        "layers_kept_float32_besides_the_usual": list(found.kept),
        "passed": compared.n >= IMAGES and compared.max_prob_error <= bar and not compared.flips,
    }


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    found = [rounding(Path(argument).resolve()) for argument in sys.argv[1:]]
    keep("fp16-rounding", {"runs": found})
    sys.exit(0 if all(entry["passed"] for entry in found) else 1)


if __name__ == "__main__":
    main()
