"""DICOM files made by hand, with the pixels that they must become: for the tests of `edgemed.dicom`.

The expected pixels come from the numbers that go in, or are written out; none comes from the code under test.
"""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
from image_cases import COLOUR, GREY, three
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

DEEP = np.random.default_rng(5).integers(0, 65536, (24, 30), np.uint16)
TWELVE = DEEP >> 4
SIGNED = (DEEP.astype(np.int32) - 32768).astype(np.int16)
JPEG_12, JPEG_LOSSLESS, HTJ2K = (uid.JPEGExtended12Bit, uid.JPEGLosslessSV1, uid.HTJ2KLossless)


def sequence(*items: dict[str, Any]) -> list[Dataset]:
    made = []
    for item in items:
        dataset = Dataset()
        for keyword, value in item.items():
            setattr(dataset, keyword, value)
        made.append(dataset)
    return made


def dicom(
    frames: np.ndarray | list[bytes],
    syntax: UID = uid.ExplicitVRLittleEndian,
    shape: tuple[int, ...] | None = None,
    **elements: Any,
) -> bytes:
    """A Part 10 file. frames: (H, W) or (H, W, 3) values, or the encoded frames with the shape of one."""
    pixels = frames if isinstance(frames, np.ndarray) else np.zeros(shape or (), np.uint8)
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.826.0.1.3680043.8.498.1"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    extra = {}
    for keyword, value in elements.items():
        if keyword.endswith("LUTData") or "Palette" in keyword:
            extra[keyword] = value  # after the others: their meaning depends on the pixels
        else:
            setattr(dataset, keyword, value)
    for keyword, value in extra.items():
        setattr(dataset, keyword, value)
    dataset.HighBit = elements.get("HighBit", dataset.BitsStored - 1)
    if isinstance(frames, np.ndarray):
        dataset.PixelData = np.ascontiguousarray(frames).tobytes() + b"\0" * (frames.nbytes % 2)
    else:
        dataset.PixelData = encapsulate(frames)
        dataset["PixelData"].VR = "OB"
    if dataset.BitsAllocated <= 8:
        dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def big_endian(values: np.ndarray, **elements: Any) -> bytes:
    return dicom(values.astype(values.dtype.newbyteorder(">")), uid.ExplicitVRBigEndian, **elements)


def rle(plane: np.ndarray) -> bytes:
    """One frame of bytes, as literal runs only."""
    body = b"".join(bytes([len(row) - 1]) + row.tobytes() for row in plane)
    return np.array([1, 64] + [0] * 14, "<u4").tobytes() + body + b"\0" * (len(body) % 2)


