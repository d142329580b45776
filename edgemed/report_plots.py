"""The report's pictures as `data:` addresses: charts and images.

Why on its own: everything that touches matplotlib or encodes an image is here, and no text of the user's enters a
picture (names stand in the page, escaped). Figures use matplotlib's object interface, so no global state is left.

    edgemed train DATA --out RUN        # writes RUN/report.html
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from edgemed.curves import Reliability, Roc

TRAINING, VALIDATION = "#0072b2", "#d55e00"  # blue and vermilion of Okabe and Ito, told apart by colour-blind readers
GREY = "#8a929c"
COLOURS = "viridis"
REMOVED = (196, 199, 204)

_SETTINGS = {
    "svg.fonttype": "path",  # the same letters on every machine, no font to load
    "svg.hashsalt": "edgemed",  # the same run gives the same bytes
    "font.size": 9,
    "axes.edgecolor": GREY,
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

    def draw(axes: Axes) -> None:
        for (label, points), colour in zip(curves.items(), colours, strict=True):
            epochs, values = zip(*points, strict=True)
            # A single epoch has no line to draw, so it gets a dot.
            axes.plot(epochs, values, color=colour, label=label, lw=1.6, marker="o" if len(points) == 1 else "", ms=4)
        if marked is not None:
            axes.axvline(marked, color=GREY, lw=1, ls="--", zorder=1)
        if ylim:
            axes.set_ylim(*ylim)
        axes.set_xlabel("epoch")
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(curves) > 1:
            axes.legend(loc="best")

    return _svg(draw)


def reliability_svg(bins: Reliability) -> str:
    """Accuracy over confidence in bins of equal mass, with intervals; the dashed line is a perfect calibration."""

    def draw(axes: Axes) -> None:
        axes.plot((0, 1), (0, 1), color=GREY, lw=1, ls="--", zorder=1)
        spread = np.maximum([bins.accuracy - bins.low, bins.high - bins.accuracy], 0)
        axes.errorbar(bins.confidence, bins.accuracy, spread, color=TRAINING, fmt="o", ms=4, lw=1.2, capsize=2)
        axes.set_xlabel("confidence (largest probability)")
        axes.set_ylabel("accuracy")
        low = min(0.95, float(bins.low.min()), float(bins.confidence.min()))
        axes.set(xlim=(low - 0.02, 1.02), ylim=(low - 0.02, 1.02))

    return _svg(draw)


def risk_svg(curve: Mapping[str, Any], marked: float | None) -> str:
    """Error among the answered images over their share. `marked`: the share that the operating point answers."""

    def draw(axes: Axes) -> None:
        for name, colour in (("disagreement", TRAINING), ("confidence", VALIDATION)):
            axes.plot(curve["coverage"], curve[name]["risk"], color=colour, label=f"by {name}", lw=1.6)
        if marked is not None:
            axes.axvline(marked, color=GREY, lw=1, ls="--", zorder=1)
        axes.set(xlim=(0, 1.02), xlabel="share of images that are answered", ylabel="error among them")
        axes.set_ylim(bottom=0)
        axes.legend(loc="best")

    return _svg(draw)


def roc_svg(curve: Roc) -> str:
    """Sensitivity over the false-positive rate, with its band."""

    def draw(axes: Axes) -> None:
        axes.plot((0, 1), (0, 1), color=GREY, lw=1, ls="--", zorder=1)
        axes.fill_between(curve.rates, curve.low, curve.high, color=TRAINING, alpha=0.18, lw=0)
        axes.plot(curve.rates, curve.sensitivity, color=TRAINING, lw=1.6)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel="1 - specificity", ylabel="sensitivity")

    return _svg(draw, 3.0, 2.8)


def intervals_svg(rows: Mapping[str, tuple[float, float, float]], xlabel: str, reference: str, nothing: bool) -> str:
    """(value, low, high) by name, one below the other, the reference in another colour; `nothing`: a line at 0.

    The names must be the program's own words, not the user's.
    """

    def draw(axes: Axes) -> None:
        for place, (name, (value, low, high)) in enumerate(rows.items()):
            colour = VALIDATION if name == reference else TRAINING
            axes.plot((low, high), (place, place), color=colour, lw=1.4, solid_capstyle="butt")
            axes.plot(value, place, color=colour, marker="o", ms=4)
        if nothing:
            axes.axvline(0, color=GREY, lw=1, ls="--", zorder=1)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
        axes.grid(False, axis="y")
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)

    return _svg(draw, 5.2, 0.24 * len(rows) + 0.7)


def _svg(draw: Callable[[Axes], None], width: float = 4.4, height: float = 2.7) -> str:
    """What `draw` does to the axes of a new figure of that size in inches, as a `data:` SVG."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
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


def photo_jpeg(image: NDArray[np.uint8]) -> str:
    """(H, W, 3) uint8 RGB, made to fit into a square of 256 pixels, as a `data:` JPEG: for looking at."""
    picture = Image.fromarray(image)
    picture.thumbnail((256, 256), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


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
