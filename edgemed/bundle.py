"""The bundle: the folder that ships, read with every byte accounted for. `pack.py` writes it.

Why: a bundle is copied to devices by hand, and its plans are native code. So nothing in it is believed before the
manifest has named it: no missing or extra file, no symbolic link, no other length, no other sha256. Hashes detect
accidents; against intent there are signatures. No torch. `edgemed inspect BUNDLE` shows one.

    manifest.json  [manifest.sig]  model.fp32.onnx  [model.fp16.onnx]  golden/  [reference.npz]  [model_card.md]
    plans/<id>.plan, <id>.json, [<id>.sig]    added later; not in the manifest, each record with its plan's sha256
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from edgemed import signature
from edgemed.errors import InputError, did_you_mean
from edgemed.evidence import REFERENCE_NAME, Golden, Reference, golden_from_files, reference_from_file
from edgemed.manifest import (
    AGAIN,
    MANIFEST_NAME,
    MODEL_FILES,
    PLANS_FOLDER,
    SIGNATURE_NAME,
    Manifest,
    document_bytes,
    parse,
    sha256_of,
)
from edgemed.records import PlanRecord

MAX_DOCUMENT_BYTES = 4 << 20


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Files are read, and verified, when asked for.

    plan_key: the public key (PEM) by which plans must be signed, or None.
    """

    path: Path
    manifest: Manifest
    plan_key: bytes | None = None

    def read(self, name: str) -> bytes:
        """The bytes of one listed file, such as "model.fp32.onnx", read once and verified: hand on this very buffer.

        Raises InputError for a name that the manifest does not list, and for a missing or changed file.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise InputError(f"{self.path} has no file '{name}'.{did_you_mean(name, self.manifest.files)}")
        return _verified_content(self.path / name, entry.sha256, entry.bytes)

    def read_model(self, precision: str) -> bytes:
        """The ONNX graph of a precision, "fp32" or "fp16". Raises InputError where the bundle has none."""
        name = MODEL_FILES.get(precision)
        if name is None:
            raise InputError(f"precision '{precision}' is unknown.{did_you_mean(precision, MODEL_FILES)}")
        if name not in self.manifest.files:
            raise InputError(
                f"{self.path} holds no {precision} graph ({name}); take another --precision, or build again"
            )
        return self.read(name)

    def golden(self) -> tuple[Golden, ...]:
        """The golden images with the reference's outputs, and an entropy map each where the manifest states one."""
        names = [name for name in self.manifest.files if name.startswith("golden/")]
        golden = golden_from_files({name: self.read(name) for name in names})
        expected = (len(self.manifest.member_names), len(self.manifest.labels))
        if any(item.members.shape != expected or item.probabilities.shape != expected[1:] for item in golden):
            raise InputError(f"{self.path}: the golden outputs have other labels or members than the manifest; {AGAIN}")
        wanted = (self.manifest.entropy_side,) * 2 if self.manifest.entropy else None
        if any((None if item.entropy is None else item.entropy.shape) != wanted for item in golden):
            raise InputError(f"{self.path}: the golden outputs have other entropy maps than the manifest; {AGAIN}")
        return golden

    def reference(self) -> Reference:
        """The reference table. Raises InputError where the bundle has none, or one of other labels or members."""
        table = reference_from_file(self.read(REFERENCE_NAME))
        expected = (len(table.sha256), len(self.manifest.member_names), len(self.manifest.labels))
        if table.members.shape != expected:
            raise InputError(f"{self.path}: {REFERENCE_NAME} has other labels or members than the manifest; {AGAIN}")
        return table

    def verify(self) -> None:
        """Read every listed file and plan; check sha256 and signatures. Raises InputError at the first wrong one."""
        for name in self.manifest.files:
            self.read(name)
        records = {record.id: record for record in self.plans()}
        for record in records.values():
            if record.sha256 is not None:
                self.read_plan(record)
            elif self.plan_key is not None:
                self.check_signature(record)
        for plan in sorted((self.path / PLANS_FOLDER).glob("*.plan")):
            if plan.name[0] != "." and plan.stem not in records:
                raise InputError(f"{plan} has no record ({plan.stem}.json); remove it, or build the plan again")

    def plans(self) -> tuple[PlanRecord, ...]:
        """The records in `plans/`, sorted by id. Raises InputError for a record that cannot be read."""
        return tuple(
            _plan_record(path) for path in sorted((self.path / PLANS_FOLDER).glob("*.json")) if path.name[0] != "."
        )

    def read_plan(self, record: PlanRecord) -> bytes:
        """The bytes of a plan, verified against its record.

        Raises InputError where it has none, it was changed, or it was built from another graph than this bundle's.
        """
        path = self.path / PLANS_FOLDER / f"{record.id}.plan"
        if record.sha256 is None or record.bytes is None:
            raise InputError(f"{path} does not exist: this record certifies an ONNX file that runs without a plan")
        if self.plan_key is not None:
            self.check_signature(record)
        self.check_source(record)
        return _verified_content(path, record.sha256, record.bytes)

    def check_source(self, record: PlanRecord) -> None:
        """Raise InputError unless the record is about this bundle's own graph: a plan of another model answers too."""
        source = self.manifest.files.get(MODEL_FILES[record.precision])
        if source is None or source.sha256 != record.onnx_sha256:
            raise InputError(
                f"plan {record.id} was built from another {record.precision} graph than this bundle's; remove it from "
                f"{PLANS_FOLDER}/, and build one with `edgemed build-engine {self.path}`"
            )

    def trusts(self, record: PlanRecord) -> bool:
        """Whether a record counts: all do, but where there is a `plan_key`, by which it must be signed."""
        if self.plan_key is not None:
            try:
                self.check_signature(record)
            except InputError:
                return False
        return True

    def check_signature(self, record: PlanRecord) -> None:
        """Raise InputError unless the record is signed by `plan_key`, which must be there."""
        path = self.path / PLANS_FOLDER / f"{record.id}.json"
        _check_signature(path, document_bytes(record), self.plan_key or b"")


