"""Copies are found, images that only look alike are not, and copies share a group."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("cv2", reason="extra train is not installed")

import cv2

from edgemed import duplicates
from edgemed.dataset import (
    SPLITS,
    Dataset,
    Row,
    join_near_duplicates,
    scan,
)
from edgemed.duplicates import duplicate_pairs, merged_groups, thumbnail
from edgemed.images import image_from_file
from edgemed.phantoms import phantom


def _save(path: Path, seed: int = 0, kind: str = "oval") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(phantom(kind, seed, 120, 150)).save(path)
    return path


def _csv(folder: Path, *lines: str) -> Path:
    path = folder / "data.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def _altered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A copy as they occur: cropped by up to 5 % per axis, rescaled, with calipers and text, re-encoded."""
    width, height = image.size
    left, right, top, bottom = rng.uniform(0, 0.025, 4)
    image = image.crop(
        (round(left * width), round(top * height), round(width - right * width), round(height - bottom * height))
    )
    scale = rng.uniform(0.7, 1.5)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    ends = rng.uniform(0.2, 0.8, (2, 2)) * image.size
    for x, y in ends:
        draw.line((x - 3, y, x + 3, y), fill="yellow")
        draw.line((x, y - 3, x, y + 3), fill="yellow")
    draw.line([tuple(end) for end in ends], fill="yellow")
    draw.text((5, image.height - 14), "R 10-11H", fill="white")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(50, 96)))
    return Image.open(buffer)


def _thumbnail(image: Image.Image) -> duplicates.Thumbnail:
    return thumbnail(np.asarray(image.convert("RGB")))


def test_altered_copies_are_joined_and_other_images_of_the_same_kind_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for k in range(12):
        original = Image.open(_save(tmp_path / "oval" / f"{k:02d}.png", k))
        label = "oval" if k < 10 else "none"
        _save(tmp_path / "none" / f"{k:02d}.png", k, "none")
        if k % 2 == 0:
            _altered(original.convert("RGB"), rng).save(tmp_path / label / f"copy-{k:02d}.jpg", quality=90)
    joined, pairs = join_near_duplicates(scan(tmp_path))
    assert {(pair.a, pair.b, pair.conflicting) for pair in pairs} == {
        (f"oval/{k:02d}.png", f"oval/copy-{k:02d}.jpg", False) for k in range(0, 10, 2)
    } | {("none/copy-10.jpg", "oval/10.png", True)}
    assert all(0.5 <= pair.correlation <= 1 for pair in pairs)
    groups = {row.path: row.group for row in joined.rows}
    assert groups["oval/04.png"] == groups["oval/copy-04.jpg"] and len(set(groups.values())) == 24
    [warning] = [warning for warning in joined.warnings if "different labels" in warning]
    assert "duplicates.json" in warning and ".jpg" not in warning  # run.json repeats it, and names no image


def test_a_copy_merges_the_groups_of_two_patients_and_a_large_one_is_reported(tmp_path: Path) -> None:
    lines = ["path,label,group"]
    for k in range(12):
        _save(tmp_path / f"{k}.png", k, "oval" if k < 6 else "none")
        lines.append(f"{k}.png,{'oval' if k < 6 else 'none'},patient {k // 2}")
    Image.open(tmp_path / "1.png").save(tmp_path / "2.png")  # patients 0 and 1 share a picture, byte for byte
    joined, pairs = join_near_duplicates(scan(_csv(tmp_path, *lines)))
    assert [(pair.a, pair.b, pair.correlation) for pair in pairs] == [("1.png", "2.png", 1.0)]
    assert Counter(row.group for row in joined.rows if row.label == "oval") == {"patient 0": 4, "patient 2": 2}
    assert [warning for warning in joined.warnings if "4 of 6 images of class 'oval'" in warning]


def test_copies_of_the_owners_test_images_are_left_out_of_the_other_splits(tmp_path: Path) -> None:
    lines = ["path,label,group,split"]
    for k in range(9):  # 7 and 8 are copies of 1 and 2, in an earlier split; 0 is of the same patient as 7
        _save(tmp_path / f"{k}.png", k if k < 7 else k - 6)
        split, group = SPLITS[k % 3] if k < 7 else SPLITS[0], "p" if k in (0, 7) else f"g{k}"
        lines.append(f"{k}.png,{'ab'[k % 2]},{group},{split}")
    joined, pairs = join_near_duplicates(scan(_csv(tmp_path, *lines)))
    assert [(pair.a, pair.b) for pair in pairs] == [("1.png", "7.png"), ("2.png", "8.png")]
    assert [row.path for row in joined.rows] == [f"{k}.png" for k in range(1, 7)]
    assert all(row.split == SPLITS[k % 3] for k, row in enumerate(joined.rows, start=1))
    [warning] = [warning for warning in joined.warnings if "left out" in warning]
    assert "3 images are left out (3 of train)" in warning


