"""What the rules of `edgemed.images` promise, pixel by pixel, and what it refuses."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from image_cases import (
    ALPHA,
    COLOUR,
    COMPOSITED,
    DEEP,
    GREY,
    LOSSLESS,
    chunk,
    encoded,
    fixed_checksums,
    planar_tiff,
    png,
    rows,
    stack,
    three,
    tiff,
)
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edgemed.errors import InputError
from edgemed.images import (
    MAX_PIXELS,
    decodes_alike,
    image_from_bytes,
    image_from_file,
    image_from_pixels,
    pixels_sha256,
)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_kind_of_pixel_becomes_rgb_by_its_rule(kind: str) -> None:
    data, expected = LOSSLESS[kind]
    image = image_from_bytes(data, kind)
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable


def test_palette_colours_and_their_transparency_are_used() -> None:
    indices = Image.fromarray(GREY % 3).convert("P")
    indices.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
    np.testing.assert_array_equal(image_from_bytes(encoded(indices, "PNG"), "p"), colours[GREY % 3])
    half = colours.copy()
    half[1] = (colours[1].astype(int) * 128 + 127) // 255
    data = encoded(indices, "PNG", transparency=bytes([255, 128, 255]))
    np.testing.assert_array_equal(image_from_bytes(data, "p"), half[GREY % 3])


def test_jpeg_in_grey_and_cmyk_keeps_its_colours() -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    cmyk = Image.fromarray(flat).convert("CMYK")
    for image in (Image.fromarray(flat), cmyk):
        decoded = image_from_bytes(encoded(image, "JPEG", quality=95), "flat.jpg")
        assert np.abs(decoded.astype(int) - flat).max() <= 3
    grey = image_from_bytes(encoded(Image.fromarray(flat[:, :, 0]), "JPEG"), "grey.jpg")
    np.testing.assert_array_equal(grey, np.full((16, 16, 3), 200))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_come_out_upright(format: str, orientation: int) -> None:
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:8, :16] = 255  # a white corner at the top left tells all eight apart
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright[:, ::-1].transpose(1, 0, 2),  # EXIF 6: turn by 90 degrees clockwise to see it
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright[::-1].transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif)
    decoded = image_from_bytes(data, "turned")
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_counts_as_no_orientation() -> None:
    plain = encoded(Image.fromarray(GREY), "JPEG")
    body = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
    np.testing.assert_array_equal(image_from_bytes(data, "x"), image_from_bytes(plain, "x"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_an_orientation_in_xmp_counts_beside_an_exif_block_that_was_wiped(format: str, tmp_path: Path) -> None:
    """As in C: an anonymiser's zeros state nothing, and must not turn the picture for one of the two."""
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    png = PngInfo()
    png.add_itxt("XML:com.adobe.xmp", packet.decode())
    stated = {"xmp": packet} if format == "JPEG" else {"pnginfo": png}
    plain, turned, wiped = (
        image_from_bytes(encoded(Image.fromarray(GREY), format, **more), "x")
        for more in ({}, stated, stated | {"exif": b"Exif\0\0" + bytes(64)})
    )
    assert turned.shape != plain.shape
    np.testing.assert_array_equal(wiped, turned)
    file = tmp_path / f"wiped.{format}"
    file.write_bytes(encoded(Image.fromarray(GREY), format, **stated, exif=b"Exif\0\0" + bytes(64)))
    assert not decodes_alike(file)  # DALI would leave it as it lies


def test_pixels_from_memory_are_reordered_by_their_named_format() -> None:
    np.testing.assert_array_equal(image_from_pixels(COLOUR[:, ::-1], "RGB"), COLOUR[:, ::-1])
    np.testing.assert_array_equal(image_from_pixels(COLOUR[:, :, ::-1], "BGR"), COLOUR)
    np.testing.assert_array_equal(image_from_pixels(np.dstack((COLOUR, ALPHA)), "RGBA"), COMPOSITED)
    np.testing.assert_array_equal(image_from_pixels(GREY, "GRAY8"), three(GREY))
    assert image_from_pixels(COLOUR[:, ::-1], "RGB").flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "format", "hint"),
    [
        (COLOUR.astype(np.float32) / 255, "RGB", "uint8"),
        (COLOUR, "RGBA", "(H, W, 4)"),
        (GREY, "RGB", "(H, W, 3)"),
        (COLOUR.transpose(2, 0, 1), "RGB", "(H, W, 3)"),
        (COLOUR[:0], "RGB", "at least 1"),
        (COLOUR, "RBG", "RGB"),
    ],
)
def test_pixels_of_another_layout_are_refused_with_the_layout_wanted(array: np.ndarray, format: str, hint: str) -> None:
    with pytest.raises(InputError, match="pixel") as caught:
        image_from_pixels(array, format)  # type: ignore[arg-type]
    assert hint in str(caught.value)


