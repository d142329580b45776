"""A run's `predictions.csv`: what each member said of each image of the splits that training did not learn from.

`edgemed train DATA --out RUN` writes it; report, ablation, operating point and engine are made from it. No torch.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemed.columns import COLUMNS
from edgemed.dataset import Dataset
from edgemed.errors import InputError
from edgemed.evaluate import Table

MEMBERS = ("imagenet", "mae")
PIXELS = "pixels_sha256"


def predictions_csv(parts: Sequence[tuple[Dataset, NDArray[np.float32], Sequence[str]]]) -> str:
    """path,label,group,split,pixels_sha256 and each member's probability of each class; the ensemble's is their mean.

    Each part: a dataset of N rows, member probabilities float32 (N, M, K), N hashes of the pixels that they are of. The
    numbers read back exactly.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, PIXELS, *_columns(parts[0][0].classes)])
    for part, members, pixels in parts:
        for row, values, sha256 in zip(part.rows, members, pixels, strict=True):
            numbers = (repr(float(value)) for value in values.ravel())
            writer.writerow([row.path, row.label, row.group, row.split, sha256, *numbers])
    return text.getvalue()


def read_table(run: Path, classes: Sequence[str], split: str) -> Table:
    """One split of a run's predictions; rows of other splits are passed over unread.

    Raises:
        InputError: the file is missing or damaged.
    """
    with _lines(run, split) as lines:
        paths, groups = (tuple(line[name] for line in lines) for name in ("path", "group"))
        labels = np.array([classes.index(line["label"]) for line in lines], np.int64)
        values = np.array([[float(line[name]) for name in _columns(classes)] for line in lines], np.float32)
    return Table(paths, labels, groups, values.reshape(len(lines), len(MEMBERS), len(classes)))


def read_pixels(run: Path, split: str) -> list[str]:
    """The hashes of the pixels that one split's predictions are of, in the order of `read_table`. Raises likewise."""
    with _lines(run, split) as lines:
        return [line[PIXELS] for line in lines]


@contextmanager
def _lines(run: Path, split: str) -> Iterator[list[dict[str, str]]]:
    """One split's rows; what cannot be read of them is an InputError."""
    path = run / "predictions.csv"
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            yield [line for line in csv.DictReader(handle) if line["split"] == split]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        step = f"delete {run / 'metrics.json'} and run the same command again: it evaluates anew"
        raise InputError(f"{path} is missing or damaged; {step}") from error


def joined(tables: Sequence[Table]) -> Table:
    """Several tables of the same classes as one."""
    return Table(
        tuple(path for table in tables for path in table.paths),
        np.concatenate([table.labels for table in tables]),
        tuple(group for table in tables for group in table.groups),
        np.concatenate([table.members for table in tables]),
        None if all(table.fused is None for table in tables) else np.concatenate([t.probabilities for t in tables]),
    )


def _columns(classes: Sequence[str]) -> list[str]:
    return [f"{member}:{name}" for member in MEMBERS for name in classes]
