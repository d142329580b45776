"""From DICOM files to uint8 RGB: the part of `images.py` that needs the extra `dicom`.

Why its own module: a DICOM file holds measurements, and says itself how to show them. Try it:
`python -c "from edgemed.images import image_from_file; print(image_from_file('scan.dcm').shape)"`.

A file with the DICOM mark (`DICM` after 128 bytes) is read, whatever its suffix. `FILE#3` is its third frame, counted
from 1 as DICOM does; a file of several frames is refused without a number. The rules, in the order of DICOM PS3.3 C.11:

1. Stored value: 1 to 16 bits, unsigned or signed; unused high bits are ignored (PS3.5 8.1.1). Where lossy compression
   overshoots into them, the value is clipped. 32 bits and floats are refused.
2. Modality: the frame's Modality LUT, else slope and intercept.
3. VOI: the first VOI LUT (its 8 highest bits), else the first window (LINEAR, LINEAR_EXACT or SIGMOID) onto 0..255,
   rounded half up. Without either, the 8 highest bits of what step 2 started from, reversed by a negative slope, the
   same for every image: as `images.py` treats 16 bit. Below 8 bits the range is stretched.
4. MONOCHROME1: `255 - value`, so that white is bright everywhere.

Colour: RGB, YBR_FULL, YBR_FULL_422 (as JPEG does it), YBR_RCT and YBR_ICT (in JPEG 2000), PALETTE COLOR; 16 bit: the 8
highest. Steps 2 to 4 are for grey. Enhanced files: the frame's own functional groups come first, then the shared ones.
Not drawn or heeded: overlays, padding values, ICC profiles, pixel aspect, patient orientation, supplemental palettes.

Compressed: RLE, JPEG (8 bit, 12 bit, lossless), JPEG-LS, JPEG 2000, HTJ2K: see `dicom_codecs.py`. Video is refused.

No patient is named by what is read here, but pixels may have a name burned in. Who is one patient: see `patients.py`.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.dicom_codecs import decoder_of
from edgemed.errors import one_line, refusal

SUFFIXES = frozenset({".dcm", ".dicom"})
_FRAME = re.compile(r"(?s)(.+)#([0-9]{1,9})")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_INFLATED = 1 << 30
_RLE = {"1.2.840.10008.1.2.5": "pydicom"}  # transfer syntax -> which of pydicom's decoders
_INSTALL = "pip install 'edgemed[dicom]'"


class _UnusableError(ValueError):
    """What an element states makes no picture. Its text quotes numbers only: other errors may quote a patient."""


def is_dicom(data: bytes) -> bool:
    """Whether a file that begins with `data` (132 bytes are enough) carries the mark of DICOM."""
    return data[128:132] == b"DICM"


def frame_of(path: str | Path) -> tuple[Path, int | None]:
    """`scan.dcm#3` -> (scan.dcm, 3); any other path, and one that exists as it is -> (path, None)."""
    match = _FRAME.fullmatch(str(path))
    if match is None or os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a name that is too long
        return Path(path), None
    return Path(match[1]), int(match[2])


def rgb_from_dicom(data: bytes, name: str, frame: int | None, max_pixels: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of a DICOM file, by the rules of this module. `name` is what an `InputError` calls it.

    frame: from 1; None for a file that has one only. max_pixels: more are refused before anything is decoded.
    """
    require_pydicom(name)
    try:
        dataset = parsed(data)
        index = _frame_index(dataset, name, frame)
        _check_header(dataset, name, max_pixels)
        values, shown = _decoded(dataset, name, index)
        if values.ndim == 2 and shown.startswith("MONOCHROME"):
            grey = _grey(values, dataset, index)
            return np.repeat((255 - grey if shown == "MONOCHROME1" else grey)[:, :, None], 3, axis=2)
        if values.ndim == 2 and shown == "PALETTE COLOR":
            return np.ascontiguousarray(_coloured(values, dataset))
        if values.ndim == 3 and values.shape[2] == 3 and shown == "RGB":
            return np.ascontiguousarray(_high_bits(values, int(dataset.BitsStored)))
        what = f"holds {one_line(shown)} pixels, which no rule makes RGB"
    except _UnusableError as error:
        what = f"states {error}"
    except reader_errors() as error:
        what = f"is damaged ({type(error).__name__} while it was read)"
    raise refusal(name, what, "export it again as RGB or MONOCHROME2, or take it out")


