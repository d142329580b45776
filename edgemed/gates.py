"""How far a candidate's probabilities are from the reference's, and the gates that decide whether that is close enough.

Why: "the engine works" has to mean the same everywhere: `build-engine` against PyTorch, `bench` on the golden images.
A flip is a changed label; with an operating point, `with_decisions` adds changed decisions and prediction sets. At fp16
it counts only where the reference's two highest probabilities differ by more than 1e-2 (or one from its limit): below
that, the reference itself had no clear answer. `edgemed build-engine RUN --out BUNDLE` applies the gates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemed.errors import GateError, InputError, did_you_mean, flag
from edgemed.evidence import Golden
from edgemed.operating import UNCLEAR

Answers = Mapping[str, NDArray[np.float32]]  # an engine's outputs by their names: see `runtimes.Session.run`

TIE_MARGINS = {"fp32": 0.0, "fp16": 1e-2}
"""By precision: a flip counts where the reference's two highest probabilities differ by more (0: everywhere)."""

MAX_ENTROPY_ERROR = 0.02
"""Bits, at every precision: a pixel of the resized image that rounds the other way moves a count by one.

Such pixels are rare: 0.015 bit is the most that another order of the sums made in 440 real images at 224 px. Stripes or
a chequerboard that resize to exact halves all over make more, up to 0.19.
"""


@dataclass(frozen=True)
class Comparison:
    """A candidate against the reference on the same n images."""

    n: int
    max_prob_error: float  # largest absolute difference of a probability; infinite where one is not a number
    mean_prob_error: float
    flips: tuple[int, ...]  # indices of the images whose label (or decision) changed
    unclear: tuple[int, ...]  # likewise of those that changed where the reference had no clear answer: no flips
    auroc_drop: float | None  # reference minus candidate, macro one-vs-rest; None = not computed, or undefined
    auroc_step: float = 0.0  # what it is at least where the scores of two images have changed their order


@dataclass(frozen=True)
class Gates:
    """The bounds that a comparison has to keep. The defaults are those of fp32; `default_gates` knows fp16's."""

    max_flips: int = 0
    max_prob_error: float = 1e-3
    max_auroc_drop: float = 0.005

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise InputError(f"{flag(name)} is {value}; give a number from 0 on")


def default_gates(
    precision: str,
    *,
    max_flips: int = Gates.max_flips,
    max_prob_error: float | None = None,
    max_auroc_drop: float = Gates.max_auroc_drop,
) -> Gates:
    """The gates of "fp32" or "fp16": the defaults, or what is given. None: 1e-3 at fp32, 5e-3 at fp16."""
    errors = {"fp32": Gates.max_prob_error, "fp16": 5e-3}
    if precision not in errors:
        raise InputError(f"precision '{precision}' is unknown.{did_you_mean(precision, errors)}")
    return Gates(max_flips, errors[precision] if max_prob_error is None else max_prob_error, max_auroc_drop)


