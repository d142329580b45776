"""The calibration split is cut fairly and used for nothing else; the temperatures make the ensemble honest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_flags
from PIL import Image

pytest.importorskip("torch", reason="extra train is not installed")

import torch

from edgemed.bundle import open_bundle
from edgemed.calibrate import calibrate
from edgemed.config import TrainConfig
from edgemed.dataset import Dataset, scan, split_dataset
from edgemed.ensemble import Ensemble
from edgemed.errors import InputError
from edgemed.infer import load
from edgemed.operating import read_operating_point
from edgemed.operating_fit import Wanted
from edgemed.preprocess import FrontEnd
from edgemed.rows import Row
from edgemed.stages import _evaluate
from edgemed.temperatures import at_a_limit, fitted_temperature, fitted_temperatures, with_calibration


def test_the_ensemble_is_as_sure_as_it_is_right_though_its_members_differ() -> None:
    torch.manual_seed(0)
    signal = torch.randn(20_000, 3)
    labels = torch.distributions.Categorical(logits=2 * signal).sample().tolist()
    logits = [3 * (2 * signal + 2 * torch.randn(20_000, 3)) for _ in range(2)]

    def excess(temperatures: Sequence[float]) -> float:
        mean = sum(torch.softmax(z / t, -1) for z, t in zip(logits, temperatures, strict=True)) / 2
        return float(mean.max(1).values.mean() - (mean.argmax(1) == torch.tensor(labels)).double().mean())

    assert excess([fitted_temperature(each, labels) for each in logits]) < -0.03
    assert abs(excess(fitted_temperatures(logits, labels))) < 0.02


def test_a_member_divides_its_logits_by_its_temperature_and_the_ensemble_is_the_mean() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 1.0]])
    members = [torch.nn.Module() for _ in logits]
    for member, own in zip(members, logits, strict=True):
        member.forward = lambda pixels, own=own: own.expand(len(pixels), 3)  # type: ignore[method-assign]
    ensemble = Ensemble(FrontEnd(32, (0.5,) * 3, (0.25,) * 3), members, (2.0, 0.5))
    mean, of_members = ensemble(torch.zeros(4, 40, 40, 3, dtype=torch.uint8))
    expected = torch.softmax(torch.stack([logits[0] / 2, logits[1] / 0.5]), -1)
    assert torch.allclose(of_members, expected.expand(4, 2, 3)) and torch.allclose(mean, expected.mean(0).expand(4, 3))


def rows(counts: dict[str, int], split: str, size: int = 1) -> list[Row]:
    return [
        Row(f"{split}/{label}{k}-{i}", label, f"{split}{label}{k}", split)
        for label, count in counts.items()
        for k in range(count)
        for i in range(size)
    ]


def whole(counts: dict[str, int], size: int = 1) -> Dataset:
    every = [row for split in ("train", "validation", "test") for row in rows(counts, split, size)]
    return Dataset(Path(), tuple(every), tuple(sorted(counts)))


def test_a_temperature_says_when_its_search_ended_at_a_limit() -> None:
    labels = [k % 3 for k in range(60)]
    right = torch.nn.functional.one_hot(torch.tensor(labels), 3).double()
    assert at_a_limit(fitted_temperature(1e-3 * right, labels))  # sure beyond what the range allows
    assert at_a_limit(fitted_temperature(1e3 * right.roll(1, 1), labels))  # wrong throughout
    assert not at_a_limit(fitted_temperature(right, labels))


def test_calibration_is_cut_from_training_alone_by_whole_groups() -> None:
    before = whole({"a": 60, "b": 20}, size=2)
    after = with_calibration(before, 0.2, seed=3)
    moved = {row.path for row in after.subset("calibration").rows}
    assert {old.split for old, new in zip(before.rows, after.rows, strict=True) if new.path in moved} == {"train"}
    assert all(old == new for old, new in zip(before.rows, after.rows, strict=True) if new.path not in moved)
    assert not {row.group for row in after.subset("train").rows} & {
        row.group for row in after.subset("calibration").rows
    }
    assert [row.label for row in after.subset("calibration").rows].count("a") == 24
    assert [row.label for row in after.subset("calibration").rows].count("b") == 8
    assert with_calibration(before, 0.2, seed=3) == after != with_calibration(before, 0.2, seed=4)
    assert with_calibration(before, 0.0, seed=3) == before


def test_a_class_that_is_too_small_to_share_keeps_its_images_and_is_named() -> None:
    after = with_calibration(replace(whole({"a": 80, "rare": 2}), warnings=("of the scan",)), 0.2, seed=0)
    assert sum(row.label == "rare" for row in after.subset("train").rows) == 2
    assert after.warnings == (
        "of the scan",
        "no calibration image of rare: the operating point does not speak for these.",
    )


def test_a_calibration_split_of_the_data_is_kept_and_one_that_is_too_small_is_refused() -> None:
    own = Dataset(Path(), (*whole({"a": 9, "b": 9}).rows, *rows({"a": 5, "b": 5}, "calibration")), ("a", "b"))
    assert with_calibration(own, 0.0, seed=0) == own
    with pytest.raises(InputError, match="of their own"):
        with_calibration(own, 0.2, seed=0)
    with pytest.raises(InputError, match="2 images in 2 groups, too few"):
        with_calibration(whole({"a": 9, "b": 9}), 0.1, seed=0)
    many = Dataset(Path(), (*own.rows[:-10], *rows({"a": 4, "b": 4}, "calibration", size=20)), ("a", "b"))
    with pytest.raises(InputError, match="160 images in 8 groups, too few"):  # images of one patient are alike
        with_calibration(many, 0.0, seed=0)


def test_a_csv_may_name_the_calibration_split(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for split, count in (("train", 4), ("validation", 2), ("calibration", 5), ("test", 2)):
        for label, k in [(label, k) for label in "ab" for k in range(count)]:
            pixels = np.random.default_rng(len(lines)).integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{split}{label}{k}.png")
            lines.append(f"{split}{label}{k}.png,{label},{split}")
    (tmp_path / "data.csv").write_text("\n".join(lines))
    data = with_calibration(split_dataset(scan(tmp_path / "data.csv")), 0.0, seed=0)
    assert sorted(row.path for row in data.subset("calibration").rows) == sorted(
        line.split(",")[0] for line in lines if line.endswith(",calibration")
    )


def test_temperatures_and_operating_point_see_no_pixel_of_the_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluate three times: as it is, with other test images, with other calibration images."""
    cut = with_calibration(whole(dict.fromkeys("abc", 8)), 0.5, seed=0)
    data = Dataset(tmp_path, tuple(replace(row, path=f"{row.path}.png") for row in cut.rows), cut.classes)

    def member(*_: object) -> torch.nn.Module:  # a class is a colour, and the colours' means are the logits
        return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    monkeypatch.setattr("edgemed.stages.trained_member", member)
    config = TrainConfig(backbone="tf_efficientnet_lite0", size=32)

    def evaluated(poisoned: str) -> tuple[bytes, dict[str, float], float]:
        out = tmp_path / f"run-{poisoned}"
        out.mkdir()
        for k, row in enumerate(data.rows):
            colour = np.random.default_rng(k + 1000 * (row.split == poisoned)).integers(40, 180, 3)
            colour[data.labels[k]] += 50
            data.file(row).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), tuple(colour.tolist())).save(data.file(row))
        _evaluate(config, data, out, lambda *_: None)
        metrics = json.loads((out / "metrics.json").read_text())
        return (out / "operating_point.json").read_bytes(), metrics["temperatures"], metrics["ensemble"]["ece"]

    first, other_test, other_calibration = evaluated("none"), evaluated("test"), evaluated("calibration")
    assert first[:2] == other_test[:2]
    assert first[2] != other_test[2]
    assert first[0] != other_calibration[0]
    assert first[1] != other_calibration[1]


