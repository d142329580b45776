"""Under which conditions a latency was measured: the machine, its clocks, and who else was using it. Numpy, no torch.

Why: a figure is worth what its conditions are. The load average says little (it counts this process too, and lags by a
minute), so the CPU time that *other* processes took during the measurement is computed: all of the machine's, from
/proc/stat, less this process's own. What a machine does not tell is "not measured".

    before = snapshot(); measure(); changes(before, snapshot())      # a dictionary, ready for JSON
    warnings(...)                                                    # what of it makes the figures doubtful

Every reader takes the root of the file system, so that the tests can show it the files of other machines.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemed import nvml
from edgemed.preflight import cpu

NOT_MEASURED = "not measured"
ROOT = Path("/")
OTHERS = 0.1  # CPUs that other processes may use before it is a warning
SLOWER_CLOCK = 0.95
_QUIET_GOVERNORS = ("performance", NOT_MEASURED)
_GPU_FOLDERS = ("*.gpu", "*.ga10b", "*.gv11b", "*.gp10b")  # a Jetson's, in /sys/class/devfreq


@dataclass(frozen=True)
class Snapshot:
    """A moment: seconds of a clock; CPU seconds since boot, all processes' and what a hypervisor withheld; our own."""

    clock: float
    busy: float | None
    stolen: float | None
    own: float  # with the processes that it started, those that have ended too
    state: dict[str, Any]  # what `changes` shows as before and after


def machine(root: Path = ROOT) -> dict[str, Any]:
    """The machine and the software that do not change while measuring."""
    gpu = nvml.gpu_state()
    return {
        "cpu": cpu()[0],
        "cores": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "governor": text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "power_mode": power_mode(),
        "gpu": gpu["name"] if gpu else NOT_MEASURED,
        "gpu_driver": gpu["driver"] if gpu else NOT_MEASURED,
    }


def snapshot(root: Path = ROOT) -> Snapshot:
    """This moment."""
    busy, stolen = _cpu_seconds(text(root / "proc/stat"))
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    state = {
        "cpu_mhz": cpu_mhz(root),
        "temperatures_c": temperatures(root),
        "load_average": os.getloadavg()[0],
        "gpu": _gpu(root) or NOT_MEASURED,
    }
    spent = sum(one.ru_utime + one.ru_stime for one in own) + _living_descendants_seconds(root)
    return Snapshot(time.monotonic(), busy, stolen, spent, state)


