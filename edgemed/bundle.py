"""The bundle: the folder that ships. Written whole or not at all, read with every byte accounted for.

Why: a bundle is copied to devices by hand, and its plans are native code. So nothing in it is believed before the
manifest has named it: no missing or extra file, no symbolic link, no other length, no other sha256. Hashes detect
accidents, not intent. No torch. `edgemed build-engine RUN --out BUNDLE` writes one, `edgemed inspect BUNDLE` shows it.

    manifest.json  model.fp32.onnx  [model.fp16.onnx]  golden/  [reference.npz]  [model_card.md]
    plans/<id>.plan, plans/<id>.json          added later; not in the manifest, each with its own sha256
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from edgemed import __version__
from edgemed.errors import InputError, did_you_mean
from edgemed.evidence import (
    REFERENCE_NAME,
    Golden,
    Reference,
    golden_files,
    golden_from_files,
    reference_file,
    reference_from_file,
)
from edgemed.files import write_atomic
from edgemed.manifest import (
    AGAIN,
    MANIFEST_NAME,
    MODEL_FILES,
    PLANS_FOLDER,
    FileEntry,
    ImageInput,
    Manifest,
    PlanRecord,
    document_bytes,
    document_content,
    parse,
    plain_content,
    sealed_manifest,
    sha256_of,
    verified_content,
)

__all__ = [
    "Bundle",
    "Golden",
    "ImageInput",
    "Manifest",
    "PlanRecord",
    "Reference",
    "add_plan",
    "check_target",
    "golden_files",
    "open_bundle",
    "reference_file",
    "write_bundle",
]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Files are read, and verified, when asked for."""

    path: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """The bytes of one listed file, such as "model.fp32.onnx", read once and verified: hand on this very buffer.

        Raises InputError for a name that the manifest does not list, and for a missing or changed file.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise InputError(f"{self.path} has no file '{name}'.{did_you_mean(name, self.manifest.files)}")
        return verified_content(self.path / name, entry.sha256, entry.bytes)

    def read_model(self, precision: str) -> bytes:
        """The ONNX graph of a precision, "fp32" or "fp16". Raises InputError where the bundle has none."""
        name = MODEL_FILES.get(precision)
        if name is None:
            raise InputError(f"precision '{precision}' is unknown.{did_you_mean(precision, MODEL_FILES)}")
        if name not in self.manifest.files:
            raise InputError(f"{self.path} holds no {precision} graph ({name}); take another precision or build again")
        return self.read(name)

    def golden(self) -> tuple[Golden, ...]:
        """The golden images with the reference's outputs: (image, probabilities, members) each."""
        names = [name for name in self.manifest.files if name.startswith("golden/")]
        golden = golden_from_files({name: self.read(name) for name in names})
        expected = (len(self.manifest.member_names), len(self.manifest.labels))
        if any(item.members.shape != expected or item.probabilities.shape != expected[1:] for item in golden):
            raise InputError(f"{self.path}: the golden outputs have other labels or members than the manifest; {AGAIN}")
        return golden

    def reference(self) -> Reference:
        """The reference table. Raises InputError where the bundle has none."""
        return reference_from_file(self.read(REFERENCE_NAME))

    def verify(self) -> None:
        """Read every listed file and every plan and check its sha256. Raises InputError at the first wrong one."""
        for name in self.manifest.files:
            self.read(name)
        records = {record.id: record for record in self.plans()}
        for record in records.values():
            if record.sha256 is not None:
                self.read_plan(record)
        for plan in sorted((self.path / PLANS_FOLDER).glob("*.plan")):
            if plan.stem not in records:
                raise InputError(f"{plan} has no record ({plan.stem}.json); remove it, or build the plan again")

    def plans(self) -> tuple[PlanRecord, ...]:
        """The records in `plans/`, sorted by id. Raises InputError for a record that cannot be read."""
        return tuple(
            _plan_record(path) for path in sorted((self.path / PLANS_FOLDER).glob("*.json")) if path.name[0] != "."
        )

    def read_plan(self, record: PlanRecord) -> bytes:
        """The bytes of a plan, verified against its record. Raises InputError where it has none, or it was changed."""
        path = self.path / PLANS_FOLDER / f"{record.id}.plan"
        if record.sha256 is None or record.bytes is None:
            raise InputError(f"{path} does not exist: this record certifies an ONNX file that runs without a plan")
        return verified_content(path, record.sha256, record.bytes)


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """The bundle at `path`, with its manifest checked and its files found with the right lengths.

    Contents are verified when they are read (`Bundle.read`, `Bundle.verify`). Raises InputError, with a message of its
    own each: no such folder, no manifest, a manifest that is damaged, changed or newer, a file that is missing, is too
    many, is a symbolic link, or has another length.
    """
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"{folder} does not exist; build a bundle with `edgemed build-engine RUN --out {folder}`")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, not a bundle; give the folder that `edgemed build-engine` wrote")
    where = folder / MANIFEST_NAME
    if not os.path.lexists(where):
        raise InputError(f"{folder} holds no {MANIFEST_NAME}: no bundle, or an incomplete copy; {AGAIN}")
    found = _files_below(folder)
    manifest = parse(Manifest, document_content(where), where)
    for name, entry in manifest.files.items():
        if name not in found:
            raise InputError(f"{folder / name} is missing; {AGAIN}")
        if found[name] != entry.bytes:
            raise InputError(f"{folder / name} has {found[name]} bytes, the manifest states {entry.bytes}; {AGAIN}")
    extra = sorted(
        n for n in found if n not in manifest.files and n != MANIFEST_NAME and n.split("/")[0] != PLANS_FOLDER
    )
    if extra:
        raise InputError(f"{folder / extra[0]} is not listed in the manifest; remove it from the bundle")
    return Bundle(folder, manifest)


