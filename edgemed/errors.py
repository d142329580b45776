"""The errors that edgemed raises on purpose: what failed, on which file, and what to do next.

The library raises; only `cli.py` prints and exits. Each class carries the exit code of the command line.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class EdgemedError(Exception):
    """Base of every error that edgemed raises on purpose. Its text is one line made for the user."""

    exit_code = 1


class InputError(EdgemedError):
    """The input or the usage is wrong: a file, a flag, a folder."""

    exit_code = 2


class GateError(EdgemedError):
    """A check of correctness failed, and nothing was written."""

    exit_code = 3


class UnstableError(EdgemedError):
    """A measurement did not settle (`edgemed bench --strict`)."""

    exit_code = 4


def shown(name: str) -> str:
    """A name as it may be printed: with codes for what would break the line or command the terminal."""
    return name if name.isprintable() else ascii(name)


def flag(name: str) -> str:
    """The command line's spelling of a setting: `mask_ratio` -> `--mask-ratio`."""
    return "--" + name.replace("_", "-")


def refusal(name: str, what: str, step: str) -> InputError:
    """What is wrong with the file `name`, and what to do about it, in one line."""
    return InputError(f"{shown(name)}: {what}; {step}.")


def cannot_write(name: object, error: OSError, choose: str = "another folder") -> InputError:
    """That the file or folder `name` cannot be written, with the step that fits the system's reason."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    step = f"free space or choose {choose}" if full else f"choose {choose}"
    return InputError(f"cannot write {name}: {error.strerror}; {step}{' that you may write to' if denied else ''}")


def one_line(error: object) -> str:
    """The text of another library's error, up to 200 characters of it, fit for one line."""
    text = " ".join(str(error).split())
    return shown(text)[:200] or type(error).__name__


def first_line(error: object) -> str:
    """The first line of another library's error that is not empty: of many, it is the one that says what is wrong."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A suggestion for a mistyped name: `" Did you mean 'resnet18'?"`, or the list of choices when nothing is close."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}."
