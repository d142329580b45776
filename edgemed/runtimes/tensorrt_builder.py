"""TensorRT-RTX plans from a bundle's ONNX graphs: for several generations of GPU at once, on a machine without one.

No torch, so that a device can build from its own bundle. A plan built where no GPU can run it is "built, not executed".

    edgemed build-engine RUN --out BUNDLE --rtx yes
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import cache
from typing import Any

from edgemed.errors import InputError
from edgemed.manifest import sha256_of
from edgemed.records import PlanRecord

TARGETS = ("sm80", "sm86", "sm89", "sm120")
ELSEWHERE = {
    "sm87": "Jetson Orin",
    "sm90": "Hopper",
    "sm100": "Blackwell data centre",
    "sm110": "Jetson Thor",
}
"""GPUs that classic TensorRT serves and TensorRT-RTX does not."""
BATCH = (1, 1, 1)  # a context reserves memory for the largest batch of the largest images
MAGIC = b"vtrt"  # the first bytes of a TensorRT-RTX plan; those of a classic one are b"ftrt"
_log = logging.getLogger("edgemed")


def plan_from_onnx(
    graph: bytes,
    *,
    precision: str,
    targets: Sequence[str] = TARGETS,
    image_size: tuple[int, int, int],
    batch: tuple[int, int, int] = BATCH,
) -> tuple[PlanRecord, bytes]:
    """The serialised engine of an ONNX file made by `edgemed build-engine`, and the record that describes it.

    precision: what the graph is, "fp32" or "fp16"; it is not changed here. targets: like "sm86". image_size, batch:
    min, opt, max of H and W in pixels, and of N. float32 products are float32: TF32 is off.

    Raises:
        InputError: TensorRT-RTX is not installed, cannot serve a target, or refuses the graph: every reason is named.
    """
    try:
        import tensorrt_rtx as trt
    except ImportError as error:
        raise InputError(
            f"TensorRT-RTX does not load ({error}); pip install 'edgemed[rtx]', or use --rtx no"
        ) from error
    capabilities = [_capability(trt, target, precision) for target in targets]
    began = time.monotonic()
    log = _logger()
    log.problems.clear()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = (parser.get_error(k) for k in range(parser.num_errors))
        found = "; ".join(f"{e.node_operator()} '{e.node_name()}': {e.desc()}" for e in errors)
        raise InputError(f"TensorRT-RTX {trt.__version__} cannot read the {precision} graph: {found}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    shapes = [(n, side, side, 3) for n, side in zip(batch, image_size, strict=True)]
    profile.set_shape("image", *shapes)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(capabilities)
    for k, capability in enumerate(capabilities):
        config.set_compute_capability(capability, k)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise InputError(f"TensorRT-RTX {trt.__version__} cannot build the {precision} plan: {'; '.join(log.problems)}")
    plan = bytes(built)
    record = PlanRecord(
        id="-".join(("rtx", trt.__version__, precision, *targets)),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        onnx_sha256=sha256_of(graph),
        precision="fp16" if precision == "fp16" else "fp32",
        runtime="tensorrt-rtx",
        version=trt.__version__,
        targets=tuple(targets),
        os=platform.system(),
        architecture=platform.machine(),
        batch=batch,
        image_side=image_size,
        sha256=sha256_of(plan),
        bytes=len(plan),
        state="built",
    )
    _log.info(
        "TensorRT-RTX plan %s: %.0f MB in %.1f s; built, not executed",
        record.id,
        len(plan) / 1e6,
        time.monotonic() - began,
    )
    return record, plan


def _capability(trt: Any, target: str, precision: str) -> Any:
    """TensorRT-RTX's name for a target; InputError says why it has none."""
    known = sorted(
        (name for name in dir(trt.ComputeCapability) if name.startswith("SM")), key=lambda name: int(name[2:])
    )
    if target in ELSEWHERE and target.upper() not in known:
        raise InputError(
            f"target {target} ({ELSEWHERE[target]}) is not served by TensorRT-RTX; use classic TensorRT on the device"
        )
    if target.upper() not in known or target != target.lower():
        raise InputError(
            f"target '{target}' is unknown to TensorRT-RTX {trt.__version__}; it has {', '.join(known).lower()}"
        )
    if target == "sm75":
        # The resize is two float32 products at every precision, and Turing's kernels have none.
        raise InputError("target sm75 (Turing) has no float32 matrix products in TensorRT-RTX, which the resize needs")
    return getattr(trt.ComputeCapability, target.upper())


@cache
def _logger() -> Any:
    """TensorRT keeps the first logger of a process: one that hands on to Python's and remembers the errors."""
    import tensorrt_rtx as trt

    severity = trt.ILogger.Severity

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.problems: list[str] = []

        def log(self, level: Any, message: str) -> None:
            line = " ".join(message.split())
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.problems.append(line)
            _log.log(logging.WARNING if level == severity.WARNING else logging.DEBUG, "TensorRT-RTX: %s", line)

    return Logger()