@cache
def reader_errors() -> tuple[type[Exception], ...]:
    """What pydicom and the decoders raise on malformed bytes."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (
        OSError, ValueError, EOFError, struct.error, zlib.error, ArithmeticError, LookupError, TypeError,
        AttributeError, MemoryError, NotImplementedError, RuntimeError, AssertionError,
        BytesLengthException, InvalidDicomError,
    )  # fmt: skip


def require_pydicom(name: str) -> None:
    """Raise `InputError` where the extra is not installed. `name`: the file that needs it."""
    if find_spec("pydicom") is None:
        raise refusal(name, "is a DICOM file, and reading those needs pydicom", _INSTALL)


def parsed(data: bytes) -> Any:
    """pydicom's Dataset of a file. `_UnusableError` where a deflated one inflates without end."""
    import pydicom

    if _DEFLATED in data[132:1024]:
        begin = 144 + struct.unpack_from("<I", data, 140)[0]
        if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[begin:], _MAX_INFLATED)) == _MAX_INFLATED:
            raise _UnusableError(f"more than {_MAX_INFLATED} bytes, deflated")
    return pydicom.dcmread(io.BytesIO(data))


def _frame_index(dataset: Any, name: str, frame: int | None) -> int:
    """From 0."""
    count = int(dataset.get("NumberOfFrames") or 1)
    if frame is None and count > 1:
        what = f"holds {count} frames"
        raise refusal(name, what, "name the one that matters in a CSV: FILE#1 is the first")
    number = 1 if frame is None else frame
    if not 1 <= number <= count:
        raise refusal(name, f"has no such frame: the file holds {count}", "name one of them, the first is #1")
    return number - 1


def _check_header(dataset: Any, name: str, max_pixels: int) -> None:
    """Raise `InputError` for what the header alone rules out."""
    if "PixelData" not in dataset:
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            raise refusal(name, "holds floating-point pixels, for which no range is defined", "export it as 16 bit")
        raise refusal(name, "holds no pixels: a report or a plan, or cut off before them", "take it out")
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        if dataset.get(keyword) is None:
            raise _UnusableError(f"no {keyword}")
    height, width, stored = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsStored)
    if not 0 < height * width <= max_pixels:
        what = f"has {width} x {height} pixels; the limit is {max_pixels}"
        raise refusal(name, what, "crop or scale it down first")
    if not 1 <= stored <= 16 or int(dataset.BitsAllocated) not in (1, 8, 16):
        raise refusal(name, f"has {stored} bits per pixel; 1 to 16 can be read", "export it as 16 bit")
    if int(dataset.get("HighBit", stored - 1)) != stored - 1:
        raise refusal(name, "keeps its pixels in other than the lowest bits", "export it again")


