"""An ensemble becomes a bundle: export, proof against PyTorch, golden images, model card, TensorRT plans.

    edgemed build-engine RUN --out BUNDLE

Why the order matters: everything is made and checked before the bundle is renamed to its place, whole. An engine that
is not as right as the model that it came from never reaches the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from edgemed.bundle import Bundle
from edgemed.card import model_card
from edgemed.ensemble import Ensemble, entropy_map, predict_callable
from edgemed.errors import InputError
from edgemed.evaluate import decoded
from edgemed.evidence import REFERENCE_NAME, Golden, golden_files, reference_file
from edgemed.export import PRECISIONS, check_patches, onnx_from_ensemble
from edgemed.gates import Gates, default_gates
from edgemed.images import Sides, fits, image_from_file, is_image, pixels_sha256
from edgemed.manifest import IMAGE_SIZE, MODEL_FILES, ImageInput
from edgemed.pack import check_target, write_bundle
from edgemed.phantoms import CLASSES, MIN_SIDE, phantom
from edgemed.plans import HOW_TO_INSTALL, PlanOptions, add_plans, plan_runtime
from edgemed.precision import safe_half
from edgemed.progress import Progress, unseen
from edgemed.prove import Prover
from edgemed.runtimes.tensorrt_builder import served_targets
from edgemed.sources import Source

ROUNDED_IMAGES = 8  # so many of the images that decide are run with every operator rounded, beside the golden ones
CHECK_IMAGES = 200  # at most so many validation images, evenly spaced, decide whether the graphs are right
TINT = (1.0, 0.8, 0.6)  # of red, green, blue: as warm light
_log = logging.getLogger("edgemed")


def build_bundle(
    source: Source,
    out: Path,
    *,
    image_size: Sides = IMAGE_SIZE,
    precisions: Sequence[str] = PRECISIONS,
    plans: PlanOptions | None = None,
    gates: Mapping[str, Gates] | None = None,
    golden: Path | None = None,
    entropy: bool = False,
    signing_key: bytes | None = None,
    overwrite: bool = False,
    progress: Progress = unseen,
) -> Bundle:
    """Build, check and write the bundle of an ensemble.

    image_size: the range of H and W, see `export.onnx_from_ensemble`. precisions: of the graphs and plans, "fp32" among
    them. plans: None for none. gates: by precision; None = the defaults. golden: a folder of images for the self-test,
    which travel in the bundle; None = phantoms. entropy: the graphs also give the entropy of each 32-pixel patch.
    signing_key: Ed25519 (PEM), for the manifest and the plans. What else stays float32 at fp16 is decided on
    `ROUNDED_IMAGES` images and the golden ones, with every operator rounded, and on all with rounded weights.

    Raises:
        GateError: a graph or its results are not right; nothing is written.
        InputError: the source, `out`, or an option.
    """
    check_target(out, overwrite=overwrite)
    builder = None if plans is None else plan_runtime(plans.runtime)
    if builder and plans:
        served_targets(builder, plans.targets)
    elif plans and (plans.targets or plans.batch != PlanOptions.batch):
        raise InputError(
            "--targets and --batch are of a plan, and --runtime none builds none; leave them out"
            if plans.runtime == "none"
            else f"no TensorRT is installed to build the plan of --targets and --batch with: {HOW_TO_INSTALL}"
        )
    if entropy:
        check_patches(source.size)
    plans = plans if builder else None
    images = _phantoms(image_size) if golden is None else _images_of(golden, image_size)
    predict, front = predict_callable(source.ensemble), source.ensemble.front
    self_test = [Golden(image, *predict(image), entropy_map(front, image) if entropy else None) for image in images]
    bounds = gates or {precision: default_gates(precision) for precision in precisions}
    prover = Prover(source, CHECK_IMAGES, image_size, bounds, self_test, progress)
    kept: tuple[str, ...] = ()
    if "fp16" in precisions:
        found = safe_half(
            source.ensemble,
            lambda: chain(prover.images(ROUNDED_IMAGES), images),
            prover.has_room,
            every=prover.each_image,
        )
        kept = found.kept
        if kept:
            _log.warning("these layers are too large or too imprecise in fp16, and stay fp32: %s", ", ".join(kept))
    graphs: dict[str, bytes] = {}
    for precision in precisions:
        progress("export", len(graphs), len(precisions), precision)
        keep = kept if precision == "fp16" else ()
        graphs[precision] = onnx_from_ensemble(
            source.ensemble, precision, image_size=image_size, keep=keep, entropy=entropy
        )
    progress("export", len(graphs), len(precisions), "")
    for precision, graph in graphs.items():
        prover.judge_graph(graph, precision)
    if "fp16" in precisions:
        prover.judge_rounded(found.rounded)
    low, typical, high = image_size
    weight_bytes = 4 * sum(value.numel() for value in source.ensemble.members.parameters())
    flops = flops_of(source.ensemble, typical)
    files = {MODEL_FILES[precision]: graph for precision, graph in graphs.items()}
    files |= golden_files(self_test)
    files[REFERENCE_NAME] = _reference(source, progress)
    files["model_card.md"] = model_card(
        source, prover.checks, kept, image_size, flops, weight_bytes, prover.entropy_error
    ).encode()
    return write_bundle(
        out,
        backbone=source.backbone,
        labels=source.labels,
        member_names=source.member_names,
        temperatures=source.temperatures,
        image_input=ImageInput(min_side=low, opt_side=typical, max_side=high),
        size=source.size,
        flops=flops,
        weight_bytes=weight_bytes,
        files=files,
        entropy=entropy,
        operating_point=source.operating_point,
        signing_key=signing_key,
        overwrite=overwrite,
        complete=lambda bundle: (
            add_plans(bundle, plans, precisions=precisions, signing_key=signing_key, progress=progress)
            if plans
            else None
        ),
    )


def flops_of(ensemble: Ensemble, side: int) -> int:
    """Floating-point operations of the matrix products and convolutions, two per multiply-add, the resize's included.

    For one image of `side` x `side` pixels. Counted by torch's own counter; elementwise operators are left out.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ensemble(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    return int(counter.get_total_flops())