def test_a_member_at_the_end_of_the_range_leaves_the_ensemble_no_worse_than_its_own_temperatures_do() -> None:
    rng = np.random.default_rng(36)
    count, classes = int(rng.integers(9, 60)), int(rng.integers(2, 6))
    labels = torch.tensor(rng.integers(0, classes, count))
    logits = [torch.tensor(rng.normal(size=(count, classes)) * rng.choice([0.05, 1, 20])) for _ in range(2)]
    for each in logits:
        each[range(count), labels] += float(rng.choice([0, 1, 30]))

    def loss(temperatures: list[float]) -> float:
        shares = [torch.softmax(each / value, -1) for each, value in zip(logits, temperatures, strict=True)]
        return float(torch.nn.functional.nll_loss(torch.stack(shares).mean(0).log(), labels))

    own = [fitted_temperature(each, labels.tolist()) for each in logits]
    assert own[0] == pytest.approx(10, rel=1e-3)  # sure of itself, and at chance
    assert loss(fitted_temperatures(logits, labels.tolist())) <= loss(own) + 1e-3


def test_a_real_training_leaves_a_point_that_another_can_replace(
    phantoms: Path, weights: Path, edgemed: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "folds" / "run"  # a run of this place is no fold
    (tmp_path / "metrics.json").write_text("the user's own")
    assert edgemed("train", phantoms, "--out", run, *tiny_flags(weights), "--calibration", "0.4") == 0
    assert (tmp_path / "metrics.json").read_text() == "the user's own"
    point = read_operating_point(run)
    assert point is not None
    assert (point.coverage, point.positive, point.images) == (0.9, None, 9)
    capsys.readouterr()
    assert edgemed("calibrate", run, "--answer", "0.5", "--coverage", "0.8", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["points"] == [read_operating_point(run).model_dump(mode="json")]  # type: ignore[union-attr]
    assert "Images that are answered" in (run / "report.html").read_text()
    assert edgemed("calibrate", run, "--positive", "oval", "--sensitivity", "0.5") == 0
    assert re.search(r"sensitivity for oval +at least 0\.5 +[01]\.\d{3}\s", capsys.readouterr().out)
    assert edgemed("calibrate", run, "--sensitivity", "0.5") == 2
    assert "--positive" in capsys.readouterr().err

    bundle = tmp_path / "bundle"
    assert edgemed("build-engine", run, "--out", bundle, "--precision", "fp32", "--runtime", "none") == 0
    point = open_bundle(bundle).manifest.operating_point
    assert point is not None and point == read_operating_point(run)
    assert f"from a probability of {point.threshold:.4f} on" in (bundle / "model_card.md").read_text()
    card, judged = (bundle / "model_card.md").read_text(), json.loads((run / "metrics.json").read_text())["operating"]
    attained = judged["threshold"]["sensitivity"]
    assert f"| sensitivity for oval | at least 0.5 | {attained['value']:.3f}" in card
    answer = load(bundle, runtime="openvino")(next(phantoms.glob("none/*.png")))
    assert answer.prediction_set == tuple(
        name for name, share in answer.probabilities.items() if share >= point.min_probability
    )
    labelled = tmp_path / "labelled.csv"
    files = [file for name in ("oval", "none") for file in sorted(phantoms.glob(f"{name}/*.png"))[:4]]
    labelled.write_text("\n".join(["path,label", *(f"{file},{file.parent.name}" for file in files)]))
    capsys.readouterr()
    decided = np.array([load(bundle, runtime="openvino")(file).decision for file in files])
    for model in (run, bundle):
        assert edgemed("evaluate", model, labelled, "--json") == 0
        threshold = json.loads(capsys.readouterr().out)["operating"]["threshold"]
        assert threshold["sensitivity"]["value"] == pytest.approx(np.mean(decided[:4] == "oval"))
        assert threshold["specificity"]["value"] == pytest.approx(np.mean(decided[4:] != "oval"))
    assert edgemed("evaluate", bundle, labelled) == 0
    assert "operating point, judged on 8 images; 95 % intervals" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr("edgemed.calibrate.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            calibrate(run, Wanted("none", specificity=0.5))
    for again in (("build-engine", run, "--out", tmp_path / "other"),
                  ("train", phantoms, "--out", run, *tiny_flags(weights), "--calibration", "0.4")):  # fmt: skip
        capsys.readouterr()
        assert edgemed(*again) == 2
        assert "is not the one that metrics.json judges; run `edgemed calibrate` again" in capsys.readouterr().err
    assert not (run / "report.html").exists()
    assert edgemed("calibrate", run, "--positive", "none", "--specificity", "0.5") == 0
    assert (run / "report.html").exists()
