"""Fine-tuning of one member: AdamW with layer-wise rate decay, warm-up and cosine, EMA, early stopping on validation.

    edgemed train DATA --out RUN --epochs 30 --learning-rate 5e-4 --layer-decay 0.75

Every epoch is validated with the exported front end on images at their own size, and with the averaged (EMA) weights,
which are the ones that are kept.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from edgemed.config import TrainConfig, derive_seed
from edgemed.dataset import Dataset
from edgemed.evaluate import decoded
from edgemed.files import write_atomic
from edgemed.loader import Augment, open_loader
from edgemed.loop import (
    Progress,
    autocast,
    cosine_schedule,
    load_checkpoint,
    log,
    read_history,
    require_finite,
    save_checkpoint,
    write_history,
)
from edgemed.preprocess import FrontEnd

AUGMENT = Augment(scale=(0.3, 1.0), rotate=20.0, brightness=0.3, contrast=0.3)
"""Strong for a reason: with 410 training images, the loader's milder ranges lost 6 points of validation accuracy."""


def class_weights(labels: Sequence[int], classes: int, power: float) -> Tensor:
    """(N / (K n_c)) ** power for each class c, float32 (K,): 0 = none, 1 = balanced, in between a compromise."""
    counts = torch.bincount(torch.tensor(list(labels)), minlength=classes).float()
    return (counts.sum() / (classes * counts)) ** power


@torch.inference_mode()
def logits_of_files(model: nn.Module, front: FrontEnd, files: Sequence[Path], device: str, batch: int = 32) -> Tensor:
    """Logits float32 (N, K) on the CPU, through the exported front end, each image at its own size."""
    model.eval()
    rows: list[Tensor] = []
    waiting: list[Tensor] = []
    for done, image in enumerate(decoded(files), 1):
        waiting.append(front(torch.from_numpy(image)[None].to(device)))
        if len(waiting) == batch or done == len(files):
            pixels = torch.cat(waiting).contiguous(memory_format=torch.channels_last)
            rows.append(model(pixels).float().cpu())
            waiting = []
    return torch.cat(rows)


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

    The epoch with the lowest validation cross-entropy is kept; after `config.patience` epochs without a lower one the
    stage ends. A killed call goes on after its last whole epoch; its result is the same, bit for bit, on a CPU.

    Raises:
        EdgemedError: the loss is not finite (the batch's files are named).
    """
    seed = derive_seed(config.seed, "finetune", member)
    train, validation = dataset.subset("train"), dataset.subset("validation")
    files = [train.file(row) for row in train.rows]
    validation_files = [validation.file(row) for row in validation.rows]
    validation_labels = torch.tensor(validation.labels)
    model = model.to(device).to(memory_format=torch.channels_last)
    front = front.to(device)
    loader = open_loader(
        files,
        train.labels,
        size=config.size,
        batch=config.batch,
        augment=dataclasses.replace(AUGMENT, vflip=config.vertical_flip),
        seed=seed,
        device=device,
        backend=config.loader,
        threads=torch.get_num_threads(),
    )
    log.info("fine-tuning %s on %d images: %s", member, len(files), loader.reason)
    optimizer = create_optimizer_v2(
        model, "adamw", lr=config.learning_rate, weight_decay=config.weight_decay, layer_decay=config.layer_decay
    )
    warmup = min(config.warmup_epochs, config.epochs - 1)
    schedule = cosine_schedule(optimizer, config.epochs * loader.steps, warmup * loader.steps)
    average = ModelEmaV3(model, decay=config.ema_decay, use_warmup=True)
    weights = class_weights(train.labels, len(dataset.classes), config.class_weighting).to(device)
    before = [row for row in read_history(folder / "history.jsonl") if row["stage"] == "pretrain"]
    history: list[dict[str, Any]] = []
    best: dict[str, Tensor] = {}
    checkpoint = folder / "finetuning.ckpt"
    if state := load_checkpoint(checkpoint):
        model.load_state_dict(state["model"])
        average.module.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        history, best = state["history"], state["best"]
    for epoch in range(len(history), config.epochs):
        if _epochs_without_gain(history) >= config.patience:
            break
        began, total = time.monotonic(), 0.0
        torch.manual_seed(derive_seed(seed, epoch))
        model.train()
        for step, (images, labels, indices) in enumerate(loader.epoch(epoch)):
            schedule.step_update(epoch * loader.steps + step)
            pixels = front.normalised(images.permute(0, 3, 1, 2).float()).contiguous(memory_format=torch.channels_last)
            with autocast(device):
                logits = model(pixels)
            loss = F.cross_entropy(logits.float(), labels, weight=weights, label_smoothing=config.label_smoothing)
            total += require_finite(loss.detach(), f"fine-tuning {member}", "--learning-rate", epoch, files, indices)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            average.update(model, step=epoch * loader.steps + step)
        logits = logits_of_files(average.module, front, validation_files, device, config.batch)
        row = {
            "stage": "finetune",
            "epoch": epoch + 1,
            "train_loss": total / loader.steps,
            "validation_loss": float(F.cross_entropy(logits, validation_labels)),
            "validation_accuracy": float((logits.argmax(1) == validation_labels).float().mean()),
            "learning_rate": max(group["lr"] for group in optimizer.param_groups),
            "seconds": time.monotonic() - began,
        }
        history.append(row)
        if _epochs_without_gain(history) == 0:
            best = copy.deepcopy({key: value.cpu() for key, value in average.module.state_dict().items()})
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
        detail = f"validation accuracy {row['validation_accuracy']:.3f}, loss {row['validation_loss']:.3f}"
        progress(f"fine-tune {member}", epoch + 1, config.epochs, detail)
    write_history(folder / "history.jsonl", before + history)  # again: a kill may have come just before the last row
    write_atomic(folder / "model.safetensors", save({key: value.contiguous() for key, value in best.items()}))
    checkpoint.unlink(missing_ok=True)


def _epochs_without_gain(history: Sequence[dict[str, Any]]) -> int:
    """How many epochs have passed since the lowest validation loss; 0 for an empty history."""
    losses = [row["validation_loss"] for row in history]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0
