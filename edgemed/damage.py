"""What is wrong with an image file that Pillow would decode in part, without a word: for `images.py`.

Why its own module: a picture that is black below, or lacks a colour, trains and is judged like any other. Here are
the checks that a decoder leaves out; what Pillow itself raises needs none.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from PIL import ImageFile
from PIL.ExifTags import Base as Tag

from edgemed.errors import one_line

_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples per pixel
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def misread(image: ImageFile.ImageFile) -> str | None:
    """What an uncompressed TIFF holds that Pillow takes for something else; libtiff, for the compressed, does not.

    It takes planes of 16 bits for planes of 8, and every YCbCr for one that has a colour for each pixel: without a tag
    that says so, four share one (TIFF 6.0, section 21), unless there are bytes for all.
    """
    if image.format != "TIFF" or not image.tile or image.tile[0].codec_name == "libtiff":
        return None
    tags: Any = getattr(image, "tag_v2", {})
    pixels = image.width * image.height
    stored = int(np.sum(tags.get(Tag.StripByteCounts, tags.get(Tag.TileByteCounts, 0))))
    whole = (1, 1) if stored >= 3 * pixels else (2, 2)
    bits = np.max(np.ravel(tags.get(Tag.BitsPerSample, 1)), initial=0)
    what = ""
    if tags.get(Tag.PlanarConfiguration) == 2 and tags.get(Tag.SamplesPerPixel, 1) > 1 and bits > 8:
        what = "colours of more than 8 bits in planes (PlanarConfiguration 2)"
    elif tags.get(Tag.PhotometricInterpretation) == 6 and tags.get(Tag.YCbCrSubSampling, whole) != (1, 1):
        what = "subsampled YCbCr colours (YCbCrSubSampling)"
    return f"{what} are read only where they are compressed (LZW, Deflate), or from a PNG" if what else None


def gap(image: ImageFile.ImageFile) -> str | None:
    """What is wrong with an image whose header lists too few strips or tiles: Pillow would leave the rest black."""
    area: dict[str, int] = {}
    for tile in image.tile:
        left, top, right, bottom = tile.extents or (0, 0, *image.size)
        plane = str(tile.args[0] if isinstance(tile.args, tuple) else tile.args)
        area[plane] = area.get(plane, 0) + (right - left) * (bottom - top)
    tags = getattr(image, "tag_v2", {})
    planes = int(tags.get(Tag.SamplesPerPixel, 1)) if tags.get(Tag.PlanarConfiguration) == 2 else 0
    if image.tile and image.tile[0].codec_name != "libtiff" and len(area) < planes:  # libtiff counts them itself
        return f"it lacks colours: {len(area)} of {planes} planes are there"
    missing = not area or min(area.values()) < image.width * image.height
    return "its strips do not cover the picture" if missing else None


def png_damage(data: bytes) -> str | None:
    """What is wrong with a PNG that Pillow would decode in part or without a word, or None.

    Pillow skips the checksums of the pixel data, does not miss the end chunk, and leaves rows black when the
    compressed stream ends early.
    """
    position, pieces, header = 8, [], b""
    while True:
        if position + 12 > len(data):
            return "the file is truncated"
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            return "the file is truncated"
        if zlib.crc32(data[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return f"the checksum of its {one_line(kind.decode('latin-1'))!r} chunk is wrong"
        if kind == b"IHDR":
            header = data[position + 8 : end]
        elif kind == b"IDAT":
            pieces.append(data[position + 8 : end])
        elif kind == b"IEND":
            break
        position = end + 4
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = [(max(0, -(-(width - x) // dx)), max(0, -(-(height - y) // dy))) for x, y, dx, dy in passes]
    wanted = sum(h * (1 + (w * depth * _PNG_SAMPLES[colour] + 7) // 8) for w, h in sizes if w)
    stream, pending, got = zlib.decompressobj(), b"".join(pieces), 0
    while got < wanted and (part := stream.decompress(pending, 1 << 20)):
        got, pending = got + len(part), stream.unconsumed_tail
    return None if got >= wanted else "its rows of pixels end early"
