"""The command line: the list of commands, the global options, errors as one line and an exit code.

edgemed --help
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from edgemed import __version__, display
from edgemed.commands import ablate, bench, build, calibrate, certify, cpp, data, parity, predict, train
from edgemed.errors import EdgemedError, InputError

TRAIN = ("torch", "torchvision", "timm", "onnx", "onnxscript", "matplotlib", "safetensors")
EXTRAS = dict.fromkeys(TRAIN, "train") | dict.fromkeys(("sklearn", "scipy", "cv2", "imagehash"), "eval")
"""The extra that brings a module that a command may miss."""

app = typer.Typer(
    name="edgemed",
    help="Labelled medical images in, one engine file out, with the evidence that it is right.",
    no_args_is_help=True,
    rich_markup_mode=None,  # its tables cut off the names of options in a terminal of 80 columns
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _edgemed(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details.")] = False,
) -> None:
    if version:
        display.say(__version__)
        raise typer.Exit
    display.start_logging(logging.DEBUG if verbose else logging.INFO)


for command, summary in (  # the summaries fit into a terminal of 80 columns
    (train.sample, "Write labelled phantoms, made by code, to try edgemed."),
    (train.train, "Train both members, judge them and their ensemble, report."),
    (ablate.ablate, "Say which part of the method helps on these images."),
    (calibrate.calibrate, "Choose a run's threshold, referral, prediction sets."),
    (build.build_engine, "Fuse a run into one engine, and prove it."),
    (certify.certify, "Prove an engine on this machine, on your own images."),
    (certify.inspect, "Show what is in a bundle, every hash verified."),
    (predict.predict, "Classify images."),
    (predict.evaluate, "Measure a run or a bundle on labelled images."),
    (parity.parity, "Compare runtimes, and decoders, on the same images."),
    (bench.bench, "Measure a bundle's latency, its answers checked before."),
    (cpp.cmake_dir, "Print the folder of the C++ library, for CMake."),
):
    app.command(command.__name__.replace("_", "-"), short_help=summary)(command)
app.add_typer(data.app, name="data")


def main() -> None:
    """The entry point: runs a command, turns errors into one line and an exit code."""
    try:
        app()
    except EdgemedError as error:
        display.error(error)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        display.error(InputError(f"this command needs {error.name}: pip install '.[{extra}]' in a clone of edgemed"))
        sys.exit(InputError.exit_code)
    except OSError as error:  # a folder that may not be entered, a name that is too long: nothing is wrong in here
        if error.filename is None:
            raise
        display.error(InputError(f"{error.filename}: {error.strerror}; check the path and its permissions"))
        sys.exit(InputError.exit_code)
