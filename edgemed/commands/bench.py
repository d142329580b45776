"""`edgemed bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from edgemed import display
from edgemed.commands import Bundle, Json, Precision, Runtime, Threads


def bench(
    bundle: Bundle,
    runtime: Runtime = "auto",
    precision: Precision = "fp32",
    batch: Annotated[int, typer.Option(min=1, help="Images per request.")] = 1,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels.", show_default="typical")
    ] = None,
    threads: Threads = 0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds before measuring.")] = 1.0,
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds of measuring.")] = 5.0,
    json_: Json = False,
) -> None:
    """Measure the latency of a bundle on this machine, after checking that its answers are right."""
    from edgemed import bench as bench_module

    report = bench_module.bench(
        bundle,
        runtime=runtime,
        precision=precision,
        batch=batch,
        image_size=image_size,
        threads=threads or None,
        warmup=warmup,
        duration=duration,
    )
    if json_:
        display.document(report)
    else:
        display.say(bench_module.table(report))