def write_bundle(
    out: str | os.PathLike[str],
    *,
    backbone: str,
    labels: Sequence[str],
    member_names: Sequence[str],
    temperatures: Sequence[float],
    image_input: ImageInput,
    size: int,
    flops: int,
    weight_bytes: int,
    files: Mapping[str, bytes | Path],
    plans: Sequence[tuple[PlanRecord, bytes | None]] = (),
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle to `out` and open it: the fields of `Manifest`, and `files` by their names in the bundle.

    Needs at least "model.fp32.onnx" and the golden files (`evidence.golden_files`). Parent folders are made. All is
    written into a hidden folder beside `out`, which is then renamed, so `out` is never half a bundle. An `out` that
    exists is refused unless it is empty, or a bundle and `overwrite` is true: then it is replaced, its plans with it.

    Raises InputError for such an `out`, for wrong fields or file names, and where the disk refuses.
    """
    target = Path(out).resolve()
    check_target(target, overwrite=overwrite)
    contents = {n: content if isinstance(content, bytes) else plain_content(content) for n, content in files.items()}
    manifest = sealed_manifest(
        {
            "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "edgemed_version": __version__,
            "backbone": backbone,
            "labels": tuple(labels),
            "member_names": tuple(member_names),
            "temperatures": tuple(float(value) for value in temperatures),
            "input": image_input,
            "size": size,
            "flops": flops,
            "weight_bytes": weight_bytes,
            "files": {n: FileEntry(sha256=sha256_of(data), bytes=len(data)) for n, data in contents.items()},
        }
    )
    staging = target.with_name(f".{target.name}.new-{secrets.token_hex(4)}")
    try:
        staging.mkdir(parents=True)
        for name, data in {**contents, MANIFEST_NAME: document_bytes(manifest)}.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(data)
        for record, plan in plans:
            add_plan(Bundle(staging, manifest), record, plan)
        _put_in_place(staging, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; free space or choose another --out") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already when it became `out`
    return open_bundle(target)


def check_target(out: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise InputError if `write_bundle` would refuse `out`: to be asked before the work, not after it."""
    target = Path(out)
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise InputError(f"--out {target} is a file; choose a new folder for the bundle")
    if not any(target.iterdir()):
        return
    if not (target / MANIFEST_NAME).is_file():
        raise InputError(f"--out {target} holds something else than a bundle; choose a new or an empty folder")
    if not overwrite:
        raise InputError(
            f"--out {target} holds a bundle already; choose another folder, or replace it with --overwrite"
        )
    try:
        open_bundle(target)
    except InputError as error:
        # Replacing deletes the folder: what is not known to be a whole bundle may hold files of the user's own.
        raise InputError(f"--out {target} is not replaced, since it is no intact bundle: {error}") from error


def add_plan(bundle: Bundle, record: PlanRecord, plan: bytes | None) -> Path:
    """Put a plan and its record into `plans/`, replacing one of the same id; give the record's path.

    Each file appears whole, the record last: a plan is believed only through its record. `plan` is None for the
    certificate of an ONNX file. Raises InputError where the record does not describe the plan, or none of the bundle's
    ONNX files, or where the disk refuses.
    """
    described = (None, None) if plan is None else (sha256_of(plan), len(plan))
    if (record.sha256, record.bytes) != described:
        raise InputError(f"plan {record.id}: its record states another sha256 or length than the plan has")
    source = bundle.manifest.files.get(MODEL_FILES[record.precision])
    if source is None or source.sha256 != record.onnx_sha256:
        raise InputError(f"plan {record.id} was built from another {record.precision} graph than this bundle's")
    path = bundle.path / PLANS_FOLDER / f"{record.id}.json"
    if plan is not None:
        write_atomic(path.with_suffix(".plan"), plan)
    write_atomic(path, document_bytes(record))
    return path


def _put_in_place(staging: Path, target: Path) -> None:
    """Rename `staging` to `target`; a bundle that is there is moved aside first, and back if the rename fails."""
    if not target.exists() or not any(target.iterdir()):
        staging.rename(target)
        return
    aside = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
    target.rename(aside)
    try:
        staging.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _files_below(folder: Path) -> dict[str, int]:
    """Length in bytes of every file below `folder`, by its POSIX name; a link or a special file is an error."""
    found: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise InputError(f"{path} is a symbolic link; a bundle holds plain files: copy it with `cp -rL`")
        if stat.S_ISREG(status.st_mode):
            found[path.relative_to(folder).as_posix()] = status.st_size
        elif not stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path} is not a plain file; remove it from the bundle")
    return found


def _plan_record(path: Path) -> PlanRecord:
    record = parse(PlanRecord, document_content(path), path)
    if record.id != path.stem:
        raise InputError(f"{path} records the plan '{record.id}': the file was renamed; build the plan again")
    return record
