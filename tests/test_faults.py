"""What goes wrong in a long training, and what is left: one clear line, and a run that ends as an undisturbed one."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="extra train is not installed")
from conftest import tiny_flags  # noqa: E402
from test_path import _content  # noqa: E402
from test_scale import TORCHRUN, launched  # noqa: E402

from edgemed import finetune, loop  # noqa: E402
from edgemed.errors import InputError  # noqa: E402

Edgemed = Callable[..., int]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def train(phantoms: Path, weights: Path, tmp_path: Path, edgemed: Edgemed, capsys: Output) -> Callable[[], str]:
    """Run `edgemed train` on a run of one's own; "" when it is done, else the one line of its error."""

    def once() -> str:
        capsys.readouterr()
        code = edgemed("train", phantoms, "--out", tmp_path / "run", *tiny_flags(weights))
        shown = capsys.readouterr().err
        assert "Traceback" not in shown
        errors = [line for line in shown.splitlines() if line.startswith("error: ")]
        assert len(errors) == (code != 0), shown
        return errors[0] if errors else ""

    return once


LIMITED = """
import resource, sys
from pathlib import Path
from edgemed.errors import InputError
from edgemed.files import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    write_atomic(Path(sys.argv[1]), sys.stdin.buffer.read())
except InputError as error:
    sys.exit(str(error))
"""


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """The kernel itself refuses to write further than `limit` bytes into a checkpoint, as at a quota's end.

    By a process of its own: the limit is a process's, and compilers inside of torch and its loaders' threads write code
    to files, whose lack ends in a segmentation fault.
    """

    def limited(path: Path, data: bytes | str) -> None:
        command = [sys.executable, "-c", LIMITED, str(path), str(limit)]
        raw = data.encode() if isinstance(data, str) else data
        done = subprocess.run(command, input=raw, capture_output=True)
        if done.returncode:
            raise InputError(done.stderr.decode().strip())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_atomic", limited)
        yield


@contextmanager
def room_for(files: int) -> Iterator[None]:
    """The disk is full after so many files more."""
    room = [None] * files

    def fsync(descriptor: int) -> None:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room.pop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgemed.files.os.fsync", fsync)
        yield


