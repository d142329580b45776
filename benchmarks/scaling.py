"""How the cost of an answer grows: with images per request, with the size of the image, with threads.

    python benchmarks/scaling.py [ROUNDS]       # default 30; two ConvNeXt-Tiny on the default runtime; some minutes

Every point is compared with PyTorch before it is timed; then all of them run in turn. Ratios are to one image of the
network's own size on all cores, with block-bootstrap intervals.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import keep
from PIL import Image
from twins import SIZE, twins

from edgemed.allowance import usable_cores
from edgemed.conditions import changes, machine, snapshot, warnings
from edgemed.gates import check, compare, default_gates
from edgemed.infer import Model, load
from edgemed.phantoms import phantom
from edgemed.timing import interleaved, percentile_intervals, ratio_interval

BATCHES, SIDES = (1, 2, 4, 8), (SIZE, 512, 1024, 2048)


def main() -> None:
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    rounds = int(sys.argv[1]) if len(sys.argv) == 2 else 30
    bundle, ensemble = twins()
    cores = usable_cores()
    threads = sorted({1, *(2**k for k in range(8) if 2**k < cores), cores})
    models = {number: load(bundle, threads=number) for number in threads}
    for model in models.values():
        model.self_test()
    images = [phantom(kind, seed, SIZE, SIZE) for seed in range(4) for kind in ("oval", "irregular")]
    points: dict[str, tuple[Model, Any]] = {}
    for number in threads:
        points[f"{number} threads"] = models[number], np.stack(images[:1])
    for batch in BATCHES[1:]:
        points[f"{batch} images"] = models[cores], np.stack(images[:batch])
    for side in SIDES[1:]:
        large = Image.fromarray(images[0]).resize((side, side), Image.Resampling.BICUBIC)
        points[f"{side} px"] = models[cores], np.array(large)[None]
    for name, (model, pixels) in points.items():
        with torch.inference_mode():
            wanted = ensemble(torch.from_numpy(pixels))[0].numpy()
        check(compare(wanted, model.predict_pixels(pixels)[0], tie_margin=0), default_gates("fp32"), name)

    def call_of(model: Model, pixels: Any) -> Callable[[], object]:
        return lambda: model.predict_pixels(pixels)

    before = snapshot()
    times = interleaved({name: call_of(*point) for name, point in points.items()}, rounds)
    conditions = changes(before, snapshot())
    base = f"{cores} threads"
    document = {
        "network": f"two ConvNeXt-Tiny at {SIZE} px, seeded random weights",
        "runtime": f"{models[cores].runtime} {models[cores].session.version}",
        "base": f"1 image of {SIZE} px, {base}",
        "rounds": rounds,
        "points": {
            name: {
                "request": list(pixels.shape),
                "p50_ms": percentile_intervals(times[name], (50,))[0].as_dict(),
                "ms_per_image": percentile_intervals(times[name], (50,))[0].value / len(pixels),
                "times_base": ratio_interval(times[name], times[base], paired=True).as_dict(),
            }
            for name, (_, pixels) in points.items()
        },
        "conditions": conditions,
        "warnings": warnings(machine(), conditions),
    }
    keep("scaling", document)


if __name__ == "__main__":
    main()
