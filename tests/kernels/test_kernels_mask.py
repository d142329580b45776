"""Entropy masks: the random numbers, what ratio and sharpness mean, and the same mask from every backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import tied_draw
from numpy.typing import NDArray

from edgemed.errors import InputError
from edgemed.kernels import definition, entropy_mask, reference

torch.set_num_threads(1)
IDS = np.array([0, 1, 2**40 + 3, -1, 77], dtype=np.int64)


def entropies(count: int = 5, rows: int = 7, columns: int = 7) -> NDArray[np.float32]:
    """float32 (count, rows, columns), 0..8 bits; the last image is flat."""
    bits = (8 * np.random.default_rng(3).random((count, rows, columns))).astype(np.float32)
    bits[-1] = 2.5
    return bits


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_is_the_published_generator(counter: Any, key: Any, words: Any) -> None:
    """The known answers of Random123 (kat_vectors, philox4x32, 10 rounds)."""
    assert reference.philox(counter, key) == words


def test_no_noise_value_lies_near_a_rounding_border() -> None:
    """All 2^24: a logarithm that is wrong by several units in its last place still rounds to the same integer."""
    nearest = 1.0
    for start in range(0, 2**24, 2**21):
        uniform = (np.arange(start, start + 2**21, dtype=np.float64) + 0.5) * 2.0**-24
        noise = -np.log(-np.log(uniform)) * 2**definition.SCORE_BITS
        nearest = min(nearest, float(np.abs(noise - np.floor(noise) - 0.5).min()))
    assert nearest > 6e-9  # 8 units in the last place of both logarithms move the product by less than 1.1e-9


def test_no_shannon_term_lies_near_a_rounding_border() -> None:
    counts = np.arange(1, 1025, dtype=np.float64)
    terms = counts * np.log2(counts) * 2**definition.GRID_BITS
    assert np.abs(terms - np.floor(terms) - 0.5).min() > 5e-4


@pytest.mark.parametrize("sharpness", [0.0, 1.0, -2.5, 1e-3, 1e7, -1e7])
@pytest.mark.parametrize("ratio", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", [0, 2**64 - 1, 2**33 + 5])
def test_every_backend_draws_the_mask_of_the_oracle(seed: int, ratio: float, sharpness: float) -> None:
    bits = entropies()
    wanted = entropy_mask(bits, ratio, sharpness, seed, IDS, backend="reference")
    tensors = torch.from_numpy(bits), torch.from_numpy(IDS)
    assert np.array_equal(entropy_mask(bits, ratio, sharpness, seed, IDS), wanted)
    assert np.array_equal(entropy_mask(tensors[0], ratio, sharpness, seed, tensors[1]).numpy(), wanted)


def test_a_mask_stays_what_it_is_across_versions() -> None:
    """Training resumes with the masks it would have had: this one was written down when the generator was defined."""
    bits = np.arange(16, dtype=np.float32).reshape(1, 4, 4) / 2
    mask = entropy_mask(bits, 0.5, 1.0, 2026, np.array([5], dtype=np.int64))
    assert "".join(str(int(unit)) for unit in mask.ravel()) == "0000001001111111"


@pytest.mark.parametrize(("ratio", "removed"), [(0.0, 0), (0.6, 29), (0.75, 37), (0.5, 24), (1.0, 49)])
def test_exactly_the_rounded_share_is_removed(ratio: float, removed: int) -> None:
    """49 units: 0.6 * 49 = 29.4, 0.75 * 49 = 36.75; 24.5 goes to the even number."""
    assert entropy_mask(entropies(), ratio, 1.0, 1, IDS).sum(axis=(1, 2)).tolist() == [removed] * 5


@pytest.mark.parametrize(("sharpness", "sign"), [(1e7, 1), (-1e7, -1)])
def test_extreme_sharpness_takes_the_highest_or_the_lowest(sharpness: float, sign: int) -> None:
    bits = entropies(4, 6, 6)[:3]
    mask = entropy_mask(bits, 0.25, sharpness, 1, IDS[:3])
    for image, removed in zip(bits, mask, strict=True):
        assert set((sign * image)[removed]) == set(np.sort((sign * image).ravel())[-9:])


@pytest.mark.parametrize("backend", ["reference", "numpy", "torch"])
def test_of_two_equal_scores_the_first_unit_is_removed(backend: str) -> None:
    tie = tied_draw()
    mask = entropy_mask(*tie.arguments, backend=backend).ravel()
    assert tie.removed < tie.kept
    assert mask[tie.removed]
    assert not mask[tie.kept]


def test_no_sharpness_ignores_the_entropies_and_a_flat_image_has_none() -> None:
    random = entropy_mask(entropies(), 0.6, 0.0, 9, IDS)
    assert np.array_equal(random, entropy_mask(np.zeros((5, 7, 7), np.float32), 0.6, 0.0, 9, IDS))
    assert np.array_equal(random[-1], entropy_mask(entropies(), 0.6, 1e7, 9, IDS)[-1])


def test_standardised_scores_do_not_depend_on_level_or_contrast() -> None:
    bits = np.round(entropies() * 1024) / 1024
    assert np.array_equal(
        entropy_mask(bits.astype(np.float32), 0.6, 1.0, 4, IDS),
        entropy_mask((bits / 2 + 1).astype(np.float32), 0.6, 1.0, 4, IDS),
    )


def test_the_first_unit_is_drawn_with_the_softmax_of_the_scores() -> None:
    """Gumbel's trick: P(unit i is the top one) = softmax(score)_i. 4,000 draws, 4 standard deviations."""
    bits = np.array([[[1.0, 2.0, 4.0]]], dtype=np.float32)
    scores = 0.8 * (bits.ravel() - bits.mean()) / bits.std()
    shares = np.exp(scores) / np.exp(scores).sum()
    draws = 4000
    mask = entropy_mask(np.repeat(bits, draws, axis=0), 1 / 3, 0.8, 11, np.arange(draws))
    deviation = np.sqrt(shares * (1 - shares) / draws)
    assert np.all(np.abs(mask.reshape(draws, 3).mean(axis=0) - shares) < 4 * deviation)


