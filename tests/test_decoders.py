"""Which rule of edgemed's own a file is read by, and what a plain decoder makes of what it cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_cases import COLOUR, DEEP, encoded, turned
from PIL import Image

from edgemed.decoders import PLAIN, kind_of, plain_decoders


@pytest.mark.parametrize(
    ("kind", "name", "data"),
    [
        (PLAIN, "x.jpg", encoded(Image.fromarray(COLOUR), "JPEG")),
        ("orientation", "x.jpg", encoded(Image.fromarray(COLOUR), "JPEG", exif=turned(3))),
        ("CMYK", "x.jpg", encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG")),
        ("palette", "x.png", encoded(Image.fromarray(COLOUR).quantize(200), "PNG")),
        ("transparency", "x.png", encoded(Image.fromarray(COLOUR).convert("RGBA"), "PNG")),
        ("fewer than 8 bits", "x.png", encoded(Image.fromarray(COLOUR).convert("1"), "PNG")),
        ("16 bit", "x.tif", encoded(Image.fromarray(DEEP), "TIFF")),
        ("other BMP", "x.png", encoded(Image.fromarray(COLOUR), "BMP")),
    ],
)
def test_the_kind_of_a_file_names_the_rule(kind: str, name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert kind_of(tmp_path / name) == kind


@pytest.mark.parametrize("name", ["Pillow", "OpenCV", "DALI"])
def test_a_plain_decoder_goes_on_after_bytes_that_it_cannot_read(name: str) -> None:
    decode, told = plain_decoders()
    if name not in decode:
        pytest.skip(told[name]["not_run"])
    assert decode[name](b"no image at all") is None
    assert (decode[name](encoded(Image.fromarray(COLOUR), "PNG")) == COLOUR).all()
