"""What both training stages share: checkpoints that survive a kill, the learning-rate schedule, the finite check.

A checkpoint holds tensors and plain values only, and is read with `weights_only=True`: no file from elsewhere
runs code.
"""

from __future__ import annotations

import io
import json
import logging
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor

from edgemed.errors import EdgemedError, InputError
from edgemed.files import write_atomic

log = logging.getLogger("edgemed")

Progress = Callable[[str, int, int, str], None]
"""Called as progress(stage, done, total, detail): `progress("fine-tune imagenet", 3, 30, "loss 0.61")`."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and dicts and lists of them) atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state in `path` on the CPU, or None where there is no such file.

    Raises:
        InputError: the file is damaged or holds anything but tensors and plain values.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is damaged; delete it and run the same command: its stage starts anew") from error
    return state


def cosine_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> CosineLRScheduler:
    """Linear warm-up from a hundredth of the rate, then a cosine to a hundredth. Call `step_update(step)`, 0-based."""
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, steps - warmup),
        lr_min=optimizer.defaults["lr"] / 100,
        warmup_t=warmup,
        warmup_lr_init=optimizer.defaults["lr"] / 100,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def require_finite(
    loss: Tensor, stage: str, rate: str, epoch: int, files: Sequence[Path], indices: Tensor
) -> float:
    """The loss as a number; `rate` is the flag of the stage's learning rate.

    Raises:
        EdgemedError: it is NaN or infinite; the message names the batch's files.
    """
    value = float(loss)
    if math.isfinite(value):
        return value
    names = ", ".join(files[i].name for i in indices.tolist())
    raise EdgemedError(
        f"{stage}: the loss is {value} in epoch {epoch + 1}; the batch was {names}; look at these images, "
        f"or train with a lower {rate} and another --out"
    )


def write_history(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object per epoch and line."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of `history.jsonl`; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def autocast(device: str) -> torch.autocast:
    """bfloat16 on a GPU, nothing on a CPU."""
    return torch.autocast(device_type=device.split(":")[0], dtype=torch.bfloat16, enabled=device.startswith("cuda"))
