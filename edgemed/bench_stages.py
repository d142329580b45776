"""Where the time of one request goes: its stages, and the share of the resize inside the graph.

Why passes of their own: on a GPU the stages are marks on the stream, which a CUDA graph does not have; and the front
end is a part of one fused graph that no runtime reports alike. So the share of the front end is found from outside: the
same engine is run in turns on two sizes of image, and since everything after the resize is the same, what differs is
the front end's. `edgemed bench BUNDLE` shows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.conditions import NOT_MEASURED
from edgemed.infer import Model
from edgemed.runtimes import Session
from edgemed.timing import interleaved, percentile, ratio_interval, timed

STAGES = ("decode", "h2d", "compute", "d2h", "launch", "post")
"""Of a request: the JPEG, the copy to the device, the network, the copy back, what the runtime adds, the decision."""
ROUNDS = (10, 200)  # at least and at most, of the two sizes in turns


@dataclass(frozen=True)
class _Stopwatch:
    """A session that notes when each run began and ended, and on a GPU what its stages took."""

    session: Session
    runs: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)  # ns, ns, ms by stage

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        run_timed = getattr(self.session, "run_timed", None)  # TensorRT's
        begin = time.perf_counter_ns()
        outputs, spans = run_timed(images) if run_timed else (self.session.run(images), {})
        self.runs.append((begin, time.perf_counter_ns(), spans))
        return outputs  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def stages(
    model: Model, request: Callable[[Model], object], seconds: float, *, decodes: bool, idle: float = 0.0
) -> dict[str, Any]:
    """Median milliseconds of each stage of a request, and of how many `requests`: one after the other, `idle` s apart.

    decode: from the encoded file to pixels (None unless `decodes`); h2d, compute, d2h: upload, execution, download; on
    a CPU, which reads the pixels where they lie, compute is all of the runtime's work and the others are None; launch:
    what the runtime needs besides (None on a CPU); post: checks of input and answer, and the decision.
    """
    watch = _Stopwatch(model.session)
    watched = replace(model, session=watch)
    rows: list[dict[str, float]] = []

    def call() -> None:
        watch.runs.clear()
        begin = time.perf_counter_ns()
        request(watched)
        end = time.perf_counter_ns()
        engine = sum(last - first for first, last, _ in watch.runs) / 1e6
        before = (watch.runs[0][0] - begin) / 1e6
        row = {name: sum(spans[name] for _, _, spans in watch.runs) for name in watch.runs[0][2]}
        row = {**row, "launch": engine - sum(row.values())} if row else {"compute": engine}
        whole = (end - begin) / 1e6
        rows.append({**row, "decode": before, "post": whole - engine - (before if decodes else 0.0)})

    timed(call, seconds=seconds, idle=idle)
    found: dict[str, Any] = {"requests": len(rows)}
    for name in STAGES:
        known = name in rows[0] and (decodes or name != "decode")
        found[name] = percentile([row[name] for row in rows], 50) if known else None
    return found


def front_end_flops(size: int, side: int) -> int:
    """Of the two matrix products that resize an image of `side` pixels, two operations per multiply-add."""
    return 6 * size * side * (side + size)


def front_end_share(model: Model, pixels: NDArray[np.uint8], p50: float, seconds: float) -> dict[str, Any] | str:
    """The front end's part of a request's time (cast, resize, normalisation inside the graph), with its 95 % interval.

    pixels: (N, S, S, 3) uint8, the request. p50: its median in ms; seconds: about how long to measure. The front end's
    work is that of `front_end_flops`, so the difference between two sizes, drawn out to an image without pixels, is its
    time; on a GPU, the difference of the executions alone. An interval that reaches below 0 says that it is too small
    to be seen.

    {"value", "low", "high": 0 to 1; "other_side"; "rounds"}, or "not measured" for an engine of one fixed size.
    """
    side = pixels.shape[1]
    limits = model.bundle.manifest.input
    low_side, high_side = limits.min_side, limits.max_side
    if model.record is not None:
        low_side, high_side = max(low_side, model.record.image_side[0]), min(high_side, model.record.image_side[2])
    other = low_side if low_side * 2 <= side else min(high_side, side * 2)
    if not (other * 2 <= side or other * 2 >= side * 3):
        return f"{NOT_MEASURED}: the engine takes no size that differs enough"
    small, large = ROUNDS
    rounds = min(large, max(small, int(seconds * 1e3 / (2 * p50))))
    resized = np.ascontiguousarray(np.resize(pixels, (len(pixels), other, other, 3)))
    requests = {"this": pixels, "other": resized}
    reach = 1.0
    if run_timed := getattr(model.session, "run_timed", None):  # copies to a GPU grow with the image, too: not counted
        every: dict[str, list[float]] = {name: [] for name in requests}

        def compute(name: str) -> None:
            every[name].append(run_timed(requests[name])[1]["compute"])

        walls = interleaved({name: partial(compute, name) for name in requests}, rounds)
        found = {name: spans[-rounds:] for name, spans in every.items()}  # without the rounds of warm-up
        reach = percentile(found["this"], 50) / percentile(walls["this"], 50)
    else:
        found = interleaved({name: partial(model.predict_pixels, of) for name, of in requests.items()}, rounds)
    ratio = ratio_interval(found["other"], found["this"], paired=True)
    work, of_other = (front_end_flops(model.bundle.manifest.size, each) for each in (side, other))
    reach *= work / (work - of_other)
    low, high = sorted((1 - bound) * reach for bound in ratio[1:])
    return {"value": (1 - ratio.value) * reach, "low": low, "high": high, "other_side": other, "rounds": rounds}
