"""Whether one measurement is faster than another: reports of `edgemed bench`, compared.

    edgemed bench --diff old.json new.json
    edgemed bench --diff old/ new/              # folders, each with the reports of at least three runs

A change is significant where the 95 % interval of the ratio excludes 1 *and* the change is over 5 %. Mean, median and
the upper percentiles each have a row: a tail can double where the median stands still. From one report on each side the
interval is that of their block bootstraps: each holds 101 quantiles of every figure, whose ratios of all pairs give it,
without the samples. It knows how the samples of a run scatter, not by how much a machine differs from one run to the
next. From several, it is Student's t on the logarithms of the runs' figures, which knows both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from edgemed.bench import SCHEMA, results
from edgemed.bench_latency import FIGURES
from edgemed.conditions import NOT_MEASURED
from edgemed.errors import InputError, flag
from edgemed.files import read_json
from edgemed.stats import t_quantile, tail

DIFF_SCHEMA = "edgemed.bench-diff/2"
SMALLEST_CHANGE = 0.05
FEWEST_RUNS = 3  # of a side, to know how runs differ
_ONE_RUN = (
    "With one run on each side, the intervals leave out how much this machine varies from run to run. Put the reports "
    f"of {FEWEST_RUNS} or more runs of each into a folder, and compare the folders."
)
_SAME = (
    "precision",
    "mode",
    "streams",
    "idle_ms",
    "image_size",
    "include",
)  # settings without which a ratio says nothing
Measured = tuple[dict[str, Any], dict[str, Any]]  # a runtime's entry in a report, and one of its results


def diff(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{"schema", "runs", "rows", "notes"}: the reports of each side; rows for what all measured; what else differs.

    A row is of one figure with bounds in all: runtime, batch, figure (mean, p50, p90, p95, p99), old_ms, new_ms (of
    several runs the geometric mean), ratio (new over old: value, low, high), verdict: "slower", "faster"; "no
    significant change" where the whole interval lies within 5 %; else "undecided"; "not settled" where one of two
    measurements is not: it could say any of them. notes: settings, threads, versions, plan, machine, clocks, and what
    did not settle.

    Raises InputError for reports that measured different things, have no measurement in common, or are too few.
    """
    first, last, runs, every = old[0], new[0], [len(old), len(new)], [*old, *new]
    if runs != [1, 1] and min(runs) < FEWEST_RUNS:
        raise InputError(
            f"--diff takes one report on each side, or at least {FEWEST_RUNS}; got {runs[0]} and {runs[1]}"
        )
    for name in _SAME:
        before = first["settings"][name]
        if others := [each["settings"][name] for each in every if each["settings"][name] != before]:
            raise InputError(f"the reports measured different things: {flag(name)} was {before}, now {others[0]}; "
                             "repeat one of them")  # fmt: skip
    known = [{(runtime["name"], one["batch"]): (runtime, one) for runtime, one in results(each)} for each in every]
    common = [key for key in known[0] if all(key in each for each in known)]
    if not common:
        raise InputError(
            "the reports have no runtime and batch size in common; measure the same --runtime and --batches"
        )
    was, is_ = first["bundle"]["id"], last["bundle"]["id"]
    notes = [f"bundle {was}, now {is_}"] if was != is_ else []
    notes += [f"edgemed {first['edgemed']}, now {last['edgemed']}"] if first["edgemed"] != last["edgemed"] else []
    notes += [
        f"{name.replace('_', ' ')}: {first[part][name]}, now {last[part][name]}"
        for part, names in (("settings", ("cuda_graph", "warmup", "duration")), ("machine", first["machine"]))
        for name in names
        if _differs(first, last, part, name)
    ]
    rows = []
    for key in common:
        sides = [each[key] for each in known[: len(old)]], [each[key] for each in known[len(old) :]]
        rows += [dict(zip(("runtime", "batch"), key, strict=True)) | row for row in _rows(*sides)]
        notes += _notes(f"{key[0]}, batch {key[1]}", *sides)
    return {"schema": DIFF_SCHEMA, "runs": runs, "rows": rows, "notes": list(dict.fromkeys(notes))}


def _notes(where: str, old: Sequence[Measured], new: Sequence[Measured]) -> list[str]:
    (runtime, before), (now, after) = old[0], new[0]
    found = [
        f"{where}: {name} {runtime.get(name)}, now {now.get(name)}"
        for name in ("version", "threads", "plan")
        if runtime.get(name) != now.get(name)
    ]
    rates = [(name, rate, _rates(now, after)[name]) for name, rate in _rates(runtime, before).items()]
    found += [
        f"{where}: {name} {was:.0f}, now {is_:.0f}"
        for name, was, is_ in rates
        if was and is_ and abs(is_ / was - 1) > SMALLEST_CHANGE
    ]
    for when, side in (("old", old), ("new", new)):
        for _, result in side:
            found += [] if result["stability"]["settled"] else [f"{where}: the {when} measurement is unstable"]
            few = "p50" not in result["latency_ms"]["resampled"]
            found += [f"{where}, {when}: too few samples to compare; measure longer (--duration)"] if few else []
            found += [f"{where}, {when}: {line}" for line in result["warnings"]]
    return found


