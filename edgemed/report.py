"""The report of a run: one HTML file with what was run, what came out, and what to look at before trusting it.

Why one file without scripts, fonts or links: it shows patient data, so nothing in it may ask another machine for
anything (a content security policy in the page holds the browser to that), and it opens from any disk, years later.

    edgemed train DATA --out RUN        # writes RUN/report.html

Every name that comes from the user (classes, paths, groups, warnings) is escaped where it enters the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

from edgemed.evaluate import Table
from edgemed.metrics import INTERVAL_METRICS
from edgemed.report_evidence import (
    Duplicate,
    Hard,
    classes_html,
    duplicates_section,
    hardest_section,
    operating_section,
    probabilities_section,
    roc_section,
)
from edgemed.report_page import Cell, bounds, grid, number, page, section, signed, table
from edgemed.report_training import History, MaskExample, curves_html, examples_html
from edgemed.stats import FEWEST_GROUPS

NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "auroc": "AUROC, one versus rest",
    "ece": "Calibration error (ECE)",
}
PATIENT_DATA = "This page shows patient data and must not be shared."

SplitTable = Mapping[str, Mapping[str, int]]
"""Images by split and class."""


def report_html(
    *,
    info: Mapping[str, Any],
    metrics: Mapping[str, Any],
    histories: History,
    split_table: SplitTable,
    fold_table: SplitTable,
    examples: Sequence[MaskExample],
    test: Table,
    hardest: Sequence[Hard],
    duplicates: Sequence[Duplicate],
    warnings: Sequence[str],
) -> str:
    """The whole page as text, to be written as UTF-8.

    info: run.json. metrics: metrics.json (with `folds`: the pooled figures and each fold's). histories: per member rows
    with epoch, train_loss, validation_loss, validation_accuracy; under "pretraining" rows with epoch, loss.
    fold_table: the splits of every fold, where there are folds. test: the members' answers on the test images, of all
    folds where there are.
    """
    name = PurePath(str(info["dataset"]["root"])).name or "data"
    title = f"{info['config']['backbone']} on {name}"
    pretrained = examples or ("folds" in metrics and info["config"]["pretrain_epochs"])
    sections = [
        _headline(metrics),
        _results(metrics),
        _folds(metrics),
        operating_section(metrics),
        probabilities_section(metrics, test),
        roc_section(test, metrics["classes"]),
        _confusions(metrics),
        hardest_section(hardest),
        section("Training", curves_html(histories, folded="folds" in metrics)),
        section("Entropy and masks", examples_html(examples, folded="folds" in metrics)) if pretrained else "",
        _data(split_table, fold_table, info, warnings),
        duplicates_section(duplicates),
        _what_was_run(info, folded="folds" in metrics),
    ]
    content = f'<p class="soft">{escape(_summary(info))}</p>\n' + "\n".join(part for part in sections if part)
    return page(title, f"<strong>{PATIENT_DATA}</strong> Keep it where the images are kept.", content)


def _summary(info: Mapping[str, Any]) -> str:
    config, dataset = info["config"], info["dataset"]
    return (
        f"Training report of edgemed {info['edgemed']}: {dataset['n']:,} images in {dataset['groups']:,} groups, "
        f"{len(dataset['classes'])} classes, {config['size']} px, seed {config['seed']}, {info['device']['device']}"
    )


def _headline(metrics: Mapping[str, Any]) -> str:
    ensemble = metrics["ensemble"]
    tiles = "".join(
        f'<div class="tile"><span>{NAMES[key]}</span><b>{number(ensemble[key]["value"])}</b>'
        f"<span>{bounds(ensemble[key])}</span></div>"
        for key in INTERVAL_METRICS
    )
    return section("The ensemble", f'<div class="tiles">{tiles}</div><p>{_verdict(metrics)}</p>{_basis(metrics)}')


def _verdict(metrics: Mapping[str, Any]) -> str:
    """What the data say about the ensemble against its better member, in one sentence."""
    gain = metrics["ensemble_minus_better"]
    better = escape(str(gain["better"]))
    if gain["low"] is None:
        says = "without an interval, since the groups are too few, it says nothing about other images."
    elif gain["low"] > 0:
        says = "the interval lies above 0, so the ensemble is more accurate on images like these."
    elif gain["high"] < 0:
        says = "the interval lies below 0: the better member alone is more accurate on images like these, though it is "
        says += "flattered by having been picked on them."
    else:
        says = "the interval contains 0, so these images do not show that the two differ."
    return (
        f"Accuracy of the ensemble minus that of its better member ({better}): "
        f"<strong>{gain['value']:+.3f}</strong> "
        f'<span class="interval">{bounds(gain, signed)}</span>, '
        f"paired on the same images; {says}"
    )


def _basis(metrics: Mapping[str, Any]) -> str:
    return (
        f'<p class="note">Measured on {metrics["n"]:,} images in {metrics["groups"]:,} groups (patients, lesions or '
        f"near-duplicates), split: {escape(str(metrics['split']))}. Brackets: 95 % intervals over groups, none from "
        f"fewer than {FEWEST_GROUPS} (of one size; a few that hold most images count for less); of averages over "
        "classes, none where any class is in fewer.</p>"
    )


def _results(metrics: Mapping[str, Any]) -> str:
    predictors = _predictors(metrics)
    rows: list[list[Cell]] = [
        [NAMES[key], *((number(each[key]["value"]), bounds(each[key])) for each in predictors.values())]
        for key in INTERVAL_METRICS
    ]
    rows.append([NAMES["ece"], *(number(each["ece"]) for each in predictors.values())])
    chance = [each["ece_by_chance"] for each in predictors.values()]
    rows.append(["ECE by chance", *((number(each["mean"]), f"(up to {number(each['high'])})") for each in chance)])
    if temperatures := metrics.get("temperatures"):
        rows.append(["Temperature", *(number(temperatures.get(name)) for name in predictors)])
    note = (
        '<p class="note">The ensemble is the mean of its members\' probabilities. ECE: top-label, 10 bins of equal '
        "mass; by chance: what exact probabilities would show on as many images, and what they would exceed in one "
        "case of 40. Accuracies, F1, AUROC and ECE are fractions from 0 to 1.</p>"
    )
    each_class = classes_html(predictors, metrics["classes"])
    return section(
        "Each member and the ensemble", f"{table(['', *predictors], rows)}{note}{_comparisons(metrics)}{each_class}"
    )


def _comparisons(metrics: Mapping[str, Any]) -> str:
    """Each predictor against the others, paired."""
    rows: list[list[Cell]] = [
        [
            f"{pair['a']} minus {pair['b']}",
            *((signed(pair[key]["value"]), bounds(pair[key], signed)) for key in ("accuracy", "auroc")),
            f"{pair['mcnemar']['only_a']:,} / {pair['mcnemar']['only_b']:,}",
            f"{pair['mcnemar']['p']:.2g}",
        ]
        for pair in metrics["comparisons"]
    ]
    note = (
        '<p class="note">Differences on the same images, with 95 % intervals of a paired bootstrap of groups. Only one '
        "right: images that the first alone, and the second alone, decides rightly; McNemar's exact p of that division "
        "takes images for independent, the intervals do not.</p>"
    )
    head = ["", "Accuracy", "AUROC", "Only one right", "McNemar's p"]
    return f"<h3>Compared on the same images</h3>{table(head, rows)}{note}"


def _folds(metrics: Mapping[str, Any]) -> str:
    folds = metrics.get("folds")
    if not folds:
        return ""
    parts = []
    for key in INTERVAL_METRICS:
        count = len(folds["ensemble"][key]["folds"])
        head = ["", "mean", "std. dev.", *(f"fold {k + 1}" for k in range(count))]
        rows: list[list[Cell]] = [
            [name, number(of[key]["mean"]), number(of[key]["std"]), *map(number, of[key]["folds"])]
            for name, of in folds.items()
        ]
        parts.append(f"<div><h3>{NAMES[key]}</h3>{table(head, rows)}</div>")
    note = '<p class="note">Above: all folds pooled. Here: each fold by itself, on its own test images.</p>'
    return section("Fold by fold", grid(parts, 560) + note)


def _confusions(metrics: Mapping[str, Any]) -> str:
    labels = metrics["classes"]
    matrices = {name: (labels, each["confusion"]) for name, each in _predictors(metrics).items()}
    if decisions := (metrics["operating"] or {}).get("decisions"):
        referral = any(row[-1] for row in decisions)
        columns = [*labels, "referred"] if referral else labels
        matrices["ensemble at the operating point"] = (columns, [row[: len(columns)] for row in decisions])
    figures = []
    for name, (columns, counts_of) in matrices.items():
        head = "".join(f'<th scope="col">{escape(label)}</th>' for label in columns)
        rows = ""
        for label, counts in zip(labels, counts_of, strict=True):
            total = sum(counts)
            cells = "".join(_confusion_cell(count, count / total if total else None) for count in counts)
            rows += f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>'
        figures.append(
            f'<div><h3>{escape(name)}</h3><div class="scroll"><table class="confusion"><thead><tr><th>true \\ decided'
            f"</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>"
        )
    note = '<p class="note">Images; below each count its share of the true class (the row).</p>'
    return section(
        "Confusion matrices", grid(figures, 110 + 70 * max(len(columns) for columns, _ in matrices.values())) + note
    )


def _confusion_cell(count: int, share: float | None) -> str:
    strength = share or 0.0
    ink = "#fff" if strength > 0.6 else "inherit"
    style = f"background:rgba(0,84,134,{0.04 + 0.86 * strength:.3f});color:{ink}"
    below = "-" if share is None else f"{100 * share:.1f} %"
    return f'<td style="{style}">{count}<span class="sub">{below}</span></td>'


def _data(split_table: SplitTable, fold_table: SplitTable, info: Mapping[str, Any], warnings: Sequence[str]) -> str:
    classes = info["dataset"]["classes"]
    rows = _split_rows(split_table, classes)
    totals = [sum(counts.get(label, 0) for counts in split_table.values()) for label in classes]
    if len(rows) > 1:
        rows.append(["all splits", *(f"{total:,}" for total in totals), f"{sum(totals):,}"])
    head = ["Split", *classes, "total"]
    folds = table(head, _split_rows(fold_table, classes))
    every = f"<details><summary>In each fold</summary>{folds}</details>" if fold_table else ""
    listed = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    warned = f"<ul>{listed}</ul>" if listed else "<p>None.</p>"
    return section("Images by split and class", f"{table(head, rows)}{every}<h3>Warnings</h3>{warned}")


def _split_rows(counted: SplitTable, classes: Sequence[str]) -> list[list[Cell]]:
    return [
        [split, *(f"{counts.get(label, 0):,}" for label in classes), f"{sum(counts.values()):,}"]
        for split, counts in counted.items()
    ]


def _what_was_run(info: Mapping[str, Any], *, folded: bool) -> str:
    config, dataset = info["config"], info["dataset"]
    durations = _pairs({stage: _duration(seconds) for stage, seconds in info["durations"].items()})
    unknown = "in each fold's report: folds/K/report.html" if folded else "not measured"
    crops = f", learnt from crops of {config['train_size']} px" if config["train_size"] else ""
    facts = {
        "Backbone": config["backbone"],
        "Image size": f"{config['size']} px{crops}, pretraining {config['pretrain_size']} px",
        "Seed": config["seed"],
        "Data": f"{dataset['root']}: {dataset['n']:,} images in {dataset['groups']:,} groups",
        "Data fingerprint": dataset["fingerprint"],
        "Device": _pairs(info["device"]),
        "Durations": durations or unknown,
        "Versions": f"edgemed: {info['edgemed']}; {_pairs(info['versions'])}",
    }
    settings = table(["Setting", "Value"], [[key, str(value)] for key, value in config.items()], "text")
    every = f"<details><summary>All settings</summary>{settings}</details>"
    rows: list[list[Cell]] = [[key, str(value)] for key, value in facts.items()]
    return section("What was run", table(["", ""], rows, "text") + every)


def _predictors(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {"ensemble": metrics["ensemble"], **metrics["members"]}


def _pairs(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in values.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
