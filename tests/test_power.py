"""Power and energy per image from recorded sensors, and "not measured" where there are none."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import machine_trees as trees
import pytest

from edgemed import nvml
from edgemed.power import Meter, all_meters, power_of


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "first_gpu", lambda: None)


def read(root: Path) -> dict[str, float | None]:
    return {f"{meter.name} ({meter.unit})": meter.read() for meter in all_meters(root)}


def test_a_jetsons_rails_are_voltage_times_current(tmp_path: Path) -> None:
    found = read(trees.write(tmp_path, trees.ORIN_NANO))
    assert found == {"rail VDD_IN (W)": pytest.approx(6.0), "rail VDD_CPU_GPU_CV (W)": pytest.approx(1.996)}


def test_jetpack_4_gives_milliwatts(tmp_path: Path) -> None:
    found = read(trees.write(tmp_path, trees.NANO_JETPACK_4))
    assert found == {"rail POM_5V_IN (W)": pytest.approx(2.317), "rail POM_5V_GPU (W)": pytest.approx(0.119)}


def test_rapl_counts_the_package_and_not_its_parts_twice(tmp_path: Path) -> None:
    assert read(trees.write(tmp_path, trees.DESKTOP)) == {"rapl package-0 (J)": pytest.approx(1.0)}
    assert [meter.wraps_at for meter in all_meters(tmp_path)] == [pytest.approx(262143.32885)]  # joules, too


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError])
def test_a_counter_that_only_root_may_read_is_not_there(
    error: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(path: Path, *given: str, **named: str) -> str:
        if path.name == "energy_uj":  # refused here, since root may read every file
            raise error(path)
        return read_text(path, *given, **named)

    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", unreadable)
    assert all_meters(trees.write(tmp_path, trees.DESKTOP)) == []


def test_the_gpus_counter_is_preferred_to_polling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting, polled = trees.gpu(), trees.gpu(nvmlDeviceGetTotalEnergyConsumption=None)
    monkeypatch.setattr(nvml, "first_gpu", lambda: counting)
    assert read(tmp_path) == {"gpu (J)": pytest.approx(123.456)}
    monkeypatch.setattr(nvml, "first_gpu", lambda: polled)
    assert read(tmp_path) == {"gpu (W)": pytest.approx(71.5)}


def test_a_rail_that_reads_nothing_at_times_is_read_all_the_same() -> None:
    watts = itertools.cycle([0.0, 4.0])
    found = power_of(lambda: time.sleep(0.02), images=1, seconds=0.4, meters=[Meter("rail", "W", lambda: next(watts))])
    assert isinstance(found, dict)
    assert 1 < found["sources"][0]["watts"] < 3


def test_energy_per_image_of_a_counter_and_of_a_polled_rail() -> None:
    joules = itertools.count(100.0, 8.0)  # 8 J between the two readings
    meters = [Meter("package", "J", lambda: next(joules)), Meter("rail", "W", lambda: 5.0)]
    found = power_of(lambda: time.sleep(0.02), images=4, seconds=0.2, meters=meters)
    assert isinstance(found, dict)
    counter, rail = found["sources"]
    assert found["images"] % 4 == 0
    assert counter["watts"] * found["seconds"] == pytest.approx(8.0)
    assert counter["joules_per_image"] * found["images"] == pytest.approx(8.0)
    assert rail["watts"] == 5.0
    assert rail["joules_per_image"] == pytest.approx(5.0 * found["seconds"] / found["images"])
    assert rail["readings"] >= 2


def test_waiting_is_in_the_energy_of_a_sparse_image() -> None:
    meters = [Meter("rail", "W", lambda: 5.0)]
    found = power_of(lambda: None, images=1, seconds=0.1, idle=0.05, meters=meters)
    assert isinstance(found, dict)
    assert found["images"] <= 3
    assert found["sources"][0]["joules_per_image"] > 5.0 * 0.05


def test_what_a_stream_does_to_set_itself_up_is_in_no_images_energy() -> None:
    ready = threading.local()
    energy = [0.0]  # J: each set-up costs 100, each call 1
    counting = threading.Lock()

    def call() -> None:
        with counting:
            energy[0] += 1 if hasattr(ready, "done") else 100
        ready.done = True
        time.sleep(0.01)

    meters = [Meter("package", "J", lambda: energy[0])]
    found = power_of(call, images=1, seconds=0.1, streams=3, warmup=0.01, meters=meters)
    assert isinstance(found, dict)
    assert found["sources"][0]["joules_per_image"] == pytest.approx(1.0, abs=0.2)


def test_a_counter_that_starts_anew_counts_on() -> None:
    readings = iter([990.0, 30.0])
    found = power_of(lambda: None, images=1, seconds=0.01, meters=[Meter("m", "J", lambda: next(readings), 1000.0)])
    assert isinstance(found, dict)
    assert found["sources"][0]["watts"] * found["seconds"] == pytest.approx(40.0)


def test_without_a_source_it_is_not_measured(tmp_path: Path) -> None:
    assert power_of(lambda: None, images=1, seconds=0.01, meters=all_meters(tmp_path)) == "not measured"
    failing = [Meter("a", "J", lambda: None), Meter("b", "W", lambda: None)]
    assert power_of(lambda: None, images=1, seconds=0.01, meters=failing) == "not measured"
