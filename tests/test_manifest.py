"""The manifest reader: whatever the bytes, either the manifest that was written or one of our errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemed.errors import InputError
from edgemed.manifest import FileEntry, ImageInput, Manifest, document_bytes, parse, sealed_manifest

MANIFEST = sealed_manifest(
    {
        "created": "2026-01-02T03:04:05Z",
        "edgemed_version": "0.1.0",
        "backbone": "tiny",
        "labels": ("gutartig", "bösartig"),
        "member_names": ("imagenet", "mae"),
        "temperatures": (1.0, 1.25),
        "input": ImageInput(min_side=16, opt_side=48, max_side=512),
        "size": 32,
        "flops": 1000,
        "weight_bytes": 72,
        "entropy": True,
        "files": {n: FileEntry(sha256="0" * 64, bytes=1) for n in ("model.fp32.onnx", "golden/outputs.json")},
    }
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_manifest_the_error_is_ours(data: st.DataObject) -> None:
    good = document_bytes(MANIFEST)
    cut = st.integers(0, len(good))
    begin, end = sorted((data.draw(cut), data.draw(cut)))
    middle = data.draw(
        st.one_of(st.binary(max_size=20), st.sampled_from([b"1e999", b'"\\ud800"', b"NaN", b"[" * 9999]))
    )
    changed = good[:begin] + middle + good[end:]
    if changed == good:
        assert parse(Manifest, changed, Path("manifest.json")) == MANIFEST
    else:
        with pytest.raises(InputError, match=r"manifest\.json"):
            parse(Manifest, changed, Path("manifest.json"))


def test_an_image_range_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="min <= opt <= max"):
        ImageInput(min_side=64, opt_side=32, max_side=128)
