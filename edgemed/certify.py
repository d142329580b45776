"""A certificate: on the user's own images, on this machine, an engine is as right as the PyTorch model it came from.

    edgemed certify BUNDLE DATA [--runtime NAME] [--precision fp16]

Why: a plan is compiled on the device by a builder that chooses kernels by timing them; no proof made elsewhere holds
for it. `reference.npz` names images that training held out by the sha256 of their pixels, with PyTorch's probabilities;
the user's files are matched to it, run through the engine and compared: probabilities, labels and, by the operating
point, decisions, sets and referral. The gates decide; the record says what ran where. Golden images alone make an
engine self-tested, never certified. No torch; the extra `eval` for the AUROC.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgemed.bundle import Bundle
from edgemed.engines import no_plan, place_of
from edgemed.errors import EdgemedError, InputError
from edgemed.gates import (
    TIE_MARGINS,
    Answers,
    Gates,
    check,
    check_members,
    compare_batches,
    in_each_place,
    of_a_member,
    with_decisions,
)
from edgemed.images import fits, image_from_file, pixels_sha256
from edgemed.infer import Model, load
from edgemed.listing import image_files
from edgemed.manifest import MODEL_FILES, sha256_of
from edgemed.operating import changed_decisions
from edgemed.pack import check_writable, put_record
from edgemed.progress import Progress, unseen
from edgemed.records import Bounds, Certificate, Change, PlanRecord, least_batch, now
from edgemed.runtimes import ORDER, PlanModule, runtime_module

FEW = 30
"""Fewer images are warned of: where none of n has changed, up to 3 / n of all may have (95 %), of 30 one in ten."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """What a certification found: the record, whose certificate has the figures, and what counts only here.

    flips: the files whose label or decision changed. unmatched: files without a reference, or copies of another file.
    unfit: known images whose size the engine does not take: nothing is known of its answers there, since it gives none.
    """

    record: PlanRecord
    flips: tuple[Path, ...]
    files: int
    unmatched: int
    unfit: int
    reference_images: int


def certify(
    model: Model,
    data: Path,
    gates: Gates,
    *,
    signing_key: bytes | None = None,
    progress: Progress = unseen,
) -> Finding:
    """Compare the engine with PyTorch on the images in `data`, and write the certificate into the bundle's `plans/`.

    data: a folder of images (searched through), or a CSV with a column `path`. Labels come from the reference.
    gates: the bounds to keep. signing_key: Ed25519 (PEM), signs the record.

    Raises InputError where no image is known to the reference, or none of those fits the plan; GateError, with nothing
    written, where a gate fails.
    """
    from edgemed.metrics import auroc_change  # scikit-learn, not on every device: said before the images are run

    check_writable(model.bundle)
    model.bundle.plans()  # a record that cannot be read is told of before the images are run, too
    table = model.bundle.reference()
    count, found, answers, unfit = _asked(model, data, table.sha256.tolist(), progress)
    order = sorted(found)
    labels, groups = table.label[order], table.group[order]
    truth, members = table.probabilities[order], table.members[order]  # (R, K), (R, M, K)
    answered, of_members = (  # (R, B, K), (R, B, M, K)
        np.stack([answers[row][name] for row in order]) for name in ("probabilities", "member_probabilities")
    )
    margin, point = TIE_MARGINS[model.precision], model.bundle.manifest.operating_point
    comparison = compare_batches(truth, answered, tie_margin=margin, labels=labels)
    of_rows = np.arange(len(order)).repeat(answered.shape[1])
    flat = answered.reshape(-1, truth.shape[1])
    if point is not None:
        both = members[of_rows], of_members.reshape(-1, *members.shape[1:])
        found_in_rows = changed_decisions(point, model.labels, truth[of_rows], flat, both, margin=margin)
        comparison = with_decisions(comparison, *(of_rows[each].tolist() for each in found_in_rows))
    flips = tuple(found[order[index]] for index in comparison.flips)
    what, names = f"{model.runtime} with {model.bundle.path}", [str(found[row]) for row in order]
    check(comparison, gates, what, names)
    member_names = model.bundle.manifest.member_names
    check_members(members, of_members, of_a_member(gates, len(member_names)), member_names, what, names)
    interval = auroc_change(labels[of_rows], truth[of_rows], flat, groups[of_rows])
    change = Change.model_validate(interval.as_dict()) if np.isfinite(interval.value) else None
    certificate = Certificate(
        created=now(),
        bundle_id=model.bundle.manifest.bundle_id,
        place=place_of(model.session, model.precision),
        images=len(order),
        max_prob_error=comparison.max_prob_error,
        mean_prob_error=comparison.mean_prob_error,
        flips=tuple(str(table.sha256[order[index]]) for index in comparison.flips),
        unclear=len(comparison.unclear),
        auroc_change=change,
        gates=Bounds(
            max_flips=gates.max_flips,
            max_prob_error=float(gates.max_prob_error),
            max_auroc_drop=None if comparison.auroc_drop is None else float(gates.max_auroc_drop),
        ),
    )
    record = (model.record or _record_of_onnx(model)).model_copy(
        update={"state": "certified", "certificate": certificate}
    )
    here = (certificate.place, certificate.bundle_id)
    others = [one for one in model.bundle.plans() if one.id == record.id and one.certified_at(*here)]
    replaced = max((one.certificate.images for one in others if one.certificate), default=0)
    put_record(model.bundle, record, signing_key)
    if replaced > len(order):
        _log.warning("this certificate covers %d images, and replaces one made here on %d", len(order), replaced)
    known = len(table.sha256)
    if (reason := _too_few(len(order), known)) is not None:
        _log.warning("certified on %d of %d known images: %s", len(order), known, reason)
    return Finding(record, flips, count, count - len(found) - len(unfit), len(unfit), known)


class _Asked(NamedTuple):
    """What an engine was asked, by the row of the reference's table."""

    files: int
    found: dict[int, Path]
    answers: dict[int, Answers]
    unfit: set[int]  # of a size that the engine does not take


