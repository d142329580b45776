"""The C++ library decodes 8-bit grey and RGB, PNG and JPEG, to Python's pixels, and refuses whatever Python refuses."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import image_cases as cases
import numpy as np
import pytest
import tiny_bundles as tiny
from cpp_build import probe
from PIL import Image

from edgemed.errors import InputError
from edgemed.images import image_from_bytes

ROWS = cases.rows(cases.GREY)


def decoded(build: Path, files: dict[str, bytes], folder: Path) -> dict[str, np.ndarray | str]:
    """For each encoded image its pixels (H, W, 3), or the message with which it is refused."""
    paths = []
    for number, data in enumerate(files.values()):
        paths.append(folder / f"{number}.image")
        paths[-1].write_bytes(data)
    answers = [answer for k in range(0, len(paths), 500) for answer in probe(build, "decode", *paths[k : k + 500])]
    found: dict[str, np.ndarray | str] = {}
    for name, path, answer in zip(files, paths, answers, strict=True):
        if answer is not None:
            assert answer["status"] == 2 and answer["message"].startswith("the image "), answer
            found[name] = answer["message"]
            continue
        header, _, body = path.with_name(f"{path.name}.rgb").read_bytes().partition(b"\n")
        height, width = map(int, header.split())
        found[name] = np.frombuffer(body, np.uint8).reshape(height, width, 3)
    return found


def python_decoded(data: bytes) -> np.ndarray | None:
    try:
        return image_from_bytes(data, "x")
    except InputError:
        return None


def upright_cases() -> dict[str, bytes]:
    """Pictures in every orientation, stated in each of the ways that a file has."""
    made = {}
    picture, grey = Image.fromarray(cases.COLOUR), Image.fromarray(cases.GREY)
    for number in range(10):
        exif = Image.Exif()
        exif[274] = number
        xmp = f'<x tiff:Orientation="{number}"/>'.encode()
        made[f"jpeg exif {number}"] = cases.encoded(picture, "JPEG", exif=exif, quality=95)
        made[f"png exif {number}"] = cases.encoded(grey, "PNG", exif=exif)
        made[f"jpeg xmp {number}"] = cases.encoded(picture, "JPEG", xmp=xmp, quality=95)
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
        made[f"png xmp {number}"] = cases.png(31, 23, 8, 0, ROWS, cases.chunk(b"iTXt", text))
        exif[274] = 9 - number
        made[f"both {number}"] = cases.encoded(picture, "JPEG", exif=exif, xmp=xmp, quality=95)
    return made


def test_what_it_decodes_has_pythons_pixels(build: Path, tmp_path: Path) -> None:
    files = {name: data for name, (data, _) in cases.LOSSLESS.items()} | upright_cases()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8))
    for options in (
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1, "optimize": True},
        {"quality": 100},
    ):
        files[f"jpeg {options}"] = cases.encoded(noise, "JPEG", **options)
        files[f"grey jpeg {options}"] = cases.encoded(noise.convert("L"), "JPEG", **options)
    files["interlaced rgb"] = interlaced(cases.COLOUR)
    found = decoded(build, files, tmp_path)
    taken = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    for name, value in taken.items():
        expected = image_from_bytes(files[name], name)
        assert value.shape == expected.shape, name
        # Two builds of libjpeg-turbo may round differently; a PNG has one meaning.
        assert np.abs(value.astype(int) - expected).max() <= (3 if "jpeg" in name or "both" in name else 0), name
    lossless = {"grey png", "rgb png", "interlaced png"}
    assert taken.keys() == lossless | {name for name in files if name not in cases.LOSSLESS}
    for name in found.keys() - taken.keys():
        message = found[name]
        assert isinstance(message, str)
        assert "8-bit grey and RGB are decoded here" in message or "is not a PNG or JPEG" in message, message


def test_an_orientation_of_an_unusual_kind_is_refused(build: Path, tmp_path: Path) -> None:
    """Pillow turns most of these; taken for upright they would be classified otherwise than in Python."""
    tags = {
        "two shorts": (3, "2H", 6, 6),
        "signed": (8, "hh", 6, 0),
        "float": (11, "f", 6.0),
        "text": (2, "2sH", b"6", 0),
    }
    counts = {"two shorts": 2, "text": 2}
    files = {}
    for name, (kind, form, *values) in tags.items():
        entry = struct.pack("<HHI", 274, kind, counts.get(name, 1)) + struct.pack(f"<{form}", *values)
        exif = b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
        files[f"jpeg {name}"] = cases.encoded(Image.fromarray(cases.COLOUR), "JPEG", exif=b"Exif\0\0" + exif)
        files[f"png {name}"] = cases.png(31, 23, 8, 0, ROWS, cases.chunk(b"eXIf", exif))
    assert {image_from_bytes(data, "x").shape[:2] for data in files.values()} == {cases.COLOUR.shape[1::-1]}
    for name, message in decoded(build, files, tmp_path).items():
        assert isinstance(message, str) and "EXIF" in message and "or use Python" in message, name


def test_a_block_that_pythons_decoder_reads_otherwise_is_refused(build: Path, tmp_path: Path) -> None:
    """A value beyond the end, where Pillow stops; an orientation twice, of which one counts; a mixed header."""
    six, one = (struct.pack("<HHIHH", 274, 3, 1, value, 0) for value in (6, 1))
    maker = struct.pack("<HHII", 271, 2, 20, 0x1000)
    big = b"MM*\0" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, 6, 0, 0)
    blocks = {
        "cut": b"II*\0" + struct.pack("<IH", 8, 2) + maker + six + bytes(4),
        "twice": b"II*\0" + struct.pack("<IH", 8, 2) + six + one + bytes(4),
        "header": big,
    }
    files = {n: cases.encoded(Image.fromarray(cases.COLOUR), "JPEG", exif=b"Exif\0\0" + b) for n, b in blocks.items()}
    for name, message in decoded(build, files, tmp_path).items():
        assert isinstance(message, str) and "EXIF" in message and "or use Python" in message, name
    whole = b"II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHII", 271, 2, 20, 38) + six + bytes(4 + 20)
    taken = cases.encoded(Image.fromarray(cases.COLOUR), "JPEG", exif=b"Exif\0\0" + whole, quality=95)
    found = decoded(build, {"whole": taken}, tmp_path)["whole"]
    assert isinstance(found, np.ndarray) and found.shape == image_from_bytes(taken, "whole").shape


def interlaced(pixels: np.ndarray) -> bytes:
    """An Adam7 PNG by hand: Pillow writes none."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    lines = b"".join(cases.rows(part) for x, y, dx, dy in passes if (part := pixels[y::dy, x::dx]).size)
    return cases.png(pixels.shape[1], pixels.shape[0], 8, 2, lines, interlace=1)


