"""The rows of a labelled data set as its owner lists them: a folder per class, or a CSV `path,label[,group][,split]`.

Why its own module: what people hand in has many shapes, and each mistake gets a line that says where and what to do.
No image is opened here, but for the patient's id of a DICOM file. Used through `dataset.scan`.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgemed.columns import COLUMNS, SPLITS, groups_alike, unused_columns
from edgemed.dicom import frame_of
from edgemed.duplicates import merged_groups
from edgemed.errors import InputError, did_you_mean, one_line
from edgemed.files import visible
from edgemed.images import SUFFIXES, is_image
from edgemed.patients import STATED, pseudonyms

PLACEHOLDER = (
    "If removing names gave several patients one PatientID or StudyInstanceUID, list the files in a CSV "
    "path,label,group; if they are only a few among other images, save those as PNG."
)
UNKNOWN = ("na", "n/a", "nan", "none", "null", "unknown", "-")
_MANY_GROUPS = 10  # of one PatientID among other images: lesions of one patient are seldom so many


@dataclass(frozen=True)
class Row:
    """One image: `path` in POSIX form, relative to the data set's root (one outside may be absolute)."""

    path: str  # `scan.dcm#3` is the third frame of a DICOM file
    label: str
    group: str  # images of one group stay in one split; an image without siblings is a group of its own
    split: str = ""  # one of SPLITS, or "" when not yet split


def rows_of_folder(root: Path) -> tuple[list[Row], list[str]]:
    """The images of a folder per class, and warnings. A class is named after its folder, without outer spaces.

    DICOM files are images whatever their suffix, or without one.
    """
    entries = visible(root)
    for entry in entries:
        if entry.is_symlink() and not entry.exists():
            raise InputError(f"{entry}: a link to what is not there; mend it, or remove it.")
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise InputError(f"{root}: holds no folders; put the images of each class into a folder named after the class.")
    names = {folder.name.strip(): folder for folder in folders}
    if len(names) < len(folders):
        twice = next(folder for folder in folders if names[folder.name.strip()] != folder)
        raise InputError(f"{root}: has two folders for the class {twice.name.strip()!r}, which differ in outer spaces; "
                         "make them one.")  # fmt: skip
    rows, ignored = [], sum(is_image(entry) for entry in entries if entry.is_file())
    for folder in folders:
        files = visible(folder)
        if deeper := [entry for entry in files if entry.is_dir()]:
            raise InputError(f"{deeper[0]}: a folder inside a class folder; put images as {root}/CLASS/IMAGE, or list "
                             "them in a CSV path,label,split.")  # fmt: skip
        images = [entry for entry in files if is_image(entry)]
        if not images:
            raise InputError(f"{folder}: holds no image ({', '.join(sorted(SUFFIXES))}); fill it or take it out.")
        ignored += len(files) - len(images)
        paths = (image.relative_to(root).as_posix() for image in images)
        rows += [Row(path, folder.name.strip(), path) for path in paths]
    warnings = [f"{ignored} files that are not images of a class were ignored."] if ignored else []
    rows, told = _by_patient(rows, root)
    return rows, warnings + told + _masks({row.path for row in rows})


def _masks(paths: Collection[str]) -> list[str]:
    """A warning where images lie beside their masks, as BUSI is published: masks of lesions are no pictures of them."""
    parts = ((path, re.fullmatch(r"(.+)_mask(_\d+)?(\.\w+)", path)) for path in sorted(paths))
    found = [path for path, part in parts if part and part[1] + part[3] in paths]
    if not found:
        return []
    return [f"{len(found)} files are named like masks of others ({found[0]}) and would be trained on; leave them out, "
            "as `edgemed data prepare busi` does for BUSI."]  # fmt: skip


