"""`edgemed build-engine`: a run or checkpoints become a bundle; a bundle gets plans for this device, without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemed import display, tables
from edgemed.commands import MAX_AUROC_DROP, Json, MaxAurocDrop, MaxFlips, MaxProbError, Sign, Verify, typed_flags
from edgemed.errors import InputError, did_you_mean
from edgemed.progress import Progress

if TYPE_CHECKING:
    from edgemed.bundle import Bundle
    from edgemed.plans import PlanOptions
    from edgemed.sources import Source

OF_CHECKPOINTS = {"--member", "--backbone", "--labels", "--size", "--check"}
OF_A_NEW_BUNDLE = {
    "--out", "--golden", "--with-entropy", "--overwrite", "--max-flips", "--max-prob-error", "--max-auroc-drop"
}  # fmt: skip
PRECISIONS = {"both": ("fp32", "fp16"), "fp32": ("fp32",), "fp16": ("fp16",)}


def build_engine(
    context: typer.Context,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|BUNDLE]",
            help="A finished run of `edgemed train`; or a bundle, to add plans for this device.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The bundle to write.", show_default=False)] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Image sides: min,opt,max in pixels, or one number. Of a bundle's plans: within its own.",
            show_default="32,512,4096",
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="both, fp32, fp16 (plans of a bundle only).")] = "both",
    member: Annotated[
        list[Path] | None,
        typer.Option(
            help="Without a run: a safetensors file under timm's names; repeat it for each member.",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="The members' network, by timm's name.", show_default=False)
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="The members' classes in order: a,b,c.", show_default=False)
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=32, help="Side in pixels that the members were trained at.", show_default=False)
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images to prove the members' engine on: a folder per class, or a CSV.",
            show_default=False,
        ),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(
            help="Images for the self-test; they travel in the bundle.", show_default="phantoms, made by code"
        ),
    ] = None,
    with_entropy: Annotated[
        bool, typer.Option("--with-entropy", help="The engine also gives the entropy of each 32-pixel patch, in bits.")
    ] = False,
    runtime: Annotated[
        str, typer.Option(help="What builds a plan: auto, tensorrt, tensorrt-rtx, or none.")
    ] = "auto",
    targets: Annotated[
        str | None,
        typer.Option(help="GPUs of a TensorRT-RTX plan.", show_default="sm80,sm86,sm89,sm120"),
    ] = None,
    batch: Annotated[str, typer.Option(help="A plan's batch sizes: min,opt,max, or one number.")] = "1",
    max_flips: MaxFlips = 0,
    max_prob_error: MaxProbError = None,
    max_auroc_drop: MaxAurocDrop = MAX_AUROC_DROP,
    sign: Sign = None,
    verify: Verify = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is already at --out.")] = False,
    json_: Json = False,
) -> None:
    """Fuse a run into one engine, and prove it. Of a bundle: add plans to it."""
    from edgemed.gates import default_gates
    from edgemed.manifest import IMAGE_SIZE, MANIFEST_NAME
    from edgemed.plans import PlanOptions
    from edgemed.signature import read_private_key

    if precision not in PRECISIONS:
        raise InputError(f"--precision '{precision}' is unknown.{did_you_mean(precision, PRECISIONS)}")
    key = None if sign is None else read_private_key(sign)
    sides = None if image_size is None else _range("--image-size", image_size)
    plans = PlanOptions(runtime, tuple(targets.split(",")) if targets else None, _range("--batch", batch))
    typed = typed_flags(context)
    if source is not None and (source / MANIFEST_NAME).is_file():
        idle = OF_CHECKPOINTS | OF_A_NEW_BUNDLE
        _refuse(f"{source} is a bundle, proven when it was built; plans are put into it", typed, idle)
        with display.progress() as progress:
            bundle = _with_plans(source, replace(plans, image_size=sides), precision, key, verify, progress)
    else:
        if source is not None and not source.exists():
            raise InputError(f"{source} does not exist; make a run with `edgemed train DATA --out RUN`")
        _refuse("only a bundle's signature is verified", typed, {"--verify"})
        if source is not None:
            _refuse(f"{source} is a run, whose own images and settings count", typed, OF_CHECKPOINTS)
        if out is None:
            raise InputError("build-engine writes a bundle: give --out BUNDLE")
        if precision == "fp16":
            raise InputError("--precision fp16: a bundle always holds the fp32 graph, its reference; take both")
        from edgemed.build import build_bundle
        from edgemed.pack import check_target

        check_target(out, overwrite=overwrite)
        with display.progress() as progress:
            bundle = build_bundle(
                _source(source, member or [], backbone, labels, size, check, progress),
                out,
                image_size=sides or IMAGE_SIZE,
                precisions=PRECISIONS[precision],
                plans=plans,
                gates={
                    name: default_gates(
                        name, max_flips=max_flips, max_prob_error=max_prob_error, max_auroc_drop=max_auroc_drop
                    )
                    for name in PRECISIONS[precision]
                },
                golden=golden,
                entropy=with_entropy,
                signing_key=key,
                overwrite=overwrite,
                progress=progress,
            )
    bundle.verify()
    tables.inspection(bundle, None, json_)


def _refuse(why: str, typed: set[str], idle: set[str]) -> None:
    """Raise InputError where a flag was typed that nothing would be done with."""
    if flags := sorted(typed & idle):
        raise InputError(f"{why}; leave out {', '.join(flags)}")


def _with_plans(
    path: Path, plans: PlanOptions, precision: str, key: bytes | None, verify: Path | None, progress: Progress
) -> Bundle:
    """The bundle at `path`, with plans for this device put into it."""
    from edgemed.bundle import open_bundle
    from edgemed.manifest import MODEL_FILES
    from edgemed.plans import add_plans
    from edgemed.signature import read_key

    bundle = open_bundle(path, public_key=None if verify is None else read_key(verify))
    bundle = replace(bundle, plan_key=None)  # devices sign plans by keys of their own
    precisions = PRECISIONS[precision]
    if precision == "both":  # of those that the bundle was built with
        precisions = tuple(each for each in precisions if MODEL_FILES[each] in bundle.manifest.files)
    add_plans(bundle, plans, precisions=precisions, signing_key=key, progress=progress)
    return bundle


def _source(
    run: Path | None,
    members: list[Path],
    backbone: str | None,
    labels: str | None,
    size: int | None,
    check: Path | None,
    progress: Progress,
) -> Source:
    from edgemed.sources import source_from_members, source_from_run

    if run is not None:
        return source_from_run(run)
    given = {"--member": members, "--backbone": backbone, "--labels": labels, "--size": size, "--check": check}
    if missing := [flag for flag, value in given.items() if not value]:
        raise InputError(f"without a run, build-engine needs checkpoints: {', '.join(missing)} missing")
    assert backbone and labels and size and check
    names = [name.strip() for name in labels.split(",")]
    return source_from_members(members, backbone=backbone, labels=names, size=size, check=check, progress=progress)


def _range(flag: str, text: str) -> tuple[int, int, int]:
    from edgemed.manifest import HIGHEST_SIDE

    try:
        numbers = [int(part) for part in text.split(",")]
        low, typical, high = numbers * 3 if len(numbers) == 1 else numbers
    except ValueError as error:
        raise InputError(f"{flag} '{text}': give min,opt,max, like 32,512,4096, or one number") from error
    if not 1 <= low <= typical <= high <= HIGHEST_SIDE:
        raise InputError(f"{flag} '{text}': min,opt,max must be from 1 to {HIGHEST_SIDE}, in this order")
    return low, typical, high
