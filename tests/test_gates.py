"""What counts as a flip, and what a gate lets through."""

from __future__ import annotations

import itertools
import re
from functools import partial

import numpy as np
import pytest

from edgemed.errors import GateError, InputError
from edgemed.evidence import Golden
from edgemed.gates import (
    TIE_MARGINS,
    Gates,
    check,
    compare,
    compare_batches,
    default_gates,
    in_each_place,
    judged_golden,
)

REFERENCE = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])


def test_equal_probabilities_pass_every_gate() -> None:
    pytest.importorskip("sklearn")
    found = compare(REFERENCE, REFERENCE, tie_margin=0, labels=[0, 1, 2])
    assert (found.n, found.max_prob_error, found.mean_prob_error, found.flips) == (3, 0, 0, ())
    assert found.auroc_drop == 0
    check(found, Gates(max_flips=0, max_prob_error=0, max_auroc_drop=0))


def test_errors_are_the_largest_and_the_mean_over_all_probabilities() -> None:
    other = REFERENCE.copy()
    other[0] += [-0.09, 0.09, 0]
    other[2] += [0, 0.03, -0.03]
    found = compare(REFERENCE, other, tie_margin=0)
    assert found.max_prob_error == pytest.approx(0.09)
    assert found.mean_prob_error == pytest.approx((0.09 + 0.09 + 0.03 + 0.03) / 9)
    assert found.flips == ()


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 64])
def test_no_row_of_a_batch_can_have_another_rows_answer_unseen(batch: int) -> None:
    image, ran = np.full((2, 2, 3), 3, np.uint8), 0

    def run(pixels: np.ndarray, taken: int = 0, of: int = 0) -> dict[str, np.ndarray]:
        nonlocal ran
        ran += 1
        answers = pixels[:, 0, 0, :1].astype(np.float32)
        answers[taken] = answers[of]
        return {"answer": answers}

    assert set(in_each_place(run, image, batch)["answer"].ravel()) == {3.0}
    assert ran == max(1, 2 * (batch - 1).bit_length())
    for taken, of in itertools.permutations(range(batch), 2):
        assert 252.0 in in_each_place(partial(run, taken=taken, of=of), image, batch)["answer"]


@pytest.mark.parametrize(("gap", "counts_at_fp16"), [(0.009, False), (0.011, True)])
def test_at_fp16_a_flip_counts_only_where_the_reference_was_clear(gap: float, counts_at_fp16: bool) -> None:
    reference = [[0.4 + gap, 0.4, 0.2 - gap]]
    candidate = [[0.4, 0.4 + gap, 0.2 - gap]]
    assert compare(reference, candidate, tie_margin=TIE_MARGINS["fp32"]).flips == (0,)
    assert compare(reference, candidate, tie_margin=TIE_MARGINS["fp16"]).flips == ((0,) if counts_at_fp16 else ())


def test_at_fp32_a_changed_label_counts_even_at_a_tie() -> None:
    assert compare([[0.5, 0.5]], [[0.4999, 0.5001]], tie_margin=TIE_MARGINS["fp32"]).flips == (0,)


