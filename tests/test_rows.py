"""What a CSV may say, and what it is told of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("cv2", reason="extra train is not installed")

from edgemed.columns import unused_columns
from edgemed.dataset import read_split_csv, scan, write_split_csv
from edgemed.errors import InputError
from edgemed.phantoms import phantom
from edgemed.rows import Row


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


PAIRS = ("p", "p", "q", "q", "r", "r", "s", "s")
CODES = [f"HAM_{k // 2:04d}" for k in range(20)]  # 10 patients of two images each
MEANT: dict[str, tuple[Sequence[object], str | None]] = {
    **dict.fromkeys(("groups", "gruop", "patient_id", "PatientName", "Lesion", "anon subject"), (PAIRS, "group")),
    **dict.fromkeys(("study_id", "case_id", "mrn", "exam", "series", "video"), (PAIRS, "group")),
    **dict.fromkeys(("StudyInstanceUID", "id", "anon_id"), (PAIRS, "group")),
    **dict.fromkeys(("fold", "splits", "set"), ((1, 2) * 4, "split")),
    **dict.fromkeys(("phase", "usage"), (("train", "Val", "TEST", "") * 2, "split")),
    "is_train": ((0, 1) * 4, "split"),
    "whose": (CODES, "group"),
    **dict.fromkeys(("age", "site", "scanner_type", "image", "dataset"), (PAIRS, None)),
    **dict.fromkeys(("patient_age", "StudyDate", "lesion_type", "age_group", "SeriesDescription"), (PAIRS, None)),
    **dict.fromkeys(("site_patient_id", "patient_image", "volume_id", "exam_code", "Studies"), (PAIRS, "group")),
    **dict.fromkeys(("folder", "scaffold", "video_quality", "slide_scanner", "case_control", "volume"), (PAIRS, None)),
    **dict.fromkeys(("cv_fold", "train_test"), (PAIRS, "split")),
    "training_hours": (PAIRS, None),
    "patient": ("p" * 8, None),  # one name for everybody
    "lesion_id": (range(8), None),  # another for each
    "scanner_id": ([1, 2] * 10, None),  # two of them
    "phase ": (("arterial", "venous") * 4, None),
    "serial": ([f"S{k % 19}" for k in range(20)], None),  # nearly another for each
    "taken": ([f"2020-01-{k // 2:02d}" for k in range(20)], None),
    "tumour": ([f"T{k % 3}N{k % 2}" for k in range(20)], None),
}


@pytest.mark.parametrize("column", MEANT)
def test_a_column_that_may_hold_groups_or_splits_under_another_name_is_told_of(column: str) -> None:
    values, meant = MEANT[column]
    said = unused_columns({column.lower(): list(map(str, values))})
    assert len(said) == bool(meant)
    assert all(repr(column.lower()) in warning and f"name it {meant!r}" in warning for warning in said)
    assert not unused_columns({"group": PAIRS, "split": PAIRS, column.lower(): list(map(str, values))})


def test_a_scan_tells_of_all_such_columns_in_one_line_each(folder: Path) -> None:
    lines = [f"benign/{k}.png,{'ab'[k % 2]},{k // 2}, {k // 2},{('train', 'test')[k // 2]},60" for k in range(4)]
    assert scan(_csv(folder, "path,label,patient,exam,phase,age", *lines)).warnings == (
        "the columns 'patient', 'exam' are not used; if one says which images are of one patient or lesion, name it "
        "'group'.",
        "the column 'phase' is not used; if it says which images train and which test, name it 'split'.",
    )
    assert scan(_csv(folder, "path,label,,", *(f"benign/{k}.png,{'ab'[k % 2]},x,y" for k in range(4)))).warnings == ()


def test_labels_that_differ_in_case_or_in_the_format_of_a_number_are_told_of(folder: Path) -> None:
    for labels, said in (
        (("BENIGN", "benign", "normal", "Benign"), ["the labels 'BENIGN', 'Benign', 'benign' are 3 classes; "]),
        (("1", "1.0", "0", "00"), ["the labels '0', '00' are 2 classes; ", "the labels '1', '1.0' are 2 classes; "]),
        (("no  finding", "no finding", "x", "x"), ["the labels 'no  finding', 'no finding' are 2 classes; "]),
        (("caf\u00e9", "cafe\u0301", "x", "y"), [r"the labels 'cafe\u0301', 'caf\xe9' are 2 classes; "]),
        (("grade-1", "grade\u20111", "x", "y"), [r"the labels 'grade-1', 'grade\u20111' are 2 classes; "]),
        (("1", "10", "a1", "a10"), []),
        (("9007199254740992", "9007199254740993", "-1", "1"), []),
    ):
        lines = (f"benign/{k}.png,{label}" for k, label in enumerate(labels))
        assert [line.split("write")[0] for line in scan(_csv(folder, "path,label", *lines)).warnings] == said


def test_groups_that_look_alike_are_told_of_by_their_rows_and_not_by_their_names(folder: Path) -> None:
    def said(*groups: str) -> list[str]:
        lines = (f"benign/{k % 4}.png,{'ab'[k % 2]},{group}" for k, group in enumerate(groups))
        return list(scan(_csv(folder, "path,label,group", *lines)).warnings)

    alike = (("Jos\u00e9", "JOSE\u0301"), ("77", "77.0"), ("77", "077"), ("p-1", "p\u20111"), ("p1", "\ufeffp1"))
    for first, second in alike:
        (warning,) = said("x", first, "y", second)
        assert warning.startswith("2 groups of the CSV look like another and are kept apart (rows 3 and 5): ")
        assert first not in warning and second not in warning
    assert said("p1", "p10", "p-1", "1") == [] and said("p1", "p1", "p2", "p2") == []
    pairs = [f"malignant/{k}.png,{'ab'[k % 2]},{'aA'[k % 2]}{k // 2}" for k in range(4)]
    pairs += [f"benign/{k}.png,{'ab'[k % 2]},{'bB'[k % 2]}{k // 2}" for k in range(4)]
    (warning,) = scan(_csv(folder, "path,label,group", *pairs)).warnings
    assert "8 groups" in warning and "(rows 2 and 3, 4 and 5, 6 and 7, ...)" in warning


CSV_ERRORS = {
    "no label column": (["path,diagnosis", "benign/0.png,a"], "'label'"),
    "no path column": (["image,label", "benign/0.png,a"], "'path'"),
    "two group columns": (["path,label,group,Group", "benign/0.png,a,p,1"], "one column 'group', not 2"),
    "two split columns": (["path,Split,label, split", "benign/0.png,train,a,"], "one column 'split', not 2"),
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


def test_a_step_up_behind_a_link_is_taken_as_the_system_takes_it(tmp_path: Path) -> None:
    for folder in ("set", "real/deep"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(phantom("oval", 0)).save(tmp_path / "real" / "x.png")
    Image.fromarray(phantom("none", 1)).save(tmp_path / "set" / "x.png")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "set" / "data.csv").write_text("path,label\nlink/../x.png,oval\nx.png,none\n")
    dataset = scan(tmp_path / "set" / "data.csv")
    named = {row.label: dataset.file(row).resolve() for row in dataset.rows}
    assert named == {"oval": tmp_path / "real" / "x.png", "none": tmp_path / "set" / "x.png"}
