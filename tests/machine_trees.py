"""The files of other machines, as their kernels show them, written below a folder: what the readers of state are shown.

Layouts: Linux cpufreq and powercap documentation; ina3221's hwmon documentation; Jetson Linux Developer Guide, "Power
monitor", for the names of the rails and the folders of JetPack 4 (iio) and of JetPack 5 and newer (hwmon).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any


def write(root: Path, files: dict[str, str]) -> Path:
    """Each file below `root`, with a final newline as the kernel's have it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


INA = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
ORIN_NANO = {
    f"{INA}/name": "ina3221",
    f"{INA}/in1_label": "VDD_IN",
    f"{INA}/in1_input": "5000",  # mV
    f"{INA}/curr1_input": "1200",  # mA
    f"{INA}/in2_label": "VDD_CPU_GPU_CV",
    f"{INA}/in2_input": "4990",
    f"{INA}/curr2_input": "400",
    f"{INA}/in3_label": "NC",
    f"{INA}/in3_input": "0",
    f"{INA}/curr3_input": "0",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/max_freq": "624750000",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "48562",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "729600",
}

IIO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
NANO_JETPACK_4 = {
    f"{IIO}/rail_name_0": "POM_5V_IN",
    f"{IIO}/in_power0_input": "2317",  # mW
    f"{IIO}/rail_name_1": "POM_5V_GPU",
    f"{IIO}/in_power1_input": "119",
}

RAPL = "sys/class/powercap"
DESKTOP = {
    f"{RAPL}/intel-rapl:0/name": "package-0",
    f"{RAPL}/intel-rapl:0/energy_uj": "1000000",
    f"{RAPL}/intel-rapl:0/max_energy_range_uj": "262143328850",
    f"{RAPL}/intel-rapl:0:0/name": "core",  # contained in the package
    f"{RAPL}/intel-rapl:0:0/energy_uj": "700000",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: CPU\ncpu MHz\t\t: 3400.123\n\nprocessor\t: 1\ncpu MHz\t\t: 800.000",
}


class Cuda:
    """Stands in for libcuda.so.1, which shows the GPUs at these PCI addresses in this order."""

    def __init__(self, *addresses: bytes) -> None:
        self.addresses = addresses

    def cuInit(self, flags: Any) -> int:  # noqa: N802
        return 0 if self.addresses else 100  # CUDA_ERROR_NO_DEVICE

    def cuDeviceGet(self, device: Any, ordinal: Any) -> int:  # noqa: N802
        device._obj.value = ordinal.value
        return 0

    def cuDeviceGetPCIBusId(self, address: Any, length: Any, device: Any) -> int:  # noqa: N802
        address.value = self.addresses[device.value]
        return 0


class Nvml:
    """Stands in for libnvidia-ml.so.1: GPUs that are hot and throttled, whose energy counter counts."""

    addresses: tuple[bytes, ...] = (b"0000:17:00.0", b"0000:65:00.0")

    def __init__(self, **numbers: int | None) -> None:
        self.numbers: dict[str, int | None] = {
            "nvmlDeviceGetPowerUsage": 71_500,  # mW
            "nvmlDeviceGetEnforcedPowerLimit": 72_000,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x1 | 0x4 | 0x40,
            "nvmlDeviceGetClockInfo": 1590,
            "nvmlDeviceGetMaxClockInfo": 2040,
            "nvmlDeviceGetTemperature": 81,
            "nvmlDeviceGetTotalEnergyConsumption": 123_456,  # mJ
            **numbers,
        }

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.addresses)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        handle._obj.value = 70 + index.value
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, address: bytes, handle: Any) -> int:  # noqa: N802
        if address not in self.addresses:
            return 6  # NVML_ERROR_NOT_FOUND
        handle._obj.value = 70 + self.addresses.index(address)
        return 0

    def nvmlDeviceGetName(self, handle: Any, buffer: Any, length: Any) -> int:  # noqa: N802
        buffer.value = b"NVIDIA L4"
        return 0

    def nvmlSystemGetDriverVersion(self, buffer: Any, length: Any) -> int:  # noqa: N802
        buffer.value = b"580.95.05"
        return 0

    def __getattr__(self, name: str) -> Any:
        if name not in self.numbers:
            raise AttributeError(name)

        def number(handle: Any, *arguments: Any) -> int:
            value = self.numbers[name]
            if value is None:
                return 3  # NVML_ERROR_NOT_SUPPORTED
            arguments[-1]._obj.value = value
            return 0

        return number


def gpu(**numbers: int | None) -> tuple[Any, Any]:
    """A handle as `nvml.first_gpu` gives it."""
    return Nvml(**numbers), ctypes.c_void_p(7)
