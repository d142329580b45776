"""Fine-tuning of one member: AdamW with layer-wise rate decay, warm-up and cosine, EMA, early stopping on validation.

    edgemed train DATA --out RUN --epochs 30 --learning-rate 5e-4 --layer-decay 0.75

Every epoch is validated with the exported front end on images at their own size, and with the averaged (EMA) weights,
which are the ones that are kept.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save
from timm.data.random_erasing import RandomErasing
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from edgemed.ahead import ahead
from edgemed.config import TrainConfig, derive_seed
from edgemed.dataset import Dataset
from edgemed.distributed import agreed, from_leader, gathered, rank, replicated, together, world
from edgemed.files import write_atomic
from edgemed.images import image_from_file
from edgemed.loader import Augment
from edgemed.loader_torch import remembering
from edgemed.loop import (
    autocast,
    cosine_schedule,
    gradients,
    load_checkpoint,
    log,
    read_history,
    require_finite,
    reuse_memory,
    save_checkpoint,
    seed_noise,
    training_loader,
    write_history,
)
from edgemed.models import freeze_stages, train_mode
from edgemed.preprocess import FrontEnd
from edgemed.progress import Progress
from edgemed.sam import sharpness_aware

AUGMENT = Augment(rotate=20.0, brightness=0.3, contrast=0.3)
"""Strong for a reason: with 410 training images, the loader's milder ranges lost 6 points of validation accuracy."""


def class_weights(labels: Sequence[int], classes: int, power: float) -> Tensor:
    """(N / (K n_c)) ** power for each class c, float32 (K,): 0 = none, 1 = balanced, in between a compromise."""
    counts = torch.bincount(torch.tensor(list(labels)), minlength=classes).float()
    return (counts.sum() / (classes * counts)) ** power


@torch.inference_mode()
def logits_of_files(
    model: nn.Module,
    front: FrontEnd,
    files: Sequence[Path],
    device: str,
    batch: int = 32,
    read: Callable[[Path], NDArray[np.uint8]] = image_from_file,
) -> Tensor:
    """Logits float32 (N, K) on the CPU, through the exported front end, each image at its own size."""
    model.eval()
    rows: list[Tensor] = []
    waiting: list[Tensor] = []
    for done, image in enumerate(ahead(read, files, torch.get_num_threads(), depth=16), 1):
        waiting.append(front(torch.from_numpy(image)[None].to(device)))
        if len(waiting) == batch or done == len(files):
            pixels = torch.cat(waiting).contiguous(memory_format=torch.channels_last)
            rows.append(model(pixels).float().cpu())
            waiting = []
    return torch.cat(rows) if rows else torch.empty(0)


