"""Compressed DICOM frames through imagecodecs, as a decoding plugin of pydicom that only `dicom.py` uses.

Why its own plugin: pydicom takes whichever decoder is installed, and they differ. python-gdcm, its usual one, ends the
whole process on a damaged JPEG; pylibjpeg-libjpeg is under the GPL; Pillow knows no lossless JPEG and no 12 bits. The
libraries in imagecodecs (libjpeg-turbo, OpenJPEG, OpenJPH, CharLS) serve every still-image syntax, the same way on
every machine. RLE is pydicom's own. `dicom._decoded` is the user; nothing is added to pydicom's own decoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

_PREFIX = "1.2.840.10008.1.2.4."
_LOSSY = frozenset(_PREFIX + tail for tail in ("50", "51"))
_JPEG = _LOSSY | frozenset(_PREFIX + tail for tail in ("57", "70"))
_JPEG_LS = frozenset(_PREFIX + tail for tail in ("80", "81"))
_JPEG_2000 = frozenset(_PREFIX + tail for tail in ("90", "91"))
_HTJ2K = frozenset(_PREFIX + tail for tail in ("201", "202", "203"))
SYNTAXES = _JPEG | _JPEG_LS | _JPEG_2000 | _HTJ2K

DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, ("imagecodecs",))  # pydicom asks a plugin for this name


def is_available(uid: str) -> bool:
    """Whether this plugin can decode a transfer syntax here. pydicom asks for this name as well."""
    return uid in SYNTAXES and find_spec("imagecodecs") is not None


@cache
def decoder_of(uid: str) -> Any:
    """pydicom's decoder of a transfer syntax: with this plugin alone for those of `SYNTAXES`, else as it comes.

    NotImplementedError for a syntax that is none of still images.
    """
    from pydicom.pixels import get_decoder
    from pydicom.pixels.decoders.base import Decoder
    from pydicom.uid import UID

    if uid not in SYNTAXES:
        return get_decoder(UID(uid))
    decoder = Decoder(UID(uid))
    decoder.add_plugin("edgemed", (__name__, "decode_frame"))
    return decoder


def decode_frame(source: bytes, runner: Any) -> bytes:
    """The samples of one frame, colour by pixel, in the smallest type that holds the precision in its own header.

    The colour space is left as it is, but for JPEG 2000, whose codestream transforms its colours itself. A lossy JPEG
    whose own header says what its colours are is right about them, whatever the DICOM header states. What a lossy one
    overshoots is clipped to the bits stored: taken for their lowest bits, white would be black. ValueError where the
    frame is cut off, or has another size than the DICOM header states, before its pixels are decoded.
    """
    import imagecodecs

    syntax = str(runner.transfer_syntax)
    if b"\xff\xd9" not in source[-64:]:  # all of these end in this mark, and have it nowhere else in their pixels
        raise ValueError("the compressed pixels end early")
    samples = int(runner.samples_per_pixel)
    signed = False
    if syntax in _JPEG:
        precision, coded = _jpeg_header(source)
        if syntax in _LOSSY and samples == 3 and coded:
            runner.set_option("photometric_interpretation", coded)
    elif syntax in _JPEG_LS:
        precision = int(runner.get_option("jls_precision", runner.bits_stored))
    else:
        precision = int(runner.get_option("j2k_precision", runner.bits_stored))
        signed = bool(runner.get_option("j2k_is_signed", False))
    if precision > 16:
        raise ValueError(f"the compressed pixels have {precision} bits")
    dtype = np.dtype(f"{'i' if signed else 'u'}{1 if precision <= 8 else 2}")
    out = np.empty((int(runner.rows), int(runner.columns), 3) if samples == 3 else (runner.rows, runner.columns), dtype)
    if syntax in _JPEG:
        space = "RGB" if samples == 3 else None  # in and out alike: no conversion
        imagecodecs.jpeg8_decode(source, colorspace=space, outcolorspace=space, out=out)
    elif syntax in _JPEG_LS:
        by_plane = samples == 3 and dict(_segments(source))[0xDA][0] == 1  # a scan for each colour: interleave mode 0
        out = np.empty((3, *out.shape[:2]), dtype) if by_plane else out
        imagecodecs.jpegls_decode(source, out=out)
        out = np.moveaxis(out, 0, 2) if by_plane else out
    else:
        decode = imagecodecs.htj2k_decode if syntax in _HTJ2K else imagecodecs.jpeg2k_decode
        decode(source, out=out)
        if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
            runner.set_option("photometric_interpretation", "RGB")
    # JPEG 2000's COD segment says in its tenth byte whether the transform loses: 0 is the 9-7 of floats.
    if syntax in _LOSSY or (syntax in _JPEG_2000 | _HTJ2K and source[source.index(b"\xff\x52") + 13] == 0):
        highest = (1 << int(runner.bits_stored) - signed) - 1
        out = out.clip(-highest - 1 if signed else 0, highest)
    runner.set_option("bits_allocated", dtype.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    return out.tobytes()


def _jpeg_header(source: bytes) -> tuple[int, str]:
    """Bits per sample of a JPEG, and RGB or YBR_FULL where it says itself what a picture of three colours holds.

    Adobe's marker (APP14) decides. Without one, a picture whose components differ in their sampling is YBR, since
    nobody subsamples RGB; one that is not subsampled may be either. IndexError where the header is cut off.
    """
    precision, coded, by_sampling = 0, "", ""
    for marker, body in _segments(source):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision = body[0]
            by_sampling = "YBR_FULL" if len(set(body[7::3])) > 1 else ""
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            coded = {0: "RGB", 1: "YBR_FULL"}.get(body[11], "")
    return precision, coded or by_sampling


def _segments(source: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers of a JPEG or JPEG-LS and what they hold, up to that of the first scan."""
    at, marker = 2, 0
    while marker != 0xDA:
        while source[at + 1] == 0xFF:  # a fill byte
            at += 1
        marker = source[at + 1]
        body = source[at + 4 : at + 2 + int.from_bytes(source[at + 2 : at + 4], "big")]
        yield marker, body
        at += 4 + len(body)
