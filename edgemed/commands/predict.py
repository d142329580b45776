"""`edgemed predict`, `edgemed evaluate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgemed import display, tables
from edgemed.commands import Bundle, Json, Precision, Runtime, Threads, Verify, VerifyPlans
from edgemed.errors import InputError

JSON_HELP = (
    "Print one JSON document instead of a table. A refused file has no object in it and is told on stderr, with exit "
    "code 2: match by path."
)


def predict(
    bundle: Bundle,
    images: Annotated[list[str], typer.Argument(help="Image files, or folders of them.", show_default=False)],
    runtime: Runtime = "auto",
    precision: Precision = "fp32",
    threads: Threads = 0,
    verify: Verify = None,
    verify_plans: VerifyPlans = None,
    self_test: Annotated[bool, typer.Option("--self-test", help="Run the golden images first.")] = False,
    json_: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Classify images. A bad file is reported and the others go on; the exit code is then 2."""
    from edgemed.infer import load
    from edgemed.listing import image_files

    model = load(
        bundle,
        runtime=runtime,
        precision=precision,
        threads=threads or None,
        public_key=verify,
        plan_key=verify_plans,
        self_test=self_test,
    )
    files, found, bad = list[str](), [], 0

    def refused(error: InputError) -> None:
        nonlocal bad
        bad += 1
        display.error(error)

    for path in images:
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a name is too long
            files.append(path)  # as it was given: scripts match answers by it
            continue
        try:
            files += map(str, image_files(Path(path), refused))
        except InputError as error:
            refused(error)
    with display.progress() as progress:
        for done, file in enumerate(files, 1):
            try:
                found.append(model(file))
            except InputError as error:
                refused(error)
            progress("predict", done, len(files), "")
    if json_:
        display.document([prediction.as_dict() for prediction in found])
    else:
        tables.predictions(found, model)
    if bad:
        raise typer.Exit(InputError.exit_code)


def evaluate(
    model: Annotated[Path, typer.Argument(help="A run or a bundle.", show_default=False)],
    data: Annotated[Path, typer.Argument(help="Labelled images: a folder per class or a CSV.", show_default=False)],
    runtime: Runtime = "auto",
    precision: Precision = "fp32",
    verify: Verify = None,
    verify_plans: VerifyPlans = None,
    json_: Json = False,
) -> None:
    """Measure a run or a bundle on labelled images. Where these name their splits: on the test images."""
    from edgemed.judge import judge

    with display.progress() as progress:
        metrics = judge(
            model,
            data,
            runtime=runtime,
            precision=precision,
            public_key=verify,
            plan_key=verify_plans,
            progress=progress,
        )
    tables.metrics(metrics, json_, f"{model} on {data}")
    if not json_ and metrics.get("operating"):
        tables.operating_point(metrics)
