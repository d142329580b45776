"""The same files through every runtime that works here, and through the decoders that people use elsewhere.

    edgemed parity BUNDLE DATA [--limit 300] [--json]

Why: two programs that "run the same model" differ in two places, and a changed answer has to be traced to one of them.
The runtimes get the same pixels (those of `images.py`): a label that changes between two of them is a fault, and a
failed gate. The decoders (DALI, Pillow, OpenCV, with their plain calls) feed the same runtime: they are allowed to
differ, and this says by how much. Files that `images.py` reads by a rule of its own (16 bit, transparency, orientation,
...) are counted apart, by kind, since a plain decoder gives other pixels there and is not wrong by accident. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed import dicom
from edgemed.bundle import opened_by_keys
from edgemed.decoders import PLAIN, kind_of, plain_decoders
from edgemed.errors import GateError, InputError
from edgemed.gates import TIE_MARGINS, compare
from edgemed.images import Rgb, image_from_file
from edgemed.infer import Model, load
from edgemed.listing import image_files
from edgemed.progress import Progress, unseen
from edgemed.runtimes import ORDER, runtime_module

OURS = "edgemed"


@dataclass
class _Pair:
    """Two ways to the same files' probabilities: what is known so far of how they differ."""

    files: list[Path] = field(default_factory=list)
    first: list[NDArray[np.float32]] = field(default_factory=list)
    second: list[NDArray[np.float32]] = field(default_factory=list)
    largest: int | None = None  # difference of a pixel's value, 0..255; None: no two images of the same shape
    total: float = 0.0  # sum of the images' mean differences, over `same_shape` images
    same_shape: int = 0
    other_shape: int = 0
    undecoded: int = 0

    def add(self, file: Path, first: NDArray[np.float32], second: NDArray[np.float32]) -> None:
        self.files.append(file)
        self.first.append(first)
        self.second.append(second)

    def add_pixels(self, first: Rgb, second: Rgb) -> None:
        if first.shape != second.shape:
            self.other_shape += 1
            return
        difference = np.abs(first.astype(np.int16) - second)
        self.largest = max(self.largest or 0, int(difference.max()))
        self.total += float(difference.mean())
        self.same_shape += 1

    def answers(self, precision: str) -> dict[str, Any]:
        """How far the probabilities are apart. Labels that change count by the rule of the gates."""
        if not self.files:
            return {"images": 0, "max_prob_difference": None, "mean_prob_difference": None, "flips": []}
        found = compare(np.stack(self.first), np.stack(self.second), tie_margin=TIE_MARGINS[precision])
        return {
            "images": found.n,
            "max_prob_difference": found.max_prob_error,
            "mean_prob_difference": found.mean_prob_error,
            "flips": [str(self.files[index]) for index in found.flips],
        }

    def pixels(self) -> dict[str, Any]:
        return {
            "undecoded": self.undecoded,
            "other_shape": self.other_shape,
            "max_pixel_difference": self.largest,
            "mean_pixel_difference": self.total / self.same_shape if self.same_shape else None,
        }