def test_the_hash_of_pixels_tells_shapes_apart_and_not_memory_layouts() -> None:
    wide = np.arange(36, dtype=np.uint8).reshape(2, 6, 3)
    assert pixels_sha256(wide) != pixels_sha256(wide.reshape(6, 2, 3))
    assert pixels_sha256(wide[:, ::-1]) == pixels_sha256(wide[:, ::-1].copy())
    # as other programs compute it: printf '1 2\n\0\0\0\0\0\0' | sha256sum
    black = "3018056e047305526a73259cbb6e1d431a6cdb91331a8a6fbe490140a0d6825b"
    assert pixels_sha256(np.zeros((1, 2, 3), np.uint8)) == black


WHOLE = encoded(Image.fromarray(COLOUR), "PNG")
JPEG = encoded(Image.fromarray(np.tile(COLOUR, (8, 8, 1))), "JPEG")
HUGE = png(60_000, 60_000, 8, 2, b"\0" * 1000)
FLIPPED = bytearray(WHOLE)
FLIPPED[len(WHOLE) // 2] ^= 1

# Without the tag of its subsampling, which then is the standard's: four pixels share a colour.
YCBCR = encoded(Image.fromarray(COLOUR).convert("YCbCr"), "TIFF").replace(b"\x12\x02\3\0", b"\x10\x02\3\0")
REFUSED = {
    "empty": (b"", "empty"),
    "text": (b"path,label\na.png,b\n", "is not a PNG, JPEG, BMP, TIFF or DICOM"),
    "gif": (encoded(Image.fromarray(GREY), "GIF"), "is not a PNG, JPEG, BMP, TIFF or DICOM"),
    "png cut in its pixels": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "png without its end": (WHOLE[:-12], "truncated"),
    "png with a flipped bit": (bytes(FLIPPED), "checksum"),
    "png with too few rows": (png(31, 23, 8, 2, rows(COLOUR[:11])), "rows of pixels end early"),
    "jpeg cut in its pixels": (JPEG[: len(JPEG) // 2], "truncated"),
    "bmp cut in its pixels": (encoded(Image.fromarray(COLOUR), "BMP")[:-200], "truncated"),
    "tiff cut in its pixels": (encoded(Image.fromarray(COLOUR), "TIFF")[:-200], "truncated"),
    "tiff cut before its directory": (tiff(GREY, 8, 1)[:400], "header"),
    "tiff with too few strips": (
        tiff(GREY, 8, 1).replace(struct.pack("<HHII", 278, 4, 1, 23), struct.pack("<HHII", 278, 4, 1, 5)),
        "do not cover",
    ),
    "tiff with a colour left out": (planar_tiff(COLOUR, 2), "lacks colours: 2 of 3 planes are there"),
    "16 bit rgb tiff by plane": (planar_tiff(COLOUR.astype("<u2") << 8), "planes (PlanarConfiguration 2) are read"),
    "subsampled ycbcr tiff": (
        encoded(Image.fromarray(COLOUR).convert("YCbCr"), "TIFF", tiffinfo={530: (2, 2)}),
        "subsampled YCbCr colours (YCbCrSubSampling) are read only where they are compressed",
    ),
    "ycbcr tiff that leaves the subsampling to the standard": (
        YCBCR.replace(struct.pack("<HHII", 279, 4, 1, COLOUR.size), struct.pack("<HHII", 279, 4, 1, COLOUR.size // 2)),
        "subsampled YCbCr colours",
    ),
    "signed 8 bit tiff": (encoded(Image.fromarray(GREY), "TIFF", tiffinfo={339: 2}), "signed values"),
    "signed 16 bit tiff": (encoded(Image.fromarray(DEEP), "TIFF", tiffinfo={339: 2}), "signed values"),
    "16 bit rgb png with a transparent colour": (
        png(31, 23, 16, 2, rows(np.dstack((DEEP, DEEP, DEEP)).astype(">u2")), chunk(b"tRNS", bytes(6))),
        "export it with an alpha channel",
    ),
    "64 bit tiff": (tiff(GREY, 64, 1), "of a kind that is not read"),
    "60,000 x 60,000": (HUGE, str(MAX_PIXELS)),
    "just too large": (png(9460, 9460, 8, 0, b"\0" * 1000), str(MAX_PIXELS)),
    "tiff stack": (stack("TIFF"), "2 pages"),
    "animated png": (stack("PNG"), "2 pages"),
    "float tiff": (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "no range"),
    "32 bit tiff": (encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "no range"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF data")
def test_what_cannot_be_read_whole_is_refused_in_one_line_that_names_it(kind: str, tmp_path: Path) -> None:
    data, reason = REFUSED[kind]
    file = tmp_path / "scan.jpg"
    file.write_bytes(data)
    with pytest.raises(InputError) as caught:
        image_from_file(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and reason in message and "\n" not in message


def test_missing_files_and_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png: does not exist"):
        image_from_file(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder"):
        image_from_file(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_an_image_or_an_input_error_and_nothing_else() -> None:
    rng = np.random.default_rng(7)
    seeds = [data for data, _ in LOSSLESS.values()] + [JPEG, stack("TIFF"), stack("PNG")]
    refused = 0
    for turn in range(3000):
        data = bytearray(seeds[turn % len(seeds)])
        for _ in range(rng.integers(1, 8)):
            place = int(rng.integers(0, min(len(data), 400 if turn % 2 else len(data))))
            action = rng.integers(0, 4)
            if action == 0:
                data[place] = rng.integers(0, 256)
            elif action == 1:
                data[place] ^= 1 << int(rng.integers(0, 8))
            elif action == 2:
                del data[place : place + int(rng.integers(1, 9))]
            else:
                data[place:place] = rng.integers(0, 256, int(rng.integers(1, 9)), np.uint8).tobytes()
        try:
            image = image_from_bytes(fixed_checksums(bytes(data)) if data[1:4] == b"PNG" else bytes(data), "fuzz")
            assert image.ndim == 3 and image.shape[2] == 3 and image.size > 0
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 500  # the damage did reach the parsers


def test_dali_gives_the_same_pixels_wherever_it_is_said_to(tmp_path: Path) -> None:
    fn = pytest.importorskip("nvidia.dali.fn", reason="DALI is not installed")
    from nvidia.dali import pipeline_def, types

    picture = Image.fromarray(np.tile(COLOUR, (3, 3, 1))).resize((90, 70))
    turned = Image.Exif()
    turned[274] = 6
    cases = {name: data for name, (data, _) in LOSSLESS.items() if "png" in name}
    for quality in (40, 75, 95):
        for subsampling in (0, 1, 2):
            options = {"quality": quality, "subsampling": subsampling}
            cases[f"jpeg {options}"] = encoded(picture, "JPEG", **options)
    cases["progressive jpeg"] = encoded(picture, "JPEG", progressive=True)
    cases["grey jpeg"] = encoded(picture.convert("L"), "JPEG")
    cases["rgb jpeg"] = encoded(picture, "JPEG", keep_rgb=True)
    cases["cmyk jpeg"] = encoded(picture.convert("CMYK"), "JPEG")
    cases["turned jpeg"] = encoded(picture, "JPEG", exif=turned)
    cases["turned png"] = encoded(picture, "PNG", exif=turned)
    passed_over = bytes.fromhex("49492a000800000001001201050004000000060000000000")  # by Pillow, and DALI turns it
    cases["damaged jpeg"] = encoded(picture, "JPEG", exif=b"Exif\0\0" + passed_over)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def decoder(data: np.ndarray):  # type: ignore[no-untyped-def]
        encoded = fn.external_source(lambda: [data], batch=True, dtype=types.UINT8)
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB, jpeg_fancy_upsampling=True)

    alike = set()
    for name, data in cases.items():
        file = tmp_path / "case"
        file.write_bytes(data)
        if decodes_alike(file):
            alike.add(name)
            pipe = decoder(np.frombuffer(data, np.uint8))
            pipe.build()
            np.testing.assert_array_equal(np.asarray(pipe.run()[0].at(0)), image_from_file(file), err_msg=name)
    assert {"grey png", "rgb png", "grey jpeg", "progressive jpeg"} <= alike
    assert not alike & {"16 bit grey png", "16 bit rgb png", "rgba png", "cmyk jpeg", "turned jpeg", "turned png"}
