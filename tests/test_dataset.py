"""What a scan accepts, which images it calls copies, and how it splits: no group may ever cross."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

pytest.importorskip("cv2", reason="extra train is not installed")

from edgemed import duplicates
from edgemed.dataset import (
    SPLITS,
    Dataset,
    Row,
    fold_datasets,
    join_near_duplicates,
    read_split_csv,
    scan,
    split_dataset,
    write_split_csv,
)
from edgemed.duplicates import duplicate_pairs, thumbnail
from edgemed.errors import InputError
from edgemed.images import image_from_file
from edgemed.phantoms import phantom


def _save(path: Path, seed: int = 0, kind: str = "oval") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(phantom(kind, seed, 120, 150)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, first in (("benign", 0), ("malignant", 100)):
        for k in range(4):
            _save(tmp_path / "data" / label / f"{k}.png", first + k)
    return tmp_path / "data"


def _csv(folder: Path, *lines: str) -> Path:
    path = folder / "data.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def _rows(counts: dict[str, dict[str, int]]) -> Dataset:
    """A data set without files: label -> group -> number of images."""
    rows = [
        Row(f"{label}/{group}-{k}.png", label, group)
        for label, groups in counts.items()
        for group, count in groups.items()
        for k in range(count)
    ]
    return Dataset(Path(), tuple(rows), tuple(sorted(counts)))


def test_a_folder_per_class_gives_one_row_per_image_and_says_what_it_ignored(folder: Path) -> None:
    (folder / "SOURCE.md").write_text("who made this")
    (folder / "benign" / "notes.txt").write_text("x")
    (folder / "benign" / ".DS_Store").write_text("x")
    (folder / ".cache").mkdir()
    _save(folder / "stray.png")
    (folder / "malignant" / "3.png").rename(folder / "malignant" / "3.PNG")
    seen: list[tuple[int, int]] = []
    dataset = scan(folder, progress=lambda done, total: seen.append((done, total)))
    assert dataset.classes == ("benign", "malignant")
    assert [row.path for row in dataset.rows][-2:] == ["malignant/2.png", "malignant/3.PNG"]
    assert Counter(dataset.labels) == {0: 4, 1: 4}
    assert len({row.group for row in dataset.rows}) == 8  # without groups every image is one
    assert len(dataset.warnings) == 1 and dataset.warnings[0].startswith("2 files")
    assert seen == [(k, 8) for k in range(1, 9)]


def test_a_csv_carries_groups_and_splits_and_may_point_anywhere(folder: Path, tmp_path: Path) -> None:
    outside = _save(tmp_path / "elsewhere" / "x.png", 7)
    lines = ["\ufeffpath,label,group,split,age", "benign/0.png, a ,p1,train,60", f'"{outside}",b,,test,']
    dataset = scan(_csv(folder, *lines, "malignant/../benign/1.png,b,p2,validation,70", ""))
    assert set(dataset.rows) == {
        Row("benign/0.png", "a", "p1", "train"),
        Row("benign/1.png", "b", "p2", "validation"),
        Row(outside.as_posix(), "b", outside.as_posix(), "test"),
    }
    assert all(dataset.file(row).is_file() for row in dataset.rows)
    assert [row.path for row in dataset.subset("train").rows] == ["benign/0.png"]
    assert dataset.subset("train").classes == ("a", "b")


CSV_ERRORS = {
    "no label column": (["path,diagnosis", "benign/0.png,a"], "'label'"),
    "no path column": (["image,label", "benign/0.png,a"], "'path'"),
    "semicolons": (["path;label", "benign/0.png;a"], "commas"),
    "empty": ([""], "'path'"),
    "only a header": (["path,label"], "lists no image"),
    "missing file": (["path,label", "benign/0.png,a", "benign/none.png,b"], "row 3: "),
    "no label in a row": (["path,label", "benign/0.png,"], "row 2: no label"),
    "too many cells": (["path,label", "benign/0.png,a,b"], "3 cells"),
    "unknown split": (["path,label,split", "benign/0.png,a,trian"], "Did you mean 'train'"),
    "split for some": (["path,label,split", "benign/0.png,a,train", "benign/1.png,b,"], "1 of 2 rows have no split"),
    "group in two splits": (
        ["path,label,group,split", "benign/0.png,a,p7,train", "benign/1.png,b,p7,test"],
        "group 'p7' is in two splits",
    ),
    "file with two labels": (
        ["path,label", "benign/0.png,a", "benign/../benign/0.png,b"],
        "listed before with another",
    ),
    "one class": (["path,label", "benign/0.png,a", "benign/1.png,a"], "one class only (a)"),
    "control characters": (["path,label", "benign/0.png,a", 'benign/1.png,"b\tc"'], "control characters"),
}


@pytest.mark.parametrize("case", CSV_ERRORS)
def test_a_bad_csv_is_refused_in_one_line_that_names_the_place(folder: Path, case: str) -> None:
    lines, reason = CSV_ERRORS[case]
    with pytest.raises(InputError) as caught:
        scan(_csv(folder, *lines))
    assert reason in str(caught.value) and "data.csv" in str(caught.value) and "\n" not in str(caught.value)


def _without_class_folders(folder: Path) -> None:
    for label in ("benign", "malignant"):
        for image in (folder / label).iterdir():
            image.rename(folder / f"{label}-{image.name}")
        (folder / label).rmdir()


FOLDER_ERRORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "images without class folders": (_without_class_folders, "holds no folders"),
    "a class without images": (lambda folder: (folder / "normal").mkdir(), "normal: holds no image"),
    "a split as a class": (lambda folder: _save(folder / "train" / "benign" / "0.png"), "a folder inside a class"),
    "one class": (lambda folder: (folder / "malignant").rename(folder.parent / "gone"), "one class only (benign)"),
    "a text file as an image": (lambda folder: (folder / "benign" / "1.png").write_text("hello"), "1 of 8 images"),
    "nothing there": (lambda folder: folder.rename(folder.parent / "gone"), "does not exist"),
}


@pytest.mark.parametrize("case", FOLDER_ERRORS)
def test_a_bad_folder_is_refused_in_one_line_that_says_what_to_do(folder: Path, case: str) -> None:
    damage, reason = FOLDER_ERRORS[case]
    damage(folder)
    with pytest.raises(InputError) as caught:
        scan(folder)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_every_damaged_image_is_counted_and_the_first_is_named(folder: Path) -> None:
    for name in ("benign/1.png", "malignant/2.png"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"2 of 8 images.*benign/1\.png.*truncated"):
        scan(folder)


def test_the_fingerprint_follows_content_and_labels_but_not_the_place_or_the_split(folder: Path) -> None:
    dataset = scan(folder)
    first = dataset.fingerprint()
    moved = folder.rename(folder.parent / "moved")
    assert scan(moved).fingerprint() == first
    assert split_dataset(scan(moved)).fingerprint() == first
    relabelled = replace(dataset, root=moved, rows=(replace(dataset.rows[0], label="malignant"), *dataset.rows[1:]))
    assert relabelled.fingerprint() != first
    _save(moved / "benign" / "0.png", 55)
    assert scan(moved).fingerprint() != first


def test_split_csv_brings_back_the_same_rows(folder: Path) -> None:
    dataset = split_dataset(scan(folder))
    dataset = replace(dataset, rows=(replace(dataset.rows[0], group='p "1", left'), *dataset.rows[1:]))
    write_split_csv(dataset, folder / "split.csv")
    back = read_split_csv(folder / "split.csv", folder)
    assert (back.rows, back.classes, back.root) == (dataset.rows, dataset.classes, dataset.root)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


# -- near-duplicates --


def _altered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A copy as they occur: cropped by up to 5 % per axis, rescaled, with calipers and text, re-encoded."""
    width, height = image.size
    left, right, top, bottom = rng.uniform(0, 0.025, 4)
    image = image.crop(
        (round(left * width), round(top * height), round(width - right * width), round(height - bottom * height))
    )
    scale = rng.uniform(0.7, 1.5)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    ends = rng.uniform(0.2, 0.8, (2, 2)) * image.size
    for x, y in ends:
        draw.line((x - 3, y, x + 3, y), fill="yellow")
        draw.line((x, y - 3, x, y + 3), fill="yellow")
    draw.line([tuple(end) for end in ends], fill="yellow")
    draw.text((5, image.height - 14), "R 10-11H", fill="white")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(50, 96)))
    return Image.open(buffer)