def test_values_outside_0_to_8_bits_are_clamped_and_nan_counts_as_0() -> None:
    strange = entropies(2)
    strange[0, 0, :4] = np.nan, -3.0, 9.5, np.inf
    tame = strange.copy()
    tame[0, 0, :4] = 0, 0, 8, 8
    wanted = entropy_mask(tame, 0.5, 3.0, 1, IDS[:2])
    for backend in ("reference", "numpy", "torch"):
        assert np.array_equal(entropy_mask(strange, 0.5, 3.0, 1, IDS[:2], backend=backend), wanted)


def test_the_counter_alone_decides_between_images() -> None:
    bits = np.repeat(entropies(1, 7, 7), 4, axis=0)
    ids = np.array([8, 9, 8, 8 + 2**32], dtype=np.int64)
    mask = entropy_mask(bits, 0.5, 0.0, 1, ids)
    assert np.array_equal(mask[0], mask[2])
    assert not np.array_equal(mask[0], mask[1])
    assert not np.array_equal(mask[0], mask[3])
    assert np.array_equal(entropy_mask(bits[:1], 0.5, 0.0, 1, ids[2:3])[0], mask[2])


@pytest.mark.parametrize("backend", ["reference", "numpy", "torch"])
def test_the_order_of_bytes_does_not_matter(backend: str) -> None:
    swapped = entropy_mask(entropies().astype(">f4"), 0.5, 1.0, 1, IDS.astype(">i8"), backend=backend)
    assert np.array_equal(swapped, entropy_mask(entropies(), 0.5, 1.0, 1, IDS))


@pytest.mark.parametrize("other", [2, 2**32 + 1])
def test_all_64_bits_of_the_seed_count(other: int) -> None:
    assert not np.array_equal(
        entropy_mask(entropies(), 0.5, 0.0, 1, IDS), entropy_mask(entropies(), 0.5, 0.0, other, IDS)
    )


def test_averages_of_fine_entropies_are_exact_in_any_order() -> None:
    """So masks from 8-pixel patches are the same on every device: sums of 16 values need no rounding in float32."""
    from edgemed.kernels import patch_entropy

    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    fine = patch_entropy(images, 8).reshape(2, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(2, 2, 2, 16)
    backwards = np.zeros((2, 2, 2), dtype=np.float32)
    for index in reversed(range(16)):
        backwards += fine[..., index]
    assert np.array_equal(backwards, fine.astype(np.float64).sum(axis=-1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entropy": np.zeros((5, 7, 7))}, "entropy is float64"),
        ({"entropy": np.zeros((5, 49), np.float32)}, r"\(N, h, w\)"),
        ({"entropy": np.zeros((5, 65, 64), np.float32)}, "4160 units.*1 to 4096"),
        ({"ids": np.zeros(4, np.int64)}, r"needed is int64 \(5,\)"),
        ({"ids": np.zeros(5, np.int32)}, "ids are int32"),
        ({"ids": [0, 1, 2, 3, 4]}, "got list.*asarray"),
        ({"ids": torch.zeros(5, dtype=torch.int64)}, "ndarray and Tensor, needed are two"),
        ({"ratio": 1.1}, "ratio is 1.1"),
        ({"ratio": math.nan}, "ratio is nan"),
        ({"sharpness": math.inf}, "sharpness is inf.*1e7"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"seed": 2**64}, "64"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "numpy", "torch"])
def test_wrong_input_is_refused_with_the_fix(changes: dict[str, Any], message: str, backend: str) -> None:
    arguments: dict[str, Any] = {
        "entropy": entropies(),
        "ratio": 0.6,
        "sharpness": 1.0,
        "seed": 0,
        "ids": IDS,
    } | changes
    with pytest.raises(InputError, match=message):
        entropy_mask(**arguments, backend=backend)
