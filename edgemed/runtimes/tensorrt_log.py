"""What TensorRT says, handed on to Python's logging: one logger for the process, by builder and runtime alike.

TensorRT keeps the first logger that it is given, and calls it as long as the process lives: one that belonged to an
engine would be gone with it.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

_log = logging.getLogger("edgemed")


@cache
def process_logger(base: Any, package: str) -> Any:
    """The logger of `package`, whose class `ILogger` is `base`. `problems`: the errors that it has heard so far."""

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.problems: list[str] = []

        def log(self, level: Any, message: str) -> None:
            line = " ".join(message.split())
            if level in (base.Severity.ERROR, base.Severity.INTERNAL_ERROR):
                self.problems.append(line)
            _log.log(logging.WARNING if level == base.Severity.WARNING else logging.DEBUG, "%s: %s", package, line)

    return Logger()
