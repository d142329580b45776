"""Cross-validation: folds trained at once in processes of their own, and what is pooled of them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fold_jobs
import numpy as np
import pytest
from conftest import run_main, tiny_flags

pytest.importorskip("torch", reason="extra train is not installed")

from edgemed.allowance import available_gib
from edgemed.config import TrainConfig
from edgemed.distributed import cpu_threads
from edgemed.errors import InputError
from edgemed.parallel import folds_at_once, run_jobs

Edgemed = Callable[..., int]


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_the_folds_share_cores_and_memory_and_their_threads_depend_on_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores, threads, expected in (
        (1, 0, (1, 1)),
        (2, 0, (2, 1)),
        (16, 0, (5, 3)),
        (16, 8, (2, 8)),
        (2, 4, (1, 4)),
        (64, 1, (5, 1)),
    ):
        monkeypatch.setattr("edgemed.parallel.usable_cores", lambda cores=cores: cores)
        monkeypatch.setattr("edgemed.parallel.available_gib", lambda: 100.0)
        assert folds_at_once(TrainConfig(folds=5, threads=threads), "cpu") == expected, (cores, threads)
        assert folds_at_once(TrainConfig(folds=5, threads=threads), "cuda:1") == (1, threads)
        for gpus in (["0"], ["0", "1"]):
            share = threads or max(1, cores // len(gpus))
            assert folds_at_once(TrainConfig(folds=5, threads=threads), "cuda", gpus) == (len(gpus), share)
    images = tmp_path / "images"  # 200 MB, which may be 4 GB decoded
    with images.open("wb") as file:
        file.truncate(200_000_000)
    for gib, at_once in ((1.0, 1), (14.0, 3), (24.0, 5)):  # a fold of convnext_tiny takes 4.5 GiB
        monkeypatch.setattr("edgemed.parallel.available_gib", lambda gib=gib: gib)
        assert folds_at_once(TrainConfig(folds=5), "cpu") == (at_once, 12)
        assert folds_at_once(TrainConfig(folds=5, size=448, train_size=224), "cpu") == (at_once, 12)
        assert folds_at_once(TrainConfig(folds=5, size=192, train_size=224, pretrain_size=64), "cpu") == (at_once, 12)
        assert folds_at_once(TrainConfig(folds=5, threads=1), "cpu") == (at_once, 1)
        assert folds_at_once(TrainConfig(folds=5), "cpu", files=[images] * 2) == ({1: 1, 3: 1, 5: 2}[at_once], 12)


def test_training_starts_no_more_threads_than_a_container_has_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("edgemed.allowance._quota", lambda _: 3)
    assert cpu_threads(0) == 3
    assert folds_at_once(TrainConfig(folds=5), "cpu")[1] == 1
    assert folds_at_once(TrainConfig(folds=5), "cuda", ["0"]) == (1, 3)


def test_the_memory_that_linux_and_a_container_could_give_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(path: Path, *given: str, **named: str) -> str:
        return "100000000\n" if path == Path("/sys/fs/cgroup/memory.max") else read_text(path, *given, **named)

    total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    assert 0.1 < available_gib() < total / 2**20
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", limited)
    assert available_gib() == pytest.approx(1e8 / 2**30)


def test_a_failing_fold_stops_the_ones_that_have_not_begun(tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(InputError, match="job 0 is bad"):
        run_jobs(fold_jobs.touch, [(tmp_path, k) for k in range(6)], 2, lambda name, *_: seen.append(name))
    begun = sorted(path.name for path in tmp_path.iterdir())
    assert begun[:2] == ["0", "1"]
    assert len(begun) < 6
    assert "job 1" in seen


def test_an_interrupt_ends_all_folds_at_once_and_reaches_no_worker_itself(tmp_path: Path) -> None:
    seen: list[str] = []

    def interrupted(name: str, *_: object) -> None:
        seen.append(name)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(fold_jobs.linger, [(tmp_path, k) for k in range(2)], 2, interrupted)
    assert seen == ["still here"]
    for worker in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker.name), 0)


@pytest.fixture(scope="module")
def folded(phantoms: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    run = tmp_path_factory.mktemp("folded") / "run"
    assert run_main("train", phantoms, "--out", run, *tiny_flags(weights), "--folds", "3") == 0
    yield run


def test_folds_test_every_image_once_and_pool_them(folded: Path, edgemed: Edgemed, tmp_path: Path) -> None:
    everything = sorted(row["path"] for row in _rows(folded / "split.csv"))
    tested = [row["path"] for k in range(3) for row in _rows(folded / f"folds/{k}/split.csv") if row["split"] == "test"]
    assert sorted(tested) == everything
    metrics = json.loads((folded / "metrics.json").read_text())
    of_folds = [json.loads((folded / f"folds/{k}/metrics.json").read_text()) for k in range(3)]
    accuracy = metrics["folds"]["ensemble"]["accuracy"]
    assert accuracy["folds"] == [fold["ensemble"]["accuracy"]["value"] for fold in of_folds]
    assert accuracy["mean"] == pytest.approx(np.mean(accuracy["folds"]))
    right = sum(fold["ensemble"]["accuracy"]["value"] * fold["n"] for fold in of_folds)
    assert metrics["ensemble"]["accuracy"]["value"] == pytest.approx(right / len(everything))
    assert edgemed("build-engine", folded, "--out", tmp_path / "bundle") == 2


def test_folds_of_another_version_are_evaluated_anew_by_their_own_command(
    folded: Path, phantoms: Path, weights: Path, edgemed: Edgemed, tmp_path: Path
) -> None:
    run = shutil.copytree(folded, tmp_path / "run")
    for each in (run, *run.glob("folds/*")):
        (each / "metrics.json").write_text(json.dumps({"schema": 1}))
    assert edgemed("train", phantoms, "--out", run, *tiny_flags(weights), "--folds", "3") == 0
    for name in ("metrics.json", "folds/2/metrics.json"):
        assert json.loads((run / name).read_text()) == json.loads((folded / name).read_text())


def test_what_is_logged_of_a_fold_bears_its_number(
    folded: Path, phantoms: Path, weights: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = shutil.copytree(folded, tmp_path / "run")
    (run / "folds/1/members/mae/model.safetensors").unlink()
    assert run_main("train", phantoms, "--out", run, *tiny_flags(weights), "--folds", "3") == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "fine-tuning mae on" in line]
    assert len(lines) == 1 and "fold 2/3: fine-tuning mae on" in lines[0]
