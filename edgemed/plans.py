"""Plans for a bundle that is there already, from its own ONNX files. No torch: this is what a device runs.

    edgemed build-engine BUNDLE [--runtime tensorrt] [--precision fp16] [--batch 1,1,8] [--image-size 224]

Several plans live side by side; an id names runtime, version, precision, targets and profile. A plan that can run where
it was built is tried on the golden images before it is written, and is then "self-tested"; others are "built".
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from edgemed.bundle import Bundle
from edgemed.errors import InputError, did_you_mean
from edgemed.infer import Model
from edgemed.manifest import Range
from edgemed.pack import add_plan, check_writable
from edgemed.progress import Progress, unseen
from edgemed.records import PlanRecord
from edgemed.runtimes.tensorrt import FLAVOURS
from edgemed.runtimes.tensorrt_builder import plan_from_onnx

CHOICES = ("auto", "none", *FLAVOURS)
HOW_TO_INSTALL = "; ".join(flavour.install for flavour in FLAVOURS.values())


def plan_runtime(choice: str) -> str | None:
    """The builder to use: of "auto", classic TensorRT where it and a GPU are there, else RTX where it is installed.

    None: no plan is wanted, or, with "auto", none can be built here. Raises InputError for an unknown choice, or one
    that is not installed.
    """
    if choice not in CHOICES:
        raise InputError(f"--runtime '{choice}' is unknown.{did_you_mean(choice, CHOICES)}")
    if choice == "none":
        return None
    if choice != "auto":
        if importlib.util.find_spec(FLAVOURS[choice].package) is None:  # said now, and not after the whole proof
            raise InputError(f"--runtime {choice}: it is not installed; {FLAVOURS[choice].install}")
        return choice
    if FLAVOURS["tensorrt"].availability() is None:
        return "tensorrt"
    return "tensorrt-rtx" if importlib.util.find_spec(FLAVOURS["tensorrt-rtx"].package) else None


@dataclass(frozen=True)
class PlanOptions:
    """What plans to build. None: every target or size that there is a default for; see `tensorrt_builder`."""

    runtime: str = "auto"  # of CHOICES
    targets: tuple[str, ...] | None = None  # like "sm86"
    batch: Range = (1, 1, 1)
    image_size: Range | None = None  # within the bundle's range; None = the whole of it


def add_plans(
    bundle: Bundle,
    options: PlanOptions,
    *,
    precisions: Sequence[str],
    signing_key: bytes | None = None,
    progress: Progress = unseen,
) -> list[PlanRecord]:
    """Build a plan of each precision from the bundle's own ONNX files, and put them into its `plans/`.

    signing_key: the device's Ed25519 key (PEM). Nothing is written unless all of them can be built, and, where this
    machine can run them, answer the golden images rightly.

    Raises InputError where no builder is installed or an option does not fit, GateError for a plan with wrong answers.
    """
    if options.runtime == "none":
        raise InputError(
            f"nothing to do: this command only adds plans to {bundle.path}, and --runtime none builds none"
        )
    builder = plan_runtime(options.runtime)
    if builder is None:
        raise InputError(f"no TensorRT is installed to build a plan with: {HOW_TO_INSTALL}")
    whole = bundle.manifest.input.sides
    sides = whole if options.image_size is None else options.image_size
    if not whole[0] <= sides[0] <= sides[1] <= sides[2] <= whole[2]:
        raise InputError(
            f"--image-size {','.join(map(str, sides))} is outside of the bundle's own range, {whole[0]} to {whole[2]}: "
            "build the bundle again with a wider one"
        )
    check_writable(bundle)
    graphs = {precision: bundle.read_model(precision) for precision in precisions}  # all are there, before any build
    built = []
    for precision, graph in graphs.items():
        record, plan = plan_from_onnx(
            graph,
            runtime=builder,
            precision=precision,
            targets=options.targets,
            image_size=sides,
            batch=options.batch,
            progress=progress,
        )
        built.append((tried(bundle, record, plan), plan))
    for record, plan in built:
        add_plan(bundle, record, plan, signing_key)
    return [record for record, _ in built]


def tried(bundle: Bundle, record: PlanRecord, plan: bytes) -> PlanRecord:
    """The record, "self-tested" where this machine could run the plan on the golden images that fit its profile.

    Raises GateError where an answer is wrong.
    """
    flavour = FLAVOURS[record.runtime]
    if flavour.availability() is not None or flavour.here().capability not in record.targets:
        return record
    if not any(record.takes(item.image) for item in bundle.golden()):
        return record  # a plan of one size, which the golden images have not
    session = flavour.open_plan(plan, record)
    Model(bundle, session, record.precision, f"built for {session.device}", record).self_test()
    return record.model_copy(update={"state": "self-tested"})
