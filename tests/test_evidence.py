"""What a bundle carries as evidence is deterministic, fits together, and comes back as it went in."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_bundles as tiny

from edgemed.errors import InputError
from edgemed.evidence import Golden, golden_files, golden_from_files, reference_file, reference_from_file


def test_evidence_is_the_same_bytes_for_the_same_facts_in_any_order() -> None:
    images = [tiny.image(1), tiny.image(2)]
    outputs = tiny.expected(np.stack(images))
    golden = [Golden(*each) for each in zip(images, *outputs, strict=True)]
    assert golden_files(golden) == golden_files(golden)
    hashes, members = ["f" * 64, "0" * 64], outputs[1]
    forward = reference_file(hashes, [0, 1], [5, 6], ["validation", "test"], members)
    backward = reference_file(hashes[::-1], [1, 0], [6, 5], ["test", "validation"], members[::-1])
    assert forward == backward
    with zipfile.ZipFile(io.BytesIO(forward)) as archive:  # the clock is not in it
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    table = reference_from_file(forward)
    assert table.sha256.tolist() == ["0" * 64, "f" * 64]
    assert (table.label.tolist(), table.group.tolist(), table.split.tolist()) == (
        [1, 0],
        [0, 1],  # numbered by the order of the hashes: given numbers may follow the names of patients
        ["test", "validation"],
    )
    np.testing.assert_array_equal(table.members, members[::-1].astype(np.float32))
    np.testing.assert_allclose(table.probabilities, outputs[0][::-1], atol=1e-7)  # their mean


def test_evidence_that_does_not_fit_together_is_refused() -> None:
    _, members = tiny.expected(tiny.image(1)[None])
    one = tiny.golden()[0]
    for wrong in ([], [one, one._replace(entropy=np.zeros((2, 2), np.float32))]):
        with pytest.raises(InputError, match="give at least one, and an entropy map for all"):
            golden_files(wrong)
    with pytest.raises(InputError, match="64 lower-case hex"):
        reference_file(["patient 7"], [0], [0], ["test"], members)
    with pytest.raises(InputError, match="one hash, label, group"):
        reference_file(["0" * 64], [0, 1], [0], ["test"], members)
    with pytest.raises(InputError, match="splits"):
        reference_file(["0" * 64], [0], [0], ["holdout"], members)
    with pytest.raises(InputError, match=r"reference\.npz cannot be read"):
        reference_from_file(b"PK\x03\x04")
    for broken in (b"[]", b'{"schema_version": 1, "images": []}', b"[" * 100_000):
        with pytest.raises(InputError, match="does not describe golden images"):
            golden_from_files({"golden/outputs.json": broken})


def test_outputs_of_another_shape_are_refused(tmp_path: Path) -> None:
    other = golden_files([Golden(tiny.image(1), np.ones(2) / 2, np.ones((2, 2)) / 2)])
    opened = tiny.bundle(tmp_path / "bundle", files={"model.fp32.onnx": tiny.model(), **other})
    with pytest.raises(InputError, match="other labels or members"):
        opened.golden()
    table = reference_file(["0" * 64], [0], [0], ["test"], np.ones((1, 2, 2)) / 2)
    opened = tiny.bundle(tmp_path / "other", files={"model.fp32.onnx": tiny.model(), **other, "reference.npz": table})
    with pytest.raises(InputError, match=r"reference\.npz has other labels or members"):
        opened.reference()
