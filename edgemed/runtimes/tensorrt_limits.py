"""What TensorRT's execution needs to know and no device has to tell: shapes, profiles, meanings of CUDA's errors.

Apart from `tensorrt.py`, so that it is tested where there is no GPU. `python -m pytest tests/test_tensorrt.py`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemed.errors import EdgemedError, InputError
from edgemed.manifest import Range
from edgemed.records import PlanRecord

Shape = tuple[int, ...]

HELP = {
    "cudaErrorInsufficientDriver": "the NVIDIA driver is missing or older than this CUDA; install a newer driver",
    "cudaErrorNoDevice": "no NVIDIA GPU is visible; check nvidia-smi and CUDA_VISIBLE_DEVICES",
    "cudaErrorMemoryAllocation": "the GPU's memory is full; free some, or build the plan with smaller --batch or "
    "--image-size",
    "cudaErrorDevicesUnavailable": "the GPU is busy or in exclusive mode; check nvidia-smi",
    "cudaErrorIllegalAddress": "the process cannot use the GPU any more; start it again, and report this",
    "cudaErrorNoKernelImageForDevice": "the plan has no code for this GPU; build one here with `edgemed build-engine`",
    "cudaErrorSystemNotReady": "the driver is not ready; start the fabric manager or restart the machine",
}
"""By CUDA's name of an error: what it means here, and what to do."""


def served_capabilities(tensorrt: Any) -> list[str] | None:
    """What this TensorRT-RTX has code for, like "sm86", oldest first; None for classic TensorRT."""
    known = getattr(tensorrt, "ComputeCapability", None)
    if known is None:
        return None
    return sorted((name.lower() for name in dir(known) if name.startswith("SM")), key=lambda name: int(name[2:]))


class CudaError(EdgemedError):
    """A call of CUDA failed."""


def checked(answer: tuple[Any, ...], call: str) -> Any:
    """The value of a call of `cuda.bindings.runtime`, which answers (error, value...). CudaError where it failed."""
    error, values = answer[0], answer[1:]
    if int(error) != 0:
        name = getattr(error, "name", str(error))
        raise CudaError(f"{call} failed with {name} ({int(error)}): {HELP.get(name, 'see the CUDA documentation')}")
    return values[0] if len(values) == 1 else values


def is_fixed(batch: Range, image_side: Range) -> bool:
    """Whether a plan of this profile takes one shape only, so that a CUDA graph can stand for every request."""
    return batch[0] == batch[2] and image_side[0] == image_side[2]


def check_shape(record: PlanRecord, shape: Shape) -> None:
    """Raise InputError, naming the flag that builds a wider plan, unless (N, H, W, 3) lies within the profile."""
    batch, sides = shape[0], shape[1:3]
    low, _, high = record.batch
    if not low <= batch <= high:
        wanted = ",".join(str(n) for n in (min(low, batch), record.batch[1], max(high, batch)))
        raise InputError(
            f"plan {record.id} takes batches from {low} to {high}, not {batch}; build one with --batch {wanted}"
        )
    low, typical, high = record.image_side
    if min(sides) < low or max(sides) > high:
        wanted = ",".join(str(n) for n in (min(low, *sides), typical, max(high, *sides)))
        raise InputError(
            f"plan {record.id} takes image sides from {low} to {high}, not {sides[0]} x {sides[1]}; "
            f"build one with --image-size {wanted}"
        )


def output_shapes(declared: Mapping[str, Shape], batch: int) -> dict[str, Shape]:
    """Outputs' shapes for a batch: TensorRT declares (-1, K) and (-1, M, K). InputError where more than N is open."""
    shapes = {}
    for name, shape in declared.items():
        if not shape or any(side < 1 for side in shape[1:]) or shape[0] not in (-1, batch):
            raise InputError(f"the plan's output '{name}' has the shape {shape}; it is not a plan of this edgemed")
        shapes[name] = (batch, *shape[1:])
    return shapes