def table(entries: list[int], first: int, bits: int, vr: str = "US", count: int | None = None) -> list[Dataset]:
    (item,) = sequence({})
    item.add_new("LUTDescriptor", vr, [count or len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return [item]


def row(*values: int) -> np.ndarray:
    """(1, 4) grey, and so (1, 4, 3)."""
    return three(np.array([values], np.uint8))


def palette(name: str, entries: np.ndarray, bits: int, first: int = 0) -> dict[str, Any]:
    return {
        f"{name}PaletteColorLookupTableDescriptor": [len(entries), first, bits],
        f"{name}PaletteColorLookupTableData": entries.tobytes(),
    }


CT = np.array([[864, 865, 1064, 1264]], np.uint16)  # -160, -159, 40 and 240 Hounsfield units
CT_WINDOW = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
RAMP = np.array([[0, 50, 100, 200]], np.uint16)
STEPS = table([0, 16, 800, 4095], 49, 12)
ENHANCED = sequence(
    {"FrameVOILUTSequence": sequence({"WindowCenter": 100, "WindowWidth": 200, "VOILUTFunction": "LINEAR_EXACT"})},
    {"PixelValueTransformationSequence": sequence({"RescaleSlope": 2, "RescaleIntercept": 0, "RescaleType": "US"})},
)
SHARED = sequence(
    {"FrameVOILUTSequence": sequence({"WindowCenter": 200, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"})}
)
RED = np.arange(256, dtype=np.uint8)
PALETTES = palette("Red", RED, 8) | palette("Green", 255 - RED, 8) | palette("Blue", RED // 2, 8)
DEEP_PALETTES = {
    keyword: value
    for k, name in enumerate(("Red", "Green", "Blue"))
    for keyword, value in palette(name, np.array([0x1200, 0x34FF, 0xFF01], "<u2") >> 4 * k, 16, 10).items()
}
DARK = CT_WINDOW | {"PhotometricInterpretation": "MONOCHROME1"}
YBR = np.array([[[76, 85, 255], [150, 44, 21], [29, 255, 107], [200, 128, 128]]], np.uint8)  # JFIF's red, green, blue
SPLIT_YBR = np.array([76, 76, 85, 255, 150, 150, 44, 21], np.uint8).reshape(1, 4, 2)  # Y Y Cb Cr

EXACT: dict[str, tuple[bytes, np.ndarray]] = {
    "8 bit": (dicom(GREY), three(GREY)),
    "8 bit, white is zero": (dicom(GREY, PhotometricInterpretation="MONOCHROME1"), three(255 - GREY)),
    "16 bit": (dicom(DEEP), three((DEEP >> 8).astype(np.uint8))),
    "12 bit": (dicom(TWELVE, BitsStored=12), three((DEEP >> 8).astype(np.uint8))),
    "10 bit, implicit": (dicom(DEEP >> 6, uid.ImplicitVRLittleEndian, BitsStored=10), three((DEEP >> 8).astype("u1"))),
    "12 bit with an overlay in the unused bits": (
        dicom(TWELVE | 0xA000, BitsStored=12),
        three((DEEP >> 8).astype(np.uint8)),
    ),
    "16 bit, signed": (dicom(SIGNED), three((DEEP >> 8).astype(np.uint8))),
    "12 bit, signed": (
        dicom((SIGNED >> 4).view(np.uint16) & 0xFFF, BitsStored=12, PixelRepresentation=1),
        three((DEEP >> 8).astype(np.uint8)),
    ),
    "16 bit, big-endian": (big_endian(DEEP), three((DEEP >> 8).astype(np.uint8))),
    "4 bit": (dicom(np.array([[0, 1, 7, 15]], np.uint8), BitsStored=4), row(0, 17, 119, 255)),
    "1 bit": (
        dicom(np.packbits([1, 0, 1, 1], bitorder="little")[None], BitsAllocated=1, BitsStored=1, Columns=4),
        row(255, 0, 255, 255),
    ),
    "slope of zero that nothing uses": (dicom(GREY, RescaleSlope=0), three(GREY)),
    "deflated": (dicom(GREY, uid.DeflatedExplicitVRLittleEndian), three(GREY)),
    # PS3.3 C.11.2.1.2 by hand: 40 HU is ((40 - 39.5) / 399 + 0.5) * 255 = 127.8
    "slope, intercept, window": (dicom(CT, **CT_WINDOW), row(0, 1, 128, 255)),
    "the same, white is zero": (dicom(CT, **DARK), row(255, 254, 127, 0)),
    "exact window": (
        dicom(RAMP, WindowCenter=100, WindowWidth=200, VOILUTFunction="LINEAR_EXACT"),
        row(0, 64, 128, 255),
    ),
    "sigmoid": (dicom(RAMP, WindowCenter=100, WindowWidth=200, VOILUTFunction="SIGMOID"), row(30, 69, 128, 225)),
    "a window one wide is a threshold": (dicom(RAMP, WindowCenter=100, WindowWidth=1), row(0, 0, 255, 255)),
    "the first of two windows": (
        dicom(CT, **CT_WINDOW | {"WindowCenter": [40, 0], "WindowWidth": [400, 9]}),
        row(0, 1, 128, 255),
    ),
    "negative slope": (dicom(RAMP.astype(np.uint8), RescaleSlope=-1, RescaleIntercept=0), row(255, 205, 155, 55)),
    "a slope alone changes nothing": (
        dicom(RAMP.astype(np.uint8), RescaleSlope=3, RescaleIntercept=9),
        row(0, 50, 100, 200),
    ),
    # 0 and 50 HU take entries 0 and 1 (the table begins at 49), 100 and 200 its last: 12 bits, so 16 becomes 1
    "VOI table": (dicom(RAMP, VOILUTSequence=STEPS), row(0, 1, 255, 255)),
    "VOI table before window": (dicom(RAMP, VOILUTSequence=STEPS, WindowCenter=1, WindowWidth=1), row(0, 1, 255, 255)),
    "intercept, then VOI table": (
        dicom(
            RAMP.astype(np.int16),
            RescaleSlope=1,
            RescaleIntercept=-51,
            VOILUTSequence=table([0, 16, 800, 4095], -2, 12, "SS"),
        ),
        row(0, 1, 255, 255),
    ),
    "modality table": (dicom(RAMP, ModalityLUTSequence=table([7, 100, 255], 49, 8)), row(7, 100, 255, 255)),
    "modality table, then window": (
        dicom(
            RAMP,
            ModalityLUTSequence=table([0, 50, 200], 49, 8),
            WindowCenter=100,
            WindowWidth=200,
            VOILUTFunction="LINEAR_EXACT",
        ),
        row(0, 64, 255, 255),
    ),
    "modality table, then white is zero": (
        dicom(RAMP, ModalityLUTSequence=table([7, 100, 255], 49, 8), PhotometricInterpretation="MONOCHROME1"),
        row(248, 155, 0, 0),
    ),
    "rgb": (dicom(COLOUR), COLOUR),
    "rgb by plane": (dicom(COLOUR.transpose(2, 0, 1).reshape(COLOUR.shape), PlanarConfiguration=1), COLOUR),
    "16 bit rgb": (dicom(np.stack([DEEP] * 3, 2)), three((DEEP >> 8).astype(np.uint8))),
    "palette": (
        dicom(GREY, PhotometricInterpretation="PALETTE COLOR", **PALETTES),
        np.stack([GREY, 255 - GREY, GREY // 2], 2),
    ),
    "16 bit palette": (
        dicom(np.array([[0, 10, 11, 99]], np.uint8), PhotometricInterpretation="PALETTE COLOR", **DEEP_PALETTES),
        np.array([[[0x12, 0x01, 0x00], [0x12, 0x01, 0x00], [0x34, 0x03, 0x00], [0xFF, 0x0F, 0x00]]], np.uint8),
    ),
    "rle": (dicom([rle(GREY)], uid.RLELossless, GREY.shape), three(GREY)),
    "jpeg-ls": (
        dicom([imagecodecs.jpegls_encode(DEEP)], uid.JPEGLSLossless, DEEP.shape, BitsAllocated=16, BitsStored=16),
        three((DEEP >> 8).astype(np.uint8)),
    ),
    "jpeg 2000": (
        dicom(
            [imagecodecs.jpeg2k_encode(DEEP, level=0, codecformat="j2k")],
            uid.JPEG2000Lossless,
            DEEP.shape,
            BitsAllocated=16,
            BitsStored=16,
        ),
        three((DEEP >> 8).astype(np.uint8)),
    ),
    "jpeg 2000, signed": (
        dicom(
            [imagecodecs.jpeg2k_encode(SIGNED, level=0, codecformat="j2k")],
            uid.JPEG2000Lossless,
            DEEP.shape,
            BitsAllocated=16,
            BitsStored=16,
            PixelRepresentation=1,
        ),
        three((DEEP >> 8).astype(np.uint8)),
    ),
    "jpeg 2000, colour": (
        dicom(
            [imagecodecs.jpeg2k_encode(COLOUR, level=0, codecformat="j2k")],
            uid.JPEG2000Lossless,
            COLOUR.shape,
            PhotometricInterpretation="YBR_RCT",
        ),
        COLOUR,
    ),
    "high-throughput jpeg 2000": (dicom([imagecodecs.htj2k_encode(GREY)], HTJ2K, GREY.shape), three(GREY)),
    "lossless jpeg, 12 bit": (
        dicom(
            [imagecodecs.jpeg8_encode(TWELVE, lossless=True, bitspersample=12)],
            JPEG_LOSSLESS,
            DEEP.shape,
            BitsAllocated=16,
            BitsStored=12,
        ),
        three((DEEP >> 8).astype(np.uint8)),
    ),
    "lossless jpeg, 16 bit, signed": (
        dicom(
            [imagecodecs.jpeg8_encode(SIGNED.view(np.uint16), lossless=True, bitspersample=16)],
            JPEG_LOSSLESS,
            DEEP.shape,
            BitsAllocated=16,
            BitsStored=16,
            PixelRepresentation=1,
        ),
        three((DEEP >> 8).astype(np.uint8)),
    ),
}

SMOOTH = np.add.outer(np.arange(32), np.arange(40)).astype(np.uint8) * 3
NEAR: dict[str, tuple[bytes, np.ndarray]] = {
    "ybr": (
        dicom(YBR, PhotometricInterpretation="YBR_FULL"),
        np.array([[[254, 0, 0], [0, 255, 1], [0, 0, 254], [200] * 3]]),
    ),
    "ybr 4:2:2": (
        dicom(SPLIT_YBR, PhotometricInterpretation="YBR_FULL_422", SamplesPerPixel=3, PlanarConfiguration=0),
        np.array([[[254, 0, 0], [254, 0, 0], [0, 255, 1], [0, 255, 1]]]),
    ),
    "jpeg": (dicom([imagecodecs.jpeg8_encode(SMOOTH, level=95)], uid.JPEGBaseline8Bit, SMOOTH.shape), three(SMOOTH)),
    "12 bit jpeg": (
        dicom(
            [imagecodecs.jpeg8_encode(SMOOTH.astype(np.uint16) << 4, level=95, bitspersample=12)],
            JPEG_12,
            SMOOTH.shape,
            BitsAllocated=16,
            BitsStored=12,
        ),
        three(SMOOTH),
    ),
}

FRAMES = dicom(
    np.concatenate([RAMP, RAMP, RAMP]),
    Rows=1,
    NumberOfFrames=3,
    PerFrameFunctionalGroupsSequence=[*ENHANCED, Dataset()],
    SharedFunctionalGroupsSequence=SHARED,
)
OF_FRAMES = {1: row(0, 64, 128, 255), 2: row(0, 64, 128, 255), 3: row(0, 32, 64, 128)}
# Frame 2 doubles its values (0, 100, 200, 400) and takes the shared window of 0 to 400, as frame 3 does.
