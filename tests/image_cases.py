"""Encoded images of every kind, with the pixels that they must decode to: for the tests of `edgemed.images`."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (23, 31, 3), np.uint8)
GREY = RNG.integers(0, 256, (23, 31), np.uint8)
DEEP = RNG.integers(0, 65536, (23, 31), np.uint16)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, scanlines: bytes, *extra: bytes, interlace: int = 0) -> bytes:
    """A PNG made by hand, for what Pillow cannot write. `scanlines`: with a filter byte 0 before each row."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    pixels = chunk(b"IDAT", zlib.compress(scanlines))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def tiff(values: np.ndarray, bits: int, photometric: int, order: str = "<") -> bytes:
    """An uncompressed grey TIFF of one strip; 12-bit values are packed two in three bytes."""
    height, width = values.shape
    if bits == 12:
        flat = values.reshape(height, -1, 2).astype(int)
        packed = np.stack((flat[:, :, 0] >> 4, (flat[:, :, 0] & 15) << 4 | flat[:, :, 1] >> 8, flat[:, :, 1] & 255), 2)
        strip = packed.astype(np.uint8).tobytes()
    else:
        strip = values.astype(f"{order}u{bits // 8}").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(strip)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HI", 42, 8 + len(strip)) + strip + directory


def planar_tiff(image: np.ndarray, listed: int = 3, deflated: bool = False) -> bytes:
    """An RGB TIFF of 8 or 16 bits with a strip for each colour, of which the header lists so many."""
    height, width, _ = image.shape
    pieces = [np.ascontiguousarray(plane).tobytes() for plane in image.transpose(2, 0, 1)]
    pieces = [zlib.compress(piece) if deflated else piece for piece in pieces]
    strips, sizes = b"".join(pieces), [len(piece) for piece in pieces]
    offsets = struct.pack(f"<{listed}I", *(8 + sum(sizes[:k]) for k in range(listed)))
    counts = struct.pack(f"<{listed}I", *sizes[:listed])
    after, bits = 8 + len(strips), image.itemsize * 8
    tags = {256: (1, width), 257: (1, height), 258: (1, bits), 259: (1, 8 if deflated else 1), 262: (1, 2),
            273: (listed, after), 277: (1, 3), 278: (1, height), 279: (listed, after + len(offsets)),
            284: (1, 2)}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, *value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    begin = after + len(offsets) + len(counts)
    return b"II" + struct.pack("<HI", 42, begin) + strips + offsets + counts + directory


def bmp32(rgba: np.ndarray) -> bytes:
    """A BMP of 32 bits with masks for red, green, blue and alpha (BITMAPV4HEADER, BI_BITFIELDS), from the bottom up."""
    height, width = rgba.shape[:2]
    pixels = np.ascontiguousarray(rgba[::-1, :, [2, 1, 0, 3]]).tobytes()
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII4I", 108, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0, *masks) + bytes(52)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


def turned(orientation: int) -> Image.Exif:
    """EXIF data that say how the picture lies, 1 to 8."""
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def rows(values: np.ndarray) -> bytes:
    raw = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    return b"".join(b"\0" + row.tobytes() for row in raw)


