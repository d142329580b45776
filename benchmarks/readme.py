"""benchmarks/README.md from the scripts of this folder and their latest results.

    make bench      (or: python benchmarks/readme.py)

A section per script: what its first sentence says, the command, and of each result the figures, the date and the
machine. A script without a result is listed as not measured. Nothing is measured here.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, command_of

from edgemed.ablation import sentence

Document = dict[str, Any]
HEAD = """# Benchmarks

One script per claim. Each checks its results before it times anything, ends in one line of JSON, and keeps
`results/NAME.json` with machine, versions, date and commit, where "+" stands for changes on top of it (two files of
patch entropy are older than that rule). This page is made from those files by `make bench`; `make bench-run
DATA=FOLDER` measures those again that need no GPU, no run and few minutes (FOLDER: a folder of images per class).
BUNDLE and RUN are made before; busi_leak.py follows busi_ablation.py. Figures in brackets are 95 % intervals.
"""


def _interval(value: Document, digits: int = 2) -> str:
    low, high = value.get("interval") or (value["low"], value["high"])
    return f"{value['value']:.{digits}f}" + ("" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _missed(found: Document) -> str:
    return ", ".join(name for name, one in found["bars"].items() if not one["met"]) or "none"


def _peers(found: Document) -> str:
    times = "; ".join(
        f"{name}: {_interval(one['times_bundle'])} times the bundle's latency" for name, one in found["timed"].items()
    )
    return (
        f"bundle {found['bundle']['p50_ms']['value']:.0f} ms, {found['share_of_sgemm']['share']:.0%} of the sgemm "
        f"rate (aim {found['share_of_sgemm']['aim']:.0%}); {times}; "
        f"bars missed: {_missed(found)}"
    )


def _scaling(found: Document) -> str:
    points = {"1 thread" if name == "1 threads" else name: one for name, one in found["points"].items()}
    return "; ".join(f"{name} {one['p50_ms']['value']:.0f} ms" for name, one in points.items())


def _graph_forms(found: Document) -> str:
    others = {name: one for name, one in found["ways"].items() if name != found["base"]}
    times = "; ".join(f"{name}: {_interval(one['times_base'])} times as long" for name, one in others.items())
    return f"{found['base']}: {found['ways'][found['base']]['p50_ms']['value']:.0f} ms; {times}"


def _loading(found: Document) -> str:
    rates = ", ".join(f"{name} {rate:.0f} images/s" for name, rate in found["images_per_s"].items())
    return f"{rates}: {_interval(found['dali_times_torch'])} times"


def _entropy(found: Document) -> str:
    times = found["times_faster_than_loop"].items()
    told = [(name, rate) for name, rate in times if name not in ("scipy per patch", "bincount loop", "reference")]
    lying = " (a GPU's images lie in its memory already)" if any("GPU" in name for name, _ in told) else ""
    return f"times as fast as a bincount loop{lying}: " + ", ".join(f"{name} {rate:.1f}" for name, rate in told)


def _busi(found: Document) -> str:
    pooled = found["pooled"]["ensemble"]
    return (
        f"ensemble: accuracy {_interval(pooled['accuracy'], 3)}, AUROC {_interval(pooled['auroc'], 3)}; "
        f"bars missed: {_missed(found)}"
    )


def _inner(found: Document) -> str:
    return "; ".join(
        f"{name}: log loss {one['log_loss']:.3f}, accuracy {one['accuracy']:.3f} on {one['images']} images"
        for name, one in found["variants"].items()
    )


def _ablation(found: Document) -> str:
    pairs = "; ".join(f"{one['name']}: accuracy {_interval(one['accuracy'], 3)}" for one in found["ensembles"])
    return f"{pairs}; {sentence(found).replace('; ', ', ')}"  # by today's rule; the result holds that of its day


def _data_sets(found: Document) -> str:
    return "; ".join(
        f"{name}: {one['n']} images held out, accuracy {_interval(one['ensemble']['accuracy'], 3)}, balanced "
        f"{_interval(one['ensemble']['balanced_accuracy'], 3)}, AUROC {_interval(one['ensemble']['auroc'], 3)}"
        + (f", aims missed: {_missed(one)}" if one["bars"] else "")
        + f" ({one['cpu']}, {one['date']}, {one['commit']})"
        for name, one in found["sets"].items()
    )


def _leak(found: Document) -> str:
    told = []
    for way, one in found["groups"].items():
        apart = ", ".join(
            f"{each['accuracy']:.3f} on {each['images']} {name}"
            for name, each in one.items()
            if isinstance(each, dict) and each.get("images")
        )
        told.append(f"groups by {way} ({one['pairs']} pairs): accuracy {one['accuracy']['mean']:.3f}, {apart}")
    return "; ".join(told)


def _near_duplicates(found: Document) -> str:
    lowest = {
        name: min(results[kind]["recall"] for kind in found["bar"]["of"]) for name, results in found["sets"].items()
    }
    across = {
        name: f"; {name}: {results['pairs_across_given_groups']} pairs across the given groups, "
        f"{results['images_across_given_groups']} of {results['images']:,} images "
        f"({results['share_across_given_groups']:.2%}, aim: below "
        f"{found['bar']['share_across_given_groups_below']:.2%})"
        for name, results in found["sets"].items()
        if "pairs_across_given_groups" in results
    }
    of_sets = ", ".join(f"{name} {recall:.3f}" for name, recall in lowest.items())
    return f"lowest recall of the bar's alterations: {of_sets}{''.join(across.values())}; missed: " + (
        ", ".join(found["missed"]) or "none"
    )


def _onnx_parity(found: Document) -> str:
    own = {precision: found[precision]["own size"] for precision in ("fp32", "fp16")}
    return "; ".join(
        f"{k}: {v['images']} images, error {v['max_prob_error']:.1e}, {v['flips']} flips" for k, v in own.items()
    )


def _cpp_parity(found: Document) -> str:
    same = found["same_pixels"]
    return f"{found['images']} images: error {same['max_error']:.1e}, {same['other_decisions']} other decisions"


def _ratio_to_python(found: Document) -> str:
    return f"C takes {_interval(found['ratio'], 3)} times as long as Python"


def _overhead(found: Document) -> str:
    return f"{_interval(found['overhead_ms'], 3)} ms at p50"


def _warm_start(found: Document) -> str:
    warm = found["median_ms"]["warm"]
    parts = ", ".join(f"{name} {value:.0f}" for name, value in warm.items() if name in ("verify", "engine", "process"))
    return f"warm {warm['total']:.0f} ms ({parts})"


def _repeatability(found: Document) -> str:
    noticed = "noticed" if found["burning_process_noticed"] else "not noticed"
    of_neighbours = ", ".join(f"{name} {count}" for name, count in found["of_neighbours"].items())
    return (
        f"{found['no_significant_change']} of {found['repeats']} repeats without a change ({of_neighbours}); a thread "
        f"fewer: {found['one_thread_fewer']['verdict']}; a busy neighbour {noticed}"
    )


def _fp16(found: Document) -> str:
    return "; ".join(
        f"{one['backbone']}: error {one['max_prob_error']:.1e}, {one['flips']} flips on {one['images']} images"
        for one in found["runs"]
    )


def _plans(found: Document) -> str:
    wide = [plan for plan in found["plans"] if plan["image_sides"] != "224 px only"]
    rounded = found["fp16_rounded"]
    sizes = "; ".join(
        f"{plan['precision']} {plan['megabytes']:.0f} MB in {plan['seconds']:.1f} s "
        f"({plan['cpu_seconds']:.1f} s of CPU) for {', '.join(plan['targets'])}"
        for plan in wide
    )
    error = f"error {rounded['max_prob_error']:.1e}, {rounded['flips']} flips, {rounded['images']} images"
    return f"{sizes}; fp16 rounded: {error}"


def _runtimes(found: Document) -> str:
    told = []
    for precision in ("fp32", "fp16"):
        for pair in found[precision]["runtime_pairs"]:
            told.append(
                f"{precision}, {pair['first']} and {pair['second']}: {pair['images']} images, probabilities within "
                f"{pair['max_prob_difference']:.1e}, {pair['flips']} flips"
            )
    decoders = [pair for pair in found["fp32"]["decoder_pairs"] if pair["first"] == "edgemed"]
    return "; ".join(told + [f"{one['second']}'s pixels within {one['max_pixel_difference']}" for one in decoders])


def _base(found: Document) -> str:
    base, rtx = found["base"], found["with_rtx"]
    return f"{base['megabytes']:.0f} MB without torch, {rtx['megabytes']:.0f} MB with [rtx]"


FIGURES: dict[str, Callable[[Document], str]] = {
    "peers": _peers,
    "scaling": _scaling,
    "graph-forms": _graph_forms,
    "loading": _loading,
    "patch-entropy": _entropy,
    "patch-entropy-gpu": _entropy,
    "patch-entropy-h100": _entropy,
    "busi-folds": _busi,
    "busi-inner": _inner,
    "busi-leak": _leak,
    "busi-ablation-folds": _ablation,
    "busi-ablation": _ablation,
    "busi-ablation-xeon": _ablation,
    "data-sets": _data_sets,
    "near-duplicates": _near_duplicates,
    "onnx-parity": _onnx_parity,
    "cpp-parity": _cpp_parity,
    "cpp-latency": _ratio_to_python,
    "overhead": _overhead,
    "warm-start": _warm_start,
    "bench-repeatability": _repeatability,
    "convnext-plans": _plans,
    "fp16-rounding": _fp16,
    "runtime-parity": _runtimes,
    "base-install": _base,
}


def rows() -> list[list[str]]:
    """Claim, command, figures, link, date, machine of every result, and of every script that has none."""
    found = []
    for script in sorted(Path(__file__).parent.glob("*.py")):
        source = script.read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(source)) or ""
        command = command_of(docstring)
        if not command or script.name == Path(__file__).name:
            continue  # what others import
        claim, name = docstring.splitlines()[0].rstrip(".:"), script.stem.replace("_", "-")
        results = [
            path for path in sorted(RESULTS.glob("*.json")) if path.stem == name or path.stem.startswith(f"{name}-")
        ]
        for path in results:
            document = json.loads(path.read_text(encoding="utf-8"))
            link = f"[{path.stem}](results/{path.name})"
            figure = FIGURES[path.stem](document) if path.stem in FIGURES else "see the result"
            found.append([claim, command, figure, link, document.get("date", "not noted"), _machine(document)])
        if not results:
            state = "not measured" if "keep(" in source else "prints its figures, and keeps none"
            found.append([claim, command, state, "", "", ""])
    return found


def _machine(document: Document) -> str:
    machine = document.get("machine")
    if not isinstance(machine, dict):
        return machine or "not noted"
    kind = machine.get("cpu") or machine.get("processor") or "unknown"
    parts = [kind, f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"]
    if machine.get("gpu", "not measured") != "not measured":
        parts.append(machine["gpu"])
    parts += [f"note: {warning}" for warning in document.get("warnings", ())]
    return ", ".join(parts)


def page(found: list[list[str]]) -> str:
    """The rows as Markdown, one section per script."""
    text, before = HEAD, ""
    for claim, command, figures, link, date, machine in found:
        if command != before:
            text += f"\n## {claim}\n\n`{command}`\n"
        before = command
        text += f"\n{link}, {date}, {machine}:\n\n" if link else "\n"
        text += "".join(f"- {figure}\n" for figure in figures.split("; "))  # as each of `FIGURES` joins them
    return text


def main() -> None:
    found = rows()
    (ROOT / "benchmarks" / "README.md").write_text(page(found), encoding="utf-8")
    print(json.dumps({"readme": "benchmarks/README.md", "results": len(found)}))


if __name__ == "__main__":
    main()
