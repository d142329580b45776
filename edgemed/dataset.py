"""A labelled image data set: scan and check it, keep what belongs together together, split it.

Why: a test score is worth nothing when the test images have siblings in the training set. Rows carry a group (a
patient, a lesion), near-duplicate images are joined into one group, and a group never crosses a split.

A data set is a folder with one folder of images per class, or a CSV `path,label[,group][,split]` with paths relative
to the CSV: see `rows.py`. All DICOM files of a patient or a study are in one group: see `patients.py`. What
a scan finds: `python -c "from edgemed.dataset import scan; print(scan('DATA').warnings)"`.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from edgemed.columns import COLUMNS, SPLITS, written_alike
from edgemed.dicom import frame_of
from edgemed.duplicates import SMALLEST, Thumbnail, duplicate_pairs, merged_groups, thumbnails_of_files
from edgemed.errors import InputError, did_you_mean
from edgemed.files import is_text, write_atomic
from edgemed.progress import Count
from edgemed.rows import PLACEHOLDER, Row, rows_of_csv, rows_of_folder
from edgemed.splits import assigned_parts, held_out_groups

CUT = ("train", "validation", "test")  # by the fractions of `split_dataset`
LARGE_GROUP = 0.05  # share of a class above which a group of joined near-duplicates is worth a warning
NEARLY_ONE_GREY = 20  # of 256 levels: 12 bits in a file of 16 leave 16; the flattest of 10,015 skin images has 29
ONE_GREY = 6  # likewise: 10 bits leave 4, and 11 of 120 copies of ultrasound images were found; 11 bits 8, and 118


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that show the same picture."""

    a: str
    b: str
    label_a: str
    label_b: str
    correlation: float  # of the aligned details, -1..1

    @property
    def conflicting(self) -> bool:
        """At least one of the labels is wrong."""
        return self.label_a != self.label_b


@dataclass(frozen=True)
class Dataset:
    """Labelled images below `root`. `classes` is sorted, and stays whole in a subset that lacks one."""

    root: Path
    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    thumbnails: Mapping[str, Thumbnail] = field(default_factory=dict, repr=False, compare=False)  # by path, of a scan

    @cached_property
    def labels(self) -> list[int]:
        """The index into `classes` of every row."""
        index = {name: k for k, name in enumerate(self.classes)}
        return [index[row.label] for row in self.rows]

    @property
    def groups(self) -> list[str]:
        """The group of every row."""
        return [row.group for row in self.rows]

    @property
    def files(self) -> list[Path]:
        """The file of every row."""
        return [self.file(row) for row in self.rows]

    def file(self, row: Row) -> Path:
        """Where the image of a row lies: what `image_from_file` takes."""
        return self.root / row.path

    def subset(self, split: str) -> Dataset:
        """The rows of one split. `InputError` for a name that is none."""
        if split not in SPLITS:
            raise InputError(f"split {split!r} is not known.{did_you_mean(split, SPLITS)}")
        return replace(self, rows=tuple(row for row in self.rows if row.split == split))

    def unsplit(self) -> Dataset:
        """The same rows, without the splits that the data came with."""
        return replace(self, rows=tuple(replace(row, split="") for row in self.rows))

    def fingerprint(self) -> str:
        """Hex sha256 over path, label, group, split, length and content of every image, in the order of the paths.

        It changes when an image is added, removed, relabelled, regrouped or replaced, or moved to another split of the
        owner's: take it before edgemed splits the data. It does not change with the root.
        """
        digest = hashlib.sha256()
        for row in sorted(self.rows, key=lambda row: row.path):
            try:
                data = frame_of(self.file(row))[0].read_bytes()
            except OSError as error:
                raise InputError(f"{self.file(row)}: cannot be read ({error.strerror}); scan again.") from error
            stated = (row.path, row.label, row.group, row.split) if row.split else (row.path, row.label, row.group)
            content = (str(len(data)), hashlib.sha256(data).hexdigest())
            digest.update("\0".join((*stated, *content)).encode() + b"\n")
        return digest.hexdigest()


def scan(data: str | Path, *, min_classes: int = 2, progress: Count | None = None) -> Dataset:
    """Every image of a folder per class or of a CSV, each decoded once in full, with the rows sorted by path.

    `InputError` when the data cannot be trained on: it names the file, the class or the line, and what to do. Images
    that span few grey levels are warned of, and refused where they are most of every class.
    """
    source = Path(data)
    if source.is_dir():
        root, rows, warnings = source, *rows_of_folder(source)
    elif source.is_file():
        root, rows, warnings = source.parent, *rows_of_csv(source, source.parent)
    else:
        raise InputError(f"{source}: does not exist; pass a folder with one folder per class, or a CSV path,label.")
    rows.sort(key=lambda row: row.path)
    for row in rows:
        if not row.label.isprintable() or not is_text(row.path + row.group):
            raise InputError(f"{source}: a name has control characters, or is not UTF-8 ({row!a}); rename it.")
    dataset = Dataset(root, tuple(rows), tuple(sorted({row.label for row in rows})), tuple(warnings))
    if len(dataset.classes) < min_classes:
        found = ", ".join(dataset.classes)
        raise InputError(f"{source}: holds one class only ({found}); a classifier needs at least two.")
    thumbnails = _thumbnails(dataset, progress)
    warnings += _classes_alike(dataset.classes)
    warnings += _nearly_one_grey(dataset, thumbnails, None if min_classes < 2 else source)
    return replace(dataset, warnings=tuple(warnings), thumbnails=thumbnails)


