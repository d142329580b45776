"""The terminal: lines and JSON on standard output; errors, log and progress on standard error. Only commands use it."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from edgemed.errors import EdgemedError
from edgemed.progress import Progress

FINISHED_BARS = 8
WIDEST = 10_000  # columns: more than any table needs

_WIDTH = 80 if os.environ.get("COLUMNS") == "0" else None  # rich would take it at its word, and show nothing
_out = Console(emoji=False, width=_WIDTH)  # a path or a label may hold :x:
_log = Console(stderr=True, emoji=False, width=_WIDTH)


def say(message: Any) -> None:
    """Print to standard output; text is taken as it is, without markup."""
    _out.print(message, markup=False, highlight=False, soft_wrap=isinstance(message, str))


def show(table: Table) -> None:
    """Print a table to standard output; its cells may hold markup."""
    _out.print(table)


def fits(table: Table) -> bool:
    """Whether the terminal is wide enough for a table, with nothing cut off."""
    return Measurement.get(_out, _out.options.update(width=WIDEST), table).minimum <= _out.width


def document(value: Any) -> None:
    """Print one JSON document."""
    _out.print(json.dumps(value, indent=2, allow_nan=False), markup=False, highlight=False, soft_wrap=True)


def error(problem: EdgemedError) -> None:
    """Print an error as one line on standard error."""
    _log.print(f"[bold red]error:[/] {escape(str(problem))}", highlight=False, soft_wrap=True)


def start_logging(level: int) -> None:
    """Send edgemed's log lines, and warnings of others, to standard error."""
    handler = RichHandler(console=_log, show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("edgemed").setLevel(level)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes what it stumbles over, patients too
    warnings.filterwarnings("ignore", module="pydicom")


@contextmanager
def progress() -> Iterator[Progress]:
    """A callback progress(stage, done, total, detail) that draws one bar per stage on standard error.

    Of the finished ones the last few stay: a terminal shows no more, and would cut off the newest.
    """
    columns = (  # where they do not fit, the detail is cut and no figure
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn("{task.fields[detail]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=_log, expand=True) as bars:

        def update(stage: str, done: int, total: int, detail: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, detail="")
            bars.update(tasks[stage], completed=done, total=total, detail=detail)
            for task in [task for task in bars.tasks if task.finished and task.visible][:-FINISHED_BARS]:
                bars.update(task.id, visible=False)

        yield update
