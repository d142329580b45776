"""What a scan accepts, and what it refuses in one line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2", reason="extra train is not installed")

from edgemed.config import TrainConfig
from edgemed.dataset import (
    CUT,
    fold_datasets,
    read_split_csv,
    scan,
    split_dataset,
    write_split_csv,
)
from edgemed.errors import InputError
from edgemed.phantoms import phantom
from edgemed.train import _split


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


def _save_bits_of_16(path: Path, bits: int, seed: int) -> None:
    grey = phantom("oval", seed, 120, 150)[:, :, 0].astype(np.uint16)
    Image.fromarray(grey << bits - 8).save(path)


def test_images_of_few_grey_levels_are_warned_of_and_refused_where_most_of_every_class_are(folder: Path) -> None:
    assert scan(folder).warnings == ()
    for k in range(3):  # most of one class: so are the tiles of a slide that show no tissue
        _save_bits_of_16(folder / "malignant" / f"{k}.png", 10, 100 + k)
    few = "of 8 images are nearly one grey: fewer than 20 of 256 levels (the first: "
    [warning] = scan(folder).warnings
    assert warning.startswith(f"3 {few}malignant/0.png); look at them, and if they are 16-bit values")
    for k in range(4):
        _save_bits_of_16(folder / "benign" / f"{k}.png", 12, k)  # enough to find copies by
    assert scan(folder).warnings[0].startswith(f"7 {few}benign/0.png)")
    for k in range(3):
        _save_bits_of_16(folder / "benign" / f"{k}.png", 10, k)
    with pytest.raises(InputError, match=r"data: 6 of 8 images .* fewer than 6 .*overlooked.*with a window"):
        scan(folder)
    assert scan(folder, min_classes=1).warnings[0].startswith(f"7 {few}")  # nothing is learnt from what is evaluated


@pytest.mark.parametrize(("levels", "warned"), [(19, True), (20, False)])
def test_an_image_of_as_many_levels_as_the_warning_says_is_not_warned_of(
    folder: Path, levels: int, warned: bool
) -> None:
    half = np.zeros((96, 96), np.uint8)
    half[:48] = levels - 1
    Image.fromarray(half).save(folder / "benign" / "0.png")
    assert ["fewer than 20" in warning for warning in scan(folder).warnings] == [True] * warned


def test_a_runs_own_list_says_where_it_can_be_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    (tmp_path / "run" / "split.csv").write_text("path,label\nbenign/0.png,benign\n")
    with pytest.raises(InputError, match="this is a run's list, copy it into the folder of its images"):
        scan(tmp_path / "run" / "split.csv")


def test_masks_beside_their_images_are_warned_of(folder: Path) -> None:
    _save(folder / "benign" / "face_mask.png", 50)  # of no other image
    assert scan(folder).warnings == ()
    for k, name in enumerate(("0_mask.png", "0_mask_1.png")):
        _save(folder / "benign" / name, 60 + k)
    [warning] = scan(folder).warnings
    assert warning.startswith("2 files are named like masks of others (benign/0_mask.png)")
    paths = sorted(file.relative_to(folder) for file in folder.glob("*/*.png"))
    table = folder / "data.csv"
    table.write_text("\n".join(["path,label", *(f"{path},{path.parent}" for path in paths)]))
    assert warning in scan(table).warnings


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


def test_the_fingerprint_follows_content_and_labels_but_not_the_place(folder: Path) -> None:
    dataset = scan(folder)
    first = dataset.fingerprint()
    moved = folder.rename(folder.parent / "moved")
    assert scan(moved).fingerprint() == first
    relabelled = replace(dataset, root=moved, rows=(replace(dataset.rows[0], label="malignant"), *dataset.rows[1:]))
    assert relabelled.fingerprint() != first
    _save(moved / "benign" / "0.png", 55)
    assert scan(moved).fingerprint() != first


def test_a_split_of_the_owners_is_part_of_the_fingerprint(folder: Path) -> None:
    names = [f"{label}/{k}.png,{label}" for label in ("benign", "malignant") for k in range(4)]
    split = [f"{name},{CUT[k % 3]}" for k, name in enumerate(names)]
    without = scan(_csv(folder, "path,label", *names)).fingerprint()
    first = scan(_csv(folder, "path,label,split", *split)).fingerprint()
    assert first != without == scan(_csv(folder, "path,label,split", *(f"{name}," for name in names))).fingerprint()
    split[0], split[1] = split[0].replace("train", "validation"), split[1].replace("validation", "train")
    assert scan(_csv(folder, "path,label,split", *split)).fingerprint() != first


def test_a_class_is_named_without_the_outer_spaces_of_its_folder_and_resumes_all_the_same(folder: Path) -> None:
    (folder / "benign").rename(folder / " benign ")
    (folder / " benign " / "0.png").rename(folder / " benign " / "0 .png")
    dataset = split_dataset(scan(folder))
    assert dataset.classes == ("benign", "malignant") and dataset.rows[0].path == " benign /0 .png"
    write_split_csv(dataset, folder / "split.csv")
    back = read_split_csv(folder / "split.csv", folder)
    assert back.rows == dataset.rows and all(file.is_file() for file in back.files)
    assert (
        scan(_csv(folder, "path,label", " benign /0 .png,a", " malignant/0.png ,b")).rows[0].path == " benign /0 .png"
    )
    (folder / "benign").mkdir()
    with pytest.raises(InputError, match="two folders for the class 'benign', which differ in outer spaces"):
        scan(folder)


@pytest.mark.parametrize("name", ["two\u200bwords", os.fsdecode(b"caf\xe9")])
def test_a_class_that_no_file_of_a_bundle_could_name_is_refused(folder: Path, name: str) -> None:
    (folder / "benign").rename(folder / name)
    with pytest.raises(InputError, match="control characters, or is not UTF-8"):
        scan(folder)


def test_split_csv_brings_back_the_same_rows(folder: Path) -> None:
    dataset = split_dataset(scan(folder))
    dataset = replace(dataset, rows=(replace(dataset.rows[0], group='p "1", left'), *dataset.rows[1:]))
    write_split_csv(dataset, folder / "split.csv")
    back = read_split_csv(folder / "split.csv", folder)
    assert (back.rows, back.classes, back.root) == (dataset.rows, dataset.classes, dataset.root)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_given_split_without_validation_gets_one_from_its_training_groups(folder: Path) -> None:
    pairs = [(f"{label}/{k}.png", label, f"{label}{k // 2}") for label in ("benign", "malignant") for k in range(4)]
    lines = [f"{path},{label},{group},{'test' if group.endswith('1') else 'train'}" for path, label, group in pairs]
    with pytest.raises(InputError, match="no validation image of benign, malignant"):  # of one group each
        split_dataset(scan(_csv(folder, "path,label,group,split", *lines)), (0.4, 0.4, 0.2))
    lines = [f"{path},{label},{path},{'test' if group.endswith('1') else 'train'}" for path, label, group in pairs]
    found = split_dataset(scan(_csv(folder, "path,label,group,split", *lines)), (0.4, 0.4, 0.2))
    parts = {(row.label, row.split) for row in found.rows}
    assert parts == {(label, split) for label in ("benign", "malignant") for split in CUT}
    assert {row.path for row in found.subset("test").rows} == {path for path, _, group in pairs if group.endswith("1")}


def test_fractions_cut_the_validation_that_a_given_split_lacks_and_nothing_else(folder: Path) -> None:
    labels = ("benign", "malignant")
    lines = [f"{label}/{k}.png,{label},{'test' if k == 3 else 'train'}" for label in labels for k in range(4)]
    dataset = scan(_csv(folder, "path,label,split", *lines))
    found = _split(TrainConfig(split=(0.3, 0.6, 0.1)), dataset)
    assert [len(found.subset(split).rows) for split in CUT] == [2, 4, 2]
    with pytest.raises(InputError, match="a split of their own; leave out --split"):
        _split(TrainConfig(split=(0.3, 0.6, 0.1)), found)


def test_a_given_split_is_kept_and_must_have_every_class_everywhere(folder: Path) -> None:
    lines = [f"{label}/{k}.png,{label},{CUT[k % 3]}" for label in ("benign", "malignant") for k in range(4)]
    dataset = scan(_csv(folder, "path,label,split", *lines))
    assert split_dataset(dataset, (0.1, 0.1, 0.8)) == dataset
    with pytest.raises(InputError, match="folds would override it; drop its column, or give --folds 0"):
        fold_datasets(dataset, 2)
    lines = [line for line in lines if line != "malignant/2.png,malignant,test"]
    with pytest.raises(InputError, match="no test image of malignant"):
        split_dataset(scan(_csv(folder, "path,label,split", *lines)))
