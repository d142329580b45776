"""Masked pretraining on the user's own training images: entropy-guided, seeded, resumable at an epoch.

    edgemed train DATA --out RUN --pretrain-epochs 30 --pretrain-size 224 --start imagenet

It sees training images only: a validation or test image that shaped the features would be a leak.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from edgemed.config import TrainConfig, derive_seed
from edgemed.distributed import agreed, from_leader, rank, replicated, together
from edgemed.files import write_atomic
from edgemed.loader import Augment, Loader
from edgemed.loop import (
    autocast,
    cosine_schedule,
    gradients,
    load_checkpoint,
    log,
    require_finite,
    reuse_memory,
    save_checkpoint,
    seed_noise,
    training_loader,
    write_history,
)
from edgemed.mae import MaskedAutoencoder, reconstruction_loss
from edgemed.masking import removed_units
from edgemed.models import create_backbone, load_backbone, normalisation
from edgemed.preprocess import FrontEnd
from edgemed.progress import Progress

AUGMENT = Augment(scale=(0.4, 1.0), rotate=0.0, brightness=0.0, contrast=0.0)
"""Crops and flips only, as He et al. 2022 found enough for masked autoencoders."""
CHECKPOINT = "pretraining.ckpt"
SETTLING = 50
"""Steps after which a running statistic of momentum 0.1 holds 0.5 % of what it was."""


def autoencoder(config: TrainConfig, start: dict[str, Tensor] | None, source: str) -> MaskedAutoencoder:
    """The autoencoder as it starts: seeded random weights, or `start` (ImageNet) for the encoder."""
    torch.manual_seed(derive_seed(config.seed, "pretrain", "init"))
    encoder = create_backbone(config.backbone, classes=0)
    if start is not None:
        load_backbone(encoder, start, source)
    return MaskedAutoencoder(encoder)


def pretrain(
    config: TrainConfig,
    files: Sequence[Path],
    start: dict[str, Tensor] | None,
    source: str,
    folder: Path,
    device: str,
    progress: Progress,
) -> None:
    """Train on `files` and write `pretrained.safetensors` (the encoder) and `history.jsonl` into `folder`.

    A killed call goes on after its last whole epoch; its result is the same, bit for bit, on a CPU.

    Raises:
        EdgemedError: the loss is not finite (the batch's files are named).
    """
    reuse_memory()
    seed = derive_seed(config.seed, "pretrain")
    front = FrontEnd(config.pretrain_size, *normalisation(config.backbone)).to(device)
    model = autoencoder(config, start, source).to(device).to(memory_format=torch.channels_last)
    if not config.pretrain_epochs:
        log.info("no masked pretraining: --pretrain-epochs 0")
        _finish(model, [], folder)
        return
    labels = [0] * len(files)
    loader = training_loader(config, files, labels, AUGMENT, size=config.pretrain_size, seed=seed, device=device)
    log.info("pretraining on %d images: %s", len(files), loader.reason)
    optimizer = create_optimizer_v2(
        model, "adamw", lr=config.pretrain_learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95)
    )
    schedule = cosine_schedule(optimizer, config.pretrain_epochs * loader.steps, config.warmup_epochs * loader.steps)
    checkpoint = folder / CHECKPOINT
    history: list[dict[str, Any]] = []
    net = replicated(model, compiled=False)  # the masks work by hooks, which torch.compile does not follow
    loss_of = partial(_loss, config, seed, net, front)
    if state := from_leader(lambda: load_checkpoint(checkpoint)):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]
    for epoch in range(len(history), config.pretrain_epochs):
        began, total = time.monotonic(), 0.0
        seed_noise(seed, epoch)
        model.train()
        for step, (images, _, indices) in enumerate(together(loader.epoch(epoch))):
            schedule.step_update(epoch * loader.steps + step)
            optimizer.zero_grad(set_to_none=True)
            batch, weight = (images, epoch * len(files) + indices), torch.ones(len(images), device=images.device)
            loss = gradients(net, loss_of, batch, weight, config.accumulate)
            total += require_finite(loss, "pretraining", "--pretrain-learning-rate", epoch, files, indices)
            optimizer.step()
        row = {
            "stage": "pretrain",
            "epoch": epoch + 1,
            "loss": total / loader.steps,
            "seconds": time.monotonic() - began,
        }
        history.append(row)
        with agreed():
            if rank() == 0:
                save_checkpoint(
                    checkpoint, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
                )
                write_history(folder / "history.jsonl", history)
        progress("pretrain mae", epoch + 1, config.pretrain_epochs, f"loss {row['loss']:.3f}")
    _see_whole_images(model.encoder, front, loader, config.pretrain_epochs)
    _finish(model, history, folder)


def _finish(model: MaskedAutoencoder, history: list[dict[str, Any]], folder: Path) -> None:
    """The leader writes the result."""
    with agreed():
        if rank() == 0:
            write_history(folder / "history.jsonl", history)  # again: a kill may have come just before the last row
            write_atomic(folder / "pretrained.safetensors", save(_tensors(model)))
            (folder / CHECKPOINT).unlink(missing_ok=True)


def _loss(config: TrainConfig, seed: int, net: nn.Module, front: FrontEnd, images: Tensor, ids: Tensor) -> Tensor:
    """Mean reconstruction loss of uint8 images (B, S, S, 3), masked by the draws `ids` (B,)."""
    removed = removed_units(
        images, config.mask_ratio, config.sharpness, seed, ids, config.entropy_patch, config.renyi_order
    )
    pixels = front.normalised(images.permute(0, 3, 1, 2).float()).contiguous(memory_format=torch.channels_last)
    with autocast(images.device.type, config.amp):
        predicted = net(pixels, removed)
    return reconstruction_loss(predicted.float(), pixels, removed)


@torch.no_grad()
def _see_whole_images(encoder: nn.Module, front: FrontEnd, loader: Loader, epoch: int) -> None:
    """Let the batch norms' running statistics be those of whole images, from at least `SETTLING` steps from `epoch` on.

    Pretraining leaves those of masked ones, and `--freeze` would keep them.
    """
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in encoder.modules()):
        return
    encoder.train()
    for k in range(math.ceil(SETTLING / loader.steps)):
        for images, _, _ in together(loader.epoch(epoch + k)):
            pixels = front.normalised(images.permute(0, 3, 1, 2).float())
            encoder.forward_features(pixels.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]


def _tensors(model: MaskedAutoencoder) -> dict[str, Tensor]:
    """The encoder's by timm's names, the rest behind `decoder.`; on the CPU."""
    encoder = {key: value.cpu().contiguous() for key, value in model.encoder.state_dict().items()}
    decoder = {key: value for key, value in model.state_dict().items() if not key.startswith("encoder.")}
    return encoder | {f"decoder.{key}": value.cpu().contiguous() for key, value in decoder.items()}
