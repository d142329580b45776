"""DICOM's patients: their images stay together, and nobody is named in what is written."""

from __future__ import annotations

import csv
import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="extra dicom is not installed")
pytest.importorskip("imagecodecs", reason="extra dicom is not installed")
pytest.importorskip("cv2", reason="extra train is not installed")

from dicom_cases import GREY, dicom
from PIL import Image

from edgemed.dataset import scan, split_dataset
from edgemed.errors import InputError
from edgemed.listing import image_files
from edgemed.patients import pseudonyms
from edgemed.phantoms import phantom

SECRETS = {
    "PatientName": "Zzyzx^Quilla",
    "PatientBirthDate": "19610203",
    "InstitutionName": "Saint Wubbels Infirmary",
    "AccessionNumber": "ACC5551212",
    "ReferringPhysicianName": "Grimshaw^Ottoline",
    "StudyInstanceUID": "1.2.826.0.1.3680043.9.9.20260101.77",  # each file's own, unless the test says otherwise
    "DeviceSerialNumber": "SN-8812-QX",
}


def _scan_of(patient: str, seed: int, kind: str, study: str | None = None) -> bytes:
    pixels = phantom(kind, seed, 60, 72)[:, :, 0].astype(np.uint16) << 4
    stated = SECRETS | {"StudyInstanceUID": f"{SECRETS['StudyInstanceUID']}.{seed}" if study is None else study}
    return dicom(pixels, BitsStored=12, PatientID=patient, WindowCenter=2048, WindowWidth=4096, **stated)


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """36 DICOM files of 18 patients, two of each, one class per patient."""
    for k in range(36):
        kind = ("oval", "none")[k // 2 % 2]
        file = tmp_path / "clinic" / kind / f"{k:02d}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_scan_of(f"PID-{7000 + k // 2}", k, kind))
    return tmp_path / "clinic"


def test_pseudonyms_are_hashes_salted_with_the_images(clinic: Path) -> None:
    files = sorted(clinic.rglob("*.dcm"))
    salt = hashlib.sha256(b"".join(sorted(hashlib.sha256(file.read_bytes()).digest() for file in files))).digest()
    found = pseudonyms([*files, clinic / "none.png"])
    for file in files:
        patient = f"PID-{7000 + int(file.stem) // 2}".encode() + b"\\"
        study = f"{SECRETS['StudyInstanceUID']}.{int(file.stem)}".encode()
        assert found[file] == tuple(
            kind + hmac.new(salt, secret, "sha256").hexdigest()[:16]
            for kind, secret in (("patient-", patient), ("study-", study))
        )
    assert len(found) == 36 and len(set(scan(clinic).groups)) == 18
    files[0].write_bytes(_scan_of("PID-7000", 99, "none"))
    names = {name for of in found.values() for name in of}
    assert not names & {name for of in pseudonyms(files).values() for name in of}  # other data, other pseudonyms


def test_spaces_around_an_id_make_no_other_patient_and_alone_name_none(tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.dcm" for k in range(4)]
    for k, patient in enumerate(("P1", " P1 ", "P1", "  ")):
        files[k].write_bytes(_scan_of(patient, k, "oval", ""))
    found = pseudonyms(files)
    assert list(found) == files[:3] and len(set(found.values())) == 1


@pytest.mark.parametrize("patients", [[""] * 48, [f"anon{k}" for k in range(48)]], ids=["no id", "an id per file"])
def test_a_study_stays_together_where_the_ids_of_the_patients_were_removed(patients: list[str], tmp_path: Path) -> None:
    for k, patient in enumerate(patients):
        kind = ("oval", "none")[k // 4 % 2]
        file = tmp_path / kind / f"{k:02d}.dcm"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(_scan_of(patient, k, kind, f"1.2.826.{k // 4}"))
    dataset = split_dataset(scan(tmp_path))
    splits: dict[int, set[str]] = {}
    for row in dataset.rows:
        splits.setdefault(int(Path(row.path).stem) // 4, set()).add(row.split)
    assert len(splits) == len(set(dataset.groups)) == 12 and all(len(of) == 1 for of in splits.values())
    assert not any("1.2.826" in group or "anon" in group for group in dataset.groups)


def test_a_study_joins_given_groups_unless_all_images_are_in_it(tmp_path: Path) -> None:
    for k in range(4):
        (tmp_path / f"{k}.dcm").write_bytes(_scan_of(f"P{k}", k, "oval", f"1.2.{k // 2}"))
    (tmp_path / "data.csv").write_text("path,label,group\n0.dcm,x,u\n1.dcm,y,v\n2.dcm,x,\n3.dcm,y,")
    groups = [row.group for row in scan(tmp_path / "data.csv").rows]
    assert groups[:2] == ["u", "u"] and groups[2] == groups[3] != "u"
    for k in range(4):
        (tmp_path / f"{k}.dcm").write_bytes(_scan_of(f"P{k}", k, "oval", "1.2.826"))
    (tmp_path / "data.csv").write_text("path,label,group\n0.dcm,x,u\n1.dcm,y,u\n2.dcm,x,v\n3.dcm,y,w")
    dataset = scan(tmp_path / "data.csv")
    assert dataset.groups == ["u", "u", "v", "w"] and "a StudyInstanceUID state the same (4" in dataset.warnings[0]
    (tmp_path / "data.csv").write_text("path,label\n0.dcm,x\n1.dcm,y\n2.dcm,x\n3.dcm,y")
    with pytest.raises(InputError, match="all 4 images are in one group .* If removing names gave"):
        split_dataset(scan(tmp_path / "data.csv"), (0.7, 0.15, 0.15))


def test_a_folder_of_dicom_files_needs_no_suffixes(clinic: Path) -> None:
    before = scan(clinic)
    for file in clinic.rglob("*.dcm"):
        file.rename(file.with_name(("IM0000{}", "1.2.840.{}")[int(file.stem) % 2].format(file.stem)))
    (clinic / "oval" / "DICOMDIR").write_bytes(next(clinic.rglob("IM*")).read_bytes())
    (clinic / "oval" / "README").write_text("who scanned whom")
    dataset = scan(clinic)
    assert len(dataset.rows) == 36 and sorted(dataset.groups) == sorted(before.groups)
    assert dataset.warnings == ("2 files that are not images of a class were ignored.",)
    assert set(image_files(clinic)) == set(dataset.files)


def test_one_id_is_one_patient_unless_every_file_says_who_issued_it_and_they_differ(tmp_path: Path) -> None:
    def groups(*issuers: str) -> list[str]:
        files = [tmp_path / f"{k}.dcm" for k in range(len(issuers))]
        for k, file in enumerate(files):
            stated = {"IssuerOfPatientID": issuers[k]} if issuers[k] else {}
            file.write_bytes(dicom(GREY + np.uint8(k), PatientID="PID-1", **stated))
        found = pseudonyms(files)
        return [found[file][0] for file in files]

    assert len(set(groups("A", "B"))) == 2 and len(set(groups("A", "A"))) == 1
    assert len(set(groups("A", ""))) == 1
    assert len(set(groups("A", "B", ""))) == 1


def test_frames_and_a_patients_files_stay_together_whatever_groups_are_given(tmp_path: Path) -> None:
    frames = dicom(np.concatenate([GREY, 255 - GREY]), Rows=23, NumberOfFrames=2)
    (tmp_path / "loop.dcm").write_bytes(frames)
    (tmp_path / "a.dcm").write_bytes(_scan_of("PID-1", 1, "oval"))
    (tmp_path / "b.dcm").write_bytes(_scan_of("PID-1", 2, "oval"))
    (tmp_path / "c.dcm").write_bytes(_scan_of("PID-2", 3, "oval"))
    lines = ["path,label,group", "loop.dcm#1,x,", "loop.dcm#2,y,", "a.dcm,x,", "b.dcm,y,s1", "c.dcm,y,"]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    groups = {row.path: row.group for row in scan(tmp_path / "data.csv").rows}
    assert groups["loop.dcm#1"] == groups["loop.dcm#2"] == "loop.dcm"
    assert groups["a.dcm"] == groups["b.dcm"] == "s1"  # two lesions of one patient would be split
    assert groups["c.dcm"].startswith("patient-")
    (tmp_path / "data.csv").write_text("path,label,group\na.dcm,x,u\nb.dcm,y,v")  # one placeholder for everybody
    assert [row.group for row in scan(tmp_path / "data.csv").rows] == ["u", "v"]
    (tmp_path / "data.csv").write_text("path,label,group\na.dcm,x,a.dcm\nb.dcm,y,b.dcm")  # each its own
    assert [row.group for row in scan(tmp_path / "data.csv").rows] == ["a.dcm", "b.dcm"]
    (tmp_path / "data.csv").write_text("path,label\na.dcm,x\nb.dcm,y")
    with pytest.raises(InputError, match="all 2 images are in one group .patient-.* PatientID or .* path,label,group"):
        split_dataset(scan(tmp_path / "data.csv"), (0.7, 0.15, 0.15))
    lines = ["path,label,split", "a.dcm,x,train", "b.dcm,y,test"]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"group 'patient-[0-9a-f]{16}' is in two splits"):
        scan(tmp_path / "data.csv")
    with pytest.raises(InputError, match=r"row 2: .*loop\.png#1 does not exist"):
        (tmp_path / "data.csv").write_text("path,label\nloop.png#1,x\n")
        scan(tmp_path / "data.csv")


def test_an_id_that_all_files_share_is_a_placeholder_where_it_can_be_one_and_that_is_said(tmp_path: Path) -> None:
    for k in range(10):
        (tmp_path / f"{k}.dcm").write_bytes(_scan_of("PID-1", k, "oval"))
        Image.fromarray(phantom("none", k, 60, 72)).save(tmp_path / f"{k}.png")
    others = [f"{k}.png,y,q{k}" for k in range(10)]
    scans = [f"{k}.dcm,x,l{k}" for k in range(10)]

    def read(*lines: str) -> tuple[set[str], tuple[str, ...]]:
        (tmp_path / "data.csv").write_text("\n".join(("path,label,group", *lines)))
        dataset = scan(tmp_path / "data.csv", min_classes=1)
        return {row.group for row in dataset.rows if row.path.endswith(".dcm")}, dataset.warnings

    assert read(*others, *scans[:2]) == ({"l0"}, ())  # two lesions of one patient
    for lines in (scans[:2], [*others, *scans]):
        groups, [warning] = read(*lines)
        assert groups == {line.split(",")[2] for line in lines if "dcm" in line}
        assert f"are in {len(groups)} groups of the CSV: the groups count" in warning and "placeholder" in warning
        assert "PID-" not in warning
    assert read(*others, *(f"{k}.dcm,x,l" for k in range(10))) == ({"l"}, ())
    with pytest.raises(InputError, match=r"group 'l0' is in two splits .*; if they are only a few among other images"):
        text = "path,label,group,split\n0.dcm,x,l0,train\n1.dcm,x,l1,test\n0.png,y,q0,train\n"
        (tmp_path / "data.csv").write_text(text)
        scan(tmp_path / "data.csv")


def test_a_run_names_no_patient_and_a_resumed_run_knows_its_groups(
    clinic: Path, weights: Path, edgemed: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = "--backbone tf_efficientnet_lite0 --size 32 --pretrain-size 64 --epochs 1 --pretrain-epochs 1 --batch 8"
    command = ("train", clinic, "--out", tmp_path / "run", *flags.split(), "--threads", "1", "--weights", weights)
    assert edgemed(*command) == 0
    before = (tmp_path / "run" / "split.csv").read_bytes()
    assert edgemed(*command) == 0 and (tmp_path / "run" / "split.csv").read_bytes() == before
    printed = "".join(capfd.readouterr()).encode()
    written = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert len(written) > 10
    for secret in (*SECRETS.values(), "Zzyzx", "Grimshaw", "PID-70"):
        assert secret.encode() not in printed
        assert not [file.name for file, data in written.items() if secret.encode() in data], secret
    splits: dict[str, set[str]] = {}
    for row in csv.DictReader(before.decode().splitlines()):
        splits.setdefault(row["group"], set()).add(row["split"])
    assert len(splits) == 18 and all(len(of) == 1 for of in splits.values())
