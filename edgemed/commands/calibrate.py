"""`edgemed calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemed import display, tables
from edgemed.commands import Json


def calibrate(
    run: Annotated[Path, typer.Argument(help="A finished run that was trained with --calibration.")],
    positive: Annotated[str | None, typer.Option(help="The class that gets a threshold.", show_default=False)] = None,
    sensitivity: Annotated[
        float | None, typer.Option(help="Share of the positive class to find.", show_default=False)
    ] = None,
    specificity: Annotated[
        float | None, typer.Option(help="Share of the others to leave alone.", show_default=False)
    ] = None,
    answer: Annotated[
        float | None,
        typer.Option(help="Share of images to answer; on the others the members disagree most.", show_default=False),
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Share of all images that may get a wrong answer.", show_default=False)
    ] = None,
    coverage: Annotated[float, typer.Option(help="Share of sets that hold the true label; 0 = no sets.")] = 0.9,
    json_: Json = False,
) -> None:
    """Choose a run's threshold, referral and prediction sets anew. Nothing is trained."""
    from edgemed.operating_fit import Wanted

    wanted = Wanted(positive, sensitivity, specificity, answer, max_error, coverage)
    from edgemed.calibrate import calibrate as fit

    metrics = fit(run, wanted)
    if json_:
        display.document(metrics["operating"])
        return
    tables.operating_point(metrics)
    folded = "folds" in metrics
    display.say("next: edgemed train without --folds" if folded else f"next: edgemed build-engine {run} --out BUNDLE")