def join_near_duplicates(dataset: Dataset, *, progress: Count | None = None) -> tuple[Dataset, list[DuplicatePair]]:
    """The data set with the groups of near-duplicate images merged, and the pairs that were found, sorted by path.

    A merged group takes the first of the names in sorted order. Where the data came with a split that a merged group
    crosses, its images stay in the last of its splits, test before calibration, validation and train; the others are
    left out, so that the owner's test images are what they were. Warnings are added for these, for pairs with different
    labels, and for a merged group of three images or more that makes up more than `LARGE_GROUP` of a class.
    """
    rows = dataset.rows
    known = _thumbnails(dataset, None)
    found = duplicate_pairs([known[row.path] for row in rows], progress=progress)
    pairs = [DuplicatePair(rows[i].path, rows[j].path, rows[i].label, rows[j].label, score) for i, j, score in found]
    groups = merged_groups(dataset.groups, [(i, j) for i, j, _ in found])
    joined = tuple(replace(row, group=group) for row, group in zip(rows, groups, strict=True))
    merged = {group for row, group in zip(rows, groups, strict=True) if row.group != group}
    last: dict[str, str] = {}  # the last split of each group
    for row in joined:
        last[row.group] = max(last.get(row.group, ""), row.split, key=("", *SPLITS).index)
    kept = tuple(row for row in joined if row.split == last[row.group])
    paths = {row.path for row in kept}
    warnings = list(dataset.warnings)
    if small := sum(min(known[row.path].shape) < SMALLEST for row in rows):
        warnings.append(f"{small} images have a side below {SMALLEST} pixels: of these only equal ones are found as "
                        "near-duplicates.")  # fmt: skip
    if conflicts := [pair for pair in pairs if pair.conflicting and {pair.a, pair.b} & paths]:
        warnings.append(f"{len(conflicts)} near-duplicate pairs carry different labels; look at them (duplicates.json, "
                        "report.html): one label of each is wrong.")  # fmt: skip
    per_class = Counter(row.label for row in kept)
    counts = Counter((row.group, row.label) for row in kept if row.group in merged)
    for (_, label), count in sorted(counts.items()):
        if count >= 3 and count > LARGE_GROUP * per_class[label]:
            warnings.append(f"near-duplicates joined {count} of {per_class[label]} images of class {label!r} into one "
                            "group; look whether they are the same picture (split.csv).")  # fmt: skip
    if left_out := Counter(row.split for row in joined if row.split != last[row.group]):
        counted = ", ".join(f"{count} of {split}" for split, count in sorted(left_out.items()))
        warnings.append(f"{left_out.total()} images are left out ({counted}): near-duplicates join them, or others of "
                        "their group, to images of a split that comes later (duplicates.json).")  # fmt: skip
    return replace(dataset, rows=kept, warnings=tuple(warnings), thumbnails={}), pairs  # they have done their work


def split_dataset(dataset: Dataset, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0) -> Dataset:
    """The data set with every row in train, validation or test; a split that the data came with is kept.

    One that came without validation has it cut from its training rows, by the proportion of the first two fractions.
    Groups stay whole, and every class comes as near to the fractions as its groups allow. Same rows, same seed, same
    split. `InputError` when a class has too few groups to be in all three.
    """
    if any(row.split for row in dataset.rows):
        if not dataset.subset("validation").rows:
            dataset = _with_validation(dataset, fractions[1] / (fractions[0] + fractions[1]), seed)
        for split in CUT:
            missing = set(dataset.classes) - {row.label for row in dataset.subset(split).rows}
            if missing:
                names = ", ".join(sorted(missing))
                raise InputError(f"the given split has no {split} image of {names}; add some, or drop the column.")
        return dataset
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"split fractions {tuple(fractions)} are not three positive shares that sum to 1.")
    _check_groups(dataset)
    parts = assigned_parts(dataset.labels, dataset.groups, dataset.classes, fractions, seed=seed)
    return replace(dataset, rows=tuple(replace(row, split=CUT[parts[row.group]]) for row in dataset.rows))


