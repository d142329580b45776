"""What training relies on in `edgemed.loader`: each fact for DALI and for the torch side."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

torch = pytest.importorskip("torch")
from edgemed import loader_dali  # noqa: E402
from edgemed.errors import InputError  # noqa: E402
from edgemed.images import image_from_file  # noqa: E402
from edgemed.loader import Augment, Batch, Loader, open_loader  # noqa: E402

REAL = Path(__file__).parents[2] / "shared" / "data" / "busi"
STILL = Augment(scale=(1, 1), ratio=(1, 1), hflip=False, vflip=False, rotate=0, brightness=0, contrast=0)
SIZE = 48


@pytest.fixture(params=["dali", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    torch.set_num_threads(1)
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="nvidia.dali is not installed")
    return str(request.param)


def smooth(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """A colour image without sharp edges, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_images(folder: Path, count: int) -> list[Path]:
    files = []
    for i in range(count):
        files.append(folder / f"{i:02}.{'jpg' if i % 3 == 0 else 'png'}")
        Image.fromarray(smooth(i, 60 + 7 * i % 40, 70 + 11 * i % 30)).save(files[-1])
    return files


def write_one(folder: Path, image: NDArray[np.uint8], copies: int = 1) -> list[Path]:
    """The same image as several files of a data set, so that one epoch shows several draws."""
    Image.fromarray(image).save(folder / "one.png")
    return [folder / "one.png"] * copies


def opened(files: list[Path], backend: str, augment: Augment | None, **options: int) -> Loader:
    settings = {"size": SIZE, "batch": 4, "seed": 7, **options}
    return open_loader(files, list(range(len(files))), augment=augment, backend=backend, **settings)


def by_index(batches: Iterable[Batch]) -> dict[int, NDArray[np.uint8]]:
    """The image of each file of an epoch; fails when one comes twice or with another file's label."""
    found: dict[int, NDArray[np.uint8]] = {}
    for images, labels, indices in batches:
        assert images.dtype == torch.uint8 and len(images) == len(labels) == len(indices)
        assert labels.tolist() == indices.tolist()
        for index, image in zip(indices.tolist(), images.numpy(), strict=True):
            assert index not in found
            found[index] = image
    return found


