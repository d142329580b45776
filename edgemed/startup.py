"""How long a device waits for its first answer, process start included, and where that time goes.

Why a process of its own: only a fresh interpreter pays for imports, and only there is the peak of memory that of this
engine. Cold: the runtime's cache is empty, so the graph is compiled. Warm: the cache of that cold start is there. The
user's own cache is neither used nor changed. Files are in the operating system's page cache in both cases: a bundle
that comes from a slow disk takes longer by the time of reading it.

    python -m edgemed.startup '{"bundle": "bundle", "runtime": "openvino", ...}'      # what `edgemed bench` runs twice
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemed.bundle import Bundle, open_bundle
from edgemed.conditions import NOT_MEASURED, peak_memory
from edgemed.errors import EdgemedError
from edgemed.infer import load
from edgemed.records import PlanRecord, least_batch
from edgemed.runtimes import runtime_module
from edgemed.runtimes.tensorrt import Flavour

PARTS = ("process", "verify", "runtime", "engine", "first_answer")
"""Of a start, in this order: the interpreter, hashes of the bundle, the runtime's import, the engine, one request."""


def start_up(
    bundle: Path,
    *,
    runtime: str,
    precision: str,
    threads: int | None,
    side: int,
    plan: str | None = None,
    cuda_graph: bool = True,
) -> dict[str, Any]:
    """A cold and a warm start to the answer for one image of `side` pixels: {"cold": {...}, "warm": {...}}.

    Each: milliseconds of "process" (interpreter and imports), "verify" (reading and hashing the bundle), "runtime"
    (importing it), "engine" (compiling the graph, or taking it from the cache), "first_answer", and "total";
    "from_cache" (None: the runtime has none); "peak_host_bytes"; "device_bytes": by how much the device's free memory,
    with a context of CUDA there, was less after the answer. A start that failed is "not measured" and why.
    """
    request = {
        "bundle": str(bundle.resolve()), "runtime": runtime, "precision": precision, "threads": threads, "side": side,
        "plan": plan, "cuda_graph": cuda_graph,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="edgemed-") as cache:
        return {kind: _start(request, cache) for kind in ("cold", "warm")}


def _start(request: dict[str, Any], cache: str) -> dict[str, Any] | str:
    spawned = time.monotonic_ns()  # the same clock in all processes
    command = [sys.executable, "-m", "edgemed.startup", json.dumps({**request, "spawned": spawned})]
    env = {**os.environ, "XDG_CACHE_HOME": cache}
    # In a folder of its own: a file of the user's that is called like a module would be imported in its place.
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cache)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"{NOT_MEASURED}: {reason}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass(frozen=True)
class _TimedBundle(Bundle):
    """A bundle that notes how many nanoseconds it spends on reading and hashing."""

    spent: list[int] = field(default_factory=list)

    def read(self, name: str) -> bytes:
        begin = time.monotonic_ns()
        try:
            return super().read(name)
        finally:
            self.spent.append(time.monotonic_ns() - begin)

    def read_plan(self, record: PlanRecord) -> bytes:
        begin = time.monotonic_ns()
        try:
            return super().read_plan(record)
        finally:
            self.spent.append(time.monotonic_ns() - begin)


def _first_answer(request: dict[str, Any], entered: int) -> dict[str, Any]:
    """The whole way to the first answer, in this process."""
    opened = open_bundle(request["bundle"])
    bundle = _TimedBundle(opened.path, opened.manifest, opened.plan_key)
    bundle.spent.append(time.monotonic_ns() - entered)
    begin = time.monotonic_ns()
    module = runtime_module(request["runtime"])
    module.availability()  # imports it
    free = module.free_memory() if isinstance(module, Flavour) else None
    imported = time.monotonic_ns()
    reads = len(bundle.spent)
    chosen = {name: request[name] for name in ("runtime", "precision", "threads", "plan", "cuda_graph")}
    model = load(bundle, **chosen)
    loaded = time.monotonic_ns()
    model.predict_pixels(np.zeros((least_batch(model.record), request["side"], request["side"], 3), dtype=np.uint8))
    answered = time.monotonic_ns()
    spent = (
        entered - request["spawned"],
        sum(bundle.spent),
        imported - begin,
        loaded - imported - sum(bundle.spent[reads:]),
        answered - loaded,
    )
    parts = dict(zip(PARTS, spent, strict=True)) | {"total": answered - request["spawned"]}
    device = free - module.free_memory() if free is not None and isinstance(module, Flavour) else NOT_MEASURED
    return {
        **{name: nanoseconds / 1e6 for name, nanoseconds in parts.items()},
        "from_cache": model.session.from_cache,
        "peak_host_bytes": peak_memory(),
        "device_bytes": device,
    }


if __name__ == "__main__":
    entered_ = time.monotonic_ns()
    try:
        print(json.dumps(_first_answer(json.loads(sys.argv[1]), entered_)))  # noqa: T201
    except EdgemedError as error:
        sys.exit(str(error))
