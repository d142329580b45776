"""The report's pictures of training: the curves of every stage, entropy, masks and reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.report_page import charts, figure
from edgemed.report_plots import (
    TRAINING,
    VALIDATION,
    colour_scale,
    common_limits,
    curves_svg,
    heat_map,
    image_png,
    without_removed,
)

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
        parts.append(charts("Masked pretraining", [figure(picture, f"loss; {points[-1][1]:.4f} at the end")]))
    for name, rows in members.items():
        kept = [row for row in rows if row["kept"]][-1]
        lines = {
            "training": [(row["epoch"], row["train_loss"]) for row in rows],
            "validation": [(row["epoch"], row["validation_loss"]) for row in rows],
        }
        loss = curves_svg(
            lines, "loss", colours=[TRAINING, VALIDATION], ylim=common_limits(losses, 0.0), marked=kept["epoch"]
        )
        accuracy = curves_svg(
            {"validation": [(row["epoch"], row["validation_accuracy"]) for row in rows]},
            "validation accuracy",
            colours=[VALIDATION],
            ylim=common_limits(accuracies),
            marked=kept["epoch"],
        )
        figures = [
            figure(loss, f"loss; {kept['validation_loss']:.4f} on validation at epoch {kept['epoch']}, which is kept"),
            figure(accuracy, f"accuracy on validation; {kept['validation_accuracy']:.3f} at that epoch (dashed)"),
        ]
        parts.append(charts(name, figures))
    if not parts:
        return "<p>The curves are in each fold's report: folds/K/report.html.</p>" if folded else "<p>Not measured.</p>"
    return "".join(parts) + (
        '<p class="note">Training loss includes augmentation, label smoothing and class weights, validation loss does '
        "not: compare their course, not their height. The members share their vertical scales. Of the epochs whose "
        "validation loss is within a standard error of the lowest, the latest is kept: on few images the lowest is a "
        "matter of chance.</p>"
    )


def examples_html(examples: Sequence[MaskExample], *, folded: bool) -> str:
    """One row of pictures for each of at least one example: image, entropy, what the mask left, reconstruction.

    A folded run has no example of its own.
    """
    if folded:
        return "<p>The pictures are in each fold's report: folds/K/report.html.</p>"
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
        panels += [figure(image_png(picture), caption) for caption, picture in pictures.items()]
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
