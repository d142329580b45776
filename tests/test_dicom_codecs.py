"""Compressed DICOM: what a codestream says of itself, against what the header around it states."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="extra dicom is not installed")
pytest.importorskip("imagecodecs", reason="extra dicom is not installed")

import imagecodecs
from dicom_cases import COLOUR, DEEP, HTJ2K, SIGNED, TWELVE, dicom, three, uid

from edgemed.images import image_from_bytes

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")
LESION = np.full((16, 16, 3), (200, 40, 60), np.uint8)


def _with_adobe(jpeg: bytes, transform: int | None) -> bytes:
    """A JPEG without its JFIF or Adobe marker, the first of its header, and with an Adobe one of that transform."""
    rest = jpeg[4 + int.from_bytes(jpeg[4:6], "big") :]
    return b"\xff\xd8" + (b"" if transform is None else b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0%c" % transform) + rest


def _numbered(jpeg: bytes) -> bytes:
    """The JPEG with components called 1, 2, 3 in place of R, G, B, which is a word on their colours, too."""
    data, frame, scan = bytearray(jpeg), jpeg.find(b"\xff\xc0") + 10, jpeg.find(b"\xff\xda") + 5
    data[frame : frame + 9 : 3] = data[scan : scan + 6 : 2] = b"\1\2\3"
    return bytes(data)


AS_YBR = imagecodecs.jpeg8_encode(LESION, level=95, subsampling="444")
HALVED = imagecodecs.jpeg8_encode(LESION, level=95, subsampling="422")
AS_RGB = _numbered(imagecodecs.jpeg8_encode(LESION, level=95, colorspace="RGB", outcolorspace="RGB"))


@pytest.mark.parametrize(
    ("jpeg", "stated"),
    [
        (_with_adobe(AS_YBR, 1), "RGB"),
        (_with_adobe(AS_YBR, 1), "YBR_FULL"),
        (_with_adobe(HALVED, None), "RGB"),
        (_with_adobe(HALVED, None), "YBR_FULL_422"),
        (_with_adobe(AS_YBR, None), "YBR_FULL_422"),
        (_with_adobe(AS_RGB, 0), "YBR_FULL_422"),
        (_with_adobe(AS_RGB, 0), "RGB"),
        (_with_adobe(AS_RGB, None), "RGB"),
    ],
)
def test_a_jpeg_keeps_its_colours_whatever_colours_the_header_states(jpeg: bytes, stated: str) -> None:
    data = dicom([jpeg], uid.JPEGBaseline8Bit, LESION.shape, PhotometricInterpretation=stated)
    assert np.abs(image_from_bytes(data, stated).astype(int) - LESION).max() <= 2


ENCODERS = {
    uid.JPEGLSLossless: imagecodecs.jpegls_encode,
    uid.JPEG2000Lossless: lambda values: imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k"),
    uid.JPEG2000: lambda values: imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k"),
    HTJ2K: imagecodecs.htj2k_encode,
}
SIGNED_12 = (SIGNED >> 4).view(np.uint16)


@pytest.mark.parametrize("syntax", ENCODERS, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize(
    ("stored", "signed"),
    [(SIGNED_12, 1), (SIGNED_12 & 0xFFF, 1), (TWELVE | 0xA000, 0), (TWELVE, 0)],
    ids=["signed", "signed, high bits empty", "overlay in the high bits", "unsigned"],
)
def test_twelve_bits_in_a_codestream_of_sixteen_come_out_as_uncompressed(
    syntax: uid.UID, stored: np.ndarray, signed: int
) -> None:
    frames = [ENCODERS[syntax](stored)]
    data = dicom(frames, syntax, DEEP.shape, BitsAllocated=16, BitsStored=12, PixelRepresentation=signed)
    np.testing.assert_array_equal(image_from_bytes(data, "scan"), three((DEEP >> 8).astype(np.uint8)))


def _edge(bits: int) -> np.ndarray:
    return np.where(np.arange(64) < 32, (1 << bits) - 1, 0).astype(np.uint16) * np.ones((64, 1), np.uint16)


@pytest.mark.parametrize("stated", [{}, {"LossyImageCompression": "00"}, {"LossyImageCompression": "01"}])
def test_what_lossy_compression_overshoots_is_white_and_not_black(stated: dict[str, str]) -> None:
    frame = imagecodecs.jpeg2k_encode(_edge(12), level=40, codecformat="j2k", reversible=False)
    assert imagecodecs.jpeg2k_decode(frame).max() > 4095
    data = dicom([frame], uid.JPEG2000, (64, 64), BitsAllocated=16, BitsStored=12, **stated)
    shown = image_from_bytes(data, "scan")
    assert shown[:, :24].min() > 240 and shown[:, 40:].max() < 64


def test_ten_bits_in_a_lossy_jpeg_of_twelve_overshoot_to_white() -> None:
    stripes = np.where(np.arange(64) % 5 < 2, 1023, 0).astype(np.uint16) * np.ones((64, 1), np.uint16)
    frame = imagecodecs.jpeg8_encode(stripes, level=60, bitspersample=12)
    assert imagecodecs.jpeg8_decode(frame).max() > 1023
    data = dicom([frame], uid.JPEGExtended12Bit, (64, 64), BitsAllocated=16, BitsStored=10)
    shown = image_from_bytes(data, "scan")[..., 0]
    assert shown[stripes > 0].min() > 200 and shown[stripes == 0].max() < 55


def test_fill_bytes_before_a_marker_are_no_damage() -> None:
    begin = AS_YBR.index(b"\xff\xda")
    filled = AS_YBR[:begin] + b"\xff\xff" + AS_YBR[begin:]
    plain, other = (dicom([jpeg], uid.JPEGBaseline8Bit, LESION.shape, PhotometricInterpretation="YBR_FULL")
                    for jpeg in (AS_YBR, filled))  # fmt: skip
    np.testing.assert_array_equal(image_from_bytes(other, "scan"), image_from_bytes(plain, "scan"))


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def _jpeg_ls_by_plane(image: np.ndarray) -> bytes:
    """A JPEG-LS of three scans, one for each colour (ISO 14495-1, interleave mode 0), put together of three of one."""
    height, width, _ = image.shape
    precision = image.itemsize * 8
    stated = bytes([precision]) + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\3\1\x11\0\2\x11\0\3\x11\0"
    data = b"\xff\xd8" + _segment(0xF7, stated)
    for k in range(3):
        plane = imagecodecs.jpegls_encode(np.ascontiguousarray(image[:, :, k]))
        begin = plane.index(b"\xff\xda")
        data += _segment(0xDA, bytes([1, k + 1, 0, 0, 0, 0])) + plane[begin + 10 : -2]
    return data + b"\xff\xd9"


def test_a_jpeg_ls_of_colours_in_planes_is_the_picture_itself() -> None:
    for image, bits in ((COLOUR, 8), (COLOUR.astype(np.uint16) << 8 | 7, 16), (COLOUR[:, :3].copy(), 8)):
        data = dicom([_jpeg_ls_by_plane(image)], uid.JPEGLSLossless, image.shape, BitsAllocated=bits, BitsStored=bits)
        np.testing.assert_array_equal(image_from_bytes(data, "scan"), COLOUR[:, : image.shape[1]])
