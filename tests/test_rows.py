"""What a CSV may say, and what it is told of."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("cv2", reason="extra train is not installed")

from edgemed.dataset import Row, read_split_csv, scan, write_split_csv
from edgemed.errors import InputError
from edgemed.phantoms import phantom


def _save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(phantom("oval", seed, 120, 150)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(8):
        _save(tmp_path / "data" / ("benign", "malignant")[k // 4] / f"{k % 4}.png", k)
    return tmp_path / "data"


def _csv(folder: Path, *lines: str) -> Path:
    path = folder / "data.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


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


def test_a_csv_may_be_moved_together_with_its_images_when_it_names_them_from_where_it_lies(tmp_path: Path) -> None:
    lists = tmp_path / "study" / "lists"
    for k, file in enumerate((lists / "0.png", lists.parent / "data" / "1.png", lists.parent / "data" / "2.png")):
        _save(file, k)
    lines = ["path,label", "../data/1.png,a", "../lists/../data/2.png,b", "../data/../lists/0.png,b"]
    dataset = scan(_csv(lists, *lines))
    assert [row.path for row in dataset.rows] == ["../data/1.png", "../data/2.png", "0.png"]
    first = dataset.fingerprint()
    write_split_csv(dataset, lists / "split.csv")
    (tmp_path / "link").symlink_to(lists)  # which has other neighbours
    assert scan(tmp_path / "link" / "data.csv").rows == dataset.rows
    lists = lists.parent.rename(tmp_path / "moved") / "lists"
    assert scan(lists / "data.csv").fingerprint() == first
    back = read_split_csv(lists / "split.csv", lists)
    assert back.rows == dataset.rows and all(file.is_file() for file in back.files)


@pytest.mark.parametrize(
    ("column", "meant"),
    [("groups", "group"), ("patient_id", "group"), ("Lesion", "group"), ("gruop", "group"), ("fold", "split"),
     ("splits", "split"), ("age", None), ("image", None), ("site", None)],
)  # fmt: skip
def test_a_column_that_may_hold_groups_or_splits_under_another_name_is_told_of(
    folder: Path, column: str, meant: str | None
) -> None:
    dataset = scan(_csv(folder, f"path,label,{column}", "benign/0.png,a,7", "benign/1.png,b,7"))
    said = [warning for warning in dataset.warnings if "is not used" in warning]
    assert len(said) == bool(meant)
    assert all(repr(column.lower()) in warning and f"name it {meant!r}" in warning for warning in said)
    rows = "benign/0.png,a,p,train,7", "benign/1.png,b,q,test,7"
    assert not scan(_csv(folder, f"path,label,group,split,{column}x", *rows)).warnings


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
