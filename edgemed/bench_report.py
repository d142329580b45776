"""A report of `edgemed bench` as a table, as Markdown, and as a picture of the latencies (SVG, without matplotlib).

    edgemed bench BUNDLE --markdown bench.md --plot bench.svg

Table and Markdown have the same rows. Every figure carries its unit, its interval, its samples and its conditions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from edgemed.bench import results
from edgemed.bench_latency import FIGURES, PERCENTILES
from edgemed.bench_stages import STAGES
from edgemed.conditions import NOT_MEASURED
from edgemed.startup import PARTS

_PANEL = (720, 150)  # pixels of one measurement's panel
_MARGIN, _BINS = 40, 60


def table(report: dict[str, Any]) -> Group:
    """What `edgemed bench` prints: the conditions, a column per measurement, and what makes them doubtful in red."""
    shown = Table(box=SIMPLE_HEAD)
    head, *rows = _rows(report)
    for k, name in enumerate(head):
        shown.add_column(Text(name), justify="left" if k == 0 else "right")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    lines = [Text(line) for line in _facts(report)]
    return Group(*lines, shown, *(Text(line, style="bold red") for line in doubts(report)))


def markdown(report: dict[str, Any]) -> str:
    """The same as a Markdown document."""
    head, *rows = ([cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in _rows(report))
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)]
    facts = [f"{fact}  " for fact in _facts(report)]  # two spaces: a line of its own
    parts = [f"# edgemed bench: {report['bundle']['id']}", "", *facts, "", *lines, ""]
    return "\n".join([*parts, *(f"- **{line}**" for line in doubts(report)), ""])


def doubts(report: dict[str, Any]) -> list[str]:
    """What makes a figure doubtful: a measurement that did not settle, and the conditions' warnings."""
    found = []
    for runtime, result in results(report):
        name = f"{runtime['name']}, batch {result['batch']}"
        if (reason := unsettled(result)) is not None:
            found.append(f"unstable: {name}: {reason}")
        if (limit := result["limit"]) != NOT_MEASURED and limit["share"] > 1:
            found.append(
                f"{name}: faster than this machine's limit, which is too low then: NumPy's BLAS may compute for an "
                f"older processor ({runtime['limits']['blas']})"
            )
        found += [f"{name}: {line}" for line in result["warnings"]]
    return found


def unsettled(result: dict[str, Any]) -> str | None:
    """Why a measurement did not settle; None where it did."""
    stability = result["stability"]
    if stability["settled"]:
        return None
    if not stability["windows"]:
        return f"{result['samples']} samples are too few to tell; measure longer (--duration)"
    windows = ", ".join(f"{value:.2f}" for value in stability["windows"])
    return f"the medians of its windows differ by up to {stability['spread']:.0%} from the whole's ({windows} ms)"