ALPHA = RNG.integers(0, 256, (23, 31), np.uint8)
COMPOSITED = ((COLOUR.astype(int) * ALPHA[:, :, None] + 127) // 255).astype(np.uint8)
CUT = np.where(GREY[0, 0] == GREY, 0, GREY)

LOSSLESS = {
    "grey png": (encoded(Image.fromarray(GREY), "PNG"), three(GREY)),
    "grey bmp": (encoded(Image.fromarray(GREY), "BMP"), three(GREY)),
    "grey tiff": (encoded(Image.fromarray(GREY), "TIFF", compression="tiff_lzw"), three(GREY)),
    "grey tiff, white is zero": (tiff(GREY, 8, 0), three(255 - GREY)),
    "rgb png": (encoded(Image.fromarray(COLOUR), "PNG"), COLOUR),
    "rgb bmp": (encoded(Image.fromarray(COLOUR), "BMP"), COLOUR),
    "rgb tiff": (encoded(Image.fromarray(COLOUR), "TIFF"), COLOUR),
    "rgb tiff, by plane": (planar_tiff(COLOUR), COLOUR),
    "16 bit rgb tiff, by plane, compressed": (planar_tiff(COLOUR.astype("<u2") << 8, deflated=True), COLOUR),
    "ycbcr tiff": (
        encoded(Image.fromarray(np.full((2, 2, 3), (76, 85, 255), np.uint8), "YCbCr"), "TIFF"),
        np.full((2, 2, 3), (254, 0, 0), np.uint8),
    ),
    "ycbcr tiff with a colour for each pixel, which no tag says": (
        encoded(Image.fromarray(np.full((2, 2, 3), (76, 85, 255), np.uint8), "YCbCr"), "TIFF").replace(
            b"\x12\x02\3\0", b"\x10\x02\3\0"
        ),
        np.full((2, 2, 3), (254, 0, 0), np.uint8),
    ),
    "1 bit png": (encoded(Image.fromarray(GREY > 99), "PNG"), three(np.where(GREY > 99, 255, 0).astype(np.uint8))),
    "1 bit tiff": (encoded(Image.fromarray(GREY > 99), "TIFF"), three(np.where(GREY > 99, 255, 0).astype(np.uint8))),
    "4 bit png": (png(2, 1, 4, 0, b"\0\x1f"), three(np.array([[0x11, 0xFF]], np.uint8))),
    "4 bit png with a transparent colour": (
        png(3, 1, 4, 0, b"\0\x5f\x50", chunk(b"tRNS", b"\0\x05")),
        three(np.array([[0, 0xFF, 0]], np.uint8)),
    ),
    "2 bit png with a transparent colour": (
        png(3, 1, 2, 0, b"\0\x6c", chunk(b"tRNS", b"\0\x02")),
        three(np.array([[0x55, 0, 0xFF]], np.uint8)),
    ),
    "1 bit png with a transparent colour": (
        png(3, 1, 1, 0, b"\0\xa0", chunk(b"tRNS", b"\0\x01")),
        three(np.zeros((1, 3), np.uint8)),
    ),
    "32 bit bmp, its alpha left empty": (bmp32(np.dstack((COLOUR, 0 * GREY))), COLOUR),
    "32 bit bmp with alpha": (bmp32(np.dstack((COLOUR, ALPHA))), COMPOSITED),
    "interlaced png": (png(1, 1, 8, 0, b"\0\x63", interlace=1), three(np.array([[0x63]], np.uint8))),
    "rgba png": (encoded(Image.fromarray(np.dstack((COLOUR, ALPHA))), "PNG"), COMPOSITED),
    "rgba tiff": (encoded(Image.fromarray(np.dstack((COLOUR, ALPHA))), "TIFF"), COMPOSITED),
    "la png": (
        encoded(Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA))), "PNG"),
        three(((GREY.astype(int) * ALPHA + 127) // 255).astype(np.uint8)),
    ),
    "grey png with a transparent colour": (
        encoded(Image.fromarray(GREY), "PNG", transparency=int(GREY[0, 0])),
        three(CUT),
    ),
    "16 bit grey png": (encoded(Image.fromarray(DEEP), "PNG"), three((DEEP >> 8).astype(np.uint8))),
    "16 bit rgb png": (
        png(31, 23, 16, 2, rows(np.dstack((DEEP, DEEP, DEEP)).astype(">u2"))),
        three((DEEP >> 8).astype(np.uint8)),
    ),
    "16 bit tiff": (tiff(DEEP, 16, 1), three((DEEP >> 8).astype(np.uint8))),
    "16 bit tiff, big-endian": (tiff(DEEP, 16, 1, ">"), three((DEEP >> 8).astype(np.uint8))),
    "16 bit tiff, white is zero": (tiff(DEEP, 16, 0), three(255 - (DEEP >> 8).astype(np.uint8))),
    "12 bit tiff": (tiff(DEEP[:, :30] >> 4, 12, 1), three((DEEP[:, :30] >> 8).astype(np.uint8))),
    "cmyk tiff": (
        encoded(Image.fromarray(np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8), "CMYK"), "TIFF"),
        np.array([[[255, 255, 255], [0, 255, 255], [0, 0, 0]]], np.uint8),
    ),
}


def stack(format: str) -> bytes:
    pages = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    return encoded(pages[0], format, save_all=True, append_images=pages[1:])


def fixed_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums again, so that a fuzzed one gets past them."""
    out, position = bytearray(data), 8
    while position + 12 <= len(out):
        end = position + 8 + struct.unpack_from(">I", out, position)[0]
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[position + 4 : end]))
        position = end + 4
    return bytes(out)
