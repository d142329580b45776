"""The report's looks: its style sheet, and its pictures as `data:` addresses. `report.py` puts them into the page.

Why on its own: everything that touches matplotlib or encodes an image is here, and no text of the user's enters a
picture (names stand in the page, escaped). Figures use matplotlib's object interface, so no global state is left.

    edgemed train DATA --out RUN        # writes RUN/report.html
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

TRAINING, VALIDATION = "#0072b2", "#d55e00"  # blue and vermilion of Okabe and Ito, told apart by colour-blind readers
COLOURS = "viridis"
REMOVED = (196, 199, 204)

_SETTINGS = {
    "svg.fonttype": "path",  # the same letters on every machine, no font to load
    "svg.hashsalt": "edgemed",  # the same run gives the same bytes
    "font.size": 9,
    "axes.edgecolor": "#8a929c",
    "axes.labelcolor": "#3c454f",
    "xtick.color": "#3c454f",
    "ytick.color": "#3c454f",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e7e9ec",
    "axes.axisbelow": True,
    "legend.frameon": False,
}

History = Mapping[str, Sequence[Mapping[str, Any]]]
"""Per member (and "pretraining") one row per epoch."""


@dataclass(frozen=True)
class MaskExample:
    """A training image and what the masked autoencoder saw of it."""

    image: NDArray[np.uint8]
    """(S, S, 3) RGB"""
    entropy: NDArray[np.floating]
    """(h, w) bits per unit"""
    mask: NDArray[np.bool_]
    """(h, w), True = removed"""
    reconstruction: NDArray[np.uint8] | None = None
    """(S, S, 3) RGB with the removed units filled in by the decoder, or None"""


def curves_html(histories: History, *, folded: bool) -> str:
    """The charts of pretraining and of each member, as figures for the page; a folded run has none of its own."""
    members = {name: rows for name, rows in histories.items() if name != "pretraining" and rows}
    losses = [row[key] for rows in members.values() for row in rows for key in ("train_loss", "validation_loss")]
    accuracies = [row["validation_accuracy"] for rows in members.values() for row in rows]
    parts = []
    if pretraining := histories.get("pretraining"):
        points = [(row["epoch"], row["loss"]) for row in pretraining]
        picture = curves_svg({"pretraining": points}, "reconstruction loss", colours=[TRAINING])
        parts.append(_row("Masked pretraining", [_figure(picture, f"loss; {points[-1][1]:.4f} at the end")]))
    for name, rows in members.items():
        best = min(rows, key=lambda row: row["validation_loss"])
        lines = {
            "training": [(row["epoch"], row["train_loss"]) for row in rows],
            "validation": [(row["epoch"], row["validation_loss"]) for row in rows],
        }
        loss = curves_svg(
            lines, "loss", colours=[TRAINING, VALIDATION], ylim=common_limits(losses, 0.0), marked=best["epoch"]
        )
        accuracy = curves_svg(
            {"validation": [(row["epoch"], row["validation_accuracy"]) for row in rows]},
            "validation accuracy",
            colours=[VALIDATION],
            ylim=common_limits(accuracies),
            marked=best["epoch"],
        )
        figures = [
            _figure(loss, f"loss; {best['validation_loss']:.4f} on validation at epoch {best['epoch']}, the lowest"),
            _figure(accuracy, f"accuracy on validation; {best['validation_accuracy']:.3f} at that epoch (dashed)"),
        ]
        parts.append(_row(name, figures))
    if not parts:
        return "<p>The curves are in each fold's report: folds/K/report.html.</p>" if folded else "<p>Not measured.</p>"
    return "".join(parts) + (
        '<p class="note">Training loss includes augmentation, label smoothing and class weights, validation loss does '
        "not: compare their course, not their height. The members share their vertical scales.</p>"
    )


def _row(title: str, figures: Sequence[str]) -> str:
    return f'<h3>{escape(title)}</h3><div class="curves">{"".join(figures)}</div>'


def _figure(picture: str, caption: str) -> str:
    text = escape(caption)
    return f'<figure><img src="{picture}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def examples_html(examples: Sequence[MaskExample]) -> str:
    """One row of pictures for each of at least one example: image, entropy, what the mask left, reconstruction."""
    low = min(float(example.entropy.min()) for example in examples)
    high = max(float(example.entropy.max()) for example in examples)
    filled = any(example.reconstruction is not None for example in examples)
    panels = []
    for number, example in enumerate(examples, 1):
        side = example.image.shape[0]
        pictures = {
            f"image {number}": example.image,
            f"entropy, {example.entropy.min():.2f} to {example.entropy.max():.2f} bit": heat_map(
                example.entropy, low, high, side
            ),
            f"{example.mask.sum()} of {example.mask.size} removed": without_removed(example.image, example.mask),
        }
        if example.reconstruction is not None:
            pictures["reconstruction"] = example.reconstruction
        panels += [_figure(image_png(picture), caption) for caption, picture in pictures.items()]
        if filled and example.reconstruction is None:
            panels.append("<figure></figure>")
    scale = (
        f'<div class="scale"><span>Entropy per unit: {low:.2f} bit</span>'
        f'<i style="background:{colour_scale()}"></i><span>{high:.2f} bit</span></div>'
    )
    intro = (
        "<p>Training images, the entropy of their units, and one draw of the mask: what is grey was hidden from the "
        "network during pretraining."
        + (" Reconstructions borrow each hidden unit's true mean and contrast.</p>" if filled else "</p>")
    )
    shape = "examples" if filled else "examples three"
    return f'{intro}{scale}<div class="{shape}">{"".join(panels)}</div>'


def curves_svg(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    ylabel: str,
    *,
    colours: Sequence[str],
    ylim: tuple[float, float] | None = None,
    marked: float | None = None,
) -> str:
    """A line chart over epochs as a `data:` SVG. curves: label -> [(epoch, value), ...], one colour each.

    `marked`: an epoch to mark with a dashed line. The labels must be the program's own words, not the user's.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.subplots()
        for (label, points), colour in zip(curves.items(), colours, strict=True):
            epochs, values = zip(*points, strict=True)
            # A single epoch has no line to draw, so it gets a dot.
            axes.plot(epochs, values, color=colour, label=label, lw=1.6, marker="o" if len(points) == 1 else "", ms=4)
        if marked is not None:
            axes.axvline(marked, color="#8a929c", lw=1, ls="--", zorder=1)
        if ylim:
            axes.set_ylim(*ylim)
        axes.set_xlabel("epoch")
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(curves) > 1:
            axes.legend(loc="best")
        buffer = io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def common_limits(values: Sequence[float], lowest: float | None = None) -> tuple[float, float] | None:
    """One y range for several charts: all finite values with 5 % to spare, from `lowest` on. None without values."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    margin = 0.05 * (high - low) or 0.05
    return (max(low - margin, lowest) if lowest is not None else low - margin), high + margin


def image_png(image: NDArray[np.uint8]) -> str:
    """(H, W, 3) uint8 RGB as a `data:` PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat_map(values: NDArray[np.floating], low: float, high: float, side: int) -> NDArray[np.uint8]:
    """(h, w) values as a (side, side, 3) uint8 picture: `low` dark, `high` bright, one flat square per value."""
    scaled = (np.asarray(values, dtype=np.float64) - low) / max(high - low, 1e-12)
    colours = matplotlib.colormaps[COLOURS](np.clip(scaled, 0, 1), bytes=True)[..., :3]
    return np.ascontiguousarray(enlarged(colours, side))