def svg(report: dict[str, Any]) -> str:
    """The distribution of the latencies as an SVG document: a panel per measurement, every sample in it."""
    panels = list(results(report))
    width, height = _PANEL
    total = 30 + height * len(panels)
    title = f"{report['bundle']['id']}: {report['measured']}, {report['machine']['cpu']}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" viewBox="0 0 {width} {total}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{total}" fill="white"/>',
        f'<text x="{_MARGIN}" y="20" font-size="13">{escape(title)}</text>',
    ]
    for number, (runtime, result) in enumerate(panels):
        lines += [f'<g transform="translate(0 {30 + number * height})">', *_panel(runtime, result), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


def _panel(runtime: dict[str, Any], result: dict[str, Any]) -> Iterator[str]:
    """A histogram from the fastest to the slowest sample, with the percentiles as lines."""
    width, height = _PANEL
    times = np.asarray(result["times_ms"])
    low, high = float(times.min()), float(times.max())
    counts, _ = np.histogram(times, bins=_BINS, range=(low, max(high, low * 1.001)))
    inner, base = width - 2 * _MARGIN, height - 30
    name = f"{runtime['name']}, batch {result['batch']}: {result['samples']} samples"
    yield f'<text x="{_MARGIN}" y="12">{escape(name)}</text>'
    for k, count in enumerate(counts):
        if count:
            tall = max(1.0, count / counts.max() * (base - 40))
            x, step = _MARGIN + k * inner / _BINS, inner / _BINS
            yield f'<rect x="{x:.1f}" y="{base - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}" fill="#4878a8"/>'
    yield f'<path d="M{_MARGIN} {base}h{inner}" stroke="#444"/>'
    marks = {f"p{q}": figure["value"] for q in PERCENTILES if (figure := result["latency_ms"][f"p{q}"])}
    for k, (mark, value) in enumerate(marks.items()):
        x = _MARGIN + (value - low) / max(high - low, low * 0.001) * inner
        yield f'<path d="M{x:.1f} {base}V{20 + 10 * k}" stroke="#b03030"/>'
        yield f'<text x="{x + 2:.1f}" y="{28 + 10 * k}" fill="#b03030">{mark} {value:.2f}</text>'
    yield f'<text x="{_MARGIN}" y="{base + 14}">{low:.2f} ms</text>'
    yield f'<text x="{width - _MARGIN}" y="{base + 14}" text-anchor="end">{high:.2f} ms</text>'


def _facts(report: dict[str, Any]) -> Iterator[str]:
    machine, settings = report["machine"], report["settings"]
    yield f"{machine['cpu']}, {machine['cores']} CPUs; governor {machine['governor']}; GPU {machine['gpu']}"
    side = settings["image_size"]
    yield f"{report['measured']}; {side} x {side} px; {settings['warmup']:g} s of warm-up, {settings['duration']:g} s"
    for runtime in report["runtimes"]:
        if reason := runtime.get("not_run"):
            yield f"{runtime['name']}: not run: {reason}"
            continue
        right = runtime["correctness"]
        golden = (
            "golden images: not measured, this plan takes none of their sizes"
            if right == NOT_MEASURED
            else f"right on {right['golden_images']} golden images (largest error {right['max_prob_error']:.1e})"
        )
        yield (
            f"{runtime['name']} {runtime['version']}, {runtime['precision']}, {runtime['threads']} threads, "
            f"{runtime['state']}; {golden}"
        )
        for kind, start in runtime["start"].items():
            yield f"  {kind} start: {_start(start)}"
        if runtime["limits"] != NOT_MEASURED:
            limits = runtime["limits"]
            yield (
                f"  this machine: sgemm {limits['sgemm_gflops']:.0f} GFLOP/s, copy {limits['copy_gb_per_s']:.1f} GB/s "
                f"({limits['threads']} threads; {limits['blas']})"
            )


def _start(start: Any) -> str:
    if isinstance(start, str):
        return start
    parts = ", ".join(f"{name.replace('_', ' ')} {start[name]:.0f}" for name in PARTS)
    cache = {True: "from cache", False: "compiled", None: "no cache"}[start["from_cache"]]
    return f"{start['total']:.0f} ms to the first answer ({parts}); {cache}; peak memory {_bytes(start)}"


def _bytes(start: dict[str, Any]) -> str:
    host, device = start["peak_host_bytes"], start["device_bytes"]
    told = [f"host {host / 1e6:.0f} MB" if host != NOT_MEASURED else "host not measured"]
    told += [f"device {device / 1e6:.0f} MB beside its context" if device != NOT_MEASURED else "device not measured"]
    return ", ".join(told)


def _rows(report: dict[str, Any]) -> list[Sequence[str]]:
    """A heading and rows of cells: a column per measurement."""
    found = list(results(report))
    columns = [dict(_cells(result)) for _, result in found]
    names = [name for name in columns[0] if any(column[name] for column in columns)]
    head = ["", *(f"{runtime['name']}, batch {result['batch']}" for runtime, result in found)]
    return [head, *([name, *(column[name] for column in columns)] for name in names)]


def _cells(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(row, text) of a measurement; an empty text where the row does not apply."""
    latency, stages, limit = result["latency_ms"], result["stages_ms"], result["limit"]
    yield "samples", str(result["samples"])
    for name in (*FIGURES[1:], "mean"):
        yield f"{name} (ms)", _interval(latency[name]) if latency[name] else result["p99_note"]
    yield "slowest (ms)", f"{latency['max']:.2f}"
    yield "coefficient of variation", f"{latency['cov']:.1%}"
    rate = result["throughput_images_per_s"]
    yield "throughput (images/s)", _interval(rate) if rate else ""
    yield "settled", "no" if unsettled(result) else "yes"
    for name in STAGES:
        apart = " without CUDA graph" if stages["h2d"] is not None and name in ("compute", "launch") else ""
        yield f"  {name} (ms)", "" if stages[name] is None else f"{stages[name]:.3f}{apart}"
    share = result["front_end_share"]
    shown = share if isinstance(share, str) else f"{share['value']:.0%} [{share['low']:.0%}, {share['high']:.0%}]"
    yield "resize in the graph", shown
    if limit == NOT_MEASURED:
        yield "share of the machine's limit", NOT_MEASURED
    else:
        yield (
            "share of the machine's limit",
            f"{limit['share']:.0%} (by {limit['bound']}; {limit['gflops']:.1f} GFLOP/s)",
        )
    peak, others = result["peak_host_bytes"], result["conditions"]["other_processes_cpus"]
    yield "peak memory of the process", peak if isinstance(peak, str) else f"{peak / 1e6:.0f} MB"
    yield "CPUs used by other processes", others if isinstance(others, str) else f"{others:.2f}"
    yield "power", _power(result["power"])


def _power(power: Any) -> str:
    if isinstance(power, str):
        return power
    return "\n".join(
        f"{one['name']}: {one['watts']:.1f} W, {one['joules_per_image']:.3f} J per image" for one in power["sources"]
    )


def _interval(value: dict[str, Any]) -> str:
    bounds = "no interval" if value["low"] is None else f"[{value['low']:.2f}, {value['high']:.2f}]"
    return f"{value['value']:.2f} {bounds}"
