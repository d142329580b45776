"""What TensorRT says, handed on to Python's logging: one logger for the process, by builder and runtime alike.

TensorRT keeps the first logger that it is given, and calls it as long as the process lives: one that belonged to an
engine would be gone with it.
"""

from __future__ import annotations

import logging
import threading
from functools import cache
from typing import Any

KEPT = 8  # errors that a message repeats
_log = logging.getLogger("edgemed")


@cache
def process_logger(base: Any, package: str) -> Any:
    """The logger of `package`, whose class `ILogger` is `base`. `said()`: the thread's errors since the last call."""

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._errors = threading.local()  # of each engine that runs in a thread of its own

        def log(self, level: Any, message: str) -> None:
            line = " ".join(message.split())
            failed = level in (base.Severity.ERROR, base.Severity.INTERNAL_ERROR)
            if failed:
                self._errors.lines = [*getattr(self._errors, "lines", ()), line][:KEPT]  # the first one is the cause
            loud = failed or level == base.Severity.WARNING
            _log.log(logging.WARNING if loud else logging.DEBUG, "%s: %s", package, line)

        def said(self) -> str:
            lines = getattr(self._errors, "lines", ())
            self._errors.lines = ()
            return "; ".join(lines) or "it does not say why"

    return Logger()
