"""The recipes, on made-up trees in the layouts of the publishers."""

from __future__ import annotations

import csv
import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("cv2", reason="extra train is not installed")

from edgemed.dataset import scan
from edgemed.errors import InputError
from edgemed.phantoms import phantom
from edgemed.published import BUSI, ISIC2018, ISIC_CLASSES, KVASIR, PublishedSet
from edgemed.recipes import prepare

_SEEDS = itertools.count()


def _image(path: Path, real: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if real:
        Image.fromarray(phantom("oval", next(_SEEDS), 40, 48)).save(path)
    else:
        path.touch()
    return path


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def busi(tmp_path: Path) -> Path:
    """The archive's own folder in a download folder, with one and with two masks."""
    for label, count in {"benign": 3, "malignant": 2, "normal": 2}.items():
        for k in range(1, count + 1):
            folder = tmp_path / "archive" / "Dataset_BUSI_with_GT" / label
            _image(folder / f"{label} ({k}).png")
            _image(folder / f"{label} ({k})_mask.png")
    _image(folder.parent / "benign" / "benign (3)_mask_1.png")
    return tmp_path / "archive"


def test_busi_leaves_every_mask_out_and_the_csv_points_to_the_images_where_they_lie(busi: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in busi.rglob("*")}
    prepared = prepare("busi", busi, busi.parent / "sets" / "busi.csv")
    rows = _rows(prepared.csv)
    assert rows[0] == {"path": "../archive/Dataset_BUSI_with_GT/benign/benign (1).png", "label": "benign"}
    assert Counter(row["label"] for row in rows) == prepared.counts == {"benign": 3, "malignant": 2, "normal": 2}
    assert not [row for row in rows if "mask" in row["path"]]
    assert prepared.warnings[0].startswith("the counts are not the publisher's: benign 3 of 437, malignant 2 of 210, ")
    dataset = scan(prepared.csv)
    assert dataset.classes == ("benign", "malignant", "normal") and len(dataset.rows) == 7
    assert {path: path.stat().st_mtime_ns for path in busi.rglob("*")} == before
    assert prepare("busi", busi / "Dataset_BUSI_with_GT", prepared.csv).counts == prepared.counts  # the same again
    (busi.parent / "disk" / "far").mkdir(parents=True)
    (busi.parent / "link").symlink_to(busi.parent / "disk" / "far")
    assert len(scan(prepare("busi", busi, busi.parent / "link" / "busi.csv").csv).rows) == 7


@pytest.mark.parametrize(("name", "source", "total"), [("busi", BUSI, 780), ("kvasir", KVASIR, 8000)])
def test_the_publishers_counts_pass_and_one_image_less_is_noted(
    name: str, source: PublishedSet, total: int, tmp_path: Path
) -> None:
    for label, count in source.counts.items():
        for k in range(count):
            _image(tmp_path / "src" / label / f"{k}.jpg", real=False)
    prepared = prepare(name, tmp_path / "src", tmp_path / "out.csv")
    assert prepared.counts == source.counts and sum(prepared.counts.values()) == total
    assert prepared.warnings == (f"{source.note}.",)
    label, count = next(iter(source.counts.items()))
    (tmp_path / "src" / label / "0.jpg").unlink()
    assert f": {label} {count - 1} of {count};" in prepare(name, tmp_path / "src", tmp_path / "less.csv").warnings[0]


def _doubled(folder: Path) -> None:
    """As "Extract all" of Windows leaves an archive that holds a folder of its own name."""
    inner = folder.rename(folder.with_name("inner"))
    folder.mkdir()
    inner.rename(folder / folder.name)


def _mac(root: Path, *folders: str) -> None:
    """What macOS adds to an archive, and a hidden folder as synchronising programs keep: first by name."""
    for folder, name in itertools.product(folders, ("__MACOSX", ".sync")):
        _image(root / name / folder / "._1.jpg", real=False)


def test_doubled_folders_and_what_systems_add_do_not_hide_the_images(busi: Path, isic: Path, tmp_path: Path) -> None:
    for k, name in enumerate(("benign", "malignant", "normal")):
        _doubled(busi / "Dataset_BUSI_with_GT" / name)
        (busi / "Dataset_BUSI_with_GT" / name / ".DS_Store").touch()
        assert sum(prepare("busi", busi, tmp_path / f"{k}.csv").counts.values()) == 7
    _mac(busi, "benign", "malignant", "normal")
    assert sum(prepare("busi", busi, tmp_path / "mac.csv").counts.values()) == 7
    (tmp_path / "links").mkdir()
    for part in isic.iterdir():
        (tmp_path / "links" / part.name).symlink_to(part)
    assert len(_rows(prepare("isic2018", tmp_path / "links", tmp_path / "links.csv").csv)) == 105
    _doubled(isic / "ISIC2018_Task3_Training_Input")
    _mac(isic, "ISIC2018_Task3_Training_Input", "ISIC2018_Task3_Test_Input")
    rows = _rows(prepare("isic2018", isic, tmp_path / "isic.csv").csv)
    assert len(rows) == 105 and not [row for row in rows if "MACOSX" in row["path"]]
    (isic / "ISIC2018_Task3_Test_Input").rename(tmp_path / "away")
    assert "test part" in prepare("isic2018", isic, tmp_path / "own.csv").warnings[0]


def _isic(root: Path, part: str, labels: list[str], first: int) -> list[str]:
    names = [f"ISIC_{first + k:07d}" for k in range(len(labels))]
    truth = root / f"ISIC2018_Task3_{part}_GroundTruth" / f"ISIC2018_Task3_{part}_GroundTruth.csv"
    truth.parent.mkdir(parents=True)
    lines = ["image," + ",".join(ISIC_CLASSES)]
    for name, label in zip(names, labels, strict=True):
        lines.append(f"{name}," + ",".join("1.0" if label == other else "0.0" for other in ISIC_CLASSES))
        _image(root / f"ISIC2018_Task3_{part}_Input" / f"{name}.jpg")
    truth.write_text("\n".join(lines))
    (root / f"ISIC2018_Task3_{part}_Input" / "ATTRIBUTION.txt").touch()
    return names


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    """84 training images of 42 lesions, 7 for validation, 14 for the test."""
    names = _isic(tmp_path / "isic", "Training", [label for label in ISIC_CLASSES for _ in range(12)], 24306)
    groupings = ["image,lesion_id,diagnosis_confirm_type"]
    groupings += [f"{name},HAM_{k // 2:07d},histopathology" for k, name in enumerate(names)]
    (tmp_path / "isic" / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text("\n".join(groupings))
    _isic(tmp_path / "isic", "Validation", list(ISIC_CLASSES), 34000)
    _isic(tmp_path / "isic", "Test", list(ISIC_CLASSES) * 2, 35000)
    return tmp_path / "isic"


def test_isic_keeps_the_official_split_and_groups_images_by_lesion(isic: Path, tmp_path: Path) -> None:
    prepared = prepare("isic2018", isic, tmp_path / "isic.csv")
    rows = _rows(prepared.csv)
    assert Counter(row["split"] for row in rows) == {"train": 84, "validation": 7, "test": 14}
    training = [row for row in rows if row["split"] == "train"]
    assert Counter(Counter(row["group"] for row in training).values()) == {2: 42}
    assert training[3] == {"path": "isic/ISIC2018_Task3_Training_Input/ISIC_0024309.jpg", "label": "MEL",
                           "group": "HAM_0000001", "split": "train"}  # fmt: skip
    assert "train MEL 12 of 1113" in prepared.warnings[0] and "test 14 of 1512" in prepared.warnings[0]
    assert "NC" in prepared.source.licence
    assert scan(prepared.csv).classes == tuple(sorted(ISIC_CLASSES))
    assert sum(count for part, count in ISIC2018.counts.items() if part.startswith("train")) == 10015


def test_isic_without_its_validation_part_leaves_that_to_training_and_without_a_test_too(
    isic: Path, tmp_path: Path
) -> None:
    (isic / "ISIC2018_Task3_Validation_Input").rename(tmp_path / "away")
    prepared = prepare("isic2018", isic, tmp_path / "isic.csv")
    assert Counter(row["split"] for row in _rows(prepared.csv)) == {"train": 84, "test": 14}
    assert "the official validation part is not there: training cuts its own" in prepared.warnings[0]
    (isic / "ISIC2018_Task3_Test_Input").rename(tmp_path / "away too")
    prepared = prepare("isic2018", isic, tmp_path / "own.csv")
    assert len(_rows(prepared.csv)) == 84 and "split" not in _rows(prepared.csv)[0]
    assert prepared.warnings[0].endswith("is not there: training cuts its own test split.")


def _without_groupings(root: Path) -> None:
    (root / "ISIC2018_Task3_Training_LesionGroupings.csv").unlink()


def _without_an_image(root: Path) -> None:
    (root / "ISIC2018_Task3_Training_Input" / "ISIC_0024310.jpg").unlink()


def _two_classes(root: Path) -> None:
    truth = next(root.rglob("*Test_GroundTruth.csv"))
    truth.write_text(truth.read_text().replace("1.0,0.0", "1.0,1.0", 1))


def _no_lesions(root: Path) -> None:
    (root / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text("image,lesion\nISIC_0024310,HAM_1\n")


def _half_the_lesions(root: Path) -> None:
    table = root / "ISIC2018_Task3_Training_LesionGroupings.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:43]))


def _packed(root: Path) -> None:
    _without_groupings(root)
    (root / "ISIC2018_Task3_Training_LesionGroupings.ZIP").touch()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_half_the_lesions, "names no lesion for 42 of the 84 training images, the first ISIC_0024348: "),
        (_packed, "LesionGroupings.ZIP, which may hold what is missing"),
        (_without_groupings, "does not hold ISIC2018_Task3_Training_LesionGroupings.csv; download it from"),
        (_without_an_image, "lacks 1 of the 84 images that ISIC2018_Task3_Training_GroundTruth.csv lists, the first"),
        (_two_classes, "has 2 classes in place of one"),
        (_no_lesions, "values of image, lesion_id"),
    ],
)
def test_an_incomplete_isic_is_refused_and_nothing_is_written(
    isic: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(isic)
    with pytest.raises(InputError) as caught:
        prepare("isic2018", isic, tmp_path / "isic.csv")
    assert reason in str(caught.value) and not (tmp_path / "isic.csv").exists()


def test_what_is_not_the_set_is_refused_with_what_it_should_look_like(tmp_path: Path, busi: Path) -> None:
    (tmp_path / "other.csv").write_text("mine\n")
    (tmp_path / "empty" / "benign").mkdir(parents=True)
    for label in ("malignant", "normal"):
        _image(tmp_path / "empty" / label / "1.png")
    for name, source, out, reason in (
        ("bus", busi, "a.csv", "there is no recipe for 'bus'. Did you mean 'busi'?"),
        ("busi", busi, "folder", "give the CSV to write, such as"),
        ("busi", tmp_path / "none", "a.csv", "is not a folder; unpack"),
        ("kvasir", busi, "a.csv", "does not hold the folders dyed-lifted-polyps, "),
        ("covid", busi, "a.csv", "COVID-19 Radiography Database"),
        ("busi", tmp_path / "empty", "a.csv", "holds no image of benign"),
        ("busi", busi, "other.csv", "exists and holds something else"),
    ):
        with pytest.raises(InputError) as caught:
            prepare(name, source, tmp_path / out)
        assert reason in str(caught.value) and "\n" not in str(caught.value)
    _image(busi / "Dataset_BUSI_with_GT" / "benign" / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(InputError, match=r"archive: a name .* is not UTF-8 \('archive/.*benign/caf.*png'\); rename it"):
        prepare("busi", busi, tmp_path / "a.csv")
    assert (tmp_path / "other.csv").read_text() == "mine\n" and not (tmp_path / "a.csv").exists()


def test_the_command_prints_counts_notes_licence_citation_and_what_comes_next(
    edgemed: Callable[..., int], busi: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = busi.parent / "busi.csv"
    assert edgemed("data", "prepare", "busi", busi, out) == 0
    printed = capsys.readouterr().out
    for text in ("7 images of BUSI", "benign 3", "note: the counts", "licence: ", "cite: Al-Dhabyani", "edgemed train"):
        assert text in printed
    assert edgemed("data", "prepare", "bussi", busi, out) == 2