def levels_apart(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.abs(a.astype(np.float64) - b.astype(np.float64))


def same_epoch(a: Iterable[Batch], b: Iterable[Batch]) -> bool:
    return all(torch.equal(x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


def test_an_epoch_is_the_same_whoever_makes_it_and_whenever(tmp_path: Path, backend: str) -> None:
    files = write_images(tmp_path, 12)
    loader = opened(files, backend, Augment())
    first, other = list(loader.epoch(3)), list(loader.epoch(4))
    assert same_epoch(first, loader.epoch(3))  # again, after another epoch
    assert same_epoch(first, opened(files, backend, Augment(), threads=1).epoch(3))  # a restarted process
    left, right = loader.epoch(3), loader.epoch(4)  # two at once
    assert same_epoch([b for pair in zip(left, right, strict=True) for b in pair],
                      [b for pair in zip(first, other, strict=True) for b in pair])  # fmt: skip
    half = loader.epoch(4)
    next(half)
    del half  # one that was left in the middle
    assert same_epoch(first, loader.epoch(3))
    assert not same_epoch(first, opened(files, backend, Augment(), seed=8).epoch(3))
    assert [b.indices.tolist() for b in first] != [b.indices.tolist() for b in other]
    assert all((levels_apart(image, by_index(other)[i]).mean() > 1) for i, image in by_index(first).items())


def test_order_and_draws_are_pinned(tmp_path: Path, backend: str) -> None:
    """A change here would make every resumed run differ from an undisturbed one: never change it silently."""
    ramp = np.arange(SIZE, dtype=np.uint8) * 5
    files = write_one(tmp_path, np.ascontiguousarray(np.broadcast_to(ramp[None, :, None], (SIZE, SIZE, 3))), copies=6)
    (batch,) = opened(files, backend, Augment(rotate=0, brightness=0, contrast=0), batch=6).epoch(1)
    assert batch.indices.tolist() == [5, 2, 3, 0, 1, 4]
    edges = batch.images[:, 0, [0, -1], 0].numpy().astype(int)  # where each crop begins and ends, and whether it flips
    assert np.abs(edges - [[17, 232], [206, 25], [0, 234], [228, 15], [224, 7], [27, 225]]).max() <= 1


def test_ranks_share_each_step_of_one_rank_and_draw_alike(tmp_path: Path, backend: str) -> None:
    files = write_images(tmp_path, 13)  # one file too many for two ranks, and one step too many for full batches
    alone = list(opened(files, backend, Augment(), batch=6).epoch(2))
    ranks = [opened(files, backend, Augment(), batch=3, rank=rank, world=2) for rank in (0, 1)]
    assert ranks[0].steps == ranks[1].steps == len(alone) == 2
    for whole, a, b in zip(alone, ranks[0].epoch(2), ranks[1].epoch(2), strict=True):
        mine, parts = by_index([whole]), by_index([a, b])  # by_index fails on an overlap
        assert mine.keys() == parts.keys()
        assert all(np.array_equal(mine[i], parts[i]) for i in mine)


def test_steps_of_training_drop_a_short_batch_but_not_the_only_one(tmp_path: Path, backend: str) -> None:
    files = write_images(tmp_path, 7)
    loader = opened(files, backend, Augment(), batch=3)
    assert [len(b.images) for b in loader.epoch(0)] == [3, 3] and loader.steps == 2
    loader = opened(files, backend, Augment(), batch=8)
    assert [len(b.images) for b in loader.epoch(0)] == [7] and loader.steps == 1
    seen = set().union(*(by_index(opened(files, backend, Augment(), batch=3).epoch(k)) for k in range(6)))
    assert seen == set(range(7))  # what one epoch leaves out, another takes


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


@pytest.mark.parametrize("augment", [Augment(), Augment(scale=(0.1, 0.9), vflip=True, rotate=90), None])
def test_backends_do_the_same_to_each_image(tmp_path: Path, augment: Augment | None) -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia.dali is not installed")
    files = write_images(tmp_path, 12)
    dali, plain = (by_index(opened(files, name, augment).epoch(1)) for name in ("dali", "torch"))
    assert list(dali) == list(plain)
    assert max(levels_apart(dali[i], plain[i]).mean() for i in dali) < 0.5
    assert max(np.quantile(levels_apart(dali[i], plain[i]), 0.999) for i in dali) <= 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gives_the_images_of_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia.dali is not installed")
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


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not here")
def test_backends_agree_on_real_images() -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia.dali is not installed")
    files = sorted(REAL.rglob("*.png"))[::40]
    dali, plain = (by_index(opened(files, name, Augment(), size=96).epoch(0)) for name in ("dali", "torch"))
    assert len(dali) >= 12
    assert max(levels_apart(dali[i], plain[i]).mean() for i in dali) < 0.5


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


def test_rotation_turns_both_ways_within_its_range_and_leaves_black_corners(tmp_path: Path, backend: str) -> None:
    image = np.full((SIZE, SIZE, 3), 60, np.uint8)
    image[22:26, 38:42] = 255  # right of the centre
    files = write_one(tmp_path, image, copies=40)
    angles = []
    for turned in by_index(opened(files, backend, Augment(**{**vars(STILL), "rotate": 30})).epoch(0)).values():
        spot = np.clip(turned[..., 0].astype(float) - 60, 0, None)
        y, x = (np.average(grid, weights=spot) - (SIZE - 1) / 2 for grid in np.mgrid[0:SIZE, 0:SIZE])
        assert abs(np.hypot(x, y) - 16) < 0.3  # about the centre: it keeps its distance
        angles.append(float(np.degrees(np.arctan2(-y, x))))
        assert turned[SIZE // 2, 2:8].tolist() == [[60] * 3] * 6 or abs(angles[-1]) > 15
        if abs(angles[-1]) > 10:
            assert turned[0, 0].max() == turned[-1, -1].max() == 0
    assert -31 < min(angles) < -20 and 20 < max(angles) < 31


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


@pytest.mark.parametrize(
    "damage", ["half a JPEG", "JPEG without its end", "half a PNG", "a changed byte", "text", "gone"]
)
def test_a_damaged_file_in_the_middle_is_named(tmp_path: Path, backend: str, damage: str) -> None:
    files = write_images(tmp_path, 12)
    bad = files[5] if "PNG" in damage or damage == "a changed byte" else files[6]
    data = bytearray(bad.read_bytes())
    if damage == "gone":
        bad.unlink()
    elif damage == "a changed byte":
        data[len(data) // 2] ^= 255
        bad.write_bytes(data)
    else:
        kept = {"JPEG without its end": len(data) - 40, "text": 0}.get(damage, len(data) // 2)
        bad.write_bytes(bytes(data[:kept]) or b"not an image")
    loader = opened(files, backend, None, batch=3)
    batches = loader.epoch(0)
    with pytest.raises(InputError, match=bad.name) as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert not any(file.name in str(caught.value) for file in files if file != bad)
    Image.fromarray(smooth(0, 50, 50)).save(bad)  # repaired: the same loader goes on
    assert len(by_index(opened(files, backend, None, batch=3).epoch(0))) == 12


def test_dali_keeps_files_in_memory_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia.dali is not installed")
    files = write_images(tmp_path, 4)
    kept = opened(files, "dali", None)
    first = list(kept.epoch(0))
    monkeypatch.setattr(loader_dali, "MEMORY_LIMIT", files[0].stat().st_size)
    unkept = opened(files, "dali", None)
    assert same_epoch(first, unkept.epoch(0))
    for file in files:
        file.unlink()
    monkeypatch.undo()
    assert same_epoch(first, kept.epoch(1))
    with pytest.raises(InputError, match=files[1].name):  # the first fitted, the second was read again
        list(unkept.epoch(1))


def test_the_reason_says_which_backend_runs_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_images(tmp_path, 2)
    assert opened(files, "torch", None).reason == "torch: asked for by name"
    dali = pytest.importorskip("nvidia.dali", reason="nvidia.dali is not installed")
    loader = opened(files, "auto", None)
    assert (loader.backend, loader.reason) == ("dali", f"DALI {dali.__version__}, CPU decoding")
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # what an import finds where it is not installed
    loader = opened(files, "auto", None)
    assert (loader.backend, loader.reason) == ("torch", "torch: nvidia.dali is not installed")
    assert len(by_index(loader.epoch(0))) == 2
    with pytest.raises(InputError, match="pip install nvidia-dali-cuda130"):
        opened(files, "dali", None)


def test_arguments_that_cannot_work_are_refused_by_name(tmp_path: Path) -> None:
    files = write_images(tmp_path, 2)
    with pytest.raises(InputError, match="Did you mean 'torch'"):
        opened(files, "torhc", None)
    for wrong in ({"size": 0}, {"batch": 0}, {"threads": 0}, {"seed": -1}, {"rank": 2, "world": 2}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
            opened(files, "torch", None, **wrong)
    with pytest.raises(InputError, match="2 files cannot be shared by 3 ranks"):
        opened(files, "torch", Augment(), world=3)
    with pytest.raises(InputError, match="2 files and 1 labels"):
        open_loader(files, [0], size=8, batch=1, augment=None, seed=0)
    for name, value in (("scale", (0.0, 1.0)), ("ratio", (2.0, 1.0)), ("rotate", 181.0), ("brightness", -0.1)):
        with pytest.raises(InputError, match=name):
            Augment(**{name: value})  # type: ignore[arg-type]
