"""What is picked for the report: the images whose label got the least, and the conflicting pairs, worst first."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save

pytest.importorskip("torch", reason="extra train is not installed")

from answers import CLASSES, drawn

from edgemed import report_examples
from edgemed.config import TrainConfig
from edgemed.dataset import Dataset, DuplicatePair
from edgemed.files import write_atomic
from edgemed.pretrain import _tensors, autoencoder
from edgemed.report_data import CONFLICTS, HARDEST, _duplicates, _hardest, _split_table
from edgemed.rows import Row


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """50 images, the k-th all of the level k."""
    table = drawn(np.random.default_rng(0), 50)
    rows = []
    for k, (path, label) in enumerate(zip(table.paths, table.labels, strict=True)):
        Image.new("L", (40, 40), k).save(tmp_path / path, format="PNG")
        rows.append(Row(path, CLASSES[label], path, "test"))
    return Dataset(tmp_path, tuple(rows), CLASSES)


def test_the_hardest_images_are_those_whose_label_got_the_least(dataset: Dataset) -> None:
    table = drawn(np.random.default_rng(0), 50)
    found = _hardest(table, dataset)
    of_true = table.probabilities[np.arange(50), table.labels]
    assert [each.share for each in found] == pytest.approx(np.sort(of_true)[:HARDEST])
    for each in found:
        k = table.paths.index(each.path)
        assert (each.picture == k).all()
        assert (each.label, each.decided) == (CLASSES[table.labels[k]], CLASSES[table.probabilities[k].argmax()])


def test_pictures_are_of_the_conflicting_pairs_that_are_most_alike(dataset: Dataset) -> None:
    rows = dataset.rows
    pairs = [DuplicatePair(a.path, b.path, a.label, b.label, k / 50) for k, (a, b) in enumerate(pairwise(rows))]
    found = _duplicates(pairs, dataset)
    shown = [each.correlation for each in found if each.pictures]
    conflicting = [pair.correlation for pair in pairs if pair.conflicting]
    assert shown == conflicting[-CONFLICTS:]
    assert [each.conflicting for each in found] == [pair.conflicting for pair in pairs]
    for each in found:
        if each.pictures:
            assert [picture.max() for picture in each.pictures] == [int(each.a[1:]), int(each.b[1:])]


def test_a_pair_of_which_one_image_was_left_out_is_shown_with_both_labels(dataset: Dataset) -> None:
    """But no pair that is left out as a whole."""
    kept, left_out = dataset.rows[0], dataset.rows[1]
    rest = replace(dataset, rows=tuple(row for row in dataset.rows if row != left_out))
    pairs = [DuplicatePair(a, left_out.path, "normal", "benign", 0.9) for a in (kept.path, "also left out")]
    assert [(each.a, each.label_a, each.label_b) for each in _duplicates(pairs, rest)] == [
        (kept.path, "normal", "benign")
    ]


def test_the_table_of_splits_counts_every_image_in_its_order(dataset: Dataset) -> None:
    splits = ("test", "train", "calibration", "validation", "train")
    rows = tuple(Row(f"{k}", "benign" if k else "normal", f"{k}", split) for k, split in enumerate(splits))
    table = _split_table(Dataset(Path(), rows, CLASSES))
    assert list(table) == ["train", "validation", "calibration", "test"]
    assert table["train"] == {"benign": 2, "malignant": 0, "normal": 0}
    assert table["test"] == {"benign": 0, "malignant": 0, "normal": 1}


def test_a_decoder_that_cannot_be_read_for_no_stated_reason_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(path: Path) -> None:
        raise OSError

    monkeypatch.setattr(report_examples, "load_file", refuses)
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    config = TrainConfig(backbone="tf_efficientnet_lite0", pretrain_size=64)
    (found,) = report_examples.mask_examples(config, [tmp_path / "black.png"], tmp_path / "pretrained.safetensors")
    assert found.reconstruction is None
    assert "cannot be read (OSError); the report shows masks" in caplog.text


def test_the_mask_examples_are_of_the_entropy_that_guided_and_need_no_decoder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = np.full((64, 64), 7, np.uint8)
    picture[:20] = rng.integers(0, 256, (20, 64))
    Image.fromarray(picture).save(tmp_path / "noise.png")
    base = {"backbone": "tf_efficientnet_lite0", "pretrain_size": 64, "entropy_patch": 32}
    found = {}
    for order, damage in ((1.0, 0), (2.0, 8)):
        config = TrainConfig(**base, renyi_order=order)  # type: ignore[arg-type]
        weights = save(_tensors(autoencoder(config, None, "")))
        write_atomic(tmp_path / "pretrained.safetensors", weights[: len(weights) - damage])
        kept = tmp_path / "pretrained.safetensors"
        (found[order],) = report_examples.mask_examples(config, [tmp_path / "noise.png"], kept)
    assert found[1.0].reconstruction is not None
    assert found[2.0].reconstruction is None  # fine-tuning needs that file no more, and the report is still written
    assert (found[2.0].entropy[0] < found[1.0].entropy[0] - 1).all()  # the flat part outweighs the noise
    assert (found[2.0].entropy[1] == 0).all()
