"""Whether a plan can run here, decided from its record and its first bytes, before the runtime sees any of it.

Why: a plan is native code for one kind and version of TensorRT, and for a few GPUs. Given another one, the runtime
fails with a line that names none of that, or crashes. Each mismatch here has its own message: what the plan was built
for, what this is, and the command that mends it. The sha256 and the signature are checked where the plan is read
(`Bundle.read_plan`), so that the bytes judged here are the bytes that run.

Sources: TensorRT-RTX 1.7.1.116 plans start with `vtrt` and hold its version from byte 24 on (seen); classic plans
start with `ftrt` (trtexec's source).
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path

from edgemed.errors import InputError
from edgemed.records import PlanRecord

MAGIC = {b"vtrt": "tensorrt-rtx", b"ftrt": "tensorrt"}
KINDS = {"tensorrt-rtx": "TensorRT-RTX", "tensorrt": "classic TensorRT"}
_RTX_VERSION = slice(24, 27)
_HEADER = 64  # bytes; every real plan is far longer
_CPU_FEATURES = (
    "avx2 fma f16c avx_vnni avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_int8 "
    "asimd asimdhp asimddp fphp bf16 i8mm sve sve2"
).split()


@dataclass(frozen=True)
class Here:
    """This machine, as a plan sees it. runtime: "tensorrt" or "tensorrt-rtx"; capability: such as "sm86"."""

    runtime: str
    version: str
    capability: str
    os: str = field(default_factory=platform.system)
    architecture: str = field(default_factory=platform.machine)


def check_plan(record: PlanRecord, plan: bytes, here: Here) -> None:
    """Raise InputError, with the command that mends it, unless the plan `record` describes can run `here`."""
    again = f"build one here with `edgemed build-engine BUNDLE --runtime {here.runtime}`"
    name = f"plan {record.id}"
    if len(plan) < _HEADER:
        raise InputError(f"{name} is cut off: {len(plan)} bytes hold no engine; {again}")
    kind = MAGIC.get(bytes(plan[:4]))
    if kind is None:
        raise InputError(f"{name} is not a TensorRT plan: it starts with {bytes(plan[:4])!r}; {again}")
    if kind != record.runtime:
        raise InputError(f"{name} is recorded as {KINDS[record.runtime]}, its header is {KINDS[kind]}'s; {again}")
    if kind != here.runtime:
        raise InputError(f"{name} was built for {KINDS[kind]}, this is {KINDS[here.runtime]}; {again}")
    if record.os != here.os:
        raise InputError(f"{name} was built for {record.os}, this is {here.os}; {again}")
    if record.architecture != here.architecture:
        raise InputError(f"{name} was built for {record.architecture} machines, this is {here.architecture}; {again}")
    if record.version != here.version:
        raise InputError(f"{name} was built for {KINDS[kind]} {record.version}, this is {here.version}; {again}")
    if kind == "tensorrt-rtx":
        written = ".".join(str(number) for number in plan[_RTX_VERSION])
        if written != ".".join(here.version.split(".")[:3]):
            raise InputError(f"{name}'s header says version {written}, this is TensorRT-RTX {here.version}; {again}")
    if here.capability not in record.targets:
        raise InputError(f"{name} was built for {', '.join(record.targets)}, this GPU is {here.capability}; {again}")


def cpu() -> tuple[str, str]:
    """(model, capability) of this machine's CPU: ("AMD EPYC 7B13", "x86_64:avx2,f16c,fma")."""
    model, flags = "", set[str]()
    for line in _text("/proc/cpuinfo").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        model = model or (value if key == "model name" else "")
        flags = flags or (set(value.split()) if key in ("flags", "Features") else set())
    model = model or _text("/proc/device-tree/model").rstrip("\0").strip() or platform.machine() or "unknown CPU"
    features = ",".join(name for name in sorted(_CPU_FEATURES) if name in flags)
    return model, f"{platform.machine()}:{features}"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