def test_flips_are_named_by_index() -> None:
    candidate = REFERENCE[:, [1, 0, 2]]
    assert compare(REFERENCE, candidate, tie_margin=0).flips == (0, 1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_never_passes(wrong: float) -> None:
    other = REFERENCE.copy()
    other[1, 1] = wrong
    found = compare(REFERENCE, other, tie_margin=0, labels=[0, 1, 2])
    assert found.max_prob_error == np.inf
    with pytest.raises(GateError, match="probability error inf"):
        check(found, Gates(max_flips=3, max_prob_error=1e9))
    all_wrong = np.full_like(REFERENCE, np.nan)
    with pytest.raises(GateError):
        check(compare(REFERENCE, all_wrong, tie_margin=0), Gates())


def test_a_fall_of_auroc_is_found_without_a_flip() -> None:
    pytest.importorskip("sklearn")
    labels = [0, 0, 1, 1]
    reference = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    candidate = reference[[0, 3, 1, 2]]  # one negative passes both positives: AUROC 1 -> 0.5, every label stays 0
    found = compare(reference, candidate, tie_margin=0, labels=labels)
    assert found.flips == ()
    assert found.auroc_drop == pytest.approx(0.5)
    with pytest.raises(GateError, match=re.escape("AUROC lower by 0.5000, at most 0.4 allowed")):
        check(found, Gates(max_prob_error=1, max_auroc_drop=0.4))
    check(found, Gates(max_prob_error=1, max_auroc_drop=0.5))
    better = compare(candidate, reference, tie_margin=0, labels=labels)
    check(better, Gates(max_prob_error=1, max_auroc_drop=0))
    assert compare(reference, candidate, tie_margin=0, labels=[0, 0, 0, 0]).auroc_drop is None  # undefined


@pytest.mark.parametrize("classes", [2, 3])
def test_two_images_that_change_places_are_no_fall_of_auroc_however_few_there_are(classes: int) -> None:
    """Rounding may do that to any pair that is close; of a few images, it alone would be beyond every gate."""
    pytest.importorskip("sklearn")
    labels = [0, 0, 0, *[k % (classes - 1) + 1 for k in range(6)]]
    reference = np.eye(classes)[labels] * 0.5 + 0.2
    reference[:, 0] = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    if classes == 2:
        reference[:, 1] = 1 - reference[:, 0]
    one, two = reference.copy(), reference.copy()
    changed = slice(0, 2) if classes == 2 else slice(0, 1)
    one[2:4, changed] = reference[[3, 2], changed]  # an image of class 0 and another one
    two[2:5, changed] = reference[[4, 2, 3], changed]
    every = Gates(max_flips=9, max_prob_error=1, max_auroc_drop=0)
    found = compare(reference, one, tie_margin=0, labels=labels)
    assert found.auroc_drop == pytest.approx(found.auroc_step) and found.auroc_drop > 0.01
    check(found, every)
    twice = np.stack([one, one], axis=1)
    check(compare_batches(reference, twice, tie_margin=0, labels=labels), every)
    with pytest.raises(GateError, match="AUROC lower by"):
        check(compare(reference, two, tie_margin=0, labels=labels), every)


def test_a_pair_of_the_rarest_class_weighs_most_and_its_change_of_places_is_no_fall_of_auroc_either() -> None:
    pytest.importorskip("sklearn")
    labels = [0] * 6 + [1] * 2 + [2]
    reference = np.eye(3)[labels] * 0.5 + 0.2
    reference[:, 2] = np.arange(1, 10) / 10
    swapped = reference.copy()
    swapped[7:, 2] = reference[[8, 7], 2]  # the only image of class 2, and the next below it
    found = compare(reference, swapped, tie_margin=0, labels=labels)
    assert found.auroc_drop == pytest.approx(1 / (1 * 8) / 3)
    check(found, Gates(max_flips=9, max_prob_error=1, max_auroc_drop=0))
    two_of_three = compare(reference, reference, tie_margin=0, labels=[0] * 6 + [1] * 3)
    assert two_of_three.auroc_step == pytest.approx(1 / (6 * 3) / 2)  # a pair of one of two curves


@pytest.mark.parametrize("member", [0, 1])
def test_a_self_test_judges_each_member_though_the_mean_is_within_its_gate(member: int) -> None:
    of_members = np.array([[0.7, 0.3], [0.6, 0.4]], np.float32)
    golden = Golden(np.zeros((2, 2, 3), np.uint8), of_members.mean(0), of_members)
    off = of_members.copy()
    off[member] += np.float32([1.5e-3, -1.5e-3])
    answers = {"probabilities": off.mean(0)[None], "member_probabilities": off[None]}
    with pytest.raises(GateError, match=f"it, member {'ab'[member]}, differs .* probability error 1.50e-03"):
        judged_golden([golden], [answers], "fp32", "ab", "it")
    right = {"probabilities": of_members.mean(0)[None], "member_probabilities": of_members[None]}
    assert judged_golden([golden], [right], "fp32", "ab", "it").max_prob_error == 0


def test_the_error_of_a_gate_lists_every_figure_that_is_beyond_it() -> None:
    found = compare(REFERENCE, REFERENCE[:, [1, 0, 2]], tie_margin=0)
    with pytest.raises(GateError) as raised:
        check(found, Gates(), "model.fp32.onnx on openvino")
    text = str(raised.value)
    assert text.startswith("model.fp32.onnx on openvino differs from its reference on 3 images")
    assert "2 decision flips (images 0, 1), at most 0 allowed" in text
    assert "largest probability error 7.00e-01, at most 0.001 allowed" in text
    assert raised.value.exit_code == 3
    with pytest.raises(GateError, match="flips") as flips_only:
        check(found, Gates(max_prob_error=1))
    assert "probability error" not in str(flips_only.value)


def test_a_figure_on_its_gate_passes_and_one_beyond_does_not() -> None:
    reference, candidate = np.array([[0.5, 0.25, 0.25]]), np.array([[0.625, 0.125, 0.25]])
    found = compare(reference, candidate, tie_margin=0)
    check(found, Gates(max_prob_error=0.125))
    with pytest.raises(GateError):
        check(found, Gates(max_prob_error=0.1249))


def test_the_default_gates_are_those_of_the_design() -> None:
    assert default_gates("fp32") == Gates(max_flips=0, max_prob_error=1e-3, max_auroc_drop=0.005)
    assert default_gates("fp16") == Gates(max_flips=0, max_prob_error=5e-3, max_auroc_drop=0.005)
    with pytest.raises(InputError, match="Did you mean 'fp16'"):
        default_gates("f16")
    with pytest.raises(InputError, match="--max-prob-error"):
        Gates(max_prob_error=float("nan"))
    with pytest.raises(InputError, match="--max-flips"):
        Gates(max_flips=-1)


def test_what_cannot_be_compared_is_refused() -> None:
    for other in (REFERENCE[:2], REFERENCE[:, :2], REFERENCE[0]):
        with pytest.raises(InputError, match="cannot compare"):
            compare(REFERENCE, other, tie_margin=0)
    with pytest.raises(InputError, match="cannot compare"):
        compare(np.zeros((0, 3)), np.zeros((0, 3)), tie_margin=0)
    with pytest.raises(InputError, match="reference itself"):
        compare(REFERENCE * np.nan, REFERENCE, tie_margin=0)
