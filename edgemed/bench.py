"""The latency of a bundle on this machine, measured after its answers were checked.

    edgemed bench BUNDLE [--mode single-stream|burst|sparse] [--batches 1,4,8] [--runtime auto|all|NAME]
                         [--json FILE] [--markdown FILE] [--plot FILE.svg] [--strict]

Modes: single-stream sends the next request after the last answer; burst keeps several in flight; sparse waits
between requests, as a device does that wakes up for one image. Measured is what an application waits for: from uint8
pixels in memory (from a JPEG in memory with `--include decode`) to the probabilities. No sample is dropped. Intervals
are 95 % block-bootstrap intervals (`timing.py`). The next request waits for the answer, so what a camera's images wait
for each other behind a slow one is not in a latency. The golden images are run first, and a bundle that answers
differently from its reference is not timed. What disturbs (start-up, stages, power) is measured in passes of its own.
"""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgemed import __version__
from edgemed.bench_latency import latency_figures, p99_note
from edgemed.bench_stages import front_end_flops, front_end_share, stages
from edgemed.bundle import Bundle, open_bundle
from edgemed.conditions import (
    NOT_MEASURED,
    Snapshot,
    changes,
    forget_peak_memory,
    machine,
    peak_memory,
    snapshot,
    warnings,
)
from edgemed.errors import InputError, did_you_mean
from edgemed.gates import check_rows, default_gates
from edgemed.infer import Model, load
from edgemed.limits import cpu_limits, share_of_limit
from edgemed.phantoms import MIN_SIDE, phantom
from edgemed.power import power_of
from edgemed.records import least_batch, now
from edgemed.runtimes import ORDER, PlanModule, runtime_module
from edgemed.startup import start_up
from edgemed.timing import stability, timed

SCHEMA = "edgemed.bench/3"
LOADED_WITH = ("precision", "threads", "plan", "cuda_graph")  # the settings that `infer.load` takes, but the runtime
MODES = ("single-stream", "burst", "sparse")
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Settings:
    """What to measure. The names are those of the flags, but for iterations, which programs set.

    runtime: "auto", "all", or a name of `runtimes.ORDER`. streams: requests in flight (burst); idle_ms: milliseconds
    between requests (sparse). batches: images per request. image_size: side of the square images in pixels; None = the
    size that the bundle was built for. threads: CPU threads of a request; None = all cores. warmup, duration: seconds.
    iterations: so many requests of each stream in place of a duration. include: "decode" begins at a JPEG of a
    phantom in memory, and ends at the decision. plan: one of the bundle's, by its id; None = the best.
    cuda_graph: whether a plan of one shape is captured into a CUDA graph.
    """

    runtime: str = "auto"
    precision: str = "fp32"
    mode: str = "single-stream"
    streams: int = 1
    idle_ms: float = 0.0
    batches: tuple[int, ...] = (1,)
    image_size: int | None = None
    threads: int | None = None
    warmup: float = 1.0
    duration: float = 5.0
    iterations: int | None = None
    include: tuple[str, ...] = ()
    plan: str | None = None
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"--mode '{self.mode}' is unknown.{did_you_mean(self.mode, MODES)}")
        if (self.mode == "burst") != (self.streams > 1) or self.streams < 1:
            raise InputError(f"--mode burst takes --streams of 2 or more, and no other mode does; got {self.streams}")
        if (self.mode == "sparse") != (self.idle_ms > 0) or self.idle_ms < 0:
            raise InputError(f"--mode sparse takes --idle-ms above 0, and no other mode does; got {self.idle_ms:g}")
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise InputError("--batches takes numbers of images from 1 on, each once, such as 1,4,8")
        if self.warmup < 0 or not self.duration > 0:
            raise InputError("--warmup takes seconds from 0 on, --duration above 0")
        if self.iterations is not None and self.iterations < 1:
            raise InputError(f"Settings(iterations={self.iterations}): give 1 or more, or None for a duration")
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"--image-size is {self.image_size}; give the side of the images in pixels")
        if unknown := set(self.include) - {"decode"}:
            raise InputError(f"--include '{min(unknown)}' is unknown; there is decode")

    @property
    def measured(self) -> str:
        """What a sample is, in words."""
        way = "JPEG in memory to decision" if self.include else "pixels in memory to probabilities"
        if self.mode == "burst":
            return f"{way}, {self.streams} requests in flight"
        return f"{way}, one request at a time" + (f", {self.idle_ms:g} ms apart" if self.mode == "sparse" else "")


