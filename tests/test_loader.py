"""What training relies on in `edgemed.loader`: order, ranks, repeatability, errors. Pixels: test_loader_pixels.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
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

from edgemed import loader_torch  # noqa: E402
from edgemed.errors import InputError  # noqa: E402
from edgemed.images import image_from_file  # noqa: E402
from edgemed.loader import Augment, open_loader  # noqa: E402


@both_backends
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


@both_backends
def test_order_and_draws_are_pinned(tmp_path: Path, backend: str) -> None:
    """A change here would make every resumed run differ from an undisturbed one: never change it silently."""
    ramp = np.arange(SIZE, dtype=np.uint8) * 5
    files = write_one(tmp_path, np.ascontiguousarray(np.broadcast_to(ramp[None, :, None], (SIZE, SIZE, 3))), copies=6)
    (batch,) = opened(files, backend, Augment(rotate=0, brightness=0, contrast=0), batch=6).epoch(1)
    assert batch.indices.tolist() == [5, 2, 3, 0, 1, 4]
    edges = batch.images[:, 0, [0, -1], 0].numpy().astype(int)  # where each crop begins and ends, and whether it flips
    assert np.abs(edges - [[17, 232], [206, 25], [0, 234], [228, 15], [224, 7], [27, 225]]).max() <= 1


@both_backends
def test_ranks_share_each_step_of_one_rank_and_draw_alike(tmp_path: Path, backend: str) -> None:
    files = write_images(tmp_path, 13)  # one file too many for two ranks, and one step too many for full batches
    alone = list(opened(files, backend, Augment(), batch=6).epoch(2))
    ranks = [opened(files, backend, Augment(), batch=3, rank=rank, world=2) for rank in (0, 1)]
    assert ranks[0].steps == ranks[1].steps == len(alone) == 2
    for whole, a, b in zip(alone, ranks[0].epoch(2), ranks[1].epoch(2), strict=True):
        mine, parts = by_index([whole]), by_index([a, b])  # by_index fails on an overlap
        assert mine.keys() == parts.keys()
        assert all(np.array_equal(mine[i], parts[i]) for i in mine)


@both_backends
def test_steps_of_training_drop_a_short_batch_but_not_the_only_one(tmp_path: Path, backend: str) -> None:
    files = write_images(tmp_path, 7)
    loader = opened(files, backend, Augment(), batch=3)
    assert [len(b.images) for b in loader.epoch(0)] == [3, 3] and loader.steps == 2
    loader = opened(files, backend, Augment(), batch=8)
    assert [len(b.images) for b in loader.epoch(0)] == [7] and loader.steps == 1
    seen = set().union(*(by_index(opened(files, backend, Augment(), batch=3).epoch(k)) for k in range(6)))
    assert seen == set(range(7))  # what one epoch leaves out, another takes


@both_backends
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
    Image.fromarray(smooth(0, 50, 50)).save(bad)  # the next command finds it repaired
    assert len(by_index(opened(files, backend, None, batch=3).epoch(0))) == 12


@both_backends
def test_a_loader_remembers_files_up_to_its_limit(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DALI keeps them as they are, torch decoded."""
    files = write_images(tmp_path, 4)
    kept = opened(files, backend, None)
    first = list(kept.epoch(0))
    size = files[0].stat().st_size if backend == "dali" else image_from_file(files[0]).nbytes
    monkeypatch.setattr(loader_torch, "MEMORY_LIMIT", size)
    unkept = opened(files, backend, None, threads=1)
    assert same_epoch(first, unkept.epoch(0))
    for file in files:
        file.unlink()
    monkeypatch.undo()
    assert same_epoch(first, kept.epoch(1))
    with pytest.raises(InputError, match=files[1].name):  # the first fitted, the second was read again
        list(unkept.epoch(1))


@needs_dali
@pytest.mark.parametrize(("asked", "why"), [("auto", "installed, the first choice"), ("dali", "asked for by name")])
def test_dali_runs_and_the_reason_says_why(tmp_path: Path, asked: str, why: str) -> None:
    loader = opened(write_images(tmp_path, 2), asked, None)
    version = __import__("nvidia.dali").dali.__version__
    assert (loader.backend, loader.reason) == ("dali", f"DALI {version}, CPU decoding: {why}")


def test_without_dali_torch_runs_and_the_reason_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_images(tmp_path, 2)
    assert opened(files, "torch", None).reason == "torch: asked for by name"
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # an import finds nothing, as where it is not installed
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
