"""The schema of a bundle's `manifest.json`, and the one way in which a bundle's documents become bytes.

Why its own module: the manifest decides which files are believed, so what may stand in it is written down in one
place, apart from the file handling in `bundle.py`. Everything is strict: unknown fields, wrong types, file names that
could leave the folder, and a text that is not the canonical form are refused. `edgemed inspect BUNDLE` shows one.

Canonical form: UTF-8, sorted keys, two spaces of indent, one final newline. The same manifest is always the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import from_json

from edgemed.errors import InputError, one_line

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
PLANS_FOLDER = "plans"
GOLDEN_OUTPUTS = "golden/outputs.json"
MODEL_FILES: Mapping[str, str] = {"fp32": "model.fp32.onnx", "fp16": "model.fp16.onnx"}
IMAGE_SIZE = (32, 512, 4096)  # min, opt, max side in pixels of an engine's input, unless told
AGAIN = "copy the bundle again, or build it again with `edgemed build-engine`"
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _file_name(name: str) -> str:
    """A name that cannot leave the bundle, or stand for the manifest or a plan: parts of plain ASCII joined by `/`."""
    parts = name.split("/")
    if len(parts) > 4 or not all(_PART.fullmatch(part) for part in parts):
        raise ValueError(f"{name!r} is not a plain file name inside the bundle")
    if parts[0] in (MANIFEST_NAME, SIGNATURE_NAME, PLANS_FOLDER):
        raise ValueError(f"{name!r} cannot be listed as a file of the bundle")
    return name


def _visible(text: str) -> str:
    if not text or not text.isprintable() or text != text.strip():
        raise ValueError(f"{text!r} is empty, has space around it, or does not print")
    return text


def _ordered(triple: tuple[int, int, int]) -> tuple[int, int, int]:
    if not 1 <= triple[0] <= triple[1] <= triple[2]:
        raise ValueError("a range is min,opt,max with 1 <= min <= opt <= max")
    return triple


Text = Annotated[str, AfterValidator(_visible)]
FileName = Annotated[str, AfterValidator(_file_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
BundleId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Time = Annotated[str, Field(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z$")]
Count = Annotated[int, Field(ge=0, le=2**62)]
HIGHEST_SIDE = 1 << 20
Side = Annotated[int, Field(ge=1, le=HIGHEST_SIDE)]
Range = Annotated[tuple[int, int, int], AfterValidator(_ordered)]  # min, opt, max


class Strict(BaseModel):
    """What every document of a bundle is: immutable, typed to the letter, without unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(Strict):
    """What a file of the bundle must be: the sha256 of its bytes (hex), and how many there are."""

    sha256: Sha256
    bytes: Count


class ImageInput(Strict):
    """The engine's input `image`: uint8 RGB pixels (N, H, W, 3), with H and W each from min_side to max_side.

    `opt_side` is the side that plans are tuned for and that a benchmark takes unless told. A fixed size has all equal.
    """

    layout: Literal["NHWC"] = "NHWC"
    dtype: Literal["uint8"] = "uint8"
    colour: Literal["RGB"] = "RGB"
    min_side: Side
    opt_side: Side
    max_side: Side

    @model_validator(mode="after")
    def _check_order(self) -> ImageInput:
        _ordered(self.sides)
        return self

    @property
    def sides(self) -> tuple[int, int, int]:
        """The three as one range."""
        return self.min_side, self.opt_side, self.max_side


class OperatingPoint(Strict):
    """How probabilities become a decision, fitted on `images` calibration images; `operating.decide` applies it.

    positive, threshold: the decision is `positive` where its probability is at least `threshold`, else the most
    probable other label; chosen for a `target` of `target_value`. max_disagreement: above it the decision is "refer".
    coverage, min_probability: the prediction set holds every label of at least that probability, and holds the true one
    for a share `coverage` of images like those. What is None is not applied.
    """

    images: Count
    positive: Text | None = None
    threshold: Share | None = None
    target: Literal["sensitivity", "specificity"] | None = None
    target_value: Share | None = None
    max_disagreement: Share | None = None
    coverage: Share | None = None
    min_probability: Share | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> OperatingPoint:
        for names in (("positive", "threshold", "target", "target_value"), ("coverage", "min_probability")):
            if len({getattr(self, name) is None for name in names}) != 1:
                raise ValueError(f"{', '.join(names)} must be given together")
        return self


