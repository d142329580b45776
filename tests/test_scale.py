"""Several processes train as one: the same step, the same result; and one fault of one of them ends all by one line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="extra train is not installed")
import scale_jobs  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from conftest import tiny_flags  # noqa: E402
from torch import nn  # noqa: E402

from edgemed.config import TrainConfig  # noqa: E402
from edgemed.errors import InputError  # noqa: E402
from edgemed.loop import autocast, balanced_parts, gradients  # noqa: E402
from edgemed.models import create_backbone  # noqa: E402
from edgemed.parallel import gpus_of, run_jobs  # noqa: E402

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def launched(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2 ARGUMENTS`, with the output of all in one text."""
    command = [*TORCHRUN, *(str(argument) for argument in arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"}
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )


def job(name: str, out: Path) -> subprocess.CompletedProcess[str]:
    return launched(scale_jobs.__file__, name, out)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Three jobs in which a rank fails, then the steps, by the same two processes: their output, the steps' results."""
    out = tmp_path_factory.mktemp("jobs") / "two.pt"
    done = job("nan,alone,disk,steps", out)
    assert done.returncode == 0, done.stdout
    return done.stdout, out


def test_two_ranks_take_the_steps_of_one(jobs: tuple[str, Path]) -> None:
    """Class weights, gradient accumulation and batch statistics (of visible positions too) of the global batch."""
    two = torch.load(jobs[1], weights_only=True)
    assert two["digests"][0] == two["digests"][1]
    torch.set_num_threads(1)
    for kind, accumulate in scale_jobs.CASES:
        one = scale_jobs.trained(kind, accumulate)
        assert (one["losses"].diff() != 0).all()
        for key, value in one.items():
            assert torch.allclose(value, two["cases"][kind][key], rtol=1e-9, atol=1e-9), (kind, key)


def test_a_fault_of_one_rank_is_told_once_and_by_the_leader(jobs: tuple[str, Path]) -> None:
    """The steps, which follow in the same processes, show that all of them ended the failed job."""
    lines = [line for line in jobs[0].splitlines() if "Error: " in line]
    assert [line.split(": ")[:2] for line in lines] == [
        ["nan", "EdgemedError"],
        ["alone", "InputError"],
        ["disk", "InputError"],
    ]
    assert "the batch was 0.png, 2.png, 4.png, 6.png, 1.png, 3.png, 5.png, 7.png;" in lines[0]
    assert "b/7.png is gone" in lines[1]
    assert "the disk is full" in lines[2]


def test_a_killed_rank_ends_the_others_by_one_line(tmp_path: Path) -> None:
    done = job("killed", tmp_path / "out")
    lines = [line for line in done.stdout.splitlines() if "EdgemedError: " in line]
    message = "another process of this training has ended or was killed; the same command goes on where it stopped"
    assert lines == [f"end of rank 0: EdgemedError: {message}"], done.stdout
    assert done.returncode != 0


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    net = create_backbone("convnext_atto", 3).double()  # no batch statistics: parts of any size must add up exactly
    images, labels = torch.randn(7, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    weights = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    found = []
    for parts in (1, 2, 3):
        net.zero_grad()
        loss = gradients(
            net, lambda x, y: F.cross_entropy(net(x), y, weight=weights), (images, labels), weights[labels], parts
        )
        found.append([loss, *(parameter.grad.clone() for parameter in net.parameters())])
    plain = F.cross_entropy(net(images), labels, weight=weights)
    assert found[0][0] == plain.detach()
    for other in found[1:]:
        assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(("count", "parts", "sizes"), [(8, 3, [2, 3, 3]), (3, 3, [3]), (1, 4, [1]), (5, 2, [2, 3])])
def test_parts_are_balanced_and_never_a_single_image(count: int, parts: int, sizes: list[int]) -> None:
    found = balanced_parts(count, parts)
    assert [part.stop - part.start for part in found] == sizes
    assert np.concatenate([np.arange(count)[part] for part in found]).tolist() == list(range(count))


def test_more_parts_than_the_batch_holds_are_refused() -> None:
    with pytest.raises(InputError, match="--accumulate 9 leaves less than 2 of the --batch 16 images.*--accumulate 8"):
        TrainConfig(batch=16, accumulate=9)


def test_a_cpu_computes_in_float32_whatever_amp_says() -> None:
    with autocast("cpu", amp=True):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.float32


@pytest.mark.gpu
def test_a_gpu_computes_in_bfloat16_unless_told_otherwise() -> None:
    layer, pixels = nn.Linear(2, 2).cuda(), torch.zeros(1, 2, device="cuda")
    for amp, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with autocast("cuda", amp):
            assert layer(pixels).dtype == dtype


def test_folds_are_dealt_to_the_gpus_one_for_each_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fold_jobs

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus_of("cuda") == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert gpus_of("cuda") == ["3", "GPU-5"]
    assert gpus_of("cuda:1") == gpus_of("cpu") == []
    run_jobs(fold_jobs.tell_gpu, [(tmp_path, k) for k in range(4)], 2, lambda *_: None, gpus_of("cuda"))
    seen = [(tmp_path / str(k)).read_text() for k in range(4)]
    assert {seen[0], seen[1]} == set(seen) == {"3", "GPU-5"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,GPU-5"


def test_a_batch_that_the_ranks_cannot_share_is_refused_once(phantoms: Path, weights: Path, tmp_path: Path) -> None:
    done = launched("-m", "edgemed", "train", phantoms, "--out", tmp_path / "run", *tiny_flags(weights), "--batch", "9")
    lines = [line for line in done.stdout.splitlines() if "error: " in line]
    assert lines == ["error: --batch 9 is not a multiple of torchrun's 2 processes; try 8"], done.stdout
    assert not (tmp_path / "run").exists()


CALM = ("--drop-path", "0", "--learning-rate", "1e-4", "--pretrain-learning-rate", "1e-4")
"""Every step of Adam amplifies rounding, the more the higher the rate."""


@pytest.fixture(scope="module")
def two_ranks(phantoms: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ranks") / "run"
    done = launched("-m", "edgemed", "train", phantoms, "--out", run, *tiny_flags(weights), *CALM)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("ImageNet weights") == 1, done.stdout  # the leader alone speaks
    return run


def test_a_run_of_two_ranks_is_that_of_one_but_for_rounding(
    two_ranks: Path, phantoms: Path, weights: Path, tmp_path: Path
) -> None:
    from conftest import run_main

    assert run_main("train", phantoms, "--out", tmp_path / "run", *tiny_flags(weights), *CALM) == 0
    names = [{path.relative_to(run) for path in run.rglob("*")} for run in (two_ranks, tmp_path / "run")]
    assert names[0] == names[1]
    for member, key in (("mae", "loss"), ("imagenet", "train_loss")):
        rows = [
            json.loads((run / f"members/{member}/history.jsonl").read_text().splitlines()[0])
            for run in (two_ranks, tmp_path / "run")
        ]
        assert math.isclose(rows[0][key], rows[1][key], rel_tol=1e-3)  # an epoch of Adam amplifies rounding
    assert (two_ranks / "split.csv").read_bytes() == (tmp_path / "run/split.csv").read_bytes()
    whole, parted = (np.genfromtxt(run / "predictions.csv", delimiter=",", skip_header=1, usecols=range(5, 11))
                     for run in (tmp_path / "run", two_ranks))  # fmt: skip
    assert np.isfinite(whole).all() and np.abs(whole - parted).max() < 2e-3  # 2e-4 was seen
