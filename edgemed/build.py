"""A run becomes a bundle: export, proof against PyTorch, golden images, model card, TensorRT-RTX plans.

    edgemed build-engine RUN --out BUNDLE

Why the order matters: everything is made and checked in memory first, and the bundle is written whole at the end. An
engine that is not as right as the model that it came from never reaches the disk.
"""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgemed import __version__
from edgemed.bundle import Bundle
from edgemed.dataset import SPLITS
from edgemed.ensemble import Ensemble, predict_callable
from edgemed.errors import GateError, InputError, did_you_mean
from edgemed.evaluate import decoded, predict_files
from edgemed.evidence import golden_files, reference_file
from edgemed.export import PRECISIONS, onnx_from_ensemble
from edgemed.gates import TIE_MARGINS, Comparison, Gates, check, compare, default_gates
from edgemed.images import pixels_sha256
from edgemed.manifest import ImageInput, sha256_of
from edgemed.pack import check_target, write_bundle
from edgemed.phantoms import CLASSES, MIN_SIDE, phantom
from edgemed.precision import LARGEST_SAFE, half_ensemble, rounded_outputs
from edgemed.records import PlanRecord
from edgemed.run import Run, load_run, read_predictions
from edgemed.runtimes import runtime_module
from edgemed.runtimes.tensorrt_builder import plan_from_onnx

Sides = tuple[int, int, int]  # min, opt, max, in pixels
Progress = Callable[[str, int, int, str], None]
Check = tuple[str, Comparison]  # what was compared with PyTorch on real images, and how it went
RUNTIMES = ("openvino", "onnxruntime")  # each graph has to pass in every one of them that works here
_log = logging.getLogger("edgemed")


def build_bundle(
    run: Path,
    out: Path,
    *,
    image_size: Sides = (32, 512, 4096),
    rtx: str = "auto",
    overwrite: bool = False,
    check_images: int = 200,
    rounded_images: int = 8,
    progress: Progress = lambda stage, done, total, detail: None,
) -> Bundle:
    """Build, check and write the bundle of a finished run.

    image_size: the range of H and W, see `export.onnx_from_ensemble`. rtx: "yes", "no", or "auto" (where TensorRT-RTX
    is installed). check_images: at most so many validation images, evenly spaced, decide whether the graphs are right;
    rounded_images: so many of them also run with every fp16 operator rounded.

    Raises:
        GateError: a graph or its results are not right; nothing is written.
        InputError: the run, `out`, or an option.
    """
    if rtx not in ("auto", "yes", "no"):
        raise InputError(f"--rtx '{rtx}' is unknown.{did_you_mean(rtx, ('auto', 'yes', 'no'))}")
    check_target(out, overwrite=overwrite)
    plans_wanted = rtx == "yes" or (rtx == "auto" and importlib.util.find_spec("tensorrt_rtx") is not None)
    source = load_run(run)
    graphs: dict[str, bytes] = {}
    for precision in PRECISIONS:
        progress("export", len(graphs), len(PRECISIONS), precision)
        graphs[precision] = onnx_from_ensemble(source.ensemble, precision, image_size=image_size)
    progress("export", len(graphs), len(PRECISIONS), "")
    checks = _checked(source, graphs, image_size, check_images, rounded_images, progress)
    files = {f"model.{precision}.onnx": graph for precision, graph in graphs.items()}
    files |= _golden(source.ensemble, image_size)
    files["reference.npz"] = _reference(source, progress)
    low, typical, high = image_size
    weight_bytes = 4 * sum(value.numel() for value in source.ensemble.members.parameters())
    flops = flops_of(source.ensemble, typical)
    files["model_card.md"] = model_card(source, checks, image_size, flops, weight_bytes).encode()
    plans: list[tuple[PlanRecord, bytes]] = []
    for precision in PRECISIONS if plans_wanted else ():
        progress("TensorRT-RTX plan", len(plans), len(PRECISIONS), precision)
        plans.append(plan_from_onnx(graphs[precision], precision=precision, image_size=image_size))
        progress("TensorRT-RTX plan", len(plans), len(PRECISIONS), "")
    return write_bundle(
        out,
        backbone=source.backbone,
        labels=source.classes,
        member_names=source.member_names,
        temperatures=source.temperatures,
        image_input=ImageInput(min_side=low, opt_side=typical, max_side=high),
        size=source.size,
        flops=flops,
        weight_bytes=weight_bytes,
        files=files,
        plans=plans,
        overwrite=overwrite,
    )


