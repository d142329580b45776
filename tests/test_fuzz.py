"""Readers of what strangers hand in: whatever the bytes, the answer or one of our errors, and nothing else.

The quick version runs with every test; `slow` gives the same readers 100,000 inputs.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_bundles as tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_cases import LOSSLESS, encoded, fixed_checksums, stack
from PIL import Image

from edgemed.errors import EdgemedError
from edgemed.evidence import golden_from_files, reference_from_file
from edgemed.images import decodes_alike, image_from_bytes
from edgemed.manifest import Manifest, canonical_bytes, document_bytes, parse, sealed_manifest
from edgemed.records import PlanRecord
from edgemed.rows import rows_of_csv

pytestmark = pytest.mark.filterwarnings("ignore")

SMOOTH = Image.linear_gradient("L").resize((40, 30))
EVIDENCE = tiny.evidence_files()
MANIFEST = sealed_manifest(
    {key: value for key, value in tiny.fields().items() if key not in ("image_input", "files")}
    | {"created": "2026-01-02T03:04:05Z", "edgemed_version": "0.1.0", "input": tiny.fields()["image_input"]}
    | {"files": {name: {"sha256": "0" * 64, "bytes": 1} for name in ("model.fp32.onnx", "golden/outputs.json")}}
)
RECORD = {
    "schema_version": 1, "id": "rtx-fp32", "created": "2026-01-01T00:00:00Z", "onnx_sha256": "0" * 64,
    "precision": "fp32", "runtime": "tensorrt-rtx", "version": "1.7", "targets": ["sm86"], "os": "Linux",
    "architecture": "x86_64", "batch": [1, 1, 8], "image_side": [16, 48, 512], "sha256": "1" * 64, "bytes": 7,
    "state": "certified",
    "certificate": {
        "created": "2026-01-01T00:00:00Z", "bundle_id": "0" * 16, "images": 3, "max_prob_error": 1e-4,
        "mean_prob_error": 1e-5, "flips": [], "unclear": 2,
        "auroc_change": {"value": 0.0, "low": -0.01, "high": 0.01},
        "gates": {"max_flips": 0, "max_prob_error": 1e-3, "max_auroc_drop": 0.005},
        "place": {"runtime": "tensorrt-rtx", "version": "1.7", "precision": "fp32", "device": "A GPU",
                  "capability": "sm86", "os": "Linux", "architecture": "x86_64"},
    },
}  # fmt: skip
CSV = b"path,label,group,split\n" + b"".join(b"%d.png,%s,p%d,train\n" % (k, b"ab"[k % 2 :][:1], k) for k in range(6))

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["xor", "set", "delete", "insert", "cut", "copy"]),
        st.integers(0, 1 << 20),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def edited(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    """`data` with bytes flipped, replaced, left out, put in, cut off, or repeated elsewhere."""
    for action, where, what in edits:
        at = where % (len(data) + 1)
        end = at + len(what)
        if action == "xor":
            what = bytes(a ^ b for a, b in zip(data[at:end], what, strict=False))
        elif action == "copy":
            what = data[where * 7 % (len(data) + 1) :][: len(what)]
        data = data[:at] + (b"" if action in ("delete", "cut") else what) + data[at if action == "insert" else end :]
        if action == "cut":
            data = data[:at]
    return data


def damaged(seeds: list[bytes], *prefixes: bytes) -> st.SearchStrategy[bytes]:
    """Real files with some bytes changed; and random bytes, some behind the beginning of a real file."""
    noise = st.tuples(st.sampled_from([b"", *prefixes]), st.binary(max_size=300)).map(b"".join)
    return st.one_of(*[st.builds(edited, st.sampled_from(seeds), EDITS)] * 4, noise)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["fp32", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def replaced(document: dict[str, Any], steps: list[int], value: Any) -> bytes:
    """The document as canonical JSON, with what lies `steps` deep in it replaced."""
    document = copy.deepcopy(document)
    place: Any = document
    for step in steps[:-1]:
        inner = place[list(place)[step % len(place)]] if isinstance(place, dict) else place[step % len(place)]
        if not isinstance(inner, (dict, list)) or not inner:
            break
        place = inner
    key = list(place)[steps[-1] % len(place)] if isinstance(place, dict) else steps[-1] % len(place)
    place[key] = value
    try:
        return canonical_bytes(document)
    except ValueError:  # NaN, or half a surrogate pair
        return json.dumps(document).encode()


def misstated(document: dict[str, Any]) -> st.SearchStrategy[bytes]:
    steps = st.lists(st.integers(0, 30), min_size=1, max_size=4)
    return st.one_of(st.builds(replaced, st.just(document), steps, JSON), damaged([canonical_bytes(document)], b"{"))


def _document(kind: type[Manifest] | type[PlanRecord]) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        assert document_bytes(parse(kind, data, Path("document.json"))) == data

    return read


def _image(data: bytes, folder: Path) -> None:
    data = fixed_checksums(data) if data[1:4] == b"PNG" else data
    (folder / "x").write_bytes(data)
    alike = decodes_alike(folder / "x")
    image = image_from_bytes(data, "x")
    assert image.ndim == 3 and image.shape[2] == 3 and image.size and image.dtype == "uint8", alike


def _csv(data: bytes, folder: Path) -> None:
    (folder / "data.csv").write_bytes(data)
    for k in range(6):
        (folder / f"{k}.png").touch()
    rows, _ = rows_of_csv(folder / "data.csv", folder)
    assert rows and all(row.path and row.label and row.group for row in rows)


def _reference(data: bytes, folder: Path) -> None:
    reference_from_file(data)


def _golden(data: bytes, folder: Path) -> None:
    assert golden_from_files(EVIDENCE | {"golden/outputs.json": data})


PICTURES = [data for data, _ in LOSSLESS.values()] + [stack("TIFF"), stack("PNG"), encoded(SMOOTH, "JPEG")]
PICTURES += [encoded(SMOOTH.convert("RGB"), "JPEG", progressive=True), encoded(SMOOTH.convert("CMYK"), "JPEG")]
READERS: dict[str, tuple[int, st.SearchStrategy[bytes], Callable[[bytes, Path], None]]] = {
    # name: (share in percent, inputs, reader)
    "manifest": (15, misstated(json.loads(document_bytes(MANIFEST))), _document(Manifest)),
    "plan record": (15, misstated(RECORD), _document(PlanRecord)),
    "image": (30, damaged(PICTURES, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0"), _image),
    "reference": (5, damaged([EVIDENCE["reference.npz"]], b"PK\3\4"), _reference),
    "golden": (5, misstated(json.loads(EVIDENCE["golden/outputs.json"])), _golden),
    "csv": (5, damaged([CSV], b"path,label\n"), _csv),
}  # fmt: skip
if find_spec("pydicom") and find_spec("imagecodecs"):
    from dicom_cases import EXACT, FRAMES, NEAR

    FILES = [data for data, _ in (*EXACT.values(), *NEAR.values())] + [FRAMES]
    READERS["dicom"] = (25, damaged(FILES, FILES[0][:132], FILES[0][:330]), _image)


def fuzz(reader: str, inputs: int, folder: Path) -> None:
    share, strategy, read = READERS[reader]
    inputs = inputs * share // 100
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=inputs, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def one(data: bytes) -> None:
        try:
            read(data, folder)
            outcomes["read"] += 1
        except EdgemedError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error) and str(error).isprintable(), error

    one()
    print(f"{reader}: {dict(outcomes)}")  # noqa: T201 - `make test-long` with -s shows what was tried
    assert outcomes.total() >= inputs and outcomes["refused"] > inputs // 5


@pytest.mark.parametrize("reader", READERS)
def test_only_our_own_errors_come_out_of_a_reader(reader: str, tmp_path: Path) -> None:
    fuzz(reader, 2_000, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_only_our_own_errors_come_out_of_a_reader_after_100_000_inputs(reader: str, tmp_path: Path) -> None:
    fuzz(reader, 100_000, tmp_path)
