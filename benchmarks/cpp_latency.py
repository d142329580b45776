"""The C library's latency against Python's on one engine: the same pixels, settings and process, requests in turn.

    python benchmarks/cpp_latency.py BUNDLE [SIDE] [ROUNDS]      # defaults: the bundle's opt_side, 1000

Requests alternate, so that what disturbs the machine disturbs both alike. The C call is timed through ctypes, which
adds a few microseconds to it. Also: the library's size on the disk, and the largest resident memory of a process of
each kind that does nothing but predict. Correct before fast: both must answer alike first. Bar: a ratio of 1.02.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from common import keep
from cpp_library import BUILD, LIBRARY, Model, build

import edgemed
from edgemed.allowance import usable_cores
from edgemed.conditions import changes, machine, snapshot, warnings
from edgemed.phantoms import phantom
from edgemed.timing import interleaved, percentile, ratio_interval

BAR = 1.02
PYTHON_LOOP = """
import sys, numpy, edgemed
model = edgemed.load(sys.argv[1], runtime="openvino")
image = numpy.zeros((1, 480, 640, 3), numpy.uint8)
for _ in range(100): model.predict_pixels(image)
"""


def peak_mib(command: list[str | Path]) -> float | None:
    """Largest resident memory of a command, MiB, as its own status says it; None where it fails."""
    child, peak = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), 0
    while child.poll() is None:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            peak = max(peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
        time.sleep(0.02)
    return peak / 1024 if child.returncode == 0 else None


def main() -> None:
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    build()
    bundle = Path(sys.argv[1]).resolve()
    threads = usable_cores()
    python, c = edgemed.load(bundle, runtime="openvino", threads=threads), Model(bundle, threads)
    side = int(sys.argv[2]) if len(sys.argv) > 2 else python.bundle.manifest.input.opt_side
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    image = np.ascontiguousarray(phantom("oval", 0, side, side))
    batch, request = image[None], c.request(image)
    error = float(np.abs(python.predict_pixels(batch)[0][0] - c.predict(image).probabilities).max())
    if error > 1e-6:
        sys.exit(f"the answers differ by {error:.2e}: nothing to time")
    before = snapshot()
    found = interleaved(
        {"c": lambda: c.run(request), "python": lambda: python.predict_pixels(batch)}, rounds, warmup=50
    )
    conditions = changes(before, snapshot())
    ratio = ratio_interval(found["c"], found["python"], paired=True)
    document = {
        "runtime": f"openvino {c.version}",
        "threads": threads,
        "image_size": [side, side],
        "rounds": rounds,
        "p50_ms": {name: percentile(samples, 50) for name, samples in found.items()},
        "ratio": {"value": ratio.value, "interval": [ratio.low, ratio.high], "bar": BAR},
        "library_kib": LIBRARY.stat().st_size / 1024,
        "peak_resident_mib": {
            "c": peak_mib([BUILD / "edgemed" / "edgemed-camera-loop", bundle, "100"]),
            "python": peak_mib([sys.executable, "-c", PYTHON_LOOP, bundle]),
        },
        "conditions": conditions,
        "warnings": warnings(machine(), conditions),
    }
    keep("cpp-latency", document)
    sys.exit(1 if ratio.value > BAR else 0)


if __name__ == "__main__":
    main()
