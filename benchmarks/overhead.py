"""What `edgemed.load(BUNDLE)(image)` costs above the bare runtime call, on pixels in memory.

    python benchmarks/overhead.py BUNDLE [ROUNDS]      # default 1000; BUNDLE: a small network (`make demo`'s)

Both calls use the very same compiled OpenVINO model and the same pixels, in turns: the bare one sets the tensor,
infers, and reads the probabilities; edgemed's checks the size and the numbers, and makes a `Prediction` of them. Their
answers are compared before anything is timed. Bar: the medians differ by less than 0.5 ms.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from common import keep

import edgemed
from edgemed.conditions import changes, machine, snapshot, warnings
from edgemed.phantoms import phantom
from edgemed.timing import difference_interval, interleaved, percentile

BAR_MS = 0.5


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    model: Any = edgemed.load(Path(sys.argv[1]).resolve(), runtime="openvino")
    rounds = int(sys.argv[2]) if len(sys.argv) == 3 else 1000
    side = model.bundle.manifest.input.opt_side
    image = np.ascontiguousarray(phantom("oval", 0, side, side))
    batch, request = image[None].copy(), model.session.prepare(1).create_infer_request()

    def bare() -> Any:
        request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
        request.infer(share_outputs=True)
        return request.get_tensor("probabilities").data

    error = float(np.abs(bare()[0] - list(model(image).probabilities.values())).max())
    if error:
        sys.exit(f"the answers differ by {error:.2e}: nothing to time")
    before = snapshot()
    found = interleaved({"edgemed": lambda: model(image), "bare": bare}, rounds, warmup=20)
    conditions = changes(before, snapshot())
    p50 = {name: percentile(samples, 50) for name, samples in found.items()}
    overhead = difference_interval(found["edgemed"], found["bare"])
    document = {
        "runtime": f"openvino {model.session.version}",
        "threads": model.session.threads,
        "image_size": [side, side],
        "rounds": rounds,
        "p50_ms": p50,
        "overhead_ms": {**overhead.as_dict(), "bar": BAR_MS},
        "conditions": conditions,
        "warnings": warnings(machine(), conditions),
    }
    keep("overhead", document)
    sys.exit(1 if overhead.value > BAR_MS else 0)


if __name__ == "__main__":
    main()
