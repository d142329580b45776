"""What `edgemed.loader` does to an image: resize, crop, flips, grey levels, rotation, formats; for both backends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

torch = pytest.importorskip("torch")
from loader_data import (  # noqa: E402
    SIZE,
    both_backends,
    by_index,
    levels_apart,
    needs_dali,
    opened,
    same_epoch,
    smooth,
    write_images,
    write_one,
)

from edgemed.images import image_from_file  # noqa: E402
from edgemed.loader import Augment, Batch, open_loader  # noqa: E402

STILL = Augment(scale=(1, 1), ratio=(1, 1), hflip=False, vflip=False, rotate=0, brightness=0, contrast=0)


@both_backends
def test_without_augmentation_every_image_once_in_order_antialiased(tmp_path: Path, backend: str) -> None:
    files = write_images(tmp_path, 7)
    noise = np.random.default_rng(0).integers(0, 256, (150, 130, 3), dtype=np.uint8)  # shows a missing antialias
    Image.fromarray(noise).save(files[1])
    loader = opened(files, backend, None, batch=3)
    assert [b.indices.tolist() for b in loader.epoch(5)] == [[0, 1, 2], [3, 4, 5], [6]] and loader.steps == 3
    for index, image in by_index(loader.epoch(0)).items():
        source = torch.from_numpy(image_from_file(files[index])).permute(2, 0, 1)[None].float()
        expected = torch.nn.functional.interpolate(source, (SIZE, SIZE), mode="bilinear", antialias=True)
        apart = levels_apart(image, expected[0].permute(1, 2, 0).numpy())
        assert apart[1:-1, 1:-1].max() < 1.5
        assert apart.mean() < 0.6  # the outermost ring on pure noise: DALI's filter repeats the border
    ranks = [by_index(opened(files, backend, None, batch=3, rank=rank, world=2).epoch(0)) for rank in (0, 1)]
    assert sorted([*ranks[0], *ranks[1]]) == list(range(7))


@needs_dali
@pytest.mark.parametrize("augment", [Augment(), Augment(scale=(0.1, 0.9), vflip=True, rotate=90), None])
def test_backends_do_the_same_to_each_image(tmp_path: Path, augment: Augment | None) -> None:
    files = write_images(tmp_path, 12)
    dali, plain = (by_index(opened(files, name, augment).epoch(1)) for name in ("dali", "torch"))
    assert list(dali) == list(plain)
    assert max(levels_apart(dali[i], plain[i]).mean() for i in dali) < 0.5
    assert max(np.quantile(levels_apart(dali[i], plain[i]), 0.999) for i in dali) <= 2


@needs_dali
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gives_the_images_of_the_cpu(tmp_path: Path) -> None:
    files = write_images(tmp_path, 12)
    options = {"size": SIZE, "batch": 4, "seed": 7, "augment": Augment(), "backend": "dali"}
    loader = open_loader(files, list(range(12)), device="cuda", **options)
    batches = list(loader.epoch(1))
    assert "cuda" in loader.reason and all(x.is_cuda for batch in batches for x in batch)
    seen = by_index(Batch(*(x.cpu() for x in batch)) for batch in batches)
    expected = by_index(opened(files, "dali", Augment()).epoch(1))
    assert seen.keys() == expected.keys()
    assert max(levels_apart(seen[i], expected[i]).mean() for i in seen) < 1.5  # nvJPEG rounds otherwise
    assert same_epoch(batches, loader.epoch(1))


@needs_dali
def test_backends_agree_on_real_images(real_images: Path) -> None:
    files = sorted((real_images / "busi").rglob("*.png"))[::40]
    dali, plain = (by_index(opened(files, name, Augment(), size=96).epoch(0)) for name in ("dali", "torch"))
    assert len(dali) >= 12
    assert max(levels_apart(dali[i], plain[i]).mean() for i in dali) < 0.5


@both_backends
def test_flips_mirror_half_of_the_images(tmp_path: Path, backend: str) -> None:
    image = smooth(1, SIZE, SIZE)  # of the output's size: the resize changes nothing
    files = write_one(tmp_path, image, copies=64)
    for augment, mirrored in (
        (Augment(**{**vars(STILL), "hflip": True}), image[:, ::-1]),
        (Augment(**{**vars(STILL), "vflip": True}), image[::-1]),
    ):
        seen = by_index(opened(files, backend, augment).epoch(0)).values()
        kept = sum(np.array_equal(x, image) for x in seen)
        assert kept + sum(np.array_equal(x, mirrored) for x in seen) == 64
        assert 16 <= kept <= 48  # 4 standard deviations
    assert all(np.array_equal(x, image) for x in by_index(opened(files, backend, STILL).epoch(0)).values())


@both_backends
def test_crops_stay_inside_with_area_and_relative_aspect_in_range(tmp_path: Path, backend: str) -> None:
    height, width = 100, 200
    y, x = np.mgrid[0:height, 0:width]
    place = np.stack([x * 255 / width, y * 255 / height, 0 * x], axis=2).astype(np.uint8)  # red = x, green = y
    files = write_one(tmp_path, place, copies=60)
    augment = Augment(**{**vars(STILL), "scale": (0.3, 0.7), "ratio": (0.5, 2.0)})
    found = []
    for image in by_index(opened(files, backend, augment).epoch(0)).values():
        shown = image.astype(float)
        middle = SIZE // 2
        # From a quarter to three quarters of the output is half of the crop; edges would be rounded by the filter.
        wide = 2 * (shown[middle, 3 * SIZE // 4, 0] - shown[middle, SIZE // 4, 0]) / 255
        high = 2 * (shown[3 * SIZE // 4, middle, 1] - shown[SIZE // 4, middle, 1]) / 255
        found.append((wide * high, wide / high))
    area, aspect = np.array(found).T
    assert 0.3 * 0.95 <= area.min() < 0.4 and 0.6 < area.max() <= 0.7 * 1.05
    assert 0.5 * 0.95 <= aspect.min() < 0.75 and 1.4 < aspect.max() <= 2.0 * 1.05


@both_backends
def test_brightness_scales_all_levels_and_contrast_turns_about_128(tmp_path: Path, backend: str) -> None:
    levels = np.repeat(np.array([40, 128, 160], np.uint8), SIZE // 3)
    files = write_one(
        tmp_path, np.ascontiguousarray(np.broadcast_to(levels[None, :, None], (SIZE, SIZE, 3))), copies=32
    )

    def seen(**change: float) -> NDArray[np.float64]:  # (32, 3): the mean of each stripe
        images = by_index(opened(files, backend, Augment(**{**vars(STILL), **change})).epoch(0)).values()
        return np.array([[image[:, at].mean() for at in (4, 24, 44)] for image in images])

    bright = seen(brightness=0.3)
    assert np.abs(bright / [40, 128, 160] - bright[:, 1:2] / 128).max() < 0.02  # one factor for all levels
    factors = bright[:, 1] / 128
    assert 0.7 - 0.01 <= factors.min() < 0.8 and 1.2 < factors.max() <= 1.3 + 0.01
    contrast = seen(contrast=0.3)
    assert np.array_equal(contrast[:, 1], np.full(32, 128.0))
    factors = (contrast[:, 2] - contrast[:, 0]) / 120
    assert 0.7 - 0.01 <= factors.min() < 0.8 and 1.2 < factors.max() <= 1.3 + 0.01


@both_backends
def test_rotation_turns_both_ways_within_its_range_and_leaves_black_corners(tmp_path: Path, backend: str) -> None:
    image = np.full((SIZE, SIZE, 3), 60, np.uint8)
    image[22:26, 38:42] = 255  # right of the centre
    files = write_one(tmp_path, image, copies=40)
    angles = []
    for turned in by_index(opened(files, backend, Augment(**{**vars(STILL), "rotate": 30})).epoch(0)).values():
        spot = np.clip(turned[..., 0].astype(float) - 60, 0, None)
        y, x = (np.average(grid, weights=spot) - (SIZE - 1) / 2 for grid in np.mgrid[0:SIZE, 0:SIZE])
        assert abs(np.hypot(x, y) - 16) < 0.12  # about the centre: it keeps its distance
        angles.append(float(np.degrees(np.arctan2(-y, x))))
        assert turned[SIZE // 2, 2:8].tolist() == [[60] * 3] * 6 or abs(angles[-1]) > 15
        if abs(angles[-1]) > 10:
            assert turned[0, 0].max() == turned[-1, -1].max() == 0
    assert -31 < min(angles) < -20 and 20 < max(angles) < 31


@both_backends
def test_all_formats_come_out_by_the_rules_of_images(tmp_path: Path, backend: str) -> None:
    rgb, rng = smooth(3, SIZE, SIZE), np.random.default_rng(5)
    grey16 = rng.integers(0, 65536, (SIZE, SIZE)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to show
    cases = {
        "rotated.jpg": (Image.fromarray(rgb), {"exif": exif}),
        "rgb.jpg": (Image.fromarray(rgb), {}),
        "grey.jpg": (Image.fromarray(rgb).convert("L"), {}),
        "progressive.jpg": (Image.fromarray(rgb), {"progressive": True}),
        "cmyk.jpg": (Image.fromarray(rgb).convert("CMYK"), {}),
        "deep.png": (Image.fromarray(grey16), {}),
        "grey.png": (Image.fromarray(rgb).convert("L"), {}),
        "rgba.png": (Image.fromarray(np.dstack([rgb, rgb[..., :1]])), {}),
        "palette.png": (Image.fromarray(rgb).quantize(16), {}),
        "bits.png": (Image.fromarray(rgb).convert("1"), {}),
        "plain.bmp": (Image.fromarray(rgb), {}),
        "deep.tiff": (Image.fromarray(grey16), {}),
    }
    for name, (image, options) in cases.items():
        image.save(tmp_path / name, **options)
    files = [tmp_path / name for name in cases]
    for _ in range(2):  # the second time from memory
        for index, image in by_index(opened(files, backend, None).epoch(0)).items():
            assert np.array_equal(image, image_from_file(files[index])), files[index].name
    assert not np.array_equal(image_from_file(files[0]), image_from_file(files[1]))
