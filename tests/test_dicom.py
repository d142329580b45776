"""DICOM: every path from stored values to RGB, what is refused, and that no patient is named in what is written."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="extra dicom is not installed")
pytest.importorskip("imagecodecs", reason="extra dicom is not installed")

import pydicom
from dicom_cases import (
    CT,
    CT_WINDOW,
    DEEP,
    EXACT,
    FRAMES,
    GREY,
    NEAR,
    OF_FRAMES,
    PALETTES,
    RAMP,
    big_endian,
    dicom,
    table,
    uid,
)
from image_cases import LOSSLESS
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame

from edgemed import dicom as reader
from edgemed import dicom_codecs
from edgemed.errors import InputError
from edgemed.images import decodes_alike, image_from_bytes, image_from_file

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")
SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.mark.parametrize("kind", EXACT)
def test_every_path_gives_the_pixels_worked_out_by_hand(kind: str) -> None:
    data, expected = EXACT[kind]
    image = image_from_bytes(data, kind)
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable


@pytest.mark.parametrize("kind", NEAR)
def test_lossy_and_rounded_colours_come_within_one_level(kind: str) -> None:
    data, expected = NEAR[kind]
    assert np.abs(image_from_bytes(data, kind).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("syntax", "first", "vr"),
    [(uid.ImplicitVRLittleEndian, 64512, "US"), (uid.ExplicitVRLittleEndian, -1024, "SS")],
)
def test_a_voi_table_that_begins_below_zero_is_read_so_whether_or_not_the_file_can_say_it(
    syntax: uid.UID, first: int, vr: str
) -> None:
    voi = table(list(range(4096)), first, 12, vr)
    for stored, expected in (([0, 1024, 2048, 4095], [0, 64, 128, 255]), ([2048] * 4, [128] * 4)):  # none is negative
        data = dicom(np.array([stored], np.uint16), syntax, BitsStored=12, RescaleSlope=1, RescaleIntercept=-1024,
                     VOILUTSequence=voi)  # fmt: skip
        assert image_from_bytes(data, vr)[0, :, 0].tolist() == expected
    high = dicom(np.array([[0, 64512, 64513, 65535]], np.uint16), syntax, VOILUTSequence=table([0, 255], 64512, 8))
    assert image_from_bytes(high, vr)[0, :, 0].tolist() == [0, 0, 255, 255]  # where nothing can be negative


def test_frames_are_counted_from_one_and_take_their_own_window_before_the_shared_one(tmp_path: Path) -> None:
    file = tmp_path / "loop.dcm"
    file.write_bytes(FRAMES)
    for number, expected in OF_FRAMES.items():
        np.testing.assert_array_equal(image_from_file(f"{file}#{number}"), expected)
    with pytest.raises(InputError, match=r"loop\.dcm: holds 3 frames; name .* FILE#1"):
        image_from_file(file)
    for number in (0, 4):
        with pytest.raises(InputError, match=rf"loop\.dcm#{number}: has no such frame: the file holds 3"):
            image_from_file(f"{file}#{number}")
    odd = tmp_path / "a#3"
    odd.write_bytes(EXACT["8 bit"][0])
    np.testing.assert_array_equal(image_from_file(odd), EXACT["8 bit"][1])  # a name that only looks like a frame
    (tmp_path / "grey.png").write_bytes(LOSSLESS["grey png"][0])
    with pytest.raises(InputError, match="names a frame, but the file is not DICOM"):
        image_from_file(f"{tmp_path / 'grey.png'}#1")


def test_a_big_endian_palette_of_bytes_in_words_gives_the_same_colours() -> None:
    swapped = {
        keyword: np.frombuffer(value, "<u2").byteswap().tobytes() if isinstance(value, bytes) else value
        for keyword, value in PALETTES.items()
    }
    data = big_endian(GREY, PhotometricInterpretation="PALETTE COLOR", **swapped)
    np.testing.assert_array_equal(image_from_bytes(data, "scan"), EXACT["palette"][1])


@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 1), (7, 11), (2, 4)])
def test_frames_of_one_bit_may_begin_inside_of_a_byte(height: int, width: int) -> None:
    bits = np.random.default_rng(1).integers(0, 2, (4, height, width)).astype(np.uint8)
    packed = np.packbits(bits, bitorder="little")[None]
    data = dicom(packed, BitsAllocated=1, BitsStored=1, Rows=height, Columns=width, NumberOfFrames=4)
    for k in range(4):
        np.testing.assert_array_equal(image_from_bytes(data, "scan", k + 1)[:, :, 0], 255 * bits[k])


def test_dali_is_never_given_a_dicom_file(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(EXACT["8 bit"][0])
    assert not decodes_alike(tmp_path / "a.dcm") and not decodes_alike(f"{tmp_path / 'a.dcm'}#1")


SIBLINGS = ("", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless", "_padded")


@pytest.mark.parametrize("name", SIBLINGS)
def test_one_mri_in_eight_encodings_is_one_picture(name: str) -> None:
    stored = np.frombuffer(pydicom.dcmread(SHIPPED / "MR_small.dcm").PixelData[:8192], "<i2").reshape(64, 64)
    expected = np.empty((64, 64), np.uint8)
    for place, value in np.ndenumerate(stored):  # the standard's pseudo-code, with its window of 600 and 1600
        if value <= 600 - 0.5 - 1599 / 2:
            expected[place] = 0
        elif value > 600 - 0.5 + 1599 / 2:
            expected[place] = 255
        else:
            expected[place] = int(((value - 599.5) / 1599 + 0.5) * 255 + 0.5)
    image = image_from_file(SHIPPED / f"MR_small{name}.dcm")
    np.testing.assert_array_equal(image, np.repeat(expected[:, :, None], 3, 2))


BARS = {5: (255, 0, 0), 15: (255, 128, 128), 25: (0, 255, 0), 35: (128, 255, 128), 45: (0, 0, 255),
        55: (128, 128, 255), 65: (0, 0, 0), 75: (64, 64, 64), 85: (192, 192, 192), 95: (255, 255, 255)}  # fmt: skip
LOSSY = {"dcmtk_+eb+cr": 3, "dcmtk_+eb+cy+n1": 5, "dcmtk_+eb+cy+n2": 5, "dcmtk_+eb+cy+np": 5, "dcmtk_+eb+cy+s2": 5,
         "dcmtk_+eb+cy+s4": 5, "jpeg_dcmtk": 5, "jpeg_lossy_gdcm": 3, "gdcm_KY": 3, "jls_lossy_line": 6,
         "jls_lossy_sample": 6}  # fmt: skip
BAR_FILES = LOSSY | {"rle": 0, "rle_16bit": 0, "jpeg_gdcm": 0, "rle_2frame.dcm#1": 0, "rle_16bit_2frame.dcm#1": 0}


@pytest.mark.parametrize("name", BAR_FILES)
def test_colour_bars_keep_their_colours_in_every_encoding(name: str) -> None:
    file = SHIPPED / f"SC_rgb_{name}{'' if '.dcm' in name else '.dcm'}"
    image = image_from_file(file).astype(int)
    assert image.shape == (100, 100, 3)
    for row, colour in BARS.items():
        assert np.abs(image[row, 50] - colour).max() <= BAR_FILES[name], row


def test_a_name_that_is_too_long_for_the_disk_is_a_files_name_like_any_other() -> None:
    assert reader.frame_of("x" * 300 + "#2") == (Path("x" * 300), 2)
    with pytest.raises(InputError):
        image_from_file("x" * 300 + "#2")


def test_the_second_frame_of_the_colour_bars_is_their_negative() -> None:
    first, second = (image_from_file(SHIPPED / f"SC_rgb_rle_2frame.dcm#{k}") for k in (1, 2))
    np.testing.assert_array_equal(second, 255 - first)


def _decoded(name: str, frame: int = 0) -> tuple[np.ndarray, Dataset]:
    """What pydicom makes of a shipped file: stored values or RGB, through Pillow or its own code."""
    dataset = pydicom.dcmread(SHIPPED / f"{name}.dcm")
    return pydicom.pixels.pixel_array(dataset, index=frame), dataset


def _through_window(name: str, low: float, high: float) -> np.ndarray:
    values, _ = _decoded(name)
    return np.interp(values, (low, high), (0, 255))


OTHERS: dict[str, Callable[[], np.ndarray]] = {  # each rule by other means
    "CT_small": lambda: (_decoded("CT_small")[0].astype(int) + 32768) // 256,
    "693_J2KI": lambda: _through_window("693_J2KI", 1024 - 10, 1024 + 89),  # Hounsfield units of -10 to 89
    "examples_overlay": lambda: _through_window("examples_overlay", 450 - 395, 450 + 394),
    "examples_palette": lambda: pydicom.pixels.apply_color_lut(*_decoded("examples_palette")) >> 8,
    "examples_jpeg2k": lambda: _decoded("examples_jpeg2k")[0],
    "examples_rgb_color": lambda: _decoded("examples_rgb_color")[0],
    "examples_ybr_color.dcm#30": lambda: _decoded("examples_ybr_color", 29)[0],
    "SC_ybr_full_422_uncompressed": lambda: _decoded("SC_ybr_full_422_uncompressed")[0],
    "image_dfl": lambda: _decoded("image_dfl")[0],
    "liver_1frame": lambda: _decoded("liver_1frame")[0] * 255,
    "liver_expb_1frame": lambda: _decoded("liver_1frame")[0] * 255,
    "SC_rgb_small_odd": lambda: _decoded("SC_rgb_small_odd_big_endian")[0],
    "JPEG2000": lambda: (_decoded("JPEG2000")[0].astype(int) + 32768) // 256,
}


@pytest.mark.parametrize("name", OTHERS)
def test_shipped_files_come_out_as_by_other_means(name: str) -> None:
    image, expected = image_from_file(SHIPPED / f"{name}{'' if '.dcm' in name else '.dcm'}"), OTHERS[name]()
    expected = expected if expected.ndim == 3 else np.repeat(expected[:, :, None], 3, 2)
    assert image.shape == expected.shape
    assert np.abs(image - expected.astype(float)).max() <= 1  # the decoders of lossy JPEG differ by one


ROWS = b"\x28\x00\x10\x00US\2\0"
SLOPE = dicom(RAMP, RescaleSlope="1234", RescaleIntercept="5678", WindowCenter=100, WindowWidth=200)
REFUSED: dict[str, tuple[bytes, str]] = {
    "no pixels": ((SHIPPED / "test-SR.dcm").read_bytes(), "holds no pixels"),
    "truncated": ((SHIPPED / "MR_truncated.dcm").read_bytes(), "truncated"),
    "32 bit": ((SHIPPED / "rtdose_1frame.dcm").read_bytes(), "has 32 bits per pixel"),
    "floats": (dicom(RAMP).replace(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x08\x00OF"), "floating-point"),
    "video": (dicom([b"\0\0\1\xb3"], uid.MPEG2MPML, (4, 4)), "MPEG2 Main Profile / Main Level, which cannot be read"),
    "high bit": (dicom(DEEP, BitsStored=12, HighBit=15), "other than the lowest bits"),
    "slope of zero": (dicom(CT, **CT_WINDOW | {"RescaleSlope": 0}), "a rescale slope of 0 and an intercept of -1024"),
    "slope that is no number": (SLOPE.replace(b"1234", b"nan "), "states a rescale slope of nan and"),
    "slope without end": (SLOPE.replace(b"1234", b"inf "), "states a rescale slope of inf and"),
    "intercept that is no number": (SLOPE.replace(b"5678", b"nan "), "of 1234 and an intercept of nan"),
    "window too narrow": (dicom(RAMP, WindowCenter=0.1, WindowWidth=0.2), "0.2: it takes numbers, the width 1 or more"),
    "window of no width": (dicom(CT, **CT_WINDOW | {"WindowWidth": 0}), "a LINEAR window of centre 40 and width 0"),
    "unknown VOI function": (dicom(CT, **CT_WINDOW, VOILUTFunction="CUBIC"), "a VOI function that is not known"),
    "a table cut short": (dicom(RAMP, VOILUTSequence=table([1, 2, 3], 0, 8, count=9)), "a look-up table of 3 entries"),
    "no rows": (dicom(RAMP).replace(b"\x28\x00\x10\x00US", b"\x28\x00\x0e\x00US"), "states no Rows"),
    "too large": (dicom(RAMP, Rows=60_000, Columns=60_000), "60000 x 60000 pixels"),
    "other colours": (dicom(np.zeros((2, 2, 3), np.uint8), PhotometricInterpretation="HSV"), "HSV pixels"),
    "frame of another size": (EXACT["jpeg-ls"][0].replace(ROWS + b"\x18", ROWS + b"\x17"), "shape"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line_that_names_it(kind: str, tmp_path: Path) -> None:
    data, reason = REFUSED[kind]
    file = tmp_path / "scan.dcm"
    file.write_bytes(data)
    with pytest.raises(InputError) as caught:
        image_from_file(file)
    assert str(caught.value).startswith(f"{file}: ") and reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", EXACT)
def test_a_file_that_is_cut_off_is_never_an_image(kind: str) -> None:
    data = EXACT[kind][0]
    for length in {len(data) // 3, len(data) - len(data) // 8, len(data) - 30, len(data) - 17, len(data) - 10}:
        if data.find(b"\xe0\x7f\x10\x00") + 16 < length or length < len(data) // 2:
            with pytest.raises(InputError):
                image_from_bytes(data[: length - length % 2], kind)


COMPRESSED = [kind for kind, (data, _) in (EXACT | NEAR).items() if "jpeg" in kind]


@pytest.mark.parametrize("kind", COMPRESSED)
def test_a_frame_cut_short_inside_of_a_whole_file_is_refused(kind: str) -> None:
    dataset = pydicom.dcmread(io.BytesIO((EXACT | NEAR)[kind][0]))
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1).rstrip(b"\0")
    dataset.PixelData = encapsulate([frame[: len(frame) * 3 // 4]])
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(InputError, match="the compressed pixels end early"):
        image_from_bytes(buffer.getvalue(), kind)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^scan: is a DICOM .* needs pydicom; pip install 'edgemed\[dicom\]'"):
        image_from_bytes(EXACT["8 bit"][0], "scan")
    monkeypatch.undo()
    monkeypatch.setattr(dicom_codecs, "find_spec", lambda name: None)
    dicom_codecs.decoder_of.cache_clear()
    with pytest.raises(InputError, match=r"JPEG-LS Lossless.* needs imagecodecs; pip install 'edgemed\[dicom\]'"):
        image_from_bytes(EXACT["jpeg-ls"][0], "scan")
    dicom_codecs.decoder_of.cache_clear()
