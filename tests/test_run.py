"""A run folder that is taken up again: its data lie elsewhere, a file of it is cut, its threads are others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("torch", reason="extra train is not installed")

from conftest import tiny_flags

from edgemed import __version__
from edgemed import place as place_module
from edgemed.config import TrainConfig
from edgemed.dataset import Dataset, read_split_csv
from edgemed.errors import InputError
from edgemed.files import held_alone, read_json, write_json
from edgemed.place import note_another_place, versions
from edgemed.preflight import cpu
from edgemed.run import note_root, require_same_settings
from edgemed.stages import _forget_results

Edgemed = Callable[..., int]


def test_a_run_goes_on_where_its_data_lie_now(
    tiny_run: Path, phantoms: Path, weights: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = shutil.copytree(tiny_run, tmp_path / "run"), shutil.copytree(phantoms, tmp_path / "moved")
    info = json.loads((run / "run.json").read_text())
    info["dataset"]["root"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(info))
    (run / "report.html").unlink()
    assert edgemed("train", data, "--out", run, *tiny_flags(weights)) == 0, capsys.readouterr().err
    assert (run / "report.html").stat().st_size > 100_000  # it has pictures of the data
    assert json.loads((run / "run.json").read_text())["dataset"]["root"] == str(data)
    assert (run / "metrics.json").read_bytes() == (tiny_run / "metrics.json").read_bytes()


def test_folds_and_cells_learn_too_where_the_data_lie(tmp_path: Path) -> None:
    places = [tmp_path / name / "run.json" for name in (".", "folds/0", "cells/a", "cells/a/folds/1")]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text('{"dataset": {"root": "/gone", "n": 3}}')
    note_root(tmp_path, tmp_path / "here")
    found = [json.loads(place.read_text())["dataset"] for place in places]
    assert found == [{"root": str(tmp_path / "here"), "n": 3}] * 4


def test_results_are_forgotten_in_a_run_and_in_that_of_its_folds_and_nowhere_else(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "a/run", "a/run/folds/0", "a/run/folds/1")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").touch()
    there = lambda: [(folder / "metrics.json").exists() for folder in folders]  # noqa: E731
    _forget_results(TrainConfig(folds=2), folders[2])
    assert there() == [True, False, False, True]
    _forget_results(TrainConfig(), folders[3])
    assert there() == [True, False, False, False]
    (folders[1] / "metrics.json").touch()
    _forget_results(TrainConfig(), folders[1])
    assert there() == [True, False, False, False]


def test_compiling_for_a_cpu_is_refused_before_anything_is_written(
    phantoms: Path, weights: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*tiny_flags(weights), "--compile", "--device", "cpu"]
    assert edgemed("train", phantoms, "--out", tmp_path / "run", *flags) == 2
    assert "--compile is for a GPU" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_evaluate_knows_images_again_under_other_names_and_counts_copies_once(
    tiny_run: Path, phantoms: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line.split(",") for line in (tiny_run / "split.csv").read_text().splitlines()[1:]]
    chosen = [next(row for row in rows if row[3] == split and row[1] == label)
              for split, label in (("train", "oval"), ("test", "oval"), ("test", "none"))]  # fmt: skip
    for k, (path, label, _, _) in enumerate(chosen):
        for copy in "ab":
            (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(phantoms / path, tmp_path / "data" / label / f"{k}{copy}.png")
    capsys.readouterr()
    assert edgemed("evaluate", tiny_run, tmp_path / "data", "--json") == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (found["n"], found["groups"]) == (6, 3)
    assert "2 of the 6 images show what" in " ".join(told.err.split())


def test_evaluate_knows_what_a_bundle_was_validated_on(
    tiny_run: Path, tiny_bundle: Path, phantoms: Path, tmp_path: Path, edgemed: Edgemed,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = [line.split(",") for line in (tiny_run / "split.csv").read_text().splitlines()[1:]]

    def said(*splits: str) -> str:
        (tmp_path / "data.csv").unlink(missing_ok=True)
        chosen = [next(row for row in rows if row[3] == split and row[1] == label)
                  for split in splits for label in ("oval", "none")]  # fmt: skip
        lines = [f"{k}.bmp,{label}" for k, (_, label, *_) in enumerate(chosen)]
        for k, (path, *_) in enumerate(chosen):
            Image.open(phantoms / path).save(tmp_path / f"{k}.bmp")  # another file of the same pixels
        (tmp_path / "data.csv").write_text("\n".join(["path,label", *lines]))
        capsys.readouterr()
        assert edgemed("evaluate", tiny_bundle, tmp_path / "data.csv", "--json") == 0
        return " ".join(capsys.readouterr().err.split())

    assert "were used to choose, calibrate or check" not in said("test")
    assert "a bundle does not know its training images" in said("test")
    assert "2 of the 4 images were used to choose, calibrate or check" in said("test", "validation")


def test_evaluate_judges_the_test_images_of_data_that_name_their_splits(
    tiny_bundle: Path, phantoms: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [next(phantoms.glob(f"{label}/*{k}.png")) for label in ("oval", "none") for k in range(3)]

    def judged(*splits: str) -> tuple[int, str]:
        lines = [f"{file},{file.parent.name},{splits[k % 3]}" for k, file in enumerate(files)]
        (tmp_path / "data.csv").write_text("\n".join(["path,label,split", *lines]))
        capsys.readouterr()
        assert edgemed("evaluate", tiny_bundle, tmp_path / "data.csv", "--json") == 0
        told = capsys.readouterr()
        return json.loads(told.out)["n"], " ".join(told.err.split())

    count, said = judged("train", "test", "test")
    assert (count, "2 of train" in said, "the test images are judged" in said) == (4, True, True)
    count, said = judged("train", "train", "train")
    assert (count, "none is test (6 of train)" in said) == (6, True)
    count, said = judged("test", "test", "test")
    assert (count, "splits" in said) == (6, False)


def test_a_folder_with_the_users_own_split_csv_is_left_alone(
    phantoms: Path, weights: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own" / "split.csv"
    own.parent.mkdir()
    own.write_text("path,label\n" + "\n".join(f"{file},{file.parent.name}" for file in phantoms.glob("*/*.png")))
    before = own.read_bytes()
    for data in (own, phantoms):
        assert edgemed("train", data, "--out", own.parent, *tiny_flags(weights)) == 2
        assert "holds something" in " ".join(capsys.readouterr().err.split())
        assert [path.name for path in own.parent.iterdir()] == ["split.csv"]
        assert own.read_bytes() == before


def test_a_run_that_another_command_began_meanwhile_is_left_as_it_is(
    phantoms: Path, weights: Path, tmp_path: Path, edgemed: Edgemed, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from edgemed.train import join_near_duplicates as plain

    run = tmp_path / "run"

    def slow(dataset: Dataset) -> object:  # while this command compares images, another begins
        run.mkdir()
        (run / "run.json").write_text("another's")
        return plain(dataset)

    monkeypatch.setattr("edgemed.train.join_near_duplicates", slow)
    assert edgemed("train", phantoms, "--out", run, *tiny_flags(weights)) == 2
    assert "has begun a run" in " ".join(capsys.readouterr().err.split())
    assert {path.name: path.read_text() for path in run.iterdir()} == {"run.json": "another's"}


def test_a_run_goes_on_with_other_devices_threads_weights_paths_and_without_compiling(tmp_path: Path) -> None:
    begun = {"config": TrainConfig(threads=2, compile=True, weights="elsewhere", device="cuda:1").as_dict()}
    require_same_settings(begun, TrainConfig(), tmp_path)
    with pytest.raises(InputError, match="--epochs 30 -> 31"):
        require_same_settings(begun, TrainConfig(epochs=31), tmp_path)


@pytest.mark.parametrize("form", ["bmp", "jpg"])
def test_training_images_are_known_again_in_another_file_format(
    form: str, tiny_run: Path, phantoms: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    run = read_split_csv(tiny_run / "split.csv", phantoms)
    for split in ("train", "test"):
        for row in run.subset(split).rows:
            copy = tmp_path / split / row.label / f"{Path(row.path).stem}.{form}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            Image.open(run.file(row)).convert("RGB").save(copy, quality=90)
        assert edgemed("evaluate", tiny_run, tmp_path / split) == 0
        told = " ".join(capsys.readouterr().err.split())
        count = len(run.subset(split).rows)
        assert (f"{count} of the {count} images show what" in told) == (split == "train"), told
        assert ("has learnt from them" in told) == (split == "train")


def test_training_images_that_are_gone_or_damaged_are_no_error(
    tiny_run: Path, phantoms: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = shutil.copytree(tiny_run, tmp_path / "run"), shutil.copytree(phantoms, tmp_path / "data")
    note_root(run, data)
    gone, cut = (data / row.path for row in read_split_csv(run / "split.csv", data).subset("train").rows[:2])
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    assert edgemed("evaluate", run, phantoms) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "1 of the images that" in told and "1 of the images that the model has learnt from cannot be read" in told
    assert cut.name in told and "images show what" in told  # the others are compared all the same


def test_two_commands_do_not_train_in_one_folder(
    tiny_run: Path, phantoms: Path, weights: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("train", phantoms, "--out", tiny_run, *tiny_flags(weights))
    with held_alone(tiny_run):
        assert edgemed(*command) == 2
        assert f"another edgemed is at work in {tiny_run}" in capsys.readouterr().err.replace("\n", "")
    assert edgemed(*command) == 0


def test_weights_may_move_but_not_change(
    tiny_run: Path, phantoms: Path, weights: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    moved, changed = Path(shutil.copy(weights, tmp_path / "moved.safetensors")), tmp_path / "changed.safetensors"
    state = load_file(weights)
    save_file({name: value + 1 if value.is_floating_point() else value for name, value in state.items()}, changed)
    assert edgemed("train", phantoms, "--out", tiny_run, *tiny_flags(moved)) == 0
    assert edgemed("train", phantoms, "--out", tiny_run, *tiny_flags(changed)) == 2
    assert "was begun with other ImageNet weights" in " ".join(capsys.readouterr().err.split())


def test_a_run_that_goes_on_elsewhere_says_so_once(tmp_path: Path) -> None:
    device = {"device": "cuda", "processor": "H100", "ranks": 2, "threads": 1}
    place = {"device": device, "versions": versions() | {"torch": "2.0"}}
    write_json(tmp_path / "run.json", place | {"edgemed": "0.0.9", "dataset": {"warnings": ["old"]}})
    text = (f"(edgemed 0.0.9 -> {__version__}, device cuda -> cpu, processor H100 -> {cpu()[0]}, threads 1 -> 3, "
            f"ranks 2 -> 1, torch 2.0 -> {versions()['torch']})")  # fmt: skip
    for _ in range(2):
        note_another_place(tmp_path, "cpu", 3)
        found = read_json(tmp_path / "run.json")["dataset"]["warnings"]
        assert found == ["old", f"the run was begun in one place and went on in another {text}."]


@pytest.mark.parametrize("package", ["pydicom", "imagecodecs", "scipy"])
def test_what_decodes_dicom_and_fits_temperatures_is_part_of_the_place(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place_module, "version", lambda name: "1.0")
    here = {"device": place_module.device_here("cpu", 1), "versions": versions(), "edgemed": __version__}
    write_json(tmp_path / "run.json", here | {"dataset": {"warnings": []}})

    def without(name: str) -> str:
        if name == package:
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(place_module, "version", without)
    note_another_place(tmp_path, "cpu", 1)
    (warning,) = read_json(tmp_path / "run.json")["dataset"]["warnings"]
    assert f"({package} 1.0 -> not installed)" in warning


@pytest.mark.gpu
@pytest.mark.parametrize("more", [[], ["--compile"]])
def test_a_gpu_trains_both_members(
    phantoms: Path, weights: Path, tmp_path: Path, edgemed: Edgemed, more: list[str]
) -> None:
    run = tmp_path / "run"
    assert edgemed("train", phantoms, "--out", run, *tiny_flags(weights), "--device", "cuda", *more) == 0
    losses = [json.loads(line)["train_loss"] for line in (run / "members/mae/history.jsonl").read_text().splitlines()
              if '"finetune"' in line]  # fmt: skip
    assert losses[-1] < losses[0]
    assert json.loads((run / "run.json").read_text())["device"]["device"] == "cuda"
