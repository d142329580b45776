"""From image files to uint8 RGB: the one place that says what a file's pixels are.

Training, evaluation and every runtime take their pixels from here, so that the network sees the same numbers
everywhere. Try it: `python -c "from edgemed.images import image_from_file; print(image_from_file('scan.png').shape)"`.

What a file holds decides, not its suffix: PNG, JPEG, BMP, TIFF and DICOM are read. `dicom.py` has the rules for DICOM,
where `scan.dcm#3` is the third frame of a file. The rules for the others:

- 1 bit: 0 and 255. Grey: the value three times. Palette: its colours. 2 and 4 bit: stretched to 0..255.
- 16 bit (12 bit in a TIFF): the 8 highest bits (`value >> 8`, 12 bit: `>> 4`), the same for every image. Nothing is
  stretched to the values that happen to occur: a file that uses 12 of its 16 bits comes out as 16 levels of dark grey
  and wants a window chosen by its owner: `dataset.scan` says so. TIFF's "white is zero" is inverted.
- 32-bit integers, floats, signed values, LAB: refused, since no range is defined. Refused as well, since Pillow would
  make noise of them: uncompressed TIFF of 16 bits by plane, or of subsampled YCbCr.
- Transparency (RGBA, LA, palette entries, PNG's transparent colour): composited over black, the background of medical
  images: `(colour * alpha + 127) // 255`. A BMP whose alpha is 0 everywhere has none: its writer left the bytes empty.
  A transparent colour of 16-bit RGB is refused, since Pillow keeps only 8 bits to tell it from its neighbours.
- CMYK: `(255 - ink) * (255 - black) / 255` as Pillow does, Adobe's inverted files understood. YCbCr: as in JPEG.
- Orientation (EXIF, XMP): applied, so that height and width are those on the screen. A damaged EXIF block counts as
  none, as in any viewer. Colour profiles (ICC) and gamma are ignored.
- Several pages or frames (a TIFF stack or pyramid, an animated PNG): refused, since the page that matters is not
  ours to guess. The previews that cameras append to a JPEG (MPO) are not pages: the picture itself is taken.
- More than `MAX_PIXELS` pixels, or more than `MAX_BYTES` bytes: refused before anything is decoded.
- A truncated file is refused, and a PNG's checksums are verified. JPEG, BMP and TIFF have none, so a flipped bit in
  their pixels goes unseen; so does what a JPEG lacks where somebody put the mark of its end behind the cut.

Every refusal is an `InputError` of one line that names the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.ExifTags import Base as Tag

from edgemed import dicom
from edgemed.damage import gap, misread, png_damage
from edgemed.errors import InputError, did_you_mean, one_line, refusal

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}) | dicom.SUFFIXES
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
MAX_PIXELS = 89_478_485  # Pillow's own limit: 268 MB as RGB. Its warning comes above it, and so does our refusal
MAX_BYTES = 1 << 30  # the largest image allowed needs 716 MB at 16-bit RGBA without compression

PixelFormat = Literal["RGB", "BGR", "RGBA", "GRAY8"]
Rgb = NDArray[np.uint8]  # (H, W, 3), C-contiguous, R first
Sides = tuple[int, int, int]  # min, opt, max in pixels, of what an engine takes

MODES_16 = frozenset({"I;16", "I;16L", "I;16B"})  # Pillow's, of 16 bits

_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_MODES_ALIKE = frozenset({"L", "RGB"})
_CHANNELS: dict[str, tuple[int, ...]] = {"RGB": (0, 1, 2), "BGR": (2, 1, 0), "RGBA": (0, 1, 2), "GRAY8": (0, 0, 0)}
_PNG_EXTRAS = frozenset({"transparency", "exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp", "loop"})

NO_MEMORY = ("needs more memory than there is", "free some, scale the image down, or take it out")

# What Pillow's parsers raise on malformed bytes. Some are written in Python and trip over what they read.
_DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error,
    ArithmeticError, LookupError, TypeError, AttributeError, MemoryError, NotImplementedError,
)  # fmt: skip


def is_image(path: Path) -> bool:
    """Whether a file of a folder counts as an image: by its suffix or, as scanners name files, by its DICOM mark.

    A DICOMDIR, the table of contents of a disc, has the mark and shows nothing.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file() or path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as handle:
            return dicom.is_dicom(handle.read(132))
    except OSError:
        return False


