"""The whole path on a tiny run: train, resume, build, predict, evaluate; what a user relies on at each step."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_flags

pytest.importorskip("torch", reason="extra train is not installed")

Edgemed = Callable[..., int]


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def _content(run: Path) -> dict[str, bytes]:
    """What a run has computed: every file but those that hold times."""
    times = {"run.json", "report.html", "history.jsonl"}
    files = [path for path in run.rglob("*") if path.is_file() and path.name not in times]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def test_a_run_holds_what_the_design_promises(tiny_run: Path) -> None:
    names = {path.relative_to(tiny_run).as_posix() for path in tiny_run.rglob("*") if path.is_file()}
    assert names == {
        "run.json",
        "split.csv",
        "duplicates.json",
        "predictions.csv",
        "metrics.json",
        "report.html",
        "members/imagenet/model.safetensors",
        "members/imagenet/history.jsonl",
        "members/mae/pretrained.safetensors",
        "members/mae/model.safetensors",
        "members/mae/history.jsonl",
    }
    info = json.loads((tiny_run / "run.json").read_text())
    assert info["config"]["size"] == 32
    assert set(info["durations"]) == {"pretrain", "finetune imagenet", "finetune mae", "evaluate"}
    history = [json.loads(line) for line in (tiny_run / "members/mae/history.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in history] == ["pretrain"] * 2 + ["finetune"] * 3


def test_the_ensemble_is_the_mean_and_the_metrics_are_those_of_the_test_rows(tiny_run: Path) -> None:
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    rows = [row for row in _rows(tiny_run / "predictions.csv") if row["split"] == "test"]
    classes = metrics["classes"]
    members = np.array([[[float(row[f"{m}:{c}"]) for c in classes] for m in ("imagenet", "mae")] for row in rows])
    decided = [classes[k] for k in members.mean(1).argmax(1)]
    accuracy = np.mean([label == row["label"] for label, row in zip(decided, rows, strict=True)])
    assert metrics["ensemble"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert metrics["n"] == len(rows) == sum(row["split"] == "test" for row in _rows(tiny_run / "split.csv"))


def test_a_second_run_does_nothing_again(tiny_run: Path, phantoms: Path, weights: Path, edgemed: Edgemed) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    assert edgemed("train", phantoms, "--out", tiny_run, *tiny_flags(weights)) == 0
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before


def test_other_settings_and_other_data_are_refused(
    tiny_run: Path, phantoms: Path, weights: Path, edgemed: Edgemed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _content(tiny_run)
    assert edgemed("train", phantoms, "--out", tiny_run, *tiny_flags(weights), "--seed", "7") == 2
    assert "--seed 0 -> 7" in capsys.readouterr().err
    other = tmp_path / "data"
    shutil.copytree(phantoms, other)
    next(other.rglob("*.png")).unlink()
    assert edgemed("train", other, "--out", tiny_run, *tiny_flags(weights)) == 2
    assert "has changed" in capsys.readouterr().err
    assert _content(tiny_run) == before


def test_pretraining_sees_training_images_only(
    phantoms: Path, weights: Path, edgemed: Edgemed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgemed.errors import EdgemedError

    seen: list[Path] = []

    def spy(config: object, files: list[Path], *rest: object) -> None:
        seen.extend(files)
        raise EdgemedError("seen enough")

    monkeypatch.setattr("edgemed.stages.pretrain", spy)
    assert edgemed("train", phantoms, "--out", tmp_path / "run", *tiny_flags(weights)) == 1
    rows = _rows(tmp_path / "run" / "split.csv")
    assert {str(file) for file in seen} == {str(phantoms / row["path"]) for row in rows if row["split"] == "train"}


def test_the_engine_answers_as_the_run_did(tiny_run: Path, tiny_bundle: Path, phantoms: Path) -> None:
    import edgemed

    model = edgemed.load(tiny_bundle)
    rows = [row for row in _rows(tiny_run / "predictions.csv") if row["split"] == "test"]
    for row in rows:
        answer = model(phantoms / row["path"])
        for member, shares in answer.members.items():
            for label, share in shares.items():
                assert share == pytest.approx(float(row[f"{member}:{label}"]), abs=1e-4)


def test_a_bundle_names_no_image_and_no_folder_of_the_run(tiny_bundle: Path, tiny_run: Path, phantoms: Path) -> None:
    names = [Path(row["path"]).name.encode() for row in _rows(tiny_run / "split.csv")]
    names += [str(tiny_run).encode(), str(phantoms).encode()]
    for path in tiny_bundle.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [name for name in names if name in data], path.name


def test_predict_prints_one_object_per_image(
    tiny_bundle: Path, phantoms: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted(phantoms.rglob("*.png"))[:3]
    capsys.readouterr()
    assert edgemed("predict", tiny_bundle, *images, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["path"] for item in found] == [str(image) for image in images]
    for item in found:
        assert set(item) >= {"path", "label", "decision", "prediction_set", "disagreement", "runtime", "bundle_id"}
        assert sum(item["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert item["label"] == max(item["probabilities"], key=item["probabilities"].__getitem__)
        assert set(item["members"]) == {"imagenet", "mae"}


def test_evaluate_gives_a_run_and_its_bundle_the_same_figures(
    tiny_run: Path, tiny_bundle: Path, phantoms: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for model in (tiny_run, tiny_bundle):
        capsys.readouterr()
        assert edgemed("evaluate", model, phantoms, "--json") == 0
        told = capsys.readouterr()
        results.append(json.loads(told.out))
        assert ("it has learnt from them" in " ".join(told.err.split())) == (model == tiny_run)
    assert results[0]["n"] == len(list(phantoms.rglob("*.png")))
    assert results[0]["ensemble"]["confusion"] == results[1]["ensemble"]["confusion"]
    assert results[0]["ensemble"]["auroc"] == results[1]["ensemble"]["auroc"]


def test_evaluate_refuses_a_class_that_the_model_does_not_know(
    tiny_bundle: Path, phantoms: Path, tmp_path: Path, edgemed: Edgemed, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(phantoms, tmp_path / "data")
    (tmp_path / "data" / "oval").rename(tmp_path / "data" / "ovall")
    assert edgemed("evaluate", tiny_bundle, tmp_path / "data") == 2
    assert "Did you mean 'oval'?" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["pretrain mae", "fine-tune imagenet", "fine-tune mae", "evaluate test"])
def test_a_stopped_training_ends_as_an_undisturbed_one(
    stage: str, tiny_run: Path, phantoms: Path, weights: Path, tmp_path: Path
) -> None:
    from edgemed.config import TrainConfig
    from edgemed.train import train

    info = json.loads((tiny_run / "run.json").read_text())
    config = TrainConfig(**info["config"] | {"split": tuple(info["config"]["split"])})

    def stop(name: str, done: int, total: int, detail: str) -> None:
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, phantoms, tmp_path / "run", stop)
    train(config, phantoms, tmp_path / "run", lambda *_: None)
    assert _content(tmp_path / "run") == _content(tiny_run)
    for member in ("imagenet", "mae"):
        rows = [
            [json.loads(line) | {"seconds": 0} for line in (run / f"members/{member}/history.jsonl").open()]
            for run in (tiny_run, tmp_path / "run")
        ]
        assert rows[0] == rows[1]


def test_the_mae_member_starts_from_the_pretrained_encoder(tiny_run: Path, weights: Path) -> None:
    from safetensors.torch import load_file

    from edgemed.config import TrainConfig
    from edgemed.stages import new_member

    config = TrainConfig(backbone="tf_efficientnet_lite0", size=32, pretrain_size=64)
    pretrained = load_file(tiny_run / "members/mae/pretrained.safetensors")
    imagenet = load_file(weights)
    key = "blocks.3.0.conv_dw.weight"
    assert not np.array_equal(pretrained[key], imagenet[key])
    mae = new_member(config, "mae", 3, imagenet, "test", tiny_run / "members/mae").state_dict()
    other = new_member(config, "imagenet", 3, imagenet, "test", tiny_run / "members/mae").state_dict()
    assert np.array_equal(mae[key], pretrained[key])
    assert np.array_equal(other[key], imagenet[key])


def test_a_killed_training_ends_as_an_undisturbed_one(
    tiny_run: Path, phantoms: Path, weights: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "edgemed", "train", str(phantoms), "--out", str(run), *tiny_flags(weights)]
    began = time.monotonic()
    assert subprocess.run(command, capture_output=True).returncode == 0
    whole = time.monotonic() - began
    shutil.rmtree(run)
    seed, kills = random.randrange(2**32), 0
    dice, told = random.Random(seed), f"the seed of its dice was {seed}"
    while kills < 3:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert process.wait(timeout=whole * dice.uniform(0.2, 0.8)) == 0, told
            whole *= 0.8  # it was faster than we thought, and nothing is left to kill but another run
            shutil.rmtree(run)
            kills = 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    assert kills == 3, told
    assert subprocess.run(command, capture_output=True).returncode == 0, told
    assert _content(run) == _content(tiny_run), told


def test_with_entropy_reaches_the_engine_the_card_and_the_predictions(
    edgemed: Edgemed, capsys: pytest.CaptureFixture[str], tiny_run: Path, phantoms: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    flags = ("--runtime", "none", "--precision", "fp32", "--with-entropy")
    assert edgemed("build-engine", tiny_run, "--out", bundle, *flags) == 0
    assert "entropy 1 x 1 patches of 32 px, in bits" in " ".join(capsys.readouterr().out.split())
    assert edgemed("predict", bundle, next(phantoms.glob("*/*.png")), "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert 0 < answer["entropy"][0][0] <= 8
    assert "bits per 32-pixel patch of the resized image, lies within" in (bundle / "model_card.md").read_text()