def _phantoms(image_size: Sides) -> list[NDArray[np.uint8]]:
    """Phantoms of every class in two shapes within the range of sizes; of each shape, the last is tinted.

    A grey image answers alike with red and blue in the wrong order, so grey ones alone would not show that fault.
    """
    low, _, high = image_size
    if high < MIN_SIDE:
        raise InputError(f"--image-size {','.join(map(str, image_size))}: the largest side must be at least {MIN_SIDE}")
    fitted = {side: min(max(side, low, MIN_SIDE), high) for side in (160, 480, 640)}
    shapes = ((fitted[160], fitted[160]), (fitted[480], fitted[640]))
    images = [phantom(kind, seed, *shape) for seed, shape in enumerate(shapes) for kind in CLASSES]
    for k in (len(CLASSES) - 1, -1):
        images[k] = (images[k] * np.array(TINT)).astype(np.uint8)
    return images


def _images_of(folder: Path, image_size: Sides) -> list[NDArray[np.uint8]]:
    """The images of a folder, without its subfolders. InputError where there is none, or one of another size."""
    files = sorted(path for path in folder.glob("*") if is_image(path))
    if not files:
        what = "holds no image" if folder.is_dir() else "is no folder"
        raise InputError(f"--golden {folder} {what}; give a folder with a few, such as one of each class")
    images = [image_from_file(file) for file in files]
    for file, image in zip(files, images, strict=True):
        if not fits(image, image_size):
            raise InputError(f"--golden: {file} has sides outside of --image-size; leave it out, or widen the range")
    return images


def _reference(source: Source, progress: Progress) -> bytes:
    """PyTorch's probabilities of the source's images, as the evaluation wrote them down: of these very pixels.

    InputError names an image that was changed since.
    """
    images = source.check_images
    for done, (known, image) in enumerate(zip(images, decoded([each.file for each in images]), strict=True), 1):
        if pixels_sha256(image) != known.pixels:
            raise InputError(
                f"{known.file} is not the image that {source.name} was evaluated on: it was changed since; restore it, "
                "or train anew"
            )
        progress("reference", done, len(images), "")
    return reference_file(
        [each.pixels for each in images],
        [each.label for each in images],
        [each.group for each in images],
        [each.split for each in images],
        source.noted,
    )
