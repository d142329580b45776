"""Engines from checkpoints that users already have: `build-engine --member A --member B`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import edgemed as package
from edgemed import build
from edgemed.bundle import open_bundle
from edgemed.ensemble import predict_callable
from edgemed.errors import InputError
from edgemed.images import image_from_file
from edgemed.models import create_backbone
from edgemed.sources import source_from_members

BACKBONE, SIZE = "convnext_atto", 64
LABELS = ("none", "irregular", "oval")  # another order than the folders'


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("members")
    torch.manual_seed(1)
    files = [folder / "first.safetensors", folder / "second.safetensors"]
    for file in files:
        network = create_backbone(BACKBONE, len(LABELS))
        torch.nn.init.normal_(network.head.fc.weight, std=1.0)  # timm's own are tiny: all probabilities alike
        save_file(network.state_dict(), file)
    return files


def flags(members: list[Path], data: Path) -> list[str]:
    given = [part for member in members for part in ("--member", str(member))]
    return [*given, "--backbone", BACKBONE, "--labels", ",".join(LABELS), "--size", str(SIZE), "--check", str(data)]


def test_checkpoints_become_an_engine_that_equals_them(
    members: list[Path], phantoms: Path, tmp_path: Path, edgemed: Callable[..., int]
) -> None:
    out = tmp_path / "bundle"
    built = edgemed("build-engine", *flags(members, phantoms), "--out", out, "--runtime", "none", "--precision", "fp32")
    assert built == 0
    source = source_from_members(members, backbone=BACKBONE, labels=LABELS, size=SIZE, check=phantoms)
    model = package.load(out, runtime="openvino")
    for file in sorted(phantoms.rglob("*.png"))[::7]:
        want, each = predict_callable(source.ensemble)(image_from_file(file))
        found = model(file)
        np.testing.assert_allclose([found.probabilities[name] for name in LABELS], want, atol=1e-4)
        for k, name in enumerate(("first", "second")):
            np.testing.assert_allclose([found.members[name][label] for label in LABELS], each[k], atol=1e-4)
    bundle = open_bundle(out)
    assert set(bundle.manifest.files) & {"model.fp32.onnx", "model.fp16.onnx"} == {"model.fp32.onnx"}
    assert bundle.manifest.temperatures == (1.0, 1.0)
    card = bundle.read("model_card.md").decode()
    assert "whose training edgemed has not seen, built with" in card
    assert "whether training saw them is not known" in card
    assert len(bundle.reference().label) == len(list(phantoms.rglob("*.png")))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": ("none", "oval")}, "is not a convnext_atto of 2 classes"),
        ({"labels": ("none", "oval", "round")}, "has the label 'irregular', not among --labels none,oval,round"),
        ({"labels": ("none", "oval", "oval")}, "two or more different labels"),
        ({"backbone": "convnext_ato"}, "unknown to timm.*convnext_atto"),
        ({"backbone": "convnext_femto"}, "is not a convnext_femto"),
    ],
)
def test_what_does_not_fit_the_checkpoints_is_named(
    members: list[Path], phantoms: Path, change: dict[str, object], complaint: str
) -> None:
    given = {"backbone": BACKBONE, "labels": LABELS, "size": SIZE, "check": phantoms} | change
    with pytest.raises(InputError, match=complaint):
        source_from_members(members, **given)  # type: ignore[arg-type]


def test_an_out_that_is_taken_is_refused_before_any_image_is_run(
    members: list[Path], phantoms: Path, tmp_path: Path, edgemed: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    monkeypatch.setattr("edgemed.sources.source_from_members", lambda *_, **__: pytest.fail("work was begun"))
    assert edgemed("build-engine", *flags(members, phantoms), "--out", tmp_path) == 2


def test_a_folder_that_is_neither_run_nor_bundle_is_not_evaluated(
    phantoms: Path, edgemed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgemed("evaluate", phantoms, phantoms) == 2
    assert "is neither a run (`edgemed train DATA --out RUN`) nor a bundle" in " ".join(capsys.readouterr().err.split())


def test_all_images_are_checked_whichever_splits_a_csv_names(
    members: list[Path], phantoms: Path, tmp_path: Path
) -> None:
    files = sorted(phantoms.rglob("*.png"))
    rows = [f"{file},{file.parent.name},{'test' if k % 2 else 'train'}" for k, file in enumerate(files)]
    copy = tmp_path / "copy.png"
    copy.write_bytes(files[0].read_bytes())
    (tmp_path / "data.csv").write_text("\n".join(["path,label,split", *rows, f"{copy},{files[0].parent.name},test"]))
    source = source_from_members(members, backbone=BACKBONE, labels=LABELS, size=SIZE, check=tmp_path / "data.csv")
    assert len(source.check_images) == len(files) + 1


def test_members_of_one_file_name_are_told_apart_by_their_folders(
    members: list[Path], phantoms: Path, tmp_path: Path
) -> None:
    copies = [tmp_path / folder / "model.safetensors" for folder in ("ours", "theirs")]
    for file, copy in zip(members, copies, strict=True):
        copy.parent.mkdir()
        copy.write_bytes(file.read_bytes())
    source = source_from_members(copies, backbone=BACKBONE, labels=LABELS, size=SIZE, check=phantoms)
    assert source.member_names == ("ours-model", "theirs-model") == tuple(source.metrics["members"])
    with pytest.raises(InputError, match="two files would be the member 'ours-model'; rename one"):
        source_from_members([copies[0]] * 2, backbone=BACKBONE, labels=LABELS, size=SIZE, check=phantoms)


def test_a_damaged_checkpoint_is_named(tmp_path: Path, phantoms: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x80\x04pickled, perhaps")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        source_from_members([file], backbone=BACKBONE, labels=LABELS, size=SIZE, check=phantoms)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--out", "OUT"], "needs checkpoints: --member, --backbone, --labels, --size, --check missing"),
        (["--member", "a.safetensors", "--out", "OUT"], "--backbone, --labels, --size, --check missing"),
        (["RUN"], "give --out BUNDLE"),
        (["RUN", "--out", "OUT", "--precision", "fp16"], "always holds the fp32 graph"),
        (["RUN", "--out", "OUT", "--precision", "fp8"], "--precision 'fp8' is unknown.*fp16"),
        (["RUN", "--out", "OUT", "--batch", "8,1,1"], "min,opt,max must be from 1 to 1048576, in this order"),
        (["RUN", "--out", "OUT", "--image-size", "32,512,1048577"], "must be from 1 to 1048576"),
        (["RUN", "--out", "OUT", "--image-size", "big"], "--image-size 'big'"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    tmp_path: Path,
    edgemed: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    named = {"OUT": str(tmp_path / "bundle"), "RUN": str(tmp_path)}
    assert edgemed("build-engine", *(named.get(part, part) for part in arguments)) == 2
    assert re.search(complaint, " ".join(capfd.readouterr().err.split()))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("flag", [["--runtime", "openvino"], ["--precision", "fp16"]])
def test_evaluate_does_not_pretend_that_a_run_has_runtimes(
    tiny_run: Path, phantoms: Path, edgemed: Callable[..., int], capfd: pytest.CaptureFixture[str], flag: list[str]
) -> None:
    assert edgemed("evaluate", tiny_run, phantoms, *flag) == 2
    assert "are for a bundle" in " ".join(capfd.readouterr().err.split())


def test_a_key_that_cannot_sign_is_refused_before_anything_is_built(
    members: list[Path], phantoms: Path, tmp_path: Path, edgemed: Callable[..., int], key_files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(build, "build_bundle", lambda *_, **__: pytest.fail("it was built"))
    out, public = tmp_path / "b", key_files[1]
    assert edgemed("build-engine", *flags(members, phantoms), "--out", out, "--sign", public) == 2
    assert "private" in capsys.readouterr().err
