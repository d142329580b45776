"""What a bundle carries to show that its engine is right: golden images with outputs, and the reference table.

Golden images (phantoms, unless the user chose others) make an engine testable on any machine, without patient data;
`edgemed bench` runs them before it times anything. The reference table names the images that training did not learn
from by the sha256 of their pixels, so that `certify` can match a user's own files to what PyTorch said of them, and
`evaluate` warns of those that chose or calibrated the model. No pixels in it.

    golden/000.png ...      8-bit RGB
    golden/outputs.json     {"schema_version": 1, "images": [{"file", "probabilities" [K], "members" [M][K]}, ...]};
                            with "entropy" [S/32][S/32] in bits too, where the bundle's manifest says that it has it
    reference.npz           sha256 (R,) U64; label, group (R,) int64; split (R,) U11; probabilities (R, K) and
                            members (R, M, K) float32

`edgemed build-engine RUN --out BUNDLE` writes both.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from pydantic_core import from_json

from edgemed.columns import HELD_OUT
from edgemed.errors import InputError
from edgemed.images import image_from_bytes
from edgemed.manifest import GOLDEN_OUTPUTS, canonical_bytes

REFERENCE_NAME = "reference.npz"


class Golden(NamedTuple):
    """One golden image and what the PyTorch reference made of it."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    probabilities: NDArray[np.float32]  # (K,)
    members: NDArray[np.float32]  # (M, K)
    entropy: NDArray[np.float32] | None = None  # (S/32, S/32), bits, where the bundle has it


class Reference(NamedTuple):
    """The rows of `reference.npz`, sorted by sha256."""

    sha256: NDArray[np.str_]  # (R,) of the pixels, as images.pixels_sha256 gives it
    label: NDArray[np.int64]  # (R,) index into the bundle's labels
    group: NDArray[np.int64]  # (R,) number of the patient or lesion
    split: NDArray[np.str_]  # (R,)
    probabilities: NDArray[np.float32]  # (R, K)
    members: NDArray[np.float32]  # (R, M, K)


# What numpy, zipfile and zlib raise on a damaged archive.
_DAMAGED = (
    KeyError, ValueError, OSError, EOFError, TypeError, AttributeError, NotImplementedError, RuntimeError, MemoryError,
    ArithmeticError, SyntaxError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def golden_files(golden: Sequence[Golden]) -> dict[str, bytes]:
    """The golden files by their names in the bundle, for `write_bundle`. The same images give the same bytes.

    InputError where there is none, or only some have an entropy map.
    """
    if len({item.entropy is None for item in golden}) != 1:
        raise InputError("golden images: give at least one, and an entropy map for all of them or for none")
    files: dict[str, bytes] = {}
    rows = []
    for k, item in enumerate(golden):
        buffer = io.BytesIO()
        Image.fromarray(item.image).save(buffer, format="PNG")
        files[f"golden/{k:03d}.png"] = buffer.getvalue()
        row = {"file": f"{k:03d}.png", "probabilities": item.probabilities.tolist(), "members": item.members.tolist()}
        rows.append(row if item.entropy is None else row | {"entropy": item.entropy.tolist()})
    files[GOLDEN_OUTPUTS] = canonical_bytes({"schema_version": 1, "images": rows})
    return files


def golden_from_files(files: Mapping[str, bytes]) -> tuple[Golden, ...]:
    """The inverse of `golden_files`. Raises InputError where the outputs are of a newer schema or do not fit."""
    try:
        document = from_json(files[GOLDEN_OUTPUTS], allow_inf_nan=False)
        if document["schema_version"] != 1:
            raise InputError(
                f"{GOLDEN_OUTPUTS} has schema version {document['schema_version']!a}; install a newer edgemed"
            )
        if not document["images"]:
            raise ValueError("it lists none")
        return tuple(
            Golden(
                image_from_bytes(files[f"golden/{row['file']}"], row["file"]),
                np.asarray(row["probabilities"], dtype=np.float32),
                np.asarray(row["members"], dtype=np.float32),
                np.asarray(row["entropy"], dtype=np.float32) if "entropy" in row else None,
            )
            for row in document["images"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{GOLDEN_OUTPUTS} does not describe golden images ({error}); build the bundle again"
        ) from error


def reference_file(
    sha256: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[int],
    splits: Sequence[str],
    members: ArrayLike,
) -> bytes:
    """The bytes of `reference.npz`: one row per image, sorted by hash, groups numbered anew: neither reveals a name.

    sha256: of the pixels (`images.pixels_sha256`); groups: numbers, never names of patients; members: (R, M, K), whose
    mean is the ensemble's. The same rows in any order give the same bytes. Raises InputError where lengths, hashes or
    splits are wrong.
    """
    each = np.asarray(members, dtype=np.float32)
    if each.ndim != 3 or {len(sha256), len(labels), len(groups), len(splits)} != {len(each)}:
        raise InputError("the reference table needs one hash, label, group, split and the members' rows per image")
    if not all(re.fullmatch(r"[0-9a-f]{64}", value) for value in sha256):
        raise InputError("the reference table names images by sha256: 64 lower-case hex digits each")
    if not set(splits) <= set(HELD_OUT):
        raise InputError(
            f"the reference table knows the splits {', '.join(HELD_OUT)}; got {', '.join(sorted(set(splits)))}"
        )
    order = sorted(range(len(each)), key=lambda k: (sha256[k], labels[k], splits[k], groups[k]))
    numbers: dict[int, int] = {}  # groups as they come in this order: given ones may follow the names of patients
    columns = {
        "sha256": np.array([sha256[k] for k in order], dtype="U64"),
        "label": np.array([labels[k] for k in order], dtype=np.int64),
        "group": np.array([numbers.setdefault(groups[k], len(numbers)) for k in order], dtype=np.int64),
        "split": np.array([splits[k] for k in order], dtype="U11"),
        "probabilities": each.mean(axis=1)[order],
        "members": each[order],
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **columns)
    return buffer.getvalue()


def reference_from_file(data: bytes) -> Reference:
    """The inverse of `reference_file`. Raises InputError for bytes that it did not write."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return Reference(*(archive[name] for name in Reference._fields))
    except _DAMAGED as error:
        raise InputError(f"{REFERENCE_NAME} cannot be read ({error}); build the bundle again") from error
