"""How a long function tells how far it is: `display.progress` shows it, `unseen` does not.

    progress("fine-tune mae", 3, 30, "accuracy 0.812, loss 0.512")
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""(stage, done, in all, detail)."""


def unseen(stage: str, done: int, total: int, detail: str) -> None:
    """Progress that nobody looks at: the default of functions that are called from a program."""
