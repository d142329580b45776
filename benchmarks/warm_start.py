"""How long a device waits for its first answer, process start included, and where the time goes.

    python benchmarks/warm_start.py [BUNDLE] [REPEATS]      # default: two ConvNeXt-Tiny at 224 px, 5

Each repeat is a cold start (the runtime's cache is empty) and a warm one (it is filled), each in a process of its own;
medians of the parts. Files are in the page cache. Beside it stand the bytes that are read and hashed, and how fast this
machine hashes. The golden images are run before anything is timed. Bar: a warm start under 1.5 s.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import keep
from twins import twins

import edgemed
from edgemed.conditions import changes, machine, snapshot, warnings
from edgemed.startup import start_up

BAR_MS = 1500.0
PARTS = ("process", "verify", "runtime", "engine", "first_answer", "total")


def hash_rate() -> float:
    """Bytes per second of sha256, on data in memory."""
    data = bytes(64 << 20)
    begin = time.perf_counter()
    hashlib.sha256(data).digest()
    return len(data) / (time.perf_counter() - begin)


def main() -> None:
    bundle = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else twins()[0]
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    model: Any = edgemed.load(bundle, self_test=True)
    manifest = model.bundle.manifest
    before = snapshot()
    starts = [
        start_up(bundle, runtime=model.runtime, precision="fp32", threads=None, side=manifest.input.opt_side)
        for _ in range(repeats)
    ]
    conditions = changes(before, snapshot())
    failed = [start for pair in starts for start in pair.values() if isinstance(start, str)]
    if failed:
        sys.exit(failed[0])
    found = {
        kind: {name: median(pair[kind][name] for pair in starts) for name in PARTS}
        | {"each_total": [pair[kind]["total"] for pair in starts], "from_cache": starts[0][kind]["from_cache"]}
        for kind in ("cold", "warm")
    }
    document = {
        "backbone": manifest.backbone,
        "runtime": f"{model.runtime} {model.session.version}",
        "threads": model.session.threads,
        "repeats": repeats,
        "median_ms": found,
        "hashed_bytes": sum(entry.bytes for name, entry in manifest.files.items() if name != "model.fp16.onnx"),
        "sha256_bytes_per_s": hash_rate(),
        "bar_ms": BAR_MS,
        "conditions": conditions,
        "warnings": warnings(machine(), conditions),
    }
    keep("warm-start", document)
    sys.exit(1 if found["warm"]["total"] > BAR_MS else 0)


if __name__ == "__main__":
    main()
