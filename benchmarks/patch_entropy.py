"""Patch entropy: every backend that runs here against what a user would write, checked before it is timed.

    python benchmarks/patch_entropy.py      # a minute on two CPU cores; writes a result of its own where a GPU is

64 images of 224 x 224 of uniform noise, which fills all bins of every patch as no ultrasound image does, patches of 32
pixels; on a GPU they lie in its memory already. It states the memory floor, compares every implementation with the
oracle and exits with 1 on a mismatch, then times them in turn, so that a busy machine slows all alike; ratios come from
the medians. Everything on the CPU runs on one thread, as the loop does; beside the wall clock stands the processor
time, which other programs hardly change. The last line is one JSON document.

The loop and the scipy way are written as a user would: one patch at a time, counts by `np.bincount` or `np.unique`, and
the entropy in NumPy or by `scipy.stats.entropy`. They take grey images, and so does everything that is compared with
them.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import keep
from numpy.typing import NDArray
from scipy.stats import entropy as scipy_entropy

from edgemed.kernels import driver, patch_entropy, reference

PATCH = 32
TOLERANCE = 1e-5  # bits
BANDWIDTHS = {"Orin": 204e9, "RTX 4090": 1008e9, "H100": 3350e9}  # bytes per second, from the data sheets
Function = Callable[[], NDArray[np.float32]]


def patches_of(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (N, H, W) -> (patches, P * P), image by image, row by row."""
    count, height, width = images.shape
    blocks = images.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(-1, PATCH * PATCH)


def bincount_loop(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """One `np.bincount` per patch."""
    entropies = []
    for pixels in patches_of(images):
        counts = np.bincount(pixels, minlength=256)
        shares = counts[counts > 0] / pixels.size
        entropies.append(-(shares * np.log2(shares)).sum())
    return np.array(entropies, dtype=np.float32)


def scipy_way(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`scipy.stats.entropy` of `np.unique` per patch."""
    return np.array(
        [scipy_entropy(np.unique(pixels, return_counts=True)[1], base=2) for pixels in patches_of(images)],
        dtype=np.float32,
    )


def copied_back(images: torch.Tensor, backend: str) -> NDArray[np.float32]:
    """The entropies of images on a GPU, as an array here."""
    return patch_entropy(images, PATCH, backend=backend).cpu().numpy().ravel()


def candidates(images: NDArray[np.uint8]) -> tuple[dict[str, Function], dict[str, str]]:
    """{name: call} of what runs here, {name: reason} of what does not."""
    tensor = torch.from_numpy(images)
    runs: dict[str, Function] = {
        "scipy per patch": lambda: scipy_way(images),
        "bincount loop": lambda: bincount_loop(images),
        "reference": lambda: reference.patch_entropy(images, PATCH).ravel(),
        "numpy": lambda: patch_entropy(images, PATCH).ravel(),
        "torch": lambda: patch_entropy(tensor, PATCH).numpy().ravel(),
    }
    absent: dict[str, str] = {}
    if not torch.cuda.is_available():
        return runs, dict.fromkeys(("torch on the GPU", "triton", "cuda"), "no CUDA device")
    on_device = tensor.cuda()
    names = {"torch on the GPU": "torch", "triton": "triton", "cuda": "cuda"}
    reason = driver.unavailable()
    if reason is not None:
        absent["cuda"] = reason
        del names["cuda"]
    for name, backend in names.items():
        runs[name] = functools.partial(copied_back, on_device, backend)
    return runs, absent


def device_times(images: NDArray[np.uint8], names: list[str]) -> dict[str, float]:
    """Milliseconds of the kernel alone, without the copy of the result, for the GPU backends in `names`."""
    if not torch.cuda.is_available():
        return {}
    from triton.testing import do_bench

    tensor = torch.from_numpy(images).cuda()
    backends = {"torch on the GPU": "torch", "triton": "triton", "cuda": "cuda"}
    return {
        name: do_bench(functools.partial(patch_entropy, tensor, PATCH, backend=backend), return_mode="median")
        for name, backend in backends.items()
        if name in names
    }


def medians(runs: dict[str, Function], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median milliseconds of each call over `rounds` turns, wall clock and processor; a turn runs every call once."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, call in runs.items():
            start, start_processor = time.perf_counter(), time.process_time()
            call()
            wall[name].append((time.perf_counter() - start) * 1e3)
            processor[name].append((time.process_time() - start_processor) * 1e3)
    first, second = ({name: statistics.median(values) for name, values in of.items()} for of in (wall, processor))
    return first, second


def main() -> int:
    """Check, time, print; 1 when an implementation is wrong."""
    parser = argparse.ArgumentParser(description="Time patch entropy against what a user would write.")
    parser.add_argument(
        "--rounds", type=int, default=15, help="turns, each runs everything once (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, default=64, help="images of 224 x 224 (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (arguments.images, 224, 224), dtype=np.uint8)
    moved = images.nbytes + arguments.images * (224 // PATCH) ** 2 * 4
    floors = {name: moved / bandwidth * 1e6 for name, bandwidth in BANDWIDTHS.items()}
    print(f"uint8 {images.shape}, patches of {PATCH} pixels, {moved:,} bytes to move; floors at the memory bandwidth:")
    print("  " + ", ".join(f"{name} {microseconds:.1f} us" for name, microseconds in floors.items()))

    runs, absent = candidates(images)
    wanted = reference.patch_entropy(images, PATCH).ravel()
    errors = {name: float(np.abs(call() - wanted).max()) for name, call in runs.items()}
    wrong = [name for name, error in errors.items() if not error <= TOLERANCE]
    if wrong:
        print(f"wrong by more than {TOLERANCE} bit: " + ", ".join(f"{name} ({errors[name]:.2e})" for name in wrong))
        return 1

    times, processor = medians(runs, arguments.rounds)
    kernels = device_times(images, list(runs))
    loop, scipy = times["bincount loop"], times["scipy per patch"]
    print(f"{'medians in ms':18}{'wall':>10}{'processor':>11}{'x loop':>9}{'x scipy':>9}{'error, bits':>13}")
    for name, median in times.items():
        ratios = f"{loop / median:9.1f}{scipy / median:9.1f}"
        print(f"{name:18}{median:10.2f}{processor[name]:11.2f}{ratios}{errors[name]:13.1e}")
    for name, median in kernels.items():
        print(f"{name}: {median * 1e3:.1f} us on {torch.cuda.get_device_name()}, without the copy of the result")
    for name, reason in absent.items():
        print(f"{name:18}not measured: {reason}")
    document: dict[str, Any] = {
        "images": list(images.shape),
        "patch": PATCH,
        "rounds": arguments.rounds,
        "torch_threads": torch.get_num_threads(),
        "median_ms": times,
        "median_processor_ms": processor,
        "kernel_ms": kernels,
        "times_faster_than_loop": {name: loop / median for name, median in times.items()},
        "times_faster_than_scipy": {name: scipy / median for name, median in times.items()},
        "largest_error_bits": errors,
        "floor_us": floors,
        "not_measured": absent,
    }
    keep("patch-entropy-gpu" if kernels else "patch-entropy", document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
