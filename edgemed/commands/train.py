"""`edgemed train`, `edgemed sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemed import display, tables
from edgemed.commands import Json, goes_on
from edgemed.errors import InputError

if TYPE_CHECKING:
    from edgemed.config import TrainConfig

FoldThreads = Annotated[
    int,
    typer.Option(min=0, help="CPU threads; 0 = all cores it may use. With --folds: of each fold; 0 = they share them."),
]


def _parts(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--split '{text}': give three numbers like 0.7,0.15,0.15") from error


def settings(options: dict[str, Any]) -> TrainConfig:
    """The settings that the command line's options ask for."""
    from edgemed.config import TrainConfig

    weights = options["weights"]
    return TrainConfig(**options | {"split": _parts(options["split"]), "weights": str(weights) if weights else None})


def train(
    data: Annotated[Path, typer.Argument(help="A folder per class, or a CSV path,label[,group][,split].")],
    out: Annotated[Path, typer.Option(help="The run folder; a killed run goes on there.", show_default=False)],
    backbone: Annotated[
        str, typer.Option(help="timm's convnext_atto ... xlarge, resnetNN(d), tf_efficientnet_lite0 ... 4.")
    ] = "convnext_tiny",
    size: Annotated[int, typer.Option(help="Side of the network's input in pixels.")] = 224,
    train_size: Annotated[int, typer.Option(help="Side of fine-tuning's random crops; 0 = --size.")] = 0,
    pretrain_size: Annotated[int, typer.Option(help="Side of the images in the masked pretraining.")] = 224,
    start: Annotated[str, typer.Option(help="The masked pretraining starts from: imagenet | scratch.")] = "imagenet",
    weights: Annotated[Path | None, typer.Option(help="ImageNet weights as safetensors, for work offline.")] = None,
    split: Annotated[str, typer.Option(help="Parts of train, validation, test.")] = "0.7,0.15,0.15",
    calibration: Annotated[
        float, typer.Option(help="Share of the training images set apart for temperatures and operating point.")
    ] = 0.0,
    folds: Annotated[int, typer.Option(help="Cross-validation in K folds in place of one split.")] = 0,
    epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning, at most.")] = 30,
    pretrain_epochs: Annotated[int, typer.Option(help="Epochs of masked pretraining.")] = 30,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Fine-tuning's highest rate (the classifier's).")] = 5e-4,
    pretrain_learning_rate: Annotated[float, typer.Option(help="Pretraining's highest rate.")] = 3e-4,
    layer_decay: Annotated[float, typer.Option(help="Each layer's rate against that of the next one.")] = 0.75,
    freeze: Annotated[int, typer.Option(help="Keep the stem and this many stages as they are in fine-tuning.")] = 0,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 0.05,
    warmup_epochs: Annotated[int, typer.Option(help="Epochs of linear warm-up, at most half of a stage.")] = 2,
    drop_path: Annotated[float, typer.Option(help="Stochastic depth in fine-tuning.")] = 0.1,
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing in fine-tuning.")] = 0.1,
    class_weighting: Annotated[float, typer.Option(help="0 = none, 1 = balanced classes.")] = 0.5,
    mixup: Annotated[float, typer.Option(help="Mixup's alpha: pairs of images are mixed; 0 = off.")] = 0.0,
    sam: Annotated[float, typer.Option(help="Radius of sharpness-aware minimisation, twice the time; 0 = off.")] = 0.0,
    ema_decay: Annotated[float, typer.Option(help="Decay of the weights' moving average.")] = 0.99,
    crop_area: Annotated[float, typer.Option(help="Random crops keep this share of an image's area, at least.")] = 0.3,
    vertical_flip: Annotated[
        bool, typer.Option("--vertical-flip", help="Flip upside down too: where up and down are alike.")
    ] = False,
    quarter_turns: Annotated[
        bool, typer.Option("--quarter-turns", help="Turn by quarters too: where no direction is special.")
    ] = False,
    random_erasing: Annotated[float, typer.Option(help="Blank a rectangle in this share of the images.")] = 0.0,
    patience: Annotated[int, typer.Option(help="Stop after this many epochs without a lower validation loss.")] = 10,
    mask_ratio: Annotated[float, typer.Option(help="Part of the 32-pixel units that pretraining removes.")] = 0.6,
    sharpness: Annotated[float, typer.Option(help="0 = random masks, large = highest entropy, < 0 = lowest.")] = 1.0,
    entropy_patch: Annotated[int, typer.Option(help="Side of the entropy's patches: 8, 16 or 32.")] = 16,
    renyi_order: Annotated[float, typer.Option(help="Order of the entropy: 1 = Shannon's, else Renyi's.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of split, weights, order, augmentation and masks.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: FoldThreads = 0,
    loader: Annotated[str, typer.Option(help="dali, torch, or auto.")] = "auto",
    accumulate: Annotated[int, typer.Option(help="Compute each step's --batch in this many parts; saves memory.")] = 1,
    amp: Annotated[bool, typer.Option(help="bfloat16 on a GPU; a CPU always computes in float32.")] = True,
    compile: Annotated[bool, typer.Option("--compile", help="Fine-tune by torch.compile: not for a CPU.")] = False,
    json_: Json = False,
) -> None:
    """Train both members; evaluate them and their ensemble."""
    options = dict(locals())
    for name in ("data", "out", "json_"):
        options.pop(name)
    config = settings(options)  # before torch, which takes seconds: a mistyped value is told at once
    from edgemed.distributed import follow, process_group
    from edgemed.train import train as run_train

    with process_group(device, threads) as leads:
        if not leads:
            return follow()
        with goes_on(out), display.progress() as progress:
            metrics = run_train(config, data, out, progress)
    tables.metrics(metrics, json_, f"{out} ({metrics['split']})")
    if not json_:
        if metrics.get("operating"):
            tables.operating_point(metrics)
        display.say(f"report: {out / 'report.html'} (shows patient data)")


def sample(
    folder: Annotated[Path, typer.Argument(help="Where to write the images.", show_default=False)],
    per_class: Annotated[int, typer.Option(min=1, help="Images per class.")] = 60,
    size: Annotated[int, typer.Option(min=32, max=4096, help="Typical side in pixels.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Seed.")] = 0,
) -> None:
    """Write labelled phantoms, made by code, to try edgemed. They look like ultrasound."""
    from edgemed.phantoms import write_dataset

    written = write_dataset(folder, per_class=per_class, size=size, seed=seed)
    display.say(f"{written}: {per_class} phantoms per class; next: edgemed train {written} --out RUN")