def _check_groups(dataset: Dataset) -> None:
    if len(set(dataset.groups)) == 1:
        group, count = dataset.groups[0], len(dataset.rows)
        raise InputError(f"all {count} images are in one group ({group}), which no split cuts. {PLACEHOLDER}")


def _with_validation(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The data set with `share` of its training rows in validation, by whole groups; a class of one group stays."""
    training = dataset.subset("train")
    out = held_out_groups(training.labels, training.groups, training.classes, share, seed=seed)
    cut = {"train": "validation"}
    rows = (replace(row, split=cut.get(row.split, row.split)) if row.group in out else row for row in dataset.rows)
    return replace(dataset, rows=tuple(rows))


def fold_datasets(dataset: Dataset, folds: int, seed: int = 0, validation_fraction: float = 0.15) -> list[Dataset]:
    """One data set per fold of a cross-validation: part k is its test split, every image is tested exactly once.

    `validation_fraction`: share of the rest that becomes the fold's validation split, cut by groups as well.
    """
    if any(row.split for row in dataset.rows):
        raise InputError("the data come with a split, and folds would override it; drop its column, or give --folds 0.")
    if folds < 2 or not 0 < validation_fraction < 1:
        raise InputError(f"{folds} folds, validation {validation_fraction}: take 2 or more, and a share from 0 to 1.")
    _check_groups(dataset)
    parts = assigned_parts(dataset.labels, dataset.groups, dataset.classes, [1 / folds] * folds, seed=seed)
    result = []
    for fold in range(folds):
        rest = replace(dataset, rows=tuple(row for row in dataset.rows if parts[row.group] != fold))
        shares = (1 - validation_fraction, validation_fraction)
        cut = assigned_parts(rest.labels, rest.groups, rest.classes, shares, seed=seed + 1 + fold)
        rows = tuple(replace(row, split=CUT[cut.get(row.group, 2)]) for row in dataset.rows)
        result.append(replace(dataset, rows=rows))
    return result


def write_split_csv(dataset: Dataset, path: str | Path) -> None:
    """Writes `path,label,group,split`, one line per row, in one step: the file is whole or not there."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((row.path, row.label, row.group, row.split) for row in dataset.rows)
    write_atomic(Path(path), text.getvalue())


def read_split_csv(path: str | Path, root: str | Path) -> Dataset:
    """What `write_split_csv` wrote, over the images below `root`. The images themselves are not looked at."""
    rows, _ = rows_of_csv(Path(path), Path(root), as_written=True)
    return Dataset(Path(root), tuple(rows), tuple(sorted({row.label for row in rows})))


def _thumbnails(dataset: Dataset, progress: Count | None) -> dict[str, Thumbnail]:
    """The thumbnail of every row, decoding the images that no scan has decoded yet."""
    todo = [row for row in dataset.rows if row.path not in dataset.thumbnails]
    made = thumbnails_of_files([dataset.file(row) for row in todo], progress)
    return {**dataset.thumbnails, **{row.path: image for row, image in zip(todo, made, strict=True)}}


def _classes_alike(classes: Sequence[str]) -> list[str]:
    """A warning for each set of classes whose names look alike, with escapes where case alone does not tell them."""
    said = []
    for names in written_alike(classes):
        shown = map(repr if len({name.casefold() for name in names}) == 1 else ascii, names)
        said.append(f"the labels {', '.join(shown)} are {len(names)} classes; write them alike if they mean the same.")
    return said


def _nearly_one_grey(dataset: Dataset, thumbnails: Mapping[str, Thumbnail], source: Path | None) -> list[str]:
    """A warning where images span fewer than `NEARLY_ONE_GREY` levels, since a network sees little in them.

    `InputError` where most of every class span fewer than `ONE_GREY`: then it is how they were written, not what some
    of them show, and the search for copies is blind. source: for that error; None where nothing is learnt from them.
    """
    levels = {row: int(np.ptp(thumbnails[row.path])) + 1 for row in dataset.rows}
    flat, flatter = ([row for row, n in levels.items() if n < least] for least in (NEARLY_ONE_GREY, ONE_GREY))
    if not flat:
        return []
    what = "{} of " + f"{len(levels)} images are nearly one grey: fewer than " + "{} of 256 levels (the first: {})"
    step = "if they are 16-bit values that use few of their bits, export them as 8 bit, with a window applied"
    bad, of_all = (Counter(row.label for row in rows) for rows in (flatter, dataset.rows))
    if source and all(2 * bad[label] > count for label, count in of_all.items()):
        what = what.format(len(flatter), ONE_GREY, flatter[0].path)
        raise InputError(f"{source}: {what}; copies would be overlooked, and little learnt: {step}.")
    return [f"{what.format(len(flat), NEARLY_ONE_GREY, flat[0].path)}; look at them, and {step}."]