def _thumbnail(image: Image.Image) -> duplicates.Thumbnail:
    return thumbnail(np.asarray(image.convert("RGB")))


def test_altered_copies_are_joined_and_other_images_of_the_same_kind_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for k in range(12):
        original = Image.open(_save(tmp_path / "oval" / f"{k:02d}.png", k))
        label = "oval" if k < 10 else "none"
        _save(tmp_path / "none" / f"{k:02d}.png", k, "none")
        if k % 2 == 0:
            _altered(original.convert("RGB"), rng).save(tmp_path / label / f"copy-{k:02d}.jpg", quality=90)
    joined, pairs = join_near_duplicates(scan(tmp_path))
    assert {(pair.a, pair.b, pair.conflicting) for pair in pairs} == {
        (f"oval/{k:02d}.png", f"oval/copy-{k:02d}.jpg", False) for k in range(0, 10, 2)
    } | {("none/copy-10.jpg", "oval/10.png", True)}
    assert all(0.5 <= pair.correlation <= 1 for pair in pairs)
    groups = {row.path: row.group for row in joined.rows}
    assert groups["oval/04.png"] == groups["oval/copy-04.jpg"] and len(set(groups.values())) == 24
    assert [warning for warning in joined.warnings if "different labels" in warning and "none/copy-10.jpg" in warning]