def flops_of(ensemble: Ensemble, side: int) -> int:
    """Floating-point operations of the matrix products and convolutions, two per multiply-add, the resize's included.

    For one image of `side` x `side` pixels. Counted by torch's own counter; elementwise operators are left out.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ensemble(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    return int(counter.get_total_flops())


def _checked(
    run: Run, graphs: Mapping[str, bytes], image_size: Sides, limit: int, rounded: int, progress: Progress
) -> list[Check]:
    """Compare every graph in every CPU runtime, and the rounding run, with PyTorch; the first failure raises."""
    rows, noted = read_predictions(run.path / "predictions.csv", run.classes, "validation")
    chosen = np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int)
    files = [run.dataset.file(rows[k]) for k in chosen]
    images = list(decoded(files))
    for file, image in zip(files, images, strict=True):
        if not (image_size[0] <= min(image.shape[:2]) and max(image.shape[:2]) <= image_size[2]):
            height, width, _ = image.shape
            raise InputError(f"{file} has {width} x {height} pixels, outside of --image-size {image_size}: widen it")
    truth, of_members = predict_files(
        predict_callable(run.ensemble), files, lambda done, total: progress("PyTorch", done, total, "")
    )
    if not np.abs(of_members - noted[chosen]).max() <= default_gates("fp32").max_prob_error:
        raise InputError(
            f"{run.path}: PyTorch no longer gives what predictions.csv says; images or weights were changed"
        )
    checks: list[Check] = []

    def judge(what: str, precision: str, probabilities: Any, members: Any) -> None:
        gates = default_gates(precision)
        each = compare(of_members.reshape(-1, truth.shape[1]), np.reshape(members, (-1, truth.shape[1])), tie_margin=0)
        # A member counts 1/M in the mean, and so does its error.
        of_member = len(run.member_names) * gates.max_prob_error
        check(each, Gates(max_flips=each.n, max_prob_error=of_member), f"a member in {what}")
        found = compare(truth, probabilities, tie_margin=TIE_MARGINS[precision])
        check(found, gates, what)
        checks.append((what, found))
        _log.info("%s against PyTorch: largest error %.1e on %d images", what, found.max_prob_error, found.n)

    for precision, graph in graphs.items():
        for name in RUNTIMES:
            module = runtime_module(name)
            if isinstance(module, str) or module.availability() is not None:
                continue
            session = module.open_session(graph, precision=precision, threads=None, cache_key=sha256_of(graph))
            results = []
            for image in images:
                results.append(session.run(image[None]))
                progress(f"{precision} in {name}", len(results), len(images), "")
            outputs = (np.concatenate([result[key] for result in results]) for key in results[0])
            judge(f"the {precision} graph in {name} {session.version}", precision, *outputs)
    truth, of_members, images = truth[:rounded], of_members[:rounded], images[:rounded]
    stepwise = rounded_outputs(half_ensemble(run.ensemble), images)
    if stepwise.unsafe:
        worst = max(stepwise.unsafe, key=lambda name: np.nan_to_num(stepwise.unsafe[name], nan=np.inf))
        raise GateError(f"fp16 would overflow: {worst} reaches {stepwise.unsafe[worst]:g}, {LARGEST_SAFE:g} is safe")
    judge("the fp16 network, each operator rounded,", "fp16", stepwise.probabilities, stepwise.members)
    return checks


def _golden(ensemble: Ensemble, image_size: Sides) -> dict[str, bytes]:
    """Phantoms of every class in two shapes within the range of sizes, with PyTorch's outputs."""
    low, _, high = image_size
    if high < MIN_SIDE:
        raise InputError(f"--image-size {image_size}: the largest side must be at least {MIN_SIDE}")
    fitted = {side: min(max(side, low, MIN_SIDE), high) for side in (160, 480, 640)}
    shapes = ((fitted[160], fitted[160]), (fitted[480], fitted[640]))
    images = [phantom(kind, seed, *shape) for seed, shape in enumerate(shapes) for kind in CLASSES]
    outputs = [predict_callable(ensemble)(image) for image in images]
    return golden_files(images, np.stack([one for one, _ in outputs]), np.stack([each for _, each in outputs]))


