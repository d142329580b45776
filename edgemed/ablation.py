"""What an ablation says: from the cells' predictions to a table, a figure and a sentence.

    edgemed ablate DATA --out FOLDER        # writes FOLDER/ablation.json and FOLDER/ablation.html

Every predictor is judged on the same test images, out of fold, and compared with the method's own by a paired
bootstrap over groups. The sentence rests on one comparison that was chosen beforehand, not on the best of many:
imagenet + mae against imagenet + imagenet', two members that differ in their seed alone, by their accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgemed.evaluate import Array, Table, comparison
from edgemed.metrics import metrics_with_intervals
from edgemed.predictions import joined, read_table
from edgemed.report_page import Cell, bounds, charts, figure, number, page, section, signed, table
from edgemed.report_plots import intervals_svg
from edgemed.temperatures import fitted_temperatures

CELLS = {
    "entropy-imagenet": "mae",
    "none-imagenet": "imagenet'",
    "random-imagenet": "mae, random masks",
    "again-imagenet": "mae'",
    "low-entropy-imagenet": "mae, low-entropy masks",
    "renyi-imagenet": "mae, Rényi's entropy",
    "entropy-scratch": "mae from scratch",
    "random-scratch": "mae from scratch, random masks",
    "low-entropy-scratch": "mae from scratch, low-entropy masks",
    "none-scratch": "scratch, no pretraining",
}
"""Each cell, in the order in which they are trained, and what its second member is called; ' means another seed."""

VARIED = ("start", "sharpness", "pretrain_epochs", "renyi_order", "seed")
"""The settings in which cells differ."""

MEMBER, ENSEMBLE, CONTROL = "mae", "imagenet + mae", "imagenet + imagenet'"
SEEN = {"accuracy": "accuracy", "auroc": "AUROC"}
TINY = float(np.finfo(np.float32).tiny)  # a probability whose logarithm is finite


def ablation(cells: Mapping[str, Sequence[Path]], classes: Sequence[str], info: Mapping[str, Any]) -> dict[str, Any]:
    """The document `ablation.json` of at least one finished cell.

    cells: the finished ones' names with their run, or its folds. info: `run.json` of the whole.
    """
    tables = {name: [read_table(run, classes, "test") for run in runs] for name, runs in cells.items()}
    whole = {name: joined(parts) for name, parts in tables.items()}
    test = next(iter(whole.values()))
    assert all(each.paths == test.paths for each in whole.values())  # they were begun on the same folds
    folds = [len(part.labels) for part in next(iter(tables.values()))]
    members = {"imagenet": _calibrated(next(iter(cells.values())), member=0, classes=classes)}
    members |= {CELLS[name]: _calibrated(runs, member=1, classes=classes) for name, runs in cells.items()}
    ensembles = {f"imagenet + {CELLS[name]}": each.probabilities for name, each in whole.items()}
    if {"entropy-imagenet", "again-imagenet"} <= set(cells):
        pair = cells["entropy-imagenet"], cells["again-imagenet"]
        ensembles["mae + mae'"] = _calibrated(*pair, member=1, classes=classes)
    of_member = {CELLS[name]: name for name in cells}
    result: dict[str, Any] = {
        "schema": 1,
        "edgemed": info["edgemed"],
        "config": info["config"],
        "fingerprint": info["dataset"]["fingerprint"],
        "classes": list(classes),
        "n": len(test.labels),
        "groups": len(set(test.groups)),
        "folds": len(folds),
        "cells": list(cells),
        "not_run": [name for name in CELLS if name not in cells],
        "members": [
            {"name": name, "cell": of_member.get(name)} | _row(shares, members.get(MEMBER), name, MEMBER, test, classes)
            for name, shares in members.items()
        ],
        "ensembles": [
            {"name": name} | _row(shares, ensembles.get(ENSEMBLE), name, ENSEMBLE, test, classes)
            for name, shares in ensembles.items()
        ],
        "claim": None,
    }
    for row, shares in zip(result["members"] + result["ensembles"], (members | ensembles).values(), strict=True):
        right = np.split(shares.argmax(axis=1) == test.labels, np.cumsum(folds)[:-1])
        row["accuracy_by_fold"] = [float(part.mean()) for part in right]
    if ENSEMBLE in ensembles and CONTROL in ensembles:
        found = comparison(test.labels, ensembles[ENSEMBLE], ensembles[CONTROL], test.groups)
        result["claim"] = {"a": ENSEMBLE, "b": CONTROL} | found
    return result | {"sentence": sentence(result)}


def _calibrated(*cells: Sequence[Path], member: int, classes: Sequence[str]) -> Array:
    """The mean test probabilities (N, K) of one member of each of these cells, with temperatures fitted for it.

    A run's are fitted for its own pair: a member by itself, or beside another one, takes others.
    """
    pooled = []
    for runs in zip(*cells, strict=True):  # a fold
        known = [read_table(run, classes, "calibration") for run in runs]
        if not len(known[0].labels):
            known = [read_table(run, classes, "validation") for run in runs]
        tables = [*known, *(read_table(run, classes, "test") for run in runs)]
        logits = [torch.from_numpy(table.members[:, member].clip(min=TINY)).double().log() for table in tables]
        temperatures = fitted_temperatures(logits[: len(runs)], known[0].labels.tolist())
        shares = [
            torch.softmax(each / value, 1) for each, value in zip(logits[len(runs) :], temperatures, strict=True)
        ]
        pooled.append(torch.stack(shares).mean(0).float().numpy())
    return np.concatenate(pooled)