def test_a_copy_merges_the_groups_of_two_patients_and_a_large_one_is_reported(tmp_path: Path) -> None:
    lines = ["path,label,group"]
    for k in range(12):
        _save(tmp_path / f"{k}.png", k, "oval" if k < 6 else "none")
        lines.append(f"{k}.png,{'oval' if k < 6 else 'none'},patient {k // 2}")
    Image.open(tmp_path / "1.png").save(tmp_path / "2.png")  # patients 0 and 1 share a picture, byte for byte
    joined, pairs = join_near_duplicates(scan(_csv(tmp_path, *lines)))
    assert [(pair.a, pair.b, pair.correlation) for pair in pairs] == [("1.png", "2.png", 1.0)]
    assert Counter(row.group for row in joined.rows if row.label == "oval") == {"patient 0": 4, "patient 2": 2}
    assert [warning for warning in joined.warnings if "4 of 6 images of class 'oval'" in warning]


def test_a_copy_that_is_given_another_split_is_refused(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for k in range(6):
        _save(tmp_path / f"{k}.png", k % 5)
        lines.append(f"{k}.png,{'ab'[k % 2]},{SPLITS[k % 3]}")
    with pytest.raises(InputError, match="two splits .* after near-duplicates were joined"):
        join_near_duplicates(scan(_csv(tmp_path, *lines)))


def test_a_black_background_neither_hides_a_copy_nor_makes_one() -> None:
    rng = np.random.default_rng(0)
    sector = np.hypot(*np.mgrid[-30:130, -80:80]) < 55  # what a probe sees, a third of the picture
    images = [Image.fromarray(np.where(sector[:, :, None], phantom("none", k), 0).astype(np.uint8)) for k in range(6)]
    copies = [_altered(image, rng) for image in images[:3]]
    found = duplicate_pairs([_thumbnail(image) for image in (*images, *copies)])
    assert [(i, j) for i, j, _ in found] == [(0, 6), (1, 7), (2, 8)]


def test_flat_images_are_copies_only_when_equal() -> None:
    flat = [np.full((96, 96), value, np.uint8) for value in (0, 0, 128, 255, 128)]
    assert duplicate_pairs(flat) == [(0, 1, 1.0), (2, 4, 1.0)]


def _real(folder: Path, count: int) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in {".png", ".jpg"})
    return [files[k] for k in np.random.default_rng(1).permutation(len(files))[:count]]


@pytest.mark.parametrize("name", ["busi", "chest_xray", "ham10000", "hyperkvasir5"])
def test_at_least_95_of_100_altered_copies_of_real_images_are_found(real_images: Path, name: str) -> None:
    rng = np.random.default_rng(2)
    found = 0
    for file in _real(real_images / name, 60):
        image = Image.fromarray(image_from_file(file))
        found += len(duplicate_pairs([_thumbnail(image), _thumbnail(_altered(image, rng))]))
    assert found >= 0.95 * 60


def _lesions(folder: Path) -> dict[str, tuple[str, ...]]:
    with (folder / "HAM10000_metadata.csv").open() as table:
        return {row["image_id"]: (row["lesion_id"], row["age"], row["sex"]) for row in csv.DictReader(table)}


def test_other_lesions_are_not_joined_although_dermoscopy_images_look_alike(real_images: Path) -> None:
    files = _real(real_images / "ham10000", 500)
    lesions = _lesions(real_images / "ham10000")
    pairs = duplicate_pairs([thumbnail(image_from_file(file)) for file in files])
    assert not [(i, j) for i, j, _ in pairs if lesions[files[i].stem][0] != lesions[files[j].stem][0]]


@pytest.mark.slow
def test_in_all_of_ham10000_only_the_same_picture_joins_two_lesions(real_images: Path) -> None:
    """Six pairs of images carry two lesion ids and one picture; age and sex agree in all six."""
    files = _real(real_images / "ham10000", 20_000)
    lesions = _lesions(real_images / "ham10000")
    pairs = duplicate_pairs([thumbnail(image_from_file(file)) for file in files])
    across = [(lesions[files[i].stem], lesions[files[j].stem]) for i, j, _ in pairs]
    across = [(a, b) for a, b in across if a[0] != b[0]]
    assert len(across) <= 0.001 * len(files)
    assert all(a[1:] == b[1:] for a, b in across)


# -- splits --


