"""The Triton kernels in Triton's interpreter: the oracle's entropies, and torch's masks to the last bit."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import CASES, TOLERANCES, expected, tied_draw, varied_images

from edgemed.kernels import entropy_mask, patch_entropy

pytest.importorskip("triton", reason="triton is not installed")
torch.set_num_threads(1)

IMAGES = varied_images()
GREY = varied_images(channels=1)
MASK_CALLS = [
    (units, ratio, sharpness, seed)
    for units in ((7, 7), (1, 1), (12, 16))
    for ratio, sharpness, seed in (
        (0.6, 1.0, 0),
        (0.6, 0.0, 2**64 - 1),
        (0.75, -1e7, 2**33 + 5),
        (0.0, 1.0, 1),
        (1.0, 1e7, 1),
    )
]
IDS = np.array([0, -1, 2**40 + 3], dtype=np.int64)


def bits_of(units: tuple[int, int]) -> Any:
    """float32 (3, h, w) entropies, the last image flat."""
    bits = (8 * np.random.default_rng(units[0]).random((3, *units))).astype(np.float32)
    bits[-1] = 2.5
    return bits


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Every call of this file, answered by one interpreter process."""
    calls: dict[Any, Any] = {("rgb", case): ("patch_entropy", (IMAGES, *case)) for case in CASES}
    calls |= {("grey", case): ("patch_entropy", (GREY, *case)) for case in CASES[::4]}
    calls["odd"] = ("patch_entropy", (IMAGES[:3, :24, :40], 8))  # 45 patches: the last program is not full
    calls["strides"] = ("patch_entropy", (np.ascontiguousarray(IMAGES.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3), 16))
    calls["none"] = ("patch_entropy", (IMAGES[:0], 16))
    calls["no mask"] = ("entropy_mask", (np.zeros((0, 7, 7), np.float32), 0.5, 1.0, 0, np.zeros(0, np.int64)))
    calls["tie"] = ("entropy_mask", tied_draw().arguments)
    for call in MASK_CALLS:
        calls[call] = ("entropy_mask", (bits_of(call[0]), *call[1:], IDS))
    folder = tmp_path_factory.mktemp("interpreted")
    (folder / "calls").write_bytes(pickle.dumps(list(calls.values())))
    script = Path(__file__).with_name("interpreted.py")
    command = [sys.executable, str(script), str(folder / "calls"), str(folder / "answers")]
    subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    kind, results = pickle.loads((folder / "answers").read_bytes())
    assert kind == "InterpretedFunction"
    return dict(zip(calls, results, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_oracle_and_equals_torch(answers: dict[Any, Any], case: Any) -> None:
    answer = answers["rgb", case]
    assert np.abs(answer - expected(IMAGES, case)).max() <= TOLERANCES["triton"]
    assert np.array_equal(answer, patch_entropy(torch.from_numpy(IMAGES), *case).numpy())


@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_grey_images(answers: dict[Any, Any], case: Any) -> None:
    assert np.array_equal(answers["grey", case], patch_entropy(GREY, *case))


def test_odd_sizes_strides_and_empty_batches(answers: dict[Any, Any]) -> None:
    assert np.array_equal(answers["odd"], patch_entropy(IMAGES[:3, :24, :40], 8))
    assert np.array_equal(answers["strides"], patch_entropy(IMAGES, 16))
    assert answers["none"].shape == (0, 4, 6)
    assert answers["no mask"].shape == (0, 7, 7)


@pytest.mark.parametrize("call", MASK_CALLS, ids=str)
def test_masks_equal_those_of_torch(answers: dict[Any, Any], call: Any) -> None:
    units, ratio, sharpness, seed = call
    wanted = entropy_mask(torch.from_numpy(bits_of(units)), ratio, sharpness, seed, torch.from_numpy(IDS))
    assert np.array_equal(answers[call], wanted.numpy())


def test_of_two_equal_scores_the_first_unit_is_removed(answers: dict[Any, Any]) -> None:
    assert np.array_equal(answers["tie"], entropy_mask(*tied_draw().arguments))