def bench(bundle: str | os.PathLike[str] | Bundle, settings: Settings = Settings()) -> dict[str, Any]:
    """Measure, and give a report that is ready for JSON; `bench_report` shows it, `bench_diff` compares two.

    The report: schema, edgemed, created; measured (in words); bundle; settings; machine; runtimes, one for each
    that was asked for: {name, not_run} with the reason, or {name, version, precision, device, threads, reason, state,
    plan (its id, or None), correctness (golden images, largest error), start (see `startup.start_up`), limits (of the
    CPU), results}. A result is of one batch size; see `_result`.

    Raises InputError for a bundle or setting that cannot be used, GateError where a golden image differs.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    takes = opened.manifest.input
    side = takes.opt_side if settings.image_size is None else settings.image_size
    if not takes.min_side <= side <= takes.max_side:
        raise InputError(f"--image-size {side}: this bundle takes sides from {takes.min_side} to {takes.max_side}")
    if settings.runtime != "all":
        runtimes = [_runtime(opened, settings.runtime, settings, side)]
    else:
        runtimes = [_tried(opened, name, settings, side) for name in ORDER]
        if not any("results" in entry for entry in runtimes):
            raise InputError(
                "no runtime works here: " + "; ".join(f"{one['name']}: {one['not_run']}" for one in runtimes)
            )
    manifest = opened.manifest
    return {
        "schema": SCHEMA,
        "edgemed": __version__,
        "created": now(),
        "measured": settings.measured,
        "bundle": {
            "path": str(opened.path),
            "id": manifest.bundle_id,
            "flops_per_image": manifest.flops,
            "weight_bytes": manifest.weight_bytes,
        },
        "settings": {**asdict(settings), "image_size": side},
        "machine": machine(),
        "runtimes": runtimes,
    }


def results(report: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(runtime, result) of every measurement in a report."""
    for runtime in report["runtimes"]:
        for result in runtime.get("results", ()):
            yield runtime, result


def _tried(bundle: Bundle, name: str, settings: Settings, side: int) -> dict[str, Any]:
    reason = runtime_module(name).availability()
    if reason is None:
        try:
            return _runtime(bundle, name, settings, side)
        except InputError as error:
            reason = str(error)
    return {"name": name, "not_run": reason}


def _runtime(bundle: Bundle, name: str, settings: Settings, side: int) -> dict[str, Any]:
    """A runtime's part of the report: correctness first, then the start, then each batch size."""
    chosen = {key: getattr(settings, key) for key in LOADED_WITH}
    model = load(bundle, runtime=name, **chosen)
    if model.record is not None:
        low, _, high = model.record.batch
        if not low <= min(settings.batches) <= max(settings.batches) <= high:
            asked = ",".join(map(str, settings.batches))
            raise InputError(f"--batches {asked}: plan {model.record.id} takes {low} to {high} images; see --plan")
    plan = None if model.record is None else model.record.id  # the start-up's process takes the same one
    correctness = _correctness(model)
    on_cpu = not isinstance(runtime_module(model.runtime), PlanModule)
    entry: dict[str, Any] = {
        "name": model.runtime,
        "version": model.session.version,
        "device": model.session.device,
        "threads": model.session.threads,
        "precision": settings.precision,
        "reason": model.reason,
        "state": model.state,
        "plan": plan,
        "correctness": correctness,
        "start": start_up(bundle.path, runtime=model.runtime, side=side, **chosen | {"plan": plan}),
        "limits": cpu_limits(model.session.threads) if on_cpu else NOT_MEASURED,
    }
    entry["results"] = [_result(model, batch, side, settings, entry["limits"]) for batch in settings.batches]
    return entry


