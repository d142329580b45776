"""Whether one measurement is faster than another: two reports of `edgemed bench`, compared.

    edgemed bench --diff old.json new.json

A change is significant where the 95 % interval of the ratio of the medians excludes 1 *and* the change is over 5 %: a
bootstrap knows how the samples of a run scatter, not by how much a machine differs from one run to the next. Each
report holds 101 quantiles of the medians that its block bootstrap saw; the ratios of all pairs of them give the
interval, so a report without its samples can be compared too.
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
from edgemed.conditions import NOT_MEASURED
from edgemed.errors import InputError
from edgemed.files import read_json

DIFF_SCHEMA = "edgemed.bench-diff/1"
SMALLEST_CHANGE = 0.05
_SAME = (
    "precision",
    "mode",
    "streams",
    "idle_ms",
    "image_size",
    "include",
)  # settings without which a ratio says nothing


def diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """{"schema", "rows", "notes"}: a row for each runtime and batch size that both reports hold.

    A row: runtime, batch, old_p50_ms, new_p50_ms, ratio (new over old: value, low, high), verdict: "slower", "faster",
    "no significant change", or "not settled" where one of the two measurements is not: it could say any of them. notes:
    what else differs between the two, such as threads, versions, the plan, or the machine, and what did not settle.

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
    rows = [_row(runtime, before, after) for _, before, runtime, after in pairs]
    notes = [f"bundle {old['bundle']['id']}, now {new['bundle']['id']}"] if _differs(old, new, "bundle", "id") else []
    if _differs(old, new, "settings", "cuda_graph"):
        notes.append(f"CUDA graph: {old['settings']['cuda_graph']}, now {new['settings']['cuda_graph']}")
    notes += [
        f"{name}: {old['machine'][name]}, now {new['machine'][name]}"
        for name in old["machine"]
        if _differs(old, new, "machine", name)
    ]
    for old_runtime, before, new_runtime, after in pairs:
        where = f"{new_runtime['name']}, batch {after['batch']}"
        notes += [
            f"{where}: {name} {old_runtime.get(name)}, now {new_runtime.get(name)}"
            for name in ("version", "threads", "plan")
            if old_runtime.get(name) != new_runtime.get(name)
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
    for name in ("", "old p50", "new p50", "ratio", "verdict"):
        shown.add_column(name, justify="left" if name in ("", "verdict") else "right")
    for row in difference["rows"]:
        ratio, style = row["ratio"], {"slower": "bold red", "faster": "bold green"}.get(row["verdict"], "")
        shown.add_row(
            Text(f"{row['runtime']}, batch {row['batch']}"),
            f"{row['old_p50_ms']:.2f} ms",
            f"{row['new_p50_ms']:.2f} ms",
            Text(f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"),
            Text(row["verdict"], style=style),
        )
    return Group(shown, *(Text(note, style="yellow") for note in difference["notes"]))


def _row(runtime: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    old_p50, new_p50 = (result["latency_ms"]["p50"]["value"] for result in (before, after))
    medians = [np.asarray(result["latency_ms"]["p50_resampled"]) for result in (before, after)]
    low, high = np.quantile(medians[1][:, None] / medians[0][None, :], [0.025, 0.975])
    ratio = new_p50 / old_p50
    verdict = "no significant change"
    if not (before["stability"]["settled"] and after["stability"]["settled"]):
        verdict = "not settled"
    elif (low > 1 or high < 1) and abs(ratio - 1) > SMALLEST_CHANGE:
        verdict = "slower" if ratio > 1 else "faster"
    return {
        "runtime": runtime["name"],
        "batch": after["batch"],
        "old_p50_ms": old_p50,
        "new_p50_ms": new_p50,
        "ratio": {"value": ratio, "low": float(low), "high": float(high)},
        "verdict": verdict,
    }


def _differs(old: dict[str, Any], new: dict[str, Any], part: str, name: str) -> bool:
    values = {str(report[part].get(name, NOT_MEASURED)) for report in (old, new)}
    return len(values) > 1