def _decoded(dataset: Any, name: str, index: int) -> tuple[NDArray[Any], str]:
    """Stored values of a frame, (H, W) or (H, W, 3), and how they are to be shown, YBR already made RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = decoder_of(str(syntax))
    except NotImplementedError as error:
        what = f"is compressed as {one_line(syntax.name)}, which cannot be read"
        raise refusal(name, what, "export it uncompressed") from error
    if not decoder.is_available:
        what = f"is compressed as {syntax.name}, and decoding that needs imagecodecs"
        raise refusal(name, what, _INSTALL)
    try:
        if int(dataset.BitsAllocated) == 1 and not syntax.is_compressed:
            return _bits(dataset, index), str(dataset.PhotometricInterpretation)
        values, properties = decoder.as_array(dataset, index=index, decoding_plugin=_RLE.get(str(syntax), ""))
    except reader_errors() as error:
        what = f"its pixels ({syntax.name}) are truncated, damaged or of an unusual kind: {one_line(error)}"
        raise refusal(name, what, "export it again, uncompressed") from error
    unused = values.dtype.itemsize * 8 - int(dataset.BitsStored)
    values = values << unused >> unused  # in their own type, so that a sign comes back
    return values, str(properties["photometric_interpretation"])


def _bits(dataset: Any, index: int) -> NDArray[np.uint8]:
    """(H, W) of a frame of one bit a pixel, which may begin inside of a byte: pydicom's way to one ends too early."""
    shape = int(dataset.Rows), int(dataset.Columns)
    begin = index * shape[0] * shape[1]
    end = begin + shape[0] * shape[1]
    packed = np.frombuffer(dataset.PixelData[begin // 8 : -(-end // 8)], np.uint8)
    found = np.unpackbits(packed, bitorder="little")[begin % 8 :][: end - begin]
    if len(found) < end - begin:
        raise ValueError(f"frame {index + 1} ends after {len(found)} of {end - begin} pixels")
    return found.reshape(shape)


def _grey(stored: NDArray[Any], dataset: Any, index: int) -> NDArray[np.uint8]:
    """(H, W) stored values -> (H, W) after modality and VOI, before MONOCHROME1's inversion."""
    modality = _functional(dataset, index, "PixelValueTransformationSequence")
    voi = _functional(dataset, index, "FrameVOILUTSequence")
    slope, intercept = float(_first(modality, "RescaleSlope", 1)), float(_first(modality, "RescaleIntercept", 0))
    bits = int(dataset.BitsStored)
    shift = 1 << bits - 1 if dataset.PixelRepresentation else 0
    shown = voi.get("VOILUTSequence")
    windowed = voi.get("WindowCenter") is not None and voi.get("WindowWidth") is not None
    if tables := dataset.get("ModalityLUTSequence"):
        levels, bits = _looked_up(stored, dataset, tables[0], "LUT", signed=shift > 0)
        values: NDArray[Any] = levels
        slope, lowest = 1.0, 0.0
    elif not np.isfinite([slope, intercept]).all() or (not slope and (shown or windowed)):
        raise _UnusableError(f"a rescale slope of {slope:g} and an intercept of {intercept:g}")
    else:
        levels = stored.astype(np.int64) + shift
        values = stored * slope + intercept
        lowest = min(slope * -shift, slope * ((1 << bits) - 1 - shift)) + intercept  # that the file could hold
    if shown:
        return _high_bits(*_looked_up(values, dataset, shown[0], "LUT", signed=lowest < 0))
    if windowed:
        centre, width = float(_first(voi, "WindowCenter", 0)), float(_first(voi, "WindowWidth", 1))
        return _windowed(values, centre, width, str(voi.get("VOILUTFunction") or "LINEAR"))
    return 255 - _high_bits(levels, bits) if slope < 0 else _high_bits(levels, bits)


def _windowed(values: NDArray[Any], centre: float, width: float, function: str) -> NDArray[np.uint8]:
    """DICOM PS3.3 C.11.2.1.2 onto 0..255, rounded half up."""
    linear = function == "LINEAR"
    if not (np.isfinite([centre, width]).all() and width > 0) or (linear and width < 1):
        least = "1 or more" if linear else "above 0"
        what = f"a {function} window of centre {centre:g} and width {width:g}"
        raise _UnusableError(f"{what}: it takes numbers, the width {least}")
    if linear:
        share = (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5
    elif function == "LINEAR_EXACT":
        share = (values - centre) / width + 0.5
    elif function == "SIGMOID":
        share = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    else:
        raise _UnusableError("a VOI function that is not known")
    return np.floor(np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)


def _looked_up(
    values: NDArray[Any], dataset: Any, table: Any, prefix: str, signed: bool = False
) -> tuple[NDArray[np.int64], int]:
    """Values through a look-up table, and the bits of its entries; what lies outside takes the nearest entry.

    signed: whether values may be negative. Then the first one of the table is signed, too (PS3.3 C.11.2.1.1), which a
    file of implicit VR cannot say: pydicom reads it by the sign of the pixels, and so -1024 as 64512.
    """
    count, start, bits = (int(value) for value in table[f"{prefix}Descriptor"].value)
    if signed and start > 0x7FFF:
        start -= 1 << 16
    data = table[f"{prefix}Data"].value
    count = count or 1 << 16
    if isinstance(data, bytes):
        order = "<" if dataset.original_encoding[1] else ">"
        narrow = len(data) < 2 * count  # two entries in a word of OW, whose bytes big-endian swaps (PS3.5 7.3)
        in_words = order == ">" and table[f"{prefix}Data"].VR == "OW"
        data = np.frombuffer(data, f"{order}u2" if in_words or not narrow else np.uint8)
        data = data.byteswap().view(np.uint8) if in_words and narrow else data
    entries = np.atleast_1d(np.asarray(data, np.int64))[:count]
    if len(entries) < count or not 8 <= bits <= 16:
        raise _UnusableError(f"a look-up table of {len(entries)} entries with {bits} bits in place of {count}")
    position = np.clip(np.floor(np.asarray(values, np.float64) + 0.5) - start, 0, count - 1).astype(np.int64)
    return entries[position], bits


def _coloured(values: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:
    """(H, W) indices -> (H, W, 3) by the file's palettes."""
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        from pydicom.pixels import apply_color_lut

        colours = apply_color_lut(values, dataset)[:, :, :3]
        return _high_bits(colours, colours.dtype.itemsize * 8)
    planes = [
        _high_bits(*_looked_up(values, dataset, dataset, f"{name}PaletteColorLookupTable"))
        for name in ("Red", "Green", "Blue")
    ]
    return np.stack(planes, axis=2)


def _high_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Integers of `bits` bits -> the 8 highest; fewer than 8 bits are stretched onto 0..255."""
    top = (1 << bits) - 1
    values = np.clip(values.astype(np.int64), 0, top)
    return (values >> bits - 8 if bits >= 8 else values * 255 // top).astype(np.uint8)


def _functional(dataset: Any, index: int, sequence: str) -> Any:
    """Where a frame's modality or VOI is stated: its own functional group, the shared one, or the file itself."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[index : index + 1], *shared[:1]):
        if items := group.get(sequence):
            return items[0]
    return dataset


def _first(dataset: Any, keyword: str, default: float) -> Any:
    """The first value of an element, or the default where it is missing or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return default
    return value if isinstance(value, (int, float, str)) else value[0]