def image_from_file(path: str | Path) -> Rgb:
    """The pixels of an image file as (H, W, 3) uint8 RGB, by the rules of this module. `InputError` when refused."""
    file, frame = dicom.frame_of(path)
    return image_from_bytes(_bytes_of(file), str(path), frame)


def image_from_bytes(data: bytes, name: str, frame: int | None = None) -> Rgb:
    """The pixels of an encoded image as (H, W, 3) uint8 RGB. `name` is what an `InputError` calls it.

    frame: which one of a DICOM file with several, counted from 1.
    """
    if dicom.is_dicom(data):
        return dicom.rgb_from_dicom(data, name, frame, MAX_PIXELS)
    if frame is not None:
        raise refusal(name, "names a frame, but the file is not DICOM", "leave the number out")
    with _opened(data, name) as image:
        try:
            damage = png_damage(data) if image.format == "PNG" else misread(image) or gap(image)
            if damage is None:
                image.load()
                return _upright(_rgb(image), _orientation(image))
        except MemoryError as error:
            raise refusal(name, *NO_MEMORY) from error
        except _DECODER_ERRORS as error:
            damage = one_line(error)
    raise refusal(name, f"cannot be decoded: {damage}", "export it again, or take it out")


def image_from_pixels(array: NDArray[Any], format: PixelFormat = "RGB") -> Rgb:
    """Pixels from memory as (H, W, 3) uint8 RGB, C-contiguous; contiguous RGB comes back uncopied.

    array: uint8; (H, W, 3) for RGB and BGR, (H, W, 4) for RGBA (straight alpha, composited over black),
    (H, W) or (H, W, 1) for GRAY8. `InputError` for another dtype, shape or format.
    """
    if format not in _CHANNELS:
        raise InputError(f"pixel format {format!r} is not known.{did_you_mean(str(format), _CHANNELS)}")
    pixels = np.asarray(array)
    if pixels.dtype != np.uint8:
        raise InputError(f"pixels have the dtype {pixels.dtype}: pass uint8 values 0..255")
    if format == "GRAY8" and pixels.ndim == 2:
        pixels = pixels[:, :, None]
    wanted = {"RGBA": 4, "GRAY8": 1}.get(format, 3)
    if pixels.ndim != 3 or pixels.shape[2] != wanted or 0 in pixels.shape:
        shape = "(H, W)" if format == "GRAY8" else f"(H, W, {wanted})"
        raise InputError(f"pixels have the shape {np.shape(array)}: {format} needs {shape}, with H and W at least 1")
    if format == "RGBA":
        return _over_black(pixels)
    if format == "RGB":
        return np.ascontiguousarray(pixels)
    return np.ascontiguousarray(pixels[:, :, list(_CHANNELS[format])])


def fits(image: Rgb, sides: Sides) -> bool:
    """Whether height and width lie within the range."""
    return bool(sides[0] <= min(image.shape[:2]) and max(image.shape[:2]) <= sides[2])


def pixels_sha256(image: Rgb) -> str:
    """Hex sha256 over the ASCII header `b"H W\\n"` and the RGB bytes: two shapes of the same bytes never collide."""
    digest = hashlib.sha256(b"%d %d\n" % image.shape[:2])
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def decodes_alike(path: str | Path) -> bool:
    """Whether DALI's own decoder follows the rules of this module for that file, judged by its header.

    True for upright 8-bit grey and RGB JPEG and PNG without transparency. False sends the file through
    `image_from_file`, which also has the error text for what cannot be read.
    """
    try:
        data = _bytes_of(Path(path))
        with _opened(data, str(path)) as image:
            if image.format == "PNG":  # its raw mode is L;4 for 4 bit, RGB;16B for 16 bit, P;1 for a palette of two
                plain = not _PNG_EXTRAS & image.info.keys() and b"eXIf" not in data
                return plain and image.tile[0].args in _MODES_ALIKE
            exif, orientation = image.info.get("exif", b""), image.getexif().get(Tag.Orientation)
            # Where Pillow passes over a damaged entry, DALI may still turn the image.
            named = any(Tag.Orientation.to_bytes(2, order) in exif for order in ("big", "little"))
            hidden = orientation is None and named
            return image.format == "JPEG" and image.mode in _MODES_ALIKE and _orientation(image) == 1 and not hidden
    except (InputError, *_DECODER_ERRORS):
        return False