def test_a_test_image_whose_copy_was_left_out_with_another_label_is_warned_of(tmp_path: Path) -> None:
    """The label that judges may be the wrong one of the two."""
    lines = ["path,label,split"]
    for k in range(5):  # 4 is a copy of 2, which tests, with the other label
        _save(tmp_path / f"{k}.png", k % 4 if k < 4 else 2)
        lines.append(f"{k}.png,{'ab'[k // 2 % 2] if k < 4 else 'a'},{'test' if k == 2 else 'train'}")
    dataset = replace(scan(_csv(tmp_path, *lines)), warnings=("of the scan",))
    joined, pairs = join_near_duplicates(dataset)
    assert [(pair.a, pair.b, pair.conflicting) for pair in pairs] == [("2.png", "4.png", True)]
    assert joined.warnings[0] == "of the scan"
    assert "1 near-duplicate pairs carry different labels" in joined.warnings[1]
    assert "1 images are left out" in joined.warnings[2]


def _clouds(seed: int) -> np.ndarray:
    """(160, 200, 3) of smooth noise on three scales: its hash changes more with a crop than a phantom's does."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(size=(160, 200)), (0, 0), sigma) for sigma in (2, 5, 12)]
    grey = np.clip(128 + 30 * sum(layer / layer.std() for layer in layers), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def test_crops_by_a_twentieth_of_every_side_are_joined() -> None:
    """Their hash is that of their original's middle; that of the whole is too far away for some."""
    images = [_clouds(k) for k in range(40)]
    crops = [image[8:-8, 10:-10] for image in images]
    found = duplicate_pairs([thumbnail(image) for image in (*images, *crops)])
    assert [(i, j) for i, j, _ in found] == [(k, k + 40) for k in range(40)]


def test_of_images_that_are_too_small_to_tell_only_equal_ones_are_joined(tmp_path: Path) -> None:
    for k in range(4):
        picture = Image.fromarray(phantom("oval", 0, 160, 160)).resize((28 + k, 28))
        (tmp_path / "ab"[k % 2]).mkdir(exist_ok=True)
        picture.save(tmp_path / "ab"[k % 2] / f"{k}.png")
    (tmp_path / "a" / "copy.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    joined, pairs = join_near_duplicates(scan(tmp_path))
    assert [(pair.a, pair.b) for pair in pairs] == [("a/0.png", "a/copy.png")]
    assert [warning for warning in joined.warnings if "5 images have a side below 48 pixels" in warning]


def test_a_search_in_blocks_finds_what_one_block_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    images = [Image.fromarray(phantom("oval", k, 120, 150)) for k in range(9)]
    thumbnails = [_thumbnail(image) for image in (*images, *(_altered(image, rng) for image in images))]
    found = duplicate_pairs(thumbnails)
    assert [(i, j) for i, j, _ in found] == [(k, k + 9) for k in range(9)]
    monkeypatch.setattr(duplicates, "_BLOCK", 4)
    assert duplicate_pairs(thumbnails) == found


def test_a_pair_is_named_by_its_place_among_all_images_where_others_are_equal() -> None:
    image = Image.fromarray(phantom("oval", 1, 120, 150))
    other = _thumbnail(Image.fromarray(phantom("oval", 2, 120, 150)))
    found = duplicate_pairs([other, other, _thumbnail(image), _thumbnail(_altered(image, np.random.default_rng(0)))])
    assert [(i, j) for i, j, _ in found] == [(0, 1), (2, 3)]


def test_two_sets_are_compared_with_each_other_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (duplicates.thumbnail(_clouds(k)) for k in range(3))
    near = first.copy()
    near[:20, :20] = 255  # a mark
    assert duplicates.shown_in([first, second, first], [near, third]) == [True, False, True]
    for images in ([first, near, second], [near, first, second]):  # an exact copy does not hide a nearly equal one
        assert duplicates.shown_in(images, [third, first]) == [True, True, False]
    assert duplicates.shown_in([first, near], [third, third]) == [False, False]
    compared: list[object] = []
    monkeypatch.setattr(duplicates, "_confirmation", lambda *given: compared.append(given) or 1.0)
    assert duplicates.shown_in([first, near], [third]) == [False, False] and not compared


def test_merged_groups_take_the_name_that_sorts_first() -> None:
    assert merged_groups(["c", "b", "a", "d"], [(0, 1), (1, 2)]) == ["a", "a", "a", "d"]


def test_nothing_but_the_same_small_mark_makes_no_copies() -> None:
    marked = [np.full((96, 96), value, np.uint8) for value in (100, 140)]
    for image in marked:
        image[48, 48] += 60
    assert duplicate_pairs(marked) == []


@pytest.mark.parametrize(("others", "reported"), [(47, True), (57, False)])
def test_a_large_group_is_one_of_its_own_class_however_many_images_there_are(others: int, reported: bool) -> None:
    rng = np.random.default_rng(0)
    labels = "a" * (3 + others) + "b" * 40
    rows = tuple(Row(f"{k}.png", label, f"{k}", "") for k, label in enumerate(labels))
    pictures = [np.zeros((96, 96), np.uint8)] * 3 + [rng.integers(0, 256, (96, 96), np.uint8) for _ in labels[3:]]
    thumbnails = {row.path: picture for row, picture in zip(rows, pictures, strict=True)}
    joined, _ = join_near_duplicates(Dataset(Path(), rows, ("a", "b"), thumbnails=thumbnails))
    said = f"near-duplicates joined 3 of {3 + others} images of class 'a'"
    assert [warning.startswith(said) for warning in joined.warnings] == [True] * reported


def test_a_black_background_neither_hides_a_copy_nor_makes_one() -> None:
    rng = np.random.default_rng(0)
    sector = np.hypot(*np.mgrid[-30:130, -80:80]) < 55  # what a probe sees, a third of the picture
    images = [Image.fromarray(np.where(sector[:, :, None], phantom("none", k), 0).astype(np.uint8)) for k in range(6)]
    copies = [_altered(image, rng) for image in images[:3]]
    found = duplicate_pairs([_thumbnail(image) for image in (*images, *copies)])
    assert [(i, j) for i, j, _ in found] == [(0, 6), (1, 7), (2, 8)]


def test_flat_images_are_copies_only_when_equal() -> None:
    flat = [np.full((96, 96), value, np.uint8) for value in (0, 0, 128, 255, 128)]
    assert duplicate_pairs(flat) == [(0, 1, 1.0), (2, 4, 1.0)]


def _real(folder: Path, count: int) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in {".png", ".jpg"})
    return [files[k] for k in np.random.default_rng(1).permutation(len(files))[:count]]


