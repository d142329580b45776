"""`edgemed build-engine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemed import display
from edgemed.commands import Json
from edgemed.errors import InputError


def build_engine(
    run: Annotated[Path, typer.Argument(help="A finished run of `edgemed train`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The bundle to write.", show_default=False)],
    image_size: Annotated[str, typer.Option(help="Range of image sides: min,opt,max in pixels.")] = "32,512,4096",
    rtx: Annotated[str, typer.Option(help="TensorRT-RTX plan: auto (where it is installed), yes, no.")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace a bundle that is already at --out.")] = False,
    json_: Json = False,
) -> None:
    """Fuse the ensemble into one engine, prove it against PyTorch, write the bundle."""
    from edgemed.build import build_bundle

    with display.progress() as progress:
        bundle = build_bundle(run, out, image_size=_sides(image_size), rtx=rtx, overwrite=overwrite, progress=progress)
    bundle.verify()
    display.inspection(bundle, json_)


def _sides(text: str) -> tuple[int, int, int]:
    try:
        low, typical, high = (int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--image-size '{text}': give min,opt,max in pixels, like 32,512,4096") from error
    return low, typical, high