def read_reports(path: Path) -> list[dict[str, Any]]:
    """The report that `edgemed bench --json FILE` wrote, or all of a folder. InputError for another document."""
    if not path.is_dir():
        return [read_report(path)]
    files = sorted(path.glob("*.json"))
    if not files:
        raise InputError(f"{path} holds no report; write some with `edgemed bench BUNDLE --json {path}/1.json`")
    reports = [read_report(file) for file in files]
    if copies := [file for k, file in enumerate(files) if reports[k] in reports[:k]]:
        raise InputError(f"{copies[0]} is a copy of another report beside it: it is not another run; take it out")
    return reports


def read_report(path: Path) -> dict[str, Any]:
    """A report that `edgemed bench --json FILE` wrote. InputError for another document."""
    report = read_json(path, f"write it with `edgemed bench BUNDLE --json {path}`")
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise InputError(
            f"{path} is not a report of this edgemed's bench: its schema is {schema!a}, not {SCHEMA!a}; measure again "
            "with --json"
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
    runs = difference["runs"]
    said = _ONE_RUN if runs == [1, 1] else f"{runs[0]} runs, then {runs[1]}: the intervals hold how these runs differ."
    return Group(shown, Text(said), *(Text(note, style="yellow") for note in difference["notes"]))


def _rows(old: Sequence[Measured], new: Sequence[Measured]) -> list[dict[str, Any]]:
    every = [result for _, result in (*old, *new)]
    one_run = len(every) == 2
    found = []
    for name in FIGURES:
        if not all(name in each["latency_ms"]["resampled"] for each in every):
            continue
        logs = [np.log([result["latency_ms"][name]["value"] for _, result in side]) for side in (old, new)]
        old_ms, new_ms = (float(np.exp(each.mean())) for each in logs)
        low, high = _resampled_ratio(name, *every) if one_run else _ratio_of_runs(*logs)
        ratio = {"value": new_ms / old_ms, "low": low, "high": high}
        unsettled = one_run and not all(each["stability"]["settled"] for each in every)
        verdict = "not settled" if unsettled else _verdict(**ratio)
        found.append({"figure": name, "old_ms": old_ms, "new_ms": new_ms, "ratio": ratio, "verdict": verdict})
    return found


def _resampled_ratio(name: str, before: dict[str, Any], after: dict[str, Any]) -> tuple[float, float]:
    old, new = (np.asarray(each["latency_ms"]["resampled"][name]) for each in (before, after))
    beyond = tail(min(each["latency_ms"]["blocks"] for each in (before, after)))
    low, high = np.quantile(new[:, None] / old[None, :], [beyond, 1 - beyond])
    return float(low), float(high)


def _ratio_of_runs(old: NDArray[np.float64], new: NDArray[np.float64]) -> tuple[float, float]:
    """Of the logarithms of a figure, one of each run: runs of both sides scatter alike, whatever their latency is."""
    degrees = len(old) + len(new) - 2
    variance = sum(float(((each - each.mean()) ** 2).sum()) for each in (old, new)) / degrees
    reach = t_quantile(degrees) * (variance * (1 / len(old) + 1 / len(new))) ** 0.5
    middle = new.mean() - old.mean()
    return float(np.exp(middle - reach)), float(np.exp(middle + reach))


def _verdict(value: float, low: float, high: float) -> str:
    if (low > 1 or high < 1) and abs(value - 1) > SMALLEST_CHANGE:
        return "slower" if value > 1 else "faster"
    return "no significant change" if low >= 1 - SMALLEST_CHANGE and high <= 1 + SMALLEST_CHANGE else "undecided"


def _rates(runtime: dict[str, Any], result: dict[str, Any]) -> dict[str, float | None]:
    """What tells how fast the machine was meanwhile; None where it was not measured."""
    state, limits = result["conditions"]["before"], runtime["limits"]
    clocks, gpu = state["cpu_mhz"], state["gpu"]
    return {
        "highest CPU clock in MHz": None if clocks == NOT_MEASURED else max(clocks),
        "GPU clock in MHz": None if gpu == NOT_MEASURED else gpu.get("sm_mhz"),
        "the machine's own sgemm in GFLOP/s": None if limits == NOT_MEASURED else limits["sgemm_gflops"],
    }


def _differs(old: dict[str, Any], new: dict[str, Any], part: str, name: str) -> bool:
    values = {str(report[part].get(name, NOT_MEASURED)) for report in (old, new)}
    return len(values) > 1
