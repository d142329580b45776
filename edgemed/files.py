"""Files that are either there whole or not at all, and which of a folder count.

A run is killed at any moment and resumes; a bundle is built beside the old one. Both rest on these functions.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from edgemed.errors import InputError, cannot_write


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` beside `path`, flush it to the disk, and rename it over `path`.

    Raises:
        InputError: the disk is full, or the folder cannot be written. `path` is then as it was.
    """
    raw = data.encode() if isinstance(data, str) else data
    # One name per file: what a kill leaves behind is overwritten by the next try.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_through(temporary, raw)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def write_through(path: Path, data: bytes) -> None:
    """Write `data` to `path`, and wait until the disk has it. OSError where it does not take it."""
    with path.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the disk knows the names in `folder`, where its file system can say so."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def write_json(path: Path, document: Any) -> None:
    """`document` as indented JSON with a final newline, written atomically; NaN and infinity are refused."""
    write_atomic(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, step: str = "restore it from a copy, or make its folder anew") -> Any:
    """The JSON document in `path`.

    Raises:
        InputError: the file is missing or is no JSON; `step` is what to do then.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {step}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; {step}") from error


def is_text(name: str) -> bool:
    """Whether a name can be written into a CSV and a page: it is UTF-8, and has no control characters."""
    return not any(ord(sign) < 32 or 0xD800 <= ord(sign) < 0xE000 for sign in name)  # halves of pairs: no UTF-8


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without the files that systems hide in it."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check its permissions.") from error


@contextlib.contextmanager
def held_alone(out: Path) -> Iterator[None]:
    """Keep other commands from training in the folder `out` meanwhile, where its file system has locks.

    Raises:
        InputError: one does, or the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise cannot_write(out, error) from error
    with locked(handle, wait=False) as state:
        if state == "taken":
            raise InputError(f"another edgemed is at work in {out}; wait for it, or choose another folder")
        if state == "no locks":
            logging.getLogger("edgemed").warning("%s cannot be locked: see that no other command trains there", out)
        yield


@contextlib.contextmanager
def locked(handle: int, *, wait: bool = True) -> Iterator[Literal["held", "taken", "no locks"]]:
    """Hold the lock of an open file or folder, and close it at the end. Says "taken" only where it shall not `wait`."""
    import fcntl  # Unix has it; edgemed is for Linux

    state: Literal["held", "taken", "no locks"] = "held"
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            state = "taken"
        except OSError:
            state = "no locks"
        yield state
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # outright: a process that was forked meanwhile holds it open
        os.close(handle)