def test_every_class_gets_its_share_of_every_split() -> None:
    dataset = split_dataset(
        _rows({label: {f"{label}{k}": 1 for k in range(n)} for label, n in zip("abc", (200, 40, 20), strict=True)})
    )
    counts = Counter((row.label, row.split) for row in dataset.rows)
    assert {split: counts["a", split] for split in SPLITS} == {"train": 140, "validation": 30, "test": 30}
    assert {split: counts["b", split] for split in SPLITS} == {"train": 28, "validation": 6, "test": 6}
    assert {split: counts["c", split] for split in SPLITS} == {"train": 14, "validation": 3, "test": 3}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_groups_never_cross_and_no_class_is_missing(data: st.DataObject) -> None:
    sizes = st.lists(st.integers(1, 12), min_size=3, max_size=40)
    counts = {label: {f"{label}{k}": n for k, n in enumerate(data.draw(sizes))} for label in "abc"}
    for k in range(data.draw(st.integers(0, 3))):  # patients with images of two classes
        counts["a"][f"both{k}"], counts["b"][f"both{k}"] = 2, 3
    dataset = _rows(counts)
    seed = data.draw(st.integers(0, 5))
    parts = [split_dataset(dataset, seed=seed)]
    assert Counter(row.split for row in parts[0].rows).total() == len(dataset.rows)
    if min(len(groups) for groups in counts.values()) >= 4:
        parts += fold_datasets(dataset, 3, seed, 0.2)
    for part in parts:
        where = defaultdict(set)
        for row in part.rows:
            where[row.group].add(row.split)
        assert all(len(splits) == 1 for splits in where.values())
        assert {(row.label, row.split) for row in part.rows} == {(label, split) for label in "abc" for split in SPLITS}


def test_large_groups_do_not_spoil_the_shares() -> None:
    rng = np.random.default_rng(0)
    counts = {label: {f"{label}{k}": int(n) for k, n in enumerate(rng.geometric(0.2, 120))} for label in "ab"}
    dataset = split_dataset(_rows(counts), (0.6, 0.2, 0.2), seed=3)
    for label, groups in counts.items():
        for split, fraction in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
            share = sum(row.split == split for row in dataset.rows if row.label == label) / sum(groups.values())
            assert share == pytest.approx(fraction, abs=0.01)


def test_the_split_follows_the_seed_and_not_the_order_of_the_rows() -> None:
    dataset = _rows({label: {f"{label}{k}": 1 + k % 3 for k in range(30)} for label in "ab"})
    first = {row.path: row.split for row in split_dataset(dataset, seed=1).rows}
    turned = replace(dataset, rows=dataset.rows[::-1])
    assert {row.path: row.split for row in split_dataset(turned, seed=1).rows} == first
    assert {row.path: row.split for row in split_dataset(dataset, seed=2).rows} != first


def test_a_class_with_too_few_groups_is_named_with_its_counts() -> None:
    dataset = _rows({"common": {f"c{k}": 1 for k in range(30)}, "rare": {"p1": 9, "p2": 1}})
    with pytest.raises(InputError, match=r"class 'rare' has 10 images in 2 groups.* 3 parts"):
        split_dataset(dataset)
    with pytest.raises(InputError, match=r"class 'rare' has 10 images in 2 groups.* 5 parts"):
        fold_datasets(dataset, 5)


def test_a_given_split_is_kept_and_must_have_every_class_everywhere(folder: Path) -> None:
    lines = [f"{label}/{k}.png,{label},{SPLITS[k % 3]}" for label in ("benign", "malignant") for k in range(4)]
    dataset = scan(_csv(folder, "path,label,split", *lines))
    assert split_dataset(dataset, (0.1, 0.1, 0.8)) == dataset
    with pytest.raises(InputError, match="folds would override"):
        fold_datasets(dataset, 2)
    lines = [line for line in lines if line != "malignant/2.png,malignant,test"]
    with pytest.raises(InputError, match="no test image of malignant"):
        split_dataset(scan(_csv(folder, "path,label,split", *lines)))


@pytest.mark.parametrize("fractions", [(0.7, 0.3), (0.7, 0.3, 0.0), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_that_are_no_split_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="three positive shares"):
        split_dataset(_rows({"a": {"1": 5}, "b": {"2": 5}}), fractions)


def test_folds_test_every_image_once_and_keep_a_validation_part_of_the_rest() -> None:
    dataset = _rows({label: {f"{label}{k}": 1 for k in range(50)} for label in "ab"})
    folds = fold_datasets(dataset, 5, seed=4, validation_fraction=0.25)
    tested = Counter(row.path for fold in folds for row in fold.rows if row.split == "test")
    assert tested == Counter(row.path for row in dataset.rows)
    for fold in folds:
        assert Counter(row.split for row in fold.rows) == {"train": 60, "validation": 20, "test": 20}


def test_a_split_that_is_none_is_refused_with_the_names() -> None:
    with pytest.raises(InputError, match="validation"):
        _rows({"a": {"1": 1}}).subset("valid")
