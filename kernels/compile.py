"""Compile the kernels ahead of time, for GPUs that need not be here.

Run it with `make kernels` or `python -m edgemed.kernels.compile`.

CUDA C++ becomes one fatbin: machine code per target, and PTX for later GPUs. Triton compiles where it runs; here it
compiles for the table alone. Every call prints the registers, shared memory, stack and spills of each kernel on each
target, and fails on a spill or a stack frame before it writes anything. What is not installed is skipped, and the table
says so.

Written: `build/kernels/` of a checkout, `binaries/` beside this file of an installed package (`--out` elsewhere):
edgemed_kernels.fatbin, resources.json. Targets that this nvcc does not know (CUDA 12.6 of JetPack 6: 100, 110, 120)
are left out by name.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from edgemed.errors import EdgemedError, GateError, InputError
from edgemed.files import write_atomic, write_json
from edgemed.kernels.driver import FATBIN, binaries_folder

TARGETS = (75, 80, 86, 87, 89, 90, 100, 110, 120)
PTX_TARGET = 75  # the driver translates it for a GPU that no machine code fits
SOURCE = Path(__file__).resolve().parent / "edgemed_kernels.cu"


@dataclass(frozen=True)
class Resources:
    """What one kernel takes on one target: registers per thread; bytes of shared memory, stack and spills."""

    toolchain: str  # CUDA or Triton
    kernel: str
    target: int
    registers: int
    shared: int
    stack: int
    spills: int


def nvcc_path() -> str | None:
    """nvcc of the PATH, of CUDA_HOME, or of the folder that JetPack installs it to."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    beside = [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    return shutil.which("nvcc") or next((path for path in beside if Path(path).is_file()), None)


def _output(command: list[str], step: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise EdgemedError(f"{step} failed: {first}; the command was: {' '.join(command)}")
    return done.stdout + done.stderr


def ptxas_resources(log: str) -> list[Resources]:
    """The rows of an `nvcc -Xptxas -v` log."""
    rows = []
    pattern = (
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)"
    )
    for name, target, stack, stores, loads, registers, rest in re.findall(pattern, log, flags=re.DOTALL):
        shared = re.search(r"(\d+) bytes smem", rest)
        spills = int(stores) + int(loads)
        size = int(shared[1]) if shared else 0
        rows.append(
            Resources("CUDA", name.removeprefix("edgemed_"), int(target), int(registers), size, int(stack), spills)
        )
    return rows