def rows_of_csv(path: Path, root: Path, *, as_written: bool = False) -> tuple[list[Row], list[str]]:
    """The rows of a CSV, and warnings. as_written: it is a split.csv, taken to the letter and without looking at files.

    Else outer spaces are dropped, files must exist, and the DICOM files of a patient are in one group.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        step = "restore it from a copy, or train anew" if as_written else "save it as one"
        raise InputError(f"{path}: cannot be read as a CSV in UTF-8 ({error}); {step}.") from error
    header = [name.strip().lower() for name in table[0]] if table else []
    first = one_line(",".join(header)[:80]) if any(header) else "empty"
    for column in COLUMNS:
        if (count := header.count(column)) > 1 or (not count and column in ("path", "label")):
            raise InputError(f"{path}: its first line ({first}) needs one column {column!r}, not {count}; make it "
                             "path,label[,group][,split], separated by commas.")  # fmt: skip
    rows: dict[str, Row] = {}
    lines: dict[str, Sequence[str]] = {}  # the cells of each
    real = root.resolve()
    grouped = set[str]()  # the paths whose group the CSV names
    first_rows = dict[str, int]()  # of each of these groups
    repeated = 0
    for number, cells in enumerate(table[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path}, row {number}"
        if len(cells) != len(header):
            raise InputError(f"{where}: {len(cells)} cells, but the header has {len(header)}; quote cells with commas.")
        cell = dict(zip(header, cells if as_written else (value.strip() for value in cells), strict=True))
        if not cell["path"] or not cell["label"]:
            raise InputError(f"{where}: no {'label' if cell['path'] else 'path'}; fill it in, or take the row out.")
        raw = cells[header.index("path")]  # a name may have outer spaces
        name = _row_path(raw if (root / raw).is_file() else cell["path"], root, real)
        split = cell.get("split", "")
        if split and split not in SPLITS:
            raise InputError(f"{where}: split {split!r} is not known.{did_you_mean(split, SPLITS)}")
        file, frame = frame_of(root / name)
        shown = one_line(name)
        if not as_written and not file.is_file():
            step = "this is a run's list, copy it into the folder of its images" if (root / "run.json").exists() else (
                "paths are relative to the CSV's folder"
            )
            what = "is no file" if file.exists() else "does not exist"
            raise InputError(f"{where}: {root / shown} {what}; {step}.")
        alone = name if frame is None else name.rpartition("#")[0]  # frames of one file are never independent
        row = Row(name, cell["label"], cell.get("group", "") or alone, split)
        if cell.get("group"):
            grouped.add(name)
            first_rows.setdefault(row.group, number)
        if name in rows:
            repeated += 1
            if rows[name] != row:
                raise InputError(f"{where}: {shown} was listed before with another label, group or split; keep one.")
        rows[name], lines[name] = row, cells
    if not rows:
        raise InputError(f"{path}: lists no image; add rows path,label.")
    unsplit = sum(not row.split for row in rows.values())
    if 0 < unsplit < len(rows):
        raise InputError(f"{path}: {unsplit} of {len(rows)} rows have no split; fill in all of them or none.")
    result, warnings = list(rows.values()), list[str]()
    if not as_written:
        result, warnings = _by_patient(result, root, grouped)
        warnings += groups_alike(first_rows)
        for group in sorted(group for group in first_rows if group.casefold() in UNKNOWN):
            warnings.append(f"the images of group {group!r} are kept together, as of one patient; leave their cells "
                            "empty if it only says that no one knows.")  # fmt: skip
        warnings += unused_columns(dict(zip(header, zip(*lines.values(), strict=True), strict=True)))
        warnings += _masks({row.path for row in result})
    _check_splits_keep_groups(result, path)
    return result, warnings + ([f"{repeated} rows that repeat a file were ignored."] if repeated else [])


def _row_path(text: str, root: Path, real: Path) -> str:
    """`text` in one spelling: relative to the root, but for what is absolute in the CSV and lies outside.

    So a folder that holds CSV, images and run can be moved. Links are kept as they are, since the data may be made of
    them; but the root's own (`real`) are followed before `..` is taken, as the system does when it opens the file. A
    `..` behind another link stays as it is written.
    """
    if Path(text).is_absolute():
        base, whole = (Path(os.path.normpath(path)) for path in (root.absolute(), text))
        return (whole.relative_to(base) if whole.is_relative_to(base) else whole).as_posix()
    name = os.path.relpath(real / text, real)
    if ".." in Path(text).parts and (root / text).exists() and not (root / text).samefile(root / name):
        return Path(text).as_posix()
    return Path(name).as_posix()


def _check_splits_keep_groups(rows: Sequence[Row], path: Path) -> None:
    """Raise `InputError` where a group of the CSV is in two splits."""
    splits: dict[str, Row] = {}
    for row in rows:
        other = splits.setdefault(row.group, row)
        if row.split != other.split:
            raise InputError(f"group {row.group!r} is in two splits ({other.path!r}: {other.split or 'none'}, "
                             f"{row.path!r}: {row.split or 'none'}) in {path}; give the group, and all images of a "
                             f"DICOM patient, one split. {PLACEHOLDER}")  # fmt: skip


def _by_patient(rows: Sequence[Row], root: Path, grouped: Collection[str] = ()) -> tuple[list[Row], list[str]]:
    """The rows, with all images of a patient or a study that DICOM files name in one group, and warnings.

    grouped: the paths whose group is given; it is joined with the patient's. But an id that all DICOM files share, in
    several groups, may be a placeholder of who removed the names: where these files are all of the data, or the groups
    are many, the groups count, and a warning says so. A few among other images are of one patient. So with the study.
    """
    files = [frame_of(root / row.path)[0] for row in rows]
    known = pseudonyms(files)
    links, warnings = list[tuple[int, str]](), []
    for kind, keyword in enumerate(STATED):
        of_row = {k: _LAST + known[file][kind] for k, file in enumerate(files) if file in known and known[file][kind]}
        given = {rows[k].group for k in of_row if rows[k].path in grouped}
        can_be_many = len(given) > 1 and (len(of_row) == len(rows) or len(given) >= _MANY_GROUPS)
        if can_be_many and len(set(of_row.values())) == 1:
            warnings.append(
                f"all DICOM images that state a {keyword} state the same ({len(of_row)} images), and are in "
                f"{len(given)} groups of the CSV: the groups count, it is taken for a placeholder; where the images "
                "are of one patient, give them one group."
            )
        else:
            links += of_row.items()
    own = dict(reversed(links))  # the patient's before the study's
    groups = [row.group if row.path in grouped else own.get(k, row.group) for k, row in enumerate(rows)]
    places = {name: len(rows) + place for place, name in enumerate(dict.fromkeys(name for _, name in links))}
    joined = merged_groups([*groups, *places], [(k, places[name]) for k, name in links])
    return [replace(row, group=group.removeprefix(_LAST)) for row, group in zip(rows, joined, strict=False)], warnings


_LAST = "\U0010ffff"  # sorts a pseudonym behind every name: a group that was given keeps its own