def compare(
    reference: ArrayLike,
    candidate: ArrayLike,
    *,
    tie_margin: float,
    labels: Sequence[int] | NDArray[np.int64] | None = None,
) -> Comparison:
    """Compare probabilities (N, K) of the same N images.

    tie_margin: see `TIE_MARGINS`. labels: (N,) the true classes, to compute the change of AUROC too (needs
    scikit-learn). Raises InputError where shapes differ, there is no image, or the reference is not finite.
    """
    truth = np.asarray(reference, dtype=np.float64)
    other = np.asarray(candidate, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != other.shape or not truth.size or truth.shape[1] < 2:
        raise InputError(f"cannot compare probabilities {other.shape} with a reference {truth.shape}: both are (N, K)")
    if not np.isfinite(truth).all():
        raise InputError("the reference itself holds a probability that is not a finite number; train the run again")
    # What is not a number is infinitely wrong: a NaN would pass every bound, since it compares false.
    error = np.where(np.isfinite(other), np.abs(truth - other), np.inf)
    highest = np.sort(truth, axis=1)
    clear = (highest[:, -1] - highest[:, -2] > tie_margin) | (tie_margin <= 0)
    changed = truth.argmax(axis=1) != other.argmax(axis=1)
    return Comparison(
        n=len(truth),
        max_prob_error=float(error.max()),
        mean_prob_error=float(error.mean()),
        flips=tuple(np.flatnonzero(changed & clear).tolist()),
        unclear=tuple(np.flatnonzero(changed & ~clear).tolist()),
        auroc_drop=None if labels is None or np.isinf(error).any() else _auroc_drop(labels, truth, other),
        auroc_step=0.0 if labels is None else _auroc_step(labels, truth.shape[1]),
    )


def compare_batches(
    reference: ArrayLike,
    candidate: ArrayLike,
    *,
    tie_margin: float,
    labels: Sequence[int] | NDArray[np.int64] | None = None,
) -> Comparison:
    """`compare` where each image (N, K) was answered in each place of a batch (N, B, K): see `in_each_place`.

    An image is as wrong as its worst row, and has flipped where one row has. Raises as `compare` does.
    """
    rows = np.asarray(candidate)
    copies = rows.shape[1]
    truth = np.repeat(np.asarray(reference), copies, axis=0)
    of_rows = None if labels is None else np.repeat(np.asarray(labels), copies)
    found = compare(truth, rows.reshape(-1, rows.shape[-1]), tie_margin=tie_margin, labels=of_rows)
    step = 0.0 if labels is None else _auroc_step(labels, truth.shape[1])
    flips, unclear = ({index // copies for index in each} for each in (found.flips, found.unclear))
    found = replace(found, flips=tuple(sorted(flips)), unclear=tuple(sorted(unclear - flips)))
    return replace(found, n=len(rows), auroc_step=step)


def with_decisions(found: Comparison, changed: Iterable[int], unclear: Iterable[int]) -> Comparison:
    """The comparison with these images among its flips, and among the unclear: see `operating.changed_decisions`."""
    flips = {*found.flips, *changed}
    others = {*found.unclear, *unclear} - flips
    return replace(found, flips=tuple(sorted(flips)), unclear=tuple(sorted(others)))


def changes(flips: str, unclear: int, precision: str) -> str:
    """What changed, for people to read: the flips, as given, and how many more changed near a tie or a limit."""
    margin = max(TIE_MARGINS[precision], UNCLEAR)
    return flips + (f" ({unclear} more within {margin:g} of a tie or limit)" if unclear else "")


def check(comparison: Comparison, gates: Gates, what: str = "the engine", names: Sequence[str] | None = None) -> None:
    """Raise GateError, with every figure that is beyond its gate, unless the comparison keeps them all.

    `what` names the candidate in the error, `names` the images (else they are named by index). A change of AUROC that
    was not computed is not judged, nor is one that the order of a single pair makes: of nine images, that is 0.02.
    """
    found = []
    if len(comparison.flips) > gates.max_flips:
        shown = ", ".join(names[index] if names else str(index) for index in comparison.flips[:10])
        more = ", ..." if len(comparison.flips) > 10 else ""
        found.append(
            f"{len(comparison.flips)} decision flips (images {shown}{more}), at most {gates.max_flips} allowed "
            "(--max-flips)"
        )
    if not comparison.max_prob_error <= gates.max_prob_error:
        found.append(
            f"largest probability error {comparison.max_prob_error:.2e}, at most {gates.max_prob_error:g} allowed "
            "(--max-prob-error)"
        )
    step = comparison.auroc_step * (1 + 1e-9)
    if comparison.auroc_drop is not None and not comparison.auroc_drop <= max(gates.max_auroc_drop, step):
        found.append(
            f"AUROC lower by {comparison.auroc_drop:.4f}, at most {gates.max_auroc_drop:g} allowed (--max-auroc-drop)"
        )
    if found:
        raise GateError(f"{what} differs from its reference on {comparison.n} images: {'; '.join(found)}")


def of_a_member(gates: Gates, members: int) -> Gates:
    """The gates of one member's probabilities: it counts 1/M in the mean, and so does its error."""
    return replace(gates, max_prob_error=members * gates.max_prob_error)


def check_members(
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    gates: Gates,
    member_names: Sequence[str],
    what: str,
    names: Sequence[str] | None = None,
) -> None:
    """Raise GateError, as `check` does, for the first member whose probabilities differ too much.

    reference (N, M, K); candidate (N, B, M, K), see `compare_batches`. A member alone decides nothing: flips are none.
    """
    for index, member in enumerate(member_names):
        found = compare_batches(reference[:, index], candidate[:, :, index], tie_margin=0)
        check(found, replace(gates, max_flips=found.n), f"{what}, member {member},", names)


def check_entropy(truth: Sequence[ArrayLike], answers: Sequence[ArrayLike], what: str) -> float:
    """The largest error, in bits, of entropy maps (B, E, E) of one image each in B places, against (E, E).

    Raises GateError where it is too large, a value is not finite, or a map has another shape.
    """
    largest = 0.0
    for each, batch in zip(truth, answers, strict=True):
        true, given = np.asarray(each, dtype=np.float64), np.asarray(batch, dtype=np.float64)
        if given.ndim != 3 or not len(given) or given.shape[1:] != true.shape:
            raise GateError(f"{what} gives an entropy of the shape {given.shape}, not (B, {true.shape})")
        error = np.abs(given - true)
        largest = max(largest, float(np.where(np.isfinite(error), error, np.inf).max()))
    if largest > MAX_ENTROPY_ERROR:
        raise GateError(
            f"{what} differs from the reference's entropy on {len(truth)} images: largest error {largest:.2e} bits, "
            f"at most {MAX_ENTROPY_ERROR:g} allowed"
        )
    return largest


def in_each_place(
    run: Callable[[NDArray[np.uint8]], Answers], image: NDArray[np.uint8], batch: int
) -> dict[str, NDArray[np.float32]]:
    """An image's answers in the places of a batch, by the outputs' names: (R, ...) each, R >= batch.

    image: uint8 (H, W, 3). Among copies, rows that are mixed up would not show. So a request holds the image in the
    places whose number has a certain bit (or has it not), and its negative in the others: any two places differ in one.
    """
    bits = [np.arange(batch) >> bit & 1 == value for bit in range(max(1, (batch - 1).bit_length())) for value in (0, 1)]
    found = []
    for holds in (each for each in bits if each.any()):
        outputs = run(np.where(holds[:, None, None, None], image, 255 - image))
        found.append({name: values[holds] for name, values in outputs.items()})
    return {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}


def check_rows(
    run: Callable[[NDArray[np.uint8]], Answers], images: NDArray[np.uint8], least: int, precision: str, what: str
) -> None:
    """Run images (N, H, W, 3) as one batch, and each alone, in `least` copies: GateError where their answers differ.

    Judged by the precision's default gates, since a batch of another size may run other kernels.
    """
    answers = [run(np.repeat(image[None], least, axis=0)) for image in images]
    alone = {name: np.stack([answer[name][0] for answer in answers]) for name in answers[0]}
    together = run(images)
    margin, gates = TIE_MARGINS[precision], default_gates(precision)
    check(compare(alone["probabilities"], together["probabilities"], tie_margin=margin), gates, what)
    members = alone["member_probabilities"]
    numbers = [str(number + 1) for number in range(members.shape[1])]
    check_members(members, together["member_probabilities"][:, None], gates, numbers, what)
    if "entropy" in alone:
        check_entropy(list(alone["entropy"]), list(together["entropy"][:, None]), what)


def judged_golden(
    golden: Sequence[Golden],
    answers: Sequence[Answers],
    precision: str,
    member_names: Sequence[str],
    what: str,
) -> Comparison:
    """Golden images against an engine's outputs, by name, for each one in every place of a batch: see `in_each_place`.

    Raises GateError where one differs by more than the precision's default gates, which are those of every self-test.
    """
    gates, margin = default_gates(precision), TIE_MARGINS[precision]
    truth, members = np.stack([item.probabilities for item in golden]), np.stack([item.members for item in golden])
    found = compare_batches(truth, np.stack([each["probabilities"] for each in answers]), tie_margin=margin)
    check(found, gates, what)
    check_members(members, np.stack([each["member_probabilities"] for each in answers]), gates, member_names, what)
    if maps := [item.entropy for item in golden if item.entropy is not None]:
        if any("entropy" not in each for each in answers):
            raise GateError(f"{what} gives no entropy, which its reference has")
        check_entropy(maps, [each["entropy"] for each in answers], what)
    return found


def _auroc_step(labels: Sequence[int] | NDArray[np.int64], classes: int) -> float:
    """The largest share of one (positive, negative) pair in the macro AUROC; 0 where that is undefined."""
    counts = np.bincount(np.asarray(labels), minlength=classes)
    counts = counts[counts > 0]
    if len(counts) < 2:
        return 0.0
    curves = 1 if classes == 2 else len(counts)  # of two classes, a pair changes places in both curves
    return float((1 / (counts * (counts.sum() - counts))).max() / curves)


def _auroc_drop(
    labels: Sequence[int] | NDArray[np.int64], reference: NDArray[np.float64], candidate: NDArray[np.float64]
) -> float | None:
    from edgemed.metrics import classification_metrics  # scikit-learn: not on every device

    classes = [str(k) for k in range(reference.shape[1])]
    candidate = np.clip(candidate, 0, 1)  # what lies outside shows in the probability error
    before, after = (classification_metrics(labels, table, classes)["auroc"] for table in (reference, candidate))
    return None if before is None or after is None else float(before - after)
