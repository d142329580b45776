"""TensorRT plans from a bundle's ONNX graphs: classic TensorRT 10 and 11, and TensorRT-RTX, through one piece of code.

No torch, so that a device builds from its own bundle. The two flavours share their names; what only one of them has is
probed for. Precision lives in the graph (strong typing), never in the builder's flags.

TensorRT-RTX builds for several generations of GPU at once, on a machine without one. Classic TensorRT tunes on the GPU
that it builds for, so it needs one, and its plan serves that one. Tried here: TensorRT-RTX 1.7; classic TensorRT's path
is tested on a stand-in.

    edgemed build-engine BUNDLE --runtime tensorrt-rtx --targets sm86,sm89
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import platform
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from edgemed.errors import InputError
from edgemed.files import write_atomic
from edgemed.manifest import Range, sha256_of
from edgemed.progress import Progress, unseen
from edgemed.records import PlanRecord, now
from edgemed.runtimes import cache_folder, held
from edgemed.runtimes.tensorrt import FLAVOURS
from edgemed.runtimes.tensorrt_limits import is_fixed, served_capabilities
from edgemed.runtimes.tensorrt_log import process_logger

TARGETS = ("sm80", "sm86", "sm89", "sm120")
ELSEWHERE = {
    "sm87": "Jetson Orin",
    "sm90": "Hopper",
    "sm100": "Blackwell data centre",
    "sm110": "Jetson Thor",
}
"""GPUs that classic TensorRT serves and TensorRT-RTX does not."""
WORKSPACE_SHARE = 0.5  # of the GPU's free memory: the rest is for the application beside it
_log = logging.getLogger("edgemed")


def plan_from_onnx(
    graph: bytes,
    *,
    runtime: str,
    precision: str,
    targets: Sequence[str] | None = None,
    image_size: Range,
    batch: Range = (1, 1, 1),
    progress: Progress = unseen,
) -> tuple[PlanRecord, bytes]:
    """The serialised engine of an ONNX file made by `edgemed build-engine`, and the record that describes it.

    runtime: "tensorrt" or "tensorrt-rtx". precision: what the graph is, "fp32" or "fp16"; it is not changed here.
    targets: like "sm86"; None = `TARGETS` for TensorRT-RTX, this machine's GPU for classic TensorRT. image_size, batch:
    min, opt, max of H and W in pixels, and of N: a context reserves memory for the largest; a plan of one shape is
    built so that a CUDA graph can hold it. float32 is float32: TF32 is off.

    Raises:
        InputError: TensorRT is not installed, cannot serve a target, or refuses the graph: every reason is named.
        KeyboardInterrupt: after Ctrl-C, at the builder's next step.
    """
    flavour, wanted = FLAVOURS[runtime], served_targets(runtime, targets)
    trt = importlib.import_module(flavour.package)
    began = time.monotonic()
    monitor = _monitor(flavour.package)(f"{runtime} {precision} plan", progress)
    with _interrupts_to(monitor):
        plan = _built(graph, runtime, precision, wanted, image_size, batch, monitor)
    record = PlanRecord(
        id=_id(runtime, str(trt.__version__), precision, wanted, batch, image_size),
        created=now(),
        onnx_sha256=sha256_of(graph),
        precision="fp16" if precision == "fp16" else "fp32",
        runtime="tensorrt-rtx" if runtime == "tensorrt-rtx" else "tensorrt",
        version=str(trt.__version__),
        targets=tuple(wanted),
        os=platform.system(),
        architecture=platform.machine(),
        batch=batch,
        image_side=image_size,
        sha256=sha256_of(plan),
        bytes=len(plan),
        state="built",
    )
    _log.info("plan %s: %.1f MB in %.1f s", record.id, len(plan) / 1e6, time.monotonic() - began)
    return record, plan


def _built(
    graph: bytes, runtime: str, precision: str, targets: Sequence[str], image_size: Range, batch: Range, monitor: Any
) -> bytes:
    """The serialised engine; raises InputError with TensorRT's reasons."""
    flavour = FLAVOURS[runtime]
    trt = importlib.import_module(flavour.package)
    log = process_logger(trt.ILogger, flavour.package)
    log.said()  # of an earlier failure
    builder = trt.Builder(log)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = (parser.get_error(k) for k in range(parser.num_errors))
        found = "; ".join(f"{e.node_operator()} '{e.node_name()}': {e.desc()}" for e in errors)
        raise InputError(f"{runtime} {trt.__version__} cannot read the {precision} graph: {found}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *((n, side, side, 3) for n, side in zip(batch, image_size, strict=True)))
    config.add_optimization_profile(profile)
    config.progress_monitor = monitor
    timings: _Timings | None = None
    if runtime == "tensorrt-rtx":
        config.num_compute_capabilities = len(targets)
        for k, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), k)
        if is_fixed(batch, image_size):  # for a CUDA graph, within which TensorRT-RTX must not allocate
            network.get_input(0).shape = (batch[0], image_size[0], image_size[0], 3)
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    else:
        timings = _Timings(config, str(trt.__version__), targets[0])
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(flavour.free_memory() * WORKSPACE_SHARE))
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise InputError(f"{runtime} {trt.__version__} cannot build the {precision} plan: {log.said()}")
    if timings is not None:
        timings.keep()
    return bytes(built)


