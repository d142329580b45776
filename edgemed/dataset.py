"""A labelled image data set: scan and check it, keep what belongs together together, split it.

Why: a test score is worth nothing when the test images have siblings in the training set. Rows carry a group (a
patient, a lesion), near-duplicate images are joined into one group, and a group never crosses a split.

A data set is a folder with one folder of images per class, or a CSV `path,label[,group][,split]` with paths relative
to the CSV. See what a scan finds: `python -c "from edgemed.dataset import scan; print(scan('DATA').warnings)"`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from edgemed.duplicates import Progress, Thumbnail, duplicate_pairs, merged_groups, thumbnails_of_files
from edgemed.errors import InputError, did_you_mean
from edgemed.files import write_atomic
from edgemed.images import SUFFIXES
from edgemed.splits import assigned_parts

SPLITS = ("train", "validation", "test")
LARGE_GROUP = 0.05  # share of a class above which a group of joined near-duplicates is worth a warning


@dataclass(frozen=True)
class Row:
    """One image: `path` in POSIX form, relative to the data set's root (absolute when it lies outside)."""

    path: str
    label: str
    group: str  # images of one group stay in one split; an image without siblings is a group of its own
    split: str = ""  # "train", "validation", "test", or "" when not yet split


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that show the same picture. `conflicting`: they carry different labels, so one of them is wrong."""

    a: str
    b: str
    correlation: float  # of the aligned details, -1..1
    conflicting: bool


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
        """Where the image of a row lies."""
        return self.root / row.path

    def subset(self, split: str) -> Dataset:
        """The rows of one split. `InputError` for a name that is none."""
        if split not in SPLITS:
            raise InputError(f"split {split!r} is not known.{did_you_mean(split, SPLITS)}")
        return replace(self, rows=tuple(row for row in self.rows if row.split == split))

    def fingerprint(self) -> str:
        """Hex sha256 over path, label, group, length and content of every image, in the order of the paths.

        It changes when an image is added, removed, relabelled, regrouped or replaced; not with the split or the root.
        """
        digest = hashlib.sha256()
        for row in sorted(self.rows, key=lambda row: row.path):
            try:
                data = self.file(row).read_bytes()
            except OSError as error:
                raise InputError(f"{self.file(row)}: cannot be read ({error.strerror}); scan again.") from error
            content = hashlib.sha256(data).hexdigest()
            digest.update("\0".join((row.path, row.label, row.group, str(len(data)), content)).encode() + b"\n")
        return digest.hexdigest()


def scan(data: str | Path, *, min_classes: int = 2, progress: Progress | None = None) -> Dataset:
    """Every image of a folder per class or of a CSV, each decoded once in full, with the rows sorted by path.

    `InputError` when the data cannot be trained on: it names the file, the class or the line, and what to do.
    """
    source = Path(data)
    if source.is_dir():
        root, rows, warnings = source, *_rows_of_folder(source)
    elif source.is_file():
        root, rows, warnings = source.parent, *_rows_of_csv(source, source.parent)
    else:
        raise InputError(f"{source}: does not exist; pass a folder with one folder per class, or a CSV path,label.")
    rows.sort(key=lambda row: row.path)
    if strange := [row for row in rows if any(ord(sign) < 32 for sign in row.path + row.label + row.group)]:
        raise InputError(f"{source}: a name has control characters ({strange[0]!a}); rename it.")
    dataset = Dataset(root, tuple(rows), tuple(sorted({row.label for row in rows})), tuple(warnings))
    if len(dataset.classes) < min_classes:
        found = ", ".join(dataset.classes)
        raise InputError(f"{source}: holds one class only ({found}); a classifier needs at least two.")
    return replace(dataset, thumbnails=_thumbnails(dataset, progress))


def join_near_duplicates(dataset: Dataset, *, progress: Progress | None = None) -> tuple[Dataset, list[DuplicatePair]]:
    """The data set with the groups of near-duplicate images merged, and the pairs that were found, sorted by path.

    A merged group takes the first of the names in sorted order. Warnings are added for pairs with different labels, and
    for a merged group of three images or more that makes up more than `LARGE_GROUP` of a class.
    """
    rows = dataset.rows
    known = _thumbnails(dataset, None)
    found = duplicate_pairs([known[row.path] for row in rows], progress=progress)
    pairs = [DuplicatePair(rows[i].path, rows[j].path, score, rows[i].label != rows[j].label) for i, j, score in found]
    groups = merged_groups(dataset.groups, [(i, j) for i, j, _ in found])
    joined = tuple(replace(row, group=group) for row, group in zip(rows, groups, strict=True))
    merged = {group for row, group in zip(rows, groups, strict=True) if row.group != group}
    warnings = list(dataset.warnings)
    if conflicts := [pair for pair in pairs if pair.conflicting]:
        warnings.append(f"{len(conflicts)} near-duplicate pairs carry different labels (first: {conflicts[0].a} and "
                        f"{conflicts[0].b}); look at them, one label of each is wrong.")  # fmt: skip
    per_class = Counter(row.label for row in joined)
    counts = Counter((row.group, row.label) for row in joined if row.group in merged)
    for (group, label), count in sorted(counts.items()):
        if count >= 3 and count > LARGE_GROUP * per_class[label]:
            warnings.append(f"near-duplicates joined {count} of {per_class[label]} images of class {label!r} into the "
                            f"group {group!r}; look whether they are the same picture.")  # fmt: skip
    result = replace(dataset, rows=joined, warnings=tuple(warnings), thumbnails={})  # they have done their work
    _check_splits_keep_groups(result, "after near-duplicates were joined; put both in one split")
    return result, pairs


def split_dataset(dataset: Dataset, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0) -> Dataset:
    """The data set with every row in train, validation or test; a split that the data came with is kept.

    Groups stay whole, and every class comes as near to the fractions as its groups allow. Same rows, same seed, same
    split. `InputError` when a class has too few groups to be in all three.
    """
    if any(row.split for row in dataset.rows):
        for split in SPLITS:
            missing = set(dataset.classes) - {row.label for row in dataset.subset(split).rows}
            if missing:
                names = ", ".join(sorted(missing))
                raise InputError(f"the given split has no {split} image of {names}; add some, or drop the column.")
        return dataset
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"split fractions {tuple(fractions)} are not three positive shares that sum to 1.")
    parts = assigned_parts(dataset.labels, dataset.groups, dataset.classes, fractions, seed=seed)
    return replace(dataset, rows=tuple(replace(row, split=SPLITS[parts[row.group]]) for row in dataset.rows))


def fold_datasets(dataset: Dataset, folds: int, seed: int = 0, validation_fraction: float = 0.15) -> list[Dataset]:
    """One data set per fold of a cross-validation: part k is its test split, every image is tested exactly once.

    `validation_fraction`: share of the rest that becomes the fold's validation split, cut by groups as well.
    """
    if any(row.split for row in dataset.rows):
        raise InputError("the data come with a split, and folds would override it; drop its column, or the folds.")
    if folds < 2 or not 0 < validation_fraction < 1:
        raise InputError(f"{folds} folds, validation {validation_fraction}: take 2 or more, and a share from 0 to 1.")
    parts = assigned_parts(dataset.labels, dataset.groups, dataset.classes, [1 / folds] * folds, seed=seed)
    result = []
    for fold in range(folds):
        rest = replace(dataset, rows=tuple(row for row in dataset.rows if parts[row.group] != fold))
        shares = (1 - validation_fraction, validation_fraction)
        cut = assigned_parts(rest.labels, rest.groups, rest.classes, shares, seed=seed + 1 + fold)
        rows = tuple(replace(row, split=SPLITS[cut.get(row.group, 2)]) for row in dataset.rows)
        result.append(replace(dataset, rows=rows))
    return result


def write_split_csv(dataset: Dataset, path: str | Path) -> None:
    """Writes `path,label,group,split`, one line per row, in one step: the file is whole or not there."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "group", "split"))
    writer.writerows((row.path, row.label, row.group, row.split) for row in dataset.rows)
    write_atomic(Path(path), text.getvalue())