@contextmanager
def nan_at_step(number: int) -> Iterator[None]:
    """Fine-tuning's loss is not finite at the step of this number, from 1 on."""
    plain, calls = finetune._loss, 0

    def breaking(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return plain(*arguments) * (math.nan if calls == number else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "_loss", breaking)
        yield


@contextmanager
def unmounted_after_an_epoch(data: Path) -> Iterator[None]:
    """`data` is gone when fine-tuning has written its first epoch, and back at the end."""
    hidden, plain = data.with_name("unmounted"), finetune.write_history

    def unmounting(*arguments: Any) -> None:
        plain(*arguments)
        if data.exists():
            data.rename(hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "write_history", unmounting)
        try:
            yield
        finally:
            hidden.rename(data)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_run_goes_through_every_fault_and_ends_as_an_undisturbed_one(
    train: Callable[[], str], tiny_run: Path, phantoms: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    mae, imagenet = run / "members/mae", run / "members/imagenet"
    with largest_file(1_000_000):
        assert train().endswith("mae/pretraining.ckpt: File too large; choose another folder")
    with room_for(2):  # the first epoch's checkpoint and history
        assert train().endswith("mae/pretraining.ckpt: No space left on device; free space or choose another folder")
    assert not list(run.rglob("*.tmp"))

    flip_a_bit(mae / "pretraining.ckpt")
    assert f"{mae / 'pretraining.ckpt'} is damaged; delete it and run the same command" in train()
    (mae / "pretraining.ckpt").unlink()

    with nan_at_step(5):  # of 3 in an epoch
        said = train()
    assert "fine-tuning imagenet: the loss is nan in epoch 2; the batch was " in said
    named = said.partition("the batch was ")[2].partition(";")[0].split(", ")
    assert len(named) == 8
    assert all((phantoms / name).is_file() for name in named)
    assert [json.loads(line)["epoch"] for line in (imagenet / "history.jsonl").open()] == [1]

    flip_a_bit(imagenet / "finetuning.ckpt")
    assert f"{imagenet / 'finetuning.ckpt'} is damaged; delete it" in train()
    (imagenet / "finetuning.ckpt").unlink()

    with unmounted_after_an_epoch(phantoms):
        assert str(phantoms) in train()
        assert str(phantoms) in train()  # and a new start says so too

    with room_for(4):  # two epochs of the second member: the first was done, its images are remembered
        assert f"{mae / 'finetuning.ckpt'}: No space left" in train()
    (mae / "finetuning.ckpt").unlink()
    whole = (mae / "pretrained.safetensors").read_bytes()
    (mae / "pretrained.safetensors").write_bytes(whole[:-1000])
    assert f"{mae / 'pretrained.safetensors'} is damaged; delete it" in train()
    (mae / "pretrained.safetensors").unlink()

    assert train() == ""
    assert _content(run) == _content(tiny_run)


def test_a_validation_that_is_not_finite_stops_too(
    train: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite training losses can still leave averaged weights that overflow."""
    plain = finetune.logits_of_files

    def overflowing(*arguments: object) -> torch.Tensor:
        logits: torch.Tensor = plain(*arguments).clone()
        logits[3] = math.inf
        return logits

    monkeypatch.setattr(finetune, "logits_of_files", overflowing)
    said = train()
    assert "fine-tuning imagenet: the loss is nan in epoch 1; the batch was " in said
    assert len(said.partition("the batch was ")[2].partition(";")[0].split(", ")) == 1
    assert not (tmp_path / "run/members/imagenet/history.jsonl").exists()


@pytest.mark.slow
def test_a_killed_rank_ends_the_training_and_it_goes_on(phantoms: Path, weights: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        return ["-m", "edgemed", "train", str(phantoms), "--out", str(out), *tiny_flags(weights)]

    whole = launched(*command(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stdout
    run = tmp_path / "run"
    for stage, killed in (("mae", 1), ("imagenet", 0)):
        log = tmp_path / f"{stage}.log"
        with log.open("w") as handle:
            training = subprocess.Popen(
                [*TORCHRUN, *command(run)], stdout=handle, stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"},
            )  # fmt: skip
            while not (run / "members" / stage / "history.jsonl").exists() and training.poll() is None:
                time.sleep(0.01)
            os.kill(_ranks(training.pid)[killed], signal.SIGKILL)
            assert training.wait() != 0
        errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, log.read_text()
        which = "another process" if killed else "the first process"
        assert f"{which} of this training has ended or was killed; " in errors[0]
        assert "the same command goes on where it stopped" in errors[0]
    done = launched(*command(run))
    assert done.returncode == 0, done.stdout
    assert _content(run) == _content(tmp_path / "whole")


@pytest.mark.slow
def test_the_ranks_die_with_torchrun(phantoms: Path, weights: Path, tmp_path: Path) -> None:
    """An orphan would write into the run that the next command resumes."""
    command = ["-m", "edgemed", "train", str(phantoms), "--out", str(tmp_path / "run"), *tiny_flags(weights)]
    training = subprocess.Popen([*TORCHRUN, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "run/members/mae/history.jsonl").exists() and training.poll() is None:
        time.sleep(0.01)
    ranks = [Path(f"/proc/{pid}") for pid in _children(training.pid)]
    assert len(ranks) == 2
    training.kill()
    training.wait()
    for _ in range(500):
        if all(not rank.exists() or "zombie" in (rank / "status").read_text() for rank in ranks):
            break
        time.sleep(0.02)
    else:
        pytest.fail("the ranks outlive torchrun")
    shutil.rmtree(tmp_path / "run")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _ranks(torchrun: int) -> dict[int, int]:
    """The process of each rank."""
    ranks = {}
    for pid in _children(torchrun):
        environment = dict(
            entry.partition(b"=")[::2] for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        )
        if b"RANK" in environment:
            ranks[int(environment[b"RANK"])] = pid
    return ranks