def test_what_python_refuses_is_refused(build: Path, tmp_path: Path) -> None:
    picture = Image.fromarray(cases.COLOUR)
    files = {
        "animated": cases.stack("PNG"),
        "cmyk": cases.encoded(picture.convert("CMYK"), "JPEG"),
        "old exif": cases.png(
            31, 23, 8, 0, cases.rows(cases.GREY), cases.chunk(b"zTXt", b"Raw profile type exif\0\0x")
        ),
        "empty png": cases.png(0, 5, 8, 0, b""),
        "huge png": cases.png(100_000, 100_000, 8, 0, b""),
        "gif": b"GIF89a" + bytes(100),
        "text": b"label,path\n",
    }
    assert {name for name, value in decoded(build, files, tmp_path).items() if not isinstance(value, str)} == set()


def test_what_states_an_orientation_is_whole_or_the_image_is_refused(build: Path, tmp_path: Path) -> None:
    """A JPEG's EXIF block over two segments, a PNG's with a wrong checksum, and XMP that would have to be inflated."""
    six = struct.pack("<HHHIHHI", 1, 274, 3, 1, 6, 0, 0)
    block = b"II*\0" + struct.pack("<I", 100) + bytes(92) + six
    parts = b"".join(
        b"\xff\xe1" + struct.pack(">H", 8 + len(part)) + b"Exif\0\0" + part for part in (block[:60], block[60:])
    )
    plain = cases.encoded(Image.fromarray(cases.COLOUR), "JPEG", quality=95)
    whole = plain[:2] + parts + plain[2:]
    good = cases.chunk(b"eXIf", b"II*\0" + struct.pack("<I", 8) + six)
    xmp = b'<x tiff:Orientation="6"/>'
    texts = {
        "compressed": cases.chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
        "older": cases.chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(xmp)),
        "damaged": good[:-1] + bytes([good[-1] ^ 1]),
    }
    files = {name: cases.png(31, 23, 8, 0, ROWS, extra) for name, extra in ({"good": good} | texts).items()}
    found = decoded(build, files | {"whole": whole}, tmp_path)
    assert {name for name, value in found.items() if isinstance(value, str)} == texts.keys()
    assert python_decoded(files["damaged"]) is None
    for name, data in {"good": files["good"], "whole": whole}.items():
        value, expected = found[name], image_from_bytes(data, name)
        assert isinstance(value, np.ndarray) and value.shape == expected.shape == (31, 23, 3)
        assert np.abs(value.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "progressive JPEG"])
def test_a_file_that_is_cut_off_is_never_an_image(kind: str, build: Path, tmp_path: Path) -> None:
    options = {"progressive": True} if kind.startswith("progressive") else {}
    whole = cases.encoded(Image.fromarray(tiny.image(1, 24, 40)), kind.split()[-1], **options)
    files = {str(length): whole[:length] for length in range(len(whole))}
    found = decoded(build, files, tmp_path)
    taken = [name for name, value in found.items() if isinstance(value, np.ndarray)]
    assert [name for name in taken if python_decoded(files[name]) is None] == []
    assert len(taken) <= 2  # a JPEG without its end marker may be whole


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_file_is_refused_or_has_pythons_pixels(kind: str, build: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    buffer = io.BytesIO()
    Image.fromarray(tiny.image(1, 24, 40)).save(buffer, kind)
    files = {}
    for number in range(600):
        data = bytearray(buffer.getvalue())
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        files[str(number)] = cases.fixed_checksums(bytes(data)) if kind == "PNG" else bytes(data)
    differing, alike = [], 0
    for name, value in decoded(build, files, tmp_path).items():
        expected = python_decoded(files[name])
        if isinstance(value, str):
            continue
        limit = 0 if kind == "PNG" else 3
        if expected is None or expected.shape != value.shape or np.abs(expected.astype(int) - value).max() > limit:
            differing.append(name)
        alike += 1
    assert not differing
    assert alike > (50 if kind == "JPEG" else 0)  # a PNG notices nearly every fault
