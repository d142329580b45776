"""`edgemed data prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemed import display

app = typer.Typer(help="Turn the paper's public data sets into a CSV for `train`.", no_args_is_help=True)


@app.callback()
def _data() -> None:
    """Make `prepare` a command of the group, and not the group itself."""


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="busi, isic2018, kvasir or covid.", show_default=False)],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="What you downloaded, unpacked.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The CSV to write.", show_default=False)],
) -> None:
    """Write the CSV that `edgemed train` takes; it points to the images in SRC, and copies none."""
    from edgemed.recipes import prepare as prepare_set

    prepared = prepare_set(name, source, out)
    counts = ", ".join(f"{key} {count}" for key, count in sorted(prepared.counts.items()))
    display.say(f"{prepared.csv}: {sum(prepared.counts.values())} images of {prepared.source.title} ({counts})")
    for warning in prepared.warnings:
        display.say(f"note: {warning}")
    display.say(f"licence: {prepared.source.licence}")
    display.say(f"cite: {prepared.source.citation}")
    display.say(f"next: edgemed train {prepared.csv} --out RUN")