def parity(
    bundle: Path,
    data: Path,
    *,
    runtime: str = "auto",
    precision: str = "fp32",
    limit: int | None = None,
    threads: int | None = None,
    public_key: Path | None = None,
    plan_key: Path | None = None,
    progress: Progress = unseen,
) -> dict[str, Any]:
    """How far runtimes given the same pixels, and decoders given the same runtime, are apart on the images in `data`.

    data: a folder of images (searched through), or a CSV with a column `path`. limit: at most so many of them, evenly
    spaced; None = all. runtime: which one the decoders are compared on; "auto" takes the first that works. threads: of
    each runtime. Uncertified plans run too: nothing is decided by their answers here.

    The result is a JSON-ready report; `require_no_flips` judges it. Files that edgemed refuses are listed in it.

    Raises InputError where no runtime works, or the named one does not; no image; no image that can be read.
    """
    files = list(image_files(data))
    if limit is not None and limit < len(files):
        files = [files[k] for k in np.linspace(0, len(files) - 1, limit).round().astype(int)]
    models, runtimes = _models(bundle, precision, threads, (public_key, plan_key))
    if runtime != "auto" and runtime not in models:
        runtime_module(runtime)  # an unknown name gets its own message
        raise InputError(f"--runtime {runtime} cannot serve: {runtimes[runtime]['not_run']}")
    if not models:
        reasons = "; ".join(f"{name}: {entry['not_run']}" for name, entry in runtimes.items())
        raise InputError(f"no runtime for {bundle}: {reasons}")
    common = next(iter(models)) if runtime == "auto" else runtime
    decode, decoders = plain_decoders()
    of_runtimes = {pair: _Pair() for pair in combinations(models, 2)}
    of_decoders: dict[tuple[str, str, str], _Pair] = {}
    refused: list[dict[str, str]] = []
    for done, file in enumerate(files, 1):
        progress("parity", done, len(files), file.name)
        try:
            ours = image_from_file(file)
        except InputError as error:
            refused.append({"path": str(file), "reason": str(error)})
            continue
        answers: dict[str, NDArray[np.float32]] = {}
        for name, model in models.items():
            try:
                answers[name] = model.predict_pixels(ours[None])[0][0]
            except InputError as error:  # outside the range of sizes: the bundle's, or that of one runtime's plan
                runtimes[name]["refused"] += 1
                runtimes[name]["refusal"] = runtimes[name]["refusal"] or f"{file}: {error}"
                why_not = f"{file}: {error}"
        if not answers:
            refused.append({"path": str(file), "reason": why_not})
            continue
        for pair, found in of_runtimes.items():
            if all(name in answers for name in pair):
                found.add(file, *(answers[name] for name in pair))
        if common not in answers:
            continue
        kind, encoded = kind_of(file), dicom.frame_of(file)[0].read_bytes()
        pixels: dict[str, Rgb | None] = {OURS: ours}
        pixels.update((name, one(encoded)) for name, one in decode.items())
        given = _answers(models[common], pixels, answers[common])
        for first, second in combinations(pixels, 2):
            found = of_decoders.setdefault((first, second, kind), _Pair())
            one, other = pixels[first], pixels[second]
            if one is None or other is None:
                found.undecoded += 1
                continue
            found.add_pixels(one, other)
            found.add(file, given[first], given[second])
    if len(refused) == len(files):
        raise InputError(f"none of the {len(files)} images in {data} can be read: {refused[0]['reason']}")
    order = sorted(of_decoders, key=lambda key: (key[2] != PLAIN, key[2]))  # stable: the pairs keep their order
    return {
        "bundle": str(bundle),
        "data": str(data),
        "precision": precision,
        "images": len(files) - len(refused),
        "refused": refused,
        "runtimes": runtimes,
        "decoders": {OURS: {"version": None, "not_run": None}} | decoders,
        "decoders_on": common,
        "runtime_pairs": [
            {"first": a, "second": b, **found.answers(precision)} for (a, b), found in of_runtimes.items()
        ],
        "decoder_pairs": [
            {"first": key[0], "second": key[1], "files": key[2]}
            | of_decoders[key].pixels()
            | of_decoders[key].answers(precision)
            for key in order
        ],
    }


def require_no_flips(report: dict[str, Any]) -> None:
    """Raise GateError where a label changes between two runtimes that were given the same pixels."""
    found = [
        f"{pair['first']} and {pair['second']} on {len(pair['flips'])} of {pair['images']} images "
        f"({', '.join(pair['flips'][:5])}{', ...' if len(pair['flips']) > 5 else ''})"
        for pair in report["runtime_pairs"]
        if pair["flips"]
    ]
    if found:
        raise GateError(
            f"runtimes given the same pixels disagree about the label: {'; '.join(found)}; run `edgemed inspect "
            f"{report['bundle']} --self-test` to see which of them is wrong"
        )


def _models(
    bundle: Path, precision: str, threads: int | None, keys: tuple[Path | None, Path | None]
) -> tuple[dict[str, Model], dict[str, dict[str, Any]]]:
    """A model on each runtime that works here; and of every runtime its version and state, or why it is not run."""
    opened = opened_by_keys(bundle, *keys)
    opened.read_model(precision)  # a precision that is not there, a changed graph: not a runtime's fault
    models, told = {}, {}
    for name in ORDER:
        entry: dict[str, Any] = {"version": None, "state": None, "not_run": runtime_module(name).availability()}
        entry |= {"refused": 0, "refusal": None}  # images that this runtime alone may refuse, and its first reason
        if entry["not_run"] is None:
            try:
                models[name] = load(opened, runtime=name, precision=precision, threads=threads)
                entry |= {"version": models[name].session.version, "state": models[name].state}
            except InputError as error:
                entry["not_run"] = str(error)
        told[name] = entry
    return models, told


def _answers(model: Model, pixels: dict[str, Rgb | None], ours: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The probabilities (K,) that each decoder's pixels give; the same pixels are not run again."""
    seen: list[tuple[Rgb, NDArray[np.float32]]] = []
    found: dict[str, NDArray[np.float32]] = {}
    for name, image in pixels.items():
        if image is None:
            continue
        answer = ours if name == OURS else next((row for one, row in seen if np.array_equal(one, image)), None)
        if answer is None:
            answer = model.predict_pixels(image[None])[0][0]
        seen.append((image, answer))
        found[name] = answer
    return found