def finetune(
    config: TrainConfig,
    member: str,
    model: nn.Module,
    front: FrontEnd,
    dataset: Dataset,
    folder: Path,
    device: str,
    progress: Progress,
) -> None:
    """Train `model` on the rows of split `train` and write `model.safetensors` and `history.jsonl` into `folder`.

    It learns from random crops of `config.train_size` pixels (0: of `config.size`), and is validated on whole images of
    `config.size`: in crops, things look larger, which smaller crops make up for (Touvron et al. 2019).

    The latest epoch is kept whose validation cross-entropy is within one standard error of the lowest (the rule of
    Breiman et al. 1984): on a few dozen images the lowest itself is a matter of chance, and often an early epoch's, at
    a high rate. After `config.patience` epochs without a lower one the stage ends. A killed call goes on after its last
    whole epoch; its result is the same, bit for bit, on a CPU.

    Raises:
        EdgemedError: the loss is not finite (the batch's files are named).
    """
    reuse_memory()
    seed = derive_seed(config.seed, "finetune", member)
    train, validation = dataset.subset("train"), dataset.subset("validation")
    files, validation_files = train.files, validation.files
    validation_labels = torch.tensor(validation.labels)
    model = model.to(device).to(memory_format=torch.channels_last)
    front = front.to(device)
    augment = dataclasses.replace(
        AUGMENT, scale=(config.crop_area, 1.0), vflip=config.vertical_flip, turns=config.quarter_turns
    )
    size = config.train_size or config.size
    loader = training_loader(config, files, train.labels, augment, size=size, seed=seed, device=device)
    stage = f"fine-tuning {member}"
    log.info("%s on %d images: %s", stage, len(files), loader.reason)
    freeze_stages(model, config.freeze)
    optimizer = create_optimizer_v2(
        model, "adamw", lr=config.learning_rate, weight_decay=config.weight_decay, layer_decay=config.layer_decay
    )
    schedule = cosine_schedule(optimizer, config.epochs * loader.steps, config.warmup_epochs * loader.steps)
    net = replicated(model, config.compile)
    average = ModelEmaV3(model, decay=config.ema_decay, use_warmup=True)
    weights = class_weights(train.labels, len(dataset.classes), config.class_weighting).to(device)
    loss_of = partial(_loss, config, net, front, weights)
    read = remembering()  # the validation images come again in every epoch
    before = [row for row in read_history(folder / "history.jsonl") if row["stage"] == "pretrain"]
    history: list[dict[str, Any]] = []
    best: dict[str, Tensor] = {}
    checkpoint = folder / "finetuning.ckpt"
    if state := from_leader(lambda: load_checkpoint(checkpoint)):
        model.load_state_dict(state["model"])
        average.module.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        history, best = state["history"], state["best"]
    for epoch in range(len(history), config.epochs):
        if _epochs_without_gain(history) >= config.patience:
            break
        began, total = time.monotonic(), 0.0
        seed_noise(seed, epoch)
        train_mode(model)
        for step, (images, labels, indices) in enumerate(together(loader.epoch(epoch))):
            schedule.step_update(epoch * loader.steps + step)
            optimizer.zero_grad(set_to_none=True)
            backward = partial(gradients, net, loss_of, (images, labels), weights[labels], config.accumulate)
            loss = sharpness_aware(model, config.sam, backward) if config.sam else backward()
            total += require_finite(loss, stage, "--learning-rate", epoch, files, indices)
            optimizer.step()
            average.update(model, step=epoch * loader.steps + step)
        logits = _logits_of_all_ranks(average.module, front, validation_files, device, config.batch, read)
        wrong = (~logits.isfinite().all(1)).nonzero().flatten()[rank() :: world()]
        losses = F.cross_entropy(logits, validation_labels, reduction="none")
        row = {
            "stage": "finetune",
            "epoch": epoch + 1,
            "train_loss": total / loader.steps,
            "validation_loss": require_finite(losses.mean(), stage, "--learning-rate", epoch, validation_files, wrong),
            "validation_error": float(losses.std(correction=0)) / len(losses) ** 0.5,
            "validation_accuracy": float((logits.argmax(1) == validation_labels).float().mean()),
            "learning_rate": max(group["lr"] for group in optimizer.param_groups),
            "seconds": time.monotonic() - began,
        }
        history.append(row)
        row["kept"] = _as_good_as_the_best(history)
        if row["kept"]:
            best = copy.deepcopy({key: value.cpu() for key, value in average.module.state_dict().items()})
        with agreed():
            if rank() == 0:
                save_checkpoint(
                    checkpoint,
                    {
                        "model": model.state_dict(),
                        "average": average.module.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "history": history,
                        "best": best,
                    },
                )
                write_history(folder / "history.jsonl", before + history)
        detail = f"accuracy {row['validation_accuracy']:.3f}, loss {row['validation_loss']:.3f}"
        progress(f"fine-tune {member}", epoch + 1, config.epochs, detail)
    with agreed():
        if rank() == 0:
            write_history(folder / "history.jsonl", before + history)  # again: a kill may have come before the last row
            write_atomic(folder / "model.safetensors", save({key: value.contiguous() for key, value in best.items()}))
            checkpoint.unlink(missing_ok=True)


def _loss(
    config: TrainConfig, net: nn.Module, front: FrontEnd, weights: Tensor, images: Tensor, labels: Tensor
) -> Tensor:
    """Mean cross-entropy of uint8 images (B, S, S, 3) against labels (B,), by the weights (K,) of their classes.

    With random erasing (Zhong et al. 2020), one rectangle of 2 to 33 % of the area takes the mean colour of the
    normalisation, in that share of the images.

    With mixup (Zhang et al. 2018), each image is mixed with the one at the mirrored place of the batch, share by share
    drawn from Beta(a, a), and the loss is that of both labels by these shares.
    """
    pixels = front.normalised(images.permute(0, 3, 1, 2).float()).contiguous(memory_format=torch.channels_last)
    if config.random_erasing > 0:
        pixels = RandomErasing(config.random_erasing, device=pixels.device)(pixels)
    share = 1.0
    if config.mixup > 0:
        share = float(torch.distributions.Beta(config.mixup, config.mixup).sample())
        pixels = share * pixels + (1 - share) * pixels.flip(0)
    with autocast(images.device.type, config.amp):
        logits = net(pixels).float()
    loss = partial(F.cross_entropy, logits, weight=weights, label_smoothing=config.label_smoothing)
    return loss(labels) if share == 1 else share * loss(labels) + (1 - share) * loss(labels.flip(0))


def _logits_of_all_ranks(
    model: nn.Module,
    front: FrontEnd,
    files: Sequence[Path],
    device: str,
    batch: int,
    read: Callable[[Path], NDArray[np.uint8]],
) -> Tensor:
    """`logits_of_files`, each rank taking every `world`-th file: (N, K) on the CPU, the same in all of them."""
    with agreed():
        mine = logits_of_files(model, front, files[rank() :: world()], device, batch, read)
    rows = {rank + world() * k: row for rank, part in enumerate(gathered(mine)) for k, row in enumerate(part)}
    return torch.stack([rows[n] for n in range(len(files))])


def _as_good_as_the_best(history: Sequence[dict[str, Any]]) -> bool:
    """Whether the last epoch's validation loss is within one standard error of the lowest."""
    best = min(history, key=lambda row: row["validation_loss"])
    return bool(history[-1]["validation_loss"] <= best["validation_loss"] + best["validation_error"])


def _epochs_without_gain(history: Sequence[dict[str, Any]]) -> int:
    """How many epochs have passed since the lowest validation loss; 0 for an empty history."""
    losses = [row["validation_loss"] for row in history]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0
