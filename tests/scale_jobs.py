"""What the tests of several processes run in each of them: `python -m torch.distributed.run ... scale_jobs.py JOB OUT`.

Synthetic batches in float64, so that only the arithmetic of the ranks differs, and by rounding alone.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemed.distributed import agreed, follow, gathered, on_all_ranks, process_group, rank, replicated, together, world
from edgemed.errors import EdgemedError, InputError
from edgemed.loop import gradients, require_finite
from edgemed.mae import MaskedAutoencoder, reconstruction_loss
from edgemed.models import create_backbone, freeze_stages, train_mode, weights_digest
from edgemed.sam import sharpness_aware

STEPS, BATCH = 3, 8
CASES = (("classifier", 1), ("frozen", 1), ("sharpness-aware", 2), ("autoencoder", 2))


def _classifier_loss(net: nn.Module, weights: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(net(images), labels, weight=weights, label_smoothing=0.1)


def _autoencoder_loss(net: nn.Module, images: Tensor, removed: Tensor) -> Tensor:
    return reconstruction_loss(net(images, removed), images, removed)


def trained(kind: str, accumulate: int) -> dict[str, Tensor]:
    """The tensors after a few steps of SGD on batches of 8, dealt to the ranks as the loader deals them; the losses."""
    torch.manual_seed(0)
    model: nn.Module = create_backbone("tf_efficientnet_lite0", 0 if kind == "autoencoder" else 3)
    model = (MaskedAutoencoder(model, width=16) if kind == "autoencoder" else model).double()
    if kind == "frozen":
        freeze_stages(model, 2)
    net = replicated(model, compiled=False)
    train_mode(model)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.01)
    losses = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(BATCH, 3, 64, 64, generator=generator, dtype=torch.float64)[rank() :: world()]
        labels = torch.randint(0, 3, (BATCH,), generator=generator)[rank() :: world()]
        removed = torch.stack([torch.randperm(4, generator=generator).reshape(2, 2) < 2 for _ in range(BATCH)])
        weights = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
        optimizer.zero_grad()
        if kind != "autoencoder":
            loss_of, batch, weight = partial(_classifier_loss, net, weights), (images, labels), weights[labels]
        else:
            loss_of, batch = partial(_autoencoder_loss, net), (images, removed[rank() :: world()])
            weight = torch.ones(len(images), dtype=torch.float64)
        backward = partial(gradients, net, loss_of, batch, weight, accumulate)
        losses.append(sharpness_aware(model, 0.05, backward) if kind == "sharpness-aware" else backward())
        optimizer.step()
    return dict(model.state_dict()) | {"losses": torch.stack(losses)}


def write_trained(out: Path, progress: object) -> None:
    """Job `steps`: what each case comes to, in one file."""
    found = {kind: trained(kind, accumulate) for kind, accumulate in CASES}
    digests = gathered([weights_digest(state) for state in found.values()])
    if rank() == 0:
        torch.save({"cases": found, "digests": digests}, out)


def name_files(out: Path, progress: object) -> None:
    """Job `nan`: a loss that is not finite because of rank 1's images."""
    require_finite(torch.tensor(torch.nan), "stage", "--rate", 0, [Path(f"{k}.png") for k in range(8)],
                   torch.arange(4) * 2 + rank())  # fmt: skip


def fail_alone(out: Path, progress: object) -> None:
    """Job `alone`: rank 1 fails at its third item; the leader must not wait for it, and must tell of it."""

    def items() -> object:
        for k in range(5):
            if rank() == 1 and k == 2:
                raise InputError("b/7.png is gone")
            yield k

    for item in together(items()):  # type: ignore[var-annotated, arg-type]
        assert item < 2


def fill_disk(out: Path, progress: object) -> None:
    """Job `disk`: the leader, which alone writes, fails."""
    with agreed():
        if rank() == 0:
            raise InputError("the disk is full")
    raise AssertionError("goes on after the leader's failure")


def killed(out: Path, progress: object) -> None:
    """Job `killed`: rank 1 is killed while the leader works with it."""
    for k in range(1000):
        gathered(k)
        if rank() == 1 and k == 3:
            os.kill(os.getpid(), signal.SIGKILL)


JOBS = {"steps": write_trained, "nan": name_files, "alone": fail_alone, "disk": fill_disk, "killed": killed}


def run_jobs(names: str, out: Path) -> None:
    """The jobs `a,b,c` one after the other: an error that all know of leaves the ranks fit for the next one."""
    for name in names.split(","):
        try:
            on_all_ranks(JOBS[name], out, progress=None)
        except EdgemedError as error:
            sys.stdout.write(f"{name}: {type(error).__name__}: {error}\n")


def main() -> None:
    torch.set_num_threads(1)
    try:
        with process_group("cpu", 1) as leads:
            if leads:
                run_jobs(sys.argv[1], Path(sys.argv[2]))
            else:
                follow()
    except EdgemedError as error:
        sys.stdout.write(f"end of rank {rank()}: {type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
