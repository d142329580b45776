"""The model card of a bundle: what the engine is for, was made from, is worth, and what is not known of it.

Markdown, without names of patients or files. `edgemed build-engine RUN --out BUNDLE` writes it as `model_card.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgemed import __version__
from edgemed.by_class import BY_CLASS, figure_of_class
from edgemed.columns import SPLITS
from edgemed.gates import Comparison, changes
from edgemed.images import Sides
from edgemed.metrics import INTERVAL_METRICS
from edgemed.operating import in_words
from edgemed.operating_quality import PROMISE, attained
from edgemed.sources import Source


def model_card(
    source: Source,
    checks: Sequence[tuple[str, str, Comparison]],
    kept: Sequence[str],
    image_size: Sides,
    flops: int,
    weight_bytes: int,
    entropy_error: float | None = None,
) -> str:
    """checks: engines that were compared with PyTorch, their precision, and how it went; kept: layers of the fp16 graph
    left at fp32.

    entropy_error: the largest of the output `entropy`, in bits; None without that output.
    """
    rounded = any("rounded" in what for what, _, _ in checks)
    metrics, ensemble = source.metrics, source.metrics["ensemble"]
    low, typical, high = image_size
    splits = [*(split for split in SPLITS if split in source.counts), *(source.counts.keys() - set(SPLITS))]
    return CARD.format(
        source=source,
        names=", ".join(source.labels),
        decision=in_words(source.operating_point),
        splits=" | ".join(splits),
        rule="---|" * len(splits),
        counts=_table((name, *(source.counts[split][name] for split in splits)) for name in source.labels),
        members=f"{len(source.member_names)} ({', '.join(source.member_names)})",
        temperatures=", ".join(f"{value:.3f}" for value in source.temperatures),
        size=f"{low} to {high}",
        cost=f"{flops / 1e9:.2f} GFLOP for one image of {typical} x {typical}; {weight_bytes / 1e6:.1f} MB at fp32",
        version=__version__,
        metrics=metrics,
        quality=_table(
            (name, *(_interval(values[key]) for key in INTERVAL_METRICS), f"{values['ece']:.3f}")
            for name, values in (*metrics["members"].items(), ("ensemble", ensemble))
        ),
        classes=_table(
            (name, *(_interval(figure_of_class(ensemble, key, name)) for key in BY_CLASS)) for name in source.labels
        ),
        operating=_attained(metrics.get("operating")),
        rounding=" A CPU executes the fp16 graph in fp32; the last row rounds every operator." if rounded else "",
        checks=_table(
            (what, each.n, f"{each.max_prob_error:.1e}", changes(str(len(each.flips)), len(each.unclear), precision))
            for what, precision, each in checks
        ),
        entropy=""
        if entropy_error is None
        else "\nThe output `entropy`, bits per 32-pixel patch of the resized image, lies within "
        f"{entropy_error:.1e} bit of its definition on these images.\n",
        kept=f"These layers are too large or too imprecise in fp16, and stay fp32: {', '.join(kept)}." if kept else "",
    )


CARD = """# Model card: {source.backbone} ensemble

**Not a medical device.** For research. No authority has reviewed it, and it must not decide about a patient.

## Intended use

Classifies one image into: {names}. It gives a probability for each class, also for a picture of something else.
{decision}
Meant for images from the same source and of the same kind as its training data.

## Data

{source.data}

| class | {splits} |
|---|{rule}
{counts}

## Model

Members: {members}. Each is {source.backbone} at {source.size} x {source.size} pixels; their probabilities, calibrated
with the temperatures {temperatures}, are averaged. Images of {size} pixels a side are resized in the graph: bilinear,
antialiased, aspect squashed. {cost}; a multiply-add counts as two operations.
{source.made_from}, built with edgemed {version}.

## Quality

{metrics[n]} images in {metrics[groups]} groups, {source.quality_of}; in brackets 95 % intervals over groups,
where the groups suffice for one and resamples differ.

| | accuracy | balanced accuracy | macro F1 | AUROC | calibration error |
|---|---|---|---|---|---|
{quality}

| class (the most probable one, of the ensemble) | sensitivity | specificity | AUROC |
|---|---|---|---|
{classes}
{operating}

## The engine against PyTorch

On the source's images at their own sizes.{rounding}
{kept}

| engine | images | largest probability error | changed labels or decisions |
|---|---|---|---|
{checks}
{entropy}
## Limits

- Quality on images of other devices, hospitals or patients than the training data's is not known.
- Differences between groups of patients were not measured: the data do not name such groups.
- Latency and power were not measured here; `edgemed bench` measures them on the device.
- A TensorRT plan in the state `built` was not executed.
"""


def _attained(found: Mapping[str, Any] | None) -> str:
    """A table of what the decisions by the operating point are worth; nothing without one."""
    if not found:
        return ""
    return "\n| by the operating point | asked | on these images |\n|---|---|---|\n" + _table(
        (line.name, line.asked, _interval(line.found)) for line in attained(found)
    ) + f"\n\n{PROMISE}\n"


def _table(rows: Iterable[Sequence[object]]) -> str:
    cells = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _interval(value: Mapping[str, float | None]) -> str:
    known = value["low"] is not None
    return _number(value["value"]) + (f" [{_number(value['low'])}, {_number(value['high'])}]" if known else "")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