def fatbin_from_source(nvcc: str, targets: Iterable[int]) -> tuple[bytes, list[Resources]]:
    """The fatbin of edgemed_kernels.cu and the resources of its kernels.

    Raises:
        EdgemedError: nvcc failed; the message holds its first error and the command.
    """
    known = _output([nvcc, "--list-gpu-code"], "nvcc --list-gpu-code").split()
    chosen = [target for target in targets if f"sm_{target}" in known]
    code = [f"-gencode=arch=compute_{target},code=sm_{target}" for target in chosen]
    code.append(f"-gencode=arch=compute_{PTX_TARGET},code=compute_{PTX_TARGET}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / FATBIN
        command = [nvcc, "-std=c++17", "-O3", "-Xptxas=-v", "-fatbin", *code, "-o", str(out), str(SOURCE)]
        log = _output(command, "nvcc")
        return out.read_bytes(), ptxas_resources(log)


def triton_resources(targets: Iterable[int]) -> list[Resources]:
    """The resources of the Triton kernels, read from what Triton compiles for the targets.

    A spill lives in local memory, so a kernel with neither stack nor local memory has none.

    Raises:
        EdgemedError: Triton or its cuobjdump failed.
    """
    from triton import knobs

    from edgemed.kernels.triton import compiled_variants

    cuobjdump = knobs.nvidia.cuobjdump.path
    rows = []
    for target in targets:
        for name, cubin, shared in compiled_variants(target):
            with tempfile.NamedTemporaryFile(suffix=".cubin") as handle:
                handle.write(cubin)
                handle.flush()
                log = _output([cuobjdump, "-res-usage", handle.name], "cuobjdump")
            usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", log)
            if usage is None:
                raise EdgemedError(f"cuobjdump reports no resources of {name} for sm_{target}: update triton")
            registers, stack, static, local = (int(value) for value in usage.groups())
            rows.append(Resources("Triton", name, target, registers, shared + static, stack, local))
    return rows


def table(rows: list[Resources]) -> str:
    """A Markdown table: registers per target; shared memory, stack and spills (largest of the targets) behind them."""
    targets = sorted({row.target for row in rows})
    lines = [
        "| kernel, registers on | "
        + " | ".join(f"sm_{target}" for target in targets)
        + " | shared B | stack B | spills B |",
        "|---|" + "---:|" * (len(targets) + 3),
    ]
    kernels = {(row.toolchain, row.kernel) for row in rows}
    for toolchain, kernel in sorted(
        kernels, key=lambda names: re.sub(r"\d+", lambda digits: digits[0].zfill(4), str(names))
    ):
        of_kernel = {row.target: row for row in rows if (row.toolchain, row.kernel) == (toolchain, kernel)}
        cells = [str(of_kernel[target].registers) if target in of_kernel else "-" for target in targets]
        cells += [
            str(max(getattr(row, field) for row in of_kernel.values())) for field in ("shared", "stack", "spills")
        ]
        lines.append(f"| {toolchain} {kernel} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def check_resources(rows: list[Resources]) -> None:
    """Raise GateError if a kernel spills registers or needs a stack: both mean traffic to device memory."""
    bad = [row for row in rows if row.stack or row.spills]
    if bad:
        row = bad[0]
        raise GateError(
            f"{len(bad)} of {len(rows)} kernels spill or need a stack, first {row.toolchain} {row.kernel} on "
            f"sm_{row.target}: {row.stack} bytes of stack, {row.spills} bytes of spills; nothing was written"
        )


def compile_kernels(out: Path) -> None:
    """Compile what the installed toolchains allow, print the table, write it and the fatbin to `out`.

    Raises:
        GateError: a kernel spills or needs a stack. EdgemedError: a compiler failed.
    """
    rows: list[Resources] = []
    code: bytes | None = None
    nvcc = nvcc_path()
    if nvcc is None:
        _say("skipped: CUDA C++ (no nvcc on the PATH, in CUDA_HOME or in /usr/local/cuda: install the CUDA toolkit)")
    else:
        code, rows = fatbin_from_source(nvcc, TARGETS)
        absent = sorted(set(TARGETS) - {row.target for row in rows})
        if absent:
            _say(f"skipped: CUDA C++ for {', '.join(f'sm_{target}' for target in absent)} (unknown to {nvcc})")
    try:
        rows += triton_resources(TARGETS)
    except ModuleNotFoundError as error:
        _say(f"skipped: Triton ({error.name} is not installed)")
    if not rows:
        return
    _say(table(rows))
    check_resources(rows)
    written = "resources.json"
    if code is not None:
        write_atomic(out / FATBIN, code)
        written = f"{FATBIN} ({len(code) / 1024:.0f} KiB), {written}"
    write_json(out / "resources.json", [asdict(row) for row in rows])
    _say(f"{written} in {out}; zero stack, zero spills")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def main() -> int:
    """Parse the command line, compile, and return the exit code (3: a spill; 2: usage)."""
    parser = argparse.ArgumentParser(description="Compile edgemed's GPU kernels for nine targets.")
    parser.add_argument("--out", type=Path, default=binaries_folder(), help="folder to write (default: %(default)s)")
    try:
        if os.environ.get("TRITON_INTERPRET") == "1":
            raise InputError("TRITON_INTERPRET=1 is set, under which Triton compiles nothing: unset it")
        compile_kernels(parser.parse_args().out)
    except EdgemedError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
