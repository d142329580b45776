"""How a long function tells how far it is: `display.progress` shows it, `unseen` does not.

    progress("fine-tune mae", 3, 30, "validation accuracy 0.81")
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""(stage, done, in all, detail)."""


def unseen(stage: str, done: int, total: int, detail: str) -> None:
    """Progress that nobody looks at: the default of functions that are called from a program."""
