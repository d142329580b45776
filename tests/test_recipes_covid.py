"""The recipe for the COVID sets, on made-up trees in the layouts of their publishers."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_recipes import _image, _rows

from edgemed.dataset import CUT, scan
from edgemed.published import COVID
from edgemed.recipes import prepare

COVID_TREES = {
    "COVID-19 Dataset/COVID-19 Dataset/{}": (0, ("CT/COVID", "CT/Non-COVID", "X-ray/COVID", "X-ray/Non-COVID")),
    "COVID-CT/Images-processed/{}": (4, ("CT_COVID", "CT_NonCOVID")),
    "COVID-19_Radiography_Dataset/{}/images": (5, ("COVID", "Normal", "Lung_Opacity", "Viral Pneumonia")),
}


@pytest.mark.parametrize("tree", COVID_TREES)
def test_covid_knows_the_layouts_of_its_publishers(tree: str, tmp_path: Path) -> None:
    which, folders = COVID_TREES[tree]
    for k, folder in enumerate(folders):
        for number in range(k + 1):
            _image(tmp_path / "src" / tree.format(folder) / f"image {number}.png")
        _image(tmp_path / "src" / tree.format(folder).replace("images", "masks") / "image 0.png")
    prepared = prepare("covid", tmp_path / "src", tmp_path / "covid.csv")
    assert prepared.source == COVID[which] and prepared.warnings[-1][:-1] == COVID[which].note
    assert set(prepared.counts) == set(COVID[which].counts)
    assert sum(prepared.counts.values()) == sum(range(1, len(folders) + 1))
    assert not [row for row in _rows(prepared.csv) if "masks" in row["path"]]


def test_covid_ct_keeps_the_split_of_its_publishers_where_their_lists_name_every_image(tmp_path: Path) -> None:
    root, out = tmp_path / "COVID-CT-master", tmp_path / "covid.csv"
    for label in ("COVID", "NonCOVID"):
        names = [f"{label}-p6-5{k}%0.png" for k in range(6)]
        for name in names:
            _image(root / "Images-processed" / f"CT_{label}" / name)
        for k, part in enumerate(("train", "val", "test")):
            file = root / "Data-split" / label / f"{part}CT_{label}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\r\n".join(names[2 * k : 2 * k + 2]) + "\r\n")
    prepared = prepare("covid", root, out)
    assert prepared.counts == {f"{split} {label}": 2 for split in CUT for label in ("covid", "non-covid")}
    assert "not the publisher's: covid 6 of 349, non-covid 6 of 397;" in prepared.warnings[0]
    parts = {Path(row["path"]).name: row["split"] for row in _rows(out)}
    assert [parts[f"NonCOVID-p6-5{k}%0.png"] for k in range(6)] == [split for split in CUT for _ in range(2)]
    assert {row.split for row in scan(out).rows} == set(CUT)
    file.write_text("NonCOVID-p6-54%0.png\nNonCOVID-p6-50%0.png\n")  # one in two parts, one in none
    for reason in ("does not name 2 of the 12 images once, the first NonCOVID-p6-50%0.png", "is not there (Data-split"):
        own = prepare("covid", root, tmp_path / f"{len(reason)}.csv")
        assert "split" not in _rows(own.csv)[0] and sum(own.counts.values()) == 12
        assert f"the publisher's split {reason}" in own.warnings[0] and "training cuts its own" in own.warnings[0]
        file.unlink(missing_ok=True)


def test_part_of_a_set_that_may_be_several_is_given_the_terms_of_them_all(tmp_path: Path) -> None:
    for folder in ("X-ray/COVID", "X-ray/Non-COVID", "other/COVID", "other/non-COVID"):
        _image(tmp_path / "src" / folder / "1.png")
    prepared = prepare("covid", tmp_path / "src" / "X-ray", tmp_path / "covid.csv")
    assert prepared.counts == {"covid": 1, "non-covid": 1}
    for source in COVID[1:4]:
        for known in ("title", "licence", "citation", "note"):
            assert getattr(source, known) in getattr(prepared.source, known)
    assert prepared.source.licence.count("CC BY 4.0") == 1
    assert prepared.warnings[0].startswith("several sets have such folders") and len(prepared.warnings) == 2
    both = prepare("covid", tmp_path / "src", tmp_path / "both.csv")
    assert sum(both.counts.values()) == 2
    assert both.warnings[0].startswith(f"only {tmp_path / 'src' / 'X-ray'} is taken; {tmp_path / 'src' / 'other'} has")


def test_one_half_of_the_extensive_covid_set_is_told_by_its_counts(tmp_path: Path) -> None:
    for label, count in (("COVID", 4044), ("Non-COVID", 5500)):
        for k in range(count):
            _image(tmp_path / "X-ray" / label / f"{k}.png", real=False)
    prepared = prepare("covid", tmp_path / "X-ray", tmp_path / "covid.csv")
    assert prepared.source == COVID[2] and not [note for note in prepared.warnings if "counts" in note]