def without_removed(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(S, S, 3) uint8 with the units where the (h, w) mask is True, = removed, painted grey."""
    hidden = enlarged(mask, image.shape[0])
    return np.where(hidden[..., None], np.array(REMOVED, dtype=np.uint8), image)


def enlarged(units: NDArray[Any], side: int) -> NDArray[Any]:
    """(h, w, ...) -> (side, side, ...): every pixel takes the unit that it lies in."""
    rows = np.arange(side) * units.shape[0] // side
    columns = np.arange(side) * units.shape[1] // side
    pixels: NDArray[Any] = units[rows[:, None], columns[None, :]]
    return pixels


def colour_scale() -> str:
    """The CSS gradient of `heat_map`, from low to high."""
    stops = matplotlib.colormaps[COLOURS](np.linspace(0, 1, 9), bytes=True)[:, :3]
    return "linear-gradient(to right," + ",".join(f"rgb({r},{g},{b})" for r, g, b in stops) + ")"


STYLE = """
:root { color-scheme: light; --ink: #1c232b; --soft: #56616d; --line: #dfe3e8; --paper: #fff; --tint: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--tint); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.banner { background: #fff3d6; border-bottom: 1px solid #e5c876; color: #4a3600; }
.banner p, main { max-width: 1120px; margin: 0 auto; padding: .6rem 1rem; }
main { padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
h2 + h3, .grid h3 { margin-top: 0; }
h1, h3, p, li, figcaption, .text td { overflow-wrap: anywhere; }
p { margin: 0 0 .75rem; max-width: 80ch; }
.soft, .sub, .note, figcaption, .tile span { color: var(--soft); }
.note, figcaption, .scale, .tile span { font-size: .875rem; }
.note { margin: .6rem 0 0; } .interval { white-space: nowrap; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem;
  margin: 1rem 0 0; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: .75rem; margin: 0 0 1rem; }
.tile { background: var(--tint); border-radius: 8px; padding: .75rem 1rem; }
.tile b { display: block; font-size: 1.75rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .925rem; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; font-weight: 400; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
thead .over th { text-align: center; border: 0; padding-bottom: 0; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  white-space: normal; min-width: 5.5rem; max-width: 14rem; }
.text td, .text th { text-align: left; position: static; white-space: normal; max-width: none; }
.text td:nth-child(-n+2) { min-width: 8rem; }
.sub { display: block; font-size: .8rem; }
table.confusion { font-size: .875rem; }
.confusion th, .confusion td { padding: .3rem .4rem; }
.confusion td { text-align: center; border: 2px solid var(--paper); min-width: 3.9rem; }
.confusion thead th { text-align: center; } .confusion .sub { color: inherit; }
.grid, .curves, .examples { display: grid; gap: 1.25rem; }
.curves { grid-template-columns: repeat(2, minmax(0, 480px)); }
.examples { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 1rem .75rem; margin: 1rem 0 0; max-width: 900px; }
.three { grid-template-columns: repeat(3, minmax(0, 1fr)); max-width: 675px; }
.grid > * { min-width: 0; }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; }
figcaption { margin: .3rem 0 0; }
.examples img { border-radius: 6px; image-rendering: pixelated; }
.scale { display: flex; gap: .3rem .6rem; align-items: center; color: var(--soft); flex-wrap: wrap; }
.scale i { width: 9rem; height: .8rem; border-radius: 4px; }
ul { padding-left: 1.2rem; margin: 0; }
details { margin: .75rem 0 0; } summary { cursor: pointer; color: #0b5f94; margin: 0 0 .4rem; }
.conflict { color: #9a3412; }
@media (max-width: 640px) {
  body { font-size: 15px; } main { padding: 1rem .6rem 3rem; } section { padding: 1rem .85rem; }
  h1 { font-size: 1.4rem; } .tile { padding: .6rem .7rem; } .tile b { font-size: 1.4rem; }
  .tiles, .examples { grid-template-columns: repeat(2, minmax(0, 1fr)); } .curves { grid-template-columns: 100%; }
  .three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  th, td { padding: .35rem .3rem; } thead th { font-size: .8rem; } td .sub { white-space: normal; min-width: 3.9rem; }
  th:first-child, td:first-child { min-width: 5rem; max-width: 7.5rem; } .text td:nth-child(-n+2) { min-width: 6.5rem; }
}
@media print { body { background: none; } section { break-inside: avoid; border: 0; padding: .5rem 0; } }
"""
