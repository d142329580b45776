"""The compiled CUDA kernels, loaded and launched through the CUDA driver: no torch, no CUDA runtime, no compiler.

It exists for devices without Triton and for callers without torch. `cuda.py` builds the public functions on it.
Needs the package cuda-bindings and the files that `make kernels` (`python -m edgemed.kernels.compile`) writes.

Check without a GPU: `python -m pytest tests/kernels/test_kernels_cuda.py` (a stand-in for libcuda runs on the CPU).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgemed.errors import EdgemedError, InputError
from edgemed.kernels.definition import Geometry, MaskPlan

FATBIN = "edgemed_kernels.fatbin"
BLOCK_THREADS = 128  # kBlockThreads and kMaskThreads of the .cuh files
PIXELS_PER_BLOCK = 1024


def binaries_folder() -> Path:
    """Where the compiled kernels of this installation belong: `build/kernels` of a checkout, else beside this file."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    return checkout / "build" / "kernels" if (checkout / "pyproject.toml").is_file() else package / "binaries"


def unavailable() -> str | None:
    """Why compiled kernels cannot be loaded here, or None. Whether there is a device shows at the first call."""
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return "cuda-bindings is not installed (pip install cuda-bindings)"
    if not (binaries_folder() / FATBIN).is_file():
        return f"{binaries_folder() / FATBIN} is missing (make kernels, or python -m edgemed.kernels.compile)"
    return None


@functools.cache
def _driver() -> Any:
    """The module `cuda.bindings.driver` after cuInit.

    Raises:
        EdgemedError: no cuda-bindings, no compiled kernels, no NVIDIA driver, or no device.
    """
    reason = unavailable()
    if reason is not None:
        raise EdgemedError(f"the backend cuda does not run here: {reason}")
    from cuda.bindings import driver

    try:
        status = driver.cuInit(0)[0]
    except RuntimeError as error:  # cuda-bindings raises a subclass of it where libcuda is not to be found
        raise EdgemedError(
            "the backend cuda does not run here: no NVIDIA driver (libcuda) is installed; use backend='numpy'"
        ) from error
    if status != driver.CUresult.CUDA_SUCCESS:
        raise EdgemedError(f"the backend cuda does not run here: cuInit says {status.name}; nvidia-smi shows why")
    return driver


def checked(result: tuple[Any, ...], step: str) -> Any:
    """The value of a driver call, which returns (status,) or (status, value).

    Raises:
        EdgemedError: the status is an error; the message says at which step.
    """
    status = result[0]
    if int(status) != 0:
        recompile = "; run `python -m edgemed.kernels.compile` with this device's own nvcc"
        hint = {
            "CUDA_ERROR_NO_BINARY_FOR_GPU": recompile,
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": recompile,
            "CUDA_ERROR_OUT_OF_MEMORY": "; use a smaller batch",
        }.get(status.name, "")
        raise EdgemedError(f"CUDA driver, {step}: {status.name}{hint}")
    return result[1] if len(result) > 1 else None


@functools.cache
def _kernel(name: str) -> Any:
    """The kernel of that name, for all devices (CUkernel)."""
    driver = _driver()
    return checked(driver.cuLibraryGetKernel(_library(), name.encode()), f"looking up {name}")


@functools.cache
def _library() -> Any:
    driver = _driver()
    path = binaries_folder() / FATBIN
    return checked(driver.cuLibraryLoadFromFile(str(path).encode(), [], [], 0, [], [], 0), f"loading {path}")


@contextlib.contextmanager
def on_device(ordinal: int) -> Iterator[None]:
    """Make the primary context of a device (the one that torch uses, too) current in this thread."""
    driver = _driver()
    device = checked(driver.cuDeviceGet(ordinal), f"opening device {ordinal}")
    context = checked(driver.cuDevicePrimaryCtxRetain(device), f"opening a context on device {ordinal}")
    try:
        checked(driver.cuCtxPushCurrent(context), "entering the context")
        try:
            yield
        finally:
            checked(driver.cuCtxPopCurrent(), "leaving the context")
    finally:
        checked(driver.cuDevicePrimaryCtxRelease(device), "closing the context")


@contextlib.contextmanager
def device_memory(size: int) -> Iterator[int]:
    """The address of `size` bytes on the current device, freed at the end."""
    driver = _driver()
    address = checked(driver.cuMemAlloc(max(size, 8)), f"allocating {size} bytes")
    try:
        yield int(address)
    finally:
        checked(driver.cuMemFree(address), "freeing memory")


def copy_in(address: int, array: NDArray[Any]) -> None:
    """Copy a C-contiguous array to device memory."""
    checked(
        _driver().cuMemcpyHtoD(address, array.ctypes.data, array.nbytes), f"copying {array.nbytes} bytes to the device"
    )


def copy_out(array: NDArray[Any], address: int) -> None:
    """Copy device memory into a C-contiguous array; waits for the kernels of the default stream."""
    checked(_driver().cuMemcpyDtoH(array.ctypes.data, address, array.nbytes), f"copying {array.nbytes} bytes back")


def launch_entropy(images: int, terms: int, entropy: int, shape: Geometry, order: float, stream: int) -> None:
    """Start `patch_entropy_body` on device addresses in the current context; arguments as in patch_entropy.cuh.

    Raises:
        InputError: 2^31 patches or more.
    """
    if shape.patches >= 2**31:
        raise InputError(
            f"{shape.patches} patches in one call, the backend cuda takes fewer than 2^31: use a smaller batch"
        )
    kind = f"p{shape.patch}_{'rgb' if shape.channels == 3 else 'grey'}_{'shannon' if order == 1 else 'renyi'}"
    values = (images, terms, entropy, shape.patches, shape.columns, shape.bin_shift, 1.0 - order)
    types = (*[ctypes.c_void_p] * 3, ctypes.c_uint, ctypes.c_uint, ctypes.c_int, ctypes.c_double)
    blocks = -(-shape.patches * shape.pixels // PIXELS_PER_BLOCK)
    _launch(f"edgemed_entropy_{kind}", blocks, stream, values, types)


def launch_mask(entropy: int, ids: int, mask: int, count: int, plan: MaskPlan, stream: int) -> None:
    """Start `entropy_mask_body` on device addresses in the current context; arguments as in entropy_mask.cuh."""
    values = (entropy, ids, mask, plan.units, plan.removed, plan.slope, plan.seed_low, plan.seed_high)
    types = (*[ctypes.c_void_p] * 3, ctypes.c_int, ctypes.c_int, ctypes.c_double, ctypes.c_uint, ctypes.c_uint)
    _launch("edgemed_entropy_mask_kernel", count, stream, values, types)


def _launch(name: str, blocks: int, stream: int, values: tuple[Any, ...], types: tuple[Any, ...]) -> None:
    driver = _driver()
    kernel = _kernel(name)
    # The driver takes a CUkernel in the place of a CUfunction and picks the code for the current context.
    status = driver.cuLaunchKernel(kernel, blocks, 1, 1, BLOCK_THREADS, 1, 1, 0, stream, (values, types), 0)
    checked(status, f"starting {name}")