def open_bundle(
    path: str | os.PathLike[str], *, public_key: bytes | None = None, plan_key: bytes | None = None
) -> Bundle:
    """The bundle at `path`, with its manifest checked and its files found with the right lengths.

    public_key: in PEM; the manifest must then be signed by it. plan_key: likewise for plans, when they are read; None =
    public_key. Contents are verified when they are read (`Bundle.read`, `Bundle.verify`). Raises InputError, with a
    message of its own each: no such folder, no manifest, a manifest that is damaged, changed, newer, unsigned or signed
    by another key, a file that is missing, is too many, is a symbolic link, or has another length.
    """
    folder = Path(path).absolute()  # for later reads, wherever the process works then
    if not folder.exists():
        raise InputError(f"{folder} does not exist; build a bundle with `edgemed build-engine RUN --out {folder}`")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, not a bundle; give the folder that `edgemed build-engine` wrote")
    where = folder / MANIFEST_NAME
    if not os.path.lexists(where):
        raise InputError(f"{folder} holds no {MANIFEST_NAME}: no bundle, or an incomplete copy; {AGAIN}")
    found = _files_below(folder)
    content = _document_content(where)
    if public_key is not None:
        _check_signature(where, content, public_key)
    manifest = parse(Manifest, content, where)
    for name, entry in manifest.files.items():
        if name not in found:
            raise InputError(f"{folder / name} is missing; {AGAIN}")
        if found[name] != entry.bytes:
            raise InputError(f"{folder / name} has {found[name]} bytes, the manifest states {entry.bytes}; {AGAIN}")
    extra = sorted(
        name
        for name in found
        if name not in (*manifest.files, MANIFEST_NAME, SIGNATURE_NAME) and name.split("/")[0] != PLANS_FOLDER
    )
    if extra:
        raise InputError(f"{folder / extra[0]} is not listed in the manifest; remove it from the bundle")
    return Bundle(folder, manifest, public_key if plan_key is None else plan_key)


def opened_by_keys(
    path: str | os.PathLike[str],
    public_key: str | os.PathLike[str] | None,
    plan_key: str | os.PathLike[str] | None,
) -> Bundle:
    """`open_bundle` with the keys that lie in these files. InputError for a key of plans alone."""
    if plan_key is not None and public_key is None:
        raise InputError(
            f"{plan_key} is the key of plans alone, and the bundle itself would be believed unsigned; give the "
            "manifest's key too (--verify)"
        )
    keys = [None if file is None else signature.read_key(Path(file)) for file in (public_key, plan_key)]
    return open_bundle(path, public_key=keys[0], plan_key=keys[1])


def _check_signature(path: Path, data: bytes, public_key: bytes) -> None:
    where = path.with_suffix(".sig")
    if not os.path.lexists(where):
        raise InputError(f"{path} is not signed ({where.name} is missing); sign it with --sign KEY where it is made")
    signature.verify(public_key, data, _plain_content(where, signature.LENGTH + 1), path)


def _files_below(folder: Path) -> dict[str, int]:
    """Length in bytes of every file below `folder`, by its POSIX name; a link or a special file is an error."""
    found: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # a temporary file of a plan that is being added meanwhile
        if stat.S_ISLNK(status.st_mode):
            raise InputError(f"{path} is a symbolic link; a bundle holds plain files: copy it with `cp -rL`")
        if stat.S_ISREG(status.st_mode):
            found[path.relative_to(folder).as_posix()] = status.st_size
        elif not stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path} is not a plain file; remove it from the bundle")
    return found


def _plan_record(path: Path) -> PlanRecord:
    record = parse(PlanRecord, _document_content(path), path)
    if record.id != path.stem:
        raise InputError(f"{path} records the plan '{record.id}': the file was renamed; build the plan again")
    return record


def _document_content(path: Path) -> bytes:
    """The bytes of a JSON document of the bundle, within a limit that no real one comes near."""
    data = _plain_content(path, MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InputError(f"{path} is larger than {MAX_DOCUMENT_BYTES} bytes, which no {path.name} is; {AGAIN}")
    return data


def _verified_content(path: Path, sha256: str, length: int) -> bytes:
    """The bytes of a file, read once, if they are the ones that were built. Raises InputError otherwise."""
    data = _plain_content(path, length + 1)
    if len(data) != length:
        raise InputError(f"{path} has not the {length} bytes that were built; {AGAIN}")
    if sha256_of(data) != sha256:
        raise InputError(f"{path} was changed after the build (its sha256 differs); {AGAIN}")
    return data


def _plain_content(path: Path, limit: int = -1) -> bytes:
    """Up to `limit` bytes of a file that is not a symbolic link. Raises InputError where it cannot be read."""
    try:
        # Opened by descriptor, so that a link put there after the check is refused too.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as handle:
            return handle.read(limit)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {AGAIN}") from error
