"""The command line: options, progress, tables, exit codes. The library raises; only this file prints and exits.

    edgemed --help

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgemed import __version__, display
from edgemed.errors import EdgemedError, InputError

TRAIN = ("torch", "torchvision", "timm", "onnx", "onnxscript", "matplotlib", "safetensors")
EXTRAS = dict.fromkeys(TRAIN, "train") | dict.fromkeys(("sklearn", "scipy", "cv2", "imagehash"), "eval")
"""The extra that brings a module that a command may miss."""

app = typer.Typer(
    name="edgemed",
    help="Labelled medical images in, one engine file out, with the evidence that it is right.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Runtime = Annotated[str, typer.Option(help="openvino, onnxruntime, or auto: the first that works here.")]
Precision = Annotated[str, typer.Option(help="Which graph of the bundle: fp32 or fp16.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 = all that this process may use.")]
FoldThreads = Annotated[
    int,
    typer.Option(min=0, help="CPU threads, 0 = all. With --folds: of each fold; the cores then hold several folds."),
]
Bundle = Annotated[Path, typer.Argument(help="A bundle from `edgemed build-engine`.", show_default=False)]


@app.callback(invoke_without_command=True)
def _edgemed(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details.")] = False,
) -> None:
    if version:
        display.say(__version__)
        raise typer.Exit
    display.start_logging(logging.DEBUG if verbose else logging.INFO)


def _parts(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--split '{text}': give three numbers like 0.7,0.15,0.15") from error


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="A folder per class, or a CSV path,label[,group][,split].")],
    out: Annotated[Path, typer.Option(help="The run folder; a killed run goes on there.", show_default=False)],
    backbone: Annotated[
        str, typer.Option(help="timm's convnext_*, resnetNN or tf_efficientnet_lite*.")
    ] = "convnext_tiny",
    size: Annotated[int, typer.Option(help="Side of the network's input in pixels.")] = 224,
    pretrain_size: Annotated[int, typer.Option(help="Side for the masked pretraining (224 = 49 units).")] = 224,
    start: Annotated[str, typer.Option(help="The masked pretraining starts from: imagenet | scratch.")] = "imagenet",
    weights: Annotated[Path | None, typer.Option(help="ImageNet weights as safetensors, for work offline.")] = None,
    split: Annotated[str, typer.Option(help="Parts of train, validation, test.")] = "0.7,0.15,0.15",
    folds: Annotated[int, typer.Option(help="Cross-validation in K folds in place of one split.")] = 0,
    epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning, at most.")] = 30,
    pretrain_epochs: Annotated[int, typer.Option(help="Epochs of masked pretraining.")] = 30,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Fine-tuning's highest rate (the classifier's).")] = 5e-4,
    pretrain_learning_rate: Annotated[float, typer.Option(help="Pretraining's highest rate.")] = 3e-4,
    layer_decay: Annotated[float, typer.Option(help="Each layer's rate against that of the next one.")] = 0.75,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 0.05,
    warmup_epochs: Annotated[int, typer.Option(help="Epochs of linear warm-up.")] = 2,
    drop_path: Annotated[float, typer.Option(help="Stochastic depth in fine-tuning.")] = 0.1,
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing in fine-tuning.")] = 0.1,
    class_weighting: Annotated[float, typer.Option(help="0 = none, 1 = balanced classes.")] = 0.5,
    ema_decay: Annotated[float, typer.Option(help="Decay of the weights' moving average.")] = 0.99,
    vertical_flip: Annotated[bool, typer.Option(help="Flip upside down too: where up and down are alike.")] = False,
    patience: Annotated[int, typer.Option(help="Stop after so many epochs without a lower validation loss.")] = 10,
    mask_ratio: Annotated[float, typer.Option(help="Part of the 32-pixel units that pretraining removes.")] = 0.6,
    sharpness: Annotated[float, typer.Option(help="0 = random masks, large = highest entropy, < 0 = lowest.")] = 1.0,
    entropy_patch: Annotated[int, typer.Option(help="Side of the entropy's patches: 8, 16 or 32.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of split, weights, order, augmentation and masks.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: FoldThreads = 0,
    loader: Annotated[str, typer.Option(help="dali, torch, or auto.")] = "auto",
    json_: Json = False,
) -> None:
    """Train both members on labelled images, evaluate them and their ensemble, write a report."""
    options = dict(locals())
    for name in ("data", "out", "json_"):
        options.pop(name)
    from edgemed.config import TrainConfig

    config = TrainConfig(**options | {"split": _parts(split), "weights": str(weights) if weights else None})
    from edgemed.train import train as run_train

    with display.progress() as progress:
        metrics = run_train(config, data, out, progress)
    display.metrics(metrics, json_, f"{out} ({metrics['split']})")
    if not json_:
        display.say(f"report: {out / 'report.html'} (shows patient data)")


@app.command("build-engine")
def build_engine(
    run: Annotated[Path, typer.Argument(help="A finished run of `edgemed train`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The bundle to write.", show_default=False)],
    image_size: Annotated[str, typer.Option(help="Range of image sides: min,opt,max in pixels.")] = "32,512,4096",
    rtx: Annotated[str, typer.Option(help="TensorRT-RTX plan: auto (where it is installed), yes, no.")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace a bundle that is already at --out.")] = False,
    json_: Json = False,
) -> None:
    """Fuse the ensemble into one engine, prove it against PyTorch, write the bundle."""
    from edgemed.build import build_bundle

    with display.progress() as progress:
        bundle = build_bundle(run, out, image_size=_sides(image_size), rtx=rtx, overwrite=overwrite, progress=progress)
    bundle.verify()
    display.inspection(bundle, json_)


def _sides(text: str) -> tuple[int, int, int]:
    try:
        low, typical, high = (int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--image-size '{text}': give min,opt,max in pixels, like 32,512,4096") from error
    return low, typical, high


@app.command()
def predict(
    bundle: Bundle,
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    runtime: Runtime = "auto",
    precision: Precision = "fp32",
    threads: Threads = 0,
    json_: Json = False,
) -> None:
    """Classify images. A bad file is reported and the others go on; the exit code is then 2."""
    from edgemed.infer import load

    model = load(bundle, runtime=runtime, precision=precision, threads=threads or None)
    found, bad = [], 0
    for path in images:
        try:
            found.append(model(path))
        except InputError as error:
            bad += 1
            display.error(error)
    if json_:
        display.document([prediction.as_dict() for prediction in found])
    else:
        display.predictions(found, model)
    if bad:
        raise typer.Exit(InputError.exit_code)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run or a bundle.", show_default=False)],
    data: Annotated[Path, typer.Argument(help="Labelled images: a folder per class or a CSV.", show_default=False)],
    runtime: Runtime = "auto",
    precision: Precision = "fp32",
    json_: Json = False,
) -> None:
    """Measure a run or a bundle on labelled images."""
    from edgemed.judge import judge

    with display.progress() as progress:
        metrics = judge(model, data, runtime=runtime, precision=precision, progress=progress)
    display.metrics(metrics, json_, f"{model} on {data}")


@app.command()
def bench(
    bundle: Bundle,
    runtime: Runtime = "auto",
    precision: Precision = "fp32",
    batch: Annotated[int, typer.Option(min=1, help="Images per request.")] = 1,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels.", show_default="typical")
    ] = None,
    threads: Threads = 0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds before measuring.")] = 1.0,
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds of measuring.")] = 5.0,
    json_: Json = False,
) -> None:
    """Measure the latency of a bundle on this machine, after checking that its answers are right."""
    from edgemed import bench as bench_module

    report = bench_module.bench(
        bundle,
        runtime=runtime,
        precision=precision,
        batch=batch,
        image_size=image_size,
        threads=threads or None,
        warmup=warmup,
        duration=duration,
    )
    if json_:
        display.document(report)
    else:
        display.say(bench_module.table(report))


@app.command()
def inspect(bundle: Bundle, json_: Json = False) -> None:
    """Show what is in a bundle, after verifying every hash."""
    from edgemed.bundle import open_bundle

    opened = open_bundle(bundle)
    opened.verify()
    display.inspection(opened, json_)


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Where to write the images.", show_default=False)],
    per_class: Annotated[int, typer.Option(min=1, help="Images per class.")] = 60,
    size: Annotated[int, typer.Option(min=32, help="Typical side in pixels.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Seed.")] = 0,
) -> None:
    """Write labelled ultrasound-like phantoms, made by code, to try edgemed with."""
    from edgemed.phantoms import write_dataset

    written = write_dataset(folder, per_class=per_class, size=size, seed=seed)
    display.say(f"{written}: {per_class} phantoms per class; next: edgemed train {written} --out RUN")


def main() -> None:
    """The entry point: runs a command, turns errors into one line and an exit code."""
    try:
        app()
    except EdgemedError as error:
        display.error(error)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        display.error(InputError(f"this command needs {error.name}: pip install '.[{extra}]' in a clone of edgemed"))
        sys.exit(InputError.exit_code)
