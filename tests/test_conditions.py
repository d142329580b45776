"""The conditions of a measurement: what a machine's files say, what others took of it, and what makes it doubtful."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine_trees as trees
import pytest

from edgemed import conditions, nvml
from edgemed.conditions import NOT_MEASURED, changes, machine, peak_memory, snapshot, warnings

STAT = "cpu  {user} 10 300 9000 50 5 15 {steal} 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "first_gpu", lambda: None)


def state(**values: Any) -> dict[str, Any]:
    """What `changes` gives of a quiet measurement, with changes."""
    moment = {"cpu_mhz": [3000.0, 2900.0], "temperatures_c": NOT_MEASURED, "load_average": 0.1, "gpu": NOT_MEASURED}
    quiet = {"other_processes_cpus": 0.02, "stolen_cpus": 0.0, "before": moment, "after": dict(moment)}
    return {**quiet, **values}


QUIET = {"cores": 4, "governor": "performance"}


def test_a_jetson_is_read_from_its_files(tmp_path: Path) -> None:
    found = snapshot(trees.write(tmp_path, trees.ORIN_NANO)).state
    assert found["cpu_mhz"] == [1510.4, 729.6]
    assert found["temperatures_c"] == {"cpu-thermal": 48.562}
    assert found["gpu"] == {"name": "17000000.gpu", "sm_mhz": 306.0, "sm_mhz_max": 624.75}
    assert machine(tmp_path)["governor"] == "schedutil"


def test_clocks_come_from_cpuinfo_where_there_is_no_cpufreq(tmp_path: Path) -> None:
    assert snapshot(trees.write(tmp_path, trees.DESKTOP)).state["cpu_mhz"] == [3400.123, 800.0]


def test_what_a_process_started_is_its_own_load() -> None:
    before = snapshot()
    burn = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    found = changes(before, snapshot())
    assert found["own_cpus"] * found["seconds"] > 0.5


def test_the_load_of_a_worker_that_still_runs_is_our_own() -> None:
    before = snapshot()
    burn = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\nprint(flush=True)\n"
    burn += "input()"
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        found = changes(before, snapshot())
        worker.communicate("\n")
    after = changes(before, snapshot())
    for each in (found, after):  # the worker's child burns; once it has ended, it is not counted twice
        assert 0.45 < each["own_cpus"] * each["seconds"] < 0.95


def test_what_a_machine_does_not_tell_is_not_measured(tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    found = changes(before, snapshot(tmp_path))
    for name in ("other_processes_cpus", "stolen_cpus"):
        assert found[name] == NOT_MEASURED
    for name in ("cpu_mhz", "temperatures_c", "gpu"):
        assert found["before"][name] == NOT_MEASURED
    assert (machine(tmp_path)["governor"], peak_memory(tmp_path)) == (NOT_MEASURED, NOT_MEASURED)
    assert warnings({**QUIET, "governor": NOT_MEASURED}, found) == []


def test_the_load_of_others_is_the_machines_less_our_own(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    first = snapshot(trees.write(tmp_path, {"proc/stat": STAT.format(user=1000, steal=7)}))
    second = snapshot(trees.write(tmp_path, {"proc/stat": STAT.format(user=1000 + 6 * ticks, steal=7 + ticks)}))
    first, second = (
        conditions.Snapshot(clock, one.busy, one.stolen, own, {})
        for one, clock, own in ((first, 100.0, 20.0), (second, 104.0, 24.0))
    )
    found = changes(first, second)
    assert found["own_cpus"] == pytest.approx(1.0)
    assert found["other_processes_cpus"] == pytest.approx(0.5)  # 6 s in 4 s, of which 4 s are ours
    assert found["stolen_cpus"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"other_processes_cpus": 0.9}, "other processes used 0.9 of 4 CPUs"),
        ({"stolen_cpus": 0.3}, "other guests"),
        ({"after": {**state()["after"], "cpu_mhz": [2000.0, 1800.0]}}, "clock fell from 3000 to 2000 MHz"),
        (
            {when: {**state()[when], "gpu": {"sm_mhz": mhz}} for when, mhz in (("before", 625), ("after", 306))},
            "GPU's clock fell from 625 to 306 MHz",
        ),
        ({"after": {**state()["after"], "gpu": nvml.gpu_state(trees.gpu())}}, "throttled after .*: power cap, thermal"),
    ],
)
def test_what_disturbs_is_a_warning(changed: dict[str, Any], message: str) -> None:
    assert warnings(QUIET, state()) == []
    [line] = warnings(QUIET, state(**changed))
    assert re.search(message, line)


def test_a_governor_that_changes_the_clock_is_a_warning() -> None:
    [line] = warnings({**QUIET, "governor": "powersave"}, state())
    assert "powersave" in line


def test_a_jetsons_power_mode_is_asked_of_nvpmodel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine()["power_mode"] == NOT_MEASURED
    program = tmp_path / "nvpmodel"
    program.write_text("#!/bin/sh\necho 'NV Power Mode: MAXN_SUPER'\necho 2\n")
    program.chmod(0o755)
    assert machine()["power_mode"] == "MAXN_SUPER"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert machine()["power_mode"] == NOT_MEASURED


def test_the_peak_of_memory_can_begin_anew() -> None:
    """In a process of its own: one that has trained keeps its freed memory (`loop.reuse_memory`)."""
    program = (
        "from edgemed.conditions import forget_peak_memory, peak_memory\n"
        "block = bytearray(b'x') * (200 << 20)\n"
        "high = peak_memory()\n"
        "del block\n"
        "print(high, forget_peak_memory(), peak_memory())"
    )
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    high, anew, after = run.stdout.split()
    assert int(high) > 200 << 20
    if anew == "False":
        pytest.skip("this kernel does not let the peak begin anew")
    assert int(after) < int(high) - (100 << 20)


def test_a_gpu_says_its_clocks_and_why_they_are_low() -> None:
    assert nvml.gpu_state(trees.gpu()) == {
        "name": "NVIDIA L4",
        "driver": "580.95.05",
        "sm_mhz": 1590,
        "sm_mhz_max": 2040,
        "memory_mhz": 1590,
        "temperature_c": 81,
        "power_w": 71.5,
        "power_limit_w": 72.0,
        "throttling": ["power cap", "thermal, hardware"],  # and it is not idle: that is no throttling
    }
    assert nvml.energy_joules(trees.gpu()) == pytest.approx(123.456)


def test_what_a_gpu_does_not_tell_is_none_and_the_rest_stays() -> None:
    silent = trees.gpu(nvmlDeviceGetPowerUsage=None, nvmlDeviceGetTotalEnergyConsumption=None)
    del silent[0].numbers["nvmlDeviceGetCurrentClocksThrottleReasons"]  # a driver without this function
    found = nvml.gpu_state(silent)
    assert found is not None
    assert (found["power_w"], found["throttling"], found["sm_mhz"]) == (None, None, 1590)
    assert nvml.energy_joules(silent) is None
    assert nvml.gpu_state() is None


def test_a_jetson_whose_nvml_opens_and_tells_nothing_still_tells_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "gpu_state", lambda: {"name": "Orin (nvgpu)", "sm_mhz": None, "throttling": None})
    found = snapshot(trees.write(tmp_path, trees.ORIN_NANO)).state["gpu"]
    assert found == {"name": "Orin (nvgpu)", "sm_mhz": 306.0, "sm_mhz_max": 624.75, "throttling": None}


def test_the_gpu_is_cudas_first_whatever_number_nvml_gives_it() -> None:
    def opened(library: trees.Nvml, *shown: bytes) -> int | None:
        gpu = nvml.open_gpu(library, trees.Cuda(*shown))
        return None if gpu is None else gpu[1].value

    library = trees.Nvml()
    first, second = library.addresses
    assert opened(library, first, second) == 70
    assert opened(library, second, first) == 71  # CUDA puts the fastest first
    assert opened(library, second) == 71  # CUDA_VISIBLE_DEVICES=1
    assert opened(library) is None  # CUDA_VISIBLE_DEVICES=-1
    assert opened(library, b"0000:99:00.0") is None  # not NVML's
    library.addresses = (b"",)
    assert opened(library, b"0000:00:00.0") == 70  # a Jetson's
