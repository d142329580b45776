"""`edgemed parity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from edgemed import display
from edgemed.commands import Bundle, Json, Precision, Runtime, Threads, Verify, VerifyPlans
from edgemed.errors import InputError

NOT_COMPARED = {"undecoded": "not decoded", "other_shape": "other size"}
NOTE = """The largest differences of all images; pixels are 0 to 255. Files are plain where they are upright 8-bit grey
or RGB, JPEG or PNG. Others follow rules of edgemed's own (edgemed/images.py), which a plain decoder does not know:
differences there are expected, and edgemed's pixels are the ones that the model was trained on."""


def parity(
    bundle: Bundle,
    data: Annotated[Path, typer.Argument(help="A folder of images, or a CSV with a column path.", show_default=False)],
    runtime: Runtime = "auto",
    precision: Precision = "fp32",
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many images, evenly spaced.", show_default="all")
    ] = None,
    threads: Threads = 0,
    verify: Verify = None,
    verify_plans: VerifyPlans = None,
    json_: Json = False,
) -> None:
    """Compare runtimes, and decoders, on the same images.

    A label that changes between two runtimes, given the same pixels, is a failed gate (exit code 3). What decoders
    change (on --runtime) is only told.
    """
    from edgemed.parity import parity as run_parity
    from edgemed.parity import require_no_flips

    with display.progress() as progress:
        report = run_parity(
            bundle,
            data,
            runtime=runtime,
            precision=precision,
            limit=limit,
            threads=threads or None,
            public_key=verify,
            plan_key=verify_plans,
            progress=progress,
        )
    if json_:
        display.document(report)
    else:
        _show(report)
    for entry in report["refused"]:
        display.error(InputError(entry["reason"]))
    require_no_flips(report)
    if report["refused"]:
        raise typer.Exit(InputError.exit_code)


def _show(report: dict[str, Any]) -> None:
    """A table of the runtimes, given the same pixels; one of the decoders, by kind of file; what was not run."""
    title = f"runtimes, {report['precision']}, given the same pixels"
    if pairs := report["runtime_pairs"]:
        table = _table(title, "images", "probability", "labels changed")
        for pair in pairs:
            table.add_row(f"{pair['first']}, {pair['second']}", *_answers(pair))
        display.say(table)
    else:
        display.say(f"{title}: one works here, so there is nothing to compare it with")
    title = f"decoders, on {report['decoders_on']}"
    table = _table(title, "files", "images", "pixels", "probability", "labels changed")
    for pair in report["decoder_pairs"]:
        largest = pair["max_pixel_difference"]
        told = [] if largest is None else [f"{largest}, mean {pair['mean_pixel_difference']:.2f}"]
        told += [f"{pair[key]} {text}" for key, text in NOT_COMPARED.items() if pair[key]]
        count, *answers = _answers(pair)
        table.add_row(f"{pair['first']}, {pair['second']}", escape(pair["files"]), count, "\n".join(told), *answers)
    display.say(table)
    display.say(NOTE)
    for name, entry in (*report["runtimes"].items(), *report["decoders"].items()):
        if entry["not_run"]:
            display.say(f"not run: {name}: {entry['not_run']}")
        elif entry.get("refused"):
            display.say(f"{name} refuses {entry['refused']} images: {entry['refusal']}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="left" if name == "files" else "right", no_wrap=name == "pixels")
    return table


def _answers(pair: dict[str, Any]) -> tuple[str, str, str]:
    """Images, largest difference of a probability, changed labels."""
    if not pair["images"]:
        return "0", "not measured", "not measured"
    largest = pair["max_prob_difference"]
    return str(pair["images"]), f"{largest:.1e}" if largest else "0", str(len(pair["flips"]))
