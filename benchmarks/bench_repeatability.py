"""Whether `edgemed bench` says the same twice, notices a thread fewer, and notices who else uses the machine.

    python benchmarks/bench_repeatability.py BUNDLE [REPEATS]      # default 10; about 15 s a repeat, on an idle machine

Runs the command REPEATS + 1 times and compares each with the one before by `--diff`: nine in ten have to show no
significant change. All pairs are compared, too, since neighbours do not show by how much a machine drifts in minutes;
and the first half of the runs with the second. Then with one thread fewer (on two or more cores): that must be
"slower". Then beside a process that burns a core: that must be among the warnings. Correctness comes first inside every
run: bench times nothing that answers wrong.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from common import keep

from edgemed.allowance import usable_cores
from edgemed.bench import results
from edgemed.bench_diff import diff, read_report

ALLOWED = 0.1  # share of repeats that may show a change that is none


def measure(bundle: Path, file: Path, *flags: str) -> dict[str, Any]:
    """One run of the command, as a user would type it."""
    command = [sys.executable, "-m", "edgemed", "bench", str(bundle), "--json", str(file), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    report = read_report(file)
    print(f"p50 {first(report)['latency_ms']['p50']['value']:.2f} ms", *first(report)["warnings"], sep="; ", flush=True)
    return report


def first(report: dict[str, Any]) -> dict[str, Any]:
    """The one result of a report."""
    [(_, result)] = results(report)
    return result


def change(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> dict[str, Any]:
    [row] = [row for row in diff(old, new)["rows"] if row["figure"] == "p50"]
    return {"ratio": row["ratio"], "verdict": row["verdict"]}


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    bundle, repeats = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) == 3 else 10
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        reports = [measure(bundle, Path(folder) / f"{number}.json") for number in range(repeats + 1)]
        fewer = measure(bundle, Path(folder) / "fewer.json", "--threads", str(cores - 1)) if cores > 1 else None
        burning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            beside = measure(bundle, Path(folder) / "beside.json")
        finally:
            burning.kill()
            burning.wait()
    changes = [change([reports[number]], [reports[number + 1]]) for number in range(repeats)]
    of_pairs = Counter(change([old], [new])["verdict"] for old, new in combinations(reports, 2))
    verdicts = Counter(one["verdict"] for one in changes)
    same = verdicts["no significant change"]
    slower = change([reports[-1]], [fewer]) if fewer else None
    loads = [first(report)["conditions"]["other_processes_cpus"] for report in reports]
    others = first(beside)["conditions"]["other_processes_cpus"]
    noticed = any("other processes used" in line for line in first(beside)["warnings"]) and others > max(loads)
    document = {
        "measured": reports[0]["measured"],
        "bundle": reports[0]["bundle"]["id"],
        "p50_ms": [first(report)["latency_ms"]["p50"]["value"] for report in reports],
        "repeats": repeats,
        "no_significant_change": same,
        "of_neighbours": dict(verdicts),
        "of_all_pairs": dict(of_pairs),
        "halves": change(reports[: repeats // 2], reports[repeats // 2 :]) if repeats >= 6 else "not measured",
        "changes": changes,
        "one_thread_fewer": slower or "not measured: one core",
        "other_processes_cpus": {"alone": loads, "beside_a_burning_process": others},
        "burning_process_noticed": noticed,
    }
    keep("bench-repeatability", document)
    passed = same >= (1 - ALLOWED) * repeats and noticed and (slower is None or slower["verdict"] == "slower")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