def read_split_csv(path: str | Path, root: str | Path) -> Dataset:
    """What `write_split_csv` wrote, over the images below `root`. The images themselves are not looked at."""
    rows, _ = _rows_of_csv(Path(path), Path(root), check_files=False)
    return Dataset(Path(root), tuple(rows), tuple(sorted({row.label for row in rows})))


def _rows_of_folder(root: Path) -> tuple[list[Row], list[str]]:
    entries = _visible(root)
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise InputError(f"{root}: holds no folders; put the images of each class into a folder named after the class.")
    rows, ignored = [], sum(entry.suffix.lower() in SUFFIXES for entry in entries if entry.is_file())
    for folder in folders:
        files = _visible(folder)
        images = [entry for entry in files if entry.suffix.lower() in SUFFIXES]
        if deeper := [entry for entry in files if entry.is_dir()]:
            raise InputError(f"{deeper[0]}: a folder inside a class folder; put images as {root}/CLASS/IMAGE, or list "
                             "them in a CSV path,label,split.")  # fmt: skip
        if not images:
            raise InputError(f"{folder}: holds no image ({', '.join(sorted(SUFFIXES))}); fill it or take it out.")
        ignored += len(files) - len(images)
        names = (image.relative_to(root).as_posix() for image in images)
        rows += [Row(name, folder.name, name) for name in names]
    return rows, [f"{ignored} files that are no images of a class were ignored."] if ignored else []


