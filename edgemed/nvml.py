"""What an NVIDIA GPU says of itself: clocks, throttling, temperature, power, energy. By ctypes; no package is needed.

Why: a latency without the clocks at which it was measured cannot be repeated, and the energy counter of the GPU costs
no polling. `libnvidia-ml.so.1` comes with the driver; where it is missing every function here says None. The GPU is
CUDA's number 0, which the engine runs on: CUDA leaves out what CUDA_VISIBLE_DEVICES does not name and puts the fastest
first, NVML knows neither, so that the two agree on the PCI address alone.

    python -c "from edgemed import nvml; print(nvml.gpu_state())"

Source: NVML API reference (nvml.h) and CUDA driver API (cuda.h), whose names and numbers are used.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, TypeAlias

Gpu: TypeAlias = "tuple[Any, Any]"
"""(library, handle)"""

_SM, _MEMORY = 1, 2  # nvmlClockType_t
THROTTLE = {
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "thermal, software",
    0x040: "thermal, hardware",
    0x080: "power brake",
    0x100: "display clocks",
}
"""nvmlClocksThrottleReason*; 1 is an idle GPU, which is no throttling."""


def gpu_state(gpu: Gpu | None = None) -> dict[str, Any] | None:
    """The GPU now; None without one. A figure that this GPU does not give is None.

    name, driver; sm_mhz, sm_mhz_max, memory_mhz; temperature_c; power_w, power_limit_w; throttling: list of reasons.
    """
    gpu = gpu or first_gpu()
    if gpu is None:
        return None
    library, handle = gpu
    uint, ulong = ctypes.c_uint, ctypes.c_ulonglong
    power, limit = (
        _number(library, name, uint, handle) for name in ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetEnforcedPowerLimit")
    )
    bits = _number(library, "nvmlDeviceGetCurrentClocksThrottleReasons", ulong, handle)
    return {
        "name": _text(library, "nvmlDeviceGetName", handle),
        "driver": _text(library, "nvmlSystemGetDriverVersion"),
        "sm_mhz": _number(library, "nvmlDeviceGetClockInfo", uint, handle, _SM),
        "sm_mhz_max": _number(library, "nvmlDeviceGetMaxClockInfo", uint, handle, _SM),
        "memory_mhz": _number(library, "nvmlDeviceGetClockInfo", uint, handle, _MEMORY),
        "temperature_c": _number(library, "nvmlDeviceGetTemperature", uint, handle, 0),
        "power_w": None if power is None else power / 1e3,
        "power_limit_w": None if limit is None else limit / 1e3,
        "throttling": None if bits is None else [reason for bit, reason in THROTTLE.items() if bits & bit],
    }


def energy_joules(gpu: Gpu | None = None) -> float | None:
    """Joules since the driver was loaded (Volta and newer); None where the GPU does not count them."""
    gpu = gpu or first_gpu()
    if gpu is None:
        return None
    millijoules = _number(gpu[0], "nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong, gpu[1])
    return None if millijoules is None else millijoules / 1e3


@functools.cache
def first_gpu() -> Gpu | None:
    """The driver's library and the handle of the GPU in use; None without one."""
    try:
        return open_gpu(ctypes.CDLL("libnvidia-ml.so.1"), ctypes.CDLL("libcuda.so.1"))
    except OSError:
        return None


def open_gpu(library: Any, cuda: Any) -> Gpu | None:
    """CUDA's GPU number 0 as NVML knows it; None where CUDA shows none, or NVML does not know it."""
    device, count, handle = ctypes.c_int(), ctypes.c_uint(), ctypes.c_void_p()
    address = ctypes.create_string_buffer(32)
    if cuda.cuInit(ctypes.c_uint(0)) or cuda.cuDeviceGet(ctypes.byref(device), ctypes.c_int(0)):
        return None
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return None
    if count.value == 1:  # the GPU of a Jetson has no PCI address
        failed = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(0), ctypes.byref(handle))
    else:
        failed = cuda.cuDeviceGetPCIBusId(address, ctypes.c_int(len(address)), device)
        failed = failed or library.nvmlDeviceGetHandleByPciBusId_v2(address.value, ctypes.byref(handle))
    return None if failed else (library, handle)


def _number(library: Any, function: str, kind: type[Any], *arguments: Any) -> int | None:
    """What an NVML function writes to its last argument; None where it fails, or the driver has no such function."""
    value = kind()
    try:
        failed = getattr(library, function)(*arguments, ctypes.byref(value))
    except AttributeError:
        return None
    return None if failed else int(value.value)


def _text(library: Any, function: str, *arguments: Any) -> str | None:
    buffer = ctypes.create_string_buffer(96)
    failed = getattr(library, function)(*arguments, buffer, ctypes.c_uint(len(buffer)))
    return None if failed else buffer.value.decode(errors="replace")
