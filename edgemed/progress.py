"""How a long function tells how far it is: `display.progress` shows it, `unseen` does not.

    progress("fine-tune mae", 3, 30, "accuracy 0.812, loss 0.512")
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""(stage, done, in all, detail)."""
Count = Callable[[int, int], None]
"""(done, in all)."""


def unseen(stage: str, done: int, total: int, detail: str) -> None:
    """Progress that nobody looks at: the default of functions that are called from a program."""


def counted(progress: Progress, stage: str) -> Count:
    """`progress` for a function that only counts: all it does is one stage, which has no details."""
    return lambda done, total: progress(stage, done, total, "")