def _row(
    shares: Array, reference: Array | None, name: str, other: str, test: Table, classes: Sequence[str]
) -> dict[str, Any]:
    """The metrics of one predictor, (N, K), and its comparison with the reference, if that is another one."""
    row: dict[str, Any] = metrics_with_intervals(test.labels, shares, test.groups, classes)
    row["minus"] = None
    if reference is not None and name != other:
        row["minus"] = {"b": other} | comparison(test.labels, shares, reference, test.groups)
    return row


def sentence(found: Mapping[str, Any]) -> str:
    """What the data say of the method's claim; a null result is called one, and a missing cell too."""
    claim = found["claim"]
    if claim is None:
        missing = [name for name in ("entropy-imagenet", "none-imagenet") if name in found["not_run"]]
        return f"Whether masked pretraining adds to a second seed is not known: not run: {', '.join(missing)}."
    figures = "; ".join(
        f"{name} {signed(claim[key]['value'])} {bounds(claim[key], signed)}" for key, name in SEEN.items()
    )
    accuracy = claim["accuracy"]
    if accuracy["low"] is None:
        says = "the accuracy has no interval, so nothing is shown"
    elif accuracy["low"] <= 0 <= accuracy["high"]:
        says = (
            "the interval of the accuracy holds 0: these images do not show that masked pretraining adds more than "
            "another seed does"
        )
    else:
        word = "adds more than" if accuracy["low"] > 0 else "falls behind"
        says = f"in these trainings, masked pretraining {word} another seed in accuracy; other trainings may differ"
    return (
        f"{claim['a']} minus {claim['b']} on the same {found['n']:,} images in {found['groups']:,} groups: {figures}; "
        f"{says}."
    )


def ablation_html(found: Mapping[str, Any], name: str) -> str:
    """The table, the figure and the sentence as one page without scripts; it holds no image and names none."""
    kinds = {"Members": found["members"], "Ensembles of two": found["ensembles"]}
    body = section("What the data say", f"<p><strong>{escape(found['sentence'])}</strong></p>{_basis(found)}")
    for (title, rows), reference in zip(kinds.items(), (MEMBER, ENSEMBLE), strict=True):
        body += section(title, _table(rows, reference) + charts("In pictures", _figures(rows, reference)))
    if len(places := found.get("places", {})) > 1:
        lines: list[list[Cell]] = [[", ".join(cells), place] for place, cells in places.items()]
        note = '<p class="note">Not all cells were trained in one place, which may account for a difference.</p>'
        body += section("Places", note + table(["Cells", "Device and versions"], lines, "text"))
    if found["not_run"]:
        body += section("Not run", f"<p>{escape(', '.join(found['not_run']))}</p>")
    shared = [[key, str(value)] for key, value in found["config"].items() if key not in VARIED]
    config = table(["Setting", "Value"], shared, "text")
    body += section("Settings", f"<details><summary>Those that the cells share</summary>{config}</details>")
    title = f"Ablation of {found['config']['backbone']} on {name}"
    return page(title, "Figures of one data set; no images.", body)


def _basis(found: Mapping[str, Any]) -> str:
    both_seeds = {"entropy-imagenet", "again-imagenet"} <= set(found["cells"])
    seeds = ": what a seed does is the difference of mae and mae'" if both_seeds else ""
    return (
        f'<p class="note">{found["n"]:,} images in {found["groups"]:,} groups, '
        + (f"out of fold ({found['folds']} folds)" if found["folds"] > 1 else "the test split")
        + ". A name with ' is of another seed. Brackets: 95 % intervals over groups; differences are paired. They tell "
        f"of other images, not of another training{seeds}. The many differences below are not corrected "
        "for their number; the sentence rests on one that was chosen beforehand, of accuracy. McNemar's p takes images "
        "for independent, the intervals do not.</p>"
    )


def _table(rows: Sequence[Mapping[str, Any]], reference: str) -> str:
    lines: list[list[Cell]] = []
    compared = any(row["minus"] for row in rows)
    for row in rows:
        cells: list[Cell] = [row["name"]]
        cells += [(number(row[key]["value"]), bounds(row[key])) for key in SEEN]
        cells.append(number(row["ece"]))
        if minus := row["minus"]:
            cells += [(signed(minus[key]["value"]), bounds(minus[key], signed)) for key in SEEN]
            cells.append(f"{minus['mcnemar']['p']:.2g}")
        elif compared:
            cells += ["-"] * 3
        lines.append(cells)
    head = ["", "Accuracy", "AUROC", "ECE"]
    if not compared:
        return table(head, lines)
    over = [("", 4), (f"minus {reference}", 3)]
    return table([*head, "Accuracy", "AUROC", "McNemar's p"], lines, over=over)


def _figures(rows: Sequence[Mapping[str, Any]], reference: str) -> list[str]:
    def of(interval: Mapping[str, float]) -> tuple[float, float, float]:
        low, high = (math.nan if interval[key] is None else interval[key] for key in ("low", "high"))  # not drawn
        return interval["value"], low, high

    values = {row["name"]: of(row["accuracy"]) for row in rows}
    caption = "accuracy, 95 % intervals"
    figures = [figure(intervals_svg(values, "accuracy", reference, nothing=False), caption)]
    if any(row["minus"] for row in rows):
        minus = {row["name"]: of(row["minus"]["accuracy"]) if row["minus"] else (0.0, 0.0, 0.0) for row in rows}
        caption = f"accuracy minus that of {reference} (orange), paired, 95 % intervals"
        figures.append(figure(intervals_svg(minus, "difference of accuracy", reference, nothing=True), caption))
    return figures