@pytest.mark.parametrize("name", ["busi", "chest_xray", "ham10000", "hyperkvasir5"])
def test_at_least_95_of_100_altered_copies_of_real_images_are_found(real_images: Path, name: str) -> None:
    rng = np.random.default_rng(2)
    found = 0
    for file in _real(real_images / name, 60):
        image = Image.fromarray(image_from_file(file))
        found += len(duplicate_pairs([_thumbnail(image), _thumbnail(_altered(image, rng))]))
    assert found >= 0.95 * 60


def _lesions(folder: Path) -> dict[str, tuple[str, ...]]:
    with (folder / "HAM10000_metadata.csv").open() as table:
        return {row["image_id"]: (row["lesion_id"], row["age"], row["sex"]) for row in csv.DictReader(table)}


def test_other_lesions_are_not_joined_although_dermoscopy_images_look_alike(real_images: Path) -> None:
    files = _real(real_images / "ham10000", 500)
    lesions = _lesions(real_images / "ham10000")
    pairs = duplicate_pairs([thumbnail(image_from_file(file)) for file in files])
    assert not [(i, j) for i, j, _ in pairs if lesions[files[i].stem][0] != lesions[files[j].stem][0]]


def _aligned_details(a: Path, b: Path) -> float:
    """The correlation of fine details of two pictures of one size, laid on each other: not by the finder's own ways.

    Of the pixels as they are, where the finder sees 96 x 96. Unrelated skin images that could be aligned had up to 0.2.
    """
    x, y = (cv2.cvtColor(image_from_file(file), cv2.COLOR_RGB2GRAY).astype(np.float32) for file in (a, b))
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-5)
    try:
        _, fit = cv2.findTransformECC(x, y, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, stop, None, 5)
    except cv2.error:  # nothing to lay on each other
        return 0.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen = cv2.warpAffine(np.ones_like(y), fit, x.shape[::-1], flags=flags) > 0.99
    laid = cv2.warpAffine(y, fit, x.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    x, y = (cv2.GaussianBlur(each, (0, 0), 0.7) - cv2.GaussianBlur(each, (0, 0), 3) for each in (x, laid))
    return float(np.corrcoef(x[seen], y[seen])[0, 1]) if seen.mean() > 0.5 else 0.0


@pytest.mark.slow
def test_in_all_of_ham10000_only_the_same_picture_joins_two_lesions(real_images: Path) -> None:
    """Twelve images, 0.12 %, are six pictures with two lesion ids each; age and sex agree in all six."""
    files = _real(real_images / "ham10000", 20_000)
    lesions = _lesions(real_images / "ham10000")
    pairs = duplicate_pairs([thumbnail(image_from_file(file)) for file in files])
    across = [(files[i], files[j]) for i, j, _ in pairs if lesions[files[i].stem][0] != lesions[files[j].stem][0]]
    assert across
    assert [(a.stem, b.stem) for a, b in across if _aligned_details(a, b) < 0.4] == []
    assert all(lesions[a.stem][1:] == lesions[b.stem][1:] for a, b in across)
    others = [(a, d) for (a, _), (_, d) in zip(across, across[1:] + across[:1], strict=True)]
    assert all(_aligned_details(*pair) < 0.25 for pair in others)
