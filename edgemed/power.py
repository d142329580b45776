"""Power and energy per image, measured in a pass of its own, since polling a sensor disturbs what is being timed.

Sources, each where it can be read: the GPU's energy counter or power (NVML); a Jetson's INA3221 sensors, a value per
rail, through sysfs (hwmon on JetPack 5 and newer, iio before); the CPU packages' RAPL counters. Counters are read twice
and cost nothing between; power is polled every 50 ms. A rail or package measures all that hangs on it, so other
processes are in the figure too. Without any source the answer is "not measured".

    power_of(call, images=1, seconds=5.0)

Sources: the kernel's documentation of powercap and of ina3221; Jetson Linux Developer Guide, "Power monitor".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemed import nvml
from edgemed.conditions import NOT_MEASURED, ROOT, text
from edgemed.timing import timed

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Meter:
    """A source. read: joules so far (of a counter that restarts at `wraps_at`), or watts now; None: it failed."""

    name: str
    unit: str  # "J", counted, or "W", polled
    read: Callable[[], float | None]
    wraps_at: float = 0.0


def power_of(
    call: Callable[[], object],
    *,
    images: int,
    seconds: float,
    streams: int = 1,
    idle: float = 0.0,
    warmup: float = 0.0,
    meters: Sequence[Meter] | None = None,
) -> dict[str, Any] | str:
    """Mean power in watts and energy per image in joules of `call`, run again and again; images: how many one call has.

    streams, idle, warmup: as `timing.timed` takes them. What the machine draws while it waits is in the energy of its
    images; the warm-up, in which each stream sets itself up, is not.

    {"seconds", "images", "poll_ms", "sources": [{"name", "watts", "joules_per_image", "readings"}, ...]}, or "not
    measured" where no source answers. meters: by default all that this machine has.
    """
    sources = all_meters() if meters is None else meters
    polled: dict[str, list[float]] = {meter.name: [] for meter in sources if meter.unit == "W"}
    done = threading.Event()

    def poll() -> None:
        while True:
            for meter in sources:
                if meter.unit == "W" and (value := meter.read()) is not None:
                    polled[meter.name].append(value)
            if done.wait(POLL_SECONDS):
                return

    if not sources:
        return NOT_MEASURED
    counters = [meter for meter in sources if meter.unit == "J"]
    poller = threading.Thread(target=poll, daemon=True)
    began: list[float] = []
    before: list[float | None] = []

    def begin() -> None:
        if polled:
            poller.start()
        before.extend(meter.read() for meter in counters)
        began.append(time.perf_counter())

    try:
        calls = len(timed(call, seconds=seconds, streams=streams, idle=idle, warmup=warmup, begin=begin).latencies)
        took, after = time.perf_counter() - began[0], [meter.read() for meter in counters]
    finally:
        done.set()
        if poller.ident is not None:
            poller.join()
    found: list[tuple[str, float, int]] = []  # name, watts, readings
    for meter, first, last in zip(counters, before, after, strict=True):
        if first is not None and last is not None:
            found.append((meter.name, (last - first + (meter.wraps_at if last < first else 0)) / took, 2))
    found += [(name, sum(values) / len(values), len(values)) for name, values in polled.items() if values]
    if not found:
        return NOT_MEASURED
    return {
        "seconds": took,
        "images": calls * images,
        "poll_ms": POLL_SECONDS * 1e3,
        "sources": [
            {"name": name, "watts": watts, "joules_per_image": watts * took / (calls * images), "readings": readings}
            for name, watts, readings in found
        ],
    }


def all_meters(root: Path = ROOT) -> list[Meter]:
    """Every source that this machine has and lets this user read."""
    return [meter for meter in (*_gpu(), *_jetson(root), *_rapl(root)) if meter.read() is not None]


def _gpu() -> Iterator[Meter]:
    if nvml.energy_joules() is not None:
        yield Meter("gpu", "J", nvml.energy_joules)
    else:
        yield Meter("gpu", "W", lambda: (nvml.gpu_state() or {}).get("power_w"))


def _rapl(root: Path) -> Iterator[Meter]:
    """The packages; their parts (intel-rapl:0:0) are contained in them. Since 2020 only root may read the counters."""
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        if folder.name.count(":") == 1:
            wraps_at = _number(folder / "max_energy_range_uj", 1e-6)
            yield Meter(f"rapl {text(folder / 'name')}", "J", _reader(folder / "energy_uj", 1e-6), wraps_at or 0.0)


def _jetson(root: Path) -> Iterator[Meter]:
    drivers = root / "sys/bus/i2c/drivers"
    for label in sorted(drivers.glob("ina3221/*/hwmon/hwmon*/in*_label")):
        number = label.name[len("in") : -len("_label")]
        volts, amperes = (_reader(label.with_name(f"{kind}{number}_input"), 1e-3) for kind in ("in", "curr"))
        if text(label) != "NC":  # not connected
            yield Meter(f"rail {text(label)}", "W", _product(volts, amperes))
    for label in sorted(drivers.glob("ina3221x/*/iio*/rail_name_*")):
        number = label.name.rpartition("_")[2]
        yield Meter(f"rail {text(label)}", "W", _reader(label.with_name(f"in_power{number}_input"), 1e-3))


def _product(volts: Callable[[], float | None], amperes: Callable[[], float | None]) -> Callable[[], float | None]:
    def watts() -> float | None:
        u, i = volts(), amperes()
        return None if u is None or i is None else u * i

    return watts


def _reader(path: Path, scale: float) -> Callable[[], float | None]:
    return lambda: _number(path, scale)


def _number(path: Path, scale: float) -> float | None:
    """The whole number in a file times `scale`; None where it cannot be read."""
    value = text(path)
    return int(value) * scale if value.isdigit() else None