def _reference(run: Run, progress: Progress) -> bytes:
    """PyTorch's probabilities of the validation and test images, as training's evaluation wrote them down."""
    hashes: list[str] = []
    labels: list[int] = []
    groups: list[int] = []
    splits: list[str] = []
    tables = []
    names = {name: number for number, name in enumerate(sorted(set(run.dataset.groups)))}
    for split in ("validation", "test"):
        rows, members = read_predictions(run.path / "predictions.csv", run.classes, split)
        for image in decoded([run.dataset.file(row) for row in rows]):
            hashes.append(pixels_sha256(image))
            progress(f"reference {split}", len(hashes) - len(labels), len(rows), "")
        labels += [run.classes.index(row.label) for row in rows]
        groups += [names[row.group] for row in rows]
        splits += [split] * len(rows)
        tables.append(members.mean(axis=1))
    return reference_file(hashes, labels, groups, splits, np.concatenate(tables))


def model_card(run: Run, checks: list[Check], image_size: Sides, flops: int, weight_bytes: int) -> str:
    """Markdown: what the engine is for, was made from, is worth, and what is unknown. No names of patients or files."""
    info, metrics, ensemble = run.info, run.metrics, run.metrics["ensemble"]
    counts = Counter((row.split, row.label) for row in run.dataset.rows)
    low, typical, high = image_size
    return CARD.format(
        run=run,
        names=", ".join(run.classes),
        data=_table([(name, *(counts[split, name] for split in SPLITS)) for name in run.classes]),
        info=info,
        fingerprint=info["dataset"]["fingerprint"][:16],
        members=f"{len(run.member_names)} ({', '.join(run.member_names)})",
        temperatures=", ".join(f"{value:.3f}" for value in run.temperatures),
        size=f"{low} to {high}",
        cost=f"{flops / 1e9:.2f} GFLOP for one image of {typical} x {typical}; {weight_bytes / 1e6:.1f} MB at fp32",
        version=__version__,
        metrics=metrics,
        quality=_table(
            (name, *(_interval(values[key]) for key in MEASURES), f"{values['ece']:.3f}")
            for name, values in (*metrics["members"].items(), ("ensemble", ensemble))
        ),
        classes=_table(
            (name, _number(ensemble["sensitivity"][name]), _number(ensemble["specificity"][name]))
            for name in run.classes
        ),
        checks=_table((what, found.n, f"{found.max_prob_error:.1e}", len(found.flips)) for what, found in checks),
    )


MEASURES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
CARD = """# Model card: {run.backbone} ensemble

**Not a medical device.** For research. No authority has reviewed it, and it must not decide about a patient.

## Intended use

Classifies one image into: {names}. It gives a probability for each class and always chooses one, also for a picture
of something else. Meant for images from the same source and of the same kind as its training data.

## Data

{info[dataset][n]} labelled images in {info[dataset][groups]} groups (a patient, a lesion, or near-duplicates; a group
never crosses a split). Fingerprint {fingerprint}.

| class | train | validation | test |
|---|---|---|---|
{data}

## Model

Members: {members}. Each is {run.backbone} at {run.size} x {run.size} pixels; their probabilities, calibrated with the
temperatures {temperatures}, are averaged. Images of {size} pixels a side are resized in the graph: bilinear,
antialiased, aspect squashed. {cost}; a multiply-add counts as two operations.
Trained with edgemed {info[edgemed]} from seed {info[config][seed]}, built with edgemed {version}.

## Quality

{metrics[n]} images in {metrics[groups]} groups, split: {metrics[split]}; in brackets 95 % group-bootstrap intervals.

| | accuracy | balanced accuracy | macro F1 | AUROC | calibration error |
|---|---|---|---|---|---|
{quality}

| class (ensemble) | sensitivity | specificity |
|---|---|---|
{classes}

## The engine against PyTorch

On validation images at their own sizes. A CPU executes the fp16 graph in fp32; the last row rounds every operator.

| engine | images | largest probability error | changed labels |
|---|---|---|---|
{checks}

## Limits

- Quality on images of other devices, hospitals or patients than the training data's is not known.
- Differences between groups of patients were not measured: the data do not name such groups.
- Latency and power were not measured here; `edgemed bench` measures them on the device.
- A TensorRT-RTX plan in the state `built` was not executed.
"""


def _table(rows: Iterable[Sequence[object]]) -> str:
    cells = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _interval(value: Mapping[str, float | None]) -> str:
    return f"{_number(value['value'])} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
