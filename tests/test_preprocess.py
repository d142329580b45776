"""The front end: equal to torch's own antialiased resize, in every direction, and normalised as timm does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgemed.preprocess import FrontEnd, resize_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOLERANCE = 1e-4  # of the scale 0..255


def _image(*shape: int) -> torch.Tensor:
    torch.set_num_threads(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (300, 517, 224),
        (96, 96, 128),  # enlarged
        (33, 1024, 64),  # enlarged and reduced at once
        (1, 1, 32),
        (640, 480, 96),
        (65, 63, 64),
        (64, 4096, 224),
    ],
)
def test_resize_is_torchs_antialiased_bilinear(height: int, width: int, size: int) -> None:
    """Compared in float64: in float32 torch's own result is up to 2e-3 away from it."""
    image = _image(2, height, width, 3)
    want = F.interpolate(image.permute(0, 3, 1, 2).double(), (size, size), mode="bilinear", antialias=True)
    got = FrontEnd(size, MEAN, STD).resized(image)
    assert got.dtype == torch.float32
    assert float((got - want).abs().max()) < TOLERANCE


def test_an_image_of_the_models_own_size_keeps_every_pixel_exactly() -> None:
    image = _image(3, 64, 64, 3)
    assert torch.equal(FrontEnd(64, MEAN, STD).resized(image), image.permute(0, 3, 1, 2).float())


def test_channels_stay_apart_and_rows_are_not_columns() -> None:
    image = torch.zeros(1, 40, 60, 3, dtype=torch.uint8)
    image[:, :20, :, 2] = 255  # the upper half is blue
    out = FrontEnd(32, MEAN, STD).resized(image)
    assert float(out[0, :2].abs().max()) == 0
    assert torch.allclose(out[0, 2, :14], torch.full((14, 32), 255.0), atol=TOLERANCE)
    assert float(out[0, 2, 18:].abs().max()) == 0


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 7), (7, 1), (224, 224), (4096, 224), (4095, 13)])
def test_weights_sum_to_one_are_not_negative_and_mirror(n_in: int, n_out: int) -> None:
    weights = resize_weights(n_in, n_out, torch.device("cpu"))
    assert torch.allclose(weights.sum(1), torch.ones(n_out), atol=1e-6)
    assert float(weights.min()) >= 0
    assert torch.allclose(weights, weights.flip(0, 1), atol=1e-7)


def test_normalisation_is_timms() -> None:
    front = FrontEnd(32, MEAN, STD)
    image = _image(1, 32, 32, 3)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    want = (image.permute(0, 3, 1, 2) / 255 - mean) / std
    assert torch.allclose(front(image), want, atol=1e-5)
