"""The command line: the list of commands, the global options, errors as one line and an exit code.

    edgemed --help
"""

from __future__ import annotations

import errno
import functools
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

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


def _no_flag_for_a_value(command: Callable[..., None]) -> Callable[..., None]:
    """The command, but for a value that is named like a flag: `--json --strict` would write it, and lose the flag."""

    @functools.wraps(command)
    def checked(*args: Any, **options: Any) -> None:
        for value in options.values():
            for path in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(path, (str, Path)) and str(path).startswith("--"):
                    raise InputError(f"an option takes a value, and got '{path}'; give one (a file: ./{path})")
        command(*args, **options)

    return checked


for command in (  # each docstring's first sentence is the summary, which a terminal of 80 columns shows whole
    train.sample,
    train.train,
    ablate.ablate,
    calibrate.calibrate,
    build.build_engine,
    certify.certify,
    certify.inspect,
    predict.predict,
    predict.evaluate,
    parity.parity,
    bench.bench,
    cpp.cmake_dir,
):
    app.command(command.__name__.replace("_", "-"))(_no_flag_for_a_value(command))
app.add_typer(data.app, name="data")


def main() -> None:
    """The entry point: runs a command, turns errors into one line and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold what the terminal cannot show
    try:
        app()
    except EdgemedError as error:
        display.error(error)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        display.error(InputError(f"this command needs {error.name}: pip install 'edgemed[{extra}]'"))
        sys.exit(InputError.exit_code)
    except OSError as error:  # a folder that may not be entered, a name that is too long: nothing is wrong in here
        if error.filename is None and error.errno == errno.ENOSPC:
            display.error(InputError(f"the output cannot be written: {error.strerror}"))
            sys.exit(EdgemedError.exit_code)
        if error.filename is None:
            raise
        display.error(InputError(f"{error.filename}: {error.strerror}; check the path and its permissions"))
        sys.exit(InputError.exit_code)
