"""Which images a folder or a CSV means: by the rules of training, for labelled and unlabelled ones.

    edgemed predict BUNDLE FOLDER
    edgemed certify BUNDLE FOLDER|CSV
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from edgemed.errors import InputError
from edgemed.files import visible
from edgemed.images import is_image

_log = logging.getLogger(__name__)


def _raised(error: InputError) -> None:
    raise error


def image_files(data: Path, unreadable: Callable[[InputError], None] = _raised) -> Iterator[Path]:
    """The image files below a folder except hidden ones, or those that a CSV names: by the rules of training.

    unreadable: called with the error of each folder below that cannot be read.
    """
    if data.is_dir():
        entries = _below(data, unreadable)
        found = [entry for entry in entries if is_image(entry)]
        if not found:
            raise InputError(f"{data} holds no images; give a folder that does, or a CSV")
        if others := len(entries) - len(found):
            _log.warning("%d of %d files below %s are no images, and were passed over", others, len(entries), data)
        yield from found
        return
    try:
        with data.open(newline="", encoding="utf-8-sig") as handle:
            lines = [cells for cells in csv.reader(handle) if any(cell.strip() for cell in cells)]
    except FileNotFoundError as error:
        raise InputError(f"{data} does not exist; give a folder of images or a CSV") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {data}: {error}; give a folder of images or a CSV") from error
    header = [name.strip().lower() for name in lines[0]] if lines else []
    if "path" not in header or len(lines) < 2:
        raise InputError(f"{data} has no column 'path', or no rows")
    column = header.index("path")
    for cells in lines[1:]:
        name = cells[column] if column < len(cells) else ""
        whole = data.parent / name
        yield whole if whole.is_file() else data.parent / name.strip()  # a name may have outer spaces


def _below(folder: Path, unreadable: Callable[[InputError], None]) -> list[Path]:
    """Every file that is not hidden."""
    found = []
    try:
        for entry in visible(folder):
            if entry.is_dir():
                if not folder.resolve().is_relative_to(entry.resolve()):  # a link back would never end
                    found += _below(entry, unreadable)
            else:
                found.append(entry)
    except InputError as error:
        unreadable(error)
    except OSError as error:  # a folder that may be listed, and not entered
        unreadable(InputError(f"{folder}: cannot be read ({error.strerror}); check its permissions."))
    return found