def _asked(model: Model, data: Path, known: Sequence[str], progress: Progress) -> _Asked:
    """Run the images in `data` whose pixels' hash is `known`, each once. InputError where there is none."""
    rows = {digest: row for row, digest in enumerate(known)}
    files, found, answers, unfit = list(image_files(data)), dict[int, Path](), dict[int, Answers](), set[int]()
    sides = model.record.image_side if model.record else model.bundle.manifest.input.sides
    for done, path in enumerate(files, 1):
        pixels = image_from_file(path)
        row = rows.get(pixels_sha256(pixels))
        if row is not None and row not in found:  # a copy of an image proves nothing more
            if not fits(pixels, sides):
                unfit.add(row)
            else:
                found[row] = path
                answers[row] = in_each_place(model.outputs, pixels, least_batch(model.record))
        progress(f"certify on {model.runtime}", done, len(files), f"{len(found)} known")
    if unfit and not found:
        raise InputError(
            f"none of the {len(unfit)} known images in {data} fits the engine, whose sides are {sides[0]} to "
            f"{sides[2]}; certify with images of those sizes, or build an engine for these (--image-size)"
        )
    if not found:
        raise InputError(
            f"none of the {len(files)} images in {data} is known to {model.bundle.path}: its reference names the "
            f"{len(rows)} images that its training held out by their pixels; give that data set"
        )
    return _Asked(len(files), found, answers, unfit)


def _too_few(compared: int, known: int) -> str | None:
    """Why so many images of a reference prove little; None where they do not."""
    if 2 * compared < known:
        return "on the others nothing is proven; give training's whole data set, to an engine that takes its sizes"
    if compared < FEW:
        bound = 1 - 0.05 ** (1 / compared)
        return f"even if none of so few changes, up to {bound:.0%} of other images could (95 % bound)"
    return None


def _record_of_onnx(model: Model) -> PlanRecord:
    """The record of an ONNX file that this runtime executes as it is: no plan, any size of the bundle.

    Its id ends with a digest of the place: a bundle that serves on two CPUs keeps a certificate of each.
    """
    place = place_of(model.session, model.precision)
    where = sha256_of(place.model_dump_json().encode())[:8]
    version = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in place.version.lower())
    values: dict[str, Any] = {
        "id": f"{place.runtime}-{version[: 69 - len(place.runtime + place.precision)]}-{place.precision}-{where}",
        "created": now(),
        "onnx_sha256": model.bundle.manifest.files[MODEL_FILES[model.precision]].sha256,
        "precision": place.precision,
        "runtime": place.runtime,
        "version": place.version,
        "targets": (),
        "os": place.os,
        "architecture": place.architecture,
        "batch": (1, 1, 1),
        "image_side": model.bundle.manifest.input.sides,
        "sha256": None,
        "bytes": None,
        "state": "built",
    }
    return PlanRecord.model_validate(values)


def self_tests(bundle: Bundle) -> list[dict[str, Any]]:
    """The golden images on each runtime and precision that works here; ready for JSON.

    Each: runtime, precision, not_run (why, or None), failure (what is wrong, or None); and where it ran, comparison
    (see `gates.Comparison`) and state.
    """
    tests: list[dict[str, Any]] = []
    for name in ORDER:
        module = runtime_module(name)
        if (why_not := module.availability()) is not None:
            tests.append({"runtime": name, "precision": None, "not_run": why_not, "failure": None})
            continue
        for precision, file in MODEL_FILES.items():
            if file not in bundle.manifest.files:
                continue
            test: dict[str, Any] = {"runtime": name, "precision": precision, "not_run": None, "failure": None}
            try:
                if isinstance(module, PlanModule) and (why_not := no_plan(bundle, module, precision)):
                    tests.append(test | {"not_run": why_not})
                    continue
                model = load(bundle, runtime=name, precision=precision)
                if model.golden():
                    found = asdict(model.self_test())
                    state = "certified" if model.state == "certified" else "self-tested"  # just now
                    test |= {"comparison": found, "state": state}
                else:
                    test["not_run"] = f"no golden image has a size that plan {model.record and model.record.id} takes"
            except EdgemedError as error:
                test["failure"] = str(error)
            tests.append(test)
    return tests
