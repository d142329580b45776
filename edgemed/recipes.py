"""The paper's data sets as their publishers hand them out, turned into a CSV that `edgemed train` takes.

    edgemed data prepare busi|isic2018|kvasir|covid SRC OUT.csv

Why: each set has its trap (masks beside images, several images of one lesion, a test split of its own), and a figure on
it means little when one of them was overlooked. SRC is what was downloaded, unpacked; it is only read. OUT.csv points
to the images where they lie, by paths relative to itself: nothing is copied, renamed or linked. Counts are compared
with the publisher's: a class without images is an error, another count a warning, since part of a set is fair to use.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgemed.errors import InputError, did_you_mean
from edgemed.files import is_text, visible, write_atomic
from edgemed.images import SUFFIXES
from edgemed.published import BUSI, COVID, ISIC2018, ISIC_CLASSES, ISIC_TRAINING, KVASIR, PublishedSet

_DEPTH = 3  # how far below SRC the class folders may lie
_GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"


@dataclass(frozen=True)
class Item:
    """One image: its file, class, group ("" = alone) and split ("" = left to training)."""

    file: Path
    label: str
    group: str = ""
    split: str = ""


@dataclass(frozen=True)
class Prepared:
    """What was written, and what its user should know."""

    csv: Path
    counts: Mapping[str, int]  # images per class, or per part and class
    source: PublishedSet
    warnings: tuple[str, ...]


def prepare(name: str, source: Path, out: Path) -> Prepared:
    """Write the CSV `path,label[,group][,split]` of one of `RECIPES` over the images below `source`.

    `InputError`: an unknown name, a layout that is not the publisher's, a class without images, a file name that no CSV
    can hold, an `out` that is no .csv or holds something else. Nothing is written then.
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe for {name!r}.{did_you_mean(name, RECIPES)}")
    if out.suffix.lower() != ".csv":
        raise InputError(f"{out}: give the CSV to write, such as {out / f'{name}.csv'}; images stay where they are.")
    if not source.is_dir():
        raise InputError(f"{source}: is not a folder; unpack what you downloaded, and give the folder that it makes.")
    try:
        items, terms, warnings = RECIPES[name](source)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions.") from error
    counts = Counter(f"{item.split} {item.label}".strip() for item in items)
    found = counts | Counter(item.split for item in items if item.split) | Counter(item.label for item in items)
    off = [f"{key} {found[key]} of {count}" for key, count in terms.counts.items() if found[key] != count]
    if off:
        warnings.append(f"the counts are not the publisher's: {', '.join(off)}; part of the set, or another version?")
    if terms.note:
        warnings.append(f"{terms.note}.")
    columns = ["path", "label", *(column for column in ("group", "split") if any(getattr(i, column) for i in items))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    folder = out.parent.resolve()  # from where the system takes `..`, should it be a link
    for item in items:
        path = Path(os.path.relpath(item.file, folder)).as_posix()
        if not is_text(path):
            raise InputError(f"{source}: a name has control characters, or is not UTF-8 ({path!a}); rename it.")
        writer.writerow([path, *(getattr(item, column) for column in columns[1:])])
    if out.exists() and out.read_bytes() != text.getvalue().encode():
        raise InputError(f"{out}: exists and holds something else; delete it, or choose another name.")
    write_atomic(out, text.getvalue())
    return Prepared(out, counts, terms, tuple(warnings))


Found = tuple[list[Item], PublishedSet, list[str]]


def _folders_of(*sources: PublishedSet, skip: str = "(?!)") -> Callable[[Path], Found]:
    """A recipe for one folder per class, in the folder nearest to SRC that has them; sources: sets of that layout."""

    def recipe(root: Path) -> Found:
        fitting: dict[Path, list[PublishedSet]] = {}
        for base in _bases(root):
            if fitting and len(base.parts) > len(next(iter(fitting)).parts):
                break  # what lies deeper is no other copy of the set
            if found := [source for source in sources if _places(base, source)]:
                fitting[base] = found
        if not fitting:
            wanted = " or ".join(f"{', '.join(sum(s.folders.values(), ()))} ({s.title})" for s in sources)
            raise _lacking(root, f"the folders {wanted}", "give the folder that holds them")
        base, found = next(iter(fitting.items()))
        made = []
        for source in found:
            places = _places(base, source) or {}
            items = [Item(f, label) for label, of in places.items() for place in of for f in _images(place, skip)]
            made.append((source, items, Counter(item.label for item in items) == source.counts))
        source, items, _ = next((one for one in made if one[2]), made[0])
        if empty := [label for label in source.folders if label not in {item.label for item in items}]:
            raise InputError(f"{base}: holds no image of {', '.join(empty)}; unpack it again.")
        items, notes = _by_lists(root, source, items)
        if len(fitting) > 1:
            notes.append(f"only {base} is taken; {list(fitting)[1]} has such folders too: prepare it by itself.")
        if len(made) > 1 and not any(exact for *_, exact in made):
            notes.append("several sets have such folders, and none has these counts: it may be any of them.")
            source = _any_of([source for source, *_ in made])
        return items, source, notes

    return recipe


def _any_of(sources: Sequence[PublishedSet]) -> PublishedSet:
    """What to know of a set that may be any of these."""

    def each(field: str) -> str:
        return "; or: ".join(dict.fromkeys(str(getattr(source, field)) for source in sources))

    return PublishedSet(each("title"), each("licence"), each("citation"), counts={}, note=each("note"))


def _by_lists(root: Path, source: PublishedSet, items: list[Item]) -> tuple[list[Item], list[str]]:
    """The images with the split of the publisher's lists, where there are some and they name each image once."""
    if not source.lists:
        return items, []
    own = "training cuts its own split, which may part the images of a patient."
    parts: dict[tuple[str, str], set[str]] = {}  # (class, name) -> its splits
    for label, pattern in source.lists.items():
        for part, split in (("train", "train"), ("val", "validation"), ("test", "test")):
            path = next((entry for entry in _anywhere(root, pattern.format(part)) if entry.is_file()), None)
            if path is None:
                return items, [f"the publisher's split is not there ({pattern.format(part)} below SRC): {own}"]
            try:
                names = path.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: cannot be read as text ({error}); download it again.") from error
            for name in names:
                parts.setdefault((label, name.strip()), set()).add(split)
    found = [parts.get((item.label, item.file.name), set()) for item in items]
    if unsure := [item.file.name for item, of in zip(items, found, strict=True) if len(of) != 1]:
        return items, [f"the publisher's split does not name {len(unsure)} of the {len(items)} images once, the first "
                       f"{unsure[0]}: {own}"]  # fmt: skip
    return [replace(item, split=next(iter(of))) for item, of in zip(items, found, strict=True)], []


def _bases(root: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """The folders in which class folders may lie: SRC itself, then what is below, level by level, links too."""
    level = [root]
    for _ in range(depth):
        yield from level
        level = [entry for base in level for entry in visible(base) if entry.is_dir()]


def _places(base: Path, source: PublishedSet) -> dict[str, list[Path]] | None:
    """The folders of every class below `base`, or None where one is missing."""
    found = {label: [_below(base, name) for name in names] for label, names in source.folders.items()}
    places = {label: [place for place in of if place is not None] for label, of in found.items()}
    return places if places == found else None


def _below(base: Path, name: str) -> Path | None:
    """The folder `name`, such as "CT/COVID", below `base`, whatever the case of its letters.

    One without images, which holds another of its name, is the wrapping of an unpacking program: the inner one is it.
    """
    first, _, rest = name.partition("/")
    for entry in visible(base):
        if entry.name.casefold() == first.casefold() and entry.is_dir():
            if rest:
                return _below(entry, rest) or _below(entry, name)
            return entry if _images(entry) else _below(entry, first) or entry
    return None


def _images(folder: Path, skip: str = "(?!)") -> list[Path]:
    files = (entry for entry in visible(folder) if entry.suffix.lower() in SUFFIXES and entry.is_file())
    return [file for file in files if not re.search(skip, file.stem)]


def _anywhere(root: Path, name: str) -> list[Path]:
    """The files and folders called `name` below `root`, except in hidden folders and what macOS adds."""
    return [base / name for base in _bases(root, depth=2 * _DEPTH) if (base / name).exists()]


def _lacking(root: Path, what: str, step: str) -> InputError:
    """The error for a part of a set that is not below `root`; a zip there that was not unpacked may hold it."""
    zips = (entry for base in _bases(root) for entry in visible(base) if entry.suffix.lower() == ".zip")
    if (packed := next((entry for entry in zips if not entry.with_suffix("").exists()), None)) is not None:
        step += f", or unpack {packed}, which may hold what is missing"
    return InputError(f"{root}: does not hold {what}; {step}.")


def _isic2018(root: Path) -> Found:
    """Lesions are groups. The official split is kept; without its test part the training part is left unsplit."""
    groupings = _table(root, _GROUPINGS, "lesion_id")
    lesions = {line["image"]: line["lesion_id"] for line in groupings}
    training = _isic_part(root, "Training", lesions)
    if alone := [item.file.stem for item in training if item.file.stem not in lesions]:
        raise InputError(
            f"{_GROUPINGS}: names no lesion for {len(alone)} of the {len(training)} training images, the first "
            f"{alone[0]}: lesions would be on both sides of a split; download it again."
        )
    if not _anywhere(root, "ISIC2018_Task3_Test_Input"):
        warning = "the official test part (ISIC2018_Task3_Test_Input) is not there: training cuts its own test split."
        return training, replace(ISIC2018, counts=ISIC_TRAINING), [warning]
    test = [replace(item, split="test") for item in _isic_part(root, "Test", {})]
    if _anywhere(root, "ISIC2018_Task3_Validation_Input"):
        validation = [replace(item, split="validation") for item in _isic_part(root, "Validation", {})]
        return [replace(item, split="train") for item in training] + validation + test, ISIC2018, []
    warning = "the official validation part is not there: training cuts its own from the training part."
    counts = {key: count for key, count in ISIC2018.counts.items() if key != "validation"}
    return [replace(item, split="train") for item in training] + test, replace(ISIC2018, counts=counts), [warning]


def _isic_part(root: Path, part: str, lesions: Mapping[str, str]) -> list[Item]:
    """The images of "Training", "Validation" or "Test" in the order of its truth, alone where no lesion is known."""
    folders = [entry for entry in _anywhere(root, f"ISIC2018_Task3_{part}_Input") if entry.is_dir()]
    if not folders:
        raise _lacking(root, f"the folder ISIC2018_Task3_{part}_Input", "unpack it there")
    folder = next((entry for entry in folders if _images(entry)), folders[0])
    name = f"ISIC2018_Task3_{part}_GroundTruth.csv"
    items = []
    for line in _table(root, name, *ISIC_CLASSES):
        labels = [label for label in ISIC_CLASSES if line[label] in ("1.0", "1")]
        if len(labels) != 1:
            raise InputError(f"{name}: {line['image']} has {len(labels)} classes in place of one; download it again.")
        items.append(Item(folder / f"{line['image']}.jpg", labels[0], lesions.get(line["image"], line["image"])))
    if missing := [item for item in items if not item.file.is_file()]:
        raise InputError(f"{folder}: lacks {len(missing)} of the {len(items)} images that {name} lists, the first "
                         f"{missing[0].file.name}; unpack it again.")  # fmt: skip
    return items


def _table(root: Path, name: str, *columns: str) -> list[dict[str, str]]:
    """The lines of a CSV anywhere below `root`, each with an `image` and the columns asked for."""
    path = next((entry for entry in _anywhere(root, name) if entry.is_file()), None)
    if path is None:
        raise _lacking(root, name, "download it from challenge.isic-archive.com/data/#2018")
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            lines = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a CSV ({error}); download it again.") from error
    if not lines or not all(line.get(column) for line in lines for column in ("image", *columns)):
        raise InputError(f"{path}: lacks lines, or values of {', '.join(('image', *columns))}; download it again.")
    return lines


RECIPES: Mapping[str, Callable[[Path], Found]] = {
    "busi": _folders_of(BUSI, skip=r"_mask(_\d+)?$"),
    "isic2018": _isic2018,
    "kvasir": _folders_of(KVASIR),
    "covid": _folders_of(*COVID),
}
