"""Writing a bundle: whole or not at all, and adding plans and certificates to one that is there.

`edgemed build-engine RUN --out BUNDLE` writes one; `edgemed build-engine BUNDLE` and `edgemed certify` add to it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from edgemed import __version__, signature
from edgemed.bundle import Bundle, open_bundle
from edgemed.errors import InputError, cannot_write
from edgemed.files import flush_folder, locked, write_atomic, write_through
from edgemed.manifest import (
    MANIFEST_NAME,
    PLANS_FOLDER,
    SIGNATURE_NAME,
    FileEntry,
    ImageInput,
    OperatingPoint,
    document_bytes,
    sealed_manifest,
    sha256_of,
)
from edgemed.records import PlanRecord, now

COPY = "a copy of the bundle in another folder"


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
    files: Mapping[str, bytes],
    entropy: bool = False,
    operating_point: OperatingPoint | None = None,
    signing_key: bytes | None = None,
    overwrite: bool = False,
    complete: Callable[[Bundle], object] = lambda bundle: None,
) -> Bundle:
    """Write a bundle to `out` and open it: the fields of `Manifest`, and `files` by their names in the bundle.

    Needs at least "model.fp32.onnx" and the golden files (`evidence.golden_files`). Parent folders are made. All is
    written into a hidden folder beside `out`, which is then renamed, so `out` is never half a bundle. An `out` that
    exists is refused unless it is empty, or a bundle and `overwrite` is true: then it is replaced, its plans with it.
    signing_key: an Ed25519 private key in PEM that signs the manifest. complete: adds plans to the staged bundle; what
    it raises leaves nothing behind.

    Raises InputError for such an `out`, for wrong fields or file names, and where the disk refuses.
    """
    target = Path(out).resolve()
    check_target(target, overwrite=overwrite)
    manifest = sealed_manifest(
        {
            "created": now(),
            "edgemed_version": __version__,
            "backbone": backbone,
            "labels": tuple(labels),
            "member_names": tuple(member_names),
            "temperatures": tuple(float(value) for value in temperatures),
            "input": image_input,
            "size": size,
            "flops": flops,
            "entropy": entropy,
            "operating_point": operating_point,
            "weight_bytes": weight_bytes,
            "files": {n: FileEntry(sha256=sha256_of(data), bytes=len(data)) for n, data in files.items()},
        }
    )
    staging = target.with_name(f".{target.name}.new-{secrets.token_hex(4)}")
    try:
        staging.mkdir(parents=True)
        statement = document_bytes(manifest)
        contents = {**files, MANIFEST_NAME: statement}
        if signing_key is not None:
            contents[SIGNATURE_NAME] = signature.sign(signing_key, statement)
        for name, data in contents.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            write_through(staging / name, data)
        complete(Bundle(staging, manifest))
        check_target(target, overwrite=overwrite)  # again: plans take minutes, in which another may have written there
        _put_in_place(staging, target)
    except OSError as error:
        raise cannot_write(target, error, "another --out") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already when it became `out`
    return open_bundle(target)


def check_target(out: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise InputError if `write_bundle` would refuse `out`: to be asked before the work, not after it."""
    target = Path(out)
    if not os.path.lexists(target):
        return
    if target.resolve() == Path.cwd():
        raise InputError(f"--out {target} is the folder that you are in; name one inside of it")
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
        raise InputError(
            f"--overwrite refused: {target} is not an intact bundle: {error}; or delete it yourself, or "
            "choose another --out"
        ) from error


def add_plan(bundle: Bundle, record: PlanRecord, plan: bytes | None, signing_key: bytes | None = None) -> Path:
    """Put a plan and its record into `plans/`, replacing one of the same id; give the record's path.

    Each file appears whole, the record last: a plan is believed only through its record. `plan` is None for the
    certificate of an ONNX file. One process at a time adds to a bundle. Raises InputError as `put_record` does.
    """
    described = (None, None) if plan is None else (sha256_of(plan), len(plan))
    if (record.sha256, record.bytes) != described:
        raise InputError(f"plan {record.id}: its record states another sha256 or length than the plan has")
    bundle.check_source(record)
    with _adding_to(bundle):
        if plan is not None:
            write_atomic(bundle.path / PLANS_FOLDER / f"{record.id}.plan", plan)
        return _put(bundle, record, signing_key)


def put_record(bundle: Bundle, record: PlanRecord, signing_key: bytes | None = None) -> Path:
    """Write the record of a plan that is in `plans/` already, or of an ONNX file; give the record's path.

    signing_key: signs the record (Ed25519, PEM); without one an old signature is removed, since it would not fit.
    Raises InputError where the record is about another graph than the bundle's, or the disk refuses.
    """
    with _adding_to(bundle):
        return _put(bundle, record, signing_key)


def check_writable(bundle: Bundle) -> None:
    """Raise InputError where nothing can be added to the bundle: to be asked before the work, not after it."""
    folder = bundle.path / PLANS_FOLDER
    if not os.access(folder if folder.exists() else bundle.path, os.W_OK):
        raise InputError(f"cannot write into {folder}; choose {COPY} that you may write to")


@contextlib.contextmanager
def _adding_to(bundle: Bundle) -> Iterator[None]:
    """Others that add to the bundle wait meanwhile, where its file system has locks."""
    folder = bundle.path / PLANS_FOLDER
    try:
        folder.mkdir(exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise cannot_write(folder, error, COPY) from error
    with locked(handle):
        yield


def _put(bundle: Bundle, record: PlanRecord, signing_key: bytes | None) -> Path:
    bundle.check_source(record)
    path = bundle.path / PLANS_FOLDER / f"{record.id}.json"
    data = document_bytes(record)
    signed = None if signing_key is None else signature.sign(signing_key, data)
    write_atomic(path, data)  # first: where the disk is full, the old record keeps its signature
    if signed is None:
        path.with_suffix(".sig").unlink(missing_ok=True)
    else:
        write_atomic(path.with_suffix(".sig"), signed)
    return path


def _put_in_place(staging: Path, target: Path) -> None:
    """Rename `staging` to `target`; a bundle that is there is moved aside first, and back if the rename fails.

    It is deleted when the disk knows of the new one.
    """
    for folder in (path for path in (staging, *staging.iterdir()) if path.is_dir()):
        flush_folder(folder)
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
    flush_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)
