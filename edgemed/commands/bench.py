"""`edgemed bench`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemed import display
from edgemed.commands import Plan, Precision, Threads, Verify, VerifyPlans, typed_flags
from edgemed.errors import InputError, UnstableError

if TYPE_CHECKING:
    from edgemed.bench import Settings
    from edgemed.bundle import Bundle
    from edgemed.ensemble import Ensemble

STDOUT = "-"
WITHOUT_RUN = "none"


def bench(
    context: typer.Context,
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle from `edgemed build-engine`.", show_default=False)
    ] = None,
    runtime: Annotated[str, typer.Option(help="A runtime's name; auto: the first that works here; or all.")] = "auto",
    precision: Precision = "fp32",
    mode: Annotated[
        str, typer.Option(help="single-stream, burst (--streams) or sparse (--idle-ms).")
    ] = "single-stream",
    streams: Annotated[int, typer.Option(min=1, help="Requests in flight (burst).")] = 1,
    idle_ms: Annotated[float, typer.Option(min=0, help="Milliseconds between requests (sparse).")] = 0.0,
    batches: Annotated[str, typer.Option(help="Images per request, such as 1,4,8.")] = "1",
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels.", show_default="the middle of the bundle's range")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help="decode: from a JPEG in memory to the decision.", show_default="pixels only"),
    ] = None,
    threads: Threads = 0,
    plan: Plan = None,
    cuda_graph: Annotated[bool, typer.Option(help="Capture a plan of one shape into a CUDA graph.")] = True,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds before measuring.")] = 1.0,
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds of measuring.")] = 5.0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 where a measurement did not settle.")] = False,
    json_: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write one JSON document; - prints it.")
    ] = None,
    export_times: Annotated[bool, typer.Option("--export-times", help="Every sample in the JSON document.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown.", show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the latencies: FILE.svg.", show_default=False)] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Also time what one would do without edgemed. RUN: what the bundle was built from, or none.",
            show_default=False,
        ),
    ] = None,
    verify: Verify = None,
    verify_plans: VerifyPlans = None,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="OLD NEW", help="Compare two JSON documents, or two folders of 3 and more.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure a bundle's latency, once its answers are checked."""
    from edgemed import bench as bench_module
    from edgemed import bench_diff, bench_report, contenders
    from edgemed.bundle import opened_by_keys
    from edgemed.files import write_atomic

    if (bundle is None) == (diff is None):
        raise InputError("give a bundle to measure, or --diff OLD.json NEW.json to compare two measurements")
    if diff is not None:
        if idle := sorted(typed_flags(context) - {"--diff", "--json"}):
            raise InputError(f"--diff compares two documents and measures nothing; leave out {', '.join(idle)}")
        difference = bench_diff.diff(*map(bench_diff.read_reports, diff))
        _show(difference, bench_diff.table, json_)
        return
    assert bundle is not None
    if export_times and json_ is None:
        raise InputError("--export-times puts every sample into the JSON document: add --json FILE")
    if plot is not None and plot.suffix.lower() != ".svg":
        raise InputError(f"--plot {plot}: it draws SVG; name a file that ends in .svg")
    settings = bench_module.Settings(
        runtime=runtime,
        precision=precision,
        mode=mode,
        streams=streams,
        idle_ms=idle_ms,
        batches=_numbers(batches),
        image_size=image_size,
        threads=threads or None,
        warmup=warmup,
        duration=duration,
        include=tuple(include or ()),
        plan=plan,
        cuda_graph=cuda_graph,
    )
    ensemble = None if compare in (None, WITHOUT_RUN) else contenders.ensemble_of_run(Path(compare))
    opened = opened_by_keys(bundle, verify, verify_plans)
    report = bench_module.bench(opened, settings)
    files = [(markdown, bench_report.markdown), (plot, bench_report.svg)]
    texts = [(path, text(report)) for path, text in files if path is not None]
    if not export_times:
        for _, result in bench_module.results(report):
            del result["times_ms"]
    try:
        if compare is not None:
            report["comparison"] = _comparison(opened, settings, ensemble)
    finally:  # what was measured is not lost, whatever fails
        show = _table_and_comparison if "comparison" in report else bench_report.table
        _each(partial(_show, report, show, json_), *(partial(write_atomic, path, text) for path, text in texts))
    unstable = [
        f"{one['name']}, batch {result['batch']}: {reason}"
        for one, result in bench_module.results(report)
        if (reason := bench_report.unsettled(result)) is not None
    ]
    if strict and unstable:
        raise UnstableError(f"a measurement did not settle: {'; '.join(unstable)}")


def _each(*writings: Callable[[], None]) -> None:
    """Do all of them, whichever fails; InputError with the reason of each that did."""
    failed = []
    for write in writings:
        try:
            write()
        except InputError as error:
            failed.append(str(error))
    if failed:
        raise InputError("; ".join(failed))


def _comparison(bundle: Bundle, settings: Settings, ensemble: Ensemble | None) -> dict[str, Any]:
    """The first batch size, on the runtime that was asked for (the first that works, where it was all of them)."""
    from edgemed import contenders
    from edgemed.bench import LOADED_WITH
    from edgemed.infer import load

    runtime = "auto" if settings.runtime == "all" else settings.runtime
    model = load(bundle, runtime=runtime, **{key: getattr(settings, key) for key in LOADED_WITH})
    batch, side = settings.batches[0], settings.image_size or model.bundle.manifest.input.opt_side
    others = contenders.contenders(model, ensemble, (batch, side, side, 3))
    return contenders.compared(model, others, batch=batch, side=side, seconds=settings.duration)


def _table_and_comparison(report: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.text import Text

    from edgemed import bench_report, contenders

    return Group(bench_report.table(report), *map(Text, contenders.lines_of(report["comparison"])))


def _show(document: dict[str, Any], table: Any, json_: str | None) -> None:
    """The document to standard output, or the table there and the document to a file."""
    from edgemed.files import write_json

    if json_ == STDOUT:
        display.document(document)
        return
    display.say(table(document))
    if json_ is not None:
        write_json(Path(json_), document)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--batches {text}: give whole numbers, such as 1,4,8") from None