def _rows_of_csv(path: Path, root: Path, *, check_files: bool = True) -> tuple[list[Row], list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a CSV in UTF-8 ({error}); save it as one.") from error
    header = [name.strip().lower() for name in table[0]] if table else []
    for column in ("path", "label"):
        if header.count(column) != 1:
            raise InputError(f"{path}: its first line ({','.join(header)[:80]}) needs one column {column!r}; make it "
                             "path,label[,group][,split], separated by commas.")  # fmt: skip
    rows: dict[str, Row] = {}
    repeated = 0
    for number, cells in enumerate(table[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path}, row {number}"
        if len(cells) != len(header):
            raise InputError(f"{where}: {len(cells)} cells, but the header has {len(header)}; quote cells with commas.")
        cell = dict(zip(header, (value.strip() for value in cells), strict=True))
        if not cell["path"] or not cell["label"]:
            raise InputError(f"{where}: no {'label' if cell['path'] else 'path'}; fill it in, or take the row out.")
        name = _row_path(cell["path"], root)
        split = cell.get("split", "")
        if split and split not in SPLITS:
            raise InputError(f"{where}: split {split!r} is not known.{did_you_mean(split, SPLITS)}")
        if check_files and not (root / name).is_file():
            raise InputError(f"{where}: {root / name} does not exist; paths are relative to the CSV's folder.")
        row = Row(name, cell["label"], cell.get("group", "") or name, split)
        if name in rows:
            repeated += 1
            if rows[name] != row:
                raise InputError(f"{where}: {name} was listed before with another label, group or split; keep one.")
        rows[name] = row
    if not rows:
        raise InputError(f"{path}: lists no image; add rows path,label.")
    unsplit = sum(not row.split for row in rows.values())
    if 0 < unsplit < len(rows):
        raise InputError(f"{path}: {unsplit} of {len(rows)} rows have no split; fill in all of them or none.")
    result = list(rows.values())
    _check_splits_keep_groups(Dataset(root, tuple(result), ()), f"in {path}; give the group one split")
    return result, [f"{repeated} rows that repeat a file were ignored."] if repeated else []


def _row_path(text: str, root: Path) -> str:
    """`text`, relative to the root, in one spelling. Links are kept as they are: the data may be made of them."""
    base, whole = (Path(os.path.normpath(path.absolute())) for path in (root, root / text))
    return (whole.relative_to(base) if whole.is_relative_to(base) else whole).as_posix()


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without the files that systems hide in it."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check its permissions.") from error


def _thumbnails(dataset: Dataset, progress: Progress | None) -> dict[str, Thumbnail]:
    """The thumbnail of every row, decoding the images that no scan has decoded yet."""
    todo = [row for row in dataset.rows if row.path not in dataset.thumbnails]
    made = thumbnails_of_files([dataset.file(row) for row in todo], progress)
    return {**dataset.thumbnails, **{row.path: image for row, image in zip(todo, made, strict=True)}}


def _check_splits_keep_groups(dataset: Dataset, step: str) -> None:
    splits: dict[str, Row] = {}
    for row in dataset.rows:
        other = splits.setdefault(row.group, row)
        if row.split != other.split:
            raise InputError(f"group {row.group!r} is in two splits ({other.path}: {other.split or 'none'}, "
                             f"{row.path}: {row.split or 'none'}) {step}.")  # fmt: skip
