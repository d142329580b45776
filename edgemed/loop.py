"""What both training stages share: checkpoints that survive a kill, the schedule, a step of the global batch.

A checkpoint holds tensors and plain values only, and is read with `weights_only=True`: no file from elsewhere
runs code.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import logging
import math
import pickle
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgemed.config import TrainConfig, derive_seed
from edgemed.distributed import agreed, batch_of_rank, gathered, rank, summed, world
from edgemed.errors import EdgemedError, InputError
from edgemed.files import write_atomic
from edgemed.loader import Augment, Loader, open_loader

log = logging.getLogger("edgemed")


def reuse_memory() -> None:
    """Have the C library keep what torch frees, for the next step. No result depends on it.

    By default glibc hands every large tensor back to the system and takes it anew, zeroed page by page: with two
    trainings of EfficientNet-Lite0 on two cores, that was a quarter of the processors' time. Nothing without glibc.
    It holds until the process ends: a program that trains and lives on stays at its peak of memory.
    """
    trim_threshold, mmap_max, never = -1, -4, -1  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, never)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and dicts and lists of them) atomically, behind its sha256.

    torch's own reader looks at no checksum: a changed byte would become a changed weight.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    write_atomic(path, hashlib.sha256(data).digest() + data)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state in `path` on the CPU, or None where there is no such file.

    Raises:
        InputError: the file is damaged or holds anything but tensors and plain values.
    """
    if not path.exists():
        return None
    try:
        raw = path.read_bytes()
        digest, data = raw[:32], raw[32:]
        if hashlib.sha256(data).digest() != digest:
            raise ValueError("its content does not fit to its sha256")
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is damaged; delete it and run the same command: its stage starts anew") from error
    return state


def training_loader(
    config: TrainConfig,
    files: Sequence[Path],
    labels: Sequence[int],
    augment: Augment,
    *,
    size: int,
    seed: int,
    device: str,
) -> Loader:
    """This rank's share of the files. Raises what `open_loader` does, in all ranks."""
    with agreed():
        return open_loader(
            files,
            labels,
            size=size,
            batch=batch_of_rank(config.batch),
            augment=augment,
            seed=seed,
            rank=rank(),
            world=world(),
            device=device,
            backend=config.loader,
            threads=torch.get_num_threads(),
        )


def cosine_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> CosineLRScheduler:
    """Linear warm-up from a hundredth of the rate, then a cosine to a hundredth. Call `step_update(step)`, 0-based.

    The warm-up takes at most half of the steps: a stage of one or two epochs is to learn, too.
    """
    warmup = min(warmup, steps // 2)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, steps - warmup),
        lr_min=optimizer.defaults["lr"] / 100,
        warmup_t=warmup,
        warmup_lr_init=optimizer.defaults["lr"] / 100,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def gradients(
    net: nn.Module, loss_of: Callable[..., Tensor], batch: tuple[Tensor, ...], weight: Tensor, parts: int
) -> Tensor:
    """Leave one step's gradients in the parameters and return its loss, both of the global batch.

    Every rank's batch is taken in up to `parts` parts, one after the other, so that only one part's activations are in
    memory; the gradients of parts and ranks add up. Batch statistics are those of a part, over all ranks.

    Args:
        net: what `loss_of` calls, from `distributed.replicated`.
        loss_of: called with the same slice of each tensor of `batch`; their mean loss, weighted by `weight`.
        batch: tensors (B, ...), this rank's.
        weight: float (B,), the weight of each image.
    """
    whole, total = summed(weight.sum()), torch.zeros((), device=weight.device)
    bounds = balanced_parts(len(weight), parts)
    for part in bounds:
        # A mean over all images is the sum of the parts' means by their shares; 1 exactly where there is one part.
        share = weight[part].sum() / whole
        # DistributedDataParallel averages over the ranks; before the last part it only collects.
        waits = isinstance(net, DistributedDataParallel) and part is not bounds[-1]
        with net.no_sync() if waits else nullcontext():  # type: ignore[operator]
            loss = loss_of(*(tensor[part] for tensor in batch)) * share
            (loss * world()).backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    return summed(total)


def balanced_parts(count: int, parts: int) -> list[slice]:
    """Up to `parts` slices of 0..count that differ by one at most, none with a single item but for a count of 1."""
    parts = max(1, min(parts, count // 2))
    edges = [count * k // parts for k in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def require_finite(loss: Tensor, stage: str, rate: str, epoch: int, files: Sequence[Path], indices: Tensor) -> float:
    """The global batch's loss as a number; `rate` is the flag of the stage's learning rate.

    Raises:
        EdgemedError: it is NaN or infinite; the message names the batch's files, of all ranks.
    """
    value = float(loss)
    if math.isfinite(value):
        return value
    names = ", ".join("/".join(files[i].parts[-2:]) for part in gathered(indices.tolist()) for i in part)
    raise EdgemedError(
        f"{stage}: the loss is {value} in epoch {epoch + 1}; the batch was {names}; look at these images, "
        f"or train with a lower {rate} and another --out"
    )


def seed_noise(seed: int, epoch: int) -> None:
    """Seed torch's generators and Python's, which draw dropped paths and erased rectangles: another stream per rank."""
    drawn = derive_seed(seed, epoch, "rank", rank()) if rank() else derive_seed(seed, epoch)
    torch.manual_seed(drawn)
    random.seed(drawn)


def write_history(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object per epoch and line."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of `history.jsonl`; none where there is no such file. InputError where it is damaged."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except ValueError as error:
        raise InputError(f"{path} is damaged; delete it: it holds nothing but the report's curves") from error


def autocast(device: str, amp: bool) -> torch.autocast:
    """bfloat16 on a GPU that computes in it (NVIDIA's from compute capability 8.0 on), if `amp`; else float32."""
    on_gpu = device.startswith("cuda")
    enabled = amp and on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device_type="cuda" if on_gpu else "cpu", dtype=torch.bfloat16, enabled=enabled)
