"""Whether one measurement is faster than another: two reports of `edgemed bench`, compared.

    edgemed bench --diff old.json new.json

A change is significant where the 95 % interval of the ratio excludes 1 *and* the change is over 5 %: a bootstrap knows
how the samples of a run scatter, not by how much a machine differs from one run to the next. Mean, median and the upper
percentiles each have a row: a tail can double where the median stands still. Each report holds 101 quantiles of every
figure that its block bootstrap saw; the ratios of all pairs of them give the interval, so a report without its samples
can be compared too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from edgemed.bench import SCHEMA, results
from edgemed.bench_latency import FIGURES
from edgemed.conditions import NOT_MEASURED
from edgemed.errors import InputError
from edgemed.files import read_json
from edgemed.stats import tail
from edgemed.timing import SMALLEST_CHANGE

DIFF_SCHEMA = "edgemed.bench-diff/2"
_ONE_RUN = "One run on each side: no interval holds by how much this machine differs from run to run. Repeat both."
_SAME = (
    "precision",
    "mode",
    "streams",
    "idle_ms",
    "image_size",
    "include",
)  # settings without which a ratio says nothing


def diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """{"schema", "rows", "notes"}: rows for each runtime and batch size that both reports hold, notes on what differs.

    A row is of one figure with bounds in both: runtime, batch, figure (mean, p50, p90, p95, p99), old_ms, new_ms, ratio
    (new over old: value, low, high), verdict: "slower", "faster"; "no significant change" where the whole interval lies
    within 5 %; "undecided" where it does not and excludes nothing; "not settled" where a measurement is not: it could
    say any of them. notes: settings, threads, versions, plan, machine, clocks, and what did not settle.

    Raises InputError for reports that measured different things, or have no measurement in common.
    """
    for name in _SAME:
        before, after = old["settings"][name], new["settings"][name]
        if before != after:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"the reports measured different things: {flag} was {before}, now {after}; repeat one of them"
            )
    known = {(runtime["name"], result["batch"]): (runtime, result) for runtime, result in results(old)}
    pairs = [
        (*known[key], runtime, result)
        for runtime, result in results(new)
        if (key := (runtime["name"], result["batch"])) in known
    ]
    if not pairs:
        raise InputError(
            "the reports have no runtime and batch size in common; measure the same --runtime and --batches"
        )
    rows = [row for _, before, runtime, after in pairs for row in _rows(runtime, before, after)]
    notes = [f"bundle {old['bundle']['id']}, now {new['bundle']['id']}"] if _differs(old, new, "bundle", "id") else []
    notes += [f"edgemed {old['edgemed']}, now {new['edgemed']}"] if old["edgemed"] != new["edgemed"] else []
    notes += [
        f"{name.replace('_', ' ')}: {old[part][name]}, now {new[part][name]}"
        for part, names in (("settings", ("cuda_graph", "warmup", "duration")), ("machine", old["machine"]))
        for name in names
        if _differs(old, new, part, name)
    ]
    for old_runtime, before, new_runtime, after in pairs:
        where = f"{new_runtime['name']}, batch {after['batch']}"
        notes += [
            f"{where}: {name} {old_runtime.get(name)}, now {new_runtime.get(name)}"
            for name in ("version", "threads", "plan")
            if old_runtime.get(name) != new_runtime.get(name)
        ]
        rates = [(name, _rates(old_runtime, before)[name], now) for name, now in _rates(new_runtime, after).items()]
        notes += [
            f"{where}: {name} {was:.0f}, now {now:.0f}"
            for name, was, now in rates
            if was and now and abs(now / was - 1) > SMALLEST_CHANGE
        ]
        for when, result in (("old", before), ("new", after)):
            notes += [] if result["stability"]["settled"] else [f"{where}: the {when} measurement is unstable"]
            notes += [f"{where}, {when}: {line}" for line in result["warnings"]]
    return {"schema": DIFF_SCHEMA, "rows": rows, "notes": list(dict.fromkeys(notes))}


def read_report(path: Path) -> dict[str, Any]:
    """A report that `edgemed bench --json FILE` wrote. InputError for another document."""
    report = read_json(path, f"write it with `edgemed bench BUNDLE --json {path}`")
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise InputError(
            f"{path} is no report of this edgemed's bench ({SCHEMA}) but {schema}; measure again with --json"
        )
    found: dict[str, Any] = report
    return found


def table(difference: dict[str, Any]) -> Group:
    """The comparison, as `edgemed bench --diff` prints it."""
    shown = Table(box=SIMPLE_HEAD)
    for name in ("", "", "old", "new", "ratio", "verdict"):
        shown.add_column(name, justify="left" if name in ("", "verdict") else "right")
    above = None
    for row in difference["rows"]:
        ratio, style = row["ratio"], {"slower": "bold red", "faster": "bold green"}.get(row["verdict"], "")
        name = f"{row['runtime']}, batch {row['batch']}"
        shown.add_row(
            Text("" if name == above else name),
            row["figure"],
            f"{row['old_ms']:.2f} ms",
            f"{row['new_ms']:.2f} ms",
            Text(f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"),
            Text(row["verdict"], style=style),
        )
        above = name
    return Group(shown, Text(_ONE_RUN), *(Text(note, style="yellow") for note in difference["notes"]))


def _rows(runtime: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    latencies = before["latency_ms"], after["latency_ms"]
    settled = before["stability"]["settled"] and after["stability"]["settled"]
    beyond = tail(min(each["blocks"] for each in latencies))
    found = []
    for name in FIGURES:
        if not all(name in each["resampled"] for each in latencies):
            continue
        old_ms, new_ms = (float(each[name]["value"]) for each in latencies)
        drawn = [np.asarray(each["resampled"][name]) for each in latencies]
        low, high = map(float, np.quantile(drawn[1][:, None] / drawn[0][None, :], [beyond, 1 - beyond]))
        ratio = {"value": new_ms / old_ms, "low": low, "high": high}
        measured = {"figure": name, "old_ms": old_ms, "new_ms": new_ms, "ratio": ratio}
        verdict = _verdict(**ratio) if settled else "not settled"
        found.append({"runtime": runtime["name"], "batch": after["batch"], **measured, "verdict": verdict})
    return found


def _verdict(value: float, low: float, high: float) -> str:
    if (low > 1 or high < 1) and abs(value - 1) > SMALLEST_CHANGE:
        return "slower" if value > 1 else "faster"
    return "no significant change" if low >= 1 - SMALLEST_CHANGE and high <= 1 + SMALLEST_CHANGE else "undecided"


def _rates(runtime: dict[str, Any], result: dict[str, Any]) -> dict[str, float | None]:
    """What tells how fast the machine was meanwhile; None where it was not measured."""
    state, limits = result["conditions"]["before"], runtime["limits"]
    clocks, gpu = state["cpu_mhz"], state["gpu"]
    return {
        "median CPU clock in MHz": None if clocks == NOT_MEASURED else float(np.median(clocks)),
        "GPU clock in MHz": None if gpu == NOT_MEASURED else gpu.get("sm_mhz"),
        "the machine's own sgemm in GFLOP/s": None if limits == NOT_MEASURED else limits["sgemm_gflops"],
    }


def _differs(old: dict[str, Any], new: dict[str, Any], part: str, name: str) -> bool:
    values = {str(report[part].get(name, NOT_MEASURED)) for report in (old, new)}
    return len(values) > 1
