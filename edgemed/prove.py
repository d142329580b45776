"""The proof that exported graphs are as right as the ensemble that they came from, before anything is written.

Each graph runs in every CPU runtime that works here, on images of the source at their own sizes; fp16 also runs with
every operator rounded, since CPUs execute fp16 graphs in fp32. Images are decoded as they are needed, never held.
`edgemed build-engine RUN --out BUNDLE`
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemed.ensemble import entropy_map, predict_callable
from edgemed.errors import GateError, InputError
from edgemed.evaluate import decoded, predict_files
from edgemed.evidence import Golden
from edgemed.gates import (
    TIE_MARGINS,
    Comparison,
    Gates,
    check,
    check_entropy,
    check_members,
    compare,
    default_gates,
    in_each_place,
    judged_golden,
    of_a_member,
    with_decisions,
)
from edgemed.images import Sides, fits
from edgemed.manifest import sha256_of
from edgemed.operating import changed_decisions
from edgemed.precision import Rounded
from edgemed.progress import Progress, counted
from edgemed.runtimes import ENTROPY, OUTPUTS, PlanModule, Session, runtime_module
from edgemed.sources import Source

Check = tuple[str, str, Comparison]  # what was compared with PyTorch on real images, at what precision, how it went
RUNTIMES = ("openvino", "onnxruntime")  # each graph has to pass in every one of them that works here
ACCEPT = "ship the fp32 graph alone (--precision fp32), or accept more with that gate's own flag"
_log = logging.getLogger("edgemed")


class Prover:
    """PyTorch's answers on chosen images of a source, and the gates that every candidate has to pass on them."""

    def __init__(
        self,
        source: Source,
        limit: int,
        sides: Sides,
        gates: Mapping[str, Gates],
        golden: Sequence[Golden],
        progress: Progress,
    ) -> None:
        """limit: at most so many of the source's validation images, evenly spaced, in the order of `_telling_first`.

        golden: what will be the self-test.

        Raises InputError where an image is outside of `sides`, or PyTorch answers otherwise than the source noted.
        """
        of_split = [k for k, one in enumerate(source.check_images) if one.split == "validation"]
        spaced = np.linspace(0, len(of_split) - 1, min(limit, len(of_split))).round().astype(int)
        chosen = _telling_first([of_split[k] for k in spaced], source)
        self.check_images = [source.check_images[k] for k in chosen]
        self.checks: list[Check] = []
        self.entropy_error: float | None = None  # the largest of all graphs in all runtimes, in bits
        self._gates, self._golden, self._member_names, self._progress = gates, golden, source.member_names, progress
        self._ensemble, self._point, self._labels = source.ensemble, source.operating_point, source.labels
        for known, image in zip(self.check_images, self.images(), strict=True):
            if not fits(image, sides):
                height, width, _ = image.shape
                raise InputError(f"{known.file} has {width} x {height} pixels, outside of --image-size; widen it")
        self._truth, self._members, _ = predict_files(
            predict_callable(source.ensemble), self.files, counted(progress, "PyTorch")
        )
        if not np.abs(self._members - source.noted[chosen]).max() <= default_gates("fp32").max_prob_error:
            raise InputError(
                f"{source.name}: PyTorch no longer gives what predictions.csv says; images or weights were changed"
            )

    @cached_property
    def _maps(self) -> list[NDArray[np.float32]]:
        return [entropy_map(self._ensemble.front, image) for image in self.images()]

    @property
    def files(self) -> list[Path]:
        """The chosen images' files."""
        return [each.file for each in self.check_images]

    def images(self, count: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """The first `count` chosen images (all: None), uint8 (H, W, 3) RGB, decoded one after the other."""
        return decoded(self.files[:count])

    def each_image(self) -> Iterator[NDArray[np.uint8]]:
        """All of them, with progress."""
        for done, image in enumerate(self.images(), 1):
            yield image
            self._progress("fp16 weights", done, len(self.check_images), "")

    def judge_graph(self, graph: bytes, precision: str) -> None:
        """Run an ONNX file in every CPU runtime. GateError names the runtime, the figures and the files that flip.

        Raises InputError where no runtime works: an engine that was never run is not proven.
        """
        modules = {name: runtime_module(name) for name in RUNTIMES}
        reasons = {name: module.availability() for name, module in modules.items()}
        if all(reasons.values()):
            raise InputError(f"no CPU runtime works here to prove the graph: {'; '.join(map(str, reasons.values()))}")
        for name, module in modules.items():
            if isinstance(module, PlanModule) or reasons[name] is not None:
                continue
            session = module.open_session(graph, threads=None, cache_key=sha256_of(graph))
            results = []
            for image in self.images():
                results.append(session.run(image[None]))
                self._progress(f"{precision} in {name}", len(results), len(self.check_images), "")
            mean, members = (np.concatenate([result[key] for result in results]) for key in OUTPUTS)
            what = f"the {precision} graph in {name} {session.version}"
            self._judge(what, precision, mean, members)
            if self._golden[0].entropy is not None and ENTROPY in results[0]:  # else the self-test says that it lacks
                found = check_entropy(self._maps, [result[ENTROPY] for result in results], what)
                self.entropy_error = max(found, self.entropy_error or 0)
            self._self_test(session, precision, f"{what}, on the golden images")

    def _self_test(self, session: Session, precision: str, what: str) -> None:
        """The golden images through a graph, by the gates of the self-test, which a bundle has to pass anywhere."""
        self._judge_golden(self._golden, [session.run(item.image[None]) for item in self._golden], precision, what)
        of_two = in_each_place(session.run, self._golden[0].image, 2)  # images of one request must not mix
        self._judge_golden(self._golden[:1], [of_two], precision, f"{what}, in a batch of two different images")

    def _judge_golden(
        self, golden: Sequence[Golden], outputs: Sequence[Mapping[str, NDArray[np.float32]]], precision: str, what: str
    ) -> None:
        with _hint(precision, "ship the fp32 graph alone (--precision fp32), or give other images by --golden"):
            judged_golden(golden, outputs, precision, self._member_names, what)

    def judge_rounded(self, rounded: Rounded) -> None:
        """Judge what the first images, and then the golden ones, gave when every fp16 operator was rounded.

        As a GPU does it, on which a bundle has to pass its own self-test. GateError likewise.
        """
        what, count = "the fp16 network with every operator rounded", len(rounded.probabilities) - len(self._golden)
        self._judge(what, "fp16", rounded.probabilities[:count], rounded.members[:count])
        outputs = [
            {"probabilities": rounded.probabilities[k][None], "member_probabilities": rounded.members[k][None]}
            for k in range(count, len(rounded.probabilities))
        ]
        golden = [item._replace(entropy=None) for item in self._golden]  # it is the front end's, and that stays fp32
        self._judge_golden(golden, outputs, "fp16", f"{what} on the golden images")

    def has_room(self, rounded: Rounded, weights: Rounded) -> bool:
        """Whether no probability errs by more than half of what the gate allows, so that unseen images may err more.

        rounded: every operator rounded, on a few images; weights: the weights alone, on all chosen images, which is
        fast and finds those that err most. A device's `certify` applies the whole gate. No error that has room changes
        a label that counts.
        """
        count = len(rounded.probabilities) - len(self._golden)
        of_golden = np.stack([item.probabilities for item in self._golden])
        members = np.stack([item.members for item in self._golden])
        on_golden = default_gates("fp16").max_prob_error  # with more, a label that counts could change
        on_images = min(self._gates["fp16"].max_prob_error, on_golden)
        number = len(self._member_names)
        compared = (
            (rounded.probabilities[:count], self._truth[:count], on_images),
            (rounded.members[:count], self._members[:count], on_images * number),
            (rounded.probabilities[count:], of_golden, on_golden),
            (rounded.members[count:], members, on_golden),
            (weights.probabilities, self._truth, on_images),
            (weights.members, self._members, on_images * number),
        )
        return all(np.abs(found - truth).max() <= bound / 2 for found, truth, bound in compared)  # not of a NaN

    def _judge(
        self, what: str, precision: str, probabilities: NDArray[np.float32], members: NDArray[np.float32]
    ) -> None:
        count, gates = len(probabilities), self._gates[precision]
        names = [str(file) for file in self.files[:count]]
        truth, of_members = self._truth[:count], self._members[:count]
        loose = of_a_member(gates, len(self._member_names))
        with _hint(precision, ACCEPT):
            check_members(of_members, members[:, None], loose, self._member_names, what, names)
        labels = [each.label for each in self.check_images[:count]]
        margin, point = TIE_MARGINS[precision], self._point
        found = compare(truth, probabilities, tie_margin=margin, labels=labels)
        if point is not None:
            both = (of_members, members)
            found = with_decisions(
                found, *changed_decisions(point, self._labels, truth, probabilities, both, margin=margin)
            )
        with _hint(precision, ACCEPT):
            check(found, gates, what, names)
        self.checks.append((what, precision, found))
        _log.info("%s against PyTorch: largest error %.1e on %d images", what, found.max_prob_error, found.n)


@contextmanager
def _hint(precision: str, help_: str) -> Iterator[None]:
    """A GateError says what can be done where fp16 fails: some networks lose more in half precision than others."""
    try:
        yield
    except GateError as error:
        if precision != "fp16":
            raise
        raise GateError(f"{error}; {help_}") from error


def _telling_first(chosen: Sequence[int], source: Source) -> list[int]:
    """`chosen`, indices into `check_images`: the classes in turn, and of each the least certain images first.

    So the first few are of all classes, and such that an error of the logits changes a probability most.
    """
    seen: Counter[int] = Counter()
    certain = source.noted.mean(axis=1).max(axis=1)
    ranks = []
    for k in sorted(chosen, key=lambda k: certain[k]):
        label = source.check_images[k].label
        ranks.append((seen[label], label, k))
        seen[label] += 1
    return [k for _, _, k in sorted(ranks)]
