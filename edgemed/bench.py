"""The latency of a bundle on this machine, measured after its answers were checked.

    edgemed bench BUNDLE [--runtime NAME] [--batch N] [--image-size PIXELS] [--json]

Measured: one request after the other from one thread, from uint8 pixels in memory to the probabilities. No sample is
dropped. Intervals are 95 % bootstrap intervals that take the samples as independent; load from other processes makes
them too narrow, which is why the load average stands in the report. The golden images are run first, and a bundle
that answers differently from its reference is not timed.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgemed import __version__
from edgemed.bundle import Bundle
from edgemed.errors import InputError
from edgemed.gates import default_gates
from edgemed.infer import Model, load
from edgemed.stats import Interval, mean_interval, percentile_interval

SCHEMA = "edgemed.bench/1"
P99_SAMPLES = 1000  # 10 samples above the percentile
NOT_MEASURED = "not measured"


def bench(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    runtime: str = "auto",
    precision: str = "fp32",
    batch: int = 1,
    image_size: int | None = None,
    threads: int | None = None,
    warmup: float = 1.0,
    duration: float = 5.0,
    iterations: int | None = None,
) -> dict[str, Any]:
    """Measure, and give a report that is ready for JSON; `table` prints it.

    runtime, precision, threads: as `infer.load` takes them. batch: images per request. image_size: side of the square
    images in pixels; None = the size that the bundle was built for. warmup, duration: seconds; iterations: so many
    requests in place of a duration.

    The report: schema; what was measured; bundle, runtime and machine; correctness (golden images, largest error);
    cold_start_ms (load, first answer; whether the runtime's cache was used); samples; latency_ms per request (mean,
    p50, p90, p99, each with an interval; p99 is None below 1,000 samples, and p99_note says so); throughput in
    images/s.

    Raises InputError for a bundle or argument that cannot be used, GateError where a golden image differs.
    """
    if batch < 1 or warmup < 0 or not duration > 0 or (iterations is not None and iterations < 1):
        raise InputError("bench needs a batch and iterations of 1 or more, a duration above 0, a warm-up of 0 or more")
    begin = time.perf_counter_ns()
    model = load(bundle, runtime=runtime, precision=precision, threads=threads)
    loaded = time.perf_counter_ns()
    side = model.bundle.manifest.input.opt_side if image_size is None else image_size
    if side < 1:
        raise InputError(f"--image-size is {side}; give the side of the images in pixels")
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    first = time.perf_counter_ns()
    model.predict_pixels(pixels)
    answered = time.perf_counter_ns()
    golden = model.self_test()

    load_average = os.getloadavg()[0]
    end = time.perf_counter_ns() + int(warmup * 1e9)
    while time.perf_counter_ns() < end:
        model.predict_pixels(pixels)
    samples = _samples_ms(model, pixels, duration, iterations)
    mean = mean_interval(samples)
    enough = len(samples) >= P99_SAMPLES
    return {
        "schema": SCHEMA,
        "edgemed": __version__,
        "measured": "pixels in memory to probabilities, one request at a time, one thread",
        "bundle": {"path": str(model.bundle.path), "id": model.bundle.manifest.bundle_id, "precision": precision},
        "runtime": {
            "name": model.runtime,
            "version": model.session.version,
            "threads": model.session.threads,
            "reason": model.reason,
        },
        "machine": machine() | {"load_average_before": load_average},
        "batch": batch,
        "image_size": [side, side],
        "correctness": {
            "golden_images": golden.n,
            "max_prob_error": golden.max_prob_error,
            "gates": asdict(default_gates(precision)),
        },
        "cold_start_ms": {
            "load": (loaded - begin) / 1e6,
            "first_answer": (answered - first) / 1e6,
            "from_cache": model.session.from_cache,
        },
        "samples": len(samples),
        "latency_ms": {
            "mean": mean._asdict(),
            "p50": percentile_interval(samples, 50)._asdict(),
            "p90": percentile_interval(samples, 90)._asdict(),
            "p99": percentile_interval(samples, 99)._asdict() if enough else None,
        },
        "p99_note": None if enough else f"needs {P99_SAMPLES} samples, has {len(samples)}",
        "throughput_images_per_s": Interval(*(1e3 * batch / value for value in (mean[0], mean[2], mean[1])))._asdict(),
    }


def table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    latency, runtime, machine_ = report["latency_ms"], report["runtime"], report["machine"]
    height, width = report["image_size"]
    cache = {True: "from cache", False: "compiled", None: "no cache"}[report["cold_start_ms"]["from_cache"]]
    lines = [
        f"{runtime['name']} {runtime['version']}, {report['bundle']['precision']}, {runtime['threads']} threads; "
        f"{machine_['cpu']}, {machine_['cores']} CPUs, load {machine_['load_average_before']:.1f}, "
        f"governor {machine_['governor']}",
        f"batch {report['batch']}, {height} x {width} px: {report['measured']}; {report['samples']} samples",
        f"correct on {report['correctness']['golden_images']} golden images "
        f"(largest error {report['correctness']['max_prob_error']:.1e})",
    ]
    for name, value in latency.items():
        lines.append(f"{name:<11}{_with_interval(value, 'ms') if value else report['p99_note']}")
    lines.append(f"{'throughput':<11}{_with_interval(report['throughput_images_per_s'], 'images/s')}")
    cold = report["cold_start_ms"]
    lines.append(f"{'cold start':<11}load {cold['load']:.0f} ms ({cache}), first answer {cold['first_answer']:.1f} ms")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """The machine that this process runs on; what cannot be read is "not measured"."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def _samples_ms(model: Model, pixels: Any, duration: float, iterations: int | None) -> list[float]:
    """The latency of each request in ms: so many of them, or as many as fit into the duration, but at least one."""
    samples: list[float] = []
    end = time.perf_counter_ns() + int(duration * 1e9)
    while len(samples) < iterations if iterations else not samples or time.perf_counter_ns() < end:
        begin = time.perf_counter_ns()
        model.predict_pixels(pixels)
        samples.append((time.perf_counter_ns() - begin) / 1e6)
    return samples


def _with_interval(value: dict[str, float], unit: str) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}] {unit}"


def _cpu_model() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return _text("/proc/device-tree/model").rstrip("\0")  # boards such as a Jetson


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return NOT_MEASURED