def _bytes_of(path: Path) -> bytes:
    try:
        if not path.is_file():
            what = "is a folder, not an image" if path.is_dir() else "does not exist, or is not a regular file"
            raise refusal(str(path), what, "check the path")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise refusal(str(path), f"has {size} bytes, more than {MAX_BYTES}", "crop or scale it down first")
        return path.read_bytes()
    except MemoryError as error:
        raise refusal(str(path), *NO_MEMORY) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        what = f"cannot be read: {one_line(error)}"
        raise refusal(str(path), what, "check the path and its permissions") from error


def _opened(data: bytes, name: str) -> ImageFile.ImageFile:
    """The image with its header read and nothing decoded yet, once everything that the header can rule out is."""
    if not data:
        raise refusal(name, "is empty (0 bytes)", "copy it again from its source")
    if len(data) > MAX_BYTES:
        raise refusal(name, f"has {len(data)} bytes, more than {MAX_BYTES}", "crop or scale it down first")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        pages = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise refusal(name, f"has more than {MAX_PIXELS} pixels", "crop or scale it down first") from error
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES):
            what = "has a damaged or truncated header, or is of a kind that is not read"
            raise refusal(name, what, "export it again, as 8 or 16 bit, or take it out") from error
        what = f"is not a PNG, JPEG, BMP, TIFF or DICOM image (it begins with {data[:8]!r})"
        raise refusal(name, what, "export it as one of these, or take it out") from error
    except _DECODER_ERRORS as error:
        raise refusal(name, f"has a damaged header: {one_line(error)}", "export it again, or take it out") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        what = f"has {width} x {height} pixels, more than {MAX_PIXELS}"
        raise refusal(name, what, "crop or scale it down first")
    if width < 1 or height < 1:
        raise refusal(name, f"has {width} x {height} pixels", "export it again, or take it out")
    if pages > 1:
        raise refusal(name, f"holds {pages} pages or frames", "export the one that matters as an image of its own")
    if 2 in np.ravel(getattr(image, "tag_v2", {}).get(Tag.SampleFormat, 1)):
        what = "holds signed values, for which no range is defined"
        raise refusal(name, what, "export it with unsigned ones")
    if image.mode not in _MODES | MODES_16:
        what = f"holds {image.mode} pixels (32-bit integer, floating point or LAB), for which no range is defined"
        raise refusal(name, what, "export it as 8 or 16 bit")
    if image.format == "PNG" and (key := image.info.get("transparency")) is not None:
        depth = data[24]
        if depth == 16 and image.mode == "RGB":
            raise refusal(name, "is 16-bit RGB with a transparent colour", "export it with an alpha channel")
        if depth in (2, 4) and image.mode == "L" and isinstance(key, int):  # Pillow stretches the pixels, but not this
            image.info["transparency"] = key * 255 // (2**depth - 1)
    return image


def _rgb(image: ImageFile.ImageFile) -> Rgb:
    """(H, W, 3) of a loaded image, not yet turned upright."""
    if image.mode in MODES_16:
        values = np.asarray(image).astype(np.uint16)  # whatever its byte order was
        tags: Any = getattr(image, "tag_v2", {})
        bits = min(int(np.ravel(tags.get(Tag.BitsPerSample, 16))[0]), 16)
        grey = (values >> max(bits - 8, 0)).astype(np.uint8)
        if tags.get(Tag.PhotometricInterpretation) == 0:
            grey = 255 - grey
        if (key := image.info.get("transparency")) is not None:
            grey[values == key] = 0
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        empty = image.format == "BMP" and not rgba[:, :, 3].any()
        return rgba[:, :, :3].copy() if empty else _over_black(rgba)
    return np.array(image.convert("RGB"))


def _over_black(rgba: NDArray[np.uint8]) -> Rgb:
    """(H, W, 4) with straight alpha -> (H, W, 3)."""
    colour, alpha = rgba[:, :, :3], rgba[:, :, 3:]
    if int(alpha.min()) == 255:
        return np.ascontiguousarray(colour)
    return ((colour.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)


def _orientation(image: ImageFile.ImageFile) -> int:
    """Orientation 1..8 of a loaded image by EXIF, else by XMP. Pillow has already turned a TIFF, and says 1."""
    with contextlib.suppress(*_DECODER_ERRORS):  # a damaged block counts as none, as in viewers
        if (stated := image.getexif().get(Tag.Orientation)) is not None:
            return int(stated)
    found = re.search(rb'tiff:Orientation(="|>)([0-9])', image.info.get("xmp", b""))  # Pillow leaves it out then
    return int(found[2]) if found else 1


def _upright(image: Rgb, orientation: int) -> Rgb:
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
