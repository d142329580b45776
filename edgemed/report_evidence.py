"""The parts of the report that say how far to trust a run: calibration, operating point, ROC, failures, duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.by_class import BY_CLASS, figure_of_class
from edgemed.curves import reliability, roc
from edgemed.dataset import DuplicatePair
from edgemed.evaluate import Table
from edgemed.operating_quality import PROMISE, attained
from edgemed.report_page import Cell, bounds, charts, figure, grid, number, section, table
from edgemed.report_plots import photo_jpeg, reliability_svg, risk_svg, roc_svg
from edgemed.stats import FEWEST_GROUPS

PAIRS_SHOWN = 100

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Hard:
    """A test image whose true label got little probability."""

    picture: Picture  # (H, W, 3) RGB
    path: str
    label: str
    share: float  # the probability of `label`
    decided: str
    share_of_decided: float


@dataclass(frozen=True)
class Duplicate(DuplicatePair):
    """Two images that show the same picture; their pictures, where the labels conflict."""

    pictures: tuple[Picture, Picture] | None = None


def classes_html(predictors: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> str:
    """A table for each predictor: what `metrics.json` says of each class, with its interval."""
    titles = {"sensitivity": "Sensitivity", "specificity": "Specificity", "auroc_per_class": "AUROC"}
    tables = []
    for predictor, each in predictors.items():
        rows: list[list[Cell]] = []
        for name in classes:
            figures = [figure_of_class(each, key, name) for key in BY_CLASS]
            rows.append([name, *((number(found["value"]), bounds(found)) for found in figures)])
        shown = table(["Class", *(titles[key] for key in BY_CLASS)], rows)
        tables.append(f"<div><h3>By class: {escape(predictor)}</h3>{shown}</div>")
    says = (
        "Decided for the most probable class, each against the rest. Brackets: 95 % over the groups that hold an image "
        f"of the class (sensitivity) or of another (specificity); none from fewer than {FEWEST_GROUPS} of these, for "
        "the AUROC of either kind."
    )
    width = 400 + 8 * min(25, max(map(len, classes)))  # of three intervals, and of the longest name
    return f'{grid(tables, width)}<p class="note">{says}</p>'


def probabilities_section(metrics: Mapping[str, Any], test: Table) -> str:
    """Reliability and risk-coverage curve of the ensemble."""
    bins = reliability(test)
    ece = metrics["ensemble"]["ece"]
    images = (
        f"{bins.images.min()} to {bins.images.max()} images each"
        if len(set(bins.images)) > 1
        else (f"{bins.images[0]} images each")
    )
    claims = figure(
        reliability_svg(bins),
        f"{len(bins.images)} bins, {images}; expected calibration error {ece:.3f}; bars: 95 % intervals. "
        "On the dashed line, what is said with 90 % is right in 90 %; above it, more often.",
    )
    curve = metrics["risk_coverage"]
    referral = (metrics["operating"] or {}).get("referral")
    answered = referral["answered"]["value"] if referral else None
    risks = figure(
        risk_svg(curve, answered),
        "error when the images are left out on which the members disagree most "
        f"(mean over all shares {curve['disagreement']['area']:.3f}), or on which the ensemble is least sure "
        f"({curve['confidence']['area']:.3f}); lower is better"
        + (f". Dashed: the operating point, {answered:.2f} answered" if answered is not None else ""),
    )
    return section(
        "Can the probabilities be believed?",
        charts("Calibration, and what referring the doubtful would bring", [claims, risks]),
    )


def operating_section(metrics: Mapping[str, Any]) -> str:
    """What was asked of the operating point, and what it attains on the test images."""
    found = metrics["operating"]
    title = "Operating point"
    if not found:
        return section(
            title,
            "<p>None: the run has no calibration split. The decision is the most probable class, and nothing is "
            "promised about it; temperatures were fitted on validation. Train with --calibration 0.15 for one.</p>",
        )
    points = found["points"]
    rows: list[list[Cell]] = [
        [line.name[0].upper() + line.name[1:], line.asked or "-", (number(line.found["value"]), bounds(line.found))]
        for line in attained(found)
    ]
    if sets := found.get("sets"):
        rows.append(["Labels in a set, on average", "-", number(sets["mean_size"])])
    limits = {
        "threshold": "probability that decides for the class",
        "max_disagreement": "disagreement above which an image is referred",
        "min_probability": "least probability of a label in the set",
    }
    listed = "".join(
        f"<li>{text}: {', '.join(f'{point[key]:.4f}' for point in points)}</li>"
        for key, text in limits.items()
        if points[0][key] is not None
    )
    images = ", ".join(str(point["images"]) for point in points)
    note = (
        f'<p class="note">Fitted on {images} calibration images{" (fold by fold)" if len(points) > 1 else ""}, which '
        f"served for the temperatures too and for nothing else; judged on the test images. {PROMISE} It holds less "
        "surely where a few groups are much larger than others. Sensitivity and specificity count each decision before "
        "any referral, but where they say otherwise.</p>"
    )
    return section(title, f'{table(["", "asked", "on test images"], rows)}<ul class="limits">{listed}</ul>{note}')


def roc_section(test: Table, classes: Sequence[str]) -> str:
    """A ROC curve per class."""
    figures = []
    for k, name in enumerate(classes):
        if found := roc(test, k):
            area = found.area
            figures.append(
                figure(roc_svg(found), f"{name}: AUROC {area.value:.3f}, {bounds(area.as_dict())}")
            )
    if not figures:
        return section("ROC curves", "<p>Undefined: the test images are of one class.</p>")
    note = (
        '<p class="note">The ensemble, each class against the rest; bands, where groups suffice: 95 % by a bootstrap '
        "of groups.</p>"
    )
    return section("ROC curves", f'<div class="small">{"".join(figures)}</div>{note}')


def hardest_section(hardest: Sequence[Hard]) -> str:
    """The test images with the least probability for their label."""
    if not hardest:
        return ""
    figures = "".join(
        figure(
            photo_jpeg(each.picture),
            f"{each.label} ({each.share:.3f}), most probable {each.decided} ({each.share_of_decided:.3f}): {each.path}",
        )
        for each in hardest
    )
    intro = (
        "<p>Test images whose own label got the least probability, worst first. Among them may be wrong labels, "
        "bad images and what the training images lack.</p>"
    )
    return section("Hardest images", f'{intro}<div class="examples photos">{figures}</div>')


def duplicates_section(pairs: Sequence[Duplicate]) -> str:
    """Near-duplicates, those with conflicting labels first and with pictures."""
    if not pairs:
        return section("Near-duplicates", "<p>None found.</p>")
    ordered = sorted(pairs, key=lambda pair: (-pair.correlation, pair.a, pair.b))
    conflicting = [pair for pair in ordered if pair.conflicting]
    agreeing = [pair for pair in ordered if not pair.conflicting][:PAIRS_SHOWN]
    body = (
        f"<p>{len(pairs):,} pairs found, {len(conflicting):,} of them with conflicting labels. No split is "
        "between the two of a pair.</p>"
    )
    if conflicting:
        body += '<h3 class="conflict">Conflicting labels: look at these first</h3>'
        seen = "".join(_pair(pair) for pair in conflicting if pair.pictures)
        body += f'<div class="grid pairs">{seen}</div>' if seen else ""
        body += _pair_table(conflicting)
    if agreeing:
        left = len(pairs) - len(conflicting) - len(agreeing)
        more = f"<p>And {left:,} more, in duplicates.json.</p>" if left else ""
        body += f"<details><summary>Pairs with the same label</summary>{_pair_table(agreeing)}{more}</details>"
    return section("Near-duplicates", body)


def _pair(pair: Duplicate) -> str:
    assert pair.pictures is not None
    images = "".join(f'<img src="{photo_jpeg(picture)}" alt="">' for picture in pair.pictures)
    text = f"{pair.label_a} or {pair.label_b}? Correlation {pair.correlation:.3f}"
    return f'<figure class="photos"><div class="pair">{images}</div><figcaption>{escape(text)}</figcaption></figure>'


def _pair_table(pairs: Sequence[Duplicate]) -> str:
    rows: list[list[Cell]] = [
        [(pair.a, pair.label_a), (pair.b, pair.label_b), f"{pair.correlation:.3f}"] for pair in pairs
    ]
    return table(["Image", "Near-duplicate", "Correlation"], rows, "text")