def _id(runtime: str, version: str, precision: str, targets: Sequence[str], batch: Range, image_size: Range) -> str:
    """Such as rtx-1.7.1.116-fp16-sm86-sm89-b1-s32.512.4096: what sets a plan apart from those beside it."""
    parts = ("trt" if runtime == "tensorrt" else "rtx", version, precision, *targets)
    return "-".join((*parts, f"b{_text(batch)}", f"s{_text(image_size)}"))


def _text(limits: Range) -> str:
    return str(limits[0]) if limits[0] == limits[2] else ".".join(map(str, limits))


def served_targets(runtime: str, targets: Sequence[str] | None) -> list[str]:
    """The targets to build for.

    Raises:
        InputError: why TensorRT does not load, or one cannot be served, and by what it can.
    """
    flavour = FLAVOURS[runtime]
    try:
        trt = importlib.import_module(flavour.package)
    except ImportError as error:
        raise InputError(f"{flavour.package} does not load ({error}); {flavour.install}; or --runtime none") from error
    if runtime == "tensorrt":
        if (why_not := flavour.availability()) is not None:
            raise InputError(f"classic TensorRT builds on the GPU that it builds for: {why_not}")
        capability = flavour.here().capability
        for target in targets or ():
            if target != capability:
                raise InputError(
                    f"classic TensorRT builds for the GPU of this machine, {capability}, not for {target}; run "
                    "`edgemed build-engine BUNDLE` on a machine that has one"
                )
        return [capability]
    known = served_capabilities(trt) or []
    for target in targets or ():
        if target in ELSEWHERE and target not in known:
            raise InputError(
                f"target {target} ({ELSEWHERE[target]}) is not served by TensorRT-RTX; use classic TensorRT there: "
                "`edgemed build-engine BUNDLE --runtime tensorrt` on the device"
            )
        if target not in known:
            raise InputError(
                f"target '{target}' is unknown to TensorRT-RTX {trt.__version__}; it has {', '.join(known)}"
            )
        if target == "sm75":
            # The resize is two float32 products at every precision, and Turing's kernels have none.
            raise InputError(
                "target sm75 (Turing) has no float32 matrix products in TensorRT-RTX, which the resize needs; run the "
                "ONNX file there, or classic TensorRT"
            )
    return list(dict.fromkeys(targets)) if targets else list(TARGETS)


def _strongly_typed(trt: Any) -> int:
    """The flag of TensorRT 10; from 11 on, and in RTX, every network is strongly typed."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


class _Timings:
    """Classic TensorRT's timing cache: a second build of the same layers on the same GPU takes seconds, not minutes."""

    def __init__(self, config: Any, version: str, capability: str) -> None:
        self._config = config
        self._file: Path | None = None  # where the timings are kept; None: nowhere
        data = b""
        try:
            self._file = cache_folder("tensorrt", "timings", version, capability) / "timings.bin"
            data = self._file.read_bytes() if self._file.is_file() else b""
        except OSError as error:
            _log.warning("TensorRT's timing cache is not used: %s", error)
        config.set_timing_cache(config.create_timing_cache(data), False)

    def keep(self) -> None:
        """Write the timings down for the next build."""
        timings = self._config.get_timing_cache()
        if self._file is None or timings is None:  # None: TensorRT did not take those that were there
            return
        try:
            with held(self._file.parent):
                write_atomic(self._file, bytes(timings.serialize()))
        except (InputError, OSError) as error:
            _log.warning("TensorRT's timing cache is not kept: %s", error)


@contextlib.contextmanager
def _interrupts_to(monitor: Any) -> Iterator[None]:
    """Ctrl-C is noted, and no exception: TensorRT would swallow one that is raised in a callback, and build on."""

    def stop(number: int, frame: FrameType | None) -> None:
        monitor.stopped = True

    main = threading.current_thread() is threading.main_thread()  # Ctrl-C is its own
    before = signal.signal(signal.SIGINT, stop) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        if monitor.stopped:
            raise KeyboardInterrupt


@cache
def _monitor(package: str) -> Any:
    """The class that hands TensorRT's progress on, and stops the build after Ctrl-C."""
    trt = importlib.import_module(package)

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]
        def __init__(self, stage: str, progress: Progress) -> None:
            super().__init__()
            self.stopped = False
            self._stage, self._progress = stage, progress
            self._phases: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                self._progress(self._stage, step + 1, self._phases.get(phase_name, 0), phase_name)
            except KeyboardInterrupt:  # must not pass through TensorRT
                self.stopped = True
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

    return Monitor
