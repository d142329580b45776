"""What an ablation says of its cells' predictions: pooled, paired, each member calibrated for what it is judged as."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="extra train is not installed")

from edgemed.ablation import CELLS, ablation, ablation_html, sentence
from edgemed.dataset import Dataset
from edgemed.files import write_atomic
from edgemed.predictions import predictions_csv
from edgemed.rows import Row

CLASSES = ("a", "b", "c")


def _cell(folder: Path, of_members: Sequence[np.ndarray], folds: int = 2) -> list[Path]:
    """A cell's folds with these members' probabilities (N, K), over images in groups of two."""
    members = np.stack(of_members, axis=1).astype(np.float32)
    runs = []
    for k in range(folds):
        tested, run, parts = np.arange(len(members)) // 2 % folds == k, folder / str(k), []
        for split, of in (("validation", ~tested), ("test", tested)):
            chosen = np.flatnonzero(of)
            rows = tuple(Row(f"{n}.png", CLASSES[n % 3], f"g{n // 2}", split) for n in chosen)
            parts.append((Dataset(folder, rows, CLASSES), members[chosen], ["ab" * 32] * len(rows)))
        write_atomic(run / "predictions.csv", predictions_csv(parts))
        runs.append(run)
    return runs


def _answers(seed: int, strength: float, n: int = 120) -> np.ndarray:
    """Probabilities (n, 3) of a member that is right on about `strength` of the images of class n % 3."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, 3))
    scores[np.arange(n), np.arange(n) % 3] += strength
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


def _found(tmp_path: Path, mae: float, control: float, leave_out: str = "") -> dict[str, Any]:
    imagenet = _answers(0, 1.0)
    second = {"entropy-imagenet": _answers(1, mae), "none-imagenet": _answers(2, control),
              "again-imagenet": _answers(3, mae)}  # fmt: skip
    cells = {name: _cell(tmp_path / name, [imagenet, shares]) for name, shares in second.items() if name != leave_out}
    info = {"edgemed": "0", "config": {"backbone": "net"}, "dataset": {"fingerprint": "f"}}
    return ablation(cells, CLASSES, info)


def test_the_figures_are_those_of_the_cells_pooled_over_their_folds(tmp_path: Path) -> None:
    found = _found(tmp_path, 2.0, 1.0)
    order = np.concatenate([np.flatnonzero(np.arange(120) // 2 % 2 == k) for k in (0, 1)])
    labels = (np.arange(120) % 3)[order]
    shares = {"imagenet": _answers(0, 1.0)[order], "mae": _answers(1, 2.0)[order], "imagenet'": _answers(2, 1.0)[order],
              "mae'": _answers(3, 2.0)[order]}  # fmt: skip
    right = {name: float((each.argmax(1) == labels).mean()) for name, each in shares.items()}
    assert {row["name"]: row["accuracy"]["value"] for row in found["members"]} == pytest.approx(right)
    both = (("imagenet", "mae"), ("imagenet", "imagenet'"), ("imagenet", "mae'"))
    pairs = {f"{a} + {b}": float(((shares[a] + shares[b]).argmax(1) == labels).mean()) for a, b in both}
    ensembles = {row["name"]: row for row in found["ensembles"]}
    of_mae = ensembles.pop("mae + mae'")  # see the next test
    assert {name: row["accuracy"]["value"] for name, row in ensembles.items()} == pytest.approx(pairs)
    assert of_mae["accuracy"]["value"] > max(right.values())
    assert ensembles["imagenet + mae"]["minus"] is None
    minus = ensembles["imagenet + imagenet'"]["minus"]
    assert minus["b"] == "imagenet + mae"
    assert minus["accuracy"]["value"] == pytest.approx(pairs["imagenet + imagenet'"] - pairs["imagenet + mae"])
    member = next(row for row in found["members"] if row["name"] == "imagenet")
    assert np.mean(member["accuracy_by_fold"]) == pytest.approx(right["imagenet"])  # the folds are equally large
    assert found["groups"] == 60
    assert found["not_run"] == [name for name in CELLS if name not in found["cells"]]
    json.dumps(found, allow_nan=False)


def test_what_a_member_was_calibrated_beside_does_not_matter_to_it_alone_or_in_another_pair(tmp_path: Path) -> None:
    """In its cell it shares a factor with the ImageNet member of that cell."""

    def found(name: str, *temperatures: float) -> dict[str, Any]:
        beside, cells = {}, (("entropy-imagenet", _answers(1, 2.0)), ("again-imagenet", _answers(3, 1.0)))
        for k, (cell, own) in enumerate(cells):
            members = [each ** (1 / temperatures[k]) for each in (_answers(0, 1.0), own)]
            members = [each / each.sum(axis=1, keepdims=True) for each in members]
            beside[cell] = _cell(tmp_path / name / cell, members)
        info = {"edgemed": "0", "config": {"backbone": "net"}, "dataset": {"fingerprint": "f"}}
        made = ablation(beside, CLASSES, info)
        rows = made["members"] + [row for row in made["ensembles"] if row["name"] == "mae + mae'"]
        return {row["name"]: [row[key]["value"] for key in ("accuracy", "auroc")] + [row["ece"]] for row in rows}

    once, again = found("once", 1.0, 1.0), found("again", 0.4, 3.0)
    assert list(once) == ["imagenet", "mae", "mae'", "mae + mae'"]
    for name, figures in once.items():
        assert again[name] == pytest.approx(figures, abs=2e-4), name


@pytest.mark.parametrize(
    ("mae", "control", "says"),
    [
        (3.0, 0.5, "; in these trainings, masked pretraining adds more than another seed in accuracy; other"),
        (0.5, 3.0, "; in these trainings, masked pretraining falls behind another seed in accuracy; other"),
        (1.0, 1.0, "; the interval of the accuracy holds 0: these images do not show that masked"),
    ],
)
def test_the_sentence_says_what_the_intervals_say(mae: float, control: float, says: str, tmp_path: Path) -> None:
    found = _found(tmp_path, mae, control)
    assert says in found["sentence"]
    assert f"accuracy {found['claim']['accuracy']['value']:+.3f} (" in found["sentence"]
    page = ablation_html(found, "scans")
    assert page.count("data:image/svg+xml") == 4
    assert "<script" not in page
    assert "0.png" not in page  # it may be shown to others


def test_the_sentence_rests_on_the_accuracy_alone_and_tells_the_auroc() -> None:
    """Of two figures, chance alone makes one stand out nearly twice as often."""
    shown = {"accuracy": {"value": 0.0, "low": -0.1, "high": 0.1}, "auroc": {"value": 0.2, "low": 0.1, "high": 0.3}}
    said = sentence({"claim": {"a": "x", "b": "y"} | shown, "n": 9, "groups": 9, "not_run": []})
    assert "AUROC +0.200 (+0.100 to +0.300); the interval of the accuracy holds 0: these images do not show" in said


def test_without_the_control_the_sentence_claims_nothing(tmp_path: Path) -> None:
    found = _found(tmp_path, 2.0, 1.0, leave_out="none-imagenet")
    assert found["claim"] is None
    assert found["sentence"] == (
        "Whether masked pretraining adds to a second seed is not known: not run: none-imagenet."
    )