def _correctness(model: Model) -> dict[str, Any] | str:
    """How the golden images came out; not measured where a plan takes none of their sizes."""
    if not model.golden():
        return NOT_MEASURED
    found, gates = model.self_test(), asdict(default_gates(model.precision))
    return {"golden_images": found.n, "max_prob_error": found.max_prob_error, "gates": gates}


def _result(model: Model, batch: int, side: int, settings: Settings, limits: Any) -> dict[str, Any]:
    """One measurement.

    batch, samples; latency_ms of a request (`bench_latency`); p99_note; throughput_images_per_s (None in sparse mode);
    stability; stages_ms; front_end_share; limit (`limits.share_of_limit`); peak_host_bytes; conditions, warnings;
    power; times_ms: every sample.
    """
    image = phantom("oval", 0, max(side, MIN_SIDE), max(side, MIN_SIDE))[:side, :side]
    # Different rows, each darker than the one before, and every second a negative: rows that are mixed up would show.
    pixels = np.stack([np.uint8((255 - image if k % 2 else image) * (1 - k / (2 * batch))) for k in range(batch)])
    request = _decoding(image, batch) if settings.include else lambda model_: model_.predict_pixels(pixels)

    def call() -> object:
        return request(model)

    idle, part = settings.idle_ms / 1e3, settings.duration / 5  # seconds; part: of each pass besides
    call()  # compiles this batch size
    if batch > 1:  # of one, the golden images have shown it
        least = least_batch(model.record)
        check_rows(model.outputs, pixels, least, settings.precision, f"{model.runtime}, a batch of {batch},")
    gc.collect()
    fresh = forget_peak_memory()
    before: list[Snapshot] = []
    found = timed(
        call,
        seconds=settings.duration,
        requests=settings.iterations,
        streams=settings.streams,
        idle=idle,
        warmup=settings.warmup,
        begin=lambda: before.append(snapshot()),
    )
    conditions = changes(before[0], snapshot())
    peak = peak_memory() if fresh else NOT_MEASURED
    latency = latency_figures(found.latencies, found.seconds)
    counted = batch * len(found.latencies) / found.seconds  # streams do not all end at once
    mean = latency["mean"]
    bounds = [each and counted * mean["value"] / each for each in (mean["high"], mean["low"])]
    rate = dict(zip(("value", "low", "high"), (counted, *bounds), strict=True))
    manifest = model.bundle.manifest
    return {
        "batch": batch,
        "samples": len(found.latencies),
        "latency_ms": latency,
        "p99_note": None if latency["p99"] else p99_note(len(found.latencies), found.seconds),
        "throughput_images_per_s": None if settings.mode == "sparse" else rate,
        "stability": stability(found.latencies)._asdict(),
        "stages_ms": stages(model, request, part, decodes=bool(settings.include), idle=idle),
        "front_end_share": front_end_share(model, pixels, latency["p50"]["value"], part),
        "limit": NOT_MEASURED
        if limits == NOT_MEASURED
        else share_of_limit(
            limits,
            flops=manifest.flops + front_end_flops(manifest.size, side)
            - front_end_flops(manifest.size, manifest.input.opt_side),
            weight_bytes=manifest.weight_bytes,
            pixel_bytes=image.nbytes,
            batch=batch,
            images_per_s=1e3 * batch / mean["value"] if settings.mode == "sparse" else counted,
        ),
        "peak_host_bytes": peak,
        "conditions": conditions,
        "warnings": warnings(machine(), conditions),
        "power": power_of(
            call, images=batch, seconds=part, streams=settings.streams, idle=idle, warmup=settings.warmup
        ),
        "times_ms": found.latencies,
    }


def _decoding(image: NDArray[np.uint8], batch: int) -> Callable[[Model], object]:
    """A request that begins with encoded files in memory and ends with the decisions."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    files: list[Any] = [buffer.getvalue()] * batch
    return lambda model: model(files, batch=batch)