def _living_descendants_seconds(root: Path) -> float:
    """CPU seconds of the processes that this one, or one of them, has started and that still run."""
    parents, spent = {}, {}
    for stat in (root / "proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()  # from the third on, see proc(5)
            parents[int(stat.parent.name)] = int(fields[1])
            spent[int(stat.parent.name)] = int(fields[11]) + int(fields[12])
    family, found = {os.getpid()}, set[int]()
    while family:
        family = {pid for pid, parent in parents.items() if parent in family}
        found |= family
    return sum(spent[pid] for pid in found) / os.sysconf("SC_CLK_TCK")


def changes(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """What happened between two snapshots, ready for JSON.

    seconds; other_processes_cpus, own_cpus, stolen_cpus: CPUs in use on average (1.0 = one core the whole time), by
    others, by this process, and by other guests of the hypervisor; before, after: clocks in MHz, temperatures, GPU.
    """
    seconds = max(after.clock - before.clock, 1e-9)
    own = (after.own - before.own) / seconds
    others: float | str = NOT_MEASURED
    stolen: float | str = NOT_MEASURED
    if before.busy is not None and after.busy is not None:
        others = max(0.0, (after.busy - before.busy) / seconds - own)
    if before.stolen is not None and after.stolen is not None:
        stolen = (after.stolen - before.stolen) / seconds
    return {
        "seconds": seconds,
        "other_processes_cpus": others,
        "own_cpus": own,
        "stolen_cpus": stolen,
        "before": before.state,
        "after": after.state,
    }


def warnings(machine_: dict[str, Any], changed: dict[str, Any]) -> list[str]:
    """What makes a measurement under these conditions doubtful, a line each; empty where nothing does."""
    found = []
    others, stolen = changed["other_processes_cpus"], changed["stolen_cpus"]
    if others != NOT_MEASURED and others > OTHERS:
        found.append(f"other processes used {others:.1f} of {machine_['cores']} CPUs during the measurement")
    if stolen != NOT_MEASURED and stolen > OTHERS:
        found.append(f"other guests of this virtual machine's host used {stolen:.1f} CPUs")
    if machine_["governor"] not in _QUIET_GOVERNORS:
        found.append(f"the CPU's governor is {machine_['governor']}: clocks follow the load; set it to performance")
    clocks = [changed[when]["cpu_mhz"] for when in ("before", "after")]
    if NOT_MEASURED not in clocks and max(clocks[1]) < SLOWER_CLOCK * max(clocks[0]):
        found.append(f"the CPU's clock fell from {max(clocks[0]):.0f} to {max(clocks[1]):.0f} MHz")
    gpus = [{} if (gpu := changed[when]["gpu"]) == NOT_MEASURED else gpu for when in ("before", "after")]
    rates = [gpu.get("sm_mhz") for gpu in gpus]
    if all(rates) and rates[1] < SLOWER_CLOCK * rates[0]:
        found.append(f"the GPU's clock fell from {rates[0]:.0f} to {rates[1]:.0f} MHz")
    for when, gpu in zip(("before", "after"), gpus, strict=True):
        if gpu.get("throttling"):
            found.append(f"the GPU was throttled {when} the measurement: {', '.join(gpu['throttling'])}")
    return found


def cpu_mhz(root: Path = ROOT) -> list[float] | str:
    """The clock of each CPU in MHz."""
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    clocks = [int(value) / 1e3 for path in folders if (value := text(path)).isdigit()]
    if not clocks:
        lines = (line.partition(":") for line in text(root / "proc/cpuinfo").splitlines())
        clocks = [float(value) for key, _, value in lines if key.strip() == "cpu MHz"]
    return clocks or NOT_MEASURED


def temperatures(root: Path = ROOT) -> dict[str, float] | str:
    """Degrees Celsius by the name of the thermal zone."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    values = {text(zone / "type"): text(zone / "temp") for zone in zones}
    return {name: int(value) / 1e3 for name, value in values.items() if value.lstrip("-").isdigit()} or NOT_MEASURED


def power_mode() -> str:
    """A Jetson's power mode, as `nvpmodel -q` names it."""
    program = shutil.which("nvpmodel")
    if program is None:
        return NOT_MEASURED
    try:
        done = subprocess.run([program, "-q"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return NOT_MEASURED
    modes = [line.partition(":")[2].strip() for line in done.stdout.splitlines() if line.startswith("NV Power Mode")]
    return modes[0] if modes and modes[0] else NOT_MEASURED


def peak_memory(root: Path = ROOT) -> int | str:
    """The most bytes of this process that were in memory since its start, or since `forget_peak_memory`."""
    for line in text(root / "proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return NOT_MEASURED


def forget_peak_memory() -> bool:
    """Let `peak_memory` begin anew; False where the kernel does not."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def text(path: Path) -> str:
    """The content of a file of the kernel's, or "not measured"."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or NOT_MEASURED
    except OSError:
        return NOT_MEASURED


def _cpu_seconds(stat: str) -> tuple[float | None, float | None]:
    """(busy, stolen) seconds of all CPUs from /proc/stat: user nice system idle iowait irq softirq steal guest ..."""
    if not stat.startswith("cpu "):
        return None, None
    ticks = [int(value) / os.sysconf("SC_CLK_TCK") for value in stat.splitlines()[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, steal = ticks  # a guest's time is part of user's
    return user + nice + system + irq + softirq, steal


def _gpu(root: Path) -> dict[str, Any]:
    """What NVML tells, and of a Jetson, whose NVML opens and then tells little, its files the rest."""
    told, files = nvml.gpu_state() or {}, _jetson_gpu(root) or {}
    return told | {name: value for name, value in files.items() if told.get(name) is None}


def _jetson_gpu(root: Path) -> dict[str, Any] | None:
    """The integrated GPU of a Jetson, whose clock stands in sysfs; None elsewhere."""
    for pattern in _GPU_FOLDERS:
        for folder in sorted((root / "sys/class/devfreq").glob(pattern)):
            clocks = [text(folder / name) for name in ("cur_freq", "max_freq")]
            if all(clock.isdigit() for clock in clocks):
                return {"name": folder.name, "sm_mhz": int(clocks[0]) / 1e6, "sm_mhz_max": int(clocks[1]) / 1e6}
    return None