class Manifest(Strict):
    """All that a bundle states about itself. Immutable after the build; plans live beside it.

    bundle_id: first 16 hex digits of the sha256 over the other fields but `created`, `edgemed_version` and `checksum`:
    the same files, labels and contract give the same id on every machine. checksum: sha256 over all other fields.
    size: side in pixels to which the graph resizes. flops: floating-point operations for one image at opt_side, two per
    multiply-add. weight_bytes: bytes of all members' weights at fp32. temperatures: one per member. entropy: whether
    the graphs have the output `entropy` too, (N, size / 32, size / 32); written down only where they have.
    """

    schema_version: Literal[1]
    bundle_id: BundleId
    checksum: Sha256
    created: Time
    edgemed_version: Text
    backbone: Text
    labels: Annotated[tuple[Text, ...], Field(min_length=2)]
    member_names: Annotated[tuple[Text, ...], Field(min_length=1)]
    temperatures: tuple[Annotated[float, Field(gt=0)], ...]
    input: ImageInput
    size: Side
    flops: Count
    weight_bytes: Count
    entropy: bool = False
    operating_point: OperatingPoint | None = None
    files: dict[FileName, FileEntry]

    @model_validator(mode="after")
    def _check_whole(self) -> Manifest:
        for names in (self.labels, self.member_names):
            if len(set(names)) != len(names):
                raise ValueError(f"a name stands twice in {', '.join(names)}")
        if len(self.temperatures) != len(self.member_names):
            raise ValueError("temperatures must have one value per member")
        if self.entropy and self.size % 32:
            raise ValueError(f"entropy is of 32-pixel patches, and size {self.size} has no whole ones")
        if self.operating_point and self.operating_point.positive not in (None, *self.labels):
            raise ValueError(f"operating_point names '{self.operating_point.positive}', which is not a label")
        for name in (MODEL_FILES["fp32"], GOLDEN_OUTPUTS):
            if name not in self.files:
                raise ValueError(f"files must list {name}")
        return self

    @property
    def entropy_side(self) -> int:
        """Patches along a side of the entropy map; 0 where the graphs give none."""
        return self.size // 32 if self.entropy else 0

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = written(self)
        if not self.entropy:
            fields.pop("entropy", None)
        return fields


_Document = TypeVar("_Document", bound=BaseModel)


def canonical_bytes(document: Mapping[str, Any]) -> bytes:
    """The JSON-able mapping in canonical form."""
    text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def document_bytes(document: BaseModel) -> bytes:
    """The file that states this document: what `parse` accepts."""
    return canonical_bytes(document.model_dump(mode="json"))


def sealed_manifest(fields: Mapping[str, Any]) -> Manifest:
    """A manifest from all its fields but `bundle_id` and `checksum`, which are computed here.

    Raises InputError naming the field that is wrong.
    """
    draft = {**fields, "schema_version": SCHEMA_VERSION, "bundle_id": "0" * 16, "checksum": "0" * 64}
    try:
        manifest = Manifest.model_validate(draft)
    except ValidationError as error:
        raise InputError(f"cannot make a bundle: {_reason(error)}") from error
    manifest = manifest.model_copy(update={"bundle_id": _bundle_id(manifest)})
    return manifest.model_copy(update={"checksum": _checksum(manifest)})


def parse(kind: type[_Document], data: bytes, where: Path) -> _Document:
    """The document that `data`, the content of the file `where`, states.

    Raises InputError, each with its own message: no JSON, a newer schema, a field that is wrong, and, for a text that
    is not canonical or does not match its own checksum, changed after the build.
    """
    try:
        raw = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); {AGAIN}") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA_VERSION:
        raise InputError(
            f"{where} has schema version {version}, this edgemed reads up to {SCHEMA_VERSION}; "
            "install a newer edgemed (the wheel or clone that made the bundle)"
        )
    try:
        document = kind.model_validate_json(data)
    except ValidationError as error:
        step = "build the bundle again" if kind is Manifest else "remove it, then build or certify again"
        raise InputError(f"{where} is not valid: {_reason(error)}; {step}") from error
    sealed = not isinstance(document, Manifest) or (
        document.bundle_id == _bundle_id(document) and document.checksum == _checksum(document)
    )
    if not sealed or document_bytes(document) != data:
        raise InputError(f"{where} was changed after the build; {AGAIN}")
    return document


def sha256_of(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def _bundle_id(manifest: Manifest) -> str:
    content = manifest.model_dump(mode="json", exclude={"bundle_id", "checksum", "created", "edgemed_version"})
    return sha256_of(canonical_bytes(content))[:16]


def _checksum(manifest: Manifest) -> str:
    return sha256_of(canonical_bytes(manifest.model_dump(mode="json", exclude={"checksum"})))


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = one_line(".".join(str(part) for part in first["loc"]) or "the document")  # a key may hold anything
    return f"{place}: {first['msg']}"
